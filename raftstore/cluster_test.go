package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-io/holdfast/internal/faults"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// bubble runs a test in virtual time.
func bubble(t *testing.T, fn func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, fn)
}

func put(key, value string) raftstore.Txn {
	return raftstore.Txn{Then: []raftstore.Op{raftstore.Put(key, []byte(value))}}
}

func mustTxn(t *testing.T, s *raftstore.Store, txn raftstore.Txn) raftstore.Result {
	t.Helper()
	res, err := s.Txn(t.Context(), txn)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// mustRead returns key by a linearizable read at s.
func mustRead(t *testing.T, s *raftstore.Store, key string) string {
	t.Helper()
	view, err := s.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kv, _ := view.Get(key)
	return string(kv.Value)
}

// waitEqual waits until all peers have applied the same, and compares their hashes.
func waitEqual(t *testing.T, peers []*storetest.Peer) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		first, equal := peers[0].Store.Status(), true
		for _, p := range peers[1:] {
			st := p.Store.Status()
			equal = equal && st.AppliedIndex == first.AppliedIndex
			if st.AppliedIndex == first.AppliedIndex && st.Hash != first.Hash {
				t.Fatalf("at index %d %s has state hash %x, %s %x", st.AppliedIndex, p.ID, st.Hash, first.ID, first.Hash)
			}
		}
		if equal {
			return
		}
		if time.Now().After(deadline) {
			for _, p := range peers {
				t.Logf("%+v", p.Store.Status())
			}
			t.Fatal("the peers do not come to the same index")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestAnyPeerTakesWrites covers forwarding: results, conflicts and refusals come
// through as if the caller sat on the leader.
func TestAnyPeerTakesWrites(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		for i, p := range c.Peers {
			key := "pods/default/" + p.ID
			res := mustTxn(t, p.Store, put(key, "v1"))
			if res.Revision != int64(i+1) || !res.Succeeded {
				t.Fatalf("%s: %+v, want revision %d", p.ID, res, i+1)
			}
			view, err := p.Store.WaitRevision(t.Context(), res.Revision)
			if err != nil {
				t.Fatal(err)
			}
			if kv, _ := view.Get(key); string(kv.Value) != "v1" {
				t.Errorf("%s does not read its own write: %+v", p.ID, kv)
			}
			_, err = p.Store.Txn(t.Context(), raftstore.Txn{If: []raftstore.Compare{raftstore.Absent(key)}, Then: put(key, "v2").Then})
			conflict, _ := errors.AsType[*raftstore.ConflictError](err)
			if conflict == nil || len(conflict.Keys) != 1 || conflict.Keys[0].Key != key || string(conflict.Keys[0].Value) != "v1" || conflict.Keys[0].Mod != res.Revision {
				t.Errorf("%s: conflict is %v, want one with the key as it is", p.ID, err)
			}
			res = mustTxn(t, p.Store, raftstore.Txn{
				If:   []raftstore.Compare{raftstore.ModIs(key, 1000)},
				Then: put(key, "v3").Then,
				Else: []raftstore.Op{raftstore.Get(key)},
			})
			if res.Succeeded || len(res.Ops) != 1 || string(res.Ops[0].Kvs[0].Value) != "v1" {
				t.Errorf("%s: else branch gave %+v", p.ID, res)
			}
			for name, bad := range map[string]struct {
				txn  raftstore.Txn
				want error
			}{
				"empty key":                {put("", "x"), raftstore.ErrInvalid},
				"key written twice":        {raftstore.Txn{Then: append(put("a", "1").Then, put("a", "2").Then...)}, raftstore.ErrInvalid},
				"put into a deleted range": {raftstore.Txn{Then: append(put("a/b", "1").Then, raftstore.DeletePrefix("a/"))}, raftstore.ErrInvalid},
				"key under no lease":       {raftstore.Txn{Then: []raftstore.Op{raftstore.PutWith("a", nil, raftstore.PutOptions{Lease: 9})}}, raftstore.ErrLeaseNotFound},
				"end of no lease":          {raftstore.Txn{Then: []raftstore.Op{raftstore.RevokeLease(9)}}, raftstore.ErrLeaseNotFound},
				"lease granted twice":      {raftstore.Txn{Then: []raftstore.Op{raftstore.GrantLease(9, 1e9), raftstore.GrantLease(9, 1e9)}}, raftstore.ErrLeaseExists},
				"value of no key kept":     {raftstore.Txn{Then: []raftstore.Op{raftstore.PutWith("none", nil, raftstore.PutOptions{IgnoreValue: true})}}, raftstore.ErrKeyNotFound},
				"range in the future":      {raftstore.Txn{Then: []raftstore.Op{raftstore.GetRange("a", "", raftstore.RangeOptions{Revision: 99})}}, raftstore.ErrFutureRevision},
				"too many bytes":           {put("a", strings.Repeat("x", raftstore.MaxTxnBytes)), raftstore.ErrTooLarge},
				"too many operations":      {raftstore.Txn{Then: slices.Repeat([]raftstore.Op{raftstore.Get("a")}, raftstore.MaxTxnOps+1)}, raftstore.ErrTooLarge},
			} {
				if _, err := p.Store.Txn(t.Context(), bad.txn); !errors.Is(err, bad.want) {
					t.Errorf("%s: %s: %v, want %v", p.ID, name, err, bad.want)
				}
			}
		}
		waitEqual(t, c.Peers)
		if got := c.Peers[0].Store.View().Revision(); got != 3 {
			t.Errorf("revision %d, want 3: only the puts change something", got)
		}
	})
}

// TestWholeContract covers, through the store, what the state machine's own tests
// cover in depth: leases, nesting, ids, and pages of one revision.
func TestWholeContract(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		c.WaitLeader()
		store := c.Peers[1].Store
		ops := func(ops ...raftstore.Op) raftstore.Txn { return raftstore.Txn{Then: ops} }

		mustTxn(t, store, ops(raftstore.GrantLease(7, time.Minute), raftstore.PutWith("b", []byte("1"), raftstore.PutOptions{Lease: 7}), raftstore.PutWith("a", []byte("1"), raftstore.PutOptions{Lease: 7})))
		once := raftstore.Txn{
			ID: []byte("0123456789abcdef"),
			If: []raftstore.Compare{raftstore.Present("a")},
			Then: []raftstore.Op{
				raftstore.Put("c", []byte("2")),
				raftstore.Nested(raftstore.Txn{
					If:   []raftstore.Compare{raftstore.Present("c")}, // as it was before all this
					Then: []raftstore.Op{raftstore.Put("wrong", nil)},
					Else: []raftstore.Op{raftstore.GetRange("", raftstore.NoEnd, raftstore.RangeOptions{KeysOnly: true, Limit: 2}), raftstore.PutWith("d", []byte("2"), raftstore.PutOptions{PrevKV: true})},
				}),
			},
		}
		first := mustTxn(t, store, once)
		if first.Revision != 2 || first.Replayed || len(first.Ops) != 2 || len(first.Ops[1].Results) != 2 || first.Ops[1].Succeeded || first.Ops[1].Results[0].Count != 3 {
			t.Errorf("nested transaction: %+v", first)
		}
		again := mustTxn(t, c.Peers[2].Store, once)
		if !again.Replayed || again.Revision != first.Revision || !again.Succeeded || len(again.Ops) != 0 {
			t.Errorf("the same transaction again: %+v, want the result of revision %d", again, first.Revision)
		}

		view, err := store.WaitRevision(t.Context(), 2)
		if err != nil {
			t.Fatal(err)
		}
		lease, ok := view.Lease(7)
		if keys := slices.Collect(view.LeaseKeys(7)); !ok || lease.TTL != 60_000 || lease.Keys != 2 || !slices.Equal(keys, []string{"a", "b"}) {
			t.Errorf("lease %+v, %v with keys %q", lease, ok, keys)
		}
		if res := mustTxn(t, store, ops(raftstore.RevokeLease(7))); res.Revision != 3 || res.Ops[0].Count != 2 {
			t.Errorf("revoke: %+v", res)
		}
		if _, err := store.Txn(t.Context(), ops(raftstore.PutWith("a", nil, raftstore.PutOptions{Lease: 7}))); !errors.Is(err, raftstore.ErrLeaseNotFound) {
			t.Errorf("put under a lease that ended: %v", err)
		}

		// Pages of revision 2, although the first keys are gone by now.
		if _, err := store.WaitRevision(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		var pages []string
		for start := ""; ; {
			old, err := store.ViewAt(2)
			if err != nil {
				t.Fatal(err)
			}
			if n := old.Count("", ""); n != 4 {
				t.Errorf("%d keys at revision 2, want 4", n)
			}
			n := len(pages)
			for kv := range old.Range(start, "") {
				pages = append(pages, kv.Key)
				start = kv.Key + "\x00"
				break // a page has one key
			}
			if len(pages) == n {
				break
			}
		}
		if got := strings.Join(pages, ","); got != "a,b,c,d" {
			t.Errorf("pages hold %s", got)
		}
		waitEqual(t, c.Peers)
	})
}

// TestManyWritesShareEntries covers the batcher: concurrent transactions from all
// peers are packed, each gets its own answer, none is lost.
func TestManyWritesShareEntries(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		before := c.WaitLeader().Store.Status().LastIndex
		const n = 600
		var wg sync.WaitGroup
		revisions := make([]int64, n)
		for i := range n {
			wg.Go(func() {
				key := fmt.Sprintf("k/%03d", i)
				res, err := c.Peers[i%3].Store.Txn(t.Context(), put(key, key))
				if err != nil {
					t.Errorf("%s: %v", key, err)
				}
				revisions[i] = res.Revision
			})
		}
		wg.Wait()
		slices.Sort(revisions)
		for i, rev := range revisions {
			if rev != int64(i+1) {
				t.Fatalf("revision %d is %d: each transaction has its own", i+1, rev)
			}
		}
		waitEqual(t, c.Peers)
		entries := c.WaitLeader().Store.Status().LastIndex - before
		if entries > n/4 {
			t.Errorf("%d transactions took %d entries: they were not packed", n, entries)
		}
		count := 0
		for kv := range c.Peers[2].Store.View().Prefix("k/") {
			if string(kv.Value) != kv.Key {
				t.Errorf("%s = %s", kv.Key, kv.Value)
			}
			count++
		}
		if count != n {
			t.Errorf("%d keys, want %d", count, n)
		}
	})
}

// TestIdleStoreAppendsNothing is promise I8, once history has aged (TestHistoryAges).
func TestIdleStoreAppendsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3, raftstore.Unhurried)
		mustTxn(t, c.Peers[1].Store, put("k", "v"))
		time.Sleep(10 * time.Minute)
		waitEqual(t, c.Peers)
		before := c.Peers[0].Store.Status()
		for range 60 {
			time.Sleep(10 * time.Second)
			for _, p := range c.Peers {
				mustRead(t, p.Store, "k") // reads append nothing either
			}
		}
		after := c.Peers[0].Store.Status()
		if after.LastIndex != before.LastIndex || after.Term != before.Term {
			t.Errorf("ten idle minutes took the log from entry %d to %d, and from term %d to %d", before.LastIndex, after.LastIndex, before.Term, after.Term)
		}
	})
}

// TestLeaderLoss kills leader after leader: nothing acknowledged is lost, writers
// wait instead of failing, and the gap in writes stays short.
func TestLeaderLoss(t *testing.T) {
	rounds := 400 // so many that a p99 is not the worst of them
	if raceEnabled {
		rounds = 60
	}
	if testing.Short() {
		rounds = 15
	}
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		acked := map[string]string{}
		var gaps []time.Duration
		for i := range rounds {
			leader := c.WaitLeader()
			survivor := c.Others(leader)[i%2]
			mustTxn(t, survivor.Store, put("warm", fmt.Sprint(i)))
			time.Sleep(time.Duration(i*37%1500) * time.Millisecond) // anywhere in raft's timers
			begin := time.Now()
			leader.Kill()
			key, value := fmt.Sprintf("k/%d", i), fmt.Sprint(i)
			for {
				_, err := survivor.Store.Txn(t.Context(), put(key, value))
				if err == nil {
					break
				}
				if !errors.Is(err, raftstore.ErrOutcomeUnknown) {
					t.Fatalf("round %d: %v", i, err)
				}
			}
			gaps = append(gaps, time.Since(begin))
			acked[key] = value
			leader.Restart()
			time.Sleep(5 * time.Second)
		}
		waitEqual(t, c.Peers)
		for _, p := range c.Peers {
			view, err := p.Store.Sync(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for key, want := range acked {
				if kv, _ := view.Get(key); string(kv.Value) != want {
					t.Errorf("%s: acknowledged %s=%s, reads %q", p.ID, key, want, kv.Value)
				}
			}
		}
		slices.Sort(gaps)
		t.Logf("gap in writes after a leader's kill, virtual: p50 %v p90 %v max %v of %d", gaps[len(gaps)/2], gaps[len(gaps)*9/10], gaps[len(gaps)-1], len(gaps))
		// One in some hundred elections divides the votes, and takes a second round.
		if p90, most := gaps[len(gaps)*9/10], gaps[len(gaps)-1]; p90 > 2*time.Second || most > 5*time.Second {
			t.Errorf("gaps of p90 %v, max %v; want at most 2 s and 5 s", p90, most)
		}
		if p99 := gaps[len(gaps)*99/100]; rounds >= 400 && p99 > 3*time.Second {
			t.Errorf("gap of %v, want p99 at most 3 s", p99)
		}
	})
}

// TestNoMajority covers what a caller is told: after 10 s, that nothing happened.
func TestNoMajority(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		mustTxn(t, leader.Store, put("k", "v"))
		others := c.Others(leader)
		waitEqual(t, c.Peers)
		c.Cut(c.Peers[:1], c.Peers[1:])
		c.Cut(c.Peers[1:2], c.Peers[2:])
		time.Sleep(5 * time.Second) // everybody has noticed
		for _, p := range []*storetest.Peer{leader, others[0]} {
			begin := time.Now()
			_, err := p.Store.Txn(t.Context(), put("k", "w"))
			if !errors.Is(err, raftstore.ErrNoLeader) || errors.Is(err, raftstore.ErrOutcomeUnknown) {
				t.Errorf("%s: write without a majority: %v, want ErrNoLeader", p.ID, err)
			}
			if took := time.Since(begin); took < 9*time.Second || took > 11*time.Second {
				t.Errorf("%s: it took %v, want 10 s", p.ID, took)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := p.Store.Txn(ctx, put("k", "w")); !errors.Is(err, raftstore.ErrNoLeader) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: write with a deadline of 1 s: %v, want ErrNoLeader and the deadline", p.ID, err)
			}
			cancel()
			if _, err := p.Store.Sync(t.Context()); !errors.Is(err, raftstore.ErrNoLeader) {
				t.Errorf("%s: linearizable read without a majority: %v, want ErrNoLeader", p.ID, err)
			}
			if kv, _ := p.Store.View().Get("k"); string(kv.Value) != "v" {
				t.Errorf("%s: local read without a majority: %q, want v", p.ID, kv.Value)
			}
		}
		c.Heal()
		mustTxn(t, others[1].Store, put("k", "x"))
		for _, p := range c.Peers {
			if got := mustRead(t, p.Store, "k"); got != "x" {
				t.Errorf("%s: read %q after healing, want x", p.ID, got)
			}
		}
	})
}

// TestOutcomeUnknown covers a leader that is lost between proposal and answer: the
// caller must not be told that nothing happened.
func TestOutcomeUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		follower := c.Others(leader)[0]
		mustTxn(t, follower.Store, put("warm", "")) // the stream is open
		// Requests pass, answers do not: the transaction commits.
		c.CutOneWay(leader, follower)
		_, err := follower.Store.Txn(t.Context(), put("k", "v"))
		if !errors.Is(err, raftstore.ErrOutcomeUnknown) || errors.Is(err, raftstore.ErrNoLeader) {
			t.Fatalf("write whose answer is lost: %v, want ErrOutcomeUnknown", err)
		}
		c.Heal()
		for _, p := range c.Peers {
			if got := mustRead(t, p.Store, "k"); got != "v" {
				t.Errorf("%s: read %q: the write whose outcome was unknown had been committed", p.ID, got)
			}
		}
	})
}

// TestPausedLeaderServesNoStaleRead is promise I2 for the case in which leases and
// raft's own VerifyLeader fail: a leader stands still, others replace it and write,
// and it is asked before it has noticed.
func TestPausedLeaderServesNoStaleRead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		old := c.WaitLeader()
		others := c.Others(old)
		mustTxn(t, old.Store, put("x", "1"))

		// A write that does not return from the disk holds up raft's main loop,
		// with all its timers; the cut holds up the rest.
		old.Disk.Hold()
		stuck := make(chan struct{})
		go func() {
			defer close(stuck)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := old.Store.Txn(ctx, put("y", "1")); !errors.Is(err, raftstore.ErrOutcomeUnknown) {
				t.Errorf("write on the paused leader: %v, want ErrOutcomeUnknown", err)
			}
		}()
		synctest.Wait()
		c.Cut([]*storetest.Peer{old}, others)
		c.WaitLeader(others...)
		mustTxn(t, others[0].Store, put("x", "2"))
		c.Heal()

		if id, _ := old.Store.Leader(); id != old.ID {
			t.Fatalf("the paused leader knows already that %q leads: this test shows nothing", id)
		}
		if kv, _ := old.Store.View().Get("x"); string(kv.Value) != "1" {
			t.Fatalf("the paused leader has x=%s already: this test shows nothing", kv.Value)
		}
		read := make(chan string, 1)
		go func() { read <- mustRead(t, old.Store, "x") }()
		time.Sleep(3 * time.Second) // it keeps asking
		select {
		case got := <-read:
			t.Fatalf("the paused leader answered x=%s", got)
		default:
		}
		old.Disk.Release()
		if got := <-read; got != "2" {
			t.Errorf("linearizable read on the former leader: x=%s, want 2", got)
		}
		<-stuck
		waitEqual(t, c.Peers)
	})
}

// TestReadsUnderWrites is a coarse check of linearizability: a read on any peer sees
// every write that was acknowledged before it began.
func TestReadsUnderWrites(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 5)
		done := make(chan struct{})
		var mu sync.Mutex
		var acked int64
		var wg sync.WaitGroup
		wg.Go(func() {
			defer close(done)
			for i := range 200 {
				res, err := c.Peers[i%5].Store.Txn(t.Context(), put("x", fmt.Sprint(i)))
				if errors.Is(err, raftstore.ErrOutcomeUnknown) {
					continue
				}
				if err != nil {
					t.Errorf("write %d: %v", i, err)
					return
				}
				mu.Lock()
				acked = res.Revision
				mu.Unlock()
				if i == 60 || i == 120 {
					leader := c.WaitLeader()
					go func() { _ = leader.Store.TransferLeadership(t.Context(), "") }()
				}
			}
		})
		var reads [5]int
		for i, p := range c.Peers {
			wg.Go(func() {
				for {
					mu.Lock()
					atLeast := acked
					mu.Unlock()
					view, err := p.Store.Sync(t.Context())
					if err != nil {
						t.Errorf("%s: %v", p.ID, err)
						return
					}
					if view.Revision() < atLeast {
						t.Errorf("%s: read at revision %d, but %d was acknowledged before", p.ID, view.Revision(), atLeast)
						return
					}
					reads[i]++
					select {
					case <-done:
						return
					default:
					}
				}
			})
		}
		wg.Wait()
		if slices.Min(reads[:]) < 20 {
			t.Errorf("only %v reads", reads)
		}
	})
}

// TestDeposedLeaderWritesNothing covers the fence: what a leader decided in its term
// has no effect in a later one.
func TestDeposedLeaderWritesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		old := c.WaitLeader()
		first := storetest.Leader(t, old.Store)
		if _, err := first.Txn(t.Context(), put("k", "by the first")); err != nil {
			t.Fatal(err)
		}
		if err := old.Store.TransferLeadership(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		second := c.WaitLeader()
		if second == old {
			t.Fatal("the leadership has not moved")
		}
		if _, err := first.Txn(t.Context(), put("k", "too late")); !errors.Is(err, raftstore.ErrDeposed) {
			t.Errorf("write of the deposed leader: %v, want ErrDeposed", err)
		}
		// Even when it leads again: that is another term, with another view.
		if err := second.Store.TransferLeadership(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		for c.WaitLeader() != old {
			if err := c.WaitLeader().Store.TransferLeadership(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
		}
		again := storetest.Leader(t, old.Store)
		if again.Term() <= first.Term() {
			t.Fatalf("terms %d, then %d", first.Term(), again.Term())
		}
		if _, err := first.Txn(t.Context(), put("k", "too late")); !errors.Is(err, raftstore.ErrDeposed) {
			t.Errorf("write of the deposed leader, leading again: %v, want ErrDeposed", err)
		}
		if got := mustRead(t, old.Store, "k"); got != "by the first" {
			t.Errorf("k = %q", got)
		}
		if _, err := again.Txn(t.Context(), put("k", "by the third")); err != nil {
			t.Error(err)
		}
	})
}

// TestLead covers leadership as a context: ended with a cause, runs never overlap,
// and each begins with everything that was committed before.
func TestLead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		var mu sync.Mutex
		running, runs := 0, 0
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for _, p := range c.Peers {
			wg.Go(func() {
				err := p.Store.Lead(ctx, func(ctx context.Context, l *raftstore.Leader) error {
					mu.Lock()
					running, runs = running+1, runs+1
					mu.Unlock()
					defer func() {
						mu.Lock()
						running--
						mu.Unlock()
					}()
					if kv, _ := l.View().Get("counter"); kv.Version != 0 && string(kv.Value) == "" {
						t.Errorf("counter is %+v", kv)
					}
					n := l.View().Revision() + 1
					res, err := l.Txn(ctx, put("counter", fmt.Sprint(n)))
					if err != nil {
						return err
					}
					if res.Revision != n || l.View().Revision() < n {
						t.Errorf("term %d began at revision %d, its first write has %d and its view %d", l.Term(), n-1, res.Revision, l.View().Revision())
					}
					<-ctx.Done()
					if cause := context.Cause(ctx); !errors.Is(cause, raftstore.ErrDeposed) && !errors.Is(cause, context.Canceled) {
						t.Errorf("the term's context ended with %v", cause)
					}
					return ctx.Err()
				})
				if err != nil {
					t.Errorf("Lead: %v", err)
				}
			})
		}
		for i := range 5 {
			time.Sleep(2 * time.Second)
			mu.Lock()
			if running != 1 || runs != i+1 {
				t.Errorf("after %d transfers %d terms run, %d have in all", i, running, runs)
			}
			mu.Unlock()
			if err := c.WaitLeader().Store.TransferLeadership(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestLeadersFailedWorkEndsLead covers work that cannot go on: the caller decides.
func TestLeadersFailedWorkEndsLead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := storetest.New(t)
		broken := errors.New("broken")
		err := store.Lead(t.Context(), func(context.Context, *raftstore.Leader) error { return broken })
		if !errors.Is(err, broken) {
			t.Errorf("Lead: %v, want its function's error", err)
		}
	})
}

// TestWatchAcrossLeaders covers properties of a watch on each peer while leaders
// die: in order, no event twice, none left out, those of a revision together.
func TestWatchAcrossLeaders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		const last = "w/last"
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		got := make([][]raftstore.Event, 3)
		var wg sync.WaitGroup
		watch := func(i int, after int64) {
			store := c.Peers[i].Store
			wg.Go(func() {
				w := store.Watch("w/", after)
				for {
					events, upTo, err := w.Next(ctx)
					if errors.Is(err, raftstore.ErrClosed) {
						return // the peer was killed; its successor goes on
					}
					if err != nil {
						t.Errorf("watch on p%d: %v", i+1, err)
						return
					}
					for _, e := range events {
						if n := len(got[i]); n > 0 && (e.Revision < got[i][n-1].Revision || e.Revision == got[i][n-1].Revision && e.Key == got[i][n-1].Key) {
							t.Errorf("p%d: %s of revision %d after %s of %d", i+1, e.Key, e.Revision, got[i][n-1].Key, got[i][n-1].Revision)
						}
						if e.Revision > upTo {
							t.Errorf("p%d: event of revision %d up to %d", i+1, e.Revision, upTo)
						}
						got[i] = append(got[i], e)
						if e.Key == last {
							return
						}
					}
				}
			})
		}
		for i := range c.Peers {
			watch(i, 0)
		}
		want := map[int64][]string{}
		note := func(res raftstore.Result, keys ...string) { want[res.Revision] = keys }
		for i := range 90 {
			p := c.Peers[i%3]
			a, b := fmt.Sprintf("w/%02d/a", i), fmt.Sprintf("w/%02d/b", i)
			res, err := p.Store.Txn(ctx, raftstore.Txn{Then: []raftstore.Op{
				raftstore.Put(a, []byte("1")), raftstore.Put(b, []byte("2")), raftstore.Put(fmt.Sprintf("other/%d", i), nil),
			}})
			if err == nil {
				note(res, a, b)
			} else if !errors.Is(err, raftstore.ErrOutcomeUnknown) {
				t.Fatal(err)
			}
			if i%30 == 15 {
				leader := c.WaitLeader()
				n := slices.Index(c.Peers, leader)
				leader.Kill()
				c.WaitLeader(c.Others(leader)...)
				leader.Restart()
				<-leader.Store.Ready()
				wg.Go(func() {}) // keeps the group open while the watch moves
				var after int64
				synctest.Wait()
				if len(got[n]) > 0 {
					after = got[n][len(got[n])-1].Revision
				}
				watch(n, after)
			}
		}
		res := mustTxn(t, c.Peers[0].Store, put(last, "."))
		note(res, last)
		wg.Wait()
		for i := range got {
			have := map[int64][]string{}
			for _, e := range got[i] {
				have[e.Revision] = append(have[e.Revision], e.Key)
			}
			for rev, keys := range want {
				if !slices.Equal(have[rev], keys) {
					t.Errorf("p%d: events of revision %d: %v, want %v", i+1, rev, have[rev], keys)
				}
			}
			if i > 0 && !slices.EqualFunc(got[i], got[0], func(a, b raftstore.Event) bool {
				return a.Key == b.Key && a.Revision == b.Revision && a.Type == b.Type && string(a.KV.Value) == string(b.KV.Value)
			}) {
				t.Errorf("p%d saw %d events, p1 %d, or others", i+1, len(got[i]), len(got[0]))
			}
		}
	})
}

// TestWatch covers a watch on one store: previous values, bookmarks, polling,
// revisions to come and revisions that are gone.
func TestWatch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		store := storetest.New(t, func(c *raftstore.Config) { c.HistoryEvents = 100 })
		w := store.Watch("a/", 0)
		if events, upTo, ok, err := w.Poll(); len(events) > 0 || upTo != 0 || ok || err != nil {
			t.Errorf("poll of an empty store: %v %d %v %v", events, upTo, ok, err)
		}
		mustTxn(t, store, put("a/1", "one"))
		mustTxn(t, store, put("b/1", "other"))
		mustTxn(t, store, put("a/1", "two"))
		mustTxn(t, store, raftstore.Txn{Then: []raftstore.Op{raftstore.DeletePrefix("a/")}})
		events, upTo, err := w.Next(t.Context())
		if err != nil || upTo != 4 || len(events) != 3 {
			t.Fatalf("next: %+v up to %d, %v", events, upTo, err)
		}
		if e := events[0]; e.Type != raftstore.EventPut || e.Prev != nil || !e.IsCreate() || string(e.KV.Value) != "one" {
			t.Errorf("first event: %+v", e)
		}
		if e := events[1]; e.Type != raftstore.EventPut || e.Prev == nil || string(e.Prev.Value) != "one" || e.IsCreate() {
			t.Errorf("second event: %+v", e)
		}
		if e := events[2]; e.Type != raftstore.EventDelete || e.Prev == nil || string(e.Prev.Value) != "two" || e.KV.Key != "a/1" || e.Revision != 4 {
			t.Errorf("third event: %+v", e)
		}

		// Changes of other keys give a bookmark, every 5 s at most.
		begin := time.Now()
		mustTxn(t, store, put("b/2", "other"))
		events, upTo, err = w.Next(t.Context())
		if err != nil || len(events) != 0 || upTo != 5 {
			t.Errorf("bookmark: %v up to %d, %v", events, upTo, err)
		}
		if took := time.Since(begin); took < 4*time.Second || took > 6*time.Second {
			t.Errorf("the bookmark came after %v, want 5 s", took)
		}
		// And none comes without a change.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if events, upTo, err = w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) || len(events) > 0 || upTo != 5 {
			t.Errorf("next without changes: %v up to %d, %v", events, upTo, err)
		}

		// A watch from the future gets nothing from before.
		future := store.Watch("", 7)
		for i := range 4 {
			mustTxn(t, store, put("c", fmt.Sprint(i)))
		}
		events, upTo, err = future.Next(t.Context())
		if err != nil || len(events) != 2 || events[0].Revision != 8 || upTo != 9 {
			t.Errorf("watch after revision 7: %+v up to %d, %v", events, upTo, err)
		}

		// History is bounded; who lags behind it is told where it begins.
		for i := range 300 {
			mustTxn(t, store, put("c", fmt.Sprint(i)))
		}
		synctest.Wait() // compaction goes on behind writes
		_, _, err = w.Next(t.Context())
		compacted, _ := errors.AsType[*raftstore.CompactedError](err)
		if compacted == nil || !errors.Is(err, raftstore.ErrCompacted) {
			t.Fatalf("watch below the horizon: %v, want a CompactedError", err)
		}
		view := store.View()
		if kept := view.Revision() - compacted.Horizon; kept < 80 || kept > 100 {
			t.Errorf("history begins at revision %d of %d, want about the last 100", compacted.Horizon, view.Revision())
		}
		if _, err := store.ViewAt(compacted.Horizon - 1); !errors.Is(err, raftstore.ErrCompacted) {
			t.Errorf("view below the horizon: %v", err)
		}
		if _, err := store.ViewAt(view.Revision() + 1); !errors.Is(err, raftstore.ErrFutureRevision) {
			t.Errorf("view of the future: %v", err)
		}
		old, err := store.ViewAt(compacted.Horizon)
		if err != nil {
			t.Fatal(err)
		}
		if kv, _ := old.Get("c"); kv.Mod != compacted.Horizon {
			t.Errorf("c at the horizon %d: %+v", compacted.Horizon, kv)
		}
		again := store.Watch("", compacted.Horizon)
		events, _, err = again.Next(t.Context())
		if err != nil || len(events) == 0 || events[0].Revision != compacted.Horizon+1 {
			t.Errorf("watch from the horizon: %d events, %v", len(events), err)
		}
		select {
		case <-old.Changed():
		default:
			t.Error("an old view has not changed")
		}
		select {
		case <-store.View().Changed():
			t.Error("the newest view has changed")
		default:
		}
	})
}

// TestSnapshotAndCatchUp covers what raft does when its log is cut: a peer that was
// away gets a snapshot, history included, and restarts from its own.
func TestSnapshotAndCatchUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		registries := make(map[string]*prometheus.Registry) // of each peer's last process
		c := storetest.NewCluster(t, 3, func(cfg *raftstore.Config) {
			cfg.SnapshotBytes, cfg.TrailingBytes = 16<<10, 1
			raftstore.CutLogAt(50)(cfg)
			registries[cfg.ID] = prometheus.NewRegistry()
			cfg.Registerer = registries[cfg.ID]
		})
		leader := c.WaitLeader()
		away := c.Others(leader)[0]
		mustTxn(t, leader.Store, put("early", "1"))
		waitEqual(t, c.Peers)
		seen := away.Store.View().Revision()
		away.Kill()
		value := strings.Repeat("v", 100)
		for i := range 600 {
			mustTxn(t, leader.Store, put(fmt.Sprintf("k/%04d", i%100), value))
		}
		time.Sleep(time.Second)
		if len(leader.Disk.Snapshots()) == 0 {
			t.Fatal("the leader took no snapshot")
		}
		away.Restart()
		waitEqual(t, c.Peers)
		if len(away.Disk.Snapshots()) == 0 {
			t.Fatal("the peer that was away caught up without a snapshot: this test shows nothing")
		}
		for name, by := range map[string]*storetest.Peer{"sent": leader, "received": away, "installed": away} {
			name := "holdfast_store_snapshots_" + name + "_total"
			if n := metric(t, registries[by.ID], name); n != 1 {
				t.Errorf("%s of %s is %v, want 1", name, by.ID, n)
			}
		}
		// A watch that it served before goes on, without a gap.
		w := away.Store.Watch("k/", seen)
		for want := seen + 1; want <= seen+600; {
			events, _, err := w.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range events {
				if e.Revision != want {
					t.Fatalf("event of revision %d, want %d", e.Revision, want)
				}
				want++
			}
		}
		for _, p := range c.Peers {
			p.Kill()
		}
		for _, p := range c.Peers {
			p.Restart()
		}
		for _, p := range c.Peers {
			if got := mustRead(t, p.Store, "k/0099"); got != value {
				t.Errorf("%s after the restart: %q", p.ID, got)
			}
		}
		mustTxn(t, away.Store, put("late", "1"))
		waitEqual(t, c.Peers)
	})
}

// TestReturn covers a peer that was away for a while: it has what it missed at once,
// by entries or by a snapshot, and does not wait for raft's backoff.
func TestReturn(t *testing.T) {
	for name, writes := range map[string]int{"entries": 5, "snapshot": 300} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := storetest.NewCluster(t, 3, func(cfg *raftstore.Config) {
					cfg.SnapshotBytes, cfg.TrailingBytes = 8<<10, 1
					raftstore.CutLogAt(50)(cfg)
				})
				leader := c.WaitLeader()
				away := c.Others(leader)[0]
				for what, faults := range map[string]struct{ away, back func() }{
					"killed":  {away.Kill, away.Restart},
					"cut off": {func() { c.Cut([]*storetest.Peer{away}, c.Others(away)) }, c.Heal},
				} {
					faults.away()
					var res raftstore.Result
					for i := range writes {
						res = mustTxn(t, leader.Store, put(fmt.Sprintf("k/%d", i), strings.Repeat("v", 50)))
					}
					time.Sleep(2 * time.Minute)
					begin := time.Now()
					faults.back()
					if _, err := away.Store.WaitRevision(t.Context(), res.Revision); err != nil {
						t.Fatal(err)
					}
					if took := time.Since(begin); took > time.Second {
						t.Errorf("a peer that was %s had what it missed %v after it came back, want 1 s", what, took)
					}
				}
				if got := len(away.Disk.Snapshots()); (got > 0) != (name == "snapshot") {
					t.Errorf("the peer has %d snapshots", got)
				}
				waitEqual(t, c.Peers)
			})
		})
	}
}

// TestDiskFailure covers a write that fails once: the peer never writes again, and
// says why.
func TestDiskFailure(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		broken := errors.New("input/output error")
		leader.Disk.Fail(broken)
		_, err := leader.Store.Txn(t.Context(), put("k", "v"))
		if err == nil {
			t.Fatal("a write was acknowledged by a leader whose disk fails")
		}
		leader.Disk.Fail(nil) // as after fsync: the next one seems to work
		select {
		case err := <-leader.Ended():
			if !errors.Is(err, broken) {
				t.Errorf("the store ended with %v, want the disk's error", err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the store goes on after its disk failed")
		}
		leader.Kill()
		others := c.Others(leader)
		c.WaitLeader(others...)
		mustTxn(t, others[0].Store, put("k", "w"))
		leader.Restart()
		waitEqual(t, c.Peers)
	})
}

// TestDiskHang covers a disk that does not answer any more: the leadership moves
// although raft's heartbeats need no disk, and the peer gives up.
func TestDiskHang(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		others := c.Others(leader)
		mustTxn(t, others[0].Store, put("k", "v"))
		begin := time.Now()
		leader.Disk.Hold()
		for {
			_, err := others[0].Store.Txn(t.Context(), put("k", "w"))
			if err == nil {
				break
			}
			if !errors.Is(err, raftstore.ErrOutcomeUnknown) {
				t.Fatal(err)
			}
		}
		if gap := time.Since(begin); gap > 6*time.Second {
			t.Errorf("writes stood still for %v when the leader's disk hung", gap)
		}
		select {
		case err := <-leader.Ended():
			if !errors.Is(err, raftstore.ErrDiskHangs) {
				t.Errorf("the store ended with %v, want the hanging disk", err)
			}
			if took := time.Since(begin); took > 11*time.Second {
				t.Errorf("the store ended after %v: it gives up after 10 s, and nothing is worth waiting for then", took)
			}
		case <-time.After(time.Minute):
			t.Fatal("the store waits for its disk for ever")
		}
		image := leader.Disk.Clone()
		leader.Disk.Release() // so that what waits for it ends with the test
		leader.Kill()
		leader.Disk = image
		leader.Restart()
		waitEqual(t, c.Peers)
	})
}

// TestMembers covers growing, shrinking and moving.
func TestMembers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		follower := c.Others(leader)[0]
		for i := range 50 {
			mustTxn(t, leader.Store, put(fmt.Sprintf("k/%d", i), "v"))
		}
		if err := follower.Store.AddPeer(t.Context(), "p9", "p9"); !errors.Is(err, raftstore.ErrNotLeader) {
			t.Errorf("add on a follower: %v, want ErrNotLeader", err)
		}

		// A peer that does not run cannot say which disk it has, and stays out.
		fourth := c.NewPeer()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		err := leader.Store.AddPeer(ctx, fourth.ID, fourth.ID)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("add of a peer that does not run: %v, want the deadline", err)
		}
		info := func() (p raftstore.PeerInfo) {
			for _, p := range leader.Store.Status().Peers {
				if p.ID == fourth.ID {
					return p
				}
			}
			return p
		}
		if p := info(); p.ID != "" {
			t.Errorf("the peer that does not run is a member: %+v", p)
		}
		fourth.Run()
		for range 2 { // a repeated call is harmless
			if err := leader.Store.AddPeer(t.Context(), fourth.ID, fourth.ID); err != nil {
				t.Fatal(err)
			}
		}
		if p := info(); !p.Voter {
			t.Errorf("the added peer is %+v, want a voter", p)
		}
		waitEqual(t, c.Peers)
		if got := mustRead(t, fourth.Store, "k/49"); got != "v" {
			t.Errorf("read on the added peer: %q", got)
		}
		if err := leader.Store.AddPeer(t.Context(), fourth.ID, "elsewhere"); err != nil {
			t.Fatal(err)
		}
		if p := info(); p.Address != "elsewhere" || !p.Voter {
			t.Errorf("the moved peer is %+v", p)
		}
		if err := leader.Store.AddPeer(t.Context(), "p9", follower.ID); err == nil {
			t.Error("two peers have one address")
		}

		// With two of four dead, the rest must not be made smaller.
		if err := leader.Store.RemovePeer(t.Context(), fourth.ID); err != nil {
			t.Fatal(err)
		}
		if err := leader.Store.RemovePeer(t.Context(), "nobody"); err != nil {
			t.Errorf("remove of an unknown peer: %v", err)
		}
		c.Others(leader)[1].Kill()
		if err := leader.Store.RemovePeer(t.Context(), follower.ID); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("remove of one of two live voters of three: %v, want a refusal", err)
		}
		// The dead one may go, and the leader after it.
		if err := leader.Store.RemovePeer(t.Context(), c.Others(leader)[1].ID); err != nil {
			t.Fatal(err)
		}
		if err := leader.Store.RemovePeer(t.Context(), leader.ID); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		res := mustTxn(t, follower.Store, put("k/0", "alone"))
		t.Logf("a write %v after the leader's removal has revision %d", time.Since(begin), res.Revision)
		if err := follower.Store.RemovePeer(t.Context(), follower.ID); err == nil {
			t.Error("the last voter was removed")
		}
	})
}

// TestOverload covers the bounded queue: more is refused at once, and certainly.
func TestOverload(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 1)
		p := c.Peers[0]
		p.Disk.Hold()
		var mu sync.Mutex
		outcomes := map[string]int{}
		var wg sync.WaitGroup
		const n = 20_000
		for range n {
			wg.Go(func() {
				_, err := p.Store.Txn(t.Context(), put("k", "v"))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					outcomes["committed"]++
				case errors.Is(err, raftstore.ErrOverloaded):
					outcomes["overloaded"]++
				default:
					outcomes[err.Error()]++
				}
			})
		}
		time.Sleep(2 * time.Second)
		p.Disk.Release()
		wg.Wait()
		if outcomes["overloaded"] == 0 || outcomes["committed"] == 0 || outcomes["overloaded"]+outcomes["committed"] != n {
			t.Errorf("outcomes: %v", outcomes)
		}
		if rev := p.Store.View().Revision(); rev != int64(outcomes["committed"]) {
			t.Errorf("revision %d, %d were committed", rev, outcomes["committed"])
		}
	})
}

// TestUnknownEntryStopsThePeer covers an entry of a newer version: the peer must not
// go on without it, nor take the process along.
func TestUnknownEntryStopsThePeer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 1)
		p := c.Peers[0]
		mustTxn(t, p.Store, put("k", "v"))
		const unknownCommand = "\xa2\x06\x00" // field 100, empty
		raftstore.Propose(p.Store, []byte(unknownCommand))
		select {
		case err := <-p.Ended():
			if err == nil || !strings.Contains(err.Error(), "newer version") {
				t.Errorf("the store ended with %v, want a newer version's entry", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the store goes on")
		}
		if _, err := p.Store.Txn(t.Context(), put("k", "w")); !errors.Is(err, raftstore.ErrClosed) {
			t.Errorf("write on the ended store: %v, want ErrClosed", err)
		}
		if _, err := p.Store.Sync(t.Context()); !errors.Is(err, raftstore.ErrClosed) {
			t.Errorf("read on the ended store: %v, want ErrClosed", err)
		}
	})
}

// TestOldAcknowledgementsConfirmNothing covers a leader that stood still, from before
// the others chose another until after that one's first write, and whose followers'
// last acknowledgements reach it when it goes on, before anything newer does. They say
// nothing of the time since: a read must not rest on them, as it would on raft's
// VerifyLeader.
func TestOldAcknowledgementsConfirmNothing(t *testing.T) {
	for range 3 {
		bubble(t, func(t *testing.T) {
			c := storetest.NewCluster(t, 3)
			old := c.WaitLeader()
			others := c.Others(old)
			mustTxn(t, old.Store, put("x", "1"))
			time.Sleep(time.Second)
			// Heartbeats reach the followers, and their answers lie on the way.
			for _, p := range others {
				old.Set("not-from-"+p.ID, faults.Fault{Kind: faults.Cut, Peer: p.ID, Direction: faults.In})
			}
			time.Sleep(300 * time.Millisecond)
			for _, p := range others { // nothing newer comes after those
				p.Set("not-to-old", faults.Fault{Kind: faults.Cut, Peer: old.ID, Direction: faults.Out})
			}
			// Raft's main loop, and so its timers, stand still in a write.
			old.Disk.Hold()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			stuck := make(chan struct{})
			go func() {
				defer close(stuck)
				_, _ = old.Store.Txn(ctx, put("y", "1"))
			}()
			c.WaitLeader(others...)
			mustTxn(t, others[0].Store, put("x", "2"))

			read := make(chan string, 1)
			go func() {
				view, err := old.Store.Sync(ctx)
				kv, _ := view.Get("x")
				read <- fmt.Sprintf("%s, %v", kv.Value, err)
			}()
			synctest.Wait()
			// The first keeps raft from giving up its lease, the second would confirm
			// what raft began between them.
			old.Faults.Clear("not-from-" + others[0].ID)
			synctest.Wait()
			old.Disk.Release()
			synctest.Wait()
			old.Faults.Clear("not-from-" + others[1].ID)
			time.Sleep(10 * time.Millisecond)
			for _, p := range others {
				p.Faults.Clear("not-to-old")
			}
			if got := <-read; got != "2, <nil>" {
				t.Errorf("the former leader reads x=%s", got)
			}
			<-stuck
		})
	}
}

// TestTransferEndsWithTheStore: whoever asks a leader to hand over while that leader's
// process is about to end gets an answer, though raft may have none.
func TestTransferEndsWithTheStore(t *testing.T) {
	for range 20 {
		bubble(t, func(t *testing.T) {
			c := storetest.NewCluster(t, 3)
			leader := c.WaitLeader()
			store := leader.Store
			t.Cleanup(func() { raftstore.Drain(store) })
			asked := make(chan struct{}, 20)
			for range 20 {
				go func() {
					_ = store.TransferLeadership(t.Context(), "")
					asked <- struct{}{}
				}()
			}
			leader.Disk.Fail(errors.New("broken"))
			go func() { _, _ = c.Others(leader)[0].Store.Txn(t.Context(), put("k", "v")) }()
			for range 20 {
				select {
				case <-asked:
				case <-time.After(time.Minute):
					t.Fatal("no answer within a minute")
				}
			}
			<-leader.Ended()
			leader.Kill()
		})
	}
}

// metric returns the value of a counter.
func metric(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
