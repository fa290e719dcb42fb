package mvcc

import (
	"iter"
	"strings"
	"unicode/utf8"
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
	tree    *tree
	log     eventLog
	meta    meta
	horizon int64
}

// meta is what a state and its roots have in common besides keys and history.
type meta struct {
	index      uint64
	markerTerm uint64
	revision   int64
	live       int64 // keys that exist
	liveBytes  int64 // of their records
	pastBytes  int64 // of all older versions and tombstones
	hash       hash128
}

// Index returns the last log entry that the root holds.
func (r *Root) Index() uint64 { return r.meta.index }

// MarkerTerm returns the term of the last term marker applied.
func (r *Root) MarkerTerm() uint64 { return r.meta.markerTerm }

// Revision returns the revision of the last transaction that changed something.
func (r *Root) Revision() int64 { return r.meta.revision }

// Horizon returns the oldest revision that can be read. Events after it are kept.
func (r *Root) Horizon() int64 { return r.horizon }

// Hash returns the state hash over all keys that exist.
func (r *Root) Hash() Hash { return r.meta.hash.bytes() }

// Keys returns the number of keys that exist.
func (r *Root) Keys() int64 { return r.meta.live }

// Bytes returns about how much memory the keys that exist take.
func (r *Root) Bytes() int64 { return r.meta.liveBytes }

// History returns the number of events kept, and about how much memory the
// versions take that only history holds.
func (r *Root) History() (events int, bytes int64) { return r.log.len(), r.meta.pastBytes }

// Get returns key as it was at revision rev, which must lie within
// [Horizon, Revision].
func (r *Root) Get(key string, rev int64) (KeyValue, bool) {
	head, _ := r.tree.Get(&record{key: key})
	if v := head.at(rev); v != nil {
		return v.keyValue(), true
	}
	return KeyValue{}, false
}

// Range yields, in key order, the keys in [start, end) as they were at revision
// rev, which must lie within [Horizon, Revision]. An empty end has no bound.
func (r *Root) Range(start, end string, rev int64) iter.Seq[KeyValue] {
	return func(yield func(KeyValue) bool) {
		visit := func(head *record) bool {
			v := head.at(rev)
			return v == nil || yield(v.keyValue())
		}
		if end == "" {
			r.tree.AscendGreaterOrEqual(&record{key: start}, visit)
		} else if start < end {
			r.tree.AscendRange(&record{key: start}, &record{key: end}, visit)
		}
	}
}

// Events yields the changes after revision rev, oldest first. Those up to the
// horizon are gone: with rev below it the sequence would have a gap, and the
// caller must not ask.
func (r *Root) Events(rev int64) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		for i := r.log.after(rev); i < r.log.len(); i++ {
			if !yield(r.log.at(i).event()) {
				return
			}
		}
	}
}

// EventsOf returns the changes after revision rev of keys that begin with prefix,
// and the revision up to which they are complete. It stops after the revision with
// which it has at least limit events, so that those of one revision always come
// together. As with Events, rev must not lie below the horizon.
func (r *Root) EventsOf(prefix string, rev int64, limit int) (events []Event, upTo int64) {
	for i := r.log.after(rev); i < r.log.len(); i++ {
		e := r.log.at(i)
		if len(events) >= limit && e.mod != events[len(events)-1].Revision {
			return events, e.mod - 1
		}
		if strings.HasPrefix(e.key, prefix) {
			events = append(events, e.event())
		}
	}
	return events, max(rev, r.meta.revision)
}

// CompactTo returns the lowest revision to compact to so that no more than about
// events changes remain; 0 when no more remain as it is.
func (r *Root) CompactTo(events int) int64 {
	surplus := r.log.len() - events
	if surplus <= 0 {
		return 0
	}
	return r.log.at(surplus - 1).mod
}

// PrefixEnd returns the smallest string above every string that begins with
// prefix, so that [prefix, PrefixEnd) is what begins with it; "" when there is
// none. It steps by runes: keys are valid UTF-8, and so must bounds be.
func PrefixEnd(prefix string) string {
	for len(prefix) > 0 {
		r, size := utf8.DecodeLastRuneInString(prefix)
		prefix = prefix[:len(prefix)-size]
		next := r + 1
		if next == 0xD800 { // surrogates are no runes
			next = 0xE000
		}
		if next <= utf8.MaxRune {
			return prefix + string(next)
		}
	}
	return ""
}
