package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/internal/faults"
	"github.com/holdfast-io/holdfast/internal/wire"
	"github.com/holdfast-io/holdfast/pki"
)

// The protocols of the one port, told apart by ALPN.
const (
	protoRaft = "holdfast-raft/1"
	protoH2   = "h2"
	protoHTTP = "http/1.1"
)

// handshakeTimeout bounds how long a stranger may hold a connection open before
// it has shown who it is (GHSA-6vch-q96h-7gc3 is etcd without such a bound).
const handshakeTimeout = 5 * time.Second

// clientStall is how long a connection may take nothing of what is written to it.
const clientStall = 10 * time.Second

// maxHandshakes bounds the connections that have not finished their handshake.
const maxHandshakes = 256

// maxHandshakesOfOne bounds those of one address: who opens connections and says nothing
// leaves room for others. What is beyond it is closed.
const maxHandshakesOfOne = maxHandshakes / 2

// mux accepts TLS connections and hands each to raft or to HTTP, by the
// protocol that its handshake agreed on.
type mux struct {
	listener net.Listener
	tls      *tls.Config
	log      *slog.Logger
	raft     *acceptQueue
	http     *acceptQueue
	door     door
}

func newMux(listener net.Listener, config *tls.Config, log *slog.Logger) *mux {
	return &mux{
		listener: listener,
		tls:      config,
		log:      log,
		raft:     newAcceptQueue(listener.Addr()),
		http:     newAcceptQueue(listener.Addr()),
	}
}

// run accepts until ctx ends, then closes the listener and both queues.
func (m *mux) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { m.listener.Close() })
	defer stop()
	var handshakes sync.WaitGroup
	defer handshakes.Wait()
	defer m.raft.Close()
	defer m.http.Close()

	slots := make(chan struct{}, maxHandshakes)
	shaking := addressCount{open: make(map[string]int)}
	for {
		conn, err := m.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of file descriptors, most likely: wait for some to come back.
			m.log.Warn("accept failed", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		from := hostOf(conn.RemoteAddr().String())
		if !shaking.enter(from) {
			conn.Close()
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return nil
		}
		handshakes.Go(func() {
			defer func() { <-slots }()
			defer shaking.leave(from)
			m.serve(ctx, conn)
		})
	}
}

// addressCount counts the handshakes of each address.
type addressCount struct {
	mu   sync.Mutex
	open map[string]int
}

func (a *addressCount) enter(address string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[address] >= maxHandshakesOfOne {
		return false
	}
	a.open[address]++
	return true
}

func (a *addressCount) leave(address string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[address]--; a.open[address] <= 0 {
		delete(a.open, address)
	}
}

func (m *mux) serve(ctx context.Context, conn net.Conn) {
	guest := m.door.let(conn)
	conn = wire.Coalesce(guest, clientStall) // from Start on
	tlsConn := tls.Server(conn, m.tls)
	shake, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := tlsConn.HandshakeContext(shake); err != nil {
		m.log.Debug("handshake failed", "remote", conn.RemoteAddr().String(), "err", err)
		conn.Close()
		return
	}
	state := tlsConn.ConnectionState()
	if len(state.PeerCertificates) > 0 {
		if id, err := pki.IdentityOf(state.PeerCertificates[0]); err == nil {
			faults.Identify(tlsConn, id.Name)
		}
	}
	if len(state.PeerCertificates) > 0 {
		// Whoever speaks HTTP is told why, by an answer: what TLS can say is one byte.
		raft := state.NegotiatedProtocol == protoRaft
		if err := m.door.know(guest, state.PeerCertificates[0], instanceOf(state.ServerName), raft); err != nil && raft {
			m.log.Warn("raft connection refused", "remote", conn.RemoteAddr().String(), "err", err)
			conn.Close()
			return
		}
	}
	if state.NegotiatedProtocol != protoRaft {
		if state.NegotiatedProtocol == protoH2 {
			coalesce(tlsConn)
		}
		m.http.put(tlsConn)
		return
	}
	// Raft has no authentication of its own: whoever gets in can send votes and
	// entries. So only a peer of this cluster does.
	if len(state.PeerCertificates) == 0 {
		m.log.Warn("raft connection without certificate refused", "remote", conn.RemoteAddr().String())
		conn.Close()
		return
	}
	id, err := pki.IdentityOf(state.PeerCertificates[0])
	if err != nil || id.Role != pki.RolePeer {
		m.log.Warn("raft connection refused: not a peer", "remote", conn.RemoteAddr().String(), "identity", id.Name, "err", err)
		conn.Close()
		return
	}
	m.raft.put(tlsConn)
}

// acceptQueue is a net.Listener whose connections come from elsewhere.
type acceptQueue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newAcceptQueue(addr net.Addr) *acceptQueue {
	return &acceptQueue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (q *acceptQueue) put(conn net.Conn) {
	select {
	case q.conns <- conn:
	case <-q.done:
		conn.Close()
	}
}

func (q *acceptQueue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *acceptQueue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *acceptQueue) Addr() net.Addr { return q.addr }
