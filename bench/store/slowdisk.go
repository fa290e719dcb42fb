package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A slow disk without another kernel or filesystem: the member's process runs under
// a seccomp filter that hands fsync and fdatasync to the benchmark, which lets them
// go on after a delay (seccomp_unotify(2)). Every other call passes the filter at
// once. It is the same for both stores and needs no change in either. What it
// cannot show is a queue: delays of a process run side by side.

// slowly returns what starts a process with a delay before each fsync; nil for none.
func slowly(delay time.Duration) func(cmd *exec.Cmd) error {
	if delay <= 0 {
		return nil
	}
	return func(cmd *exec.Cmd) error { return startSlow(cmd, delay) }
}

// startSlow starts cmd with a delay before each fsync.
func startSlow(cmd *exec.Cmd, delay time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer ours.Close()
	cmd.Args = append([]string{self, "slow-disk"}, cmd.Args...)
	cmd.Path = self
	cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return err
	}
	listener, err := receiveFD(ours)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return fmt.Errorf("slow disk: %w", err)
	}
	go delaySyncs(listener, delay)
	return nil
}

func socketPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs"), nil
}

func receiveFD(from *os.File) (int, error) {
	if err := unix.SetsockoptTimeval(int(from.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return 0, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(from.Fd()), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, errors.New("the member's process ended before it had a filter")
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return 0, errors.Join(err, errors.New("no descriptor came"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, errors.Join(err, errors.New("no descriptor came"))
	}
	return fds[0], nil
}

// The kernel's structures, linux/seccomp.h.
type (
	seccompNotif struct {
		id    uint64
		pid   uint32
		flags uint32
		data  [64]byte
	}
	seccompResponse struct {
		id    uint64
		val   int64
		err   int32
		flags uint32
	}
)

const (
	seccompSetModeFilter   = 1
	seccompFlagNewListener = 1 << 3
	seccompRetAllow        = 0x7fff0000
	seccompRetUserNotif    = 0x7fc00000
	seccompNotifRecv       = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	seccompNotifSend       = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	seccompContinue        = 1          // SECCOMP_USER_NOTIF_FLAG_CONTINUE
)

// delaySyncs answers for one process until that ends.
func delaySyncs(listener int, delay time.Duration) {
	defer unix.Close(listener)
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		} else if err != nil || poll[0].Revents&unix.POLLIN == 0 {
			return // nobody is left under the filter
		}
		var call seccompNotif
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), seccompNotifRecv, uintptr(unsafe.Pointer(&call))); errno != 0 {
			continue // the caller was interrupted, and asks again
		}
		go func() {
			// Not time.Sleep: under load a timer of ours would be late.
			pauseExactly(delay)
			answer := seccompResponse{id: call.id, flags: seccompContinue}
			_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), seccompNotifSend, uintptr(unsafe.Pointer(&answer)))
		}()
	}
}

func pauseExactly(d time.Duration) {
	left := unix.NsecToTimespec(d.Nanoseconds())
	for unix.Nanosleep(&left, &left) == unix.EINTR {
	}
}

// runSlowDisk puts this process under the filter, sends the listener through
// descriptor 3 and becomes the member.
func runSlowDisk(args []string) error {
	runtime.LockOSThread() // the filter is this thread's, and goes on with exec
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	statement := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(k uint32, yes uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes}
	}
	// The number of the call is the first word of what a filter sees. No check of
	// the architecture: this guards nothing.
	filter := []unix.SockFilter{
		statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0),
		jump(unix.SYS_FSYNC, 2),
		jump(unix.SYS_FDATASYNC, 1),
		statement(unix.BPF_RET|unix.BPF_K, seccompRetAllow),
		statement(unix.BPF_RET|unix.BPF_K, seccompRetUserNotif),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, seccompSetModeFilter, seccompFlagNewListener, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(listener)), nil, 0); err != nil {
		return err
	}
	unix.CloseOnExec(3)
	unix.CloseOnExec(int(listener))
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, args, os.Environ())
}
