package controllers

import (
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestPlanCollection runs testdata/collector/*.txtar: an object, its owners, and
// what becomes of it.
func TestPlanCollection(t *testing.T) {
	golden.Run(t, "testdata/collector/*.txtar", func(t *testing.T, in golden.Input) string {
		l := one(t, in.File("pod"))
		nodeGone, owns := l.has("node-removed"), l.has("owns")
		pod := l.pod()
		var owners []ownerState
		data, _ := in.Lookup("owners")
		for _, l := range parseLines(t, data) {
			owners = append(owners, ownerState{ref: metav1.OwnerReference{Kind: "ReplicaSet", Name: l.name, UID: types.UID(l.name)}, gone: l.has("gone"), ending: l.has("ending")})
			l.done()
		}
		plan := planCollection(pod, owners, owns, nodeGone)
		var b strings.Builder
		b.WriteString(plan.action.String())
		if plan.foreground {
			b.WriteString(" foreground")
		}
		for _, ref := range plan.keep {
			fmt.Fprintf(&b, " keep %s", ref.Name)
		}
		if plan.reason != "" {
			fmt.Fprintf(&b, " (%s)", plan.reason)
		}
		return b.String()
	})
}

// TestPlanEnding runs testdata/ending/*.txtar: an object that is being deleted, what
// it owns, and the next step.
func TestPlanEnding(t *testing.T) {
	golden.Run(t, "testdata/ending/*.txtar", func(t *testing.T, in golden.Input) string {
		l := one(t, in.File("owner"))
		owner := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: l.name, Namespace: "default", UID: types.UID(l.name), ResourceVersion: "7"}}
		if !l.has("alive") {
			owner.DeletionTimestamp = new(metav1.NewTime(testNow))
		}
		if l.has("foreground") {
			owner.Finalizers = []string{metav1.FinalizerDeleteDependents}
		}
		if l.has("orphan") {
			owner.Finalizers = []string{metav1.FinalizerOrphanDependents}
		}
		l.done()
		var dependents []object.Object
		for _, l := range parseLines(t, in.File("dependents")) {
			obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: l.name, Namespace: "default", ResourceVersion: "8"}}
			obj.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID, BlockOwnerDeletion: new(l.has("blocks"))}}
			if l.has("other") {
				obj.OwnerReferences = append(obj.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "other", UID: "other"})
			}
			l.done()
			dependents = append(dependents, obj)
		}
		plan := planEnding(owner, dependents)
		var b strings.Builder
		for _, obj := range plan.release {
			fmt.Fprintf(&b, "release %s, which keeps", obj.GetName())
			for _, ref := range obj.GetOwnerReferences() {
				fmt.Fprintf(&b, " %s", ref.Name)
			}
			b.WriteByte('\n')
		}
		if plan.done != "" {
			o := plan.outcome(owner, testNow)
			fmt.Fprintf(&b, "done %s, gone %t\n", plan.done, o.txn.Then[0].GetDelete() != nil)
		}
		if b.Len() == 0 {
			return "nothing"
		}
		return b.String()
	})
}

// TestCascades deletes a Deployment in three ways, with agents of any speed: in the
// foreground its pods go before the ReplicaSet and that before the Deployment; as an
// orphan the ReplicaSet stays, and its pods.
func TestCascades(t *testing.T) {
	for seed := range 10 {
		for _, finalizer := range []string{"", metav1.FinalizerDeleteDependents, metav1.FinalizerOrphanDependents} {
			s := newSim(t, uint64(seed))
			d := simDeployment(t, "web replicas=3 image=v0")
			s.put(d)
			s.settle()
			key := object.KeyOf(d)
			d, _ = object.Get[*appsv1.Deployment](s.view(), key)
			if finalizer != "" {
				d.Finalizers = append(d.Finalizers, finalizer)
			}
			there := func() (deployments, sets, pods int) {
				return len(object.List[*appsv1.Deployment](s.view(), "")), len(object.List[*appsv1.ReplicaSet](s.view(), "")), len(s.pods())
			}
			s.check = func() {
				deployments, sets, pods := there()
				if finalizer == metav1.FinalizerDeleteDependents && (sets == 0 && pods > 0 || deployments == 0 && sets > 0) {
					t.Fatalf("seed %d: %d pods, %d sets, %d deployments: an owner went before what it owns", seed, pods, sets, deployments)
				}
			}
			s.delete(d)
			s.settle()
			wantSets, wantPods := 0, 0
			if finalizer == metav1.FinalizerOrphanDependents {
				wantSets, wantPods = 1, 3
			}
			if deployments, sets, pods := there(); deployments != 0 || sets != wantSets || pods != wantPods {
				t.Errorf("seed %d, finalizer %q: %d deployments, %d sets, %d pods are left, want 0, %d, %d", seed, finalizer, deployments, sets, pods, wantSets, wantPods)
			}
			for _, rs := range object.List[*appsv1.ReplicaSet](s.view(), "") {
				if len(rs.OwnerReferences) > 0 {
					t.Errorf("seed %d: the orphan still names its owner: %v", seed, rs.OwnerReferences)
				}
			}
		}
	}
}
