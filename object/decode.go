package object

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// decoder reads a node into an API struct by the structs' json tags. It goes on
// after a fault: what cannot be read stays zero and its path is kept in bad.
type decoder struct {
	lines  map[string]int
	faults []Fault // Line, Field and Message set
	bad    []string

	within []level // the structs around the current one, outermost first
}

type level struct {
	path string
	info *structInfo
}

func (d *decoder) decode(root *node, obj Object) {
	if c, ok := obj.(*Custom); ok {
		d.customObject(root, c)
		return
	}
	d.object(root, reflect.ValueOf(obj).Elem(), "")
}

func (d *decoder) fault(line int, path, format string, args ...any) {
	if d.secret(path) {
		args = withoutValues(args)
	}
	d.faults = append(d.faults, Fault{Line: line, Field: path, Message: fmt.Sprintf(format, args...)})
	d.bad = append(d.bad, path)
}

// value reads n into v, which is settable. path is v's own.
func (d *decoder) value(n *node, v reflect.Value, path string, line int) {
	d.lines[path] = line
	if n.kind == nullNode {
		return // as in JSON: leaves the zero value
	}
	if special, ok := v.Addr().Interface().(json.Unmarshaler); ok {
		d.special(n, v, special, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		target := reflect.New(v.Type().Elem())
		d.value(n, target.Elem(), path, line)
		v.Set(target)
	case reflect.Struct:
		if n.kind != mapNode {
			d.fault(n.line, path, "must be a map, is %s", n)
			return
		}
		d.object(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			d.bytes(n, v, path)
			return
		}
		d.list(n, v, path)
	case reflect.String:
		if n.kind != stringNode {
			d.fault(n.line, path, "must be a string, is %s%s", n, quoteHint(n))
			return
		}
		v.SetString(n.text)
	case reflect.Bool:
		if n.kind != boolNode {
			d.fault(n.line, path, "must be true or false, is %s%s", n, unquoteHint(n, boolNode))
			return
		}
		v.SetBool(n.text == "true")
	case reflect.Int32, reflect.Int64:
		d.integer(n, v, path)
	case reflect.Float64:
		f, err := strconv.ParseFloat(n.text, 64)
		if n.kind != numberNode || err != nil {
			d.fault(n.line, path, "must be a number, is %s%s", n, unquoteHint(n, numberNode))
			return
		}
		v.SetFloat(f)
	default:
		panic(fmt.Sprintf("object: no way to read a %v at %s", v.Type(), path))
	}
}

func (d *decoder) object(n *node, v reflect.Value, path string) {
	info := infoOf(v.Type())
	d.entries(n, path, info, func(m member, at string) {
		index, ok := info.fields[m.name]
		if !ok {
			d.unknown(m, n, info, path)
			return
		}
		d.value(m.value, v.FieldByIndex(index), at, m.line)
	})
}

// entries calls each for every entry of a map, which info describes, but for
// repetitions: they are faults.
func (d *decoder) entries(n *node, path string, info *structInfo, each func(m member, at string)) {
	d.within = append(d.within, level{path, info})
	defer func() { d.within = d.within[:len(d.within)-1] }()
	first := make(map[string]int, len(n.keys))
	for _, m := range n.keys {
		at := join(path, m.name)
		if d.repeated(m, at, first) {
			continue
		}
		each(m, at)
	}
}

// repeated reports whether first has m's name already, which is a fault, and
// remembers it if not.
func (d *decoder) repeated(m member, at string, first map[string]int) bool {
	if line, twice := first[m.name]; twice {
		d.faults = append(d.faults, Fault{Line: m.line, Field: at, Message: fmt.Sprintf("is given twice, first on line %d: remove one of them", line)})
		return true
	}
	first[m.name] = m.line
	return false
}

// unknown reports a field that the current struct, read from n, does not have,
// with what was probably meant: another spelling, or the same name a level away,
// which is what wrong indentation looks like.
func (d *decoder) unknown(m member, n *node, info *structInfo, path string) {
	at := join(path, m.name)
	meant := func(where, hint string) {
		d.fault(m.line, at, "unknown field: did you mean %s?%s", where, hint)
		d.bad = append(d.bad, where) // "required" there would be an echo
	}
	if guess, ok := nearest(m.name, info.names); ok {
		meant(join(path, guess), "")
		return
	}
	for _, outer := range slices.Backward(d.within[:len(d.within)-1]) {
		if _, ok := outer.info.fields[m.name]; ok {
			meant(join(outer.path, m.name), " Then it is indented too far")
			return
		}
	}
	for _, sibling := range n.keys {
		inner, ok := info.nested[sibling.name]
		if !ok {
			continue
		}
		if _, ok := inner.info().fields[m.name]; !ok {
			continue
		}
		if inner.list {
			meant(join(path, sibling.name)+"[0]."+m.name, " It belongs to an item of "+sibling.name)
		} else {
			meant(join(join(path, sibling.name), m.name), " Then it is not indented far enough")
		}
		return
	}
	const few = 10
	if len(info.names) > few {
		d.fault(m.line, at, "unknown field: a %s has none of that name", info.name)
		return
	}
	d.fault(m.line, at, "unknown field: a %s has %s", info.name, strings.Join(info.names, ", "))
}

func (d *decoder) mapping(n *node, v reflect.Value, path string) {
	if n.kind != mapNode {
		d.fault(n.line, path, "must be a map, is %s", n)
		return
	}
	t := v.Type()
	out := reflect.MakeMapWithSize(t, len(n.keys))
	first := make(map[string]int, len(n.keys))
	for _, m := range n.keys {
		at := path + "[" + m.name + "]"
		if d.repeated(m, at, first) {
			continue
		}
		item := reflect.New(t.Elem()).Elem()
		before := len(d.bad)
		d.value(m.value, item, at, m.line)
		if len(d.bad) == before {
			out.SetMapIndex(reflect.ValueOf(m.name).Convert(t.Key()), item)
		}
	}
	v.Set(out)
}

func (d *decoder) list(n *node, v reflect.Value, path string) {
	if n.kind != listNode {
		d.fault(n.line, path, `must be a list, is %s: put "- " before it`, n)
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
	for i, item := range n.items {
		d.value(item, out.Index(i), path+"["+strconv.Itoa(i)+"]", item.line)
	}
	v.Set(out)
}

func (d *decoder) bytes(n *node, v reflect.Value, path string) {
	if n.kind != stringNode {
		d.fault(n.line, path, "must be a base64 string, is %s", n)
		return
	}
	data, err := base64.StdEncoding.DecodeString(n.text)
	if err != nil {
		d.fault(n.line, path, "must be base64, is %s (%v)", n, err)
		return
	}
	v.SetBytes(data)
}

func (d *decoder) integer(n *node, v reflect.Value, path string) {
	low, high := int64(math.MinInt64), int64(math.MaxInt64)
	if v.Kind() == reflect.Int32 {
		low, high = math.MinInt32, math.MaxInt32
	}
	if n.kind != numberNode {
		d.fault(n.line, path, "must be a whole number, is %s%s", n, unquoteHint(n, numberNode))
		return
	}
	i, err := strconv.ParseInt(n.text, 10, 64)
	if err != nil { // "3.0", "1e3", or too large
		f, ferr := strconv.ParseFloat(n.text, 64)
		if ferr != nil || f != math.Trunc(f) {
			d.fault(n.line, path, "must be a whole number, is %s", n)
			return
		}
		if math.Abs(f) >= 1<<63 {
			d.fault(n.line, path, "must be a whole number from %d to %d, is %s", low, high, n)
			return
		}
		i = int64(f)
	}
	if i < low || i > high {
		d.fault(n.line, path, "must be a whole number from %d to %d, is %s", low, high, n)
		return
	}
	v.SetInt(i)
}

// special reads the types that have a JSON form of their own.
func (d *decoder) special(n *node, v reflect.Value, u json.Unmarshaler, path string) {
	switch target := u.(type) {
	case *apiextensionsv1.JSONSchemaPropsOrBool:
		if n.kind == boolNode {
			target.Allows = n.text == "true"
			return
		}
		target.Allows = true
		d.value(n, reflect.ValueOf(&target.Schema).Elem(), path, n.line)
		return
	case *apiextensionsv1.JSONSchemaPropsOrArray:
		if n.kind == listNode {
			d.value(n, reflect.ValueOf(&target.JSONSchemas).Elem(), path, n.line)
		} else {
			d.value(n, reflect.ValueOf(&target.Schema).Elem(), path, n.line)
		}
		return
	case *apiextensionsv1.JSONSchemaPropsOrStringArray:
		if n.kind == listNode {
			d.value(n, reflect.ValueOf(&target.Property).Elem(), path, n.line)
		} else {
			d.value(n, reflect.ValueOf(&target.Schema).Elem(), path, n.line)
		}
		return
	case *resource.Quantity:
		if n.kind != stringNode && n.kind != numberNode {
			d.fault(n.line, path, "must be a quantity such as 500m, 0.5 or 128Mi, is %s", n)
			return
		}
		q, err := resource.ParseQuantity(n.text)
		if err != nil {
			d.fault(n.line, path, "must be a quantity such as 500m, 0.5 or 128Mi, is %s%s", n, quantityHint(n.text))
			return
		}
		*target = q
		return
	case *intstr.IntOrString:
		if n.kind != stringNode && n.kind != numberNode {
			d.fault(n.line, path, `must be a number or a string such as "25%%", is %s`, n)
			return
		}
	case *metav1.Time, *metav1.MicroTime:
		if n.kind != stringNode {
			d.fault(n.line, path, `must be a time such as "2026-01-31T12:00:00Z", is %s`, n)
			return
		}
	case *metav1.Duration:
		if n.kind != stringNode {
			d.fault(n.line, path, `must be a duration such as "1m30s", is %s`, n)
			return
		}
	}
	if err := u.UnmarshalJSON(n.json()); err != nil {
		v.SetZero()
		switch u.(type) {
		case *intstr.IntOrString:
			d.fault(n.line, path, `must be a whole number or a string such as "25%%", is %s`, n)
		case *metav1.Time, *metav1.MicroTime:
			d.fault(n.line, path, `must be a time such as "2026-01-31T12:00:00Z", is %s`, n)
		case *metav1.Duration:
			d.fault(n.line, path, `must be a duration such as "1m30s", is %s`, n)
		default:
			d.fault(n.line, path, "is not valid: %v", err)
		}
	}
}

// quoteHint says how to make n a string, if it can be one.
func quoteHint(n *node) string {
	if n.kind == boolNode || n.kind == numberNode {
		return fmt.Sprintf(": write it in quotes, %q", n.raw)
	}
	return ""
}

// unquoteHint says to remove the quotes around a string that looks like what is
// wanted.
func unquoteHint(n *node, want nodeKind) string {
	if n.kind != stringNode || n.text == "" {
		return ""
	}
	if kind, text := resolvePlain(n.text); kind == want && text != "" {
		return ": remove the quotes"
	}
	return ""
}

// quantityHint corrects the units that people write most.
func quantityHint(s string) string {
	trimmed := strings.TrimSpace(s)
	upper := strings.ToUpper(trimmed)
	for _, unit := range []struct{ wrong, right string }{
		{"KIB", "Ki"},
		{"MIB", "Mi"},
		{"GIB", "Gi"},
		{"TIB", "Ti"},
		{"KB", "k"},
		{"MB", "M"},
		{"GB", "G"},
		{"TB", "T"},
		{"KI", "Ki"},
		{"MI", "Mi"},
		{"GI", "Gi"},
		{"TI", "Ti"},
		{"K", "k"},
		{"G", "G"},
		{"T", "T"},
		{"B", ""},
	} {
		number, ok := strings.CutSuffix(upper, unit.wrong)
		if !ok {
			continue
		}
		guess := strings.TrimSpace(number) + unit.right
		if _, err := resource.ParseQuantity(guess); err == nil && guess != s {
			return ": did you mean " + guess + "?"
		}
	}
	if guess := strings.ReplaceAll(trimmed, " ", ""); guess != s {
		if _, err := resource.ParseQuantity(guess); err == nil {
			return ": did you mean " + guess + "?"
		}
	}
	return ""
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// structInfo is what json tags say about a struct.
type structInfo struct {
	name   string            // of the type: "Container"
	names  []string          // in order of declaration
	fields map[string][]int  // name -> index for FieldByIndex
	nested map[string]nested // those fields that are structs, or lists of them
}

type nested struct {
	info func() *structInfo
	list bool
}

var structInfos sync.Map // reflect.Type -> *structInfo

func infoOf(t reflect.Type) *structInfo {
	if info, ok := structInfos.Load(t); ok {
		return info.(*structInfo)
	}
	info := &structInfo{name: t.Name(), fields: map[string][]int{}, nested: map[string]nested{}}
	info.add(t, nil)
	actual, _ := structInfos.LoadOrStore(t, info)
	return actual.(*structInfo)
}

func (info *structInfo) add(t reflect.Type, index []int) {
	for f := range t.Fields() {
		at := append(slices.Clone(index), f.Index...)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && (options == "inline" || name == "") {
			info.add(f.Type, at)
			continue
		}
		if name == "" || name == "-" || !f.IsExported() {
			continue
		}
		info.names = append(info.names, name)
		info.fields[name] = at
		inner := f.Type
		if inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() != reflect.Struct {
			continue
		}
		if _, special := reflect.New(inner).Interface().(json.Unmarshaler); !special {
			info.nested[name] = nested{func() *structInfo { return infoOf(inner) }, f.Type.Kind() == reflect.Slice}
		}
	}
}
