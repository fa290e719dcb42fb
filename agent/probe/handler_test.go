package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// newHandler probes what listens on this machine's loopback.
func newHandler() Handler {
	return Handler{Host: "127.0.0.1", Dial: func(ctx context.Context, address string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}}
}

func check(t *testing.T, what string, got Answer, want Result, says string) {
	t.Helper()
	if got.Result != want || !strings.Contains(got.Message, says) {
		t.Errorf("%s: the answer is %v, %q; want %v and %q in it", what, got.Result, got.Message, want, says)
	}
}

func TestHTTP(t *testing.T) {
	asked := make(chan *http.Request, 10)
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(_ http.ResponseWriter, r *http.Request) { asked <- r })
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "database is away", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bad", http.StatusFound) })
	mux.HandleFunc("/there", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://example.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	mux.HandleFunc("/hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	for scheme, server := range map[string]*httptest.Server{"HTTP": httptest.NewServer(mux), "HTTPS": httptest.NewTLSServer(mux)} {
		t.Run(scheme, func(t *testing.T) {
			defer server.Close()
			port := server.Listener.Addr().(*net.TCPAddr).Port
			h := newHandler()
			h.Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}
			get := func(path string) corev1.ProbeHandler {
				return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
					Path: path, Port: intstr.FromString("web"), Scheme: corev1.URIScheme(scheme),
					HTTPHeaders: []corev1.HTTPHeader{{Name: "host", Value: "shop.example"}, {Name: "X-Probe", Value: "yes"}},
				}}
			}
			check(t, "ok", h.Probe(t.Context(), get("/ok?a=b")), Success, "")
			r := <-asked
			if r.Host != "shop.example" || r.Header.Get("X-Probe") != "yes" || r.URL.RawQuery != "a=b" || !strings.HasPrefix(r.UserAgent(), "kube-probe/") {
				t.Errorf("the request was for %s at %s with headers %v", r.URL, r.Host, r.Header)
			}
			check(t, "an error", h.Probe(t.Context(), get("/bad")), Failure, "statuscode: 503 database is away")
			check(t, "a redirect to the same host", h.Probe(t.Context(), get("/here")), Failure, "503")
			check(t, "a redirect to another host", h.Probe(t.Context(), get("/there")), Success, "")
			check(t, "redirects without end", h.Probe(t.Context(), get("/round")), Failure, "stopped after 10 redirects")
			ctx, cancel := context.WithDeadline(t.Context(), past)
			defer cancel()
			check(t, "a hanging server", h.Probe(ctx, get("/hang")), Failure, "deadline exceeded")
			h.Ports = nil
			check(t, "an unknown port", h.Probe(t.Context(), get("/ok")), Failure, `no port named "web"`)
			if err := newHandler().Hook(t.Context(), &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Path: "bad", Port: intstr.FromInt(port), Scheme: corev1.URIScheme(scheme)}}); err != nil {
				t.Errorf("a hook was answered with %v, want no error by any answer", err)
			}
		})
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(l.Addr().(*net.TCPAddr).Port)}}
	check(t, "listening", newHandler().Probe(t.Context(), socket), Success, "")
	l.Close()
	check(t, "not listening", newHandler().Probe(t.Context(), socket), Failure, "refused")
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, state := grpc.NewServer(), health.NewServer()
	healthv1.RegisterHealthServer(server, state)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	defer func() { server.Stop(); <-served }()
	state.SetServingStatus("down", healthv1.HealthCheckResponse_NOT_SERVING)
	ask := func(service string) corev1.ProbeHandler {
		return corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(l.Addr().(*net.TCPAddr).Port), Service: &service}}
	}
	check(t, "serving", newHandler().Probe(t.Context(), ask("")), Success, "")
	check(t, "not serving", newHandler().Probe(t.Context(), ask("down")), Failure, "NOT_SERVING")
	check(t, "unknown", newHandler().Probe(t.Context(), ask("other")), Failure, `does not know service "other"`)
	server.Stop()
	check(t, "stopped", newHandler().Probe(t.Context(), ask("")), Failure, "refused")
}

func TestExec(t *testing.T) {
	h := newHandler()
	command := corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check", "it"}}}
	exits := func(code int, err error) {
		h.Exec = func(_ context.Context, command []string, output io.Writer) (int, error) {
			fmt.Fprintf(output, "ran %s", strings.Join(command, " "))
			return code, err
		}
	}
	exits(0, nil)
	check(t, "exit 0", h.Probe(t.Context(), command), Success, "")
	exits(3, nil)
	check(t, "exit 3", h.Probe(t.Context(), command), Failure, `["check" "it"] exited with 3: ran check it`)
	if err := h.Hook(t.Context(), &corev1.LifecycleHandler{Exec: command.Exec}); err == nil || !strings.Contains(err.Error(), "exited with 3") {
		t.Errorf("a hook that exits with 3 returned %v", err)
	}
	exits(0, errors.New("runtime is away"))
	check(t, "no runtime", h.Probe(t.Context(), command), Unknown, "away")
	ctx, cancel := context.WithDeadline(t.Context(), past)
	defer cancel()
	check(t, "too slow", h.Probe(ctx, command), Failure, "timed out")
}

func TestBeginning(t *testing.T) {
	var b beginning
	for range 3 {
		if n, err := b.Write(make([]byte, maxOutput/2+1)); n != maxOutput/2+1 || err != nil {
			t.Fatalf("Write returned %d, %v", n, err)
		}
	}
	if len(b.String()) != maxOutput {
		t.Errorf("%d bytes were kept, want %d", len(b.String()), maxOutput)
	}
}
