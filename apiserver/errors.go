package apiserver

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// storeError gives an error of the store the code that tells the client what to
// do, and a message that says it to people. what is what was being done,
// "apply", or "delete Pod default/web-1". Every error of the store leaves
// through here, so this switch is the API's whole error contract with it.
func storeError(what string, err error) error {
	if err == nil {
		return nil
	}
	code, hint := storeCode(err)
	if coded, ok := errors.AsType[*connect.Error](err); ok {
		// An error that has a code already keeps it, unless the code is that of the
		// cause: another peer's stream broke with Unavailable, say, and what was sent
		// over it may have been carried out.
		if _, known := storeCode(coded); hint == "" || known != "" {
			return err
		}
	}
	if hint == "" {
		return fmt.Errorf("%s: %w", what, err) // becomes Internal, and is logged
	}
	return connect.Errorf(code, "%s: %s", what, hint).WithCause(err)
}

// storeCode returns the code and the sentence for an error that the store is known to
// return; without a sentence it is none.
func storeCode(err error) (code connect.Code, hint string) {
	switch {
	case errors.Is(err, raftstore.ErrConflict):
		code, hint = connect.CodeAborted, "somebody else changed it meanwhile; read it again, then retry"
	case errors.Is(err, raftstore.ErrOutcomeUnknown): // before the context's errors, which it can wrap
		code, hint = connect.CodeUnknown, "the leader was lost after the write was proposed, so whether it took place cannot be told; read before you retry"
	case errors.Is(err, raftstore.ErrNoLeader):
		code, hint = connect.CodeUnavailable, "no leader answered; nothing was written, retry"
	case errors.Is(err, raftstore.ErrDeposed):
		code, hint = connect.CodeUnavailable, "the leader changed; nothing was written, retry"
	case errors.Is(err, raftstore.ErrNotLeader):
		code, hint = connect.CodeUnavailable, "the leader changed; nothing was written, retry"
	case errors.Is(err, raftstore.ErrRestart), errors.Is(err, raftstore.ErrQuarantined):
		code, hint = connect.CodeUnavailable, err.Error()+"; nothing was written, go to another peer"
	case errors.Is(err, raftstore.ErrClosed):
		code, hint = connect.CodeUnavailable, "this peer is shutting down; nothing was written, retry on another one"
	case errors.Is(err, raftstore.ErrCompacted):
		code, hint = connect.CodeOutOfRange, "that revision has been compacted; list again"
	case errors.Is(err, raftstore.ErrFutureRevision):
		code, hint = connect.CodeUnavailable, "this peer has not reached that revision; retry on another one"
	case errors.Is(err, raftstore.ErrTooLarge):
		code, hint = connect.CodeInvalidArgument, err.Error()+"; split it up"
	case errors.Is(err, raftstore.ErrInvalid):
		code, hint = connect.CodeInvalidArgument, err.Error()
	case errors.Is(err, raftstore.ErrOverloaded):
		code, hint = connect.CodeResourceExhausted, "too many writes are waiting; retry later"
	case errors.Is(err, raftstore.ErrLeaseNotFound), errors.Is(err, raftstore.ErrKeyNotFound):
		code, hint = connect.CodeNotFound, err.Error()
	case errors.Is(err, raftstore.ErrLeaseExists):
		code, hint = connect.CodeAlreadyExists, err.Error()
	case errors.Is(err, raftstore.ErrNoSpace):
		code, hint = connect.CodeResourceExhausted, "the peers' disks are low on space; make room there, or delete something"
	case errors.Is(err, context.Canceled):
		code, hint = connect.CodeCanceled, "the caller ended the call"
	case errors.Is(err, context.DeadlineExceeded):
		code, hint = connect.CodeDeadlineExceeded, "the call's deadline passed"
	}
	return code, hint
}

// membershipError is storeError for changes of raft's members. What the store
// refuses in words of its own is for the caller to read.
func membershipError(what string, err error) error {
	err = storeError(what, err)
	if _, coded := errors.AsType[*connect.Error](err); coded || err == nil {
		return err
	}
	code := connect.CodeFailedPrecondition
	if errors.Is(err, raftstore.ErrNoPeer) {
		code = connect.CodeNotFound
	}
	return connect.NewError(code, errors.Unwrap(err).Error()).WithCause(err)
}

// invalid returns the error for wrong objects: InvalidArgument with one Fault
// detail for each fault.
func invalid(faults object.Faults) error {
	err := withFaults(connect.NewError(connect.CodeInvalidArgument, faults.Error()), faults, "")
	return withInfo(err, &holdfastv1.ErrorInfo{Reason: "Invalid"})
}

// withFaults returns err with a Fault detail for each fault, all for one reason.
func withFaults(err *connect.Error, faults object.Faults, reason string) *connect.Error {
	for _, fault := range faults {
		detail, detailErr := connectproto.NewErrorDetail(&holdfastv1.Fault{
			Object: fault.Object, Field: fault.Field, Message: fault.Message, Index: int32(fault.Index), Reason: reason,
		})
		if detailErr == nil {
			err = err.WithDetail(detail)
		}
	}
	return err
}

// withInfo returns err with what info says about it; who failed and when is added
// as it leaves the peer, see publish.
func withInfo(err *connect.Error, info *holdfastv1.ErrorInfo) *connect.Error {
	detail, detailErr := connectproto.NewErrorDetail(info)
	if detailErr != nil {
		return err
	}
	return err.WithDetail(detail)
}

// badRequest is InvalidArgument for what is wrong with a request besides its
// objects.
func badRequest(field, format string, args ...any) error {
	faults := object.Faults{{Field: field, Message: fmt.Sprintf(format, args...)}}
	err := withFaults(connect.NewError(connect.CodeInvalidArgument, faults.Error()), faults, "")
	return withInfo(err, &holdfastv1.ErrorInfo{Reason: "BadRequest"})
}

func notFound(r object.Resource, namespace, name string) error {
	return connect.Errorf(connect.CodeNotFound, "%s %s not found", r.Kind, joinName(namespace, name))
}

func joinName(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// relayed makes another peer's verdict this peer's own, details included: as it
// is, an error of a remote peer would not leave this one.
func relayed(err error) error {
	remote, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return connect.NewError(connect.CodeUnavailable, "the other peer cannot be reached").WithCause(err)
	}
	own := connect.NewError(remote.Code(), remote.Message()).WithCause(err)
	for _, detail := range remote.Details() {
		if detail.Type != errorInfoName {
			own = own.WithDetail(detail)
		}
	}
	return own
}

var errorInfoName = string((*holdfastv1.ErrorInfo)(nil).ProtoReflect().Descriptor().FullName())
