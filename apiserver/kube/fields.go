package kube

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

// Holdfast reads objects strictly: an unknown field is a fault. Kubernetes lets a
// client choose (fieldValidation): Strict is the same, Warn, which is what counts
// without a choice, drops such fields and says so, Ignore drops them in silence.

// validateFields returns a JSON object, or a patch in the form of one, without the
// fields that the kind does not have, if the client wants that. Custom kinds are
// left to their schema.
func (c *call) validateFields(data []byte) ([]byte, error) {
	if c.query.fieldValidation == metav1.FieldValidationStrict || c.resource.Custom {
		return data, nil
	}
	var tree map[string]any
	strict, err := kjson.UnmarshalStrict(data, &tree)
	if err != nil {
		return nil, apierrors.NewBadRequest("the body cannot be read: " + err.Error())
	}
	p := &pruner{}
	p.object(tree, reflect.TypeOf(c.catalog.New(c.resource)).Elem(), "")
	if len(strict) == 0 && len(p.dropped) == 0 {
		return data, nil
	}
	if c.query.fieldValidation != metav1.FieldValidationIgnore {
		for _, err := range strict { // fields that come twice
			c.warn(err.Error())
		}
		slices.Sort(p.dropped)
		for _, path := range p.dropped {
			c.warn(fmt.Sprintf("unknown field %q", path))
		}
	}
	return json.Marshal(tree)
}

// pruner drops what a Go type has no field for.
type pruner struct{ dropped []string }

func (p *pruner) object(tree map[string]any, t reflect.Type, path string) {
	fields := fieldsOf(t)
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
			p.object(value, t, path)
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

var structFields sync.Map // reflect.Type -> map[string]reflect.Type

// fieldsOf returns the JSON names of a struct's fields, and their types.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	if fields, ok := structFields.Load(t); ok {
		return fields.(map[string]reflect.Type)
	}
	fields := make(map[string]reflect.Type)
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && (name == "" || options == "inline"):
			for name, t := range fieldsOf(f.Type) {
				fields[name] = t
			}
		case name != "" && name != "-" && f.IsExported():
			fields[name] = f.Type
		}
	}
	actual, _ := structFields.LoadOrStore(t, fields)
	return actual.(map[string]reflect.Type)
}
