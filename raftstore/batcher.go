package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// How transactions are packed into entries. Few entries in flight make the batches
// grow by themselves as the load does: no timer, no delay at low load.
const (
	maxInFlight   = 4         // batches proposed and not yet applied
	maxBatchBytes = 256 << 10 // an entry is closed by the transaction that reaches this
	maxBatchTxns  = 512
	queueLength   = 4096 // transactions waiting on the leader; more are refused
)

// errNotProposed says that a transaction certainly did not reach the log, and that
// another leader, or the same one a little later, may take it.
var errNotProposed = errors.New("not proposed")

// outcome is what became of a proposal: a result, or an error that is
// errNotProposed, ErrOutcomeUnknown, ErrOverloaded, ErrNoSpace or ErrInvalid.
type outcome struct {
	result *raftv1.TxnResult
	err    error
}

// proposal is a transaction on its way into the log. Whoever sends it on takes it
// first, so that a caller who loses patience before can withdraw it and knows that
// nothing happened.
type proposal struct {
	txn    []byte // encoded
	begin  time.Time
	state  atomic.Int32
	done   chan outcome  // capacity 1, for a local caller
	answer func(outcome) // in place of done; must not block
}

const (
	proposalWaiting int32 = iota
	proposalTaken
	proposalWithdrawn
)

func newProposal(txn []byte) *proposal {
	return &proposal{txn: txn, begin: time.Now(), done: make(chan outcome, 1)}
}

func (p *proposal) take() bool {
	return p.state.CompareAndSwap(proposalWaiting, proposalTaken)
}

func (p *proposal) withdraw() bool {
	return p.state.CompareAndSwap(proposalWaiting, proposalWithdrawn)
}

func (p *proposal) finish(out outcome) {
	if p.answer != nil {
		p.answer(out)
	} else {
		p.done <- out
	}
}

// batcher packs proposals into log entries. It works on every peer; those that do
// not lead get their proposals back as not proposed.
type batcher struct {
	store *Store
	queue chan *proposal
	// slots holds a token for each batch in flight. Who holds all of them knows
	// that no batch is.
	slots      chan struct{}
	inFlight   sync.WaitGroup
	compacting atomic.Bool
}

func newBatcher(s *Store) *batcher {
	return &batcher{
		store: s,
		queue: make(chan *proposal, queueLength),
		slots: make(chan struct{}, maxInFlight),
	}
}

// submit queues p, or finishes it with ErrOverloaded or ErrNoSpace.
func (b *batcher) submit(p *proposal) {
	if err := b.store.room.admit(p.txn); err != nil {
		b.store.metrics.txns.WithLabelValues("no_space").Inc()
		p.finish(outcome{err: err})
		return
	}
	select {
	case b.queue <- p:
	default:
		b.store.metrics.txns.WithLabelValues("overloaded").Inc()
		p.finish(outcome{err: ErrOverloaded})
	}
}

// run proposes what is queued until ctx ends; then it gives back what is still
// queued. It does not wait for entries in flight.
func (b *batcher) run(ctx context.Context) {
	var batch []*proposal
	for {
		var first *proposal
		select {
		case first = <-b.queue:
		case <-ctx.Done():
			b.giveBack(nil)
			return
		}
		select {
		case b.slots <- struct{}{}:
		case <-ctx.Done():
			b.giveBack(first)
			return
		}
		batch = b.collect(batch[:0], first)
		if len(batch) == 0 {
			<-b.slots // all withdrawn
			continue
		}
		b.propose(append([]*proposal(nil), batch...))
	}
}

func (b *batcher) giveBack(first *proposal) {
	if first != nil && first.take() {
		first.finish(outcome{err: fmt.Errorf("%w: %w", errNotProposed, ErrClosed)})
	}
	for {
		select {
		case p := <-b.queue:
			if p.take() {
				p.finish(outcome{err: fmt.Errorf("%w: %w", errNotProposed, ErrClosed)})
			}
		default:
			return
		}
	}
}

// collect takes first and what else waits, as far as the entry's limits allow.
func (b *batcher) collect(batch []*proposal, first *proposal) []*proposal {
	size := 0
	for p := first; p != nil; {
		if p.take() {
			batch = append(batch, p)
			size += len(p.txn)
		}
		if size >= maxBatchBytes || len(batch) >= maxBatchTxns {
			return batch
		}
		select {
		case p = <-b.queue:
		default:
			return batch
		}
	}
	return batch
}

// propose hands a batch to raft, and its results to the proposers once applied.
// It holds a slot until then.
func (b *batcher) propose(batch []*proposal) {
	s := b.store
	s.metrics.batchTxns.Observe(float64(len(batch)))
	future := s.raft.ApplyLog(raft.Log{Data: encodeBatch(batch, time.Now())}, 0)
	b.inFlight.Go(func() {
		err := future.Error()
		<-b.slots
		b.answer(batch, future, err)
	})
	b.compact()
}

func (b *batcher) answer(batch []*proposal, future raft.ApplyFuture, err error) {
	s := b.store
	if err != nil {
		outcomeLabel, err := classify(err)
		s.metrics.txns.WithLabelValues(outcomeLabel).Add(float64(len(batch)))
		for _, p := range batch {
			p.finish(outcome{err: err})
		}
		return
	}
	results := future.Response().(mvcc.Applied).Results
	for i, p := range batch {
		label := "committed"
		switch r := results[i]; {
		case r.GetDeposed():
			label = "deposed"
		case !r.GetSucceeded():
			label = "compare_failed"
		}
		s.metrics.txns.WithLabelValues(label).Inc()
		s.metrics.txnSeconds.Observe(time.Since(p.begin).Seconds())
		p.finish(outcome{result: results[i]})
	}
}

// classify says what raft's error means for a proposal. Only the errors named here
// come before raft touches its log.
func classify(err error) (label string, _ error) {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return "not_leader", fmt.Errorf("%w: %w", errNotProposed, err)
	default:
		return "unknown", fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}

// compact proposes to forget the oldest history when there is more than its bound.
// It runs after a batch, never by a clock: an idle store appends nothing.
func (b *batcher) compact() {
	s := b.store
	to := s.compactTo(s.current.Load().root)
	if to == 0 || !b.compacting.CompareAndSwap(false, true) {
		return
	}
	future := s.raft.ApplyLog(raft.Log{Data: encodeCommand(&raftv1.Command{Op: &raftv1.Command_Compact{Compact: &raftv1.Compact{Revision: to}}})}, 0)
	b.inFlight.Go(func() {
		// An error is no loss: the next batch asks again.
		_ = future.Error()
		b.compacting.Store(false)
	})
}

// compactTo returns the revision to compact to, 0 for none. It leaves a margin
// below the bounds, so that a compaction frees more than one change.
func (s *Store) compactTo(root *mvcc.Root) Revision {
	events, bytes := root.History()
	keep := s.cfg.HistoryEvents
	if bytes > s.cfg.HistoryBytes {
		keep = min(keep, int(float64(events)*float64(s.cfg.HistoryBytes)/float64(bytes)))
	}
	if events <= keep {
		return 0
	}
	return root.CompactTo(keep - keep/16)
}

// pause waits until no batch is in flight and keeps it so until resume is called.
// Proposals wait in the queue meanwhile.
func (b *batcher) pause(ctx context.Context) (resume func(), err error) {
	held := 0
	resume = func() {
		for range held {
			<-b.slots
		}
	}
	for range maxInFlight {
		select {
		case b.slots <- struct{}{}:
			held++
		case <-ctx.Done():
			resume()
			return nil, context.Cause(ctx)
		}
	}
	return resume, nil
}

// Field numbers of the messages that encodeBatch writes by hand.
const (
	fieldCommandBatch      = 1
	fieldCommandProposedAt = 15
	fieldBatchTxns         = 1
)

// encodeBatch encodes a Command with a batch, out of transactions that are encoded
// already: they may come from other peers, and most of the bytes are theirs.
func encodeBatch(batch []*proposal, now time.Time) []byte {
	size := 0
	for _, p := range batch {
		size += protowire.SizeTag(fieldBatchTxns) + protowire.SizeBytes(len(p.txn))
	}
	stamp, _ := proto.Marshal(timestamppb.New(now)) // two integers: cannot fail
	data := make([]byte, 0, size+len(stamp)+16)
	data = protowire.AppendTag(data, fieldCommandBatch, protowire.BytesType)
	data = protowire.AppendVarint(data, uint64(size))
	for _, p := range batch {
		data = protowire.AppendTag(data, fieldBatchTxns, protowire.BytesType)
		data = protowire.AppendBytes(data, p.txn)
	}
	data = protowire.AppendTag(data, fieldCommandProposedAt, protowire.BytesType)
	return protowire.AppendBytes(data, stamp)
}

// encodeCommand encodes a command other than a batch.
func encodeCommand(cmd *raftv1.Command) []byte {
	cmd.ProposedAt = timestamppb.Now()
	data, err := proto.Marshal(cmd)
	if err != nil {
		panic(fmt.Sprintf("raftstore: encode %T: %v", cmd.GetOp(), err)) // integers only
	}
	return data
}
