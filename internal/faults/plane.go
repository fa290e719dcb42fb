package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Plane holds the faults in force. All methods are safe for concurrent use, and all
// but Set may be called on nil, on which nothing ever fails.
type Plane struct {
	state atomic.Pointer[state]
	// active is whether any fault is set: the one thing that is looked at while
	// all is well.
	active atomic.Bool

	mu     sync.Mutex // of changes to state, and of what follows
	rand   *rand.Rand
	fired  map[Kind]int64
	memory Memory
}

// Memory is a store's state in memory, of which no log knows.
type Memory interface {
	// Flip flips a bit of key's value, as failing memory does.
	Flip(key string) error
	// Diverge makes the state another one than the log says, as a bug in applying
	// entries would: one that no client can see.
	Diverge() error
}

// state is the faults at one moment.
type state struct {
	list    []*active     // by name
	changed chan struct{} // closed when there is another state
}

// active is a fault that is set.
type active struct {
	Fault
	name  string
	since time.Time
	hits  atomic.Int64
}

// Active is a fault in force.
type Active struct {
	Name  string
	Fault Fault
	Since time.Time
	// Hits counts what it has struck: messages held, delayed or lost, writes,
	// readings of the clock.
	Hits int64
}

// New returns a plane without faults, whose chances follow seed.
func New(seed uint64) *Plane {
	p := &Plane{rand: rand.New(rand.NewPCG(seed, 0x666c74)), fired: make(map[Kind]int64)}
	p.state.Store(&state{changed: make(chan struct{})})
	return p
}

// Set puts f in force under name, in the place of what has that name. It fails if f
// makes no sense.
func (p *Plane) Set(name string, f Fault) error {
	if err := f.check(); err != nil {
		return err
	}
	if name == "" || strings.ContainsAny(name, " \t\n") {
		return fmt.Errorf("fault %s: %q is no name: use letters, digits and dashes", f.Kind, name)
	}
	p.change(func(list []*active) []*active {
		list = append(list, &active{Fault: f, name: name, since: time.Now()})
		slices.SortFunc(list, func(a, b *active) int { return strings.Compare(a.name, b.name) })
		return list
	}, func(a *active) bool { return a.name == name })
	return nil
}

// Clear ends the faults with these names, and all if there are none. Unknown names
// are no error. What they held back goes on.
func (p *Plane) Clear(names ...string) {
	if p == nil {
		return
	}
	p.change(func(list []*active) []*active { return list }, func(a *active) bool {
		return len(names) == 0 || slices.Contains(names, a.name)
	})
}

func (p *Plane) change(add func([]*active) []*active, remove func(*active) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.state.Load()
	list := add(slices.DeleteFunc(slices.Clone(old.list), remove))
	p.active.Store(len(list) > 0)
	p.state.Store(&state{list: list, changed: make(chan struct{})})
	close(old.changed)
}

// List returns the faults in force, by name.
func (p *Plane) List() (list []Active) {
	if p == nil {
		return nil
	}
	for _, a := range p.state.Load().list {
		list = append(list, Active{Name: a.name, Fault: a.Fault, Since: a.since, Hits: a.hits.Load()})
	}
	return list
}

// Fired returns how often faults of each kind have struck, those that are cleared
// included. A test that wants a fault looks here whether it had one.
func (p *Plane) Fired() map[Kind]int64 {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.fired)
}

// Attach lets the plane change a store's memory, until another is attached.
func (p *Plane) Attach(m Memory) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.memory = m
}

// Flip flips a bit of key's value in the attached store's memory, once.
func (p *Plane) Flip(key string) error {
	return p.spoil(MemoryFlip, func(m Memory) error { return m.Flip(key) })
}

// Diverge makes the attached store's state another one than its log says, once.
func (p *Plane) Diverge() error { return p.spoil(MemoryDiverge, Memory.Diverge) }

func (p *Plane) spoil(kind Kind, do func(Memory) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.memory == nil {
		return errors.New("this process has no store whose memory could be changed")
	}
	if err := do(p.memory); err != nil {
		return err
	}
	p.fired[kind]++
	return nil
}

// Paused reports whether a pause is in force.
func (p *Plane) Paused() bool {
	return p != nil && p.active.Load() && slices.ContainsFunc(p.state.Load().list, func(a *active) bool { return a.Kind == Pause })
}

func (p *Plane) hit(a *active) {
	a.hits.Add(1)
	p.mu.Lock()
	p.fired[a.Kind]++
	p.mu.Unlock()
}

func (p *Plane) chance() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rand.Float64()
}

func (p *Plane) between(delay, jitter time.Duration) time.Duration {
	return delay + time.Duration(p.chance()*float64(jitter))
}

// held says whether something in st stops messages now, what, and when that may end
// by itself (0: not before st changes).
func (st *state) held(dir Direction, names []string) (by *active, flips time.Duration) {
	for _, a := range st.list {
		switch a.Kind {
		case Pause:
			return a, 0
		case Cut:
			if a.matches(dir, names) {
				return a, 0
			}
		case Flap:
			if !a.matches(dir, names) {
				continue
			}
			if left := a.Period/2 - time.Since(a.since)%a.Period; left > 0 {
				by, flips = a, max(flips, left)
			}
		}
	}
	return by, flips
}

// retransmit is after how long a lost part of a stream is sent again, as TCP does.
const retransmit = 200 * time.Millisecond

// delay returns what a message of n bytes loses on its way, beyond what holds it.
func (p *Plane) delay(st *state, dir Direction, names []string, n int) (wait, serial time.Duration) {
	for _, a := range st.list {
		if a.Kind != Delay && a.Kind != Drop || !a.matches(dir, names) {
			continue
		}
		switch a.Kind {
		case Delay:
			p.hit(a)
			wait += p.between(a.Delay, a.Jitter)
			if a.Bandwidth > 0 {
				serial = max(serial, time.Duration(float64(n)/float64(a.Bandwidth)*float64(time.Second)))
			}
		case Drop:
			for backoff := retransmit; backoff < time.Minute && p.chance() < a.Rate; backoff *= 2 {
				p.hit(a)
				wait += backoff
			}
		}
	}
	return wait, serial
}

// Pass returns when a message of a stream to or from peer has got past the faults,
// or with the cause of ctx's end. For transports that have no connections, as in
// simulations; connections are wrapped by Dial and Listener.
func (p *Plane) Pass(ctx context.Context, peer string, dir Direction) error {
	if p == nil || !p.active.Load() {
		return nil
	}
	names := []string{peer}
	if err := p.hold(ctx.Done(), dir, names); err != nil {
		return context.Cause(ctx)
	}
	wait, _ := p.delay(p.state.Load(), dir, names, 0)
	if !sleep(ctx.Done(), wait) {
		return context.Cause(ctx)
	}
	return nil
}

var errGivenUp = errors.New("given up")

// hold returns when nothing holds back messages, or an error when done is closed
// before.
func (p *Plane) hold(done <-chan struct{}, dir Direction, names []string) error {
	for struck := (*active)(nil); ; {
		st := p.state.Load()
		by, flips := st.held(dir, names)
		if by == nil {
			return nil
		}
		if by != struck { // once for each fault, not for each look
			p.hit(by)
			struck = by
		}
		if !wait(done, st.changed, flips) {
			return errGivenUp
		}
	}
}

// wait returns true when changed is closed or flips, unless 0, have passed; false
// when done is closed.
func wait(done, changed <-chan struct{}, flips time.Duration) bool {
	var flip <-chan time.Time
	if flips > 0 {
		timer := time.NewTimer(flips)
		defer timer.Stop()
		flip = timer.C
	}
	select {
	case <-changed:
		return true
	case <-flip:
		return true
	case <-done:
		return false
	}
}

func sleep(done <-chan struct{}, d time.Duration) bool {
	return d <= 0 || wait(done, nil, d)
}

// Packet says what becomes of a datagram to or from an end that goes by any of
// names: it vanishes, or is late.
func (p *Plane) Packet(dir Direction, names ...string) (lost bool, late time.Duration) {
	if p == nil || !p.active.Load() {
		return false, 0
	}
	st := p.state.Load()
	if by, _ := st.held(dir, names); by != nil {
		p.hit(by)
		return true, 0
	}
	for _, a := range st.list {
		if !a.matches(dir, names) {
			continue
		}
		switch a.Kind {
		case Drop:
			if p.chance() < a.Rate {
				p.hit(a)
				return true, 0
			}
		case Delay:
			p.hit(a)
			late += p.between(a.Delay, a.Jitter)
		}
	}
	return false, late
}

// Write runs fn, which writes to part of the disk and syncs it, as far as the faults
// let it. It returns fn's error, or one that a disk would give: a *fs.PathError with
// EIO or ENOSPC. A write that fails with EIO may have happened.
func (p *Plane) Write(part Part, fn func() error) error {
	if p == nil || !p.active.Load() {
		return fn()
	}
	for struck := map[*active]bool{}; ; {
		st := p.state.Load()
		again := false
		for _, a := range st.list {
			if a.Part != "" && a.Part != part {
				continue
			}
			switch a.Kind {
			case Pause, DiskHang:
				if !struck[a] {
					p.hit(a)
					struck[a] = true
				}
				again = true
			case DiskSlow:
				if !struck[a] {
					p.hit(a)
					struck[a] = true
					time.Sleep(p.between(a.Delay, a.Jitter))
				}
			case DiskFull:
				p.hit(a)
				return &fs.PathError{Op: "write", Path: string(part), Err: syscall.ENOSPC}
			case DiskFail:
				if a.Times > 0 && a.hits.Load() >= a.Times {
					continue
				}
				p.hit(a)
				if p.chance() < 0.5 {
					_ = fn() // it has landed, but nobody can know
				}
				return &fs.PathError{Op: "sync", Path: string(part), Err: syscall.EIO}
			}
		}
		if !again {
			return fn()
		}
		<-st.changed
	}
}

// FreeSpace returns what a look at the disk's free space shows: free, or 0 while a
// disk is full.
func (p *Plane) FreeSpace(free uint64) uint64 {
	if p != nil && p.active.Load() {
		for _, a := range p.state.Load().list {
			if a.Kind == DiskFull {
				p.hit(a)
				return 0
			}
		}
	}
	return free
}

// Now returns the wall clock's time. It is for time stamps: it may jump, and has no
// monotonic reading while a clock fault is in force. Timers use package time.
func (p *Plane) Now() time.Time {
	now := time.Now()
	if p == nil || !p.active.Load() {
		return now
	}
	for _, a := range p.state.Load().list {
		if a.Kind == Clock {
			p.hit(a)
			drifted := time.Duration(a.Drift * float64(time.Since(a.since)))
			now = now.Round(0).Add(a.Offset + drifted)
		}
	}
	return now
}
