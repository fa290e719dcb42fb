package apiserver

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestLease: a lease is renewed by the leader alone, after a quorum has said that it
// leads, and not for a node that is given up or unknown; any peer tells the agent.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		leads := func(p *storetest.Peer) {
			t.Helper()
			lctx, done := context.WithCancel(ctx)
			_ = p.Store.Lead(lctx, func(ctx context.Context, l *raftstore.Leader) error {
				if err := c.servers[p.ID].beginReign(ctx, l); err != nil {
					t.Error(err)
				}
				done()
				return nil
			})
		}
		leader := raft.WaitLeader()
		others := raft.Others(leader)
		put := func(node *corev1.Node) {
			t.Helper()
			data, err := object.Encode(node)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := raft.WaitLeader(others...).Store.Txn(ctx, raftstore.Txn{Then: []raftstore.Op{raftstore.Put(string(object.KeyOf(node)), data)}}); err != nil {
				t.Fatal(err)
			}
		}
		clock := int64(0)
		// granted is what the agent is told by a peer, by when it has sent a few heartbeats.
		granted := func(peer string) int64 {
			t.Helper()
			var last int64
			for range 5 {
				clock++
				res, err := c.agent(peer, "n1").Heartbeat(ctx, &agentv1.HeartbeatRequest{BootId: "boot", SentAt: clock})
				if err != nil {
					t.Fatal(err)
				}
				last = res.GetGrantedAt()
				time.Sleep(1100 * time.Millisecond)
			}
			return last
		}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "n1"}}
		for _, p := range raft.Peers {
			if got := granted(p.ID); got != 0 {
				t.Fatalf("a node that nobody knows is granted %d by %s", got, p.ID)
			}
		}
		others = raft.Peers
		put(node)
		if got := granted(leader.ID); got != 0 {
			t.Fatalf("before the leader has written that it leads, %d is granted", got)
		}
		leads(leader)
		for _, p := range raft.Peers {
			if got := granted(p.ID); got < clock-2 {
				t.Fatalf("%s tells that %d is granted of %d, want it within two", p.ID, got, clock)
			}
		}
		if res, err := c.agent(leader.ID, "n1").Heartbeat(ctx, &agentv1.HeartbeatRequest{BootId: "another", SentAt: 1}); err != nil || res.GetGrantedAt() != 0 {
			t.Fatalf("after a restart of the machine %d is granted (%v), want nothing of the time before", res.GetGrantedAt(), err)
		}

		node.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}}
		put(node)
		time.Sleep(2 * time.Second)
		before := granted(leader.ID)
		if got := granted(leader.ID); got != before {
			t.Fatalf("a node that was given up is granted %d after %d", got, before)
		}
		node.Spec.Taints = nil
		put(node)
		if got := granted(leader.ID); got <= before {
			t.Fatalf("a node that was taken back is still at %d", got)
		}

		// A leader that is cut off answers, and grants nothing; nor does one that was
		// succeeded, however much it believes in itself.
		raft.Cut([]*storetest.Peer{leader}, raft.Others(leader))
		for _, p := range raft.Peers {
			c.setDown(p.ID, true)
		}
		time.Sleep(2 * time.Second)
		before = granted(leader.ID)
		if got := granted(leader.ID); got != before {
			t.Fatalf("a leader without a quorum grants %d after %d", got, before)
		}
		next := raft.WaitLeader(raft.Others(leader)...)
		leads(next)
		raft.Heal()
		time.Sleep(5 * time.Second)
		if now, _ := next.Store.Leader(); now == next.ID {
			beats := c.servers[leader.ID].heartbeats.pending(true)
			if nodes, err := c.servers[leader.ID].grantable(ctx, beats); len(beats) == 0 || err != nil || len(nodes) != 0 {
				t.Fatalf("of %d, one that was succeeded grants %v (%v)", len(beats), nodes, err)
			}
			if nodes, err := c.servers[next.ID].grantable(ctx, beats); err != nil || len(nodes) != 1 {
				t.Fatalf("its successor grants %v (%v)", nodes, err)
			}
		}
	})
}
