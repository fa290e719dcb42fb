package storetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/internal/faults"
	"github.com/holdfast-io/holdfast/raftstore"
)

// Disk is a peer's storage in memory. It keeps what was written before a crash, and
// nothing else. What goes wrong with it is on the fault plane: the peer's, in a
// Cluster, where the store asks it; else one of its own.
type Disk struct {
	plane *faults.Plane
	own   bool // the disk asks the plane by itself

	mu        sync.Mutex
	logs      map[uint64]raft.Log
	stable    map[string][]byte
	snapshots []*snapshot // oldest first
	last      uint64
	err       error // of writes
	space     raftstore.Space
}

type snapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

// NewDisk returns an empty disk.
func NewDisk() *Disk {
	return &Disk{
		plane: faults.New(0), own: true,
		logs: make(map[uint64]raft.Log), stable: make(map[string][]byte),
		space: raftstore.Space{Free: 1 << 40, Total: 1 << 40},
	}
}

// Storage returns the disk as a store takes it.
func (d *Disk) Storage() *raftstore.Storage {
	return &raftstore.Storage{Logs: diskLogs{d}, Stable: diskStable{d}, Snapshots: diskSnapshots{d}, Space: d.room}
}

// SetFree changes how much room the disk says it has. It starts with plenty.
func (d *Disk) SetFree(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.space.Free = bytes
}

func (d *Disk) room() (raftstore.Space, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.space, nil
}

// Clone returns a disk with the same contents, as a crash would leave them.
func (d *Disk) Clone() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Disk{
		plane: d.plane, own: d.own,
		logs: maps.Clone(d.logs), stable: maps.Clone(d.stable),
		snapshots: slices.Clone(d.snapshots), last: d.last, space: d.space,
	}
}

// held is the name of the fault that Hold sets.
const held = "held"

// Hold makes writes wait until Release.
func (d *Disk) Hold() {
	if err := d.plane.Set(held, faults.Fault{Kind: faults.DiskHang}); err != nil {
		panic(err) // a constant
	}
}

// Release lets writes that wait, and later ones, go on.
func (d *Disk) Release() { d.plane.Clear(held) }

// Fail makes every write from now on fail with err; nil makes them work again.
func (d *Disk) Fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// Snapshots returns the indexes of the snapshots kept, oldest first.
func (d *Disk) Snapshots() (indexes []uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.snapshots {
		indexes = append(indexes, s.meta.Index)
	}
	return indexes
}

// FlipSnapshot flips a bit in the newest snapshot, at a place that at chooses, and
// reports whether there is one.
func (d *Disk) FlipSnapshot(at int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.snapshots) == 0 {
		return false
	}
	newest := d.snapshots[len(d.snapshots)-1]
	data := bytes.Clone(newest.data)
	data[at%len(data)] ^= 1 << (at % 8)
	d.snapshots[len(d.snapshots)-1] = &snapshot{newest.meta, data}
	return true
}

// write runs fn under the disk's lock, when and if writes are let through.
func (d *Disk) write(part faults.Part, fn func()) error {
	do := func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.err != nil {
			return d.err
		}
		fn()
		return nil
	}
	if d.own {
		return d.plane.Write(part, do)
	}
	return do()
}

type diskLogs struct{ d *Disk }

func (l diskLogs) FirstIndex() (uint64, error) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	first := uint64(0)
	for index := range l.d.logs {
		if first == 0 || index < first {
			first = index
		}
	}
	return first, nil
}

func (l diskLogs) LastIndex() (uint64, error) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	return l.d.last, nil
}

func (l diskLogs) GetLog(index uint64, entry *raft.Log) error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	e, ok := l.d.logs[index]
	if !ok {
		return raft.ErrLogNotFound
	}
	*entry = e
	return nil
}

func (l diskLogs) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

func (l diskLogs) StoreLogs(entries []*raft.Log) error {
	return l.d.write(faults.Log, func() {
		for _, e := range entries {
			l.d.logs[e.Index] = *e
			l.d.last = max(l.d.last, e.Index)
		}
	})
}

func (l diskLogs) DeleteRange(first, last uint64) error {
	return l.d.write(faults.Log, func() {
		for index := first; index <= last; index++ {
			delete(l.d.logs, index)
		}
		l.d.last = 0
		for index := range l.d.logs {
			l.d.last = max(l.d.last, index)
		}
	})
}

var errNotFound = errors.New("not found") // the text that raft looks for

type diskStable struct{ d *Disk }

func (s diskStable) Set(key, value []byte) error {
	return s.d.write(faults.Votes, func() { s.d.stable[string(key)] = bytes.Clone(value) })
}

func (s diskStable) Get(key []byte) ([]byte, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	value, ok := s.d.stable[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return bytes.Clone(value), nil
}

func (s diskStable) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

func (s diskStable) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(value), nil
}

type diskSnapshots struct{ d *Disk }

func (s diskSnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &sink{d: s.d, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d", term, index), Index: index, Term: term,
		Configuration: conf.Clone(), ConfigurationIndex: confIndex,
	}}, nil
}

func (s diskSnapshots) List() (list []*raft.SnapshotMeta, err error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, snap := range slices.Backward(s.d.snapshots) {
		meta := snap.meta
		list = append(list, &meta)
	}
	return list, nil
}

func (s diskSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	for _, snap := range s.d.snapshots {
		if snap.meta.ID == id {
			meta := snap.meta
			return &meta, io.NopCloser(bytes.NewReader(snap.data)), nil
		}
	}
	return nil, nil, fmt.Errorf("no snapshot %s", id)
}

// sink becomes a snapshot once it is closed, as a file does once it is renamed.
type sink struct {
	d    *Disk
	meta raft.SnapshotMeta
	data bytes.Buffer
	done bool
}

func (s *sink) Write(p []byte) (int, error) { return s.data.Write(p) }
func (s *sink) ID() string                  { return s.meta.ID }

func (s *sink) Cancel() error {
	s.done = true
	return nil
}

func (s *sink) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	s.meta.Size = int64(s.data.Len())
	return s.d.write(faults.Snapshots, func() {
		s.d.snapshots = append(s.d.snapshots, &snapshot{s.meta, s.data.Bytes()})
		s.d.snapshots = s.d.snapshots[max(0, len(s.d.snapshots)-2):]
	})
}
