package patch

import (
	"fmt"
	"reflect"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
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
}

// managers keeps those of the built-in kinds: managerKey -> func() (*manager, error).
var managers sync.Map

type managerKey struct {
	schema      any // a custom kind's; nil for others
	gvk         schema.GroupVersionKind
	subresource string
}

// managerFor returns the manager of obj's kind. The first one of a group and
// version reads its schemas.
func managerFor(kinds Kinds, obj object.Object, subresource string) (*manager, error) {
	r := object.ResourceOf(obj)
	key := managerKey{nil, schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}, subresource}
	build, _ := managers.LoadOrStore(key, sync.OnceValues(func() (*manager, error) {
		types, err := typesOf(key.gvk.GroupVersion())
		if err != nil {
			return nil, err
		}
		return newManager(kinds.New(r), types, r, subresource)
	}))
	return build.(func() (*manager, error))()
}

// converters are those of the built-in groups: schema.GroupVersion -> func()
// (managedfields.TypeConverter, error).
var converters sync.Map

func typesOf(gv schema.GroupVersion) (managedfields.TypeConverter, error) {
	build, _ := converters.LoadOrStore(gv, sync.OnceValues(func() (managedfields.TypeConverter, error) {
		return managedfields.NewTypeConverter(openapi.Schemas(gv.Group, gv.Version), false)
	}))
	return build.(func() (managedfields.TypeConverter, error))()
}

func newManager(empty object.Object, types managedfields.TypeConverter, r object.Resource, subresource string) (*manager, error) {
	m := &manager{empty: empty, gvk: schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}}
	filters := map[fieldpath.APIVersion]fieldpath.Filter{}
	if f := filterOf(r, subresource); f != nil {
		filters[fieldpath.APIVersion(r.APIVersion())] = f
	}
	var err error
	m.fields, err = managedfields.NewDefaultFieldManager(types, m, m, m, m.gvk, m.gvk.GroupVersion(), subresource, filters)
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
	if u, ok := in.(*unstructured.Unstructured); ok && from == to {
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
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out); err != nil {
		return nil, because(ErrInapplicable, "%v", err)
	}
	return out, nil
}

// statusOf returns obj's status, nil if its kind has none.
func statusOf(obj object.Object) any {
	if f := reflect.ValueOf(obj).Elem().FieldByName("Status"); f.IsValid() {
		return f.Interface()
	}
	return nil
}

// setStatus gives obj a status that statusOf returned.
func setStatus(obj object.Object, status any) {
	if f := reflect.ValueOf(obj).Elem().FieldByName("Status"); f.IsValid() {
		f.Set(reflect.ValueOf(status))
	}
}

// become makes obj a copy of another of its type.
func become(obj, other object.Object) {
	reflect.ValueOf(obj).Elem().Set(reflect.ValueOf(other.DeepCopyObject()).Elem())
}

// convert returns obj in another version of its kind.
func convert(obj object.Object, to schema.GroupVersionKind) (object.Object, error) {
	r := object.ResourceOf(obj)
	if r.Group == to.Group && r.Version == to.Version {
		return obj, nil
	}
	return nil, runtime.NewNotRegisteredErrForKind("object", to)
}

func isCustom(object.Object) bool { return false }
