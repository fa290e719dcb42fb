package object

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DropUnknown takes from the tree of an object of kind r, or of a patch in its form,
// what the kind has no field for: those of built-in kinds are its type's, those of a
// custom one its schema's. It returns the paths of what it took, sorted. Reading an
// object does the opposite: there each is a fault.
func DropUnknown(r Resource, tree map[string]any) (dropped []string) {
	var p pruner
	if k := r.kind(); r.Custom {
		for name, value := range tree {
			switch name {
			case "apiVersion", "kind":
			case "metadata":
				p.value(value, reflect.TypeFor[metav1.ObjectMeta](), name)
			default:
				p.entry(tree, name, k.schema, name)
			}
		}
	} else {
		p.fields(tree, k.goType.Elem(), "")
	}
	slices.Sort(p.dropped)
	return p.dropped
}

type pruner struct{ dropped []string }

// fields prunes what is of a Go struct's type.
func (p *pruner) fields(tree map[string]any, t reflect.Type, path string) {
	fields := jsonFields(t)
	for name, value := range tree {
		at := name
		if path != "" {
			at = path + "." + name
		}
		if strings.HasPrefix(name, "$") {
			continue // a strategic patch's directive
		}
		field, ok := fields[name]
		if !ok {
			p.dropped = append(p.dropped, at)
			delete(tree, name)
			continue
		}
		p.value(value, field, at)
	}
}

func (p *pruner) value(value any, t reflect.Type, path string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if _, special := reflect.New(t).Interface().(json.Unmarshaler); special {
		return
	}
	switch value := value.(type) {
	case map[string]any:
		switch t.Kind() {
		case reflect.Struct:
			p.fields(value, t, path)
		case reflect.Map:
			for name, item := range value {
				p.value(item, t.Elem(), path+"["+name+"]")
			}
		}
	case []any:
		if t.Kind() == reflect.Slice {
			for i, item := range value {
				p.value(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
			}
		}
	}
}

// entry prunes one entry of a map that s is the schema of.
func (p *pruner) entry(tree map[string]any, name string, s *valueSchema, path string) {
	child, _, known := s.field(name)
	if !known {
		p.dropped = append(p.dropped, path)
		delete(tree, name)
		return
	}
	p.plain(tree[name], child, path)
}

// plain prunes what is of a schema's form. What has another form is for validation.
func (p *pruner) plain(value any, s *valueSchema, path string) {
	if s == nil {
		return
	}
	switch value := value.(type) {
	case map[string]any:
		if s.mayHaveFields() {
			for name := range value {
				p.entry(value, name, s, path+"."+name)
			}
		}
	case []any:
		for i, item := range value {
			p.plain(item, s.items, fmt.Sprintf("%s[%d]", path, i))
		}
	}
}

var structFields sync.Map // reflect.Type -> map[string]reflect.Type

// jsonFields returns the JSON names of a struct's fields, and their types.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	if fields, ok := structFields.Load(t); ok {
		return fields.(map[string]reflect.Type)
	}
	fields := make(map[string]reflect.Type)
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && (name == "" || options == "inline"):
			for name, t := range jsonFields(f.Type) {
				fields[name] = t
			}
		case name != "" && name != "-" && f.IsExported():
			fields[name] = f.Type
		}
	}
	actual, _ := structFields.LoadOrStore(t, fields)
	return actual.(map[string]reflect.Type)
}
