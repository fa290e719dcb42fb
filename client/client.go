package client

import (
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// Config says whom to talk to and as whom. The zero value of an optional field
// is its default.
type Config struct {
	Peers       []string         // required; the API addresses of peers, host:port, in any order
	Credentials *pki.Credentials // required; who we are and which cluster we trust

	// PingInterval is how long a connection may be silent before it is tested,
	// PingTimeout how long the answer may take: together the time in which a peer
	// that vanished without a word is noticed. Optional; 0.8 s and 1 s.
	PingInterval, PingTimeout time.Duration
	DialTimeout               time.Duration // optional; 5 s: for TCP and TLS, to one peer
	HedgeDelay                time.Duration // optional; 250 ms: before the next peer is dialed beside one that is slow
	ReadHedge                 time.Duration // optional; 500 ms: before another peer is asked, too, what one does not answer
	RetryFor                  time.Duration // optional; 10 s: how long a unary call is retried if its context sets no earlier end

	// OnlyThese: talk to Peers alone. Else the client learns, from each answer, which
	// peers the cluster has, and calls OnPeers, if it is set, when that changes;
	// OnPeers must not call the client.
	OnlyThese bool
	OnPeers   func(addresses []string)

	// Header is sent with each request, beside what the call itself says. Optional.
	Header http.Header

	Logger *slog.Logger // optional; none
}

// Client is a connection to whichever peer answers. Make it with [New].
type Client struct {
	cfg       Config
	log       *slog.Logger
	transport *http.Transport
	connect   *connect.Client

	// dialing is held (it has one slot) by the one who makes a connection; the
	// others wait for what comes of it.
	dialing chan struct{}

	mu      sync.Mutex // never held while calling into http.ClientConn.Close or RoundTrip: these call back
	peers   []*peer    // in the order in which they are tried, but for failures
	current *conn      // nil: the next call dials
	conns   map[*conn]struct{}
	last    string   // address of the last connection, to log a move
	learned string   // the newest list of peers that one of them sent
	named   []string // the list of peers, by whoever has the say
	hints   []string // by Suggest

	seen   atomic.Int64 // the highest revision that an answer showed
	closed bool
}

// peer is an address that may be tried.
type peer struct {
	address string
	failed  time.Time // zero: has not failed since it last worked
}

// New returns a client for cfg. It dials with the first call.
func New(cfg Config) *Client {
	setDefault(&cfg.PingInterval, 800*time.Millisecond)
	setDefault(&cfg.PingTimeout, time.Second)
	setDefault(&cfg.ReadHedge, 500*time.Millisecond)
	setDefault(&cfg.DialTimeout, 5*time.Second)
	setDefault(&cfg.HedgeDelay, 250*time.Millisecond)
	setDefault(&cfg.RetryFor, 10*time.Second)
	c := &Client{
		cfg:     cfg,
		log:     cfg.Logger,
		dialing: make(chan struct{}, 1),
		conns:   make(map[*conn]struct{}),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.transport = newHTTPTransport(cfg)
	c.connect = connect.NewClient(
		connecthttp.NewTransport(httpClient{c}, "https://holdfast", // httpClient puts the peer's address in
			connecthttp.WithReadMaxBytes(readMaxBytes),
			connecthttp.WithCompressMinBytes(compressMinBytes),
		),
		c.retrying,
	)
	c.setPeers(cfg.Peers)
	return c
}

const (
	// readMaxBytes bounds one answer. The largest is a page of a list: up to 64 MiB,
	// one object more, and what names them.
	readMaxBytes = 96 << 20
	// compressMinBytes: compressing less costs more than sending it.
	compressMinBytes = 4 << 10
)

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

// Connect returns the client for generated NewXServiceClient functions.
func (c *Client) Connect() *connect.Client { return c.connect }

// Objects returns a client of the ObjectService.
func (c *Client) Objects() holdfastv1connect.ObjectServiceClient {
	return holdfastv1connect.NewObjectServiceClient(c.connect)
}

// Pods returns a client of the PodService.
func (c *Client) Pods() holdfastv1connect.PodServiceClient {
	return holdfastv1connect.NewPodServiceClient(c.connect)
}

// Cluster returns a client of the ClusterService.
func (c *Client) Cluster() holdfastv1connect.ClusterServiceClient {
	return holdfastv1connect.NewClusterServiceClient(c.connect)
}

// Access returns a client of the AccessService.
func (c *Client) Access() holdfastv1connect.AccessServiceClient {
	return holdfastv1connect.NewAccessServiceClient(c.connect)
}

// Agent returns a client of the AgentService.
func (c *Client) Agent() agentv1connect.AgentServiceClient {
	return agentv1connect.NewAgentServiceClient(c.connect)
}

// SetPeers replaces the addresses to try. If the peer in use is no longer among
// them, the next call goes to another. An empty list is ignored: a client that
// knows nobody could never learn of anybody again.
//
// From then on the list is the caller's: the client learns no more.
func (c *Client) SetPeers(addresses []string) {
	c.mu.Lock()
	c.cfg.OnlyThese = true
	c.mu.Unlock()
	c.setPeers(addresses)
}

// Suggest names addresses at which there may be peers, as gossip sees them. They are
// tried beside those of the list, whoever changes that, until the next suggestion.
func (c *Client) Suggest(addresses []string) {
	c.mu.Lock()
	c.hints = slices.Clone(addresses)
	named := c.named
	c.mu.Unlock()
	c.setPeers(named)
}

func (c *Client) setPeers(addresses []string) {
	c.mu.Lock()
	if len(addresses) == 0 {
		c.mu.Unlock()
		return
	}
	old := c.peers
	c.named = slices.Clone(addresses)
	c.peers = make([]*peer, 0, len(addresses)+len(c.hints))
	for _, address := range slices.Concat(addresses, c.hints) {
		if slices.ContainsFunc(c.peers, func(p *peer) bool { return p.address == address }) {
			continue
		}
		p := &peer{address: address}
		if i := slices.IndexFunc(old, func(p *peer) bool { return p.address == address }); i >= 0 {
			p = old[i]
		}
		c.peers = append(c.peers, p)
	}
	if len(old) == 0 {
		shuffle(c.peers) // clients with the same list should not all be with its first peer
	}
	var idle []*conn
	if c.current != nil && !c.knows(c.current.address) {
		c.log.Info("peer is no longer of the cluster, moving to another", "peer", c.current.address)
		c.current = nil
		idle = c.idleConns()
	}
	c.mu.Unlock()
	closeAll(idle)
}

// knows reports whether address is among the peers. c.mu is held.
func (c *Client) knows(address string) bool {
	return slices.ContainsFunc(c.peers, func(p *peer) bool { return p.address == address })
}

// Peers returns the addresses that are tried.
func (c *Client) Peers() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]string, len(c.peers))
	for i, p := range c.peers {
		out[i] = p.address
	}
	return out
}

// Peer returns the address of the peer in use, or "" when there is no connection.
func (c *Client) Peer() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil || c.current.http.Err() != nil {
		return ""
	}
	return c.current.address
}

// Switch makes the next call go to another peer, if there is one that answers.
// Open streams stay where they are until they end. The reason is for the log.
func (c *Client) Switch(reason string) {
	c.mu.Lock()
	current := c.current
	c.mu.Unlock()
	if current != nil {
		c.leave(current, errors.New(reason))
	}
}

// Close ends all connections, and with them every call that is open. Later calls
// fail.
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	c.current = nil
	conns := make([]*conn, 0, len(c.conns))
	for cn := range c.conns {
		conns = append(conns, cn)
	}
	c.mu.Unlock()
	closeAll(conns)
}

// errClosed is the cause of failures after Close.
var errClosed = errors.New("the client is closed")
