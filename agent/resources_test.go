package agent

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"
)

func TestPodResources(t *testing.T) {
	for _, c := range []struct{ name, spec, want string }{
		{"nothing", `{containers: [{name: a}]}`, "cpu 0 shares 2 memory 0"},
		{
			"sums",
			`{containers: [{name: a, resources: {requests: {cpu: 100m}, limits: {cpu: 1, memory: 1Mi}}}, {name: b, resources: {limits: {cpu: 500m, memory: 2Mi}}}]}`,
			"cpu 1500 shares 614 memory 3145728",
		},
		{
			"one container without a limit makes a pod without one",
			`{containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Mi}}}, {name: b, resources: {requests: {cpu: 1}, limits: {memory: 1Mi}}}]}`,
			"cpu 0 shares 2048 memory 2097152",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var pod corev1.Pod
			if err := yaml.Unmarshal([]byte(c.spec), &pod.Spec); err != nil {
				t.Fatal(err)
			}
			r := podResources(&pod, 9)
			if got := fmt.Sprintf("cpu %d shares %d memory %d", r.CPUMillis, r.CPUShares, r.MemoryBytes); got != c.want || r.PIDs != 9 {
				t.Errorf("got %s and %d processes, want %s and 9", got, r.PIDs, c.want)
			}
		})
	}
}

func TestOOMScore(t *testing.T) {
	const gi = 1 << 30
	for _, c := range []struct {
		name   string
		class  corev1.PodQOSClass
		memory string // request
		want   int
	}{
		{"guaranteed", corev1.PodQOSGuaranteed, "1Gi", -997},
		{"best effort", corev1.PodQOSBestEffort, "", 1000},
		{"burstable without memory", corev1.PodQOSBurstable, "", 999},
		{"a quarter of the node", corev1.PodQOSBurstable, "1Gi", 750},
		{"nearly nothing", corev1.PodQOSBurstable, "1Ki", 999},
		{"the whole node", corev1.PodQOSBurstable, "4Gi", 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := &corev1.Container{}
			if c.memory != "" {
				spec.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(c.memory)}
			}
			if got := oomScore(c.class, spec, 4*gi); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestAllocatable(t *testing.T) {
	list := func(text string) corev1.ResourceList {
		var l corev1.ResourceList
		if err := yaml.Unmarshal([]byte(text), &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	got := allocatable(list(`{cpu: "2", memory: 1Gi, pods: "110"}`), list(`{cpu: 500m, memory: 2Gi, example.com/x: "1"}`))
	if fmt.Sprint(got.Cpu(), got.Memory(), got.Pods(), len(got)) != "1500m 0 110 3" {
		t.Errorf("allocatable is %v", got)
	}
}
