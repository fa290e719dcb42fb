package raftstore

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/internal/faults"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// underFaults returns storage whose writes pass the fault plane first: below the
// disk's latch, where a real disk would fail.
func underFaults(s Storage, p *faults.Plane) Storage {
	if p == nil {
		return s
	}
	return Storage{Logs: faultyLogs{s.Logs, p}, Stable: faultyStable{s.Stable, p}, Snapshots: faultySnapshots{s.Snapshots, p}}
}

type faultyLogs struct {
	raft.LogStore
	plane *faults.Plane
}

func (l faultyLogs) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l faultyLogs) StoreLogs(entries []*raft.Log) error {
	return l.plane.Write(faults.Log, func() error { return l.LogStore.StoreLogs(entries) })
}

func (l faultyLogs) DeleteRange(first, last uint64) error {
	return l.plane.Write(faults.Log, func() error { return l.LogStore.DeleteRange(first, last) })
}

type faultyStable struct {
	raft.StableStore
	plane *faults.Plane
}

func (s faultyStable) Set(key, value []byte) error {
	return s.plane.Write(faults.Votes, func() error { return s.StableStore.Set(key, value) })
}

func (s faultyStable) SetUint64(key []byte, value uint64) error {
	return s.plane.Write(faults.Votes, func() error { return s.StableStore.SetUint64(key, value) })
}

type faultySnapshots struct {
	raft.SnapshotStore
	plane *faults.Plane
}

func (s faultySnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, t raft.Transport) (sink raft.SnapshotSink, err error) {
	err = s.plane.Write(faults.Snapshots, func() error {
		sink, err = s.SnapshotStore.Create(version, index, term, conf, confIndex, t)
		return err
	})
	if err != nil {
		if sink != nil { // made, and not seen to be
			_ = sink.Cancel()
		}
		return nil, err
	}
	return &faultySink{sink, s.plane}, nil
}

// faultySink fails where a snapshot becomes durable.
type faultySink struct {
	raft.SnapshotSink
	plane *faults.Plane
}

func (s *faultySink) Close() error {
	err := s.plane.Write(faults.Snapshots, s.SnapshotSink.Close)
	if err != nil {
		_ = s.SnapshotSink.Cancel() // an error has no more to say
	}
	return err
}

// memory lets the fault plane change the state behind everybody's back.
type memory struct{ *Store }

// Flip implements faults.Memory. The bytes are those that readers and the next
// snapshot get.
//
//go:norace
func (m memory) Flip(key string) error {
	kv, ok := m.View().Get(key)
	if !ok || len(kv.Value) == 0 {
		return fmt.Errorf("flip a bit of %q: it has no value", key)
	}
	kv.Value[len(kv.Value)/2] ^= 1
	return nil
}

// Diverge implements faults.Memory: from the next entry on.
func (m memory) Diverge() error {
	m.fsm.diverge.Store(true)
	return nil
}

// ghost makes the state remember a transaction that was in no log, and that changed
// no key.
func (f *fsm) ghost(last *raft.Log) {
	txn := Txn{ID: []byte("ghost"), If: []Compare{Present(ghostKey)}, Then: []Op{Delete(ghostKey)}}
	data, err := txn.encode(0)
	if err == nil {
		_, err = f.state.Apply(mvcc.Entry{Index: last.Index, Term: last.Term, Data: encodeBatch([]*proposal{newProposal(data)}, time.Now())})
	}
	if err != nil {
		panic(err) // constants
	}
}

const ghostKey = "system/ghost"
