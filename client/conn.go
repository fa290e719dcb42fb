package client

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/internal/wire"
	"github.com/holdfast-io/holdfast/pki"
)

// newHTTPTransport configures connections. It never pools them: Client makes
// them one by one with NewClientConn.
func newHTTPTransport(cfg Config) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	return &http.Transport{
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialTLS(ctx, network, address, cfg.Credentials, cfg.PingInterval+cfg.PingTimeout)
		},
		Protocols: &protocols,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:  cfg.PingInterval,
			PingTimeout:      cfg.PingTimeout,
			WriteByteTimeout: cfg.PingInterval + cfg.PingTimeout,
		},
		DisableCompression: true, // Connect compresses by itself
	}
}

// dialTLS connects to a peer and waits until that has accepted our certificate.
//
// In TLS 1.3 a client has finished its handshake before the server has looked at
// its certificate. If the server then refuses it, the alert races with our first
// request, and whether that is answered with the alert or with a reset is a
// matter of luck. So we look at what the server sends first before we send
// anything: its HTTP/2 settings, or the alert.
//
// Writes are coalesced; one that makes no progress for stall fails.
func dialTLS(ctx context.Context, network, address string, creds *pki.Credentials, stall time.Duration) (net.Conn, error) {
	if creds == nil {
		return nil, errors.New("no credentials: a client needs a certificate")
	}
	dialer := net.Dialer{
		// HTTP/2's pings watch the connection; TCP's would only add to them.
		KeepAlive:       -1,
		KeepAliveConfig: net.KeepAliveConfig{Enable: false},
	}
	dialed, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	raw := wire.Coalesce(dialed, stall)
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	peeked := &peekConn{Conn: raw, r: bufio.NewReader(raw)}
	conn := tls.Client(peeked, creds.ClientTLS(pki.RolePeer, "h2"))
	fail := func(err error) (net.Conn, error) {
		_ = raw.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return fail(err)
	}
	header, err := peeked.r.Peek(recordHeader)
	if err != nil {
		return fail(fmt.Errorf("the peer said nothing after the TLS handshake: %w", err))
	}
	if length := int(header[3])<<8 | int(header[4]); length < recordHTTP2 {
		var b [1]byte
		if _, err := conn.Read(b[:]); err != nil {
			return fail(err)
		}
		return fail(errors.New("the peer does not speak HTTP/2"))
	}
	raw.Start()
	if dialed, ok := ctx.Value(dialedKey{}).(**wire.Conn); ok {
		*dialed = raw
	}
	return conn, nil
}

const (
	// recordHeader is the length of a TLS record's header, whose last two bytes
	// are the length of the rest.
	recordHeader = 5
	// recordHTTP2 is the least length of a record that begins with an HTTP/2
	// frame: 9 bytes of frame header, one of record type, 16 of authentication
	// tag. An alert has 2 + 1 + 16.
	recordHTTP2 = 9 + 1 + 16
)

// dialedKey is for a **wire.Conn in the context of a dial.
type dialedKey struct{}

// peekConn lets us look at what comes before TLS does.
type peekConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *peekConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// conn is a connection to one peer.
type conn struct {
	address string
	raw     *wire.Conn
	http    *http.ClientConn
	users   int // calls that have it and are not yet counted by InFlight; Client.mu
}

// transportError is a call that failed for the connection's sake.
type transportError struct {
	peer string // "" when none could be reached
	// sent: the peer may have got the whole call, and may have executed it.
	sent bool
	// permanent: no peer is likely to do better, so do not retry.
	permanent bool
	err       error
}

func (e *transportError) Error() string { return e.err.Error() }
func (e *transportError) Unwrap() error { return e.err }

// httpClient is the connecthttp.HTTPClient of a Client: one attempt at a call.
type httpClient struct {
	c *Client
}

// Do sends req over the connection in use. A connection that turns out to be
// broken before anything was sent costs another try, for streams as well.
//
// Errors are *connect.Error around a *transportError, as connecthttp would
// otherwise guess at a code; those of the context and of a single stream are
// passed as they are.
func (h httpClient) Do(req *http.Request) (*http.Response, error) {
	for attempt := 0; ; attempt++ {
		resp, err := h.c.roundTrip(req)
		if err == nil {
			return resp, nil
		}
		failure, ok := errors.AsType[*transportError](err)
		if !ok {
			return nil, err // the context's, or one stream's
		}
		// A peer that cannot be dialed is not tried again here: acquire has tried
		// them all. The body of a client's stream cannot be sent twice.
		if failure.sent || failure.permanent || failure.peer == "" || attempt >= 2 || (req.GetBody == nil && req.Body != nil) {
			return nil, connect.NewError(connect.CodeUnavailable, failure.Error()).WithCause(failure)
		}
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, connect.NewError(connect.CodeUnavailable, failure.Error()).WithCause(failure)
			}
		}
	}
}

func (c *Client) roundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	info, ok := ctx.Value(attemptKey{}).(*attemptInfo)
	if !ok {
		info = new(attemptInfo) // a stream
	}
	cn, err := c.acquire(ctx, info.avoid)
	if err != nil {
		return nil, err
	}
	info.conn.Store(cn)
	info.answered = false
	info.sent.Store(false)
	attempt := req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		// Whoever has not got the whole request does not execute it. What follows
		// a failure to write is the end of the connection, never the rest.
		WroteRequest: func(w httptrace.WroteRequestInfo) { info.sent.Store(w.Err == nil) },
	}))
	url := *req.URL
	url.Host = cn.address
	attempt.URL, attempt.Host = &url, cn.address
	if len(c.cfg.Header) > 0 {
		attempt.Header = attempt.Header.Clone() // it is the caller's
		maps.Copy(attempt.Header, c.cfg.Header)
	}
	if req.ContentLength < 0 && req.Body != nil { // a stream's messages
		attempt.Body = wire.Whole(req.Body)
	}

	before := cn.raw.Queued()
	resp, err := cn.http.RoundTrip(attempt)
	c.release(cn)
	if err == nil {
		info.answered = true
		c.learn(resp.Header.Get(peersHeader))
		resp.Body = &body{ReadCloser: resp.Body, c: c, cn: cn, ctx: ctx}
		return resp, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if strings.HasPrefix(err.Error(), "stream error: ") && !notProcessed(err) {
		return nil, err // this stream's alone, and connecthttp knows its codes
	}
	failure := explain(cn.address, err)
	// What was written may not have gone out.
	failure.sent = info.sent.Load() && !notProcessed(err) && cn.raw.Abandon(before)
	c.leave(cn, failure)
	return nil, failure
}

// notProcessed reports whether err proves that the peer has not looked at a
// request although it was sent: it refused the stream, or it was going away and
// named the last one it would serve. Package net/http keeps these errors to
// itself but for their texts; TestGracefulShutdown fails if that of the second
// changes.
func notProcessed(err error) bool {
	text := err.Error()
	return strings.Contains(text, "received Server's graceful shutdown GOAWAY") ||
		(strings.Contains(text, "stream error") && strings.Contains(text, "REFUSED_STREAM"))
}

// refusedHandshake reports whether err is an alert of the peer's TLS.
func refusedHandshake(err error) bool {
	return strings.Contains(err.Error(), "remote error: tls: ")
}

// body turns the connection's end in the middle of an answer into an error that
// names the peer.
type body struct {
	io.ReadCloser
	c   *Client
	cn  *conn
	ctx context.Context // the request's, for as long as its answer is read
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == nil || err == io.EOF || b.ctx.Err() != nil {
		return n, err
	}
	if strings.HasPrefix(err.Error(), "stream error: ") {
		return n, err // this stream's alone, and connecthttp knows its codes
	}
	failure := explain(b.cn.address, err)
	failure.sent = true
	b.c.leave(b.cn, failure)
	return n, connect.NewError(connect.CodeUnavailable, failure.Error()).WithCause(failure)
}

// acquire returns the connection in use, or makes one; with avoid, one to a peer
// at another address, which does not become the one in use. Each success is
// followed by one release. Errors are the context's or a *transportError.
func (c *Client) acquire(ctx context.Context, avoid string) (*conn, error) {
	if cn, err := c.use(avoid); cn != nil || err != nil {
		return cn, err
	}
	select {
	case c.dialing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-c.dialing }()
	if cn, err := c.use(avoid); cn != nil || err != nil { // somebody else's
		return cn, err
	}
	order := slices.DeleteFunc(c.order(), func(address string) bool { return address == avoid })
	cn, err := c.dial(ctx, order)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		cn.http.Close()
		return nil, &transportError{err: errClosed, permanent: true}
	}
	c.conns[cn] = struct{}{}
	cn.users++
	if avoid != "" {
		c.mu.Unlock()
		cn.http.SetStateHook(func(*http.ClientConn) { c.sweep() })
		return cn, nil
	}
	c.current = cn
	if c.last != "" && c.last != cn.address {
		c.log.Info("connected to another peer", "peer", cn.address, "before", c.last)
	} else {
		c.log.Debug("connected to peer", "peer", cn.address)
	}
	c.last = cn.address
	c.mu.Unlock()
	cn.http.SetStateHook(func(*http.ClientConn) { c.sweep() })
	return cn, nil
}

// use returns the connection in use if it still works, or one that is not to
// avoid.
func (c *Client) use(avoid string) (*conn, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, &transportError{err: errClosed, permanent: true}
	}
	cn := c.current
	if cn != nil && cn.address == avoid {
		cn = nil
		for other := range c.conns {
			if other.address != avoid && other.http.Err() == nil {
				cn = other
			}
		}
	}
	if cn == nil {
		c.mu.Unlock()
		return nil, nil
	}
	if cn.http.Err() == nil {
		cn.users++
		c.mu.Unlock()
		return cn, nil
	}
	c.mu.Unlock()
	c.leave(cn, errors.New("connection lost"))
	return nil, nil
}

// release ends an acquire: from here on the connection itself counts the call,
// if it goes on.
func (c *Client) release(cn *conn) {
	c.mu.Lock()
	cn.users--
	c.mu.Unlock()
	c.sweep()
}

// leave makes the next call use another connection, and another peer if there is
// one. It is harmless for a connection that is not in use any more.
func (c *Client) leave(cn *conn, reason error) {
	c.mu.Lock()
	if c.current != cn {
		c.mu.Unlock()
		return
	}
	c.current = nil
	for _, p := range c.peers {
		if p.address == cn.address {
			p.failed = time.Now()
		}
	}
	closed := c.closed
	c.mu.Unlock()
	if !closed {
		c.log.Info("leaving peer", "peer", cn.address, "reason", reason)
	}
	c.sweep()
}

// sweep closes connections that are neither in use nor carry a stream. It is
// called whenever a call ends.
func (c *Client) sweep() {
	c.mu.Lock()
	idle := c.idleConns()
	c.mu.Unlock()
	closeAll(idle)
}

// idleConns takes the connections out that may be closed. c.mu is held.
func (c *Client) idleConns() []*conn {
	var idle []*conn
	for cn := range c.conns {
		if cn == c.current || cn.users > 0 {
			continue
		}
		if cn.http.Err() != nil || cn.http.InFlight() == 0 {
			delete(c.conns, cn)
			idle = append(idle, cn)
		}
	}
	return idle
}

func closeAll(conns []*conn) {
	for _, cn := range conns {
		_ = cn.http.Close() // it has nothing to say that matters now
	}
}

// dial makes a connection to the first of the peers in order that answers: one after the other,
// the next one HedgeDelay after the last, or at once when that has failed. It
// fails when all have.
func (c *Client) dial(ctx context.Context, order []string) (*conn, error) {
	if len(order) == 0 {
		return nil, &transportError{err: errors.New("no peer's address is known; set at least one"), permanent: true}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // stops the losers
	type result struct {
		conn *conn
		err  *transportError
	}
	results := make(chan result)
	pending := 0
	defer func() {
		if pending == 0 {
			return
		}
		go func(n int) { // ends when the last loser has: they are cancelled
			for range n {
				if r := <-results; r.conn != nil {
					_ = r.conn.http.Close()
				}
			}
		}(pending)
	}()
	start := func(address string) {
		pending++
		go func() {
			cn, err := c.dialOne(ctx, address)
			results <- result{cn, err}
		}()
	}

	var failures []*transportError
	hedge := time.NewTimer(0)
	defer hedge.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-hedge.C:
			if len(order) > 0 {
				start(order[0])
				order = order[1:]
				hedge.Reset(c.cfg.HedgeDelay)
			}
		case r := <-results:
			pending--
			c.mark(r.conn, r.err)
			if r.conn != nil {
				return r.conn, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			failures = append(failures, r.err)
			if len(order) > 0 {
				hedge.Reset(0)
			} else if pending == 0 {
				return nil, noPeer(failures)
			}
		}
	}
}

// mark remembers how a dial went.
func (c *Client) mark(cn *conn, failure *transportError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.peers {
		switch {
		case cn != nil && p.address == cn.address:
			p.failed = time.Time{}
		case failure != nil && p.address == failure.peer:
			p.failed = time.Now()
		}
	}
}

var errDialTimeout = errors.New("timed out")

func (c *Client) dialOne(ctx context.Context, address string) (*conn, *transportError) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.DialTimeout, fmt.Errorf("%w (%v)", errDialTimeout, c.cfg.DialTimeout))
	defer cancel()
	var raw *wire.Conn // set by dialTLS
	hc, err := c.transport.NewClientConn(context.WithValue(ctx, dialedKey{}, &raw), "https", address)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
			err = cause
		}
		return nil, explain(address, err)
	}
	return &conn{address: address, raw: raw, http: hc}, nil
}

// order returns the peers' addresses in the order to try them: those that work,
// the last one used first, then those that failed, the longest ago first.
func (c *Client) order() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	peers := slices.Clone(c.peers)
	slices.SortStableFunc(peers, func(a, b *peer) int {
		if d := a.failed.Compare(b.failed); d != 0 {
			return d // the zero time is before all others
		}
		return cmp.Compare(preference(a, c.last), preference(b, c.last))
	})
	out := make([]string, len(peers))
	for i, p := range peers {
		out[i] = p.address
	}
	return out
}

func preference(p *peer, last string) int {
	if p.address == last {
		return 0
	}
	return 1
}

func shuffle(peers []*peer) {
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
}

// noPeer is the failure to reach anybody. It is permanent if all failed for a
// reason of which waiting is no cure.
func noPeer(failures []*transportError) *transportError {
	out := &transportError{permanent: true}
	var errs []error
	for _, f := range failures {
		out.permanent = out.permanent && f.permanent
		errs = append(errs, f)
	}
	out.err = joined(errs)
	return out
}

// joined is errors.Join on one line.
type joined []error

func (e joined) Error() string {
	var texts []string
	for _, err := range e {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

func (e joined) Unwrap() []error { return e }

// explain names the peer and says what an error of dialing it, or of a
// connection to it, means.
func explain(address string, err error) *transportError {
	text, permanent := sentence(err)
	return &transportError{peer: address, permanent: permanent, err: fmt.Errorf("peer %s: %s%w", address, text, err)}
}

// sentence returns what to say before err, with what separates the two, and
// whether it will be the same at the next attempt.
func sentence(err error) (text string, permanent bool) {
	has := func(part string) bool { return strings.Contains(err.Error(), part) }
	switch {
	case errors.Is(err, pki.ErrWrongCluster), errors.Is(err, pki.ErrUntrusted), errors.Is(err, pki.ErrWrongRole), errors.Is(err, pki.ErrNoIdentity):
		return "not a peer of this cluster: ", true
	case errors.Is(err, pki.ErrExpired), errors.Is(err, pki.ErrNotYetValid), errors.Is(err, pki.ErrPin):
		return "", true // these say it all
	case refusedHandshake(err) && has("expired certificate"):
		return "it refuses our certificate: expired, or not yet valid by its clock: ", true
	case refusedHandshake(err) && (has("unknown certificate authority") || has("bad certificate")):
		return "it refuses our certificate, as one of another cluster: ", true
	case refusedHandshake(err) && has("no application protocol"), has("unexpected ALPN"):
		return "it does not speak the API's protocol; is this the API's port? ", false
	case has("first record does not look like a TLS handshake"):
		return "it does not speak TLS; is this the API's port? ", false
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there; is the peer running, and is the port right? ", false
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "cannot be reached; is the address right, and the network up? ", false
	case has("TLS handshake timeout"), has("i/o timeout"), errors.Is(err, errDialTimeout):
		return "no answer; is the address right, and is a firewall between? ", false
	case has("client connection lost"):
		return "it stopped answering: ", false
	default:
		return "", false
	}
}
