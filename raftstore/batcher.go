package raftstore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
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
)

// errNotProposed says that a transaction certainly did not reach the log, and that
// another leader, or the same one a little later, may take it.
var errNotProposed = errors.New("not proposed")

// batcher packs proposals into log entries. It works on every peer; those that do
// not lead get their proposals back as not proposed.
type batcher struct {
	store *Store
	queue *queue
	// slots holds a token for each batch in flight. Who holds all of them knows
	// that no batch is.
	slots chan struct{}
	// pausing is held by whoever takes all slots: two who each hold some of them
	// would wait for each other.
	pausing  chan struct{}
	inFlight inFlight
}

func newBatcher(s *Store) *batcher {
	return &batcher{store: s, queue: newQueue(), slots: make(chan struct{}, maxInFlight), pausing: make(chan struct{}, 1)}
}

// submit queues p, or finishes it with what speaks against it.
func (b *batcher) submit(p *proposal) {
	if err := b.store.Refusal(); err != nil {
		p.finish(outcome{err: fmt.Errorf("%w: %w", errNotProposed, err)})
		return
	}
	if err := b.store.room.admit(p.txn); err != nil {
		p.finish(outcome{err: err})
		return
	}
	if !b.queue.push(p) {
		b.store.metrics.outcomes.overloaded.Inc()
		p.finish(outcome{err: ErrOverloaded})
	}
}

// run proposes what is queued until ctx ends; then it gives back what is still
// queued. It does not wait for entries in flight.
func (b *batcher) run(ctx context.Context) {
	defer func() { b.queue.drain(outcome{err: fmt.Errorf("%w: %w", errNotProposed, ErrClosed)}) }()
	for {
		if b.queue.empty() {
			select {
			case <-b.queue.ready:
				runtime.Gosched() // other proposers go first: then they share an entry
				continue
			case <-ctx.Done():
				return
			}
		}
		// What arrives until there is a slot goes along.
		select {
		case b.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		batch := b.queue.collect(nil)
		if len(batch) == 0 {
			<-b.slots // all withdrawn
			continue
		}
		b.propose(batch)
	}
}

// inFlight counts what waits for raft's answer. Once it is waited for, nothing
// else begins: calls of other peers can come at any time.
type inFlight struct {
	mu    sync.Mutex
	over  bool
	group sync.WaitGroup
}

// Go calls f in a goroutine, and reports whether it does: not once wait is called.
func (f *inFlight) Go(call func()) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return false
	}
	f.group.Go(call)
	return true
}

func (f *inFlight) wait() {
	f.mu.Lock()
	f.over = true
	f.mu.Unlock()
	f.group.Wait()
}

// propose hands a batch to raft, and its results to the proposers once applied.
// It holds a slot until then.
func (b *batcher) propose(batch []*proposal) {
	s := b.store
	s.metrics.batchTxns.Observe(float64(len(batch)))
	future := s.raft.ApplyLog(raft.Log{Data: encodeBatch(batch, s.cfg.Faults.Now())}, 0)
	b.inFlight.Go(func() {
		err := future.Error()
		<-b.slots
		b.answer(batch, future, err)
	})
}

func (b *batcher) answer(batch []*proposal, future raft.ApplyFuture, err error) {
	m := b.store.metrics
	if err != nil {
		counter, err := b.store.classify(err)
		counter.Add(float64(len(batch)))
		for _, p := range batch {
			p.finish(outcome{err: err})
		}
		return
	}
	b.store.watchTransfer(nil)
	results := future.Response().(mvcc.Applied).Results
	var failed, deposed int
	now := time.Now()
	for i, p := range batch {
		switch r := results[i]; {
		case r.GetDeposed():
			deposed++
		case !r.GetSucceeded():
			failed++
		}
		if len(p.leases) > 0 {
			b.store.keeper.changed(p.leases)
		}
		m.txnSeconds.Observe(now.Sub(p.begin).Seconds())
		p.finish(outcome{result: results[i]})
	}
	m.outcomes.committed.Add(float64(len(batch) - failed - deposed))
	m.outcomes.compareFailed.Add(float64(failed))
	m.outcomes.deposed.Add(float64(deposed))
}

// classify says what raft's error means for a proposal, and where to count it. Only
// the errors named here come before raft touches its log.
func (s *Store) classify(err error) (prometheus.Counter, error) {
	s.watchTransfer(err)
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return s.metrics.outcomes.notLeader, fmt.Errorf("%w: %w", errNotProposed, err)
	default:
		return s.metrics.outcomes.unknown, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}

// pause waits until no batch is in flight and keeps it so until resume is called.
// Proposals wait in the queue meanwhile, as does a second pause.
func (b *batcher) pause(ctx context.Context) (resume func(), err error) {
	var held []chan struct{}
	resume = func() {
		for _, tokens := range slices.Backward(held) {
			<-tokens
		}
	}
	for i := range 1 + maxInFlight {
		tokens := b.slots
		if i == 0 {
			tokens = b.pausing
		}
		select {
		case tokens <- struct{}{}:
			held = append(held, tokens)
		case <-ctx.Done():
			resume()
			return nil, context.Cause(ctx)
		case <-b.store.stopped:
			resume()
			return nil, ErrClosed
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
func encodeCommand(cmd *raftv1.Command, now time.Time) []byte {
	cmd.ProposedAt = timestamppb.New(now)
	data, err := proto.Marshal(cmd)
	if err != nil {
		panic(fmt.Sprintf("raftstore: encode %T: %v", cmd.GetOp(), err)) // integers only
	}
	return data
}
