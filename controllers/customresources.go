package controllers

import (
	"fmt"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/holdfast-io/holdfast/object"
)

var definitionResource = object.ResourceOf(&apiextensionsv1.CustomResourceDefinition{})

// definitionPlan is the outcome of one pass over the definition of a custom kind.
type definitionPlan struct {
	remove  []object.Object // its objects whose deletion has not begun
	gone    bool            // nothing is left: the definition itself goes
	changed bool            // its status or finalizers are to be written
	more    bool            // there is more to remove
}

// planDefinition decides the next step for crd, which has objects, at now. It is
// pure. crd is changed.
//
// While crd is being deleted, its objects are deleted the way a person would, and
// crd waits for the last. Else its names are looked at again: one that another
// definition had may have become free.
func planDefinition(crd *apiextensionsv1.CustomResourceDefinition, others []*apiextensionsv1.CustomResourceDefinition, objects []object.Object, now time.Time) definitionPlan {
	if !object.Deleting(crd) {
		return definitionPlan{changed: object.EstablishCRD(crd, others, now)}
	}
	var plan definitionPlan
	room := newBudget()
	for _, obj := range objects {
		switch {
		case object.Deleting(obj):
		case !room.spend(obj):
			plan.more = true
		default:
			plan.remove = append(plan.remove, obj)
		}
	}
	if len(objects) > 0 {
		return plan
	}
	plan.changed = object.DropCRDFinalizer(crd)
	plan.gone = len(crd.Finalizers) == 0
	return plan
}

// newDefinitions returns the controller that empties the definitions of custom
// kinds that are being deleted, and gives free names to those that wait for them.
func newDefinitions() *controller {
	return &controller{
		name: "customresources",
		all:  func(s state) []object.Key { return unsettled(s.index) },
		affected: func(x *index, c change) []object.Key {
			if isKind(c.before.resource, definitionResource) || isKind(c.now.resource, definitionResource) {
				return unsettled(x) // a name may have become free
			}
			for _, e := range []entry{c.before, c.now} {
				if e.resource.Custom && x.unsettled[e.resource.String()] {
					return []object.Key{definitionResource.Key("", e.resource.String())}
				}
			}
			return nil
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			crd, ok := object.Get[*apiextensionsv1.CustomResourceDefinition](s, key)
			if !ok {
				return outcome{}
			}
			var objects []object.Object
			if r, err := s.catalog.For(crd.Name); err == nil && object.Deleting(crd) {
				for obj := range s.catalog.List(s, r, "") {
					objects = append(objects, obj)
				}
			}
			others := object.List[*apiextensionsv1.CustomResourceDefinition](s, "")
			return planDefinition(crd, others, objects, now).outcome(crd, now)
		},
	}
}

func unsettled(x *index) []object.Key {
	var keys []object.Key
	for name := range x.unsettled {
		keys = append(keys, definitionResource.Key("", name))
	}
	return keys
}

// outcome turns the plan into writes.
func (p definitionPlan) outcome(crd *apiextensionsv1.CustomResourceDefinition, now time.Time) outcome {
	o := outcome{more: p.more}
	o.txn.Reason = fmt.Sprintf("custom kind %s", crd.Name)
	for _, obj := range p.remove {
		o.remove(obj, now)
	}
	switch {
	case p.gone:
		o.delete(crd)
	case p.changed:
		o.update(crd)
	case len(p.remove) > 0:
		o.unchanged(crd)
	}
	return o
}
