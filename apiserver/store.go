package apiserver

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

// storeService implements storev1connect.StoreServiceHandler: the store itself,
// under a keyspace of its own. See store_convert.go for what its messages mean to
// package raftstore.
type storeService struct {
	*Server
	storev1connect.UnimplementedStoreServiceHandler
}

// Range reads keys.
func (s storeService) Range(ctx context.Context, req *storev1.RangeRequest) (*storev1.RangeResponse, error) {
	r, err := rangeOf(req, req.GetAllKeys())
	if err != nil {
		return nil, err
	}
	opts, err := readOptions(req.GetRead())
	if err != nil {
		return nil, err
	}
	read, err := s.readStore(ctx, opts)
	if err != nil {
		return nil, err
	}
	resp, err := s.rangeAt(read, r)
	if err != nil {
		return nil, err
	}
	s.sign(resp.Header)
	return resp, nil
}

// Put sets one key.
func (s storeService) Put(ctx context.Context, req *storev1.PutRequest) (*storev1.PutResponse, error) {
	op, err := putOp(req)
	if err != nil {
		return nil, err
	}
	result, err := s.txn(ctx, "put", raftstore.Txn{Then: []raftstore.Op{op}})
	if err != nil {
		return nil, err
	}
	resp := putResponse(result, req)
	s.sign(resp.Header)
	return resp, nil
}

// Delete removes one key, or a range.
func (s storeService) Delete(ctx context.Context, req *storev1.DeleteRequest) (*storev1.DeleteResponse, error) {
	op, err := deleteOp(req)
	if err != nil {
		return nil, err
	}
	result, err := s.txn(ctx, "delete", raftstore.Txn{Then: []raftstore.Op{op}})
	if err != nil {
		return nil, err
	}
	resp := deleteResponse(result)
	s.sign(resp.Header)
	return resp, nil
}

// Txn runs a conditional transaction.
func (s storeService) Txn(ctx context.Context, req *storev1.TxnRequest) (*storev1.TxnResponse, error) {
	txn, err := txnOf(req)
	if err != nil {
		return nil, err
	}
	result, err := s.txn(ctx, "transaction", txn)
	if err != nil {
		return nil, err
	}
	resp := txnResponse(result, req)
	s.sign(resp.Header)
	return resp, nil
}

// txn commits for a unary call. A failed compare is a result, not an error.
func (s storeService) txn(ctx context.Context, what string, txn raftstore.Txn) (raftstore.Result, error) {
	txn.Actor = actor(ctx)
	result, err := s.store.Txn(ctx, txn)
	if conflict, ok := errors.AsType[*raftstore.ConflictError](err); ok {
		return raftstore.Result{Revision: conflict.Revision}, nil
	}
	return result, storeError(what, err)
}

// Compact discards the history below a revision.
func (s storeService) Compact(ctx context.Context, req *storev1.CompactRequest) (*storev1.CompactResponse, error) {
	if req.GetRevision() <= 0 {
		return nil, badRequest("revision", "is %d: name the oldest revision to keep", req.GetRevision())
	}
	if err := s.store.Compact(ctx, req.GetRevision()); err != nil {
		if errors.Is(err, raftstore.ErrFutureRevision) {
			return nil, connect.Errorf(connect.CodeOutOfRange, "compact: revision %d is not reached", req.GetRevision()).WithCause(err)
		}
		return nil, storeError("compact", err)
	}
	resp := &storev1.CompactResponse{Header: &storev1.Header{Revision: s.store.View().Revision()}}
	s.sign(resp.Header)
	return resp, nil
}

// Status tells how this peer's store stands.
func (s storeService) Status(context.Context, *storev1.StatusRequest) (*storev1.StatusResponse, error) {
	status, stats := s.store.Status(), s.store.View().Stats()
	resp := &storev1.StatusResponse{
		Header: &storev1.Header{Revision: status.Revision}, Leader: status.Leader,
		LastIndex: status.LastIndex, CommitIndex: status.CommitIndex, AppliedIndex: status.AppliedIndex,
		Hash: status.Hash[:], Horizon: stats.Horizon,
		Keys: stats.Keys, KeysBytes: stats.KeysBytes, HistoryEvents: stats.HistoryEvents, HistoryBytes: stats.HistoryBytes,
		Alarms: status.Alarms,
	}
	for range s.store.View().Leases() {
		resp.Leases++
	}
	s.sign(resp.Header)
	return resp, nil
}

// sign says in a header who answers.
func (s storeService) sign(header *storev1.Header) {
	_, header.Term = s.store.Leader()
	header.ServedBy = s.cfg.PeerID
}

// readOptions turns the options of a request into the store's.
func readOptions(in *storev1.ReadOptions) (raftstore.ReadOptions, error) {
	out := raftstore.ReadOptions{MinRevision: in.GetMinRevision()}
	switch c := in.GetConsistency(); c {
	case storev1.Consistency_CONSISTENCY_UNSPECIFIED, storev1.Consistency_CONSISTENCY_LINEARIZABLE:
	case storev1.Consistency_CONSISTENCY_BOUNDED:
		out.Consistency = raftstore.Bounded
		if out.MaxAge = in.GetMaxAge().AsDuration(); out.MaxAge <= 0 {
			return out, badRequest("read.max_age", "is missing or not above 0: a bounded read needs its bound")
		}
	case storev1.Consistency_CONSISTENCY_LOCAL:
		out.Consistency = raftstore.Local
	default:
		return out, badRequest("read.consistency", "%d is not a consistency that this peer knows; use linearizable, bounded or local", c)
	}
	return out, nil
}

// readStore returns a view as fresh as opts ask for.
func (s storeService) readStore(ctx context.Context, opts raftstore.ReadOptions) (reading, error) {
	view, age, err := s.store.Read(ctx, opts)
	if err != nil {
		return reading{}, storeError("read", err)
	}
	return aged(view, age), nil
}

// aged is a view of an age as the store tells it: below 0 is unknown.
func aged(view raftstore.View, age time.Duration) reading {
	if age < 0 {
		return reading{view: view}
	}
	return reading{view: view, age: &age}
}

func ageOf(r reading) *durationpb.Duration {
	if r.age == nil {
		return nil
	}
	return durationpb.New(*r.age)
}
