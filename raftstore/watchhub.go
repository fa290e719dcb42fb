package raftstore

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// watchHub wakes watchers. Applying an entry costs it one wake-up; a goroutine of
// its own then looks for each event at the buckets that it falls into, and at no
// others. So watchers of keys that do not change cost nothing but their memory.
type watchHub struct {
	store *Store
	wake  chan struct{} // capacity 1: there is a newer revision
	count atomic.Int64  // of watchers
	// pos is the revision up to which all watchers that events matched are woken.
	pos atomic.Int64

	mu       sync.Mutex // before WatchSet.mu
	keys     map[string]*bucket
	prefixes map[string]*bucket
	lengths  []int // of prefixes that there are buckets for, in order
	ranges   map[bounds]*bucket
}

type bounds struct{ start, end string }

type bucketKind int8

const (
	oneKey bucketKind = iota
	onePrefix
	// anyRange is one that is neither; such buckets are all asked, one by one.
	anyRange
)

// bucket holds the watchers of one range.
type bucket struct{ first *Watcher }

func newWatchHub(s *Store) *watchHub {
	return &watchHub{
		store: s, wake: make(chan struct{}, 1),
		keys: make(map[string]*bucket), prefixes: make(map[string]*bucket), ranges: make(map[bounds]*bucket),
	}
}

// revised is called when a newer revision is published. It never blocks.
func (h *watchHub) revised() {
	if h.count.Load() == 0 {
		return
	}
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *watchHub) run(ctx context.Context) {
	for {
		select {
		case <-h.wake:
			h.dispatch(h.store.current.Load().root)
		case <-ctx.Done():
			return
		}
	}
}

// dispatch wakes the watchers of what has happened since the last call.
func (h *watchHub) dispatch(root *mvcc.Root) {
	h.mu.Lock()
	defer h.mu.Unlock()
	pos := h.pos.Load()
	if pos < root.Horizon() {
		// Events are gone that nobody was woken for: after a snapshot of the leader's.
		for _, b := range h.all() {
			b.wake(0)
		}
	} else {
		for e := range root.Events(pos) {
			h.match(e.Key, e.Revision)
		}
	}
	h.pos.Store(max(pos, root.Revision()))
}

func (h *watchHub) match(key string, rev Revision) {
	if b := h.keys[key]; b != nil {
		b.wake(rev)
	}
	for _, n := range h.lengths {
		if n > len(key) {
			break
		}
		if b := h.prefixes[key[:n]]; b != nil {
			b.wake(rev)
		}
	}
	for _, b := range h.ranges {
		if b.first.covers(key) {
			b.wake(rev)
		}
	}
}

func (h *watchHub) all() []*bucket {
	var all []*bucket
	for _, b := range h.keys {
		all = append(all, b)
	}
	for _, b := range h.prefixes {
		all = append(all, b)
	}
	for _, b := range h.ranges {
		all = append(all, b)
	}
	return all
}

// wake makes the bucket's watchers ready for an event of revision rev; 0 for they
// do not know which.
func (b *bucket) wake(rev Revision) {
	for w := b.first; w != nil; w = w.next {
		w.set.wake(w, rev)
	}
}

func (h *watchHub) add(w *Watcher) {
	// Counted first: from here on publishing wakes the hub.
	first := h.count.Add(1) == 1
	h.mu.Lock()
	defer h.mu.Unlock()
	if first {
		h.pos.Store(max(h.pos.Load(), h.store.current.Load().root.Revision()))
	}
	var b *bucket
	switch w.kind() {
	case oneKey:
		b = bucketAt(h.keys, w.start)
	case onePrefix:
		b = bucketAt(h.prefixes, w.start)
		if b.first == nil {
			if i, found := slices.BinarySearch(h.lengths, len(w.start)); !found {
				h.lengths = slices.Insert(h.lengths, i, len(w.start))
			}
		}
	case anyRange:
		b = bucketAt(h.ranges, bounds{w.start, w.end})
	}
	w.bucket, w.next, w.prev = b, b.first, nil
	if b.first != nil {
		b.first.prev = w
	}
	b.first = w
}

func bucketAt[K comparable](buckets map[K]*bucket, k K) *bucket {
	b := buckets[k]
	if b == nil {
		b = new(bucket)
		buckets[k] = b
	}
	return b
}

func (h *watchHub) remove(w *Watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.next != nil {
		w.next.prev = w.prev
	}
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		w.bucket.first = w.next
	}
	if w.bucket.first == nil {
		switch w.kind() {
		case oneKey:
			delete(h.keys, w.start)
		case onePrefix:
			delete(h.prefixes, w.start)
			if !h.anyPrefixOf(len(w.start)) {
				h.lengths = slices.DeleteFunc(h.lengths, func(n int) bool { return n == len(w.start) })
			}
		case anyRange:
			delete(h.ranges, bounds{w.start, w.end})
		}
	}
	w.bucket, w.next, w.prev = nil, nil, nil
	h.count.Add(-1)
}

func (h *watchHub) anyPrefixOf(length int) bool {
	for prefix := range h.prefixes {
		if len(prefix) == length {
			return true
		}
	}
	return false
}

// WatchSet is many watchers with one wake-up, for whoever serves them together. It
// takes turns among those that are ready, so that none that has much to tell keeps
// the others waiting. But for Ready, one goroutine uses it.
type WatchSet struct {
	store *Store
	ready chan struct{} // capacity 1

	mu          sync.Mutex
	first, last *Watcher // ready, in turn
}

// NewWatchSet returns an empty set. Remove what is added.
func (s *Store) NewWatchSet() *WatchSet {
	return &WatchSet{store: s, ready: make(chan struct{}, 1)}
}

// Add puts w, which is in no set, into this one. It is ready at once.
func (ws *WatchSet) Add(w *Watcher) {
	ws.mu.Lock()
	w.set, w.state, w.from = ws, watchIdle, w.pos
	ws.mu.Unlock()
	ws.store.hub.add(w)
	ws.wake(w, 0)
}

// Remove takes w out of the set.
func (ws *WatchSet) Remove(w *Watcher) {
	if w.set != ws {
		return
	}
	ws.store.hub.remove(w)
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.state == watchReady {
		var before *Watcher
		for q := ws.first; q != w; q = q.queued {
			before = q
		}
		if before == nil {
			ws.first = w.queued
		} else {
			before.queued = w.queued
		}
		if ws.last == w {
			ws.last = before
		}
		w.queued = nil
	}
	w.set, w.state, w.dirty = nil, watchIdle, false
}

// Ready returns a channel that is ready after a watcher has become so. Poll until
// there is none before waiting for it again.
func (ws *WatchSet) Ready() <-chan struct{} { return ws.ready }

// wake makes w ready for an event of revision rev; 0 is for any.
func (ws *WatchSet) wake(w *Watcher, rev Revision) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	switch w.state {
	case watchBusy:
		w.dirty = true
	case watchIdle:
		w.from = max(w.from, rev-1)
		ws.push(w)
		if ws.first == w {
			select {
			case ws.ready <- struct{}{}:
			default:
			}
		}
	}
}

// push puts w behind those that are ready. ws.mu is held.
func (ws *WatchSet) push(w *Watcher) {
	w.state = watchReady
	if ws.last == nil {
		ws.first = w
	} else {
		ws.last.queued = w
	}
	ws.last = w
}

// Refresh makes w ready though no event has matched, so that it comes up to date.
func (ws *WatchSet) Refresh(w *Watcher) {
	ws.Position(w)
	ws.wake(w, 0)
}

// Poll returns a watcher that is ready, whose turn it is, with its next events, as
// Watcher.Poll does; there may be none. It returns nil when no watcher is ready. One
// that fails leaves the set.
func (ws *WatchSet) Poll() (w *Watcher, events []Event, upTo Revision, err error) {
	ws.mu.Lock()
	if w = ws.first; w == nil {
		ws.mu.Unlock()
		return nil, nil, 0, nil
	}
	if ws.first, w.queued = w.queued, nil; ws.first == nil {
		ws.last = nil
	}
	w.state, w.dirty = watchBusy, false
	w.pos = max(w.pos, w.from)
	ws.mu.Unlock()

	events, more, err := w.poll()
	if err != nil {
		ws.Remove(w)
		return w, nil, w.pos, err
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w.from = w.pos
	if w.state = watchIdle; more || w.dirty {
		ws.push(w)
	}
	return w, events, w.pos, nil
}

// Position returns the revision up to which w has told all events, and whether
// that is as far as this peer has come, about: only then may it be told to others.
func (ws *WatchSet) Position(w *Watcher) (upTo Revision, current bool) {
	// Loaded first: those that match up to it are not idle.
	known := ws.store.hub.pos.Load()
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.state != watchIdle {
		return w.pos, false
	}
	w.pos = max(w.pos, known)
	w.from = w.pos
	return w.pos, w.pos <= known
}
