package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestPlanAutoscaler runs testdata/autoscaler/*.txtar. A pod's line says what it uses
// and requests: cpu=100m of=200m memory=50Mi, and started=10m (ago). "before" are
// sizes that were recommended, and changes that were made: 5@2m up=2@30s.
func TestPlanAutoscaler(t *testing.T) {
	golden.Run(t, "testdata/autoscaler/*.txtar", func(t *testing.T, in golden.Input) string {
		hpa := one(t, in.File("autoscaler")).autoscaler()
		target := one(t, in.File("target"))
		current := int32(target.num("replicas", 1))
		var targetErr error
		if target.has("missing") {
			targetErr = errors.New("Deployment web does not exist")
		}
		target.done()
		usage := map[types.UID]PodUsage{}
		var pods []*corev1.Pod
		data, _ := in.Lookup("pods")
		for _, l := range parseLines(t, data) {
			c := corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}}}
			use := corev1.ResourceList{}
			if v, ok := l.get("of"); ok {
				c.Resources.Requests[corev1.ResourceCPU] = resource.MustParse(v)
			}
			for key, name := range map[string]corev1.ResourceName{"cpu": corev1.ResourceCPU, "memory": corev1.ResourceMemory} {
				if v, ok := l.get(key); ok {
					use[name] = resource.MustParse(v)
				}
			}
			started := l.dur("started", time.Hour)
			pod := l.pod()
			pod.Spec.Containers = []corev1.Container{c}
			pod.Status.StartTime = new(metav1.NewTime(testNow.Add(-started)))
			if len(use) > 0 {
				usage[pod.UID] = PodUsage{At: testNow.Add(-5 * time.Second), Window: 15 * time.Second, Containers: map[string]corev1.ResourceList{"c": use}}
			}
			pods = append(pods, pod)
		}
		var history scaleHistory
		if data, ok := in.Lookup("before"); ok {
			for text := range strings.FieldsSeq(string(data)) {
				value, age, _ := strings.Cut(text, "@")
				ago, err := time.ParseDuration(age)
				if err != nil {
					t.Fatal(err)
				}
				var n int32
				if _, err := fmt.Sscanf(value, "up=%d", &n); err == nil {
					history.ups = append(history.ups, scaleEvent{at: testNow.Add(-ago), change: n})
				} else if _, err := fmt.Sscanf(value, "down=%d", &n); err == nil {
					history.downs = append(history.downs, scaleEvent{at: testNow.Add(-ago), change: -n})
				} else if _, err := fmt.Sscanf(value, "%d", &n); err == nil {
					history.recommended = append(history.recommended, recommendation{testNow.Add(-ago), n})
				}
			}
		}
		plan := planAutoscaler(hpa, current, targetErr, pods, usage, history, testNow)
		var b strings.Builder
		if plan.scale != nil {
			fmt.Fprintf(&b, "scale to %d: %s\n", *plan.scale, plan.reason)
		}
		s := plan.hpa.Status
		fmt.Fprintf(&b, "status current=%d desired=%d\n", s.CurrentReplicas, s.DesiredReplicas)
		for _, m := range s.CurrentMetrics {
			switch {
			case m.Resource != nil && m.Resource.Current.AverageUtilization != nil:
				fmt.Fprintf(&b, "metric %s %d%%\n", m.Resource.Name, *m.Resource.Current.AverageUtilization)
			case m.Resource != nil && m.Resource.Current.AverageValue != nil:
				fmt.Fprintf(&b, "metric %s %s\n", m.Resource.Name, m.Resource.Current.AverageValue)
			case m.ContainerResource != nil && m.ContainerResource.Current.AverageUtilization != nil:
				fmt.Fprintf(&b, "metric %s of %s %d%%\n", m.ContainerResource.Name, m.ContainerResource.Container, *m.ContainerResource.Current.AverageUtilization)
			}
		}
		for _, c := range s.Conditions {
			fmt.Fprintf(&b, "condition %s=%s %s: %s\n", c.Type, c.Status, c.Reason, c.Message)
		}
		return b.String()
	})
}

// TestAutoscalerIsQuiet: small movements of what pods use are not written to the log.
func TestAutoscalerIsQuiet(t *testing.T) {
	hpa := one(t, []byte("web cpu=50 max=3")).autoscaler()
	pod := one(t, []byte("web-a ready")).pod()
	pod.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}}}}
	pod.Status.StartTime = new(metav1.NewTime(testNow.Add(-time.Hour)))
	plan := autoscalerPlan{}
	for i, step := range []struct {
		use     string
		changed bool
	}{{"48m", true}, {"50m", false}, {"46m", false}, {"53m", true}, {"52m", false}} {
		usage := map[types.UID]PodUsage{pod.UID: {At: testNow, Containers: map[string]corev1.ResourceList{"c": {corev1.ResourceCPU: resource.MustParse(step.use)}}}}
		if plan = planAutoscaler(hpa, 1, nil, []*corev1.Pod{pod}, usage, plan.history, testNow); plan.changed != step.changed || plan.scale != nil {
			t.Errorf("step %d, use %s: changed %v, scale %v; want changed %v and no scale", i, step.use, plan.changed, plan.scale, step.changed)
		}
	}
}

// measures is a Metrics that counts.
type measures struct{ times atomic.Int32 }

func (m *measures) PodUsage(context.Context) (map[types.UID]PodUsage, error) {
	m.times.Add(1)
	return map[types.UID]PodUsage{}, nil
}

// TestAutoscalersLookWhenMeasured: an autoscaler has measures as soon as it is there, and
// looks at each of them once it has been taken, not up to a period later.
func TestAutoscalersLookWhenMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &measures{}
		a := newAutoscalers(m, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { a.run(ctx) })
		time.Sleep(7 * time.Second) // somewhere in the period
		if n := m.times.Load(); n != 0 {
			t.Fatalf("%d measures without an autoscaler", n)
		}
		a.want(true)
		synctest.Wait()
		if n := m.times.Load(); n != 1 {
			t.Fatalf("%d measures for the first autoscaler, want one at once", n)
		}
		for want := int32(2); want < 5; want++ {
			time.Sleep(a.nextLook(time.Now()))
			if n, age := m.times.Load(), time.Since(a.usage.Load().at); n != want || age > measureTime {
				t.Errorf("at the next look: %d measures, the last %v old; want %d and at most %v", n, age, want, measureTime)
			}
		}
		cancel()
		running.Wait()
	})
}
