package raftstore_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-io/holdfast/internal/faults"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// ended waits for the end of a peer's process and returns why.
func ended(t *testing.T, p *storetest.Peer) error {
	t.Helper()
	select {
	case err := <-p.Ended():
		return err
	case <-time.After(30 * time.Second):
		t.Fatalf("peer %s still runs", p.ID)
		return nil
	}
}

// recoverOn gives up the majority and goes on with p alone.
func recoverOn(t *testing.T, p *storetest.Peer) (incarnation uint64) {
	t.Helper()
	v := p.Store.Vitals()
	next, err := p.Store.Recover(raftstore.Seen{Incarnation: v.Incarnation, Term: v.Term}, v.LastTerm, v.LastIndex)
	if err != nil {
		t.Fatal(err)
	}
	if err := ended(t, p); !errors.Is(err, raftstore.ErrRestart) {
		t.Fatalf("the peer that recovers ended with %v, want ErrRestart", err)
	}
	p.Kill()
	p.Restart()
	return next
}

// TestRecoverFencesTheOldMajority is row 20 of the fault matrix: two of three peers
// are given up, the third goes on alone. When the two return, a majority of what
// they remember, they can acknowledge nothing, serve no linearizable read, and
// become part of the new incarnation once they begin anew. Revisions and terms never
// go back. The survivor may be far away from the two, whose votes reach each other
// first.
func TestRecoverFencesTheOldMajority(t *testing.T) {
	for _, far := range []time.Duration{0, 100 * time.Millisecond} {
		t.Run(far.String(), func(t *testing.T) { recoverFences(t, far) })
	}
}

func recoverFences(t *testing.T, far time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		leader := c.WaitLeader()
		survivor := c.Others(leader)[0]
		gone := c.Others(survivor)
		known := write(t, leader.Store, "known", "to all")
		if _, err := survivor.Store.WaitRevision(t.Context(), known); err != nil {
			t.Fatal(err)
		}
		// What the two acknowledge without the third is what will be lost.
		c.Cut([]*storetest.Peer{survivor}, gone)
		lost := write(t, leader.Store, "lost", "with the majority")
		_, oldTerm := leader.Store.Leader()
		for _, p := range gone {
			p.Kill()
			<-p.Ended()
		}
		c.Heal()
		time.Sleep(5 * time.Second)
		if _, err := survivor.Store.Sync(t.Context()); !errors.Is(err, raftstore.ErrNoLeader) {
			t.Fatalf("without a majority: %v, want ErrNoLeader", err)
		}

		next := recoverOn(t, survivor)
		view, err := survivor.Store.Sync(t.Context())
		if err != nil {
			t.Fatalf("the survivor does not serve: %v", err)
		}
		if view.Revision() < known+raftstore.RevisionGap || survivor.Store.Incarnation() != next {
			t.Errorf("recovered at revision %d in incarnation %d, want at least %d in %d", view.Revision(), survivor.Store.Incarnation(), known+raftstore.RevisionGap, next)
		}
		if _, term := survivor.Store.Leader(); term <= oldTerm {
			t.Errorf("term %d after the recovery, %d before", term, oldTerm)
		}
		if _, ok := view.Get("known"); !ok {
			t.Error("what the survivor had is gone")
		}
		if _, _, _, err := survivor.Store.Watch("", lost).Poll(); !errors.Is(err, raftstore.ErrCompacted) {
			t.Errorf("a watch of the old world: %v, want ErrCompacted", err)
		}
		after := write(t, survivor.Store, "after", "the recovery")

		// The dead return, both at once.
		if far > 0 {
			survivor.Set("far", faults.Fault{Kind: faults.Delay, Delay: far})
		}
		for _, p := range gone {
			p.Restart()
		}
		for _, p := range gone {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if res, err := p.Store.Txn(ctx, raftstore.Txn{Then: []raftstore.Op{raftstore.Put("ghost", nil)}}); err == nil {
				t.Errorf("peer %s of the old incarnation wrote at revision %d", p.ID, res.Revision)
			}
			if view, err := p.Store.Sync(ctx); err == nil {
				t.Errorf("peer %s of the old incarnation served a read at revision %d", p.ID, view.Revision())
			}
			cancel()
			if err := ended(t, p); !errors.Is(err, raftstore.ErrRestart) {
				t.Errorf("peer %s ended with %v, want ErrRestart", p.ID, err)
			}
			if term := p.Store.Vitals().Term; term > oldTerm {
				t.Errorf("peer %s has come to term %d: it learned only after an election", p.ID, term)
			}
		}
		survivor.Faults.Clear("far")
		// They begin anew, as the process does with a directory set aside.
		for _, p := range gone {
			p.Kill()
			p.Disk, p.Incarnation = storetest.NewDisk(), next
			p.Restart()
			if !p.Store.Rejoins() {
				t.Errorf("peer %s does not know that it rejoins", p.ID)
			}
			if err := survivor.Store.AddPeer(t.Context(), p.ID, p.ID); err != nil {
				t.Fatal(err)
			}
			view, err := p.Store.Sync(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := view.Get("after"); !ok || view.Revision() < after {
				t.Errorf("peer %s has rejoined at revision %d without what was written since", p.ID, view.Revision())
			}
			if _, ok := view.Get("ghost"); ok {
				t.Error("the write of an old member is in the new incarnation")
			}
		}
		// And count: the first may go now.
		survivor.Kill()
		<-survivor.Ended()
		if rev := write(t, c.WaitLeader(gone...).Store, "more", "1"); rev <= after {
			t.Errorf("revision %d after %d", rev, after)
		}
	})
}

// TestOldMajorityMeetsTheNewOne: the two return while nobody can tell them that they
// were given up. They elect a leader, who tries to go on with the third as soon as it
// can be reached. That one hears nothing of it: it keeps leading, and what it has; the
// two end.
func TestOldMajorityMeetsTheNewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		survivor := c.Others(c.WaitLeader())[0]
		gone := c.Others(survivor)
		known := write(t, gone[0].Store, "known", "to all")
		if _, err := survivor.Store.WaitRevision(t.Context(), known); err != nil {
			t.Fatal(err)
		}
		for _, p := range gone {
			p.Kill()
			<-p.Ended()
		}
		time.Sleep(5 * time.Second)
		recoverOn(t, survivor)
		after := write(t, survivor.Store, "after", "the recovery")
		_, term := survivor.Store.Leader()

		c.Cut([]*storetest.Peer{survivor}, gone)
		for _, p := range gone {
			p.Restart()
		}
		write(t, c.WaitLeader(gone...).Store, "ghost", "of those who cannot know")
		c.Heal()
		for _, p := range gone {
			if err := ended(t, p); !errors.Is(err, raftstore.ErrRestart) {
				t.Errorf("peer %s ended with %v, want ErrRestart", p.ID, err)
			}
			p.Kill()
		}
		view, err := survivor.Store.Sync(t.Context())
		if err != nil {
			t.Fatalf("the survivor does not serve: %v", err)
		}
		if _, ok := view.Get("after"); !ok || view.Revision() < after {
			t.Errorf("the survivor is at revision %d, without what was acknowledged at %d", view.Revision(), after)
		}
		if _, ok := view.Get("ghost"); ok {
			t.Error("a write of the old majority is in the new incarnation")
		}
		if id, now := survivor.Store.Leader(); id != survivor.ID || now != term {
			t.Errorf("%s leads in term %d; the survivor led in term %d, and nothing was to move it", id, now, term)
		}
	})
}

// TestStaleReaderIsFenced: a member of the old incarnation that was only paused still
// takes the survivor for its leader, and asks it for a read index. The answer is one
// of another log, whose indexes mean other things: it is no evidence, whichever of
// the two is the older, and the older one stops.
func TestStaleReaderIsFenced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var theirs atomic.Uint64
		var reader *storetest.Peer
		c := storetest.NewCluster(t, 3, raftstore.OnSample(func(id string, answer *peerv1.ReadIndexResponse) {
			if n := theirs.Load(); n != 0 && id != reader.ID {
				answer.Incarnation = n
			}
		}))
		reader = c.Others(c.WaitLeader())[0]
		write(t, reader.Store, "a", "1")
		for _, incarnation := range []uint64{0, 7} {
			theirs.Store(incarnation)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := reader.Store.Sync(ctx)
			cancel()
			if (err == nil) != (incarnation == 0) {
				t.Errorf("read with answers of incarnation %d: %v", incarnation, err)
			}
		}
		if err := ended(t, reader); !errors.Is(err, raftstore.ErrRestart) {
			t.Errorf("it ended with %v, want ErrRestart", err)
		}
		reader.Kill()
	})
}

// TestRecoverRefuses: with a leader there is a majority, and what the operator has
// seen must still be so.
func TestRecoverRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, 3)
		p := c.WaitLeader()
		v := p.Store.Vitals()
		if _, err := p.Store.Recover(raftstore.Seen{}, v.LastTerm, v.LastIndex); err == nil {
			t.Error("a leader was made to give up its majority")
		}
		c.Cut([]*storetest.Peer{p}, c.Others(p))
		time.Sleep(5 * time.Second)
		if _, err := p.Store.Recover(raftstore.Seen{}, v.LastTerm, v.LastIndex+1); err == nil {
			t.Error("it recovered with another log than the operator had seen")
		}
		c.Heal()
		write(t, c.WaitLeader().Store, "a", "1")
	})
}
