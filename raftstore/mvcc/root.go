package mvcc

import (
	"iter"
	"sort"

	"github.com/google/btree"
)

// KeyValue is a version of a key as readers see it.
type KeyValue struct {
	Key string
	// Value belongs to the store, and to all other readers: never modify it.
	Value []byte
	// Create and Mod are the revisions at which the key was created and last
	// changed; Version counts the writes since its creation, 1 being that.
	Create, Mod, Version int64
	// Lease is the id of the lease that the key lives by, 0 for none.
	Lease int64
}

// EventType says what became of a key.
type EventType int8

// The types of events.
const (
	Put    EventType = 1
	Delete EventType = 2
)

// String returns "PUT" or "DELETE".
func (t EventType) String() string {
	if t == Delete {
		return "DELETE"
	}
	return "PUT"
}

// Event is one change of one key.
type Event struct {
	Key  string
	Type EventType
	// KV is the key after a Put. For a Delete only Key and Mod are set.
	KV KeyValue
	// Prev is the key before, nil if it did not exist.
	Prev *KeyValue
	// Revision is the transaction's; several events can share it.
	Revision int64
}

// IsCreate reports whether the event made the key.
func (e Event) IsCreate() bool { return e.Type == Put && e.KV.Version == 1 }

func (r *record) event() Event {
	e := Event{Key: r.key, Type: Put, KV: r.keyValue(), Revision: r.mod}
	if !r.live() {
		e.Type = Delete
	}
	if r.prev.live() {
		prev := r.prev.keyValue()
		e.Prev = &prev
	}
	return e
}

// Hash is a state hash: equal states have equal hashes.
type Hash [16]byte

// Root is the state at one log index, immutable, safe for concurrent use.
type Root struct {
	keys     *btree.BTreeG[*record]
	leases   *btree.BTreeG[Lease]
	attached *btree.BTreeG[*record]
	ids      sequence[txnID]
	events   sequence[*record]
	samples  sequence[timeSample]
	hashes   sequence[hashMark]
	meta     meta
}

// meta is what a state and its roots have in common besides keys and history.
type meta struct {
	index        uint64
	markerTerm   uint64
	revision     int64
	horizon      int64
	eventHorizon int64
	live         int64   // keys that exist
	liveBytes    int64   // of their records
	pastBytes    int64   // of all older versions and tombstones
	sum          hash128 // of the parts: live records, leases, ids
	newest       timeSample
}

// Index returns the last log entry that the root holds.
func (r *Root) Index() uint64 { return r.meta.index }

// MarkerTerm returns the term of the last term marker applied.
func (r *Root) MarkerTerm() uint64 { return r.meta.markerTerm }

// Revision returns the revision of the last transaction that changed something.
func (r *Root) Revision() int64 { return r.meta.revision }

// Horizon returns the oldest revision that can be read.
func (r *Root) Horizon() int64 { return r.meta.horizon }

// EventHorizon returns the revision after which all events are kept. It is one
// below the Horizon, so that who reads there can watch what that very revision
// did, too; a state that began as a snapshot of format 1, or that was never
// compacted, has no more than its Horizon.
func (r *Root) EventHorizon() int64 { return r.meta.eventHorizon }

// Hash returns the state hash: over keys, leases and the ids of transactions that
// exist, the revision and the horizon. Replicas that are at one log index have
// equal hashes; an entry that changes none of it leaves the hash as it is.
func (r *Root) Hash() Hash { return newHasher().whole(&r.meta).bytes() }

// Keys returns the number of keys that exist.
func (r *Root) Keys() int64 { return r.meta.live }

// Bytes returns about how much memory the keys that exist take.
func (r *Root) Bytes() int64 { return r.meta.liveBytes }

// History returns the number of events kept, and about how much memory the
// versions take that only history holds.
func (r *Root) History() (events int, bytes int64) { return r.events.len(), r.meta.pastBytes }

// Get returns key as it was at revision rev, which must lie within
// [Horizon, Revision].
func (r *Root) Get(key string, rev int64) (KeyValue, bool) {
	head, _ := r.keys.Get(&record{key: key})
	if v := head.at(rev); v != nil {
		return v.keyValue(), true
	}
	return KeyValue{}, false
}

// Range yields, in key order, the keys in [start, end) as they were at revision
// rev, which must lie within [Horizon, Revision]. An end that is empty, or NoEnd,
// is no bound.
func (r *Root) Range(start, end string, rev int64) iter.Seq[KeyValue] {
	return func(yield func(KeyValue) bool) {
		ascend(r.keys, start, end, func(head *record) bool {
			v := head.at(rev)
			return v == nil || yield(v.keyValue())
		})
	}
}

// Count returns the number of keys that Range yields.
func (r *Root) Count(start, end string, rev int64) (n int64) {
	if (end == "" || end == NoEnd) && start == "" && rev == r.meta.revision {
		return r.meta.live
	}
	ascend(r.keys, start, end, func(head *record) bool {
		if head.at(rev) != nil {
			n++
		}
		return true
	})
	return n
}

// ascend calls visit for the newest records, tombstones included, of the keys in
// [start, end), in key order, until it returns false. An end that is empty, or
// NoEnd, is no bound.
func ascend(keys *btree.BTreeG[*record], start, end string, visit func(*record) bool) {
	if end == "" || end == NoEnd {
		keys.AscendGreaterOrEqual(&record{key: start}, visit)
	} else if start < end {
		keys.AscendRange(&record{key: start}, &record{key: end}, visit)
	}
}

// Lease returns the lease with that id, and false if there is none.
func (r *Root) Lease(id int64) (Lease, bool) { return r.leases.Get(Lease{ID: id}) }

// Leases yields all leases by id.
func (r *Root) Leases() iter.Seq[Lease] {
	return func(yield func(Lease) bool) { r.leases.Ascend(yield) }
}

// LeaseKeys yields the keys that live by lease id, in key order.
func (r *Root) LeaseKeys(id int64) iter.Seq[string] {
	return func(yield func(string) bool) {
		visitLease(r.attached, id, func(rec *record) bool { return yield(rec.key) })
	}
}

// Events yields the changes after revision rev, oldest first. Those up to the
// EventHorizon are gone: with rev below it the sequence would have a gap, and the
// caller must not ask.
func (r *Root) Events(rev int64) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for i := eventsAfter(&r.events, rev); i < r.events.len(); i++ {
			if !yield(r.events.at(i).event()) {
				return
			}
		}
	}
}

// eventsAfter returns the number of the first event with a revision above rev.
func eventsAfter(events *sequence[*record], rev int64) int {
	return sort.Search(events.len(), func(i int) bool { return events.at(i).mod > rev })
}

// EventsIn returns the changes after revision rev of the keys in [start, end), and
// the revision up to which they are complete. As in a transaction, an empty end
// means the key start alone, and NoEnd no bound. It stops after the revision with
// which it has at least limit events, so that those of one revision always come
// together. As with Events, rev must not lie below the EventHorizon.
func (r *Root) EventsIn(start, end string, rev int64, limit int) (events []Event, upTo int64) {
	for i := eventsAfter(&r.events, rev); i < r.events.len(); i++ {
		e := r.events.at(i)
		if len(events) >= max(limit, 1) && e.mod != events[len(events)-1].Revision {
			return events, e.mod - 1
		}
		if end == "" && e.key == start || end != "" && e.key >= start && (end == NoEnd || e.key < end) {
			events = append(events, e.event())
		}
	}
	return events, max(rev, r.meta.revision)
}

// EventsOf is EventsIn for the keys that begin with prefix.
func (r *Root) EventsOf(prefix string, rev int64, limit int) (events []Event, upTo int64) {
	return r.EventsIn(prefix, PrefixEnd(prefix), rev, limit)
}

// CompactTo returns the lowest revision to compact to so that no more than about
// events changes remain; 0 when no more remain as it is.
func (r *Root) CompactTo(events int) int64 {
	surplus := r.events.len() - events
	if surplus <= 0 {
		return 0
	}
	if to := min(r.events.at(surplus-1).mod+1, r.meta.revision); to > r.meta.horizon {
		return to
	}
	return 0
}

// PrefixEnd returns the end of the range of all strings that begin with prefix: the
// smallest string above all of them, or NoEnd when there is none. It is etcd's
// clientv3.GetPrefixRangeEnd: keys are any bytes, and so are bounds.
func PrefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if c := prefix[i]; c < 0xff {
			return prefix[:i] + string([]byte{c + 1})
		}
	}
	return NoEnd
}
