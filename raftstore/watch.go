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

// Watcher is a cursor into the history. It holds no goroutine, channel or buffer;
// dropping it is enough. Not safe for concurrent use.
type Watcher struct {
	store  *Store
	prefix string
	pos    Revision  // all events up to it are delivered, or did not match
	told   Revision  // the upTo returned last
	since  time.Time // when that was
}

// Watch returns a cursor over the changes after revision after to the keys that
// begin with prefix. A revision that this peer has not reached yet is fine: events
// come once it is passed.
func (s *Store) Watch(prefix string, after Revision) *Watcher {
	return &Watcher{store: s, prefix: prefix, pos: after, told: after, since: time.Now()}
}

// Poll returns the next events, if any, and never blocks: those of a revision
// always together, none twice, none left out up to revision upTo. ok is false when
// nothing was applied since the last call. It fails with a *CompactedError once the
// history after the cursor is discarded.
func (w *Watcher) Poll() (events []Event, upTo Revision, ok bool, err error) {
	return w.poll(w.store.current.Load())
}

func (w *Watcher) poll(at *published) (events []Event, upTo Revision, ok bool, err error) {
	if w.pos < at.root.EventHorizon() {
		return nil, w.pos, false, &CompactedError{Horizon: at.root.Horizon()}
	}
	events, upTo = at.root.EventsOf(w.prefix, w.pos, watchBatch)
	ok = upTo > w.pos
	w.pos = upTo
	if len(events) > 0 {
		w.told, w.since = upTo, time.Now()
	}
	return events, upTo, ok, nil
}

// Next is Poll that waits for events, until ctx ends. It returns without events,
// but with a higher upTo, when other keys have changed and none of its own for 5 s:
// a bookmark to resume from.
func (w *Watcher) Next(ctx context.Context) (events []Event, upTo Revision, err error) {
	for {
		at := w.store.current.Load()
		events, upTo, _, err = w.poll(at)
		if err != nil || len(events) > 0 {
			return events, upTo, err
		}
		var due <-chan time.Time
		stop := func() bool { return false }
		if w.pos > w.told {
			left := bookmarkPeriod - time.Since(w.since)
			if left <= 0 {
				w.told, w.since = w.pos, time.Now()
				return nil, w.pos, nil
			}
			timer := time.NewTimer(left)
			due, stop = timer.C, timer.Stop
		}
		select {
		case <-at.revised:
		case <-due:
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
