package agent_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

func (n *testNode) file(name, text string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.static, name), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// names returns what runs, by the pods' names.
func (n *testNode) names() map[string]string {
	n.t.Helper()
	all, err := n.rt.List(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	out := map[string]string{}
	for _, p := range all {
		for _, c := range p.Containers {
			if c.State == runtime.StateRunning {
				out[p.Namespace+"/"+p.Name] = p.UID
			}
		}
	}
	return out
}

// TestStaticPods: pods of a folder run with no peer at all, outlive the agent, are
// shown to the cluster by mirrors once a peer answers, and do not depend on those.
func TestStaticPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		a.says(complete(t, 10)) // the node's addresses
		n := newNode(t, a)
		n.start()
		settle(time.Second)
		n.stop()
		a.setDown(true)
		n.static = t.TempDir()
		n.file("dns.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: dns}\nspec: {terminationGracePeriodSeconds: 10, containers: [{name: main, image: \"fake/stubborn:1\"}]}\n")
		n.file("bad.yaml", "kind: Nonsense\n")
		n.file(".hidden", "nonsense")
		n.start()
		settle(2 * time.Second)
		uid := n.names()["default/dns-n1"]
		if uid == "" || len(n.names()) != 1 {
			t.Fatalf("without peers these pods run: %v, want default/dns-n1", n.names())
		}
		n.stop()
		n.start()
		settle(10 * time.Second)
		if got := n.names(); got["default/dns-n1"] != uid {
			t.Fatalf("after the agent's restart these pods run: %v, want the same", got)
		}

		a.setDown(false)
		settle(10 * time.Second)
		a.mu.Lock()
		calls := a.mirrors
		a.mu.Unlock()
		if len(calls) == 0 || len(calls[0]) != 1 {
			t.Fatalf("the mirrors asked for are %v, want one", calls)
		}
		mirror := calls[0][0]
		if mirror.Annotations[corev1.MirrorPodAnnotationKey] != uid || mirror.Name != "dns-n1" || mirror.Spec.NodeName != "n1" {
			t.Errorf("the mirror is %+v", mirror.ObjectMeta)
		}
		mirror.UID = types.UID("uid-mirror")
		a.send(t, increment(t, 11, mirror))
		settle(10 * time.Second)
		if s, r := a.status(t, "uid-mirror"); s.Phase != corev1.PodRunning || r.GetName() != "dns-n1" {
			t.Errorf("reported of the mirror is %+v, want that it runs", r)
		}
		n.wantRunning("with its mirror", uid+"/main/0")
		settle(20 * time.Second)
		a.mu.Lock()
		usage := a.usage[len(a.usage)-1].GetPods()
		a.mu.Unlock()
		if len(usage) != 1 || usage[0].GetUid() != "uid-mirror" || usage[0].GetName() != "dns-n1" {
			t.Errorf("the usage reported is %v, want that of the mirror", usage)
		}
		before := a.count(func(p *testPeer) int { return len(p.mirrors) })
		settle(time.Hour)
		if got := a.count(func(p *testPeer) int { return len(p.mirrors) }); got != before {
			t.Errorf("mirrors were asked for %d times more, though they are there", got-before)
		}

		a.send(t, increment(t, 12, deleted(mirror, 0)))
		settle(10 * time.Second)
		n.wantRunning("after its mirror was deleted", uid+"/main/0")
		if got := a.count(func(p *testPeer) int { return len(p.mirrors) }); got == before {
			t.Error("no other mirror was asked for")
		}

		a.setDown(true)
		n.file("dns.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: dns}\nspec: {containers: [{name: main, image: \"dns:2\"}]}\n")
		settle(8 * time.Second)
		n.wantRunning("while the pod before it ends", uid+"/main/0")
		settle(20 * time.Second)
		next := n.names()["default/dns-n1"]
		if next == "" || next == uid || len(n.names()) != 1 {
			t.Errorf("after its file changed these pods run: %v, want another dns-n1", n.names())
		}
		if err := os.Remove(filepath.Join(n.static, "dns.yaml")); err != nil {
			t.Fatal(err)
		}
		settle(20 * time.Second)
		n.wantRunning("after its file is gone")
	})
}
