package raftstore

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of the store. All but ErrOutcomeUnknown mean that nothing was changed.
var (
	// ErrConflict is returned by Txn when compares failed and there was nothing
	// to do else; the error is a *ConflictError.
	ErrConflict = errors.New("conflict: the keys are not as the transaction expects")
	// ErrNoLeader is returned when no leader took the transaction or answered the
	// read within 10 s, or before the caller's context ended. Try again.
	ErrNoLeader = errors.New("no leader")
	// ErrOutcomeUnknown is returned by Txn when the transaction was proposed and
	// its leader then lost, or did not answer in time: it may be committed, now or
	// later. Read before trying again.
	ErrOutcomeUnknown = errors.New("outcome unknown: the transaction may have been committed")
	// ErrDeposed is returned by Leader.Txn once another leader may exist.
	ErrDeposed = errors.New("deposed: not the leader of this term any more")
	// ErrNotLeader is returned by calls that only the leader serves.
	ErrNotLeader = errors.New("not the leader")
	// ErrCompacted is returned for a revision whose history is discarded; the
	// error is a *CompactedError. List again.
	ErrCompacted = errors.New("compacted: that revision's history is discarded")
	// ErrFutureRevision is returned by ViewAt for a revision that this peer has
	// not reached, see WaitRevision; and by Txn for a range at a revision above the
	// one before the transaction.
	ErrFutureRevision = errors.New("future revision: this peer has not reached it")
	// ErrTooLarge is returned by Txn for more than MaxTxnBytes or MaxTxnOps.
	ErrTooLarge = errors.New("transaction too large")
	// ErrInvalid is returned by Txn for a transaction that makes no sense: a bad
	// key, or one key written twice.
	ErrInvalid = errors.New("invalid transaction")
	// ErrLeaseNotFound is returned by Txn when it puts a key under a lease, or
	// revokes one, that does not exist, or not any more.
	ErrLeaseNotFound = errors.New("lease not found")
	// ErrLeaseExists is returned by Txn when it grants a lease with an id that is
	// taken.
	ErrLeaseExists = errors.New("lease exists already")
	// ErrKeyNotFound is returned by Txn for a put that keeps the value or the lease
	// of a key that does not exist.
	ErrKeyNotFound = errors.New("key not found: there is nothing to keep")
	// ErrNoSpace is returned by Txn while the store has little disk left: it takes
	// only what makes room, which is deletes and the ends of leases. Delete what is
	// not needed, or give it a larger disk.
	ErrNoSpace = errors.New("no space: the store takes nothing that grows")
	// ErrOverloaded is returned by Txn when the leader's queue is full. Come back
	// later.
	ErrOverloaded = errors.New("overloaded: the leader's queue is full")
	// ErrPeerRemoved ends Run when the cluster has removed this peer, and is returned
	// by AddPeer for an id that was removed: an id is used once.
	ErrPeerRemoved = errors.New("the peer was removed from the cluster for good: delete its data directory and join under another name")
	// ErrForeignDisk ends Run when this peer's disk is not the one with which it
	// became part of the cluster, and is returned by AddPeer for such a peer: the
	// votes and entries that others count on are not on it.
	ErrForeignDisk = errors.New("not the disk with which the peer became part of the cluster: it must not return; remove the peer (holdfast peer remove), delete its data directory and join under another name")
	// ErrNoPeer is returned for an id that no member of raft has.
	ErrNoPeer = errors.New("no such peer is part of the cluster")
	// ErrDamaged is returned by New, and by Run, when the peer's own files are not
	// what it wrote. The text says which, and what to do.
	ErrDamaged = errors.New("the data of this peer is damaged")
	// ErrDiskHangs ends Run when a write to the disk does not come back. It goes on
	// hanging, whatever else ends.
	ErrDiskHangs = errors.New("the disk hangs")
	// ErrQuarantined is returned by all calls to a peer whose state was found to be
	// corrupt; see Store.Refusal. Other peers serve.
	ErrQuarantined = errors.New("quarantined: this peer's state is corrupt")
	// ErrClosed is returned once Run has ended, and by calls that need it before.
	ErrClosed = errors.New("store is not running")
)

// ConflictError tells which compares failed. It is an ErrConflict.
type ConflictError struct {
	// Keys are those whose compares failed, as they were. One that does not exist
	// has only its Key.
	Keys []KeyValue
	// Revision is the store's at which they failed.
	Revision Revision
}

func (e *ConflictError) Error() string {
	names := make([]string, 0, len(e.Keys))
	for _, kv := range e.Keys {
		if kv.Version == 0 {
			names = append(names, kv.Key+" (does not exist)")
		} else {
			names = append(names, fmt.Sprintf("%s (changed at revision %d)", kv.Key, kv.Mod))
		}
	}
	if len(names) == 0 { // the answer to a repeated transaction: it is not kept
		return ErrConflict.Error()
	}
	return ErrConflict.Error() + ": " + strings.Join(names, ", ")
}

// Is makes the error an ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// CompactedError tells from where on history exists. It is an ErrCompacted.
type CompactedError struct {
	// Horizon is the oldest revision that can be read, and watched from.
	Horizon Revision
}

func (e *CompactedError) Error() string {
	return fmt.Sprintf("%v: kept from revision %d on", ErrCompacted, e.Horizon)
}

// Is makes the error an ErrCompacted.
func (e *CompactedError) Is(target error) bool { return target == ErrCompacted }
