package controllers

import (
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
)

// TestPodSecurityHoldsPodsBack: pods that a namespace's label does not allow are not
// made by a controller either, which says so; and are made once the label allows them.
func TestPodSecurityHoldsPodsBack(t *testing.T) {
	s := newSim(t, 3)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", UID: "ns", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "baseline"}}}
	object.Default(ns)
	s.put(ns)
	rs := one(t, []byte("web replicas=2")).replicaSet()
	rs.ResourceVersion = ""
	rs.Spec.Template.Spec.HostNetwork = true
	s.put(rs)
	play := func(d time.Duration) {
		for end := s.now.Add(d); s.now.Before(end); s.now = s.now.Add(100 * time.Millisecond) {
			for s.commitLate() || s.controllers(false) || s.agent() {
			}
		}
	}
	play(20 * time.Second)
	rs, _ = object.Get[*appsv1.ReplicaSet](s.view(), object.KeyOf(rs))
	if len(s.pods()) != 0 || len(rs.Status.Conditions) != 1 || !strings.Contains(rs.Status.Conditions[0].Message, `violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)`) {
		t.Fatalf("%d pods, conditions %+v; want none, and the violation", len(s.pods()), rs.Status.Conditions)
	}
	ns, _ = object.Get[*corev1.Namespace](s.view(), object.KeyOf(ns))
	delete(ns.Labels, "pod-security.kubernetes.io/enforce")
	s.put(ns)
	play(20 * time.Second)
	rs, _ = object.Get[*appsv1.ReplicaSet](s.view(), object.KeyOf(rs))
	if len(s.pods()) != 2 || len(rs.Status.Conditions) != 0 {
		t.Fatalf("%d pods, conditions %+v; want 2, and no refusal", len(s.pods()), rs.Status.Conditions)
	}
}
