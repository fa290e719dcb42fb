package object

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/util/jsonpath"
)

// Custom is an object of a kind that a CustomResourceDefinition defines. It is
// made by a [Catalog], and knows its kind and schema.
type Custom struct {
	unstructured.Unstructured
	row *kind
}

// DeepCopyObject returns a copy that shares nothing with c.
func (c *Custom) DeepCopyObject() runtime.Object {
	return &Custom{*c.Unstructured.DeepCopy(), c.row}
}

// MarshalJSON writes the object in one line, its fields in alphabetical order.
func (c *Custom) MarshalJSON() ([]byte, error) { return json.Marshal(c.Object) }

// shallow copies c so that metadata's own fields can be changed in the copy.
func (c *Custom) shallow() *Custom {
	out := &Custom{unstructured.Unstructured{Object: maps.Clone(c.Object)}, c.row}
	if meta, ok := c.Object["metadata"].(map[string]any); ok {
		out.Object["metadata"] = maps.Clone(meta)
	}
	return out
}

// customKinds makes the rows of a definition: one for each version, the
// preferred one first.
func customKinds(crd *apiextensionsv1.CustomResourceDefinition) []*kind {
	names := crd.Spec.Names
	if accepted := crd.Status.AcceptedNames; accepted.Kind != "" {
		names = accepted
	}
	versions := slices.Clone(crd.Spec.Versions)
	slices.SortStableFunc(versions, func(a, b apiextensionsv1.CustomResourceDefinitionVersion) int {
		return -version.CompareKubeAwareVersionStrings(a.Name, b.Name)
	})
	var rows []*kind
	for i := range versions {
		v := &versions[i]
		r := Resource{
			Group: crd.Spec.Group, Version: v.Name, Kind: names.Kind,
			Plural: names.Plural, Singular: names.Singular, ShortNames: names.ShortNames, Categories: names.Categories,
			Namespaced: crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
			Custom:     true, Storage: v.Storage,
		}
		if sub := v.Subresources; sub != nil {
			r.Status, r.Scale = sub.Status != nil, sub.Scale != nil
		}
		rows = append(rows, customKind(r, v))
	}
	link(rows)
	return rows
}

func customKind(r Resource, v *apiextensionsv1.CustomResourceDefinitionVersion) *kind {
	var s *valueSchema
	if v.Schema != nil {
		s = compile(r.Kind, v.Schema.OpenAPIV3Schema)
	}
	k := &kind{}
	*k = define(r, func() *Custom {
		return &Custom{unstructured.Unstructured{Object: map[string]any{"apiVersion": r.APIVersion(), "kind": r.Kind}}, k}
	}, rules[*Custom]{
		defaults: func(c *Custom) { s.fill(c.Object) },
		validate: func(c *Custom) field.ErrorList { return s.checkObject(c.Object) },
		selectable: func(c *Custom, set fields.Set) {
			for _, f := range v.SelectableFields {
				path := strings.TrimPrefix(f.JSONPath, ".")
				value, _, _ := unstructured.NestedFieldNoCopy(c.Object, strings.Split(path, ".")...)
				set[path] = ""
				if value != nil {
					set[path] = fmt.Sprint(value)
				}
			}
		},
		describe:   describeCustom,
		toStored:   func(c *Custom) (Object, error) { return c.as(k.storage), nil },
		fromStored: func(obj Object) *Custom { return obj.(*Custom).as(k) },
	})
	k.served, k.definition, k.schema = v.Served, v, s
	if sub := v.Subresources; sub != nil {
		k.scale = sub.Scale
	}
	k.printer = customPrinter(v.AdditionalPrinterColumns)
	return k
}

// checkObject checks a whole object. What every object has is checked elsewhere.
func (s *valueSchema) checkObject(object map[string]any) field.ErrorList {
	if s == nil {
		return nil
	}
	var errs field.ErrorList
	for _, err := range s.check(object, nil) {
		if !slices.ContainsFunc([]string{"apiVersion", "kind", "metadata.namespace"}, func(name string) bool { return within(err.Field, name) }) {
			errs = append(errs, err)
		}
	}
	return errs
}

// as returns c as another version of its kind: the fields stay as they are, which
// is the only conversion there is.
func (c *Custom) as(row *kind) *Custom {
	out := c.DeepCopyObject().(*Custom)
	out.row = row
	out.SetAPIVersion(row.resource.APIVersion())
	return out
}

// Reading

// customObject reads n, of which c's kind is known, by the kind's schema.
func (d *decoder) customObject(n *node, c *Custom) {
	s := c.row.schema
	info := &structInfo{name: c.row.resource.Kind, fields: map[string][]int{}, nested: map[string]nested{}}
	if s != nil {
		*info = *s.info
		info.fields, info.nested = maps.Clone(info.fields), maps.Clone(info.nested)
	}
	own := []string{"apiVersion", "kind", "metadata"}
	info.names = append(own, slices.DeleteFunc(slices.Clone(info.names), func(name string) bool { return slices.Contains(own, name) })...)
	for _, name := range own {
		info.fields[name] = []int{}
	}
	info.nested["metadata"] = nested{func() *structInfo { return infoOf(reflect.TypeFor[metav1.ObjectMeta]()) }, false}

	d.entries(n, "", info, func(m member, at string) {
		switch m.name {
		case "apiVersion", "kind": // read already: they say what n is
			d.lines[at] = m.line
			return
		case "metadata":
			var meta metav1.ObjectMeta
			d.value(m.value, reflect.ValueOf(&meta).Elem(), at, m.line)
			c.setMetadata(meta)
			return
		}
		child, _, known := s.field(m.name)
		if !known {
			d.unknown(m, n, info, "")
			return
		}
		c.Object[m.name] = d.plain(m.value, child, at, m.line)
	})
}

func (c *Custom) setMetadata(meta metav1.ObjectMeta) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&meta)
	if err != nil {
		panic(fmt.Sprintf("object: metadata of %s: %v", c.row.resource.Kind, err))
	}
	c.Object["metadata"] = fields
}

// plain reads n as plain values. A field that s does not have is a fault; whether
// values are right is for validation to say.
func (d *decoder) plain(n *node, s *valueSchema, path string, line int) any {
	d.lines[path] = line
	switch n.kind {
	case boolNode:
		return n.text == "true"
	case stringNode:
		return n.text
	case numberNode:
		if i, err := strconv.ParseInt(n.text, 10, 64); err == nil {
			return i
		}
		f, err := strconv.ParseFloat(n.text, 64)
		if err != nil || !strings.ContainsAny(n.text, ".eE") {
			d.fault(n.line, path, "must be a number of at most 64 bits, is %s: write it in quotes if it may be a string", n)
			return nil
		}
		return f
	case listNode:
		var items *valueSchema
		if s != nil {
			items = s.items
		}
		list := make([]any, len(n.items))
		for i, item := range n.items {
			list[i] = d.plain(item, items, path+"["+strconv.Itoa(i)+"]", item.line)
		}
		return list
	case mapNode:
		out := make(map[string]any, len(n.keys))
		info := &structInfo{}
		if s != nil {
			info = s.info
		}
		d.entries(n, path, info, func(m member, at string) {
			child, keyed, known := s.field(m.name)
			switch {
			case !known && s.mayHaveFields():
				d.unknown(m, n, info, path)
				return
			case keyed:
				at = path + "[" + m.name + "]"
			}
			out[m.name] = d.plain(m.value, child, at, m.line)
		})
		return out
	}
	return nil
}

// mayHaveFields reports whether a map is what s wants: if not, that is the fault,
// and not what is in the map.
func (s *valueSchema) mayHaveFields() bool {
	return s.kind == "object" || s.kind == "" && !s.intOrString
}

// Stored form: JSON in Kubernetes' envelope, since nobody but the definition
// knows the fields.

func (c *Custom) encode() ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(c.Object); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func (c *Custom) decode(raw []byte) error {
	value, err := plainJSON(raw)
	if err != nil {
		return err
	}
	object, ok := value.(map[string]any)
	if !ok {
		return fmt.Errorf("is %s, not a map", jsonTypeName(value))
	}
	c.Object = object
	return nil
}

// Tables

type customColumn struct {
	definition apiextensionsv1.CustomResourceColumnDefinition
	path       *jsonpath.JSONPath // nil if it cannot be read
}

// customPrinter makes the table of a definition's columns: the name, and the age
// if it defines none.
func customPrinter(definitions []apiextensionsv1.CustomResourceColumnDefinition) printer {
	if len(definitions) == 0 {
		return plainPrinter
	}
	p := printer{columns: columns("NAME")}
	var read []customColumn
	for _, d := range definitions {
		p.columns = append(p.columns, Column{
			Name: strings.ToUpper(d.Name), Wide: d.Priority > 0,
			Type: d.Type, Format: d.Format, Priority: d.Priority,
			Description: d.Description,
		})
		path, err := columnPath(d.JSONPath)
		if err != nil {
			path = nil // a definition that validation would refuse
		}
		read = append(read, customColumn{d, path})
	}
	p.row = func(obj Object, now time.Time) []string {
		cells := []string{obj.GetName()}
		for _, c := range read {
			cells = append(cells, c.cell(obj.(*Custom).Object, now))
		}
		return cells
	}
	return p
}

func columnPath(text string) (*jsonpath.JSONPath, error) {
	path := jsonpath.New(text).AllowMissingKeys(true)
	return path, path.Parse("{" + text + "}")
}

// cell returns what stands in the column, "" for nothing, as kubectl shows it.
func (c customColumn) cell(object map[string]any, now time.Time) string {
	if c.path == nil {
		return ""
	}
	found, err := c.path.FindResults(object)
	if err != nil || len(found) == 0 || len(found[0]) == 0 {
		return ""
	}
	value := found[0][0].Interface()
	switch c.definition.Type {
	case "string":
		var b bytes.Buffer
		if err := c.path.PrintResults(&b, found[0][:1]); err != nil {
			return ""
		}
		return b.String()
	case "integer":
		switch value.(type) {
		case int64, float64:
			return strconv.FormatInt(int64(jsonNumber(value)), 10)
		}
	case "number":
		switch value.(type) {
		case int64, float64:
			return strconv.FormatFloat(jsonNumber(value), 'g', -1, 64)
		}
	case "boolean":
		if b, ok := value.(bool); ok {
			return strconv.FormatBool(b)
		}
	case "date":
		if text, ok := value.(string); ok {
			at, err := time.Parse(time.RFC3339, text)
			if err != nil {
				return "<invalid>"
			}
			return since(at, now)
		}
	}
	return ""
}

// describeCustom writes all fields, which is what kubectl does for kinds that it
// does not know.
func describeCustom(d *describer, c *Custom, _ []Object) {
	d.meta(c)
	d.line(0, "API Version:", c.GetAPIVersion())
	d.line(0, "Kind:", c.GetKind())
	if at := c.GetCreationTimestamp(); !at.IsZero() {
		d.line(0, "Created:", d.time(at))
	}
	rest := maps.Clone(c.Object)
	for _, name := range []string{"apiVersion", "kind", "metadata"} {
		delete(rest, name)
	}
	d.plainFields(0, rest)
}

func (d *describer) plainFields(level int, object map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(object)) {
		label := titleWords(name) + ":"
		switch value := object[name].(type) {
		case map[string]any:
			d.line(level, label)
			d.plainFields(level+1, value)
		case []any:
			d.line(level, label)
			for i, item := range value {
				if fields, ok := item.(map[string]any); ok {
					if i > 0 {
						d.line(level+1, "-")
					}
					d.plainFields(level+1, fields)
					continue
				}
				d.line(level+1, fmt.Sprint(item))
			}
		default:
			d.line(level, label, fmt.Sprint(value))
		}
	}
}

// titleWords splits a field's name as a title: "maxReplicas" is "Max Replicas".
func titleWords(name string) string {
	var b strings.Builder
	for i, c := range name {
		if i == 0 {
			b.WriteString(strings.ToUpper(string(c)))
			continue
		}
		if c >= 'A' && c <= 'Z' && name[i-1] >= 'a' && name[i-1] <= 'z' {
			b.WriteByte(' ')
		}
		b.WriteRune(c)
	}
	return b.String()
}
