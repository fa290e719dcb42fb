package controllers

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// What the kinds that own pods have in common: how a pod is made, claimed and
// replaced, and what its namespace allows.

var accountResource = object.ResourceOf(&corev1.ServiceAccount{})

// failuresAnnotation counts, on a pod that replaces one of the same place that
// failed, how many have failed there in a row.
const failuresAnnotation = "holdfast.dev/failures"

// podOf returns a new pod of owner, made from template. The caller may change it,
// and then calls finishPod.
func podOf(owner metav1.Object, kind schema.GroupVersionKind, template *corev1.PodTemplateSpec, name string, uid types.UID, now time.Time) *corev1.Pod {
	template = template.DeepCopy()
	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name:              name,
			Namespace:         owner.GetNamespace(),
			UID:               uid,
			Generation:        1,
			CreationTimestamp: metav1.NewTime(now.Truncate(time.Second)),
			Labels:            template.Labels,
			Annotations:       template.Annotations,
			Finalizers:        template.Finalizers,
			OwnerReferences:   []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)},
		},
		Spec:   template.Spec,
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	return pod
}

// finishPod fills in what the API fills in for a pod that a person creates.
func finishPod(pod *corev1.Pod) *corev1.Pod {
	object.Default(pod)
	object.Stamp(pod)
	return pod
}

// childName returns the name of a child of the object called name, ended by
// suffix, so that it fits into a host name.
func childName(name, suffix string) string {
	base := name + "-"
	return base[:min(len(base), 63-len(suffix))] + suffix
}

// claims says whose the pods are that a plan looks at.
type claims struct {
	mine    []*corev1.Pod // those adopted included
	adopt   []*corev1.Pod // matching pods that nobody controls
	release []*corev1.Pod // own pods that match no longer
}

// claim sorts owned and orphans. An owned pod that selector no longer selects is
// let go; an orphan that it selects, and fits, is taken.
func claim(owned, orphans []*corev1.Pod, selector labels.Selector, fits func(*corev1.Pod) bool, room *budget) claims {
	var c claims
	for _, pod := range owned {
		if selector != nil && !selector.Matches(labels.Set(pod.Labels)) && !object.Deleting(pod) && room.spend(pod) {
			c.release = append(c.release, pod)
			continue
		}
		c.mine = append(c.mine, pod)
	}
	for _, pod := range orphans {
		if !object.Deleting(pod) && fits(pod) && room.spend(pod) {
			c.adopt = append(c.adopt, pod)
			c.mine = append(c.mine, pod)
		}
	}
	return c
}

// write puts what was claimed into o. Pods that are removed as well are left out:
// an object is written once.
func (c claims) write(o *outcome, owner metav1.Object, kind schema.GroupVersionKind, remove []removal) {
	removed := func(pod *corev1.Pod) bool {
		return slices.ContainsFunc(remove, func(r removal) bool { return r.pod == pod })
	}
	for _, pod := range c.adopt {
		if !removed(pod) {
			pod.OwnerReferences = append(pod.OwnerReferences, *metav1.NewControllerRef(owner, kind))
			o.update(pod)
		}
	}
	for _, pod := range c.release {
		pod.OwnerReferences = withoutOwner(pod.OwnerReferences, owner.GetUID())
		o.update(pod)
	}
}

// replacementOf says how many pods have failed in a row with pod, which has, and
// how long its replacement is to wait. Failures are spread out as a ReplicaSet's
// are.
func replacementOf(pod *corev1.Pod, now time.Time) (failures int, wait time.Duration) {
	age := now.Sub(pod.CreationTimestamp.Time)
	if age >= failureMemory {
		return 1, 0
	}
	before, _ := strconv.Atoi(pod.Annotations[failuresAnnotation])
	failures = max(before, 0) + 1
	return failures, max(min(firstReplacementDelay<<min(failures-1, 20), maxReplacementDelay)-age, 0)
}

// running reports whether pod runs and is ready.
func running(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && object.PodReady(pod) && !object.Deleting(pod)
}

// errNamespaceEnds is why nothing is created in a namespace that is being deleted.
// Its contents are too, so there is nothing to tell.
var errNamespaceEnds = errors.New("the namespace is being deleted")

// admission holds what one plan creates against the limits of the namespace, as the
// API does with what people create. A nil admission admits everything.
type admission struct {
	s         state
	namespace string
	loaded    bool
	security  object.PodSecurity
	ranges    []*corev1.LimitRange
	quotas    []*corev1.ResourceQuota
	used      []map[string]corev1.ResourceList // of each quota, by kind
	taken     []bool                           // of each quota: something was taken
}

func (s state) admission(namespace string) *admission {
	return &admission{s: s, namespace: namespace}
}

func (a *admission) load() {
	if a.loaded {
		return
	}
	a.loaded = true
	ns, ok := object.Get[*corev1.Namespace](a.s, namespaceResource.Key("", a.namespace))
	if !ok {
		ns = new(corev1.Namespace) // it demands nothing
	}
	a.security = object.PodSecurityOf(ns)
	a.ranges = object.List[*corev1.LimitRange](a.s, a.namespace)
	a.quotas = object.List[*corev1.ResourceQuota](a.s, a.namespace)
	a.used = make([]map[string]corev1.ResourceList, len(a.quotas))
	a.taken = make([]bool, len(a.quotas))
}

// admit fills in what LimitRanges have as defaults, and returns why obj may not be
// created, if it may not. What it admits counts against the quotas from then on.
func (a *admission) admit(obj object.Object) error {
	if a == nil {
		return nil
	}
	if a.s.terminating[a.namespace] {
		return errNamespaceEnds
	}
	a.load()
	if faults := object.ApplyLimitRanges(obj, a.ranges); len(faults) > 0 {
		return faults
	}
	if pod, ok := obj.(*corev1.Pod); ok {
		key := accountResource.Key(pod.Namespace, cmp.Or(pod.Spec.ServiceAccountName, object.DefaultServiceAccount))
		account, _ := object.Get[*corev1.ServiceAccount](a.s, key)
		if faults := object.UseServiceAccount(pod, account); len(faults) > 0 {
			return faults
		}
		// As in Kubernetes, a label that comes in the same moment counts from the next pod on.
		if why := a.security.Pod(pod).Refusal; why != "" {
			return fmt.Errorf("%s; the label pod-security.kubernetes.io/enforce of namespace %s demands it", why, a.namespace)
		}
	}
	r := object.ResourceOf(obj)
	added := make([]corev1.ResourceList, len(a.quotas))
	for i, quota := range a.quotas {
		if err := object.QuotaNeeds(quota, obj); err != nil {
			return err
		}
		added[i] = object.QuotaUsage(quota, obj)
		if !takesAny(added[i]) {
			continue
		}
		if a.used[i] == nil {
			a.used[i] = map[string]corev1.ResourceList{}
		}
		if _, ok := a.used[i][r.String()]; !ok {
			a.used[i][r.String()] = object.QuotaUsage(quota, slices.Collect(a.s.catalog.List(a.s, r, a.namespace))...)
		}
		if err := object.ExceedsQuota(quota, a.used[i][r.String()], added[i]); err != nil {
			return err
		}
	}
	for i := range a.quotas {
		if takesAny(added[i]) {
			a.used[i][r.String()] = sumOf(a.used[i][r.String()], added[i])
			a.taken[i] = true
		}
	}
	return nil
}

// write makes o conditional on the limits that its objects were held against, and
// writes the quotas that they take from: of two transactions that take from one,
// the second is planned anew.
func (a *admission) write(o *outcome) {
	if a == nil {
		return
	}
	for _, r := range a.ranges {
		o.unchanged(r)
	}
	for i, quota := range a.quotas {
		if !a.taken[i] {
			continue
		}
		quota.Status.Hard = quota.Spec.Hard.DeepCopy()
		if quota.Status.Used == nil {
			quota.Status.Used = object.QuotaUsage(quota)
		}
		for _, used := range a.used[i] {
			for name, amount := range used {
				if !amount.IsZero() {
					quota.Status.Used[name] = amount
				}
			}
		}
		o.update(quota)
	}
}

func takesAny(list corev1.ResourceList) bool {
	for _, amount := range list {
		if amount.Sign() > 0 {
			return true
		}
	}
	return false
}

func sumOf(a, b corev1.ResourceList) corev1.ResourceList {
	sum := a.DeepCopy()
	for name, amount := range b {
		total := sum[name]
		total.Add(amount)
		sum[name] = total
	}
	return sum
}

// refusedAgain is when a refused creation is tried again: what refused it may have
// changed.
const refusedAgain = 5 * time.Second

// refusal is the message about a creation that was refused. It is the same for every
// attempt, whatever name the object would have got.
func refusal(obj object.Object, err error) string {
	text := fmt.Sprintf("create %s %s: %v", object.ResourceOf(obj).Kind, obj.GetName(), err)
	if prefix := obj.GetGenerateName(); prefix != "" {
		text = strings.ReplaceAll(text, obj.GetName(), prefix+"*")
	}
	return text
}
