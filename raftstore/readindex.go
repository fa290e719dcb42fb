package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/hashicorp/raft"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
)

// Linearizable reads from any peer, by term quorum (as tikv/raft-rs#427 proves):
// if, after a read began, the leader of term T names its commit index and a
// majority of voters is still in term T, then no later term had a leader when the
// read began, since its majority would have had to leave T first. So everything
// acknowledged by then lies at or below that index. No clock takes part: a peer
// that was paused, in any place, for any time, gives evidence from after the pause.

// roundTimeout bounds one attempt to gather the evidence.
const roundTimeout = time.Second

// Sync returns a view, on this peer, that holds everything that was acknowledged
// anywhere before the call: a linearizable read. Concurrent calls share their
// rounds. It fails with an ErrNoLeader, within 10 s, while no majority can be
// reached or this peer cannot catch up; with ErrClosed.
func (s *Store) Sync(ctx context.Context) (View, error) {
	if err := s.Refusal(); err != nil {
		return View{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, leaderWait, fmt.Errorf("not confirmed within %v", leaderWait))
	defer cancel()
	index, err := s.reader.index(ctx)
	if err == nil {
		var view View
		if view, err = s.waitIndex(ctx, index); err == nil {
			return view, nil
		}
		err = fmt.Errorf("this peer has not caught up with entry %d: %w", index, err)
	}
	if errors.Is(err, ErrClosed) {
		return View{}, ErrClosed
	}
	return View{}, fmt.Errorf("%w confirmed the read: %w", ErrNoLeader, err)
}

// indexReader finds indexes to read at. It runs one round at a time; reads that
// arrive during a round share the next, which begins after them.
type indexReader struct {
	store *Store
	wake  chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []*pendingRead
	lastErr error // of the last round, for those that give up
}

type pendingRead struct {
	ctx   context.Context // of the caller, who waits
	index chan uint64     // capacity 1
}

func newIndexReader(s *Store) *indexReader {
	return &indexReader{store: s, wake: make(chan struct{}, 1)}
}

// index returns the index of an entry that is not older than anything acknowledged
// before the call.
func (r *indexReader) index(ctx context.Context) (uint64, error) {
	p := &pendingRead{ctx: ctx, index: make(chan uint64, 1)}
	r.mu.Lock()
	r.waiting = append(r.waiting, p)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	select {
	case index := <-p.index:
		return index, nil
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		return 0, errors.Join(context.Cause(ctx), r.lastErr)
	case <-r.store.stopped:
		return 0, ErrClosed
	}
}

func (r *indexReader) run(ctx context.Context) {
	var reads []*pendingRead
	retry := newBackoff()
	for {
		if len(reads) == 0 {
			select {
			case <-r.wake:
			case <-ctx.Done():
				return
			}
		}
		leader := r.store.leader.Load()
		// Those of a failed round are older than the next one's beginning, too.
		r.mu.Lock()
		reads = append(reads, r.waiting...)
		r.waiting = nil
		r.mu.Unlock()
		reads = stillWaiting(reads)
		if len(reads) == 0 {
			continue
		}
		begin := time.Now()
		index, err := r.round(ctx)
		r.mu.Lock()
		r.lastErr = err
		r.mu.Unlock()
		if err == nil {
			r.store.metrics.syncSeconds.Observe(time.Since(begin).Seconds())
			for _, p := range reads {
				p.index <- index
			}
			reads, retry = nil, newBackoff()
			continue
		}
		again, stop := retry.timer(true)
		select {
		case <-again:
		case <-leader.changed:
		case <-ctx.Done():
			stop()
			return
		}
		stop()
	}
}

func stillWaiting(reads []*pendingRead) []*pendingRead {
	kept := reads[:0]
	for _, p := range reads {
		if p.ctx.Err() == nil {
			kept = append(kept, p)
		}
	}
	return kept
}

// round gathers the evidence once. All of it is sampled after the call began.
func (r *indexReader) round(ctx context.Context) (uint64, error) {
	s := r.store
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()

	type answer struct {
		id   string
		resp *peerv1.ReadIndexResponse
		err  error
	}
	asked := make(map[string]bool)
	answers := make(chan answer)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel() // before the wait
	ask := func(id string) {
		if asked[id] {
			return
		}
		asked[id] = true
		asking.Go(func() {
			a := answer{id: id}
			if id == s.cfg.ID {
				a.resp = s.sample()
			} else if client, err := s.cfg.Remote(id); err != nil {
				a.err = err
			} else {
				a.resp, a.err = client.ReadIndex(ctx, &peerv1.ReadIndexRequest{})
			}
			select {
			case answers <- a:
			case <-ctx.Done():
			}
		})
	}

	leader, _ := s.Leader()
	if leader == "" {
		return 0, errors.New("no leader is known")
	}
	ask(s.cfg.ID)
	ask(leader)
	terms := make(map[string]uint64)
	var lead *peerv1.ReadIndexResponse
	var errs []error
	for got := 0; got < len(asked); {
		var a answer
		select {
		case a = <-answers:
		case <-ctx.Done():
			return 0, errors.Join(append(errs, fmt.Errorf("no majority answered: %w", ctx.Err()))...)
		}
		got++
		if a.err != nil {
			errs = append(errs, fmt.Errorf("peer %s: %w", a.id, a.err))
			continue
		}
		if theirs := a.resp.GetIncarnation(); theirs != s.Incarnation() {
			s.superseded(theirs)
			errs = append(errs, fmt.Errorf("peer %s is in incarnation %d of the cluster, not %d", a.id, theirs, s.Incarnation()))
			continue
		}
		terms[a.id] = a.resp.GetTerm()
		if a.resp.GetLeader() && a.resp.GetTerm() > lead.GetTerm() {
			lead = a.resp
		}
		if lead == nil {
			continue
		}
		if confirms(lead, terms) {
			return lead.GetCommitIndex(), nil
		}
		for _, id := range lead.GetVoters() {
			ask(id)
		}
	}
	if lead == nil {
		errs = append(errs, fmt.Errorf("peer %s does not vouch for reads yet", leader))
	} else {
		errs = append(errs, fmt.Errorf("no majority is in term %d", lead.GetTerm()))
	}
	return 0, errors.Join(errs...)
}

// confirms reports whether a majority of the leader's own voters is in its term.
// The reader's configuration plays no part: it may be older, if the reader is cut
// off or removed, and its majority none.
func confirms(lead *peerv1.ReadIndexResponse, terms map[string]uint64) bool {
	agree := 0
	for _, id := range lead.GetVoters() {
		if terms[id] == lead.GetTerm() {
			agree++
		}
	}
	return agree > len(lead.GetVoters())/2
}

// sample is this peer's evidence.
func (s *Store) sample() *peerv1.ReadIndexResponse {
	term := s.raft.CurrentTerm()
	leads := s.raft.State() == raft.Leader && s.current.Load().root.MarkerTerm() == term
	resp := &peerv1.ReadIndexResponse{CommitIndex: s.raft.CommitIndex(), Incarnation: s.Incarnation()}
	for _, server := range s.configuration().Servers {
		if server.Suffrage == raft.Voter {
			resp.Voters = append(resp.Voters, string(server.ID))
		}
	}
	// All of the above belongs to one term if the term has not moved meanwhile.
	resp.Term = s.raft.CurrentTerm()
	resp.Leader = leads && resp.Term == term && s.Refusal() == nil
	return resp
}

// service is the part of peerv1connect.StoreServiceHandler that reads; see Forward.
type service struct{ *Store }

// ReadIndex implements peerv1connect.StoreServiceHandler.
func (s service) ReadIndex(context.Context, *peerv1.ReadIndexRequest) (*peerv1.ReadIndexResponse, error) {
	if !s.isReady() {
		return nil, connect.NewError(connect.CodeUnavailable, "the store is starting")
	}
	return s.sample(), nil
}

// ReadIndexes implements peerv1connect.StoreServiceHandler.
func (s service) ReadIndexes(ctx context.Context, stream peerv1connect.StoreServiceReadIndexesServerStream) error {
	for {
		if _, err := stream.Receive(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		answer, err := s.ReadIndex(ctx, nil)
		if err != nil {
			return err
		}
		if err := stream.Send(&peerv1.ReadIndexesResponse{Answer: answer}); err != nil {
			return err
		}
	}
}
