package history

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// Outcome is what a caller learned of a transaction.
type Outcome string

// Outcomes.
const (
	Acked   Outcome = "acked"
	Unknown Outcome = "unknown" // also of a call that never returned
	Refused Outcome = "refused" // nothing happened
)

// impossible are the refusals of the state machine: the transaction is in the log,
// and was found impossible there.
var impossible = []error{raftstore.ErrLeaseNotFound, raftstore.ErrLeaseExists, raftstore.ErrKeyNotFound}

// write is one call of Txn.
type write struct {
	ID           string // in the transaction's Reason, and so in the log
	Peer         string
	Call, Return int64 // places in the order of all that is recorded
	At, Until    time.Duration
	Outcome      Outcome
	Error        string `json:",omitempty"`
	Impossible   bool   `json:",omitempty"` // the state machine refused it
	Result       raftstore.Result
	Conflict     []string `json:",omitempty"` // keys whose compares failed
}

// read is a read of all keys that begin with Prefix.
type read struct {
	Peer, Prefix string
	Call, Return int64
	At, Until    time.Duration
	Options      raftstore.ReadOptions
	Age          time.Duration // below 0: not known
	Revision     int64
	Keys         []raftstore.KeyValue
}

func (rd *read) linearizable() bool { return rd.Options.Consistency == raftstore.Linearizable }

// Lease is the life of a lease, as who keeps it alive sees it.
type Lease struct {
	r     *Recorder
	id    int64
	ttl   time.Duration
	kept  []time.Duration // when keepalives were called that were answered
	ended time.Duration   // when one was answered with ErrLeaseNotFound; 0: never
	// Of a lease of real processes: a key that lives by it, when its grant and its
	// revocation were called for; 0: never.
	key              string
	granted, revoked time.Duration
}

// turn is one answer of a watch.
type turn struct {
	Peer         string
	After, UpTo  int64
	Events       []raftstore.Event
	At           time.Duration
	CompactedFor int64 `json:",omitempty"` // the horizon, if the watch ended with it
}

// Watch is one watcher's life, over all peers that served it.
type Watch struct {
	r      *Recorder
	prefix string
	turns  []turn
}

// point is what peers had when they had applied an index.
type point struct {
	peer string
	rev  int64
	hash mvcc.Hash
}

// Recorder takes down what happens. All methods are safe for concurrent use.
type Recorder struct {
	mu         sync.Mutex
	begin      time.Time
	last       int64
	writes     []*write
	reads      []*read
	watches    []*Watch
	leases     []*Lease
	entries    map[uint64]*raft.Log     // applied, by index
	applied    map[uint64]time.Duration // when the first peer did
	by         map[uint64]string        // who applied it first
	points     map[uint64]point
	ids        int
	base       *model          // what was there at the beginning; nil is nothing
	known      map[string]bool // ids of writes, once Committed was called
	compacted  int64           // by CompactedTo
	notes      []string
	violations []string
}

// New returns an empty recorder.
func New() *Recorder {
	return &Recorder{begin: time.Now(), entries: make(map[uint64]*raft.Log), applied: make(map[uint64]time.Duration), by: make(map[uint64]string), points: make(map[uint64]point)}
}

// step returns the next place in the order. The caller holds the lock.
func (r *Recorder) step() int64 {
	r.last++
	return r.last
}

// Note adds a line to the history for people, such as a fault.
func (r *Recorder) Note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, fmt.Sprintf("%6d %10v %s", r.step(), time.Since(r.begin).Round(time.Millisecond), fmt.Sprintf(format, args...)))
}

// Violate records a broken promise that the caller found itself.
func (r *Recorder) Violate(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violate(format, args...)
}

func (r *Recorder) violate(format string, args ...any) {
	if len(r.violations) < 20 { // the first ones tell
		r.violations = append(r.violations, fmt.Sprintf(format, args...))
	}
}

// Write calls txn, which must commit t with the given Reason and nothing else, and
// records it.
func (r *Recorder) Write(peer string, txn func(reason string) (raftstore.Result, error)) error {
	r.mu.Lock()
	r.ids++
	w := &write{ID: fmt.Sprintf("op-%d", r.ids), Peer: peer, Call: r.step(), At: time.Since(r.begin), Outcome: Unknown}
	r.writes = append(r.writes, w)
	r.mu.Unlock()

	res, err := txn(w.ID)

	r.mu.Lock()
	defer r.mu.Unlock()
	w.Return, w.Until, w.Result = r.step(), time.Since(r.begin), res
	if err != nil {
		w.Error = err.Error()
	}
	conflict, isConflict := errors.AsType[*raftstore.ConflictError](err)
	switch {
	case err == nil:
		w.Outcome = Acked
	case isConflict:
		w.Outcome = Acked
		for _, kv := range conflict.Keys {
			w.Conflict = append(w.Conflict, kv.Key)
		}
	case errors.Is(err, raftstore.ErrOutcomeUnknown):
	case slices.ContainsFunc(impossible, func(why error) bool { return errors.Is(err, why) }):
		w.Outcome, w.Impossible = Acked, true
	case errors.Is(err, raftstore.ErrNoLeader), errors.Is(err, raftstore.ErrClosed), errors.Is(err, raftstore.ErrOverloaded),
		errors.Is(err, raftstore.ErrDeposed), errors.Is(err, raftstore.ErrNoSpace):
		w.Outcome = Refused
	default:
		r.violate("P1: %s: an error that no caller could expect: %v", w.ID, err)
	}
	return err
}

// Read calls sync, a linearizable read, and records what it shows of prefix.
func (r *Recorder) Read(peer, prefix string, sync func() (raftstore.View, error)) error {
	_, err := r.ReadAs(peer, prefix, raftstore.ReadOptions{}, func() (raftstore.View, time.Duration, error) {
		view, err := sync()
		return view, -1, err
	})
	return err
}

// ReadAs calls fn, a read with opts that returns the view and its age, and records
// what it shows of prefix. It returns the view's revision.
func (r *Recorder) ReadAs(peer, prefix string, opts raftstore.ReadOptions, fn func() (raftstore.View, time.Duration, error)) (raftstore.Revision, error) {
	r.mu.Lock()
	rd := &read{Peer: peer, Prefix: prefix, Options: opts, Call: r.step(), At: time.Since(r.begin)}
	r.mu.Unlock()
	view, age, err := fn()
	if err != nil {
		return 0, err // it says nothing
	}
	rd.Until, rd.Age = time.Since(r.begin), age
	rd.Keys = slices.Collect(view.Prefix(prefix))
	rd.Revision = view.Revision()
	r.mu.Lock()
	defer r.mu.Unlock()
	rd.Return = r.step()
	r.reads = append(r.reads, rd)
	return rd.Revision, nil
}

// Lease begins to record a lease that was granted.
func (r *Recorder) Lease(id int64, ttl time.Duration) *Lease {
	l := &Lease{r: r, id: id, ttl: ttl}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leases = append(r.leases, l)
	return l
}

// KeepAlive calls keep, which keeps the lease alive, and records the answer.
func (l *Lease) KeepAlive(keep func() error) error {
	call := time.Since(l.r.begin)
	err := keep()
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	switch {
	case err == nil:
		l.kept = append(l.kept, call)
	case errors.Is(err, raftstore.ErrLeaseNotFound):
		l.ended = max(time.Since(l.r.begin), 1)
	}
	return err
}

// Watch begins to record a watcher of prefix.
func (r *Recorder) Watch(prefix string) *Watch {
	w := &Watch{r: r, prefix: prefix}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watches = append(r.watches, w)
	return w
}

// Turn records one answer of a watcher on peer that stood at after.
func (w *Watch) Turn(peer string, after int64, events []raftstore.Event, upTo int64, err error) {
	if len(events) == 0 && upTo == after && !errors.Is(err, raftstore.ErrCompacted) {
		return
	}
	t := turn{Peer: peer, After: after, UpTo: upTo, Events: events}
	if compacted, ok := errors.AsType[*raftstore.CompactedError](err); ok {
		t.CompactedFor = compacted.Horizon
	}
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	t.At = time.Since(w.r.begin)
	w.turns = append(w.turns, t)
}

// Applied records entries that a peer has applied, and the state after them.
func (r *Recorder) Applied(peer string, entries []*raft.Log, root *mvcc.Root) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		known := r.entries[e.Index]
		if known == nil {
			r.entries[e.Index], r.by[e.Index], r.applied[e.Index] = e, peer, time.Since(r.begin)
		} else if known.Term != e.Term || known.Type != e.Type || !bytes.Equal(known.Data, e.Data) {
			r.violate("P6: entry %d is of term %d on %s and of term %d on %s, or differs", e.Index, known.Term, r.by[e.Index], e.Term, peer)
		}
	}
	p := point{peer, root.Revision(), root.Hash()}
	if q, ok := r.points[root.Index()]; !ok {
		r.points[root.Index()] = p
	} else if q.rev != p.rev || q.hash != p.hash {
		r.violate("P7: at index %d %s has revision %d and state hash %x, %s revision %d and %x", root.Index(), q.peer, q.rev, q.hash, peer, p.rev, p.hash)
	}
}

// Revision returns the highest revision that any peer has applied.
func (r *Recorder) Revision() (rev int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.points {
		rev = max(rev, p.rev)
	}
	return rev
}

// Dump writes all of it as lines of JSON, after the notes.
func (r *Recorder) Dump(to io.Writer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range r.violations {
		fmt.Fprintln(to, "violation:", v)
	}
	for _, n := range r.notes {
		fmt.Fprintln(to, n)
	}
	enc := json.NewEncoder(to)
	for _, w := range r.writes {
		if err := enc.Encode(w); err != nil {
			return err
		}
	}
	for _, rd := range r.reads {
		if err := enc.Encode(rd); err != nil {
			return err
		}
	}
	for i, w := range r.watches {
		for _, t := range w.turns {
			if err := enc.Encode(map[string]any{"watch": i, "prefix": w.prefix, "turn": t}); err != nil {
				return err
			}
		}
	}
	return nil
}
