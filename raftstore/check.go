package raftstore

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
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
	hash, ok = view.at.root.HashAt(index)
	return hash, ok, nil
}

// Replicas that a bug drove apart are each sound by themselves. So the leader puts
// its state hash into the log now and then, and each replica compares. An entry that
// differs does not tell who is wrong, as the leader may be; so a replica that
// differs asks all voters for theirs, and whoever is asked and differs asks, too.
const (
	// checkEvery is the least time between two checks.
	checkEvery = 10 * time.Second
	// checkAfter is how long after a change a check waits for further ones. Nothing
	// follows a check but the next change: an idle cluster appends nothing.
	checkAfter = 5 * time.Second
)

// proposeChecks is a leader's work: a check after changes.
func (s *Store) proposeChecks(ctx context.Context, _ *Leader) error {
	checked := s.current.Load().root.Revision()
	last := time.Now().Add(-checkEvery)
	for {
		for at := s.current.Load(); at.root.Revision() == checked; at = s.current.Load() {
			select {
			case <-at.revised:
			case <-ctx.Done():
				return nil
			}
		}
		if !rest(ctx, max(checkAfter, checkEvery-time.Since(last))) {
			return nil
		}
		root := s.current.Load().root
		hash := root.Hash()
		checked, last = root.Revision(), time.Now()
		// Nobody waits for it: a disk that hangs would keep this from ending. If it
		// fails, a leader checks after the next change.
		s.raft.ApplyLog(raft.Log{Data: encodeCommand(&raftv1.Command{Op: &raftv1.Command_HashCheck{
			HashCheck: &raftv1.HashCheck{Index: root.Index(), Hash: hash[:], Proposer: s.cfg.ID},
		}}, s.cfg.Faults.Now())}, roundTimeout)
	}
}

// hashChecked learns what applying a check found. It does not block.
func (s *Store) hashChecked(c mvcc.CheckResult) {
	if c.Known && !c.Equal {
		s.doubt(c.Index)
	}
}

// doubt has judge look at an entry.
func (s *Store) doubt(index uint64) {
	select {
	case s.doubts <- index:
	default: // it is at it
	}
}

// judge finds out, whenever there is doubt, which replicas are wrong, and asks again
// until they are not: a replica that was restarted is sound, and the alarm about it of
// the past.
func (s *Store) judge(ctx context.Context) {
	var wrong []string
	for {
		var again <-chan time.Time
		if len(wrong) > 0 {
			again = time.After(checkEvery)
		}
		select {
		case index := <-s.doubts:
			wrong = s.judgeAt(ctx, index, wrong)
		case <-again:
			index := s.current.Load().root.Index()
			if !rest(ctx, roundTimeout) { // so that the others have it
				return
			}
			wrong = s.judgeAt(ctx, index, wrong)
		case <-ctx.Done():
			return
		}
	}
}

// judgeAt compares the state hashes of all voters at an entry. A majority of the
// voters is right: what it holds is what is read and acknowledged. Without one,
// nobody can say who is right; all say so and go on to serve, since stopping would
// turn a doubt into an outage. It returns the members that are wrong, or were and do
// not say that they are not.
func (s *Store) judgeAt(ctx context.Context, index uint64, before []string) (wrong []string) {
	mine, ok := s.current.Load().root.HashAt(index)
	if !ok {
		return before
	}
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	conf := s.configuration()
	have := make(map[string]mvcc.Hash) // by peer
	var mu sync.Mutex
	var asking sync.WaitGroup
	for _, server := range conf.Servers {
		id := string(server.ID)
		if id == s.cfg.ID {
			continue
		}
		asking.Go(func() {
			client, err := s.cfg.Remote(id)
			if err != nil {
				return
			}
			desc, err := client.Describe(ctx, &peerv1.DescribeRequest{Caller: s.cfg.ID, Index: index, Hash: mine[:]})
			if err != nil || len(desc.GetHashAt()) != len(mine) {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			have[id] = mvcc.Hash(desc.GetHashAt())
		})
	}
	asking.Wait()
	have[s.cfg.ID] = mine
	votes := make(map[mvcc.Hash]int)
	for id, hash := range have {
		if isVoter(conf, id) {
			votes[hash]++
		}
	}
	differ := false
	for _, server := range conf.Servers {
		id := string(server.ID)
		theirs, said := have[id]
		differ = differ || said && theirs != mine
		if said && theirs != mine || !said && slices.Contains(before, id) {
			wrong = append(wrong, id)
		}
	}
	slices.Sort(wrong)
	if len(wrong) == 0 {
		s.alarms.clear(alarmDiverged)
	}
	if !differ {
		return wrong
	}
	for hash, n := range votes {
		if n <= voters(conf)/2 {
			continue
		}
		if hash != mine {
			s.quarantine(fmt.Sprintf("at entry %d it has the state hash %x, and the majority has %x", index, mine, hash))
			return nil
		}
		s.alarms.raise(alarmDiverged, fmt.Sprintf("peers %v have another state than the majority at entry %d: they are quarantined and must be restarted", wrong, index))
		return wrong
	}
	s.alarms.raise(alarmDiverged, fmt.Sprintf("at entry %d the peers' states differ, and no majority agrees on one: take a backup of each peer (holdfast backup --local --peer) before anything else", index))
	return wrong
}

const alarmDiverged = "diverged"
