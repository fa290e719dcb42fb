package apiserver

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

const (
	// objectCalls bounds the calls of one session whose answer is not sent.
	objectCalls = 1024
	// idleWorkers bounds the goroutines of a session that wait for calls.
	idleWorkers = 128
)

var sessionSpec = connect.Spec{Procedure: holdfastv1connect.ObjectServiceSessionProcedure, StreamType: connect.StreamTypeBidi}

// Session runs the calls of a stream as callers in this process do, so nothing that
// holds for unary calls is left out: rights, fair queues, deadlines, counts, errors.
func (s objectService) Session(ctx context.Context, stream holdfastv1connect.ObjectServiceSessionServerStream) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ss := &objectSession{
		objectService: s, api: s.Objects(), queue: s.queueOf(ctx), who: actor(ctx), work: make(chan begun),
		replyQueue: newReplyQueue[*holdfastv1.Reply](context.WithValue(ctx, turnKey{}, true), objectCalls),
	}
	// As for the store's Session.
	received := make(chan error, 1)
	go func() { received <- ss.receive(stream) }()
	return ss.serve(received, func(replies []*holdfastv1.Reply) error {
		return stream.Send(&holdfastv1.SessionResponse{Replies: replies})
	}, nil, nil)
}

// objectSession is one open Session.
type objectSession struct {
	objectService
	*replyQueue[*holdfastv1.Reply]
	api   ObjectAPI
	queue *fairQueue // nil: without bounds
	who   string
	work  chan begun   // to workers that wait
	idle  atomic.Int64 // how many these are
}

// receive begins the calls that arrive, each in a worker, until the client says that
// there are no more. A call waits for its turn here, so that of a session one waits at
// most, and where others would be refused, the client is stopped instead.
func (ss *objectSession) receive(stream holdfastv1connect.ObjectServiceSessionServerStream) error {
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, call := range msg.GetCalls() {
			cost := replyOverhead + proto.Size(call)
			if err := ss.acquire(cost); err != nil {
				return err
			}
			if err := ss.enter(); err != nil {
				ss.reply(&holdfastv1.Reply{Id: call.GetId(), Reply: failed(ss.publish(ss.ctx, sessionSpec, err))}, cost)
				continue
			}
			select {
			case ss.work <- begun{call, cost}:
			default:
				go ss.worker(begun{call, cost}) // ends with the session, and is bounded by the queue
			}
		}
	}
}

// begun is a call whose turn it is.
type begun struct {
	call *holdfastv1.Call
	cost int
}

// worker runs calls, the next one on the stack that the last has grown: growing it took
// a tenth of a call's time. Some wait for more, until the session ends.
func (ss *objectSession) worker(next begun) {
	for {
		reply := ss.run(next.call)
		if ss.queue != nil {
			ss.queue.leave(ss.who)
		}
		size := proto.Size(reply)
		ss.grow(size)
		ss.reply(reply, next.cost+size)
		if ss.idle.Add(1) > idleWorkers {
			ss.idle.Add(-1)
			return
		}
		select {
		case next = <-ss.work:
			ss.idle.Add(-1)
		case <-ss.ctx.Done():
			return
		}
	}
}

// enter returns when it is a call's turn.
func (ss *objectSession) enter() error {
	if ss.queue == nil {
		return nil
	}
	return ss.queue.enter(ss.ctx, ss.who)
}

// run makes a call.
func (ss *objectSession) run(msg *holdfastv1.Call) *holdfastv1.Reply {
	reply := &holdfastv1.Reply{Id: msg.GetId()}
	var err error
	switch call := msg.GetCall().(type) {
	case *holdfastv1.Call_Get:
		out := new(holdfastv1.Reply_Get)
		out.Get, err = ss.api.Get(ss.ctx, call.Get)
		reply.Reply = out
	case *holdfastv1.Call_Create:
		out := new(holdfastv1.Reply_Create)
		out.Create, err = ss.api.Create(ss.ctx, call.Create)
		reply.Reply = out
	case *holdfastv1.Call_Update:
		out := new(holdfastv1.Reply_Update)
		out.Update, err = ss.api.Update(ss.ctx, call.Update)
		reply.Reply = out
	case *holdfastv1.Call_Patch:
		out := new(holdfastv1.Reply_Patch)
		out.Patch, err = ss.api.Patch(ss.ctx, call.Patch)
		reply.Reply = out
	case *holdfastv1.Call_Apply:
		out := new(holdfastv1.Reply_Apply)
		out.Apply, err = ss.api.Apply(ss.ctx, call.Apply)
		reply.Reply = out
	case *holdfastv1.Call_Delete:
		out := new(holdfastv1.Reply_Delete)
		out.Delete, err = ss.api.Delete(ss.ctx, call.Delete)
		reply.Reply = out
	default:
		err = connect.NewError(connect.CodeUnimplemented, "the call is empty, or of a kind that this peer does not know")
		err = ss.publish(ss.ctx, sessionSpec, err)
	}
	if err != nil {
		reply.Reply = failed(err)
	}
	return reply
}

// failed says in a message what a unary call has ended with.
func failed(err error) *holdfastv1.Reply_Failure {
	f := &holdfastv1.Failure{Code: connect.CodeOf(err).String(), Message: err.Error()}
	if rpcErr, ok := errors.AsType[*connect.Error](err); ok {
		f.Message = rpcErr.Message()
		for _, detail := range rpcErr.Details() {
			f.Details = append(f.Details, connectproto.ErrorDetailToAny(detail))
		}
	}
	return &holdfastv1.Reply_Failure{Failure: f}
}
