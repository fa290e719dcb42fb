package raftstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// Limits of a transaction.
const (
	MaxTxnBytes = 1536 << 10 // encoded
	MaxTxnOps   = 512        // compares and operations of both branches, nested ones too
	MaxKeyBytes = 1024
	MaxTxnDepth = mvcc.MaxDepth
	MaxTxnID    = mvcc.MaxTxnID // bytes
)

// Revision counts the transactions that changed something.
type Revision = int64

// KeyValue is a version of a key. Its value is shared: never modify it.
type KeyValue = mvcc.KeyValue

// Op is one operation of a transaction.
type Op = *raftv1.Op

// Compare is a condition on a key, or on all keys of a range.
type Compare = *raftv1.Compare

// NoEnd as the end of a range stands for no bound. An empty end means the start
// alone, as a key.
const NoEnd = mvcc.NoEnd

// Put sets key to value, which must not be modified afterwards.
func Put(key string, value []byte) Op { return PutWith(key, value, PutOptions{}) }

// PutOptions is what a put may do besides.
type PutOptions struct {
	// Lease is the lease that the key lives by, 0 for none. A put without it
	// takes the key from its lease. Without that lease, ErrLeaseNotFound.
	Lease int64
	// PrevKV asks for the key as it was before, in the result.
	PrevKV bool
	// IgnoreValue and IgnoreLease keep what the key has. Without that key,
	// ErrKeyNotFound.
	IgnoreValue, IgnoreLease bool
}

// PutWith is Put with options.
func PutWith(key string, value []byte, o PutOptions) Op {
	return &raftv1.Op{Op: &raftv1.Op_Put{Put: &raftv1.Put{
		Key: key, Value: value, Lease: o.Lease, PrevKv: o.PrevKV, IgnoreValue: o.IgnoreValue, IgnoreLease: o.IgnoreLease,
	}}}
}

// Delete removes key, if it exists.
func Delete(key string) Op { return DeleteRange(key, "", false) }

// DeletePrefix removes all keys that begin with prefix; "" is all there are.
func DeletePrefix(prefix string) Op { return DeleteRange(prefix, mvcc.PrefixEnd(prefix), false) }

// DeleteRange removes the keys in [start, end). With prevKV the result has them as
// they were.
func DeleteRange(start, end string, prevKV bool) Op {
	return &raftv1.Op{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: start, RangeEnd: end, PrevKv: prevKV}}}
}

// Get reads key within the transaction.
func Get(key string) Op { return GetRange(key, "", RangeOptions{}) }

// GetPrefix reads all keys that begin with prefix within the transaction, at most
// limit of them; 0 is no limit.
func GetPrefix(prefix string, limit int64) Op {
	return GetRange(prefix, mvcc.PrefixEnd(prefix), RangeOptions{Limit: limit})
}

// RangeOptions is how a range is read.
type RangeOptions struct {
	// Limit bounds the keys returned, not those counted. 0 is no limit but that of
	// all ranges of a transaction together, mvcc.MaxRangeBytes: fewer keys than
	// counted means that there are more.
	Limit int64
	// Revision reads the keys as they were then; 0 is after the operations before
	// this one. ErrCompacted or ErrFutureRevision if that cannot be read.
	Revision Revision
	// KeysOnly leaves out the values, CountOnly the keys, too.
	KeysOnly, CountOnly bool
}

// GetRange reads the keys in [start, end) within the transaction.
func GetRange(start, end string, o RangeOptions) Op {
	return &raftv1.Op{Op: &raftv1.Op_Range{Range: &raftv1.Range{
		Key: start, RangeEnd: end, Limit: o.Limit, Revision: o.Revision, KeysOnly: o.KeysOnly, CountOnly: o.CountOnly,
	}}}
}

// Nested is a transaction within another: its compares see the state before the
// outermost one, its operations what those before it have written. It has no
// actor, reason or id of its own.
func Nested(t Txn) Op {
	return &raftv1.Op{Op: &raftv1.Op_Txn{Txn: &raftv1.Txn{
		Compares: t.If, Then: t.Then, Otherwise: t.Else, Actor: t.Actor, Reason: t.Reason, Id: t.ID,
	}}}
}

// GrantLease makes a lease of at least a millisecond. It takes no revision.
// ErrLeaseExists if there is one with that id, which must not be 0. See
// Store.GrantLease, which keeps its time.
func GrantLease(id int64, ttl time.Duration) Op {
	return &raftv1.Op{Op: &raftv1.Op_LeaseGrant{LeaseGrant: &raftv1.LeaseGrant{Id: id, TtlMillis: ttl.Milliseconds()}}}
}

// RevokeLease ends a lease and deletes its keys, in key order, at one revision; it
// takes none if the lease has no keys. ErrLeaseNotFound if there is none.
func RevokeLease(id int64) Op {
	return &raftv1.Op{Op: &raftv1.Op_LeaseRevoke{LeaseRevoke: &raftv1.LeaseRevoke{Id: id}}}
}

// CheckpointLease notes how much of a lease's time is left, for a later leader. It
// takes no revision; a lease that does not exist is passed over.
func CheckpointLease(id int64, remaining time.Duration) Op {
	return &raftv1.Op{Op: &raftv1.Op_LeaseCheckpoint{LeaseCheckpoint: &raftv1.LeaseCheckpoint{Id: id, RemainingMillis: remaining.Milliseconds()}}}
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
	// ID, if not empty, makes the transaction take effect at most once: one with
	// the same id that has been applied before, and is among the last 65,536 with
	// an id, is answered with the result of then. So it can be sent again when its
	// outcome is unknown. 16 random bytes will do; at most MaxTxnID.
	ID []byte
}

// AllOps yields the operations of both branches, and those of nested transactions
// after the nested one itself. Who may do all of them may do the transaction; its
// AllCompares read keys, too.
func (t Txn) AllOps() iter.Seq[Op] {
	return func(yield func(Op) bool) { eachOp(t.Then, t.Else, yield) }
}

// AllCompares yields the compares of the transaction and of all nested ones.
func (t Txn) AllCompares() iter.Seq[Compare] {
	return func(yield func(Compare) bool) {
		for _, c := range t.If {
			if !yield(c) {
				return
			}
		}
		for op := range t.AllOps() {
			for _, c := range op.GetTxn().GetCompares() {
				if !yield(c) {
					return
				}
			}
		}
	}
}

func eachOp(then, otherwise []Op, yield func(Op) bool) bool {
	for _, ops := range [...][]Op{then, otherwise} {
		for _, op := range ops {
			if !yield(op) {
				return false
			}
			if t := op.GetTxn(); t != nil && !eachOp(t.GetThen(), t.GetOtherwise(), yield) {
				return false
			}
		}
	}
	return true
}

// Result is what became of a transaction that was not refused.
type Result struct {
	// Revision is the store's after the transaction: its own if it changed
	// something.
	Revision Revision
	// Succeeded is true if Then ran, false if Else.
	Succeeded bool
	// Ops has the result of each operation of the branch that ran. They are
	// shared: never modify them.
	Ops []*raftv1.OpResult
	// Replayed is true when a transaction with the same ID had been applied
	// before: Revision and Succeeded are of then, and there are no Ops.
	Replayed bool
}

// leaderWait bounds how long a call waits for a leader, and how long a proposed
// transaction waits for its result: as long as the longest election that is not
// an outage.
const leaderWait = 10 * time.Second

// Txn commits t through the leader, from any peer, and returns once the leader has
// applied it; this peer may lag behind Result.Revision (see WaitRevision). While
// there is no leader it waits. Errors: *ConflictError, ErrNoLeader,
// ErrOutcomeUnknown, ErrOverloaded, ErrTooLarge, ErrInvalid, ErrClosed, and for what
// is impossible as things are ErrLeaseNotFound, ErrLeaseExists, ErrKeyNotFound,
// ErrCompacted, ErrFutureRevision, ErrNoSpace. If ctx ends
// before the transaction was proposed, the error is an ErrNoLeader as well as
// ctx's, after that an ErrOutcomeUnknown.
func (s *Store) Txn(ctx context.Context, t Txn) (Result, error) { return s.txn(ctx, t, nil) }

// txn is Txn. unknown is the error of an earlier attempt that may have been committed,
// if there was one: then no refusal says that nothing has happened.
func (s *Store) txn(ctx context.Context, t Txn, unknown error) (Result, error) {
	data, err := t.encode(0)
	if err != nil {
		return Result{}, err
	}
	wait := time.NewTimer(leaderWait)
	defer wait.Stop()
	retry := newBackoff()
	gaveUp := func(when string, why error) error {
		if unknown != nil {
			return errors.Join(unknown, why)
		}
		return noLeader(when, why)
	}
	for {
		if err := s.Refusal(); err != nil {
			return Result{}, errors.Join(unknown, err)
		}
		if ctx.Err() != nil {
			return Result{}, gaveUp("in time", errors.Join(context.Cause(ctx), err))
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
			switch out := s.await(ctx, p); {
			case errors.Is(out.err, ErrOutcomeUnknown) && len(t.ID) > 0 && !errors.Is(out.err, ErrClosed):
				unknown = out.err // to ask again is safe
			case errors.Is(out.err, errNotProposed), out.err != nil && unknown != nil:
				err = out.err // says nothing of the attempts before
			default:
				return t.result(out)
			}
		}
		// Wait for another leader, or for the one there is to be reached.
		again, stop := retry.timer(leader.id != "")
		select {
		case <-leader.changed:
			stop()
		case <-again:
		case <-wait.C:
			stop()
			return Result{}, gaveUp(fmt.Sprintf("within %v", leaderWait), err)
		case <-ctx.Done():
		case <-s.stopped:
			stop()
			return Result{}, errors.Join(unknown, ErrClosed)
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
	if err := refusal(res); err != nil {
		return Result{}, err
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
	return Result{
		Revision: res.GetRevision(), Succeeded: res.GetSucceeded(), Ops: res.GetResults(), Replayed: res.GetReplayed(),
	}, nil
}

// refusal returns the error for a transaction that was impossible, nil for others.
func refusal(res *raftv1.TxnResult) error {
	var err error
	switch res.GetRefusal() {
	case raftv1.TxnRefusal_TXN_REFUSAL_UNSPECIFIED:
		return nil
	case raftv1.TxnRefusal_TXN_REFUSAL_LEASE_NOT_FOUND:
		err = ErrLeaseNotFound
	case raftv1.TxnRefusal_TXN_REFUSAL_LEASE_EXISTS:
		err = ErrLeaseExists
	case raftv1.TxnRefusal_TXN_REFUSAL_KEY_NOT_FOUND:
		err = ErrKeyNotFound
	case raftv1.TxnRefusal_TXN_REFUSAL_COMPACTED:
		if horizon, e := strconv.ParseInt(res.GetRefused(), 10, 64); e == nil {
			return &CompactedError{Horizon: horizon}
		}
		err = ErrCompacted
	case raftv1.TxnRefusal_TXN_REFUSAL_FUTURE_REVISION:
		err = ErrFutureRevision
	case raftv1.TxnRefusal_TXN_REFUSAL_NO_SPACE:
		err = ErrNoSpace
	default:
		return fmt.Errorf("transaction refused for a reason that this version does not know (%v); upgrade this peer", res.GetRefusal())
	}
	if res.GetRefused() == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, res.GetRefused())
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
	if data, ok := t.encodePut(term); ok {
		return data, nil
	}
	msg := &raftv1.Txn{
		Compares: t.If, Then: t.Then, Otherwise: t.Else,
		Term: term, Actor: t.Actor, Reason: t.Reason, Id: t.ID,
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

// encodePut is encode for what most transactions are, one plain put: by hand, which
// costs a fraction. What is not that, or is wrong, it leaves to the long way.
func (t Txn) encodePut(term uint64) (data []byte, ok bool) {
	if len(t.Then) != 1 || len(t.If)+len(t.Else) > 0 || len(t.ID) > MaxTxnID {
		return nil, false
	}
	put := t.Then[0].GetPut()
	if put == nil || put.GetPrevKv() || put.GetIgnoreValue() || put.GetIgnoreLease() || checkRange(put.GetKey(), "") != nil {
		return nil, false
	}
	// The tags of fields below 16 take a byte.
	inner := 1 + protowire.SizeBytes(len(put.GetKey()))
	if len(put.GetValue()) > 0 {
		inner += 1 + protowire.SizeBytes(len(put.GetValue()))
	}
	if put.GetLease() != 0 {
		inner += 1 + protowire.SizeVarint(uint64(put.GetLease()))
	}
	op := 1 + protowire.SizeBytes(inner)
	size := 1 + protowire.SizeBytes(op) + 1 + protowire.SizeVarint(term) + 3 +
		protowire.SizeBytes(len(t.Actor)) + protowire.SizeBytes(len(t.Reason)) + protowire.SizeBytes(len(t.ID))
	if size > MaxTxnBytes {
		return nil, false
	}
	field := func(num protowire.Number, value string) {
		if value != "" {
			data = protowire.AppendString(protowire.AppendTag(data, num, protowire.BytesType), value)
		}
	}
	data = make([]byte, 0, size)
	data = protowire.AppendVarint(protowire.AppendTag(data, fieldTxnThen, protowire.BytesType), uint64(op))
	data = protowire.AppendVarint(protowire.AppendTag(data, fieldOpPut, protowire.BytesType), uint64(inner))
	field(fieldPutKey, put.GetKey())
	if len(put.GetValue()) > 0 {
		data = protowire.AppendBytes(protowire.AppendTag(data, fieldPutValue, protowire.BytesType), put.GetValue())
	}
	if put.GetLease() != 0 {
		data = protowire.AppendVarint(protowire.AppendTag(data, fieldPutLease, protowire.VarintType), uint64(put.GetLease()))
	}
	if term != 0 {
		data = protowire.AppendVarint(protowire.AppendTag(data, fieldTxnTerm, protowire.VarintType), term)
	}
	field(fieldTxnActor, t.Actor)
	field(fieldTxnReason, t.Reason)
	if len(t.ID) > 0 {
		data = protowire.AppendBytes(protowire.AppendTag(data, fieldTxnID, protowire.BytesType), t.ID)
	}
	return data, true
}

// Field numbers of the messages that encodePut writes.
const (
	fieldTxnThen   = 2
	fieldTxnTerm   = 4
	fieldTxnActor  = 5
	fieldTxnReason = 6
	fieldTxnID     = 7
	fieldOpPut     = 1
	fieldPutKey    = 1
	fieldPutValue  = 2
	fieldPutLease  = 3
)

// check finds what is wrong with a transaction before it is proposed. The state
// machine would take most of it, and all replicas alike; it is the caller who errs.
func check(t *raftv1.Txn) error {
	if err := mvcc.Check(t); err != nil { // first: it bounds the depth
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	n := len(t.GetCompares())
	for op := range (Txn{Then: t.GetThen(), Else: t.GetOtherwise()}).AllOps() {
		n += 1 + len(op.GetTxn().GetCompares())
	}
	if n > MaxTxnOps {
		return fmt.Errorf("%w: %d compares and operations, the limit is %d", ErrTooLarge, n, MaxTxnOps)
	}
	for c := range (Txn{If: t.GetCompares(), Then: t.GetThen(), Else: t.GetOtherwise()}).AllCompares() {
		if err := checkRange(c.GetKey(), c.GetRangeEnd()); err != nil {
			return err
		}
	}
	for _, ops := range [...][]Op{t.GetThen(), t.GetOtherwise()} {
		if _, err := checkWrites(ops); err != nil {
			return err
		}
	}
	return nil
}

// checkRange refuses what cannot be a key, or the bounds of a range.
func checkRange(key, end string) error {
	switch {
	case key == "" && end == "":
		return fmt.Errorf("%w: empty key", ErrInvalid)
	case len(key) > MaxKeyBytes, len(end) > MaxKeyBytes:
		return fmt.Errorf("%w: key of %d bytes, the limit is %d", ErrInvalid, max(len(key), len(end)), MaxKeyBytes)
	}
	return nil
}

// writes is what a list of operations may write, in one run or another.
type writes struct {
	puts    map[string]bool
	deletes []span
	revokes bool // what that deletes is not known before
}

// span is a key, or with an end the keys in [start, end).
type span struct{ start, end string }

func (d span) holds(key string) bool {
	if d.end == "" {
		return key == d.start
	}
	return key >= d.start && (d.end == mvcc.NoEnd || key < d.end)
}

// checkWrites refuses operations that can put a key twice, or put and delete it: its
// history could then not tell by revision what the key was. As in etcd's
// checkIntervals, the two branches of a nested transaction may write the same keys,
// since only one of them runs, and deleting twice is no harm.
func checkWrites(ops []Op) (all writes, err error) {
	for _, op := range ops {
		if err := checkOp(op); err != nil {
			return all, err
		}
		var branches [2]writes
		switch op := op.GetOp().(type) {
		case *raftv1.Op_Put:
			// Nearly all operations are puts: no map for each of them.
			if err := all.put(op.Put.GetKey()); err != nil {
				return all, err
			}
			continue
		case *raftv1.Op_Delete:
			branches[0].deletes = []span{{op.Delete.GetKey(), op.Delete.GetRangeEnd()}}
		case *raftv1.Op_LeaseRevoke:
			branches[0].revokes = true
		case *raftv1.Op_Txn:
			if branches[0], err = checkWrites(op.Txn.GetThen()); err != nil {
				return all, err
			}
			if branches[1], err = checkWrites(op.Txn.GetOtherwise()); err != nil {
				return all, err
			}
		}
		for _, b := range branches {
			if err := all.collide(b); err != nil {
				return all, err
			}
		}
		for _, b := range branches {
			all.merge(b)
		}
	}
	return all, nil
}

// put adds a put of key to w, or returns an error as collide does.
func (w *writes) put(key string) error {
	if w.puts[key] {
		return errTwice(key)
	}
	if err := w.spares(key); err != nil {
		return err
	}
	if w.puts == nil {
		w.puts = make(map[string]bool)
	}
	w.puts[key] = true
	return nil
}

func errTwice(key string) error {
	return fmt.Errorf("%w: key %q is written twice", ErrInvalid, key)
}

// spares returns an error if w can delete key.
func (w writes) spares(key string) error {
	for _, d := range w.deletes {
		if d.holds(key) {
			return fmt.Errorf("%w: key %q is written and deleted", ErrInvalid, key)
		}
	}
	if w.revokes {
		return fmt.Errorf("%w: key %q is written beside the end of a lease, which may delete it", ErrInvalid, key)
	}
	return nil
}

// collide returns an error if w and other, both run, can write a key twice.
func (w writes) collide(other writes) error {
	for key := range other.puts {
		if w.puts[key] {
			return errTwice(key)
		}
	}
	for _, pair := range [...][2]writes{{w, other}, {other, w}} {
		if len(pair[1].deletes) == 0 && !pair[1].revokes {
			continue // do not visit all puts for nothing
		}
		for key := range pair[0].puts {
			if err := pair[1].spares(key); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *writes) merge(other writes) {
	if w.puts == nil {
		w.puts = other.puts
	} else {
		maps.Copy(w.puts, other.puts)
	}
	w.deletes = append(w.deletes, other.deletes...)
	w.revokes = w.revokes || other.revokes
}

// checkOp refuses an operation that is wrong by itself.
func checkOp(op Op) error {
	switch op := op.GetOp().(type) {
	case *raftv1.Op_Put:
		switch put := op.Put; {
		case put.GetKey() == "":
			return fmt.Errorf("%w: empty key", ErrInvalid)
		case put.GetIgnoreValue() && len(put.GetValue()) > 0:
			return fmt.Errorf("%w: key %q is to keep its value and is given one", ErrInvalid, put.GetKey())
		case put.GetIgnoreLease() && put.GetLease() != 0:
			return fmt.Errorf("%w: key %q is to keep its lease and is given one", ErrInvalid, put.GetKey())
		}
		return checkRange(op.Put.GetKey(), "")
	case *raftv1.Op_Delete:
		return checkRange(op.Delete.GetKey(), op.Delete.GetRangeEnd())
	case *raftv1.Op_Range:
		if op.Range.GetRevision() < 0 || op.Range.GetLimit() < 0 {
			return fmt.Errorf("%w: a range with a negative limit or revision", ErrInvalid)
		}
		return checkRange(op.Range.GetKey(), op.Range.GetRangeEnd())
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
