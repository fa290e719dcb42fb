package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// BenchmarkSecurity is what TLS and authorization take of the CPU of a create, client
// included: the same creates in turn as an administrator without TLS, as one with it, and
// as a user whom a role allows it, in blocks, so that whatever else the machine does
// meets all of them. The goal is a share below 5 % each.
func BenchmarkSecurity(b *testing.B) {
	c := newCluster(b, 1)
	allowed := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "pods"}, Rules: []rbacv1.PolicyRule{rule([]string{"create"}, "", "pods")}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "pods"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "pods"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "bob"}},
	}
	for _, obj := range []object.Object{allowed, binding} {
		object.Default(obj)
		c.put(obj)
	}
	url, as := tlsServer(b, c)
	handler := c.servers["peer-1"].Handler()
	plain := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r.WithContext(withIdentity(r.Context(), alice)))
	}))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	plain.Config.Protocols = protocols
	plain.Start()
	b.Cleanup(plain.Close)
	unencrypted := &http.Transport{Protocols: protocols}
	b.Cleanup(unencrypted.CloseIdleConnections)
	over := func(client *http.Client, url string) holdfastv1connect.ObjectServiceClient {
		return holdfastv1connect.NewObjectServiceClient(connect.NewClient(connecthttp.NewTransport(client, url)))
	}
	ways := []holdfastv1connect.ObjectServiceClient{
		over(&http.Client{Transport: unencrypted}, plain.URL),
		over(as(c.ca, pki.RoleAdmin, "alice"), url),
		over(as(c.ca, pki.RoleUser, "bob"), url),
	}
	var spent [3]time.Duration
	const block = 50
	n := 0
	create := func(client holdfastv1connect.ObjectServiceClient) {
		n++
		if _, err := client.Create(context.Background(), &holdfastv1.CreateRequest{Object: message(b, boundPod(fmt.Sprint("p", n), ""))}); err != nil {
			b.Fatal(err)
		}
	}
	for _, way := range ways { // connections, caches
		create(way)
	}
	b.ResetTimer()
	for range b.N {
		for i, way := range ways {
			begin := cpuTime()
			for range block {
				create(way)
			}
			spent[i] += cpuTime() - begin
		}
	}
	total := float64(spent[0])
	b.ReportMetric(float64(spent[2].Nanoseconds())/float64(b.N*block), "cpu-ns/create")
	b.ReportMetric(100*(float64(spent[1])-total)/float64(spent[1]), "tls-%")
	b.ReportMetric(100*float64(spent[2]-spent[1])/float64(spent[2]), "rbac-%")
}
