package raftstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/types/known/durationpb"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// changeTimeout bounds one change of raft's configuration, and the wait for a peer
// that is to be added to answer.
const changeTimeout = 10 * time.Second

// What the store itself remembers of peers, beside raft's configuration. These keys
// belong to no object and to no user.
const (
	// RemovedPrefix and an id is there, for ever, from the moment on that the peer
	// called so is to be removed: an id is used once. Who votes under an id must
	// know all that was ever voted and acknowledged under it, and nobody can tell
	// whether a machine that returns does.
	RemovedPrefix = "system/peers/removed/"
	// learnerPrefix and an id is there while the peer is to stay a learner.
	learnerPrefix = "system/peers/learner/"
)

// peerNote is the value of those keys.
type peerNote struct {
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"` // the proposing leader's clock; for people
}

// Removed reports whether a peer called id was removed from the cluster, as v has
// it. Such an id is never taken again.
func Removed(v View, id string) bool {
	_, ok := v.Get(RemovedPrefix + id)
	return ok
}

// instanceKey is where the stable store has the disk's instance: beside the votes,
// since it vouches for them.
var instanceKey = []byte("HoldfastInstance")

// identify reads the disk's instance, or makes one, and finds out whether the disk
// has any state. It refuses a disk that has lost its votes and kept its log.
func (s *Store) identify() error {
	has, err := raft.HasExistingState(s.logs, s.stable, s.snapshotDB)
	if err != nil {
		return fmt.Errorf("read the state in %s: %w", s.place(), err)
	}
	s.blank.Store(!has)
	// The library has a term of 0 for one that is not there.
	if term, _ := s.stable.GetUint64([]byte("CurrentTerm")); has && term == 0 {
		return fmt.Errorf("%w: %s has entries and no votes", ErrForeignDisk, s.place())
	}
	if data, err := s.stable.Get(instanceKey); err == nil && len(data) > 0 {
		s.instance = string(data)
		return nil
	}
	var id [8]byte
	rand.Read(id[:])
	s.instance = hex.EncodeToString(id[:])
	return s.stable.Set(instanceKey, []byte(s.instance))
}

// Instance tells this peer's disk from every other: random, made with it. The
// cluster takes no other disk for this peer's once it has become a member.
func (s *Store) Instance() string { return s.instance }

// Joiner is a peer that is to become part of raft.
type Joiner struct {
	// ID is the peer's, Address the host:port of its raft. Required.
	ID, Address string
	// Instance is what the peer's Store.Instance returns. Optional: it is asked.
	Instance string
	// Learner keeps the peer from getting a vote by itself.
	Learner bool
}

// Admit makes a peer part of raft as a learner: it gets the log, has no vote, and
// costs the cluster nothing should it fail. The autopilot gives it a vote later,
// unless j.Learner says not to. For a member, Admit writes down its present address
// and nothing else; so it can be repeated. It returns ErrPeerRemoved for an id that
// was removed once, ErrForeignDisk for a member that comes with another disk. Only
// the leader does it, others return ErrNotLeader.
func (s *Store) Admit(ctx context.Context, j Joiner) error {
	if j.ID == "" || j.Address == "" {
		return errors.New("add peer: it needs an id and an address")
	}
	if other := s.memberAt(j.Address); other != "" && other != j.ID && !s.isMember(j.ID) {
		return fmt.Errorf("add peer %s: peer %s already has the address %s", j.ID, other, j.Address)
	}
	if j.Instance == "" {
		desc, err := s.waitDescribe(ctx, j.ID)
		if err != nil {
			return fmt.Errorf("add peer %s: it does not say which disk it has; is it running? %w", j.ID, err)
		}
		j.Instance = desc.GetInstance()
	}
	c, err := s.beginChange(ctx)
	if err != nil {
		return fmt.Errorf("add peer %s: %w", j.ID, err)
	}
	defer c.end()
	if Removed(s.View(), j.ID) {
		return fmt.Errorf("add peer %s: %w", j.ID, ErrPeerRemoved)
	}
	known, ok := c.member(j.ID)
	if !ok {
		if j.Learner {
			if err := c.note(ctx, learnerPrefix+j.ID, "added as a learner"); err != nil {
				return fmt.Errorf("add peer %s: %w", j.ID, err)
			}
		}
		return c.apply(ctx, "add learner", j.ID, func() raft.IndexFuture {
			return s.raft.AddNonvoter(raft.ServerID(j.ID), withInstance(j.Address, j.Instance), c.index, changeTimeout)
		})
	}
	address, instance := splitInstance(known.Address)
	if instance != j.Instance {
		// A configuration that somebody wrote to recover the cluster knows no
		// instances. The leader may add its own: its log won the election.
		if instance != "" {
			return fmt.Errorf("add peer %s: %w: it has disk %s, and the cluster knows disk %s", j.ID, ErrForeignDisk, j.Instance, instance)
		}
		if j.ID != s.cfg.ID {
			j.Instance = ""
		}
	}
	if string(address) == j.Address && instance == j.Instance {
		return nil
	}
	return c.apply(ctx, "update address of peer", j.ID, func() raft.IndexFuture {
		add := s.raft.AddNonvoter
		if known.Suffrage == raft.Voter {
			add = s.raft.AddVoter
		}
		return add(known.ID, withInstance(j.Address, j.Instance), c.index, changeTimeout)
	})
}

// AddPeer is Admit and then PromotePeer: it returns once the peer called id, reached
// at address, votes. If ctx ends while the peer catches up, it stays a learner.
func (s *Store) AddPeer(ctx context.Context, id, address string) error {
	if err := s.Admit(ctx, Joiner{ID: id, Address: address}); err != nil {
		return err
	}
	return s.PromotePeer(ctx, id)
}

// PromotePeer gives the learner called id a vote, once it has caught up. It refuses
// when the voters would then be too many for those that can be reached. For a voter
// it does nothing. Only the leader does it, others return ErrNotLeader.
func (s *Store) PromotePeer(ctx context.Context, id string) error {
	if isVoter(s.configuration(), id) {
		return nil
	}
	if !s.isMember(id) {
		return fmt.Errorf("promote peer %s: %w", id, ErrNoPeer)
	}
	if err := s.waitCaughtUp(ctx, id); err != nil {
		return fmt.Errorf("promote peer %s: it stays a learner for now: %w", id, err)
	}
	c, err := s.beginChange(ctx)
	if err != nil {
		return fmt.Errorf("promote peer %s: %w", id, err)
	}
	defer c.end()
	server, ok := c.member(id)
	if !ok {
		return fmt.Errorf("promote peer %s: %w", id, ErrNoPeer)
	}
	if server.Suffrage == raft.Voter {
		return nil
	}
	if Removed(s.View(), id) {
		return fmt.Errorf("promote peer %s: %w", id, ErrPeerRemoved)
	}
	voters := append(c.votersBut(id), id)
	if err := s.enough(ctx, voters); err != nil {
		return fmt.Errorf("promote peer %s: %w", id, err)
	}
	if err := c.forget(ctx, learnerPrefix+id); err != nil {
		return fmt.Errorf("promote peer %s: %w", id, err)
	}
	return c.apply(ctx, "promote peer", id, func() raft.IndexFuture {
		return s.raft.AddVoter(server.ID, server.Address, c.index, changeTimeout)
	})
}

// DemotePeer takes the vote of the peer called id, which stays a learner until
// PromotePeer. It refuses as RemovePeer does. For a learner it only sees to it that
// it stays one. Only the leader does it, others return ErrNotLeader.
func (s *Store) DemotePeer(ctx context.Context, id string) error {
	c, err := s.beginChange(ctx)
	if err != nil {
		return fmt.Errorf("demote peer %s: %w", id, err)
	}
	defer c.end()
	server, ok := c.member(id)
	if !ok {
		return fmt.Errorf("demote peer %s: %w", id, ErrNoPeer)
	}
	if server.Suffrage == raft.Voter {
		if err := s.enough(ctx, c.votersBut(id)); err != nil {
			return fmt.Errorf("demote peer %s: %w", id, err)
		}
	}
	if err := c.note(ctx, learnerPrefix+id, "demoted"); err != nil {
		return fmt.Errorf("demote peer %s: %w", id, err)
	}
	if server.Suffrage != raft.Voter {
		return nil
	}
	return c.apply(ctx, "demote peer", id, func() raft.IndexFuture {
		return s.raft.DemoteVoter(server.ID, c.index, changeTimeout)
	})
}

// RemovePeer takes the peer called id out of raft for ever: no peer is ever called
// so again. It refuses when the voters that remain, and can be reached, would be no
// majority of themselves. Only the leader does it, others return ErrNotLeader. An
// unknown id is no error. If it fails half way, the leader of the moment finishes
// it.
func (s *Store) RemovePeer(ctx context.Context, id string) error {
	return s.removePeer(ctx, id, "removed by an administrator")
}

func (s *Store) removePeer(ctx context.Context, id, reason string) error {
	c, err := s.beginChange(ctx)
	if err != nil {
		return fmt.Errorf("remove peer %s: %w", id, err)
	}
	defer c.end()
	server, ok := c.member(id)
	if !ok {
		return nil
	}
	if server.Suffrage == raft.Voter {
		if err := s.enough(ctx, c.votersBut(id)); err != nil {
			return fmt.Errorf("remove peer %s: %w", id, err)
		}
	}
	// First this: a peer that is out, and whose id is free, could come back empty.
	if err := c.note(ctx, RemovedPrefix+id, reason); err != nil {
		return fmt.Errorf("remove peer %s: %w", id, err)
	}
	if err := c.forget(ctx, learnerPrefix+id); err != nil {
		return fmt.Errorf("remove peer %s: %w", id, err)
	}
	return c.apply(ctx, "remove peer", id, func() raft.IndexFuture {
		return s.raft.RemoveServer(server.ID, c.index, changeTimeout)
	})
}

// ReplacePeer lets the member called successor take the place of the one called old:
// it gets a vote, once it has caught up, and then old is removed. What is done
// already is not done again; so it can be repeated. The leader itself cannot be
// replaced, others do it once it has handed over. Errors are those of PromotePeer
// and RemovePeer; between the two, both are voters.
func (s *Store) ReplacePeer(ctx context.Context, old, successor string) error {
	switch {
	case old == successor:
		return fmt.Errorf("replace peer %s: it cannot take its own place", old)
	case old == s.cfg.ID:
		return fmt.Errorf("replace peer %s: it leads; transfer the leadership first", old)
	case !s.isMember(successor):
		return fmt.Errorf("replace peer %s by %s: %w", old, successor, ErrNoPeer)
	}
	if isVoter(s.configuration(), old) {
		if err := s.PromotePeer(ctx, successor); err != nil {
			return fmt.Errorf("replace peer %s: %w", old, err)
		}
	}
	if err := s.removePeer(ctx, old, "replaced by "+successor); err != nil {
		return fmt.Errorf("replace peer %s: %w", old, err)
	}
	return nil
}

// successor returns the voter called id, or with "" the one that is furthest along,
// if it answers and lacks no more than a message carries: the transfer must be over
// within an election timeout, and nobody can write meanwhile.
func (s *Store) successor(ctx context.Context, id string) (best raft.Server, err error) {
	conf := s.configuration()
	switch server, ok := memberOf(conf, id); {
	case id == s.cfg.ID:
		return best, fmt.Errorf("peer %s leads already", id)
	case id != "" && !ok:
		return best, fmt.Errorf("peer %s: %w", id, ErrNoPeer)
	case id != "" && server.Suffrage != raft.Voter:
		return best, fmt.Errorf("peer %s is a learner: promote it first", id)
	}
	type answer struct {
		server raft.Server
		desc   *peerv1.DescribeResponse
		err    error
	}
	asked, answers := 0, make(chan answer, len(conf.Servers))
	for _, server := range conf.Servers {
		if server.Suffrage != raft.Voter || string(server.ID) == s.cfg.ID || id != "" && string(server.ID) != id {
			continue
		}
		asked++
		go func() {
			desc, err := s.describe(ctx, string(server.ID))
			answers <- answer{server, desc, err}
		}()
	}
	if asked == 0 {
		return best, errors.New("there is no other voter")
	}
	last, most := s.raft.LastIndex(), uint64(0)
	var faults []error
	for range asked {
		a := <-answers
		have := a.desc.GetLastIndex()
		switch {
		case a.err != nil:
			faults = append(faults, fmt.Errorf("peer %s does not answer: %w", a.server.ID, a.err))
		case have+maxAppendEntries < last:
			faults = append(faults, fmt.Errorf("peer %s has %d of %d entries: wait until it has caught up", a.server.ID, have, last))
		case have >= most:
			best, most = a.server, have
		}
	}
	if best.ID == "" {
		return best, errors.Join(faults...)
	}
	return best, nil
}

// change is a change of raft's members under way. There is one at a time.
type change struct {
	s      *Store
	leader *Leader
	conf   raft.Configuration
	// index is where in the log conf stands: raft refuses the change if it is no
	// longer the newest.
	index uint64
}

// beginChange waits for its turn, as one change of members must follow the other.
func (s *Store) beginChange(ctx context.Context) (*change, error) {
	select {
	case s.membership <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another change of members: %w", context.Cause(ctx))
	}
	r, err := s.reigning(ctx)
	if err != nil {
		<-s.membership
		return nil, err
	}
	c := &change{s: s, leader: r.leader}
	future := s.raft.GetConfiguration()
	c.conf, c.index = future.Configuration(), future.Index()
	return c, nil
}

func (c *change) end() { <-c.s.membership }

func (c *change) member(id string) (raft.Server, bool) { return memberOf(c.conf, id) }

// votersBut returns the voters other than id.
func (c *change) votersBut(id string) (ids []string) {
	for _, server := range c.conf.Servers {
		if server.Suffrage == raft.Voter && string(server.ID) != id {
			ids = append(ids, string(server.ID))
		}
	}
	return ids
}

// note writes a key of the store's own, unless it is there: in the leader's term or
// not at all.
func (c *change) note(ctx context.Context, key, reason string) error {
	if _, ok := c.s.View().Get(key); ok {
		return nil
	}
	value, err := json.Marshal(peerNote{Reason: reason, Time: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return err
	}
	return c.txn(ctx, Txn{If: []Compare{Absent(key)}, Then: []Op{Put(key, value)}, Reason: reason})
}

// forget deletes a key of the store's own.
func (c *change) forget(ctx context.Context, key string) error {
	if _, ok := c.s.View().Get(key); !ok {
		return nil
	}
	return c.txn(ctx, Txn{Then: []Op{Delete(key)}, Reason: "members changed"})
}

func (c *change) txn(ctx context.Context, t Txn) error {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	t.Actor = "peer/" + c.s.cfg.ID
	_, err := c.leader.Txn(ctx, t)
	if errors.Is(err, ErrConflict) {
		return nil // it is there
	}
	return err
}

// apply makes one change of raft's configuration and waits until it is committed.
// Without a quorum it returns after changeTimeout at most, usually once this peer
// is deposed.
func (c *change) apply(ctx context.Context, what, id string, begin func() raft.IndexFuture) error {
	ctx, cancel := context.WithTimeoutCause(ctx, changeTimeout, fmt.Errorf("not committed within %v", changeTimeout))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- begin().Error() }() // ends with raft at the latest
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
	case <-c.s.stopped:
		err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrClosed)
	}
	switch {
	case err == nil:
		c.s.log.Info("members changed", "change", what, "id", id)
		select {
		case c.s.pilot.wake <- struct{}{}:
		default:
		}
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

// enough refuses a set of voters of which no majority can be reached.
func (s *Store) enough(ctx context.Context, voters []string) error {
	var alive []string
	for _, id := range voters {
		if _, err := s.describe(ctx, id); err == nil {
			alive = append(alive, id)
		}
	}
	if len(alive) > len(voters)/2 {
		return nil
	}
	return fmt.Errorf("refused: of the %d voters that there would be %v only %d can be reached, which is no majority; bring others back, or add one, first", len(voters), voters, len(alive))
}

// waitCaughtUp returns once the peer called id has committed what was committed
// here when the question was asked.
func (s *Store) waitCaughtUp(ctx context.Context, id string) error {
	retry := newBackoff()
	for {
		reign, err := s.reigning(ctx)
		if err != nil {
			return err
		}
		target := s.raft.CommitIndex()
		desc, err := s.describe(ctx, id)
		switch {
		case err != nil:
			err = fmt.Errorf("it does not answer: %w", err)
		case desc.GetCommitIndex() >= target:
			return nil
		default:
			err = fmt.Errorf("it has %d of %d entries", desc.GetCommitIndex(), target)
		}
		again, stop := retry.timer(true)
		select {
		case <-again:
		case <-reign.changed:
		case <-ctx.Done():
			stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-s.stopped:
			stop()
			return ErrClosed
		}
		stop()
	}
}

// waitDescribe is describe for a peer that may be about to start.
func (s *Store) waitDescribe(ctx context.Context, id string) (*peerv1.DescribeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	retry := newBackoff()
	for {
		if _, err := s.reigning(ctx); err != nil {
			return nil, err
		}
		desc, err := s.describe(ctx, id)
		if err == nil {
			return desc, nil
		}
		again, stop := retry.timer(true)
		select {
		case <-again:
		case <-ctx.Done():
			stop()
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-s.stopped:
			stop()
			return nil, ErrClosed
		}
		stop()
	}
}

// PeerState is how a peer's store stands, as it says itself.
type PeerState struct {
	PeerInfo
	// Err says why the peer did not answer; the rest is then empty.
	Err  error
	Term uint64
	// The peer's last entry, the last that it knows to be committed, the last that
	// Revision and Hash include.
	LastIndex, CommitIndex, AppliedIndex uint64
	Revision                             Revision
	Hash                                 [16]byte
	// Contact is how long ago the peer heard from the leader. Negative: never, or
	// it leads.
	Contact time.Duration
	// Alarms and Notes are as in Status.
	Alarms, Notes []string
}

// Peers asks all members how they stand and returns what they say, in the order of
// raft's configuration. It takes a second at most, and works without a leader.
func (s *Store) Peers(ctx context.Context) []PeerState {
	members := s.Status().Peers
	states := make([]PeerState, len(members))
	var asking sync.WaitGroup
	for i, member := range members {
		asking.Go(func() {
			state := PeerState{PeerInfo: member, Contact: -1}
			if desc, err := s.describe(ctx, member.ID); err != nil {
				state.Err = err
			} else {
				state.Term, state.Revision = desc.GetTerm(), desc.GetRevision()
				state.LastIndex, state.CommitIndex, state.AppliedIndex = desc.GetLastIndex(), desc.GetCommitIndex(), desc.GetAppliedIndex()
				copy(state.Hash[:], desc.GetHash())
				state.Alarms, state.Notes = desc.GetAlarms(), desc.GetNotes()
				if desc.GetContactAge() != nil {
					state.Contact = desc.GetContactAge().AsDuration()
				}
			}
			states[i] = state
		})
	}
	asking.Wait()
	return states
}

// describe asks a peer how its store stands; this one, too.
func (s *Store) describe(ctx context.Context, id string) (*peerv1.DescribeResponse, error) {
	if id == s.cfg.ID {
		return s.description(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	client, err := s.cfg.Remote(id)
	if err != nil {
		return nil, err
	}
	return client.Describe(ctx, &peerv1.DescribeRequest{Caller: s.cfg.ID})
}

func (s *Store) description() *peerv1.DescribeResponse {
	st := s.Status()
	desc := &peerv1.DescribeResponse{
		Id: st.ID, Instance: s.instance, Term: st.Term,
		LastIndex: st.LastIndex, CommitIndex: st.CommitIndex, AppliedIndex: st.AppliedIndex,
		Revision: st.Revision, Hash: st.Hash[:], Alarms: st.Alarms, Notes: st.Notes, Incarnation: s.Incarnation(),
	}
	if s.isReady() {
		desc.LastTerm = s.lastTerm()
	}
	if !s.isReady() || st.Leader == s.cfg.ID {
		return desc
	}
	if at := s.raft.LastContact(); !at.IsZero() {
		desc.ContactAge = durationpb.New(time.Since(at))
	}
	return desc
}

// Describe implements peerv1connect.StoreServiceHandler.
func (s service) Describe(_ context.Context, req *peerv1.DescribeRequest) (*peerv1.DescribeResponse, error) {
	if !s.started.Load() {
		return nil, connect.NewError(connect.CodeUnavailable, "the store is starting")
	}
	desc := s.description()
	desc.CallerRemoved = s.isOut(req.GetCaller())
	if hash, ok := s.current.Load().root.HashAt(req.GetIndex()); ok && req.GetIndex() != 0 {
		desc.HashAt = hash[:]
		if !bytes.Equal(hash[:], req.GetHash()) {
			s.doubt(req.GetIndex())
		}
	}
	return desc, nil
}

func memberOf(conf raft.Configuration, id string) (raft.Server, bool) {
	for _, server := range conf.Servers {
		if string(server.ID) == id {
			return server, true
		}
	}
	return raft.Server{}, false
}

func (s *Store) isMember(id string) bool {
	_, ok := memberOf(s.configuration(), id)
	return ok
}

// memberAt returns the member with an address, as raft's configuration has it.
func (s *Store) memberAt(address string) (id string) {
	for _, server := range s.configuration().Servers {
		if at, _ := splitInstance(server.Address); string(at) == address {
			return string(server.ID)
		}
	}
	return ""
}

// isOut reports whether the peer called id is removed, and that for good: a removal
// that is not committed may yet be undone, and the peer's vote be needed.
func (s *Store) isOut(id string) bool {
	if !s.isReady() || id == "" {
		return false
	}
	future := s.raft.GetConfiguration()
	if _, ok := memberOf(future.Configuration(), id); ok || future.Index() > s.raft.CommitIndex() {
		return false
	}
	return Removed(s.View(), id)
}

// configurationApplied ends the store soon after its own removal is applied: who
// still asks it for something is told first that it does not lead.
func (s *Store) configurationApplied(entry *raft.Log, root *mvcc.Root) {
	if entry.Type != raft.LogConfiguration {
		return
	}
	if _, ok := memberOf(raft.DecodeConfiguration(entry.Data), s.cfg.ID); ok {
		return
	}
	if _, removed := root.Get(RemovedPrefix+s.cfg.ID, root.Revision()); removed {
		time.AfterFunc(s.cfg.HeartbeatTimeout, func() { s.fail(ErrPeerRemoved) })
	}
}

// askWhetherRemoved ends a store whose raft is out of the configuration, as it knows
// it, and so is told nothing any more, not even that this was committed.
func (s *Store) askWhetherRemoved(ctx context.Context) {
	conf := s.configuration()
	if _, ok := memberOf(conf, s.cfg.ID); ok {
		return
	}
	for _, server := range conf.Servers {
		if desc, err := s.describe(ctx, string(server.ID)); err == nil && desc.GetCallerRemoved() {
			s.fail(fmt.Errorf("%w: peer %s says so", ErrPeerRemoved, server.ID))
			return
		}
	}
}

// updateOwnAddress puts this peer's address into raft's configuration, if it has
// moved since it was written there.
func (s *Store) updateOwnAddress(l *Leader) {
	server, ok := memberOf(s.configuration(), s.cfg.ID)
	if !ok || server.Suffrage != raft.Voter || server.Address == withInstance(s.cfg.Address, s.instance) {
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, changeTimeout)
	defer cancel()
	if err := s.Admit(ctx, Joiner{ID: s.cfg.ID, Address: s.cfg.Address, Instance: s.instance}); err != nil {
		s.log.Warn("own address not updated in raft's configuration", "err", err)
	}
}
