package raftstore

import (
	"context"
	"time"

	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// Event is one change of one key.
type Event = mvcc.Event

// EventType says what became of a key.
type EventType = mvcc.EventType

// The types of events.
const (
	EventPut    = mvcc.Put
	EventDelete = mvcc.Delete
)

const (
	// watchBatch bounds the events of one answer, up to the end of a revision.
	watchBatch = 1024
	// bookmarkPeriod is how often a watcher whose keys do not change still learns
	// how far it has come.
	bookmarkPeriod = 5 * time.Second
)

// Watcher is a cursor into the history. It holds no goroutine and no buffer, and
// while nobody waits in Next or it is in no WatchSet, nothing else knows of it:
// dropping it is enough. Not safe for concurrent use.
type Watcher struct {
	store      *Store
	start, end string // as in Range; end "" is one key, mvcc.NoEnd no bound

	pos   Revision  // all events up to it are delivered, or did not match
	told  Revision  // the upTo returned last
	since time.Time // when that was

	own *WatchSet // of Next

	// While it is in a set.
	bucket     *bucket
	next, prev *Watcher // in the bucket; watchHub.mu
	set        *WatchSet
	state      watchState // WatchSet.mu, as what follows
	dirty      bool       // an event came while busy
	from       Revision   // nothing up to it matched since pos
	queued     *Watcher   // the next that is ready
}

type watchState int8

const (
	watchIdle  watchState = iota // no event that matches lies between pos and watchHub.pos
	watchReady                   // in the set's queue
	watchBusy                    // being polled
)

// Watch returns a cursor over the changes after revision after to the keys that
// begin with prefix. A revision that this peer has not reached yet is fine: events
// come once it is passed.
func (s *Store) Watch(prefix string, after Revision) *Watcher {
	return s.WatchRange(prefix, mvcc.PrefixEnd(prefix), after)
}

// WatchRange is Watch for the keys in [start, end). An empty end is the key start
// alone; mvcc.NoEnd has no bound.
func (s *Store) WatchRange(start, end string, after Revision) *Watcher {
	return &Watcher{store: s, start: start, end: end, pos: after, told: after, since: time.Now()}
}

// covers reports whether key is one of those watched.
func (w *Watcher) covers(key string) bool {
	switch w.end {
	case "":
		return key == w.start
	case mvcc.NoEnd:
		return key >= w.start
	}
	return key >= w.start && key < w.end
}

// Poll returns the next events, if any, and never blocks: those of a revision
// always together, none twice, none left out up to revision upTo. ok is false when
// nothing was applied since the last call. It fails with a *CompactedError once the
// history after the cursor is discarded.
func (w *Watcher) Poll() (events []Event, upTo Revision, ok bool, err error) {
	before := w.pos
	events, _, err = w.poll()
	return events, w.pos, w.pos > before, err
}

// poll moves the cursor. more is true when it has not come to the newest revision.
func (w *Watcher) poll() (events []Event, more bool, err error) {
	root := w.store.current.Load().root
	if w.pos < root.EventHorizon() {
		return nil, false, &CompactedError{Horizon: root.Horizon()}
	}
	events, w.pos = root.EventsIn(w.start, w.end, w.pos, watchBatch)
	if len(events) > 0 {
		w.tell()
	}
	return events, w.pos < root.Revision(), nil
}

// tell notes that the caller learns how far the cursor has come.
func (w *Watcher) tell() { w.told, w.since = w.pos, time.Now() }

// Next is Poll that waits for events, until ctx ends. It returns without events,
// but with a higher upTo, when other keys have changed and none of its own for 5 s:
// a bookmark to resume from.
func (w *Watcher) Next(ctx context.Context) (events []Event, upTo Revision, err error) {
	for more := true; more; {
		if events, more, err = w.poll(); err != nil || len(events) > 0 {
			return events, w.pos, err
		}
	}
	if w.own == nil {
		w.own = w.store.NewWatchSet()
	}
	w.own.Add(w)
	defer w.own.Remove(w)
	for {
		for {
			polled, events, upTo, err := w.own.Poll()
			if err != nil || len(events) > 0 {
				return events, upTo, err
			}
			if polled == nil {
				break
			}
		}
		var due <-chan time.Time
		var revised <-chan struct{}
		stop := func() bool { return false }
		if left := bookmarkPeriod - time.Since(w.since); left > 0 {
			timer := time.NewTimer(left)
			due, stop = timer.C, timer.Stop
		} else if at := w.store.current.Load(); w.pos > w.told {
			w.tell()
			return nil, w.pos, nil
		} else if at.root.Revision() > w.pos {
			w.own.Refresh(w)
		} else {
			revised = at.revised // any revision will do for a bookmark
		}
		select {
		case <-w.own.Ready():
		case <-due:
			w.own.Refresh(w)
		case <-revised:
			w.own.Refresh(w)
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-w.store.stopped:
			err = ErrClosed
		}
		stop()
		if err != nil {
			return nil, w.pos, err
		}
	}
}

// kind returns how the watcher's range is looked up, see watchHub.
func (w *Watcher) kind() bucketKind {
	switch {
	case w.end == "":
		return oneKey
	case w.end == mvcc.PrefixEnd(w.start), w.start == "" && w.end == mvcc.NoEnd:
		return onePrefix
	}
	return anyRange
}
