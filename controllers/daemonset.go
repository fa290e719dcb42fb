package controllers

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
)

var (
	daemonSetResource = object.ResourceOf(&appsv1.DaemonSet{})
	daemonSetKind     = appsv1.SchemeGroupVersion.WithKind("DaemonSet")
)

// daemonTolerations are what every pod of a DaemonSet tolerates, whatever its
// template says: it belongs to its node, and stays while that is unwell or cordoned.
var daemonTolerations = []corev1.Toleration{
	{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeDiskPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodePIDPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
}

// daemonSetView is what planDaemonSet knows beside the set itself.
type daemonSetView struct {
	owned, orphans  []*corev1.Pod
	revisions       []*appsv1.ControllerRevision
	orphanRevisions []*appsv1.ControllerRevision
	nodes           []nodeFacts // by name
	revTaken        func(name string) bool
	admit           func(object.Object) error
	newPod          func() (suffix string, uid types.UID)
	newUID          func() types.UID
}

// daemonSetPlan is the outcome of one pass over a DaemonSet.
type daemonSetPlan struct {
	set       *appsv1.DaemonSet
	changed   bool
	pods      claims
	create    []*corev1.Pod
	remove    []removal
	revisions revisions
	refused   string
	again     time.Duration
	more      bool
}

// daemons is the work of planDaemonSet.
type daemons struct {
	daemonSetView
	plan  *daemonSetPlan
	set   *appsv1.DaemonSet
	spots []*spot
	room  *budget
	now   time.Time
}

// spot is one node and the set's pods there.
type spot struct {
	node         nodeFacts
	should, stay bool          // pods are to run there; may stay, at least
	old, new     []*corev1.Pod // that have not ended and are not going, the one to keep first
	going        bool          // one is being deleted and has not ended
	waits        bool          // the next one is not due yet
	failures     int           // in a row before the next one
}

// planDaemonSet moves set one step toward one pod on each node that its template
// asks for and tolerates. It is pure: testdata/daemonset states its whole behavior.
//
// A pod is meant for its node by node affinity, and bound by the scheduler like any
// other. Without surge, a node gets its next pod only after the one before is gone.
func planDaemonSet(set *appsv1.DaemonSet, view daemonSetView, now time.Time) daemonSetPlan {
	plan := daemonSetPlan{set: set}
	if object.Deleting(set) {
		return plan // the collector takes its pods when it is gone
	}
	before := set.DeepCopy()
	r := &daemons{daemonSetView: view, plan: &plan, set: set, room: newBudget(), now: now}
	plan.pods = claim(view.owned, view.orphans, usable(set.Spec.Selector), func(*corev1.Pod) bool { return true }, r.room)
	plan.revisions = revisionsOf(set, daemonSetKind, &set.Spec.Template, view.revisions, view.orphanRevisions, set.Status.CollisionCount, view.revTaken, view.newUID, now)
	if plan.revisions.update == nil { // the next pass finds another name
		set.Status.CollisionCount = new(replicasOrZero(set.Status.CollisionCount) + 1)
		plan.changed = true
		return plan
	}
	r.sort()
	for _, sp := range r.spots {
		r.keepOne(sp)
	}
	r.update()
	r.setStatus()
	plan.revisions.prune(set.Spec.RevisionHistoryLimit, func(rev *appsv1.ControllerRevision) bool {
		return slices.ContainsFunc(plan.pods.mine, func(pod *corev1.Pod) bool { return isDaemonRevision(pod, rev) })
	})
	plan.changed = !equality.Semantic.DeepEqual(before, set)
	return plan
}

func isDaemonRevision(pod *corev1.Pod, rev *appsv1.ControllerRevision) bool {
	return pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == rev.Labels["controller.kubernetes.io/hash"]
}

// sort finds each node's pods. Pods that ended are removed, after a delay that
// grows; so are those of nodes that are gone.
func (r *daemons) sort() {
	byNode := map[string]*spot{}
	for _, node := range r.nodes {
		sp := &spot{node: node}
		sp.should, sp.stay = fitsDaemon(&r.set.Spec.Template, node)
		r.spots, byNode[node.name] = append(r.spots, sp), sp
	}
	pods := slices.SortedFunc(slices.Values(r.plan.pods.mine), func(a, b *corev1.Pod) int {
		if c := falseFirst(b.Spec.NodeName != "", a.Spec.NodeName != ""); c != 0 {
			return c
		}
		return oldestFirst(a, b)
	})
	for _, pod := range pods {
		sp := byNode[daemonNode(pod)]
		switch {
		case sp == nil:
			if pod.Spec.NodeName == "" && daemonNode(pod) != "" && !object.Deleting(pod) {
				r.remove(pod, fmt.Sprintf("its node %s is not in the cluster", daemonNode(pod)))
			}
		case object.Deleting(pod):
			sp.going = sp.going || !object.PodPhaseFinal(pod)
		case object.PodPhaseFinal(pod):
			failures, wait := replacementOf(pod, r.now)
			if wait > 0 {
				r.plan.again = sooner(r.plan.again, wait)
				sp.waits = true
			} else if r.remove(pod, "ended with phase "+string(pod.Status.Phase)) {
				sp.failures = max(sp.failures, failures)
			}
		case isDaemonRevision(pod, r.plan.revisions.update):
			sp.new = append(sp.new, pod)
		default:
			sp.old = append(sp.old, pod)
		}
	}
}

// fitsDaemon reports whether pods of template are to run on node, and whether one
// that is there may stay: a taint that only keeps new pods away drives none out.
// Taints for the node's own health are no reason not to want a pod there.
func fitsDaemon(template *corev1.PodTemplateSpec, node nodeFacts) (should, stay bool) {
	if name := template.Spec.NodeName; name != "" && name != node.name || !object.PodMayRunOn(&template.Spec, node.name, node.labels) {
		return false, false
	}
	should, stay = true, true
	for i := range node.taints {
		taint := &node.taints[i]
		own := taint.Key == corev1.TaintNodeNotReady || taint.Key == corev1.TaintNodeUnreachable
		bears := func(t corev1.Toleration) bool { return tolerates(&t, taint) }
		if own || taint.Effect == corev1.TaintEffectPreferNoSchedule || slices.ContainsFunc(template.Spec.Tolerations, bears) || slices.ContainsFunc(daemonTolerations, bears) ||
			template.Spec.HostNetwork && taint.Key == corev1.TaintNodeNetworkUnavailable {
			continue
		}
		should = false
		if taint.Effect == corev1.TaintEffectNoExecute {
			stay = false
		}
	}
	return should, stay
}

// daemonNode returns the node that pod is on or meant for; empty: none.
func daemonNode(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == "metadata.name" && f.Operator == corev1.NodeSelectorOpIn && len(f.Values) == 1 {
				return f.Values[0]
			}
		}
	}
	return ""
}

func (r *daemons) remove(pod *corev1.Pod, reason string) bool {
	if r.plan.more = r.plan.more || !r.room.spend(pod); r.plan.more {
		return false
	}
	r.plan.remove = append(r.plan.remove, removal{pod, reason})
	return true
}

// keepOne removes what is not wanted on a node: everything where nothing is to run,
// else all but one pod of each template.
func (r *daemons) keepOne(sp *spot) {
	drop := func(pods []*corev1.Pod, reason string) {
		for _, pod := range pods {
			if r.remove(pod, reason) {
				sp.going = true
			}
		}
	}
	if !sp.should && !sp.stay {
		drop(slices.Concat(sp.old, sp.new), fmt.Sprintf("is not to run on node %s any more", sp.node.name))
		sp.old, sp.new = nil, nil
		return
	}
	const why = "surplus on its node"
	if len(sp.new) > 1 {
		drop(sp.new[1:], why)
		sp.new = sp.new[:1]
	}
	if len(sp.old) > 1 {
		drop(sp.old[1:], why)
		sp.old = sp.old[:1]
	}
	if surge, _ := r.bounds(); surge == 0 && len(sp.new) > 0 && len(sp.old) > 0 {
		drop(sp.old, why)
		sp.old = nil
	}
}

// available reports whether one of pods serves for as long as it has to.
func (r *daemons) available(pods []*corev1.Pod) bool {
	for _, pod := range pods {
		ok, in := object.PodAvailable(pod, r.set.Spec.MinReadySeconds, r.now)
		r.plan.again = sooner(r.plan.again, in)
		if ok {
			return true
		}
	}
	return false
}

// update creates the pods that are missing and moves nodes to the new template as
// the strategy allows. What does not serve is replaced at once.
func (r *daemons) update() {
	surge, most := r.bounds()
	rolling := r.set.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType
	unavailable, both := 0, 0
	for _, sp := range r.spots {
		if !sp.should {
			continue
		}
		if !r.available(slices.Concat(sp.old, sp.new)) {
			unavailable++
		}
		if len(sp.new) > 0 && (len(sp.old) > 0 || sp.going) {
			both++
		}
	}
	for _, sp := range r.spots {
		if !sp.should {
			continue
		}
		switch {
		case len(sp.old) == 0 && len(sp.new) == 0:
			if !sp.waits && (!sp.going || rolling && surge > 0) {
				r.create(sp)
			}
		case !rolling || len(sp.old) == 0:
		case surge > 0 && len(sp.new) > 0: // side by side
			if r.available(sp.new) && r.remove(sp.old[0], "of an older template, and the new one serves") {
				sp.old = nil
			}
		case surge > 0 && (!r.available(sp.old) || both < surge):
			if both++; r.available(sp.old) || both <= surge {
				r.create(sp)
			} else if r.remove(sp.old[0], "of an older template, and "+describeState(sp.old[0])) {
				sp.old = nil
			}
		case surge > 0:
		case !r.available(sp.old):
			if r.remove(sp.old[0], "of an older template, and "+describeState(sp.old[0])) {
				sp.old = nil
			}
		case unavailable < most:
			if r.remove(sp.old[0], "of an older template") {
				sp.old = nil
				unavailable++
			}
		}
	}
}

// bounds resolves percentages of the nodes, up. If both come to 0, one pod may be
// unavailable, or the update could not move.
func (r *daemons) bounds() (surge, unavailable int) {
	rolling := r.set.Spec.UpdateStrategy.RollingUpdate
	if rolling == nil || r.set.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType {
		return 0, 1
	}
	desired := 0
	for _, sp := range r.spots {
		if sp.should {
			desired++
		}
	}
	resolve := func(v *intstr.IntOrString) int {
		if v == nil {
			return 0
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(v, desired, true)
		if err != nil {
			return 0 // refused by validation
		}
		return max(n, 0)
	}
	surge, unavailable = resolve(rolling.MaxSurge), resolve(rolling.MaxUnavailable)
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// create makes a pod for a node.
func (r *daemons) create(sp *spot) {
	if r.plan.more {
		return
	}
	suffix, uid := r.newPod()
	pod := podOf(r.set, daemonSetKind, &r.set.Spec.Template, childName(r.set.Name, suffix), uid, r.now)
	pod.GenerateName = r.set.Name + "-"
	pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = r.plan.revisions.update.Labels["controller.kubernetes.io/hash"]
	if sp.failures > 0 {
		pod.Annotations = with(pod.Annotations, failuresAnnotation, strconv.Itoa(sp.failures))
	}
	meantFor(pod, sp.node.name)
	finishPod(pod)
	if err := r.admit(pod); err != nil {
		r.plan.refused = refusal(pod, err)
		r.plan.again = sooner(r.plan.again, refusedAgain)
		return
	}
	if r.plan.more = !r.room.spend(pod); r.plan.more {
		return
	}
	r.plan.create = append(r.plan.create, pod)
	sp.new = append(sp.new, pod)
}

// meantFor ties pod to node, as Kubernetes does: by node affinity, so that the
// scheduler counts what it takes there and binds it when the node can have it. What
// the template requires of nodes has been looked at; what it prefers stays.
func meantFor(pod *corev1.Pod, node string) {
	if pod.Spec.Affinity == nil {
		pod.Spec.Affinity = &corev1.Affinity{}
	}
	if pod.Spec.Affinity.NodeAffinity == nil {
		pod.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
	}}}
	tolerations := slices.Clone(daemonTolerations)
	if pod.Spec.HostNetwork {
		tolerations = append(tolerations, corev1.Toleration{Key: corev1.TaintNodeNetworkUnavailable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule})
	}
	for _, t := range tolerations {
		if !slices.ContainsFunc(pod.Spec.Tolerations, func(have corev1.Toleration) bool { return have.MatchToleration(&t) }) {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, t)
		}
	}
}

// setStatus counts nodes as they are after the plan.
func (r *daemons) setStatus() {
	s := &r.set.Status
	collisions := s.CollisionCount
	*s = appsv1.DaemonSetStatus{ObservedGeneration: r.set.Generation, CollisionCount: collisions, Conditions: s.Conditions}
	for _, sp := range r.spots {
		pods := slices.Concat(sp.old, sp.new)
		if !sp.should {
			if len(pods) > 0 {
				s.NumberMisscheduled++
			}
			continue
		}
		s.DesiredNumberScheduled++
		if len(pods) > 0 {
			s.CurrentNumberScheduled++
		}
		if slices.ContainsFunc(pods, object.PodReady) {
			s.NumberReady++
		}
		if r.available(pods) {
			s.NumberAvailable++
		}
		if len(sp.new) > 0 {
			s.UpdatedNumberScheduled++
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
}

// outcome turns the plan into writes.
func (p daemonSetPlan) outcome(now time.Time) outcome {
	o := outcome{again: p.again, more: p.more}
	if p.revisions.update != nil {
		p.revisions.write(&o)
	}
	p.pods.write(&o, p.set, daemonSetKind, p.remove)
	for _, pod := range p.create {
		o.create(pod)
		o.tell(p.set, "SuccessfulCreate", "created pod %s for node %s", pod.Name, daemonNode(pod))
	}
	for _, r := range p.remove {
		o.tell(p.set, "SuccessfulDelete", "deleted pod %s: %s", r.pod.Name, r.reason)
		o.remove(r.pod, now)
	}
	if p.refused != "" {
		o.warn(p.set, "FailedCreate", "%s", p.refused)
	}
	switch {
	case p.changed || len(p.create) > 0:
		o.update(p.set)
	case len(o.txn.Then) > 0:
		o.unchanged(p.set)
	}
	o.txn.Reason = fmt.Sprintf("%d nodes, create %d, delete %d", p.set.Status.DesiredNumberScheduled, len(p.create), len(p.remove))
	return o
}

// newDaemonSets returns the controller that keeps DaemonSets.
func newDaemonSets(newUID, newSuffix func() string) *controller {
	return &controller{
		name: "daemonset",
		all:  func(s state) []object.Key { return keysOf(s.index, daemonSetResource) },
		affected: func(x *index, c change) []object.Key {
			keys := append(affectsItself(daemonSetResource, c), affectsOwners(x, daemonSetResource, podResource, c)...)
			keys = append(keys, affectsOwners(x, daemonSetResource, revisionResource, c)...)
			if c.placement {
				keys = append(keys, keysOf(x, daemonSetResource)...)
			}
			return keys
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			set, ok := object.Get[*appsv1.DaemonSet](s, key)
			if !ok {
				return outcome{} // deleted: the collector takes its pods
			}
			admission := s.admission(set.Namespace)
			view := daemonSetView{
				owned:     ownedBy[*corev1.Pod](s, set),
				revisions: ownedBy[*appsv1.ControllerRevision](s, set),
				nodes:     s.sortedNodes(),
				revTaken:  s.taken(revisionResource, set.Namespace),
				admit:     admission.admit,
				newPod:    func() (string, types.UID) { return newSuffix(), types.UID(newUID()) },
				newUID:    func() types.UID { return types.UID(newUID()) },
			}
			if selector := usable(set.Spec.Selector); selector != nil {
				view.orphans = orphansFor[*corev1.Pod](s, podResource.Prefix(set.Namespace), selector)
				view.orphanRevisions = orphansFor[*appsv1.ControllerRevision](s, revisionResource.Prefix(set.Namespace), selector)
			}
			o := planDaemonSet(set, view, now).outcome(now)
			admission.write(&o)
			return o
		},
	}
}

// samePlacement reports whether a node is as good for pods as it was.
func samePlacement(a, b nodeFacts) bool {
	return a.name == b.name && maps.Equal(a.labels, b.labels) &&
		slices.EqualFunc(a.taints, b.taints, func(a, b corev1.Taint) bool { return a.MatchTaint(&b) && a.Value == b.Value })
}
