package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// crashesToFail is how often a container of a new pod may crash before the
// rollout counts as failed. One crash is often only a dependency that is not up.
const crashesToFail = 3

// Reasons of the two ordinary events that are told.
const (
	pulling = "Pulling"
	pulled  = "Pulled"
)

// State is how far the targets are.
type State int

const (
	// Waiting means that at least one target is not as asked for yet.
	Waiting State = iota
	// Done means that all targets are as asked for.
	Done
	// Failed means that waiting on will most likely not help.
	Failed
)

// Verdict is the state of the targets together.
type Verdict struct {
	State State
	// Reason says in a sentence why, when State is Failed.
	Reason string
}

// Tracker follows targets. It is not safe for concurrent use.
type Tracker struct {
	targets []target
	objects map[object.Key]object.Object
	events  []*corev1.Event
	known   map[types.UID]bool // pods that were there before
	said    map[string]bool
}

// target is an object to wait for.
type target struct {
	key        object.Key
	title      string // "deployment.apps/web"
	generation int64  // as applied
	seen       bool
}

// Follows tells whether there is anything to wait for after obj is applied.
func Follows(obj object.Object) bool {
	return len(Watches(obj)) > 0 && object.Inert(obj) == ""
}

// Watches returns the kinds, by their plurals, whose objects a Tracker of obj wants
// to be told of, in obj's namespace, beside events; none if there is nothing about
// obj to wait for.
func Watches(obj object.Object) []string {
	switch obj.(type) {
	case *appsv1.Deployment:
		return []string{"deployments", "replicasets", "pods"}
	case *appsv1.ReplicaSet:
		return []string{"replicasets", "pods"}
	case *corev1.ReplicationController:
		return []string{"replicationcontrollers", "pods"}
	case *appsv1.StatefulSet:
		return []string{"statefulsets", "pods"}
	case *appsv1.DaemonSet:
		return []string{"daemonsets", "controllerrevisions", "pods"}
	case *corev1.Pod:
		return []string{"pods"}
	}
	return nil
}

// New returns a Tracker of applied objects, as the cluster answered. It ignores
// those of kinds that need no waiting.
func New(applied []object.Object) *Tracker {
	t := &Tracker{objects: map[object.Key]object.Object{}, known: map[types.UID]bool{}, said: map[string]bool{}}
	for _, obj := range applied {
		if len(Watches(obj)) > 0 {
			t.targets = append(t.targets, target{key: object.KeyOf(obj), title: titleOf(obj), generation: obj.GetGeneration()})
		}
	}
	return t
}

// Known tells of a pod that was there before the change: what it had already
// come to is no news.
func (t *Tracker) Known(pod *corev1.Pod) {
	t.known[pod.UID] = true
	for _, line := range podLines(pod) {
		t.said[string(pod.UID)+line.fact] = true
	}
}

// Observe takes in an object as it is now; gone: as it last was.
func (t *Tracker) Observe(obj object.Object, gone bool) {
	if event, ok := obj.(*corev1.Event); ok {
		if !gone {
			t.events = append(t.events, event)
		}
		return
	}
	if gone {
		delete(t.objects, object.KeyOf(obj))
		return
	}
	key := object.KeyOf(obj)
	t.objects[key] = obj
	for i := range t.targets {
		if t.targets[i].key == key {
			t.targets[i].seen = true
		}
	}
}

// Lines returns what there is to say since the last call.
func (t *Tracker) Lines() []string {
	var out []string
	say := func(about, fact, text string) {
		if id := about + fact; !t.said[id] {
			t.said[id] = true
			out = append(out, text)
		}
	}
	inScope := map[types.UID]string{} // to its title
	for _, target := range t.targets {
		obj, ok := t.objects[target.key]
		if !ok {
			continue
		}
		inScope[obj.GetUID()] = target.title
		for _, c := range troubles(obj) {
			say(string(obj.GetUID()), c, target.title+": "+c)
		}
		pods := t.podsOf(obj)
		ready := t.ready(obj)
		for _, owned := range t.setsOf(obj) {
			inScope[owned.GetUID()] = titleOf(owned)
			for _, c := range troubles(owned) {
				say(string(owned.GetUID()), c, titleOf(owned)+": "+c)
			}
		}
		for _, pod := range pods {
			inScope[pod.UID] = titleOf(pod)
			for _, line := range podLines(pod) {
				if strings.HasPrefix(line.fact, "started ") {
					t.said[string(pod.UID)+factStarted] = true
				}
				text := titleOf(pod) + ": " + line.text + line.words
				if line.fact == factReady && pod.GetUID() != obj.GetUID() && t.isCurrent(obj, pod) {
					text += fmt.Sprintf(" (%s: %d/%d)", target.title, ready, replicasOf(obj))
				}
				say(string(pod.UID), line.fact, text)
			}
		}
	}
	for _, event := range t.events {
		about, ok := inScope[event.InvolvedObject.UID]
		if !ok || !worthTelling(event) {
			continue
		}
		uid := string(event.InvolvedObject.UID)
		switch {
		case t.known[event.InvolvedObject.UID]:
			continue // of another, older story
		case event.Reason == pulling && t.said[uid+factStarted]:
			continue // late news: events take another way than statuses
		case event.Reason == pulled && !t.said[uid+pulling]:
			continue // it was there: nothing to tell
		}
		t.said[uid+event.Reason] = true
		say(string(event.InvolvedObject.UID), event.Reason+event.Message, about+": "+lowerFirst(event.Message))
	}
	// Events of objects that come into scope later are looked at again then.
	t.events = slices.DeleteFunc(t.events, func(e *corev1.Event) bool {
		_, ok := inScope[e.InvolvedObject.UID]
		return ok
	})
	return out
}

// Verdict says how far the targets are.
func (t *Tracker) Verdict() Verdict {
	all := true
	for _, target := range t.targets {
		obj, ok := t.objects[target.key]
		if !ok {
			if target.seen {
				return Verdict{Failed, target.title + ": it was deleted meanwhile"}
			}
			all = false
			continue
		}
		if reason := t.failure(obj); reason != "" && observed(obj, target.generation) {
			return Verdict{Failed, target.title + ": " + reason}
		}
		all = all && converged(obj, target.generation)
	}
	if all {
		return Verdict{State: Done}
	}
	return Verdict{State: Waiting}
}

// Summary returns one line for each target: how far it is.
func (t *Tracker) Summary() []string {
	var out []string
	for _, target := range t.targets {
		obj, ok := t.objects[target.key]
		switch obj := obj.(type) {
		case *corev1.Pod:
			out = append(out, target.title+": "+object.PodStatus(obj))
		default:
			if !ok {
				out = append(out, target.title+": not there")
				continue
			}
			ready := t.ready(obj)
			if converged(obj, target.generation) {
				ready = int(replicasOf(obj)) // the pods' own watch may lag behind
			}
			out = append(out, fmt.Sprintf("%s: %d/%d ready", target.title, ready, replicasOf(obj)))
		}
	}
	return out
}

// ready counts the pods of obj that are ready and of its present template.
func (t *Tracker) ready(obj object.Object) int {
	n := 0
	for _, pod := range t.podsOf(obj) {
		if object.PodReady(pod) && !object.Deleting(pod) && t.isCurrent(obj, pod) {
			n++
		}
	}
	return n
}

// Obstacles returns what stands between the targets and their goal: a line for
// each pod that is not ready, with why.
func (t *Tracker) Obstacles() []string {
	var out []string
	for _, target := range t.targets {
		obj, ok := t.objects[target.key]
		if !ok || converged(obj, target.generation) {
			continue
		}
		for _, pod := range t.podsOf(obj) {
			if object.PodReady(pod) && !object.Deleting(pod) {
				continue
			}
			why := object.PodStatus(pod)
			for _, line := range podLines(pod) {
				if line.bad {
					why = line.text
				}
			}
			if pod.Spec.NodeName != "" && !strings.Contains(why, " on ") {
				why += " (on " + pod.Spec.NodeName + ")"
			}
			out = append(out, titleOf(pod)+": "+why)
		}
		out = append(out, troublesOf(titleOf(obj), obj)...)
		for _, set := range t.setsOf(obj) {
			out = append(out, troublesOf(titleOf(set), set)...)
		}
	}
	return out
}

// Crashed is a run of a container that ended badly and left no last words.
type Crashed struct {
	Pod, Namespace, Container string
	Previous                  bool // another run has begun, or waits to
}

// Crash returns one that stands between the targets and their goal, if there is any.
func (t *Tracker) Crash() (Crashed, bool) {
	for _, target := range t.targets {
		obj, ok := t.objects[target.key]
		if !ok || converged(obj, target.generation) {
			continue
		}
		for _, pod := range t.podsOf(obj) {
			if object.PodReady(pod) || object.Deleting(pod) || !t.isCurrent(obj, pod) {
				continue
			}
			for _, s := range statuses(pod) {
				ended, previous := s.State.Terminated, false
				if ended == nil {
					ended, previous = s.LastTerminationState.Terminated, true
				}
				if ended != nil && ended.ExitCode != 0 && ended.Message == "" {
					return Crashed{pod.Name, pod.Namespace, s.Name, previous}, true
				}
			}
		}
	}
	return Crashed{}, false
}

func troublesOf(title string, obj object.Object) []string {
	var out []string
	for _, trouble := range troubles(obj) {
		out = append(out, title+": "+trouble)
	}
	return out
}

// observed tells whether obj is as it was asked for at least, and its controller has
// seen that. Before, its failures are those of what it was.
func observed(obj object.Object, generation int64) bool {
	seen := obj.GetGeneration()
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		seen = obj.Status.ObservedGeneration
	case *appsv1.StatefulSet:
		seen = obj.Status.ObservedGeneration
	case *appsv1.DaemonSet:
		seen = obj.Status.ObservedGeneration
	}
	return obj.GetGeneration() >= generation && seen >= obj.GetGeneration()
}

// failure says why a target will not be as asked for, or "".
func (t *Tracker) failure(obj object.Object) string {
	if d, ok := obj.(*appsv1.Deployment); ok {
		for _, c := range d.Status.Conditions {
			if c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse && d.Status.ObservedGeneration >= d.Generation {
				return cmp.Or(c.Message, c.Reason)
			}
		}
	}
	for _, pod := range t.podsOf(obj) {
		if object.Deleting(pod) || !t.isCurrent(obj, pod) {
			continue
		}
		if pod.UID == obj.GetUID() && pod.Status.Phase == corev1.PodFailed {
			return "it has failed: " + whyFailed(pod)
		}
		for _, status := range statuses(pod) {
			name, waiting := status.Name, status.State.Waiting
			if waiting == nil {
				continue
			}
			switch waiting.Reason {
			case "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName":
				return fmt.Sprintf("%s has no image for container %s: %s", titleOf(pod), name, cmp.Or(waiting.Message, waiting.Reason))
			case "CrashLoopBackOff":
				if status.RestartCount >= crashesToFail {
					return fmt.Sprintf("container %s of %s has crashed %d times", name, titleOf(pod), status.RestartCount+1)
				}
			}
		}
	}
	return ""
}

// isCurrent tells whether a pod is of obj's present template.
func (t *Tracker) isCurrent(obj object.Object, pod *corev1.Pod) bool {
	switch obj := obj.(type) {
	case *appsv1.StatefulSet:
		return sameImages(pod, obj.Spec.Template) && (obj.Status.UpdateRevision == "" || isRevision(pod, obj.Status.UpdateRevision))
	case *appsv1.DaemonSet:
		newest := t.newestRevision(obj)
		return sameImages(pod, obj.Spec.Template) && (newest == "" || isRevision(pod, newest))
	}
	d, ok := obj.(*appsv1.Deployment)
	if !ok {
		return true
	}
	var newest *appsv1.ReplicaSet
	for _, rs := range t.setsOf(d) {
		if newest == nil || revisionOf(rs) > revisionOf(newest) ||
			revisionOf(rs) == revisionOf(newest) && newest.CreationTimestamp.Before(&rs.CreationTimestamp) {
			newest = rs
		}
	}
	if newest == nil || d.Annotations[revisionAnnotation] != "" && d.Annotations[revisionAnnotation] != newest.Annotations[revisionAnnotation] {
		return false // the one that is of its template has not been seen yet
	}
	owner := object.ControllerOf(pod)
	return owner != nil && owner.UID == newest.UID
}

// sameImages tells whether a pod has the images of a template: what is known of
// revisions may be older than the object.
func sameImages(pod *corev1.Pod, template corev1.PodTemplateSpec) bool {
	return slices.EqualFunc(pod.Spec.Containers, template.Spec.Containers, func(a, b corev1.Container) bool { return a.Name == b.Name && a.Image == b.Image })
}

// isRevision tells whether a pod was made of a ControllerRevision. Its label has the
// revision's name or, of daemon sets, what the name ends with.
func isRevision(pod *corev1.Pod, revision string) bool {
	label := pod.Labels[appsv1.ControllerRevisionHashLabelKey]
	return label == revision || label != "" && strings.HasSuffix(revision, "-"+label)
}

// newestRevision returns the name of the newest ControllerRevision of obj, or "".
func (t *Tracker) newestRevision(obj object.Object) string {
	name, number := "", int64(-1)
	for _, o := range t.objects {
		if rev, ok := o.(*appsv1.ControllerRevision); ok && rev.Revision > number {
			if owner := object.ControllerOf(rev); owner != nil && owner.UID == obj.GetUID() {
				name, number = rev.Name, rev.Revision
			}
		}
	}
	return name
}

// revisionOf is the rollout's number that the deployment controller writes on a
// replica set.
const revisionAnnotation = "deployment.kubernetes.io/revision"

func revisionOf(rs *appsv1.ReplicaSet) int {
	var n int
	_, _ = fmt.Sscan(rs.Annotations[revisionAnnotation], &n)
	return n
}

// setsOf returns the replica sets of a deployment, by name.
func (t *Tracker) setsOf(obj object.Object) []*appsv1.ReplicaSet {
	var out []*appsv1.ReplicaSet
	for _, o := range t.objects {
		if rs, ok := o.(*appsv1.ReplicaSet); ok {
			if owner := object.ControllerOf(rs); owner != nil && owner.UID == obj.GetUID() {
				out = append(out, rs)
			}
		}
	}
	slices.SortFunc(out, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// podsOf returns the pods of a target, by name: itself, if it is one.
func (t *Tracker) podsOf(obj object.Object) []*corev1.Pod {
	if pod, ok := obj.(*corev1.Pod); ok {
		return []*corev1.Pod{pod}
	}
	owners := map[types.UID]bool{obj.GetUID(): true}
	for _, rs := range t.setsOf(obj) {
		owners[rs.UID] = true
	}
	var out []*corev1.Pod
	for _, o := range t.objects {
		if pod, ok := o.(*corev1.Pod); ok {
			if owner := object.ControllerOf(pod); owner != nil && owners[owner.UID] {
				out = append(out, pod)
			}
		}
	}
	slices.SortFunc(out, func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// converged tells whether a target is as asked for. The rules are those of
// `kubectl rollout status`; pods that are only replaced when somebody deletes them
// (OnDelete) need not be of the new template, nor those of a paused deployment.
func converged(obj object.Object, generation int64) bool {
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		s, want := obj.Status, replicasOf(obj)
		return obj.Generation >= generation && s.ObservedGeneration >= obj.Generation &&
			(s.UpdatedReplicas == want || obj.Spec.Paused) && s.Replicas == want && s.AvailableReplicas == want
	case *appsv1.ReplicaSet:
		s, want := obj.Status, replicasOf(obj)
		return obj.Generation >= generation && s.ObservedGeneration >= obj.Generation && s.Replicas == want && s.ReadyReplicas == want
	case *corev1.ReplicationController:
		s, want := obj.Status, replicasOf(obj)
		return obj.Generation >= generation && s.ObservedGeneration >= obj.Generation && s.Replicas == want && s.ReadyReplicas == want
	case *appsv1.StatefulSet:
		s, want := obj.Status, replicasOf(obj)
		if obj.Generation < generation || s.ObservedGeneration < obj.Generation || s.Replicas != want || s.ReadyReplicas != want || s.AvailableReplicas != want {
			return false
		}
		update := obj.Spec.UpdateStrategy
		switch {
		case update.Type == appsv1.OnDeleteStatefulSetStrategyType:
			return true
		case update.RollingUpdate != nil && update.RollingUpdate.Partition != nil && *update.RollingUpdate.Partition > 0:
			return s.UpdatedReplicas >= want-*update.RollingUpdate.Partition
		}
		return s.UpdateRevision == s.CurrentRevision
	case *appsv1.DaemonSet:
		s, want := obj.Status, replicasOf(obj)
		return obj.Generation >= generation && s.ObservedGeneration >= obj.Generation && s.NumberAvailable >= want &&
			(obj.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType || s.UpdatedNumberScheduled >= want)
	case *corev1.Pod:
		return object.PodReady(obj) || obj.Status.Phase == corev1.PodSucceeded
	}
	return true
}

// replicasOf returns how many pods a workload is to have.
func replicasOf(obj object.Object) int32 {
	var n *int32
	switch obj := obj.(type) {
	case *appsv1.DaemonSet:
		n = &obj.Status.DesiredNumberScheduled
	case *appsv1.StatefulSet:
		n = obj.Spec.Replicas
	case *corev1.ReplicationController:
		n = obj.Spec.Replicas
	case *appsv1.Deployment:
		n = obj.Spec.Replicas
	case *appsv1.ReplicaSet:
		n = obj.Spec.Replicas
	}
	if n == nil {
		return 1
	}
	return *n
}

// troubles returns what a workload itself says is wrong.
func troubles(obj object.Object) []string {
	var out []string
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		for _, c := range obj.Status.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
				out = append(out, "pods cannot be made: "+c.Message)
			}
		}
	case *appsv1.ReplicaSet:
		for _, c := range obj.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
				out = append(out, "pods cannot be made: "+c.Message)
			}
		}
	case *corev1.ReplicationController:
		for _, c := range obj.Status.Conditions {
			if c.Type == corev1.ReplicationControllerReplicaFailure && c.Status == corev1.ConditionTrue {
				out = append(out, "pods cannot be made: "+c.Message)
			}
		}
	}
	return out
}

// worthTelling picks the events that say what no status does.
func worthTelling(e *corev1.Event) bool {
	if e.Type == corev1.EventTypeWarning {
		switch e.Reason {
		case "FailedScheduling", "BackOff", "Failed", "CrashLoopBackOff":
			return false // the pod's status says it
		}
		return true
	}
	return e.Reason == pulling || e.Reason == pulled
}

func titleOf(obj object.Object) string {
	r := object.ResourceOf(obj)
	if r.Group == "" {
		return r.Singular + "/" + obj.GetName()
	}
	return r.Singular + "." + r.Group + "/" + obj.GetName()
}

func lowerFirst(s string) string {
	if s == "" || len(s) > 1 && s[1] >= 'A' && s[1] <= 'Z' {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
