package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// load is a closed loop: each client makes its next call when the last is answered.
type load struct {
	clients int
	warmUp  time.Duration
	measure time.Duration
	// call makes the nth call of all. It returns how many operations it was.
	call func(ctx context.Context, client int, n int64) (operations int, err error)
}

// timing is what a load measured.
type timing struct {
	operations int64
	latencies  []time.Duration // of calls, sorted
	spent      spent
}

// run runs the load. Latencies and operations count between the readings of the
// CPU clocks only.
func (l load) run(ctx context.Context, watched, servers []int, leader int) (timing, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next, operations atomic.Int64
		counting, ended  atomic.Bool
		workers          sync.WaitGroup
		latencies        = make([][]time.Duration, l.clients)
	)
	for i := range l.clients {
		workers.Go(func() {
			for !ended.Load() && ctx.Err() == nil {
				callCtx, done := context.WithTimeout(ctx, callTimeout)
				begin := time.Now()
				n, err := l.call(callCtx, i, next.Add(1)-1)
				took := time.Since(begin)
				done()
				if err != nil {
					cancel(fmt.Errorf("client %d: %w", i, err))
					return
				}
				if counting.Load() {
					operations.Add(int64(n))
					latencies[i] = append(latencies[i], took)
				}
			}
		})
	}
	_ = pause(ctx, l.warmUp)
	before := readUsage(watched)
	counting.Store(true)
	_ = pause(ctx, l.measure)
	counting.Store(false)
	after := readUsage(watched)
	ended.Store(true)
	workers.Wait()
	if err := context.Cause(ctx); err != nil {
		return timing{}, err
	}
	t := timing{operations: operations.Load(), latencies: slices.Concat(latencies...), spent: after.since(before, servers, leader)}
	slices.Sort(t.latencies)
	if len(t.latencies) == 0 {
		return timing{}, fmt.Errorf("no call was answered in %v", l.measure)
	}
	return t, nil
}

// quantile returns the q-quantile of sorted values.
func quantile[T any](sorted []T, q float64) T {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// values are what every load has to say.
func (t timing) values() map[string]float64 {
	perOp := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(max(t.operations, 1)) }
	return map[string]float64{
		rate:      float64(t.operations) / t.spent.wall.Seconds(),
		p50:       milliseconds(quantile(t.latencies, 0.5)),
		p99:       milliseconds(quantile(t.latencies, 0.99)),
		serverCPU: perOp(t.spent.servers),
		leaderCPU: perOp(t.spent.leader),
		clientCPU: perOp(t.spent.client),
	}
}

// Names of values. The unit is the last word.
const (
	rate      = "rate 1/s"
	p50       = "p50 ms"
	p99       = "p99 ms"
	serverCPU = "servers µs/op"
	leaderCPU = "leader µs/op"
	clientCPU = "client µs/op"
)
