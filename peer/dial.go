package peer

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/holdfast-io/holdfast/internal/faults"
	"github.com/holdfast-io/holdfast/internal/wire"
	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/raftstore"
)

// dialTimeout bounds the making of a connection to another peer, handshake
// included.
const dialTimeout = 3 * time.Second

// writeStall is how long a connection may take nothing of what is written to it: a
// peer that is cut off, and says nothing, must be noticed well within a client's
// patience.
const writeStall = 5 * time.Second

// raftStream is raft's way over the one port: a raftstore.StreamLayer.
type raftStream struct {
	*acceptQueue
	creds  *pki.Credentials
	faults *faults.Plane
}

// Dial connects to the raft of the peer at address. Any peer of this cluster
// answers there or nobody does; raft itself checks whom it reached by the ids in
// its messages.
func (s raftStream) Dial(address raftstore.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	dialer := &net.Dialer{Timeout: timeout, KeepAlive: 5 * time.Second}
	conn, err := dialTLS(ctx, dialer, string(address), s.creds.ClientTLS(pki.RolePeer, protoRaft), s.faults, "")
	if err != nil {
		return nil, err
	}
	if id, err := pki.IdentityOf(conn.ConnectionState().PeerCertificates[0]); err == nil {
		faults.Identify(conn, id.Name)
	}
	return conn, nil
}

// dialTLS makes a TLS connection to address, under the faults for the peer called
// id, if that is known. They lie below TLS, as the network does.
func dialTLS(ctx context.Context, dialer *net.Dialer, address string, config *tls.Config, plane *faults.Plane, id string) (*tls.Conn, error) {
	raw, err := plane.Dial(ctx, cmp.Or(id, address), func(ctx context.Context) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", address)
	})
	if err != nil {
		return nil, err
	}
	raw = wire.Coalesce(raw, writeStall) // from Start on
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// remotes holds one Connect client for each other peer. A client resolves its
// peer's address anew at each dial, so that a peer which moved is found again.
type remotes struct {
	creds   *pki.Credentials
	faults  *faults.Plane
	resolve func(id string) (address string, ok bool)
	// instance tells this process from another with the same certificate.
	instance string

	mu      sync.Mutex
	clients map[string]*connect.Client
	idle    []func()
}

// client returns the Connect client for the peer called id.
func (r *remotes) client(id string) (*connect.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if client, ok := r.clients[id]; ok {
		return client, nil
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{
		DialTLSContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx, id) },
		Protocols:          protocols,
		HTTP2:              &http.HTTP2Config{SendPingTimeout: 2 * time.Second, PingTimeout: 2 * time.Second, WriteByteTimeout: writeStall},
		IdleConnTimeout:    5 * time.Minute,
		DisableCompression: true,
	}
	client := connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: wholeMessages{transport}}, "https://"+id))
	if r.clients == nil {
		r.clients = make(map[string]*connect.Client)
	}
	r.clients[id] = client
	r.idle = append(r.idle, transport.CloseIdleConnections)
	return client, nil
}

func (r *remotes) dial(ctx context.Context, id string) (net.Conn, error) {
	address, ok := r.resolve(id)
	if !ok {
		return nil, fmt.Errorf("no address is known for peer %s", id)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	// By name: the address may have passed to another peer since.
	config := r.creds.ClientTLSNamed(pki.RolePeer, id, protoH2)
	config.ServerName = strings.ToLower(r.instance) + instanceSuffix
	conn, err := dialTLS(ctx, &net.Dialer{}, address, config, r.faults, id)
	if err != nil {
		return nil, err
	}
	coalesce(conn)
	return conn, nil
}

// coalesce lets HTTP/2's small writes share system calls. Raft's own are large, and
// few.
func coalesce(conn *tls.Conn) {
	if c, ok := conn.NetConn().(*wire.Conn); ok {
		c.Start()
	}
}

// wholeMessages sends each message of a stream in one piece.
type wholeMessages struct{ http.RoundTripper }

func (w wholeMessages) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.ContentLength < 0 && req.Body != nil {
		req = req.WithContext(req.Context()) // a copy, which is ours
		req.Body = wire.Whole(req.Body)
	}
	return w.RoundTripper.RoundTrip(req)
}

// close drops all idle connections.
func (r *remotes) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, drop := range r.idle {
		drop()
	}
}
