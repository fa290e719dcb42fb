package etcd

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// watchStream is a stream whose other side is the test.
type watchStream struct {
	ctx       context.Context
	requests  chan *pb.WatchRequest
	responses chan *pb.WatchResponse
}

func (s *watchStream) SendHeaders() error { return nil }

func (s *watchStream) Send(msg any) error {
	select {
	case s.responses <- msg.(*pb.WatchResponse):
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *watchStream) Receive(msg any) error {
	select {
	case req, ok := <-s.requests:
		if !ok {
			return io.EOF
		}
		proto.Merge(msg.(proto.Message), req)
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *watchStream) create(req *pb.WatchCreateRequest) {
	s.requests <- &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}
}

func (s *watchStream) progress() {
	s.requests <- &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
}

// want takes the next response and compares it, as text.
func (s *watchStream) want(t *testing.T, want string) *pb.WatchResponse {
	t.Helper()
	synctest.Wait()
	select {
	case resp := <-s.responses:
		if got := textOf(resp); got != want {
			t.Fatalf("response %q, want %q", got, want)
		}
		return resp
	default:
		t.Fatalf("no response, want %q", want)
		return nil
	}
}

func (s *watchStream) wantNone(t *testing.T) {
	t.Helper()
	synctest.Wait()
	select {
	case resp := <-s.responses:
		t.Fatalf("response %q, want none", textOf(resp))
	default:
	}
}

func textOf(resp *pb.WatchResponse) string {
	words := []string{fmt.Sprint(resp.WatchId)}
	if resp.Created {
		words = append(words, "created")
	}
	if resp.Canceled {
		words = append(words, fmt.Sprintf("canceled %q at %d", resp.CancelReason, resp.CompactRevision))
	}
	if resp.Fragment {
		words = append(words, "fragment")
	}
	for _, e := range resp.Events {
		text := fmt.Sprintf("%s %s@%d", e.Type, e.Kv.Key, e.Kv.ModRevision)
		if e.PrevKv != nil {
			text += fmt.Sprintf(" was @%d", e.PrevKv.ModRevision)
		}
		words = append(words, text)
	}
	if len(words) == 1 {
		words = append(words, fmt.Sprintf("progress %d", resp.Header.Revision))
	}
	return strings.Join(words, " ")
}

// watchTest runs test in virtual time, with a stream and the revision at its begin.
func watchTest(t *testing.T, test func(t *testing.T, s *Server, stream *watchStream, at int64)) {
	synctest.Test(t, func(t *testing.T) {
		cluster := storetest.NewCluster(t, 1)
		s := newServer(t, cluster.WaitLeader().Store, "p1")
		ctx, cancel := context.WithCancel(t.Context())
		stream := &watchStream{ctx, make(chan *pb.WatchRequest), make(chan *pb.WatchResponse, 100)}
		done := make(chan error, 1)
		go func() { done <- s.watch(ctx, connect.Spec{}, stream) }()
		put(t, s, "begin")
		test(t, s, stream, s.store.View().Revision())
		cancel()
		<-done
	})
}

func put(t *testing.T, s *Server, key string) {
	t.Helper()
	if _, err := s.Put(t.Context(), &pb.PutRequest{Key: []byte(key), Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
}

func TestWatchEvents(t *testing.T) {
	watchTest(t, func(t *testing.T, s *Server, stream *watchStream, at int64) {
		put(t, s, "a")
		stream.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: at + 1, PrevKv: true})
		stream.want(t, "0 created")
		stream.want(t, fmt.Sprintf("0 PUT a@%d", at+1))
		stream.create(&pb.WatchCreateRequest{WatchId: 7, RangeEnd: []byte{0}, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
		stream.want(t, "7 created")
		stream.create(&pb.WatchCreateRequest{WatchId: 7, Key: []byte("a")})
		stream.want(t, `-1 created canceled "mvcc: duplicate watch ID provided on the WatchStream" at 0`)
		// What is outside of the user keyspace is nobody's business.
		if _, err := s.store.Txn(t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Put("pods/default/a", nil)}}); err != nil {
			t.Fatal(err)
		}
		put(t, s, "a")
		stream.want(t, fmt.Sprintf("0 PUT a@%d was @%d", at+3, at+1))
		stream.requests <- &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 0}}}
		stream.want(t, `0 canceled "" at 0`)
		if _, err := s.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("a")}); err != nil {
			t.Fatal(err)
		}
		stream.want(t, fmt.Sprintf("7 DELETE a@%d", at+4))
		stream.wantNone(t)
	})
}

func TestWatchProgress(t *testing.T) {
	watchTest(t, func(t *testing.T, s *Server, stream *watchStream, at int64) {
		stream.progress() // of no watch: etcd does not answer either
		stream.wantNone(t)
		stream.create(&pb.WatchCreateRequest{Key: []byte("a"), ProgressNotify: true})
		stream.want(t, "0 created")
		stream.create(&pb.WatchCreateRequest{Key: []byte("b")})
		stream.want(t, "1 created")
		put(t, s, "other")
		stream.progress()
		stream.want(t, fmt.Sprintf("-1 progress %d", at+1))
		time.Sleep(progressPeriod + time.Second) // virtual
		stream.want(t, fmt.Sprintf("0 progress %d", at+1))
		stream.wantNone(t)
		// A watch that starts in the future is told nothing before that.
		stream.create(&pb.WatchCreateRequest{Key: []byte("c"), StartRevision: at + 4, ProgressNotify: true})
		stream.want(t, "2 created")
		put(t, s, "c")
		stream.progress()
		stream.wantNone(t)
		put(t, s, "c")
		put(t, s, "c")
		stream.want(t, fmt.Sprintf("2 PUT c@%d", at+4))
	})
}

func TestWatchCompacted(t *testing.T) {
	watchTest(t, func(t *testing.T, s *Server, stream *watchStream, at int64) {
		put(t, s, "a")
		put(t, s, "a")
		if _, err := s.Compact(t.Context(), &pb.CompactionRequest{Revision: at + 2}); err != nil {
			t.Fatal(err)
		}
		stream.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: at + 1})
		stream.want(t, "0 created")
		stream.want(t, fmt.Sprintf(`0 canceled "" at %d`, at+2))
		stream.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: at + 2})
		stream.want(t, "1 created")
		stream.want(t, fmt.Sprintf("1 PUT a@%d", at+2))
		stream.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: -1})
		stream.want(t, `-1 created canceled "etcdserver: mvcc: required revision has been compacted" at 0`)
	})
}

// TestWatchFragments: the events of one revision come in one response, cut up only
// if the client can put them together.
func TestWatchFragments(t *testing.T) {
	watchTest(t, func(t *testing.T, s *Server, stream *watchStream, at int64) {
		txn := &pb.TxnRequest{}
		for _, key := range []string{"a", "b", "c"} {
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
				RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(strings.Repeat("x", 500<<10))},
			}})
		}
		for range 2 {
			if _, err := s.Txn(t.Context(), txn); err != nil {
				t.Fatal(err)
			}
		}
		r1, r2 := at+1, at+2
		whole := fmt.Sprintf("PUT a@%d was @%d PUT b@%d was @%d PUT c@%d was @%d", r2, r1, r2, r1, r2, r1)
		stream.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z"), StartRevision: r2, PrevKv: true})
		stream.want(t, "0 created")
		stream.want(t, "0 "+whole)
		stream.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z"), StartRevision: r2, PrevKv: true, Fragment: true})
		stream.want(t, "1 created")
		stream.want(t, fmt.Sprintf("1 fragment PUT a@%d was @%d", r2, r1))
		stream.want(t, fmt.Sprintf("1 fragment PUT b@%d was @%d", r2, r1))
		stream.want(t, fmt.Sprintf("1 PUT c@%d was @%d", r2, r1))
	})
}
