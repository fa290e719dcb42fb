package controllers

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
)

// A transaction creates, changes and deletes at most maxWrites objects of at most
// maxBytes in all, well below raftstore.MaxTxnOps and MaxTxnBytes. The rest
// follows in the next pass, which begins as soon as this one is committed.
const (
	maxWrites = 100
	maxBytes  = 512 << 10
)

// budget is what is left of a transaction's size.
type budget struct {
	writes, bytes int
}

func newBudget() *budget { return &budget{maxWrites, maxBytes} }

// spend takes room for one write of obj, and reports whether there was any. The
// first write always fits: nothing larger than a transaction is ever stored.
func (b *budget) spend(obj object.Object) bool {
	size := 0
	if sized, ok := obj.(interface{ Size() int }); ok {
		size = sized.Size()
	}
	if b.writes == 0 || b.writes < maxWrites && size > b.bytes {
		b.writes = 0
		return false
	}
	b.writes--
	b.bytes -= size
	return true
}

// outcome is what one pass over one object decided: writes for one transaction,
// the events that tell of them, and when to look again. The zero value decides
// nothing, and nothing is written.
type outcome struct {
	txn    raftstore.Txn
	events []event
	again  time.Duration // look again after that long even if nothing changes; 0: no need
	more   bool          // look again as soon as the writes are committed
	err    error
}

// event is recorded once the writes of its outcome have been committed.
type event struct {
	about           object.Object
	warning         bool
	reason, message string
}

func (e event) kind() string {
	if e.warning {
		return corev1.EventTypeWarning
	}
	return corev1.EventTypeNormal
}

// create adds obj, provided that nothing has its name.
func (o *outcome) create(obj object.Object) {
	o.txn.If = append(o.txn.If, raftstore.Absent(string(object.KeyOf(obj))))
	o.write(obj)
}

// update replaces obj, provided that it is as it was when it was read.
func (o *outcome) update(obj object.Object) {
	o.unchanged(obj)
	o.write(obj)
}

// delete removes obj, provided that it is as it was when it was read.
func (o *outcome) delete(obj object.Object) {
	o.unchanged(obj)
	o.txn.Then = append(o.txn.Then, raftstore.Delete(string(object.KeyOf(obj))))
}

// remove deletes obj the way a person would: what has to end first is marked and
// stays until it has. obj is changed.
func (o *outcome) remove(obj object.Object, now time.Time) {
	if object.MarkDeleted(obj, now, nil) {
		o.delete(obj)
	} else {
		o.update(obj)
	}
}

// unchanged makes the writes conditional on obj being as it was when it was read.
func (o *outcome) unchanged(obj object.Object) {
	revision, err := strconv.ParseInt(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		o.fail(fmt.Errorf("%s: resourceVersion %q is not a revision: %w", object.KeyOf(obj), obj.GetResourceVersion(), err))
		return
	}
	o.txn.If = append(o.txn.If, raftstore.ModIs(string(object.KeyOf(obj)), revision))
}

func (o *outcome) write(obj object.Object) {
	data, err := object.Encode(obj)
	if err != nil {
		o.fail(err)
		return
	}
	o.txn.Then = append(o.txn.Then, raftstore.Put(string(object.KeyOf(obj)), data))
}

func (o *outcome) fail(err error) {
	if o.err == nil {
		o.err = err
	}
}

func (o *outcome) tell(about object.Object, reason, format string, args ...any) {
	o.events = append(o.events, event{about: about, reason: reason, message: fmt.Sprintf(format, args...)})
}

func (o *outcome) warn(about object.Object, reason, format string, args ...any) {
	o.events = append(o.events, event{about: about, warning: true, reason: reason, message: fmt.Sprintf(format, args...)})
}

// lookIn asks for another pass after d, or sooner if that was asked for before.
func (o *outcome) lookIn(d time.Duration) {
	if d > 0 && (o.again == 0 || d < o.again) {
		o.again = d
	}
}

// absent makes the writes conditional on nothing being under key.
func (o *outcome) absent(key object.Key) {
	o.txn.If = append(o.txn.If, raftstore.Absent(string(key)))
}
