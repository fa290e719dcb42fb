package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

func lowOnSpace(s *raftstore.Store) bool {
	return strings.Contains(strings.Join(s.Status().Alarms, "\n"), "low-space: ")
}

// TestLowSpaceOnOnePeer covers a leader whose disk fills: it gives the leadership to
// a voter that has room, and no write is refused. The peer without room does not get
// it back.
func TestLowSpaceOnOnePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		ctx := t.Context()
		full := c.WaitLeader()
		alsoFull := c.Others(full)[0]
		alsoFull.Disk.SetFree(1 << 30)
		time.Sleep(3 * time.Second)
		if !lowOnSpace(alsoFull.Store) || lowOnSpace(full.Store) {
			t.Fatalf("alarms: %v, %v", alsoFull.Store.Status().Alarms, full.Store.Status().Alarms)
		}
		full.Disk.SetFree(1 << 20) // scarce: less than what an append may need
		i := 0
		for begin := time.Now(); time.Since(begin) < 10*time.Second; i++ { // one after the other, in the hand-over, too
			if _, err := full.Store.Txn(ctx, put(fmt.Sprint(i%100), "x")); err != nil {
				t.Fatalf("write %d, after %v: %v", i, time.Since(begin), err)
			}
		}
		if i < 1000 {
			t.Errorf("%d writes in 10 s", i)
		}
		if leader := c.WaitLeader(); leader == full || leader == alsoFull {
			t.Errorf("%s leads, whose disk is full", leader.ID)
		}
	})
}

// TestLowSpaceOnAllPeers covers a cluster without room: it takes deletes and reads,
// from any peer, and goes on by itself once there is room.
func TestLowSpaceOnAllPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		ctx := t.Context()
		for i := range 10 {
			if _, err := c.Peers[0].Store.Txn(ctx, put(fmt.Sprint(i), "x")); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range c.Peers {
			p.Disk.SetFree(1 << 20)
		}
		time.Sleep(5 * time.Second)
		for i, p := range c.Peers {
			if _, err := p.Store.Txn(ctx, put("more", "x")); !errors.Is(err, raftstore.ErrNoSpace) {
				t.Errorf("a put on %s: %v", p.ID, err)
			}
			if _, err := p.Store.Txn(ctx, raftstore.Txn{Then: []raftstore.Op{raftstore.Delete("9"), raftstore.Put("8", nil)}}); !errors.Is(err, raftstore.ErrNoSpace) {
				t.Errorf("a delete with a put on %s: %v", p.ID, err)
			}
			if _, err := p.Store.Txn(ctx, raftstore.Txn{Then: []raftstore.Op{raftstore.Delete(fmt.Sprint(i))}}); err != nil {
				t.Errorf("a delete on %s: %v", p.ID, err)
			}
			view, err := p.Store.Sync(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := view.Get(fmt.Sprint(i)); ok || !lowOnSpace(p.Store) {
				t.Errorf("%s: deleted key is there: %v; alarms %v", p.ID, ok, p.Store.Status().Alarms)
			}
		}
		for _, p := range c.Peers {
			p.Disk.SetFree(1 << 39)
		}
		time.Sleep(2 * time.Second)
		for _, p := range c.Peers {
			if _, err := p.Store.Txn(ctx, put("more", p.ID)); err != nil || lowOnSpace(p.Store) {
				t.Errorf("a put on %s once there is room: %v; alarms %v", p.ID, err, p.Store.Status().Alarms)
			}
		}
	})
}

// TestFullDisk runs a peer on a disk of 48 MiB, in a process with mounts of its own.
func TestFullDisk(t *testing.T) {
	cmd := exec.CommandContext(deadline(t), os.Args[0])
	cmd.Env = append(os.Environ(), fullDiskEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // private, and gone with the process
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// fullDiskEnv makes this test's binary the process of TestFullDisk.
const fullDiskEnv = "RAFTSTORE_TEST_FULL_DISK"

// fullDisk is that process.
func fullDisk(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	type running struct {
		*raftstore.Store
		stop context.CancelFunc
		done chan error
	}
	start := func() (*running, error) {
		store, err := raftstore.New(raftstore.Config{
			ID: "p1", ClusterID: "test", Dir: filepath.Join(dir, "store"), Address: "127.0.0.1:1", Stream: tcpStream{listener}, SnapshotBytes: 1 << 20,
		})
		if err != nil {
			return nil, err
		}
		if !store.HasState() {
			if err := store.Bootstrap(); err != nil {
				return nil, err
			}
		}
		r := &running{Store: store, done: make(chan error, 1)}
		var run context.Context
		run, r.stop = context.WithCancel(context.Background())
		go func() { r.done <- store.Run(run) }()
		_, err = store.Sync(ctx)
		return r, err
	}
	free := func() int64 {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			panic(err)
		}
		return int64(st.Bavail) * st.Frsize
	}
	filler := filepath.Join(dir, "filler")
	fill := func(leave int64) error { // as somebody else's data
		f, err := os.OpenFile(filler, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		for block := make([]byte, 4096); err == nil && free() > leave; {
			_, err = f.Write(block)
		}
		return errors.Join(err, f.Close())
	}
	ballast := func() bool {
		_, err := os.Stat(filepath.Join(dir, "store", "ballast"))
		return err == nil
	}
	// until waits for a change that the store makes within a second.
	until := func(what string, ok func() bool) error {
		for !ok() {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("%s: %w", what, ctx.Err())
			}
		}
		return nil
	}
	value := strings.Repeat("v", 1000)
	keys := 0
	refused := func(s *running) bool {
		_, err := s.Txn(ctx, put(fmt.Sprintf("k/%06d", keys), value))
		if err == nil {
			keys++
		}
		return errors.Is(err, raftstore.ErrNoSpace)
	}
	gone := 0
	remove := func(s *running) error {
		_, err := s.Txn(ctx, raftstore.Txn{Then: []raftstore.Op{raftstore.Delete(fmt.Sprintf("k/%06d", gone))}})
		if err == nil {
			gone++
		}
		return err
	}

	s, err := start()
	if err != nil {
		return err
	}
	for range 2000 {
		if refused(s) {
			return errors.New("refused while there is room")
		}
	}
	if err := until("ballast", ballast); err != nil {
		return err
	}
	// Below the watermark: puts are refused, deletes are not.
	if err := fill(5 << 20); err != nil {
		return err
	}
	if err := until("refusal", func() bool { return refused(s) }); err != nil {
		return err
	}
	if !lowOnSpace(s.Store) || !ballast() {
		return fmt.Errorf("alarms %v, ballast %v", s.Status().Alarms, ballast())
	}
	for range 200 {
		if err := remove(s); err != nil {
			return fmt.Errorf("delete while low on space: %w", err)
		}
	}
	// Somebody fills the disk to the last byte: the ballast makes room for deletes.
	if err := fill(64 << 10); err != nil {
		return err
	}
	for range 500 {
		if err := remove(s); err != nil {
			return fmt.Errorf("delete on a full disk: %w", err)
		}
	}
	if ballast() {
		return errors.New("the ballast is there while the disk is full")
	}
	// Room again: puts are taken, without a restart, and there is a ballast again.
	if err := os.Remove(filler); err != nil {
		return err
	}
	if err := until("recovery", func() bool { return !refused(s) && ballast() && !lowOnSpace(s.Store) }); err != nil {
		return err
	}
	fmt.Println("low space: refused, deleted, recovered")

	// Full again, and the ballast's room as well: the log cannot go on.
	if err := fill(64 << 10); err != nil {
		return err
	}
	if err := until("ballast given up", func() bool { return !ballast() }); err != nil {
		return err
	}
	if err := fill(0); err != nil && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	deleted := gone
	for err = nil; err == nil; {
		err = remove(s)
	}
	select {
	case err = <-s.done:
	case <-ctx.Done():
		return errors.New("the store goes on without room for its log")
	}
	if !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("Run ended with %w", err)
	}
	fmt.Printf("no space at all: stopped after %d deletes: %v\n", gone-deleted, err)
	// It cannot start without room, or starts; and with room it has everything.
	if s, err = start(); err == nil {
		s.stop()
		fmt.Println("started on the full disk")
		<-s.done
	} else {
		fmt.Println("start on the full disk:", err)
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	if s, err = start(); err != nil {
		return fmt.Errorf("start with room again: %w", err)
	}
	view, err := s.Sync(ctx)
	if err != nil {
		return err
	}
	for i := range keys {
		_, ok := view.Get(fmt.Sprintf("k/%06d", i))
		if i == gone {
			continue // its outcome is unknown
		}
		if ok != (i > gone) {
			return fmt.Errorf("key %d of %d, the first %d of which were deleted: there is %v", i, keys, gone, ok)
		}
	}
	s.stop()
	return <-s.done
}
