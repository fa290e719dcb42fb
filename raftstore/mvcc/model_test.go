package mvcc

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

var (
	seeds = flag.Int("mvcc.seeds", 60, "random histories that the model test plays")
	steps = flag.Int("mvcc.steps", 250, "entries of each history")
)

// model is the state machine written for obviousness: a whole map for each revision.
type model struct {
	states  []map[string]KeyValue // by revision
	events  []Event
	horizon int64
}

func (m *model) revision() int64 { return int64(len(m.states)) - 1 }

func (m *model) now() map[string]KeyValue { return m.states[len(m.states)-1] }

// apply is Txn's meaning, word for word.
func (m *model) apply(txn *raftv1.Txn, term uint64) *raftv1.TxnResult {
	if txn.Term != 0 && txn.Term != term {
		return &raftv1.TxnResult{Revision: m.revision(), Deposed: true}
	}
	state := maps.Clone(m.now())
	res := &raftv1.TxnResult{Succeeded: true}
	for _, c := range txn.Compares {
		kv := state[c.Key]
		num := map[raftv1.CompareTarget]int64{
			raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION:    kv.Mod,
			raftv1.CompareTarget_COMPARE_TARGET_CREATE_REVISION: kv.Create,
			raftv1.CompareTarget_COMPARE_TARGET_VERSION:         kv.Version,
			raftv1.CompareTarget_COMPARE_TARGET_LEASE:           kv.Lease,
		}[c.Target]
		less, equal := num < c.Number, num == c.Number
		exists := true
		if c.Target == raftv1.CompareTarget_COMPARE_TARGET_VALUE {
			less, equal = bytes.Compare(kv.Value, c.Value) < 0, bytes.Equal(kv.Value, c.Value)
			exists = kv.Version > 0
		}
		ok := map[raftv1.CompareResult]bool{
			raftv1.CompareResult_COMPARE_RESULT_EQUAL:     equal,
			raftv1.CompareResult_COMPARE_RESULT_NOT_EQUAL: !equal,
			raftv1.CompareResult_COMPARE_RESULT_LESS:      less,
			raftv1.CompareResult_COMPARE_RESULT_GREATER:   !less && !equal,
		}[c.Result] && exists
		if !ok {
			res.Succeeded = false
			res.Failed = append(res.Failed, pb(c.Key, kv))
		}
	}
	ops := txn.Then
	if !res.Succeeded {
		ops = txn.Otherwise
	}
	rev := m.revision() + 1
	var events []Event
	for _, op := range ops {
		out := new(raftv1.OpResult)
		switch op := op.Op.(type) {
		case *raftv1.Op_Put:
			old := state[op.Put.Key]
			kv := KeyValue{Key: op.Put.Key, Value: op.Put.Value, Create: old.Create, Mod: rev, Version: old.Version + 1, Lease: op.Put.Lease}
			e := Event{Key: kv.Key, Type: Put, Revision: rev}
			if old.Version == 0 {
				kv.Create = rev
			} else {
				out.Count, e.Prev = 1, &old
				if op.Put.PrevKv {
					out.Kvs = []*raftv1.KeyValue{pb(old.Key, old)}
				}
			}
			e.KV = kv
			state[kv.Key] = kv
			events = append(events, e)
		case *raftv1.Op_Delete:
			for _, key := range matching(state, op.Delete.Key, op.Delete.RangeEnd) {
				old := state[key]
				if op.Delete.PrevKv {
					out.Kvs = append(out.Kvs, pb(key, old))
				}
				out.Count++
				delete(state, key)
				events = append(events, Event{Key: key, Type: Delete, KV: KeyValue{Key: key, Mod: rev}, Prev: &old, Revision: rev})
			}
		case *raftv1.Op_Range:
			for _, key := range matching(state, op.Range.Key, op.Range.RangeEnd) {
				if out.Count++; op.Range.Limit == 0 || out.Count <= op.Range.Limit {
					out.Kvs = append(out.Kvs, pb(key, state[key]))
				}
			}
		}
		res.Results = append(res.Results, out)
	}
	if len(events) > 0 {
		m.states = append(m.states, state)
		m.events = append(m.events, events...)
	}
	res.Revision = m.revision()
	return res
}

func matching(state map[string]KeyValue, key, end string) (keys []string) {
	for k := range state {
		if k == key && end == "" || end != "" && k >= key && (end == NoEnd || k < end) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func pb(key string, kv KeyValue) *raftv1.KeyValue {
	return &raftv1.KeyValue{Key: key, Value: kv.Value, CreateRevision: kv.Create, ModRevision: kv.Mod, Version: kv.Version, Lease: kv.Lease}
}

// randomTxn writes few keys often, so that histories get long and compares hit.
func randomTxn(r *rand.Rand, rev int64) *raftv1.Txn {
	key := func() string { return fmt.Sprintf("k%d/%d", r.IntN(3), r.IntN(6)) }
	bounds := func() (string, string) {
		switch r.IntN(4) {
		case 0:
			prefix := fmt.Sprintf("k%d/", r.IntN(3))
			return prefix, PrefixEnd(prefix)
		case 1:
			return key(), NoEnd
		case 2:
			return key(), key() // often empty
		default:
			return key(), ""
		}
	}
	value := func() []byte { return []byte(strings.Repeat("v", r.IntN(3)) + string(rune('a'+r.IntN(3)))) }
	txn := &raftv1.Txn{}
	if r.IntN(10) == 0 {
		txn.Term = uint64(1 + r.IntN(3))
	}
	for range r.IntN(3) {
		txn.Compares = append(txn.Compares, &raftv1.Compare{
			Key: key(), Target: raftv1.CompareTarget(1 + r.IntN(5)), Result: raftv1.CompareResult(1 + r.IntN(4)),
			Number: []int64{0, 1, 2, r.Int64N(rev + 1), rev}[r.IntN(5)], Value: value(),
		})
	}
	branch := func() (ops []*raftv1.Op) {
		written := map[string]bool{}
		for range r.IntN(4) {
			switch r.IntN(6) {
			case 0:
				k, end := bounds()
				ops = append(ops, &raftv1.Op{Op: &raftv1.Op_Range{Range: &raftv1.Range{Key: k, RangeEnd: end, Limit: r.Int64N(3)}}})
			case 1:
				if len(written) == 0 { // ranges first, so that nothing is written twice
					k, end := bounds()
					ops = append(ops, &raftv1.Op{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: k, RangeEnd: end, PrevKv: r.IntN(2) == 0}}})
					return ops
				}
			default:
				k := key()
				if written[k] {
					continue
				}
				written[k] = true
				ops = append(ops, &raftv1.Op{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: k, Value: value(), PrevKv: r.IntN(2) == 0}}})
			}
		}
		return ops
	}
	txn.Then, txn.Otherwise = branch(), branch()
	return txn
}

func encode(t testing.TB, cmd *raftv1.Command) []byte {
	t.Helper()
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func batch(txns ...*raftv1.Txn) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_Batch{Batch: &raftv1.Batch{Txns: txns}}}
}

// TestModel plays random histories against the model: every result, every readable
// revision, every event; through snapshots, and on roots held while the state
// goes on and compacts.
func TestModel(t *testing.T) {
	var txns, changed, compactions, restores int
	for seed := range *seeds {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		m := &model{states: []map[string]KeyValue{{}}}
		s := New()
		var log []Entry // for the twin
		type held struct {
			root   *Root
			states []map[string]KeyValue
			events []Event
		}
		var roots []held
		for step := range *steps {
			e := Entry{Index: uint64(step + 1), Term: uint64(1 + step/100)}
			var want []*raftv1.TxnResult
			switch n := r.IntN(40); {
			case n == 0:
				to := r.Int64N(m.revision() + 2)
				e.Data = encode(t, &raftv1.Command{Op: &raftv1.Command_Compact{Compact: &raftv1.Compact{Revision: to}}})
				m.horizon = max(m.horizon, min(to, m.revision()))
				compactions++
			case n == 1:
				e.Data = encode(t, &raftv1.Command{Op: &raftv1.Command_TermMarker{TermMarker: &raftv1.TermMarker{Term: e.Term}}})
			default:
				var list []*raftv1.Txn
				for range 1 + r.IntN(3) {
					txn := randomTxn(r, m.revision())
					list = append(list, txn)
					want = append(want, m.apply(txn, e.Term))
				}
				e.Data = encode(t, batch(list...))
			}
			before := s.meta.revision
			got, err := s.Apply(e)
			if err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
			log = append(log, e)
			if got.Changed != (m.revision() != before) {
				t.Fatalf("seed %d step %d: Changed is %v, revision went from %d to %d", seed, step, got.Changed, before, m.revision())
			}
			for i := range want {
				txns++
				if !proto.Equal(got.Results[i], want[i]) {
					t.Fatalf("seed %d step %d: result %v, want %v", seed, step, got.Results[i], want[i])
				}
			}
			if got.Changed {
				changed++
			}
			if r.IntN(20) == 0 {
				roots = append(roots, held{s.Root(), m.states, slices.Clone(m.after())})
			}
			if r.IntN(60) == 0 {
				s = restored(t, s.Root())
				restores++
			}
		}
		roots = append(roots, held{s.Root(), m.states, m.after()})
		for _, h := range roots {
			if err := agree(h.root, h.states, h.events); err != nil {
				t.Fatalf("seed %d, root at revision %d: %v", seed, h.root.Revision(), err)
			}
		}
		// A twin that is given the same log, without the snapshots, ends the same.
		twin := New()
		for _, e := range log {
			if _, err := twin.Apply(e); err != nil {
				t.Fatal(err)
			}
		}
		if a, b := dump(t, twin.Root()), dump(t, s.Root()); !bytes.Equal(a, b) || twin.meta != s.meta {
			t.Fatalf("seed %d: two plays of one log differ: %+v and %+v", seed, twin.meta, s.meta)
		}
	}
	if changed < txns/10 || compactions == 0 || restores == 0 {
		t.Fatalf("the histories are not worth their name: %d transactions, %d changing entries, %d compactions, %d restores", txns, changed, compactions, restores)
	}
	t.Logf("%d transactions, %d changing entries, %d compactions, %d restores", txns, changed, compactions, restores)
}

// after returns the events after the horizon.
func (m *model) after() []Event {
	return slices.DeleteFunc(slices.Clone(m.events), func(e Event) bool { return e.Revision < m.horizon })
}

func restored(t testing.TB, root *Root) *State {
	t.Helper()
	var buf bytes.Buffer
	if err := root.WriteSnapshot(&buf); err != nil {
		t.Fatal(err)
	}
	s, err := ReadSnapshot(&buf)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dump(t testing.TB, root *Root) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := root.writeSnapshot(&buf, nil); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// agree compares all that can be read of root with the model's states and events.
func agree(root *Root, states []map[string]KeyValue, events []Event) error {
	newest := states[root.Revision()]
	if root.Keys() != int64(len(newest)) {
		return fmt.Errorf("%d keys, want %d", root.Keys(), len(newest))
	}
	var sum hash128
	for _, kv := range newest {
		sum = sum.add(newHasher().record(&record{key: kv.Key, value: string(kv.Value), create: kv.Create, mod: kv.Mod, ver: kv.Version, lease: kv.Lease}))
	}
	if root.meta.sum != sum {
		return fmt.Errorf("state hash %x, want %x", root.meta.sum, sum)
	}
	for rev := root.EventHorizon(); rev <= root.Revision(); rev++ {
		want := states[rev]
		var got []KeyValue
		for kv := range root.Range("", "", rev) {
			got = append(got, kv)
		}
		keys := slices.Sorted(maps.Keys(want))
		if len(got) != len(keys) {
			return fmt.Errorf("%d keys at revision %d, want %d", len(got), rev, len(keys))
		}
		for i, key := range keys {
			single, ok := root.Get(key, rev)
			if !same(got[i], want[key]) || !ok || !same(single, want[key]) {
				return fmt.Errorf("at revision %d: %+v, want %+v", rev, got[i], want[key])
			}
		}
		if _, ok := root.Get("nobody", rev); ok {
			return fmt.Errorf("a key that never was exists at revision %d", rev)
		}
		// Events after rev, as a watch of one prefix would get them, in small bites.
		const prefix = "k1/"
		wantAll := slices.DeleteFunc(slices.Clone(events), func(e Event) bool {
			return e.Revision <= rev || !strings.HasPrefix(e.Key, prefix)
		})
		var all []Event
		for pos := rev; ; {
			bite, upTo := root.EventsOf(prefix, pos, 1)
			for _, e := range bite {
				if e.Revision != bite[0].Revision || e.Revision <= pos || e.Revision > upTo {
					return fmt.Errorf("events after %d up to %d: %+v, want those of one revision", pos, upTo, bite)
				}
			}
			all = append(all, bite...)
			if len(bite) == 0 {
				if upTo != root.Revision() {
					return fmt.Errorf("no more events after %d, up to %d only", pos, upTo)
				}
				break
			}
			pos = upTo
		}
		if !slices.EqualFunc(all, wantAll, sameEvent) {
			return fmt.Errorf("events after %d: %+v, want %+v", rev, all, wantAll)
		}
	}
	if got := slices.Collect(root.Events(root.EventHorizon())); !slices.EqualFunc(got, events, sameEvent) {
		return fmt.Errorf("events %+v, want %+v", got, events)
	}
	// What the bounds on memory are made of.
	if n, _ := root.History(); n != len(events) {
		return fmt.Errorf("history of %d events, want %d", n, len(events))
	}
	var live, past int64
	root.keys.Ascend(func(head *record) bool {
		for r := head; r != nil; r = r.prev {
			if r.mod <= root.EventHorizon() && (r.prev != nil || !r.live()) {
				past = -1 << 60 // a version that nobody can read
			}
			if r == head && r.live() {
				live += r.size()
			} else {
				past += r.size()
			}
		}
		return true
	})
	if live != root.meta.liveBytes || past != root.meta.pastBytes {
		return fmt.Errorf("accounts of %d and %d bytes, want %d and %d", root.meta.liveBytes, root.meta.pastBytes, live, past)
	}
	return nil
}

func same(a, b KeyValue) bool {
	return a.Key == b.Key && bytes.Equal(a.Value, b.Value) && a.Create == b.Create && a.Mod == b.Mod && a.Version == b.Version && a.Lease == b.Lease
}

func sameEvent(a, b Event) bool {
	if (a.Prev == nil) != (b.Prev == nil) || a.Prev != nil && !same(*a.Prev, *b.Prev) {
		return false
	}
	return a.Key == b.Key && a.Type == b.Type && a.Revision == b.Revision && same(a.KV, b.KV)
}
