package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/apiserver/audit"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// newAuditedCluster is newCluster with an audit for each peer; it returns their
// directories.
func newAuditedCluster(t testing.TB, n int) (*cluster, map[string]string) {
	t.Helper()
	dirs := make(map[string]string)
	c := newCluster(t, n, func(cfg *Config) {
		dirs[cfg.PeerID] = filepath.Join(t.TempDir(), cfg.PeerID)
		log, err := audit.Open(audit.Config{Dir: dirs[cfg.PeerID], Peer: cfg.PeerID})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Audit = log
	})
	return c, dirs
}

// auditLines are the records of a query as text, without what differs each time.
func auditLines(t testing.TB, client holdfastv1connect.AuditServiceClient, req *holdfastv1.AuditServiceQueryRequest) (lines []string, silent []*holdfastv1.AuditSilence) {
	t.Helper()
	stream, err := client.Query(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return lines, silent
		}
		if err != nil {
			t.Fatal(err)
		}
		silent = msg.GetSilent()
		for _, r := range msg.GetRecords() {
			if r.GetVerb() == audit.VerbStart {
				continue
			}
			line := fmt.Sprintf("%s %s %s %s", r.GetUser(), r.GetVerb(), r.GetResource(), strings.Trim(r.GetNamespace()+"/"+r.GetName(), "/"))
			if len(r.GetOthers()) > 0 {
				line += fmt.Sprintf(" %v", r.GetOthers())
			}
			line += ": " + r.GetOutcome()
			if r.GetRevision() > 0 {
				line += fmt.Sprint(" at ", r.GetRevision())
			}
			if r.GetDryRun() {
				line += " (dry run)"
			}
			for _, key := range slices.Sorted(maps.Keys(r.GetAnnotations())) {
				line += fmt.Sprintf(" %s=%s", key, r.GetAnnotations()[key])
			}
			lines = append(lines, line)
		}
	}
}

func (c *cluster) audits(peer string) holdfastv1connect.AuditServiceClient {
	return holdfastv1connect.NewAuditServiceClient(c.client(peer, alice))
}

// TestAudit: who did what, at which revision, with which outcome; what is refused as what
// is done; of reads, those of Secrets; and never a value.
func TestAudit(t *testing.T) {
	c, dirs := newAuditedCluster(t, 1)
	bob := pki.Identity{Cluster: testCluster, Role: pki.RoleUser, Name: "bob", Groups: "dev"}
	admin, dev, nobody := c.objects("peer-1"), holdfastv1connect.NewObjectServiceClient(c.client("peer-1", bob)), holdfastv1connect.NewObjectServiceClient(c.client("peer-1", pki.Identity{}))
	ctx := t.Context()
	do := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(_ any, err error) {
		t.Helper()
		if err == nil {
			t.Fatal("it was not refused")
		}
	}
	json := func(text string) *holdfastv1.Object {
		return &holdfastv1.Object{Encoding: holdfastv1.Encoding_ENCODING_JSON, Data: []byte(text)}
	}
	namespace := json(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","labels":{"pod-security.kubernetes.io/audit":"baseline"}}}`)
	pod := json(`{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"web-","namespace":"shop"},"spec":{"hostNetwork":true,"containers":[{"name":"main","image":"web:1"}]}}`)
	secret := json(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"db"},"stringData":{"password":"` + canary + `"}}`)
	config := json(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"settings"}}`)
	rights := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "reader"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get"}}}}
	object.Default(rights)
	do(admin.Apply(ctx, &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{namespace}}))
	do(admin.Apply(ctx, &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{secret, config}}))
	do(admin.Apply(ctx, &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{secret, config}})) // nothing to do
	do(admin.Create(ctx, &holdfastv1.CreateRequest{Object: message(t, rights), DryRun: true}))
	created, err := admin.Create(ctx, &holdfastv1.CreateRequest{Object: pod})
	do(created, err)
	do(admin.Get(ctx, &holdfastv1.GetRequest{Kind: secretKind, Name: "db"}))
	do(admin.List(ctx, &holdfastv1.ListRequest{Kind: secretKind}))
	do(admin.Get(ctx, &holdfastv1.GetRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "ConfigMap"}, Name: "settings"})) // not recorded
	refused(dev.Get(ctx, &holdfastv1.GetRequest{Kind: secretKind, Name: "db"}))
	refused(dev.Apply(ctx, &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{secret}}))
	refused(nobody.List(ctx, &holdfastv1.ListRequest{Kind: secretKind}))
	refused(admin.Patch(ctx, &holdfastv1.PatchRequest{Kind: secretKind, Name: "db", Type: holdfastv1.PatchType_PATCH_TYPE_JSON, Patch: []byte(`[{"op":"test","path":"/data/password","value":"` + canary + `"}]`)}))
	refused(admin.Create(ctx, &holdfastv1.CreateRequest{Object: json(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"},"data":{"password":"` + canary + `!"}}`)}))
	do(admin.Delete(ctx, &holdfastv1.DeleteRequest{Kind: secretKind, Name: "db"}))
	watch, err := admin.Watch(ctx, &holdfastv1.WatchRequest{Kind: secretKind})
	do(watch, err)
	do(watch.Receive())
	watch.Close()
	do(holdfastv1connect.NewClusterServiceClient(c.client("peer-1", alice)).CreateToken(ctx, &holdfastv1.CreateTokenRequest{Role: holdfastv1.Role_ROLE_NODE}))

	lines, _ := auditLines(t, c.audits("peer-1"), &holdfastv1.AuditServiceQueryRequest{})
	want := []string{
		"alice patch namespaces shop: ok at 1",
		"alice patch secrets default/db [configmaps default/settings]: ok at 2",
		"alice patch secrets default/db [configmaps default/settings]: ok",
		"alice create roles.rbac.authorization.k8s.io default/reader: ok (dry run)",
		"alice create pods shop/" + created.GetObject().GetName() + ": ok at 3 pod-security.kubernetes.io/audit-violations=would violate PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true) pod-security.kubernetes.io/enforce-policy=privileged:latest",
		"alice get secrets default/db: ok",
		"alice list secrets : ok",
		"bob get secrets default/db: permission_denied",
		"bob patch secrets default/db: permission_denied",
		"system:anonymous list  : unauthenticated",
		"alice patch secrets default/db: invalid_argument",
		"alice create  : invalid_argument",
		"alice delete secrets default/db: ok at 4",
		"alice watch secrets : ok",
		"alice createtoken tokens node: ok at 5",
		"alice query  : ok",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("recorded\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	found, _ := auditLines(t, c.audits("peer-1"), &holdfastv1.AuditServiceQueryRequest{User: "bob", Resource: "secrets", Outcome: "refused", Name: "d*"})
	if len(found) != 2 {
		t.Errorf("asked for bob's refusals: %q", found)
	}
	files, err := filepath.Glob(filepath.Join(dirs["peer-1"], "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), canary) {
			t.Errorf("a value is in %s:\n%s", file, data)
		}
	}
}

// TestAuditOfPeers: any peer answers for all; what each has written down of the others
// shows which log was changed; who cannot be asked is named.
func TestAuditOfPeers(t *testing.T) {
	c, dirs := newAuditedCluster(t, 3)
	for i := range 9 {
		peer := fmt.Sprint("peer-", i%3+1)
		if _, err := c.objects(peer).Create(t.Context(), &holdfastv1.CreateRequest{Object: message(t, newSecret(fmt.Sprint("s", i), "x"))}); err != nil {
			t.Fatal(err)
		}
	}
	lines, silent := auditLines(t, c.audits("peer-2"), &holdfastv1.AuditServiceQueryRequest{Verb: "create"})
	if len(lines) != 9 || len(silent) != 0 {
		t.Errorf("%d records, silent %v:\n%s", len(lines), silent, strings.Join(lines, "\n"))
	}
	for _, s := range c.servers {
		s.witnessOnce(context.Background())
		s.witnessOnce(context.Background()) // there is no news in witnesses
	}
	verify := func() map[string]*holdfastv1.AuditVerdict {
		t.Helper()
		resp, err := c.audits("peer-1").Verify(t.Context(), &holdfastv1.AuditServiceVerifyRequest{})
		if err != nil {
			t.Fatal(err)
		}
		verdicts := make(map[string]*holdfastv1.AuditVerdict)
		for _, v := range resp.GetVerdicts() {
			verdicts[v.GetPeer()] = v
		}
		return verdicts
	}
	for peer, v := range verify() {
		if len(v.GetFaults()) > 0 || v.GetWitnesses() != 2 || v.GetUnreachable() != "" {
			t.Errorf("%s: %v", peer, v)
		}
	}
	// The log of one is made anew behind its back, and it begins again with that.
	s := c.servers["peer-3"]
	if err := os.RemoveAll(dirs["peer-3"]); err != nil {
		t.Fatal(err)
	}
	forged, err := audit.Open(audit.Config{Dir: dirs["peer-3"], Peer: "peer-3"})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		forged.Append(audit.Record{User: "alice", Verb: "get", Outcome: "ok"})
	}
	s.cfg.Audit = forged
	verdicts := verify()
	if found := verdicts["peer-3"].GetFaults(); len(found) == 0 || !strings.Contains(found[0], "the log was made anew") {
		t.Errorf("peer-3's log was made anew: %q", found)
	}
	if found := verdicts["peer-1"].GetFaults(); len(found) > 0 {
		t.Errorf("peer-1: %q", found)
	}
	c.setDown("peer-3", true)
	if v := verify()["peer-3"]; v.GetUnreachable() == "" {
		t.Errorf("peer-3 is down: %v", v)
	}
	if _, silent := auditLines(t, c.audits("peer-1"), &holdfastv1.AuditServiceQueryRequest{}); len(silent) != 1 || silent[0].GetPeer() != "peer-3" {
		t.Errorf("silent: %v", silent)
	}
}

// TestAuditThatCannotBeWritten: nobody writes, reads a Secret or gets into a container
// unseen; other reads go on.
func TestAuditThatCannotBeWritten(t *testing.T) {
	c, dirs := newAuditedCluster(t, 1)
	if _, err := c.objects("peer-1").Create(t.Context(), &holdfastv1.CreateRequest{Object: message(t, newSecret("a", "x"))}); err != nil {
		t.Fatal(err)
	}
	// A log whose next file cannot be made: its directory is gone.
	dir := filepath.Join(dirs["peer-1"], "gone")
	log, err := audit.Open(audit.Config{Dir: dir, Peer: "peer-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	s := c.servers["peer-1"]
	s.cfg.Audit = log
	for range 10000 {
		log.Append(audit.Record{Verb: "create", Reason: strings.Repeat("x", 500)})
	}
	client := c.objects("peer-1")
	_, err = client.Create(t.Context(), &holdfastv1.CreateRequest{Object: message(t, newSecret("b", "x"))})
	wantCode(t, err, connect.CodeUnavailable, "cannot record who does what")
	_, err = client.Get(t.Context(), &holdfastv1.GetRequest{Kind: secretKind, Namespace: "default", Name: "a"})
	wantCode(t, err, connect.CodeUnavailable, "cannot record who does what")
	err = s.Authorize(withIdentity(t.Context(), alice), Attributes{Verb: "create", Resource: "pods", Subresource: "exec", Namespace: "default", Name: "web"})
	wantCode(t, err, connect.CodeUnavailable, "cannot record who does what")
	register(t, c.agent("peer-1", "n1"), newNode("n1", "10.1.0.1"))
	if _, err := c.audits("peer-1").Verify(t.Context(), &holdfastv1.AuditServiceVerifyRequest{Local: true}); err != nil {
		t.Errorf("the audit itself: %v", err)
	}
	if _, err = client.List(t.Context(), &holdfastv1.ListRequest{Kind: &holdfastv1.Kind{Version: "v1", Kind: "ConfigMap"}}); err != nil {
		t.Errorf("a read that needs no record: %v", err)
	}
}

// TestAuditOfOtherDialects: what the REST dialect asks for by itself is recorded as well.
func TestAuditOfOtherDialects(t *testing.T) {
	c, _ := newAuditedCluster(t, 1)
	s := c.servers["peer-1"]
	exec := Attributes{Verb: "create", Resource: "pods", Subresource: "exec", Namespace: "default", Name: "web"}
	bob := pki.Identity{Cluster: testCluster, Role: pki.RoleUser, Name: "bob"}
	if err := s.Authorize(withIdentity(t.Context(), alice), exec); err != nil {
		t.Fatal(err)
	}
	if err := s.Authorize(withIdentity(t.Context(), bob), exec); err == nil {
		t.Fatal("bob may")
	}
	if err := s.Authorize(withIdentity(t.Context(), alice), Attributes{Verb: "get", Path: "/version"}); err != nil {
		t.Fatal(err)
	}
	lines, _ := auditLines(t, c.audits("peer-1"), &holdfastv1.AuditServiceQueryRequest{Resource: "pods/exec"})
	if want := []string{"alice create pods/exec default/web: ok", "bob create pods/exec default/web: permission_denied"}; !slices.Equal(lines, want) {
		t.Errorf("%q, want %q", lines, want)
	}
}

// BenchmarkAudit is what a record costs of a create: the same create with and without.
func BenchmarkAudit(b *testing.B) {
	for _, audited := range []bool{false, true} {
		b.Run(fmt.Sprintf("audited=%t", audited), func(b *testing.B) {
			c := newCluster(b, 1, func(cfg *Config) {
				if !audited {
					return
				}
				log, err := audit.Open(audit.Config{Dir: b.TempDir(), Peer: cfg.PeerID})
				if err != nil {
					b.Fatal(err)
				}
				cfg.Audit = log
			})
			client := c.objects("peer-1")
			b.ReportAllocs()
			for n := range b.N {
				if _, err := client.Create(b.Context(), &holdfastv1.CreateRequest{Object: message(b, boundPod(fmt.Sprint("p", n), ""))}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
