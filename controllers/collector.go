package controllers

import (
	"fmt"
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
	key  object.Key
	// other is what has the owner's name now, if anything has.
	other object.Object
}

// collectionPlan is the outcome of one pass over an object that depends on
// others.
type collectionPlan struct {
	action collectionAction
	keep   []metav1.OwnerReference // dropReferences: what is left of them
	reason string
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
// nodeGone says that obj is a pod bound to a node that is not in the cluster. It
// is pure: testdata/collector states its whole behavior.
//
// An object whose owners are all gone is deleted, as Kubernetes' background
// deletion does. Owners are told by their uid: another object of the same name
// is not the owner. A pod whose node has been removed is erased: no agent is left
// to report its end, and removing the node says that the machine is gone.
func planCollection(obj object.Object, owners []ownerState, nodeGone bool) collectionPlan {
	if nodeGone {
		return collectionPlan{action: collectErase, reason: "its node was removed from the cluster"}
	}
	var gone *ownerState
	var keep []metav1.OwnerReference
	for i := range owners {
		if owners[i].gone {
			gone = &owners[i]
		} else {
			keep = append(keep, owners[i].ref)
		}
	}
	switch {
	case gone == nil || object.Deleting(obj):
		return collectionPlan{}
	case len(keep) > 0:
		return collectionPlan{action: collectDropReferences, keep: keep, reason: fmt.Sprintf("owner %s %s is gone, others are not", gone.ref.Kind, gone.ref.Name)}
	default:
		return collectionPlan{action: collectDelete, reason: fmt.Sprintf("owner %s %s is gone", gone.ref.Kind, gone.ref.Name)}
	}
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
		}
		owners = append(owners, owner)
	}
	return owners
}

// newCollector returns the controller that deletes what has lost what it depended
// on: objects without owner, pods without node.
func newCollector() *controller {
	return &controller{
		name: "collector",
		all: func(s state) []object.Key {
			uids := make(map[types.UID]bool, len(s.entries))
			for _, e := range s.entries {
				uids[e.uid] = true
			}
			var keys []object.Key
			for key, e := range s.entries {
				if e.node != "" && !nodeExists(s.index, e.node) {
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
			owners := ownersOf(s, obj)
			plan := planCollection(obj, owners, nodeGone)
			return plan.outcome(obj, owners, now)
		},
	}
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
		o.delete(obj)
		if pod, ok := obj.(*corev1.Pod); ok {
			o.absent(nodeResource.Key("", pod.Spec.NodeName))
		}
		o.tell(obj, "NodeRemoved", "removed: %s", p.reason)
		return o
	case collectDelete:
		o.tell(obj, "OwnerGone", "deleted: %s", p.reason)
		o.remove(obj, now)
	case collectDropReferences:
		obj.SetOwnerReferences(p.keep)
		o.update(obj)
	}
	for _, owner := range owners {
		if !owner.gone {
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
