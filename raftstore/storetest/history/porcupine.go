package history

import (
	"bytes"
	"maps"
	"math"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// porcupinePatience bounds the search of one history, in real time.
const porcupinePatience = 20 * time.Second

// call is a write, with a transaction, or a read.
type call struct {
	txn    *raftv1.Txn
	term   uint64
	prefix string
}

// porcupine asks an independent checker, which is told nothing of the log's order:
// only what became of calls whose outcome the caller does not know.
func (r *Recorder) porcupine(o *oracle, st *Stats) {
	var ops []porcupine.Operation
	ours := make(map[string]bool)
	for i, w := range r.writes {
		ours[w.ID] = true
		in := o.txns[w.ID]
		if len(in) != 1 || w.Outcome == Refused || in[0].want.deposed {
			continue
		}
		op := porcupine.Operation{ClientId: i, Input: call{txn: in[0].txn, term: in[0].term}, Call: w.Call, Return: w.Return}
		switch {
		case w.Outcome == Unknown:
			op.Return = math.MaxInt64
			op.Output = result{rev: in[0].want.rev, succeeded: in[0].want.succeeded, refused: in[0].want.refused}
		case w.Error != "":
			op.Output = result{rev: in[0].want.rev, succeeded: false, refused: w.Impossible}
		default:
			op.Output = result{rev: w.Result.Revision, succeeded: w.Result.Succeeded}
		}
		ops = append(ops, op)
	}
	// What the cluster does by itself: when, nobody has recorded.
	for reason, in := range o.txns {
		for _, c := range in {
			if !ours[reason] && !c.want.deposed && len(c.want.changes)+len(c.want.granted)+len(c.want.revoked) > 0 {
				ops = append(ops, porcupine.Operation{
					ClientId: len(r.writes) + len(r.reads) + len(ops), Input: call{txn: c.txn, term: c.term},
					Output: result{rev: c.want.rev, succeeded: c.want.succeeded}, Return: math.MaxInt64,
				})
			}
		}
	}
	for i, rd := range r.reads {
		if !rd.linearizable() {
			continue
		}
		ops = append(ops, porcupine.Operation{ClientId: len(r.writes) + i, Input: call{prefix: rd.Prefix}, Output: rd, Call: rd.Call, Return: rd.Return})
	}
	switch porcupine.CheckOperationsTimeout(r.machine(), ops, porcupinePatience) {
	case porcupine.Illegal:
		r.violate("P1: porcupine: the history is not linearizable")
	case porcupine.Unknown:
		st.Undecided++
	case porcupine.Ok:
	}
}

// machine is the model as porcupine wants it, from the beginning of the history on.
func (r *Recorder) machine() porcupine.Model {
	m := machine
	m.Init = func() any { return r.first() }
	return m
}

// machine is the model as porcupine wants it: states are never modified.
var machine = porcupine.Model{
	Step: func(state, input, output any) (bool, any) {
		m, in := state.(*model), input.(call)
		if rd, ok := output.(*read); ok {
			return m.rev == rd.Revision && m.shows(rd), m
		}
		want := output.(result)
		// Most wrong guesses are seen by the revision alone.
		if want.rev != m.rev && want.rev != m.rev+1 {
			return false, m
		}
		next := *m // apply copies what it changes
		got, err := next.apply(in.txn, in.term)
		if err != nil || got.rev != want.rev || got.succeeded != want.succeeded || got.refused != want.refused {
			return false, m
		}
		return true, &next
	},
	Equal: func(a, b any) bool {
		x, y := a.(*model), b.(*model)
		if x == y {
			return true
		}
		if x.rev != y.rev || len(x.keys) != len(y.keys) || !maps.Equal(x.leases, y.leases) {
			return false
		}
		for key, kv := range x.keys {
			if other := y.keys[key]; kv != other && (other == nil || !sameAs(kv, other.value, other.create, other.mod, other.version)) {
				return false
			}
		}
		return true
	},
	// States of one revision are nearly always the same.
	Hash: func(state any) uint64 { return uint64(state.(*model).rev) },
}

// shows reports whether a read of m could have given what rd did.
func (m *model) shows(rd *read) bool {
	n := 0
	for key := range m.keys {
		if strings.HasPrefix(key, rd.Prefix) {
			n++
		}
	}
	if n != len(rd.Keys) {
		return false
	}
	for _, kv := range rd.Keys {
		if p := m.keys[kv.Key]; p == nil || !bytes.Equal(p.value, kv.Value) || p.mod != kv.Mod || p.version != kv.Version {
			return false
		}
	}
	return true
}
