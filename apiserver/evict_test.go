package apiserver

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestEvictReplacesFirst: a pod that is needed is marked, and goes once another serves
// in its place; one that nothing can replace is only refused.
func TestEvictReplacesFirst(t *testing.T) {
	c := newCluster(t, 1)
	ctx := withIdentity(t.Context(), alice)
	labels := map[string]string{"app": "web"}
	rs := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "rs"}, Spec: appsv1.ReplicaSetSpec{Replicas: new(int32(1)), Selector: &metav1.LabelSelector{MatchLabels: labels}}}
	c.put(rs)
	serving := func(name string, owned bool) {
		pod := boundPod(name, "n1")
		pod.Labels = labels
		if owned {
			pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(rs, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
		}
		pod.Status.Phase = corev1.PodRunning
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		c.put(pod)
	}
	store := c.servers["peer-1"].cfg.Store
	pod := func(name string) *corev1.Pod {
		pod, ok := object.Get[*corev1.Pod](store.View(), podResource.Key("default", name))
		if !ok {
			t.Fatalf("pod %s is gone", name)
		}
		return pod
	}
	evict := func(req *holdfastv1.EvictRequest, want string) {
		t.Helper()
		_, err := c.servers["peer-1"].Objects().Evict(ctx, req)
		if want == "" && err != nil || want != "" && (connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(err.Error(), want)) {
			t.Fatalf("evict %v: %v, want %q", req, err, want)
		}
	}
	marked := func(name string) bool { return object.ReplaceFirst(pod(name), c.servers["peer-1"].cfg.Now()) > 0 }

	serving("a", true)
	evict(&holdfastv1.EvictRequest{Name: "a", ReplaceFirst: true, DryRun: true}, "it is the only one that serves")
	if marked("a") {
		t.Fatal("a dry run has marked the pod")
	}
	evict(&holdfastv1.EvictRequest{Name: "a", ReplaceFirst: true}, "it is the only one that serves, and another is started first")
	if !marked("a") || object.Deleting(pod("a")) {
		t.Fatalf("after a refused eviction the pod is marked: %v, being deleted: %v", marked("a"), object.Deleting(pod("a")))
	}
	revision := store.View().Revision()
	evict(&holdfastv1.EvictRequest{Name: "a", ReplaceFirst: true}, "another is started first")
	if got := store.View().Revision(); got != revision {
		t.Errorf("asking again has written: revision %d, then %d", revision, got)
	}
	serving("b", true)
	evict(&holdfastv1.EvictRequest{Name: "a", ReplaceFirst: true}, "")
	if !object.Deleting(pod("a")) {
		t.Fatal("the pod stays though another serves")
	}
	if at := object.PodCondition(pod("a"), corev1.DisruptionTarget); at == nil || at.Status != corev1.ConditionTrue || at.Reason != "EvictionByEvictionAPI" || at.Message != "evicted by admin/alice" {
		t.Errorf("the evicted pod's condition DisruptionTarget is %v, want one that says who did it", at)
	}

	// A budget says the same without being asked; without anybody who could replace the
	// pod, it is only refused.
	c.put(&policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: new(intstr.FromInt32(1)), Selector: &metav1.LabelSelector{MatchLabels: labels}},
	})
	evict(&holdfastv1.EvictRequest{Name: "b"}, "needs 1 healthy pods and has 1 currently; another is started first")
	if !marked("b") {
		t.Error("the pod that a budget needs is not marked")
	}
	c.put(&policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: new(intstr.FromInt32(9)), Selector: &metav1.LabelSelector{MatchLabels: labels}},
	})
	serving("alone", false)
	refused, err := c.servers["peer-1"].Evictor().Evict(t.Context(), pod("alone"), true, nil)
	if err != nil || refused != "the disruption budget web needs 9 healthy pods and has 2 currently" {
		t.Errorf("for the controllers: refused %q, %v; want the budget's numbers", refused, err)
	}
	evict(&holdfastv1.EvictRequest{Name: "alone"}, "needs 9 healthy pods and has 2 currently; wait")
	if marked("alone") {
		t.Error("a pod that nobody can replace is marked")
	}
}

// TestEvictorForControllers: what is gone is no error, and what may go goes, in the time
// that was given, and says that a controller has done it.
func TestEvictorForControllers(t *testing.T) {
	c := newCluster(t, 1)
	free := boundPod("free", "n1")
	free.UID = "uid"
	c.put(free)
	evictor := c.servers["peer-1"].Evictor()
	other := free.DeepCopy()
	other.UID = "another"
	if refused, err := evictor.Evict(t.Context(), other, true, nil); refused != "" || err == nil {
		t.Errorf("of another uid: refused %q, %v; want an error", refused, err)
	}
	if refused, err := evictor.Evict(t.Context(), free, true, new(3*time.Second)); refused != "" || err != nil {
		t.Fatalf("refused %q, %v", refused, err)
	}
	pod, ok := object.Get[*corev1.Pod](c.servers["peer-1"].cfg.Store.View(), podResource.Key("default", "free"))
	if !ok || !object.Deleting(pod) || *pod.DeletionGracePeriodSeconds != 3 {
		t.Fatalf("the pod is there: %v, %v", ok, pod.ObjectMeta)
	}
	if at := object.PodCondition(pod, corev1.DisruptionTarget); at == nil || at.Message != "evicted by controllers/drain" {
		t.Errorf("its condition DisruptionTarget is %v", at)
	}
	gone := boundPod("gone", "n1")
	if refused, err := evictor.Evict(t.Context(), gone, true, nil); refused != "" || err != nil {
		t.Errorf("of a pod that is gone: refused %q, %v", refused, err)
	}
}
