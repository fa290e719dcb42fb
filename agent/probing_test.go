package agent_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
)

// httpProbe asks port 80 of a pod.
func httpProbe(change func(*corev1.Probe)) *corev1.Probe {
	p := &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80), Path: "/"}},
		PeriodSeconds: 2, TimeoutSeconds: 1, FailureThreshold: 2,
	}
	if change != nil {
		change(p)
	}
	return p
}

// reasons returns the reasons of the events that were reported, each once.
func (p *testPeer) reasons() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, r := range p.reports {
		for _, e := range r.GetEvents() {
			if !slices.Contains(out, e.GetReason()) {
				out = append(out, e.GetReason())
			}
		}
	}
	return out
}

func ready(s corev1.PodStatus) bool { return object.PodReady(&corev1.Pod{Status: s}) }

// TestReadiness: whether a pod is ready follows what its server answers, at the
// probe's pace, and a restart of the agent takes it out of service for no moment.
func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{Name: "main", Image: "web:1", ReadinessProbe: httpProbe(func(p *corev1.Probe) { p.InitialDelaySeconds = 5 })})
		a.says(complete(t, 10, pod))
		n.start()
		is := func(when string, want bool) {
			t.Helper()
			if s, _ := a.status(t, pod.UID); ready(s) != want || s.Phase != corev1.PodRunning {
				t.Errorf("%s: ready is %v in phase %s, want %v and Running", when, ready(s), s.Phase, want)
			}
		}
		settle(4 * time.Second)
		is("within the initial delay", false)
		settle(2 * time.Second)
		is("after the first answer", true)
		n.rt.Answers("uid-web", 503)
		settle(2 * time.Second)
		is("after one failure of two", true)
		settle(2 * time.Second)
		is("after two failures", false)
		n.rt.Answers("uid-web", 200)
		settle(3 * time.Second)
		is("after a success", true)
		n.rt.Answers("uid-web", 0)
		settle(7 * time.Second)
		is("while the server hangs", false)
		if got := a.reasons(); !slices.Contains(got, "Unhealthy") {
			t.Errorf("events are %q, want Unhealthy among them", got)
		}
		n.rt.Answers("uid-web", 200)
		settle(3 * time.Second)
		is("after it hung", true)

		s, _ := a.status(t, pod.UID)
		recorded := pod.DeepCopy()
		recorded.Status = s
		a.send(t, increment(t, 11, recorded)) // as a peer does after each report
		settle(3 * time.Second)
		a.says(complete(t, 12, recorded))
		n.stop()
		before := a.count(func(p *testPeer) int { return len(p.reports) })
		n.start()
		settle(10 * time.Second)
		is("with the next agent", true)
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, r := range a.reports[before:] {
			var s corev1.PodStatus
			if err := s.Unmarshal(r.GetStatus()); err != nil {
				t.Fatal(err)
			}
			if !ready(s) {
				t.Error("the next agent reported the pod as not ready, though it never was")
			}
		}
	})
}

// TestLiveness: a container whose server hangs is started again, and one that
// starts slowly is left alone while its startup probe allows.
func TestLiveness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{
			Name: "main", Image: "web:1",
			StartupProbe:  httpProbe(func(p *corev1.Probe) { p.InitialDelaySeconds, p.FailureThreshold = 1, 10 }),
			LivenessProbe: httpProbe(nil),
		}, corev1.Container{Name: "other", Image: "web:1"})
		a.says(complete(t, 10, pod))
		n.start()
		settle(500 * time.Millisecond)
		n.rt.Answers("uid-web", 500)
		settle(15 * time.Second)
		n.wantRunning("while it starts", "uid-web/main/0", "uid-web/other/0")
		if s, _ := a.status(t, pod.UID); ready(s) || *s.ContainerStatuses[0].Started {
			t.Errorf("while it starts the pod is %+v, want it not started", s.ContainerStatuses)
		}
		n.rt.Answers("uid-web", 200)
		settle(10 * time.Second)
		if s, _ := a.status(t, pod.UID); !ready(s) || !*s.ContainerStatuses[0].Started {
			t.Errorf("after its start the pod is %+v, want it ready", s)
		}
		n.rt.Answers("uid-web", 0)
		settle(5 * time.Second)
		n.rt.Answers("uid-web", 200)
		settle(3 * time.Second)
		n.wantRunning("after it hung", "uid-web/other/0", "uid-web/main/1")
		s, _ := a.status(t, pod.UID)
		if c := s.ContainerStatuses[0]; c.RestartCount != 1 || c.LastTerminationState.Terminated == nil {
			t.Errorf("its status is %+v, want one restart", c)
		}
		if got := a.reasons(); !slices.Contains(got, "Unhealthy") || !slices.Contains(got, "Killing") {
			t.Errorf("events are %q, want Unhealthy and Killing among them", got)
		}
	})
}

// TestProbeCommand: a probe may be a command in the container; one that hangs
// counts as a failure after its timeout, and holds up nothing else.
func TestProbeCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		command := func(text string) *corev1.Probe {
			return &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", text}}},
				PeriodSeconds: 1, TimeoutSeconds: 3, FailureThreshold: 2,
			}
		}
		script := []string{"sh", "-c", "sleep 5; echo yes > /tmp/ready; sleep 1000"}
		pod := newPod("web",
			corev1.Container{Name: "asked", Image: "web:1", Command: script, ReadinessProbe: command("test -f /tmp/ready")},
			corev1.Container{Name: "hangs", Image: "web:1", LivenessProbe: command("sleep 1000")})
		a.says(complete(t, 10, pod))
		n.start()
		settle(4 * time.Second)
		if s, _ := a.status(t, pod.UID); s.ContainerStatuses[0].Ready {
			t.Error("the container is ready before its file is there")
		}
		settle(2500 * time.Millisecond)
		s, _ := a.status(t, pod.UID)
		if !s.ContainerStatuses[0].Ready {
			t.Error("the container is not ready, though its file is there")
		}
		n.wantRunning("after two timeouts", "uid-web/asked/0", "uid-web/hangs/1")
	})
}

// TestInit takes a pod with init containers and a sidecar from its binding to its
// end.
func TestInit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web")
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
		pod.Spec.Containers[0].Image = "fake/exit:0"
		always := corev1.ContainerRestartPolicyAlways
		pod.Spec.InitContainers = []corev1.Container{
			{Name: "proxy", Image: "fake/stubborn:1", RestartPolicy: &always, StartupProbe: httpProbe(func(p *corev1.Probe) {
				p.HTTPGet, p.Exec = nil, &corev1.ExecAction{Command: []string{"true"}}
				p.InitialDelaySeconds = 3
			})},
			{Name: "init", Image: "fake/exit:0"},
		}
		pod.Spec.TerminationGracePeriodSeconds = new(int64(5))
		a.says(complete(t, 10, pod))
		n.start()
		settle(2 * time.Second)
		n.wantRunning("before the sidecar is up", "uid-web/proxy/0")
		settle(1500 * time.Millisecond)
		n.wantRunning("once it is", "uid-web/proxy/0", "uid-web/init/0")
		settle(time.Second)
		n.wantRunning("after the init container", "uid-web/proxy/0", "uid-web/main/0")
		settle(2 * time.Second)
		if s, _ := a.status(t, pod.UID); s.Phase != corev1.PodRunning {
			t.Errorf("phase is %s while the sidecar still runs, want Running", s.Phase)
		}
		settle(5 * time.Second)
		n.wantRunning("at the end")
		if s, _ := a.status(t, pod.UID); s.Phase != corev1.PodSucceeded || len(s.InitContainerStatuses) != 2 {
			t.Errorf("status at the end is %+v, want Succeeded", s)
		}
	})
}

// TestHooks: postStart runs before a container counts as running, preStop before
// it is stopped; one that takes the whole grace period leaves two seconds.
func TestHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		run := func(text string) *corev1.LifecycleHandler {
			return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", text}}}
		}
		pod := newPod("web",
			corev1.Container{Name: "x", Image: "web:1", Lifecycle: &corev1.Lifecycle{PostStart: run("sleep 5"), PreStop: run("sleep 4; exit 1")}},
			corev1.Container{Name: "y", Image: "fake/stubborn:1", Lifecycle: &corev1.Lifecycle{PreStop: run("sleep 1000")}})
		a.says(complete(t, 10, pod))
		n.start()
		settle(4 * time.Second)
		if s, _ := a.status(t, pod.UID); s.Phase != corev1.PodPending || s.ContainerStatuses[0].State.Waiting == nil {
			t.Errorf("status is %+v during postStart, want x waiting", s.ContainerStatuses)
		}
		settle(2 * time.Second)
		if s, _ := a.status(t, pod.UID); !ready(s) {
			t.Errorf("status is %+v after postStart, want it ready", s.ContainerStatuses)
		}
		a.send(t, increment(t, 11, deleted(pod, 10)))
		settle(3 * time.Second)
		n.wantRunning("during preStop", "uid-web/x/0", "uid-web/y/0")
		settle(2 * time.Second)
		n.wantRunning("after the first preStop", "uid-web/y/0")
		settle(6 * time.Second)
		n.wantRunning("within the last two seconds", "uid-web/y/0")
		settle(2 * time.Second)
		n.wantRunning("after them")
		if got := strings.Join(a.reasons(), " "); !strings.Contains(got, "FailedPreStopHook") {
			t.Errorf("events are %q, want FailedPreStopHook among them", got)
		}
	})
}

// TestActiveDeadline: a pod that is active for too long is stopped and has failed.
func TestActiveDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web")
		pod.Spec.ActiveDeadlineSeconds = new(int64(20))
		a.says(complete(t, 10, pod))
		n.start()
		settle(19 * time.Second)
		n.wantRunning("before the deadline", "uid-web/main/0")
		settle(2 * time.Second)
		n.wantRunning("after it")
		if s, _ := a.status(t, pod.UID); s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" {
			t.Errorf("phase is %s, reason %q, want Failed, DeadlineExceeded", s.Phase, s.Reason)
		}
	})
}

// TestTerminationMessages: the containers of a pod share 12 KiB of last words
// equally, and none has more than 4 KiB.
func TestTerminationMessages(t *testing.T) {
	for containers, most := range map[int]int{1: 4096, 2: 4096, 6: 2048} {
		synctest.Test(t, func(t *testing.T) {
			a := newPeer("a")
			n := newNode(t, a)
			long := strings.Repeat("x", 5000)
			var all []corev1.Container
			for i := range containers {
				c := corev1.Container{Name: "c" + string(rune('a'+i)), Image: "web:1", TerminationMessagePath: "/dev/termination-log"}
				c.Command = []string{"sh", "-c", "echo " + long + " > /dev/termination-log; exit 1"}
				if i%2 == 1 { // the other way
					c.Command = []string{"sh", "-c", "echo " + long + "; exit 1"}
					c.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
				}
				all = append(all, c)
			}
			pod := newPod("web", all...)
			pod.Spec.RestartPolicy = corev1.RestartPolicyNever
			a.says(complete(t, 10, pod))
			n.start()
			settle(5 * time.Second)
			s, _ := a.status(t, pod.UID)
			for _, c := range s.ContainerStatuses {
				if c.State.Terminated == nil || len(c.State.Terminated.Message) != most {
					t.Errorf("of %d: %s ended as %.200v, want %d bytes of last words", containers, c.Name, c.State.Terminated, most)
				}
			}
		})
	}
}
