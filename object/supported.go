package object

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The table of supported fields: what is not in it is refused when it is set. A
// field enters the table with the change that gives it behavior.
//
// A line is a path; "[]" is any item of a list, "[cpu]" that key of a map. A
// path covers everything below it, unless other lines go on from there. "=" is
// followed by the only values that have behavior, mostly the default, which
// changes nothing when it is written out; "{}" is a struct in which nothing is
// set.

const supportedMetadata = `
	apiVersion
	kind
	metadata.name
	metadata.generateName
	metadata.namespace
	metadata.labels
	metadata.annotations
	metadata.uid
	metadata.resourceVersion
	metadata.generation
	metadata.creationTimestamp
	metadata.deletionTimestamp
	metadata.deletionGracePeriodSeconds
	metadata.ownerReferences
	metadata.finalizers
	metadata.managedFields
`

// below puts every path of a part of the table below parent.
func below(parent, part string) string {
	var b strings.Builder
	for line := range strings.Lines(part) {
		if line = strings.TrimSpace(line); line != "" {
			b.WriteString(parent + "." + line + "\n")
		}
	}
	return b.String()
}

// fieldTree is a part of the table, by path segment: "spec", "[]", "[cpu]".
type fieldTree struct {
	children map[string]*fieldTree // none: everything below is supported
	only     []string              // values; none: all are supported
}

var supportedTrees = sync.OnceValue(func() map[reflect.Type]*fieldTree {
	trees := map[reflect.Type]*fieldTree{}
	for _, k := range kinds {
		root := &fieldTree{}
		for line := range strings.Lines(k.supported) {
			if strings.TrimSpace(line) == "" {
				continue
			}
			path, values, _ := strings.Cut(line, "=")
			at := root
			for _, segment := range segments(strings.TrimSpace(path)) {
				if at.children == nil {
					at.children = map[string]*fieldTree{}
				}
				if at.children[segment] == nil {
					at.children[segment] = &fieldTree{}
				}
				at = at.children[segment]
			}
			at.only = strings.Fields(values)
		}
		trees[k.goType] = root
	}
	return trees
})

// segments splits "a.b[].c" into "a", "b", "[]", "c".
func segments(path string) []string {
	return strings.Split(strings.ReplaceAll(path, "[", ".["), ".")
}

// unsupported returns an error for each field that is set in obj and not in the
// table: for the outermost such field, not for all that is in it.
func unsupported(obj Object) field.ErrorList {
	if _, custom := obj.(*Custom); custom {
		return nil // its schema says what there is
	}
	w := supportWalk{}
	w.walk(reflect.ValueOf(obj).Elem(), supportedTrees()[reflect.TypeOf(obj)], "")
	return w.errs
}

type supportWalk struct {
	errs field.ErrorList
}

func (w *supportWalk) refuse(path, detail string) {
	w.errs = append(w.errs, &field.Error{Type: notSupportedYet, Field: path, Detail: detail})
}

func (w *supportWalk) walk(v reflect.Value, tree *fieldTree, path string) {
	switch {
	case len(tree.only) > 0:
		w.value(v, tree, path)
		return
	case tree.children == nil:
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			w.walk(v.Elem(), tree, path)
		}
	case reflect.Struct:
		info := infoOf(v.Type())
		for _, name := range info.names {
			f := v.FieldByIndex(info.fields[name])
			if !isSet(f) {
				continue
			}
			if child, ok := tree.children[name]; ok {
				w.walk(f, child, join(path, name))
			} else {
				w.refuse(join(path, name), "not supported yet")
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			w.walk(v.Index(i), tree.children["[]"], path+"["+strconv.Itoa(i)+"]")
		}
	case reflect.Map:
		for _, key := range sortedKeys(v) {
			segment := "[" + key.String() + "]"
			if child, ok := tree.children[segment]; ok {
				w.walk(v.MapIndex(key), child, path+segment)
			} else {
				w.refuse(path+segment, "not supported yet")
			}
		}
	}
}

// value checks a field of which only some values have behavior.
func (w *supportWalk) value(v reflect.Value, tree *fieldTree, path string) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	if v.Kind() == reflect.Struct {
		info := infoOf(v.Type())
		for _, name := range info.names {
			if isSet(v.FieldByIndex(info.fields[name])) {
				w.refuse(join(path, name), "not supported yet")
			}
		}
		return
	}
	got := fmt.Sprint(v.Interface())
	if got == "" || slices.Contains(tree.only, got) {
		return
	}
	if len(tree.only) == 1 {
		w.refuse(path, fmt.Sprintf("%q is not supported yet: leave it out, or use %s", got, tree.only[0]))
	} else {
		w.refuse(path, fmt.Sprintf("%q is not supported yet: use one of %s", got, strings.Join(tree.only, ", ")))
	}
}

// isSet reports whether a field was given: anything but the zero value, where an
// empty list or map is as good as none.
func isSet(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() > 0
	case reflect.Struct:
		if _, special := reflect.New(v.Type()).Interface().(json.Unmarshaler); special {
			return !v.IsZero()
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && isSet(v.Field(i)) {
				return true
			}
		}
		return false
	default:
		return !v.IsZero()
	}
}

func sortedKeys(m reflect.Value) []reflect.Value {
	keys := m.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	return keys
}
