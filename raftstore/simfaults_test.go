package raftstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/internal/faults"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// strike is one thing that goes wrong for a while, and ends. Several can overlap.
type strike struct {
	row  int    // of the fault matrix
	name string // unique
	// size is the cluster's in TestFaultMatrix; 3 if 0.
	size int
	run  func(s *sim)
	// fires are kinds of faults that must have struck, moves says that the
	// leadership must have moved: else the test shows nothing.
	fires []faults.Kind
	moves bool
	// keeps says that the leadership must not move, in a cluster where nothing else
	// happens; refuses that writes must have been refused for lack of space.
	keeps, refuses bool
	// alone keeps it out of the random histories.
	alone bool
}

// strikes is the fault matrix, as far as virtual time can play it.
var strikes = []strike{
	{row: 1, name: "kill-leader", moves: true, run: func(s *sim) { s.kill(s.between(0, 3*time.Second), s.leader()) }},
	{row: 1, name: "kill-one", run: func(s *sim) { s.kill(s.between(0, 3*time.Second), s.random()) }},
	{row: 1, name: "kill-minority", size: 5, run: func(s *sim) { s.kill(s.between(0, 5*time.Second), s.minority()...) }},
	{row: 1, name: "kill-all", moves: true, run: func(s *sim) { s.kill(s.between(0, time.Second), s.peers()...) }},
	{row: 2, name: "power-loss", moves: true, fires: []faults.Kind{faults.DiskSlow}, run: func(s *sim) {
		// With writes under way, whose fate nobody knows.
		undo := s.set(faults.Fault{Kind: faults.DiskSlow, Delay: 100 * time.Millisecond, Jitter: 300 * time.Millisecond}, s.peers()...)
		s.sleep(2 * time.Second)
		s.kill(s.between(0, time.Second), s.peers()...)
		undo()
	}},
	{row: 3, name: "pause-leader", fires: []faults.Kind{faults.Pause}, run: func(s *sim) { s.pause(s.leader()) }},
	{row: 3, name: "pause-one", fires: []faults.Kind{faults.Pause}, run: func(s *sim) { s.pause(s.random()) }},
	{row: 4, name: "partition-leader", moves: true, fires: []faults.Kind{faults.Cut}, run: func(s *sim) { s.partition(s.leader()) }},
	{row: 4, name: "partition-leader-and-one", size: 5, moves: true, fires: []faults.Kind{faults.Cut}, run: func(s *sim) {
		leader := s.leader()
		s.partition(leader, s.others(leader)[s.intN(len(s.peers())-1)])
	}},
	{row: 4, name: "partition-follower", keeps: true, fires: []faults.Kind{faults.Cut}, run: func(s *sim) { s.partition(s.follower()) }},
	{row: 4, name: "partition-minority", fires: []faults.Kind{faults.Cut}, run: func(s *sim) { s.partition(s.minority()...) }},
	{row: 4, name: "bridge", size: 5, fires: []faults.Kind{faults.Cut}, run: func(s *sim) {
		// Two halves that see each other only through one peer.
		order := slices.Clone(s.peers())
		s.shuffle(order)
		var undo []func()
		for _, p := range order[:len(order)/2] {
			for _, q := range order[len(order)/2+1:] {
				undo = append(undo, s.cut(p, q, faults.Both))
			}
		}
		s.sleep(10 * time.Second)
		all(undo)
	}},
	{row: 5, name: "leader-only-sends", fires: []faults.Kind{faults.Cut}, run: func(s *sim) { s.oneWay(s.leader(), faults.In) }},
	{row: 5, name: "leader-only-receives", moves: true, fires: []faults.Kind{faults.Cut}, run: func(s *sim) { s.oneWay(s.leader(), faults.Out) }},
	{row: 5, name: "follower-only-sends", keeps: true, fires: []faults.Kind{faults.Cut}, run: func(s *sim) { s.oneWay(s.follower(), faults.In) }},
	{row: 5, name: "one-only-sends", fires: []faults.Kind{faults.Cut}, run: func(s *sim) { s.oneWay(s.random(), faults.In) }},
	{row: 5, name: "one-only-receives", fires: []faults.Kind{faults.Cut}, run: func(s *sim) { s.oneWay(s.random(), faults.Out) }},
	{row: 5, name: "link-one-way", fires: []faults.Kind{faults.Cut}, run: func(s *sim) {
		p := s.leader()
		undo := s.cut(p, s.others(p)[0], faults.Direction(s.choose("in", "out")))
		s.sleep(10 * time.Second)
		undo()
	}},
	{row: 6, name: "flap", fires: []faults.Kind{faults.Flap}, run: func(s *sim) {
		undo := s.set(faults.Fault{Kind: faults.Flap, Period: s.between(200*time.Millisecond, 3*time.Second)}, s.random())
		s.sleep(15 * time.Second)
		undo()
	}},
	{row: 7, name: "slow-links", fires: []faults.Kind{faults.Delay}, run: func(s *sim) {
		undo := s.set(faults.Fault{Kind: faults.Delay, Direction: faults.Out, Delay: 25 * time.Millisecond, Jitter: s.between(10*time.Millisecond, 100*time.Millisecond)}, s.peers()...)
		s.sleep(10 * time.Second)
		undo()
	}},
	{row: 7, name: "lossy-links", fires: []faults.Kind{faults.Drop}, run: func(s *sim) {
		undo := s.set(faults.Fault{Kind: faults.Drop, Rate: 0.1}, s.peers()...)
		s.sleep(10 * time.Second)
		undo()
	}},
	{row: 8, name: "slow-disk-leader", fires: []faults.Kind{faults.DiskSlow}, run: func(s *sim) { s.slowDisk(s.leader()) }},
	{row: 8, name: "slow-disk-one", fires: []faults.Kind{faults.DiskSlow}, run: func(s *sim) { s.slowDisk(s.random()) }},
	{row: 8, name: "slow-disks", fires: []faults.Kind{faults.DiskSlow}, run: func(s *sim) { s.slowDisk(s.peers()...) }},
	{row: 9, name: "hang-disk-leader", moves: true, fires: []faults.Kind{faults.DiskHang}, run: func(s *sim) { s.diskDies(faults.Fault{Kind: faults.DiskHang}, s.leader()) }},
	{row: 9, name: "hang-disk-one", fires: []faults.Kind{faults.DiskHang}, run: func(s *sim) { s.diskDies(faults.Fault{Kind: faults.DiskHang}, s.random()) }},
	{row: 10, name: "fail-disk-leader", moves: true, fires: []faults.Kind{faults.DiskFail}, run: func(s *sim) { s.diskDies(faults.Fault{Kind: faults.DiskFail, Times: 1}, s.leader()) }},
	{row: 10, name: "fail-disk-one", fires: []faults.Kind{faults.DiskFail}, run: func(s *sim) { s.diskDies(faults.Fault{Kind: faults.DiskFail, Times: 1}, s.random()) }},
	{row: 10, name: "fail-snapshots", fires: []faults.Kind{faults.DiskFail}, run: func(s *sim) {
		undo := s.set(faults.Fault{Kind: faults.DiskFail, Part: faults.Snapshots}, s.random())
		s.sleep(20 * time.Second)
		undo()
	}},
	{row: 11, name: "full-disk-leader", moves: true, fires: []faults.Kind{faults.DiskFull}, run: func(s *sim) { s.diskDies(faults.Fault{Kind: faults.DiskFull}, s.leader()) }},
	{row: 11, name: "low-space-leader", moves: true, run: func(s *sim) {
		undo := s.fill(s.leader())
		s.sleep(20 * time.Second)
		undo()
	}},
	{row: 11, name: "low-space-all", refuses: true, run: func(s *sim) {
		undo := s.fill(s.peers()...)
		s.sleep(10 * time.Second)
		p := s.random()
		ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		defer cancel()
		if err := s.write(ctx, p.ID, p.Store, raftstore.Txn{Then: []raftstore.Op{raftstore.DeletePrefix("k/0")}}); errors.Is(err, raftstore.ErrNoSpace) {
			s.h.Violate("P9: a delete on %s, which would make room: %v", p.ID, err)
		}
		undo()
	}},
	// A snapshot that changes on the way to a peer. Files are sealed: TestBitFlips and
	// TestDirectoryDamage flip bits there.
	{row: 12, name: "flip-snapshot", alone: true, run: func(s *sim) {
		p := s.follower()
		var undo []func()
		for _, q := range s.others(p) {
			undo = append(undo, s.cut(p, q, faults.Both))
		}
		time.Sleep(15 * time.Second) // the log is cut under it
		for _, q := range s.others(p) {
			if !q.Disk.FlipSnapshot(s.intN(1 << 20)) {
				s.h.Violate("P11: %s has no snapshot", q.ID)
			}
		}
		all(undo)
	}},
	{row: 14, name: "snapshot-install", fires: []faults.Kind{faults.Cut}, run: func(s *sim) {
		// Long enough for the log to be cut under it.
		p := s.random()
		s.partitionFor(15*time.Second, p)
		s.sleep(100 * time.Millisecond)
		s.kill(s.between(0, time.Second), p) // in the middle of catching up
	}},
	{row: 15, name: "replace-one", run: func(s *sim) { s.replace(s.random()) }},
	{row: 15, name: "remove-leader", moves: true, run: func(s *sim) { s.replace(s.leader()) }},
	{row: 15, name: "replace-in-partition", fires: []faults.Kind{faults.Cut}, run: func(s *sim) {
		far := s.minority()
		var parts sync.WaitGroup
		parts.Go(func() { s.partition(far...) })
		time.Sleep(s.between(0, 3*time.Second)) // before, or after, the others have a leader
		s.replace(far[0])
		parts.Wait()
	}},
	{row: 15, name: "grow-and-shrink", run: func(s *sim) {
		s.membership <- struct{}{}
		defer func() { <-s.membership }()
		if len(s.peers()) > 5 {
			return
		}
		for range 2 {
			s.join()
		}
		s.sleep(5 * time.Second)
		for range 2 {
			s.leave(s.random())
		}
	}},
	{row: 16, name: "transfer", moves: true, run: func(s *sim) {
		p := s.leader()
		var undo func()
		if s.intN(2) == 0 {
			undo = s.cut(p, s.others(p)[0], faults.Both)
		}
		ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
		defer cancel()
		_ = p.Store.TransferLeadership(ctx, "") // it may fail: others may lead by then
		s.sleep(time.Second)
		if undo != nil {
			undo()
		}
	}},
	{row: 17, name: "clocks", fires: []faults.Kind{faults.Clock}, run: func(s *sim) {
		var undo []func()
		for _, p := range s.peers() {
			offset := s.between(-87600*time.Hour, 87600*time.Hour)
			undo = append(undo, s.set(faults.Fault{Kind: faults.Clock, Offset: offset, Drift: 0.1}, p))
		}
		s.sleep(5 * time.Second)
		if s.intN(2) == 0 {
			s.kill(time.Second, s.leader())
		}
		all(undo)
	}},
}

// TestFaultMatrix plays each row of the fault matrix by itself, three times over, and
// once under the race detector.
func TestFaultMatrix(t *testing.T) {
	times := 3
	if raceEnabled {
		times = 1
	}
	for i, x := range strikes {
		t.Run(fmt.Sprintf("row=%d/%s", x.row, x.name), func(t *testing.T) {
			var total simTotal
			terms := 0
			simulate(t, uint64(1000+i), max(3, x.size), &total, func(s *sim) {
				s.sleep(2 * time.Second)
				before := s.c.Leaderships()
				for range times {
					x.run(s)
					s.sleep(5 * time.Second)
				}
				terms = s.c.Leaderships() - before
			})
			total.report(t)
			for _, kind := range x.fires {
				if total.fired[kind] == 0 {
					t.Errorf("P11: no fault of kind %s has struck: %v", kind, total.fired)
				}
			}
			if x.moves && terms == 0 {
				t.Error("P11: the leadership has not moved")
			}
			if x.refuses && total.noSpace == 0 {
				t.Error("P11: no write was refused for lack of space")
			}
			if x.keeps && terms > 0 {
				t.Errorf("the leadership has moved %d times, for no reason", terms)
			}
			if total.stats.Acked < 30 || total.stats.Reads < 30 || total.stats.Events < 30 {
				t.Errorf("P11: too little happened: %+v", total.stats)
			}
		})
	}
}

// strike runs n random faults at once.
func (s *sim) strike(n int) {
	var running sync.WaitGroup
	for range n {
		x := strikes[s.intN(len(strikes))]
		for x.alone {
			x = strikes[s.intN(len(strikes))]
		}
		s.h.Note("strike %s", x.name)
		running.Go(func() { x.run(s) })
		s.mu.Lock()
		s.total.strikes++
		s.mu.Unlock()
	}
	running.Wait()
}

// The nemesis's chances; several strikes draw them at once.

func (s *sim) intN(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.IntN(n)
}

func (s *sim) choose(of ...string) string { return of[s.intN(len(of))] }

func (s *sim) between(a, b time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return a + time.Duration(s.r.Int64N(int64(b-a)))
}

func (s *sim) shuffle(peers []*storetest.Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.r.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
}

// sleep lets up to d of virtual time pass, half of it at least.
func (s *sim) sleep(d time.Duration) { time.Sleep(s.between(d/2, d)) }

func all(undo []func()) {
	for _, fn := range undo {
		fn()
	}
}

func (s *sim) random() *storetest.Peer {
	peers := s.peers()
	return peers[s.intN(len(peers))]
}

func (s *sim) minority() []*storetest.Peer {
	order := slices.Clone(s.peers())
	s.shuffle(order)
	return order[:(len(order)-1)/2]
}

// leader returns a peer that leads in its own eyes; any, after a while without one.
func (s *sim) leader() *storetest.Peer {
	for range 5000 {
		s.mu.Lock()
		var leads *storetest.Peer
		newest := uint64(0)
		for _, p := range s.members {
			if id, term := p.Store.Leader(); id == p.ID && term > newest && p.Up() {
				leads, newest = p, term
			}
		}
		s.mu.Unlock()
		if leads != nil {
			return leads
		}
		time.Sleep(time.Millisecond)
	}
	return s.random()
}

func (s *sim) follower() *storetest.Peer {
	others := s.others(s.leader())
	return others[s.intN(len(others))]
}

// set puts f in force on peers, under a name of its own.
func (s *sim) set(f faults.Fault, peers ...*storetest.Peer) (undo func()) {
	s.mu.Lock()
	s.names++
	name := fmt.Sprintf("f%d", s.names)
	s.mu.Unlock()
	for _, p := range peers {
		s.h.Note("%s: set %s %s", p.ID, name, f)
		p.Set(name, f)
	}
	return func() {
		for _, p := range peers {
			s.h.Note("%s: clear %s", p.ID, name)
			p.Faults.Clear(name)
		}
	}
}

func (s *sim) cut(p, q *storetest.Peer, dir faults.Direction) (undo func()) {
	return s.set(faults.Fault{Kind: faults.Cut, Peer: q.ID, Direction: dir}, p)
}

func (s *sim) partition(some ...*storetest.Peer) { s.partitionFor(10*time.Second, some...) }

func (s *sim) partitionFor(d time.Duration, some ...*storetest.Peer) {
	var undo []func()
	for _, p := range some {
		for _, q := range s.peers() {
			if !slices.Contains(some, q) {
				undo = append(undo, s.cut(p, q, faults.Both))
			}
		}
	}
	s.sleep(d)
	all(undo)
}

func (s *sim) oneWay(p *storetest.Peer, lost faults.Direction) {
	undo := s.set(faults.Fault{Kind: faults.Cut, Direction: lost}, p)
	s.sleep(10 * time.Second)
	undo()
}

// pause holds a peer's network and disk for less than what ends the process, which
// a real pause would not.
func (s *sim) pause(p *storetest.Peer) {
	undo := s.set(faults.Fault{Kind: faults.Pause}, p)
	time.Sleep(s.between(200*time.Millisecond, 8*time.Second))
	undo()
	s.revive(p) // another fault may have held its disk for longer
}

func (s *sim) slowDisk(peers ...*storetest.Peer) {
	delay := []time.Duration{10 * time.Millisecond, 100 * time.Millisecond, time.Second, 3 * time.Second}[s.intN(4)]
	undo := s.set(faults.Fault{Kind: faults.DiskSlow, Delay: delay, Jitter: delay}, peers...)
	s.sleep(10 * time.Second)
	undo()
	for _, p := range peers {
		s.revive(p)
	}
}

// fill leaves hardly any room on peers' disks.
func (s *sim) fill(peers ...*storetest.Peer) (undo func()) {
	free := func(bytes int64) {
		s.mu.Lock() // a kill takes the disk's place
		defer s.mu.Unlock()
		for _, p := range peers {
			p.Disk.SetFree(bytes)
		}
	}
	s.h.Note("%d disks are full", len(peers))
	free(1 << 20)
	return func() {
		s.h.Note("%d disks have room", len(peers))
		free(1 << 39)
	}
}

// replace has a new peer join, and then p leave.
func (s *sim) replace(p *storetest.Peer) {
	s.membership <- struct{}{}
	defer func() { <-s.membership }()
	if !slices.Contains(s.peers(), p) {
		return
	}
	s.join()
	s.leave(p)
}

// changePatience is for how long a change of members is tried while things go wrong.
// What is left of it then is done after healing.
const changePatience = 20 * time.Second

// join starts a new peer and makes it a voter.
func (s *sim) join() {
	s.mu.Lock()
	p := s.c.NewPeer()
	p.Run()
	s.leads(p)
	s.members = append(s.members, p)
	s.mu.Unlock()
	s.h.Note("%s: join", p.ID)
	s.unfinished = append(s.unfinished, change{p, false})
	s.change(changePatience)
}

// leave removes p. It must end by itself, if it runs.
func (s *sim) leave(p *storetest.Peer) {
	s.h.Note("%s: leave", p.ID)
	s.unfinished = append(s.unfinished, change{p, true})
	s.change(changePatience)
}

// change is one of the members that is under way.
type change struct {
	p      *storetest.Peer
	leaves bool
}

// change tries what is unfinished, in order. The caller holds membership.
func (s *sim) change(patience time.Duration) (err error) {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	for len(s.unfinished) > 0 {
		c := s.unfinished[0]
		leader := s.leader().Store
		if c.leaves {
			err = leader.RemovePeer(ctx, c.p.ID)
		} else {
			err = leader.AddPeer(ctx, c.p.ID, c.p.ID)
		}
		if err == nil {
			s.h.Note("%s: leaves: %v: done", c.p.ID, c.leaves)
			s.unfinished = s.unfinished[1:]
			if c.leaves {
				s.gone(c.p)
			}
			continue
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
	return nil
}

// gone sees a peer that was removed off.
func (s *sim) gone(p *storetest.Peer) {
	s.mu.Lock()
	s.members = slices.DeleteFunc(s.members, func(q *storetest.Peer) bool { return q == p })
	s.mu.Unlock()
	time.Sleep(time.Second) // it may yet hear of it
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Up() {
		p.Kill()
	}
	p.Faults.Clear()
}

// diskDies puts a fault on a disk that must end the process, sees that it does, and
// starts another after repair.
func (s *sim) diskDies(f faults.Fault, p *storetest.Peer) {
	undo := s.set(f, p)
	s.sleep(30 * time.Second)
	undo()
	s.revive(p)
}

// kill ends processes at once, and starts them again after a while.
func (s *sim) kill(away time.Duration, peers ...*storetest.Peer) {
	s.mu.Lock()
	var killed []*storetest.Peer
	for _, p := range peers {
		if p.Up() {
			s.h.Note("%s: kill", p.ID)
			p.Kill()
			s.kills++
			killed = append(killed, p)
		}
	}
	s.mu.Unlock()
	time.Sleep(away)
	for _, p := range killed {
		s.revive(p)
	}
}

// revive starts a peer's process if there is none, or one that has given up.
func (s *sim) revive(p *storetest.Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.members, p) {
		return // removed meanwhile
	}
	if p.Up() {
		select {
		case err := <-p.Ended():
			s.h.Note("%s: ended: %v", p.ID, err)
			p.Kill()
		default:
			return
		}
	}
	s.h.Note("%s: start", p.ID)
	p.Restart()
	s.leads(p)
}
