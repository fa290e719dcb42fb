package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-io/holdfast/pki"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// TestTableIsComplete: each registered procedure has its row, and each row a
// procedure. Without a row nobody could call it; a row without a procedure is a
// right that waits for something to hang on.
func TestTableIsComplete(t *testing.T) {
	c := newCluster(t, 1)
	registered := map[string]bool{}
	for spec := range c.servers["peer-1"].rpc.Specs() {
		registered[spec.Procedure] = true
		if _, ok := table[spec.Procedure]; !ok {
			t.Errorf("%s is registered and not in the table", spec.Procedure)
		}
	}
	for procedure, roles := range table {
		if !registered[procedure] {
			t.Errorf("%s is in the table and not registered", procedure)
		}
		if len(roles) == 0 {
			t.Errorf("%s is for nobody", procedure)
		}
	}
	if len(registered) < 20 {
		t.Errorf("only %d procedures are registered", len(registered))
	}
}

// judgedForNodes are the calls of ObjectService for which a node is held against what is
// its own; TestStolenNode in package kube tries them.
var judgedForNodes = []string{"Get", "List", "Watch", "Create", "Update", "Patch", "Delete", "Kinds", "Schema"}

// TestTable calls every procedure as every role, and as a stranger, and looks at
// who gets past the door. What happens behind it does not matter here.
func TestTable(t *testing.T) {
	c := newCluster(t, 1)
	server := c.servers["peer-1"].rpc
	callers := map[string]pki.Identity{"stranger": {}}
	for _, role := range []pki.Role{pki.RoleAdmin, pki.RolePeer, pki.RoleNode} {
		callers[string(role)] = pki.Identity{Cluster: testCluster, Role: role, Name: "x"}
	}
	for spec := range server.Specs() {
		for name, id := range callers {
			ctx, cancel := context.WithCancel(t.Context())
			if id.Role != "" {
				ctx = withIdentity(ctx, id)
			}
			err := server.Call(ctx, spec.Procedure, nil, closedStream{})
			cancel()
			code := connect.CodeOf(err)
			admitted := err == nil || code != connect.CodeUnauthenticated && code != connect.CodePermissionDenied
			want := slices.Contains(table[spec.Procedure], id.Role)
			if name == "stranger" {
				want = strings.HasPrefix(spec.Procedure, "/holdfast.v1.JoinService/") || strings.HasPrefix(spec.Procedure, "/grpc.health.v1.Health/")
			}
			if admitted != want {
				t.Errorf("%s calls %s: admitted %t, want %t (%v)", name, spec.Procedure, admitted, want, err)
			}
			if name == "stranger" && !want && code != connect.CodeUnauthenticated {
				t.Errorf("a stranger calls %s: %v, want unauthenticated", spec.Procedure, err)
			}
		}
	}
	// Beyond the table's own word: what must never be open to whom.
	for procedure, roles := range table {
		service := strings.Split(procedure, "/")[1]
		for _, role := range roles {
			switch {
			case strings.HasPrefix(service, "holdfast.peer.") && role != pki.RolePeer,
				strings.HasPrefix(service, "holdfast.agent.") && role != pki.RoleNode,
				role == pki.RoleNode && service == "holdfast.v1.ObjectService" && !slices.Contains(judgedForNodes, path.Base(procedure)):
				t.Errorf("%s is open to %s", procedure, role)
			}
		}
	}
}

// TestCanI: the answer is that of the call itself, for whoever asks.
func TestCanI(t *testing.T) {
	c := newCluster(t, 1)
	access := accessService{c.servers["peer-1"]}
	pods := &holdfastv1.CanIRequest{Verb: "delete", Resource: "pods", Namespace: "default", Name: "a"}
	for _, test := range []struct {
		role    pki.Role
		name    string
		groups  []string
		allowed bool
	}{
		{pki.RoleAdmin, "x", []string{"system:masters", "system:authenticated"}, true},
		{pki.RoleNode, "system:node:x", []string{"system:nodes", "system:authenticated"}, false},
	} {
		ctx := withIdentity(t.Context(), pki.Identity{Cluster: testCluster, Role: test.role, Name: "x"})
		me, err := access.WhoAmI(ctx, &holdfastv1.WhoAmIRequest{})
		if err != nil || me.GetName() != test.name || !slices.Equal(me.GetGroups(), test.groups) {
			t.Errorf("%s is %v, %v; want %s of %v", test.role, me, err, test.name, test.groups)
		}
		answer, err := access.CanI(ctx, pods)
		if err != nil || answer.GetAllowed() != test.allowed || (answer.GetReason() == "") != test.allowed {
			t.Errorf("%s asks: %v, %v; want %t, and a reason if not", test.role, answer, err, test.allowed)
		}
		for _, bad := range []*holdfastv1.CanIRequest{{Resource: "pods"}, {Verb: "get"}, {Verb: "get", Resource: "pods", Path: "/metrics"}} {
			if _, err := access.CanI(ctx, bad); connect.CodeOf(err) != connect.CodeInvalidArgument {
				t.Errorf("%v: %v, want invalid_argument", bad, err)
			}
		}
	}
}

// closedStream is a call without a message.
type closedStream struct{}

func (closedStream) Receive(any) error  { return io.EOF }
func (closedStream) SendHeaders() error { return nil }
func (closedStream) Send(any) error     { return nil }

// TestPanicBecomesInternal: a bug in one handler costs one call.
func TestPanicBecomesInternal(t *testing.T) {
	c := newCluster(t, 1)
	s := c.servers["peer-1"]
	bad := s.observe(func(context.Context, connect.Spec, connect.ServerStream) error { panic("secret detail") })
	err := bad(t.Context(), connect.Spec{Procedure: "/x/y"}, closedStream{})
	wantCode(t, err, connect.CodeInternal, "internal error")
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the panic's text leaves the peer: %v", err)
	}
}

// tlsServer serves c's peer-1 over TLS and returns its URL and a way to be
// somebody.
func tlsServer(t testing.TB, c *cluster) (url string, as func(ca *pki.CA, role pki.Role, name string) *http.Client) {
	t.Helper()
	ts := httptest.NewUnstartedServer(c.servers["peer-1"].Handler())
	ts.EnableHTTP2 = true
	ts.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are expected
	ts.TLS = credentials(t, c.ca, pki.RolePeer, "peer-1").ServerTLS("h2", "http/1.1")
	ts.StartTLS()
	t.Cleanup(ts.Close)
	return ts.URL, func(ca *pki.CA, role pki.Role, name string) *http.Client {
		var cfg *tls.Config
		if role == "" {
			cfg = pki.PinnedTLS(c.ca.Pin(), "h2")
		} else {
			cfg = credentials(t, ca, role, name).ClientTLS(pki.RolePeer, "h2")
		}
		transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
}

func credentials(t testing.TB, ca *pki.CA, role pki.Role, name string) *pki.Credentials {
	t.Helper()
	creds, err := ca.Issue(pki.Identity{Cluster: ca.Cluster(), Role: role, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

// TestOverTLS: over a real connection the certificate says who calls, streams
// stream, and a message that is too large is refused before it is read.
func TestOverTLS(t *testing.T) {
	c := newCluster(t, 1)
	url, as := tlsServer(t, c)
	ctx := t.Context()
	objects := func(client *http.Client) holdfastv1connect.ObjectServiceClient {
		return holdfastv1connect.NewObjectServiceClient(connect.NewClient(connecthttp.NewTransport(client, url)))
	}
	admin := objects(as(c.ca, pki.RoleAdmin, "alice"))
	if _, err := admin.Create(ctx, &holdfastv1.CreateRequest{Object: message(t, boundPod("a", ""))}); err != nil {
		t.Fatal(err)
	}
	pods := &holdfastv1.Kind{Version: "v1", Kind: "Pod"}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := admin.Watch(watching, &holdfastv1.WatchRequest{Kind: pods})
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.Receive()
	if err != nil || len(msg.GetChanges()) != 1 || !msg.GetSynced() {
		t.Fatalf("first message %v, %v", msg, err)
	}

	_, err = objects(as(c.ca, pki.RoleNode, "n1")).List(ctx, &holdfastv1.ListRequest{Kind: pods})
	wantCode(t, err, connect.CodePermissionDenied, "node n1 may not list pods: a node may list and watch its own pods only: select spec.nodeName=n1")
	stranger := as(nil, "", "")
	_, err = objects(stranger).List(ctx, &holdfastv1.ListRequest{Kind: pods})
	wantCode(t, err, connect.CodeUnauthenticated, "needs a client certificate")
	if infoOf(err) != nil {
		t.Error("a stranger was told about the cluster")
	}

	agent := agentv1connect.NewAgentServiceClient(connect.NewClient(connecthttp.NewTransport(as(c.ca, pki.RoleNode, "n1"), url)))
	if _, err := agent.Heartbeat(ctx, &agentv1.HeartbeatRequest{}); err != nil {
		t.Errorf("heartbeat over TLS: %v", err)
	}

	// Both directions of an exec at once need HTTP/2 all the way.
	c.put(boundPod("shell", "n1"))
	startAgent(t, agent, echo)
	exec, err := holdfastv1connect.NewPodServiceClient(connect.NewClient(connecthttp.NewTransport(as(c.ca, pki.RoleAdmin, "alice"), url))).Exec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer exec.Close()
	exec.Send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Start{Start: &holdfastv1.ExecStart{Pod: "shell", Command: []string{"cat"}}}})
	if msg, err := exec.Receive(); err != nil || !msg.GetStarted() {
		t.Fatalf("exec: %v, %v", msg, err)
	}
	exec.Send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Stdin{Stdin: []byte("hello")}})
	if msg, err := exec.Receive(); err != nil || string(msg.GetStdout()) != "hello" {
		t.Fatalf("exec: %v, %v", msg, err)
	}
	exec.CloseSend()
	if msg, err := exec.Receive(); err != nil || msg.GetExitCode() != 7 {
		t.Errorf("exec: %v, %v; want exit code 7", msg, err)
	}

	huge := &holdfastv1.CreateRequest{Object: &holdfastv1.Object{Data: bytes.Repeat([]byte("x"), readMaxBytes+1)}}
	_, err = admin.Create(ctx, huge)
	wantCode(t, err, connect.CodeResourceExhausted, "")
	join := holdfastv1connect.NewJoinServiceClient(connect.NewClient(connecthttp.NewTransport(stranger, url)))
	_, err = join.Join(ctx, &holdfastv1.JoinRequest{Csr: make([]byte, joinMaxBytes+1)})
	wantCode(t, err, connect.CodeResourceExhausted, "")
}

// TestHTTP: health is for anybody, metrics and profiles are not.
func TestHTTP(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Registerer = prometheus.NewRegistry() })
	url, as := tlsServer(t, c)
	clients := map[string]*http.Client{
		"stranger": as(nil, "", ""),
		"node":     as(c.ca, pki.RoleNode, "n1"),
		"peer":     as(c.ca, pki.RolePeer, "peer-2"),
		"admin":    as(c.ca, pki.RoleAdmin, "alice"),
	}
	for _, tt := range []struct {
		path string
		want map[string]int
		body string
	}{
		{"/healthz", map[string]int{"stranger": 200, "node": 200, "peer": 200, "admin": 200}, "ok"},
		{"/readyz", map[string]int{"stranger": 200, "node": 200, "peer": 200, "admin": 200}, "ok"},
		{"/metrics", map[string]int{"stranger": 401, "node": 403, "peer": 200, "admin": 200}, "holdfast_agents_connected 0"},
		{"/debug/pprof/goroutine?debug=1", map[string]int{"stranger": 401, "node": 403, "peer": 403, "admin": 200}, "goroutine profile"},
		{"/debug/pprof/cmdline", map[string]int{"stranger": 401, "node": 403, "peer": 403, "admin": 200}, ""},
	} {
		for who, want := range tt.want {
			resp, err := clients[who].Get(url + tt.path)
			if err != nil {
				t.Fatalf("%s as %s: %v", tt.path, who, err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != want || want == 200 && !strings.Contains(string(body), tt.body) {
				t.Errorf("%s as %s: %s, want %d with %q:\n%.300s", tt.path, who, resp.Status, want, tt.body, body)
			}
		}
	}
}

// TestForeignCertificate: a certificate of another cluster does not get as far
// as a handshake.
func TestForeignCertificate(t *testing.T) {
	c := newCluster(t, 1)
	url, _ := tlsServer(t, c)
	foreign, err := pki.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	creds := credentials(t, foreign, pki.RoleAdmin, "mallory")
	transport := &http.Transport{TLSClientConfig: creds.ClientTLS(pki.RolePeer, "h2"), ForceAttemptHTTP2: true}
	// Mallory accepts any server; it is the server that must refuse.
	transport.TLSClientConfig.VerifyConnection = nil
	transport.TLSClientConfig.VerifyPeerCertificate = nil
	transport.TLSClientConfig.InsecureSkipVerify = true
	defer transport.CloseIdleConnections()
	objects := holdfastv1connect.NewObjectServiceClient(connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, url)))
	if _, err = objects.List(t.Context(), &holdfastv1.ListRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "Pod"}}); err == nil {
		t.Error("an administrator of another cluster was served")
	}
}

// TestOtherClustersIdentity: should a certificate of another cluster ever get
// past the TLS layer, it still counts for nothing here; nor does one that was not
// verified.
func TestOtherClustersIdentity(t *testing.T) {
	c := newCluster(t, 1)
	other, err := pki.NewCA("other")
	if err != nil {
		t.Fatal(err)
	}
	status := func(ca *pki.CA, verified bool) int {
		t.Helper()
		creds := credentials(t, ca, pki.RoleAdmin, "mallory")
		pair, err := creds.ClientTLS(pki.RolePeer).GetClientCertificate(&tls.CertificateRequestInfo{Version: tls.VersionTLS13})
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/debug/pprof/cmdline", nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
		if verified {
			r.TLS.VerifiedChains = [][]*x509.Certificate{{leaf}}
		}
		w := httptest.NewRecorder()
		c.servers["peer-1"].Handler().ServeHTTP(w, r)
		return w.Code
	}
	if got := status(c.ca, true); got != http.StatusOK {
		t.Errorf("an administrator of this cluster got %d", got)
	}
	if got := status(other, true); got != http.StatusUnauthorized {
		t.Errorf("an administrator of another cluster got %d", got)
	}
	if got := status(c.ca, false); got != http.StatusUnauthorized {
		t.Errorf("an unverified certificate got %d", got)
	}
}

// TestConnContext: the identity is read once for a connection whose handshake is
// done.
func TestConnContext(t *testing.T) {
	c := newCluster(t, 1)
	admin := credentials(t, c.ca, pki.RoleAdmin, "alice").ClientTLS(pki.RolePeer, "h2")
	for _, tt := range []struct {
		name      string
		client    *tls.Config
		handshake bool
		want      string
	}{
		{"admin", admin, true, "admin/alice"},
		{"handshake not done", admin, false, "anybody"},
		{"no certificate", pki.PinnedTLS(c.ca.Pin(), "h2"), true, "anybody"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := net.Pipe()
			defer a.Close()
			defer b.Close()
			server := tls.Server(a, credentials(t, c.ca, pki.RolePeer, "peer-1").ServerTLS("h2"))
			if tt.handshake {
				done := make(chan error, 1)
				go func() { done <- tls.Client(b, tt.client).HandshakeContext(t.Context()) }()
				if err := errors.Join(server.HandshakeContext(t.Context()), <-done); err != nil {
					t.Fatal(err)
				}
			}
			if got := actor(c.servers["peer-1"].ConnContext(t.Context(), server)); got != tt.want {
				t.Errorf("it is %s, want %s", got, tt.want)
			}
		})
	}
}
