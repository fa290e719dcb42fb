package etcd

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"

	"connectrpc.com/connect/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// rawEnd is above all keys that begin with raftstore.UserKeyspace.
	rawEnd = "raw0"
	// maxKeyBytes is the length of the longest key that the store takes from here.
	maxKeyBytes = raftstore.MaxKeyBytes - len(raftstore.UserKeyspace)
)

// keysOf maps a client's range into the user keyspace. An empty end is one key.
func keysOf(key, rangeEnd []byte) (start, end string) {
	start = raftstore.UserKeyspace + string(key)
	switch {
	case len(rangeEnd) == 0:
	case len(rangeEnd) == 1 && rangeEnd[0] == 0: // everything from key on
		end = rawEnd
	default:
		end = raftstore.UserKeyspace + string(rangeEnd)
	}
	return start, end
}

// Range reads keys.
func (s *Server) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	now, at, err := s.viewsFor(ctx, r)
	if err != nil {
		return nil, err
	}
	resp := rangeIn(at, r)
	resp.Header = s.header(now.Revision())
	return resp, nil
}

// viewsFor returns the newest view that r may see, and the one at its revision.
func (s *Server) viewsFor(ctx context.Context, r *pb.RangeRequest) (now, at raftstore.View, err error) {
	if now, err = s.read(ctx, localSuffices(r, s.store.View().Revision())); err != nil {
		return now, at, err
	}
	at, err = s.viewAt(now, r.GetRevision())
	return now, at, err
}

// localSuffices reports whether r is content with what a peer has that has reached a
// revision. One that was not reached there may well be elsewhere: clients that take
// turns among peers read serializably at a revision that another one told them, as
// clientv3's STM does.
func localSuffices(r *pb.RangeRequest, reached int64) bool {
	return r.GetSerializable() && r.GetRevision() <= reached
}

func (s *Server) read(ctx context.Context, local bool) (raftstore.View, error) {
	var opts raftstore.ReadOptions
	if local {
		opts.Consistency = raftstore.Local
	}
	view, _, err := s.store.Read(ctx, opts)
	return view, err
}

// viewAt returns the view at a revision; 0 is that of now.
func (s *Server) viewAt(now raftstore.View, revision int64) (raftstore.View, error) {
	switch {
	case revision <= 0:
		return now, nil
	case revision > now.Revision():
		return now, raftstore.ErrFutureRevision
	}
	return s.store.ViewAt(revision)
}

// rangeIn answers r out of a view, but for the header.
func rangeIn(view raftstore.View, r *pb.RangeRequest) *pb.RangeResponse {
	start, end := keysOf(r.GetKey(), r.GetRangeEnd())
	if end == "" {
		kv, ok := view.Get(start)
		switch {
		case !ok:
			return &pb.RangeResponse{}
		case r.GetCountOnly():
			return &pb.RangeResponse{Count: 1}
		}
		return shape([]*mvccpb.KeyValue{keyValue(kv)}, 1, r)
	}
	if r.GetCountOnly() {
		return &pb.RangeResponse{Count: view.Count(start, end)}
	}
	var kvs []*mvccpb.KeyValue
	for kv := range view.Range(start, end) {
		if inOrder(r) && r.GetLimit() > 0 && int64(len(kvs)) == r.GetLimit() {
			resp := shape(kvs, view.Count(start, end), r)
			resp.More = true
			return resp
		}
		kvs = append(kvs, keyValue(kv))
	}
	return shape(kvs, int64(len(kvs)), r)
}

// inOrder reports whether r wants keys as they come, so that a limit ends the search.
func inOrder(r *pb.RangeRequest) bool {
	byKey := r.GetSortTarget() == pb.RangeRequest_KEY && r.GetSortOrder() != pb.RangeRequest_DESCEND
	return byKey && r.GetMinModRevision() == 0 && r.GetMaxModRevision() == 0 &&
		r.GetMinCreateRevision() == 0 && r.GetMaxCreateRevision() == 0
}

// shape filters, sorts and cuts what a range has found, in this order, as etcd does.
// count is of all keys, whatever is left of them.
func shape(kvs []*mvccpb.KeyValue, count int64, r *pb.RangeRequest) *pb.RangeResponse {
	resp := &pb.RangeResponse{Count: count}
	kvs = slices.DeleteFunc(kvs, func(kv *mvccpb.KeyValue) bool {
		return outside(kv.GetModRevision(), r.GetMinModRevision(), r.GetMaxModRevision()) ||
			outside(kv.GetCreateRevision(), r.GetMinCreateRevision(), r.GetMaxCreateRevision())
	})
	if order := orderOf(r.GetSortTarget()); !inOrder(r) {
		if r.GetSortOrder() == pb.RangeRequest_DESCEND {
			ascending := order
			order = func(a, b *mvccpb.KeyValue) int { return ascending(b, a) }
		}
		slices.SortStableFunc(kvs, order)
	}
	if limit := r.GetLimit(); limit > 0 && int64(len(kvs)) > limit {
		kvs, resp.More = kvs[:limit], true
	}
	if r.GetKeysOnly() {
		for _, kv := range kvs {
			kv.Value = nil
		}
	}
	resp.Kvs = kvs
	return resp
}

// outside reports whether n is out of bounds, of which 0 is none.
func outside(n, least, most int64) bool { return least != 0 && n < least || most != 0 && n > most }

func orderOf(target pb.RangeRequest_SortTarget) func(a, b *mvccpb.KeyValue) int {
	by := func(number func(*mvccpb.KeyValue) int64) func(a, b *mvccpb.KeyValue) int {
		return func(a, b *mvccpb.KeyValue) int { return cmp.Compare(number(a), number(b)) }
	}
	switch target {
	case pb.RangeRequest_VERSION:
		return by((*mvccpb.KeyValue).GetVersion)
	case pb.RangeRequest_CREATE:
		return by((*mvccpb.KeyValue).GetCreateRevision)
	case pb.RangeRequest_MOD:
		return by((*mvccpb.KeyValue).GetModRevision)
	case pb.RangeRequest_VALUE:
		return func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.GetValue(), b.GetValue()) }
	}
	return func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.GetKey(), b.GetKey()) }
}

func keyValue(kv raftstore.KeyValue) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{
		Key: wireKey(kv.Key), Value: kv.Value,
		CreateRevision: kv.Create, ModRevision: kv.Mod, Version: kv.Version, Lease: kv.Lease,
	}
}

// rangeStream is Range in pieces, of one revision; the last one has header and count.
func (s *Server) rangeStream(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
	r := new(pb.RangeRequest)
	if err := stream.Receive(r); err != nil {
		return err
	}
	if err := checkRange(r); err != nil {
		return err
	}
	if !inOrder(r) {
		return connect.NewError(connect.CodeUnimplemented, "RangeStream does not support custom sort orders and revision filters")
	}
	now, view, err := s.viewsFor(ctx, r)
	if err != nil {
		return err
	}
	start, end := keysOf(r.GetKey(), r.GetRangeEnd())
	piece, size := &pb.RangeResponse{}, 0
	var count int64
	if end != "" && !r.GetCountOnly() {
		for kv := range view.Range(start, end) {
			if r.GetLimit() > 0 && count == r.GetLimit() {
				piece.More = true
				break
			}
			if size >= maxRequestBytes {
				if err := stream.Send(&pb.RangeStreamResponse{RangeResponse: piece}); err != nil {
					return err
				}
				piece, size = &pb.RangeResponse{}, 0
			}
			out := keyValue(kv)
			if r.GetKeysOnly() {
				out.Value = nil
			}
			piece.Kvs = append(piece.Kvs, out)
			size += proto.Size(out)
			count++
		}
		if piece.Count = count; piece.More {
			piece.Count = view.Count(start, end)
		}
	} else {
		piece = rangeIn(view, r)
	}
	piece.Header = s.header(now.Revision())
	return stream.Send(&pb.RangeStreamResponse{RangeResponse: piece})
}

// Put sets a key.
func (s *Server) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := cmp.Or(checkPut(r), checkSize(r)); err != nil {
		return nil, err
	}
	result, err := s.commit(ctx, raftstore.Txn{Then: []raftstore.Op{putOp(r)}})
	if err != nil {
		return nil, err
	}
	resp := putResponse(result.Ops[0], r)
	resp.Header = s.header(result.Revision)
	return resp, nil
}

// DeleteRange removes keys.
func (s *Server) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	result, err := s.commit(ctx, raftstore.Txn{Then: []raftstore.Op{deleteOp(r)}})
	if err != nil {
		return nil, err
	}
	resp := deleteResponse(result.Ops[0])
	resp.Header = s.header(result.Revision)
	return resp, nil
}

// Txn runs a conditional transaction. One that only reads is no entry in the log.
func (s *Server) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := cmp.Or(checkTxn(r, maxTxnOps, 0), checkSize(r)); err != nil {
		return nil, err
	}
	if reads, local := readsOnly(r, s.store.View().Revision()); reads {
		view, err := s.read(ctx, local)
		if err != nil {
			return nil, err
		}
		resp, err := s.txnIn(view, r)
		if err != nil {
			return nil, err
		}
		resp.Header = s.header(view.Revision())
		return resp, nil
	}
	inner := txnOf(r)
	result, err := s.commit(ctx, raftstore.Txn{If: inner.GetCompares(), Then: inner.GetThen(), Else: inner.GetOtherwise()})
	if err != nil {
		return nil, err
	}
	resp := txnResponse(result.Succeeded, result.Ops, r, result.Revision)
	resp.Header = s.header(result.Revision)
	return resp, nil
}

// commit commits for a call. A failed compare is a result, not an error.
func (s *Server) commit(ctx context.Context, txn raftstore.Txn) (raftstore.Result, error) {
	txn.Actor = actor(ctx)
	result, err := s.store.Txn(ctx, txn)
	if conflict, ok := errors.AsType[*raftstore.ConflictError](err); ok {
		return raftstore.Result{Revision: conflict.Revision}, nil
	}
	return result, err
}

// Compact discards the history below a revision. It returns once this peer has done
// so, physical or not.
func (s *Server) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	if r.GetRevision() <= 0 {
		return nil, etcdError(rpctypes.ErrGRPCCompacted)
	}
	if err := s.store.Compact(ctx, r.GetRevision()); err != nil {
		return nil, err
	}
	view, err := s.read(ctx, false) // sees all of the log up to here
	if err != nil {
		return nil, err
	}
	return &pb.CompactionResponse{Header: s.header(view.Revision())}, nil
}
