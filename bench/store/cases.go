package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-io/holdfast/bench/rig"
)

// contender is a store and the way to call it.
type contender struct {
	name, side, way string
	// operations is the size of a transaction, in the cases that have them.
	operations int
}

var (
	etcdUnary       = contender{name: "etcd", side: "etcd", way: unary}
	holdfastUnary   = contender{name: "unary", side: "holdfast", way: unary}
	holdfastSession = contender{name: "session", side: "holdfast", way: session}
	allWays         = []contender{etcdUnary, holdfastUnary, holdfastSession}
	bothSides       = []contender{etcdUnary, holdfastUnary}
)

// testCase is one thing to measure. run measures one contender once.
type testCase struct {
	name        string
	contenders  []contender
	repetitions int // at most; 0: as many as asked for
	// clusters says which clusters it runs on, lest one case disturb another.
	clusters string
	run      func(ctx context.Context, r *run, c contender) (map[string]float64, rig.Spent, error)
}

// Clusters: one that most cases share, one with a slow disk, and new ones.
const (
	shared = "shared"
	slow   = "slow disk"
	own    = "own"
)

// scale is how much of everything.
type scale struct {
	warmUp, measure time.Duration
	clients         []int
	keys            int // of the large case
	kills           int
	watchers        int // of the case with many
}

var (
	fullScale  = scale{warmUp: 500 * time.Millisecond, measure: 2 * time.Second, clients: []int{1, 10, 100, 1000}, keys: 1_000_000, kills: 20, watchers: 10_000}
	quickScale = scale{warmUp: 100 * time.Millisecond, measure: 300 * time.Millisecond, clients: []int{1, 100}, keys: 10_000, kills: 1, watchers: 500}
)

const (
	keySpace    = 100_000
	readKeys    = 10_000
	connections = 100 // at most; clients share them
)

func (s scale) cases() []testCase {
	var out []testCase
	for _, size := range []int{256, 2048} {
		for _, clients := range s.clients {
			out = append(out, testCase{
				name: fmt.Sprintf("put %d B, %d clients", size, clients), contenders: allWays, clusters: shared, run: puts(size, clients),
			})
		}
	}
	out = append(out, testCase{name: "put 256 B in transactions, 32 clients", clusters: shared, run: batches(256, 32), contenders: []contender{
		{"etcd 64", "etcd", unary, 64},
		{"etcd 128", "etcd", unary, 128},
		{"unary 64", "holdfast", unary, 64},
		{"unary 512", "holdfast", unary, 512},
		{"session 64", "holdfast", session, 64},
		{"session 512", "holdfast", session, 512},
	}})
	for _, how := range []string{"linearizable", "local"} {
		for _, clients := range s.clients {
			if clients != 10 {
				out = append(out, testCase{
					name: fmt.Sprintf("read %s, all members, %d clients", how, clients), contenders: allWays, clusters: shared,
					run: reads(clients, how == "linearizable"),
				})
			}
		}
	}
	many := s.clients[len(s.clients)-1]
	out = append(
		out,
		testCase{name: fmt.Sprintf("watch burst, 500 puts, %d watchers", many), contenders: bothSides, clusters: shared, run: watchBurst(many, 500)},
		testCase{name: "watch steady, 100 watchers, 500 puts/s", contenders: bothSides, clusters: shared, run: watchSteady(100, 500, "")},
	)
	if many >= 1000 {
		out = append(out, testCase{name: "watch steady, 1000 watchers, 50 puts/s", contenders: bothSides, clusters: shared, run: watchSteady(1000, 50, "")})
	}
	out = append(out, testCase{
		name: fmt.Sprintf("watch many, %d watchers on one member, 5 puts/s", s.watchers), contenders: bothSides, clusters: own, repetitions: 1,
		run: watchSteady(s.watchers, 5, "memory"),
	})
	for _, clients := range s.clients {
		if clients != 10 {
			out = append(out, testCase{name: fmt.Sprintf("put 256 B, fsync 2 ms slower, %d clients", clients), contenders: allWays, clusters: slow, run: puts(256, clients)})
		}
	}
	out = append(out, s.logCases()...)
	return append(
		out,
		testCase{name: "leader killed", contenders: bothSides, clusters: own, repetitions: 1, run: failover},
		testCase{name: fmt.Sprintf("%d keys of 1 KiB", s.keys), contenders: bothSides, clusters: own, repetitions: 1, run: large},
	)
}

// payload returns size bytes that do not compress, the same each time.
func payload(size int) []byte {
	random := rand.NewChaCha8([32]byte{'b', 'e', 'n', 'c', 'h'})
	b := make([]byte, size)
	_, _ = random.Read(b)
	return b
}

func key(n int64) []byte { return fmt.Appendf(nil, "key-%012d", n) }

// connectAll makes as many connections as clients need, to members in turn.
func connectAll(ctx context.Context, s side, way string, clients int, to ...int) ([]conn, func(), error) {
	n := min(clients, connections)
	conns := make([]conn, n)
	var group sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		group.Go(func() { conns[i], errs[i] = s.dial(ctx, way, to[i%len(to)]) })
	}
	group.Wait()
	closeAll := func() {
		for _, c := range conns {
			if c != nil {
				c.close()
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		closeAll()
		return nil, nil, err
	}
	return conns, closeAll, nil
}

// perform runs a load against the leader of a contender's side.
func (r *run) perform(ctx context.Context, c contender, s side, leader int, l rig.Load) (map[string]float64, rig.Spent, error) {
	t, err := l.Run(ctx, r.pids(), s.pids(), s.member(leader).PID())
	if err != nil {
		return nil, t.Spent, err
	}
	return t.Values(), t.Spent, nil
}

func puts(size, clients int) func(context.Context, *run, contender) (map[string]float64, rig.Spent, error) {
	return func(ctx context.Context, r *run, c contender) (map[string]float64, rig.Spent, error) {
		s := r.sides[c.side]
		leader, err := s.leader(ctx)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		conns, done, err := connectAll(ctx, s, c.way, clients, leader)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer done()
		value := payload(size)
		return r.perform(ctx, c, s, leader, rig.Load{
			Clients: clients, WarmUp: r.scale.warmUp, Measure: r.scale.measure,
			Call: func(ctx context.Context, client int, n int64) (int, error) {
				return 1, conns[client%len(conns)].put(ctx, pair{key(n % keySpace), value})
			},
		})
	}
}

func batches(size, clients int) func(context.Context, *run, contender) (map[string]float64, rig.Spent, error) {
	return func(ctx context.Context, r *run, c contender) (map[string]float64, rig.Spent, error) {
		s := r.sides[c.side]
		leader, err := s.leader(ctx)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		conns, done, err := connectAll(ctx, s, c.way, clients, leader)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer done()
		value := payload(size)
		return r.perform(ctx, c, s, leader, rig.Load{
			Clients: clients, WarmUp: r.scale.warmUp, Measure: r.scale.measure,
			Call: func(ctx context.Context, client int, n int64) (int, error) {
				return c.operations, conns[client%len(conns)].putAll(ctx, pairsFrom(n*int64(c.operations), c.operations, keySpace, value))
			},
		})
	}
}

// pairsFrom returns count pairs, their keys numbered from first on.
func pairsFrom(first int64, count int, space int64, value []byte) []pair {
	pairs := make([]pair, count)
	for i := range pairs {
		pairs[i] = pair{key((first + int64(i)) % space), value}
	}
	return pairs
}

// fill puts keys 0 to count, in transactions, with some clients at once.
func fill(ctx context.Context, s side, way string, leader, count, operations int, value []byte) error {
	const clients = 16
	conns, done, err := connectAll(ctx, s, way, clients, leader)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var group sync.WaitGroup
	for _, c := range conns {
		group.Go(func() {
			for ctx.Err() == nil {
				first := next.Add(int64(operations)) - int64(operations)
				n := min(operations, count-int(first))
				if n <= 0 {
					return
				}
				callCtx, done := context.WithTimeout(ctx, rig.CallTimeout)
				err := c.putAll(callCtx, pairsFrom(first, n, int64(count), value))
				done()
				if err != nil {
					cancel(err)
				}
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

func reads(clients int, linearizable bool) func(context.Context, *run, contender) (map[string]float64, rig.Spent, error) {
	return func(ctx context.Context, r *run, c contender) (map[string]float64, rig.Spent, error) {
		s := r.sides[c.side]
		leader, err := s.leader(ctx)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		if !r.filled[c.side] {
			if err := fill(ctx, s, unary, leader, readKeys, 64, payload(256)); err != nil {
				return nil, rig.Spent{}, err
			}
			r.filled[c.side] = true
		}
		conns, done, err := connectAll(ctx, s, c.way, clients, 0, 1, 2)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		defer done()
		return r.perform(ctx, c, s, leader, rig.Load{
			Clients: clients, WarmUp: r.scale.warmUp, Measure: r.scale.measure,
			Call: func(ctx context.Context, client int, n int64) (int, error) {
				return 1, conns[client%len(conns)].get(ctx, key(n*7919%readKeys), linearizable)
			},
		})
	}
}

// sortedMillis turns durations into sorted milliseconds.
func sortedMillis(ds []time.Duration) []float64 {
	out := make([]float64, len(ds))
	for i, d := range ds {
		out[i] = rig.Milliseconds(d)
	}
	slices.Sort(out)
	return out
}
