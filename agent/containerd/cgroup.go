package containerd

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// cgroupMounts returns where the machine's cgroup trees are mounted: one with
// version 2, one for each controller with version 1, and both on hybrids.
func cgroupMounts() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return parseCgroupMounts(data), nil
}

func parseCgroupMounts(mountinfo []byte) []string {
	var mounts []string
	for line := range bytes.Lines(mountinfo) {
		before, after, ok := strings.Cut(string(line), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "cgroup") {
			continue
		}
		// Other places are containers' views of the same trees.
		if mount := fields[4]; (mount == "/sys/fs/cgroup" || strings.HasPrefix(mount, "/sys/fs/cgroup/")) && !slices.Contains(mounts, mount) {
			mounts = append(mounts, mount)
		}
	}
	return mounts
}

// unifiedCgroups tells whether the machine has cgroups of version 2 only.
func unifiedCgroups() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// cgroupSetting is a value of a cgroup's file.
type cgroupSetting struct {
	controller string // "cpu", "memory", "pids"
	file       string
	value      string
}

// cgroupSettings are a pod's bounds as the files of either version of cgroups have
// them. What is not bounded is set too: it may have been before.
func cgroupSettings(r runtime.Resources, unified bool) []cgroupSetting {
	number := func(n int64, none string) string {
		if n <= 0 {
			return none
		}
		return strconv.FormatInt(n, 10)
	}
	quota := number(r.CPUMillis*cpuPeriod/1000, "")
	if quota != "" {
		quota = strconv.FormatInt(max(r.CPUMillis*cpuPeriod/1000, cpuMin), 10)
	}
	shares := min(max(r.CPUShares, 2), 262144)
	if unified {
		return []cgroupSetting{
			{"cpu", "cpu.weight", strconv.FormatInt(1+(shares-2)*9999/262142, 10)},
			{"cpu", "cpu.max", fmt.Sprintf("%s %d", cmp.Or(quota, "max"), cpuPeriod)},
			{"memory", "memory.max", number(r.MemoryBytes, "max")},
			{"pids", "pids.max", number(r.PIDs, "max")},
		}
	}
	return []cgroupSetting{
		{"cpu", "cpu.shares", strconv.FormatInt(shares, 10)},
		{"cpu", "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)},
		{"cpu", "cpu.cfs_quota_us", cmp.Or(quota, "-1")},
		{"memory", "memory.limit_in_bytes", number(r.MemoryBytes, "-1")},
		{"pids", "pids.max", number(r.PIDs, "max")},
	}
}

// setCgroup makes a cgroup that bounds what is in it and in those below it.
// Controllers that the machine does not have bound nothing.
func setCgroup(cgroup string, r runtime.Resources) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	unified := unifiedCgroups()
	var failed error
	for _, s := range cgroupSettings(r, unified) {
		mount := controllerMount(mounts, s.controller, unified)
		if mount == "" {
			continue
		}
		if err := makeCgroup(mount, cgroup, unified); err != nil {
			return err
		}
		err := os.WriteFile(filepath.Join(mount, cgroup, s.file), []byte(s.value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // the kernel has no such control
			failed = errors.Join(failed, fmt.Errorf("set %s of cgroup %s to %s: %w", s.file, cgroup, s.value, err))
		}
	}
	return failed
}

// controllerMount returns the tree that a controller is in, "" for none.
func controllerMount(mounts []string, controller string, unified bool) string {
	for _, mount := range mounts {
		if unified || slices.Contains(strings.Split(filepath.Base(mount), ","), controller) {
			return mount
		}
	}
	return ""
}

// makeCgroup makes a cgroup and those above it. In version 2 a cgroup has only the
// controllers that the one above it hands on.
func makeCgroup(mount, cgroup string, unified bool) error {
	if !unified {
		return os.MkdirAll(filepath.Join(mount, cgroup), 0o755)
	}
	dir := mount
	for name := range strings.SplitSeq(strings.Trim(cgroup, "/"), "/") {
		for _, controller := range []string{"cpu", "memory", "pids", "io"} {
			// One that the kernel lacks, or does not hand on, is missed below.
			_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0)
		}
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// oomKills returns how many processes of the cgroup the kernel has killed for
// want of memory, 0 when it cannot be told.
func oomKills(cgroup string) int {
	mounts, err := cgroupMounts()
	if err != nil {
		return 0
	}
	for _, mount := range mounts {
		for _, name := range []string{"memory.oom_control", "memory.events"} { // version 1, version 2
			data, err := os.ReadFile(filepath.Join(mount, cgroup, name))
			if err != nil {
				continue
			}
			if n, ok := oomKillsIn(data); ok {
				return n
			}
		}
	}
	return 0
}

func oomKillsIn(data []byte) (int, bool) {
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			return n, err == nil
		}
	}
	return 0, false
}

// removeCgroup removes a cgroup and those below it from all trees. It waits a
// few seconds for processes that are about to end.
func removeCgroup(ctx context.Context, cgroup string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		var failed error
		for _, mount := range mounts {
			failed = errors.Join(failed, removeCgroupTree(filepath.Join(mount, cgroup)))
		}
		if failed == nil {
			return nil
		}
		if pause(ctx, 10*time.Millisecond) != nil {
			return fmt.Errorf("remove cgroup %s: %w", cgroup, failed)
		}
	}
}

// removeEmptyCgroup removes a cgroup from the trees in which nothing is in it.
func removeEmptyCgroup(cgroup string) {
	mounts, err := cgroupMounts()
	if err != nil {
		return
	}
	for _, mount := range mounts {
		_ = unix.Rmdir(filepath.Join(mount, cgroup)) // the kernel refuses where it is in use
	}
}

func removeCgroupTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var failed error
	for _, e := range entries {
		if e.IsDir() {
			failed = errors.Join(failed, removeCgroupTree(filepath.Join(dir, e.Name())))
		}
	}
	if failed != nil {
		return failed
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// killCgroup sends SIGKILL to all processes of a cgroup and of those below it.
func killCgroup(cgroup string) {
	mounts, err := cgroupMounts()
	if err != nil {
		return
	}
	for _, mount := range mounts {
		_ = filepath.WalkDir(filepath.Join(mount, cgroup), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil
			}
			f, err := os.Open(filepath.Join(path, "cgroup.procs"))
			if err != nil {
				return nil
			}
			defer f.Close()
			for lines := bufio.NewScanner(f); lines.Scan(); {
				if pid, err := strconv.Atoi(lines.Text()); err == nil && pid > 1 {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			return nil
		})
	}
}
