package object

import (
	"fmt"
	"math"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// updatablePodFields says what of a pod can change.
const updatablePodFields = "`spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, added `spec.tolerations` and removed `spec.schedulingGates`"

// validatePodUpdate allows what Kubernetes allows: new images, a deadline that
// comes nearer, further tolerations, fewer scheduling gates, and for a pod that
// gates still hold, fewer nodes. All else of a pod's spec is fixed, for its
// containers run.
func validatePodUpdate(pod, old *corev1.Pod) field.ErrorList {
	now, was := pod.Spec.DeepCopy(), &old.Spec
	path := field.NewPath("spec")

	keepImages(now.Containers, was.Containers)
	keepImages(now.InitContainers, was.InitContainers)

	errs := deadlineUpdate(now.ActiveDeadlineSeconds, was.ActiveDeadlineSeconds, path.Child("activeDeadlineSeconds"))
	now.ActiveDeadlineSeconds = was.ActiveDeadlineSeconds
	errs = append(errs, fencingUpdate(pod, old)...)

	errs = append(errs, tolerationsUpdate(now.Tolerations, was.Tolerations, path.Child("tolerations"))...)
	now.Tolerations = was.Tolerations

	for i, gate := range now.SchedulingGates {
		if !slices.Contains(was.SchedulingGates, gate) {
			errs = append(errs, field.Forbidden(path.Child("schedulingGates").Index(i).Child("name"), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", gate.Name)))
		}
	}
	now.SchedulingGates = was.SchedulingGates

	if len(was.SchedulingGates) > 0 {
		errs = append(errs, gatedUpdate(now, was, path)...)
	}

	for _, changed := range differences(reflect.ValueOf(*now), reflect.ValueOf(*was), "spec") {
		errs = append(errs, &field.Error{
			Type: field.ErrorTypeForbidden, Field: changed,
			Detail: "pod updates may not change fields other than " + updatablePodFields + ": delete the pod and create it again, or change its owner",
		})
	}
	return errs
}

func keepImages(now, was []corev1.Container) {
	if len(now) == len(was) { // or that is the difference to tell
		for i := range now {
			now[i].Image = was[i].Image
		}
	}
}

func deadlineUpdate(now, was *int64, path *field.Path) field.ErrorList {
	switch {
	case now == nil && was != nil:
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, "must not update from a positive integer to nil value")}
	case now == nil:
		return nil
	case *now < 0 || *now > math.MaxInt32:
		return field.ErrorList{field.Invalid(path, *now, validation.InclusiveRangeError(0, math.MaxInt32))}
	case was != nil && *now > *was:
		return field.ErrorList{field.Invalid(path, *now, fmt.Sprintf("must be less than or equal to previous value (%d)", *was))}
	}
	return nil
}

// tolerationsUpdate allows further tolerations, and other times in those there
// are.
func tolerationsUpdate(now, was []corev1.Toleration, path *field.Path) field.ErrorList {
	for i, t := range was {
		kept := slices.ContainsFunc(now, func(n corev1.Toleration) bool {
			n.TolerationSeconds = t.TolerationSeconds
			return sameValue(n, t)
		})
		if !kept {
			return field.ErrorList{field.Forbidden(path, fmt.Sprintf("tolerations of a pod can be added, not changed or removed, as number %d was; only its tolerationSeconds can change", i))}
		}
	}
	return nil
}

// gatedUpdate checks changes of a pod that is not to be scheduled yet: what it
// asks of nodes may become more. It undoes them in now.
func gatedUpdate(now, was *corev1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for key, value := range was.NodeSelector {
		if v, ok := now.NodeSelector[key]; !ok || v != value {
			errs = append(errs, field.Invalid(path.Child("nodeSelector"), now.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)"))
			break
		}
	}
	now.NodeSelector = was.NodeSelector

	nodes := func(spec *corev1.PodSpec) *corev1.NodeAffinity {
		if spec.Affinity == nil {
			return nil
		}
		return spec.Affinity.NodeAffinity
	}
	if !sameValue(nodes(now), nodes(was)) {
		errs = append(errs, nodeAffinityUpdate(nodes(now), nodes(was), path.Child("affinity", "nodeAffinity"))...)
	}
	switch {
	case now.Affinity != nil:
		now.Affinity.NodeAffinity = nodes(was)
		if was.Affinity == nil && *now.Affinity == (corev1.Affinity{}) {
			now.Affinity = nil
		}
	case was.Affinity != nil && nodes(was) != nil:
		now.Affinity = &corev1.Affinity{NodeAffinity: nodes(was)}
	}
	return errs
}

// nodeAffinityUpdate allows what leaves the same nodes or fewer: further
// expressions in each required term. Wishes are free.
func nodeAffinityUpdate(now, was *corev1.NodeAffinity, path *field.Path) field.ErrorList {
	if was == nil || was.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	path = path.Child("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
	old := was.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	var terms []corev1.NodeSelectorTerm
	if now != nil && now.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		terms = now.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	}
	if len(terms) != len(old) {
		return field.ErrorList{field.Invalid(path, field.OmitValueType{}, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")}
	}
	var errs field.ErrorList
	begins := func(now, was []corev1.NodeSelectorRequirement) bool {
		return len(now) >= len(was) && sameValue(now[:len(was)], was)
	}
	for i := range old {
		if !begins(terms[i].MatchExpressions, old[i].MatchExpressions) || !begins(terms[i].MatchFields, old[i].MatchFields) {
			errs = append(errs, field.Invalid(path.Index(i), field.OmitValueType{}, "only additions are allowed (no mutations or deletions)"))
		}
	}
	return errs
}
