package apiserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
)

const (
	// A node has a clone when an agent that another had taken the place of speaks again
	// so many times, over so long: an agent that was restarted does not come back. What
	// it had sent before it ended may arrive late, though at once, after a partition.
	cloneReturns = 4
	cloneSpan    = 2 * time.Second
	// cloneMemory is how long returns are remembered.
	cloneMemory = time.Minute
)

// clones notices that two agents use one certificate at the same time, by what they call
// themselves in their heartbeats: a machine that was copied with its data directory. A
// peer sees those that talk to it, and the leader those that talk to any.
type clones struct {
	mu    sync.Mutex
	nodes map[string]*agentsOf
}

// agentsOf is the last agents of one node.
type agentsOf struct {
	now, before string // instances
	returns     int
	since       time.Time // of the first return
}

// seen notes that an agent of node spoke at a moment, and reports whether there are two
// of them by now.
func (c *clones) seen(node, instance string, at time.Time) bool {
	if instance == "" {
		return false // an agent of the past
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nodes == nil {
		c.nodes = make(map[string]*agentsOf)
	}
	a := c.nodes[node]
	if a == nil {
		c.nodes[node] = &agentsOf{now: instance}
		return false
	}
	switch instance {
	case a.now:
		return false
	case a.before:
		if a.returns == 0 || at.Sub(a.since) > cloneMemory {
			a.returns, a.since = 0, at
		}
		a.returns++
	default:
		a.returns = 0
	}
	a.now, a.before = instance, a.now
	return a.returns >= cloneReturns && at.Sub(a.since) >= cloneSpan
}

// forget begins anew with a node.
func (c *clones) forget(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.nodes, node)
}

// heard notes a heartbeat, and puts the node into quarantine if it comes from two
// machines: neither can be told from the other, so neither is believed.
func (s *Server) heard(ctx context.Context, node, instance string, age time.Duration) {
	if !s.clones.seen(node, instance, time.Now().Add(-age)) {
		return
	}
	why := "two machines use its certificate at the same time. One is a copy of the other: stop that, empty its data directory and let it join under another name"
	if !s.quarantine(ctx, pki.RoleNode, node, why) {
		return
	}
	s.clones.forget(node)
	about := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
	if obj, ok := object.Get[*corev1.Node](s.store.View(), object.KeyOf(about)); ok {
		about = obj
	}
	s.cfg.Events.Recorder("peer", s.cfg.PeerID).Record(about, corev1.EventTypeWarning, "NodeCloned",
		fmt.Sprintf("%s. Both are refused until then: holdfast auth readmit node/%s", why, node))
}

// PeerCloned puts a peer into quarantine of which two processes are connected: its data
// directory was copied, and who votes must be one. Whatever it calls, both are refused;
// the others go on without, if they can.
func (s *Server) PeerCloned(ctx context.Context, name string) {
	why := "two processes use its certificate at the same time: its data directory was copied. Stop one of them. If the copy has ever run without the other, remove the peer (holdfast peer remove " + name + ") and let the machine join under another name"
	if _, known := revocationAt(s.store.View(), revokedKeyOf(pki.RolePeer, name)); known || !s.quarantine(ctx, pki.RolePeer, name, why) {
		return
	}
	about := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceDefault}} // a peer is no object
	s.cfg.Events.Recorder("peer", s.cfg.PeerID).Record(about, corev1.EventTypeWarning, "PeerCloned",
		fmt.Sprintf("peer %s: %s. Both are refused until then: holdfast auth readmit peer/%s", name, why, name))
}

// quarantine refuses an identity until somebody readmits it, and reports whether that is
// written.
func (s *Server) quarantine(ctx context.Context, role pki.Role, name, why string) bool {
	_, err := s.revoke(ctx, revokedKeyOf(role, name), string(role)+" "+name, revocationRecord{Kind: kindQuarantined, By: "peer/" + s.cfg.PeerID, Reason: why}, nil)
	if err != nil {
		s.log.Error("it is there twice, and could not be put into quarantine", "role", role, "name", name, "err", err)
		return false
	}
	s.log.Error("it is there twice: both are in quarantine", "role", role, "name", name)
	return true
}
