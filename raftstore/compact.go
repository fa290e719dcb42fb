package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/hashicorp/raft"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// Compact discards the history below revision rev, on all peers: rev is then the
// oldest that can be read, and watched from. The leader does so by itself, too, by
// the bounds in Config. From any peer; it returns once the leader has done it. It
// fails with a *CompactedError if rev is not above the horizon, ErrFutureRevision,
// ErrNoLeader, ErrClosed.
func (s *Store) Compact(ctx context.Context, rev Revision) error {
	before := s.current.Load().root.Horizon()
	return s.askLeader(ctx, "compacted", func(ctx context.Context, leader string) error {
		var err error
		if leader == s.cfg.ID {
			err = s.compact(ctx, rev)
		} else {
			err = s.compactAt(ctx, leader, rev)
		}
		// A former attempt may have done it, and its answer been lost.
		if c, _ := errors.AsType[*CompactedError](err); c != nil && c.Horizon == rev && before < rev {
			return nil
		}
		return err
	})
}

// compactAt asks another peer, which must lead.
func (s *Store) compactAt(ctx context.Context, leader string, rev Revision) error {
	client, err := s.cfg.Remote(leader)
	if err == nil {
		_, err = client.Compact(ctx, &peerv1.CompactRequest{Revision: rev})
	}
	switch {
	case err == nil:
		return nil
	case connect.CodeOf(err) != connect.CodeOutOfRange:
		return fmt.Errorf("%w: peer %s: %w", errNotProposed, leader, err)
	case rev > s.current.Load().root.Revision():
		return fmt.Errorf("compact to revision %d: %w", rev, ErrFutureRevision)
	default:
		// The leader's horizon may be higher than what is known here.
		return &CompactedError{Horizon: max(rev, s.current.Load().root.Horizon())}
	}
}

// compact is Compact on the leader.
func (s *Store) compact(ctx context.Context, rev Revision) error {
	if s.reign.Load().leader == nil {
		return fmt.Errorf("%w: %w", errNotProposed, ErrNotLeader)
	}
	switch root := s.current.Load().root; {
	case rev <= root.Horizon():
		return &CompactedError{Horizon: root.Horizon()}
	case rev > root.Revision():
		return fmt.Errorf("compact to revision %d, the store is at %d: %w", rev, root.Revision(), ErrFutureRevision)
	}
	_, err := s.batcher.command(ctx, &raftv1.Command{Op: &raftv1.Command_Compact{Compact: &raftv1.Compact{Revision: rev}}})
	if errors.Is(err, ErrOutcomeUnknown) {
		err = fmt.Errorf("%w: %w", errNotProposed, err) // to repeat it does no harm
	}
	return err
}

// Compact implements peerv1connect.StoreServiceHandler.
func (s service) Compact(ctx context.Context, req *peerv1.CompactRequest) (*peerv1.CompactResponse, error) {
	err := s.compact(ctx, req.GetRevision())
	switch {
	case err == nil:
		return &peerv1.CompactResponse{}, nil
	case errors.Is(err, ErrCompacted), errors.Is(err, ErrFutureRevision):
		return nil, connect.NewError(connect.CodeOutOfRange, err.Error())
	case errors.Is(err, ErrNotLeader):
		return nil, connect.Errorf(connect.CodeFailedPrecondition, "peer %s does not lead", s.cfg.ID)
	default:
		return nil, connect.NewError(connect.CodeUnavailable, err.Error())
	}
}

// command proposes a command other than a batch and waits until it is applied here.
// An error is errNotProposed or ErrOutcomeUnknown.
func (b *batcher) command(ctx context.Context, cmd *raftv1.Command) (mvcc.Applied, error) {
	select {
	case b.slots <- struct{}{}: // so that a transfer waits for it
	case <-ctx.Done():
		return mvcc.Applied{}, fmt.Errorf("%w: %w", errNotProposed, context.Cause(ctx))
	case <-b.store.stopped:
		return mvcc.Applied{}, fmt.Errorf("%w: %w", errNotProposed, ErrClosed)
	}
	type answer struct {
		applied mvcc.Applied
		err     error
	}
	done := make(chan answer, 1)
	begun := b.inFlight.Go(func() {
		future := b.store.raft.ApplyLog(raft.Log{Data: encodeCommand(cmd, b.store.cfg.Faults.Now())}, 0)
		err := future.Error()
		<-b.slots
		if err != nil {
			_, err = b.store.classify(err)
			done <- answer{err: err}
			return
		}
		b.store.watchTransfer(nil)
		done <- answer{applied: future.Response().(mvcc.Applied)}
	})
	if !begun {
		<-b.slots
		return mvcc.Applied{}, fmt.Errorf("%w: %w", errNotProposed, ErrClosed)
	}
	select {
	case a := <-done:
		return a.applied, a.err
	case <-ctx.Done():
		return mvcc.Applied{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
	}
}

// keepHistory compacts while this peer leads, until ctx ends. It acts behind writes,
// and otherwise once a minute as long as there is something to compact; so an idle
// store gets one entry at most.
func (s *Store) keepHistory(ctx context.Context, _ *Leader) error {
	ages := &revisionAges{limit: s.cfg.HistoryAge}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		at := s.current.Load()
		to, again := ages.compactTo(time.Now(), at.root.Revision(), at.root.Horizon())
		if to = max(to, s.compactTo(at.root)); to > at.root.Horizon() {
			if err := s.compact(ctx, to); err == nil {
				continue
			}
			// Another leader does it, or this one a little later.
			again = time.Second
		}
		if timer.Stop(); again > 0 {
			timer.Reset(again)
		}
		select {
		case <-timer.C:
		case <-at.revised:
		case <-ctx.Done():
			return nil
		}
	}
}

// compactTo returns the revision to compact to by what history holds, 0 for none. It
// leaves a margin below the bounds, so that a compaction frees more than one change.
func (s *Store) compactTo(root *mvcc.Root) Revision {
	events, bytes := root.History()
	keep := s.cfg.HistoryEvents
	if bytes > s.cfg.HistoryBytes {
		keep = min(keep, int(float64(events)*float64(s.cfg.HistoryBytes)/float64(bytes)))
	}
	if events <= keep {
		return 0
	}
	return root.CompactTo(keep - keep/16)
}

// revisionAges tells how old revisions are, from samples of the present one. A
// leader's samples begin with its term, and are of its monotonic clock: after an
// election history is kept for longer, never for less.
type revisionAges struct {
	limit   time.Duration // not above 0: history does not age
	samples []revisionAge // oldest first
}

type revisionAge struct {
	at  time.Time
	rev Revision // the store had come so far
}

// compactTo returns the highest revision known to be older than the limit, 0 for
// none, and after what time to ask again; 0 when a change of the revision is to be
// waited for. While nothing changes it waits until all of history is old.
func (a *revisionAges) compactTo(now time.Time, rev, horizon Revision) (to Revision, again time.Duration) {
	if a.limit <= 0 || rev <= horizon {
		return 0, 0
	}
	every := min(time.Minute, a.limit)
	n := len(a.samples)
	if n == 0 || rev > a.samples[n-1].rev && now.Sub(a.samples[n-1].at) >= every {
		a.samples = append(a.samples, revisionAge{now, rev})
		n++
	} else if rev == a.samples[n-1].rev && now.Sub(a.samples[n-1].at) < a.limit {
		return 0, a.samples[n-1].at.Add(a.limit).Sub(now)
	}
	old := 0
	for old < n && now.Sub(a.samples[old].at) >= a.limit {
		to = a.samples[old].rev
		old++
	}
	if old > 1 {
		a.samples = a.samples[old-1:]
	}
	return to, max(every-now.Sub(a.samples[len(a.samples)-1].at), time.Second)
}
