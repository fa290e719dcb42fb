package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// forwarder carries this peer's proposals to the leader, all over one stream, as many
// in a message as wait when it is sent.
type forwarder struct {
	store *Store
	queue *queue
}

func newForwarder(s *Store) *forwarder { return &forwarder{store: s, queue: newQueue()} }

// submit queues p, or finishes it with ErrOverloaded.
func (f *forwarder) submit(p *proposal) {
	if !f.queue.push(p) {
		p.finish(outcome{err: ErrOverloaded})
	}
}

// run forwards until ctx ends. It keeps a stream to the leader, from the first
// proposal on, as long as that leads.
func (f *forwarder) run(ctx context.Context) {
	defer f.giveBack(ErrClosed)
	for ctx.Err() == nil {
		if !f.queue.empty() {
			f.forward(ctx)
			continue
		}
		select {
		case <-f.queue.ready:
		case <-ctx.Done():
		}
	}
}

// giveBack returns all that is queued as not proposed.
func (f *forwarder) giveBack(why error) {
	f.queue.drain(outcome{err: fmt.Errorf("%w: %w", errNotProposed, why)})
}

// forward opens a stream to the leader and serves what is queued, until the stream
// breaks, the leader changes or ctx ends.
func (f *forwarder) forward(ctx context.Context) {
	s := f.store
	leader := s.leader.Load()
	if leader.id == "" || leader.id == s.cfg.ID {
		f.giveBack(errors.New("the leader has changed"))
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
		f.giveBack(fmt.Errorf("peer %s: %w", leader.id, err))
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
			sent.finish(resp.GetAnswers())
		}
	})
	var frame []*proposal
	for ctx.Err() == nil {
		if frame = f.queue.collect(frame[:0]); len(frame) == 0 {
			select {
			case <-f.queue.ready:
				runtime.Gosched() // other proposers go first: then they share a message
			case <-ctx.Done():
			}
			continue
		}
		req := &peerv1.ForwardRequest{First: sent.add(frame), Txns: make([][]byte, len(frame))}
		for i, p := range frame {
			req.Txns[i] = p.txn
		}
		clear(frame)
		if err := stream.Send(req); err != nil {
			cancel(err)
		}
	}
	stream.Close()
	why := <-broken // nothing is received after it
	if cause := context.Cause(ctx); cause != nil {
		why = cause
	}
	for _, p := range sent.byID {
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

// add gives the proposals consecutive ids and returns the first.
func (s *sentProposals) add(frame []*proposal) (first uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first = s.last + 1
	for _, p := range frame {
		s.last++
		s.byID[s.last] = p
	}
	return first
}

// finish hands out answers. One to a question that was not asked is passed over.
func (s *sentProposals) finish(answers []*peerv1.ForwardAnswer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range answers {
		if p := s.byID[a.GetId()]; p != nil {
			delete(s.byID, a.GetId())
			p.finish(received(a))
		}
	}
}

// received turns the leader's answer into an outcome.
func received(a *peerv1.ForwardAnswer) outcome {
	e := a.GetError()
	switch {
	case e == nil && a.GetResult() == nil:
		return outcome{err: fmt.Errorf("%w: the leader's answer is empty", ErrOutcomeUnknown)}
	case e == nil:
		return outcome{result: a.GetResult()}
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

// sendable turns an outcome into an answer.
func sendable(id uint64, out outcome) *peerv1.ForwardAnswer {
	if out.err == nil {
		return &peerv1.ForwardAnswer{Id: id, Result: out.result}
	}
	e := &peerv1.ForwardError{Message: out.err.Error()}
	switch {
	case errors.Is(out.err, ErrOutcomeUnknown):
		e.OutcomeUnknown = true
	case errors.Is(out.err, errNotProposed):
		e.Reason = peerv1.ForwardReason_FORWARD_REASON_NOT_LEADER
	case errors.Is(out.err, ErrOverloaded):
		e.Reason = peerv1.ForwardReason_FORWARD_REASON_OVERLOADED
	case errors.Is(out.err, ErrNoSpace):
		e.Reason = peerv1.ForwardReason_FORWARD_REASON_NO_SPACE
	}
	return &peerv1.ForwardAnswer{Id: id, Error: e}
}

// Forward implements peerv1connect.StoreServiceHandler: the leader's end of the
// stream. It ends when the caller ends it.
func (s service) Forward(ctx context.Context, stream peerv1connect.StoreServiceForwardServerStream) error {
	if leader, _ := s.Leader(); leader != s.cfg.ID {
		return connect.Errorf(connect.CodeFailedPrecondition, "peer %s does not lead", s.cfg.ID)
	}
	out := &answers{ready: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sender sync.WaitGroup
	defer sender.Wait()
	defer cancel() // before the wait
	sender.Go(func() {
		// The greeting, without an answer: see forwarder.open.
		for frame := []*peerv1.ForwardAnswer(nil); ; frame = out.take() {
			if stream.Send(&peerv1.ForwardResponse{Answers: frame}) != nil {
				return // Receive ends as well
			}
			for out.empty() {
				select {
				case <-out.ready:
					runtime.Gosched() // the rest of a batch's answers go first
				case <-ctx.Done():
					return
				}
			}
		}
	})
	var screen mvcc.Screen
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for i, txn := range req.GetTxns() {
			id := req.GetFirst() + uint64(i)
			p := &proposal{txn: txn, begin: time.Now(), answer: func(o outcome) { out.add(id, o) }}
			if err := p.understand(&screen); err != nil {
				p.finish(outcome{err: fmt.Errorf("%w: %w", ErrInvalid, err)})
			} else {
				s.batcher.submit(p)
			}
		}
	}
}

// understand looks at a transaction that another peer sends. That one has checked it,
// but with its own version's eyes: what this one does not understand must not get
// into the log, where it would stop all peers of this version.
func (p *proposal) understand(screen *mvcc.Screen) error {
	if screen.Plain(p.txn) {
		p.lane = laneUsers
		return nil
	}
	txn := decoded.Get().(*raftv1.Txn)
	defer decoded.Put(txn)
	if err := proto.Unmarshal(p.txn, txn); err != nil {
		return err
	}
	p.classify(txn.GetThen(), txn.GetOtherwise())
	return mvcc.Check(txn)
}

var decoded = sync.Pool{New: func() any { return new(raftv1.Txn) }}

// answers are those that wait to be sent. Adding never blocks: whoever adds has
// more to do than to wait for a slow reader. There are no more than proposals.
type answers struct {
	ready chan struct{} // capacity 1
	mu    sync.Mutex
	list  []*peerv1.ForwardAnswer
}

func (a *answers) add(id uint64, out outcome) {
	resp := sendable(id, out)
	a.mu.Lock()
	a.list = append(a.list, resp)
	a.mu.Unlock()
	select {
	case a.ready <- struct{}{}:
	default:
	}
}

func (a *answers) empty() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.list) == 0
}

// take returns what waits, up to a frame's size, at least one.
func (a *answers) take() []*peerv1.ForwardAnswer {
	a.mu.Lock()
	defer a.mu.Unlock()
	size, n := 0, 0
	for n < len(a.list) && size < maxBatchBytes && n < maxBatchTxns {
		size += proto.Size(a.list[n])
		n++
	}
	list := a.list[:n:n]
	if a.list = a.list[n:]; len(a.list) == 0 {
		a.list = nil
	}
	return list
}
