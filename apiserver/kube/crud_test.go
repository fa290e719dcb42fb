package kube_test

import (
	"strings"
	"testing"
)

const webConfig = `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"web","labels":{"app":"web"}},"data":{"a":"1"}}`

func TestCRUD(t *testing.T) {
	s := start(t)
	const all, one = "/api/v1/namespaces/default/configmaps", "/api/v1/namespaces/default/configmaps/web"

	a := s.want(201, "POST", all, webConfig)
	if a.at("metadata.namespace") != "default" || a.at("metadata.uid") == nil || a.at("kind") != "ConfigMap" || a.at("metadata.resourceVersion") == nil {
		t.Errorf("created: %v", a)
	}
	s.wantStatus(409, "AlreadyExists", `configmaps "web" already exists`, "POST", all, webConfig)

	a = s.want(200, "GET", one, "")
	if a.header.Get("Holdfast-Served-By") != "p1" || a.header.Get("Holdfast-Revision") == "" || a.header.Get("Holdfast-Age") == "" {
		t.Errorf("headers: %v", a.header)
	}
	version := a.at("metadata.resourceVersion").(string)
	s.wantStatus(404, "NotFound", `configmaps "wbe" not found`, "GET", all+"/wbe", "")

	a = s.want(200, "GET", all+"?limit=500", "")
	if a.at("kind") != "ConfigMapList" || a.at("items.0.metadata.name") != "web" || a.at("metadata.resourceVersion") == nil {
		t.Errorf("list: %v", a)
	}
	if a := s.want(200, "GET", "/api/v1/configmaps?labelSelector=app%3Dother", ""); len(a.at("items").([]any)) != 0 {
		t.Errorf("selected: %v", a)
	}

	changed := strings.Replace(webConfig, `"1"`, `"2"`, 1)
	a = s.want(200, "PUT", one, changed)
	if a.at("data.a") != "2" || a.at("metadata.resourceVersion") == version {
		t.Errorf("updated: %v", a)
	}
	old := strings.Replace(webConfig, `"labels"`, `"resourceVersion":"`+version+`","labels"`, 1)
	s.wantStatus(409, "Conflict", `Operation cannot be fulfilled on configmaps "web"`, "PUT", one, old)

	a = s.want(200, "PATCH", one, `{"data":{"b":"3"}}`, "Content-Type: application/merge-patch+json")
	if a.at("data.b") != "3" || a.at("data.a") != "2" {
		t.Errorf("merged: %v", a)
	}
	a = s.want(200, "PATCH", one, `{"data":{"b":null}}`, "Content-Type: application/strategic-merge-patch+json")
	if a.at("data.b") != nil {
		t.Errorf("strategic: %v", a)
	}
	a = s.want(200, "PATCH", one, `[{"op":"replace","path":"/data/a","value":"9"}]`, "Content-Type: application/json-patch+json")
	if a.at("data.a") != "9" {
		t.Errorf("json patch: %v", a)
	}
	s.wantStatus(415, "UnsupportedMediaType", "application/json-patch+json", "PATCH", one, `{}`, "Content-Type: application/json")
	s.wantStatus(415, "UnsupportedMediaType", "accepted media types", "POST", all, `x`, "Content-Type: text/plain")
	s.wantStatus(400, "BadRequest", "fieldManager is required", "PATCH", one, `{}`, "Content-Type: application/apply-patch+yaml")
	s.wantStatus(406, "NotAcceptable", "application/json", "GET", one, "", "Accept: text/html")
	s.wantStatus(405, "MethodNotAllowed", "update is not supported", "PUT", all, webConfig)

	a = s.want(200, "DELETE", one+"?dryRun=All", "")
	if a.at("status") != "Success" {
		t.Errorf("dry run: %v", a)
	}
	a = s.want(200, "DELETE", one, `{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}`)
	if a.at("status") != "Success" || a.at("details.kind") != "configmaps" || a.at("details.name") != "web" || a.at("details.uid") == nil {
		t.Errorf("deleted: %v", a)
	}
	s.wantStatus(404, "NotFound", `configmaps "web" not found`, "DELETE", one, "")

	// A body in YAML, and an answer in YAML.
	a = s.want(201, "POST", all, "metadata:\n  name: web\ndata:\n  a: b\n", "Content-Type: application/yaml", "Accept: application/yaml")
	if !strings.Contains(string(a.body), "\nkind: ConfigMap\n") {
		t.Errorf("YAML: %v", a)
	}
	s.want(201, "POST", all, strings.Replace(webConfig, `"web"`, `"other"`, 1))
	a = s.want(200, "DELETE", all+"?labelSelector=app%3Dweb", "")
	if a.at("kind") != "ConfigMapList" || a.at("items.0.metadata.name") != "other" {
		t.Errorf("collection: %v", a)
	}
	if a := s.want(200, "GET", all, ""); len(a.at("items").([]any)) != 1 {
		t.Errorf("left: %v", a)
	}
}

// TestFaults holds that what is wrong with an object comes as Kubernetes' clients
// print it best, and what is wrong with a request as that.
func TestFaults(t *testing.T) {
	s := start(t)
	const all = "/api/v1/namespaces/default/configmaps"
	a := s.wantStatus(422, "Invalid", `ConfigMap "No!" is invalid`, "POST", all, strings.Replace(webConfig, `"web"`, `"No!"`, 1))
	if a.at("details.kind") != "ConfigMap" || a.at("details.causes.0.field") != "metadata.name" {
		t.Errorf("%v", a)
	}
	unknown := strings.Replace(webConfig, `"data"`, `"datta":{},"data"`, 1)
	s.wantStatus(422, "Invalid", "did you mean data?", "POST", all+"?fieldValidation=Strict", unknown)
	a = s.want(201, "POST", all+"?dryRun=All", unknown)
	if got := a.header.Get("Warning"); got != `299 - "unknown field \"datta\""` {
		t.Errorf("warning %s", got)
	}
	a = s.want(201, "POST", all+"?dryRun=All&fieldValidation=Ignore", unknown)
	if got := a.header.Get("Warning"); got != "" || a.at("datta") != nil {
		t.Errorf("ignored: %s %v", got, a)
	}
	s.wantStatus(400, "BadRequest", "the namespace of the provided object does not match", "POST", all, strings.Replace(webConfig, `"name"`, `"namespace":"other","name"`, 1))
	s.wantStatus(400, "BadRequest", "does not match the name on the URL", "PUT", all+"/other", webConfig)
	s.wantStatus(400, "BadRequest", "the URL is for a ConfigMap", "POST", all, strings.Replace(webConfig, `"ConfigMap"`, `"Secret"`, 1))
	s.wantStatus(400, "BadRequest", "cannot be read", "POST", all, "{")
	s.wantStatus(400, "BadRequest", "fieldSelector", "GET", all+"?fieldSelector=data.a%3D1", "")
	s.wantStatus(400, "BadRequest", "labelSelector", "GET", all+"?labelSelector=%2B%2B", "")
	s.wantStatus(404, "NotFound", "could not find the requested resource", "GET", "/api/v1/confgmaps", "")
	s.wantStatus(404, "NotFound", "could not find the requested resource", "GET", "/api/v1/namespaces/default/nodes", "")
	s.wantStatus(404, "NotFound", "could not find the requested resource", "GET", "/apis/apps/v1/namespaces/default/daemonsets/x/scale", "")
	s.wantStatus(404, "NotFound", "could not find the requested resource", "GET", "/else", "")
}

func TestWhoMayCall(t *testing.T) {
	s := start(t)
	for _, path := range []string{"/api/v1/pods", "/apis", "/openapi/v3", "/api/v1/namespaces/default/pods/web/log"} {
		if a := s.request(s.nobody, "GET", path, ""); a.code != 401 || a.at("reason") != "Unauthorized" {
			t.Errorf("a stranger at %s: %v", path, a)
		}
	}
	for _, path := range []string{"/api/v1/pods", "/api/v1/namespaces/default/pods/web/log"} {
		if a := s.request(s.node, "GET", path, ""); a.code != 403 || a.at("reason") != "Forbidden" {
			t.Errorf("a node at %s: %v", path, a)
		}
	}
	for _, path := range []string{"/version", "/healthz", "/livez", "/readyz?verbose"} {
		if a := s.request(s.nobody, "GET", path, ""); a.code != 200 {
			t.Errorf("a stranger at %s: %v", path, a)
		}
	}
	s.wantStatus(403, "Forbidden", "bob may not list pods", "GET", "/api/v1/pods", "", "Impersonate-User: bob")
	s.wantStatus(400, "BadRequest", "Impersonate-User", "GET", "/api/v1/pods", "", "Impersonate-Group: system:masters")
}
