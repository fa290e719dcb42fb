//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

// rows is the fault matrix.
var rows = []row{
	{number: 1, name: "kill -9: leader, minority, all", elect: true, play: playKill},
}

// playKill kills the leader again and again, then a follower, then all.
func playKill(ctx context.Context, e *experiment) error {
	end := time.Now().Add(e.opts.seconds)
	for n := 0; n == 0 || time.Now().Before(end); n++ {
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
		sleep(ctx, 4*time.Second)
		e.measure("gap_leader_killed", e.load.since(mark))
		if err := leader.restart(ctx); err != nil {
			return err
		}
		follower := e.others(leader)[n%2]
		if err := follower.kill(); err != nil {
			return err
		}
		e.strike(1, "kill -9 of "+follower.name())
		sleep(ctx, time.Second)
		if err := follower.restart(ctx); err != nil {
			return err
		}
	}
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
	if err := eventually(ctx, liveWithin, "write after the restart of all", func(context.Context) error {
		if e.load.since(mark) == time.Hour {
			return fmt.Errorf("none yet")
		}
		return nil
	}); err != nil {
		return err
	}
	e.measure("gap_all_killed", e.load.since(mark))
	return nil
}
