package rig

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// CallTimeout bounds each call.
const CallTimeout = 15 * time.Second

// Load is a closed loop: each client makes its next call when the last is answered.
type Load struct {
	Clients int
	WarmUp  time.Duration
	Measure time.Duration
	// Call makes the nth call of all. It returns how many operations it was.
	Call func(ctx context.Context, client int, n int64) (operations int, err error)
}

// Timing is what a load measured.
type Timing struct {
	Operations int64
	Latencies  []time.Duration // of calls, sorted
	Spent      Spent
}

// Run runs the load. Latencies and operations count between the readings of the
// CPU clocks only.
func (l Load) Run(ctx context.Context, watched, servers []int, leader int) (Timing, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next, operations atomic.Int64
		counting, ended  atomic.Bool
		workers          sync.WaitGroup
		latencies        = make([][]time.Duration, l.Clients)
	)
	for i := range l.Clients {
		workers.Go(func() {
			for !ended.Load() && ctx.Err() == nil {
				callCtx, done := context.WithTimeout(ctx, CallTimeout)
				begin := time.Now()
				n, err := l.Call(callCtx, i, next.Add(1)-1)
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
	_ = Pause(ctx, l.WarmUp)
	before := ReadUsage(watched)
	counting.Store(true)
	_ = Pause(ctx, l.Measure)
	counting.Store(false)
	after := ReadUsage(watched)
	ended.Store(true)
	workers.Wait()
	if err := context.Cause(ctx); err != nil {
		return Timing{}, err
	}
	t := Timing{Operations: operations.Load(), Latencies: slices.Concat(latencies...), Spent: after.Since(before, servers, leader)}
	slices.Sort(t.Latencies)
	if len(t.Latencies) == 0 {
		return Timing{}, fmt.Errorf("no call was answered in %v", l.Measure)
	}
	return t, nil
}

// Quantile returns the q-Quantile of sorted values.
func Quantile[T any](sorted []T, q float64) T {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// Milliseconds is d as a number of them.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Values are what every load has to say.
func (t Timing) Values() map[string]float64 {
	perOp := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(max(t.Operations, 1)) }
	return map[string]float64{
		Rate:      float64(t.Operations) / t.Spent.Wall.Seconds(),
		P50:       Milliseconds(Quantile(t.Latencies, 0.5)),
		P99:       Milliseconds(Quantile(t.Latencies, 0.99)),
		ServerCPU: perOp(t.Spent.Servers),
		LeaderCPU: perOp(t.Spent.Leader),
		ClientCPU: perOp(t.Spent.Client),
	}
}

// Names of values. The unit is the last word.
const (
	Rate      = "rate 1/s"
	P50       = "p50 ms"
	P99       = "p99 ms"
	ServerCPU = "servers µs/op"
	LeaderCPU = "leader µs/op"
	ClientCPU = "client µs/op"
)
