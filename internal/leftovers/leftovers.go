// Package leftovers looks for what tests that run containers have left on the machine:
// mounts, control groups, processes, network interfaces and files. It knows what belongs
// to whom by names alone, since other tests run beside.
package leftovers

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Find returns a line for each thing of the machine whose name or path contains one of
// marks, empty ones left out, and for each child of this process that it has not waited
// for. Network interfaces are those of this process's namespace. Directories are looked
// through two levels deep.
func Find(marks []string, directories ...string) ([]string, error) {
	marks = slices.DeleteFunc(slices.Clone(marks), func(m string) bool { return m == "" })
	ours := func(text string) bool {
		return slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(text, m) })
	}
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var trees []string
	for line := range strings.Lines(string(mounts)) {
		if ours(line) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
		before, after, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(before); strings.HasPrefix(after, "cgroup") && len(fields) > 4 && strings.HasPrefix(fields[4], "/sys/fs/cgroup") {
			trees = append(trees, fields[4])
		}
	}
	for _, tree := range trees {
		found = append(found, named(tree, "cgroup", 4, ours)...)
	}
	for _, dir := range directories {
		found = append(found, named(dir, "file", 2, ours)...)
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if ours(link.Name) {
			found = append(found, "interface "+link.Name)
		}
	}
	processes, err := processesOf(ours)
	return append(found, processes...), err
}

// named returns the paths below dir, to a depth, whose own names are ours.
func named(dir, kind string, depth int, ours func(string) bool) (found []string) {
	if depth == 0 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // it is gone, or is not there
	}
	for _, e := range entries {
		switch path := filepath.Join(dir, e.Name()); {
		case ours(e.Name()) && (kind != "cgroup" || e.IsDir()):
			found = append(found, kind+" "+path)
		case e.IsDir():
			found = append(found, named(path, kind, depth-1, ours)...)
		}
	}
	return found
}

// processesOf returns the processes whose command lines are ours, and this one's children.
func processesOf(ours func(string) bool) (found []string, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	self := os.Getpid()
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == self {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // it has ended
		}
		text := strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
		stat, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		_, rest, _ := strings.Cut(string(stat), ") ") // state, then the parent
		fields := strings.Fields(rest)
		child := len(fields) > 1 && fields[1] == strconv.Itoa(self)
		if ours(text) || child {
			found = append(found, fmt.Sprintf("process %d %s", pid, text))
		}
	}
	return found, nil
}

// Files returns what is left in a directory of a test's own.
func Files(dir string) (found []string) {
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			found = append(found, "file "+path)
		}
		return nil
	})
	return found
}
