package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/holdfast-io/holdfast/agent/containerd/logfile"
	"github.com/holdfast-io/holdfast/agent/runtime"
)

func TestCommandOf(t *testing.T) {
	image := ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"default"}}
	for _, c := range []struct {
		name          string
		image         ocispec.ImageConfig
		command, args []string
		want          string
	}{
		{"neither", image, nil, nil, "/entry default"},
		{"a command drops the image's arguments", image, []string{"/mine"}, nil, "/mine"},
		{"arguments replace the image's", image, nil, []string{"a", "b"}, "/entry a b"},
		{"both", image, []string{"/mine"}, []string{"a"}, "/mine a"},
		{"an image without an entrypoint", ocispec.ImageConfig{Cmd: []string{"sh"}}, nil, nil, "sh"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := commandOf(runtime.Container{Command: c.command, Args: c.args}, c.image)
			if err != nil || strings.Join(got, " ") != c.want {
				t.Errorf("got %q, error %v; want %q", got, err, c.want)
			}
		})
	}
	if _, err := commandOf(runtime.Container{Image: "empty:1"}, ocispec.ImageConfig{}); err == nil || !strings.Contains(err.Error(), "empty:1 does not say what to run") {
		t.Errorf("nothing to run: error %v", err)
	}
}

func TestMergeEnv(t *testing.T) {
	base := []string{"PATH=/bin", "A=1", "B=2"}
	got := mergeEnv(base, []string{"B=3", "C=x=y", "A="})
	if want := []string{"PATH=/bin", "A=", "B=3", "C=x=y"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if base[2] != "B=2" {
		t.Error("the base was changed")
	}
}

func TestNewSpecRefusesMounts(t *testing.T) {
	ctx := namespaces.WithNamespace(context.Background(), "test")
	for _, m := range []runtime.Mount{
		{HostPath: "relative", ContainerPath: "/mnt"},
		{HostPath: "/data", ContainerPath: "mnt"},
		{HostPath: "/data", ContainerPath: "/"},
		{HostPath: "/data", ContainerPath: "/mnt", Propagation: "sideways"},
	} {
		_, err := newSpec(ctx, specInput{container: runtime.Container{Command: []string{"x"}, Mounts: []runtime.Mount{m}}})
		if err == nil {
			t.Errorf("mount %+v is accepted", m)
		}
	}
}

// TestNewSpecMounts covers mounts that take the place of those that every
// container has.
func TestNewSpecMounts(t *testing.T) {
	ctx := namespaces.WithNamespace(context.Background(), "test")
	spec, err := newSpec(ctx, specInput{
		files: podFiles{dir: "/d", state: "/s"},
		container: runtime.Container{Command: []string{"x"}, Mounts: []runtime.Mount{
			{HostPath: "/own/hosts", ContainerPath: "/etc/hosts"},
			{HostPath: "/own/shm", ContainerPath: "/dev/shm/"},
			{HostPath: "/own/tmp", ContainerPath: "/tmp", Propagation: "rslave"},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	at := map[string][]string{}
	for _, m := range spec.Mounts {
		at[m.Destination] = append(at[m.Destination], m.Source)
	}
	for path, want := range map[string]string{"/etc/hosts": "[/own/hosts]", "/dev/shm": "[/own/shm]", "/tmp": "[/own/tmp]", "/etc/resolv.conf": "[/d/resolv.conf]", "/run": "[]", "/sys/fs/cgroup": "[cgroup]"} {
		if got := fmt.Sprint(at[path]); got != want {
			t.Errorf("mounted at %s is %s, want %s", path, got, want)
		}
	}
	if spec.Linux.RootfsPropagation != "rslave" {
		t.Errorf("the root's propagation is %q, want what the widest mount needs", spec.Linux.RootfsPropagation)
	}
}

func TestSetResources(t *testing.T) {
	for _, c := range []struct {
		name    string
		in      runtime.Resources
		unified bool
		want    string
	}{
		{"nothing", runtime.Resources{}, false, "score=0"},
		{"half a core", runtime.Resources{CPUMillis: 500, OOMScoreAdj: 500}, false, "score=500 quota=50000/100000"},
		{"less than the kernel takes", runtime.Resources{CPUMillis: 1, CPUShares: 1}, false, "score=0 quota=1000/100000 shares=2"},
		{"memory", runtime.Resources{MemoryBytes: 5}, false, "score=0 memory=5"},
		{"memory, version 2", runtime.Resources{MemoryBytes: 5}, true, "score=0 memory=5 unified=map[memory.oom.group:1]"},
		{"processes", runtime.Resources{PIDs: 9, OOMScoreAdj: -997}, true, "score=-997 pids=9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
			setResources(s, c.in, c.unified)
			got := fmt.Sprintf("score=%d", *s.Process.OOMScoreAdj)
			res := s.Linux.Resources
			if res.CPU != nil && res.CPU.Quota != nil {
				got += fmt.Sprintf(" quota=%d/%d", *res.CPU.Quota, *res.CPU.Period)
			}
			if res.CPU != nil && res.CPU.Shares != nil {
				got += fmt.Sprintf(" shares=%d", *res.CPU.Shares)
			}
			if res.Memory != nil {
				got += fmt.Sprintf(" memory=%d", *res.Memory.Limit)
			}
			if res.Unified != nil {
				got += fmt.Sprintf(" unified=%v", res.Unified)
			}
			if res.Pids != nil {
				got += fmt.Sprintf(" pids=%d", *res.Pids.Limit)
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestCgroupSettings(t *testing.T) {
	text := func(r runtime.Resources, unified bool) string {
		var b strings.Builder
		for _, s := range cgroupSettings(r, unified) {
			fmt.Fprintf(&b, "%s=%s\n", s.file, s.value)
		}
		return b.String()
	}
	some := runtime.Resources{CPUMillis: 250, CPUShares: 1024, MemoryBytes: 64 << 20, PIDs: 77}
	least := runtime.Resources{CPUMillis: 1, CPUShares: 2}
	for _, c := range []struct {
		name, want string
		of         runtime.Resources
		unified    bool
	}{
		{"version 1", "cpu.shares=1024\ncpu.cfs_period_us=100000\ncpu.cfs_quota_us=25000\nmemory.limit_in_bytes=67108864\npids.max=77\n", some, false},
		{"version 2", "cpu.weight=39\ncpu.max=25000 100000\nmemory.max=67108864\npids.max=77\n", some, true},
		{"version 1, no limits", "cpu.shares=2\ncpu.cfs_period_us=100000\ncpu.cfs_quota_us=-1\nmemory.limit_in_bytes=-1\npids.max=max\n", runtime.Resources{}, false},
		{"version 2, no limits", "cpu.weight=1\ncpu.max=max 100000\nmemory.max=max\npids.max=max\n", runtime.Resources{}, true},
		{"version 1, less than the kernel takes", "cpu.shares=2\ncpu.cfs_period_us=100000\ncpu.cfs_quota_us=1000\nmemory.limit_in_bytes=-1\npids.max=max\n", least, false},
		{"version 2, most", "cpu.weight=10000\ncpu.max=max 100000\nmemory.max=max\npids.max=max\n", runtime.Resources{CPUShares: 1 << 20}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := text(c.of, c.unified); got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
		})
	}
}

func TestControllerMount(t *testing.T) {
	hybrid := []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"}
	for controller, want := range map[string]string{"cpu": "/sys/fs/cgroup/cpu,cpuacct", "memory": "/sys/fs/cgroup/memory", "pids": ""} {
		if got := controllerMount(hybrid, controller, false); got != want {
			t.Errorf("%s is in %q, want %q", controller, got, want)
		}
	}
	if got := controllerMount([]string{"/sys/fs/cgroup"}, "cpu", true); got != "/sys/fs/cgroup" {
		t.Errorf("version 2 has cpu in %q", got)
	}
}

// TestTiers: the pods that have asked for something weigh together what they have
// asked for, the others nothing, and a tier without pods is told apart.
func TestTiers(t *testing.T) {
	var all tiers
	step := func(uid, tier string, shares, burstable, bestEffort int64) {
		t.Helper()
		record := podRecord{Tier: tier, Resources: runtime.Resources{CPUShares: shares}}
		if got := all.set(uid, record); got[tierBurstable] != burstable || got[tierBestEffort] != bestEffort {
			t.Errorf("after %s: %v, want %d and %d", uid, got, burstable, bestEffort)
		}
	}
	step("a", tierBurstable, 100, 100, -1)
	step("b", tierBurstable, 200, 300, -1)
	step("c", tierBestEffort, 2, 300, 0)
	step("d", "", 1000, 300, 0)
	step("a", tierBurstable, 50, 250, 0)
	step("b", "", 0, 50, 0)
	step("a", "", 0, -1, 0)
	step("c", "", 0, -1, -1)
}

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"web":                     "docker.io/library/web:latest",
		"web:1":                   "docker.io/library/web:1",
		"team/web:1":              "docker.io/team/web:1",
		"localhost:5000/web":      "localhost:5000/web:latest",
		"registry.test/a/b/web:1": "registry.test/a/b/web:1",
		"Web":                     "",
		"web:":                    "",
		"":                        "",
	} {
		got, err := normalize(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("normalize(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{Node: "n1", Root: "/var/lib/x"}
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no node", func(c *Config) { c.Node = "" }, "node name"},
		{"a node with a slash", func(c *Config) { c.Node = "a/b" }, "node name"},
		{"a relative root", func(c *Config) { c.Root = "data" }, "not an absolute path"},
		{"a relative state", func(c *Config) { c.State = "run" }, "not an absolute path"},
		{"a state too long for sockets", func(c *Config) { c.State = "/" + strings.Repeat("x", 90) }, "choose a shorter one"},
	} {
		cfg := good
		c.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
	r, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if r.socket != "/run/holdfast/n1/containerd.sock" || r.Version() != "containerd://" {
		t.Errorf("socket %q, version %q", r.socket, r.Version())
	}
	long := good
	long.Node = "node-" + strings.Repeat("x", 50)
	if r, err = New(long); err != nil {
		t.Fatal(err)
	}
	if dir := r.server.serve.SocketDir; len(dir) > 42 {
		t.Errorf("directory of the shims' sockets %q is longer than containerd's 42 bytes", dir)
	}
}

func TestCallEndsWithContext(t *testing.T) {
	r, err := New(Config{Node: "n1", Root: "/var/lib/x"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if _, err := r.List(ctx); err == nil || !strings.Contains(err.Error(), "wait for containerd") {
		t.Errorf("a call to a runtime that is not ready: error %v", err)
	}
}

func TestBadNames(t *testing.T) {
	r, err := New(Config{Node: "n1", Root: "/var/lib/x"})
	if err != nil {
		t.Fatal(err)
	}
	for _, uid := range []string{"", "..", "../x", "a/b", "a b", "-a"} {
		if err := r.CreatePod(context.Background(), runtime.Pod{UID: uid}); err == nil || !strings.Contains(err.Error(), "pod uid") {
			t.Errorf("pod uid %q: error %v", uid, err)
		}
	}
	if err := r.RunContainer(context.Background(), runtime.Container{ID: runtime.ContainerID{PodUID: "p", Name: "../x"}}); err == nil || !strings.Contains(err.Error(), "container name") {
		t.Errorf("container name: error %v", err)
	}
}

func TestParseCgroupMounts(t *testing.T) {
	const hybrid = `25 22 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro
26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw
27 25 0:24 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
28 25 0:24 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
90 80 0:24 / /var/lib/x/rootfs/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
`
	if got, want := fmt.Sprint(parseCgroupMounts([]byte(hybrid))), "[/sys/fs/cgroup/unified /sys/fs/cgroup/memory]"; got != want {
		t.Errorf("hybrid: got %s, want %s", got, want)
	}
	const unified = "30 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
	if got, want := fmt.Sprint(parseCgroupMounts([]byte(unified))), "[/sys/fs/cgroup]"; got != want {
		t.Errorf("unified: got %s, want %s", got, want)
	}
}

func TestOOMKillsIn(t *testing.T) {
	for in, want := range map[string]int{
		"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n":               3, // version 1
		"low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n": 1, // version 2
		"oom_kill 0\n": 0,
	} {
		if got, ok := oomKillsIn([]byte(in)); got != want || !ok {
			t.Errorf("oomKillsIn(%q) = %d, %t; want %d", in, got, ok, want)
		}
	}
	if _, ok := oomKillsIn([]byte("oom_kill_disable 0\n")); ok {
		t.Error("a kernel without the counter has one")
	}
}

func TestMountsBelow(t *testing.T) {
	const info = `1 0 8:1 / / rw - ext4 /dev/a rw
2 1 0:5 / /run/holdfast/n1/pods/a/shm rw - tmpfs shm rw
3 1 0:5 / /run/holdfast/n10/pods/a/shm rw - tmpfs shm rw
4 2 0:5 / /run/holdfast/n1/with\040space rw - tmpfs shm rw
`
	if got, want := fmt.Sprintf("%q", mountsBelow([]byte(info), "/run/holdfast/n1")), `["/run/holdfast/n1/pods/a/shm" "/run/holdfast/n1/with space"]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestOutputURI(t *testing.T) {
	for _, want := range []output{
		{dir: "/data/pods/a b/logs/x&y=z/0"},
		{dir: "/d", tty: true, stdin: stdinOpen},
		{dir: "/d", stdin: stdinOnce},
		{dir: "/d", size: logfile.Size{SegmentBytes: 1 << 20, Segments: 3}},
	} {
		if got, ok := outputOf(want.uri("/data/bin/" + loggerName)); got != want || !ok {
			t.Errorf("got %+v, %t, want %+v", got, ok, want)
		}
	}
	for _, other := range []string{"", "/run/fifo/x-stdout", "file:///var/log/x", "binary:///usr/bin/other?dir=/x", "binary:///bin/" + loggerName} {
		if _, ok := outputOf(other); ok {
			t.Errorf("%q is taken for ours", other)
		}
	}
}

func TestIsShim(t *testing.T) {
	for name, want := range map[string]bool{"/data/bin/" + shimName: true, shimName: true, "holdfast": false, "/bin/containerd-shim-runc-v2": false} {
		if got := IsShim([]string{name, "-namespace", "x"}); got != want {
			t.Errorf("IsShim(%q) = %t", name, got)
		}
	}
	if IsShim(nil) || IsLogger(nil) || !IsLogger([]string{"/x/" + loggerName}) {
		t.Error("programs are told apart wrongly")
	}
	if !isShimOf([]string{"/x/containerd-shim-runc-v2", "-namespace", "holdfast-n1", "-id", "a"}, "holdfast-n1") ||
		isShimOf([]string{"/x/" + shimName, "-namespace", "holdfast-n10"}, "holdfast-n1") ||
		isShimOf([]string{"/x/containerd", "-namespace", "holdfast-n1"}, "holdfast-n1") ||
		isShimOf([]string{"/x/" + shimName, "-namespace"}, "holdfast-n1") {
		t.Error("shims of nodes are told apart wrongly")
	}
}

func TestSocketLink(t *testing.T) {
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/holdfast/n1/s/abc
0000000000000000: 00000003 00000000 00000000 0001 03 4712 /run/holdfast/n1/s/abc
0000000000000000: 00000003 00000000 00000000 0001 03 4713
`
	if got, ok := socketLink([]byte(table), "/run/holdfast/n1/s/abc"); got != "socket:[4711]" || !ok {
		t.Errorf("got %q, %t", got, ok)
	}
	if _, ok := socketLink([]byte(table), "/run/holdfast/n1/s/xyz"); ok {
		t.Error("a socket that is not there is found")
	}
}

func TestInstallPrograms(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	write := func(text string) {
		t.Helper()
		fresh := program + ".fresh" // by another name, as installers do
		if err := os.WriteFile(fresh, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(fresh, program); err != nil {
			t.Fatal(err)
		}
	}
	installed := func() string {
		t.Helper()
		names, err := installPrograms(filepath.Join(dir, "bin"), program)
		if err != nil {
			t.Fatal(err)
		}
		if !IsShim([]string{names.shim}) || !IsLogger([]string{names.logger}) || !IsHolder([]string{names.holder}) {
			t.Fatalf("programs are %+v", names)
		}
		data, err := os.ReadFile(names.shim)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	write("one")
	if got := installed(); got != "one" {
		t.Errorf("the shim is %q", got)
	}
	before, err := os.Stat(filepath.Join(dir, "bin", shimName))
	if err != nil {
		t.Fatal(err)
	}
	installed()
	if after, err := os.Stat(filepath.Join(dir, "bin", shimName)); err != nil || !os.SameFile(before, after) {
		t.Errorf("an unchanged program was installed again, error %v", err)
	}
	write("two")
	if got := installed(); got != "two" {
		t.Errorf("after the program was replaced the shim is %q", got)
	}
	// A copy, as across file systems, is recognized by size and time.
	info, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "copy")
	if err := copyProgram(path, program, info); err != nil {
		t.Fatal(err)
	}
	if err := installProgram(path, program); err != nil {
		t.Fatal(err)
	}
	if now, err := os.Stat(path); err != nil || os.SameFile(now, info) || now.Mode()&0o100 == 0 {
		t.Errorf("the copy was replaced, or cannot be run: %v, error %v", now, err)
	}
}

func TestKeyLock(t *testing.T) {
	var l keyLock
	ctx := context.Background()
	release, err := l.lock(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if other, err := l.lock(ctx, "b"); err != nil {
		t.Errorf("another key: %v", err)
	} else {
		other()
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if _, err := l.lock(short, "a"); err == nil {
		t.Error("a held key was given out")
	}
	got := make(chan error, 1)
	go func() {
		again, err := l.lock(ctx, "a")
		if err == nil {
			again()
		}
		got <- err
	}()
	release()
	if err := <-got; err != nil {
		t.Error(err)
	}
	if len(l.held) != 0 {
		t.Errorf("released keys are kept: %v", l.held)
	}
}
