package object

import (
	"fmt"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Subresources of pods by which a part of what a pod runs with is changed that an
// ordinary update may not touch.
const (
	// ResizeSubresource is the CPU and memory of containers.
	ResizeSubresource = "resize"
	// EphemeralSubresource is the containers that are added to a pod to look into it.
	EphemeralSubresource = "ephemeralcontainers"
)

// PodSubresource reports whether sub is one of those.
func PodSubresource(sub string) bool { return sub == ResizeSubresource || sub == EphemeralSubresource }

// WithPodPart returns a copy of pod with what the subresource sub is about taken from
// wish, whose other fields count for nothing: containers are told by their names, and
// those that pod has not are left for [ValidatePodPart] to refuse.
func WithPodPart(pod, wish *corev1.Pod, sub string) *corev1.Pod {
	next := pod.DeepCopy()
	switch sub {
	case EphemeralSubresource:
		next.Spec.EphemeralContainers = wish.DeepCopy().Spec.EphemeralContainers
	case ResizeSubresource:
		resize := func(to []corev1.Container, from []corev1.Container) {
			for _, c := range from {
				if i := slices.IndexFunc(to, func(t corev1.Container) bool { return t.Name == c.Name }); i >= 0 {
					to[i].Resources, to[i].ResizePolicy = *c.Resources.DeepCopy(), slices.Clone(c.ResizePolicy)
				}
			}
		}
		resize(next.Spec.Containers, wish.Spec.Containers)
		resize(next.Spec.InitContainers, wish.Spec.InitContainers)
	}
	return next
}

// ValidatePodPart returns what is wrong with pod as the successor of old by the
// subresource sub: what Kubernetes refuses. Whether pod is valid in itself is for
// [Validate] to say.
func ValidatePodPart(pod, old *corev1.Pod, sub string) Faults {
	errs := validateMetadataUpdate(pod, old)
	switch sub {
	case EphemeralSubresource:
		errs = append(errs, validateAddedContainers(pod, old)...)
	case ResizeSubresource:
		errs = append(errs, validateResize(pod, old)...)
	}
	return faultsOf(pod, errs)
}

// ValidateNewPod returns what a pod may not have when it is made, beside what
// [Validate] finds.
func ValidateNewPod(pod *corev1.Pod) Faults {
	if len(pod.Spec.EphemeralContainers) == 0 {
		return nil
	}
	return faultsOf(pod, field.ErrorList{field.Forbidden(field.NewPath("spec", "ephemeralContainers"),
		"cannot be set on create: ephemeral containers are added to a pod that there is, by `holdfast debug` or `kubectl debug`")})
}

func isMirror(pod *corev1.Pod) bool {
	_, is := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return is
}

// validateAddedContainers allows further ephemeral containers, and nothing else.
func validateAddedContainers(pod, old *corev1.Pod) field.ErrorList {
	path := field.NewPath("spec", "ephemeralContainers")
	if isMirror(old) {
		return field.ErrorList{field.Forbidden(path, "static pods do not support ephemeral containers")}
	}
	var errs field.ErrorList
	for _, was := range old.Spec.EphemeralContainers {
		i := slices.IndexFunc(pod.Spec.EphemeralContainers, func(c corev1.EphemeralContainer) bool { return c.Name == was.Name })
		switch {
		case i < 0:
			errs = append(errs, field.Forbidden(path, fmt.Sprintf("existing ephemeral containers %q may not be removed", was.Name)))
		case !sameValue(pod.Spec.EphemeralContainers[i], was):
			errs = append(errs, field.Forbidden(path.Index(i), fmt.Sprintf("existing ephemeral containers %q may not be changed", was.Name)))
		}
	}
	return errs
}

// validateResize allows other amounts of CPU and memory for containers that go on, as
// long as each limit and request that there was is still there and the pod's class of
// service stays the same.
func validateResize(pod, old *corev1.Pod) field.ErrorList {
	spec := field.NewPath("spec")
	if isMirror(old) {
		return field.ErrorList{field.Forbidden(spec, "static pods cannot be resized: change their file on the node")}
	}
	if PodPhaseFinal(old) {
		return field.ErrorList{field.Forbidden(spec, "the pod has ended")}
	}
	var errs field.ErrorList
	if class := QOSClass(pod); class != QOSClass(old) {
		errs = append(errs, field.Invalid(spec, class, fmt.Sprintf("Pod QOS Class may not change as a result of resizing: it is %s", QOSClass(old))))
	}
	rest := pod.DeepCopy()
	resized := func(now, was []corev1.Container, kind containerKind) {
		if len(now) != len(was) {
			return // the difference is told below
		}
		for i := range now {
			at := spec.Child(string(kind)).Index(i).Child("resources")
			if kind == initContainer && !isSidecar(&was[i]) {
				continue // it runs once: nothing of it can change
			}
			errs = append(errs, keptResources(now[i].Resources.Limits, was[i].Resources.Limits, at.Child("limits"), "resource limits cannot be removed")...)
			errs = append(errs, keptResources(now[i].Resources.Requests, was[i].Resources.Requests, at.Child("requests"), "resource requests cannot be removed")...)
			restore(&now[i].Resources.Limits, was[i].Resources.Limits)
			restore(&now[i].Resources.Requests, was[i].Resources.Requests)
			now[i].ResizePolicy = was[i].ResizePolicy
		}
	}
	resized(rest.Spec.Containers, old.Spec.Containers, mainContainer)
	resized(rest.Spec.InitContainers, old.Spec.InitContainers, initContainer)
	for _, changed := range differences(reflect.ValueOf(rest.Spec), reflect.ValueOf(old.Spec), "spec") {
		errs = append(errs, &field.Error{
			Type: field.ErrorTypeForbidden, Field: changed,
			Detail: "only cpu and memory resources of containers and of restartable init containers can be resized",
		})
	}
	return errs
}

var resizable = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}

func keptResources(now, was corev1.ResourceList, at *field.Path, why string) field.ErrorList {
	var errs field.ErrorList
	for _, name := range resizable {
		_, is := now[name]
		if _, there := was[name]; there && !is {
			errs = append(errs, field.Forbidden(at.Key(string(name)), why))
		}
	}
	return errs
}

// restore undoes what may change of list.
func restore(list *corev1.ResourceList, was corev1.ResourceList) {
	for _, name := range resizable {
		if q, ok := was[name]; ok {
			if *list == nil {
				*list = corev1.ResourceList{}
			}
			(*list)[name] = q
		} else {
			delete(*list, name)
		}
	}
	if len(*list) == 0 {
		*list = was
	}
}

// PodResourcesTaken is what pod takes of its node while its resources may be changing:
// [PodResources] with, for each container, the most of what it asks for, what its node
// has allocated to it, and what it runs with; without the first where the node
// has found that it can never give that. The computation is Kubernetes'.
func PodResourcesTaken(pod *corev1.Pod) corev1.ResourceList {
	taken := takenOf(pod)
	if taken == nil {
		return PodResources(pod)
	}
	return podSum(pod, func(c *corev1.Container) corev1.ResourceList {
		s, ok := taken[c.Name]
		if !ok {
			return containerRequests(c)
		}
		list := s.AllocatedResources.DeepCopy()
		if list == nil {
			list = corev1.ResourceList{}
		}
		if s.Resources != nil {
			maxResources(list, s.Resources.Requests)
		}
		if wanted := containerRequests(c); !resizeInfeasible(pod) {
			maxResources(list, wanted)
		} else {
			addMissing(&list, wanted) // what is not resized
		}
		return list
	})
}

// podLimitsTaken is the same of limits.
func podLimitsTaken(pod *corev1.Pod) corev1.ResourceList {
	taken := takenOf(pod)
	return podSum(pod, func(c *corev1.Container) corev1.ResourceList {
		s, ok := taken[c.Name]
		if !ok || s.Resources == nil {
			return c.Resources.Limits
		}
		list := s.Resources.Limits.DeepCopy()
		if list == nil {
			list = corev1.ResourceList{}
		}
		if resizeInfeasible(pod) {
			addMissing(&list, c.Resources.Limits)
		} else {
			maxResources(list, c.Resources.Limits)
		}
		return list
	})
}

// takenOf returns the statuses of containers that were given something else than they
// ask for, by name: of most pods none.
func takenOf(pod *corev1.Pod) map[string]*corev1.ContainerStatus {
	var taken map[string]*corev1.ContainerStatus
	look := func(specs []corev1.Container, statuses []corev1.ContainerStatus) {
		for i := range statuses {
			s := &statuses[i]
			at := slices.IndexFunc(specs, func(c corev1.Container) bool { return c.Name == s.Name })
			if at < 0 || asGiven(&specs[at].Resources, s) {
				continue
			}
			if taken == nil {
				taken = map[string]*corev1.ContainerStatus{}
			}
			taken[s.Name] = s
		}
	}
	look(pod.Spec.InitContainers, pod.Status.InitContainerStatuses)
	look(pod.Spec.Containers, pod.Status.ContainerStatuses)
	return taken
}

// asGiven reports whether a container has the CPU and memory that it asks for, as far
// as its status says.
func asGiven(want *corev1.ResourceRequirements, s *corev1.ContainerStatus) bool {
	for _, name := range resizable {
		same := func(given, wanted corev1.ResourceList) bool {
			is, said := given[name]
			w, asked := wanted[name]
			return !said && !asked || said && asked && is.Cmp(w) == 0
		}
		if len(s.AllocatedResources) > 0 && !same(s.AllocatedResources, want.Requests) {
			return false
		}
		if s.Resources != nil && (!same(s.Resources.Requests, want.Requests) || !same(s.Resources.Limits, want.Limits)) {
			return false
		}
	}
	return true
}

func resizeInfeasible(pod *corev1.Pod) bool {
	c := PodCondition(pod, corev1.PodResizePending)
	return c != nil && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonInfeasible
}
