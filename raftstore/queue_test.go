package raftstore

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

func revoke(id int64) Op {
	return &raftv1.Op{Op: &raftv1.Op_LeaseRevoke{LeaseRevoke: &raftv1.LeaseRevoke{Id: id}}}
}

func nested(ops ...Op) Op {
	return &raftv1.Op{Op: &raftv1.Op_Txn{Txn: &raftv1.Txn{Then: ops[:1], Otherwise: ops[1:]}}}
}

// TestLanes covers which transactions go first, and the leases that they change.
func TestLanes(t *testing.T) {
	grant := &raftv1.Op{Op: &raftv1.Op_LeaseGrant{LeaseGrant: &raftv1.LeaseGrant{Id: 7}}}
	checkpoint := &raftv1.Op{Op: &raftv1.Op_LeaseCheckpoint{LeaseCheckpoint: &raftv1.LeaseCheckpoint{Id: 8}}}
	for _, c := range []struct {
		name   string
		ops    []Op
		lane   lane
		leases int
	}{
		{"nothing", nil, laneUsers, 0},
		{"a write", []Op{Put("k", nil)}, laneUsers, 0},
		{"the end of a lease", []Op{revoke(1)}, laneControl, 1},
		{"the end of leases within", []Op{nested(revoke(1), revoke(2)), checkpoint}, laneControl, 3},
		{"a revocation that carries a write along", []Op{revoke(1), Put("k", nil)}, laneUsers, 1},
		{"a write within", []Op{nested(revoke(1), Put("k", nil))}, laneUsers, 1},
		{"a new lease", []Op{grant}, laneUsers, 1},
	} {
		if p := newProposal(nil, c.ops); p.lane != c.lane || len(p.leases) != c.leases {
			t.Errorf("%s: lane %d, leases %v", c.name, p.lane, p.leases)
		}
	}
}

// TestQueue covers the order in which proposals are taken: control first, users
// always, each lane in its order, the withdrawn never.
func TestQueue(t *testing.T) {
	proposals := func(l lane, n, size int) (ps []*proposal) {
		for range n {
			ps = append(ps, &proposal{lane: l, txn: make([]byte, size)})
		}
		return ps
	}
	q := newQueue()
	users, control := proposals(laneUsers, 1000, 10), proposals(laneControl, 1000, 10)
	for i := range users {
		if !q.push(users[i]) || !q.push(control[i]) {
			t.Fatal("no room")
		}
	}
	users[1].withdraw()
	first := q.collect(nil)
	if len(first) != maxBatchTxns || first[0] != control[0] || first[maxBatchTxns/2] != users[0] || first[maxBatchTxns/2+1] != users[2] {
		t.Errorf("the first batch of %d does not begin with half of it for control", len(first))
	}
	seen := len(first)
	for batch := q.collect(nil); len(batch) > 0; batch = q.collect(nil) {
		seen += len(batch)
	}
	if seen != 1999 || !q.empty() {
		t.Errorf("%d proposals came out of 1999", seen)
	}
	for _, l := range q.lanes {
		if l.bytes != 0 {
			t.Errorf("an empty lane accounts for %d bytes", l.bytes)
		}
	}

	// An entry ends with the transaction that fills it.
	for _, p := range append(proposals(laneUsers, 1, maxBatchBytes-1), proposals(laneUsers, 2, MaxTxnBytes)...) {
		q.push(p)
	}
	for i, want := range []int{2, 1, 0} {
		if got := len(q.collect(nil)); got != want {
			t.Errorf("batch %d of large ones has %d, want %d", i, got, want)
		}
	}
}

// TestQueueIsBounded: users cannot fill the control lane, nor memory, but one
// transaction always fits.
func TestQueueIsBounded(t *testing.T) {
	fill := func(q *queue, l lane, size int) (n int) {
		for q.push(&proposal{lane: l, txn: make([]byte, size)}) {
			n++
		}
		return n
	}
	q := newQueue()
	if n := fill(q, laneUsers, 1); n != laneLimits[laneUsers].count {
		t.Errorf("%d small ones fit", n)
	}
	if n := fill(q, laneControl, 1); n != laneLimits[laneControl].count {
		t.Errorf("%d small ones fit beside a full lane of users", n)
	}
	large := make([]byte, MaxTxnBytes)
	q = newQueue()
	n := 0
	for q.push(&proposal{lane: laneUsers, txn: large}) {
		n++
	}
	if n != laneLimits[laneUsers].bytes/MaxTxnBytes {
		t.Errorf("%d large ones fit", n)
	}
	q = newQueue()
	told := 0
	answer := func(out outcome) {
		if errors.Is(out.err, errNotProposed) {
			told++
		}
	}
	if !q.push(&proposal{lane: laneControl, txn: bytes.Repeat(large, 20), answer: answer}) {
		t.Error("one transaction does not fit into an empty lane")
	}
	q.push(&proposal{lane: laneUsers, answer: answer})
	if q.drain(outcome{err: errNotProposed}); told != 2 || !q.empty() {
		t.Errorf("drained %d", told)
	}
}

// TestHungTransfer covers a transfer of leadership that raft never ends: the store
// must, and not because of several short ones.
func TestHungTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = time.Second
		m, _ := newMetrics(nil, nil)
		s := &Store{cfg: Config{HeartbeatTimeout: timeout}, failed: make(chan error, 1), log: slog.New(slog.DiscardHandler), metrics: m}
		refuse := func(during time.Duration) {
			for begin := time.Now(); time.Since(begin) <= during; time.Sleep(timeout / 5) {
				_, err := s.classify(raft.ErrLeadershipTransferInProgress)
				if !errors.Is(err, errNotProposed) {
					t.Fatalf("a refusal during a transfer is %v", err)
				}
			}
		}
		for range 5 {
			refuse(2 * timeout)
			s.watchTransfer(nil) // raft takes proposals again
			refuse(2 * timeout)
			time.Sleep(10 * timeout) // nobody asks
		}
		if len(s.failed) > 0 {
			t.Fatalf("short transfers ended the store: %v", <-s.failed)
		}
		refuse(4 * timeout)
		select {
		case err := <-s.failed:
			if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
				t.Errorf("the store ended with %v", err)
			}
		default:
			t.Error("the store goes on with a transfer that hangs")
		}
	})
}

// TestTwoPauses: two who pause at once, while batches are in flight, do so one after
// the other.
func TestTwoPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBatcher(&Store{stopped: make(chan struct{})})
		const inFlight = 2
		for range inFlight {
			b.slots <- struct{}{}
		}
		paused := make(chan func(), 2)
		for range 2 {
			go func() {
				resume, err := b.pause(t.Context())
				if err != nil {
					t.Error(err)
				}
				paused <- resume
			}()
		}
		for range inFlight {
			synctest.Wait()
			<-b.slots
		}
		for range 2 {
			select {
			case resume := <-paused:
				synctest.Wait()
				if len(paused) > 0 {
					t.Error("both have paused at once")
				}
				resume()
			case <-time.After(time.Minute):
				t.Fatal("nobody has paused: they wait for each other")
			}
		}
	})
}
