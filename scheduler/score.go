package scheduler

import (
	corev1 "k8s.io/api/core/v1"
)

// Weights of the score, against up to 1000 for an empty node.
const (
	// sameOwnerCost is what each pod of the same owner on the node costs. So pods
	// of a ReplicaSet spread until the nodes differ in fullness by half.
	sameOwnerCost = 500
	// preferenceCost is what each taint PreferNoSchedule costs that the pod does
	// not tolerate: more than fullness can make up for, less than a few doubles.
	preferenceCost = 1000
	// notReadyCost is what a node costs whose agent is not heard, for a pod that
	// tolerates that: the last resort.
	notReadyCost = 100_000
)

// score says how good n, which can take p, is for it; more is better. It is the
// mean share of CPU, memory and pod places that would be free with p on it, in
// thousandths, less the costs above. Counting places keeps pods apart that ask
// for nothing.
func score(p *pendingPod, n *node) int {
	free := int64(0)
	for i, all := range n.allocatable.common { // CPU, memory, pods
		if all > 0 {
			free += max(all-n.used.common[i]-p.request.common[i], 0) * 1000 / all
		}
	}
	s := int(free) / len(commonResources)
	if p.owner != "" {
		s -= sameOwnerCost * n.owners[p.owner]
	}
	if !n.ready {
		s -= notReadyCost
	}
	for i := range n.taints {
		if n.taints[i].Effect == corev1.TaintEffectPreferNoSchedule && !tolerated(p, &n.taints[i]) {
			s -= preferenceCost
		}
	}
	return s
}
