package object

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// revisionAnnotation is where Kubernetes keeps the number of a rollout.
const revisionAnnotation = "deployment.kubernetes.io/revision"

// Describe returns what there is to know about obj, laid out as "kubectl
// describe" does it. related are objects of its surroundings, of which those that
// belong to it are shown: a Deployment's replica sets, a replica set's pods, a
// Node's pods. events are shown if they are about obj. Times are written in now's
// location.
func Describe(obj Object, related []Object, events []*corev1.Event, now time.Time) string {
	var out strings.Builder
	d := &describer{now: now}
	d.w = tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)
	switch obj := obj.(type) {
	case *corev1.Pod:
		d.pod(obj)
	case *corev1.Node:
		d.node(obj, only[*corev1.Pod](related))
	case *appsv1.Deployment:
		d.deployment(obj, only[*appsv1.ReplicaSet](related))
	case *appsv1.ReplicaSet:
		d.replicaSet(obj, only[*corev1.Pod](related))
	case *corev1.ConfigMap:
		d.configMap(obj)
	case *corev1.Namespace:
		d.meta(obj)
		d.line(0, "Status:", string(obj.Status.Phase))
		for _, c := range obj.Status.Conditions {
			d.line(0, "Waits For:", c.Message)
		}
	case *corev1.Event:
		d.event(obj)
	}
	if _, isEvent := obj.(*corev1.Event); !isEvent {
		d.events(obj, events)
	}
	_ = d.w.Flush() // a strings.Builder takes everything
	return trimLines(out.String())
}

// trimLines removes spaces at the ends of lines.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func only[T Object](objs []Object) []T {
	var some []T
	for _, o := range objs {
		if t, ok := o.(T); ok {
			some = append(some, t)
		}
	}
	return some
}

type describer struct {
	w   *tabwriter.Writer
	now time.Time
}

// line writes cells, the first of them indented; tabwriter aligns them with the
// lines around.
func (d *describer) line(level int, cells ...string) {
	fmt.Fprintln(d.w, strings.Repeat("  ", level)+strings.Join(cells, "\t"))
}

func (d *describer) time(t metav1.Time) string {
	return t.In(d.now.Location()).Format(time.RFC1123Z)
}

// pairs writes a map, one entry a line, the name before the first.
func (d *describer) pairs(level int, name, separator string, set map[string]string) {
	if len(set) == 0 {
		d.line(level, name, "<none>")
	}
	for i, key := range slices.Sorted(maps.Keys(set)) {
		if i > 0 {
			name = ""
		}
		d.line(level, name, key+separator+set[key])
	}
}

func (d *describer) list(level int, name string, items []string) {
	if len(items) == 0 {
		d.line(level, name, "<none>")
	}
	for i, item := range items {
		if i > 0 {
			name = ""
		}
		d.line(level, name, item)
	}
}

func (d *describer) meta(obj Object) {
	d.line(0, "Name:", obj.GetName())
	if ResourceOf(obj).Namespaced {
		d.line(0, "Namespace:", obj.GetNamespace())
	}
	d.labels(obj)
}

func (d *describer) labels(obj Object) {
	d.pairs(0, "Labels:", "=", obj.GetLabels())
	d.pairs(0, "Annotations:", ": ", obj.GetAnnotations())
	if f := obj.GetFinalizers(); len(f) > 0 {
		d.list(0, "Finalizers:", f)
	}
}

// Pods

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

func (d *describer) controlledBy(obj Object) {
	if c := ControllerOf(obj); c != nil {
		d.line(0, "Controlled By:", c.Kind+"/"+c.Name)
	}
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

func yesNo(b bool) string {
	if b {
		return "True"
	}
	return "False"
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

func (d *describer) quantities(level int, name string, list corev1.ResourceList) {
	if len(list) == 0 {
		return
	}
	d.line(level, name)
	for _, key := range slices.Sorted(maps.Keys(list)) {
		q := list[key]
		d.line(level+1, string(key)+":", q.String())
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

// Workloads

func (d *describer) template(t *corev1.PodTemplateSpec) {
	d.line(0, "Pod Template:")
	d.pairs(1, "Labels:", "=", t.Labels)
	if len(t.Annotations) > 0 {
		d.pairs(1, "Annotations:", ": ", t.Annotations)
	}
	d.line(1, "Containers:")
	for i := range t.Spec.Containers {
		d.container(2, &t.Spec.Containers[i], nil)
	}
	d.pairs(1, "Node-Selectors:", "=", t.Spec.NodeSelector)
	d.list(1, "Tolerations:", tolerationTexts(t.Spec.Tolerations))
}

func (d *describer) deployment(dep *appsv1.Deployment, sets []*appsv1.ReplicaSet) {
	d.line(0, "Name:", dep.Name)
	d.line(0, "Namespace:", dep.Namespace)
	d.line(0, "CreationTimestamp:", d.time(dep.CreationTimestamp))
	d.labels(dep)
	d.line(0, "Selector:", metav1.FormatLabelSelector(dep.Spec.Selector))
	s := dep.Status
	d.line(0, "Replicas:", fmt.Sprintf("%s desired | %d updated | %d total | %d available | %d unavailable",
		replicas(dep.Spec.Replicas), s.UpdatedReplicas, s.Replicas, s.AvailableReplicas, s.UnavailableReplicas))
	d.line(0, "StrategyType:", string(dep.Spec.Strategy.Type))
	d.line(0, "MinReadySeconds:", itoa(dep.Spec.MinReadySeconds))
	if r := dep.Spec.Strategy.RollingUpdate; r != nil {
		d.line(0, "RollingUpdateStrategy:", fmt.Sprintf("%s max unavailable, %s max surge", r.MaxUnavailable.String(), r.MaxSurge.String()))
	}
	if dep.Spec.Paused {
		d.line(0, "Paused:", "True")
	}
	d.template(&dep.Spec.Template)
	if len(s.Conditions) > 0 {
		d.line(0, "Conditions:")
		d.line(1, "Type", "Status", "Reason", "Message")
		for _, c := range s.Conditions {
			d.line(1, string(c.Type), string(c.Status), c.Reason, c.Message)
		}
	}
	var current *appsv1.ReplicaSet
	var old []*appsv1.ReplicaSet
	for _, rs := range sets {
		if !controls(dep, rs) {
			continue
		}
		if rs.Annotations[revisionAnnotation] == dep.Annotations[revisionAnnotation] && current == nil {
			current = rs
		} else if rs.Status.Replicas > 0 || rs.Spec.Replicas != nil && *rs.Spec.Replicas > 0 {
			old = append(old, rs)
		}
	}
	slices.SortFunc(old, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(a.Name, b.Name) })
	var oldTexts []string
	for _, rs := range old {
		oldTexts = append(oldTexts, setText(rs))
	}
	d.line(0, "OldReplicaSets:", orNone(strings.Join(oldTexts, ", ")))
	if current != nil {
		d.line(0, "NewReplicaSet:", setText(current))
	} else {
		d.line(0, "NewReplicaSet:", "<none>")
	}
}

func setText(rs *appsv1.ReplicaSet) string {
	return fmt.Sprintf("%s (%d/%s replicas created)", rs.Name, rs.Status.Replicas, replicas(rs.Spec.Replicas))
}

// controls reports whether obj is controlled by owner.
func controls(owner, obj Object) bool {
	c := ControllerOf(obj)
	return c != nil && obj.GetNamespace() == owner.GetNamespace() && c.Kind == ResourceOf(owner).Kind && c.Name == owner.GetName() &&
		(c.UID == owner.GetUID() || c.UID == "" || owner.GetUID() == "")
}

func (d *describer) replicaSet(rs *appsv1.ReplicaSet, pods []*corev1.Pod) {
	d.line(0, "Name:", rs.Name)
	d.line(0, "Namespace:", rs.Namespace)
	d.line(0, "Selector:", metav1.FormatLabelSelector(rs.Spec.Selector))
	d.labels(rs)
	d.controlledBy(rs)
	d.line(0, "Replicas:", fmt.Sprintf("%d current / %s desired", rs.Status.Replicas, replicas(rs.Spec.Replicas)))
	var own []*corev1.Pod
	count := map[corev1.PodPhase]int{}
	for _, pod := range pods {
		if controls(rs, pod) {
			own = append(own, pod)
			count[pod.Status.Phase]++
		}
	}
	if len(own) > 0 || rs.Status.Replicas == 0 {
		d.line(0, "Pods Status:", fmt.Sprintf("%d Running / %d Waiting / %d Succeeded / %d Failed",
			count[corev1.PodRunning], count[corev1.PodPending], count[corev1.PodSucceeded], count[corev1.PodFailed]))
	}
	d.template(&rs.Spec.Template)
	if len(rs.Status.Conditions) > 0 {
		d.line(0, "Conditions:")
		d.line(1, "Type", "Status", "Reason", "Message")
		for _, c := range rs.Status.Conditions {
			d.line(1, string(c.Type), string(c.Status), c.Reason, c.Message)
		}
	}
	if len(own) == 0 {
		return
	}
	d.line(0, "Pods:")
	d.line(1, "Name", "Ready", "Status", "Restarts", "Node", "Age")
	for _, pod := range own {
		row := podRow(pod, d.now)
		d.line(1, row[0], row[1], row[2], row[3], row[6], row[4])
	}
}

// Nodes

func (d *describer) node(node *corev1.Node, pods []*corev1.Pod) {
	d.line(0, "Name:", node.Name)
	d.line(0, "Roles:", orNone(strings.Join(nodeRoles(node), ",")))
	d.labels(node)
	d.line(0, "CreationTimestamp:", d.time(node.CreationTimestamp))
	var taints []string
	for _, t := range node.Spec.Taints {
		taints = append(taints, t.ToString())
	}
	d.list(0, "Taints:", taints)
	d.line(0, "Unschedulable:", fmt.Sprint(node.Spec.Unschedulable))
	if len(node.Status.Conditions) > 0 {
		d.line(0, "Conditions:")
		d.line(1, "Type", "Status", "LastTransitionTime", "Reason", "Message")
		for _, c := range node.Status.Conditions {
			d.line(1, string(c.Type), string(c.Status), d.time(c.LastTransitionTime), c.Reason, c.Message)
		}
	}
	if len(node.Status.Addresses) > 0 {
		d.line(0, "Addresses:")
		for _, a := range node.Status.Addresses {
			d.line(1, string(a.Type)+":", a.Address)
		}
	}
	for _, list := range []struct {
		name string
		list corev1.ResourceList
	}{{"Capacity:", node.Status.Capacity}, {"Allocatable:", node.Status.Allocatable}} {
		if len(list.list) == 0 {
			continue
		}
		d.line(0, list.name)
		for _, key := range slices.Sorted(maps.Keys(list.list)) {
			q := list.list[key]
			d.line(1, string(key)+":", q.String())
		}
	}
	info := node.Status.NodeInfo
	d.line(0, "System Info:")
	for _, pair := range [][2]string{
		{"Machine ID:", info.MachineID},
		{"Boot ID:", info.BootID},
		{"Kernel Version:", info.KernelVersion},
		{"OS Image:", info.OSImage},
		{"Operating System:", info.OperatingSystem},
		{"Architecture:", info.Architecture},
		{"Container Runtime Version:", info.ContainerRuntimeVersion},
		{"Agent Version:", info.KubeletVersion},
	} {
		if pair[1] != "" {
			d.line(1, pair[0], pair[1])
		}
	}
	if len(node.Spec.PodCIDRs) > 0 {
		d.line(0, "PodCIDRs:", strings.Join(node.Spec.PodCIDRs, ","))
	}
	d.nodePods(node, pods)
}

// nodePods writes the pods that take up room on a node, and how much.
func (d *describer) nodePods(node *corev1.Node, pods []*corev1.Pod) {
	var own []*corev1.Pod
	for _, pod := range pods {
		if pod.Spec.NodeName == node.Name && !PodPhaseFinal(pod) {
			own = append(own, pod)
		}
	}
	d.line(0, fmt.Sprintf("Non-terminated Pods: (%d in total)", len(own)))
	room := node.Status.Allocatable
	if len(room) == 0 {
		room = node.Status.Capacity
	}
	requests, limits := corev1.ResourceList{}, corev1.ResourceList{}
	if len(own) > 0 {
		d.line(1, "Namespace", "Name", "CPU Requests", "CPU Limits", "Memory Requests", "Memory Limits", "Age")
		d.line(1, "---------", "----", "------------", "----------", "---------------", "-------------", "---")
	}
	for _, pod := range own {
		r, l := PodResources(pod), podLimits(pod)
		addResources(requests, r)
		addResources(limits, l)
		d.line(1, pod.Namespace, pod.Name,
			share(r, room, corev1.ResourceCPU), share(l, room, corev1.ResourceCPU),
			share(r, room, corev1.ResourceMemory), share(l, room, corev1.ResourceMemory), ageOf(pod, d.now))
	}
	d.line(0, "Allocated resources:")
	d.line(1, "Resource", "Requests", "Limits")
	d.line(1, "--------", "--------", "------")
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		d.line(1, string(name), share(requests, room, name), share(limits, room, name))
	}
	if q, ok := room[corev1.ResourcePods]; ok {
		d.line(1, string(corev1.ResourcePods), fmt.Sprintf("%d of %s", len(own), q.String()), "")
	}
}

// share writes an amount and what part of room it is: "500m (25%)".
func share(list, room corev1.ResourceList, name corev1.ResourceName) string {
	q, have := list[name], room[name]
	if have.IsZero() {
		return q.String()
	}
	percent := 100 * q.AsApproximateFloat64() / have.AsApproximateFloat64()
	return fmt.Sprintf("%s (%d%%)", q.String(), int64(percent))
}

// ConfigMaps and events

func (d *describer) configMap(cm *corev1.ConfigMap) {
	d.meta(cm)
	if cm.Immutable != nil && *cm.Immutable {
		d.line(0, "Immutable:", "true")
	}
	d.line(0, "")
	d.line(0, "Data")
	d.line(0, "====")
	for _, key := range slices.Sorted(maps.Keys(cm.Data)) {
		d.line(0, key+":")
		d.line(0, "----")
		for line := range strings.SplitSeq(strings.TrimSuffix(cm.Data[key], "\n"), "\n") {
			d.line(0, strings.ReplaceAll(line, "\t", "    "))
		}
		d.line(0, "")
	}
	d.line(0, "BinaryData")
	d.line(0, "====")
	for _, key := range slices.Sorted(maps.Keys(cm.BinaryData)) {
		d.line(0, fmt.Sprintf("%s: %d bytes", key, len(cm.BinaryData[key])))
	}
	d.line(0, "")
}

func (d *describer) event(e *corev1.Event) {
	d.meta(e)
	first, last := eventTimes(e)
	d.line(0, "Involved Object:", title(e.InvolvedObject.Kind, e.InvolvedObject.Namespace, e.InvolvedObject.Name))
	d.line(0, "Type:", e.Type)
	d.line(0, "Reason:", e.Reason)
	d.line(0, "Message:", strings.TrimSpace(e.Message))
	d.line(0, "Source:", eventSource(e))
	d.line(0, "First Seen:", since(first, d.now))
	d.line(0, "Last Seen:", since(last, d.now))
	d.line(0, "Count:", itoa(eventCount(e)))
}

// events writes the events about obj, the latest last.
func (d *describer) events(obj Object, events []*corev1.Event) {
	var own []*corev1.Event
	for _, e := range events {
		if about(e, obj) {
			own = append(own, e)
		}
	}
	if len(own) == 0 {
		d.line(0, "Events:", "<none>")
		return
	}
	slices.SortStableFunc(own, func(a, b *corev1.Event) int {
		_, lastA := eventTimes(a)
		_, lastB := eventTimes(b)
		return lastA.Compare(lastB)
	})
	d.line(0, "Events:")
	d.line(1, "Type", "Reason", "Age", "From", "Message")
	d.line(1, "----", "------", "---", "----", "-------")
	for _, e := range own {
		first, last := eventTimes(e)
		age := since(last, d.now)
		if n := eventCount(e); n > 1 {
			age = fmt.Sprintf("%s (x%d over %s)", age, n, since(first, d.now))
		}
		d.line(1, e.Type, e.Reason, age, eventSource(e), strings.TrimSpace(e.Message))
	}
}

// about reports whether e is about obj.
func about(e *corev1.Event, obj Object) bool {
	ref := e.InvolvedObject
	if ref.UID != "" && obj.GetUID() != "" && ref.UID != obj.GetUID() {
		return false
	}
	return ref.Kind == ResourceOf(obj).Kind && ref.Name == obj.GetName() && (ref.Namespace == obj.GetNamespace() || !ResourceOf(obj).Namespaced)
}
