package agent_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/fake"
	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// policyPodsText is what a state says of pods, its own first.
func policyPodsText(s *netstate.State) string {
	var local, others []string
	for uid, p := range s.Local {
		local = append(local, fmt.Sprintf("%s=%s", uid, p.Name))
	}
	for name, p := range s.Pods {
		others = append(others, fmt.Sprintf("%s@%s%v%d", name, p.Node, p.IPs, len(p.Ports)))
	}
	slices.Sort(local)
	slices.Sort(others)
	return strings.Join(append(local, others...), " ")
}

// TestAdmitted: a pod is not attached to the network, so that nothing of it runs,
// before the node's rules are made of the policies that were there before it.
func TestAdmitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{Name: "x", Image: "web:1"})
		first := complete(t, 12, pod)
		first.PolicyRevision = 11
		a.says(first)
		a.net = &testNetwork{first: []*agentv1.NetworkResponse{networkMessage(t, true, 10, netService("web"))}}
		n.start()
		settle(10 * time.Second)
		n.wantRunning("before the policies are known")
		a.net.stream <- networkMessage(t, false, 11, netService("other"))
		settle(5 * time.Second)
		n.wantRunning("once they are", "uid-web/x/0")
		// The agent's own word on its pods, at once and until they have ended.
		s, _ := n.agent.NetworkState().Get()
		if got := policyPodsText(s); got != "uid-web=default/web" {
			t.Errorf("its own pods are %q", got)
		}
		a.send(t, &agentv1.DesiredResponse{Revision: 13, RemovedPods: []string{"uid-web"}})
		settle(time.Minute)
		s, _ = n.agent.NetworkState().Get()
		if got := policyPodsText(s); got != "" {
			t.Errorf("its own pods are %q after the end of all", got)
		}
	})
}

// TestPolicyPods: what peers say of pods is taken in, and is there after a restart
// without peers.
func TestPolicyPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		a.says(complete(t, 1))
		far := func(name, ip string) *agentv1.PolicyPod {
			return &agentv1.PolicyPod{Namespace: "default", Name: name, Node: "n2", Ips: []string{ip}, Ports: []*agentv1.PolicyPort{{Name: "http", Protocol: "TCP", Port: 80}}}
		}
		part := &agentv1.NetworkResponse{Complete: true, Unfinished: true, Revision: 10, AllPods: true, Pods: []*agentv1.PolicyPod{far("a", "10.8.2.2")}}
		last := networkMessage(t, true, 10, netService("web"))
		last.Pods = []*agentv1.PolicyPod{far("b", "10.8.2.3")}
		a.net = &testNetwork{first: []*agentv1.NetworkResponse{part, last}}
		n := newNode(t, a)
		n.start()
		want := func(text string) {
			t.Helper()
			settle(time.Second)
			s, _ := n.agent.NetworkState().Get()
			if got := policyPodsText(s); got != text {
				t.Fatalf("the state has %q, want %q", got, text)
			}
		}
		want("default/a@n2[10.8.2.2]1 default/b@n2[10.8.2.3]1")
		a.net.stream <- &agentv1.NetworkResponse{Revision: 11, Pods: []*agentv1.PolicyPod{far("b", "10.8.2.4")}, RemovedPods: []string{"default/a"}}
		want("default/b@n2[10.8.2.4]1")
		// All of something else takes nothing of them away.
		a.net.stream <- networkMessage(t, true, 12, netService("web"))
		want("default/b@n2[10.8.2.4]1")
		a.setDown(true)
		n.stop()
		n.start()
		want("default/b@n2[10.8.2.4]1")
		a.setDown(false)
		a.net.mu.Lock()
		a.net.first = []*agentv1.NetworkResponse{{Revision: 13, AllPods: true}}
		a.net.mu.Unlock()
		settle(20 * time.Second)
		want("")
		a.setDown(true)
		n.stop()
		n.start()
		want("")
	})
}

// audits is a network that says what it is told to of its rules.
type audits struct {
	*fake.Network
	tables []agent.TableAudit
}

func (a audits) Audit(context.Context) ([]agent.TableAudit, error) { return a.tables, nil }

func (a audits) Judge(_, to netip.Addr, protocol byte, port uint16) (bool, string) {
	return false, fmt.Sprintf("%s/%d/%d", to, protocol, port)
}

// TestInspect: a peer that asks is told the state's revision and hash, what was found
// of the rules, and what they say of connections.
func TestInspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		a.says(complete(t, 10))
		a.net = &testNetwork{first: []*agentv1.NetworkResponse{networkMessage(t, true, 10, netService("web"))}}
		n := newNode(t, a)
		n.wrapNet = audits{n.net, []agent.TableAudit{{Name: "ip t", Hash: "a", Wanted: "b", Faults: []string{"gone"}, Repaired: true}}}
		n.start()
		settle(time.Second)
		c := a.wish(t, &agentv1.SessionsResponse{Start: &agentv1.SessionsResponse_Inspect{Inspect: &holdfastv1.InspectRequest{
			Packets: []*holdfastv1.Packet{{From: "10.8.1.2", To: "10.8.1.3", Protocol: "UDP", Port: 53}},
		}}})
		<-c.ended
		got := c.network
		want := &holdfastv1.NodeNetwork{
			Revision: 10, Programmed: 10, Hash: fmt.Sprintf("%016x", object.RevisionSum("services/default/web", 10)),
			Tables:   []*holdfastv1.NetworkTable{{Name: "ip t", Hash: "a", Wanted: "b", Faults: []string{"gone"}, Repaired: true}},
			Verdicts: []*holdfastv1.PacketVerdict{{By: "10.8.1.3/17/53"}},
		}
		if !proto.Equal(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
	})
}
