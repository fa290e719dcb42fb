package raftstore_test

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/holdfast-io/holdfast/raftstore"
)

// BenchmarkTxn measures puts of 256 bytes by clients at once, on one peer with real
// files: what the disk and the batcher make of them.
func BenchmarkTxn(b *testing.B) {
	for _, clients := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			n := startNode(b, newNodes(), "p1", b.TempDir(), true)
			if _, err := n.Sync(b.Context()); err != nil {
				b.Fatal(err)
			}
			benchPuts(b, n.Store, clients)
		})
	}
}

// BenchmarkForward is BenchmarkTxn on a follower of three, over loopback.
func BenchmarkForward(b *testing.B) {
	for _, clients := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			ns := newNodes()
			first := startNode(b, ns, "p1", b.TempDir(), true)
			if _, err := first.Sync(b.Context()); err != nil {
				b.Fatal(err)
			}
			for _, id := range []string{"p2", "p3"} {
				n := startNode(b, ns, id, b.TempDir(), false)
				if err := first.AddPeer(b.Context(), id, addressOf(n)); err != nil {
					b.Fatal(err)
				}
			}
			benchPuts(b, ns.list["p3"].Store, clients)
		})
	}
}

func benchPuts(b *testing.B, s *raftstore.Store, clients int) {
	value := bytes.Repeat([]byte("v"), 256)
	var next atomic.Int64
	b.SetParallelism(max(1, clients/2)) // times GOMAXPROCS
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			key := fmt.Sprintf("k/%d", next.Add(1)%10000)
			if _, err := s.Txn(b.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Put(key, value)}}); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "txn/s")
}

// BenchmarkSync measures linearizable reads on the only peer: what a read costs
// besides the network.
func BenchmarkSync(b *testing.B) {
	n := startNode(b, newNodes(), "p1", b.TempDir(), true)
	if _, err := n.Txn(b.Context(), put("k", strings.Repeat("v", 256))); err != nil {
		b.Fatal(err)
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := n.Sync(b.Context()); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
