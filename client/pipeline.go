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

// pipeline is what sessions have in common: calls to one peer over one stream, many in
// a message and without waiting for each other's answers. When the stream breaks, it
// goes on with another peer: what may be sent again is, the other calls that had been
// sent end with ErrOutcomeUnknown. Safe for concurrent use.
type pipeline[Call, Reply any] struct {
	client  *Client
	opts    SessionOptions
	dialect dialect[Call, Reply]
	life    context.Context // ends with Close
	end     context.CancelCauseFunc
	ended   chan struct{} // closed when run has returned
	wake    chan struct{} // capacity 1: there is something to send

	mu    sync.Mutex
	queue []*call[Call, Reply] // not sent
	sent  map[uint64]*call[Call, Reply]
	last  uint64        // the id given last
	calls int           // without an answer
	bytes int           // of them
	room  chan struct{} // closed when there are fewer; nil while nobody waits
}

// dialect is how a service says what a pipeline needs.
type dialect[Call, Reply any] interface {
	// open begins a stream.
	open(ctx context.Context) (pipe[Call, Reply], error)
	// number gives a call its id.
	number(msg Call, id uint64)
	effect(msg Call) effect
	// answered returns the id of a reply, and the error that it is, if it is one.
	answered(reply Reply) (id uint64, err error)
}

// pipe is a stream of messages of calls and of replies. It is used as those of package
// connect are.
type pipe[Call, Reply any] interface {
	SendHeaders() error
	send(calls []Call) error
	receive() ([]Reply, error)
	Close() error
}

// effect is what becomes of a call that is sent more than once.
type effect int

const (
	// writes: it would be carried out twice, and is not sent again.
	writes effect = iota
	// reads: nothing is changed.
	reads
	// renews: the second does no harm.
	renews
	// once: it is carried out once. If the first was not answered, no refusal of the
	// second says that nothing has happened.
	once
)

// call is a call without an answer.
type call[Call, Reply any] struct {
	msg    Call
	id     uint64
	effect effect
	size   int
	begin  time.Time
	done   chan answer[Reply] // capacity 1
	// doubt: one of effect once that was sent and not answered, and is sent again.
	// pipeline.mu.
	doubt bool
}

type answer[Reply any] struct {
	reply Reply
	err   error
}

const (
	// sessionMessageBytes ends a message of calls.
	sessionMessageBytes = 256 << 10
	callOverhead        = 64
	reopenPause         = 50 * time.Millisecond
	reopenPauseMax      = time.Second
)

func newPipeline[Call, Reply any](c *Client, opts SessionOptions, d dialect[Call, Reply]) *pipeline[Call, Reply] {
	opts.MaxCalls = cmp.Or(opts.MaxCalls, 4096)
	opts.MaxBytes = cmp.Or(opts.MaxBytes, 16<<20)
	s := &pipeline[Call, Reply]{
		client: c, opts: opts, dialect: d,
		ended: make(chan struct{}), wake: make(chan struct{}, 1), sent: make(map[uint64]*call[Call, Reply]),
	}
	s.life, s.end = context.WithCancelCause(context.Background())
	go s.run() // until close
	return s
}

// close ends the pipeline: calls without an answer fail. It waits for nothing but its
// own goroutines.
func (s *pipeline[Call, Reply]) close() {
	s.end(errClosed)
	<-s.ended
}

// do makes a call of about size bytes and waits for its answer.
func (s *pipeline[Call, Reply]) do(ctx context.Context, msg Call, size int) (reply Reply, err error) {
	c := &call[Call, Reply]{msg: msg, effect: s.dialect.effect(msg), size: callOverhead + size, begin: time.Now(), done: make(chan answer[Reply], 1)}
	if err := s.enqueue(ctx, c); err != nil {
		return reply, err
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
	case i >= 0 && !doubt, c.effect == reads:
		return reply, context.Cause(ctx)
	}
	// It keeps its place until it is answered: the peer still has it.
	return reply, unknown("nobody waited for the answer", context.Cause(ctx))
}

// enqueue gives c its id and its place in the queue, once there is room.
func (s *pipeline[Call, Reply]) enqueue(ctx context.Context, c *call[Call, Reply]) error {
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
			c.id = s.last
			s.dialect.number(c.msg, c.id)
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

func (s *pipeline[Call, Reply]) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// release gives back the room of a call. s.mu is held.
func (s *pipeline[Call, Reply]) release(c *call[Call, Reply]) {
	s.calls--
	s.bytes -= c.size
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

// run keeps a stream open while there are calls, and serves them, until Close.
func (s *pipeline[Call, Reply]) run() {
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
		s.finish(c, answer[Reply]{err: unknown("the session was closed before the answer", errClosed)})
	}
	for _, c := range s.queue {
		s.finish(c, answer[Reply]{err: sessionClosed()})
	}
	s.sent, s.queue = nil, nil
}

// finish ends a call. s.mu is held.
func (s *pipeline[Call, Reply]) finish(c *call[Call, Reply], a answer[Reply]) {
	if c.doubt && a.err != nil && !errors.Is(a.err, ErrOutcomeUnknown) {
		a = answer[Reply]{err: unknown("the connection broke before the first answer, and it could not be repeated", a.err)}
	}
	s.release(c)
	c.done <- a
}

// unknown is the error of a call that may have been carried out.
func unknown(what string, why error) error {
	return connect.Errorf(connect.CodeUnknown, "%s: read before trying again: %v", what, why).WithCause(errors.Join(ErrOutcomeUnknown, why))
}

// waitForCalls reports whether there is something to send, once there is.
func (s *pipeline[Call, Reply]) waitForCalls() bool {
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
func (s *pipeline[Call, Reply]) serve() (peer string, err error) {
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	stream, err := s.dialect.open(ctx)
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
	if _, err := stream.receive(); err != nil {
		return "", err
	}
	patience.Stop()
	peer = s.client.Peer()

	broken := make(chan error, 1)
	go func() { // ends with the stream
		for {
			replies, err := stream.receive()
			if err != nil {
				broken <- err
				return
			}
			s.answer(replies)
		}
	}()
	for {
		if calls := s.take(); len(calls) > 0 {
			if err := stream.send(calls); err != nil {
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
func (s *pipeline[Call, Reply]) take() []Call {
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
	calls := make([]Call, n)
	for i, c := range s.queue[:n] {
		calls[i] = c.msg
		s.sent[c.id] = c
		s.queue[i] = nil
	}
	if s.queue = s.queue[n:]; len(s.queue) == 0 {
		s.queue = nil
	}
	return calls
}

// answer hands replies to their callers.
func (s *pipeline[Call, Reply]) answer(replies []Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, reply := range replies {
		id, err := s.dialect.answered(reply)
		c := s.sent[id]
		if c == nil {
			continue // the peer is not to be trusted with more than it was asked
		}
		delete(s.sent, id)
		a := answer[Reply]{reply: reply}
		if err != nil {
			a = answer[Reply]{err: err}
		}
		s.finish(c, a)
	}
}

// sortOut decides about the calls after the stream broke with why: those that may be
// sent again go back into the queue, in order; the others have an outcome that
// nobody knows. Calls that wait in vain for any peer fail.
func (s *pipeline[Call, Reply]) sortOut(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := s.unanswered()
	clear(s.sent)
	refused := false // as it would be again
	switch connect.CodeOf(why) {
	case connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeUnimplemented, connect.CodeResourceExhausted:
		refused = true
	}
	var again []*call[Call, Reply]
	for _, c := range append(lost, s.queue...) {
		_, wasSent := slices.BinarySearchFunc(lost, c.id, func(l *call[Call, Reply], id uint64) int { return cmp.Compare(l.id, id) })
		c.doubt = c.doubt || wasSent && c.effect == once
		switch {
		case wasSent && c.effect == writes:
			s.finish(c, answer[Reply]{err: unknown("the connection broke before the answer", why)})
		case refused:
			s.finish(c, answer[Reply]{err: why})
		case time.Since(c.begin) >= s.client.cfg.RetryFor:
			s.finish(c, answer[Reply]{err: connect.Errorf(connect.CodeUnavailable, "no peer answered within %v: %v", s.client.cfg.RetryFor, why).WithCause(why)})
		default:
			again = append(again, c)
		}
	}
	s.queue = again
}

// unanswered returns what is sent, in order. s.mu is held.
func (s *pipeline[Call, Reply]) unanswered() []*call[Call, Reply] {
	lost := make([]*call[Call, Reply], 0, len(s.sent))
	for _, c := range s.sent {
		lost = append(lost, c)
	}
	slices.SortFunc(lost, func(a, b *call[Call, Reply]) int { return cmp.Compare(a.id, b.id) })
	return lost
}
