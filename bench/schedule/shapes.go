package main

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// shape is a workload of Kubernetes' scheduler_perf: pods that are there before, and
// pods that are measured. They are those of BenchmarkShapes in package scheduler.
type shape struct {
	name string
	// kube is what kube-scheduler has to reach by its own tests, in pods a second (1.36).
	kube float64
	// before are pods that have nodes already: so many on each of 5 nodes.
	before int
	fill   func(i int, pod *corev1.Pod)
	pod    func(i int, pod *corev1.Pod)
	churn  bool // a pod ends for each that comes
}

func colorTerms(color, key string) []corev1.PodAffinityTerm {
	return []corev1.PodAffinityTerm{{LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"color": color}}, TopologyKey: key}}
}

// cpu900 makes a pod need a quarter of a node, nearly.
func cpu900(pod *corev1.Pod) {
	pod.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("900m")
}

func shapesFor(nodes int) []shape {
	return []shape{
		{name: "basic", kube: 270, before: 1},
		{name: "node_affinity", kube: 220, before: 1, pod: func(_ int, pod *corev1.Pod) {
			pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
				{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"zone1", "zone2"}}}},
			}}}}
		}},
		{name: "pod_affinity", kube: 35, before: 1, pod: func(_ int, pod *corev1.Pod) {
			pod.Labels = map[string]string{"color": "blue"}
			pod.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: colorTerms("blue", "zone")}}
		}},
		{name: "anti_affinity", kube: 60, before: 1, pod: func(i int, pod *corev1.Pod) { // of one color, at most a pod for each node
			color := fmt.Sprint("green", i/max(1, nodes*4/5))
			pod.Labels = map[string]string{"color": color}
			pod.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: colorTerms(color, "host")}}
		}},
		{name: "topology_spread", kube: 85, before: 1, pod: func(_ int, pod *corev1.Pod) {
			pod.Labels = map[string]string{"color": "blue"}
			pod.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{MaxSkew: 5, TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: colorTerms("blue", "")[0].LabelSelector}}
		}},
		{name: "preemption", kube: 160, before: 20, fill: func(_ int, pod *corev1.Pod) { cpu900(pod) }, pod: func(_ int, pod *corev1.Pod) {
			pod.Spec.PriorityClassName = highPriority
			cpu900(pod)
		}},
		{name: "churn", kube: 265, before: 20, churn: true},
	}
}

const (
	namespace    = "bench"
	highPriority = "bench-high"
)

func newNode(i int) *corev1.Node {
	name := fmt.Sprintf("node-%05d", i)
	return &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": fmt.Sprint("zone", 1+i%3), "host": name}},
		// A range of its own, or the controller that gives them away would be measured.
		Spec: corev1.NodeSpec{PodCIDR: fmt.Sprintf("10.%d.%d.0/24", i/256, i%256), PodCIDRs: []string{fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)}},
	}
}

func nodeStatus() corev1.NodeStatus {
	amounts := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("32Gi"), corev1.ResourcePods: resource.MustParse("110")}
	return corev1.NodeStatus{
		Capacity: amounts, Allocatable: amounts,
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Ready", LastTransitionTime: metav1.Now()}},
	}
}

func newPod(name string, i int, change func(int, *corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%05d", name, i), Namespace: namespace},
	}
	pod.Spec.Containers = []corev1.Container{{Name: "pause", Image: "pause:1", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("500Mi"),
	}}}}
	if change != nil {
		change(i, pod)
	}
	return pod
}
