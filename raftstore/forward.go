package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// forwarder carries this peer's proposals to the leader, all over one stream.
type forwarder struct {
	store *Store
	queue chan *proposal
}

func newForwarder(s *Store) *forwarder {
	return &forwarder{store: s, queue: make(chan *proposal, queueLength)}
}

// submit queues p, or finishes it with ErrOverloaded.
func (f *forwarder) submit(p *proposal) {
	select {
	case f.queue <- p:
	default:
		p.finish(outcome{err: ErrOverloaded})
	}
}

// run forwards until ctx ends. It keeps a stream to the leader, from the first
// proposal on, as long as that leads.
func (f *forwarder) run(ctx context.Context) {
	for {
		select {
		case p := <-f.queue:
			f.forward(ctx, p)
		case <-ctx.Done():
			f.giveBack(nil, ErrClosed)
			return
		}
	}
}

// giveBack returns first, and all that is queued, as not proposed.
func (f *forwarder) giveBack(first *proposal, why error) {
	for p := first; ; {
		if p != nil && p.take() {
			p.finish(outcome{err: fmt.Errorf("%w: %w", errNotProposed, why)})
		}
		select {
		case p = <-f.queue:
		default:
			return
		}
	}
}

// forward opens a stream to the leader and serves first, and what comes after it,
// until the stream breaks, the leader changes or ctx ends.
func (f *forwarder) forward(ctx context.Context, first *proposal) {
	s := f.store
	leader := s.leader.Load()
	if leader.id == "" || leader.id == s.cfg.ID {
		f.giveBack(first, errors.New("the leader has changed"))
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel(nil) // before the wait

	// A stream to a peer that leads no more would keep callers waiting for what
	// may never come.
	parts.Go(func() {
		for l := leader; ; l = s.leader.Load() {
			if l.id != leader.id && l.id != "" {
				cancel(fmt.Errorf("peer %s leads now", l.id))
				return
			}
			select {
			case <-l.changed:
			case <-ctx.Done():
				return
			}
		}
	})

	stream, err := f.open(ctx, leader.id)
	if err != nil {
		f.giveBack(first, fmt.Errorf("peer %s: %w", leader.id, err))
		return
	}
	defer stream.Close()

	sent := &sentProposals{byID: make(map[uint64]*proposal)}
	broken := make(chan error, 1)
	parts.Go(func() {
		for {
			resp, err := stream.Receive()
			if err != nil {
				broken <- err
				cancel(err)
				return
			}
			if p := sent.remove(resp.GetId()); p != nil {
				p.finish(received(resp))
			}
		}
	})
	for p := first; ctx.Err() == nil; {
		if p != nil && p.take() {
			if err := stream.Send(&peerv1.ForwardRequest{Id: sent.add(p), Txn: p.txn}); err != nil {
				cancel(err)
			}
		}
		select {
		case p = <-f.queue:
			if ctx.Err() != nil {
				f.giveBack(p, context.Cause(ctx))
			}
		case <-ctx.Done():
		}
	}
	stream.Close()
	why := <-broken // nothing is received after it
	if cause := context.Cause(ctx); cause != nil {
		why = cause
	}
	for _, p := range sent.all() {
		p.finish(outcome{err: fmt.Errorf("%w: the stream to leader %s ended: %w", ErrOutcomeUnknown, leader.id, why)})
	}
}

// open returns a stream on which the leader has said that it is one: until then
// nothing is sent, and so nothing can be in doubt.
func (f *forwarder) open(ctx context.Context, leader string) (stream peerv1connect.StoreServiceForwardClientStream, err error) {
	client, err := f.store.cfg.Remote(leader)
	if err != nil {
		return stream, err
	}
	if stream, err = client.Forward(ctx); err != nil {
		return stream, err
	}
	if err = stream.SendHeaders(); err == nil {
		_, err = stream.Receive()
	}
	if err != nil {
		return stream, errors.Join(err, stream.Close())
	}
	return stream, nil
}

// sentProposals are those on the stream without an answer yet.
type sentProposals struct {
	mu   sync.Mutex
	last uint64
	byID map[uint64]*proposal
}

func (s *sentProposals) add(p *proposal) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.byID[s.last] = p
	return s.last
}

func (s *sentProposals) remove(id uint64) *proposal {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.byID[id]
	delete(s.byID, id)
	return p
}

func (s *sentProposals) all() []*proposal {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*proposal
	for _, p := range s.byID {
		all = append(all, p)
	}
	return all
}

// received turns the leader's answer into an outcome.
func received(resp *peerv1.ForwardResponse) outcome {
	if e := resp.GetError(); e != nil {
		switch {
		case e.GetOutcomeUnknown():
			return outcome{err: fmt.Errorf("%w: %s", ErrOutcomeUnknown, e.GetMessage())}
		case e.GetReason() == peerv1.ForwardReason_FORWARD_REASON_NOT_LEADER:
			return outcome{err: fmt.Errorf("%w: %s", errNotProposed, e.GetMessage())}
		case e.GetReason() == peerv1.ForwardReason_FORWARD_REASON_OVERLOADED:
			return outcome{err: ErrOverloaded}
		case e.GetReason() == peerv1.ForwardReason_FORWARD_REASON_NO_SPACE:
			return outcome{err: ErrNoSpace}
		default:
			return outcome{err: fmt.Errorf("%w: %s", ErrInvalid, e.GetMessage())}
		}
	}
	result := new(raftv1.TxnResult)
	if err := proto.Unmarshal(resp.GetResult(), result); err != nil {
		return outcome{err: fmt.Errorf("%w: decode the leader's answer: %w", ErrOutcomeUnknown, err)}
	}
	return outcome{result: result}
}

// sendable turns an outcome into an answer.
func sendable(id uint64, out outcome) *peerv1.ForwardResponse {
	resp := &peerv1.ForwardResponse{Id: id}
	if out.err == nil {
		var err error
		if resp.Result, err = proto.Marshal(out.result); err == nil {
			return resp
		}
		out.err = fmt.Errorf("%w: encode the answer: %w", ErrOutcomeUnknown, err)
	}
	resp.Error = &peerv1.ForwardError{Message: out.err.Error()}
	switch {
	case errors.Is(out.err, ErrOutcomeUnknown):
		resp.Error.OutcomeUnknown = true
	case errors.Is(out.err, errNotProposed):
		resp.Error.Reason = peerv1.ForwardReason_FORWARD_REASON_NOT_LEADER
	case errors.Is(out.err, ErrOverloaded):
		resp.Error.Reason = peerv1.ForwardReason_FORWARD_REASON_OVERLOADED
	case errors.Is(out.err, ErrNoSpace):
		resp.Error.Reason = peerv1.ForwardReason_FORWARD_REASON_NO_SPACE
	}
	return resp
}

// Forward implements peerv1connect.StoreServiceHandler: the leader's end of the
// stream. It ends when the caller ends it.
func (s service) Forward(ctx context.Context, stream peerv1connect.StoreServiceForwardServerStream) error {
	if leader, _ := s.Leader(); leader != s.cfg.ID {
		return connect.Errorf(connect.CodeFailedPrecondition, "peer %s does not lead", s.cfg.ID)
	}
	out := &answers{ready: make(chan struct{}, 1)}
	out.add(&peerv1.ForwardResponse{}) // the greeting, see forwarder.open

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel() // before the wait
	sender.Go(func() {
		for {
			for _, resp := range out.take() {
				if stream.Send(resp) != nil {
					return // Receive ends as well
				}
			}
			select {
			case <-out.ready:
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p := newProposal(req.GetTxn())
		p.answer = func(o outcome) { out.add(sendable(req.GetId(), o)) }
		// The caller has checked it, but with its own version's eyes: what this one
		// does not understand must not get into the log.
		var txn raftv1.Txn
		if err := proto.Unmarshal(p.txn, &txn); err != nil {
			p.finish(outcome{err: fmt.Errorf("%w: %w", ErrInvalid, err)})
		} else if err := check(&txn); err != nil {
			p.finish(outcome{err: err})
		} else {
			s.batcher.submit(p)
		}
	}
}

// answers are those that wait to be sent. Adding never blocks: whoever adds has
// more to do than to wait for a slow reader. There are no more than proposals.
type answers struct {
	ready chan struct{} // capacity 1
	mu    sync.Mutex
	list  []*peerv1.ForwardResponse
}

func (a *answers) add(resp *peerv1.ForwardResponse) {
	a.mu.Lock()
	a.list = append(a.list, resp)
	a.mu.Unlock()
	select {
	case a.ready <- struct{}{}:
	default:
	}
}

func (a *answers) take() []*peerv1.ForwardResponse {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := a.list
	a.list = nil
	return list
}
