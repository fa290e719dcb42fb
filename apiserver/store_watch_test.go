package apiserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestStoreWatchProperties pins the nine properties of a watch, as etcd's robustness
// tests name them, for watches of every shape that go from peer to peer again and
// again while keys are written, by one writer whose account is the truth.
func TestStoreWatchProperties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newRaftCluster(t, 3)
		random := rand.New(rand.NewPCG(1, 2))
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		first, err := c.raw("p1").Put(ctx, putReq("begin", ""))
		if err != nil {
			t.Fatal(err)
		}
		begin := first.GetHeader().GetRevision()

		watches := []*watched{
			{start: &storev1.WatchStart{Key: []byte("a1")}},
			{start: &storev1.WatchStart{Key: []byte("a"), RangeEnd: []byte("b"), PrevKv: true}},
			{start: &storev1.WatchStart{Key: []byte("a2"), RangeEnd: []byte("b3"), PrevKv: true}},
			{start: &storev1.WatchStart{RangeEnd: []byte{0}, PrevKv: true}},
			{start: &storev1.WatchStart{Key: []byte("b1"), RangeEnd: []byte{0}, NoPuts: true}},
			{start: &storev1.WatchStart{RangeEnd: []byte{0}, NoDeletes: true}},
			{start: &storev1.WatchStart{Key: []byte("none")}},
		}
		const last = 120
		truth := newAccount()
		end := begin + last
		done := make(chan error, 2*len(watches))
		for i, w := range watches {
			w.t, w.start.Id, w.upTo, w.end, w.raw = t, uint64(i+1), begin, end, c.raw
			w.start.Bookmark = durationpb.New(time.Second)
			go func() { done <- w.run(ctx, rand.New(rand.NewPCG(3, uint64(i)))) }()
		}
		for rev := begin + 1; rev <= end; rev++ {
			req := truth.step(random, rev)
			resp, err := c.raw(fmt.Sprint("p", 1+random.IntN(3))).Txn(ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			if resp.GetHeader().GetRevision() != rev {
				t.Fatalf("write %d is revision %d: the account is not the truth", rev, resp.GetHeader().GetRevision())
			}
			if random.IntN(4) == 0 {
				time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond)
			}
		}
		for range watches {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		for _, w := range watches {
			w.check(truth.events)
			if w.reconnects < 2 {
				t.Errorf("watch %d went to another peer %d times only", w.start.GetId(), w.reconnects)
			}
		}
	})
}

// account is what a writer knows that it has done.
type account struct {
	now    map[string]*storev1.KeyValue
	events []*storev1.Event // with previous values
}

func newAccount() *account { return &account{now: make(map[string]*storev1.KeyValue)} }

// step makes a transaction of some puts and deletes and notes what it will do.
func (a *account) step(random *rand.Rand, rev int64) *storev1.TxnRequest {
	req := &storev1.TxnRequest{}
	used := make(map[string]bool)
	for n := 1 + random.IntN(4); n > 0; n-- {
		key := fmt.Sprintf("%c%d", 'a'+rune(random.IntN(2)), random.IntN(5))
		if used[key] {
			continue
		}
		used[key] = true
		old := a.now[key]
		if old != nil && random.IntN(3) == 0 {
			req.Success = append(req.Success, &storev1.Op{Op: &storev1.Op_Delete{Delete: &storev1.DeleteRequest{Key: []byte(key)}}})
			a.events = append(a.events, &storev1.Event{Type: storev1.Event_TYPE_DELETE, Kv: &storev1.KeyValue{Key: []byte(key), ModRevision: rev}, PrevKv: old})
			delete(a.now, key)
			continue
		}
		kv := &storev1.KeyValue{Key: []byte(key), Value: fmt.Append(nil, "v", rev), CreateRevision: rev, ModRevision: rev, Version: 1}
		if old != nil {
			kv.CreateRevision, kv.Version = old.GetCreateRevision(), old.GetVersion()+1
		}
		req.Success = append(req.Success, &storev1.Op{Op: &storev1.Op_Put{Put: &storev1.PutRequest{Key: kv.GetKey(), Value: kv.GetValue()}}})
		a.events = append(a.events, &storev1.Event{Type: storev1.Event_TYPE_PUT, Kv: kv, PrevKv: old})
		a.now[key] = kv
	}
	return req
}

// watched is a watch that resumes on another peer after some updates.
type watched struct {
	t     *testing.T
	raw   func(peer string) storev1connect.StoreServiceClient
	start *storev1.WatchStart
	end   int64 // it ends once it has come so far

	upTo       int64
	updates    []*storev1.WatchUpdate
	reconnects int
}

func (w *watched) run(ctx context.Context, random *rand.Rand) error {
	for ; w.upTo < w.end; w.reconnects++ {
		if err := w.once(ctx, fmt.Sprint("p", 1+random.IntN(3)), 2+random.IntN(6)); err != nil {
			return fmt.Errorf("watch %d: %w", w.start.GetId(), err)
		}
	}
	return nil
}

// once takes so many updates of one peer.
func (w *watched) once(ctx context.Context, peer string, updates int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.raw(peer).Watch(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	w.start.After = w.upTo // Resumable
	if err := stream.Send(&storev1.WatchRequest{Start: []*storev1.WatchStart{w.start}}); err != nil {
		return err
	}
	for updates > 0 && w.upTo < w.end {
		msg, err := stream.Receive()
		if err != nil {
			return err
		}
		for _, u := range msg.GetUpdates() {
			if u.GetEnded() != nil || u.GetId() != w.start.GetId() || u.GetUpTo() < w.upTo {
				return fmt.Errorf("after %d: update %v", w.upTo, u)
			}
			if u.GetUpTo() > w.start.GetAfter() && u.GetUpTo() > msg.GetHeader().GetRevision() {
				w.t.Errorf("watch %d: told up to %d by a peer at %d", u.GetId(), u.GetUpTo(), msg.GetHeader().GetRevision())
			}
			w.updates = append(w.updates, u)
			w.upTo = u.GetUpTo()
			updates--
		}
	}
	return nil
}

// check compares what the watch was told with the truth.
func (w *watched) check(truth []*storev1.Event) {
	w.t.Helper()
	name := fmt.Sprintf("watch %d [%s, %q)", w.start.GetId(), w.start.GetKey(), w.start.GetRangeEnd())
	var want []*storev1.Event
	for _, e := range truth {
		if !w.selects(e) { // Filter
			continue
		}
		want = append(want, e)
	}
	var told int64
	next := 0
	for _, u := range w.updates {
		for _, e := range u.GetEvents() {
			rev := e.GetKv().GetModRevision()
			if next == len(want) {
				w.t.Fatalf("%s: %v is one too many", name, e)
			}
			// Ordered, Unique, Reliable: the next one, no other.
			expected := want[next]
			next++
			if e.GetType() != expected.GetType() || !sameKV(e.GetKv(), expected.GetKv()) { // with version and creation: isCreate
				w.t.Fatalf("%s: got %v, want %v", name, e, expected)
			}
			if w.start.GetPrevKv() && !sameKV(e.GetPrevKv(), expected.GetPrevKv()) || !w.start.GetPrevKv() && e.GetPrevKv() != nil {
				w.t.Fatalf("%s: at %d the previous value is %v, want %v", name, rev, e.GetPrevKv(), expected.GetPrevKv())
			}
			// Atomic and Bookmarkable: all of a revision in one update, and nothing
			// at or below what was said to be complete.
			if rev <= told || rev > u.GetUpTo() {
				w.t.Fatalf("%s: an event of revision %d came between up to %d and %d", name, rev, told, u.GetUpTo())
			}
		}
		told = u.GetUpTo()
	}
	if next != len(want) {
		w.t.Errorf("%s: %d of %d events, the first that is missing: %v", name, next, len(want), want[next])
	}
}

func (w *watched) selects(e *storev1.Event) bool {
	key, start, end := string(e.GetKv().GetKey()), string(w.start.GetKey()), string(w.start.GetRangeEnd())
	in := key == start
	switch end {
	case "":
	case "\x00":
		in = key >= start
	default:
		in = key >= start && key < end
	}
	if e.GetType() == storev1.Event_TYPE_DELETE {
		return in && !w.start.GetNoDeletes()
	}
	return in && !w.start.GetNoPuts()
}

func sameKV(a, b *storev1.KeyValue) bool {
	return (a == nil) == (b == nil) && string(a.GetKey()) == string(b.GetKey()) && string(a.GetValue()) == string(b.GetValue()) &&
		a.GetCreateRevision() == b.GetCreateRevision() && a.GetModRevision() == b.GetModRevision() && a.GetVersion() == b.GetVersion()
}

// openWatch opens a watch stream and starts watches on it.
func openWatch(t *testing.T, c storev1connect.StoreServiceClient, starts ...*storev1.WatchStart) storev1connect.StoreServiceWatchClientStream {
	t.Helper()
	stream, err := c.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stream.Close() })
	if err := stream.Send(&storev1.WatchRequest{Start: starts}); err != nil {
		t.Fatal(err)
	}
	return stream
}

// updatesOf reads updates until there are n.
func updatesOf(t *testing.T, stream storev1connect.StoreServiceWatchClientStream, n int) []*storev1.WatchUpdate {
	t.Helper()
	var out []*storev1.WatchUpdate
	for len(out) < n {
		msg, err := stream.Receive()
		if err != nil {
			t.Fatalf("after %d updates: %v", len(out), err)
		}
		out = append(out, msg.GetUpdates()...)
	}
	return out
}

// TestStoreWatchFuture: a watch of what is to come tells nothing of before, no progress
// either (etcd#20221), however often it is asked.
func TestStoreWatchFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		raw := c.raw("peer-1")
		put := func() int64 {
			resp, err := raw.Put(t.Context(), putReq("k", "v"))
			if err != nil {
				t.Fatal(err)
			}
			return resp.GetHeader().GetRevision()
		}
		after := put() + 3
		stream := openWatch(t, raw, &storev1.WatchStart{Id: 1, Key: []byte("k"), After: after, Bookmark: durationpb.New(time.Second)})
		if u := updatesOf(t, stream, 1)[0]; u.GetUpTo() != after || len(u.GetEvents()) > 0 {
			t.Errorf("the first update is %v", u)
		}
		if err := stream.Send(&storev1.WatchRequest{Progress: []uint64{1}}); err != nil {
			t.Fatal(err)
		}
		got := make(chan *storev1.WatchUpdate, 10)
		go func() {
			for {
				msg, err := stream.Receive()
				if err != nil {
					return
				}
				for _, u := range msg.GetUpdates() {
					got <- u
				}
			}
		}()
		for put() < after {
			time.Sleep(10 * time.Second)
			select {
			case u := <-got:
				if u.GetUpTo() < after || len(u.GetEvents()) > 0 {
					t.Errorf("before revision %d: %v", after, u)
				}
				if rev := c.store.View().Revision(); rev < after {
					t.Errorf("an update at revision %d: %v", rev, u)
				}
			default:
			}
		}
		rev := put()
		for {
			u := <-got
			if len(u.GetEvents()) == 0 && u.GetUpTo() == after {
				continue // the progress that was asked for
			}
			if len(u.GetEvents()) != 1 || u.GetEvents()[0].GetKv().GetModRevision() != rev {
				t.Errorf("after the start: %v", u)
			}
			break
		}
	})
}

// TestStoreWatchProgress: who asks learns the peer's revision, though nothing matched;
// who does not, after the time that it named; and in a quiet store nobody.
func TestStoreWatchProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		raw := c.raw("peer-1")
		stream := openWatch(t, raw, &storev1.WatchStart{Id: 7, Key: []byte("quiet")}, &storev1.WatchStart{Id: 8, Key: []byte("quiet"), Bookmark: durationpb.New(time.Hour)})
		updatesOf(t, stream, 2)
		resp, err := raw.Put(t.Context(), putReq("other", "v"))
		if err != nil {
			t.Fatal(err)
		}
		rev := resp.GetHeader().GetRevision()
		if err := stream.Send(&storev1.WatchRequest{Progress: []uint64{8}}); err != nil {
			t.Fatal(err)
		}
		if u := updatesOf(t, stream, 1)[0]; u.GetId() != 8 || u.GetUpTo() < rev {
			t.Errorf("asked for progress: %v, want up to %d", u, rev)
		}
		begin := time.Now()
		if u := updatesOf(t, stream, 1)[0]; u.GetId() != 7 || u.GetUpTo() < rev {
			t.Errorf("bookmark: %v, want up to %d", u, rev)
		}
		if took := time.Since(begin); took > 2*defaultBookmark {
			t.Errorf("the bookmark took %v", took)
		}
		if err := stream.Send(&storev1.WatchRequest{Stop: []uint64{7}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // a bookmark in this quiet would come before the end
		if u := updatesOf(t, stream, 1)[0]; u.GetId() != 7 || u.GetEnded().GetCode() != "canceled" {
			t.Errorf("after stop: %v", u)
		}
	})
}

// TestStoreWatchCompacted: a watch of history that is gone ends and says from where on
// there is some; the stream's other watches go on.
func TestStoreWatchCompacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClusterOn(t, 1, storetest.New(t, func(cfg *raftstore.Config) { cfg.Logger, cfg.HistoryEvents = nil, 10 }))
		raw := c.raw("peer-1")
		for i := range 200 {
			if _, err := raw.Put(t.Context(), putReq("k", fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		stream := openWatch(t, raw, &storev1.WatchStart{Id: 1, Key: []byte("k"), After: 1}, &storev1.WatchStart{Id: 2, Key: []byte("k")})
		var ended *storev1.WatchUpdate
		for _, u := range updatesOf(t, stream, 3) {
			if u.GetEnded() != nil {
				ended = u
			}
		}
		horizon := c.store.View().Stats().Horizon
		if ended.GetId() != 1 || ended.GetEnded().GetCode() != "out_of_range" || ended.GetHorizon() != horizon || horizon < 10 {
			t.Errorf("the watch of revision 1 ends with %v, the horizon is %d", ended, horizon)
		}
		if _, err := raw.Put(t.Context(), putReq("k", "last")); err != nil {
			t.Fatal(err)
		}
		if u := updatesOf(t, stream, 1)[0]; u.GetId() != 2 || len(u.GetEvents()) != 1 {
			t.Errorf("the other watch: %v", u)
		}
	})
}

// TestStoreWatchFragments: the changes of one revision that no message can hold come in
// parts, and only the last moves the point to resume from.
func TestStoreWatchFragments(t *testing.T) {
	c := newCluster(t, 1)
	raw := c.raw("peer-1")
	value := []byte(strings.Repeat("v", 1<<20))
	var before int64
	for i := range 9 {
		resp, err := raw.Put(t.Context(), &storev1.PutRequest{Key: fmt.Append(nil, "big", i), Value: value})
		if err != nil {
			t.Fatal(err)
		}
		before = resp.GetHeader().GetRevision()
	}
	stream := openWatch(t, raw, &storev1.WatchStart{Id: 1, RangeEnd: []byte{0}, PrevKv: true, After: before})
	updatesOf(t, stream, 1)
	if _, err := raw.Delete(t.Context(), &storev1.DeleteRequest{RangeEnd: []byte{0}}); err != nil {
		t.Fatal(err)
	}
	events, parts := 0, 0
	for {
		u := updatesOf(t, stream, 1)[0]
		events += len(u.GetEvents())
		parts++
		if !u.GetMore() {
			if u.GetUpTo() != before+1 {
				t.Errorf("the last part is up to %d, want %d", u.GetUpTo(), before+1)
			}
			break
		}
		if u.GetUpTo() != before {
			t.Errorf("a part is up to %d, want %d: it is not whole", u.GetUpTo(), before)
		}
	}
	if events != 9 || parts < 2 {
		t.Errorf("%d events in %d parts", events, parts)
	}
}

// TestStoreWatchRequests: what is wrong with a watch ends that watch; what is wrong with
// the stream ends the stream.
func TestStoreWatchRequests(t *testing.T) {
	c := newCluster(t, 1)
	stream := openWatch(t, c.raw("peer-1"),
		&storev1.WatchStart{Id: 1}, &storev1.WatchStart{Id: 2, Key: []byte("k"), After: -1},
		&storev1.WatchStart{Id: 3, Key: []byte("k"), Bookmark: durationpb.New(time.Millisecond)}, &storev1.WatchStart{Id: 4, Key: []byte("k")})
	for _, u := range updatesOf(t, stream, 4) {
		if wrong := u.GetId() != 4; wrong != (u.GetEnded().GetCode() == "invalid_argument") {
			t.Errorf("update %v", u)
		}
	}
	if err := stream.Send(&storev1.WatchRequest{Start: []*storev1.WatchStart{{Id: 4, Key: []byte("k")}}}); err != nil {
		t.Fatal(err)
	}
	_, err := stream.Receive()
	wantCode(t, err, connect.CodeInvalidArgument, "start.id")
}

// TestEventCache: who watches the same shares the message; who does not, does not.
func TestEventCache(t *testing.T) {
	cache := newEventCache()
	e := raftstore.Event{Key: "raw/k", Type: raftstore.EventPut, Revision: 5, KV: raftstore.KeyValue{Key: "raw/k", Value: []byte("v"), Mod: 5}, Prev: &raftstore.KeyValue{Key: "raw/k", Value: []byte("u")}}
	first := cache.event(e, false, false)
	if cache.event(e, false, false) != first {
		t.Error("the same event is converted twice")
	}
	if got := cache.event(e, true, false); got.GetPrevKv() == nil {
		t.Error("with prev_kv, but without the previous value")
	}
	if got := cache.event(e, false, true); string(got.GetKv().GetKey()) != "raw/k" {
		t.Errorf("with all_keys the key is %q", got.GetKv().GetKey())
	}
	later := e
	later.Revision, later.KV.Mod = 5+eventSlots, 5+eventSlots // falls on the same slot
	if got := cache.event(later, false, false); got.GetKv().GetModRevision() != later.Revision {
		t.Errorf("got the event of revision %d", got.GetKv().GetModRevision())
	}
}
