package kube_test

import (
	"fmt"
	"strings"
	"testing"
)

const widgetDefinition = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"widgets.example.com"},
"spec":{"group":"example.com","scope":"Namespaced","names":{"plural":"widgets","singular":"widget","kind":"Widget","listKind":"WidgetList","shortNames":["wd"]},
"versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{},"scale":{"specReplicasPath":".spec.size","statusReplicasPath":".status.size"}},
"additionalPrinterColumns":[{"name":"Size","type":"integer","jsonPath":".spec.size"},{"name":"Colour","type":"string","jsonPath":".spec.colour","priority":1}],
"schema":{"openAPIV3Schema":{"type":"object","properties":{
"spec":{"type":"object","properties":{"size":{"type":"integer","minimum":1},"colour":{"type":"string","default":"red"},"parts":{"type":"array","items":{"type":"object","properties":{"name":{"type":"string"}}}},
"free":{"type":"object","x-kubernetes-preserve-unknown-fields":true},"tags":{"type":"object","additionalProperties":{"type":"string"}}}},
"status":{"type":"object","properties":{"size":{"type":"integer"}}}}}}}]}}`

const (
	definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	widgets     = "/apis/example.com/v1/namespaces/default/widgets"
)

// TestCustomKinds: what a definition makes is served in REST as built-in kinds are, and
// is gone with it.
func TestCustomKinds(t *testing.T) {
	s := start(t)
	s.wantStatus(404, "NotFound", "could not find", "GET", widgets, "")
	before := s.want(200, "GET", "/openapi/v3", "")
	s.want(201, "POST", definitions, widgetDefinition)

	if a := s.want(200, "GET", "/apis/example.com/v1", ""); !strings.Contains(string(a.body), `"name":"widgets/scale"`) || !strings.Contains(string(a.body), `"shortNames":["wd"]`) {
		t.Errorf("discovery: %v", a)
	}
	after := s.want(200, "GET", "/openapi/v3", "")
	url, _ := after.at("paths").(map[string]any)["apis/example.com/v1"].(map[string]any)["serverRelativeURL"].(string)
	if strings.Contains(string(before.body), "example.com") || !strings.HasPrefix(url, "/openapi/v3/apis/example.com/v1?hash=") {
		t.Errorf("the document's address is %q", url)
	}
	if doc := s.want(200, "GET", url, ""); !strings.Contains(string(doc.body), `"default":"red"`) || !strings.Contains(doc.header.Get("Cache-Control"), "immutable") {
		t.Errorf("the document: %v %v", doc.header, doc)
	}

	a := s.want(201, "POST", widgets, `{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w"},"spec":{"size":2}}`)
	if a.at("spec.colour") != "red" || a.at("metadata.generation") != 1.0 {
		t.Errorf("created: %v", a)
	}
	s.wantStatus(422, "Invalid", "spec.size", "POST", widgets, `{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"x"},"spec":{"size":0}}`)
	a = s.want(200, "GET", widgets, "", "Accept: application/json;as=Table;v=v1;g=meta.k8s.io")
	if a.at("columnDefinitions.1.name") != "SIZE" || a.at("columnDefinitions.1.type") != "integer" || a.at("rows.0.cells.1") != 2.0 || a.at("columnDefinitions.2.priority") != 1.0 {
		t.Errorf("table: %v", a)
	}
	if a := s.want(200, "PATCH", widgets+"/w/scale", `{"spec":{"replicas":3}}`, "Content-Type: application/merge-patch+json"); a.at("kind") != "Scale" || a.at("spec.replicas") != 3.0 {
		t.Errorf("scale: %v", a)
	}
	if a := s.want(200, "PATCH", widgets+"/w/status", `{"status":{"size":3},"spec":{"size":9}}`, "Content-Type: application/merge-patch+json"); a.at("status.size") != 3.0 || a.at("spec.size") != 3.0 {
		t.Errorf("status: %v", a)
	}
	s.wantStatus(415, "UnsupportedMediaType", "merge-patch", "PATCH", widgets+"/w", `{}`, "Content-Type: application/strategic-merge-patch+json")
	a = s.want(200, "PATCH", widgets+"/w?fieldManager=me&force=true", `{"apiVersion":"example.com/v1","kind":"Widget","spec":{"colour":"blue"}}`, "Content-Type: application/apply-patch+yaml")
	if a.at("spec.colour") != "blue" || a.at("spec.size") != 3.0 {
		t.Errorf("applied: %v", a)
	}

	// A definition that goes takes no more objects, and waits for those that it has.
	if a := s.want(200, "DELETE", definitions+"/widgets.example.com", ""); a.at("metadata.deletionTimestamp") == nil {
		t.Errorf("deleted: %v", a)
	}
	s.wantStatus(422, "Invalid", "widgets.example.com is being deleted", "POST", widgets, `{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"late"}}`)
	s.wantStatus(422, "Invalid", "is being deleted", "PATCH", widgets+"/late?fieldManager=me", `{"apiVersion":"example.com/v1","kind":"Widget"}`, "Content-Type: application/apply-patch+yaml")
	s.want(200, "PATCH", widgets+"/w", `{"spec":{"colour":"green"}}`, "Content-Type: application/merge-patch+json")
	s.want(200, "DELETE", widgets+"/w", "")
}

// TestUnknownFields: what a client wants to happen to fields that a kind does not have
// happens, in every form in which they can come.
func TestUnknownFields(t *testing.T) {
	s := start(t)
	s.want(201, "POST", definitions, widgetDefinition)
	s.want(201, "POST", "/api/v1/namespaces/default/configmaps", webConfig)
	s.want(201, "POST", widgets, `{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w"},"spec":{"size":2,"parts":[{"name":"a"}]}}`)
	const maps = "/api/v1/namespaces/default/configmaps/web"
	for name, test := range map[string]struct {
		method, path, typ, body string
		warnings                string
		keeps                   string // in the answer, as a path and its value
	}{
		"custom body": {
			"POST", widgets + "?dryRun=All", "application/json",
			`{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"x","nmae":1},"spec":{"sise":1,"size":4,"parts":[{"name":"a","nope":1}],"free":{"any":1},"tags":{"any":"b"}},"specs":{}}`,
			`unknown field \"metadata.nmae\"|unknown field \"spec.parts[0].nope\"|unknown field \"spec.sise\"|unknown field \"specs\"`, "spec.free.any 1",
		},
		"custom merge patch": {"PATCH", widgets + "/w?dryRun=All", "application/merge-patch+json", `{"spec":{"sise":1,"size":4}}`, `unknown field \"spec.sise\"`, "spec.size 4"},
		"custom JSON patch": {
			"PATCH", widgets + "/w?dryRun=All", "application/json-patch+json",
			`[{"op":"add","path":"/spec/sise","value":1},{"op":"replace","path":"/spec/size","value":4},{"op":"add","path":"/spec/parts/-","value":{"name":"b","nope":1}},{"op":"add","path":"/spec/tags","value":{"a":"b"}}]`,
			`unknown field \"spec.sise\"|unknown field \"spec.parts[0].nope\"`, "spec.parts.1.name b",
		},
		"JSON patch": {
			"PATCH", maps + "?dryRun=All", "application/json-patch+json",
			`[{"op":"add","path":"/datta","value":{}},{"op":"add","path":"/data/b","value":"2"},{"op":"add","path":"/metadata/annotations","value":{"a/b":"c"}},{"op":"add","path":"/metadata/annotations/x~1y","value":"z"}]`,
			`unknown field \"datta\"`, "data.b 2",
		},
		"nothing unknown": {"PATCH", maps + "?dryRun=All", "application/json-patch+json", `[{"op":"add","path":"/data/b","value":"2"},{"op":"test","path":"/data/a","value":"1"}]`, ``, "data.b 2"},
	} {
		t.Run(name, func(t *testing.T) {
			code := 200
			if test.method == "POST" {
				code = 201
			}
			a := s.want(code, test.method, test.path, test.body, "Content-Type: "+test.typ)
			var got []string
			for _, warning := range a.header.Values("Warning") {
				got = append(got, strings.TrimSuffix(strings.TrimPrefix(warning, `299 - "`), `"`))
			}
			if joined := strings.Join(got, "|"); joined != test.warnings {
				t.Errorf("warnings %s, want %s", joined, test.warnings)
			}
			path, value, _ := strings.Cut(test.keeps, " ")
			if kept := fmt.Sprint(a.at(path)); kept != value {
				t.Errorf("%s is %s, want %s: %v", path, kept, value, a)
			}
			if a := s.want(code, test.method, test.path+"&fieldValidation=Ignore", test.body, "Content-Type: "+test.typ); len(a.header.Values("Warning")) > 0 {
				t.Errorf("ignored, but said: %v", a.header.Values("Warning"))
			}
			if strict := s.do(test.method, test.path+"&fieldValidation=Strict", test.body, "Content-Type: "+test.typ); (strict.code == code) != (test.warnings == "") {
				t.Errorf("strictly: %v", strict)
			}
		})
	}
}
