package mvcc

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

var (
	seeds = flag.Int("mvcc.seeds", 30, "random histories that the model test plays")
	steps = flag.Int("mvcc.steps", 250, "entries of each history")
)

// model is the state machine written for obviousness: a whole map for each revision.
type model struct {
	states  []map[string]KeyValue // by revision
	leases  map[int64]Lease       // without their number of keys
	events  []Event
	horizon int64
	ids     []modelID
	times   []timeSample // of every entry that changed something
}

type modelID struct {
	id    string
	index uint64
	res   *raftv1.TxnResult
}

func newModel() *model {
	return &model{states: []map[string]KeyValue{{}}, leases: map[int64]Lease{}}
}

func (m *model) revision() int64 { return int64(len(m.states)) - 1 }

// apply is Txn's meaning, word for word.
func (m *model) apply(txn *raftv1.Txn, e Entry) *raftv1.TxnResult {
	before := m.states[m.revision()]
	for _, known := range m.ids {
		if len(txn.Id) > 0 && known.id == string(txn.Id) {
			return &raftv1.TxnResult{Revision: known.res.Revision, Succeeded: known.res.Succeeded, Refusal: known.res.Refusal, Replayed: true}
		}
	}
	if txn.Term != 0 && txn.Term != e.Term {
		return &raftv1.TxnResult{Revision: m.revision(), Deposed: true}
	}
	res := &raftv1.TxnResult{Succeeded: true}
	for _, c := range txn.Compares {
		if kv, ok := compare(before, c); !ok {
			res.Succeeded = false
			res.Failed = append(res.Failed, pb(kv.Key, kv))
		}
	}
	run := &modelRun{before: before, state: maps.Clone(before), leases: maps.Clone(m.leases), rev: m.revision() + 1, model: m}
	results := run.txn(txn)
	if run.refusal != 0 {
		res.Refusal, res.Refused = run.refusal, run.refused
	} else {
		res.Results = results
		m.leases = run.leases
		if len(run.events) > 0 {
			m.states = append(m.states, run.state)
			m.events = append(m.events, run.events...)
		}
	}
	res.Revision = m.revision()
	if len(txn.Id) > 0 {
		m.ids = append(m.ids, modelID{string(txn.Id), e.Index, res})
	}
	return res
}

// compare returns the first key for which c does not hold, with its Key alone if it
// does not exist.
func compare(state map[string]KeyValue, c *raftv1.Compare) (failed KeyValue, ok bool) {
	list := []KeyValue{{Key: c.Key}}
	if keys := matching(state, c.Key, c.RangeEnd); len(keys) > 0 {
		list = nil
		for _, key := range keys {
			list = append(list, state[key])
		}
	}
	for _, kv := range list {
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
		if !exists || !map[raftv1.CompareResult]bool{
			raftv1.CompareResult_COMPARE_RESULT_EQUAL:     equal,
			raftv1.CompareResult_COMPARE_RESULT_NOT_EQUAL: !equal,
			raftv1.CompareResult_COMPARE_RESULT_LESS:      less,
			raftv1.CompareResult_COMPARE_RESULT_GREATER:   !less && !equal,
		}[c.Result] {
			return kv, false
		}
	}
	return KeyValue{}, true
}

// modelRun is a transaction at work on copies, which count only if nothing in it is
// refused.
type modelRun struct {
	model   *model
	before  map[string]KeyValue
	state   map[string]KeyValue
	leases  map[int64]Lease
	rev     int64
	events  []Event
	refusal raftv1.TxnRefusal
	refused string
}

func (r *modelRun) refuse(why raftv1.TxnRefusal, what any) {
	if r.refusal == 0 {
		r.refusal, r.refused = why, fmt.Sprint(what)
	}
}

func (r *modelRun) txn(txn *raftv1.Txn) (results []*raftv1.OpResult) {
	ops := txn.Then
	for _, c := range txn.Compares {
		if _, ok := compare(r.before, c); !ok {
			ops = txn.Otherwise
		}
	}
	for _, op := range ops {
		out := new(raftv1.OpResult)
		switch op := op.Op.(type) {
		case *raftv1.Op_Put:
			r.put(op.Put, out)
		case *raftv1.Op_Delete:
			r.delete(matching(r.state, op.Delete.Key, op.Delete.RangeEnd), op.Delete.PrevKv, out)
		case *raftv1.Op_Range:
			state := r.state
			switch rev := op.Range.Revision; {
			case rev == 0:
			case rev > r.model.revision():
				r.refuse(raftv1.TxnRefusal_TXN_REFUSAL_FUTURE_REVISION, rev)
			case rev < r.model.horizon:
				r.refuse(raftv1.TxnRefusal_TXN_REFUSAL_COMPACTED, r.model.horizon)
			default:
				state = r.model.states[rev]
			}
			for _, key := range matching(state, op.Range.Key, op.Range.RangeEnd) {
				kv := state[key]
				if op.Range.KeysOnly {
					kv.Value = nil
				}
				if out.Count++; !op.Range.CountOnly && (op.Range.Limit == 0 || out.Count <= op.Range.Limit) {
					out.Kvs = append(out.Kvs, pb(key, kv))
				}
			}
		case *raftv1.Op_Txn:
			out.Succeeded = true
			for _, c := range op.Txn.Compares {
				if _, ok := compare(r.before, c); !ok {
					out.Succeeded = false
				}
			}
			out.Results = r.txn(op.Txn)
		case *raftv1.Op_LeaseGrant:
			id := op.LeaseGrant.Id
			if _, ok := r.leases[id]; ok {
				r.refuse(raftv1.TxnRefusal_TXN_REFUSAL_LEASE_EXISTS, id)
			}
			r.leases[id] = Lease{ID: id, TTL: op.LeaseGrant.TtlMillis, Remaining: op.LeaseGrant.TtlMillis}
		case *raftv1.Op_LeaseRevoke:
			id := op.LeaseRevoke.Id
			if _, ok := r.leases[id]; !ok {
				r.refuse(raftv1.TxnRefusal_TXN_REFUSAL_LEASE_NOT_FOUND, id)
			}
			delete(r.leases, id)
			r.delete(matchingLease(r.state, id), false, out)
		case *raftv1.Op_LeaseCheckpoint:
			if l, ok := r.leases[op.LeaseCheckpoint.Id]; ok {
				l.Remaining = min(l.TTL, op.LeaseCheckpoint.RemainingMillis)
				r.leases[l.ID] = l
			}
		}
		results = append(results, out)
	}
	return results
}

func (r *modelRun) put(op *raftv1.Put, out *raftv1.OpResult) {
	if _, ok := r.leases[op.Lease]; !ok && op.Lease != 0 && !op.IgnoreLease {
		r.refuse(raftv1.TxnRefusal_TXN_REFUSAL_LEASE_NOT_FOUND, op.Lease)
	}
	if _, ok := r.before[op.Key]; !ok && (op.IgnoreValue || op.IgnoreLease) {
		r.refuse(raftv1.TxnRefusal_TXN_REFUSAL_KEY_NOT_FOUND, op.Key)
	}
	old := r.state[op.Key]
	kv := KeyValue{Key: op.Key, Value: op.Value, Create: old.Create, Mod: r.rev, Version: old.Version + 1, Lease: op.Lease}
	if op.IgnoreValue {
		kv.Value = old.Value
	}
	if op.IgnoreLease {
		kv.Lease = old.Lease
	}
	e := Event{Key: kv.Key, Type: Put, Revision: r.rev}
	if old.Version == 0 {
		kv.Create = r.rev
	} else {
		out.Count, e.Prev = 1, &old
		if op.PrevKv {
			out.Kvs = []*raftv1.KeyValue{pb(old.Key, old)}
		}
	}
	e.KV = kv
	r.state[kv.Key] = kv
	r.events = append(r.events, e)
}

func (r *modelRun) delete(keys []string, prevKV bool, out *raftv1.OpResult) {
	for _, key := range keys {
		old := r.state[key]
		if prevKV {
			out.Kvs = append(out.Kvs, pb(key, old))
		}
		out.Count++
		delete(r.state, key)
		r.events = append(r.events, Event{Key: key, Type: Delete, KV: KeyValue{Key: key, Mod: r.rev}, Prev: &old, Revision: r.rev})
	}
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

func matchingLease(state map[string]KeyValue, id int64) (keys []string) {
	for k, kv := range state {
		if kv.Lease == id {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func pb(key string, kv KeyValue) *raftv1.KeyValue {
	return &raftv1.KeyValue{Key: key, Value: kv.Value, CreateRevision: kv.Create, ModRevision: kv.Mod, Version: kv.Version, Lease: kv.Lease}
}

// txnMaker makes random transactions. It writes few keys often, so that histories
// get long, compares hit, and leases come and go.
type txnMaker struct {
	*rand.Rand
	rev int64
}

func (r txnMaker) key() string { return fmt.Sprintf("k%d/\xff%d", r.IntN(3), r.IntN(6)) }

func (r txnMaker) bounds() (string, string) {
	switch r.IntN(4) {
	case 0:
		prefix := fmt.Sprintf("k%d/\xff", r.IntN(3))
		return prefix, PrefixEnd(prefix)
	case 1:
		return r.key(), NoEnd
	case 2:
		return r.key(), r.key() // often empty
	default:
		return r.key(), ""
	}
}

func (r txnMaker) value() []byte {
	return []byte(strings.Repeat("v", r.IntN(3)) + string(rune('a'+r.IntN(3))))
}

func (r txnMaker) lease() int64 { return int64(r.IntN(4)) - 1 } // 0 is none

func (r txnMaker) revision() int64 {
	return []int64{0, 1, 2, r.Int64N(r.rev + 1), r.rev, r.rev + 1}[r.IntN(6)]
}

// txn makes a transaction that raftstore's check would let pass: what is in written
// is left alone.
func (r txnMaker) txn(depth int, written map[string]bool) *raftv1.Txn {
	txn := &raftv1.Txn{}
	for range r.IntN(3) {
		c := &raftv1.Compare{
			Key: r.key(), Target: raftv1.CompareTarget(1 + r.IntN(5)), Result: raftv1.CompareResult(1 + r.IntN(4)),
			Number: r.revision(), Value: r.value(),
		}
		if r.IntN(3) == 0 {
			c.Key, c.RangeEnd = r.bounds()
		}
		txn.Compares = append(txn.Compares, c)
	}
	// The branches may write the same keys, but not what is written beside them.
	other := maps.Clone(written)
	txn.Then, txn.Otherwise = r.ops(depth, written), r.ops(depth, other)
	maps.Copy(written, other)
	return txn
}

func (r txnMaker) ops(depth int, written map[string]bool) (ops []*raftv1.Op) {
	for range r.IntN(4) {
		switch r.IntN(12) {
		case 0, 1:
			k, end := r.bounds()
			op := &raftv1.Range{Key: k, RangeEnd: end, Limit: r.Int64N(3), KeysOnly: r.IntN(3) == 0, CountOnly: r.IntN(4) == 0}
			if r.IntN(2) == 0 {
				op.Revision = r.revision()
			}
			ops = append(ops, &raftv1.Op{Op: &raftv1.Op_Range{Range: op}})
		case 2:
			if len(written) == 0 { // the ranges first, so that nothing is written twice
				k, end := r.bounds()
				ops = append(ops, &raftv1.Op{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: k, RangeEnd: end, PrevKv: r.IntN(2) == 0}}})
				written["all"] = true
			}
		case 3:
			ops = append(ops, &raftv1.Op{Op: &raftv1.Op_LeaseGrant{LeaseGrant: &raftv1.LeaseGrant{Id: 2*r.Int64N(2) - 1, TtlMillis: 1 + r.Int64N(9)}}})
		case 4:
			if len(written) == 0 {
				ops = append(ops, &raftv1.Op{Op: &raftv1.Op_LeaseRevoke{LeaseRevoke: &raftv1.LeaseRevoke{Id: 2*r.Int64N(2) - 1}}})
				written["all"] = true
			}
		case 5:
			ops = append(ops, &raftv1.Op{Op: &raftv1.Op_LeaseCheckpoint{LeaseCheckpoint: &raftv1.LeaseCheckpoint{Id: r.lease(), RemainingMillis: r.Int64N(12)}}})
		case 6:
			if depth < 3 {
				ops = append(ops, &raftv1.Op{Op: &raftv1.Op_Txn{Txn: r.txn(depth+1, written)}})
			}
		default:
			k := r.key()
			if written[k] || written["all"] {
				continue
			}
			written[k] = true
			op := &raftv1.Put{Key: k, PrevKv: r.IntN(3) == 0}
			if op.IgnoreValue = r.IntN(10) == 0; !op.IgnoreValue {
				op.Value = r.value()
			}
			if op.IgnoreLease = r.IntN(10) == 0; !op.IgnoreLease && r.IntN(2) == 0 {
				op.Lease = r.lease()
			}
			ops = append(ops, &raftv1.Op{Op: &raftv1.Op_Put{Put: op}})
		}
	}
	return ops
}

// outermost makes a transaction as a client does, now and then with a term or an id.
func (r txnMaker) outermost() *raftv1.Txn {
	txn := r.txn(0, map[string]bool{})
	if r.IntN(10) == 0 {
		txn.Term = uint64(1 + r.IntN(3))
	}
	if r.IntN(6) == 0 {
		txn.Id = []byte(fmt.Sprintf("id-%d", r.IntN(60)))
	}
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
// revision, every event, lease and id; through snapshots, and on roots held while
// the state goes on and compacts. `-mvcc.seeds 2500 -mvcc.steps 250` is more than a
// million transactions.
func TestModel(t *testing.T) {
	var txns, changed, compactions, restores, refused, replayed, nested int
	for seed := range *seeds {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		m := newModel()
		s := New()
		var log []Entry // for the twin
		hashes := map[uint64]Hash{}
		since := uint64(0) // the state remembers hashes from here on
		type held struct {
			root   *Root
			states []map[string]KeyValue
			events []Event
			leases map[int64]Lease
		}
		var roots []held
		now := int64(1_700_000_000_000)
		for step := range *steps {
			e := Entry{Index: uint64(2*step + 1), Term: uint64(1 + step/100)}
			now += int64(r.IntN(3 * sampleMillis))
			var want []*raftv1.TxnResult
			var check *CheckResult
			before := m.revision()
			cmd := new(raftv1.Command)
			switch n := r.IntN(40); {
			case n == 0:
				to := r.Int64N(m.revision() + 2)
				cmd.Op = &raftv1.Command_Compact{Compact: &raftv1.Compact{Revision: to}}
				m.horizon = max(m.horizon, min(to, m.revision()))
				compactions++
			case n == 1:
				cmd.Op = &raftv1.Command_TermMarker{TermMarker: &raftv1.TermMarker{Term: e.Term}}
			case n == 2:
				at := uint64(r.IntN(2*step + 2))
				have, known := hashes[at]
				known = known && at >= since
				if !known {
					have = Hash{}
				}
				claim := have
				if r.IntN(3) == 0 {
					claim[3]++
				}
				check = &CheckResult{Index: at, Known: known, Equal: known && claim == have, Want: claim, Have: have, Proposer: "p"}
				cmd.Op = &raftv1.Command_HashCheck{HashCheck: &raftv1.HashCheck{Index: at, Hash: claim[:], Proposer: "p"}}
			default:
				var list []*raftv1.Txn
				for range 1 + r.IntN(3) {
					txn := txnMaker{r, m.revision()}.outermost()
					list = append(list, txn)
					want = append(want, m.apply(txn, e))
				}
				cmd = batch(list...)
			}
			cmd.ProposedAt = &timestamppb.Timestamp{Seconds: now / 1000, Nanos: int32(now%1000) * 1e6}
			e.Data = encode(t, cmd)
			data := bytes.Clone(e.Data)
			got, err := s.Apply(Entry{Index: e.Index, Term: e.Term, Data: data})
			if err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
			clear(data) // the state keeps nothing of it
			if r.IntN(4) == 0 {
				s.Skip(e.Index + 1) // as by an entry of raft's own
			}
			log = append(log, e)
			hashes[e.Index], hashes[e.Index+1] = s.Root().Hash(), s.Root().Hash()
			if got.Changed != (m.revision() != before) {
				t.Fatalf("seed %d step %d: Changed is %v, revision went from %d to %d", seed, step, got.Changed, before, m.revision())
			}
			if (got.Check == nil) != (check == nil) || check != nil && *got.Check != *check {
				t.Fatalf("seed %d step %d: check %+v, want %+v", seed, step, got.Check, check)
			}
			for i := range want {
				txns++
				if !proto.Equal(got.Results[i], want[i]) {
					t.Fatalf("seed %d step %d: result %v, want %v", seed, step, got.Results[i], want[i])
				}
				if want[i].Refusal != 0 {
					refused++
				}
				if want[i].Replayed {
					replayed++
				}
				for _, res := range want[i].Results {
					nested += min(1, len(res.Results))
				}
			}
			if got.Changed {
				changed++
				m.times = append(m.times, timeSample{now, m.revision()})
			}
			if r.IntN(20) == 0 {
				roots = append(roots, held{s.Root(), m.states, m.after(), maps.Clone(m.leases)})
			}
			if r.IntN(60) == 0 {
				s = restored(t, s.Root())
				since = s.meta.index
				restores++
			}
		}
		roots = append(roots, held{s.Root(), m.states, m.after(), m.leases})
		for _, h := range roots {
			if err := agree(h.root, h.states, h.events, h.leases); err != nil {
				t.Fatalf("seed %d, root at revision %d: %v", seed, h.root.Revision(), err)
			}
		}
		if err := agreeTimes(s.Root(), m.times); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if got, want := s.Root().ids.len(), len(m.ids); got != want {
			t.Fatalf("seed %d: %d ids, want %d", seed, got, want)
		}
		// A twin that is given the same log, without the snapshots, ends the same.
		twin := New()
		for _, e := range log {
			if _, err := twin.Apply(e); err != nil {
				t.Fatal(err)
			}
		}
		twin.Skip(s.meta.index)
		if a, b := dump(t, twin.Root()), dump(t, s.Root()); !bytes.Equal(a, b) || twin.meta != s.meta {
			t.Fatalf("seed %d: two plays of one log differ: %+v and %+v", seed, twin.meta, s.meta)
		}
	}
	summary := fmt.Sprintf("%d transactions, %d changing entries, %d refused, %d replayed, %d nested, %d compactions, %d restores", txns, changed, refused, replayed, nested, compactions, restores)
	if changed < txns/10 || refused < txns/100 || replayed < txns/100 || nested < txns/100 || compactions == 0 || restores == 0 {
		t.Fatal("the histories are not worth their name: " + summary)
	}
	t.Log(summary)
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
func agree(root *Root, states []map[string]KeyValue, events []Event, leases map[int64]Lease) error {
	newest := states[root.Revision()]
	if root.Keys() != int64(len(newest)) {
		return fmt.Errorf("%d keys, want %d", root.Keys(), len(newest))
	}
	var sum hash128
	for _, kv := range newest {
		sum = sum.add(newHasher().record(&record{key: kv.Key, value: string(kv.Value), create: kv.Create, mod: kv.Mod, ver: kv.Version, lease: kv.Lease}))
	}
	var ids []int64
	for l := range root.Leases() {
		want, ok := leases[l.ID]
		want.Keys = len(matchingLease(newest, l.ID))
		if single, found := root.Lease(l.ID); !ok || l != want || !found || single != want {
			return fmt.Errorf("lease %+v, want %+v", l, want)
		}
		if got, want := slices.Collect(root.LeaseKeys(l.ID)), matchingLease(newest, l.ID); !slices.Equal(got, want) {
			return fmt.Errorf("keys of lease %d: %q, want %q", l.ID, got, want)
		}
		ids = append(ids, l.ID)
		sum = sum.add(newHasher().lease(l))
	}
	stale := 0 // an old record there would keep its history alive
	root.attached.Ascend(func(r *record) bool {
		if head, _ := root.keys.Get(r); head != r {
			stale++
		}
		return true
	})
	if stale > 0 {
		return fmt.Errorf("%d leased keys are not at their newest record", stale)
	}
	if !slices.IsSorted(ids) || len(ids) != len(leases) {
		return fmt.Errorf("leases %d, want %d in order", ids, len(leases))
	}
	for id := range root.ids.all() {
		sum = sum.add(newHasher().txnID(id))
	}
	if root.meta.sum != sum {
		return fmt.Errorf("sum of hashes %x, want %x", root.meta.sum, sum)
	}
	if h, ok := root.HashAt(root.Index()); !ok || h != root.Hash() {
		return fmt.Errorf("hash at index %d is %x, %v; want %x", root.Index(), h, ok, root.Hash())
	}
	if _, ok := root.HashAt(root.Index() + 1); ok {
		return errors.New("it knows a hash of the future")
	}
	for rev := root.EventHorizon(); rev <= root.Revision(); rev++ {
		want := states[rev]
		var got []KeyValue
		for kv := range root.Range("", "", rev) {
			got = append(got, kv)
		}
		keys := slices.Sorted(maps.Keys(want))
		if n := root.Count("", "", rev); n != int64(len(keys)) {
			return fmt.Errorf("count is %d at revision %d, want %d", n, rev, len(keys))
		}
		if n := root.Count("k1/", "k2/", rev); n != int64(len(matching(want, "k1/", "k2/"))) {
			return fmt.Errorf("count of a range is %d at revision %d", n, rev)
		}
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

// agreeTimes checks what a compaction by age goes by.
func agreeTimes(root *Root, times []timeSample) error {
	if root.samples.len() > 0 && root.samples.at(0).revision < root.Horizon() {
		return fmt.Errorf("it keeps a sample of revision %d, below the horizon %d", root.samples.at(0).revision, root.Horizon())
	}
	for _, at := range times {
		rev := root.RevisionBefore(at.millis)
		var want, least int64 // the newest before at, and the newest 10 s before at
		for _, s := range times {
			if s.millis < at.millis {
				want = s.revision
			}
			if s.millis <= at.millis-sampleMillis {
				least = s.revision
			}
		}
		if rev > want || rev != 0 && rev <= root.Horizon() || rev < least && least > root.Horizon() {
			return fmt.Errorf("revision before %d ms: %d, want %d to %d", at.millis, rev, least, want)
		}
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
