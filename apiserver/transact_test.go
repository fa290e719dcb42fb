package apiserver

import (
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestWriteOutlastsALongElection: a leader takes a write and is cut off before anybody
// has it. Whether it took place is known only when the leader is back among the others:
// later than the store itself asks, and within the time of the call. The caller has a
// plain answer then, and there is one object.
func TestWriteOutlastsALongElection(t *testing.T) {
	for _, test := range []struct {
		name   string
		away   time.Duration
		wantOK bool
	}{
		{"back in time", 15 * time.Second, true},
		{"away for longer than a call", time.Hour, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, raft := newRaftCluster(t, 3)
				leader := raft.WaitLeader(raft.Peers...)
				ctx := withIdentity(t.Context(), alice)
				object := text(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`)
				// The namespace is there already, and this peer's state is the newest.
				if _, err := c.servers[leader.ID].Objects().Create(ctx, &holdfastv1.CreateRequest{Object: text(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"before"}}`)}); err != nil {
					t.Fatal(err)
				}
				raft.Cut([]*storetest.Peer{leader}, raft.Others(leader))
				back := time.AfterFunc(test.away, raft.Heal)
				defer back.Stop()
				began := time.Now()
				_, err := c.servers[leader.ID].Objects().Create(ctx, &holdfastv1.CreateRequest{Object: object})
				t.Logf("after %v: %v", time.Since(began), err)
				if !test.wantOK {
					wantCode(t, err, connect.CodeUnknown, "read before you retry")
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				list, err := c.servers[raft.Others(leader)[0].ID].Objects().List(ctx, &holdfastv1.ListRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "ConfigMap"}, Namespace: "default"})
				if err != nil || len(list.GetObjects()) != 2 {
					t.Errorf("%d objects, %v; want 2", len(list.GetObjects()), err)
				}
			})
		})
	}
}
