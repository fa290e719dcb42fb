package kube_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestImpersonation: who acts as somebody else has that one's rights and no others, and
// needs the right for each thing that he says of him.
func TestImpersonation(t *testing.T) {
	s := start(t)
	const pods = "/api/v1/namespaces/default/pods"
	binding := func(name, role, subject string) {
		s.want(201, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"`+name+`"},
			"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"`+role+`"},"subjects":[`+subject+`]}`)
	}
	role := func(name, rules string) {
		s.want(201, "POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"`+name+`"},"rules":[`+rules+`]}`)
	}
	user := func(name string) string {
		return `{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"` + name + `"}`
	}
	group := func(name string) string {
		return `{"apiGroup":"rbac.authorization.k8s.io","kind":"Group","name":"` + name + `"}`
	}
	role("looks", `{"verbs":["get","list"],"apiGroups":[""],"resources":["pods"]}`)
	binding("dev-looks", "looks", group("dev"))
	role("acts", `{"verbs":["impersonate"],"apiGroups":[""],"resources":["users"],"resourceNames":["jane"]},
		{"verbs":["impersonate"],"apiGroups":[""],"resources":["groups"],"resourceNames":["dev"]},
		{"verbs":["impersonate"],"apiGroups":["authentication.k8s.io"],"resources":["userextras/scopes"],"resourceNames":["view"]}`)
	binding("helper-acts", "acts", user("helper"))

	// An administrator may act as anybody, and has no more than he has then.
	s.wantStatus(403, "Forbidden", `jane may not list pods`, "GET", pods, "", "Impersonate-User: jane")
	s.want(200, "GET", pods, "", "Impersonate-User: jane", "Impersonate-Group: dev")
	s.wantStatus(403, "Forbidden", `may not list secrets`, "GET", "/api/v1/namespaces/default/secrets", "", "Impersonate-User: jane", "Impersonate-Group: dev")
	s.want(200, "GET", "/api/v1/secrets", "", "Impersonate-User: jane", "Impersonate-Group: system:masters")
	s.wantStatus(400, "BadRequest", "belong to one user", "GET", pods, "", "Impersonate-Group: dev")
	s.wantStatus(400, "BadRequest", "not a header", "GET", pods, "", "Impersonate-User: jane", "Impersonate-Else: x")
	s.wantStatus(403, "Forbidden", "system:serviceaccount:default:web may not", "GET", pods, "", "Impersonate-User: system:serviceaccount:default:web")
	s.wantStatus(400, "BadRequest", "NAMESPACE:NAME", "GET", pods, "", "Impersonate-User: system:serviceaccount:web")
	// Nor does he get a node's rights by its name.
	s.wantStatus(403, "Forbidden", "system:node:n1 may not", "GET", "/api/v1/nodes/n1", "", "Impersonate-User: system:node:n1", "Impersonate-Group: system:nodes")

	// helper may, as jane of dev alone. As an administrator acts as helper, that is two
	// steps, which is one too many: so helper needs a certificate of his own.
	helper := s.user("helper")
	as := func(code int, text string, headers ...string) {
		t.Helper()
		if a := s.request(helper, "GET", pods, "", headers...); a.code != code || !strings.Contains(string(a.body), text) {
			t.Errorf("%v: %v, want %d with %q", headers, a, code, text)
		}
	}
	as(403, "helper may not list pods")
	as(200, "", "Impersonate-User: jane", "Impersonate-Group: dev")
	as(200, "", "Impersonate-User: jane", "Impersonate-Group: dev", "Impersonate-Extra-Scopes: view")
	as(403, "helper may not impersonate userextras.authentication.k8s.io/scopes all", "Impersonate-User: jane", "Impersonate-Group: dev", "Impersonate-Extra-Scopes: all")
	as(403, "helper may not impersonate groups system:masters", "Impersonate-User: jane", "Impersonate-Group: system:masters")
	as(403, "helper may not impersonate users bob", "Impersonate-User: bob")
	as(403, "helper may not impersonate uids", "Impersonate-User: jane", "Impersonate-Uid: 7")
	if a := s.request(s.node, "GET", pods, "", "Impersonate-User: jane"); a.code != 403 {
		t.Errorf("a node acts as somebody: %v", a)
	}
	if a := s.request(s.nobody, "GET", pods, "", "Impersonate-User: jane"); a.code != 401 {
		t.Errorf("a stranger acts as somebody: %v", a)
	}

	// A stream ends with the right to act.
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	role("watches", `{"verbs":["watch"],"apiGroups":[""],"resources":["pods"]}`)
	binding("dev-watches", "watches", group("dev"))
	req, err := http.NewRequestWithContext(ctx, "GET", s.url+pods+"?watch=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Impersonate-User", "jane")
	req.Header.Set("Impersonate-Group", "dev")
	resp, err := helper.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	defer resp.Body.Close()
	s.want(200, "DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/helper-acts", "")
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
	}
	if ctx.Err() != nil {
		t.Error("the watch goes on")
	}
}

// TestDiscoveryDocuments: a program that knows nothing but the documents checks a token
// with them. Service accounts may read them, strangers and people without a role may not.
func TestDiscoveryDocuments(t *testing.T) {
	s := start(t)
	s.want(201, "POST", "/api/v1/namespaces/default/serviceaccounts", `{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"web"}}`)
	token := s.want(201, "POST", "/api/v1/namespaces/default/serviceaccounts/web/token", `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`).at("status.token").(string)
	get := func(path string) answer {
		t.Helper()
		a := s.request(s.bearer(token), "GET", path, "")
		if a.code != 200 {
			t.Fatalf("%s: %v", path, a)
		}
		return a
	}
	config := get("/.well-known/openid-configuration")
	issuer, keysAt := config.at("issuer").(string), config.at("jwks_uri").(string)
	keys := get(strings.TrimPrefix(keysAt, issuer))
	if keys.header.Get("Content-Type") != "application/jwk-set+json" {
		t.Errorf("headers are %v", keys.header)
	}
	var set struct {
		Keys []struct{ Kid, X, Y, Crv, Kty string }
	}
	if err := json.Unmarshal(keys.body, &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("%v, %s", err, keys.body)
	}
	x, _ := base64.RawURLEncoding.DecodeString(set.Keys[0].X)
	y, _ := base64.RawURLEncoding.DecodeString(set.Keys[0].Y)
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
	if err != nil {
		t.Fatal(err)
	}
	// The harness has its own time, in which the token is good.
	parsed, err := jwt.NewParser(jwt.WithIssuer(issuer), jwt.WithValidMethods([]string{"ES256"}), jwt.WithTimeFunc(func() time.Time { return *s.now.Load() })).Parse(token, func(token *jwt.Token) (any, error) {
		if token.Header["kid"] != set.Keys[0].Kid {
			t.Errorf("the token is of key %v", token.Header["kid"])
		}
		return public, nil
	})
	if err != nil || !parsed.Valid {
		t.Errorf("%v", err)
	}
	for _, path := range []string{"/.well-known/openid-configuration", "/openid/v1/jwks"} {
		if a := s.request(s.nobody, "GET", path, ""); a.code != 401 {
			t.Errorf("a stranger at %s: %v", path, a)
		}
		s.wantStatus(403, "Forbidden", "jane may not get "+path, "GET", path, "", "Impersonate-User: jane")
		s.want(200, "GET", path, "")
	}
}
