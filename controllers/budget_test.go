package controllers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestPlanBudget runs testdata/budget/*.txtar: min=1 max=50% expected=4 (by scale)
// disrupted=web-a@30s (ago).
func TestPlanBudget(t *testing.T) {
	golden.Run(t, "testdata/budget/*.txtar", func(t *testing.T, in golden.Input) string {
		l := one(t, in.File("budget"))
		pdb := &policyv1.PodDisruptionBudget{ObjectMeta: l.meta()}
		pdb.Spec.Selector = &metav1.LabelSelector{}
		if v, ok := l.get("min"); ok {
			pdb.Spec.MinAvailable = new(intstr.Parse(v))
		}
		if v, ok := l.get("max"); ok {
			pdb.Spec.MaxUnavailable = new(intstr.Parse(v))
		}
		if v, ok := l.get("disrupted"); ok {
			pdb.Status.DisruptedPods = map[string]metav1.Time{}
			for text := range strings.SplitSeq(v, ",") {
				name, age, _ := strings.Cut(text, "@")
				ago, err := time.ParseDuration(age)
				if err != nil {
					t.Fatal(err)
				}
				pdb.Status.DisruptedPods[name] = metav1.NewTime(testNow.Add(-ago))
			}
		}
		expected := l.num("expected", 3)
		l.done()
		changed, again := planBudget(pdb, parsePods(t, in.File("pods")), expected, testNow)
		s := pdb.Status
		return fmt.Sprintf("changed=%v allowed=%d healthy=%d desired=%d expected=%d disrupted=%d again=%v\ncondition %s=%s %s\n", changed, s.DisruptionsAllowed, s.CurrentHealthy,
			s.DesiredHealthy, s.ExpectedPods, len(s.DisruptedPods), again, s.Conditions[0].Type, s.Conditions[0].Status, s.Conditions[0].Reason)
	})
}

// TestQuotasAndBudgetsFollow: a quota holds a ReplicaSet back, and counts less when
// pods have gone; a budget says what may be disrupted.
func TestQuotasAndBudgetsFollow(t *testing.T) {
	s := newSim(t, 7)
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "few", Namespace: "default", UID: "q"}}
	quota.Spec.Hard = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("2")}
	s.put(quota)
	pdb := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "b"}}
	pdb.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	pdb.Spec.MaxUnavailable = new(intstr.FromInt32(1))
	s.put(pdb)
	rs := one(t, []byte("web replicas=3")).replicaSet()
	rs.ResourceVersion = ""
	s.put(rs)
	s.check = func() {
		if n := len(s.pods()); n > 2 {
			t.Fatalf("%d pods, and the quota allows 2", n)
		}
	}
	play := func(d time.Duration) {
		for end := s.now.Add(d); s.now.Before(end); s.now = s.now.Add(100 * time.Millisecond) {
			for s.commitLate() || s.controllers(false) || s.agent() {
			}
		}
	}
	play(20 * time.Second)
	used := func() string {
		q, _ := object.Get[*corev1.ResourceQuota](s.view(), object.KeyOf(quota))
		n := q.Status.Used[corev1.ResourcePods]
		return n.String()
	}
	rs, _ = object.Get[*appsv1.ReplicaSet](s.view(), object.KeyOf(rs))
	if len(s.pods()) != 2 || used() != "2" || len(rs.Status.Conditions) != 1 || rs.Status.Conditions[0].Reason != "FailedCreate" {
		t.Fatalf("%d pods, quota used %s, conditions %+v; want 2, 2 and the refusal", len(s.pods()), used(), rs.Status.Conditions)
	}
	b, _ := object.Get[*policyv1.PodDisruptionBudget](s.view(), object.KeyOf(pdb))
	if st := b.Status; st.ExpectedPods != 3 || st.CurrentHealthy != 2 || st.DesiredHealthy != 2 || st.DisruptionsAllowed != 0 {
		t.Errorf("budget says %+v; want 2 of 3 healthy, and no disruption", st)
	}
	rs.Spec.Replicas = new(int32(1))
	rs.Generation++
	s.put(rs)
	play(20 * time.Second)
	if len(s.pods()) != 1 || used() != "1" {
		t.Errorf("%d pods, quota used %s; want one and 1", len(s.pods()), used())
	}
}
