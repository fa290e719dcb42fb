package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/internal/faults"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
	"github.com/holdfast-io/holdfast/raftstore/storetest/history"
)

var (
	simSeeds = flag.Int("raftstore.seeds", 12, "random fault histories that TestSimulation plays")
	simFirst = flag.Int("raftstore.first", 0, "the first of TestSimulation's seeds")
	simKeep  = flag.String("raftstore.keep", "", "directory for the histories of simulations that failed; none: they are not kept")
)

// TestSimulation plays random faults, alone and in pairs, against clusters under
// load, in virtual time, and checks the recorded history: see package history for
// the properties. Faults follow the seed; the order of goroutines does not.
func TestSimulation(t *testing.T) {
	var total simTotal
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // little lives long here
	for seed := *simFirst; seed < *simFirst+*simSeeds; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			simulate(t, uint64(seed), 3+2*(seed%2), &total, func(s *sim) {
				for range 6 {
					s.sleep(3 * time.Second)
					s.strike(1 + s.r.IntN(2))
				}
			})
		})
	}
	total.report(t)
	if n := *simSeeds; n >= 10 && (total.stats.Expired < n || total.stats.KeptAlive < 10*n || total.stats.Aged < 50*n || total.stats.Repeats == 0 || total.stats.Compacted == 0) {
		t.Errorf("too little happened: %+v", total)
	}
	if n := *simSeeds; total.stats.Acked < 100*n || total.stats.Reads < 100*n || total.stats.Events < 100*n || total.strikes < 6*n ||
		total.leaderships < 3*n || total.stats.Conflicts < 2*n {
		t.Errorf("too little happened: %+v", total)
	}
	if n := *simSeeds; n >= 30 {
		for _, kind := range []faults.Kind{faults.Cut, faults.Delay, faults.Flap, faults.DiskSlow, faults.DiskFail, faults.DiskHang, faults.DiskFull, faults.Pause, faults.Clock} {
			if total.fired[kind] == 0 {
				t.Errorf("no fault of kind %s has struck", kind)
			}
		}
	}
}

// simTotal is what several simulations did.
type simTotal struct {
	stats                       history.Stats
	strikes, kills, leaderships int
	fired                       map[faults.Kind]int64
	virtual                     time.Duration
	checking                    time.Duration // real
	healed                      time.Duration // the longest way back after healing
	seeds, noSpace              int
}

func (st *simTotal) report(t *testing.T) {
	t.Logf("%d histories, %v of virtual time: %+v", st.seeds, st.virtual.Round(time.Second), st.stats)
	t.Logf("%d faults, %d kills, %d leaderships, %d writes without space; struck: %v; longest recovery %v; checks took %v", st.strikes, st.kills, st.leaderships, st.noSpace, st.fired, st.healed, st.checking.Round(time.Millisecond))
}

// sim is one simulation under way. Its faults are in simfaults_test.go.
type sim struct {
	t     *testing.T
	c     *storetest.Cluster
	r     *rand.Rand // the nemesis's
	h     *history.Recorder
	ctx   context.Context
	done  chan struct{} // closed when the load is to end
	load  sync.WaitGroup
	total *simTotal

	mu      sync.Mutex        // of what follows, and of each peer's Store
	members []*storetest.Peer // those that take part
	noSpace int               // writes refused for lack of space
	names   int               // of faults
	kills   int
	stores  []*raftstore.Store // all there ever were

	// membership is held during a change of members, and of unfinished. It is no mutex:
	// virtual time would stand still for those who wait.
	membership chan struct{}
	unfinished []change
}

const (
	simKeys = 12
	maxTTL  = 5 * time.Second // of leases
)

// dying is longer than a store takes to end when its disk is dead.
const dying = 12 * time.Second

// simulate runs nemesis against a cluster of size peers under load, heals, and
// checks.
func simulate(t *testing.T, seed uint64, size int, total *simTotal, nemesis func(*sim)) {
	t.Helper()
	var log lastLines
	var h *history.Recorder
	defer func() { // also when the bubble gave up
		if !t.Failed() || *simKeep == "" {
			return
		}
		path := filepath.Join(*simKeep, strings.ReplaceAll(t.Name(), "/", "_")+".history")
		var b bytes.Buffer
		if err := errors.Join(h.Dump(&b), os.MkdirAll(*simKeep, 0o755), os.WriteFile(path, append(b.Bytes(), log.buf...), 0o644)); err != nil {
			t.Error(err)
		}
		t.Logf("the history is in %s", path)
	}()
	bubble(t, func(t *testing.T) {
		h = history.New()
		s := &sim{
			t: t, h: h, r: rand.New(rand.NewPCG(seed, 2)),
			done: make(chan struct{}), membership: make(chan struct{}, 1), total: total,
		}
		var cancel context.CancelFunc
		s.ctx, cancel = context.WithCancel(context.WithoutCancel(t.Context()))
		defer cancel()
		t.Cleanup(func() { // once all have stopped
			for _, store := range s.stores {
				raftstore.Drain(store)
			}
		})
		s.c = storetest.NewCluster(t, size, func(cfg *raftstore.Config) {
			cfg.SnapshotBytes, cfg.TrailingBytes, cfg.HistoryEvents = 16<<10, 1, 300
			cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)).With("peer", cfg.ID)
			raftstore.CutLogAt(30)(cfg)
			raftstore.OnApply(h.Applied)(cfg)
		})
		s.members = slices.Clone(s.c.Peers)
		begin := time.Now()
		s.start(seed)
		nemesis(s)
		s.heal()
		close(s.done)
		s.load.Wait()
		time.Sleep(2*maxTTL + 2*time.Second) // leases end, once over another leader
		waitEqual(t, s.peers())
		total.virtual += time.Since(begin)
		total.kills += s.kills
		total.noSpace += s.noSpace
		total.leaderships += s.c.Leaderships()
		total.seeds++
		for _, p := range s.c.Peers {
			for kind, n := range p.Faults.Fired() {
				if total.fired == nil {
					total.fired = make(map[faults.Kind]int64)
				}
				total.fired[kind] += n
			}
		}
	})
	begin := time.Now()
	stats, violations := h.Check()
	total.checking += time.Since(begin)
	total.stats.Add(stats)
	for _, v := range violations {
		t.Error(v)
	}
}

// lastLines keeps the end of a log.
type lastLines struct {
	mu  sync.Mutex
	buf []byte
}

func (l *lastLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf = append(l.buf, b...); len(l.buf) > 1<<20 {
		l.buf = append([]byte(nil), l.buf[len(l.buf)-1<<19:]...)
	}
	return len(b), nil
}

// peers returns those that take part at this moment.
func (s *sim) peers() []*storetest.Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.members)
}

// others returns all that take part but p.
func (s *sim) others(p *storetest.Peer) []*storetest.Peer {
	return slices.DeleteFunc(s.peers(), func(q *storetest.Peer) bool { return q == p })
}

// any returns a peer and its store, whether it is up or not: clients do not know.
func (s *sim) any(r *rand.Rand) (string, *raftstore.Store) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.members[r.IntN(len(s.members))]
	return p.ID, p.Store
}

// every calls fn after pauses of up to max, until the load ends.
func (s *sim) every(limit time.Duration, r *rand.Rand, fn func()) {
	for {
		select {
		case <-s.done:
			return
		case <-time.After(time.Duration(r.Int64N(int64(limit)))):
			fn()
		}
	}
}

// start begins the load: writers, readers, watchers, lease holders, who discards
// history, and the leader's own work.
func (s *sim) start(seed uint64) {
	stream := func(n int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(n))) }
	for w := range 5 {
		r := stream(100 + w)
		s.load.Go(func() {
			s.every(300*time.Millisecond, r, func() {
				id, store := s.any(r)
				txn := randomTxn(r, store.View())
				ctx, cancel := context.WithTimeout(s.ctx, time.Duration(1+r.IntN(12))*time.Second)
				defer cancel()
				if r.IntN(3) == 0 {
					s.writeOnce(ctx, id, store, txn, r)
				} else {
					_ = s.write(ctx, id, store, txn)
				}
			})
		})
	}
	for w := range 3 {
		r := stream(200 + w)
		s.load.Go(func() {
			s.every(300*time.Millisecond, r, func() {
				id, store := s.any(r)
				ctx, cancel := context.WithTimeout(s.ctx, 3*time.Second)
				defer cancel()
				_ = s.h.Read(id, randomPrefix(r), func() (raftstore.View, error) { return store.Sync(ctx) })
			})
		})
	}
	for w := range 2 {
		r := stream(250 + w)
		s.load.Go(func() { s.readAged(r) })
	}
	for w, prefix := range []string{"", "k/", "k/1"} {
		r := stream(300 + w)
		s.load.Go(func() { s.watch(prefix, r) })
	}
	for w := range 3 {
		r := stream(400 + w)
		s.load.Go(func() { s.holdLeases(w, r) })
	}
	r := stream(500)
	s.load.Go(func() {
		s.every(8*time.Second, r, func() {
			_, store := s.any(r)
			ctx, cancel := context.WithTimeout(s.ctx, 3*time.Second)
			defer cancel()
			_ = store.Compact(ctx, max(1, store.View().Revision()-r.Int64N(150)))
		})
	})
	for _, p := range s.peers() {
		s.leads(p)
	}
}

func randomPrefix(r *rand.Rand) string {
	if r.IntN(2) == 0 {
		return fmt.Sprintf("k/%02d", r.IntN(simKeys))
	}
	return "k/"
}

// write is Txn, recorded.
func (s *sim) write(ctx context.Context, id string, store *raftstore.Store, txn raftstore.Txn) error {
	err := s.h.Write(id, func(reason string) (raftstore.Result, error) {
		txn.Reason = reason
		return store.Txn(ctx, txn)
	})
	s.count(err)
	return err
}

func (s *sim) count(err error) {
	if errors.Is(err, raftstore.ErrNoSpace) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.noSpace++
	}
}

// writeOnce is a write with an id, which is sent again, to any peer, as long as its
// outcome is unknown.
func (s *sim) writeOnce(ctx context.Context, id string, store *raftstore.Store, txn raftstore.Txn, r *rand.Rand) {
	s.count(s.h.Write(id, func(reason string) (raftstore.Result, error) {
		txn.Reason, txn.ID = reason, []byte(reason)
		res, err := store.Txn(ctx, txn)
		for n := 0; n < 5 && errors.Is(err, raftstore.ErrOutcomeUnknown); n++ {
			time.Sleep(time.Duration(1+r.IntN(2000)) * time.Millisecond)
			_, store = s.any(r)
			again, cancel := context.WithTimeout(s.ctx, 3*time.Second)
			second, why := store.Txn(again, txn)
			cancel()
			conflict, _ := errors.AsType[*raftstore.ConflictError](why)
			if why == nil || conflict != nil {
				return second, why
			}
		}
		return res, err
	}))
}

// readAged reads what may be old: within bounds, and never older than what the same
// client has seen, on whatever peer.
func (s *sim) readAged(r *rand.Rand) {
	seen := raftstore.Revision(0)
	s.every(300*time.Millisecond, r, func() {
		id, store := s.any(r)
		opts := raftstore.ReadOptions{Consistency: raftstore.Local}
		switch r.IntN(4) {
		case 0:
			opts.MinRevision = seen
		case 1:
		default:
			opts = raftstore.ReadOptions{Consistency: raftstore.Bounded, MaxAge: time.Duration(100+r.IntN(3000)) * time.Millisecond, MinRevision: seen * r.Int64N(2)}
		}
		ctx, cancel := context.WithTimeout(s.ctx, 3*time.Second)
		defer cancel()
		rev, err := s.h.ReadAs(id, randomPrefix(r), opts, func() (raftstore.View, time.Duration, error) { return store.Read(ctx, opts) })
		if err == nil {
			seen = max(seen, rev)
		}
	})
}

// holdLeases makes one lease after the other, with keys, keeps it alive for a while,
// from any peer, and lets it end, or ends it.
func (s *sim) holdLeases(worker int, r *rand.Rand) {
	n := int64(worker) << 32
	s.every(time.Second, r, func() {
		n++
		lease, ttl := n, time.Second+time.Duration(r.Int64N(int64(maxTTL-time.Second)))
		ttl = ttl.Truncate(time.Millisecond)
		ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
		id, store := s.any(r)
		err := s.write(ctx, id, store, raftstore.Txn{Then: []raftstore.Op{
			raftstore.GrantLease(lease, ttl),
			raftstore.PutWith(fmt.Sprintf("lease/%d", lease), nil, raftstore.PutOptions{Lease: lease}),
			raftstore.PutWith(fmt.Sprintf("k/%02d", r.IntN(simKeys)), []byte("leased"), raftstore.PutOptions{Lease: lease}),
		}})
		cancel()
		if err != nil {
			return
		}
		kept := s.h.Lease(lease, ttl)
		for range r.IntN(12) {
			select {
			case <-s.done:
				return
			case <-time.After(time.Duration(r.Int64N(int64(ttl)))):
			}
			_, store := s.any(r)
			ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second)
			err := kept.KeepAlive(func() error {
				_, err := store.KeepAlive(ctx, lease)
				return err
			})
			cancel()
			if errors.Is(err, raftstore.ErrLeaseNotFound) {
				return
			}
		}
		if r.IntN(4) == 0 {
			ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
			defer cancel()
			id, store := s.any(r)
			_ = s.write(ctx, id, store, raftstore.Txn{Then: []raftstore.Op{raftstore.RevokeLease(lease)}})
		}
	})
}

func randomTxn(r *rand.Rand, view raftstore.View) raftstore.Txn {
	key := func() string { return fmt.Sprintf("k/%02d", r.IntN(simKeys)) }
	value := func() []byte { return []byte(strings.Repeat(string(rune('a'+r.IntN(26))), r.IntN(120))) }
	a, b := key(), key()
	for a == b {
		b = key()
	}
	kv, _ := view.Get(a)
	switch r.IntN(14) {
	case 0, 1, 2:
		return raftstore.Txn{Then: []raftstore.Op{raftstore.Put(a, value())}}
	case 3:
		return raftstore.Txn{Then: []raftstore.Op{raftstore.Delete(a), raftstore.Get(b)}}
	case 4, 5:
		return raftstore.Txn{If: []raftstore.Compare{raftstore.ModIs(a, kv.Mod)}, Then: []raftstore.Op{raftstore.Put(a, value())}}
	case 6:
		return raftstore.Txn{
			If:   []raftstore.Compare{raftstore.ModIs(a, kv.Mod), raftstore.Present(b)},
			Then: []raftstore.Op{raftstore.Put(a, value()), raftstore.Delete(b)},
			Else: []raftstore.Op{raftstore.GetPrefix("k/", int64(r.IntN(5)))},
		}
	case 7:
		return raftstore.Txn{If: []raftstore.Compare{raftstore.Absent(a)}, Then: []raftstore.Op{raftstore.Put(a, value())}, Else: []raftstore.Op{raftstore.Delete(a)}}
	case 8:
		return raftstore.Txn{Then: []raftstore.Op{raftstore.GetPrefix("k/", 0), raftstore.DeletePrefix("k/1"), raftstore.Put(fmt.Sprintf("k/0%d", r.IntN(10)), value())}}
	case 9:
		return raftstore.Txn{Then: []raftstore.Op{raftstore.GetPrefix("k/0", 3)}}
	case 10, 11: // the inner compares see the state before the outer puts
		return raftstore.Txn{
			If: []raftstore.Compare{raftstore.Present(b)},
			Then: []raftstore.Op{raftstore.Put(a, value()), raftstore.Nested(raftstore.Txn{
				If:   []raftstore.Compare{raftstore.ModIs(a, kv.Mod)},
				Then: []raftstore.Op{raftstore.Get(a), raftstore.Put(b, value())},
				Else: []raftstore.Op{raftstore.Delete(b)},
			})},
			Else: []raftstore.Op{raftstore.Nested(raftstore.Txn{Then: []raftstore.Op{raftstore.GetPrefix("k/", 2), raftstore.Put(b, value())}})},
		}
	default:
		return raftstore.Txn{Then: []raftstore.Op{raftstore.Put(a, value()), raftstore.Get(a), raftstore.Put(b, value())}}
	}
}

// watch follows prefix over one peer after the other, as a client that reconnects.
func (s *sim) watch(prefix string, r *rand.Rand) {
	rec := s.h.Watch(prefix)
	pos := int64(0)
	for {
		id, store := s.any(r)
		w := store.Watch(prefix, pos)
		for turns := 5 + r.IntN(60); turns > 0; turns-- {
			ctx, cancel := context.WithTimeout(s.ctx, time.Second)
			events, upTo, err := w.Next(ctx)
			cancel()
			rec.Turn(id, pos, events, upTo, err)
			if errors.Is(err, raftstore.ErrCompacted) {
				// List again, on a peer that has the newest; the watch goes on there.
				view, err := store.Sync(s.ctx)
				if err == nil {
					pos = view.Revision()
				}
				break
			}
			pos = upTo
			if errors.Is(err, raftstore.ErrClosed) {
				break
			}
		}
		select {
		case <-s.done:
			return
		case <-time.After(time.Duration(r.IntN(1000)) * time.Millisecond):
		}
	}
}

// leads runs leader's work on p's process: writes that only the leader of a term
// may make.
func (s *sim) leads(p *storetest.Peer) {
	store := p.Store
	s.stores = append(s.stores, store)
	s.load.Go(func() {
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			select {
			case <-s.done:
			case <-stop:
			}
			cancel()
		}()
		_ = store.Lead(ctx, func(ctx context.Context, l *raftstore.Leader) error {
			for n := 0; ctx.Err() == nil; n++ {
				_ = s.h.Write(p.ID, func(reason string) (raftstore.Result, error) {
					return l.Txn(ctx, raftstore.Txn{
						Then:   []raftstore.Op{raftstore.Put("k/leader", fmt.Appendf(nil, "%s in %d", p.ID, l.Term()))},
						Reason: reason,
					})
				})
				select {
				case <-ctx.Done():
				case <-time.After(400 * time.Millisecond):
				}
			}
			return nil
		})
	})
}

// serves demands that p writes, reads and watches. It is false when that must be tried
// again, since the load discarded the history of what was written.
func (s *sim) serves(ctx context.Context, p *storetest.Peer) bool {
	var rev int64
	for {
		err := s.h.Write(p.ID, func(reason string) (raftstore.Result, error) {
			txn := put("k/last", p.ID)
			txn.Reason = reason
			res, err := p.Store.Txn(ctx, txn)
			rev = res.Revision
			return res, err
		})
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			s.h.Violate("P9: write on %s after healing: %v", p.ID, err)
			break
		}
		time.Sleep(10 * time.Millisecond) // an error may come at once
	}
	if err := s.h.Read(p.ID, "k/", func() (raftstore.View, error) { return p.Store.Sync(ctx) }); err != nil {
		s.h.Violate("P9: read on %s after healing: %v", p.ID, err)
	}
	if rev == 0 {
		return true
	}
	events, _, err := p.Store.Watch("k/last", rev-1).Next(ctx)
	if errors.Is(err, raftstore.ErrCompacted) && p.Store.View().Revision() > rev && ctx.Err() == nil {
		return false
	}
	if err != nil || len(events) == 0 || events[0].Revision != rev {
		s.h.Violate("P9: watch on %s after healing: %v, %v", p.ID, events, err)
	}
	return true
}

// heal ends all faults, and sees that each peer then takes writes, answers reads and
// moves watches on within 10 s (P9).
func (s *sim) heal() {
	s.t.Helper()
	s.h.Note("heal")
	for _, p := range s.peers() {
		p.Faults.Clear()
	}
	// A process whose disk has hung for too long, or failed, is about to end: that is
	// how it was meant.
	time.Sleep(dying)
	for _, p := range s.peers() {
		s.revive(p)
	}
	s.fill(s.peers()...)()
	s.membership <- struct{}{}
	defer func() { <-s.membership }()
	if err := s.change(time.Minute); err != nil {
		s.h.Violate("P9: the change of members that was begun cannot be finished after healing: %v", err)
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	for _, p := range s.peers() {
		for !s.serves(ctx, p) { // history was discarded under the watch: again
		}
	}
	took := time.Since(begin)
	s.total.healed = max(s.total.healed, took)
	if took > 10*time.Second {
		s.h.Violate("P9: the cluster needed %v to come back", took)
	}
	s.leaseEnds()
}

// leaseEnds sees that a healthy cluster ends a lease neither early nor late (P5).
func (s *sim) leaseEnds() {
	const ttl = 2 * time.Second
	p := s.random()
	ctx, cancel := context.WithTimeout(s.ctx, 30*time.Second)
	defer cancel()
	info, err := p.Store.GrantLease(ctx, 0, ttl)
	if err == nil {
		err = s.write(ctx, p.ID, p.Store, raftstore.Txn{Then: []raftstore.Op{raftstore.PutWith("lease/last", nil, raftstore.PutOptions{Lease: info.ID})}})
	}
	time.Sleep(ttl / 2)
	leaders := s.c.Leaderships()
	begin := time.Now()
	if err == nil {
		_, err = p.Store.KeepAlive(ctx, info.ID)
	}
	for there := true; there && err == nil; {
		time.Sleep(50 * time.Millisecond)
		var view raftstore.View
		if view, err = p.Store.Sync(ctx); err == nil {
			_, there = view.Get("lease/last")
		}
	}
	if took := time.Since(begin); err != nil || took < ttl || took > ttl+1500*time.Millisecond && s.c.Leaderships() == leaders {
		s.h.Violate("P5: a lease of %v on %s after healing ended after %v: %v", ttl, p.ID, took, err)
	}
}
