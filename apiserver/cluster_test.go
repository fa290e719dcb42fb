package apiserver

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

func (c *cluster) admin(peer string) holdfastv1connect.ClusterServiceClient {
	return holdfastv1connect.NewClusterServiceClient(c.client(peer, alice))
}

func (c *cluster) join(peer string) holdfastv1connect.JoinServiceClient {
	return holdfastv1connect.NewJoinServiceClient(c.client(peer, pki.Identity{}))
}

// TestStatus: a peer tells what it sees.
func TestStatus(t *testing.T) {
	c := newCluster(t, 2)
	c.gossip.set(
		Member{Name: "peer-1", Role: "peer", Address: "10.0.0.1:7001", State: "alive"},
		Member{Name: "n1", Role: "node", Address: "10.1.0.1:7001", State: "suspect"})
	resp, err := c.admin("peer-2").Status(t.Context(), &holdfastv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.GetQuorum() || resp.GetQuorumError() != "" || resp.GetServedBy() != "peer-2" || resp.GetLeader() != "peer-1" || resp.GetTerm() == 0 || resp.GetVersion() != "v0-test" || resp.GetClusterId() != testCluster {
		t.Errorf("status: %v", resp)
	}
	if p := resp.GetPeers(); len(p) != 1 || !p[0].GetVoter() || !p[0].GetLeader() || p[0].GetGossip() != "alive" {
		t.Errorf("peers: %v", p)
	}
	if m := resp.GetMembers(); len(m) != 2 || m[1].GetRole() != holdfastv1.Role_ROLE_NODE || m[1].GetState() != "suspect" {
		t.Errorf("members: %v", m)
	}
}

// TestStatusWithoutQuorum: a peer that cannot reach a majority says so, within a
// second and a little, and still tells what it knows. Reads fail with Unavailable,
// local ones work, and so do agents.
func TestStatusWithoutQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		leader := raft.WaitLeader()
		cut := raft.Others(leader)[0]
		n1 := newNode("n1", "10.1.0.1")
		register(t, c.agent(cut.ID, "n1"), n1)
		c.put(boundPod("a", "n1"))
		d := startDesired(t, c.agent(cut.ID, "n1"), 0)
		at := d.next().GetRevision()

		raft.Cut([]*storetest.Peer{cut}, raft.Others(cut))
		time.Sleep(10 * time.Second)
		start := time.Now()
		resp, err := c.admin(cut.ID).Status(t.Context(), &holdfastv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 1500*time.Millisecond {
			t.Errorf("status took %s", took)
		}
		if resp.GetQuorum() || resp.GetQuorumError() == "" || resp.GetServedBy() != cut.ID || resp.GetLeader() != "" || len(resp.GetPeers()) != 3 {
			t.Errorf("status: %v", resp)
		}
		local := &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL}
		list, err := c.objects(cut.ID).List(t.Context(), &holdfastv1.ListRequest{Kind: podKind, Read: local})
		if err != nil || len(list.GetObjects()) != 1 {
			t.Errorf("local list: %v, %v", list, err)
		}
		if age := list.GetAnswer().GetAge(); age == nil || age.AsDuration() < 10*time.Second {
			t.Errorf("a list at a peer that was cut off 10 s ago says it is %v old", age)
		}
		start = time.Now()
		_, err = c.objects(cut.ID).List(t.Context(), &holdfastv1.ListRequest{Kind: podKind})
		wantCode(t, err, connect.CodeUnavailable, "could not prove")
		if took := time.Since(start); took > waitTimeout+time.Second {
			t.Errorf("the list took %s", took)
		}
		_, err = c.objects(cut.ID).Create(t.Context(), &holdfastv1.CreateRequest{Object: message(t, boundPod("b", ""))})
		wantCode(t, err, connect.CodeUnavailable, "")
		if err := c.servers[cut.ID].Ready(); err == nil || !strings.Contains(err.Error(), "no leader") {
			t.Errorf("ready: %v", err)
		}
		// An agent that was here before goes on: what it has is no older than what
		// this peer has. One that comes without anything must not begin with it.
		agent := c.agent(cut.ID, "n1")
		register(t, agent, n1)
		if _, err := agent.Heartbeat(t.Context(), nil); err != nil {
			t.Errorf("heartbeat: %v", err)
		}
		startDesired(t, agent, at).want("complete a(web:1) own[] 3 peers")
		_, err = startDesired(t, agent, 0).stream.Receive()
		wantCode(t, err, connect.CodeUnavailable, "could not prove")
	})
}

func createToken(t testing.TB, c *cluster, role holdfastv1.Role, ttl time.Duration) pki.Token {
	t.Helper()
	resp, err := c.admin("peer-1").CreateToken(t.Context(), &holdfastv1.CreateTokenRequest{Role: role, Ttl: durationpb.New(ttl)})
	if err != nil {
		t.Fatal(err)
	}
	token, err := pki.ParseToken(resp.GetToken())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// TestTokens: the store has a hash and no secret; expired ones are cleared away.
func TestTokens(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	c := newCluster(t, 1, func(cfg *Config) { cfg.Now = func() time.Time { return now } })
	token := createToken(t, c, holdfastv1.Role_ROLE_NODE, time.Hour)
	kv, ok := c.store.View().Get(tokenPrefix + token.ID)
	if !ok || strings.Contains(string(kv.Value), token.Secret) {
		t.Fatalf("stored token: %s", kv.Value)
	}
	var rec tokenRecord
	if err := json.Unmarshal(kv.Value, &rec); err != nil || !pki.CheckHash(token.Secret, rec.Hash) || rec.Role != pki.RoleNode || !rec.Expires.Equal(now.Add(time.Hour)) || rec.Creator != "admin/alice" {
		t.Errorf("record %+v, %v", rec, err)
	}
	resp, err := c.admin("peer-1").CreateToken(t.Context(), &holdfastv1.CreateTokenRequest{Role: holdfastv1.Role_ROLE_PEER})
	if err != nil || !resp.GetExpiresAt().AsTime().Equal(now.Add(time.Hour)) {
		t.Errorf("default ttl: %v, %v", resp, err)
	}
	now = now.Add(2 * time.Hour)
	createToken(t, c, holdfastv1.Role_ROLE_NODE, time.Hour)
	left := 0
	for range c.store.View().Prefix(tokenPrefix) {
		left++
	}
	if left != 1 {
		t.Errorf("%d tokens are left, want the one that is good", left)
	}
	for _, req := range []*holdfastv1.CreateTokenRequest{
		{}, {Role: 9}, {Role: holdfastv1.Role_ROLE_NODE, Ttl: durationpb.New(-1)}, {Role: holdfastv1.Role_ROLE_NODE, Ttl: durationpb.New(1000 * time.Hour)},
	} {
		_, err := c.admin("peer-1").CreateToken(t.Context(), req)
		wantCode(t, err, connect.CodeInvalidArgument, "")
	}
}

// joinRequest is a request of a machine with a new key.
func joinRequest(t testing.TB, token pki.Token, role holdfastv1.Role, name string) *holdfastv1.JoinRequest {
	t.Helper()
	_, csr, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	return &holdfastv1.JoinRequest{Token: token.Credential(), Role: role, Name: name, Csr: csr, Address: "10.2.0.1:7000"}
}

// TestJoin: what a node and a peer get for a good token.
func TestJoin(t *testing.T) {
	c := newCluster(t, 2)
	c.gossip.set(Member{Name: "peer-1", Role: "peer", Address: "10.0.0.1:7001", State: "alive"},
		Member{Name: "peer-9", Role: "peer", Address: "10.0.0.9:7001", State: "left"},
		Member{Name: "n0", Role: "node", Address: "10.1.0.1:7001", State: "alive"})
	for _, tt := range []struct {
		role  holdfastv1.Role
		want  pki.Role
		caKey bool
	}{{holdfastv1.Role_ROLE_NODE, pki.RoleNode, false}, {holdfastv1.Role_ROLE_PEER, pki.RolePeer, true}} {
		token := createToken(t, c, tt.role, time.Hour)
		name := fmt.Sprint("new-", tt.want)
		resp, err := c.join("peer-2").Join(t.Context(), joinRequest(t, token, tt.role, name))
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(resp.GetCertificates()[0])
		if err != nil {
			t.Fatal(err)
		}
		if id, err := pki.IdentityOf(leaf); err != nil || id != (pki.Identity{Cluster: testCluster, Role: tt.want, Name: name}) {
			t.Errorf("certificate of %v, %v", id, err)
		}
		if (len(resp.GetCaKey()) > 0) != tt.caKey {
			t.Errorf("%s got the CA's key: %t", tt.want, len(resp.GetCaKey()) > 0)
		}
		if len(resp.GetGossipKey()) != 32 || string(resp.GetCa()) != string(c.ca.CertPEM()) || resp.GetClusterId() != testCluster {
			t.Errorf("answer: %v", resp)
		}
		if fmt.Sprint(resp.GetPeers(), resp.GetGossip()) != "[10.0.0.1:7000 10.0.0.2:7000] [10.0.0.1:7001]" {
			t.Errorf("peers %v, gossip %v", resp.GetPeers(), resp.GetGossip())
		}
	}
}

// TestJoinRefused: a stranger learns nothing from which token is bad; the holder
// of a good one learns what else is wrong.
func TestJoinRefused(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	c := newCluster(t, 1, func(cfg *Config) { cfg.Now = func() time.Time { return now } })
	node, peer := holdfastv1.Role_ROLE_NODE, holdfastv1.Role_ROLE_PEER
	good := createToken(t, c, node, time.Hour)
	short := createToken(t, c, node, time.Minute)
	now = now.Add(30 * time.Minute)
	wrongSecret, unknown := good, pki.NewToken(c.ca.Pin())
	wrongSecret.Secret = unknown.Secret

	var texts []string
	for name, req := range map[string]*holdfastv1.JoinRequest{
		"wrong secret": joinRequest(t, wrongSecret, node, "n1"),
		"unknown":      joinRequest(t, unknown, node, "n1"),
		"no token":     {Role: node, Name: "n1"},
		"bad token":    {Role: node, Name: "n1", Token: "x.y.z"},
	} {
		_, err := c.join("peer-1").Join(t.Context(), req)
		if connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("%s: %v, want unauthenticated", name, err)
			continue
		}
		texts = append(texts, err.Error())
	}
	for _, text := range texts {
		if text != texts[0] {
			t.Errorf("a stranger can tell %q from %q", text, texts[0])
		}
	}

	// Who has the secret is no stranger.
	_, err := c.join("peer-1").Join(t.Context(), joinRequest(t, short, node, "n1"))
	wantCode(t, err, connect.CodeUnauthenticated, "the token has expired at 2026-01-02T03:01:00Z")
	_, err = c.join("peer-1").Join(t.Context(), joinRequest(t, good, peer, "p9"))
	wantCode(t, err, connect.CodeUnauthenticated, "the token is for a node, not for a peer")

	badName := joinRequest(t, good, node, "Not_A_Name")
	_, err = c.join("peer-1").Join(t.Context(), badName)
	wantCode(t, err, connect.CodeInvalidArgument, "name")
	badCSR := joinRequest(t, good, node, "n1")
	badCSR.Csr = []byte("nonsense")
	_, err = c.join("peer-1").Join(t.Context(), badCSR)
	wantCode(t, err, connect.CodeInvalidArgument, "csr")
	if _, ok := c.store.View().Get(machineKey(pki.RoleNode, "n1")); ok {
		t.Error("a refused machine has a record")
	}
}

// TestJoinTakenName: the name of a live machine is its own; that of a dead node is
// free again; a peer's stays taken while it is part of raft.
func TestJoinTakenName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		node, peer := holdfastv1.Role_ROLE_NODE, holdfastv1.Role_ROLE_PEER
		token := createToken(t, c, node, 24*time.Hour)
		first := joinRequest(t, token, node, "n1")
		if _, err := c.join("peer-1").Join(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		if _, err := c.agent("peer-1", "n1").Heartbeat(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		revision := c.store.View().Revision()
		if _, err := c.join("peer-1").Join(t.Context(), first); err != nil {
			t.Errorf("the same machine again, its answer lost: %v", err)
		}
		if c.store.View().Revision() != revision {
			t.Error("a repeated join was written")
		}
		_, err := c.join("peer-1").Join(t.Context(), joinRequest(t, token, node, "n1"))
		wantCode(t, err, connect.CodeAlreadyExists, "node n1 is alive")
		time.Sleep(liveLease + time.Second)
		c.gossip.set(Member{Name: "n1", Role: "node", State: "alive"})
		_, err = c.join("peer-1").Join(t.Context(), joinRequest(t, token, node, "n1"))
		wantCode(t, err, connect.CodeAlreadyExists, "as gossip sees it")
		c.gossip.set(Member{Name: "n1", Role: "node", State: "dead"})
		if _, err := c.join("peer-1").Join(t.Context(), joinRequest(t, token, node, "n1")); err != nil {
			t.Errorf("the name of a dead node: %v", err)
		}

		token = createToken(t, c, peer, time.Hour)
		_, err = c.join("peer-1").Join(t.Context(), joinRequest(t, token, peer, "peer-1"))
		wantCode(t, err, connect.CodeAlreadyExists, "its name does not become free")
	})
}

// TestMembership: nobody is let into raft who did not join, and who was removed
// stays out; the cluster does not remove itself.
func TestMembership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		membership := func(peer, as string) peerv1connect.MembershipServiceClient {
			return peerv1connect.NewMembershipServiceClient(c.client(peer, pki.Identity{Cluster: testCluster, Role: pki.RolePeer, Name: as}))
		}
		for _, peer := range []string{"peer-1", "peer-2"} { // the leader, and one that passes it on
			_, err := membership(peer, "peer-9").AddPeer(t.Context(), &peerv1.AddPeerRequest{Id: "peer-9", Address: "10.0.0.9:7000"})
			wantCode(t, err, connect.CodeFailedPrecondition, "peer-9 has not joined this cluster")
		}
		_, err := membership("peer-2", "peer-3").AddPeer(t.Context(), &peerv1.AddPeerRequest{Id: "peer-9", Address: "10.0.0.9:7000"})
		wantCode(t, err, connect.CodeUnavailable, "leader has changed") // passed on already: no further
		_, err = membership("peer-1", "peer-9").AddPeer(t.Context(), &peerv1.AddPeerRequest{Id: "peer-9"})
		wantCode(t, err, connect.CodeInvalidArgument, "")

		for _, peer := range []string{"peer-1", "peer-2"} {
			_, err := c.admin(peer).RemovePeer(t.Context(), &holdfastv1.RemovePeerRequest{Id: "peer-1"})
			wantCode(t, err, connect.CodeFailedPrecondition, "the cluster would be gone")
			_, err = c.admin(peer).RemovePeer(t.Context(), &holdfastv1.RemovePeerRequest{Id: "peer-9"})
			wantCode(t, err, connect.CodeNotFound, "no peer is called peer-9")
		}
		c.setDown("peer-1", true)
		_, err = c.admin("peer-2").RemovePeer(t.Context(), &holdfastv1.RemovePeerRequest{Id: "peer-9"})
		wantCode(t, err, connect.CodeUnavailable, "")
	})
}

// TestRemovable: a peer goes only when the rest can go on without it.
func TestRemovable(t *testing.T) {
	c := newCluster(t, 1)
	voter := func(id string) raftstore.PeerInfo { return raftstore.PeerInfo{ID: id, Voter: true} }
	three := []raftstore.PeerInfo{voter("peer-1"), voter("peer-2"), voter("peer-3")}
	for _, tt := range []struct {
		name  string
		peers []raftstore.PeerInfo
		dead  []string
		id    string
		code  connect.Code // 0: can go
	}{
		{"all are alive", three, nil, "peer-3", 0},
		{"the dead one goes", three, []string{"peer-3"}, "peer-3", 0},
		{"one of the last two alive", three, []string{"peer-3"}, "peer-2", connect.CodeFailedPrecondition},
		{"a learner, beside dead voters", append(three[:2:2], raftstore.PeerInfo{ID: "l"}), nil, "l", 0},
		{"unknown", three, nil, "peer-4", connect.CodeNotFound},
		{"the last", three[:1], nil, "peer-1", connect.CodeFailedPrecondition},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var members []Member
			for _, p := range tt.peers {
				members = append(members, Member{Name: p.ID, Role: "peer", State: "alive"})
				for _, dead := range tt.dead {
					if dead == p.ID {
						members[len(members)-1].State = "dead"
					}
				}
			}
			c.gossip.set(members...)
			err := clusterService{c.servers["peer-1"]}.removable(raftstore.Status{Peers: tt.peers}, tt.id)
			if tt.code == 0 {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			wantCode(t, err, tt.code, "")
		})
	}
}

// TestPeersLife: a machine joins with a token through one peer and gets into raft
// through another; once it is removed it stays out.
func TestPeersLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		followers := raft.Others(raft.WaitLeader())
		resp, err := c.admin(followers[0].ID).CreateToken(t.Context(), &holdfastv1.CreateTokenRequest{Role: holdfastv1.Role_ROLE_PEER, Ttl: durationpb.New(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		token, err := pki.ParseToken(resp.GetToken())
		if err != nil {
			t.Fatal(err)
		}
		newcomer := raft.NewPeer()
		newcomer.Run()
		add := func(through string) error {
			client := peerv1connect.NewMembershipServiceClient(c.client(through, pki.Identity{Cluster: testCluster, Role: pki.RolePeer, Name: newcomer.ID}))
			_, err := client.AddPeer(t.Context(), &peerv1.AddPeerRequest{Id: newcomer.ID, Address: newcomer.ID})
			return err
		}
		wantCode(t, add(followers[0].ID), connect.CodeFailedPrecondition, "has not joined")
		if _, err := c.join(followers[1].ID).Join(t.Context(), joinRequest(t, token, holdfastv1.Role_ROLE_PEER, newcomer.ID)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // again does no harm
			if err := add(followers[0].ID); err != nil {
				t.Fatal(err)
			}
		}
		voters := func() (n int) {
			t.Helper()
			status, err := c.admin(followers[1].ID).Status(t.Context(), &holdfastv1.StatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range status.GetPeers() {
				if p.GetVoter() {
					n++
				}
			}
			return n
		}
		// A fourth voter would make the cluster no safer: it waits as a learner.
		time.Sleep(time.Minute)
		if n, peers := voters(), len(raft.WaitLeader().Store.Status().Peers); n != 3 || peers != 4 {
			t.Errorf("%d voters of %d peers, want 3 of 4", n, peers)
		}
		if _, err := c.admin(followers[1].ID).RemovePeer(t.Context(), &holdfastv1.RemovePeerRequest{Id: newcomer.ID}); err != nil {
			t.Fatal(err)
		}
		if n := voters(); n != 3 {
			t.Errorf("%d voters after the removal, want 3", n)
		}
		wantCode(t, add(followers[0].ID), connect.CodeFailedPrecondition, "was removed from this cluster")

		// The leader goes by way of another.
		leader := raft.WaitLeader(raft.Peers[:3]...)
		if _, err := c.admin(leader.ID).RemovePeer(t.Context(), &holdfastv1.RemovePeerRequest{Id: leader.ID}); err != nil {
			t.Fatal(err)
		}
		now := raft.WaitLeader(followers...)
		status := now.Store.Status()
		if now == leader || len(status.Peers) != 2 {
			t.Errorf("%s leads %v after %s was removed", now.ID, status.Peers, leader.ID)
		}
	})
}

// TestPeerChanges: what an administrator asks of any peer is done by the leader, also
// when it is about the leader; what makes no sense is refused with the reason.
func TestPeerChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		leader := raft.WaitLeader()
		through := raft.Others(leader)[0].ID
		admin := c.admin(through)
		if err := leader.Store.Admit(t.Context(), raftstore.Joiner{ID: "p4", Address: "p4"}); err == nil {
			t.Fatal("a peer that does not run is a member")
		}
		fourth := raft.NewPeer()
		fourth.Run()
		if err := leader.Store.Admit(t.Context(), raftstore.Joiner{ID: "p4", Address: "p4"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)

		list, err := admin.ListPeers(t.Context(), &holdfastv1.ListPeersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range list.GetPeers() {
			if p.GetPeer().GetId() != fmt.Sprint("p", i+1) || p.GetError() != "" || p.GetLag() != 0 || !bytes.Equal(p.GetHash(), list.GetPeers()[0].GetHash()) ||
				p.GetPeer().GetLeader() != (p.GetContactAge() == nil) || p.GetPeer().GetVoter() != (i < 3) {
				t.Errorf("peer %d: %v", i+1, p)
			}
		}
		if len(list.GetPeers()) != 4 || len(list.GetNotes()) != 1 || !strings.Contains(list.GetNotes()[0], "p4 stays a learner") {
			t.Errorf("%d peers, notes %q", len(list.GetPeers()), list.GetNotes())
		}

		_, err = admin.PromotePeer(t.Context(), &holdfastv1.PromotePeerRequest{Id: "p4"})
		wantCode(t, err, connect.CodeFailedPrecondition, "4 voters survive the loss of 1, as 3 do, and 3 instead of 2 must agree")
		if _, err = admin.PromotePeer(t.Context(), &holdfastv1.PromotePeerRequest{Id: "p4", Force: true}); err != nil {
			t.Error(err)
		}
		if _, err = admin.DemotePeer(t.Context(), &holdfastv1.DemotePeerRequest{Id: "p4"}); err != nil {
			t.Error(err)
		}
		_, err = admin.TransferLeadership(t.Context(), &holdfastv1.TransferLeadershipRequest{Id: "p4"})
		wantCode(t, err, connect.CodeFailedPrecondition, "learner")
		for _, id := range []string{through, through} { // again is no error
			resp, err := admin.TransferLeadership(t.Context(), &holdfastv1.TransferLeadershipRequest{Id: id})
			if err != nil || resp.GetLeader() != id {
				t.Errorf("%v, %v, want %s to lead", resp, err, id)
			}
		}
		// The leader itself, through itself.
		resp, err := admin.ReplacePeer(t.Context(), &holdfastv1.ReplacePeerRequest{Id: through})
		if err != nil || resp.GetSuccessor() != "p4" {
			t.Errorf("%v, %v, want p4 in the place of %s", resp, err, through)
		}
		rest := slices.DeleteFunc(slices.Clone(raft.Peers), func(p *storetest.Peer) bool { return p.ID == through })
		now := raft.WaitLeader(rest...)
		admin = c.admin(leader.ID)
		_, err = admin.ReplacePeer(t.Context(), &holdfastv1.ReplacePeerRequest{Id: now.ID})
		wantCode(t, err, connect.CodeFailedPrecondition, "holdfast peer add --learner")
		_, err = admin.ReplacePeer(t.Context(), &holdfastv1.ReplacePeerRequest{Id: raft.WaitLeader(rest...).ID, Successor: "p9"})
		wantCode(t, err, connect.CodeNotFound, "")
		for name, err := range map[string]error{
			"promote": second(admin.PromotePeer(t.Context(), &holdfastv1.PromotePeerRequest{Id: through})),
			"demote":  second(admin.DemotePeer(t.Context(), &holdfastv1.DemotePeerRequest{Id: through})),
			"remove":  second(admin.RemovePeer(t.Context(), &holdfastv1.RemovePeerRequest{Id: through})),
			"nobody":  second(admin.TransferLeadership(t.Context(), &holdfastv1.TransferLeadershipRequest{Id: through})),
		} {
			if connect.CodeOf(err) != connect.CodeNotFound {
				t.Errorf("%s a removed peer: %v, want NotFound", name, err)
			}
		}
		_, err = admin.RemovePeer(t.Context(), &holdfastv1.RemovePeerRequest{})
		wantCode(t, err, connect.CodeInvalidArgument, "id")

		// Its name is not free, and a machine with a token gets it no more.
		created, err := admin.CreateToken(t.Context(), &holdfastv1.CreateTokenRequest{Role: holdfastv1.Role_ROLE_PEER})
		if err != nil {
			t.Fatal(err)
		}
		token, err := pki.ParseToken(created.GetToken())
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.join(leader.ID).Join(t.Context(), joinRequest(t, token, holdfastv1.Role_ROLE_PEER, through))
		wantCode(t, err, connect.CodeAlreadyExists, "was removed from this cluster, and a peer's name is used once")
	})
}

func second[T any](_ T, err error) error { return err }

// TestElection: the loss of the leader is invisible to agents of other peers, and
// to writers no more than a wait; the new leader knows soon who is alive.
func TestElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		old := raft.WaitLeader()
		rest := raft.Others(old)
		near := rest[0].ID
		beats := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		defer func() { cancel(); <-beats }()
		for i, node := range []string{"n1", "n2"} {
			register(t, c.agent(rest[i].ID, node), newNode(node, fmt.Sprint("10.1.0.", i+1)))
		}
		go func() {
			defer close(beats)
			for ctx.Err() == nil {
				for i, node := range []string{"n1", "n2"} {
					if _, err := c.agent(rest[i].ID, node).Heartbeat(ctx, nil); err != nil && ctx.Err() == nil {
						t.Errorf("heartbeat of %s: %v", node, err)
					}
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		}()
		d := startDesired(t, c.agent(near, "n1"), 0)
		d.next()

		// Two more that say nothing during the election: what the old leader knew of
		// them is known to the peers that heard them.
		for i, node := range []string{"n3", "n4"} {
			if _, err := c.agent(rest[i].ID, node).Heartbeat(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(1500 * time.Millisecond)
		c.setDown(old.ID, true)
		c.stops[old.ID]()
		old.Kill()
		start := time.Now()
		data, err := object.Encode(boundPod("a", "n1"))
		if err != nil {
			t.Fatal(err)
		}
		// As a client of a peer that has just lost its leader.
		if _, err := c.objects(near).Create(t.Context(), &holdfastv1.CreateRequest{Object: &holdfastv1.Object{Data: data}}); err != nil {
			t.Fatalf("a write during the election: %v", err)
		}
		if took := time.Since(start); took > waitTimeout {
			t.Errorf("the write took %s", took)
		}
		for !strings.HasPrefix(desiredText(t, d.next()), "a(") {
		}
		leader := raft.WaitLeader(rest...)
		time.Sleep(2100 * time.Millisecond)
		for _, node := range []string{"n1", "n2"} {
			if age, ok := c.servers[leader.ID].Heartbeats().Heartbeat(node); !ok || age > 2100*time.Millisecond {
				t.Errorf("the new leader has %s at %s, %t", node, age, ok)
			}
		}
		for _, node := range []string{"n3", "n4"} {
			if age, ok := c.servers[leader.ID].Heartbeats().Heartbeat(node); !ok || age < 3600*time.Millisecond {
				t.Errorf("the new leader has %s at %s, %t, want its true age", node, age, ok)
			}
		}
	})
}
