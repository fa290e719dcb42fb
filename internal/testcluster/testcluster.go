// Package testcluster runs a whole cluster inside a test: real peers and nodes,
// each put together as in production, with TLS, raft and gossip over loopback
// addresses of their own. Only containers and the pods' network are pretended.
package testcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/fake"
	"github.com/holdfast-io/holdfast/agent/volume"
	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/node"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/peer"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// Patience bounds every wait of a test for the cluster. It is no expectation of
// speed: a machine that is busy with other tests must not fail one.
const Patience = 60 * time.Second

// Config says how large the cluster is.
type Config struct {
	Peers int // optional; 1
	Nodes int // optional; 0
	// Log gets what all machines say at debug level. Optional: the test's output gets
	// what they say at level info.
	Log io.Writer
}

// Cluster is a running cluster. Its methods fail the test on error and are to be
// called from the test's goroutine.
type Cluster struct {
	t     testing.TB
	Peers []*Machine
	Nodes []*Machine

	admin  client.Context
	client *client.Client
	log    io.Writer
}

// Machine is a peer or a node: something that runs, stops and starts again with
// what it had on its disk.
type Machine struct {
	Name    string
	Address string // IP
	Dir     string // of its data

	cluster *Cluster
	// Seeds are what the machine is told, from its next start on, of where peers
	// are; nil: where the first one was at the beginning.
	Seeds []string

	start  func(ctx context.Context) (run func(context.Context) error, err error)
	cancel context.CancelFunc
	done   chan error
}

// Start brings a cluster up and takes it down when the test ends.
func Start(t testing.TB, cfg Config) *Cluster {
	t.Helper()
	c := &Cluster{t: t, log: cfg.Log}
	network := fmt.Sprintf("127.%d.%d", 64+rand.IntN(128), rand.IntN(256))
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()

	for i := range max(cfg.Peers, 1) {
		c.Peers = append(c.Peers, c.peer(fmt.Sprintf("p%d", i+1), fmt.Sprintf("%s.%d", network, 1+i), i == 0))
		c.Peers[i].Start()
		if i == 0 {
			// The first one has made the cluster; the others join it.
			c.client = c.newClient(c.Peers[0])
			c.WaitFor(ctx, "a leader", func() (bool, string) {
				status, err := c.client.Cluster().Status(ctx, &holdfastv1.StatusRequest{})
				return err == nil && status.GetQuorum(), fmt.Sprint(err)
			})
		}
	}
	for i := range cfg.Nodes {
		c.Nodes = append(c.Nodes, c.node(fmt.Sprintf("n%d", i+1), fmt.Sprintf("%s.%d", network, 101+i)))
		c.Nodes[i].Start()
	}
	c.WaitFor(ctx, "all peers to vote", func() (bool, string) {
		status, err := c.client.Cluster().Status(ctx, &holdfastv1.StatusRequest{})
		if err != nil {
			return false, err.Error()
		}
		voters := 0
		for _, p := range status.GetPeers() {
			if p.GetVoter() {
				voters++
			}
		}
		return voters == len(c.Peers), fmt.Sprintf("%d of %d vote", voters, len(c.Peers))
	})
	c.WaitFor(ctx, "all nodes to be ready", func() (bool, string) {
		ready := 0
		for _, obj := range c.List("Node", "") {
			if object.NodeReady(obj.(*corev1.Node)) {
				ready++
			}
		}
		return ready == len(c.Nodes), fmt.Sprintf("%d of %d ready", ready, len(c.Nodes))
	})
	return c
}

func (c *Cluster) logger(name string) *slog.Logger {
	if c.log != nil {
		return slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("machine", name)
	}
	return slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})).With("machine", name)
}

func (c *Cluster) peer(name, address string, first bool) *Machine {
	m := &Machine{Name: name, Address: address, Dir: filepath.Join(c.t.TempDir(), name), cluster: c}
	dir, token := m.Dir, ""
	m.start = func(ctx context.Context) (func(context.Context) error, error) {
		cfg := peer.Config{
			DataDir: dir, Name: name, Listen: m.Address + ":7443", Gossip: m.Address + ":7946", Advertise: m.Address,
			Init: first, Version: "test", Logger: c.logger(name),
		}
		if !first {
			if token == "" {
				token = c.token(ctx, holdfastv1.Role_ROLE_PEER)
			}
			cfg.Join, cfg.Token = apiAddresses(c.Peers[:1]), token
		}
		if m.Seeds != nil {
			cfg.Join, cfg.Init = m.Seeds, false
		}
		p, err := peer.Prepare(ctx, cfg)
		if err != nil {
			return nil, err
		}
		if first && c.admin.Name == "" {
			if c.admin, err = p.AdminContext(); err != nil {
				return nil, err
			}
		}
		return p.Run, nil
	}
	return m
}

func (c *Cluster) node(name, address string) *Machine {
	m := &Machine{Name: name, Address: address, Dir: filepath.Join(c.t.TempDir(), name), cluster: c}
	dir, token := m.Dir, ""
	rt, network := fake.New(fake.Config{}), fake.NewNetwork()
	m.start = func(ctx context.Context) (func(context.Context) error, error) {
		if token == "" {
			token = c.token(ctx, holdfastv1.Role_ROLE_NODE)
		}
		cfg := node.Config{
			DataDir: dir, Name: name, Advertise: address, Gossip: address + ":7946", Version: "test", Logger: c.logger(name),
			Join: apiAddresses(c.Peers[:1]), Token: token, Mounts: volume.Folders{},
			Limits: agent.Limits{Eviction: []agent.Threshold{}}, // the machine is not the nodes'
		}
		n, err := node.Prepare(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) error { return n.Run(ctx, rt, network) }, nil
	}
	return m
}

func (c *Cluster) token(ctx context.Context, role holdfastv1.Role) string {
	c.t.Helper()
	response, err := c.client.Cluster().CreateToken(ctx, &holdfastv1.CreateTokenRequest{Role: role, Ttl: durationpb.New(time.Hour)})
	if err != nil {
		c.t.Fatalf("create token: %v", err)
	}
	return response.GetToken()
}

// Start starts a machine that does not run.
func (m *Machine) Start() {
	t := m.cluster.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	run, err := m.start(ctx)
	if err != nil {
		t.Fatalf("start %s: %v", m.Name, err)
	}
	life, stop := context.WithCancel(context.Background())
	m.cancel, m.done = stop, make(chan error, 1)
	go func() {
		// As `holdfast server` does.
		err := run(life)
		for errors.Is(err, raftstore.ErrRestart) && life.Err() == nil {
			if run, err = m.start(life); err == nil {
				err = run(life)
			}
		}
		m.done <- err
	}()
	t.Cleanup(m.Stop)
}

// Stop ends the machine's process. What it had on disk, and a node's containers,
// stay.
func (m *Machine) Stop() {
	t := m.cluster.t
	t.Helper()
	if m.cancel == nil {
		return
	}
	m.cancel()
	m.cancel = nil
	select {
	case err := <-m.done:
		if err != nil {
			t.Errorf("%s: %v", m.Name, err)
		}
	case <-time.After(Patience):
		t.Errorf("%s has not stopped after %v", m.Name, Patience)
	}
}

func (c *Cluster) newClient(peers ...*Machine) *client.Client {
	c.t.Helper()
	creds, err := c.admin.Credentials()
	if err != nil {
		c.t.Fatalf("credentials: %v", err)
	}
	admin := client.New(client.Config{Peers: apiAddresses(peers), Credentials: creds})
	c.t.Cleanup(admin.Close)
	return admin
}

func apiAddresses(peers []*Machine) []string {
	var addresses []string
	for _, p := range peers {
		addresses = append(addresses, p.Address+":7443")
	}
	return addresses
}

// Context returns what a CLI needs to use the cluster as an administrator.
func (c *Cluster) Context() client.Context {
	context := c.admin
	context.Peers = apiAddresses(c.Peers)
	return context
}

// Client returns an administrator's client to any peer.
func (c *Cluster) Client() *client.Client {
	c.client.SetPeers(apiAddresses(c.Peers))
	return c.client
}

// Client returns an administrator's client to this peer alone.
func (m *Machine) Client() *client.Client { return m.cluster.newClient(m) }

// Leader returns the peer that leads, once one does that runs.
func (c *Cluster) Leader() *Machine {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), Patience)
	defer cancel()
	var leader *Machine
	c.WaitFor(ctx, "a leader", func() (bool, string) {
		status, err := c.Client().Cluster().Status(ctx, &holdfastv1.StatusRequest{})
		if err != nil {
			return false, err.Error()
		}
		for _, p := range c.Peers {
			if p.Name == status.GetLeader() && p.cancel != nil {
				leader = p
			}
		}
		return leader != nil && status.GetQuorum(), fmt.Sprintf("%s says that %q leads, quorum %v", status.GetServedBy(), status.GetLeader(), status.GetQuorum())
	})
	return leader
}

// Apply applies a manifest.
func (c *Cluster) Apply(manifest string) {
	c.t.Helper()
	documents, err := object.ParseManifests("test.yaml", []byte(manifest))
	if err != nil {
		c.t.Fatal(err)
	}
	request := &holdfastv1.ApplyRequest{FieldManager: "test"}
	for _, document := range documents {
		data, err := object.Encode(document.Object)
		if err != nil {
			c.t.Fatal(err)
		}
		request.Objects = append(request.Objects, &holdfastv1.Object{Data: data})
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), Patience)
	defer cancel()
	if _, err := c.Client().Objects().Apply(ctx, request); err != nil {
		c.t.Fatalf("apply: %v", err)
	}
}

// List returns all objects of a kind, linearizably.
func (c *Cluster) List(kind, namespace string) []object.Object {
	c.t.Helper()
	resource, err := object.ResourceFor(kind)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), Patience)
	defer cancel()
	response, err := c.Client().Objects().List(ctx, &holdfastv1.ListRequest{
		Kind:      &holdfastv1.Kind{Group: resource.Group, Version: resource.Version, Kind: resource.Kind},
		Namespace: namespace,
	})
	if err != nil {
		c.t.Fatalf("list %s: %v", kind, err)
	}
	var objs []object.Object
	for _, encoded := range response.GetObjects() {
		obj, err := object.Decode(encoded.GetData(), encoded.GetRevision())
		if err != nil {
			c.t.Fatal(err)
		}
		objs = append(objs, obj)
	}
	return objs
}

// WaitFor returns once done does, and fails the test if that takes longer than
// ctx allows. The string says how far things are.
func (c *Cluster) WaitFor(ctx context.Context, what string, done func() (bool, string)) {
	c.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, state := done()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			c.t.Fatalf("waited for %s: %s", what, strings.TrimSpace(state))
		case <-tick.C:
		}
	}
}
