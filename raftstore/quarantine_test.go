package raftstore_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestCorruptMemoryIsQuarantined is row 13 of the fault matrix: a value is flipped in
// one peer's memory, where no log knows of it. Within 10 s of the next write, of
// another key, that peer says so, serves nothing and does not lead; the others go
// on; a restart heals it.
func TestCorruptMemoryIsQuarantined(t *testing.T) {
	for _, victimLeads := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := storetest.NewCluster(t, 3)
			victim := c.WaitLeader()
			if !victimLeads {
				victim = c.Others(victim)[0]
			}
			write(t, victim.Store, "precious", "right")
			view, err := victim.Store.Sync(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
			if err := victim.Store.Refusal(); err != nil {
				t.Fatalf("quarantined while all was well: %v", err)
			}
			if err := victim.Faults.Flip("precious"); err != nil {
				t.Fatal(err)
			}
			if kv, _ := view.Get("precious"); string(kv.Value) == "right" {
				t.Fatal("the fault plane did not flip a bit")
			}

			write(t, victim.Store, "other", "1")
			begin := time.Now()
			select {
			case <-victim.Store.Refused():
			case <-time.After(time.Minute):
				t.Fatal("not noticed within a minute")
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("noticed after %v, want at most 10 s", took)
			}
			if _, err := victim.Store.Sync(t.Context()); !errors.Is(err, raftstore.ErrQuarantined) {
				t.Errorf("a read on the corrupt peer: %v, want ErrQuarantined", err)
			}
			if _, err := victim.Store.Txn(t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Put("x", nil)}}); !errors.Is(err, raftstore.ErrQuarantined) {
				t.Errorf("a write on the corrupt peer: %v, want ErrQuarantined", err)
			}
			if alarms := strings.Join(victim.Store.Status().Alarms, "; "); !strings.Contains(alarms, "quarantined: ") {
				t.Errorf("alarms: %q", alarms)
			}
			time.Sleep(5 * time.Second)
			leader := c.WaitLeader(c.Others(victim)...)
			if leader == victim {
				t.Fatal("the corrupt peer leads")
			}
			write(t, leader.Store, "after", "1")
			for _, p := range c.Others(victim) {
				if err := p.Store.Refusal(); err != nil {
					t.Errorf("peer %s, which is sound: %v", p.ID, err)
				}
			}
			// Its log and its vote still count.
			other := c.Others(victim)[0]
			if other == leader {
				other = c.Others(victim)[1]
			}
			other.Kill()
			<-other.Ended()
			write(t, leader.Store, "still", "a majority")

			victim.Kill()
			<-victim.Ended()
			victim.Restart()
			view, err = victim.Store.Sync(t.Context())
			if err != nil {
				t.Fatalf("after a restart: %v", err)
			}
			if kv, _ := view.Get("precious"); string(kv.Value) != "right" {
				t.Errorf("after a restart precious is %q", kv.Value)
			}
		})
	}
}

// TestDivergedReplicaIsQuarantined: a replica whose state differs from the others',
// though it is sound by itself, is found by the check in the log; also when it leads,
// and so is the one whose hash all others differ from.
func TestDivergedReplicaIsQuarantined(t *testing.T) {
	for _, victimLeads := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := storetest.NewCluster(t, 3)
			victim := c.WaitLeader()
			if !victimLeads {
				victim = c.Others(victim)[0]
			}
			write(t, victim.Store, "a", "1")
			time.Sleep(20 * time.Second)
			if err := victim.Faults.Diverge(); err != nil {
				t.Fatal(err)
			}
			write(t, c.Others(victim)[0].Store, "a", "2")
			begin := time.Now()
			select {
			case <-victim.Store.Refused():
			case <-time.After(time.Minute):
				t.Fatal("not noticed within a minute")
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("noticed after %v, want at most 10 s", took)
			}
			if err := victim.Store.Refusal(); !errors.Is(err, raftstore.ErrQuarantined) || !strings.Contains(err.Error(), "the majority has") {
				t.Errorf("refusal: %v", err)
			}
			time.Sleep(5 * time.Second)
			write(t, c.WaitLeader(c.Others(victim)...).Store, "a", "3")
			for _, p := range c.Others(victim) {
				if err := p.Store.Refusal(); err != nil {
					t.Errorf("peer %s, which is sound: %v", p.ID, err)
				}
				if alarms := strings.Join(p.Store.Status().Alarms, "; "); !strings.Contains(alarms, "diverged: peers ["+victim.ID+"] have another state") {
					t.Errorf("alarms of %s: %q", p.ID, alarms)
				}
			}
			// A restart heals it, and the others see that.
			victim.Kill()
			<-victim.Ended()
			victim.Restart()
			time.Sleep(20 * time.Second)
			for _, p := range c.Peers {
				if alarms := p.Store.Status().Alarms; len(alarms) > 0 {
					t.Errorf("alarms of %s once all are equal: %q", p.ID, alarms)
				}
			}
		})
	}
}

// TestIdleClusterChecksOnce: after the last change one check follows, and then none.
func TestIdleClusterChecksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var checks atomic.Int64
		c := storetest.NewCluster(t, 3, raftstore.Unhurried, raftstore.OnApply(func(id string, entries []*raft.Log, _ *mvcc.Root) {
			for _, entry := range entries {
				var cmd raftv1.Command
				if entry.Type == raft.LogCommand && proto.Unmarshal(entry.Data, &cmd) == nil && cmd.GetHashCheck() != nil && id == "p1" {
					checks.Add(1)
				}
			}
		}))
		leader := c.WaitLeader()
		time.Sleep(time.Minute)
		checks.Store(0)
		write(t, leader.Store, "a", "1")
		time.Sleep(time.Hour)
		if n := checks.Load(); n != 1 {
			t.Errorf("%d checks in the hour after the last change, want one", n)
		}
	})
}
