package main

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

// process is a member's process. It dies with the benchmark, whatever ends that.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	log    string
}

// command describes a process to start.
type command struct {
	args []string
	env  []string
	log  string // a file for what it prints
	// ready, if set, is the line that it prints once it serves.
	ready string
	// syncDelay is what each of its fsyncs takes more; see slowdisk.go.
	syncDelay time.Duration
}

// begin starts c and waits until it is ready.
func begin(ctx context.Context, c command) (*process, error) {
	out, err := os.OpenFile(c.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(c.args[0], c.args[1:]...)
	cmd.Env = append(os.Environ(), c.env...)
	cmd.Stderr = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// A Ctrl-C in the terminal is for the benchmark, which ends the members.
	cmd.SysProcAttr.Setpgid = true
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if c.syncDelay > 0 {
		err = startSlow(cmd, c.syncDelay)
	} else {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.args[0], err)
	}
	p := &process{cmd: cmd, exited: make(chan struct{}), log: c.log}
	ready := make(chan struct{})
	var drained sync.WaitGroup
	drained.Go(func() {
		lines := bufio.NewScanner(stdout)
		for said := false; lines.Scan(); {
			if c.ready != "" && !said && strings.Contains(lines.Text(), c.ready) {
				said = true
				close(ready)
			}
		}
		_, _ = io.Copy(io.Discard, stdout)
	})
	go func() {
		drained.Wait() // Wait closes the pipe
		_ = cmd.Wait()
		close(p.exited)
	}()
	if c.ready == "" {
		return p, nil
	}
	select {
	case <-ready:
		return p, nil
	case <-p.exited:
		return nil, fmt.Errorf("%s ended at once:\n%s", filepath.Base(c.args[0]), tail(c.log))
	case <-ctx.Done():
		p.kill()
		return nil, fmt.Errorf("%s is not ready: %w\n%s", filepath.Base(c.args[0]), context.Cause(ctx), tail(c.log))
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kill ends the process as a power cut would, and returns once it is gone.
func (p *process) kill() { p.end(syscall.SIGKILL, 10*time.Second) }

// stop asks the process to end, and insists after a while.
func (p *process) stop() { p.end(syscall.SIGTERM, 15*time.Second) }

func (p *process) end(signal syscall.Signal, patience time.Duration) {
	_ = p.cmd.Process.Signal(signal)
	select {
	case <-p.exited:
		return
	case <-time.After(patience):
	}
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// tail returns the last lines of a log, for an error.
func tail(path string) string {
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

// cpuOf returns the CPU time that a process has used.
func cpuOf(pid int) (time.Duration, error) {
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

// memory is what a process occupies, in bytes.
type memory struct{ rss, anonymous int64 }

func memoryOf(pid int) (memory, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	var m memory
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "VmRSS:":
			m.rss = kib << 10
		case "RssAnon:":
			m.anonymous = kib << 10
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

// usage is a reading of the CPU clocks.
type usage struct {
	at      time.Time
	busy    time.Duration
	client  time.Duration
	members map[int]time.Duration // by pid
}

func readUsage(pids []int) usage {
	u := usage{at: time.Now(), members: make(map[int]time.Duration)}
	u.busy, _ = busyCPU()
	u.client, _ = cpuOf(os.Getpid())
	for _, pid := range pids {
		u.members[pid], _ = cpuOf(pid)
	}
	return u
}

// spent is the CPU time between two readings.
type spent struct {
	wall            time.Duration
	servers, leader time.Duration
	client          time.Duration
	foreign         float64 // of one core: neither ours nor the members'
}

// since returns what was spent between u and before. Servers are those of pids;
// the other members that both readings know count as known, not as foreign.
func (u usage) since(before usage, pids []int, leader int) spent {
	s := spent{wall: u.at.Sub(before.at), client: u.client - before.client}
	known := s.client
	for pid, cpu := range u.members {
		known += cpu - before.members[pid]
	}
	for _, pid := range pids {
		s.servers += u.members[pid] - before.members[pid]
	}
	s.leader = u.members[leader] - before.members[leader]
	s.foreign = max(0, float64(u.busy-before.busy-known)/float64(s.wall))
	return s
}
