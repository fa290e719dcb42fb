package peer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/gossip"
	"github.com/holdfast-io/holdfast/internal/datadir"
	"github.com/holdfast-io/holdfast/internal/faults"
	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/raftstore"
)

// Ports that a peer and a node use unless told otherwise.
const (
	DefaultPort       = 7443 // API, raft and agents
	DefaultGossipPort = 7946
)

// FaultSocket is the file in the data directory at which faults are set; see
// Config.FaultSocket and faults.Control.
const FaultSocket = "faults.sock"

// Config says which peer to be.
type Config struct {
	// DataDir holds all that the peer keeps. Required.
	DataDir string
	// Name is the peer's name and raft id, a DNS label. Optional: the host's
	// name. It cannot change once the directory is made.
	Name string
	// Listen is where to accept API and raft, host:port. Optional: ":7443".
	Listen string
	// Gossip is where to gossip, host:port. Optional: ":7946".
	Gossip string
	// EtcdAPI is where to serve etcd's API, host:port. Optional: nowhere.
	EtcdAPI string
	// Advertise is the address, without port, at which others reach this peer.
	// Optional: the listening address, or the host's first global one.
	Advertise string

	// Init makes the directory the first peer of a new cluster, if it holds no
	// peer yet.
	Init bool
	// Join are API addresses of peers to join, and Token what they ask for: the
	// token is used if the directory holds no peer yet. Later, Join helps to find
	// peers whose addresses have changed.
	Join  []string
	Token string
	// Learner keeps a peer that joins from getting a vote by itself.
	Learner bool

	// PodCIDR and ServiceCIDR are where pods' and Services' addresses come from, for a
	// new cluster, which keeps them. Optional: [DefaultPodCIDR] and
	// object.DefaultServiceCIDR; later, what the cluster was made with.
	PodCIDR, ServiceCIDR netip.Prefix

	// FaultSocket lets others set faults on this peer, through a socket of that
	// name in DataDir: network, disk and clock then fail on command. For tests.
	FaultSocket bool

	Version string       // optional; shown in Status
	Logger  *slog.Logger // optional; discards
}

// Peer is one peer's process. Make it with Prepare.
type Peer struct {
	cfg      Config
	rec      record
	log      *slog.Logger
	registry *prometheus.Registry

	faults    *faults.Plane // nil unless there is a FaultSocket
	lock      *os.File
	creds     *pki.Credentials
	ca        *pki.CA
	gossipKey []byte
	// incarnation is the cluster's, as it was told at joining.
	incarnation uint64
	listener    net.Listener
	etcd        net.Listener // of etcd's API; nil: it is not served
	remotes     *remotes
	mux         *mux
	store       *raftstore.Store
	gossip      *gossip.Gossip

	ready chan struct{}
}

// joinTimeout bounds the whole exchange of a token for a certificate.
const joinTimeout = 30 * time.Second

// Prepare takes hold of the data directory, makes it a peer's if it is not yet,
// and opens what the peer needs: lock, listener, store. It returns a Peer to Run,
// which must then be run or closed. Its errors are for people.
func Prepare(ctx context.Context, cfg Config) (_ *Peer, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	p := &Peer{cfg: cfg, log: cfg.Logger, registry: prometheus.NewRegistry(), ready: make(chan struct{})}
	if cfg.FaultSocket {
		p.faults = faults.New(uint64(time.Now().UnixNano()))
		p.log.Warn("faults can be set on this peer by whoever may open its data directory", "socket", filepath.Join(cfg.DataDir, FaultSocket))
	}
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.lock, err = datadir.Lock(cfg.DataDir); err != nil {
		return nil, err
	}
	rec, exists, err := readRecord(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if !exists && !cfg.Init && len(cfg.Join) == 0 {
		return nil, fmt.Errorf("%s holds no peer yet: start a new cluster with --init, or join one with --join ADDRESS --token TOKEN", cfg.DataDir)
	}
	if p.listener, err = listen("--listen", cfg.Listen); err != nil {
		return nil, err
	}
	if cfg.EtcdAPI != "" {
		if p.etcd, err = listen("--etcd-api", cfg.EtcdAPI); err != nil {
			return nil, err
		}
	}
	p.rec = rec
	address := advertised(cfg.Advertise, p.listener.Addr())

	switch {
	case exists:
		err = p.resume()
	case cfg.Init:
		err = p.found(address)
	default:
		err = p.join(ctx, address)
	}
	if err == nil {
		err = p.setRanges()
	}
	if err != nil {
		return nil, err
	}
	if p.rec.Address != address {
		p.log.Info("address changed", "from", p.rec.Address, "to", address)
		p.rec.Address = address
		if err := writeRecord(cfg.DataDir, p.rec); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// complete checks c and fills in what it leaves out.
func (c *Config) complete() error {
	var faults []error
	if c.DataDir == "" {
		faults = append(faults, errors.New("a data directory is needed: --data-dir"))
	}
	if c.Init && len(c.Join) > 0 {
		faults = append(faults, errors.New("--init starts a new cluster and --join enters one: say which"))
	}
	if len(c.Join) > 0 && c.Token == "" && !c.joinedBefore() {
		faults = append(faults, errors.New("--join needs --token; any peer of the cluster makes one: holdfast token create --role peer"))
	}
	if c.Name == "" {
		name, err := datadir.HostName()
		if err != nil {
			faults = append(faults, fmt.Errorf("the host's name cannot be read (%w): say --name", err))
		}
		c.Name = name
	}
	if err := pki.CheckName(c.Name); err != nil {
		faults = append(faults, fmt.Errorf("peer name %q: %w", c.Name, err))
	}
	if c.Listen == "" {
		c.Listen = fmt.Sprintf(":%d", DefaultPort)
	}
	if c.Gossip == "" {
		c.Gossip = fmt.Sprintf(":%d", DefaultGossipPort)
	}
	for flag, address := range map[string]string{"--listen": c.Listen, "--gossip": c.Gossip, "--etcd-api": c.EtcdAPI} {
		if address == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			faults = append(faults, fmt.Errorf("%s %s: want host:port or :port", flag, address))
		}
	}
	if err := checkRanges(c.PodCIDR, c.ServiceCIDR); err != nil {
		faults = append(faults, err)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(faults...)
}

// joinedBefore reports whether the data directory holds a peer.
func (c *Config) joinedBefore() bool {
	_, err := os.Stat(recordPath(c.DataDir))
	return err == nil
}

func listen(flag, address string) (net.Listener, error) {
	listener, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("port %s is in use by another process: stop it, or say another %s", address, flag)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("no permission to listen on %s: choose a port above 1023, or run as root", address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("%s is not an address of this machine: correct %s", address, flag)
	}
	return listener, err
}

// advertised returns host:port at which others reach a listener on addr.
func advertised(host string, addr net.Addr) string {
	bound := addr.(*net.TCPAddr)
	if host == "" && !bound.IP.IsUnspecified() {
		host = bound.IP.String()
	}
	if host == "" {
		host = datadir.HostAddress()
	}
	return net.JoinHostPort(host, fmt.Sprint(bound.Port))
}

func (p *Peer) pkiDir() string        { return filepath.Join(p.cfg.DataDir, "pki") }
func (p *Peer) caDir() string         { return filepath.Join(p.cfg.DataDir, "ca") }
func (p *Peer) gossipKeyPath() string { return filepath.Join(p.cfg.DataDir, "gossip.key") }

// found makes a new cluster whose first peer this is.
func (p *Peer) found(address string) error {
	var id [8]byte
	rand.Read(id[:])
	p.rec = record{ClusterID: hex.EncodeToString(id[:]), ID: p.cfg.Name, Address: address, Member: true, PodCIDR: rangeText(p.cfg.PodCIDR), ServiceCIDR: rangeText(p.cfg.ServiceCIDR)}
	ca, err := pki.NewCA(p.rec.ClusterID)
	if err != nil {
		return err
	}
	creds, err := ca.Issue(pki.Identity{Cluster: p.rec.ClusterID, Role: pki.RolePeer, Name: p.rec.ID})
	if err != nil {
		return err
	}
	key := make([]byte, 32)
	rand.Read(key)
	if err := p.keep(creds, ca, key); err != nil {
		return err
	}
	if err := p.openStore(); err != nil {
		return err
	}
	// A crash before the record is written leaves a directory that belongs to
	// nobody, and a store of a cluster that nobody knows: begin again.
	if err := p.store.Bootstrap(); err != nil {
		return err
	}
	p.log.Info("new cluster", "cluster", p.rec.ClusterID, "peer", p.rec.ID)
	return writeRecord(p.cfg.DataDir, p.rec)
}

// join trades the token for a certificate and keeps what the cluster gave.
func (p *Peer) join(ctx context.Context, address string) error {
	token, err := pki.ParseToken(p.cfg.Token)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	got, err := client.Join(ctx, p.cfg.Join, token, pki.RolePeer, p.cfg.Name, address)
	if err != nil {
		return err
	}
	ca, err := pki.LoadCA(got.CA, got.CAKey)
	if err != nil {
		return fmt.Errorf("the CA that the cluster sent: %w", err)
	}
	p.incarnation = got.Incarnation
	p.rec = record{ClusterID: got.ClusterID, ID: p.cfg.Name, Address: address, Peers: got.Peers, Gossip: got.Gossip, PodCIDR: got.PodCIDR, ServiceCIDR: got.ServiceCIDR}
	if err := p.keep(got.Credentials, ca, got.GossipKey); err != nil {
		return err
	}
	if err := p.openStore(); err != nil {
		return err
	}
	p.log.Info("joined cluster", "cluster", p.rec.ClusterID, "peer", p.rec.ID)
	return writeRecord(p.cfg.DataDir, p.rec)
}

// keep stores the peer's secrets and holds them.
func (p *Peer) keep(creds *pki.Credentials, ca *pki.CA, gossipKey []byte) error {
	// There is no record, so what is there was left by a start that did not
	// finish. It must not mix with the new.
	for _, dir := range []string{filepath.Join(p.cfg.DataDir, "raft"), p.pkiDir(), p.caDir()} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := creds.Save(p.pkiDir()); err != nil {
		return err
	}
	if err := ca.Save(p.caDir()); err != nil {
		return err
	}
	if err := datadir.WriteFile(p.gossipKeyPath(), gossipKey); err != nil {
		return err
	}
	p.creds, p.ca, p.gossipKey = creds, ca, gossipKey
	return nil
}

// resume opens a directory that belongs to a cluster already.
func (p *Peer) resume() error {
	var err error
	if p.ca, err = pki.LoadCADir(p.caDir()); err != nil {
		return err
	}
	if p.creds, err = pki.LoadOrRenew(p.pkiDir(), p.ca); err != nil {
		return err
	}
	if p.gossipKey, err = os.ReadFile(p.gossipKeyPath()); err != nil {
		return err
	}
	if p.cfg.Token != "" {
		token, err := pki.ParseToken(p.cfg.Token)
		if err != nil {
			return err
		}
		if token.Pin != p.ca.Pin() {
			return fmt.Errorf("%s belongs to cluster %s, and the token is for another one: use another --data-dir to join that, or leave --token out to go on with this", p.cfg.DataDir, p.rec.ClusterID)
		}
	}
	host, _ := datadir.HostName() // may have changed since; only a name that was asked for is wrong
	if p.cfg.Name != p.rec.ID && p.cfg.Name != host {
		return fmt.Errorf("%s belongs to peer %s, not %s: a peer keeps its name; leave --name out or use another --data-dir", p.cfg.DataDir, p.rec.ID, p.cfg.Name)
	}
	if err := p.openStore(); err != nil {
		return err
	}
	if p.store.Rejoins() {
		// The cluster went on without this peer. It is none of those that vote, and
		// asks to be let in again.
		p.rec.Member = false
		return nil
	}
	if p.rec.Member && !p.store.HasState() {
		return fmt.Errorf("%s is empty, but this peer has taken part in the cluster: it may have forgotten votes and entries that others count on, so it must not return. Remove it (holdfast peer remove %s, on another peer), delete %s, and join under another name",
			filepath.Join(p.cfg.DataDir, "raft"), p.rec.ID, p.cfg.DataDir)
	}
	return nil
}

// ID returns the peer's name.
func (p *Peer) ID() string { return p.rec.ID }

// ClusterID returns the cluster's id.
func (p *Peer) ClusterID() string { return p.rec.ClusterID }

// Address returns host:port at which others reach this peer.
func (p *Peer) Address() string { return p.rec.Address }

// Ready is closed once the peer answers requests and knows a leader.
func (p *Peer) Ready() <-chan struct{} { return p.ready }

// AdminContext makes an administrator's certificate and returns all that a
// client needs to use the cluster with it.
func (p *Peer) AdminContext() (client.Context, error) {
	creds, err := p.ca.Issue(pki.Identity{Cluster: p.rec.ClusterID, Role: pki.RoleAdmin, Name: "admin"})
	if err != nil {
		return client.Context{}, err
	}
	return client.NewContext("holdfast-"+p.rec.ClusterID[:6], []string{p.rec.Address}, creds)
}

// Close frees what Prepare took, for a Peer that will not be run.
func (p *Peer) Close() {
	if p.listener != nil {
		p.listener.Close()
	}
	if p.etcd != nil {
		p.etcd.Close()
	}
	if p.lock != nil {
		p.lock.Close()
	}
}
