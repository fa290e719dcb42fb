package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// reading is a view and how old it may be.
type reading struct {
	view raftstore.View
	age  *time.Duration // nil: unknown
}

// read returns a view as fresh as opts ask for. It waits at most waitTimeout
// for a quorum or a revision; then it fails with Unavailable.
func (s *Server) read(ctx context.Context, opts *holdfastv1.ReadOptions) (reading, error) {
	if opts.GetMinRevision() < 0 || opts.GetAtRevision() < 0 {
		return reading{}, badRequest("read", "a revision cannot be negative")
	}
	if at := opts.GetAtRevision(); at > 0 {
		return s.readAt(ctx, at)
	}
	want := raftstore.ReadOptions{MinRevision: opts.GetMinRevision()}
	switch c := opts.GetConsistency(); c {
	case holdfastv1.Consistency_CONSISTENCY_UNSPECIFIED, holdfastv1.Consistency_CONSISTENCY_LINEARIZABLE:
	case holdfastv1.Consistency_CONSISTENCY_LOCAL:
		want.Consistency = raftstore.Local
	case holdfastv1.Consistency_CONSISTENCY_BOUNDED:
		want.Consistency, want.MaxAge = raftstore.Bounded, opts.GetMaxAge().AsDuration()
		if want.MaxAge <= 0 {
			return reading{}, badRequest("read.max_age", "is missing or not above 0: a bounded read needs its bound")
		}
	case holdfastv1.Consistency_CONSISTENCY_SESSION:
		if want.MinRevision > 0 { // else nothing is known of the session
			want.Consistency = raftstore.Local
		}
	default:
		return reading{}, badRequest("read.consistency", "%d is not a consistency that this peer knows; use linearizable, session, bounded or local", c)
	}
	view, age, err := s.store.Read(ctx, want)
	if err != nil {
		return reading{}, s.readError(ctx, want, err)
	}
	return aged(view, age), nil
}

// readAt returns the state as it was at a revision. It is the same on every peer
// and for ever, so a peer that has it needs to ask nobody.
func (s *Server) readAt(ctx context.Context, revision int64) (reading, error) {
	if s.store.View().Revision() < revision {
		view, err := s.sync(ctx)
		if err != nil {
			return reading{}, err
		}
		if view.Revision() < revision {
			return reading{}, connect.Errorf(connect.CodeOutOfRange, "revision %d has not been reached: the newest is %d", revision, view.Revision())
		}
	}
	view, err := s.store.ViewAt(revision)
	if err != nil {
		return reading{}, storeError(fmt.Sprintf("read at revision %d", revision), err)
	}
	return reading{view: view}, nil
}

// sync returns a view that holds everything acknowledged before the call.
func (s *Server) sync(ctx context.Context) (raftstore.View, error) {
	view, _, err := s.store.Read(ctx, raftstore.ReadOptions{})
	if err != nil {
		return raftstore.View{}, s.readError(ctx, raftstore.ReadOptions{}, err)
	}
	return view, nil
}

// waitRevision returns a view at or past revision.
func (s *Server) waitRevision(ctx context.Context, revision int64) (raftstore.View, error) {
	opts := raftstore.ReadOptions{Consistency: raftstore.Local, MinRevision: revision}
	view, _, err := s.store.Read(ctx, opts)
	if err != nil {
		return raftstore.View{}, s.readError(ctx, opts, err)
	}
	return view, nil
}

// readError is storeError for reads: it says what this peer lacks.
func (s *Server) readError(ctx context.Context, opts raftstore.ReadOptions, err error) error {
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, raftstore.ErrFutureRevision):
		return connect.Errorf(connect.CodeUnavailable, "peer %s is at revision %d and did not reach %d within %s; ask another peer",
			s.cfg.PeerID, s.store.View().Revision(), opts.MinRevision, waitTimeout).WithCause(err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, raftstore.ErrNoLeader):
		cut := ""
		if since := s.store.CutOff(); since > 0 {
			cut = fmt.Sprintf(" (it has been cut off from the quorum for %s)", since.Round(time.Second))
		}
		return connect.Errorf(connect.CodeUnavailable,
			"peer %s could not prove within %s that its state is current: no leader, or a majority of peers cannot be reached%s; ask another peer, or read with consistency local",
			s.cfg.PeerID, waitTimeout, cut).WithCause(err)
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
		return storeError("read", cause)
	}
	return storeError("read", err)
}

// answer says how true what r shows is.
func (s *Server) answer(r reading) *holdfastv1.Answer {
	a := s.answerAt(r.view.Revision())
	a.Age = ageOf(r)
	if since := s.store.CutOff(); since > 0 {
		a.CutOff = durationpb.New(since)
	}
	return a
}

// answerAt is the answer of a write that is part of the state from revision on.
func (s *Server) answerAt(revision int64) *holdfastv1.Answer {
	_, term := s.store.Leader()
	return &holdfastv1.Answer{Revision: revision, Term: term, ServedBy: s.cfg.PeerID}
}
