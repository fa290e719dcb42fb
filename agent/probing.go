package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/probe"
	"github.com/holdfast-io/holdfast/agent/runtime"
)

// verdict is what a probe says of a run. Until one has answered in this life of
// the agent, what was reported of that very run stays true: a restart of the agent
// takes nobody out of service.
func verdict(in podInput, run runtime.ContainerState, kind probe.Kind) probe.Result {
	if r, ok := in.Probes[probe.Key{Run: run.ID, Kind: kind}]; ok {
		return r
	}
	recorded := recordedStatus(&in.Pod.Status, run.ID.Name)
	switch {
	case recorded == nil || recorded.ContainerID == "" || recorded.ContainerID != run.Handle:
		return probe.Unknown
	case kind == probe.Startup && recorded.Started != nil && *recorded.Started, kind == probe.Readiness && recorded.Ready:
		return probe.Success
	default:
		return probe.Unknown
	}
}

// probeTargets returns the probes that the pod's containers are to be asked now.
// A pod that ends is asked whether it is ready only.
func probeTargets(in podInput) []probe.Target {
	if in.Pod == nil || finished(in) {
		return nil
	}
	ending := terminating(in)
	var all []probe.Target
	for _, p := range parts(in.Pod) {
		run, ok := latestRun(in.Observed, p.spec.Name)
		if !ok || run.State != runtime.StateRunning {
			continue
		}
		want := func(kind probe.Kind, spec *corev1.Probe) {
			if spec == nil {
				return
			}
			t := probe.Target{Key: probe.Key{Run: run.ID, Kind: kind}, Spec: spec, Since: run.StartedAt}
			if _, asked := in.Probes[t.Key]; !asked {
				t.Initial = verdict(in, run, kind)
			}
			all = append(all, t)
		}
		up := p.spec.StartupProbe == nil
		if !up {
			known := verdict(in, run, probe.Startup)
			up = known == probe.Success
			if _, asked := in.Probes[probe.Key{Run: run.ID, Kind: probe.Startup}]; asked || !up && !ending {
				want(probe.Startup, p.spec.StartupProbe)
			}
		}
		if !up {
			continue
		}
		want(probe.Readiness, p.spec.ReadinessProbe)
		if !ending {
			want(probe.Liveness, p.spec.LivenessProbe)
		}
	}
	return all
}

// probeGrace is how long a container that failed a probe is given to end.
func probeGrace(pod *corev1.Pod, spec *corev1.Probe) time.Duration {
	if spec != nil && spec.TerminationGracePeriodSeconds != nil {
		return time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second
	}
	return graceOf(pod)
}

// podAddress is where a pod is probed; "" if it has no address.
func podAddress(in podInput, host netip.Addr) string {
	switch {
	case in.Pod != nil && in.Pod.Spec.HostNetwork:
		return host.String()
	case in.Memory.Attached != nil && len(in.Memory.Attached.IPs) > 0:
		return in.Memory.Attached.IPs[0].String()
	default:
		return ""
	}
}

// addressDialer is an ability of a runtime whose pods are not on the node's
// network: to connect from the node to an address, as far as it is a pod's.
type addressDialer interface {
	DialAddress(ctx context.Context, podUID, address string) (net.Conn, error)
}

// handler carries out probes and hooks of a run. It may be called by any goroutine.
func (w *worker) handler(pod *corev1.Pod, id runtime.ContainerID) probe.Handler {
	host, _ := w.address.Load().(string)
	h := probe.Handler{
		Host: host,
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			if d, ok := w.p.runtime.(addressDialer); ok {
				return d.DialAddress(ctx, w.uid, address)
			}
			var dialer net.Dialer
			return dialer.DialContext(ctx, "tcp", address)
		},
		Exec: func(ctx context.Context, command []string, output io.Writer) (int, error) {
			return w.p.runtime.Exec(ctx, id, runtime.ExecOptions{Command: command, Stdout: output, Stderr: output})
		},
	}
	if spec := containerSpec(pod, id.Name); spec != nil {
		h.Ports = spec.Ports
	}
	return h
}

// ask carries out a probe.
func (w *worker) ask(ctx context.Context, t probe.Target) probe.Answer {
	pod, _ := w.desired()
	return w.handler(pod, t.Run).Probe(ctx, t.Spec.ProbeHandler)
}

// told takes note of what a probe has found out.
func (w *worker) told(t probe.Target, a probe.Answer, changed bool) {
	if a.Result == probe.Failure {
		kind := strings.ToUpper(string(t.Kind[:1])) + string(t.Kind[1:])
		w.event(corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe of container %s failed: %s", kind, t.Run.Name, a.Message))
	}
	if changed {
		w.log.Info("probe", "container", t.Run.Name, "attempt", t.Run.Attempt, "probe", string(t.Kind), "result", a.Result.String(), "message", a.Message)
		w.notify()
	}
}

// stop stops one run: its hook first, if the action says so, then the container,
// all within the action's grace period. A hook that takes all of it leaves the
// container lastGrace.
func (w *worker) stop(ctx context.Context, pod *corev1.Pod, id runtime.ContainerID, a action) error {
	grace := max(time.Until(a.At), 0)
	if slices.Contains(a.PreStop, id) && grace > 0 {
		hctx, cancel := context.WithDeadline(ctx, a.At)
		err := w.hook(hctx, containerSpec(pod, id.Name).Lifecycle.PreStop, pod, id)
		cancel()
		if err != nil && ctx.Err() == nil {
			w.log.Warn("preStop hook failed", "container", id.Name, "error", err)
			w.event(corev1.EventTypeWarning, "FailedPreStopHook", fmt.Sprintf("PreStopHook of container %s failed: %v", id.Name, err))
		}
		grace = max(time.Until(a.At), lastGrace)
	}
	return w.p.runtime.StopContainer(ctx, id, grace)
}

// hook does what a container's hook says.
func (w *worker) hook(ctx context.Context, hook *corev1.LifecycleHandler, pod *corev1.Pod, id runtime.ContainerID) error {
	if hook.Sleep == nil {
		return w.handler(pod, id).Hook(ctx, hook)
	}
	timer := time.NewTimer(time.Duration(hook.Sleep.Seconds) * time.Second)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
