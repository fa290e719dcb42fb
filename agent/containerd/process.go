package containerd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// shimPIDs returns the shims of this node, by what the machine's processes say
// of themselves: their name and containerd's namespace.
func (r *Runtime) shimPIDs() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		if isShimOf(strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00"), r.namespace) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// isShimOf tells whether args are those of a shim of a containerd namespace.
func isShimOf(args []string, namespace string) bool {
	if len(args) == 0 || !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim-") {
		return false
	}
	i := slices.Index(args, "-namespace")
	return i >= 0 && i+1 < len(args) && args[i+1] == namespace
}

// killShim kills the shim that serves a container: the one that listens on the
// socket which the container's bundle names. Only for a containerd of our own,
// of which we know where it keeps its bundles.
func (r *Runtime) killShim(handle string) {
	if r.server == nil {
		return
	}
	bundle := filepath.Join(r.server.serve.State, "io.containerd.runtime.v2.task", r.namespace, handle)
	data, err := os.ReadFile(filepath.Join(bundle, "bootstrap.json"))
	if err != nil {
		return
	}
	var bootstrap struct {
		Address string `json:"address"`
	}
	if json.Unmarshal(data, &bootstrap) != nil {
		return
	}
	table, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return
	}
	link, ok := socketLink(table, strings.TrimPrefix(bootstrap.Address, "unix://"))
	if !ok {
		return
	}
	for _, pid := range r.shimPIDs() {
		if hasOpen(pid, link) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// socketLink finds a listening socket in the kernel's table of Unix sockets and
// returns what links to it in /proc look like.
func socketLink(table []byte, path string) (string, bool) {
	const listening = "00010000"
	for line := range bytes.Lines(table) {
		fields := strings.Fields(string(line)) // num, references, protocol, flags, type, state, inode, path
		if len(fields) == 8 && fields[7] == path && fields[3] == listening {
			return fmt.Sprintf("socket:[%s]", fields[6]), true
		}
	}
	return "", false
}

func hasOpen(pid int, link string) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		return err == nil && target == link
	})
}
