package etcd

import (
	"bytes"
	"cmp"

	"connectrpc.com/connect/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// What makes a request invalid, by etcd's rules and in its order. That no key is
// written twice in a transaction, the store sees to, by the same rule.

func checkKey(key []byte) error {
	switch {
	case len(key) == 0:
		return etcdError(rpctypes.ErrGRPCEmptyKey)
	case len(key) > maxKeyBytes:
		return connect.Errorf(connect.CodeInvalidArgument, "holdfast: a key of %d bytes, the limit is %d", len(key), maxKeyBytes)
	}
	return nil
}

// checkBounds is checkKey for a range, whose end must fit as well.
func checkBounds(key, rangeEnd []byte) error {
	if len(rangeEnd) > maxKeyBytes {
		return checkKey(rangeEnd)
	}
	return checkKey(key)
}

func checkRange(r *pb.RangeRequest) error {
	_, order := pb.RangeRequest_SortOrder_name[int32(r.GetSortOrder())]
	_, target := pb.RangeRequest_SortTarget_name[int32(r.GetSortTarget())]
	switch {
	case len(r.GetKey()) == 0:
		return etcdError(rpctypes.ErrGRPCEmptyKey)
	case !order || !target:
		return etcdError(rpctypes.ErrGRPCInvalidSortOption)
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case checkKey(r.GetKey()) != nil:
		return checkKey(r.GetKey())
	case r.GetIgnoreValue() && len(r.GetValue()) > 0:
		return etcdError(rpctypes.ErrGRPCValueProvided)
	case r.GetIgnoreLease() && r.GetLease() != 0:
		return etcdError(rpctypes.ErrGRPCLeaseProvided)
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error { return checkBounds(r.GetKey(), r.GetRangeEnd()) }

// checkTxn looks at a transaction that may have so many compares, or operations of a
// branch. Those within it share what it has left.
func checkTxn(r *pb.TxnRequest, room, depth int) error {
	if depth > raftstore.MaxTxnDepth {
		return connect.Errorf(connect.CodeInvalidArgument, "holdfast: a transaction is nested more than %d deep", raftstore.MaxTxnDepth)
	}
	room -= max(len(r.GetCompare()), len(r.GetSuccess()), len(r.GetFailure()))
	if room < 0 {
		return etcdError(rpctypes.ErrGRPCTooManyOps)
	}
	for _, c := range r.GetCompare() {
		_, result := pb.Compare_CompareResult_name[int32(c.GetResult())]
		_, target := pb.Compare_CompareTarget_name[int32(c.GetTarget())]
		if !result || !target {
			return connect.NewError(connect.CodeInvalidArgument, "holdfast: a compare of a kind that this peer does not know")
		}
		if err := checkBounds(c.GetKey(), c.GetRangeEnd()); err != nil {
			return err
		}
	}
	for _, ops := range [...][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range ops {
			var err error
			switch op := op.GetRequest().(type) {
			case *pb.RequestOp_RequestRange:
				err = cmp.Or(checkRange(op.RequestRange), checkBounds(op.RequestRange.GetKey(), op.RequestRange.GetRangeEnd()))
			case *pb.RequestOp_RequestPut:
				err = checkPut(op.RequestPut)
			case *pb.RequestOp_RequestDeleteRange:
				err = checkDelete(op.RequestDeleteRange)
			case *pb.RequestOp_RequestTxn:
				err = checkTxn(op.RequestTxn, room, depth+1)
			default:
				err = etcdError(rpctypes.ErrGRPCKeyNotFound) // what etcd says
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// checkSize refuses what is too large for an entry of the log.
func checkSize(r proto.Message) error {
	if proto.Size(r) > maxRequestBytes {
		return etcdError(rpctypes.ErrGRPCRequestTooLarge)
	}
	return nil
}

// Requests in the store's words.

func putOp(r *pb.PutRequest) raftstore.Op {
	key, _ := keysOf(r.GetKey(), nil)
	return raftstore.PutWith(key, r.GetValue(), raftstore.PutOptions{
		Lease: r.GetLease(), PrevKV: r.GetPrevKv(), IgnoreValue: r.GetIgnoreValue(), IgnoreLease: r.GetIgnoreLease(),
	})
}

func deleteOp(r *pb.DeleteRangeRequest) raftstore.Op {
	start, end := keysOf(r.GetKey(), r.GetRangeEnd())
	return raftstore.DeleteRange(start, end, r.GetPrevKv())
}

func rangeOp(r *pb.RangeRequest) raftstore.Op {
	start, end := keysOf(r.GetKey(), r.GetRangeEnd())
	options := raftstore.RangeOptions{Revision: max(0, r.GetRevision()), CountOnly: r.GetCountOnly()}
	if inOrder(r) { // else shape needs all of it
		options.Limit, options.KeysOnly = max(0, r.GetLimit()), r.GetKeysOnly()
	}
	return raftstore.GetRange(start, end, options)
}

func txnOf(r *pb.TxnRequest) *raftv1.Txn {
	out := &raftv1.Txn{Then: opsOf(r.GetSuccess()), Otherwise: opsOf(r.GetFailure())}
	for _, c := range r.GetCompare() {
		out.Compares = append(out.Compares, compareOf(c))
	}
	return out
}

func opsOf(in []*pb.RequestOp) []raftstore.Op {
	out := make([]raftstore.Op, 0, len(in))
	for _, op := range in {
		switch op := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			out = append(out, rangeOp(op.RequestRange))
		case *pb.RequestOp_RequestPut:
			out = append(out, putOp(op.RequestPut))
		case *pb.RequestOp_RequestDeleteRange:
			out = append(out, deleteOp(op.RequestDeleteRange))
		case *pb.RequestOp_RequestTxn:
			out = append(out, &raftv1.Op{Op: &raftv1.Op_Txn{Txn: txnOf(op.RequestTxn)}})
		}
	}
	return out
}

var compareResults = map[pb.Compare_CompareResult]raftv1.CompareResult{
	pb.Compare_EQUAL:     raftv1.CompareResult_COMPARE_RESULT_EQUAL,
	pb.Compare_NOT_EQUAL: raftv1.CompareResult_COMPARE_RESULT_NOT_EQUAL,
	pb.Compare_LESS:      raftv1.CompareResult_COMPARE_RESULT_LESS,
	pb.Compare_GREATER:   raftv1.CompareResult_COMPARE_RESULT_GREATER,
}

func compareOf(c *pb.Compare) raftstore.Compare {
	start, end := keysOf(c.GetKey(), c.GetRangeEnd())
	out := &raftv1.Compare{Key: start, RangeEnd: end, Result: compareResults[c.GetResult()]}
	switch c.GetTarget() {
	case pb.Compare_VERSION:
		out.Target, out.Number = raftv1.CompareTarget_COMPARE_TARGET_VERSION, c.GetVersion()
	case pb.Compare_CREATE:
		out.Target, out.Number = raftv1.CompareTarget_COMPARE_TARGET_CREATE_REVISION, c.GetCreateRevision()
	case pb.Compare_MOD:
		out.Target, out.Number = raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION, c.GetModRevision()
	case pb.Compare_LEASE:
		out.Target, out.Number = raftv1.CompareTarget_COMPARE_TARGET_LEASE, c.GetLease()
	default:
		out.Target, out.Value = raftv1.CompareTarget_COMPARE_TARGET_VALUE, c.GetValue()
	}
	return out
}

// Results in etcd's words. Headers within a transaction have its revision alone.

func putResponse(result *raftv1.OpResult, r *pb.PutRequest) *pb.PutResponse {
	resp := &pb.PutResponse{}
	if kvs := result.GetKvs(); r.GetPrevKv() && len(kvs) > 0 {
		resp.PrevKv = storedKeyValue(kvs[0])
	}
	return resp
}

func deleteResponse(result *raftv1.OpResult) *pb.DeleteRangeResponse {
	return &pb.DeleteRangeResponse{Deleted: result.GetCount(), PrevKvs: storedKeyValues(result.GetKvs())}
}

func rangeResponse(result *raftv1.OpResult, r *pb.RangeRequest) *pb.RangeResponse {
	resp := shape(storedKeyValues(result.GetKvs()), result.GetCount(), r)
	if inOrder(r) && !r.GetCountOnly() {
		resp.More = int64(len(resp.Kvs)) < resp.Count
	}
	return resp
}

func txnResponse(succeeded bool, results []*raftv1.OpResult, r *pb.TxnRequest, revision int64) *pb.TxnResponse {
	resp := &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: revision}, Succeeded: succeeded}
	for i, result := range results {
		header, out := &pb.ResponseHeader{Revision: revision}, &pb.ResponseOp{}
		switch op := branch(r, succeeded)[i].GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			inner := rangeResponse(result, op.RequestRange)
			inner.Header = header
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: inner}
		case *pb.RequestOp_RequestPut:
			inner := putResponse(result, op.RequestPut)
			inner.Header = header
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: inner}
		case *pb.RequestOp_RequestDeleteRange:
			inner := deleteResponse(result)
			inner.Header = header
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: inner}
		case *pb.RequestOp_RequestTxn:
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: txnResponse(result.GetSucceeded(), result.GetResults(), op.RequestTxn, revision)}
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp
}

func branch(r *pb.TxnRequest, succeeded bool) []*pb.RequestOp {
	if succeeded {
		return r.GetSuccess()
	}
	return r.GetFailure()
}

func storedKeyValues(in []*raftv1.KeyValue) []*mvccpb.KeyValue {
	out := make([]*mvccpb.KeyValue, 0, len(in))
	for _, kv := range in {
		out = append(out, storedKeyValue(kv))
	}
	return out
}

func storedKeyValue(kv *raftv1.KeyValue) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{
		Key: wireKey(kv.GetKey()), Value: kv.GetValue(),
		CreateRevision: kv.GetCreateRevision(), ModRevision: kv.GetModRevision(), Version: kv.GetVersion(), Lease: kv.GetLease(),
	}
}

// Transactions that only read.

// readsOnly reports whether a transaction writes nothing, whichever way it goes; and
// whether it is then content with what a peer has that has reached a revision.
func readsOnly(r *pb.TxnRequest, reached int64) (reads, local bool) {
	local = len(r.GetSuccess())+len(r.GetFailure()) > 0
	for _, ops := range [...][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range ops {
			switch op := op.GetRequest().(type) {
			case *pb.RequestOp_RequestRange:
				local = local && localSuffices(op.RequestRange, reached)
			case *pb.RequestOp_RequestTxn:
				innerReads, innerLocal := readsOnly(op.RequestTxn, reached)
				if !innerReads {
					return false, false
				}
				local = local && innerLocal
			default:
				return false, false
			}
		}
	}
	return true, local
}

// txnIn runs a transaction that only reads on a view.
func (s *Server) txnIn(view raftstore.View, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	resp := &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: view.Revision()}, Succeeded: true}
	for _, c := range r.GetCompare() {
		if !holds(view, c) {
			resp.Succeeded = false
			break
		}
	}
	for _, op := range branch(r, resp.Succeeded) {
		out := &pb.ResponseOp{}
		switch op := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			at, err := s.viewAt(view, op.RequestRange.GetRevision())
			if err != nil {
				return nil, err
			}
			inner := rangeIn(at, op.RequestRange)
			inner.Header = &pb.ResponseHeader{Revision: view.Revision()}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: inner}
		case *pb.RequestOp_RequestTxn:
			inner, err := s.txnIn(view, op.RequestTxn)
			if err != nil {
				return nil, err
			}
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: inner}
		}
		resp.Responses = append(resp.Responses, out)
	}
	return resp, nil
}

// holds is what package mvcc does for a compare, on a view.
func holds(view raftstore.View, c *pb.Compare) bool {
	start, end := keysOf(c.GetKey(), c.GetRangeEnd())
	if end == "" {
		kv, ok := view.Get(start)
		return holdsFor(c, kv, ok)
	}
	found := false
	for kv := range view.Range(start, end) {
		if found = true; !holdsFor(c, kv, true) {
			return false
		}
	}
	return found || holdsFor(c, raftstore.KeyValue{}, false)
}

// holdsFor looks at one key. One that does not exist has no value to compare, and
// 0 for all else.
func holdsFor(c *pb.Compare, kv raftstore.KeyValue, exists bool) bool {
	var order int
	switch c.GetTarget() {
	case pb.Compare_VERSION:
		order = cmp.Compare(kv.Version, c.GetVersion())
	case pb.Compare_CREATE:
		order = cmp.Compare(kv.Create, c.GetCreateRevision())
	case pb.Compare_MOD:
		order = cmp.Compare(kv.Mod, c.GetModRevision())
	case pb.Compare_LEASE:
		order = cmp.Compare(kv.Lease, c.GetLease())
	default:
		if !exists {
			return false
		}
		order = bytes.Compare(kv.Value, c.GetValue())
	}
	switch c.GetResult() {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_NOT_EQUAL:
		return order != 0
	case pb.Compare_LESS:
		return order < 0
	default:
		return order > 0
	}
}
