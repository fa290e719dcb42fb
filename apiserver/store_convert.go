package apiserver

import (
	"errors"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

const (
	// rawEnd is above all keys that begin with raftstore.UserKeyspace.
	rawEnd = "raw0"
	// rangeMaxBytes ends a Range, which then has more: about what one message of
	// keys and values should have.
	rangeMaxBytes = 4 << 20
)

// keysAt is what a request's key and range_end mean in the store's keys. An empty
// end is one key, mvcc.NoEnd no bound.
type keysAt struct{ start, end string }

// keysOf maps a caller's keys into the user keyspace, or with all to the store's own.
func keysOf(key, rangeEnd []byte, all bool) (keysAt, error) {
	if len(key) == 0 && len(rangeEnd) == 0 {
		return keysAt{}, badRequest("key", "is empty: name a key, or give range_end as well")
	}
	prefix, noEnd := raftstore.UserKeyspace, rawEnd
	if all {
		prefix, noEnd = "", mvcc.NoEnd
	}
	if limit := raftstore.MaxKeyBytes - len(prefix); len(key) > limit {
		return keysAt{}, badRequest("key", "has %d bytes, the limit is %d", len(key), limit)
	}
	k := keysAt{start: prefix + string(key)}
	switch {
	case len(rangeEnd) == 0:
	case len(rangeEnd) == 1 && rangeEnd[0] == 0:
		k.end = noEnd
	default:
		k.end = prefix + string(rangeEnd)
	}
	return k, nil
}

// rawKey is a key of the store as the caller of a request that does not say
// all_keys knows it.
func rawKey(key string) []byte { return []byte(strings.TrimPrefix(key, raftstore.UserKeyspace)) }

// storeRange is a RangeRequest in the store's keys.
type storeRange struct {
	keysAt
	req *storev1.RangeRequest
	all bool
}

func rangeOf(req *storev1.RangeRequest, all bool) (storeRange, error) {
	if req.GetLimit() < 0 || req.GetRevision() < 0 {
		return storeRange{}, badRequest("limit", "and revision must not be below 0; they are %d and %d", req.GetLimit(), req.GetRevision())
	}
	keys, err := keysOf(req.GetKey(), req.GetRangeEnd(), all)
	return storeRange{keys, req, all}, err
}

func (r storeRange) key(stored string) []byte {
	if r.all {
		return []byte(stored)
	}
	return rawKey(stored)
}

// rangeAt answers a range out of a view. The header has no signature.
func (s storeService) rangeAt(read reading, r storeRange) (*storev1.RangeResponse, error) {
	view := read.view
	if at := r.req.GetRevision(); at != 0 {
		var err error
		if view, err = s.store.ViewAt(at); err != nil {
			if errors.Is(err, raftstore.ErrFutureRevision) {
				return nil, connect.Errorf(connect.CodeOutOfRange, "range: revision %d is not reached, the store is at %d", at, read.view.Revision()).WithCause(err)
			}
			return nil, storeError("range", err)
		}
	}
	if r.end == "" {
		return r.one(view, read), nil
	}
	resp := &storev1.RangeResponse{Header: &storev1.Header{Revision: read.view.Revision(), Age: ageOf(read)}}
	add := func(kv raftstore.KeyValue) {
		out := keyValue(r.key(kv.Key), kv)
		if r.req.GetKeysOnly() {
			out.Value = nil
		}
		resp.Kvs = append(resp.Kvs, out)
	}
	size, limit := 0, r.req.GetLimit()
	for kv := range view.Range(r.start, r.end) {
		if r.req.GetCountOnly() || limit > 0 && int64(len(resp.Kvs)) == limit || size >= rangeMaxBytes {
			resp.Count = view.Count(r.start, r.end)
			resp.More = !r.req.GetCountOnly()
			return resp, nil
		}
		size += len(kv.Key) + 32
		if !r.req.GetKeysOnly() {
			size += len(kv.Value)
		}
		add(kv)
	}
	resp.Count = int64(len(resp.Kvs))
	return resp, nil
}

// one answers for one key. It is allocated as a whole, and shares the request's key.
func (r storeRange) one(view raftstore.View, read reading) *storev1.RangeResponse {
	made := new(struct {
		resp   storev1.RangeResponse
		header storev1.Header
		age    durationpb.Duration
		kv     storev1.KeyValue
		kvs    [1]*storev1.KeyValue
	})
	resp := &made.resp
	resp.Header, made.header.Revision = &made.header, read.view.Revision()
	if read.age != nil {
		made.age.Seconds, made.age.Nanos = int64(*read.age/time.Second), int32(*read.age%time.Second)
		made.header.Age = &made.age
	}
	kv, ok := view.Get(r.start)
	if !ok {
		return resp
	}
	if resp.Count = 1; r.req.GetCountOnly() {
		return resp
	}
	out := &made.kv
	out.Key, out.CreateRevision, out.ModRevision, out.Version, out.Lease = r.req.GetKey(), kv.Create, kv.Mod, kv.Version, kv.Lease
	if !r.req.GetKeysOnly() {
		out.Value = kv.Value
	}
	made.kvs[0] = out
	resp.Kvs = made.kvs[:]
	return resp
}

func keyValue(key []byte, kv raftstore.KeyValue) *storev1.KeyValue {
	return &storev1.KeyValue{
		Key: key, Value: kv.Value, CreateRevision: kv.Create, ModRevision: kv.Mod, Version: kv.Version, Lease: kv.Lease,
	}
}

func putOp(req *storev1.PutRequest) (raftstore.Op, error) {
	keys, err := keysOf(req.GetKey(), nil, false)
	if err != nil {
		return nil, err
	}
	// One allocation instead of three: puts are what the store is busiest with.
	made := new(struct {
		op   raftv1.Op
		kind raftv1.Op_Put
		put  raftv1.Put
	})
	put := &made.put
	put.Key, put.Value, put.Lease = keys.start, req.GetValue(), req.GetLease()
	put.PrevKv, put.IgnoreValue, put.IgnoreLease = req.GetPrevKv(), req.GetIgnoreValue(), req.GetIgnoreLease()
	made.kind.Put = put
	made.op.Op = &made.kind
	return &made.op, nil
}

func deleteOp(req *storev1.DeleteRequest) (raftstore.Op, error) {
	keys, err := keysOf(req.GetKey(), req.GetRangeEnd(), false)
	if err != nil {
		return nil, err
	}
	return &raftv1.Op{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: keys.start, RangeEnd: keys.end, PrevKv: req.GetPrevKv()}}}, nil
}

func rangeOp(req *storev1.RangeRequest) (raftstore.Op, error) {
	if req.GetAllKeys() {
		return nil, badRequest("all_keys", "is for reading outside of transactions")
	}
	r, err := rangeOf(req, false)
	if err != nil {
		return nil, err
	}
	return &raftv1.Op{Op: &raftv1.Op_Range{Range: &raftv1.Range{
		Key: r.start, RangeEnd: r.end, Limit: req.GetLimit(), Revision: req.GetRevision(),
		KeysOnly: req.GetKeysOnly(), CountOnly: req.GetCountOnly(),
	}}}, nil
}

// txnOf turns an outermost transaction into the store's. The store checks what is
// not a matter of keyspaces: sizes, depth, keys written twice.
func txnOf(req *storev1.TxnRequest) (raftstore.Txn, error) {
	inner, err := txnMessage(req, 0)
	if err != nil {
		return raftstore.Txn{}, err
	}
	return raftstore.Txn{If: inner.GetCompares(), Then: inner.GetThen(), Else: inner.GetOtherwise(), ID: req.GetId()}, nil
}

// maxDepth bounds the recursion here; the store's own limit is lower.
const maxDepth = 16

func txnMessage(req *storev1.TxnRequest, depth int) (*raftv1.Txn, error) {
	if depth > maxDepth {
		return nil, badRequest("txn", "is nested more than %d deep", maxDepth)
	}
	out := &raftv1.Txn{Compares: make([]*raftv1.Compare, 0, len(req.GetCompares()))}
	for _, c := range req.GetCompares() {
		compare, err := compareOf(c)
		if err != nil {
			return nil, err
		}
		out.Compares = append(out.Compares, compare)
	}
	var err error
	if out.Then, err = opsOf(req.GetSuccess(), depth); err != nil {
		return nil, err
	}
	out.Otherwise, err = opsOf(req.GetFailure(), depth)
	return out, err
}

func opsOf(in []*storev1.Op, depth int) ([]*raftv1.Op, error) {
	out := make([]*raftv1.Op, 0, len(in))
	for _, op := range in {
		var converted raftstore.Op
		var err error
		switch op := op.GetOp().(type) {
		case *storev1.Op_Range:
			converted, err = rangeOp(op.Range)
		case *storev1.Op_Put:
			converted, err = putOp(op.Put)
		case *storev1.Op_Delete:
			converted, err = deleteOp(op.Delete)
		case *storev1.Op_Txn:
			if len(op.Txn.GetId()) > 0 {
				return nil, badRequest("id", "is for the outermost transaction only")
			}
			var inner *raftv1.Txn
			inner, err = txnMessage(op.Txn, depth+1)
			converted = &raftv1.Op{Op: &raftv1.Op_Txn{Txn: inner}}
		default:
			return nil, badRequest("op", "is empty, or of a kind that this peer does not know")
		}
		if err != nil {
			return nil, err
		}
		out = append(out, converted)
	}
	return out, nil
}

func compareOf(c *storev1.Compare) (*raftv1.Compare, error) {
	keys, err := keysOf(c.GetKey(), c.GetRangeEnd(), false)
	if err != nil {
		return nil, err
	}
	out := &raftv1.Compare{Key: keys.start, RangeEnd: keys.end}
	switch c.GetResult() {
	case storev1.Compare_RESULT_EQUAL:
		out.Result = raftv1.CompareResult_COMPARE_RESULT_EQUAL
	case storev1.Compare_RESULT_NOT_EQUAL:
		out.Result = raftv1.CompareResult_COMPARE_RESULT_NOT_EQUAL
	case storev1.Compare_RESULT_LESS:
		out.Result = raftv1.CompareResult_COMPARE_RESULT_LESS
	case storev1.Compare_RESULT_GREATER:
		out.Result = raftv1.CompareResult_COMPARE_RESULT_GREATER
	default:
		return nil, badRequest("compare.result", "is missing: equal, not equal, less or greater")
	}
	switch target := c.GetTarget().(type) {
	case *storev1.Compare_Version:
		out.Target, out.Number = raftv1.CompareTarget_COMPARE_TARGET_VERSION, target.Version
	case *storev1.Compare_CreateRevision:
		out.Target, out.Number = raftv1.CompareTarget_COMPARE_TARGET_CREATE_REVISION, target.CreateRevision
	case *storev1.Compare_ModRevision:
		out.Target, out.Number = raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION, target.ModRevision
	case *storev1.Compare_Value:
		out.Target, out.Value = raftv1.CompareTarget_COMPARE_TARGET_VALUE, target.Value
	case *storev1.Compare_Lease:
		out.Target, out.Number = raftv1.CompareTarget_COMPARE_TARGET_LEASE, target.Lease
	default:
		return nil, badRequest("compare.target", "is missing: say what of the key is compared")
	}
	return out, nil
}

// Results of transactions. Their headers have no signature.

func putResponse(result raftstore.Result, req *storev1.PutRequest) *storev1.PutResponse {
	return putReply(0, result, req).GetPut()
}

// putReply is putResponse in a Reply. It is allocated as a whole.
func putReply(id uint64, result raftstore.Result, req *storev1.PutRequest) *storev1.Reply {
	made := new(struct {
		reply  storev1.Reply
		kind   storev1.Reply_Put
		put    storev1.PutResponse
		header storev1.Header
	})
	made.header.Revision = result.Revision
	made.put.Header = &made.header
	if req.GetPrevKv() && len(result.Ops) == 1 {
		made.put.PrevKv = prevOf(result.Ops[0])
	}
	made.kind.Put = &made.put
	made.reply.Id, made.reply.Reply = id, &made.kind
	return &made.reply
}

func prevOf(r *raftv1.OpResult) *storev1.KeyValue {
	if len(r.GetKvs()) == 0 {
		return nil
	}
	return storedKeyValue(r.GetKvs()[0])
}

func deleteResponse(result raftstore.Result) *storev1.DeleteResponse {
	resp := &storev1.DeleteResponse{}
	if len(result.Ops) == 1 {
		resp = deleteResult(result.Ops[0])
	}
	resp.Header = &storev1.Header{Revision: result.Revision}
	return resp
}

func deleteResult(r *raftv1.OpResult) *storev1.DeleteResponse {
	return &storev1.DeleteResponse{Deleted: r.GetCount(), PrevKvs: storedKeyValues(r.GetKvs())}
}

func txnResponse(result raftstore.Result, req *storev1.TxnRequest) *storev1.TxnResponse {
	resp := branchResult(result.Succeeded, result.Ops, req)
	resp.Header, resp.Replayed = &storev1.Header{Revision: result.Revision}, result.Replayed
	return resp
}

// branchResult is the result of a transaction, by the operations asked for.
func branchResult(succeeded bool, results []*raftv1.OpResult, req *storev1.TxnRequest) *storev1.TxnResponse {
	resp := &storev1.TxnResponse{Succeeded: succeeded}
	ops := req.GetSuccess()
	if !succeeded {
		ops = req.GetFailure()
	}
	if len(results) != len(ops) {
		return resp // replayed
	}
	for i, r := range results {
		out := &storev1.OpResult{}
		switch op := ops[i].GetOp().(type) {
		case *storev1.Op_Range:
			kvs := storedKeyValues(r.GetKvs())
			out.Result = &storev1.OpResult_Range{Range: &storev1.RangeResponse{
				Kvs: kvs, Count: r.GetCount(), More: !op.Range.GetCountOnly() && int64(len(kvs)) < r.GetCount(),
			}}
		case *storev1.Op_Put:
			put := &storev1.PutResponse{}
			if op.Put.GetPrevKv() {
				put.PrevKv = prevOf(r)
			}
			out.Result = &storev1.OpResult_Put{Put: put}
		case *storev1.Op_Delete:
			out.Result = &storev1.OpResult_Delete{Delete: deleteResult(r)}
		case *storev1.Op_Txn:
			out.Result = &storev1.OpResult_Txn{Txn: branchResult(r.GetSucceeded(), r.GetResults(), op.Txn)}
		}
		resp.Results = append(resp.Results, out)
	}
	return resp
}

func storedKeyValues(in []*raftv1.KeyValue) []*storev1.KeyValue {
	out := make([]*storev1.KeyValue, 0, len(in))
	for _, kv := range in {
		out = append(out, storedKeyValue(kv))
	}
	return out
}

func storedKeyValue(kv *raftv1.KeyValue) *storev1.KeyValue {
	return &storev1.KeyValue{
		Key: rawKey(kv.GetKey()), Value: kv.GetValue(),
		CreateRevision: kv.GetCreateRevision(), ModRevision: kv.GetModRevision(), Version: kv.GetVersion(), Lease: kv.GetLease(),
	}
}
