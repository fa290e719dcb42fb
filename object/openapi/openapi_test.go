package openapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestDocuments: each served kind has its schema, by group, version and kind,
// and what kubectl looks for: a PATCH with its kind and fieldValidation. Every
// reference leads somewhere.
func TestDocuments(t *testing.T) {
	docs := map[string]testDocument{}
	for _, gv := range Versions() {
		docs[gv.String()] = parseDocument(t, gv.Group, gv.Version)
	}
	for _, r := range object.Builtin().Versions() {
		doc := docs[r.APIVersion()]
		gvk := map[string]any{"group": r.Group, "kind": r.Kind, "version": r.Version}
		var found int
		for _, s := range doc.Components.Schemas {
			for _, k := range s.Kinds {
				if k.Group == r.Group && k.Kind == r.Kind && k.Version == r.Version {
					found++
				}
			}
		}
		if found != 1 {
			t.Errorf("%s: %d schemas have its kind, want 1", r, found)
		}
		path := "/apis/" + r.APIVersion()
		if r.Group == "" {
			path = "/api/v1"
		}
		if r.Namespaced {
			path += "/namespaces/{namespace}"
		}
		path += "/" + r.Plural + "/{name}"
		patch := doc.Paths[path]["patch"]
		if fmt.Sprint(patch.Kind) != fmt.Sprint(gvk) || patch.Action != "patch" {
			t.Errorf("%s: patch %s is of %v, %q", r, path, patch.Kind, patch.Action)
		}
		for _, name := range []string{"fieldValidation", "force", "dryRun", "fieldManager"} {
			if !patch.has(name) {
				t.Errorf("%s: patch %s has no parameter %s", r, path, name)
			}
		}
		if _, ok := doc.Paths[path+"/status"]; ok != r.Status {
			t.Errorf("%s: has a path for its status: %v, want %v", r, ok, r.Status)
		}
		if _, ok := doc.Paths[path+"/scale"]; ok != r.Scale {
			t.Errorf("%s: has a path for its scale: %v, want %v", r, ok, r.Scale)
		}
	}
}

// TestVersions: every version has a document, each as it was the time before,
// whose references lead somewhere; others have none.
func TestVersions(t *testing.T) {
	seen := map[string]bool{}
	for _, gv := range Versions() {
		doc, etag, ok := Document(gv.Group, gv.Version)
		if !ok || seen[etag] || etag == "" {
			t.Fatalf("%s: document %v, tag %q, seen already %v", gv, ok, etag, seen[etag])
		}
		seen[etag] = true
		if again := builtin(gv, kindsOf(gv)); again.etag != etag || !bytes.Equal(again.text, doc) {
			t.Errorf("%s: a document made anew is another", gv)
		}
		names := map[string]bool{}
		for name := range parseDocument(t, gv.Group, gv.Version).Components.Schemas {
			names[name] = true
		}
		for _, name := range references(doc) {
			if !names[name] {
				t.Errorf("%s refers to %s, which it does not have", gv, name)
			}
		}
	}
	if len(seen) < 14 {
		t.Errorf("%d versions, want at least 14", len(seen))
	}
	if _, _, ok := Document("apps", "v1beta1"); ok {
		t.Error("there is a document of apps/v1beta1")
	}
}

type testDocument struct {
	Paths      map[string]map[string]testOperation `json:"paths"`
	Components struct {
		Schemas map[string]*explainedSchema `json:"schemas"`
	} `json:"components"`
}

type testOperation struct {
	Parameters []struct{ Name, In string }
	Action     string         `json:"x-kubernetes-action"`
	Kind       map[string]any `json:"x-kubernetes-group-version-kind"`
}

// UnmarshalJSON skips the parameters that stand among the operations of a path.
func (o *testOperation) UnmarshalJSON(data []byte) error {
	if data[0] == '[' {
		return nil
	}
	type plain testOperation
	return json.Unmarshal(data, (*plain)(o))
}

func (o testOperation) has(name string) bool {
	for _, p := range o.Parameters {
		if p.Name == name && p.In == "query" {
			return true
		}
	}
	return false
}

func parseDocument(t *testing.T, group, version string) testDocument {
	t.Helper()
	text, _, ok := Document(group, version)
	if !ok {
		t.Fatalf("there is no document of %s/%s", group, version)
	}
	var doc testDocument
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestSize holds what the embedded schemas may weigh.
func TestSize(t *testing.T) {
	if len(packed) > 300_000 {
		t.Errorf("the schemas are %d bytes, want at most 300,000", len(packed))
	}
}

// TestExplain: a case is words as they follow "explain", one command a line, and
// CustomResourceDefinitions if it needs some.
func TestExplain(t *testing.T) {
	golden.Run(t, "testdata/explain/*.txtar", func(t *testing.T, in golden.Input) string {
		catalog := object.Builtin()
		if text, ok := in.Lookup("crd"); ok {
			crd := new(apiextensionsv1.CustomResourceDefinition)
			if err := yaml.UnmarshalStrict(text, crd); err != nil {
				t.Fatal(err)
			}
			catalog = catalog.With(crd)
		}
		var out strings.Builder
		for line := range strings.Lines(string(in.File("explain"))) {
			fmt.Fprintf(&out, "$ explain %s\n", strings.TrimSpace(line))
			words := strings.Fields(line)
			path := strings.Split(words[0], ".")
			r, err := catalog.For(path[0])
			if err != nil {
				t.Fatal(err)
			}
			doc, _, _ := DocumentOf(catalog, r.Group, r.Version)
			text, err := Explain(doc, r, path[1:], len(words) > 1)
			if err != nil {
				text = "error: " + err.Error() + "\n"
			}
			out.WriteString(text + "\n")
		}
		return out.String()
	})
}

// TestCustomDocuments: a group and version of custom kinds has a document as long
// as it has kinds, another one when a definition changes, the same one when not.
func TestCustomDocuments(t *testing.T) {
	definition := func(description string) *apiextensionsv1.CustomResourceDefinition {
		return &apiextensionsv1.CustomResourceDefinition{Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "example.com", Scope: apiextensionsv1.ClusterScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "things", Kind: "Thing"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", Description: description}},
			}, {Name: "v2", Served: false}},
		}}
	}
	c := object.Builtin().With(definition("a"))
	if got := len(VersionsOf(c)) - len(Versions()); got != 1 {
		t.Errorf("%d custom versions, want 1", got)
	}
	doc, etag, ok := DocumentOf(c, "example.com", "v1")
	if !ok || !bytes.Contains(doc, []byte("com.example.v1.ThingList")) || bytes.Contains(doc, []byte("strategic-merge-patch")) {
		t.Fatalf("document %v: %.200s", ok, doc)
	}
	if again, _, _ := DocumentOf(c, "example.com", "v1"); &again[0] != &doc[0] {
		t.Error("the document is made anew each time")
	}
	if _, same, _ := DocumentOf(object.Builtin().With(definition("a")), "example.com", "v1"); same != etag {
		t.Error("the same definition, written anew, has another tag")
	}
	if _, other, _ := DocumentOf(object.Builtin().With(definition("b")), "example.com", "v1"); other == etag {
		t.Error("another definition has the same tag")
	}
	for _, version := range []string{"v2", "v3"} {
		if _, _, ok := DocumentOf(c, "example.com", version); ok {
			t.Errorf("there is a document of %s", version)
		}
	}
	if _, _, ok := DocumentOf(object.Builtin(), "example.com", "v1"); ok {
		t.Error("the document outlives the definition")
	}
	if _, _, ok := DocumentOf(c, "apps", "v1"); !ok {
		t.Error("built-in groups have no document")
	}
}
