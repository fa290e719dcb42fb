package mvcc

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// State is the state machine. One goroutine owns it; see Root for readers.
type State struct {
	keys    cow[*record] // the newest record of each key, tombstones included
	leases  leases
	ids     txnIDs            // of transactions, for retries
	events  sequence[*record] // what was changed since the event horizon, in order
	samples sequence[timeSample]
	hashes  sequence[hashMark]
	meta    meta

	decoder decoder
	hasher  *hasher
	probe   record // to look up keys without allocating
	plan    plan   // of the transaction at hand
}

// New returns the state before the first log entry: no keys, revision 0.
func New() *State {
	return &State{
		keys:   newCow(byKey),
		leases: newLeases(),
		ids:    txnIDs{byID: make(map[string]txnID)},
		hasher: newHasher(),
	}
}

// Entry is a committed log entry.
type Entry struct {
	Index uint64
	Term  uint64
	// Data is a holdfast.raft.v1.Command. It is not kept.
	Data []byte
}

// Applied is what an entry did.
type Applied struct {
	// Results has one element for each transaction of a batch, in order. They are
	// shared: never modify them.
	Results []*raftv1.TxnResult
	// Changed is true when the revision moved.
	Changed bool
	// Check is what a HashCheck entry found, nil for others.
	Check *CheckResult
}

// Apply applies an entry. An error means that this program cannot understand the
// entry; state is as before, and the caller must stop, since other replicas may
// have understood it.
func (s *State) Apply(e Entry) (Applied, error) {
	before := s.meta.revision
	var out Applied
	requests, proposed, plain := s.decoder.command(e.Data)
	if plain {
		out.Results = s.applyBatch(requests, e)
	} else {
		var cmd raftv1.Command
		if err := proto.Unmarshal(e.Data, &cmd); err != nil {
			return Applied{}, fmt.Errorf("decode entry %d: %w", e.Index, err)
		}
		if err := checkCommand(&cmd); err != nil {
			return Applied{}, fmt.Errorf("entry %d: %w", e.Index, err)
		}
		proposed = millis(cmd.GetProposedAt().GetSeconds(), int64(cmd.GetProposedAt().GetNanos()))
		switch op := cmd.GetOp().(type) {
		case *raftv1.Command_Batch:
			requests := make([]request, len(op.Batch.GetTxns()))
			for i, txn := range op.Batch.GetTxns() {
				requests[i] = request{full: txn, term: txn.GetTerm(), id: txn.GetId()}
			}
			out.Results = s.applyBatch(requests, e)
		case *raftv1.Command_TermMarker:
			// A marker that a leader proposed and lost proves nothing for the term
			// in which another leader's log carries it.
			if term := op.TermMarker.GetTerm(); term == e.Term {
				s.meta.markerTerm = term
			}
		case *raftv1.Command_Compact:
			s.compact(op.Compact.GetRevision())
		case *raftv1.Command_HashCheck:
			out.Check = s.check(op.HashCheck, e.Index)
		}
	}
	out.Changed = s.meta.revision != before
	s.meta.index = e.Index
	if out.Changed {
		s.sample(proposed)
	}
	s.markHash()
	return out, nil
}

func (s *State) applyBatch(requests []request, e Entry) []*raftv1.TxnResult {
	s.forgetIDs(e.Index)
	results := make([]raftv1.TxnResult, len(requests)) // one block for all
	pointers := make([]*raftv1.TxnResult, len(requests))
	for i := range requests {
		pointers[i] = &results[i]
		s.applyTxn(&requests[i], e, &results[i])
	}
	return pointers
}

// Skip records that the log has come to index with entries that are not for the
// state, such as changes of raft's configuration.
func (s *State) Skip(index uint64) { s.meta.index = max(s.meta.index, index) }

// Root returns the state as it is. It costs a few words; the writer copies what
// it changes from now on.
func (s *State) Root() *Root {
	return &Root{
		keys: s.keys.snapshot(), leases: s.leases.byID.snapshot(), attached: s.leases.attached.snapshot(),
		ids: s.ids.list, events: s.events, samples: s.samples, hashes: s.hashes, meta: s.meta,
	}
}

// head returns the newest record of key, which may be a tombstone, or nil.
func (s *State) head(key string) *record {
	s.probe.key = key
	head, _ := s.keys.tree.Get(&s.probe)
	return head
}

// get returns the live record of key, or nil.
func (s *State) get(key string) *record {
	if head := s.head(key); head.live() {
		return head
	}
	return nil
}

// NoEnd as a range's end stands for no bound.
const NoEnd = "\x00"

// visit calls f for the live records of key, or of [key, end) if end is not empty,
// in key order, until it returns false.
func (s *State) visit(key, end string, f func(*record) bool) {
	if end == "" {
		if head := s.get(key); head != nil {
			f(head)
		}
		return
	}
	ascend(s.keys.tree, key, end, func(head *record) bool { return !head.live() || f(head) })
}

// compact makes revisions below to unreadable and forgets what only their readers
// need. Events of revision to itself stay, and what their keys were before them:
// who reads at the horizon may watch from there on, that revision included. What
// it costs grows with the number of changes that it forgets, not with that of keys.
func (s *State) compact(to int64) {
	to = min(to, s.meta.revision)
	if to <= s.meta.horizon {
		return
	}
	s.meta.horizon = to
	s.meta.eventHorizon = max(s.meta.eventHorizon, to-1)
	gone := eventsAfter(&s.events, s.meta.eventHorizon)
	for i := range gone {
		// Each change up to the horizon made the version before it unreadable.
		// Of several changes of one key the first trims for all.
		s.trim(s.events.at(i).key)
	}
	s.events.drop(gone)
	s.forgetSamples()
}

// trim forgets the versions of key that no reader after the event horizon can see.
// Records are immutable, as readers may hold them: those kept are copied, without
// the tail.
func (s *State) trim(key string) {
	head := s.head(key)
	if head == nil {
		return
	}
	var kept []*record // newest first
	base := head       // becomes the version current at the event horizon
	for base != nil && base.mod > s.meta.eventHorizon {
		kept = append(kept, base)
		base = base.prev
	}
	if base == nil || base.live() && base.prev == nil {
		return // nothing is older, or trimmed already
	}
	for old := base.prev; old != nil; old = old.prev {
		s.meta.pastBytes -= old.size()
	}
	if base.live() {
		kept = append(kept, base)
	} else {
		// A tombstone reads as no version at all.
		s.meta.pastBytes -= base.size()
	}
	if len(kept) == 0 {
		s.keys.change().Delete(head)
		return
	}
	var prev *record
	for i := len(kept) - 1; i >= 0; i-- {
		r := *kept[i]
		r.prev = prev
		prev = &r
	}
	s.keys.change().ReplaceOrInsert(prev)
	// The lease must not hold on to the record that holds on to the tail.
	s.leases.move(head, prev)
}
