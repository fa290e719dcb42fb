package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestPlanDeployment runs testdata/deployment/*.txtar. Each file states one rule in
// its comment, the objects before, and the plan under "want". In the output, NEW is
// the name of a new ReplicaSet, which ends in the template's hash.
func TestPlanDeployment(t *testing.T) {
	golden.Run(t, "testdata/deployment/*.txtar", func(t *testing.T, in golden.Input) string {
		d := one(t, in.File("deployment")).deployment()
		owned := parseReplicaSets(t, in, "replicasets")
		orphans := parseReplicaSets(t, in, "orphans")
		taken := func(name string) bool {
			data, _ := in.Lookup("taken")
			return strings.TrimSpace(string(data)) == "any" ||
				slices.ContainsFunc(owned, func(rs *appsv1.ReplicaSet) bool { return rs.Name == name })
		}
		before := map[string]*appsv1.ReplicaSet{}
		for _, rs := range append(slices.Clone(owned), orphans...) {
			before[rs.Name] = rs.DeepCopy()
		}
		plan := planDeployment(d, owned, orphans, taken, func() types.UID { return "uid-new" }, testNow)
		return describeDeploymentPlan(plan, before)
	})
}

func parseReplicaSets(t *testing.T, in golden.Input, name string) []*appsv1.ReplicaSet {
	t.Helper()
	data, _ := in.Lookup(name)
	var sets []*appsv1.ReplicaSet
	for _, l := range parseLines(t, data) {
		sets = append(sets, l.replicaSet())
	}
	return sets
}

func describeDeploymentPlan(p deploymentPlan, before map[string]*appsv1.ReplicaSet) string {
	var b strings.Builder
	describe := func(rs *appsv1.ReplicaSet) string {
		return fmt.Sprintf("replicas=%d revision=%s desired=%s max=%s", *rs.Spec.Replicas, rs.Annotations[RevisionAnnotation], rs.Annotations[desiredAnnotation], rs.Annotations[maxAnnotation])
	}
	if rs := p.create; rs != nil {
		fmt.Fprintf(&b, "create NEW image=%s %s\n", rs.Spec.Template.Spec.Containers[0].Image, describe(rs))
	}
	for _, rs := range p.update {
		old := before[rs.Name]
		fmt.Fprintf(&b, "update %s %s", rs.Name, describe(rs))
		if was, is := *old.Spec.Replicas, *rs.Spec.Replicas; was != is {
			fmt.Fprintf(&b, " (was %d)", was)
		}
		switch had, has := object.ControllerOf(old) != nil, object.ControllerOf(rs) != nil; {
		case !had && has:
			b.WriteString(" (adopted)")
		case !has && len(rs.OwnerReferences) == 0 && rs.Labels["app"] != "web":
			b.WriteString(" (released)")
		}
		b.WriteByte('\n')
	}
	for _, rs := range p.remove {
		fmt.Fprintf(&b, "remove %s\n", rs.Name)
	}
	if p.failure != "" {
		fmt.Fprintf(&b, "template image=%s\nevent %s\n", p.deployment.Spec.Template.Spec.Containers[0].Image, p.failure)
	}
	for _, note := range p.notes {
		if p.create != nil {
			note = strings.ReplaceAll(note, p.create.Name, "NEW")
		}
		fmt.Fprintf(&b, "event %s\n", note)
	}
	if !p.changed {
		b.WriteString("deployment unchanged\n")
	} else {
		s := p.deployment.Status
		fmt.Fprintf(&b, "deployment revision=%s replicas=%d updated=%d ready=%d available=%d unavailable=%d terminating=%d", p.deployment.Annotations[RevisionAnnotation],
			s.Replicas, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas, s.UnavailableReplicas, *s.TerminatingReplicas)
		if s.CollisionCount != nil {
			fmt.Fprintf(&b, " collisions=%d", *s.CollisionCount)
		}
		b.WriteByte('\n')
		for _, c := range s.Conditions {
			fmt.Fprintf(&b, "condition %s=%s %s updated %v ago\n", c.Type, c.Status, c.Reason, testNow.Sub(c.LastUpdateTime.Time))
		}
	}
	if p.again > 0 {
		fmt.Fprintf(&b, "again in %v\n", p.again)
	}
	return b.String()
}

// TestRollingBounds: percentages and numbers, and the pair of zeros that could not
// move.
func TestRollingBounds(t *testing.T) {
	for _, tt := range []struct {
		text               string
		surge, unavailable int32
	}{
		{"web replicas=10 surge=25% unavailable=25%", 3, 2},
		{"web replicas=1 surge=25% unavailable=25%", 1, 0},
		{"web replicas=4 surge=2 unavailable=0", 2, 0},
		{"web replicas=3 surge=0 unavailable=0", 0, 1},
		{"web replicas=3 surge=0% unavailable=10%", 0, 1},
		{"web replicas=0 surge=0 unavailable=0", 0, 0},
		{"web replicas=2 surge=1 unavailable=5", 1, 2},
		{"web replicas=3 Recreate", 0, 0},
	} {
		surge, unavailable := rollingBounds(one(t, []byte(tt.text)).deployment())
		if surge != tt.surge || unavailable != tt.unavailable {
			t.Errorf("%s: surge %d, unavailable %d, want %d and %d", tt.text, surge, unavailable, tt.surge, tt.unavailable)
		}
	}
}

// TestTemplateHash: names differ by template and by collision, and stay.
func TestTemplateHash(t *testing.T) {
	a, b := templateOf("v1", "web"), templateOf("v2", "web")
	a.Annotations = map[string]string{"one": "1", "two": "2", "three": "3"}
	first := templateHash(&a, nil)
	for range 50 { // maps are encoded in order
		if again := templateHash(a.DeepCopy(), nil); again != first {
			t.Fatalf("hash of one template is %s, then %s", first, again)
		}
	}
	if other := templateHash(&b, nil); other == first {
		t.Errorf("different templates have the hash %s", first)
	}
	if collided := templateHash(&a, new(int32(1))); collided == first {
		t.Errorf("after a collision the hash is still %s", first)
	}
}

// TestNewReplicaSet covers what the plans' text does not show: what the new set is,
// and that what it was planned from guards the writes.
func TestNewReplicaSet(t *testing.T) {
	d := one(t, []byte("web replicas=2 image=v2")).deployment()
	d.Annotations = map[string]string{"team": "shop", lastAppliedAnnotation: "{}"}
	old := one(t, []byte("web-old image=v1 replicas=2 status=2/2/2 revision=1 desired=2 max=3")).replicaSet()
	plan := planDeployment(d, []*appsv1.ReplicaSet{old}, nil, func(string) bool { return false }, func() types.UID { return "uid-new" }, testNow)
	rs := plan.create
	if rs == nil {
		t.Fatal("no ReplicaSet for the new template")
	}
	hash := rs.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
	if rs.Name != "web-"+hash || rs.Spec.Selector.MatchLabels[appsv1.DefaultDeploymentUniqueLabelKey] != hash || rs.Spec.Template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] != hash {
		t.Errorf("name %s, labels %v, selector %v, template labels %v: all should carry one hash", rs.Name, rs.Labels, rs.Spec.Selector, rs.Spec.Template.Labels)
	}
	if d.Spec.Selector.MatchLabels[appsv1.DefaultDeploymentUniqueLabelKey] != "" {
		t.Error("the Deployment's own selector was changed")
	}
	if rs.Annotations["team"] != "shop" || rs.Annotations[lastAppliedAnnotation] != "" {
		t.Errorf("annotations %v: want the Deployment's but for kubectl's", rs.Annotations)
	}
	o := plan.outcome()
	guarded := map[string]bool{}
	for _, c := range o.txn.If {
		guarded[c.GetKey()] = true
	}
	for _, key := range []string{"deployments.apps/default/web", "replicasets.apps/default/web-old", "replicasets.apps/default/" + rs.Name} {
		if !guarded[key] {
			t.Errorf("the writes are not conditional on %s: %v", key, o.txn.If)
		}
	}
}

// TestProgressDeadlineIsAwaited: the plan asks to be looked at when the deadline
// passes, and no later pass writes anything before or after but the condition.
func TestProgressDeadlineIsAwaited(t *testing.T) {
	d := one(t, []byte("web replicas=1 image=v1 revision=1 deadline=60 progressing=ReplicaSetUpdated@0s")).deployment()
	rs := one(t, []byte("web-1 image=v1 replicas=1 status=1/0/0 revision=1 desired=1 max=2")).replicaSet()
	now := testNow
	pass := func() deploymentPlan {
		return planDeployment(d, []*appsv1.ReplicaSet{rs}, nil, func(string) bool { return true }, nil, now)
	}
	pass() // brings the status up to date
	plan := pass()
	if plan.changed || plan.again != time.Minute {
		t.Fatalf("changed %v, again in %v; want no change until a minute has passed", plan.changed, plan.again)
	}
	now = now.Add(time.Minute)
	plan = pass()
	if c := progressing(&d.Status); !plan.changed || c.Reason != reasonDeadlineExceeded {
		t.Fatalf("condition %+v; want %s", c, reasonDeadlineExceeded)
	}
	now = now.Add(time.Hour)
	if plan = pass(); plan.changed || plan.again != 0 {
		t.Errorf("changed %v, again in %v after the deadline; want silence", plan.changed, plan.again)
	}
}
