package rollout

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestTracker runs testdata/*.txtar. Each states one rule in its comment. "applied"
// holds the targets, "known" the pods that were there before; the steps are what
// is observed, one object a line (see scene.line). "want" is what is said after
// each step, and the verdict.
func TestTracker(t *testing.T) {
	golden.Run(t, "testdata/*.txtar", func(t *testing.T, in golden.Input) string {
		s := &scene{t: t}
		var applied []object.Object
		for _, words := range lines(in.File("applied")) {
			applied = append(applied, s.line(words))
		}
		tracker := New(applied)
		if known, ok := in.Lookup("known"); ok {
			for _, words := range lines(known) {
				tracker.Known(s.line(words).(*corev1.Pod))
			}
		}
		var out strings.Builder
		for _, name := range in.Names() {
			if !strings.HasPrefix(name, "step") {
				continue
			}
			for _, words := range lines(in.File(name)) {
				gone := words[0] == "gone"
				if gone {
					words = words[1:]
				}
				tracker.Observe(s.line(words), gone)
			}
			fmt.Fprintf(&out, "%s\n", name)
			for _, line := range tracker.Lines() {
				fmt.Fprintf(&out, "  %s\n", line)
			}
			verdict := tracker.Verdict()
			fmt.Fprintf(&out, "=> %s", [...]string{"waiting", "done", "failed"}[verdict.State])
			if verdict.Reason != "" {
				fmt.Fprintf(&out, ": %s", verdict.Reason)
			}
			fmt.Fprintf(&out, " [%s]\n", strings.Join(tracker.Summary(), ", "))
			if again := tracker.Lines(); len(again) > 0 {
				t.Errorf("%s: said twice: %q", name, again)
			}
		}
		for _, obstacle := range tracker.Obstacles() {
			fmt.Fprintf(&out, "obstacle: %s\n", obstacle)
		}
		if c, crashed := tracker.Crash(); crashed {
			fmt.Fprintf(&out, "crash: container %s of %s, previous run: %t\n", c.Container, c.Pod, c.Previous)
		}
		return out.String()
	})
}

func lines(data []byte) [][]string {
	var out [][]string
	for line := range strings.Lines(string(data)) {
		if words := split(strings.TrimSpace(line)); len(words) > 0 {
			out = append(out, words)
		}
	}
	return out
}

// split splits at blanks, but not within double quotes, which it drops.
func split(line string) []string {
	var out []string
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 1 {
			out[len(out)-1] += strings.ReplaceAll(part, `\n`, "\n")
			continue
		}
		words := strings.Fields(part)
		if i > 0 && len(words) > 0 && !strings.HasPrefix(part, " ") {
			out[len(out)-1] += words[0]
			words = words[1:]
		}
		out = append(out, words...)
	}
	return out
}

// scene makes objects of lines.
type scene struct{ t *testing.T }

// line makes an object of "KIND NAME key=value flag…". A uid is the kind and the
// name, unless uid= says another. Owners are named by "of=deployment/web" or "of=replicaset/web-1".
func (s *scene) line(words []string) object.Object {
	kind, name, rest := words[0], words[1], map[string]string{}
	for _, word := range words[2:] {
		key, value, _ := strings.Cut(word, "=")
		rest[key] = value
	}
	number := func(key string) int32 {
		if rest[key] == "" {
			return 0
		}
		n, err := strconv.Atoi(rest[key])
		if err != nil {
			s.t.Fatalf("%s=%s: %v", key, rest[key], err)
		}
		return int32(n)
	}
	meta := metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(kind + "/" + name), Generation: int64(number("generation"))}
	if uid, ok := rest["uid"]; ok {
		meta.UID = types.UID(uid)
	}
	if of, ok := rest["of"]; ok {
		ownerKind, ownerName, _ := strings.Cut(of, "/")
		yes := true
		meta.OwnerReferences = []metav1.OwnerReference{{Kind: ownerKind, Name: ownerName, UID: types.UID(of), Controller: &yes}}
	}
	if _, ok := rest["deleting"]; ok {
		now := metav1.NewTime(time.Unix(1, 0))
		meta.DeletionTimestamp = &now
	}
	replicas := number("replicas")
	switch kind {
	case "deployment":
		d := &appsv1.Deployment{ObjectMeta: meta}
		d.Spec.Replicas = &replicas
		d.Status = appsv1.DeploymentStatus{
			ObservedGeneration: int64(number("observed")), Replicas: number("all"),
			UpdatedReplicas: number("updated"), AvailableReplicas: number("available"),
		}
		if why, ok := rest["stuck"]; ok {
			d.Status.Conditions = []appsv1.DeploymentCondition{{
				Type: appsv1.DeploymentProgressing, Status: corev1.ConditionFalse, Reason: "ProgressDeadlineExceeded", Message: why,
			}}
		}
		return d
	case "replicaset":
		rs := &appsv1.ReplicaSet{ObjectMeta: meta}
		rs.Annotations = map[string]string{"deployment.kubernetes.io/revision": rest["revision"]}
		rs.Spec.Replicas = &replicas
		if why, ok := rest["cannot"]; ok {
			rs.Status.Conditions = []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Message: why}}
		}
		return rs
	case "replicationcontroller":
		rc := &corev1.ReplicationController{ObjectMeta: meta}
		rc.Spec.Replicas = &replicas
		rc.Status = corev1.ReplicationControllerStatus{ObservedGeneration: int64(number("observed")), Replicas: number("all"), ReadyReplicas: number("ready")}
		if why, ok := rest["cannot"]; ok {
			rc.Status.Conditions = []corev1.ReplicationControllerCondition{{Type: corev1.ReplicationControllerReplicaFailure, Status: corev1.ConditionTrue, Message: why}}
		}
		return rc
	case "statefulset":
		set := &appsv1.StatefulSet{ObjectMeta: meta}
		set.Spec.Replicas = &replicas
		set.Spec.UpdateStrategy.Type = appsv1.StatefulSetUpdateStrategyType(rest["strategy"])
		if _, ok := rest["partition"]; ok {
			set.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: new(number("partition"))}
		}
		set.Status = appsv1.StatefulSetStatus{
			ObservedGeneration: int64(number("observed")), Replicas: number("all"), ReadyReplicas: number("ready"), AvailableReplicas: number("available"),
			UpdatedReplicas: number("updated"), CurrentRevision: rest["current"], UpdateRevision: rest["update"],
		}
		return set
	case "daemonset":
		set := &appsv1.DaemonSet{ObjectMeta: meta}
		set.Spec.UpdateStrategy.Type = appsv1.DaemonSetUpdateStrategyType(rest["strategy"])
		set.Status = appsv1.DaemonSetStatus{
			ObservedGeneration: int64(number("observed")), DesiredNumberScheduled: number("desired"),
			UpdatedNumberScheduled: number("updated"), NumberAvailable: number("available"),
		}
		return set
	case "controllerrevision":
		return &appsv1.ControllerRevision{ObjectMeta: meta, Revision: int64(number("revision"))}
	case "configmap":
		return &corev1.ConfigMap{ObjectMeta: meta}
	case "event":
		meta.Name = "event"
		return &corev1.Event{
			ObjectMeta: meta, Type: rest["type"], Reason: rest["reason"], Message: rest["message"],
			InvolvedObject: corev1.ObjectReference{UID: types.UID(name)},
		}
	case "pod":
		return s.pod(&corev1.Pod{ObjectMeta: meta}, rest, number)
	}
	s.t.Fatalf("unknown kind %q", kind)
	return nil
}

func (s *scene) pod(pod *corev1.Pod, rest map[string]string, number func(string) int32) *corev1.Pod {
	pod.Spec.NodeName = rest["node"]
	if revision, ok := rest["revision"]; ok {
		pod.Labels = map[string]string{appsv1.ControllerRevisionHashLabelKey: revision}
	}
	pod.Status.Phase = corev1.PodPhase(rest["phase"])
	condition := func(kind corev1.PodConditionType, status corev1.ConditionStatus, message string) {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: kind, Status: status, Message: message})
	}
	if why, ok := rest["unschedulable"]; ok {
		condition(corev1.PodScheduled, corev1.ConditionFalse, why)
	}
	if _, ok := rest["ready"]; ok {
		condition(corev1.PodReady, corev1.ConditionTrue, "")
	}
	status := corev1.ContainerStatus{Name: "web", RestartCount: number("restarts")}
	ended := func(code string) *corev1.ContainerStateTerminated {
		n, err := strconv.Atoi(code)
		if err != nil {
			s.t.Fatal(err)
		}
		reason := "Error"
		if n == 0 {
			reason = "Completed"
		}
		return &corev1.ContainerStateTerminated{ExitCode: int32(n), Reason: reason, Message: rest["words"]}
	}
	if code, ok := rest["last"]; ok {
		status.LastTerminationState.Terminated = ended(code)
	}
	if _, ok := rest["running"]; ok {
		status.State.Running = &corev1.ContainerStateRunning{}
	}
	if reason, ok := rest["waiting"]; ok {
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: rest["because"]}
	}
	if code, ok := rest["ended"]; ok {
		status.State.Terminated = ended(code)
	}
	if pod.Spec.NodeName != "" {
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{status}
	}
	return pod
}

// TestPodOfAnotherTemplate: a pod with other images than its daemon set's or stateful set's template
// says nothing of the rollout, though no newer revision has been seen yet.
func TestPodOfAnotherTemplate(t *testing.T) {
	spec := func(image string) corev1.PodSpec {
		return corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: image}}}
	}
	ds, set := &appsv1.DaemonSet{}, &appsv1.StatefulSet{}
	ds.Spec.Template.Spec, set.Spec.Template.Spec = spec("web:1"), spec("web:1")
	tracker := New(nil)
	for _, obj := range []object.Object{ds, set} {
		for image, want := range map[string]bool{"web:1": true, "web:none": false} {
			if got := tracker.isCurrent(obj, &corev1.Pod{Spec: spec(image)}); got != want {
				t.Errorf("a pod of %s is current for a %T: %v, want %v", image, obj, got, want)
			}
		}
	}
}
