package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/agent/probe"
	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/object"
)

// Reasons as Kubernetes gives them, so that people and programs know them.
const (
	reasonContainerCreating = "ContainerCreating"
	reasonPodInitializing   = "PodInitializing"
	reasonDeadlineExceeded  = "DeadlineExceeded"
	reasonEvicted           = "Evicted"
	reasonErrImagePull      = "ErrImagePull"
	reasonErrImageNeverPull = "ErrImageNeverPull"
	reasonImagePullBackOff  = "ImagePullBackOff"
	reasonCrashLoopBackOff  = "CrashLoopBackOff"
	reasonRunContainerError = "RunContainerError"
	reasonConfigError       = "CreateContainerConfigError"
	reasonSandbox           = "FailedCreatePodSandBox"
	reasonMount             = "FailedMount" // of events only
	reasonStatusUnknown     = "ContainerStatusUnknown"
)

// podStatus computes the status to report for in.Pod, which must not be nil. It
// is pure. Transition times are taken from in.Memory.Status, or else from the
// pod's recorded status, where a condition has not changed since.
//
// Conditions that the agent does not know, PodScheduled among them, are carried
// over: they have other writers.
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
		QOSClass:           cmp.Or(pod.Status.QOSClass, object.QOSClass(pod)), // immutable once set
		NominatedNodeName:  before.NominatedNodeName,
		// An eviction's reason, if one was recorded.
		Reason: before.Reason, Message: before.Message,
	}
	if s.StartTime == nil {
		t := metav1.NewTime(startTime(in)).Rfc3339Copy()
		s.StartTime = &t
	}
	if m.Overdue {
		s.Reason, s.Message = reasonDeadlineExceeded, "Pod was active on the node longer than the specified deadline"
	}
	if m.Evicted != "" {
		s.Reason, s.Message = reasonEvicted, m.Evicted
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

	for _, p := range parts(pod) {
		said := recordedStatus(before, p.spec.Name)
		c := statusOfContainer(in, p, said, now)
		givenTo(in, p, &c, said)
		switch p.role {
		case mainRole:
			s.ContainerStatuses = append(s.ContainerStatuses, c)
		case ephemeralRole:
			c.Ready, c.Started = false, nil // it serves nobody
			s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, c)
		case initRole, sidecarRole:
			s.InitContainerStatuses = append(s.InitContainerStatuses, c)
		}
	}
	s.Phase = phase(in, before.Phase, s.ContainerStatuses)
	s.Conditions = conditions(in, before.Conditions, s, now)
	return s
}

// statusOfContainer is the status of one container. before is what was said last
// about it, or nil.
func statusOfContainer(in podInput, p part, before *corev1.ContainerStatus, now time.Time) corev1.ContainerStatus {
	pod, m, spec := in.Pod, in.Memory, p.spec
	c := m.Containers[spec.Name]
	s := corev1.ContainerStatus{Name: spec.Name, Image: spec.Image, Started: new(bool)}
	if spec.Lifecycle != nil {
		s.StopSignal = spec.Lifecycle.StopSignal
	}
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
	ending := terminating(in) || finished(in)
	wait := func(reason, message string) {
		if t := s.State.Terminated; t != nil {
			s.LastTerminationState.Terminated = t
		}
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	switch {
	case ok && run.State == runtime.StateRunning, ok && run.State == runtime.StateUnknown && wasRunning(before):
		if c.Fresh == run.ID.Attempt && hookPending(in, p, run) && !ending {
			wait(notYet(pod), "its postStart hook is under way")
			return s
		}
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(run.StartedAt).Rfc3339Copy()}
		*s.Started = p.role != initRole && started(in, p)
		s.Ready = *s.Started && (spec.ReadinessProbe == nil || verdict(in, run, probe.Readiness) == probe.Success)
		return s
	case ok && run.State == runtime.StateExited:
		s.State.Terminated = terminated(run, m)
		s.Ready = p.role == initRole && run.ExitCode == 0
	}
	if ending {
		if s.State == (corev1.ContainerState{}) {
			wait(notYet(pod), "")
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
		if !restarts(in, p, c) || p.role == initRole && initialized(in) {
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
		wait(notYet(pod), message)
	}
	return s
}

// notYet is why a container has not been started.
func notYet(pod *corev1.Pod) string {
	if len(pod.Spec.InitContainers) > 0 {
		return reasonPodInitializing
	}
	return reasonContainerCreating
}

// pastInit says whether what comes after a container need not wait for it.
func pastInit(in podInput, p part) bool {
	switch p.role {
	case initRole:
		return initialized(in) || initDone(in, p)
	case sidecarRole:
		return initialized(in) || started(in, p)
	default:
		return true
	}
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
// been started once, Succeeded or Failed once all have ended for good, sidecars
// included, and never back from there.
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
	alive := slices.ContainsFunc(in.Observed.Containers, func(c runtime.ContainerState) bool {
		return c.State == runtime.StateRunning || c.State == runtime.StateUnknown
	})
	failed := in.Memory.Overdue || in.Memory.Evicted != "" || initFailed(in)
	switch {
	case failed && !alive:
		return corev1.PodFailed
	case !alive && running == 0 && waiting == 0 && (terminating(in) || finished(in)):
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
	var unready, uninitialized []string
	for _, p := range parts(in.Pod) {
		if p.role == ephemeralRole {
			continue
		}
		if !pastInit(in, p) {
			uninitialized = append(uninitialized, p.spec.Name)
		}
		if c := recordedStatus(&s, p.spec.Name); p.role != initRole && !c.Ready {
			unready = append(unready, p.spec.Name)
		}
	}
	initial := corev1.PodCondition{Status: corev1.ConditionTrue}
	switch {
	case s.Phase == corev1.PodSucceeded:
		initial.Reason = "PodCompleted"
	case len(uninitialized) > 0 && !((terminating(in) || finished(in)) && wasTrue(before, corev1.PodInitialized)):
		initial = corev1.PodCondition{
			Status: corev1.ConditionFalse, Reason: "ContainersNotInitialized",
			Message: "containers with incomplete status: [" + strings.Join(uninitialized, " ") + "]",
		}
	}
	containersReady := corev1.PodCondition{Status: corev1.ConditionTrue}
	switch {
	case s.Phase == corev1.PodSucceeded:
		containersReady = corev1.PodCondition{Status: corev1.ConditionFalse, Reason: "PodCompleted"}
	case s.Phase == corev1.PodFailed:
		containersReady = corev1.PodCondition{Status: corev1.ConditionFalse, Reason: "PodFailed"}
	case len(unready) > 0:
		containersReady = corev1.PodCondition{
			Status: corev1.ConditionFalse, Reason: "ContainersNotReady",
			Message: "containers with unready status: [" + strings.Join(unready, " ") + "]",
		}
	}
	ready := containersReady
	if ready.Status == corev1.ConditionTrue {
		ready = gates(in.Pod)
	}
	truth := func(b bool) corev1.PodCondition {
		if b {
			return corev1.PodCondition{Status: corev1.ConditionTrue}
		}
		return corev1.PodCondition{Status: corev1.ConditionFalse}
	}
	m := in.Memory
	sandbox := in.Pod.Spec.HostNetwork || m.Attached != nil
	type condition struct {
		kind corev1.PodConditionType
		is   corev1.PodCondition
	}
	own := []condition{
		{corev1.PodReadyToStartContainers, truth(sandbox && (m.Created || in.Observed.UID != ""))},
		{corev1.PodInitialized, initial},
		{corev1.ContainersReady, containersReady},
		{corev1.PodReady, ready},
	}
	if m.Evicted != "" {
		c := corev1.PodCondition{Status: corev1.ConditionTrue, Reason: corev1.PodReasonTerminationByKubelet, Message: m.Evicted}
		own = slices.Insert(own, 0, condition{corev1.DisruptionTarget, c})
	}
	for _, c := range resizeConditions(in) {
		own = append(own, condition{c.Type, c})
	}
	var out []corev1.PodCondition
	for _, c := range in.Pod.Status.Conditions {
		isOwn := c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress // as long as they hold
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

// gates is the condition Ready of a pod whose containers are ready: whether the
// conditions that its readiness gates name are true, which others write.
func gates(pod *corev1.Pod) corev1.PodCondition {
	var missing []string
	for _, gate := range pod.Spec.ReadinessGates {
		c := object.PodCondition(pod, gate.ConditionType)
		switch {
		case c == nil:
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		case c.Status != corev1.ConditionTrue:
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, c.Status))
		}
	}
	if len(missing) == 0 {
		return corev1.PodCondition{Status: corev1.ConditionTrue}
	}
	return corev1.PodCondition{Status: corev1.ConditionFalse, Reason: "ReadinessGatesNotReady", Message: strings.Join(missing, ", ")}
}

func wasTrue(all []corev1.PodCondition, kind corev1.PodConditionType) bool {
	return slices.ContainsFunc(all, func(c corev1.PodCondition) bool { return c.Type == kind && c.Status == corev1.ConditionTrue })
}

func quantity(list corev1.ResourceList, name corev1.ResourceName) resource.Quantity {
	return list[name]
}
