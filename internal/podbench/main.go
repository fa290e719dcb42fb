// Podbench measures how fast one node starts pods, and what they cost: the real agent with
// containerd, runc and network, told by a peer in this process what to run. It prints lines of
// "name value unit". `make bench-pods` runs it.
//
// It runs in a network namespace and a cgroup of its own, and leaves nothing behind.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/containerd"
	"github.com/holdfast-io/holdfast/agent/network"
	containers "github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/internal/ociimage"
)

const image = "bench:1"

func main() {
	switch {
	case containerd.IsShim(os.Args):
		containerd.RunShim()
		return
	case containerd.IsLogger(os.Args):
		containerd.RunLogger()
		return
	case containerd.IsHolder(os.Args):
		containerd.RunHolder()
		return
	case len(os.Args) > 1 && os.Args[1] == "containerd":
		exitOn(containerd.ServeCommand(context.Background(), os.Args[2:]))
		return
	case os.Getenv("PODBENCH_INSIDE") == "":
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "PODBENCH_INSIDE=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
		runtime.LockOSThread() // whose end the signal is for
		exitOn(cmd.Run())
		return
	}
	quick := flag.Bool("quick", false, "fewer pods: under a minute")
	flag.Parse()
	exitOn(bench(*quick))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "podbench:", err)
		os.Exit(1)
	}
}

// timed notes when each container was started, by pod.
type timed struct {
	containers.Runtime
	mu      sync.Mutex
	started map[string]time.Time
}

func (t *timed) RunContainer(ctx context.Context, c containers.Container) error {
	err := t.Runtime.RunContainer(ctx, c)
	if err == nil {
		t.mu.Lock()
		t.started[c.ID.PodUID] = time.Now()
		t.mu.Unlock()
	}
	return err
}

func (t *timed) at(uid string) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.started[uid]
}

func bench(quick bool) (failed error) {
	pods, many, logMiB, runs := 40, 100, 256, 40
	if quick {
		pods, many, logMiB, runs = 12, 20, 64, 12
	}
	dir, err := os.MkdirTemp("", "podbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cpu, leave, err := ownCgroup()
	if err != nil {
		return err
	}
	defer leave()
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("bring the loopback up: %w: %s", err, out)
	}
	if err := writeImage(dir); err != nil {
		return err
	}
	if err := benchRunc(dir, runs, cpu); err != nil {
		return err
	}

	name := fmt.Sprintf("bench-%d", os.Getpid())
	state := filepath.Join("/run", "podbench-"+strconv.Itoa(os.Getpid()))
	defer os.RemoveAll(state)
	rt, err := containerd.New(containerd.Config{Node: name, Root: filepath.Join(dir, "containers"), State: filepath.Join(state, "c"), ImageDirs: []string{dir}})
	if err != nil {
		return err
	}
	net, err := network.New(network.Config{NetNSDir: filepath.Join(state, "netns")})
	if err != nil {
		return err
	}
	watched := &timed{Runtime: rt, started: map[string]time.Time{}}
	peer := newPeer()
	a, err := agent.New(agent.Config{
		Node: "bench", Client: peer, Runtime: watched, Network: net, DataDir: filepath.Join(dir, "agent"), Socket: "none",
		Address: netip.MustParseAddr("192.0.2.1"), ResolvConf: "/dev/null", Limits: agent.Limits{Eviction: []agent.Threshold{}},
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() {
		stop()
		end, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		failed = errors.Join(failed, <-ended, rt.Purge(end))
	}()

	b := &nodeBench{peer: peer, watched: watched, cpu: cpu}
	if _, err := b.start(2, 1, "sleep 100000"); err != nil { // warm
		return err
	}
	if err := b.removeAll(); err != nil {
		return err
	}
	for _, parallel := range []int{1, 4, 8} {
		began, used := time.Now(), cpu()
		took, err := b.start(pods, parallel, "sleep 100000")
		if err != nil {
			return err
		}
		all := time.Since(began)
		fmt.Printf("pod_start_p50_parallel_%d %.1f ms\n", parallel, ms(p50(took)))
		fmt.Printf("pod_start_rate_parallel_%d %.1f /s\n", parallel, float64(pods)/all.Seconds())
		fmt.Printf("pod_start_cpu_parallel_%d %.1f ms\n", parallel, ms(cpu()-used)/float64(pods))
		if err := b.removeAll(); err != nil {
			return err
		}
	}
	before, err := rss(os.Getpid())
	if err != nil {
		return err
	}
	if _, err := b.start(many, 8, "sleep 100000"); err != nil {
		return err
	}
	after, err := rss(os.Getpid())
	if err != nil {
		return err
	}
	fmt.Printf("agent_rss_without_pods %.1f MiB\n", float64(before)/(1<<20))
	fmt.Printf("agent_rss_with_%d_pods %.1f MiB\n", many, float64(after)/(1<<20))
	if err := b.removeAll(); err != nil {
		return err
	}
	began := time.Now()
	if _, err := b.start(1, 1, fmt.Sprintf("yes 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd | head -c %d", logMiB<<20)); err != nil {
		return err
	}
	if err := b.waitEnded(); err != nil {
		return err
	}
	fmt.Printf("log_throughput %.1f MiB/s\n", float64(logMiB)/time.Since(began).Seconds())
	return b.removeAll()
}

// nodeBench has pods started and removed.
type nodeBench struct {
	peer    *peer
	watched *timed
	cpu     func() time.Duration
	serial  int
	uids    []string
}

const patience = 2 * time.Minute

// start starts n pods, so many at a time, and returns how long each took: from the peer's word
// to its container's start.
func (b *nodeBench) start(n, parallel int, script string) ([]time.Duration, error) {
	var (
		mu    sync.Mutex
		took  []time.Duration
		fails []error
		group sync.WaitGroup
		slots = make(chan struct{}, parallel)
	)
	for range n {
		b.serial++
		pod := podOf(b.serial, script)
		b.uids = append(b.uids, string(pod.UID))
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			said := time.Now()
			err := b.peer.add(pod)
			if err == nil {
				err = b.peer.wait(string(pod.UID), func(s *corev1.PodStatus, _ bool) bool { return s.Phase != "" && s.Phase != corev1.PodPending })
			}
			mu.Lock()
			defer mu.Unlock()
			if fails = append(fails, err); err == nil {
				took = append(took, b.watched.at(string(pod.UID)).Sub(said))
			}
		})
	}
	group.Wait()
	return took, errors.Join(fails...)
}

// waitEnded waits until the last pod has run to its end.
func (b *nodeBench) waitEnded() error {
	return b.peer.wait(b.uids[len(b.uids)-1], func(s *corev1.PodStatus, _ bool) bool { return s.Phase == corev1.PodSucceeded })
}

func (b *nodeBench) removeAll() error {
	failed := b.peer.endAll()
	for _, uid := range b.uids {
		failed = errors.Join(failed, b.peer.wait(uid, func(_ *corev1.PodStatus, removed bool) bool { return removed }))
	}
	b.uids = nil
	b.peer.forget()
	return failed
}

func podOf(n int, script string) *corev1.Pod {
	name := fmt.Sprintf("pod-%d", n)
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(fmt.Sprintf("uid-%d-%d", os.Getpid(), n))},
		Spec: corev1.PodSpec{
			NodeName: "bench", RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: new(int64(0)),
			Containers: []corev1.Container{{Name: "main", Image: image, Command: []string{"sh", "-c", script}, ImagePullPolicy: corev1.PullIfNotPresent}},
		},
	}
}

// writeImage makes an image of busybox.
func writeImage(dir string) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	files := map[string]ociimage.File{"/bin/busybox": {Data: program, Mode: 0o755}}
	for _, applet := range []string{"sh", "sleep", "yes", "head", "true"} {
		files["/bin/"+applet] = ociimage.File{Link: "busybox"}
	}
	var buf bytes.Buffer
	if err := ociimage.Write(&buf, ociimage.Image{Ref: image, Files: files, Cmd: []string{"sleep", "1000"}}); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "bench.tar"), buf.Bytes(), 0o644)
}

// benchRunc measures `runc run` of a container that ends at once.
func benchRunc(dir string, runs int, cpu func() time.Duration) error {
	bundle := filepath.Join(dir, "bundle")
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs", "bin"), 0o755); err != nil {
		return err
	}
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "rootfs", "bin", "true"), program, 0o755); err != nil {
		return err
	}
	spec := exec.Command("runc", "spec", "--bundle", bundle)
	if out, err := spec.CombinedOutput(); err != nil {
		return fmt.Errorf("runc spec: %w: %s", err, out)
	}
	config := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	data = bytes.Replace(data, []byte(`"terminal": true`), []byte(`"terminal": false`), 1)
	data = bytes.Replace(data, []byte(`"sh"`), []byte(`"/bin/true"`), 1)
	if err := os.WriteFile(config, data, 0o644); err != nil {
		return err
	}
	var took []time.Duration
	used := cpu()
	for i := range runs {
		id := fmt.Sprintf("podbench-%d-%d", os.Getpid(), i)
		began := time.Now()
		if out, err := exec.Command("runc", "--root", filepath.Join(dir, "runc"), "run", "--bundle", bundle, id).CombinedOutput(); err != nil {
			return fmt.Errorf("runc run: %w: %s", err, out)
		}
		took = append(took, time.Since(began))
	}
	fmt.Printf("runc_run_p50 %.1f ms\n", ms(p50(took)))
	fmt.Printf("runc_run_cpu %.1f ms\n", ms(cpu()-used)/float64(runs))
	return nil
}

// ownCgroup moves this process into a cgroup that counts its CPU time and that of all it starts.
func ownCgroup() (cpu func() time.Duration, leave func(), err error) {
	root, counter, unit := "/sys/fs/cgroup/cpuacct", "cpuacct.usage", time.Nanosecond
	if _, err := os.Stat(root); err != nil {
		root, counter, unit = "/sys/fs/cgroup", "cpu.stat", time.Microsecond
	}
	dir := filepath.Join(root, fmt.Sprintf("podbench-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, nil, fmt.Errorf("make a cgroup: %w", err)
	}
	move := func(to string) error {
		return os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err := move(dir); err != nil {
		_ = os.Remove(dir)
		return nil, nil, err
	}
	cpu = func() time.Duration {
		data, _ := os.ReadFile(filepath.Join(dir, counter))
		fields := strings.Fields(string(data)) // "N", or "usage_usec N …"
		for _, field := range fields[:min(2, len(fields))] {
			if n, err := strconv.ParseInt(field, 10, 64); err == nil {
				return time.Duration(n) * unit
			}
		}
		return 0
	}
	leave = func() {
		_ = move(root)
		for range 100 { // what was started ends a moment later
			if os.Remove(dir) == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return cpu, leave, nil
}

func rss(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("no VmRSS")
}

func p50(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)/2]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
