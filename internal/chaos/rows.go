//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-io/holdfast/internal/chaos/volatile"
	"github.com/holdfast-io/holdfast/internal/faults"
)

// rows is the fault matrix.
var rows = []row{
	{number: 1, name: "kill -9: leader, follower, all", elect: true, play: playKill},
	{number: 2, name: "power lost: all at once, leader", elect: true, prepare: (*machine).mountVolatile, play: playPowerLoss},
	{number: 3, name: "leader stopped and resumed", elect: true, play: playPause},
	{number: 4, name: "partition: leader, follower, bridge", elect: true, play: playPartition},
	{number: 5, name: "one-way cuts", elect: true, play: playOneWay},
	{number: 6, name: "flapping link of the leader", play: playFlap},
	{number: 7, name: "links of 1 Mbit/s and 50 to 100 ms", play: playSlowLink},
	{number: 8, name: "slow disk: follower, leader", play: playSlowDisk},
	{number: 9, name: "leader's disk hangs", elect: true, play: playHang},
	{number: 10, name: "one failed sync: leader, follower", elect: true, play: playFailedSync},
	{number: 11, name: "disk full: leader, all", prepare: func(m *machine) error { return m.mountSmall(smallDisk) }, play: playFull},
	{number: 12, name: "flipped bits, a lost log, on a follower", play: playRot},
	{number: 13, name: "memory: a flipped bit, a state of its own", elect: true, play: playMemory},
	{number: 14, name: "snapshots sent under load, crash in between", play: playSnapshot},
	{number: 15, name: "members: 3 to 5 to 3, leader removed, replace", elect: true, play: playMembers},
	{number: 16, name: "leadership handed over, also to a stopped peer", elect: true, play: playTransfer},
	{number: 17, name: "wall clocks jump and drift", play: playClock},
	{number: 18, name: "10,000 watchers, some deaf, compaction", play: playWatchers},
	{number: 19, name: "rolling upgrade, and back", elect: true, old: true, play: playUpgrade},
	{number: 20, name: "two of three lost: recover", play: playLoss, after: afterLoss},
	{number: 21, name: "backup, and restore from it", play: playBackup, after: afterBackup},
	{number: 22, name: "gossip cut, raft not", play: playGossip},
	{number: 23, name: "leader gets a tenth of a core", play: playStarve},
	{number: 24, name: "1,000 reconnects", play: playReconnects},
}

// turns calls play with 0, 1, … until the time for faults is over, once at least.
func (e *experiment) turns(ctx context.Context, play func(n int) error) error {
	for end, n := time.Now().Add(e.opts.seconds), 0; n == 0 || time.Now().Before(end); n++ {
		if err := play(n); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// writes demands a write that begins after the mark, and measures when it was done.
func (e *experiment) writes(ctx context.Context, m *mark, within time.Duration, name string) error {
	err := eventually(ctx, within, "write", func(context.Context) error {
		if e.load.since(m) == time.Hour {
			return errors.New("no client was told of one")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	e.measure(name, e.load.since(m))
	return nil
}

// progressWithin is how long writes may stop in any row, on any machine.
const progressWithin = 30 * time.Second

// playKill kills the leader and a follower again and again, then all.
func playKill(ctx context.Context, e *experiment) error {
	err := e.turns(ctx, func(n int) error {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		mark := e.load.mark()
		how := "kill -9 of the leader " + leader.name()
		if n%2 == 0 {
			err = leader.kill()
		} else {
			how = "power cut of the leader " + leader.name()
			err = leader.unplugAndKill(ctx)
		}
		if err != nil {
			return err
		}
		e.strike(1, how)
		if err := e.writes(ctx, mark, progressWithin, "gap_leader_killed"); err != nil {
			return err
		}
		sleep(ctx, time.Second)
		if err := leader.restart(ctx); err != nil {
			return err
		}
		follower := e.others(leader)[n%2]
		if err := follower.kill(); err != nil {
			return err
		}
		e.strike(1, "kill -9 of "+follower.name())
		sleep(ctx, time.Second)
		return follower.restart(ctx)
	})
	if err != nil {
		return err
	}
	return killAll(ctx, e)
}

func killAll(ctx context.Context, e *experiment) error {
	for _, m := range e.all() {
		if err := m.kill(); err != nil {
			return err
		}
	}
	e.strike(len(e.all()), "kill -9 of all")
	mark := e.load.mark()
	if err := e.mend(ctx); err != nil {
		return fmt.Errorf("start all again: %w", err)
	}
	return e.writes(ctx, mark, progressWithin, "gap_all_killed")
}

// playPowerLoss ends all peers at the same moment, while they write, and takes from
// their disks what was not synced; then from one peer's alone.
func playPowerLoss(ctx context.Context, e *experiment) error {
	var lost volatile.Lost
	err := e.turns(ctx, func(n int) error {
		victims, name := e.all(), "gap_power_of_all"
		if n%4 == 3 {
			leader, err := e.leader(ctx)
			if err != nil {
				return err
			}
			victims, name = []*machine{leader}, "gap_power_of_leader"
		}
		mark := e.load.mark()
		for _, m := range victims { // stopped first, so that all die in one moment
			if err := m.pause(); err != nil {
				return err
			}
		}
		for _, m := range victims {
			if err := m.kill(); err != nil {
				return err
			}
			now, err := m.disk.Lose(e.rand)
			if err != nil {
				return err
			}
			lost.Sectors, lost.Files, lost.Names = lost.Sectors+now.Sectors, lost.Files+now.Files, lost.Names+now.Names
		}
		e.strike(len(victims), "loss of power")
		if len(victims) == len(e.all()) {
			mark = e.load.mark() // what was on its way back to a client was acknowledged before
		}
		if err := e.mend(ctx); err != nil {
			return fmt.Errorf("start all again: %w", err)
		}
		if err := e.writes(ctx, mark, progressWithin, name); err != nil {
			return err
		}
		sleep(ctx, time.Second)
		return nil
	})
	e.note("lost with the power: %d sectors of %d files, %d names", lost.Sectors, lost.Files, lost.Names)
	if err == nil && lost.Sectors == 0 {
		e.fail("P11: nothing was lost with the power: all was synced at each moment")
	}
	return err
}

// playPause stops the leader for longer each time, and lets it go on under reads.
func playPause(ctx context.Context, e *experiment) error {
	times := []time.Duration{3 * time.Second, 200 * time.Millisecond, 6 * time.Second, time.Second, 10 * time.Second, 30 * time.Second}
	return e.turns(ctx, func(n int) error {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		d := min(times[n%len(times)], e.opts.seconds)
		mark := e.load.mark()
		if err := leader.pause(); err != nil {
			return err
		}
		e.strike(1, fmt.Sprintf("%s, the leader, stands still for %v", leader.name(), d))
		sleep(ctx, d)
		if err := leader.resume(); err != nil {
			return err
		}
		if err := e.writes(ctx, mark, progressWithin, "gap_leader_stopped"); err != nil {
			return err
		}
		sleep(ctx, time.Second)
		return nil
	})
}

// cut plays one partition for a time and counts the packets that it dropped.
func (e *experiment) cut(ctx context.Context, what string, d time.Duration, apply func() error) error {
	mark := e.load.mark()
	if err := apply(); err != nil {
		return err
	}
	if err := e.writes(ctx, mark, progressWithin, "gap_cut"); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	sleep(ctx, d)
	packets, err := e.heal()
	if err != nil {
		return err
	}
	if packets > 0 {
		e.strike(1, fmt.Sprintf("%s: %d packets dropped", what, packets))
	}
	sleep(ctx, 2*time.Second)
	return nil
}

// playPartition cuts the leader off from all, then a follower, then a follower from
// the leader alone, so that the third sees both.
func playPartition(ctx context.Context, e *experiment) error {
	return e.turns(ctx, func(n int) error {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		rest := e.others(leader)
		switch n % 3 {
		case 0:
			return e.cut(ctx, leader.name()+", the leader, is cut off", 3*time.Second, func() error { return isolate([]*machine{leader}, rest) })
		case 1:
			return e.cut(ctx, leader.name()+", the leader, and "+rest[0].name()+" see each other only through others", 3*time.Second, func() error {
				return isolate([]*machine{leader}, rest[:1])
			})
		}
		return e.cut(ctx, rest[0].name()+", a follower, is cut off", 3*time.Second, func() error { return isolate(rest[:1], e.others(rest[0])) })
	})
}

// playOneWay lets the leader, then a follower, only send, then only receive.
func playOneWay(ctx context.Context, e *experiment) error {
	deaf := func(m *machine) error {
		var blocks []block
		for _, o := range e.others(m) {
			blocks = append(blocks, block{from: o})
		}
		return m.deafen(blocks...)
	}
	mute := func(m *machine) error {
		for _, o := range e.others(m) {
			if err := o.deafen(block{from: m}); err != nil {
				return err
			}
		}
		return nil
	}
	return e.turns(ctx, func(n int) error {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		follower := e.others(leader)[n%2]
		const d = 6 * time.Second
		switch n % 4 {
		case 0:
			return e.cut(ctx, leader.name()+", the leader, can only send", d, func() error { return deaf(leader) })
		case 1:
			return e.cut(ctx, leader.name()+", the leader, can only receive", d, func() error { return mute(leader) })
		case 2:
			return e.cut(ctx, follower.name()+", a follower, can only send", d, func() error { return deaf(follower) })
		}
		return e.cut(ctx, follower.name()+", a follower, can only receive", d, func() error { return mute(follower) })
	})
}

// playFlap cuts a link of the leader again and again.
func playFlap(ctx context.Context, e *experiment) error {
	periods := []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, time.Second, 3 * time.Second}
	before := e.changes.Load()
	flaps := 0
	err := e.turns(ctx, func(n int) error {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		other := e.others(leader)[n%2]
		period, dropped := periods[n%len(periods)], 0
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); flaps++ {
			if err := isolate([]*machine{leader}, []*machine{other}); err != nil {
				return err
			}
			sleep(ctx, period/2)
			packets, err := e.heal()
			if err != nil {
				return err
			}
			dropped += packets
			sleep(ctx, period/2)
		}
		if dropped > 0 {
			e.strike(1, fmt.Sprintf("link between %s and %s flaps every %v: %d packets dropped", leader.name(), other.name(), period, dropped))
		}
		return nil
	})
	e.values = append(e.values, value{"flaps", float64(flaps), "flaps"}, value{"leader_changes", float64(e.changes.Load() - before), "changes"})
	mark := e.load.mark()
	return errors.Join(err, e.writes(ctx, mark, progressWithin, "gap_after_last_flap"))
}

// playSlowLink makes what peers send slow: by a queue in the kernel, and late, in the
// fault plane, since this kernel may have no netem. A follower misses a while of it.
func playSlowLink(ctx context.Context, e *experiment) error {
	before := e.changes.Load()
	for _, m := range e.all() {
		if err := m.slow(125_000); err != nil {
			return err
		}
		for _, o := range e.others(m) {
			if _, err := m.fault(ctx, fmt.Sprintf("set far-%s delay peer=%s delay=25ms jitter=25ms", o.name(), o.name())); err != nil {
				return err
			}
		}
	}
	sleep(ctx, e.opts.seconds/2)
	late := 0
	for _, m := range e.all() {
		late += m.struck(ctx, faults.Delay)
	}
	if late > 0 {
		e.strike(1, fmt.Sprintf("slow links: %d messages late", late))
	}
	leader, err := e.leader(ctx)
	if err != nil {
		return err
	}
	follower := e.others(leader)[0]
	if err := follower.kill(); err != nil {
		return err
	}
	sleep(ctx, e.opts.seconds/4)
	if err := follower.restart(ctx); err != nil {
		return err
	}
	e.strike(1, follower.name()+" comes back over slow links")
	sleep(ctx, e.opts.seconds/4)
	e.values = append(e.values, value{"leader_changes", float64(e.changes.Load() - before), "changes"})
	for _, m := range e.all() {
		if err := m.slow(0); err != nil {
			return err
		}
	}
	return nil
}

// playSlowDisk slows a follower's disk down, and compares; then the leader's.
func playSlowDisk(ctx context.Context, e *experiment) error {
	part := e.opts.seconds / 3
	rate := func() float64 {
		before := e.load.writes.Load()
		sleep(ctx, part)
		return float64(e.load.writes.Load()-before) / part.Seconds()
	}
	healthy := rate()
	leader, err := e.leader(ctx)
	if err != nil {
		return err
	}
	follower := e.others(leader)[0]
	if _, err := follower.fault(ctx, "set slow disk-slow delay=100ms jitter=200ms"); err != nil {
		return err
	}
	slow := rate()
	e.values = append(e.values, value{"writes_healthy", healthy, "1/s"}, value{"writes_slow_follower", slow, "1/s"})
	e.strike(follower.struck(ctx, faults.DiskSlow), "slow disk of "+follower.name())
	if _, err := follower.fault(ctx, "clear"); err != nil {
		return err
	}
	// The leader: slower than its patience.
	mark := e.load.mark()
	if _, err := leader.fault(ctx, "set slow disk-slow delay=4s jitter=6s"); err != nil {
		return err
	}
	sleep(ctx, part)
	e.strike(max(1, leader.struck(ctx, faults.DiskSlow)), "disk of the leader "+leader.name()+" takes 4 to 10 s")
	return e.writes(ctx, mark, progressWithin, "gap_leader_slow")
}

// playHang lets the leader's disk hang for ever: others go on, and its process ends.
func playHang(ctx context.Context, e *experiment) error {
	return e.turns(ctx, func(int) error {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		mark, begin := e.load.mark(), time.Now()
		if _, err := leader.fault(ctx, "set hang disk-hang"); err != nil {
			return err
		}
		if err := e.writes(ctx, mark, progressWithin, "gap_leader_hangs"); err != nil {
			return err
		}
		e.strike(leader.struck(ctx, faults.DiskHang), "disk of the leader "+leader.name()+" hangs")
		if err := leader.ended(ctx, 30*time.Second); err != nil {
			return err
		}
		e.measure("until_process_ended", time.Since(begin))
		return leader.restart(ctx)
	})
}

// playFailedSync lets one write to the disk fail: the process ends, and comes back.
func playFailedSync(ctx context.Context, e *experiment) error {
	return e.turns(ctx, func(n int) error {
		m, err := e.leader(ctx)
		if err != nil {
			return err
		}
		what := "leader"
		if n%2 == 1 {
			m, what = e.others(m)[0], "follower"
		}
		mark, begin := e.load.mark(), time.Now()
		if _, err := m.fault(ctx, "set once disk-fail part=log times=1"); err != nil {
			return err
		}
		if err := m.ended(ctx, 20*time.Second); err != nil {
			return err
		}
		e.strike(1, "a sync of the "+what+" "+m.name()+" has failed, and it has ended") // nothing else ends it
		e.measure("until_process_ended", time.Since(begin))
		if err := e.writes(ctx, mark, progressWithin, "gap_failed_sync"); err != nil {
			return err
		}
		if err := m.restart(ctx); err != nil {
			return err
		}
		sleep(ctx, 2*time.Second)
		return nil
	})
}
