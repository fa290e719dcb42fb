package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

func write(t testing.TB, s *raftstore.Store, key, value string) raftstore.Revision {
	t.Helper()
	res, err := s.Txn(t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Put(key, []byte(value))}})
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return res.Revision
}

// restored returns a running store made of a backup.
func restored(t *testing.T, backup []byte) (*raftstore.Store, raftstore.Restored) {
	t.Helper()
	disk := storetest.NewDisk()
	addr, transport := raft.NewInmemTransport("")
	made, err := raftstore.Restore(bytes.NewReader(backup), raftstore.RestoreOptions{
		Storage: disk.Storage(), ID: "r1", ClusterID: "test", Address: string(addr),
	})
	if err != nil {
		t.Fatal(err)
	}
	store, err := raftstore.New(raftstore.Config{
		ID: "r1", ClusterID: "test", Address: string(addr), Transport: transport, Storage: disk.Storage(),
	})
	if err != nil {
		t.Fatal(err)
	}
	runStore(t, store)
	return store, made
}

func runStore(t *testing.T, store *raftstore.Store) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// TestBackupUnderLoad: a backup taken through a follower, while all peers write, has
// everything that was acknowledged before it began, at one revision; the cluster
// that is restored from it goes on above every revision of the old one, and ends
// the watches of that time.
func TestBackupUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		follower := c.Others(leader)[0]

		ctx, stop := context.WithCancel(t.Context())
		written := make(chan int)
		for w, p := range c.Peers {
			go func() {
				n := 0
				for ; ctx.Err() == nil; n++ {
					// Two keys at once, always equal: a backup must not part them.
					value := []byte(fmt.Sprint(n))
					_, _ = p.Store.Txn(ctx, raftstore.Txn{Then: []raftstore.Op{
						raftstore.Put(fmt.Sprintf("a/%d", w), value), raftstore.Put(fmt.Sprintf("b/%d", w), value),
					}})
				}
				written <- n
			}()
		}
		time.Sleep(time.Second)
		before := write(t, leader.Store, "before", "acknowledged")
		var file bytes.Buffer
		info, err := follower.Store.Backup(t.Context(), &file)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		last := write(t, leader.Store, "after", "too late")
		stop()
		for range c.Peers {
			if n := <-written; n < 10 {
				t.Errorf("a writer came to %d writes: the load was none", n)
			}
		}
		if info.Revision < before || info.Revision >= last || info.Size != int64(file.Len()) || info.Peer != follower.ID || info.Incarnation != 1 {
			t.Errorf("backup %+v of %d bytes, want a revision in [%d, %d)", info, file.Len(), before, last)
		}
		read, err := raftstore.ReadBackup(bytes.NewReader(file.Bytes()))
		if err != nil || read != info {
			t.Errorf("read %+v, %v; want %+v", read, err, info)
		}

		store, made := restored(t, file.Bytes())
		view, err := store.Sync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if made.Revision != info.Revision+raftstore.RevisionGap || view.Revision() != made.Revision || made.Incarnation <= 1 || store.Incarnation() != made.Incarnation {
			t.Errorf("restored as %+v, at revision %d in incarnation %d", made, view.Revision(), store.Incarnation())
		}
		if _, term := store.Leader(); term < info.Term+1000 {
			t.Errorf("it leads in term %d, which the old cluster may have reached after its term %d", term, info.Term)
		}
		if kv, ok := view.Get("before"); !ok || string(kv.Value) != "acknowledged" || kv.Mod != before {
			t.Errorf("what was acknowledged before is %+v, %v", kv, ok)
		}
		if _, ok := view.Get("after"); ok {
			t.Error("what came after the backup is in it")
		}
		for w := range c.Peers {
			a, okA := view.Get(fmt.Sprintf("a/%d", w))
			b, okB := view.Get(fmt.Sprintf("b/%d", w))
			if !okA || !okB || !bytes.Equal(a.Value, b.Value) || a.Mod != b.Mod {
				t.Errorf("writer %d: %q at %d, %q at %d: a transaction was cut in two", w, a.Value, a.Mod, b.Value, b.Mod)
			}
		}
		// Watches and reads of the old world, from before the backup and from after
		// it, learn that they must list again.
		for _, old := range []raftstore.Revision{before, info.Revision, last, last + 1000} {
			_, _, _, err := store.Watch("", old).Poll()
			if !errors.Is(err, raftstore.ErrCompacted) {
				t.Errorf("a watch from revision %d of the old cluster: %v, want ErrCompacted", old, err)
			}
			if _, err := store.ViewAt(old); !errors.Is(err, raftstore.ErrCompacted) {
				t.Errorf("a read at revision %d of the old cluster: %v, want ErrCompacted", old, err)
			}
		}
		// A list and a watch from there go on.
		watch := store.Watch("", view.Revision())
		if rev := write(t, store, "new", "1"); rev != made.Revision+1 {
			t.Errorf("first write at revision %d, want %d", rev, made.Revision+1)
		}
		events, _, err := watch.Next(t.Context())
		if err != nil || len(events) != 1 || events[0].Key != "new" {
			t.Errorf("watch from the restored revision: %+v, %v", events, err)
		}
	})
}

// TestBackupNeedsMajority: a peer that is cut off gives no backup that may lack what
// others acknowledged, unless it is told to.
func TestBackupNeedsMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		write(t, leader.Store, "a", "1")
		lost := c.Others(leader)[0]
		if _, err := lost.Store.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.Cut([]*storetest.Peer{lost}, c.Others(lost))
		time.Sleep(5 * time.Second)
		var file bytes.Buffer
		if info, err := lost.Store.Backup(t.Context(), &file); !errors.Is(err, raftstore.ErrNoLeader) || file.Len() > 0 {
			t.Errorf("backup without a majority: %+v, %v, %d bytes; want ErrNoLeader and none", info, err, file.Len())
		}
		if info, err := lost.Store.PinLocal().Write(t.Context(), &file); err != nil || info.Keys != 1 {
			t.Errorf("local backup: %+v, %v", info, err)
		}
		c.Heal()
	})
}

// TestDamagedBackup: no byte of a backup can change, nor its end be lost, without
// being noticed, and nothing is made of such a file.
func TestDamagedBackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.New(t)
		for i := range 5 {
			write(t, store, fmt.Sprintf("k/%d", i), strings.Repeat("v", i*10))
		}
		var file bytes.Buffer
		if _, err := store.Backup(t.Context(), &file); err != nil {
			t.Fatal(err)
		}
		whole := file.Bytes()
		for i := range whole {
			bad := bytes.Clone(whole)
			bad[i] ^= 0x10
			if _, err := raftstore.ReadBackup(bytes.NewReader(bad)); !errors.Is(err, raftstore.ErrBadBackup) {
				t.Fatalf("byte %d of %d changed: %v, want ErrBadBackup", i, len(whole), err)
			}
			if _, err := raftstore.ReadBackup(bytes.NewReader(whole[:i])); !errors.Is(err, raftstore.ErrBadBackup) {
				t.Fatalf("cut at byte %d of %d: %v, want ErrBadBackup", i, len(whole), err)
			}
		}
		if _, err := raftstore.ReadBackup(bytes.NewReader(append(bytes.Clone(whole), 0))); !errors.Is(err, raftstore.ErrBadBackup) {
			t.Errorf("a byte more: %v, want ErrBadBackup", err)
		}
		disk := storetest.NewDisk()
		_, err := raftstore.Restore(bytes.NewReader(whole[:len(whole)-1]), raftstore.RestoreOptions{Storage: disk.Storage(), ID: "r1", ClusterID: "test", Address: "r1"})
		if !errors.Is(err, raftstore.ErrBadBackup) || len(disk.Snapshots()) != 0 {
			t.Errorf("restore of a damaged backup: %v, %d snapshots; want ErrBadBackup and none", err, len(disk.Snapshots()))
		}
	})
}
