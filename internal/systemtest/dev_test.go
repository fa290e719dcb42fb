package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/internal/devcluster"
)

// patience bounds every wait. It is no expectation of speed.
const patience = 90 * time.Second

// machine is this test's copy of the binary, its image, and where it keeps things.
type machine struct {
	t      *testing.T
	binary string
	images string
	data   string
	env    []string
}

// newMachine builds what the tests run, and ends the development cluster that they
// start with it.
func newMachine(t *testing.T) *machine {
	t.Helper()
	m := buildMachine(t)
	t.Cleanup(func() {
		cmd := exec.Command(m.binary, "dev", "clean", "--data-dir", m.data)
		cmd.Env = m.env
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("dev clean: %v\n%s", err, out)
		}
	})
	return m
}

// buildMachine builds what the tests run.
func buildMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and containers need root")
	}
	dir := t.TempDir()
	marks.add(devcluster.ID(filepath.Join(dir, "data")))
	m := &machine{t: t, binary: filepath.Join(dir, "holdfast"), images: filepath.Join(dir, "images"), data: filepath.Join(dir, "data")}
	m.env = append(os.Environ(), "HOLDFAST_CONFIG="+filepath.Join(dir, "config.yaml"), "HOLDFAST_CONTEXT=")
	web := filepath.Join(dir, "web")
	for _, build := range [][]string{
		{"go", "build", "-o", m.binary, "../../cmd/holdfast"},
		{"go", "build", "-o", web, "../../examples/web"},
		{"go", "run", "../../examples/image", "-binary", web, "-ref", "holdfast.dev/web:1", "-o", filepath.Join(m.images, "web.tar")},
	} {
		cmd := exec.CommandContext(t.Context(), build[0], build[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(build, " "), err, out)
		}
	}
	return m
}

// holdfast runs the CLI and returns what it printed and its exit code.
func (m *machine) holdfast(args ...string) (output string, code int) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.binary, args...)
	cmd.Env = m.env
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("holdfast %s: %v", strings.Join(args, " "), err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// must is holdfast for what has to succeed.
func (m *machine) must(args ...string) string {
	m.t.Helper()
	out, code := m.holdfast(args...)
	if code != 0 {
		m.t.Fatalf("holdfast %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// cluster is a running `holdfast dev`.
type cluster struct {
	m      *machine
	cmd    *exec.Cmd
	output *bytes.Buffer // complete once ended is closed
	ended  chan struct{}
}

// up starts the development cluster and returns once it says that it is up.
func (m *machine) up(args ...string) *cluster {
	m.t.Helper()
	c := &cluster{m: m, output: new(bytes.Buffer), ended: make(chan struct{})}
	c.cmd = exec.Command(m.binary, append([]string{"dev", "--data-dir", m.data, "--image-dir", m.images}, args...)...)
	c.cmd.Env = m.env
	pipe, err := c.cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	c.cmd.Stderr = c.cmd.Stdout
	if err := c.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	up := make(chan struct{})
	go func() {
		defer close(c.ended)
		var line [4096]byte
		for seen := false; ; {
			n, err := pipe.Read(line[:])
			c.output.Write(line[:n])
			if !seen && bytes.Contains(c.output.Bytes(), []byte("Cluster up")) {
				seen = true
				close(up)
			}
			if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) || err != nil {
				break
			}
		}
		_ = c.cmd.Wait() // its exit code is looked at where it matters
	}()
	select {
	case <-up:
	case <-c.ended:
		m.t.Fatalf("the cluster ended:\n%s", c.output)
	case <-time.After(patience):
		m.t.Fatalf("the cluster is not up after %v", patience)
	}
	m.t.Cleanup(func() { _ = c.cmd.Process.Kill(); <-c.ended })
	return c
}

// stop is Ctrl-C.
func (c *cluster) stop() {
	c.m.t.Helper()
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		c.m.t.Fatal(err)
	}
	select {
	case <-c.ended:
	case <-time.After(patience):
		c.m.t.Fatalf("the cluster has not stopped after %v", patience)
	}
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		c.m.t.Errorf("the cluster stopped with exit code %d:\n%s", code, c.output)
	}
}

// processes returns the pids of all live processes whose command line names the
// data directory.
func (m *machine) processes(except string) []int {
	m.t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		m.t.Fatal(err)
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil || !bytes.Contains(line, []byte(m.data)) {
			continue // gone, or not ours; a zombie has an empty command line
		}
		if except == "" || !bytes.Contains(line, []byte(except)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// containers returns the ids of the containers that run, by pod, and the sum of
// all restarts.
func (m *machine) containers() (ids []string, restarts int) {
	m.t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				ContainerStatuses []struct {
					ContainerID  string
					Ready        bool
					RestartCount int
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(m.must("get", "pods", "-o", "json")), &list); err != nil {
		m.t.Fatal(err)
	}
	for _, pod := range list.Items {
		for _, status := range pod.Status.ContainerStatuses {
			restarts += status.RestartCount
			if status.Ready {
				ids = append(ids, pod.Metadata.Name+" "+status.ContainerID)
			}
		}
	}
	slices.Sort(ids)
	return ids, restarts
}

// waitReady waits until want containers are ready.
func (m *machine) waitReady(want int) []string {
	m.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		ids, _ := m.containers()
		if len(ids) == want {
			return ids
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%d containers are ready after %v, want %d\n%s", len(ids), patience, want, m.must("get", "pods", "-o", "wide"))
		}
	}
}

// leavings is what the cluster has of mounts, links and cgroups on this machine.
func (m *machine) leavings() []string {
	m.t.Helper()
	var left []string
	run, err := filepath.Glob("/run/holdfast-dev/*/data-dir")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, file := range run {
		if dir, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(dir)) == m.data {
			left = append(left, filepath.Dir(file))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, m.data) {
			left = append(left, line)
		}
	}
	for _, pid := range m.processes("") {
		left = append(left, fmt.Sprintf("process %d", pid))
	}
	return left
}

// TestEverythingKilled: kill -9 of all that is ours on the machine, but for the
// containers, which belong to their shims. The cluster comes back with all its
// objects, and the containers have not noticed.
func TestEverythingKilled(t *testing.T) {
	m := newMachine(t)
	m.up("--peers", "3", "--nodes", "2")
	m.must("apply", "-f", "../../examples/web.yaml")
	before := m.waitReady(3)
	revision := m.must("cluster", "status")

	for _, pid := range m.processes("containerd-shim") {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
	c := m.up()
	after := m.waitReady(3)
	if !slices.Equal(before, after) {
		t.Errorf("containers were replaced.\nbefore: %q\nafter:  %q", before, after)
	}
	if _, restarts := m.containers(); restarts != 0 {
		t.Errorf("%d restarts, want none", restarts)
	}
	number := regexp.MustCompile(`(?m)^(Cluster) +(\S+)|^(Revision) +(\d+)`)
	was, is := number.FindAllString(revision, -1), number.FindAllString(m.must("cluster", "status"), -1)
	if len(was) != 2 || len(is) != 2 || was[0] != is[0] {
		t.Errorf("the cluster was %q and is %q, want the same", was, is)
	}

	// A second cluster on the same data is refused.
	out, code := m.holdfast("dev", "--data-dir", m.data)
	if code == 0 || !strings.Contains(out, "already runs") {
		t.Errorf("a second cluster on the same directory: exit code %d, %q; want a refusal", code, out)
	}

	// Ctrl-C leaves the data and nothing else.
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	c = m.up()
	m.waitReady(3)
	m.must("delete", "-f", "../../examples/web.yaml")
	if ids, _ := m.containers(); len(ids) != 0 {
		t.Errorf("deleted, and still there: %q", ids)
	}
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}
