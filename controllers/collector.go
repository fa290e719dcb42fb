package controllers

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// ownerState is an owner reference held against the store.
type ownerState struct {
	ref metav1.OwnerReference
	// gone: nothing with the reference's uid is under key any more. A key that is
	// empty is of a kind that is not served; such an owner is taken to be there.
	gone bool
	// ending: it is being deleted in the foreground, after what it owns.
	ending bool
	key    object.Key
	// other is what has the owner's name now, if anything has.
	other object.Object
}

// collectionPlan is the outcome of one pass over an object that depends on
// others.
type collectionPlan struct {
	action collectionAction
	keep   []metav1.OwnerReference // dropReferences: what is left of them
	// foreground: delete it in the foreground, too.
	foreground bool
	reason     string
}

type collectionAction int8

const (
	collectNothing collectionAction = iota
	// collectDelete deletes the object as a person would: a pod gets its time to
	// stop.
	collectDelete
	// collectErase removes the object at once: nobody is left to finish its
	// deletion.
	collectErase
	// collectDropReferences keeps the object, for some of its owners are there.
	collectDropReferences
)

// String returns the action as testdata writes it.
func (a collectionAction) String() string {
	return [...]string{"nothing", "delete", "erase", "drop-references"}[a]
}

// planCollection decides what becomes of obj when what it depends on may be gone.
// nodeGone says that obj is a pod bound to a node that is not in the cluster, owns
// that there are objects that depend on obj. It is pure: testdata/collector states
// its whole behavior.
//
// An object whose owners are all gone is deleted, as Kubernetes' background
// deletion does; so is one whose owners wait for that, and then what it owns comes
// before it as well. Owners are told by their uid: another object of the same name
// is not the owner. A pod whose node has been removed is erased: no agent is left
// to report its end, and removing the node says that the machine is gone; a fenced
// one only after the node's lease has ended for certain, all the same.
func planCollection(obj object.Object, owners []ownerState, owns, nodeGone bool) collectionPlan {
	if nodeGone {
		return collectionPlan{action: collectErase, reason: "its node was removed from the cluster"}
	}
	var lost *ownerState
	var keep []metav1.OwnerReference
	ending := false
	for i := range owners {
		switch {
		case owners[i].gone, owners[i].ending:
			lost = &owners[i]
			ending = ending || owners[i].ending
		default:
			keep = append(keep, owners[i].ref)
		}
	}
	if lost == nil || object.Deleting(obj) && !isTracked(obj) {
		return collectionPlan{} // what is deleted, but waits for a job to count it, waits in vain
	}
	reason := fmt.Sprintf("owner %s %s is gone", lost.ref.Kind, lost.ref.Name)
	if lost.ending {
		reason = fmt.Sprintf("owner %s %s is being deleted", lost.ref.Kind, lost.ref.Name)
	}
	if len(keep) > 0 {
		return collectionPlan{action: collectDropReferences, keep: keep, reason: reason + ", others are not"}
	}
	return collectionPlan{action: collectDelete, foreground: ending && owns, reason: reason}
}

// endingPlan is the outcome of one pass over an object that is being deleted and
// waits for something to become of what it owns.
type endingPlan struct {
	release []object.Object // dependents that lose their reference to it
	done    string          // the finalizer that has done its work; empty: not yet
	more    bool            // there is more to release
}

// planEnding decides the next step of deleting owner, which has the finalizer
// foregroundDeletion, and waits until everything is gone that blocks its deletion,
// or the finalizer orphan, and lets go of everything. It is pure:
// testdata/ending states its whole behavior. The dependents released are changed.
func planEnding(owner object.Object, dependents []object.Object) endingPlan {
	var plan endingPlan
	switch waitsFor(owner) {
	case metav1.FinalizerOrphanDependents:
		room := newBudget()
		for _, obj := range dependents {
			if plan.more = !room.spend(obj); plan.more {
				break
			}
			obj.SetOwnerReferences(slices.DeleteFunc(obj.GetOwnerReferences(), func(ref metav1.OwnerReference) bool { return ref.UID == owner.GetUID() }))
			if pod, ok := obj.(*corev1.Pod); ok {
				untrack(pod)
			}
			plan.release = append(plan.release, obj)
		}
		if len(dependents) == 0 {
			plan.done = metav1.FinalizerOrphanDependents
		}
	case metav1.FinalizerDeleteDependents:
		blocks := func(obj object.Object) bool {
			return slices.ContainsFunc(obj.GetOwnerReferences(), func(ref metav1.OwnerReference) bool {
				return ref.UID == owner.GetUID() && ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion
			})
		}
		if !slices.ContainsFunc(dependents, blocks) {
			plan.done = metav1.FinalizerDeleteDependents
		}
	}
	return plan
}

// waitsFor returns the finalizer with which obj, which is being deleted, waits for
// its dependents; empty if it does not.
func waitsFor(obj object.Object) string {
	for _, finalizer := range []string{metav1.FinalizerOrphanDependents, metav1.FinalizerDeleteDependents} {
		if object.Deleting(obj) && slices.Contains(obj.GetFinalizers(), finalizer) {
			return finalizer
		}
	}
	return ""
}

// outcome turns the plan into writes.
func (p endingPlan) outcome(owner object.Object, now time.Time) outcome {
	o := outcome{more: p.more || len(p.release) > 0}
	o.txn.Reason = fmt.Sprintf("owner %s %s is being deleted", object.ResourceOf(owner).Kind, owner.GetName())
	switch {
	case p.done != "":
		owner.SetFinalizers(slices.DeleteFunc(owner.GetFinalizers(), func(f string) bool { return f == p.done }))
		o.remove(owner, now)
	case len(p.release) > 0:
		o.unchanged(owner)
		for _, obj := range p.release {
			o.update(obj)
		}
	}
	return o
}

// ownersOf holds obj's owner references against s.
func ownersOf(s state, obj object.Object) []ownerState {
	var owners []ownerState
	for _, ref := range obj.GetOwnerReferences() {
		owner := ownerState{ref: ref}
		if key, ok := s.ownerKey(obj.GetNamespace(), ref); ok {
			owner.key = key
			other, found := get(s, key)
			if found {
				owner.other = other
			}
			owner.gone = !found || other.GetUID() != ref.UID
			owner.ending = !owner.gone && waitsFor(other) == metav1.FinalizerDeleteDependents
		}
		owners = append(owners, owner)
	}
	return owners
}

// newCollector returns the controller that deletes what has lost what it depended
// on: objects without owner, pods without node.
func newCollector() *controller {
	// gone is when this leader first saw that a node with fenced pods is not there. Since
	// then nobody has renewed its lease.
	gone := map[string]time.Time{}
	return &controller{
		name: "collector",
		all: func(s state) []object.Key {
			uids := make(map[types.UID]bool, len(s.entries)) // of owners that stay
			for _, e := range s.entries {
				uids[e.uid] = e.waitsFor != metav1.FinalizerDeleteDependents
			}
			var keys []object.Key
			for key, e := range s.entries {
				if e.node != "" && !nodeExists(s.index, e.node) || e.waitsFor != "" {
					keys = append(keys, key)
					continue
				}
				for _, uid := range e.owners {
					if !uids[uid] {
						keys = append(keys, key)
						break
					}
				}
			}
			return keys
		},
		affected: func(x *index, c change) []object.Key {
			var keys []object.Key
			if c.before.uid != "" && c.before.uid != c.now.uid { // an owner may be gone
				keys = append(keys, x.dependents[c.before.uid].sorted()...)
			}
			for _, uid := range c.before.owners { // one that waits may be done
				if key, ok := x.waiting[uid]; ok {
					keys = append(keys, key)
				}
			}
			if c.now.waitsFor != c.before.waitsFor {
				keys = append(keys, c.key)
				keys = append(keys, x.dependents[c.now.uid].sorted()...)
			}
			if c.after != nil && isKind(c.now.resource, nodeResource) {
				_, _, name, _ := object.SplitKey(c.key)
				delete(gone, name)
			}
			if c.after == nil {
				if isKind(c.before.resource, nodeResource) {
					_, _, name, _ := object.SplitKey(c.key)
					keys = append(keys, x.onNode[name].sorted()...)
				}
				return keys
			}
			if c.before.uid != c.now.uid && len(c.now.owners) > 0 { // new, perhaps too late for its owner
				keys = append(keys, c.key)
			}
			if c.now.node != "" && c.now.node != c.before.node && !nodeExists(x, c.now.node) {
				keys = append(keys, c.key)
			}
			return keys
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			obj, ok := get(s, key)
			if !ok {
				return outcome{}
			}
			pod, isPod := obj.(*corev1.Pod)
			nodeGone := isPod && pod.Spec.NodeName != "" && !nodeExists(s.index, pod.Spec.NodeName)
			if nodeGone && object.Fenced(pod) {
				since, ok := gone[pod.Spec.NodeName]
				if !ok {
					since = now
					gone[pod.Spec.NodeName] = now
				}
				if wait := since.Add(object.FencingBound).Sub(now); wait > 0 {
					return outcome{again: wait}
				}
			}
			owners := ownersOf(s, obj)
			if plan := planCollection(obj, owners, len(s.dependents[obj.GetUID()]) > 0, nodeGone); plan.action != collectNothing {
				return plan.outcome(obj, owners, now)
			}
			if waitsFor(obj) == "" {
				return outcome{}
			}
			var dependents []object.Object
			for _, key := range s.dependents[obj.GetUID()].sorted() {
				if dependent, ok := get(s, key); ok {
					dependents = append(dependents, dependent)
				}
			}
			return planEnding(obj, dependents).outcome(obj, now)
		},
	}
}

// isTracked reports whether obj is a pod that its job is to count.
func isTracked(obj object.Object) bool {
	pod, ok := obj.(*corev1.Pod)
	return ok && tracked(pod)
}

func nodeExists(x *index, name string) bool {
	_, ok := x.nodes[name]
	return ok
}

// outcome turns the plan into writes.
func (p collectionPlan) outcome(obj object.Object, owners []ownerState, now time.Time) outcome {
	var o outcome
	o.txn.Reason = p.reason
	switch p.action {
	case collectNothing:
		return o
	case collectErase:
		if pod, ok := obj.(*corev1.Pod); ok && tracked(pod) {
			// Its job counts it first, as failed.
			if nothingRuns(pod) && object.Deleting(pod) {
				return outcome{}
			}
			object.MarkDeleted(pod, now, new(time.Duration(0)))
			pod.Annotations = with(pod.Annotations, object.RemovedAnnotation, "true")
			if !object.PodPhaseFinal(pod) {
				pod.Status.Phase, pod.Status.Reason, pod.Status.Message = corev1.PodFailed, "NodeRemoved", p.reason
			}
			o.update(pod)
			o.absent(nodeResource.Key("", pod.Spec.NodeName))
			o.tell(obj, "NodeRemoved", "failed: %s", p.reason)
			return o
		}
		o.delete(obj)
		if pod, ok := obj.(*corev1.Pod); ok {
			o.absent(nodeResource.Key("", pod.Spec.NodeName))
		}
		o.tell(obj, "NodeRemoved", "removed: %s", p.reason)
		return o
	case collectDelete:
		o.tell(obj, "OwnerGone", "deleted: %s", p.reason)
		if p.foreground {
			obj.SetFinalizers(append(obj.GetFinalizers(), metav1.FinalizerDeleteDependents))
		}
		if pod, ok := obj.(*corev1.Pod); ok {
			untrack(pod) // nobody is left to count it
		}
		if object.Finished(obj) {
			o.delete(obj)
		} else {
			o.remove(obj, now)
		}
	case collectDropReferences:
		obj.SetOwnerReferences(p.keep)
		o.update(obj)
	}
	for _, owner := range owners {
		if !owner.gone && !owner.ending {
			continue
		}
		if owner.other != nil {
			o.unchanged(owner.other)
		} else {
			o.absent(owner.key)
		}
	}
	return o
}
