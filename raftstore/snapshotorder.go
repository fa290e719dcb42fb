package raftstore

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// errOlderSnapshot is what a snapshot ends with that is older than the newest one.
var errOlderSnapshot = errors.New("a newer snapshot is there already")

// forwardSnapshots is a SnapshotStore whose newest snapshot never becomes an older one.
//
// Raft lets a peer take a snapshot of its own, in the background, while one from the
// leader is installed, and takes whichever is closed last for the newest: if that is its
// own, and older, raft's idea of where the log goes on falls behind where the log begins.
// The older one then ends in an error here, which raft takes for a snapshot that did not
// succeed: nothing is cut, and the newer one stays.
type forwardSnapshots struct {
	raft.SnapshotStore

	// closing is held while one becomes the newest. It is no mutex: virtual time would
	// stand still for those who wait.
	closing chan struct{}
	newest  uint64 // its index
}

func newForwardSnapshots(under raft.SnapshotStore) (*forwardSnapshots, error) {
	list, err := under.List()
	if err != nil {
		return nil, err
	}
	s := &forwardSnapshots{SnapshotStore: under, closing: make(chan struct{}, 1)}
	for _, meta := range list {
		s.newest = max(s.newest, meta.Index)
	}
	return s, nil
}

// Create implements raft.SnapshotStore.
func (s *forwardSnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, t raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, conf, confIndex, t)
	if err != nil {
		return nil, err
	}
	return &forwardSink{SnapshotSink: sink, s: s, index: index}, nil
}

type forwardSink struct {
	raft.SnapshotSink
	s     *forwardSnapshots
	index uint64
}

// Close implements raft.SnapshotSink. A snapshot of the same index as the newest one may
// take its place: it is the same state.
func (k *forwardSink) Close() error {
	k.s.closing <- struct{}{}
	defer func() { <-k.s.closing }()
	if k.index < k.s.newest {
		return errors.Join(fmt.Errorf("snapshot of index %d: %w, of index %d", k.index, errOlderSnapshot, k.s.newest), k.Cancel())
	}
	if err := k.SnapshotSink.Close(); err != nil {
		return err
	}
	k.s.newest = k.index
	return nil
}
