package raftstore_test

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestManyWatchers is row 18 of the fault matrix: 10,000 watchers on one peer, of whom
// a tenth never reads; in each round some reconnect, all at once, and history is
// discarded. Those who read miss nothing, in good time; those who do not cost nobody
// anything, and are told that they must list again.
func TestManyWatchers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const (
			perKey = 10 // watchers of each key, of whom the last never reads
			rounds = 20
		)
		keys := 1000
		if raceEnabled {
			keys = 100
		}
		history := 3 * keys / 2
		c := storetest.NewCluster(t, 3, func(cfg *raftstore.Config) { cfg.HistoryEvents = history })
		leader := c.WaitLeader()
		p := c.Others(leader)[0]
		key := func(k int) string { return fmt.Sprintf("k/%04d", k) }

		type reader struct {
			key  string
			set  *raftstore.WatchSet
			last raftstore.Revision
			n    int
		}
		var mu sync.Mutex
		readers := make(map[*raftstore.Watcher]*reader, keys*perKey)
		var written []time.Time // when each revision was acknowledged
		first := p.Store.View().Revision()
		var late []time.Duration
		sets := make([]*raftstore.WatchSet, perKey-1)
		done := make(chan struct{})
		var serving sync.WaitGroup
		for i := range sets {
			ws := p.Store.NewWatchSet()
			sets[i] = ws
			serving.Go(func() {
				for {
					select {
					case <-ws.Ready():
					case <-done:
						return
					}
					mu.Lock()
					for {
						w, events, _, err := ws.Poll()
						if w == nil {
							break
						}
						r := readers[w]
						if err != nil {
							t.Errorf("a watcher of %s that reads: %v", r.key, err)
							continue
						}
						for _, e := range events {
							if e.Key != r.key || e.Revision <= r.last {
								t.Errorf("a watcher of %s got %s of revision %d after %d", r.key, e.Key, e.Revision, r.last)
							}
							r.last, r.n = e.Revision, r.n+1
							if at := int(e.Revision - first - 1); at < len(written) {
								late = append(late, time.Since(written[at]))
							}
						}
					}
					mu.Unlock()
				}
			})
		}
		idle := p.Store.NewWatchSet() // nobody polls it
		connect := func(set *raftstore.WatchSet, r *reader) {
			w := p.Store.Watch(r.key, r.last)
			readers[w], r.set = r, set
			set.Add(w)
		}
		var deaf []*raftstore.Watcher
		mu.Lock()
		for k := range keys {
			for i := range sets {
				connect(sets[i], &reader{key: key(k), last: first})
			}
			w := p.Store.Watch(key(k), first)
			idle.Add(w)
			deaf = append(deaf, w)
		}
		mu.Unlock()

		used := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		var before uint64
		for round := range rounds {
			// Those of a tenth of the keys come back at once, from where they stood, to
			// another stream.
			mu.Lock()
			for w, r := range maps.Clone(readers) {
				if strings.HasSuffix(r.key, fmt.Sprint(round%10)) {
					r.set.Remove(w)
					delete(readers, w)
					connect(sets[round%len(sets)], r)
				}
			}
			mu.Unlock()
			for k := range keys {
				res := mustTxn(t, leader.Store, put(key(k), fmt.Sprint(round)))
				mu.Lock()
				for int64(len(written)) < res.Revision-first {
					written = append(written, time.Now())
				}
				mu.Unlock()
			}
			time.Sleep(time.Second)
			if round == 2 {
				before = used()
			}
		}
		grown := int64(used()) - int64(before)
		close(done)
		serving.Wait()
		for _, r := range readers {
			if r.n != rounds {
				t.Fatalf("a watcher of %s got %d events, want %d", r.key, r.n, rounds)
			}
		}
		slices.Sort(late)
		p99 := late[len(late)*99/100]
		t.Logf("%d events; p99 of lateness on a follower %v; memory grew by %d KiB in %d rounds", len(late), p99, grown>>10, rounds-3)
		if len(late) < keys*(perKey-1)*rounds*9/10 {
			t.Errorf("%d events: too few", len(late))
		}
		if p99 > 100*time.Millisecond {
			t.Errorf("p99 of an event's lateness is %v, want at most 100 ms", p99)
		}
		// What is kept is the bounded history, raft's log of the test, and the test's
		// own notes; what the deaf have missed would be 20,000 events for each of them.
		if grown > 64<<20 {
			t.Errorf("memory grew by %d MiB while a tenth of the watchers did not read", grown>>20)
		}
		for _, w := range deaf {
			if _, _, _, err := w.Poll(); !errors.Is(err, raftstore.ErrCompacted) {
				t.Fatalf("a watcher that has not read for %d rounds: %v, want ErrCompacted", rounds, err)
			}
		}
	})
}

// TestManyLeaders is row 24 of the fault matrix: after 1000 changes of the leader, and
// as many streams between peers opened and closed, there are as many goroutines as
// before.
func TestManyLeaders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		used := 0
		use := func() {
			for _, p := range c.Peers {
				// With an id: the stream to a leader that has just handed over may end
				// with a transaction in it, which is then sent to the next.
				used++
				txn := put("k", p.ID)
				txn.ID = fmt.Appendf(nil, "%016d", used)
				mustTxn(t, p.Store, txn)
				if got := mustRead(t, p.Store, "k"); got != p.ID {
					t.Fatalf("read %q on %s", got, p.ID)
				}
			}
		}
		settled := func() int {
			use()
			time.Sleep(time.Minute)
			synctest.Wait()
			return runtime.NumGoroutine()
		}
		for range 3 { // every stream has been used
			if err := c.WaitLeader().Store.TransferLeadership(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			use()
		}
		before, terms := settled(), c.Leaderships()
		for i := range 1000 {
			if err := c.WaitLeader().Store.TransferLeadership(t.Context(), ""); err != nil {
				t.Fatalf("change %d: %v", i, err)
			}
			if i%10 == 0 {
				use()
			}
		}
		after := settled()
		if n := c.Leaderships() - terms; n < 1000 {
			t.Errorf("%d changes of the leader, want 1000", n)
		}
		t.Logf("%d goroutines before, %d after", before, after)
		if after > before+before/20 {
			t.Errorf("%d goroutines before, %d after", before, after)
		}
	})
}
