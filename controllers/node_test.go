package controllers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestPlanNode runs testdata/node/*.txtar: a node, the verdict on it and the pods
// on it, and the plan.
func TestPlanNode(t *testing.T) {
	states := map[string]nodeState{}
	for s := nodeUndecided; s <= nodeLost; s++ {
		states[s.String()] = s
	}
	golden.Run(t, "testdata/node/*.txtar", func(t *testing.T, in golden.Input) string {
		l := one(t, in.File("node"))
		name, _ := l.get("verdict")
		state, ok := states[name]
		if !ok {
			t.Fatalf("unknown verdict %q", name)
		}
		v := verdict{state: state, held: l.has("held"), quiet: l.dur("quiet", 0), detail: "2 of 3 nodes vanished together"}
		node := l.node()
		before := node.DeepCopy()
		var pods []*corev1.Pod
		if data, ok := in.Lookup("pods"); ok {
			pods = parsePods(t, data)
		}
		return describeNodePlan(planNode(node, v, pods, testNow), before)
	})
}

func describeNodePlan(p nodePlan, before *corev1.Node) string {
	var b strings.Builder
	if !p.changed {
		b.WriteString("node unchanged\n")
	} else {
		c := object.NodeCondition(p.node, corev1.NodeReady)
		fmt.Fprintf(&b, "ready=%s %s", c.Status, c.Reason)
		if old := object.NodeCondition(before, corev1.NodeReady); old == nil || old.LastTransitionTime != c.LastTransitionTime {
			fmt.Fprintf(&b, " since now")
		}
		b.WriteByte('\n')
		for _, taint := range p.node.Spec.Taints {
			fmt.Fprintf(&b, "taint %s", taint.ToString())
			if taint.TimeAdded != nil {
				fmt.Fprintf(&b, " since %v", testNow.Sub(taint.TimeAdded.Time))
			}
			b.WriteByte('\n')
		}
	}
	for _, e := range p.evict {
		fmt.Fprintf(&b, "evict %s (%s)\n", e.pod.Name, e.reason)
	}
	for _, pod := range p.unready {
		fmt.Fprintf(&b, "unready %s\n", pod.Name)
	}
	for _, pod := range p.erase {
		fmt.Fprintf(&b, "erase %s\n", pod.Name)
	}
	if p.event.reason != "" {
		fmt.Fprintf(&b, "event %s %s: %s\n", p.event.kind(), p.event.reason, p.event.message)
	}
	if p.again > 0 {
		fmt.Fprintf(&b, "again in %v\n", p.again)
	}
	return b.String()
}

// TestEvictionsFitTransactions: a full node is emptied in steps.
func TestEvictionsFitTransactions(t *testing.T) {
	node := one(t, []byte("n1 Ready")).node()
	var pods []*corev1.Pod
	for i := range 2*maxWrites + 1 {
		pods = append(pods, one(t, fmt.Appendf(nil, "web-%d", i)).pod())
	}
	for _, want := range []int{maxWrites, maxWrites, 1, 0} {
		plan := planNode(node, verdict{state: nodeLost}, pods, testNow)
		if len(plan.evict) != want {
			t.Fatalf("%d evictions, want %d", len(plan.evict), want)
		}
		if more := want == maxWrites; plan.more != more {
			t.Fatalf("after %d evictions more is %v", want, plan.more)
		}
		plan.outcome(testNow) // marks them
	}
}

// TestTolerance: how long a pod stands a taint.
func TestTolerance(t *testing.T) {
	taint := &corev1.Taint{Key: "k", Value: "v", Effect: corev1.TaintEffectNoExecute}
	seconds := func(n int64) *int64 { return &n }
	for _, tt := range []struct {
		name        string
		tolerations []corev1.Toleration
		limit       time.Duration
		forever     bool
	}{
		{"none", nil, 0, false},
		{"other key", []corev1.Toleration{{Key: "x", Operator: corev1.TolerationOpExists}}, 0, false},
		{"other value", []corev1.Toleration{{Key: "k", Value: "x"}}, 0, false},
		{"other effect", []corev1.Toleration{{Key: "k", Value: "v", Effect: corev1.TaintEffectNoSchedule}}, 0, false},
		{"equal", []corev1.Toleration{{Key: "k", Value: "v"}}, 0, true},
		{"any", []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, 0, true},
		{"for a time", []corev1.Toleration{{Key: "k", Value: "v", TolerationSeconds: seconds(30)}}, 30 * time.Second, false},
		{"the shortest counts", []corev1.Toleration{
			{Key: "k", Value: "v", TolerationSeconds: seconds(30)}, {Key: "k", Operator: corev1.TolerationOpExists}, {Operator: corev1.TolerationOpExists, TolerationSeconds: seconds(10)},
		}, 10 * time.Second, false},
		{"negative is at once", []corev1.Toleration{{Key: "k", Value: "v", TolerationSeconds: seconds(-1)}}, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			limit, forever := tolerance(&corev1.Pod{Spec: corev1.PodSpec{Tolerations: tt.tolerations}}, taint)
			if limit != tt.limit || forever != tt.forever {
				t.Errorf("limit %v, forever %v; want %v, %v", limit, forever, tt.limit, tt.forever)
			}
		})
	}
}
