package apiserver

import (
	"context"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// LeaseGrant makes a lease.
func (s storeService) LeaseGrant(ctx context.Context, req *storev1.LeaseGrantRequest) (*storev1.LeaseGrantResponse, error) {
	if err := req.GetTtl().CheckValid(); err != nil || req.GetTtl().AsDuration() <= 0 {
		return nil, badRequest("ttl", "is missing or not above 0: say how long the lease is to live without being kept alive")
	}
	lease, err := s.store.GrantLease(ctx, req.GetId(), req.GetTtl().AsDuration())
	if err != nil {
		return nil, storeError("grant a lease", err)
	}
	return &storev1.LeaseGrantResponse{Header: s.signed(), Id: lease.ID, Ttl: durationpb.New(lease.Granted)}, nil
}

// LeaseRevoke ends a lease.
func (s storeService) LeaseRevoke(ctx context.Context, req *storev1.LeaseRevokeRequest) (*storev1.LeaseRevokeResponse, error) {
	if err := checkLease(req.GetId()); err != nil {
		return nil, err
	}
	if err := s.store.RevokeLease(ctx, req.GetId()); err != nil {
		return nil, storeError("revoke the lease", err)
	}
	return &storev1.LeaseRevokeResponse{Header: s.signed()}, nil
}

// LeaseKeepAlive gives a lease its whole time again.
func (s storeService) LeaseKeepAlive(ctx context.Context, req *storev1.LeaseKeepAliveRequest) (*storev1.LeaseKeepAliveResponse, error) {
	resp, err := s.keepAlive(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	s.sign(resp.Header)
	return resp, nil
}

// keepAlive is LeaseKeepAlive without its header's signature.
func (s storeService) keepAlive(ctx context.Context, id int64) (*storev1.LeaseKeepAliveResponse, error) {
	if err := checkLease(id); err != nil {
		return nil, err
	}
	ttl, err := s.store.KeepAlive(ctx, id)
	if err != nil {
		return nil, storeError("keep the lease alive", err)
	}
	return &storev1.LeaseKeepAliveResponse{
		Header: &storev1.Header{Revision: s.store.View().Revision()}, Id: id, Ttl: durationpb.New(ttl),
	}, nil
}

// LeaseTimeToLive tells what is left of a lease. Its keys are read after that, in a
// state that is as new as the call: none for a lease that ended between.
func (s storeService) LeaseTimeToLive(ctx context.Context, req *storev1.LeaseTimeToLiveRequest) (*storev1.LeaseTimeToLiveResponse, error) {
	if err := checkLease(req.GetId()); err != nil {
		return nil, err
	}
	lease, err := s.store.TimeToLive(ctx, req.GetId())
	if err != nil {
		return nil, storeError("look at the lease", err)
	}
	resp := &storev1.LeaseTimeToLiveResponse{
		Header: &storev1.Header{}, Id: lease.ID, Granted: durationpb.New(lease.Granted), Remaining: durationpb.New(lease.Remaining),
	}
	view := s.store.View()
	if req.GetKeys() {
		if view, err = s.store.Sync(ctx); err != nil {
			return nil, storeError("read the lease's keys", err)
		}
		size := 0
		for key := range view.LeaseKeys(lease.ID) {
			if !strings.HasPrefix(key, raftstore.UserKeyspace) {
				continue
			}
			if size += len(key); size > rangeMaxBytes {
				resp.MoreKeys = true
				break
			}
			resp.Keys = append(resp.Keys, rawKey(key))
		}
	}
	resp.Header.Revision = view.Revision()
	s.sign(resp.Header)
	return resp, nil
}

// Leases lists all leases.
func (s storeService) Leases(ctx context.Context, _ *storev1.LeasesRequest) (*storev1.LeasesResponse, error) {
	view, err := s.store.Sync(ctx)
	if err != nil {
		return nil, storeError("list the leases", err)
	}
	resp := &storev1.LeasesResponse{Header: &storev1.Header{Revision: view.Revision()}}
	for lease := range view.Leases() {
		resp.Ids = append(resp.Ids, lease.ID)
	}
	s.sign(resp.Header)
	return resp, nil
}

func checkLease(id int64) error {
	if id <= 0 {
		return badRequest("id", "is %d: name a lease", id)
	}
	return nil
}

// signed is a header of now.
func (s storeService) signed() *storev1.Header {
	header := &storev1.Header{Revision: s.store.View().Revision()}
	s.sign(header)
	return header
}
