package peer

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/raftstore"
)

// dialTimeout bounds the making of a connection to another peer, handshake
// included.
const dialTimeout = 3 * time.Second

// raftStream is raft's way over the one port: a raftstore.StreamLayer.
type raftStream struct {
	*acceptQueue
	creds *pki.Credentials
}

// Dial connects to the raft of the peer at address. Any peer of this cluster
// answers there or nobody does; raft itself checks whom it reached by the ids in
// its messages.
func (s raftStream) Dial(address raftstore.ServerAddress, timeout time.Duration) (net.Conn, error) {
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{Timeout: timeout, KeepAlive: 5 * time.Second},
		Config:    s.creds.ClientTLS(pki.RolePeer, protoRaft),
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return dialer.DialContext(ctx, "tcp", string(address))
}

// remotes holds one Connect client for each other peer. A client resolves its
// peer's address anew at each dial, so that a peer which moved is found again.
type remotes struct {
	creds   *pki.Credentials
	resolve func(id string) (address string, ok bool)

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
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx, id) },
		Protocols:      protocols,
		// A peer that is cut off, and says nothing, must be noticed well within
		// a client's patience.
		HTTP2:              &http.HTTP2Config{SendPingTimeout: 2 * time.Second, PingTimeout: 2 * time.Second, WriteByteTimeout: 5 * time.Second},
		IdleConnTimeout:    5 * time.Minute,
		DisableCompression: true,
	}
	client := connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, "https://"+id))
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
	dialer := tls.Dialer{NetDialer: &net.Dialer{}, Config: r.creds.ClientTLSNamed(pki.RolePeer, id, protoH2)}
	return dialer.DialContext(ctx, "tcp", address)
}

// close drops all idle connections.
func (r *remotes) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, drop := range r.idle {
		drop()
	}
}
