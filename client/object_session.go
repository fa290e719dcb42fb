package client

import (
	"context"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// ObjectSession carries calls of the ObjectService to one peer over one stream, as a
// [Session] those of the raw store: the fast way for programs that write much. Calls
// run at the same time, in no order, each as the unary call of its name, but that none
// is repeated because a peer has refused it. When the stream breaks, it goes on with
// another peer: reads and dry runs are sent again, and writes that had been sent end
// with ErrOutcomeUnknown. Safe for concurrent use. Make it with [Client.ObjectSession].
type ObjectSession struct {
	client   *Client
	pipeline *pipeline[*holdfastv1.Call, *holdfastv1.Reply]
}

// ObjectSession returns a session. Close it.
func (c *Client) ObjectSession(opts SessionOptions) *ObjectSession {
	return &ObjectSession{client: c, pipeline: newPipeline(c, opts, objectDialect{c.Objects()})}
}

// Close ends the session: calls without an answer fail. It waits for nothing but its
// own goroutines.
func (s *ObjectSession) Close() { s.pipeline.close() }

// Get returns one object.
func (s *ObjectSession) Get(ctx context.Context, req *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error) {
	req = s.client.ahead(req).(*holdfastv1.GetRequest)
	reply, err := s.do(ctx, req, &holdfastv1.Call{Call: &holdfastv1.Call_Get{Get: req}})
	return seen(s, reply.GetGet()), err
}

// Create stores a new object.
func (s *ObjectSession) Create(ctx context.Context, req *holdfastv1.CreateRequest) (*holdfastv1.CreateResponse, error) {
	reply, err := s.do(ctx, req, &holdfastv1.Call{Call: &holdfastv1.Call_Create{Create: req}})
	return seen(s, reply.GetCreate()), err
}

// Update replaces an object.
func (s *ObjectSession) Update(ctx context.Context, req *holdfastv1.UpdateRequest) (*holdfastv1.UpdateResponse, error) {
	reply, err := s.do(ctx, req, &holdfastv1.Call{Call: &holdfastv1.Call_Update{Update: req}})
	return seen(s, reply.GetUpdate()), err
}

// Patch changes an object by a patch.
func (s *ObjectSession) Patch(ctx context.Context, req *holdfastv1.PatchRequest) (*holdfastv1.PatchResponse, error) {
	reply, err := s.do(ctx, req, &holdfastv1.Call{Call: &holdfastv1.Call_Patch{Patch: req}})
	return seen(s, reply.GetPatch()), err
}

// Apply makes objects what their manifests say, all or none.
func (s *ObjectSession) Apply(ctx context.Context, req *holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
	reply, err := s.do(ctx, req, &holdfastv1.Call{Call: &holdfastv1.Call_Apply{Apply: req}})
	return seen(s, reply.GetApply()), err
}

// Delete begins the deletion of an object.
func (s *ObjectSession) Delete(ctx context.Context, req *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error) {
	reply, err := s.do(ctx, req, &holdfastv1.Call{Call: &holdfastv1.Call_Delete{Delete: req}})
	return seen(s, reply.GetDelete()), err
}

// do makes the call of req and waits for its answer. A Failure becomes the error of the
// unary call; of code Unknown it is an ErrOutcomeUnknown. When ctx ends first the error
// is ctx's as well, and an ErrOutcomeUnknown if a write had been sent. While no peer can
// be reached, a call waits as long as unary calls are retried, see Config.RetryFor; then
// it is Unavailable.
func (s *ObjectSession) do(ctx context.Context, req proto.Message, call *holdfastv1.Call) (*holdfastv1.Reply, error) {
	return s.pipeline.do(ctx, call, proto.Size(req))
}

// seen remembers how far an answer was, so that later reads are not behind it.
func seen[Response any](s *ObjectSession, resp Response) Response {
	s.client.saw(resp)
	return resp
}

// objectDialect is the ObjectService's.
type objectDialect struct {
	objects holdfastv1connect.ObjectServiceClient
}

type objectPipe struct {
	holdfastv1connect.ObjectServiceSessionClientStream
}

func (d objectDialect) open(ctx context.Context) (pipe[*holdfastv1.Call, *holdfastv1.Reply], error) {
	stream, err := d.objects.Session(ctx)
	return objectPipe{stream}, err
}

func (p objectPipe) send(calls []*holdfastv1.Call) error {
	return p.Send(&holdfastv1.SessionRequest{Calls: calls})
}

func (p objectPipe) receive() ([]*holdfastv1.Reply, error) {
	msg, err := p.Receive()
	return msg.GetReplies(), err
}

func (objectDialect) number(msg *holdfastv1.Call, id uint64) { msg.Id = id }

func (objectDialect) effect(msg *holdfastv1.Call) effect {
	dry := false
	switch c := msg.GetCall().(type) {
	case *holdfastv1.Call_Get:
		return reads
	case *holdfastv1.Call_Create:
		dry = c.Create.GetDryRun()
	case *holdfastv1.Call_Update:
		dry = c.Update.GetDryRun()
	case *holdfastv1.Call_Patch:
		dry = c.Patch.GetDryRun()
	case *holdfastv1.Call_Apply:
		dry = c.Apply.GetDryRun()
	case *holdfastv1.Call_Delete:
		dry = c.Delete.GetDryRun()
	}
	if dry {
		return reads
	}
	return writes
}

func (objectDialect) answered(reply *holdfastv1.Reply) (uint64, error) {
	f := reply.GetFailure()
	if f == nil {
		return reply.GetId(), nil
	}
	err := connect.NewError(codeOf(f.GetCode()), f.GetMessage())
	if err.Code() == connect.CodeUnknown {
		err = err.WithCause(ErrOutcomeUnknown)
	}
	for _, detail := range f.GetDetails() {
		err = err.WithDetail(&connect.ErrorDetail{Type: string(detail.MessageName()), Value: detail.GetValue()})
	}
	return reply.GetId(), err
}
