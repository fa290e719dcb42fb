package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// start runs a server on the loopback until the test ends, with a state that sends
// all of a.test to the addresses.
func start(t *testing.T, cfg Config, state *netstate.State) *Server {
	t.Helper()
	cfg.HTTP, cfg.HTTPS = "127.0.0.1:0", "127.0.0.1:0"
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Set(state)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	<-s.Ready()
	return s
}

// testState has an Ingress for a.test, with a service at the addresses. change, if not
// nil, makes it another.
func testState(t *testing.T, change func(*networkingv1.Ingress, *corev1.Service), addresses ...string) *netstate.State {
	t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.43.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
	backend := networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}}}
	ing := &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", Annotations: map[string]string{}},
		Spec: networkingv1.IngressSpec{Rules: []networkingv1.IngressRule{{Host: "a.test", IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
			Paths: []networkingv1.HTTPIngressPath{{Path: "/", PathType: new(networkingv1.PathTypePrefix), Backend: backend}},
		}}}}},
	}
	if change != nil {
		change(ing, svc)
	}
	state := netstate.Empty("n1")
	state.Ingress = true
	changes := []netstate.Change{{Object: svc}, {Object: ing}}
	for i, address := range addresses {
		at := netip.MustParseAddrPort(address)
		changes = append(changes, netstate.Change{Object: &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("web-%d", i), Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(at.Port()))}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{at.Addr().String()}}},
		}})
	}
	return state.With(100, changes...)
}

// backend is an endpoint.
func backend(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(handler)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// client speaks to s whatever host it asks for, and to no other; its connections are
// counted.
type client struct {
	http.Client
	dials atomic.Int64
}

func newClient(t *testing.T, s *Server, protocols ...func(*http.Protocols, bool)) *client {
	t.Helper()
	c := &client{}
	plain, secure := s.Addresses()
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			c.dials.Add(1)
			at := plain
			if strings.HasSuffix(address, ":443") {
				at = secure
			}
			return new(net.Dialer).DialContext(ctx, "tcp", at.String())
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	if len(protocols) > 0 {
		tr.Protocols = new(http.Protocols)
		for _, set := range protocols {
			set(tr.Protocols, true)
		}
	}
	c.Transport = tr
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(tr.CloseIdleConnections)
	return c
}

func (c *client) do(t *testing.T, method, url string, body io.Reader, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp, string(text)
}

// lines collects a log; a line is there before its request's answer has ended only by
// chance, so it is waited for.
type lines struct{ c chan string }

func (l *lines) Write(p []byte) (int, error) {
	l.c <- string(bytes.Clone(p))
	return len(p), nil
}

// TestRequest: what an endpoint gets, what comes back, and what is written down.
func TestRequest(t *testing.T) {
	log := &lines{c: make(chan string, 10)}
	at := backend(t, func(w http.ResponseWriter, r *http.Request) {
		for _, h := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Real-Ip", "Accept-Encoding", "User-Agent"} {
			fmt.Fprintf(w, "%s=%s\n", h, r.Header.Get(h))
		}
		fmt.Fprintf(w, "%s %s %s id:%v", r.Method, r.Host, r.RequestURI, r.Header.Get("X-Request-Id") != "")
	})
	s := start(t, Config{AccessLog: slog.New(slog.NewJSONHandler(log, nil))}, testState(t, nil, at))
	c := newClient(t, s)
	resp, got := c.do(t, "GET", "http://a.test/x%2Fy/?q=a;b&%zz", nil, "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "https", "X-Real-Ip", "6.6.6.6", "Accept-Encoding", "identity", "User-Agent", "test")
	want := `X-Forwarded-For=127.0.0.1
X-Forwarded-Proto=http
X-Forwarded-Host=a.test
X-Forwarded-Port=80
X-Real-Ip=127.0.0.1
Accept-Encoding=identity
User-Agent=test
GET a.test /x%2Fy/?q=a;b&%zz id:true`
	if resp.StatusCode != 200 || got != want {
		t.Errorf("status %d, the endpoint got\n%s\nwant\n%s", resp.StatusCode, got, want)
	}
	var entry map[string]any
	if err := json.Unmarshal([]byte(<-log.c), &entry); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"client": "127.0.0.1", "method": "GET", "host": "a.test", "path": "/x%2Fy/?q=a;b&%zz", "status": 200.0, "ingress": "default/a", "service": "default/web",
		"endpoint": at, "tries": 1.0, "sent": float64(len(got)), "tls": false, "protocol": "HTTP/1.1", "user_agent": "test",
	} {
		if entry[key] != want {
			t.Errorf("the log says %s is %v, want %v", key, entry[key], want)
		}
	}
	if n := testutil.ToFloat64(s.metrics.requests.WithLabelValues("default/a", "200")); n != 1 {
		t.Errorf("%v requests counted, want 1", n)
	}
	if resp, text := c.do(t, "GET", "http://b.test/", nil); resp.StatusCode != 404 || !strings.Contains(text, `no Ingress has a rule for host "b.test"`) {
		t.Errorf("an unknown host: %d %s", resp.StatusCode, text)
	}
}

// TestTrustedProxy: the client is whom a trusted proxy in front saw.
func TestTrustedProxy(t *testing.T) {
	at := backend(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header.Get("X-Forwarded-For"), " ", r.Header.Get("X-Forwarded-Proto"), " ", r.Header.Get("X-Real-Ip"))
	})
	s := start(t, Config{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, testState(t, nil, at))
	_, got := newClient(t, s).do(t, "GET", "http://a.test/", nil, "X-Forwarded-For", "6.6.6.6", "X-Forwarded-Proto", "https", "X-Real-Ip", "6.6.6.6")
	if want := "6.6.6.6, 127.0.0.1 https 6.6.6.6"; got != want {
		t.Errorf("the endpoint got %q, want %q", got, want)
	}
}

// TestProtocols: HTTP/2 from clients, with TLS and without; HTTP/2 to endpoints that
// ask for it, with trailers and streams in both directions at once, as gRPC wants.
func TestProtocols(t *testing.T) {
	at := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("Proto", r.Proto)
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = http.NewResponseController(w).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0")
	})
	h2c := func(_ *networkingv1.Ingress, svc *corev1.Service) {
		svc.Spec.Ports[0].AppProtocol = new("kubernetes.io/h2c")
	}
	for _, test := range []struct {
		name, url string
		change    func(*networkingv1.Ingress, *corev1.Service)
		client    func(*http.Protocols, bool)
		proto     string // that the endpoint is spoken to in
	}{
		{"HTTP/2 with TLS to HTTP/2", "https://a.test/", h2c, (*http.Protocols).SetHTTP2, "HTTP/2.0"},
		{"HTTP/2 without TLS to HTTP/2", "http://a.test/", h2c, (*http.Protocols).SetUnencryptedHTTP2, "HTTP/2.0"},
		{"HTTP/2 to HTTP/1.1", "https://a.test/", nil, (*http.Protocols).SetHTTP2, "HTTP/1.1"},
		{"HTTP/1.1 to HTTP/2", "https://a.test/", h2c, (*http.Protocols).SetHTTP1, "HTTP/2.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, Config{}, testState(t, test.change, at))
			c := newClient(t, s, test.client)
			in, out := io.Pipe()
			req, _ := http.NewRequestWithContext(t.Context(), "POST", test.url, in)
			req.Header.Set("Content-Type", "application/grpc")
			if test.proto == "HTTP/1.1" || strings.HasPrefix(test.name, "HTTP/1.1") {
				// Not in both directions at once: all is sent before an answer is read.
				go func() { io.WriteString(out, "hello"); out.Close() }()
			}
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			buf := make([]byte, 5)
			if test.proto == "HTTP/2.0" && !strings.HasPrefix(test.name, "HTTP/1.1") {
				for _, word := range []string{"one..", "two.."} { // the answer comes before the request ends
					if _, err := io.WriteString(out, word); err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != word {
						t.Fatalf("sent %q, got %q (%v)", word, buf, err)
					}
				}
				out.Close()
			}
			if _, err := io.ReadAll(resp.Body); err != nil {
				t.Fatal(err)
			}
			if got := resp.Header.Get("Proto"); got != test.proto || resp.Trailer.Get("Grpc-Status") != "0" {
				t.Errorf("the endpoint was spoken to in %s with trailers %v, want %s and a status", got, resp.Trailer, test.proto)
			}
		})
	}
}

// TestWebSocket: a connection that becomes something else passes, and lives through a
// change.
func TestWebSocket(t *testing.T) {
	at := backend(t, func(w http.ResponseWriter, r *http.Request) {
		conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			t.Errorf("upgrade: %v", err)
			return
		}
		defer conn.Close()
		for {
			kind, data, err := conn.ReadMessage()
			if err != nil || conn.WriteMessage(kind, append([]byte("re: "), data...)) != nil {
				return
			}
		}
	})
	state := testState(t, nil, at)
	s := start(t, Config{}, state)
	plain, _ := s.Addresses()
	dialer := websocket.Dialer{NetDialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", plain.String())
	}}
	conn, _, err := dialer.DialContext(t.Context(), "ws://a.test/chat", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 3 {
		if i == 2 { // the Ingress goes away, what it has begun does not
			s.Set(state.With(101, netstate.Change{Object: state.Ingresses[netstate.Name{Namespace: "default", Name: "a"}], Removed: true}))
		}
		if err := conn.WriteMessage(websocket.TextMessage, fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.ReadMessage(); err != nil || string(got) != fmt.Sprintf("re: %d", i) {
			t.Fatalf("message %d came back as %q (%v)", i, got, err)
		}
	}
}

// secret makes a certificate for a name.
func secret(t *testing.T, name, host string) *corev1.Secret {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{
			corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		},
	}
}

// TestCertificates: each name has its own, a new one is used at once by new
// connections, and old connections go on.
func TestCertificates(t *testing.T) {
	at := backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("X-Forwarded-Proto")) })
	state := testState(t, func(ing *networkingv1.Ingress, _ *corev1.Service) {
		wild := ing.Spec.Rules[0]
		wild.Host = "*.w.test"
		ing.Spec.Rules = append(ing.Spec.Rules, wild)
		ing.Spec.TLS = []networkingv1.IngressTLS{
			{Hosts: []string{"a.test"}, SecretName: "one"}, {Hosts: []string{"*.w.test"}, SecretName: "wild"}, {Hosts: []string{"bad.test"}, SecretName: "bad"},
		}
	}, at)
	bad := secret(t, "bad", "bad.test")
	bad.Data[corev1.TLSPrivateKeyKey] = secret(t, "x", "x").Data[corev1.TLSPrivateKeyKey]
	state = state.With(101, netstate.Change{Object: secret(t, "one", "a.test")}, netstate.Change{Object: secret(t, "wild", "*.w.test")}, netstate.Change{Object: bad})
	s := start(t, Config{}, state)
	shown := func(name string) string {
		t.Helper()
		_, secure := s.Addresses()
		conn, err := tls.Dial("tcp", secure.String(), &tls.Config{InsecureSkipVerify: true, ServerName: name})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	for name, want := range map[string]string{
		"a.test": "one", "A.TEST": "one", "x.w.test": "wild", "y.x.w.test": s.nobodysName(t), "w.test": s.nobodysName(t), "bad.test": s.nobodysName(t), "": s.nobodysName(t),
	} {
		if got := shown(name); got != want {
			t.Errorf("who asks for %q is shown the certificate %q, want %q", name, got, want)
		}
	}
	if faults := s.table.Load().Faults[netstate.Name{Namespace: "default", Name: "a"}]; len(faults) != 1 || !strings.Contains(faults[0], "Secret default/bad") {
		t.Errorf("faults are %q, want one of the bad secret", faults)
	}
	c := newClient(t, s)
	if resp, text := c.do(t, "GET", "https://a.test/", nil); text != "https" || resp.TLS.PeerCertificates[0].Subject.CommonName != "one" {
		t.Errorf("over TLS: %q", text)
	}
	before := s.table.Load().certs["a.test"]
	renewed := secret(t, "one", "a.test")
	s.Set(state.With(102))
	if s.table.Load().certs["a.test"] != before {
		t.Error("a certificate that did not change was read again")
	}
	s.Set(state.With(103, netstate.Change{Object: renewed}))
	_, secure := s.Addresses()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(renewed.Data[corev1.TLSCertKey])
	conn, err := tls.Dial("tcp", secure.String(), &tls.Config{RootCAs: pool, ServerName: "a.test"})
	if err != nil {
		t.Errorf("the renewed certificate is not shown: %v", err)
	} else {
		conn.Close()
	}
	c.do(t, "GET", "https://a.test/", nil)
	if got := c.dials.Load(); got != 1 {
		t.Errorf("the client connected %d times, want once", got)
	}
}

func (s *Server) nobodysName(t *testing.T) string {
	cert, err := x509.ParseCertificate(s.nobodys.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert.Subject.CommonName
}

// TestChange: while requests come over kept connections and the endpoints change under
// them, none fails and no connection ends; an answer that has begun comes to its end.
func TestChange(t *testing.T) {
	var long sync.WaitGroup
	release := make(chan struct{})
	handler := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, name)
			if r.URL.Path == "/long" {
				_ = http.NewResponseController(w).Flush()
				<-release
				fmt.Fprint(w, " to the end")
			}
		}
	}
	one, two := backend(t, handler("one")), backend(t, handler("two"))
	s := start(t, Config{}, testState(t, nil, one))
	begun := make(chan struct{})
	long.Go(func() {
		resp, err := newClient(t, s).Get("http://a.test/long")
		if err != nil {
			t.Errorf("long request: %v", err)
			close(begun)
			return
		}
		defer resp.Body.Close()
		first := make([]byte, 3)
		io.ReadFull(resp.Body, first)
		close(begun)
		rest, err := io.ReadAll(resp.Body)
		if got := string(first) + string(rest); got != "one to the end" || err != nil {
			t.Errorf("long request: %q (%v)", got, err)
		}
	})
	<-begun
	const clients, requests = 4, 100
	var wg sync.WaitGroup
	var after atomic.Bool
	for range clients {
		wg.Go(func() {
			c := newClient(t, s)
			for range requests {
				changed := after.Load()
				resp, text := c.do(t, "GET", "http://a.test/", nil)
				if resp.StatusCode != 200 || changed && text != "two" {
					t.Errorf("%d %s (after the change: %v)", resp.StatusCode, text, changed)
				}
			}
			if got := c.dials.Load(); got != 1 {
				t.Errorf("a client connected %d times, want once", got)
			}
		})
	}
	for i := range 20 {
		s.Set(testState(t, func(ing *networkingv1.Ingress, _ *corev1.Service) { ing.Labels = map[string]string{"i": fmt.Sprint(i)} }, one, two))
	}
	s.Set(testState(t, nil, two))
	after.Store(true)
	wg.Wait()
	close(release)
	long.Wait()
	if got := s.table.Load().endpoints[netip.MustParseAddrPort(two)].pending.Load(); got != 0 {
		t.Errorf("%d requests are counted as under way, want none", got)
	}
}

// dead is an address where nobody listens.
func dead(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// breaking is an endpoint that reads a request and hangs up.
func breaking(t *testing.T) (address string, seen *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen = new(atomic.Int64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if req, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				io.Copy(io.Discard, req.Body)
				seen.Add(1)
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String(), seen
}

// TestRetry: what nobody saw is sent again, whatever it is; what somebody may have seen
// only if seeing it twice does no harm.
func TestRetry(t *testing.T) {
	var served atomic.Int64
	live := backend(t, func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		io.Copy(w, r.Body)
	})
	t.Run("refused", func(t *testing.T) {
		// Two of three are dead: chance alone would hit them.
		s := start(t, Config{}, testState(t, nil, dead(t), dead(t), live))
		c := newClient(t, s)
		for i := range 20 {
			for _, e := range s.table.Load().endpoints {
				e.until.Store(0) // none is passed over for what it did before
			}
			body := fmt.Sprint("body ", i)
			if resp, got := c.do(t, "POST", "http://a.test/", strings.NewReader(body)); resp.StatusCode != 200 || got != body {
				t.Fatalf("POST: %d %q", resp.StatusCode, got)
			}
		}
		if testutil.ToFloat64(s.metrics.retries) == 0 {
			t.Error("20 requests never met a dead endpoint")
		}
	})
	t.Run("broken", func(t *testing.T) {
		at, seen := breaking(t)
		s := start(t, Config{}, testState(t, nil, at, live))
		c := newClient(t, s)
		for seen.Load() == 0 || served.Load() == 0 {
			if resp, _ := c.do(t, "GET", "http://a.test/", nil); resp.StatusCode != 200 {
				t.Fatalf("GET: %d", resp.StatusCode)
			}
		}
	})
	t.Run("seen", func(t *testing.T) {
		at, seen := breaking(t)
		s := start(t, Config{}, testState(t, nil, at))
		c := newClient(t, s)
		if resp, text := c.do(t, "POST", "http://a.test/", strings.NewReader("x")); resp.StatusCode != 502 || seen.Load() != 1 || strings.Contains(text, at) {
			t.Errorf("POST: %d after %d tries (%s), want 502 after one", resp.StatusCode, seen.Load(), text)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		s := start(t, Config{}, testState(t, nil, dead(t)))
		c := newClient(t, s)
		for range 2 { // the last one is tried however often it failed
			if resp, text := c.do(t, "GET", "http://a.test/", nil); resp.StatusCode != 502 || !strings.Contains(text, "connection refused") {
				t.Errorf("GET: %d %s", resp.StatusCode, text)
			}
		}
		s.Set(testState(t, nil))
		if resp, text := c.do(t, "GET", "http://a.test/", nil); resp.StatusCode != 503 || !strings.Contains(text, "no ready endpoint") {
			t.Errorf("GET: %d %s", resp.StatusCode, text)
		}
	})
}

// TestLimits: what is too large or too slow ends with the right word.
func TestLimits(t *testing.T) {
	hang := make(chan struct{})
	at := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			<-hang
		}
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			fmt.Fprint(w, "ok")
		}
	})
	t.Cleanup(func() { close(hang) }) // before the endpoint is closed
	annotated := func(key, value string) func(*networkingv1.Ingress, *corev1.Service) {
		return func(ing *networkingv1.Ingress, _ *corev1.Service) { ing.Annotations[key] = value }
	}
	t.Run("body size", func(t *testing.T) {
		s := start(t, Config{}, testState(t, annotated(MaxBodyAnnotation, "10"), at))
		c := newClient(t, s)
		for _, test := range []struct {
			body io.Reader
			want int
		}{
			{strings.NewReader("0123456789"), 200},
			{strings.NewReader("0123456789a"), 413},
			{io.MultiReader(strings.NewReader("0123456789")), 200},
			{io.MultiReader(strings.NewReader("0123456789a")), 413}, // without a length
		} {
			if resp, text := c.do(t, "POST", "http://a.test/", test.body); resp.StatusCode != test.want {
				t.Errorf("%d %s, want %d", resp.StatusCode, text, test.want)
			}
		}
	})
	t.Run("answer", func(t *testing.T) {
		s := start(t, Config{}, testState(t, annotated(TimeoutAnnotation, "20ms"), at))
		if resp, text := newClient(t, s).do(t, "GET", "http://a.test/hang", nil); resp.StatusCode != 504 {
			t.Errorf("%d %s, want 504", resp.StatusCode, text)
		}
	})
	t.Run("redirect", func(t *testing.T) {
		s := start(t, Config{}, testState(t, annotated(RedirectAnnotation, "true"), at))
		c := newClient(t, s)
		if resp, _ := c.do(t, "POST", "http://a.test:8080/x?y", nil); resp.StatusCode != 308 || resp.Header.Get("Location") != "https://a.test/x?y" {
			t.Errorf("%d to %s, want 308 to https", resp.StatusCode, resp.Header.Get("Location"))
		}
		if resp, _ := c.do(t, "GET", "https://a.test/x", nil); resp.StatusCode != 200 {
			t.Errorf("%d over TLS, want 200", resp.StatusCode)
		}
	})
	t.Run("slow header", func(t *testing.T) {
		s := start(t, Config{HeaderTimeout: 20 * time.Millisecond}, testState(t, nil, at))
		conn := dial(t, s)
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.test\r\nX-")
		if data, err := io.ReadAll(conn); err != nil || bytes.Contains(data, []byte("200 OK")) {
			t.Errorf("got %q (%v), want the connection closed", data, err)
		}
	})
	t.Run("slow body", func(t *testing.T) {
		t.Parallel()
		s := start(t, Config{ClientTimeout: time.Second}, testState(t, nil, at)) // enough for a busy machine to answer
		conn := dial(t, s)
		io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n01")
		if data, err := io.ReadAll(conn); err != nil || !bytes.HasPrefix(data, []byte("HTTP/1.1 408")) {
			t.Errorf("got %q (%v), want 408 and the connection closed", data, err)
		}
	})
	t.Run("large header", func(t *testing.T) {
		s := start(t, Config{HeaderBytes: 4 << 10}, testState(t, nil, at))
		conn := dial(t, s)
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.test\r\nX-Large: "+strings.Repeat("x", 16<<10)+"\r\n\r\n")
		first := make([]byte, 12)
		if _, err := io.ReadFull(conn, first); err != nil || string(first) != "HTTP/1.1 431" {
			t.Errorf("got %q (%v), want 431", first, err)
		}
	})
}

func dial(t *testing.T, s *Server) net.Conn {
	t.Helper()
	plain, _ := s.Addresses()
	conn, err := net.Dial("tcp", plain.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestKeptConnectionOutlivesLimits: the limit of a body's time ends with the body.
func TestKeptConnectionOutlivesLimits(t *testing.T) {
	t.Parallel()
	wait := make(chan struct{})
	at := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/wait" {
			<-wait
		}
		fmt.Fprint(w, "ok")
	})
	const limit = time.Second // enough for a busy machine to send four bytes
	s := start(t, Config{ClientTimeout: limit}, testState(t, nil, at))
	c := newClient(t, s)
	time.AfterFunc(limit*3/2, func() { close(wait) })
	for _, path := range []string{"/wait", "/"} {
		if resp, got := c.do(t, "POST", "http://a.test"+path, strings.NewReader("body")); resp.StatusCode != 200 || got != "ok" {
			t.Errorf("%s: %d %q", path, resp.StatusCode, got)
		}
	}
	if got := c.dials.Load(); got != 1 {
		t.Errorf("the client connected %d times, want once", got)
	}
}

// TestChosenNodes: a node listens while it is one that serves Ingresses.
func TestChosenNodes(t *testing.T) {
	at := backend(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	state := testState(t, nil, at)
	s := start(t, Config{}, state)
	newClient(t, s).do(t, "GET", "http://a.test/", nil)
	plain, _ := s.Addresses()
	off := *state
	off.Ingress = false
	s.Set(&off)
	for {
		conn, err := net.Dial("tcp", plain.String())
		if err != nil {
			break // it has stopped; before, the kernel may still take connections
		}
		conn.Close()
	}
	s.Set(state)
	for {
		if now, _ := s.Addresses(); now != plain {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, got := newClient(t, s).do(t, "GET", "http://a.test/", nil); got != "ok" {
		t.Errorf("chosen again, the node answers %q", got)
	}
}

// TestPick: the choice of two spreads, prefers who has less to do, and passes over whom
// it should, but never over the last.
func TestPick(t *testing.T) {
	now := time.Now()
	a, b, c := &endpoint{address: "a"}, &endpoint{address: "b"}, &endpoint{address: "c"}
	all := []*endpoint{a, b, c}
	count := map[*endpoint]int{}
	for range 3000 {
		count[pick(all, nil, now)]++
	}
	for _, e := range all {
		if count[e] < 700 {
			t.Errorf("%s was chosen %d times of 3000", e.address, count[e])
		}
	}
	a.pending.Store(5)
	for range 100 {
		if pick(all, nil, now) == a {
			t.Fatal("the one with most to do was chosen")
		}
	}
	b.shun(now)
	c.shun(now)
	if got := pick(all, nil, now); got != a {
		t.Errorf("%s was chosen, want the only one that is not shunned", got.address)
	}
	if got := pick(all, []*endpoint{a}, now); got != b && got != c {
		t.Error("after the only good one, a shunned one has to do")
	}
	if got := pick(all, nil, now.Add(shunned)); got == a {
		t.Error("the others are shunned for too long")
	}
	if pick(all, slices.Clone(all), now) != nil || pick(nil, nil, now) != nil {
		t.Error("one was chosen where there is none")
	}
}
