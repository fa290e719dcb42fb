package raftstore_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

var simSeeds = flag.Int("raftstore.seeds", 12, "random fault histories that TestSimulation plays")

// TestSimulation plays random faults against clusters under load, in virtual time:
// crashes, cuts both ways and one way, transfers, hanging disks. It checks what was
// promised: nothing acknowledged is lost, nothing refused is done, revisions are
// unique and reads never older than what was acknowledged before, watches see each
// change once, and in the end all peers are equal. Faults follow the seed; the
// order of goroutines does not.
func TestSimulation(t *testing.T) {
	total := &simStats{}
	for seed := range *simSeeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			bubble(t, func(t *testing.T) { simulate(t, uint64(seed), total) })
		})
	}
	t.Logf("%+v", *total)
	if total.acked < 50**simSeeds || total.reads < 50**simSeeds || total.faults < 5**simSeeds || total.watched < 20**simSeeds {
		t.Errorf("too little happened: %+v", *total)
	}
}

type simStats struct{ acked, unknown, refused, reads, failedReads, faults, watched int }

func simulate(t *testing.T, seed uint64, total *simStats) {
	r := rand.New(rand.NewPCG(seed, 2))
	size := 3 + 2*int(seed%2)
	c := storetest.NewCluster(t, size, func(cfg *raftstore.Config) {
		cfg.SnapshotBytes, cfg.TrailingBytes = 8<<10, 1
		raftstore.CutLogAt(20)(cfg)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()

	var mu sync.Mutex
	var stats simStats
	fate := map[string]string{}             // of each key: acked, unknown, refused
	revisions := map[int64]string{}         // of acknowledged writes
	var acked int64                         // the highest
	store := func(i int) *raftstore.Store { // of the present process
		mu.Lock()
		defer mu.Unlock()
		return c.Peers[i].Store
	}
	done := make(chan struct{})
	var load sync.WaitGroup
	for w := range 4 {
		load.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(100+w)))
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				case <-time.After(time.Duration(r.IntN(200)) * time.Millisecond):
				}
				key := fmt.Sprintf("w/%d/%d", w, n)
				res, err := store(r.IntN(size)).Txn(ctx, raftstore.Txn{
					If:   []raftstore.Compare{raftstore.Absent(key)},
					Then: []raftstore.Op{raftstore.Put(key, []byte(strings.Repeat("v", r.IntN(200)))), raftstore.Put("shared", []byte(key))},
				})
				mu.Lock()
				switch {
				case err == nil:
					fate[key] = "acked"
					stats.acked++
					acked = max(acked, res.Revision)
					if other, taken := revisions[res.Revision]; taken {
						t.Errorf("revision %d belongs to %s and to %s", res.Revision, other, key)
					}
					revisions[res.Revision] = key
				case errors.Is(err, raftstore.ErrOutcomeUnknown):
					fate[key] = "unknown"
					stats.unknown++
				case errors.Is(err, raftstore.ErrNoLeader), errors.Is(err, raftstore.ErrClosed):
					fate[key] = "refused"
					stats.refused++
				default:
					t.Errorf("write of %s: %v", key, err)
				}
				mu.Unlock()
			}
		})
	}
	for w := range 3 {
		load.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(200+w)))
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Duration(r.IntN(300)) * time.Millisecond):
				}
				mu.Lock()
				floor := acked
				mu.Unlock()
				short, cancel := context.WithTimeout(ctx, 3*time.Second)
				view, err := store(r.IntN(size)).Sync(short)
				cancel()
				mu.Lock()
				if err != nil {
					stats.failedReads++
				} else {
					stats.reads++
					if view.Revision() < floor {
						t.Errorf("a read is at revision %d; %d was acknowledged before it began", view.Revision(), floor)
					}
				}
				mu.Unlock()
			}
		})
	}
	// A watch that moves to another peer whenever its own is gone.
	var watched []raftstore.Event
	load.Go(func() {
		pos := int64(0)
		for i := 0; ; i++ {
			w := store(i%size).Watch("w/", pos)
			for {
				turn, cancel := context.WithTimeout(ctx, 2*time.Second)
				events, upTo, err := w.Next(turn)
				cancel()
				mu.Lock()
				for _, e := range events {
					if n := len(watched); n > 0 && e.Revision <= watched[n-1].Revision {
						t.Errorf("watch: revision %d after %d", e.Revision, watched[n-1].Revision)
					}
					watched = append(watched, e)
				}
				mu.Unlock()
				if upTo < pos {
					t.Errorf("watch: it went back from %d to %d", pos, upTo)
				}
				pos = upTo
				if errors.Is(err, raftstore.ErrCompacted) {
					t.Errorf("watch: %v", err)
				}
				if err != nil {
					break
				}
			}
			select {
			case <-done:
				return
			default:
			}
		}
	})

	// Faults: at most a minority of processes is dead at any time.
	dead := map[*storetest.Peer]bool{}
	held := map[*storetest.Peer]bool{}
	restart := func(p *storetest.Peer) {
		mu.Lock()
		defer mu.Unlock()
		p.Restart()
		delete(dead, p)
	}
	for range 25 {
		time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
		p, q := c.Peers[r.IntN(size)], c.Peers[r.IntN(size)]
		stats.faults++
		switch r.IntN(8) {
		case 0, 1:
			if !dead[p] && !held[p] && len(dead)+len(held) < size/2 {
				p.Kill()
				dead[p] = true
			} else if dead[p] {
				restart(p)
			}
		case 2:
			c.Cut([]*storetest.Peer{p}, c.Others(p))
		case 3:
			if p != q {
				c.CutOneWay(p, q)
			}
		case 4:
			if id, _ := p.Store.Leader(); id == p.ID && !dead[p] {
				load.Go(func() {
					ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
					defer cancel()
					_ = p.Store.TransferLeadership(ctx, "")
				})
			}
		case 5:
			// For less than what kills the process.
			if !dead[p] && !held[p] && len(dead)+len(held) < size/2 {
				held[p] = true
				p.Disk.Hold()
				time.Sleep(time.Duration(r.IntN(5000)) * time.Millisecond)
				p.Disk.Release()
				delete(held, p)
			}
		default:
			c.Heal()
		}
	}
	c.Heal()
	for _, p := range c.Peers {
		if dead[p] {
			restart(p)
		}
	}
	c.WaitLeader()
	begin := time.Now()
	if _, err := c.Peers[0].Store.Txn(ctx, put("w/last", "")); err != nil {
		t.Errorf("write after healing: %v", err)
	}
	for _, p := range c.Peers {
		if _, err := p.Store.Sync(ctx); err != nil {
			t.Errorf("read on %s after healing: %v", p.ID, err)
		}
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the cluster needed %v to come back", took)
	}
	close(done)
	load.Wait()
	waitEqual(t, c.Peers)

	view := c.Peers[0].Store.View()
	for key, what := range fate {
		_, exists := view.Get(key)
		if what == "acked" && !exists || what == "refused" && exists {
			t.Errorf("%s was %s, and exists: %v", key, what, exists)
		}
	}
	seen := map[string]int{}
	for _, e := range watched {
		seen[e.Key]++
	}
	end := int64(0)
	if len(watched) > 0 {
		end = watched[len(watched)-1].Revision
	}
	for kv := range view.Prefix("w/") {
		if n := seen[kv.Key]; n > 1 || n == 0 && kv.Mod <= end {
			t.Errorf("the watch saw %s of revision %d %d times", kv.Key, kv.Mod, n)
		}
	}
	stats.watched = len(watched)
	t.Logf("%+v", stats)
	total.acked += stats.acked
	total.unknown += stats.unknown
	total.refused += stats.refused
	total.reads += stats.reads
	total.failedReads += stats.failedReads
	total.faults += stats.faults
	total.watched += stats.watched
}
