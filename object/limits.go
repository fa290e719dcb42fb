package object

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What limit ranges do to the pods and claims of their namespace, at admission.

// limitRangerAnnotation says what came from a LimitRange, for people.
const limitRangerAnnotation = "kubernetes.io/limit-ranger"

// ApplyLimitRanges fills in what ranges, those of obj's namespace, have as
// defaults for containers, and returns in what obj then violates them. obj is a
// Pod or a PersistentVolumeClaim, with its own defaults filled in before; any
// other object passes. It is for objects that are created, and for claims that
// change: what a pod runs with is settled.
func ApplyLimitRanges(obj Object, ranges []*corev1.LimitRange) Faults {
	ranges = slices.SortedFunc(slices.Values(ranges), func(a, b *corev1.LimitRange) int { return strings.Compare(a.Name, b.Name) })
	var errs field.ErrorList
	switch obj := obj.(type) {
	case *corev1.Pod:
		applyContainerDefaults(obj, ranges)
		for _, r := range ranges {
			for i := range r.Spec.Limits {
				errs = append(errs, podWithin(obj, r.Name, &r.Spec.Limits[i])...)
			}
		}
	case *corev1.PersistentVolumeClaim:
		for _, r := range ranges {
			for i := range r.Spec.Limits {
				if item := &r.Spec.Limits[i]; item.Type == corev1.LimitTypePersistentVolumeClaim {
					res := corev1.ResourceRequirements{Requests: obj.Spec.Resources.Requests}
					errs = append(errs, keepsWithin(r.Name, item, &res, field.NewPath("spec", "resources"))...)
				}
			}
		}
	}
	return faultsOf(obj, errs)
}

func applyContainerDefaults(pod *corev1.Pod, ranges []*corev1.LimitRange) {
	var done []string
	for _, r := range ranges {
		for _, item := range r.Spec.Limits {
			if item.Type != corev1.LimitTypeContainer {
				continue
			}
			for _, part := range []struct {
				word       string
				containers []corev1.Container
			}{{"container", pod.Spec.Containers}, {"init container", pod.Spec.InitContainers}} {
				for i := range part.containers {
					c := &part.containers[i]
					limits := addMissing(&c.Resources.Limits, item.Default)
					requests := addMissing(&c.Resources.Requests, item.DefaultRequest)
					if len(requests) > 0 {
						done = append(done, fmt.Sprintf("%s request for %s %s", strings.Join(requests, ", "), part.word, c.Name))
					}
					if len(limits) > 0 {
						done = append(done, fmt.Sprintf("%s limit for %s %s", strings.Join(limits, ", "), part.word, c.Name))
					}
				}
			}
		}
	}
	if len(done) == 0 {
		return
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[limitRangerAnnotation] = "LimitRanger plugin set: " + strings.Join(done, "; ")
}

// addMissing puts into list what it lacks of defaults, and returns the names.
func addMissing(list *corev1.ResourceList, defaults corev1.ResourceList) []string {
	var added []string
	for _, name := range sortedNames(defaults) {
		if _, ok := (*list)[name]; ok {
			continue
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = defaults[name].DeepCopy()
		added = append(added, string(name))
	}
	return added
}

func podWithin(pod *corev1.Pod, rangeName string, item *corev1.LimitRangeItem) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec")
	switch item.Type {
	case corev1.LimitTypeContainer:
		for i := range pod.Spec.InitContainers {
			errs = append(errs, keepsWithin(rangeName, item, &pod.Spec.InitContainers[i].Resources, path.Child("initContainers").Index(i).Child("resources"))...)
		}
		for i := range pod.Spec.Containers {
			errs = append(errs, keepsWithin(rangeName, item, &pod.Spec.Containers[i].Resources, path.Child("containers").Index(i).Child("resources"))...)
		}
	case corev1.LimitTypePod:
		errs = keepsWithin(rangeName, item, &corev1.ResourceRequirements{
			Requests: podSum(pod, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Requests }),
			Limits:   podSum(pod, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Limits }),
		}, path)
	}
	return errs
}

// keepsWithin compares requests and limits with a range's minimum, maximum and ratio.
func keepsWithin(rangeName string, item *corev1.LimitRangeItem, res *corev1.ResourceRequirements, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	refuse := func(format string, args ...any) {
		errs = append(errs, field.Forbidden(at, fmt.Sprintf(format, args...)+" (LimitRange "+rangeName+")"))
	}
	for _, name := range sortedNames(item.Min) {
		least := item.Min[name]
		request, requested := res.Requests[name]
		limit, limited := res.Limits[name]
		switch {
		case !requested:
			refuse("minimum %s usage per %s is %s, no request is specified", name, item.Type, least.String())
		case request.Cmp(least) < 0:
			refuse("minimum %s usage per %s is %s, but request is %s", name, item.Type, least.String(), request.String())
		case limited && limit.Cmp(least) < 0:
			refuse("minimum %s usage per %s is %s, but limit is %s", name, item.Type, least.String(), limit.String())
		}
	}
	for _, name := range sortedNames(item.Max) {
		most := item.Max[name]
		request, requested := res.Requests[name]
		limit, limited := res.Limits[name]
		switch {
		case item.Type == corev1.LimitTypePersistentVolumeClaim && requested: // a claim gets what it requests
			if request.Cmp(most) > 0 {
				refuse("maximum %s usage per %s is %s, but request is %s", name, item.Type, most.String(), request.String())
			}
		case !limited:
			refuse("maximum %s usage per %s is %s, no limit is specified", name, item.Type, most.String())
		case limit.Cmp(most) > 0:
			refuse("maximum %s usage per %s is %s, but limit is %s", name, item.Type, most.String(), limit.String())
		case requested && request.Cmp(most) > 0:
			refuse("maximum %s usage per %s is %s, but request is %s", name, item.Type, most.String(), request.String())
		}
	}
	for _, name := range sortedNames(item.MaxLimitRequestRatio) {
		ratio := item.MaxLimitRequestRatio[name]
		request, limit := res.Requests[name], res.Limits[name]
		switch {
		case request.IsZero():
			refuse("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", name, item.Type, ratio.String())
		case limit.IsZero():
			refuse("%s max limit to request ratio per %s is %s, but no limit is specified or limit is 0", name, item.Type, ratio.String())
		case quotient(limit, request) > ratio.AsApproximateFloat64():
			refuse("%s max limit to request ratio per %s is %s, but provided ratio is %f", name, item.Type, ratio.String(), quotient(limit, request))
		}
	}
	return errs
}

func quotient(a, b resource.Quantity) float64 {
	return a.AsApproximateFloat64() / b.AsApproximateFloat64()
}
