package kube

import (
	"cmp"
	"encoding/json"
	"math"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-io/holdfast/object"
)

// table writes objects as a metav1.Table, in JSON.
func (c *call) table(objs []object.Object, meta metav1.ListMeta) ([]byte, error) {
	table, err := c.tableOf(objs, meta)
	if err != nil {
		return nil, err
	}
	return json.Marshal(table)
}

func (c *call) tableOf(objs []object.Object, meta metav1.ListMeta) (*metav1.Table, error) {
	columns := object.PrintColumns(c.resource)
	cells := make([][]string, len(objs))
	if len(objs) > 0 {
		printed := object.Print(objs, c.now())
		columns, cells = printed.Columns, printed.Rows
	}
	table := &metav1.Table{
		TypeMeta:          metav1.TypeMeta{Kind: "Table", APIVersion: metav1.SchemeGroupVersion.String()},
		ListMeta:          meta,
		ColumnDefinitions: definitions(columns),
		Rows:              make([]metav1.TableRow, len(objs)),
	}
	for i, obj := range objs {
		row := &table.Rows[i]
		row.Cells = make([]any, len(cells[i]))
		for j, cell := range cells[i] {
			row.Cells[j] = cellOf(cell, columns[j].Type)
		}
		var err error
		if row.Object, err = c.rowObject(obj); err != nil {
			return nil, err
		}
	}
	return table, nil
}

// rowObject is what a row carries of its object, as includeObject asks.
func (c *call) rowObject(obj object.Object) (runtime.RawExtension, error) {
	switch c.query.includeObject {
	case metav1.IncludeNone:
		return runtime.RawExtension{}, nil
	case metav1.IncludeObject:
		data, err := object.EncodeJSON(obj)
		return runtime.RawExtension{Raw: data}, err
	default:
		data, err := json.Marshal(partial(obj))
		return runtime.RawExtension{Raw: data}, err
	}
}

// definitions describes columns. The column with the name says so in its format:
// kubectl puts the kind before names there.
func definitions(columns []object.Column) []metav1.TableColumnDefinition {
	out := make([]metav1.TableColumnDefinition, len(columns))
	for i, column := range columns {
		out[i] = metav1.TableColumnDefinition{
			Name: column.Name, Type: cmp.Or(column.Type, "string"), Format: column.Format,
			Description: column.Description, Priority: column.Priority,
		}
		if column.Wide && out[i].Priority == 0 {
			out[i].Priority = 1
		}
		if column.Name == "NAME" && out[i].Format == "" {
			out[i].Format = "name"
		}
	}
	return out
}

// cellOf gives a cell the type that its column has. What is shown where there is no
// value, such as "<none>", stays text, as Kubernetes has it.
func cellOf(text, typ string) any {
	switch typ {
	case "integer":
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n
		}
	case "number":
		if f, err := strconv.ParseFloat(text, 64); err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
			return f
		}
	case "boolean":
		if b, err := strconv.ParseBool(text); err == nil {
			return b
		}
	}
	return text
}

// partial is an object without all but its metadata.
func partial(obj object.Object) *metav1.PartialObjectMetadata {
	out := &metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: metav1.SchemeGroupVersion.String()},
	}
	if with, ok := obj.(metav1.ObjectMetaAccessor); ok {
		if meta, ok := with.GetObjectMeta().(*metav1.ObjectMeta); ok {
			out.ObjectMeta = *meta
			return out
		}
	}
	out.ObjectMeta = metav1.ObjectMeta{ // of a custom object, which is no struct
		Name: obj.GetName(), GenerateName: obj.GetGenerateName(), Namespace: obj.GetNamespace(), UID: obj.GetUID(),
		ResourceVersion: obj.GetResourceVersion(), Generation: obj.GetGeneration(),
		CreationTimestamp: obj.GetCreationTimestamp(), DeletionTimestamp: obj.GetDeletionTimestamp(),
		DeletionGracePeriodSeconds: obj.GetDeletionGracePeriodSeconds(),
		Labels:                     obj.GetLabels(), Annotations: obj.GetAnnotations(),
		OwnerReferences: obj.GetOwnerReferences(), Finalizers: obj.GetFinalizers(), ManagedFields: obj.GetManagedFields(),
	}
	return out
}

func partialList(objs []object.Object, meta metav1.ListMeta) *metav1.PartialObjectMetadataList {
	out := &metav1.PartialObjectMetadataList{
		TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadataList", APIVersion: metav1.SchemeGroupVersion.String()},
		ListMeta: meta, Items: make([]metav1.PartialObjectMetadata, len(objs)),
	}
	for i, obj := range objs {
		out.Items[i] = *partial(obj)
	}
	return out
}
