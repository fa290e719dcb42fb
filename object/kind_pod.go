package object

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindPod = define(Resource{Version: "v1", Kind: "Pod", Plural: "pods", Singular: "pod", ShortNames: []string{"po"}, Namespaced: true, Categories: inAll, Status: true},
	func() *corev1.Pod { return new(corev1.Pod) },
	rules[*corev1.Pod]{
		supported: below("spec", supportedPodSpec) + `
			status
		`,
		defaults:       defaultPod,
		validate:       func(pod *corev1.Pod) field.ErrorList { return validatePodSpec(&pod.Spec, field.NewPath("spec")) },
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

func defaultPod(pod *corev1.Pod) {
	defaultPodSpec(&pod.Spec)
	setIfNil(&pod.Spec.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	for i := range pod.Spec.Containers {
		res := &pod.Spec.Containers[i].Resources
		for name, limit := range res.Limits {
			if _, ok := res.Requests[name]; ok || name != corev1.ResourceCPU && name != corev1.ResourceMemory {
				continue // other resources are not supported yet: the limit is refused, once
			}
			if res.Requests == nil {
				res.Requests = corev1.ResourceList{}
			}
			res.Requests[name] = limit.DeepCopy()
		}
	}
	setIfZero(&pod.Status.Phase, corev1.PodPending)
}

// validatePodUpdate allows what Kubernetes allows: new images, further
// tolerations. All else of a pod's spec is fixed, for its containers run.
func validatePodUpdate(pod, old *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	now, was := pod.Spec.DeepCopy(), old.Spec.DeepCopy()
	if len(now.Containers) == len(was.Containers) {
		for i := range now.Containers {
			now.Containers[i].Image = was.Containers[i].Image
		}
	}
	for i, t := range was.Tolerations {
		if !slices.ContainsFunc(now.Tolerations, func(n corev1.Toleration) bool { return sameValue(n, t) }) {
			errs = append(errs, field.Forbidden(field.NewPath("spec", "tolerations"), fmt.Sprintf("tolerations of a pod can be added, not changed or removed, as number %d was", i)))
			break
		}
	}
	now.Tolerations = was.Tolerations
	for _, path := range differences(reflect.ValueOf(*now), reflect.ValueOf(*was), "spec") {
		errs = append(errs, &field.Error{
			Type: field.ErrorTypeForbidden, Field: path,
			Detail: "pod updates may not change fields other than `spec.containers[*].image` and added `spec.tolerations`: delete the pod and create it again, or change its owner",
		})
	}
	return errs
}

func podRow(pod *corev1.Pod, now time.Time) []string {
	ready, restarts := 0, int32(0)
	var last time.Time // of the last restart
	for i := range pod.Status.ContainerStatuses {
		s := &pod.Status.ContainerStatuses[i]
		if s.Ready && s.State.Running != nil {
			ready++
		}
		restarts += s.RestartCount
		if t := s.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
	}
	restartText := itoa(restarts)
	if restarts > 0 && !last.IsZero() {
		restartText += " (" + since(last, now) + " ago)"
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
		pod.Name, fmt.Sprintf("%d/%d", ready, len(pod.Spec.Containers)), PodStatus(pod), restartText, ageOf(pod, now),
		orNone(pod.Status.PodIP), orNone(pod.Spec.NodeName), orNone(pod.Status.NominatedNodeName), gates,
	}
}

// PodStatus returns the one word, kubectl's, that says best how a pod is:
// "Running", "Pending", "ContainerCreating", "CrashLoopBackOff", "Error",
// "Completed", "Terminating", …
func PodStatus(pod *corev1.Pod) string {
	word := cmp.Or(pod.Status.Reason, string(pod.Status.Phase))
	running := false
	// The first container that has something to say has the last word.
	for _, s := range slices.Backward(pod.Status.ContainerStatuses) {
		switch state := s.State; {
		case state.Waiting != nil && state.Waiting.Reason != "":
			word = state.Waiting.Reason
		case state.Terminated != nil && state.Terminated.Reason != "":
			word = state.Terminated.Reason
		case state.Terminated != nil && state.Terminated.Signal != 0:
			word = fmt.Sprintf("Signal:%d", state.Terminated.Signal)
		case state.Terminated != nil:
			word = fmt.Sprintf("ExitCode:%d", state.Terminated.ExitCode)
		case state.Running != nil && s.Ready:
			running = true
		}
	}
	if word == "Completed" && running { // one is done, others go on
		word = "NotReady"
		if PodReady(pod) {
			word = "Running"
		}
	}
	switch {
	case !Deleting(pod):
	case pod.Status.Reason == "NodeLost":
		word = "Unknown"
	case !PodPhaseFinal(pod):
		word = "Terminating"
	}
	return word
}

func (d *describer) pod(pod *corev1.Pod) {
	d.line(0, "Name:", pod.Name)
	d.line(0, "Namespace:", pod.Namespace)
	node := "<none>"
	if pod.Spec.NodeName != "" {
		node = pod.Spec.NodeName
		if pod.Status.HostIP != "" {
			node += "/" + pod.Status.HostIP
		}
	}
	d.line(0, "Node:", node)
	if t := pod.Status.StartTime; t != nil {
		d.line(0, "Start Time:", d.time(*t))
	}
	d.labels(pod)
	if t := pod.DeletionTimestamp; t != nil {
		if left := t.Sub(d.now); left > 0 {
			d.line(0, "Status:", fmt.Sprintf("Terminating (killed in %s)", since(d.now.Add(-left), d.now)))
		} else {
			d.line(0, "Status:", fmt.Sprintf("Terminating (lasts %s)", since(t.Time, d.now)))
		}
		if g := pod.DeletionGracePeriodSeconds; g != nil {
			d.line(0, "Termination Grace Period:", fmt.Sprintf("%ds", *g))
		}
	} else {
		d.line(0, "Status:", string(pod.Status.Phase))
	}
	if pod.Status.Reason != "" {
		d.line(0, "Reason:", pod.Status.Reason)
	}
	if pod.Status.Message != "" {
		d.line(0, "Message:", pod.Status.Message)
	}
	d.line(0, "IP:", pod.Status.PodIP)
	if len(pod.Status.PodIPs) > 0 {
		d.line(0, "IPs:")
		for _, ip := range pod.Status.PodIPs {
			d.line(1, "IP:", ip.IP)
		}
	}
	d.controlledBy(pod)
	d.line(0, "Containers:")
	for i := range pod.Spec.Containers {
		d.container(1, &pod.Spec.Containers[i], pod)
	}
	if len(pod.Status.Conditions) > 0 {
		d.line(0, "Conditions:")
		d.line(1, "Type", "Status", "Reason", "Message")
		for _, c := range pod.Status.Conditions {
			d.line(1, string(c.Type), string(c.Status), c.Reason, c.Message)
		}
	}
	d.line(0, "QoS Class:", string(QOSClass(pod)))
	d.pairs(0, "Node-Selectors:", "=", pod.Spec.NodeSelector)
	d.list(0, "Tolerations:", tolerationTexts(pod.Spec.Tolerations))
}

// container writes a container of a pod, or of a template if pod is nil. level is
// that of its name.
func (d *describer) container(level int, c *corev1.Container, pod *corev1.Pod) {
	var status *corev1.ContainerStatus
	if pod != nil {
		for i := range pod.Status.ContainerStatuses {
			if s := &pod.Status.ContainerStatuses[i]; s.Name == c.Name {
				status = s
			}
		}
	}
	d.line(level, c.Name+":")
	if status != nil {
		d.line(level+1, "Container ID:", status.ContainerID)
	}
	d.line(level+1, "Image:", c.Image)
	if status != nil {
		d.line(level+1, "Image ID:", status.ImageID)
	}
	var ports []string
	for _, p := range c.Ports {
		text := fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)
		if p.Name != "" {
			text += " (" + p.Name + ")"
		}
		ports = append(ports, text)
	}
	d.line(level+1, "Ports:", orNone(strings.Join(ports, ", ")))
	for _, words := range []struct {
		name  string
		words []string
	}{{"Command:", c.Command}, {"Args:", c.Args}} {
		if len(words.words) == 0 {
			continue
		}
		d.line(level+1, words.name)
		for _, w := range words.words {
			for line := range strings.SplitSeq(w, "\n") {
				d.line(level+2, line)
			}
		}
	}
	if c.WorkingDir != "" {
		d.line(level+1, "Working Dir:", c.WorkingDir)
	}
	if status != nil {
		d.state(level+1, "State:", status.State)
		if status.LastTerminationState.Terminated != nil {
			d.state(level+1, "Last State:", status.LastTerminationState)
		}
		d.line(level+1, "Ready:", yesNo(status.Ready))
		d.line(level+1, "Restart Count:", itoa(status.RestartCount))
	}
	d.quantities(level+1, "Limits:", c.Resources.Limits)
	d.quantities(level+1, "Requests:", c.Resources.Requests)
	d.env(level+1, c.Env, pod)
}

func (d *describer) state(level int, name string, s corev1.ContainerState) {
	switch {
	case s.Running != nil:
		d.line(level, name, "Running")
		d.line(level+1, "Started:", d.time(s.Running.StartedAt))
	case s.Waiting != nil:
		d.line(level, name, "Waiting")
		if s.Waiting.Reason != "" {
			d.line(level+1, "Reason:", s.Waiting.Reason)
		}
		if s.Waiting.Message != "" {
			d.line(level+1, "Message:", s.Waiting.Message)
		}
	case s.Terminated != nil:
		t := s.Terminated
		d.line(level, name, "Terminated")
		if t.Reason != "" {
			d.line(level+1, "Reason:", t.Reason)
		}
		if t.Message != "" {
			d.line(level+1, "Message:", t.Message)
		}
		d.line(level+1, "Exit Code:", itoa(t.ExitCode))
		if t.Signal != 0 {
			d.line(level+1, "Signal:", itoa(t.Signal))
		}
		if !t.StartedAt.IsZero() {
			d.line(level+1, "Started:", d.time(t.StartedAt))
		}
		if !t.FinishedAt.IsZero() {
			d.line(level+1, "Finished:", d.time(t.FinishedAt))
		}
	default:
		d.line(level, name, "Waiting")
	}
}

func (d *describer) env(level int, env []corev1.EnvVar, pod *corev1.Pod) {
	if len(env) == 0 {
		d.line(level, "Environment:", "<none>")
		return
	}
	d.line(level, "Environment:")
	for _, e := range env {
		value := e.Value
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			path := e.ValueFrom.FieldRef.FieldPath
			value = "(" + path + ")"
			if pod != nil {
				if v, ok := FieldValue(pod, path); ok {
					value = v + " " + value
				}
			}
		}
		d.line(level+1, e.Name+":", strings.TrimSpace(strings.ReplaceAll(value, "\n", " ")))
	}
}

func tolerationTexts(tolerations []corev1.Toleration) []string {
	var texts []string
	for _, t := range tolerations {
		text := t.Key
		if t.Value != "" {
			text += "=" + t.Value
		}
		if t.Effect != "" {
			text += ":" + string(t.Effect)
		}
		if t.Operator == corev1.TolerationOpExists {
			text = strings.TrimSpace(text + " op=Exists")
		}
		if t.TolerationSeconds != nil {
			text += fmt.Sprintf(" for %ds", *t.TolerationSeconds)
		}
		texts = append(texts, text)
	}
	return texts
}
