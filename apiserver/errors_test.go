package apiserver

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/raftstore"
)

// TestStoreError is the contract of codes with the store. The first three are the
// ones that a client must be able to tell apart: nothing happened, somebody else
// was faster, and nobody knows.
func TestStoreError(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want connect.Code
	}{
		{raftstore.ErrNoLeader, connect.CodeUnavailable},
		{&raftstore.ConflictError{}, connect.CodeAborted},
		{raftstore.ErrOutcomeUnknown, connect.CodeUnknown},
		// As the store returns them when the caller's patience ends first.
		{fmt.Errorf("%w: %w", raftstore.ErrNoLeader, context.DeadlineExceeded), connect.CodeUnavailable},
		{fmt.Errorf("%w: %w", raftstore.ErrOutcomeUnknown, context.DeadlineExceeded), connect.CodeUnknown},
		// As it does when the stream to the leader breaks, whichever way: it had been
		// sent, so a code that allows a repetition would do it twice.
		{fmt.Errorf("%w: the stream ended: %w", raftstore.ErrOutcomeUnknown, connect.NewError(connect.CodeUnavailable, "refused")), connect.CodeUnknown},
		{fmt.Errorf("%w: the stream ended: %w", raftstore.ErrOutcomeUnknown, connect.NewError(connect.CodeInternal, "cut short")), connect.CodeUnknown},
		{fmt.Errorf("%w: %w", raftstore.ErrNoLeader, connect.NewError(connect.CodeInternal, "cut short")), connect.CodeUnavailable},
		{raftstore.ErrDeposed, connect.CodeUnavailable},
		{raftstore.ErrNotLeader, connect.CodeUnavailable},
		{raftstore.ErrClosed, connect.CodeUnavailable},
		{&raftstore.CompactedError{}, connect.CodeOutOfRange},
		{raftstore.ErrFutureRevision, connect.CodeUnavailable},
		{raftstore.ErrTooLarge, connect.CodeInvalidArgument},
		{raftstore.ErrInvalid, connect.CodeInvalidArgument},
		{raftstore.ErrOverloaded, connect.CodeResourceExhausted},
		{context.Canceled, connect.CodeCanceled},
		{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
		{connect.NewError(connect.CodeNotFound, "as it is"), connect.CodeNotFound},
	} {
		err := storeError("write Pod default/a", fmt.Errorf("wrapped: %w", tt.err))
		rpcErr, ok := errors.AsType[*connect.Error](err)
		if !ok || rpcErr.Code() != tt.want {
			t.Errorf("%v became %v, want %s", tt.err, err, tt.want)
		}
	}
	if err := storeError("write", nil); err != nil {
		t.Errorf("no error became %v", err)
	}
	// What nobody foresaw stays as it is: it becomes Internal, and is logged.
	odd := errors.New("odd")
	if err := storeError("write", odd); !errors.Is(err, odd) || connect.CodeOf(err) != connect.CodeUnknown {
		t.Errorf("an unforeseen error became %v", err)
	}
	wantCode(t, membershipError("remove peer p1", errors.New("refused: no majority")), connect.CodeFailedPrecondition, "refused: no majority")
}

// TestUnforeseenErrors: their text stays on the peer.
func TestUnforeseenErrors(t *testing.T) {
	c := newCluster(t, 1)
	s := c.servers["peer-1"]
	call := s.observe(func(context.Context, connect.Spec, connect.ServerStream) error { return errors.New("secret detail") })
	err := call(t.Context(), connect.Spec{Procedure: "/x/y"}, closedStream{})
	wantCode(t, err, connect.CodeInternal, "internal error")
	// Another peer's verdict leaves with its own words, as this peer's.
	remote := connect.NewError(connect.CodeNotFound, "no such thing").WithRemote()
	call = s.observe(func(context.Context, connect.Spec, connect.ServerStream) error { return relayed(remote) })
	err = call(t.Context(), connect.Spec{Procedure: "/x/y"}, closedStream{})
	wantCode(t, err, connect.CodeNotFound, "no such thing")
	if rpcErr, _ := errors.AsType[*connect.Error](err); rpcErr.IsRemote() {
		t.Error("the error is still the other peer's and would be scrubbed")
	}
}
