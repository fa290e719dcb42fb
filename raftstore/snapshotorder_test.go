package raftstore

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// TestOlderSnapshotComesLater: a peer's own snapshot is done after a newer one from the
// leader. It is refused, leaves nothing, and the newer one stays the newest: for raft, and
// after a restart.
func TestOlderSnapshotComesLater(t *testing.T) {
	dir := t.TempDir()
	open := func() *Store {
		cfg := dirConfig(t, dir)
		cfg.Address, cfg.Stream = "a:1", deafStream{}
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	begin := func(s *Store, index uint64, content string) raft.SnapshotSink {
		sink, err := s.snapshotDB.Create(1, index, 1, raft.Configuration{}, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(sink, content); err != nil {
			t.Fatal(err)
		}
		return sink
	}
	newest := func(s *Store, want string) {
		t.Helper()
		if have := snapshotText(t, s.snapshotDB); !strings.HasPrefix(have, want) {
			t.Errorf("the newest snapshot is %s, want %s", have, want)
		}
	}
	s := open()
	vote(t, s.stable, 1, "p1") // a snapshot of a term that the peer has not heard of is damage
	own, leaders := begin(s, 5, "own"), begin(s, 9, "the leader's")
	if err := leaders.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // as raft does
		if err := own.Close(); !errors.Is(err, errOlderSnapshot) {
			t.Errorf("the older one ends with %v", err)
		}
	}
	newest(s, "9/1 the leader's")
	// The same state may be written again.
	if err := begin(s, 9, "again").Close(); err != nil {
		t.Error(err)
	}
	newest(s, "9/1 again")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	newest(s, "9/1 again")
	if err := begin(s, 8, "late").Close(); !errors.Is(err, errOlderSnapshot) {
		t.Errorf("after a restart an older one ends with %v", err)
	}
	if err := begin(s, 12, "next").Close(); err != nil {
		t.Error(err)
	}
	newest(s, "12/1 next")
}
