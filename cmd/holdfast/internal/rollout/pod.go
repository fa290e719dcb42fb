package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

const (
	// factReady is the one fact whose sentence gets a count.
	factReady = "ready"
	// factStarted holds once any container of the pod has started.
	factStarted = "any started"
)

// logLines is how much of a crashed container's last words is shown.
const logLines = 10

// podLine is something to say about a pod.
type podLine struct {
	fact string // said once for each pod
	text string
	// words is what the container wrote last, indented, on lines of its own.
	words string
	bad   bool // it explains why the pod is not ready
}

// podLines returns all that can be said about a pod as it is, in the order in
// which it happens.
func podLines(pod *corev1.Pod) []podLine {
	if object.Deleting(pod) {
		return []podLine{{fact: "stopping", text: "stopping", bad: true}}
	}
	var out []podLine
	if c := object.PodCondition(pod, corev1.PodScheduled); c != nil && c.Status == corev1.ConditionFalse {
		text := "no node for it: "
		if pod.Status.NominatedNodeName != "" { // it waits for its volumes, or for others to make room
			text = "not on its node yet: "
		}
		return []podLine{{fact: "unscheduled " + c.Message, text: text + cmp.Or(c.Message, c.Reason), bad: true}}
	}
	if pod.Spec.NodeName == "" {
		return nil
	}
	out = append(out, podLine{fact: "scheduled", text: "scheduled to " + pod.Spec.NodeName})
	all := statuses(pod)
	several := len(all) > 1
	for _, s := range all {
		out = append(out, containerLines(s, several)...)
	}
	switch {
	case object.PodReady(pod):
		out = append(out, podLine{fact: factReady, text: "ready"})
	case pod.Status.Phase == corev1.PodSucceeded:
		out = append(out, podLine{fact: "succeeded", text: "has completed"})
	case pod.Status.Phase == corev1.PodFailed:
		out = append(out, podLine{fact: "failed", text: "has failed: " + whyFailed(pod), bad: true})
	}
	return out
}

// containerLines returns what can be said about one container.
func containerLines(s corev1.ContainerStatus, several bool) []podLine {
	who := ""
	if several {
		who = "container " + s.Name + " "
	}
	var out []podLine
	run := fmt.Sprint(s.Name, s.RestartCount)
	if ended := s.LastTerminationState.Terminated; ended != nil && s.RestartCount > 0 {
		// Told when the restart shows, since the end itself may go unseen.
		out = append(out, crash(who, s.Name, ended, int(s.RestartCount)-1))
	}
	switch {
	case s.State.Running != nil:
		text := who + "started"
		if s.RestartCount > 0 {
			text = fmt.Sprintf("%sstarted again (restart %d)", who, s.RestartCount)
		}
		out = append(out, podLine{fact: "started " + run, text: text})
	case s.State.Waiting != nil:
		switch w := s.State.Waiting; w.Reason {
		case "", "ContainerCreating", "PodInitializing":
		case "CrashLoopBackOff":
			text := who + "waits before its next restart"
			out = append(out, podLine{fact: "backoff " + run, text: text, bad: len(out) == 0})
		default:
			text := who + w.Reason
			if w.Message != "" {
				text += ": " + w.Message
			}
			out = append(out, podLine{fact: "waiting " + s.Name + w.Reason + w.Message, text: text, bad: true})
		}
	case s.State.Terminated != nil:
		if ended := s.State.Terminated; ended.ExitCode != 0 {
			out = append(out, crash(who, s.Name, ended, int(s.RestartCount)))
		}
	}
	return out
}

// crash tells how a run of a container ended, with its last words.
func crash(who, name string, ended *corev1.ContainerStateTerminated, run int) podLine {
	text := fmt.Sprintf("%sended with exit code %d", who, ended.ExitCode)
	if ended.Reason != "" && ended.Reason != "Error" && ended.Reason != "Completed" {
		text += " (" + ended.Reason + ")"
	}
	line := podLine{fact: fmt.Sprint("crash ", name, run), text: text, bad: true}
	if words := strings.TrimRight(ended.Message, "\n"); words != "" {
		lines := strings.Split(words, "\n")
		if len(lines) > logLines {
			lines = lines[len(lines)-logLines:]
		}
		line.words = "; its last words:\n    | " + strings.Join(lines, "\n    | ")
	}
	return line
}

// whyFailed says why a pod has failed.
func whyFailed(pod *corev1.Pod) string {
	return cmp.Or(pod.Status.Message, pod.Status.Reason, endOf(pod))
}

// endOf says how a failed pod's containers ended.
func endOf(pod *corev1.Pod) string {
	for _, s := range statuses(pod) {
		if ended := s.State.Terminated; ended != nil && ended.ExitCode != 0 {
			return crash("container "+s.Name+" ", s.Name, ended, 0).text
		}
	}
	return "no reason is known"
}

// statuses returns the statuses of all containers, init containers first.
func statuses(pod *corev1.Pod) []corev1.ContainerStatus {
	return slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses)
}
