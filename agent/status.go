package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Reasons as Kubernetes gives them, so that people and programs know them.
const (
	reasonContainerCreating = "ContainerCreating"
	reasonErrImagePull      = "ErrImagePull"
	reasonErrImageNeverPull = "ErrImageNeverPull"
	reasonImagePullBackOff  = "ImagePullBackOff"
	reasonCrashLoopBackOff  = "CrashLoopBackOff"
	reasonRunContainerError = "RunContainerError"
	reasonConfigError       = "CreateContainerConfigError"
	reasonSandbox           = "FailedCreatePodSandBox"
	reasonStatusUnknown     = "ContainerStatusUnknown"
)

// podStatus computes the status to report for in.Pod, which must not be nil. It
// is pure. Transition times are taken from in.Memory.Status, or else from the
// pod's recorded status, where a condition has not changed since.
//
// The condition PodScheduled, and any other that the agent does not know, is
// carried over: it has another writer.
func podStatus(in podInput, hostIP netip.Addr, now time.Time) corev1.PodStatus {
	pod, m := in.Pod, in.Memory
	before := m.Status
	if before == nil {
		before = &pod.Status
	}
	s := corev1.PodStatus{
		ObservedGeneration: pod.Generation,
		HostIP:             hostIP.String(),
		HostIPs:            []corev1.HostIP{{IP: hostIP.String()}},
		StartTime:          before.StartTime,
		QOSClass:           qosClass(pod),
		NominatedNodeName:  before.NominatedNodeName,
		// An eviction's reason, if one was recorded.
		Reason: before.Reason, Message: before.Message,
	}
	if s.StartTime == nil {
		t := metav1.NewTime(m.FirstSeen).Rfc3339Copy()
		s.StartTime = &t
	}
	switch {
	case pod.Spec.HostNetwork:
		s.PodIP, s.PodIPs = s.HostIP, []corev1.PodIP{{IP: s.HostIP}}
	case m.Attached != nil:
		for _, ip := range m.Attached.IPs {
			s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip.String()})
		}
		if len(s.PodIPs) > 0 {
			s.PodIP = s.PodIPs[0].IP
		}
	case terminating(in) || finished(in):
		s.PodIP, s.PodIPs = before.PodIP, before.PodIPs // what it had
	}

	for i := range pod.Spec.Containers {
		spec := &pod.Spec.Containers[i]
		s.ContainerStatuses = append(s.ContainerStatuses,
			statusOfContainer(in, spec, containerStatus(before.ContainerStatuses, spec.Name), now))
	}
	s.Phase = phase(in, before.Phase, s.ContainerStatuses)
	s.Conditions = conditions(in, before.Conditions, s, now)
	return s
}

// statusOfContainer is the status of one container. before is what was said last
// about it, or nil.
func statusOfContainer(in podInput, spec *corev1.Container, before *corev1.ContainerStatus, now time.Time) corev1.ContainerStatus {
	pod, m := in.Pod, in.Memory
	c := m.Containers[spec.Name]
	s := corev1.ContainerStatus{Name: spec.Name, Image: spec.Image, Started: new(bool)}
	run, ok := latestRun(in.Observed, spec.Name)
	switch {
	case ok:
		s.RestartCount = int32(run.ID.Attempt)
		s.ImageID, s.ContainerID = run.ImageID, run.Handle
		if prev, ok := runBefore(in.Observed, spec.Name, run.ID.Attempt); ok && prev.State == runtime.StateExited {
			s.LastTerminationState.Terminated = terminated(prev, m)
		} else if before != nil && run.ID.Attempt > 0 {
			// The run before is no longer there; what was said of it stays true.
			s.LastTerminationState = before.LastTerminationState
			if before.State.Terminated != nil && int(before.RestartCount) < run.ID.Attempt {
				s.LastTerminationState = before.State
			}
		}
	case before != nil && (m.Removed || c == nil || c.Attempt >= 0):
		// Removed or lost: what was said last stays true, but for running.
		s = *before.DeepCopy()
		s.Ready, s.Started = false, new(bool)
		if s.State.Terminated == nil && s.ContainerID != "" && s.State.Waiting == nil {
			s.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				ExitCode: 137, Reason: reasonStatusUnknown, ContainerID: s.ContainerID,
				Message:    "the container runtime no longer has the container: how it ended is not known",
				FinishedAt: metav1.NewTime(now).Rfc3339Copy(),
			}}
			if r := before.State.Running; r != nil {
				s.State.Terminated.StartedAt = r.StartedAt
			}
		}
		if terminating(in) || finished(in) || c == nil {
			return s
		}
	}
	over := terminating(in) || finished(in)
	wait := func(reason, message string) {
		if t := s.State.Terminated; t != nil {
			s.LastTerminationState.Terminated = t
		}
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	switch {
	case ok && run.State == runtime.StateRunning, ok && run.State == runtime.StateUnknown && wasRunning(before):
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(run.StartedAt).Rfc3339Copy()}
		s.Started = new(true)
		s.Ready = true
		return s
	case ok && run.State == runtime.StateExited:
		s.State.Terminated = terminated(run, m)
	}
	if over {
		if s.State == (corev1.ContainerState{}) {
			wait(reasonContainerCreating, "")
		}
		return s
	}
	switch {
	case c.Start.Failures > 0:
		wait(c.Start.Reason, c.Start.Message)
	case c.Pull.Failures == 1 || c.Pull.Failures > 0 && c.Pull.Reason == reasonErrImageNeverPull:
		wait(c.Pull.Reason, c.Pull.Message)
	case c.Pull.Failures > 1:
		wait(reasonImagePullBackOff, fmt.Sprintf("back-off pulling image %q: %s", spec.Image, c.Pull.Message))
	case s.State.Terminated != nil:
		if !c.Replaced && !restarts(pod, s.State.Terminated.ExitCode == 0) {
			break
		}
		if delay := restartDelay(c.Ends); now.Before(c.Ended.Add(delay)) {
			wait(reasonCrashLoopBackOff, fmt.Sprintf("back-off %v restarting failed container=%s pod=%s_%s(%s)",
				delay, spec.Name, pod.Name, pod.Namespace, pod.UID))
		}
	case s.State == (corev1.ContainerState{}):
		message := ""
		if m.Network.Failures > 0 {
			message = m.Network.Message
		}
		wait(reasonContainerCreating, message)
	}
	return s
}

func wasRunning(s *corev1.ContainerStatus) bool { return s != nil && s.State.Running != nil }

// terminated describes a run that has ended.
func terminated(run runtime.ContainerState, m *podMemory) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode:    int32(run.ExitCode),
		Reason:      "Error",
		Message:     m.Messages[run.ID],
		FinishedAt:  metav1.NewTime(run.FinishedAt).Rfc3339Copy(),
		ContainerID: run.Handle,
	}
	if !run.StartedAt.IsZero() {
		t.StartedAt = metav1.NewTime(run.StartedAt).Rfc3339Copy()
	}
	switch {
	case run.OOMKilled:
		t.Reason = "OOMKilled"
	case run.StartedAt.IsZero():
		t.Reason = "StartError"
	case run.ExitCode == 0:
		t.Reason = "Completed"
	case run.Message != "":
		t.Reason = reasonStatusUnknown
	}
	if t.Message == "" {
		t.Message = run.Message
	}
	return t
}

// phase follows Kubernetes' pod lifecycle: Pending until every container has
// been started once, Succeeded or Failed once all have ended for good, and never
// back from there.
func phase(in podInput, before corev1.PodPhase, all []corev1.ContainerStatus) corev1.PodPhase {
	if final(before) {
		return before
	}
	var waiting, running, ended, succeeded int
	for i := range all {
		t := all[i].State.Terminated
		if t == nil && all[i].State.Waiting != nil {
			t = all[i].LastTerminationState.Terminated
		}
		switch {
		case all[i].State.Running != nil:
			running++
		case t != nil:
			ended++
			if t.ExitCode == 0 {
				succeeded++
			}
		default:
			waiting++
		}
	}
	switch {
	case running == 0 && waiting == 0 && (terminating(in) || finished(in)):
		if succeeded == ended {
			return corev1.PodSucceeded
		}
		return corev1.PodFailed
	case waiting > 0:
		return corev1.PodPending
	default:
		return corev1.PodRunning
	}
}

// conditions computes the conditions of which the agent is the writer, in the
// order in which they come true, after those of others.
func conditions(in podInput, before []corev1.PodCondition, s corev1.PodStatus, now time.Time) []corev1.PodCondition {
	var unready []string
	for i := range s.ContainerStatuses {
		if !s.ContainerStatuses[i].Ready {
			unready = append(unready, s.ContainerStatuses[i].Name)
		}
	}
	ready := corev1.PodCondition{Status: corev1.ConditionTrue}
	switch {
	case s.Phase == corev1.PodSucceeded:
		ready = corev1.PodCondition{Status: corev1.ConditionFalse, Reason: "PodCompleted"}
	case s.Phase == corev1.PodFailed:
		ready = corev1.PodCondition{Status: corev1.ConditionFalse, Reason: "PodFailed"}
	case len(unready) > 0:
		ready = corev1.PodCondition{
			Status: corev1.ConditionFalse, Reason: "ContainersNotReady",
			Message: "containers with unready status: [" + strings.Join(unready, " ") + "]",
		}
	}
	truth := func(b bool) corev1.PodCondition {
		if b {
			return corev1.PodCondition{Status: corev1.ConditionTrue}
		}
		return corev1.PodCondition{Status: corev1.ConditionFalse}
	}
	m := in.Memory
	sandbox := in.Pod.Spec.HostNetwork || m.Attached != nil
	own := []struct {
		kind corev1.PodConditionType
		is   corev1.PodCondition
	}{
		{corev1.PodReadyToStartContainers, truth(sandbox && (m.Created || in.Observed.UID != ""))},
		{corev1.PodInitialized, truth(true)},
		{corev1.ContainersReady, ready},
		{corev1.PodReady, ready},
	}
	var out []corev1.PodCondition
	for _, c := range before {
		isOwn := false
		for _, o := range own {
			isOwn = isOwn || o.kind == c.Type
		}
		if !isOwn {
			out = append(out, c)
		}
	}
	for _, o := range own {
		c := o.is
		c.Type = o.kind
		c.ObservedGeneration = in.Pod.Generation
		c.LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
		for _, b := range before {
			if b.Type == c.Type && b.Status == c.Status {
				c.LastTransitionTime = b.LastTransitionTime
			}
		}
		out = append(out, c)
	}
	return out
}

// qosClass is Kubernetes' quality-of-service class of a pod.
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass // immutable once set
	}
	any, guaranteed := false, true
	for i := range pod.Spec.Containers {
		r := pod.Spec.Containers[i].Resources
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, request := quantity(r.Limits, name), quantity(r.Requests, name)
			if limit.IsZero() && request.IsZero() {
				guaranteed = false
				continue
			}
			any = true
			if limit.IsZero() || !request.IsZero() && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	default:
		return corev1.PodQOSBurstable
	}
}

func quantity(list corev1.ResourceList, name corev1.ResourceName) resource.Quantity {
	return list[name]
}
