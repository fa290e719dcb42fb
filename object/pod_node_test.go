package object

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestUnbound: it says of a pod's bytes what decoding them says, and of other bytes
// nothing.
func TestUnbound(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", Labels: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "web:1"}}, HostNetwork: true},
	}
	for _, node := range []string{"", "n1"} {
		pod.Spec.NodeName = node
		stored, err := Encode(pod)
		if err != nil {
			t.Fatal(err)
		}
		if got := Unbound(stored); got != (node == "") {
			t.Errorf("on node %q it is unbound: %v", node, got)
		}
		for cut := range stored {
			if Unbound(stored[:cut]) && node != "" {
				t.Fatalf("the first %d bytes of a bound pod are unbound", cut)
			}
		}
	}
	text, err := EncodeJSON(pod)
	if err != nil {
		t.Fatal(err)
	}
	if Unbound(text) || Unbound(nil) || Unbound(envelope) {
		t.Error("what is no stored pod is unbound")
	}
}
