package controllers

import (
	"cmp"
	"container/heap"
	"math/rand/v2"
	"time"

	"github.com/holdfast-io/holdfast/object"
)

const (
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 30 * time.Second
	// freeConflicts is how often in a row a key may lose a race and be planned
	// anew at once. After that somebody writes faster than we do, and it waits.
	freeConflicts = 5
)

// queue holds the keys that one controller has to look at. A key is in it once,
// however often it is added; while its writes are being committed it is kept
// aside. It is not safe for concurrent use.
type queue struct {
	items  map[object.Key]*item
	due    dueHeap        // items that wait for their time
	jitter func() float64 // in [0, 1)
}

// item is a key that waits, is being committed, or has failed before.
type item struct {
	key       object.Key
	due       time.Time // zero: not to be looked at
	at        int       // place in the heap, -1 when not there
	busy      bool      // its writes are being committed
	failures  int       // in a row
	conflicts int       // in a row
}

func newQueue() *queue {
	return &queue{items: map[object.Key]*item{}, jitter: rand.Float64}
}

// add makes key due at the given time, or earlier if it is already. A key that
// backs off after an error stays where it is: the change that added it is seen
// when its time has come.
func (q *queue) add(key object.Key, at time.Time) {
	it := q.item(key)
	if it.due.IsZero() || at.Before(it.due) && it.failures == 0 {
		q.schedule(it, at)
	}
}

// pop removes and returns the key that has been due for longest. ok is false if
// none is due. The caller ends the pass with done, conflicted or failed.
func (q *queue) pop(now time.Time) (key object.Key, ok bool) {
	if len(q.due) == 0 || q.due[0].due.After(now) {
		return "", false
	}
	it := heap.Pop(&q.due).(*item)
	it.due = time.Time{}
	return it.key, true
}

// begin says that key's writes are being committed: it is not looked at until
// the pass ends, even if it is added meanwhile.
func (q *queue) begin(key object.Key) { q.item(key).busy = true }

// done says that the pass over key succeeded.
func (q *queue) done(key object.Key) {
	it := q.item(key)
	it.busy, it.failures, it.conflicts = false, 0, 0
	if it.due.IsZero() {
		delete(q.items, key)
		return
	}
	q.schedule(it, it.due)
}

// conflicted says that what the plan for key was made from has changed since.
func (q *queue) conflicted(key object.Key, now time.Time) {
	it := q.item(key)
	if it.conflicts++; it.conflicts > freeConflicts {
		it.conflicts = 0
		q.failed(key, now)
		return
	}
	it.busy = false
	q.schedule(it, now)
}

// failed says that the pass over key failed, and returns after how long it will
// be tried again: twice as long each time, up to maxBackoff, give or take a
// fifth, so that what failed together does not come back together.
func (q *queue) failed(key object.Key, now time.Time) time.Duration {
	it := q.item(key)
	wait := min(firstBackoff<<min(it.failures, 16), maxBackoff)
	wait = time.Duration(float64(wait) * (0.8 + 0.4*q.jitter()))
	it.failures++
	it.busy = false
	q.schedule(it, now.Add(wait))
	return wait
}

// next returns the earliest time at which a key will be due; zero if none waits.
func (q *queue) next() time.Time {
	if len(q.due) == 0 {
		return time.Time{}
	}
	return q.due[0].due
}

// waiting returns the number of keys to be looked at, those being committed
// included.
func (q *queue) waiting() int { return len(q.items) }

func (q *queue) item(key object.Key) *item {
	it := q.items[key]
	if it == nil {
		it = &item{key: key, at: -1}
		q.items[key] = it
	}
	return it
}

func (q *queue) schedule(it *item, at time.Time) {
	it.due = at
	switch {
	case it.busy: // done will see that it is due
	case it.at < 0:
		heap.Push(&q.due, it)
	default:
		heap.Fix(&q.due, it.at)
	}
}

// dueHeap orders items by their time, then by key, so that runs can be repeated.
type dueHeap []*item

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	return cmp.Or(h[i].due.Compare(h[j].due), cmp.Compare(h[i].key, h[j].key)) < 0
}

func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push implements heap.Interface.
func (h *dueHeap) Push(x any) {
	it := x.(*item)
	it.at = len(*h)
	*h = append(*h, it)
}

// Pop implements heap.Interface.
func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	it := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	it.at = -1
	return it
}
