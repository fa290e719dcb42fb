package probe

import (
	"context"
	"sync"
	"time"
)

// Limits bounds the probes that are under way at the same time. Waiting for a
// place does not count as a probe's time.
type Limits struct {
	commands, requests chan struct{}
}

// NewLimits allows so many commands in containers, and so many requests over the
// network, at the same time.
func NewLimits(commands, requests int) Limits {
	return Limits{make(chan struct{}, commands), make(chan struct{}, requests)}
}

// Answer is what a container has answered.
type Answer struct {
	Result  Result
	Message string // what was wrong; "" with Success
}

// Config is what a Set needs. All of it is required.
type Config struct {
	Limits Limits
	// Ask carries out a probe. It returns soon after ctx ends. Calls overlap.
	Ask func(ctx context.Context, t Target) Answer
	// Told is called after each answer that changes the result, and after the
	// first failure in a row. Calls overlap.
	Told func(t Target, a Answer, changed bool)
}

// Set carries out the probes of a pod. Its methods are called by one goroutine.
type Set struct {
	ctx    context.Context // of the set: it is a session
	cancel context.CancelFunc
	cfg    Config
	loops  map[Key]context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	results map[Key]Result
}

// NewSet returns a set without probes. It ends with ctx, or with Close.
func NewSet(ctx context.Context, cfg Config) *Set {
	s := &Set{cfg: cfg, loops: map[Key]context.CancelFunc{}, results: map[Key]Result{}}
	s.ctx, s.cancel = context.WithCancel(ctx)
	return s
}

// Close ends all probes, and returns once they have ended.
func (s *Set) Close() {
	s.cancel()
	s.wg.Wait()
}

// Want makes the probes of the set those of targets. One that goes on keeps its
// specification and what was learned.
func (s *Set) Want(targets []Target) {
	if len(targets) == 0 && len(s.loops) == 0 {
		return
	}
	wanted := make(map[Key]bool, len(targets))
	for _, t := range targets {
		wanted[t.Key] = true
		if s.loops[t.Key] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(s.ctx)
		s.loops[t.Key] = cancel
		s.wg.Go(func() { s.loop(ctx, t) })
	}
	for key, cancel := range s.loops {
		if wanted[key] {
			continue
		}
		cancel()
		delete(s.loops, key)
		s.mu.Lock()
		delete(s.results, key)
		s.mu.Unlock()
	}
}

// Results returns what is known, as far as probes of this set found it out.
func (s *Set) Results() map[Key]Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.results) == 0 {
		return nil
	}
	out := make(map[Key]Result, len(s.results))
	for k, r := range s.results {
		out[k] = r
	}
	return out
}

// loop probes a target until ctx ends or nothing is left to find out.
func (s *Set) loop(ctx context.Context, t Target) {
	state := State{Result: t.Initial}
	timer := time.NewTimer(time.Until(t.first(time.Now())))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		limit := s.cfg.Limits.requests
		if t.Spec.Exec != nil {
			limit = s.cfg.Limits.commands
		}
		select {
		case <-ctx.Done():
			return
		case limit <- struct{}{}:
		}
		began := time.Now()
		actx, cancel := context.WithTimeout(ctx, t.timeout())
		answer := s.cfg.Ask(actx, t)
		cancel()
		<-limit
		failing := state.last == Failure
		changed := state.Take(t, answer.Result)
		if !s.record(ctx, t.Key, state.Result) {
			return
		}
		if changed || answer.Result == Failure && !failing {
			s.cfg.Told(t, answer, changed)
		}
		if state.Settled(t.Kind) {
			return
		}
		timer.Reset(max(time.Until(began.Add(t.period())), 0))
	}
}

// record keeps a result, unless the probe is no longer wanted.
func (s *Set) record(ctx context.Context, key Key, r Result) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	if r != Unknown {
		s.results[key] = r
	}
	return true
}
