package apiserver

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// evictAgain is when a refused eviction may be worth another try.
const evictAgain = 10 * time.Second

var podResource = object.ResourceOf(&corev1.Pod{})

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

// disrupt holds the end of a pod against the budgets that select it. One that is
// not healthy, or ends already, is nobody's loss.
func (p *plan) disrupt(pod *corev1.Pod) error {
	if object.Deleting(pod) || !healthy(pod) {
		return nil
	}
	for _, budget := range object.List[*policyv1.PodDisruptionBudget](p.view, pod.Namespace) {
		selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
		if err != nil || !selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		have, want := p.countHealthy(budget, selector)
		if have-1 < want {
			return overBudget(pod, budget, have, want)
		}
		if _, err := p.put(budget, revisionOf(budget)); err != nil {
			return err
		}
	}
	return nil
}

// countHealthy returns how many pods of a budget are healthy and how many must be.
func (p *plan) countHealthy(budget *policyv1.PodDisruptionBudget, selector labels.Selector) (have, want int) {
	expected := 0
	for _, pod := range object.List[*corev1.Pod](p.view, budget.Namespace) {
		if !selector.Matches(labels.Set(pod.Labels)) || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		expected++
		if healthy(pod) && !object.Deleting(pod) {
			have++
			p.unchanged(string(object.KeyOf(pod)), revisionOf(pod))
		}
	}
	switch {
	case budget.Spec.MaxUnavailable != nil:
		n, _ := intstr.GetScaledValueFromIntOrPercent(budget.Spec.MaxUnavailable, expected, true)
		want = max(expected-n, 0)
	case budget.Spec.MinAvailable != nil:
		want, _ = intstr.GetScaledValueFromIntOrPercent(budget.Spec.MinAvailable, expected, true)
	}
	return have, want
}

func healthy(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// overBudget refuses an eviction, with the numbers that refuse it.
func overBudget(pod *corev1.Pod, budget *policyv1.PodDisruptionBudget, have, want int) error {
	why := fmt.Sprintf("the disruption budget %s needs %d healthy pods and has %d currently", budget.Name, want, have)
	err := connect.Errorf(connect.CodeResourceExhausted, "%s cannot be evicted now: %s; wait until more are healthy", object.Title(pod), why)
	err = withFaults(err, object.Faults{{Object: object.Title(pod), Message: why}}, "DisruptionBudget")
	return withInfo(err, &holdfastv1.ErrorInfo{Reason: "TooManyRequests", RetryAfter: durationpb.New(evictAgain)})
}
