package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestTxnWithID covers transactions that are repeated when their outcome is unknown:
// while leaders are killed and answers are lost, appends to lists take effect exactly
// once, and their callers are not told of it.
func TestTxnWithID(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		var mu sync.Mutex
		stopped := false
		acked := map[string]bool{}
		replayed, unknown := 0, 0
		var load sync.WaitGroup
		for w := range 6 {
			load.Go(func() {
				for n := 0; ; n++ {
					mu.Lock()
					store, stop := c.Peers[(w+n)%3].Store, stopped
					mu.Unlock()
					if stop {
						return
					}
					// Each has a key of its own. Its version counts how often it was
					// written; a repetition without an id would write it twice.
					key := fmt.Sprintf("w/%d/%d", w, n)
					res, err := store.Txn(t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Put(key, []byte(strconv.Itoa(n)))}, ID: []byte(key)})
					mu.Lock()
					switch {
					case err == nil:
						acked[key] = true
						if res.Replayed {
							replayed++
						}
					case errors.Is(err, raftstore.ErrOutcomeUnknown):
						unknown++
					case !errors.Is(err, raftstore.ErrClosed) && !errors.Is(err, raftstore.ErrNoLeader):
						t.Errorf("%s: %v", key, err)
					}
					mu.Unlock()
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
		for round := range 16 {
			time.Sleep(time.Second)
			leader := c.WaitLeader()
			if round%2 == 0 {
				leader.Kill()
				time.Sleep(2 * time.Second)
				mu.Lock()
				leader.Restart()
				mu.Unlock()
			} else {
				// Requests pass, answers do not.
				c.CutOneWay(leader, c.Others(leader)[round%4/2])
				time.Sleep(6 * time.Second)
				c.Heal()
			}
		}
		mu.Lock()
		stopped = true
		mu.Unlock()
		load.Wait()
		waitEqual(t, c.Peers)
		view := c.Peers[0].Store.View()
		for key := range acked {
			if kv, _ := view.Get(key); kv.Version != 1 {
				t.Errorf("%s was written %d times, want once", key, kv.Version)
			}
		}
		for kv := range view.Prefix("w/") {
			if kv.Version != 1 {
				t.Errorf("%s was written %d times", kv.Key, kv.Version)
			}
		}
		t.Logf("%d acknowledged, %d of them by a repetition, %d unknown", len(acked), replayed, unknown)
		if replayed == 0 || len(acked) < 500 {
			t.Errorf("%d acknowledged, %d by a repetition: too little happened", len(acked), replayed)
		}
	})
}

// TestTxnWithIDStaysUnknown: when the outcome of one attempt is unknown, and no later one
// gets through, the caller must not be told that nothing happened.
func TestTxnWithIDStaysUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		others := c.Others(leader)
		mustTxn(t, others[0].Store, put("warm", ""))
		c.CutOneWay(leader, others[0]) // it commits, by the other; the answer is lost
		go func() {
			time.Sleep(time.Second)
			c.Cut(others[:1], []*storetest.Peer{leader, others[1]})
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		defer cancel()
		_, err := others[0].Store.Txn(ctx, raftstore.Txn{Then: put("k", "v").Then, ID: []byte("id")})
		if !errors.Is(err, raftstore.ErrOutcomeUnknown) || errors.Is(err, raftstore.ErrNoLeader) {
			t.Errorf("%v, want ErrOutcomeUnknown", err)
		}
		c.Heal()
		if got := mustRead(t, others[0].Store, "k"); got != "v" {
			t.Errorf("read %q: the write had been committed", got)
		}
	})
}

// TestSubmitWithIDStaysUnknown: the same for Submit, whose first attempt has another
// way than the next ones.
func TestSubmitWithIDStaysUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		others := c.Others(leader)
		mustTxn(t, others[0].Store, put("warm", ""))
		c.CutOneWay(leader, others[0]) // it commits, by the other; the answer is lost
		go func() {
			time.Sleep(time.Second)
			c.Cut(others[:1], []*storetest.Peer{leader, others[1]})
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
		defer cancel()
		answer := make(chan error, 1)
		others[0].Store.Submit(ctx, raftstore.Txn{Then: put("k", "v").Then, ID: []byte("id")}, func(_ raftstore.Result, err error) {
			answer <- err
		})
		if err := <-answer; !errors.Is(err, raftstore.ErrOutcomeUnknown) || errors.Is(err, raftstore.ErrNoLeader) {
			t.Errorf("write that may have been committed: %v, want ErrOutcomeUnknown", err)
		}
	})
}
