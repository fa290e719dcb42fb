package apiserver

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// Bounds of one session, besides its calls'. Beyond them the peer reads no further,
// and HTTP/2's flow control stops the client.
const (
	sessionBytes = 32 << 20 // of the calls whose answer is not sent, and of answers
	replyBytes   = 256 << 10
	// replyOverhead is what a call and its reply take besides keys and values, about.
	replyOverhead = 64
)

// replyQueue is what sessions have in common, which carry calls over a stream: their
// bounds, and the replies that are done and not sent. Who has a reply appends it; the
// handler sends all that is there whenever it is free, so messages grow with the load,
// without a timer. Safe for concurrent use; serve is for one goroutine. It belongs to
// one call, whose context it keeps.
type replyQueue[R any] struct {
	ctx      context.Context
	maxCalls int
	ready    chan struct{} // capacity 1: there are replies

	mu      sync.Mutex
	room    chan struct{} // closed when some were sent; nil while nobody waits for that
	replies []R           // done and not sent
	costs   []int         // in bytes, of the calls and their replies
	sending int           // bytes of those that are being sent
	nSent   int           // and how many they are
	calls   int           // begun and not sent
	bytes   int           // of them
}

func newReplyQueue[R any](ctx context.Context, maxCalls int) *replyQueue[R] {
	return &replyQueue[R]{ctx: ctx, maxCalls: maxCalls, ready: make(chan struct{}, 1)}
}

// serve sends replies until the session is over: an error, or received, which yields
// the end of the client's calls, is nil and all are answered. The first message goes
// at once, and is empty. tick is called with what ticks yields, which may be nil.
func (q *replyQueue[R]) serve(received <-chan error, send func([]R) error, ticks <-chan time.Time, tick func(time.Time)) error {
	if err := send(nil); err != nil {
		return err
	}
	for ended := false; ; {
		if replies := q.take(); len(replies) > 0 {
			if err := send(replies); err != nil {
				return err
			}
			q.sent()
			continue
		}
		if ended && q.idle() {
			return nil
		}
		select {
		case <-q.ready:
			// Those who bring answers, of one entry for one, go first: then they share
			// a message.
			runtime.Gosched()
		case now := <-ticks:
			tick(now)
		case err := <-received:
			if err != nil {
				return err
			}
			ended, received = true, nil
		case <-q.ctx.Done():
			return context.Cause(q.ctx)
		}
	}
}

// reply queues an answer. It never blocks.
func (q *replyQueue[R]) reply(reply R, cost int) {
	q.mu.Lock()
	q.replies = append(q.replies, reply)
	q.costs = append(q.costs, cost)
	first := len(q.replies) == 1
	q.mu.Unlock()
	if first {
		wake(q.ready)
	}
}

// take returns the replies of the next message.
func (q *replyQueue[R]) take() []R {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(q.replies) && q.sending < replyBytes {
		q.sending += q.costs[n]
		n++
	}
	q.nSent = n
	out := q.replies[:n:n]
	if q.replies, q.costs = q.replies[n:], q.costs[n:]; len(q.replies) == 0 {
		q.replies, q.costs = nil, q.costs[:0]
	}
	return out
}

// sent frees the room of what take has returned.
func (q *replyQueue[R]) sent() {
	q.mu.Lock()
	q.calls -= q.nSent
	q.bytes -= q.sending
	q.nSent, q.sending = 0, 0
	if q.room != nil {
		close(q.room)
		q.room = nil
	}
	q.mu.Unlock()
}

func (q *replyQueue[R]) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.calls == 0
}

// acquire counts a call in, once there is room.
func (q *replyQueue[R]) acquire(cost int) error {
	return q.wait(func() bool {
		if q.calls > 0 && (q.calls >= q.maxCalls || q.bytes >= sessionBytes) {
			return false
		}
		q.calls++
		q.bytes += cost
		return true
	})
}

// grow counts size bytes of an answer in. The reply's cost has them, too.
func (q *replyQueue[R]) grow(size int) {
	q.mu.Lock()
	q.bytes += size
	q.mu.Unlock()
}

// waitRoom waits until replies may grow.
func (q *replyQueue[R]) waitRoom() error {
	return q.wait(func() bool { return q.bytes < sessionBytes || q.nSent+len(q.replies) == 0 })
}

// wait waits until enough replies are sent for met, which is called with q.mu held.
func (q *replyQueue[R]) wait(met func() bool) error {
	for {
		q.mu.Lock()
		if met() {
			q.mu.Unlock()
			return nil
		}
		if q.room == nil {
			q.room = make(chan struct{})
		}
		room := q.room
		q.mu.Unlock()
		select {
		case <-room:
		case <-q.ctx.Done():
			return context.Cause(q.ctx)
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
