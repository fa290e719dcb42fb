package openapi

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/holdfast-io/holdfast/object"
)

// describeSupport adds to the descriptions of fields what object's table says of
// them. A type can be used at several places with several answers (metadata of
// an object, and of a pod template): then the note says where it holds.
func describeSupport(all map[string]*spec.Schema, kinds []kind) {
	notes := map[fieldOf]map[string][]string{}
	for _, k := range kinds {
		w := supportWalk{all: all, notes: notes, seen: map[visit]bool{}}
		w.object(k.model, object.Supported(k.Resource), k.Kind)
	}
	for f, byNote := range notes {
		delete(byNote, inherited)
		text := noteText(byNote)
		if text == "" {
			continue
		}
		s := all[f.model].Properties[f.name]
		words, values, enum := strings.Cut(s.Description, enumHeader)
		s.Description = strings.TrimSpace(words + " " + text)
		if enum {
			s.Description += enumHeader + values
		}
		all[f.model].Properties[f.name] = s
	}
}

type fieldOf struct{ model, name string }

type visit struct {
	model   string
	support object.Support
}

// supportWalk notes for each field of the types below a kind what is supported
// of it, and where.
type supportWalk struct {
	all   map[string]*spec.Schema
	notes map[fieldOf]map[string][]string // note -> the places where it holds
	seen  map[visit]bool                  // a type is looked at once for each part of the table
}

const (
	refused = "Not supported by this version."
	// inherited is the note of a field in a struct that is refused itself: it
	// counts only if the field's type is supported nowhere else.
	inherited = "(not supported with what it is in)"
)

func (w *supportWalk) object(model string, support object.Support, path string) {
	if w.seen[visit{model, support}] {
		return
	}
	w.seen[visit{model, support}] = true
	for _, name := range slices.Sorted(maps.Keys(w.all[model].Properties)) {
		property := w.all[model].Properties[name]
		field := support.Field(name)
		note := noteOf(field)
		if note == refused && support.None() {
			note = inherited
		}
		w.note(fieldOf{model, name}, note, path)
		w.value(&property, field, path+"."+name)
	}
}

func (w *supportWalk) value(s *spec.Schema, support object.Support, path string) {
	switch {
	case refOf(s) != "":
		w.object(refOf(s), support, path)
	case s.Items != nil && s.Items.Schema != nil:
		w.value(s.Items.Schema, support.Item(), path)
	case s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil:
		key := "" // any, if the table names none
		if only := support.Only(); len(only) > 0 {
			key = only[0]
		}
		w.value(s.AdditionalProperties.Schema, support.Value(key), path)
	}
}

func (w *supportWalk) note(f fieldOf, note, path string) {
	if w.notes[f] == nil {
		w.notes[f] = map[string][]string{}
	}
	w.notes[f][note] = append(w.notes[f][note], path)
}

// noteOf says what a field's place in the table means; "" if all is supported.
func noteOf(s object.Support) string {
	only := s.Only()
	switch {
	case s.None():
		return refused
	case len(only) == 0:
		return ""
	case only[0] == "{}":
		return "This version supports none of its fields."
	default:
		return "This version supports only: " + strings.Join(only, ", ") + "."
	}
}

// enumHeader begins the list of a field's values in its description.
const enumHeader = "\n\nPossible enum values:"

// noteText joins the notes of a field.
func noteText(byNote map[string][]string) string {
	notes := slices.Sorted(maps.Keys(byNote))
	switch {
	case len(notes) == 0: // only inherited
		return refused
	case len(notes) == 1:
		return notes[0]
	case len(notes) == 2 && notes[0] == "" && len(byNote[""]) < len(byNote[notes[1]]):
		return strings.TrimSuffix(notes[1], ".") + ", but in " + placesText(byNote[""]) + "."
	}
	var texts []string
	for _, note := range notes {
		if note != "" {
			texts = append(texts, "In "+placesText(byNote[note])+": "+strings.ToLower(note[:1])+note[1:])
		}
	}
	return strings.Join(texts, " ")
}

func placesText(places []string) string {
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(places))), ", ")
}
