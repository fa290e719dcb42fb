package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/agent/probe"
	"github.com/holdfast-io/holdfast/agent/runtime"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

const (
	// attachTimeout, createTimeout and so on bound single calls of the runtime
	// and the network. A call that is broken off is made again.
	attachTimeout  = 30 * time.Second
	createTimeout  = 2 * time.Minute
	removeTimeout  = 2 * time.Minute
	messageTimeout = 10 * time.Second
	pullTimeout    = 30 * time.Minute
	// confirmTimeout is longer than a peer waits for a leader (10 s).
	confirmTimeout = 15 * time.Second
	// hookTimeout is for the hook postStart, which Kubernetes does not bound.
	hookTimeout = 24 * time.Hour
	// stopSlack is how long after its grace period a stop may take to kill.
	stopSlack = time.Minute
)

// worker runs one pod: it asks next what to do, does it, one thing at a time,
// and reports what it sees. The decisions are all in step.go.
type worker struct {
	p   *pods
	uid string
	// static: the pod is from a folder of the node, not from the peers.
	static bool
	wake   chan struct{} // of capacity 1; carries nothing
	log    *slog.Logger
	// needList is the first list that is not out of date for the worker.
	needList atomic.Uint64
	// address is the pod's, for probes and hooks; "" if it has none.
	address atomic.Value
	// over: the pod is at its end or past it.
	over atomic.Bool

	mu sync.Mutex
	// pod and gone are what is desired; set by pods.
	pod  *corev1.Pod
	gone bool
	// evicted is why the pod is to end all the same; "": it is not.
	evicted string
	// tokens are replaced whole, never changed.
	tokens heldTokens
	// named is what the pod names; fresh: it has changed since the worker looked.
	named podInputs
	fresh bool
	// freshSecrets: and so have its pull secrets.
	freshSecrets bool

	// The rest belongs to the worker's goroutine.
	memory podMemory
	image  map[string]runtime.Image // by container, for the next run
	done   bool                     // finish was reported
	began  time.Time                // for the metric of pod starts
	// accounted: the node's room is taken for the pod, and not given back.
	accounted bool
	// drained: no new connections come. Of the goroutine of the action under way.
	drained bool
}

// outcome is how an action ended.
type outcome struct {
	action  action
	err     error
	broken  bool // off, for something more urgent
	attach  *Attachment
	image   runtime.Image
	shown   string // by the volumes
	message string
}

func (w *worker) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// waitsFor says whether the worker has been waiting for list seq or one before.
func (w *worker) waitsFor(seq uint64) bool {
	need := w.needList.Load()
	return need != 0 && need <= seq && w.needList.CompareAndSwap(need, 0)
}

func (w *worker) desire(pod *corev1.Pod, named podInputs, gone bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if pod != nil {
		w.pod = pod
		w.fresh = w.fresh || !w.named.same(named)
		w.freshSecrets = w.freshSecrets || slices.ContainsFunc(pod.Spec.ImagePullSecrets, func(ref corev1.LocalObjectReference) bool {
			key := keyOf[corev1.Secret](pod.Namespace, ref.Name)
			return w.named[key] != named[key]
		})
		w.named = named
	}
	w.gone = gone
}

func (w *worker) desired() (*corev1.Pod, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod, w.gone
}

func (w *worker) inputs() podInputs {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.named
}

// freshInputs says, once, that what the pod names has changed, and whether its pull
// secrets have.
func (w *worker) freshInputs() (fresh, secrets bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fresh, secrets = w.fresh, w.freshSecrets
	w.fresh, w.freshSecrets = false, false
	return fresh, secrets
}

// evict ends the pod for good.
func (w *worker) evict(why string) {
	w.mu.Lock()
	w.evicted = why
	w.mu.Unlock()
	w.notify()
}

func (w *worker) evictedFor() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.evicted
}

// ended says whether the pod is at its end or past it.
func (w *worker) ended() bool { return w.over.Load() || w.evictedFor() != "" }

// run works until ctx ends, or until nothing is left of a pod that is not
// desired.
func (w *worker) run(ctx context.Context) {
	w.began = time.Now()
	w.image = map[string]runtime.Image{}
	var (
		running *action            // under way
		stopIt  context.CancelFunc // breaks it off
		ended   = make(chan outcome, 1)
		timer   = time.NewTimer(time.Hour)
	)
	defer timer.Stop()
	defer func() {
		if running != nil {
			stopIt()
			<-ended
		}
	}()
	defer w.p.allocations.release(w.uid)
	if a, ok := w.p.attachment(w.uid); ok {
		w.memory.Attached = &a // adopted
	}
	probes := probe.NewSet(ctx, probe.Config{Limits: w.p.probeLimits, Ask: w.ask, Told: w.told})
	defer probes.Close()
	for {
		observed, seq, hold := w.p.observed(w.uid)
		pod, gone := w.desired()
		in := podInput{Pod: pod, Gone: gone, Observed: observed, Memory: &w.memory, Hold: hold && !w.static, Static: w.static, Probes: probes.Results(), VolumesKey: w.volumesKey(pod)}
		in.TokensDue = w.heldTokens().nextDue()
		in.Room = w.p.allocations.roomNow()
		in.Evicted, in.Pressure, in.Reclaim = w.evictedFor(), w.p.underPressure(), w.p.reclaiming.Load()
		if fenced(pod, w.static) {
			in.Lease = w.p.fencing.lease()
		}
		w.address.Store(podAddress(in, w.p.hostIP))
		now := time.Now()
		var at time.Time
		if seq > 0 && seq >= w.needList.Load() {
			remember(in, now)
			w.over.Store(terminating(in) || finished(in))
			w.account(in)
			// Not while an action runs: it may have begun without them, and fail for it.
			if running == nil {
				if fresh, secrets := w.freshInputs(); fresh {
					inputsChanged(&w.memory, secrets)
				}
			}
			w.report(in, now)
			probes.Want(probeTargets(in))
			due := next(in, now)
			switch {
			case running != nil:
				if preempts(due, *running) {
					stopIt()
				}
			case due.Kind == doWait:
				at = due.At
			case due.Kind == doFinish:
				w.finish(in)
				if gone {
					return
				}
			default:
				w.log.Debug("pod step", "action", due.text(now))
				w.before(due)
				actx, cancel := context.WithCancel(ctx)
				running, stopIt = &due, cancel
				// As it is run, which is not always yet what it asks for.
				run, bounds := allocatedTo(in.Pod, &w.memory), observed.Resources
				go func() { ended <- w.do(actx, run, bounds, due) }()
			}
		}
		wait := time.Hour // a list wakes the worker long before
		if !at.IsZero() {
			wait = max(time.Until(at), 0)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		case out := <-ended:
			stopIt()
			running = nil
			if ctx.Err() != nil {
				return
			}
			w.apply(out, time.Now())
			if changesRuntime(out.action.Kind) {
				w.needList.Store(w.p.wantList())
			}
		}
	}
}

// changesRuntime says whether an action makes what was listed before out of date.
func changesRuntime(k actionKind) bool {
	switch k {
	case doRun, doStop, doRemoveContainer, doRemovePod, doCreate, doResize:
		return true
	default:
		return false
	}
}

// do performs an action. It is the only place that changes the runtime or the
// network for the pod.
func (w *worker) do(ctx context.Context, pod *corev1.Pod, bounds *runtime.Resources, a action) (out outcome) {
	out.action = a
	call := func(timeout time.Duration, f func(ctx context.Context) error) {
		cctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		out.err = f(cctx)
		// Only a call that this worker broke off is not a failure.
		out.broken = out.err != nil && ctx.Err() != nil
	}
	switch a.Kind {
	case doConfirm:
		call(confirmTimeout, func(ctx context.Context) error { return w.p.confirm(ctx, w.uid) })
	case doAllow:
		call(confirmTimeout, w.allow)
	case doAttach:
		call(attachTimeout, func(ctx context.Context) error {
			if err := w.p.networkReady(ctx); err != nil {
				return err
			}
			if w.p.admitted != nil {
				if err := w.p.admitted(ctx, w.uid); err != nil {
					return err
				}
			}
			if err := w.p.acquire(ctx); err != nil {
				return err
			}
			defer w.p.release()
			attached, err := w.p.network.Attach(ctx, w.uid)
			if err != nil {
				return fmt.Errorf("attach to the network: %w", err)
			}
			if network, ok := w.p.network.(HostPorts); ok {
				if ports := hostPorts(pod); len(ports) > 0 {
					if err := network.SetHostPorts(ctx, w.uid, ports); err != nil {
						return err
					}
				}
			}
			out.attach = &attached
			return nil
		})
	case doCreate:
		call(createTimeout, func(ctx context.Context) error {
			if err := w.p.acquire(ctx); err != nil {
				return err
			}
			defer w.p.release()
			var err error
			// An old token keeps no container from its restart. It is seen to afterwards.
			if out.shown, err = w.setUpVolumes(ctx, pod); err != nil && !errors.Is(err, errOldToken) {
				return err
			}
			return w.createPod(ctx, pod)
		})
	case doVolumes:
		call(createTimeout, func(ctx context.Context) (err error) {
			out.shown, err = w.setUpVolumes(ctx, pod)
			return err
		})
	case doPull:
		spec := containerSpec(pod, a.Container)
		call(pullTimeout, func(ctx context.Context) error {
			start := time.Now()
			credentials, missing := pullCredentials(pod, spec.Image, func(name string) *corev1.Secret {
				return lookInput[corev1.Secret](w.inputs(), pod.Namespace, name)
			})
			if len(missing) > 0 {
				w.event(corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret", "The image may not be pulled without: "+strings.Join(missing, "; "))
			}
			image, err := w.p.runtime.EnsureImage(ctx, spec.Image, pullPolicy(spec), func(message string) {
				w.event(corev1.EventTypeNormal, "Pulling", message)
			}, credentials...)
			if err != nil {
				return fmt.Errorf("pull image %s: %w", spec.Image, err)
			}
			w.p.metrics.imageSeconds.Observe(time.Since(start).Seconds())
			out.image = image
			return nil
		})
	case doRun:
		call(createTimeout, func(ctx context.Context) error {
			if err := w.p.acquire(ctx); err != nil {
				return err
			}
			defer w.p.release()
			return w.runContainer(ctx, pod, a)
		})
	case doAllocate:
		out.action.Room, out.err = w.p.allocations.allocate(w.uid, requested(a.Wants), w.notify)
	case doResize:
		call(createTimeout, func(ctx context.Context) error { return w.resize(ctx, pod, bounds, a.IDs) })
	case doPostStart:
		call(hookTimeout, func(ctx context.Context) error {
			id := runtime.ContainerID{PodUID: w.uid, Name: a.Container, Attempt: a.Attempt}
			return w.hook(ctx, containerSpec(pod, a.Container).Lifecycle.PostStart, pod, id)
		})
	case doStop:
		call(max(time.Until(a.At), 0)+stopSlack, func(ctx context.Context) error {
			w.drain(ctx, pod, a)
			errs := make([]error, len(a.IDs))
			var wg sync.WaitGroup
			for i, id := range a.IDs {
				wg.Go(func() { errs[i] = w.stop(ctx, pod, id, a) })
			}
			wg.Wait()
			return errors.Join(errs...)
		})
	case doRemoveContainer:
		call(removeTimeout, func(ctx context.Context) error {
			id := a.IDs[0]
			if err := w.p.runtime.RemoveContainer(ctx, id); err != nil {
				return err
			}
			if err := os.Remove(terminationFile(w.dir(), id.Name, id.Attempt)); !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		})
	case doMessage:
		call(messageTimeout, func(ctx context.Context) error {
			out.message = w.terminationMessage(ctx, pod, a.IDs[0])
			return nil
		})
	case doRemovePod:
		call(removeTimeout, func(ctx context.Context) error {
			if err := w.p.runtime.RemovePod(ctx, w.uid); err != nil {
				return err
			}
			if err := w.p.volumes.TearDown(w.uid); err != nil {
				return err
			}
			if err := w.p.fencing.guard.Forget(w.uid); err != nil {
				return err
			}
			return os.RemoveAll(w.dir())
		})
	case doDetach:
		call(attachTimeout, func(ctx context.Context) error { return w.p.network.Detach(ctx, w.uid) })
	case doRelease:
		call(removeTimeout, func(context.Context) error { return w.p.volumes.TearDown(w.uid) })
	case doWait, doFinish:
	}
	return out
}

// drain waits, once, before a pod that is marked deleted is told to end, until nobody
// sends it new connections. It takes from the grace period, half of it at most.
func (w *worker) drain(ctx context.Context, pod *corev1.Pod, a action) {
	if w.drained || w.p.drain == nil || pod == nil || pod.DeletionTimestamp == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, min(drainPatience, time.Until(a.At)/2))
	defer cancel()
	w.p.drain(ctx, pod.UID)
	w.drained = true
}

func (w *worker) dir() string { return filepath.Join(w.p.dataDir, "pods", w.uid) }

func (w *worker) createPod(ctx context.Context, pod *corev1.Pod) error {
	p := runtimePod(pod)
	p.Resources = podResources(pod, w.p.maxPIDs)
	at := w.env(pod)
	if w.memory.Attached != nil {
		p.NetNS = w.memory.Attached.NetNS
	}
	p.Hosts = hostsFile(pod, at.podIPs)
	var err error
	if p.ResolvConf, err = resolvFile(pod, w.p.resolvConf, w.p.clusterDNS()); err != nil {
		return err
	}
	if err := w.p.runtime.CreatePod(ctx, p); err != nil {
		return fmt.Errorf("create pod: %w", err)
	}
	return nil
}

func (w *worker) env(pod *corev1.Pod) podEnv {
	at := podEnv{
		hostname: hostname(pod), nodeName: w.p.nodeName, hostIP: w.p.hostIP, inputs: w.inputs(), allocatable: w.p.allocatable,
		seccompDir: filepath.Join(w.p.dataDir, "seccomp"), memoryBytes: w.p.memoryBytes,
	}
	if w.memory.Attached != nil {
		at.podIPs = w.memory.Attached.IPs
	}
	return at
}

func (w *worker) runContainer(ctx context.Context, pod *corev1.Pod, a action) error {
	spec := containerSpec(pod, a.Container)
	mounts, err := terminationMount(w.dir(), spec, a.Attempt)
	if err != nil {
		return err
	}
	volumes, err := w.volumeMounts(pod, spec)
	if err != nil {
		return err
	}
	mounts = append(mounts, volumes...)
	c, err := runtimeContainer(pod, spec, a.Attempt, w.image[a.Container], w.env(pod), mounts)
	if err != nil {
		return err
	}
	if c.Target, err = w.target(pod, a.Container); err != nil {
		return err
	}
	if err := w.p.runtime.RunContainer(ctx, c); err != nil {
		return fmt.Errorf("run container %s: %w", spec.Name, err)
	}
	return nil
}

func pullPolicy(spec *corev1.Container) corev1.PullPolicy {
	if spec.ImagePullPolicy == "" {
		return corev1.PullIfNotPresent
	}
	return spec.ImagePullPolicy
}

// terminationMessage is what a run left as its last words: the file that it was
// given, or else, if it failed and its policy asks for that, the end of its log.
func (w *worker) terminationMessage(ctx context.Context, pod *corev1.Pod, id runtime.ContainerID) string {
	limit := min(maxTerminationMessage, maxTerminationMessages/max(len(parts(pod)), 1))
	if f, err := os.Open(terminationFile(w.dir(), id.Name, id.Attempt)); err == nil {
		defer f.Close()
		if data, _ := io.ReadAll(io.LimitReader(f, int64(limit))); len(data) > 0 {
			return strings.ToValidUTF8(string(data), "\uFFFD")
		}
	}
	spec := containerSpec(pod, id.Name)
	observed, _, _ := w.p.observed(w.uid)
	run, ok := latestRun(observed, id.Name)
	if prev, found := runBefore(observed, id.Name, id.Attempt+1); found {
		run, ok = prev, true
	}
	if spec == nil || spec.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError ||
		!ok || run.ID != id || run.ExitCode == 0 {
		return ""
	}
	var b bytes.Buffer
	if err := w.p.runtime.Logs(ctx, id, runtime.LogOptions{TailLines: 80}, &b); err != nil {
		w.log.Warn("last words of a container cannot be read", "container", id.Name, "attempt", id.Attempt, "error", err)
	}
	text := b.Bytes()
	if len(text) > limit {
		text = text[len(text)-limit:]
	}
	return strings.ToValidUTF8(string(text), "\uFFFD")
}

// before notes what is about to be done.
func (w *worker) before(a action) {
	began(&w.memory, a)
	switch a.Kind {
	case doPull:
		w.memory.Containers[a.Container].Pulling = true
	case doStop:
		for _, id := range a.IDs {
			w.event(corev1.EventTypeNormal, "Killing", fmt.Sprintf("Stopping container %s: %s", id.Name, a.Why))
		}
	default:
	}
}

// apply takes in how an action ended.
func (w *worker) apply(out outcome, now time.Time) {
	a := out.action
	if a.Kind == doPull {
		w.memory.Containers[a.Container].Pulling = false
	}
	if out.attach != nil {
		w.memory.Attached = out.attach
	}
	if (a.Kind == doCreate || a.Kind == doVolumes) && out.err == nil {
		w.memory.Shown = out.shown
	}
	if a.Kind == doMessage {
		w.memory.Messages[a.IDs[0]] = out.message
	}
	if out.broken {
		return
	}
	if a.Kind == doPull && out.err == nil {
		w.image[a.Container] = out.image
	}
	applied(&w.memory, a, out.err, now)
	w.tell(out)
}

// tell makes events of an outcome, and logs failures.
func (w *worker) tell(out outcome) {
	a := out.action
	if out.err != nil && a.Kind != doAllocate {
		w.log.Warn("pod step failed", "action", a.text(time.Now()), "error", out.err)
	}
	pod, _ := w.desired()
	image := ""
	if pod != nil && a.Container != "" {
		image = containerSpec(pod, a.Container).Image
	}
	switch {
	case errors.Is(out.err, errVolumes):
		w.event(corev1.EventTypeWarning, reasonMount, out.err.Error())
	case a.Kind == doAttach && out.err != nil, a.Kind == doCreate && out.err != nil:
		w.event(corev1.EventTypeWarning, reasonSandbox, out.err.Error())
	case a.Kind == doPull && out.err != nil:
		w.event(corev1.EventTypeWarning, "Failed", out.err.Error())
	case a.Kind == doPull:
		w.event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Image %q is present", image))
	case a.Kind == doRun && errors.Is(out.err, runtime.ErrExists):
	case a.Kind == doRun && out.err != nil:
		w.event(corev1.EventTypeWarning, "Failed", out.err.Error())
	case a.Kind == doRun:
		w.event(corev1.EventTypeNormal, "Started", fmt.Sprintf("Started container %s", a.Container))
		w.log.Info("container started", "container", a.Container, "attempt", a.Attempt)
		if a.Attempt > 0 {
			w.p.metrics.restarts.Inc()
		}
	case a.Kind == doPostStart && out.err != nil:
		w.event(corev1.EventTypeWarning, "FailedPostStartHook", fmt.Sprintf("PostStartHook of container %s failed: %v", a.Container, out.err))
	case a.Kind == doResize, a.Kind == doAllocate: // told by the conditions
	case a.Kind == doStop && out.err != nil:
		w.event(corev1.EventTypeWarning, "FailedKillPod", out.err.Error())
	case a.Kind == doRemovePod && out.err != nil, a.Kind == doDetach && out.err != nil:
		w.event(corev1.EventTypeWarning, "FailedKillPod", out.err.Error())
	}
}

func (w *worker) event(kind, reason, message string) {
	id, ok := w.p.reported(w.uid)
	if !ok {
		return
	}
	w.p.reports.event(string(id.UID), &agentv1.PodEvent{Type: kind, Reason: reason, Message: message})
}

// report computes the pod's status and gives it to the reporter if it is new.
func (w *worker) report(in podInput, now time.Time) {
	if in.Pod == nil || w.done || w.static && in.Gone {
		return
	}
	before := w.memory.Status
	if w.memory.Evicted != "" && (before == nil || before.Reason != reasonEvicted) {
		w.event(corev1.EventTypeWarning, reasonEvicted, w.memory.Evicted)
	}
	s := podStatus(in, w.p.hostIP, now)
	w.memory.Status = &s
	w.transitions(before, &s, now)
	id := podID(in.Pod)
	if w.static {
		var ok bool
		if id, ok = w.p.reported(w.uid); !ok {
			return
		}
	}
	w.p.reports.set(id, s, false)
}

// transitions tells of what only a comparison of statuses shows.
func (w *worker) transitions(before, after *corev1.PodStatus, now time.Time) {
	if before == nil {
		return
	}
	w.tellResize(before, after)
	for _, c := range slices.Concat(after.InitContainerStatuses, after.ContainerStatuses, after.EphemeralContainerStatuses) {
		b := recordedStatus(before, c.Name)
		waiting := c.State.Waiting
		if waiting == nil || b != nil && b.State.Waiting != nil && b.State.Waiting.Reason == waiting.Reason {
			continue
		}
		if waiting.Reason == reasonCrashLoopBackOff || waiting.Reason == reasonImagePullBackOff {
			w.event(corev1.EventTypeWarning, "BackOff", waiting.Message)
		}
	}
	if readiness(before) != corev1.ConditionTrue && readiness(after) == corev1.ConditionTrue && w.memory.Containers != nil {
		w.p.metrics.startSeconds.Observe(now.Sub(w.began).Seconds())
	}
}

func readiness(s *corev1.PodStatus) corev1.ConditionStatus {
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

// finish reports that nothing is left of the pod, once.
func (w *worker) finish(in podInput) {
	if w.done {
		return
	}
	w.done = true
	w.log.Info("pod removed")
	if in.Pod != nil && !in.Gone {
		w.p.reports.set(podID(in.Pod), *w.memory.Status, true)
	}
}

// podName identifies a pod in reports.
type podName struct {
	Namespace, Name string
	UID             types.UID
}

func podID(pod *corev1.Pod) podName {
	return podName{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
}
