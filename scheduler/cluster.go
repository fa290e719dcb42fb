package scheduler

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// cluster is what decisions are made from: nodes and what is bound to them, and
// the pods that wait. It is brought up to date change by change, so a pass costs
// nothing for pods that did not change. It is not safe for concurrent use.
type cluster struct {
	nodes   map[string]*node
	order   []*node // those that exist, by name
	bound   map[object.Key]boundPod
	pending map[object.Key]*pendingPod
}

// node is a node and the sum of what is bound to it. It may be there before or
// after its object is: pods are bound to names.
type node struct {
	name   string
	exists bool

	labels        map[string]string
	taints        []corev1.Taint
	unschedulable bool
	ready         bool
	allocatable   amounts

	used   amounts
	owners map[types.UID]int // pods by the owner that controls them
}

// amounts are resources as integers: CPU in thousandths, everything else in
// units. Those that every pod has to do with stand in an array, because they are
// looked at once for each pod and node.
type amounts struct {
	common [len(commonResources)]int64
	other  map[corev1.ResourceName]int64 // never 0; nil is empty
}

// commonResources are the names of amounts.common.
var commonResources = [...]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourcePods}

func (a amounts) equal(b amounts) bool { return a.common == b.common && maps.Equal(a.other, b.other) }

func (a amounts) empty() bool { return a.equal(amounts{}) }

// add adds b, times times, to a.
func (a *amounts) add(b amounts, times int64) {
	for i := range a.common {
		a.common[i] += times * b.common[i]
	}
	for name, amount := range b.other {
		if a.other == nil {
			a.other = map[corev1.ResourceName]int64{}
		}
		if a.other[name] += times * amount; a.other[name] == 0 {
			delete(a.other, name)
		}
	}
}

// boundPod is what a bound pod takes.
type boundPod struct {
	node    string
	request amounts
	owner   types.UID
}

// pendingPod is a pod that waits for a node.
type pendingPod struct {
	key          object.Key
	priority     int32
	created      time.Time
	request      amounts
	otherNames   []corev1.ResourceName // of request.other, in order
	owner        types.UID
	selector     map[string]string
	selectorKeys []string // of selector, in order
	tolerations  []corev1.Toleration
	// message is what the condition PodScheduled says, empty if it says nothing.
	message string

	// Where the pod stands with the loop.
	tried    bool      // waits for a change that could help
	due      time.Time // not zero: to be tried at that time in any case
	told     time.Time // when message was written last
	failures int       // commits that failed in a row
}

func newCluster() *cluster {
	return &cluster{nodes: map[string]*node{}, bound: map[object.Key]boundPod{}, pending: map[object.Key]*pendingPod{}}
}

// clusterOf reads a whole cluster.
func clusterOf(r object.Reader) *cluster {
	c := newCluster()
	for _, n := range object.List[*corev1.Node](r, "") {
		c.setNode(n)
	}
	for _, pod := range object.List[*corev1.Pod](r, "") {
		c.setPod(pod)
	}
	return c
}

// setNode notes that obj is a node of the cluster, as it is now, and reports
// whether that could help a pod that fits nowhere.
func (c *cluster) setNode(obj *corev1.Node) (helps bool) {
	n := c.node(obj.Name)
	next := node{
		name:          obj.Name,
		exists:        true,
		labels:        obj.Labels,
		taints:        obj.Spec.Taints,
		unschedulable: obj.Spec.Unschedulable,
		ready:         object.NodeReady(obj),
		allocatable:   amountsOf(obj.Status.Allocatable),
		used:          n.used,
		owners:        n.owners,
	}
	helps = !n.exists || !maps.Equal(n.labels, next.labels) || !equality.Semantic.DeepEqual(n.taints, next.taints) ||
		n.unschedulable != next.unschedulable || n.ready != next.ready || !n.allocatable.equal(next.allocatable)
	if !n.exists {
		at, _ := slices.BinarySearchFunc(c.order, n.name, func(n *node, name string) int { return strings.Compare(n.name, name) })
		c.order = slices.Insert(c.order, at, n)
	}
	*n = next
	return helps
}

// removeNode notes that the node is gone. What is bound to it still counts: the
// name may come back.
func (c *cluster) removeNode(name string) {
	n := c.nodes[name]
	if n == nil || !n.exists {
		return
	}
	n.exists = false
	c.order = slices.DeleteFunc(c.order, func(other *node) bool { return other == n })
	c.forgetEmpty(n)
}

// setPod notes how pod is now, and reports whether it has freed something that
// could help another.
func (c *cluster) setPod(pod *corev1.Pod) (helps bool) {
	key := object.KeyOf(pod)
	switch {
	case object.PodPhaseFinal(pod):
		delete(c.pending, key)
		return c.unbind(key)
	case pod.Spec.NodeName != "":
		delete(c.pending, key)
		// A pod that is being deleted takes its room until it is gone.
		next := boundPod{node: pod.Spec.NodeName, request: requestOf(pod), owner: ownerOf(pod)}
		old, was := c.bound[key]
		if was && old.node == next.node && old.owner == next.owner && old.request.equal(next.request) {
			return false
		}
		c.unbind(key)
		c.bind(key, next)
		return was
	}
	helps = c.unbind(key)
	if object.Deleting(pod) || !ours(pod) {
		delete(c.pending, key)
		return helps
	}
	next := pendingOf(key, pod)
	if old := c.pending[key]; old != nil && old.sameNeeds(next) {
		next.tried, next.due, next.told, next.failures = old.tried, old.due, old.told, old.failures
	}
	c.pending[key] = next
	return helps
}

// removePod notes that the pod is gone, and reports whether it has freed
// something.
func (c *cluster) removePod(key object.Key) (helps bool) {
	delete(c.pending, key)
	return c.unbind(key)
}

func (c *cluster) bind(key object.Key, pod boundPod) {
	c.bound[key] = pod
	n := c.node(pod.node)
	n.used.add(pod.request, 1)
	if pod.owner != "" {
		n.owners[pod.owner]++
	}
}

func (c *cluster) unbind(key object.Key) (was bool) {
	pod, was := c.bound[key]
	if !was {
		return false
	}
	delete(c.bound, key)
	n := c.nodes[pod.node]
	n.used.add(pod.request, -1)
	if pod.owner != "" {
		if n.owners[pod.owner]--; n.owners[pod.owner] == 0 {
			delete(n.owners, pod.owner)
		}
	}
	c.forgetEmpty(n)
	return true
}

// node returns the node of that name, made up if it does not exist.
func (c *cluster) node(name string) *node {
	n := c.nodes[name]
	if n == nil {
		n = &node{name: name, owners: map[types.UID]int{}}
		c.nodes[name] = n
	}
	return n
}

func (c *cluster) forgetEmpty(n *node) {
	if !n.exists && n.used.empty() && len(n.owners) == 0 {
		delete(c.nodes, n.name)
	}
}

// ours reports whether pod is the scheduler's to place.
func ours(pod *corev1.Pod) bool {
	return (pod.Spec.SchedulerName == "" || pod.Spec.SchedulerName == corev1.DefaultSchedulerName) && len(pod.Spec.SchedulingGates) == 0
}

func pendingOf(key object.Key, pod *corev1.Pod) *pendingPod {
	p := &pendingPod{
		key:         key,
		created:     pod.CreationTimestamp.Time,
		request:     requestOf(pod),
		owner:       ownerOf(pod),
		selector:    pod.Spec.NodeSelector,
		tolerations: pod.Spec.Tolerations,
	}
	p.otherNames = slices.Sorted(maps.Keys(p.request.other))
	p.selectorKeys = slices.Sorted(maps.Keys(p.selector))
	if pod.Spec.Priority != nil {
		p.priority = *pod.Spec.Priority
	}
	if c := object.PodCondition(pod, corev1.PodScheduled); c != nil && c.Status == corev1.ConditionFalse {
		p.message = c.Message
	}
	return p
}

// sameNeeds reports whether p and other fit the same nodes.
func (p *pendingPod) sameNeeds(other *pendingPod) bool {
	return p.request.equal(other.request) && maps.Equal(p.selector, other.selector) &&
		equality.Semantic.DeepEqual(p.tolerations, other.tolerations)
}

// compare orders pods as they are served: the most important first, then the one
// that has waited longest.
func (p *pendingPod) compare(other *pendingPod) int {
	return cmp.Or(
		cmp.Compare(other.priority, p.priority),
		p.created.Compare(other.created),
		cmp.Compare(p.key, other.key),
	)
}

// requestOf returns what pod takes from its node, itself as one of its pods
// included.
func requestOf(pod *corev1.Pod) amounts {
	request := amountsOf(object.PodResources(pod))
	request.common[slices.Index(commonResources[:], corev1.ResourcePods)] = 1
	return request
}

func amountsOf(list corev1.ResourceList) amounts {
	var a amounts
	for name, q := range list {
		amount := q.Value()
		if name == corev1.ResourceCPU {
			amount = q.MilliValue()
		}
		if i := slices.Index(commonResources[:], name); i >= 0 {
			a.common[i] = amount
		} else if amount != 0 {
			if a.other == nil {
				a.other = map[corev1.ResourceName]int64{}
			}
			a.other[name] = amount
		}
	}
	return a
}

func ownerOf(pod *corev1.Pod) types.UID {
	if ref := object.ControllerOf(pod); ref != nil {
		return ref.UID
	}
	return ""
}
