package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// typeSchema is a schema of OpenAPI v3, with the extensions of Kubernetes that
// its API types use.
type typeSchema struct {
	Description string                 `json:"description,omitempty"`
	Type        string                 `json:"type,omitempty"`
	Format      string                 `json:"format,omitempty"`
	Default     json.RawMessage        `json:"default,omitempty"`
	Enum        []string               `json:"enum,omitempty"`
	Ref         string                 `json:"$ref,omitempty"`
	AllOf       []*typeSchema          `json:"allOf,omitempty"`
	OneOf       []*typeSchema          `json:"oneOf,omitempty"`
	Items       *typeSchema            `json:"items,omitempty"`
	Values      *typeSchema            `json:"additionalProperties,omitempty"`
	Properties  map[string]*typeSchema `json:"properties,omitempty"`
	Required    []string               `json:"required,omitempty"`

	Kinds         []groupVersionKind `json:"x-kubernetes-group-version-kind,omitempty"`
	ListType      string             `json:"x-kubernetes-list-type,omitempty"`
	ListMapKeys   []string           `json:"x-kubernetes-list-map-keys,omitempty"`
	MapType       string             `json:"x-kubernetes-map-type,omitempty"`
	PatchStrategy string             `json:"x-kubernetes-patch-strategy,omitempty"`
	PatchMergeKey string             `json:"x-kubernetes-patch-merge-key,omitempty"`
}

type groupVersionKind struct {
	Group   string `json:"group"`
	Kind    string `json:"kind"`
	Version string `json:"version"`
}

// generator collects the schemas of types and of all that they refer to.
type generator struct {
	schemas map[string]*typeSchema // by model name
	sources map[string]*source     // by package path
}

// What types that are not written as their structs say of themselves.
type (
	named     interface{ OpenAPIModelName() string }
	formatted interface {
		OpenAPISchemaType() []string
		OpenAPISchemaFormat() string
	}
	alternatives interface{ OpenAPIV3OneOfTypes() []string }
)

func modelName(t reflect.Type) string {
	n, ok := reflect.Zero(t).Interface().(named)
	if !ok {
		panic(fmt.Sprintf("%v has no OpenAPIModelName", t))
	}
	return n.OpenAPIModelName()
}

// define makes the schema of a struct, unless there is one.
func (g *generator) define(t reflect.Type) error {
	name := modelName(t)
	if g.schemas[name] != nil {
		return nil
	}
	s := &typeSchema{}
	g.schemas[name] = s // before its fields, which may refer to it

	src, err := g.source(t.PkgPath())
	if err != nil {
		return err
	}
	doc := src.types[t.Name()]
	s.Description = doc.description()
	s.MapType = doc.mark("structType", "mapType")
	zero := reflect.Zero(t).Interface()
	if of, ok := zero.(alternatives); ok {
		s.Format = zero.(formatted).OpenAPISchemaFormat()
		for _, one := range of.OpenAPIV3OneOfTypes() {
			s.OneOf = append(s.OneOf, &typeSchema{Type: one})
		}
		return nil
	}
	if f, ok := zero.(formatted); ok {
		s.Type, s.Format = strings.Join(f.OpenAPISchemaType(), ""), f.OpenAPISchemaFormat()
		return nil
	}
	s.Type = "object"
	return g.fields(t, s)
}

// fields adds the fields of t, and those of structs that it embeds, to s.
func (g *generator) fields(t reflect.Type, s *typeSchema) error {
	src, err := g.source(t.PkgPath())
	if err != nil {
		return err
	}
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			if err := g.fields(deref(f.Type), s); err != nil {
				return err
			}
			continue
		}
		if name == "-" || !f.IsExported() {
			continue
		}
		if name == "" {
			return fmt.Errorf("%v.%s has no name in JSON", t, f.Name)
		}
		doc := src.fields[t.Name()][f.Name]
		omitted := slices.Contains(strings.Split(options, ","), "omitempty") || slices.Contains(strings.Split(options, ","), "omitzero")
		property, err := g.field(f, doc, omitted)
		if err != nil {
			return fmt.Errorf("%v.%s: %w", t, f.Name, err)
		}
		if s.Properties == nil {
			s.Properties = map[string]*typeSchema{}
		}
		s.Properties[name] = property
		if doc.has("required") || !omitted && !doc.has("optional") {
			s.Required = append(s.Required, name)
		}
	}
	slices.Sort(s.Required)
	return nil
}

func (g *generator) field(f reflect.StructField, doc comment, omitted bool) (*typeSchema, error) {
	s, err := g.value(f.Type)
	if err != nil {
		return nil, err
	}
	if s.Ref != "" { // nothing may stand beside a $ref
		s = &typeSchema{AllOf: []*typeSchema{s}}
	}
	values, err := g.enum(f.Type)
	if err != nil {
		return nil, err
	}
	s.Description = strings.TrimSpace(doc.description() + values.description())
	s.Default = zeroOf(f.Type, omitted)
	if d := doc.mark("default"); d != "" {
		if s.Default, err = g.defaultValue(f.Type, d); err != nil {
			return nil, err
		}
	}
	s.ListType = doc.mark("listType")
	s.ListMapKeys = doc.marks("listMapKey")
	s.MapType = doc.mark("mapType", "structType")
	s.PatchStrategy = f.Tag.Get("patchStrategy")
	s.PatchMergeKey = f.Tag.Get("patchMergeKey")
	if len(s.AllOf) == 1 && reflect.DeepEqual(*s, typeSchema{AllOf: s.AllOf}) {
		return s.AllOf[0], nil
	}
	return s, nil
}

// value makes the schema of a value of type t, without words.
func (g *generator) value(t reflect.Type) (*typeSchema, error) {
	t = deref(t)
	switch t.Kind() {
	case reflect.String:
		values, err := g.enum(t)
		return &typeSchema{Type: "string", Enum: values.values()}, err
	case reflect.Bool:
		return &typeSchema{Type: "boolean"}, nil
	case reflect.Int, reflect.Int32, reflect.Int16, reflect.Uint16:
		return &typeSchema{Type: "integer", Format: "int32"}, nil
	case reflect.Int64, reflect.Uint32:
		return &typeSchema{Type: "integer", Format: "int64"}, nil
	case reflect.Float64:
		return &typeSchema{Type: "number", Format: "double"}, nil
	case reflect.Struct:
		return &typeSchema{Ref: "#/components/schemas/" + modelName(t)}, g.define(t)
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return &typeSchema{Type: "string", Format: "byte"}, nil
		}
		item, err := g.element(t.Elem())
		return &typeSchema{Type: "array", Items: item}, err
	case reflect.Map:
		value, err := g.element(t.Elem())
		return &typeSchema{Type: "object", Values: value}, err
	default:
		return nil, fmt.Errorf("no schema for a %v", t)
	}
}

// element makes the schema of a list's items or a map's values.
func (g *generator) element(t reflect.Type) (*typeSchema, error) {
	s, err := g.value(t)
	if err != nil {
		return nil, err
	}
	if zero := zeroOf(t, false); zero != nil {
		if s.Ref != "" {
			s = &typeSchema{AllOf: []*typeSchema{s}}
		}
		s.Default = zero
	}
	return s, nil
}

// zeroOf is the default that follows from the type: what a field that is always
// written is when nobody sets it.
func zeroOf(t reflect.Type, omitted bool) json.RawMessage {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	switch t.Kind() {
	case reflect.Struct:
		return json.RawMessage("{}")
	case reflect.String:
		return unless(omitted, `""`)
	case reflect.Bool:
		return unless(omitted, "false")
	case reflect.Int, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint16, reflect.Uint32, reflect.Float64:
		return unless(omitted, "0")
	default:
		return nil
	}
}

func unless(no bool, text string) json.RawMessage {
	if no {
		return nil
	}
	return json.RawMessage(text)
}

// defaultValue reads the value of a mark +default: JSON, or ref(Constant).
func (g *generator) defaultValue(t reflect.Type, text string) (json.RawMessage, error) {
	if name, ok := strings.CutPrefix(text, "ref("); ok {
		src, err := g.source(deref(t).PkgPath())
		if err != nil {
			return nil, err
		}
		value, ok := src.constants[strings.TrimSuffix(name, ")")]
		if !ok {
			return nil, fmt.Errorf("+default=%s: no such constant", text)
		}
		return json.Marshal(value)
	}
	if !json.Valid([]byte(text)) {
		return nil, fmt.Errorf("+default=%s: not JSON", text)
	}
	return json.RawMessage(text), nil
}

// enum returns the values of t if it is a string type marked +enum.
func (g *generator) enum(t reflect.Type) (enum, error) {
	t = deref(t)
	if t.Kind() != reflect.String || t.PkgPath() == "" {
		return nil, nil
	}
	src, err := g.source(t.PkgPath())
	if err != nil || !src.types[t.Name()].has("enum") {
		return nil, err
	}
	return src.enums[t.Name()], nil
}

func deref(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}
