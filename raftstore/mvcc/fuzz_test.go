package mvcc

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// plainTxns are transactions that the decoder reads without package proto.
func plainTxns(r *rand.Rand) (txns []*raftv1.Txn) {
	for range r.IntN(4) {
		txn := &raftv1.Txn{Term: uint64(r.IntN(2)), Actor: "a"}
		if r.IntN(2) == 0 {
			txn.Id = []byte{byte(r.IntN(3))}
		}
		m := txnMaker{r, 3}
		for range r.IntN(3) {
			key, end := m.bounds()
			txn.Compares = append(txn.Compares, &raftv1.Compare{
				Key: key, RangeEnd: end, Target: raftv1.CompareTarget(1 + r.IntN(5)), Result: raftv1.CompareResult(1 + r.IntN(4)), Number: r.Int64N(5) - 1, Value: m.value(),
			})
		}
		for range r.IntN(3) {
			txn.Then = append(txn.Then, &raftv1.Op{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: m.key(), Value: m.value()[:r.IntN(2)], Lease: m.lease()}}})
		}
		txns = append(txns, txn)
	}
	return txns
}

// started returns a state with a little of everything, always the same.
func started(t testing.TB) *State {
	t.Helper()
	s := New()
	r := rand.New(rand.NewPCG(7, 7))
	for i := range uint64(20) {
		var txns []*raftv1.Txn
		for range 3 {
			txns = append(txns, txnMaker{r, s.meta.revision}.outermost())
		}
		if _, err := s.Apply(Entry{Index: i + 1, Term: 1, Data: encode(t, batch(txns...))}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// FuzzApply gives the state machine entries of any bytes. It must refuse them and
// stay as it is, or do what package proto reads in them, on the short way for plain
// batches too.
func FuzzApply(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 3))
	for i := range 60 {
		cmd := batch(plainTxns(r)...)
		if i%3 == 0 {
			cmd = batch(txnMaker{r, 3}.outermost(), txnMaker{r, 3}.outermost())
		}
		if i%2 == 0 {
			cmd.ProposedAt = &timestamppb.Timestamp{Seconds: r.Int64N(1000), Nanos: r.Int32N(2000) - 1000}
		}
		f.Add(encode(f, cmd))
	}
	f.Add(encode(f, &raftv1.Command{Op: &raftv1.Command_Compact{Compact: &raftv1.Compact{Revision: 5}}}))
	f.Add(encode(f, &raftv1.Command{Op: &raftv1.Command_HashCheck{HashCheck: &raftv1.HashCheck{Index: 5, Hash: make([]byte, 16)}}}))
	f.Add([]byte("\x0a\x00"))
	f.Add([]byte("\x0a\x02\x0a\x00\x0a\x02\x0a\x00")) // two batches are one for proto
	f.Fuzz(func(t *testing.T, data []byte) {
		s, twin := started(t), started(t)
		e := Entry{Index: 100, Term: 1, Data: data}
		before := s.meta
		_, _, plain := new(decoder).command(data)
		got, err := s.Apply(e)
		if err != nil {
			if plain {
				t.Fatalf("a plain batch was refused: %v", err)
			}
			if s.meta != before || !bytes.Equal(dump(t, s.Root()), dump(t, twin.Root())) {
				t.Fatalf("refused with %v, but it changed something", err)
			}
			return
		}
		var cmd raftv1.Command
		if err := proto.Unmarshal(data, &cmd); err != nil {
			t.Fatalf("applied, but it is no command: %v", err)
		}
		if err := checkCommand(&cmd); err != nil {
			t.Fatalf("applied, but %v", err)
		}
		if plain {
			// The long way round.
			var requests []request
			for _, txn := range cmd.GetBatch().GetTxns() {
				requests = append(requests, request{full: txn, term: txn.GetTerm(), id: txn.GetId()})
			}
			results := twin.applyBatch(requests, e)
			if len(results) != len(got.Results) {
				t.Fatalf("%d results, want %d", len(got.Results), len(results))
			}
			for i := range results {
				if !proto.Equal(results[i], got.Results[i]) {
					t.Fatalf("result %v, want %v", got.Results[i], results[i])
				}
			}
			twin.meta.index = e.Index
			if twin.meta.revision != before.revision {
				twin.sample(millis(cmd.GetProposedAt().GetSeconds(), int64(cmd.GetProposedAt().GetNanos())))
			}
			if twin.meta != s.meta || !bytes.Equal(dump(t, twin.Root()), dump(t, s.Root())) {
				t.Fatalf("%+v, want %+v", s.meta, twin.meta)
			}
		}
		again := restored(t, s.Root())
		if again.meta != s.meta || !bytes.Equal(dump(t, again.Root()), dump(t, s.Root())) {
			t.Fatal("through a snapshot it is another state")
		}
	})
}

// TestPlainBatches covers that what clients write most does take the short way.
func TestPlainBatches(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 4))
	for range 200 {
		cmd := batch(plainTxns(r)...)
		cmd.ProposedAt = &timestamppb.Timestamp{Seconds: 1, Nanos: 2}
		requests, _, ok := new(decoder).command(encode(t, cmd))
		if !ok || len(requests) != len(cmd.GetBatch().GetTxns()) {
			t.Fatalf("%v is not plain", cmd)
		}
	}
}

// FuzzReadSnapshot gives the reader frames with right sums and any payload.
func FuzzReadSnapshot(f *testing.F) {
	for _, s := range []*State{New(), started(f)} {
		frames := bytes.TrimPrefix(dump(f, s.Root()), []byte(snapshotMagic))
		var payloads [][]byte
		var kinds []byte
		for len(frames) > 0 {
			size := binary.BigEndian.Uint32(frames[2:])
			kinds, payloads = append(kinds, frames[0]), append(payloads, frames[10:10+size])
			frames = frames[10+size:]
		}
		first := payloads[0]
		last := payloads[len(payloads)-1]
		f.Add(first, bytes.Join(payloads[1:len(payloads)-1], nil), last, byte(0))
		f.Add(first, last, last, kinds[len(kinds)-1])
	}
	f.Fuzz(func(t *testing.T, header, chunk, trailer []byte, kind byte) {
		data := []byte(snapshotMagic)
		for i, payload := range [][]byte{header, chunk, trailer} {
			head := [10]byte{byte(i + 1), codecPlain}
			if i == 1 && kind > 0 {
				head[0] = kind
			}
			binary.BigEndian.PutUint32(head[2:], uint32(len(payload)))
			binary.BigEndian.PutUint32(head[6:], crc32.Checksum(payload, castagnoli))
			data = append(append(data, head[:]...), payload...)
		}
		s, err := ReadSnapshot(bytes.NewReader(data))
		if err != nil {
			return
		}
		if again := restored(t, s.Root()); again.meta != s.meta {
			t.Fatalf("read again it is %+v, was %+v", again.meta, s.meta)
		}
	})
}
