package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// holderName is the program that holds the process ids which a pod's containers
// share: the first process of their namespace, which must outlive them all.
const holderName = "holdfast-holder"

// IsHolder tells whether this process was started as a pod's holder; then main
// must call [RunHolder] and nothing else. args are os.Args.
func IsHolder(args []string) bool { return startedAs(args, holderName) }

// RunHolder is the whole life of a holder: it begins once a byte comes on its
// stdin, and ends by SIGKILL. If stdin ends before, its agent has died before the
// pod was made.
func RunHolder() {
	if n, _ := os.Stdin.Read(make([]byte, 1)); n == 0 {
		os.Exit(1)
	}
	os.Stdin.Close()
	// Nobody in the pod may end it. That it ignores SIGCHLD makes the kernel reap
	// what is left to it.
	signal.Ignore()
	for {
		_ = unix.Pause()
	}
}

// holdProcesses makes a pod's process id namespace, unless it is there and alive:
// held by a process in the pod's cgroup, and by a bind mount that containers join.
func (r *Runtime) holdProcesses(uid string) error {
	path := r.filesOf(uid).pid()
	if r.holder(uid) != 0 {
		return nil
	}
	r.releaseProcesses(uid)
	if err := releaseMount(path); err != nil {
		return err
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	stdin, begin, err := os.Pipe()
	if err != nil {
		return err
	}
	defer begin.Close()
	cmd := exec.Command(r.programs.holder)
	cmd.Args = []string{r.programs.holder, uid}
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Dir = "/"
	cmd.Stdin = stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID}
	err = cmd.Start()
	stdin.Close()
	if err != nil {
		return fmt.Errorf("start the holder of the pod's process ids: %w", err)
	}
	go func() { _ = cmd.Wait() }() // until it is killed
	pid := cmd.Process.Pid
	err = joinCgroup(r.holderCgroup(uid), pid)
	if err == nil {
		err = unix.Mount(fmt.Sprintf("/proc/%d/ns/pid", pid), path, "", unix.MS_BIND, "")
	}
	if err == nil {
		_, err = begin.Write([]byte{'\n'})
	}
	if err != nil {
		_ = cmd.Process.Kill()
		return errors.Join(fmt.Errorf("hold the pod's process ids: %w", err), releaseMount(path))
	}
	return nil
}

// holder returns the process that holds a pod's process ids, 0 if there is none.
func (r *Runtime) holder(uid string) int {
	var held unix.Stat_t
	path := r.filesOf(uid).pid()
	if fsType(path) != unix.NSFS_MAGIC || unix.Stat(path, &held) != nil {
		return 0
	}
	for _, pid := range processesIn(r.holderCgroup(uid)) {
		var own unix.Stat_t
		if unix.Stat(filepath.Join("/proc", strconv.Itoa(pid), "ns/pid"), &own) == nil && own.Ino == held.Ino {
			return pid
		}
	}
	return 0
}

// releaseProcesses kills a pod's holder, and with it all that shares its process
// ids.
func (r *Runtime) releaseProcesses(uid string) { killCgroup(r.holderCgroup(uid)) }

func (r *Runtime) holderCgroup(uid string) string { return r.podCgroup(uid) + "/holder" }

// joinCgroup makes a cgroup and puts a process into it, in all trees where that can
// be done: one is enough.
func joinCgroup(cgroup string, pid int) error {
	mounts, err := cgroupMounts()
	if err != nil {
		return err
	}
	var failed error
	joined := false
	for _, mount := range mounts {
		if filepath.Base(mount) == "cpuset" {
			continue // takes nobody before it is told its processors
		}
		dir := filepath.Join(mount, cgroup)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		joined = true
	}
	if !joined {
		return errors.Join(errors.New("no cgroup takes the process"), failed)
	}
	return nil
}

// processesIn returns the processes of a cgroup, in whichever tree has it.
func processesIn(cgroup string) []int {
	mounts, err := cgroupMounts()
	if err != nil {
		return nil
	}
	seen := map[int]bool{}
	var pids []int
	for _, mount := range mounts {
		data, err := os.ReadFile(filepath.Join(mount, cgroup, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, line := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(line); err == nil && !seen[pid] {
				seen[pid] = true
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
