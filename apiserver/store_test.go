package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/pki"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
)

func (c *cluster) raw(peer string) storev1connect.StoreServiceClient {
	return storev1connect.NewStoreServiceClient(c.client(peer, alice))
}

// overTLS returns a client of c's peer-1 over loopback and TLS, as programs have it.
func overTLS(t testing.TB, c *cluster) storev1connect.StoreServiceClient {
	t.Helper()
	url, as := tlsServer(t, c)
	return storev1connect.NewStoreServiceClient(connect.NewClient(connecthttp.NewTransport(as(c.ca, pki.RoleAdmin, "alice"), url)))
}

func putReq(key, value string) *storev1.PutRequest {
	return &storev1.PutRequest{Key: []byte(key), Value: []byte(value)}
}

func keysIn(kvs []*storev1.KeyValue) string {
	var out []string
	for _, kv := range kvs {
		out = append(out, fmt.Sprintf("%s=%s", kv.GetKey(), kv.GetValue()))
	}
	return strings.Join(out, " ")
}

// TestStoreKeyspace: what the service writes is not among the objects, and no
// request reaches these but one that says all_keys, which only reads.
func TestStoreKeyspace(t *testing.T) {
	c := newCluster(t, 1)
	c.put(boundPod("web", ""))
	raw := overTLS(t, c)
	for _, key := range []string{"b", "a", "c/1", "pods/default/web"} {
		if _, err := raw.Put(t.Context(), putReq(key, "v-"+key)); err != nil {
			t.Fatal(err)
		}
	}
	if pod, ok := c.pod("web"); !ok || pod.Name != "web" {
		t.Fatal("the put of pods/default/web has reached the pod")
	}
	all, err := raw.Range(t.Context(), &storev1.RangeRequest{RangeEnd: []byte{0}})
	if err != nil {
		t.Fatal(err)
	}
	if got := keysIn(all.GetKvs()); got != "a=v-a b=v-b c/1=v-c/1 pods/default/web=v-pods/default/web" || all.GetCount() != 4 {
		t.Errorf("all keys are %s (%d)", got, all.GetCount())
	}
	if h := all.GetHeader(); h.GetServedBy() != "peer-1" || h.GetTerm() == 0 || h.GetRevision() != c.store.View().Revision() || h.GetAge() == nil {
		t.Errorf("header %v", h)
	}
	deleted, err := raw.Delete(t.Context(), &storev1.DeleteRequest{RangeEnd: []byte{0}})
	if err != nil || deleted.GetDeleted() != 4 {
		t.Fatalf("deleted %d, %v", deleted.GetDeleted(), err)
	}
	if _, ok := c.pod("web"); !ok {
		t.Fatal("a delete of everything has reached the pod")
	}
	whole, err := raw.Range(t.Context(), &storev1.RangeRequest{Key: []byte("pods/"), RangeEnd: []byte("pods0"), AllKeys: true, KeysOnly: true})
	if err != nil || keysIn(whole.GetKvs()) != "pods/default/web=" {
		t.Errorf("with all_keys: %s, %v", keysIn(whole.GetKvs()), err)
	}
	_, err = raw.Txn(t.Context(), &storev1.TxnRequest{Success: []*storev1.Op{{Op: &storev1.Op_Range{Range: &storev1.RangeRequest{Key: []byte("x"), AllKeys: true}}}}})
	wantCode(t, err, connect.CodeInvalidArgument, "all_keys")
	_, err = raw.Put(t.Context(), putReq("", "v"))
	wantCode(t, err, connect.CodeInvalidArgument, "key: is empty")
	_, err = raw.Put(t.Context(), putReq(strings.Repeat("k", 1021), "v"))
	wantCode(t, err, connect.CodeInvalidArgument, "the limit is 1020")
}

// counting counts the bytes of answers as they come over the wire.
type counting struct {
	http.RoundTripper
	bytes *atomic.Int64
}

func (c counting) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = countingBody{resp.Body, c.bytes}
	}
	return resp, err
}

type countingBody struct {
	io.ReadCloser
	bytes *atomic.Int64
}

func (b countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(int64(n))
	return n, err
}

// TestStoreIsNotCompressed: that would cost more CPU than everything else.
func TestStoreIsNotCompressed(t *testing.T) {
	c := newCluster(t, 1)
	url, as := tlsServer(t, c)
	client := as(c.ca, pki.RoleAdmin, "alice")
	var received atomic.Int64
	client.Transport = counting{client.Transport, &received}
	raw := storev1connect.NewStoreServiceClient(connect.NewClient(connecthttp.NewTransport(client, url)))
	const size = 100_000
	if _, err := raw.Put(t.Context(), putReq("k", strings.Repeat("v", size))); err != nil {
		t.Fatal(err)
	}
	get := &storev1.RangeRequest{Key: []byte("k")}
	if _, err := raw.Range(t.Context(), get); err != nil || received.Load() < size {
		t.Errorf("a value of %d bytes came in %d, %v", size, received.Load(), err)
	}
	received.Store(0)
	stream, err := raw.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if err := stream.Send(&storev1.SessionRequest{Calls: []*storev1.Call{{Id: 1, Call: &storev1.Call_Range{Range: get}}}}); err != nil {
		t.Fatal(err)
	}
	if collect(t, stream, 1); received.Load() < size {
		t.Errorf("in a session a value of %d bytes came in %d", size, received.Load())
	}
}

func TestStoreRange(t *testing.T) {
	c := newCluster(t, 1)
	raw := c.raw("peer-1")
	var revisions []int64
	for i := range 5 {
		resp, err := raw.Put(t.Context(), putReq(fmt.Sprint("k", i), fmt.Sprint("v", i)))
		if err != nil {
			t.Fatal(err)
		}
		revisions = append(revisions, resp.GetHeader().GetRevision())
	}
	whole := func(change func(*storev1.RangeRequest)) *storev1.RangeRequest {
		req := &storev1.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
		change(req)
		return req
	}
	for _, test := range []struct {
		name  string
		req   *storev1.RangeRequest
		want  string
		count int64
		more  bool
	}{
		{"one key", &storev1.RangeRequest{Key: []byte("k3")}, "k3=v3", 1, false},
		{"no such key", &storev1.RangeRequest{Key: []byte("x")}, "", 0, false},
		{"range without its end", &storev1.RangeRequest{Key: []byte("k1"), RangeEnd: []byte("k3")}, "k1=v1 k2=v2", 2, false},
		{"from a key on", &storev1.RangeRequest{Key: []byte("k3"), RangeEnd: []byte{0}}, "k3=v3 k4=v4", 2, false},
		{"limit", whole(func(r *storev1.RangeRequest) { r.Limit = 2 }), "k0=v0 k1=v1", 5, true},
		{"limit that is not reached", whole(func(r *storev1.RangeRequest) { r.Limit = 5 }), "k0=v0 k1=v1 k2=v2 k3=v3 k4=v4", 5, false},
		{"keys only", whole(func(r *storev1.RangeRequest) { r.KeysOnly, r.Limit = true, 1 }), "k0=", 5, true},
		{"count only", whole(func(r *storev1.RangeRequest) { r.CountOnly = true }), "", 5, false},
		{"older revision", whole(func(r *storev1.RangeRequest) { r.Revision = revisions[1] }), "k0=v0 k1=v1", 2, false},
		{"local", whole(func(r *storev1.RangeRequest) {
			r.Limit, r.Read = 1, &storev1.ReadOptions{Consistency: storev1.Consistency_CONSISTENCY_LOCAL}
		}), "k0=v0", 5, true},
		{"bounded", whole(func(r *storev1.RangeRequest) {
			r.Limit, r.Read = 1, &storev1.ReadOptions{Consistency: storev1.Consistency_CONSISTENCY_BOUNDED, MaxAge: durationpb.New(time.Minute)}
		}), "k0=v0", 5, true},
	} {
		resp, err := raw.Range(t.Context(), test.req)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := keysIn(resp.GetKvs()); got != test.want || resp.GetCount() != test.count || resp.GetMore() != test.more {
			t.Errorf("%s: %q, count %d, more %t; want %q, %d, %t", test.name, got, resp.GetCount(), resp.GetMore(), test.want, test.count, test.more)
		}
	}
	_, err := raw.Range(t.Context(), whole(func(r *storev1.RangeRequest) { r.Revision = 1000 }))
	wantCode(t, err, connect.CodeOutOfRange, "revision 1000 is not reached")
	_, err = raw.Range(t.Context(), whole(func(r *storev1.RangeRequest) {
		r.Read = &storev1.ReadOptions{Consistency: storev1.Consistency_CONSISTENCY_BOUNDED}
	}))
	wantCode(t, err, connect.CodeInvalidArgument, "max_age")
}

// TestStoreRangeIsBounded: no range is built as a whole, by calls, in sessions or in
// transactions; going on behind the last key at the same revision finds each key once.
func TestStoreRangeIsBounded(t *testing.T) {
	c := newCluster(t, 1)
	raw := c.raw("peer-1")
	const n = 11
	for i := range n {
		if _, err := raw.Put(t.Context(), putReq(fmt.Sprintf("k%02d", i), strings.Repeat("v", 1<<20))); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := raw.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	id := uint64(0)
	call := func(call *storev1.Call) *storev1.Reply {
		id++
		call.Id = id
		if err := stream.Send(&storev1.SessionRequest{Calls: []*storev1.Call{call}}); err != nil {
			t.Fatal(err)
		}
		replies, _ := collect(t, stream, 1)
		return replies[id]
	}
	for name, get := range map[string]func(*storev1.RangeRequest) (*storev1.RangeResponse, error){
		"call": func(req *storev1.RangeRequest) (*storev1.RangeResponse, error) { return raw.Range(t.Context(), req) },
		"session": func(req *storev1.RangeRequest) (*storev1.RangeResponse, error) {
			return call(&storev1.Call{Call: &storev1.Call_Range{Range: req}}).GetRange(), nil
		},
		"transaction": func(req *storev1.RangeRequest) (*storev1.RangeResponse, error) {
			txn := &storev1.TxnRequest{Success: []*storev1.Op{{Op: &storev1.Op_Range{Range: req}}}}
			resp := call(&storev1.Call{Call: &storev1.Call_Txn{Txn: txn}}).GetTxn()
			out := resp.GetResults()[0].GetRange()
			out.Header = resp.GetHeader()
			return out, nil
		},
	} {
		req, seen, pages := &storev1.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}, 0, 0
		for more := true; more; pages++ {
			resp, err := get(req)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if size := proto.Size(resp); size > rangeMaxBytes+(1<<20)+4096 {
				t.Fatalf("%s: an answer of %d bytes", name, size)
			}
			for _, kv := range resp.GetKvs() {
				if want := fmt.Sprintf("k%02d", seen); string(kv.GetKey()) != want {
					t.Fatalf("%s: page %d has %s, want %s", name, pages, kv.GetKey(), want)
				}
				seen++
			}
			if left := int64(n - seen + len(resp.GetKvs())); resp.GetCount() != left {
				t.Errorf("%s: page %d counts %d, want %d", name, pages, resp.GetCount(), left)
			}
			more = resp.GetMore()
			req = &storev1.RangeRequest{Key: fmt.Appendf(nil, "k%02d\x00", seen-1), RangeEnd: []byte("l"), Revision: resp.GetHeader().GetRevision()}
		}
		if seen != n || pages != 3 {
			t.Errorf("%s: %d keys in %d pages, want %d in 3", name, seen, pages, n)
		}
	}
}

// TestStoreTxn: a failed compare is an answer, and each result is of its operation.
func TestStoreTxn(t *testing.T) {
	c := newCluster(t, 1)
	raw := overTLS(t, c)
	first, err := raw.Put(t.Context(), putReq("k", "old"))
	if err != nil {
		t.Fatal(err)
	}
	swap := &storev1.TxnRequest{
		Compares: []*storev1.Compare{{Key: []byte("k"), Result: storev1.Compare_RESULT_EQUAL, Target: &storev1.Compare_ModRevision{ModRevision: first.GetHeader().GetRevision()}}},
		Success: []*storev1.Op{
			{Op: &storev1.Op_Put{Put: putReq("k", "new")}},
			{Op: &storev1.Op_Range{Range: &storev1.RangeRequest{RangeEnd: []byte{0}}}},
		},
	}
	resp, err := raw.Txn(t.Context(), swap)
	if err != nil {
		t.Fatal(err)
	}
	if !resp.GetSucceeded() || len(resp.GetResults()) != 2 || keysIn(resp.GetResults()[1].GetRange().GetKvs()) != "k=new" {
		t.Errorf("first swap: %v", resp)
	}
	again, err := raw.Txn(t.Context(), swap)
	if err != nil || again.GetSucceeded() || len(again.GetResults()) != 0 {
		t.Fatalf("second swap: %v, %v", again, err)
	}
	if again.GetHeader().GetRevision() != resp.GetHeader().GetRevision() {
		t.Errorf("a transaction that did nothing is at revision %d, want %d", again.GetHeader().GetRevision(), resp.GetHeader().GetRevision())
	}
	_, err = raw.Txn(t.Context(), &storev1.TxnRequest{Success: []*storev1.Op{{}}})
	wantCode(t, err, connect.CodeInvalidArgument, "op: is empty")
	_, err = raw.Txn(t.Context(), &storev1.TxnRequest{Compares: []*storev1.Compare{{Key: []byte("k"), Result: storev1.Compare_RESULT_LESS}}})
	wantCode(t, err, connect.CodeInvalidArgument, "compare.target")
}

// TestStoreTxnContract: nesting, ids, previous values and what is impossible reach
// the state machine and come back, by calls and by sessions alike.
func TestStoreTxnContract(t *testing.T) {
	c := newCluster(t, 1)
	raw := c.raw("peer-1")
	stream, err := raw.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	inner := &storev1.TxnRequest{
		Compares: []*storev1.Compare{{Key: []byte("k"), Result: storev1.Compare_RESULT_EQUAL, Target: &storev1.Compare_Version{}}},
		Success:  []*storev1.Op{{Op: &storev1.Op_Put{Put: &storev1.PutRequest{Key: []byte("k"), Value: []byte("v")}}}, {Op: &storev1.Op_Range{Range: &storev1.RangeRequest{Key: []byte("k")}}}},
	}
	req := &storev1.TxnRequest{Id: []byte("once"), Success: []*storev1.Op{{Op: &storev1.Op_Txn{Txn: inner}}}}
	first, err := raw.Txn(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	nested := first.GetResults()[0].GetTxn()
	if !first.GetSucceeded() || first.GetReplayed() || !nested.GetSucceeded() || keysIn(nested.GetResults()[1].GetRange().GetKvs()) != "k=v" {
		t.Errorf("the first: %v", first)
	}
	if err := stream.Send(&storev1.SessionRequest{Calls: []*storev1.Call{
		{Id: 1, Call: &storev1.Call_Txn{Txn: req}},
		{Id: 2, Call: &storev1.Call_Put{Put: &storev1.PutRequest{Key: []byte("k"), Value: []byte("w"), PrevKv: true}}},
		{Id: 3, Call: &storev1.Call_Put{Put: &storev1.PutRequest{Key: []byte("k"), Lease: 77}}},
		{Id: 4, Call: &storev1.Call_Put{Put: &storev1.PutRequest{Key: []byte("none"), IgnoreValue: true}}},
		{Id: 5, Call: &storev1.Call_Put{Put: &storev1.PutRequest{Key: []byte("\xff\x00"), Value: []byte("any bytes")}}},
		{Id: 6, Call: &storev1.Call_Delete{Delete: &storev1.DeleteRequest{Key: []byte("k"), RangeEnd: []byte{0}, PrevKv: true}}},
	}}); err != nil {
		t.Fatal(err)
	}
	replies, _ := collect(t, stream, 6)
	if again := replies[1].GetTxn(); !again.GetReplayed() || again.GetHeader().GetRevision() != first.GetHeader().GetRevision() {
		t.Errorf("the second with its id: %v", replies[1])
	}
	if prev := replies[2].GetPut().GetPrevKv(); string(prev.GetKey()) != "k" || string(prev.GetValue()) != "v" {
		t.Errorf("the put's previous value: %v", replies[2])
	}
	for id, text := range map[uint64]string{3: "lease not found", 4: "key not found"} {
		if f := replies[id].GetFailure(); f.GetCode() != "not_found" || !strings.Contains(f.GetMessage(), text) {
			t.Errorf("call %d: %v, want %s", id, replies[id], text)
		}
	}
	if d := replies[6].GetDelete(); d.GetDeleted() != 2 || keysIn(d.GetPrevKvs()) != "k=w \xff\x00=any bytes" {
		t.Errorf("the delete: %v", replies[6])
	}
}

// collect reads replies until it has n.
func collect(t *testing.T, stream storev1connect.StoreServiceSessionClientStream, n int) (replies map[uint64]*storev1.Reply, messages int) {
	t.Helper()
	replies = make(map[uint64]*storev1.Reply)
	for len(replies) < n {
		msg, err := stream.Receive()
		if err != nil {
			t.Fatalf("after %d of %d replies: %v", len(replies), n, err)
		}
		if len(msg.GetReplies()) > 0 {
			messages++
		}
		if msg.GetHeader().GetServedBy() != "peer-1" {
			t.Errorf("header %v", msg.GetHeader())
		}
		for _, reply := range msg.GetReplies() {
			if replies[reply.GetId()] != nil {
				t.Errorf("call %d is answered twice", reply.GetId())
			}
			replies[reply.GetId()] = reply
		}
	}
	return replies, messages
}

// TestStoreSession runs every kind of call in one message, over loopback and TLS,
// and ends politely: what was asked is answered before the stream ends.
func TestStoreSession(t *testing.T) {
	c := newCluster(t, 1)
	stream, err := overTLS(t, c).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	key := []byte("k")
	msg := &storev1.SessionRequest{Calls: []*storev1.Call{
		{Id: 1, Call: &storev1.Call_Put{Put: putReq("k", "1")}},
		{Id: 2, Call: &storev1.Call_Txn{Txn: &storev1.TxnRequest{Success: []*storev1.Op{{Op: &storev1.Op_Range{Range: &storev1.RangeRequest{Key: key}}}}}}},
		{Id: 3, Call: &storev1.Call_Put{Put: putReq("", "no key")}},
		{Id: 4, Call: &storev1.Call_Range{Range: &storev1.RangeRequest{Key: key, Read: &storev1.ReadOptions{Consistency: storev1.Consistency_CONSISTENCY_LOCAL}}}},
		{Id: 5},
		{Id: 6, Call: &storev1.Call_Range{Range: &storev1.RangeRequest{Key: key, Read: &storev1.ReadOptions{MinRevision: 3}}}},
		{Id: 7, Call: &storev1.Call_Txn{Txn: &storev1.TxnRequest{Compares: []*storev1.Compare{{Key: key, Result: storev1.Compare_RESULT_EQUAL, Target: &storev1.Compare_Version{Version: 9}}}}}},
	}}
	if err := stream.Send(msg); err != nil {
		t.Fatal(err)
	}
	replies, _ := collect(t, stream, 6)
	if r := replies[2].GetTxn(); !r.GetSucceeded() || keysIn(r.GetResults()[0].GetRange().GetKvs()) != "k=1" {
		t.Errorf("the transaction after the put answers %v", replies[2])
	}
	if f := replies[3].GetFailure(); f.GetCode() != "invalid_argument" || !strings.Contains(f.GetMessage(), "key") || f.GetOutcomeUnknown() {
		t.Errorf("a put without a key answers %v", replies[3])
	}
	if f := replies[5].GetFailure(); f.GetCode() != "unimplemented" {
		t.Errorf("a call of no kind answers %v", replies[5])
	}
	if r := replies[7].GetTxn(); r == nil || r.GetSucceeded() {
		t.Errorf("a failed compare answers %v", replies[7])
	}
	if replies[1].GetPut() == nil || replies[4].GetRange() == nil || replies[6] != nil {
		t.Errorf("replies %v", replies)
	}
	// Call 6 waits for revision 3; this one makes it.
	if err := stream.Send(&storev1.SessionRequest{Calls: []*storev1.Call{
		{Id: 8, Call: &storev1.Call_Put{Put: putReq("k", "2")}}, {Id: 9, Call: &storev1.Call_Delete{Delete: &storev1.DeleteRequest{Key: key}}},
	}}); err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	replies, _ = collect(t, stream, 3)
	if replies[6].GetRange().GetHeader().GetRevision() < 3 || replies[9].GetDelete().GetDeleted() != 1 {
		t.Errorf("replies %v", replies)
	}
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last reply: %v, want the end", err)
	}
}

// TestStoreSessionCoalesces: answers that are ready together travel together, and
// linearizable reads are confirmed together.
func TestStoreSessionCoalesces(t *testing.T) {
	c := newCluster(t, 1)
	stream, err := c.raw("peer-1").Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	const n = 2000
	msg := &storev1.SessionRequest{}
	for i := range n {
		call := &storev1.Call{Id: uint64(i), Call: &storev1.Call_Put{Put: putReq(fmt.Sprint("k", i), "v")}}
		if i%2 == 1 {
			call.Call = &storev1.Call_Range{Range: &storev1.RangeRequest{Key: []byte("k0")}}
		}
		msg.Calls = append(msg.Calls, call)
	}
	if err := stream.Send(msg); err != nil {
		t.Fatal(err)
	}
	replies, messages := collect(t, stream, n)
	for id, reply := range replies {
		if reply.GetFailure() != nil {
			t.Fatalf("call %d: %v", id, reply)
		}
	}
	if messages > n/4 {
		t.Errorf("%d replies came in %d messages", n, messages)
	}
}

// TestStoreSessionBackpressure: a client that sends and never reads is stopped; the
// peer's memory for it has a bound.
func TestStoreSessionBackpressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		ctx, cancel := context.WithCancel(t.Context())
		stream := &stuckStream{ctx: ctx}
		done := make(chan error, 1)
		go func() {
			done <- c.servers["peer-1"].rpc.Call(withIdentity(ctx, alice), storev1connect.StoreServiceSessionProcedure, nil, stream)
		}()
		synctest.Wait()
		if taken := stream.taken.Load(); taken < sessionCalls || taken > sessionCalls+2 {
			t.Errorf("%d calls were taken without an answer being fetched, the bound is %d", taken, sessionCalls)
		}
		cancel()
		if err := <-done; err == nil {
			t.Error("the session ended without an error")
		}
	})
}

// stuckStream is a client that sends puts without end and reads nothing after the
// first message.
type stuckStream struct {
	ctx   context.Context
	taken atomic.Int64
	sent  int
}

func (s *stuckStream) Receive(msg any) error {
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	id := s.taken.Add(1)
	proto.Merge(msg.(proto.Message), &storev1.SessionRequest{Calls: []*storev1.Call{{Id: uint64(id), Call: &storev1.Call_Put{Put: putReq("k", "v")}}}})
	return nil
}

func (s *stuckStream) SendHeaders() error { return nil }

func (s *stuckStream) Send(any) error {
	if s.sent++; s.sent == 1 {
		return nil
	}
	<-s.ctx.Done()
	return s.ctx.Err()
}

// TestStoreStatus: it shows the sizes of the state.
func TestStoreStatus(t *testing.T) {
	c := newCluster(t, 1)
	raw := c.raw("peer-1")
	if _, err := raw.Put(t.Context(), putReq("k", "v")); err != nil {
		t.Fatal(err)
	}
	status, err := raw.Status(t.Context(), &storev1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if status.GetLeader() != "peer-1" || status.GetKeys() != c.store.View().Stats().Keys || status.GetAppliedIndex() == 0 || len(status.GetHash()) != 16 || status.GetHistoryEvents() == 0 {
		t.Errorf("status %v", status)
	}
}
