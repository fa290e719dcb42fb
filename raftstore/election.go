package raftstore

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
)

// Raft's follower looks only every one to two heartbeat timeouts whether its leader
// is silent, by a timer of its own that contact does not reset: it can take three
// timeouts to notice, and both followers of a three-peer cluster must. So the store
// watches the silence itself and makes raft look at the right moment, one to one and
// a half timeouts after the last contact. That halves the time without a leader and
// leaves the timeout, and with it the tolerance of pauses, as it is.

// nudgeStep is by how much nudge lowers the heartbeat timeout for a moment.
const nudgeStep = time.Millisecond

// nudge makes a follower check now whether its leader has been silent for too long.
// Raft does so whenever its heartbeat timeout is lowered.
func (s *Store) nudge() {
	s.reload(func(c *raft.ReloadableConfig) { c.HeartbeatTimeout = s.cfg.HeartbeatTimeout })
	s.reload(func(c *raft.ReloadableConfig) { c.HeartbeatTimeout = s.cfg.HeartbeatTimeout - nudgeStep })
}

// watchSilence nudges raft when its leader has been silent for long enough, and at
// once when there is nobody to wait for, until ctx ends.
func (s *Store) watchSilence(ctx context.Context) {
	if conf := s.configuration(); voters(conf) == 1 && isVoter(conf, s.cfg.ID) {
		s.nudge()
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		leader := s.leader.Load()
		if leader.id == "" || leader.id == s.cfg.ID {
			select {
			case <-leader.changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		// Followers must not all look at the same moment, or they divide the vote.
		limit := s.cfg.HeartbeatTimeout + rand.N(s.cfg.HeartbeatTimeout/2)
		contact := s.raft.LastContact()
		if contact.IsZero() {
			contact = time.Now()
		}
		timer.Reset(time.Until(contact.Add(limit)))
		select {
		case <-timer.C:
			if !s.raft.LastContact().After(contact) {
				s.nudge()
				// It leads to a change of leader, or the contact came just now.
				timer.Reset(s.cfg.HeartbeatTimeout)
				select {
				case <-leader.changed:
				case <-timer.C:
				case <-ctx.Done():
					return
				}
			}
		case <-leader.changed:
		case <-ctx.Done():
			return
		}
	}
}

func voters(conf raft.Configuration) (n int) {
	for _, server := range conf.Servers {
		if server.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}

func isVoter(conf raft.Configuration, id string) bool {
	for _, server := range conf.Servers {
		if string(server.ID) == id {
			return server.Suffrage == raft.Voter
		}
	}
	return false
}
