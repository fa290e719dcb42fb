package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-io/holdfast/pki"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// quorumTimeout bounds Status's attempt at a linearizable read.
	quorumTimeout = time.Second
	defaultTTL    = time.Hour
	maxTTL        = 30 * 24 * time.Hour
)

// clusterService implements holdfastv1connect.ClusterServiceHandler.
type clusterService struct{ *Server }

// Status tells what this peer knows. It needs no leader; whether a quorum can be
// reached is tried out, for a second at most.
func (s clusterService) Status(ctx context.Context, _ *holdfastv1.StatusRequest) (*holdfastv1.StatusResponse, error) {
	start := time.Now()
	bounded, cancel := context.WithTimeout(ctx, quorumTimeout)
	defer cancel()
	_, quorumErr := s.store.Sync(bounded)
	if quorumErr == nil {
		s.fresh.proved(start)
	}
	status := s.store.Status()
	resp := &holdfastv1.StatusResponse{
		ClusterId: s.cfg.ClusterID, ServedBy: s.cfg.PeerID, Leader: status.Leader, Term: status.Term,
		Revision: status.Revision, LastIndex: status.LastIndex, AppliedIndex: status.AppliedIndex,
		Quorum: quorumErr == nil, Version: s.cfg.Version,
	}
	if quorumErr != nil {
		resp.QuorumError = quorumErr.Error()
		if errors.Is(quorumErr, context.DeadlineExceeded) {
			resp.QuorumError = "no majority of peers answered within " + quorumTimeout.String()
		}
	}
	members := s.members()
	states := make(map[string]string)
	for _, m := range members {
		if m.Role == string(pki.RolePeer) {
			states[m.Name] = m.State
		}
		role := holdfastv1.Role_ROLE_NODE
		if m.Role == string(pki.RolePeer) {
			role = holdfastv1.Role_ROLE_PEER
		}
		resp.Members = append(resp.Members, &holdfastv1.Member{Name: m.Name, Address: m.Address, Role: role, State: m.State})
	}
	for _, p := range status.Peers {
		state := states[p.ID]
		if state == "" {
			state = "unknown"
		}
		resp.Peers = append(resp.Peers, &holdfastv1.Peer{Id: p.ID, Address: p.Address, Voter: p.Voter, Leader: p.Leader, Gossip: state})
	}
	return resp, nil
}

func (s *Server) members() []Member {
	if s.cfg.Gossip == nil {
		return nil
	}
	return s.cfg.Gossip.Members()
}

// alive reports whether gossip sees the machine alive; known is false when
// gossip says nothing about it.
func (s *Server) alive(name string, role pki.Role) (alive, known bool) {
	for _, m := range s.members() {
		if m.Name == name && m.Role == string(role) {
			return m.State == "alive", true
		}
	}
	return false, false
}

// tokenRecord is what the store keeps of a token, under tokenPrefix and its id.
type tokenRecord struct {
	Hash    []byte    `json:"hash"` // of the secret
	Role    pki.Role  `json:"role"`
	Expires time.Time `json:"expires"`
	Creator string    `json:"creator"`
}

const tokenPrefix = "holdfast/tokens/"

// CreateToken makes a token and keeps its hash. Expired tokens are cleared away
// in the same transaction.
func (s clusterService) CreateToken(ctx context.Context, req *holdfastv1.CreateTokenRequest) (*holdfastv1.CreateTokenResponse, error) {
	role, err := machineRole(req.GetRole())
	if err != nil {
		return nil, err
	}
	ttl := defaultTTL
	if req.GetTtl() != nil {
		ttl = req.GetTtl().AsDuration()
	}
	if ttl <= 0 || ttl > maxTTL {
		return nil, badRequest("ttl", "is %s: it must be more than 0 and at most %s", ttl, maxTTL)
	}
	if s.cfg.CA == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "this peer has no key of the cluster's CA, so nobody could join")
	}
	now := s.cfg.Now()
	token := pki.NewToken(s.cfg.CA.Pin())
	expires := now.Add(ttl)
	data, err := json.Marshal(tokenRecord{Hash: token.Hash(), Role: role, Expires: expires, Creator: actor(ctx)})
	if err != nil {
		return nil, err
	}
	_, err = s.commit(ctx, "create token", "create token", func(view raftstore.View) (change, error) {
		c := change{ops: []raftstore.Op{raftstore.Put(tokenPrefix+token.ID, data)}}
		for kv := range view.Prefix(tokenPrefix) {
			var old tokenRecord
			if json.Unmarshal(kv.Value, &old) == nil && old.Expires.Before(now) {
				c.ops = append(c.ops, raftstore.Delete(kv.Key))
			}
		}
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	s.log.Info("token created", "token", token.ID, "role", role, "expires", expires, "caller", actor(ctx))
	return &holdfastv1.CreateTokenResponse{Token: token.String(), ExpiresAt: timestamppb.New(expires)}, nil
}

func machineRole(role holdfastv1.Role) (pki.Role, error) {
	switch role {
	case holdfastv1.Role_ROLE_PEER:
		return pki.RolePeer, nil
	case holdfastv1.Role_ROLE_NODE:
		return pki.RoleNode, nil
	}
	return "", badRequest("role", "is %s: use peer or node", role)
}

// RemovePeer takes a peer out of raft and out of the records of those who may
// join it. The leader does it; other peers pass the call on. A leader that is to
// be removed hands its leadership over first.
func (s clusterService) RemovePeer(ctx context.Context, req *holdfastv1.RemovePeerRequest) (*holdfastv1.RemovePeerResponse, error) {
	id := req.GetId()
	if id == "" {
		return nil, badRequest("id", "is empty: say which peer")
	}
	status := s.store.Status()
	if status.Leader != s.cfg.PeerID {
		return s.removeOnLeader(ctx, status.Leader, req)
	}
	if err := s.removable(status, id); err != nil {
		return nil, err
	}
	if id == s.cfg.PeerID {
		if caller, ok := identityFrom(ctx); ok && caller.Role == pki.RolePeer {
			return nil, connect.Errorf(connect.CodeUnavailable, "the leadership moved to peer %s, which is to be removed; retry", id)
		}
		return s.handOverAndRemove(ctx, req)
	}
	if err := s.store.RemovePeer(ctx, id); err != nil {
		return nil, membershipError("remove peer "+id, err)
	}
	_, err := s.commit(ctx, "remove the record of peer "+id, "remove peer", func(view raftstore.View) (change, error) {
		var c change
		if _, ok := view.Get(machineKey(pki.RolePeer, id)); ok {
			c.ops = append(c.ops, raftstore.Delete(machineKey(pki.RolePeer, id)))
		}
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	s.log.Info("peer removed", "peer", id, "caller", actor(ctx))
	return &holdfastv1.RemovePeerResponse{}, nil
}

// handOverAndRemove lets the next leader remove this peer. A new leader needs a
// moment before it can change the members.
func (s clusterService) handOverAndRemove(ctx context.Context, req *holdfastv1.RemovePeerRequest) (*holdfastv1.RemovePeerResponse, error) {
	if err := s.store.TransferLeadership(ctx, ""); err != nil {
		return nil, membershipError("hand over the leadership of peer "+req.GetId(), err)
	}
	deadline := time.NewTimer(waitTimeout)
	defer deadline.Stop()
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		leader, _ := s.store.Leader()
		resp, err := s.removeOnLeader(ctx, leader, req)
		if connect.CodeOf(err) != connect.CodeUnavailable {
			return resp, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-deadline.C:
			return nil, connect.Errorf(connect.CodeUnavailable,
				"peer %s has handed over its leadership, but no other leader took it out within %s; retry", req.GetId(), waitTimeout).WithCause(err)
		case <-retry.C:
		}
	}
}

func (s clusterService) removeOnLeader(ctx context.Context, leader string, req *holdfastv1.RemovePeerRequest) (*holdfastv1.RemovePeerResponse, error) {
	client, err := s.leader(ctx, leader)
	if err != nil {
		return nil, err
	}
	resp, err := holdfastv1connect.NewClusterServiceClient(client).RemovePeer(ctx, req)
	if err != nil {
		return nil, relayed(err)
	}
	return resp, nil
}

// leader returns a client to the leader, for a call to pass on. A call that a
// peer has passed on already goes no further.
func (s *Server) leader(ctx context.Context, id string) (*connect.Client, error) {
	if id == "" || id == s.cfg.PeerID {
		return nil, connect.NewError(connect.CodeUnavailable, "there is no leader at the moment; nothing was changed, retry")
	}
	client, err := s.cfg.Dial(id)
	if err != nil {
		return nil, connect.Errorf(connect.CodeUnavailable, "the leader, peer %s, cannot be reached; nothing was changed, retry", id).WithCause(err)
	}
	return client, nil
}

// removable returns FailedPrecondition when the peer is unknown or the voters
// that would remain could not form a quorum by what gossip sees.
func (s clusterService) removable(status raftstore.Status, id string) error {
	voters, alive, found := 0, 0, false
	var dead []string
	for _, p := range status.Peers {
		if p.ID == id {
			found = true
			continue
		}
		if !p.Voter {
			continue
		}
		voters++
		if ok, known := s.alive(p.ID, pki.RolePeer); ok || !known || p.ID == s.cfg.PeerID {
			alive++
		} else {
			dead = append(dead, p.ID)
		}
	}
	switch {
	case !found:
		return connect.Errorf(connect.CodeNotFound, "no peer is called %s", id)
	case voters == 0:
		return connect.Errorf(connect.CodeFailedPrecondition, "peer %s is the last one: the cluster would be gone", id)
	case alive < voters/2+1:
		return connect.Errorf(connect.CodeFailedPrecondition,
			"without peer %s the cluster would have %d voters, of which only %d are alive (not: %v): no quorum. Bring those back, or remove one of them first",
			id, voters, alive, dead)
	}
	return nil
}

// membershipService implements peerv1connect.MembershipServiceHandler.
type membershipService struct{ *Server }

// AddPeer makes a joined peer part of raft. Only a machine that joined with a
// token for peers, and was not removed since, is let in; a member may say its new
// address. A peer that does not lead passes the call of the joining peer on.
func (s membershipService) AddPeer(ctx context.Context, req *peerv1.AddPeerRequest) (*peerv1.AddPeerResponse, error) {
	if req.GetId() == "" || req.GetAddress() == "" {
		return nil, badRequest("id", "id and address of the peer must be given")
	}
	caller, _ := identityFrom(ctx)
	status := s.store.Status()
	if status.Leader != s.cfg.PeerID {
		if caller.Name != req.GetId() {
			return nil, connect.NewError(connect.CodeUnavailable, "the leader has changed; retry")
		}
		client, err := s.leader(ctx, status.Leader)
		if err != nil {
			return nil, err
		}
		resp, err := peerv1connect.NewMembershipServiceClient(client).AddPeer(ctx, req)
		if err != nil {
			return nil, relayed(err)
		}
		return resp, nil
	}
	member := slices.ContainsFunc(status.Peers, func(p raftstore.PeerInfo) bool { return p.ID == req.GetId() })
	joiner := raftstore.Joiner{ID: req.GetId(), Address: req.GetAddress(), Instance: req.GetInstance(), Learner: req.GetLearner()}
	if !member {
		view, err := s.sync(ctx)
		if err != nil {
			return nil, err
		}
		if raftstore.Removed(view, req.GetId()) {
			return nil, errRemovedName(connect.CodeFailedPrecondition, req.GetId())
		}
		if _, joined := view.Get(machineKey(pki.RolePeer, req.GetId())); !joined {
			return nil, connect.Errorf(connect.CodeFailedPrecondition,
				"peer %s has not joined this cluster: join with a new token and an empty data directory", req.GetId())
		}
	}
	if err := s.store.Admit(ctx, joiner); err != nil {
		return nil, membershipError("add peer "+req.GetId(), err)
	}
	return &peerv1.AddPeerResponse{}, nil
}

// errRemovedName is the answer to a peer that comes, or returns, under a removed
// peer's name.
func errRemovedName(code connect.Code, id string) error {
	return connect.Errorf(code,
		"a peer called %s was removed from this cluster, and a peer's name is used once: delete the data directory and join under another name (--name)", id)
}

// Meet tells where the gossip is: what this peer sees, itself included.
func (s membershipService) Meet(context.Context, *peerv1.MeetRequest) (*peerv1.MeetResponse, error) {
	return &peerv1.MeetResponse{Gossip: s.gossipAddresses()}, nil
}

// gossipAddresses returns where a new machine can join the gossip: the peers'
// addresses.
func (s *Server) gossipAddresses() []string {
	var addresses []string
	for _, m := range s.members() {
		if m.Role == string(pki.RolePeer) && m.State != "left" && m.Address != "" {
			addresses = append(addresses, m.Address)
		}
	}
	slices.Sort(addresses)
	return slices.Compact(addresses)
}
