// Package rig is what the benchmarks share: processes that die with the benchmark, the
// CPU clocks, closed loops of clients, and three peers of Holdfast.
package rig

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a process of ours. It dies with the benchmark, whatever ends that.
type Process struct {
	Exited chan struct{} // closed when it has ended
	Log    string        // the file with what it printed

	cmd *exec.Cmd
}

// Command describes a process to start.
type Command struct {
	Args []string
	Env  []string // beside this process's own
	Log  string   // a file for what it prints
	// Ready, if set, is the line that it prints once it serves.
	Ready string
	// Start is called instead of cmd.Start, if set.
	Start func(cmd *exec.Cmd) error
}

// Begin starts c and waits until it is ready.
func Begin(ctx context.Context, c Command) (*Process, error) {
	out, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stderr = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// A Ctrl-C in the terminal is for the benchmark, which ends the members.
	cmd.SysProcAttr.Setpgid = true
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if c.Start != nil {
		err = c.Start(cmd)
	} else {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Args[0], err)
	}
	p := &Process{cmd: cmd, Exited: make(chan struct{}), Log: c.Log}
	ready := make(chan struct{})
	var drained sync.WaitGroup
	drained.Go(func() {
		lines := bufio.NewScanner(stdout)
		for said := false; lines.Scan(); {
			if c.Ready != "" && !said && strings.Contains(lines.Text(), c.Ready) {
				said = true
				close(ready)
			}
		}
		_, _ = io.Copy(io.Discard, stdout)
	})
	go func() {
		drained.Wait() // Wait closes the pipe
		_ = cmd.Wait()
		close(p.Exited)
	}()
	if c.Ready == "" {
		return p, nil
	}
	select {
	case <-ready:
		return p, nil
	case <-p.Exited:
		return nil, fmt.Errorf("%s ended at once:\n%s", filepath.Base(c.Args[0]), Tail(c.Log))
	case <-ctx.Done():
		p.Kill()
		return nil, fmt.Errorf("%s is not ready: %w\n%s", filepath.Base(c.Args[0]), context.Cause(ctx), Tail(c.Log))
	}
}

func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process as a power cut would, and returns once it is gone.
func (p *Process) Kill() { p.end(syscall.SIGKILL, 10*time.Second) }

// Stop asks the process to end, and insists after a while.
func (p *Process) Stop() { p.end(syscall.SIGTERM, 15*time.Second) }

func (p *Process) end(signal syscall.Signal, patience time.Duration) {
	_ = p.cmd.Process.Signal(signal)
	select {
	case <-p.Exited:
		return
	case <-time.After(patience):
	}
	_ = p.cmd.Process.Kill()
	<-p.Exited
}

// Tail returns the last lines of a log, for an error.
func Tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-10):], []byte("\n")))
}

// tick is the unit of CPU time in /proc, USER_HZ, the same on every Linux that Go
// runs on.
const tick = 10 * time.Millisecond

// CPUOf returns the CPU time that a process has used.
func CPUOf(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name stands in parentheses and may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// Memory is what a process occupies, in bytes.
type Memory struct{ RSS, Anonymous int64 }

// MemoryOf returns what a process occupies now.
func MemoryOf(pid int) (Memory, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, err
	}
	var m Memory
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "VmRSS:":
			m.RSS = kib << 10
		case "RssAnon:":
			m.Anonymous = kib << 10
		}
	}
	return m, nil
}

// busyCPU returns the CPU time that all processes of the machine have used, and
// what a hypervisor has taken. Interrupts are left out: most of them are the
// loopback traffic of the benchmark itself.
func busyCPU() (time.Duration, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(first) // cpu user nice system idle iowait irq softirq steal …
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat begins with %q", first)
	}
	var sum int64
	for _, i := range []int{1, 2, 3, 8} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}

// Usage is a reading of the CPU clocks.
type Usage struct {
	at      time.Time
	busy    time.Duration
	client  time.Duration
	members map[int]time.Duration // by pid
}

// ReadUsage reads the clocks of the machine, of this process and of pids.
func ReadUsage(pids []int) Usage {
	u := Usage{at: time.Now(), members: make(map[int]time.Duration)}
	u.busy, _ = busyCPU()
	u.client, _ = CPUOf(os.Getpid())
	for _, pid := range pids {
		u.members[pid], _ = CPUOf(pid)
	}
	return u
}

// Spent is the CPU time between two readings.
type Spent struct {
	Wall            time.Duration
	Servers, Leader time.Duration
	Client          time.Duration
	Foreign         float64 // of one core: neither ours nor the members'
}

// Since returns what was spent between u and before. Servers are those of pids;
// the other members that both readings know count as known, not as foreign.
func (u Usage) Since(before Usage, pids []int, leader int) Spent {
	s := Spent{Wall: u.at.Sub(before.at), Client: u.client - before.client}
	known := s.Client
	for pid, cpu := range u.members {
		known += cpu - before.members[pid]
	}
	for _, pid := range pids {
		s.Servers += u.members[pid] - before.members[pid]
	}
	s.Leader = u.members[leader] - before.members[leader]
	s.Foreign = max(0, float64(u.busy-before.busy-known)/float64(s.Wall))
	return s
}
