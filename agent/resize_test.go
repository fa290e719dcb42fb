package agent_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/runtime"
)

func asking(name, cpu, memory string) *corev1.Pod {
	pod := newPod(name)
	pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)},
	}
	return pod
}

func resized(pod *corev1.Pod, cpu, memory string) *corev1.Pod {
	next := asking(pod.Name, cpu, memory)
	next.Generation = pod.Generation + 1
	return next
}

func (n *testNode) bounds(uid string) (container, pod runtime.Resources) {
	n.t.Helper()
	all, err := n.rt.List(context.Background())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range all {
		if p.UID == uid {
			return *p.Containers[len(p.Containers)-1].Resources, *p.Resources
		}
	}
	n.t.Fatalf("the runtime has no pod %s", uid)
	return container, pod
}

// TestResize takes a pod from one size to another over the runtime: more and less, what
// the node cannot give, and less memory than is in use. Its container is never restarted,
// and the peer is told of each step.
func TestResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		web, other := asking("web", "100m", "64Mi"), asking("other", "100m", "64Mi")
		a.says(complete(t, 10, web, other))
		n.start()
		settle(time.Second)

		condition := func(kind corev1.PodConditionType) (found corev1.PodCondition) {
			s, _ := a.status(t, web.UID)
			for _, c := range s.Conditions {
				if c.Type == kind {
					found = c
				}
			}
			return found
		}
		web = resized(web, "200m", "128Mi")
		a.send(t, increment(t, 11, web))
		settle(time.Second)
		if c, p := n.bounds("uid-web"); c.CPUShares != 204 || c.MemoryBytes != 128<<20 || p.CPUShares != 204 || p.MemoryBytes != 128<<20 {
			t.Errorf("after more was asked for the container has %+v, the pod %+v", c, p)
		}
		s, _ := a.status(t, web.UID)
		if r := s.ContainerStatuses[0].Resources; r == nil || r.Limits.Memory().Value() != 128<<20 || r.Requests.Cpu().MilliValue() != 200 || s.ContainerStatuses[0].AllocatedResources.Cpu().MilliValue() != 200 {
			t.Errorf("the status says %+v", s.ContainerStatuses[0])
		}

		n.rt.Fills("uid-web", "main", 100<<20, 0)
		web = resized(web, "200m", "32Mi")
		a.send(t, increment(t, 12, web))
		settle(time.Second)
		if c := condition(corev1.PodResizeInProgress); c.Status != corev1.ConditionTrue || c.Reason != corev1.PodReasonError || c.ObservedGeneration != web.Generation {
			t.Errorf("with less memory than is in use the condition is %+v", c)
		}
		n.rt.Fills("uid-web", "main", 10<<20, 0)
		settle(time.Minute)
		if c, p := n.bounds("uid-web"); c.MemoryBytes != 32<<20 || p.MemoryBytes != 32<<20 {
			t.Errorf("once less is in use the container has %+v, the pod %+v", c, p)
		}
		if c := condition(corev1.PodResizeInProgress); c.Type != "" {
			t.Errorf("it is done, and the condition is %+v", c)
		}

		web = resized(web, "10000", "32Mi")
		a.send(t, increment(t, 13, web))
		settle(time.Second)
		if c := condition(corev1.PodResizePending); c.Reason != corev1.PodReasonInfeasible {
			t.Errorf("with more than the node has the condition is %+v", c)
		}
		// As much as there is beside the other's: not before that one is gone.
		capacity := a.nodes[0].Status.Allocatable.Cpu().String()
		web = resized(web, capacity, "32Mi")
		a.send(t, increment(t, 14, web))
		settle(time.Second)
		if c := condition(corev1.PodResizePending); c.Reason != corev1.PodReasonDeferred {
			t.Errorf("with more than is left of the node the condition is %+v", c)
		}
		a.send(t, increment(t, 15, deleted(other, 0)))
		settle(time.Second)
		if c := condition(corev1.PodResizePending); c.Type != "" {
			t.Errorf("when there is room the condition is %+v", c)
		}
		if c, _ := n.bounds("uid-web"); c.CPUShares <= 204 {
			t.Errorf("when there is room the container has %+v", c)
		}
		n.wantRunning("after all changes", "uid-web/main/0")

		// The agent that starts anew leaves it as it is.
		n.stop()
		n.start()
		settle(10 * time.Second)
		n.wantRunning("after a restart of the agent", "uid-web/main/0")
	})
}

// TestStateOnFullDisk: with no room for its state the agent goes on with what it is told;
// once there is room the state is saved, without anything new to save.
func TestStateOnFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a small disk")
	}
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		if err := unix.Mount("tmpfs", n.dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Fatal(err)
		}
		defer func() {
			n.stop()
			if err := unix.Unmount(n.dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
		a.says(complete(t, 10, newPod("web")))
		n.start()
		settle(time.Second)
		saved := filepath.Join(n.dir, "desired")
		before, err := os.ReadFile(saved)
		if err != nil {
			t.Fatal(err)
		}

		filler := filepath.Join(n.dir, "filler")
		f, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if f.Close(); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("filling the disk ended with %v", err)
		}
		a.send(t, increment(t, 11, newPod("second")))
		settle(time.Minute)
		n.wantRunning("on a full disk", "uid-second/main/0", "uid-web/main/0")
		if now, err := os.ReadFile(saved); err != nil || !bytes.Equal(now, before) {
			t.Errorf("the file changed on a full disk (%v)", err)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		if pods, err := agent.SavedPods(n.dir); err != nil || !slices.Equal(pods, []string{"uid-second", "uid-web"}) {
			t.Errorf("with room again %q are saved (%v)", pods, err)
		}
		if left, _ := filepath.Glob(filepath.Join(n.dir, "*.new")); len(left) > 0 {
			t.Errorf("half of a file is left: %q", left)
		}
	})
}
