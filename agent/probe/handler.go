package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// userAgent is Kubernetes': servers keep such requests out of their logs.
	userAgent = "kube-probe/1.36"
	// maxBody and maxOutput bound what is read of an answer; maxMessage what of it
	// is shown to people.
	maxBody      = 10 << 10
	maxOutput    = 10 << 10
	maxMessage   = 1 << 10
	maxRedirects = 10
)

// Handler carries out probes and hooks of one container.
type Handler struct {
	// Host is the pod's address, for what names no other host.
	Host string
	// Ports are the container's, to be named.
	Ports []corev1.ContainerPort
	// Dial opens a TCP connection from the node.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Exec runs a command in the container, with both of its streams written to output,
	// which takes calls that overlap.
	Exec func(ctx context.Context, command []string, output io.Writer) (code int, err error)
}

// Probe carries out a probe's action. Its answer is Unknown when the action could
// not be carried out for reasons that say nothing about the container.
func (h Handler) Probe(ctx context.Context, action corev1.ProbeHandler) Answer {
	switch {
	case action.Exec != nil:
		return h.probeExec(ctx, action.Exec)
	case action.HTTPGet != nil:
		return h.probeHTTP(ctx, action.HTTPGet)
	case action.TCPSocket != nil:
		return h.probeTCP(ctx, action.TCPSocket)
	case action.GRPC != nil:
		return h.probeGRPC(ctx, action.GRPC)
	default:
		return Answer{Unknown, "the probe has no action"}
	}
}

// Hook carries out what a hook says, but for sleep. An answer over HTTP is a
// success, whatever it says.
func (h Handler) Hook(ctx context.Context, action *corev1.LifecycleHandler) error {
	switch {
	case action.Exec != nil:
		var out beginning
		code, err := h.Exec(ctx, action.Exec.Command, &out)
		if err != nil {
			return fmt.Errorf("run %q: %w", action.Exec.Command, err)
		}
		if code != 0 {
			return fmt.Errorf("%q exited with %d: %s", action.Exec.Command, code, shown(out.String()))
		}
		return nil
	case action.HTTPGet != nil:
		_, _, err := h.get(ctx, action.HTTPGet)
		return err
	default:
		return errors.New("a hook needs exec, httpGet or sleep")
	}
}

func (h Handler) probeExec(ctx context.Context, action *corev1.ExecAction) Answer {
	var out beginning
	code, err := h.Exec(ctx, action.Command, &out)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Answer{Failure, fmt.Sprintf("command %q timed out", action.Command)}
	case err != nil:
		return Answer{Unknown, err.Error()}
	case code != 0:
		return Answer{Failure, strings.TrimSpace(fmt.Sprintf("command %q exited with %d: %s", action.Command, code, shown(out.String())))}
	default:
		return Answer{Result: Success}
	}
}

func (h Handler) probeHTTP(ctx context.Context, action *corev1.HTTPGetAction) Answer {
	code, body, err := h.get(ctx, action)
	switch {
	case err != nil && ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Answer{Unknown, err.Error()}
	case err != nil:
		return Answer{Failure, err.Error()}
	case code < 200 || code >= 400:
		return Answer{Failure, strings.TrimSpace(fmt.Sprintf("HTTP probe failed with statuscode: %d %s", code, shown(body)))}
	default:
		return Answer{Result: Success}
	}
}

// get makes an HTTP request and returns the answer's code and the beginning of its
// body. Certificates are not verified: the probe asks whether the container
// answers, not who it is.
func (h Handler) get(ctx context.Context, action *corev1.HTTPGetAction) (code int, body string, err error) {
	port, err := h.port(action.Port)
	if err != nil {
		return 0, "", err
	}
	host := action.Host
	if host == "" {
		host = h.Host
	}
	u, err := url.Parse(action.Path)
	if err != nil {
		u = &url.URL{Path: action.Path}
	}
	u.Scheme = strings.ToLower(string(action.Scheme))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	u.Host = net.JoinHostPort(host, strconv.Itoa(port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return 0, "", err
	}
	for _, header := range action.HTTPHeaders {
		if http.CanonicalHeaderKey(header.Name) == "Host" {
			req.Host = header.Value
			continue
		}
		req.Header.Add(header.Name, header.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", userAgent)
	}
	if _, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	}
	client := http.Client{
		Transport: &http.Transport{
			DisableKeepAlives:  true,
			DisableCompression: true,
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				return h.Dial(ctx, address)
			},
		},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			switch {
			case next.URL.Hostname() != via[0].URL.Hostname():
				return http.ErrUseLastResponse
			case len(via) >= maxRedirects:
				return fmt.Errorf("stopped after %d redirects", maxRedirects)
			default:
				return nil
			}
		},
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return 0, "", fmt.Errorf("read the answer: %w", err)
	}
	return res.StatusCode, string(data), nil
}

func (h Handler) probeTCP(ctx context.Context, action *corev1.TCPSocketAction) Answer {
	port, err := h.port(action.Port)
	if err != nil {
		return Answer{Failure, err.Error()}
	}
	host := action.Host
	if host == "" {
		host = h.Host
	}
	conn, err := h.Dial(ctx, net.JoinHostPort(host, strconv.Itoa(port)))
	switch {
	case err != nil && ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Answer{Unknown, err.Error()}
	case err != nil:
		return Answer{Failure, err.Error()}
	}
	conn.Close()
	return Answer{Result: Success}
}

// probeGRPC asks by the gRPC health checking protocol.
func (h Handler) probeGRPC(ctx context.Context, action *corev1.GRPCAction) Answer {
	address := net.JoinHostPort(h.Host, strconv.Itoa(int(action.Port)))
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(userAgent),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return h.Dial(ctx, address) }))
	if err != nil {
		return Answer{Unknown, err.Error()}
	}
	defer conn.Close()
	service := ""
	if action.Service != nil {
		service = *action.Service
	}
	res, err := health.NewHealthClient(conn).Check(ctx, &health.HealthCheckRequest{Service: service})
	switch {
	case err != nil && status.Code(err) == codes.Canceled:
		return Answer{Unknown, err.Error()}
	case status.Code(err) == codes.Unimplemented:
		return Answer{Failure, "the server does not implement the gRPC health protocol (grpc.health.v1.Health)"}
	case status.Code(err) == codes.NotFound:
		return Answer{Failure, fmt.Sprintf("the server does not know service %q", service)}
	case err != nil:
		return Answer{Failure, err.Error()}
	case res.GetStatus() != health.HealthCheckResponse_SERVING:
		return Answer{Failure, fmt.Sprintf("service unhealthy (responded with %q)", res.GetStatus())}
	default:
		return Answer{Result: Success}
	}
}

// port resolves a port that is given by number or by one of the container's names.
func (h Handler) port(p intstr.IntOrString) (int, error) {
	if p.Type == intstr.Int {
		return int(p.IntVal), nil
	}
	for _, c := range h.Ports {
		if c.Name == p.StrVal {
			return int(c.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("the container has no port named %q", p.StrVal)
}

// shown cuts what a container said to what people are shown.
func shown(text string) string {
	text = strings.ToValidUTF8(strings.TrimSpace(text), "\uFFFD")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "…"
	}
	return text
}

// beginning keeps the first maxOutput bytes of what is written to it and drops the
// rest. Calls may overlap: both streams of a command are written to it.
type beginning struct {
	mu   sync.Mutex
	kept []byte
}

func (b *beginning) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept = append(b.kept, p[:min(len(p), maxOutput-len(b.kept))]...)
	return len(p), nil
}

func (b *beginning) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.kept)
}
