package object

import (
	"slices"
	"strings"
)

// Support is a place in the table of supported fields: what of a field, and of
// what lies below it, has behavior in this version. The zero Support is of a
// field that has none.
type Support struct {
	tree *fieldTree
}

// everything is the place of a field of which all is supported.
var everything = &fieldTree{}

// Supported returns the place of an object of the kind r itself. What is not one
// of the kinds of this package is supported whole.
func Supported(r Resource) Support {
	if k := builtin.byKind[r.groupVersionKind()]; k != nil {
		return Support{supportedTrees()[k.goType]}
	}
	return Support{everything}
}

// None reports whether the field is refused when it is set.
func (s Support) None() bool { return s.tree == nil }

// All reports whether the field and everything below it is supported.
func (s Support) All() bool { return s.tree != nil && s.tree.children == nil && len(s.tree.only) == 0 }

// Field returns the place of a struct's field.
func (s Support) Field(name string) Support { return s.below(name) }

// Item returns the place of a list's items.
func (s Support) Item() Support { return s.below("[]") }

// Value returns the place of a map's value under key.
func (s Support) Value(key string) Support {
	if below := s.below("[" + key + "]"); !below.None() {
		return below
	}
	if !strings.Contains(key, "/") {
		return Support{}
	}
	return s.below("[*/*]")
}

// Only returns the values, or the keys of a map, that alone are supported; nil
// if there is no such limit. "{}" is a struct in which nothing is.
func (s Support) Only() []string {
	if s.tree == nil {
		return nil
	}
	only := slices.Clone(s.tree.only)
	for name := range s.tree.children {
		if key, ok := strings.CutPrefix(name, "["); ok && name != "[]" {
			only = append(only, strings.TrimSuffix(key, "]"))
		}
	}
	slices.Sort(only)
	return only
}

func (s Support) below(segment string) Support {
	switch {
	case s.tree == nil || len(s.tree.only) > 0:
		return Support{}
	case s.tree.children == nil:
		return Support{everything}
	default:
		return Support{s.tree.children[segment]}
	}
}
