package raftstore

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestLeaseTimers plays random grants, keepalives and pauses against the promise: no
// lease ends before its time has passed since it was kept alive last, not counting
// pauses; and without pauses none ends late.
func TestLeaseTimers(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var timers leaseTimers
		var now, pauses time.Duration
		type lease struct{ ttl, renewed, pauses time.Duration }
		alive := map[int64]lease{}
		ended, noted := 0, 0
		timers.start(0)
		for range 600 {
			switch id := 1 + r.Int64N(20); r.IntN(40) {
			case 0: // a pause
				gap := 2*maxLeaseGap + time.Duration(r.Int64N(int64(time.Hour)))
				now, pauses = now+gap, pauses+gap-leaseTick
			case 1, 2, 3:
				ttl := time.Duration(1+r.IntN(30)) * time.Second
				if l, ok := alive[id]; ok {
					ttl = l.ttl
				} else if r.IntN(3) == 0 {
					ttl = time.Hour
				}
				timers.set(id, ttl, now, ttl)
				alive[id] = lease{ttl, now, pauses}
			default:
				now += leaseTick
			}
			over, long := timers.pass(now)
			noted += len(long)
			for _, l := range long {
				if l.ttl <= longLease || !l.checkpointed || l.deadline <= timers.time(now) {
					t.Fatalf("seed %d: checkpoint of a lease of %v", seed, l.ttl)
				}
			}
			for _, l := range over {
				ended++
				is := alive[l.id]
				heard := now - is.renewed - (pauses - is.pauses)
				if heard < is.ttl {
					t.Fatalf("seed %d: a lease of %v ended %v after its keepalive, %v of it in pauses", seed, is.ttl, now-is.renewed, pauses-is.pauses)
				}
				if pauses == is.pauses && heard > is.ttl+2*leaseTick {
					t.Fatalf("seed %d: a lease of %v ended after %v", seed, is.ttl, heard)
				}
				delete(alive, l.id)
				timers.remove(l.id)
			}
			for id, is := range alive {
				if pauses == is.pauses && now-is.renewed > is.ttl+2*leaseTick {
					t.Fatalf("seed %d: lease %d of %v lives yet after %v", seed, id, is.ttl, now-is.renewed)
				}
			}
			if len(timers.byID) != len(alive) || len(timers.due) != len(alive) {
				t.Fatalf("seed %d: %d leases, %d known, %d due", seed, len(alive), len(timers.byID), len(timers.due))
			}
		}
		if ended == 0 {
			t.Fatalf("seed %d: none ended", seed)
		}
	}
}

// TestLeasesEndSlowly: those that end together do so at a bounded rate.
func TestLeasesEndSlowly(t *testing.T) {
	var timers leaseTimers
	timers.start(0)
	for id := range int64(1700) {
		timers.set(id+1, time.Second, 0, time.Second)
	}
	now := time.Duration(0)
	for i, want := range []int{0, 500, 500, 500, 200, 0} {
		now += leaseTick
		if i == 0 {
			now -= leaseTick / 2
		}
		if i == 1 {
			now = time.Second
		}
		if over, _ := timers.pass(now); len(over) != want {
			t.Errorf("tick %d ends %d leases, want %d", i, len(over), want)
		}
	}
}
