package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// TestNetworkVerdict: what is said of a node's answer.
func TestNetworkVerdict(t *testing.T) {
	table := func(repaired bool, faults ...string) *holdfastv1.NetworkTable {
		return &holdfastv1.NetworkTable{Name: "ip t", Faults: faults, Repaired: repaired}
	}
	found := func(revision, programmed int64, hash string, tables ...*holdfastv1.NetworkTable) *holdfastv1.NodeNetwork {
		return &holdfastv1.NodeNetwork{Revision: revision, Programmed: programmed, Hash: hash, Tables: tables}
	}
	for _, c := range []struct {
		name  string
		found *holdfastv1.NodeNetwork
		err   error
		want  string
	}{
		{"as it should be", found(10, 10, "b", table(false)), nil, "SAME: 1 tables are what its state makes of them"},
		{"nothing changed since", found(5, 5, "b", table(false)), nil, "SAME: 1 tables are what its state makes of them"},
		{"as it was when it was asked", found(9, 9, "a", table(false)), nil, "SAME: 1 tables are what its state makes of them"},
		{"without rules", found(10, 10, "b"), nil, "SAME: it has the cluster's state; it keeps no packet rules"},
		{"behind", found(8, 8, "c", table(false)), nil, "LAGS: it has heard nothing since revision 8; the cluster is at 10"},
		{"rules behind", found(10, 7, "b", table(false)), nil, "LAGS: its rules are those of revision 7; it knows of revision 10"},
		{"another state", found(10, 10, "c", table(false)), nil, "DIFFERS: its state at revision 10 has the hash c, the cluster's b"},
		{"ahead of this peer", found(11, 11, "c", table(false)), nil, "LAGS: it is at revision 11, and this peer at 10: ask again"},
		{"repaired", found(10, 10, "b", table(false), table(true, "chain x is gone")), nil, "REPAIRED: somebody else changed its rules; the agent has repaired them: table ip t: chain x is gone"},
		{"not repaired", found(8, 8, "c", table(true, "one"), table(false, "two", "three")), nil, "TAMPERED: somebody else changed its rules, and they are NOT repaired: table ip t: one; table ip t: two; three"},
		{"no answer", nil, errors.New("gone"), "NO_ANSWER: gone"},
		{"unreadable", &holdfastv1.NodeNetwork{Error: "no netlink"}, nil, "NO_ANSWER: its tables cannot be read: no netlink"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := networkVerdict(c.found, c.err, []networkState{{9, "a"}, {10, "b"}})
			if got := strings.TrimPrefix(v.GetVerdict().String(), "VERDICT_") + ": " + v.GetMessage(); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestNetworkVerify: all nodes are asked over the connections of their agents, those of
// other peers too; one without a connection is among the answers.
func TestNetworkVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.put(newNode("n1", "10.1.0.1"), newNode("n2", "10.1.0.2"), newNode("n3", "10.1.0.3"), netService("web"))
		synctest.Wait()
		_, hash := c.servers["peer-1"].network.state()
		if _, other := c.servers["peer-2"].network.state(); hash != other || hash == fmt.Sprintf("%016x", 0) {
			t.Fatalf("the peers' hashes are %s and %s", hash, other)
		}
		for node, peer := range map[string]string{"n1": "peer-1", "n2": "peer-2"} {
			answerInspect(t, c, peer, node, &holdfastv1.NodeNetwork{Revision: 1, Programmed: 1, Hash: hash, Tables: []*holdfastv1.NetworkTable{{Name: "ip t"}}})
		}
		synctest.Wait()
		verify := func(nodes ...string) string {
			t.Helper()
			resp, err := holdfastv1connect.NewNetworkServiceClient(c.client("peer-1", alice)).Verify(t.Context(), &holdfastv1.VerifyRequest{Nodes: nodes})
			if err != nil {
				return err.Error()
			}
			var words []string
			for _, n := range resp.GetNodes() {
				words = append(words, n.GetNode()+"="+strings.TrimPrefix(n.GetVerdict().String(), "VERDICT_"))
			}
			return strings.Join(words, " ")
		}
		if got, want := verify(), "n1=SAME n2=SAME n3=NO_ANSWER"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got, want := verify("n2"), "n2=SAME"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got := verify("n9"); !strings.Contains(got, "there is no node n9") {
			t.Errorf("got %s", got)
		}
		// What they say is of a state that is no more; they are asked again, and go on so.
		c.put(netService("web"))
		synctest.Wait()
		if got, want := verify("n1", "n2"), "n1=LAGS n2=LAGS"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// answerInspect is the agent of a node, which answers each inspection the same.
func answerInspect(t *testing.T, c *cluster, peer, node string, with *holdfastv1.NodeNetwork) {
	t.Helper()
	agent := c.agent(peer, node)
	ctx, cancel := context.WithCancel(t.Context())
	wishes, err := agent.Sessions(ctx, &agentv1.SessionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); wishes.Close() })
	go func() {
		for {
			wish, err := wishes.Receive()
			if err != nil {
				return
			}
			if wish.GetInspect() == nil {
				continue
			}
			stream, err := agent.Session(ctx)
			if err != nil {
				return
			}
			_ = stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_SessionId{SessionId: wish.GetSessionId()}})
			_ = stream.Send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Network{Network: with}})
			_ = stream.CloseSend()
			for err == nil {
				_, err = stream.Receive()
			}
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				_ = stream.Close()
			}
		}
	}()
}
