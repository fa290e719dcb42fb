package openapi

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/holdfast-io/holdfast/object"
)

// ForCRDs returns the document of a group and version that custom kinds are in,
// as [Document] does for the others: of all those of crds that are. It is made
// anew each time.
func ForCRDs(crds []*apiextensionsv1.CustomResourceDefinition, group, version string) (doc []byte, etag string, ok bool) {
	gv := schema.GroupVersion{Group: group, Version: version}
	kinds, all := custom(crds, gv, modelStatus, modelDeleteOptions, modelPatch)
	if len(kinds) == 0 {
		return nil, "", false
	}
	d := finish(gv, kinds, all)
	return d.text, d.etag, true
}

// SchemasForCRDs returns the schemas of the custom kinds of a group and version,
// as [Schemas] does for the others.
func SchemasForCRDs(crds []*apiextensionsv1.CustomResourceDefinition, group, version string) map[string]*spec.Schema {
	kinds, all := custom(crds, schema.GroupVersion{Group: group, Version: version})
	if len(kinds) == 0 {
		return nil
	}
	return all
}

func custom(crds []*apiextensionsv1.CustomResourceDefinition, gv schema.GroupVersion, roots ...string) ([]kind, map[string]*spec.Schema) {
	var kinds []kind
	all := schemas(append(roots, modelObjectMeta, modelListMeta))
	for _, crd := range crds {
		i := slices.IndexFunc(crd.Spec.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool {
			return v.Name == gv.Version && v.Served
		})
		if i < 0 || crd.Spec.Group != gv.Group {
			continue
		}
		version, names := crd.Spec.Versions[i], crd.Spec.Names
		sub := version.Subresources
		if sub == nil {
			sub = &apiextensionsv1.CustomResourceSubresources{}
		}
		k := kind{
			Resource: object.Resource{
				Group: gv.Group, Version: gv.Version, Kind: names.Kind, Plural: names.Plural, Singular: names.Singular,
				ShortNames: names.ShortNames, Categories: names.Categories,
				Namespaced: crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
				Status:     sub.Status != nil, Scale: sub.Scale != nil,
			},
			model:  reversed(gv.Group) + "." + gv.Version + "." + names.Kind,
			custom: true,
		}
		kinds = append(kinds, k)
		all[k.model], all[k.model+"List"] = customSchema(k, version.Schema), listSchema(k)
		if k.Scale {
			for name, s := range schemas([]string{scale.model}) {
				all[name] = s
			}
		}
	}
	return kinds, all
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
