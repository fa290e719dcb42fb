package history

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// What follows is for histories of real processes, whose logs nobody reads while they
// run. In place of the log stands what a watch of all keys has seen: each revision is
// an entry.

// Base says what was there when recording began: the history has revisions after rev
// only. Call it before anything else.
func (r *Recorder) Base(rev int64, keys []raftstore.KeyValue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.base = newModel()
	r.base.rev = rev
	for _, kv := range keys {
		r.base.keys[kv.Key] = &pair{value: kv.Value, create: kv.Create, mod: kv.Mod, version: kv.Version, lease: kv.Lease}
	}
}

// Committed says that t is what made revision rev. A Reason that no Write was given
// is that of a transaction of somebody else, which nobody timed.
func (r *Recorder) Committed(rev int64, t *raftv1.Txn) error {
	data, err := proto.Marshal(&raftv1.Command{Op: &raftv1.Command_Batch{Batch: &raftv1.Batch{Txns: []*raftv1.Txn{t}}}})
	if err != nil {
		return fmt.Errorf("entry of revision %d: %w", rev, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries[uint64(rev)] = &raft.Log{Index: uint64(rev), Type: raft.LogCommand, Data: data}
	if r.known == nil {
		r.known = make(map[string]bool, len(r.writes))
		for _, w := range r.writes {
			r.known[w.ID] = true
		}
	}
	if !r.known[t.GetReason()] {
		r.known[t.GetReason()] = true
		r.writes = append(r.writes, &write{ID: t.GetReason(), Peer: "somebody", Outcome: Unknown})
	}
	return nil
}

// LeaseOf begins to record a lease, for which was called at a time, and which was
// granted for ttl. No log tells when it ends: key does, which was put under it, and
// under nothing else, and which nobody deletes. It has ended at the latest when the
// first watcher saw it go.
func (r *Recorder) LeaseOf(key string, id int64, ttl time.Duration, called time.Time) *Lease {
	l := r.Lease(id, ttl)
	l.key, l.granted = key, called.Sub(r.begin)
	return l
}

// Revoking says that the lease's holder is about to end it itself.
func (l *Lease) Revoking() {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	l.revoked = max(time.Since(l.r.begin), 1)
}

// gone returns when each key was first seen to be deleted.
func (r *Recorder) gone() map[string]time.Duration {
	gone := make(map[string]time.Duration)
	for _, w := range r.watches {
		for _, t := range w.turns {
			for _, e := range t.Events {
				if at, ok := gone[e.Key]; e.Type == raftstore.EventDelete && (!ok || t.At < at) {
					gone[e.Key] = t.At
				}
			}
		}
	}
	return gone
}

// tenure is the lease's life as far as its key tells.
func (l *Lease) tenure(gone map[string]time.Duration) *tenure {
	is := &tenure{granted: l.granted}
	is.ended, is.over = gone[l.key]
	is.expired = is.over && (l.revoked == 0 || is.ended < l.revoked)
	return is
}

// CompactedTo says that history below rev was discarded on purpose.
func (r *Recorder) CompactedTo(rev int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.compacted = max(r.compacted, rev)
}

// ReadKeys calls read, a linearizable read of all keys that begin with prefix, and
// records it.
func (r *Recorder) ReadKeys(peer, prefix string, read func() (rev int64, keys []raftstore.KeyValue, err error)) error {
	rd := r.beginRead(peer, prefix)
	rev, keys, err := read()
	if err != nil {
		return err // it says nothing
	}
	r.endRead(rd, rev, keys)
	return nil
}

func (r *Recorder) beginRead(peer, prefix string) *read {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &read{Peer: peer, Prefix: prefix, Call: r.step(), At: time.Since(r.begin)}
}

func (r *Recorder) endRead(rd *read, rev int64, keys []raftstore.KeyValue) {
	rd.Revision, rd.Keys = rev, keys
	r.mu.Lock()
	defer r.mu.Unlock()
	rd.Return = r.step()
	r.reads = append(r.reads, rd)
}
