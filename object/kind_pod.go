package object

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/fields"
)

var kindPod = define(Resource{Version: "v1", Kind: "Pod", Plural: "pods", Singular: "pod", ShortNames: []string{"po"}, Namespaced: true, Categories: inAll, Status: true},
	func() *corev1.Pod { return new(corev1.Pod) },
	rules[*corev1.Pod]{
		supported: below("spec", supportedPodSpec) + supportedEphemeral + `
			status
		`,
		defaults:       defaultPod,
		stamp:          stampPod,
		validate:       validatePod,
		validateUpdate: validatePodUpdate,
		selectable: func(pod *corev1.Pod, set fields.Set) {
			set["spec.nodeName"] = pod.Spec.NodeName
			set["spec.restartPolicy"] = string(pod.Spec.RestartPolicy)
			set["spec.schedulerName"] = pod.Spec.SchedulerName
			set["spec.serviceAccountName"] = pod.Spec.ServiceAccountName
			set["spec.hostNetwork"] = strconv.FormatBool(pod.Spec.HostNetwork)
			set["status.phase"] = string(pod.Status.Phase)
			set["status.podIP"] = pod.Status.PodIP
			set["status.nominatedNodeName"] = pod.Status.NominatedNodeName
		},
		columns:  columns("NAME", "READY", "STATUS", "RESTARTS", "AGE", "|", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"),
		row:      podRow,
		describe: func(d *describer, pod *corev1.Pod, _ []Object) { d.pod(pod) },
	})

// stampPod writes into a new pod's status what follows from its spec.
func stampPod(pod *corev1.Pod) {
	setIfZero(&pod.Status.QOSClass, QOSClass(pod))
	if len(pod.Spec.SchedulingGates) > 0 && PodCondition(pod, corev1.PodScheduled) == nil {
		SetPodCondition(pod, corev1.PodCondition{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated,
			Message: "Scheduling is blocked due to non-empty scheduling gates",
		})
	}
}

func podRow(pod *corev1.Pod, now time.Time) []string {
	sum := summarize(pod)
	restarts := itoa(sum.restarts)
	if sum.restarts > 0 && !sum.lastRestart.IsZero() {
		restarts += " (" + since(sum.lastRestart, now) + " ago)"
	}
	gates := "<none>"
	if n := len(pod.Spec.ReadinessGates); n > 0 {
		met := 0
		for _, gate := range pod.Spec.ReadinessGates {
			if c := PodCondition(pod, gate.ConditionType); c != nil && c.Status == corev1.ConditionTrue {
				met++
			}
		}
		gates = fmt.Sprintf("%d/%d", met, n)
	}
	return []string{
		pod.Name, fmt.Sprintf("%d/%d", sum.ready, sum.containers), sum.word, restarts, ageOf(pod, now),
		orNone(pod.Status.PodIP), orNone(pod.Spec.NodeName), orNone(pod.Status.NominatedNodeName), gates,
	}
}

// PodStatus returns the one word, kubectl's, that says best how a pod is:
// "Running", "Pending", "ContainerCreating", "Init:0/2", "CrashLoopBackOff",
// "Error", "Completed", "Terminating", …
func PodStatus(pod *corev1.Pod) string { return summarize(pod).word }

// podSummary is a pod in a line.
type podSummary struct {
	word              string
	ready, containers int // sidecars count
	restarts          int32
	lastRestart       time.Time
}

func summarize(pod *corev1.Pod) podSummary {
	sum := podSummary{word: cmp.Or(pod.Status.Reason, string(pod.Status.Phase)), containers: len(pod.Spec.Containers)}
	if c := PodCondition(pod, corev1.PodScheduled); c != nil && c.Reason == corev1.PodReasonSchedulingGated {
		sum.word = corev1.PodReasonSchedulingGated
	}
	sidecars := map[string]bool{}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; isSidecar(c) {
			sidecars[c.Name] = true
			sum.containers++
		}
	}
	restarted := func(s *corev1.ContainerStatus) {
		sum.restarts += s.RestartCount
		if t := s.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(sum.lastRestart) {
			sum.lastRestart = t.FinishedAt.Time
		}
	}
	waiting := "" // for an init container
	for i := range pod.Status.InitContainerStatuses {
		s := &pod.Status.InitContainerStatuses[i]
		restarted(s)
		switch state := s.State; {
		case state.Terminated != nil && state.Terminated.ExitCode == 0:
			continue
		case sidecars[s.Name] && s.Started != nil && *s.Started:
			if s.Ready {
				sum.ready++
			}
			continue
		case state.Terminated != nil:
			waiting = "Init:" + endWord(state.Terminated)
		case state.Waiting != nil && state.Waiting.Reason != "" && state.Waiting.Reason != "PodInitializing":
			waiting = "Init:" + state.Waiting.Reason
		default:
			waiting = fmt.Sprintf("Init:%d/%d", i, len(pod.Spec.InitContainers))
		}
		break
	}
	if c := PodCondition(pod, corev1.PodInitialized); waiting != "" && (c == nil || c.Status != corev1.ConditionTrue) {
		sum.word = waiting
	} else {
		sum.main(pod, sidecars, restarted)
	}
	switch {
	case !Deleting(pod):
	case pod.Status.Reason == "NodeLost":
		sum.word = "Unknown"
	case !PodPhaseFinal(pod):
		sum.word = "Terminating"
	}
	return sum
}

// main looks at the containers that run once the pod is initialized; the
// restarts of those that ran before no longer count.
func (sum *podSummary) main(pod *corev1.Pod, sidecars map[string]bool, restarted func(*corev1.ContainerStatus)) {
	sum.restarts, sum.lastRestart = 0, time.Time{}
	for i := range pod.Status.InitContainerStatuses {
		if s := &pod.Status.InitContainerStatuses[i]; sidecars[s.Name] {
			restarted(s)
		}
	}
	running := false
	// The first container that has something to say has the last word.
	for i := range slices.Backward(pod.Status.ContainerStatuses) {
		s := &pod.Status.ContainerStatuses[i]
		restarted(s)
		switch state := s.State; {
		case state.Waiting != nil && state.Waiting.Reason != "":
			sum.word = state.Waiting.Reason
		case state.Terminated != nil:
			sum.word = endWord(state.Terminated)
		case state.Running != nil && s.Ready:
			running = true
			sum.ready++
		}
	}
	if sum.word == "Completed" && running { // one is done, others go on
		sum.word = "NotReady"
		if PodReady(pod) {
			sum.word = "Running"
		}
	}
}

// endWord says how a container ended.
func endWord(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	default:
		return fmt.Sprintf("ExitCode:%d", t.ExitCode)
	}
}
