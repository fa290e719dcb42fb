package kube_test

import (
	"slices"
	"strings"
	"testing"
)

// find returns the item of a list whose field has a value.
func find(list any, field, value string) map[string]any {
	items, _ := list.([]any)
	for _, item := range items {
		if m, ok := item.(map[string]any); ok && m[field] == value {
			return m
		}
	}
	return nil
}

func TestLegacyDiscovery(t *testing.T) {
	s := start(t)
	if a := s.want(200, "GET", "/api", ""); a.at("kind") != "APIVersions" || a.at("versions.0") != "v1" {
		t.Errorf("%v", a)
	}
	a := s.want(200, "GET", "/apis", "")
	group := find(a.at("groups"), "name", "autoscaling")
	if a.at("kind") != "APIGroupList" || group == nil || group["preferredVersion"].(map[string]any)["version"] != "v2" {
		t.Errorf("%v", a)
	}
	if a := s.want(200, "GET", "/apis/apps", ""); a.at("kind") != "APIGroup" || a.at("preferredVersion.groupVersion") != "apps/v1" {
		t.Errorf("%v", a)
	}
	a = s.want(200, "GET", "/api/v1", "")
	if pods := find(a.at("resources"), "name", "pods"); pods == nil || pods["singularName"] != "pod" || pods["namespaced"] != true ||
		!slices.Contains(pods["shortNames"].([]any), any("po")) || !slices.Contains(pods["categories"].([]any), any("all")) {
		t.Errorf("pods: %v", pods)
	}
	// Without these words drain deletes what a budget protects.
	if e := find(a.at("resources"), "name", "pods/eviction"); e == nil || e["kind"] != "Eviction" || e["group"] != "policy" || e["version"] != "v1" {
		t.Errorf("eviction: %v", e)
	}
	a = s.want(200, "GET", "/apis/apps/v1", "")
	if scale := find(a.at("resources"), "name", "deployments/scale"); scale == nil || scale["kind"] != "Scale" || scale["group"] != "autoscaling" || scale["version"] != "v1" {
		t.Errorf("scale: %v", scale)
	}
	if e := find(s.want(200, "GET", "/apis/authorization.k8s.io/v1", "").at("resources"), "name", "selfsubjectaccessreviews"); e == nil {
		t.Error("no reviews")
	}
	for _, path := range []string{"/apis/nothing", "/apis/apps/v2", "/api/v2", "/openapi/v2"} {
		s.want(404, "GET", path, "")
	}
}

func TestAggregatedDiscovery(t *testing.T) {
	s := start(t)
	for _, v := range []string{"v2", "v2beta1"} {
		accept := "Accept: application/json;g=apidiscovery.k8s.io;v=" + v + ";as=APIGroupDiscoveryList,application/json"
		a := s.want(200, "GET", "/apis", "", accept)
		if a.at("kind") != "APIGroupDiscoveryList" || a.at("apiVersion") != "apidiscovery.k8s.io/"+v || a.header.Get("Vary") != "Accept" {
			t.Errorf("%s: %v %v", v, a.header, a)
		}
		if got := a.header.Get("Content-Type"); got != "application/json;g=apidiscovery.k8s.io;v="+v+";as=APIGroupDiscoveryList" {
			t.Errorf("%s: content type %s", v, got)
		}
		apps := slices.IndexFunc(a.at("items").([]any), func(item any) bool {
			return item.(map[string]any)["metadata"].(map[string]any)["name"] == "apps"
		})
		if apps < 0 {
			t.Fatalf("%s: no apps in %v", v, a)
		}
		etag := a.header.Get("ETag")
		if b := s.want(304, "GET", "/apis", "", accept, "If-None-Match: "+etag); len(b.body) != 0 || etag == "" {
			t.Errorf("%s: %s %v", v, etag, b)
		}
		core := s.want(200, "GET", "/api", "", accept)
		pods := find(core.at("items.0.versions.0.resources"), "resource", "pods")
		if core.at("items.1") != nil || pods == nil || pods["responseKind"].(map[string]any)["kind"] != "Pod" || pods["scope"] != "Namespaced" {
			t.Fatalf("%s: %v", v, pods)
		}
		if e := find(pods["subresources"], "subresource", "eviction"); e == nil || e["responseKind"].(map[string]any)["group"] != "policy" {
			t.Errorf("%s: eviction: %v", v, e)
		}
		if core.header.Get("ETag") == etag {
			t.Errorf("%s: /api and /apis have one ETag", v)
		}
	}
}

func TestVersionAndHealth(t *testing.T) {
	s := start(t)
	if a := s.want(200, "GET", "/version", ""); a.at("gitVersion") != "v1.37.2+holdfast.0-test" || a.at("minor") != "37" {
		t.Errorf("%v", a)
	}
	if a := s.want(200, "GET", "/readyz?verbose", ""); string(a.body) != "[+]ping ok\n[+]store ok\nreadyz check passed" {
		t.Errorf("%s", a.body)
	}
	if a := s.want(200, "GET", "/livez", ""); string(a.body) != "ok" {
		t.Errorf("%s", a.body)
	}
}

func TestReviews(t *testing.T) {
	s := start(t)
	const authz, authn = "/apis/authorization.k8s.io/v1/", "/apis/authentication.k8s.io/v1/"
	ask := `{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{"resourceAttributes":{"verb":"create","resource":"pods"}}}`
	if a := s.want(201, "POST", authz+"selfsubjectaccessreviews", ask); a.at("status.allowed") != true || a.at("kind") != "SelfSubjectAccessReview" {
		t.Errorf("%v", a)
	}
	if a := s.request(s.node, "POST", authz+"selfsubjectaccessreviews", ask); a.at("status.allowed") != false || !strings.Contains(a.at("status.reason").(string), "n1 may not") {
		t.Errorf("%v", a)
	}
	if a := s.want(201, "POST", authz+"selfsubjectrulesreviews", `{"spec":{"namespace":"default"}}`); a.at("status.resourceRules.2.verbs.0") != "*" {
		t.Errorf("%v", a)
	}
	if a := s.request(s.node, "POST", authz+"selfsubjectrulesreviews", `{"spec":{"namespace":"default"}}`); a.at("status.resourceRules.0.verbs.0") != "create" {
		t.Errorf("%v", a)
	}
	other := `{"spec":{"user":"bob","groups":["GROUP"],"resourceAttributes":{"verb":"create","resource":"pods"}}}`
	if a := s.want(201, "POST", authz+"subjectaccessreviews", strings.Replace(other, "GROUP", "system:masters", 1)); a.at("status.allowed") != true {
		t.Errorf("%v", a)
	}
	if a := s.want(201, "POST", authz+"subjectaccessreviews", strings.Replace(other, "GROUP", "dev", 1)); a.at("status.allowed") != false || !strings.Contains(a.at("status.reason").(string), "no role allows it") {
		t.Errorf("%v", a)
	}
	if a := s.request(s.node, "POST", authz+"subjectaccessreviews", other); a.code != 403 {
		t.Errorf("%v", a)
	}
	if a := s.want(201, "POST", authn+"selfsubjectreviews", `{}`); a.at("status.userInfo.username") != "alice" || a.at("status.userInfo.groups.0") != "system:masters" {
		t.Errorf("%v", a)
	}
	if a := s.want(201, "POST", authn+"tokenreviews", `{"spec":{"token":"x"}}`); a.at("status.authenticated") == true || a.at("status.error") == nil {
		t.Errorf("%v", a)
	}
	s.wantStatus(400, "BadRequest", "exactly one of", "POST", authz+"selfsubjectaccessreviews", `{}`)
}
