package mvcc

import (
	"github.com/google/btree"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// Lease is a promise to delete keys together. The state machine knows no clock:
// when a lease ends is for the leader to say, in an entry.
type Lease struct {
	// ID is never 0.
	ID int64
	// TTL is what was granted, in milliseconds. Remaining is what is left of it as
	// of the last checkpoint, or TTL without one.
	TTL, Remaining int64
	// Keys is the number of keys that live by it.
	Keys int
}

// leases is which leases there are, and which keys live by them. Both trees share
// what does not change with the roots before. The second holds the keys' newest
// records: a lease with a million keys costs a pointer for each, and a key that is
// written again within its lease keeps its place.
type leases struct {
	byID     cow[Lease]
	attached cow[*record]
}

func newLeases() leases {
	return leases{
		byID:     newCow(func(a, b Lease) bool { return a.ID < b.ID }),
		attached: newCow(byLease),
	}
}

func (l *leases) get(id int64) (Lease, bool) { return l.byID.tree.Get(Lease{ID: id}) }

// move takes a key from old, its newest record so far, to r. Either may be nil or a
// tombstone.
func (l *leases) move(old, r *record) {
	var from, to int64
	if old.live() {
		from = old.lease
	}
	if r.live() {
		to = r.lease
	}
	if from != to && from != 0 {
		l.attached.change().Delete(old)
		l.count(from, -1)
	}
	if to != 0 {
		l.attached.change().ReplaceOrInsert(r)
		if from != to {
			l.count(to, +1)
		}
	}
}

// count changes a lease's number of keys. A snapshot of version 1 can hold keys
// whose lease does not exist; those are passed over.
func (l *leases) count(id int64, by int) {
	if lease, ok := l.get(id); ok {
		lease.Keys += by
		l.byID.change().ReplaceOrInsert(lease)
	}
}

// visitLease calls visit for the newest records that live by lease id, in key
// order, until it returns false.
func visitLease(attached *btree.BTreeG[*record], id int64, visit func(*record) bool) {
	attached.AscendGreaterOrEqual(&record{lease: id}, func(r *record) bool {
		return r.lease == id && visit(r)
	})
}

func (s *State) putLease(l Lease) {
	if old, ok := s.leases.byID.change().ReplaceOrInsert(l); ok {
		s.meta.sum = s.meta.sum.sub(s.hasher.lease(old))
	}
	s.meta.sum = s.meta.sum.add(s.hasher.lease(l))
}

func (s *State) grant(op *raftv1.LeaseGrant) {
	s.putLease(Lease{ID: op.GetId(), TTL: op.GetTtlMillis(), Remaining: op.GetTtlMillis()})
}

func (s *State) checkpoint(op *raftv1.LeaseCheckpoint) {
	if l, ok := s.leases.get(op.GetId()); ok {
		l.Remaining = min(op.GetRemainingMillis(), l.TTL)
		s.putLease(l)
	}
}

// revoke ends a lease and deletes its keys.
func (w *writer) revoke(op *raftv1.LeaseRevoke) *raftv1.OpResult {
	s := w.state
	var heads []*record
	visitLease(s.leases.attached.tree, op.GetId(), func(r *record) bool {
		heads = append(heads, r)
		return true
	})
	for _, head := range heads {
		w.change(&record{key: head.key})
	}
	if l, ok := s.leases.byID.change().Delete(Lease{ID: op.GetId()}); ok {
		s.meta.sum = s.meta.sum.sub(s.hasher.lease(l))
	}
	return &raftv1.OpResult{Count: int64(len(heads))}
}
