package peer_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/internal/testcluster"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// configMap returns what a Create of a ConfigMap needs.
func configMap(t *testing.T, name string) *holdfastv1.CreateRequest {
	t.Helper()
	data, err := object.Encode(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}})
	if err != nil {
		t.Fatal(err)
	}
	return &holdfastv1.CreateRequest{Object: &holdfastv1.Object{Kind: &holdfastv1.Kind{Version: "v1", Kind: "ConfigMap"}, Data: data}}
}

func create(t *testing.T, c *testcluster.Cluster, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	if _, err := c.Client().Objects().Create(ctx, configMap(t, name)); err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
}

func names(c *testcluster.Cluster) map[string]bool {
	found := make(map[string]bool)
	for _, obj := range c.List("ConfigMap", "default") {
		found[obj.GetName()] = true
	}
	return found
}

// TestLeaderLoss covers what no single store shows: the client's way to another
// peer, the leader's loops moving, and the old leader coming back as a follower.
func TestLeaderLoss(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3})
	create(t, c, "before")
	leader := c.Leader()
	leader.Stop()
	for i := range 5 {
		create(t, c, fmt.Sprintf("during-%d", i))
	}
	if now := c.Leader(); now == leader {
		t.Fatalf("%s leads although it has stopped", leader.Name)
	}
	leader.Start()
	create(t, c, "after")

	want := []string{"before", "during-0", "during-1", "during-2", "during-3", "during-4", "after"}
	got := names(c)
	for _, name := range want {
		if !got[name] {
			t.Errorf("%s was acknowledged and is not there", name)
		}
	}
	// The peer that was away answers by itself, with all of it.
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	c.WaitFor(ctx, "the returned peer to catch up", func() (bool, string) {
		list, err := leader.Client().Objects().List(ctx, &holdfastv1.ListRequest{
			Kind: &holdfastv1.Kind{Version: "v1", Kind: "ConfigMap"}, Namespace: "default",
			Read: &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL},
		})
		if err != nil {
			return false, err.Error()
		}
		if by := list.GetAnswer().GetServedBy(); by != leader.Name {
			t.Fatalf("answered by %s, want %s", by, leader.Name)
		}
		return len(list.GetObjects()) == len(want), fmt.Sprintf("%d of %d objects", len(list.GetObjects()), len(want))
	})
}

// TestAllPeersRestart: what was acknowledged outlives every process.
func TestAllPeersRestart(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3})
	create(t, c, "kept")
	for _, p := range c.Peers {
		p.Stop()
	}
	for _, p := range c.Peers {
		p.Start()
	}
	if !names(c)["kept"] {
		t.Error("the object is gone")
	}
}

// TestMinorityRefuses: a peer without a quorum says so, does not hang, and still
// answers what it was asked to answer from its own state.
func TestMinorityRefuses(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3})
	create(t, c, "seen")
	alone := c.Peers[0]
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	read := func(consistency holdfastv1.Consistency) (*holdfastv1.ListResponse, error) {
		return alone.Client().Objects().List(ctx, &holdfastv1.ListRequest{
			Kind: &holdfastv1.Kind{Version: "v1", Kind: "ConfigMap"}, Namespace: "default",
			Read: &holdfastv1.ReadOptions{Consistency: consistency},
		})
	}
	c.WaitFor(ctx, "the write to reach every peer", func() (bool, string) {
		list, err := read(holdfastv1.Consistency_CONSISTENCY_LOCAL)
		return err == nil && len(list.GetObjects()) == 1, fmt.Sprint(list, err)
	})
	c.Peers[1].Stop()
	c.Peers[2].Stop()

	if list, err := read(holdfastv1.Consistency_CONSISTENCY_LINEARIZABLE); err == nil {
		t.Errorf("a linearizable read was answered without a quorum: %v", list)
	}
	list, err := read(holdfastv1.Consistency_CONSISTENCY_LOCAL)
	if err != nil || len(list.GetObjects()) != 1 {
		t.Errorf("local read: %v, %v; want the one object", list, err)
	}
	status, err := alone.Client().Cluster().Status(ctx, &holdfastv1.StatusRequest{})
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	if status.GetQuorum() || status.GetQuorumError() == "" {
		t.Errorf("status says quorum %v (%q), want none and why", status.GetQuorum(), status.GetQuorumError())
	}
}

// TestIdleAppendsNothing is promise I8. The time is real: what it looks for is
// whatever somebody writes periodically.
func TestIdleAppendsNothing(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3, Nodes: 2})
	c.Apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: "fake/web:1"}]
`)
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	c.WaitFor(ctx, "three ready pods", func() (bool, string) {
		ready := 0
		for _, obj := range c.List("Pod", "default") {
			if object.PodReady(obj.(*corev1.Pod)) {
				ready++
			}
		}
		return ready == 3, fmt.Sprintf("%d of 3", ready)
	})
	index := func() uint64 {
		status, err := c.Client().Cluster().Status(ctx, &holdfastv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return status.GetLastIndex()
	}
	// Statuses settle, and then the peers compare their states once, at most 10 s
	// after they did so before. After that nothing may come.
	const quiet = 11 * time.Second
	last, since := index(), time.Now()
	c.WaitFor(ctx, "the cluster to append nothing for "+quiet.String(), func() (bool, string) {
		if now := index(); now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > quiet, fmt.Sprintf("index %d since %v", last, time.Since(since).Round(time.Second))
	})
}

// TestAllAddressesChange: peers are who they are, not where they are. All of them come
// back elsewhere at once, then two in each other's place. One address that is right
// is all that they are told.
func TestAllAddressesChange(t *testing.T) {
	if raceEnabled {
		// Raft replaces the record of a peer whose address changed under a lock that
		// its updateLastAppended reads it without (1.7.3, replication.go). What it reads,
		// the id, is the same in both.
		t.Skip("hashicorp/raft has a data race of its own here; make test plays this without the race detector")
	}
	c := testcluster.Start(t, testcluster.Config{Peers: 3})
	create(t, c, "before")
	move := func(addresses ...string) {
		t.Helper()
		for _, p := range c.Peers {
			p.Stop()
		}
		for i, p := range c.Peers {
			p.Address = addresses[i]
			p.Seeds = []string{addresses[0] + ":7443"}
		}
		for _, p := range c.Peers {
			p.Start()
		}
	}
	settled := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
		defer cancel()
		c.WaitFor(ctx, "raft to know the new addresses", func() (bool, string) {
			status, err := c.Client().Cluster().Status(ctx, &holdfastv1.StatusRequest{})
			if err != nil {
				return false, err.Error()
			}
			for _, p := range status.GetPeers() {
				for _, m := range c.Peers {
					if p.GetId() == m.Name && (p.GetAddress() != m.Address+":7443" || !p.GetVoter()) {
						return false, fmt.Sprint(p)
					}
				}
			}
			return len(status.GetPeers()) == 3, fmt.Sprint(status.GetPeers())
		})
	}
	network := c.Peers[0].Address[:strings.LastIndexByte(c.Peers[0].Address, '.')]

	move(network+".11", network+".12", network+".13")
	begin := time.Now()
	create(t, c, "elsewhere")
	t.Logf("a write %v after all peers came back elsewhere", time.Since(begin))
	settled()
	move(network+".11", network+".13", network+".12")
	create(t, c, "swapped")
	settled()

	got := names(c)
	for _, name := range []string{"before", "elsewhere", "swapped"} {
		if !got[name] {
			t.Errorf("%s is gone", name)
		}
	}
}
