package raftstore

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// CutLogAt makes a store keep only n entries behind a snapshot, so that tests need
// not write thousands.
func CutLogAt(n int) func(*Config) { return func(cfg *Config) { cfg.minTrailing = n } }

// Propose puts data into the log, whatever it is. It does not wait.
func Propose(s *Store, data []byte) { s.raft.ApplyLog(raft.Log{Data: data}, 0) }

// OnApply shows fn all that is applied.
func OnApply(fn func(id string, entries []*raft.Log, root *mvcc.Root)) func(*Config) {
	return func(cfg *Config) { cfg.onApply = fn }
}

// LastRound returns when the last round began that confirmed reads on s.
func LastRound(s *Store) (last time.Time) {
	s.reader.mu.Lock()
	defer s.reader.mu.Unlock()
	for _, c := range []*confirmation{s.reader.served, s.reader.coming} {
		if c != nil && c.begin.After(last) {
			last = c.begin
		}
	}
	return last
}
