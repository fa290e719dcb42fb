package mvcc

import raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"

// How long the ids of transactions are remembered: so many of them, and over so
// many log entries. Both are the same on every peer, since the state is; so they
// must never change without a new field in the log that says from where on.
const (
	maxTxnIDs   = 1 << 16
	maxTxnIDAge = 1 << 20
)

// txnID is what is remembered of a transaction with an id.
type txnID struct {
	id        string
	index     uint64
	revision  int64
	succeeded bool
	refusal   raftv1.TxnRefusal
}

func (t txnID) replay(res *raftv1.TxnResult) {
	res.Revision, res.Succeeded, res.Refusal, res.Replayed = t.revision, t.succeeded, t.refusal, true
}

// txnIDs is the transactions with ids that are remembered, in log order.
type txnIDs struct {
	list sequence[txnID]
	byID map[string]txnID
}

// remember adds t, and forgets the oldest if there are too many.
func (s *State) remember(t txnID) {
	s.ids.list.append(t)
	s.ids.byID[t.id] = t
	s.meta.sum = s.meta.sum.add(s.hasher.txnID(t))
	if s.ids.list.len() > maxTxnIDs {
		s.forgetOldestID()
	}
}

// forgetIDs forgets what is too old at log entry index.
func (s *State) forgetIDs(index uint64) {
	for s.ids.list.len() > 0 && s.ids.list.at(0).index+maxTxnIDAge <= index {
		s.forgetOldestID()
	}
}

func (s *State) forgetOldestID() {
	t := s.ids.list.at(0)
	s.ids.list.drop(1)
	delete(s.ids.byID, t.id)
	s.meta.sum = s.meta.sum.sub(s.hasher.txnID(t))
}
