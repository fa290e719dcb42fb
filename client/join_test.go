package client

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// answerJoins makes a peer sign whoever comes, as role from the request.
func answerJoins(ca *pki.CA, token pki.Token) func(context.Context, *holdfastv1.JoinRequest) (*holdfastv1.JoinResponse, error) {
	return func(_ context.Context, req *holdfastv1.JoinRequest) (*holdfastv1.JoinResponse, error) {
		id, secret, err := pki.ParseTokenCredential(req.GetToken())
		if err != nil || id != token.ID || !pki.CheckHash(secret, token.Hash()) {
			return nil, connect.NewError(connect.CodeUnauthenticated, "token not accepted")
		}
		role := pki.RoleNode
		if req.GetRole() == holdfastv1.Role_ROLE_PEER {
			role = pki.RolePeer
		}
		chain, err := ca.Sign(req.GetCsr(), pki.Identity{Cluster: ca.Cluster(), Role: role, Name: req.GetName()}, []string{req.GetAddress()})
		if err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, err.Error())
		}
		resp := &holdfastv1.JoinResponse{
			ClusterId: ca.Cluster(), Certificates: chain, Ca: ca.CertPEM(),
			GossipKey: bytes.Repeat([]byte{1}, 32), Peers: []string{"10.0.0.1:7443"}, Gossip: []string{"10.0.0.1:7946"},
		}
		if role == pki.RolePeer {
			resp.CaKey = ca.KeyPEM()
		}
		return resp, nil
	}
}

func TestJoin(t *testing.T) {
	ca := testCA(t)
	token := pki.NewToken(ca.Pin())
	peer := startPeer(t, ca, "p1")
	peer.join = answerJoins(ca, token)
	for _, role := range []pki.Role{pki.RolePeer, pki.RoleNode} {
		// The first address is dead, the second works.
		got, err := Join(t.Context(), []string{closedPort(t), peer.addr}, token, role, "m1", "10.0.0.7:7946")
		if err != nil {
			t.Fatalf("Join as %s: %v", role, err)
		}
		if want := (pki.Identity{Cluster: "c-1", Role: role, Name: "m1"}); got.Credentials.Identity() != want {
			t.Errorf("became %s, want %s", got.Credentials.Identity(), want)
		}
		if got.ClusterID != "c-1" || len(got.GossipKey) != 32 || len(got.Peers) != 1 || len(got.Gossip) != 1 || len(got.CA) == 0 {
			t.Errorf("result %+v lacks something", got)
		}
		if isPeer := role == pki.RolePeer; isPeer != (len(got.CAKey) > 0) {
			t.Errorf("a %s got a CA key of %d bytes", role, len(got.CAKey))
		}
		// And the credentials are good for a call.
		c := newTestClient(t, ca, []string{peer.addr}, func(cfg *Config) { cfg.Credentials = got.Credentials })
		get(t, c)
	}
}

func TestJoinErrors(t *testing.T) {
	ca, other := testCA(t), testCA(t)
	token := pki.NewToken(ca.Pin())
	refuse := func(code connect.Code, message string) func(context.Context, *holdfastv1.JoinRequest) (*holdfastv1.JoinResponse, error) {
		return func(context.Context, *holdfastv1.JoinRequest) (*holdfastv1.JoinResponse, error) {
			return nil, connect.NewError(code, message)
		}
	}
	good := startPeer(t, ca, "good")
	good.join = answerJoins(ca, token)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })

	peer := func(join func(context.Context, *holdfastv1.JoinRequest) (*holdfastv1.JoinResponse, error)) string {
		p := startPeer(t, ca, "p1")
		p.join = join
		return p.addr
	}
	tests := []struct {
		name  string
		addr  string
		token pki.Token
		role  pki.Role // default: node
		as    string   // default: m1
		is    error
		want  string
		ends  bool // no other address is tried
	}{
		{name: "wrong token", addr: good.addr, token: pki.NewToken(ca.Pin()), want: "the token is wrong, has expired or is not for a node; make a new one", ends: true},
		{name: "pin of another CA", addr: good.addr, token: pki.NewToken(other.Pin()), is: pki.ErrPin, want: "the token says " + other.Pin()},
		{name: "duplicate name", addr: peer(refuse(connect.CodeAlreadyExists, "m1 is alive")), token: token, want: "the name m1 belongs to a machine that is alive", ends: true},
		{name: "refused", addr: peer(refuse(connect.CodeInvalidArgument, "bad address")), token: token, want: "the peer refuses: bad address", ends: true},
		{name: "no leader", addr: peer(refuse(connect.CodeUnavailable, "no leader")), token: token, want: "try again: no leader"},
		{name: "port closed", addr: closedPort(t), token: token, want: "nothing listens there; is the peer running"},
		{name: "silent", addr: silent.Addr().String(), token: token, want: "is a firewall between"},
		{name: "another role came back", addr: peer(func(_ context.Context, req *holdfastv1.JoinRequest) (*holdfastv1.JoinResponse, error) {
			chain, err := ca.Sign(req.GetCsr(), pki.Identity{Cluster: "c-1", Role: pki.RoleNode, Name: "m2"}, nil)
			return &holdfastv1.JoinResponse{ClusterId: "c-1", Certificates: chain, Ca: ca.CertPEM()}, err
		}), token: token, want: "want spiffe://c-1/node/m1", ends: true},
		{name: "bad name", addr: good.addr, token: token, as: "my node", want: `name "my node"`, ends: true},
		{name: "bad role", addr: good.addr, token: token, role: pki.RoleAdmin, want: "only a peer or a node can join", ends: true},
		{name: "bad address", addr: "10.0.0.1", token: token, want: "want host:port", ends: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.role == "" {
				tt.role = pki.RoleNode
			}
			if tt.as == "" {
				tt.as = "m1"
			}
			times := joinTimes{dial: 300 * time.Millisecond, whole: 5 * time.Second}
			_, err := join(t.Context(), times, []string{tt.addr}, tt.token, tt.role, tt.as, "10.0.0.7:7946")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
			if strings.Contains(err.Error(), tt.token.Secret) {
				t.Errorf("error %q holds the token's secret", err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q is more than a sentence", err)
			}
			if tt.token != token {
				return
			}
			_, err = join(t.Context(), times, []string{tt.addr, good.addr}, tt.token, tt.role, tt.as, "10.0.0.7:7946")
			if tt.ends != (err != nil) {
				t.Errorf("with a good peer as well: %v; want an error: %v", err, tt.ends)
			}
		})
	}
	t.Run("context ends", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := Join(ctx, []string{silent.Addr().String(), closedPort(t)}, token, pki.RoleNode, "m1", "")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 3*time.Second {
			t.Errorf("%v after %v, want the deadline at once", err, time.Since(start))
		}
	})
}
