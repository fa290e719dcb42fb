package apiserver

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// TestStoreLeases is the life of leases through the service, from a peer that leads and
// ones that do not, by calls and by sessions.
func TestStoreLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		leader := raft.WaitLeader()
		raw := c.raw(raft.Others(leader)[0].ID)
		const ttl = 10 * time.Second
		granted, err := raw.LeaseGrant(t.Context(), &storev1.LeaseGrantRequest{Id: 7, Ttl: durationpb.New(ttl)})
		if err != nil || granted.GetId() != 7 || granted.GetTtl().AsDuration() != ttl || granted.GetHeader().GetTerm() == 0 {
			t.Fatalf("granted %v, %v", granted, err)
		}
		short, err := raw.LeaseGrant(t.Context(), &storev1.LeaseGrantRequest{Ttl: durationpb.New(time.Millisecond)})
		if err != nil || short.GetId() <= 0 || short.GetTtl().AsDuration() != time.Second {
			t.Fatalf("granted %v, %v", short, err)
		}
		if _, err := raw.Put(t.Context(), &storev1.PutRequest{Key: []byte("k"), Value: []byte("v"), Lease: 7}); err != nil {
			t.Fatal(err)
		}
		// What is not the caller's is not shown.
		hidden := raftstore.PutWith("system/x", nil, raftstore.PutOptions{Lease: 7})
		if _, err := leader.Store.Txn(t.Context(), raftstore.Txn{Then: []raftstore.Op{hidden}}); err != nil {
			t.Fatal(err)
		}
		stream, err := raw.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		for range 3 { // four times its TTL, kept alive
			time.Sleep(ttl - time.Second)
			if err := stream.Send(&storev1.SessionRequest{Calls: []*storev1.Call{
				{Id: 1, Call: &storev1.Call_KeepAlive{KeepAlive: &storev1.LeaseKeepAliveRequest{Id: 7}}},
				{Id: 2, Call: &storev1.Call_KeepAlive{KeepAlive: &storev1.LeaseKeepAliveRequest{Id: 8}}},
			}}); err != nil {
				t.Fatal(err)
			}
			replies := make(map[uint64]*storev1.Reply)
			for len(replies) < 2 {
				msg, err := stream.Receive()
				if err != nil {
					t.Fatal(err)
				}
				for _, reply := range msg.GetReplies() {
					replies[reply.GetId()] = reply
				}
			}
			if r := replies[1].GetKeepAlive(); r.GetId() != 7 || r.GetTtl().AsDuration() != ttl || r.GetHeader().GetRevision() == 0 {
				t.Errorf("kept alive: %v", replies[1])
			}
			if f := replies[2].GetFailure(); f.GetCode() != "not_found" {
				t.Errorf("a lease that is not: %v", replies[2])
			}
		}
		left, err := raw.LeaseTimeToLive(t.Context(), &storev1.LeaseTimeToLiveRequest{Id: 7, Keys: true})
		if err != nil || left.GetGranted().AsDuration() != ttl || left.GetRemaining().AsDuration() < ttl-time.Second || len(left.GetKeys()) != 1 || string(left.GetKeys()[0]) != "k" {
			t.Errorf("time to live %v, %v", left, err)
		}
		if kept, err := raw.LeaseKeepAlive(t.Context(), &storev1.LeaseKeepAliveRequest{Id: 7}); err != nil || kept.GetTtl().AsDuration() != ttl || kept.GetHeader().GetServedBy() == leader.ID {
			t.Errorf("kept alive %v, %v", kept, err)
		}
		if all, err := raw.Leases(t.Context(), &storev1.LeasesRequest{}); err != nil || !slices.Equal(all.GetIds(), []int64{7}) {
			t.Errorf("leases %v, %v: want 7, the short one has ended", all, err)
		}
		_, err = raw.LeaseGrant(t.Context(), &storev1.LeaseGrantRequest{Id: 7, Ttl: durationpb.New(ttl)})
		wantCode(t, err, connect.CodeAlreadyExists, "7")
		if _, err := raw.LeaseRevoke(t.Context(), &storev1.LeaseRevokeRequest{Id: 7}); err != nil {
			t.Fatal(err)
		}
		if got, err := raw.Range(t.Context(), &storev1.RangeRequest{Key: []byte("k")}); err != nil || got.GetCount() != 0 {
			t.Errorf("after the end of its lease the key is %v, %v", got, err)
		}
		for _, id := range []int64{7, 0} {
			code, text := connect.CodeNotFound, "lease not found"
			if id == 0 {
				code, text = connect.CodeInvalidArgument, "name a lease"
			}
			_, err = raw.LeaseRevoke(t.Context(), &storev1.LeaseRevokeRequest{Id: id})
			wantCode(t, err, code, text)
			_, err = raw.LeaseKeepAlive(t.Context(), &storev1.LeaseKeepAliveRequest{Id: id})
			wantCode(t, err, code, text)
			_, err = raw.LeaseTimeToLive(t.Context(), &storev1.LeaseTimeToLiveRequest{Id: id})
			wantCode(t, err, code, text)
		}
		_, err = raw.LeaseGrant(t.Context(), &storev1.LeaseGrantRequest{})
		wantCode(t, err, connect.CodeInvalidArgument, "ttl")
	})
}

// TestStoreLeaseKeysAreBounded: an answer has the first of many keys, and says so.
func TestStoreLeaseKeysAreBounded(t *testing.T) {
	c := newCluster(t, 1)
	raw := c.raw("peer-1")
	if _, err := raw.LeaseGrant(t.Context(), &storev1.LeaseGrantRequest{Id: 7, Ttl: durationpb.New(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("k", 1000)
	for i := range 10 {
		txn := &storev1.TxnRequest{}
		for j := range 500 {
			key := []byte(string(rune('a'+i)) + long + string(rune(0x4e00+j)))
			txn.Success = append(txn.Success, &storev1.Op{Op: &storev1.Op_Put{Put: &storev1.PutRequest{Key: key, Lease: 7}}})
		}
		if _, err := raw.Txn(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := raw.LeaseTimeToLive(t.Context(), &storev1.LeaseTimeToLiveRequest{Id: 7, Keys: true})
	if err != nil || !resp.GetMoreKeys() || len(resp.GetKeys()) < 4000 || len(resp.GetKeys()) >= 4500 {
		t.Errorf("%d keys, more %t, %v", len(resp.GetKeys()), resp.GetMoreKeys(), err)
	}
}
