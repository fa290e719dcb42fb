//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest/history"
)

const (
	// liveWithin is how long a healed cluster may take to serve on every peer.
	liveWithin = 10 * time.Second
	// caughtUpWithin is how long a peer may take until it has all of the log again.
	caughtUpWithin = 60 * time.Second
)

// options are how rows are played.
type options struct {
	binary  string
	old     string        // the binary of an older version, for row 19
	dir     string        // of the cluster
	keep    string        // where failures leave what they had
	seconds time.Duration // of faults
	rate    int           // operations a second
	seed    uint64
	log     io.Writer
}

// row is a row of the fault matrix.
type row struct {
	number  int
	name    string
	peers   int  // 0: three
	elect   bool // another leader is intended
	pad     int  // bytes of a value, about; 0: 128
	prepare func(*machine) error
	play    func(ctx context.Context, e *experiment) error
	// after goes on once the load has ended, with a cluster that has all of it.
	after func(ctx context.Context, e *experiment) error
	old   bool // begins with the older version
}

// experiment is one play of a row.
type experiment struct {
	*cluster
	opts options
	load *load
	rec  *history.Recorder
	rand *rand.Rand

	fired   int
	values  []value
	failed  []string
	changes atomic.Int64 // of the leader, as clients saw it
	endLoad func()
	witness *follower
	watches []*follower
}

// value is a measurement.
type value struct {
	name   string
	amount float64
	unit   string
}

// result is what is printed of an experiment.
type result struct {
	row           row
	ops, writes   int64
	fired         int
	leaderChanges int64
	gap           time.Duration
	stats         history.Stats
	values        []value
	failed        []string
	took          time.Duration
}

// strike counts faults that really struck.
func (e *experiment) strike(n int, what string) {
	e.fired += n
	e.rec.Note("%s (%d)", what, n)
	fmt.Fprintf(e.opts.log, "    %s (%d)\n", what, n)
}

func (e *experiment) note(format string, args ...any) {
	e.rec.Note(format, args...)
	fmt.Fprintf(e.opts.log, "    %s\n", fmt.Sprintf(format, args...))
}

func (e *experiment) measure(name string, d time.Duration) {
	e.values = append(e.values, value{name, float64(d.Microseconds()) / 1000, "ms"})
}

func (e *experiment) fail(format string, args ...any) {
	e.failed = append(e.failed, fmt.Sprintf(format, args...))
}

// sleep waits; it returns early when ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// play runs a row once. An error says that nothing could be found out.
func play(ctx context.Context, r row, opts options) (_ result, err error) {
	begin := time.Now()
	peers := max(r.peers, 3)
	if r.peers == 1 {
		peers = 1
	}
	binary := opts.binary
	if r.old {
		binary = opts.old
	}
	c, err := newCluster(ctx, opts.dir, binary, peers, r.prepare)
	if err != nil {
		return result{}, err
	}
	e := &experiment{cluster: c, opts: opts, rec: history.New(), rand: rand.New(rand.NewPCG(opts.seed, uint64(r.number)))}
	var all sync.WaitGroup
	background, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		all.Wait()
		if e.witness != nil {
			e.witness.client.Close()
		}
		for _, w := range e.watches {
			w.client.Close()
		}
		err = errors.Join(err, c.close(), c.sweep(context.WithoutCancel(ctx)))
	}()
	e.load = newLoad(c, e.rec, opts.rate)
	if r.pad > 0 {
		e.load.pad = r.pad
	}

	var history []raftstore.Event // what the witness sees
	base, err := e.base(ctx)
	if err != nil {
		return result{}, err
	}
	e.witness = &follower{peer: "any", client: c.dial(c.all()...), record: e.rec.Watch(""), all: true, after: base, seen: func(events []raftstore.Event) {
		history = append(history, events...)
	}}
	witnessDone := make(chan struct{})
	all.Go(func() { defer close(witnessDone); e.witness.run(background) })
	for i := range 3 * len(c.all()) {
		machines := c.all()
		m := machines[i%len(machines)]
		prefix := hotPrefix
		if i >= 2*len(machines) {
			prefix = leasePrefix
		}
		f := &follower{peer: m.name(), client: c.dial(m), record: e.rec.Watch(userPrefix + prefix), prefix: prefix, after: base}
		if i >= len(machines) {
			f.client.SetPeers(append([]string{m.spec.APIAddress()}, machines[(i+1)%len(machines)].spec.APIAddress()))
		}
		e.watches = append(e.watches, f)
		all.Go(func() { f.run(background) })
	}
	all.Go(func() { e.pollLeader(background) })

	loading, endLoad := context.WithCancel(background)
	loadDone := make(chan struct{})
	all.Go(func() { defer close(loadDone); e.load.run(loading, opts.seed) })
	e.endLoad = func() { endLoad(); <-loadDone }

	playErr := func() error {
		defer e.endLoad()
		warm := func(context.Context) error {
			if e.load.writes.Load() < 50 {
				return errors.New("too few writes")
			}
			return nil
		}
		if err := eventually(ctx, 20*time.Second, "load", warm); err != nil {
			return err
		}
		e.load.mu.Lock()
		e.load.gap = 0 // of the start
		e.load.mu.Unlock()
		before := e.changes.Load()
		if err := r.play(ctx, e); err != nil {
			return fmt.Errorf("row %d: %w", r.number, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := e.mend(ctx); err != nil {
			return err
		}
		e.note("healed")
		if err := e.alive(ctx); err != nil {
			e.fail("P9: %v", err)
		}
		if err := e.leaseEnds(ctx, e.all()[e.rand.IntN(len(e.all()))]); err != nil {
			e.fail("P5, P9: %v", err)
		}
		if r.elect && e.changes.Load() == before {
			e.fail("P11: no other leader was seen, and one was intended")
		}
		return nil
	}()
	if ctx.Err() != nil {
		return result{}, context.Cause(ctx)
	}
	if playErr != nil {
		e.fail("%v", playErr)
	} else {
		if err := e.finish(ctx, base); err != nil {
			e.fail("%v", err)
		}
	}
	cancel()
	all.Wait()
	if r.after != nil && playErr == nil {
		if err := r.after(ctx, e); err != nil {
			e.fail("row %d: %v", r.number, err)
		}
	}
	if playErr == nil {
		e.commit(base, history)
	}
	res := result{
		row: r, ops: e.load.ops.Load(), writes: e.load.writes.Load(), fired: e.fired,
		leaderChanges: e.changes.Load(), gap: e.load.gap, values: e.values, took: time.Since(begin),
	}
	if playErr == nil {
		var broken []string
		res.stats, broken = e.rec.Check()
		e.failed = append(e.failed, broken...)
		if st := res.stats; st.Acked == 0 || st.Reads == 0 || st.Events == 0 || st.KeptAlive == 0 || st.Expired == 0 {
			e.fail("P11: nothing was checked: %+v", st)
		}
	}
	if e.fired == 0 && playErr == nil {
		e.fail("P11: no fault struck")
	}
	if least := int64(opts.seconds.Seconds()) * int64(opts.rate) / 10; res.writes < least/2 && playErr == nil {
		e.fail("P11: only %d writes were acknowledged, want %d", res.writes, least/2)
	}
	if res.failed = e.failed; len(res.failed) > 0 {
		e.keepAll()
	}
	return res, nil
}

// base records what there is before the load begins.
func (e *experiment) base(ctx context.Context) (rev int64, err error) {
	err = eventually(ctx, 20*time.Second, "first read", func(ctx context.Context) error {
		res, err := storev1connect.NewStoreServiceClient(e.all()[0].client.Connect()).Range(ctx, &storev1.RangeRequest{RangeEnd: []byte(allRangeEnd), AllKeys: true})
		if err != nil {
			return err
		}
		if res.GetMore() {
			return errors.New("more keys than a message holds before there was any load")
		}
		rev = res.GetHeader().GetRevision()
		e.rec.Base(rev, keysOf(res.GetKvs(), ""))
		return nil
	})
	return rev, err
}

// status asks one peer, briefly.
func (m *machine) status(ctx context.Context) (*storev1.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	return storev1connect.NewStoreServiceClient(m.client.Connect()).Status(ctx, &storev1.StatusRequest{})
}

// leader returns who leads, by the word of the peer with the highest term that says
// it does itself.
func (e *experiment) leader(ctx context.Context) (leader *machine, err error) {
	err = eventually(ctx, 20*time.Second, "leader", func(ctx context.Context) error {
		var term uint64
		leader = nil
		for _, m := range e.all() {
			m.mu.Lock()
			off := m.paused || m.program == nil || closed(m.program.Done())
			m.mu.Unlock()
			if off {
				continue
			}
			if st, err := m.status(ctx); err == nil && st.GetLeader() == m.name() && st.GetHeader().GetTerm() > term {
				leader, term = m, st.GetHeader().GetTerm()
			}
		}
		if leader == nil {
			return errors.New("nobody leads")
		}
		return nil
	})
	return leader, err
}

// pollLeader counts changes of the leader.
func (e *experiment) pollLeader(ctx context.Context) {
	var last string
	var highest uint64
	for ctx.Err() == nil {
		for _, m := range e.all() {
			m.mu.Lock()
			off := m.paused || m.client == nil
			m.mu.Unlock()
			if off {
				continue
			}
			st, err := m.status(ctx)
			if err != nil || st.GetLeader() != m.name() || st.GetHeader().GetTerm() <= highest {
				continue
			}
			highest = st.GetHeader().GetTerm()
			if last != "" {
				e.changes.Add(1)
				e.rec.Note("%s leads in term %d", m.name(), highest)
			}
			last = m.name()
		}
		sleep(ctx, 200*time.Millisecond)
	}
}

// mend ends all faults that are still in force and starts what has ended.
func (e *experiment) mend(ctx context.Context) error {
	if _, err := e.heal(); err != nil {
		return err
	}
	for _, m := range e.all() {
		m.mu.Lock()
		paused := m.paused
		m.mu.Unlock()
		if paused {
			if err := m.resume(); err != nil {
				return err
			}
		}
		if m.running() {
			if _, err := m.fault(ctx, "clear"); err != nil && m.running() {
				return err
			}
		}
		if m.cgroup != "" && m.running() {
			if err := m.feed(); err != nil {
				return err
			}
		}
	}
	var starts sync.WaitGroup
	var failures sync.Map
	for _, m := range e.all() {
		if !m.running() {
			starts.Go(func() {
				if err := m.restart(ctx); err != nil {
					failures.Store(m.name(), err)
				}
			})
		}
	}
	starts.Wait()
	var err error
	failures.Range(func(_, v any) bool { err = errors.Join(err, v.(error)); return true })
	return err
}

// alive demands a write, a read and an event from every peer.
func (e *experiment) alive(ctx context.Context) error {
	begin := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, len(e.all()))
	for i, m := range e.all() {
		wg.Go(func() {
			errs[i] = eventually(ctx, liveWithin, "answers of "+m.name(), func(ctx context.Context) error {
				w := &worker{load: e.load, name: "live", peer: m.name(), rand: rand.New(rand.NewPCG(1, uint64(i))), client: m.client, store: storev1connect.NewStoreServiceClient(m.client.Connect())}
				key := "live/" + m.name()
				var value []byte
				var rev int64
				err := w.write(ctx, func(id string) *raftv1.Txn {
					value = w.value(id)
					return &raftv1.Txn{Then: []*raftv1.Op{putOp(key, value)}}
				}, func(ctx context.Context, _ string) (raftstore.Result, error) {
					res, err := w.store.Put(ctx, &storev1.PutRequest{Key: []byte(key), Value: value, PrevKv: true})
					rev = res.GetHeader().GetRevision()
					return raftstore.Result{Revision: rev, Succeeded: true, Ops: []*raftv1.OpResult{putResult(res)}}, err
				})
				if err != nil {
					return fmt.Errorf("write: %w", err)
				}
				res, err := w.store.Range(ctx, &storev1.RangeRequest{Key: []byte(key)})
				if err != nil {
					return fmt.Errorf("read: %w", err)
				}
				if len(res.GetKvs()) != 1 || !bytes.Equal(res.GetKvs()[0].GetValue(), value) {
					e.rec.Violate("P1: %s does not show %s as it was just written at revision %d", m.name(), key, rev)
				}
				return e.sees(ctx, m, key, rev)
			})
		})
	}
	wg.Wait()
	e.measure("live", time.Since(begin))
	return errors.Join(errs...)
}

// sees watches key on m until it has the event of rev.
func (e *experiment) sees(ctx context.Context, m *machine, key string, rev int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &follower{peer: m.name(), client: m.client, prefix: key, after: rev - 1}
	found := false
	f.seen = func(events []raftstore.Event) {
		for _, ev := range events {
			if ev.Revision == rev {
				found = true
				cancel()
			}
		}
	}
	f.stream(ctx)
	if !found {
		return fmt.Errorf("watch: no event of revision %d", rev)
	}
	return nil
}

// finish waits until every peer and watcher has all of it, and compares the peers.
func (e *experiment) finish(ctx context.Context, base int64) error {
	any := storev1connect.NewStoreServiceClient(e.witness.client.Connect())
	err := eventually(ctx, endsWithin, "end of all leases", func(ctx context.Context) error {
		n, err := leases(ctx, any)
		if err == nil && n > 0 {
			err = fmt.Errorf("%d keys of leases are there, which nobody keeps alive", n)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("P5: %w", err)
	}
	var last int64
	err = eventually(ctx, 20*time.Second, "last read", func(ctx context.Context) error {
		res, err := any.Range(ctx, &storev1.RangeRequest{RangeEnd: []byte(allRangeEnd), AllKeys: true, CountOnly: true})
		last = res.GetHeader().GetRevision()
		return err
	})
	if err != nil {
		return fmt.Errorf("P9: %w", err)
	}
	// At equal indexes states are equal.
	err = eventually(ctx, caughtUpWithin, "equal state of all peers", func(ctx context.Context) error {
		var first *storev1.StatusResponse
		for _, m := range e.all() {
			st, err := m.status(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", m.name(), err)
			}
			if first == nil {
				first = st
			}
			switch {
			case st.GetHeader().GetRevision() < last:
				return fmt.Errorf("%s is at revision %d of %d", m.name(), st.GetHeader().GetRevision(), last)
			case st.GetAppliedIndex() != first.GetAppliedIndex():
				return fmt.Errorf("%s is at index %d, another at %d", m.name(), st.GetAppliedIndex(), first.GetAppliedIndex())
			case !bytes.Equal(st.GetHash(), first.GetHash()) || st.GetHeader().GetRevision() != first.GetHeader().GetRevision():
				e.rec.Violate("P7: at index %d the state of %s differs", st.GetAppliedIndex(), m.name())
			case len(st.GetAlarms()) > 0:
				return fmt.Errorf("%s says: %s", m.name(), strings.Join(st.GetAlarms(), "; "))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("P9: %w", err)
	}
	for _, f := range append([]*follower{e.witness}, e.watches...) {
		if f.client.SetPeers(addresses(e.all(), f.peer)); f.gone() {
			continue // the row compacts history, and it was late
		}
		if err := f.until(ctx, last, 20*time.Second); err != nil {
			return fmt.Errorf("P9: %w", err)
		}
	}
	// Each peer must tell the same history, as far back as it goes.
	for _, m := range e.all() {
		st, err := m.status(ctx)
		if err != nil {
			return fmt.Errorf("P9: %s: %w", m.name(), err)
		}
		if base < st.GetHorizon() {
			base = st.GetHorizon()
			e.rec.CompactedTo(base)
		}
		f := &follower{peer: m.name(), client: m.client, record: e.rec.Watch(""), all: true, after: base}
		reading, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() { defer close(ended); f.stream(reading) }()
		err = eventually(ctx, 20*time.Second, "history of "+m.name(), func(context.Context) error {
			if f.position() < last && !closed(ended) {
				return fmt.Errorf("it is at %d of %d", f.position(), last)
			}
			return nil
		})
		cancel()
		<-ended
		if err != nil {
			return fmt.Errorf("P4: %w", err)
		}
	}
	return nil
}

// addresses are those of the machine with this name, or of all if there is none.
func addresses(machines []*machine, name string) (list []string) {
	for _, m := range machines {
		if m.name() == name {
			return []string{m.spec.APIAddress()}
		}
		list = append(list, m.spec.APIAddress())
	}
	return list
}

// commit turns what the witness saw into entries of the recorder's log: for our own
// writes with what the client meant, for others with what they did.
func (e *experiment) commit(base int64, events []raftstore.Event) {
	for rev := base + 1; len(events) > 0; rev++ {
		n := 0
		for n < len(events) && events[n].Revision == events[0].Revision {
			n++
		}
		if events[0].Revision != rev {
			e.rec.Violate("P4: the watch of all keys has revision %d after %d", events[0].Revision, rev-1)
			return
		}
		id := e.load.idOf(events[:n])
		t := e.load.intended[id]
		if t == nil {
			t = &raftv1.Txn{Reason: fmt.Sprintf("foreign-%d", rev)}
			for _, ev := range events[:n] {
				op := &raftv1.Op{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: ev.Key}}}
				if ev.Type == raftstore.EventPut {
					op = &raftv1.Op{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: ev.Key, Value: ev.KV.Value}}}
				}
				t.Then = append(t.Then, op)
			}
		}
		if err := e.rec.Committed(rev, t); err != nil {
			e.fail("%v", err)
			return
		}
		events = events[n:]
	}
}

// keepAll copies history and logs to where people find them.
func (e *experiment) keepAll() {
	dir := e.opts.keep
	if err := os.MkdirAll(dir, 0o755); err != nil {
		fmt.Fprintf(os.Stderr, "nothing was kept: %v\n", err)
		return
	}
	if f, err := os.Create(filepath.Join(dir, "history")); err == nil {
		for _, why := range e.failed {
			fmt.Fprintln(f, "failed:", why)
		}
		_ = e.rec.Dump(f)
		_ = f.Close()
	}
	for _, m := range e.all() {
		_ = exec.Command("cp", e.driver.Log(m.spec), dir+"/").Run()
	}
	fmt.Fprintf(os.Stderr, "what failed is kept in %s\n", dir)
}
