package apiserver

import (
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
)

// cpuTime is what this process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reportCPU adds the CPU time of an operation, of both ends and the store, to b. It is
// what to compare on a machine that is shared.
func reportCPU(b *testing.B, begin time.Duration) {
	b.ReportMetric(float64((cpuTime()-begin).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// BenchmarkSession has 1,000 calls in flight in one session, over loopback and TLS, with
// a store of one peer in memory.
func BenchmarkSession(b *testing.B) {
	value := make([]byte, 256)
	for _, bench := range []struct {
		name string
		call func(i int) *storev1.Call
	}{
		{"put", func(i int) *storev1.Call {
			return &storev1.Call{Call: &storev1.Call_Put{Put: &storev1.PutRequest{Key: fmt.Appendf(nil, "k%06d", i%100_000), Value: value}}}
		}},
		{"get", func(i int) *storev1.Call {
			return &storev1.Call{Call: &storev1.Call_Range{Range: &storev1.RangeRequest{Key: fmt.Appendf(nil, "k%06d", i%100)}}}
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			c := newCluster(b, 1)
			raw := overTLS(b, c)
			for i := range 100 {
				if _, err := raw.Put(b.Context(), &storev1.PutRequest{Key: fmt.Appendf(nil, "k%06d", i), Value: value}); err != nil {
					b.Fatal(err)
				}
			}
			stream, err := raw.Session(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			defer stream.Close()
			room := make(chan struct{}, 1000)
			b.ReportAllocs()
			b.ResetTimer()
			begin := cpuTime()
			go func() {
				for sent := 0; sent < b.N; {
					msg := &storev1.SessionRequest{}
					for full := false; !full && sent < b.N; {
						select {
						case room <- struct{}{}:
							call := bench.call(sent)
							call.Id = uint64(sent) + 1
							msg.Calls = append(msg.Calls, call)
							sent++
						default:
							if full = len(msg.GetCalls()) > 0; !full {
								runtime.Gosched()
							}
						}
					}
					if stream.Send(msg) != nil {
						return
					}
				}
			}()
			for got := 0; got < b.N; {
				msg, err := stream.Receive()
				if err != nil {
					b.Fatal(err)
				}
				for _, reply := range msg.GetReplies() {
					if reply.GetFailure() != nil {
						b.Fatal(reply)
					}
					<-room
					got++
				}
			}
			reportCPU(b, begin)
		})
	}
}

// BenchmarkWatch has one key put, and 1,000 watchers of it on ten streams; an operation
// is an event at a watcher.
func BenchmarkWatch(b *testing.B) {
	const streams, each = 10, 100
	c := newCluster(b, 1)
	raw := overTLS(b, c)
	all := make([]storev1connect.StoreServiceWatchClientStream, streams)
	for i := range all {
		all[i] = watchMany(b, raw, each, func(int) []byte { return []byte("k") })
	}
	value := make([]byte, 256)
	puts := max(1, b.N/(streams*each))
	b.ReportAllocs()
	b.ResetTimer()
	begin := cpuTime()
	done := make(chan error, streams)
	for _, stream := range all {
		go func() {
			for got := 0; got < puts*each; {
				msg, err := stream.Receive()
				if err != nil {
					done <- err
					return
				}
				for _, update := range msg.GetUpdates() {
					got += len(update.GetEvents())
				}
			}
			done <- nil
		}()
	}
	for range puts {
		if _, err := raw.Put(b.Context(), &storev1.PutRequest{Key: []byte("k"), Value: value}); err != nil {
			b.Fatal(err)
		}
	}
	for range streams {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	reportCPU(b, begin)
}

// watchMany begins n watches on a stream.
func watchMany(b *testing.B, raw storev1connect.StoreServiceClient, n int, key func(i int) []byte) storev1connect.StoreServiceWatchClientStream {
	b.Helper()
	stream, err := raw.Watch(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { stream.Close() })
	req := &storev1.WatchRequest{}
	for i := range n {
		req.Start = append(req.Start, &storev1.WatchStart{Id: uint64(i) + 1, Key: key(i)})
	}
	if err := stream.Send(req); err != nil {
		b.Fatal(err)
	}
	for got := 0; got < n; {
		msg, err := stream.Receive()
		if err != nil {
			b.Fatal(err)
		}
		got += len(msg.GetUpdates())
	}
	return stream
}

// BenchmarkIdleWatches tells the memory of a watch on which nothing happens, when 10,000
// share a stream, and of a stream with one. The latter is over a transport within the
// process, so without its buffers.
func BenchmarkIdleWatches(b *testing.B) {
	for _, bench := range []struct {
		name          string
		streams, each int
	}{{"one stream", 1, 10_000}, {"a stream each", 1000, 1}} {
		b.Run(bench.name, func(b *testing.B) {
			c := newCluster(b, 1)
			raw := c.raw("peer-1")
			for range b.N {
				before := memory()
				for i := range bench.streams {
					stream := watchMany(b, raw, bench.each, func(j int) []byte { return fmt.Appendf(nil, "key/%d/%d", i, j) })
					defer stream.Close()
				}
				b.ReportMetric(float64(int64(memory()-before))/float64(bench.streams*bench.each), "B/watch")
			}
		})
	}
}

// memory is what heap and stacks take, after a collection.
func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
