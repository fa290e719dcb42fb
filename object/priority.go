package object

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ApplyPriority fills in the priority of a new pod and whether it may preempt others:
// what the class of pods says that it names, else the default class, else 0. classes
// are all there are; those of the system need not be among them. It fails if the class
// does not exist, or if the pod says something else than its class. A second call
// changes nothing.
func ApplyPriority(pod *corev1.Pod, classes []*schedulingv1.PriorityClass) Faults {
	path := field.NewPath("spec")
	var class *schedulingv1.PriorityClass
	name := pod.Spec.PriorityClassName
	for _, c := range classes {
		switch {
		case name != "" && c.Name == name, name == "" && c.GlobalDefault && (class == nil || c.Value < class.Value):
			class = c
		}
	}
	if value, system := systemPriorities[name]; class == nil && system {
		class = &schedulingv1.PriorityClass{Value: value}
	}
	if class == nil && name != "" {
		return faultsOf(pod, field.ErrorList{field.Invalid(path.Child("priorityClassName"), name, "no PriorityClass with this name was found: create it first")})
	}
	value, policy := int32(0), corev1.PreemptLowerPriority
	if class != nil {
		value = class.Value
		if class.PreemptionPolicy != nil {
			policy = *class.PreemptionPolicy
		}
	}
	var errs field.ErrorList
	if p := pod.Spec.Priority; p != nil && *p != value {
		errs = append(errs, field.Forbidden(path.Child("priority"), fmt.Sprintf("%d is not what the pod's PriorityClass gives, %d: leave it out, and name a class", *p, value)))
	}
	if p := pod.Spec.PreemptionPolicy; p != nil && *p != policy {
		errs = append(errs, field.Forbidden(path.Child("preemptionPolicy"), fmt.Sprintf("%s is not what the pod's PriorityClass gives, %s: leave it out, and name a class", *p, policy)))
	}
	if len(errs) > 0 {
		return faultsOf(pod, errs)
	}
	if class == nil {
		return nil // as if it said 0
	}
	if name == "" {
		pod.Spec.PriorityClassName = class.Name
	}
	pod.Spec.Priority, pod.Spec.PreemptionPolicy = &value, &policy
	return nil
}
