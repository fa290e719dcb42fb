package kube_test

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// TestTokens: a token that is asked for in Kubernetes' way, in JSON and in protobuf, is
// somebody's in each review, and opens what it may until its owner is gone.
func TestTokens(t *testing.T) {
	s := start(t)
	const accounts, reviews = "/api/v1/namespaces/default/serviceaccounts", "/apis/authentication.k8s.io/v1/tokenreviews"
	s.want(201, "POST", accounts, `{"metadata":{"name":"web"}}`)

	a := s.want(201, "POST", accounts+"/web/token", `{"spec":{"expirationSeconds":7200}}`)
	token, _ := a.at("status.token").(string)
	if a.at("kind") != "TokenRequest" || a.at("metadata.name") != "web" || a.at("metadata.namespace") != "default" || strings.Count(token, ".") != 2 ||
		a.at("status.expirationTimestamp") != "2026-01-02T05:04:05Z" {
		t.Fatalf("token request: %v", a)
	}
	seconds := int64(3600)
	wish := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	a = s.want(201, "POST", accounts+"/web/token", inEnvelope(t, "authentication.k8s.io/v1", "TokenRequest", wish), "Content-Type: "+protobuf)
	if a.at("status.expirationTimestamp") != "2026-01-02T04:04:05Z" {
		t.Errorf("in protobuf: %v", a)
	}
	s.wantStatus(404, "NotFound", "not found", "POST", accounts+"/none/token", `{}`)
	s.wantStatus(400, "BadRequest", "10m0s at least", "POST", accounts+"/web/token", `{"spec":{"expirationSeconds":60}}`)
	s.wantStatus(405, "MethodNotAllowed", "", "GET", accounts+"/web/token", "")
	if a := s.want(200, "GET", "/api/v1", ""); !strings.Contains(string(a.body), `{"name":"serviceaccounts/token","singularName":"","namespaced":true,"group":"authentication.k8s.io","version":"v1","kind":"TokenRequest","verbs":["create"]}`) {
		t.Errorf("discovery: %v", a)
	}

	a = s.want(201, "POST", reviews, `{"spec":{"token":"`+token+`"}}`)
	if a.at("status.authenticated") != true || a.at("status.user.username") != "system:serviceaccount:default:web" || a.at("status.user.uid") == nil ||
		a.at("status.user.groups.1") != "system:serviceaccounts:default" || a.at("status.audiences.0") != "https://kubernetes.default.svc.cluster.local" {
		t.Errorf("review: %v", a)
	}
	if a := s.want(201, "POST", reviews, `{"spec":{"token":"`+token+`","audiences":["vault"]}}`); a.at("status.authenticated") == true || a.at("status.error") == nil {
		t.Errorf("review for another audience: %v", a)
	}

	as := func(code int, method, path, body, text string) {
		t.Helper()
		if a := s.request(s.nobody, method, path, body, "Authorization: Bearer "+token); a.code != code || !strings.Contains(string(a.body), text) {
			t.Errorf("%s %s with the token: %v, want %d with %q", method, path, a, code, text)
		}
	}
	as(201, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", `{}`, "system:serviceaccount:default:web")
	as(200, "GET", "/api/v1", "", "serviceaccounts/token")
	as(200, "GET", "/openapi/v3", "", "/openapi/v3/apis/apps/v1")
	as(403, "GET", "/api/v1/namespaces/default/secrets", "", "Forbidden")
	as(403, "POST", accounts+"/web/token", `{}`, "Forbidden")
	as(403, "POST", reviews, `{"spec":{"token":"x"}}`, "Forbidden")
	as(201, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", `{"spec":{"resourceAttributes":{"verb":"get","resource":"pods"}}}`, `"allowed":false`)

	s.want(200, "DELETE", accounts+"/web", "")
	as(401, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", `{}`, "has been deleted")
}
