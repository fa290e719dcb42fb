package agent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

const (
	// restartBackoffFirst and restartBackoffMax bound how long a container that
	// keeps ending waits to be started again: the first restart is immediate,
	// then 10 s, 20 s, 40 s, … 5 min.
	restartBackoffFirst = 10 * time.Second
	restartBackoffMax   = 5 * time.Minute
	// restartBackoffReset is how long a container must have run for its earlier
	// ends to be forgotten.
	restartBackoffReset = 10 * time.Minute
	// retryBackoffFirst and retryBackoffMax are the same for what failed before
	// a container ran: its image, its creation, its network.
	retryBackoffFirst = 10 * time.Second
	retryBackoffMax   = 5 * time.Minute
	// cleanupBackoffMax is the most for the steps that end a pod.
	cleanupBackoffFirst = time.Second
	cleanupBackoffMax   = 30 * time.Second
	// defaultGrace is Kubernetes' default for terminationGracePeriodSeconds.
	defaultGrace = 30 * time.Second
	// keptRuns is how many ended runs of a container are kept beside the latest,
	// for `logs --previous` and lastState.
	keptRuns = 1
)

// podInput is all that the decision about a pod depends on.
type podInput struct {
	// Pod is the pod as last desired. Nil: never known; the runtime or the network
	// has it from an earlier life.
	Pod *corev1.Pod
	// Gone: no longer desired, or never was.
	Gone bool
	// Observed is the pod as the runtime lists it; the zero value if it does not.
	Observed runtime.PodState
	// Memory is what the worker knows beside that.
	Memory *podMemory
	// Hold: start nothing yet, no peer was heard since the agent started.
	Hold bool
}

// podMemory is what a worker knows about its pod that the runtime does not.
// Losing it, with the agent, costs repeated calls and shorter backoffs only.
type podMemory struct {
	FirstSeen time.Time // start time of the pod's status, unless it has one
	Attached  *Attachment
	// Created: CreatePod has succeeded since the worker began.
	Created    bool
	Network    retry // of Attach and CreatePod
	Containers map[string]*containerMemory
	// StoppingSince is when the pod was first seen terminating, on this worker's
	// clock: the grace period counts from there, whatever other clocks say.
	StoppingSince time.Time
	// Stopped, Removed and Detached are steps of the end that are done.
	Stopped, Removed, Detached bool
	Cleanup                    retry // of those steps
	// Status is the last status computed; transitions are relative to it.
	Status *corev1.PodStatus
	// Messages holds the termination messages that were fetched, by run.
	Messages map[runtime.ContainerID]string
}

// containerMemory is the part about one container of the pod.
type containerMemory struct {
	// Attempt is the latest run known, -1 for none.
	Attempt int
	// Ended is when that run was first seen to have ended; zero: it was not.
	Ended time.Time
	// Ends counts the runs that ended one soon after the other.
	Ends int
	// ImageFor is the run that the image was last made present for, -1 for none.
	ImageFor int
	Pulling  bool
	Pull     retry
	Start    retry
	// Lost: it ran, by the pod's recorded status, but the runtime has no trace.
	Lost bool
	// Replaced: it was stopped to be started again as the spec says now.
	Replaced bool
}

// retry is a step that has failed: how often, why, and when to try again.
type retry struct {
	Failures int
	At       time.Time
	Reason   string
	Message  string
}

func (r *retry) fail(now time.Time, reason, message string, first, most time.Duration) {
	r.Failures++
	r.Reason, r.Message = reason, message
	r.At = now.Add(backoff(r.Failures, first, most))
}

// backoff returns first, 2·first, 4·first, … up to most, for n = 1, 2, 3, ….
func backoff(n int, first, most time.Duration) time.Duration {
	d := first
	for range n - 1 {
		if d *= 2; d >= most {
			return most
		}
	}
	return min(d, most)
}

// restartDelay is how long to wait after the end that made n ends in a row.
func restartDelay(n int) time.Duration {
	if n <= 1 {
		return 0
	}
	return backoff(n-1, restartBackoffFirst, restartBackoffMax)
}

// actionKind says what an action does.
type actionKind string

const (
	// doWait: nothing to do before action.At, or a change if At is zero.
	doWait actionKind = "wait"
	// doAttach gives the pod its network.
	doAttach actionKind = "attach"
	// doCreate makes what the pod's containers share.
	doCreate actionKind = "create-pod"
	// doPull makes the image of Container present for run Attempt.
	doPull actionKind = "pull"
	// doRun creates and starts run Attempt of Container.
	doRun actionKind = "run"
	// doStop stops IDs in parallel. At is when the grace period ends.
	doStop actionKind = "stop"
	// doRemoveContainer forgets the run IDs[0].
	doRemoveContainer actionKind = "remove-container"
	// doMessage fetches the termination message of the run IDs[0].
	doMessage actionKind = "message"
	// doRemovePod frees what the runtime holds for the pod.
	doRemovePod actionKind = "remove-pod"
	// doDetach takes the pod's network away.
	doDetach actionKind = "detach"
	// doFinish: nothing is left of the pod; say so.
	doFinish actionKind = "finish"
)

// action is one thing to do for a pod.
type action struct {
	Kind      actionKind
	Container string
	Attempt   int
	IDs       []runtime.ContainerID
	At        time.Time
	// Why is for events and logs.
	Why string
}

// text is the action's stable text form, times relative to now.
func (a action) text(now time.Time) string {
	var b strings.Builder
	b.WriteString(string(a.Kind))
	if a.Container != "" {
		fmt.Fprintf(&b, " %s/%d", a.Container, a.Attempt)
	}
	for _, id := range a.IDs {
		fmt.Fprintf(&b, " %s/%d", id.Name, id.Attempt)
	}
	if !a.At.IsZero() {
		fmt.Fprintf(&b, " %v", a.At.Sub(now))
	}
	if a.Why != "" {
		fmt.Fprintf(&b, " (%s)", a.Why)
	}
	return b.String()
}

// remember brings memory up to what in.Observed and in.Pod show. It is called
// before next and podStatus, and is as pure as they are but for the memory.
func remember(in podInput, now time.Time) {
	m := in.Memory
	if m.FirstSeen.IsZero() {
		m.FirstSeen = now
	}
	if m.Containers == nil {
		m.Containers = map[string]*containerMemory{}
	}
	if m.Messages == nil {
		m.Messages = map[runtime.ContainerID]string{}
	}
	switch stopping := terminating(in); {
	case stopping && m.StoppingSince.IsZero():
		m.StoppingSince = now
	case !stopping && !m.StoppingSince.IsZero():
		// Desired again after all: as if its end had not begun.
		m.StoppingSince = time.Time{}
		m.Stopped, m.Removed, m.Detached, m.Cleanup = false, false, false, retry{}
	}
	maps.DeleteFunc(m.Messages, func(id runtime.ContainerID, _ string) bool {
		return in.Observed.UID != "" && !slices.ContainsFunc(in.Observed.Containers, func(c runtime.ContainerState) bool { return c.ID == id })
	})
	if in.Pod == nil {
		return
	}
	for i := range in.Pod.Spec.Containers {
		name := in.Pod.Spec.Containers[i].Name
		c := m.Containers[name]
		latest, ok := latestRun(in.Observed, name)
		if c == nil {
			c = &containerMemory{Attempt: -1, ImageFor: -1}
			m.Containers[name] = c
			recorded := containerStatus(in.Pod.Status.ContainerStatuses, name)
			switch {
			case ok && latest.ID.Attempt > 0:
				// Adopted. How fast the earlier runs ended is not known; that they
				// did is reason for caution.
				c.Ends = latest.ID.Attempt
			case !ok && recorded != nil && recorded.ContainerID != "":
				c.Attempt = int(recorded.RestartCount)
				c.Lost = true
				c.Ended = now
				c.Ends = 1
			}
		}
		switch {
		case ok && latest.ID.Attempt > c.Attempt:
			c.Attempt = latest.ID.Attempt
			c.Ended = time.Time{}
			c.Lost, c.Replaced = false, false
			c.Pull, c.Start = retry{}, retry{}
		case !ok && c.Attempt >= 0 && !c.Lost && !in.Memory.Removed:
			// It was there, and no one here removed it.
			c.Lost = true
			m.Created = false // what the runtime shared among the containers may be lost with it
			if c.Ended.IsZero() {
				c.Ended = now
				c.Ends++
			}
		}
		if ok && latest.State == runtime.StateExited && c.Ended.IsZero() {
			c.Ended = now
			switch {
			case c.Replaced:
				c.Ends = 0
			case latest.FinishedAt.Sub(latest.StartedAt) >= restartBackoffReset && !latest.StartedAt.IsZero():
				c.Ends = 1
			default:
				c.Ends++
			}
		}
	}
}

// next returns what to do for a pod. It is pure; testdata/step states its whole
// behavior.
func next(in podInput, now time.Time) action {
	switch {
	case terminating(in):
		return nextTerminating(in, now)
	case finished(in):
		return nextFinished(in, now)
	default:
		return nextRunning(in, now)
	}
}

func terminating(in podInput) bool {
	return in.Gone || in.Pod == nil || in.Pod.DeletionTimestamp != nil
}

// finished says whether the pod has run to its end, by what was recorded or by
// what is seen, and nothing of it is to be started again.
func finished(in podInput) bool {
	if s := in.Memory.Status; s != nil && final(s.Phase) || final(in.Pod.Status.Phase) {
		return true
	}
	for i := range in.Pod.Spec.Containers {
		name := in.Pod.Spec.Containers[i].Name
		c := in.Memory.Containers[name]
		if c == nil || c.Ended.IsZero() || c.Replaced {
			return false
		}
		run, ok := latestRun(in.Observed, name)
		if restarts(in.Pod, ok && run.ExitCode == 0) {
			return false
		}
	}
	return len(in.Pod.Spec.Containers) > 0
}

func final(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

// restarts says whether a container that ended so is to be started again.
func restarts(pod *corev1.Pod, success bool) bool {
	switch pod.Spec.RestartPolicy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return !success
	default: // Always, also when empty
		return true
	}
}

// nextTerminating ends a pod: stop, note how each container ended, remove,
// detach, say so.
func nextTerminating(in podInput, now time.Time) action {
	m := in.Memory
	deadline := m.StoppingSince.Add(graceOf(in.Pod))
	var alive []runtime.ContainerID
	for _, c := range in.Observed.Containers {
		if c.State == runtime.StateRunning || c.State == runtime.StateUnknown {
			alive = append(alive, c.ID)
		}
	}
	// A stop that failed is tried again until the grace period is over; then
	// RemovePod, which kills, has its turn.
	if len(alive) > 0 && !m.Stopped && !(m.Cleanup.Failures > 0 && now.After(deadline)) {
		if wait, ok := m.Cleanup.wait(now); ok {
			return wait
		}
		return action{Kind: doStop, IDs: alive, At: deadline, Why: stopReason(in)}
	}
	if in.Pod != nil && len(alive) == 0 {
		if a, ok := nextMessage(in); ok {
			return a
		}
	}
	if wait, ok := m.Cleanup.wait(now); ok {
		return wait
	}
	switch {
	case !m.Removed || in.Observed.UID != "":
		return action{Kind: doRemovePod}
	case !m.Detached:
		return action{Kind: doDetach}
	default:
		return action{Kind: doFinish}
	}
}

// wait returns the wait before the next try, if one is due.
func (r retry) wait(now time.Time) (action, bool) {
	if r.Failures > 0 && now.Before(r.At) {
		return action{Kind: doWait, At: r.At, Why: r.Message}, true
	}
	return action{}, false
}

func stopReason(in podInput) string {
	switch {
	case in.Pod == nil:
		return "pod is not known"
	case in.Gone:
		return "pod is no longer desired"
	default:
		return "pod is deleted"
	}
}

func graceOf(pod *corev1.Pod) time.Duration {
	switch {
	case pod == nil:
		return defaultGrace
	case pod.DeletionGracePeriodSeconds != nil:
		return time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		return time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
	default:
		return defaultGrace
	}
}

// nextFinished keeps a finished pod's containers, for their logs, and gives its
// address back.
func nextFinished(in podInput, now time.Time) action {
	m := in.Memory
	var alive []runtime.ContainerID
	for _, c := range in.Observed.Containers {
		if c.State == runtime.StateRunning || c.State == runtime.StateUnknown {
			alive = append(alive, c.ID)
		}
	}
	if wait, ok := m.Cleanup.wait(now); ok {
		return wait
	}
	if len(alive) > 0 {
		return action{Kind: doStop, IDs: alive, At: now.Add(graceOf(in.Pod)), Why: "pod has finished"}
	}
	if a, ok := nextMessage(in); ok {
		return a
	}
	if !m.Detached {
		return action{Kind: doDetach}
	}
	return action{Kind: doWait}
}

// nextRunning starts what should run and does not.
func nextRunning(in podInput, now time.Time) action {
	m := in.Memory
	if a, ok := nextMessage(in); ok {
		return a
	}
	var wake time.Time // the earliest moment at which something is due
	waitFor := func(at time.Time) {
		if wake.IsZero() || at.Before(wake) {
			wake = at
		}
	}
	for i := range in.Pod.Spec.Containers {
		spec := &in.Pod.Spec.Containers[i]
		c := m.Containers[spec.Name]
		run, ok := latestRun(in.Observed, spec.Name)
		attempt := c.Attempt + 1
		switch {
		case ok && run.State == runtime.StateUnknown:
			continue // the next list will tell
		case ok && run.State == runtime.StateRunning:
			if run.SpecHash != "" && run.SpecHash != specHash(spec) {
				if wait, ok := c.Start.wait(now); ok {
					waitFor(wait.At)
					continue
				}
				return action{Kind: doStop, IDs: []runtime.ContainerID{run.ID}, At: now.Add(graceOf(in.Pod)), Why: "its definition changed"}
			}
			continue
		case ok && run.State == runtime.StateCreated:
			// An agent died, or a start failed, half way. Away with it, and again.
			return action{Kind: doRemoveContainer, IDs: []runtime.ContainerID{run.ID}, Why: "it was never started"}
		case ok || c.Lost:
			if !c.Replaced && !restarts(in.Pod, ok && run.ExitCode == 0) {
				continue
			}
			if due := c.Ended.Add(restartDelay(c.Ends)); now.Before(due) {
				waitFor(due)
				continue
			}
		}
		if in.Hold {
			continue // woken when the hold ends
		}
		// It is to be started. What the pod needs comes first.
		if wait, ok := m.Network.wait(now); ok {
			waitFor(wait.At)
			continue
		}
		if m.Attached == nil && !in.Pod.Spec.HostNetwork {
			return action{Kind: doAttach}
		}
		if !m.Created {
			return action{Kind: doCreate}
		}
		if wait, ok := c.Start.wait(now); ok {
			waitFor(wait.At)
			continue
		}
		if c.ImageFor != attempt {
			if wait, ok := c.Pull.wait(now); ok {
				waitFor(wait.At)
				continue
			}
			return action{Kind: doPull, Container: spec.Name, Attempt: attempt}
		}
		return action{Kind: doRun, Container: spec.Name, Attempt: attempt}
	}
	for _, c := range in.Observed.Containers {
		if c.State != runtime.StateExited {
			continue
		}
		if latest, _ := latestRun(in.Observed, c.ID.Name); c.ID.Attempt < latest.ID.Attempt-keptRuns {
			return action{Kind: doRemoveContainer, IDs: []runtime.ContainerID{c.ID}, Why: "it is too old to keep"}
		}
	}
	return action{Kind: doWait, At: wake}
}

// nextMessage fetches the termination messages that have not been fetched.
func nextMessage(in podInput) (action, bool) {
	for _, c := range in.Observed.Containers {
		if c.State != runtime.StateExited {
			continue
		}
		if latest, _ := latestRun(in.Observed, c.ID.Name); c.ID.Attempt < latest.ID.Attempt-keptRuns {
			continue
		}
		if _, ok := in.Memory.Messages[c.ID]; !ok && containerSpec(in.Pod, c.ID.Name) != nil {
			return action{Kind: doMessage, IDs: []runtime.ContainerID{c.ID}}, true
		}
	}
	return action{}, false
}

// applied records in memory how an action ended. It is pure but for the memory.
func applied(m *podMemory, a action, err error, now time.Time) {
	c := m.Containers[a.Container]
	switch a.Kind {
	case doAttach, doCreate:
		if err != nil {
			m.Network.fail(now, reasonSandbox, err.Error(), time.Second, cleanupBackoffMax)
			return
		}
		m.Network = retry{}
		m.Created = m.Created || a.Kind == doCreate
	case doPull:
		if err != nil {
			reason := reasonErrImagePull
			if errors.Is(err, runtime.ErrImageNeverPull) {
				reason = reasonErrImageNeverPull
			}
			c.Pull.fail(now, reason, err.Error(), retryBackoffFirst, retryBackoffMax)
			return
		}
		c.Pull = retry{}
		c.ImageFor = a.Attempt
	case doRun:
		if errors.Is(err, runtime.ErrExists) {
			// The next list shows it, and ends this pause; if it does not, it is
			// not asked for without one.
			c.Start.fail(now, reasonRunContainerError, err.Error(), time.Second, retryBackoffMax)
			return
		}
		c.ImageFor = -1 // each start looks after its image
		if err == nil {
			c.Start = retry{}
			return
		}
		reason := reasonRunContainerError
		if errors.Is(err, errConfig) {
			reason = reasonConfigError
		}
		if errors.Is(err, runtime.ErrNotFound) {
			m.Created = false
		}
		c.Start.fail(now, reason, err.Error(), retryBackoffFirst, retryBackoffMax)
	case doStop:
		if m.StoppingSince.IsZero() {
			if err == nil {
				return
			}
			for _, id := range a.IDs {
				if c := m.Containers[id.Name]; c != nil {
					c.Start.fail(now, reasonRunContainerError, err.Error(), retryBackoffFirst, retryBackoffMax)
				}
			}
			return
		}
		m.cleaned(err, now)
		m.Stopped = err == nil
	case doRemoveContainer:
		id := a.IDs[0]
		if c := m.Containers[id.Name]; c != nil && id.Attempt == c.Attempt && err == nil {
			// It never ran: as if it had not been.
			c.Attempt--
			c.Ended = time.Time{}
		}
	case doRemovePod:
		m.cleaned(err, now)
		m.Removed = err == nil
		m.Created = false
	case doDetach:
		m.cleaned(err, now)
		m.Detached = err == nil
		if err == nil {
			m.Attached = nil
		}
	case doWait, doMessage, doFinish:
	}
}

// cleaned records how a step of the pod's end went.
func (m *podMemory) cleaned(err error, now time.Time) {
	if err == nil {
		m.Cleanup = retry{}
		return
	}
	m.Cleanup.fail(now, "", err.Error(), cleanupBackoffFirst, cleanupBackoffMax)
}

// preempts says whether an action that is under way should be broken off because
// another is due now. Calls for one pod never overlap, so it ends first.
func preempts(due, underWay action) bool {
	switch underWay.Kind {
	case doAttach, doCreate, doPull, doRun:
		switch due.Kind {
		case doStop, doRemovePod, doDetach, doFinish:
			return true
		default:
			return false
		}
	case doStop:
		// The grace period was cut short.
		return due.Kind == doStop && due.At.Before(underWay.At.Add(-time.Second/2))
	default:
		return false
	}
}

// latestRun returns the run of a container with the highest attempt.
func latestRun(p runtime.PodState, name string) (runtime.ContainerState, bool) {
	var found runtime.ContainerState
	ok := false
	for _, c := range p.Containers {
		if c.ID.Name == name && (!ok || c.ID.Attempt > found.ID.Attempt) {
			found, ok = c, true
		}
	}
	return found, ok
}

// runBefore returns the run of a container before the given attempt that is
// still there.
func runBefore(p runtime.PodState, name string, attempt int) (runtime.ContainerState, bool) {
	runs := slices.DeleteFunc(slices.Clone(p.Containers), func(c runtime.ContainerState) bool {
		return c.ID.Name != name || c.ID.Attempt >= attempt
	})
	if len(runs) == 0 {
		return runtime.ContainerState{}, false
	}
	return slices.MaxFunc(runs, func(a, b runtime.ContainerState) int { return cmp.Compare(a.ID.Attempt, b.ID.Attempt) }), true
}

func containerSpec(pod *corev1.Pod, name string) *corev1.Container {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i]
		}
	}
	return nil
}

func containerStatus(all []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}
