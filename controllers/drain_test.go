package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestPlanDrain runs testdata/drain/*.txtar: what is asked of a node, the pods on it,
// what became of evictions, and the plan.
func TestPlanDrain(t *testing.T) {
	golden.Run(t, "testdata/drain/*.txtar", func(t *testing.T, in golden.Input) string {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{}}}
		l := one(t, in.File("node"))
		node.Spec.Unschedulable = l.has("cordoned")
		if request, ok := in.Lookup("request"); ok {
			node.Annotations[object.DrainAnnotation] = strings.TrimSpace(string(request))
		}
		if reason, ok := l.get("drained"); ok {
			node.Status.Conditions = []corev1.NodeCondition{{Type: object.NodeDrained, Status: corev1.ConditionFalse, Reason: reason, LastTransitionTime: metav1.NewTime(testNow.Add(-time.Minute))}}
		}
		l.done()
		var pods []*corev1.Pod
		if data, ok := in.Lookup("pods"); ok {
			for text := range strings.Lines(string(data)) {
				text, owner, owned := strings.Cut(strings.TrimSpace(text), " of=")
				pod := one(t, []byte(text)).pod()
				if kind, name, _ := strings.Cut(owner, "/"); owned {
					pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: name, UID: types.UID(name), Controller: new(true)}}
				}
				pods = append(pods, pod)
			}
		}
		attempts := map[types.UID]drainAttempt{}
		if data, ok := in.Lookup("attempts"); ok {
			for text := range strings.Lines(string(data)) {
				text, why, _ := strings.Cut(strings.TrimSpace(text), ": ")
				l := parseLines(t, []byte(text))[0]
				i := slices.IndexFunc(pods, func(pod *corev1.Pod) bool { return pod.Name == l.name })
				if i < 0 {
					t.Fatalf("no pod %s", l.name)
				}
				attempts[pods[i].UID] = drainAttempt{underWay: l.has("under-way"), evicted: l.has("evicted"), why: why, next: testNow.Add(l.dur("next", 0))}
				l.done()
			}
		}
		return describeDrainPlan(planDrain(node, pods, attempts, testNow))
	})
}

func describeDrainPlan(p drainPlan) string {
	var b strings.Builder
	if p.node == nil {
		b.WriteString("node unchanged\n")
	} else {
		if request, ok := p.node.Annotations[object.DrainAnnotation]; ok {
			fmt.Fprintf(&b, "request %s\n", request)
		} else {
			b.WriteString("no request\n")
		}
		if c := object.NodeCondition(p.node, object.NodeDrained); c != nil {
			fmt.Fprintf(&b, "drained=%s %s\n", c.Status, c.Reason)
			for line := range strings.Lines(c.Message) {
				fmt.Fprintf(&b, "  %s\n", strings.TrimSuffix(line, "\n"))
			}
		} else {
			b.WriteString("no condition\n")
		}
	}
	for _, pod := range p.evict {
		fmt.Fprintf(&b, "evict %s\n", pod.Name)
	}
	if p.event.reason != "" {
		fmt.Fprintf(&b, "event %s %s: %s\n", p.event.kind(), p.event.reason, strings.ReplaceAll(p.event.message, "\n", " | "))
	}
	if p.again > 0 {
		fmt.Fprintf(&b, "again in %v\n", p.again)
	}
	return b.String()
}

// refusals is an Evictor: it refuses what it is told to, and ends the rest as the API
// and a node do.
type refusals struct {
	leader *raftstore.Leader
	mu     sync.Mutex
	refuse map[string]string // by pod; "panic": it does
	calls  map[string]int
}

func (r *refusals) Evict(ctx context.Context, pod *corev1.Pod, _ bool, _ *time.Duration) (string, error) {
	r.mu.Lock()
	why := r.refuse[pod.Name]
	r.calls[pod.Name]++
	r.mu.Unlock()
	switch why {
	case "panic":
		panic("this pod is a bug")
	case "":
		_, err := r.leader.Txn(ctx, raftstore.Txn{Then: []raftstore.Op{raftstore.Delete(string(object.KeyOf(pod)))}})
		return "", err
	}
	return why, nil
}

func (r *refusals) set(pod, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse[pod] = why
}

// TestDrainSurvivesTheLeader: the controllers of one leadership begin a drain, and end;
// those of the next go on with it, from what stands in the node, up to its end. One pod
// whose eviction panics holds up nobody else.
func TestDrainSurvivesTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.New(t)
		leader := storetest.Leader(t, store)
		evictor := &refusals{leader: leader, refuse: map[string]string{"held": "the disruption budget b needs 1 healthy pods and has 1 currently", "bug": "panic"}, calls: map[string]int{}}
		put := func(objs ...object.Object) {
			t.Helper()
			for _, obj := range objs {
				data, err := object.Encode(obj)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := store.Txn(t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Put(string(object.KeyOf(obj)), data)}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "n1", Annotations: map[string]string{object.DrainAnnotation: object.Drain{ID: "a", Force: true, Timeout: "1m"}.String()}}}
		node.Spec.Unschedulable = true
		put(node)
		for _, pod := range parsePods(t, []byte("free ready\nheld ready\nbug ready\nelsewhere ready node=n2\n")) {
			put(pod)
		}
		lead := func(for_ time.Duration) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), for_)
			defer cancel()
			d := newDrains(evictor, slog.New(slog.DiscardHandler))
			var running sync.WaitGroup
			running.Go(func() { d.run(ctx) })
			r := &runner{leader: leader, events: discardEvents{}, log: slog.New(slog.DiscardHandler), metrics: newMetrics(nil), controllers: []*controller{d.controller()}, tickPeriod: time.Second}
			if err := r.run(ctx); err != nil {
				t.Error(err)
			}
			running.Wait()
		}
		state := func() (left []string, c corev1.NodeCondition, asked bool) {
			for _, pod := range object.List[*corev1.Pod](store.View(), "") {
				left = append(left, pod.Name)
			}
			node, _ := object.Get[*corev1.Node](store.View(), nodeResource.Key("", "n1"))
			if at := object.NodeCondition(node, object.NodeDrained); at != nil {
				c = *at
			}
			_, asked = node.Annotations[object.DrainAnnotation]
			return left, c, asked
		}

		lead(3 * time.Second)
		left, c, asked := state()
		if !slices.Equal(left, []string{"bug", "elsewhere", "held"}) || !asked || c.Reason != object.DrainGoesOn {
			t.Fatalf("the first leader left %q, condition %s %q, request %v: want bug, elsewhere and held, and a drain that goes on", left, c.Reason, c.Message, asked)
		}
		if !strings.Contains(c.Message, "pod/held (default) waits: the disruption budget b") || !strings.Contains(c.Message, "pod/bug (default) waits: panic: this pod is a bug") {
			t.Errorf("the condition says %q, want what each pod waits for", c.Message)
		}
		evictor.set("held", "")
		lead(10 * time.Second)
		if left, c, asked = state(); !slices.Equal(left, []string{"bug", "elsewhere"}) || !asked {
			t.Fatalf("the second leader left %q, request %v: want what was held to be gone", left, asked)
		}
		if calls := evictor.calls["bug"]; calls > 5 {
			t.Errorf("%d evictions of the pod that panics in 13 s, want one each 5 s and leader", calls)
		}
		lead(time.Minute) // past the deadline, which stands in the request
		if _, c, asked = state(); asked || c.Reason != object.DrainTimedOut || !strings.Contains(c.Message, "pod/bug") {
			t.Fatalf("after the deadline: request %v, condition %s %q, want none and what was in the way", asked, c.Reason, c.Message)
		}
		calls := evictor.calls["bug"]
		evictor.set("bug", "")
		lead(time.Minute)
		if evictor.calls["bug"] != calls {
			t.Error("a drain whose time was up has gone on")
		}

		node, _ = object.Get[*corev1.Node](store.View(), nodeResource.Key("", "n1"))
		node.Annotations = map[string]string{object.DrainAnnotation: object.Drain{ID: "b", Force: true}.String()}
		put(node)
		lead(10 * time.Second)
		if left, c, asked = state(); !slices.Equal(left, []string{"elsewhere"}) || asked || c.Status != corev1.ConditionTrue {
			t.Fatalf("the second drain left %q, request %v, condition %s %q", left, asked, c.Status, c.Message)
		}
		node, _ = object.Get[*corev1.Node](store.View(), nodeResource.Key("", "n1"))
		node.Spec.Unschedulable = false
		put(node)
		lead(time.Second)
		if _, c, _ = state(); c.Reason != "" {
			t.Errorf("the node takes pods again and still says %s", c.Reason)
		}
	})
}
