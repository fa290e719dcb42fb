package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// testPeer is a real TLS server on the loopback with fake services behind a
// proxy that can be frozen or cut.
type testPeer struct {
	holdfastv1connect.UnimplementedObjectServiceHandler
	holdfastv1connect.UnimplementedClusterServiceHandler
	holdfastv1connect.UnimplementedJoinServiceHandler

	t      *testing.T
	name   string
	addr   string // the proxy's
	proxy  *proxy
	server *http.Server

	calls atomic.Int64
	// What the services do; nil: answer at once. Set before the first call.
	create   func(ctx context.Context) error
	get      func(ctx context.Context) error
	read     func(*holdfastv1.ReadOptions) // sees what a Get asks for
	revision int64                         // that answers show
	peers    string                        // the header Holdfast-Peers
	store    *fakeStore                    // of its sessions; nil: refuse them
	plain    http.HandlerFunc              // what is no call of a service
	join     func(ctx context.Context, req *holdfastv1.JoinRequest) (*holdfastv1.JoinResponse, error)
}

func (p *testPeer) Create(ctx context.Context, _ *holdfastv1.CreateRequest) (*holdfastv1.CreateResponse, error) {
	p.calls.Add(1)
	if p.create != nil {
		if err := p.create(ctx); err != nil {
			return nil, err
		}
	}
	return &holdfastv1.CreateResponse{Answer: &holdfastv1.Answer{ServedBy: p.name, Revision: p.revision}}, nil
}

func (p *testPeer) Get(ctx context.Context, req *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error) {
	p.calls.Add(1)
	if p.read != nil {
		p.read(req.GetRead())
	}
	if p.get != nil {
		if err := p.get(ctx); err != nil {
			return nil, err
		}
	}
	return &holdfastv1.GetResponse{Answer: &holdfastv1.Answer{ServedBy: p.name, Revision: p.revision}}, nil
}

// Watch answers once and then stays open.
func (p *testPeer) Watch(ctx context.Context, _ *holdfastv1.WatchRequest, stream holdfastv1connect.ObjectServiceWatchServerStream) error {
	p.calls.Add(1)
	if err := stream.Send(&holdfastv1.WatchResponse{Revision: 1}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (p *testPeer) Join(ctx context.Context, req *holdfastv1.JoinRequest) (*holdfastv1.JoinResponse, error) {
	return p.join(ctx, req)
}

// Status is empty both ways: a request that ends with its headers.
func (p *testPeer) Status(context.Context, *holdfastv1.StatusRequest) (*holdfastv1.StatusResponse, error) {
	p.calls.Add(1)
	return &holdfastv1.StatusResponse{ServedBy: p.name}, nil
}

func testCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA("c-1")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *pki.CA, role pki.Role, name string) *pki.Credentials {
	t.Helper()
	creds, err := ca.Issue(pki.Identity{Cluster: ca.Cluster(), Role: role, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

func startPeer(t *testing.T, ca *pki.CA, name string) *testPeer {
	t.Helper()
	return startPeerWith(t, issue(t, ca, pki.RolePeer, name), name)
}

func startPeerWith(t *testing.T, creds *pki.Credentials, name string) *testPeer {
	t.Helper()
	p := &testPeer{t: t, name: name}
	rpc := connect.NewServer()
	holdfastv1connect.RegisterObjectServiceHandler(rpc, p)
	holdfastv1connect.RegisterClusterServiceHandler(rpc, p)
	holdfastv1connect.RegisterJoinServiceHandler(rpc, p)
	storev1connect.RegisterStoreServiceHandler(rpc, sessionPeer{p: p})
	mux := http.NewServeMux()
	connecthttp.Mount(mux, rpc)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	told := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.peers != "" {
			w.Header().Set(peersHeader, p.peers)
		}
		if p.plain != nil && strings.HasPrefix(r.URL.Path, "/plain") {
			p.plain(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
	p.server = &http.Server{Handler: told, ErrorLog: discardLog, TLSConfig: creds.ServerTLS("h2", "http/1.1")}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = p.server.Serve(tls.NewListener(listener, p.server.TLSConfig))
	}()
	p.proxy = startProxy(t, listener.Addr().String())
	p.addr = p.proxy.addr
	t.Cleanup(func() {
		p.proxy.Kill()
		_ = p.server.Close()
		<-served
	})
	return p
}

// Kill ends the peer as kill -9 does: connections are reset, new ones refused.
func (p *testPeer) Kill() { p.proxy.Kill() }

func startPeers(t *testing.T, ca *pki.CA, n int) []*testPeer {
	t.Helper()
	var peers []*testPeer
	for i := range n {
		peers = append(peers, startPeer(t, ca, fmt.Sprintf("p%d", i+1)))
	}
	return peers
}

func addresses(peers []*testPeer) []string {
	var out []string
	for _, p := range peers {
		out = append(out, p.addr)
	}
	return out
}

// byName and at find a peer.
func byName(t *testing.T, peers []*testPeer, name string) *testPeer {
	t.Helper()
	for _, p := range peers {
		if p.name == name {
			return p
		}
	}
	t.Fatalf("no peer %q", name)
	return nil
}

func totalCalls(peers []*testPeer) (n int64) {
	for _, p := range peers {
		n += p.calls.Load()
	}
	return n
}

// proxy passes bytes on. It can stop doing so in silence, or with a bang.
type proxy struct {
	addr     string
	target   string
	listener net.Listener
	wg       sync.WaitGroup
	accepted atomic.Int64

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	thaw   chan struct{} // nil: not frozen
	killed bool
}

func startProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String(), target: target, listener: l, conns: make(map[net.Conn]struct{})}
	p.wg.Go(p.accept)
	return p
}

func (p *proxy) accept() {
	for {
		down, err := p.listener.Accept()
		if err != nil {
			return
		}
		if !p.add(down) {
			continue
		}
		p.accepted.Add(1)
		p.wg.Go(func() {
			p.whileFrozen()
			up, err := net.Dial("tcp", p.target)
			if err != nil || !p.add(up) {
				_ = down.Close()
				return
			}
			p.wg.Go(func() { p.copy(up, down) })
			p.copy(down, up)
		})
	}
}

func (p *proxy) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed {
		_ = c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.whileFrozen()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) whileFrozen() {
	p.mu.Lock()
	thaw := p.thaw
	p.mu.Unlock()
	if thaw != nil {
		<-thaw
	}
}

// Freeze stops all bytes, old connections' and new ones'; nobody is told.
func (p *proxy) Freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.thaw == nil {
		p.thaw = make(chan struct{})
	}
}

// Kill resets all connections and refuses new ones, for good.
func (p *proxy) Kill() {
	p.mu.Lock()
	if !p.killed {
		p.killed = true
		_ = p.listener.Close()
		if p.thaw != nil {
			close(p.thaw)
			p.thaw = nil
		}
		for c := range p.conns {
			if tcp, ok := c.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // a reset, not a goodbye
			}
			_ = c.Close()
		}
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// newTestClient has short times; the default ones are in TestDefaults.
func newTestClient(t *testing.T, ca *pki.CA, addrs []string, change ...func(*Config)) *Client {
	t.Helper()
	cfg := Config{
		Peers:        addrs,
		Credentials:  issue(t, ca, pki.RoleAdmin, "admin"),
		PingInterval: 200 * time.Millisecond,
		PingTimeout:  400 * time.Millisecond,
		DialTimeout:  2 * time.Second,
		HedgeDelay:   100 * time.Millisecond,
		RetryFor:     5 * time.Second,
	}
	for _, f := range change {
		f(&cfg)
	}
	c := New(cfg)
	t.Cleanup(c.Close)
	return c
}

func get(t *testing.T, c *Client) string {
	t.Helper()
	resp, err := c.Objects().Get(t.Context(), &holdfastv1.GetRequest{Name: "web"})
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return resp.GetAnswer().GetServedBy()
}

func create(t *testing.T, c *Client) (string, error) {
	t.Helper()
	resp, err := c.Objects().Create(t.Context(), &holdfastv1.CreateRequest{Object: &holdfastv1.Object{Name: "web"}})
	return resp.GetAnswer().GetServedBy(), err
}

func wantCode(t *testing.T, err error, want connect.Code) {
	t.Helper()
	if got := connect.CodeOf(err); err == nil || got != want {
		t.Fatalf("error %v with code %v, want code %v", err, got, want)
	}
}
