package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
)

// ErrOutcomeUnknown is what calls of a Session end with that may have been carried
// out, now or later: the stream broke, or the leader was lost, or the caller did not
// wait. Read before trying again; or give transactions an id.
var ErrOutcomeUnknown = errors.New("outcome unknown: it may have been carried out")

// SessionOptions bound a Session. The zero value of a field is its default.
type SessionOptions struct {
	// MaxCalls and MaxBytes bound the calls without an answer; who calls beyond
	// waits. Optional; 4096 and 16 MiB.
	MaxCalls, MaxBytes int
}

// Session carries calls of the raw-store service to one peer over one stream, many
// in a message and without waiting for each other's answers: the fast way for
// programs with many callers at once. When the stream breaks, it goes on with
// another peer: reads, and transactions with an id, are sent again; other calls that
// had been sent end with ErrOutcomeUnknown. Safe for concurrent use. Make it with
// [Client.Session].
type Session struct {
	client *Client
	store  storev1connect.StoreServiceClient
	opts   SessionOptions
	life   context.Context // ends with Close
	end    context.CancelCauseFunc
	ended  chan struct{} // closed when run has returned
	wake   chan struct{} // capacity 1: there is something to send

	mu    sync.Mutex
	queue []*call // not sent
	sent  map[uint64]*call
	last  uint64        // the id given last
	calls int           // without an answer
	bytes int           // of them
	room  chan struct{} // closed when there are fewer; nil while nobody waits
}

// call is a call without an answer.
type call struct {
	msg   *storev1.Call
	size  int
	begin time.Time
	done  chan answer // capacity 1
	// doubt: a transaction with an id that was sent and not answered, and is sent
	// again. No refusal that comes later says that nothing has happened. Session.mu.
	doubt bool
}

type answer struct {
	reply *storev1.Reply
	err   error
}

const (
	// sessionMessageBytes ends a message of calls.
	sessionMessageBytes = 256 << 10
	callOverhead        = 64
	reopenPause         = 50 * time.Millisecond
	reopenPauseMax      = time.Second
)

// Session returns a session. Close it.
func (c *Client) Session(opts SessionOptions) *Session {
	opts.MaxCalls = cmp.Or(opts.MaxCalls, 4096)
	opts.MaxBytes = cmp.Or(opts.MaxBytes, 16<<20)
	s := &Session{
		client: c, store: storev1connect.NewStoreServiceClient(c.connect), opts: opts,
		ended: make(chan struct{}), wake: make(chan struct{}, 1), sent: make(map[uint64]*call),
	}
	s.life, s.end = context.WithCancelCause(context.Background())
	go s.run() // until Close
	return s
}

// Close ends the session: calls without an answer fail. It waits for nothing but its
// own goroutines.
func (s *Session) Close() {
	s.end(errClosed)
	<-s.ended
}

// Range reads keys. Header has the term and the peer only for unary calls.
func (s *Session) Range(ctx context.Context, req *storev1.RangeRequest) (*storev1.RangeResponse, error) {
	reply, err := s.Do(ctx, &storev1.Call{Call: &storev1.Call_Range{Range: req}})
	return reply.GetRange(), err
}

// Put sets one key.
func (s *Session) Put(ctx context.Context, req *storev1.PutRequest) (*storev1.PutResponse, error) {
	reply, err := s.Do(ctx, &storev1.Call{Call: &storev1.Call_Put{Put: req}})
	return reply.GetPut(), err
}

// Delete removes one key, or a range.
func (s *Session) Delete(ctx context.Context, req *storev1.DeleteRequest) (*storev1.DeleteResponse, error) {
	reply, err := s.Do(ctx, &storev1.Call{Call: &storev1.Call_Delete{Delete: req}})
	return reply.GetDelete(), err
}

// Txn runs a conditional transaction. One with an id takes place once at most,
// however often the session has to send it.
func (s *Session) Txn(ctx context.Context, req *storev1.TxnRequest) (*storev1.TxnResponse, error) {
	reply, err := s.Do(ctx, &storev1.Call{Call: &storev1.Call_Txn{Txn: req}})
	return reply.GetTxn(), err
}

// KeepAlive gives a lease its whole time again.
func (s *Session) KeepAlive(ctx context.Context, req *storev1.LeaseKeepAliveRequest) (*storev1.LeaseKeepAliveResponse, error) {
	reply, err := s.Do(ctx, &storev1.Call{Call: &storev1.Call_KeepAlive{KeepAlive: req}})
	return reply.GetKeepAlive(), err
}

// Do makes a call and waits for its answer; it chooses the call's id. A Failure
// becomes a *connect.Error with its code, which is an ErrOutcomeUnknown if it says
// so. When ctx ends first the error is ctx's as well, and an ErrOutcomeUnknown if a
// write had been sent. While no peer can be reached, a call waits as long as unary
// calls are retried, see Config.RetryFor; then it is Unavailable.
func (s *Session) Do(ctx context.Context, msg *storev1.Call) (*storev1.Reply, error) {
	c := &call{msg: msg, size: callOverhead, begin: time.Now(), done: make(chan answer, 1)}
	if put := msg.GetPut(); put != nil {
		c.size += len(put.GetKey()) + len(put.GetValue())
	} else {
		c.size += proto.Size(msg)
	}
	if err := s.enqueue(ctx, c); err != nil {
		return nil, err
	}
	select {
	case a := <-c.done:
		return a.reply, a.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	i := slices.Index(s.queue, c)
	doubt := c.doubt
	if i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
		s.release(c)
	}
	s.mu.Unlock()
	switch {
	case i >= 0 && !doubt, msg.GetRange() != nil:
		return nil, context.Cause(ctx)
	}
	// It keeps its place until it is answered: the peer still has it.
	return nil, unknown("nobody waited for the answer", context.Cause(ctx))
}

// enqueue gives c its id and its place in the queue, once there is room.
func (s *Session) enqueue(ctx context.Context, c *call) error {
	for {
		s.mu.Lock()
		if s.life.Err() != nil {
			s.mu.Unlock()
			return sessionClosed()
		}
		if s.calls == 0 || s.calls < s.opts.MaxCalls && s.bytes < s.opts.MaxBytes {
			s.calls++
			s.bytes += c.size
			s.last++
			c.msg.Id = s.last
			s.queue = append(s.queue, c)
			first := len(s.queue) == 1
			s.mu.Unlock()
			if first {
				s.wakeUp()
			}
			return nil
		}
		if s.room == nil {
			s.room = make(chan struct{})
		}
		room := s.room
		s.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.life.Done():
			return sessionClosed()
		}
	}
}

func sessionClosed() error {
	return connect.NewError(connect.CodeUnavailable, "the session is closed").WithCause(errClosed)
}

func (s *Session) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// release gives back the room of a call. s.mu is held.
func (s *Session) release(c *call) {
	s.calls--
	s.bytes -= c.size
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

// run keeps a stream open while there are calls, and serves them, until Close.
func (s *Session) run() {
	defer close(s.ended)
	pause := reopenPause
	for {
		if !s.waitForCalls() {
			break
		}
		peer, err := s.serve()
		if s.life.Err() != nil {
			break
		}
		if peer != "" {
			pause = reopenPause
		}
		s.sortOut(err)
		if peer != "" && s.client.Peer() == peer {
			s.client.Switch(fmt.Sprintf("its session ended: %v", err))
		}
		s.client.log.Info("session ended, opening another", "err", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.life.Done():
		}
		timer.Stop()
		pause = min(2*pause, reopenPauseMax)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.unanswered() {
		s.finish(c, answer{err: unknown("the session was closed before the answer", errClosed)})
	}
	for _, c := range s.queue {
		s.finish(c, answer{err: sessionClosed()})
	}
	s.sent, s.queue = nil, nil
}

// finish ends a call. s.mu is held.
func (s *Session) finish(c *call, a answer) {
	if c.doubt && a.err != nil && !errors.Is(a.err, ErrOutcomeUnknown) {
		a = answer{err: unknown("the connection broke before the first answer, and it could not be repeated", a.err)}
	}
	s.release(c)
	c.done <- a
}

// unknown is the error of a call that may have been carried out.
func unknown(what string, why error) error {
	return connect.Errorf(connect.CodeUnknown, "%s: read before trying again: %v", what, why).WithCause(errors.Join(ErrOutcomeUnknown, why))
}

// waitForCalls reports whether there is something to send, once there is.
func (s *Session) waitForCalls() bool {
	for {
		s.mu.Lock()
		waiting := len(s.queue) > 0
		s.mu.Unlock()
		switch {
		case s.life.Err() != nil:
			return false
		case waiting:
			return true
		}
		select {
		case <-s.wake:
		case <-s.life.Done():
		}
	}
}

// serve opens a stream and sends calls over it until it breaks. peer is empty unless
// one has said anything.
func (s *Session) serve() (peer string, err error) {
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	stream, err := s.store.Session(ctx)
	if err != nil {
		return "", err
	}
	// The end of its context alone does not end a stream that is being written.
	end := sync.OnceFunc(func() {
		cancel()
		_ = stream.Close()
	})
	defer end()
	defer context.AfterFunc(s.life, end)()
	// A peer that is alive says hello at once.
	patience := time.AfterFunc(2*s.client.cfg.DialTimeout, end)
	defer patience.Stop()
	if err := stream.SendHeaders(); err != nil {
		return "", err
	}
	if _, err := stream.Receive(); err != nil {
		return "", err
	}
	patience.Stop()
	peer = s.client.Peer()

	broken := make(chan error, 1)
	go func() { // ends with the stream
		for {
			msg, err := stream.Receive()
			if err != nil {
				broken <- err
				return
			}
			s.answer(msg.GetReplies())
		}
	}()
	for {
		if calls := s.take(); len(calls) > 0 {
			if err := stream.Send(&storev1.SessionRequest{Calls: calls}); err != nil {
				end()
				return peer, errors.Join(<-broken, err) // the peer's word says more
			}
			continue
		}
		select {
		case <-s.wake:
			runtime.Gosched() // other callers go first: then they share a message
		case err := <-broken:
			return peer, err
		case <-s.life.Done():
			end()
			<-broken
			return peer, errClosed
		}
	}
}

// take moves calls from the queue to those sent, a message full.
func (s *Session) take() []*storev1.Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, size := 0, 0
	for n < len(s.queue) && size < sessionMessageBytes {
		size += s.queue[n].size
		n++
	}
	if n == 0 {
		return nil
	}
	calls := make([]*storev1.Call, n)
	for i, c := range s.queue[:n] {
		calls[i] = c.msg
		s.sent[c.msg.GetId()] = c
		s.queue[i] = nil
	}
	if s.queue = s.queue[n:]; len(s.queue) == 0 {
		s.queue = nil
	}
	return calls
}

// answer hands replies to their callers.
func (s *Session) answer(replies []*storev1.Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, reply := range replies {
		c := s.sent[reply.GetId()]
		if c == nil {
			continue // the peer is not to be trusted with more than it was asked
		}
		delete(s.sent, reply.GetId())
		a := answer{reply: reply}
		if f := reply.GetFailure(); f != nil {
			a = answer{err: failureError(f)}
		}
		s.finish(c, a)
	}
}

// failureError turns a Failure into the error of a unary call.
func failureError(f *storev1.Failure) error {
	var code connect.Code
	if err := code.UnmarshalText([]byte(f.GetCode())); err != nil {
		code = connect.CodeUnknown
	}
	err := connect.NewError(code, f.GetMessage())
	if f.GetOutcomeUnknown() {
		return err.WithCause(ErrOutcomeUnknown)
	}
	return err
}

// sortOut decides about the calls after the stream broke with why: those that may be
// sent again go back into the queue, in order; the others have an outcome that
// nobody knows. Calls that wait in vain for any peer fail.
func (s *Session) sortOut(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := s.unanswered()
	clear(s.sent)
	refused := false // as it would be again
	switch connect.CodeOf(why) {
	case connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeUnimplemented, connect.CodeResourceExhausted:
		refused = true
	}
	var again []*call
	for _, c := range append(lost, s.queue...) {
		_, wasSent := slices.BinarySearchFunc(lost, c.msg.GetId(), func(l *call, id uint64) int { return cmp.Compare(l.msg.GetId(), id) })
		c.doubt = c.doubt || wasSent && c.msg.GetTxn() != nil
		switch {
		case wasSent && !repeatableCall(c.msg):
			s.finish(c, answer{err: unknown("the connection broke before the answer", why)})
		case refused:
			s.finish(c, answer{err: why})
		case time.Since(c.begin) >= s.client.cfg.RetryFor:
			s.finish(c, answer{err: connect.Errorf(connect.CodeUnavailable, "no peer answered within %v: %v", s.client.cfg.RetryFor, why).WithCause(why)})
		default:
			again = append(again, c)
		}
	}
	s.queue = again
}

// unanswered returns what is sent, in order. s.mu is held.
func (s *Session) unanswered() []*call {
	lost := make([]*call, 0, len(s.sent))
	for _, c := range s.sent {
		lost = append(lost, c)
	}
	slices.SortFunc(lost, func(a, b *call) int { return cmp.Compare(a.msg.GetId(), b.msg.GetId()) })
	return lost
}

// repeatableCall reports whether it does no harm to carry a call out twice.
func repeatableCall(msg *storev1.Call) bool {
	switch c := msg.GetCall().(type) {
	case *storev1.Call_Range, *storev1.Call_KeepAlive:
		return true
	case *storev1.Call_Txn:
		return len(c.Txn.GetId()) > 0
	}
	return false
}
