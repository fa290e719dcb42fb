package raftstore

import (
	"reflect"
	"unsafe"

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
	for _, name := range []string{"applyCh", "verifyCh"} {
		queue := field(reflect.ValueOf(s.raft).Elem(), name)
		for future, ok := queue.TryRecv(); ok; future, ok = queue.TryRecv() {
			answer := field(future.Elem(), "deferError")
			if !field(answer, "responded").Bool() {
				field(answer, "errCh").Send(reflect.ValueOf(raft.ErrRaftShutdown))
			}
		}
	}
}
