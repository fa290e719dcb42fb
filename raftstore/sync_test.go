package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/raftstore"
)

// syncEnv makes this test's binary the child of TestEachWriteIsSynced.
const syncEnv = "RAFTSTORE_TEST_SYNC"

// TestEachWriteIsSynced runs a peer on real files and lets its kernel refuse every
// sync from some moment on: then no write may be acknowledged. A crash of the
// process alone cannot show that, since the page cache outlives it.
func TestEachWriteIsSynced(t *testing.T) {
	cmd := exec.CommandContext(deadline(t), os.Args[0])
	cmd.Env = append(os.Environ(), syncEnv+"="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if want := "refused"; strings.TrimSpace(string(out)) != want {
		t.Errorf("the child says %q, want %q", out, want)
	}
}

// syncChild writes once with syncs and once without.
func syncChild(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	store, err := raftstore.New(raftstore.Config{ID: "p1", ClusterID: "test", Dir: dir, Address: "127.0.0.1:1", Stream: tcpStream{listener}})
	if err != nil {
		return err
	}
	if err := store.Bootstrap(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx) }()
	if _, err := store.Txn(ctx, put("k", "1")); err != nil {
		return fmt.Errorf("while syncs work: %w", err)
	}
	if err := refuseSyncs(); err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	if _, err := store.Txn(ctx, put("k", "2")); err == nil {
		return errors.New("a write was acknowledged that was not synced")
	}
	if err := <-ended; !errors.Is(err, unix.EIO) {
		return fmt.Errorf("the store ended with: %w; want EIO", err)
	}
	fmt.Println("refused")
	return nil
}

// refuseSyncs has the kernel answer fsync and fdatasync, of all threads, with EIO. It
// lasts as long as the process.
func refuseSyncs() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS // of seccomp_data; its first word is the call's number
		is   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	filter := []unix.SockFilter{
		{Code: load},
		{Code: is, K: unix.SYS_FSYNC, Jt: 2},
		{Code: is, K: unix.SYS_FDATASYNC, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EIO)},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}
