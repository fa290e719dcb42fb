package apiserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

var podKind = &holdfastv1.Kind{Version: "v1", Kind: "Pod"}

func startWatch(t testing.TB, objects holdfastv1connect.ObjectServiceClient, req *holdfastv1.WatchRequest) holdfastv1connect.ObjectServiceWatchClientStream {
	t.Helper()
	if req.Kind == nil {
		req.Kind = podKind
	}
	stream, err := objects.Watch(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	return stream
}

// receive returns the next message in a stable text form.
func receive(t testing.TB, stream holdfastv1connect.ObjectServiceWatchClientStream) string {
	t.Helper()
	msg, err := stream.Receive()
	if err != nil {
		t.Fatal(err)
	}
	return watchText(msg)
}

func watchText(msg *holdfastv1.WatchResponse) string {
	var words []string
	for _, c := range msg.GetChanges() {
		words = append(words, fmt.Sprintf("%s %s@%d", strings.ToLower(strings.TrimPrefix(c.GetType().String(), "CHANGE_TYPE_")), c.GetObject().GetName(), c.GetObject().GetRevision()))
	}
	words = append(words, fmt.Sprintf("to %d", msg.GetRevision()))
	if msg.GetSynced() {
		words = append(words, "synced")
	}
	return strings.Join(words, ", ")
}

func labelled(name, value string) *corev1.Pod {
	pod := boundPod(name, "")
	pod.Labels = map[string]string{"app": value}
	return pod
}

// TestWatch: what a watcher is told, first and later, with and without
// selectors, from the beginning and from a revision.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		objects := c.objects("peer-1")
		r1 := c.put(labelled("a", "web"), labelled("b", "cache"))

		all := startWatch(t, objects, &holdfastv1.WatchRequest{})
		web := startWatch(t, objects, &holdfastv1.WatchRequest{LabelSelector: "app=web"})
		empty := startWatch(t, objects, &holdfastv1.WatchRequest{Namespace: "other", BookmarkInterval: durationpb.New(5 * time.Second)})
		want := func(stream holdfastv1connect.ObjectServiceWatchClientStream, text string, args ...any) {
			t.Helper()
			if got, want := receive(t, stream), fmt.Sprintf(text, args...); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		want(all, "added a@%d, added b@%d, to %d, synced", r1, r1, r1)
		want(web, "added a@%d, to %d, synced", r1, r1)
		want(empty, "to %d, synced", r1) // at once, though there is nothing to say

		// All of a revision comes together.
		r2 := c.put(labelled("c", "web"), labelled("d", "cache"))
		want(all, "added c@%d, added d@%d, to %d, synced", r2, r2, r2)
		want(web, "added c@%d, to %d, synced", r2, r2)

		// An object that begins or ceases to match.
		r3 := c.put(labelled("b", "web"))
		want(all, "modified b@%d, to %d, synced", r3, r3)
		want(web, "added b@%d, to %d, synced", r3, r3)
		r4 := c.put(labelled("a", "cache"))
		want(all, "modified a@%d, to %d, synced", r4, r4)
		msg, err := web.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := watchText(msg), fmt.Sprintf("deleted a@%d, to %d, synced", r4, r4); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		was, err := object.Decode(msg.GetChanges()[0].GetObject().GetData(), 0)
		if err != nil || was.GetLabels()["app"] != "web" {
			t.Errorf("a pod that ceased to match came as %v, want as it last matched", was.GetLabels())
		}
		r5 := c.remove(labelled("b", "web"))
		want(all, "deleted b@%d, to %d, synced", r5, r5)
		want(web, "deleted b@%d, to %d, synced", r5, r5)

		// Resumed, it goes on where it was, on another stream.
		resumed := startWatch(t, objects, &holdfastv1.WatchRequest{FromRevision: r3, LabelSelector: "app=web"})
		want(resumed, "to %d, synced", r3)
		want(resumed, "deleted a@%d, deleted b@%d, to %d, synced", r4, r5, r5)

		// Who is told nothing still learns how far he has come.
		start := time.Now()
		msg, err = empty.Receive()
		if err != nil || len(msg.GetChanges()) != 0 || msg.GetRevision() < r2 {
			t.Errorf("bookmark: %v, %v", msg, err)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("a bookmark took %s", took)
		}
		// So does he when nothing happens at all.
		start = time.Now()
		msg, err = empty.Receive()
		if err != nil || len(msg.GetChanges()) != 0 || msg.GetRevision() != r5 || !msg.GetSynced() || time.Since(start) != 5*time.Second {
			t.Errorf("bookmark of an idle store after %s: %v, %v", time.Since(start), msg, err)
		}
	})
}

// TestWatchCompacted: a revision out of the history's reach ends the watch with
// OutOfRange, after the first message.
func TestWatchCompacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClusterOn(t, 1, storetest.New(t, func(cfg *raftstore.Config) { cfg.Logger, cfg.HistoryEvents = nil, 10 }))
		r1 := c.put(boundPod("a", ""))
		for i := range 100 {
			pod := boundPod("a", "")
			pod.Labels = map[string]string{"i": fmt.Sprint(i)}
			c.put(pod)
		}
		time.Sleep(time.Minute) // compaction is the store's business
		stream := startWatch(t, c.objects("peer-1"), &holdfastv1.WatchRequest{FromRevision: r1})
		if _, err := stream.Receive(); err != nil {
			t.Fatal(err)
		}
		_, err := stream.Receive()
		wantCode(t, err, connect.CodeOutOfRange, "list again")

		_, err = c.objects("peer-1").List(t.Context(), &holdfastv1.ListRequest{Kind: podKind, Continue: pageToken{Revision: r1, Key: "pods/default/0"}.String()})
		wantCode(t, err, connect.CodeOutOfRange, "list again")
	})
}

// TestWatchFromFuture: a peer that lags behind the client waits, and says so when
// it has waited long enough; what the client has seen is not sent again.
func TestWatchFromFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		r1 := c.put(boundPod("a", ""))
		stream := startWatch(t, c.objects("peer-1"), &holdfastv1.WatchRequest{FromRevision: r1 + 1})
		receive(t, stream)
		synctest.Wait()
		c.put(boundPod("b", ""))
		r3 := c.put(boundPod("c", ""))
		if got, want := receive(t, stream), fmt.Sprintf("added c@%d, to %d, synced", r3, r3); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		late := startWatch(t, c.objects("peer-1"), &holdfastv1.WatchRequest{FromRevision: r3 + 100})
		receive(t, late)
		_, err := late.Receive()
		wantCode(t, err, connect.CodeUnavailable, fmt.Sprintf("did not reach %d within 10s", r3+100))
	})
}

// TestWatchManyObjects: a large beginning comes in several messages, the last of
// which alone is synced.
func TestWatchManyObjects(t *testing.T) {
	c := newCluster(t, 1)
	const n = 1203
	for at := 0; at < n; at += 100 {
		var objs []object.Object
		for i := at; i < min(at+100, n); i++ {
			objs = append(objs, boundPod(fmt.Sprintf("p%05d", i), ""))
		}
		c.put(objs...)
	}
	stream := startWatch(t, c.objects("peer-1"), &holdfastv1.WatchRequest{})
	var names []string
	messages := 0
	for {
		msg, err := stream.Receive()
		if err != nil {
			t.Fatal(err)
		}
		messages++
		for _, change := range msg.GetChanges() {
			names = append(names, change.GetObject().GetName())
		}
		if msg.GetSynced() {
			break
		}
		if msg.GetRevision() != 0 {
			t.Errorf("a message before the last claims revision %d", msg.GetRevision())
		}
	}
	if len(names) != n || !slices.IsSorted(names) || messages < 3 {
		t.Errorf("got %d objects in %d messages, want %d in several, in order", len(names), messages, n)
	}
}

// TestWatchProperties: whatever happens to pods, a watcher that is cut off again
// and again, and resumes on either of two peers, ends up with what a list shows;
// it sees revisions in order, none twice, and each as one message.
func TestWatchProperties(t *testing.T) {
	for _, selector := range []string{"", "app=web"} {
		t.Run(selector, func(t *testing.T) {
			c := newCluster(t, 2)
			rng := rand.New(rand.NewPCG(1, 2))
			const writes = 400
			done := make(chan int64)
			go func() {
				for range writes {
					pod := labelled(fmt.Sprint("p", rng.IntN(10)), []string{"web", "cache"}[rng.IntN(2)])
					pod.Annotations = map[string]string{"n": fmt.Sprint(rng.Int())}
					if rng.IntN(4) == 0 {
						c.remove(pod)
						continue
					}
					c.put(pod, labelled("always-together", []string{"web", "cache"}[rng.IntN(2)]))
				}
				done <- c.put(labelled("end", "web"))
			}()
			seen := map[string]int64{}
			var at int64
			for attempt := 0; seen["end"] == 0; attempt++ {
				ctx, cancel := context.WithCancel(t.Context())
				stream, err := c.objects(fmt.Sprint("peer-", attempt%2+1)).Watch(ctx, &holdfastv1.WatchRequest{Kind: podKind, LabelSelector: selector, FromRevision: at})
				if err != nil {
					t.Fatal(err)
				}
				for range 1 + attempt%7 {
					msg, err := stream.Receive()
					if err != nil {
						t.Fatal(err)
					}
					for _, change := range msg.GetChanges() {
						obj := change.GetObject()
						if at > 0 && obj.GetRevision() <= at || obj.GetRevision() > msg.GetRevision() {
							t.Fatalf("change at revision %d in a message from %d to %d", obj.GetRevision(), at, msg.GetRevision())
						}
						_, known := seen[obj.GetName()]
						switch change.GetType() {
						case holdfastv1.ChangeType_CHANGE_TYPE_ADDED:
							if known {
								t.Fatalf("%s added twice", obj.GetName())
							}
							seen[obj.GetName()] = obj.GetRevision()
						case holdfastv1.ChangeType_CHANGE_TYPE_MODIFIED:
							if !known {
								t.Fatalf("%s modified before it was added", obj.GetName())
							}
							seen[obj.GetName()] = obj.GetRevision()
						case holdfastv1.ChangeType_CHANGE_TYPE_DELETED:
							if !known {
								t.Fatalf("%s deleted before it was added", obj.GetName())
							}
							delete(seen, obj.GetName())
						}
					}
					at = msg.GetRevision()
					if seen["end"] != 0 {
						break
					}
				}
				cancel()
				stream.Close()
			}
			last := <-done
			resp, err := c.objects("peer-1").List(t.Context(), &holdfastv1.ListRequest{Kind: podKind, LabelSelector: selector, Read: &holdfastv1.ReadOptions{MinRevision: last}})
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]int64{}
			for _, obj := range resp.GetObjects() {
				want[obj.GetName()] = obj.GetRevision()
			}
			if fmt.Sprint(seen) != fmt.Sprint(want) {
				t.Errorf("watched:\n%v\nlisted:\n%v", seen, want)
			}
		})
	}
}

// TestStreamsEndWithRun: when a peer stops, its streams end, and say why.
func TestStreamsEndWithRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		stream := startWatch(t, c.objects("peer-1"), &holdfastv1.WatchRequest{})
		receive(t, stream)
		c.stops["peer-1"]()
		_, err := stream.Receive()
		wantCode(t, err, connect.CodeUnavailable, "shutting down")
	})
}

// TestEventsThroughTheAPI: Events are read like any kind, out of the log, and
// cannot be written.
func TestEventsThroughTheAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		objects := c.objects("peer-1")
		kind := &holdfastv1.Kind{Version: "v1", Kind: "Event"}
		events := c.servers["peer-1"].cfg.Events
		events.Record(boundPod("a", ""), "Normal", "Pulled", "image web:1")
		events.Record(boundPod("b", ""), "Warning", "BackOff", "crashed")

		resp, err := objects.List(t.Context(), &holdfastv1.ListRequest{Kind: kind, Namespace: "default", FieldSelector: "involvedObject.name=b,type=Warning"})
		if err != nil || len(resp.GetObjects()) != 1 || !strings.HasPrefix(resp.GetObjects()[0].GetName(), "b.") {
			t.Fatalf("list: %v, %v", resp, err)
		}
		if resp.GetAnswer().GetRevision() != c.store.View().Revision() {
			t.Errorf("a list of events answers with revision %d, which is not the store's", resp.GetAnswer().GetRevision())
		}
		name := resp.GetObjects()[0].GetName()
		got, err := objects.Get(t.Context(), &holdfastv1.GetRequest{Kind: kind, Namespace: "default", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		obj, err := object.Decode(got.GetObject().GetData(), 0)
		if err != nil || obj.(*corev1.Event).Message != "crashed" {
			t.Errorf("got %v, %v", obj, err)
		}
		var paged []string
		for token := ""; ; {
			page, err := objects.List(t.Context(), &holdfastv1.ListRequest{Kind: kind, Limit: 1, Continue: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range page.GetObjects() {
				paged = append(paged, o.GetName())
			}
			if token = page.GetContinue(); token == "" {
				break
			}
		}
		if len(paged) != 2 {
			t.Errorf("pages of one hold %v", paged)
		}

		stream := startWatch(t, objects, &holdfastv1.WatchRequest{Kind: kind, FieldSelector: "involvedObject.name=a"})
		first, err := stream.Receive()
		if err != nil || len(first.GetChanges()) != 1 || !first.GetSynced() {
			t.Fatalf("first: %v, %v", first, err)
		}
		// What another peer records comes, too.
		c.servers["peer-2"].cfg.Events.Record(boundPod("b", ""), "Normal", "Elsewhere", "not selected")
		c.servers["peer-2"].cfg.Events.Record(boundPod("a", ""), "Normal", "Started", "on peer-2")
		next, err := stream.Receive()
		if err != nil || len(next.GetChanges()) != 1 || next.GetChanges()[0].GetType() != holdfastv1.ChangeType_CHANGE_TYPE_ADDED {
			t.Fatalf("next: %v, %v", next, err)
		}
		obj, err = object.Decode(next.GetChanges()[0].GetObject().GetData(), 0)
		if err != nil || obj.(*corev1.Event).Reason != "Started" {
			t.Errorf("got %v, %v", obj, err)
		}
		// Resuming works here, and is refused on another peer.
		resumed := startWatch(t, objects, &holdfastv1.WatchRequest{Kind: kind, FromRevision: first.GetRevision()})
		receive(t, resumed)
		if got := receive(t, resumed); strings.Count(got, "added") != 2 {
			t.Errorf("resumed: %s", got)
		}
		elsewhere := startWatch(t, c.objects("peer-2"), &holdfastv1.WatchRequest{Kind: kind, FromRevision: first.GetRevision()})
		receive(t, elsewhere)
		_, err = elsewhere.Receive()
		wantCode(t, err, connect.CodeOutOfRange, "list again")

		event := message(t, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "x"}})
		_, err = objects.Create(t.Context(), &holdfastv1.CreateRequest{Object: event})
		wantCode(t, err, connect.CodeUnimplemented, "recorded by the cluster itself")
		_, err = objects.Apply(t.Context(), &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{event}})
		wantCode(t, err, connect.CodeInvalidArgument, "recorded by the cluster itself")
		_, err = objects.Delete(t.Context(), &holdfastv1.DeleteRequest{Kind: kind, Namespace: "default", Name: name})
		wantCode(t, err, connect.CodeUnimplemented, "recorded by the cluster itself")
	})
}

// TestTail: a peer reads another's log from where it is, or all of a log that it
// does not know; the first message comes at once.
func TestTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		events := c.servers["peer-1"].cfg.Events
		events.Record(boundPod("a", ""), "Normal", "Pulled", "m")
		events.Record(boundPod("b", ""), "Normal", "Pulled", "m")
		records, _ := events.Own(0, 1)
		client := peerv1connect.NewEventServiceClient(c.client("peer-1", pki.Identity{Cluster: testCluster, Role: pki.RolePeer, Name: "peer-2"}))
		var live peerv1connect.EventServiceTailClientStream
		for _, tt := range []struct {
			name string
			req  *peerv1.TailRequest
			want string
		}{
			{"from the beginning", &peerv1.TailRequest{}, "a b"},
			{"goes on", &peerv1.TailRequest{Log: events.ID(), After: records[0].GetSequence()}, "b"},
			{"nothing new", &peerv1.TailRequest{Log: events.ID(), After: records[0].GetSequence() + 1}, ""},
			{"of a log that is gone", &peerv1.TailRequest{Log: "former", After: records[0].GetSequence() + 1}, "a b"},
		} {
			stream, err := client.Tail(t.Context(), tt.req)
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			msg, err := stream.Receive()
			if err != nil || msg.GetLog() != events.ID() {
				t.Fatalf("%s: %v, %v", tt.name, msg, err)
			}
			var names []string
			for _, e := range msg.GetEvents() {
				names = append(names, e.GetAbout().GetName())
			}
			if got := strings.Join(names, " "); got != tt.want {
				t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
			}
			live = stream
		}
		events.Record(boundPod("c", ""), "Normal", "Pulled", "m")
		msg, err := live.Receive()
		if err != nil || len(msg.GetEvents()) != 1 || msg.GetEvents()[0].GetAbout().GetName() != "c" {
			t.Errorf("live: %v, %v", msg, err)
		}
	})
}
