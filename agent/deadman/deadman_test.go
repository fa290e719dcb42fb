package deadman

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also the dead-man that the tests start.
func TestMain(m *testing.M) {
	if Is(os.Args) {
		os.Exit(Main(os.Args))
	}
	os.Exit(m.Run())
}

// fakeKernel tells what was done.
type fakeKernel struct {
	alive  map[string]int // processes
	stuck  map[string]bool
	frozen map[string]bool
	log    []string
}

func (k *fakeKernel) Kill(c string) int {
	n := k.alive[c]
	k.log = append(k.log, fmt.Sprintf("kill %s %d", c, n))
	if !k.stuck[c] && !k.frozen[c] {
		k.alive[c] = 0
	}
	return n
}

func (k *fakeKernel) Freeze(c string) { k.frozen[c] = true; k.log = append(k.log, "freeze "+c) }

func (k *fakeKernel) Thaw(c string) {
	k.frozen[c], k.alive[c] = false, 0
	k.log = append(k.log, "thaw "+c)
}

func (k *fakeKernel) Frozen(c string) bool { return k.frozen[c] }

// TestStep is the whole of what a dead-man decides.
func TestStep(t *testing.T) {
	k := &fakeKernel{alive: map[string]int{"a": 2, "b": 1}, stuck: map[string]bool{"b": true}, frozen: map[string]bool{}}
	until, err := 10*time.Second, error(nil)
	var seen time.Duration
	cells, leaving := []string{"a", "b"}, false
	w := Watch{
		Kernel: k, Cells: func() []string { return cells },
		Lease:   func() (time.Duration, error) { return until, err },
		Seen:    func(d time.Duration) { seen = d },
		Leaving: func() bool { return leaving },
	}
	step := func(now time.Duration, wantNext time.Duration, want ...string) {
		t.Helper()
		k.log = nil
		next, ok := w.Step(now)
		if got := strings.Join(k.log, ", "); got != strings.Join(want, ", ") || next != wantNext || !ok {
			t.Fatalf("at %v: %q, next in %v, stays %v; want %q, %v", now, got, next, ok, want, wantNext)
		}
	}
	step(time.Second, period)
	if seen != until {
		t.Fatalf("seen is %v, want the lease", seen)
	}
	step(9700*time.Millisecond, 300*time.Millisecond)
	seen = 0
	step(10*time.Second, killPeriod, "kill a 2", "kill b 1")
	step(10010*time.Millisecond, killPeriod, "kill a 0", "freeze a", "kill b 1")
	step(11*time.Second, fencedPeriod, "kill a 0", "kill b 1", "freeze b")
	k.alive["a"] = 1 // a runtime that was slow
	step(12*time.Second, fencedPeriod, "kill a 1", "kill b 1")
	if seen != 0 {
		t.Fatal("a lease that is over was reported as seen")
	}
	until = 20 * time.Second
	step(13*time.Second, period, "kill a 1", "thaw a", "kill a 0", "kill b 1", "thaw b", "kill b 0")
	if seen != until {
		t.Fatalf("seen is %v, want the new lease", seen)
	}
	err = errors.New("the file is gone")
	step(14*time.Second, killPeriod+fencedPeriod-killPeriod, "kill a 0", "freeze a", "kill b 0", "freeze b")

	// With nothing left to watch over it leaves, some time later or when told.
	if _, ok := w.Step(14*time.Second + idleAfter - 1); !ok {
		t.Error("it left too early")
	}
	if _, ok := w.Step(14*time.Second + idleAfter); ok {
		t.Error("it stays for ever")
	}
	err, until = nil, 200*time.Second
	if _, ok := w.Step(100 * time.Second); !ok {
		t.Error("it left pods alone")
	}
	leaving = true
	if _, ok := w.Step(101 * time.Second); !ok {
		t.Error("it left pods alone when told to leave")
	}
	if cells = nil; true {
		if _, ok := w.Step(102 * time.Second); ok {
			t.Error("told to leave, with nothing to watch over, it stays")
		}
	}
}

// TestRecord: what is kept says from which start of the machine it is, and what is
// damaged is none.
func TestRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lease")
	r, err := openRecord(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.read("boot"); !errors.Is(err, errNoRecord) {
		t.Errorf("an empty file gives %v", err)
	}
	for _, until := range []time.Duration{time.Hour, 1} {
		if err := r.write("boot", until); err != nil {
			t.Fatal(err)
		}
		if got, err := r.read("boot"); err != nil || got != until {
			t.Errorf("read %v, %v; want %v", got, err, until)
		}
	}
	if _, err := r.read("other"); !errors.Is(err, errNoRecord) {
		t.Errorf("another start of the machine gives %v", err)
	}
	if _, err := r.file.WriteAt([]byte("7"), 60); err != nil {
		t.Fatal(err)
	}
	if _, err := r.read("boot"); !errors.Is(err, errNoRecord) {
		t.Errorf("a damaged record gives %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() != recordBytes {
		t.Errorf("the file has %d bytes, want %d always", info.Size(), recordBytes)
	}
}

// TestProcess is a dead-man that ends real processes, holds back those that come too
// late, and is replaced when it is killed.
func TestProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("control groups need root")
	}
	kernel, err := newCgroups()
	if err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprintf("/holdfast-deadman-%d", os.Getpid())
	t.Cleanup(func() {
		for _, mount := range kernel.mounts {
			for range 500 {
				if remove(filepath.Join(mount, root)) == nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		for _, mount := range kernel.mounts {
			if _, err := os.Stat(filepath.Join(mount, root)); err == nil {
				t.Errorf("left behind: %s", filepath.Join(mount, root))
			}
		}
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, Name)
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	g := New(Config{
		Dir: filepath.Join(dir, "fencing"), BootID: "boot", Cgroup: root + "/deadman",
		Program:  func() (string, error) { return program, nil },
		CgroupOf: func(uid string) string { return root + "/" + uid },
	})
	if err := g.Open(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()

	// run starts a process in the pod's control group, as a runtime would: it is there
	// before its program is.
	run := func() *exec.Cmd {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(kernel.freezer, root, "db", "main-0"), 0o755); err != nil {
			t.Fatal(err)
		}
		procs := filepath.Join(kernel.freezer, root, "db", "main-0", "cgroup.procs")
		cmd := exec.Command("/bin/sh", "-c", "echo $$ > "+procs+" && touch "+filepath.Join(dir, "ran")+" && exec sleep 1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd
	}
	await := func(what string, is func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	ran := func() bool { _, err := os.Stat(filepath.Join(dir, "ran")); return err == nil }
	pid := func() int {
		data, _ := os.ReadFile(filepath.Join(kernel.freezer, root, "deadman", "cgroup.procs"))
		n, _ := strconv.Atoi(strings.TrimSpace(string(data)))
		return n
	}
	seen := func() bool { return g.Seen() == g.Until() }

	if err := g.Renew(Boottime() + 2*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := g.Watch("db"); err != nil {
		t.Fatal(err)
	}
	await("the dead-man sees the lease", seen)
	db := run()
	await("the process runs", ran)
	until := g.Until()
	if err := g.Renew(Boottime() + 3*time.Second); err != nil {
		t.Fatal(err)
	}
	if g.Until() <= until {
		t.Fatal("the lease was not renewed")
	}
	until = g.Until()
	err = db.Wait()
	if at := Boottime(); at < until || at > until+2*time.Second {
		t.Errorf("the process ended %v after the lease, want at once", at-until)
	}
	if status, ok := db.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != unix.SIGKILL {
		t.Errorf("the process ended with %v, want SIGKILL", err)
	}

	// One that comes too late stands still, and dies when there is a lease again.
	await("the control group is frozen", func() bool { return kernel.Frozen(root + "/db") })
	if err := os.Remove(filepath.Join(dir, "ran")); err != nil {
		t.Fatal(err)
	}
	late := run()
	await("it is in the control group", func() bool {
		data, _ := os.ReadFile(filepath.Join(kernel.freezer, root, "db", "main-0", "cgroup.procs"))
		return len(strings.TrimSpace(string(data))) > 0
	})
	first := pid()
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil { // the next one finds all as it is
		t.Fatal(err)
	}
	await("another dead-man", func() bool { return pid() != 0 && pid() != first })
	if ran() {
		t.Error("a process ran in the frozen control group")
	}
	if err := g.Renew(Boottime() + 2*time.Second); err != nil {
		t.Fatal(err)
	}
	_ = late.Wait()
	if ran() {
		t.Error("a process that was started too late ran")
	}
	await("the dead-man sees the lease", seen)
	run()
	await("a process runs again", ran)

	// Without an agent it goes on, and ends with the last pod.
	if err := g.Forget("other"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	await("the process is ended without an agent", func() bool { return kernel.Frozen(root + "/db") })
	last := pid()
	if err := syscall.Kill(last, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await("the dead-man leaves", func() bool { return pid() == 0 })
}

// remove removes a directory tree of a control group.
func remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			err = errors.Join(err, remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err, unix.Rmdir(dir))
}
