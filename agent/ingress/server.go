package ingress

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// Config is what a server needs.
type Config struct {
	HTTP  string // optional; where to take plain HTTP: ":80"
	HTTPS string // optional; where to take TLS: ":443"

	// Defaults are for Ingresses that do not say otherwise. Optional; bodies of any
	// size, and 60 s until an endpoint's answer begins.
	Defaults Defaults
	// ClientTimeout is how long a client may send or take nothing in the middle of a
	// request. Optional; 60 s.
	ClientTimeout time.Duration
	// HeaderTimeout is how long a request's header may take. Optional; 10 s.
	HeaderTimeout time.Duration
	// KeepAlive is how long a connection may wait for its next request. Optional; 75 s.
	KeepAlive time.Duration
	// HeaderBytes bounds a request's header. Optional; 64 KiB.
	HeaderBytes int
	// MaxConns bounds the connections of clients on each address; more of them wait.
	// Optional; 16384.
	MaxConns int
	// DrainTimeout is how long requests may take to end when the server stops.
	// Optional; 10 s.
	DrainTimeout time.Duration
	// TrustedProxies are those in front of this one whose X-Forwarded headers are
	// believed. Optional; nobody's are.
	TrustedProxies []netip.Prefix
	// AccessLog gets a line for each request. Optional; none.
	AccessLog *slog.Logger

	Logger     *slog.Logger          // optional; discards
	Registerer prometheus.Registerer // optional; not registered
}

const bindPause = 5 * time.Second

// Server is the reverse proxy of one node. See [New].
type Server struct {
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	proxy    *proxy
	nobodys  *tls.Certificate // where there is no certificate
	table    atomic.Pointer[Table]
	http     atomic.Pointer[net.Addr]
	https    atomic.Pointer[net.Addr]
	complain map[netstate.Name][]string // the faults that were logged last

	mu      sync.Mutex
	enabled bool
	changed chan struct{} // closed when enabled changes
	ready   chan struct{}
	once    sync.Once
}

// New returns a server that serves nothing until it is run and enabled.
func New(cfg Config) (*Server, error) {
	cfg.HTTP, cfg.HTTPS = cmp.Or(cfg.HTTP, ":80"), cmp.Or(cfg.HTTPS, ":443")
	cfg.Defaults.Timeout = cmp.Or(cfg.Defaults.Timeout, 60*time.Second)
	cfg.ClientTimeout = cmp.Or(cfg.ClientTimeout, 60*time.Second)
	cfg.HeaderTimeout = cmp.Or(cfg.HeaderTimeout, 10*time.Second)
	cfg.KeepAlive = cmp.Or(cfg.KeepAlive, 75*time.Second)
	cfg.HeaderBytes = cmp.Or(cfg.HeaderBytes, 64<<10)
	cfg.MaxConns = cmp.Or(cfg.MaxConns, 16384)
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, 10*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Registerer == nil {
		cfg.Registerer = prometheus.NewRegistry()
	}
	nobodys, err := selfSigned()
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer), nobodys: nobodys,
		changed: make(chan struct{}), ready: make(chan struct{}), complain: map[netstate.Name][]string{},
	}
	s.table.Store(NewTable(netstate.Empty(""), cfg.Defaults, nil))
	s.proxy = newProxy(cfg, &s.table, s.metrics)
	return s, nil
}

// Set makes state what requests are routed by, and with state.Ingress begins or ends
// to listen. Requests under way end as they began; no connection is closed. Calls must
// not overlap.
func (s *Server) Set(state *netstate.State) {
	before := s.table.Load()
	if !state.Ingress {
		state = netstate.Empty(state.Node) // nothing is read for nobody
	}
	table := NewTable(state, s.cfg.Defaults, before)
	s.table.Store(table)
	s.metrics.revision.Set(float64(table.Revision))
	s.metrics.faults.Set(float64(len(table.Faults)))
	for name := range before.Served {
		if !table.Served[name] {
			s.metrics.forget(name)
		}
	}
	for name, faults := range table.Faults {
		if !slices.Equal(faults, s.complain[name]) {
			s.log.Warn("part of an Ingress cannot be served", "ingress", name, "faults", faults)
		}
	}
	s.complain = table.Faults
	s.mu.Lock()
	defer s.mu.Unlock()
	if state.Ingress != s.enabled {
		s.enabled = state.Ingress
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

func (s *Server) isEnabled() (bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enabled, s.changed
}

// Ready is closed once the server listens for the first time.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addresses returns where the server listens, plain and with TLS: after Ready.
func (s *Server) Addresses() (plain, secure net.Addr) { return *s.http.Load(), *s.https.Load() }

// Run listens while the node is one that serves Ingresses, until ctx ends. While an
// address cannot be bound, it says so and tries again.
func (s *Server) Run(ctx context.Context) error {
	defer s.proxy.close()
	complaint := ""
	for ctx.Err() == nil {
		enabled, changed := s.isEnabled()
		var again <-chan time.Time
		if enabled {
			while, stop := context.WithCancel(ctx)
			go func() {
				defer stop()
				select {
				case <-changed:
				case <-while.Done():
				}
			}()
			err := s.serve(while)
			if stop(); err == nil {
				complaint = ""
				continue
			}
			if err.Error() != complaint {
				complaint = err.Error()
				s.log.Error("Ingresses cannot be served; trying again", "pause", bindPause, "err", err)
			}
			again = time.After(bindPause)
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again:
		}
	}
	return nil
}

// serve listens on both addresses until ctx ends.
func (s *Server) serve(ctx context.Context) error {
	var config net.ListenConfig
	plain, err := config.Listen(ctx, "tcp", s.cfg.HTTP)
	if err != nil {
		return err
	}
	secure, err := config.Listen(ctx, "tcp", s.cfg.HTTPS)
	if err != nil {
		plain.Close()
		return err
	}
	at, atTLS := plain.Addr(), secure.Addr()
	s.http.Store(&at)
	s.https.Store(&atTLS)
	servers := []*http.Server{s.server(), s.server()}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return servers[0].Serve(netutil.LimitListener(plain, s.cfg.MaxConns)) })
	g.Go(func() error { return servers[1].ServeTLS(netutil.LimitListener(secure, s.cfg.MaxConns), "", "") })
	for _, server := range servers {
		g.Go(func() error {
			<-ctx.Done()
			drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
			defer cancel()
			if server.Shutdown(drain) != nil {
				server.Close()
			}
			return nil
		})
	}
	s.log.Info("serving Ingresses", "http", at, "https", atTLS)
	s.once.Do(func() { close(s.ready) })
	err = g.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *Server) server() *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // gRPC without TLS
	return &http.Server{
		Handler: s.proxy, Protocols: protocols,
		ReadHeaderTimeout: s.cfg.HeaderTimeout, IdleTimeout: s.cfg.KeepAlive, MaxHeaderBytes: s.cfg.HeaderBytes,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: 30 * time.Second, WriteByteTimeout: s.cfg.ClientTimeout},
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		TLSConfig:                    &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificate},
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				s.metrics.connections.Inc()
			case http.StateClosed, http.StateHijacked:
				s.metrics.connections.Dec()
			default:
			}
		},
	}
}

// certificate chooses what a client is shown: the newest that fits.
func (s *Server) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := s.table.Load().Certificate(hello.ServerName); cert != nil {
		return cert, nil
	}
	return s.nobodys, nil
}
