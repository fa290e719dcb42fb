package mvcc

import (
	"bytes"
	"cmp"
	"strconv"
	"strings"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// applyTxn decides first, in plan, what the transaction will do, against the state
// before it. Only then does it change anything: a refusal leaves nothing half done.
func (s *State) applyTxn(req *request, e Entry, res *raftv1.TxnResult) {
	if len(req.id) > 0 {
		if known, ok := s.ids.byID[string(req.id)]; ok {
			known.replay(res)
			return
		}
	}
	if req.term != 0 && req.term != e.Term {
		res.Revision, res.Deposed = s.meta.revision, true
		return
	}
	p := &s.plan
	p.reset()
	w := writer{state: s, room: MaxRangeBytes}
	if req.full != nil {
		p.add(s, req.full, &res.Failed)
		res.Succeeded = p.taken[0]
		if p.refusal == 0 {
			w.taken = p.taken
			_, res.Results = w.run(req.full)
		}
	} else {
		p.addPlain(s, req, res)
		if p.refusal == 0 && res.Succeeded && len(req.puts) > 0 {
			res.Results = make([]*raftv1.OpResult, len(req.puts))
			for i := range req.puts {
				res.Results[i] = w.putPlain(&req.puts[i])
			}
		}
	}
	res.Revision, res.Refusal, res.Refused = s.meta.revision, p.refusal, p.refused
	if len(req.id) > 0 {
		s.remember(txnID{
			id: string(req.id), index: e.Index,
			revision: res.Revision, succeeded: res.Succeeded, refusal: res.Refusal,
		})
	}
}

// plan is what a transaction will do: which branches run, and why none may.
type plan struct {
	// taken has for each transaction on the way, in the order in which they are
	// met, whether its compares hold. They see the state before the outermost one.
	taken   []bool
	refusal raftv1.TxnRefusal
	refused string
	// granted has the leases that exist, or do not, other than in the state, by
	// the operations so far. Most transactions have none.
	granted map[int64]bool
}

func (p *plan) reset() { *p = plan{taken: p.taken[:0]} }

// refuse notes why the transaction is impossible; the first reason counts.
func (p *plan) refuse(why raftv1.TxnRefusal, what string) {
	if p.refusal == 0 {
		p.refusal, p.refused = why, what
	}
}

// addPlain plans a plain request.
func (p *plan) addPlain(s *State, req *request, res *raftv1.TxnResult) {
	res.Succeeded = true
	for _, c := range req.conditions {
		if key, r, ok := s.compare(c); !ok {
			res.Succeeded = false
			res.Failed = append(res.Failed, protoOf(strings.Clone(key), r, false))
		}
	}
	if res.Succeeded {
		for i := range req.puts {
			if id := req.puts[i].lease; id != 0 {
				p.needLease(s, id)
			}
		}
	}
}

// add plans txn. Keys that fail its own compares are added to failed, if that is
// not nil.
func (p *plan) add(s *State, txn *raftv1.Txn, failed *[]*raftv1.KeyValue) {
	holds := true
	for _, c := range txn.GetCompares() {
		key, r, ok := s.compare(conditionOf(c))
		if !ok {
			holds = false
			if failed != nil {
				*failed = append(*failed, protoOf(key, r, false))
			}
		}
	}
	p.taken = append(p.taken, holds)
	for _, op := range branch(txn, holds) {
		switch op := op.GetOp().(type) {
		case *raftv1.Op_Put:
			if id := op.Put.GetLease(); id != 0 && !op.Put.GetIgnoreLease() {
				p.needLease(s, id)
			}
			if op.Put.GetIgnoreValue() || op.Put.GetIgnoreLease() {
				if s.get(op.Put.GetKey()) == nil {
					p.refuse(raftv1.TxnRefusal_TXN_REFUSAL_KEY_NOT_FOUND, op.Put.GetKey())
				}
			}
		case *raftv1.Op_Range:
			switch rev := op.Range.GetRevision(); {
			case rev <= 0:
			case rev > s.meta.revision:
				p.refuse(raftv1.TxnRefusal_TXN_REFUSAL_FUTURE_REVISION, strconv.FormatInt(rev, 10))
			case rev < s.meta.horizon:
				p.refuse(raftv1.TxnRefusal_TXN_REFUSAL_COMPACTED, strconv.FormatInt(s.meta.horizon, 10))
			}
		case *raftv1.Op_Txn:
			p.add(s, op.Txn, nil)
		case *raftv1.Op_LeaseGrant:
			if id := op.LeaseGrant.GetId(); p.hasLease(s, id) {
				p.refuse(raftv1.TxnRefusal_TXN_REFUSAL_LEASE_EXISTS, strconv.FormatInt(id, 10))
			} else {
				p.setLease(id, true)
			}
		case *raftv1.Op_LeaseRevoke:
			p.needLease(s, op.LeaseRevoke.GetId())
			p.setLease(op.LeaseRevoke.GetId(), false)
		}
	}
}

func (p *plan) hasLease(s *State, id int64) bool {
	if has, ok := p.granted[id]; ok {
		return has
	}
	_, has := s.leases.get(id)
	return has
}

func (p *plan) needLease(s *State, id int64) {
	if !p.hasLease(s, id) {
		p.refuse(raftv1.TxnRefusal_TXN_REFUSAL_LEASE_NOT_FOUND, strconv.FormatInt(id, 10))
	}
}

func (p *plan) setLease(id int64, has bool) {
	if p.granted == nil {
		p.granted = make(map[int64]bool)
	}
	p.granted[id] = has
}

func branch(txn *raftv1.Txn, holds bool) []*raftv1.Op {
	if holds {
		return txn.GetThen()
	}
	return txn.GetOtherwise()
}

// compare reports whether c holds; if not, the first key for which it does not, and
// its record, if there is one.
func (s *State) compare(c condition) (key string, r *record, ok bool) {
	found, ok := false, true
	if c.end == "" {
		r := s.get(c.key)
		return c.key, r, holds(&c, r)
	}
	s.visit(c.key, c.end, func(head *record) bool {
		found = true
		key, r, ok = head.key, head, holds(&c, head)
		return ok
	})
	if !found {
		key, ok = c.key, holds(&c, nil)
	}
	return key, r, ok
}

// holds reports whether c holds for r, nil being a key that does not exist.
func holds(c *condition, r *record) bool {
	var order int
	switch c.target {
	case raftv1.CompareTarget_COMPARE_TARGET_VALUE:
		if r == nil {
			return false
		}
		order = bytes.Compare(r.bytes(), c.value)
	default:
		var have int64
		if r != nil {
			switch c.target {
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
		order = cmp.Compare(have, c.number)
	}
	switch c.result {
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

// writer makes the changes of one transaction, those within it included.
type writer struct {
	state *State
	taken []bool // of the plan, less what has run
	room  int    // bytes that its ranges may still return
	rev   int64  // 0 before the first change
	subs  int64
}

// run does what the plan says for txn.
func (w *writer) run(txn *raftv1.Txn) (holds bool, results []*raftv1.OpResult) {
	holds, w.taken = w.taken[0], w.taken[1:]
	ops := branch(txn, holds)
	if len(ops) == 0 {
		return holds, nil
	}
	results = make([]*raftv1.OpResult, len(ops))
	for i, op := range ops {
		results[i] = nothing
		switch op := op.GetOp().(type) {
		case *raftv1.Op_Put:
			results[i] = w.put(op.Put)
		case *raftv1.Op_Delete:
			results[i] = w.delete(op.Delete)
		case *raftv1.Op_Range:
			results[i] = w.readRange(op.Range)
		case *raftv1.Op_Txn:
			res := new(raftv1.OpResult)
			res.Succeeded, res.Results = w.run(op.Txn)
			results[i] = res
		case *raftv1.Op_LeaseGrant:
			w.state.grant(op.LeaseGrant)
		case *raftv1.Op_LeaseRevoke:
			results[i] = w.revoke(op.LeaseRevoke)
		case *raftv1.Op_LeaseCheckpoint:
			w.state.checkpoint(op.LeaseCheckpoint)
		}
	}
	return holds, results
}

// The results of most writes. Results are read only, so all can share them.
var (
	nothing = &raftv1.OpResult{}
	oneKey  = &raftv1.OpResult{Count: 1}
)

// change makes r the newest record of its key, at the transaction's revision, and
// returns the one before. r has version 1 if it is a put, else it is a tombstone.
func (w *writer) change(r *record) (old *record) {
	s := w.state
	if w.rev == 0 {
		s.meta.revision++
		w.rev = s.meta.revision
	}
	r.mod, r.sub = w.rev, w.subs
	w.subs++
	// No root has seen r yet, so what follows from the record before can be set
	// once the tree has told which it is: one descent instead of two.
	old, _ = s.keys.change().ReplaceOrInsert(r)
	if old != nil {
		r.prev, r.key = old, old.key // one string for all versions
	} else {
		r.key = strings.Clone(r.key)
	}
	if old.live() {
		s.meta.live--
		s.meta.liveBytes -= old.size()
		s.meta.pastBytes += old.size()
		s.meta.sum = s.meta.sum.sub(old.sum)
	}
	if r.live() {
		if old.live() {
			r.create, r.ver = old.create, old.ver+1
		} else {
			r.create = w.rev
		}
		r.sum = s.hasher.record(r)
		s.meta.live++
		s.meta.liveBytes += r.size()
		s.meta.sum = s.meta.sum.add(r.sum)
	} else {
		s.meta.pastBytes += r.size()
	}
	s.leases.move(old, r)
	s.events.append(r)
	return old
}

func (w *writer) putPlain(p *plainPut) *raftv1.OpResult {
	// The key may point into the entry: change copies it if it is new.
	if old := w.change(&record{key: p.key, value: string(p.value), ver: 1, lease: p.lease}); old.live() {
		return oneKey
	}
	return nothing
}

func (w *writer) put(op *raftv1.Put) *raftv1.OpResult {
	r := &record{key: op.GetKey(), ver: 1, lease: op.GetLease()}
	if op.GetIgnoreValue() || op.GetIgnoreLease() {
		// The plan has seen that it exists, but an operation before may have
		// deleted it: then there is nothing to keep.
		var head record
		if h := w.state.get(op.GetKey()); h != nil {
			head = *h
		}
		if op.GetIgnoreValue() {
			r.value = head.value
		} else {
			r.value = string(op.GetValue())
		}
		if op.GetIgnoreLease() {
			r.lease = head.lease
		}
	} else {
		r.value = string(op.GetValue())
	}
	old := w.change(r)
	switch {
	case !old.live():
		return nothing
	case op.GetPrevKv():
		return &raftv1.OpResult{Kvs: []*raftv1.KeyValue{protoOf(old.key, old, false)}, Count: 1}
	default:
		return oneKey
	}
}

func (w *writer) delete(op *raftv1.Delete) *raftv1.OpResult {
	if op.GetRangeEnd() == "" && !op.GetPrevKv() {
		if w.state.get(op.GetKey()) == nil {
			return nothing
		}
		w.change(&record{key: op.GetKey()})
		return oneKey
	}
	var heads []*record
	w.state.visit(op.GetKey(), op.GetRangeEnd(), func(head *record) bool {
		heads = append(heads, head)
		return true
	})
	res := &raftv1.OpResult{Count: int64(len(heads))}
	for _, head := range heads {
		if op.GetPrevKv() {
			res.Kvs = append(res.Kvs, protoOf(head.key, head, false))
		}
		w.change(&record{key: head.key})
	}
	return res
}

// MaxRangeBytes bounds what the ranges of a transaction return together, about: every
// replica collects it. The one that reaches it is cut off, as by its limit, and later
// ones return nothing but their counts; a key read by itself is always returned.
const MaxRangeBytes = 4 << 20

// kvOverhead is what a key takes in an answer besides key and value, about.
const kvOverhead = 32

func (w *writer) readRange(op *raftv1.Range) *raftv1.OpResult {
	s, res := w.state, new(raftv1.OpResult)
	rev := op.GetRevision()
	if rev <= 0 {
		rev = s.meta.revision
	}
	add := func(head *record) bool {
		r := head.at(rev)
		if r == nil {
			return true
		}
		res.Count++
		full := op.GetLimit() > 0 && int64(len(res.Kvs)) >= op.GetLimit() || op.GetRangeEnd() != "" && w.room <= 0
		if !op.GetCountOnly() && !full {
			kv := protoOf(r.key, r, op.GetKeysOnly())
			res.Kvs = append(res.Kvs, kv)
			w.room -= len(kv.Key) + len(kv.Value) + kvOverhead
		}
		return true
	}
	if op.GetRangeEnd() == "" {
		add(s.head(op.GetKey()))
	} else {
		ascend(s.keys.tree, op.GetKey(), op.GetRangeEnd(), add)
	}
	return res
}

// protoOf returns r for an answer; a nil r gives the key alone. The value is
// shared, not copied.
func protoOf(key string, r *record, keyOnly bool) *raftv1.KeyValue {
	if r == nil {
		return &raftv1.KeyValue{Key: key}
	}
	kv := &raftv1.KeyValue{
		Key: key, CreateRevision: r.create, ModRevision: r.mod, Version: r.ver, Lease: r.lease,
	}
	if !keyOnly {
		kv.Value = r.bytes()
	}
	return kv
}
