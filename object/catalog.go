package object

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Catalog is what is served at one moment: the built-in kinds, and those that
// CustomResourceDefinitions define. It never changes, and is safe for concurrent
// use. The functions of this package that take no catalog mean [Builtin].
type Catalog struct {
	kinds  []*kind // all versions; of one kind, the preferred one first
	byKind map[schema.GroupVersionKind]*kind
	byPath map[string]*kind // by what keys begin with, "deployments.apps": the preferred version
}

// builtin is filled by init, because rows use functions that look kinds up.
var builtin *Catalog

// Builtin returns the catalog without custom kinds.
func Builtin() *Catalog { return builtin }

// NewCatalog returns the catalog with the kinds that crds define, as far as they
// are established.
func NewCatalog(crds []*apiextensionsv1.CustomResourceDefinition) *Catalog {
	return builtin.With(slices.DeleteFunc(slices.Clone(crds), func(crd *apiextensionsv1.CustomResourceDefinition) bool { return !Established(crd) })...)
}

// With returns c with the kinds that crds define, established or not, in the
// place of those of the same names, unless these are built in.
func (c *Catalog) With(crds ...*apiextensionsv1.CustomResourceDefinition) *Catalog {
	if len(crds) == 0 {
		return c
	}
	rows := slices.Clone(c.kinds)
	for _, crd := range crds {
		added := customKinds(crd)
		if len(added) == 0 {
			continue
		}
		path := added[0].resource.String()
		if old := builtin.byPath[path]; old != nil {
			continue
		}
		rows = slices.DeleteFunc(rows, func(k *kind) bool { return k.resource.String() == path })
		rows = append(rows, added...)
	}
	return newCatalog(rows)
}

// Without returns c without the custom kind that the definition of that name, such
// as "widgets.example.com", defines.
func (c *Catalog) Without(definition string) *Catalog {
	if k := c.byPath[definition]; k == nil || !k.resource.Custom {
		return c
	}
	return newCatalog(slices.DeleteFunc(slices.Clone(c.kinds), func(k *kind) bool { return k.resource.String() == definition }))
}

func newCatalog(rows []*kind) *Catalog {
	c := &Catalog{kinds: rows, byKind: make(map[schema.GroupVersionKind]*kind, len(rows)), byPath: make(map[string]*kind, len(rows))}
	for _, k := range rows {
		c.byKind[k.resource.groupVersionKind()] = k
		if c.byPath[k.resource.String()] == nil {
			c.byPath[k.resource.String()] = k
		}
	}
	return c
}

// CatalogCache makes the catalog of a store's state, and keeps it until the
// definitions change. The zero value is ready, and safe for concurrent use.
type CatalogCache struct {
	mu        sync.Mutex
	revisions []int64 // of the definitions that last is of
	last      *Catalog
}

// Of returns the catalog with the custom kinds that r has definitions of.
func (cc *CatalogCache) Of(r Reader) *Catalog {
	// A definition that is written has a new revision, one that is gone none: equal
	// revisions, equal definitions.
	prefix := kindCustomResourceDefinition.resource.Prefix("")
	var revisions []int64
	for _, revision := range r.Values(prefix) {
		revisions = append(revisions, revision)
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	if cc.last == nil || !slices.Equal(revisions, cc.revisions) {
		cc.revisions, cc.last = revisions, NewCatalog(List[*apiextensionsv1.CustomResourceDefinition](r, ""))
	}
	return cc.last
}

// Resources returns the kinds that are served, in the order in which people like
// to see them: of each its preferred version. The caller may change the slice.
func (c *Catalog) Resources() []Resource {
	var all []Resource
	seen := map[string]bool{}
	for _, r := range c.Versions() {
		if !seen[r.String()] {
			seen[r.String()] = true
			all = append(all, r)
		}
	}
	return all
}

// Versions returns all versions of all kinds that are served; of one kind, the
// preferred one first. The caller may change the slice.
func (c *Catalog) Versions() []Resource {
	all := make([]Resource, 0, len(c.kinds))
	for _, k := range c.kinds {
		if k.served {
			all = append(all, k.resource)
		}
	}
	return all
}

// ForKind returns the resource of an apiVersion's group and version and a kind.
// For what is not served, the error says why and what to do: an API version that
// Kubernetes has dropped names its successor, a kind that Holdfast does not have
// yet is named as such, a misspelled one gets a suggestion.
func (c *Catalog) ForKind(group, version, kindName string) (Resource, error) {
	gvk := schema.GroupVersionKind{Group: group, Version: version, Kind: kindName}
	gv := gvk.GroupVersion().String()
	if k := c.byKind[gvk]; k != nil && k.served {
		return k.resource, nil
	}
	if now, ok := dropped[gvk]; ok {
		err := fmt.Errorf("apiVersion %s of %s was dropped by Kubernetes: use %s", gv, kindName, now)
		if isNotYet(kindName) {
			err = fmt.Errorf("%w (%s itself is not supported yet)", err, kindName)
		}
		return Resource{}, err
	}
	if what, ok := gone[kindName]; ok {
		return Resource{}, fmt.Errorf("kind %s (%s) was dropped by Kubernetes: %s", kindName, gv, what)
	}
	if k := c.named(group, kindName); k != nil { // the kind is right, the apiVersion is not
		return Resource{}, fmt.Errorf("kind %s is not served as apiVersion %s: use %s", kindName, gv, k.resource.APIVersion())
	}
	if slices.Contains(notYet[group], kindName) {
		return Resource{}, fmt.Errorf("kind %s (%s) is not supported yet", kindName, gv)
	}
	for _, k := range c.kinds { // "deployment", "deployments"
		if k.served && (strings.EqualFold(k.resource.Kind, kindName) || strings.EqualFold(k.resource.Plural, kindName)) {
			return Resource{}, fmt.Errorf("kind %q is unknown: did you mean %s (%s)?", kindName, k.resource.Kind, k.resource.APIVersion())
		}
	}
	if isNotYet(kindName) { // by a version that we do not know
		return Resource{}, fmt.Errorf("kind %s (%s) is not supported yet", kindName, gv)
	}
	if guess, ok := nearest(kindName, c.kindNames()); ok {
		return Resource{}, fmt.Errorf("kind %q is unknown: did you mean %s?", kindName, guess)
	}
	return Resource{}, fmt.Errorf("kind %q (%s) is unknown: %s", kindName, gv, seeKinds)
}

// named returns the preferred version of the kind of that name: of that group,
// or else a built-in one. A kind of another group that somebody defined is
// another kind.
func (c *Catalog) named(group, kindName string) *kind {
	for _, k := range c.kinds {
		if k.served && k.resource.Kind == kindName && (k.resource.Group == group || !k.resource.Custom) {
			return k
		}
	}
	return nil
}

// For returns the resource that a person means by word: a kind, its plural,
// singular or short name, in any case, with or without its group: "po", "pods",
// "Pod", "deploy", "deployments.apps", "deployments.v1.apps". The error names the
// nearest match, or says where all kinds are listed.
func (c *Catalog) For(name string) (Resource, error) {
	word, group, qualified := strings.Cut(strings.ToLower(name), ".")
	for _, k := range c.kinds {
		r := k.resource
		if !k.served || qualified && group != r.Group && group != r.Version+"."+r.Group && (r.Group != "" || group != r.Version) {
			continue
		}
		if word == r.Plural || word == r.Singular || word == strings.ToLower(r.Kind) || slices.Contains(r.ShortNames, word) {
			return r, nil
		}
	}
	if full, ok := notYetShort[word]; ok {
		word = strings.ToLower(full)
	}
	if name == "" {
		return Resource{}, errors.New("no resource type given: " + seeKinds)
	}
	for _, group := range notYet {
		for _, kindName := range group {
			lower := strings.ToLower(kindName)
			if word == lower || word == plural(lower) {
				return Resource{}, fmt.Errorf("resource type %q (%s) is not supported yet: %s", name, kindName, seeKinds)
			}
		}
	}
	var words []string
	for _, r := range c.Resources() {
		words = append(words, r.Plural, r.Singular)
		words = append(words, r.ShortNames...)
	}
	if guess, ok := nearest(word, words); ok {
		return Resource{}, fmt.Errorf("resource type %q is unknown: did you mean %s?", name, guess)
	}
	return Resource{}, fmt.Errorf("resource type %q is unknown: %s", name, seeKinds)
}

// ForPlural returns the resource that a path names: "apps", "v1", "deployments".
func (c *Catalog) ForPlural(group, version, plural string) (Resource, bool) {
	for _, k := range c.kinds {
		if r := k.resource; k.served && r.Group == group && r.Version == version && r.Plural == plural {
			return r, true
		}
	}
	return Resource{}, false
}

// InCategory returns the kinds of a category, such as "all": each in its
// preferred version.
func (c *Catalog) InCategory(category string) []Resource {
	return slices.DeleteFunc(c.Resources(), func(r Resource) bool { return !slices.Contains(r.Categories, category) })
}

// SplitKey takes a key apart. ok is false if it is not the key of an object of
// a kind that c has. The resource is the kind's preferred version.
func (c *Catalog) SplitKey(key Key) (r Resource, namespace, name string, ok bool) {
	first, rest, ok := strings.Cut(string(key), "/")
	if !ok {
		return Resource{}, "", "", false
	}
	k := c.byPath[first]
	if k == nil {
		return Resource{}, "", "", false
	}
	if !k.resource.Namespaced {
		return k.resource, "", rest, rest != "" && !strings.Contains(rest, "/")
	}
	namespace, name, ok = strings.Cut(rest, "/")
	return k.resource, namespace, name, ok && namespace != "" && name != "" && !strings.Contains(name, "/")
}

// New returns an empty object of the kind r, with its apiVersion and kind set.
// It panics if c has no such kind.
func (c *Catalog) New(r Resource) Object {
	k := c.byKind[r.groupVersionKind()]
	if k == nil {
		panic(fmt.Sprintf("object: %s is not a kind that is served", r.groupVersionKind()))
	}
	return k.new()
}

// List yields the objects of the kind r in namespace, in key order, in the
// version r; an empty namespace means all of them. It panics as [Get] does.
func (c *Catalog) List(reader Reader, r Resource, namespace string) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		prefix := r.Prefix(namespace)
		for value, revision := range reader.Values(prefix) {
			obj, err := c.Decode(value, revision)
			if err == nil {
				obj, err = Convert(obj, r)
			}
			if err != nil {
				panic(fmt.Sprintf("object: value under %s… at revision %d: %v", prefix, revision, err))
			}
			if !yield(obj) {
				return
			}
		}
	}
}

func (c *Catalog) kindNames() []string {
	var names []string
	for _, r := range c.Resources() {
		names = append(names, r.Kind)
	}
	return names
}
