package wire

import (
	"errors"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxPending bounds what a Conn holds; who would write more waits.
	maxPending = 256 << 10
	// closePatience bounds how long Close lets what is pending go out.
	closePatience = time.Second
	// keepBuffer is the largest buffer that is kept for others.
	keepBuffer = 64 << 10
)

// Conn is a connection whose Write returns at once, and what has been written goes out
// as soon as the other goroutines that can run have had their turn to write as well:
// without a timer, and without a goroutine while nothing is written. The first failure
// is every later Write's, and closes the connection, so that its reader learns of it.
//
// It is for below TLS and HTTP/2, not for protocols that take a Write's return for
// more than that the operating system may get the bytes. Reading is the connection's
// own.
type Conn struct {
	net.Conn
	stall time.Duration
	on    atomic.Bool

	mu       sync.Mutex
	room     sync.Cond // pending has shrunk, or err is set
	pending  *[]byte   // nil: none
	flushing bool
	closing  bool
	err      error
	queued   int64 // bytes ever pending
	sent     int64 // of these, given to the connection, or being given to it
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Coalesce wraps conn. A write that makes no progress for stall fails; so write
// deadlines are not needed, and have no effect. It changes nothing before Start.
func Coalesce(conn net.Conn, stall time.Duration) *Conn {
	c := &Conn{Conn: conn, stall: stall}
	c.room.L = &c.mu
	return c
}

// Start begins to coalesce: once it is clear that HTTP/2 is spoken.
func (c *Conn) Start() { c.on.Store(true) }

// NetConn returns the wrapped connection.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	if !c.on.Load() {
		return c.Conn.Write(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && !c.closing && c.pending != nil && len(*c.pending)+len(p) > maxPending {
		c.room.Wait()
	}
	switch {
	case c.err != nil:
		return 0, c.err
	case c.closing:
		return 0, net.ErrClosed
	case c.pending == nil:
		c.pending = buffers.Get().(*[]byte)
	}
	*c.pending = append(*c.pending, p...)
	c.queued += int64(len(p))
	if !c.flushing {
		c.flushing = true
		go c.flush() // until nothing is pending
	}
	return len(p), nil
}

// flush writes what is pending until nothing is.
func (c *Conn) flush() {
	// grpc-go's loopyWriter does the same: those that are about to write go first.
	runtime.Gosched()
	for {
		c.mu.Lock()
		out := c.pending
		if c.pending = nil; out == nil || c.err != nil {
			c.flushing = false
			if c.closing {
				c.Conn.Close()
			}
			c.mu.Unlock()
			return
		}
		stall := c.stall
		if c.closing {
			stall = closePatience
		}
		c.sent += int64(len(*out))
		c.room.Broadcast()
		c.mu.Unlock()

		left, err := c.writeAll(*out, stall)
		if cap(*out) <= keepBuffer {
			*out = (*out)[:0]
			buffers.Put(out)
		}
		if err != nil {
			c.mu.Lock()
			c.err = err
			c.sent -= int64(left)
			c.room.Broadcast()
			c.mu.Unlock()
			c.Conn.Close()
		}
	}
}

// writeAll fails once nothing at all could be written for stall. left is how many bytes
// were not.
func (c *Conn) writeAll(p []byte, stall time.Duration) (left int, err error) {
	for {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(stall)); err != nil {
			return len(p), err
		}
		n, err := c.Conn.Write(p)
		if p = p[n:]; err == nil || n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return len(p), err
		}
	}
}

// Queued returns how many bytes have been written, whether they have gone out or not.
func (c *Conn) Queued() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.queued
}

// Abandon gives the connection up: nothing more goes out. It reports whether anything
// of what was written after Queued was from may have gone out before: if not, whoever
// is at the other end knows nothing of it.
func (c *Conn) Abandon(from int64) (sent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = net.ErrClosed
	}
	c.room.Broadcast()
	return c.sent > from
}

// Close implements net.Conn. What is pending goes out first, for a second at most,
// which Close does not wait for.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closing = true
	c.room.Broadcast()
	if c.flushing {
		// Ends a Read, and bounds the write under way.
		return errors.Join(c.Conn.SetReadDeadline(time.Unix(1, 0)), c.Conn.SetWriteDeadline(time.Now().Add(closePatience)))
	}
	return c.Conn.Close()
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) && c.isClosing() {
		err = net.ErrClosed
	}
	return n, err
}

func (c *Conn) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// SetWriteDeadline implements net.Conn; see Coalesce.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.on.Load() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline implements net.Conn; see Coalesce.
func (c *Conn) SetDeadline(t time.Time) error {
	if c.on.Load() {
		return c.Conn.SetReadDeadline(t)
	}
	return c.Conn.SetDeadline(t)
}
