package object

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestFencingIsFixed: a pod is fenced as it was created, or not: leader and agent must
// not disagree about it.
func TestFencingIsFixed(t *testing.T) {
	pod := func(value string) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "db-0", Namespace: "default", UID: "u", Annotations: map[string]string{}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "db:1"}}},
		}
		if value != "" {
			p.Annotations[FencingAnnotation] = value
		}
		Default(p)
		return p
	}
	for value, ok := range map[string]bool{"": true, "strict": true, "none": true, "Strict": false, "true": false} {
		faults := Validate(pod(value))
		if got := len(faults) == 0; got != ok || !ok && !strings.Contains(faults.Error(), FencingAnnotation) {
			t.Errorf("%q: %v", value, faults)
		}
		if got := Fenced(pod(value)); got != (value == "strict") {
			t.Errorf("%q: fenced is %v", value, got)
		}
	}
	for _, change := range [][2]string{{"strict", "none"}, {"strict", ""}, {"", "strict"}, {"none", "strict"}} {
		if faults := ValidateUpdate(pod(change[1]), pod(change[0])); !strings.Contains(faults.Error(), "keeps what it was created with") {
			t.Errorf("%q to %q: %v", change[0], change[1], faults)
		}
	}
	if faults := ValidateUpdate(pod("strict"), pod("strict")); len(faults) > 0 {
		t.Errorf("no change: %v", faults)
	}
	mirror := pod("strict")
	mirror.Annotations[corev1.MirrorPodAnnotationKey] = "x"
	if Fenced(mirror) {
		t.Error("the mirror of a pod from a folder is fenced, and its pod is not")
	}
}
