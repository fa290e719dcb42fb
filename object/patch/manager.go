package patch

import (
	"fmt"
	"maps"
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/object/openapi"
)

const (
	statusSubresource = "status"
	scaleSubresource  = "scale"
)

// manager merges objects of one version of a kind, written through one
// subresource. It is what apimachinery's field manager asks for making,
// converting and defaulting objects.
type manager struct {
	empty  object.Object // of the kind; never changed
	gvk    schema.GroupVersionKind
	fields *managedfields.FieldManager

	// What fields is made of:
	types       managedfields.TypeConverter
	filter      fieldpath.Filter // of the fields that somebody can own; nil: all
	subresource string

	shapes shapes
}

// managers keeps one for each kind, version and subresource: managerKey ->
// *lazyManager.
var managers sync.Map

type managerKey struct {
	gvk         schema.GroupVersionKind
	subresource string
}

// lazyManager is made when it is first needed.
type lazyManager struct {
	definition any // of a custom kind: another one, another manager
	get        func() (*manager, error)
}

// managerFor returns the manager of obj's kind. The first one of a group and
// version reads its schemas.
func managerFor(obj object.Object, subresource string) (*manager, error) {
	r := object.ResourceOf(obj)
	key := managerKey{schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}, subresource}
	if m, ok := managers.Load(key); ok && m.(*lazyManager).definition == any(r.Definition()) {
		return m.(*lazyManager).get()
	}
	m := &lazyManager{r.Definition(), sync.OnceValues(func() (*manager, error) { return newManager(r, subresource) })}
	managers.Store(key, m)
	return m.get()
}

// converters are those of the built-in groups, each of all versions: group ->
// func() (managedfields.TypeConverter, error).
var converters sync.Map

func typesOf(group string) (managedfields.TypeConverter, error) {
	build, _ := converters.LoadOrStore(group, sync.OnceValues(func() (managedfields.TypeConverter, error) {
		all := map[string]*spec.Schema{}
		for _, gv := range openapi.Versions() {
			if gv.Group == group {
				maps.Copy(all, openapi.Schemas(gv.Group, gv.Version))
			}
		}
		return managedfields.NewTypeConverter(all, false)
	}))
	return build.(func() (managedfields.TypeConverter, error))()
}

// customTypes is the converter of a custom kind. Where its schema is not one that
// merging can follow, fields are merged as they come and lists are atomic.
func customTypes(r object.Resource) managedfields.TypeConverter {
	c, err := managedfields.NewTypeConverter(openapi.SchemasOf(r), false)
	if err != nil {
		return managedfields.NewDeducedTypeConverter()
	}
	return c
}

func newManager(r object.Resource, subresource string) (*manager, error) {
	m := &manager{
		empty: object.New(r), gvk: schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind},
		filter: filterOf(r, subresource), subresource: subresource,
	}
	var err error
	if r.Custom {
		m.types = customTypes(r)
	} else if m.types, err = typesOf(r.Group); err != nil {
		return nil, err
	}
	filters := map[fieldpath.APIVersion]fieldpath.Filter{}
	for _, v := range append(object.Builtin().Versions(), r) {
		if f := filterOf(r, subresource); f != nil && v.String() == r.String() {
			filters[fieldpath.APIVersion(v.APIVersion())] = f
		}
	}
	m.fields, err = managedfields.NewDefaultFieldManager(m.types, m, m, m, m.gvk, m.gvk.GroupVersion(), subresource, filters)
	return m, err
}

// filterOf leaves of the fields that are written those which the subresource
// writes: nobody owns the others for having sent them.
func filterOf(r object.Resource, subresource string) fieldpath.Filter {
	switch {
	case subresource == "" && r.Status:
		return fieldpath.NewExcludeSetFilter(fieldpath.NewSet(fieldpath.MakePathOrDie("status")))
	case subresource == statusSubresource:
		return fieldpath.NewIncludeMatcherFilter(fieldpath.MakePrefixMatcherOrDie("status"))
	case subresource == scaleSubresource:
		return fieldpath.NewIncludeMatcherFilter(fieldpath.MakePrefixMatcherOrDie("spec", "replicas"))
	default:
		return nil
	}
}

// New makes an empty object. It is part of runtime.ObjectCreater.
func (m *manager) New(schema.GroupVersionKind) (runtime.Object, error) {
	return m.empty.DeepCopyObject(), nil
}

// Default does nothing: [Apply] does, once it knows that something changed.
func (m *manager) Default(runtime.Object) {}

// ConvertToVersion returns in as a merge wants it: in the version gv, as plain
// maps and lists, which are gone over several times and faster than structs. It
// is part of runtime.ObjectConvertor.
func (m *manager) ConvertToVersion(in runtime.Object, gv runtime.GroupVersioner) (runtime.Object, error) {
	from := in.GetObjectKind().GroupVersionKind()
	to, ok := gv.KindForGroupVersionKinds([]schema.GroupVersionKind{from})
	if !ok {
		return nil, fmt.Errorf("no version of %v to convert to", m.gvk)
	}
	if c, ok := in.(*object.Custom); ok {
		in = &c.Unstructured
	}
	// The versions of a custom kind have the same fields: all of them are merged
	// as this one.
	if u, ok := in.(*unstructured.Unstructured); ok && (from == to || object.ResourceOf(m.empty).Custom) {
		return u, nil
	}
	obj, err := m.typed(in)
	if err != nil {
		return nil, err
	}
	if obj, err = convert(obj, to); err != nil {
		return nil, err
	}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	return &unstructured.Unstructured{Object: fields}, err
}

// Convert is part of runtime.ObjectConvertor; nothing calls it.
func (m *manager) Convert(_, _, _ any) error {
	return fmt.Errorf("convert %v: not by value", m.gvk)
}

// ConvertFieldLabel is part of runtime.ObjectConvertor; nothing calls it.
func (m *manager) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

// typed returns what apimachinery hands out as one of our objects.
func (m *manager) typed(in runtime.Object) (object.Object, error) {
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		return in.(object.Object), nil
	}
	out := m.empty.DeepCopyObject().(object.Object)
	if c, ok := out.(*object.Custom); ok {
		c.Object = u.Object
		return c, nil
	}
	if gvk := u.GroupVersionKind(); gvk != m.gvk { // another version
		r, err := object.ResourceForKind(gvk.Group, gvk.Version, gvk.Kind)
		if err != nil {
			return nil, runtime.NewNotRegisteredErrForKind("object", gvk)
		}
		out = object.New(r)
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		return nil, because(ErrInapplicable, "%v", err)
	}
	return out, nil
}

// statusOf returns obj's status, nil if it has none.
func statusOf(obj object.Object) any {
	if c, ok := obj.(*object.Custom); ok {
		return runtime.DeepCopyJSONValue(c.Object["status"])
	}
	if f := reflect.ValueOf(obj).Elem().FieldByName("Status"); f.IsValid() {
		return f.Interface()
	}
	return nil
}

// setStatus gives obj a status that statusOf returned.
func setStatus(obj object.Object, status any) {
	if c, ok := obj.(*object.Custom); ok {
		if delete(c.Object, "status"); status != nil {
			c.Object["status"] = status
		}
		return
	}
	if f := reflect.ValueOf(obj).Elem().FieldByName("Status"); f.IsValid() {
		f.Set(reflect.ValueOf(status))
	}
}

// become makes obj a copy of another of its type.
func become(obj, other object.Object) {
	reflect.ValueOf(obj).Elem().Set(reflect.ValueOf(other.DeepCopyObject()).Elem())
}

// convert returns obj in another version of its kind. A version that is no longer
// served makes the error by which apimachinery drops what is managed in it.
func convert(obj object.Object, to schema.GroupVersionKind) (object.Object, error) {
	r, err := object.ResourceForKind(to.Group, to.Version, to.Kind)
	if err != nil {
		return nil, runtime.NewNotRegisteredErrForKind("object", to)
	}
	return object.Convert(obj, r)
}
