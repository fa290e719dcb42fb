package mvcc

import (
	"sort"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// keptHashes is over how many applied entries a state remembers its hash, at least.
const keptHashes = 4096

// hashMark is the state hash from entry index on, up to the next mark.
type hashMark struct {
	index uint64
	hash  Hash
}

// markHash remembers the state hash at the entry just applied.
func (s *State) markHash() {
	h := s.hasher.whole(&s.meta).bytes()
	if last, ok := s.hashes.last(); ok && last.hash == h {
		return
	}
	s.hashes.append(hashMark{s.meta.index, h})
	if s.hashes.len() > keptHashes {
		s.hashes.drop(1)
	}
}

// hashAt looks up the hash at index among marks that end at entry upTo.
func hashAt(marks *sequence[hashMark], index, upTo uint64) (Hash, bool) {
	after := sort.Search(marks.len(), func(i int) bool { return marks.at(i).index > index })
	if after == 0 || index > upTo {
		return Hash{}, false
	}
	return marks.at(after - 1).hash, true
}

// CheckResult is what a replica found when it compared its state with its
// proposer's.
type CheckResult struct {
	// Index is the entry at which the states are compared.
	Index uint64
	// Known is false when this replica does not remember its hash at Index: it was
	// restored from a newer snapshot, or Index is too long ago. Equal means nothing
	// then.
	Known, Equal bool
	// Want is the proposer's hash, Have this replica's.
	Want, Have Hash
	Proposer   string
}

// check compares, before entry index has an effect.
func (s *State) check(op *raftv1.HashCheck, index uint64) *CheckResult {
	c := &CheckResult{Index: op.GetIndex(), Want: Hash(op.GetHash()), Proposer: op.GetProposer()}
	c.Have, c.Known = hashAt(&s.hashes, c.Index, index-1)
	c.Equal = c.Known && c.Have == c.Want
	return c
}

// Samples of when revisions were made: the last one of each period of sampleMillis
// in which something changed, and so many of them. They reach back almost four days
// of uninterrupted writing; a store that rests costs nothing.
const (
	sampleMillis = 10_000
	maxSamples   = 1 << 15
)

// timeSample says that an entry proposed at that time reached revision.
type timeSample struct{ millis, revision int64 }

// sample notes that an entry proposed at millis, by its proposer's clock, has
// reached the current revision. Time never goes back here: a clock that was ahead
// makes history look younger than it is, never older.
func (s *State) sample(millis int64) {
	newest := &s.meta.newest
	if millis = max(millis, newest.millis); millis == 0 {
		return // nobody has told the time yet
	}
	if newest.millis > 0 && millis/sampleMillis != newest.millis/sampleMillis {
		s.samples.append(*newest)
		if s.samples.len() > maxSamples {
			s.samples.drop(1)
		}
	}
	*newest = timeSample{millis, s.meta.revision}
}

// forgetSamples drops those below the horizon: nobody can compact to them again.
func (s *State) forgetSamples() {
	n := sort.Search(s.samples.len(), func(i int) bool { return s.samples.at(i).revision >= s.meta.horizon })
	s.samples.drop(n)
}

// RevisionBefore returns the newest revision that was reached before the time given
// in milliseconds since 1970, as far as is known: it may be one of up to 10 s
// earlier. It is 0 when there is none above the horizon. The times are those that
// proposers put into the log, so this is for the leader to choose what to compact
// to, and for people.
func (r *Root) RevisionBefore(millis int64) int64 {
	found := r.meta.newest
	if found.millis >= millis {
		after := sort.Search(r.samples.len(), func(i int) bool { return r.samples.at(i).millis >= millis })
		if after == 0 {
			return 0
		}
		found = r.samples.at(after - 1)
	}
	if found.revision <= r.meta.horizon {
		return 0
	}
	return found.revision
}

// HashAt returns the state hash that this replica had once it had applied entry
// index, and false if it does not remember: see CheckResult.
func (r *Root) HashAt(index uint64) (Hash, bool) { return hashAt(&r.hashes, index, r.meta.index) }
