package etcd

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// FuzzTxn: no transaction makes a peer panic, whatever is in it, and what is checked can
// be proposed.
func FuzzTxn(f *testing.F) {
	data, err := proto.Marshal(&pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("a"), TargetUnion: &pb.Compare_ModRevision{ModRevision: 7}, Target: pb.Compare_MOD}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a"), Value: []byte("b")}}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte{0}}}}}}}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		var req pb.TxnRequest
		if proto.Unmarshal(data, &req) != nil || checkSize(&req) != nil || checkTxn(&req, 128, 0) != nil {
			return
		}
		readsOnly(&req, 1)
		if _, err := proto.Marshal(txnOf(&req)); err != nil {
			t.Error(err)
		}
	})
}
