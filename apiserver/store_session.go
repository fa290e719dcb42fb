package apiserver

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

// sessionCalls bounds the calls of one session whose answer is not sent.
const sessionCalls = 8192

// Session runs the calls of a stream. No write costs a goroutine: the store calls
// back, see raftstore.Store.Submit. Linearizable reads that arrive while others are
// being confirmed share the next confirmation.
func (s storeService) Session(ctx context.Context, stream storev1connect.StoreServiceSessionServerStream) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ss := &storeSession{storeService: s, actor: actor(ctx), replyQueue: newReplyQueue[*storev1.Reply](ctx, sessionCalls)}
	// Receive cannot be interrupted but by the end of the call, so this goroutine
	// ends a moment after the handler when that is done first.
	received := make(chan error, 1)
	go func() { received <- ss.receive(stream) }()
	expiry := time.NewTimer(waitTimeout)
	defer expiry.Stop()
	return ss.serve(received, func(replies []*storev1.Reply) error {
		msg := &storev1.SessionResponse{Replies: replies, Header: &storev1.Header{}}
		s.sign(msg.Header)
		return stream.Send(msg)
	}, expiry.C, func(now time.Time) { expiry.Reset(ss.expire(now)) })
}

// storeSession is one open Session.
type storeSession struct {
	storeService
	*replyQueue[*storev1.Reply]
	actor string

	// With mu of the queue:
	writes  []*raftstore.Submission
	reads   []pendingRange
	reading bool
}

type pendingRange struct {
	id   uint64
	r    storeRange
	opts raftstore.ReadOptions
	cost int
}

// receive begins the calls that arrive until the client says that there are no more.
func (ss *storeSession) receive(stream storev1connect.StoreServiceSessionServerStream) error {
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, call := range msg.GetCalls() {
			if err := ss.begin(call); err != nil {
				return err
			}
		}
	}
}

// begin starts a call once there is room for it.
func (ss *storeSession) begin(msg *storev1.Call) error {
	cost := replyOverhead
	switch call := msg.GetCall().(type) {
	case *storev1.Call_Put:
		cost += len(call.Put.GetKey()) + len(call.Put.GetValue())
	case *storev1.Call_Range:
		cost += len(call.Range.GetKey()) + len(call.Range.GetRangeEnd())
	case *storev1.Call_Txn, *storev1.Call_Delete:
		cost += proto.Size(msg)
	}
	if err := ss.acquire(cost); err != nil {
		return err
	}
	id := msg.GetId()
	var err error
	switch call := msg.GetCall().(type) {
	case *storev1.Call_Put:
		var op raftstore.Op
		if op, err = putOp(call.Put); err == nil {
			ss.submit(id, cost, "put", raftstore.Txn{Then: []raftstore.Op{op}}, func(result raftstore.Result) *storev1.Reply {
				return putReply(id, result, call.Put)
			})
		}
	case *storev1.Call_Txn:
		var txn raftstore.Txn
		if txn, err = txnOf(call.Txn); err == nil {
			ss.submit(id, cost, "transaction", txn, func(result raftstore.Result) *storev1.Reply {
				return &storev1.Reply{Id: id, Reply: &storev1.Reply_Txn{Txn: txnResponse(result, call.Txn)}}
			})
		}
	case *storev1.Call_Delete:
		var op raftstore.Op
		if op, err = deleteOp(call.Delete); err == nil {
			ss.submit(id, cost, "delete", raftstore.Txn{Then: []raftstore.Op{op}}, func(result raftstore.Result) *storev1.Reply {
				return &storev1.Reply{Id: id, Reply: &storev1.Reply_Delete{Delete: deleteResponse(result)}}
			})
		}
	case *storev1.Call_Range:
		err = ss.beginRange(id, cost, call.Range)
	case *storev1.Call_KeepAlive:
		go ss.keepLease(id, cost, call.KeepAlive.GetId()) // bounded by the store, and as the calls are
	default:
		err = connect.NewError(connect.CodeUnimplemented, "the call is empty, or of a kind that this peer does not know")
	}
	if err != nil {
		ss.fail(id, cost, err)
	}
	return nil
}

// submit begins a write; its answer becomes a reply.
func (ss *storeSession) submit(id uint64, cost int, what string, txn raftstore.Txn, reply func(raftstore.Result) *storev1.Reply) {
	txn.Actor = ss.actor
	sub := ss.store.Submit(ss.ctx, txn, func(result raftstore.Result, err error) {
		if err != nil {
			ss.fail(id, cost, storeError(what, err))
			return
		}
		ss.reply(reply(result), cost)
	})
	ss.mu.Lock()
	defer ss.mu.Unlock()
	// What is answered need not be remembered for expire; two out for one in keeps
	// the rest short.
	for range 2 {
		if len(ss.writes) == 0 || !ss.writes[0].Answered() {
			break
		}
		ss.writes[0] = nil
		ss.writes = ss.writes[1:]
	}
	if !sub.Answered() {
		ss.writes = append(ss.writes, sub)
	}
}

// expire gives up on writes that the leader has not answered for waitTimeout, and
// returns when to look again.
func (ss *storeSession) expire(now time.Time) time.Duration {
	ss.mu.Lock()
	var late []*raftstore.Submission
	for len(ss.writes) > 0 {
		first := ss.writes[0]
		if !first.Answered() {
			if now.Sub(first.Begin()) < waitTimeout {
				break
			}
			late = append(late, first)
		}
		ss.writes = ss.writes[1:]
	}
	next := waitTimeout
	if len(ss.writes) > 0 {
		next = waitTimeout - now.Sub(ss.writes[0].Begin())
	}
	ss.mu.Unlock()
	for _, sub := range late {
		sub.Abandon(errNoAnswer)
	}
	return max(next, time.Millisecond)
}

var errNoAnswer = errors.New("the leader did not answer within " + waitTimeout.String())

// beginRange answers at once what need not be confirmed, and queues what must be.
func (ss *storeSession) beginRange(id uint64, cost int, req *storev1.RangeRequest) error {
	r, err := rangeOf(req, req.GetAllKeys())
	if err != nil {
		return err
	}
	opts, err := readOptions(req.GetRead())
	if err != nil {
		return err
	}
	if view, age, ok := ss.store.TryRead(opts); ok {
		ss.answerRange(id, cost, aged(view, age), r)
		return nil
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.reads = append(ss.reads, pendingRange{id, r, opts, cost})
	if !ss.reading {
		ss.reading = true
		go ss.confirmReads() // ends when there are no more, or with the session
	}
	return nil
}

// confirmReads answers ranges until none waits. All that wait share a confirmation.
func (ss *storeSession) confirmReads() {
	for {
		ss.mu.Lock()
		reads := ss.reads
		ss.reads = nil
		if len(reads) == 0 || ss.ctx.Err() != nil {
			ss.reading = false
			ss.mu.Unlock()
			return
		}
		ss.mu.Unlock()
		proved, err := ss.readStore(ss.ctx, raftstore.ReadOptions{})
		for _, p := range reads {
			switch {
			case err != nil:
				ss.fail(p.id, p.cost, err)
			case p.opts.MinRevision > proved.view.Revision():
				go func() { // bounded by the store
					later, err := ss.readStore(ss.ctx, p.opts)
					if err != nil {
						ss.fail(p.id, p.cost, err)
						return
					}
					ss.answerRange(p.id, p.cost, later, p.r)
				}()
			case ss.waitRoom() != nil:
				return
			default:
				ss.answerRange(p.id, p.cost, proved, p.r)
			}
		}
	}
}

// keepLease waits for the leader to keep a lease alive; the store asks it for many at
// once.
func (ss *storeSession) keepLease(id uint64, cost int, lease int64) {
	resp, err := ss.keepAlive(ss.ctx, lease)
	if err != nil {
		ss.fail(id, cost, err)
		return
	}
	ss.reply(&storev1.Reply{Id: id, Reply: &storev1.Reply_KeepAlive{KeepAlive: resp}}, cost)
}

func (ss *storeSession) answerRange(id uint64, cost int, read reading, r storeRange) {
	resp, err := ss.rangeAt(read, r)
	if err != nil {
		ss.fail(id, cost, err)
		return
	}
	size := 0
	for _, kv := range resp.GetKvs() {
		size += len(kv.GetKey()) + len(kv.GetValue()) + replyOverhead/2
	}
	ss.grow(size)
	ss.reply(&storev1.Reply{Id: id, Reply: &storev1.Reply_Range{Range: resp}}, cost+size)
}

func (ss *storeSession) fail(id uint64, cost int, err error) {
	ss.reply(&storev1.Reply{Id: id, Reply: &storev1.Reply_Failure{Failure: ss.failure(err)}}, cost)
}

// failure says in a message what a unary call would end with.
func (s *Server) failure(err error) *storev1.Failure {
	rpcErr, ok := errors.AsType[*connect.Error](err)
	switch {
	case ok:
	case errors.Is(err, context.Canceled):
		rpcErr = connect.NewError(connect.CodeCanceled, "the caller ended the call")
	default:
		s.log.Error("call failed unexpectedly", "procedure", storev1connect.StoreServiceSessionProcedure, "err", err)
		rpcErr = connect.NewError(connect.CodeInternal, "internal error: the peer's log has more")
	}
	return &storev1.Failure{
		Code: rpcErr.Code().String(), Message: rpcErr.Message(), OutcomeUnknown: errors.Is(err, raftstore.ErrOutcomeUnknown),
	}
}
