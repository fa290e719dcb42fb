package etcd

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/holdfast-io/holdfast/raftstore"
)

// maxTTL is etcd's, in seconds; the store's is the same.
const maxTTL = 9_000_000_000

// LeaseGrant makes a lease. A TTL below a second is raised to one.
func (s *Server) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	if r.GetTTL() > maxTTL {
		return nil, etcdError(rpctypes.ErrGRPCLeaseTTLTooLarge)
	}
	lease, err := s.store.GrantLease(ctx, r.GetID(), time.Duration(max(1, r.GetTTL()))*time.Second)
	if err != nil {
		return nil, err
	}
	return &pb.LeaseGrantResponse{Header: s.header(s.store.View().Revision()), ID: lease.ID, TTL: seconds(lease.Granted)}, nil
}

// seconds rounds up: a lease that lives has some left.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// LeaseRevoke ends a lease and deletes its keys.
func (s *Server) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	if err := s.store.RevokeLease(ctx, r.GetID()); err != nil {
		return nil, err
	}
	return &pb.LeaseRevokeResponse{Header: s.header(s.store.View().Revision())}, nil
}

// leaseKeepAlive gives leases their time again, one for each message, in order. One
// that has ended has a TTL of 0 in its answer.
func (s *Server) leaseKeepAlive(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	for {
		r := new(pb.LeaseKeepAliveRequest)
		if err := stream.Receive(r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		ttl, err := s.store.KeepAlive(ctx, r.GetID())
		if err != nil && !errors.Is(err, raftstore.ErrLeaseNotFound) {
			return err
		}
		resp := &pb.LeaseKeepAliveResponse{Header: s.header(s.store.View().Revision()), ID: r.GetID()}
		if err == nil {
			resp.TTL = seconds(ttl)
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// LeaseTimeToLive tells how long a lease lasts, -1 for one that has ended, and which
// keys live by it.
func (s *Server) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	lease, err := s.store.TimeToLive(ctx, r.GetID())
	if errors.Is(err, raftstore.ErrLeaseNotFound) {
		return &pb.LeaseTimeToLiveResponse{Header: s.header(s.store.View().Revision()), ID: r.GetID(), TTL: -1}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseTimeToLiveResponse{ID: r.GetID(), TTL: int64(lease.Remaining / time.Second), GrantedTTL: seconds(lease.Granted)}
	view := s.store.View()
	if r.GetKeys() {
		if view, err = s.read(ctx, false); err != nil {
			return nil, err
		}
		for key := range view.LeaseKeys(r.GetID()) {
			if strings.HasPrefix(key, raftstore.UserKeyspace) {
				resp.Keys = append(resp.Keys, wireKey(key))
			}
		}
	}
	resp.Header = s.header(view.Revision())
	return resp, nil
}

// LeaseLeases lists all leases.
func (s *Server) LeaseLeases(ctx context.Context, _ *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	view, err := s.read(ctx, false)
	if err != nil {
		return nil, err
	}
	resp := &pb.LeaseLeasesResponse{Header: s.header(view.Revision())}
	for lease := range view.Leases() {
		resp.Leases = append(resp.Leases, &pb.LeaseStatus{ID: lease.ID})
	}
	return resp, nil
}
