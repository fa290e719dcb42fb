package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/pki"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
)

// fakeStore is what all test peers share: it counts how often each write was
// carried out, those with an id once at most.
type fakeStore struct {
	mu      sync.Mutex
	applied map[string]int // by key
	ids     map[string]bool
	// hold is called before each write is carried out, with the number of writes
	// before; false: it is carried out, and no answer of this stream follows.
	hold func(peer string, writes int) (answer bool)
	all  int
}

func newFakeStore() *fakeStore {
	return &fakeStore{applied: make(map[string]int), ids: make(map[string]bool)}
}

func (f *fakeStore) put(peer, key, id string) (answer bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer = f.hold == nil || f.hold(peer, f.all)
	f.all++
	if id != "" && f.ids[id] {
		return answer
	}
	f.ids[id] = true
	f.applied[key]++
	return answer
}

// sessionPeer serves sessions of a fakeStore.
type sessionPeer struct {
	storev1connect.UnimplementedStoreServiceHandler
	p *testPeer
}

func (s sessionPeer) Session(_ context.Context, stream storev1connect.StoreServiceSessionServerStream) error {
	if s.p.store == nil {
		return connect.NewError(connect.CodePermissionDenied, "no sessions here")
	}
	s.p.calls.Add(1)
	if err := stream.Send(&storev1.SessionResponse{}); err != nil {
		return err
	}
	silent := false
	for {
		msg, err := stream.Receive()
		if err != nil {
			return err
		}
		out := &storev1.SessionResponse{}
		for _, call := range msg.GetCalls() {
			reply := &storev1.Reply{Id: call.GetId()}
			switch c := call.GetCall().(type) {
			case *storev1.Call_Put:
				silent = !s.p.store.put(s.p.name, string(c.Put.GetKey()), "") || silent
				reply.Reply = &storev1.Reply_Put{Put: &storev1.PutResponse{Header: &storev1.Header{Revision: int64(call.GetId())}}}
			case *storev1.Call_Txn:
				silent = !s.p.store.put(s.p.name, string(c.Txn.GetSuccess()[0].GetPut().GetKey()), string(c.Txn.GetId())) || silent
				reply.Reply = &storev1.Reply_Txn{Txn: &storev1.TxnResponse{Succeeded: true}}
			case *storev1.Call_Range:
				reply.Reply = &storev1.Reply_Range{Range: &storev1.RangeResponse{Kvs: []*storev1.KeyValue{{Key: c.Range.GetKey()}}}}
			case *storev1.Call_KeepAlive:
				if reply.Reply = (&storev1.Reply_KeepAlive{KeepAlive: &storev1.LeaseKeepAliveResponse{Id: c.KeepAlive.GetId()}}); c.KeepAlive.GetId() != 7 {
					reply.Reply = &storev1.Reply_Failure{Failure: &storev1.Failure{Code: "not_found", Message: "lease not found"}}
				}
			default:
				reply.Reply = &storev1.Reply_Failure{Failure: &storev1.Failure{Code: "not_found", Message: "nothing of that kind"}}
			}
			if !silent {
				out.Replies = append(out.Replies, reply)
			}
		}
		if len(out.GetReplies()) > 0 {
			if err := stream.Send(out); err != nil {
				return err
			}
		}
	}
}

func putOf(key string) *storev1.PutRequest { return &storev1.PutRequest{Key: []byte(key)} }

func txnOf(key, id string) *storev1.TxnRequest {
	return &storev1.TxnRequest{Id: []byte(id), Success: []*storev1.Op{{Op: &storev1.Op_Put{Put: putOf(key)}}}}
}

// sessionTest starts peers over one fakeStore and a session to one of them.
func sessionTest(t *testing.T, peers int, opts SessionOptions) (*Session, *fakeStore, []*testPeer) {
	t.Helper()
	ca, store := testCA(t), newFakeStore()
	all := startPeers(t, ca, peers)
	for _, p := range all {
		p.store = store
	}
	s := newTestClient(t, ca, addresses(all)).Session(opts)
	t.Cleanup(s.Close)
	return s, store, all
}

// TestSession: many callers at once, each gets the answer to its own call.
func TestSession(t *testing.T) {
	s, store, _ := sessionTest(t, 1, SessionOptions{})
	var callers sync.WaitGroup
	for i := range 500 {
		callers.Go(func() {
			key := fmt.Sprint("k", i)
			if _, err := s.Put(t.Context(), putOf(key)); err != nil {
				t.Error(err)
			}
			got, err := s.Range(t.Context(), &storev1.RangeRequest{Key: []byte(key)})
			if err != nil || string(got.GetKvs()[0].GetKey()) != key {
				t.Errorf("range %s: %v, %v", key, got, err)
			}
		})
	}
	callers.Wait()
	if len(store.applied) != 500 {
		t.Errorf("%d keys are written", len(store.applied))
	}
	if kept, err := s.KeepAlive(t.Context(), &storev1.LeaseKeepAliveRequest{Id: 7}); err != nil || kept.GetId() != 7 {
		t.Errorf("kept alive: %v, %v", kept, err)
	}
	_, err := s.KeepAlive(t.Context(), &storev1.LeaseKeepAliveRequest{Id: 1})
	wantCode(t, err, connect.CodeNotFound)
	if errors.Is(err, ErrOutcomeUnknown) {
		t.Error("a plain failure has an unknown outcome")
	}
}

// TestSessionPeersDie kills the peer in use in the middle, more than once: a
// transaction with an id takes place exactly once and its caller learns of it; a
// write without is not sent again, and its caller learns that nobody knows.
func TestSessionPeersDie(t *testing.T) {
	s, store, peers := sessionTest(t, 4, SessionOptions{})
	const each = 300
	died := make(map[string]bool)
	store.hold = func(peer string, writes int) bool {
		if writes >= 100*(len(died)+1) && len(died) < 3 {
			died[peer] = true
			byName(t, peers, peer).Kill()
		}
		return !died[peer]
	}
	var mu sync.Mutex
	var lost []string
	var callers sync.WaitGroup
	for caller := range 10 {
		callers.Go(func() {
			for i := range each / 10 {
				with, without := fmt.Sprintf("id/%d/%d", caller, i), fmt.Sprintf("plain/%d/%d", caller, i)
				if _, err := s.Txn(t.Context(), txnOf(with, with)); err != nil {
					t.Errorf("with an id: %v", err)
				}
				_, err := s.Put(t.Context(), putOf(without))
				if err != nil && (!errors.Is(err, ErrOutcomeUnknown) || connect.CodeOf(err) != connect.CodeUnknown) {
					t.Errorf("without an id: %v", err)
				}
				if err != nil {
					mu.Lock()
					lost = append(lost, without)
					mu.Unlock()
				}
			}
		})
	}
	callers.Wait()
	store.mu.Lock()
	defer store.mu.Unlock()
	if len(died) != 3 || len(lost) == 0 {
		t.Fatalf("%d peers died and %d writes have no known outcome: this shows nothing", len(died), len(lost))
	}
	unknown := make(map[string]bool)
	for _, key := range lost {
		unknown[key] = true
	}
	for caller := range 10 {
		for i := range each / 10 {
			with, without := fmt.Sprintf("id/%d/%d", caller, i), fmt.Sprintf("plain/%d/%d", caller, i)
			if n := store.applied[with]; n != 1 {
				t.Errorf("%s took place %d times", with, n)
			}
			if n := store.applied[without]; n > 1 || n == 0 && !unknown[without] {
				t.Errorf("%s took place %d times", without, n)
			}
		}
	}
}

// TestSessionBounds: calls beyond the bound wait, and leave when their context ends,
// having done nothing; what was sent and not awaited has an unknown outcome and keeps
// its place.
func TestSessionBounds(t *testing.T) {
	s, store, _ := sessionTest(t, 1, SessionOptions{MaxCalls: 1})
	reached := make(chan struct{})
	store.hold = func(string, int) bool { close(reached); return false }
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := s.Put(ctx, putOf("a"))
		first <- err
	}()
	<-reached
	second, giveUp := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := s.Put(second, putOf("b"))
		done <- err
	}()
	cancel()
	if err := <-first; !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	giveUp()
	if err := <-done; !errors.Is(err, context.Canceled) || errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("the second: %v", err)
	}
	s.Close()
	store.mu.Lock()
	defer store.mu.Unlock()
	if store.applied["b"] != 0 {
		t.Error("the second was sent")
	}
	_, err := s.Put(t.Context(), putOf("c"))
	wantCode(t, err, connect.CodeUnavailable)
}

// TestSessionClose: calls without an answer do not wait for ever.
func TestSessionClose(t *testing.T) {
	s, store, _ := sessionTest(t, 1, SessionOptions{})
	reached := make(chan struct{})
	store.hold = func(string, int) bool { close(reached); return false }
	done := make(chan error, 1)
	go func() {
		_, err := s.Put(t.Context(), putOf("a"))
		done <- err
	}()
	<-reached
	s.Close()
	if err := <-done; !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("after close: %v", err)
	}
}

// TestSessionRefused: what will not be better next time is said at once.
func TestSessionRefused(t *testing.T) {
	ca := testCA(t)
	peer := startPeerWith(t, issue(t, ca, pki.RolePeer, "p1"), "p1")
	s := newTestClient(t, ca, []string{peer.addr}).Session(SessionOptions{})
	defer s.Close()
	_, err := s.Put(t.Context(), putOf("a"))
	wantCode(t, err, connect.CodePermissionDenied)
}

// TestSessionDoubt: a transaction with an id that was sent, and for which no other
// peer is found, may have been carried out all the same.
func TestSessionDoubt(t *testing.T) {
	ca, store := testCA(t), newFakeStore()
	peers := startPeers(t, ca, 1)
	peers[0].store = store
	s := newTestClient(t, ca, addresses(peers), func(cfg *Config) { cfg.RetryFor = 200 * time.Millisecond }).Session(SessionOptions{})
	t.Cleanup(s.Close)
	store.hold = func(string, int) bool {
		go peers[0].Kill()
		return false
	}
	_, err := s.Txn(t.Context(), txnOf("k", "id"))
	if !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("error %v, want ErrOutcomeUnknown: it was carried out %d times", err, store.applied["k"])
	}
	// What was never sent has not been carried out.
	if _, err := s.Txn(t.Context(), txnOf("l", "other")); err == nil || errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("error %v, want one that says that nothing happened", err)
	}
}
