//go:build linux

package devcluster

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFreeSubnet(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, tc := range []struct {
		name, want string // "": the first free one
		routes     []netip.Prefix
		got        string // "": refused
	}{
		{"nothing in the way", "", nil, "10.123.0.0/24"},
		{"a default route is not in the way", "", []netip.Prefix{prefix("0.0.0.0/0")}, "10.123.0.0/24"},
		{"the next one", "", []netip.Prefix{prefix("10.123.0.128/25")}, "10.124.0.0/24"},
		{"past a large one", "", []netip.Prefix{prefix("10.120.0.0/13")}, "10.128.0.0/24"},
		{"none is free", "", []netip.Prefix{prefix("10.0.0.0/8")}, ""},
		{"asked for", "192.168.7.0/24", nil, "192.168.7.0/24"},
		{"asked for by an address in it", "192.168.7.9/24", nil, "192.168.7.0/24"},
		{"asked for and in use", "192.168.7.0/24", []netip.Prefix{prefix("192.168.0.0/16")}, ""},
		{"asked for and pods'", "10.244.9.0/24", nil, ""},
		{"too small", "192.168.7.0/28", nil, ""},
		{"IPv6", "fd00::/64", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var want netip.Prefix
			if tc.want != "" {
				want = prefix(tc.want)
			}
			got, err := freeSubnet(want, tc.routes)
			switch {
			case tc.got == "" && err == nil:
				t.Errorf("got %s, want a refusal", got)
			case tc.got != "" && (err != nil || got.String() != tc.got):
				t.Errorf("got %s, %v; want %s", got, err, tc.got)
			}
		})
	}
}

// TestResidents: what runs on a machine is what is in its namespaces, its pods'
// too, and what descends from that, but never we ourselves, nor what init or we
// have adopted.
func TestResidents(t *testing.T) {
	const host, machine, pod, other = 1, 2, 3, 4
	all := []process{
		{pid: 1, netns: host},
		{pid: 10, parent: 1, netns: machine},   // we, while a thread of ours is inside
		{pid: 20, parent: 10, netns: machine},  // agent
		{pid: 21, parent: 1, netns: machine},   // containerd
		{pid: 22, parent: 21, netns: host},     // its child, which has left
		{pid: 23, parent: 1, netns: pod},       // a container whose shim is gone
		{pid: 24, parent: 23, netns: other},    // its child
		{pid: 30, parent: 10, netns: other},    // another machine's agent
		{pid: 31, parent: 1, netns: host},      // somebody else's
		{pid: 40, parent: 22, netns: host},     // grandchild, before its parent in no order
		{pid: 50, parent: 31, netns: machine},  // dev exec
		{pid: 60, parent: 9999, netns: host},   // an orphan of nobody
		{pid: 24_000, parent: 24, netns: host}, // deep
	}
	got := residents(all, map[uint64]bool{machine: true, pod: true}, 10)
	if want := []int{20, 21, 22, 23, 24, 40, 50, 24_000}; !slices.Equal(got, want) {
		t.Errorf("residents %v, want %v", got, want)
	}
}

func TestParseMount(t *testing.T) {
	for _, tc := range []struct {
		line string
		want mount
		ok   bool
	}{
		{"36 35 98:0 / /mnt rw,noatime master:1 shared:2 - ext3 /dev/root rw", mount{path: "/mnt", fstype: "ext3"}, true},
		{"40 27 0:4 net:[4026532281] /run/ns/a rw - nsfs nsfs rw", mount{path: "/run/ns/a", fstype: "nsfs", inode: 4026532281}, true},
		{"40 27 0:4 uts:[4026532281] /run/ns/b rw - nsfs nsfs rw", mount{path: "/run/ns/b", fstype: "nsfs"}, true},
		{`41 27 0:5 / /with\040blank\134 rw - tmpfs tmpfs rw`, mount{path: `/with blank\`, fstype: "tmpfs"}, true},
		{"garbage", mount{}, false},
	} {
		if got, ok := parseMount(tc.line); got != tc.want || ok != tc.ok {
			t.Errorf("%s: %+v %v, want %+v %v", tc.line, got, ok, tc.want, tc.ok)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
}

// TestNetnsMachines is the driver against the kernel: machines reach each other
// and the host, a killed one is gone with all its processes and mounts, what is
// there is taken over, and nothing is left in the end.
func TestNetnsMachines(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	swept := 0
	cfg := NetnsConfig{
		DataDir: dir,
		Command: func(_ Spec, _ Boot, dirs Dirs) *exec.Cmd {
			// A program that is ready at once, holds a mount, and has left a child
			// in a session of its own, as containerd is.
			return exec.Command("/bin/sh", "-c", `
				mkdir -p "$1/m" && mount -t tmpfs none "$1/m" &&
				{ setsid sleep 1000 & } &&
				exec "$2" -test.run=^TestHelperReady$ -test.v`, "sh", dirs.Run, os.Args[0])
		},
		Halt:  func(context.Context, Spec, Dirs) error { return nil },
		Sweep: func(Spec, Dirs) error { swept++; return nil },
	}
	driver, err := NewNetns(cfg)
	if err != nil {
		t.Fatal(err)
	}
	subnet, err := driver.Subnet()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	t.Cleanup(func() {
		for _, name := range []string{"p1", "n1"} {
			_ = driver.Kill(context.Background(), Spec{Name: name})
		}
		_ = driver.Close(context.Background())
	})
	if err := driver.Prepare(ctx, subnet); err != nil {
		t.Fatal(err)
	}
	place := func(role Role, name string) Spec {
		spec, err := driver.Place(role, 0, subnet)
		if err != nil {
			t.Fatal(err)
		}
		spec.Name, spec.Role = name, role
		return spec
	}
	p1, n1 := place(RolePeer, "p1"), place(RoleNode, "n1")
	start := func(spec Spec) Program {
		p, err := driver.Start(spec, Boot{})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.Ready():
		case <-p.Done():
			t.Fatalf("the program of %s ended: %v%s", spec.Name, p.Err(), tailOf(driver.Log(spec)))
		case <-ctx.Done():
			t.Fatalf("%s is not ready: %s", spec.Name, tailOf(driver.Log(spec)))
		}
		return p
	}
	start(p1)
	node := start(n1)
	ns := newNetwork(dir, subnet).nsPath

	reach := func(from string, to netip.Addr) error {
		return inNamespace(ns(from), func() error {
			// Nobody listens there: a refusal is an answer, silence is none.
			d := net.Dialer{Timeout: 2 * time.Second}
			conn, err := d.Dial("tcp", netip.AddrPortFrom(to, 9).String())
			if err == nil {
				conn.Close()
			}
			if isRefused(err) {
				return nil
			}
			return err
		})
	}
	if err := reach("p1", n1.Address); err != nil {
		t.Errorf("p1 does not reach n1: %v", err)
	}
	if err := reach("n1", subnet.Addr().Next()); err != nil {
		t.Errorf("n1 does not reach the host: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(ns("n1"), &st); err != nil {
		t.Fatal(err)
	}
	if err := driver.Kill(ctx, n1); err != nil {
		t.Fatal(err)
	}
	select {
	case <-node.Done():
	default:
		t.Error("n1 was killed, and its program goes on")
	}
	all, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	if left := residents(all, map[uint64]bool{st.Ino: true}, os.Getpid()); len(left) > 0 {
		t.Errorf("processes %v of n1 have outlived it", left)
	}
	if mounts, err := mountsBelow(machineDirs(dir, "n1").Run, ns("n1")); err != nil || len(mounts) > 0 {
		t.Errorf("mounts of n1 are left: %v %v", mounts, err)
	}
	if swept != 1 {
		t.Errorf("swept %d times, want once", swept)
	}
	if err := reach("p1", n1.Address); err == nil {
		t.Error("p1 reaches n1, which is off")
	}

	// A new driver, as after a crash, takes over what is there.
	if driver, err = NewNetns(cfg); err != nil {
		t.Fatal(err)
	}
	if err := driver.Prepare(ctx, subnet); err != nil {
		t.Fatal(err)
	}
	start(n1)
	if err := reach("p1", n1.Address); err != nil {
		t.Errorf("p1 does not reach n1, which is back: %v", err)
	}
	for _, spec := range []Spec{p1, n1} {
		if err := driver.Kill(ctx, spec); err != nil {
			t.Errorf("kill %s: %v", spec.Name, err)
		}
	}
	if err := driver.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if exists(runDir(dir)) {
		t.Errorf("%s is left", runDir(dir))
	}
	if _, err := net.InterfaceByName("hf-" + ID(dir)); err == nil {
		t.Error("the host's leg of the switch is left")
	}
	if mounts, err := mountsBelow(runDir(dir), dir); err != nil || len(mounts) > 0 {
		t.Errorf("mounts are left: %v %v", mounts, err)
	}
}

func isRefused(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno) && errno == unix.ECONNREFUSED
}

// TestHelperReady is no test: it is the program that TestNetnsMachines runs.
func TestHelperReady(t *testing.T) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		t.Skip("run by TestNetnsMachines only")
	}
	if err := NotifyReady(); err != nil {
		t.Fatal(err)
	}
	select {} // until killed
}

// TestRemoveCgroup: groups go with those below them; one that is not there is not
// an error.
func TestRemoveCgroup(t *testing.T) {
	needRoot(t)
	mounts, err := cgroupMounts()
	if err != nil || len(mounts) == 0 {
		t.Skipf("no control groups here: %v", err)
	}
	name := filepath.Join("holdfast-test-"+ID(t.TempDir()), "n1")
	made := filepath.Join(mounts[0], name)
	if err := os.MkdirAll(filepath.Join(made, "pod", "container"), 0o755); err != nil {
		t.Skipf("control groups cannot be made here: %v", err)
	}
	for range 2 {
		if err := RemoveCgroup(name); err != nil {
			t.Fatal(err)
		}
	}
	if exists(made) || exists(filepath.Dir(made)) {
		t.Errorf("%s is left", made)
	}
}
