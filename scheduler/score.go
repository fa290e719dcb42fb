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
	// preferNodesGain is what a node gains that meets all preferred terms of node
	// affinity; one that meets some gains their share of the weights.
	preferNodesGain = 2000
	// nearGain is what the domain gains that preferred pod affinity, and that of the
	// pods that run there, draws to the most, against the one that it draws to the least.
	nearGain = 2000
	// crowdCost is what the domain costs that has the most pods of those that are
	// to be spread if possible; a domain that has fewer costs its share.
	crowdCost = 2000
	// imagesGain is what a node gains that has all of the pod's images, if they are
	// as large as largeImages together; smaller ones are pulled soon.
	imagesGain  = 100
	largeImages = 1 << 30
)

// localScore says how good n, which can take pods of cl, is for them by itself; more
// is better. It is the mean share of CPU, memory and pod places that would be free
// with one on it, in thousandths, with the gains and costs above. Counting places keeps
// pods apart that ask for nothing.
func localScore(cl *class, n *node) int {
	needs := cl.needs
	free := int64(0)
	for i, all := range n.allocatable.common { // CPU, memory, pods
		if all > 0 {
			free += max(all-n.used.common[i]-needs.request.common[i], 0) * 1000 / all
		}
	}
	s := int(free) / len(commonResources)
	if cl.owner != "" {
		s -= sameOwnerCost * n.owners[cl.owner]
	}
	if !n.ready {
		s -= notReadyCost
	}
	for i := range n.taints {
		if n.taints[i].Effect == corev1.TaintEffectPreferNoSchedule && !needs.tolerates(&n.taints[i]) {
			s -= preferenceCost
		}
	}
	if needs.preferNodesSum > 0 {
		met := 0
		for i := range needs.preferNodes {
			if t := &needs.preferNodes[i]; t.matches(n) {
				met += t.weight
			}
		}
		s += preferNodesGain * met / needs.preferNodesSum
	}
	if len(n.images) > 0 {
		size := int64(0)
		for _, image := range needs.images {
			size += n.images[image]
		}
		s += int(imagesGain * min(size, largeImages) / largeImages)
	}
	return s
}

// cellScore is what pods of other nodes make of it, against the other cells.
func cellScore(ce *cell, b bounds) (s int) {
	if b.high > b.low {
		s += int(nearGain * (ce.wish - b.low) / (b.high - b.low))
	}
	if b.crowd > 0 {
		s -= int(crowdCost * ce.crowd / b.crowd)
	}
	return s - crowdCost*ce.none
}
