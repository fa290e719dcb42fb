package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// Limits of a transaction.
const (
	MaxTxnBytes = 1536 << 10 // encoded
	MaxTxnOps   = 512        // compares, then and else operations together
	MaxKeyBytes = 1024
)

// Revision counts the transactions that changed something.
type Revision = int64

// KeyValue is a version of a key. Its value is shared: never modify it.
type KeyValue = mvcc.KeyValue

// Op is one operation of a transaction.
type Op = *raftv1.Op

// Compare is a condition on one key.
type Compare = *raftv1.Compare

// Put sets key to value, which must not be modified afterwards.
func Put(key string, value []byte) Op {
	return &raftv1.Op{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: key, Value: value}}}
}

// Delete removes key, if it exists.
func Delete(key string) Op {
	return &raftv1.Op{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: key}}}
}

// DeletePrefix removes all keys that begin with prefix; "" is all there are.
func DeletePrefix(prefix string) Op {
	return &raftv1.Op{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: prefix, RangeEnd: rangeEnd(prefix)}}}
}

// Get reads key within the transaction.
func Get(key string) Op {
	return &raftv1.Op{Op: &raftv1.Op_Range{Range: &raftv1.Range{Key: key}}}
}

// GetPrefix reads all keys that begin with prefix within the transaction, at most
// limit of them; 0 is no limit.
func GetPrefix(prefix string, limit int64) Op {
	return &raftv1.Op{Op: &raftv1.Op_Range{Range: &raftv1.Range{Key: prefix, RangeEnd: rangeEnd(prefix), Limit: limit}}}
}

func rangeEnd(prefix string) string {
	if end := mvcc.PrefixEnd(prefix); end != "" {
		return end
	}
	return mvcc.NoEnd
}

// ModIs holds if key was last changed at revision rev; 0 if it does not exist.
func ModIs(key string, rev Revision) Compare {
	return &raftv1.Compare{
		Key: key, Number: rev,
		Target: raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION,
		Result: raftv1.CompareResult_COMPARE_RESULT_EQUAL,
	}
}

// Absent holds if key does not exist.
func Absent(key string) Compare { return ModIs(key, 0) }

// Present holds if key exists.
func Present(key string) Compare {
	c := ModIs(key, 0)
	c.Result = raftv1.CompareResult_COMPARE_RESULT_NOT_EQUAL
	return c
}

// Txn is a conditional transaction: Then if all of If hold, Else otherwise.
// Each branch writes a key once at most, and sees the writes before.
type Txn struct {
	If         []Compare
	Then, Else []Op
	// Actor is who asks, Reason why: for the audit.
	Actor, Reason string
}

// Result is what became of a transaction that was not refused.
type Result struct {
	// Revision is the store's after the transaction: its own if it changed
	// something.
	Revision Revision
	// Succeeded is true if Then ran, false if Else.
	Succeeded bool
	// Ops has the result of each operation of the branch that ran. Values are
	// shared: never modify them.
	Ops []*raftv1.OpResult
}

// leaderWait bounds how long a call waits for a leader, and how long a proposed
// transaction waits for its result: as long as the longest election that is not
// an outage.
const leaderWait = 10 * time.Second

// Txn commits t through the leader, from any peer, and returns once the leader has
// applied it; this peer may lag behind Result.Revision (see WaitRevision). While
// there is no leader it waits. Errors: *ConflictError, ErrNoLeader,
// ErrOutcomeUnknown, ErrOverloaded, ErrTooLarge, ErrInvalid, ErrClosed. If ctx ends
// before the transaction was proposed, the error is an ErrNoLeader as well as
// ctx's, after that an ErrOutcomeUnknown.
func (s *Store) Txn(ctx context.Context, t Txn) (Result, error) {
	data, err := t.encode(0)
	if err != nil {
		return Result{}, err
	}
	wait := time.NewTimer(leaderWait)
	defer wait.Stop()
	retry := newBackoff()
	for {
		if err := s.Refusal(); err != nil {
			return Result{}, err
		}
		if ctx.Err() != nil {
			return Result{}, noLeader("in time", errors.Join(context.Cause(ctx), err))
		}
		leader := s.leader.Load()
		p := newProposal(data, t.Then, t.Else)
		switch leader.id {
		case "":
		case s.cfg.ID:
			s.batcher.submit(p)
		default:
			s.forwarder.submit(p)
		}
		if leader.id != "" {
			out := s.await(ctx, p)
			if !errors.Is(out.err, errNotProposed) {
				return t.result(out)
			}
			err = out.err
		}
		// Nothing was proposed: wait for another leader, or for the one there is
		// to be reached.
		again, stop := retry.timer(leader.id != "")
		select {
		case <-leader.changed:
			stop()
		case <-again:
		case <-wait.C:
			stop()
			return Result{}, noLeader(fmt.Sprintf("within %v", leaderWait), err)
		case <-ctx.Done():
		case <-s.stopped:
			stop()
			return Result{}, ErrClosed
		}
		stop()
	}
}

func noLeader(when string, cause error) error {
	if cause == nil {
		return fmt.Errorf("%w took the transaction %s", ErrNoLeader, when)
	}
	return fmt.Errorf("%w took the transaction %s: %w", ErrNoLeader, when, cause)
}

// await returns p's outcome, or one for the end of patience.
func (s *Store) await(ctx context.Context, p *proposal) outcome {
	wait := time.NewTimer(leaderWait)
	defer wait.Stop()
	var why error
	select {
	case out := <-p.done:
		return out
	case <-ctx.Done():
		why = context.Cause(ctx)
	case <-wait.C:
		why = fmt.Errorf("no answer within %v", leaderWait)
	case <-s.stopped:
		why = ErrClosed
	}
	if p.withdraw() {
		return outcome{err: fmt.Errorf("%w: %w", errNotProposed, why)}
	}
	select {
	case out := <-p.done: // both at once
		return out
	default:
		return outcome{err: fmt.Errorf("%w: %w", ErrOutcomeUnknown, why)}
	}
}

// result turns an outcome into what Txn returns.
func (t Txn) result(out outcome) (Result, error) {
	if out.err != nil {
		return Result{}, out.err
	}
	res := out.result
	if res.GetDeposed() {
		return Result{}, ErrDeposed
	}
	if !res.GetSucceeded() && len(t.Else) == 0 {
		conflict := &ConflictError{Keys: make([]KeyValue, 0, len(res.GetFailed())), Revision: res.GetRevision()}
		for _, kv := range res.GetFailed() {
			conflict.Keys = append(conflict.Keys, KeyValue{
				Key: kv.GetKey(), Value: kv.GetValue(), Create: kv.GetCreateRevision(),
				Mod: kv.GetModRevision(), Version: kv.GetVersion(), Lease: kv.GetLease(),
			})
		}
		return Result{}, conflict
	}
	return Result{Revision: res.GetRevision(), Succeeded: res.GetSucceeded(), Ops: res.GetResults()}, nil
}

// askLeader calls ask with the leader's id, in time again with another's, until it
// fails with anything but errNotProposed, or not at all; for at most leaderWait. what
// says in an error what nobody did.
func (s *Store) askLeader(ctx context.Context, what string, ask func(ctx context.Context, leader string) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, leaderWait, fmt.Errorf("no answer within %v", leaderWait))
	defer cancel()
	retry := newBackoff()
	var last error
	for ctx.Err() == nil {
		leader := s.leader.Load()
		if leader.id != "" {
			if last = ask(ctx, leader.id); !errors.Is(last, errNotProposed) {
				return last
			}
		}
		again, stop := retry.timer(leader.id != "")
		select {
		case <-leader.changed:
		case <-again:
		case <-ctx.Done():
		case <-s.stopped:
			stop()
			return ErrClosed
		}
		stop()
	}
	return fmt.Errorf("%w %s: %w", ErrNoLeader, what, errors.Join(context.Cause(ctx), last))
}

// encode checks t and returns it as a log entry holds it, stamped with a term
// unless that is 0.
func (t Txn) encode(term uint64) ([]byte, error) {
	msg := &raftv1.Txn{
		Compares: t.If, Then: t.Then, Otherwise: t.Else,
		Term: term, Actor: t.Actor, Reason: t.Reason,
	}
	if err := check(msg); err != nil {
		return nil, err
	}
	data, err := proto.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if len(data) > MaxTxnBytes {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(data), MaxTxnBytes)
	}
	return data, nil
}

// check finds what is wrong with a transaction before it is proposed. The state
// machine would take it, and all replicas alike; it is the caller who errs.
func check(t *raftv1.Txn) error {
	if n := len(t.GetCompares()) + len(t.GetThen()) + len(t.GetOtherwise()); n > MaxTxnOps {
		return fmt.Errorf("%w: %d compares and operations, the limit is %d", ErrTooLarge, n, MaxTxnOps)
	}
	if err := mvcc.Check(t); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, c := range t.GetCompares() {
		if err := checkKey(c.GetKey()); err != nil {
			return err
		}
	}
	if err := checkWrites(t.GetThen()); err != nil {
		return err
	}
	return checkWrites(t.GetOtherwise())
}

func checkKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: empty key", ErrInvalid)
	case len(key) > MaxKeyBytes:
		return fmt.Errorf("%w: key of %d bytes, the limit is %d", ErrInvalid, len(key), MaxKeyBytes)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: key %q is not UTF-8", ErrInvalid, key)
	}
	return nil
}

// checkWrites refuses a branch that writes a key twice: its history could then not
// tell by revision what the key was.
func checkWrites(ops []Op) error {
	written := make(map[string]bool, len(ops))
	type span struct{ start, end string }
	var deleted []span
	for _, op := range ops {
		var key string
		switch op := op.GetOp().(type) {
		case *raftv1.Op_Range:
			if op.Range.GetRangeEnd() == "" {
				if err := checkKey(op.Range.GetKey()); err != nil {
					return err
				}
			}
			continue
		case *raftv1.Op_Delete:
			if end := op.Delete.GetRangeEnd(); end != "" {
				deleted = append(deleted, span{op.Delete.GetKey(), end})
				continue
			}
			key = op.Delete.GetKey()
		case *raftv1.Op_Put:
			key = op.Put.GetKey()
		}
		if err := checkKey(key); err != nil {
			return err
		}
		if written[key] {
			return fmt.Errorf("%w: key %q is written twice", ErrInvalid, key)
		}
		written[key] = true
	}
	for i, d := range deleted {
		for key := range written {
			if key >= d.start && (d.end == mvcc.NoEnd || key < d.end) {
				return fmt.Errorf("%w: key %q is written and lies in the deleted range from %q", ErrInvalid, key, d.start)
			}
		}
		for _, e := range deleted[:i] {
			if (d.end == mvcc.NoEnd || e.start < d.end) && (e.end == mvcc.NoEnd || d.start < e.end) {
				return fmt.Errorf("%w: the deleted ranges from %q and %q overlap", ErrInvalid, d.start, e.start)
			}
		}
	}
	return nil
}

// backoff paces the search for a leader that can be reached.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{next: 10 * time.Millisecond} }

// timer returns a channel that fires after the next pause, and what stops it. With
// no leader known there is nothing to try again: it never fires then.
func (b *backoff) timer(known bool) (<-chan time.Time, func()) {
	if !known {
		return nil, func() {}
	}
	t := time.NewTimer(b.next)
	b.next = min(2*b.next, 200*time.Millisecond)
	return t.C, func() { t.Stop() }
}
