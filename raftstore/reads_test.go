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

// TestBoundedReads covers reads that may be old: never older than they may be, also
// on a peer that is cut off, which must stop serving them; and an idle cluster is
// asked nothing.
func TestBoundedReads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const maxAge = 300 * time.Millisecond
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		reader := c.Others(leader)[0]
		bounded := raftstore.ReadOptions{Consistency: raftstore.Bounded, MaxAge: maxAge}

		// A writer notes when each revision was acknowledged.
		var mu sync.Mutex
		var acked []time.Time // by revision, less one
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(7 * time.Millisecond):
				}
				res := mustTxn(t, leader.Store, put("k", ""))
				mu.Lock()
				for int64(len(acked)) < res.Revision {
					acked = append(acked, time.Now())
				}
				mu.Unlock()
			}
		})
		waited := 0
		read := func(ctx context.Context) error {
			begin := time.Now()
			view, age, err := reader.Store.Read(ctx, bounded)
			if err != nil {
				return err
			}
			if time.Since(begin) > 0 {
				waited++
			}
			if age < 0 || age > maxAge {
				t.Errorf("a bounded read has age %v", age)
			}
			mu.Lock()
			defer mu.Unlock()
			if rev := view.Revision(); rev < int64(len(acked)) && time.Since(acked[rev]) > age {
				t.Errorf("a read of age %v misses revision %d, acknowledged %v ago", age, rev+1, time.Since(acked[rev]))
			}
			return nil
		}
		for range 5000 {
			if err := read(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		if waited > 3 {
			t.Errorf("%d of 5000 bounded reads waited for other peers", waited)
		}

		c.Cut([]*storetest.Peer{reader}, c.Others(reader))
		cut := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		served := 0
		var err error
		for err == nil {
			time.Sleep(10 * time.Millisecond)
			if err = read(ctx); err == nil {
				served++
			}
		}
		cancel()
		if !errors.Is(err, raftstore.ErrNoLeader) || served == 0 || time.Since(cut) < 4*time.Second {
			t.Errorf("cut off: %d reads served, then after %v: %v; want some for %v, then ErrNoLeader", served, time.Since(cut), err, maxAge)
		}
		if _, age, err := reader.Store.Read(t.Context(), raftstore.ReadOptions{Consistency: raftstore.Local}); err != nil || age < 3*time.Second {
			t.Errorf("local read on the peer that is cut off: age %v, %v", age, err)
		}
		close(done)
		wg.Wait()
		c.Heal()
		if err := read(t.Context()); err != nil {
			t.Errorf("bounded read after healing: %v", err)
		}

		// Nobody asks any more: nobody is asked.
		time.Sleep(10 * time.Minute)
		if last := raftstore.LastRound(reader.Store); time.Since(last) < 10*time.Minute-time.Second {
			t.Errorf("a round %v ago, in ten idle minutes", time.Since(last))
		}
		if _, _, err := reader.Store.Read(t.Context(), raftstore.ReadOptions{Consistency: raftstore.Bounded}); !errors.Is(err, raftstore.ErrInvalid) {
			t.Errorf("bounded by nothing: %v", err)
		}
	})
}

// TestSessionReads covers reads that must not go back in time while they move from
// peer to peer, with every consistency.
func TestSessionReads(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		behind := c.Others(leader)[0]
		for _, p := range c.Peers {
			if _, age, err := p.Store.Read(t.Context(), raftstore.ReadOptions{Consistency: raftstore.Local}); err != nil || age >= 0 {
				t.Errorf("%s: local read before any other: age %v, %v", p.ID, age, err)
			}
		}
		for i := range 50 {
			res := mustTxn(t, c.Peers[i%3].Store, put("k", fmt.Sprint(i)))
			for _, p := range c.Peers {
				for _, consistency := range []raftstore.Consistency{raftstore.Linearizable, raftstore.Bounded, raftstore.Local} {
					view, _, err := p.Store.Read(t.Context(), raftstore.ReadOptions{Consistency: consistency, MaxAge: time.Minute, MinRevision: res.Revision})
					if err != nil {
						t.Fatal(err)
					}
					if kv, _ := view.Get("k"); string(kv.Value) != fmt.Sprint(i) {
						t.Fatalf("%s: read %q with consistency %d after writing %d", p.ID, kv.Value, consistency, i)
					}
				}
			}
		}
		c.Cut([]*storetest.Peer{behind}, c.Others(behind))
		res := mustTxn(t, leader.Store, put("k", "new"))
		begin := time.Now()
		_, _, err := behind.Store.Read(t.Context(), raftstore.ReadOptions{Consistency: raftstore.Local, MinRevision: res.Revision})
		if !errors.Is(err, raftstore.ErrFutureRevision) || time.Since(begin) > 11*time.Second {
			t.Errorf("read of what has not arrived: %v after %v, want ErrFutureRevision after 10 s", err, time.Since(begin))
		}
		go func() {
			time.Sleep(2 * time.Second)
			c.Heal()
		}()
		view, _, err := behind.Store.Read(t.Context(), raftstore.ReadOptions{Consistency: raftstore.Local, MinRevision: res.Revision})
		if err != nil {
			t.Fatal(err)
		}
		if kv, _ := view.Get("k"); string(kv.Value) != "new" {
			t.Errorf("read %q", kv.Value)
		}
	})
}
