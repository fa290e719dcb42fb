package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/object"
)

// resizing is what a worker remembers of its pod's CPU and memory. What a pod asks for
// is allocated to it first, when the node has room, and then given to its containers.
type resizing struct {
	// Allocated is what each container is run with, by name: all of its resources.
	Allocated map[string]corev1.ResourceRequirements
	// Pending is why what the pod asks for is not allocated, Deferred or Infeasible, and
	// Message says it for people; "": it is, or it was not tried.
	Pending, Message string
	// PendingOf is the pod's generation for which that was found, Room the state of the
	// node's room.
	PendingOf int64
	Room      uint64
	// Apply is about the tries to give it to what runs.
	Apply retry
}

var resizable = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}

// fill fills in what is allocated to containers of which that is not known yet: what
// they ask for, or what the pod's recorded status says, when it asks for something else
// since. That is all that is left of it after a restart of the agent.
func (z *resizing) fill(pod *corev1.Pod) {
	if z.Allocated == nil {
		z.Allocated = map[string]corev1.ResourceRequirements{}
	}
	for _, p := range parts(pod) {
		if _, known := z.Allocated[p.spec.Name]; known {
			continue
		}
		given := *p.spec.Resources.DeepCopy()
		if s := recordedStatus(&pod.Status, p.spec.Name); s != nil && s.Resources != nil && p.resizable() {
			requests := s.AllocatedResources
			if len(requests) == 0 {
				requests = s.Resources.Requests
			}
			setResources(&given.Requests, requests)
			setResources(&given.Limits, s.Resources.Limits)
		}
		z.Allocated[p.spec.Name] = given
	}
}

// setResources replaces what of list can be resized by what from has of it.
func setResources(list *corev1.ResourceList, from corev1.ResourceList) {
	next := maps.Clone(*list)
	for _, name := range resizable {
		if q, ok := from[name]; ok {
			if next == nil {
				next = corev1.ResourceList{}
			}
			next[name] = q.DeepCopy()
		} else {
			delete(next, name)
		}
	}
	*list = next
}

// resizable says whether the resources of a container can change while its pod goes on.
func (p part) resizable() bool { return p.role == mainRole || p.role == sidecarRole }

// allocatedTo returns pod as it is run: with what is allocated to its containers.
func allocatedTo(pod *corev1.Pod, m *podMemory) *corev1.Pod {
	if pod == nil || !resizeWanted(pod, &m.Resize) {
		return pod
	}
	pod = pod.DeepCopy()
	for _, p := range parts(pod) {
		if given, ok := m.Resize.Allocated[p.spec.Name]; ok && p.resizable() {
			p.spec.Resources = *given.DeepCopy()
		}
	}
	return pod
}

// resizeWanted says whether the pod asks for something else than is allocated to it.
func resizeWanted(pod *corev1.Pod, z *resizing) bool {
	for _, p := range parts(pod) {
		if given, ok := z.Allocated[p.spec.Name]; ok && p.resizable() && !sameResources(given, p.spec.Resources) {
			return true
		}
	}
	return false
}

func sameResources(a, b corev1.ResourceRequirements) bool {
	for _, name := range resizable {
		for _, pair := range [][2]corev1.ResourceList{{a.Requests, b.Requests}, {a.Limits, b.Limits}} {
			x, inA := pair[0][name]
			y, inB := pair[1][name]
			if inA != inB || x.Cmp(y) != 0 {
				return false
			}
		}
	}
	return true
}

// nextResize returns the next step towards the resources that a running pod asks for:
// allocate them, stop the containers that are to be restarted for it, change those that
// are not.
func nextResize(in podInput, now time.Time) (action, bool) {
	z := &in.Memory.Resize
	if resizeWanted(in.Pod, z) && !(z.Pending != "" && z.PendingOf == in.Pod.Generation && (z.Pending == corev1.PodReasonInfeasible || z.Room == in.Room)) {
		return action{Kind: doAllocate, Wants: in.Pod, Why: "its resources are to change"}, true
	}
	restart, change := resizesDue(in)
	if len(restart) > 0 {
		id := restart[0]
		if wait, ok := in.Memory.Containers[id.Name].Start.wait(now); ok { // stopping it has failed
			return wait, true
		}
		a := stop(in, []runtime.ContainerID{id}, now.Add(graceOf(in.Pod)), "its resources are to change, and its resizePolicy says that it is restarted for it")
		a.Then = thenReplace
		return a, true
	}
	if len(change) == 0 && !podResizeDue(in) {
		return action{}, false
	}
	if z.Apply.Failures > 0 && now.Before(z.Apply.At) {
		return action{}, false // nextRunning waits for it, and does the rest
	}
	return action{Kind: doResize, IDs: change}, true
}

// resizesDue returns the running containers that have not what is allocated to them, those
// that must be restarted for it apart.
func resizesDue(in podInput) (restart, change []runtime.ContainerID) {
	for _, p := range parts(in.Pod) {
		given, ok := in.Memory.Resize.Allocated[p.spec.Name]
		run, known := latestRun(in.Observed, p.spec.Name)
		if !ok || !known || !p.resizable() || run.State != runtime.StateRunning || run.Resources == nil {
			continue
		}
		want := limits(given.Requests, given.Limits)
		cpu := run.Resources.CPUMillis != want.CPUMillis || run.Resources.CPUShares != want.CPUShares
		memory := run.Resources.MemoryBytes != want.MemoryBytes
		switch {
		case cpu && restartsFor(p.spec, corev1.ResourceCPU), memory && restartsFor(p.spec, corev1.ResourceMemory):
			restart = append(restart, run.ID)
		case cpu || memory:
			change = append(change, run.ID)
		}
	}
	return restart, change
}

func restartsFor(spec *corev1.Container, name corev1.ResourceName) bool {
	return slices.ContainsFunc(spec.ResizePolicy, func(p corev1.ContainerResizePolicy) bool {
		return p.ResourceName == name && p.RestartPolicy == corev1.RestartContainer
	})
}

// podResizeDue says whether the pod's containers are bounded together by something else
// than follows from what is allocated to them.
func podResizeDue(in podInput) bool {
	have := in.Observed.Resources
	if have == nil || !in.Memory.Created && len(in.Observed.Containers) == 0 {
		return false
	}
	want := podResources(allocatedTo(in.Pod, in.Memory), have.PIDs)
	return have.CPUMillis != want.CPUMillis || have.CPUShares != want.CPUShares || have.MemoryBytes != want.MemoryBytes
}

// noLess is what bounds neither less than a nor less than b.
func noLess(a, b runtime.Resources) runtime.Resources {
	most := func(x, y int64) int64 {
		if x == 0 || y == 0 {
			return 0 // no limit
		}
		return max(x, y)
	}
	return runtime.Resources{
		CPUMillis: most(a.CPUMillis, b.CPUMillis), CPUShares: max(a.CPUShares, b.CPUShares),
		MemoryBytes: most(a.MemoryBytes, b.MemoryBytes), PIDs: b.PIDs,
	}
}

// allocated records what came of asking the node for room. want is what was asked for.
func (z *resizing) allocated(want *corev1.Pod, room uint64, err error) {
	if err == nil {
		for _, p := range parts(want) {
			if p.resizable() {
				z.Allocated[p.spec.Name] = *p.spec.Resources.DeepCopy()
			}
		}
		z.Pending, z.Message, z.Apply = "", "", retry{}
		return
	}
	z.Pending, z.Message = corev1.PodReasonDeferred, err.Error()
	if errors.Is(err, errInfeasible) {
		z.Pending = corev1.PodReasonInfeasible
	}
	z.PendingOf, z.Room = want.Generation, room
}

// resizeConditions are the conditions about a change of the pod's resources.
func resizeConditions(in podInput) []corev1.PodCondition {
	if in.Memory.Evicted != "" || final(in.Pod.Status.Phase) || terminating(in) {
		return nil
	}
	var out []corev1.PodCondition
	z := &in.Memory.Resize
	if z.Pending != "" && resizeWanted(in.Pod, z) {
		out = append(out, corev1.PodCondition{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: z.Pending, Message: z.Message})
	}
	restart, change := resizesDue(in)
	if len(restart)+len(change) > 0 || podResizeDue(in) {
		c := corev1.PodCondition{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue}
		if z.Apply.Failures > 0 {
			c.Reason, c.Message = corev1.PodReasonError, z.Apply.Message
		}
		out = append(out, c)
	}
	return out
}

// givenTo completes a container's status by what is allocated to it, and by what it runs
// with. before is what was said last, or nil.
func givenTo(in podInput, p part, s, before *corev1.ContainerStatus) {
	given, ok := in.Memory.Resize.Allocated[p.spec.Name]
	if !ok || p.role == ephemeralRole || len(given.Requests)+len(given.Limits) == 0 {
		return
	}
	s.AllocatedResources = given.Requests
	now := corev1.ResourceRequirements{Requests: given.Requests, Limits: given.Limits}
	run, known := latestRun(in.Observed, p.spec.Name)
	if known && run.State == runtime.StateRunning && run.Resources != nil {
		want := limits(given.Requests, given.Limits)
		if run.Resources.CPUMillis != want.CPUMillis || run.Resources.CPUShares != want.CPUShares || run.Resources.MemoryBytes != want.MemoryBytes {
			if before == nil || before.Resources == nil {
				return // it runs with something else, of which nothing was said
			}
			now = *before.Resources
		}
	}
	s.Resources = now.DeepCopy()
}

// requested is what a pod takes of its node by what is allocated to it.
func requested(pod *corev1.Pod) corev1.ResourceList {
	sum := object.PodResources(pod)
	for name := range sum {
		if !slices.Contains(resizable, name) {
			delete(sum, name)
		}
	}
	return sum
}

// account takes the node's room for the pod as long as it is there and has not ended.
func (w *worker) account(in podInput) {
	over := in.Pod == nil || finished(in)
	switch {
	case !over && !w.accounted:
		w.p.allocations.hold(w.uid, requested(allocatedTo(in.Pod, &w.memory)))
		w.accounted = true
	case over && w.accounted:
		w.p.allocations.release(w.uid)
		w.accounted = false
	}
}

// resize gives the pod, and of its running containers those of ids, what pod says. bounds
// is what the pod is bounded by now. The pod's bounds are never below what one of its
// containers has: that some kernels refuse.
func (w *worker) resize(ctx context.Context, pod *corev1.Pod, bounds *runtime.Resources, ids []runtime.ContainerID) error {
	want := podResources(pod, w.p.maxPIDs)
	if bounds != nil {
		if err := w.p.runtime.ResizePod(ctx, w.uid, noLess(*bounds, want)); err != nil {
			return err
		}
	}
	for _, id := range ids {
		spec := containerSpec(pod, id.Name)
		if err := w.p.runtime.ResizeContainer(ctx, id, resources(pod, spec, w.p.memoryBytes)); err != nil {
			return err
		}
	}
	return w.p.runtime.ResizePod(ctx, w.uid, want)
}

// tellResize makes events of what became of a change of the pod's resources.
func (w *worker) tellResize(before, after *corev1.PodStatus) {
	find := func(s *corev1.PodStatus, t corev1.PodConditionType) (found corev1.PodCondition) {
		for _, c := range s.Conditions {
			if c.Type == t {
				found = c
			}
		}
		return found
	}
	was, is := find(before, corev1.PodResizePending), find(after, corev1.PodResizePending)
	if is.Reason != was.Reason && is.Reason != "" {
		w.event(corev1.EventTypeWarning, "Resize"+is.Reason, is.Message)
	}
	was, is = find(before, corev1.PodResizeInProgress), find(after, corev1.PodResizeInProgress)
	switch {
	case was.Type == "" && is.Type != "":
		w.event(corev1.EventTypeNormal, "ResizeStarted", "The pod's resources are being changed")
	case was.Type != "" && is.Type == "" && after.Phase == corev1.PodRunning:
		w.event(corev1.EventTypeNormal, "ResizeCompleted", "The pod's resources were changed")
	}
	if is.Reason != was.Reason && is.Reason == corev1.PodReasonError {
		w.event(corev1.EventTypeWarning, "ResizeError", is.Message)
	}
}

// target returns the run of which an ephemeral container is to see the processes, nil if
// it names none.
func (w *worker) target(pod *corev1.Pod, container string) (*runtime.ContainerID, error) {
	for i := range pod.Spec.EphemeralContainers {
		c := &pod.Spec.EphemeralContainers[i]
		if c.Name != container || c.TargetContainerName == "" {
			continue
		}
		observed, _, _ := w.p.observed(w.uid)
		run, ok := latestRun(observed, c.TargetContainerName)
		if !ok || run.State != runtime.StateRunning {
			return nil, fmt.Errorf("%w: its target, container %s, does not run", errConfig, c.TargetContainerName)
		}
		return &run.ID, nil
	}
	return nil, nil
}
