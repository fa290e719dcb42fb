package controllers

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

// podCIDRsKey stands for all nodes without a range: they are served in one pass,
// one transaction at a time, or two of them might be given the same one.
const podCIDRsKey = object.Key("podcidrs")

// nodeBits returns the length of a node's prefix: a /24 has room for 254 pods, a
// /64 is what IPv6 expects of a network.
func nodeBits(cluster netip.Prefix) int {
	if cluster.Addr().Is4() {
		return 24
	}
	return 64
}

func checkClusterCIDR(cluster netip.Prefix) error {
	if cluster != cluster.Masked() {
		return fmt.Errorf("cluster CIDR %s has bits set beyond its prefix: did you mean %s?", cluster, cluster.Masked())
	}
	if bits := nodeBits(cluster); cluster.Bits() > bits {
		return fmt.Errorf("cluster CIDR %s is too small: each node takes a /%d of it", cluster, bits)
	}
	return nil
}

// planPodCIDRs gives each node in want the lowest free range of cluster. taken
// are the ranges of all nodes there are; one is free again once its node has been
// removed. without are the nodes for which none is left. It is pure:
// testdata/podcidr states its whole behavior.
func planPodCIDRs(cluster netip.Prefix, taken []netip.Prefix, want []string) (given map[string]netip.Prefix, without []string) {
	bits := nodeBits(cluster)
	exact := make(map[netip.Prefix]bool, len(taken))
	var odd []netip.Prefix // of another size, from another configuration
	for _, p := range taken {
		if p.Bits() == bits {
			exact[p] = true
		} else {
			odd = append(odd, p)
		}
	}
	given = map[string]netip.Prefix{}
	candidate, more := netip.PrefixFrom(cluster.Addr(), bits), true
	for _, node := range want {
		for more && (exact[candidate] || slices.ContainsFunc(odd, candidate.Overlaps)) {
			candidate, more = nextPrefix(candidate, cluster)
		}
		if !more {
			without = append(without, node)
			continue
		}
		given[node] = candidate
		candidate, more = nextPrefix(candidate, cluster)
	}
	return given, without
}

// nextPrefix returns the prefix of the same length after p. ok is false if
// cluster has no more.
func nextPrefix(p, cluster netip.Prefix) (next netip.Prefix, ok bool) {
	bytes := p.Addr().AsSlice()
	carry := uint16(1) << (7 - (p.Bits()-1)%8)
	for i := (p.Bits() - 1) / 8; i >= 0 && carry > 0; i-- {
		sum := uint16(bytes[i]) + carry
		bytes[i], carry = byte(sum), sum>>8
	}
	addr, _ := netip.AddrFromSlice(bytes)
	if carry > 0 || !cluster.Contains(addr) {
		return p, false
	}
	return netip.PrefixFrom(addr, p.Bits()), true
}

// newPodCIDRs returns the controller that gives nodes the ranges of their pods'
// addresses. It sets spec.podCIDR and spec.podCIDRs, once.
func newPodCIDRs(cluster netip.Prefix) *controller {
	told := map[string]bool{} // nodes for which nothing was left, so that it is said once
	return &controller{
		name: "podcidr",
		all:  func(state) []object.Key { return []object.Key{podCIDRsKey} },
		affected: func(_ *index, c change) []object.Key {
			if isKind(c.before.resource, nodeResource) || isKind(c.now.resource, nodeResource) {
				return []object.Key{podCIDRsKey}
			}
			return nil
		},
		plan: func(s state, _ object.Key, _ time.Time) outcome {
			var taken []netip.Prefix
			var want []string
			for _, n := range s.sortedNodes() {
				if n.podCIDR.IsValid() {
					taken = append(taken, n.podCIDR)
				} else {
					want = append(want, n.name)
				}
			}
			var o outcome
			if o.more = len(want) > maxWrites; o.more {
				want = want[:maxWrites]
			}
			given, without := planPodCIDRs(cluster, taken, want)
			var parts []string
			for _, name := range want {
				prefix, ok := given[name]
				if !ok {
					continue
				}
				node, found := object.Get[*corev1.Node](s, nodeResource.Key("", name))
				if !found {
					continue
				}
				node.Spec.PodCIDR, node.Spec.PodCIDRs = prefix.String(), []string{prefix.String()}
				o.update(node)
				parts = append(parts, name+" "+prefix.String())
			}
			for _, name := range without {
				if node, ok := object.Get[*corev1.Node](s, nodeResource.Key("", name)); ok && !told[name] {
					told[name] = true
					o.warn(node, "CIDRNotAvailable", "no range is left in the cluster CIDR %s for this node's pods; remove Node objects that are gone for good", cluster)
				}
			}
			o.txn.Reason = strings.Join(parts, ", ")
			o.more = o.more && len(parts) > 0
			return o
		},
	}
}
