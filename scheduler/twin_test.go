package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// twin decides as the cluster does, slowly: it keeps objects, and for each pod looks at
// all nodes and for each node at all pods, as Kubernetes' documents read.
type twin struct {
	nodes      map[string]*corev1.Node
	pods       map[object.Key]*corev1.Pod
	namespaces map[string]map[string]string
}

func (w *twin) sortedNodes() []*corev1.Node {
	var out []*corev1.Node
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		out = append(out, w.nodes[name])
	}
	return out
}

// bound returns the pods on node, or on any that exists if node is nil.
func (w *twin) bound(node *corev1.Node) (out []*corev1.Pod) {
	for _, pod := range w.pods {
		if pod.Spec.NodeName != "" && !object.PodPhaseFinal(pod) && (node == nil && w.nodes[pod.Spec.NodeName] != nil || node != nil && pod.Spec.NodeName == node.Name) {
			out = append(out, pod)
		}
	}
	return out
}

func (w *twin) selects(t *corev1.PodAffinityTerm, of, other *corev1.Pod) bool {
	in := slices.Contains(t.Namespaces, other.Namespace) || len(t.Namespaces) == 0 && t.NamespaceSelector == nil && other.Namespace == of.Namespace
	if t.NamespaceSelector != nil {
		s, _ := metav1.LabelSelectorAsSelector(t.NamespaceSelector)
		in = in || s.Matches(labels.Set(w.namespaces[other.Namespace]))
	}
	s, _ := metav1.LabelSelectorAsSelector(t.LabelSelector)
	if !in || !s.Matches(labels.Set(other.Labels)) {
		return false
	}
	for _, key := range t.MatchLabelKeys {
		if value, ok := of.Labels[key]; ok && other.Labels[key] != value {
			return false
		}
	}
	for _, key := range t.MismatchLabelKeys {
		if value, ok := of.Labels[key]; ok && other.Labels[key] == value {
			return false
		}
	}
	return true
}

func same(a, b *corev1.Node, key string) bool {
	x, ok := a.Labels[key]
	y, also := b.Labels[key]
	return ok && also && x == y
}

func requiredTerms(pod *corev1.Pod) (near, apart []corev1.PodAffinityTerm) {
	if a := pod.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			near = a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		}
		if a.PodAntiAffinity != nil {
			apart = a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		}
	}
	return near, apart
}

func preferredTerms(pod *corev1.Pod) (out []corev1.WeightedPodAffinityTerm) {
	if a := pod.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			out = append(out, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution...)
		}
		if a.PodAntiAffinity != nil {
			for _, t := range a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
				t.Weight = -t.Weight
				out = append(out, t)
			}
		}
	}
	return out
}

func termMatches(t *corev1.NodeSelectorTerm, node *corev1.Node) bool {
	if len(t.MatchExpressions)+len(t.MatchFields) == 0 {
		return false
	}
	for _, e := range t.MatchExpressions {
		value, ok := node.Labels[e.Key]
		number, _ := strconv.Atoi(value)
		bound := 0
		if len(e.Values) > 0 {
			bound, _ = strconv.Atoi(e.Values[0])
		}
		if !map[corev1.NodeSelectorOperator]bool{
			corev1.NodeSelectorOpIn: ok && slices.Contains(e.Values, value), corev1.NodeSelectorOpNotIn: !ok || !slices.Contains(e.Values, value),
			corev1.NodeSelectorOpExists: ok, corev1.NodeSelectorOpDoesNotExist: !ok,
			corev1.NodeSelectorOpGt: ok && number > bound, corev1.NodeSelectorOpLt: ok && number < bound,
		}[e.Operator] {
			return false
		}
	}
	for _, f := range t.MatchFields {
		if (f.Values[0] == node.Name) != (f.Operator == corev1.NodeSelectorOpIn) {
			return false
		}
	}
	return true
}

func affinityChooses(pod *corev1.Pod, node *corev1.Node) bool {
	if !labels.SelectorFromSet(pod.Spec.NodeSelector).Matches(labels.Set(node.Labels)) {
		return false
	}
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		return slices.ContainsFunc(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms, func(t corev1.NodeSelectorTerm) bool { return termMatches(&t, node) })
	}
	return true
}

func toleratesTaint(pod *corev1.Pod, taint corev1.Taint) bool {
	return slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool {
		return (t.Effect == "" || t.Effect == taint.Effect) && (t.Key == "" || t.Key == taint.Key) && (t.Operator == corev1.TolerationOpExists || t.Value == taint.Value)
	})
}

func toleratesNode(pod *corev1.Pod, node *corev1.Node) bool {
	for _, taint := range node.Spec.Taints {
		if taint.Effect != corev1.TaintEffectPreferNoSchedule && !toleratesTaint(pod, taint) {
			return false
		}
	}
	return !node.Spec.Unschedulable || toleratesTaint(pod, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
}

var twinResources = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourcePods, "example.com/gpu"}

func take(pod *corev1.Pod, name corev1.ResourceName) int64 {
	if name == corev1.ResourcePods {
		return 1
	}
	q := pod.Spec.Containers[0].Resources.Requests[name]
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

func (w *twin) free(node *corev1.Node, name corev1.ResourceName) int64 {
	q := node.Status.Allocatable[name]
	free := q.Value()
	if name == corev1.ResourceCPU {
		free = q.MilliValue()
	}
	for _, other := range w.bound(node) {
		free -= take(other, name)
	}
	return free
}

func (w *twin) fits(pod *corev1.Pod, node *corev1.Node) bool {
	if !toleratesNode(pod, node) || !object.NodeReady(node) || !affinityChooses(pod, node) {
		return false
	}
	for _, name := range twinResources {
		if n := take(pod, name); n > 0 && n > w.free(node, name) {
			return false
		}
	}
	for _, other := range w.bound(node) {
		for _, a := range pod.Spec.Containers[0].Ports {
			for _, b := range other.Spec.Containers[0].Ports {
				if a.HostPort != 0 && a.HostPort == b.HostPort && (a.HostIP == b.HostIP || a.HostIP == "" || b.HostIP == "") {
					return false
				}
			}
		}
	}
	near, apart := requiredTerms(pod)
	all := func(of, other *corev1.Pod, terms []corev1.PodAffinityTerm) bool {
		return !slices.ContainsFunc(terms, func(t corev1.PodAffinityTerm) bool { return !w.selects(&t, of, other) })
	}
	anybody := false
	for i := range near {
		found := false
		for _, other := range w.bound(nil) {
			if !all(pod, other, near) {
				continue
			}
			for j := range near { // one that is in no domain at all is nobody
				_, in := w.nodes[other.Spec.NodeName].Labels[near[j].TopologyKey]
				anybody = anybody || in
			}
			found = found || same(w.nodes[other.Spec.NodeName], node, near[i].TopologyKey)
		}
		_, in := node.Labels[near[i].TopologyKey]
		if !in || !found && (anybody || !all(pod, pod, near)) {
			return false
		}
	}
	for _, other := range w.bound(nil) {
		on := w.nodes[other.Spec.NodeName]
		for i := range apart {
			if w.selects(&apart[i], pod, other) && same(on, node, apart[i].TopologyKey) {
				return false
			}
		}
		_, theirs := requiredTerms(other)
		for i := range theirs {
			if w.selects(&theirs[i], other, pod) && same(on, node, theirs[i].TopologyKey) {
				return false
			}
		}
	}
	for i := range pod.Spec.TopologySpreadConstraints {
		c := &pod.Spec.TopologySpreadConstraints[i]
		if c.WhenUnsatisfiable == corev1.ScheduleAnyway {
			continue
		}
		count, fewest, _, ok := w.spread(pod, c, node)
		self := 0
		if w.selects(&corev1.PodAffinityTerm{LabelSelector: c.LabelSelector, MatchLabelKeys: c.MatchLabelKeys}, pod, pod) {
			self = 1
		}
		if !ok || count+self-fewest > int(c.MaxSkew) {
			return false
		}
	}
	return true
}

// spread returns the pods of c in node's domain, the fewest in any, and the number of
// domains.
func (w *twin) spread(pod *corev1.Pod, c *corev1.TopologySpreadConstraint, node *corev1.Node) (count, fewest, domains int, ok bool) {
	pods := map[string]int{}
	for _, n := range w.sortedNodes() {
		counts := (c.NodeAffinityPolicy != nil && *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyIgnore || affinityChooses(pod, n)) &&
			(c.NodeTaintsPolicy == nil || *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyIgnore || toleratesNode(pod, n))
		for _, other := range pod.Spec.TopologySpreadConstraints {
			_, has := n.Labels[other.TopologyKey]
			counts = counts && (has || other.WhenUnsatisfiable != c.WhenUnsatisfiable)
		}
		if !counts {
			continue
		}
		pods[n.Labels[c.TopologyKey]] += 0
		for _, other := range w.bound(n) {
			if !object.Deleting(other) && w.selects(&corev1.PodAffinityTerm{LabelSelector: c.LabelSelector, MatchLabelKeys: c.MatchLabelKeys}, pod, other) {
				pods[n.Labels[c.TopologyKey]]++
			}
		}
	}
	value, ok := node.Labels[c.TopologyKey]
	if len(pods) > 0 {
		fewest = slices.Min(slices.Collect(maps.Values(pods)))
	}
	if c.MinDomains != nil && len(pods) < int(*c.MinDomains) {
		fewest = 0
	}
	return pods[value], fewest, len(pods), ok
}

func (w *twin) local(pod *corev1.Pod, node *corev1.Node) int {
	free := int64(0)
	for _, name := range twinResources[:3] {
		q := node.Status.Allocatable[name]
		all := q.Value()
		if name == corev1.ResourceCPU {
			all = q.MilliValue()
		}
		free += max(w.free(node, name)-take(pod, name), 0) * 1000 / all
	}
	s := int(free) / 3
	for _, other := range w.bound(node) {
		if owner := ownerOf(other); owner != "" && owner == ownerOf(pod) {
			s -= sameOwnerCost
		}
	}
	for _, taint := range node.Spec.Taints {
		if taint.Effect == corev1.TaintEffectPreferNoSchedule && !toleratesTaint(pod, taint) {
			s -= preferenceCost
		}
	}
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		met, sum := 0, 0
		for _, t := range a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
			sum += int(t.Weight)
			if termMatches(&t.Preference, node) {
				met += int(t.Weight)
			}
		}
		if sum > 0 {
			s += preferNodesGain * met / sum
		}
	}
	return s
}

func (w *twin) wish(pod *corev1.Pod, node *corev1.Node) (wish int64) {
	for _, other := range w.bound(nil) {
		on := w.nodes[other.Spec.NodeName]
		for _, t := range preferredTerms(pod) {
			if w.selects(&t.PodAffinityTerm, pod, other) && same(on, node, t.PodAffinityTerm.TopologyKey) {
				wish += int64(t.Weight)
			}
		}
		for _, t := range preferredTerms(other) {
			if w.selects(&t.PodAffinityTerm, other, pod) && same(on, node, t.PodAffinityTerm.TopologyKey) {
				wish += int64(t.Weight)
			}
		}
		near, _ := requiredTerms(other)
		for _, t := range near {
			if w.selects(&t, other, pod) && same(on, node, t.TopologyKey) {
				wish++
			}
		}
	}
	return wish
}

func (w *twin) crowd(pod *corev1.Pod, node *corev1.Node) (crowd int64, none int) {
	for i := range pod.Spec.TopologySpreadConstraints {
		c := &pod.Spec.TopologySpreadConstraints[i]
		if c.WhenUnsatisfiable != corev1.ScheduleAnyway {
			continue
		}
		count, _, domains, ok := w.spread(pod, c, node)
		if !ok {
			none++
			continue
		}
		crowd += int64(count) * int64(bits.Len(uint(domains+2)))
	}
	return crowd, none
}

// decide returns what a decision about pod says.
func (w *twin) decide(pod *corev1.Pod) (node, message string) {
	var able []*corev1.Node
	for _, n := range w.sortedNodes() {
		if w.fits(pod, n) {
			able = append(able, n)
		}
	}
	if len(able) == 0 {
		return "", ""
	}
	var b bounds
	for i, n := range able {
		wish := w.wish(pod, n)
		crowd, _ := w.crowd(pod, n)
		if i == 0 {
			b.low, b.high = wish, wish
		}
		b.low, b.high, b.crowd = min(b.low, wish), max(b.high, wish), max(b.crowd, crowd)
	}
	best := 0
	for _, n := range able {
		s := w.local(pod, n)
		if b.high > b.low {
			s += int(nearGain * (w.wish(pod, n) - b.low) / (b.high - b.low))
		}
		crowd, none := w.crowd(pod, n)
		if b.crowd > 0 {
			s -= int(crowdCost * crowd / b.crowd)
		}
		s -= crowdCost * none
		if node == "" || s > best {
			node, best = n.Name, s
		}
	}
	return node, fmt.Sprintf("score %d, best of %d that fit, of %d nodes", best, len(able), len(w.nodes))
}

// randomCluster makes nodes and pods that get in each other's way.
type randomCluster struct {
	r *rand.Rand
	n int
}

func (g *randomCluster) pick(words ...string) string { return words[g.r.IntN(len(words))] }

func (g *randomCluster) chance(n int) bool { return g.r.IntN(n) == 0 }

func (g *randomCluster) node() *corev1.Node {
	name := fmt.Sprintf("n%d", g.r.IntN(9))
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"host": name, "cores": strconv.Itoa(g.r.IntN(5))}}}
	if !g.chance(6) {
		node.Labels["zone"] = g.pick("a", "b", "c")
	}
	if g.chance(3) {
		node.Labels["disk"] = g.pick("ssd", "hdd")
	}
	node.Status.Allocatable = corev1.ResourceList{
		corev1.ResourceCPU: *resource.NewQuantity(int64(1+g.r.IntN(4)), resource.DecimalSI), corev1.ResourceMemory: resource.MustParse("8Gi"),
		corev1.ResourcePods: *resource.NewQuantity(int64(2+g.r.IntN(8)), resource.DecimalSI),
	}
	if g.chance(4) {
		node.Status.Allocatable["example.com/gpu"] = resource.MustParse("2")
	}
	status := corev1.ConditionTrue
	if g.chance(12) {
		status = corev1.ConditionUnknown
	}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
	node.Spec.Unschedulable = g.chance(10)
	if g.chance(4) {
		node.Spec.Taints = []corev1.Taint{{Key: "team", Value: g.pick("x", "y"), Effect: corev1.TaintEffect(g.pick("NoSchedule", "PreferNoSchedule", "NoExecute"))}}
	}
	return node
}

func (g *randomCluster) term() corev1.PodAffinityTerm {
	t := corev1.PodAffinityTerm{TopologyKey: g.pick("zone", "zone", "host", "disk"), LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": g.pick("web", "db")}}}
	switch g.r.IntN(8) {
	case 0:
		t.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"env": g.pick("prod", "test")}}
	case 1:
		t.Namespaces = []string{g.pick("one", "two")}
	case 2:
		t.NamespaceSelector = &metav1.LabelSelector{}
	case 3:
		t.MatchLabelKeys = []string{"version"}
	case 4:
		t.MismatchLabelKeys = []string{"version"}
	case 5:
		t.LabelSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "version", Operator: metav1.LabelSelectorOpExists}}}
	}
	return t
}

func (g *randomCluster) nodeTerm() corev1.NodeSelectorTerm {
	switch g.r.IntN(6) {
	case 0:
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "cores", Operator: corev1.NodeSelectorOperator(g.pick("Gt", "Lt")), Values: []string{"2"}}}}
	case 1:
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: corev1.NodeSelectorOperator(g.pick("Exists", "DoesNotExist"))}}}
	case 2:
		return corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOperator(g.pick("In", "NotIn")), Values: []string{fmt.Sprintf("n%d", g.r.IntN(9))}}}}
	case 3:
		return corev1.NodeSelectorTerm{}
	default:
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOperator(g.pick("In", "NotIn")), Values: []string{g.pick("a", "b"), "c"}}}}
	}
}

func (g *randomCluster) pod() *corev1.Pod {
	g.n++
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", g.n), Namespace: g.pick("one", "two"), CreationTimestamp: metav1.NewTime(testNow.Add(time.Duration(g.n) * time.Second)), Labels: map[string]string{"unique": strconv.Itoa(g.n)}}}
	if !g.chance(4) {
		pod.Labels["app"] = g.pick("web", "db")
	}
	if g.chance(3) {
		pod.Labels["version"] = g.pick("1", "2")
	}
	if g.chance(2) {
		pod.OwnerReferences = []metav1.OwnerReference{{UID: types.UID(g.pick("o1", "o2")), Controller: new(true)}}
	}
	requests := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(g.pick("0", "100m", "700m", "2"))}
	if g.chance(8) {
		requests["example.com/gpu"] = resource.MustParse("1")
	}
	pod.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: requests}}}
	if g.chance(8) {
		pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80, Protocol: corev1.ProtocolTCP, HostIP: g.pick("", "10.0.0.1", "10.0.0.2")}}
	}
	if g.chance(5) {
		pod.Spec.Tolerations = []corev1.Toleration{{Key: "team", Operator: corev1.TolerationOperator(g.pick("Exists", "Equal")), Effect: corev1.TaintEffect(g.pick("", "NoSchedule"))}}
		if pod.Spec.Tolerations[0].Operator == corev1.TolerationOpEqual {
			pod.Spec.Tolerations[0].Value = "x"
		}
	}
	if g.chance(6) {
		pod.Spec.NodeSelector = map[string]string{"disk": "ssd"}
	}
	a := &corev1.Affinity{}
	if g.chance(6) {
		a.NodeAffinity = &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{g.nodeTerm(), g.nodeTerm()}}}
	}
	if g.chance(6) {
		a.NodeAffinity = &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 3, Preference: g.nodeTerm()}, {Weight: 7, Preference: g.nodeTerm()}}}
	}
	if g.chance(6) {
		a.PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{g.term()}}
		if g.chance(3) {
			a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution = append(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, g.term())
		}
	}
	if g.chance(6) {
		a.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{g.term()}}
	}
	if g.chance(5) {
		a.PodAffinity = &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 10, PodAffinityTerm: g.term()}}}
	}
	if g.chance(5) {
		a.PodAntiAffinity = &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 4, PodAffinityTerm: g.term()}}}
	}
	if *a != (corev1.Affinity{}) {
		pod.Spec.Affinity = a
	}
	for range g.r.IntN(5) - 2 {
		c := corev1.TopologySpreadConstraint{
			MaxSkew: int32(1 + g.r.IntN(2)), TopologyKey: g.pick("zone", "host", "disk"), WhenUnsatisfiable: corev1.UnsatisfiableConstraintAction(g.pick("DoNotSchedule", "ScheduleAnyway")),
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": g.pick("web", "db")}},
		}
		if g.chance(4) && c.WhenUnsatisfiable == corev1.DoNotSchedule {
			c.MinDomains = new(int32(3))
		}
		if g.chance(3) {
			c.NodeAffinityPolicy = new(corev1.NodeInclusionPolicy(g.pick("Honor", "Ignore")))
		}
		if g.chance(3) {
			c.NodeTaintsPolicy = new(corev1.NodeInclusionPolicy(g.pick("Honor", "Ignore")))
		}
		if g.chance(4) {
			c.MatchLabelKeys = []string{"version"}
		}
		pod.Spec.TopologySpreadConstraints = append(pod.Spec.TopologySpreadConstraints, c)
	}
	return pod
}

// TestTwin: the cluster, which keeps what it can, decides as its naive twin does, on
// random clusters in which everything changes all the time; and it wakes every pod
// that has a node.
func TestTwin(t *testing.T) {
	histories := uint64(40)
	if testing.Short() {
		histories = 10
	}
	bound, waiting := 0, 0
	for seed := range histories {
		g := &randomCluster{r: rand.New(rand.NewPCG(seed, 6))}
		w := &twin{nodes: map[string]*corev1.Node{}, pods: map[object.Key]*corev1.Pod{}, namespaces: map[string]map[string]string{}}
		c := newCluster()
		randomKey := func() object.Key {
			keys := slices.Sorted(maps.Keys(w.pods))
			return keys[g.r.IntN(len(keys))]
		}
		for step := range 150 {
			at := fmt.Sprintf("seed %d, step %d", seed, step)
			switch n := g.r.IntN(20); {
			case n < 4:
				node := g.node()
				w.nodes[node.Name] = node
				c.setNode(node)
			case n == 4 && len(w.nodes) > 0:
				name := w.sortedNodes()[g.r.IntN(len(w.nodes))].Name
				delete(w.nodes, name)
				c.removeNode(name)
			case n == 5:
				ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: g.pick("one", "two"), Labels: map[string]string{"env": g.pick("prod", "test")}}}
				w.namespaces[ns.Name] = ns.Labels
				c.setNamespace(ns)
			case n < 9 && len(w.pods) > 0:
				key := randomKey()
				pod := w.pods[key].DeepCopy()
				switch g.r.IntN(4) {
				case 0:
					pod.Status.Phase = corev1.PodSucceeded
				case 1:
					pod.Labels["app"] = g.pick("web", "db")
				case 2:
					if pod.Spec.NodeName != "" {
						pod.DeletionTimestamp = new(metav1.NewTime(testNow))
					}
				default:
					delete(w.pods, key)
					c.removePod(key)
					continue
				}
				w.pods[key] = pod
				c.setPod(pod)
			case n < 15:
				pod := g.pod()
				w.pods[object.KeyOf(pod)] = pod
				c.setPod(pod)
			default:
				c.wake(testNow)
				want := map[object.Key]bool{}
				for key, pod := range w.pods {
					if pod.Spec.NodeName == "" && !object.PodPhaseFinal(pod) {
						if node, _ := w.decide(pod); node != "" {
							want[key] = true
						}
					}
				}
				for _, d := range c.place(c.untried(100)) {
					if d.err != nil {
						t.Fatalf("%s: %s: %v", at, d.pod.key, d.err)
					}
					pod := w.pods[d.pod.key].DeepCopy()
					node, message := w.decide(pod)
					if d.node != node || node != "" && d.message != message {
						t.Fatalf("%s: %s: %q %q, the twin says %q %q\n%s", at, d.pod.key, d.node, d.message, node, message, w.text(pod))
					}
					delete(want, d.pod.key)
					if node == "" {
						waiting++
						continue
					}
					bound++
					pod.Spec.NodeName = node
					w.pods[d.pod.key] = pod
					c.setPod(pod)
				}
				for key := range want {
					t.Fatalf("%s: %s has a node and was not tried\n%s", at, key, w.text(w.pods[key]))
				}
			}
		}
	}
	t.Logf("%d pods bound, %d found no node", bound, waiting)
	if bound < waiting/4 || waiting < bound/20 {
		t.Errorf("the clusters are too full or too empty to show much")
	}
}

func (w *twin) text(pod *corev1.Pod) string {
	var b strings.Builder
	data, _ := object.EncodeJSON(pod)
	fmt.Fprintf(&b, "%s\n", data)
	for _, n := range w.sortedNodes() {
		fmt.Fprintf(&b, "%s %v fits=%v\n", n.Name, n.Labels, w.fits(pod, n))
		pods := w.bound(n)
		slices.SortFunc(pods, func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
		for _, p := range pods {
			fmt.Fprintf(&b, "    %s/%s %v deleting=%v %v\n", p.Namespace, p.Name, p.Labels, object.Deleting(p), p.Spec.Affinity)
		}
	}
	return b.String()
}
