package containerd

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Bad weather: what goes wrong on a node ends in an error that says what it is, harms
// nobody else, and is over once its cause is.

// TestZombies: a pod whose first process reaps nobody fills up with a thousand that have
// ended. Its own limit holds, others start as ever, and its end is an end.
func TestZombies(t *testing.T) {
	const count = 1000
	n, cfg := newNode(t)
	n.pod("p")
	id := n.run("p", "main", 0, fmt.Sprintf(`i=0; while [ $i -lt %d ]; do sleep 777 & i=$((i+1)); done; echo spawned; exec sleep 1000`, count), func(c *runtime.Container) {
		c.Resources.PIDs = count + 50
	})
	waitForLog(n, id, "spawned")
	end := func() { // those that have become what they are to be
		for _, pid := range processesIn(n.cgroupOf(id)) {
			if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && string(line) == "sleep\x00777\x00" {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	zombies := func(id runtime.ContainerID) int {
		n.t.Helper()
		out := n.exec(id, "sh", "-c", "cat /proc/[0-9]*/stat | grep -c ') Z ' || true")
		number, err := strconv.Atoi(strings.TrimSpace(out))
		if err != nil {
			t.Fatalf("zombies are %q", out)
		}
		return number
	}
	deadline := time.Now().Add(time.Minute)
	for end(); zombies(id) < count; end() {
		if time.Now().After(deadline) {
			t.Fatalf("%d zombies after a minute, want %d: who reaps them?", zombies(id), count)
		}
		time.Sleep(20 * time.Millisecond) // another look
	}
	if usage, err := n.Usage(n.ctx(), id); err != nil || usage.PIDs < count {
		t.Errorf("usage is %+v, error %v: want the zombies counted", usage, err)
	}
	if out := n.exec(id, "sh", "-c", "(i=0; while [ $i -lt 100 ]; do sleep 5 & i=$((i+1)); done) 2>&1 || true"); !strings.Contains(out, "can't fork") {
		t.Errorf("a hundred more processes than the pod may have: %q, want a refusal", out)
	}
	n.pod("q")
	if _, s := n.finished("q", "main", "true"); s.ExitCode != 0 {
		t.Errorf("a container beside it ended with %+v", s)
	}
	begun := time.Now()
	if err := n.StopContainer(n.ctx(), id, time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if s := n.awaitState(id, runtime.StateExited); s.ExitCode != 128+9 {
		t.Errorf("it ended with %+v, want it killed: it does not heed SIGTERM", s)
	}
	if err := n.RemovePod(n.ctx(), "p"); err != nil {
		t.Fatal(err)
	}
	if left := processesIn(n.podCgroup("p")); len(left) > 0 {
		t.Errorf("processes are left in the pod's cgroup: %v", left)
	}
	mounts, err := cgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, mount := range mounts {
		if _, err := os.Stat(filepath.Join(mount, "holdfast", cfg.Node, "p")); err == nil {
			t.Errorf("the pod's cgroup is left in %s", mount)
		}
	}
}

// TestSharedZombies: where containers share their process ids, what they leave behind is
// reaped for them.
func TestSharedZombies(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p", func(p *runtime.Pod) { p.SharePID = true })
	id := n.run("p", "main", 0, `i=0; while [ $i -lt 1000 ]; do (sleep 0 &); i=$((i+1)); done; echo spawned; exec sleep 1000`)
	waitForLog(n, id, "spawned")
	deadline := time.Now().Add(30 * time.Second)
	for {
		out := strings.TrimSpace(n.exec(id, "sh", "-c", "cat /proc/[0-9]*/stat | grep -c ') Z ' || true"))
		if out == "0" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s zombies are left, want none", out)
		}
		time.Sleep(20 * time.Millisecond) // another look
	}
}

// TestTruncatedArchive: of an archive that was cut off nothing is taken in, whoever asks
// learns which file it is, and the whole file that replaces it is.
func TestTruncatedArchive(t *testing.T) {
	n, cfg := newNode(t)
	path := filepath.Join(cfg.ImageDirs[0], "cut.tar")
	writeArchive(t, path, false, small("cut:1", strings.Repeat("content ", 10_000)))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, whole[:len(whole)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := n.EnsureImage(n.ctx(), "cut:1", corev1.PullNever, nil); err == nil || !strings.Contains(err.Error(), "cut.tar") {
		t.Errorf("half an archive: error %v, want one that names the file", err)
	}
	if err := os.WriteFile(path, whole, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := n.EnsureImage(n.ctx(), "cut:1", corev1.PullNever, nil); err != nil {
		t.Errorf("the whole archive: %v", err)
	}
}

// TestTruncatedPull: a registry that ends in the midst of a layer is an error, nothing
// is kept as an image, and the next pull succeeds.
func TestTruncatedPull(t *testing.T) {
	cfg := testConfig(t)
	cfg.ImageDirs = nil // which have the same
	r, _ := start(t, cfg)
	n := node{r, t}
	var well atomic.Bool
	var left atomic.Int64 // of what it sends before it ends: an answer that was cut off is asked for the rest
	left.Store(100)
	registry := serveRegistryBy(t, "team/box:8", func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !well.Load() && strings.Contains(r.URL.Path, "/blobs/") {
				w = &cutter{w, &left}
			}
			next.ServeHTTP(w, r)
		})
	})
	if _, err := n.EnsureImage(n.ctx(), registry+"/team/box:8", corev1.PullIfNotPresent, nil); err == nil {
		t.Error("half an image: no error")
	}
	well.Store(true)
	if _, err := n.EnsureImage(n.ctx(), registry+"/team/box:8", corev1.PullIfNotPresent, nil); err != nil {
		t.Errorf("from the registry that is well again: %v", err)
	}
}

// cutter ends the connection once so many bytes were sent.
type cutter struct {
	http.ResponseWriter
	left *atomic.Int64
}

func (c *cutter) Write(p []byte) (int, error) {
	if left := c.left.Add(-int64(len(p))); left < 0 {
		_, _ = c.ResponseWriter.Write(p[:max(0, left+int64(len(p)))])
		if f, ok := c.ResponseWriter.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(p)
}

// TestFailingMount: a container one of whose mounts cannot be made is not started, its
// error names the path, and nothing of it is left; once the path is there, it starts.
func TestFailingMount(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p")
	if _, err := n.EnsureImage(n.ctx(), "box:1", corev1.PullIfNotPresent, nil); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "missing")
	c := runtime.Container{
		ID: runtime.ContainerID{PodUID: "p", Name: "main"}, Image: "box:1", Command: []string{"cat", "/mnt/file"},
		Mounts: []runtime.Mount{{HostPath: missing, ContainerPath: "/mnt"}},
	}
	if err := n.RunContainer(n.ctx(), c); err == nil || !strings.Contains(err.Error(), missing) {
		t.Fatalf("a mount of what is not there: error %v, want one that names %s", err, missing)
	}
	if s := n.state(c.ID); s.State != "" {
		t.Errorf("the container that could not start is listed: %+v", s)
	}
	if err := os.Mkdir(missing, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(missing, "file"), []byte("found\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.RunContainer(n.ctx(), c); err != nil {
		t.Fatalf("now that it is there: %v", err)
	}
	if s := n.awaitState(c.ID, runtime.StateExited); s.ExitCode != 0 {
		t.Errorf("it ended with %+v", s)
	}
}

// TestDiskFull: on a full disk no container starts, the error says why, those that run go
// on and can be looked into, and the same call succeeds when there is room again.
func TestDiskFull(t *testing.T) {
	cfg := testConfig(t)
	if err := os.MkdirAll(cfg.Root, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", cfg.Root, "tmpfs", 0, "size=400m"); err != nil {
		t.Fatal(err)
	}
	// After what testConfig clears away, which it does first.
	root := cfg.Root
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	r, stop := start(t, cfg)
	t.Cleanup(func() { // before the disk goes
		stop()
		if err := r.Purge(testContext(t)); err != nil {
			t.Errorf("purge: %v", err)
		}
	})
	n := node{r, t}
	n.pod("p")
	running := n.run("p", "running", 0, forever)
	waitForLog(n, running, "ready")

	filler := filepath.Join(root, "filler")
	fill(t, filler)
	late := runtime.Container{ID: runtime.ContainerID{PodUID: "p", Name: "late"}, Image: "box:1", Command: []string{"true"}}
	err := n.RunContainer(n.ctx(), late)
	if err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("a start on a full disk: error %v, want one that says so", err)
	}
	err = n.CreatePod(n.ctx(), runtime.Pod{UID: "q", Namespace: "default", Name: "q"})
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a pod on a full disk: error %v, want ENOSPC", err)
	}
	if s := n.state(running); s.State != runtime.StateRunning {
		t.Errorf("the container that ran is %+v", s)
	}
	if got := n.exec(running, "echo", "here"); got != "here\n" {
		t.Errorf("exec gives %q", got)
	}

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := n.RunContainer(n.ctx(), late); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	if s := n.awaitState(late.ID, runtime.StateExited); s.ExitCode != 0 {
		t.Errorf("it ended with %+v", s)
	}
	n.pod("q")
	if _, s := n.finished("q", "main", "true"); s.ExitCode != 0 {
		t.Errorf("a container of the pod that could not be made ended with %+v", s)
	}
}

// fill writes a file until its disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
