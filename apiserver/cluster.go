package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"
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
	bounded, cancel := context.WithTimeout(ctx, quorumTimeout)
	defer cancel()
	_, quorumErr := s.store.Sync(bounded)
	status := s.store.Status()
	resp := &holdfastv1.StatusResponse{
		ClusterId: s.cfg.ClusterID, ServedBy: s.cfg.PeerID, Leader: status.Leader, Term: status.Term,
		Revision: status.Revision, LastIndex: status.LastIndex, AppliedIndex: status.AppliedIndex,
		Quorum: quorumErr == nil, Version: s.cfg.Version, Alarms: status.Alarms,
	}
	if s.cfg.Alarms != nil {
		resp.Alarms = append(slices.Clone(resp.Alarms), s.cfg.Alarms()...)
	}
	if quorumErr != nil {
		resp.QuorumError = quorumErr.Error()
		if errors.Is(quorumErr, context.DeadlineExceeded) {
			resp.QuorumError = "no majority of peers answered within " + quorumTimeout.String()
		}
	}
	for _, m := range s.members() {
		role := holdfastv1.Role_ROLE_NODE
		if m.Role == string(pki.RolePeer) {
			role = holdfastv1.Role_ROLE_PEER
		}
		resp.Members = append(resp.Members, &holdfastv1.Member{Name: m.Name, Address: m.Address, Role: role, State: m.State})
	}
	for _, p := range status.Peers {
		resp.Peers = append(resp.Peers, s.wirePeer(p))
	}
	return resp, nil
}

func (s *Server) wirePeer(p raftstore.PeerInfo) *holdfastv1.Peer {
	state := "unknown"
	for _, m := range s.members() {
		if m.Role == string(pki.RolePeer) && m.Name == p.ID {
			state = m.State
		}
	}
	return &holdfastv1.Peer{Id: p.ID, Address: p.Address, Voter: p.Voter, Leader: p.Leader, Gossip: state}
}

// ListPeers asks all peers.
func (s clusterService) ListPeers(ctx context.Context, _ *holdfastv1.ListPeersRequest) (*holdfastv1.ListPeersResponse, error) {
	resp := &holdfastv1.ListPeersResponse{ServedBy: s.cfg.PeerID}
	states := s.store.Peers(ctx)
	slices.SortFunc(states, func(a, b raftstore.PeerState) int { return strings.Compare(a.ID, b.ID) })
	committed := uint64(0)
	for _, p := range states {
		committed = max(committed, p.CommitIndex)
	}
	for _, p := range states {
		state := &holdfastv1.PeerState{Peer: s.wirePeer(p.PeerInfo)}
		resp.Peers = append(resp.Peers, state)
		if p.Err != nil {
			state.Error = p.Err.Error()
			continue
		}
		state.Term, state.Revision, state.Hash, state.Alarms = p.Term, p.Revision, p.Hash[:], p.Alarms
		state.LastIndex, state.AppliedIndex = p.LastIndex, p.AppliedIndex
		if committed > p.AppliedIndex { // asked one after the other, more or less
			state.Lag = committed - p.AppliedIndex
		}
		if p.Contact >= 0 {
			state.ContactAge = durationpb.New(p.Contact)
		}
		resp.Notes = append(resp.Notes, p.Notes...)
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

// CreateToken makes a token and keeps its hash. Tokens that have expired for a while are
// cleared away in the same transaction.
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
	if req.GetUses() > maxTokenUses {
		return nil, badRequest("uses", "is %d: at most %d machines, or 0 for any number", req.GetUses(), maxTokenUses)
	}
	if s.cfg.CA == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "this peer has no key of the cluster's CA, so nobody could join")
	}
	now := s.cfg.Now()
	token := pki.NewToken(s.cfg.CA.Pin())
	expires := now.Add(ttl)
	data, err := json.Marshal(tokenRecord{Hash: token.Hash(), Role: role, Expires: expires, Creator: actor(ctx), Uses: req.GetUses()})
	if err != nil {
		return nil, err
	}
	_, err = s.transact(ctx, "create token", "create token", false, func(view raftstore.View) (change, error) {
		c := change{ops: []raftstore.Op{raftstore.Put(tokenPrefix+token.ID, data)}}
		for kv := range view.Prefix(tokenPrefix) {
			var old tokenRecord
			if json.Unmarshal(kv.Value, &old) == nil && !old.kept(now) {
				c.ops = append(c.ops, raftstore.Delete(kv.Key))
			}
		}
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	s.log.Info("token created", "token", token.ID, "role", role, "expires", expires, "caller", actor(ctx))
	return &holdfastv1.CreateTokenResponse{Token: token.String(), ExpiresAt: timestamppb.New(expires), Id: token.ID}, nil
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
// join it.
func (s clusterService) RemovePeer(ctx context.Context, req *holdfastv1.RemovePeerRequest) (*holdfastv1.RemovePeerResponse, error) {
	id := req.GetId()
	removable := func(status raftstore.Status) error { return s.removable(status, id) }
	return lead(ctx, s, id, removable, func(client holdfastv1connect.ClusterServiceClient) (*holdfastv1.RemovePeerResponse, error) {
		return client.RemovePeer(ctx, req)
	}, func() (*holdfastv1.RemovePeerResponse, error) {
		if err := s.store.RemovePeer(ctx, id); err != nil {
			return nil, membershipError("remove peer "+id, err)
		}
		return &holdfastv1.RemovePeerResponse{}, s.forgetMachine(ctx, id)
	})
}

// forgetMachine deletes the record of a peer that was removed.
func (s clusterService) forgetMachine(ctx context.Context, id string) error {
	_, err := s.transact(ctx, "remove the record of peer "+id, "remove peer", false, func(view raftstore.View) (change, error) {
		var c change
		if _, ok := view.Get(machineKey(pki.RolePeer, id)); ok {
			c.ops = append(c.ops, raftstore.Delete(machineKey(pki.RolePeer, id)))
		}
		return c, nil
	})
	if err == nil {
		s.log.Info("peer removed", "peer", id, "caller", actor(ctx))
	}
	return err
}

// PromotePeer gives a learner a vote.
func (s clusterService) PromotePeer(ctx context.Context, req *holdfastv1.PromotePeerRequest) (*holdfastv1.PromotePeerResponse, error) {
	id := req.GetId()
	promotable := func(status raftstore.Status) error {
		if req.GetForce() {
			return nil
		}
		return s.promotable(status, id)
	}
	return lead(ctx, s, id, promotable, func(client holdfastv1connect.ClusterServiceClient) (*holdfastv1.PromotePeerResponse, error) {
		return client.PromotePeer(ctx, req)
	}, func() (*holdfastv1.PromotePeerResponse, error) {
		if err := s.store.PromotePeer(ctx, id); err != nil {
			return nil, membershipError("promote peer "+id, err)
		}
		s.log.Info("peer promoted", "peer", id, "caller", actor(ctx))
		return &holdfastv1.PromotePeerResponse{}, nil
	})
}

// promotable refuses an even number of voters, of which no more may fail than of one
// less, while more must agree; unless one of them is dead and about to be removed.
func (s clusterService) promotable(status raftstore.Status, id string) error {
	voters := 0
	for _, p := range status.Peers {
		if !p.Voter {
			continue
		}
		if p.ID == id {
			return nil
		}
		voters++
		if alive, known := s.alive(p.ID, pki.RolePeer); known && !alive && p.ID != s.cfg.PeerID {
			return nil
		}
	}
	if voters%2 == 0 || voters == 1 {
		return nil
	}
	return connect.Errorf(connect.CodeFailedPrecondition,
		"%d voters survive the loss of %d, as %d do, and %d instead of %d must agree to each write. With one more learner the cluster goes to %d voters by itself; --force promotes %s all the same",
		voters+1, voters/2, voters, (voters+1)/2+1, voters/2+1, voters+2, id)
}

// DemotePeer takes a peer's vote.
func (s clusterService) DemotePeer(ctx context.Context, req *holdfastv1.DemotePeerRequest) (*holdfastv1.DemotePeerResponse, error) {
	id := req.GetId()
	removable := func(status raftstore.Status) error { return s.removable(status, id) }
	return lead(ctx, s, id, removable, func(client holdfastv1connect.ClusterServiceClient) (*holdfastv1.DemotePeerResponse, error) {
		return client.DemotePeer(ctx, req)
	}, func() (*holdfastv1.DemotePeerResponse, error) {
		if err := s.store.DemotePeer(ctx, id); err != nil {
			return nil, membershipError("demote peer "+id, err)
		}
		s.log.Info("peer demoted", "peer", id, "caller", actor(ctx))
		return &holdfastv1.DemotePeerResponse{}, nil
	})
}

// ReplacePeer puts a learner into a peer's place.
func (s clusterService) ReplacePeer(ctx context.Context, req *holdfastv1.ReplacePeerRequest) (*holdfastv1.ReplacePeerResponse, error) {
	id, successor := req.GetId(), req.GetSuccessor()
	replaceable := func(status raftstore.Status) (err error) {
		if req.GetSuccessor() == "" {
			successor, err = s.bestLearner(ctx, id)
		} else if !slices.ContainsFunc(status.Peers, func(p raftstore.PeerInfo) bool { return p.ID == successor }) {
			err = connect.Errorf(connect.CodeNotFound, "no peer is called %s", successor)
		}
		return err
	}
	return lead(ctx, s, id, replaceable, func(client holdfastv1connect.ClusterServiceClient) (*holdfastv1.ReplacePeerResponse, error) {
		return client.ReplacePeer(ctx, req)
	}, func() (*holdfastv1.ReplacePeerResponse, error) {
		if err := s.store.ReplacePeer(ctx, id, successor); err != nil {
			return nil, membershipError("replace peer "+id, err)
		}
		s.log.Info("peer replaced", "peer", id, "by", successor, "caller", actor(ctx))
		return &holdfastv1.ReplacePeerResponse{Successor: successor}, s.forgetMachine(ctx, id)
	})
}

// bestLearner returns the learner, other than the peer to be replaced, that has the
// most of the log.
func (s clusterService) bestLearner(ctx context.Context, replaced string) (id string, err error) {
	most := uint64(0)
	for _, p := range s.store.Peers(ctx) {
		if !p.Voter && p.ID != replaced && p.Err == nil && p.LastIndex >= most {
			id, most = p.ID, p.LastIndex
		}
	}
	if id == "" {
		return "", connect.Errorf(connect.CodeFailedPrecondition,
			"there is no learner to take the place of peer %s: join one (`holdfast peer add --learner` says how), then try again", replaced)
	}
	return id, nil
}

// TransferLeadership makes another voter lead.
func (s clusterService) TransferLeadership(ctx context.Context, req *holdfastv1.TransferLeadershipRequest) (*holdfastv1.TransferLeadershipResponse, error) {
	id := req.GetId()
	status := s.store.Status()
	if id != "" && status.Leader == id {
		return &holdfastv1.TransferLeadershipResponse{Leader: id}, nil
	}
	if status.Leader != s.cfg.PeerID {
		return passOn(ctx, s, status.Leader, func(client holdfastv1connect.ClusterServiceClient) (*holdfastv1.TransferLeadershipResponse, error) {
			return client.TransferLeadership(ctx, req)
		})
	}
	if err := s.store.TransferLeadership(ctx, id); err != nil {
		return nil, membershipError("transfer the leadership", err)
	}
	// The peer that leads now may not be known yet: it is for people.
	ctx, cancel := context.WithTimeout(ctx, waitTimeout)
	defer cancel()
	for {
		changed := s.store.LeaderChanged()
		leader, _ := s.store.Leader()
		if leader != "" {
			s.log.Info("leadership transferred", "to", leader, "caller", actor(ctx))
			return &holdfastv1.TransferLeadershipResponse{Leader: leader}, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, connect.NewError(connect.CodeUnavailable, "the leadership was handed over, and no new leader is known yet")
		}
	}
}

// lead does a change of the member called id on the leader: here, or by passing the
// call on. A leader that the change is about hands its leadership over first, so
// that the change does not take away the ground under it. allowed, if not nil, may
// refuse before anything is done.
func lead[T any](ctx context.Context, s clusterService, id string, allowed func(raftstore.Status) error, remote func(holdfastv1connect.ClusterServiceClient) (*T, error), here func() (*T, error)) (*T, error) {
	if id == "" {
		return nil, badRequest("id", "is empty: say which peer")
	}
	caller, _ := identityFrom(ctx)
	deadline := time.NewTimer(waitTimeout)
	defer deadline.Stop()
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		resp, err := leadOnce(ctx, s, id, allowed, remote, here)
		// The peer that the caller asked goes on; one that got the call from it does not.
		if connect.CodeOf(err) != connect.CodeUnavailable || caller.Role == pki.RolePeer {
			return resp, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-deadline.C:
			return nil, err
		case <-retry.C:
		}
	}
}

func leadOnce[T any](ctx context.Context, s clusterService, id string, allowed func(raftstore.Status) error, remote func(holdfastv1connect.ClusterServiceClient) (*T, error), here func() (*T, error)) (*T, error) {
	status := s.store.Status()
	if status.Leader != s.cfg.PeerID {
		if caller, _ := identityFrom(ctx); caller.Role == pki.RolePeer {
			return nil, connect.NewError(connect.CodeUnavailable, "the leader has changed; nothing was changed, retry")
		}
		return passOn(ctx, s, status.Leader, remote)
	}
	if !slices.ContainsFunc(status.Peers, func(p raftstore.PeerInfo) bool { return p.ID == id }) {
		return nil, connect.Errorf(connect.CodeNotFound, "no peer is called %s", id)
	}
	if allowed != nil {
		if err := allowed(status); err != nil {
			return nil, err
		}
	}
	if id != s.cfg.PeerID {
		return here()
	}
	if err := s.store.TransferLeadership(ctx, ""); err != nil {
		return nil, membershipError("hand over the leadership of peer "+id, err)
	}
	return nil, connect.Errorf(connect.CodeUnavailable, "peer %s has handed over its leadership, since the change is about itself; retry", id)
}

// passOn has the leader answer.
func passOn[T any](ctx context.Context, s clusterService, leader string, remote func(holdfastv1connect.ClusterServiceClient) (*T, error)) (*T, error) {
	client, err := s.leader(ctx, leader)
	if err != nil {
		return nil, err
	}
	resp, err := remote(holdfastv1connect.NewClusterServiceClient(client))
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
