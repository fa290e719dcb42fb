package agent

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

func testReporter() *reporter {
	r := newReporter(nil, slog.New(slog.DiscardHandler), newMetrics(prometheus.NewRegistry()))
	r.renew()
	return r
}

func testID(i int) podName {
	return podName{Namespace: "default", Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprintf("uid-%03d", i))}
}

// TestReportGenerations: what changes while its report is under way is reported
// again; the same status is not news.
func TestReportGenerations(t *testing.T) {
	r := testReporter()
	r.set(testID(1), corev1.PodStatus{Phase: corev1.PodPending}, false)
	b := r.take()
	if b == nil || len(b.request.Pods) != 1 {
		t.Fatalf("the batch is %v, want the new pod", b)
	}
	r.set(testID(1), corev1.PodStatus{Phase: corev1.PodRunning}, false)
	r.ack(b, nil)
	b = r.take()
	if b == nil {
		t.Fatal("nothing to report, though the pod changed while its report was under way")
	}
	r.ack(b, nil)
	r.set(testID(1), corev1.PodStatus{Phase: corev1.PodRunning}, false)
	if b := r.take(); b != nil {
		t.Errorf("the same status is reported again: %v", b.request)
	}
	r.set(testID(1), corev1.PodStatus{Phase: corev1.PodRunning}, true)
	if b := r.take(); b == nil || !b.request.Pods[0].GetRemoved() {
		t.Errorf("batch is %v, want removed: the same status with that is news", b)
	}
	r.forget("uid-001")
	if b := r.take(); b != nil {
		t.Errorf("a forgotten pod is reported: %v", b.request)
	}
}

// TestReportEvents: events go out with their pod's next report, each
// acknowledged once, and are kept until then.
func TestReportEvents(t *testing.T) {
	r := testReporter()
	event := func(n int) *agentv1.PodEvent { return &agentv1.PodEvent{Reason: fmt.Sprint(n)} }
	reasons := func(b *batch) string {
		var out []string
		for _, e := range b.request.Pods[0].GetEvents() {
			out = append(out, e.GetReason())
		}
		return strings.Join(out, " ")
	}
	r.event("uid-001", event(1)) // before there is a status
	if b := r.take(); b != nil {
		t.Fatalf("a pod without status is reported: %v", b.request)
	}
	r.set(testID(1), corev1.PodStatus{}, false)
	first := r.take()
	r.event("uid-001", event(2))
	again := r.take() // the answer to first was lost
	if reasons(first) != "1" || reasons(again) != "1 2" {
		t.Errorf("reported events are %q, then %q; want %q, then %q", reasons(first), reasons(again), "1", "1 2")
	}
	r.ack(again, nil)
	if b := r.take(); b != nil {
		t.Errorf("acknowledged events are reported again: %v", b.request)
	}
	for i := range 2 * maxEvents {
		r.event("uid-001", event(i))
	}
	if b := r.take(); len(b.request.Pods[0].GetEvents()) != maxEvents || b.request.Pods[0].GetEvents()[maxEvents-1].GetReason() != fmt.Sprint(2*maxEvents-1) {
		t.Errorf("of too many events %q are kept, want the newest %d", reasons(b), maxEvents)
	}
}

// TestReportBatches: one call holds so many pods and bytes, and all get their
// turn.
func TestReportBatches(t *testing.T) {
	for _, test := range []struct {
		name    string
		pods    int
		message string
		batches int
	}{
		{"many small", 250, "", 3},
		{"few large", 5, strings.Repeat("x", reportBytes/2), 5},
		{"larger than a batch", 1, strings.Repeat("x", 2*reportBytes), 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := testReporter()
			for i := range test.pods {
				r.set(testID(i), corev1.PodStatus{Message: test.message}, false)
			}
			seen, batches := map[string]bool{}, 0
			for b := r.take(); b != nil; b = r.take() {
				batches++
				for _, p := range b.request.GetPods() {
					seen[p.GetUid()] = true
				}
				r.ack(b, nil)
			}
			if len(seen) != test.pods || batches != test.batches {
				t.Errorf("%d pods in %d batches, want %d in %d", len(seen), batches, test.pods, test.batches)
			}
		})
	}
}
