package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

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
