package raftstore

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
)

// The autopilot gives learners a vote, and takes dead voters out, on the leader. It
// does so by its own rules and not with hashicorp/raft-autopilot: see DESIGN.md.
const (
	autopilotInterval = 2 * time.Second
	// autopilotSoon is the interval while a young cluster waits for its voters.
	autopilotSoon = 100 * time.Millisecond
	// stableFor is how long a learner must have answered and kept up before it
	// gets a vote.
	stableFor = 10 * time.Second
	// keepsUp is how many entries a peer that keeps up may lack.
	keepsUp = 250
	// minVoters is what the autopilot leaves: with fewer, one loss stops writes.
	minVoters = 3
	// maxVoters is as many as the autopilot makes: each more makes writes slower.
	maxVoters = 5
	// alarmDeadPeer is raised for voters that are dead and cannot be replaced.
	alarmDeadPeer = "dead-peer"
)

// memberView is what the leader knows of a member.
type memberView struct {
	id    string
	voter bool
	// pinned: it is to stay a learner. removed: its removal was begun.
	pinned, removed bool
	// alive: it answers, or gossip has seen it do so.
	alive bool
	// silent is for how long it has not answered this leader's raft.
	silent time.Duration
	// stable is for how long it has answered and kept up; negative if it does not.
	stable time.Duration
}

// memberStep is what the autopilot does next: one change, or none.
type memberStep struct {
	action memberAction
	id     string
	reason string // for people
	// waits says, for each member that is not as it could be, why that is so.
	waits []string
	// dead are the voters that are dead and have no replacement.
	dead []string
	// soon: look again at once, as a young cluster gets its first voters.
	soon bool
}

type memberAction string

const (
	stepNone    memberAction = ""
	stepPromote memberAction = "promote"
	stepRemove  memberAction = "remove"
)

// planMembers decides about the members. The rules:
//
//   - A removal that was begun is finished.
//   - A learner that is stable gets a vote if that lets the cluster survive one loss
//     more (an odd number of voters), or takes the place of a dead one. To go from
//     three voters to five takes two learners. A fourth voter, with all others alive,
//     would only raise the number that must agree; somebody has to ask for it. The
//     exception is the second: from then on each write is on two disks. Up to
//     minVoters there is nothing to put at risk by haste: a learner need only have
//     caught up.
//   - A dead voter is removed if its replacement is there: if the voters are an even
//     number, which survives no more losses than one less does. At least minVoters
//     remain.
//
// A voter is dead after deadAfter without an answer to raft, unless anybody has seen
// it alive. One change at a time: the next plan begins with what came of it.
func planMembers(members []memberView, deadAfter time.Duration) memberStep {
	var dead, ready, waits []string
	voters, soon := 0, false
	for _, m := range members {
		if m.voter {
			voters++
		}
	}
	needs := stableFor
	if voters < minVoters {
		needs = 0
	}
	for _, m := range members {
		if m.removed {
			return memberStep{action: stepRemove, id: m.id, reason: "its removal was begun"}
		}
		switch {
		case m.voter && deadAfter > 0 && m.silent >= deadAfter && !m.alive:
			dead = append(dead, m.id)
		case m.voter:
		case m.pinned:
			waits = append(waits, fmt.Sprintf("%s stays a learner, as somebody wished", m.id))
		case m.stable < needs:
			soon = soon || needs == 0 && m.alive
			waits = append(waits, fmt.Sprintf("%s is not voting yet: it must have kept up for %v", m.id, needs))
		default:
			ready = append(ready, m.id)
		}
	}
	if len(ready) > 0 {
		promote := func(reason string, args ...any) memberStep {
			return memberStep{action: stepPromote, id: ready[0], reason: fmt.Sprintf(reason, args...), waits: waits, soon: true}
		}
		even := voters%2 == 0
		switch {
		case !even && len(dead) > 0:
			return promote("it takes the place of %s, which is dead", dead[0])
		case voters == 1:
			return promote("each write is then on two disks")
		case even && len(dead) == 0 && voters < maxVoters:
			return promote("%d voters survive the loss of %d, one more than %d do", voters+1, voters/2, voters)
		case !even && len(ready) > 1 && voters+2 <= maxVoters:
			return promote("with %s, %d voters survive the loss of %d", ready[1], voters+2, (voters+1)/2)
		}
	}
	if len(dead) > 0 && voters%2 == 0 && voters > minVoters {
		return memberStep{action: stepRemove, id: dead[0], reason: fmt.Sprintf("it has been dead for %v, and %d voters survive as many losses as %d", deadAfter, voters-1, voters), waits: waits}
	}
	for _, id := range dead {
		waits = append(waits, fmt.Sprintf("%s is dead and has no replacement: join a new peer, which takes its place by itself, or bring it back", id))
	}
	for _, id := range ready {
		waits = append(waits, fmt.Sprintf("%s stays a learner: one more than %d voters would survive no more losses, and more would have to agree", id, voters))
	}
	return memberStep{waits: waits, dead: dead, soon: soon}
}

// pilot is the leader's memory for the autopilot.
type pilot struct {
	wake chan struct{} // capacity 1: members changed

	mu    sync.Mutex
	waits []string // of the last plan

	leader *Leader
	since  time.Time            // when this leader began to look
	stable map[string]time.Time // since when a member answers and keeps up
}

// notes returns what the autopilot has to say; nothing on a peer that does not lead.
func (p *pilot) notes() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waits
}

// autopilot looks after the members while this peer leads, until ctx ends.
func (s *Store) autopilot(ctx context.Context) {
	timer := time.NewTimer(autopilotInterval)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.pilot.wake:
		case <-ctx.Done():
			return
		}
		l := s.reign.Load().leader
		step := memberStep{}
		if l != nil {
			if l != s.pilot.leader { // what another leader, or this one before, has seen is past
				s.pilot.leader, s.pilot.since, s.pilot.stable = l, time.Now(), make(map[string]time.Time)
			}
			step = planMembers(s.memberViews(l.ctx), s.cfg.DeadAfter)
		} else {
			s.askWhetherRemoved(ctx)
		}
		s.pilot.mu.Lock()
		s.pilot.waits = step.waits
		s.pilot.mu.Unlock()
		s.alarmDead(step.dead)
		if step.action != stepNone {
			s.carryOut(l, step)
		}
		if step.soon {
			timer.Reset(autopilotSoon)
		} else {
			timer.Reset(autopilotInterval)
		}
	}
}

// alarmDead tells people of voters that are dead and have no replacement.
func (s *Store) alarmDead(dead []string) {
	if len(dead) == 0 {
		s.alarms.clear(alarmDeadPeer)
		return
	}
	text := fmt.Sprintf("no answer from %s for %v: bring it back, or join a new peer, which takes its place", strings.Join(dead, ", "), s.cfg.DeadAfter)
	if s.alarms.raise(alarmDeadPeer, text) {
		s.log.Warn("dead peer without a replacement", "peers", dead)
	}
}

func (s *Store) carryOut(l *Leader, step memberStep) {
	ctx, cancel := context.WithTimeout(l.ctx, 2*changeTimeout)
	defer cancel()
	s.log.Info("autopilot changes the members", "action", string(step.action), "id", step.id, "reason", step.reason)
	var err error
	switch step.action {
	case stepPromote:
		err = s.PromotePeer(ctx, step.id)
	case stepRemove:
		err = s.removePeer(ctx, step.id, "autopilot: "+step.reason)
	}
	if err != nil && l.ctx.Err() == nil {
		s.log.Warn("autopilot did not change the members", "action", string(step.action), "id", step.id, "err", err)
	}
}

// memberViews gathers what the plan needs. While all members are voters that answer,
// which is nearly always, it asks nobody.
func (s *Store) memberViews(ctx context.Context) []memberView {
	conf, view, commit := s.configuration(), s.View(), s.raft.CommitIndex()
	views := make([]memberView, len(conf.Servers))
	descs := make([]*peerv1.DescribeResponse, len(conf.Servers))
	var asking sync.WaitGroup
	for i, server := range conf.Servers {
		m := memberView{id: string(server.ID), voter: server.Suffrage == raft.Voter}
		m.removed = Removed(view, m.id)
		_, m.pinned = view.Get(learnerPrefix + m.id)
		m.silent = time.Since(s.pilot.since)
		if age, ok := s.transport.contacts.age(server.ID); ok {
			m.silent = min(m.silent, age)
		}
		if m.id == s.cfg.ID {
			m.silent, m.alive = 0, true
		}
		views[i] = m
		if m.id != s.cfg.ID && (!m.voter || m.silent > 3*s.cfg.HeartbeatTimeout) {
			asking.Go(func() {
				// An error is an answer, too: the peer is not there.
				descs[i], _ = s.describe(ctx, m.id)
			})
		}
	}
	asking.Wait()
	now := time.Now()
	for i := range views {
		m := &views[i]
		m.alive = m.alive || descs[i] != nil || s.cfg.Alive(m.id)
		if descs[i] == nil || descs[i].GetCommitIndex()+keepsUp < commit {
			delete(s.pilot.stable, m.id)
			m.stable = -1
			continue
		}
		if _, ok := s.pilot.stable[m.id]; !ok {
			s.pilot.stable[m.id] = now
		}
		m.stable = now.Sub(s.pilot.stable[m.id])
	}
	return views
}
