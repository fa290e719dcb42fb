package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/util/jsonpath"

	"github.com/holdfast-io/holdfast/object"
)

// outputFlags say how objects are shown.
type outputFlags struct {
	output      string
	template    string
	noHeaders   bool
	sortBy      string
	showLabels  bool
	labels      []string
	showManaged bool
}

// outputForms are what -o takes.
const outputForms = "table, wide, name, json, yaml, jsonpath=TEMPLATE, go-template=TEMPLATE or custom-columns=NAME:PATH,... (the last three also with -file=FILE)"

func (f *outputFlags) add(flags *pflag.FlagSet) {
	flags.StringVarP(&f.output, "output", "o", "table", outputForms)
	flags.StringVar(&f.template, "template", "", "the template of -o jsonpath or go-template, or the file with it")
	flags.BoolVar(&f.noHeaders, "no-headers", false, "leave out the names of columns")
	flags.StringVar(&f.sortBy, "sort-by", "", "sort by this field, such as .metadata.creationTimestamp")
	flags.BoolVar(&f.showLabels, "show-labels", false, "show all labels in a last column")
	flags.StringSliceVarP(&f.labels, "label-columns", "L", nil, "show these labels, each in a column of its own")
	flags.BoolVar(&f.showManaged, "show-managed-fields", false, "keep metadata.managedFields in JSON and YAML: who set which field")
}

// shower shows objects in the way that flags ask for.
type shower interface {
	// show shows all that was found, a slice for each kind that was asked for;
	// single is true for one object that was named.
	show(found [][]object.Object, single bool) error
	// next shows one kind's objects that changed, after those shown before.
	next(objs []object.Object) error
}

// shower returns what shows objects; faults in the templates are found here,
// before anything is asked of the cluster.
func (a *app) shower(f outputFlags, namespaces bool) (shower, error) {
	form, text, _ := strings.Cut(f.output, "=")
	form, isFile := strings.CutSuffix(form, "-file")
	text = cmp.Or(text, f.template)
	if !slices.Contains([]string{"jsonpath", "go-template", "custom-columns"}, form) {
		if f.output != form || isFile {
			form = "" // table=…
		}
		switch form {
		case "", "table", "wide":
			if form == "" && f.output != "" {
				break
			}
			by, err := parseSortBy(f.sortBy)
			return &tables{a: a, f: f, by: by, namespaces: namespaces, grid: &grid{w: a.stdout, wide: form == "wide", header: !f.noHeaders}}, err
		case "name", "json", "yaml":
			by, err := parseSortBy(f.sortBy)
			return &documents{w: a.stdout, by: by, write: func(objs []object.Object, single bool) error {
				return writeObjects(a.stdout, form, trimmed(objs, f.showManaged), single)
			}, between: form == "yaml"}, err
		}
		return nil, failf(exitUsage, "-o %s: want %s", f.output, outputForms)
	}
	if text == "" {
		return nil, failf(exitUsage, "-o %s: the template is missing: write -o %s=…", f.output, f.output)
	}
	if isFile {
		data, err := os.ReadFile(text)
		if err != nil {
			return nil, failf(exitUsage, "-o %s: %w", f.output, err)
		}
		text = string(data)
	}
	by, err := parseSortBy(f.sortBy)
	if err != nil {
		return nil, err
	}
	d := &documents{w: a.stdout, by: by}
	switch form {
	case "jsonpath":
		path := jsonpath.New("out").AllowMissingKeys(true)
		if err := path.Parse(relaxedPath(text)); err != nil {
			return nil, failf(exitUsage, "-o jsonpath: %w", err)
		}
		d.write = func(objs []object.Object, single bool) error {
			value, err := valueOf(objs, single)
			if err != nil {
				return err
			}
			if err := path.Execute(a.stdout, value); err != nil {
				return failf(exitUsage, "-o jsonpath: %w", err)
			}
			return nil
		}
	case "go-template":
		tmpl, err := template.New("out").Funcs(templateFunctions).Parse(text)
		if err != nil {
			return nil, failf(exitUsage, "-o go-template: %w", err)
		}
		d.write = func(objs []object.Object, single bool) error {
			value, err := valueOf(objs, single)
			if err != nil {
				return err
			}
			if err := tmpl.Execute(a.stdout, value); err != nil {
				return failf(exitUsage, "-o go-template: %w", err)
			}
			return nil
		}
	case "custom-columns":
		c, err := parseColumns(text, isFile)
		if err != nil {
			return nil, err
		}
		c.grid = &grid{w: a.stdout, header: !f.noHeaders}
		d.write = func(objs []object.Object, _ bool) error { return c.print(objs) }
	}
	return d, nil
}

// trimmed returns the objects without managedFields, which no person asked for.
func trimmed(objs []object.Object, keep bool) []object.Object {
	if keep {
		return objs
	}
	out := make([]object.Object, len(objs))
	for i, obj := range objs {
		if out[i] = obj; len(obj.GetManagedFields()) > 0 {
			out[i] = obj.DeepCopyObject().(object.Object)
			out[i].SetManagedFields(nil)
		}
	}
	return out
}

// tables shows a table for each kind.
type tables struct {
	a          *app
	f          outputFlags
	by         *sortKey
	namespaces bool
	grid       *grid // of what next shows
}

func (t *tables) show(found [][]object.Object, _ bool) error {
	first := true
	for _, objs := range found {
		if len(objs) == 0 {
			continue
		}
		if !first {
			fmt.Fprintln(t.a.stdout)
		}
		first = false
		g := &grid{w: t.a.stdout, wide: t.grid.wide, header: t.grid.header}
		if err := t.write(g, objs, len(found) > 1); err != nil {
			return err
		}
	}
	return nil
}

func (t *tables) next(objs []object.Object) error { return t.write(t.grid, objs, false) }

func (t *tables) write(g *grid, objs []object.Object, kindBeforeName bool) error {
	if len(objs) == 0 {
		return nil
	}
	objs, err := t.by.sort(objs)
	if err != nil {
		return err
	}
	table := tableOf(objs, t.a.now(), kindBeforeName, t.namespaces)
	for _, key := range t.f.labels {
		name := key[strings.LastIndex(key, "/")+1:]
		table.Columns = append(table.Columns, object.Column{Name: strings.ToUpper(name)})
		for i, obj := range objs {
			table.Rows[i] = append(table.Rows[i], obj.GetLabels()[key])
		}
	}
	if t.f.showLabels {
		table.Columns = append(table.Columns, object.Column{Name: "LABELS"})
		for i, obj := range objs {
			var pairs []string
			for key, value := range obj.GetLabels() {
				pairs = append(pairs, key+"="+value)
			}
			slices.Sort(pairs)
			table.Rows[i] = append(table.Rows[i], cmp.Or(strings.Join(pairs, ","), "<none>"))
		}
	}
	g.write(table)
	return nil
}

// documents shows objects by something that takes them all at once.
type documents struct {
	w       io.Writer
	by      *sortKey
	write   func(objs []object.Object, single bool) error
	between bool // what comes one by one has --- before it
}

func (d *documents) show(found [][]object.Object, single bool) error {
	objs, err := d.by.sort(slices.Concat(found...))
	if err != nil {
		return err
	}
	return d.write(objs, single)
}

func (d *documents) next(objs []object.Object) error {
	objs, err := d.by.sort(objs)
	if err != nil {
		return err
	}
	for _, obj := range objs {
		if d.between {
			fmt.Fprintln(d.w, "---")
		}
		if err := d.write([]object.Object{obj}, true); err != nil {
			return err
		}
	}
	return nil
}

// valueOf returns objects as templates see them: one as it is, several as a List.
func valueOf(objs []object.Object, single bool) (any, error) {
	items := make([]any, 0, len(objs))
	for _, obj := range objs {
		value, err := mapOf(obj)
		if err != nil {
			return nil, err
		}
		if single && len(objs) == 1 {
			return value, nil
		}
		items = append(items, value)
	}
	return map[string]any{"apiVersion": "v1", "kind": "List", "metadata": map[string]any{}, "items": items}, nil
}

// mapOf returns an object as its JSON reads.
func mapOf(obj object.Object) (map[string]any, error) {
	data, err := object.EncodeJSON(obj)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	return out, utiljson.Unmarshal(data, &out)
}

// templateFunctions are those that kubectl's go-templates have.
var templateFunctions = template.FuncMap{
	"exists": func(item any, keys ...any) bool {
		v := reflect.ValueOf(item)
		for _, key := range keys {
			for v.IsValid() && v.Kind() == reflect.Interface {
				v = v.Elem()
			}
			switch {
			case v.IsValid() && v.Kind() == reflect.Map:
				v = v.MapIndex(reflect.ValueOf(key))
			case v.IsValid() && v.Kind() == reflect.Slice:
				i, ok := key.(int)
				if !ok || i < 0 || i >= v.Len() {
					return false
				}
				v = v.Index(i)
			default:
				return false
			}
			if !v.IsValid() {
				return false
			}
		}
		return true
	},
	"base64decode": func(s string) (string, error) {
		data, err := base64.StdEncoding.DecodeString(s)
		return string(data), err
	},
}

// relaxedPath lets people leave out the braces, and the dot, of a path.
func relaxedPath(s string) string {
	if strings.Contains(s, "{") {
		return s
	}
	if !strings.HasPrefix(s, ".") && !strings.HasPrefix(s, "[") {
		s = "." + s
	}
	return "{" + s + "}"
}

// Columns of one's own

type customColumns struct {
	names []string
	paths []*jsonpath.JSONPath
	grid  *grid
}

// parseColumns reads "NAME:.metadata.name,NODE:.spec.nodeName" or, from a file, a
// line of names and below it a line of paths.
func parseColumns(text string, isFile bool) (*customColumns, error) {
	var names, paths []string
	if isFile {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		if len(lines) != 2 {
			return nil, failf(exitUsage, "-o custom-columns-file: want two lines, one with names and one with paths")
		}
		names, paths = strings.Fields(lines[0]), strings.Fields(lines[1])
		if len(names) != len(paths) {
			return nil, failf(exitUsage, "-o custom-columns-file: %d names over %d paths", len(names), len(paths))
		}
	} else {
		for part := range strings.SplitSeq(text, ",") {
			name, path, ok := strings.Cut(part, ":")
			if !ok || name == "" || path == "" {
				return nil, failf(exitUsage, "-o custom-columns: %q: want NAME:PATH, such as NODE:.spec.nodeName", part)
			}
			names, paths = append(names, name), append(paths, path)
		}
	}
	c := &customColumns{names: names}
	for i, path := range paths {
		p := jsonpath.New(names[i]).AllowMissingKeys(true)
		if err := p.Parse(relaxedPath(path)); err != nil {
			return nil, failf(exitUsage, "-o custom-columns: column %s: %w", names[i], err)
		}
		c.paths = append(c.paths, p)
	}
	return c, nil
}

func (c *customColumns) print(objs []object.Object) error {
	var t object.Table
	for _, name := range c.names {
		t.Columns = append(t.Columns, object.Column{Name: name})
	}
	for _, obj := range objs {
		value, err := mapOf(obj)
		if err != nil {
			return err
		}
		var row []string
		for i, path := range c.paths {
			results, err := path.FindResults(value)
			if err != nil {
				return failf(exitUsage, "-o custom-columns: column %s: %w", c.names[i], err)
			}
			row = append(row, cell(results))
		}
		t.Rows = append(t.Rows, row)
	}
	c.grid.write(t)
	return nil
}

// cell writes what a path found.
func cell(results [][]reflect.Value) string {
	var words []string
	for _, found := range results {
		for _, v := range found {
			switch value := v.Interface().(type) {
			case nil:
				words = append(words, "<none>")
			case map[string]any, []any:
				data, err := json.Marshal(value)
				words = append(words, cmp.Or(string(data), fmt.Sprint(err)))
			default:
				words = append(words, fmt.Sprint(value))
			}
		}
	}
	return cmp.Or(strings.Join(words, ","), "<none>")
}

// Order

// sortKey is the field to sort by; nil leaves the order as it is.
type sortKey struct {
	text string
	path *jsonpath.JSONPath
}

func parseSortBy(text string) (*sortKey, error) {
	if text == "" {
		return nil, nil
	}
	path := jsonpath.New("sort-by").AllowMissingKeys(true)
	if err := path.Parse(relaxedPath(text)); err != nil {
		return nil, failf(exitUsage, "--sort-by: %w", err)
	}
	return &sortKey{text, path}, nil
}

func (k *sortKey) sort(objs []object.Object) ([]object.Object, error) {
	if k == nil || len(objs) < 2 {
		return objs, nil
	}
	type keyed struct {
		obj   object.Object
		value any
	}
	all := make([]keyed, len(objs))
	found := false
	for i, obj := range objs {
		value, err := mapOf(obj)
		if err != nil {
			return nil, err
		}
		results, err := k.path.FindResults(value)
		if err != nil {
			return nil, failf(exitUsage, "--sort-by %s: %w", k.text, err)
		}
		all[i].obj = obj
		if len(results) > 0 && len(results[0]) > 0 {
			all[i].value, found = results[0][0].Interface(), true
		}
	}
	if !found {
		return nil, failf(exitUsage, "--sort-by %s: none of the objects has that field", k.text)
	}
	slices.SortStableFunc(all, func(a, b keyed) int { return compareValues(a.value, b.value) })
	out := make([]object.Object, len(all))
	for i := range all {
		out[i] = all[i].obj
	}
	return out, nil
}

// compareValues orders numbers, quantities and times by what they mean, all else
// as text. What is missing comes first.
func compareValues(a, b any) int {
	if a == nil || b == nil {
		return cmp.Compare(btoi(a != nil), btoi(b != nil))
	}
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			return cmp.Compare(x, y)
		}
	}
	s, t := fmt.Sprint(a), fmt.Sprint(b)
	if x, err := time.Parse(time.RFC3339, s); err == nil {
		if y, err := time.Parse(time.RFC3339, t); err == nil {
			return x.Compare(y)
		}
	}
	if x, err := resource.ParseQuantity(s); err == nil {
		if y, err := resource.ParseQuantity(t); err == nil {
			return x.Cmp(y)
		}
	}
	return cmp.Compare(s, t)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int64:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}

// writeObjects writes objects as name, json or yaml. Several come as a List.
func writeObjects(w io.Writer, output string, objs []object.Object, single bool) error {
	if output == "name" {
		for _, obj := range objs {
			fmt.Fprintln(w, title(obj))
		}
		return nil
	}
	var data []byte
	if single && len(objs) == 1 {
		var err error
		if data, err = object.EncodeJSON(objs[0]); err != nil {
			return err
		}
	} else {
		list := struct {
			APIVersion string            `json:"apiVersion"`
			Kind       string            `json:"kind"`
			Items      []json.RawMessage `json:"items"`
		}{"v1", "List", []json.RawMessage{}}
		for _, obj := range objs {
			item, err := object.EncodeJSON(obj)
			if err != nil {
				return err
			}
			list.Items = append(list.Items, item)
		}
		var err error
		if data, err = json.Marshal(list); err != nil {
			return err
		}
	}
	return writeJSON(w, output, data)
}

// asYAML returns an object as people read and edit it.
func asYAML(obj object.Object) (string, error) {
	var text bytes.Buffer
	err := writeObjects(&text, "yaml", []object.Object{obj}, true)
	return text.String(), err
}

// itoa writes a number as flags and messages have it.
func itoa[T ~int | ~int32 | ~int64](n T) string { return strconv.FormatInt(int64(n), 10) }
