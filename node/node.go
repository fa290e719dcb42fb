package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/ingress"
	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/volume"
	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/gossip"
	"github.com/holdfast-io/holdfast/internal/datadir"
	"github.com/holdfast-io/holdfast/pki"
)

// Config says which node to be.
type Config struct {
	// DataDir holds all that the node keeps. Required.
	DataDir string
	// Name is the node's name, a DNS label. Optional: the host's name. It cannot
	// change once the directory is made.
	Name string
	// Advertise is the address at which other nodes reach this one. Optional: the
	// host's first global one.
	Advertise string
	// Gossip is where to gossip, host:port. Optional: ":7946".
	Gossip string
	// Join are API addresses of peers, and Token what they ask for. Used if the
	// directory belongs to no cluster yet.
	Join  []string
	Token string
	// StaticPods is a folder of manifests of pods to run whatever the peers say.
	// Optional.
	StaticPods string
	// Labels are put on the Node beside the well-known ones. Optional.
	Labels map[string]string
	// Mounts is what makes pods' volumes. Optional: the kernel; volume.Folders with a
	// runtime that is not one.
	Mounts volume.Mounts
	// Limits bound what pods may use of the machine. Optional.
	Limits agent.Limits
	// Ingress says how Ingresses are served while this node is chosen for it. Optional.
	Ingress ingress.Config

	Version string       // optional; shown as the node's version
	Logger  *slog.Logger // optional; discards
}

// record is node.json: what this data directory is.
type record struct {
	// Version of the directory's layout: 1.
	Version   int      `json:"version"`
	ClusterID string   `json:"clusterID"`
	Name      string   `json:"name"`
	Peers     []string `json:"peers"`
	Gossip    []string `json:"gossip"`
}

const layoutVersion = 1

// joinTimeout bounds the whole exchange of a token for a certificate.
const joinTimeout = 30 * time.Second

// Node is one node's process. Make it with Prepare.
type Node struct {
	cfg       Config
	rec       record
	log       *slog.Logger
	lock      *os.File
	creds     *pki.Credentials
	gossipKey []byte
	address   netip.Addr
}

// Prepare takes hold of the data directory and joins the cluster if that is still
// to be done. It returns a Node to Run, which must then be run or closed. Its
// errors are for people.
func Prepare(ctx context.Context, cfg Config) (_ *Node, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Logger}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	advertise := cfg.Advertise
	if advertise == "" {
		advertise = datadir.HostAddress()
	}
	if n.address, err = netip.ParseAddr(advertise); err != nil {
		return nil, fmt.Errorf("--advertise %s: want an IP address at which other nodes reach this one", advertise)
	}
	if n.lock, err = datadir.Lock(cfg.DataDir); err != nil {
		return nil, err
	}
	exists, err := datadir.ReadJSON(n.recordPath(), &n.rec, "delete the data directory and join the node again with a new token")
	if err != nil {
		return nil, err
	}
	if exists {
		return n, n.resume()
	}
	if len(cfg.Join) == 0 {
		return nil, fmt.Errorf("%s belongs to no cluster yet: join one with --join ADDRESS --token TOKEN (holdfast token create --role node makes a token)", cfg.DataDir)
	}
	return n, n.join(ctx)
}

// complete checks c and fills in what it leaves out.
func (c *Config) complete() error {
	var faults []error
	if c.DataDir == "" {
		faults = append(faults, errors.New("a data directory is needed: --data-dir"))
	}
	if len(c.Join) > 0 && c.Token == "" {
		faults = append(faults, errors.New("--join needs --token; any peer of the cluster makes one: holdfast token create --role node"))
	}
	if c.Name == "" {
		name, err := datadir.HostName()
		if err != nil {
			faults = append(faults, fmt.Errorf("the host's name cannot be read (%w): say --name", err))
		}
		c.Name = name
	}
	if err := pki.CheckName(c.Name); err != nil {
		faults = append(faults, fmt.Errorf("node name %q: %w", c.Name, err))
	}
	if c.Gossip == "" {
		c.Gossip = ":7946"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(faults...)
}

func (n *Node) recordPath() string    { return filepath.Join(n.cfg.DataDir, "node.json") }
func (n *Node) pkiDir() string        { return filepath.Join(n.cfg.DataDir, "pki") }
func (n *Node) gossipKeyPath() string { return filepath.Join(n.cfg.DataDir, "gossip.key") }

func (n *Node) join(ctx context.Context) error {
	token, err := pki.ParseToken(n.cfg.Token)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	got, err := client.Join(ctx, n.cfg.Join, token, pki.RoleNode, n.cfg.Name, n.address.String())
	if err != nil {
		return err
	}
	// There is no record, so what is there was left by a start that did not
	// finish.
	if err := os.RemoveAll(n.pkiDir()); err != nil {
		return err
	}
	if err := got.Credentials.Save(n.pkiDir()); err != nil {
		return err
	}
	if err := datadir.WriteFile(n.gossipKeyPath(), got.GossipKey); err != nil {
		return err
	}
	n.creds, n.gossipKey = got.Credentials, got.GossipKey
	n.rec = record{Version: layoutVersion, ClusterID: got.ClusterID, Name: n.cfg.Name, Peers: slices.Clone(got.Peers), Gossip: got.Gossip}
	for _, address := range n.cfg.Join { // one of them works from here
		if !slices.Contains(n.rec.Peers, address) {
			n.rec.Peers = append(n.rec.Peers, address)
		}
	}
	n.log.Info("joined cluster", "cluster", n.rec.ClusterID, "node", n.rec.Name)
	return datadir.WriteJSON(n.recordPath(), n.rec)
}

func (n *Node) resume() error {
	if n.rec.Version != layoutVersion {
		return fmt.Errorf("%s has layout version %d and this holdfast knows %d: use the version that wrote it", n.recordPath(), n.rec.Version, layoutVersion)
	}
	var err error
	if n.creds, err = pki.LoadCredentials(n.pkiDir()); err != nil {
		return err
	}
	if n.gossipKey, err = os.ReadFile(n.gossipKeyPath()); err != nil {
		return err
	}
	if n.cfg.Token != "" {
		token, err := pki.ParseToken(n.cfg.Token)
		if err != nil {
			return err
		}
		if !n.creds.Trusts(token.Pin) {
			return fmt.Errorf("%s belongs to cluster %s, and the token is for another one: use another --data-dir to join that, or leave --token out to go on with this", n.cfg.DataDir, n.rec.ClusterID)
		}
	}
	host, _ := datadir.HostName()
	if n.cfg.Name != n.rec.Name && n.cfg.Name != host {
		return fmt.Errorf("%s belongs to node %s, not %s: a node keeps its name; leave --name out or use another --data-dir", n.cfg.DataDir, n.rec.Name, n.cfg.Name)
	}
	return nil
}

// Name returns the node's name.
func (n *Node) Name() string { return n.rec.Name }

// ClusterID returns the cluster's id.
func (n *Node) ClusterID() string { return n.rec.ClusterID }

// Address returns the address at which other nodes reach this one.
func (n *Node) Address() netip.Addr { return n.address }

// DataDir returns the node's data directory.
func (n *Node) DataDir() string { return n.cfg.DataDir }

// Close frees what Prepare took, for a Node that will not be run.
func (n *Node) Close() {
	if n.lock != nil {
		n.lock.Close()
	}
}

// Run gossips and runs pods on rt and network until ctx ends or one of them
// fails, or returns [ErrAddressChanged]. Containers go on without it.
func (n *Node) Run(ctx context.Context, rt runtime.Runtime, network agent.Network) error {
	defer n.Close()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	g, err := gossip.New(gossip.Config{
		Name:      n.rec.Name,
		Role:      gossip.RoleNode,
		Listen:    n.cfg.Gossip,
		Advertise: n.address.String(),
		ClusterID: n.rec.ClusterID,
		Key:       n.gossipKey,
		Join:      func() []string { return n.rec.Gossip },
		Logger:    n.log.With("part", "gossip"),
	})
	if err != nil {
		return err
	}
	peers := client.New(client.Config{Peers: n.rec.Peers, Credentials: n.creds, Logger: n.log.With("part", "client")})
	defer peers.Close()
	_, _, ca, err := n.creds.PEM()
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Config{
		ClusterCA:  string(ca),
		Node:       n.rec.Name,
		Client:     peers,
		Runtime:    rt,
		Network:    network,
		Mounts:     n.cfg.Mounts,
		DataDir:    filepath.Join(n.cfg.DataDir, "agent"),
		Address:    n.address,
		Peers:      n.rec.Peers,
		Labels:     n.cfg.Labels,
		StaticPods: n.cfg.StaticPods,
		Limits:     n.cfg.Limits,
		Ingress:    n.cfg.Ingress,
		Version:    n.cfg.Version,
		Logger:     n.log.With("part", "agent"),
		Registerer: registry,
	})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.Run(ctx) })
	group.Go(func() error { return a.Run(ctx) })
	group.Go(func() error { return n.rememberPeers(ctx, g, peers) })
	group.Go(func() error { return n.keepCertificate(ctx, peers) })
	group.Go(func() error { return n.watchAddress(ctx) })
	return group.Wait()
}

// renewTimeout bounds the exchange of a certificate for another one.
const renewTimeout = 30 * time.Second

// keepCertificate has the node's certificate renewed in time, and writes it down.
func (n *Node) keepCertificate(ctx context.Context, peers *client.Client) error {
	n.creds.KeepRenewed(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, renewTimeout)
		defer cancel()
		if err := peers.Renew(ctx, n.creds); err != nil {
			return err
		}
		_, until := n.creds.Validity()
		n.log.Info("certificate renewed", "expires", until)
		return n.creds.Save(n.pkiDir())
	}, func(err error) { n.log.Error("certificate not renewed, trying again", "err", err) })
	return nil
}

// rememberPeers tells the client where gossip sees peers, and writes it down for the
// next start: all that this node knows today may have moved by then, and the peers
// that it was told of when it joined may be gone before one has named the others.
func (n *Node) rememberPeers(ctx context.Context, g *gossip.Gossip, known *client.Client) error {
	written := n.rec
	for {
		changed := g.Changed()
		if peers, addresses := peersOf(g.Members()); len(peers) > 0 {
			known.Suggest(peers)
			rec := written
			rec.Peers, rec.Gossip = peers, addresses
			if !slices.Equal(rec.Peers, written.Peers) || !slices.Equal(rec.Gossip, written.Gossip) {
				if err := datadir.WriteJSON(n.recordPath(), rec); err != nil {
					n.log.Warn("addresses of peers not written", "err", err)
				} else {
					written = rec
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// peersOf returns the API and gossip addresses of all peers that gossip knows.
func peersOf(members []gossip.Member) (api, addresses []string) {
	for _, member := range members {
		if member.Role == gossip.RolePeer && member.API != "" {
			api = append(api, member.API)
			addresses = append(addresses, member.Address)
		}
	}
	slices.Sort(api)
	slices.Sort(addresses)
	return api, addresses
}
