package controllers

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/object"
)

func popAll(q *queue, now time.Time) (keys []object.Key) {
	for {
		key, ok := q.pop(now)
		if !ok {
			return keys
		}
		q.done(key)
		keys = append(keys, key)
	}
}

// TestQueueHoldsAKeyOnce: however often a key is added, it is looked at once, at
// the earliest of its times.
func TestQueueHoldsAKeyOnce(t *testing.T) {
	q := newQueue()
	q.add("b", testNow)
	q.add("a", testNow.Add(time.Minute))
	q.add("a", testNow)
	q.add("a", testNow.Add(time.Hour))
	q.add("c", testNow.Add(time.Second))
	if got := popAll(q, testNow); !slices.Equal(got, []object.Key{"a", "b"}) {
		t.Fatalf("due now: %v, want [a b]", got)
	}
	if next := q.next(); !next.Equal(testNow.Add(time.Second)) {
		t.Fatalf("next is due at %v, want in a second", next)
	}
	if got := popAll(q, testNow.Add(time.Second)); !slices.Equal(got, []object.Key{"c"}) || q.waiting() != 0 {
		t.Fatalf("due later: %v, then %d waiting; want [c], none", got, q.waiting())
	}
}

// TestQueueKeepsBusyKeysAside: a key whose writes are being committed is not
// planned again, but a change meanwhile is not lost.
func TestQueueKeepsBusyKeysAside(t *testing.T) {
	q := newQueue()
	q.add("a", testNow)
	key, _ := q.pop(testNow)
	q.begin(key)
	q.add("a", testNow)
	if key, ok := q.pop(testNow); ok {
		t.Fatalf("%s was given out twice", key)
	}
	q.done("a")
	if got := popAll(q, testNow); !slices.Equal(got, []object.Key{"a"}) {
		t.Fatalf("after the commit: %v, want [a]", got)
	}
}

// TestQueueBacksOff: failures wait longer each time, up to the cap, are not hurried
// by further changes, and are forgotten after a success.
func TestQueueBacksOff(t *testing.T) {
	q := newQueue()
	now := testNow
	q.add("a", now)
	for i, want := range []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond} {
		key, ok := q.pop(now)
		if !ok {
			t.Fatalf("failure %d: nothing is due", i)
		}
		wait := q.failed(key, now)
		if wait < want*8/10 || wait > want*12/10 {
			t.Fatalf("failure %d: waits %v, want %v give or take a fifth", i, wait, want)
		}
		q.add("a", now)
		if _, ok := q.pop(now.Add(wait - 1)); ok {
			t.Fatalf("failure %d: a change shortened the wait", i)
		}
		now = now.Add(wait)
	}
	for range 30 {
		key, ok := q.pop(now)
		if !ok {
			t.Fatal("nothing is due")
		}
		wait := q.failed(key, now)
		if wait > maxBackoff*12/10 {
			t.Fatalf("waits %v, the cap is %v", wait, maxBackoff)
		}
		now = now.Add(wait)
	}
	key, _ := q.pop(now)
	q.done(key)
	q.add("a", now)
	key, ok := q.pop(now)
	if !ok {
		t.Fatal("after a success the key still backs off")
	}
	if wait := q.failed(key, now); wait > 2*firstBackoff {
		t.Fatalf("first failure after a success waits %v", wait)
	}
}

// TestQueueRetriesConflictsAtOnce, but not for ever.
func TestQueueRetriesConflictsAtOnce(t *testing.T) {
	q := newQueue()
	q.add("a", testNow)
	for i := range freeConflicts {
		key, ok := q.pop(testNow)
		if !ok {
			t.Fatalf("conflict %d: not due at once", i)
		}
		q.begin(key)
		q.conflicted(key, testNow)
	}
	key, _ := q.pop(testNow)
	q.begin(key)
	q.conflicted(key, testNow)
	if _, ok := q.pop(testNow); ok {
		t.Fatalf("conflict %d is retried at once as well", freeConflicts+1)
	}
	if _, ok := q.pop(testNow.Add(2 * firstBackoff)); !ok {
		t.Fatal("it is not retried after the first backoff")
	}
}

// TestQueueOrder: many keys come out by their time, whatever the order they went in.
func TestQueueOrder(t *testing.T) {
	q := newQueue()
	var want []object.Key
	for i := range 500 {
		want = append(want, object.Key(fmt.Sprintf("%03d", i)))
	}
	for i := range want {
		n := i * 7 % len(want)
		q.add(want[n], testNow.Add(time.Duration(n)))
	}
	if got := popAll(q, testNow.Add(time.Second)); !slices.Equal(got, want) {
		t.Fatalf("order: %v", got)
	}
}
