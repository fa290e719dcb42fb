package apiserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
)

const (
	// sessionTimeout is how long an agent may take to answer the wish for a session.
	sessionTimeout = 10 * time.Second
	// maxAhead is how many bytes of input an agent is sent before it has passed them
	// on.
	maxAhead = 1 << 20
)

// errNoAgent is returned when no agent of the node is connected here.
var errNoAgent = errors.New("the node's agent is not connected to this peer")

// sessions knows which agents can be reached through this peer, and bridges the
// callers of PodService to them. An agent has one stream of wishes (Sessions);
// it answers each wish by opening a stream of its own (Session).
type sessions struct {
	mu      sync.Mutex
	agents  map[string]*wishes  // by node
	pending map[string]*session // by id, until the agent answers
}

// wishes is one agent's open Sessions stream.
type wishes struct {
	since time.Time
	out   chan *agentv1.SessionsResponse
	ended chan struct{}
}

// session is one bridge. Its channels are unbuffered: whoever is slow slows the
// other down, the caller by the streams' own flow control, the agent by maxAhead.
type session struct {
	id, node  string
	answered  chan struct{} // closed when the agent has opened its stream
	fromAgent chan *agentv1.SessionRequest
	toAgent   chan *agentv1.SessionResponse
	over      chan struct{} // closed when the caller is done

	agentEnded chan struct{} // closed when the agent's stream has ended
	agentErr   error         // why; nil for a clean end. Read after agentEnded
}

func newSessions() *sessions {
	return &sessions{agents: make(map[string]*wishes), pending: make(map[string]*session)}
}

func (s *sessions) connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.agents)
}

// age returns how long node's agent has been connected.
func (s *sessions) age(node string) (time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.agents[node]
	if !ok {
		return 0, false
	}
	return time.Since(w.since), true
}

// connect makes an agent reachable. A stream that it had before is replaced: an
// agent that comes anew has lost it, whether this peer knows or not.
func (s *sessions) connect(node string) *wishes {
	w := &wishes{since: time.Now(), out: make(chan *agentv1.SessionsResponse), ended: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.agents[node]; ok {
		close(old.ended)
	}
	s.agents[node] = w
	return w
}

func (s *sessions) disconnect(node string, w *wishes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agents[node] == w {
		delete(s.agents, node)
		close(w.ended)
	}
}

// open asks node's agent for a session and returns once the agent has opened it.
// wish holds what the session is for; purpose says it to people. It fails with
// errNoAgent at once, and with Unavailable when the agent does not answer within
// sessionTimeout. The caller calls close at the end.
func (s *sessions) open(ctx context.Context, node, purpose string, wish *agentv1.SessionsResponse) (*session, error) {
	sess := &session{
		id: rand.Text(), node: node,
		answered:   make(chan struct{}),
		fromAgent:  make(chan *agentv1.SessionRequest),
		toAgent:    make(chan *agentv1.SessionResponse),
		over:       make(chan struct{}),
		agentEnded: make(chan struct{}),
	}
	wish.SessionId = sess.id
	s.mu.Lock()
	w, ok := s.agents[node]
	if ok {
		s.pending[sess.id] = sess
	}
	s.mu.Unlock()
	if !ok {
		return nil, errNoAgent
	}
	timeout := time.NewTimer(sessionTimeout)
	defer timeout.Stop()
	out := w.out
	for {
		select {
		case out <- wish:
			out = nil // sent; now the answer
		case <-sess.answered:
			return sess, nil
		case <-w.ended:
			s.close(sess)
			return nil, connect.Errorf(connect.CodeUnavailable, "%s: the connection of node %s's agent was lost; retry", purpose, node)
		case <-timeout.C:
			s.close(sess)
			return nil, connect.Errorf(connect.CodeUnavailable, "%s: node %s's agent did not answer within %s", purpose, node, sessionTimeout)
		case <-ctx.Done():
			s.close(sess)
			return nil, context.Cause(ctx)
		}
	}
}

// close ends a session from the caller's side.
func (s *sessions) close(sess *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, sess.id)
	select {
	case <-sess.over:
	default:
		close(sess.over)
	}
}

// answer hands over the session that node's agent has come for, nil if there is
// none of that id for it.
func (s *sessions) answer(node, id string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	sess, ok := s.pending[id]
	if !ok || sess.node != node {
		return nil
	}
	delete(s.pending, id)
	close(sess.answered)
	return sess
}

// receive returns the agent's next message. io.EOF says that the agent has ended
// the session in order.
func (sess *session) receive(ctx context.Context) (*agentv1.SessionRequest, error) {
	select {
	case msg := <-sess.fromAgent:
		if e := msg.GetError(); e != nil {
			return nil, agentError(e)
		}
		return msg, nil
	case <-sess.agentEnded:
		if sess.agentErr != nil {
			return nil, connect.Errorf(connect.CodeUnavailable, "the connection to node %s's agent was lost", sess.node).WithCause(sess.agentErr)
		}
		return nil, io.EOF
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// send hands the agent a message of the caller, false when nobody takes it any more.
func (sess *session) send(ctx context.Context, msg *agentv1.SessionResponse) bool {
	select {
	case sess.toAgent <- msg:
		return true
	case <-sess.agentEnded:
	case <-sess.over:
	case <-ctx.Done():
	}
	return false
}

// agentError makes an agent's error this peer's own.
func agentError(e *agentv1.SessionError) error {
	var code connect.Code
	if err := code.UnmarshalText([]byte(e.GetCode())); err != nil {
		code = connect.CodeUnknown
	}
	return connect.NewError(code, e.GetMessage())
}

// Sessions streams the wishes for one node. A second stream of the same node ends
// the first with Aborted.
func (s agentService) Sessions(ctx context.Context, _ *agentv1.SessionsRequest, stream agentv1connect.AgentServiceSessionsServerStream) error {
	node, err := nodeName(ctx)
	if err != nil {
		return err
	}
	w := s.sessions.connect(node)
	defer s.sessions.disconnect(node, w)
	if err := stream.Send(&agentv1.SessionsResponse{}); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-w.ended:
			return connect.Errorf(connect.CodeAborted, "node %s's agent has opened another stream of sessions", node)
		case wish := <-w.out:
			if err := stream.Send(wish); err != nil {
				return err
			}
		}
	}
}

// Session carries one session. It ends when either side is done.
func (s agentService) Session(ctx context.Context, stream agentv1connect.AgentServiceSessionServerStream) error {
	node, err := nodeName(ctx)
	if err != nil {
		return err
	}
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	sess := s.sessions.answer(node, first.GetSessionId())
	if sess == nil {
		return connect.NewError(connect.CodeNotFound, "the session is unknown or over: the caller has gone, or waited too long")
	}
	if err := stream.SendHeaders(); err != nil {
		sess.agentErr = err
		close(sess.agentEnded)
		return err
	}
	taken := make(chan int64)
	// Receive cannot be interrupted but by the end of the call, so this goroutine
	// ends a moment after the handler when the caller is done first.
	go func() {
		defer close(sess.agentEnded)
		for {
			msg, err := stream.Receive()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				sess.agentErr = err
				return
			}
			to, count := sess.fromAgent, (chan int64)(nil)
			if msg.GetTaken() > 0 {
				to, count = nil, taken
			}
			select {
			case to <- msg:
			case count <- msg.GetTaken():
			case <-sess.over:
				return
			case <-ctx.Done():
				sess.agentErr = context.Cause(ctx)
				return
			}
		}
	}()
	for ahead := int64(0); ; {
		toAgent := sess.toAgent
		if ahead >= maxAhead {
			toAgent = nil // Send would block, and the caller's leaving go unnoticed
		}
		select {
		case n := <-taken:
			ahead -= n
		case msg := <-toAgent:
			ahead += int64(len(msg.GetExec().GetStdin()) + len(msg.GetAttach().GetStdin()) + len(msg.GetPortForward().GetData()))
			if err := stream.Send(msg); err != nil {
				return fmt.Errorf("send to the agent: %w", err)
			}
		case <-sess.agentEnded:
			return nil
		case <-sess.over:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
