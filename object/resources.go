package object

import (
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Resource is a kind in one of its versions, and its names.
type Resource struct {
	Group, Version, Kind string   // "apps", "v1", "Deployment"; Group is empty for the core group
	Plural, Singular     string   // "deployments", "deployment"
	ShortNames           []string // "deploy"
	Namespaced           bool
	Categories           []string // "all": part of "get all"
	Status, Scale        bool     // has the subresource of that name
	Custom               bool     // a CustomResourceDefinition defines it; its objects are of type Custom
	// Storage is whether objects are stored in this version. Those of a custom kind
	// may still be stored in another: Decode gives them in this one.
	Storage bool

	row *kind // set in all that a catalog returns
}

// inAll is the category of what "get all" shows.
var inAll = []string{"all"}

// older returns r as an older version of the same kind, which is not the one that
// objects are stored in.
func older(r Resource, version string) Resource {
	r.Version, r.Storage = version, false
	return r
}

// Resources returns the built-in kinds: [Catalog.Resources].
func Resources() []Resource { return builtin.Resources() }

// ResourceForKind finds a built-in kind: [Catalog.ForKind].
func ResourceForKind(group, version, kindName string) (Resource, error) {
	return builtin.ForKind(group, version, kindName)
}

// ResourceFor finds a built-in kind: [Catalog.For].
func ResourceFor(name string) (Resource, error) { return builtin.For(name) }

// SplitKey takes the key of an object of a built-in kind apart: [Catalog.SplitKey].
func SplitKey(key Key) (r Resource, namespace, name string, ok bool) { return builtin.SplitKey(key) }

// ResourceOf returns the resource of obj. It panics if that is of no kind that
// is served.
func ResourceOf(obj Object) Resource { return kindOfObject(obj).resource }

// Definition returns what defines r in its version, nil for a built-in kind.
// Nobody may change it. A definition that is written anew is another pointer.
func (r Resource) Definition() *apiextensionsv1.CustomResourceDefinitionVersion {
	if r.row == nil {
		return nil
	}
	return r.row.definition
}

// APIVersion returns the apiVersion as manifests write it: "v1", "apps/v1".
func (r Resource) APIVersion() string {
	return schema.GroupVersion{Group: r.Group, Version: r.Version}.String()
}

// String returns the plural name with its group: "pods", "deployments.apps".
func (r Resource) String() string {
	if r.Group == "" {
		return r.Plural
	}
	return r.Plural + "." + r.Group
}

// Key returns the key of the object of that name. namespace is ignored for
// kinds that live outside namespaces.
func (r Resource) Key(namespace, name string) Key {
	if !r.Namespaced {
		return Key(r.String() + "/" + name)
	}
	return Key(r.String() + "/" + namespace + "/" + name)
}

// Prefix returns what the keys of all objects of r in namespace begin with; an
// empty namespace means all of them.
func (r Resource) Prefix(namespace string) string {
	if !r.Namespaced || namespace == "" {
		return r.String() + "/"
	}
	return r.String() + "/" + namespace + "/"
}

func (r Resource) groupVersionKind() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}

// kind returns the row of r. It panics if r came from no catalog and is not
// built in.
func (r Resource) kind() *kind {
	if r.row != nil {
		return r.row
	}
	k := builtin.byKind[r.groupVersionKind()]
	if k == nil {
		panic(fmt.Sprintf("object: %s is not a kind that is served", r.groupVersionKind()))
	}
	return k
}
