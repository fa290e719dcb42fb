package history

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// pair is a version of a key that exists.
type pair struct {
	value                []byte
	create, mod, version int64
	lease                int64
}

// change is what a watch should see: a nil kv is a deletion.
type change struct {
	key      string
	rev      int64
	kv, prev *pair
}

// model is the store, as simple as can be: everything is copied or scanned.
type model struct {
	rev    int64
	keys   map[string]*pair // versions are never modified
	leases map[int64]bool
}

func newModel() *model { return &model{keys: make(map[string]*pair), leases: make(map[int64]bool)} }

func (m *model) clone() *model {
	return &model{rev: m.rev, keys: maps.Clone(m.keys), leases: maps.Clone(m.leases)}
}

// result is what a transaction must answer.
type result struct {
	rev                int64
	succeeded, deposed bool
	refused            bool
	granted, revoked   []int64  // leases
	failed             []string // keys of compares
	ops                []opResult
	changes            []change
}

type opResult struct {
	kvs       []found
	count     int64
	succeeded bool
	ops       []opResult
	put       bool // an answer may leave out what was there before
}

type found struct {
	key string
	*pair
}

// apply runs t in an entry of term. It changes m only if t has an effect.
func (m *model) apply(t *raftv1.Txn, term uint64) (res result, err error) {
	if t.GetTerm() != 0 && t.GetTerm() != term {
		return result{rev: m.rev, deposed: true}, nil
	}
	next := m.clone()
	res.succeeded, res.failed = next.compare(t)
	ops := t.GetThen()
	if !res.succeeded {
		ops = t.GetOtherwise()
	}
	if res.ops, err = next.run(m, ops, m.rev+1, &res); err != nil {
		return res, err
	}
	if res.refused {
		return result{rev: m.rev, refused: true}, nil
	}
	*m = *next
	res.rev = m.rev
	return res, nil
}

func (m *model) compare(t *raftv1.Txn) (ok bool, failed []string) {
	for _, c := range t.GetCompares() {
		keys := m.match(c.GetKey(), c.GetRangeEnd())
		if c.GetRangeEnd() == "" {
			keys = []string{c.GetKey()}
		}
		for _, key := range keys {
			if !holds(c, m.keys[key]) {
				failed = append(failed, key)
			}
		}
	}
	return len(failed) == 0, failed
}

func holds(c *raftv1.Compare, kv *pair) bool {
	var order int
	if c.GetTarget() == raftv1.CompareTarget_COMPARE_TARGET_VALUE {
		if kv == nil {
			return false
		}
		order = bytes.Compare(kv.value, c.GetValue())
	} else {
		if kv == nil {
			kv = new(pair)
		}
		have := map[raftv1.CompareTarget]int64{
			raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION:    kv.mod,
			raftv1.CompareTarget_COMPARE_TARGET_CREATE_REVISION: kv.create,
			raftv1.CompareTarget_COMPARE_TARGET_VERSION:         kv.version,
			raftv1.CompareTarget_COMPARE_TARGET_LEASE:           kv.lease,
		}[c.GetTarget()]
		order = cmp.Compare(have, c.GetNumber())
	}
	return map[raftv1.CompareResult]bool{
		raftv1.CompareResult_COMPARE_RESULT_EQUAL:     order == 0,
		raftv1.CompareResult_COMPARE_RESULT_NOT_EQUAL: order != 0,
		raftv1.CompareResult_COMPARE_RESULT_LESS:      order < 0,
		raftv1.CompareResult_COMPARE_RESULT_GREATER:   order > 0,
	}[c.GetResult()]
}

// run does ops at revision rev. Compares see the state before.
func (m *model) run(before *model, ops []*raftv1.Op, rev int64, res *result) (results []opResult, err error) {
	for _, op := range ops {
		var r opResult
		switch op := op.GetOp().(type) {
		case *raftv1.Op_Put:
			key, next := op.Put.GetKey(), &pair{value: op.Put.GetValue(), create: rev, mod: rev, version: 1, lease: op.Put.GetLease()}
			if op.Put.GetIgnoreValue() || op.Put.GetIgnoreLease() {
				return nil, fmt.Errorf("the model does not know a put that ignores value or lease")
			}
			if next.lease != 0 && !m.leases[next.lease] {
				res.refused = true
				return nil, nil
			}
			r.put = true
			if old := m.keys[key]; old != nil {
				next.create, next.version = old.create, old.version+1
				r.kvs, r.count = []found{{key, old}}, 1
			}
			m.set(key, next, rev, res)
		case *raftv1.Op_Delete:
			r = m.remove(m.match(op.Delete.GetKey(), op.Delete.GetRangeEnd()), rev, res)
		case *raftv1.Op_Range:
			for _, key := range m.match(op.Range.GetKey(), op.Range.GetRangeEnd()) {
				r.count++
				if limit := op.Range.GetLimit(); limit <= 0 || r.count <= limit {
					r.kvs = append(r.kvs, found{key, m.keys[key]})
				}
			}
		case *raftv1.Op_Txn:
			ok, _ := before.compare(op.Txn)
			inner := op.Txn.GetThen()
			if !ok {
				inner = op.Txn.GetOtherwise()
			}
			r.succeeded = ok
			if r.ops, err = m.run(before, inner, rev, res); err != nil || res.refused {
				return nil, err
			}
		case *raftv1.Op_LeaseGrant:
			if m.leases[op.LeaseGrant.GetId()] {
				res.refused = true
				return nil, nil
			}
			m.leases[op.LeaseGrant.GetId()] = true
			res.granted = append(res.granted, op.LeaseGrant.GetId())
		case *raftv1.Op_LeaseRevoke:
			id := op.LeaseRevoke.GetId()
			if !m.leases[id] {
				res.refused = true
				return nil, nil
			}
			delete(m.leases, id)
			res.revoked = append(res.revoked, id)
			var attached []string
			for key, kv := range m.keys {
				if kv.lease == id {
					attached = append(attached, key)
				}
			}
			slices.Sort(attached)
			r = m.remove(attached, rev, res)
		case *raftv1.Op_LeaseCheckpoint: // of no effect on keys
		default:
			return nil, fmt.Errorf("the model does not know %T", op)
		}
		results = append(results, r)
	}
	return results, nil
}

func (m *model) remove(keys []string, rev int64, res *result) (r opResult) {
	for _, key := range keys {
		r.kvs = append(r.kvs, found{key, m.keys[key]})
		r.count++
		m.set(key, nil, rev, res)
	}
	return r
}

func (m *model) set(key string, kv *pair, rev int64, res *result) {
	res.changes = append(res.changes, change{key, rev, kv, m.keys[key]})
	m.rev = rev
	if kv == nil {
		delete(m.keys, key)
	} else {
		m.keys[key] = kv
	}
}

// match returns the keys that exist in [key, end), in order: key alone if end is
// empty, all from key on if it is "\x00".
func (m *model) match(key, end string) (keys []string) {
	if end == "" {
		if m.keys[key] != nil {
			keys = append(keys, key)
		}
		return keys
	}
	for k := range m.keys {
		if k >= key && (end == "\x00" || k < end) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}
