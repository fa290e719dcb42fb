package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// List returns all pods of this node with their containers, by uid. It asks
// containerd for all tasks and containers, two calls in all.
func (r *Runtime) List(ctx context.Context) ([]runtime.PodState, error) {
	ctx, cancel, err := r.call(ctx, readTimeout)
	if err != nil {
		return nil, err
	}
	defer cancel()
	pods := map[string]*runtime.PodState{}
	for _, record := range r.podRecords() {
		pods[record.UID] = &runtime.PodState{UID: record.UID, Namespace: record.Namespace, Name: record.Name, NetNS: record.NetNS, Resources: &record.Resources}
	}
	records, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	processes, err := r.listTasks(ctx)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	for _, c := range records {
		id, ok := idOf(c)
		if !ok {
			continue
		}
		process := processes[c.ID]
		var silent error
		if process == nil && c.Labels[labelFinished] == "" {
			c, process, silent = r.lookAgain(ctx, c)
			if errdefs.IsNotFound(silent) {
				continue // removed in between
			}
		}
		state, ok := r.containerState(c, process)
		if silent != nil {
			state, ok = stateOf(c), true
			state.Message = fmt.Sprintf("its shim does not answer: %v", taskError(silent))
		}
		if !ok {
			continue
		}
		pod := pods[id.PodUID]
		if pod == nil {
			pod = &runtime.PodState{UID: id.PodUID, Namespace: c.Labels[labelPodNamespace], Name: c.Labels[labelPodName]}
			pods[id.PodUID] = pod
		}
		pod.Containers = append(pod.Containers, state)
	}
	list := make([]runtime.PodState, 0, len(pods))
	for _, pod := range pods {
		sortStates(pod.Containers)
		list = append(list, *pod)
	}
	slices.SortFunc(list, func(a, b runtime.PodState) int { return cmp.Compare(a.UID, b.UID) })
	return list, nil
}

// lookAgain resolves what a list of records and a list of tasks, taken one
// after the other, leave open: a container without an end and without a task. It
// may have been started or have ended in between; the end is recorded before the
// task goes. Or its shim hangs, and containerd leaves its task out of lists: then
// the error says so. It returns errdefs.ErrNotFound for a container that is gone.
func (r *Runtime) lookAgain(ctx context.Context, c containers.Container) (containers.Container, *tasktypes.Process, error) {
	for {
		process, err := r.task(ctx, c.ID)
		if err != nil || process != nil {
			return c, process, err
		}
		fresh, err := r.client.ContainerService().Get(ctx, c.ID)
		if err != nil {
			return c, nil, err
		}
		if half(fresh) == half(c) {
			return fresh, nil, nil
		}
		c = fresh // started meanwhile
	}
}

// containerState combines a record with its task, nil if it has none. Not ok is
// a record that stands for nothing: what is left of a start that was cut short.
func (r *Runtime) containerState(c containers.Container, process *tasktypes.Process) (runtime.ContainerState, bool) {
	state := stateOf(c)
	if state.State == runtime.StateExited {
		return state, true
	}
	id, _ := idOf(c)
	if process == nil {
		switch {
		case r.isStarting(c.ID):
			state.State = runtime.StateCreated
		case half(c):
			return state, false
		default:
			e := readExit(r.filesOf(id.PodUID).logs(id))
			state.State, state.ExitCode, state.FinishedAt, state.OOMKilled, state.Message = runtime.StateExited, e.Code, e.At, e.OOMKilled, e.Message
		}
		return state, true
	}
	switch process.GetStatus() {
	case tasktypes.Status_CREATED:
		if half(c) && !r.isStarting(c.ID) {
			return state, false
		}
		state.State = runtime.StateCreated
	case tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
		state.State = runtime.StateRunning
		if state.StartedAt.IsZero() {
			state.StartedAt = c.CreatedAt
		}
	case tasktypes.Status_STOPPED:
		state.State = runtime.StateExited
		state.ExitCode = int(process.GetExitStatus())
		state.FinishedAt = process.GetExitedAt().AsTime()
		state.OOMKilled = oomKilled(state.ExitCode, r.cgroupOf(id))
		if state.StartedAt.IsZero() {
			state.StartedAt = c.CreatedAt
		}
	}
	return state, true
}

// listTasks returns the processes of all containers, by container.
func (r *Runtime) listTasks(ctx context.Context) (map[string]*tasktypes.Process, error) {
	resp, err := r.client.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	processes := map[string]*tasktypes.Process{}
	for _, p := range resp.GetTasks() {
		processes[cmp.Or(p.GetContainerID(), p.GetID())] = p
	}
	return processes, nil
}

// task returns the process of one container, nil if it has none.
func (r *Runtime) task(ctx context.Context, handle string) (*tasktypes.Process, error) {
	resp, err := r.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: handle})
	if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		return nil, nil
	}
	return resp.GetProcess(), err
}

// podRecords reads all pods' records. One that is half made or half removed is
// left out.
func (r *Runtime) podRecords() []podRecord {
	entries, err := os.ReadDir(filepath.Join(r.cfg.Root, "pods"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("pods' records cannot be listed", "error", err)
	}
	var records []podRecord
	for _, e := range entries {
		record, err := r.readPod(e.Name())
		if err != nil {
			if !errors.Is(err, runtime.ErrNotFound) {
				r.log.Warn("pod's record cannot be read", "pod", e.Name(), "error", err)
			}
			continue
		}
		records = append(records, record)
	}
	return records
}

const messageLost = "the container was lost: its shim was killed or the machine restarted"

// oomKilled tells whether a container that ended with code was killed for want
// of memory. A container may survive that of a child, and end well later.
func oomKilled(code int, cgroup string) bool { return code != 0 && oomKills(cgroup) > 0 }

// recover clears away what an agent left that died in the middle of a start. It
// runs before anything is started.
func (r *Runtime) recover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*changeTimeout)
	defer cancel()
	records, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return err
	}
	processes, err := r.listTasks(ctx)
	if err != nil {
		return err
	}
	for _, pod := range r.podRecords() {
		r.tiers.note(pod.UID, pod)
	}
	for _, c := range records {
		id, ok := idOf(c)
		if !ok || !half(c) {
			continue
		}
		if p := processes[c.ID]; p != nil && p.GetStatus() != tasktypes.Status_CREATED {
			// It did start; only the note of it is missing.
			if err := r.label(ctx, c.ID, map[string]string{labelStarted: formatTime(c.CreatedAt)}); err != nil {
				return err
			}
			continue
		}
		r.log.Info("container that was never started is cleared away", "container", id.Name, "pod", id.PodUID)
		if err := r.remove(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// sweep compares records with tasks: it waits for the end of those that nobody
// waits for, records the end of those that are lost, and frees the tasks of
// those that have ended.
func (r *Runtime) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	records, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return err
	}
	processes, err := r.listTasks(ctx)
	if err != nil {
		return err
	}
	for _, c := range records {
		id, ok := idOf(c)
		if !ok || r.isStarting(c.ID) {
			continue
		}
		switch {
		case c.Labels[labelFinished] != "" && processes[c.ID] != nil:
			if err := r.freeTask(ctx, id); err != nil {
				r.log.Warn("ended container's task is not freed", "container", c.ID, "error", err)
			}
		case c.Labels[labelFinished] == "" && !half(c):
			r.waitFor(c.ID)
		}
	}
	return nil
}

// waitFor has a goroutine wait for the container's end, unless one does.
func (r *Runtime) waitFor(handle string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watch == nil || r.watched[handle] {
		return // the next Run's sweep finds it
	}
	r.watched[handle] = true
	r.watch(handle)
}

// await waits for a container's end and records it.
func (r *Runtime) await(ctx context.Context, handle string) {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watched, handle)
	}()
	const retryInterval = 200 * time.Millisecond
	for ctx.Err() == nil {
		resp, err := r.client.TaskService().Wait(ctx, &tasks.WaitRequest{ContainerID: handle})
		if err == nil && resp.GetExitedAt().AsTime().Unix() <= 0 {
			// What containerd says of a shim that has just been killed. It soon
			// knows better: then there is no task.
			err = errors.New("no time of exit")
		}
		switch err = errgrpc.ToNative(err); {
		case err == nil:
			err = r.recordExit(ctx, handle, func(id runtime.ContainerID) exitRecord {
				code := int(resp.GetExitStatus())
				return exitRecord{Code: code, At: resp.GetExitedAt().AsTime(), OOMKilled: oomKilled(code, r.cgroupOf(id))}
			})
		case errdefs.IsNotFound(err):
			err = r.recordExit(ctx, handle, func(id runtime.ContainerID) exitRecord {
				return readExit(r.filesOf(id.PodUID).logs(id))
			})
		}
		if err == nil {
			return
		}
		// containerd restarts, or the shim is being cleared away: ask again.
		_ = pause(ctx, retryInterval)
	}
}

// recordExit notes how a container has ended, then frees its task. The end of
// one that was removed meanwhile is of no interest, and a noted end stays.
func (r *Runtime) recordExit(ctx context.Context, handle string, how func(runtime.ContainerID) exitRecord) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	defer r.notify()
	c, err := r.client.ContainerService().Get(ctx, handle)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	id, ok := idOf(c)
	if !ok {
		return nil
	}
	if c.Labels[labelFinished] == "" {
		if err := r.label(ctx, handle, exitLabels(how(id))); err != nil {
			if errdefs.IsNotFound(err) {
				return nil
			}
			return err
		}
		r.notify()
	}
	if err := r.freeTask(ctx, id); err != nil && ctx.Err() == nil {
		r.log.Warn("ended container's task is not freed yet", "container", id.Name, "pod", id.PodUID, "error", err)
	}
	return nil
}

// freeTask deletes the task of a container whose end is recorded. With the
// pod's last, its shim ends.
func (r *Runtime) freeTask(ctx context.Context, id runtime.ContainerID) error {
	release, err := r.shims.lock(ctx, id.PodUID)
	if err != nil {
		return err
	}
	defer release()
	return r.deleteTask(ctx, handleOf(id))
}
