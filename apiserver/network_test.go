package apiserver

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/agent/v1/agentv1connect"
)

// networkStream is an agent's Network stream.
type networkStream struct {
	t      testing.TB
	stream agentv1connect.AgentServiceNetworkClientStream
	cancel context.CancelFunc
}

func startNetwork(t testing.TB, agent agentv1connect.AgentServiceClient, from int64) *networkStream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := agent.Network(ctx, &agentv1.NetworkRequest{FromRevision: from})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); stream.Close() })
	return &networkStream{t, stream, cancel}
}

// want compares the next message's text form.
func (n *networkStream) want(text string) *agentv1.NetworkResponse {
	n.t.Helper()
	msg, err := n.stream.Receive()
	if err != nil {
		n.t.Fatal(err)
	}
	var words []string
	if msg.GetComplete() {
		words = append(words, "complete")
	}
	if msg.GetUnfinished() {
		words = append(words, "unfinished")
	}
	var changes agentv1.NetworkChanges
	if err := proto.Unmarshal(msg.GetChanges(), &changes); err != nil {
		n.t.Fatal(err)
	}
	for _, in := range changes.GetObjects() {
		if obj, err := object.Decode(in.GetObject(), in.GetRevision()); err != nil || string(object.KeyOf(obj)) != in.GetKey() || in.GetRevision() <= 0 {
			n.t.Errorf("%s at revision %d is %v (%v)", in.GetKey(), in.GetRevision(), obj, err)
		}
		words = append(words, "+"+in.GetKey())
	}
	for _, key := range changes.GetRemoved() {
		words = append(words, "-"+key)
	}
	if own := msg.GetNode(); own != nil {
		words = append(words, fmt.Sprintf("zone=%s ingress=%t", own.GetZone(), own.GetIngress()))
		for _, in := range own.GetSecrets() {
			words = append(words, in.GetKey())
		}
	}
	if got := strings.Join(words, " "); got != text {
		n.t.Errorf("got %q, want %q", got, text)
	}
	return msg
}

func netService(name string) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	svc.Spec.Ports = []corev1.ServicePort{{Port: 80}}
	object.Default(svc)
	return svc
}

// TestNetworkStream: a node is told all that is of the cluster's network, what changes
// of it, and nothing else; it goes on where it was, on another peer.
func TestNetworkStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		synctest.Wait() // until both follow the store: what was before, they do not remember
		slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1"}, AddressType: discoveryv1.AddressTypeIPv4}
		c.put(newNode("n1", "10.1.0.1"), boundPod("a", "n1"), netService("web"), slice)
		n := startNetwork(t, c.agent("peer-1", "n1"), 0)
		n.want("complete +endpointslices.discovery.k8s.io/default/web-1 +services/default/web zone= ingress=false")
		c.put(boundPod("b", "n1"))
		c.put(netService("other"))
		n.want("+services/default/other")
		c.remove(slice)
		at := n.want("-endpointslices.discovery.k8s.io/default/web-1").GetRevision()
		n.cancel()

		c.put(netService("third"))
		c.remove(netService("web"))
		c.put(netService("web"))
		c.remove(netService("other"))
		synctest.Wait() // until the other peer has them
		n = startNetwork(t, c.agent("peer-2", "n1"), at)
		at = n.want("+services/default/third +services/default/web -services/default/other zone= ingress=false").GetRevision()
		n.cancel()

		// Nothing has changed: the answer says so.
		n = startNetwork(t, c.agent("peer-1", "n1"), at)
		n.want("zone= ingress=false")
		node, _ := object.Get[*corev1.Node](c.store.View(), object.KeyOf(newNode("n1", "")))
		node.Labels = map[string]string{corev1.LabelTopologyZone: "z"}
		c.put(node)
		n.want("zone=z ingress=false")

		// One that is ahead of the peer is not told older things.
		ahead := startNetwork(t, c.agent("peer-2", "n1"), c.store.View().Revision()+1)
		synctest.Wait()
		c.put(netService("fourth"))
		if msg := ahead.want("zone=z ingress=false"); msg.GetRevision() < c.store.View().Revision() {
			t.Errorf("the first message is of revision %d", msg.GetRevision())
		}
	})
}

// TestNetworkSecrets: only a node that serves Ingresses, because an administrator
// said so, is told the Secrets that Ingresses name, and no others.
func TestNetworkSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		secret := func(name string) *corev1.Secret {
			return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		}
		ingress := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
		ingress.Spec.TLS = []networkingv1.IngressTLS{{SecretName: "cert"}}
		c.put(newNode("n1", "10.1.0.1"), newNode("edge", "10.1.0.2"), secret("cert"), secret("other"), ingress)
		edge, _ := object.Get[*corev1.Node](c.store.View(), object.KeyOf(newNode("edge", "")))
		edge.Labels = map[string]string{object.IngressNodeLabel: ""}
		c.put(edge)
		plain := startNetwork(t, c.agent("peer-1", "n1"), 0)
		plain.want("complete +ingresses.networking.k8s.io/default/web zone= ingress=false")
		n := startNetwork(t, c.agent("peer-1", "edge"), 0)
		n.want("complete +ingresses.networking.k8s.io/default/web zone= ingress=true secrets/default/cert")
		c.put(secret("cert"))
		n.want("zone= ingress=true secrets/default/cert")
		ingress.Spec.TLS[0].SecretName = "other"
		c.put(ingress)
		n.want("+ingresses.networking.k8s.io/default/web zone= ingress=true secrets/default/other")
		plain.want("+ingresses.networking.k8s.io/default/web")

		// An agent cannot make itself one.
		self := newNode("n1", "10.1.0.1")
		self.Labels = map[string]string{object.IngressNodeLabel: "", "disk": "ssd"}
		register(t, c.agent("peer-1", "n1"), self)
		node, _ := object.Get[*corev1.Node](c.store.View(), object.KeyOf(self))
		if _, has := node.Labels[object.IngressNodeLabel]; has || node.Labels["disk"] != "ssd" {
			t.Errorf("labels are %v", node.Labels)
		}
	})
}
