package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// sessionClient makes the calls that a Session carries over one, and the others as they
// are. It is for one goroutine.
type sessionClient struct {
	holdfastv1connect.ObjectServiceClient
	stream holdfastv1connect.ObjectServiceSessionClientStream
	last   uint64
}

// newSessionClient opens a session that ends with the test.
func newSessionClient(t testing.TB, c holdfastv1connect.ObjectServiceClient) *sessionClient {
	t.Helper()
	stream, err := c.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	if hello, err := stream.Receive(); err != nil || len(hello.GetReplies()) > 0 {
		t.Fatalf("the first message is %v, %v", hello, err)
	}
	return &sessionClient{ObjectServiceClient: c, stream: stream}
}

func (s *sessionClient) do(call *holdfastv1.Call) (*holdfastv1.Reply, error) {
	s.last++
	call.Id = s.last
	if err := s.stream.Send(&holdfastv1.SessionRequest{Calls: []*holdfastv1.Call{call}}); err != nil {
		return nil, err
	}
	msg, err := s.stream.Receive()
	if err != nil {
		return nil, err
	}
	reply := msg.GetReplies()[0]
	if len(msg.GetReplies()) != 1 || reply.GetId() != call.GetId() {
		return nil, fmt.Errorf("call %d is answered by %v", call.GetId(), msg)
	}
	return reply, failureOf(reply)
}

// failureOf returns the error of the unary call that a reply stands for.
func failureOf(reply *holdfastv1.Reply) error {
	f := reply.GetFailure()
	if f == nil {
		return nil
	}
	var code connect.Code
	if err := code.UnmarshalText([]byte(f.GetCode())); err != nil {
		return err
	}
	err := connect.NewError(code, f.GetMessage())
	for _, detail := range f.GetDetails() {
		err = err.WithDetail(&connect.ErrorDetail{Type: string(detail.MessageName()), Value: detail.GetValue()})
	}
	return err
}

func (s *sessionClient) Get(_ context.Context, req *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error) {
	reply, err := s.do(&holdfastv1.Call{Call: &holdfastv1.Call_Get{Get: req}})
	return reply.GetGet(), err
}

func (s *sessionClient) Create(_ context.Context, req *holdfastv1.CreateRequest) (*holdfastv1.CreateResponse, error) {
	reply, err := s.do(&holdfastv1.Call{Call: &holdfastv1.Call_Create{Create: req}})
	return reply.GetCreate(), err
}

func (s *sessionClient) Update(_ context.Context, req *holdfastv1.UpdateRequest) (*holdfastv1.UpdateResponse, error) {
	reply, err := s.do(&holdfastv1.Call{Call: &holdfastv1.Call_Update{Update: req}})
	return reply.GetUpdate(), err
}

func (s *sessionClient) Patch(_ context.Context, req *holdfastv1.PatchRequest) (*holdfastv1.PatchResponse, error) {
	reply, err := s.do(&holdfastv1.Call{Call: &holdfastv1.Call_Patch{Patch: req}})
	return reply.GetPatch(), err
}

func (s *sessionClient) Apply(_ context.Context, req *holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
	reply, err := s.do(&holdfastv1.Call{Call: &holdfastv1.Call_Apply{Apply: req}})
	return reply.GetApply(), err
}

func (s *sessionClient) Delete(_ context.Context, req *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error) {
	reply, err := s.do(&holdfastv1.Call{Call: &holdfastv1.Call_Delete{Delete: req}})
	return reply.GetDelete(), err
}

// TestObjectSession has many calls in few messages, over loopback and TLS: all are
// answered, by their ids, before the stream ends as it was asked to; a failure has the
// details of the unary call; and what is in no kind of call is an error of its own.
func TestObjectSession(t *testing.T) {
	c := newCluster(t, 1)
	url, as := tlsServer(t, c)
	objects := holdfastv1connect.NewObjectServiceClient(connect.NewClient(connecthttp.NewTransport(as(c.ca, pki.RoleAdmin, "alice"), url)))
	stream, err := objects.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	const n = 50
	msg := &holdfastv1.SessionRequest{Calls: []*holdfastv1.Call{
		{Id: n + 1},
		{Id: n + 2, Call: &holdfastv1.Call_Get{Get: &holdfastv1.GetRequest{Kind: podKind, Name: "none"}}},
		{Id: n + 3, Call: &holdfastv1.Call_Create{}},
	}}
	for i := range n {
		pod := message(t, boundPod(fmt.Sprint("pod-", i), ""))
		msg.Calls = append(msg.Calls, &holdfastv1.Call{Id: uint64(i), Call: &holdfastv1.Call_Create{Create: &holdfastv1.CreateRequest{Object: pod}}})
	}
	if err := errors.Join(stream.Send(msg), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	replies := make(map[uint64]*holdfastv1.Reply)
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, reply := range msg.GetReplies() {
			if replies[reply.GetId()] != nil {
				t.Errorf("call %d is answered twice", reply.GetId())
			}
			replies[reply.GetId()] = reply
		}
	}
	if len(replies) != n+3 {
		t.Errorf("%d replies, want %d", len(replies), n+3)
	}
	for i := range n {
		if got := replies[uint64(i)].GetCreate().GetObject().GetName(); got != fmt.Sprint("pod-", i) {
			t.Fatalf("call %d is answered by %v", i, replies[uint64(i)])
		}
	}
	err = failureOf(replies[n+1])
	wantCode(t, err, connect.CodeUnimplemented, "the call is empty")
	err = failureOf(replies[n+2])
	if wantCode(t, err, connect.CodeNotFound, "Pod default/none not found"); infoOf(err).GetServedBy() != "peer-1" {
		t.Errorf("the failure's details are %v", infoOf(err))
	}
	err = failureOf(replies[n+3])
	if wantCode(t, err, connect.CodeInvalidArgument, "the object is empty"); len(faultsOf(err)) != 1 {
		t.Errorf("the faults are %v", faultsOf(err))
	}
}

// TestObjectSessionWaitsForItsTurn: while others have all places, a session's calls
// wait, one in the queue and the rest unread; a unary caller would be refused.
func TestObjectSessionWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		s := c.servers["peer-1"]
		s.users = newFairQueue(lane{running: 2, each: 1, waiting: 1})
		if err := s.users.enter(t.Context(), "admin/alice"); err != nil {
			t.Fatal(err)
		}
		session := newSessionClient(t, c.objects("peer-1"))
		const n = 5
		msg := &holdfastv1.SessionRequest{}
		for i := range n {
			msg.Calls = append(msg.Calls, &holdfastv1.Call{Id: uint64(i), Call: &holdfastv1.Call_Get{Get: &holdfastv1.GetRequest{Kind: podKind, Name: "none"}}})
		}
		if err := session.stream.Send(msg); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, err := c.objects("peer-1").Get(t.Context(), &holdfastv1.GetRequest{Kind: podKind, Name: "none"})
		wantCode(t, err, connect.CodeResourceExhausted, "has 1 calls waiting")
		s.users.leave("admin/alice")
		for got := 0; got < n; {
			msg, err := session.stream.Receive()
			if err != nil {
				t.Fatal(err)
			}
			for _, reply := range msg.GetReplies() {
				wantCode(t, failureOf(reply), connect.CodeNotFound, "none not found")
				got++
			}
		}
		synctest.Wait()
		if s.users.running != 0 || len(s.users.callers) != 0 {
			t.Errorf("left behind: %d calls, of %v", s.users.running, s.users.callers)
		}
		// Waiting has an end, with the same error as for a unary call.
		if err := s.users.enter(t.Context(), "admin/alice"); err != nil {
			t.Fatal(err)
		}
		_, err = session.Get(t.Context(), &holdfastv1.GetRequest{Kind: podKind, Name: "none"})
		wantCode(t, err, connect.CodeResourceExhausted, "waited 10s")
		if info := infoOf(err); info.GetReason() != "TooManyRequests" || info.GetServedBy() != "peer-1" {
			t.Errorf("the refusal says %v", info)
		}
	})
}

// TestObjectSessionBackpressure: a client that sends and never reads is stopped; the
// peer's memory for it has a bound.
func TestObjectSessionBackpressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		ctx, cancel := context.WithCancel(t.Context())
		stream := &stuckObjects{ctx: ctx}
		done := make(chan error, 1)
		go func() {
			done <- c.servers["peer-1"].rpc.Call(withIdentity(ctx, alice), holdfastv1connect.ObjectServiceSessionProcedure, nil, stream)
		}()
		synctest.Wait()
		if taken := stream.taken.Load(); taken < objectCalls || taken > objectCalls+2 {
			t.Errorf("%d calls were taken without an answer being fetched, the bound is %d", taken, objectCalls)
		}
		cancel()
		if err := <-done; err == nil {
			t.Error("the session ended without an error")
		}
	})
}

// stuckObjects is a client that asks without end and reads nothing after the first
// message.
type stuckObjects struct {
	ctx   context.Context
	taken atomic.Int64
	sent  int
}

func (s *stuckObjects) Receive(msg any) error {
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	call := &holdfastv1.Call{Id: uint64(s.taken.Add(1)), Call: &holdfastv1.Call_Get{Get: &holdfastv1.GetRequest{Kind: podKind, Name: "none"}}}
	proto.Merge(msg.(proto.Message), &holdfastv1.SessionRequest{Calls: []*holdfastv1.Call{call}})
	return nil
}

func (s *stuckObjects) SendHeaders() error { return nil }

func (s *stuckObjects) Send(any) error {
	if s.sent++; s.sent == 1 {
		return nil
	}
	<-s.ctx.Done()
	return s.ctx.Err()
}

// TestObjectSessionEnds: a session ends when its peer does not serve any more, and its
// calls with it, which then are not left running.
func TestObjectSessionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		raft.WaitLeader()
		session := newSessionClient(t, c.objects("p1"))
		c.stops["p1"]()
		_, err := session.stream.Receive()
		wantCode(t, err, connect.CodeUnavailable, "shutting down")
	})
}
