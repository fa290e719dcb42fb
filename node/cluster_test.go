package node_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/fake"
	"github.com/holdfast-io/holdfast/internal/testcluster"
	"github.com/holdfast-io/holdfast/node"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const web = `
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
`

func pods(c *testcluster.Cluster) []*corev1.Pod {
	var out []*corev1.Pod
	for _, obj := range c.List("Pod", "default") {
		out = append(out, obj.(*corev1.Pod))
	}
	return out
}

// runs returns each container that runs, with when it started: two equal answers
// mean that nothing was restarted in between.
func runs(c *testcluster.Cluster) string {
	var lines []string
	for _, pod := range pods(c) {
		for _, status := range pod.Status.ContainerStatuses {
			if status.State.Running != nil {
				lines = append(lines, fmt.Sprintf("%s on %s: %s restarts=%d", pod.Name, pod.Spec.NodeName, status.ContainerID, status.RestartCount))
			}
		}
	}
	return strings.Join(lines, "\n")
}

// waitReady waits until want pods that are not terminating are ready, on node if
// it is not "".
func waitReady(t *testing.T, c *testcluster.Cluster, want int, node string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	c.WaitFor(ctx, fmt.Sprintf("%d ready pods %s", want, node), func() (bool, string) {
		ready := 0
		var state []string
		for _, pod := range pods(c) {
			if object.PodReady(pod) && !object.Deleting(pod) && (node == "" || pod.Spec.NodeName == node) {
				ready++
			}
			state = append(state, fmt.Sprintf("%s on %s %s deleting=%v", pod.Name, pod.Spec.NodeName, pod.Status.Phase, object.Deleting(pod)))
		}
		return ready == want, strings.Join(state, "; ")
	})
}

// TestNodeLoss: the pods of a node that vanishes run elsewhere, the objects of the
// old ones stay until the node is back to say that they are gone, and then they go.
func TestNodeLoss(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3, Nodes: 2})
	c.Apply(web)
	waitReady(t, c, 3, "")
	lost, other := c.Nodes[0], c.Nodes[1]
	onLost := 0
	for _, pod := range pods(c) {
		if pod.Spec.NodeName == lost.Name {
			onLost++
		}
	}
	if onLost == 0 || onLost == 3 {
		t.Fatalf("%d of 3 pods are on %s: not spread", onLost, lost.Name)
	}
	began := time.Now()
	lost.Stop()
	waitReady(t, c, 3, other.Name)
	t.Logf("replaced after %v", time.Since(began))

	terminating := 0
	for _, pod := range pods(c) {
		if object.Deleting(pod) {
			terminating++
			if pod.Spec.NodeName != lost.Name {
				t.Errorf("%s terminates on %s, which is well", pod.Name, pod.Spec.NodeName)
			}
		}
	}
	if terminating != onLost {
		t.Errorf("%d pods terminate, want the %d of the lost node: nobody can know yet that they have stopped", terminating, onLost)
	}
	lost.Start()
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	c.WaitFor(ctx, "the returned node to remove its old pods", func() (bool, string) {
		n := len(pods(c))
		return n == 3, fmt.Sprintf("%d pods", n)
	})
	waitReady(t, c, 3, "")
}

// TestNodeFindsPeersByGossip: a node all of whose known peers are dead, as when the
// only one that it was told of dies right after it has joined, goes to those that
// gossip shows.
func TestNodeFindsPeersByGossip(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3})
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	token, err := c.Client().Cluster().CreateToken(ctx, &holdfastv1.CreateTokenRequest{Role: holdfastv1.Role_ROLE_NODE, Ttl: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	dead := c.Peers[0]
	address := dead.Address[:strings.LastIndex(dead.Address, ".")+1] + "200"
	cfg := node.Config{
		DataDir: t.TempDir(), Name: "n1", Advertise: address, Gossip: address + ":7946", Version: "test",
		Join: []string{dead.Address + ":7443"}, Token: token.GetToken(),
	}
	n, err := node.Prepare(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	path := filepath.Join(cfg.DataDir, "node.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var rec map[string]any
	if err := json.Unmarshal(data, &rec); err != nil {
		t.Fatal(err)
	}
	rec["peers"] = cfg.Join
	if data, err = json.Marshal(rec); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	dead.Stop()

	if n, err = node.Prepare(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	life, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(life, fake.New(fake.Config{}), fake.NewNetwork()) }()
	defer func() {
		stop()
		<-ended
	}()
	c.WaitFor(ctx, "the node to register with a peer that it was not told of", func() (bool, string) {
		nodes := c.List("Node", "")
		return len(nodes) == 1 && object.NodeReady(nodes[0].(*corev1.Node)), fmt.Sprintf("%d nodes", len(nodes))
	})
}

// TestAgentRestart: pods do not notice that their agent, or every peer, was away.
func TestAgentRestart(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 1, Nodes: 1})
	c.Apply(web)
	waitReady(t, c, 3, "")
	before := runs(c)
	c.Nodes[0].Stop()
	c.Nodes[0].Start()
	c.Peers[0].Stop()
	c.Peers[0].Start()
	waitReady(t, c, 3, "")
	// A change goes all the way down and its status all the way up: the agent
	// has taken in the present state, and still restarted nothing.
	c.Apply(strings.Replace(web, "replicas: 3", "replicas: 4", 1))
	waitReady(t, c, 4, "")
	if after := runs(c); !containsAll(after, before) {
		t.Errorf("containers were restarted.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func containsAll(text, lines string) bool {
	for line := range strings.Lines(lines) {
		if !strings.Contains(text, strings.TrimSpace(line)) {
			return false
		}
	}
	return true
}

// TestServiceAccountToken: a pod finds the token of its service account, the cluster's CA and its
// namespace where programs look for them; the token is good, and only while the pod is there.
func TestServiceAccountToken(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3, Nodes: 1})
	c.Apply(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  serviceAccountName: robot
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: "fake/web:1"
    command: [sh, -c, "cat /var/run/secrets/kubernetes.io/serviceaccount/token; echo; cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt; cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo; sleep 1000"]
`)
	waitReady(t, c, 1, "")
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	read := func() string {
		stream, err := c.Client().Pods().Logs(ctx, &holdfastv1.LogsRequest{Namespace: "default", Pod: "web", TailLines: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		var b strings.Builder
		for {
			msg, err := stream.Receive()
			if err != nil {
				return b.String()
			}
			b.Write(msg.GetData())
		}
	}
	var shown string
	c.WaitFor(ctx, "the pod to show its files", func() (bool, string) {
		shown = read()
		return strings.HasSuffix(shown, "default\n"), shown
	})
	token, rest, _ := strings.Cut(shown, "\n")
	if !strings.HasPrefix(rest, "-----BEGIN CERTIFICATE-----") {
		t.Errorf("ca.crt is %q", rest)
	}
	review := func() *holdfastv1.ReviewTokenResponse {
		res, err := c.Client().Access().ReviewToken(ctx, &holdfastv1.ReviewTokenRequest{Token: token})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if res := review(); !res.GetAuthenticated() || res.GetName() != "system:serviceaccount:default:robot" {
		t.Errorf("the pod's token counts as %v", res)
	}
	if _, err := c.Client().Objects().Delete(ctx, &holdfastv1.DeleteRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "Pod"}, Namespace: "default", Name: "web"}); err != nil {
		t.Fatal(err)
	}
	c.WaitFor(ctx, "the pod to be gone", func() (bool, string) { return len(pods(c)) == 0, "" })
	if res := review(); res.GetAuthenticated() {
		t.Error("the token outlives its pod")
	}
}
