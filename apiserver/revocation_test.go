package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/pki"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// realNow is for tests in which certificates, which are made by the machine's clock, are
// held against revocations.
func realNow(cfg *Config) { cfg.Now = time.Now }

// over returns a client that shows creds.
func over(t *testing.T, url string, creds *pki.Credentials) *connect.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: creds.ClientTLS(pki.RolePeer, "h2"), ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return connect.NewClient(connecthttp.NewTransport(&http.Client{Transport: transport}, url))
}

// soon is ctx for what has to end within two seconds of a revocation; on a machine
// that is busy with other tests, within some more.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestRevoke: an open stream of who is revoked ends, and whatever he asks then, on the
// connection that he has or on a new one, is refused with the reason; others notice
// nothing. A serial number is one certificate of several.
func TestRevoke(t *testing.T) {
	c := newCluster(t, 1, realNow)
	url, _ := tlsServer(t, c)
	ctx := soon(t)
	pods := &holdfastv1.Kind{Version: "v1", Kind: "Pod"}
	watch := func(conn *connect.Client) holdfastv1connect.ObjectServiceWatchClientStream {
		t.Helper()
		stream, err := holdfastv1connect.NewObjectServiceClient(conn).Watch(ctx, &holdfastv1.WatchRequest{Kind: pods})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Receive(); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	list := func(conn *connect.Client) error {
		_, err := holdfastv1connect.NewObjectServiceClient(conn).List(ctx, &holdfastv1.ListRequest{Kind: pods})
		return err
	}
	bob, carol := credentials(t, c.ca, pki.RoleAdmin, "bob"), over(t, url, credentials(t, c.ca, pki.RoleAdmin, "carol"))
	asBob, other := over(t, url, bob), watch(carol)
	stream := watch(asBob)
	access := c.access("peer-1", alice)
	if _, err := access.Revoke(ctx, &holdfastv1.RevokeRequest{Role: "admin", Name: "bob", Reason: "laptop lost"}); err != nil {
		t.Fatal(err)
	}
	_, err := stream.Receive()
	wantCode(t, err, connect.CodeUnauthenticated, "the certificate of admin bob was revoked by admin/alice at")
	wantCode(t, list(asBob), connect.CodeUnauthenticated, "laptop lost")
	wantCode(t, list(over(t, url, bob)), connect.CodeUnauthenticated, "laptop lost")
	wantCode(t, list(over(t, url, credentials(t, c.ca, pki.RoleAdmin, "bob"))), connect.CodeUnauthenticated, "laptop lost")
	_, err = holdfastv1connect.NewAccessServiceClient(asBob).RenewCertificate(ctx, &holdfastv1.RenewCertificateRequest{})
	wantCode(t, err, connect.CodeUnauthenticated, "laptop lost")

	c.put(boundPod("a", ""))
	if msg, err := other.Receive(); err != nil || len(msg.GetChanges()) != 1 {
		t.Errorf("another's stream: %v, %v", msg, err)
	}
	if err := list(carol); err != nil {
		t.Error(err)
	}

	if _, err := access.Readmit(ctx, &holdfastv1.ReadmitRequest{Role: "admin", Name: "bob"}); err != nil {
		t.Fatal(err)
	}
	if err := list(asBob); err != nil {
		t.Errorf("after he was readmitted: %v", err)
	}
	_, err = access.Readmit(ctx, &holdfastv1.ReadmitRequest{Role: "admin", Name: "bob"})
	wantCode(t, err, connect.CodeNotFound, "not refused")

	stream = watch(asBob)
	second := over(t, url, credentials(t, c.ca, pki.RoleAdmin, "bob"))
	if _, err := access.Revoke(ctx, &holdfastv1.RevokeRequest{Serial: strings.ToUpper(serialOf(bob.Certificate()))}); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Receive()
	wantCode(t, err, connect.CodeUnauthenticated, "serial "+serialOf(bob.Certificate()))
	if err := list(second); err != nil {
		t.Errorf("his other certificate: %v", err)
	}
	got, err := access.ListRevocations(ctx, &holdfastv1.ListRevocationsRequest{})
	if err != nil || len(got.GetRevocations()) != 1 || got.GetRevocations()[0].GetSerial() != serialOf(bob.Certificate()) || got.GetRevocations()[0].GetBy() != "admin/alice" {
		t.Errorf("%v, %v", got, err)
	}

	_, err = access.Revoke(ctx, &holdfastv1.RevokeRequest{Role: "admin", Name: "alice"})
	wantCode(t, err, connect.CodeFailedPrecondition, "made with that certificate")
	_, err = access.Revoke(ctx, &holdfastv1.RevokeRequest{Role: "peer", Name: "peer-1"})
	wantCode(t, err, connect.CodeInvalidArgument, "peer remove")
	_, err = holdfastv1connect.NewAccessServiceClient(over(t, url, credentials(t, c.ca, pki.RoleNode, "n1"))).Revoke(ctx, &holdfastv1.RevokeRequest{Role: "node", Name: "n2"})
	wantCode(t, err, connect.CodePermissionDenied, "for admins")
}

// TestRemoveNode: the agent of a node that is removed is told so, on the stream that it
// has and at the door; with a token it joins again, and what it had before stays refused.
func TestRemoveNode(t *testing.T) {
	c := newCluster(t, 1, realNow)
	url, _ := tlsServer(t, c)
	ctx := soon(t)
	old := over(t, url, credentials(t, c.ca, pki.RoleNode, "n1"))
	agent := agentv1connect.NewAgentServiceClient(old)
	register(t, agent, newNode("n1", "10.1.0.1"))
	stream, err := agent.Desired(ctx, &agentv1.DesiredRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); err != nil {
		t.Fatal(err)
	}
	admin := c.admin("peer-1")
	_, err = admin.RemoveNode(ctx, &holdfastv1.RemoveNodeRequest{Name: "n7"})
	wantCode(t, err, connect.CodeNotFound, "no node is called n7")
	if _, err := admin.RemoveNode(ctx, &holdfastv1.RemoveNodeRequest{Name: "n1", Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = stream.Receive()
	}
	if code := connect.CodeOf(err); code != connect.CodeUnauthenticated && code != connect.CodeFailedPrecondition { // its Node went with it
		t.Errorf("the stream ends with %v", err)
	}
	beat := func(conn *connect.Client) error {
		_, err := agentv1connect.NewAgentServiceClient(conn).Heartbeat(ctx, &agentv1.HeartbeatRequest{BootId: "b"})
		return err
	}
	err = beat(old)
	wantCode(t, err, connect.CodeUnauthenticated, "node n1 was removed from this cluster by admin/alice")
	if infoOf(err).GetReason() != ReasonRevoked {
		t.Errorf("an agent cannot tell from %v that it need not ask again soon", err)
	}

	token := createToken(t, c, holdfastv1.Role_ROLE_NODE, time.Hour)
	key, csr, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.join("peer-1").Join(ctx, &holdfastv1.JoinRequest{Token: token.Credential(), Role: holdfastv1.Role_ROLE_NODE, Name: "n1", Csr: csr, Address: "10.1.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := pki.NewCredentials(key, resp.GetCertificates(), resp.GetCa())
	if err != nil {
		t.Fatal(err)
	}
	if err := beat(over(t, url, again)); err != nil {
		t.Errorf("joined anew: %v", err)
	}
	wantCode(t, beat(old), connect.CodeUnauthenticated, "was removed")
}

// TestRenewCertificate: who has a certificate gets another one of the same identity, as
// long as the first; it can be used, and nobody gets one for somebody else.
func TestRenewCertificate(t *testing.T) {
	c := newCluster(t, 1, realNow)
	url, _ := tlsServer(t, c)
	for _, id := range []pki.Identity{{Cluster: testCluster, Role: pki.RoleNode, Name: "n1"}, pki.User(testCluster, "jane", "dev")} {
		creds, err := c.ca.Issue(id)
		if err != nil {
			t.Fatal(err)
		}
		before := creds.Certificate()
		conn := over(t, url, creds)
		key, csr, err := pki.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		resp, err := holdfastv1connect.NewAccessServiceClient(conn).RenewCertificate(t.Context(), &holdfastv1.RenewCertificateRequest{Request: csr})
		if err != nil {
			t.Fatal(err)
		}
		if err := creds.Set(key, resp.GetChain(), resp.GetCa()); err != nil { // refuses another identity
			t.Fatal(err)
		}
		after := creds.Certificate()
		if was, is := before.NotAfter.Sub(before.NotBefore), after.NotAfter.Sub(after.NotBefore); is < was-time.Minute || is > was+time.Minute || after.SerialNumber.Cmp(before.SerialNumber) == 0 {
			t.Errorf("%s: good for %v, then for %v", id, was, is)
		}
		if _, err := holdfastv1connect.NewAccessServiceClient(over(t, url, creds)).WhoAmI(t.Context(), &holdfastv1.WhoAmIRequest{}); err != nil {
			t.Error(err)
		}
	}
}

// TestTokenUses: a token admits as many machines as it is for, also when they come at
// once; a machine that asks again counts once; and a token that was revoked admits
// nobody. Whoever holds it is told.
func TestTokenUses(t *testing.T) {
	c := newCluster(t, 2)
	node := holdfastv1.Role_ROLE_NODE
	made, err := c.admin("peer-1").CreateToken(t.Context(), &holdfastv1.CreateTokenRequest{Role: node, Uses: 2})
	if err != nil {
		t.Fatal(err)
	}
	token, err := pki.ParseToken(made.GetToken())
	if err != nil || token.ID != made.GetId() {
		t.Fatalf("%v, %v", made, err)
	}
	var group sync.WaitGroup
	requests, errs := make([]*holdfastv1.JoinRequest, 6), make([]error, 6)
	for i := range requests {
		requests[i] = joinRequest(t, token, node, fmt.Sprint("n", i))
		group.Go(func() { _, errs[i] = c.join(fmt.Sprint("peer-", 1+i%2)).Join(t.Context(), requests[i]) })
	}
	group.Wait()
	in := -1
	joined := 0
	for i, err := range errs {
		if err == nil {
			in = i
			joined++
			continue
		}
		wantCode(t, err, connect.CodeUnauthenticated, "the token is used up: 2 of 2 machines have joined with it")
	}
	if joined != 2 {
		t.Fatalf("%d machines have joined with a token for 2", joined)
	}
	if _, err := c.join("peer-1").Join(t.Context(), requests[in]); err != nil {
		t.Errorf("a call that was answered already, again: %v", err)
	}
	stolen := joinRequest(t, token, node, requests[in].GetName()) // the same name, another key
	_, err = c.join("peer-1").Join(t.Context(), stolen)
	wantCode(t, err, connect.CodeUnauthenticated, "used up")

	other := createToken(t, c, node, time.Hour)
	if _, err := c.admin("peer-1").RevokeToken(t.Context(), &holdfastv1.RevokeTokenRequest{Id: other.ID[:8]}); err != nil {
		t.Fatal(err)
	}
	_, err = c.join("peer-1").Join(t.Context(), joinRequest(t, other, node, "n9"))
	wantCode(t, err, connect.CodeUnauthenticated, "the token was revoked by admin/alice at")
	_, err = c.admin("peer-1").RevokeToken(t.Context(), &holdfastv1.RevokeTokenRequest{Id: "aaaaaaaa"})
	wantCode(t, err, connect.CodeNotFound, "no token")
	good := createToken(t, c, holdfastv1.Role_ROLE_PEER, time.Hour)
	_, err = c.join("peer-1").Join(t.Context(), joinRequest(t, good, node, "n9"))
	wantCode(t, err, connect.CodeUnauthenticated, "the token is for a peer, not for a node")

	list, err := c.admin("peer-1").ListTokens(t.Context(), &holdfastv1.ListTokensRequest{})
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]string{}
	for _, info := range list.GetTokens() {
		states[info.GetId()] = fmt.Sprint(info.GetUsed(), "/", info.GetUses(), " ", info.GetState())
		if strings.Contains(info.String(), other.Secret) {
			t.Error("a list shows a secret")
		}
	}
	if states[token.ID] != "2/2 used up" || states[other.ID] != "0/0 revoked" || states[good.ID] != "0/0 " {
		t.Errorf("%v", states)
	}
}

// TestClone: two agents with one certificate are noticed within seconds, whichever peers
// they talk to, and both are refused until somebody readmits the node. An agent that was
// restarted is none, nor is one whose last words come late.
func TestClone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3, realNow)
		raft.WaitLeader(raft.Peers...)
		beat := func(peer, instance string) {
			t.Helper()
			_, err := c.agent(peer, "n1").Heartbeat(t.Context(), &agentv1.HeartbeatRequest{BootId: "boot-" + instance, Instance: instance})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		node := pki.Identity{Cluster: testCluster, Role: pki.RoleNode, Name: "n1"}
		register(t, c.agent("p1", "n1"), newNode("n1", "10.1.0.1"))
		refusal := func() error {
			time.Sleep(2 * time.Second)
			view, err := c.servers["p1"].sync(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return Refusal(view, node, credentials(t, c.ca, pki.RoleNode, "n1").Certificate())
		}
		for i := range 6 { // each but the first one is a restart
			for range 3 {
				beat("p1", fmt.Sprint("start-", i))
			}
		}
		for range 10 { // out of the buffers of a connection that was cut
			for _, instance := range []string{"start-4", "start-5"} {
				if _, err := c.agent("p1", "n1").Heartbeat(t.Context(), &agentv1.HeartbeatRequest{Instance: instance}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := refusal(); err != nil {
			t.Fatalf("restarts: %v", err)
		}

		for range 8 {
			beat("p2", "original")
			beat("p3", "copy")
		}
		err := refusal()
		wantCode(t, err, connect.CodeUnauthenticated, "node n1 is in quarantine")
		wantCode(t, err, connect.CodeUnauthenticated, "holdfast auth readmit node/n1")
		found := false
		for _, s := range c.servers {
			events, _ := s.cfg.Events.List("")
			found = found || slices.ContainsFunc(events, func(e *corev1.Event) bool { return e.Reason == "NodeCloned" && e.InvolvedObject.Name == "n1" })
		}
		if !found {
			t.Error("there is no event")
		}
		if _, err := c.access("p1", alice).Readmit(t.Context(), &holdfastv1.ReadmitRequest{Role: "node", Name: "n1"}); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			beat("p2", "original")
		}
		if err := refusal(); err != nil {
			t.Errorf("alone again: %v", err)
		}
	})
}
