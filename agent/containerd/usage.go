package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Usage reads what a container uses from its cgroup, without asking containerd. It
// returns runtime.ErrNotRunning when there is no such cgroup.
func (r *Runtime) Usage(_ context.Context, id runtime.ContainerID) (runtime.Usage, error) {
	if err := checkContainerID(id); err != nil {
		return runtime.Usage{}, err
	}
	mounts, err := cgroupMounts()
	if err != nil {
		return runtime.Usage{}, err
	}
	usage, err := usageOf(mounts, r.cgroupOf(id), os.ReadFile)
	if err != nil {
		return runtime.Usage{}, fmt.Errorf("usage of container %s: %w", id.Name, err)
	}
	return usage, nil
}

// DiskUsage measures what a pod's containers take of the disk: their snapshots, by
// containerd, and their logs. It returns runtime.ErrNotFound for a pod that is not there.
func (r *Runtime) DiskUsage(ctx context.Context, podUID string) ([]runtime.ContainerDisk, error) {
	if err := checkPodUID(podUID); err != nil {
		return nil, err
	}
	if _, err := r.readPod(podUID); err != nil {
		return nil, err
	}
	ctx, cancel, err := r.call(ctx, changeTimeout)
	if err != nil {
		return nil, err
	}
	defer cancel()
	records, err := r.client.ContainerService().List(ctx, podFilter(podUID))
	if err != nil {
		return nil, fmt.Errorf("disk usage of pod %s: list its containers: %w", podUID, err)
	}
	sums := map[string]*runtime.ContainerDisk{}
	sum := func(name string) *runtime.ContainerDisk {
		if sums[name] == nil {
			sums[name] = &runtime.ContainerDisk{Name: name}
		}
		return sums[name]
	}
	for _, c := range records {
		id, ok := idOf(c)
		if !ok {
			continue
		}
		used, err := r.client.SnapshotService(c.Snapshotter).Usage(ctx, c.SnapshotKey)
		if errdefs.IsNotFound(err) {
			continue // it was removed just now
		}
		if err != nil {
			return nil, fmt.Errorf("disk usage of container %s: %w", id.Name, err)
		}
		disk := sum(id.Name)
		disk.RootBytes += used.Size
		disk.Inodes += used.Inodes
	}
	logs := filepath.Join(r.filesOf(podUID).dir, "logs")
	err = filepath.WalkDir(logs, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // there is none, or it went while we looked
		}
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			return nil
		}
		below, err := filepath.Rel(logs, path)
		if err != nil {
			return err
		}
		name, _, _ := strings.Cut(below, "/")
		disk := sum(name)
		disk.LogBytes += st.Blocks * 512
		disk.Inodes++
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("disk usage of pod %s: %w", podUID, err)
	}
	var all []runtime.ContainerDisk
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		all = append(all, *sums[name])
	}
	return all, nil
}

// usageOf reads the counters of either version of cgroups, wherever they are
// mounted.
func usageOf(mounts []string, cgroup string, read func(string) ([]byte, error)) (runtime.Usage, error) {
	find := func(name string) ([]byte, error) {
		for _, mount := range mounts {
			data, err := read(filepath.Join(mount, cgroup, name))
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return data, err
			}
		}
		return nil, runtime.ErrNotRunning
	}
	number := func(name string) (int64, error) {
		data, err := find(name)
		if err != nil {
			return 0, err
		}
		return strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
	}
	field := func(name, key string) (int64, error) {
		data, err := find(name)
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(data)) {
			if value, ok := strings.CutPrefix(line, key+" "); ok {
				return strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			}
		}
		return 0, fmt.Errorf("%s has no %s", name, key)
	}
	var usage runtime.Usage
	usage.PIDs, _ = number("pids.current") // 0 where the kernel does not count them
	var used, inactive int64
	cpu, err := number("cpuacct.usage") // version 1, nanoseconds
	if err == nil {
		used, err = number("memory.usage_in_bytes")
		if err == nil {
			inactive, err = field("memory.stat", "total_inactive_file")
		}
	} else if errors.Is(err, runtime.ErrNotRunning) { // version 2
		cpu, err = field("cpu.stat", "usage_usec")
		cpu *= 1000
		if err == nil {
			used, err = number("memory.current")
		}
		if err == nil {
			inactive, err = field("memory.stat", "inactive_file")
		}
	}
	if err != nil {
		return runtime.Usage{}, err
	}
	usage.CPU, usage.MemoryBytes = time.Duration(cpu), max(used-inactive, 0)
	return usage, nil
}
