package apiserver

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect/v2"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// The standard health service of gRPC, which load balancers and probes know. Its
// messages are grpc's own package: a copy of the definition would register the same
// names a second time in programs that have both.
const (
	healthCheckProcedure = "/grpc.health.v1.Health/Check"
	healthWatchProcedure = "/grpc.health.v1.Health/Watch"
)

// registerHealth adds the health service. It tells the same of every service: this
// peer answers, or it does not.
func (s *Server) registerHealth() {
	methods := healthv1.File_grpc_health_v1_health_proto.Services().ByName("Health").Methods()
	s.rpc.Register(
		connect.Method{
			Spec: connect.Spec{StreamType: connect.StreamTypeUnary, Procedure: healthCheckProcedure, Schema: methods.ByName("Check")},
			Handler: func(_ context.Context, _ connect.Spec, stream connect.ServerStream) error {
				var req healthv1.HealthCheckRequest
				if err := stream.Receive(&req); err != nil {
					return err
				}
				if !s.hasService(req.GetService()) {
					return connect.Errorf(connect.CodeNotFound, "there is no service %q", req.GetService())
				}
				return stream.Send(&healthv1.HealthCheckResponse{Status: s.health()})
			},
		},
		connect.Method{
			Spec: connect.Spec{StreamType: connect.StreamTypeServer, Procedure: healthWatchProcedure, Schema: methods.ByName("Watch")},
			Handler: func(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
				var req healthv1.HealthCheckRequest
				if err := stream.Receive(&req); err != nil {
					return err
				}
				return s.watchHealth(ctx, req.GetService(), stream)
			},
		},
	)
}

// watchHealth sends the status at once, and whenever it has changed.
func (s *Server) watchHealth(ctx context.Context, service string, stream connect.ServerStream) error {
	if !s.hasService(service) {
		if err := stream.Send(&healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVICE_UNKNOWN}); err != nil {
			return err
		}
		<-ctx.Done() // as the definition has it: it may come to be known
		return context.Cause(ctx)
	}
	last := healthv1.HealthCheckResponse_UNKNOWN
	for {
		changed := s.store.LeaderChanged() // before the look
		ready, refused := unlessClosed(s.store.Ready()), unlessClosed(s.store.Refused())
		if now := s.health(); now != last {
			if err := stream.Send(&healthv1.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			last = now
		}
		select {
		case <-changed:
		case <-ready:
		case <-refused:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// unlessClosed returns c, nil if it is closed already: what has happened wakes
// nobody again.
func unlessClosed(c <-chan struct{}) <-chan struct{} {
	select {
	case <-c:
		return nil
	default:
		return c
	}
}

func (s *Server) health() healthv1.HealthCheckResponse_ServingStatus {
	if s.Ready() != nil {
		return healthv1.HealthCheckResponse_NOT_SERVING
	}
	return healthv1.HealthCheckResponse_SERVING
}

// hasService reports whether a service of that name, "holdfast.v1.ObjectService", is
// served here; the empty one is the peer itself.
func (s *Server) hasService(name string) bool {
	if name == "" {
		return true
	}
	for spec := range s.rpc.Specs() {
		if service, _, _ := strings.Cut(strings.TrimPrefix(spec.Procedure, "/"), "/"); service == name {
			return true
		}
	}
	return false
}

// Ready returns nil when this peer can answer: its state is restored, it does not
// refuse to serve, and it knows a leader.
func (s *Server) Ready() error {
	select {
	case <-s.store.Ready():
	default:
		return errors.New("the store is being restored from disk")
	}
	if err := s.store.Refusal(); err != nil {
		return err
	}
	if leader, _ := s.store.Leader(); leader == "" {
		return errors.New("no leader is known: an election is going on, or a majority of peers cannot be reached")
	}
	return nil
}
