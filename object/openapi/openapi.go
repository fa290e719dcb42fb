package openapi

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/holdfast-io/holdfast/object"
)

// Versions returns the groups and versions that have a document, sorted: the
// core group first.
func Versions() []schema.GroupVersion { return versionsOf(served()) }

func versionsOf(kinds []kind) []schema.GroupVersion {
	var all []schema.GroupVersion
	for _, k := range kinds {
		if gv := k.gv(); !slices.Contains(all, gv) {
			all = append(all, gv)
		}
	}
	slices.SortFunc(all, func(a, b schema.GroupVersion) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Version, b.Version))
	})
	return all
}

// Document returns the OpenAPI v3 document of a group and version as JSON, and a
// tag that changes with it. ok is false if nothing is served there. The caller
// must not change the bytes.
func Document(group, version string) (doc []byte, etag string, ok bool) {
	gv := schema.GroupVersion{Group: group, Version: version}
	kinds := kindsOf(gv)
	if len(kinds) == 0 {
		return nil, "", false
	}
	entry, _ := documents.LoadOrStore(gv, sync.OnceValue(func() document { return builtin(gv, kinds) }))
	d := entry.(func() document)()
	return d.text, d.etag, true
}

// document is a finished one.
type document struct {
	text []byte
	etag string
}

var documents sync.Map // schema.GroupVersion -> func() document

// Schemas returns the schemas of the kinds of a group and version that package
// object serves, and of everything that they refer to, by name: for
// managedfields.NewTypeConverter. It is nil if there are none.
func Schemas(group, version string) map[string]*spec.Schema {
	var roots []string
	for _, k := range kindsOf(schema.GroupVersion{Group: group, Version: version}) {
		roots = append(roots, k.model)
	}
	if len(roots) == 0 {
		return nil
	}
	return schemas(roots)
}

func builtin(gv schema.GroupVersion, kinds []kind) document {
	roots := []string{modelStatus, modelDeleteOptions, modelPatch}
	for _, k := range kinds {
		roots = append(roots, k.models()...)
	}
	all := schemas(roots)
	describeSupport(all, kinds)
	return finish(gv, kinds, all)
}

// finish puts the paths beside the schemas.
func finish(gv schema.GroupVersion, kinds []kind, all map[string]*spec.Schema) document {
	setKind(all[modelStatus], schema.GroupVersionKind{Version: "v1", Kind: "Status"})
	setKind(all[modelDeleteOptions], gv.WithKind("DeleteOptions"))
	text, err := json.Marshal(map[string]any{
		"openapi":    "3.0.0",
		"info":       map[string]string{"title": "Holdfast", "version": gv.String()},
		"paths":      paths(kinds),
		"components": map[string]any{"schemas": all},
	})
	if err != nil {
		panic(fmt.Sprintf("openapi: document of %s: %v", gv, err))
	}
	sum := sha256.Sum256(text)
	return document{text, hex.EncodeToString(sum[:16])}
}

const extKind = "x-kubernetes-group-version-kind"

// setKind says in a schema whose it is.
func setKind(s *spec.Schema, gvk schema.GroupVersionKind) {
	s.AddExtension(extKind, []any{map[string]any{"group": gvk.Group, "kind": gvk.Kind, "version": gvk.Version}})
}

// Models that belong to no group.
const (
	modelMeta          = "io.k8s.apimachinery.pkg.apis.meta.v1."
	modelStatus        = modelMeta + "Status"
	modelDeleteOptions = modelMeta + "DeleteOptions"
	modelPatch         = modelMeta + "Patch"
	modelObjectMeta    = modelMeta + "ObjectMeta"
	modelListMeta      = modelMeta + "ListMeta"
)

// kind is a resource with its schema, and what can be done with it.
type kind struct {
	object.Resource
	model string
	// verbs, if not all of them: "create", "get", "list".
	verbs []string
	// subresources beside status and scale.
	subresources []subresource
}

// subresource is one that is not a part of its object.
type subresource struct {
	name, action string // "eviction", "post"
	gvk          schema.GroupVersionKind
	model        string
}

func (k kind) gv() schema.GroupVersion {
	return schema.GroupVersion{Group: k.Group, Version: k.Version}
}

func (k kind) can(verb string) bool { return k.verbs == nil || slices.Contains(k.verbs, verb) }

// models returns the names of the schemas that k's paths refer to.
func (k kind) models() []string {
	all := []string{k.model}
	if k.can("list") {
		all = append(all, k.model+"List")
	}
	if k.Scale {
		all = append(all, scale.model)
	}
	for _, sub := range k.subresources {
		all = append(all, sub.model)
	}
	return all
}

var (
	scale = subresource{gvk: schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}, model: "io.k8s.api.autoscaling.v1.Scale"}

	// subresources are what is served below an object of a resource, beside its
	// status and its scale.
	subresources = map[string][]subresource{
		"pods": {
			{"binding", "post", schema.GroupVersionKind{Version: "v1", Kind: "Binding"}, "io.k8s.api.core.v1.Binding"},
			{"eviction", "post", schema.GroupVersionKind{Group: "policy", Version: "v1", Kind: "Eviction"}, "io.k8s.api.policy.v1.Eviction"},
		},
		"serviceaccounts": {
			{"token", "post", schema.GroupVersionKind{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"}, "io.k8s.api.authentication.v1.TokenRequest"},
		},
	}

	// virtual are the resources that are answered and not stored.
	virtual = []kind{
		review("authentication.k8s.io", "authentication", "TokenReview", "tokenreviews", false),
		review("authentication.k8s.io", "authentication", "SelfSubjectReview", "selfsubjectreviews", false),
		review("authorization.k8s.io", "authorization", "SubjectAccessReview", "subjectaccessreviews", false),
		review("authorization.k8s.io", "authorization", "LocalSubjectAccessReview", "localsubjectaccessreviews", true),
		review("authorization.k8s.io", "authorization", "SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
		review("authorization.k8s.io", "authorization", "SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
		metrics("NodeMetrics", "nodes", false),
		metrics("PodMetrics", "pods", true),
	}
)

func review(group, pkg, kindName, plural string, namespaced bool) kind {
	return kind{
		Resource: object.Resource{Group: group, Version: "v1", Kind: kindName, Plural: plural, Namespaced: namespaced},
		model:    "io.k8s.api." + pkg + ".v1." + kindName,
		verbs:    []string{"create"},
	}
}

func metrics(kindName, plural string, namespaced bool) kind {
	return kind{
		Resource: object.Resource{Group: "metrics.k8s.io", Version: "v1beta1", Kind: kindName, Plural: plural, Namespaced: namespaced},
		model:    "io.k8s.metrics.pkg.apis.metrics.v1beta1." + kindName,
		verbs:    []string{"get", "list"},
	}
}

// served returns all kinds that have schemas here.
func served() []kind {
	var all []kind
	for _, r := range object.Builtin().Versions() {
		all = append(all, kind{Resource: r, model: modelOf(r), subresources: subresources[r.String()]})
	}
	return append(all, virtual...)
}

func kindsOf(gv schema.GroupVersion) []kind {
	return slices.DeleteFunc(served(), func(k kind) bool { return k.gv() != gv })
}

// modelOf returns the name of the schema of a kind of package object.
func modelOf(r object.Resource) string {
	return object.New(r).(interface{ OpenAPIModelName() string }).OpenAPIModelName()
}
