// Package conformance holds the one test suite that every implementation of
// [runtime.Runtime] passes. What it does not test, the agent does not rely on.
//
// The containers of the suite run `sh -c` scripts, so a real runtime needs an
// image with busybox or the like.
package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
)

// Options describes what the suite may use.
type Options struct {
	// Image has sh, cat, echo, grep, hostname, id, nc, ps, sleep, stty and test, as busybox
	// has, and can be made present by EnsureImage with the policy IfNotPresent.
	// Required.
	Image string
	// Pullable is an image that EnsureImage can fetch with the policy Always.
	// Optional; without it that is not tested.
	Pullable string
	// Missing is an image that is not present and cannot be fetched. Required.
	Missing string
	// Attach returns a network namespace for a pod. Optional; without it pods use
	// the node's own.
	Attach func(t *testing.T, podUID string) (netns string)
	// Limits: memory limits are enforced, which is tested with a container that
	// exceeds one, made by Hog. Optional.
	Hog []string
	// Bounds reads from the node itself what bounds a container and its pod, PIDs and
	// OOMScoreAdj left out. Optional; without it only what List says is looked at.
	Bounds func(t *testing.T, id runtime.ContainerID) (container, pod runtime.Resources)
	// NoStdin: containers cannot have their stdin kept open, and are refused.
	NoStdin bool
	// Holder writes "ready" once it holds 16 MiB of memory, and goes on. Optional; without
	// it every container uses 2 MiB.
	Holder []string
	// Writer writes 1 MiB or more into its container's own root. Optional.
	Writer []string
	// Timeout bounds every wait. Optional; 30 s.
	Timeout time.Duration
}

// Open returns a runtime that keeps what it has in dir. The suite runs it. Opened
// again for the same dir, after the first one's Run has returned, it has what
// the first one had.
type Open func(t *testing.T, dir string) runtime.Runtime

// Run runs the suite.
func Run(t *testing.T, open Open, options Options) {
	if options.Timeout == 0 {
		options.Timeout = 30 * time.Second
	}
	tests := []struct {
		name string
		test func(*suite)
	}{
		{"images", (*suite).images},
		{"lifecycle", (*suite).lifecycle},
		{"exit codes", (*suite).exitCodes},
		{"restart attempts", (*suite).restartAttempts},
		{"what a container sees", (*suite).environment},
		{"users and groups", (*suite).users},
		{"privileges", (*suite).privileges},
		{"read-only root", (*suite).readOnlyRoot},
		{"filter of system calls", (*suite).seccomp},
		{"kernel parameters", (*suite).sysctls},
		{"shared processes", (*suite).sharedProcesses},
		{"stop within grace", (*suite).stopWithinGrace},
		{"stop by another signal", (*suite).stopSignal},
		{"stop kills after grace", (*suite).stopKills},
		{"stops of one pod overlap", (*suite).stopsOverlap},
		{"stop ends with its context", (*suite).stopCancelled},
		{"start that cannot work", (*suite).badCommand},
		{"repeated and unknown", (*suite).idempotent},
		{"remove a running pod", (*suite).removeRunning},
		{"memory limit", (*suite).memoryLimit},
		{"resize", (*suite).resize},
		{"resize below what is used", (*suite).resizeInUse},
		{"processes of another container", (*suite).targetProcesses},
		{"logs", (*suite).logs},
		{"logs follow", (*suite).logsFollow},
		{"logs after removal of the container", (*suite).logsKept},
		{"exec", (*suite).exec},
		{"exec stdin", (*suite).execStdin},
		{"exec tty", (*suite).execTTY},
		{"exec ends with its context", (*suite).execCancelled},
		{"exec where nothing runs", (*suite).execNotRunning},
		{"attach", (*suite).attach},
		{"attach stdin", (*suite).attachStdin},
		{"attach stdin once", (*suite).attachStdinOnce},
		{"attach tty", (*suite).attachTTY},
		{"attach slowly", (*suite).attachSlowly},
		{"attach ends with its context", (*suite).attachCancelled},
		{"attach where nothing runs", (*suite).attachNotRunning},
		{"dial", (*suite).dial},
		{"usage", (*suite).usage},
		{"restart of the runtime", (*suite).adoption},
	}
	dir := t.TempDir()
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := &suite{T: t, o: options, open: open, dir: dir, prefix: fmt.Sprintf("uid-%02d", i)}
			s.start()
			t.Cleanup(s.end)
			test.test(s)
		})
	}
}

// suite is one test.
type suite struct {
	*testing.T
	o      Options
	open   Open
	dir    string
	prefix string // of pod uids, different in each test
	made   []string

	rt   runtime.Runtime
	stop func()
}

// ctx bounds one step of a test.
func (s *suite) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), s.o.Timeout)
	s.Cleanup(cancel)
	return ctx
}

func (s *suite) start() {
	s.Helper()
	s.rt = s.open(s.T, s.dir)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.rt.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				s.Errorf("Run returned %v after its context ended, want nil", err)
			}
		case <-time.After(s.o.Timeout):
			s.Errorf("Run did not return within %v of its context's end", s.o.Timeout)
		}
	})
	select {
	case <-s.rt.Ready():
	case err := <-ended:
		ended <- nil
		s.Fatalf("Run: %v", err)
	case <-time.After(s.o.Timeout):
		s.Fatalf("runtime is not ready after %v", s.o.Timeout)
	}
	if s.rt.Version() == "" {
		s.Error("Version is empty")
	}
}

func (s *suite) end() {
	for _, uid := range s.made {
		if err := s.rt.RemovePod(s.ctx(), uid); err != nil {
			s.Errorf("RemovePod %s: %v", uid, err)
		}
	}
	if !s.Failed() {
		s.eventually("nothing is left", func(all []runtime.PodState) error {
			for _, p := range all {
				if strings.HasPrefix(p.UID, s.prefix) {
					return fmt.Errorf("pod %s is still listed", p.UID)
				}
			}
			return nil
		})
	}
	s.stop()
}

func must(s *suite, what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

// pod creates a pod and returns its uid.
func (s *suite) pod(change ...func(*runtime.Pod)) string {
	s.Helper()
	uid := fmt.Sprintf("%s-%d", s.prefix, len(s.made))
	p := runtime.Pod{
		UID: uid, Namespace: "conformance", Name: "pod-" + uid, Hostname: "host-" + uid,
		Hosts:      []byte("127.0.0.1\tlocalhost\n10.9.8.7\tconformance.test\n"),
		ResolvConf: []byte("nameserver 10.9.8.6\n"),
	}
	if s.o.Attach != nil {
		p.NetNS = s.o.Attach(s.T, uid)
	}
	for _, f := range change {
		f(&p)
	}
	s.made = append(s.made, uid)
	must(s, "CreatePod", s.rt.CreatePod(s.ctx(), p))
	return uid
}

// container describes one that runs a script.
func (s *suite) container(uid, name string, attempt int, script string, change ...func(*runtime.Container)) runtime.Container {
	s.Helper()
	image, err := s.rt.EnsureImage(s.ctx(), s.o.Image, corev1.PullIfNotPresent, nil)
	must(s, "EnsureImage", err)
	c := runtime.Container{
		ID:    runtime.ContainerID{PodUID: uid, Name: name, Attempt: attempt},
		Image: image.Ref, Command: []string{"sh", "-c", script}, SpecHash: "hash-" + name,
		Resources: runtime.Resources{CPUShares: 2},
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func (s *suite) run(uid, name string, attempt int, script string, change ...func(*runtime.Container)) runtime.ContainerID {
	s.Helper()
	c := s.container(uid, name, attempt, script, change...)
	must(s, "RunContainer "+name, s.rt.RunContainer(s.ctx(), c))
	return c.ID
}

const (
	// forever runs until SIGTERM, and then ends with 7.
	forever = `trap 'exit 7' TERM; echo ready; sleep 1000 & wait`
	// stubborn ignores SIGTERM.
	stubborn = `trap '' TERM; echo ready; sleep 1000`
)

// eventually lists at each change until check is content.
func (s *suite) eventually(what string, check func([]runtime.PodState) error) {
	s.Helper()
	deadline := time.After(s.o.Timeout)
	for {
		changed := s.rt.Changed()
		all, err := s.rt.List(s.ctx())
		must(s, "List", err)
		if err = check(all); err == nil {
			return
		}
		select {
		case <-changed:
		case <-time.After(time.Second): // wake-ups may be late
		case <-deadline:
			s.Fatalf("%s: after %v: %v", what, s.o.Timeout, err)
		}
	}
}

func (s *suite) list(uid string) runtime.PodState {
	s.Helper()
	all, err := s.rt.List(s.ctx())
	must(s, "List", err)
	for _, p := range all {
		if p.UID == uid {
			return p
		}
	}
	return runtime.PodState{}
}

// state returns a container as listed; it must be there.
func (s *suite) state(id runtime.ContainerID) runtime.ContainerState {
	s.Helper()
	p := s.list(id.PodUID)
	for _, c := range p.Containers {
		if c.ID == id {
			return c
		}
	}
	s.Fatalf("List has no container %+v; it has pod %+v", id, p)
	return runtime.ContainerState{}
}

// exited waits for a container's end.
func (s *suite) exited(id runtime.ContainerID) runtime.ContainerState {
	s.Helper()
	var state runtime.ContainerState
	s.eventually(fmt.Sprintf("end of container %s/%d", id.Name, id.Attempt), func([]runtime.PodState) error {
		if state = s.state(id); state.State != runtime.StateExited {
			return fmt.Errorf("container is %s, want exited", state.State)
		}
		return nil
	})
	return state
}

// logText waits until a container's log is as long as want, and compares.
func (s *suite) logText(id runtime.ContainerID, options runtime.LogOptions) string {
	s.Helper()
	var b bytes.Buffer
	must(s, "Logs", s.rt.Logs(s.ctx(), id, options, &b))
	return b.String()
}

// logged waits for a text to be in the log of a container that runs.
func (s *suite) logged(id runtime.ContainerID, text string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx(), s.o.Timeout)
	defer cancel()
	found := false
	var b bytes.Buffer
	err := s.rt.Logs(ctx, id, runtime.LogOptions{Follow: true, TailLines: -1}, writer(func(p []byte) (int, error) {
		b.Write(p)
		if found = found || strings.Contains(b.String(), text); found {
			cancel()
		}
		return len(p), nil
	}))
	if !found {
		s.Fatalf("log of %s has no %q: it is %q, and Logs returned %v", id.Name, text, b.String(), err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func (s *suite) images() {
	ctx := s.ctx()
	if _, err := s.rt.EnsureImage(ctx, s.o.Missing, corev1.PullNever, nil); !errors.Is(err, runtime.ErrImageNeverPull) {
		s.Errorf("EnsureImage(missing, Never) returned %v, want ErrImageNeverPull", err)
	}
	for _, policy := range []corev1.PullPolicy{corev1.PullIfNotPresent, corev1.PullAlways} {
		if _, err := s.rt.EnsureImage(ctx, s.o.Missing, policy, nil); err == nil {
			s.Errorf("EnsureImage(missing, %s) returned no error", policy)
		}
	}
	image, err := s.rt.EnsureImage(ctx, s.o.Image, corev1.PullIfNotPresent, nil)
	must(s, "EnsureImage(IfNotPresent)", err)
	if image.Ref == "" || !regexp.MustCompile(`^sha256:[0-9a-f]{64}$`).MatchString(image.Digest) {
		s.Errorf("EnsureImage returned %+v, want a reference and a sha256 digest", image)
	}
	again, err := s.rt.EnsureImage(ctx, s.o.Image, corev1.PullNever, nil)
	must(s, "EnsureImage(present, Never)", err)
	if again != image {
		s.Errorf("EnsureImage returned %+v the second time, %+v before", again, image)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := s.rt.EnsureImage(ctx, s.o.Image, corev1.PullIfNotPresent, func(string) {}); err != nil {
				s.Errorf("EnsureImage from several pods at once: %v", err)
			}
		})
	}
	wg.Wait()
	if s.o.Pullable != "" {
		if _, err := s.rt.EnsureImage(ctx, s.o.Pullable, corev1.PullAlways, nil); err != nil {
			s.Errorf("EnsureImage(Always): %v", err)
		}
	}
	s.imagesRemoved(image)
}

// imagesRemoved takes an image away and gets it again.
func (s *suite) imagesRemoved(image runtime.Image) {
	ctx := s.ctx()
	listed := func() bool {
		s.Helper()
		all, err := s.rt.Images(ctx)
		must(s, "Images", err)
		for _, have := range all {
			if have.Digest == image.Digest {
				if have.Bytes <= 0 || len(have.Names) == 0 {
					s.Errorf("Images has %+v, want its size and its names", have)
				}
				return true
			}
		}
		return false
	}
	if !listed() {
		s.Errorf("Images does not have %+v", image)
	}
	disk, err := s.rt.ImageDisk(ctx)
	if err != nil || disk.Bytes <= 0 || disk.FreeBytes > disk.Bytes {
		s.Errorf("ImageDisk returned %+v, %v", disk, err)
	}
	uid := s.pod()
	id := s.run(uid, "main", 0, forever)
	must(s, "RemoveImage", s.rt.RemoveImage(ctx, image.Digest))
	must(s, "RemoveImage again", s.rt.RemoveImage(ctx, image.Digest))
	if listed() {
		s.Errorf("Images still has %+v after RemoveImage", image)
	}
	s.ready(id)
	if c := s.state(id); c.State != runtime.StateRunning {
		s.Errorf("a container of a removed image is %+v, want it running", c)
	}
	if _, err := s.rt.EnsureImage(ctx, s.o.Image, corev1.PullIfNotPresent, nil); err != nil {
		s.Errorf("EnsureImage after RemoveImage: %v", err)
	}
	s.output(uid, "again", "true")
}

func (s *suite) lifecycle() {
	changed := s.rt.Changed()
	uid := s.pod()
	id := s.run(uid, "main", 0, forever)
	select {
	case <-changed:
	case <-time.After(s.o.Timeout):
		s.Errorf("Changed was not closed within %v of a container's start", s.o.Timeout)
	}
	p := s.list(uid)
	if p.Namespace != "conformance" || p.Name != "pod-"+uid {
		s.Errorf("List has pod %s/%s, want conformance/pod-%s", p.Namespace, p.Name, uid)
	}
	c := s.state(id)
	if c.State != runtime.StateRunning || c.StartedAt.IsZero() || c.Handle == "" || c.Image == "" || c.ImageID == "" {
		s.Errorf("container is %+v, want it running, with start time, handle and image", c)
	}
	if c.SpecHash != "hash-main" {
		s.Errorf("SpecHash is %q, want the one it was run with", c.SpecHash)
	}
	if err := s.rt.RemoveContainer(s.ctx(), id); err == nil {
		s.Error("RemoveContainer removed a running container, want an error")
	}
	s.ready(id)
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), id, s.o.Timeout))
	c = s.state(id)
	if c.State != runtime.StateExited || c.ExitCode != 7 || c.FinishedAt.Before(c.StartedAt) || c.OOMKilled {
		s.Errorf("after StopContainer the container is %+v, want it exited with 7", c)
	}
	must(s, "RemoveContainer", s.rt.RemoveContainer(s.ctx(), id))
	if p := s.list(uid); len(p.Containers) != 0 {
		s.Errorf("after RemoveContainer List has %+v, want no containers", p.Containers)
	}
	must(s, "RemovePod", s.rt.RemovePod(s.ctx(), uid))
	if p := s.list(uid); p.UID != "" {
		s.Errorf("after RemovePod List has %+v", p)
	}
}

// ready waits until a container's trap is set.
func (s *suite) ready(id runtime.ContainerID) {
	s.Helper()
	s.logged(id, "ready\n")
}

func (s *suite) exitCodes() {
	uid := s.pod()
	for i, want := range []int{0, 1, 3, 42} {
		id := s.run(uid, fmt.Sprintf("c%d", i), 0, fmt.Sprintf("exit %d", want))
		c := s.exited(id)
		if c.ExitCode != want || c.OOMKilled || c.StartedAt.IsZero() || c.FinishedAt.IsZero() {
			s.Errorf("container that ran `exit %d` is %+v", want, c)
		}
	}
}

func (s *suite) restartAttempts() {
	uid := s.pod()
	for attempt := range 3 {
		id := s.run(uid, "main", attempt, fmt.Sprintf("echo attempt %d; exit %d", attempt, attempt))
		s.exited(id)
	}
	p := s.list(uid)
	if len(p.Containers) != 3 {
		s.Fatalf("List has %d containers, want all three attempts", len(p.Containers))
	}
	for attempt, c := range p.Containers {
		if c.ID.Attempt != attempt || c.ExitCode != attempt {
			s.Errorf("container %d in List is %+v, want attempt %d: oldest first", attempt, c, attempt)
		}
		want := fmt.Sprintf("attempt %d\n", attempt)
		if got := s.logText(c.ID, runtime.LogOptions{TailLines: -1}); got != want {
			s.Errorf("log of attempt %d is %q, want %q", attempt, got, want)
		}
	}
}

func (s *suite) environment() {
	uid := s.pod()
	file := filepath.Join(s.TempDir(), "file")
	must(s, "write", os.WriteFile(file, []byte("of the node\n"), 0o666))
	must(s, "chmod", os.Chmod(file, 0o666))
	id := s.run(uid, "main", 0,
		`echo "$GREETING $HOSTNAME"; hostname; pwd; cat /etc/hosts /etc/resolv.conf /mnt/file; echo last words > /mnt/file`,
		func(c *runtime.Container) {
			c.Env = []string{"GREETING=hello", "HOSTNAME=host-" + uid}
			c.WorkingDir = "/tmp"
			c.Mounts = []runtime.Mount{{HostPath: file, ContainerPath: "/mnt/file"}}
		})
	if c := s.exited(id); c.ExitCode != 0 {
		s.Errorf("container is %+v, want exit code 0", c)
	}
	want := "hello host-" + uid + "\nhost-" + uid + "\n/tmp\n" +
		"127.0.0.1\tlocalhost\n10.9.8.7\tconformance.test\nnameserver 10.9.8.6\nof the node\n"
	if got := s.logText(id, runtime.LogOptions{TailLines: -1}); got != want {
		s.Errorf("the container saw %q, want %q", got, want)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "last words\n" {
		s.Errorf("the mounted file is %q (%v), want what the container wrote", data, err)
	}
}

func (s *suite) stopWithinGrace() {
	uid := s.pod()
	id := s.run(uid, "main", 0, forever)
	s.ready(id)
	start := time.Now()
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), id, s.o.Timeout))
	if c := s.state(id); c.State != runtime.StateExited || c.ExitCode != 7 {
		s.Errorf("container is %+v, want exited with 7, from its handler of SIGTERM", c)
	}
	if took := time.Since(start); took > s.o.Timeout/2 {
		s.Errorf("StopContainer took %v for a container that obeys", took)
	}
	must(s, "StopContainer again", s.rt.StopContainer(s.ctx(), id, s.o.Timeout))
}

func (s *suite) stopSignal() {
	uid := s.pod()
	id := s.run(uid, "main", 0, `trap 'exit 8' USR1; trap '' TERM; echo ready; sleep 1000 & wait`, func(c *runtime.Container) { c.StopSignal = "SIGUSR1" })
	s.ready(id)
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), id, s.o.Timeout))
	if c := s.state(id); c.State != runtime.StateExited || c.ExitCode != 8 {
		s.Errorf("container is %+v, want exited with 8, from its handler of SIGUSR1", c)
	}
}

func (s *suite) stopKills() {
	uid := s.pod()
	id := s.run(uid, "main", 0, stubborn)
	s.ready(id)
	start := time.Now()
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), id, 300*time.Millisecond))
	if c := s.state(id); c.State != runtime.StateExited || c.ExitCode != 137 || c.OOMKilled {
		s.Errorf("container is %+v, want exited with 137", c)
	}
	if took := time.Since(start); took < 300*time.Millisecond {
		s.Errorf("StopContainer took %v, want at least the grace period", took)
	}
	id = s.run(uid, "main", 1, stubborn)
	s.ready(id)
	must(s, "StopContainer without grace", s.rt.StopContainer(s.ctx(), id, 0))
	if c := s.state(id); c.State != runtime.StateExited || c.ExitCode != 137 {
		s.Errorf("container is %+v, want exited with 137", c)
	}
}

func (s *suite) stopsOverlap() {
	uid := s.pod()
	var ids []runtime.ContainerID
	for _, name := range []string{"a", "b", "c"} {
		ids = append(ids, s.run(uid, name, 0, stubborn))
	}
	for _, id := range ids {
		s.ready(id)
	}
	const grace = 2 * time.Second
	start := time.Now()
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if err := s.rt.StopContainer(s.ctx(), id, grace); err != nil {
				s.Errorf("StopContainer %s: %v", id.Name, err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(start); took >= 2*grace {
		s.Errorf("stopping three containers at once took %v, want about one grace period of %v", took, grace)
	}
}

func (s *suite) stopCancelled() {
	uid := s.pod()
	id := s.run(uid, "main", 0, stubborn)
	s.ready(id)
	ctx, cancel := context.WithTimeout(s.ctx(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := s.rt.StopContainer(ctx, id, time.Hour); err == nil {
		s.Error("StopContainer returned nil after its context ended, though the container runs")
	}
	if took := time.Since(start); took > s.o.Timeout/2 {
		s.Errorf("StopContainer returned %v after the call, want soon after its context's end", took)
	}
	must(s, "StopContainer with less grace", s.rt.StopContainer(s.ctx(), id, 0))
	if c := s.state(id); c.State != runtime.StateExited {
		s.Errorf("container is %s, want exited", c.State)
	}
}

func (s *suite) badCommand() {
	if strings.HasPrefix(s.rt.Version(), "fake://") {
		s.Skip("the fake runtime runs unknown commands until they are stopped, by its documentation")
	}
	uid := s.pod()
	c := s.container(uid, "main", 0, "", func(c *runtime.Container) { c.Command = []string{"/no/such/program"} })
	err := s.rt.RunContainer(s.ctx(), c)
	if err == nil {
		s.Fatal("RunContainer of a program that does not exist returned nil, want an error")
	}
	if !strings.Contains(err.Error(), "/no/such/program") {
		s.Errorf("error %q does not name the program", err)
	}
	// What it left, if anything, is not in the way of the next try.
	for _, left := range s.list(uid).Containers {
		if left.State == runtime.StateRunning {
			s.Errorf("container is listed as running: %+v", left)
		}
		must(s, "RemoveContainer of a failed start", s.rt.RemoveContainer(s.ctx(), left.ID))
	}
	s.exited(s.run(uid, "main", 0, "exit 0"))
}

func (s *suite) idempotent() {
	ctx := s.ctx()
	unknown := runtime.ContainerID{PodUID: s.prefix + "-unknown", Name: "main"}
	must(s, "StopContainer of an unknown container", s.rt.StopContainer(ctx, unknown, time.Second))
	must(s, "RemoveContainer of an unknown container", s.rt.RemoveContainer(ctx, unknown))
	must(s, "RemovePod of an unknown pod", s.rt.RemovePod(ctx, unknown.PodUID))
	if err := s.rt.Logs(ctx, unknown, runtime.LogOptions{TailLines: -1}, io.Discard); !errors.Is(err, runtime.ErrNotFound) {
		s.Errorf("Logs of an unknown container returned %v, want ErrNotFound", err)
	}
	if _, err := s.rt.Exec(ctx, unknown, runtime.ExecOptions{Command: []string{"true"}}); !errors.Is(err, runtime.ErrNotFound) {
		s.Errorf("Exec in an unknown container returned %v, want ErrNotFound", err)
	}

	uid := s.pod()
	c := s.container(uid, "main", 0, forever)
	must(s, "RunContainer", s.rt.RunContainer(ctx, c))
	if err := s.rt.RunContainer(ctx, c); !errors.Is(err, runtime.ErrExists) {
		s.Errorf("RunContainer of a running container returned %v, want ErrExists", err)
	}
	must(s, "CreatePod again", s.rt.CreatePod(ctx, runtime.Pod{
		UID: uid, Namespace: "conformance", Name: "pod-" + uid, Hostname: "host-" + uid, NetNS: s.list(uid).NetNS,
		Hosts: []byte("127.0.0.1\tlocalhost\n10.1.1.1\tnew.test\n"),
	}))
	if got := s.state(c.ID); got.State != runtime.StateRunning {
		s.Errorf("after CreatePod of a pod that exists its container is %s, want running", got.State)
	}
	later := s.run(uid, "later", 0, "cat /etc/hosts")
	s.exited(later)
	if got := s.logText(later, runtime.LogOptions{TailLines: -1}); !strings.Contains(got, "new.test") {
		s.Errorf("a container run after the second CreatePod has /etc/hosts %q, want what that passed", got)
	}
	must(s, "StopContainer", s.rt.StopContainer(ctx, c.ID, 0))
	if err := s.rt.RunContainer(ctx, c); !errors.Is(err, runtime.ErrExists) {
		s.Errorf("RunContainer of an ended container returned %v, want ErrExists", err)
	}
	must(s, "RemoveContainer", s.rt.RemoveContainer(ctx, c.ID))
	must(s, "RemoveContainer again", s.rt.RemoveContainer(ctx, c.ID))
	must(s, "RemovePod", s.rt.RemovePod(ctx, uid))
	must(s, "RemovePod again", s.rt.RemovePod(ctx, uid))
	c.ID.Name = "orphan"
	if err := s.rt.RunContainer(ctx, c); err == nil {
		s.Error("RunContainer in a removed pod returned nil, want an error")
	}
}

func (s *suite) removeRunning() {
	uid := s.pod()
	s.run(uid, "obeys", 0, forever)
	id := s.run(uid, "stubborn", 0, stubborn)
	s.ready(id)
	s.exited(s.run(uid, "ended", 0, "exit 1"))
	must(s, "RemovePod", s.rt.RemovePod(s.ctx(), uid))
	if p := s.list(uid); p.UID != "" {
		s.Errorf("after RemovePod List has %+v", p)
	}
	s.keptLogs(uid, id)
}

// keptLogs looks at the logs of a removed pod, and takes them away.
func (s *suite) keptLogs(uid string, stubborn runtime.ContainerID) {
	ctx := s.ctx()
	kept := func() (runtime.KeptLogs, bool) {
		s.Helper()
		all, err := s.rt.KeptLogs(ctx)
		must(s, "KeptLogs", err)
		for _, k := range all {
			if k.UID == uid {
				return k, true
			}
		}
		return runtime.KeptLogs{}, false
	}
	if got := s.logText(stubborn, runtime.LogOptions{TailLines: -1, Follow: true}); got != "ready\n" {
		s.Errorf("the log of a container of a removed pod is %q, want %q", got, "ready\n")
	}
	k, ok := kept()
	var runs []string
	for _, run := range k.Runs {
		runs = append(runs, fmt.Sprintf("%s/%d", run.Name, run.Attempt))
	}
	if !ok || k.Namespace != "conformance" || k.Name != "pod-"+uid || time.Since(k.RemovedAt).Abs() > time.Minute || k.Bytes <= 0 ||
		!slices.Equal(runs, []string{"ended/0", "obeys/0", "stubborn/0"}) {
		s.Errorf("KeptLogs has %+v, want the removed pod with its three containers", k)
	}
	must(s, "RemoveLogs", s.rt.RemoveLogs(ctx, uid))
	must(s, "RemoveLogs again", s.rt.RemoveLogs(ctx, uid))
	if k, ok := kept(); ok {
		s.Errorf("after RemoveLogs KeptLogs has %+v", k)
	}
	if err := s.rt.Logs(ctx, stubborn, runtime.LogOptions{TailLines: -1}, io.Discard); !errors.Is(err, runtime.ErrNotFound) {
		s.Errorf("Logs after RemoveLogs returned %v, want ErrNotFound", err)
	}
}

func (s *suite) memoryLimit() {
	if len(s.o.Hog) == 0 {
		s.Skip("no Options.Hog")
	}
	uid := s.pod()
	id := s.run(uid, "hog", 0, "", func(c *runtime.Container) {
		c.Command = s.o.Hog
		c.Resources.MemoryBytes = 32 << 20
	})
	if c := s.exited(id); !c.OOMKilled || c.ExitCode == 0 {
		s.Errorf("container is %+v, want it killed for its memory", c)
	}
}

func (s *suite) logs() {
	uid := s.pod()
	id := s.run(uid, "main", 0, "echo one; echo two; echo three; echo four >&2")
	s.exited(id)
	all := s.logText(id, runtime.LogOptions{TailLines: -1})
	lines := strings.Split(strings.TrimSuffix(all, "\n"), "\n")
	slices.Sort(lines) // the order of the two streams is not kept by all runtimes
	if want := []string{"four", "one", "three", "two"}; !slices.Equal(lines, want) {
		s.Fatalf("log is %q, want the lines %q", all, want)
	}
	if !strings.Contains(strings.ReplaceAll(all, "four\n", ""), "one\ntwo\nthree\n") {
		s.Errorf("log is %q, want stdout in its order", all)
	}
	if got := s.logText(id, runtime.LogOptions{TailLines: 2}); !strings.HasSuffix(all, got) || strings.Count(got, "\n") != 2 {
		s.Errorf("the last 2 lines are %q of %q", got, all)
	}
	if got := s.logText(id, runtime.LogOptions{TailLines: 0}); got != "" {
		s.Errorf("the last 0 lines are %q", got)
	}
	if got := s.logText(id, runtime.LogOptions{TailLines: 100}); got != all {
		s.Errorf("the last 100 lines are %q, want all: %q", got, all)
	}
	if got := s.logText(id, runtime.LogOptions{TailLines: -1, Since: time.Now().Add(time.Hour)}); got != "" {
		s.Errorf("the lines since an hour from now are %q", got)
	}
	if got := s.logText(id, runtime.LogOptions{TailLines: -1, Since: time.Now().Add(-time.Hour)}); got != all {
		s.Errorf("the lines since an hour ago are %q, want all", got)
	}
	state := s.state(id)
	for line := range strings.Lines(s.logText(id, runtime.LogOptions{TailLines: -1, Timestamps: true})) {
		stamp, _, _ := strings.Cut(line, " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil || at.Before(state.CreatedAt.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
			s.Errorf("line %q does not begin with a time in the container's life (%v)", line, err)
		}
	}
}

func (s *suite) logsFollow() {
	uid := s.pod()
	id := s.run(uid, "main", 0, "echo first; sleep 0.3; echo second; sleep 0.3; echo third")
	var b bytes.Buffer
	must(s, "Logs", s.rt.Logs(s.ctx(), id, runtime.LogOptions{Follow: true, TailLines: -1}, &b))
	if got, want := b.String(), "first\nsecond\nthird\n"; got != want {
		s.Errorf("followed log is %q, want %q: all of it, and then an end", got, want)
	}
	s.exited(id)

	id = s.run(uid, "main", 1, "echo hello; sleep 1000")
	ctx, cancel := context.WithCancel(s.ctx())
	lines := make(chan string, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- s.rt.Logs(ctx, id, runtime.LogOptions{Follow: true, TailLines: -1}, writer(func(p []byte) (int, error) {
			lines <- string(p)
			return len(p), nil
		}))
	}()
	select {
	case got := <-lines:
		if got != "hello\n" {
			s.Errorf("the first line is %q, want it as soon as it was written", got)
		}
	case <-time.After(s.o.Timeout):
		s.Errorf("no line within %v", s.o.Timeout)
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(s.o.Timeout):
		s.Errorf("Logs did not return within %v of its context's end", s.o.Timeout)
	}
}

func (s *suite) logsKept() {
	uid := s.pod()
	id := s.run(uid, "main", 0, "echo kept")
	s.exited(id)
	must(s, "RemoveContainer", s.rt.RemoveContainer(s.ctx(), id))
	if got := s.logText(id, runtime.LogOptions{TailLines: -1}); got != "kept\n" {
		s.Errorf("log of a removed container is %q, want it kept until the pod is removed", got)
	}
}

// result runs a command and returns what it did.
func (s *suite) result(id runtime.ContainerID, options runtime.ExecOptions) (stdout, stderr string, code int) {
	s.Helper()
	var out, errs bytes.Buffer
	options.Stdout, options.Stderr = &out, &errs
	started := 0
	options.Started = func() { started++ }
	code, err := s.rt.Exec(s.ctx(), id, options)
	must(s, fmt.Sprintf("Exec %q", options.Command), err)
	if started != 1 {
		s.Errorf("Exec %q called Started %d times, want once", options.Command, started)
	}
	return out.String(), errs.String(), code
}

func (s *suite) exec() {
	uid := s.pod()
	id := s.run(uid, "main", 0, forever, func(c *runtime.Container) { c.Env = []string{"GREETING=hello"} })
	stdout, stderr, code := s.result(id, runtime.ExecOptions{Command: []string{"sh", "-c", `echo "$GREETING"; echo oops >&2; exit 5`}})
	if stdout != "hello\n" || stderr != "oops\n" || code != 5 {
		s.Errorf("exec gave stdout %q, stderr %q, code %d; want %q, %q, 5", stdout, stderr, code, "hello\n", "oops\n")
	}
	if stdout, _, code := s.result(id, runtime.ExecOptions{Command: []string{"echo", "a b", "c"}}); stdout != "a b c\n" || code != 0 {
		s.Errorf("exec of echo gave %q and %d", stdout, code)
	}
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			var out bytes.Buffer
			want := fmt.Sprintf("%d\n", i)
			_, err := s.rt.Exec(s.ctx(), id, runtime.ExecOptions{Command: []string{"echo", fmt.Sprint(i)}, Stdout: &out, Stderr: io.Discard})
			if err != nil || out.String() != want {
				s.Errorf("one of several execs at once gave %q and %v, want %q", out.String(), err, want)
			}
		})
	}
	wg.Wait()
	// A program that does not exist is an error or the shell's code for it.
	code, err := s.rt.Exec(s.ctx(), id, runtime.ExecOptions{Command: []string{"/no/such/program"}, Stdout: io.Discard, Stderr: io.Discard})
	if err == nil && code != 127 && code != 126 {
		s.Errorf("exec of a program that does not exist gave code %d and no error", code)
	}
	if got := s.state(id).State; got != runtime.StateRunning {
		s.Errorf("after the execs the container is %s", got)
	}
}

func (s *suite) execStdin() {
	uid := s.pod()
	id := s.run(uid, "main", 0, forever)
	big := strings.Repeat("0123456789abcde\n", 20000) // more than any buffer on the way
	stdout, _, code := s.result(id, runtime.ExecOptions{Command: []string{"cat"}, Stdin: strings.NewReader(big)})
	if stdout != big || code != 0 {
		s.Errorf("cat gave %d bytes of %d, code %d", len(stdout), len(big), code)
	}
	// Without stdin there is nothing to read, and no waiting for it.
	if stdout, _, code := s.result(id, runtime.ExecOptions{Command: []string{"cat"}}); stdout != "" || code != 0 {
		s.Errorf("cat without stdin gave %q, code %d", stdout, code)
	}
	// A command that does not read its stdin ends all the same.
	r, w := io.Pipe()
	defer w.Close()
	if _, _, code := s.result(id, runtime.ExecOptions{Command: []string{"sh", "-c", "exit 3"}, Stdin: r}); code != 3 {
		s.Errorf("a command that does not read gave %d, want 3", code)
	}
	r.Close()
}

func (s *suite) execTTY() {
	uid := s.pod()
	id := s.run(uid, "main", 0, forever)
	resize := make(chan [2]uint32, 1)
	resize <- [2]uint32{132, 43}
	r, w := io.Pipe()
	var mu sync.Mutex
	var out bytes.Buffer
	seen := make(chan struct{}, 1)
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		code, err := s.rt.Exec(s.ctx(), id, runtime.ExecOptions{
			Command: []string{"sh"}, TTY: true, Stdin: r, Resize: resize,
			Stdout: writer(func(p []byte) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				select {
				case seen <- struct{}{}:
				default:
				}
				return out.Write(p)
			}),
		})
		ended <- result{code, err}
	}()
	waitFor := func(text string) {
		s.Helper()
		deadline := time.After(s.o.Timeout)
		for {
			mu.Lock()
			got := out.String()
			mu.Unlock()
			if strings.Contains(got, text) {
				return
			}
			select {
			case <-seen:
			case <-deadline:
				s.Fatalf("the terminal shows %q, want %q in it", got, text)
			}
		}
	}
	typeIn := func(text string) {
		s.Helper()
		_, err := io.WriteString(w, text)
		must(s, "write to the terminal", err)
	}
	typeIn("test -t 0 && test -t 1 && echo is''tty\r")
	waitFor("istty\r\n")
	typeIn("stty size\r")
	waitFor("43 132\r\n")
	resize <- [2]uint32{100, 50}
	// The new size takes effect some time after it was sent: ask until it has.
	for deadline := time.Now().Add(s.o.Timeout); ; time.Sleep(20 * time.Millisecond) {
		typeIn("stty size\r")
		mu.Lock()
		got := out.String()
		mu.Unlock()
		if strings.Contains(got, "50 100\r\n") {
			break
		}
		if time.Now().After(deadline) {
			s.Fatalf("after %v the terminal shows %q, want its new size 50 100", s.o.Timeout, got)
		}
	}
	typeIn("exit 9\r")
	select {
	case got := <-ended:
		if got.err != nil || got.code != 9 {
			s.Errorf("the shell ended with code %d, error %v; want 9", got.code, got.err)
		}
	case <-time.After(s.o.Timeout):
		s.Errorf("the shell did not end within %v of exit", s.o.Timeout)
	}
	w.Close()
}

func (s *suite) execCancelled() {
	uid := s.pod()
	id := s.run(uid, "main", 0, forever)
	ctx, cancel := context.WithCancel(s.ctx())
	started := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := s.rt.Exec(ctx, id, runtime.ExecOptions{
			Command: []string{"sleep", "4321"}, Stdout: io.Discard, Stderr: io.Discard,
			Started: func() { close(started) },
		})
		ended <- err
	}()
	select {
	case <-started:
	case err := <-ended:
		s.Fatalf("Exec of sleep ended with %v", err)
	case <-time.After(s.o.Timeout):
		s.Fatalf("Started was not called within %v", s.o.Timeout)
	}
	cancel()
	select {
	case err := <-ended:
		if err == nil {
			s.Error("Exec returned nil after its context ended, want an error")
		}
	case <-time.After(s.o.Timeout):
		s.Fatalf("Exec did not return within %v of its context's end", s.o.Timeout)
	}
	if strings.HasPrefix(s.rt.Version(), "fake://") {
		return // it has no list of processes to look at
	}
	deadline := time.Now().Add(s.o.Timeout)
	for {
		stdout, _, _ := s.result(id, runtime.ExecOptions{Command: []string{"sh", "-c", "ps | grep -c '[s]leep 4321' || true"}})
		if strings.TrimSpace(stdout) == "0" {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s processes run the command %v after Exec returned, want none", strings.TrimSpace(stdout), s.o.Timeout)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *suite) execNotRunning() {
	uid := s.pod()
	id := s.run(uid, "main", 0, "exit 0")
	s.exited(id)
	if _, err := s.rt.Exec(s.ctx(), id, runtime.ExecOptions{Command: []string{"true"}, Stdout: io.Discard, Stderr: io.Discard}); !errors.Is(err, runtime.ErrNotRunning) {
		s.Errorf("Exec in an ended container returned %v, want ErrNotRunning", err)
	}
	// A command ends with its container.
	id = s.run(uid, "main", 1, forever)
	started := make(chan struct{})
	ended := make(chan int, 1)
	go func() {
		code, _ := s.rt.Exec(s.ctx(), id, runtime.ExecOptions{
			Command: []string{"sleep", "1000"}, Stdout: io.Discard, Stderr: io.Discard,
			Started: func() { close(started) },
		})
		ended <- code
	}()
	select {
	case <-started:
	case <-time.After(s.o.Timeout):
		s.Fatalf("Started was not called within %v", s.o.Timeout)
	}
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), id, 0))
	select {
	case <-ended:
	case <-time.After(s.o.Timeout):
		s.Errorf("Exec did not return within %v of its container's end", s.o.Timeout)
	}
}

// attachment is one who is attached to a container.
type attachment struct {
	s              *suite
	stdin          *io.PipeWriter
	started        chan bool // receives whether there is a terminal
	resize         chan [2]uint32
	mu             sync.Mutex
	stdout, stderr bytes.Buffer
	grown          chan struct{}
	ended          chan attachResult
}

type attachResult struct {
	code int
	err  error
}

func (s *suite) attachTo(ctx context.Context, id runtime.ContainerID, stdin bool) *attachment {
	a := &attachment{
		s: s, started: make(chan bool, 1), resize: make(chan [2]uint32, 1),
		grown: make(chan struct{}, 1), ended: make(chan attachResult, 1),
	}
	into := func(b *bytes.Buffer) io.Writer {
		return writer(func(p []byte) (int, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			select {
			case a.grown <- struct{}{}:
			default:
			}
			return b.Write(p)
		})
	}
	options := runtime.AttachOptions{
		Stdout: into(&a.stdout), Stderr: into(&a.stderr), Resize: a.resize,
		Started: func(tty bool) { a.started <- tty },
	}
	if stdin {
		var r *io.PipeReader
		r, a.stdin = io.Pipe()
		s.Cleanup(func() { r.Close() })
		options.Stdin = r
	}
	go func() {
		code, err := s.rt.Attach(ctx, id, options)
		a.ended <- attachResult{code, err}
	}()
	return a
}

// begun waits until nothing is missed any more.
func (a *attachment) begun() (tty bool) {
	a.s.Helper()
	select {
	case tty = <-a.started:
	case got := <-a.ended:
		a.s.Fatalf("Attach returned %d, %v", got.code, got.err)
	case <-time.After(a.s.o.Timeout):
		a.s.Fatalf("Started was not called within %v", a.s.o.Timeout)
	}
	return tty
}

func (a *attachment) say(text string) {
	a.s.Helper()
	_, err := io.WriteString(a.stdin, text)
	must(a.s, "write to stdin", err)
}

func (a *attachment) text() (stdout, stderr string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stdout.String(), a.stderr.String()
}

func (a *attachment) waitFor(text string) {
	a.s.Helper()
	deadline := time.After(a.s.o.Timeout)
	for {
		stdout, _ := a.text()
		if strings.Contains(stdout, text) {
			return
		}
		select {
		case <-a.grown:
		case got := <-a.ended:
			a.s.Fatalf("Attach returned %d, %v after %q, want %q in it", got.code, got.err, stdout, text)
		case <-deadline:
			a.s.Fatalf("the container has written %q, want %q in it", stdout, text)
		}
	}
}

func (a *attachment) end() attachResult {
	a.s.Helper()
	select {
	case got := <-a.ended:
		return got
	case <-time.After(a.s.o.Timeout):
		a.s.Fatalf("Attach did not return within %v", a.s.o.Timeout)
	}
	return attachResult{}
}

func interactive(c *runtime.Container) { c.Stdin = true }

// refusesStdin checks, where stdin cannot be kept open, that this is said.
func (s *suite) refusesStdin() bool {
	if !s.o.NoStdin {
		return false
	}
	if err := s.rt.RunContainer(s.ctx(), s.container(s.pod(), "main", 0, "cat", interactive)); !errors.Is(err, runtime.ErrConfig) {
		s.Errorf("RunContainer with stdin returned %v, want ErrConfig", err)
	}
	return true
}

// attach: what is written from then on goes to everybody who is attached, each
// stream apart, and to the log; the end is the container's.
func (s *suite) attach() {
	uid := s.pod()
	id := s.run(uid, "main", 0, `trap 'echo bye; echo err >&2; exit 5' TERM; echo ready; sleep 1000 & wait`)
	s.ready(id)
	first, second := s.attachTo(s.ctx(), id, false), s.attachTo(s.ctx(), id, false)
	if first.begun() || second.begun() {
		s.Error("Started says that there is a terminal")
	}
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), id, s.o.Timeout))
	for _, a := range []*attachment{first, second} {
		got := a.end()
		stdout, stderr := a.text()
		if got.err != nil || got.code != 5 || stdout != "bye\n" || stderr != "err\n" {
			s.Errorf("Attach gave %q, %q, code %d, error %v; want %q, %q, 5", stdout, stderr, got.code, got.err, "bye\n", "err\n")
		}
	}
	if log := s.logText(id, runtime.LogOptions{TailLines: -1}); !strings.Contains(log, "bye\n") || !strings.Contains(log, "err\n") {
		s.Errorf("the log is %q, want what the attached saw", log)
	}
	if _, err := s.rt.Attach(s.ctx(), s.run(uid, "silent", 0, forever), runtime.AttachOptions{Stdin: strings.NewReader("x")}); !errors.Is(err, runtime.ErrNoStdin) {
		s.Errorf("Attach with stdin to a container without one returned %v, want ErrNoStdin", err)
	}
}

// attachStdin: stdin is open before anybody attaches, and stays so after the first
// has left.
func (s *suite) attachStdin() {
	if s.refusesStdin() {
		return
	}
	uid := s.pod()
	id := s.run(uid, "main", 0, "cat; exit 3", interactive)
	ctx, leave := context.WithCancel(s.ctx())
	first := s.attachTo(ctx, id, true)
	first.begun()
	first.say("one\n")
	first.waitFor("one\n")
	first.stdin.Close() // its own end only
	leave()
	if got := first.end(); got.err == nil {
		s.Errorf("Attach returned %d and no error when its context ended", got.code)
	}
	second := s.attachTo(s.ctx(), id, true)
	second.begun()
	big := strings.Repeat("0123456789abcde\n", 20000) // more than any buffer on the way
	go func() { _, _ = io.WriteString(second.stdin, big+"end of it\n") }()
	second.waitFor("end of it\n")
	if stdout, _ := second.text(); stdout != big+"end of it\n" {
		s.Errorf("cat gave %d bytes back of %d", len(stdout), len(big)+len("end of it\n"))
	}
	if got := s.state(id).State; got != runtime.StateRunning {
		s.Errorf("the container is %s, want it to wait for more", got)
	}
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), id, 0))
	if got := second.end(); got.err != nil || got.code != 137 {
		s.Errorf("Attach returned %d, %v, want 137", got.code, got.err)
	}
}

// attachStdinOnce: stdin ends with the first who had it.
func (s *suite) attachStdinOnce() {
	if s.refusesStdin() {
		return
	}
	uid := s.pod()
	once := func(c *runtime.Container) { c.Stdin, c.StdinOnce = true, true }
	id := s.run(uid, "main", 0, "cat; echo over; exit 3", once)
	reader := s.attachTo(s.ctx(), id, false) // does not count
	reader.begun()
	a := s.attachTo(s.ctx(), id, true)
	a.begun()
	a.say("one\n")
	a.stdin.Close()
	if got := a.end(); got.err != nil || got.code != 3 {
		s.Errorf("Attach returned %d, %v, want 3", got.code, got.err)
	}
	if stdout, _ := a.text(); stdout != "one\nover\n" {
		s.Errorf("Attach gave %q, want all to the end", stdout)
	}
	reader.end()

	id = s.run(uid, "main", 1, "cat; echo over; sleep 1000", once)
	ctx, leave := context.WithCancel(s.ctx())
	a = s.attachTo(ctx, id, true)
	a.begun()
	leave() // without a word
	a.end()
	s.logged(id, "over\n")
	if _, err := s.rt.Attach(s.ctx(), id, runtime.AttachOptions{Stdin: strings.NewReader("x")}); !errors.Is(err, runtime.ErrNoStdin) {
		s.Errorf("Attach with stdin after it has ended returned %v, want ErrNoStdin", err)
	}
}

func (s *suite) attachTTY() {
	if s.refusesStdin() {
		return
	}
	uid := s.pod()
	id := s.run(uid, "main", 0, "", func(c *runtime.Container) { c.Command, c.TTY, c.Stdin = []string{"sh"}, true, true })
	a := s.attachTo(s.ctx(), id, true)
	a.resize <- [2]uint32{132, 43}
	if !a.begun() {
		s.Error("Started says that there is no terminal")
	}
	a.say("test -t 0 && test -t 1 && echo is''tty\r")
	a.waitFor("istty\r\n")
	for deadline := time.Now().Add(s.o.Timeout); ; time.Sleep(20 * time.Millisecond) { // see execTTY
		a.say("stty size\r")
		if stdout, _ := a.text(); strings.Contains(stdout, "43 132\r\n") {
			break
		}
		if time.Now().After(deadline) {
			stdout, _ := a.text()
			s.Fatalf("after %v the terminal shows %q, want its size 43 132", s.o.Timeout, stdout)
		}
	}
	a.say("exit 9\r")
	if got := a.end(); got.err != nil || got.code != 9 {
		s.Errorf("Attach returned %d, %v, want 9", got.code, got.err)
	}
}

// attachSlowly: whoever reads slowly gets all of it, and the container waits.
func (s *suite) attachSlowly() {
	if s.refusesStdin() {
		return
	}
	uid := s.pod()
	id := s.run(uid, "main", 0, "cat; exit 0", func(c *runtime.Container) { c.Stdin, c.StdinOnce = true, true })
	big := strings.Repeat(strings.Repeat("x", 1023)+"\n", 1000) // more than any buffer on the way
	stdin, feed := io.Pipe()
	var written int
	var mu sync.Mutex
	go func() {
		defer feed.Close()
		for piece := range slices.Chunk([]byte(big), 4000) {
			if _, err := feed.Write(piece); err != nil {
				return
			}
			mu.Lock()
			written += len(piece)
			mu.Unlock()
		}
	}()
	resume := make(chan struct{})
	var out bytes.Buffer
	ended := make(chan attachResult, 1)
	go func() {
		code, err := s.rt.Attach(s.ctx(), id, runtime.AttachOptions{Stdin: stdin, Stdout: writer(func(p []byte) (int, error) {
			<-resume
			return out.Write(p)
		})})
		ended <- attachResult{code, err}
	}()
	// Nothing moves any more long before all was sent.
	for last, same := -1, 0; same < 10; time.Sleep(50 * time.Millisecond) {
		mu.Lock()
		now := written
		mu.Unlock()
		if now == last && now > 0 {
			same++
		} else {
			last, same = now, 0
		}
		if now == len(big) {
			s.Fatalf("all %d bytes went on though nobody read", now)
		}
	}
	close(resume)
	select {
	case got := <-ended:
		if got.err != nil || got.code != 0 || out.String() != big {
			s.Errorf("Attach gave %d bytes of %d, code %d, error %v", out.Len(), len(big), got.code, got.err)
		}
	case <-time.After(s.o.Timeout):
		s.Errorf("Attach did not return within %v", s.o.Timeout)
	}
}

func (s *suite) attachCancelled() {
	uid := s.pod()
	id := s.run(uid, "main", 0, forever)
	ctx, cancel := context.WithCancel(s.ctx())
	a := s.attachTo(ctx, id, false)
	a.begun()
	cancel()
	if got := a.end(); got.err == nil {
		s.Errorf("Attach returned %d and no error after its context ended", got.code)
	}
	if got := s.state(id).State; got != runtime.StateRunning {
		s.Errorf("after the attached has left the container is %s, want running", got)
	}
}

func (s *suite) attachNotRunning() {
	uid := s.pod()
	if _, err := s.rt.Attach(s.ctx(), runtime.ContainerID{PodUID: uid, Name: "none"}, runtime.AttachOptions{}); !errors.Is(err, runtime.ErrNotFound) {
		s.Errorf("Attach to an unknown container returned %v, want ErrNotFound", err)
	}
	id := s.run(uid, "main", 0, "exit 0")
	s.exited(id)
	if _, err := s.rt.Attach(s.ctx(), id, runtime.AttachOptions{}); !errors.Is(err, runtime.ErrNotRunning) {
		s.Errorf("Attach to an ended container returned %v, want ErrNotRunning", err)
	}
}

// dial: a port of the pod, where something listens that sends back what comes.
func (s *suite) dial() {
	if s.o.Attach == nil && !strings.HasPrefix(s.rt.Version(), "fake://") {
		s.Skip("without Options.Attach the pod's ports would be the node's")
	}
	uid := s.pod()
	if _, err := s.rt.Dial(s.ctx(), uid, 9); !errors.Is(err, syscall.ECONNREFUSED) {
		s.Errorf("Dial of a port without a listener returned %v, want ECONNREFUSED", err)
	}
	s.run(uid, "main", 0, "", func(c *runtime.Container) { c.Command = []string{"nc", "-ll", "-p", "7", "-e", "cat"} })
	big := bytes.Repeat([]byte("0123456789abcde\n"), 20000)
	for range 3 {
		var conn net.Conn
		var err error
		for deadline := time.Now().Add(s.o.Timeout); ; time.Sleep(20 * time.Millisecond) {
			if conn, err = s.rt.Dial(s.ctx(), uid, 7); err == nil || !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(deadline) {
				break // it may not listen yet
			}
		}
		must(s, "Dial", err)
		go func() {
			_, _ = conn.Write(big)
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, big) {
			s.Errorf("%d bytes of %d came back, error %v", len(got), len(big), err)
		}
		conn.Close()
	}
	if _, err := s.rt.Dial(s.ctx(), s.prefix+"-unknown", 7); !errors.Is(err, runtime.ErrNotFound) {
		s.Errorf("Dial of an unknown pod returned %v, want ErrNotFound", err)
	}
}

func (s *suite) usage() {
	uid := s.pod()
	id := s.run(uid, "main", 0, "echo ready; while true; do :; done")
	s.ready(id)
	before, err := s.rt.Usage(s.ctx(), id)
	must(s, "Usage", err)
	if before.MemoryBytes <= 0 || before.MemoryBytes > 1<<30 {
		s.Errorf("a small shell uses %d bytes of memory", before.MemoryBytes)
	}
	if before.PIDs < 1 || before.PIDs > 100 {
		s.Errorf("a small shell has %d processes", before.PIDs)
	}
	s.diskUsage(uid)
	for deadline := time.Now().Add(s.o.Timeout); ; time.Sleep(20 * time.Millisecond) {
		after, err := s.rt.Usage(s.ctx(), id)
		must(s, "Usage", err)
		if after.CPU > before.CPU {
			break
		}
		if time.Now().After(deadline) {
			s.Fatalf("after %v of a busy loop the CPU time is still %v", s.o.Timeout, after.CPU)
		}
	}
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), id, 0))
	must(s, "RemoveContainer", s.rt.RemoveContainer(s.ctx(), id))
	if got, err := s.rt.Usage(s.ctx(), id); !errors.Is(err, runtime.ErrNotFound) && !errors.Is(err, runtime.ErrNotRunning) {
		s.Errorf("Usage of a removed container returned %+v, %v, want ErrNotFound or ErrNotRunning", got, err)
	}
}

// diskUsage writes into a container's own root, and looks at what that takes.
func (s *suite) diskUsage(uid string) {
	writer := s.run(uid, "writer", 0, forever)
	s.ready(writer)
	of := func(name string) runtime.ContainerDisk {
		s.Helper()
		all, err := s.rt.DiskUsage(s.ctx(), uid)
		must(s, "DiskUsage", err)
		for _, d := range all {
			if d.Name == name {
				return d
			}
		}
		s.Fatalf("DiskUsage has %+v, and nothing of container %s", all, name)
		return runtime.ContainerDisk{}
	}
	before := of("writer")
	if len(s.o.Writer) > 0 {
		if _, _, code := s.result(writer, runtime.ExecOptions{Command: s.o.Writer}); code != 0 {
			s.Fatalf("%q ended with %d", s.o.Writer, code)
		}
		if after := of("writer"); after.RootBytes-before.RootBytes < 1<<20 || after.Inodes <= before.Inodes {
			s.Errorf("DiskUsage is %+v after writing 1 MiB, before it was %+v", after, before)
		}
	}
	if _, err := s.rt.DiskUsage(s.ctx(), s.prefix+"-unknown"); !errors.Is(err, runtime.ErrNotFound) {
		s.Errorf("DiskUsage of an unknown pod returned %v, want ErrNotFound", err)
	}
}

func (s *suite) adoption() {
	uid := s.pod()
	running := s.run(uid, "running", 0, forever)
	s.ready(running)
	ended := s.run(uid, "ended", 0, "echo done; exit 4")
	was := s.exited(ended)
	short := s.run(uid, "short", 0, "sleep 0.5; exit 6") // ends while nobody looks
	before := s.state(running)
	s.stop()
	time.Sleep(time.Second)
	s.start()

	if p := s.list(uid); p.Namespace != "conformance" || p.Name != "pod-"+uid || len(p.Containers) != 3 {
		s.Fatalf("after a restart List has %+v, want the pod with its three containers", p)
	}
	after := s.state(running)
	if after.State != runtime.StateRunning || after.Handle != before.Handle || after.SpecHash != before.SpecHash ||
		after.StartedAt.Sub(before.StartedAt).Abs() > time.Second || after.ImageID != before.ImageID {
		s.Errorf("after a restart the container is %+v, before it was %+v", after, before)
	}
	if got := s.state(ended); got.State != runtime.StateExited || got.ExitCode != 4 || got.FinishedAt.Sub(was.FinishedAt).Abs() > time.Second {
		s.Errorf("after a restart the ended container is %+v, before it was %+v", got, was)
	}
	if got := s.exited(short); got.ExitCode != 6 {
		s.Errorf("the container that ended meanwhile has exit code %d, want 6", got.ExitCode)
	}
	if got := s.logText(ended, runtime.LogOptions{TailLines: -1}); got != "done\n" {
		s.Errorf("after a restart the log is %q, want it kept", got)
	}
	if got := s.logText(running, runtime.LogOptions{TailLines: -1}); got != "ready\n" {
		s.Errorf("after a restart the log is %q, want it kept", got)
	}
	if stdout, _, _ := s.result(running, runtime.ExecOptions{Command: []string{"echo", "still here"}}); stdout != "still here\n" {
		s.Errorf("exec after a restart gave %q", stdout)
	}
	// It goes on from there: the next attempt, a new container, a stop.
	s.exited(s.run(uid, "ended", 1, "exit 0"))
	must(s, "StopContainer", s.rt.StopContainer(s.ctx(), running, s.o.Timeout))
	if got := s.state(running); got.State != runtime.StateExited || got.ExitCode != 7 {
		s.Errorf("after a stop the adopted container is %+v, want exited with 7", got)
	}
}
