package object

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindCustomResourceDefinition = define(Resource{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition", Plural: "customresourcedefinitions", Singular: "customresourcedefinition", ShortNames: []string{"crd", "crds"}, Categories: []string{"api-extensions"}, Status: true},
	func() *apiextensionsv1.CustomResourceDefinition { return new(apiextensionsv1.CustomResourceDefinition) },
	rules[*apiextensionsv1.CustomResourceDefinition]{
		supported: `
			spec.group
			spec.names
			spec.scope
			spec.versions
			spec.conversion.strategy = None
			spec.preserveUnknownFields = false
			status
		`,
		defaults:       defaultCRD,
		validate:       validateCRD,
		validateUpdate: validateCRDUpdate,
		columns:        columns("NAME", "CREATED AT:date"),
		row: func(crd *apiextensionsv1.CustomResourceDefinition, _ time.Time) []string {
			return []string{crd.Name, crd.CreationTimestamp.UTC().Format(time.RFC3339)}
		},
		describe: func(d *describer, crd *apiextensionsv1.CustomResourceDefinition, _ []Object) { d.definition(crd) },
	})

func defaultCRD(crd *apiextensionsv1.CustomResourceDefinition) {
	names := &crd.Spec.Names
	setIfZero(&names.Singular, strings.ToLower(names.Kind))
	if names.Kind != "" {
		setIfZero(&names.ListKind, names.Kind+"List")
	}
	if crd.Spec.Conversion == nil {
		crd.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.NoneConverter}
	}
}

func storageVersion(crd *apiextensionsv1.CustomResourceDefinition) string {
	for _, v := range crd.Spec.Versions {
		if v.Storage {
			return v.Name
		}
	}
	return ""
}

func validateCRD(crd *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	spec, at := &crd.Spec, field.NewPath("spec")
	var errs field.ErrorList
	if want := spec.Names.Plural + "." + spec.Group; spec.Names.Plural != "" && spec.Group != "" && crd.Name != want {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), crd.Name, "must be spec.names.plural+\".\"+spec.group: "+want))
	}
	switch wrong := validation.IsDNS1123Subdomain(spec.Group); {
	case spec.Group == "":
		errs = append(errs, field.Required(at.Child("group"), ""))
	case len(wrong) > 0:
		errs = append(errs, field.Invalid(at.Child("group"), spec.Group, strings.Join(wrong, ", ")))
	case !strings.Contains(spec.Group, "."):
		errs = append(errs, field.Invalid(at.Child("group"), spec.Group, "should be a domain with at least one dot"))
	}
	errs = append(errs, validateApproval(crd)...)
	errs = append(errs, oneOf(spec.Scope, []apiextensionsv1.ResourceScope{apiextensionsv1.ClusterScoped, apiextensionsv1.NamespaceScoped}, at.Child("scope"))...)
	errs = append(errs, validateNames(&spec.Names, at.Child("names"))...)

	stored, seen := 0, map[string]bool{}
	for i := range spec.Versions {
		v, at := &spec.Versions[i], at.Child("versions").Index(i)
		if v.Storage {
			stored++
		}
		if seen[v.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), v.Name))
		}
		seen[v.Name] = true
		errs = append(errs, validateCRDVersion(v, at)...)
	}
	if stored != 1 {
		errs = append(errs, field.Invalid(at.Child("versions"), field.OmitValueType{}, fmt.Sprintf("must have exactly one version marked as storage version, has %d", stored)))
	}
	for i, v := range crd.Status.StoredVersions {
		if !seen[v] {
			errs = append(errs, field.Invalid(field.NewPath("status", "storedVersions").Index(i), v, keepVersion))
		}
	}
	return errs
}

const keepVersion = "must stay in spec.versions, since objects may be stored in it (it need not be served), until all are written again and it is removed from status.storedVersions"

// validateApproval guards Kubernetes' own groups.
func validateApproval(crd *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	own := func(domain string) bool {
		return crd.Spec.Group == domain || strings.HasSuffix(crd.Spec.Group, "."+domain)
	}
	if !own("k8s.io") && !own("kubernetes.io") {
		return nil
	}
	at := field.NewPath("metadata", "annotations").Key(apiextensionsv1.KubeAPIApprovedAnnotation)
	switch value := crd.Annotations[apiextensionsv1.KubeAPIApprovedAnnotation]; {
	case value == "":
		return field.ErrorList{field.Required(at, "the groups *.k8s.io and *.kubernetes.io are Kubernetes' own: link to the approval, or say \"unapproved\" and why")}
	case !strings.HasPrefix(value, "unapproved") && !strings.HasPrefix(value, "https://") && !strings.HasPrefix(value, "http://"):
		return field.ErrorList{field.Invalid(at, value, "must be the URL of the approval, or begin with \"unapproved\"")}
	}
	return nil
}

func validateNames(names *apiextensionsv1.CustomResourceDefinitionNames, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	label := func(at *field.Path, name, hint string) {
		if wrong := validation.IsDNS1035Label(name); len(wrong) > 0 {
			errs = append(errs, field.Invalid(at, name, hint+strings.Join(wrong, ", ")))
		}
	}
	for _, n := range []struct {
		field, name string
		mixedCase   bool
	}{{"plural", names.Plural, false}, {"singular", names.Singular, false}, {"kind", names.Kind, true}, {"listKind", names.ListKind, true}} {
		switch at := path.Child(n.field); {
		case n.name == "" && (n.field == "plural" || n.field == "kind"): // the others follow from the kind
			errs = append(errs, field.Required(at, ""))
		case n.name == "":
		case n.mixedCase:
			if wrong := validation.IsDNS1035Label(strings.ToLower(n.name)); len(wrong) > 0 {
				errs = append(errs, field.Invalid(at, n.name, "may have mixed case, but should otherwise match: "+strings.Join(wrong, ", ")))
			}
		default:
			label(at, n.name, "")
		}
	}
	if names.Kind != "" && names.Kind == names.ListKind {
		errs = append(errs, field.Invalid(path.Child("listKind"), names.ListKind, "kind and listKind may not be the same"))
	}
	for i, name := range names.ShortNames {
		label(path.Child("shortNames").Index(i), name, "")
	}
	for i, name := range names.Categories {
		label(path.Child("categories").Index(i), name, "")
	}
	return errs
}

func validateCRDVersion(v *apiextensionsv1.CustomResourceDefinitionVersion, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if wrong := validation.IsDNS1035Label(v.Name); len(wrong) > 0 {
		errs = append(errs, field.Invalid(path.Child("name"), v.Name, strings.Join(wrong, ", ")))
	}
	if w := v.DeprecationWarning; w != nil {
		at := path.Child("deprecationWarning")
		switch {
		case !v.Deprecated:
			errs = append(errs, field.Invalid(at, *w, "can only be set for deprecated versions"))
		case *w == "" || len(*w) > 256:
			errs = append(errs, field.Invalid(at, *w, "must have 1 to 256 characters"))
		}
	}
	root := path.Child("schema", "openAPIV3Schema")
	var schema *apiextensionsv1.JSONSchemaProps
	if v.Schema != nil {
		schema = v.Schema.OpenAPIV3Schema
	}
	if schema == nil {
		errs = append(errs, field.Required(root, "say which fields the objects have; x-kubernetes-preserve-unknown-fields: true allows any"))
	} else {
		check := schemaCheck{}
		check.root(schema, root)
		errs = append(errs, check.errs...)
	}
	if sub := v.Subresources; sub != nil && sub.Scale != nil {
		at := path.Child("subresources", "scale")
		errs = append(errs, simplePath(sub.Scale.SpecReplicasPath, at.Child("specReplicasPath"), ".spec.")...)
		errs = append(errs, simplePath(sub.Scale.StatusReplicasPath, at.Child("statusReplicasPath"), ".status.")...)
		if p := sub.Scale.LabelSelectorPath; p != nil && *p != "" {
			errs = append(errs, simplePath(*p, at.Child("labelSelectorPath"), ".spec.", ".status.")...)
		}
	}
	for i := range v.AdditionalPrinterColumns {
		errs = append(errs, validateColumn(&v.AdditionalPrinterColumns[i], path.Child("additionalPrinterColumns").Index(i))...)
	}
	const most = 8
	if len(v.SelectableFields) > most {
		errs = append(errs, field.TooMany(path.Child("selectableFields"), len(v.SelectableFields), most))
	}
	seen := map[string]bool{}
	for i, f := range v.SelectableFields {
		at := path.Child("selectableFields").Index(i).Child("jsonPath")
		errs = append(errs, validateSelectable(f.JSONPath, schema, at)...)
		if seen[f.JSONPath] {
			errs = append(errs, field.Duplicate(at, f.JSONPath))
		}
		seen[f.JSONPath] = true
	}
	return errs
}

// simplePath checks a path of names, ".spec.replicas", that begins with one of
// prefixes.
func simplePath(text string, path *field.Path, prefixes ...string) field.ErrorList {
	under := strings.Join(prefixes, " or ")
	switch {
	case text == "":
		return field.ErrorList{field.Required(path, "a path under "+under)}
	case !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(text, p) && len(text) > len(p) }):
		return field.ErrorList{field.Invalid(path, text, "must be a path under "+under)}
	case strings.ContainsAny(text, "[]{}*") || slices.Contains(strings.Split(text[1:], "."), ""):
		return field.ErrorList{field.Invalid(path, text, "must be names with dots before them, without brackets")}
	}
	return nil
}

func validateColumn(c *apiextensionsv1.CustomResourceColumnDefinition, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	errs = append(errs, oneOf(c.Type, []string{"boolean", "date", "integer", "number", "string"}, path.Child("type"))...)
	if c.Format != "" {
		errs = append(errs, oneOf(c.Format, []string{"byte", "date", "date-time", "double", "float", "int32", "int64", "password"}, path.Child("format"))...)
	}
	at := path.Child("jsonPath")
	if c.JSONPath == "" {
		errs = append(errs, field.Required(at, ""))
	} else if c.JSONPath[0] != '.' {
		errs = append(errs, field.Invalid(at, c.JSONPath, "must be a simple json path starting with ."))
	} else if strings.ContainsAny(c.JSONPath, "{}") {
		errs = append(errs, field.Invalid(at, c.JSONPath, "must be one path, without braces"))
	} else if _, err := columnPath(c.JSONPath); err != nil {
		errs = append(errs, field.Invalid(at, c.JSONPath, err.Error()))
	}
	return errs
}

func validateSelectable(text string, schema *apiextensionsv1.JSONSchemaProps, path *field.Path) field.ErrorList {
	if text == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	names := strings.Split(strings.TrimPrefix(text, "."), ".")
	if text[0] != '.' || strings.ContainsAny(text, "[]{}*") || slices.Contains(names, "") {
		return field.ErrorList{field.Invalid(path, text, "must be names with dots before them, without brackets")}
	}
	if names[0] == "metadata" {
		return field.ErrorList{field.Invalid(path, text, "must not point to fields in metadata")}
	}
	at := schema
	for _, name := range names {
		if at == nil {
			return nil // no schema: said already
		}
		next, ok := at.Properties[name]
		if !ok {
			return field.ErrorList{field.Invalid(path, text, "the schema has no such field")}
		}
		at = &next
	}
	if at != nil && !slices.Contains([]string{"string", "boolean", "integer"}, at.Type) {
		return field.ErrorList{field.Invalid(path, text, "must point to a field of type string, boolean or integer")}
	}
	return nil
}

func validateCRDUpdate(crd, old *apiextensionsv1.CustomResourceDefinition) field.ErrorList {
	var errs field.ErrorList
	at := field.NewPath("spec")
	same := func(path *field.Path, now, before string) {
		if now != before {
			errs = append(errs, field.Invalid(path, now, "field is immutable: it was "+before))
		}
	}
	same(at.Child("group"), crd.Spec.Group, old.Spec.Group)
	same(at.Child("names", "plural"), crd.Spec.Names.Plural, old.Spec.Names.Plural)
	if Established(old) { // objects are stored by then
		same(at.Child("scope"), string(crd.Spec.Scope), string(old.Spec.Scope))
		same(at.Child("names", "kind"), crd.Spec.Names.Kind, old.Spec.Names.Kind)
	}
	for _, v := range old.Status.StoredVersions {
		kept := slices.ContainsFunc(crd.Spec.Versions, func(has apiextensionsv1.CustomResourceDefinitionVersion) bool { return has.Name == v })
		if !kept && !slices.Contains(crd.Status.StoredVersions, v) { // else Validate says it
			errs = append(errs, field.Invalid(at.Child("versions"), v, keepVersion))
		}
	}
	return errs
}

// schemaCheck finds what makes a schema not structural, and what Kubernetes
// forbids besides.
type schemaCheck struct {
	errs field.ErrorList
}

func (c *schemaCheck) forbid(path *field.Path, detail string) {
	c.errs = append(c.errs, field.Forbidden(path, detail))
}

func (c *schemaCheck) root(s *apiextensionsv1.JSONSchemaProps, path *field.Path) {
	if s.Nullable {
		c.forbid(path.Child("nullable"), "cannot be true at the root")
	}
	if s.AdditionalProperties != nil {
		c.forbid(path.Child("additionalProperties"), "must not be used at the root")
	}
	if s.Type == "" {
		c.errs = append(c.errs, field.Required(path.Child("type"), "must be object at the root"))
	} else if s.Type != "object" {
		c.errs = append(c.errs, field.Invalid(path.Child("type"), s.Type, "must be object at the root"))
	}
	for _, name := range []string{"apiVersion", "kind"} {
		if p, ok := s.Properties[name]; ok && p.Type != "string" {
			c.errs = append(c.errs, field.Invalid(path.Child("properties").Key(name).Child("type"), p.Type, "must be string"))
		}
	}
	if meta, ok := s.Properties["metadata"]; ok {
		at := path.Child("properties").Key("metadata")
		if meta.Type != "object" {
			c.errs = append(c.errs, field.Invalid(at.Child("type"), meta.Type, "must be object"))
		}
		for _, name := range slices.Sorted(maps.Keys(meta.Properties)) {
			if name != "name" && name != "generateName" {
				c.forbid(at.Child("properties").Key(name), "only metadata.name and metadata.generateName can be restricted: the rest of metadata is the same for all kinds")
			}
		}
	}
	c.schema(s, path, isRoot)
}

// schemaPlace is where a schema stands.
type schemaPlace int

const (
	isRoot     schemaPlace = iota
	isValue                // of a field, an item or an entry: it must say its type
	isJunctor              // within allOf, anyOf, oneOf, not: it can only restrict
	isIntOrAny             // the alternatives of x-kubernetes-int-or-string
)

func (c *schemaCheck) schema(s *apiextensionsv1.JSONSchemaProps, path *field.Path, at schemaPlace) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"id", s.ID != ""},
		{"$ref", s.Ref != nil},
		{"additionalItems", s.AdditionalItems != nil},
		{"patternProperties", len(s.PatternProperties) > 0},
		{"definitions", len(s.Definitions) > 0},
		{"dependencies", len(s.Dependencies) > 0},
	} {
		if f.set {
			c.forbid(path.Child(f.name), f.name+" is not possible in the schema of a custom kind")
		}
	}
	if s.UniqueItems {
		c.forbid(path.Child("uniqueItems"), "cannot be true: use x-kubernetes-list-type: set")
	}
	if len(s.XValidations) > 0 {
		c.errs = append(c.errs, &field.Error{Type: notSupportedYet, Field: path.Child("x-kubernetes-validations").String(), Detail: "not supported yet: rules in CEL are not evaluated"})
	}
	if p := s.XPreserveUnknownFields; p != nil && !*p {
		c.errs = append(c.errs, field.Invalid(path.Child("x-kubernetes-preserve-unknown-fields"), *p, "must be true or left out"))
	}
	if s.Pattern != "" {
		if _, err := regexp.Compile(s.Pattern); err != nil {
			c.errs = append(c.errs, field.Invalid(path.Child("pattern"), s.Pattern, "must be a regular expression: "+err.Error()))
		}
	}
	if s.Items != nil && len(s.Items.JSONSchemas) > 0 {
		c.forbid(path.Child("items"), "must be one schema, not a list of them")
	}
	if at == isJunctor || at == isIntOrAny {
		c.restriction(s, path, at)
	} else {
		c.structure(s, path, at)
	}
	c.junctors(s, path, at)
}

// structure checks a schema that says what there is.
func (c *schemaCheck) structure(s *apiextensionsv1.JSONSchemaProps, path *field.Path, at schemaPlace) {
	preserve := s.XPreserveUnknownFields != nil && *s.XPreserveUnknownFields
	types := []string{"array", "boolean", "integer", "number", "object", "string"}
	switch {
	case s.Type == "null":
		c.forbid(path.Child("type"), "cannot be null: use nullable")
	case s.Type != "" && !slices.Contains(types, s.Type):
		c.errs = append(c.errs, field.NotSupported(path.Child("type"), s.Type, types))
	case s.Type == "" && at == isValue && !s.XIntOrString && !preserve:
		c.errs = append(c.errs, field.Required(path.Child("type"), "each field and item needs a type (or x-kubernetes-int-or-string, x-kubernetes-preserve-unknown-fields)"))
	}
	if s.XIntOrString {
		if preserve {
			c.errs = append(c.errs, field.Invalid(path.Child("x-kubernetes-preserve-unknown-fields"), true, "must be left out if x-kubernetes-int-or-string is true"))
		}
		if s.XEmbeddedResource {
			c.errs = append(c.errs, field.Invalid(path.Child("x-kubernetes-embedded-resource"), true, "must be left out if x-kubernetes-int-or-string is true"))
		}
		if s.Type != "" {
			c.errs = append(c.errs, field.Invalid(path.Child("type"), s.Type, "must be left out if x-kubernetes-int-or-string is true"))
		}
	}
	if s.XEmbeddedResource {
		if s.Type != "object" {
			c.errs = append(c.errs, field.Invalid(path.Child("type"), s.Type, "must be object if x-kubernetes-embedded-resource is true"))
		}
		if s.AdditionalProperties != nil {
			c.forbid(path.Child("additionalProperties"), "must not be used if x-kubernetes-embedded-resource is true")
		}
		if !preserve && len(s.Properties) == 0 {
			c.errs = append(c.errs, field.Required(path.Child("properties"), "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields"))
		}
	}
	if s.Type == "array" && (s.Items == nil || s.Items.Schema == nil && len(s.Items.JSONSchemas) == 0) {
		c.errs = append(c.errs, field.Required(path.Child("items"), "say what the items are"))
	}
	if s.Items != nil && s.Items.Schema != nil {
		c.schema(s.Items.Schema, path.Child("items"), isValue)
	}
	if more := s.AdditionalProperties; more != nil {
		if len(s.Properties) > 0 && (more.Schema != nil || !more.Allows) {
			c.forbid(path.Child("additionalProperties"), "excludes properties: a map has either names that are known or names that are data")
		}
		if more.Schema != nil {
			c.schema(more.Schema, path.Child("additionalProperties"), isValue)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		child := s.Properties[name]
		at := path.Child("properties").Key(name)
		if isMetadata(name) && strings.HasSuffix(path.String(), "openAPIV3Schema") && child.Default != nil {
			c.forbid(at.Child("default"), "must not be set: "+name+" is the same for all kinds")
		}
		c.schema(&child, at, isValue)
	}
	if s.Default != nil && !(at == isRoot) {
		c.fallback(s, path)
	} else if s.Default != nil {
		c.forbid(path.Child("default"), "must not be set at the root")
	}
	c.lists(s, path)
}

func isMetadata(name string) bool {
	return name == "apiVersion" || name == "kind" || name == "metadata"
}

// fallback checks a default against its own schema.
func (c *schemaCheck) fallback(s *apiextensionsv1.JSONSchemaProps, path *field.Path) {
	at := path.Child("default")
	value, err := plainJSON(s.Default.Raw)
	if err != nil {
		c.errs = append(c.errs, field.Invalid(at, string(s.Default.Raw), err.Error()))
		return
	}
	ready := compile("default", s)
	ready.fill(value)
	c.errs = append(c.errs, ready.check(value, at)...)
	c.errs = append(c.errs, ready.unknown(value, at)...)
}

// unknown returns a fault for each field in value that s does not have.
func (s *valueSchema) unknown(value any, path *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	var errs field.ErrorList
	switch value := value.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(value)) {
			child, keyed, known := s.field(name)
			at := path.Child(name)
			if keyed {
				at = path.Key(name)
			}
			if !known {
				errs = append(errs, field.Invalid(at, field.OmitValueType{}, "the schema has no such field"))
				continue
			}
			errs = append(errs, child.unknown(value[name], at)...)
		}
	case []any:
		for i, item := range value {
			errs = append(errs, s.items.unknown(item, path.Index(i))...)
		}
	}
	return errs
}

// lists checks x-kubernetes-list-type and its like.
func (c *schemaCheck) lists(s *apiextensionsv1.JSONSchemaProps, path *field.Path) {
	if t := s.XMapType; t != nil {
		if s.Type != "object" {
			c.errs = append(c.errs, field.Invalid(path.Child("type"), s.Type, "must be object if x-kubernetes-map-type is given"))
		}
		c.errs = append(c.errs, oneOf(*t, []string{"atomic", "granular"}, path.Child("x-kubernetes-map-type"))...)
	}
	keys := path.Child("x-kubernetes-list-map-keys")
	if s.XListType == nil || *s.XListType != "map" {
		if len(s.XListMapKeys) > 0 {
			c.forbid(keys, "is for x-kubernetes-list-type: map")
		}
	}
	if s.XListType == nil {
		return
	}
	if s.Type != "array" {
		c.errs = append(c.errs, field.Invalid(path.Child("type"), s.Type, "must be array if x-kubernetes-list-type is given"))
		return
	}
	c.errs = append(c.errs, oneOf(*s.XListType, []string{"atomic", "set", "map"}, path.Child("x-kubernetes-list-type"))...)
	if s.Items == nil || s.Items.Schema == nil {
		return
	}
	item, at := s.Items.Schema, path.Child("items")
	if *s.XListType != "atomic" && item.Nullable {
		c.forbid(at.Child("nullable"), "cannot be true when x-kubernetes-list-type is "+*s.XListType)
	}
	switch *s.XListType {
	case "set":
		if item.Type == "object" && (item.XMapType == nil || *item.XMapType != "atomic") {
			c.errs = append(c.errs, field.Required(at.Child("x-kubernetes-map-type"), "must be atomic in the items of a set"))
		}
		if item.Type == "array" && item.XListType != nil && *item.XListType != "atomic" {
			c.errs = append(c.errs, field.Invalid(at.Child("x-kubernetes-list-type"), *item.XListType, "must be atomic in the items of a set"))
		}
	case "map":
		if len(s.XListMapKeys) == 0 {
			c.errs = append(c.errs, field.Required(keys, "name the fields that tell the items apart"))
		}
		if item.Type != "object" {
			c.errs = append(c.errs, field.Invalid(at.Child("type"), item.Type, "must be object if x-kubernetes-list-type is map"))
			return
		}
		for i, name := range s.XListMapKeys {
			p, ok := item.Properties[name]
			at := at.Child("properties").Key(name)
			switch {
			case slices.Contains(s.XListMapKeys[:i], name):
				c.errs = append(c.errs, field.Duplicate(keys.Index(i), name))
			case !ok:
				c.errs = append(c.errs, field.Invalid(keys.Index(i), name, "the items have no such field"))
			case p.Type == "array" || p.Type == "object":
				c.errs = append(c.errs, field.Invalid(at.Child("type"), p.Type, "a key must be a single value"))
			case !slices.Contains(item.Required, name) && p.Default == nil:
				c.errs = append(c.errs, field.Required(at.Child("default"), "a key must be required or have a default"))
			case p.Nullable:
				c.forbid(at.Child("nullable"), "a key cannot be empty")
			}
		}
	}
}

// restriction checks a schema that can only restrict what another says.
func (c *schemaCheck) restriction(s *apiextensionsv1.JSONSchemaProps, path *field.Path, at schemaPlace) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"type", s.Type != "" && at != isIntOrAny},
		{"default", s.Default != nil},
		{"title", s.Title != ""},
		{"description", s.Description != ""},
		{"nullable", s.Nullable},
		{"additionalProperties", s.AdditionalProperties != nil},
		{"x-kubernetes-preserve-unknown-fields", s.XPreserveUnknownFields != nil},
		{"x-kubernetes-embedded-resource", s.XEmbeddedResource},
		{"x-kubernetes-int-or-string", s.XIntOrString},
		{"x-kubernetes-list-type", s.XListType != nil},
		{"x-kubernetes-list-map-keys", len(s.XListMapKeys) > 0},
		{"x-kubernetes-map-type", s.XMapType != nil},
	} {
		if f.set {
			c.forbid(path.Child(f.name), "must be left out within allOf, anyOf, oneOf and not: these can only restrict what the schema around them says")
		}
	}
	if s.Items != nil && s.Items.Schema != nil {
		c.schema(s.Items.Schema, path.Child("items"), isJunctor)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		child := s.Properties[name]
		at := path.Child("properties").Key(name)
		if name == "metadata" {
			c.forbid(at, "must not be given within allOf, anyOf, oneOf and not")
		}
		c.schema(&child, at, isJunctor)
	}
}

// junctors checks the schemas in allOf and its like, and that each field that
// they name is in the schema that they restrict.
func (c *schemaCheck) junctors(s *apiextensionsv1.JSONSchemaProps, path *field.Path, at schemaPlace) {
	whole := at == isRoot || at == isValue
	each := func(list []apiextensionsv1.JSONSchemaProps, name string, path *field.Path) {
		is := isJunctor
		if s.XIntOrString && isIntOrString(list, name) {
			is = isIntOrAny
		}
		for i := range list {
			at := path.Child(name).Index(i)
			if name == "allOf" && i == 0 && s.XIntOrString && isIntOrString(list[i].AnyOf, "anyOf") {
				for j := range list[i].AnyOf {
					c.schema(&list[i].AnyOf[j], at.Child("anyOf").Index(j), isIntOrAny)
				}
				continue
			}
			c.schema(&list[i], at, is)
			if whole {
				c.complete(&list[i], s, at)
			}
		}
	}
	each(s.AllOf, "allOf", path)
	each(s.AnyOf, "anyOf", path)
	each(s.OneOf, "oneOf", path)
	if s.Not != nil {
		c.schema(s.Not, path.Child("not"), isJunctor)
		if whole {
			c.complete(s.Not, s, path.Child("not"))
		}
	}
}

// isIntOrString reports whether a list of alternatives is the one that says what
// x-kubernetes-int-or-string says.
func isIntOrString(list []apiextensionsv1.JSONSchemaProps, name string) bool {
	return name == "anyOf" && len(list) == 2 && list[0].Type == "integer" && list[1].Type == "string"
}

// complete checks that what a restriction names is in the schema that it
// restricts.
func (c *schemaCheck) complete(s, of *apiextensionsv1.JSONSchemaProps, path *field.Path) {
	if of == nil || of.XPreserveUnknownFields != nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		child := s.Properties[name]
		at := path.Child("properties").Key(name)
		in, ok := of.Properties[name]
		if more := of.AdditionalProperties; !ok && more != nil && more.Schema != nil {
			in, ok = *more.Schema, true
		}
		if !ok {
			c.errs = append(c.errs, field.Required(at, "must be in the properties of the schema around it too"))
			continue
		}
		c.complete(&child, &in, at)
	}
	if s.Items != nil && s.Items.Schema != nil {
		if of.Items == nil || of.Items.Schema == nil {
			c.errs = append(c.errs, field.Required(path.Child("items"), "must be in the schema around it too"))
		} else {
			c.complete(s.Items.Schema, of.Items.Schema, path.Child("items"))
		}
	}
	for _, list := range []struct {
		name    string
		schemas []apiextensionsv1.JSONSchemaProps
	}{{"allOf", s.AllOf}, {"anyOf", s.AnyOf}, {"oneOf", s.OneOf}} {
		for i := range list.schemas {
			c.complete(&list.schemas[i], of, path.Child(list.name).Index(i))
		}
	}
	if s.Not != nil {
		c.complete(s.Not, of, path.Child("not"))
	}
}

func (d *describer) definition(crd *apiextensionsv1.CustomResourceDefinition) {
	d.meta(crd)
	d.line(0, "Group:", crd.Spec.Group)
	d.line(0, "Kind:", crd.Spec.Names.Kind)
	d.line(0, "Plural:", crd.Spec.Names.Plural)
	if names := crd.Spec.Names.ShortNames; len(names) > 0 {
		d.line(0, "Short Names:", strings.Join(names, ", "))
	}
	d.line(0, "Scope:", string(crd.Spec.Scope))
	d.line(0, "Versions:")
	d.line(1, "Name", "Served", "Stored", "Subresources")
	for _, v := range crd.Spec.Versions {
		var subs []string
		if v.Subresources != nil && v.Subresources.Status != nil {
			subs = append(subs, "status")
		}
		if v.Subresources != nil && v.Subresources.Scale != nil {
			subs = append(subs, "scale")
		}
		d.line(1, v.Name, yesNo(v.Served), yesNo(v.Storage), orNone(strings.Join(subs, ", ")))
	}
	if len(crd.Status.Conditions) > 0 {
		d.line(0, "Conditions:")
		d.line(1, "Type", "Status", "Reason", "Message")
		for _, c := range crd.Status.Conditions {
			d.line(1, string(c.Type), string(c.Status), c.Reason, c.Message)
		}
	}
}
