//go:build linux

package devcluster

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cgroupTimeout is how long the kernel may take to see that a control group has
// no process any more.
const cgroupTimeout = 5 * time.Second

// RemoveCgroup removes a control group, "holdfast/n1", with all below it, from
// every hierarchy of the machine, and its parent if nothing else is in there.
// Processes in it must have ended. One that does not exist is not an error.
func RemoveCgroup(path string) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(cgroupTimeout)
	for {
		var errs []error
		for _, mount := range mounts {
			errs = append(errs, removeTree(filepath.Join(mount, path)))
		}
		err := errors.Join(errs...)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove control group %s: %w", path, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	for _, mount := range mounts {
		_ = os.Remove(filepath.Join(mount, filepath.Dir(path))) // fails while others use it
	}
	return nil
}

// cgroupMounts returns where hierarchies of control groups are mounted.
func cgroupMounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m, ok := parseMount(lines.Text())
		if ok && (m.fstype == "cgroup" || m.fstype == "cgroup2") && strings.HasPrefix(m.path, "/sys/fs/cgroup") {
			out = append(out, m.path)
		}
	}
	return out, lines.Err()
}

// removeTree removes directories from the leaves up. The files in them belong to
// the kernel and go with them.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
