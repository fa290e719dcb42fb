package scheduler

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// cluster is what decisions are made from: nodes and what is bound to them, and
// the pods that wait. It is brought up to date change by change, so a pass costs
// nothing for pods that did not change. It is not safe for concurrent use.
type cluster struct {
	nodes   map[string]*node
	order   []*node  // those that exist, by name
	slots   []*node  // those that exist, where they stand in the tables of classes; nil is free
	names   []string // of the nodes at slots, or of those that were
	bound   map[object.Key]*boundPod
	pending map[object.Key]*pendingPod
	queue   podQueue // of pending: those to be tried

	// The nodes that changed, in order, by slot: what classes read to come up to
	// date. changed[0] is change number first.
	changed []int
	first   int
	helped  int // how often something changed that could help a pod that fits nowhere

	needs   map[string]*needs
	classes map[string]*class
	waiting map[*class]struct{}      // those of pods that were tried in vain
	delayed map[*pendingPod]struct{} // those that are due at a time
	used    int                      // counts uses of classes

	topologies map[string]*topology
	censuses   map[string]*census
	byLabel    map[labelPair][]*census
	holders    map[string]*holder
	mentioned  map[string]int // label keys of pods that a term asks about
	mentions   int            // how often a key was added
	woken      int            // mentions when pods were woken last
	namespaces map[string]labels.Set
	volumes    volumes
	budgets    map[object.Key]*budget
	priorities map[string]*schedulingv1.PriorityClass
	claimUsers map[object.Key]int // bound pods by claim
	least      map[int32]int      // bound pods by priority
}

// node is a node and the sum of what is bound to it. It may be there before or
// after its object is: pods are bound to names.
type node struct {
	name   string
	exists bool
	slot   int

	labels        map[string]string
	taints        []corev1.Taint
	unschedulable bool
	ready         bool
	allocatable   amounts
	images        map[string]int64 // sizes

	used   amounts
	owners map[types.UID]int // pods by the owner that controls them
	ports  map[hostPort]int
	pods   map[object.Key]*boundPod
	// released says of a copy that claims for one pod are free: it is the node without
	// the pods that use them.
	released bool
	// expected are pods that are to come here once there is room, or their volumes
	// are there.
	expected map[object.Key]*pendingPod
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

// boundPod is what a bound pod takes, and what others may want to know of it.
type boundPod struct {
	key      object.Key
	node     *node
	needs    *needs
	owner    types.UID
	labels   labels.Set
	deleting bool
	doomed   bool // is to be deleted, to make room
	started  time.Time
	counted  []*census
}

// pendingPod is a pod that waits for a node.
type pendingPod struct {
	key      object.Key
	created  time.Time
	needs    *needs
	owner    types.UID
	labels   labels.Set
	nodeName string // the node that it is expected on, "" for none
	// message is what the condition PodScheduled says, empty if it says nothing.
	message string
	// read is the pod as it was read last, for who writes it next; nil once it has been
	// tried in vain. It is not changed.
	read *corev1.Pod

	class    *class // as of
	mentions int    // cluster.mentions

	// Where the pod stands with the loop.
	tried    bool      // waits for a change that could help
	queued   int       // place in the queue, plus 1
	due      time.Time // not zero: to be tried at that time in any case
	told     time.Time // when message was written last
	failures int       // commits that failed in a row
	again    bool      // to be tried once the decision that is under way has landed
}

func newCluster() *cluster {
	return &cluster{
		nodes: map[string]*node{}, bound: map[object.Key]*boundPod{}, pending: map[object.Key]*pendingPod{},
		needs: map[string]*needs{}, classes: map[string]*class{}, waiting: map[*class]struct{}{}, delayed: map[*pendingPod]struct{}{},
		topologies: map[string]*topology{}, censuses: map[string]*census{}, byLabel: map[labelPair][]*census{},
		holders: map[string]*holder{}, mentioned: map[string]int{}, namespaces: map[string]labels.Set{},
		volumes: newVolumes(), budgets: map[object.Key]*budget{}, priorities: map[string]*schedulingv1.PriorityClass{}, claimUsers: map[object.Key]int{}, least: map[int32]int{},
	}
}

// clusterOf reads a whole cluster.
func clusterOf(r object.Reader) *cluster {
	c := newCluster()
	for _, ns := range object.List[*corev1.Namespace](r, "") {
		c.setNamespace(ns)
	}
	for _, pv := range object.List[*corev1.PersistentVolume](r, "") {
		c.setVolume(pv)
	}
	for _, claim := range object.List[*corev1.PersistentVolumeClaim](r, "") {
		c.setClaim(claim)
	}
	for _, class := range object.List[*storagev1.StorageClass](r, "") {
		c.setStorageClass(class)
	}
	for _, pdb := range object.List[*policyv1.PodDisruptionBudget](r, "") {
		c.setBudget(pdb)
	}
	for _, class := range object.List[*schedulingv1.PriorityClass](r, "") {
		c.priorities[class.Name] = class
	}
	for _, n := range object.List[*corev1.Node](r, "") {
		c.setNode(n)
	}
	for _, pod := range object.List[*corev1.Pod](r, "") {
		c.setPod(pod)
	}
	return c
}

// touch notes that n has changed.
func (c *cluster) touch(n *node) {
	if n.slot < 0 {
		return
	}
	if most := 2 * max(len(c.slots), 1024); len(c.changed) >= most {
		drop := most / 2
		c.first += drop
		c.changed = append(c.changed[:0], c.changed[drop:]...)
	}
	c.changed = append(c.changed, n.slot)
}

// now returns the number of the next change.
func (c *cluster) now() int { return c.first + len(c.changed) }

// help notes that what has changed could help a pod that fits nowhere.
func (c *cluster) help() { c.helped++ }

// setNamespace notes a namespace's labels, which terms may choose pods by.
func (c *cluster) setNamespace(ns *corev1.Namespace) {
	if before, ok := c.namespaces[ns.Name]; ok && maps.Equal(before, ns.Labels) || !ok && len(ns.Labels) == 0 {
		return
	}
	c.namespaces[ns.Name] = ns.Labels
	c.recount()
	c.help()
}

func (c *cluster) removeNamespace(name string) {
	if _, ok := c.namespaces[name]; ok {
		delete(c.namespaces, name)
		c.recount()
		c.help()
	}
}

// setNode notes that obj is a node of the cluster, as it is now, and reports
// whether that could help a pod that fits nowhere.
func (c *cluster) setNode(obj *corev1.Node) (helps bool) {
	n := c.node(obj.Name)
	allocatable, ready := amountsOf(allocatableOf(obj)), object.NodeReady(obj)
	relabeled := !maps.Equal(n.labels, obj.Labels)
	helps = !n.exists || relabeled || !equality.Semantic.DeepEqual(n.taints, obj.Spec.Taints) ||
		n.unschedulable != obj.Spec.Unschedulable || n.ready != ready || !n.allocatable.equal(allocatable)
	if images := imagesOf(obj); !maps.Equal(images, n.images) {
		n.images = images
		c.touch(n)
	}
	if !helps {
		return false
	}
	n.labels, n.taints, n.unschedulable, n.ready, n.allocatable = obj.Labels, obj.Spec.Taints, obj.Spec.Unschedulable, ready, allocatable
	if !n.exists {
		n.exists, relabeled = true, true
		at, _ := slices.BinarySearchFunc(c.order, n.name, func(n *node, name string) int { return strings.Compare(n.name, name) })
		c.order = slices.Insert(c.order, at, n)
		if n.slot = len(c.slots); len(c.order) <= n.slot {
			n.slot = slices.Index(c.slots, nil) // somebody has gone
		} else {
			c.slots, c.names = append(c.slots, nil), append(c.names, "")
		}
		c.slots[n.slot], c.names[n.slot] = n, n.name
	}
	if relabeled {
		c.move(n)
	}
	c.touch(n)
	c.help()
	return true
}

// move notes that n may be in other domains. Classes begin anew if it was in any: what
// they know of nodes that have nobody beside them would be of the wrong ones.
func (c *cluster) move(n *node) {
	for _, t := range c.topologies {
		if t.domainOf(n) >= 0 {
			c.dropClasses()
		}
		t.set(n)
	}
	if !n.exists {
		c.dropClasses() // another node may get its slot
	}
}

// removeNode notes that the node is gone. What is bound to it still counts: the
// name may come back.
func (c *cluster) removeNode(name string) {
	n := c.nodes[name]
	if n == nil || !n.exists {
		return
	}
	c.touch(n)
	n.exists = false
	c.slots[n.slot] = nil
	n.slot = -1
	c.move(n)
	c.order = slices.DeleteFunc(c.order, func(other *node) bool { return other == n })
	c.forgetEmpty(n)
	c.help() // a domain less to spread over
}

// setPod notes how pod is now, and reports whether it has freed something that
// could help another.
func (c *cluster) setPod(pod *corev1.Pod) (helps bool) {
	key := object.KeyOf(pod)
	switch {
	case object.PodPhaseFinal(pod):
		c.forget(key)
		return c.unbind(key)
	case pod.Spec.NodeName != "":
		// A pod that is being deleted takes its room until it is gone.
		old := c.bound[key]
		if old != nil && old.node.name == pod.Spec.NodeName && old.deleting == object.Deleting(pod) && old.owner == ownerOf(pod) &&
			maps.Equal(old.labels, pod.Labels) && old.needs.id == needsKey(pod, requestOf(pod)) {
			return false
		}
		next := &boundPod{key: key, needs: c.needsOf(pod), owner: ownerOf(pod), labels: pod.Labels, deleting: object.Deleting(pod), started: pod.CreationTimestamp.Time}
		if pod.Status.StartTime != nil {
			next.started = pod.Status.StartTime.Time
		}
		next.needs.users++ // while it changes hands
		c.forget(key)
		changed := false
		if old != nil {
			changed = old.node.name != pod.Spec.NodeName || old.needs != next.needs
			c.unbind(key)
		}
		c.bind(next, pod.Spec.NodeName)
		next.needs.users--
		return changed
	}
	helps = c.unbind(key)
	c.prioritize(pod)
	if object.Deleting(pod) || !ours(pod) {
		c.forget(key)
		return helps
	}
	next := c.pendingOf(key, pod)
	old := c.pending[key]
	if old != nil && old.needs == next.needs && maps.Equal(old.labels, next.labels) && old.owner == next.owner && (old.nodeName == next.nodeName || next.nodeName == "") {
		// Nothing has changed that counts: it stays where it stands.
		next.users(-1, c)
		old.message, old.created = next.message, next.created
		if old.read != nil {
			old.read = pod
		}
		return helps
	}
	c.forget(key)
	c.pending[key] = next
	if name := next.nodeName; name != "" {
		next.nodeName = ""
		c.expect(next, name)
	}
	c.queue.push(next)
	return helps
}

// prioritize gives a pod that waits the priority of its class, if whoever made it did not.
func (c *cluster) prioritize(pod *corev1.Pod) {
	if pod.Spec.PriorityClassName == "" && (pod.Spec.Priority != nil || len(c.priorities) == 0) {
		return
	}
	bare := &corev1.Pod{ObjectMeta: pod.ObjectMeta, Spec: corev1.PodSpec{PriorityClassName: pod.Spec.PriorityClassName}}
	if faults := object.ApplyPriority(bare, slices.Collect(maps.Values(c.priorities))); len(faults) == 0 {
		pod.Spec.PriorityClassName, pod.Spec.Priority, pod.Spec.PreemptionPolicy = bare.Spec.PriorityClassName, bare.Spec.Priority, bare.Spec.PreemptionPolicy
	}
}

// forget takes a pod from those that wait.
func (c *cluster) forget(key object.Key) {
	p := c.pending[key]
	if p == nil {
		return
	}
	c.settleDown(p)
	c.expect(p, "")
	delete(c.pending, key)
	p.users(-1, c)
}

// settleDown takes p from the queue, and from those that were tried in vain.
func (c *cluster) settleDown(p *pendingPod) {
	c.queue.remove(p)
	delete(c.delayed, p)
	if cl := p.class; p.tried && cl != nil {
		if delete(cl.waiters, p); len(cl.waiters) == 0 {
			delete(c.waiting, cl)
		}
	}
	p.tried, p.due = false, time.Time{}
}

// wait notes that p was tried in vain.
func (c *cluster) wait(p *pendingPod) {
	c.settleDown(p)
	p.tried, p.read = true, nil // thousands may wait for long
	if cl := p.class; cl != nil && c.classes[cl.key] == cl {
		cl.waiters[p] = struct{}{}
		c.waiting[cl] = struct{}{}
	}
}

// delay makes p, which waits, be tried at a time in any case.
func (c *cluster) delay(p *pendingPod, until time.Time) {
	p.due = until
	c.delayed[p] = struct{}{}
}

// try puts p into the queue.
func (c *cluster) try(p *pendingPod) {
	c.settleDown(p)
	c.queue.push(p)
}

// expect notes that p is to come to a node, "" for none.
func (c *cluster) expect(p *pendingPod, name string) {
	if n := c.nodes[p.nodeName]; n != nil && n.expected[p.key] == p {
		delete(n.expected, p.key)
		c.touch(n)
		c.help()
		c.forgetEmpty(n)
	}
	p.nodeName = name
	if name == "" {
		return
	}
	n := c.node(name)
	if n.expected == nil {
		n.expected = map[object.Key]*pendingPod{}
	}
	n.expected[p.key] = p
	c.touch(n)
}

// removePod notes that the pod is gone, and reports whether it has freed
// something.
func (c *cluster) removePod(key object.Key) (helps bool) {
	c.forget(key)
	return c.unbind(key)
}

// takeBack undoes the binding of p, which waits again.
func (c *cluster) takeBack(p *pendingPod) {
	p.users(1, c)
	c.unbind(p.key)
	c.pending[p.key] = p
}

func (c *cluster) bind(pod *boundPod, name string) {
	n := c.node(name)
	pod.node = n
	pod.needs.users++
	c.bound[pod.key] = pod
	n.pods[pod.key] = pod
	n.used.add(pod.needs.request, 1)
	if pod.owner != "" {
		n.owners[pod.owner]++
	}
	for _, port := range pod.needs.ports {
		if n.ports == nil {
			n.ports = map[hostPort]int{}
		}
		n.ports[port]++
	}
	c.useClaims(pod.needs, 1)
	c.least[pod.needs.priority]++
	c.countAll(pod)
	c.touch(n)
}

func (c *cluster) unbind(key object.Key) (was bool) {
	pod, was := c.bound[key]
	if !was {
		return false
	}
	delete(c.bound, key)
	n := pod.node
	delete(n.pods, key)
	n.used.add(pod.needs.request, -1)
	if pod.owner != "" {
		if n.owners[pod.owner]--; n.owners[pod.owner] == 0 {
			delete(n.owners, pod.owner)
		}
	}
	for _, port := range pod.needs.ports {
		if n.ports[port]--; n.ports[port] == 0 {
			delete(n.ports, port)
		}
	}
	c.useClaims(pod.needs, -1)
	if c.least[pod.needs.priority]--; c.least[pod.needs.priority] == 0 {
		delete(c.least, pod.needs.priority)
	}
	c.uncountAll(pod)
	c.touch(n)
	c.help()
	for _, p := range n.expected { // this may be what it waits for
		if p.failures == 0 {
			c.try(p)
		}
	}
	if pod.needs.users--; pod.needs.users == 0 {
		c.disown(pod.needs)
	}
	c.forgetEmpty(n)
	return true
}

// node returns the node of that name, made up if it does not exist.
func (c *cluster) node(name string) *node {
	n := c.nodes[name]
	if n == nil {
		n = &node{name: name, slot: -1, owners: map[types.UID]int{}, pods: map[object.Key]*boundPod{}}
		c.nodes[name] = n
	}
	return n
}

func (c *cluster) forgetEmpty(n *node) {
	if !n.exists && len(n.pods) == 0 && len(n.expected) == 0 {
		delete(c.nodes, n.name)
	}
}

// needsOf returns the needs of pod, shared with others of the same.
func (c *cluster) needsOf(pod *corev1.Pod) *needs {
	request := requestOf(pod)
	id := needsKey(pod, request)
	n := c.needs[id]
	if n == nil {
		n = needsOf(id, pod, request)
		c.needs[id] = n
		c.adopt(n)
	}
	return n
}

// ours reports whether pod is the scheduler's to place.
func ours(pod *corev1.Pod) bool {
	return (pod.Spec.SchedulerName == "" || pod.Spec.SchedulerName == corev1.DefaultSchedulerName) && len(pod.Spec.SchedulingGates) == 0
}

func (c *cluster) pendingOf(key object.Key, pod *corev1.Pod) *pendingPod {
	p := &pendingPod{
		key: key, created: pod.CreationTimestamp.Time, needs: c.needsOf(pod), owner: ownerOf(pod), labels: pod.Labels,
		nodeName: pod.Status.NominatedNodeName, read: pod,
	}
	p.users(1, c)
	if cond := object.PodCondition(pod, corev1.PodScheduled); cond != nil && cond.Status == corev1.ConditionFalse {
		p.message = cond.Message
	}
	return p
}

// users adds to the users of p's needs.
func (p *pendingPod) users(by int, c *cluster) {
	if p.needs.users += by; p.needs.users == 0 {
		c.disown(p.needs)
	}
}

// compare orders pods as they are served: the most important first, then the one
// that has waited longest.
func (p *pendingPod) compare(other *pendingPod) int {
	return cmp.Or(
		cmp.Compare(other.needs.priority, p.needs.priority),
		p.created.Compare(other.created),
		cmp.Compare(p.key, other.key),
	)
}

// allocatableOf returns what pods can have of a node. People say what it has of
// resources of their own as its capacity, all of which is for pods.
func allocatableOf(obj *corev1.Node) corev1.ResourceList {
	more := corev1.ResourceList{}
	for name, amount := range obj.Status.Capacity {
		if _, ok := obj.Status.Allocatable[name]; !ok && object.ExtendedResource(name) {
			more[name] = amount
		}
	}
	if len(more) == 0 {
		return obj.Status.Allocatable
	}
	maps.Copy(more, obj.Status.Allocatable)
	return more
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

func imagesOf(node *corev1.Node) map[string]int64 {
	if len(node.Status.Images) == 0 {
		return nil
	}
	images := map[string]int64{}
	for _, image := range node.Status.Images {
		for _, name := range image.Names {
			images[name] = max(image.SizeBytes, 1)
		}
	}
	return images
}

func itoa(n int) string { return strconv.Itoa(n) }
