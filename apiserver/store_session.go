package apiserver

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

// Bounds of one session. Beyond them the peer reads no further, and HTTP/2's flow
// control stops the client.
const (
	sessionCalls = 8192     // whose answer is not sent
	sessionBytes = 32 << 20 // of these calls and answers
	replyBytes   = 256 << 10
	// replyOverhead is what a reply takes besides keys and values, about.
	replyOverhead = 64
)

// Session runs the calls of a stream. No write costs a goroutine: the store calls
// back, see raftstore.Store.Submit. Linearizable reads that arrive while others are
// being confirmed share the next confirmation. All that is done when the sender is
// free goes into one message.
func (s storeService) Session(ctx context.Context, stream storev1connect.StoreServiceSessionServerStream) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ss := &storeSession{
		storeService: s, ctx: ctx, actor: actor(ctx),
		ready: make(chan struct{}, 1),
	}
	// Receive cannot be interrupted but by the end of the call, so this goroutine
	// ends a moment after the handler when that is done first.
	received := make(chan error, 1)
	go func() { received <- ss.receive(stream) }()
	hello := &storev1.Header{}
	s.sign(hello)
	if err := stream.Send(&storev1.SessionResponse{Header: hello}); err != nil {
		return err
	}

	expiry := time.NewTimer(waitTimeout)
	defer expiry.Stop()
	for ended := false; ; {
		replies := ss.take()
		if len(replies) > 0 {
			msg := &storev1.SessionResponse{Replies: replies, Header: &storev1.Header{}}
			s.sign(msg.Header)
			if err := stream.Send(msg); err != nil {
				return err
			}
			ss.sent()
			continue
		}
		if ended && ss.idle() {
			return nil
		}
		select {
		case <-ss.ready:
			// Those who bring answers, of one entry for one, go first: then they share
			// a message.
			runtime.Gosched()
		case now := <-expiry.C:
			expiry.Reset(ss.expire(now))
		case err := <-received:
			if err != nil {
				return err
			}
			ended, received = true, nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// storeSession is one open Session. It is a session itself, hence the context.
type storeSession struct {
	storeService
	ctx   context.Context
	actor string

	ready chan struct{} // capacity 1: there are replies

	mu      sync.Mutex
	room    chan struct{}    // closed when some were sent; nil while nobody waits for that
	replies []*storev1.Reply // done and not sent
	costs   []int            // in bytes, of the calls and their replies
	sending int              // bytes of those that are being sent
	nSent   int              // and how many they are
	calls   int              // begun and not sent
	bytes   int              // of them
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
	ss.mu.Lock()
	ss.bytes += size
	ss.mu.Unlock()
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

// reply queues an answer. It never blocks.
func (ss *storeSession) reply(reply *storev1.Reply, cost int) {
	ss.mu.Lock()
	ss.replies = append(ss.replies, reply)
	ss.costs = append(ss.costs, cost)
	first := len(ss.replies) == 1
	ss.mu.Unlock()
	if first {
		wake(ss.ready)
	}
}

// take returns the replies of the next message.
func (ss *storeSession) take() []*storev1.Reply {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	n := 0
	for n < len(ss.replies) && ss.sending < replyBytes {
		ss.sending += ss.costs[n]
		n++
	}
	ss.nSent = n
	out := ss.replies[:n:n]
	if ss.replies, ss.costs = ss.replies[n:], ss.costs[n:]; len(ss.replies) == 0 {
		ss.replies, ss.costs = nil, ss.costs[:0]
	}
	return out
}

// sent frees the room of what take has returned.
func (ss *storeSession) sent() {
	ss.mu.Lock()
	ss.calls -= ss.nSent
	ss.bytes -= ss.sending
	ss.nSent, ss.sending = 0, 0
	if ss.room != nil {
		close(ss.room)
		ss.room = nil
	}
	ss.mu.Unlock()
}

func (ss *storeSession) idle() bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.calls == 0
}

// acquire counts a call in, once there is room.
func (ss *storeSession) acquire(cost int) error {
	return ss.wait(func() bool {
		if ss.calls > 0 && (ss.calls >= sessionCalls || ss.bytes >= sessionBytes) {
			return false
		}
		ss.calls++
		ss.bytes += cost
		return true
	})
}

// waitRoom waits until replies may grow.
func (ss *storeSession) waitRoom() error {
	return ss.wait(func() bool { return ss.bytes < sessionBytes || ss.nSent+len(ss.replies) == 0 })
}

// wait waits until enough replies are sent for met, which is called with ss.mu held.
func (ss *storeSession) wait(met func() bool) error {
	for {
		ss.mu.Lock()
		if met() {
			ss.mu.Unlock()
			return nil
		}
		if ss.room == nil {
			ss.room = make(chan struct{})
		}
		room := ss.room
		ss.mu.Unlock()
		select {
		case <-room:
		case <-ss.ctx.Done():
			return context.Cause(ss.ctx)
		}
	}
}

// wake makes a channel of capacity 1 ready.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
