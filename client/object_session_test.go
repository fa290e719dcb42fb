package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/types/known/anypb"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// Session answers creates and gets, unless one of these ends it: then nothing more is
// answered, and the peer dies.
func (p *testPeer) Session(ctx context.Context, stream holdfastv1connect.ObjectServiceSessionServerStream) error {
	p.calls.Add(1)
	if err := stream.Send(&holdfastv1.SessionResponse{}); err != nil {
		return err
	}
	for {
		msg, err := stream.Receive()
		if err != nil {
			return err
		}
		out := &holdfastv1.SessionResponse{}
		for _, call := range msg.GetCalls() {
			reply := &holdfastv1.Reply{Id: call.GetId()}
			answer := &holdfastv1.Answer{ServedBy: p.name, Revision: p.revision}
			var err error
			switch c := call.GetCall().(type) {
			case *holdfastv1.Call_Create:
				_, err = p.Create(ctx, c.Create)
				reply.Reply = &holdfastv1.Reply_Create{Create: &holdfastv1.CreateResponse{Object: c.Create.GetObject(), Answer: answer}}
			case *holdfastv1.Call_Get:
				_, err = p.Get(ctx, c.Get)
				reply.Reply = &holdfastv1.Reply_Get{Get: &holdfastv1.GetResponse{Object: &holdfastv1.Object{Name: c.Get.GetName()}, Answer: answer}}
			default:
				fault, err := anypb.New(&holdfastv1.Fault{Field: "metadata.name", Message: "is empty"})
				if err != nil {
					return err
				}
				reply.Reply = &holdfastv1.Reply_Failure{Failure: &holdfastv1.Failure{Code: "invalid_argument", Message: "no", Details: []*anypb.Any{fault}}}
			}
			if errors.Is(err, errDies) {
				p.Kill()
				<-ctx.Done()
				return ctx.Err()
			}
			out.Replies = append(out.Replies, reply)
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

var errDies = errors.New("the peer dies")

// TestObjectSession: many callers at once, each gets the answer to its own call, and
// an error with the details of the unary call.
func TestObjectSession(t *testing.T) {
	ca := testCA(t)
	s := newTestClient(t, ca, addresses(startPeers(t, ca, 1))).ObjectSession(SessionOptions{MaxCalls: 50})
	defer s.Close()
	var callers sync.WaitGroup
	for i := range 200 {
		callers.Go(func() {
			name := fmt.Sprint("pod-", i)
			made, err := s.Create(t.Context(), &holdfastv1.CreateRequest{Object: &holdfastv1.Object{Name: name}})
			if err != nil || made.GetObject().GetName() != name {
				t.Errorf("create %s: %v, %v", name, made, err)
			}
			got, err := s.Get(t.Context(), &holdfastv1.GetRequest{Name: name})
			if err != nil || got.GetObject().GetName() != name {
				t.Errorf("get %s: %v, %v", name, got, err)
			}
		})
	}
	callers.Wait()
	_, err := s.Delete(t.Context(), &holdfastv1.DeleteRequest{})
	wantCode(t, err, connect.CodeInvalidArgument)
	rpcErr, ok := errors.AsType[*connect.Error](err)
	if !ok || len(rpcErr.Details()) != 1 {
		t.Fatalf("the error is %v", err)
	}
	detail, err := connectproto.UnmarshalErrorDetail(rpcErr.Details()[0])
	if fault, ok := detail.(*holdfastv1.Fault); !ok || fault.GetField() != "metadata.name" {
		t.Errorf("its detail is %v, %v", detail, err)
	}
}

// TestObjectSessionPeerDies: a write that was sent is never sent again, and its caller
// learns that nobody knows; a read goes to another peer, and so does a dry run.
func TestObjectSessionPeerDies(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 2)
	var created, got atomic.Int64
	for _, p := range peers {
		p.create = func(context.Context) error {
			if created.Add(1) == 1 {
				return errDies
			}
			return nil
		}
	}
	s := newTestClient(t, ca, addresses(peers)).ObjectSession(SessionOptions{})
	defer s.Close()
	_, err := s.Create(t.Context(), &holdfastv1.CreateRequest{})
	if !errors.Is(err, ErrOutcomeUnknown) || connect.CodeOf(err) != connect.CodeUnknown || created.Load() != 1 {
		t.Errorf("the write that broke the stream: %v; it was sent %d times", err, created.Load())
	}

	for _, dry := range []bool{true, false} {
		peers := startPeers(t, ca, 2)
		got.Store(0)
		die := func(context.Context) error {
			if got.Add(1) == 1 {
				return errDies
			}
			return nil
		}
		for _, p := range peers {
			p.get, p.create = die, die
		}
		s := newTestClient(t, ca, addresses(peers)).ObjectSession(SessionOptions{})
		defer s.Close()
		if dry {
			_, err = s.Create(t.Context(), &holdfastv1.CreateRequest{DryRun: true})
		} else {
			_, err = s.Get(t.Context(), &holdfastv1.GetRequest{})
		}
		if err != nil || got.Load() != 2 {
			t.Errorf("dry run %v: %v; it was sent %d times", dry, err, got.Load())
		}
	}
}

// TestObjectSessionReadsItsWrites: what a session has written, a read of consistency
// session has at least, over the same client or the session.
func TestObjectSessionReadsItsWrites(t *testing.T) {
	ca := testCA(t)
	peers := startPeers(t, ca, 1)
	var least []int64
	peers[0].revision = 7
	peers[0].read = func(r *holdfastv1.ReadOptions) { least = append(least, r.GetMinRevision()) }
	c := newTestClient(t, ca, addresses(peers))
	s := c.ObjectSession(SessionOptions{})
	defer s.Close()
	if _, err := s.Create(t.Context(), &holdfastv1.CreateRequest{}); err != nil {
		t.Fatal(err)
	}
	req := &holdfastv1.GetRequest{Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_SESSION}}
	_, err := s.Get(t.Context(), req)
	_, err2 := c.Objects().Get(t.Context(), req)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if len(least) != 2 || least[0] != 7 || least[1] != 7 {
		t.Errorf("the reads asked for revisions %v, want 7 and 7", least)
	}
}
