package controllers

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// maxCommits bounds the transactions under way. The store puts those that
	// wait for one flush into one log entry, so more of them cost little.
	maxCommits = 64
	// maxTurn bounds the plans between two looks at the clock, the health of
	// nodes and the results of commits.
	maxTurn = 200
)

// controller is one kind of reconciliation: which keys a change concerns, and
// what to do about a key.
type controller struct {
	name string
	// all returns every key to look at when the leadership begins, and again
	// when the watch has lost events.
	all func(s state) []object.Key
	// affected returns the keys that a change may concern. Too many are
	// harmless, one too few is a bug.
	affected func(x *index, c change) []object.Key
	// plan decides about one key. It is pure but for fresh uids and names.
	plan func(s state, key object.Key, now time.Time) outcome
	// delay is how long a change may wait for others that the same look answers.
	delay time.Duration

	queue *queue
}

// runner is the loop around all plans. Everything in it but the commits happens
// on the goroutine of run, so neither index nor queues need a lock, and no two
// plans run at once.
type runner struct {
	leader      *raftstore.Leader
	events      Events
	log         *slog.Logger
	metrics     *metrics
	controllers []*controller
	tick        func(s state, now time.Time) []object.Key // looks at the health of nodes; may be nil
	tickPeriod  time.Duration

	index   *index
	watcher *raftstore.Watcher
	ahead   []raftstore.Event  // read from the watcher, of revisions later than the index
	upTo    raftstore.Revision // up to here the watcher has been read
	commits int                // under way
	turn    int                // whose turn it is
}

// committed is the result of one outcome's transaction.
type committed struct {
	c       *controller
	key     object.Key
	outcome outcome
	err     error
}

// run runs until ctx ends, which is not an error, or the store cannot be watched.
func (r *runner) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait() // commits end with ctx
	defer cancel(nil)

	results := make(chan committed, maxCommits)
	view := r.leader.View()
	r.restart(view, time.Now())
	ticker := time.NewTicker(r.tickPeriod)
	defer ticker.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	r.look(view, time.Now())

	for {
		now := time.Now()
		for turn := 0; turn < maxTurn && r.commits < maxCommits; turn++ {
			o, ok := r.plan(view, now)
			if !ok {
				break
			}
			if len(o.outcome.txn.Then) == 0 {
				r.finish(o, now)
				continue
			}
			o.c.queue.begin(o.key)
			r.commits++
			wg.Go(func() {
				// It is answered after it has been applied here: whoever plans next
				// for this object sees it.
				_, o.err = r.leader.Txn(ctx, o.outcome.txn)
				results <- o // has room for all
			})
		}

		timer.Reset(r.untilDue(now))
		select {
		case <-ctx.Done():
		case <-view.Changed():
		case <-timer.C:
		case <-ticker.C:
			r.look(view, time.Now())
		case done := <-results:
			if ctx.Err() != nil {
				break // what ended the commit is the end of ctx
			}
			r.commits--
			r.settle(done, time.Now())
		}
		if ctx.Err() != nil {
			return nil
		}
		view = r.leader.View()
		if err := r.advance(view); err != nil {
			return err
		}
	}
}

// restart reads everything anew: the leadership begins, or the watch has lost
// events.
func (r *runner) restart(view raftstore.View, now time.Time) {
	r.watcher = r.leader.Watch("", view.Revision())
	r.upTo, r.ahead = view.Revision(), nil
	r.load(view, now)
}

// objects is what the runner needs of a view.
type objects interface {
	object.Reader
	Prefix(prefix string) iter.Seq[raftstore.KeyValue]
}

// load indexes all objects and asks every controller for a look at its own.
func (r *runner) load(view objects, now time.Time) {
	r.index = newIndex()
	put := func(resource object.Resource) {
		for kv := range view.Prefix(resource.Prefix("")) {
			if obj, ok := r.decode(kv); ok {
				r.index.put(object.Key(kv.Key), obj)
			}
		}
	}
	put(definitionResource) // they say which other kinds there are
	for _, resource := range r.index.catalog.Resources() {
		if !isKind(resource, definitionResource) {
			put(resource)
		}
	}
	s := state{view, r.index}
	for _, c := range r.controllers {
		if c.queue == nil {
			c.queue = newQueue()
		}
		for _, key := range c.all(s) {
			c.queue.add(key, now)
		}
	}
}

// note takes one change into the index and asks the controllers that it concerns
// for a look.
func (r *runner) note(ev raftstore.Event, now time.Time) {
	key := object.Key(ev.Key)
	if _, _, _, ours := r.index.catalog.SplitKey(key); !ours {
		// A custom kind may be gone before its last object is.
		if _, known := r.index.entries[key]; !known || ev.Type != raftstore.EventDelete {
			return
		}
	}
	var ch change
	if ev.Type == raftstore.EventDelete {
		ch = r.index.remove(key)
	} else if obj, ok := r.decode(ev.KV); ok {
		ch = r.index.put(key, obj)
	} else {
		return
	}
	for _, c := range r.controllers {
		for _, key := range c.affected(r.index, ch) {
			c.queue.add(key, now.Add(c.delay))
		}
	}
}

// advance brings the index to the view's revision and marks the keys that the
// changes on the way concern.
func (r *runner) advance(view raftstore.View) error {
	for r.upTo < view.Revision() {
		events, upTo, ok, err := r.watcher.Poll()
		switch {
		case errors.Is(err, raftstore.ErrCompacted):
			r.log.Warn("history is gone, reading all objects anew", "revision", r.upTo)
			r.restart(view, time.Now())
			return nil
		case err != nil:
			return fmt.Errorf("watch the store: %w", err)
		case !ok:
			return fmt.Errorf("watch the store: no events up to revision %d, which is readable", view.Revision())
		}
		r.ahead = append(r.ahead, events...)
		r.upTo = upTo
	}
	n, now := 0, time.Now()
	for _, ev := range r.ahead {
		if ev.Revision > view.Revision() {
			break
		}
		n++
		r.note(ev, now)
	}
	r.ahead = r.ahead[n:]
	return nil
}

// decode reads a stored object. One that cannot be read is left out: it must not
// stop the others. Whoever wrote it was not this version.
func (r *runner) decode(kv raftstore.KeyValue) (object.Object, bool) {
	obj, err := r.index.catalog.Decode(kv.Value, kv.Mod)
	if err != nil {
		r.log.Error("stored object cannot be read", "key", kv.Key, "revision", kv.Mod, "error", err)
		return nil, false
	}
	return obj, true
}

// look asks tick for nodes whose health calls for a look.
func (r *runner) look(view raftstore.View, now time.Time) {
	if r.tick == nil {
		return
	}
	for _, key := range r.tick(state{view, r.index}, now) {
		for _, c := range r.controllers {
			if c.name == nodesName {
				c.queue.add(key, now)
			}
		}
	}
}

// plan makes the next plan that is due. The controllers take turns, so that a
// flood of changes for one does not starve another. ok is false if none is due.
func (r *runner) plan(view raftstore.View, now time.Time) (planned committed, ok bool) {
	for range r.controllers {
		c := r.controllers[r.turn%len(r.controllers)]
		r.turn++
		if key, ok := c.queue.pop(now); ok {
			return committed{c: c, key: key, outcome: r.planOne(c, view, key, now)}, true
		}
	}
	return committed{}, false
}

// planOne calls c's plan and turns a panic into an error about this one object.
func (r *runner) planOne(c *controller, view object.Reader, key object.Key, now time.Time) (o outcome) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("plan panicked", "controller", c.name, "key", key, "panic", p, "stack", string(debug.Stack()))
			o = outcome{err: fmt.Errorf("panic: %v", p)}
		}
		r.metrics.planSeconds.WithLabelValues(c.name).Observe(time.Since(start).Seconds())
		if o.err != nil {
			o.txn, o.events = raftstore.Txn{}, nil // half a plan is none
		}
	}()
	o = c.plan(state{view, r.index}, key, now)
	o.txn.Actor = "controllers/" + c.name
	return o
}

// settle handles the end of a commit.
func (r *runner) settle(done committed, now time.Time) {
	switch {
	case errors.Is(done.err, raftstore.ErrConflict):
		r.metrics.passes.WithLabelValues(done.c.name, "conflict").Inc()
		done.c.queue.conflicted(done.key, now)
		return
	case errors.Is(done.err, raftstore.ErrDeposed), errors.Is(done.err, raftstore.ErrClosed):
		// The context is about to end. It is not for a transfer of the leadership
		// that came to nothing, so go on until it does.
		done.c.queue.failed(done.key, now)
		return
	case done.err != nil:
		done.outcome = outcome{err: done.err}
	}
	r.finish(done, now)
}

// finish ends a pass whose writes, if it had any, are committed.
func (r *runner) finish(done committed, now time.Time) {
	c, key, o := done.c, done.key, done.outcome
	if o.err != nil {
		r.metrics.passes.WithLabelValues(c.name, "error").Inc()
		wait := c.queue.failed(key, now)
		r.log.Error("reconcile", "controller", c.name, "key", key, "error", o.err, "retry_in", wait)
		if about, ok := r.readable(key); ok {
			r.events.Record(about, "Warning", "ReconcileError", fmt.Sprintf("%s: %v; next try in %v", c.name, o.err, wait.Round(time.Millisecond)))
		}
		return
	}
	r.metrics.passes.WithLabelValues(c.name, "ok").Inc()
	r.metrics.writes.WithLabelValues(c.name).Add(float64(len(o.txn.Then)))
	c.queue.done(key)
	if o.more {
		c.queue.add(key, now)
	} else if o.again > 0 {
		c.queue.add(key, now.Add(o.again))
	}
	for _, e := range o.events {
		r.events.Record(e.about, e.kind(), e.reason, e.message)
	}
}

// readable reads the object under key for an event about it, unless it is what
// made the plan panic.
func (r *runner) readable(key object.Key) (object.Object, bool) {
	kv, ok := r.leader.View().Get(string(key))
	if !ok {
		return nil, false
	}
	return r.decode(kv)
}

// untilDue returns how long until the next key is due.
func (r *runner) untilDue(now time.Time) time.Duration {
	wait := time.Hour // nothing is due: changes and ticks wake us
	if r.commits == maxCommits {
		return wait
	}
	for _, c := range r.controllers {
		r.metrics.waiting.WithLabelValues(c.name).Set(float64(c.queue.waiting()))
		if next := c.queue.next(); !next.IsZero() {
			wait = min(wait, max(next.Sub(now), 0))
		}
	}
	return wait
}

// affectsItself returns the key of the change if it is of kind r and not gone.
func affectsItself(r object.Resource, c change) []object.Key {
	if c.after != nil && isKind(c.now.resource, r) {
		return []object.Key{c.key}
	}
	return nil
}

// affectsOwners returns the controllers, of kind owner, of an object of kind
// owned before and after the change, and those that may adopt it.
func affectsOwners(x *index, owner, owned object.Resource, c change) []object.Key {
	var keys []object.Key
	for _, e := range []entry{c.before, c.now} {
		if !isKind(e.resource, owned) {
			continue
		}
		if r, _, _, ok := object.SplitKey(e.controller); ok && isKind(r, owner) {
			keys = append(keys, e.controller)
		}
	}
	if c.after != nil && isKind(c.now.resource, owned) && c.now.controller == "" {
		keys = append(keys, x.adopters(owner, c.now)...)
	}
	return keys
}

// keysOf returns the keys of all objects of kind r.
func keysOf(x *index, r object.Resource) []object.Key {
	var keys []object.Key
	for key, e := range x.entries {
		if isKind(e.resource, r) {
			keys = append(keys, key)
		}
	}
	return keys
}
