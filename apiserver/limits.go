package apiserver

import (
	"context"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// What a peer does at once. A call beyond that waits in its caller's queue, before
// its request is read. The callers' queues are served in turn, so that one who
// asks for much waits behind himself; and no caller may fill a lane alone, so that
// others need not wait for slow calls of his to end.
//
// Users, agents and peers have lanes of their own. Peers' is without bounds: what
// peers ask of each other was admitted where it came in, and has to get through.
var (
	userLane  = lane{running: 2048, each: 1536, waiting: 4096}
	agentLane = lane{running: 2048, each: 64, waiting: 64}
)

const (
	// queueTimeout bounds the wait for a turn.
	queueTimeout = 10 * time.Second
	// busyRetry is when a refused call may be worth another try.
	busyRetry = time.Second
	// maxStreams bounds the streams of one identity on this peer: each takes some
	// tens of KiB.
	maxStreams = 10_000
)

// lane is the size of a fairQueue: calls that run at once, in all and of one caller,
// and calls of one caller that wait.
type lane struct {
	running, each, waiting int
}

// fairQueue admits calls.
type fairQueue struct {
	lane

	mu      sync.Mutex
	running int
	callers map[string]*callerQueue // those with a call that runs or waits
	turns   []*callerQueue          // those with calls that wait, the next in turn first
}

// callerQueue is the calls of one caller.
type callerQueue struct {
	who     string
	running int
	waiting []chan struct{} // closed when it is the call's turn; first come, first served
}

func newFairQueue(l lane) *fairQueue {
	return &fairQueue{lane: l, callers: make(map[string]*callerQueue)}
}

// enter returns when a call of who may begin; leave must follow its end. It fails
// with ResourceExhausted when who has too many calls waiting already, or waited too
// long, and with ctx's error.
func (q *fairQueue) enter(ctx context.Context, who string) error {
	q.mu.Lock()
	c := q.callers[who]
	if c == nil {
		c = &callerQueue{who: who}
		q.callers[who] = c
	}
	if q.running < q.lane.running && c.running < q.each && len(c.waiting) == 0 {
		q.running++
		c.running++
		q.mu.Unlock()
		return nil
	}
	if len(c.waiting) >= q.waiting {
		q.mu.Unlock()
		return busy("%s has %d calls waiting on this peer already; retry later, or ask another peer", who, q.waiting)
	}
	turn := make(chan struct{})
	if c.waiting = append(c.waiting, turn); len(c.waiting) == 1 {
		q.turns = append(q.turns, c)
	}
	q.mu.Unlock()

	timeout := time.NewTimer(queueTimeout)
	defer timeout.Stop()
	var err error
	select {
	case <-turn:
		return nil
	case <-timeout.C:
		err = busy("%s waited %s for its turn: this peer is busy; retry later, or ask another peer", who, queueTimeout)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	at := slices.Index(c.waiting, turn)
	if at < 0 { // its turn came just now
		q.end(c)
		return err
	}
	if c.waiting = slices.Delete(c.waiting, at, at+1); len(c.waiting) == 0 {
		q.turns = slices.DeleteFunc(q.turns, func(other *callerQueue) bool { return other == c })
	}
	q.forget(c)
	return err
}

// leave ends a call of who that enter has admitted.
func (q *fairQueue) leave(who string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.end(q.callers[who])
}

// end frees the place of a call and gives it to the next caller in turn who may
// have it. q.mu is held.
func (q *fairQueue) end(c *callerQueue) {
	q.running--
	c.running--
	for q.running < q.lane.running {
		at := slices.IndexFunc(q.turns, func(c *callerQueue) bool { return c.running < q.each })
		if at < 0 {
			break
		}
		next := q.turns[at]
		q.turns = slices.Delete(q.turns, at, at+1)
		close(next.waiting[0])
		if next.waiting = next.waiting[1:]; len(next.waiting) > 0 {
			q.turns = append(q.turns, next)
		}
		q.running++
		next.running++
	}
	q.forget(c)
}

// forget drops a caller who has no calls. q.mu is held.
func (q *fairQueue) forget(c *callerQueue) {
	if c.running == 0 && len(c.waiting) == 0 {
		delete(q.callers, c.who)
	}
}

func busy(format string, args ...any) error {
	return withInfo(connect.Errorf(connect.CodeResourceExhausted, format, args...),
		&holdfastv1.ErrorInfo{Reason: "TooManyRequests", RetryAfter: durationpb.New(busyRetry)})
}

// limit is the interceptor that bounds what runs at once.
func (s *Server) limit(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		queue := s.queueOf(ctx)
		switch {
		case queue == nil, ctx.Value(turnKey{}) != nil:
			return next(ctx, spec, stream)
		case spec.StreamType != connect.StreamTypeUnary:
			release, err := s.streams.admit(actor(ctx))
			if err != nil {
				return err
			}
			defer release()
			return next(ctx, spec, stream)
		}
		who := actor(ctx)
		if err := queue.enter(ctx, who); err != nil {
			return err
		}
		defer queue.leave(who)
		return next(ctx, spec, stream)
	}
}

// turnKey is in the context of calls in this process that have their turn already.
type turnKey struct{}

// queueOf returns the queue of the calls of ctx's caller, nil for peers.
func (s *Server) queueOf(ctx context.Context) *fairQueue {
	switch id, known := identityFrom(ctx); {
	case known && id.Role == pki.RolePeer:
		return nil
	case known && id.Role == pki.RoleNode:
		return s.agents
	}
	return s.users
}

// streamCount counts the streams of each identity.
type streamCount struct {
	mu   sync.Mutex
	open map[string]int
}

// admit counts a stream of who until release is called, or refuses it.
func (c *streamCount) admit(who string) (release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = make(map[string]int)
	}
	if c.open[who] >= maxStreams {
		return nil, busy("%s has %d streams open on this peer, the limit: close some, or use another peer", who, maxStreams)
	}
	c.open[who]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.open[who]--; c.open[who] == 0 {
			delete(c.open, who)
		}
	}, nil
}
