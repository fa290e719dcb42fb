package peer

import (
	"context"
	"crypto/x509"
	"net"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/apiserver"
	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/raftstore"
)

// lastWords is how long the connection of somebody whose certificate was revoked stays
// open: what was asked on it, and what is asked yet, is answered with the reason.
const lastWords = time.Second

// door knows who is connected by certificate, and puts those out who are refused.
// Requests and streams are the API's; this is about raft's connections, which nobody
// else looks at, and about those on which nothing happens.
type door struct {
	// refuse returns why a certificate counts no more, nil if it does.
	refuse func(*x509.Certificate) error

	mu    sync.Mutex
	conns map[*guest]struct{}
}

// guest is a connection below TLS.
type guest struct {
	net.Conn
	door *door
	cert *x509.Certificate // nil: none was shown, or the handshake is not done
	raft bool
	out  bool
}

// Close implements net.Conn.
func (g *guest) Close() error {
	g.door.mu.Lock()
	delete(g.door.conns, g)
	g.door.mu.Unlock()
	return g.Conn.Close()
}

// NetConn returns the wrapped connection.
func (g *guest) NetConn() net.Conn { return g.Conn }

// let wraps a connection that has come.
func (d *door) let(conn net.Conn) *guest { return &guest{Conn: conn, door: d} }

// know notes whose the connection is, and returns why he may not stay.
func (d *door) know(g *guest, cert *x509.Certificate, raft bool) error {
	d.mu.Lock()
	g.cert, g.raft = cert, raft
	if d.conns == nil {
		d.conns = make(map[*guest]struct{})
	}
	d.conns[g] = struct{}{}
	d.mu.Unlock()
	if d.refuse == nil {
		return nil
	}
	return d.refuse(cert)
}

// look puts out who is refused by now.
func (d *door) look() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for g := range d.conns {
		if g.out || d.refuse == nil || d.refuse(g.cert) == nil {
			continue
		}
		g.out = true
		after := lastWords
		if g.raft {
			after = 0
		}
		time.AfterFunc(after, func() { g.Close() })
	}
}

// refusal is door.refuse.
func (p *Peer) refusal(cert *x509.Certificate) error {
	id, err := pki.IdentityOf(cert)
	if err != nil {
		return err
	}
	return apiserver.Refusal(p.store.View(), id, cert)
}

// keepDoor puts out those whose certificates are revoked, until ctx ends.
func (p *Peer) keepDoor(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.store.Ready():
	}
	apiserver.RevocationsChanged(ctx, p.store, func(raftstore.View) { p.mux.door.look() })
	return nil
}
