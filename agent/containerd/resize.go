package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// ResizePod changes the bounds of a pod's cgroup, and with them the weight of its
// class. It returns runtime.ErrNotFound for a pod that is not there, and
// runtime.ErrMemoryInUse for a limit below what its containers use.
func (r *Runtime) ResizePod(ctx context.Context, uid string, want runtime.Resources) error {
	if err := checkPodUID(uid); err != nil {
		return err
	}
	_, cancel, err := r.call(ctx, changeTimeout)
	if err != nil {
		return err
	}
	defer cancel()
	record, err := r.readPod(uid)
	if err != nil {
		return err
	}
	if err := fits(r.podCgroup(uid), want.MemoryBytes); err != nil {
		return fmt.Errorf("resize pod %s/%s: %w", record.Namespace, record.Name, err)
	}
	want.PIDs = record.Resources.PIDs
	record.Resources = want
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	// The cgroup first: the record says what is there.
	if err := setCgroup(r.podCgroup(uid), want); err != nil {
		return fmt.Errorf("resize pod %s/%s: %w", record.Namespace, record.Name, err)
	}
	if err := writeAtomically(r.filesOf(uid).record(), data); err != nil {
		return fmt.Errorf("resize pod %s/%s: %w", record.Namespace, record.Name, err)
	}
	if err := r.weigh(uid, record); err != nil {
		return fmt.Errorf("resize pod %s/%s: %w", record.Namespace, record.Name, err)
	}
	r.notify()
	return nil
}

// ResizeContainer gives a running container other weights and limits, by way of its
// runtime, which remembers them. It returns runtime.ErrNotFound, runtime.ErrNotRunning
// or runtime.ErrMemoryInUse when that cannot be.
func (r *Runtime) ResizeContainer(ctx context.Context, id runtime.ContainerID, want runtime.Resources) error {
	if err := checkContainerID(id); err != nil {
		return err
	}
	ctx, cancel, err := r.call(ctx, changeTimeout)
	if err != nil {
		return err
	}
	defer cancel()
	if err := r.resizeContainer(ctx, id, want); err != nil {
		return fmt.Errorf("resize container %s: %w", id.Name, err)
	}
	r.notify()
	return nil
}

func (r *Runtime) resizeContainer(ctx context.Context, id runtime.ContainerID, want runtime.Resources) error {
	handle := handleOf(id)
	record, err := r.client.ContainerService().Get(ctx, handle)
	if errdefs.IsNotFound(err) {
		return runtime.ErrNotFound
	}
	if err != nil {
		return err
	}
	if _, err := r.processOf(ctx, id); err != nil {
		return runtime.ErrNotRunning
	}
	if err := fits(r.cgroupOf(id), want.MemoryBytes); err != nil {
		return err
	}
	if old := stateOf(record).Resources; old != nil {
		want.PIDs, want.OOMScoreAdj = old.PIDs, old.OOMScoreAdj
	}
	update, err := typeurl.MarshalAny(updateOf(want))
	if err != nil {
		return err
	}
	_, err = r.client.TaskService().Update(ctx, &tasks.UpdateTaskRequest{ContainerID: handle, Resources: typeurl.MarshalProto(update)})
	if err = errgrpc.ToNative(err); errdefs.IsNotFound(err) {
		return runtime.ErrNotRunning
	}
	if err != nil {
		return taskError(err)
	}
	text, err := resourcesText(want)
	if err != nil {
		return err
	}
	return r.label(ctx, handle, map[string]string{labelResources: text})
}

// updateOf is what a container's runtime is told of its new resources. What is left
// out would stay as it was: that there is no limit is said, too.
func updateOf(want runtime.Resources) *specs.LinuxResources {
	quota, period, shares := int64(-1), uint64(cpuPeriod), uint64(max(want.CPUShares, 2))
	if want.CPUMillis > 0 {
		quota = max(want.CPUMillis*cpuPeriod/1000, cpuMin)
	}
	memory := int64(-1)
	if want.MemoryBytes > 0 {
		memory = want.MemoryBytes
	}
	return &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares},
		Memory: &specs.LinuxMemory{Limit: &memory},
	}
}

// fits returns runtime.ErrMemoryInUse if what is in a cgroup uses more than limit, 0 for
// none. A kernel would kill it then, or refuse, by its version.
func fits(cgroup string, limit int64) error {
	if limit == 0 {
		return nil
	}
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	used, err := usageOf(mounts, cgroup, os.ReadFile)
	switch {
	case errors.Is(err, runtime.ErrNotRunning):
		return nil // there is no such cgroup: nobody is in it
	case err != nil:
		return err
	case used.MemoryBytes > limit:
		return fmt.Errorf("attempting to set memory limit (%d) below current usage (%d): %w", limit, used.MemoryBytes, runtime.ErrMemoryInUse)
	}
	return nil
}

// processOf returns the first process of a running container. Its error matches
// runtime.ErrConfig when there is none: that is how another container learns that
// it cannot join it.
func (r *Runtime) processOf(ctx context.Context, id runtime.ContainerID) (int, error) {
	process, err := r.task(ctx, handleOf(id))
	if err != nil {
		return 0, err
	}
	if process.GetStatus() != tasktypes.Status_RUNNING {
		return 0, fmt.Errorf("%w: container %s does not run", runtime.ErrConfig, id.Name)
	}
	return int(process.GetPid()), nil
}

func resourcesText(want runtime.Resources) (string, error) {
	text, err := json.Marshal(want)
	return string(text), err
}
