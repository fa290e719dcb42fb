package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Consistency is what a read may miss.
type Consistency int8

const (
	// Linearizable misses nothing that was acknowledged, anywhere, before the call.
	Linearizable Consistency = iota
	// Bounded misses nothing that was acknowledged longer than ReadOptions.MaxAge
	// ago. It does not wait for other peers while it is asked for often enough.
	Bounded
	// Local has what this peer has, which may be cut off. It waits for nothing.
	Local
)

// ReadOptions say how new the state must be that a read sees.
type ReadOptions struct {
	Consistency Consistency
	// MaxAge is for Bounded: required there, above 0. It is measured by this
	// peer's monotonic clock, so wall clocks play no part; time in which the whole
	// machine is suspended may not count.
	MaxAge time.Duration
	// MinRevision is a revision that the view must have reached, whatever the
	// consistency: with that of one's last write or read, from any peer, one never
	// goes back in time. 0: any.
	MinRevision Revision
}

// minRefresh bounds how often bounded reads with small ages have a peer ask others.
const minRefresh = 50 * time.Millisecond

// Read returns a view, on this peer, that is as new as opts ask for, and its age: the
// view holds everything that was acknowledged, anywhere, up to so long ago. Below 0
// the age is not known, which happens to Local alone. Concurrent calls share what
// they ask other peers. While nobody asks for bounded reads, nobody is asked.
//
// It waits for at most 10 s, and fails with ErrNoLeader while no majority confirms
// the read, or this peer cannot catch up; with ErrFutureRevision if it does not
// reach MinRevision; with ErrInvalid, ErrClosed.
func (s *Store) Read(ctx context.Context, opts ReadOptions) (View, time.Duration, error) {
	if err := s.Refusal(); err != nil {
		return View{}, 0, err
	}
	var view View
	var begin time.Time // of the round that vouches for view
	// The usual case first: no timer, no context.
	switch applied := s.current.Load().root.Index(); opts.Consistency {
	case Local:
		if c := s.reader.latest(applied, 1<<62); c != nil {
			begin = c.begin
		}
		view = s.View()
	case Bounded:
		if opts.MaxAge <= 0 {
			return View{}, 0, fmt.Errorf("%w: a bounded read needs an age above 0, not %v", ErrInvalid, opts.MaxAge)
		}
		if c := s.reader.latest(applied, max(opts.MaxAge/4, minRefresh)); c != nil && time.Since(c.begin) <= opts.MaxAge {
			begin, view = c.begin, s.View()
		}
	}
	if view.at == nil || view.rev < opts.MinRevision {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, leaderWait, fmt.Errorf("not within %v", leaderWait))
		defer cancel()
	}
	for view.at == nil {
		var err error
		if view, begin, err = s.readConfirmed(ctx); err != nil {
			return View{}, 0, err
		}
		if opts.Consistency == Bounded && time.Since(begin) > opts.MaxAge {
			view = View{} // it took too long to catch up
		}
	}
	if view.rev < opts.MinRevision {
		var err error
		if view, err = s.WaitRevision(ctx, opts.MinRevision); errors.Is(err, ErrClosed) {
			return View{}, 0, ErrClosed
		} else if err != nil {
			return View{}, 0, fmt.Errorf("%w: it is at revision %d, waiting for %d: %w", ErrFutureRevision, s.View().rev, opts.MinRevision, err)
		}
		if opts.Consistency == Bounded && time.Since(begin) > opts.MaxAge {
			opts.MinRevision = view.rev
			return s.Read(ctx, opts)
		}
	}
	if begin.IsZero() {
		return view, -1, nil
	}
	return view, time.Since(begin), nil
}

// Sync is a linearizable Read.
func (s *Store) Sync(ctx context.Context) (View, error) {
	view, _, err := s.Read(ctx, ReadOptions{})
	return view, err
}

// readConfirmed returns a view that holds everything acknowledged before begin, which
// is after the call.
func (s *Store) readConfirmed(ctx context.Context) (view View, begin time.Time, err error) {
	c, err := s.reader.confirm(ctx)
	if err == nil {
		if view, err = s.waitIndex(ctx, c.index); err == nil {
			return view, c.begin, nil
		}
		err = fmt.Errorf("this peer has not caught up with entry %d: %w", c.index, err)
	}
	if errors.Is(err, ErrClosed) {
		return View{}, begin, ErrClosed
	}
	return View{}, begin, fmt.Errorf("%w confirmed the read: %w", ErrNoLeader, err)
}
