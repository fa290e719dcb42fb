package apiserver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// evictAgain is when a refused eviction may be worth another try.
const evictAgain = 10 * time.Second

var (
	podResource        = object.ResourceOf(&corev1.Pod{})
	nodeResource       = object.ResourceOf(&corev1.Node{})
	replicaSetResource = object.ResourceOf(&appsv1.ReplicaSet{})
)

// Evict deletes a pod if the PodDisruptionBudgets that select it allow that. What
// they allow is counted from the pods themselves, at the revision at which the pod
// is deleted; each eviction writes the budgets that it counts on, so that of two at
// once the second counts anew.
//
// Of a pod that may not go, because it is needed, another is started first, if what
// controls it can do that: the pod is marked, and may go when the other serves.
func (s objectService) Evict(ctx context.Context, req *holdfastv1.EvictRequest) (*holdfastv1.EvictResponse, error) {
	_, namespace, err := s.target(ctx, kindOf(podResource), req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	how, err := newDeletion(req.GetGracePeriod(), holdfastv1.Propagation_PROPAGATION_UNSPECIFIED)
	if err != nil {
		return nil, err
	}
	how.uid, how.revision = req.GetUid(), req.GetRevision()
	w := writing{what: "evict Pod " + joinName(namespace, req.GetName()), reason: "evict", dryRun: req.GetDryRun()}
	var needed error // why the pod is marked, and not deleted
	revision, p, err := s.commit(ctx, w, func(p *plan) error {
		needed = nil
		was, err := p.load(podResource, namespace, req.GetName())
		if err != nil {
			return err
		}
		if err := how.means(was); err != nil {
			return err
		}
		pod := was.obj.(*corev1.Pod)
		use, err := p.disrupt(pod)
		if err == nil && req.GetReplaceFirst() {
			err = p.alone(pod)
		}
		switch {
		case err != nil && replaceable(pod):
			needed = err
			return p.replaceFirst(was)
		case err != nil:
			return err
		}
		gone := was
		gone.obj = targeted(pod, "evicted by "+actor(ctx), p.now)
		if _, err := p.remove(gone, how); err != nil {
			return err
		}
		if err := p.tellOwner(pod); err != nil {
			return err
		}
		return use.write(p, pod)
	})
	if err == nil {
		err = needed
	}
	if err != nil {
		return nil, err
	}
	return &holdfastv1.EvictResponse{Answer: p.answerTo(revision)}, nil
}

// targeted returns pod with the condition that says that it is made to go, by no fault of
// its own: a Job does not count it as a failure if it says so.
func targeted(pod *corev1.Pod, why string, now time.Time) *corev1.Pod {
	if object.Deleting(pod) {
		return pod // for another reason, which stands
	}
	pod = pod.DeepCopy()
	object.SetPodCondition(pod, corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI", Message: why,
		LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
	})
	return pod
}

// replaceable reports whether pod serves, and another can be started in its place.
func replaceable(pod *corev1.Pod) bool {
	return object.CanReplaceFirst(pod) && object.PodReady(pod) && !object.Deleting(pod)
}

// replaceFirst marks a pod, unless it is and will be for a while.
func (p *plan) replaceFirst(was stored) error {
	if object.ReplaceFirst(was.obj.(*corev1.Pod), p.now) > object.ReplaceFirstFor/2 {
		return nil
	}
	pod := was.obj.DeepCopyObject().(*corev1.Pod)
	pod.Annotations = maps.Clone(pod.Annotations)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[object.ReplaceFirstAnnotation] = p.now.Add(object.ReplaceFirstFor).UTC().Format(time.RFC3339)
	if _, err := p.put(pod, was.mod); err != nil {
		return err
	}
	return p.tellOwner(pod)
}

// tellOwner writes the ReplicaSet of a pod that is evicted, or is to be, unchanged: what
// has counted on the pod is conditional on the set, and counts anew.
func (p *plan) tellOwner(pod *corev1.Pod) error {
	rs := p.replicaSetOf(pod)
	if rs == nil {
		return nil
	}
	_, err := p.put(rs, revisionOf(rs))
	return err
}

// alone refuses the eviction of a pod that is the only one of its owner that serves.
func (p *plan) alone(pod *corev1.Pod) error {
	if !replaceable(pod) {
		return nil
	}
	owner := object.ControllerOf(pod).UID
	for _, other := range object.List[*corev1.Pod](p.view, pod.Namespace) {
		if ref := object.ControllerOf(other); ref != nil && ref.UID == owner && other.UID != pod.UID && object.PodReady(other) && !object.Deleting(other) {
			return nil
		}
	}
	return notNow(pod, "it is the only one that serves, and another is started first")
}

// disruption is what an eviction takes from budgets.
type disruption []struct {
	budget *policyv1.PodDisruptionBudget
	pods   []*corev1.Pod
}

// disrupt holds the end of a pod against the budgets that select it. A pod that
// has ended, ends already or has not begun is nobody's loss; one that runs and is
// not ready may go while the others are enough, or always if the budget says so.
func (p *plan) disrupt(pod *corev1.Pod) (use disruption, err error) {
	if object.Deleting(pod) || pod.Status.Phase != corev1.PodRunning {
		return nil, nil
	}
	for _, budget := range object.List[*policyv1.PodDisruptionBudget](p.view, pod.Namespace) {
		if !object.BudgetSelects(budget, pod) {
			continue
		}
		ready := object.PodReady(pod)
		if policy := budget.Spec.UnhealthyPodEvictionPolicy; !ready && policy != nil && *policy == policyv1.AlwaysAllow {
			continue
		}
		pods := p.podsOf(budget)
		allowed, healthy, desired := object.DisruptionsAllowed(budget, pods, p.expected(pods))
		going := p.going(pods)
		allowed, healthy = allowed-going, healthy-going
		if ready && allowed < 1 || !ready && (healthy < desired || desired == 0) {
			return nil, overBudget(pod, budget, healthy, desired)
		}
		use = append(use, struct {
			budget *policyv1.PodDisruptionBudget
			pods   []*corev1.Pod
		}{budget, pods})
	}
	return use, nil
}

// going returns how many of the pods that serve will be removed by their ReplicaSets,
// which were scaled down: an eviction must not count on them.
func (p *plan) going(pods []*corev1.Pod) (n int) {
	serving := slices.DeleteFunc(slices.Clone(pods), func(pod *corev1.Pod) bool { return !object.PodReady(pod) || object.Deleting(pod) })
	seen := map[types.UID]bool{}
	for _, pod := range serving {
		if rs := p.replicaSetOf(pod); rs != nil && !seen[rs.UID] {
			seen[rs.UID] = true
			n += object.Surplus(rs, serving, p.now)
		}
	}
	return n
}

// replicaSetOf returns the ReplicaSet that controls pod, nil if none does.
func (p *plan) replicaSetOf(pod *corev1.Pod) *appsv1.ReplicaSet {
	ref := object.ControllerOf(pod)
	if ref == nil || ref.Kind != "ReplicaSet" || ref.APIVersion != "apps/v1" {
		return nil
	}
	rs, ok := object.Get[*appsv1.ReplicaSet](p.view, replicaSetResource.Key(pod.Namespace, ref.Name))
	if !ok || rs.UID != ref.UID {
		return nil
	}
	return rs
}

// write makes the eviction of pod one that counts.
func (d disruption) write(p *plan, pod *corev1.Pod) error {
	for _, use := range d {
		if _, err := p.put(use.budget, revisionOf(use.budget)); err != nil {
			return err
		}
		for _, other := range use.pods {
			if other.Name != pod.Name && object.PodReady(other) && len(p.conditions) < maxCounted {
				p.unchanged(string(object.KeyOf(other)), revisionOf(other))
			}
		}
	}
	return nil
}

// maxCounted bounds how many pods an eviction is conditional on. Of more, one may
// fail by itself while another is evicted; evictions still never add up.
const maxCounted = 400

// podsOf returns the pods that a budget is about.
func (p *plan) podsOf(budget *policyv1.PodDisruptionBudget) []*corev1.Pod {
	return slices.DeleteFunc(object.List[*corev1.Pod](p.view, budget.Namespace), func(pod *corev1.Pod) bool {
		return !object.BudgetSelects(budget, pod)
	})
}

// expected returns how many of pods there should be: the scales of all that
// control them, and those that nobody does.
func (p *plan) expected(pods []*corev1.Pod) (n int) {
	counted := make(map[types.UID]bool)
	for _, pod := range pods {
		owner, ok := p.scaled(pod)
		if !ok {
			n++
			continue
		}
		if !counted[owner.UID] {
			counted[owner.UID] = true
			n += int(owner.Spec.Replicas)
		}
	}
	return n
}

// scaled returns the scale of what controls pod: of the outermost that has one, a
// Deployment rather than its ReplicaSet.
func (p *plan) scaled(pod *corev1.Pod) (scale *autoscalingv1.Scale, ok bool) {
	for obj := object.Object(pod); ; {
		ref := object.ControllerOf(obj)
		if ref == nil {
			return scale, ok
		}
		gv, err := schema.ParseGroupVersion(ref.APIVersion)
		if err != nil {
			return scale, ok
		}
		r, err := p.kinds.ForKind(gv.Group, gv.Version, ref.Kind)
		if err != nil || !r.Scale {
			return scale, ok
		}
		owner, err := p.load(r, obj.GetNamespace(), ref.Name)
		if err != nil || owner.obj.GetUID() != ref.UID {
			return scale, ok
		}
		of, err := scaleOf(owner.obj)
		if err != nil {
			return scale, ok
		}
		obj, scale, ok = owner.obj, of, true
	}
}

// overBudget refuses an eviction, with the numbers that refuse it.
func overBudget(pod *corev1.Pod, budget *policyv1.PodDisruptionBudget, have, want int) error {
	why := fmt.Sprintf("the disruption budget %s needs %d healthy pods and has %d currently", budget.Name, want, have)
	if replaceable(pod) {
		why += "; another is started first"
	}
	return notNow(pod, why)
}

// notNow refuses an eviction that may succeed later.
func notNow(pod *corev1.Pod, why string) error {
	err := connect.Errorf(connect.CodeResourceExhausted, "%s cannot be evicted now: %s; wait until more are healthy", object.Title(pod), why)
	err = withFaults(err, object.Faults{{Object: object.Title(pod), Message: why}}, "DisruptionBudget")
	return withInfo(err, &holdfastv1.ErrorInfo{Reason: "TooManyRequests", RetryAfter: durationpb.New(evictAgain)})
}
