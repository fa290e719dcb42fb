package scheduler

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
)

// Reason is why a node cannot take a pod.
type Reason struct {
	// Filter is the rule: "Priority", "Unschedulable", "Taint", "NotReady", "NodeSelector",
	// "NodeAffinity", "Volume", "HostPort", "Resources", "PodAffinity",
	// "PodAntiAffinity" or "Spread".
	Filter string
	// Detail is what it is about: a taint, a label, a resource. It may be empty.
	Detail string
	// Missing is how much the node is short of the resource Detail. CPU in
	// thousandths, everything else in units. 0 for other filters.
	Missing int64
	// Fits is how much of the resource Detail the pod could ask for there. 0 for other
	// filters.
	Fits int64
	// cure is what would end it, if Filter and Detail do not say.
	cure string
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
	case "NodeAffinity":
		return "outside the node affinity " + r.Detail
	case "HostPort":
		return "with port " + r.Detail + " taken"
	case "Resources":
		if r.Detail == string(corev1.ResourcePods) {
			return "without room for another pod"
		}
		return fmt.Sprintf("%s short by %s", r.Detail, quantity(corev1.ResourceName(r.Detail), r.Missing))
	default: // they tell it in their detail
		return r.Detail
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

// filters are what depends on a node alone and on what runs there. They are asked in
// this order, what a person has decided first. Each calls reject for every reason it
// has, and stops when that returns false.
var filters = []func(cl *class, n *node, reject func(Reason) bool){
	filterPriority,
	filterUnschedulable,
	filterTaints,
	filterReady,
	filterSelector,
	filterAffinity,
	filterClaims,
	filterPorts,
	filterResources,
}

// fits reports whether n by itself can take a pod of cl.
func (cl *class) fits(n *node) bool {
	rejected := false
	reject := func(Reason) bool { rejected = true; return false }
	for _, filter := range filters {
		if filter(cl, n, reject); rejected {
			return false
		}
	}
	return true
}

// reasons returns everything that keeps pods of cl, which is up to date, from n.
func (cl *class) reasons(n *node) []Reason {
	var all []Reason
	cl.eachReason(n, func(r Reason) bool { all = append(all, r); return true })
	return all
}

// firstReason returns what keeps pods of cl from n in the first place.
func (cl *class) firstReason(n *node) (first Reason, found bool) {
	cl.eachReason(n, func(r Reason) bool {
		if !found {
			first, found = r, true
		}
		return false
	})
	return first, found
}

func (cl *class) eachReason(n *node, reject func(Reason) bool) {
	more := true
	heard := func(r Reason) bool {
		more = more && reject(r)
		return more
	}
	for _, filter := range filters {
		if filter(cl, n, heard); !more {
			return
		}
	}
	for i := range cl.terms {
		t := &cl.terms[i]
		pods := int32(t.top.domainOf(n))
		if pods >= 0 {
			pods = t.sum[pods]
		}
		if !cl.allows(t, pods) && !heard(t.reason(n, pods)) {
			return
		}
	}
}

// reason says why t does not allow n, in whose domain there are so many pods of it.
func (t *classTerm) reason(n *node, pods int32) Reason {
	chosen, where := t.term.text, t.term.key
	if chosen == "" {
		chosen = "of any kind"
	}
	if where == corev1.LabelHostname {
		where = "node"
	}
	r := Reason{Filter: filterNames[t.kind]}
	switch {
	case pods < 0:
		r.Detail = "without label " + t.term.key
		r.cure = fmt.Sprintf("%s gets the label %s", n.name, t.term.key)
	case t.kind == near:
		r.Detail = fmt.Sprintf("without pods %s on the same %s", chosen, where)
		r.cure = fmt.Sprintf("pods %s run on the same %s as %s", chosen, where, n.name)
	case t.kind == apart:
		r.Detail = fmt.Sprintf("with pods %s on the same %s", chosen, where)
		r.cure = fmt.Sprintf("the pods %s on the same %s as %s end", chosen, where, n.name)
	case t.kind == repelled:
		r.Detail = fmt.Sprintf("with pods on the same %s that keep away from pods %s", where, chosen)
		r.cure = fmt.Sprintf("the pods on the same %s as %s that keep away from pods %s end", where, n.name, chosen)
	default:
		r.Detail = fmt.Sprintf("with too many pods %s on the same %s to keep the skew of %d", chosen, where, t.rule.maxSkew)
		r.cure = fmt.Sprintf("more pods %s run on another %s than that of %s", chosen, where, n.name)
	}
	return r
}

var filterNames = map[termKind]string{near: "PodAffinity", apart: "PodAntiAffinity", repelled: "PodAntiAffinity", spreadHard: "Spread"}

func filterPriority(cl *class, _ *node, reject func(Reason) bool) {
	if cl.needs.unknown != "" {
		reject(Reason{Filter: "Priority", Detail: "because PriorityClass " + cl.needs.unknown + " does not exist"})
	}
}

func filterUnschedulable(cl *class, n *node, reject func(Reason) bool) {
	if n.unschedulable && !cl.needs.tolerates(&cordon) {
		reject(Reason{Filter: "Unschedulable"})
	}
}

var cordon = corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}

func filterTaints(cl *class, n *node, reject func(Reason) bool) {
	for i := range n.taints {
		taint := &n.taints[i]
		if taint.Effect != corev1.TaintEffectPreferNoSchedule && !cl.needs.tolerates(taint) && !reject(Reason{Filter: "Taint", Detail: taintName(taint)}) {
			return
		}
	}
}

// toleratesAll reports whether no taint of n keeps pods of cl away.
func (cl *class) toleratesAll(n *node) bool {
	if n.unschedulable && !cl.needs.tolerates(&cordon) {
		return false
	}
	for i := range n.taints {
		if taint := &n.taints[i]; taint.Effect != corev1.TaintEffectPreferNoSchedule && !cl.needs.tolerates(taint) {
			return false
		}
	}
	return true
}

// filterReady rejects nodes that are not known to be ready. One that is tainted
// for it has said so already.
func filterReady(_ *class, n *node, reject func(Reason) bool) {
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

func filterSelector(cl *class, n *node, reject func(Reason) bool) {
	for _, key := range cl.needs.selectorKeys {
		if value, ok := n.labels[key]; (!ok || value != cl.needs.selector[key]) && !reject(Reason{Filter: "NodeSelector", Detail: key + "=" + cl.needs.selector[key]}) {
			return
		}
	}
}

func filterAffinity(cl *class, n *node, reject func(Reason) bool) {
	if !cl.needs.choosy || anyTerm(cl.needs.nodeTerms, n) {
		return
	}
	reject(Reason{Filter: "NodeAffinity", Detail: termsText(cl.needs.nodeTerms)})
}

func anyTerm(terms []nodeTerm, n *node) bool {
	return slices.ContainsFunc(terms, func(t nodeTerm) bool { return t.matches(n) })
}

func termsText(terms []nodeTerm) string {
	var texts []string
	for i := range terms {
		texts = append(texts, terms[i].text)
	}
	return strings.Join(texts, " or ")
}

// chosen reports whether n is one that the selector and the affinity of cl's pods
// choose.
func (cl *class) chosen(n *node) bool {
	for key, value := range cl.needs.selector {
		if have, ok := n.labels[key]; !ok || have != value {
			return false
		}
	}
	return !cl.needs.choosy || anyTerm(cl.needs.nodeTerms, n)
}

func filterPorts(cl *class, n *node, reject func(Reason) bool) {
	if len(cl.needs.ports) == 0 {
		return
	}
	taken := sets.KeySet(n.ports)
	for _, p := range n.expected {
		if p.needs.priority >= cl.needs.priority {
			taken.Insert(p.needs.ports...)
		}
	}
	for _, port := range cl.needs.ports {
		for other := range taken {
			if port.conflicts(other) {
				if !reject(Reason{Filter: "HostPort", Detail: port.String()}) {
					return
				}
				break
			}
		}
	}
}

func filterResources(cl *class, n *node, reject func(Reason) bool) {
	used := n.used
	if len(n.expected) > 0 {
		used = n.withExpected(cl.needs.priority)
	}
	request := &cl.needs.request
	for i, name := range commonResources {
		missing := used.common[i] + request.common[i] - n.allocatable.common[i]
		if missing > 0 && request.common[i] > 0 && !reject(Reason{Filter: "Resources", Detail: string(name), Missing: missing, Fits: max(request.common[i]-missing, 0)}) {
			return
		}
	}
	for _, name := range cl.needs.otherNames {
		missing := used.other[name] + request.other[name] - n.allocatable.other[name]
		if missing > 0 && !reject(Reason{Filter: "Resources", Detail: string(name), Missing: missing, Fits: max(request.other[name]-missing, 0)}) {
			return
		}
	}
}

// withExpected returns what is used on n, and by the pods of at least that priority
// that are to come.
func (n *node) withExpected(priority int32) amounts {
	sum := amounts{}
	sum.add(n.used, 1)
	for _, p := range n.expected {
		if p.needs.priority >= priority {
			sum.add(p.needs.request, 1)
		}
	}
	return sum
}

func (n *needs) tolerates(taint *corev1.Taint) bool {
	return slices.ContainsFunc(n.tolerations, func(t corev1.Toleration) bool {
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
