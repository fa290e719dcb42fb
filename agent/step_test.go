package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/agent/probe"
	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestStep runs testdata/step/*.txtar. Each file states one rule in its comment,
// a pod, and a script of what happens to it. Expected is, for each line of the
// script, the time, what next decides and what podStatus says. To accept new
// behaviour run with -update, then review the diff as part of the change.
func TestStep(t *testing.T) {
	golden.Run(t, "testdata/step/*.txtar", func(t *testing.T, in golden.Input) string {
		var pod corev1.Pod
		if err := yaml.UnmarshalStrict(in.File("pod"), &pod); err != nil {
			t.Fatalf("pod: %v", err)
		}
		w := newWorld(&pod)
		for line := range strings.Lines(string(in.File("script"))) {
			if line = strings.TrimSpace(line); line != "" {
				w.play(t, line)
			}
		}
		return w.out.String()
	})
}

// world is a pod, its worker's memory, and a runtime and a network that do what
// the script says.
type world struct {
	start, now time.Time
	in         podInput
	last       action
	doubt      bool // deletions are not confirmed before the script says so
	out        strings.Builder
}

func newWorld(pod *corev1.Pod) *world {
	start := time.Date(2026, 1, 1, 10, 0, 0, 0, time.UTC)
	pod.UID, pod.Namespace, pod.Name = "uid", "default", "web"
	return &world{start: start, now: start, in: podInput{Pod: pod, Memory: &podMemory{}}}
}

func (w *world) play(t *testing.T, line string) {
	t.Helper()
	words := strings.Fields(line)
	arg := func(i int) string {
		if i >= len(words) {
			t.Fatalf("script line %q has too few words", line)
		}
		return words[i]
	}
	number := func(i int) int {
		n, err := strconv.Atoi(arg(i))
		if err != nil {
			t.Fatalf("script line %q: %v", line, err)
		}
		return n
	}
	switch words[0] {
	case "start": // look, no more
	case "wait": // the time that next named has come
		if w.last.Kind != doWait || w.last.At.IsZero() {
			t.Fatalf("script line %q, but the last action is %q", line, w.last.text(w.now))
		}
		w.now = w.last.At
	case "pass": // time passes
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(d)
	case "ok": // the action is done
		w.done()
	case "goes": // actions are done until there is none
		for range 50 {
			if w.last.Kind == doWait || w.last.Kind == doFinish {
				return
			}
			w.done()
			w.look("goes")
		}
		t.Fatalf("script line %q: no end of actions, now %q", line, w.last.text(w.now))
	case "fails": // the action has failed
		err := error(errors.New(strings.Join(words[1:], " ")))
		switch {
		case len(words) == 2 && words[1] == "NeverPull":
			err = runtime.ErrImageNeverPull
		case len(words) == 2 && words[1] == "Exists":
			err = runtime.ErrExists
		case len(words) == 2 && words[1] == "NotFound":
			err = runtime.ErrNotFound
		case words[1] == "Infeasible":
			err = &refusal{errInfeasible, strings.Join(words[2:], " ")}
		}
		applied(w.in.Memory, w.last, err, w.now)
	case "exits": // exits NAME CODE [oom]: the latest run ends
		c := w.latest(arg(1))
		c.State, c.ExitCode, c.FinishedAt = runtime.StateExited, number(2), w.now
		c.OOMKilled = len(words) > 3 && words[3] == "oom"
	case "state": // state NAME STATE: the latest run is seen so
		w.latest(arg(1)).State = runtime.State(arg(2))
	case "left": // left NAME ATTEMPT STATE: the runtime has a run from before
		w.in.Observed.UID = "uid"
		w.in.Observed.Containers = append(w.in.Observed.Containers, w.run(arg(1), number(2), runtime.State(arg(3))))
	case "vanishes": // the runtime has lost everything
		w.in.Observed = runtime.PodState{}
	case "delete": // delete SECONDS: the pod is marked deleted
		grace := int64(number(1))
		pod := w.in.Pod.DeepCopy()
		at := metav1.NewTime(w.now)
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &at, &grace
		w.in.Pod = pod
	case "gone": // the pod is no longer desired
		w.in.Gone = true
	case "unknown": // the pod never was
		w.in.Pod, w.in.Gone = nil, true
	case "image": // image NAME REF: the spec's image changes
		pod := w.in.Pod.DeepCopy()
		containerSpec(pod, arg(1)).Image = arg(2)
		w.in.Pod = pod
	case "resize": // resize NAME [limit.]RESOURCE=AMOUNT…: the spec's resources change
		pod := w.in.Pod.DeepCopy()
		pod.Generation++
		res := &containerSpec(pod, arg(1)).Resources
		for _, word := range words[2:] {
			name, amount, _ := strings.Cut(word, "=")
			list := &res.Requests
			if rest, ok := strings.CutPrefix(name, "limit."); ok {
				name, list = rest, &res.Limits
			}
			if *list == nil {
				*list = corev1.ResourceList{}
			}
			(*list)[corev1.ResourceName(name)] = resource.MustParse(amount)
		}
		w.in.Pod = pod
	case "room": // another pod has given something back
		w.in.Room++
	case "debug": // debug NAME: an ephemeral container is added
		pod := w.in.Pod.DeepCopy()
		pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: arg(1), Image: "busybox"}})
		w.in.Pod = pod
	case "probe": // probe NAME KIND RESULT: what a probe of the latest run has found out
		if w.in.Probes == nil {
			w.in.Probes = map[probe.Key]probe.Result{}
		}
		key := probe.Key{Run: w.latest(arg(1)).ID, Kind: probe.Kind(arg(2))}
		w.in.Probes[key] = map[string]probe.Result{"success": probe.Success, "failure": probe.Failure}[arg(3)]
	case "condition": // condition TYPE STATUS: another writer says so
		pod := w.in.Pod.DeepCopy()
		object.SetPodCondition(pod, corev1.PodCondition{Type: corev1.PodConditionType(arg(1)), Status: corev1.ConditionStatus(arg(2))})
		w.in.Pod = pod
	case "reboots": // the machine: nothing runs any more, the network is gone
		for i := range w.in.Observed.Containers {
			if c := &w.in.Observed.Containers[i]; c.State == runtime.StateRunning {
				c.State, c.ExitCode, c.FinishedAt = runtime.StateExited, 255, w.now
			}
		}
		pod := w.in.Pod.DeepCopy()
		if s := w.in.Memory.Status; s != nil {
			pod.Status = *s
		}
		w.in.Pod, w.in.Memory = pod, &podMemory{}
	case "doubt":
		w.doubt = true
		return
	case "wanted": // the pod is desired again, or after all
		pod := w.in.Pod.DeepCopy()
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = nil, nil
		w.in.Pod, w.in.Gone = pod, false
	case "evict":
		w.in.Evicted = strings.Join(words[1:], " ")
	case "pressure":
		w.in.Pressure = []corev1.NodeConditionType{corev1.NodeConditionType(arg(1))}
	case "reclaim":
		w.in.Reclaim = arg(1) == "on"
	case "hold":
		w.in.Hold = arg(1) == "on"
	case "agent": // agent restarts: memory is lost, the recorded status is the last one
		pod := w.in.Pod.DeepCopy()
		if s := w.in.Memory.Status; s != nil {
			pod.Status = *s
		}
		attached := w.in.Memory.Attached
		w.in.Pod, w.in.Memory, w.in.Probes, w.in.Evicted = pod, &podMemory{Attached: attached}, nil, ""
	case "show": // the status in full
		data, err := yaml.Marshal(w.in.Memory.Status)
		if err != nil {
			t.Fatal(err)
		}
		w.out.Write(data)
		return
	default:
		t.Fatalf("script line %q: unknown word", line)
	}
	w.look(line)
}

// look takes in the state and prints what follows from it.
func (w *world) look(line string) {
	remember(w.in, w.now)
	status := ""
	if w.in.Pod != nil {
		s := podStatus(w.in, netip.MustParseAddr("192.0.2.1"), w.now)
		w.in.Memory.Status = &s
		status = statusText(s)
	}
	w.last = next(w.in, w.now)
	if w.last.Kind == doConfirm && !w.doubt { // not of interest in most scripts
		applied(w.in.Memory, w.last, nil, w.now)
		w.last = next(w.in, w.now)
	}
	began(w.in.Memory, w.last)
	fmt.Fprintf(&w.out, "%-6v %-22s | %-32s | %s\n", w.now.Sub(w.start), line, w.last.text(w.now), status)
}

// done lets the last action succeed.
func (w *world) done() {
	a := w.last
	switch a.Kind {
	case doAttach:
		w.in.Memory.Attached = &Attachment{NetNS: "/ns", IPs: []netip.Addr{netip.MustParseAddr("10.0.0.5")}}
	case doCreate:
		w.in.Observed.UID = "uid"
		bounds := podResources(allocatedTo(w.in.Pod, w.in.Memory), 0)
		w.in.Observed.Resources = &bounds
	case doResize:
		pod := allocatedTo(w.in.Pod, w.in.Memory)
		bounds := podResources(pod, 0)
		w.in.Observed.Resources = &bounds
		for _, id := range a.IDs {
			given := resources(pod, containerSpec(pod, id.Name), 0)
			w.latest(id.Name).Resources = &given
		}
	case doRun:
		w.in.Observed.Containers = append(w.in.Observed.Containers, w.run(a.Container, a.Attempt, runtime.StateRunning))
	case doStop:
		for i := range w.in.Observed.Containers {
			c := &w.in.Observed.Containers[i]
			for _, id := range a.IDs {
				if c.ID == id {
					c.State, c.ExitCode, c.FinishedAt = runtime.StateExited, 143, w.now
				}
			}
		}
	case doRemoveContainer:
		var kept []runtime.ContainerState
		for _, c := range w.in.Observed.Containers {
			if c.ID != a.IDs[0] {
				kept = append(kept, c)
			}
		}
		w.in.Observed.Containers = kept
	case doRemovePod:
		w.in.Observed = runtime.PodState{}
	case doMessage:
		w.in.Memory.Messages[a.IDs[0]] = "last words of " + a.IDs[0].Name
	case doWait, doPull, doDetach, doRelease, doFinish, doPostStart, doConfirm, doAllocate:
	}
	applied(w.in.Memory, a, nil, w.now)
}

func (w *world) run(name string, attempt int, state runtime.State) runtime.ContainerState {
	c := runtime.ContainerState{
		ID:     runtime.ContainerID{PodUID: "uid", Name: name, Attempt: attempt},
		Handle: fmt.Sprintf("test://%s-%d", name, attempt), ImageID: "sha256:1", State: state,
		CreatedAt: w.now, StartedAt: w.now,
	}
	if w.in.Pod != nil {
		c.SpecHash = specHash(containerSpec(w.in.Pod, name))
		given := resources(w.in.Pod, containerSpec(allocatedTo(w.in.Pod, w.in.Memory), name), 0)
		c.Resources = &given
	}
	return c
}

func (w *world) latest(name string) *runtime.ContainerState {
	var found *runtime.ContainerState
	for i := range w.in.Observed.Containers {
		c := &w.in.Observed.Containers[i]
		if c.ID.Name == name && (found == nil || c.ID.Attempt > found.ID.Attempt) {
			found = c
		}
	}
	if found == nil {
		panic("the script speaks of " + name + ", which was never run")
	}
	return found
}

// statusText is a status in short: phase, readiness, and each container's state,
// restarts and last state.
func statusText(s corev1.PodStatus) string {
	var b strings.Builder
	b.WriteString(string(s.Phase))
	if readiness(&s) == corev1.ConditionTrue {
		b.WriteString(" ready")
	}
	state := func(s corev1.ContainerState) string {
		switch {
		case s.Running != nil:
			return "running"
		case s.Waiting != nil:
			return s.Waiting.Reason
		case s.Terminated != nil:
			return fmt.Sprintf("%s(%d)", s.Terminated.Reason, s.Terminated.ExitCode)
		default:
			return "none"
		}
	}
	if s.Reason != "" {
		b.WriteString(" " + s.Reason)
	}
	for _, c := range s.Conditions {
		if c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress {
			fmt.Fprintf(&b, " %s=%s", c.Type, c.Reason)
		}
	}
	for _, c := range slices.Concat(s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses) {
		fmt.Fprintf(&b, ", %s %s", c.Name, state(c.State))
		switch {
		case c.State.Running != nil && c.Started != nil && !*c.Started && containerStatus(s.ContainerStatuses, c.Name) != nil:
			b.WriteString(" unstarted")
		case c.State.Running != nil && !c.Ready && c.Started != nil:
			b.WriteString(" unready")
		}
		if r := c.Resources; r != nil {
			text := func(list corev1.ResourceList) string {
				return fmt.Sprintf("%s/%s", list.Cpu(), list.Memory())
			}
			fmt.Fprintf(&b, " has=%s,%s of %s", text(r.Requests), text(r.Limits), text(c.AllocatedResources))
		}
		if c.RestartCount > 0 {
			fmt.Fprintf(&b, " restarts=%d", c.RestartCount)
		}
		if c.LastTerminationState.Terminated != nil {
			fmt.Fprintf(&b, " last=%s", state(c.LastTerminationState))
		}
	}
	return b.String()
}
