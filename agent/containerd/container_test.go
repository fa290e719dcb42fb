package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/containerd/logfile"
	"github.com/holdfast-io/holdfast/agent/runtime"
)

const forever = `trap 'exit 7' TERM; echo ready; sleep 1000 & wait`

// node is a runtime in a test, with what makes tests short.
type node struct {
	*Runtime
	t *testing.T
}

func (n node) ctx() context.Context { return testContext(n.t) }

func (n node) pod(uid string, change ...func(*runtime.Pod)) {
	n.t.Helper()
	pod := runtime.Pod{UID: uid, Namespace: "default", Name: "name-" + uid, Hostname: "host-" + uid}
	for _, f := range change {
		f(&pod)
	}
	if err := n.CreatePod(n.ctx(), pod); err != nil {
		n.t.Fatal(err)
	}
}

func (n node) run(uid, name string, attempt int, script string, change ...func(*runtime.Container)) runtime.ContainerID {
	n.t.Helper()
	if _, err := n.EnsureImage(n.ctx(), "box:1", corev1.PullIfNotPresent, nil); err != nil {
		n.t.Fatal(err)
	}
	c := runtime.Container{
		ID:    runtime.ContainerID{PodUID: uid, Name: name, Attempt: attempt},
		Image: "box:1", Command: []string{"sh", "-c", script},
	}
	for _, f := range change {
		f(&c)
	}
	if err := n.RunContainer(n.ctx(), c); err != nil {
		n.t.Fatal(err)
	}
	return c.ID
}

// state is a container as listed; State is empty when it is not.
func (n node) state(id runtime.ContainerID) runtime.ContainerState {
	n.t.Helper()
	pods, err := n.List(n.ctx())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range pods {
		for _, c := range p.Containers {
			if c.ID == id {
				return c
			}
		}
	}
	return runtime.ContainerState{}
}

// await lists at each change until the container is in the wanted state.
func (n node) awaitState(id runtime.ContainerID, want runtime.State) runtime.ContainerState {
	n.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		changed := n.Changed()
		s := n.state(id)
		if s.State == want {
			return s
		}
		select {
		case <-changed:
		case <-time.After(200 * time.Millisecond):
		case <-deadline:
			n.t.Fatalf("container %s is %+v after 30 s, want it %s", id.Name, s, want)
		}
	}
}

func (n node) exec(id runtime.ContainerID, command ...string) string {
	n.t.Helper()
	var out, errs bytes.Buffer
	code, err := n.Exec(n.ctx(), id, runtime.ExecOptions{Command: command, Stdout: &out, Stderr: &errs})
	if err != nil || code != 0 {
		n.t.Fatalf("exec %q: code %d, error %v, stderr %q", command, code, err, errs.String())
	}
	return out.String()
}

func (n node) logs(id runtime.ContainerID) string {
	n.t.Helper()
	var b bytes.Buffer
	if err := n.Logs(n.ctx(), id, runtime.LogOptions{TailLines: -1}, &b); err != nil {
		n.t.Fatal(err)
	}
	return b.String()
}

// finished runs a script to its end and returns its log and end.
func (n node) finished(uid, name string, script string, change ...func(*runtime.Container)) (string, runtime.ContainerState) {
	n.t.Helper()
	id := n.run(uid, name, 0, script, change...)
	var b bytes.Buffer
	if err := n.Logs(n.ctx(), id, runtime.LogOptions{TailLines: -1, Follow: true}, &b); err != nil {
		n.t.Fatal(err)
	}
	return b.String(), n.awaitState(id, runtime.StateExited)
}

func newNode(t *testing.T) (node, Config) {
	t.Helper()
	cfg := testConfig(t)
	r, _ := start(t, cfg)
	return node{r, t}, cfg
}

// TestPodShares covers what the containers of a pod have in common, also after
// all of them have been restarted: it is the pod's, not some container's.
func TestPodShares(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p", func(p *runtime.Pod) { p.NetNS = testNetNS(t, "p") })
	n.pod("other", func(p *runtime.Pod) { p.NetNS = testNetNS(t, "other") })
	a, b := n.run("p", "a", 0, forever), n.run("p", "b", 0, forever)
	stranger := n.run("other", "a", 0, forever)

	n.exec(a, "sh", "-c", "echo from a > /dev/shm/file; ipcmk -Q >/dev/null 2>&1 || true")
	if got := n.exec(b, "cat", "/dev/shm/file"); got != "from a\n" {
		t.Errorf("container b finds %q in /dev/shm, want what a wrote", got)
	}
	if got := n.exec(stranger, "ls", "/dev/shm"); got != "" {
		t.Errorf("another pod finds %q in /dev/shm", got)
	}
	if got := n.exec(b, "sh", "-c", "hostname; cat /etc/hostname"); got != "host-p\nhost-p\n" {
		t.Errorf("container b's host names are %q", got)
	}
	namespaces := func(id runtime.ContainerID) string {
		return n.exec(id, "sh", "-c", "for ns in uts ipc net; do readlink /proc/self/ns/$ns; done")
	}
	shared := namespaces(a)
	if got := namespaces(b); got != shared {
		t.Errorf("containers of one pod are in namespaces\n%s and\n%s", shared, got)
	}
	for ns := range strings.Lines(shared) {
		if strings.Contains(namespaces(stranger), ns) {
			t.Errorf("another pod is in the same namespace %s", ns)
		}
	}
	if pids := n.exec(a, "ps"); strings.Count(pids, "trap 'exit 7'") != 1 {
		t.Errorf("container a sees more than its own process, or not that:\n%s", pids)
	}
	// One shim for the pod, one for the other.
	if got := len(n.shimPIDs()); got != 2 {
		t.Errorf("%d shims run for two pods", got)
	}

	for _, id := range []runtime.ContainerID{a, b} {
		if err := n.StopContainer(n.ctx(), id, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	again := n.run("p", "a", 1, forever)
	if got := namespaces(again); got != shared {
		t.Errorf("after a restart of all containers the pod is in namespaces\n%s, before in\n%s", got, shared)
	}
	if got := n.exec(again, "cat", "/dev/shm/file"); got != "from a\n" {
		t.Errorf("after a restart of all containers /dev/shm has %q", got)
	}
}

func TestHostNamespaces(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p", func(p *runtime.Pod) { p.HostPID, p.HostIPC = true, true })
	id := n.run("p", "a", 0, forever)
	for _, ns := range []string{"net", "pid", "ipc"} {
		home, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if got := n.exec(id, "readlink", "/proc/self/ns/"+ns); got != home+"\n" {
			t.Errorf("a pod that has the node's is in %q, want the node's %q", got, home)
		}
	}
}

// TestHolderDies: a pod whose containers share process ids loses them all with the
// process that holds those, and runs again.
func TestHolderDies(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p", func(p *runtime.Pod) { p.NetNS, p.SharePID = testNetNS(t, "p"), true })
	id := n.run("p", "a", 0, forever)
	waitForLog(n, id, "ready")
	holder := n.holder("p")
	if holder == 0 {
		t.Fatal("the pod has no holder")
	}
	// Nobody in the pod can end it, root neither.
	n.exec(id, "sh", "-c", "kill -TERM 1; kill -INT 1; kill -9 1; ps")
	if now := n.holder("p"); now != holder {
		t.Fatalf("the holder is process %d, was %d before the pod sent it signals", now, holder)
	}
	if err := unix.Kill(holder, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := n.awaitState(id, runtime.StateExited); s.ExitCode != 137 {
		t.Errorf("the container ended with %d, want 137", s.ExitCode)
	}
	again := n.run("p", "a", 1, forever)
	waitForLog(n, again, "ready")
	if now := n.holder("p"); now == 0 || now == holder {
		t.Errorf("the holder is process %d, was %d", now, holder)
	}
}

// TestSecurity reads what the kernel says about a container's process.
func TestSecurity(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p", func(p *runtime.Pod) { p.NetNS = testNetNS(t, "p") })
	log, _ := n.finished("p", "main", "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; cat /proc/self/oom_score_adj; echo 1 > /proc/sys/kernel/pid_max; touch /sys/x; echo done")
	for _, want := range []string{
		"CapEff:\t00000000a80425fb\n", "CapBnd:\t00000000a80425fb\n", // the 14 that docker gives too
		"NoNewPrivs:\t0\n", "Seccomp:\t2\n", "\n0\n",
		"/proc/sys/kernel/pid_max: Read-only file system", "/sys/x: Read-only file system",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the container's log has no %q; it is\n%s", want, log)
		}
	}
}

func TestUsers(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p", func(p *runtime.Pod) { p.NetNS = testNetNS(t, "p") })
	log, _ := n.finished("p", "root", "id")
	if want := "uid=0(root) gid=0(root) groups=0(root)\n"; log != want {
		t.Errorf("an image without a user runs as %q, want %q", log, want)
	}
	for attempt := range 2 { // the second time from memory
		log, _ = n.finished("p", fmt.Sprint("named-", attempt), "", func(c *runtime.Container) {
			c.Image, c.Command, c.Args = "box:user", nil, []string{"id; pwd"}
		})
		if want := "uid=1234(webby) gid=1235(webby) groups=77(extra),1235(webby)\n/tmp\n"; log != want {
			t.Errorf("an image with user webby, working directory /tmp and an entrypoint gives %q, want %q", log, want)
		}
	}
}

func TestImageCommand(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p", func(p *runtime.Pod) { p.NetNS = testNetNS(t, "p") })
	log, _ := n.finished("p", "main", "", func(c *runtime.Container) { c.Command = nil })
	if log != "from the image\n" {
		t.Errorf("the image's own command gave %q", log)
	}
	log, _ = n.finished("p", "env", "echo $FLAVOUR $COLOUR $HOSTNAME $EXTRA", func(c *runtime.Container) { c.Env = []string{"COLOUR=blue", "EXTRA=yes"} })
	if log != "plain blue host-p yes\n" {
		t.Errorf("the environment is %q, want the image's with the container's on top", log)
	}
}

func TestStopSignalOfImage(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p", func(p *runtime.Pod) { p.NetNS = testNetNS(t, "p") })
	id := n.run("p", "main", 0, "", func(c *runtime.Container) {
		c.Image, c.Command, c.Args = "box:user", nil, []string{"trap 'exit 5' USR1; trap '' TERM; echo ready; sleep 1000 & wait"}
	})
	waitForLog(n, id, "ready")
	if err := n.StopContainer(n.ctx(), id, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if s := n.state(id); s.ExitCode != 5 {
		t.Errorf("the container ended with %d, want 5, from its handler of the image's stop signal", s.ExitCode)
	}
}

func waitForLog(n node, id runtime.ContainerID, text string) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.ctx())
	defer cancel()
	found := &finder{text: text, found: cancel}
	if err := n.Logs(ctx, id, runtime.LogOptions{TailLines: -1, Follow: true}, found); err != nil && !errors.Is(err, context.Canceled) {
		n.t.Fatal(err)
	}
	if !strings.Contains(found.seen.String(), text) {
		n.t.Fatalf("container %s ended without %q in its log, which is %q", id.Name, text, found.seen.String())
	}
}

type finder struct {
	seen  strings.Builder
	text  string
	found func()
}

func (f *finder) Write(p []byte) (int, error) {
	f.seen.Write(p)
	if strings.Contains(f.seen.String(), f.text) {
		f.found()
	}
	return len(p), nil
}

func TestResources(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p", func(p *runtime.Pod) { p.NetNS = testNetNS(t, "p") })
	if unifiedCgroups() {
		t.Skip("reads files of cgroups version 1")
	}
	log, _ := n.finished("p", "limits", "cd /sys/fs/cgroup; cat cpu/cpu.cfs_quota_us cpu/cpu.shares memory/memory.limit_in_bytes pids/pids.max; cat /proc/self/oom_score_adj",
		func(c *runtime.Container) {
			c.Resources = runtime.Resources{CPUMillis: 250, CPUShares: 128, MemoryBytes: 64 << 20, PIDs: 77, OOMScoreAdj: 321}
		})
	if want := "25000\n128\n67108864\n77\n321\n"; log != want {
		t.Errorf("limits in the container are %q, want %q", log, want)
	}
	// A container that outlives its child's death by memory was not killed. The
	// child volunteers, or the kernel may choose its parent.
	_, s := n.finished("p", "child", "sh -c 'echo 1000 >/proc/self/oom_score_adj; x=$(yes | head -c 100000000)'; exit 0", func(c *runtime.Container) { c.Resources.MemoryBytes = 32 << 20 })
	if s.ExitCode != 0 || s.OOMKilled {
		t.Errorf("a container that ended well, but for a child killed for its memory, is %+v", s)
	}
}

// TestPodCgroup covers what bounds all containers of a pod together, and where pods
// of each class are.
func TestPodCgroup(t *testing.T) {
	n, _ := newNode(t)
	bound := runtime.Resources{CPUMillis: 500, CPUShares: 256, MemoryBytes: 48 << 20, PIDs: 40}
	for class, uid := range map[corev1.PodQOSClass]string{corev1.PodQOSGuaranteed: "g", corev1.PodQOSBurstable: "b", corev1.PodQOSBestEffort: "e"} {
		n.pod(uid, func(p *runtime.Pod) { p.NetNS, p.QOS, p.Resources = testNetNS(t, uid), class, bound })
	}
	for uid, want := range map[string]string{"g": "/g", "b": "/burstable/b", "e": "/besteffort/e"} {
		if got := n.podCgroup(uid); got != n.cgroup+want {
			t.Errorf("pod %s is in %s, want %s below the node's", uid, got, want)
		}
	}
	mounts, err := cgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	unified := unifiedCgroups()
	for _, s := range cgroupSettings(bound, unified) {
		path := filepath.Join(controllerMount(mounts, s.controller, unified), n.podCgroup("b"), s.file)
		if data, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(data)) != s.value {
			t.Errorf("%s is %q, error %v; want %q", path, data, err, s.value)
		}
	}
	n.pod("b2", func(p *runtime.Pod) { p.NetNS, p.QOS, p.Resources = testNetNS(t, "b2"), corev1.PodQOSBurstable, bound })
	weight := cgroupSettings(runtime.Resources{CPUShares: 512}, unified)[0]
	if data, err := os.ReadFile(filepath.Join(controllerMount(mounts, "cpu", unified), n.cgroup, tierBurstable, weight.file)); err != nil || strings.TrimSpace(string(data)) != weight.value {
		t.Errorf("two burstable pods weigh %q, error %v; want %s", data, err, weight.value)
	}

	log, s := n.finished("b", "forks", "i=0; while [ $i -lt 60 ]; do sleep 100 & i=$((i+1)); done; echo $i; exit 0")
	if !strings.Contains(log, "can't fork") {
		t.Errorf("60 processes in a pod that may have 40: exit code %d, log %q", s.ExitCode, log)
	}
	_, s = n.finished("b", "eats", "x=$(yes | head -c 100000000)")
	if s.ExitCode == 0 || !s.OOMKilled {
		t.Errorf("a container without a limit of its own ate more than the pod's: %+v, want it killed for its memory", s)
	}
	if err := n.RemovePod(n.ctx(), "b"); err != nil {
		t.Fatal(err)
	}
	for _, mount := range mounts {
		if _, err := os.Stat(filepath.Join(mount, n.cgroup, tierBurstable, "b")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the removed pod's cgroup in %s: %v, want none", mount, err)
		}
	}
	if err := n.RemovePod(n.ctx(), "b2"); err != nil {
		t.Fatal(err)
	}
	for _, mount := range mounts {
		if _, err := os.Stat(filepath.Join(mount, n.cgroup, tierBurstable)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the cgroup in %s of a class without pods: %v, want none", mount, err)
		}
	}
}

func TestMounts(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p", func(p *runtime.Pod) { p.NetNS = testNetNS(t, "p") })
	dir := t.TempDir()
	for _, d := range []string{"outer", "inner"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, d, "name"), []byte(d+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log, _ := n.finished("p", "main", "cat /mnt/name /mnt/deep/name; touch /mnt/new && echo written; touch /mnt/deep/new 2>/dev/null || echo refused",
		func(c *runtime.Container) {
			c.Mounts = []runtime.Mount{ // the inner one first: the order must not matter
				{HostPath: filepath.Join(dir, "inner"), ContainerPath: "/mnt/deep", ReadOnly: true},
				{HostPath: filepath.Join(dir, "outer"), ContainerPath: "/mnt"},
			}
		})
	if log != "outer\ninner\nwritten\nrefused\n" {
		t.Errorf("the container's log is %q", log)
	}

	// A mount made on the node later is seen in a container by rslave only.
	slave := func(m *runtime.Mount) { m.Propagation = "rslave" }
	for name, want := range map[string]string{"rprivate": "", "rslave": "late\n"} {
		src := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Join(src, "sub"), 0o755), unix.Mount(src, src, "", unix.MS_BIND, ""), unix.Mount("", src, "", unix.MS_SHARED, "")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for unix.Unmount(filepath.Join(src, "sub"), unix.MNT_DETACH) == nil {
				continue
			}
			if err := unix.Unmount(src, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		m := runtime.Mount{HostPath: src, ContainerPath: "/mnt"}
		if name == "rslave" {
			slave(&m)
		}
		id := n.run("p", name, 0, forever, func(c *runtime.Container) { c.Mounts = []runtime.Mount{m} })
		if err := unix.Mount("tmpfs", filepath.Join(src, "sub"), "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(src, "sub", "late"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if got := n.exec(id, "ls", "/mnt/sub"); got != want {
			t.Errorf("with %s the container sees %q in a later mount, want %q", name, got, want)
		}
		if err := n.StopContainer(n.ctx(), id, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestExecLeavesBackgroundProcess covers a command that ends and leaves a
// process which has its output open.
func TestExecLeavesBackgroundProcess(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p")
	id := n.run("p", "main", 0, forever)
	began := time.Now()
	if got := n.exec(id, "sh", "-c", "echo hello; sleep 500 &"); got != "hello\n" {
		t.Errorf("output is %q", got)
	}
	if took := time.Since(began); took > 8*time.Second { // the shim gives its output 10 s
		t.Errorf("exec took %s: it waited for the process left behind", took)
	}
}

// TestExecOutputIsComplete covers readers slower than the command: with more
// output than fits between them, and with so little that the command has long
// ended when the reader is through.
func TestExecOutputIsComplete(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p")
	id := n.run("p", "main", 0, forever)
	for _, size := range []int{5_000_000, 100_000} {
		slow := &slowWriter{}
		code, err := n.Exec(n.ctx(), id, runtime.ExecOptions{Command: []string{"sh", "-c", fmt.Sprintf("yes | head -c %d", size)}, Stdout: slow})
		if err != nil || code != 0 || slow.n != size {
			t.Errorf("%d bytes arrived, code %d, error %v; want %d and 0", slow.n, code, err, size)
		}
	}
}

type slowWriter struct{ n, calls int }

func (w *slowWriter) Write(p []byte) (int, error) {
	if w.calls++; w.calls == 1 {
		time.Sleep(5 * drainIdle / 2) // longer than the silence that ends a drain
	}
	w.n += len(p)
	return len(p), nil
}

// TestLogIsComplete floods the log and ends at once, while both streams are full
// and the pod's shim is about to end.
func TestLogIsComplete(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p")
	for attempt := range 3 {
		id := n.run("p", "main", attempt, "(seq 20000) & seq 20000 >&2; wait; exit 3")
		var b bytes.Buffer
		if err := n.Logs(n.ctx(), id, runtime.LogOptions{TailLines: -1, Follow: true}, &b); err != nil {
			t.Fatal(err)
		}
		if got := bytes.Count(b.Bytes(), []byte("\n")); got != 40000 {
			t.Errorf("run %d: %d lines were followed, want 40000", attempt, got)
		}
		n.awaitState(id, runtime.StateExited)
		if got := strings.Count(n.logs(id), "\n"); got != 40000 {
			t.Errorf("run %d: %d lines are in the log, want 40000", attempt, got)
		}
	}
}

func TestOldLogsGo(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p")
	var last runtime.ContainerID
	for attempt := range 5 {
		last = n.run("p", "main", attempt, fmt.Sprintf("echo run %d", attempt))
		n.awaitState(last, runtime.StateExited)
	}
	for attempt := range 5 {
		id := last
		id.Attempt = attempt
		var b bytes.Buffer
		err := n.Logs(n.ctx(), id, runtime.LogOptions{TailLines: -1}, &b)
		if kept := attempt >= 5-logsKept; kept && b.String() != fmt.Sprintf("run %d\n", attempt) {
			t.Errorf("log of run %d is %q, error %v", attempt, b.String(), err)
		} else if !kept && !errors.Is(err, runtime.ErrNotFound) {
			t.Errorf("log of run %d: error %v, want that it is gone", attempt, err)
		}
	}
}

func TestTTYLog(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p")
	log, s := n.finished("p", "main", "test -t 1 && echo a terminal; echo $TERM >&2; exit 4", func(c *runtime.Container) { c.TTY = true })
	if log != "a terminal\r\nxterm\r\n" || s.ExitCode != 4 {
		t.Errorf("a container with a terminal logs %q and ends with %d", log, s.ExitCode)
	}
}

// TestAgentDies ends the runtime as an agent's crash does, with containers
// running, and looks from the next one.
func TestAgentDies(t *testing.T) {
	cfg := testConfig(t)
	r, stop := start(t, cfg)
	n := node{r, t}
	n.pod("p")
	goesOn := n.run("p", "goes-on", 0, "trap 'exit 7' TERM; i=0; while true; do echo tick; sleep 0.05; done")
	ends := n.run("p", "ends", 0, "sleep 0.3; echo last words; exit 9")
	killed := n.run("p", "killed", 0, "x=$(yes | head -c 100000000)", func(c *runtime.Container) {
		c.Command = []string{"sh", "-c", "sleep 0.3; x=$(yes | head -c 100000000)"}
		c.Resources.MemoryBytes = 32 << 20
	})
	waitForLog(n, goesOn, "tick")
	server := serverPID(r.server.serve.State)
	stop()
	ticks := strings.Count(rawLog(t, cfg, goesOn), "tick")
	waitUntil(t, "both containers have ended and the third has written more, with no agent", func() bool {
		return !logfile.Live(r.filesOf("p").logs(ends)) && !logfile.Live(r.filesOf("p").logs(killed)) &&
			strings.Count(rawLog(t, cfg, goesOn), "tick") > ticks+2
	})

	r2, _ := start(t, cfg)
	n = node{r2, t}
	if got := serverPID(r2.server.serve.State); got != server {
		t.Errorf("containerd is process %d, was %d: the running one should be used", got, server)
	}
	if s := n.state(goesOn); s.State != runtime.StateRunning || s.StartedAt.IsZero() {
		t.Errorf("the running container is %+v", s)
	}
	if s := n.awaitState(ends, runtime.StateExited); s.ExitCode != 9 || s.OOMKilled {
		t.Errorf("the container that ended meanwhile is %+v, want exit code 9", s)
	}
	if s := n.awaitState(killed, runtime.StateExited); !s.OOMKilled || s.ExitCode == 0 {
		t.Errorf("the container that was killed for its memory meanwhile is %+v", s)
	}
	if got := n.logs(ends); got != "last words\n" {
		t.Errorf("the log written meanwhile is %q", got)
	}
	if err := n.StopContainer(n.ctx(), goesOn, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if s := n.state(goesOn); s.ExitCode != 7 {
		t.Errorf("the adopted container ended with %d, want 7", s.ExitCode)
	}
}

func rawLog(t *testing.T, cfg Config, id runtime.ContainerID) string {
	t.Helper()
	var b strings.Builder
	dir := filepath.Join(cfg.Root, "pods", id.PodUID, "logs", id.Name, fmt.Sprint(id.Attempt))
	if err := logfile.Read(context.Background(), dir, logfile.Options{Tail: -1}, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s: not true that %s", what)
		}
	}
}

// TestContainerdDies kills containerd. Nothing of the containers may be lost,
// and it must come back by itself.
func TestContainerdDies(t *testing.T) {
	n, cfg := newNode(t)
	n.pod("p")
	goesOn := n.run("p", "goes-on", 0, "trap 'exit 7' TERM; while true; do echo tick; sleep 0.05; done")
	ends := n.run("p", "ends", 0, "sleep 0.3; echo last words; exit 9")
	var followed bytes.Buffer
	following := make(chan error, 1)
	go func() {
		following <- n.Logs(n.ctx(), ends, runtime.LogOptions{TailLines: -1, Follow: true}, &followed)
	}()
	for range 2 { // the second time it is not the first one's child that dies
		old := serverPID(n.server.serve.State)
		if err := unix.Kill(old, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		ticks := strings.Count(rawLog(t, cfg, goesOn), "tick")
		waitUntil(t, "another containerd runs and answers", func() bool {
			pid := serverPID(n.server.serve.State)
			if pid == 0 || pid == old {
				return false
			}
			_, err := n.List(n.ctx())
			return err == nil
		})
		waitUntil(t, "the container's log goes on", func() bool { return strings.Count(rawLog(t, cfg, goesOn), "tick") > ticks })
	}
	if s := n.awaitState(ends, runtime.StateExited); s.ExitCode != 9 {
		t.Errorf("the container that ended meanwhile is %+v, want exit code 9", s)
	}
	if err := <-following; err != nil || followed.String() != "last words\n" {
		t.Errorf("the followed log is %q, error %v", followed.String(), err)
	}
	if got := n.exec(goesOn, "echo", "here"); got != "here\n" {
		t.Errorf("exec gives %q", got)
	}
	n.run("p", "new", 0, forever)
	if err := n.StopContainer(n.ctx(), goesOn, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if s := n.state(goesOn); s.ExitCode != 7 {
		t.Errorf("the container ended with %d, want 7", s.ExitCode)
	}
}

// TestEndsWhileContainerdIsAway covers what containerd itself does not keep: it
// clears away containers whose processes it does not find when it starts.
func TestEndsWhileContainerdIsAway(t *testing.T) {
	cfg := testConfig(t)
	r, stop := start(t, cfg)
	n := node{r, t}
	n.pod("p")
	ends := n.run("p", "ends", 0, "sleep 0.5; exit 9")
	killed := n.run("p", "killed", 0, "sleep 0.5; x=$(yes | head -c 100000000)", func(c *runtime.Container) { c.Resources.MemoryBytes = 32 << 20 })
	stop()
	if err := unix.Kill(serverPID(r.server.serve.State), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, id := range []runtime.ContainerID{ends, killed} {
		waitUntil(t, "the container "+id.Name+" has ended", func() bool {
			_, err := os.Stat(filepath.Join(r.filesOf("p").logs(id), exitName))
			return err == nil
		})
	}
	r, _ = start(t, cfg)
	n = node{r, t}
	if s := n.awaitState(ends, runtime.StateExited); s.ExitCode != 9 || s.OOMKilled || s.Message != "" || s.FinishedAt.Before(s.StartedAt) {
		t.Errorf("the container that ended with 9 is %+v", s)
	}
	if s := n.awaitState(killed, runtime.StateExited); s.ExitCode == 0 || !s.OOMKilled {
		t.Errorf("the container that was killed for its memory is %+v", s)
	}
}

// TestShimDies kills a pod's shim: the pod's containers are lost, must be said
// to be, and can be run again.
func TestShimDies(t *testing.T) {
	n, _ := newNode(t)
	n.pod("p")
	n.pod("other")
	a, b := n.run("p", "a", 0, forever), n.run("p", "b", 0, forever)
	other := n.run("other", "a", 0, forever)
	n.killShim(handleOf(b))
	for _, id := range []runtime.ContainerID{a, b} {
		s := n.awaitState(id, runtime.StateExited)
		if s.ExitCode == 0 || s.OOMKilled {
			t.Errorf("container %s of the killed shim is %+v, want an exit code that is not 0", id.Name, s)
		}
	}
	if s := n.state(other); s.State != runtime.StateRunning {
		t.Errorf("another pod's container is %+v", s)
	}
	again := n.run("p", "a", 1, forever)
	if got := n.exec(again, "echo", "here"); got != "here\n" {
		t.Errorf("exec gives %q", got)
	}
	if err := n.RemovePod(n.ctx(), "p"); err != nil {
		t.Error(err)
	}
}

// TestShimHangs stops a pod's shim, so that it answers nobody.
func TestShimHangs(t *testing.T) {
	n, _ := newNode(t)
	n.killTimeout = 2 * time.Second
	n.pod("p")
	n.pod("other")
	id, other := n.run("p", "a", 0, forever), n.run("other", "a", 0, forever)
	waitForLog(n, id, "ready")
	var hung int
	for _, pid := range n.shimPIDs() {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(cmdline), handleOf(id)) {
			hung = pid
		}
	}
	if hung == 0 {
		t.Fatal("the pod's shim is not found")
	}
	if err := unix.Kill(hung, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if s := n.state(id); s.State != runtime.StateUnknown || !strings.Contains(s.Message, "does not answer") {
		t.Errorf("a container whose shim hangs is %+v, want it unknown, with a reason", s)
	}
	if s := n.state(other); s.State != runtime.StateRunning {
		t.Errorf("another pod's container is %+v meanwhile", s)
	}
	began := time.Now()
	if err := n.StopContainer(n.ctx(), id, time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	t.Logf("stopped in %s", time.Since(began))
	if s := n.awaitState(id, runtime.StateExited); s.ExitCode == 0 {
		t.Errorf("the stopped container is %+v, want an exit code that is not 0", s)
	}
	if err := n.RemovePod(n.ctx(), "p"); err != nil {
		t.Errorf("remove: %v", err)
	}
}

// TestHalfStarted leaves containers in the state that an agent's crash leaves
// them in between the steps of a start.
func TestHalfStarted(t *testing.T) {
	cfg := testConfig(t)
	r, stop := start(t, cfg)
	n := node{r, t}
	n.pod("p")
	// Started, but the note of it is missing.
	noNote := n.run("p", "no-note", 0, forever)
	ctx := r.containerdContext(n.ctx())
	if err := r.label(ctx, handleOf(noNote), map[string]string{labelStarted: ""}); err != nil {
		t.Fatal(err)
	}
	// A record without a task.
	record, err := r.client.ContainerService().Get(ctx, handleOf(noNote))
	if err != nil {
		t.Fatal(err)
	}
	noTask := runtime.ContainerID{PodUID: "p", Name: "no-task"}
	record.ID, record.SnapshotKey = handleOf(noTask), handleOf(noTask)
	record.Labels[labelContainer] = noTask.Name
	if _, err := r.client.ContainerService().Create(ctx, record); err != nil {
		t.Fatal(err)
	}
	if s := n.state(noTask); s.State != "" {
		t.Errorf("a container that was never started is listed as %+v", s)
	}
	n.run("p", "no-task", 0, forever) // finishes what was half done
	if err := n.StopContainer(n.ctx(), noTask, 0); err != nil {
		t.Fatal(err)
	}
	if err := n.RemoveContainer(n.ctx(), noTask); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.ContainerService().Create(ctx, record); err != nil {
		t.Fatal(err)
	}
	stop()

	r, _ = start(t, cfg)
	n = node{r, t}
	if s := n.state(noNote); s.State != runtime.StateRunning || s.StartedAt.IsZero() {
		t.Errorf("the container whose start was not noted is %+v, want it running", s)
	}
	if _, err := r.client.ContainerService().Get(r.containerdContext(n.ctx()), handleOf(noTask)); err == nil {
		t.Error("the record of a container that was never started is still there")
	}
	if err := n.StopContainer(n.ctx(), noNote, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if s := n.state(noNote); s.ExitCode != 7 {
		t.Errorf("the adopted container ended with %d, want 7", s.ExitCode)
	}
}

// TestEverythingKilled kills all processes of a node at once, as the loss of its
// machine does, but for the disk, and starts it again.
func TestEverythingKilled(t *testing.T) {
	cfg := testConfig(t)
	r, stop := start(t, cfg)
	n := node{r, t}
	n.pod("p", func(p *runtime.Pod) { p.Hosts = []byte("1.2.3.4 somebody\n") })
	id := n.run("p", "a", 0, forever)
	waitForLog(n, id, "ready")
	stop()
	if err := unix.Kill(serverPID(r.server.serve.State), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, pid := range r.shimPIDs() {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	killCgroup(r.cgroup)
	// What a reboot does to /run.
	if err := errors.Join(unmountBelow(cfg.State), os.RemoveAll(cfg.State)); err != nil {
		t.Fatal(err)
	}

	r, _ = start(t, cfg)
	n = node{r, t}
	s := n.awaitState(id, runtime.StateExited)
	if s.ExitCode != exitLost || s.Message == "" || s.StartedAt.IsZero() {
		t.Errorf("the lost container is %+v, want exit code %d and a message", s, exitLost)
	}
	if got := n.logs(id); got != "ready\n" {
		t.Errorf("its log is %q", got)
	}
	n.pod("p", func(p *runtime.Pod) { p.Hosts = []byte("1.2.3.4 somebody\n") })
	again := n.run("p", "a", 1, forever)
	if got := n.exec(again, "sh", "-c", "hostname; cat /etc/hosts; ls -d /dev/shm"); got != "host-p\n1.2.3.4 somebody\n/dev/shm\n" {
		t.Errorf("the next container sees %q", got)
	}
}

// TestShutdown ends containerd and lets the containers go on.
func TestShutdown(t *testing.T) {
	cfg := testConfig(t)
	r, stop := start(t, cfg)
	n := node{r, t}
	n.pod("p")
	id := n.run("p", "a", 0, "while true; do echo tick; sleep 0.05; done")
	waitForLog(n, id, "tick")
	stop()
	for range 2 {
		if err := r.Shutdown(n.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	if pid := serverPID(r.server.serve.State); pid != 0 {
		t.Errorf("containerd still runs, as process %d", pid)
	}
	ticks := strings.Count(rawLog(t, cfg, id), "tick")
	waitUntil(t, "the container's log goes on", func() bool { return strings.Count(rawLog(t, cfg, id), "tick") > ticks })
	r, _ = start(t, cfg)
	if s := (node{r, t}).state(id); s.State != runtime.StateRunning {
		t.Errorf("the container is %+v", s)
	}
}

// TestOneServer makes sure that two containerds never share a state directory.
func TestOneServer(t *testing.T) {
	n, _ := newNode(t)
	err := Serve(n.ctx(), n.server.serve)
	if err == nil || !strings.Contains(err.Error(), "another containerd") {
		t.Errorf("a second containerd: error %v", err)
	}
	if _, err := n.List(n.ctx()); err != nil {
		t.Errorf("the first one does not answer any more: %v", err)
	}
}

func TestServerFailsToStart(t *testing.T) {
	cfg := testConfig(t)
	cfg.Command = []string{"/bin/sh", "-c", "echo this is why >&2; exit 3"}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = r.Run(testContext(t))
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "this is why") {
		t.Errorf("error is %v, want one with the exit status and the last words", err)
	}
}

// TestForeignContainerd uses a containerd that is not ours, with shims of its own:
// then logs are written by processes.
func TestForeignContainerd(t *testing.T) {
	theirs := testConfig(t)
	dir := t.TempDir()
	if err := installProgram(filepath.Join(dir, foreignShim), os.Args[0]); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	other, _ := start(t, theirs)

	cfg := theirs
	cfg.Node, cfg.State, cfg.Root = theirs.Node+"-x", theirs.State+"-x", filepath.Join(t.TempDir(), "root")
	cfg.Address = other.socket
	r, stop := start(t, cfg)
	n := node{r, t}
	n.pod("p")
	log, s := n.finished("p", "main", "echo out; echo err >&2; seq 10000; exit 3")
	if s.ExitCode != 3 || !strings.Contains(log, "out\n") || !strings.Contains(log, "err\n") || strings.Count(log, "\n") != 10002 {
		t.Errorf("the container ended with %d, its log has %d lines", s.ExitCode, strings.Count(log, "\n"))
	}
	id := n.run("p", "goes-on", 0, forever)
	waitForLog(n, id, "ready")
	if got := n.exec(id, "echo", "here"); got != "here\n" {
		t.Errorf("exec gives %q", got)
	}
	if pods, err := other.List(n.ctx()); err != nil || len(pods) != 0 {
		t.Errorf("the other node lists %+v, error %v: it should not see ours", pods, err)
	}
	stop()
	if err := r.Purge(n.ctx()); err != nil {
		t.Errorf("purge: %v", err)
	}
	if after := machineState(t, cfg); len(after) != 0 {
		t.Errorf("the purge leaves\n%s", strings.Join(after, "\n"))
	}
	if _, err := other.List(n.ctx()); err != nil {
		t.Errorf("containerd, which is not ours, does not answer after the purge: %v", err)
	}
}

// TestManyAtOnce starts, restarts and removes pods in parallel, with shims that
// end while others start.
func TestManyAtOnce(t *testing.T) {
	n, _ := newNode(t)
	if _, err := n.EnsureImage(n.ctx(), "box:1", corev1.PullIfNotPresent, nil); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 6 {
		group.Go(func() {
			uid := fmt.Sprintf("p%d", i)
			if err := n.CreatePod(n.ctx(), runtime.Pod{UID: uid, Name: uid, Hostname: uid}); err != nil {
				t.Error(err)
				return
			}
			for attempt := range 3 {
				id := runtime.ContainerID{PodUID: uid, Name: "main", Attempt: attempt}
				if err := n.RunContainer(n.ctx(), runtime.Container{ID: id, Image: "box:1", Command: []string{"sh", "-c", "echo $HOSTNAME"}}); err != nil {
					t.Error(err)
					return
				}
				var b bytes.Buffer
				if err := n.Logs(n.ctx(), id, runtime.LogOptions{TailLines: -1, Follow: true}, &b); err != nil || b.String() != uid+"\n" {
					t.Errorf("log of %v: %q, error %v", id, b.String(), err)
				}
			}
			if err := n.RemovePod(n.ctx(), uid); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if pods, err := n.List(n.ctx()); err != nil || len(pods) != 0 {
		t.Errorf("what is left is %+v, error %v", pods, err)
	}
}

// machineState is what a node may not leave on the machine: mounts, cgroups,
// processes and names in /run that have the node's name in them.
func machineState(t *testing.T, cfg Config) []string {
	t.Helper()
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, cfg.Node) || strings.Contains(line, cfg.Root) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	roots, err := cgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		if _, err := os.Stat(filepath.Join(root, "holdfast", cfg.Node)); err == nil {
			found = append(found, "cgroup "+filepath.Join(root, "holdfast", cfg.Node))
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && (strings.Contains(string(cmdline), cfg.Node) || strings.Contains(string(cmdline), "sleep\x001000.75")) {
			found = append(found, "process "+e.Name()+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	if _, err := os.Stat(cfg.State); err == nil {
		found = append(found, "directory "+cfg.State)
	}
	return found
}

// TestPurge fills a node with everything a runtime makes, then takes it all
// away: with the agent there, and after all of it was killed.
func TestPurge(t *testing.T) {
	for _, c := range []struct {
		name string
		kill bool
	}{{"after an orderly end", false}, {"after a crash of everything but the containers", true}} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t)
			r, stop := start(t, cfg)
			n := node{r, t}
			n.pod("p", func(p *runtime.Pod) { p.NetNS = testNetNS(t, "p") })
			n.pod("q")
			n.pod("empty")
			n.run("p", "a", 0, "sleep 1000.75")
			n.run("p", "b", 0, "trap '' TERM; sleep 1000.75")
			n.awaitState(n.run("q", "c", 0, "exit 1"), runtime.StateExited)
			during := strings.Join(machineState(t, cfg), "\n")
			for _, want := range []string{"mount ", "cgroup ", "process ", "directory "} {
				if !strings.Contains(during, want) {
					t.Errorf("no %sis there before the purge:\n%s", want, during)
				}
			}
			stop()
			if c.kill {
				if err := unix.Kill(serverPID(r.server.serve.State), unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				var err error
				if r, err = New(cfg); err != nil { // a new process knows nothing
					t.Fatal(err)
				}
			}
			for range 2 { // the second time there is nothing
				if err := r.Purge(n.ctx()); err != nil {
					t.Errorf("purge: %v", err)
				}
			}
			if after := machineState(t, cfg); len(after) != 0 {
				t.Errorf("the purge leaves\n%s", strings.Join(after, "\n"))
			}
			snapshots, err := os.ReadDir(filepath.Join(cfg.Root, "containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"))
			if err != nil || len(snapshots) != 1 {
				t.Errorf("%d snapshots are left, error %v; want that of the two images, which share their layer", len(snapshots), err)
			}
		})
	}
}

// TestLatency prints what the parts of a pod's life cost, one after the other.
func TestLatency(t *testing.T) {
	n, _ := newNode(t)
	if _, err := n.EnsureImage(n.ctx(), "box:1", corev1.PullIfNotPresent, nil); err != nil {
		t.Fatal(err)
	}
	const pods = 5
	took := map[string]time.Duration{}
	for i := range pods {
		uid := fmt.Sprint("pod-", i)
		id := runtime.ContainerID{PodUID: uid, Name: "main"}
		for _, step := range []struct {
			name string
			do   func() error
		}{
			{"1 create pod", func() error { return n.CreatePod(n.ctx(), runtime.Pod{UID: uid, Name: uid}) }},
			{"2 image is there", func() error {
				_, err := n.EnsureImage(n.ctx(), "box:1", corev1.PullIfNotPresent, nil)
				return err
			}},
			{"3 run container", func() error {
				return n.RunContainer(n.ctx(), runtime.Container{ID: id, Image: "box:1", Command: []string{"sleep", "1000"}})
			}},
			{"4 exec true", func() error {
				_, err := n.Exec(n.ctx(), id, runtime.ExecOptions{Command: []string{"true"}, Stdout: io.Discard})
				return err
			}},
			{"5 list", func() error {
				_, err := n.List(n.ctx())
				return err
			}},
			{"6 kill container", func() error { return n.StopContainer(n.ctx(), id, 0) }},
			{"7 remove pod", func() error { return n.RemovePod(n.ctx(), uid) }},
		} {
			began := time.Now()
			if err := step.do(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			took[step.name] += time.Since(began)
		}
	}
	for _, name := range []string{"1 create pod", "2 image is there", "3 run container", "4 exec true", "5 list", "6 kill container", "7 remove pod"} {
		t.Logf("%-18s %s (mean of %d)", name, (took[name] / pods).Round(10*time.Microsecond), pods)
	}
}
