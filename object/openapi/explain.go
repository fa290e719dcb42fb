package openapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-io/holdfast/object"
)

// Explain describes a kind, or the field of it at path, in the layout of
// "kubectl explain": doc is the document of r's group and version. recursive
// lists all fields below, by name and type only. An error names the field that
// does not exist, and the one that was probably meant.
func Explain(doc []byte, r object.Resource, path []string, recursive bool) (string, error) {
	var d explained
	if err := json.Unmarshal(doc, &d); err != nil {
		return "", fmt.Errorf("read the OpenAPI document of %s: %w", r.APIVersion(), err)
	}
	at, ok := d.find(schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind})
	if !ok {
		return "", fmt.Errorf("the OpenAPI document of %s has no %s", r.APIVersion(), r.Kind)
	}
	e := explainer{all: d.Components.Schemas}
	if r.Group != "" {
		e.line("GROUP:      %s", r.Group)
	}
	e.line("KIND:       %s", r.Kind)
	e.line("VERSION:    %s\n", r.Version)

	for i, name := range path {
		// Lists and maps are passed through: a path has no indexes.
		fields := e.fields(at)
		next, ok := fields[name]
		if !ok {
			return "", noSuchField(r, path[:i], name, fields)
		}
		at = next
	}
	if len(path) > 0 {
		e.line("FIELD: %s <%s>", path[len(path)-1], e.typeOf(at))
		if len(at.Enum) > 0 {
			e.line("ENUM:")
			for _, v := range at.Enum {
				e.line("    %s", word(v))
			}
		}
		e.line("\n")
	}
	e.line("DESCRIPTION:")
	described := e.descriptions(at)
	if len(described) == 0 {
		described = []string{"<empty>"}
	}
	for _, text := range described {
		e.wrapped(text, 4)
	}
	e.line("")
	if len(e.fields(at)) > 0 {
		e.line("FIELDS:")
		e.list(at, 1, recursive, nil)
	}
	return e.out.String(), nil
}

func noSuchField(r object.Resource, path []string, name string, fields map[string]*explainedSchema) error {
	in := strings.Join(append([]string{r.Kind}, path...), ".")
	if len(fields) == 0 {
		return fmt.Errorf("field %q does not exist: %s has no fields", name, in)
	}
	names := slices.Sorted(maps.Keys(fields))
	if guess, ok := object.Nearest(name, names); ok {
		return fmt.Errorf("field %q does not exist in %s: did you mean %s?", name, in, guess)
	}
	return fmt.Errorf("field %q does not exist in %s, which has %s", name, in, strings.Join(names, ", "))
}

// explained is the part of a document that explaining needs.
type explained struct {
	Components struct {
		Schemas map[string]*explainedSchema `json:"schemas"`
	} `json:"components"`
}

type explainedSchema struct {
	Description string                      `json:"description"`
	Type        string                      `json:"type"`
	Ref         string                      `json:"$ref"`
	AllOf       []*explainedSchema          `json:"allOf"`
	Items       *explainedSchema            `json:"items"`
	Values      valuesSchema                `json:"additionalProperties"`
	Properties  map[string]*explainedSchema `json:"properties"`
	Required    []string                    `json:"required"`
	Enum        []any                       `json:"enum"`
	Kinds       []struct {
		Group, Kind, Version string
	} `json:"x-kubernetes-group-version-kind"`
}

// valuesSchema is the schema of a map's values; nil where there is only true or
// false.
type valuesSchema struct{ *explainedSchema }

func (v *valuesSchema) UnmarshalJSON(data []byte) error {
	if string(data) == "true" || string(data) == "false" {
		return nil
	}
	return json.Unmarshal(data, &v.explainedSchema)
}

func (d explained) find(gvk schema.GroupVersionKind) (*explainedSchema, bool) {
	for _, s := range d.Components.Schemas {
		for _, k := range s.Kinds {
			if k.Group == gvk.Group && k.Version == gvk.Version && k.Kind == gvk.Kind {
				return s, true
			}
		}
	}
	return nil, false
}

// explainer writes an explanation.
type explainer struct {
	all map[string]*explainedSchema
	out strings.Builder
}

func (e *explainer) line(format string, args ...any) {
	fmt.Fprintf(&e.out, format+"\n", args...)
}

// maxSteps ends the way through lists, maps and references of a schema that goes
// round in a circle: a document comes from a server.
const maxSteps = 20

// resolve follows references.
func (e *explainer) resolve(s *explainedSchema) *explainedSchema {
	for range maxSteps {
		to := s.Ref
		if to == "" && len(s.AllOf) == 1 && len(s.Properties) == 0 {
			to = s.AllOf[0].Ref
		}
		next, ok := e.all[strings.TrimPrefix(to, refPrefix)]
		if to == "" || !ok {
			return s
		}
		s = next
	}
	return s
}

// structOf returns the schema with the fields of s, of its items or its values.
func (e *explainer) structOf(s *explainedSchema) *explainedSchema {
	for range maxSteps {
		s = e.resolve(s)
		switch {
		case s.Items != nil:
			s = s.Items
		case s.Values.explainedSchema != nil:
			s = s.Values.explainedSchema
		default:
			return s
		}
	}
	return s
}

func (e *explainer) fields(s *explainedSchema) map[string]*explainedSchema {
	return e.structOf(s).Properties
}

// descriptions returns what is said of s itself and of its type.
func (e *explainer) descriptions(s *explainedSchema) []string {
	var all []string
	for range maxSteps {
		if s.Description != "" {
			all = append(all, s.Description)
		}
		switch next := e.resolve(s); {
		case next != s:
			s = next
		case s.Items != nil:
			s = s.Items
		case s.Values.explainedSchema != nil:
			s = s.Values.explainedSchema
		default:
			return all
		}
	}
	return all
}

// typeOf is kubectl's word for the type of s: "string", "[]Container",
// "map[string]string", "DeploymentSpec".
func (e *explainer) typeOf(s *explainedSchema) string {
	ref := s.Ref
	if len(s.AllOf) == 1 && len(s.Properties) == 0 {
		ref = s.AllOf[0].Ref
	}
	switch {
	case s.Items != nil:
		return "[]" + e.typeOf(s.Items)
	case s.Values.explainedSchema != nil:
		return "map[string]" + e.typeOf(s.Values.explainedSchema)
	case ref != "":
		if to := e.resolve(s); to.Type != "" && to.Type != "object" {
			return to.Type
		}
		return ref[strings.LastIndexByte(ref, '.')+1:]
	case s.Type == "" || s.Type == "object":
		return "Object"
	default:
		return s.Type
	}
}

// list writes the fields of s. A type within itself is not written again.
func (e *explainer) list(s *explainedSchema, level int, recursive bool, within []*explainedSchema) {
	of := e.structOf(s)
	if slices.Contains(within, of) {
		return
	}
	const shownValues = 4
	indent := strings.Repeat("  ", level)
	for _, name := range slices.Sorted(maps.Keys(of.Properties)) {
		field := of.Properties[name]
		required := ""
		if slices.Contains(of.Required, name) {
			required = " -required-"
		}
		e.line("%s%s\t<%s>%s", indent, name, e.typeOf(field), required)
		if len(field.Enum) > 0 {
			var words []string
			for _, v := range field.Enum[:min(shownValues, len(field.Enum))] {
				words = append(words, word(v))
			}
			if len(field.Enum) > shownValues {
				words = append(words, "....")
			}
			e.line("%senum: %s", indent, strings.Join(words, ", "))
		}
		if recursive {
			e.list(field, level+1, true, append(within, of))
			continue
		}
		description := field.Description
		if description == "" {
			description = "<no description>"
		}
		e.wrapped(description, 2*level+2)
		e.line("")
	}
}

// word writes a value of an enumeration.
func word(value any) string {
	if value == "" {
		return `""`
	}
	return fmt.Sprint(value)
}

// wrapped writes text in lines of at most 80 characters. Its own line breaks
// stay, as there are lists and examples among descriptions.
func (e *explainer) wrapped(text string, indent int) {
	space := strings.Repeat(" ", indent)
	for line := range strings.SplitSeq(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 {
			e.line("")
			continue
		}
		margin := space + line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		at := margin + words[0]
		for _, w := range words[1:] {
			if len(at)+1+len(w) > 80 {
				e.line("%s", at)
				at = margin + w
			} else {
				at += " " + w
			}
		}
		e.line("%s", at)
	}
}
