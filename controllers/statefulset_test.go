package controllers

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestPlanStatefulSet runs testdata/statefulset/*.txtar. Each file states one rule
// in its comment, the objects before, and the plan under "want". NEW is the name of
// a new revision. A claim's line may say owner=db (the set) or owner=db-2 (a pod).
func TestPlanStatefulSet(t *testing.T) {
	golden.Run(t, "testdata/statefulset/*.txtar", func(t *testing.T, in golden.Input) string {
		set := one(t, in.File("statefulset")).statefulSet()
		section := func(name string) []*line {
			data, _ := in.Lookup(name)
			return parseLines(t, data)
		}
		view := statefulSetView{admit: admitAll, newUID: func() types.UID { return "uid-new" }}
		for _, l := range section("pods") {
			pod := l.pod()
			if n, ok := ordinalOf(set, pod.Name); ok {
				pod.Labels[appsv1.StatefulSetPodNameLabel], pod.Labels[appsv1.PodIndexLabel] = pod.Name, strconv.Itoa(n)
			}
			view.owned = append(view.owned, pod)
		}
		for _, l := range section("orphans") {
			view.orphans = append(view.orphans, l.pod())
		}
		for _, l := range section("revisions") {
			view.revisions = append(view.revisions, l.revision())
		}
		claims := map[string]*corev1.PersistentVolumeClaim{}
		for _, l := range section("claims") {
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: l.meta()}
			if owner, ok := l.get("owner"); ok {
				ref := metav1.OwnerReference{Kind: "StatefulSet", Name: owner, UID: types.UID("uid-" + owner)}
				if strings.Contains(owner, "-") {
					ref.Kind = "Pod"
				}
				claim.OwnerReferences = []metav1.OwnerReference{ref}
			}
			l.done()
			claims[l.name] = claim
		}
		view.claim = func(name string) *corev1.PersistentVolumeClaim { return claims[name] }
		taken := func(name string) func(string) bool {
			var names []string
			for _, l := range section(name) {
				names = append(names, l.name)
			}
			return func(name string) bool { return slices.Contains(names, name) }
		}
		view.podTaken, view.revTaken = taken("taken"), taken("revisions")
		if data, ok := in.Lookup("refuses"); ok {
			view.admit = func(obj object.Object) error { return fmt.Errorf("%s", strings.TrimSpace(string(data))) }
		}
		return describeStatefulSetPlan(planStatefulSet(set, view, testNow))
	})
}

func describeStatefulSetPlan(p statefulSetPlan) string {
	var b strings.Builder
	revision := func(label string) string {
		if p.revisions.create && label == p.revisions.update.Name {
			return "NEW"
		}
		return label
	}
	if p.revisions.create {
		fmt.Fprintf(&b, "create revision NEW number=%d\n", p.revisions.update.Revision)
	}
	for _, rev := range p.revisions.touched {
		fmt.Fprintf(&b, "update revision %s number=%d\n", rev.Name, rev.Revision)
	}
	for _, rev := range p.revisions.remove {
		fmt.Fprintf(&b, "remove revision %s\n", rev.Name)
	}
	for _, pod := range p.pods.adopt {
		fmt.Fprintf(&b, "adopt %s\n", pod.Name)
	}
	for _, pod := range p.pods.release {
		fmt.Fprintf(&b, "release %s\n", pod.Name)
	}
	owners := func(claim *corev1.PersistentVolumeClaim) string {
		var names []string
		for _, ref := range claim.OwnerReferences {
			names = append(names, ref.Kind+" "+ref.Name)
		}
		return strings.Join(names, ", ")
	}
	for _, claim := range p.newClaims {
		fmt.Fprintf(&b, "create claim %s owners=[%s]\n", claim.Name, owners(claim))
	}
	for _, claim := range p.ownClaims {
		fmt.Fprintf(&b, "update claim %s owners=[%s]\n", claim.Name, owners(claim))
	}
	for _, pod := range p.relabel {
		fmt.Fprintf(&b, "label %s index=%s\n", pod.Name, pod.Labels[appsv1.PodIndexLabel])
	}
	for _, pod := range p.create {
		fmt.Fprintf(&b, "create %s image=%s revision=%s\n", pod.Name, pod.Spec.Containers[0].Image, revision(pod.Labels[appsv1.ControllerRevisionHashLabelKey]))
	}
	for _, r := range p.remove {
		fmt.Fprintf(&b, "remove %s (%s)\n", r.pod.Name, r.reason)
	}
	if p.refused != "" {
		fmt.Fprintf(&b, "refused %s\n", p.refused)
	}
	if s := p.set.Status; p.changed {
		fmt.Fprintf(&b, "status replicas=%d ready=%d available=%d current=%d (%s) updated=%d (%s)\n", s.Replicas, s.ReadyReplicas, s.AvailableReplicas,
			s.CurrentReplicas, revision(s.CurrentRevision), s.UpdatedReplicas, revision(s.UpdateRevision))
	} else {
		b.WriteString("status unchanged\n")
	}
	if p.again > 0 {
		fmt.Fprintf(&b, "again in %v\n", p.again)
	}
	if p.more {
		b.WriteString("more\n")
	}
	return b.String()
}

// TestStatefulPod covers what the plans' text does not show: what a new pod is.
func TestStatefulPod(t *testing.T) {
	set := one(t, []byte("db replicas=1 claims=data start=4")).statefulSet()
	set.Spec.Template.Spec.Volumes = []corev1.Volume{{Name: "data"}, {Name: "scratch"}}
	none := func(string) bool { return false }
	plan := planStatefulSet(set, statefulSetView{
		claim: func(string) *corev1.PersistentVolumeClaim { return nil }, podTaken: none, revTaken: none, admit: admitAll,
		newUID: func() types.UID { return "uid-new" },
	}, testNow)
	if len(plan.create) != 1 || len(plan.newClaims) != 1 {
		t.Fatalf("%d pods and %d claims are created, want one of each", len(plan.create), len(plan.newClaims))
	}
	pod := plan.create[0]
	if pod.Name != "db-4" || pod.Spec.Hostname != "db-4" || pod.Spec.Subdomain != "peers" {
		t.Errorf("name %s, host %s.%s, want db-4, db-4.peers", pod.Name, pod.Spec.Hostname, pod.Spec.Subdomain)
	}
	if pod.Labels[appsv1.PodIndexLabel] != "4" || pod.Labels[appsv1.StatefulSetPodNameLabel] != "db-4" || pod.Labels["app"] != "web" {
		t.Errorf("labels %v lack the identity or the template's", pod.Labels)
	}
	if v := pod.Spec.Volumes; len(v) != 2 || v[0].PersistentVolumeClaim == nil || v[0].PersistentVolumeClaim.ClaimName != "data-db-4" || v[1].Name != "scratch" {
		t.Errorf("volumes %+v: want the claim in the place of the template's data, and scratch", v)
	}
	if pod.Status.QOSClass != corev1.PodQOSBestEffort {
		t.Errorf("quality of service %q: the pod was not stamped", pod.Status.QOSClass)
	}
	claim := plan.newClaims[0]
	if claim.Name != "data-db-4" || claim.Labels["app"] != "web" || claim.Status.Phase != corev1.ClaimPending {
		t.Errorf("claim %s, labels %v, phase %q: want data-db-4 with the selector's labels, pending", claim.Name, claim.Labels, claim.Status.Phase)
	}
	held, err := revisionTemplate(plan.revisions.update)
	if err != nil || !sameTemplate(held, &set.Spec.Template) {
		t.Errorf("the revision keeps %+v (%v), not the template", held, err)
	}
}
