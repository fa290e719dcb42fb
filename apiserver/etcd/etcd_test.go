package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

func newServer(t *testing.T, store *raftstore.Store, id string) *Server {
	t.Helper()
	s, err := New(Config{
		Store: store, PeerID: id, ClusterID: "test",
		Members: func() []Member { return []Member{{ID: id, ClientURLs: []string{"https://here"}}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dial returns grpc-go's connection to a server over TLS, and who else may want one.
func dial(t *testing.T, s *Server) (as func(role pki.Role) *grpc.ClientConn) {
	t.Helper()
	ca, err := pki.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(role pki.Role) *pki.Credentials {
		creds, err := ca.Issue(pki.Identity{Cluster: "test", Role: role, Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		return creds
	}
	ts := httptest.NewUnstartedServer(s.Handler())
	ts.EnableHTTP2 = true
	ts.Config.ConnContext = s.ConnContext
	ts.Config.ErrorLog = log.New(io.Discard, "", 0)
	ts.TLS = issue(pki.RolePeer).ServerTLS("h2")
	ts.StartTLS()
	t.Cleanup(ts.Close)
	return func(role pki.Role) *grpc.ClientConn {
		config := &tls.Config{InsecureSkipVerify: true} // the server is the test's own
		if role != "" {
			config = issue(role).ClientTLS(pki.RolePeer, "h2")
		}
		conn, err := grpc.NewClient(ts.Listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

// TestWhoMayCall: administrators only, and each procedure of etcd's API has an answer.
func TestWhoMayCall(t *testing.T) {
	as := dial(t, newServer(t, storetest.New(t), "peer-1"))
	for role, want := range map[pki.Role]codes.Code{
		pki.RoleAdmin: codes.OK, pki.RolePeer: codes.PermissionDenied, pki.RoleNode: codes.PermissionDenied, "": codes.Unauthenticated,
	} {
		_, err := pb.NewKVClient(as(role)).Range(t.Context(), &pb.RangeRequest{Key: []byte("k")})
		if got := status.Code(err); got != want {
			t.Errorf("%q: %v, want %v", role, err, want)
		}
		_, err = pb.NewAuthClient(as(role)).UserList(t.Context(), &pb.AuthUserListRequest{})
		if role == pki.RoleAdmin {
			want = codes.Unimplemented
		}
		if got := status.Code(err); got != want {
			t.Errorf("%q, what is not served: %v, want %v", role, err, want)
		}
	}
}

// TestKeyspace: no request reaches what is outside of the user keyspace.
func TestKeyspace(t *testing.T) {
	store := storetest.New(t)
	s := newServer(t, store, "peer-1")
	for _, key := range []string{"pods/default/web", "raw.", "raw/a", "raw/\x00", "raw/\xff\xff", "raw0"} {
		if _, err := store.Txn(t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Put(key, []byte("v"))}}); err != nil {
			t.Fatal(err)
		}
	}
	all := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	resp, err := s.Range(t.Context(), all)
	if err != nil || resp.Count != 3 || string(resp.Kvs[0].Key) != "\x00" || string(resp.Kvs[1].Key) != "a" || string(resp.Kvs[2].Key) != "\xff\xff" {
		t.Errorf("all keys: %v, %v", resp, err)
	}
	// Nor by what is nested in a transaction, or by previous values.
	txn, err := s.Txn(t.Context(), &pb.TxnRequest{
		Compare: []*pb.Compare{{Result: pb.Compare_GREATER, Target: pb.Compare_VERSION, Key: []byte{0}, RangeEnd: []byte{0}, TargetUnion: &pb.Compare_Version{Version: 0}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestRange{RequestRange: all}},
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, PrevKv: true}}},
		}}}}},
	})
	if err != nil || !txn.Succeeded {
		t.Fatalf("nested: %v, %v", txn, err)
	}
	nested := txn.Responses[0].GetResponseTxn().GetResponses()
	for _, kv := range append(nested[0].GetResponseRange().GetKvs(), nested[1].GetResponseDeleteRange().GetPrevKvs()...) {
		if strings.Contains(string(kv.Key), "pods/") || string(kv.Key) == "raw." {
			t.Errorf("a nested operation has reached %q", kv.Key)
		}
	}
	if len(nested[0].GetResponseRange().GetKvs()) != 3 || len(nested[1].GetResponseDeleteRange().GetPrevKvs()) != 3 {
		t.Errorf("nested: %v", nested)
	}
	if kv, ok := store.View().Get("pods/default/web"); !ok || string(kv.Value) != "v" {
		t.Error("a nested operation has changed an object")
	}
	for _, key := range []string{"raw/a", "raw/\x00", "raw/\xff\xff"} {
		if _, err := store.Txn(t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Put(key, []byte("v"))}}); err != nil {
			t.Fatal(err)
		}
	}
	deleted, err := s.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil || deleted.Deleted != 3 {
		t.Errorf("deleted %v, %v", deleted, err)
	}
	for _, key := range []string{"pods/default/web", "raw.", "raw0"} {
		if _, ok := store.View().Get(key); !ok {
			t.Errorf("a delete of everything has reached %q", key)
		}
	}
}

// TestErrorsAreEtcds holds the table of errors: each of the store's has etcd's code
// and text, and a write whose outcome is unknown never looks as if it could be sent
// again.
func TestErrorsAreEtcds(t *testing.T) {
	for _, test := range []struct{ err, want error }{
		{fmt.Errorf("x: %w", raftstore.ErrOutcomeUnknown), rpctypes.ErrGRPCTimeoutDueToLeaderFail},
		{errors.Join(raftstore.ErrOutcomeUnknown, context.DeadlineExceeded), rpctypes.ErrGRPCTimeoutDueToLeaderFail},
		{raftstore.ErrNoLeader, rpctypes.ErrGRPCNoLeader},
		{&raftstore.CompactedError{Horizon: 3}, rpctypes.ErrGRPCCompacted},
		{raftstore.ErrFutureRevision, rpctypes.ErrGRPCFutureRev},
		{raftstore.ErrTooLarge, rpctypes.ErrGRPCRequestTooLarge},
		{raftstore.ErrInvalid, rpctypes.ErrGRPCDuplicateKey},
		{raftstore.ErrOverloaded, rpctypes.ErrGRPCRequestTooManyRequests},
		{raftstore.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
		{raftstore.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
		{raftstore.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
		{raftstore.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
		{raftstore.ErrQuarantined, rpctypes.ErrGRPCCorrupt},
		{raftstore.ErrClosed, rpctypes.ErrGRPCStopped},
	} {
		got, _ := errors.AsType[*connect.Error](rpcError(test.err))
		want := status.Convert(test.want)
		if got == nil || uint32(got.Code()) != uint32(want.Code()) || got.Message() != want.Message() {
			t.Errorf("%v: %v, want %v", test.err, got, want)
		}
	}
}

// TestSerializableAhead: a peer that lags does not say that a revision is in the
// future which another one has told its client.
func TestSerializableAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := storetest.NewCluster(t, 3)
		leader := cluster.WaitLeader()
		follower := newServer(t, cluster.Others(leader)[0].Store, "follower")
		for i := range 20 {
			put, err := newServer(t, leader.Store, "leader").Put(t.Context(), &pb.PutRequest{Key: []byte("k"), Value: []byte{byte(i)}})
			if err != nil {
				t.Fatal(err)
			}
			read := &pb.RangeRequest{Key: []byte("k"), Revision: put.Header.Revision, Serializable: true}
			resp, err := follower.Range(t.Context(), read)
			if err != nil || resp.Kvs[0].Value[0] != byte(i) {
				t.Fatalf("%v, %v", resp, err)
			}
		}
	})
}

// TestReadTxnsAgree: what a transaction that only reads is answered from a view is
// what the state machine would say, for random compares, ranges and nesting.
func TestReadTxnsAgree(t *testing.T) {
	store := storetest.New(t)
	s := newServer(t, store, "peer-1")
	random := rand.New(rand.NewPCG(7, 7))
	key := func() []byte { return []byte{byte('a' + random.IntN(6))} }
	for range 40 {
		if _, err := s.Put(t.Context(), &pb.PutRequest{Key: key(), Value: key()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("c")}); err != nil {
		t.Fatal(err)
	}
	first, newest := store.View().Revision()-10, store.View().Revision()
	number := func() int64 { return []int64{0, 1, 3, first + random.Int64N(11)}[random.IntN(4)] }
	end := func() []byte { return [][]byte{nil, {0}, key(), {'z'}}[random.IntN(4)] }
	var txn func(depth int) *pb.TxnRequest
	ops := func(depth int) (out []*pb.RequestOp) {
		for range random.IntN(3) {
			if depth < 2 && random.IntN(4) == 0 {
				out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn(depth + 1)}})
				continue
			}
			r := &pb.RangeRequest{
				Key: key(), RangeEnd: end(), Limit: random.Int64N(4), KeysOnly: random.IntN(4) == 0, CountOnly: random.IntN(6) == 0,
				SortTarget: pb.RangeRequest_SortTarget(random.IntN(5)), SortOrder: pb.RangeRequest_SortOrder(random.IntN(3)),
			}
			if random.IntN(3) == 0 {
				r.Revision = first + random.Int64N(10)
			}
			if random.IntN(3) == 0 {
				r.MinModRevision, r.MaxCreateRevision = number(), number()
			}
			out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}})
		}
		return out
	}
	txn = func(depth int) *pb.TxnRequest {
		r := &pb.TxnRequest{Success: ops(depth), Failure: ops(depth)}
		for range random.IntN(2) {
			c := &pb.Compare{Key: key(), RangeEnd: end(), Target: pb.Compare_CompareTarget(random.IntN(5)), Result: pb.Compare_CompareResult(random.IntN(4))}
			switch c.Target {
			case pb.Compare_VERSION:
				c.TargetUnion = &pb.Compare_Version{Version: number()}
			case pb.Compare_CREATE:
				c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: number()}
			case pb.Compare_MOD:
				c.TargetUnion = &pb.Compare_ModRevision{ModRevision: number()}
			case pb.Compare_VALUE:
				c.TargetUnion = &pb.Compare_Value{Value: key()}
			case pb.Compare_LEASE:
				c.TargetUnion = &pb.Compare_Lease{Lease: number()}
			}
			r.Compare = append(r.Compare, c)
		}
		return r
	}
	succeeded := 0
	for i := range 400 {
		r := txn(0)
		if err := checkTxn(r, maxTxnOps, 0); err != nil {
			t.Fatal(err)
		}
		inView, err := s.txnIn(store.View(), r)
		if err != nil {
			t.Fatal(err)
		}
		inner := txnOf(r)
		result, err := s.commit(t.Context(), raftstore.Txn{If: inner.GetCompares(), Then: inner.GetThen(), Else: inner.GetOtherwise()})
		if err != nil {
			t.Fatal(err)
		}
		inLog := txnResponse(result.Succeeded, result.Ops, r, result.Revision)
		if !proto.Equal(inView, inLog) {
			t.Fatalf("transaction %d at revision %d, %v\nfrom a view:   %v\nfrom the log: %v", i, newest, r, inView, inLog)
		}
		if inView.Succeeded {
			succeeded++
		}
	}
	if succeeded < 50 || succeeded > 390 {
		t.Errorf("%d of 400 succeeded: the test looks at one side only", succeeded)
	}
}

// TestRangeStream: the pieces are together what Range says.
func TestRangeStream(t *testing.T) {
	s := newServer(t, storetest.New(t), "peer-1")
	for i := range 5 {
		if _, err := s.Put(t.Context(), &pb.PutRequest{Key: fmt.Append(nil, "k", i), Value: []byte(strings.Repeat("x", 700<<10))}); err != nil {
			t.Fatal(err)
		}
	}
	kv := pb.NewKVClient(dial(t, s)(pki.RoleAdmin))
	for _, limit := range []int64{0, 4} {
		r := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: limit}
		want, err := s.Range(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		stream, err := kv.RangeStream(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		got, pieces := &pb.RangeResponse{}, 0
		for {
			piece, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			proto.Merge(got, piece.RangeResponse)
			pieces++
		}
		if !proto.Equal(got, want) || pieces < 2 {
			t.Errorf("limit %d: %d pieces, count %d, more %t, %d keys", limit, pieces, got.Count, got.More, len(got.Kvs))
		}
	}
}
