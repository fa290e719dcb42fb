package mvcc

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"unsafe"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// BenchmarkApply measures entries of 100 puts of 256 bytes each, over a hundred
// thousand keys, a root taken after each entry, as raftstore does.
func BenchmarkApply(b *testing.B) {
	for name, compares := range map[string]bool{"puts": false, "compared": true} {
		b.Run(name, func(b *testing.B) {
			const keys, perEntry = 100_000, 100
			value := bytes.Repeat([]byte("v"), 256)
			r := rand.New(rand.NewPCG(1, 2))
			entries := make([][]byte, 200)
			for i := range entries {
				var txns []*raftv1.Txn
				for range perEntry {
					key := fmt.Sprintf("configmaps/default/name-%06d", r.IntN(keys))
					txn := putTxn(key, value)
					if compares {
						txn.Compares = []*raftv1.Compare{{
							Key: key, Target: raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION, Result: raftv1.CompareResult_COMPARE_RESULT_GREATER, Number: -1,
						}}
						txn.Actor = "system:controller"
					}
					txns = append(txns, txn)
				}
				entries[i] = encode(b, batch(txns...))
			}
			s := New()
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if _, err := s.Apply(Entry{Index: uint64(i + 1), Term: 1, Data: entries[i%len(entries)]}); err != nil {
					b.Fatal(err)
				}
				s.Root()
				if i%100 == 99 { // as HistoryEvents does
					s.compact(s.meta.revision - 10_000)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*perEntry), "ns/put")
		})
	}
}

func putTxn(key string, value []byte) *raftv1.Txn {
	return &raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: key, Value: value}}}}}
}

// BenchmarkMemory reports the live heap of a million keys of 1 KiB, for each key
// beside its key and value, and in all. It takes seconds; -benchtime 1x is enough.
func BenchmarkMemory(b *testing.B) {
	const keys = 1_000_000
	for name, lease := range map[string]int64{"plain": 0, "leased": 7} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				before := liveHeap()
				s := New()
				value := bytes.Repeat([]byte("v"), 1024)
				var bytesOfKeys int
				grant := &raftv1.Op{Op: &raftv1.Op_LeaseGrant{LeaseGrant: &raftv1.LeaseGrant{Id: 7, TtlMillis: 1}}}
				if _, err := s.Apply(Entry{Index: 1, Term: 1, Data: encode(b, batch(&raftv1.Txn{Then: []*raftv1.Op{grant}}))}); err != nil {
					b.Fatal(err)
				}
				for i := range keys / 100 {
					var txns []*raftv1.Txn
					for j := range 100 {
						key := fmt.Sprintf("pods/default/some-deployment-7f9c-%07d", i*100+j)
						bytesOfKeys += len(key)
						txn := putTxn(key, value)
						txn.Then[0].GetPut().Lease = lease
						txns = append(txns, txn)
					}
					if _, err := s.Apply(Entry{Index: uint64(i + 2), Term: 1, Data: encode(b, batch(txns...))}); err != nil {
						b.Fatal(err)
					}
					s.Root()
				}
				s.compact(s.meta.revision - 50_000)
				live := liveHeap() - before
				b.ReportMetric(float64(live)/1e6, "MB")
				b.ReportMetric(float64(live-uint64(bytesOfKeys)-keys*1024)/keys, "overhead-B/key")
				runtime.KeepAlive(s)
			}
		})
	}
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestSizes holds what a million of them cost: the allocator's next class would
// take 16 bytes more.
func TestSizes(t *testing.T) {
	if size := unsafe.Sizeof(record{}); size != 96 {
		t.Errorf("a record has %d bytes, want 96", size)
	}
}
