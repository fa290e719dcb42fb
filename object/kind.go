package object

import (
	"reflect"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// kind is a row of the table of kinds: everything that is ours about one version
// of one kind. Each of Kubernetes' kinds has a file of its own, kind_<name>.go;
// the rows of a custom kind are made of its definition.
type kind struct {
	resource Resource
	make     func() Object
	goType   reflect.Type // of the pointer
	served   bool

	// What stored and fromStored convert to and from; the row itself for most.
	storage        *kind
	toStored       func(Object) (Object, error)
	fromStored     func(Object) Object
	supported      string // the table of supported fields, without those of metadata
	inert          string
	validName      nameRule
	read           func(Object)
	defaults       func(Object)
	stamp          func(Object)
	validate       func(Object) field.ErrorList
	validateUpdate func(obj, old Object) field.ErrorList
	selectable     func(Object, fields.Set)
	printer        printer
	describe       func(d *describer, obj Object, related []Object)

	// Of custom kinds only.
	definition *apiextensionsv1.CustomResourceDefinitionVersion
	schema     *valueSchema
	scale      *apiextensionsv1.CustomResourceSubresourceScale
}

// new returns an empty object with its apiVersion and kind set.
func (k *kind) new() Object {
	obj := k.make()
	obj.GetObjectKind().SetGroupVersionKind(k.resource.groupVersionKind())
	return obj
}

// stored returns obj in the version in which it is stored.
func (k *kind) stored(obj Object) (Object, error) {
	if k.storage == k {
		return obj, nil
	}
	return k.toStored(obj)
}

// nameRule returns what is wrong with an object's name, or with the beginning of
// one, if prefix.
type nameRule func(name string, prefix bool) []string

// The rules that there are. Most kinds have subdomainNames, which need not be given.
var (
	subdomainNames nameRule = apivalidation.NameIsDNSSubdomain
	labelNames     nameRule = apivalidation.NameIsDNSLabel
	segmentNames   nameRule = func(name string, prefix bool) []string { // "system:node", of roles
		if prefix {
			return content.IsPathSegmentPrefix(name)
		}
		return content.IsPathSegmentName(name)
	}
)

// rules is a kind's row as its file writes it. What is nil does nothing, but for
// the printer and the description, which then show what every object has.
type rules[T Object] struct {
	// supported is the table of fields that have behavior, in the notation of
	// supported.go. Those of metadata are in it for every kind.
	supported string
	// inert is set while nothing acts on objects of the kind, and ends the warning
	// about each: "NetworkPolicy default/db is stored, but …".
	inert string
	// validName is the rule for names. Optional; subdomainNames.
	validName nameRule
	// read fills in what the stored form cannot hold, in each object that was read.
	read func(T)
	// defaults fills in what Kubernetes documents. A second call changes nothing.
	defaults func(T)
	// stamp writes what follows from the object's name and uid; see Stamp.
	stamp func(T)
	// validate looks at everything but metadata and status.
	validate func(T) field.ErrorList
	// validateUpdate looks at changes of what cannot change.
	validateUpdate func(obj, old T) field.ErrorList
	// selectable adds the fields that a field selector can name, beside
	// metadata.name and metadata.namespace. It adds the same ones for each object.
	selectable func(T, fields.Set)
	columns    []Column
	row        func(obj T, now time.Time) []string
	// describe writes what "describe" shows, metadata included, events excluded.
	describe func(d *describer, obj T, related []Object)
	// toStored and fromStored convert to and from the version in which objects are
	// stored. Of that version itself they are nil.
	toStored   func(T) (Object, error)
	fromStored func(Object) T
}

// define makes a row of the table of kinds. empty returns a new T.
func define[T Object](r Resource, empty func() T, of rules[T]) kind {
	r.Storage = r.Storage || of.toStored == nil && !r.Custom
	k := kind{
		resource:       r,
		make:           func() Object { return empty() },
		goType:         reflect.TypeFor[T](),
		served:         true,
		supported:      supportedMetadata + of.supported,
		inert:          of.inert,
		validName:      subdomainNames,
		read:           func(Object) {},
		defaults:       func(Object) {},
		stamp:          func(Object) {},
		validate:       func(Object) field.ErrorList { return nil },
		validateUpdate: func(_, _ Object) field.ErrorList { return nil },
		selectable:     func(Object, fields.Set) {},
		printer:        plainPrinter,
		describe:       func(d *describer, obj Object, _ []Object) { d.meta(obj) },
	}
	if of.validName != nil {
		k.validName = of.validName
	}
	if f := of.toStored; f != nil {
		k.toStored = func(obj Object) (Object, error) { return f(obj.(T)) }
	}
	if f := of.fromStored; f != nil {
		k.fromStored = func(obj Object) Object { return f(obj) }
	}
	if f := of.read; f != nil {
		k.read = func(obj Object) { f(obj.(T)) }
	}
	if f := of.defaults; f != nil {
		k.defaults = func(obj Object) { f(obj.(T)) }
	}
	if f := of.stamp; f != nil {
		k.stamp = func(obj Object) { f(obj.(T)) }
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
		k.printer = printer{complete(of.columns), func(obj Object, now time.Time) []string { return f(obj.(T), now) }}
	}
	if f := of.describe; f != nil {
		k.describe = func(d *describer, obj Object, related []Object) { f(d, obj.(T), related) }
	}
	return k
}

// kinds is the table of the built-in kinds, in the order in which people like to
// see them; of one kind, the preferred version first. It is filled by init because
// rows use functions that look kinds up.
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
		kindHorizontalPodAutoscalerV1,
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
		kindCustomResourceDefinition,
		kindEvent,
	}
	rows := make([]*kind, len(kinds))
	for i := range kinds {
		rows[i] = &kinds[i]
	}
	link(rows)
	builtin = newCatalog(rows)
	for _, k := range rows {
		builtinTypes[k.goType] = k
	}
}

// link ties the rows of a kind's versions together, and each to its resource.
func link(rows []*kind) {
	for _, k := range rows {
		k.resource.row = k
		for _, other := range rows {
			if other.resource.Storage && other.resource.String() == k.resource.String() {
				k.storage = other
			}
		}
	}
}

// builtinTypes are the rows of kinds by their Go types, pointers to structs.
var builtinTypes = map[reflect.Type]*kind{}

// kindOfObject returns the row of obj's kind. It panics if that is not one of the
// served kinds.
func kindOfObject(obj Object) *kind {
	if c, ok := obj.(*Custom); ok {
		return c.row
	}
	return kindOfType(reflect.TypeOf(obj))
}

func kindOfType(t reflect.Type) *kind {
	k := builtinTypes[t]
	if k == nil {
		panic("object: " + t.String() + " is not a kind that is served")
	}
	return k
}

// Inert returns a warning for who writes obj, if nothing acts on objects of its
// kind yet: "StatefulSet default/db is stored, but nothing in this version acts
// on it yet". Else it returns "".
func Inert(obj Object) string {
	if why := kindOfObject(obj).inert; why != "" {
		return Title(obj) + " is stored, but " + why
	}
	return ""
}
