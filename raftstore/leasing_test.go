package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// grantKey makes a lease on p, and a key that lives by it.
func grantKey(t *testing.T, p *storetest.Peer, key string, ttl time.Duration) int64 {
	t.Helper()
	lease, err := p.Store.GrantLease(t.Context(), 0, ttl)
	if err != nil {
		t.Fatal(err)
	}
	mustTxn(t, p.Store, raftstore.Txn{Then: []raftstore.Op{raftstore.PutWith(key, []byte("v"), raftstore.PutOptions{Lease: lease.ID})}})
	return lease.ID
}

func exists(t *testing.T, p *storetest.Peer, key string) bool {
	t.Helper()
	view, err := p.Store.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, ok := view.Get(key)
	return ok
}

// TestLeases covers the life of leases from any peer: the end in time, keepalives that
// append nothing, the errors.
func TestLeases(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const ttl = 10 * time.Second
		c := storetest.NewCluster(t, 3, raftstore.Unhurried)
		var ids []int64
		for _, p := range c.Peers {
			ids = append(ids, grantKey(t, p, "k/"+p.ID, ttl))
		}
		for i, p := range c.Peers {
			info, err := p.Store.TimeToLive(t.Context(), ids[i])
			if err != nil || info.Granted != ttl || info.Remaining > ttl || info.Remaining < ttl-time.Second {
				t.Errorf("%s: %+v, %v", p.ID, info, err)
			}
		}
		time.Sleep(20 * time.Minute) // those end, and history ages
		for i, p := range c.Peers {
			if exists(t, p, "k/"+p.ID) {
				t.Errorf("%s: the key lives after its lease", p.ID)
			}
			if _, err := p.Store.KeepAlive(t.Context(), ids[i]); !errors.Is(err, raftstore.ErrLeaseNotFound) {
				t.Errorf("%s: keepalive of an ended lease: %v", p.ID, err)
			}
			if _, err := p.Store.TimeToLive(t.Context(), ids[i]); !errors.Is(err, raftstore.ErrLeaseNotFound) {
				t.Errorf("%s: time to live of an ended lease: %v", p.ID, err)
			}
			if err := p.Store.RevokeLease(t.Context(), ids[i]); !errors.Is(err, raftstore.ErrLeaseNotFound) {
				t.Errorf("%s: end of an ended lease: %v", p.ID, err)
			}
		}

		// Kept alive, from a peer that does not lead, nothing is appended.
		p := c.Others(c.WaitLeader())[0]
		grantKey(t, p, "alive", ttl)
		long := grantKey(t, p, "long", time.Hour)
		time.Sleep(11 * time.Minute)
		keep := func(lease int64) {
			t.Helper()
			if _, err := p.Store.KeepAlive(t.Context(), lease); err != nil {
				t.Fatal(err)
			}
		}
		if exists(t, p, "alive") {
			t.Error("a key lives after its lease, beside a long one")
		}
		id := grantKey(t, p, "alive", ttl)
		keep(long)
		for range 120 {
			keep(id)
			keep(long)
			time.Sleep(5 * time.Second)
		}
		waitEqual(t, c.Peers)
		before := p.Store.Status().LastIndex
		for range 120 {
			keep(id)
			keep(long)
			time.Sleep(5 * time.Second)
		}
		waitEqual(t, c.Peers)
		if n := p.Store.Status().LastIndex - before; n != 0 {
			t.Errorf("ten minutes of keepalives took %d entries", n)
		}
		begin := time.Now()
		keep(id)
		for exists(t, p, "alive") {
			time.Sleep(50 * time.Millisecond)
		}
		if took := time.Since(begin); took < ttl || took > ttl+time.Second {
			t.Errorf("the lease of %v ended after %v", ttl, took)
		}
		if err := p.Store.RevokeLease(t.Context(), long); err != nil || exists(t, p, "long") {
			t.Errorf("the end of a lease: %v, its key exists: %v", err, exists(t, p, "long"))
		}

		if _, err := p.Store.GrantLease(t.Context(), 7, ttl); err != nil {
			t.Error(err)
		}
		if _, err := p.Store.GrantLease(t.Context(), 7, ttl); !errors.Is(err, raftstore.ErrLeaseExists) {
			t.Errorf("a second lease 7: %v", err)
		}
		for _, bad := range []time.Duration{0, -1, 9_000_000_001 * time.Second} {
			if _, err := p.Store.GrantLease(t.Context(), 0, bad); !errors.Is(err, raftstore.ErrInvalid) {
				t.Errorf("a lease of %v: %v", bad, err)
			}
		}
		if short, err := p.Store.GrantLease(t.Context(), 0, time.Millisecond); err != nil || short.Granted != time.Second {
			t.Errorf("a lease of a millisecond: %+v, %v; want a second", short, err)
		}
		if forever, err := p.Store.GrantLease(t.Context(), 0, 9_000_000_000*time.Second); err != nil || forever.Granted != 9_000_000_000*time.Second {
			t.Errorf("the longest lease: %+v, %v", forever, err)
		}
	})
}

// TestLeasesAcrossLeaders is promise P5: while leaders are killed, cut off and replaced,
// a key that is kept alive is never deleted before its lease's time has passed since the
// last keepalive that was answered; and is, once nobody keeps it alive.
func TestLeasesAcrossLeaders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const ttl = 4 * time.Second
		c := storetest.NewCluster(t, 3)
		var mu sync.Mutex
		store := func(i int) *raftstore.Store {
			mu.Lock()
			defer mu.Unlock()
			return c.Peers[i%3].Store
		}
		ids := make([]int64, 6)
		last := make([]time.Time, len(ids)) // when the last answered keepalive was called
		for i := range ids {
			ids[i] = grantKey(t, c.Peers[i%3], fmt.Sprintf("k/%d", i), ttl)
			last[i] = time.Now()
		}
		ctx, cancel := context.WithCancel(t.Context())
		var keepers sync.WaitGroup
		answered, failed := 0, 0
		for i, id := range ids {
			keepers.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					begin := time.Now()
					call, cancel := context.WithTimeout(ctx, time.Second)
					_, err := store(i+n).KeepAlive(call, id)
					cancel()
					mu.Lock()
					switch {
					case err == nil:
						answered++
						last[i] = begin
					case errors.Is(err, raftstore.ErrLeaseNotFound):
						if since := time.Since(last[i]); since < ttl {
							t.Errorf("lease %d ended %v after its last keepalive", i, since)
						}
						mu.Unlock()
						return
					default:
						failed++
					}
					mu.Unlock()
					time.Sleep(time.Duration(200+i*150) * time.Millisecond)
				}
			})
		}
		for round := range 12 {
			leader := c.WaitLeader()
			switch round % 3 {
			case 0:
				leader.Kill()
				time.Sleep(3 * time.Second)
				mu.Lock()
				leader.Restart()
				mu.Unlock()
			case 1:
				c.Cut([]*storetest.Peer{leader}, c.Others(leader))
				time.Sleep(3 * time.Second)
				c.Heal()
			case 2:
				if err := leader.Store.TransferLeadership(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(3 * time.Second)
		}
		for i := range ids {
			if !exists(t, c.Peers[0], fmt.Sprintf("k/%d", i)) {
				t.Errorf("the key of lease %d is gone", i)
			}
		}
		cancel()
		keepers.Wait()
		if answered < 100 || failed == 0 {
			t.Errorf("%d keepalives answered, %d failed: too little happened", answered, failed)
		}
		time.Sleep(ttl + time.Second)
		for i := range ids {
			if exists(t, c.Peers[0], fmt.Sprintf("k/%d", i)) {
				t.Errorf("the key of lease %d lives on", i)
			}
		}
		waitEqual(t, c.Peers)
	})
}

// TestDeposedLeaderKeepsNothingAlive covers a leader that others have replaced and that
// does not know: it must not answer keepalives, of which its successor does not hear.
func TestDeposedLeaderKeepsNothingAlive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const ttl = 5 * time.Second
		c := storetest.NewCluster(t, 3)
		old := c.WaitLeader()
		others := c.Others(old)
		id := grantKey(t, old, "k", ttl)
		// As in TestPausedLeaderServesNoStaleRead.
		old.Disk.Hold()
		stuck := make(chan struct{})
		go func() {
			defer close(stuck)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, _ = old.Store.Txn(ctx, put("y", "1"))
		}()
		time.Sleep(10 * time.Millisecond)
		c.Cut([]*storetest.Peer{old}, others)
		c.WaitLeader(others...)
		c.Heal()
		if leader, _ := old.Store.Leader(); leader != old.ID {
			t.Fatalf("the former leader knows already that %q leads: this test shows nothing", leader)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if ttl, err := old.Store.KeepAlive(ctx, id); !errors.Is(err, raftstore.ErrNoLeader) {
			t.Errorf("the former leader answers a keepalive: %v, %v", ttl, err)
		}
		old.Disk.Release()
		if _, err := old.Store.KeepAlive(t.Context(), id); err != nil {
			t.Errorf("keepalive on the former leader, once it knows: %v", err)
		}
		<-stuck
	})
}

// TestUndecidedEndIsNotKeptAlive: the end of a lease is in the leader's log and nobody
// knows whether it stays there when the leadership ends. A keepalive that waited for
// that must not be answered by the leader that was: the entry may be committed yet.
func TestUndecidedEndIsNotKeptAlive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const ttl = 5 * time.Second
		c := storetest.NewCluster(t, 3)
		old := c.WaitLeader()
		others := c.Others(old)
		id := grantKey(t, old, "k", ttl)
		changed := old.Store.LeaderChanged()
		time.Sleep(ttl - time.Second)
		for _, p := range others {
			p.Disk.Hold() // they confirm the leader, and take no entry
		}
		time.Sleep(1800 * time.Millisecond) // its end is proposed, and it still leads
		if leader, _ := old.Store.Leader(); leader != old.ID || !exists(t, old, "k") {
			t.Fatal("the lease has ended, or the leadership: this test shows nothing")
		}
		type answer struct {
			err error
			at  time.Time
		}
		answered := make(chan answer, 1)
		called := time.Now()
		go func() {
			_, err := old.Store.KeepAlive(t.Context(), id)
			answered <- answer{err, time.Now()}
		}()
		<-changed
		for _, p := range others {
			p.Disk.Release()
		}
		got := <-answered
		if errors.Is(got.err, raftstore.ErrLeaseNotFound) {
			return // the entry was committed after all
		}
		if got.err != nil {
			t.Fatal(got.err)
		}
		for time.Since(called) < ttl {
			if !exists(t, old, "k") {
				t.Fatalf("kept alive by a call %v ago, the lease of %v has ended", time.Since(called), ttl)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// TestLongLeases covers what the log notes of long leases: another leader does not give
// one all of its time again, unless it was kept alive since.
func TestLongLeases(t *testing.T) {
	for name, keep := range map[string]bool{"silent": false, "kept alive": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const ttl = 30 * time.Minute
				c := storetest.NewCluster(t, 3, raftstore.Unhurried)
				id := grantKey(t, c.Peers[1], "k", ttl)
				time.Sleep(22 * time.Minute)
				begin := time.Now().Add(-22 * time.Minute)
				if keep {
					if _, err := c.Peers[2].Store.KeepAlive(t.Context(), id); err != nil {
						t.Fatal(err)
					}
					begin = time.Now()
				}
				leader := c.WaitLeader()
				leader.Kill()
				reader := c.Others(leader)[0]
				c.WaitLeader(c.Others(leader)...)
				leader.Restart()
				for exists(t, reader, "k") {
					time.Sleep(10 * time.Second)
				}
				took := time.Since(begin)
				if took < ttl || took > ttl+6*time.Minute {
					t.Errorf("it ended %v after it began, want %v", took, ttl)
				}
			})
		})
	}
}
