package apiserver

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// clock is a time that a test sets.
type clock struct{ atomic.Pointer[time.Time] }

func newClock() *clock {
	c := &clock{}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c.Store(&now)
	return c
}

func (c *clock) pass(d time.Duration) {
	now := c.Load().Add(d)
	c.Store(&now)
}

func serviceAccount(name string) *corev1.ServiceAccount {
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "uid-sa-1"}}
	object.Default(sa)
	return sa
}

func (c *cluster) access(peer string, id pki.Identity) holdfastv1connect.AccessServiceClient {
	return holdfastv1connect.NewAccessServiceClient(c.client(peer, id))
}

// TestServiceAccountTokens: a token that one peer has issued is good on every other, as
// who it says, until it expires or what it is bound to is gone.
func TestServiceAccountTokens(t *testing.T) {
	now := newClock()
	c := newCluster(t, 2, func(cfg *Config) { cfg.Now = func() time.Time { return *now.Load() } })
	ctx := t.Context()
	web := boundPod("web-1", "n1")
	web.Spec.ServiceAccountName = "web"
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "uid-n1"}}
	c.put(serviceAccount("web"), web, node)
	admin := c.access("peer-1", alice)
	issue := func(req *holdfastv1.IssueTokenRequest) string {
		t.Helper()
		resp, err := admin.IssueToken(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetToken()
	}
	review := func(token string, audiences ...string) *holdfastv1.ReviewTokenResponse {
		t.Helper()
		resp, err := c.access("peer-2", alice).ReviewToken(ctx, &holdfastv1.ReviewTokenRequest{Token: token, Audiences: audiences})
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	refused := func(token, why string, audiences ...string) {
		t.Helper()
		if resp := review(token, audiences...); resp.GetAuthenticated() || !strings.Contains(resp.GetReason(), why) {
			t.Errorf("review: %v, want it refused: %s", resp, why)
		}
	}
	plain := issue(&holdfastv1.IssueTokenRequest{ServiceAccount: "web"})
	bound := issue(&holdfastv1.IssueTokenRequest{ServiceAccount: "web", Binding: &holdfastv1.TokenBinding{Kind: "Pod", Name: "web-1"}, Lifetime: durationpb.New(48 * time.Hour)})
	vault := issue(&holdfastv1.IssueTokenRequest{ServiceAccount: "web", Audiences: []string{"vault"}})

	who := review(bound)
	if !who.GetAuthenticated() || who.GetName() != "system:serviceaccount:default:web" || who.GetUid() != "uid-sa-1" ||
		!slices.Equal(who.GetGroups(), []string{"system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"}) ||
		!slices.Equal(who.GetAudiences(), []string{pki.ServiceAccountIssuer}) {
		t.Errorf("review: %v", who)
	}
	for name, want := range map[string]string{
		extraPodName: "web-1", extraPodUID: "uid-web-1", extraNodeName: "n1", extraNodeUID: "uid-n1", extraCredential: "JTI=",
	} {
		if got := who.GetExtra()[name].GetValues(); len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("%s is %v, want %s", name, got, want)
		}
	}
	refused(vault, "is not for")
	if resp := review(vault, "vault", "other"); !resp.GetAuthenticated() || !slices.Equal(resp.GetAudiences(), []string{"vault"}) {
		t.Errorf("review for vault: %v", resp)
	}
	refused("x.y.z", "did not sign it")

	now.pass(2 * time.Hour)
	refused(plain, "it expired on 2026-01-02T04:04:05Z")
	if !review(bound).GetAuthenticated() {
		t.Error("the bound token is refused before its time")
	}
	// Deleted, but with time to stop: the token is good until a minute after that.
	stopping := web.DeepCopy()
	stopping.DeletionTimestamp = &metav1.Time{Time: now.Load().Add(30 * time.Second)}
	c.put(stopping)
	now.pass(89 * time.Second)
	if !review(bound).GetAuthenticated() {
		t.Error("the token of a pod that is still stopping is refused")
	}
	now.pass(2 * time.Second)
	refused(bound, "Pod default/web-1 has been deleted")
	c.put(web)
	again := issue(&holdfastv1.IssueTokenRequest{ServiceAccount: "web", Binding: &holdfastv1.TokenBinding{Kind: "Pod", Name: "web-1"}})
	if !review(again).GetAuthenticated() {
		t.Error("a new token is refused")
	}
	other := web.DeepCopy()
	other.UID = "uid-later"
	c.put(other)
	refused(again, "Pod default/web-1 has been deleted") // another one of that name
	c.put(web)
	c.remove(serviceAccount("web"))
	refused(again, "ServiceAccount default/web has been deleted")
}

// TestTokenRequests: who gets tokens, and for what.
func TestTokenRequests(t *testing.T) {
	c := newCluster(t, 1)
	web := boundPod("web-1", "n1")
	web.Spec.ServiceAccountName = "web"
	plain := boundPod("plain", "n1") // runs as the default one
	going := boundPod("going", "n1")
	going.Spec.ServiceAccountName = "web"
	going.DeletionTimestamp = &metav1.Time{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	c.put(serviceAccount("web"), serviceAccount("default"), web, plain, going)
	node := func(name string) pki.Identity {
		return pki.Identity{Cluster: testCluster, Role: pki.RoleNode, Name: name}
	}
	pod := func(name string) *holdfastv1.TokenBinding { return &holdfastv1.TokenBinding{Kind: "Pod", Name: name} }
	sa := pki.Identity{Cluster: testCluster, Role: roleServiceAccount, Name: "default:web"}
	for name, test := range map[string]struct {
		who  pki.Identity
		req  *holdfastv1.IssueTokenRequest
		code connect.Code
		text string
	}{
		"nobody's":            {alice, &holdfastv1.IssueTokenRequest{}, connect.CodeInvalidArgument, "service_account"},
		"of none":             {alice, &holdfastv1.IssueTokenRequest{ServiceAccount: "none"}, connect.CodeNotFound, "ServiceAccount default/none not found"},
		"too short":           {alice, &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Lifetime: durationpb.New(time.Minute)}, connect.CodeInvalidArgument, "10m0s at least"},
		"for an empty one":    {alice, &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Audiences: []string{""}}, connect.CodeInvalidArgument, "audiences"},
		"bound to a kind":     {alice, &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Binding: &holdfastv1.TokenBinding{Kind: "Job", Name: "x"}}, connect.CodeInvalidArgument, "a Pod, a Secret or a Node"},
		"bound to no name":    {alice, &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Binding: &holdfastv1.TokenBinding{Kind: "Pod"}}, connect.CodeInvalidArgument, "binding.name"},
		"bound to no pod":     {alice, &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Binding: pod("none")}, connect.CodeNotFound, "Pod default/none not found"},
		"bound to a going":    {alice, &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Binding: pod("going")}, connect.CodeFailedPrecondition, "being deleted"},
		"another uid":         {alice, &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Binding: &holdfastv1.TokenBinding{Kind: "Pod", Name: "web-1", Uid: "x"}}, connect.CodeAborted, "uid"},
		"another's pod":       {alice, &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Binding: pod("plain")}, connect.CodeInvalidArgument, "runs as"},
		"a node's own":        {node("n1"), &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Binding: pod("web-1")}, 0, ""},
		"the default one":     {node("n1"), &holdfastv1.IssueTokenRequest{ServiceAccount: "default", Binding: pod("plain")}, 0, ""},
		"a node's, unbound":   {node("n1"), &holdfastv1.IssueTokenRequest{ServiceAccount: "web"}, connect.CodePermissionDenied, "bound to its pods"},
		"another node's":      {node("n2"), &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Binding: pod("web-1")}, connect.CodePermissionDenied, "does not run on node n2"},
		"a service account's": {sa, &holdfastv1.IssueTokenRequest{ServiceAccount: "web"}, connect.CodePermissionDenied, ""},
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := c.access("peer-1", test.who).IssueToken(t.Context(), test.req)
			if test.text == "" && test.code == 0 {
				if err != nil || resp.GetToken() == "" {
					t.Fatalf("got %v, %v; want a token", resp, err)
				}
				return
			}
			wantCode(t, err, test.code, test.text)
		})
	}
	resp, err := c.access("peer-1", alice).IssueToken(t.Context(), &holdfastv1.IssueTokenRequest{ServiceAccount: "web", Lifetime: durationpb.New(1000 * 24 * time.Hour)})
	if err != nil || len(resp.GetAnswer().GetWarnings()) != 1 {
		t.Errorf("a token for years: %v, %v; want a warning", resp, err)
	}
}

// TestBearer: over a real connection, without a certificate, a token says who calls,
// and why it does not.
func TestBearer(t *testing.T) {
	c := newCluster(t, 1)
	url, as := tlsServer(t, c)
	c.put(serviceAccount("web"))
	ctx := t.Context()
	resp, err := c.access("peer-1", alice).IssueToken(ctx, &holdfastv1.IssueTokenRequest{ServiceAccount: "web"})
	if err != nil {
		t.Fatal(err)
	}
	bearing := func(client *http.Client, authorization string) *connect.Client {
		return connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: withHeader{client.Transport, authorization}}, url))
	}
	stranger := bearing(as(c.ca, "", ""), "Bearer "+resp.GetToken())
	me, err := holdfastv1connect.NewAccessServiceClient(stranger).WhoAmI(ctx, &holdfastv1.WhoAmIRequest{})
	if err != nil || me.GetName() != "system:serviceaccount:default:web" || !slices.Contains(me.GetGroups(), "system:serviceaccounts:default") {
		t.Errorf("who am I: %v, %v", me, err)
	}
	objects := holdfastv1connect.NewObjectServiceClient(stranger)
	if _, err := objects.Kinds(ctx, &holdfastv1.KindsRequest{}); err != nil {
		t.Errorf("kinds: %v", err)
	}
	_, err = objects.List(ctx, &holdfastv1.ListRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "Secret"}})
	wantCode(t, err, connect.CodePermissionDenied, "system:serviceaccount:default:web may not list secrets")

	for authorization, why := range map[string]string{
		"Bearer " + resp.GetToken() + "x": "did not sign it",
		"Bearer ":                         "did not sign it",
		"Basic YTpi":                      "needs a client certificate",
		"":                                "needs a client certificate",
	} {
		_, err := holdfastv1connect.NewAccessServiceClient(bearing(as(c.ca, "", ""), authorization)).WhoAmI(ctx, &holdfastv1.WhoAmIRequest{})
		wantCode(t, err, connect.CodeUnauthenticated, why)
	}
	// A certificate counts more.
	me, err = holdfastv1connect.NewAccessServiceClient(bearing(as(c.ca, pki.RoleAdmin, "alice"), "Bearer "+resp.GetToken())).WhoAmI(ctx, &holdfastv1.WhoAmIRequest{})
	if err != nil || me.GetName() != "alice" {
		t.Errorf("who am I with both: %v, %v; want alice", me, err)
	}
	c.remove(serviceAccount("web"))
	_, err = holdfastv1connect.NewAccessServiceClient(stranger).WhoAmI(ctx, &holdfastv1.WhoAmIRequest{})
	wantCode(t, err, connect.CodeUnauthenticated, "ServiceAccount default/web has been deleted")
}

type withHeader struct {
	http.RoundTripper
	authorization string
}

func (w withHeader) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	if w.authorization != "" {
		req.Header.Set("Authorization", w.authorization)
	}
	return w.RoundTripper.RoundTrip(req)
}

// TestTokenNeedsTheNewestState: a peer that has not yet heard of a service account asks
// before it refuses, and one that has no quorum to ask says that it cannot tell.
func TestTokenNeedsTheNewestState(t *testing.T) {
	c := newCluster(t, 1)
	s := c.servers["peer-1"]
	token := pki.ServiceAccountToken{
		ID: "1", Namespace: "default", ServiceAccount: pki.TokenObject{Name: "web", UID: "uid-sa-1"},
		Audiences: []string{pki.ServiceAccountIssuer}, Issued: s.cfg.Now(), Expires: s.cfg.Now().Add(time.Hour),
	}
	text, err := s.tokens.Sign(token)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.checkServiceToken(ctx, text, token.Audiences)
	wantCode(t, err, connect.CodeUnavailable, "cannot be told")
	_, err = s.checkServiceToken(t.Context(), text, token.Audiences)
	wantCode(t, err, connect.CodeUnauthenticated, "has been deleted")
	c.put(serviceAccount("web"))
	if _, err := s.checkServiceToken(ctx, text, token.Audiences); err != nil {
		t.Errorf("with the account in this peer's state: %v", err)
	}
}
