package scheduler

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
)

// shape is a workload of Kubernetes' scheduler_perf: pods that are there before, and
// pods that are measured.
type shape struct {
	name   string
	before int
	fill   func(i int, pod *corev1.Pod)
	pod    func(i int, pod *corev1.Pod)
	churn  bool // a pod ends for each that comes
}

func podTerms(app, key string) []corev1.PodAffinityTerm {
	return []corev1.PodAffinityTerm{{LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"color": app}}, TopologyKey: key}}
}

var shapes = []shape{
	{name: "basic", before: 1000},
	{name: "node_affinity", before: 1000, pod: func(_ int, pod *corev1.Pod) {
		pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
			{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"zone1", "zone2"}}}},
		}}}}
	}},
	{name: "pod_affinity", before: 1000, pod: func(_ int, pod *corev1.Pod) {
		pod.Labels = map[string]string{"color": "blue"}
		pod.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: podTerms("blue", "zone")}}
	}},
	{name: "anti_affinity", before: 1000, pod: func(i int, pod *corev1.Pod) { // of one color, a pod for each node
		color := fmt.Sprint("green", i/4000)
		pod.Labels = map[string]string{"color": color}
		pod.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: podTerms(color, "host")}}
	}},
	{name: "topology_spread", before: 1000, pod: func(_ int, pod *corev1.Pod) {
		pod.Labels = map[string]string{"color": "blue"}
		pod.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 5, TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: podTerms("blue", "")[0].LabelSelector}}
	}},
	{name: "preemption", before: 20000, fill: func(_ int, pod *corev1.Pod) {
		pod.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("900m")
	}, pod: func(_ int, pod *corev1.Pod) {
		pod.Spec.Priority = new(int32(10))
		pod.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("900m")
	}},
	{name: "churn", before: 20000, churn: true},
}

func shapeNode(i int) *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%05d", i)}}
	node.Labels = map[string]string{"zone": fmt.Sprint("zone", 1+i%3), "host": node.Name}
	node.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110")}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	return node
}

func shapePod(name string, i int, change func(int, *corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%05d", name, i), Namespace: "default", CreationTimestamp: metav1.NewTime(testNow)}}
	pod.Spec.Containers = []corev1.Container{{Name: "pause", Image: "pause:1", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("500Mi"),
	}}}}
	if change != nil {
		change(i, pod)
	}
	return pod
}

// BenchmarkShapes places 10,000 pods on 5,000 nodes, for each shape: objects in,
// decisions out, no store. One operation is all of it.
func BenchmarkShapes(b *testing.B) {
	const nodes, pods = 5000, 10000
	for _, s := range shapes {
		b.Run(s.name, func(b *testing.B) {
			placed, spent := 0, time.Duration(0)
			for b.Loop() {
				b.StopTimer()
				c := newCluster()
				for i := range nodes {
					c.setNode(shapeNode(i))
				}
				for i := range s.before {
					c.setPod(shapePod("before", i, s.fill))
				}
				for len(c.pending) > 0 {
					c.place(c.untried(passSize))
				}
				coming := make([]*corev1.Pod, pods)
				for i := range coming {
					coming[i] = shapePod("measured", i, s.pod)
				}
				begin := cpuTime()
				b.StartTimer()
				for i, pod := range coming {
					c.setPod(pod)
					if s.churn {
						c.removePod(object.Key(fmt.Sprintf("pods/default/before-%05d", i)))
					}
					if i%passSize != passSize-1 && i != len(coming)-1 {
						continue
					}
					c.wake(testNow)
					for _, d := range c.place(c.untried(passSize)) {
						if d.err != nil || d.node == "" && d.expect == "" {
							b.Fatalf("%s: %s %v", d.pod.key, d.message, d.err)
						}
						placed++
					}
				}
				spent += cpuTime() - begin
			}
			b.ReportMetric(float64(placed)/b.Elapsed().Seconds(), "pods/s")
			b.ReportMetric(float64(spent.Microseconds())/float64(placed), "cpu-us/pod") // what others do on the machine does not count
		})
	}
}

// cpuTime returns what the process has spent of the processors, its garbage collector
// included.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
