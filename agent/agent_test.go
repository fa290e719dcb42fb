package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/fake"
	"github.com/holdfast-io/holdfast/agent/runtime"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestPodLife takes a pod from its binding to its end, and checks what the
// control plane is told on the way.
func TestPodLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web")
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Second)
		n.wantRunning("after the first message", "uid-web/main/0")

		node := a.nodes[0]
		if node.Name != "n1" || node.Labels[corev1.LabelHostname] != "n1" || node.Labels["zone"] != "a" ||
			node.Labels[corev1.LabelOSStable] != "linux" || node.Status.NodeInfo.KubeletVersion != "test" ||
			node.Status.NodeInfo.ContainerRuntimeVersion != "fake://1" || node.Status.NodeInfo.BootID == "" {
			t.Errorf("registered node is %+v", node)
		}
		if q := node.Status.Capacity[corev1.ResourcePods]; q.Cmp(resource.MustParse("110")) != 0 || node.Status.Allocatable.Memory().IsZero() || node.Status.Capacity.Cpu().IsZero() {
			t.Errorf("registered capacity is %v, allocatable %v", node.Status.Capacity, node.Status.Allocatable)
		}
		s, r := a.status(t, pod.UID)
		if s.Phase != corev1.PodRunning || s.PodIP != "10.1.0.2" || s.HostIP != "192.0.2.1" || r.GetRemoved() {
			t.Errorf("reported status is %+v, removed %v; want it running with its address", s, r.GetRemoved())
		}
		if s.Conditions[0].Type != corev1.PodScheduled || s.Conditions[0].Status != corev1.ConditionTrue {
			t.Errorf("the scheduler's condition is not carried over: %+v", s.Conditions)
		}
		var events []string
		for _, r := range a.reports {
			for _, e := range r.GetEvents() {
				events = append(events, e.GetReason())
			}
		}
		if want := []string{"Pulling", "Pulled", "Started"}; !slices.Equal(events, want) {
			t.Errorf("reported events are %q, want %q, each once", events, want)
		}

		a.send(t, increment(t, 12, deleted(pod, 30)))
		settle(time.Second)
		n.wantRunning("after the deletion")
		s, r = a.status(t, pod.UID)
		if !r.GetRemoved() || s.ContainerStatuses[0].State.Terminated == nil {
			t.Errorf("after the deletion the report is %+v, removed %v; want how the container ended, and removed", s, r.GetRemoved())
		}
		if left, _ := n.net.List(context.Background()); len(left) > 0 {
			t.Errorf("addresses are left: %v", left)
		}
		all, _ := n.rt.List(context.Background())
		if len(all) > 0 {
			t.Errorf("the runtime still has %+v", all)
		}
		if entries, _ := os.ReadDir(filepath.Join(n.dir, "pods")); len(entries) > 0 {
			t.Errorf("files of pods are left: %v", entries)
		}
		a.send(t, &agentv1.DesiredResponse{Revision: 13, RemovedPods: []string{string(pod.UID)}})
		settle(time.Minute)
		reports := a.count(func(p *testPeer) int { return len(p.reports) })
		if _, r = a.status(t, pod.UID); !r.GetRemoved() {
			t.Errorf("after its object is gone the pod was reported again (%d reports)", reports)
		}
	})
}

// TestQuiet: with nothing to do, nothing is reported and nothing is written.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		a.says(complete(t, 10, newPod("web")))
		n.start()
		settle(10 * time.Second)
		before := a.count(func(p *testPeer) int { return len(p.reports) })
		info, err := os.Stat(filepath.Join(n.dir, "desired"))
		if err != nil {
			t.Fatal(err)
		}
		a.send(t, &agentv1.DesiredResponse{Revision: 20}) // the cluster moved on, this node's share did not
		settle(10 * time.Minute)
		if got := a.count(func(p *testPeer) int { return len(p.reports) }); got != before {
			t.Errorf("%d reports in ten idle minutes, want 0", got-before)
		}
		if after, err := os.Stat(filepath.Join(n.dir, "desired")); err != nil || !after.ModTime().Equal(info.ModTime()) {
			t.Errorf("the state was written in idle minutes (%v)", err)
		}
	})
}

// TestAnotherPeer: when a peer goes, the stream goes on at the next, from the
// revision that was reached, and pods do not notice.
func TestAnotherPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPeer("a"), newPeer("b")
		n := newNode(t, a, b)
		pod, second := newPod("web"), newPod("second")
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Second)
		a.send(t, increment(t, 15, second))
		settle(time.Second)
		n.wantRunning("with the first peer", "uid-second/main/0", "uid-web/main/0")

		b.says(complete(t, 16, pod, second))
		a.setDown(true)
		settle(5 * time.Second)
		n.wantRunning("with the second peer", "uid-second/main/0", "uid-web/main/0")
		if !slices.Equal(b.froms, []int64{15}) {
			t.Errorf("the second peer was asked from revisions %v, want [15]", b.froms)
		}
		for _, p := range []*corev1.Pod{pod, second} {
			if s, _ := b.status(t, p.UID); s.Phase != corev1.PodRunning {
				t.Errorf("the second peer was told phase %q of %s, want all reported again to it", s.Phase, p.Name)
			}
		}
		b.send(t, &agentv1.DesiredResponse{Revision: 17, RemovedPods: []string{string(second.UID)}})
		settle(5 * time.Second)
		n.wantRunning("after an increment of the second peer", "uid-web/main/0")
	})
}

// TestPeerBehind: an agent never goes back. A peer that is behind is waited for;
// what it says of earlier revisions is dropped.
func TestPeerBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPeer("a"), newPeer("b")
		n := newNode(t, a, b)
		pod, second, third := newPod("web"), newPod("second"), newPod("third")
		a.says(complete(t, 20, pod, second))
		n.start()
		settle(time.Second)
		b.says(complete(t, 10, pod), increment(t, 15, third)) // knows nothing of second; third came and went
		a.setDown(true)
		settle(5 * time.Second)
		n.wantRunning("with a peer that is behind", "uid-second/main/0", "uid-web/main/0")
		b.send(t, increment(t, 25, newPod("fourth")))
		settle(time.Second)
		n.wantRunning("with a peer that caught up", "uid-fourth/main/0", "uid-second/main/0", "uid-web/main/0")
		if len(b.froms) != 1 {
			t.Errorf("the peer's stream was opened %d times, want once", len(b.froms))
		}
	})
}

// TestPeerStaysBehind: a peer that does not catch up is left.
func TestPeerStaysBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPeer("a"), newPeer("b")
		n := newNode(t, a, b)
		pod := newPod("web")
		a.says(complete(t, 20, pod))
		n.start()
		settle(time.Second)
		b.says(complete(t, 10))
		a.setDown(true)
		settle(2 * time.Second)
		a.setDown(false)
		settle(20 * time.Second)
		n.wantRunning("after all", "uid-web/main/0")
		if got := n.client.Peer(); got != "a" {
			t.Errorf("the agent is with peer %q, want a: b is behind", got)
		}
		if len(a.froms) < 2 {
			t.Errorf("peer a was asked %d times, want again after b", len(a.froms))
		}
	})
}

// TestGap: a stream that does not begin with a complete message, or that goes
// back, is discarded with the message, and opened again.
func TestGap(t *testing.T) {
	for name, bad := range map[string][]int64{"no complete message first": {12}, "revision goes back": {-12, 14, 13}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newPeer("a")
				n := newNode(t, a)
				pod, wrong := newPod("web"), newPod("wrong")
				streams := 0
				a.first = func() []*agentv1.DesiredResponse {
					streams++
					if streams > 1 {
						return []*agentv1.DesiredResponse{complete(t, 20, pod)}
					}
					var out []*agentv1.DesiredResponse
					for i, rev := range bad {
						switch {
						case rev < 0:
							out = append(out, complete(t, -rev, pod))
						case i == len(bad)-1:
							out = append(out, increment(t, rev, wrong))
						default:
							out = append(out, increment(t, rev))
						}
					}
					return out
				}
				n.start()
				settle(10 * time.Second)
				n.wantRunning("after the gap", "uid-web/main/0")
				if len(a.froms) != 2 {
					t.Errorf("the stream was opened %d times, want twice", len(a.froms))
				}
				if a.count(func(p *testPeer) int { return len(p.nodes) }) != 2 {
					t.Errorf("the node registered %d times, want once for each session", len(a.nodes))
				}
				if _, r := a.status(t, wrong.UID); r != nil {
					t.Errorf("the message with the gap was taken in: %v", r)
				}
			})
		})
	}
}

// TestLostAck: a report whose answer is lost is repeated until one is answered,
// and not after that.
func TestLostAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web")
		a.says(complete(t, 10, pod))
		a.loseAcks = 3
		n.start()
		settle(20 * time.Second)
		running := 0
		for _, r := range a.reports {
			var s corev1.PodStatus
			if err := s.Unmarshal(r.GetStatus()); err != nil {
				t.Fatal(err)
			}
			if s.Phase == corev1.PodRunning {
				running++
			}
		}
		if len(a.reports) < 4 || running == 0 {
			t.Errorf("%d reports, %d of them running, after three lost answers", len(a.reports), running)
		}
		last := len(a.reports)
		settle(10 * time.Minute)
		if len(a.reports) != last {
			t.Errorf("%d more reports after the acknowledgement", len(a.reports)-last)
		}
	})
}

// TestNoPeers covers what a node does alone: with every peer gone, and the agent
// itself gone for a while, pods run, are adopted as they are, and are kept
// running; nothing unknown is stopped. The first complete message then is what
// counts.
func TestNoPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web")
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Second)
		a.setDown(true)
		settle(time.Minute)
		n.wantRunning("without peers", "uid-web/main/0")
		n.stop()
		// The agent is gone; the machine runs something it does not know.
		unknownPod(t, n)
		n.start()
		settle(time.Hour)
		n.wantRunning("after the agent's restart, without peers", "uid-old/main/0", "uid-web/main/0")
		if !n.rt.Crash("uid-web", "main", 1) {
			t.Fatal("nothing to crash")
		}
		settle(5 * time.Second)
		n.wantRunning("after a crash, without peers", "uid-old/main/0", "uid-web/main/1")

		a.setDown(false)
		settle(time.Minute)
		n.wantRunning("with a peer", "uid-web/main/1")
		if all, _ := n.rt.List(context.Background()); len(all) != 1 {
			t.Errorf("the runtime has %+v, want the unknown pod removed", all)
		}
		if s, _ := a.status(t, pod.UID); s.ContainerStatuses[0].RestartCount != 1 || s.PodIP != "10.1.0.2" {
			t.Errorf("reported after all: %+v, want one restart and the same address", s)
		}
		if _, r := a.status(t, "uid-old"); r != nil {
			t.Errorf("a pod without object was reported: %v", r)
		}
	})
}

// unknownPod puts a pod into the runtime that no peer speaks of.
func unknownPod(t *testing.T, n *testNode) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.rt.Run(ctx) }()
	<-n.rt.Ready()
	image, err := n.rt.EnsureImage(ctx, "old:1", corev1.PullIfNotPresent, nil)
	if err == nil {
		err = n.rt.CreatePod(ctx, runtime.Pod{UID: "uid-old", Namespace: "default", Name: "old"})
	}
	if err == nil {
		err = n.rt.RunContainer(ctx, runtime.Container{ID: runtime.ContainerID{PodUID: "uid-old", Name: "main"}, Image: image.Ref})
	}
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ended
}

// TestStartHold: after a start of the agent, what does not run waits for a peer,
// but not for ever.
func TestStartHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web")
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Second)
		n.stop()
		n.rt.Wipe() // as after a reboot that lost the runtime's records
		a.setDown(true)
		n.start()
		settle(4 * time.Second)
		n.wantRunning("before the hold is over")
		settle(2 * time.Second)
		n.wantRunning("after the hold", "uid-web/main/0")
		n.stop()
		n.rt.Wipe()

		// The pod was replaced elsewhere meanwhile: it must not come to life.
		a.says(complete(t, 11, deleted(pod, 30)))
		a.setDown(false)
		n.start()
		settle(3 * time.Second)
		n.wantRunning("with a peer that has deleted it")
		if _, r := a.status(t, pod.UID); !r.GetRemoved() {
			t.Error("the deleted pod is not reported as removed")
		}
	})
}

// TestSavedState: the saved state survives damage by being set aside.
func TestSavedState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		a.says(complete(t, 10, newPod("web")))
		n.start()
		settle(time.Second)
		n.stop()
		file := filepath.Join(n.dir, "desired")
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)-1] ^= 1
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		a.setDown(true)
		n.start()
		settle(time.Minute)
		n.wantRunning("with damaged state and no peers", "uid-web/main/0")
		if _, err := os.Stat(file + ".damaged"); err != nil {
			t.Errorf("the damaged file is not kept: %v", err)
		}
		a.setDown(false)
		settle(10 * time.Second)
		n.wantRunning("with a peer", "uid-web/main/0")
	})
}

// TestHeartbeats: one each period that the peer names, also while the desired
// state's stream is being opened again; a peer that does not answer is left.
func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPeer("a"), newPeer("b")
		n := newNode(t, a, b)
		pod := newPod("web")
		a.says(complete(t, 10, pod))
		b.says(complete(t, 10, pod))
		n.start()
		settle(500 * time.Millisecond)
		settle(10 * time.Second)
		if got := a.count(func(p *testPeer) int { return len(p.heartbeats) }); got != 11 {
			t.Errorf("%d heartbeats in 10.5 s with a period of 1 s, want 11", got)
		}
		a.mu.Lock()
		a.period = 3 * time.Second
		a.heartbeats = nil
		a.mu.Unlock()
		settle(time.Second)
		settle(30 * time.Second)
		if got := a.count(func(p *testPeer) int { return len(p.heartbeats) }); got != 11 {
			t.Errorf("%d heartbeats in 31 s after the peer named 3 s, want 11", got)
		}

		// Desired breaks again and again; heartbeats do not.
		a.says(increment(t, 11)) // a gap each time
		b.says(increment(t, 11))
		a.mu.Lock()
		streams := slices.Clone(a.streams)
		a.period, a.heartbeats = time.Second, nil
		b.heartbeats = nil
		a.mu.Unlock()
		streams[0] <- increment(t, 5)
		settle(5 * time.Second)
		total := len(a.heartbeats) + len(b.heartbeats)
		if len(a.froms)+len(b.froms) < 3 || total < 3 {
			t.Errorf("%d heartbeats while the stream was opened %d times", total, len(a.froms)+len(b.froms))
		}
	})
}

// TestPausedPeer: a peer that holds the connection but answers no heartbeat is
// left within the lease, streams and all.
func TestPausedPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPeer("a"), newPeer("b")
		n := newNode(t, a, b)
		pod := newPod("web")
		a.says(complete(t, 10, pod))
		b.says(complete(t, 10, pod))
		n.start()
		settle(5 * time.Second)
		a.mu.Lock()
		a.silent = true
		a.mu.Unlock()
		settle(6 * time.Second)
		if len(b.heartbeats) < 2 || len(b.froms) != 1 {
			t.Errorf("after 6 s the other peer had %d heartbeats and %d streams, want the node to be with it", len(b.heartbeats), len(b.froms))
		}
	})
}

// TestCrashLoop covers the times at which a container is started again, which no
// single step shows.
func TestCrashLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{
			Name: "main", Image: "fake/crash:1", TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		})
		a.says(complete(t, 10, pod))
		start := time.Now()
		n.start()
		var starts []time.Duration
		last := -1
		for time.Since(start) < 20*time.Minute {
			all, err := n.rt.List(context.Background())
			if err == nil && len(all) == 1 && len(all[0].Containers) > 0 {
				for _, got := range all[0].Containers {
					if got.ID.Attempt > last {
						last = got.ID.Attempt
						starts = append(starts, got.StartedAt.Sub(start).Truncate(time.Second))
					}
				}
			}
			settle(100 * time.Millisecond)
		}
		want := []time.Duration{0, 0, 10, 30, 70, 150, 310, 610, 910}
		for i := range want {
			want[i] *= time.Second
		}
		if !slices.Equal(starts, want) {
			t.Errorf("starts are at %v, want %v", starts, want)
		}
		s, _ := a.status(t, pod.UID)
		c := s.ContainerStatuses[0]
		if c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" || c.RestartCount != 8 {
			t.Errorf("reported container is %+v, want it waiting in CrashLoopBackOff after 8 restarts", c)
		}
		if l := c.LastTerminationState.Terminated; l == nil || l.ExitCode != 1 || !strings.Contains(l.Message, "panic: crash was asked for") {
			t.Errorf("reported last state is %+v, want its last words", l)
		}
		if all, _ := n.rt.List(context.Background()); len(all[0].Containers) != 2 {
			t.Errorf("%d runs are kept, want the latest and the one before", len(all[0].Containers))
		}
		backoffs := 0
		for _, r := range a.reports {
			for _, e := range r.GetEvents() {
				if e.GetReason() == "BackOff" {
					backoffs++
				}
			}
		}
		if backoffs != 8 {
			t.Errorf("%d BackOff events, want one for each of 8 pauses", backoffs)
		}
	})
}

// TestGrace covers how long containers may take to stop, and that they are
// stopped together.
func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{Name: "x", Image: "fake/stubborn:1"}, corev1.Container{Name: "y", Image: "fake/stubborn:1"},
			corev1.Container{Name: "z", Image: "web:1"})
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Second)
		a.send(t, increment(t, 11, deleted(pod, 20)))
		settle(19 * time.Second)
		n.wantRunning("within the grace period", "uid-web/x/0", "uid-web/y/0")
		settle(2 * time.Second)
		n.wantRunning("after the grace period")
		s, r := a.status(t, pod.UID)
		if !r.GetRemoved() || s.ContainerStatuses[0].State.Terminated.ExitCode != 137 || s.ContainerStatuses[2].State.Terminated.ExitCode != 0 {
			t.Errorf("reported is %+v, removed %v; want x killed, z obeying, all removed", s.ContainerStatuses, r.GetRemoved())
		}
	})
}

// TestGraceCutShort: a second deletion with less grace takes effect at once.
func TestGraceCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{Name: "x", Image: "fake/stubborn:1"})
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Second)
		a.send(t, increment(t, 11, deleted(pod, 3600)))
		settle(time.Minute)
		n.wantRunning("within the long grace period", "uid-web/x/0")
		a.send(t, increment(t, 12, deleted(pod, 0)))
		settle(time.Second)
		n.wantRunning("after the short one")
	})
}

// TestDeleteWhilePulling: a deletion does not wait for an image.
func TestDeleteWhilePulling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{Name: "x", Image: "fake/slow:1"})
		a.says(complete(t, 10, pod))
		n.start()
		settle(2 * time.Second)
		a.send(t, increment(t, 11, deleted(pod, 30)))
		settle(time.Second)
		if _, r := a.status(t, pod.UID); !r.GetRemoved() {
			t.Error("the pod is not removed a second after its deletion, though nothing of it ran")
		}
	})
}

// TestImageBackOff: an image that cannot be had is reported and tried again.
func TestImageBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		n.rt.PullFails("web:1", errors.New("registry says no"))
		pod := newPod("web")
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Second)
		waiting := func() corev1.ContainerStateWaiting {
			s, _ := a.status(t, pod.UID)
			if len(s.ContainerStatuses) == 0 || s.ContainerStatuses[0].State.Waiting == nil {
				t.Fatalf("reported status is %+v, want a waiting container", s)
			}
			return *s.ContainerStatuses[0].State.Waiting
		}
		if w := waiting(); w.Reason != "ErrImagePull" || !strings.Contains(w.Message, "registry says no") {
			t.Errorf("after the first failure the container waits for %+v", w)
		}
		settle(15 * time.Second)
		if w := waiting(); w.Reason != "ImagePullBackOff" {
			t.Errorf("after the second failure the container waits for %+v", w)
		}
		n.rt.PullFails("web:1", nil)
		settle(20 * time.Second)
		n.wantRunning("once the image can be had", "uid-web/main/0")
	})
}

// TestUnlistableRuntime: while the runtime cannot say what runs, nothing is
// decided.
func TestUnlistableRuntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		n.rt.ListFails(errors.New("stuck"))
		a.says(complete(t, 10, newPod("web")))
		n.start()
		settle(30 * time.Second)
		n.rt.ListFails(nil)
		n.wantRunning("while it cannot be listed")
		settle(2 * time.Second)
		n.wantRunning("once it can be listed", "uid-web/main/0")
	})
}

// slowStarts is a runtime whose starts take a second and are counted.
type slowStarts struct {
	*fake.Runtime
	mu       sync.Mutex
	now, top int
}

func (s *slowStarts) RunContainer(ctx context.Context, c runtime.Container) error {
	s.mu.Lock()
	s.now++
	s.top = max(s.top, s.now)
	s.mu.Unlock()
	time.Sleep(time.Second)
	s.mu.Lock()
	s.now--
	s.mu.Unlock()
	return s.Runtime.RunContainer(ctx, c)
}

// TestParallelStarts: many pods at once are started a few at a time.
func TestParallelStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		slow := &slowStarts{Runtime: n.rt}
		n.wrap = slow
		var pods []*corev1.Pod
		for i := range 20 {
			pods = append(pods, newPod(fmt.Sprintf("web-%02d", i)))
		}
		a.says(complete(t, 10, pods...))
		n.start()
		settle(30 * time.Second)
		if got := len(n.running()); got != 20 || slow.top != 4 {
			t.Errorf("%d pods run, at most %d were started at once; want 20 and 4", got, slow.top)
		}
	})
}

// TestContainerView: what the agent puts together for a container arrives there,
// and its last words arrive in the status.
func TestContainerView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		field := func(path string) *corev1.EnvVarSource {
			return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
		}
		pod := newPod("web", corev1.Container{
			Name: "main", Image: "busybox:1",
			Command: []string{"sh", "-c"},
			Args:    []string{"echo '$(GREETING)' on $NODE; cat /etc/hosts; echo bye > /dev/termination-log; exit 3"},
			Env: []corev1.EnvVar{
				{Name: "NODE", ValueFrom: field("spec.nodeName")},
				{Name: "IP", ValueFrom: field("status.podIP")},
				{Name: "GREETING", Value: "hello from $(IP), $$(IP) and $(NOPE)"},
			},
			TerminationMessagePath: "/dev/termination-log",
		})
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
		pod.Spec.HostAliases = []corev1.HostAlias{{IP: "10.9.9.9", Hostnames: []string{"alias.test"}}}
		a.says(complete(t, 10, pod))
		n.start()
		settle(5 * time.Second)
		var log bytes.Buffer
		if err := n.rt.Logs(context.Background(), runtime.ContainerID{PodUID: "uid-web", Name: "main"}, runtime.LogOptions{TailLines: -1}, &log); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"hello from 10.1.0.2, $(IP) and $(NOPE) on n1\n", "10.1.0.2\tweb\n", "10.9.9.9\talias.test\n"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the container saw %q, want %q in it", log.String(), want)
			}
		}
		s, _ := a.status(t, pod.UID)
		if term := s.ContainerStatuses[0].State.Terminated; s.Phase != corev1.PodFailed || term == nil || term.ExitCode != 3 || term.Message != "bye\n" {
			t.Errorf("reported status is %+v, want failed with 3 and last words %q", s, "bye\n")
		}
	})
}

func logsOf(pod, container string, change ...func(*holdfastv1.LogsRequest)) *agentv1.SessionsResponse {
	req := &holdfastv1.LogsRequest{Namespace: "default", Pod: pod, Container: container, TailLines: -1}
	for _, f := range change {
		f(req)
	}
	return &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Logs{Logs: req}}
}

func execIn(pod string, stdin bool, command ...string) *agentv1.SessionsResponse {
	return &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Exec{Exec: &holdfastv1.ExecStart{
		Namespace: "default", Pod: pod, Command: command, Stdin: stdin,
	}}}
}

// TestLogs covers logs by the reverse tunnel: whole, followed until the caller
// goes, of the run before, and what cannot be had.
func TestLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		web := newPod("web")
		crash := newPod("crash", corev1.Container{Name: "main", Image: "fake/crash:1"})
		missing := newPod("missing", corev1.Container{Name: "main", Image: "fake/missing:1"})
		two := newPod("two", corev1.Container{Name: "x", Image: "web:1"}, corev1.Container{Name: "y", Image: "web:1"})
		a.says(complete(t, 10, web, crash, missing, two))
		n.start()
		settle(5 * time.Second)

		c := a.wish(t, logsOf("web", ""))
		<-c.ended
		if got := c.out.String(); !strings.HasPrefix(got, "web:1 started as pod default/web") || c.err != nil {
			t.Errorf("log is %q, error %v", got, c.err)
		}
		c = a.wish(t, logsOf("crash", "main", func(r *holdfastv1.LogsRequest) { r.Previous = true; r.TailLines = 1 }))
		<-c.ended
		if got := c.out.String(); got != "main.main()\n" || c.err != nil {
			t.Errorf("the last line of the run before is %q, error %v", got, c.err)
		}

		c = a.wish(t, logsOf("web", "main", func(r *holdfastv1.LogsRequest) { r.Follow = true; r.TailLines = 0 }))
		settle(30 * time.Second)
		select {
		case <-c.ended:
			t.Error("a followed log has ended, though its container runs")
		default:
		}
		close(c.leave)
		<-c.ended
		settle(time.Second)
		if got := strings.Count(c.out.String(), "alive"); got != 3 {
			t.Errorf("%d lines were followed in 30 s, want 3: %q", got, c.out.String())
		}

		for _, bad := range []struct {
			wish *agentv1.SessionsResponse
			code string
			text string
		}{
			{logsOf("nope", ""), "not_found", "default/nope"},
			{logsOf("web", "nope"), "not_found", `"main"`},
			{logsOf("two", ""), "invalid_argument", "several containers"},
			{logsOf("missing", ""), "failed_precondition", "ImagePullBackOff"},
			{logsOf("web", "", func(r *holdfastv1.LogsRequest) { r.Previous = true }), "not_found", "no previous run"},
		} {
			c := a.wish(t, bad.wish)
			<-c.ended
			if c.err.GetCode() != bad.code || !strings.Contains(c.err.GetMessage(), bad.text) {
				t.Errorf("%v: error is %v, want %s with %q", bad.wish, c.err, bad.code, bad.text)
			}
		}
	})
}

// TestLogsOfRemovedPods: the log of a pod that was deleted is there for a while, for who
// asks for it, and the caller is told.
func TestLogsOfRemovedPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		n.keptLogs = 10 * time.Minute
		web, two := newPod("web"), newPod("two", corev1.Container{Name: "x", Image: "web:1"}, corev1.Container{Name: "y", Image: "web:1"})
		a.says(complete(t, 10, web, two))
		n.start()
		settle(5 * time.Second)
		a.send(t, &agentv1.DesiredResponse{Revision: 11, RemovedPods: []string{string(web.UID), string(two.UID)}})
		settle(time.Minute)
		n.wantRunning("after the deletion")
		removed := func(r *holdfastv1.LogsRequest) { r.Removed = true }
		c := a.wish(t, logsOf("web", "", removed, func(r *holdfastv1.LogsRequest) { r.Follow = true }))
		<-c.ended
		if got := c.out.String(); c.err != nil || !strings.HasPrefix(got, "web:1 started as pod default/web") || !strings.Contains(got, "stopping") {
			t.Errorf("the log of a deleted pod is %q, error %v", got, c.err)
		}
		if !strings.Contains(c.notice, "Pod default/web was deleted") || !strings.Contains(c.notice, "n1") {
			t.Errorf("the notice is %q", c.notice)
		}
		for _, bad := range []struct {
			wish *agentv1.SessionsResponse
			code string
			text string
		}{
			{logsOf("web", ""), "not_found", "is not on node"}, // who does not ask for it, as kubectl
			{logsOf("web", "other", removed), "not_found", `logs of ["main"]`},
			{logsOf("two", "", removed), "invalid_argument", `["x" "y"]`},
			{logsOf("web", "", removed, func(r *holdfastv1.LogsRequest) { r.Previous = true }), "not_found", "earlier run"},
			{logsOf("never", "", removed), "not_found", "10m"},
		} {
			c := a.wish(t, bad.wish)
			<-c.ended
			if c.err.GetCode() != bad.code || !strings.Contains(c.err.GetMessage(), bad.text) {
				t.Errorf("%v: error is %v, want %s with %q", bad.wish, c.err, bad.code, bad.text)
			}
		}
		settle(11 * time.Minute)
		c = a.wish(t, logsOf("web", "", removed))
		<-c.ended
		if c.err.GetCode() != "not_found" {
			t.Errorf("after its time the log is %q, error %v; want it gone", c.out.String(), c.err)
		}
	})
}

// TestExec covers exec by the reverse tunnel: streams apart, stdin and its end,
// exit codes, several at once, and a caller who goes.
func TestExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		dead := newPod("dead", corev1.Container{Name: "main", Image: "fake/exit:0"})
		dead.Spec.RestartPolicy = corev1.RestartPolicyNever
		a.says(complete(t, 10, newPod("web"), dead))
		n.start()
		settle(5 * time.Second)

		c := a.wish(t, execIn("web", false, "sh", "-c", "echo out; echo err >&2; exit 5"))
		<-c.ended
		if !c.start || c.out.String() != "out\n" || c.stderr.String() != "err\n" || c.code != 5 || c.err != nil {
			t.Errorf("exec gave started %v, stdout %q, stderr %q, code %d, error %v", c.start, c.out.String(), c.stderr.String(), c.code, c.err)
		}

		cat := a.wish(t, execIn("web", true, "cat"))
		other := a.wish(t, execIn("web", false, "echo", "meanwhile"))
		<-other.ended
		if other.out.String() != "meanwhile\n" {
			t.Errorf("a second session gave %q", other.out.String())
		}
		for _, text := range []string{"one\n", "two\n"} {
			cat.in <- &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Stdin{Stdin: []byte(text)}}
		}
		cat.in <- &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_CloseStdin{CloseStdin: true}}
		<-cat.ended
		if cat.out.String() != "one\ntwo\n" || cat.code != 0 {
			t.Errorf("cat gave %q, code %d", cat.out.String(), cat.code)
		}

		sleep := a.wish(t, execIn("web", false, "sleep", "100000"))
		settle(time.Second)
		if !sleep.start {
			t.Error("no word that the command has started")
		}
		close(sleep.leave)
		<-sleep.ended
		settle(time.Second) // the bubble would not end with the command still there

		for _, bad := range []struct {
			wish *agentv1.SessionsResponse
			code string
		}{
			{execIn("nope", false, "true"), "not_found"},
			{execIn("dead", false, "true"), "failed_precondition"},
			{execIn("web", false), "invalid_argument"},
			{&agentv1.SessionsResponse{}, "unimplemented"},
		} {
			c := a.wish(t, bad.wish)
			<-c.ended
			if c.err.GetCode() != bad.code || c.err.GetMessage() == "" {
				t.Errorf("%v: error is %v, want %s and a message", bad.wish, c.err, bad.code)
			}
		}
	})
}

// TestLogsLimit: a log ends after so many bytes, within a line if need be.
func TestLogsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		a.says(complete(t, 10, newPod("web", corev1.Container{Name: "main", Image: "web:1", Command: []string{"sh", "-c", "echo one; echo two; echo three; sleep 100"}})))
		n.start()
		settle(5 * time.Second)
		for limit, want := range map[int64]string{0: "one\ntwo\nthree\n", 4: "one\n", 6: "one\ntw", 14: "one\ntwo\nthree\n", 1000: "one\ntwo\nthree\n"} {
			c := a.wish(t, logsOf("web", "main", func(r *holdfastv1.LogsRequest) { r.LimitBytes = limit; r.Follow = limit > 0 && limit < 14 }))
			<-c.ended
			if got := c.out.String(); got != want || c.err != nil {
				t.Errorf("up to %d bytes: %q, error %v, want %q", limit, got, c.err, want)
			}
		}
	})
}

func attachTo(pod string, stdin bool) *agentv1.SessionsResponse {
	return &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Attach{Attach: &holdfastv1.AttachStart{Namespace: "default", Pod: pod, Stdin: stdin}}}
}

// TestAttach covers attach by the reverse tunnel: output from then on, stdin, the
// exit code, a caller who goes, and what cannot be had.
func TestAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		reader := newPod("reader", corev1.Container{Name: "main", Image: "web:1", Stdin: true, Command: []string{"sh", "-c", "echo before; cat; exit 3"}})
		once := newPod("once", corev1.Container{Name: "main", Image: "web:1", Stdin: true, StdinOnce: true, Command: []string{"sh", "-c", "cat; echo over >&2; exit 5"}})
		once.Spec.RestartPolicy = corev1.RestartPolicyNever
		dead := newPod("dead", corev1.Container{Name: "main", Image: "fake/exit:0"})
		dead.Spec.RestartPolicy = corev1.RestartPolicyNever
		a.says(complete(t, 10, reader, once, dead, newPod("web")))
		n.start()
		settle(5 * time.Second)
		say := func(c *sessionCall, text string) {
			c.say <- &agentv1.SessionResponse{Attach: &holdfastv1.AttachRequest{Message: &holdfastv1.AttachRequest_Stdin{Stdin: []byte(text)}}}
			settle(time.Second)
		}

		first := a.wish(t, attachTo("reader", true))
		settle(time.Second)
		if !first.start {
			t.Error("no word that nothing is missed from then on")
		}
		say(first, "one\n")
		close(first.leave)
		<-first.ended
		settle(time.Second)
		second := a.wish(t, attachTo("reader", true))
		watcher := a.wish(t, attachTo("reader", false))
		settle(time.Second)
		say(second, "two\n")
		if first.out.String() != "one\n" || second.out.String() != "two\n" || watcher.out.String() != "two\n" {
			t.Errorf("attached one after the other saw %q, %q, %q", first.out.String(), second.out.String(), watcher.out.String())
		}
		a.send(t, increment(t, 11, deleted(reader, 1)))
		<-second.ended
		<-watcher.ended
		if second.code != 143 && second.code != 137 {
			t.Errorf("exit code %d, want that of a stopped container", second.code)
		}

		c := a.wish(t, attachTo("once", true))
		settle(time.Second)
		say(c, "all\n")
		c.say <- &agentv1.SessionResponse{Attach: &holdfastv1.AttachRequest{Message: &holdfastv1.AttachRequest_CloseStdin{CloseStdin: true}}}
		<-c.ended
		if c.out.String() != "all\n" || c.stderr.String() != "over\n" || c.code != 5 {
			t.Errorf("stdin once gave %q, %q, code %d", c.out.String(), c.stderr.String(), c.code)
		}

		for _, bad := range []struct {
			wish       *agentv1.SessionsResponse
			code, text string
		}{
			{attachTo("nope", false), "not_found", "default/nope"},
			{attachTo("dead", false), "failed_precondition", "it is exited"},
			{attachTo("web", true), "failed_precondition", "stdin: true"},
		} {
			c := a.wish(t, bad.wish)
			<-c.ended
			if c.err.GetCode() != bad.code || !strings.Contains(c.err.GetMessage(), bad.text) {
				t.Errorf("%v: error is %v, want %s with %q", bad.wish, c.err, bad.code, bad.text)
			}
		}
	})
}

// TestUnreadInput: a command that does not read keeps nobody from noticing that its
// caller has gone; what one does read is counted, so that the peer sends more.
func TestUnreadInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		counted := &countingExecs{Runtime: n.rt}
		n.wrap = counted
		a.says(complete(t, 10, newPod("web")))
		n.start()
		settle(5 * time.Second)
		feed := func(command string) *sessionCall {
			c := a.wish(t, execIn("web", true, command, "1000000"))
			settle(time.Second)
			for range 4 { // as much as a peer sends ahead
				c.in <- &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Stdin{Stdin: make([]byte, 256<<10)}}
			}
			settle(time.Second)
			return c
		}
		c := feed("sleep")
		if counted.open.Load() != 1 || c.taken > 128<<10 {
			t.Errorf("%d commands run, want one; %d bytes were taken by one that does not read", counted.open.Load(), c.taken)
		}
		close(c.leave)
		settle(time.Second)
		if counted.open.Load() != 0 {
			t.Error("the command goes on without its caller")
		}
		c = feed("sh")
		if c.taken < 900<<10 {
			t.Errorf("%d bytes of a MiB were taken by a command that reads", c.taken)
		}
		close(c.leave)
		<-c.ended
	})
}

// countingExecs counts the commands that run.
type countingExecs struct {
	*fake.Runtime
	open atomic.Int64
}

func (r *countingExecs) Exec(ctx context.Context, id runtime.ContainerID, options runtime.ExecOptions) (int, error) {
	r.open.Add(1)
	defer r.open.Add(-1)
	return r.Runtime.Exec(ctx, id, options)
}

func portOf(pod string, port uint32) *agentv1.SessionsResponse {
	return &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_PortForward{PortForward: &holdfastv1.PortForwardStart{Namespace: "default", Pod: pod, Port: port}}}
}

// TestPortForward covers connections by the reverse tunnel: data both ways, the end of
// each direction, a caller who goes, a container that ends, and what cannot be had.
func TestPortForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		web := newPod("web")
		a.says(complete(t, 10, web))
		n.start()
		settle(5 * time.Second)
		data := func(text string) *agentv1.SessionResponse {
			return &agentv1.SessionResponse{PortForward: &holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_Data{Data: []byte(text)}}}
		}
		end := &agentv1.SessionResponse{PortForward: &holdfastv1.PortForwardRequest{Message: &holdfastv1.PortForwardRequest_CloseWrite{CloseWrite: true}}}

		c := a.wish(t, portOf("web", 7))
		settle(time.Second)
		if !c.start {
			t.Fatalf("not connected: %v", c.err)
		}
		c.say <- data("to ")
		c.say <- data("and fro")
		settle(time.Second)
		if c.out.String() != "to and fro" || c.closed {
			t.Errorf("%q came back, closed %t", c.out.String(), c.closed)
		}
		c.say <- end
		<-c.ended
		if !c.closed || c.err != nil {
			t.Errorf("after the end the pod has closed %t, error %v", c.closed, c.err)
		}

		c = a.wish(t, portOf("web", 80))
		c.say <- data("GET /path HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
		settle(time.Second)
		if !strings.HasSuffix(c.out.String(), "web:1 in pod default/web: GET /path\n") || !c.closed {
			t.Errorf("%q came back, closed %t", c.out.String(), c.closed)
		}
		close(c.leave)
		<-c.ended

		for _, bad := range []struct {
			wish       *agentv1.SessionsResponse
			code, text string
		}{
			{portOf("web", 81), "failed_precondition", "connection refused: nothing listens there"},
			{portOf("nope", 80), "not_found", "default/nope"},
			{portOf("web", 0), "invalid_argument", "no such port"},
		} {
			c := a.wish(t, bad.wish)
			<-c.ended
			if c.err.GetCode() != bad.code || !strings.Contains(c.err.GetMessage(), bad.text) {
				t.Errorf("%v: error is %v, want %s with %q", bad.wish, c.err, bad.code, bad.text)
			}
		}

		open := a.wish(t, portOf("web", 7))
		settle(time.Second)
		a.send(t, increment(t, 11, deleted(web, 1)))
		settle(5 * time.Second)
		if !open.closed {
			t.Error("the connection goes on without its container")
		}
		close(open.leave)
		<-open.ended
	})
}

// TestUsage: what runs is measured and reported, first soon and then at the peer's
// pace, to whichever peer is in use.
func TestUsage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		a.says(complete(t, 10, newPod("web", corev1.Container{Name: "x", Image: "web:1"}, corev1.Container{Name: "b", Image: "web:1"})))
		n.start()
		settle(50 * time.Second)
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.usage) != 3 {
			t.Fatalf("%d reports in 50 s, want 3", len(a.usage))
		}
		for i, want := range []time.Duration{2 * time.Second, 22 * time.Second, 42 * time.Second} {
			if got := a.usageAt[i].Sub(a.usageAt[0]) + 2*time.Second; got != want {
				t.Errorf("report %d came after %v, want %v", i, got, want)
			}
		}
		last := a.usage[2]
		if len(last.GetPods()) != 1 || last.GetNode().GetMemoryBytes() <= 0 || last.GetNode().GetWindow().AsDuration() != 20*time.Second {
			t.Fatalf("report is %v", last)
		}
		pod := last.GetPods()[0]
		if pod.GetUid() != "uid-web" || pod.GetWindow().AsDuration() != 20*time.Second || len(pod.GetContainers()) != 2 || pod.GetContainers()[0].GetName() != "b" {
			t.Errorf("pod's usage is %v", pod)
		}
		for _, c := range pod.GetContainers() {
			if c.GetCpuNanocores() != 1e6 || c.GetMemoryBytes() != 2<<20 {
				t.Errorf("container's usage is %v, want what the fake uses", c)
			}
		}
	})
}

// TestExecTTY covers a shell on a terminal.
func TestExecTTY(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		a.says(complete(t, 10, newPod("web")))
		n.start()
		settle(5 * time.Second)
		c := a.wish(t, &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Exec{Exec: &holdfastv1.ExecStart{
			Namespace: "default", Pod: "web", Command: []string{"sh"}, Tty: true, Stdin: true,
			Size: &holdfastv1.TerminalSize{Width: 100, Height: 30},
		}}})
		say := func(text string) {
			c.in <- &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Stdin{Stdin: []byte(text)}}
			settle(time.Second)
		}
		settle(time.Second) // the prompt
		say("stty size\r")
		c.in <- &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Resize{Resize: &holdfastv1.TerminalSize{Width: 80, Height: 25}}}
		settle(time.Second)
		say("stty size\r")
		say("sleep 1000\r")
		say("\x03") // ^C
		say("exit 4\r")
		<-c.ended
		want := "web:/# stty size\r\n30 100\r\nweb:/# stty size\r\n25 80\r\nweb:/# sleep 1000\r\n^C\r\nweb:/# web:/# exit 4\r\n"
		if got := c.out.String(); got != want || c.code != 4 {
			t.Errorf("the terminal showed %q, code %d; want %q and 4", got, c.code, want)
		}
	})
}

// TestSocket: the agent's own socket, outside of a bubble, since it is real.
func TestSocket(t *testing.T) {
	a := newPeer("a")
	a.says(complete(t, 10, newPod("web")))
	dir := t.TempDir()
	rt := fake.New(fake.Config{})
	defer rt.Close()
	cfg := agent.Config{
		Node: "n1", Client: &testClient{peers: []*testPeer{a}}, Runtime: rt, Network: fake.NewNetwork(),
		DataDir: dir, Address: netip.MustParseAddr("192.0.2.1"),
	}
	ag, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- ag.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	socket := filepath.Join(dir, "agent.sock")
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	get := func(path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://agent"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		data, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(data)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		code, text := get("/healthz")
		_, metrics := get("/metrics")
		if code == http.StatusOK && strings.Contains(text, "peer: a\ndesired revision: 10") &&
			strings.Contains(metrics, `holdfast_agent_pods{phase="Running"} 1`) && strings.Contains(metrics, "holdfast_agent_connected 1") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after 10 s /healthz says %d %q, and /metrics %q", code, text, metrics)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if code, _ := get("/debug/pprof/cmdline"); code != http.StatusOK {
		t.Errorf("/debug/pprof/cmdline answered %d", code)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v (%v), want 0600", info.Mode(), err)
	}

	second, err := agent.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another agent runs on "+dir) {
		t.Errorf("a second agent on the directory returned %v", err)
	}
}

// TestNewRefuses: what is missing is named.
func TestNewRefuses(t *testing.T) {
	good := agent.Config{
		Node: "n1", Client: &testClient{}, Runtime: fake.New(fake.Config{}), Network: fake.NewNetwork(),
		DataDir: t.TempDir(), Address: netip.MustParseAddr("192.0.2.1"),
	}
	for field, spoil := range map[string]func(*agent.Config){
		"Node":    func(c *agent.Config) { c.Node = "" },
		"Client":  func(c *agent.Config) { c.Client = nil },
		"Runtime": func(c *agent.Config) { c.Runtime = nil },
		"Network": func(c *agent.Config) { c.Network = nil },
		"DataDir": func(c *agent.Config) { c.DataDir = "" },
		"Address": func(c *agent.Config) { c.Address = netip.Addr{} },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := agent.New(cfg); err == nil || !strings.Contains(err.Error(), "Config."+field) {
			t.Errorf("without %s New returned %v", field, err)
		}
	}
	if _, err := agent.New(good); err != nil {
		t.Errorf("New: %v", err)
	}
}

// TestConfirm: an order to end a pod is checked with a quorum before it is carried
// out; without one, or against its word, nothing is stopped. The grace period
// begins with the answer.
func TestConfirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod, second, stubborn := newPod("web"), newPod("second"), newPod("stubborn", corev1.Container{Name: "main", Image: "fake/stubborn:1"})
		a.says(complete(t, 10, pod, second, stubborn))
		n.start()
		settle(time.Second)
		all := []string{"uid-second/main/0", "uid-stubborn/main/0", "uid-web/main/0"}
		n.wantRunning("at first", all...)

		a.mu.Lock()
		a.noQuorum, a.wanted = true, []string{"uid-second"}
		a.mu.Unlock()
		a.send(t, increment(t, 11, deleted(pod, 30), deleted(second, 30), deleted(stubborn, 30)))
		settle(time.Hour)
		n.wantRunning("without a quorum", all...)

		a.mu.Lock()
		a.noQuorum = false
		a.mu.Unlock()
		settle(7 * time.Second)
		n.wantRunning("with a quorum that wants one, and within the grace period", "uid-second/main/0", "uid-stubborn/main/0")
		settle(30 * time.Second)
		n.wantRunning("after it", "uid-second/main/0")
		settle(time.Hour)
		n.wantRunning("long after", "uid-second/main/0")
	})
}

// TestImagesGo: when the disk fills up the images go that no container was made from,
// and those stay that one was.
func TestImagesGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web")
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Second)
		for _, ref := range []string{"job:1", "old:1"} {
			if _, err := n.rt.EnsureImage(t.Context(), ref, corev1.PullIfNotPresent, nil); err != nil {
				t.Fatal(err)
			}
		}
		names := func() string {
			t.Helper()
			images, err := n.rt.Images(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, i := range images {
				all = append(all, i.Names...)
			}
			slices.Sort(all)
			return strings.Join(all, " ")
		}
		used := pod.Spec.Containers[0].Image
		settle(time.Hour)
		if got, want := names(), "job:1 old:1 "+used; got != want {
			t.Errorf("on a disk with room there are %q, want %q", got, want)
		}
		n.rt.FillDisk(99 << 30)
		settle(2 * time.Minute)
		if got := names(); got != used {
			t.Errorf("on a full disk there are %q, want %q alone", got, used)
		}
		n.stop()
	})
}
