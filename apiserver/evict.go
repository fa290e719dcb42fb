package apiserver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// evictAgain is when a refused eviction may be worth another try.
const evictAgain = 10 * time.Second

var (
	podResource  = object.ResourceOf(&corev1.Pod{})
	nodeResource = object.ResourceOf(&corev1.Node{})
)

// Evict deletes a pod if the PodDisruptionBudgets that select it allow that. What
// they allow is counted from the pods themselves, at the revision at which the pod
// is deleted; each eviction writes the budgets that it counts on, so that of two at
// once the second counts anew.
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
	revision, p, err := s.commit(ctx, w, func(p *plan) error {
		was, err := p.load(podResource, namespace, req.GetName())
		if err != nil {
			return err
		}
		if _, err := p.remove(was, how); err != nil {
			return err
		}
		return p.disrupt(was.obj.(*corev1.Pod))
	})
	if err != nil {
		return nil, err
	}
	return &holdfastv1.EvictResponse{Answer: p.answerTo(revision)}, nil
}

// disrupt holds the end of a pod against the budgets that select it. A pod that
// has ended, ends already or has not begun is nobody's loss; one that runs and is
// not ready may go while the others are enough, or always if the budget says so.
func (p *plan) disrupt(pod *corev1.Pod) error {
	if object.Deleting(pod) || pod.Status.Phase != corev1.PodRunning {
		return nil
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
		if ready && allowed < 1 || !ready && (healthy < desired || desired == 0) {
			return overBudget(pod, budget, healthy, desired)
		}
		if _, err := p.put(budget, revisionOf(budget)); err != nil {
			return err
		}
		for _, other := range pods {
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
	err := connect.Errorf(connect.CodeResourceExhausted, "%s cannot be evicted now: %s; wait until more are healthy", object.Title(pod), why)
	err = withFaults(err, object.Faults{{Object: object.Title(pod), Message: why}}, "DisruptionBudget")
	return withInfo(err, &holdfastv1.ErrorInfo{Reason: "TooManyRequests", RetryAfter: durationpb.New(evictAgain)})
}
