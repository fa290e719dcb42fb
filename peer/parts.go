package peer

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// parts runs a process's parts. They start in order; when the context ends, or
// one of them does, they are stopped in the opposite order, each before the next.
type parts struct {
	running []*part
	ended   chan *part
	// patience says how long the others may take to stop when one has failed with
	// an error; 0 is for ever. Optional.
	patience func(error) time.Duration
}

type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

func newParts() *parts {
	return &parts{ended: make(chan *part, 16)}
}

// start begins a part. Its context ends when it is its turn to stop.
func (ps *parts) start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &part{name: name, cancel: cancel, done: make(chan struct{})}
	ps.running = append(ps.running, p)
	go func() {
		p.err = run(ctx)
		close(p.done)
		ps.ended <- p
	}()
}

// wait returns once all parts have ended, or patience has: after ctx ends with nil,
// after a part ended by itself with its error.
func (ps *parts) wait(ctx context.Context) error {
	var first error
	select {
	case <-ctx.Done():
	case p := <-ps.ended:
		first = p.err
		if first == nil {
			first = fmt.Errorf("ended unasked")
		}
		first = fmt.Errorf("%s: %w", p.name, first)
	}
	late := context.Background()
	if first != nil && ps.patience != nil {
		if limit := ps.patience(first); limit > 0 {
			var cancel context.CancelFunc
			late, cancel = context.WithTimeout(late, limit)
			defer cancel()
		}
	}
	for _, p := range slices.Backward(ps.running) {
		p.cancel()
		select {
		case <-p.done:
		case <-late.Done():
			continue // left behind
		}
		if p.err != nil && first == nil && ctx.Err() == nil {
			first = fmt.Errorf("%s: %w", p.name, p.err)
		}
	}
	return first
}

// persist runs until ctx ends, and again after a rest when run ends before that:
// the loops of a leader must survive what goes wrong in them.
func persist(ctx context.Context, log *slog.Logger, what string, run func(context.Context) error) error {
	for rest := minRest; ; rest = min(2*rest, maxRest) {
		begin := time.Now()
		err := run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(begin) > maxRest {
			rest = minRest
		}
		log.Error(what+" failed, begins anew", "err", err, "in", rest)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rest):
		}
	}
}

// How long what failed rests, doubling from one to the other.
const minRest, maxRest = 100 * time.Millisecond, 5 * time.Second
