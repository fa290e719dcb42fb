package deadman

import (
	"time"
)

const (
	// period is how often the dead-man looks at the lease while that lasts, and
	// fencedPeriod while it does not.
	period       = time.Second
	fencedPeriod = 200 * time.Millisecond
	// killPeriod is how soon it kills again what has not died, and killPatience for how
	// long before it freezes what is left.
	killPeriod   = 10 * time.Millisecond
	killPatience = time.Second
	// idleAfter is how long the dead-man stays when there is nothing to watch over.
	idleAfter = time.Minute
)

// Kernel is what can be done to a control group and those below it.
type Kernel interface {
	// Kill sends SIGKILL to all processes and returns how many there were.
	Kill(cgroup string) int
	// Freeze stops all processes, and those that join later, without ending them. It
	// makes the control group if there is none.
	Freeze(cgroup string)
	// Thaw undoes Freeze.
	Thaw(cgroup string)
	// Frozen tells whether the control group is frozen.
	Frozen(cgroup string) bool
}

// Watch is what a dead-man knows. It is not safe for concurrent use.
type Watch struct {
	Kernel Kernel
	// Lease returns until when the lease lasts; an error: there is none.
	Lease func() (time.Duration, error)
	// Cells returns the control groups of the pods to be ended.
	Cells func() []string
	// Seen is told the lease once all that it allows to run may run.
	Seen func(until time.Duration)
	// Leaving makes it stay no longer than there is something to watch over. Optional.
	Leaving func() bool

	over time.Duration // since when the lease is over; 0: it is not
	idle time.Duration // since when there has been nothing to do; 0: there is
}

// Step does what is due at now and returns when the next step is; ok is false when
// there is nothing left to watch over. It reads the lease anew each time.
func (w *Watch) Step(now time.Duration) (next time.Duration, ok bool) {
	cells := w.Cells()
	until, err := w.Lease()
	if err == nil && now < until {
		w.over = 0
		for _, cell := range cells {
			if w.Kernel.Frozen(cell) {
				// What has come in since was started for a lease that is over.
				w.Kernel.Kill(cell)
				w.Kernel.Thaw(cell)
				w.Kernel.Kill(cell)
			}
		}
		w.Seen(until)
		return min(period, until-now), w.busy(len(cells) > 0, now)
	}
	if w.over == 0 {
		w.over = now
	}
	left := false
	for _, cell := range cells {
		switch {
		case w.Kernel.Frozen(cell):
			w.Kernel.Kill(cell) // it dies when it is thawed
		case w.Kernel.Kill(cell) == 0, now-w.over >= killPatience:
			w.Kernel.Freeze(cell)
		default:
			left = true
		}
	}
	if left {
		return killPeriod, w.busy(true, now)
	}
	return fencedPeriod, w.busy(false, now)
}

// busy says whether the dead-man is to stay.
func (w *Watch) busy(is bool, now time.Duration) bool {
	switch {
	case is:
		w.idle = 0
	case w.idle == 0:
		w.idle = now
	}
	return is || now-w.idle < idleAfter && (w.Leaving == nil || !w.Leaving())
}
