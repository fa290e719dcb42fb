package object

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// valueSchema is a structural schema made ready: what a value in a custom object
// may be. nil means anything.
type valueSchema struct {
	name string // of the field, for people
	kind string // "object", "array", "string", "integer", "number", "boolean"; "" is any

	nullable, intOrString, preserve, embedded bool

	fallback any // the default; nil if there is none

	properties map[string]*valueSchema
	values     *valueSchema // of the entries that properties does not name
	anyValues  bool         // any entries beside properties
	required   []string
	minEntries *int64
	maxEntries *int64

	items    *valueSchema
	minItems *int64
	maxItems *int64
	listType string // "set", "map", or else
	listKeys []string

	enum             []any
	format           string
	pattern          *regexp.Regexp
	minLength        *int64
	maxLength        *int64
	minimum, maximum *float64
	above, below     bool // the bounds themselves are out
	multipleOf       *float64

	allOf, anyOf, oneOf []*valueSchema
	not                 *valueSchema

	info *structInfo // the properties' names, for suggestions
}

// compile makes a schema ready. It is given schemas that have been validated; of
// others it reads what it can.
func compile(name string, props *apiextensionsv1.JSONSchemaProps) *valueSchema {
	if props == nil {
		return nil
	}
	s := &valueSchema{
		name: name, kind: props.Type,
		nullable: props.Nullable, intOrString: props.XIntOrString, embedded: props.XEmbeddedResource,
		preserve:   props.XPreserveUnknownFields != nil && *props.XPreserveUnknownFields,
		required:   props.Required,
		minEntries: props.MinProperties, maxEntries: props.MaxProperties,
		minItems: props.MinItems, maxItems: props.MaxItems, listKeys: props.XListMapKeys,
		format: props.Format, minLength: props.MinLength, maxLength: props.MaxLength,
		minimum: props.Minimum, maximum: props.Maximum, above: props.ExclusiveMinimum, below: props.ExclusiveMaximum,
		multipleOf: props.MultipleOf,
		not:        compile(name, props.Not),
	}
	if props.Default != nil {
		s.fallback, _ = plainJSON(props.Default.Raw)
	}
	for _, raw := range props.Enum {
		if value, err := plainJSON(raw.Raw); err == nil {
			s.enum = append(s.enum, value)
		}
	}
	if props.Pattern != "" {
		s.pattern, _ = regexp.Compile(props.Pattern)
	}
	if props.XListType != nil {
		s.listType = *props.XListType
	}
	if props.Items != nil {
		s.items = compile(name, props.Items.Schema)
	}
	if more := props.AdditionalProperties; more != nil {
		s.values = compile(name, more.Schema)
		s.anyValues = more.Allows && more.Schema == nil
	}
	if len(props.Properties) > 0 {
		s.properties = make(map[string]*valueSchema, len(props.Properties))
		for child := range props.Properties {
			inner := props.Properties[child]
			s.properties[child] = compile(child, &inner)
		}
	}
	for _, list := range []struct {
		to   *[]*valueSchema
		from []apiextensionsv1.JSONSchemaProps
	}{{&s.allOf, props.AllOf}, {&s.anyOf, props.AnyOf}, {&s.oneOf, props.OneOf}} {
		for i := range list.from {
			*list.to = append(*list.to, compile(name, &list.from[i]))
		}
	}
	s.info = s.names()
	return s
}

// names describes the properties as [infoOf] describes a struct's fields.
func (s *valueSchema) names() *structInfo {
	info := &structInfo{name: s.name, fields: map[string][]int{}, nested: map[string]nested{}}
	add := func(name string, child *valueSchema) {
		info.names = append(info.names, name)
		info.fields[name] = []int{}
		switch {
		case child == nil:
		case child.items != nil && child.items.properties != nil:
			info.nested[name] = nested{func() *structInfo { return child.items.info }, true}
		case child.properties != nil:
			info.nested[name] = nested{func() *structInfo { return child.info }, false}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.properties)) {
		add(name, s.properties[name])
	}
	if s.embedded {
		for _, name := range []string{"apiVersion", "kind", "metadata"} {
			if s.properties[name] == nil {
				add(name, nil)
			}
		}
	}
	return info
}

// field returns the schema of an entry, and whether there may be such an entry.
// keyed is true if the entry's name is data and not a field's name.
func (s *valueSchema) field(name string) (child *valueSchema, keyed, known bool) {
	if s == nil {
		return nil, false, true
	}
	if child, ok := s.properties[name]; ok {
		return child, false, true
	}
	if s.values != nil || s.anyValues {
		return s.values, true, true
	}
	inside := s.embedded && (name == "apiVersion" || name == "kind" || name == "metadata")
	return nil, false, s.preserve || inside
}

// plainJSON reads JSON as map[string]any, []any, string, bool, int64, float64.
func plainJSON(raw []byte) (any, error) {
	var value any
	err := utiljson.Unmarshal(raw, &value)
	return value, err
}

// Defaults

// fill writes the defaults into value, which is a map or a list, or else has
// nothing to fill. An empty field that may not be empty counts as missing.
func (s *valueSchema) fill(value any) {
	if s == nil {
		return
	}
	switch value := value.(type) {
	case map[string]any:
		for name, child := range s.properties {
			fillEntry(value, name, child)
		}
		if s.values == nil {
			return
		}
		for name := range value {
			if s.properties[name] == nil {
				fillEntry(value, name, s.values)
			}
		}
	case []any:
		for i := range value {
			if value[i] == nil && s.items != nil && !s.items.nullable && s.items.fallback != nil {
				value[i] = runtime.DeepCopyJSONValue(s.items.fallback)
			}
			s.items.fill(value[i])
		}
	}
}

func fillEntry(in map[string]any, name string, child *valueSchema) {
	got, ok := in[name]
	if ok && got == nil && !child.nullable {
		delete(in, name)
		ok = false
	}
	if !ok {
		if child.fallback == nil {
			return
		}
		got = runtime.DeepCopyJSONValue(child.fallback)
		in[name] = got
	}
	child.fill(got)
}

// Validation

// check returns everything wrong with value.
func (s *valueSchema) check(value any, path *field.Path) field.ErrorList {
	if s == nil || value == nil && s.nullable {
		return nil
	}
	if want := s.wrongType(value); want != "" {
		return field.ErrorList{field.TypeInvalid(path, shownValue(value), "must be "+want+", is "+jsonTypeName(value))}
	}
	var errs field.ErrorList
	invalid := func(format string, args ...any) {
		errs = append(errs, field.Invalid(path, shownValue(value), fmt.Sprintf(format, args...)))
	}
	switch value := value.(type) {
	case map[string]any:
		errs = append(errs, s.checkMap(value, path)...)
	case []any:
		errs = append(errs, s.checkList(value, path)...)
	case string:
		n := int64(utf8.RuneCountInString(value))
		if s.minLength != nil && n < *s.minLength {
			invalid("must have at least %d characters", *s.minLength)
		}
		if s.maxLength != nil && n > *s.maxLength {
			invalid("must have at most %d characters", *s.maxLength)
		}
		if s.pattern != nil && !s.pattern.MatchString(value) {
			invalid("must match %s", s.pattern)
		}
		if valid := stringFormats[strings.ReplaceAll(s.format, "-", "")]; valid != nil && !valid(value) {
			invalid("must have the format %s", s.format)
		}
	case int64, float64:
		n := jsonNumber(value)
		if s.minimum != nil && (n < *s.minimum || s.above && n == *s.minimum) {
			invalid("must be %s %v", either(s.above, "greater than", "at least"), *s.minimum)
		}
		if s.maximum != nil && (n > *s.maximum || s.below && n == *s.maximum) {
			invalid("must be %s %v", either(s.below, "less than", "at most"), *s.maximum)
		}
		if m := s.multipleOf; m != nil && *m != 0 {
			if times := n / *m; math.Abs(times-math.Round(times)) > 1e-9 {
				invalid("must be a multiple of %v", *m)
			}
		}
	}
	if len(s.enum) > 0 && !slices.ContainsFunc(s.enum, func(allowed any) bool { return sameJSON(allowed, value) }) {
		errs = append(errs, field.NotSupported(path, shownValue(value), s.words()))
	}
	return append(errs, s.checkJunctors(value, path)...)
}

// wrongType says what value should be, "" if it is.
func (s *valueSchema) wrongType(value any) string {
	_, isString := value.(string)
	_, isMap := value.(map[string]any)
	_, isList := value.([]any)
	_, isBool := value.(bool)
	n, isNumber := value.(float64)
	_, isInt := value.(int64)
	isInt = isInt || isNumber && n == math.Trunc(n)
	isNumber = isNumber || isInt
	for _, c := range []struct {
		applies, ok bool
		want        string
	}{
		{s.intOrString, isInt || isString, "a whole number or a string"},
		{s.kind == "object", isMap, "a map"},
		{s.kind == "array", isList, "a list"},
		{s.kind == "string", isString, "a string"},
		{s.kind == "boolean", isBool, "true or false"},
		{s.kind == "integer", isInt, "a whole number"},
		{s.kind == "number", isNumber, "a number"},
	} {
		if c.applies && !c.ok {
			return c.want
		}
	}
	return ""
}

func (s *valueSchema) checkMap(value map[string]any, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, name := range s.required {
		if _, ok := value[name]; !ok {
			errs = append(errs, field.Required(path.Child(name), ""))
		}
	}
	if s.embedded {
		errs = append(errs, checkEmbedded(value, path)...)
	}
	for _, name := range slices.Sorted(maps.Keys(value)) {
		child, keyed, _ := s.field(name)
		at := path.Child(name)
		if keyed {
			at = path.Key(name)
		}
		errs = append(errs, child.check(value[name], at)...)
	}
	if n := int64(len(value)); s.minEntries != nil && n < *s.minEntries {
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, fmt.Sprintf("must have at least %d entries, has %d", *s.minEntries, n)))
	} else if s.maxEntries != nil && n > *s.maxEntries {
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, fmt.Sprintf("must have at most %d entries, has %d", *s.maxEntries, n)))
	}
	return errs
}

// checkEmbedded looks at what every object has, in an object within an object.
func checkEmbedded(value map[string]any, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, name := range []string{"apiVersion", "kind"} {
		if text, ok := value[name].(string); !ok || text == "" {
			errs = append(errs, field.Required(path.Child(name), "an embedded object says what it is"))
		}
	}
	if text, ok := value["apiVersion"].(string); ok {
		if _, err := schema.ParseGroupVersion(text); err != nil {
			errs = append(errs, field.Invalid(path.Child("apiVersion"), text, "must be <version> or <group>/<version>"))
		}
	}
	if meta, ok := value["metadata"]; ok {
		if _, isMap := meta.(map[string]any); !isMap {
			errs = append(errs, field.TypeInvalid(path.Child("metadata"), shownValue(meta), "must be a map, is "+jsonTypeName(meta)))
		}
	}
	return errs
}

func (s *valueSchema) checkList(value []any, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, item := range value {
		errs = append(errs, s.items.check(item, path.Index(i))...)
	}
	if n := int64(len(value)); s.minItems != nil && n < *s.minItems {
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, fmt.Sprintf("must have at least %d items, has %d", *s.minItems, n)))
	} else if s.maxItems != nil && n > *s.maxItems {
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, fmt.Sprintf("must have at most %d items, has %d", *s.maxItems, n)))
	}
	if s.listType != "set" && s.listType != "map" {
		return errs
	}
	seen := map[string]bool{}
	for i, item := range value {
		identity := item
		if entry, ok := item.(map[string]any); ok && s.listType == "map" {
			keys := map[string]any{}
			for _, key := range s.listKeys {
				if v, ok := entry[key]; ok {
					keys[key] = v
				}
			}
			identity = keys
		}
		text, err := json.Marshal(identity)
		if err != nil {
			continue // not JSON: its type is a fault already
		}
		if seen[string(text)] {
			errs = append(errs, field.Duplicate(path.Index(i), string(text)))
		}
		seen[string(text)] = true
	}
	return errs
}

func (s *valueSchema) checkJunctors(value any, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, all := range s.allOf {
		errs = append(errs, all.check(value, path)...)
	}
	matching := func(list []*valueSchema) (n int, why []string) {
		for _, one := range list {
			wrong := one.check(value, path)
			if len(wrong) == 0 {
				n++
				continue
			}
			why = append(why, wrong[0].Field+": "+errorBody(wrong[0]))
		}
		return n, why
	}
	if len(s.anyOf) > 0 {
		if n, why := matching(s.anyOf); n == 0 {
			errs = append(errs, field.Invalid(path, field.OmitValueType{}, "must match at least one schema of anyOf ("+strings.Join(why, " | ")+")"))
		}
	}
	if len(s.oneOf) > 0 {
		switch n, why := matching(s.oneOf); {
		case n == 0:
			errs = append(errs, field.Invalid(path, field.OmitValueType{}, "must match exactly one schema of oneOf, matches none ("+strings.Join(why, " | ")+")"))
		case n > 1:
			errs = append(errs, field.Invalid(path, field.OmitValueType{}, fmt.Sprintf("must match exactly one schema of oneOf, matches %d", n)))
		}
	}
	if s.not != nil && len(s.not.check(value, path)) == 0 {
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, "must not match the schema of not"))
	}
	return errs
}

// words is the enumeration as people write it.
func (s *valueSchema) words() []string {
	words := make([]string, len(s.enum))
	for i, value := range s.enum {
		words[i] = fmt.Sprint(value)
	}
	return words
}

func jsonNumber(value any) float64 {
	if i, ok := value.(int64); ok {
		return float64(i)
	}
	f, _ := value.(float64)
	return f
}

// sameJSON compares values; 1 and 1.0 are the same.
func sameJSON(a, b any) bool {
	switch a.(type) {
	case int64, float64:
		switch b.(type) {
		case int64, float64:
			return a == b || jsonNumber(a) == jsonNumber(b)
		}
		return false
	}
	return reflect.DeepEqual(a, b)
}

// shownValue is value as an error shows it: not, if it is long.
func shownValue(value any) any {
	switch value.(type) {
	case map[string]any, []any, nil:
		return field.OmitValueType{}
	}
	return value
}

func jsonTypeName(value any) string {
	switch value.(type) {
	case nil:
		return "empty"
	case map[string]any:
		return "a map"
	case []any:
		return "a list"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	default:
		return "a number"
	}
}

func either(yes bool, a, b string) string {
	if yes {
		return a
	}
	return b
}
