package mvcc

// Advance moves the revision on to rev, above the present one, and discards all
// history: what watches or reads at any earlier revision is told that it is
// compacted. No key changes. It is no log entry's work, but that of whoever makes a
// new cluster out of an old state: revisions that the old one may have reached must
// not come again with another meaning.
func (s *State) Advance(rev int64) {
	if rev <= s.meta.revision {
		return
	}
	s.compact(s.meta.revision)
	s.meta.revision = rev
	s.compact(rev)
	s.meta.eventHorizon = rev
}

// Rehash computes the state hash from all that it covers, which Hash does not: that one is
// kept up to date with each change. They differ when memory was damaged. It calls
// pace now and then with the bytes read since, and gives up when that returns false.
func (r *Root) Rehash(pace func(bytes int64) bool) (h Hash, done bool) {
	hasher := newHasher()
	meta := r.meta
	meta.sum = hash128{}
	var bytes int64
	done = true
	r.keys.Ascend(func(head *record) bool {
		if head.live() {
			meta.sum = meta.sum.add(hasher.record(head))
		}
		if bytes += head.size(); bytes >= rehashStep {
			done, bytes = pace(bytes), 0
		}
		return done
	})
	r.leases.Ascend(func(l Lease) bool {
		meta.sum = meta.sum.add(hasher.lease(l))
		return true
	})
	for i := range r.ids.len() {
		meta.sum = meta.sum.add(hasher.txnID(r.ids.at(i)))
	}
	return hasher.whole(&meta).bytes(), done
}

// rehashStep is how many bytes Rehash reads between two calls of pace.
const rehashStep = 1 << 20
