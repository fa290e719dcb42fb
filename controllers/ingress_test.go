package controllers

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestPlanIngress runs testdata/ingress/*.txtar: nodes with internal= and external=
// addresses, and what an Ingress's status says after them. have= is what it says before.
func TestPlanIngress(t *testing.T) {
	golden.Run(t, "testdata/ingress/*.txtar", func(t *testing.T, in golden.Input) string {
		l := one(t, in.File("ingress"))
		ing := &networkingv1.Ingress{ObjectMeta: l.meta()}
		if v, ok := l.get("have"); ok {
			for ip := range strings.SplitSeq(v, ",") {
				ing.Status.LoadBalancer.Ingress = append(ing.Status.LoadBalancer.Ingress, networkingv1.IngressLoadBalancerIngress{IP: ip})
			}
		}
		l.done()
		var nodes []*corev1.Node
		for _, l := range parseLines(t, in.File("nodes")) {
			var addresses []corev1.NodeAddress
			for key, kind := range map[string]corev1.NodeAddressType{"internal": corev1.NodeInternalIP, "external": corev1.NodeExternalIP} {
				if v, ok := l.get(key); ok {
					for ip := range strings.SplitSeq(v, ",") {
						addresses = append(addresses, corev1.NodeAddress{Type: kind, Address: ip})
					}
				}
			}
			node := l.node()
			node.Status.Addresses = addresses
			nodes = append(nodes, node)
		}
		if !planIngress(ing, nodes) {
			return "unchanged"
		}
		var ips []string
		for _, at := range ing.Status.LoadBalancer.Ingress {
			ips = append(ips, at.IP)
		}
		return "addresses " + strings.Join(ips, " ")
	})
}

// TestIngressesFollow: an Ingress of ours gets the addresses of a node when that is
// chosen, and one of somebody else's class does not.
func TestIngressesFollow(t *testing.T) {
	s := newSim(t, 11)
	put := func(name, class string) *networkingv1.Ingress {
		ing := &networkingv1.Ingress{}
		ing.Name, ing.Namespace, ing.UID = name, "default", types.UID("u-"+name)
		ing.Spec.IngressClassName = &class
		s.put(ing)
		return ing
	}
	ours, theirs := put("ours", object.IngressDefaultClass), put("theirs", "nginx")
	addresses := func(ing *networkingv1.Ingress) int {
		got, ok := object.Get[*networkingv1.Ingress](s.view(), object.KeyOf(ing))
		if !ok {
			t.Fatalf("%s is gone", ing.Name)
		}
		return len(got.Status.LoadBalancer.Ingress)
	}
	settle := func() {
		for end := s.now.Add(5 * time.Second); s.now.Before(end); s.now = s.now.Add(100 * time.Millisecond) {
			for s.commitLate() || s.controllers(false) || s.agent() {
			}
		}
	}
	settle()
	if n := addresses(ours); n != 0 {
		t.Fatalf("without a chosen node the Ingress has %d addresses", n)
	}
	node := &corev1.Node{}
	node.Name, node.UID, node.Labels = "edge", "n-edge", map[string]string{object.IngressNodeLabel: ""}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.9"}}
	s.put(node)
	settle()
	if a, b := addresses(ours), addresses(theirs); a != 1 || b != 0 {
		t.Errorf("with a chosen node, ours has %d addresses and theirs %d, want 1 and 0", a, b)
	}
}
