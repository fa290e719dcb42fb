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

// confirmation is what a round has found out: everything that was acknowledged
// anywhere before begin lies at or below index, and leader led in term after begin.
type confirmation struct {
	begin  time.Time
	index  uint64
	leader string
	term   uint64
}

// indexReader finds indexes to read at. It runs one round at a time; reads that
// arrive during a round share the next, which begins after them.
type indexReader struct {
	store *Store
	wake  chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []*pendingRead
	refresh bool  // a round is wanted, though nobody waits for it
	lastErr error // of the last round, for those that give up
	// For reads that may be old: the newest confirmation whose entry this peer has
	// applied, and one that it may apply any moment.
	served, coming *confirmation

	links map[string]chan request // owned by run
	ended sync.WaitGroup          // the links' goroutines
}

type pendingRead struct {
	ctx  context.Context   // of the caller, who waits
	done chan confirmation // capacity 1
}

func newIndexReader(s *Store) *indexReader {
	return &indexReader{store: s, wake: make(chan struct{}, 1), links: make(map[string]chan request)}
}

// confirm returns the finding of a round that begins after the call.
func (r *indexReader) confirm(ctx context.Context) (confirmation, error) {
	p := &pendingRead{ctx: ctx, done: make(chan confirmation, 1)}
	r.mu.Lock()
	r.waiting = append(r.waiting, p)
	r.mu.Unlock()
	r.rouse()
	select {
	case c := <-p.done:
		return c, nil
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		return confirmation{}, errors.Join(context.Cause(ctx), r.lastErr)
	case <-r.store.stopped:
		return confirmation{}, ErrClosed
	}
}

func (r *indexReader) rouse() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// latest returns the newest confirmation whose entry applied covers, nil if none. If
// that is older than stale, it asks for another round and does not wait for it.
func (r *indexReader) latest(applied uint64, stale time.Duration) *confirmation {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.promote(applied)
	if r.served != nil && time.Since(r.served.begin) > stale && !r.refresh && r.coming == nil {
		r.refresh = true
		r.rouse()
	}
	return r.served
}

func (r *indexReader) promote(applied uint64) {
	if r.coming != nil && r.coming.index <= applied {
		r.served, r.coming = r.coming, nil
	}
}

// note keeps c for reads that may be old. One that is still to be applied is kept
// until it is: under load there is always a newer one, which is not.
func (r *indexReader) note(c confirmation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.promote(r.store.current.Load().root.Index()); r.coming == nil {
		r.coming = &c
	}
}

func (r *indexReader) run(ctx context.Context) {
	defer r.ended.Wait()
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
		refresh := r.refresh
		r.refresh = false
		r.mu.Unlock()
		reads = stillWaiting(reads)
		if len(reads) == 0 && !refresh {
			continue
		}
		begin := time.Now()
		c, err := r.round(ctx)
		r.mu.Lock()
		r.lastErr = err
		r.mu.Unlock()
		if err == nil {
			r.store.metrics.syncSeconds.Observe(time.Since(begin).Seconds())
			r.note(c)
			for _, p := range reads {
				p.done <- c
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

// request asks a peer for its evidence; the answer goes to it. evidence is that.
type (
	request  chan<- evidence
	evidence struct {
		id   string
		resp *peerv1.ReadIndexResponse
		err  error
	}
)

// maxAnswers is far above the number of voters. An answer beyond it is lost.
const maxAnswers = 64

// round gathers the evidence once. All of it is sampled after the call began.
func (r *indexReader) round(ctx context.Context) (confirmation, error) {
	s := r.store
	begin := time.Now()
	timeout := time.NewTimer(roundTimeout)
	defer timeout.Stop()
	leader, _ := s.Leader()
	if leader == "" {
		return confirmation{}, errors.New("no leader is known")
	}
	asked := make(map[string]bool, 4)
	answers := make(chan evidence, maxAnswers)
	ask := func(id string) {
		switch {
		case asked[id]:
			return
		case id == s.cfg.ID:
			answers <- evidence{id: id, resp: s.sample()}
		default:
			r.ask(ctx, id, answers)
		}
		asked[id] = true
	}
	ask(leader)
	ask(s.cfg.ID)
	terms := make(map[string]uint64, 4)
	var lead *peerv1.ReadIndexResponse
	var leadID string
	var errs []error
	for got := 0; got < len(asked); got++ {
		var a evidence
		select {
		case a = <-answers:
		case <-timeout.C:
			return confirmation{}, errors.Join(append(errs, fmt.Errorf("no majority answered within %v", roundTimeout))...)
		case <-ctx.Done():
			return confirmation{}, context.Cause(ctx)
		}
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
			lead, leadID = a.resp, a.id
		}
		if lead == nil {
			continue
		}
		if confirms(lead, terms) {
			return confirmation{begin: begin, index: lead.GetCommitIndex(), leader: leadID, term: lead.GetTerm()}, nil
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
	return confirmation{}, errors.Join(errs...)
}

// ask sends the request to a peer over its link, in place of one of an earlier round
// that has not gone out yet.
func (r *indexReader) ask(ctx context.Context, id string, to request) {
	link := r.links[id]
	if link == nil {
		link = make(chan request, 1)
		r.links[id] = link
		r.ended.Go(func() { r.serve(ctx, id, link) })
	}
	select {
	case <-link:
	default:
	}
	link <- to
}

// serve asks another peer over a stream that it keeps, one request at a time, until
// ctx ends. A call of its own for each request costs several times as much.
func (r *indexReader) serve(ctx context.Context, id string, link <-chan request) {
	var stream peerv1connect.StoreServiceReadIndexesClientStream
	end := func() {}
	defer func() { end() }()
	open := false
	exchange := func() (*peerv1.ReadIndexResponse, error) {
		if !open {
			client, err := r.store.cfg.Remote(id)
			if err != nil {
				return nil, err
			}
			streaming, cancel := context.WithCancel(ctx)
			opened, err := client.ReadIndexes(streaming)
			if err != nil {
				cancel()
				return nil, err
			}
			// A late end of this stream must not be the end of the next one.
			stream, open, end = opened, true, func() { cancel(); opened.Close() }
		}
		late := time.AfterFunc(roundTimeout, end)
		defer late.Stop()
		if err := stream.Send(&peerv1.ReadIndexesRequest{}); err != nil {
			// Why is for Receive to say.
			_, err = stream.Receive()
			return nil, err
		}
		resp, err := stream.Receive()
		return resp.GetAnswer(), err
	}
	for {
		select {
		case to := <-link:
			used, begin := open, time.Now()
			resp, err := exchange()
			if err != nil && used && time.Since(begin) < roundTimeout/2 {
				// The stream may have ended long ago.
				end()
				open = false
				resp, err = exchange()
			}
			if err == nil && resp == nil {
				err = errors.New("its answer is empty")
			}
			if err != nil {
				// A late answer must not be taken for the next one's.
				end()
				open = false
			}
			select {
			case to <- evidence{id: id, resp: resp, err: err}:
			default:
			}
		case <-ctx.Done():
			return
		}
	}
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
	resp := &peerv1.ReadIndexResponse{CommitIndex: s.raft.CommitIndex(), LowSpace: s.room.low.Load(), Incarnation: s.Incarnation()}
	for _, server := range s.configuration().Servers {
		if server.Suffrage == raft.Voter {
			resp.Voters = append(resp.Voters, string(server.ID))
		}
	}
	// All of the above belongs to one term if the term has not moved meanwhile.
	resp.Term = s.raft.CurrentTerm()
	resp.Leader = leads && resp.Term == term && s.Refusal() == nil
	if s.cfg.onSample != nil {
		s.cfg.onSample(s.cfg.ID, resp)
	}
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
