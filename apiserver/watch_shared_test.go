package apiserver

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// TestWatchSaysTheSameToAll: whatever a watcher speaks, it gets the same messages,
// though the bytes of a change are made once for all who speak protobuf.
func TestWatchSaysTheSameToAll(t *testing.T) {
	c := newCluster(t, 1)
	url, as := tlsServer(t, c)
	two := as(c.ca, pki.RoleAdmin, "alice")
	clients := map[string]holdfastv1connect.ObjectServiceClient{"in process": c.objects("peer-1")}
	for name, options := range map[string][]connecthttp.Option{
		"Connect": nil, "Connect, JSON": {connecthttp.WithProtoJSON()}, "gRPC": {connecthttp.WithGRPC()}, "gRPC-Web": {connecthttp.WithGRPCWeb()},
	} {
		clients[name] = holdfastv1connect.NewObjectServiceClient(connect.NewClient(connecthttp.NewTransport(two, url, options...)))
	}
	type watcher struct {
		name   string
		stream holdfastv1connect.ObjectServiceWatchClientStream
	}
	var watchers []watcher
	encodings := []holdfastv1.Encoding{holdfastv1.Encoding_ENCODING_PROTOBUF, holdfastv1.Encoding_ENCODING_JSON}
	for name, objects := range clients {
		for _, encoding := range encodings {
			stream := startWatch(t, objects, &holdfastv1.WatchRequest{Encoding: encoding})
			if _, err := stream.Receive(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			watchers = append(watchers, watcher{fmt.Sprint(name, ", ", encoding), stream})
		}
	}
	c.put(labelled("a", "web"), labelled("b", "web"))
	c.put(labelled("a", "cache"))
	c.remove(labelled("b", "web"))
	for _, encoding := range encodings {
		var first []*holdfastv1.Change
		for _, w := range watchers {
			if w.name[len(w.name)-len(encoding.String()):] != encoding.String() {
				continue
			}
			var got []*holdfastv1.Change
			for len(got) < 4 {
				msg, err := w.stream.Receive()
				if err != nil {
					t.Fatalf("%s: %v", w.name, err)
				}
				if !msg.GetSynced() || msg.GetRevision() == 0 || len(msg.GetChanges()) == 0 || len(msg.ProtoReflect().GetUnknown()) > 0 {
					t.Fatalf("%s: %v", w.name, msg)
				}
				got = append(got, msg.GetChanges()...)
			}
			if first == nil {
				first = got
				text := watchText(&holdfastv1.WatchResponse{Changes: got})
				if r := c.store.View().Revision(); text != fmt.Sprintf("added a@%d, added b@%d, modified a@%d, deleted b@%d, to 0", r-2, r-2, r-1, r) {
					t.Errorf("%s: %s", w.name, text)
				}
				continue
			}
			for i := range got {
				if !proto.Equal(got[i], first[i]) {
					t.Errorf("%s: change %d is %v, for another %v", w.name, i, got[i], first[i])
				}
			}
		}
		if first == nil {
			t.Fatalf("nobody watches in %s", encoding)
		}
	}
}

// TestWatchesTakeTurns: what many watch comes to each in few messages, and to few at
// once.
func TestWatchesTakeTurns(t *testing.T) {
	for _, tt := range []struct{ watchers, least, most int }{{1, 100, 100}, {200, 3, 8}} {
		t.Run(fmt.Sprint(tt.watchers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1)
				const writes = 100 // in 100 ms; the pause of 200 watches is 20 ms
				var all sync.WaitGroup
				for range tt.watchers {
					stream := startWatch(t, c.objects("peer-1"), &holdfastv1.WatchRequest{})
					if _, err := stream.Receive(); err != nil {
						t.Fatal(err)
					}
					all.Go(func() {
						messages := 0
						for got := 0; got < writes; messages++ {
							msg, err := stream.Receive()
							if err != nil {
								t.Error(err)
								return
							}
							got += len(msg.GetChanges())
						}
						if messages < tt.least || messages > tt.most {
							t.Errorf("%d changes in 100 ms came in %d messages, want %d to %d", writes, messages, tt.least, tt.most)
						}
					})
				}
				for i := range writes {
					c.put(boundPod(fmt.Sprint("p", i), ""))
					time.Sleep(time.Millisecond)
				}
				all.Wait()
			})
		})
	}
}

// BenchmarkObjectWatch has config maps created, and 1,000 watches of them on 20
// connections; an operation is a change at a watcher.
func BenchmarkObjectWatch(b *testing.B) {
	const connections, each = 20, 50
	c := newCluster(b, 1)
	url, as := tlsServer(b, c)
	var streams []holdfastv1connect.ObjectServiceWatchClientStream
	kind := &holdfastv1.Kind{Version: "v1", Kind: "ConfigMap"}
	for range connections {
		objects := holdfastv1connect.NewObjectServiceClient(connect.NewClient(connecthttp.NewTransport(as(c.ca, pki.RoleAdmin, "alice"), url)))
		for range each {
			stream := startWatch(b, objects, &holdfastv1.WatchRequest{Kind: kind, Namespace: "default"})
			if _, err := stream.Receive(); err != nil {
				b.Fatal(err)
			}
			streams = append(streams, stream)
		}
	}
	writes := max(1, b.N/len(streams))
	b.ReportAllocs()
	b.ResetTimer()
	begin := cpuTime()
	done := make(chan error, len(streams))
	for _, stream := range streams {
		go func() {
			for got := 0; got < writes; {
				msg, err := stream.Receive()
				if err != nil {
					done <- err
					return
				}
				got += len(msg.GetChanges())
			}
			done <- nil
		}()
	}
	var writing sync.WaitGroup
	var next atomic.Int64
	for range 16 { // at once, as many write
		writing.Go(func() {
			for i := next.Add(1); i <= int64(writes); i = next.Add(1) {
				c.put(&corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("cm-%d-%d", b.N, i), UID: "0a2b4c6d-1111-2222-3333-444455556666"},
					Data:       map[string]string{"value": strings.Repeat("0123456789abcdef", 8)},
				})
			}
		})
	}
	writing.Wait()
	for range streams {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	reportCPU(b, begin)
}
