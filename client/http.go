package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"time"

	"github.com/holdfast-io/holdfast/pki"
)

// maxKeptBody is how much of a request's body is kept, so that the request can be
// sent again: as much as a peer takes.
const maxKeptBody = 4 << 20

// HTTP returns a transport for requests of other dialects than Connect's: each
// goes to the peer in use, whatever host its URL names, and to another peer when
// that one cannot be reached. A request that a peer may have carried out is sent
// again only if its method changes nothing. Requests to switch protocols go over
// a connection of their own.
func (c *Client) HTTP() http.RoundTripper {
	upgrades := &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return c.dialUpgrade(ctx, network)
	}}
	return roundTripper{c, upgrades}
}

type roundTripper struct {
	c        *Client
	upgrades *http.Transport
}

func (t roundTripper) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("Upgrade") != "" {
		req = req.Clone(req.Context())
		req.URL.Scheme, req.URL.Host = "https", "holdfast" // whoever is dialed
		maps.Copy(req.Header, t.c.cfg.Header)
		return t.upgrades.RoundTrip(req)
	}
	req = req.Clone(req.Context())
	req.URL.Scheme = "https"
	if err := keepBody(req); err != nil {
		return nil, err
	}
	harmless := req.Method == http.MethodGet || req.Method == http.MethodHead || req.Method == http.MethodOptions
	ctx, cancel := context.WithTimeout(req.Context(), t.c.cfg.RetryFor)
	defer cancel()
	for backoff := firstBackoff; ; backoff = min(2*backoff, maxBackoff) {
		resp, err := t.c.roundTrip(req)
		if err == nil {
			return resp, nil
		}
		failure, ok := errors.AsType[*transportError](err)
		switch {
		case !ok, failure.permanent, failure.sent && !harmless, req.Body != nil && req.GetBody == nil:
			return nil, err
		}
		if failure.peer == "" { // nobody can be reached now
			select {
			case <-ctx.Done():
				return nil, err
			case <-time.After(backoff):
			}
		}
		if ctx.Err() != nil {
			return nil, err
		}
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// keepBody reads a body of a known, small size, so that it can be sent again.
func keepBody(req *http.Request) error {
	if req.Body == nil || req.Body == http.NoBody || req.ContentLength == 0 {
		req.Body, req.GetBody = nil, nil
		return nil
	}
	if req.GetBody != nil || req.ContentLength < 0 || req.ContentLength > maxKeptBody {
		return nil
	}
	data, err := io.ReadAll(req.Body)
	_ = req.Body.Close()
	if err != nil {
		return err
	}
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	req.Body, err = req.GetBody()
	return err
}

// dialUpgrade makes a connection in HTTP/1.1, the only one that can be handed
// over to another protocol, to the first peer that answers.
func (c *Client) dialUpgrade(ctx context.Context, network string) (net.Conn, error) {
	if c.cfg.Credentials == nil {
		return nil, errors.New("no credentials: a client needs a certificate")
	}
	var failures joined
	for _, address := range c.order() {
		attempt, cancel := context.WithTimeout(ctx, c.cfg.PingInterval+c.cfg.PingTimeout)
		dialer := tls.Dialer{Config: c.cfg.Credentials.ClientTLS(pki.RolePeer, "http/1.1")}
		conn, err := dialer.DialContext(attempt, network, address)
		cancel()
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		failures = append(failures, explain(address, err))
	}
	if len(failures) == 0 {
		return nil, errors.New("no peer's address is known; set at least one")
	}
	return nil, failures
}
