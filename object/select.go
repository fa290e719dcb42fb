package object

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/fields"
)

// FieldSelector parses a field selector, "spec.nodeName=n1,status.phase!=Failed",
// for objects of r. It fails for a field that r cannot be selected by, and names
// those that it can. An empty s selects everything.
func FieldSelector(r Resource, s string) (fields.Selector, error) {
	selector, err := fields.ParseSelector(s)
	if err != nil {
		return nil, fmt.Errorf("field selector %q: %w", s, err)
	}
	known := selectable(New(r))
	for _, req := range selector.Requirements() {
		if known.Has(req.Field) {
			continue
		}
		var names []string
		for name := range known {
			names = append(names, name)
		}
		slices.Sort(names)
		hint := "possible are " + strings.Join(names, ", ")
		if guess, ok := nearest(req.Field, names); ok {
			hint = "did you mean " + guess + "?"
		}
		return nil, fmt.Errorf("field selector %q: %s cannot be selected by %s: %s", s, r.Plural, req.Field, hint)
	}
	return selector, nil
}

// MatchesFields reports whether selector, made by [FieldSelector] for obj's
// kind, selects obj.
func MatchesFields(obj Object, selector fields.Selector) bool {
	if selector == nil || selector.Empty() {
		return true
	}
	return selector.Matches(selectable(obj))
}

// selectable returns the fields that obj can be selected by, with their values.
// The names are Kubernetes'.
func selectable(obj Object) fields.Set {
	set := fields.Set{"metadata.name": obj.GetName()}
	if ResourceOf(obj).Namespaced {
		set["metadata.namespace"] = obj.GetNamespace()
	}
	kindOfObject(obj).selectable(obj, set)
	return set
}
