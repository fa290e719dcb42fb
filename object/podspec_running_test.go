package object

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestPodParts runs testdata/parts/*.txtar: what becomes of the pod "old" by its
// subresource, for each of the wishes after it.
func TestPodParts(t *testing.T) {
	golden.Run(t, "testdata/parts/*.txtar", func(t *testing.T, in golden.Input) string {
		var out strings.Builder
		sub := strings.TrimSpace(string(in.File("subresource")))
		old := parseObjects(t, in.File("old"))[0].(*corev1.Pod)
		Default(old)
		for _, name := range in.Names() {
			if name == "subresource" || name == "old" {
				continue
			}
			wish := parseObjects(t, in.File(name))[0].(*corev1.Pod)
			next := WithPodPart(old, wish, sub)
			Default(next)
			faults := append(Validate(next), ValidatePodPart(next, old, sub)...)
			fmt.Fprintf(&out, "%s: ", name)
			if len(faults) > 0 {
				fmt.Fprintln(&out, faults)
				continue
			}
			fmt.Fprintln(&out, "fine")
			for _, c := range next.Spec.Containers {
				fmt.Fprintf(&out, "  %s %s: %s\n", c.Name, c.Image, resourcesText(&c.Resources))
			}
			for _, c := range next.Spec.InitContainers {
				fmt.Fprintf(&out, "  %s %s: %s\n", c.Name, c.Image, resourcesText(&c.Resources))
			}
			for _, c := range next.Spec.EphemeralContainers {
				fmt.Fprintf(&out, "  %s %s\n", c.Name, c.Image)
			}
		}
		return out.String()
	})
}

func resourcesText(r *corev1.ResourceRequirements) string {
	var words []string
	for _, name := range sortedNames(r.Requests) {
		q := r.Requests[name]
		words = append(words, fmt.Sprintf("%s=%s", name, q.String()))
	}
	for _, name := range sortedNames(r.Limits) {
		q := r.Limits[name]
		words = append(words, fmt.Sprintf("limit.%s=%s", name, q.String()))
	}
	return strings.Join(words, " ")
}

// TestPodResourcesTaken: while a pod's resources change, it takes the most of what it
// asks for, was given and runs with; what the node can never give does not count.
func TestPodResourcesTaken(t *testing.T) {
	list := func(cpu string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	}
	for _, c := range []struct {
		name, asks, allocated, runs string
		infeasible                  bool
		want                        string
	}{
		{"as it was given", "1", "1", "1", false, "1"},
		{"asks for more, deferred", "3", "1", "1", false, "3"},
		{"asks for less, not yet given", "1", "3", "3", false, "3"},
		{"was given less, still runs with more", "1", "1", "2", false, "2"},
		{"asks for what can never be", "100", "1", "1", true, "1"},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "a", Resources: corev1.ResourceRequirements{Requests: list(c.asks), Limits: list(c.asks)}},
			{Name: "b", Resources: corev1.ResourceRequirements{Requests: list("10"), Limits: list("10")}},
		}}}
		running := corev1.ResourceRequirements{Requests: list(c.runs), Limits: list(c.runs)}
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "a", AllocatedResources: list(c.allocated), Resources: &running}}
		if c.infeasible {
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: corev1.PodReasonInfeasible}}
		}
		want := resource.MustParse(c.want)
		want.Add(resource.MustParse("10"))
		if got := PodResourcesTaken(pod)[corev1.ResourceCPU]; got.Cmp(want) != 0 {
			t.Errorf("%s: takes %s, want %s", c.name, got.String(), want.String())
		}
		if got := usageOf(pod)[corev1.ResourceRequestsCPU]; got.Cmp(want) != 0 {
			t.Errorf("%s: a quota counts %s, want %s", c.name, got.String(), want.String())
		}
		if got := usageOf(pod)[corev1.ResourceLimitsCPU]; got.Cmp(want) != 0 {
			t.Errorf("%s: a quota counts a limit of %s, want %s", c.name, got.String(), want.String())
		}
	}
}
