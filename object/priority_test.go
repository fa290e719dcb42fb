package object

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestApplyPriority: which priority a pod gets, and what is refused.
func TestApplyPriority(t *testing.T) {
	class := func(name string, value int32, byDefault bool, policy corev1.PreemptionPolicy) *schedulingv1.PriorityClass {
		return &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, GlobalDefault: byDefault, PreemptionPolicy: &policy}
	}
	high := class("high", 1000, false, corev1.PreemptNever)
	usual := class("usual", 7, true, corev1.PreemptLowerPriority)
	for _, tt := range []struct {
		name    string
		spec    corev1.PodSpec
		classes []*schedulingv1.PriorityClass
		want    string
	}{
		{"no class", corev1.PodSpec{}, nil, " <nil> <nil>"},
		{"its class", corev1.PodSpec{PriorityClassName: "high"}, []*schedulingv1.PriorityClass{usual, high}, "high 1000 Never"},
		{"the default class", corev1.PodSpec{}, []*schedulingv1.PriorityClass{high, usual}, "usual 7 PreemptLowerPriority"},
		{"a class of the system", corev1.PodSpec{PriorityClassName: "system-node-critical"}, nil, "system-node-critical 2000001000 PreemptLowerPriority"},
		{"once more", corev1.PodSpec{PriorityClassName: "high", Priority: new(int32(1000)), PreemptionPolicy: new(corev1.PreemptNever)}, []*schedulingv1.PriorityClass{high}, "high 1000 Never"},
		{"no such class", corev1.PodSpec{PriorityClassName: "high"}, nil, `[Pod default/p: spec.priorityClassName: Invalid value: "high": no PriorityClass with this name was found: create it first]`},
		{"another number", corev1.PodSpec{PriorityClassName: "high", Priority: new(int32(5))}, []*schedulingv1.PriorityClass{high}, "[Pod default/p: spec.priority: Forbidden: 5 is not what the pod's PriorityClass gives, 1000: leave it out, and name a class]"},
		{"a number alone", corev1.PodSpec{Priority: new(int32(5))}, nil, "[Pod default/p: spec.priority: Forbidden: 5 is not what the pod's PriorityClass gives, 0: leave it out, and name a class]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: tt.spec}
			got := ""
			if faults := ApplyPriority(pod, tt.classes); len(faults) > 0 {
				got = fmt.Sprint([]Fault(faults))
			} else {
				show := func(v any) string { return fmt.Sprint(v) }
				priority, policy := "<nil>", "<nil>"
				if p := pod.Spec.Priority; p != nil {
					priority = show(*p)
				}
				if p := pod.Spec.PreemptionPolicy; p != nil {
					policy = show(*p)
				}
				got = pod.Spec.PriorityClassName + " " + priority + " " + policy
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}
