package controllers

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

const (
	// suffixLength is the length of the random end of a pod's name.
	suffixLength = 5

	// A pod that ended with phase Failed is replaced after a delay that doubles
	// with each further failure in failureMemory: a pod that every node refuses
	// would otherwise be created as fast as the log can take it.
	firstReplacementDelay = time.Second
	maxReplacementDelay   = 5 * time.Minute
	failureMemory         = 10 * time.Minute
	// keepFailed is the number of failed pods that are kept for a person to look
	// at.
	keepFailed = 3

	deletionCostAnnotation = "controller.kubernetes.io/pod-deletion-cost"
)

var (
	podResource        = object.ResourceOf(&corev1.Pod{})
	replicaSetResource = object.ResourceOf(&appsv1.ReplicaSet{})
	replicaSetKind     = appsv1.SchemeGroupVersion.WithKind("ReplicaSet")
)

// replicaSetPlan is the outcome of one pass over a ReplicaSet.
type replicaSetPlan struct {
	create  []*corev1.Pod
	remove  []removal                // cheapest to lose first
	adopt   []*corev1.Pod            // matching pods that nobody controls
	release []*corev1.Pod            // own pods that match no longer
	status  *appsv1.ReplicaSetStatus // as it is once the plan is carried out
	changed bool                     // status differs from the stored one
	refused string                   // why a pod was not created
	again   time.Duration            // a pod becomes available, or a replacement is due; 0: never
	more    bool                     // there was no room for all
}

// removal is a pod to delete, and why.
type removal struct {
	pod    *corev1.Pod
	reason string
}

// planReplicaSet compares the pods of rs with its replica count. owned are the
// pods it controls, orphans those in its namespace that nobody controls.
// newPod makes a pod's name and uid, and admit says why one may not be created. It
// is pure: testdata/replicaset states its whole behavior.
//
// Pods being deleted count as gone, or a slow kill would hold back their
// replacements, but for fenced ones, which must never have one beside them; pods that ended count as gone too.
//
// The status is that after the plan, and both are committed together, so at
// every revision rs has at most status.replicas pods that are not being deleted.
// The Deployment's plan relies on it.
func planReplicaSet(rs *appsv1.ReplicaSet, owned, orphans []*corev1.Pod, newPod func() (suffix string, uid types.UID), admit func(object.Object) error, now time.Time) replicaSetPlan {
	var plan replicaSetPlan
	if object.Deleting(rs) {
		return plan // the collector takes its pods when it is gone
	}
	room := newBudget()
	var live, terminating, failed []*corev1.Pod
	selector := usable(rs.Spec.Selector)
	for _, pod := range owned {
		switch {
		case selector != nil && !selector.Matches(labels.Set(pod.Labels)) && !object.Deleting(pod) && room.spend(pod):
			plan.release = append(plan.release, pod)
		case object.PodPhaseFinal(pod):
			if pod.Status.Phase == corev1.PodFailed && !object.Deleting(pod) {
				failed = append(failed, pod)
			}
		case object.Deleting(pod):
			terminating = append(terminating, pod)
		default:
			live = append(live, pod)
		}
	}
	for _, pod := range orphans {
		if !object.Deleting(pod) && !object.PodPhaseFinal(pod) && room.spend(pod) {
			plan.adopt = append(plan.adopt, pod)
			live = append(live, pod)
		}
	}

	want := int(replicasOf(rs.Spec.Replicas))
	leaving := replacedFirst(live, now)
	if leaving > 0 && want > 0 {
		want++ // one at a time is started before the one in its place goes
	}
	failures := recentFailures(failed, now)
	switch missing := want - len(live); {
	case missing > 0:
		for _, pod := range terminating {
			if object.Fenced(pod) && pod.Spec.NodeName != "" {
				missing--
			}
		}
		if wait := failures.delay(now); wait > 0 {
			plan.again = wait
			break
		}
		for range max(missing, 0) {
			suffix, uid := newPod()
			pod := podFromTemplate(rs, suffix, uid, now)
			if err := admit(pod); err != nil {
				if plan.again = refusedAgain; !errors.Is(err, errNamespaceEnds) {
					plan.refused = refusal(pod, err)
				}
				break
			}
			if plan.more = !room.spend(pod); plan.more {
				break
			}
			plan.create = append(plan.create, pod)
			live = append(live, pod)
		}
	case missing < 0:
		sortByCostToLose(live, rs.Spec.MinReadySeconds, now)
		for _, pod := range live[:-missing] {
			if plan.more = !room.spend(pod); plan.more {
				break
			}
			plan.remove = append(plan.remove, removal{pod, "surplus, " + describeState(pod)})
			if pod.Spec.NodeName != "" {
				terminating = append(terminating, pod)
			}
		}
		live = live[len(plan.remove):]
	}
	slices.SortFunc(failed, func(a, b *corev1.Pod) int { return oldestFirst(b, a) })
	for _, pod := range failed[min(keepFailed, len(failed)):] {
		if room.spend(pod) {
			plan.remove = append(plan.remove, removal{pod, "failed, and newer failures are kept"})
		}
	}
	// A pod to adopt and to remove at once would be written twice.
	plan.adopt = slices.DeleteFunc(plan.adopt, func(pod *corev1.Pod) bool {
		return slices.ContainsFunc(plan.remove, func(r removal) bool { return r.pod == pod })
	})

	var next time.Duration
	plan.status, next = replicaSetStatus(rs, live, len(terminating), now)
	plan.again = sooner(plan.again, next)
	plan.again = sooner(plan.again, leaving)
	plan.again = sooner(plan.again, failures.forgottenIn(now))
	failure := failures.condition()
	if plan.refused != "" {
		failure = &appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: plan.refused}
	}
	setReplicaSetCondition(plan.status, failure, now)
	plan.changed = !sameStatus(plan.status, &rs.Status)
	return plan
}

// replacedFirst returns for how long one of pods is to be replaced before it goes, 0 if
// none is: the shortest such time.
func replacedFirst(pods []*corev1.Pod, now time.Time) (soonest time.Duration) {
	for _, pod := range pods {
		soonest = sooner(soonest, object.ReplaceFirst(pod, now))
	}
	return soonest
}

func sameStatus(a, b *appsv1.ReplicaSetStatus) bool { return equality.Semantic.DeepEqual(a, b) }

// replicaSetStatus counts the live pods of rs. next is the time until a further
// pod becomes available by having been ready long enough, 0 if none will.
func replicaSetStatus(rs *appsv1.ReplicaSet, live []*corev1.Pod, terminating int, now time.Time) (status *appsv1.ReplicaSetStatus, next time.Duration) {
	status = rs.Status.DeepCopy()
	status.ObservedGeneration = rs.Generation
	status.Replicas = int32(len(live))
	status.FullyLabeledReplicas, status.ReadyReplicas, status.AvailableReplicas = 0, 0, 0
	status.TerminatingReplicas = new(int32(terminating))
	for _, pod := range live {
		if hasLabels(pod.Labels, rs.Spec.Template.Labels) {
			status.FullyLabeledReplicas++
		}
		if object.PodReady(pod) {
			status.ReadyReplicas++
		}
		available, in := object.PodAvailable(pod, rs.Spec.MinReadySeconds, now)
		if available {
			status.AvailableReplicas++
		} else if in > 0 && (next == 0 || in < next) {
			next = in
		}
	}
	return status, next
}

// podFromTemplate returns a new pod of rs, named by its suffix.
func podFromTemplate(rs *appsv1.ReplicaSet, suffix string, uid types.UID, now time.Time) *corev1.Pod {
	pod := podOf(rs, replicaSetKind, &rs.Spec.Template, childName(rs.Name, suffix), uid, now)
	pod.GenerateName = rs.Name + "-"
	return finishPod(pod)
}

// failures are the pods of a set that ended with phase Failed of late.
type failures struct {
	count  int
	newest *corev1.Pod
}

func recentFailures(failed []*corev1.Pod, now time.Time) failures {
	var f failures
	for _, pod := range failed {
		if now.Sub(pod.CreationTimestamp.Time) >= failureMemory {
			continue
		}
		f.count++
		if f.newest == nil || oldestFirst(f.newest, pod) < 0 {
			f.newest = pod
		}
	}
	return f
}

// delay returns how long to wait before the next pod is created.
func (f failures) delay(now time.Time) time.Duration {
	if f.count == 0 {
		return 0
	}
	delay := min(firstReplacementDelay<<min(f.count-1, 20), maxReplacementDelay)
	return max(f.newest.CreationTimestamp.Add(delay).Sub(now), 0)
}

// forgottenIn returns when the newest failure no longer counts; 0: there is none.
func (f failures) forgottenIn(now time.Time) time.Duration {
	if f.count == 0 {
		return 0
	}
	return max(f.newest.CreationTimestamp.Add(failureMemory).Sub(now), 1)
}

// condition returns the condition that tells people of failures, nil if there is
// nothing to tell: one failure is replaced at once and may well be the last.
func (f failures) condition() *appsv1.ReplicaSetCondition {
	if f.count < 2 {
		return nil
	}
	return &appsv1.ReplicaSetCondition{
		Type:    appsv1.ReplicaSetReplicaFailure,
		Status:  corev1.ConditionTrue,
		Reason:  "PodsFailed",
		Message: fmt.Sprintf("%d pods failed within %v, at last %s; replacements are delayed", f.count, failureMemory, f.newest.Name),
	}
}

// setReplicaSetCondition makes c the condition ReplicaFailure of status; nil
// takes it away.
func setReplicaSetCondition(status *appsv1.ReplicaSetStatus, c *appsv1.ReplicaSetCondition, now time.Time) {
	at := slices.IndexFunc(status.Conditions, func(have appsv1.ReplicaSetCondition) bool { return have.Type == appsv1.ReplicaSetReplicaFailure })
	switch {
	case c == nil && at >= 0:
		status.Conditions = slices.Delete(status.Conditions, at, at+1)
	case c == nil:
	case at < 0:
		c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
		status.Conditions = append(status.Conditions, *c)
	default:
		c.LastTransitionTime = status.Conditions[at].LastTransitionTime
		status.Conditions[at] = *c
	}
}

// sooner returns the shorter of two waits, where 0 stands for no wait at all.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// sortByCostToLose puts first what serves least: not bound to a node, not running,
// not ready, not available, annotated as cheap, on a node with more pods of the
// set, ready more recently, restarted more often, created more recently. The
// order is Kubernetes'; only availability is ours, because a rolling update
// counts on losing what is not available before what is.
func sortByCostToLose(pods []*corev1.Pod, minReadySeconds int32, now time.Time) {
	available := func(pod *corev1.Pod) bool {
		ok, _ := object.PodAvailable(pod, minReadySeconds, now)
		return ok
	}
	together := map[string]int{}
	for _, pod := range pods {
		together[pod.Spec.NodeName]++
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(
			falseFirst(a.Spec.NodeName != "", b.Spec.NodeName != ""),
			cmp.Compare(phaseRank(a), phaseRank(b)),
			falseFirst(object.PodReady(a), object.PodReady(b)),
			falseFirst(available(a), available(b)),
			cmp.Compare(deletionCost(a), deletionCost(b)),
			cmp.Compare(together[b.Spec.NodeName], together[a.Spec.NodeName]),
			compareReadyAge(a, b, now),
			cmp.Compare(restarts(b), restarts(a)),
			b.CreationTimestamp.Time.Compare(a.CreationTimestamp.Time),
			cmp.Compare(a.Name, b.Name),
		)
	})
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

func phaseRank(pod *corev1.Pod) int {
	switch pod.Status.Phase {
	case corev1.PodPending, "":
		return 0
	case corev1.PodUnknown:
		return 1
	default:
		return 2
	}
}

// deletionCost is the price that a person has put on losing the pod; cheap ones
// go first.
func deletionCost(pod *corev1.Pod) int32 {
	cost, err := strconv.ParseInt(pod.Annotations[deletionCostAnnotation], 10, 32)
	if err != nil {
		return 0
	}
	return int32(cost)
}

// compareReadyAge puts pods that have become ready more recently first, by
// orders of magnitude, so that a few seconds decide nothing.
func compareReadyAge(a, b *corev1.Pod, now time.Time) int {
	magnitude := func(pod *corev1.Pod) int {
		c := object.PodCondition(pod, corev1.PodReady)
		if c == nil || c.Status != corev1.ConditionTrue {
			return 0
		}
		return int(math.Log2(max(now.Sub(c.LastTransitionTime.Time).Seconds(), 1)))
	}
	return cmp.Compare(magnitude(a), magnitude(b))
}

func restarts(pod *corev1.Pod) int32 {
	var n int32
	for i := range pod.Status.ContainerStatuses {
		n = max(n, pod.Status.ContainerStatuses[i].RestartCount)
	}
	return n
}

func oldestFirst[T metav1.Object](a, b T) int {
	return cmp.Or(a.GetCreationTimestamp().Time.Compare(b.GetCreationTimestamp().Time), cmp.Compare(a.GetName(), b.GetName()))
}

func describeState(pod *corev1.Pod) string {
	switch {
	case pod.Spec.NodeName == "":
		return "not scheduled"
	case pod.Status.Phase != corev1.PodRunning:
		return "not running"
	case !object.PodReady(pod):
		return "not ready"
	default:
		return "ready"
	}
}

func replicasOf(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// outcome turns the plan into writes. owner is what the set stands for, the set
// itself or a ReplicationController, of that kind, and setStatus writes p's status
// into it.
func (p replicaSetPlan) outcome(owner object.Object, kind schema.GroupVersionKind, desired int32, setStatus func(*appsv1.ReplicaSetStatus), now time.Time) outcome {
	o := outcome{again: p.again, more: p.more}
	if p.status == nil {
		return o
	}
	claims{adopt: p.adopt, release: p.release}.write(&o, owner, kind, nil)
	for _, pod := range p.create {
		pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)}
		o.create(pod)
		o.tell(owner, "SuccessfulCreate", "created pod %s", pod.Name)
	}
	for _, r := range p.remove {
		o.tell(owner, "SuccessfulDelete", "deleted pod %s: %s", r.pod.Name, r.reason)
		o.remove(r.pod, now)
	}
	if p.refused != "" && p.changed {
		o.warn(owner, "FailedCreate", "%s", p.refused)
	}
	// Whatever changes the pods is conditional on the set, and rewrites it when
	// it creates, changed or not: a transaction whose outcome stayed unknown can
	// then not be applied beside the one that was planned in its place.
	switch {
	case p.changed || len(p.create) > 0:
		setStatus(p.status)
		o.update(owner)
	case len(o.txn.Then) > 0:
		o.unchanged(owner)
	}
	o.txn.Reason = fmt.Sprintf("replicas %d, create %d, delete %d", desired, len(p.create), len(p.remove))
	return o
}

func withoutOwner(refs []metav1.OwnerReference, uid types.UID) []metav1.OwnerReference {
	return slices.DeleteFunc(slices.Clone(refs), func(ref metav1.OwnerReference) bool { return ref.UID == uid })
}

// newReplicaSets returns the controller that keeps ReplicaSets at their number of
// pods.
func newReplicaSets(newUID, newSuffix func() string) *controller {
	return &controller{
		name: "replicaset",
		all:  func(s state) []object.Key { return keysOf(s.index, replicaSetResource) },
		affected: func(x *index, c change) []object.Key {
			return append(affectsItself(replicaSetResource, c), affectsOwners(x, replicaSetResource, podResource, c)...)
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			rs, ok := object.Get[*appsv1.ReplicaSet](s, key)
			if !ok {
				return outcome{} // deleted: the collector takes its pods
			}
			var orphans []*corev1.Pod
			if selector := usable(rs.Spec.Selector); selector != nil {
				orphans = orphansFor[*corev1.Pod](s, podResource.Prefix(rs.Namespace), selector)
			}
			newPod := func() (string, types.UID) { return newSuffix(), types.UID(newUID()) }
			admission := s.admission(rs.Namespace)
			plan := planReplicaSet(rs, ownedBy[*corev1.Pod](s, rs), orphans, newPod, admission.admit, now)
			o := plan.outcome(rs, replicaSetKind, replicasOf(rs.Spec.Replicas), func(status *appsv1.ReplicaSetStatus) { rs.Status = *status }, now)
			if len(plan.create) > 0 {
				admission.write(&o)
			}
			return o
		},
	}
}
