package openapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/holdfast-io/holdfast/object"
)

// VersionsOf returns the groups and versions of c that have a document: those of
// [Versions], and those of its custom kinds.
func VersionsOf(c *object.Catalog) []schema.GroupVersion {
	return versionsOf(append(served(), custom(c, nil)...))
}

// DocumentOf is [Document] for all that c has, custom kinds included. A custom
// kind in a built-in group and version has no document: Kubernetes' own groups are
// not for others.
func DocumentOf(c *object.Catalog, group, version string) (doc []byte, etag string, ok bool) {
	if doc, etag, ok = Document(group, version); ok {
		return doc, etag, true
	}
	gv := schema.GroupVersion{Group: group, Version: version}
	kinds := custom(c, &gv)
	if len(kinds) == 0 {
		customDocuments.Delete(gv)
		return nil, "", false
	}
	// One document is kept of each, while its definitions are those that it is of.
	if last, ok := customDocuments.Load(gv); ok && slices.EqualFunc(last.(customDocument).kinds, kinds, sameDefinition) {
		return last.(customDocument).text, last.(customDocument).etag, true
	}
	d := customDocument{finish(gv, kinds, customSchemas(kinds, modelStatus, modelDeleteOptions, modelPatch)), kinds}
	customDocuments.Store(gv, d)
	return d.text, d.etag, true
}

var customDocuments sync.Map // schema.GroupVersion -> customDocument

type customDocument struct {
	document
	kinds []kind
}

func sameDefinition(a, b kind) bool {
	return a.Definition() == b.Definition() && a.Resource.String() == b.Resource.String() && a.Kind == b.Kind
}

// SchemasOf returns the schema of a custom kind and of what it refers to, as
// [Schemas] does for the others.
func SchemasOf(r object.Resource) map[string]*spec.Schema {
	return customSchemas([]kind{customKind(r)})
}

// custom returns the custom kinds of c, of one group and version if gv is given.
func custom(c *object.Catalog, gv *schema.GroupVersion) []kind {
	var kinds []kind
	for _, r := range c.Versions() {
		if r.Custom && (gv == nil || r.Group == gv.Group && r.Version == gv.Version) {
			kinds = append(kinds, customKind(r))
		}
	}
	return kinds
}

func customKind(r object.Resource) kind {
	return kind{Resource: r, model: reversed(r.Group) + "." + r.Version + "." + r.Kind}
}

func customSchemas(kinds []kind, roots ...string) map[string]*spec.Schema {
	roots = append(roots, modelObjectMeta, modelListMeta)
	for _, k := range kinds {
		if k.Scale {
			roots = append(roots, scale.model)
		}
	}
	all := schemas(roots)
	for _, k := range kinds {
		all[k.model], all[k.model+"List"] = customSchema(k, k.Definition().Schema), listSchema(k)
	}
	return all
}

// reversed turns the words of a group around, "example.com" to "com.example", as
// Kubernetes names the schemas of custom kinds.
func reversed(group string) string {
	words := strings.Split(group, ".")
	slices.Reverse(words)
	return strings.Join(words, ".")
}

// customSchema is the schema of a CustomResourceDefinition with what every
// object has. Without one, anything goes.
func customSchema(k kind, validation *apiextensionsv1.CustomResourceValidation) *spec.Schema {
	s := new(spec.Schema)
	if validation != nil && validation.OpenAPIV3Schema != nil {
		// Both are the same JSON.
		text, err := json.Marshal(validation.OpenAPIV3Schema)
		if err == nil {
			err = json.Unmarshal(text, s)
		}
		if err != nil {
			panic(fmt.Sprintf("openapi: schema of %s: %v", k.Resource, err))
		}
	} else {
		s.AddExtension("x-kubernetes-preserve-unknown-fields", true)
	}
	s.Type = spec.StringOrArray{"object"}
	addEmbedded(s)
	addObjectFields(s, modelObjectMeta, "Standard object's metadata.")
	setKind(s, k.gv().WithKind(k.Kind))
	return s
}

func listSchema(k kind) *spec.Schema {
	s := new(spec.Schema).Typed("object", "").WithDescription(k.Kind + "List is a list of " + k.Kind + ".").WithRequired("items")
	addObjectFields(s, modelListMeta, "Standard list metadata.")
	s.Properties["items"] = *spec.ArrayProperty(spec.RefSchema(refPrefix + k.model)).WithDescription("List of " + k.Plural + ".")
	setKind(s, k.gv().WithKind(k.Kind+"List"))
	return s
}

// addObjectFields gives s the fields of every object. Those that it has under
// their names give way: a schema may only say more about metadata.
func addObjectFields(s *spec.Schema, meta, words string) {
	if s.Properties == nil {
		s.Properties = map[string]spec.Schema{}
	}
	s.Properties["apiVersion"] = *spec.StringProperty().WithDescription("The group and the version of this object's kind: <version> or <group>/<version>.")
	s.Properties["kind"] = *spec.StringProperty().WithDescription("What this object is.")
	s.Properties["metadata"] = *new(spec.Schema).WithAllOf(*spec.RefSchema(refPrefix + meta)).WithDescription(words)
}

// addEmbedded gives the fields of an object to the parts of s that are whole
// objects (x-kubernetes-embedded-resource): their schemas need not name them.
func addEmbedded(s *spec.Schema) {
	if yes, _ := s.Extensions.GetBool("x-kubernetes-embedded-resource"); yes {
		addObjectFields(s, modelObjectMeta, "Standard object's metadata.")
	}
	for name, property := range s.Properties {
		addEmbedded(&property)
		s.Properties[name] = property
	}
	if s.Items != nil && s.Items.Schema != nil {
		addEmbedded(s.Items.Schema)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		addEmbedded(s.AdditionalProperties.Schema)
	}
}
