package raftstore

import (
	"context"
	"strconv"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
)

// Vitals is how a peer's store stands.
type Vitals struct {
	Peer              string
	Incarnation, Term uint64
	// LastTerm and LastIndex are the log's last entry.
	LastTerm, LastIndex uint64
	// CommitIndex is known to be committed, AppliedIndex is in Revision and Hash.
	CommitIndex, AppliedIndex uint64
	Revision                  Revision
	Hash                      [16]byte
	Alarms                    []string
}

// Vitals returns how this peer's store stands. It needs no leader.
func (s *Store) Vitals() Vitals { return s.vitalsFrom(s.description()) }

// lastTerm returns the term of the log's last entry, which raft tells nowhere else.
func (s *Store) lastTerm() uint64 {
	term, _ := strconv.ParseUint(s.raft.Stats()["last_log_term"], 10, 64)
	return term
}

// Reach asks all other peers of raft's configuration for their vitals, for a second
// at most, and returns what came.
func (s *Store) Reach(ctx context.Context) []Vitals {
	var others []string
	for _, server := range s.configuration().Servers {
		if string(server.ID) != s.cfg.ID {
			others = append(others, string(server.ID))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	answers := make(chan *peerv1.DescribeResponse, len(others))
	for _, id := range others {
		go func() {
			desc, err := s.describe(ctx, id)
			if err != nil {
				desc = nil
			}
			answers <- desc
		}()
	}
	var out []Vitals
	for range others {
		if desc := <-answers; desc != nil {
			out = append(out, s.vitalsFrom(desc))
		}
	}
	return out
}

// vitalsFrom makes Vitals of what a peer said, and heeds the incarnation in it.
func (s *Store) vitalsFrom(r *peerv1.DescribeResponse) Vitals {
	if s.Incarnation() != 0 {
		s.superseded(r.GetIncarnation())
	}
	v := Vitals{
		Peer: r.GetId(), Incarnation: r.GetIncarnation(), Term: r.GetTerm(),
		LastTerm: r.GetLastTerm(), LastIndex: r.GetLastIndex(), CommitIndex: r.GetCommitIndex(),
		AppliedIndex: r.GetAppliedIndex(), Revision: r.GetRevision(), Alarms: r.GetAlarms(),
	}
	copy(v.Hash[:], r.GetHash())
	return v
}

// greet asks the other peers, as soon as raft runs, for the incarnation that they
// are in. A peer that was away while the cluster began anew learns of it before its
// first election, even if it and others like it are a majority of what they
// remember.
func (s *Store) greet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.HeartbeatTimeout)
	defer cancel()
	s.Reach(ctx)
}

// HashAt returns the state hash at an entry of the log, once this peer has applied
// it; false if this peer does not know it any more. It fails with ctx's error, or
// ErrClosed.
func (s *Store) HashAt(ctx context.Context, index uint64) (hash [16]byte, ok bool, err error) {
	view, err := s.waitIndex(ctx, index)
	if err != nil {
		return hash, false, err
	}
	root := view.at.root
	return root.Hash(), root.Index() == index, nil
}
