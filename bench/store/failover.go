package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/bench/rig"
)

// failover kills the leader again and again while a put begins every 10 ms, at
// whichever member the client's library chooses. The gap is the longest time
// between two answers. Puts that are never answered count as lost for the client
// that waited, not for the gap.
func failover(ctx context.Context, r *run, c contender) (map[string]float64, rig.Spent, error) {
	s := r.sides[c.side]
	before := rig.ReadUsage(r.pids())
	var gaps []time.Duration
	for range r.scale.kills {
		gap, err := killLeader(ctx, s, c)
		if err != nil {
			return nil, rig.Spent{}, fmt.Errorf("after %d kills: %w", len(gaps), err)
		}
		gaps = append(gaps, gap)
	}
	ms := sortedMillis(gaps)
	// The killed members' clocks are gone with them: no CPU figure.
	used := rig.ReadUsage(r.pids()).Since(before, nil, 0)
	return map[string]float64{
		"gap p50 ms": rig.Quantile(ms, 0.5), "gap p99 ms": rig.Quantile(ms, 0.99),
		"gap max ms": ms[len(ms)-1], "gap min ms": ms[0],
	}, rig.Spent{Wall: used.Wall}, nil
}

func killLeader(ctx context.Context, s side, c contender) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	leader, err := s.leader(ctx)
	if err != nil {
		return 0, err
	}
	conn, err := s.dial(ctx, c.way, 0, 1, 2)
	if err != nil {
		return 0, err
	}
	defer conn.close()
	const (
		step  = 10 * time.Millisecond
		after = 500 * time.Millisecond // of answers again, to be sure
	)
	var (
		mu      sync.Mutex
		answers []time.Time
		puts    sync.WaitGroup
		value   = payload(256)
		killed  time.Time
	)
	defer puts.Wait()
	stop, end := context.WithCancel(ctx)
	defer end()
	answersSince := func(t time.Time) int {
		mu.Lock()
		defer mu.Unlock()
		return len(answers) - max(0, slices.IndexFunc(append(answers, time.Now().Add(time.Hour)), t.Before))
	}
	begin := time.Now()
	for n := int64(0); ; n++ {
		if err := rig.Pause(ctx, step); err != nil {
			return 0, errors.Join(err, errors.New("writes did not come back"))
		}
		if killed.IsZero() && time.Since(begin) > after {
			s.member(leader).Kill()
			killed = time.Now()
		}
		if !killed.IsZero() && answersSince(killed.Add(step)) > int(after/step) {
			break
		}
		puts.Go(func() {
			call, done := context.WithTimeout(stop, 3*time.Second)
			defer done()
			if conn.put(call, pair{key(n), value}) == nil {
				mu.Lock()
				answers = append(answers, time.Now())
				mu.Unlock()
			}
		})
	}
	end()
	puts.Wait()
	var gap time.Duration
	for i := 1; i < len(answers); i++ {
		gap = max(gap, answers[i].Sub(answers[i-1]))
	}
	if err := s.restart(ctx, leader); err != nil {
		return 0, err
	}
	// The next kill must find three members again, all with the whole log.
	fresh, err := s.dial(ctx, c.way, leader)
	if err != nil {
		return 0, err
	}
	defer fresh.close()
	for fresh.get(ctx, key(0), true) != nil {
		if err := rig.Pause(ctx, 20*time.Millisecond); err != nil {
			return 0, fmt.Errorf("the killed member did not come back: %w", err)
		}
	}
	return gap, rig.Pause(ctx, 500*time.Millisecond)
}
