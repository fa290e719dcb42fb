package apiserver

import (
	"context"
	"crypto/x509"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

func rule(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
}

func role(name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
	return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Rules: rules}
}

// roleBinding gives the service account default/web a role.
func roleBinding(name, to string) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: to},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: "web", Namespace: "default"}},
	}
}

func settings(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: data}
}

func sent(t *testing.T, obj object.Object) *holdfastv1.Object {
	t.Helper()
	object.Default(obj)
	data, err := object.Encode(obj)
	if err != nil {
		t.Fatal(err)
	}
	return &holdfastv1.Object{Data: data}
}

// TestRoles: over a real connection, the holder of a token may do what roles say, from
// the moment that they say so until they don't, and can give nobody more.
func TestRoles(t *testing.T) {
	c := newCluster(t, 1)
	url, as := tlsServer(t, c)
	c.put(serviceAccount("web"))
	ctx := t.Context()
	resp, err := c.access("peer-1", alice).IssueToken(ctx, &holdfastv1.IssueTokenRequest{ServiceAccount: "web"})
	if err != nil {
		t.Fatal(err)
	}
	bearer := connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: withHeader{as(c.ca, "", "").Transport, "Bearer " + resp.GetToken()}}, url))
	web := holdfastv1connect.NewObjectServiceClient(bearer)
	admin := c.objects("peer-1")
	create := func(obj object.Object) {
		t.Helper()
		if _, err := admin.Create(ctx, &holdfastv1.CreateRequest{Object: sent(t, obj)}); err != nil {
			t.Fatal(err)
		}
	}
	pods, secrets := &holdfastv1.Kind{Version: "v1", Kind: "Pod"}, &holdfastv1.Kind{Version: "v1", Kind: "Secret"}
	list := func(kind *holdfastv1.Kind, namespace string) error {
		_, err := web.List(ctx, &holdfastv1.ListRequest{Kind: kind, Namespace: namespace})
		return err
	}
	refused := func(err error, why string) {
		t.Helper()
		wantCode(t, err, connect.CodePermissionDenied, why)
	}
	allowed := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}

	refused(list(pods, "default"), "system:serviceaccount:default:web may not list pods in namespace default: no role allows it; to allow it: holdfast create role NAME -n default --verb=list --resource=pods")
	create(role("looks", rule([]string{"get", "list", "watch"}, "", "pods", "pods/log")))
	create(roleBinding("web-looks", "looks"))
	allowed(list(pods, "default"))
	refused(list(pods, "other"), "in namespace other")
	refused(list(pods, ""), "may not list pods: no role")
	refused(list(secrets, "default"), "may not list secrets")

	// Each object of an apply, and to make one takes more than to change it.
	create(role("applies", rule([]string{"patch"}, "", "configmaps")))
	create(roleBinding("web-applies", "applies"))
	_, err = web.Apply(ctx, &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{sent(t, settings("a", nil))}})
	refused(err, "may not create configmaps in namespace default")
	create(settings("a", nil))
	_, err = web.Apply(ctx, &holdfastv1.ApplyRequest{Force: true, Objects: []*holdfastv1.Object{sent(t, settings("a", map[string]string{"k": "v"}))}})
	allowed(err)
	_, err = web.Apply(ctx, &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{sent(t, settings("a", nil)), sent(t, roleBinding("more", "looks"))}})
	refused(err, "may not patch rolebindings.rbac.authorization.k8s.io more")

	// Logs and other streams of pods.
	logs := func() error {
		stream, err := holdfastv1connect.NewPodServiceClient(bearer).Logs(ctx, &holdfastv1.LogsRequest{Namespace: "default", Pod: "nobody"})
		if err == nil {
			_, err = stream.Receive()
		}
		return err
	}
	wantCode(t, logs(), connect.CodeNotFound, "nobody")
	exec, err := holdfastv1connect.NewPodServiceClient(bearer).Exec(ctx)
	if err == nil {
		if err = exec.Send(&holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Start{Start: &holdfastv1.ExecStart{Pod: "nobody", Command: []string{"sh"}}}}); err == nil {
			_, err = exec.Receive()
		}
	}
	refused(err, "may not create pods/exec nobody in namespace default")

	// Nobody gives himself more.
	create(role("manages", rule([]string{"get", "create", "update", "patch"}, rbacv1.GroupName, "roles", "rolebindings")))
	create(roleBinding("web-manages", "manages"))
	create(role("all", rule([]string{"*"}, "*", "*")))
	_, err = web.Create(ctx, &holdfastv1.CreateRequest{Object: sent(t, role("mine", rule([]string{"get"}, "", "pods")))})
	allowed(err)
	_, err = web.Create(ctx, &holdfastv1.CreateRequest{Object: sent(t, role("too-much", rule([]string{"get"}, "", "pods", "secrets")))})
	refused(err, "it gives rights that system:serviceaccount:default:web does not have: get secrets")
	_, err = web.Create(ctx, &holdfastv1.CreateRequest{Object: sent(t, roleBinding("web-all", "all"))})
	refused(err, "may not write RoleBinding default/web-all")
	_, err = web.Apply(ctx, &holdfastv1.ApplyRequest{Force: true, Objects: []*holdfastv1.Object{sent(t, role("looks", rule([]string{"delete"}, "", "pods")))}})
	refused(err, "delete pods")

	// A live watch ends with the right.
	watching, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	watch, err := web.Watch(watching, &holdfastv1.WatchRequest{Kind: pods, Namespace: "default"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Receive(); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Delete(ctx, &holdfastv1.DeleteRequest{Kind: &holdfastv1.Kind{Group: rbacv1.GroupName, Version: "v1", Kind: "RoleBinding"}, Namespace: "default", Name: "web-looks"}); err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = watch.Receive()
	}
	refused(err, "may not watch pods in namespace default")
	refused(list(pods, "default"), "may not list pods")
	refused(logs(), "may not get pods/log nobody in namespace default")
}

// TestUsers: a certificate that an administrator issued says a name and groups, which
// roles speak of; nobody else issues one, and none says a name of the system's own.
func TestUsers(t *testing.T) {
	c := newCluster(t, 1)
	ctx := t.Context()
	_, csr, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	issue := func(by pki.Identity, name string, groups ...string) (pki.Identity, error) {
		resp, err := c.access("peer-1", by).IssueCertificate(ctx, &holdfastv1.IssueCertificateRequest{Request: csr, Name: name, Groups: groups, Lifetime: durationpb.New(time.Hour)})
		if err != nil {
			return pki.Identity{}, err
		}
		leaf, err := x509.ParseCertificate(resp.GetChain()[0])
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(leaf.NotAfter); left > time.Hour {
			t.Errorf("good for %v, want an hour", left)
		}
		return pki.IdentityOf(leaf)
	}
	jane, err := issue(alice, "jane", "ops", "dev", "a-group-with-a-long-name")
	if err != nil || jane.Groups != "a-group-with-a-long-name,dev,ops" || jane.Name != "jane" || jane.Role != pki.RoleUser {
		t.Fatalf("%+v, %v", jane, err)
	}
	for name, groups := range map[string][]string{"": nil, "system:admin": nil, "bob": {"system:masters"}, "eve": {"user"}} {
		if id, err := issue(alice, name, groups...); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%q in %q is %+v, %v; want it refused", name, groups, id, err)
		}
	}
	_, err = issue(jane, "bob")
	wantCode(t, err, connect.CodePermissionDenied, "user jane may not call AccessService/IssueCertificate")

	pods := &holdfastv1.ListRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "Pod"}, Namespace: "default"}
	objects := holdfastv1connect.NewObjectServiceClient(c.client("peer-1", jane))
	_, err = objects.List(ctx, pods)
	wantCode(t, err, connect.CodePermissionDenied, "jane may not list pods in namespace default")
	binding := roleBinding("dev", "looks")
	binding.Subjects = []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "dev"}}
	for _, obj := range []object.Object{role("looks", rule([]string{"list"}, "", "pods")), binding} {
		if _, err := c.objects("peer-1").Create(ctx, &holdfastv1.CreateRequest{Object: sent(t, obj)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := objects.List(ctx, pods); err != nil {
		t.Error(err)
	}
	who, err := c.access("peer-1", alice).WhoCan(ctx, &holdfastv1.WhoCanRequest{What: &holdfastv1.CanIRequest{Verb: "list", Resource: "pods", Namespace: "default"}})
	if err != nil || len(who.GetGrants()) != 1 || who.GetGrants()[0].GetName() != "dev" || who.GetGrants()[0].GetBinding() != "RoleBinding default/dev" {
		t.Errorf("who can: %v, %v", who, err)
	}
}

// TestPodStreamsEnd: what Kubernetes' dialect streams from a pod ends with the right to
// it, as what comes by Connect does; by the message that says which pod it is about.
func TestPodStreamsEnd(t *testing.T) {
	c := newCluster(t, 1)
	ctx := withIdentity(t.Context(), pki.User(testCluster, "jane"))
	admin := c.objects("peer-1")
	for _, obj := range []object.Object{
		role("runs", rule([]string{"create"}, "", "pods/exec")),
		&rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "jane-runs"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "runs"},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "jane"}},
		},
	} {
		if _, err := admin.Create(t.Context(), &holdfastv1.CreateRequest{Object: sent(t, obj)}); err != nil {
			t.Fatal(err)
		}
	}
	begun, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		pods := c.servers["peer-1"].Pods()
		ended <- pods.within(ctx, func(ctx context.Context, guard func(proto.Message)) error {
			with := &guarded[holdfastv1.ExecRequest, holdfastv1.ExecResponse]{
				Conversation: oneExec{}, guard: func(req *holdfastv1.ExecRequest) { guard(req) },
			}
			for range 2 { // only the first one says what it is about
				if _, err := with.Receive(); err != nil {
					return err
				}
			}
			close(begun)
			<-ctx.Done()
			return context.Cause(ctx)
		})
	}()
	<-begun
	select {
	case err := <-ended:
		t.Fatalf("ended with the right: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := admin.Delete(t.Context(), &holdfastv1.DeleteRequest{Kind: &holdfastv1.Kind{Group: rbacv1.GroupName, Version: "v1", Kind: "RoleBinding"}, Name: "jane-runs"}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		wantCode(t, err, connect.CodePermissionDenied, "jane may not create pods/exec a in namespace default")
	case <-time.After(20 * time.Second):
		t.Fatal("the stream goes on without the right")
	}
}

// oneExec is a caller of exec.
type oneExec struct{}

func (oneExec) Receive() (*holdfastv1.ExecRequest, error) {
	return &holdfastv1.ExecRequest{Message: &holdfastv1.ExecRequest_Start{Start: &holdfastv1.ExecStart{Pod: "a"}}}, nil
}
func (oneExec) SendHeaders() error                  { return nil }
func (oneExec) Send(*holdfastv1.ExecResponse) error { return nil }
