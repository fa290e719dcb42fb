package apiserver

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// ObjectAPI is ObjectService for callers in this process. Calls pass through all
// that those from outside do: metrics, authorization of the caller in ctx, fair
// queues, deadlines; their errors are what a client would get. Messages are not
// copied: neither side changes them after the call.
type ObjectAPI interface {
	Get(context.Context, *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error)
	List(context.Context, *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error)
	Create(context.Context, *holdfastv1.CreateRequest) (*holdfastv1.CreateResponse, error)
	Update(context.Context, *holdfastv1.UpdateRequest) (*holdfastv1.UpdateResponse, error)
	Patch(context.Context, *holdfastv1.PatchRequest) (*holdfastv1.PatchResponse, error)
	Apply(context.Context, *holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error)
	Delete(context.Context, *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error)
	DeleteCollection(context.Context, *holdfastv1.DeleteCollectionRequest) (*holdfastv1.DeleteCollectionResponse, error)
	Evict(context.Context, *holdfastv1.EvictRequest) (*holdfastv1.EvictResponse, error)
	Bind(context.Context, *holdfastv1.BindRequest) (*holdfastv1.BindResponse, error)
	Kinds(context.Context, *holdfastv1.KindsRequest) (*holdfastv1.KindsResponse, error)
	Schema(context.Context, *holdfastv1.SchemaRequest) (*holdfastv1.SchemaResponse, error)
	// WatchObjects is Watch. It calls send with each message, from its own
	// goroutine, and returns when ctx ends or send fails.
	WatchObjects(ctx context.Context, req *holdfastv1.WatchRequest, send func(*holdfastv1.WatchResponse) error) error
}

// Objects returns ObjectService for callers in this process.
func (s *Server) Objects() ObjectAPI { return inProcess{s} }

type inProcess struct{ s *Server }

func (p inProcess) Get(ctx context.Context, req *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error) {
	return callInProcess[*holdfastv1.GetResponse](ctx, p.s, holdfastv1connect.ObjectServiceGetProcedure, req)
}

func (p inProcess) List(ctx context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
	return callInProcess[*holdfastv1.ListResponse](ctx, p.s, holdfastv1connect.ObjectServiceListProcedure, req)
}

func (p inProcess) Create(ctx context.Context, req *holdfastv1.CreateRequest) (*holdfastv1.CreateResponse, error) {
	return callInProcess[*holdfastv1.CreateResponse](ctx, p.s, holdfastv1connect.ObjectServiceCreateProcedure, req)
}

func (p inProcess) Update(ctx context.Context, req *holdfastv1.UpdateRequest) (*holdfastv1.UpdateResponse, error) {
	return callInProcess[*holdfastv1.UpdateResponse](ctx, p.s, holdfastv1connect.ObjectServiceUpdateProcedure, req)
}

func (p inProcess) Patch(ctx context.Context, req *holdfastv1.PatchRequest) (*holdfastv1.PatchResponse, error) {
	return callInProcess[*holdfastv1.PatchResponse](ctx, p.s, holdfastv1connect.ObjectServicePatchProcedure, req)
}

func (p inProcess) Apply(ctx context.Context, req *holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
	return callInProcess[*holdfastv1.ApplyResponse](ctx, p.s, holdfastv1connect.ObjectServiceApplyProcedure, req)
}

func (p inProcess) Delete(ctx context.Context, req *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error) {
	return callInProcess[*holdfastv1.DeleteResponse](ctx, p.s, holdfastv1connect.ObjectServiceDeleteProcedure, req)
}

func (p inProcess) DeleteCollection(ctx context.Context, req *holdfastv1.DeleteCollectionRequest) (*holdfastv1.DeleteCollectionResponse, error) {
	return callInProcess[*holdfastv1.DeleteCollectionResponse](ctx, p.s, holdfastv1connect.ObjectServiceDeleteCollectionProcedure, req)
}

func (p inProcess) Evict(ctx context.Context, req *holdfastv1.EvictRequest) (*holdfastv1.EvictResponse, error) {
	return callInProcess[*holdfastv1.EvictResponse](ctx, p.s, holdfastv1connect.ObjectServiceEvictProcedure, req)
}

func (p inProcess) Bind(ctx context.Context, req *holdfastv1.BindRequest) (*holdfastv1.BindResponse, error) {
	return callInProcess[*holdfastv1.BindResponse](ctx, p.s, holdfastv1connect.ObjectServiceBindProcedure, req)
}

func (p inProcess) Kinds(ctx context.Context, req *holdfastv1.KindsRequest) (*holdfastv1.KindsResponse, error) {
	return callInProcess[*holdfastv1.KindsResponse](ctx, p.s, holdfastv1connect.ObjectServiceKindsProcedure, req)
}

func (p inProcess) Schema(ctx context.Context, req *holdfastv1.SchemaRequest) (*holdfastv1.SchemaResponse, error) {
	return callInProcess[*holdfastv1.SchemaResponse](ctx, p.s, holdfastv1connect.ObjectServiceSchemaProcedure, req)
}

func (p inProcess) WatchObjects(ctx context.Context, req *holdfastv1.WatchRequest, send func(*holdfastv1.WatchResponse) error) error {
	return p.s.rpc.Call(ctx, holdfastv1connect.ObjectServiceWatchProcedure, nil, &localStream{req: req, send: func(msg any) error {
		return send(msg.(*holdfastv1.WatchResponse))
	}})
}

func callInProcess[Resp proto.Message](ctx context.Context, s *Server, procedure string, req proto.Message) (resp Resp, err error) {
	err = s.rpc.Call(ctx, procedure, nil, &localStream{req: req, send: func(msg any) error {
		resp = msg.(Resp)
		return nil
	}})
	return resp, err
}

// localStream is a call with one request whose caller is in this process.
type localStream struct {
	req  proto.Message // nil once it is read
	send func(msg any) error
}

// Receive fills msg in with the request. What is in it they share.
func (l *localStream) Receive(msg any) error {
	if l.req == nil {
		return io.EOF
	}
	to, ok := msg.(proto.Message)
	if !ok || to.ProtoReflect().Descriptor() != l.req.ProtoReflect().Descriptor() {
		return fmt.Errorf("the request is a %T, not a %T", l.req, msg)
	}
	l.req.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		to.ProtoReflect().Set(field, value)
		return true
	})
	l.req = nil
	return nil
}

func (l *localStream) SendHeaders() error { return nil }
func (l *localStream) Send(msg any) error { return l.send(msg) }
