package client

import (
	"context"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
)

// Session carries calls of the raw-store service to one peer over one stream, many
// in a message and without waiting for each other's answers: the fast way for
// programs with many callers at once. When the stream breaks, it goes on with
// another peer: reads, and transactions with an id, are sent again; other calls that
// had been sent end with ErrOutcomeUnknown. Safe for concurrent use. Make it with
// [Client.Session].
type Session struct {
	pipeline *pipeline[*storev1.Call, *storev1.Reply]
}

// Session returns a session. Close it.
func (c *Client) Session(opts SessionOptions) *Session {
	return &Session{newPipeline(c, opts, storeDialect{storev1connect.NewStoreServiceClient(c.connect)})}
}

// Close ends the session: calls without an answer fail. It waits for nothing but its
// own goroutines.
func (s *Session) Close() { s.pipeline.close() }

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
	size := 0
	if put := msg.GetPut(); put != nil {
		size = len(put.GetKey()) + len(put.GetValue())
	} else {
		size = proto.Size(msg)
	}
	return s.pipeline.do(ctx, msg, size)
}

// storeDialect is the raw store's.
type storeDialect struct {
	store storev1connect.StoreServiceClient
}

type storePipe struct {
	storev1connect.StoreServiceSessionClientStream
}

func (d storeDialect) open(ctx context.Context) (pipe[*storev1.Call, *storev1.Reply], error) {
	stream, err := d.store.Session(ctx)
	return storePipe{stream}, err
}

func (p storePipe) send(calls []*storev1.Call) error {
	return p.Send(&storev1.SessionRequest{Calls: calls})
}

func (p storePipe) receive() ([]*storev1.Reply, error) {
	msg, err := p.Receive()
	return msg.GetReplies(), err
}

func (storeDialect) number(msg *storev1.Call, id uint64) { msg.Id = id }

func (storeDialect) effect(msg *storev1.Call) effect {
	switch c := msg.GetCall().(type) {
	case *storev1.Call_Range:
		return reads
	case *storev1.Call_KeepAlive:
		return renews
	case *storev1.Call_Txn:
		if len(c.Txn.GetId()) > 0 {
			return once
		}
	}
	return writes
}

func (storeDialect) answered(reply *storev1.Reply) (uint64, error) {
	f := reply.GetFailure()
	if f == nil {
		return reply.GetId(), nil
	}
	err := connect.NewError(codeOf(f.GetCode()), f.GetMessage())
	if f.GetOutcomeUnknown() {
		err = err.WithCause(ErrOutcomeUnknown)
	}
	return reply.GetId(), err
}

// codeOf reads a code of Connect.
func codeOf(text string) connect.Code {
	var code connect.Code
	if err := code.UnmarshalText([]byte(text)); err != nil {
		return connect.CodeUnknown
	}
	return code
}
