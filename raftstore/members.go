package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
)

// changeTimeout bounds one change of raft's configuration.
const changeTimeout = 10 * time.Second

// AddPeer makes the peer called id, reached at address, part of raft: a learner
// first, so that it cannot hold up commits while it has nothing, and a voter once
// it has caught up. It returns when the peer votes. For a peer that is known
// already it does what is left to do, the address included; so it can be repeated.
// Only the leader does it, others return ErrNotLeader. If ctx ends while the peer
// catches up, it stays a learner.
func (s *Store) AddPeer(ctx context.Context, id, address string) error {
	if id == "" || address == "" {
		return errors.New("add peer: it needs an id and an address")
	}
	release, err := s.beginChange(ctx)
	if err != nil {
		return fmt.Errorf("add peer %s: %w", id, err)
	}
	defer release()
	rid, raddr := raft.ServerID(id), raft.ServerAddress(address)
	var known *raft.Server
	for _, server := range s.configuration().Servers {
		if server.ID == rid {
			known = &server
		} else if server.Address == raddr {
			return fmt.Errorf("add peer %s: peer %s already has the address %s", id, server.ID, address)
		}
	}
	switch {
	case known != nil && known.Suffrage == raft.Voter && known.Address == raddr:
		return nil
	case known != nil && known.Suffrage == raft.Voter:
		return s.change("update address of peer", id, s.raft.AddVoter(rid, raddr, 0, changeTimeout))
	case known == nil || known.Address != raddr:
		if err := s.change("add learner", id, s.raft.AddNonvoter(rid, raddr, 0, changeTimeout)); err != nil {
			return err
		}
	}
	if err := s.waitCaughtUp(ctx, id); err != nil {
		return fmt.Errorf("add peer %s: it stays a learner for now: %w", id, err)
	}
	return s.change("promote peer", id, s.raft.AddVoter(rid, raddr, 0, changeTimeout))
}

// RemovePeer takes the peer called id out of raft for ever. It refuses when the
// voters that remain, and can be reached, would be no majority of themselves. Only
// the leader does it, others return ErrNotLeader. An unknown id is no error.
func (s *Store) RemovePeer(ctx context.Context, id string) error {
	release, err := s.beginChange(ctx)
	if err != nil {
		return fmt.Errorf("remove peer %s: %w", id, err)
	}
	defer release()
	conf := s.configuration()
	var rest, alive []string
	known := false
	for _, server := range conf.Servers {
		switch {
		case string(server.ID) == id:
			known = true
		case server.Suffrage == raft.Voter:
			rest = append(rest, string(server.ID))
		}
	}
	if !known {
		return nil
	}
	if isVoter(conf, id) {
		for _, voter := range rest {
			if s.answers(ctx, voter) {
				alive = append(alive, voter)
			}
		}
		if len(alive) <= len(rest)/2 {
			return fmt.Errorf("remove peer %s: refused: of the %d voters that would remain %v only %d can be reached, which is no majority; bring others back, or add one, first", id, len(rest), rest, len(alive))
		}
	}
	return s.change("remove peer", id, s.raft.RemoveServer(raft.ServerID(id), 0, changeTimeout))
}

// beginChange waits for its turn, as one change of members must follow the other.
func (s *Store) beginChange(ctx context.Context) (release func(), err error) {
	select {
	case s.membership <- struct{}{}:
		release = func() { <-s.membership }
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another change of members: %w", context.Cause(ctx))
	}
	if r := s.reign.Load(); r.leader == nil {
		release()
		return nil, ErrNotLeader
	}
	return release, nil
}

// change waits for a change of raft's configuration.
func (s *Store) change(what, id string, future raft.IndexFuture) error {
	err := future.Error()
	switch {
	case err == nil:
		s.log.Info("members changed", "change", what, "id", id)
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		err = ErrNotLeader
	case errors.Is(err, raft.ErrEnqueueTimeout):
		err = fmt.Errorf("the change before is not committed after %v", changeTimeout)
	case errors.Is(err, raft.ErrLeadershipLost):
		err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return fmt.Errorf("%s %s: %w", what, id, err)
}

// waitCaughtUp returns once the peer called id has committed what was committed
// here when the question was asked.
func (s *Store) waitCaughtUp(ctx context.Context, id string) error {
	retry := newBackoff()
	for {
		var last error
		target := s.raft.CommitIndex()
		index, err := s.commitOf(ctx, id)
		switch {
		case err != nil:
			last = fmt.Errorf("it does not answer: %w", err)
		case index >= target:
			return nil
		default:
			last = fmt.Errorf("it has %d of %d entries", index, target)
		}
		reign := s.reign.Load()
		if reign.leader == nil {
			return ErrNotLeader
		}
		again, stop := retry.timer(true)
		select {
		case <-again:
		case <-reign.changed:
		case <-ctx.Done():
			stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		case <-s.stopped:
			stop()
			return ErrClosed
		}
		stop()
	}
}

func (s *Store) commitOf(ctx context.Context, id string) (uint64, error) {
	if id == s.cfg.ID {
		return s.raft.CommitIndex(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	client, err := s.cfg.Remote(id)
	if err != nil {
		return 0, err
	}
	resp, err := client.ReadIndex(ctx, &peerv1.ReadIndexRequest{})
	return resp.GetCommitIndex(), err
}

func (s *Store) answers(ctx context.Context, id string) bool {
	_, err := s.commitOf(ctx, id)
	return err == nil
}

// updateOwnAddress puts this peer's address into raft's configuration, if it has
// moved since it was written there.
func (s *Store) updateOwnAddress(l *Leader) {
	for _, server := range s.configuration().Servers {
		if string(server.ID) != s.cfg.ID || string(server.Address) == s.cfg.Address || server.Suffrage != raft.Voter {
			continue
		}
		ctx, cancel := context.WithTimeout(l.ctx, changeTimeout)
		defer cancel()
		if err := s.AddPeer(ctx, s.cfg.ID, s.cfg.Address); err != nil {
			s.log.Warn("own address not updated in raft's configuration", "err", err)
		}
	}
}
