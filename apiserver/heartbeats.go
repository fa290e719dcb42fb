package apiserver

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
)

const (
	// relayInterval is the least time between two relays to the leader. A
	// heartbeat that comes after a longer silence goes on at once, so it is in the
	// leader's table after this and one round trip at most.
	relayInterval = time.Second
	// relayTimeout bounds one relay; what it carried goes with the next again.
	relayTimeout = time.Second
	// forgetAfter is the age at which a heartbeat is dropped from the table.
	forgetAfter = time.Hour
)

// Heartbeats is the table of nodes' leases: when each node was last heard of, by
// this peer's own clock. It is in memory only, and safe for concurrent use.
type Heartbeats struct {
	mu    sync.Mutex
	nodes map[string]heartbeat
	fresh chan struct{} // holds one token when there is something to relay
}

type heartbeat struct {
	instance string    // of the agent
	at       time.Time // with its monotonic reading
	bootID   string
	sentAt   int64 // by the agent's clock
	relay    bool  // not yet told to the leader
	// granted is the latest sentAt of this start of the node that the leader has granted.
	granted int64
}

func newHeartbeats() *Heartbeats {
	return &Heartbeats{nodes: make(map[string]heartbeat), fresh: make(chan struct{}, 1)}
}

// Heartbeat returns how long ago node was last heard of, ok false if never
// within the last hour.
func (h *Heartbeats) Heartbeat(node string) (age time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	beat, ok := h.nodes[node]
	if !ok {
		return 0, false
	}
	return max(time.Since(beat.at), 0), true
}

// beat records that node was heard of age ago, with what it sent at sentAt of its
// clock. relay says that the leader should learn of it.
func (h *Heartbeats) beat(node, bootID string, sentAt int64, age time.Duration, relay bool) {
	at := time.Now().Add(-age)
	h.mu.Lock()
	defer h.mu.Unlock()
	known, ok := h.nodes[node]
	if ok && !at.After(known.at) {
		return
	}
	next := heartbeat{at: at, bootID: bootID, sentAt: sentAt, relay: relay || known.relay}
	if known.bootID == bootID {
		next.sentAt, next.granted = max(sentAt, known.sentAt), known.granted
	}
	h.nodes[node] = next
	if relay {
		h.wake()
	}
}

// forget drops what was heard of a node that is no more.
func (h *Heartbeats) forget(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.nodes, node)
}

// spoke notes which agent the last heartbeat of a node is of.
func (h *Heartbeats) spoke(node, instance string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if beat, ok := h.nodes[node]; ok {
		beat.instance = instance
		h.nodes[node] = beat
	}
}

// grant records that the leader has granted those of beats whose nodes are named.
func (h *Heartbeats) grant(beats []*peerv1.NodeHeartbeat, nodes []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range beats {
		beat, ok := h.nodes[b.GetNode()]
		if ok && beat.bootID == b.GetBootId() && slices.Contains(nodes, b.GetNode()) {
			beat.granted = max(beat.granted, b.GetSentAt())
			h.nodes[b.GetNode()] = beat
		}
	}
}

// granted returns what the node's agent may be told.
func (h *Heartbeats) granted(node, bootID string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if beat := h.nodes[node]; beat.bootID == bootID {
		return beat.granted
	}
	return 0
}

// wake makes the relay look. The caller holds the lock.
func (h *Heartbeats) wake() {
	select {
	case h.fresh <- struct{}{}:
	default:
	}
}

// pending returns the heartbeats to relay, of all nodes or of those that were
// heard of since the last call, and forgets the oldest.
func (h *Heartbeats) pending(all bool) []*peerv1.NodeHeartbeat {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*peerv1.NodeHeartbeat
	for node, beat := range h.nodes {
		age := max(now.Sub(beat.at), 0)
		if age > forgetAfter {
			delete(h.nodes, node)
			continue
		}
		if !beat.relay && !all {
			continue
		}
		beat.relay = false
		h.nodes[node] = beat
		out = append(out, &peerv1.NodeHeartbeat{Node: node, Age: durationpb.New(age), BootId: beat.bootID, SentAt: beat.sentAt, Instance: beat.instance})
	}
	slices.SortFunc(out, func(a, b *peerv1.NodeHeartbeat) int {
		if a.GetNode() < b.GetNode() {
			return -1
		}
		return 1
	})
	return out
}

// again marks heartbeats whose relay failed.
func (h *Heartbeats) again(beats []*peerv1.NodeHeartbeat) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range beats {
		if beat, ok := h.nodes[b.GetNode()]; ok {
			beat.relay = true
			h.nodes[b.GetNode()] = beat
		}
	}
	if len(beats) > 0 {
		h.wake()
	}
}

// Heartbeat renews the node's lease in this peer's table; the relay takes it to
// the leader. Nothing is written, and no leader is needed: the answer tells what the
// leader has granted so far.
func (s agentService) Heartbeat(ctx context.Context, req *agentv1.HeartbeatRequest) (*agentv1.HeartbeatResponse, error) {
	node, err := nodeName(ctx)
	if err != nil {
		return nil, err
	}
	s.heartbeats.beat(node, req.GetBootId(), req.GetSentAt(), 0, true)
	s.heartbeats.spoke(node, req.GetInstance())
	s.heard(ctx, node, req.GetInstance(), 0)
	return &agentv1.HeartbeatResponse{
		Period:    durationpb.New(s.cfg.HeartbeatPeriod),
		GrantedAt: s.heartbeats.granted(node, req.GetBootId()),
	}, nil
}

// relayHeartbeats hands the leader what this peer hears, until ctx ends: one call
// for all nodes, at most one each relayInterval. A new leader is told everything
// at once: its table may be empty.
func (s *Server) relayHeartbeats(ctx context.Context) error {
	var lastLeader string
	var lastTerm uint64
	for {
		changed := s.store.LeaderChanged()
		leader, term := s.store.Leader()
		// In a new term the leader's table may be empty, even if it led before.
		all := leader != lastLeader || term != lastTerm
		beats := []*peerv1.NodeHeartbeat(nil)
		switch leader {
		case "": // nobody to tell
			lastLeader, lastTerm = leader, term
		default:
			beats = s.heartbeats.pending(all)
		}
		var pause <-chan time.Time
		if len(beats) > 0 {
			pause = time.After(relayInterval)
			if err := s.relay(ctx, leader, beats); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				s.log.Debug("heartbeat relay failed", "leader", leader, "err", err)
				s.heartbeats.again(beats)
			} else {
				lastLeader, lastTerm = leader, term
			}
		}
		if pause != nil {
			select {
			case <-ctx.Done():
				return nil
			case <-pause:
			case <-changed:
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.heartbeats.fresh:
		case <-changed:
		}
	}
}

// relay tells the leader, which may be this peer, and takes in what it grants.
func (s *Server) relay(ctx context.Context, leader string, beats []*peerv1.NodeHeartbeat) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	if leader == s.cfg.PeerID {
		granted, err := s.grantable(ctx, beats)
		s.heartbeats.grant(beats, granted)
		return err
	}
	client, err := s.cfg.Dial(leader)
	if err != nil {
		return err
	}
	resp, err := peerv1connect.NewHealthServiceClient(client).Relay(ctx, &peerv1.RelayRequest{Peer: s.cfg.PeerID, Nodes: beats})
	if err != nil {
		return err
	}
	s.heartbeats.grant(beats, resp.GetGranted())
	return nil
}

// healthService implements peerv1connect.HealthServiceHandler.
type healthService struct{ *Server }

// Relay takes in another peer's heartbeats.
func (s healthService) Relay(ctx context.Context, req *peerv1.RelayRequest) (*peerv1.RelayResponse, error) {
	for _, beat := range req.GetNodes() {
		age := max(beat.GetAge().AsDuration(), 0)
		s.heartbeats.beat(beat.GetNode(), beat.GetBootId(), beat.GetSentAt(), age, false)
		s.heard(ctx, beat.GetNode(), beat.GetInstance(), age)
	}
	leader, _ := s.store.Leader()
	resp := &peerv1.RelayResponse{Leader: leader == s.cfg.PeerID}
	if resp.Leader {
		granted, err := s.grantable(ctx, req.GetNodes())
		if err != nil { // what it was told, it keeps
			s.log.Debug("leases not renewed", "err", err)
		}
		resp.Granted = granted
	}
	return resp, nil
}

// Locate tells whether this peer can open sessions on a node.
func (s healthService) Locate(ctx context.Context, req *peerv1.LocateRequest) (*peerv1.LocateResponse, error) {
	age, ok := s.sessions.age(req.GetNode())
	return &peerv1.LocateResponse{Connected: ok, Age: durationpb.New(age)}, nil
}
