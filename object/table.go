package object

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// Table is what "get" shows: one row an object, one cell a column.
type Table struct {
	Columns []Column
	Rows    [][]string
}

// Column is a column of a Table. Wide ones are for "-o wide".
type Column struct {
	Name string
	Wide bool
}

// Print returns the table that kubectl shows for objects of this kind, one row
// for each of objs in their order. Objects of several kinds get only a name,
// with the kind before it, and an age. No objects, no table.
func Print(objs []Object, now time.Time) Table {
	if len(objs) == 0 {
		return Table{}
	}
	p := genericPrinter
	if first := reflect.TypeOf(objs[0]); !slices.ContainsFunc(objs, func(o Object) bool { return reflect.TypeOf(o) != first }) {
		p = printers[ResourceOf(objs[0]).Kind]
	}
	t := Table{Columns: slices.Clone(p.columns)}
	for _, obj := range objs {
		t.Rows = append(t.Rows, p.row(obj, now))
	}
	return t
}

// WithNamespaces returns t with a first column that shows the namespaces of
// objs, which are those that t was made of. t is not changed.
func (t Table) WithNamespaces(objs []Object) Table {
	out := Table{Columns: append([]Column{{Name: "NAMESPACE"}}, t.Columns...)}
	for i, row := range t.Rows {
		out.Rows = append(out.Rows, append([]string{objs[i].GetNamespace()}, row...))
	}
	return out
}

// printer makes the rows of one kind.
type printer struct {
	columns []Column
	row     func(obj Object, now time.Time) []string
}

// columns makes columns from names; those after "|" are wide.
func columns(names ...string) []Column {
	var all []Column
	wide := false
	for _, name := range names {
		if name == "|" {
			wide = true
			continue
		}
		all = append(all, Column{Name: name, Wide: wide})
	}
	return all
}

func rows[T Object](columns []Column, row func(T, time.Time) []string) printer {
	return printer{columns, func(obj Object, now time.Time) []string { return row(obj.(T), now) }}
}

var genericPrinter = printer{columns("NAME", "AGE"), func(obj Object, now time.Time) []string {
	return []string{ResourceOf(obj).Singular + "/" + obj.GetName(), ageOf(obj, now)}
}}

var printers = map[string]printer{
	"Namespace": rows(columns("NAME", "STATUS", "AGE"), func(ns *corev1.Namespace, now time.Time) []string {
		return []string{ns.Name, string(ns.Status.Phase), ageOf(ns, now)}
	}),
	"Node":      rows(columns("NAME", "STATUS", "ROLES", "AGE", "VERSION", "|", "INTERNAL-IP", "EXTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME"), nodeRow),
	"Pod":       rows(columns("NAME", "READY", "STATUS", "RESTARTS", "AGE", "|", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"), podRow),
	"ConfigMap": rows(columns("NAME", "DATA", "AGE"), configMapRow),
	"ReplicaSet": rows(columns("NAME", "DESIRED", "CURRENT", "READY", "AGE", "|", "CONTAINERS", "IMAGES", "SELECTOR"), func(rs *appsv1.ReplicaSet, now time.Time) []string {
		return append([]string{rs.Name, replicas(rs.Spec.Replicas), itoa(rs.Status.Replicas), itoa(rs.Status.ReadyReplicas), ageOf(rs, now)},
			templateCells(&rs.Spec.Template, rs.Spec.Selector)...)
	}),
	"Deployment": rows(columns("NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "|", "CONTAINERS", "IMAGES", "SELECTOR"), func(d *appsv1.Deployment, now time.Time) []string {
		return append([]string{
			d.Name, itoa(d.Status.ReadyReplicas) + "/" + replicas(d.Spec.Replicas), itoa(d.Status.UpdatedReplicas),
			itoa(d.Status.AvailableReplicas), ageOf(d, now),
		}, templateCells(&d.Spec.Template, d.Spec.Selector)...)
	}),
	"Event": {[]Column{
		{Name: "LAST SEEN"},
		{Name: "TYPE"},
		{Name: "REASON"},
		{Name: "OBJECT"},
		{Name: "SUBOBJECT", Wide: true},
		{Name: "SOURCE", Wide: true},
		{Name: "MESSAGE"},
		{Name: "FIRST SEEN", Wide: true},
		{Name: "COUNT", Wide: true},
		{Name: "NAME", Wide: true},
	}, func(obj Object, now time.Time) []string { return eventRow(obj.(*corev1.Event), now) }},
}

func configMapRow(cm *corev1.ConfigMap, now time.Time) []string {
	return []string{cm.Name, strconv.Itoa(len(cm.Data) + len(cm.BinaryData)), ageOf(cm, now)}
}

func templateCells(template *corev1.PodTemplateSpec, selector *metav1.LabelSelector) []string {
	var names, images []string
	for i := range template.Spec.Containers {
		names = append(names, template.Spec.Containers[i].Name)
		images = append(images, template.Spec.Containers[i].Image)
	}
	return []string{orNone(strings.Join(names, ",")), orNone(strings.Join(images, ",")), metav1.FormatLabelSelector(selector)}
}

// Pods

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

// Nodes

func nodeRow(node *corev1.Node, now time.Time) []string {
	info := node.Status.NodeInfo
	return []string{
		node.Name, NodeStatus(node), orNone(strings.Join(nodeRoles(node), ",")), ageOf(node, now), info.KubeletVersion,
		orNone(nodeAddress(node, corev1.NodeInternalIP)), orNone(nodeAddress(node, corev1.NodeExternalIP)),
		orUnknown(info.OSImage), orUnknown(info.KernelVersion), orUnknown(info.ContainerRuntimeVersion),
	}
}

// NodeStatus returns what kubectl shows as a node's status: "Ready", "NotReady"
// or "Unknown" (before its first report), and ",SchedulingDisabled" after it
// if it is cordoned.
func NodeStatus(node *corev1.Node) string {
	word := "Unknown"
	if c := NodeCondition(node, corev1.NodeReady); c != nil {
		word = "NotReady"
		if c.Status == corev1.ConditionTrue {
			word = "Ready"
		}
	}
	if node.Spec.Unschedulable {
		word += ",SchedulingDisabled"
	}
	return word
}

func nodeRoles(node *corev1.Node) []string {
	var roles []string
	for label, value := range node.Labels {
		if role, ok := strings.CutPrefix(label, "node-role.kubernetes.io/"); ok && role != "" {
			roles = append(roles, role)
		} else if label == "kubernetes.io/role" && value != "" {
			roles = append(roles, value)
		}
	}
	slices.Sort(roles)
	return slices.Compact(roles)
}

func nodeAddress(node *corev1.Node, t corev1.NodeAddressType) string {
	for _, a := range node.Status.Addresses {
		if a.Type == t {
			return a.Address
		}
	}
	return ""
}

// Events

func eventRow(e *corev1.Event, now time.Time) []string {
	first, last := eventTimes(e)
	return []string{
		since(last, now), e.Type, e.Reason, strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name,
		e.InvolvedObject.FieldPath, eventSource(e), strings.TrimSpace(e.Message), since(first, now), itoa(eventCount(e)), e.Name,
	}
}

func eventTimes(e *corev1.Event) (first, last time.Time) {
	first, last = e.FirstTimestamp.Time, e.LastTimestamp.Time
	if first.IsZero() {
		first = e.EventTime.Time
	}
	if e.Series != nil {
		last = e.Series.LastObservedTime.Time
	}
	if last.IsZero() {
		last = first
	}
	return first, last
}

func eventCount(e *corev1.Event) int32 {
	if e.Series != nil {
		return e.Series.Count
	}
	return max(e.Count, 1)
}

func eventSource(e *corev1.Event) string {
	component := cmp.Or(e.Source.Component, e.ReportingController)
	host := cmp.Or(e.Source.Host, e.ReportingInstance)
	if component == "" || host == "" || host == component {
		return cmp.Or(component, host)
	}
	return component + ", " + host
}

// Words

// Age returns how long ago t was, as kubectl writes it: "5s", "3m10s", "4d2h";
// "<unknown>" if t is zero.
func Age(t, now time.Time) string { return since(t, now) }

func since(t, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t))
}

func ageOf(obj Object, now time.Time) string { return since(obj.GetCreationTimestamp().Time, now) }

func itoa(i int32) string { return strconv.Itoa(int(i)) }

func replicas(r *int32) string {
	if r == nil {
		return "1"
	}
	return itoa(*r)
}

func orNone(s string) string { return cmp.Or(s, "<none>") }

func orUnknown(s string) string { return cmp.Or(s, "<unknown>") }
