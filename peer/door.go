package peer

import (
	"context"
	"crypto/x509"
	"net"
	"slices"
	"strings"
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

// cloneOverlap is for how long two processes have connections open with one peer's
// certificate until that peer counts as copied. One that is killed closes its own, and
// those of a machine that lost its power are noticed in ten seconds (the pings of
// peer.serve), so a restart is far below.
const cloneOverlap = 45 * time.Second

// cloneLook is how often the door looks for it.
const cloneLook = 5 * time.Second

// instanceOf returns which process of a peer made a connection: what it gave as the
// server's name, which means nothing else between peers.
func instanceOf(serverName string) string {
	instance, ok := strings.CutSuffix(serverName, instanceSuffix)
	if !ok {
		return ""
	}
	return instance
}

const instanceSuffix = ".process.holdfast.internal"

// cloned returns the peers of which two processes have had connections open for
// cloneOverlap: a data directory that was copied and started twice.
func (d *door) cloned(now time.Time) (names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := make(map[string]map[string]bool) // name -> instances
	for g := range d.conns {
		if g.raft || g.out || g.instance == "" || now.Sub(g.since) < cloneOverlap {
			continue // raft's connections have no pings: dead ones stay for minutes
		}
		id, err := pki.IdentityOf(g.cert)
		if err != nil || id.Role != pki.RolePeer {
			continue
		}
		if old[id.Name] == nil {
			old[id.Name] = make(map[string]bool)
		}
		old[id.Name][g.instance] = true
	}
	for name, instances := range old {
		if len(instances) > 1 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// guest is a connection below TLS.
type guest struct {
	net.Conn
	door *door
	cert *x509.Certificate // nil: none was shown, or the handshake is not done
	raft bool
	out  bool

	instance string // of a peer's process; "" if it does not say
	since    time.Time
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
func (d *door) know(g *guest, cert *x509.Certificate, instance string, raft bool) error {
	d.mu.Lock()
	g.cert, g.raft, g.instance, g.since = cert, raft, instance, time.Now()
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

// keepDoor puts out those whose certificates are revoked, until ctx ends, and tells of
// peers that are there twice.
func (p *Peer) keepDoor(ctx context.Context, twice func(context.Context, string)) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.store.Ready():
	}
	var looking sync.WaitGroup
	defer looking.Wait()
	looking.Go(func() {
		tick := time.NewTicker(cloneLook)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				for _, name := range p.mux.door.cloned(now) {
					twice(ctx, name)
				}
			}
		}
	})
	apiserver.RevocationsChanged(ctx, p.store, func(raftstore.View) { p.mux.door.look() })
	return nil
}
