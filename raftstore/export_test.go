package raftstore

import (
	"reflect"
	"time"
	"unsafe"

	"github.com/hashicorp/raft"

	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"

	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// CutLogAt makes a store keep only n entries behind a snapshot, so that tests need
// not write thousands.
func CutLogAt(n int) func(*Config) { return func(cfg *Config) { cfg.minTrailing = n } }

// Unhurried lets followers of an idle leader learn late what is committed: what is
// said forty times a second otherwise is nearly all that an idle hour costs a test.
func Unhurried(cfg *Config) { cfg.commitTimeout = 250 * time.Millisecond }

// Propose puts data into the log, whatever it is. It does not wait.
func Propose(s *Store, data []byte) { s.raft.ApplyLog(raft.Log{Data: data}, 0) }

// OnApply shows fn all that is applied.
func OnApply(fn func(id string, entries []*raft.Log, root *mvcc.Root)) func(*Config) {
	return func(cfg *Config) { cfg.onApply = fn }
}

// OnSample lets fn change the evidence that the store called id gives for reads.
func OnSample(fn func(id string, answer *peerv1.ReadIndexResponse)) func(*Config) {
	return func(cfg *Config) { cfg.onSample = fn }
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

// Drain answers what raft has taken from the batcher and, as it was shut down while
// a disk hung, has never looked at: whoever waits for an answer waits for ever. In a
// process that ends then that is no matter; in a bubble it is. Call it after Run.
func Drain(s *Store) {
	if !s.isReady() {
		return
	}
	field := func(v reflect.Value, name string) reflect.Value {
		f := v.FieldByName(name)
		return reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem()
	}
	for _, name := range []string{"applyCh", "verifyCh", "leadershipTransferCh"} {
		queue := field(reflect.ValueOf(s.raft).Elem(), name)
		for future, ok := queue.TryRecv(); ok; future, ok = queue.TryRecv() {
			answer := field(future.Elem(), "deferError")
			if !field(answer, "responded").Bool() {
				field(answer, "errCh").Send(reflect.ValueOf(raft.ErrRaftShutdown))
			}
		}
	}
}

func mustEncode(t Txn) []byte {
	data, err := t.encode(0)
	if err != nil {
		panic(err)
	}
	return data
}
