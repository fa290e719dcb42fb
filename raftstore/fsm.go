package raftstore

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// fsm gives raft the state machine. Raft calls it from one goroutine: entries in
// log order, on every peer, and again from the last snapshot on after a restart.
type fsm struct {
	store *Store
	state *mvcc.State
	// What has been applied since the last snapshot; read by Store.snapshots.
	bytes, entries atomic.Int64
	installs       installs
	// onCheck learns what a comparison of the replicas found; nil ignores it. Set
	// it before raft starts. It must not block.
	onCheck func(mvcc.CheckResult)
	diverge atomic.Bool // once: see memory
}

// ApplyBatch implements raft.BatchingFSM. It does no I/O and waits for nobody. The
// element for a command is a mvcc.Applied. Readers see the batch at once, after all
// of it is applied and before any proposer learns of it.
func (f *fsm) ApplyBatch(entries []*raft.Log) []any {
	begin := time.Now()
	results := make([]any, len(entries))
	for i, entry := range entries {
		f.bytes.Add(int64(len(entry.Data)))
		f.entries.Add(1)
		if entry.Type != raft.LogCommand {
			f.store.configurationApplied(entry, f.state.Root())
			f.state.Skip(entry.Index)
			continue
		}
		applied, err := f.state.Apply(mvcc.Entry{Index: entry.Index, Term: entry.Term, Data: entry.Data})
		if err != nil {
			// Another peer may be able to read this entry. Skipping it here would
			// fork the replicas in silence, so this peer stops.
			f.store.fail(fmt.Errorf("apply: %w", err))
			runtime.Goexit()
		}
		if applied.Check != nil && f.onCheck != nil {
			f.onCheck(*applied.Check)
		}
		results[i] = applied
	}
	if f.diverge.Load() && f.diverge.CompareAndSwap(true, false) {
		f.ghost(entries[len(entries)-1])
	}
	root := f.state.Root()
	f.store.publish(root)
	if f.store.cfg.onApply != nil {
		f.store.cfg.onApply(f.store.cfg.ID, entries, root)
	}
	f.store.metrics.applySeconds.Observe(time.Since(begin).Seconds())
	if f.bytes.Load() >= f.store.cfg.SnapshotBytes || f.entries.Load() >= snapshotEntries {
		f.store.wantSnapshot()
	}
	return results
}

// Apply implements raft.FSM.
func (f *fsm) Apply(entry *raft.Log) any { return f.ApplyBatch([]*raft.Log{entry})[0] }

// Snapshot implements raft.FSM. It only takes the root; Persist writes it while
// further entries are applied.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.store.Refusal(); err != nil {
		return nil, err // what is corrupt must not take the log's place
	}
	f.bytes.Store(0)
	f.entries.Store(0)
	return fsmSnapshot{f.state.Root()}, nil
}

// Restore implements raft.FSM. Nothing changes unless the snapshot is whole.
func (f *fsm) Restore(r io.ReadCloser) error {
	state, err := mvcc.ReadSnapshot(r)
	if err != nil {
		return err
	}
	f.state = state
	f.bytes.Store(0)
	f.entries.Store(0)
	f.store.publish(state.Root())
	if f.store.isReady() { // else it is this peer's own, at its start
		f.store.metrics.snapshotsInstalled.Inc()
		if err := f.installs.note(state.Root().Index(), time.Now()); err != nil {
			f.store.fail(err)
		}
	}
	return nil
}

type fsmSnapshot struct{ root *mvcc.Root }

// Persist implements raft.FSMSnapshot.
func (s fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.root.WriteSnapshot(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release implements raft.FSMSnapshot.
func (fsmSnapshot) Release() {}
