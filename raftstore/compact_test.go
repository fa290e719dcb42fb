package raftstore_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestCompact covers compaction on request, from any peer.
func TestCompact(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		for i := range 40 {
			mustTxn(t, c.Peers[0].Store, put("k", fmt.Sprint(i)))
		}
		for i, p := range c.Peers {
			rev := int64(10 * (i + 1))
			if err := p.Store.Compact(t.Context(), rev); err != nil {
				t.Fatal(err)
			}
			waitEqual(t, c.Peers)
			if _, err := p.Store.ViewAt(rev - 1); !errors.Is(err, raftstore.ErrCompacted) {
				t.Errorf("%s: view below the horizon: %v", p.ID, err)
			}
			if view, err := p.Store.ViewAt(rev); err != nil {
				t.Errorf("%s: view at the horizon: %v", p.ID, err)
			} else if kv, _ := view.Get("k"); kv.Mod != rev {
				t.Errorf("%s: view at the horizon: %+v", p.ID, kv)
			}
			err := p.Store.Compact(t.Context(), rev)
			if compacted, _ := errors.AsType[*raftstore.CompactedError](err); compacted == nil || compacted.Horizon < rev {
				t.Errorf("%s: compact again: %v, want a CompactedError", p.ID, err)
			}
			if err := p.Store.Compact(t.Context(), 41); !errors.Is(err, raftstore.ErrFutureRevision) {
				t.Errorf("%s: compact to the future: %v", p.ID, err)
			}
		}
		c.Cut(c.Peers[:1], c.Peers[1:])
		c.Cut(c.Peers[1:2], c.Peers[2:])
		time.Sleep(5 * time.Second)
		if err := c.Peers[0].Store.Compact(t.Context(), 35); !errors.Is(err, raftstore.ErrNoLeader) {
			t.Errorf("compact without a majority: %v, want ErrNoLeader", err)
		}
	})
}

// TestHistoryAges covers compaction by age: what is younger than the bound can be
// read, what is much older cannot, across a change of leaders, and an idle store
// appends one entry for it.
func TestHistoryAges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const age, pace = 2 * time.Minute, 5 * time.Second
		c := storetest.NewCluster(t, 3, raftstore.Unhurried, func(cfg *raftstore.Config) { cfg.HistoryAge = age })
		var written []time.Time // by revision, less one
		horizon, moved := int64(1), 0
		for i := range 150 {
			txn := put("k", fmt.Sprint(i))
			txn.ID = []byte(fmt.Sprint(i)) // so that it is sure of its outcome when the leader changes
			mustTxn(t, c.Peers[i%3].Store, txn)
			written = append(written, time.Now())
			time.Sleep(pace)
			if i == 75 {
				if err := c.WaitLeader().Store.TransferLeadership(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
			}
			for was := horizon; ; horizon++ {
				if _, err := c.Peers[0].Store.ViewAt(horizon); err == nil {
					if horizon > was {
						moved++
					}
					break
				}
			}
			// A revision is the state until the next one is written.
			if horizon > 1 && time.Since(written[horizon]) < age-2*pace {
				t.Fatalf("history is kept for %v only", time.Since(written[horizon]))
			}
			// A leader that is new knows no ages yet.
			if kept := time.Since(written[horizon-1]); kept > age+75*time.Second && (i < 75 || i > 75+40) {
				t.Fatalf("history is kept for %v", kept)
			}
		}
		if moved < 4 || moved > 14 { // once a minute at most
			t.Errorf("history was compacted %d times", moved)
		}
		time.Sleep(time.Minute)
		waitEqual(t, c.Peers)
		before := c.Peers[0].Store.Status()
		time.Sleep(10 * time.Minute)
		after := c.Peers[0].Store.Status()
		if n := after.LastIndex - before.LastIndex; n != 1 {
			t.Errorf("ten idle minutes took %d entries, want one that compacts", n)
		}
		if _, err := c.Peers[1].Store.ViewAt(after.Revision - 1); !errors.Is(err, raftstore.ErrCompacted) {
			t.Errorf("what is old can be read: %v", err)
		}
	})
}
