package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	apitypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// logsKept is how many runs of a container keep their logs, the newest included.
const logsKept = 3

// RunContainer creates and starts a container. It returns runtime.ErrExists if
// there is one of the same ID, running or ended, and runtime.ErrNotFound if the
// pod has not been created or the image is not there. When it fails, nothing is
// left but what a second call clears away.
func (r *Runtime) RunContainer(ctx context.Context, c runtime.Container) error {
	if err := checkContainerID(c.ID); err != nil {
		return err
	}
	ctx, cancel, err := r.call(ctx, changeTimeout)
	if err != nil {
		return err
	}
	defer cancel()
	select {
	case r.starts <- struct{}{}:
		defer func() { <-r.starts }()
	case <-ctx.Done():
		return fmt.Errorf("run container %s: wait for other containers to start: %w", c.ID.Name, context.Cause(ctx))
	}
	defer r.notify()
	if err := r.runContainer(ctx, c); err != nil {
		return fmt.Errorf("run container %s: %w", c.ID.Name, err)
	}
	return nil
}

func (r *Runtime) runContainer(ctx context.Context, c runtime.Container) (failed error) {
	pod, err := r.readPod(c.ID.PodUID)
	if err != nil {
		return err
	}
	// Deleting the task of a pod's last container ends the pod's shim: not while
	// another is being made in it.
	release, err := r.shims.lock(ctx, c.ID.PodUID)
	if err != nil {
		return fmt.Errorf("wait for the pod's other containers: %w", err)
	}
	defer release()
	handle := handleOf(c.ID)
	r.setStarting(handle, true)
	defer r.setStarting(handle, false)

	store := r.client.ContainerService()
	if old, err := store.Get(ctx, handle); err == nil {
		if !half(old) {
			return runtime.ErrExists
		}
		if err := r.remove(ctx, old); err != nil {
			return fmt.Errorf("clear away an earlier try: %w", err)
		}
	} else if !errdefs.IsNotFound(err) {
		return err
	}
	img, err := r.images.info(ctx, c.Image)
	if err != nil {
		return err
	}
	user, err := r.images.user(ctx, img, userText(c.Security, img.config.User))
	if err != nil {
		return err
	}
	if user, err = userWith(user, c.Security); err != nil {
		return err
	}
	files := r.filesOf(c.ID.PodUID)
	if pod.SharePID {
		if err := r.holdProcesses(pod.UID); err != nil {
			return err
		}
	}
	target := 0
	if c.Target != nil {
		if target, err = r.processOf(ctx, *c.Target); err != nil {
			return err
		}
	}
	spec, err := newSpec(ctx, specInput{
		container: c, pod: pod, target: target, files: files, image: img.config,
		user: user, cgroup: r.cgroupOf(c.ID), unified: unifiedCgroups(),
	})
	if err != nil {
		return err
	}
	specAny, err := typeurl.MarshalAny(spec)
	if err != nil {
		return err
	}
	optionsAny, err := typeurl.MarshalAny(&options.Options{BinaryName: r.runc, Root: filepath.Join(r.cfg.State, "runc")})
	if err != nil {
		return err
	}
	if err := prepareLogs(files, c.ID); err != nil {
		return err
	}
	output := outputFor(c, files.logs(c.ID))
	output.size = r.cfg.LogSize
	if output.stdin != "" && r.server == nil {
		return fmt.Errorf("%w: it wants its stdin kept open (stdin: true), which only a containerd of the agent's own can do: start the agent without an address of another", runtime.ErrConfig)
	}

	labels := map[string]string{
		labelPodUID: pod.UID, labelPodNamespace: pod.Namespace, labelPodName: pod.Name,
		labelContainer: c.ID.Name, labelAttempt: strconv.Itoa(c.ID.Attempt),
		labelImage: c.Image, labelImageID: img.digest, labelSpecHash: c.SpecHash,
	}
	if labels[labelResources], err = resourcesText(c.Resources); err != nil {
		return err
	}
	if name := cmp.Or(c.StopSignal, img.config.StopSignal); name != "" {
		labels[labelStopSignal] = name
	}
	// The record comes before the snapshot, to which it refers: what nothing
	// refers to, containerd's garbage collector may take at any time.
	record, err := store.Create(ctx, containers.Container{
		ID: handle, Labels: labels, Image: img.name, Spec: specAny,
		Runtime:     containers.RuntimeInfo{Name: r.programs.shim, Options: optionsAny},
		Snapshotter: r.cfg.Snapshotter, SnapshotKey: handle,
	})
	if err != nil {
		return fmt.Errorf("record the container: %w", err)
	}
	defer func() {
		if failed == nil {
			return
		}
		ctx, cancel, err := r.call(context.WithoutCancel(ctx), changeTimeout)
		if err != nil {
			return
		}
		defer cancel()
		if err := r.remove(ctx, record); err != nil {
			r.log.Warn("a container that could not be started is not cleared away", "container", handle, "error", err)
		}
	}()
	var rootfs []mount.Mount
	err = r.images.unpacked(ctx, img, func() (err error) {
		rootfs, err = r.client.SnapshotService(r.cfg.Snapshotter).Prepare(ctx, handle, img.chainID)
		return err
	})
	if err != nil {
		return fmt.Errorf("make its root file system: %w", err)
	}
	request := &tasks.CreateTaskRequest{
		ContainerID: handle, Terminal: c.TTY,
		Stdout: output.uri(r.programs.logger), Stderr: output.uri(r.programs.logger),
	}
	for _, m := range rootfs {
		request.Rootfs = append(request.Rootfs, &apitypes.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if err := r.createTask(ctx, request); err != nil {
		return err
	}
	if _, err := r.client.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: handle}); err != nil {
		return taskError(err)
	}
	if err := r.label(ctx, handle, map[string]string{labelStarted: formatTime(time.Now())}); err != nil {
		return fmt.Errorf("record the start: %w", err)
	}
	r.waitFor(handle)
	return nil
}

// createTask has the pod's shim make the container. A shim that was just about
// to end, since all of the pod's containers had, may still be found and be gone
// a moment later: then another try starts a new one.
func (r *Runtime) createTask(ctx context.Context, request *tasks.CreateTaskRequest) error {
	const tries = 5
	for try := 1; ; try++ {
		_, err := r.client.TaskService().Create(ctx, request)
		if err == nil {
			return nil
		}
		if try == tries || !shimGone(err) {
			return taskError(err)
		}
		r.log.Debug("shim ended while it was asked for a container", "container", request.GetContainerID(), "error", err)
		if pause(ctx, gonePause) != nil {
			return taskError(err)
		}
		if err := r.deleteTask(ctx, request.GetContainerID()); err != nil {
			return err
		}
	}
}

// shimGone tells whether a call failed because the shim was not there any more.
func shimGone(err error) bool {
	text := errgrpc.ToNative(err).Error()
	return slices.ContainsFunc([]string{"ttrpc: closed", "connection refused", "connection reset", "broken pipe", "use of closed"},
		func(sign string) bool { return strings.Contains(text, sign) })
}

// prepareLogs makes the log's directory and removes those of much older runs.
func prepareLogs(files podFiles, id runtime.ContainerID) error {
	if err := os.MkdirAll(files.logs(id), 0o750); err != nil {
		return fmt.Errorf("make its log directory: %w", err)
	}
	dir := filepath.Dir(files.logs(id))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list its logs: %w", err)
	}
	for _, e := range entries {
		if attempt, err := strconv.Atoi(e.Name()); err == nil && attempt <= id.Attempt-logsKept {
			_ = os.RemoveAll(filepath.Join(dir, e.Name())) // tried again with the next run
		}
	}
	return nil
}

// taskError makes the errors of shim and runc, which come through three layers,
// as short as they can be.
func taskError(err error) error {
	err = errgrpc.ToNative(err)
	text := err.Error()
	for _, noise := range []string{"failed to create shim task: ", "OCI runtime create failed: ", "OCI runtime start failed: ", "OCI runtime exec failed: ", "runc create failed: ", "runc start failed: ", "exec failed: "} {
		text = strings.ReplaceAll(text, noise, "")
	}
	text = strings.TrimSuffix(strings.TrimSpace(text), ": unknown")
	return &shortError{text: text, cause: err}
}

// shortError says text and is cause.
type shortError struct {
	text  string
	cause error
}

func (e *shortError) Error() string { return e.text }
func (e *shortError) Unwrap() error { return e.cause }

// label adds labels to a container's record.
func (r *Runtime) label(ctx context.Context, handle string, labels map[string]string) error {
	var paths []string
	for name := range labels {
		paths = append(paths, "labels."+name)
	}
	_, err := r.client.ContainerService().Update(ctx, containers.Container{ID: handle, Labels: maps.Clone(labels)}, paths...)
	return err
}

// StopContainer ends a container: by its image's stop signal or SIGTERM, and by
// SIGKILL after grace. It returns once the container has ended.
func (r *Runtime) StopContainer(ctx context.Context, id runtime.ContainerID, grace time.Duration) error {
	if err := checkContainerID(id); err != nil {
		return err
	}
	ctx, cancel, err := r.call(ctx, grace+changeTimeout)
	if err != nil {
		return err
	}
	defer cancel()
	handle := handleOf(id)
	record, err := r.client.ContainerService().Get(ctx, handle)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop container %s: %w", id.Name, err)
	}
	if grace > 0 {
		term := syscall.SIGTERM
		if name := record.Labels[labelStopSignal]; name != "" {
			if s, err := signal.ParseSignal(name); err == nil {
				term = s
			}
		}
		ended, err := r.signal(ctx, handle, term, grace)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("stop container %s: %w", id.Name, context.Cause(ctx))
		}
		if ended {
			r.notify()
			return nil
		}
	}
	if err := r.kill(ctx, handle); err != nil {
		return fmt.Errorf("stop container %s: %w", id.Name, err)
	}
	r.notify()
	return nil
}

// signal sends s and waits up to timeout for the container to end. One that has
// no task has ended.
func (r *Runtime) signal(ctx context.Context, handle string, s syscall.Signal, timeout time.Duration) (ended bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	_, err = r.client.TaskService().Kill(ctx, &tasks.KillRequest{ContainerID: handle, Signal: uint32(s)})
	if err = errgrpc.ToNative(err); err == nil {
		_, err = r.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: handle})
		if err = errgrpc.ToNative(err); err == nil {
			return true, nil
		}
	}
	for range goneTries {
		if !errdefs.IsNotFound(err) && !shimGone(err) {
			break
		}
		// Not found is also the process that ended a moment ago.
		if ended, err := r.hasEnded(ctx, handle); ended && err == nil {
			return true, nil
		}
		if err := pause(ctx, gonePause); err != nil {
			break
		}
	}
	return false, err
}

// hasEnded asks whether a container's process is gone. While ctx has ended it
// knows nothing and says so.
func (r *Runtime) hasEnded(ctx context.Context, handle string) (bool, error) {
	process, err := r.task(ctx, handle)
	if err != nil {
		return false, err
	}
	return process == nil || process.GetStatus() == tasktypes.Status_STOPPED, nil
}

// kill ends a container by SIGKILL and returns once it has ended. When its shim
// does not answer, its processes are killed by way of its cgroup, and the shim
// with them.
func (r *Runtime) kill(ctx context.Context, handle string) error {
	ended, err := r.signal(ctx, handle, unix.SIGKILL, r.killTimeout)
	if ended {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		err = errors.New("it goes on after SIGKILL")
	}
	record, getErr := r.client.ContainerService().Get(ctx, handle)
	if getErr != nil {
		return errors.Join(err, getErr)
	}
	id, ok := idOf(record)
	if !ok {
		return err
	}
	r.log.Warn("container's shim does not answer; container and shim are killed", "container", id.Name, "pod", id.PodUID, "error", err)
	killCgroup(r.cgroupOf(id))
	r.killShim(handle)
	// containerd notices the shim's end and clears up behind it.
	wait, cancel := context.WithTimeout(ctx, r.killTimeout)
	defer cancel()
	for {
		if ended, err := r.hasEnded(wait, handle); ended && err == nil {
			return nil
		}
		if pause(wait, gonePause) != nil {
			return fmt.Errorf("container %s does not end, not even by SIGKILL: its processes probably wait for a disk", id.Name)
		}
	}
}

// RemoveContainer forgets a container that has ended or was never started, but
// for its log.
func (r *Runtime) RemoveContainer(ctx context.Context, id runtime.ContainerID) error {
	if err := checkContainerID(id); err != nil {
		return err
	}
	ctx, cancel, err := r.call(ctx, changeTimeout)
	if err != nil {
		return err
	}
	defer cancel()
	release, err := r.shims.lock(ctx, id.PodUID)
	if err != nil {
		return fmt.Errorf("remove container %s: wait for the pod's other containers: %w", id.Name, err)
	}
	defer release()
	record, err := r.client.ContainerService().Get(ctx, handleOf(id))
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove container %s: %w", id.Name, err)
	}
	process, err := r.task(ctx, record.ID)
	if err != nil {
		return fmt.Errorf("remove container %s: %w", id.Name, err)
	}
	switch process.GetStatus() {
	case tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
		return fmt.Errorf("remove container %s: it has not ended: stop it first", id.Name)
	}
	if err := r.remove(ctx, record); err != nil {
		return fmt.Errorf("remove container %s: %w", id.Name, err)
	}
	r.notify()
	return nil
}

// remove takes away a container's task, which must have ended or never started,
// its snapshot and its record, in this order, so that it can be called again.
// The caller holds the lock of the pod's shim.
func (r *Runtime) remove(ctx context.Context, c containers.Container) error {
	if err := r.deleteTask(ctx, c.ID); err != nil {
		return err
	}
	if err := r.client.SnapshotService(c.Snapshotter).Remove(ctx, c.SnapshotKey); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove its root file system: %w", err)
	}
	if err := r.client.ContainerService().Delete(ctx, c.ID); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// deleteTask frees what a task that has ended, or was created and not started,
// holds. No task is not an error. The caller holds the lock of the pod's shim.
func (r *Runtime) deleteTask(ctx context.Context, handle string) error {
	var killed bool
	for try := 1; ; try++ {
		_, err := r.client.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: handle})
		switch err = errgrpc.ToNative(err); {
		case err == nil, errdefs.IsNotFound(err):
			return nil
		case shimGone(err) && try < goneTries:
			// containerd is about to notice, and to clear up behind it.
		case !killed && ctx.Err() == nil:
			// Created, never started: its init waits for the start. Or its shim hangs.
			killed = true
			if killErr := r.kill(ctx, handle); killErr != nil {
				return errors.Join(taskError(err), killErr)
			}
		default:
			return fmt.Errorf("delete its task: %w", taskError(err))
		}
		if err := pause(ctx, gonePause); err != nil {
			return fmt.Errorf("delete its task: %w", err)
		}
	}
}

// A shim that is gone is noticed by those that talk to it first, and by
// containerd, which clears up behind it, a moment later.
const (
	goneTries = 50
	gonePause = 20 * time.Millisecond
)

// pause waits for d, or returns ctx's cause when that ends first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *Runtime) setStarting(handle string, on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if on {
		r.starting[handle] = true
		return
	}
	delete(r.starting, handle)
}

func (r *Runtime) isStarting(handle string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.starting[handle]
}
