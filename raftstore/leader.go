package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// leaderInfo is what this peer knows of the cluster's leader.
type leaderInfo struct {
	id      string
	term    uint64
	lost    time.Time     // while id is empty: the last contact with a leader
	changed chan struct{} // closed when it is replaced
}

// Leader returns the peer that leads, as far as this one knows, and the newest term
// that it knows. id is empty while there is no leader.
func (s *Store) Leader() (id string, term uint64) {
	l := s.leader.Load()
	return l.id, l.term
}

// CutOff returns for how long this peer has been cut off: since its last contact
// with a leader that a majority follows, or since it began. It is 0 while there is
// such a leader, as far as this peer knows: it learns of a loss within a second or two.
func (s *Store) CutOff() time.Duration {
	if l := s.leader.Load(); l.id == "" && !l.lost.IsZero() {
		return max(time.Since(l.lost), 1)
	}
	return 0
}

// LeaderChanged returns a channel that is closed when what Leader returns changes.
func (s *Store) LeaderChanged() <-chan struct{} { return s.leader.Load().changed }

// reign is this peer's leadership: leader is nil while it does not lead, or has not
// yet applied all of the terms before.
type reign struct {
	leader  *Leader
	changed chan struct{} // closed when it is replaced
}

func (s *Store) setReign(l *Leader) {
	old := s.reign.Swap(&reign{leader: l, changed: make(chan struct{})})
	close(old.changed)
}

// reigning returns this peer's leadership, or ErrNotLeader. Between its election and
// the moment in which it has applied all of the terms before, it waits: there is no
// other leader to go to.
func (s *Store) reigning(ctx context.Context) (*reign, error) {
	for {
		r, known := s.reign.Load(), s.leader.Load()
		switch {
		case r.leader != nil:
			return r, nil
		case known.id != s.cfg.ID:
			return nil, ErrNotLeader
		}
		select {
		case <-r.changed:
		case <-known.changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w yet: %w", ErrNotLeader, context.Cause(ctx))
		case <-s.stopped:
			return nil, ErrClosed
		}
	}
}

// Leader is one term of leadership of this peer.
type Leader struct {
	store *Store
	term  uint64
	// ctx ends with the leadership. A Leader is a session, so it may keep one.
	ctx context.Context
	end context.CancelCauseFunc
}

// Term returns the raft term, never 0.
func (l *Leader) Term() uint64 { return l.term }

// View returns the newest state. It holds everything that earlier leaders
// committed, and what this one has.
func (l *Leader) View() View { return l.store.View() }

// WaitRevision is Store.WaitRevision.
func (l *Leader) WaitRevision(ctx context.Context, rev Revision) (View, error) {
	return l.store.WaitRevision(ctx, rev)
}

// Watch is Store.Watch.
func (l *Leader) Watch(prefix string, after Revision) *Watcher { return l.store.Watch(prefix, after) }

// Txn is Store.Txn for a leader's own work: t has an effect only in the leader's
// term. When it returns, View holds its revision. Errors: *ConflictError,
// ErrDeposed, ErrOutcomeUnknown, ErrOverloaded, ErrTooLarge, ErrInvalid.
func (l *Leader) Txn(ctx context.Context, t Txn) (Result, error) {
	data, err := t.encode(l.term)
	if err != nil {
		return Result{}, err
	}
	if l.ctx.Err() != nil {
		return Result{}, ErrDeposed
	}
	p := newProposal(data, t.Then, t.Else)
	p.lane = laneControl
	l.store.batcher.submit(p)
	out := l.store.await(ctx, p)
	if errors.Is(out.err, errNotProposed) {
		if ctx.Err() != nil && l.ctx.Err() == nil {
			return Result{}, context.Cause(ctx) // withdrawn in time
		}
		// Raft takes nothing from a leader of the past, nor during a transfer.
		return Result{}, fmt.Errorf("%w: %w", ErrDeposed, out.err)
	}
	return t.result(out)
}

// Lead calls run each time this store leads and has applied all that earlier
// leaders committed, with a context that ends, with a cause, when the leadership
// does; never two at once: a new term waits for run to return. Lead blocks until
// ctx ends, which is not an error, or until run fails while it still leads. When run
// returns nil, the rest of its term passes without it.
func (s *Store) Lead(ctx context.Context, run func(ctx context.Context, l *Leader) error) error {
	for {
		r := s.reign.Load()
		if r.leader != nil && r.leader.ctx.Err() == nil {
			if err := s.leadTerm(ctx, r.leader, run); err != nil {
				return err
			}
		}
		select {
		case <-r.changed:
		case <-ctx.Done():
			return nil
		case <-s.stopped:
			return nil
		}
	}
}

func (s *Store) leadTerm(ctx context.Context, l *Leader, run func(context.Context, *Leader) error) error {
	term, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	defer stop()
	err := run(term, l)
	if err != nil && term.Err() == nil {
		return fmt.Errorf("leader's work in term %d: %w", l.term, err)
	}
	return nil
}

// followLeadership keeps leader and reign up to date with raft, until ctx ends.
func (s *Store) followLeadership(ctx context.Context, changes <-chan raft.Observation) {
	var now *Leader // the term that this peer leads, from its election on
	depose := func(why string) {
		if now == nil {
			return
		}
		s.log.Info("leadership ended", "term", now.term, "why", why)
		now.end(fmt.Errorf("%w: %s", ErrDeposed, why))
		s.setReign(nil)
		now = nil
	}
	defer depose("the store stops")
	for {
		// Wake-ups carry nothing: look at how it stands. Term and state are read
		// one after the other, and may belong to different moments; then another
		// wake-up follows.
		leads, term := s.raft.State() == raft.Leader, s.raft.CurrentTerm()
		s.noteLeader(term)
		if now != nil && (!leads || now.term != term) {
			depose("another peer may lead")
		}
		if leads && now == nil {
			now = &Leader{store: s, term: term}
			now.ctx, now.end = context.WithCancelCause(context.WithoutCancel(ctx))
			s.metrics.leaderships.Inc()
			l := now
			s.batcher.inFlight.Go(func() { s.mark(l) })
		}
		select {
		case <-changes:
		case <-s.raft.LeaderCh():
		case <-ctx.Done():
			return
		}
	}
}

func (s *Store) noteLeader(term uint64) {
	_, id := s.raft.LeaderWithID()
	old := s.leader.Load()
	if old.id == string(id) && old.term == term {
		return
	}
	now := &leaderInfo{id: string(id), term: term, changed: make(chan struct{})}
	if id == "" {
		if now.lost = old.lost; old.id != "" {
			now.lost = s.raft.LastContact() // of a leader that stepped down: when it did
		}
		if now.lost.IsZero() {
			now.lost = time.Now()
		}
	}
	s.leader.Store(now)
	close(old.changed)
	if id != "" {
		s.log.Info("leader known", "leader", id, "term", term)
	}
}

// mark writes the term's marker and waits until it is applied here: then everything
// that earlier leaders committed is applied, too, and the commit index is one of
// this term. Only then does the leader begin to work and to vouch for reads
// (dissertation §6.4, step 1).
func (s *Store) mark(l *Leader) {
	retry := newBackoff()
	for l.ctx.Err() == nil {
		data := encodeCommand(&raftv1.Command{Op: &raftv1.Command_TermMarker{TermMarker: &raftv1.TermMarker{Term: l.term}}}, s.cfg.Faults.Now())
		err := s.raft.ApplyLog(raft.Log{Data: data}, 0).Error()
		s.watchTransfer(err)
		if err == nil {
			if s.current.Load().root.MarkerTerm() == l.term && l.ctx.Err() == nil {
				s.log.Info("leading", "term", l.term, "revision", s.View().Revision())
				s.setReign(l)
				s.updateOwnAddress(l)
			}
			return // else: it went into a later term, which has its own
		}
		if s.raft.State() != raft.Leader {
			return
		}
		again, stop := retry.timer(true)
		select {
		case <-again:
		case <-l.ctx.Done():
		}
		stop()
	}
}

// transferWatch sees a transfer of leadership that raft never ends
// (hashicorp/raft#696): it refuses all proposals for as long as one goes on, and the
// leader would keep its followers and take no write until it is restarted.
type transferWatch struct {
	mu          sync.Mutex
	first, last time.Time // of the refusals
}

// note takes raft's answer to a proposal and reports whether it has refused
// everything for longer than limit. Who is refused asks again soon; so refusals with
// a longer pause than that between them belong to different transfers.
func (w *transferWatch) note(err error, limit time.Duration) (hung bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		w.first = time.Time{}
		return false
	}
	now := time.Now()
	if w.first.IsZero() || now.Sub(w.last) > limit/3 {
		w.first = now
	}
	w.last = now
	return now.Sub(w.first) > limit
}

// watchTransfer ends the store when a transfer hangs. err is raft's answer to a
// proposal.
func (s *Store) watchTransfer(err error) {
	limit := 3 * s.cfg.HeartbeatTimeout // a transfer takes one at most
	if s.transfer.note(err, limit) {
		s.fail(fmt.Errorf("raft has refused all writes for %v: %w, and does not end it (hashicorp/raft#696); stopping, so that another peer can lead", limit, err))
	}
}

// handOver gives the leadership to another voter, if there is one, before this peer
// stops.
func (s *Store) handOver() {
	if s.leader.Load().id != s.cfg.ID || voters(s.configuration()) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*s.cfg.HeartbeatTimeout)
	defer cancel()
	if err := s.TransferLeadership(ctx, ""); err != nil {
		s.log.Info("leadership not handed over before stopping", "err", err)
	}
}

// caughtUp waits until target has all entries, for an election timeout at most. Raft
// would wait as well, but for its replication to the target, which may be stuck in a
// call: a second transfer then hangs behind the first, and holds all writes up.
func (s *Store) caughtUp(ctx context.Context, target raft.Server) error {
	ctx, cancel := context.WithTimeout(ctx, s.raft.ReloadableConfig().ElectionTimeout)
	defer cancel()
	for last := s.raft.LastIndex(); ; {
		desc, err := s.describe(ctx, string(target.ID))
		switch {
		case err != nil:
			return fmt.Errorf("peer %s does not answer: %w", target.ID, err)
		case desc.GetLastIndex() >= last:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("peer %s has %d of %d entries: %w", target.ID, desc.GetLastIndex(), last, context.Cause(ctx))
		case <-time.After(catchUpPoll):
		}
	}
}

// catchUpPoll is how often a peer is asked whether it has caught up.
const catchUpPoll = 5 * time.Millisecond

// TransferLeadership makes the voter called id, or with "" the one that is furthest
// along, lead in this peer's place. Transactions wait meanwhile. It returns once this
// peer leads no more, or with ErrNotLeader if it did not, or with the reason why the
// transfer failed or was refused: the voter does not answer, or lags.
func (s *Store) TransferLeadership(ctx context.Context, id string) error {
	if !s.isReady() || s.leader.Load().id != s.cfg.ID {
		return ErrNotLeader
	}
	target, err := s.successor(ctx, id)
	if err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	// Nothing may be in flight: a transfer beside writes can leave raft refusing
	// them for ever (hashicorp/raft#696).
	resume, err := s.batcher.pause(ctx)
	if err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	if err := s.caughtUp(ctx, target); err != nil {
		resume()
		return fmt.Errorf("transfer leadership: %w", err)
	}
	// Bounded by raft's election timeout, while its main loop runs. Raft that has ended,
	// or whose disk hangs, may never answer.
	transfer := s.raft.LeadershipTransferToServer(target.ID, target.Address)
	answer := make(chan error, 1)
	go func() {
		err := transfer.Error()
		resume() // not before, though the caller may have given up
		answer <- err
	}()
	select {
	case err = <-answer:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-s.stopped:
		err = ErrClosed
	}
	if err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	for {
		l := s.leader.Load()
		if l.id != s.cfg.ID {
			return nil
		}
		select {
		case <-l.changed:
		case <-ctx.Done():
			return fmt.Errorf("transfer leadership: %w", context.Cause(ctx))
		case <-s.stopped:
			return ErrClosed
		case <-time.After(3 * s.cfg.HeartbeatTimeout):
			return errors.New("transfer leadership: the other peer did not take it")
		}
	}
}
