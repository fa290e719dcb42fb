package object

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What the kinds that own pods have in common, beside the template (podspec_*).

// rollout checks how many pods may be missing or too many while an update goes
// on.
func rollout(unavailable, surge *intstr.IntOrString, path *field.Path) field.ErrorList {
	errs := intOrPercent(unavailable, path.Child("maxUnavailable"))
	errs = append(errs, intOrPercent(surge, path.Child("maxSurge"))...)
	if len(errs) > 0 {
		return errs
	}
	if unavailable != nil && percent(unavailable) > 100 {
		errs = append(errs, field.Invalid(path.Child("maxUnavailable"), unavailable, "must not be greater than 100%"))
	}
	if isZero(unavailable) && isZero(surge) {
		errs = append(errs, field.Invalid(path.Child("maxUnavailable"), unavailable, "may not be 0 when `maxSurge` is 0: no pod could ever be replaced"))
	}
	return errs
}

// fixedFields returns an error for each field in which two specs differ.
func fixedFields[S any](now, was S, path string, why string) field.ErrorList {
	var errs field.ErrorList
	for _, changed := range differences(reflect.ValueOf(now), reflect.ValueOf(was), path) {
		errs = append(errs, &field.Error{Type: field.ErrorTypeForbidden, Field: changed, Detail: why})
	}
	return errs
}

// ownPods returns those of pods that owner controls, by name.
func ownPods(owner Object, pods []*corev1.Pod) []*corev1.Pod {
	var own []*corev1.Pod
	for _, pod := range pods {
		if controls(owner, pod) {
			own = append(own, pod)
		}
	}
	slices.SortFunc(own, func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return own
}

// podsStatus counts pods by how they are.
func (d *describer) podsStatus(pods []*corev1.Pod) {
	count := map[corev1.PodPhase]int{}
	for _, pod := range pods {
		count[pod.Status.Phase]++
	}
	d.line(0, "Pods Status:", fmt.Sprintf("%d Running / %d Waiting / %d Succeeded / %d Failed",
		count[corev1.PodRunning], count[corev1.PodPending], count[corev1.PodSucceeded], count[corev1.PodFailed]))
}

// pods lists pods.
func (d *describer) pods(pods []*corev1.Pod) {
	if len(pods) == 0 {
		return
	}
	d.line(0, "Pods:")
	d.line(1, "Name", "Ready", "Status", "Restarts", "Node", "Age")
	for _, pod := range pods {
		row := podRow(pod, d.now)
		d.line(1, row[0], row[1], row[2], row[3], row[6], row[4])
	}
}

// condition is a condition of any kind of object.
type condition struct{ typ, status, reason, message string }

func (d *describer) conditions(all []condition) {
	if len(all) == 0 {
		return
	}
	d.line(0, "Conditions:")
	d.line(1, "Type", "Status", "Reason", "Message")
	for _, c := range all {
		d.line(1, c.typ, c.status, c.reason, c.message)
	}
}

// each turns the conditions of a kind into what is written.
func each[C any](list []C, of func(C) condition) []condition {
	var all []condition
	for _, c := range list {
		all = append(all, of(c))
	}
	return all
}

// valueOr writes what p points to, or what stands for nothing.
func valueOr[T any](p *T, none string) string {
	if p == nil {
		return none
	}
	return fmt.Sprint(*p)
}

// ownerText names an owner as kubectl does: "statefulset.apps/db".
func ownerText(ref *metav1.OwnerReference) string {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	kind := strings.ToLower(ref.Kind)
	if err == nil && gv.Group != "" {
		kind += "." + gv.Group
	}
	return kind + "/" + ref.Name
}
