package scheduler

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Reason is why a node cannot take a pod.
type Reason struct {
	// Filter is the rule: "Unschedulable", "Taint", "NotReady", "NodeSelector" or
	// "Resources".
	Filter string
	// Detail is what it is about: a taint, a label, a resource. It may be empty.
	Detail string
	// Missing is how much the node is short of the resource Detail. CPU in
	// thousandths, everything else in units. 0 for other filters.
	Missing int64
}

// String returns the reason as a person reads it: "cpu short by 500m", "tainted
// node.kubernetes.io/unreachable".
func (r Reason) String() string {
	switch r.Filter {
	case "Unschedulable":
		return "cordoned"
	case "Taint":
		return "tainted " + r.Detail
	case "NotReady":
		return "not ready"
	case "NodeSelector":
		return "without label " + r.Detail
	}
	switch name := corev1.ResourceName(r.Detail); name {
	case corev1.ResourcePods:
		return "without room for another pod"
	default:
		return fmt.Sprintf("%s short by %s", r.Detail, quantity(name, r.Missing))
	}
}

func quantity(name corev1.ResourceName, amount int64) string {
	switch name {
	case corev1.ResourceCPU:
		return resource.NewMilliQuantity(amount, resource.DecimalSI).String()
	case corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return resource.NewQuantity(amount, resource.BinarySI).String()
	default:
		return resource.NewQuantity(amount, resource.DecimalSI).String()
	}
}

// filters are asked in this order, what a person has decided first. Each calls
// reject for every reason it has, and stops when that returns false.
var filters = []func(p *pendingPod, n *node, reject func(Reason) bool){
	filterUnschedulable,
	filterTaints,
	filterReady,
	filterSelector,
	filterResources,
}

// fitting returns a function that reports whether a node can take p.
func fitting(p *pendingPod) func(n *node) bool {
	rejected := false
	reject := func(Reason) bool { rejected = true; return false }
	return func(n *node) bool {
		rejected = false
		for _, filter := range filters {
			if filter(p, n, reject); rejected {
				return false
			}
		}
		return true
	}
}

// reasons returns everything that keeps p from n.
func reasons(p *pendingPod, n *node) []Reason {
	var all []Reason
	for _, filter := range filters {
		filter(p, n, func(r Reason) bool { all = append(all, r); return true })
	}
	return all
}

func filterUnschedulable(p *pendingPod, n *node, reject func(Reason) bool) {
	if n.unschedulable && !tolerated(p, &corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
		reject(Reason{Filter: "Unschedulable"})
	}
}

func filterTaints(p *pendingPod, n *node, reject func(Reason) bool) {
	for i := range n.taints {
		taint := &n.taints[i]
		if taint.Effect != corev1.TaintEffectPreferNoSchedule && !tolerated(p, taint) && !reject(Reason{Filter: "Taint", Detail: taintName(taint)}) {
			return
		}
	}
}

// filterReady rejects nodes that are not known to be ready. One that is tainted
// for it has said so already.
func filterReady(p *pendingPod, n *node, reject func(Reason) bool) {
	if n.ready {
		return
	}
	for i := range n.taints {
		if key := n.taints[i].Key; key != corev1.TaintNodeNotReady && key != corev1.TaintNodeUnreachable {
			continue
		}
		if n.taints[i].Effect != corev1.TaintEffectPreferNoSchedule {
			return // the taint decides, so that a toleration can
		}
	}
	reject(Reason{Filter: "NotReady"})
}

func filterSelector(p *pendingPod, n *node, reject func(Reason) bool) {
	for _, key := range p.selectorKeys {
		if value, ok := n.labels[key]; (!ok || value != p.selector[key]) && !reject(Reason{Filter: "NodeSelector", Detail: key + "=" + p.selector[key]}) {
			return
		}
	}
}

func filterResources(p *pendingPod, n *node, reject func(Reason) bool) {
	for i, name := range commonResources {
		missing := n.used.common[i] + p.request.common[i] - n.allocatable.common[i]
		if missing > 0 && p.request.common[i] > 0 && !reject(Reason{Filter: "Resources", Detail: string(name), Missing: missing}) {
			return
		}
	}
	for _, name := range p.otherNames {
		missing := n.used.other[name] + p.request.other[name] - n.allocatable.other[name]
		if missing > 0 && !reject(Reason{Filter: "Resources", Detail: string(name), Missing: missing}) {
			return
		}
	}
}

func tolerated(p *pendingPod, taint *corev1.Taint) bool {
	return slices.ContainsFunc(p.tolerations, func(t corev1.Toleration) bool {
		if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
			return false
		}
		switch t.Operator {
		case corev1.TolerationOpExists:
			return true
		case corev1.TolerationOpEqual, "":
			return t.Value == taint.Value
		default:
			return false
		}
	})
}

func taintName(taint *corev1.Taint) string {
	if taint.Value == "" {
		return taint.Key
	}
	return taint.Key + "=" + taint.Value
}
