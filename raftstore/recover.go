package raftstore

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// RevisionGap is how far the revision moves on when a cluster begins anew, from a
// backup or without its majority. The old cluster may have reached revisions that
// nobody knows of any more; none of them may come again with another meaning, or
// those who watched and cached would be wrong and could not notice. At a million
// changes a second it is more than a quarter of an hour's.
const RevisionGap = 1_000_000_000

// termGap does the same for terms, with which agents and controllers are fenced.
const termGap = 1 << 20

// RestoreOptions say whose directory Restore makes.
type RestoreOptions struct {
	// Dir is the store's directory, as in Config; it must be empty, or not exist.
	// Storage takes its place in tests.
	Dir     string
	Storage *Storage
	// ID, ClusterID and Address are as in Config. ClusterID is optional: the
	// backup's.
	ID, ClusterID, Address string
	// SeenIncarnation is the highest incarnation known beside the backup's own.
	SeenIncarnation uint64
	Logger          *slog.Logger // optional; discards
}

// Restored says what Restore or a recovery has made.
type Restored struct {
	Backup      BackupInfo // Restore only
	Incarnation uint64
	// Revision is the new cluster's: RevisionGap above the old one.
	Revision Revision
}

// Restore makes the store of a new cluster, with one voter, out of a backup. All
// earlier revisions count as compacted, so that every watch of the old cluster's
// time ends and its owner lists anew. The backup is read and checked whole before
// anything is written.
func Restore(r io.Reader, opts RestoreOptions) (Restored, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	state, info, err := readBackup(r)
	if err != nil {
		return Restored{}, err
	}
	opts.ClusterID = cmp.Or(opts.ClusterID, info.ClusterID)
	cfg := Config{ID: opts.ID, ClusterID: opts.ClusterID, Address: opts.Address, Dir: opts.Dir, Logger: opts.Logger}
	storage := opts.Storage
	if storage == nil {
		var closeFiles func() error
		if storage, closeFiles, err = openStorage(cfg); err != nil {
			return Restored{}, err
		}
		defer func() { _ = closeFiles() }() // what is written is synced
	}
	if has, err := raft.HasExistingState(storage.Logs, storage.Stable, storage.Snapshots); has || err != nil {
		return Restored{}, errors.Join(fmt.Errorf("%s already holds a cluster's state: restore into an empty directory", opts.Dir), err)
	}
	next := nextIncarnation(max(info.Incarnation, opts.SeenIncarnation))
	rev, err := beginAnew(cfg, storage, state, max(info.Index, 1), max(info.Term, 1), next)
	return Restored{Backup: info, Incarnation: next, Revision: rev}, err
}

// nextIncarnation returns a number above seen, and above what others can have
// begun unseen.
func nextIncarnation(seen uint64) uint64 { return max(seen+1, uint64(time.Now().Unix())) }

// beginAnew writes state as the first snapshot of a cluster that has one voter, and
// then what makes it one. Interrupted, it can be repeated: the incarnation, which
// says that it is done, comes last.
func beginAnew(cfg Config, storage *Storage, state *mvcc.State, index, term, incarnation uint64) (Revision, error) {
	rev := state.Root().Revision() + RevisionGap
	state.Advance(rev)
	voter := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(cfg.ID), Address: raft.ServerAddress(cfg.Address),
	}}}
	_, transport := raft.NewInmemTransport(raft.ServerAddress(cfg.Address)) // for its encoding of addresses
	sink, err := storage.Snapshots.Create(raft.SnapshotVersionMax, index, term, voter, 1, transport)
	if err != nil {
		return 0, fmt.Errorf("write the state: %w", err)
	}
	if err := (fsmSnapshot{state.Root()}).Persist(sink); err != nil {
		return 0, fmt.Errorf("write the state: %w", err)
	}
	// The log is in the snapshot. Its changes of raft's configuration must not be
	// met again.
	first, err := storage.Logs.FirstIndex()
	if err != nil {
		return 0, err
	}
	last, err := storage.Logs.LastIndex()
	if err != nil {
		return 0, err
	}
	if first != 0 {
		if err := storage.Logs.DeleteRange(first, last); err != nil {
			return 0, fmt.Errorf("discard the log: %w", err)
		}
	}
	if err := storage.Stable.SetUint64(keyRaftTerm, term+termGap); err != nil {
		return 0, err
	}
	return rev, storage.Stable.SetUint64(keyIncarnation, incarnation)
}

// Seen is what the peers of a cluster that lost its majority have told.
type Seen struct {
	Incarnation, Term uint64 // the highest of any
}

// Recover makes this peer the only voter of a new incarnation of the cluster, with
// what it has. It writes that down and ends Run with ErrRestart; the next New does
// the work. The caller has made sure that the majority is lost: nothing here could
// know. lastTerm and lastIndex are the log's end as the operator has seen it; if it
// has moved since, somebody leads, and nothing happens.
func (s *Store) Recover(seen Seen, lastTerm, lastIndex uint64) (incarnation uint64, err error) {
	if !s.isReady() {
		return 0, errors.New("recover: the store is still starting; try again")
	}
	if leader, _ := s.Leader(); leader != "" {
		return 0, fmt.Errorf("recover: refused: peer %s leads, so there is a majority", leader)
	}
	v := s.Vitals()
	if v.LastTerm != lastTerm || v.LastIndex != lastIndex {
		return 0, fmt.Errorf("recover: refused: the log of peer %s ends with entry %d of term %d now, not with entry %d of term %d: something still writes to it; look again",
			s.cfg.ID, v.LastIndex, v.LastTerm, lastIndex, lastTerm)
	}
	next := nextIncarnation(max(s.Incarnation(), seen.Incarnation))
	err = fmt.Errorf("%w: this peer begins incarnation %d of the cluster as its only voter", ErrRestart, next)
	if !s.refuse(err) {
		return 0, s.Refusal()
	}
	if err := errors.Join(
		s.writeStable("write the recovery", keyRecoverTerm, max(v.Term, seen.Term)),
		s.writeStable("write the recovery", keyRecoverAs, next),
	); err != nil {
		return 0, err
	}
	s.fail(err)
	return next, nil
}

// finishRecovery does what Recover has written down, if it has.
func (s *Store) finishRecovery(storage *Storage) error {
	next, err := readStable(storage.Stable, keyRecoverAs)
	if err != nil || next == 0 {
		return err
	}
	term, err := readStable(storage.Stable, keyRecoverTerm)
	if err != nil {
		return err
	}
	begin := time.Now()
	state, index, lastTerm, err := replay(storage)
	if err != nil {
		return fmt.Errorf("recover %s: %w", s.place(), err)
	}
	// The snapshot keeps the term of its last entry; raft's own moves on.
	rev, err := beginAnew(s.cfg, storage, state, index, lastTerm, next)
	if err != nil {
		return fmt.Errorf("recover %s: %w", s.place(), err)
	}
	if err := storage.Stable.SetUint64(keyRaftTerm, max(term, lastTerm)+termGap); err != nil {
		return err
	}
	s.log.Warn("recovered: a new incarnation of the cluster begins with this peer as its only voter",
		"incarnation", next, "index", index, "revision", rev, "took", time.Since(begin))
	return storage.Stable.SetUint64(keyRecoverAs, 0)
}

// replay returns the state with all of the log applied, committed or not: with the
// majority gone nobody can tell which it is, and what was acknowledged must be kept.
func replay(storage *Storage) (_ *mvcc.State, index, term uint64, _ error) {
	state, meta, _, err := newestSnapshot(storage.Snapshots)
	if err != nil {
		return nil, 0, 0, err
	}
	if meta != nil {
		index, term = meta.Index, meta.Term
	}
	last, err := storage.Logs.LastIndex()
	if err != nil {
		return nil, 0, 0, err
	}
	for i := index + 1; i <= last; i++ {
		var entry raft.Log
		if err := storage.Logs.GetLog(i, &entry); err != nil {
			return nil, 0, 0, fmt.Errorf("read entry %d of the log: %w", i, err)
		}
		if entry.Type == raft.LogCommand {
			if _, err := state.Apply(mvcc.Entry{Index: entry.Index, Term: entry.Term, Data: entry.Data}); err != nil {
				return nil, 0, 0, err
			}
		} else {
			state.Skip(entry.Index)
		}
		index, term = entry.Index, entry.Term
	}
	if index == 0 {
		return nil, 0, 0, errors.New("it holds nothing to recover from")
	}
	return state, index, term, nil
}

// newestSnapshot returns the state of the newest snapshot that is whole, an empty
// state and nil if there is none at all, and what is wrong with newer ones. It fails
// if there are snapshots and all are damaged.
func newestSnapshot(snapshots raft.SnapshotStore) (*mvcc.State, *raft.SnapshotMeta, []error, error) {
	list, err := snapshots.List()
	if err != nil {
		return nil, nil, nil, err
	}
	var damage []error
	for _, meta := range list {
		state, err := readRaftSnapshot(snapshots, meta.ID)
		if err == nil {
			return state, meta, damage, nil
		}
		damage = append(damage, fmt.Errorf("snapshot %s: %w", meta.ID, err))
	}
	if len(damage) > 0 {
		return nil, nil, damage, errors.Join(damage...)
	}
	return mvcc.New(), nil, nil, nil
}

func readRaftSnapshot(snapshots raft.SnapshotStore, id string) (*mvcc.State, error) {
	_, r, err := snapshots.Open(id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return mvcc.ReadSnapshot(r)
}
