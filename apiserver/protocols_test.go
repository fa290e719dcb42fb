package apiserver

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestProtocols: one call by every protocol that there is.
func TestProtocols(t *testing.T) {
	c := newCluster(t, 1)
	revision := c.put(boundPod("a", ""))
	url, as := tlsServer(t, c)
	two := as(c.ca, pki.RoleAdmin, "alice")
	one := &http.Client{Transport: &http.Transport{TLSClientConfig: credentials(t, c.ca, pki.RoleAdmin, "alice").ClientTLS(pki.RolePeer, "http/1.1")}}
	t.Cleanup(one.CloseIdleConnections)
	for _, tt := range []struct {
		name   string
		client *http.Client
		option []connecthttp.Option
	}{
		{"Connect over HTTP/1.1", one, nil},
		{"Connect over HTTP/2", two, nil},
		{"Connect, JSON", two, []connecthttp.Option{connecthttp.WithProtoJSON()}},
		{"gRPC", two, []connecthttp.Option{connecthttp.WithGRPC()}},
		{"gRPC-Web over HTTP/1.1", one, []connecthttp.Option{connecthttp.WithGRPCWeb()}},
		{"gRPC-Web over HTTP/2", two, []connecthttp.Option{connecthttp.WithGRPCWeb()}},
	} {
		client := connect.NewClient(connecthttp.NewTransport(tt.client, url, tt.option...))
		resp, err := holdfastv1connect.NewObjectServiceClient(client).Get(t.Context(), &holdfastv1.GetRequest{Kind: podKind, Name: "a"})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if obj, err := object.Decode(resp.GetObject().GetData(), 0); err != nil || obj.GetName() != "a" || resp.GetAnswer().GetServedBy() != "peer-1" {
			t.Errorf("%s: %v, %v", tt.name, resp, err)
		}
		_, err = holdfastv1connect.NewObjectServiceClient(client).Get(t.Context(), &holdfastv1.GetRequest{Kind: podKind, Name: "b"})
		if wantCode(t, err, connect.CodeNotFound, "Pod default/b not found"); infoOf(err).GetServedBy() != "peer-1" {
			t.Errorf("%s: the error has no details: %v", tt.name, err)
		}
		var health healthv1.HealthCheckResponse
		err = client.CallUnary(t.Context(), connect.Spec{Procedure: healthCheckProcedure, StreamType: connect.StreamTypeUnary}, &healthv1.HealthCheckRequest{Service: "holdfast.v1.ObjectService"}, &health)
		if err != nil || health.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%s: health: %v, %v", tt.name, &health, err)
		}
	}

	// As curl does.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+holdfastv1connect.ObjectServiceGetProcedure,
		strings.NewReader(`{"kind":{"version":"v1","kind":"Pod"},"name":"a","encoding":"ENCODING_JSON"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := one.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	var answer struct {
		Object struct {
			Revision string
			Data     string
		}
	}
	if err != nil || json.Unmarshal(body, &answer) != nil || answer.Object.Revision != revisionText(revision) {
		t.Fatalf("%v: %s", err, body)
	}
	if data, err := base64.StdEncoding.DecodeString(answer.Object.Data); err != nil || !strings.Contains(string(data), `"name":"a"`) {
		t.Errorf("%v: %s", err, data)
	}
}

// TestHealth: a peer serves while it knows a leader, tells who watches of each
// change, and anybody who asks.
func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		leader := raft.WaitLeader(raft.Peers...)
		peer := raft.Peers[0]
		if peer == leader {
			peer = raft.Peers[1]
		}
		others := slices.DeleteFunc(slices.Clone(raft.Peers), func(p *storetest.Peer) bool { return p == peer })
		client := c.client(peer.ID, pki.Identity{}) // a stranger
		stream, err := client.CallServerStream(t.Context(), connect.Spec{Procedure: healthWatchProcedure, StreamType: connect.StreamTypeServer}, &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		want := func(status healthv1.HealthCheckResponse_ServingStatus) {
			t.Helper()
			var got healthv1.HealthCheckResponse
			if err := stream.Receive(&got); err != nil || got.GetStatus() != status {
				t.Errorf("got %v, %v, want %v", &got, err, status)
			}
		}
		want(healthv1.HealthCheckResponse_SERVING)
		raft.Cut([]*storetest.Peer{peer}, others)
		want(healthv1.HealthCheckResponse_NOT_SERVING)
		check := func(ctx context.Context, service string) (*healthv1.HealthCheckResponse, error) {
			var got healthv1.HealthCheckResponse
			err := client.CallUnary(ctx, connect.Spec{Procedure: healthCheckProcedure, StreamType: connect.StreamTypeUnary}, &healthv1.HealthCheckRequest{Service: service}, &got)
			return &got, err
		}
		if got, err := check(t.Context(), ""); err != nil || got.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
			t.Errorf("cut off: %v, %v", got, err)
		}
		raft.Heal()
		want(healthv1.HealthCheckResponse_SERVING)
		_, err = check(t.Context(), "holdfast.v1.NoService")
		wantCode(t, err, connect.CodeNotFound, "there is no service")
	})
}
