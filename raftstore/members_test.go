package raftstore_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// peerInfo returns what at knows of the peer called id; it has no id for a stranger.
func peerInfo(at *storetest.Peer, id string) raftstore.PeerInfo {
	for _, p := range at.Store.Status().Peers {
		if p.ID == id {
			return p
		}
	}
	return raftstore.PeerInfo{}
}

// wantEnd waits for a peer's store to end with an error.
func wantEnd(t *testing.T, p *storetest.Peer, want error) {
	t.Helper()
	select {
	case err := <-p.Ended():
		if !errors.Is(err, want) {
			t.Errorf("%s ended with %v, want: %v", p.ID, err, want)
		}
	case <-time.After(time.Minute):
		t.Errorf("%s goes on, want its end: %v", p.ID, want)
	}
}

// TestWipedVoter covers the peer that comes back with an empty disk. It has forgotten
// an acknowledged write, and would vote for somebody who never had it: with two of
// three votes the write would be gone.
func TestWipedVoter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		wiped, behind := c.Others(leader)[0], c.Others(leader)[1]
		mustTxn(t, leader.Store, put("k", "old"))
		waitEqual(t, c.Peers)

		c.Cut([]*storetest.Peer{behind}, c.Others(behind))
		mustTxn(t, leader.Store, put("k", "acknowledged")) // by the leader and wiped
		leader.Kill()
		wiped.Kill()
		wiped.Disk = storetest.NewDisk()
		wiped.Restart()
		c.Heal()
		wantEnd(t, wiped, raftstore.ErrForeignDisk)
		time.Sleep(time.Minute)
		if id, _ := behind.Store.Leader(); id != "" {
			t.Errorf("%s leads with the vote of a peer that has forgotten everything", id)
		}
		// Again and again, as whoever supervises the process does.
		wiped.Kill()
		wiped.Restart()
		leader.Restart()
		if got := mustRead(t, behind.Store, "k"); got != "acknowledged" {
			t.Errorf("k is %q: an acknowledged write is lost", got)
		}
		wantEnd(t, wiped, raftstore.ErrForeignDisk)
		// Nor is it let in by asking, neither as it was nor once it is removed.
		now := c.WaitLeader(leader, behind)
		empty := raftstore.Joiner{ID: wiped.ID, Address: wiped.ID, Instance: wiped.Store.Instance()}
		if err := now.Store.Admit(t.Context(), empty); !errors.Is(err, raftstore.ErrForeignDisk) {
			t.Errorf("the wiped peer asks to be let in: %v, want ErrForeignDisk", err)
		}
		if err := now.Store.RemovePeer(t.Context(), wiped.ID); err != nil {
			t.Fatal(err)
		}
		if err := now.Store.Admit(t.Context(), empty); !errors.Is(err, raftstore.ErrPeerRemoved) {
			t.Errorf("the wiped peer asks after its removal: %v, want ErrPeerRemoved", err)
		}
		mustTxn(t, behind.Store, put("k", "two are enough"))
	})
}

// TestWipedVoterAcknowledges covers the other half: a leader of the past must not
// commit with the help of a voter that has forgotten the election of the next.
func TestWipedVoterAcknowledges(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		old := c.WaitLeader()
		rest := c.Others(old)
		// The old leader is cut off; the others elect one of themselves and write.
		// What the old one does not learn of in time is that it leads no more.
		c.Cut([]*storetest.Peer{old}, rest)
		now := c.WaitLeader(rest...)
		wiped := rest[0]
		if wiped == now {
			wiped = rest[1]
		}
		mustTxn(t, now.Store, put("k", "acknowledged"))
		now.Kill()
		wiped.Kill()
		wiped.Disk = storetest.NewDisk()
		wiped.Restart()
		c.Heal()
		wantEnd(t, wiped, raftstore.ErrForeignDisk)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := old.Store.Txn(ctx, put("k", "split")); err == nil {
			t.Error("a write was committed with the vote of a wiped disk")
		}
		now.Restart()
		if got := mustRead(t, old.Store, "k"); got != "acknowledged" {
			t.Errorf("k is %q: an acknowledged write is lost", got)
		}
		wiped.Kill()
	})
}

// TestRemovedPeerStaysOut covers a peer that is removed while it is away: it learns
// of it, and its id is never used again, not by a new leader nor after a restart of
// everything from snapshots.
func TestRemovedPeerStaysOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3, func(cfg *raftstore.Config) {
			cfg.SnapshotBytes, cfg.TrailingBytes = 1<<10, 1
			raftstore.CutLogAt(4)(cfg)
		})
		leader := c.WaitLeader()
		gone, stays := c.Others(leader)[0], c.Others(leader)[1]
		c.Cut([]*storetest.Peer{gone}, c.Others(gone))
		if err := leader.Store.RemovePeer(t.Context(), gone.ID); err != nil {
			t.Fatal(err)
		}
		c.Heal()
		wantEnd(t, gone, raftstore.ErrPeerRemoved) // its own log does not tell it
		gone.Kill()
		for range 50 {
			mustTxn(t, stays.Store, put("k", "0123456789012345678901234567890123456789"))
		}
		for _, p := range []*storetest.Peer{leader, stays} {
			p.Kill()
			if len(p.Disk.Snapshots()) == 0 {
				t.Error("no snapshot: this test shows less than it should")
			}
		}
		leader.Restart()
		stays.Restart()
		gone.Disk = storetest.NewDisk()
		gone.Restart()
		now := c.WaitLeader(leader, stays)
		if _, err := now.Store.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := now.Store.AddPeer(t.Context(), gone.ID, gone.ID); !errors.Is(err, raftstore.ErrPeerRemoved) {
			t.Errorf("add of a removed id: %v, want ErrPeerRemoved", err)
		}
		// A machine that takes another name is welcome.
		fresh := c.NewPeer()
		fresh.Run()
		if err := now.Store.AddPeer(t.Context(), fresh.ID, fresh.ID); err != nil {
			t.Error(err)
		}
	})
}

// roles lists the members as at sees them: "p1* p2 p3 l:p4", the leader with a star.
func roles(at *storetest.Peer) string {
	var words []string
	for _, p := range at.Store.Status().Peers {
		word := p.ID
		if !p.Voter {
			word = "l:" + word
		}
		if p.Leader {
			word += "*"
		}
		words = append(words, word)
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func wantRoles(t *testing.T, at *storetest.Peer, want string) {
	t.Helper()
	if got := strings.ReplaceAll(roles(at), "*", ""); got != want {
		t.Errorf("the members are %s, want %s", got, want)
	}
}

// admit makes a running peer a learner.
func admit(t *testing.T, c *storetest.Cluster, leader *storetest.Peer, learner bool) *storetest.Peer {
	t.Helper()
	p := c.NewPeer()
	p.Run()
	if err := leader.Store.Admit(t.Context(), raftstore.Joiner{ID: p.ID, Address: p.ID, Learner: learner}); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAutopilot covers a cluster that grows by itself to odd numbers of voters, and
// that replaces a dead peer once, and only when, somebody can take its place.
func TestAutopilot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var gossiped atomic.Bool
		c := storetest.NewCluster(t, 1, func(cfg *raftstore.Config) {
			cfg.DeadAfter = time.Minute
			cfg.Alive = func(string) bool { return gossiped.Load() }
		})
		settle := func() { time.Sleep(30 * time.Second) }
		for _, want := range []string{"p1 p2", "p1 p2 p3", "l:p4 p1 p2 p3", "p1 p2 p3 p4 p5"} {
			admit(t, c, c.WaitLeader(), false)
			if now := roles(c.WaitLeader()); !strings.Contains(now, "l:") {
				t.Errorf("a new peer votes at once: %s", now)
			}
			settle()
			wantRoles(t, c.WaitLeader(), want)
		}
		if notes := c.WaitLeader().Store.Status().Notes; len(notes) > 0 {
			t.Errorf("five healthy voters, and the autopilot says %v", notes)
		}

		dead := c.Others(c.WaitLeader())[0]
		dead.Kill()
		rest := c.Others(dead)
		gossiped.Store(true) // raft's way to it is cut, but it lives
		leader := c.WaitLeader(rest...)
		pinned := admit(t, c, leader, true)
		time.Sleep(3 * time.Minute)
		if p := peerInfo(leader, dead.ID); !p.Voter {
			t.Error("a peer that gossip sees alive was removed")
		}
		gossiped.Store(false)
		settle()
		if p := peerInfo(leader, dead.ID); !p.Voter {
			t.Error("a dead peer was removed without a replacement")
		}
		if alarms := leader.Store.Status().Alarms; len(alarms) != 1 || !strings.Contains(alarms[0], "dead-peer: no answer from "+dead.ID) {
			t.Errorf("the alarms are %q", alarms)
		}
		if p := peerInfo(leader, pinned.ID); p.Voter {
			t.Error("the autopilot promotes whom somebody wished to be a learner")
		}
		fresh := admit(t, c, leader, false)
		settle()
		leader = c.WaitLeader(rest...)
		if p := peerInfo(leader, fresh.ID); !p.Voter {
			t.Errorf("the new peer does not take the dead one's place: %s; %v", roles(leader), leader.Store.Status().Notes)
		}
		if p := peerInfo(leader, dead.ID); p.ID != "" {
			t.Errorf("the dead peer is a member yet: %s", roles(leader))
		}
		if alarms := leader.Store.Status().Alarms; len(alarms) != 0 {
			t.Errorf("the alarm stays: %q", alarms)
		}
		dead.Restart() // too late
		wantEnd(t, dead, raftstore.ErrPeerRemoved)
		mustTxn(t, leader.Store, put("k", "v"))
	})
}

// TestDeadMeansSilentToThisLeader: a new leader knows nothing of the past.
func TestDeadMeansSilentToThisLeader(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 4, func(cfg *raftstore.Config) { cfg.DeadAfter = time.Minute })
		leader := c.WaitLeader()
		dead := c.Others(leader)[0]
		dead.Kill()
		time.Sleep(50 * time.Second)
		if err := leader.Store.TransferLeadership(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Second)
		now := c.WaitLeader(c.Others(dead)...)
		if now == leader {
			t.Fatal("the leadership did not move")
		}
		if p := peerInfo(now, dead.ID); p.ID == "" {
			t.Error("removed after 50 s of this leader's")
		}
		time.Sleep(20 * time.Second)
		wantRoles(t, now, strings.ReplaceAll("p1 p2 p3 p4", dead.ID+" ", ""))
	})
}

// TestInterruptedRemoval covers a leader that dies between the two steps of a removal.
// The peer that is to go still has its vote, and may even be the only one fit to
// lead; the removal is finished as soon as it can be.
func TestInterruptedRemoval(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		going, behind := c.Others(leader)[0], c.Others(leader)[1]
		c.Cut([]*storetest.Peer{behind}, c.Others(behind))
		mustTxn(t, leader.Store, put("system/peers/removed/"+going.ID, "{}"))
		mustTxn(t, leader.Store, put("k", "known to two"))
		time.Sleep(100 * time.Millisecond) // going hears that it is committed
		leader.Kill()
		c.Heal()
		if now := c.WaitLeader(going, behind); now != going {
			t.Fatalf("%s leads without the newest entry", now.ID)
		}
		if got := mustRead(t, behind.Store, "k"); got != "known to two" {
			t.Errorf("k is %q", got)
		}
		leader.Restart()
		wantEnd(t, going, raftstore.ErrPeerRemoved)
		wantRoles(t, c.WaitLeader(leader, behind), strings.ReplaceAll("p1 p2 p3", going.ID+" ", ""))
	})
}

// TestDemoteAndReplace covers the changes that people ask for, and what is refused.
func TestDemoteAndReplace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		a, b := c.Others(leader)[0], c.Others(leader)[1]
		s := leader.Store
		if err := s.DemotePeer(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if p := peerInfo(leader, a.ID); p.Voter || p.ID == "" {
			t.Errorf("the demoted peer is %+v, want a learner that stays one", p)
		}
		if err := s.TransferLeadership(t.Context(), a.ID); err == nil || !strings.Contains(err.Error(), "learner") {
			t.Errorf("a learner is to lead: %v", err)
		}
		if err := s.PromotePeer(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{s.PromotePeer(t.Context(), "p9"), s.DemotePeer(t.Context(), "p9"), s.ReplacePeer(t.Context(), a.ID, "p9"), s.TransferLeadership(t.Context(), "p9")} {
			if !errors.Is(err, raftstore.ErrNoPeer) {
				t.Errorf("%v, want ErrNoPeer", err)
			}
		}
		fourth := admit(t, c, leader, true)
		if err := s.ReplacePeer(t.Context(), leader.ID, fourth.ID); err == nil || !strings.Contains(err.Error(), "transfer") {
			t.Errorf("the leader replaces itself: %v", err)
		}
		for range 2 { // again does no harm
			if err := s.ReplacePeer(t.Context(), a.ID, fourth.ID); err != nil {
				t.Fatal(err)
			}
		}
		wantEnd(t, a, raftstore.ErrPeerRemoved)
		if got := strings.Fields(roles(leader)); len(got) != 3 || !peerInfo(leader, fourth.ID).Voter {
			t.Errorf("the members are %v", got)
		}
		if err := s.TransferLeadership(t.Context(), fourth.ID); err != nil {
			t.Fatal(err)
		}
		if now := c.WaitLeader(leader, b, fourth); now != fourth {
			t.Errorf("%s leads, want %s", now.ID, fourth.ID)
		}
		b.Kill()
		for what, err := range map[string]error{
			"demote":   fourth.Store.DemotePeer(t.Context(), leader.ID),
			"remove":   fourth.Store.RemovePeer(t.Context(), leader.ID),
			"transfer": fourth.Store.TransferLeadership(t.Context(), b.ID),
		} {
			if err == nil {
				t.Errorf("%s worked with one of three voters dead", what)
			}
		}
	})
}

// TestChangeDuringPartition covers a leader that is cut off while it changes the
// members: it says within its deadline that it does not know, the others may change
// them otherwise, and there are never two quorums.
func TestChangeDuringPartition(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 4)
		old := c.WaitLeader()
		rest := c.Others(old)
		fifth := admit(t, c, old, true)
		near := rest[0]
		// The old leader keeps one voter and the newcomer: of the four voters there
		// are two on each side, until a change makes more of one.
		minority := []*storetest.Peer{old, near, fifth}
		c.Cut(minority, rest[1:])
		begin := time.Now()
		err := old.Store.AddPeer(t.Context(), fifth.ID, fifth.ID)
		if err == nil || time.Since(begin) > 25*time.Second {
			t.Errorf("a change without a quorum: %v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		if err := old.Store.RemovePeer(ctx, rest[1].ID); err == nil {
			t.Error("the side without a quorum removes the other")
		}
		if _, err := old.Store.Txn(ctx, put("k", "split")); err == nil {
			t.Error("two of four voters wrote")
		}
		c.Heal()
		now := c.WaitLeader()
		mustTxn(t, now.Store, put("k", "healed"))
		waitEqual(t, c.Peers)
		if err := now.Store.AddPeer(t.Context(), fifth.ID, fifth.ID); err != nil {
			t.Fatal(err)
		}
		wantRoles(t, now, "p1 p2 p3 p4 p5")
	})
}
