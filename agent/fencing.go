package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/deadman"
	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/object"
)

// Guard keeps the node's lease, and ends fenced pods at its end when the agent does
// not: *deadman.Guard is one.
type Guard interface {
	// Open takes up what was kept in an earlier life of the agent. It is called first.
	Open() error
	// Run runs it until ctx ends; what ends the pods goes on after that.
	Run(ctx context.Context) error
	// Until returns until when the lease lasts, by the clock since the machine's start.
	Until() time.Duration
	// Renew makes it last longer, once it has returned without an error.
	Renew(until time.Duration) error
	// Seen returns until when pods may run as far as the guard knows.
	Seen() time.Duration
	// Watch names a pod to be ended; before the pod's first container.
	Watch(uid string) error
	// Forget takes that back, when nothing is left of the pod.
	Forget(uid string) error
}

const (
	// fencingGrace is how long before the end of the lease the agent begins to stop
	// fenced pods, which is what they have to end well. What is left at the end of the lease is killed.
	fencingGrace = 3 * time.Second
	// seenTimeout bounds how long the start of a fenced pod waits for the guard, and
	// seenPeriod is how often that is asked.
	seenTimeout = 5 * time.Second
	seenPeriod  = 20 * time.Millisecond
)

// fencing is the node's lease as the agent's workers see it.
type fencing struct {
	guard Guard
	clock func() time.Duration // since the machine's start
	log   *slog.Logger
	wake  func() // the workers

	mu sync.Mutex
	// epoch counts the leases that did not follow upon another without a gap; 0: there
	// has been none in this life of the agent.
	epoch   int
	renewed chan struct{} // closed when the lease was renewed
}

func newFencing(guard Guard, clock func() time.Duration, log *slog.Logger) *fencing {
	return &fencing{guard: guard, clock: clock, log: log, renewed: make(chan struct{})}
}

// granted takes in that the leader has granted the heartbeat that was sent at sentAt.
func (f *fencing) granted(sentAt time.Duration) {
	if f.renew(sentAt) {
		f.wake()
	}
}

// renew is granted; anew is true if the lease does not follow upon another.
func (f *fencing) renew(sentAt time.Duration) (anew bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, until, now := f.guard.Until(), sentAt+object.FencingTerm, f.clock()
	if until <= before || until <= now || sentAt > now {
		return false // nothing new, or of another start of the machine
	}
	anew = f.epoch == 0 || now >= before-fencingGrace // pods were stopped, or may have been
	if err := f.guard.Renew(until); err != nil {
		f.log.Error("the lease was granted but cannot be kept; fenced pods end with the old one", "error", err)
		return false
	}
	if anew {
		f.epoch++
	}
	close(f.renewed)
	f.renewed = make(chan struct{})
	return anew
}

// age returns how long ago the heartbeat was sent that was granted last; 0 if none was
// in this life of the agent.
func (f *fencing) age() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.epoch == 0 {
		return 0
	}
	return max(f.clock()-(f.guard.Until()-object.FencingTerm), 0)
}

// lease returns what the decision about a fenced pod needs.
func (f *fencing) lease() *podLease {
	f.mu.Lock()
	defer f.mu.Unlock()
	left := f.guard.Until() - f.clock()
	return &podLease{Until: time.Now().Add(left), Epoch: f.epoch}
}

// run wakes the workers when the lease is about to end, and when there is one again.
func (f *fencing) run(ctx context.Context) error {
	ended := true
	for {
		f.mu.Lock()
		renewed := f.renewed
		left := f.guard.Until() - f.clock() - fencingGrace
		f.mu.Unlock()
		if has := left > 0; has == ended {
			ended = !has
			if ended {
				f.log.Warn("the node's lease was not renewed in time: fenced pods are stopped")
			}
			f.wake()
		}
		var end <-chan time.Time
		if !ended {
			end = time.After(left)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-renewed:
		case <-end:
		}
	}
}

// allow returns nil if a fenced pod may be started: the guard watches over it, and a
// quorum says that it is to run here. A pod that was replaced while the node had no
// lease is not started again however old the agent's news are.
func (w *worker) allow(ctx context.Context) error {
	f := w.p.fencing
	if err := f.guard.Watch(w.uid); err != nil {
		return err
	}
	sctx, cancel := context.WithTimeout(ctx, seenTimeout)
	defer cancel()
	for f.guard.Seen() <= f.clock() {
		select {
		case <-sctx.Done():
			return fmt.Errorf("no dead-man watches over the pod: %w", context.Cause(sctx))
		case <-time.After(seenPeriod):
		}
	}
	err := w.p.confirm(ctx, w.uid)
	switch err {
	case errWanted:
		return nil
	case nil:
		return fmt.Errorf("a quorum of the peers says that the pod is not to run here")
	default:
		return err
	}
}

// podLease is the node's lease as far as a fenced pod is concerned.
type podLease struct {
	Until time.Time
	Epoch int // as in fencing
}

// ends returns when the pod is to be stopped.
func (l *podLease) ends() time.Time { return l.Until.Add(-fencingGrace) }

// fenced reports whether a pod may run under the node's lease only.
func fenced(pod *corev1.Pod, static bool) bool {
	return pod != nil && !static && object.Fenced(pod)
}

// nextFenced stops what runs of a fenced pod without a lease, before all else. ok is
// false if there is nothing to stop.
func nextFenced(in podInput, now time.Time) (a action, ok bool) {
	if in.Lease == nil || now.Before(in.Lease.ends()) {
		return action{}, false
	}
	var alive []runtime.ContainerID
	var wait action
	for _, id := range aliveIn(in) {
		if c := in.Memory.Containers[id.Name]; c != nil {
			if again, ok := c.Start.wait(now); ok { // stopping it has failed
				wait = again
				continue
			}
		}
		alive = append(alive, id)
	}
	switch {
	case len(alive) > 0:
		a = stop(in, firstToStop(in.Pod, alive), in.Lease.Until, "the node's lease was not renewed, and the pod is fenced")
		a.Then = thenRestart
		return a, true
	case wait.Kind != "":
		return wait, true
	default:
		return action{}, false
	}
}

// nextAllowed is asked before a container of a pod is started. ok is true if there is
// something to do, or to wait for, before.
func nextAllowed(in podInput, now time.Time) (a action, ok bool) {
	m := in.Memory
	switch {
	case in.Lease == nil:
		return action{}, false
	case in.Lease.Epoch == 0, !now.Before(in.Lease.ends()):
		return action{Kind: doWait, Why: "the node has no lease"}, true // woken when it has
	case m.Allowed == in.Lease.Epoch:
		return action{}, false
	}
	if wait, ok := m.Allow.wait(now); ok {
		return wait, true
	}
	return action{Kind: doAllow, Attempt: in.Lease.Epoch, Why: "the pod is fenced"}, true
}

// newGuard returns the guard of an agent that was given none: the lease in a file, and,
// if the runtime's containers are processes, a dead-man beside the agent.
func newGuard(dir, bootID string, rt runtime.Runtime, log *slog.Logger) Guard {
	cfg := deadman.Config{Dir: dir, BootID: bootID, Logger: log}
	if groups, ok := rt.(runtime.Cgroups); ok {
		cfg.Program = func() (string, error) { return groups.InstallProgram(deadman.Name) }
		cfg.Cgroup, cfg.CgroupOf = groups.NodeCgroup()+"/deadman", groups.PodCgroup
	}
	return deadman.New(cfg)
}
