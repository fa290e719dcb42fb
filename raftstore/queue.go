package raftstore

import (
	"sync"
	"sync/atomic"
	"time"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// outcome is what became of a proposal: a result, or an error that is
// errNotProposed, ErrOutcomeUnknown, ErrOverloaded or ErrInvalid.
type outcome struct {
	result *raftv1.TxnResult
	err    error
}

// proposal is a transaction on its way into the log. Whoever sends it on takes it
// first, so that a caller who loses patience before can withdraw it and knows that
// nothing happened.
type proposal struct {
	txn    []byte // encoded
	lane   lane
	leases []int64 // those it grants, revokes or checkpoints
	begin  time.Time
	state  atomic.Int32
	done   chan outcome  // capacity 1, for a local caller
	answer func(outcome) // in place of done; must not block
}

const (
	proposalWaiting int32 = iota
	proposalTaken
	proposalWithdrawn
)

// newProposal returns one for a caller who waits on done.
func newProposal(txn []byte, ops ...[]Op) *proposal {
	p := &proposal{txn: txn, begin: time.Now(), done: make(chan outcome, 1)}
	p.classify(ops...)
	return p
}

// classify finds the proposal's leases and its lane.
func (p *proposal) classify(branches ...[]Op) {
	p.lane = laneUsers
	others := false
	for _, ops := range branches {
		p.leases, others = leasesOf(ops, p.leases, others)
	}
	if len(p.leases) > 0 && !others {
		p.lane = laneControl
	}
}

// leasesOf adds the leases that ops change to found. others reports whether ops do
// anything but to revoke or checkpoint leases.
func leasesOf(ops []Op, found []int64, others bool) ([]int64, bool) {
	for _, op := range ops {
		switch op := op.GetOp().(type) {
		case *raftv1.Op_LeaseRevoke:
			found = append(found, op.LeaseRevoke.GetId())
		case *raftv1.Op_LeaseCheckpoint:
			found = append(found, op.LeaseCheckpoint.GetId())
		case *raftv1.Op_LeaseGrant:
			found, others = append(found, op.LeaseGrant.GetId()), true
		case *raftv1.Op_Txn:
			found, others = leasesOf(op.Txn.GetThen(), found, others)
			found, others = leasesOf(op.Txn.GetOtherwise(), found, others)
		default:
			others = true
		}
	}
	return found, others
}

func (p *proposal) take() bool {
	return p.state.CompareAndSwap(proposalWaiting, proposalTaken)
}

func (p *proposal) withdraw() bool {
	return p.state.CompareAndSwap(proposalWaiting, proposalWithdrawn)
}

func (p *proposal) finish(out outcome) {
	if p.answer != nil {
		p.answer(out)
	} else {
		p.done <- out
	}
}

// lane is what kind of proposal waits. Those of a lane keep their order.
type lane int8

const (
	// laneControl is the cluster's own work: what its leader decided, and the end
	// of leases, which frees what a flood of writes fills.
	laneControl lane = iota
	laneUsers
	lanes
)

// laneLimits bound what may wait. Users can fill their own lane only. An empty lane
// takes any transaction.
var laneLimits = [lanes]struct{ count, bytes int }{
	laneControl: {8 << 10, 16 << 20},
	laneUsers:   {16 << 10, 64 << 20},
}

// queue holds proposals that wait, bounded by count and by bytes.
type queue struct {
	ready chan struct{} // capacity 1: a wake-up, which carries nothing

	mu    sync.Mutex
	lanes [lanes]waiting
}

type waiting struct {
	list  []*proposal
	bytes int
}

func newQueue() *queue { return &queue{ready: make(chan struct{}, 1)} }

// push reports whether there was room for p.
func (q *queue) push(p *proposal) bool {
	q.mu.Lock()
	l, limit := &q.lanes[p.lane], laneLimits[p.lane]
	if n := len(l.list); n > 0 && (n >= limit.count || l.bytes+len(p.txn) > limit.bytes) {
		q.mu.Unlock()
		return false
	}
	l.list = append(l.list, p)
	l.bytes += len(p.txn)
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
	return true
}

// empty reports whether nothing waits.
func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.lanes {
		if len(q.lanes[i].list) > 0 {
			return false
		}
	}
	return true
}

// collect takes what goes into one entry and appends it to batch: control first. But
// while users wait it fills half of the entry at most, so that neither starves the
// other. Withdrawn proposals fall out.
func (q *queue) collect(batch []*proposal) []*proposal {
	q.mu.Lock()
	defer q.mu.Unlock()
	size, count := maxBatchBytes, maxBatchTxns
	if len(q.lanes[laneUsers].list) > 0 {
		size, count = maxBatchBytes/2, maxBatchTxns/2
	}
	used := 0
	for i := range q.lanes {
		l := &q.lanes[i]
		n := 0
		for n < len(l.list) && used < size && len(batch) < count {
			p := l.list[n]
			n++
			l.bytes -= len(p.txn)
			if p.take() {
				batch = append(batch, p)
				used += len(p.txn)
			}
		}
		clear(l.list[:n]) // the array outlives the slice
		if l.list = l.list[n:]; len(l.list) == 0 {
			l.list = nil
		}
		size, count = maxBatchBytes, maxBatchTxns
	}
	return batch
}

// drain finishes all that waits with out.
func (q *queue) drain(out outcome) {
	q.mu.Lock()
	left := q.lanes
	q.lanes = [lanes]waiting{}
	q.mu.Unlock()
	for i := range left {
		for _, p := range left[i].list {
			if p.take() {
				p.finish(out)
			}
		}
	}
}
