package containerd

import (
	"bufio"
	"bytes"
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
