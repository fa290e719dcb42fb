package controllers

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
)

var namespaceResource = object.ResourceOf(&corev1.Namespace{})

// namespacePlan is the outcome of one pass over a namespace that is being
// deleted.
type namespacePlan struct {
	remove  []object.Object // contents whose deletion has not begun
	gone    bool            // nothing is left: the namespace itself goes
	changed bool            // its conditions are to be written
	more    bool            // there is more to remove
}

// planNamespace decides the next step of deleting ns. contents are the objects in
// it. It is pure: testdata/namespace states its whole behavior. ns is changed.
//
// Everything in it is deleted the way a person would: pods get their time to
// stop, finalizers are waited for. What is waited for stands in the condition
// NamespaceContentRemaining. When nothing is left, ns goes.
func planNamespace(ns *corev1.Namespace, contents []object.Object, now time.Time) namespacePlan {
	var plan namespacePlan
	if !object.Deleting(ns) {
		return plan
	}
	var waiting []object.Object
	room := newBudget()
	for _, obj := range contents {
		switch {
		case object.Deleting(obj):
			waiting = append(waiting, obj)
		case !room.spend(obj):
			plan.more = true
		default:
			plan.remove = append(plan.remove, obj)
		}
	}
	if len(contents) == 0 && len(ns.Finalizers) == 0 {
		plan.gone = true
		return plan
	}
	if len(plan.remove) > 0 {
		return plan // what remains is said when that is done
	}
	ns.Status.Phase = corev1.NamespaceTerminating
	c := corev1.NamespaceCondition{
		Type:               corev1.NamespaceContentRemaining,
		Status:             corev1.ConditionTrue,
		Reason:             "SomeResourcesRemain",
		Message:            describeRemaining(waiting),
		LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
	}
	if len(waiting) == 0 {
		plan.changed = dropNamespaceCondition(ns, corev1.NamespaceContentRemaining)
		c.Type, c.Reason = corev1.NamespaceFinalizersRemaining, "SomeFinalizersRemain"
		c.Message = "waiting for the finalizers of the namespace itself: " + strings.Join(ns.Finalizers, ", ")
	}
	plan.changed = setNamespaceCondition(ns, c) || plan.changed
	return plan
}

// describeRemaining names what the namespace waits for, by kind, with the first
// of each.
func describeRemaining(waiting []object.Object) string {
	type kind struct {
		plural, first string
		n             int
	}
	var kinds []*kind
	for _, obj := range waiting {
		plural := object.ResourceOf(obj).Plural
		at := slices.IndexFunc(kinds, func(k *kind) bool { return k.plural == plural })
		if at < 0 {
			at = len(kinds)
			kinds = append(kinds, &kind{plural: plural, first: obj.GetName()})
		}
		kinds[at].n++
	}
	parts := make([]string, len(kinds))
	for i, k := range kinds {
		more := ""
		if k.n > 1 {
			more = ", …"
		}
		parts[i] = fmt.Sprintf("%d %s (%s%s)", k.n, k.plural, k.first, more)
	}
	return "waiting for " + strings.Join(parts, " and ")
}

func setNamespaceCondition(ns *corev1.Namespace, c corev1.NamespaceCondition) (changed bool) {
	at := slices.IndexFunc(ns.Status.Conditions, func(have corev1.NamespaceCondition) bool { return have.Type == c.Type })
	if at < 0 {
		ns.Status.Conditions = append(ns.Status.Conditions, c)
		return true
	}
	old := ns.Status.Conditions[at]
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	ns.Status.Conditions[at] = c
	return old != c
}

func dropNamespaceCondition(ns *corev1.Namespace, t corev1.NamespaceConditionType) (changed bool) {
	before := len(ns.Status.Conditions)
	ns.Status.Conditions = slices.DeleteFunc(ns.Status.Conditions, func(c corev1.NamespaceCondition) bool { return c.Type == t })
	return len(ns.Status.Conditions) != before
}

// newNamespaces returns the controller that empties namespaces that are being
// deleted, and removes them.
func newNamespaces() *controller {
	return &controller{
		name: "namespace",
		all: func(s state) []object.Key {
			var keys []object.Key
			for name := range s.terminating {
				keys = append(keys, namespaceResource.Key("", name))
			}
			return keys
		},
		affected: func(x *index, c change) []object.Key {
			for _, e := range []entry{c.before, c.now} {
				if e.namespace != "" && x.terminating[e.namespace] {
					return []object.Key{namespaceResource.Key("", e.namespace)}
				}
			}
			return affectsItself(namespaceResource, c)
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			ns, ok := object.Get[*corev1.Namespace](s, key)
			if !ok || !object.Deleting(ns) {
				return outcome{}
			}
			return planNamespace(ns, contentsOf(s, ns.Name), now).outcome(ns, now)
		},
	}
}

// contentsOf returns all objects in a namespace, by kind and name.
func contentsOf(s state, namespace string) []object.Object {
	var all []object.Object
	for _, r := range s.catalog.Resources() {
		if !r.Namespaced || r.Kind == "Event" && r.Group == "" { // events are not in the store
			continue
		}
		all = slices.AppendSeq(all, s.catalog.List(s, r, namespace))
	}
	return all
}

// outcome turns the plan into writes.
func (p namespacePlan) outcome(ns *corev1.Namespace, now time.Time) outcome {
	o := outcome{more: p.more}
	o.txn.Reason = "namespace " + ns.Name + " is being deleted"
	for _, obj := range p.remove {
		o.remove(obj, now)
	}
	switch {
	case p.gone:
		o.delete(ns)
	case p.changed:
		o.update(ns)
	case len(p.remove) > 0:
		o.unchanged(ns)
	}
	return o
}
