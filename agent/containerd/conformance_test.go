package containerd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/runtime/conformance"
)

// TestConformance runs the suite of all runtimes on real containers, over the containerd
// that is part of this program.
func TestConformance(t *testing.T) { conform(t, testConfig(t)) }

// TestDistributionConformance runs it over the containerd of the machine's distribution,
// Debian 12's is 1.6: a process of its own, in directories of its own.
func TestDistributionConformance(t *testing.T) {
	cfg := testConfig(t)
	cfg.Address = startDistribution(t, cfg)
	conform(t, cfg)
}

// distribution is where make test-deps unpacks the distribution's containerd, which it
// does not install: nothing of it runs but for the tests.
const distribution = "../../bin/distribution/usr/bin"

// startDistribution runs the distribution's containerd until t ends and returns its
// socket.
func startDistribution(t *testing.T, cfg Config) string {
	t.Helper()
	bin, err := filepath.Abs(distribution)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(bin, "containerd")
	if _, err := os.Stat(program); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing, which make test-deps unpacks", program)
		}
		t.Skip("needs the distribution's containerd: make test-deps")
	}
	dir := t.TempDir()
	socket := filepath.Join(cfg.State+"-dist", "containerd.sock")
	if err := os.MkdirAll(filepath.Dir(socket), 0o711); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.tracing.processor.v1.otlp\", \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(filepath.Dir(socket), "state"), socket)
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	output, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	cmd := exec.Command(program, "--config", file, "--log-level", "error")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH")) // with its own shim
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if text, err := os.ReadFile(output.Name()); err == nil && t.Failed() {
			t.Logf("the distribution's containerd:\n%s", text)
		}
		if err := os.RemoveAll(filepath.Dir(socket)); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			return socket
		}
		if time.Now().After(deadline) {
			t.Fatalf("the distribution's containerd does not answer: %v", err)
		}
	}
}

func conform(t *testing.T, cfg Config) {
	registry := serveRegistry(t, "box:pulled")
	conformance.Run(t, func(t *testing.T, dir string) runtime.Runtime {
		r, err := New(cfg) // testConfig's directories: dir's name is too long for sockets
		if err != nil {
			t.Fatal(err)
		}
		return r
	}, conformance.Options{
		Image:    "box:1",
		Pullable: registry + "/box:pulled",
		Missing:  "127.0.0.1:1/none:1", // where nobody listens
		Attach:   testNetNS,
		NoStdin:  cfg.Address != "",
		Hog:      []string{"sh", "-c", "x=$(yes | head -c 100000000)"},
		Writer:   []string{"sh", "-c", "yes | head -c 2000000 >/big"},
		Holder:   []string{"sh", "-c", "x=$(yes | head -c 20000000); echo ready; sleep 1000 & wait"},
		Bounds: func(t *testing.T, id runtime.ContainerID) (container, pod runtime.Resources) {
			return cgroupBounds(t, cfg, id)
		},
	})
}

// cgroupBounds reads the files of a container's cgroup and of its pod's, of either
// version.
func cgroupBounds(t *testing.T, cfg Config, id runtime.ContainerID) (container, pod runtime.Resources) {
	t.Helper()
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return boundsIn(t, r.cgroupOf(id)), boundsIn(t, r.podCgroup(id.PodUID))
}

func boundsIn(t *testing.T, cgroup string) (bounds runtime.Resources) {
	t.Helper()
	mounts, err := cgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	numbers := func(controller, file string) []int64 {
		text, err := os.ReadFile(filepath.Join(controllerMount(mounts, controller, unifiedCgroups()), cgroup, file))
		if err != nil {
			t.Fatal(err)
		}
		var out []int64
		for _, word := range strings.Fields(string(text)) {
			n, err := strconv.ParseInt(word, 10, 64)
			if err != nil || n < 0 || n > 1<<60 {
				n = 0 // "max", or what the kernel says for it
			}
			out = append(out, n)
		}
		return out
	}
	if unifiedCgroups() {
		quota := numbers("cpu", "cpu.max")
		bounds.CPUMillis = quota[0] * 1000 / quota[1]
		bounds.CPUShares = numbers("cpu", "cpu.weight")[0] // in other units
		bounds.MemoryBytes = numbers("memory", "memory.max")[0]
		return bounds
	}
	bounds.CPUMillis = numbers("cpu", "cpu.cfs_quota_us")[0] * 1000 / numbers("cpu", "cpu.cfs_period_us")[0]
	bounds.CPUShares = numbers("cpu", "cpu.shares")[0]
	bounds.MemoryBytes = numbers("memory", "memory.limit_in_bytes")[0]
	return bounds
}

// testNetNS makes a network namespace with nothing but its loopback.
func testNetNS(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := onThrowAwayThread(func() error {
		return errors.Join(unix.Unshare(unix.CLONE_NEWNET), loopbackUp(), unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""))
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return path
}

// loopbackUp brings up the loopback of the calling thread's network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
