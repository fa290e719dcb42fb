package agent_test

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

// newFencedNode returns a node whose clock counts from an hour before now, with a
// peer that renews its lease.
func newFencedNode(t *testing.T, a *testPeer) *testNode {
	a.grants = true
	n := newNode(t, a)
	start := time.Now().Add(-time.Hour)
	n.clock = func() time.Duration { return time.Since(start) }
	return n
}

func fencedPod(name string) *corev1.Pod {
	pod := newPod(name)
	pod.Annotations = map[string]string{object.FencingAnnotation: object.FencingStrict}
	return pod
}

// until runs virtual time until the pods that run are want, and returns how long
// that took.
func (n *testNode) until(limit time.Duration, want ...string) time.Duration {
	n.t.Helper()
	start := time.Now()
	for {
		got := n.running()
		if len(got) == len(want) && (len(got) == 0 || got[0] == want[0]) {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			n.t.Fatalf("after %v running are %q, want %q", limit, got, want)
		}
		settle(50 * time.Millisecond)
	}
}

// TestFencedPodStopsWithTheLease: a fenced pod is stopped before the lease is over,
// which counts from the heartbeat that the leader granted; another goes on. When there is a
// lease again it is started again.
func TestFencedPodStopsWithTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newFencedNode(t, a)
		a.wanted = []string{"uid-db"}
		a.says(complete(t, 10, fencedPod("db"), newPod("web")))
		n.start()
		settle(5 * time.Second)
		n.wantRunning("with a lease", "uid-db/main/0", "uid-web/main/0")
		settle(time.Minute)
		n.wantRunning("a minute later", "uid-db/main/0", "uid-web/main/0")

		last := a.heartbeats[len(a.heartbeats)-2] // whose grant the agent has been told
		a.setDown(true)
		n.until(time.Minute, "uid-web/main/0")
		if at := time.Since(last); at > object.FencingTerm || at < object.FencingTerm/2 {
			t.Errorf("the pod was stopped %v after the heartbeat that was granted last, want within %v, and not at once", at, object.FencingTerm)
		}
		settle(10 * time.Minute)
		n.wantRunning("as long as no peer answers", "uid-web/main/0")

		a.setDown(false)
		n.until(time.Minute, "uid-db/main/1", "uid-web/main/0")
	})
}

// TestFencedPodAndAnAgentThatStarts: the lease is kept over a restart of the agent,
// and is no longer for it. A pod that runs goes on with it; none is started with it.
func TestFencedPodAndAnAgentThatStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newFencedNode(t, a)
		a.wanted = []string{"uid-db", "uid-idle"}
		a.says(complete(t, 10, fencedPod("db")))
		n.start()
		settle(20 * time.Second)
		n.wantRunning("at first", "uid-db/main/0")
		a.setDown(true)
		a.grants = false
		settle(2 * time.Second)
		n.stop()
		settle(time.Second)
		n.start()
		settle(time.Second)
		n.wantRunning("with what is left of the lease", "uid-db/main/0")
		if took := n.until(time.Minute); took > 6*time.Second {
			t.Errorf("the pod was stopped %v after the agent had started, want the old deadline", took)
		}
		n.stop()
		n.start()
		settle(time.Minute)
		n.wantRunning("started anew without a lease")

		// A peer that answers and grants nothing.
		a.granted = 0
		a.setDown(false)
		settle(time.Minute)
		n.wantRunning("heard, but without a lease")
		a.grants = true
		n.until(time.Minute, "uid-db/main/1")
	})
}

// TestFencedPodIsAskedFor: what the agent knows does not suffice to start a fenced pod:
// it may have been replaced while there was no lease.
func TestFencedPodIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newFencedNode(t, a)
		a.says(complete(t, 10, fencedPod("db"), newPod("web")))
		n.start()
		settle(time.Minute)
		n.wantRunning("while a quorum does not know the pod", "uid-web/main/0")
		if a.confirms == 0 {
			t.Error("nobody was asked")
		}
		a.wanted = []string{"uid-db"}
		n.until(time.Minute, "uid-db/main/0", "uid-web/main/0")
	})
}

// TestPeerThatReachesNoLeader: a peer that answers, but through which the lease is not
// renewed, is left before the lease is over.
func TestPeerThatReachesNoLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newPeer("a"), newPeer("b")
		n := newFencedNode(t, a)
		n.client.peers = append(n.client.peers, b)
		pod := fencedPod("db")
		for _, p := range []*testPeer{a, b} {
			p.wanted = []string{"uid-db"}
			p.says(complete(t, 10, pod))
		}
		n.start()
		settle(time.Minute)
		n.wantRunning("with the first peer", "uid-db/main/0")
		a.mu.Lock()
		a.grants, b.grants = false, true
		a.mu.Unlock()
		settle(10 * time.Second)
		if got := n.client.Peer(); got != "b" {
			t.Errorf("the agent is with peer %q, want b", got)
		}
		n.wantRunning("with the second peer, without a gap", "uid-db/main/0")

		// Where no peer helps, it does not go round and round.
		b.mu.Lock()
		b.grants = false
		b.mu.Unlock()
		sessions := func() (n int) {
			for _, p := range []*testPeer{a, b} {
				p.mu.Lock()
				n += len(p.froms)
				p.mu.Unlock()
			}
			return n
		}
		before := sessions()
		settle(10 * time.Minute)
		if more := sessions() - before; more > 20 {
			t.Errorf("%d sessions in ten minutes without a leader", more)
		}
	})
}
