package ingress

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	dialTimeout = 3 * time.Second
	// maxTries bounds the endpoints that one request is sent to.
	maxTries = 3
	// idlePerEndpoint are the connections to an endpoint that are kept for the next
	// requests, for idleTimeout.
	idlePerEndpoint = 256
	idleTimeout     = 60 * time.Second
	copyBytes       = 32 << 10
	// statusClientGone is what the log says of a client that did not wait.
	statusClientGone = 499
)

var (
	errNoEndpoint = errors.New("no endpoint is ready")
	errTimeout    = errors.New("the endpoint did not answer in time")
)

// proxy is the handler of requests.
type proxy struct {
	table      *atomic.Pointer[Table]
	metrics    *metrics
	access     *slog.Logger // nil: none
	trusted    []netip.Prefix
	slow       time.Duration // without progress of a client
	reverse    *httputil.ReverseProxy
	transports [HTTPS + 1]*http.Transport
}

func newProxy(cfg Config, table *atomic.Pointer[Table], m *metrics) *proxy {
	p := &proxy{table: table, metrics: m, access: cfg.AccessLog, trusted: cfg.TrustedProxies, slow: cfg.ClientTimeout}
	for protocol := range p.transports {
		t := &http.Transport{
			DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout: dialTimeout, ExpectContinueTimeout: time.Second,
			MaxIdleConnsPerHost: idlePerEndpoint, IdleConnTimeout: idleTimeout,
			DisableCompression: true, // the client and the endpoint agree on it themselves
			Protocols:          new(http.Protocols),
		}
		switch Protocol(protocol) {
		case H2C:
			t.Protocols.SetUnencryptedHTTP2(true)
		case HTTPS:
			t.Protocols.SetHTTP1(true)
			t.Protocols.SetHTTP2(true)
			// Whose certificate could it be? Addresses have none. It is as safe as plain
			// HTTP on the same network, and for endpoints that speak nothing else.
			t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // see above
		default:
			t.Protocols.SetHTTP1(true)
		}
		p.transports[protocol] = t
	}
	p.reverse = &httputil.ReverseProxy{
		Rewrite: p.rewrite, Transport: p, BufferPool: &buffers{}, ErrorHandler: p.failed,
		ErrorLog: log.New(io.Discard, "", 0), // the access log has what matters
	}
	return p
}

// close ends connections to endpoints that nobody uses.
func (p *proxy) close() {
	for _, t := range p.transports {
		t.CloseIdleConnections()
	}
}

// exchange is one request on its way.
type exchange struct {
	http.ResponseWriter
	p       *proxy
	control *http.ResponseController
	target  *Target
	id      string

	status   int
	sent     int64     // bytes of the answer's body
	deadline time.Time // of writing, as last set
	received *body     // nil: the request has none
	endpoint string    // the last that was tried
	tries    int
	waited   time.Duration // for the endpoint's answer to begin
	err      error
}

type exchangeKey struct{}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	x := &exchange{ResponseWriter: w, p: p, control: http.NewResponseController(w)}
	x.target = p.table.Load().Route(r.Host, r.URL.Path)
	p.metrics.pending.Inc()
	// A connection that breaks off ends its handler by a panic, which the server knows.
	defer func() {
		p.metrics.pending.Dec()
		p.done(x, r, time.Since(began))
	}()
	x.push(began)
	switch t := x.target; {
	case t == nil:
		x.refuse(http.StatusNotFound, fmt.Sprintf("no Ingress has a rule for host %q and this path", hostName(r.Host)))
		return
	case t.Redirect && r.TLS == nil:
		http.Redirect(x, r, "https://"+hostName(r.Host)+r.URL.RequestURI(), http.StatusPermanentRedirect)
		return
	case t.Fault != "":
		x.refuse(http.StatusServiceUnavailable, t.Fault)
		return
	case r.Method == http.MethodConnect:
		x.refuse(http.StatusMethodNotAllowed, "this is not a forward proxy")
		return
	case t.MaxBody > 0 && r.ContentLength > t.MaxBody:
		x.refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", t.MaxBody))
		return
	}
	x.id = cmp.Or(r.Header.Get("X-Request-Id"), rand.Text())
	if r.Body != nil && r.Body != http.NoBody {
		in := r.Body
		if x.target.MaxBody > 0 {
			in = http.MaxBytesReader(w, in, x.target.MaxBody)
		}
		x.received = &body{ReadCloser: in, x: x}
		x.received.pull()
		r.Body = x.received
		if r.ProtoMajor == 1 {
			// An answer may begin before the body ends, which the server would throw away.
			_ = x.control.EnableFullDuplex()
		}
	}
	p.reverse.ServeHTTP(x, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)))
}

// rewrite makes the request that goes to an endpoint, all but where it goes.
func (p *proxy) rewrite(r *httputil.ProxyRequest) {
	x := r.In.Context().Value(exchangeKey{}).(*exchange)
	r.Out.Host = r.In.Host
	r.Out.URL.Scheme = "http"
	if x.target.Protocol == HTTPS {
		r.Out.URL.Scheme = "https"
	}
	r.Out.URL.RawQuery = r.In.URL.RawQuery // as it was sent, whatever it is
	client := clientIP(r.In)
	port := "80"
	if r.In.TLS != nil {
		port = "443"
	}
	trusted := slices.ContainsFunc(p.trusted, func(t netip.Prefix) bool { return t.Contains(client) })
	if trusted {
		r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
	}
	r.SetXForwarded()
	h := r.Out.Header
	h.Set("X-Forwarded-Port", port)
	h.Set("X-Real-Ip", client.String())
	if trusted {
		// The client is the one that the proxy in front saw.
		for _, name := range []string{"X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Real-Ip"} {
			if v := r.In.Header.Get(name); v != "" {
				h.Set(name, v)
			}
		}
	}
	h.Set("X-Request-Id", x.id)
}

func clientIP(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// RoundTrip sends a request to an endpoint, and to another one if that is safe. It
// implements http.RoundTripper.
func (p *proxy) RoundTrip(r *http.Request) (*http.Response, error) {
	x := r.Context().Value(exchangeKey{}).(*exchange)
	t := x.target
	ctx, cancel := context.WithCancelCause(r.Context())
	stop := func() bool { return true }
	if t.Timeout > 0 && !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") { // such a call may say nothing for hours
		stop = time.AfterFunc(t.Timeout, func() { cancel(errTimeout) }).Stop
	}
	out := r.WithContext(ctx)
	url := *r.URL
	out.URL = &url
	var tried []*endpoint
	for {
		now := time.Now()
		e := pick(t.endpoints, tried, now)
		if e == nil {
			stop()
			cancel(nil)
			return nil, cmp.Or(x.err, errNoEndpoint)
		}
		tried = append(tried, e)
		x.endpoint, x.tries = e.address, len(tried)
		url.Host = e.address
		if x.received != nil {
			out.Body = kept{x.received}
		}
		e.pending.Add(1)
		resp, err := p.transports[t.Protocol].RoundTrip(out)
		x.waited += time.Since(now)
		if err == nil {
			end := sync.OnceFunc(func() {
				e.pending.Add(-1)
				cancel(nil)
			})
			if !stop() { // too late by a hair
				resp.Body.Close()
				end()
				return nil, errTimeout
			}
			if tunnel, ok := resp.Body.(io.ReadWriteCloser); ok && resp.StatusCode == http.StatusSwitchingProtocols {
				resp.Body = &tunnelBody{tunnel, end}
			} else {
				resp.Body = &answerBody{resp.Body, end}
			}
			return resp, nil
		}
		e.pending.Add(-1)
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		x.err = err
		refused := ctx.Err() == nil && isDial(err)
		if refused {
			e.shun(time.Now())
			p.metrics.connectFailures.Inc()
		}
		if ctx.Err() != nil || len(tried) == maxTries || !mayRepeat(r.Method, x.received, refused, err) {
			stop()
			cancel(nil)
			return nil, err
		}
		p.metrics.retries.Inc()
	}
}

// mayRepeat says whether a request that failed may be sent to another endpoint:
// nobody can have seen it, or seeing it twice does no harm. It is pure.
func mayRepeat(method string, sent *body, refused bool, err error) bool {
	if sent != nil && sent.read.Load() {
		return false // part of the body is gone
	}
	if refused {
		return true
	}
	if sent != nil {
		return false // it may be being read right now
	}
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	}
	return false
}

func isDial(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// failed answers a request that no endpoint answered.
func (p *proxy) failed(_ http.ResponseWriter, r *http.Request, err error) {
	x := r.Context().Value(exchangeKey{}).(*exchange)
	x.err = err
	_, tooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case tooLarge:
		x.refuse(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", x.target.MaxBody))
	case x.received != nil && x.received.slow.Load():
		x.Header().Set("Connection", "close")
		x.refuse(http.StatusRequestTimeout, "the body came too slowly")
	case errors.Is(err, errTimeout):
		x.refuse(http.StatusGatewayTimeout, errTimeout.Error())
	case errors.Is(err, errNoEndpoint):
		x.refuse(http.StatusServiceUnavailable, errNoEndpoint.Error())
	case r.Context().Err() != nil:
		x.status = statusClientGone // nobody is there to be told
	default:
		x.refuse(http.StatusBadGateway, "the endpoint did not answer: "+reasonOf(err))
	}
}

// reasonOf leaves addresses in the cluster out: clients have no business with them.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "host unreachable"
	case errors.Is(err, os.ErrDeadlineExceeded), isDial(err):
		return "no connection"
	}
	return "connection lost"
}

// refuse answers without an endpoint.
func (x *exchange) refuse(status int, why string) {
	http.Error(x, http.StatusText(status)+": "+why, status)
}

// push moves the end of the time in which the client has to take what is sent to it.
func (x *exchange) push(now time.Time) {
	if now.Sub(x.deadline) > -x.p.slow*3/4 {
		x.deadline = now.Add(x.p.slow)
		_ = x.control.SetWriteDeadline(x.deadline)
	}
}

// WriteHeader implements http.ResponseWriter.
func (x *exchange) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		x.status = status
	}
	x.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (x *exchange) Write(data []byte) (int, error) {
	x.push(time.Now())
	n, err := x.ResponseWriter.Write(data)
	x.sent += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// body is a request's, which has to make progress.
type body struct {
	io.ReadCloser
	x        *exchange
	deadline time.Time
	bytes    atomic.Int64
	read     atomic.Bool // begun
	slow     atomic.Bool // ended for lack of progress
}

// pull moves the end of the time in which the client has to send something.
func (b *body) pull() {
	if now := time.Now(); now.Sub(b.deadline) > -b.x.p.slow*3/4 {
		b.deadline = now.Add(b.x.p.slow)
		_ = b.x.control.SetReadDeadline(b.deadline)
	}
}

// Read implements io.Reader.
func (b *body) Read(data []byte) (int, error) {
	b.read.Store(true)
	b.pull()
	n, err := b.ReadCloser.Read(data)
	b.bytes.Add(int64(n))
	switch {
	case errors.Is(err, io.EOF):
		_ = b.x.control.SetReadDeadline(time.Time{}) // what follows is the next request
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.slow.Store(true)
	}
	return n, err
}

// kept is a body that outlives the try it was sent with.
type kept struct{ io.Reader }

// Close does nothing: the server closes the body.
func (kept) Close() error { return nil }

type answerBody struct {
	io.ReadCloser
	end func()
}

// Close implements io.Closer.
func (b *answerBody) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

type tunnelBody struct {
	io.ReadWriteCloser
	end func()
}

// Close implements io.Closer.
func (b *tunnelBody) Close() error {
	defer b.end()
	return b.ReadWriteCloser.Close()
}

type buffers struct{ pool sync.Pool }

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if have, ok := b.pool.Get().(*[]byte); ok {
		return *have
	}
	return make([]byte, copyBytes)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(buf []byte) { b.pool.Put(&buf) }

// done counts and logs a request that has ended.
func (p *proxy) done(x *exchange, r *http.Request, took time.Duration) {
	if x.status == 0 { // the connection broke off, or the answer is empty
		x.status = http.StatusOK
		if r.Context().Err() != nil {
			x.status = statusClientGone
		}
	}
	name := ""
	if x.target != nil {
		name = x.target.Ingress.String()
	}
	p.metrics.request(name, x.status, took)
	if p.access == nil {
		return
	}
	attrs := []slog.Attr{
		slog.String("client", clientIP(r).String()), slog.String("method", r.Method), slog.String("host", r.Host),
		slog.String("path", r.URL.RequestURI()), slog.String("protocol", r.Proto), slog.Bool("tls", r.TLS != nil),
		slog.Int("status", x.status), slog.Int64("sent", x.sent), slog.Float64("seconds", took.Seconds()),
		slog.String("user_agent", r.UserAgent()), slog.String("referer", r.Referer()),
	}
	if x.received != nil {
		attrs = append(attrs, slog.Int64("received", x.received.bytes.Load()))
	}
	if x.target != nil {
		attrs = append(attrs, slog.String("ingress", name), slog.String("service", x.target.Service.String()), slog.String("id", x.id))
	}
	if x.endpoint != "" {
		attrs = append(attrs, slog.String("endpoint", x.endpoint), slog.Int("tries", x.tries), slog.Float64("waited", x.waited.Seconds()))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("error", x.err.Error()))
	}
	p.access.LogAttrs(context.WithoutCancel(r.Context()), slog.LevelInfo, "request", attrs...)
}
