package apiserver

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// freshness remembers when this peer last proved that its state was current:
// the begin of the last linearizable read. Every later local view is at least as
// new, which bounds the age of local reads.
type freshness struct {
	mu sync.Mutex
	at time.Time // zero: never
}

func (f *freshness) proved(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at.After(f.at) {
		f.at = at
	}
}

// age returns how old a local view may be, nil when that cannot be said.
func (f *freshness) age(now time.Time) *time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at.IsZero() {
		return nil
	}
	age := max(now.Sub(f.at), 0)
	return &age
}

// reading is a view and how old it may be.
type reading struct {
	view raftstore.View
	age  *time.Duration // nil: unknown
}

// read returns a view as fresh as opts asks for. It waits at most waitTimeout
// for a quorum or a revision; then it fails with Unavailable.
func (s *Server) read(ctx context.Context, opts *holdfastv1.ReadOptions) (reading, error) {
	var r reading
	switch c := opts.GetConsistency(); c {
	case holdfastv1.Consistency_CONSISTENCY_UNSPECIFIED, holdfastv1.Consistency_CONSISTENCY_LINEARIZABLE:
		view, err := s.sync(ctx)
		if err != nil {
			return reading{}, err
		}
		r = reading{view: view, age: new(time.Duration)}
	case holdfastv1.Consistency_CONSISTENCY_LOCAL:
		// The age is taken first: the view can only be newer.
		age := s.fresh.age(time.Now())
		r = reading{view: s.store.View(), age: age}
	default:
		return reading{}, badRequest("read.consistency", "%d is not a consistency that this peer knows; use linearizable or local", c)
	}
	if minimum := opts.GetMinRevision(); minimum > r.view.Revision() {
		view, err := s.waitRevision(ctx, minimum)
		if err != nil {
			return reading{}, err
		}
		r.view = view
	}
	return r, nil
}

// sync returns a view that holds everything acknowledged before the call.
func (s *Server) sync(ctx context.Context) (raftstore.View, error) {
	start := time.Now()
	bounded, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	view, err := s.store.Sync(bounded)
	if err == nil {
		s.fresh.proved(start)
		return view, nil
	}
	if ctx.Err() == nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, raftstore.ErrNoLeader)) {
		return raftstore.View{}, connect.Errorf(connect.CodeUnavailable,
			"peer %s could not prove within %s that its state is current: no leader, or a majority of peers cannot be reached; ask another peer, or read with consistency local",
			s.cfg.PeerID, waitTimeout).WithCause(err)
	}
	return raftstore.View{}, storeError("read", err)
}

// waitRevision returns a view at or past revision.
func (s *Server) waitRevision(ctx context.Context, revision int64) (raftstore.View, error) {
	bounded, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	view, err := s.store.WaitRevision(bounded, revision)
	if err == nil {
		return view, nil
	}
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return raftstore.View{}, connect.Errorf(connect.CodeUnavailable,
			"peer %s is at revision %d and did not reach %d within %s; ask another peer",
			s.cfg.PeerID, s.store.View().Revision(), revision, waitTimeout).WithCause(err)
	}
	return raftstore.View{}, storeError(fmt.Sprintf("wait for revision %d", revision), err)
}

// answer says how true what r shows is.
func (s *Server) answer(r reading) *holdfastv1.Answer {
	a := s.answerAt(r.view.Revision())
	if r.age != nil {
		a.Age = durationpb.New(*r.age)
	}
	return a
}

// answerAt is the answer of a write that is part of the state from revision on.
func (s *Server) answerAt(revision int64) *holdfastv1.Answer {
	_, term := s.store.Leader()
	return &holdfastv1.Answer{Revision: revision, Term: term, ServedBy: s.cfg.PeerID}
}
