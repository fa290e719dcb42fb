package systemtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netns"
)

// host is a machine of its own: a network namespace, in which a peer and an agent run
// as they do on a VM.
type host struct {
	*machine
	ns     string // path
	holder *exec.Cmd
}

// newHost makes a machine at 10.77.0.1/24.
func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{machine: buildMachine(t)}
	h.holder = exec.Command("unshare", "--net", "sleep", "infinity")
	if err := h.holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.holder.Process.Kill(); _ = h.holder.Wait() })
	h.ns = fmt.Sprintf("/proc/%d/ns/net", h.holder.Process.Pid)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if now, err := os.Readlink(h.ns); err == nil && now != own {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("there is no network namespace")
		}
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "eth0", "type", "veth", "peer", "name", "cable"},
		{"link", "set", "eth0", "addrgenmode", "none"},
		{"link", "set", "cable", "addrgenmode", "none", "up"},
		{"addr", "add", "10.77.0.1/24", "dev", "eth0"},
		{"link", "set", "eth0", "up"},
		{"route", "add", "default", "via", "10.77.0.254"},
	} {
		h.in("ip", args...)
	}
	return h
}

// command runs something on the machine.
func (h *host) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + h.ns, name}, args...)...)
	cmd.Env = h.env
	return cmd
}

func (h *host) in(name string, args ...string) string {
	h.t.Helper()
	out, err := h.command(name, args...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// start runs something until the returned function ends it, or the test.
func (h *host) start(args ...string) (stop func()) {
	h.t.Helper()
	cmd := h.command(h.binary, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-ended
		}
		if h.t.Failed() {
			h.t.Logf("holdfast %s:\n%s", strings.Join(args, " "), out.Bytes())
		}
	}
	h.t.Cleanup(stop)
	return stop
}

// wait runs the CLI on the machine until right says so.
func (h *host) wait(right func(out string, err error) bool, args ...string) string {
	h.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(h.t.Context(), patience)
		cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + h.ns, h.binary}, args...)...)
		cmd.Env = h.env
		out, err := cmd.CombinedOutput()
		cancel()
		if right(string(out), err) {
			return strings.TrimSpace(string(out))
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("holdfast %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

func works(_ string, err error) bool { return err == nil }

// state is all that a node may leave on a machine, and what others have there.
func (h *host) state(dirs ...string) []string {
	h.t.Helper()
	var all []string
	for _, args := range [][]string{{"-brief", "link"}, {"-brief", "addr"}, {"route", "show", "table", "all"}, {"neigh", "show", "nud", "permanent"}, {"rule"}} {
		for line := range strings.Lines(h.in("ip", args...)) {
			if strings.Contains(line, "fe80::") && strings.Contains(line, " dev hf") && strings.Contains(line, "proto kernel") {
				continue // comes a moment after its link, which is listed, and goes with it
			}
			all = append(all, "ip "+args[len(args)-1]+": "+strings.TrimSpace(line))
		}
	}
	ns, err := netns.GetFromPath(h.ns)
	if err != nil {
		h.t.Fatal(err)
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		h.t.Fatal(err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, table := range tables {
		all = append(all, "table "+table.Name)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, dir := range dirs {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, dir) {
				all = append(all, "mount "+line)
			}
		}
		_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				all = append(all, "file "+path)
			}
			return nil
		})
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/holdfast/" + h.name())
	more, _ := filepath.Glob("/sys/fs/cgroup/holdfast/" + h.name())
	all = append(append(all, groups...), more...)
	for _, pid := range h.processes("") {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if !bytes.Contains(line, []byte("server")) {
			all = append(all, fmt.Sprintf("process %s", bytes.ReplaceAll(line, []byte{0}, []byte(" "))))
		}
	}
	slices.Sort(all)
	return all
}

// name tells this test's node from all others of this machine.
func (h *host) name() string { return fmt.Sprintf("uninstall-%d", os.Getpid()) }

// TestUninstall: a node with pods, services, host ports and volumes is removed from its
// machine. What it leaves is what was there before it came.
func TestUninstall(t *testing.T) {
	h := newHost(t)
	data, run := filepath.Join(h.data, "node"), filepath.Join("/run/holdfast", h.name())
	// Others have a table, a route and a file where the node's are to be.
	ns, err := netns.GetFromPath(h.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		t.Fatal(err)
	}
	conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "somebody"})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	h.in("ip", "route", "add", "10.78.0.0/16", "via", "10.77.0.253")
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "mine"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := h.state(data, run)

	h.start("server", "--init", "--name", "p1", "--data-dir", filepath.Join(h.data, "peer"), "--advertise", "10.77.0.1", "--pod-cidr", "172.30.0.0/16", "--service-cidr", "172.31.0.0/20")
	token := h.wait(func(out string, err error) bool { return err == nil && strings.HasPrefix(out, "holdfast1") }, "token", "create", "--role", "node")
	node := []string{"--data-dir", data, "--run-dir", run, "--name", h.name(), "--eviction-hard", "", "--gossip", ":7947"}
	stop := h.start(append([]string{"agent", "--join", "10.77.0.1:7443", "--token", strings.Fields(token)[0], "--advertise", "10.77.0.1", "--image-dir", h.images}, node...)...)
	t.Cleanup(func() { // whatever failed above
		stop()
		_, _ = h.command(h.binary, append([]string{"agent", "--uninstall", "--yes"}, node...)...).CombinedOutput()
	})
	h.wait(works, "create", "--detach", "-f", "testdata/uninstall.yaml")
	h.wait(func(out string, err error) bool { return err == nil && strings.Count(out, "true") == 2 },
		"get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].ready}")
	h.wait(func(out string, err error) bool { return err == nil && strings.Contains(out, "hello from") },
		"exec", "db-0", "--", "/web", "get", "http://10.77.0.1:8081/")
	uninstall := func(args ...string) (string, error) {
		out, err := h.command(h.binary, append(append([]string{"agent", "--uninstall"}, args...), node...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := uninstall("--yes"); err == nil || !strings.Contains(out, "must be stopped") {
		t.Errorf("while the agent runs: %v, %s", err, out)
	}
	stop()
	during := h.state(data, run)
	if out, err := uninstall(); err == nil || !strings.Contains(out, "--yes") {
		t.Errorf("without yes, and nobody to ask: %v, %s", err, out)
	}
	if now := h.state(data, run); len(now) != len(during) {
		t.Errorf("without yes something changed: %q is new, %q is gone", without(now, during), without(during, now))
	}
	for _, want := range []string{"table holdfast-services", "table holdfast-hostports", "deadman", "ip addr: hf", "containerd-shim", "172.30.0.0/24", "172.31.0.0/20"} {
		if !slices.ContainsFunc(during, func(line string) bool { return strings.Contains(line, want) }) {
			t.Errorf("%q is not there before, so that its absence after would prove nothing:\n%s", want, strings.Join(slices.DeleteFunc(during, func(s string) bool { return strings.HasPrefix(s, "file") }), "\n"))
		}
	}
	if out, err := uninstall("--yes"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	} else if !strings.Contains(out, data+" stays") {
		t.Errorf("of the file that is not the node's it says nothing: %s", out)
	}
	after := h.state(data, run)
	if !slices.Equal(before, after) {
		for _, line := range after {
			if !slices.Contains(before, line) {
				t.Errorf("left behind: %s", line)
			}
		}
		for _, line := range before {
			if !slices.Contains(after, line) {
				t.Errorf("taken from others: %s", line)
			}
		}
	}
	if out, err := uninstall("--yes"); err != nil || !strings.Contains(out, "nothing of a node") {
		t.Errorf("once more: %v, %s", err, out)
	}
}

// without returns what of all is not in some.
func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(line string) bool { return slices.Contains(some, line) })
}
