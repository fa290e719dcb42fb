package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"connectrpc.com/connect/v2/connectproto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/apiserver/eventlog"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

const testCluster = "test"

// cluster is some Servers, which their clients reach without a network.
type cluster struct {
	t       testing.TB
	store   *raftstore.Store // of the first one
	ca      *pki.CA
	servers map[string]*Server
	stops   map[string]func() // ends a Server's Run and returns after it
	gossip  fakeGossip

	mu   sync.Mutex
	down map[string]bool // peers that nobody can dial
}

type fakeGossip struct {
	mu      sync.Mutex
	members []Member
}

func (g *fakeGossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.members
}

func (g *fakeGossip) set(members ...Member) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members = members
}

// newCluster starts Servers peer-1 to peer-n over one store. That is peer-1's, so
// peer-1 is the leader. They stop with the test.
func newCluster(t testing.TB, n int, options ...func(*Config)) *cluster {
	t.Helper()
	return newClusterOn(t, n, storetest.New(t, func(cfg *raftstore.Config) { cfg.Logger = nil }), options...)
}

// newClusterOn is newCluster over a given store.
func newClusterOn(t testing.TB, n int, store *raftstore.Store, options ...func(*Config)) *cluster {
	t.Helper()
	stores := make(map[string]*raftstore.Store)
	for i := range n {
		stores[fmt.Sprint("peer-", i+1)] = store
	}
	return newServers(t, stores, options...)
}

// newRaftCluster starts Servers p1 to pn, each over a store of its own. It needs
// virtual time.
func newRaftCluster(t testing.TB, n int, options ...func(*Config)) (*cluster, *storetest.Cluster) {
	t.Helper()
	raft := storetest.NewCluster(t, n, func(cfg *raftstore.Config) { cfg.Logger = nil })
	stores := make(map[string]*raftstore.Store)
	for _, p := range raft.Peers {
		stores[p.ID] = p.Store
	}
	return newServers(t, stores, options...), raft
}

func newServers(t testing.TB, stores map[string]*raftstore.Store, options ...func(*Config)) *cluster {
	t.Helper()
	ca, err := pki.NewCA(testCluster)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{
		t: t, ca: ca,
		servers: make(map[string]*Server), stops: make(map[string]func()), down: make(map[string]bool),
	}
	addresses := make(map[string]string)
	for i, id := range slices.Sorted(maps.Keys(stores)) {
		if i == 0 {
			c.store = stores[id]
		}
		addresses[id] = fmt.Sprintf("10.0.0.%d:7000", i+1)
	}
	var uids atomic.Int64
	for id := range addresses {
		events, err := eventlog.New(eventlog.Config{Peer: id})
		if err != nil {
			t.Fatal(err)
		}
		cfg := Config{
			Store: stores[id], PeerID: id, ClusterID: testCluster, Version: "v0-test",
			CA: ca, GossipKey: []byte("0123456789abcdef0123456789abcdef"), Gossip: &c.gossip, Events: events,
			Peers:  func() map[string]string { return addresses },
			Dial:   func(to string) (*connect.Client, error) { return c.dial(id, to) },
			NewUID: func() string { return fmt.Sprint("uid-", uids.Add(1)) },
			Now:    func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) },
		}
		if os.Getenv("HOLDFAST_TEST_LOG") != "" {
			cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		for _, option := range options {
			option(&cfg)
		}
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.servers[id] = s
	}
	for id, s := range c.servers {
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		c.stops[id] = sync.OnceFunc(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run %s: %v", id, err)
			}
		})
		t.Cleanup(c.stops[id])
	}
	return c
}

func (c *cluster) dial(from, to string) (*connect.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down[to] || c.servers[to] == nil {
		return nil, errors.New("connection refused")
	}
	return c.client(to, pki.Identity{Cluster: testCluster, Role: pki.RolePeer, Name: from}), nil
}

func (c *cluster) setDown(peer string, down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down[peer] = down
}

// client talks to a Server as id; with no role, as somebody without certificate.
func (c *cluster) client(peer string, id pki.Identity) *connect.Client {
	return connect.NewClient(connectinprocess.New(c.servers[peer].rpc), func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			if id.Role == "" {
				ctx = context.WithValue(ctx, identityKey{}, nil)
			} else {
				ctx = withIdentity(ctx, id)
			}
			return next(ctx, spec)
		}
	})
}

var alice = pki.Identity{Cluster: testCluster, Role: pki.RoleAdmin, Name: "alice"}

func (c *cluster) objects(peer string) holdfastv1connect.ObjectServiceClient {
	return holdfastv1connect.NewObjectServiceClient(c.client(peer, alice))
}

func (c *cluster) agent(peer, node string) agentv1connect.AgentServiceClient {
	return agentv1connect.NewAgentServiceClient(c.client(peer, pki.Identity{Cluster: testCluster, Role: pki.RoleNode, Name: node}))
}

// put writes objects into the store as the scheduler or a controller would.
func (c *cluster) put(objs ...object.Object) int64 {
	c.t.Helper()
	var ops []raftstore.Op
	for _, obj := range objs {
		data, err := object.Encode(obj)
		if err != nil {
			c.t.Fatal(err)
		}
		ops = append(ops, raftstore.Put(string(object.KeyOf(obj)), data))
	}
	result, err := c.store.Txn(c.t.Context(), raftstore.Txn{Then: ops})
	if err != nil {
		c.t.Fatal(err)
	}
	return result.Revision
}

func (c *cluster) remove(obj object.Object) int64 {
	c.t.Helper()
	result, err := c.store.Txn(c.t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Delete(string(object.KeyOf(obj)))}})
	if err != nil {
		c.t.Fatal(err)
	}
	return result.Revision
}

func (c *cluster) pod(name string) (*corev1.Pod, bool) {
	return object.Get[*corev1.Pod](c.store.View(), object.Key("pods/default/"+name))
}

// boundPod is a valid pod on a node; an empty node leaves it unbound.
func boundPod(name, node string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main", Image: "web:1"}}},
	}
	object.Default(pod)
	return pod
}

// message encodes obj for a request.
func message(t testing.TB, obj object.Object) *holdfastv1.Object {
	t.Helper()
	data, err := object.Encode(obj)
	if err != nil {
		t.Fatal(err)
	}
	return &holdfastv1.Object{Data: data}
}

// faultsOf returns the Fault details of an error.
func faultsOf(err error) []*holdfastv1.Fault {
	var faults []*holdfastv1.Fault
	if rpcErr, ok := errors.AsType[*connect.Error](err); ok {
		for _, detail := range rpcErr.Details() {
			msg, err := connectproto.UnmarshalErrorDetail(detail)
			if err != nil {
				continue
			}
			if fault, ok := msg.(*holdfastv1.Fault); ok {
				faults = append(faults, fault)
			}
		}
	}
	return faults
}

func infoOf(err error) *holdfastv1.ErrorInfo {
	if rpcErr, ok := errors.AsType[*connect.Error](err); ok {
		for _, detail := range rpcErr.Details() {
			if msg, err := connectproto.UnmarshalErrorDetail(detail); err == nil {
				if info, ok := msg.(*holdfastv1.ErrorInfo); ok {
					return info
				}
			}
		}
	}
	return nil
}

// wantCode fails the test unless err has the code and says text.
func wantCode(t testing.TB, err error, code connect.Code, text string) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want %s: %s", code, text)
	}
	if got := connect.CodeOf(err); got != code || !strings.Contains(err.Error(), text) {
		t.Fatalf("got %v, want %s with %q", err, code, text)
	}
}
