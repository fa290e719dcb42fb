package controllers

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

var budgetResource = object.ResourceOf(&policyv1.PodDisruptionBudget{})

const (
	// budgetDelay and quotaDelay gather the changes that one look answers: pods come
	// and go together.
	budgetDelay = 200 * time.Millisecond
	quotaDelay  = 500 * time.Millisecond
	// disruptionTimeout is how long a pod that was evicted may take to be deleted,
	// before the eviction is taken to have come to nothing.
	disruptionTimeout = 2 * time.Minute
)

// planBudget brings the status of a budget up to date and reports whether that
// changed it. pods are those that it selects, expected how many there should be. It
// is pure: testdata/budget states its whole behavior. The status is for people:
// an eviction counts anew, in its own transaction.
func planBudget(pdb *policyv1.PodDisruptionBudget, pods []*corev1.Pod, expected int, now time.Time) (changed bool, again time.Duration) {
	before := pdb.Status.DeepCopy()
	s := &pdb.Status
	byName := map[string]*corev1.Pod{}
	for _, pod := range pods {
		byName[pod.Name] = pod
	}
	for name, at := range s.DisruptedPods {
		left := at.Add(disruptionTimeout).Sub(now)
		if pod := byName[name]; pod == nil || object.Deleting(pod) || left <= 0 {
			delete(s.DisruptedPods, name)
		} else {
			again = sooner(again, left)
		}
	}
	allowed, healthy, desired := object.DisruptionsAllowed(pdb, pods, expected)
	if least := pdb.Spec.MinAvailable; pdb.Spec.MaxUnavailable == nil && least != nil && least.StrVal == "" {
		expected = len(pods) // a number needs nobody's scale
	}
	s.ExpectedPods, s.CurrentHealthy, s.DesiredHealthy, s.DisruptionsAllowed = int32(expected), int32(healthy), int32(desired), int32(allowed)
	s.ObservedGeneration = pdb.Generation
	c := metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionTrue, Reason: policyv1.SufficientPodsReason,
		ObservedGeneration: pdb.Generation, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
	}
	if allowed == 0 {
		c.Status, c.Reason = metav1.ConditionFalse, policyv1.InsufficientPodsReason
	}
	meta.SetStatusCondition(&s.Conditions, c)
	return !equality.Semantic.DeepEqual(before, s), again
}

// expectedPods returns how many of pods there should be: the scales of all that
// control them, each counted once, of a Deployment rather than its ReplicaSet, and
// those pods that nothing with a scale controls.
func expectedPods(s state, pods []*corev1.Pod) (n int) {
	counted := map[types.UID]bool{}
	for _, pod := range pods {
		var top object.Object
		for obj := object.Object(pod); ; {
			ref := object.ControllerOf(obj)
			if ref == nil {
				break
			}
			key, ok := s.ownerKey(obj.GetNamespace(), *ref)
			if !ok {
				break
			}
			owner, ok := get(s, key)
			if !ok || owner.GetUID() != ref.UID {
				break
			}
			if _, err := object.ScaleOf(owner); err != nil {
				break
			}
			obj, top = owner, owner
		}
		switch {
		case top == nil:
			n++
		case !counted[top.GetUID()]:
			counted[top.GetUID()] = true
			if scale, err := object.ScaleOf(top); err == nil {
				n += int(scale.Spec.Replicas)
			}
		}
	}
	return n
}

// newBudgets returns the controller that keeps the statuses of
// PodDisruptionBudgets.
func newBudgets() *controller {
	return &controller{
		name:  "disruptionbudget",
		delay: budgetDelay,
		all:   func(s state) []object.Key { return keysOf(s.index, budgetResource) },
		affected: func(x *index, c change) []object.Key {
			keys := affectsItself(budgetResource, c)
			for _, e := range []entry{c.before, c.now} {
				for key, selector := range x.selecting[budgetResource.Prefix(e.namespace)] {
					if isKind(e.resource, podResource) && selector.Matches(e.labels) || e.resource.Scale {
						keys = append(keys, key)
					}
				}
			}
			return keys
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			var o outcome
			pdb, ok := object.Get[*policyv1.PodDisruptionBudget](s, key)
			if !ok || object.Deleting(pdb) {
				return o
			}
			var pods []*corev1.Pod
			for _, pod := range object.List[*corev1.Pod](s, pdb.Namespace) {
				if object.BudgetSelects(pdb, pod) && !object.PodPhaseFinal(pod) {
					pods = append(pods, pod)
				}
			}
			changed, again := planBudget(pdb, pods, expectedPods(s, pods), now)
			if o.again = again; changed {
				o.txn.Reason = "status"
				o.update(pdb)
			}
			return o
		},
	}
}

var quotaResource = object.ResourceOf(&corev1.ResourceQuota{})

// newQuotas returns the controller that counts what is taken of ResourceQuotas. The
// transactions that take from one raise it; this lowers it when something has gone,
// and counts what was there before the quota.
func newQuotas() *controller {
	return &controller{
		name:  "quota",
		delay: quotaDelay,
		all:   func(s state) []object.Key { return keysOf(s.index, quotaResource) },
		affected: func(x *index, c change) []object.Key {
			var keys []object.Key
			for _, namespace := range []string{c.before.namespace, c.now.namespace} {
				for key := range x.selecting[quotaResource.Prefix(namespace)] {
					keys = append(keys, key)
				}
			}
			return keys
		},
		plan: func(s state, key object.Key, _ time.Time) outcome {
			var o outcome
			quota, ok := object.Get[*corev1.ResourceQuota](s, key)
			if !ok || object.Deleting(quota) {
				return o
			}
			used := object.QuotaUsage(quota)
			for _, r := range s.catalog.Resources() {
				if !r.Namespaced || !r.Storage || r.Kind == "Event" && r.Group == "" || !counts(quota, r) {
					continue
				}
				for obj := range s.catalog.List(s, r, quota.Namespace) {
					used = sumOf(used, object.QuotaUsage(quota, obj))
				}
			}
			if equality.Semantic.DeepEqual(quota.Status.Used, used) && equality.Semantic.DeepEqual(quota.Status.Hard, quota.Spec.Hard) {
				return o
			}
			quota.Status.Used, quota.Status.Hard = used, quota.Spec.Hard.DeepCopy()
			o.txn.Reason = "status"
			o.update(quota)
			return o
		},
	}
}

// counts reports whether quota may limit objects of kind r.
func counts(quota *corev1.ResourceQuota, r object.Resource) bool {
	switch r.String() {
	case podResource.String(), claimResource.String(), object.ResourceOf(&corev1.Service{}).String():
		return true
	}
	return takesAny(object.QuotaUsage(quota, object.New(r)))
}
