package mvcc

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-io/holdfast/internal/golden"
	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// TestFormat holds the bytes of entries and snapshots, and what entries mean.
func TestFormat(t *testing.T) {
	golden.Run(t, "testdata/format/*.txtar", func(t *testing.T, in golden.Input) string {
		var out strings.Builder
		s := New()
		for i, text := range strings.Split(strings.TrimSpace(string(in.File("commands"))), "\n\n") {
			var cmd raftv1.Command
			if err := prototext.Unmarshal([]byte(text), &cmd); err != nil {
				t.Fatalf("command %d: %v", i+1, err)
			}
			data := encode(t, &cmd)
			fmt.Fprintf(&out, "entry %d:\n%s", i+1, hexLines(data))
			applied, err := s.Apply(Entry{Index: uint64(i + 1), Term: 3, Data: data})
			if err != nil {
				t.Fatal(err)
			}
			if c := applied.Check; c != nil {
				fmt.Fprintf(&out, "  -> check of entry %d by %s: known %v, equal %v, have %x\n", c.Index, c.Proposer, c.Known, c.Equal, c.Have)
			}
			for _, r := range applied.Results {
				fmt.Fprintf(&out, "  -> %s\n", describe(r))
			}
		}
		root := s.Root()
		out.WriteString(content(root))
		fmt.Fprintf(&out, "snapshot:\n%s", hexLines(dump(t, root)))

		// The compressed form depends on the compressor's version; only that it
		// can be read must stay.
		path := "testdata/format/" + in.Name + ".snapshot"
		if flag.Lookup("update").Value.String() == "true" {
			var buf bytes.Buffer
			if err := root.WriteSnapshot(&buf); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, buf.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		old, err := ReadSnapshot(bytes.NewReader(file))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if !bytes.Equal(dump(t, old.Root()), dump(t, root)) {
			t.Errorf("%s holds another state", path)
		}
		return out.String()
	})
}

// TestFormat1 reads snapshots as the first version wrote them.
func TestFormat1(t *testing.T) {
	golden.Run(t, "testdata/format1/*.txtar", func(t *testing.T, in golden.Input) string {
		plain, err := hex.DecodeString(strings.Join(strings.Fields(string(in.File("snapshot"))), ""))
		if err != nil {
			t.Fatal(err)
		}
		compressed, err := os.ReadFile("testdata/format1/" + in.Name + ".snapshot")
		if err != nil {
			t.Fatal(err)
		}
		var contents []string
		for _, data := range [][]byte{plain, compressed} {
			s, err := ReadSnapshot(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			contents = append(contents, content(s.Root()))
			if again := content(restored(t, s.Root()).Root()); again != contents[0] {
				t.Errorf("written again it holds\n%swant\n%s", again, contents[0])
			}
		}
		if contents[0] != contents[1] {
			t.Errorf("compressed it holds\n%swant\n%s", contents[1], contents[0])
		}
		return contents[0]
	})
}

// content is what can be read of a root, for people.
func content(root *Root) string {
	var out strings.Builder
	fmt.Fprintf(&out, "index %d, revision %d, horizon %d, events after %d, marker %d, state hash %x\n",
		root.Index(), root.Revision(), root.Horizon(), root.EventHorizon(), root.MarkerTerm(), root.Hash())
	for kv := range root.Range("", "", root.Revision()) {
		fmt.Fprintf(&out, "key %q = %q, created %d, modified %d, version %d, lease %d\n", kv.Key, kv.Value, kv.Create, kv.Mod, kv.Version, kv.Lease)
	}
	for l := range root.Leases() {
		fmt.Fprintf(&out, "lease %d of %d ms, %d ms left, keys %q\n", l.ID, l.TTL, l.Remaining, slices.Collect(root.LeaseKeys(l.ID)))
	}
	for e := range root.Events(root.EventHorizon()) {
		fmt.Fprintf(&out, "event %d %s %q, before %v\n", e.Revision, e.Type, e.Key, e.Prev != nil)
	}
	for id := range root.ids.all() {
		fmt.Fprintf(&out, "id %q: entry %d, revision %d, succeeded %v, refusal %v\n", id.id, id.index, id.revision, id.succeeded, id.refusal)
	}
	for s := range root.samples.all() {
		fmt.Fprintf(&out, "revision %d at %d ms\n", s.revision, s.millis)
	}
	fmt.Fprintf(&out, "newest: revision %d at %d ms\n", root.meta.newest.revision, root.meta.newest.millis)
	return out.String()
}

func hexLines(data []byte) string {
	var out strings.Builder
	for ; len(data) > 0; data = data[min(32, len(data)):] {
		fmt.Fprintf(&out, "  %s\n", hex.EncodeToString(data[:min(32, len(data))]))
	}
	return out.String()
}

func describe(r *raftv1.TxnResult) string {
	text := fmt.Sprintf("revision %d, succeeded %v", r.Revision, r.Succeeded)
	switch {
	case r.Deposed:
		return fmt.Sprintf("revision %d, deposed", r.Revision)
	case r.Replayed:
		text += ", replayed"
	case r.Refusal != 0:
		text += fmt.Sprintf(", %v %q", r.Refusal, r.Refused)
	}
	for _, kv := range r.Failed {
		text += fmt.Sprintf(", failed %s@%d", kv.Key, kv.ModRevision)
	}
	return text + describeOps(r.Results)
}

func describeOps(results []*raftv1.OpResult) (text string) {
	for _, op := range results {
		text += fmt.Sprintf(", %d:", op.Count)
		for _, kv := range op.Kvs {
			text += fmt.Sprintf(" %s=%s@%d", kv.Key, kv.Value, kv.ModRevision)
		}
		if op.Results != nil {
			text += fmt.Sprintf(" {%v%s}", op.Succeeded, describeOps(op.Results))
		}
	}
	return text
}

// TestUnknownEntriesAreRefusedWhole covers rollouts: what a newer version wrote and
// this one does not understand must neither be skipped nor done in part.
func TestUnknownEntriesAreRefusedWhole(t *testing.T) {
	put := &raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: "k", Value: []byte("v")}}}}}
	withUnknown := func(m proto.Message) {
		m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1))
	}
	cases := map[string]func(second *raftv1.Txn, cmd *raftv1.Command){
		"field of the command":      func(_ *raftv1.Txn, cmd *raftv1.Command) { withUnknown(cmd) },
		"field of a transaction":    func(txn *raftv1.Txn, _ *raftv1.Command) { withUnknown(txn) },
		"field of an operation":     func(txn *raftv1.Txn, _ *raftv1.Command) { withUnknown(txn.Then[0].GetPut()) },
		"operation":                 func(txn *raftv1.Txn, _ *raftv1.Command) { withUnknown(txn.Then[0]); txn.Then[0].Op = nil },
		"field of a compare":        func(txn *raftv1.Txn, _ *raftv1.Command) { withUnknown(txn.Compares[0]) },
		"target of a compare":       func(txn *raftv1.Txn, _ *raftv1.Command) { txn.Compares[0].Target = 99 },
		"unset target of a compare": func(txn *raftv1.Txn, _ *raftv1.Command) { txn.Compares[0].Target = 0 },
		"result of a compare":       func(txn *raftv1.Txn, _ *raftv1.Command) { txn.Compares[0].Result = 99 },
		"no command":                func(_ *raftv1.Txn, cmd *raftv1.Command) { cmd.Op = nil },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			second := proto.CloneOf(put)
			second.Compares = []*raftv1.Compare{{
				Key: "k", Target: raftv1.CompareTarget_COMPARE_TARGET_VERSION, Result: raftv1.CompareResult_COMPARE_RESULT_EQUAL,
			}}
			cmd := batch(proto.CloneOf(put), second)
			if _, err := New().Apply(Entry{Index: 1, Term: 1, Data: encode(t, cmd)}); err != nil {
				t.Fatalf("as it is: %v", err)
			}
			change(second, cmd)
			s := New()
			if _, err := s.Apply(Entry{Index: 1, Term: 1, Data: encode(t, cmd)}); err == nil {
				t.Fatal("it was applied")
			}
			if s.meta != (meta{}) || s.keys.tree.Len() > 0 {
				t.Errorf("it was refused but left %+v", s.meta)
			}
		})
	}
	if _, err := New().Apply(Entry{Index: 1, Term: 1, Data: []byte("\xff")}); err == nil {
		t.Error("an entry that is no message was applied")
	}
}

// TestDamagedSnapshotIsRefused flips and cuts a snapshot everywhere. A snapshot is
// the only copy of what the log no longer has.
func TestDamagedSnapshotIsRefused(t *testing.T) {
	s := New()
	for i := range 40 {
		cmd := batch(&raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: fmt.Sprintf("k%d", i%7), Value: []byte(strings.Repeat("v", i))}}}}})
		if _, err := s.Apply(Entry{Index: uint64(i + 1), Term: 1, Data: encode(t, cmd)}); err != nil {
			t.Fatal(err)
		}
	}
	for name, whole := range map[string][]byte{"plain": dump(t, s.Root()), "compressed": compressed(t, s.Root())} {
		t.Run(name, func(t *testing.T) {
			if _, err := ReadSnapshot(bytes.NewReader(whole)); err != nil {
				t.Fatalf("undamaged: %v", err)
			}
			for i := range whole {
				flipped := bytes.Clone(whole)
				flipped[i] ^= 0x10
				if _, err := ReadSnapshot(bytes.NewReader(flipped)); !errors.Is(err, ErrBadSnapshot) {
					t.Fatalf("byte %d of %d flipped: %v, want ErrBadSnapshot", i, len(whole), err)
				}
				if _, err := ReadSnapshot(bytes.NewReader(whole[:i])); !errors.Is(err, ErrBadSnapshot) {
					t.Fatalf("cut after byte %d of %d: %v, want ErrBadSnapshot", i, len(whole), err)
				}
			}
		})
	}
}

func compressed(t testing.TB, root *Root) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := root.WriteSnapshot(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestLongHistorySpansChunks covers a key whose versions do not fit into one chunk
// of a snapshot.
func TestLongHistorySpansChunks(t *testing.T) {
	s := New()
	for i := range 5 {
		value := bytes.Repeat([]byte{byte(i)}, chunkSize/2)
		cmd := batch(&raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: "big", Value: value}}}}})
		if _, err := s.Apply(Entry{Index: uint64(i + 1), Term: 1, Data: encode(t, cmd)}); err != nil {
			t.Fatal(err)
		}
	}
	again := restored(t, s.Root())
	for rev := int64(1); rev <= 5; rev++ {
		kv, ok := again.Root().Get("big", rev)
		if !ok || kv.Version != rev || kv.Value[0] != byte(rev-1) || len(kv.Value) != chunkSize/2 {
			t.Errorf("at revision %d: version %d, %d bytes, %v", rev, kv.Version, len(kv.Value), ok)
		}
	}
	if !bytes.Equal(dump(t, again.Root()), dump(t, s.Root())) {
		t.Error("the restored state is another")
	}
}

// TestRootsAreImmutable reads roots from several goroutines while the state goes on
// and compacts: with the race detector, that nothing they hold is written, and
// without, that it does not change.
func TestRootsAreImmutable(t *testing.T) {
	s := New()
	roots := make(chan *Root)
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for root := range roots {
				first := dump(t, root)
				events := 0
				for range root.Events(root.EventHorizon()) {
					events++
				}
				if n, _ := root.History(); n != events {
					t.Errorf("history of %d events, then %d", n, events)
				}
				if !bytes.Equal(first, dump(t, root)) {
					t.Error("a root has changed")
				}
			}
		})
	}
	for i := range 1500 {
		var cmd *raftv1.Command
		switch {
		case i%50 == 49:
			cmd = &raftv1.Command{Op: &raftv1.Command_Compact{Compact: &raftv1.Compact{Revision: s.meta.revision - 20}}}
		case i%7 == 3:
			cmd = batch(&raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: fmt.Sprintf("k%02d", i%31)}}}}})
		default:
			cmd = batch(&raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: fmt.Sprintf("k%02d", i%37), Value: []byte(fmt.Sprint(i))}}}}})
		}
		if _, err := s.Apply(Entry{Index: uint64(i + 1), Term: 1, Data: encode(t, cmd)}); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			roots <- s.Root()
		}
	}
	close(roots)
	readers.Wait()
}

// TestMarkerOfAnotherTermProvesNothing covers a marker that its leader lost and a
// later leader's log carries.
func TestMarkerOfAnotherTermProvesNothing(t *testing.T) {
	s := New()
	marker := encode(t, &raftv1.Command{Op: &raftv1.Command_TermMarker{TermMarker: &raftv1.TermMarker{Term: 4}}})
	for i, c := range []struct{ term, want uint64 }{{5, 0}, {4, 4}} {
		if _, err := s.Apply(Entry{Index: uint64(i + 1), Term: c.term, Data: marker}); err != nil {
			t.Fatal(err)
		}
		if got := s.Root().MarkerTerm(); got != c.want {
			t.Errorf("marker of term 4 in an entry of term %d: marked term is %d, want %d", c.term, got, c.want)
		}
	}
}

// applyAll applies entries of one transaction each, from the next index on.
func applyAll(t testing.TB, s *State, txns ...*raftv1.Txn) (results []*raftv1.TxnResult) {
	t.Helper()
	for _, txn := range txns {
		applied, err := s.Apply(Entry{Index: s.meta.index + 1, Term: 1, Data: encode(t, batch(txn))})
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, applied.Results...)
	}
	return results
}

// TestCompactionAtTheBoundary covers what etcd lost twice (etcd#18089, etcd#19179): a
// deletion in the very revision compacted to stays visible to a watch from there;
// and that the revision does not go back when nothing is left (etcd#17780).
func TestCompactionAtTheBoundary(t *testing.T) {
	s := New()
	applyAll(t, s,
		putTxn("k", []byte("v")),
		&raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: "k"}}}}},
	)
	s.compact(2)
	for name, root := range map[string]*Root{"as it is": s.Root(), "through a snapshot": restored(t, s.Root()).Root()} {
		events, upTo := root.EventsIn("k", "", 1, 10)
		if root.Horizon() != 2 || root.EventHorizon() != 1 || len(events) != 1 || upTo != 2 || events[0].Type != Delete || events[0].Prev == nil || string(events[0].Prev.Value) != "v" {
			t.Errorf("%s: events after revision 1: %+v up to %d, want the deletion and what it deleted", name, events, upTo)
		}
		if _, ok := root.Get("k", 2); ok {
			t.Errorf("%s: the key exists at revision 2", name)
		}
	}
	applyAll(t, s, putTxn("other", nil), &raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: "", RangeEnd: NoEnd}}}}})
	s.compact(4)
	s = restored(t, s.Root())
	if res := applyAll(t, s, putTxn("k", nil)); res[0].Revision != 5 {
		t.Errorf("after compacting all there was the next revision is %d, want 5", res[0].Revision)
	}
}

// TestIDsAreBounded covers which ids are forgotten: the oldest beyond so many, and
// those of too long ago; and that the state hash forgets them, too.
func TestIDsAreBounded(t *testing.T) {
	s := New()
	id := func(i int) *raftv1.Txn { return &raftv1.Txn{Id: fmt.Appendf(nil, "id-%d", i)} }
	const per = 512
	for i := range maxTxnIDs/per + 1 {
		var txns []*raftv1.Txn
		for j := range per {
			txns = append(txns, id(i*per+j))
		}
		if _, err := s.Apply(Entry{Index: uint64(i + 1), Term: 1, Data: encode(t, batch(txns...))}); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.ids.list.len(); n != maxTxnIDs || len(s.ids.byID) != n {
		t.Fatalf("%d ids, and %d by id, want %d", n, len(s.ids.byID), maxTxnIDs)
	}
	// Two that are forgotten are remembered anew, in place of two more.
	for i, want := range map[int]bool{0: false, per - 1: false, per + 2: true, maxTxnIDs + per - 1: true} {
		if got := applyAll(t, s, id(i))[0].Replayed; got != want {
			t.Errorf("id %d replayed: %v, want %v", i, got, want)
		}
	}
	s.Skip(s.meta.index + maxTxnIDAge)
	applyAll(t, s, id(-1))
	if n := s.ids.list.len(); n != 1 || len(s.ids.byID) != 1 || s.meta.sum != s.hasher.txnID(s.ids.list.at(0)) {
		t.Errorf("%d ids after a long time, and %d by id, want the new one", n, len(s.ids.byID))
	}
}

// TestHashesAreBounded covers how far back replicas can be compared.
func TestHashesAreBounded(t *testing.T) {
	s := New()
	want := map[uint64]Hash{}
	for i := range uint64(keptHashes + 2000) {
		applyAll(t, s, putTxn("k", nil))
		want[i+1] = s.Root().Hash()
	}
	root := s.Root()
	for i := range uint64(keptHashes) {
		index := root.Index() - i
		if h, ok := root.HashAt(index); !ok || h != want[index] {
			t.Fatalf("hash at %d: %x, %v, want %x", index, h, ok, want[index])
		}
	}
	if _, ok := root.HashAt(root.Index() - keptHashes); ok {
		t.Error("it remembers more than it should")
	}
}

func TestPrefixEnd(t *testing.T) {
	for _, c := range []struct{ prefix, want string }{
		{"pods/", "pods0"},
		{"", NoEnd},
		{"a\x7f", "a\x80"},
		{"a\xff", "b"},
		{"a\xff\xff", "b"},
		{"\xff\xff", NoEnd},
		{"\x00", "\x01"},
	} {
		if got := PrefixEnd(c.prefix); got != c.want {
			t.Errorf("PrefixEnd(%q) = %q, want %q", c.prefix, got, c.want)
		}
	}
}

// TestRangesAreBounded: a transaction that reads everything makes no replica collect
// everything. What is cut off can be told from the count.
func TestRangesAreBounded(t *testing.T) {
	s := New()
	value := make([]byte, 1<<20)
	for i := range 10 {
		applyAll(t, s, &raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: fmt.Sprint("k", i), Value: value}}}}})
	}
	all := &raftv1.Op{Op: &raftv1.Op_Range{Range: &raftv1.Range{Key: "k", RangeEnd: "l"}}}
	one := &raftv1.Op{Op: &raftv1.Op_Range{Range: &raftv1.Range{Key: "k9"}}}
	nested := &raftv1.Op{Op: &raftv1.Op_Txn{Txn: &raftv1.Txn{Then: []*raftv1.Op{all}}}}
	for range 2 { // each transaction has room of its own
		results := applyAll(t, s, &raftv1.Txn{Then: []*raftv1.Op{all, all, nested, one}})[0].GetResults()
		for i, want := range []int{4, 0} {
			if got := results[i]; len(got.GetKvs()) != want || got.GetCount() != 10 {
				t.Errorf("range %d returns %d keys of %d, want %d of 10", i, len(got.GetKvs()), got.GetCount(), want)
			}
		}
		if got := results[2].GetResults()[0]; len(got.GetKvs()) != 0 || got.GetCount() != 10 {
			t.Errorf("the nested range returns %d keys of %d", len(got.GetKvs()), got.GetCount())
		}
		if got := results[3]; len(got.GetKvs()) != 1 || len(got.GetKvs()[0].GetValue()) != len(value) {
			t.Errorf("a key by itself: %d keys", len(got.GetKvs()))
		}
	}
}
