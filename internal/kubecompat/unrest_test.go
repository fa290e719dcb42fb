package kubecompat

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// leader returns the name of the peer that leads.
func leader(t *testing.T) string {
	t.Helper()
	var status struct {
		Leader string `json:"leader"`
	}
	out := shared.holdfast(t, "cluster", "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || status.Leader == "" {
		t.Fatalf("no leader in %s (%v)", out, err)
	}
	return status.Leader
}

// kill ends a peer as a power cut would. The function that it returns, which is also
// called at the end of the test, starts it again.
func kill(t *testing.T, peer string) (revive func()) {
	t.Helper()
	shared.holdfast(t, "dev", "--data-dir", shared.data(), "kill", peer)
	revive = sync.OnceFunc(func() { shared.holdfast(t, "dev", "--data-dir", shared.data(), "start", peer) })
	t.Cleanup(revive)
	return revive
}

// TestLeaderKilled changes and watches things with kubectl, through the proxy,
// while the leader dies, three times. Each command must succeed as if nothing
// were; what was created must be there.
func TestLeaderKilled(t *testing.T) {
	needKubectl(t)
	version := versions()[0]
	p := kubectl(t, version, "failover", true)
	must := func(args ...string) string {
		t.Helper()
		began := time.Now()
		out, code := p.run(t.Context(), args...)
		if code != 0 {
			state, _ := p.run(t.Context(), "get", "deployments,replicasets,pods,nodes,events", "-o", "wide")
			t.Fatalf("kubectl %s: exit %d after %v\n%s\n%s", strings.Join(args, " "), code, time.Since(began).Round(time.Millisecond), out, state)
		}
		return out
	}
	must("create", "deployment", "web", "--image=holdfast.dev/web:1", "--replicas=2")
	for round := range 3 {
		killed := leader(t)
		watching := p.command(t.Context(), "rollout", "status", "deployment/web", "--timeout=60s")
		revive := kill(t, killed)
		if err := watching.Start(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		must("create", "configmap", fmt.Sprint("c", round), "--from-literal=a=b")
		t.Logf("first write after %s died took %v", killed, time.Since(began).Round(time.Millisecond))
		must("set", "image", "deployment/web", fmt.Sprintf("web=holdfast.dev/web:%d", round+2))
		must("rollout", "status", "deployment/web", "--timeout=60s")
		must("scale", "deployment/web", fmt.Sprint("--replicas=", round+2))
		must("wait", "--for=condition=Available", "deployment/web", "--timeout=60s")
		if err := watching.Wait(); err != nil {
			t.Errorf("rollout status, begun while the leader died: %v", err)
		}
		revive()
	}
	out := must("get", "configmaps", "-o", "name")
	for round := range 3 {
		if !strings.Contains(out, fmt.Sprintf("configmap/c%d\n", round)) {
			t.Errorf("c%d is lost: %s", round, out)
		}
	}
}
