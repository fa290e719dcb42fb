package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// UserKeyspace begins every key of the raw-store service and of etcd's API, so that
// those who use the store for their own purposes can never touch objects, nor what
// the cluster keeps of itself.
const UserKeyspace = "raw/"

// Submission is a transaction that Submit has begun.
type Submission struct {
	begin    time.Time
	proposal *proposal
	answered atomic.Bool // by whoever sets it
	done     func(Result, error)
}

// Submit begins t and returns at once: it is Txn for those who have many
// transactions on the way and would not spend a goroutine on each. It calls done
// exactly once, possibly before it returns, from any goroutine; done must not block.
// Transactions are proposed in the order in which they are submitted, unless the
// leader changes between.
//
// The errors are Txn's, but for a failed compare without an Else, which is none:
// the Result has Succeeded false. Nothing bounds the wait for the leader's answer
// but Abandon. ctx ends only the search for another leader, should the first not
// take the transaction.
func (s *Store) Submit(ctx context.Context, t Txn, done func(Result, error)) *Submission {
	sub := &Submission{begin: time.Now(), done: done}
	data, err := t.encode(0)
	if err != nil {
		sub.answer(Result{}, err)
		return sub
	}
	sub.proposal = &proposal{txn: data, begin: sub.begin}
	sub.proposal.classify(t.Then, t.Else)
	sub.proposal.answer = func(out outcome) {
		// With an ID the second attempt does no harm.
		switch {
		case errors.Is(out.err, errNotProposed):
			s.submitAgain(ctx, t, sub, nil)
			return
		case len(t.ID) > 0 && errors.Is(out.err, ErrOutcomeUnknown):
			s.submitAgain(ctx, t, sub, out.err)
			return
		}
		result, err := t.result(out)
		sub.answer(withoutConflict(result, err))
	}
	switch leader := s.leader.Load(); leader.id {
	case "":
		sub.proposal.take()
		s.submitAgain(ctx, t, sub, nil)
	case s.cfg.ID:
		s.batcher.submit(sub.proposal)
	default:
		s.forwarder.submit(sub.proposal)
	}
	return sub
}

// submitAgain takes the slow way, with a goroutine, for what is rare: there is no
// leader, or it was the wrong one, or was lost, with unknown as the outcome so far.
func (s *Store) submitAgain(ctx context.Context, t Txn, sub *Submission, unknown error) {
	if !sub.answered.CompareAndSwap(false, true) {
		return
	}
	go func() { // ends with ctx or with the store, and within Txn's own bounds
		sub.done(withoutConflict(s.txn(ctx, t, unknown)))
	}()
}

// withoutConflict makes a failed compare an ordinary result.
func withoutConflict(result Result, err error) (Result, error) {
	if conflict, ok := errors.AsType[*ConflictError](err); ok {
		return Result{Revision: conflict.Revision}, nil
	}
	return result, err
}

func (sub *Submission) answer(result Result, err error) {
	if sub.answered.CompareAndSwap(false, true) {
		sub.done(result, err)
	}
}

// Begin returns when the transaction was submitted.
func (sub *Submission) Begin() time.Time { return sub.begin }

// Answered reports whether done has been called, or will be within the bounds of
// Txn.
func (sub *Submission) Answered() bool { return sub.answered.Load() }

// Abandon stops to wait, unless there is an answer already: done is called with an
// ErrNoLeader if the transaction was never proposed, else with an
// ErrOutcomeUnknown. why is the reason that the error names.
func (sub *Submission) Abandon(why error) {
	if sub.answered.Load() {
		return
	}
	if sub.proposal.withdraw() {
		sub.answer(Result{}, noLeader("in time", why))
		return
	}
	sub.answer(Result{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, why))
}

// TryRead is Read where that need not wait; ok is false where it must.
func (s *Store) TryRead(opts ReadOptions) (view View, age time.Duration, ok bool) {
	var c *confirmation
	switch applied := s.current.Load().root.Index(); opts.Consistency {
	case Local:
		c = s.reader.latest(applied, 1<<62)
	case Bounded:
		if c = s.reader.latest(applied, max(opts.MaxAge/4, minRefresh)); c == nil || time.Since(c.begin) > opts.MaxAge {
			return View{}, 0, false
		}
	default:
		return View{}, 0, false
	}
	// The view is taken last: it can only be newer than what vouches for it.
	if view = s.View(); view.rev < opts.MinRevision {
		return View{}, 0, false
	}
	if c == nil {
		return view, -1, true
	}
	return view, time.Since(c.begin), true
}

// Stats are the sizes of a state.
type Stats struct {
	// Horizon is the oldest revision that can be read, and watched from.
	Horizon Revision
	// Keys exist; KeysBytes is about their memory, with their values.
	Keys, KeysBytes int64
	// HistoryEvents are the changes kept, HistoryBytes about the memory of the
	// versions that only history holds.
	HistoryEvents, HistoryBytes int64
}

// Stats returns the sizes of the state that the view shows part of.
func (v View) Stats() Stats {
	root := v.at.root
	events, bytes := root.History()
	return Stats{Horizon: root.Horizon(), Keys: root.Keys(), KeysBytes: root.Bytes(), HistoryEvents: int64(events), HistoryBytes: bytes}
}
