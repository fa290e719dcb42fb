package object

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

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
	kindOfObject(obj).describe(d, obj, related)
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
	d.pairs(0, "Annotations:", ": ", annotationsToShow(obj))
	if f := obj.GetFinalizers(); len(f) > 0 {
		d.list(0, "Finalizers:", f)
	}
}

func (d *describer) controlledBy(obj Object) {
	if c := ControllerOf(obj); c != nil {
		d.line(0, "Controlled By:", c.Kind+"/"+c.Name)
	}
}

func yesNo(b bool) string {
	if b {
		return "True"
	}
	return "False"
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

// Workloads

func (d *describer) template(t *corev1.PodTemplateSpec) {
	d.line(0, "Pod Template:")
	d.pairs(1, "Labels:", "=", t.Labels)
	if len(t.Annotations) > 0 {
		d.pairs(1, "Annotations:", ": ", t.Annotations)
	}
	if t.Spec.ServiceAccountName != "" {
		d.line(1, "Service Account:", t.Spec.ServiceAccountName)
	}
	d.containers(1, &t.Spec, nil)
	d.volumes(1, t.Spec.Volumes)
	d.priority(1, &t.Spec)
	d.placement(1, &t.Spec)
}

// controls reports whether obj is controlled by owner.
func controls(owner, obj Object) bool {
	c := ControllerOf(obj)
	return c != nil && obj.GetNamespace() == owner.GetNamespace() && c.Kind == ResourceOf(owner).Kind && c.Name == owner.GetName() &&
		(c.UID == owner.GetUID() || c.UID == "" || owner.GetUID() == "")
}

// Events

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
