package apiserver

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// ackInterval is the least time between two relays of acknowledgements.
	ackInterval = 50 * time.Millisecond
	// deadAfter is how long a node may be silent and still be waited for.
	deadAfter = 3 * time.Second
	// drainTimeoutMax bounds how long a call may wait.
	drainTimeoutMax = 20 * time.Second
)

// networkAcks is which revision of the network's state the data plane of each node
// is at, as far as this peer has heard; the leader hears of all. It is in memory only,
// and safe for concurrent use.
type networkAcks struct {
	mu      sync.Mutex
	nodes   map[string]int64
	relay   map[string]bool // not yet told to the leader
	fresh   chan struct{}   // holds one token when there is something to relay
	changed chan struct{}   // closed at the next change
}

func newNetworkAcks() *networkAcks {
	return &networkAcks{nodes: make(map[string]int64), relay: make(map[string]bool), fresh: make(chan struct{}, 1), changed: make(chan struct{})}
}

func (a *networkAcks) set(node string, revision int64, relay bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if revision > a.nodes[node] {
		a.nodes[node] = revision
		close(a.changed)
		a.changed = make(chan struct{})
	}
	if relay {
		a.relay[node] = true
		a.wake()
	}
}

// wake makes the relay look. The caller holds the lock.
func (a *networkAcks) wake() {
	select {
	case a.fresh <- struct{}{}:
	default:
	}
}

// pending returns what is to be relayed: all, or what is new.
func (a *networkAcks) pending(all bool) []*peerv1.NodeAck {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []*peerv1.NodeAck
	for node, revision := range a.nodes {
		if all || a.relay[node] {
			out = append(out, &peerv1.NodeAck{Node: node, Revision: revision})
		}
	}
	clear(a.relay)
	slices.SortFunc(out, func(x, y *peerv1.NodeAck) int { return strings.Compare(x.GetNode(), y.GetNode()) })
	return out
}

// again marks what could not be relayed.
func (a *networkAcks) again(acks []*peerv1.NodeAck) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, ack := range acks {
		a.relay[ack.GetNode()] = true
	}
	a.wake()
}

// behind returns those of nodes that are not at revision, and a channel that is closed
// when that may have changed.
func (a *networkAcks) behind(nodes []string, revision int64) (missing []string, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, node := range nodes {
		if a.nodes[node] < revision {
			missing = append(missing, node)
		}
	}
	return missing, a.changed
}

// AckNetwork notes what a node's data plane is at.
func (s agentService) AckNetwork(ctx context.Context, req *agentv1.AckNetworkRequest) (*agentv1.AckNetworkResponse, error) {
	node, err := nodeName(ctx)
	if err != nil {
		return nil, err
	}
	s.acks.set(node, req.GetRevision(), true)
	return &agentv1.AckNetworkResponse{}, nil
}

// relayAcks hands the leader what this peer hears, until ctx ends. A new leader is
// told everything: it may have heard nothing.
func (s *Server) relayAcks(ctx context.Context) error {
	var told uint64 // the term of the leader that was told all
	for {
		changed := s.store.LeaderChanged()
		leader, term := s.store.Leader()
		pause := time.Duration(0)
		if leader != "" && leader != s.cfg.PeerID {
			if acks := s.acks.pending(term != told); len(acks) > 0 {
				pause = ackInterval
				if err := s.relayTo(ctx, leader, acks); err == nil {
					told = term
				} else if ctx.Err() == nil {
					pause = relayInterval
					s.acks.again(acks)
				}
			}
		}
		if pause > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			case <-changed:
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.acks.fresh:
		case <-changed:
		}
	}
}

func (s *Server) relayTo(ctx context.Context, leader string, acks []*peerv1.NodeAck) error {
	client, err := s.cfg.Dial(leader)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	_, err = peerv1connect.NewHealthServiceClient(client).RelayAcks(ctx, &peerv1.RelayAcksRequest{Nodes: acks})
	return err
}

// RelayAcks takes in what another peer has heard.
func (s healthService) RelayAcks(_ context.Context, req *peerv1.RelayAcksRequest) (*peerv1.RelayAcksResponse, error) {
	for _, ack := range req.GetNodes() {
		s.acks.set(ack.GetNode(), ack.GetRevision(), false)
	}
	return &peerv1.RelayAcksResponse{}, nil
}

// Drained asks the leader, who hears of all nodes, or answers as that.
func (s agentService) Drained(ctx context.Context, req *agentv1.DrainedRequest) (*agentv1.DrainedResponse, error) {
	ask := &peerv1.DrainedRequest{Revision: req.GetRevision(), Timeout: req.GetTimeout()}
	leader, _ := s.store.Leader()
	var (
		answer *peerv1.DrainedResponse
		err    error
	)
	switch leader {
	case "":
		return nil, connect.Errorf(connect.CodeUnavailable, "there is no leader that knows what all nodes have acknowledged")
	case s.cfg.PeerID:
		answer, err = healthService(s).Drained(ctx, ask)
	default:
		client, dialErr := s.cfg.Dial(leader)
		if dialErr != nil {
			return nil, connect.Errorf(connect.CodeUnavailable, "reach the leader, which knows what all nodes have acknowledged: %v", dialErr)
		}
		answer, err = peerv1connect.NewHealthServiceClient(client).Drained(ctx, ask)
	}
	if err != nil {
		return nil, err
	}
	return &agentv1.DrainedResponse{Missing: answer.GetMissing()}, nil
}

// Drained waits for all nodes that live. One that was silent for a while has lost its
// connections anyhow, or goes on with what it has: waiting would not help.
func (s healthService) Drained(ctx context.Context, req *peerv1.DrainedRequest) (*peerv1.DrainedResponse, error) {
	timeout := time.NewTimer(min(req.GetTimeout().AsDuration(), drainTimeoutMax))
	defer timeout.Stop()
	for {
		if leader, _ := s.store.Leader(); leader != s.cfg.PeerID {
			return nil, connect.Errorf(connect.CodeFailedPrecondition, "this peer does not lead: it has not heard of all nodes")
		}
		missing, changed := s.acks.behind(s.liveNodes(s.store.View()), req.GetRevision())
		if len(missing) == 0 {
			return &peerv1.DrainedResponse{}, nil
		}
		look := time.NewTimer(deadAfter / 3) // a node may have died meanwhile
		select {
		case <-ctx.Done():
			look.Stop()
			return nil, context.Cause(ctx)
		case <-timeout.C:
			look.Stop()
			return &peerv1.DrainedResponse{Missing: missing}, nil
		case <-changed:
		case <-look.C:
		}
		look.Stop()
	}
}

// liveNodes are the nodes that there are and that were heard of just now.
func (s *Server) liveNodes(view raftstore.View) []string {
	var live []string
	for _, node := range object.List[*corev1.Node](view, "") {
		if age, ok := s.heartbeats.Heartbeat(node.Name); ok && age < deadAfter {
			live = append(live, node.Name)
		}
	}
	return live
}
