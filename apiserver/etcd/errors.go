package etcd

import (
	"context"
	"errors"

	"connectrpc.com/connect/v2"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-io/holdfast/raftstore"
)

// etcdError is one of etcd's errors, with the code and the text that clients match.
func etcdError(err error) *connect.Error {
	s := status.Convert(err)
	return connect.NewError(connect.Code(s.Code()), s.Message())
}

// rpcError gives an error of the store etcd's code and text. Every error leaves
// through here. What etcd has no error for keeps its own text.
func rpcError(err error) error {
	if err == nil {
		return nil
	}
	if coded, ok := errors.AsType[*connect.Error](err); ok {
		return coded
	}
	if verdict := verdictOn(err); verdict != nil {
		return etcdError(verdict).WithCause(err)
	}
	return connect.NewError(connect.CodeInternal, "internal error: the peer's log has more").WithCause(err)
}

// verdictOn returns what etcd would say, nil if it has no word for it.
func verdictOn(err error) error {
	switch {
	// Before the context's errors, which it can wrap. Clients do not send a write
	// again after this one, as it may have taken place.
	case errors.Is(err, raftstore.ErrOutcomeUnknown):
		return rpctypes.ErrGRPCTimeoutDueToLeaderFail
	case errors.Is(err, context.Canceled):
		return rpctypes.ErrGRPCCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return rpctypes.ErrGRPCDeadlineExceeded
	case errors.Is(err, raftstore.ErrNoLeader), errors.Is(err, raftstore.ErrDeposed), errors.Is(err, raftstore.ErrNotLeader):
		return rpctypes.ErrGRPCNoLeader
	case errors.Is(err, raftstore.ErrQuarantined):
		return rpctypes.ErrGRPCCorrupt
	case errors.Is(err, raftstore.ErrClosed), errors.Is(err, raftstore.ErrRestart):
		return rpctypes.ErrGRPCStopped
	case errors.Is(err, raftstore.ErrCompacted):
		return rpctypes.ErrGRPCCompacted
	case errors.Is(err, raftstore.ErrFutureRevision):
		return rpctypes.ErrGRPCFutureRev
	case errors.Is(err, raftstore.ErrTooLarge):
		return rpctypes.ErrGRPCRequestTooLarge
	case errors.Is(err, raftstore.ErrInvalid):
		// All else that makes a transaction invalid is looked at before.
		return rpctypes.ErrGRPCDuplicateKey
	case errors.Is(err, raftstore.ErrOverloaded):
		return rpctypes.ErrGRPCRequestTooManyRequests
	case errors.Is(err, raftstore.ErrLeaseNotFound):
		return rpctypes.ErrGRPCLeaseNotFound
	case errors.Is(err, raftstore.ErrLeaseExists):
		return rpctypes.ErrGRPCLeaseExist
	case errors.Is(err, raftstore.ErrKeyNotFound):
		return rpctypes.ErrGRPCKeyNotFound
	case errors.Is(err, raftstore.ErrNoSpace):
		return rpctypes.ErrGRPCNoSpace
	}
	return nil
}
