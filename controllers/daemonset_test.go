package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestPlanDaemonSet runs testdata/daemonset/*.txtar. Each file states one rule in its
// comment, the objects before, and the plan under "want".
func TestPlanDaemonSet(t *testing.T) {
	golden.Run(t, "testdata/daemonset/*.txtar", func(t *testing.T, in golden.Input) string {
		set := one(t, in.File("daemonset")).daemonSet()
		section := func(name string) []*line {
			data, _ := in.Lookup(name)
			return parseLines(t, data)
		}
		name := sequential("new")
		view := daemonSetView{
			admit: admitAll, newUID: func() types.UID { return "uid-new" },
			newPod:   func() (string, types.UID) { n := name(); return n, types.UID("uid-" + n) },
			revTaken: func(string) bool { return false },
		}
		for _, l := range section("pods") {
			view.owned = append(view.owned, l.pod())
		}
		for _, l := range section("revisions") {
			view.revisions = append(view.revisions, l.revision())
		}
		for _, l := range section("nodes") {
			view.nodes = append(view.nodes, factsOf(l.node()))
		}
		return describeDaemonSetPlan(planDaemonSet(set, view, testNow))
	})
}

func describeDaemonSetPlan(p daemonSetPlan) string {
	var b strings.Builder
	if p.revisions.create {
		fmt.Fprintf(&b, "create revision NEW number=%d\n", p.revisions.update.Revision)
	}
	for _, rev := range p.revisions.touched {
		fmt.Fprintf(&b, "update revision %s number=%d\n", rev.Name, rev.Revision)
	}
	for _, rev := range p.revisions.remove {
		fmt.Fprintf(&b, "remove revision %s\n", rev.Name)
	}
	for _, pod := range p.create {
		fmt.Fprintf(&b, "create %s for %s image=%s", pod.Name, daemonNode(pod), pod.Spec.Containers[0].Image)
		if n, ok := pod.Annotations[failuresAnnotation]; ok {
			fmt.Fprintf(&b, " failures=%s", n)
		}
		b.WriteByte('\n')
	}
	for _, r := range p.remove {
		fmt.Fprintf(&b, "remove %s (%s)\n", r.pod.Name, r.reason)
	}
	if s := p.set.Status; p.changed {
		fmt.Fprintf(&b, "status desired=%d current=%d ready=%d available=%d unavailable=%d updated=%d misscheduled=%d\n", s.DesiredNumberScheduled, s.CurrentNumberScheduled,
			s.NumberReady, s.NumberAvailable, s.NumberUnavailable, s.UpdatedNumberScheduled, s.NumberMisscheduled)
	} else {
		b.WriteString("status unchanged\n")
	}
	if p.again > 0 {
		fmt.Fprintf(&b, "again in %v\n", p.again)
	}
	return b.String()
}

// TestDaemonPod covers what the plans' text does not show: what a new pod is.
func TestDaemonPod(t *testing.T) {
	set := one(t, []byte("web")).daemonSet()
	set.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}, daemonTolerations[0]}
	plan := planDaemonSet(set, daemonSetView{
		nodes: []nodeFacts{{name: "n1"}}, revTaken: func(string) bool { return false }, admit: admitAll,
		newPod: func() (string, types.UID) { return "abcde", "uid-1" }, newUID: func() types.UID { return "uid-2" },
	}, testNow)
	if len(plan.create) != 1 {
		t.Fatalf("%d pods are created, want one", len(plan.create))
	}
	pod := plan.create[0]
	if pod.Name != "web-abcde" || pod.Spec.NodeName != "" || daemonNode(pod) != "n1" || pod.Status.QOSClass == "" {
		t.Errorf("pod %s on %q is for %q, quality %q; want web-abcde, unbound, for n1, stamped", pod.Name, pod.Spec.NodeName, daemonNode(pod), pod.Status.QOSClass)
	}
	if n := len(pod.Spec.Tolerations); n != 1+len(daemonTolerations) {
		t.Errorf("%d tolerations, want the template's and each automatic one once: %+v", n, pod.Spec.Tolerations)
	}
	if pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == "" {
		t.Errorf("labels %v lack the revision", pod.Labels)
	}
}

// TestDaemonSetsKeepTheirBounds plays random updates on three nodes of which one
// comes and goes: on the two that stay, from the first time that both are served,
// at most maxUnavailable are not, and with surge none; without surge, no node ever
// has two pods.
func TestDaemonSetsKeepTheirBounds(t *testing.T) {
	for seed := range historiesOr(12) {
		s := newSim(t, uint64(4000+seed))
		surge := s.rand.IntN(2)
		set := one(t, fmt.Appendf(nil, "web image=v0 surge=%d unavailable=%d history=2", surge, 1-surge)).daemonSet()
		set.ResourceVersion = ""
		object.Default(set)
		node := func(name string) *corev1.Node {
			return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)}}
		}
		s.put(node("n2"))
		complete := false
		s.check = func() {
			served, held := map[string]bool{}, map[string]int{}
			for _, pod := range s.pods() {
				if on := daemonNode(pod); on != "n3" {
					held[on]++
					served[on] = served[on] || running(pod)
				}
			}
			if complete = complete || served["n1"] && served["n2"]; complete && !served["n1"] && !served["n2"] || complete && surge > 0 && !(served["n1"] && served["n2"]) {
				t.Fatalf("seed %d, revision %d: served are %v with surge %d", seed, s.state.Root().Revision(), served, surge)
			}
			if surge == 0 && (held["n1"] > 1 || held["n2"] > 1) {
				t.Fatalf("seed %d, revision %d: pods by node %v, want one at most", seed, s.state.Root().Revision(), held)
			}
		}
		s.put(set)
		last := ""
		for step := range 500 {
			s.step()
			switch step % 40 {
			case 9:
				s.put(node("n3"))
			case 29:
				s.erase(node("n3"))
			case 39:
				set, _ := object.Get[*appsv1.DaemonSet](s.view(), daemonSetResource.Key("default", "web"))
				last = fmt.Sprintf("v%d", s.rand.IntN(4))
				set.Spec.Template = templateOf(last, "web")
				object.Default(set)
				set.Generation++
				s.put(set)
			}
		}
		s.settle()
		set, _ = object.Get[*appsv1.DaemonSet](s.view(), daemonSetResource.Key("default", "web"))
		nodes := len(object.List[*corev1.Node](s.view(), ""))
		pods := s.pods()
		if len(pods) != nodes || int(set.Status.NumberAvailable) != nodes || int(set.Status.UpdatedNumberScheduled) != nodes {
			t.Fatalf("seed %d: at rest %d pods on %d nodes, status %+v", seed, len(pods), nodes, set.Status)
		}
		if i := slices.IndexFunc(pods, func(pod *corev1.Pod) bool { return pod.Spec.Containers[0].Image != last }); i >= 0 {
			t.Fatalf("seed %d: at rest pod %s runs %s, want %s", seed, pods[i].Name, pods[i].Spec.Containers[0].Image, last)
		}
	}
}
