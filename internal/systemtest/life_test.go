package systemtest

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestPodLife takes a pod with init containers, a sidecar, probes of each kind and
// hooks through its life in real containers. What it decides when is for the
// scripts of package agent; this shows that the parts work with a real runtime and
// network.
func TestPodLife(t *testing.T) {
	m := newMachine(t)
	c := m.up("--peers", "1", "--nodes", "1")
	m.must("create", "--detach", "-f", "testdata/life.yaml") // one of its containers never stays up
	status := func() (pod corev1.Pod) {
		if err := json.Unmarshal([]byte(m.must("get", "pod", "life", "-o", "json")), &pod); err != nil {
			t.Fatal(err)
		}
		return pod
	}
	main := func(pod corev1.Pod) corev1.ContainerStatus { return byName(pod.Status.ContainerStatuses, "main") }
	crash := func(pod corev1.Pod) corev1.ContainerStatus { return byName(pod.Status.ContainerStatuses, "crash") }
	pod := status()
	for deadline := time.Now().Add(patience); !main(pod).Ready || crash(pod).RestartCount == 0; pod = status() {
		if time.Now().After(deadline) {
			t.Fatalf("after %v the pod is\n%s", patience, m.must("describe", "pod", "life"))
		}
		time.Sleep(100 * time.Millisecond)
	}
	if s := byName(pod.Status.InitContainerStatuses, "side"); !s.Ready || s.State.Running == nil || s.RestartCount != 0 {
		t.Errorf("the sidecar is %+v, want it ready", s)
	}
	if s := byName(pod.Status.InitContainerStatuses, "first"); s.State.Terminated == nil || s.State.Terminated.Reason != "Completed" {
		t.Errorf("the init container is %+v, want it completed: it found the sidecar", s)
	}
	if s := main(pod); s.RestartCount != 0 || s.StopSignal == nil || *s.StopSignal != corev1.SIGINT {
		t.Errorf("the container with probes is %+v, want it never restarted", s)
	}
	ended := crash(pod).LastTerminationState.Terminated
	if ended == nil {
		ended = crash(pod).State.Terminated
	}
	if ended == nil || ended.Reason != "Error" || ended.ExitCode != 1 || !strings.Contains(ended.Message, "told to crash") {
		t.Errorf("the crashed container ended as %+v, want its last output as the message", ended)
	}
	m.must("delete", "pod", "life")
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

func byName(all []corev1.ContainerStatus, name string) corev1.ContainerStatus {
	for _, s := range all {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}
