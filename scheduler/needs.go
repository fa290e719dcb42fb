package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"github.com/holdfast-io/holdfast/object"
)

// needs is what a pod's spec says of where it may run and where it would rather.
// Pods whose specs say the same share one, and it never changes.
type needs struct {
	id        string
	namespace string
	priority  int32
	preempts  bool   // may end pods of less priority
	unknown   string // the priority class that does not exist

	request    amounts
	otherNames []corev1.ResourceName // of request.other, in order
	ports      []hostPort
	images     []string

	selector       map[string]string
	selectorKeys   []string   // of selector, in order
	nodeTerms      []nodeTerm // one of them, if choosy
	choosy         bool       // nodeTerms are required: without any, no node fits
	preferNodes    []nodeTerm // with weights
	preferNodesSum int        // of those weights
	tolerations    []corev1.Toleration

	near   []podTerm // required pod affinity
	apart  []podTerm // required pod anti-affinity
	prefer []podTerm // preferred, weights below zero for anti-affinity
	spread []spreadRule

	claims []string // names of PersistentVolumeClaims

	users   int       // pods of the cluster that have it
	holders []*holder // what it makes its pods hold against, or for, others
}

// nodeTerm is a term of a node selector.
type nodeTerm struct {
	weight int
	labels []labels.Requirement
	names  []nameRule // metadata.name
	never  bool       // says nothing, or what cannot be: matches no node
	text   string
}

type nameRule struct {
	not  bool
	name string
}

func (t *nodeTerm) matches(n *node) bool {
	if t.never {
		return false
	}
	for _, rule := range t.names {
		if (n.name == rule.name) == rule.not {
			return false
		}
	}
	for i := range t.labels {
		if !t.labels[i].Matches(labels.Set(n.labels)) {
			return false
		}
	}
	return true
}

// podTerm chooses pods, and says within which domain of nodes they are near.
type podTerm struct {
	id         string // of what it chooses, without key and weight
	key        string // topologyKey
	weight     int
	selector   labels.Selector
	namespaces []string        // chosen by name
	nsSelector labels.Selector // or by label; nil: none
	text       string
}

// spreadRule is a topology spread constraint.
type spreadRule struct {
	term         podTerm
	maxSkew      int
	minDomains   int
	soft         bool // ScheduleAnyway
	anyAffinity  bool // counts nodes that the pod's node affinity excludes, too
	honorsTaints bool // does not count nodes whose taints it does not tolerate
}

type hostPort struct {
	ip       string // "": all addresses
	protocol corev1.Protocol
	port     int32
}

func (p hostPort) String() string {
	if p.ip == "" {
		return fmt.Sprintf("%d/%s", p.port, p.protocol)
	}
	return fmt.Sprintf("%s:%d/%s", p.ip, p.port, p.protocol)
}

// conflicts reports whether p and other cannot both be open on a node.
func (p hostPort) conflicts(other hostPort) bool {
	return p.port == other.port && p.protocol == other.protocol && (p.ip == other.ip || p.ip == "" || other.ip == "")
}

// needsKey returns what is equal for pods of equal needs.
func needsKey(pod *corev1.Pod, request amounts) string {
	spec := &pod.Spec
	part := corev1.PodSpec{
		NodeSelector: spec.NodeSelector, Affinity: spec.Affinity, Tolerations: spec.Tolerations, TopologySpreadConstraints: spec.TopologySpreadConstraints,
	}
	b := make([]byte, 0, 256)
	b = append(append(b, pod.Namespace...), 0)
	if spec.Priority != nil {
		b = strconv.AppendInt(b, int64(*spec.Priority), 10)
	} else {
		b = append(b, spec.PriorityClassName...)
	}
	if never(spec) {
		b = append(b, '!')
	}
	for _, amount := range request.common {
		b = append(strconv.AppendInt(b, amount, 10), ' ')
	}
	for _, name := range slices.Sorted(maps.Keys(request.other)) {
		b = append(append(append(b, name...), '='), strconv.FormatInt(request.other[name], 10)...)
	}
	for i := range spec.Containers {
		b = append(append(b, 0), spec.Containers[i].Image...)
	}
	for i := range spec.InitContainers {
		b = append(append(b, 0), spec.InitContainers[i].Image...)
	}
	for _, port := range hostPorts(spec) {
		b = append(append(b, 1), port.String()...)
	}
	for i := range spec.Volumes {
		if name := claimName(pod, &spec.Volumes[i]); name != "" {
			b = append(append(b, 2), name...)
		}
	}
	for key := range labelKeys(spec) {
		b = append(append(append(append(b, 3), key...), '='), pod.Labels[key]...)
	}
	if len(part.NodeSelector) > 0 || part.Affinity != nil || len(part.Tolerations) > 0 || len(part.TopologySpreadConstraints) > 0 {
		b = append(b, 4)
		if data, err := part.Marshal(); err == nil {
			b = append(b, data...)
		}
	}
	return string(b)
}

// labelKeys yields the labels of its own that the pod's terms ask about, in order.
func labelKeys(spec *corev1.PodSpec) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for i := range spec.TopologySpreadConstraints {
			for _, key := range spec.TopologySpreadConstraints[i].MatchLabelKeys {
				if !yield(key) {
					return
				}
			}
		}
		for _, t := range podTermsOf(spec.Affinity) {
			for _, key := range slices.Concat(t.MatchLabelKeys, t.MismatchLabelKeys) {
				if !yield(key) {
					return
				}
			}
		}
	}
}

func podTermsOf(a *corev1.Affinity) (terms []*corev1.PodAffinityTerm) {
	add := func(need []corev1.PodAffinityTerm, wish []corev1.WeightedPodAffinityTerm) {
		for i := range need {
			terms = append(terms, &need[i])
		}
		for i := range wish {
			terms = append(terms, &wish[i].PodAffinityTerm)
		}
	}
	if a != nil && a.PodAffinity != nil {
		add(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if a != nil && a.PodAntiAffinity != nil {
		add(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	return terms
}

// needsOf reads what pod needs.
func needsOf(id string, pod *corev1.Pod, request amounts) *needs {
	spec := &pod.Spec
	n := &needs{
		id: id, namespace: pod.Namespace, preempts: !never(spec), request: request,
		otherNames: slices.Sorted(maps.Keys(request.other)),
		ports:      hostPorts(spec),
		selector:   spec.NodeSelector, selectorKeys: slices.Sorted(maps.Keys(spec.NodeSelector)),
		tolerations: spec.Tolerations,
	}
	if object.QOSClass(pod) != corev1.PodQOSBestEffort {
		// As in Kubernetes, what has asked for resources copes with a node short of memory.
		n.tolerations = append(slices.Clone(n.tolerations), corev1.Toleration{
			Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule,
		})
	}
	if spec.Priority != nil {
		n.priority = *spec.Priority
	} else if spec.NodeName == "" {
		n.unknown = spec.PriorityClassName
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if image := list[i].Image; image != "" && !slices.Contains(n.images, image) {
				n.images = append(n.images, image)
			}
		}
	}
	for i := range spec.Volumes {
		if name := claimName(pod, &spec.Volumes[i]); name != "" {
			n.claims = append(n.claims, name)
		}
	}
	if a := spec.Affinity; a != nil {
		n.readAffinity(a, pod)
	}
	for i := range spec.TopologySpreadConstraints {
		c := &spec.TopologySpreadConstraints[i]
		rule := spreadRule{maxSkew: int(c.MaxSkew), soft: c.WhenUnsatisfiable == corev1.ScheduleAnyway}
		rule.term = newPodTerm(&corev1.PodAffinityTerm{LabelSelector: c.LabelSelector, TopologyKey: c.TopologyKey, MatchLabelKeys: c.MatchLabelKeys}, pod)
		if c.MinDomains != nil {
			rule.minDomains = int(*c.MinDomains)
		}
		rule.anyAffinity = c.NodeAffinityPolicy != nil && *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyIgnore
		rule.honorsTaints = c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor
		n.spread = append(n.spread, rule)
	}
	return n
}

func never(spec *corev1.PodSpec) bool {
	return spec.PreemptionPolicy != nil && *spec.PreemptionPolicy == corev1.PreemptNever
}

func (n *needs) readAffinity(a *corev1.Affinity, pod *corev1.Pod) {
	if na := a.NodeAffinity; na != nil {
		if required := na.RequiredDuringSchedulingIgnoredDuringExecution; required != nil {
			n.choosy = true
			n.nodeTerms = nodeTermsOf(required)
		}
		for i := range na.PreferredDuringSchedulingIgnoredDuringExecution {
			wish := &na.PreferredDuringSchedulingIgnoredDuringExecution[i]
			t := newNodeTerm(&wish.Preference)
			t.weight = int(wish.Weight)
			n.preferNodes = append(n.preferNodes, t)
			n.preferNodesSum += t.weight
		}
	}
	read := func(need []corev1.PodAffinityTerm, wish []corev1.WeightedPodAffinityTerm, terms *[]podTerm, sign int) {
		for i := range need {
			*terms = append(*terms, newPodTerm(&need[i], pod))
		}
		for i := range wish {
			t := newPodTerm(&wish[i].PodAffinityTerm, pod)
			t.weight = sign * int(wish[i].Weight)
			n.prefer = append(n.prefer, t)
		}
	}
	if pa := a.PodAffinity; pa != nil {
		read(pa.RequiredDuringSchedulingIgnoredDuringExecution, pa.PreferredDuringSchedulingIgnoredDuringExecution, &n.near, 1)
	}
	if pa := a.PodAntiAffinity; pa != nil {
		read(pa.RequiredDuringSchedulingIgnoredDuringExecution, pa.PreferredDuringSchedulingIgnoredDuringExecution, &n.apart, -1)
	}
}

// podTerms yields all terms of n that choose pods.
func (n *needs) podTerms(yield func(*podTerm) bool) {
	for _, list := range [][]podTerm{n.near, n.apart, n.prefer} {
		for i := range list {
			if !yield(&list[i]) {
				return
			}
		}
	}
	for i := range n.spread {
		if !yield(&n.spread[i].term) {
			return
		}
	}
}

func nodeTermsOf(s *corev1.NodeSelector) []nodeTerm {
	terms := make([]nodeTerm, 0, len(s.NodeSelectorTerms))
	for i := range s.NodeSelectorTerms {
		terms = append(terms, newNodeTerm(&s.NodeSelectorTerms[i]))
	}
	return terms
}

var nodeOperators = map[corev1.NodeSelectorOperator]selection.Operator{
	corev1.NodeSelectorOpIn: selection.In, corev1.NodeSelectorOpNotIn: selection.NotIn, corev1.NodeSelectorOpExists: selection.Exists,
	corev1.NodeSelectorOpDoesNotExist: selection.DoesNotExist, corev1.NodeSelectorOpGt: selection.GreaterThan, corev1.NodeSelectorOpLt: selection.LessThan,
}

// newNodeTerm reads a term; an empty one matches no node, as in Kubernetes.
func newNodeTerm(t *corev1.NodeSelectorTerm) nodeTerm {
	out := nodeTerm{never: len(t.MatchExpressions) == 0 && len(t.MatchFields) == 0}
	var text []string
	for _, e := range t.MatchExpressions {
		req, err := labels.NewRequirement(e.Key, nodeOperators[e.Operator], e.Values)
		if err != nil {
			out.never = true
			continue
		}
		out.labels = append(out.labels, *req)
		text = append(text, req.String())
	}
	for _, f := range t.MatchFields {
		if f.Key != metav1.ObjectNameField || len(f.Values) != 1 {
			out.never = true
			continue
		}
		rule := nameRule{not: f.Operator == corev1.NodeSelectorOpNotIn, name: f.Values[0]}
		out.names = append(out.names, rule)
		if rule.not {
			text = append(text, "name!="+rule.name)
		} else {
			text = append(text, "name="+rule.name)
		}
	}
	out.text = strings.Join(text, ",")
	return out
}

// newPodTerm reads a term of pod's, whose own labels stand for matchLabelKeys.
func newPodTerm(t *corev1.PodAffinityTerm, pod *corev1.Pod) podTerm {
	out := podTerm{key: t.TopologyKey, namespaces: slices.Sorted(slices.Values(t.Namespaces))}
	out.selector = selectorOf(t.LabelSelector)
	if t.LabelSelector != nil {
		for i, keys := range [][]string{t.MatchLabelKeys, t.MismatchLabelKeys} {
			for _, key := range keys {
				value, ok := pod.Labels[key]
				if !ok {
					continue
				}
				if req, err := labels.NewRequirement(key, []selection.Operator{selection.In, selection.NotIn}[i], []string{value}); err == nil {
					out.selector = out.selector.Add(*req)
				}
			}
		}
	}
	out.text = out.selector.String()
	if t.NamespaceSelector != nil {
		out.nsSelector = selectorOf(t.NamespaceSelector)
	} else if len(out.namespaces) == 0 {
		out.namespaces = []string{pod.Namespace}
	}
	out.id = fmt.Sprintf("%q %q", selectorID(out.selector), out.namespaces)
	if out.nsSelector != nil {
		out.id += fmt.Sprintf(" %q", selectorID(out.nsSelector))
	}
	return out
}

// selectorOf returns a selector that selects nothing if s is nil.
func selectorOf(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing() // was refused when it was written
	}
	return selector
}

func selectorID(s labels.Selector) string {
	if _, can := s.Requirements(); !can {
		return "nothing"
	}
	return s.String()
}

// chooses reports whether t chooses a pod with set in namespace, which has the
// labels that namespaceLabels returns.
func (t *podTerm) chooses(namespace string, set labels.Set, namespaceLabels func(string) labels.Set) bool {
	if !slices.Contains(t.namespaces, namespace) && (t.nsSelector == nil || !t.nsSelector.Matches(namespaceLabels(namespace))) {
		return false
	}
	return t.selector.Matches(set)
}

func hostPorts(spec *corev1.PodSpec) (ports []hostPort) {
	each := func(list []corev1.Container, always bool) {
		for i := range list {
			c := &list[i]
			if !always && (c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways) {
				continue // is gone when the others begin
			}
			for _, p := range c.Ports {
				if p.HostPort == 0 {
					continue
				}
				port := hostPort{ip: p.HostIP, protocol: p.Protocol, port: p.HostPort}
				if port.ip == "0.0.0.0" || port.ip == "::" {
					port.ip = ""
				}
				if port.protocol == "" {
					port.protocol = corev1.ProtocolTCP
				}
				ports = append(ports, port)
			}
		}
	}
	each(spec.InitContainers, false)
	each(spec.Containers, true)
	return ports
}

// claimName returns the name of the claim that v is, "" if it is none.
func claimName(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name
	}
	return ""
}

// requestOf returns what pod takes from its node, itself as one of its pods
// included.
func requestOf(pod *corev1.Pod) amounts {
	request := amountsOf(object.PodResourcesTaken(pod))
	request.common[slices.Index(commonResources[:], corev1.ResourcePods)] = 1
	return request
}
