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
// A line is a path; "[]" is any item of a list, "[cpu]" that key of a map, "[*/*]" any
// key with a slash: resources that people name. A path covers everything below it, unless other lines go on from there. "=" is
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

	once   sync.Once
	fields []treeField // of the struct that it is a place of, see fieldsOf
}

// treeField is a field of a struct and its place in the table.
type treeField struct {
	name  string
	index []int
	place *fieldTree // nil: not supported
}

// fieldsOf returns the fields of a struct of type t, of which t is a place. A place is
// one of one type only, since each kind has a tree of its own.
func (t *fieldTree) fieldsOf(of reflect.Type) []treeField {
	t.once.Do(func() {
		info := infoOf(of)
		for _, name := range info.names {
			t.fields = append(t.fields, treeField{name, info.fields[name], t.children[name]})
		}
	})
	return t.fields
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
	w.walk(reflect.ValueOf(obj).Elem(), supportedTrees()[reflect.TypeOf(obj)], nil)
	return w.errs
}

// under returns the place of a map's value, nil if it has none.
func (t *fieldTree) under(key string) *fieldTree {
	if child := t.children["["+key+"]"]; child != nil || !strings.Contains(key, "/") {
		return child
	}
	return t.children["[*/*]"]
}

type supportWalk struct {
	errs field.ErrorList
}

// where is a path, written out only when it is needed.
type where struct {
	above *where // nil: the object itself
	name  string // of a field
	key   string // instead: of a map
	index int    // without both: in a list
}

func (w *where) String() string {
	switch {
	case w == nil:
		return ""
	case w.name != "":
		return join(w.above.String(), w.name)
	case w.key != "":
		return w.above.String() + w.key
	}
	return w.above.String() + "[" + strconv.Itoa(w.index) + "]"
}

func (w *supportWalk) refuse(at *where, detail string) {
	w.errs = append(w.errs, &field.Error{Type: notSupportedYet, Field: at.String(), Detail: detail})
}

func (w *supportWalk) walk(v reflect.Value, tree *fieldTree, at *where) {
	switch {
	case len(tree.only) > 0:
		w.value(v, tree, at)
		return
	case tree.children == nil:
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			w.walk(v.Elem(), tree, at)
		}
	case reflect.Struct:
		for _, known := range tree.fieldsOf(v.Type()) {
			f := v.FieldByIndex(known.index)
			if !isSet(f) {
				continue
			}
			if here := (where{above: at, name: known.name}); known.place != nil {
				w.walk(f, known.place, &here)
			} else {
				w.refuse(&here, "not supported yet")
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			w.walk(v.Index(i), tree.children["[]"], &where{above: at, index: i})
		}
	case reflect.Map:
		for _, key := range sortedKeys(v) {
			here := where{above: at, key: "[" + key.String() + "]"}
			if child := tree.under(key.String()); child != nil {
				w.walk(v.MapIndex(key), child, &here)
			} else {
				w.refuse(&here, "not supported yet")
			}
		}
	}
}

// value checks a field of which only some values have behavior.
func (w *supportWalk) value(v reflect.Value, tree *fieldTree, at *where) {
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
				w.refuse(&where{above: at, name: name}, "not supported yet")
			}
		}
		return
	}
	got := fmt.Sprint(v.Interface())
	if got == "" || slices.Contains(tree.only, got) {
		return
	}
	if len(tree.only) == 1 {
		w.refuse(at, fmt.Sprintf("%q is not supported yet: leave it out, or use %s", got, tree.only[0]))
	} else {
		w.refuse(at, fmt.Sprintf("%q is not supported yet: use one of %s", got, strings.Join(tree.only, ", ")))
	}
}

// isSet reports whether a field was given: anything but the zero value, where an
// empty list or map is as good as none.
func isSet(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() > 0
	case reflect.Struct:
		info := setInfoOf(v.Type())
		if info.special {
			return !v.IsZero()
		}
		for _, i := range info.exported {
			if isSet(v.Field(i)) {
				return true
			}
		}
		return false
	default:
		return !v.IsZero()
	}
}

// setInfo is what isSet needs to know of a struct.
type setInfo struct {
	special  bool // it has a form of its own in JSON
	exported []int
}

var setInfos sync.Map // of reflect.Type to *setInfo

func setInfoOf(t reflect.Type) *setInfo {
	if info, ok := setInfos.Load(t); ok {
		return info.(*setInfo)
	}
	info := &setInfo{special: reflect.PointerTo(t).Implements(jsonUnmarshaler)}
	for i := range t.NumField() {
		if t.Field(i).IsExported() {
			info.exported = append(info.exported, i)
		}
	}
	setInfos.Store(t, info)
	return info
}

var jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()

func sortedKeys(m reflect.Value) []reflect.Value {
	keys := m.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	return keys
}
