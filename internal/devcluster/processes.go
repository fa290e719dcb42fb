//go:build linux

package devcluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one line of the host's process table.
type process struct {
	pid, parent int
	netns       uint64 // inode of its network namespace
}

// mount is one line of mountinfo.
type mount struct {
	path   string
	fstype string
	inode  uint64 // of a namespace file; else 0
}

// residents returns the pids of everything that runs on a machine: what is in
// one of its network namespaces (its own and its pods'), and all that descends
// from those. It is pure; self is left out.
func residents(all []process, namespaces map[uint64]bool, self int) []int {
	in := map[int]bool{}
	for _, p := range all {
		if namespaces[p.netns] {
			in[p.pid] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if !in[p.pid] && in[p.parent] && p.parent != 1 && p.parent != self {
				in[p.pid] = true
				grown = true
			}
		}
	}
	delete(in, self)
	delete(in, 1)
	pids := make([]int, 0, len(in))
	for pid := range in {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// killResidents kills everything that runs in the namespaces and returns once
// all of it is gone, or ctx ends. It asks namespaces anew each round: a dying
// machine may still be starting pods.
func killResidents(ctx context.Context, namespaces func() (map[uint64]bool, error)) error {
	for {
		in, err := namespaces()
		if err != nil {
			return err
		}
		all, err := processes()
		if err != nil {
			return err
		}
		left := residents(all, in, os.Getpid())
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v do not die: %w", left, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// processes reads the host's process table, without the dead that wait for
// their parents.
func processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue // ended meanwhile
		}
		// The name stands in parentheses and may hold anything.
		_, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			continue
		}
		p := process{pid: pid, parent: parent}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join("/proc", entry.Name(), "ns/net"), &st); err == nil {
			p.netns = st.Ino
		}
		out = append(out, p)
	}
	return out, nil
}

// mountsBelow returns the mounts at and below the directories, deepest first.
func mountsBelow(dirs ...string) ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []mount
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m, ok := parseMount(lines.Text())
		if ok && slices.ContainsFunc(dirs, func(dir string) bool { return within(m.path, dir) }) {
			out = append(out, m)
		}
	}
	// Later lines lie over earlier ones.
	slices.Reverse(out)
	return out, lines.Err()
}

// parseMount reads one line of mountinfo, proc_pid_mountinfo(5):
// "36 35 98:0 /root /point options shared:1 - type source superoptions".
func parseMount(line string) (mount, bool) {
	before, after, ok := strings.Cut(line, " - ")
	fields := strings.Fields(before)
	if !ok || len(fields) < 6 {
		return mount{}, false
	}
	m := mount{path: unescapeMount(fields[4]), fstype: strings.Fields(after + " ?")[0]}
	if m.fstype == "nsfs" {
		// The root of a namespace file is "net:[4026532281]".
		if number, ok := strings.CutPrefix(fields[3], "net:["); ok {
			m.inode, _ = strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
		}
	}
	return m, true
}

// unescapeMount undoes the octal escapes of blanks and backslashes.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// unmountBelow unmounts everything at and below the directories.
func unmountBelow(dirs ...string) error {
	mounts, err := mountsBelow(dirs...)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if err := unix.Unmount(m.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.path, err))
		}
	}
	return errors.Join(errs...)
}
