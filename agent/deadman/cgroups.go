package deadman

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroups is the kernel's control groups, of either version.
type cgroups struct {
	mounts []string
	// freezer is the tree that can be frozen.
	freezer string
	unified bool
}

func newCgroups() (cgroups, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, err
	}
	var c cgroups
	for line := range bytes.Lines(data) {
		before, after, ok := strings.Cut(string(line), " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "cgroup") {
			continue
		}
		mount := fields[4]
		if mount != "/sys/fs/cgroup" && !strings.HasPrefix(mount, "/sys/fs/cgroup/") || slices.Contains(c.mounts, mount) {
			continue // another place is a container's view of the same tree
		}
		c.mounts = append(c.mounts, mount)
		if filepath.Base(mount) == "freezer" {
			c.freezer = mount
		}
		if mount == "/sys/fs/cgroup" && strings.HasPrefix(after, "cgroup2") {
			c.unified = true
		}
	}
	if c.unified {
		c.freezer = "/sys/fs/cgroup"
	}
	if len(c.mounts) == 0 {
		return c, errors.New("no control groups are mounted below /sys/fs/cgroup")
	}
	return c, nil
}

// Kill implements Kernel.
func (c cgroups) Kill(cgroup string) int {
	killed := map[int]bool{}
	for _, mount := range c.mounts {
		_ = filepath.WalkDir(filepath.Join(mount, cgroup), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil
			}
			data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if err != nil {
				return nil
			}
			for _, field := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil && pid > 1 && !killed[pid] {
					killed[pid] = true
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			return nil
		})
	}
	return len(killed)
}

func (c cgroups) state() (file, frozen, thawed string) {
	if c.unified {
		return "cgroup.freeze", "1", "0"
	}
	return "freezer.state", "FROZEN", "THAWED"
}

// Freeze implements Kernel. A kernel without a freezer is left to Kill.
func (c cgroups) Freeze(cgroup string) {
	if c.freezer == "" {
		return
	}
	file, frozen, _ := c.state()
	dir := filepath.Join(c.freezer, cgroup)
	if os.MkdirAll(dir, 0o755) == nil {
		_ = os.WriteFile(filepath.Join(dir, file), []byte(frozen), 0)
	}
}

// Thaw implements Kernel.
func (c cgroups) Thaw(cgroup string) {
	if c.freezer == "" {
		return
	}
	file, _, thawed := c.state()
	_ = os.WriteFile(filepath.Join(c.freezer, cgroup, file), []byte(thawed), 0)
}

// Frozen implements Kernel.
func (c cgroups) Frozen(cgroup string) bool {
	file, _, thawed := c.state()
	data, err := os.ReadFile(filepath.Join(c.freezer, cgroup, file))
	return c.freezer != "" && err == nil && strings.TrimSpace(string(data)) != thawed
}

// join puts this process into a control group of its own, so that whoever ends the
// agent's does not end this one.
func (c cgroups) join(cgroup string) {
	for _, mount := range c.mounts {
		if filepath.Base(mount) == "cpuset" {
			continue // takes nobody before it is told its processors
		}
		dir := filepath.Join(mount, cgroup)
		if os.MkdirAll(dir, 0o755) == nil {
			_ = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
		}
	}
}
