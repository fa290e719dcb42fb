package openapi

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/holdfast-io/holdfast/object"
)

// TestSupportNotes compares the descriptions of the documents with object's
// table, path by path: a field that is refused wherever its type is used says so,
// one that is supported everywhere says nothing, one in between says where.
func TestSupportNotes(t *testing.T) {
	for _, group := range []string{"", "apps", "batch"} {
		gv := schema.GroupVersion{Group: group, Version: "v1"}
		kinds := kindsOf(gv)
		var roots []string
		for _, k := range kinds {
			roots = append(roots, k.model)
		}
		all, plain := schemas(roots), schemas(roots)
		describeSupport(all, kinds)

		refusedAt, allowedAt := map[fieldOf]string{}, map[fieldOf]string{}
		var walk func(model, path string, s object.Support, within []string)
		walk = func(model, path string, s object.Support, within []string) {
			if slices.Contains(within, model) {
				return
			}
			for name, property := range plain[model].Properties {
				place, f := s.Field(name), fieldOf{model, name}
				switch {
				case place.None() && !s.None():
					refusedAt[f] = path
				case !place.None():
					allowedAt[f] = path
				}
				at := &property
				for refOf(at) == "" && (at.Items != nil || at.AdditionalProperties != nil && at.AdditionalProperties.Schema != nil) {
					if at.Items != nil {
						at, place = at.Items.Schema, place.Item()
						continue
					}
					key := append(place.Only(), "")[0]
					at, place = at.AdditionalProperties.Schema, place.Value(key)
				}
				if to := refOf(at); to != "" {
					walk(to, path+"."+name, place, append(within, model))
				}
			}
		}
		for _, k := range kinds {
			walk(k.model, k.Kind, object.Supported(k.Resource), nil)
		}
		for model, s := range all {
			for name, property := range s.Properties {
				f := fieldOf{model, name}
				was := plain[model].Properties[name].Description
				added := strings.TrimSpace(without(property.Description, was))
				refused, allowed := refusedAt[f], allowedAt[f]
				switch {
				case allowed == "" && added != "Not supported by this version.":
					t.Errorf("%s: %s.%s is supported nowhere, its description adds %q", gv, model, name, added)
				case refused != "" && allowed != "" && !strings.Contains(added, "ot supported by this version"):
					t.Errorf("%s: %s.%s is refused in %s and allowed in %s, its description adds %q", gv, model, name, refused, allowed, added)
				case refused == "" && allowed != "" && strings.Contains(added, "ot supported by"):
					t.Errorf("%s: %s.%s is supported everywhere, its description adds %q", gv, model, name, added)
				}
			}
		}
		if len(refusedAt) == 0 || len(allowedAt) == 0 {
			t.Errorf("%s: %d fields refused, %d allowed", gv, len(refusedAt), len(allowedAt))
		}
	}
}

// without removes the words of was from text, the values of an enumeration
// included, which stand behind what is added.
func without(text, was string) string {
	words, values, enum := strings.Cut(was, enumHeader)
	text = strings.TrimPrefix(text, words)
	if enum {
		text = strings.TrimSuffix(text, enumHeader+values)
	}
	return text
}

// TestNoteText: how the notes on one field from several places are said.
func TestNoteText(t *testing.T) {
	const only = "This version supports only: A."
	for _, c := range []struct {
		name   string
		byNote map[string][]string
		want   string
	}{
		{"inherited only", map[string][]string{}, refused},
		{"supported", map[string][]string{"": {"Pod.spec"}}, ""},
		{"the same everywhere", map[string][]string{only: {"Pod.spec", "PodTemplate.spec"}}, only},
		{"refused in fewer places", map[string][]string{"": {"A.b", "C.d"}, refused: {"E.f"}}, "In E.f: not supported by this version."},
		{"supported in fewer places", map[string][]string{"": {"A.b"}, refused: {"C.d", "E.f", "C.d"}}, "Not supported by this version, but in A.b."},
		{"three notes", map[string][]string{"": {"A.b"}, refused: {"E.f", "C.d"}, only: {"G.h"}}, "In C.d, E.f: not supported by this version. In G.h: this version supports only: A."},
	} {
		if got := noteText(c.byNote); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestSupportOnce: a type within itself ends the walk, and a type is looked at
// once for each part of the table: the work is bounded.
func TestSupportOnce(t *testing.T) {
	ref := *spec.RefSchema(refPrefix + "b")
	all := map[string]*spec.Schema{
		"a": {SchemaProps: spec.SchemaProps{Properties: map[string]spec.Schema{"x": ref, "y": ref}}},
		"b": {SchemaProps: spec.SchemaProps{Properties: map[string]spec.Schema{"self": ref}}},
	}
	w := supportWalk{all: all, notes: map[fieldOf]map[string][]string{}, seen: map[visit]bool{}}
	w.object("a", object.Supported(object.Resource{}), "A")
	if got := slices.Sorted(maps.Keys(w.notes[fieldOf{"b", "self"}])); !slices.Equal(got, []string{""}) || len(w.notes[fieldOf{"b", "self"}][""]) != 1 {
		t.Errorf("notes on b.self are %v", w.notes[fieldOf{"b", "self"}])
	}
}
