package apiserver

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"

	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// observe is the outermost interceptor. It counts and logs each call, turns a
// panic into Internal, and gives each error what the client needs: a code, and
// an ErrorInfo.
func (s *Server) observe(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) (err error) {
		start := time.Now()
		finished := s.metrics.begin(spec)
		defer func() {
			if r := recover(); r != nil {
				if r == http.ErrAbortHandler {
					panic(r)
				}
				s.log.Error("handler panicked", "procedure", spec.Procedure, "caller", actor(ctx), "panic", r, "stack", string(debug.Stack()))
				err = connect.NewError(connect.CodeInternal, "internal error: the peer's log has more")
			}
			code := "ok"
			if err != nil {
				err = s.publish(ctx, spec, err)
				code = connect.CodeOf(err).String()
			}
			took := time.Since(start)
			finished(code, took)
			if s.log.Enabled(ctx, slog.LevelDebug) {
				s.log.Debug("call", "procedure", spec.Procedure, "caller", actor(ctx), "code", code, "took", took, "err", err)
			}
		}()
		return next(ctx, spec, stream)
	}
}

// publish turns err into one that may leave this peer: one of ours, with its
// code and an ErrorInfo. What nobody foresaw becomes Internal and is logged.
func (s *Server) publish(ctx context.Context, spec connect.Spec, err error) error {
	rpcErr, ok := errors.AsType[*connect.Error](err)
	switch {
	case ok && !rpcErr.IsRemote():
	case errors.Is(err, context.Canceled), ctx.Err() != nil && !ok:
		rpcErr = connect.NewError(connect.CodeCanceled, "the caller ended the call").WithCause(err)
	case errors.Is(err, context.DeadlineExceeded):
		rpcErr = connect.NewError(connect.CodeDeadlineExceeded, "the call's deadline passed").WithCause(err)
	case ok: // another peer's, or what the transport made of the client's message
		rpcErr = connect.NewError(rpcErr.Code(), rpcErr.Message()).WithCause(err)
	default:
		s.log.Error("call failed unexpectedly", "procedure", spec.Procedure, "caller", actor(ctx), "err", err)
		rpcErr = connect.NewError(connect.CodeInternal, "internal error: the peer's log has more").WithCause(err)
	}
	if _, known := identityFrom(ctx); !known {
		return rpcErr // strangers learn nothing about the cluster
	}
	leader, _ := s.store.Leader()
	info := &holdfastv1.ErrorInfo{ServedBy: s.cfg.PeerID, Leader: leader, Revision: s.store.View().Revision()}
	full := connect.NewError(rpcErr.Code(), rpcErr.Message()).WithCause(err)
	for _, detail := range rpcErr.Details() {
		if detail.Type != errorInfoName {
			full = full.WithDetail(detail)
			continue
		}
		if msg, err := connectproto.UnmarshalErrorDetail(detail); err == nil { // what withInfo said
			proto.Merge(info, msg)
		}
	}
	return withInfo(full, info)
}

// bound gives unary calls a deadline, and ends streams when Run ends.
func (s *Server) bound(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		if spec.StreamType == connect.StreamTypeUnary {
			timeout := callTimeout
			switch spec.Procedure {
			case holdfastv1connect.ClusterServicePromotePeerProcedure, holdfastv1connect.ClusterServiceReplacePeerProcedure:
				timeout = catchUpTimeout
			}
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			return next(ctx, spec, stream)
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		life := s.serves
		if servesAlways(spec.Procedure) {
			life = s.lifetime
		}
		stop := context.AfterFunc(life, func() { cancel(context.Cause(life)) })
		defer stop()
		err := next(ctx, spec, stream)
		if refused, ok := errors.AsType[*connect.Error](context.Cause(ctx)); err != nil && ok {
			return refused
		}
		return endedWith(life, err)
	}
}

// endedWith returns err, with which a call ended that lives as long as life, or that
// the server is shutting down: whatever the call saw of that first, a lost agent say,
// is no news to its caller.
func endedWith(life context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(life), errShutdown) {
		return connect.NewError(connect.CodeUnavailable, "this peer is shutting down: go to another one").WithCause(err)
	}
	return err
}
