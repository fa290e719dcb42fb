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

	"github.com/holdfast-io/holdfast/agent/probe"
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
	// confirmBackoffMax is the most for asking whether a pod is to end.
	confirmBackoffMax = 5 * time.Second
	// defaultGrace is Kubernetes' default for terminationGracePeriodSeconds.
	defaultGrace = 30 * time.Second
	// lastGrace is what a container is given whose turn to stop comes after the
	// grace period of its pod.
	lastGrace = 2 * time.Second
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
	// Static: the pod is from a folder of the node, whose word suffices to end it.
	Static bool
	// VolumesKey identifies what the pod's volumes should show.
	VolumesKey string
	// TokensDue is when that becomes another one because tokens are to be replaced; zero: never.
	TokensDue time.Time
	// Hold: start nothing yet, no peer was heard since the agent started.
	Hold bool
	// Evicted is why the pod is to end, though it is desired: the node is short of
	// something, or the pod takes too much. Empty: it is not.
	Evicted string
	// Pressure is what the node is short of: new pods are not begun.
	Pressure []corev1.NodeConditionType
	// Reclaim: the node is short of disk, ended containers are to go.
	Reclaim bool
	// Lease is the node's, for a fenced pod; nil for others.
	Lease *podLease
	// Room changes when pods of the node give something back.
	Room uint64
	// Probes holds what probes have found out: no entry, not enough yet.
	Probes map[probe.Key]probe.Result
}

// podMemory is what a worker knows about its pod that the runtime does not.
// Losing it, with the agent, costs repeated calls and shorter backoffs only.
type podMemory struct {
	FirstSeen time.Time // start time of the pod's status, unless it has one
	Attached  *Attachment
	// AttachedAt is when Attached was made; zero: it was there when the worker
	// began. What init containers did before is gone with the network before.
	AttachedAt time.Time
	// Created: CreatePod has succeeded since the worker began.
	Created bool
	Network retry // of Attach and CreatePod
	// Shown is the VolumesKey of what the volumes show, as far as the worker knows.
	Shown      string
	Volumes    retry // of bringing them up to date
	Containers map[string]*containerMemory
	// Confirmed: a quorum has confirmed that the pod is to end. Confirm is about the
	// tries to learn that.
	Confirmed bool
	Confirm   retry
	// StoppingSince is when that was, on this worker's clock: the grace period counts
	// from there, whatever other clocks say.
	StoppingSince time.Time
	// Stopped holds the runs that were stopped because the pod ends.
	Stopped map[runtime.ContainerID]bool
	// Removed and Detached are steps of the end that are done.
	Removed, Detached bool
	Cleanup           retry // of those steps
	// PreStop holds the runs whose hook preStop was begun.
	PreStop map[runtime.ContainerID]bool
	// Allowed is the epoch of the lease under which the pod may be started, 0 for none; Allow is
	// about the tries to learn that.
	Allowed int
	Allow   retry
	// Overdue: the pod has been active for longer than its activeDeadlineSeconds.
	Overdue bool
	// Evicted is why the pod was ended before its time; empty: it was not. Admitted: it
	// was decided that the node has room for it.
	Evicted  string
	Admitted bool
	// Resize is what it has of the node's CPU and memory, and what it is to get.
	Resize resizing
	// Released: the volumes of the finished pod were taken away.
	Released bool
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
	// Succeeded: that run had ended well.
	Lost, Succeeded bool
	// Replaced: it was stopped to be started again as the spec says now.
	Replaced bool
	// Unhealthy: it was stopped because it failed a probe or its hook postStart.
	Unhealthy bool
	// Fresh is the run that this worker has started and whose hook postStart has
	// not ended yet, -1 for none.
	Fresh int
	// HookFailed says how that hook failed; "": it did not.
	HookFailed string
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
	// doConfirm asks a quorum whether the pod is really to end.
	doConfirm actionKind = "confirm"
	// doAllow asks whether a fenced pod may be started under lease Attempt.
	doAllow actionKind = "allow"
	// doWait: nothing to do before action.At, or a change if At is zero.
	doWait actionKind = "wait"
	// doAttach gives the pod its network.
	doAttach actionKind = "attach"
	// doCreate makes what the pod's containers share.
	doCreate actionKind = "create-pod"
	// doVolumes brings what the pod's volumes show up to date.
	doVolumes actionKind = "update-volumes"
	// doPull makes the image of Container present for run Attempt.
	doPull actionKind = "pull"
	// doRun creates and starts run Attempt of Container.
	doRun actionKind = "run"
	// doPostStart runs the hook postStart of run Attempt of Container.
	doPostStart actionKind = "post-start"
	// doAllocate asks for the node's CPU and memory that the pod wants.
	doAllocate actionKind = "allocate"
	// doResize gives the pod, and its running containers IDs, what is allocated to them.
	doResize actionKind = "resize"
	// doStop stops IDs in parallel, those in PreStop after their hooks. At is when
	// the grace period ends.
	doStop actionKind = "stop"
	// doRemoveContainer forgets the run IDs[0].
	doRemoveContainer actionKind = "remove-container"
	// doMessage fetches the termination message of the run IDs[0].
	doMessage actionKind = "message"
	// doRemovePod frees what the runtime holds for the pod.
	doRemovePod actionKind = "remove-pod"
	// doDetach takes the pod's network away.
	doDetach actionKind = "detach"
	// doRelease takes the volumes of a finished pod away.
	doRelease actionKind = "release-volumes"
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
	// PreStop is which of IDs have a hook to be run before.
	PreStop []runtime.ContainerID
	// Wants is the pod of which the resources are asked for, and Room the state of the
	// node's room when that was answered.
	Wants *corev1.Pod
	Room  uint64
	// Then is what follows the stop of a container in a pod that goes on.
	Then aftermath
	// Why is for events and logs.
	Why string
}

// aftermath is what follows the stop of a container.
type aftermath int

const (
	thenEnd     aftermath = iota // nothing
	thenReplace                  // it is started anew as its spec says now
	thenRestart                  // it had failed, and is treated as its restart policy says
)

// text is the action's stable text form, times relative to now.
func (a action) text(now time.Time) string {
	var b strings.Builder
	b.WriteString(string(a.Kind))
	if a.Container != "" {
		fmt.Fprintf(&b, " %s/%d", a.Container, a.Attempt)
	}
	for _, id := range a.IDs {
		fmt.Fprintf(&b, " %s/%d", id.Name, id.Attempt)
		if slices.Contains(a.PreStop, id) {
			b.WriteString("+hook")
		}
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
	if m.Stopped == nil {
		m.Stopped = map[runtime.ContainerID]bool{}
	}
	if m.PreStop == nil {
		m.PreStop = map[runtime.ContainerID]bool{}
	}
	switch {
	case !terminating(in):
		m.Confirm = retry{}
	case in.Static && !m.Confirmed:
		m.Confirmed, m.StoppingSince = true, now
	}
	if !terminating(in) && m.Confirmed {
		// Desired again after all: as if its end had not begun.
		m.Confirmed, m.StoppingSince = false, time.Time{}
		m.Removed, m.Detached, m.Cleanup = false, false, retry{}
		clear(m.Stopped)
	}
	unlisted := func(id runtime.ContainerID) bool {
		return in.Observed.UID != "" && !slices.ContainsFunc(in.Observed.Containers, func(c runtime.ContainerState) bool { return c.ID == id })
	}
	maps.DeleteFunc(m.Messages, func(id runtime.ContainerID, _ string) bool { return unlisted(id) })
	maps.DeleteFunc(m.PreStop, func(id runtime.ContainerID, _ bool) bool { return unlisted(id) })
	if in.Pod == nil {
		return
	}
	m.Resize.fill(in.Pod)
	if at := deadlineOf(in); !at.IsZero() && !now.Before(at) && !finished(in) {
		m.Overdue = true
	}
	switch {
	case terminating(in) || finished(in):
	case in.Evicted != "":
		m.Evicted = in.Evicted
	case !m.Admitted && !in.Hold:
		m.Admitted = true
		if in.Pod.Status.StartTime == nil && in.Observed.UID == "" { // it is new here
			m.Evicted = refused(podUse{Pod: in.Pod, Static: in.Static}, in.Pressure)
		}
	}
	for _, p := range parts(in.Pod) {
		name := p.spec.Name
		c := m.Containers[name]
		latest, ok := latestRun(in.Observed, name)
		if c == nil {
			c = &containerMemory{Attempt: -1, ImageFor: -1, Fresh: -1}
			m.Containers[name] = c
			recorded := recordedStatus(&in.Pod.Status, name)
			switch {
			case ok && latest.ID.Attempt > 0:
				// Adopted. How fast the earlier runs ended is not known; that they
				// did is reason for caution.
				c.Ends = latest.ID.Attempt
			case !ok && recorded != nil && recorded.ContainerID != "":
				c.Attempt = int(recorded.RestartCount)
				c.Lost, c.Succeeded = true, succeededBy(recorded)
				c.Ended = now
				c.Ends = 1
			}
		}
		switch {
		case ok && latest.ID.Attempt > c.Attempt:
			c.Attempt = latest.ID.Attempt
			c.Ended = time.Time{}
			c.Lost, c.Succeeded, c.Replaced, c.Unhealthy, c.HookFailed = false, false, false, false, ""
			c.Pull, c.Start = retry{}, retry{}
		case !ok && c.Attempt >= 0 && !c.Lost && !in.Memory.Removed:
			// It was there, and no one here removed it.
			c.Lost = true
			if m.Status != nil {
				c.Succeeded = succeededBy(recordedStatus(m.Status, name))
			}
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
	if a, ok := nextFenced(in, now); ok {
		return a
	}
	switch {
	case terminating(in):
		return nextTerminating(in, now)
	case finished(in):
		return nextFinished(in, now)
	default:
		if a, ok := nextVolumes(in, now); ok {
			return a
		}
		return nextRunning(in, now)
	}
}

func terminating(in podInput) bool {
	return in.Gone || in.Pod == nil || in.Pod.DeletionTimestamp != nil
}

// finished says whether the pod has run to its end, by what was recorded or by
// what is seen, and nothing of it is to be started again. Sidecars may still run.
func finished(in podInput) bool {
	if s := in.Memory.Status; s != nil && final(s.Phase) || final(in.Pod.Status.Phase) || in.Memory.Overdue || in.Memory.Evicted != "" {
		return true
	}
	if initFailed(in) {
		return true
	}
	for _, p := range parts(in.Pod) {
		if p.role == mainRole && !over(in, p) {
			return false
		}
	}
	return len(in.Pod.Spec.Containers) > 0
}

// over says whether a container has ended and is not to be started again.
func over(in podInput, p part) bool {
	c := in.Memory.Containers[p.spec.Name]
	return c != nil && !c.Ended.IsZero() && !restarts(in, p, c)
}

// initFailed says whether an init container has failed for good.
func initFailed(in podInput) bool {
	if initialized(in) {
		return false
	}
	for _, p := range parts(in.Pod) {
		if p.role == initRole && over(in, p) && !initDone(in, p) {
			run, ok := latestRun(in.Observed, p.spec.Name)
			return !ok || in.Memory.current(run) // what ended in an earlier network begins anew
		}
	}
	return false
}

func final(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

// restarts says whether a container that has ended is to be started again. A
// container's own policy goes before its pod's, and its rules before that. Init
// containers are done once they have succeeded.
func restarts(in podInput, p part, c *containerMemory) bool {
	if p.role == ephemeralRole {
		return false
	}
	if c.Replaced || p.role == sidecarRole {
		return true
	}
	run, known := latestRun(in.Observed, p.spec.Name)
	success := known && run.ExitCode == 0
	if known && !c.Unhealthy {
		for _, rule := range p.spec.RestartPolicyRules {
			if rule.Action != corev1.ContainerRestartRuleActionRestart || rule.ExitCodes == nil {
				continue
			}
			listed := slices.Contains(rule.ExitCodes.Values, int32(run.ExitCode))
			if listed == (rule.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
				return true
			}
		}
	}
	policy := in.Pod.Spec.RestartPolicy
	if own := p.spec.RestartPolicy; own != nil {
		policy = corev1.RestartPolicy(*own)
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return !success || c.Unhealthy
	default: // Always, also when empty
		return p.role != initRole || !success
	}
}

// initialized says whether the init containers have had their turn: a container
// that comes after all of them was started in the pod's present network.
func initialized(in podInput) bool {
	for i := range in.Pod.Spec.Containers {
		run, ok := latestRun(in.Observed, in.Pod.Spec.Containers[i].Name)
		if ok && run.State != runtime.StateCreated && in.Memory.current(run) {
			return true
		}
	}
	return false
}

// current says whether a run began in the pod's present network.
func (m *podMemory) current(run runtime.ContainerState) bool {
	return !run.StartedAt.Before(m.AttachedAt)
}

// initDone says whether an init container has succeeded. What a lost one did is
// gone with it, unless it may not be run a second time.
func initDone(in podInput, p part) bool {
	if run, ok := latestRun(in.Observed, p.spec.Name); ok {
		return run.State == runtime.StateExited && run.ExitCode == 0 && in.Memory.current(run) && !in.Memory.Containers[p.spec.Name].Replaced
	}
	c := in.Memory.Containers[p.spec.Name]
	return c.Lost && c.Succeeded && in.Pod.Spec.RestartPolicy == corev1.RestartPolicyNever
}

// started says whether a container runs and is past its hook postStart and its
// startup probe.
func started(in podInput, p part) bool {
	run, ok := latestRun(in.Observed, p.spec.Name)
	if !ok || run.State != runtime.StateRunning && run.State != runtime.StateUnknown || hookPending(in, p, run) {
		return false
	}
	return p.spec.StartupProbe == nil || verdict(in, run, probe.Startup) == probe.Success
}

// hookPending says whether the run's hook postStart is still to be run, or has
// failed.
func hookPending(in podInput, p part, run runtime.ContainerState) bool {
	if l := p.spec.Lifecycle; l == nil || l.PostStart == nil {
		return false
	}
	c := in.Memory.Containers[p.spec.Name]
	return c.Fresh == run.ID.Attempt || c.HookFailed != ""
}

// deadlineOf returns when the pod has been active for too long; zero: never.
func deadlineOf(in podInput) time.Time {
	if in.Pod.Spec.ActiveDeadlineSeconds == nil {
		return time.Time{}
	}
	return startTime(in).Add(time.Duration(*in.Pod.Spec.ActiveDeadlineSeconds) * time.Second)
}

// startTime is when the agent first saw the pod, in this life or an earlier one.
func startTime(in podInput) time.Time {
	if t := in.Pod.Status.StartTime; t != nil {
		return t.Time
	}
	return in.Memory.FirstSeen
}

// nextTerminating ends a pod: make sure that it is to end, stop, note how each container ended, remove,
// detach, say so.
func nextTerminating(in podInput, now time.Time) action {
	m := in.Memory
	if !m.Confirmed {
		if wait, ok := m.Confirm.wait(now); ok {
			return wait
		}
		return action{Kind: doConfirm, Why: stopReason(in)}
	}
	grace := graceOf(in.Pod)
	deadline := m.StoppingSince.Add(grace)
	alive := aliveIn(in)
	// A stop that failed is tried again until the grace period is over; then
	// RemovePod, which kills, has its turn.
	if len(alive) > 0 && !(m.Cleanup.Failures > 0 && now.After(deadline)) {
		if wait, ok := m.Cleanup.wait(now); ok {
			return wait
		}
		if now.Before(deadline) {
			return stop(in, firstToStop(in.Pod, alive), deadline, stopReason(in))
		}
		if grace > 0 {
			deadline = now.Add(lastGrace)
		}
		return stop(in, alive, deadline, stopReason(in))
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

// aliveIn returns the runs that have not ended, as far as is known, but for those
// that were stopped because the pod ends.
func aliveIn(in podInput) (alive []runtime.ContainerID) {
	for _, c := range in.Observed.Containers {
		if (c.State == runtime.StateRunning || c.State == runtime.StateUnknown) && !in.Memory.Stopped[c.ID] {
			alive = append(alive, c.ID)
		}
	}
	return alive
}

// firstToStop returns which of the pod's runs are stopped first: all but the
// sidecars, and then those one by one, the one that began last before the others.
func firstToStop(pod *corev1.Pod, alive []runtime.ContainerID) []runtime.ContainerID {
	if pod == nil {
		return alive
	}
	var sidecars []string
	for _, p := range parts(pod) {
		if p.role == sidecarRole {
			sidecars = append(sidecars, p.spec.Name)
		}
	}
	others := slices.DeleteFunc(slices.Clone(alive), func(id runtime.ContainerID) bool { return slices.Contains(sidecars, id.Name) })
	if len(others) > 0 {
		return others
	}
	last := slices.MaxFunc(alive, func(a, b runtime.ContainerID) int {
		return cmp.Compare(slices.Index(sidecars, a.Name), slices.Index(sidecars, b.Name))
	})
	return []runtime.ContainerID{last}
}

// stop is the action that stops runs, with the hooks that have not been begun.
func stop(in podInput, ids []runtime.ContainerID, at time.Time, why string) action {
	a := action{Kind: doStop, IDs: ids, At: at, Why: why}
	for _, id := range ids {
		if in.Pod == nil || in.Memory.PreStop[id] {
			continue
		}
		if spec := containerSpec(in.Pod, id.Name); spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil {
			a.PreStop = append(a.PreStop, id)
		}
	}
	return a
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

// nextFinished keeps a finished pod's containers, unless it was evicted or the node is short of
// disk, and gives back its address and its volumes. Logs stay in any case.
func nextFinished(in podInput, now time.Time) action {
	m := in.Memory
	if wait, ok := m.Cleanup.wait(now); ok {
		return wait
	}
	if alive := aliveIn(in); len(alive) > 0 {
		why, grace := "pod has finished", graceOf(in.Pod)
		switch {
		case m.Overdue:
			why = "pod has been active for longer than its deadline"
		case m.Evicted != "":
			why, grace = "pod is evicted", min(grace, evictionGrace)
		}
		return stop(in, firstToStop(in.Pod, alive), now.Add(grace), why)
	}
	if a, ok := nextMessage(in); ok {
		return a
	}
	switch {
	case !m.Detached:
		return action{Kind: doDetach}
	case in.Reclaim || m.Evicted != "":
		for _, c := range in.Observed.Containers {
			if c.State == runtime.StateExited {
				return action{Kind: doRemoveContainer, IDs: []runtime.ContainerID{c.ID}, Why: "the node needs its space"}
			}
		}
	}
	if !m.Released {
		return action{Kind: doRelease}
	}
	return action{Kind: doWait}
}

// nextRunning starts what should run and does not.
func nextRunning(in podInput, now time.Time) action {
	if a, ok := nextMessage(in); ok {
		return a
	}
	if a, ok := nextResize(in, now); ok {
		return a
	}
	var wake time.Time // the earliest moment at which something is due
	waitFor := func(at time.Time) {
		if wake.IsZero() || at.Before(wake) {
			wake = at
		}
	}
	if at := deadlineOf(in); !at.IsZero() {
		waitFor(at)
	}
	if in.TokensDue.After(now) {
		waitFor(in.TokensDue)
	}
	if in.VolumesKey != in.Memory.Shown && in.Memory.Volumes.Failures > 0 && in.Memory.Volumes.At.After(now) {
		waitFor(in.Memory.Volumes.At)
	}
	if z := &in.Memory.Resize.Apply; z.Failures > 0 && z.At.After(now) {
		waitFor(z.At)
	}
	past := initialized(in)
	blocked := false // a sidecar is not up yet
	for _, p := range parts(in.Pod) {
		if p.role == initRole && (past || initDone(in, p)) || p.role == ephemeralRole {
			continue
		}
		if _, begun := latestRun(in.Observed, p.spec.Name); blocked && !begun {
			continue
		}
		a := nextOf(in, p, now)
		if a.Kind != doWait {
			return a
		}
		if !a.At.IsZero() {
			waitFor(a.At)
		}
		if p.role == initRole {
			break // nothing after it before it has succeeded
		}
		blocked = blocked || p.role == sidecarRole && !started(in, p)
	}
	// Those that are there to look into the pod come whenever nothing else is due.
	for _, p := range parts(in.Pod) {
		if p.role != ephemeralRole {
			continue
		}
		a := nextOf(in, p, now)
		if a.Kind != doWait {
			return a
		}
		if !a.At.IsZero() {
			waitFor(a.At)
		}
	}
	for _, c := range in.Observed.Containers {
		if c.State != runtime.StateExited {
			continue
		}
		kept := keptRuns
		if in.Reclaim {
			kept = 0
		}
		if latest, _ := latestRun(in.Observed, c.ID.Name); c.ID.Attempt < latest.ID.Attempt-kept {
			return action{Kind: doRemoveContainer, IDs: []runtime.ContainerID{c.ID}, Why: "it is too old to keep"}
		}
	}
	return action{Kind: doWait, At: wake}
}

// nextOf returns what to do about one container of a pod that goes on.
func nextOf(in podInput, p part, now time.Time) action {
	m, spec := in.Memory, p.spec
	c := m.Containers[spec.Name]
	run, ok := latestRun(in.Observed, spec.Name)
	attempt := c.Attempt + 1
	switch {
	case ok && run.State == runtime.StateUnknown:
		return action{Kind: doWait} // the next list will tell
	case ok && run.State == runtime.StateRunning:
		return nextOfRunning(in, p, run, now)
	case ok && run.State == runtime.StateCreated:
		// An agent died, or a start failed, half way. Away with it, and again.
		return action{Kind: doRemoveContainer, IDs: []runtime.ContainerID{run.ID}, Why: "it was never started"}
	case ok && p.role == initRole && !m.current(run): // what it did is gone
	case ok || c.Lost:
		if !restarts(in, p, c) {
			return action{Kind: doWait}
		}
		if due := c.Ended.Add(restartDelay(c.Ends)); now.Before(due) {
			return action{Kind: doWait, At: due}
		}
	}
	if in.Hold {
		return action{Kind: doWait} // woken when the hold ends
	}
	// It is to be started. What the pod needs comes first.
	if wait, ok := m.Network.wait(now); ok {
		return wait
	}
	if m.Attached == nil && !in.Pod.Spec.HostNetwork {
		return action{Kind: doAttach}
	}
	if !m.Created {
		return action{Kind: doCreate}
	}
	if wait, ok := c.Start.wait(now); ok {
		return wait
	}
	if c.ImageFor != attempt {
		if wait, ok := c.Pull.wait(now); ok {
			return wait
		}
		return action{Kind: doPull, Container: spec.Name, Attempt: attempt}
	}
	if a, ok := nextAllowed(in, now); ok {
		return a
	}
	return action{Kind: doRun, Container: spec.Name, Attempt: attempt}
}

// nextOfRunning returns what to do about a container that runs.
func nextOfRunning(in podInput, p part, run runtime.ContainerState, now time.Time) action {
	c := in.Memory.Containers[p.spec.Name]
	kill := func(then aftermath, grace time.Duration, why string) action {
		if wait, ok := c.Start.wait(now); ok { // stopping it has failed
			return wait
		}
		a := stop(in, []runtime.ContainerID{run.ID}, now.Add(grace), why)
		a.Then = then
		return a
	}
	grace := graceOf(in.Pod)
	switch {
	case run.SpecHash != "" && run.SpecHash != specHash(p.spec):
		return kill(thenReplace, grace, "its definition changed")
	case c.HookFailed != "":
		return kill(thenRestart, grace, "its postStart hook failed")
	case verdict(in, run, probe.Startup) == probe.Failure:
		return kill(thenRestart, probeGrace(in.Pod, p.spec.StartupProbe), "it failed its startup probe")
	case verdict(in, run, probe.Liveness) == probe.Failure:
		return kill(thenRestart, probeGrace(in.Pod, p.spec.LivenessProbe), "it failed its liveness probe")
	case hookPending(in, p, run):
		return action{Kind: doPostStart, Container: p.spec.Name, Attempt: run.ID.Attempt}
	default:
		return action{Kind: doWait}
	}
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

// began records in memory that an action is about to be done. It is pure but for
// the memory.
func began(m *podMemory, a action) {
	if a.Kind != doStop {
		return
	}
	for _, id := range a.PreStop {
		m.PreStop[id] = true
	}
	for _, id := range a.IDs {
		if c := m.Containers[id.Name]; c != nil && a.Then != thenEnd {
			c.Replaced, c.Unhealthy = a.Then == thenReplace, a.Then == thenRestart
		}
	}
}

// applied records in memory how an action ended. It is pure but for the memory.
func applied(m *podMemory, a action, err error, now time.Time) {
	c := m.Containers[a.Container]
	switch a.Kind {
	case doConfirm:
		if err != nil {
			m.Confirm.fail(now, "", err.Error(), cleanupBackoffFirst, confirmBackoffMax)
			return
		}
		m.Confirmed, m.StoppingSince, m.Confirm = true, now, retry{}
	case doAllow:
		if err != nil {
			m.Allow.fail(now, "", err.Error(), cleanupBackoffFirst, confirmBackoffMax)
			return
		}
		m.Allowed, m.Allow = a.Attempt, retry{}
	case doAttach, doCreate:
		if err != nil {
			reason := reasonSandbox
			if errors.Is(err, errVolumes) {
				reason = reasonMount
			}
			m.Network.fail(now, reason, err.Error(), time.Second, cleanupBackoffMax)
			return
		}
		m.Network = retry{}
		if a.Kind == doAttach {
			m.AttachedAt = now
		}
		m.Created = m.Created || a.Kind == doCreate
	case doVolumes:
		if err != nil {
			m.Volumes.fail(now, reasonMount, err.Error(), time.Second, retryBackoffMax)
			return
		}
		m.Volumes = retry{}
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
			c.Fresh = a.Attempt
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
	case doAllocate:
		m.Resize.allocated(a.Wants, a.Room, err)
	case doResize:
		if err != nil {
			m.Resize.Apply.fail(now, corev1.PodReasonError, err.Error(), cleanupBackoffFirst, retryBackoffMax)
			return
		}
		m.Resize.Apply = retry{}
	case doPostStart:
		c.Fresh = -1
		if err != nil {
			c.HookFailed = err.Error()
		}
	case doStop:
		if a.Then != thenEnd {
			for _, id := range a.IDs {
				c := m.Containers[id.Name]
				switch {
				case c == nil:
				case err == nil:
					c.Start = retry{}
				default:
					c.Start.fail(now, reasonRunContainerError, err.Error(), retryBackoffFirst, retryBackoffMax)
				}
			}
			return
		}
		m.cleaned(err, now)
		for _, id := range a.IDs {
			m.Stopped[id] = err == nil
		}
	case doRemoveContainer:
		id := a.IDs[0]
		if err != nil {
			m.cleaned(err, now) // of a finished pod: not again at once
		}
		if c := m.Containers[id.Name]; c != nil && id.Attempt == c.Attempt && err == nil && c.Ended.IsZero() {
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
	case doRelease:
		m.cleaned(err, now)
		m.Released = err == nil
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
	case doAttach, doCreate, doVolumes, doPull, doRun, doPostStart, doAllocate, doResize:
		switch due.Kind {
		case doConfirm, doStop, doRemovePod, doDetach, doFinish:
			return true
		default:
			return false
		}
	case doStop:
		// The grace period was cut short, or it is the whole pod that ends now.
		return due.Kind == doConfirm || due.Kind == doStop && (due.At.Before(underWay.At.Add(-time.Second/2)) || underWay.Then != thenEnd && due.Then == thenEnd)
	case doConfirm, doAllow, doMessage:
		return due.Kind == doStop && due.Then == thenRestart // the lease ends
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

// part is a container of a pod with what it is there for.
type part struct {
	spec *corev1.Container
	role role
}

type role int

const (
	mainRole    role = iota
	initRole         // runs to its end before what comes after it
	sidecarRole      // an init container that goes on beside what comes after it
	// ephemeralRole is added to a running pod to look into it, and run once.
	ephemeralRole
)

// parts returns a pod's containers in the order in which they start.
func parts(pod *corev1.Pod) []part {
	all := make([]part, 0, len(pod.Spec.InitContainers)+len(pod.Spec.Containers))
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, part{c, sidecarRole})
		} else {
			all = append(all, part{c, initRole})
		}
	}
	for i := range pod.Spec.Containers {
		all = append(all, part{&pod.Spec.Containers[i], mainRole})
	}
	for i := range pod.Spec.EphemeralContainers {
		// Kubernetes keeps the two types alike for this.
		all = append(all, part{(*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon), ephemeralRole})
	}
	return all
}

// containerSpec returns the container of that name, of whatever kind, or nil.
func containerSpec(pod *corev1.Pod, name string) *corev1.Container {
	for _, p := range parts(pod) {
		if p.spec.Name == name {
			return p.spec
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

// recordedStatus returns what a status says of a container of any kind, or nil.
func recordedStatus(s *corev1.PodStatus, name string) *corev1.ContainerStatus {
	if c := containerStatus(s.InitContainerStatuses, name); c != nil {
		return c
	}
	if c := containerStatus(s.ContainerStatuses, name); c != nil {
		return c
	}
	return containerStatus(s.EphemeralContainerStatuses, name)
}

func succeededBy(s *corev1.ContainerStatus) bool {
	return s != nil && s.State.Terminated != nil && s.State.Terminated.ExitCode == 0
}
