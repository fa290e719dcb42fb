package controllers

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/holdfast-io/holdfast/object"
)

var (
	ingressResource      = object.ResourceOf(&networkingv1.Ingress{})
	ingressClassResource = object.ResourceOf(&networkingv1.IngressClass{})
)

// ingressDelay gathers the changes that one look answers: one node changes the
// addresses of all Ingresses.
const ingressDelay = 500 * time.Millisecond

// planIngress brings the addresses in an Ingress's status up to date and reports
// whether that changed it: those of the nodes that serve Ingresses and are ready. When
// none of them is, those of all, since silence is no proof that they do not serve. It
// is pure: testdata/ingress states its whole behavior.
func planIngress(ing *networkingv1.Ingress, nodes []*corev1.Node) (changed bool) {
	var ready, all []networkingv1.IngressLoadBalancerIngress
	for _, node := range nodes {
		label, ok := node.Labels[object.IngressNodeLabel]
		if !ok || label == "false" || object.Deleting(node) {
			continue
		}
		at := nodeAddresses(node)
		if all = append(all, at...); object.NodeReady(node) {
			ready = append(ready, at...)
		}
	}
	want := ready
	if len(want) == 0 {
		want = all
	}
	slices.SortFunc(want, func(a, b networkingv1.IngressLoadBalancerIngress) int {
		x, _ := netip.ParseAddr(a.IP)
		y, _ := netip.ParseAddr(b.IP)
		return cmp.Or(x.Compare(y), cmp.Compare(a.IP, b.IP))
	})
	want = slices.CompactFunc(want, func(a, b networkingv1.IngressLoadBalancerIngress) bool { return a.IP == b.IP })
	if equality.Semantic.DeepEqual(ing.Status.LoadBalancer.Ingress, want) {
		return false
	}
	ing.Status.LoadBalancer.Ingress = want
	return true
}

// nodeAddresses are a node's external addresses, or if it has none its own.
func nodeAddresses(node *corev1.Node) []networkingv1.IngressLoadBalancerIngress {
	for _, kind := range []corev1.NodeAddressType{corev1.NodeExternalIP, corev1.NodeInternalIP} {
		var at []networkingv1.IngressLoadBalancerIngress
		for _, a := range node.Status.Addresses {
			if a.Type == kind {
				at = append(at, networkingv1.IngressLoadBalancerIngress{IP: a.Address})
			}
		}
		if len(at) > 0 {
			return at
		}
	}
	return nil
}

// newIngresses returns the controller that says where Ingresses are served.
func newIngresses() *controller {
	return &controller{
		name:  "ingress",
		delay: ingressDelay,
		all:   func(s state) []object.Key { return keysOf(s.index, ingressResource) },
		affected: func(x *index, c change) []object.Key {
			for _, e := range []entry{c.before, c.now} {
				if isKind(e.resource, nodeResource) || isKind(e.resource, ingressClassResource) {
					return keysOf(x, ingressResource)
				}
			}
			return affectsItself(ingressResource, c)
		},
		plan: func(s state, key object.Key, _ time.Time) outcome {
			var o outcome
			ing, ok := object.Get[*networkingv1.Ingress](s, key)
			if !ok || object.Deleting(ing) || !object.ServesIngress(ing, slices.Values(object.List[*networkingv1.IngressClass](s, ""))) {
				return o
			}
			if planIngress(ing, object.List[*corev1.Node](s, "")) {
				o.txn.Reason = "status"
				o.update(ing)
			}
			return o
		},
	}
}
