package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/bench/rig"
)

// large fills a store and measures what it then costs to hold, list, save and
// restart.
func large(ctx context.Context, r *run, c contender) (map[string]float64, rig.Spent, error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute)
	defer cancel()
	s := r.sides[c.side]
	leader, err := s.leader(ctx)
	if err != nil {
		return nil, rig.Spent{}, err
	}
	values := map[string]float64{}
	before := rig.ReadUsage(r.pids())
	if err := fill(ctx, s, c.way, leader, r.scale.keys, 64, payload(1024)); err != nil {
		return nil, rig.Spent{}, err
	}
	used := rig.ReadUsage(r.pids()).Since(before, s.pids(), s.member(leader).PID())
	values["fill s"] = used.Wall.Seconds()
	values["fill rate 1/s"] = float64(r.scale.keys) / used.Wall.Seconds()
	values["fill servers µs/op"] = float64(used.Servers.Microseconds()) / float64(r.scale.keys)
	if err := rig.Pause(ctx, 2*r.scale.measure); err != nil { // collectors, snapshots
		return nil, rig.Spent{}, err
	}
	var most rig.Memory
	for _, pid := range s.pids() {
		m, err := rig.MemoryOf(pid)
		if err != nil {
			return nil, rig.Spent{}, err
		}
		most.RSS, most.Anonymous = max(most.RSS, m.RSS), max(most.Anonymous, m.Anonymous)
	}
	const mib = 1 << 20
	values["memory of a member MiB"] = float64(most.RSS) / mib
	values["anonymous memory MiB"] = float64(most.Anonymous) / mib

	if values["list while writing s"], values["writes meanwhile 1/s"], err = listWhileWriting(ctx, r, s, c, leader); err != nil {
		return values, used, err
	}

	conn, err := s.dial(ctx, c.way, leader)
	if err != nil {
		return values, used, err
	}
	defer conn.close()
	begin := time.Now()
	size, err := conn.backup(ctx)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
	case err != nil:
		return values, used, err
	default:
		values["backup s"] = time.Since(begin).Seconds()
		values["backup MiB"] = float64(size) / mib
	}

	// A member that does not lead, so that the others go on.
	other := (leader + 1) % members
	s.member(other).Stop()
	begin = time.Now()
	if err := s.restart(ctx, other); err != nil {
		return values, used, err
	}
	back, err := s.dial(ctx, c.way, other)
	if err != nil {
		return values, used, err
	}
	defer back.close()
	last := key(int64(r.scale.keys - 1))
	for back.get(ctx, last, true) != nil {
		if err := rig.Pause(ctx, 10*time.Millisecond); err != nil {
			return values, used, err
		}
	}
	values["restart s"] = time.Since(begin).Seconds()
	return values, used, nil
}

// listWhileWriting lists all keys, page by page, while four clients write.
func listWhileWriting(ctx context.Context, r *run, s side, c contender, leader int) (seconds, writes float64, err error) {
	const writers = 4
	conns, done, err := connectAll(ctx, s, c.way, writers+1, leader)
	if err != nil {
		return 0, 0, err
	}
	defer done()
	stop, end := context.WithCancel(ctx)
	defer end()
	var group sync.WaitGroup
	var mu sync.Mutex
	written := 0
	for w, conn := range conns[:writers] {
		group.Go(func() {
			for n := int64(w); stop.Err() == nil; n += writers {
				if conn.put(stop, pair{key(n % int64(r.scale.keys)), payload(1024)}) == nil {
					mu.Lock()
					written++
					mu.Unlock()
				}
			}
		})
	}
	begin := time.Now()
	keys, err := conns[writers].list(ctx, []byte("key-"))
	took := time.Since(begin)
	end()
	group.Wait()
	if err == nil && keys < r.scale.keys {
		err = errors.New("the list is short")
	}
	return took.Seconds(), float64(written) / took.Seconds(), err
}
