package apiserver

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// leaderKey holds who leads. A leader writes it before its controllers begin, and so
// before it counts how long a node has been silent. Whoever reads, linearizably, its
// own name there knows that no other leader had begun to count when the reading
// began: what it heard before that, it may grant.
const leaderKey = "holdfast/leader"

// leaderRecord is what is under leaderKey.
type leaderRecord struct {
	Peer string `json:"peer"`
	Term uint64 `json:"term"`
}

// beginReign writes leaderKey.
func (s *Server) beginReign(ctx context.Context, leader *raftstore.Leader) error {
	record := leaderRecord{s.cfg.PeerID, leader.Term()}
	if have, ok := leaderIn(leader.View()); ok && have == record {
		return nil
	}
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	_, err = leader.Txn(ctx, raftstore.Txn{
		Then:   []raftstore.Op{raftstore.Put(leaderKey, data)},
		Actor:  "peer",
		Reason: fmt.Sprintf("%s leads in term %d", s.cfg.PeerID, leader.Term()),
	})
	return err
}

func leaderIn(view raftstore.View) (record leaderRecord, ok bool) {
	kv, ok := view.Get(leaderKey)
	return record, ok && json.Unmarshal(kv.Value, &record) == nil
}

// grantable returns the nodes of beats, all of which are in this peer's table already,
// whose leases it may renew: it leads, and they are not given up. A node that is gets
// its lease back only after the transaction that takes it back; and what is decided
// against a node that is given up is conditional on it staying so.
func (s *Server) grantable(ctx context.Context, beats []*peerv1.NodeHeartbeat) (nodes []string, err error) {
	view, err := s.store.Sync(ctx)
	if err != nil {
		return nil, err
	}
	if record, ok := leaderIn(view); !ok || record.Peer != s.cfg.PeerID {
		return nil, nil
	}
	for _, beat := range beats {
		node, ok := object.Get[*corev1.Node](view, nodeResource.Key("", beat.GetNode()))
		if ok && beat.GetSentAt() > 0 && !object.NodeConvicted(node) {
			nodes = append(nodes, beat.GetNode())
		}
	}
	return nodes, nil
}
