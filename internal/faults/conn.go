package faults

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// bufferBytes is what a stalled connection takes in one direction before Write
	// blocks, as the kernel's buffers would.
	bufferBytes = 256 << 10
	// lingerTime is for how long a closed connection tries to deliver the rest.
	lingerTime = 10 * time.Second
)

// Dial calls dial and returns its connection under the plane's faults, as one to
// peer. While a cut is in force it waits, until ctx ends.
func (p *Plane) Dial(ctx context.Context, peer string, dial func(ctx context.Context) (net.Conn, error)) (net.Conn, error) {
	if p == nil {
		return dial(ctx)
	}
	// The way there and back: a connection needs both.
	for _, dir := range []Direction{Out, In} {
		if err := p.Pass(ctx, peer, dir); err != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
		}
	}
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	return p.Conn(conn, peer), nil
}

// Listener returns l, with all connections that it accepts under the plane's
// faults. Who is at their other end is told by Identify, or goes by the address.
func (p *Plane) Listener(l net.Listener) net.Listener {
	if p == nil {
		return l
	}
	return listener{l, p}
}

type listener struct {
	net.Listener
	plane *Plane
}

func (l listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.plane.Conn(conn, ""), nil
}

// Identify says that peer is at the other end of conn, which came from a plane's
// Listener, or wraps one that did and has the method NetConn, as a *tls.Conn.
// Other connections are left alone.
func Identify(conn net.Conn, peer string) {
	for {
		switch c := conn.(type) {
		case *faultyConn:
			c.mu.Lock()
			c.names = append(c.names[:len(c.names):len(c.names)], peer)
			c.mu.Unlock()
			return
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return
		}
	}
}

// Conn returns conn under the plane's faults, as one to peer; "" if that is not
// known. It starts two goroutines, which end once it is closed.
func (p *Plane) Conn(conn net.Conn, peer string) net.Conn {
	if p == nil {
		return conn
	}
	c := &faultyConn{
		Conn: conn, plane: p, names: namesOf(peer, conn.RemoteAddr()),
		closed: make(chan struct{}), giveUp: make(chan struct{}),
	}
	c.in, c.out = newPipe(), newPipe()
	go c.receive()
	go c.send()
	return c
}

// namesOf returns all that an end goes by.
func namesOf(peer string, addr net.Addr) (names []string) {
	if peer != "" {
		names = append(names, peer)
	}
	if addr == nil {
		return names
	}
	names = append(names, addr.String())
	if host, _, err := net.SplitHostPort(addr.String()); err == nil {
		names = append(names, host)
	}
	return names
}

// faultyConn is a connection with a buffer in each direction, in which bytes wait
// as the faults tell them to.
type faultyConn struct {
	net.Conn
	plane   *Plane
	in, out *pipe
	closed  chan struct{}
	giveUp  chan struct{} // closed lingerTime after closed
	once    sync.Once
	reading sync.Mutex // orders concurrent Reads
	mu      sync.Mutex
	names   []string
}

func (c *faultyConn) ends() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names
}

// enter puts data into a pipe, due when the faults say.
func (c *faultyConn) enter(pi *pipe, dir Direction, data []byte, deadline <-chan struct{}) error {
	var late, serial time.Duration
	if c.plane.active.Load() {
		late, serial = c.plane.delay(c.plane.state.Load(), dir, c.ends(), len(data))
	}
	return pi.put(data, late, serial, deadline)
}

// leave returns the next of a pipe's data once nothing holds it back.
func (c *faultyConn) leave(pi *pipe, dir Direction, deadline <-chan struct{}) ([]byte, error) {
	data, err := pi.next(deadline)
	if err != nil {
		return nil, err
	}
	if c.plane.active.Load() && c.plane.hold(deadline, dir, c.ends()) != nil {
		return nil, os.ErrDeadlineExceeded
	}
	return data, nil
}

// receive moves bytes from the connection into the pipe.
func (c *faultyConn) receive() {
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Conn.Read(buf)
		if n > 0 && c.enter(c.in, In, append([]byte(nil), buf[:n]...), c.closed) != nil {
			return
		}
		if err != nil {
			c.in.end(err)
			return
		}
	}
}

// send moves bytes from the pipe into the connection, and closes that in the end.
func (c *faultyConn) send() {
	defer c.Conn.Close()
	for {
		data, err := c.leave(c.out, Out, c.giveUp)
		if err != nil {
			return
		}
		if _, err := c.Conn.Write(data); err != nil {
			c.out.end(err)
			return
		}
		c.out.taken(len(data))
	}
}

// Read implements net.Conn.
func (c *faultyConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	data, err := c.leave(c.in, In, c.in.deadline.wait())
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	if err != nil {
		return 0, err
	}
	n := copy(b, data)
	c.in.taken(n)
	return n, nil
}

// Write implements net.Conn.
func (c *faultyConn) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		part := b[:min(len(b), 32<<10)]
		if err := c.enter(c.out, Out, append([]byte(nil), part...), c.out.deadline.wait()); err != nil {
			return n, err
		}
		n += len(part)
		b = b[len(part):]
	}
	return n, nil
}

// Close implements net.Conn. What was written before is still delivered, if nothing
// holds it back for long.
func (c *faultyConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.in.end(net.ErrClosed)
		c.out.end(net.ErrClosed)
		c.in.deadline.set(time.Unix(0, 1)) // wakes a Read that is held back
		time.AfterFunc(lingerTime, func() { close(c.giveUp) })
	})
	return nil
}

// SetDeadline implements net.Conn.
func (c *faultyConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *faultyConn) SetReadDeadline(t time.Time) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	c.in.deadline.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *faultyConn) SetWriteDeadline(t time.Time) error {
	c.out.deadline.set(t)
	return nil
}

// pipe is the bytes under way in one direction.
type pipe struct {
	deadline deadline

	mu     sync.Mutex
	chunks []chunk
	size   int
	free   time.Time // when the link has sent what it has
	err    error     // after the chunks
	wake   chan struct{}
}

type chunk struct {
	due  time.Time
	data []byte
}

func newPipe() *pipe { return &pipe{wake: make(chan struct{})} }

func (p *pipe) notify() {
	close(p.wake)
	p.wake = make(chan struct{})
}

// put appends data that arrives late, after the link has been busy with it for
// serial. It waits while the pipe is full.
func (p *pipe) put(data []byte, late, serial time.Duration, done <-chan struct{}) error {
	for {
		p.mu.Lock()
		if p.err != nil {
			defer p.mu.Unlock()
			return p.err
		}
		wake := p.wake
		if p.size < bufferBytes {
			break
		}
		p.mu.Unlock()
		if !wait(done, wake, 0) {
			return os.ErrDeadlineExceeded
		}
	}
	defer p.mu.Unlock()
	due := time.Now()
	if serial > 0 {
		if p.free.Before(due) {
			p.free = due
		}
		p.free = p.free.Add(serial)
		due = p.free
	}
	due = due.Add(late)
	if n := len(p.chunks); n > 0 && due.Before(p.chunks[n-1].due) {
		due = p.chunks[n-1].due // a stream keeps its order
	}
	p.chunks = append(p.chunks, chunk{due, data})
	p.size += len(data)
	p.notify()
	return nil
}

// next returns the first chunk, once it is due, and leaves it where it is.
func (p *pipe) next(done <-chan struct{}) ([]byte, error) {
	for {
		p.mu.Lock()
		wake, err := p.wake, p.err
		var left time.Duration
		if len(p.chunks) > 0 {
			first := p.chunks[0]
			left = time.Until(first.due)
			if left <= 0 {
				p.mu.Unlock()
				select {
				case <-done:
					return nil, os.ErrDeadlineExceeded
				default:
					return first.data, nil
				}
			}
		} else if err != nil {
			p.mu.Unlock()
			return nil, err
		}
		p.mu.Unlock()
		if !wait(done, wake, left) {
			return nil, os.ErrDeadlineExceeded
		}
	}
}

// taken removes n bytes of the first chunk.
func (p *pipe) taken(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.chunks) == 0 {
		return
	}
	p.size -= n
	p.chunks[0].data = p.chunks[0].data[n:]
	if len(p.chunks[0].data) == 0 {
		p.chunks = p.chunks[1:]
	}
	p.notify()
}

// end lets nothing more in; err follows what is there.
func (p *pipe) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
		p.notify()
	}
}

// deadline is a time that can be moved while somebody waits for it, as in net.Pipe.
type deadline struct {
	mu     sync.Mutex
	timer  *time.Timer
	passed chan struct{}
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.channel()
}

func (d *deadline) channel() chan struct{} {
	if d.passed == nil {
		d.passed = make(chan struct{})
	}
	return d.passed
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.channel() // it is about to be closed
	}
	d.timer = nil
	passed := d.channel()
	over := false
	select {
	case <-passed:
		over = true
	default:
	}
	if t.IsZero() || time.Until(t) > 0 {
		if over {
			passed = make(chan struct{})
			d.passed = passed
		}
		if !t.IsZero() {
			d.timer = time.AfterFunc(time.Until(t), func() { close(passed) })
		}
		return
	}
	if !over {
		close(passed)
	}
}
