package controllers

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
)

var (
	statefulSetResource = object.ResourceOf(&appsv1.StatefulSet{})
	statefulSetKind     = appsv1.SchemeGroupVersion.WithKind("StatefulSet")
	claimResource       = object.ResourceOf(&corev1.PersistentVolumeClaim{})
	podKind             = corev1.SchemeGroupVersion.WithKind("Pod")
)

const (
	// outOfTurn is how long a pod of an old template may be unready before the update
	// replaces it although others come first.
	outOfTurn = time.Minute
	// endedDelay is the least time between two pods of one name of which the first
	// ended: a pod that every node refuses is not created as fast as the log takes it.
	endedDelay = 10 * time.Second
)

// statefulSetView is what planStatefulSet knows beside the set itself.
type statefulSetView struct {
	owned, orphans     []*corev1.Pod
	revisions          []*appsv1.ControllerRevision
	orphanRevisions    []*appsv1.ControllerRevision
	claim              func(name string) *corev1.PersistentVolumeClaim // nil: there is none
	podTaken, revTaken func(name string) bool                          // something has the name
	admit              func(object.Object) error
	newUID             func() types.UID
}

// statefulSetPlan is the outcome of one pass over a StatefulSet. Its objects are
// the caller's, changed to what they should become.
type statefulSetPlan struct {
	set       *appsv1.StatefulSet
	changed   bool
	pods      claims
	create    []*corev1.Pod
	remove    []removal
	relabel   []*corev1.Pod                   // did not carry their identity
	newClaims []*corev1.PersistentVolumeClaim // made before their pod
	ownClaims []*corev1.PersistentVolumeClaim // get or lose an owner
	revisions revisions
	refused   string // why something was not created
	again     time.Duration
	more      bool
}

// stateful is the work of planStatefulSet.
type stateful struct {
	statefulSetView
	plan     *statefulSetPlan
	set      *appsv1.StatefulSet
	current  *appsv1.ControllerRevision // that pods below the partition have
	start    int
	end      int                 // after the last ordinal
	byNumber map[int]*corev1.Pod // as they are after the plan
	room     *budget
	now      time.Time
	halted   bool // in order, something has to happen first
}

// planStatefulSet moves set one step toward its spec. It is pure:
// testdata/statefulset states its whole behavior.
//
// A pod's name is its identity, and the store has room for one object of a name: a
// pod is replaced only after the object of the one before is gone, which is when
// its node has reported that nothing of it runs; or, since pods are fenced unless the
// template says otherwise, when the node is lost and the pod has been stopped for certain.
//
// In order (OrderedReady), a pod is created, and one that is too many removed, only
// while all pods before it are ready. That never keeps a pod of an older template
// from being replaced by an update: what is broken for that template is what the
// update is to repair (kubernetes#67250).
func planStatefulSet(set *appsv1.StatefulSet, view statefulSetView, now time.Time) statefulSetPlan {
	plan := statefulSetPlan{set: set}
	if object.Deleting(set) {
		return plan // the collector takes its pods when it is gone
	}
	before := set.DeepCopy()
	r := &stateful{statefulSetView: view, plan: &plan, set: set, room: newBudget(), now: now, byNumber: map[int]*corev1.Pod{}}
	if o := set.Spec.Ordinals; o != nil {
		r.start = int(o.Start)
	}
	r.end = r.start + int(replicasOf(set.Spec.Replicas))

	plan.pods = claim(view.owned, view.orphans, usable(set.Spec.Selector), func(pod *corev1.Pod) bool {
		_, ok := ordinalOf(set, pod.Name)
		return ok
	}, r.room)
	plan.revisions = revisionsOf(set, statefulSetKind, &set.Spec.Template, view.revisions, view.orphanRevisions, set.Status.CollisionCount, view.revTaken, view.newUID, now)
	if plan.revisions.update == nil { // the next pass finds another name
		set.Status.CollisionCount = new(replicasOrZero(set.Status.CollisionCount) + 1)
		plan.changed = true
		return plan
	}
	if r.current = plan.revisions.named(set.Status.CurrentRevision); r.current == nil {
		r.current = plan.revisions.update
	}
	for _, pod := range plan.pods.mine {
		if n, ok := ordinalOf(set, pod.Name); ok {
			r.byNumber[n] = pod
		}
	}

	r.fill()
	r.shrink()
	r.update()
	r.keepClaims()
	r.identify()
	r.setStatus()
	plan.revisions.prune(set.Spec.RevisionHistoryLimit, func(rev *appsv1.ControllerRevision) bool {
		return rev.Name == set.Status.CurrentRevision || slices.ContainsFunc(plan.pods.mine, func(pod *corev1.Pod) bool { return isRevision(pod, rev) })
	})
	plan.changed = !equality.Semantic.DeepEqual(before, set)
	return plan
}

// ordinalOf returns the number at the end of a pod's name, if the rest is set's.
func ordinalOf(set *appsv1.StatefulSet, pod string) (n int, ok bool) {
	digits, ok := strings.CutPrefix(pod, set.Name+"-")
	if !ok || digits == "" || len(digits) > 1 && digits[0] == '0' || digits[0] == '+' || digits[0] == '-' {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil
}

// revisionLabel is what a pod of rev carries.
func revisionLabel(rev *appsv1.ControllerRevision) string {
	if len(rev.Name) > 63 {
		return rev.Labels["controller.kubernetes.io/hash"] // the whole name is no label
	}
	return rev.Name
}

func isRevision(pod *corev1.Pod, rev *appsv1.ControllerRevision) bool {
	return pod.Labels[appsv1.StatefulSetRevisionLabel] == revisionLabel(rev)
}

func (r *stateful) ordered() bool {
	return r.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
}

// inRange reports whether there is to be a pod of number n.
func (r *stateful) inRange(n int) bool { return n >= r.start && n < r.end }

// partition is the number from which on pods get the new template.
func (r *stateful) partition() int {
	s := r.set.Spec.UpdateStrategy
	if s.Type == appsv1.OnDeleteStatefulSetStrategyType || s.RollingUpdate == nil || s.RollingUpdate.Partition == nil {
		return r.start
	}
	return r.start + int(*s.RollingUpdate.Partition)
}

// healthy reports whether pod serves for as long as it has to, and else in how long
// it will have.
func (r *stateful) healthy(pod *corev1.Pod) (ok bool, in time.Duration) {
	if !running(pod) {
		return false, 0
	}
	return object.PodAvailable(pod, r.set.Spec.MinReadySeconds, r.now)
}

func (r *stateful) remove(n int, reason string) bool {
	pod := r.byNumber[n]
	if r.plan.more = r.plan.more || !r.room.spend(pod); r.plan.more {
		return false
	}
	r.plan.remove = append(r.plan.remove, removal{pod, reason})
	return true
}

func (r *stateful) going(pod *corev1.Pod) bool {
	return object.Deleting(pod) || slices.ContainsFunc(r.plan.remove, func(x removal) bool { return x.pod == pod })
}

// fill creates the pods that are missing and replaces those that ended, from the
// lowest number on; in order, as far as all before are ready.
func (r *stateful) fill() {
	for n := r.start; n < r.end && !r.halted && !r.plan.more; n++ {
		pod := r.byNumber[n]
		switch {
		case pod == nil:
			r.create(n)
			r.halted = r.ordered()
		case object.Deleting(pod):
			r.halted = r.ordered()
		case object.PodPhaseFinal(pod):
			r.halted = r.ordered()
			if wait := pod.CreationTimestamp.Add(endedDelay).Sub(r.now); wait > 0 {
				r.plan.again = sooner(r.plan.again, wait)
			} else {
				r.remove(n, "ended with phase "+string(pod.Status.Phase))
			}
		default:
			if ok, in := r.healthy(pod); !ok {
				r.halted = r.ordered()
				r.plan.again = sooner(r.plan.again, in)
			}
		}
	}
}

// create makes pod n, and its claims before it.
func (r *stateful) create(n int) {
	rev, template := r.plan.revisions.update, &r.set.Spec.Template
	if n < r.partition() && r.current != rev {
		if held, err := revisionTemplate(r.current); err == nil {
			rev, template = r.current, held
		}
	}
	name := fmt.Sprintf("%s-%d", r.set.Name, n)
	if r.podTaken(name) {
		r.refuse(fmt.Sprintf("create Pod %s: there is a pod of that name which is not the set's: delete it, or rename it", name))
		return
	}
	pod := podOf(r.set, statefulSetKind, template, name, r.newUID(), r.now)
	pod.Labels[appsv1.StatefulSetRevisionLabel] = revisionLabel(rev)
	pod.Labels[appsv1.StatefulSetPodNameLabel] = name
	pod.Labels[appsv1.PodIndexLabel] = strconv.Itoa(n)
	pod.Spec.Hostname, pod.Spec.Subdomain = name, r.set.Spec.ServiceName
	if _, said := pod.Annotations[object.FencingAnnotation]; !said {
		pod.Annotations = with(pod.Annotations, object.FencingAnnotation, object.FencingStrict)
	}
	r.mount(pod, n)
	finishPod(pod)

	var missing []*corev1.PersistentVolumeClaim
	for i := range r.set.Spec.VolumeClaimTemplates {
		claim := r.newClaim(i, n)
		switch have := r.claim(claim.Name); {
		case have == nil:
			missing = append(missing, claim)
		case object.Deleting(have), r.stale(have, n):
			r.refuse(fmt.Sprintf("create Pod %s: its claim %s is being deleted: the pod follows when that has ended", name, claim.Name))
			return
		}
	}
	for _, claim := range missing {
		if err := r.admit(claim); err != nil {
			r.refuse(refusal(claim, err))
			return
		}
	}
	if err := r.admit(pod); err != nil {
		r.refuse(refusal(pod, err))
		return
	}
	for _, claim := range missing {
		if !r.room.spend(claim) {
			r.plan.more = true
			return
		}
	}
	if !r.room.spend(pod) {
		r.plan.more = true
		return
	}
	r.plan.newClaims = append(r.plan.newClaims, missing...)
	r.plan.create = append(r.plan.create, pod)
	r.byNumber[n] = pod
}

func (r *stateful) refuse(why string) {
	r.plan.refused = why
	r.plan.again = sooner(r.plan.again, refusedAgain)
}

// newClaim returns the claim that template i makes for pod n.
func (r *stateful) newClaim(i, n int) *corev1.PersistentVolumeClaim {
	template := r.set.Spec.VolumeClaimTemplates[i].DeepCopy()
	claim := &corev1.PersistentVolumeClaim{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{
			Name:              claimName(r.set, template.Name, n),
			Namespace:         r.set.Namespace,
			UID:               r.newUID(),
			CreationTimestamp: metav1.NewTime(r.now.Truncate(time.Second)),
			Labels:            template.Labels,
			Annotations:       template.Annotations,
			OwnerReferences:   r.claimOwners(nil, n),
		},
		Spec: template.Spec,
	}
	for k, v := range r.set.Spec.Selector.MatchLabels {
		claim.Labels = with(claim.Labels, k, v)
	}
	object.Default(claim)
	object.Stamp(claim)
	return claim
}

func claimName(set *appsv1.StatefulSet, template string, n int) string {
	return fmt.Sprintf("%s-%s-%d", template, set.Name, n)
}

// mount gives pod n the volumes of its claims, before a volume of the same name.
func (r *stateful) mount(pod *corev1.Pod, n int) {
	var volumes []corev1.Volume
	for i := range r.set.Spec.VolumeClaimTemplates {
		name := r.set.Spec.VolumeClaimTemplates[i].Name
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(r.set, name, n)},
		}})
	}
	for _, v := range pod.Spec.Volumes {
		if !slices.ContainsFunc(volumes, func(c corev1.Volume) bool { return c.Name == v.Name }) {
			volumes = append(volumes, v)
		}
	}
	pod.Spec.Volumes = volumes
}

// stale reports whether claim goes with an earlier pod n, which is gone.
func (r *stateful) stale(claim *corev1.PersistentVolumeClaim, n int) bool {
	return slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool {
		return ref.Kind == podKind.Kind && ref.Name == fmt.Sprintf("%s-%d", r.set.Name, n)
	}) && r.byNumber[n] == nil
}

// claimOwners returns the owners that a claim of pod n has by the set's retention
// policy: the set, if claims go with it; the pod, if it is one too many and claims
// go with those. Owners that others have given it stay.
func (r *stateful) claimOwners(have []metav1.OwnerReference, n int) []metav1.OwnerReference {
	pod := r.byNumber[n]
	refs := slices.DeleteFunc(slices.Clone(have), func(ref metav1.OwnerReference) bool {
		return ref.UID == r.set.UID || ref.Kind == podKind.Kind && ref.Name == fmt.Sprintf("%s-%d", r.set.Name, n)
	})
	policy := r.set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil {
		return refs
	}
	scaled := !r.inRange(n) && policy.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	switch {
	case scaled && pod != nil:
		refs = append(refs, *metav1.NewControllerRef(pod, podKind))
	case !scaled && policy.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType:
		refs = append(refs, *metav1.NewControllerRef(r.set, statefulSetKind))
	}
	return refs
}

// keepClaims gives the claims of all pods the owners that the retention policy asks
// for, and makes those that a waiting pod misses.
func (r *stateful) keepClaims() {
	for _, n := range slices.Sorted(maps.Keys(r.byNumber)) {
		if slices.Contains(r.plan.create, r.byNumber[n]) {
			continue
		}
		for i := range r.set.Spec.VolumeClaimTemplates {
			claim := r.claim(claimName(r.set, r.set.Spec.VolumeClaimTemplates[i].Name, n))
			switch {
			case claim == nil:
				pod := r.byNumber[n]
				if pod.Status.Phase != corev1.PodPending || r.going(pod) || !r.inRange(n) {
					continue
				}
				claim = r.newClaim(i, n)
				if err := r.admit(claim); err != nil {
					r.refuse(refusal(claim, err))
				} else if r.room.spend(claim) {
					r.plan.newClaims = append(r.plan.newClaims, claim)
				}
			case object.Deleting(claim):
			default:
				if refs := r.claimOwners(claim.OwnerReferences, n); !slices.EqualFunc(refs, claim.OwnerReferences, sameOwner) && r.room.spend(claim) {
					claim.OwnerReferences = refs
					r.plan.ownClaims = append(r.plan.ownClaims, claim)
				}
			}
		}
	}
}

func sameOwner(a, b metav1.OwnerReference) bool { return a.UID == b.UID }

// shrink removes the pods that are too many, the highest number first; in order,
// one after the other.
func (r *stateful) shrink() {
	if r.halted {
		return
	}
	for _, n := range slices.Backward(slices.Sorted(maps.Keys(r.byNumber))) {
		switch pod := r.byNumber[n]; {
		case r.inRange(n):
			continue
		case !object.Deleting(pod) && !r.remove(n, "surplus, "+describeState(pod)):
			return
		}
		if r.ordered() {
			r.halted = true
			return
		}
	}
}

// update replaces pods of other templates than the wanted one, from the highest
// number down to the partition: as many as may be unavailable, and those that are
// of no use as they are.
func (r *stateful) update() {
	if r.set.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		return
	}
	unavailable, going := 0, false
	for n := r.start; n < r.end; n++ {
		pod := r.byNumber[n]
		if pod == nil || r.going(pod) {
			unavailable++
			going = going || pod != nil
		} else if ok, in := r.healthy(pod); !ok {
			unavailable++
			r.plan.again = sooner(r.plan.again, in)
		}
	}
	budget := r.maxUnavailable() - unavailable
	inTurn := true // no pod that serves comes first
	for n := r.end - 1; n >= r.partition(); n-- {
		pod := r.byNumber[n]
		if pod == nil || r.going(pod) || isRevision(pod, r.plan.revisions.update) {
			continue
		}
		if r.ordered() && going {
			return // one at a time
		}
		serves, _ := r.healthy(pod)
		wait := time.Duration(0)
		if !serves && !inTurn {
			wait = r.stuckIn(pod)
		}
		switch {
		case !serves && wait == 0:
			going = r.remove(n, "of an older template, and "+describeState(pod)) || going
		case !serves:
			r.plan.again = sooner(r.plan.again, wait)
		case budget > 0 && !r.halted:
			if r.remove(n, "of an older template") {
				budget--
				going = going || r.maxUnavailable() == 1
			}
		default:
			inTurn = false
		}
	}
}

// stuckIn returns how long until pod, which does not serve, is taken to be broken:
// at once if it does not even run.
func (r *stateful) stuckIn(pod *corev1.Pod) time.Duration {
	if pod.Status.Phase != corev1.PodRunning {
		return 0
	}
	since := pod.CreationTimestamp.Time
	if c := object.PodCondition(pod, corev1.PodReady); c != nil {
		if c.Status == corev1.ConditionTrue { // ready, only not for long enough
			return outOfTurn
		}
		since = c.LastTransitionTime.Time
	}
	return max(since.Add(outOfTurn).Sub(r.now), 0)
}

// maxUnavailable is how many pods may be unavailable in an update, at least one.
// Percentages round up.
func (r *stateful) maxUnavailable() int {
	rolling := r.set.Spec.UpdateStrategy.RollingUpdate
	if rolling == nil || rolling.MaxUnavailable == nil {
		return 1
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(rolling.MaxUnavailable, r.end-r.start, true)
	if err != nil {
		return 1 // refused by validation
	}
	return max(n, 1)
}

// identify puts the labels of its identity on a pod that lost them, or was adopted.
func (r *stateful) identify() {
	for _, n := range slices.Sorted(maps.Keys(r.byNumber)) {
		pod := r.byNumber[n]
		want := map[string]string{appsv1.StatefulSetPodNameLabel: pod.Name, appsv1.PodIndexLabel: strconv.Itoa(n)}
		if r.going(pod) || hasLabels(pod.Labels, want) || !r.room.spend(pod) {
			continue
		}
		for k, v := range want {
			pod.Labels = with(pod.Labels, k, v)
		}
		r.plan.relabel = append(r.plan.relabel, pod)
	}
}

// setStatus counts the pods as they are after the plan. Once all are of the wanted
// template and ready, that is the current one.
func (r *stateful) setStatus() {
	s, update := &r.set.Status, r.plan.revisions.update
	s.ObservedGeneration = r.set.Generation
	s.Replicas, s.ReadyReplicas, s.AvailableReplicas, s.CurrentReplicas, s.UpdatedReplicas = 0, 0, 0, 0, 0
	for _, pod := range r.byNumber {
		if r.going(pod) && pod.Spec.NodeName == "" && len(pod.Finalizers) == 0 {
			continue // gone with this plan
		}
		s.Replicas++
		if r.going(pod) {
			continue
		}
		if isRevision(pod, r.current) {
			s.CurrentReplicas++
		}
		if isRevision(pod, update) {
			s.UpdatedReplicas++
		}
		if running(pod) {
			s.ReadyReplicas++
		}
		ok, in := r.healthy(pod)
		if ok {
			s.AvailableReplicas++
		}
		r.plan.again = sooner(r.plan.again, in)
	}
	if want := replicasOf(r.set.Spec.Replicas); s.UpdatedReplicas == want && s.Replicas == want && s.ReadyReplicas == want {
		r.current = update
		s.CurrentReplicas = s.UpdatedReplicas
	}
	s.CurrentRevision, s.UpdateRevision = r.current.Name, update.Name
	if s.CollisionCount == nil {
		s.CollisionCount = new(int32(0))
	}
}

func replicasOrZero(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

// outcome turns the plan into writes.
func (p statefulSetPlan) outcome(now time.Time) outcome {
	o := outcome{again: p.again, more: p.more}
	if p.revisions.update != nil {
		p.revisions.write(&o)
	}
	p.relabel = slices.DeleteFunc(p.relabel, func(pod *corev1.Pod) bool { return slices.Contains(p.pods.adopt, pod) }) // written with that
	p.pods.write(&o, p.set, statefulSetKind, p.remove)
	for _, pod := range p.relabel {
		o.update(pod)
	}
	for _, claim := range p.newClaims {
		o.create(claim)
		o.tell(p.set, "SuccessfulCreate", "created claim %s", claim.Name)
	}
	for _, claim := range p.ownClaims {
		o.update(claim)
	}
	for _, pod := range p.create {
		o.create(pod)
		o.tell(p.set, "SuccessfulCreate", "created pod %s", pod.Name)
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
	o.txn.Reason = fmt.Sprintf("replicas %d, create %d, delete %d", replicasOf(p.set.Spec.Replicas), len(p.create), len(p.remove))
	return o
}

// newStatefulSets returns the controller that keeps StatefulSets.
func newStatefulSets(newUID func() string) *controller {
	return &controller{
		name: "statefulset",
		all:  func(s state) []object.Key { return keysOf(s.index, statefulSetResource) },
		affected: func(x *index, c change) []object.Key {
			keys := append(affectsItself(statefulSetResource, c), affectsOwners(x, statefulSetResource, podResource, c)...)
			keys = append(keys, affectsOwners(x, statefulSetResource, revisionResource, c)...)
			if c.after == nil && isKind(c.before.resource, claimResource) { // one may wait for it to go
				_, namespace, name, _ := object.SplitKey(c.key)
				for key := range x.selecting[statefulSetResource.Prefix(namespace)] {
					_, _, set, _ := object.SplitKey(key)
					if strings.Contains(name, "-"+set+"-") {
						keys = append(keys, key)
					}
				}
			}
			return keys
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			set, ok := object.Get[*appsv1.StatefulSet](s, key)
			if !ok {
				return outcome{} // deleted: the collector takes its pods
			}
			admission := s.admission(set.Namespace)
			view := statefulSetView{
				owned:     ownedBy[*corev1.Pod](s, set),
				revisions: ownedBy[*appsv1.ControllerRevision](s, set),
				claim: func(name string) *corev1.PersistentVolumeClaim {
					claim, _ := object.Get[*corev1.PersistentVolumeClaim](s, claimResource.Key(set.Namespace, name))
					return claim
				},
				podTaken: s.taken(podResource, set.Namespace),
				revTaken: s.taken(revisionResource, set.Namespace),
				admit:    admission.admit,
				newUID:   func() types.UID { return types.UID(newUID()) },
			}
			if selector := usable(set.Spec.Selector); selector != nil {
				view.orphans = orphansFor[*corev1.Pod](s, podResource.Prefix(set.Namespace), selector)
				view.orphanRevisions = orphansFor[*appsv1.ControllerRevision](s, revisionResource.Prefix(set.Namespace), selector)
			}
			o := planStatefulSet(set, view, now).outcome(now)
			admission.write(&o)
			return o
		},
	}
}

// taken returns a function that reports whether something of kind r has a name.
func (s state) taken(r object.Resource, namespace string) func(string) bool {
	return func(name string) bool {
		_, _, ok := s.Value(string(r.Key(namespace, name)))
		return ok
	}
}
