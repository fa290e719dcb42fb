package fake

import (
	"context"
	"fmt"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// ResizePod changes what a pod is bounded by. As on nodes with cgroups of version 1, it
// refuses a CPU limit below that of a container that runs.
func (r *Runtime) ResizePod(_ context.Context, uid string, want runtime.Resources) error {
	end, err := r.begin(uid, "ResizePod")
	if err != nil {
		return err
	}
	defer end()
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[uid]
	if p == nil {
		return fmt.Errorf("fake: pod %s: %w", uid, runtime.ErrNotFound)
	}
	var used int64
	for _, c := range p.containers {
		if c.state.State != runtime.StateRunning {
			continue
		}
		used += c.usesMemory()
		if limit := c.spec.Resources.CPUMillis; want.CPUMillis > 0 && limit > want.CPUMillis {
			return fmt.Errorf("fake: container %s may take more CPU than %d thousandths", c.spec.ID.Name, want.CPUMillis)
		}
	}
	if want.MemoryBytes > 0 && used > want.MemoryBytes {
		return fmt.Errorf("fake: pod %s uses %d bytes, the limit is to be %d: %w", uid, used, want.MemoryBytes, runtime.ErrMemoryInUse)
	}
	want.PIDs = p.spec.Resources.PIDs
	p.spec.Resources = want
	r.touch()
	return nil
}

// ResizeContainer changes what a container may take. As on nodes with cgroups of
// version 1, it refuses a CPU limit above the pod's.
func (r *Runtime) ResizeContainer(_ context.Context, id runtime.ContainerID, want runtime.Resources) error {
	end, err := r.begin(id.PodUID, "ResizeContainer")
	if err != nil {
		return err
	}
	defer end()
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.find(id)
	switch {
	case c == nil:
		return fmt.Errorf("fake: container %s: %w", id.Name, runtime.ErrNotFound)
	case c.state.State != runtime.StateRunning:
		return fmt.Errorf("fake: container %s: %w", id.Name, runtime.ErrNotRunning)
	case want.MemoryBytes > 0 && c.usesMemory() > want.MemoryBytes:
		return fmt.Errorf("fake: container %s uses %d bytes, its limit is to be %d: %w", id.Name, c.usesMemory(), want.MemoryBytes, runtime.ErrMemoryInUse)
	}
	if pod := r.pods[id.PodUID].spec.Resources; pod.CPUMillis > 0 && want.CPUMillis > pod.CPUMillis {
		return fmt.Errorf("fake: container %s would have more CPU than its pod", id.Name)
	}
	given := want
	given.PIDs, given.OOMScoreAdj = c.spec.Resources.PIDs, c.spec.Resources.OOMScoreAdj
	c.spec.Resources = given
	c.state.Resources = &given
	r.touch()
	return nil
}

// usesMemory is what a container that runs uses. r.mu is held.
func (c *container) usesMemory() int64 { return max(c.memory, 2<<20) }
