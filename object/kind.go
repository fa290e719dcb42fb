package object

import (
	"reflect"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// kind is a row of the table of kinds: everything that is ours about one of
// Kubernetes' types. Each kind has a file of its own, kind_<name>.go.
type kind struct {
	resource Resource
	make     func() Object
	goType   reflect.Type // of the pointer

	supported      string // the table of supported fields, without those of metadata
	read           func(Object)
	defaults       func(Object)
	prepare        func(Object)
	validate       func(Object) field.ErrorList
	validateUpdate func(obj, old Object) field.ErrorList
	selectable     func(Object, fields.Set)
	printer        printer
	describe       func(d *describer, obj Object, related []Object)
}

// rules is a kind's row as its file writes it. What is nil does nothing, but for
// the printer and the description, which then show what every object has.
type rules[T Object] struct {
	// supported is the table of fields that have behavior, in the notation of
	// supported.go. Those of metadata are in it for every kind.
	supported string
	// read fills in what the stored form cannot hold, in each object that was read.
	read func(T)
	// defaults fills in what Kubernetes documents. A second call changes nothing.
	defaults func(T)
	// prepare finishes a new object that has its name and uid.
	prepare func(T)
	// validate looks at everything but metadata and status.
	validate func(T) field.ErrorList
	// validateUpdate looks at changes of what cannot change.
	validateUpdate func(obj, old T) field.ErrorList
	// selectable adds the fields that a field selector can name, beside
	// metadata.name and metadata.namespace.
	selectable func(T, fields.Set)
	columns    []Column
	row        func(obj T, now time.Time) []string
	// describe writes what "describe" shows, metadata included, events excluded.
	describe func(d *describer, obj T, related []Object)
}

// define makes a row of the table of kinds. empty returns a new T.
func define[T Object](r Resource, empty func() T, of rules[T]) kind {
	k := kind{
		resource:       r,
		make:           func() Object { return empty() },
		goType:         reflect.TypeFor[T](),
		supported:      supportedMetadata + of.supported,
		read:           func(Object) {},
		defaults:       func(Object) {},
		prepare:        func(Object) {},
		validate:       func(Object) field.ErrorList { return nil },
		validateUpdate: func(_, _ Object) field.ErrorList { return nil },
		selectable:     func(Object, fields.Set) {},
		printer:        printer{columns("NAME", "AGE"), func(obj Object, now time.Time) []string { return []string{obj.GetName(), ageOf(obj, now)} }},
		describe:       func(d *describer, obj Object, _ []Object) { d.meta(obj) },
	}
	if f := of.read; f != nil {
		k.read = func(obj Object) { f(obj.(T)) }
	}
	if f := of.defaults; f != nil {
		k.defaults = func(obj Object) { f(obj.(T)) }
	}
	if f := of.prepare; f != nil {
		k.prepare = func(obj Object) { f(obj.(T)) }
	}
	if f := of.validate; f != nil {
		k.validate = func(obj Object) field.ErrorList { return f(obj.(T)) }
	}
	if f := of.validateUpdate; f != nil {
		k.validateUpdate = func(obj, old Object) field.ErrorList { return f(obj.(T), old.(T)) }
	}
	if f := of.selectable; f != nil {
		k.selectable = func(obj Object, set fields.Set) { f(obj.(T), set) }
	}
	if f := of.row; f != nil {
		k.printer = printer{of.columns, func(obj Object, now time.Time) []string { return f(obj.(T), now) }}
	}
	if f := of.describe; f != nil {
		k.describe = func(d *describer, obj Object, related []Object) { f(d, obj.(T), related) }
	}
	return k
}

// kinds is the table of everything that is served, in the order in which people
// like to see it. It is filled by init because rows use functions that look kinds
// up.
var kinds []kind

func init() {
	kinds = []kind{
		kindNamespace,
		kindNode,
		kindPod,
		kindService,
		kindReplicationController,
		kindDaemonSet,
		kindDeployment,
		kindReplicaSet,
		kindStatefulSet,
		kindControllerRevision,
		kindJob,
		kindCronJob,
		kindHorizontalPodAutoscaler,
		kindPodDisruptionBudget,
		kindPriorityClass,
		kindConfigMap,
		kindSecret,
		kindServiceAccount,
		kindResourceQuota,
		kindLimitRange,
		kindPersistentVolume,
		kindPersistentVolumeClaim,
		kindStorageClass,
		kindIngress,
		kindIngressClass,
		kindNetworkPolicy,
		kindEndpointSlice,
		kindLease,
		kindRole,
		kindRoleBinding,
		kindClusterRole,
		kindClusterRoleBinding,
		kindEvent,
	}
}

// kindOf returns the row of a resource.
func kindOf(r Resource) (kind, bool) {
	i := slices.IndexFunc(kinds, func(k kind) bool {
		return k.resource.Group == r.Group && k.resource.Version == r.Version && k.resource.Kind == r.Kind
	})
	if i < 0 {
		return kind{}, false
	}
	return kinds[i], true
}

// kindOfObject returns the row of obj's type. It panics if that is not one of
// the served kinds.
func kindOfObject(obj Object) kind { return kindOfType(reflect.TypeOf(obj)) }

func kindOfType(t reflect.Type) kind {
	i := slices.IndexFunc(kinds, func(k kind) bool { return k.goType == t })
	if i < 0 {
		panic("object: " + t.String() + " is not a kind that is served")
	}
	return kinds[i]
}
