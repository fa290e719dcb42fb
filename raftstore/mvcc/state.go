package mvcc

import (
	"bytes"
	"cmp"
	"fmt"

	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// State is the state machine. One goroutine owns it; see Root for readers.
type State struct {
	tree    *tree
	log     eventLog
	meta    meta
	horizon int64
}

// New returns the state before the first log entry: no keys, revision 0.
func New() *State { return &State{tree: newTree()} }

// Entry is a committed log entry.
type Entry struct {
	Index uint64
	Term  uint64
	// Data is a holdfast.raft.v1.Command. It is not kept.
	Data []byte
}

// Applied is what an entry did.
type Applied struct {
	// Results has one element for each transaction of a batch, in order.
	Results []*raftv1.TxnResult
	// Changed is true when the revision moved.
	Changed bool
}

// Apply applies an entry. An error means that this program cannot understand the
// entry; state is as before, and the caller must stop, since other replicas may
// have understood it.
func (s *State) Apply(e Entry) (Applied, error) {
	var cmd raftv1.Command
	if err := proto.Unmarshal(e.Data, &cmd); err != nil {
		return Applied{}, fmt.Errorf("decode entry %d: %w", e.Index, err)
	}
	if strange(&cmd) {
		return Applied{}, fmt.Errorf("entry %d: %w", e.Index, errNewer("command"))
	}
	var out Applied
	before := s.meta.revision
	switch op := cmd.GetOp().(type) {
	case *raftv1.Command_Batch:
		// Understand all of it before the first change.
		for _, txn := range op.Batch.GetTxns() {
			if err := Check(txn); err != nil {
				return Applied{}, fmt.Errorf("entry %d: %w", e.Index, err)
			}
		}
		out.Results = make([]*raftv1.TxnResult, len(op.Batch.GetTxns()))
		for i, txn := range op.Batch.GetTxns() {
			out.Results[i] = s.applyTxn(txn, e.Term)
		}
	case *raftv1.Command_TermMarker:
		// A marker that a leader proposed and lost proves nothing for the term
		// in which another leader's log carries it.
		if term := op.TermMarker.GetTerm(); term == e.Term {
			s.meta.markerTerm = term
		}
	case *raftv1.Command_Compact:
		s.compact(op.Compact.GetRevision())
	default:
		return Applied{}, fmt.Errorf("entry %d: it holds no command", e.Index)
	}
	s.meta.index = e.Index
	out.Changed = s.meta.revision != before
	return out, nil
}

// Skip records that the log has come to index with entries that are not for the
// state, such as changes of raft's configuration.
func (s *State) Skip(index uint64) { s.meta.index = max(s.meta.index, index) }

// Root returns the state as it is. It costs a few words; the writer copies what
// it changes from now on.
func (s *State) Root() *Root {
	return &Root{tree: s.tree.Clone(), log: s.log, meta: s.meta, horizon: s.horizon}
}

// Check reports what in txn this program does not understand: unknown fields, too,
// since ignoring one that another replica heeds would fork the state. An entry with
// such a transaction stops a replica; so proposers ask first.
func Check(txn *raftv1.Txn) error {
	if strange(txn) {
		return errNewer("field of a transaction")
	}
	for _, c := range txn.GetCompares() {
		switch {
		case strange(c):
			return errNewer("field of a compare")
		case c.GetTarget() < raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION || c.GetTarget() > raftv1.CompareTarget_COMPARE_TARGET_LEASE:
			return errNewer(fmt.Sprintf("compare target %v", c.GetTarget()))
		case c.GetResult() < raftv1.CompareResult_COMPARE_RESULT_EQUAL || c.GetResult() > raftv1.CompareResult_COMPARE_RESULT_GREATER:
			return errNewer(fmt.Sprintf("compare result %v", c.GetResult()))
		}
	}
	for _, ops := range [...][]*raftv1.Op{txn.GetThen(), txn.GetOtherwise()} {
		for _, op := range ops {
			var detail proto.Message
			switch op := op.GetOp().(type) {
			case *raftv1.Op_Put:
				detail = op.Put
			case *raftv1.Op_Delete:
				detail = op.Delete
			case *raftv1.Op_Range:
				detail = op.Range
			default:
				return errNewer("operation")
			}
			if strange(op) || strange(detail) {
				return errNewer("field of an operation")
			}
		}
	}
	return nil
}

func strange(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

func errNewer(what string) error {
	return fmt.Errorf("unknown %s: written by a newer version of holdfast; upgrade this peer", what)
}

func (s *State) applyTxn(txn *raftv1.Txn, term uint64) *raftv1.TxnResult {
	if txn.GetTerm() != 0 && txn.GetTerm() != term {
		return &raftv1.TxnResult{Revision: s.meta.revision, Deposed: true}
	}
	res := &raftv1.TxnResult{Succeeded: true}
	for _, c := range txn.GetCompares() {
		if head := s.get(c.GetKey()); !holds(c, head) {
			res.Succeeded = false
			res.Failed = append(res.Failed, protoOf(c.GetKey(), head))
		}
	}
	ops := txn.GetThen()
	if !res.Succeeded {
		ops = txn.GetOtherwise()
	}
	// The transaction's revision, taken with its first change.
	w := writer{state: s}
	res.Results = make([]*raftv1.OpResult, len(ops))
	for i, op := range ops {
		switch op := op.GetOp().(type) {
		case *raftv1.Op_Put:
			res.Results[i] = w.put(op.Put)
		case *raftv1.Op_Delete:
			res.Results[i] = w.delete(op.Delete)
		case *raftv1.Op_Range:
			res.Results[i] = s.readRange(op.Range)
		}
	}
	res.Revision = s.meta.revision
	return res
}

// get returns the live record of key, or nil.
func (s *State) get(key string) *record {
	if head, ok := s.tree.Get(&record{key: key}); ok && head.live() {
		return head
	}
	return nil
}

func holds(c *raftv1.Compare, r *record) bool {
	var order int
	switch c.GetTarget() {
	case raftv1.CompareTarget_COMPARE_TARGET_VALUE:
		if r == nil {
			return false
		}
		order = bytes.Compare(r.value, c.GetValue())
	default:
		var have int64
		if r != nil {
			switch c.GetTarget() {
			case raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION:
				have = r.mod
			case raftv1.CompareTarget_COMPARE_TARGET_CREATE_REVISION:
				have = r.create
			case raftv1.CompareTarget_COMPARE_TARGET_VERSION:
				have = r.ver
			case raftv1.CompareTarget_COMPARE_TARGET_LEASE:
				have = r.lease
			}
		}
		order = cmp.Compare(have, c.GetNumber())
	}
	switch c.GetResult() {
	case raftv1.CompareResult_COMPARE_RESULT_EQUAL:
		return order == 0
	case raftv1.CompareResult_COMPARE_RESULT_NOT_EQUAL:
		return order != 0
	case raftv1.CompareResult_COMPARE_RESULT_LESS:
		return order < 0
	default: // Check has seen that it is one of the four
		return order > 0
	}
}

// writer makes the changes of one transaction.
type writer struct {
	state *State
	rev   int64 // 0 before the first change
	subs  int64
}

// change puts r in the place of its predecessor, at the transaction's revision.
func (w *writer) change(r *record) {
	s := w.state
	if w.rev == 0 {
		s.meta.revision++
		w.rev = s.meta.revision
	}
	r.mod, r.sub = w.rev, w.subs
	w.subs++
	if old := r.prev; old != nil {
		r.key = old.key // one string for all versions
		if old.live() {
			s.meta.live--
			s.meta.liveBytes -= old.size()
			s.meta.pastBytes += old.size()
			s.meta.hash = s.meta.hash.sub(old.sum)
		}
	}
	if r.live() {
		if r.create == 0 {
			r.create = w.rev
		}
		r.sum = sumOf(r)
		s.meta.live++
		s.meta.liveBytes += r.size()
		s.meta.hash = s.meta.hash.add(r.sum)
	} else {
		s.meta.pastBytes += r.size()
	}
	s.tree.ReplaceOrInsert(r)
	s.log.append(r)
}

func (w *writer) put(op *raftv1.Put) *raftv1.OpResult {
	head, _ := w.state.tree.Get(&record{key: op.GetKey()})
	r := &record{key: op.GetKey(), value: op.GetValue(), ver: 1, lease: op.GetLease(), prev: head}
	if r.value == nil {
		r.value = []byte{}
	}
	res := new(raftv1.OpResult)
	if head.live() {
		r.create, r.ver = head.create, head.ver+1
		res.Kvs, res.Count = []*raftv1.KeyValue{protoOf(head.key, head)}, 1
	}
	w.change(r)
	return res
}

func (w *writer) delete(op *raftv1.Delete) *raftv1.OpResult {
	res := new(raftv1.OpResult)
	for _, head := range w.state.find(op.GetKey(), op.GetRangeEnd()) {
		res.Kvs = append(res.Kvs, protoOf(head.key, head))
		w.change(&record{key: head.key, prev: head})
	}
	res.Count = int64(len(res.Kvs))
	return res
}

func (s *State) readRange(op *raftv1.Range) *raftv1.OpResult {
	res := new(raftv1.OpResult)
	for _, head := range s.find(op.GetKey(), op.GetRangeEnd()) {
		res.Count++
		if op.GetLimit() <= 0 || int64(len(res.Kvs)) < op.GetLimit() {
			res.Kvs = append(res.Kvs, protoOf(head.key, head))
		}
	}
	return res
}

// NoEnd as a range's end stands for no bound.
const NoEnd = "\x00"

// find returns the live records of key, or of [key, end) if end is not empty.
func (s *State) find(key, end string) (found []*record) {
	if end == "" {
		if head := s.get(key); head != nil {
			found = append(found, head)
		}
		return found
	}
	visit := func(head *record) bool {
		if head.live() {
			found = append(found, head)
		}
		return true
	}
	if end == NoEnd {
		s.tree.AscendGreaterOrEqual(&record{key: key}, visit)
	} else if key < end {
		s.tree.AscendRange(&record{key: key}, &record{key: end}, visit)
	}
	return found
}

// protoOf returns r for an answer; a nil r gives the key alone. The value is
// shared, not copied.
func protoOf(key string, r *record) *raftv1.KeyValue {
	if r == nil {
		return &raftv1.KeyValue{Key: key}
	}
	return &raftv1.KeyValue{
		Key: key, Value: r.value, CreateRevision: r.create,
		ModRevision: r.mod, Version: r.ver, Lease: r.lease,
	}
}

// compact forgets what only readers below revision to need. What it costs grows
// with the number of changes that it forgets, not with that of keys.
func (s *State) compact(to int64) {
	to = min(to, s.meta.revision)
	if to <= s.horizon {
		return
	}
	s.horizon = to
	gone := s.log.after(to)
	for i := range gone {
		// Each change up to the horizon made the version before it unreadable.
		// Of several changes of one key the first trims for all.
		s.trim(s.log.at(i).key)
	}
	s.log.drop(gone)
}

// trim forgets the versions of key that no reader at or after the horizon can see.
// Records are immutable, as readers may hold them: those kept are copied, without
// the tail.
func (s *State) trim(key string) {
	head, ok := s.tree.Get(&record{key: key})
	if !ok {
		return
	}
	var kept []*record // newest first
	base := head       // becomes the version current at the horizon
	for base != nil && base.mod > s.horizon {
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
		s.tree.Delete(head)
		return
	}
	var prev *record
	for i := len(kept) - 1; i >= 0; i-- {
		r := *kept[i]
		r.prev = prev
		prev = &r
	}
	s.tree.ReplaceOrInsert(prev)
}
