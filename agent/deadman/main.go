package deadman

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Name is by which name this program is a dead-man.
const Name = "holdfast-deadman"

// Is tells whether this process was started as a dead-man; then main must call
// [Main] and nothing else. args are os.Args.
func Is(args []string) bool { return len(args) > 0 && filepath.Base(args[0]) == Name }

// Main is the whole life of a dead-man: args are its name, the directory of its
// [Guard], the machine's boot id, and the control group to be in. It returns the exit
// code.
func Main(args []string) int {
	if len(args) != 4 {
		fmt.Fprintf(os.Stderr, "%s is started by the agent\n", Name)
		return 2
	}
	if err := watch(args[1], args[2], args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "dead-man:", err)
		return 1
	}
	return 0
}

func watch(dir, bootID, own string) error {
	signal.Ignore(unix.SIGHUP)
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGTERM, unix.SIGINT) // the machine shuts down: not before the pods
	// It must not wait for a disk that hangs, nor be what the kernel kills for memory.
	// Without the rights to that it serves all the same.
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	kernel, err := newCgroups()
	if err != nil {
		return err
	}
	if own != "" {
		kernel.join(own)
	}
	lock, err := lockFile(dir)
	if err != nil || lock == nil {
		return err // another watches already
	}
	defer lock.Close()
	lease, err := openRecord(filepath.Join(dir, leaseFile))
	if err != nil {
		return err
	}
	seen, err := openRecord(filepath.Join(dir, seenFile))
	if err != nil {
		return err
	}
	timer, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("timer: %w", err)
	}
	w := Watch{
		Kernel: kernel,
		Lease: func() (time.Duration, error) {
			if _, err := os.Stat(filepath.Join(dir, leaseFile)); err != nil {
				return 0, err // the node's directory was taken away
			}
			return lease.read(bootID)
		},
		Cells:   cells(filepath.Join(dir, cellsDir)),
		Seen:    func(until time.Duration) { _ = seen.write(bootID, until) },
		Leaving: func() bool { return len(told) > 0 },
	}
	for {
		next, ok := w.Step(Boottime())
		if !ok {
			return nil
		}
		sleep(timer, next)
	}
}

// cells reads the control groups to be ended. What was read once is remembered until
// it is taken back, so that a disk that fails hides none.
func cells(dir string) func() []string {
	known := map[string]string{} // by file
	return func() []string {
		entries, err := os.ReadDir(dir)
		if err == nil {
			there := map[string]bool{}
			for _, e := range entries {
				there[e.Name()] = true
				if known[e.Name()] == "" {
					data, _ := os.ReadFile(filepath.Join(dir, e.Name()))
					known[e.Name()] = strings.TrimSpace(string(data))
				}
			}
			for name := range known {
				if !there[name] {
					delete(known, name)
				}
			}
		}
		var all []string
		for _, cgroup := range known {
			if strings.Count(cgroup, "/") > 1 { // never a whole tree
				all = append(all, cgroup)
			}
		}
		return all
	}
}

// sleep waits for d by CLOCK_BOOTTIME: a machine that slept wakes to a timer that has
// rung.
func sleep(timer int, d time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(d, 1)))}
	var rung [8]byte
	if unix.TimerfdSettime(timer, 0, &spec, nil) == nil {
		if _, err := unix.Read(timer, rung[:]); err == nil {
			return
		}
	}
	time.Sleep(min(d, killPeriod))
}

// Boottime returns how long ago the machine was started, the time it slept included.
func Boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("dead-man: CLOCK_BOOTTIME: %v", err)) // every Linux has it
	}
	return time.Duration(ts.Nano())
}

// lockFile takes the lock that the one dead-man of a directory holds; nil: another
// has it.
func lockFile(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, nil
	}
	return f, nil
}
