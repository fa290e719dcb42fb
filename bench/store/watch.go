package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-io/holdfast/bench/rig"
)

const (
	watchConnections = 10
	watchKey         = "watched"
	watchStreams     = 500 // on one connection
)

// watching opens watchers on one key. Each event of a stamped value adds a latency.
type watching struct {
	began     time.Time // values are stamped with the time since
	received  atomic.Int64
	wanted    atomic.Int64
	all       chan struct{} // closed when as many have come as are wanted
	latencies []stamps
}

// stamps are one watcher's latencies. Its events come one after the other.
type stamps struct {
	mu sync.Mutex
	d  []time.Duration
}

func (w *watching) stamp(size int) []byte {
	value := payload(size)
	binary.BigEndian.PutUint64(value, uint64(time.Since(w.began)))
	return value
}

func (w *watching) event(watcher int, value []byte) {
	took := time.Since(w.began) - time.Duration(binary.BigEndian.Uint64(value))
	s := &w.latencies[watcher]
	s.mu.Lock()
	s.d = append(s.d, took)
	s.mu.Unlock()
	if w.received.Add(1) == w.wanted.Load() {
		close(w.all)
	}
}

// open starts n watchers on conns, some at a time.
func (w *watching) open(ctx context.Context, conns []conn, n int) error {
	w.began, w.all, w.latencies = time.Now(), make(chan struct{}), make([]stamps, n)
	ctxSetup, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	slots := make(chan struct{}, 100)
	for i := range n {
		slots <- struct{}{}
		if ctxSetup.Err() != nil {
			break
		}
		group.Go(func() {
			defer func() { <-slots }()
			if err := conns[i%len(conns)].watch(ctx, []byte(watchKey), func(value []byte) { w.event(i, value) }); err != nil {
				cancel(fmt.Errorf("watcher %d: %w", i, err))
			}
		})
	}
	group.Wait()
	return context.Cause(ctxSetup)
}

func (w *watching) wait(ctx context.Context) error {
	select {
	case <-w.all:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d of %d events came: %w", w.received.Load(), w.wanted.Load(), context.Cause(ctx))
	}
}

func (w *watching) sorted() []time.Duration {
	var all []time.Duration
	for i := range w.latencies {
		w.latencies[i].mu.Lock()
		all = append(all, w.latencies[i].d...)
		w.latencies[i].mu.Unlock()
	}
	slices.Sort(all)
	return all
}

// values describe events that took from begin to now.
func (w *watching) values(s rig.Spent) map[string]float64 {
	t := rig.Timing{Operations: w.received.Load(), Latencies: w.sorted(), Spent: s}
	return t.Values()
}

// watchBurst writes as fast as ten clients can and waits for all events.
func watchBurst(watchers, puts int) func(context.Context, *run, contender) (map[string]float64, rig.Spent, error) {
	return func(ctx context.Context, r *run, c contender) (map[string]float64, rig.Spent, error) {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		s := r.sides[c.side]
		leader, err := s.leader(ctx)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		conns, done, err := connectAll(ctx, s, c.way, watchConnections, leader)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer done()
		writers, doneWriters, err := connectAll(ctx, s, c.way, 10, leader)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer doneWriters()
		w := new(watching)
		if err := w.open(ctx, conns, watchers); err != nil {
			return nil, rig.Spent{}, err
		}
		w.wanted.Store(int64(watchers * puts))
		before := rig.ReadUsage(r.pids())
		var group sync.WaitGroup
		errs := make(chan error, len(writers))
		for _, writer := range writers {
			group.Go(func() {
				for range puts / len(writers) {
					if err := writer.put(ctx, pair{[]byte(watchKey), w.stamp(256)}); err != nil {
						errs <- err
						return
					}
				}
			})
		}
		group.Wait()
		select {
		case err := <-errs:
			return nil, rig.Spent{}, err
		default:
		}
		if err := w.wait(ctx); err != nil {
			return nil, rig.Spent{}, err
		}
		used := rig.ReadUsage(r.pids()).Since(before, s.pids(), s.member(leader).PID())
		return w.values(used), used, nil
	}
}

// watchSteady writes at a rate. With memory, all watchers are on one member, which
// does not lead, and what they cost there is measured before the first put.
func watchSteady(watchers, putsPerSecond int, what string) func(context.Context, *run, contender) (map[string]float64, rig.Spent, error) {
	return func(ctx context.Context, r *run, c contender) (map[string]float64, rig.Spent, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		s := r.sides[c.side]
		leader, err := s.leader(ctx)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		at := leader
		if what == "memory" {
			at = (leader + 1) % members
		}
		conns, done, err := connectAll(ctx, s, c.way, max(watchConnections, watchers/watchStreams), at)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer done()
		writers, doneWriter, err := connectAll(ctx, s, c.way, 1, leader)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer doneWriter()
		empty, err := rig.MemoryOf(s.member(at).PID())
		if err != nil {
			return nil, rig.Spent{}, err
		}
		w := new(watching)
		if err := w.open(ctx, conns, watchers); err != nil {
			return nil, rig.Spent{}, err
		}
		extra := map[string]float64{}
		if what == "memory" {
			// Until its garbage collector has been around, a member holds what it
			// needed to set the watchers up.
			quiet := rig.ReadUsage(r.pids())
			if err := rig.Pause(ctx, r.scale.measure*2); err != nil {
				return nil, rig.Spent{}, err
			}
			idle := rig.ReadUsage(r.pids()).Since(quiet, s.pids(), s.member(at).PID())
			open, err := rig.MemoryOf(s.member(at).PID())
			if err != nil {
				return nil, rig.Spent{}, err
			}
			extra["memory of each watcher KiB"] = float64(open.Anonymous-empty.Anonymous) / 1024 / float64(watchers)
			extra["quiet CPU of the member %"] = 100 * float64(idle.Leader) / float64(idle.Wall)
		}
		puts := max(1, int((r.scale.measure*2).Seconds()*float64(putsPerSecond)))
		w.wanted.Store(int64(puts * watchers))
		before := rig.ReadUsage(r.pids())
		// At fixed times, whether the last put is answered or not.
		var group sync.WaitGroup
		errs := make(chan error, puts)
		begin := time.Now()
		for i := range puts {
			_ = rig.Pause(ctx, time.Until(begin.Add(time.Duration(i)*time.Second/time.Duration(putsPerSecond))))
			group.Go(func() {
				if err := writers[0].put(ctx, pair{[]byte(watchKey), w.stamp(256)}); err != nil {
					errs <- err
				}
			})
		}
		group.Wait()
		select {
		case err := <-errs:
			return nil, rig.Spent{}, err
		default:
		}
		if err := w.wait(ctx); err != nil {
			return nil, rig.Spent{}, err
		}
		used := rig.ReadUsage(r.pids()).Since(before, s.pids(), s.member(leader).PID())
		values := w.values(used)
		for name, v := range extra {
			values[name] = v
		}
		return values, used, nil
	}
}
