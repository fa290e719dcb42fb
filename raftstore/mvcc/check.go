package mvcc

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

// Limits that the log's format has.
const (
	// MaxDepth is how deep transactions may be nested: the outermost has depth 0.
	MaxDepth = 8
	// MaxTxnID is the longest id of a transaction, in bytes.
	MaxTxnID = 64
)

// Check reports what in txn this program does not understand: unknown fields, too,
// since ignoring one that another replica heeds would fork the state. An entry with
// such a transaction stops a replica; so proposers ask first.
func Check(txn *raftv1.Txn) error { return checkTxn(txn, 0) }

func checkCommand(cmd *raftv1.Command) error {
	if strange(cmd) {
		return errNewer("command")
	}
	switch op := cmd.GetOp().(type) {
	case *raftv1.Command_Batch:
		if strange(op.Batch) {
			return errNewer("field of a batch")
		}
		// Understand all of it before the first change.
		for _, txn := range op.Batch.GetTxns() {
			if err := Check(txn); err != nil {
				return err
			}
		}
	case *raftv1.Command_TermMarker:
		if strange(op.TermMarker) {
			return errNewer("field of a term marker")
		}
	case *raftv1.Command_Compact:
		if strange(op.Compact) {
			return errNewer("field of a compaction")
		}
	case *raftv1.Command_HashCheck:
		if strange(op.HashCheck) || len(op.HashCheck.GetHash()) != len(Hash{}) {
			return errNewer("form of a hash check")
		}
	default:
		return errors.New("it holds no command")
	}
	return nil
}

func checkTxn(txn *raftv1.Txn, depth int) error {
	switch {
	case strange(txn):
		return errNewer("field of a transaction")
	case len(txn.GetId()) > MaxTxnID:
		return fmt.Errorf("the transaction's id has %d bytes, at most %d are possible", len(txn.GetId()), MaxTxnID)
	case depth > MaxDepth:
		return fmt.Errorf("transactions are nested more than %d deep", MaxDepth)
	case depth > 0 && (txn.GetTerm() != 0 || txn.GetActor() != "" || txn.GetReason() != "" || len(txn.GetId()) > 0):
		return errors.New("a nested transaction has a term, actor, reason or id of its own")
	}
	for _, c := range txn.GetCompares() {
		switch {
		case strange(c):
			return errNewer("field of a compare")
		case !knownTarget(c.GetTarget()):
			return errNewer(fmt.Sprintf("compare target %v", c.GetTarget()))
		case !knownResult(c.GetResult()):
			return errNewer(fmt.Sprintf("compare result %v", c.GetResult()))
		}
	}
	for _, ops := range [...][]*raftv1.Op{txn.GetThen(), txn.GetOtherwise()} {
		for _, op := range ops {
			if err := checkOp(op, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(op *raftv1.Op, depth int) error {
	var detail proto.Message
	switch op := op.GetOp().(type) {
	case *raftv1.Op_Put:
		detail = op.Put
	case *raftv1.Op_Delete:
		detail = op.Delete
	case *raftv1.Op_Range:
		detail = op.Range
	case *raftv1.Op_Txn:
		if err := checkTxn(op.Txn, depth+1); err != nil {
			return err
		}
		detail = op.Txn
	case *raftv1.Op_LeaseGrant:
		if op.LeaseGrant.GetId() == 0 || op.LeaseGrant.GetTtlMillis() <= 0 {
			return fmt.Errorf("lease %d cannot be granted for %d ms: its id must not be 0, and its time be positive", op.LeaseGrant.GetId(), op.LeaseGrant.GetTtlMillis())
		}
		detail = op.LeaseGrant
	case *raftv1.Op_LeaseRevoke:
		detail = op.LeaseRevoke
	case *raftv1.Op_LeaseCheckpoint:
		if op.LeaseCheckpoint.GetRemainingMillis() < 0 {
			return fmt.Errorf("lease %d cannot have %d ms left", op.LeaseCheckpoint.GetId(), op.LeaseCheckpoint.GetRemainingMillis())
		}
		detail = op.LeaseCheckpoint
	default:
		return errNewer("operation")
	}
	if strange(op) || strange(detail) {
		return errNewer("field of an operation")
	}
	return nil
}

func knownTarget(t raftv1.CompareTarget) bool {
	return t >= raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION && t <= raftv1.CompareTarget_COMPARE_TARGET_LEASE
}

func knownResult(r raftv1.CompareResult) bool {
	return r >= raftv1.CompareResult_COMPARE_RESULT_EQUAL && r <= raftv1.CompareResult_COMPARE_RESULT_GREATER
}

func strange(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

func errNewer(what string) error {
	return fmt.Errorf("unknown %s: written by a newer version of holdfast; upgrade this peer", what)
}
