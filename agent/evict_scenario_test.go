package agent_test

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-io/holdfast/agent"
)

// machine is what a test's node has left.
type machine struct {
	mu   sync.Mutex
	left map[agent.Signal]agent.SignalAmount
}

func (m *machine) signals() map[agent.Signal]agent.SignalAmount {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.left
}

func (m *machine) set(s agent.Signal, available int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left = map[agent.Signal]agent.SignalAmount{s: {Available: available, Capacity: 100 << 30}}
}

func (p *testPeer) condition(t *testing.T, kind corev1.NodeConditionType) corev1.ConditionStatus {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.nodes[len(p.nodes)-1].Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	t.Fatalf("the node tells nothing about %s", kind)
	return ""
}

// TestEviction: a node whose memory runs out says so, ends the pod that has taken it, begins
// no new one that asked for nothing, and is well again five minutes later.
func TestEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, m := newPeer("a"), &machine{}
		n := newNode(t, a)
		n.eviction, n.signals = nil, m.signals // Kubernetes' defaults
		modest, greedy := newPod("modest"), newPod("greedy")
		modest.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}
		m.set(agent.SignalMemory, 1<<30)
		a.says(complete(t, 10, modest, greedy))
		n.start()
		settle(11 * time.Second)
		if got := a.condition(t, corev1.NodeMemoryPressure); got != corev1.ConditionFalse {
			t.Errorf("MemoryPressure is %s with memory left", got)
		}
		n.rt.Fills("uid-modest", "main", 900<<20, 0)
		n.rt.Fills("uid-greedy", "main", 500<<20, 0)
		m.set(agent.SignalMemory, 50<<20)
		settle(15 * time.Second)
		n.wantRunning("short of memory", "uid-modest/main/0")
		s, _ := a.status(t, greedy.UID)
		want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container main was using 500Mi, request is 0, has larger consumption of memory. "
		if s.Phase != corev1.PodFailed || s.Reason != "Evicted" || s.Message != want {
			t.Errorf("the evicted pod is %s, %q: %q; want Failed, Evicted: %q", s.Phase, s.Reason, s.Message, want)
		}
		if c := s.ContainerStatuses[0].State.Terminated; c == nil {
			t.Errorf("its container is %+v, want how it ended", s.ContainerStatuses[0].State)
		}
		if !strings.Contains(a.events(), "Evicted: The node was low on resource: memory.") {
			t.Errorf("no event tells of it:\n%s", a.events())
		}
		m.set(agent.SignalMemory, 1<<30)
		late := newPod("late")
		a.send(t, increment(t, 11, late))
		settle(15 * time.Second)
		if got := a.condition(t, corev1.NodeMemoryPressure); got != corev1.ConditionTrue {
			t.Errorf("MemoryPressure is %s right after it was so, want it to stay for a while", got)
		}
		if s, _ := a.status(t, late.UID); s.Phase != corev1.PodFailed || s.Reason != "Evicted" {
			t.Errorf("a pod that came meanwhile is %s, %q; want it refused", s.Phase, s.Reason)
		}
		settle(5 * time.Minute)
		if got := a.condition(t, corev1.NodeMemoryPressure); got != corev1.ConditionFalse {
			t.Errorf("MemoryPressure is %s after five minutes", got)
		}
		a.send(t, increment(t, 12, newPod("later")))
		settle(15 * time.Second)
		n.wantRunning("in the end", "uid-later/main/0", "uid-modest/main/0")
		registered := len(a.nodes)
		settle(5 * time.Minute)
		if len(a.nodes) != registered {
			t.Errorf("the node registered %d times in quiet minutes", len(a.nodes)-registered)
		}
	})
}

// TestDiskPressure: before a pod is ended for want of disk, what nobody needs goes: images, and
// the containers of a pod that has finished. What is left of an evicted pod goes with it.
func TestDiskPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, m := newPeer("a"), &machine{}
		n := newNode(t, a)
		n.eviction, n.signals = nil, m.signals
		done, other, web := newPod("done"), newPod("other"), newPod("web")
		done.Spec.RestartPolicy = corev1.RestartPolicyNever
		done.Spec.Containers[0].Image = "fake/exit:0"
		a.says(complete(t, 10, done, other, web))
		m.set(agent.SignalNodeFS, 50<<30)
		n.start()
		settle(10 * time.Minute)
		n.rt.Fills("uid-web", "main", 0, 3<<30)
		n.rt.Fills("uid-other", "main", 0, 1<<30)
		m.set(agent.SignalNodeFS, 5<<30)
		settle(12 * time.Second) // the node is looked at once
		n.wantRunning("short of disk", "uid-other/main/0")
		if a.condition(t, corev1.NodeDiskPressure) != corev1.ConditionTrue {
			t.Error("DiskPressure is not true")
		}
		if s, _ := a.status(t, web.UID); s.Reason != "Evicted" || !strings.Contains(s.Message, "ephemeral-storage. Threshold quantity: 10Gi, available: 5Gi.") {
			t.Errorf("the pod that wrote most is %q: %q", s.Reason, s.Message)
		}
		if s, _ := a.status(t, done.UID); s.Phase != corev1.PodSucceeded || s.ContainerStatuses[0].State.Terminated == nil {
			t.Errorf("the pod that had finished is %+v", s)
		}
		pods, err := n.rt.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pods {
			if p.UID != "uid-other" && len(p.Containers) > 0 {
				t.Errorf("containers of %s are left: %+v", p.Name, p.Containers)
			}
		}
		images, err := n.rt.Images(t.Context())
		if err != nil || len(images) != 1 {
			t.Errorf("images left: %+v (%v), want the one that is in use", images, err)
		}
	})
}
