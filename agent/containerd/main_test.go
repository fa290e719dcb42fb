package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task/plugin"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	"github.com/holdfast-io/holdfast/internal/leftovers"
	"github.com/holdfast-io/holdfast/internal/ociimage"
)

// TestMain is also the main of the programs that the tests start: the test
// binary is containerd, shim and logger, as the product's is.
func TestMain(m *testing.M) {
	switch {
	case IsShim(os.Args):
		RunShim()
		return
	case IsLogger(os.Args):
		RunLogger()
		return
	case IsHolder(os.Args):
		RunHolder()
		return
	case startedAs(os.Args, foreignShim):
		// The shim of a containerd that is not ours: without our logs.
		for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
			if r.Type == plugins.TTRPCPlugin && r.ID == "task" {
				registry.Reset()
				registry.Register(&r)
			}
		}
		shim.RunShim(context.Background(), manager.NewShimManager("io.containerd.runc.v2"))
		return
	case len(os.Args) > 1 && os.Args[1] == "containerd":
		if err := ServeCommand(context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// A program under the race detector sleeps for a second before it exits. Ours
	// start others all the time: for each container one that exits at once.
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	os.Exit(runClean(m))
}

// ownNodes is what the names of this process's nodes begin with.
var (
	ownNodes = fmt.Sprintf("test-%x-", os.Getpid())
	nodes    atomic.Int64
)

// runClean runs the tests, and fails when they leave something on the machine: a mount,
// network namespace (held by one), control group, process or file.
func runClean(m *testing.M) int {
	dir, err := os.MkdirTemp("", ownNodes) // what tests make is below it, mounts too
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Setenv("TMPDIR", dir)
	code := m.Run()
	left, err := leftovers.Find([]string{ownNodes}, "/run/holdfast", "/run/containerd")
	if left = append(left, leftovers.Files(dir)...); code != 0 && err == nil {
		return code // what a test that failed leaves says nothing more
	}
	if len(left) > 0 || err != nil {
		fmt.Fprintf(os.Stderr, "the tests have left on the machine (error %v):\n%s\n", err, strings.Join(left, "\n"))
		return 1
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

const foreignShim = "containerd-shim-runc-v2"

// needRoot skips a test that cannot run on this machine, and says why.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it runs containers")
	}
	if _, err := findRunc(); err != nil {
		t.Skip("needs runc: ", err)
	}
	if busybox() == "" {
		t.Skip("needs busybox, statically linked: apt-get install busybox-static")
	}
}

func busybox() string {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return ""
	}
	return path
}

// writeTestImages puts an archive with the test images into dir: "box:1", a
// shell, and "box:user", the same for a user by name who stops by SIGUSR1.
func writeTestImages(t testing.TB, dir string) {
	t.Helper()
	program, err := os.ReadFile(busybox())
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]ociimage.File{
		"/bin/busybox": {Data: program, Mode: 0o755},
		"/etc/passwd":  {Data: []byte("root:x:0:0:root:/root:/bin/sh\nwebby:x:1234:1235::/:/bin/sh\n")},
		"/etc/group":   {Data: []byte("root:x:0:\nwebby:x:1235:\nextra:x:77:webby\n")},
	}
	for _, applet := range []string{"sh", "cat", "echo", "env", "grep", "hostname", "ps", "test", "id", "ls", "sleep", "stty", "touch", "true", "yes", "head", "dd", "mount", "readlink", "ipcmk", "ipcs", "wc", "kill", "seq", "nc", "ip", "tail"} {
		files["/bin/"+applet] = ociimage.File{Link: "busybox"}
	}
	var buf bytes.Buffer
	if err := ociimage.Write(&buf,
		ociimage.Image{Ref: "box:1", Files: files, Cmd: []string{"sh", "-c", "echo from the image"}, Env: []string{"FLAVOUR=plain", "COLOUR=red"}},
		ociimage.Image{Ref: "box:user", Files: files, User: "webby", StopSignal: "SIGUSR1", WorkingDir: "/tmp", Entrypoint: []string{"sh", "-c"}, Cmd: []string{"id"}},
	); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "box.tar"), buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// testConfig is the configuration of a runtime of its own for t, with short
// paths for the sockets. All that it makes is gone when t ends.
func testConfig(t testing.TB) Config {
	t.Helper()
	needRoot(t)
	node := fmt.Sprintf("%s%x", ownNodes, nodes.Add(1))
	images := t.TempDir()
	writeTestImages(t, images)
	cfg := Config{
		Node: node, Root: filepath.Join(t.TempDir(), "root"), State: "/run/holdfast/" + node,
		Program: os.Args[0], ImageDirs: []string{images},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	t.Cleanup(func() {
		r, err := New(cfg)
		if err != nil {
			t.Error(err)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := r.Purge(ctx); err != nil {
			t.Errorf("purge: %v", err)
			if data, err := os.ReadFile(filepath.Join(cfg.Root, "containerd.log")); err == nil {
				t.Logf("containerd's log:\n%s", data)
			}
		}
	})
	return cfg
}

// start runs a runtime with cfg until the returned function is called, or t
// ends. Containers and containerd go on after it.
func start(t testing.TB, cfg Config) (*Runtime, func()) {
	t.Helper()
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	select {
	case <-r.Ready():
	case err := <-ended:
		cancel()
		t.Fatalf("run: %v", err)
	case <-time.After(30 * time.Second):
		cancel()
		t.Fatal("the runtime is not ready after 30 s")
	}
	var once bool
	stop := func() {
		if once {
			return
		}
		once = true
		cancel()
		select {
		case err := <-ended:
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("run: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run does not return 30 s after its context ended")
		}
	}
	t.Cleanup(stop)
	return r, stop
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}
