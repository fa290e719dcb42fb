package object

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// Table is what "get" shows: one row an object, one cell a column.
type Table struct {
	Columns []Column
	Rows    [][]string
}

// Column is a column of a Table. Cells are text, whatever Type says.
type Column struct {
	Name string
	Wide bool // shown for "-o wide" only

	// As in metav1.TableColumnDefinition.
	Type        string // "string", "integer", "number", "boolean", "date"
	Format      string // "name" for that of the object
	Description string
	Priority    int32 // 0, or more for wide ones
}

// Print returns the table that kubectl shows for objects of this kind, one row
// for each of objs in their order. Objects of several kinds get only a name,
// with the kind before it, and an age. No objects, no table.
func Print(objs []Object, now time.Time) Table {
	if len(objs) == 0 {
		return Table{}
	}
	p := kindOfObject(objs[0]).printer
	first := ResourceOf(objs[0])
	if slices.ContainsFunc(objs, func(o Object) bool { return ResourceOf(o).groupVersionKind() != first.groupVersionKind() }) {
		p = genericPrinter
	}
	t := Table{Columns: slices.Clone(p.columns)}
	for _, obj := range objs {
		t.Rows = append(t.Rows, p.row(obj, now))
	}
	return t
}

// PrintColumns returns the columns of the table that [Print] makes of objects of
// the kind r.
func PrintColumns(r Resource) []Column { return slices.Clone(r.kind().printer.columns) }

// WithNamespaces returns t with a first column that shows the namespaces of
// objs, which are those that t was made of. t is not changed.
func (t Table) WithNamespaces(objs []Object) Table {
	out := Table{Columns: append([]Column{{Name: "NAMESPACE"}}, t.Columns...)}
	for i, row := range t.Rows {
		out.Rows = append(out.Rows, append([]string{objs[i].GetNamespace()}, row...))
	}
	return out
}

// printer makes the rows of one kind.
type printer struct {
	columns []Column
	row     func(obj Object, now time.Time) []string
}

// columns makes columns from names; those after "|" are wide. "DESIRED:integer"
// has another type than string.
func columns(names ...string) []Column {
	var all []Column
	wide := false
	for _, name := range names {
		if name == "|" {
			wide = true
			continue
		}
		name, typ, _ := strings.Cut(name, ":")
		all = append(all, Column{Name: name, Wide: wide, Type: typ})
	}
	return complete(all)
}

// complete fills in what columns leave open.
func complete(columns []Column) []Column {
	columns = slices.Clone(columns)
	for i := range columns {
		c := &columns[i]
		c.Type = cmp.Or(c.Type, "string")
		c.Description = cmp.Or(c.Description, columnDescriptions[c.Name])
		if c.Wide {
			c.Priority = max(c.Priority, 1)
		}
		if c.Name == "NAME" {
			c.Format = "name"
		}
	}
	return columns
}

// columnDescriptions say what a column shows, where all kinds mean the same by it.
var columnDescriptions = map[string]string{
	"NAME":       "The object's name, unique in its namespace.",
	"AGE":        "How long ago the object was created.",
	"CREATED AT": "When the object was created.",
	"LABELS":     "The object's labels.",
	"SELECTOR":   "Which pods belong to the object, by their labels.",
	"CONTAINERS": "The names of the containers.",
	"IMAGES":     "The images of the containers.",
}

// plainPrinter shows what every object has.
var plainPrinter = printer{columns("NAME", "AGE"), func(obj Object, now time.Time) []string { return []string{obj.GetName(), ageOf(obj, now)} }}

var genericPrinter = printer{columns("NAME", "AGE"), func(obj Object, now time.Time) []string {
	return []string{ResourceOf(obj).Singular + "/" + obj.GetName(), ageOf(obj, now)}
}}

func templateCells(template *corev1.PodTemplateSpec, selector *metav1.LabelSelector) []string {
	var names, images []string
	for i := range template.Spec.Containers {
		names = append(names, template.Spec.Containers[i].Name)
		images = append(images, template.Spec.Containers[i].Image)
	}
	return []string{orNone(strings.Join(names, ",")), orNone(strings.Join(images, ",")), metav1.FormatLabelSelector(selector)}
}

// Words

// Age returns how long ago t was, as kubectl writes it: "5s", "3m10s", "4d2h";
// "<unknown>" if t is zero.
func Age(t, now time.Time) string { return since(t, now) }

func since(t, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t))
}

func ageOf(obj Object, now time.Time) string { return since(obj.GetCreationTimestamp().Time, now) }

func itoa(i int32) string { return strconv.Itoa(int(i)) }

func replicas(r *int32) string {
	if r == nil {
		return "1"
	}
	return itoa(*r)
}

func orNone(s string) string { return cmp.Or(s, "<none>") }

func orUnknown(s string) string { return cmp.Or(s, "<unknown>") }
