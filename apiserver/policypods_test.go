package apiserver

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

func labelledPod(name, node, app, ip string) *corev1.Pod {
	pod := boundPod(name, node)
	pod.Labels = map[string]string{"app": app}
	if pod.Status.PodIP = ip; ip != "" {
		pod.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	}
	return pod
}

// allowFrom is a policy about the pods of an app, that pods of another may reach.
func allowFrom(name, app, from string) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	np.Spec.PodSelector.MatchLabels = map[string]string{"app": app}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": from}}}}}}
	object.Default(np)
	return np
}

func podsText(msg *agentv1.NetworkResponse) string {
	var words []string
	if msg.GetAllPods() {
		words = append(words, "all")
	}
	for _, p := range msg.GetPods() {
		words = append(words, fmt.Sprintf("+%s/%s@%s=%s", p.GetNamespace(), p.GetName(), p.GetNode(), strings.Join(p.GetIps(), ",")))
	}
	for _, name := range msg.GetRemovedPods() {
		words = append(words, "-"+name)
	}
	return strings.Join(words, " ")
}

// TestNetworkPolicyPods: a node is told of the pods that the policies of its own pods
// ask about, and of no others.
func TestNetworkPolicyPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.put(newNode("n1", "10.1.0.1"), newNode("n2", "10.1.0.2"))
		c.put(labelledPod("db", "n1", "db", "10.8.1.2"), labelledPod("web", "n2", "web", "10.8.2.2"), labelledPod("job", "n2", "job", "10.8.2.3"))
		synctest.Wait()
		n1 := startNetwork(t, c.agent("peer-1", "n1"), 0)
		n2 := startNetwork(t, c.agent("peer-1", "n2"), 0)
		next := func(n *networkStream, want string) {
			t.Helper()
			msg, err := n.stream.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if got := podsText(msg); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		next(n1, "all")
		next(n2, "all")
		c.put(allowFrom("db", "db", "web"))
		next(n1, "+default/web@n2=10.8.2.2")
		next(n2, "")
		// Nothing that anybody asks about: nobody is told.
		c.put(labelledPod("job", "n2", "job", "10.8.2.9"))
		// One without an address is told once it has one.
		c.put(labelledPod("late", "n2", "web", ""))
		c.put(labelledPod("late", "n2", "web", "10.8.2.4"))
		next(n1, "+default/late@n2=10.8.2.4")
		ended := labelledPod("web", "n2", "web", "10.8.2.2")
		ended.Status.Phase = corev1.PodSucceeded
		c.put(ended)
		next(n1, "-default/web")
		c.put(allowFrom("db", "db", "job"))
		next(n1, "+default/job@n2=10.8.2.9 -default/late")
		next(n2, "")
		// A stream that begins anew is told all.
		n1.cancel()
		n1 = startNetwork(t, c.agent("peer-1", "n1"), c.store.View().Revision())
		next(n1, "all +default/job@n2=10.8.2.9")
		// The last pod that the policy is about goes.
		c.remove(labelledPod("db", "n1", "db", ""))
		next(n1, "-default/job")
	})
}

// TestDesiredPolicyRevision: who is told of a pod is told which policies there were.
func TestDesiredPolicyRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		c.put(newNode("n1", "10.1.0.1"))
		first := c.put(allowFrom("a", "db", "web"))
		synctest.Wait()
		ctx := t.Context()
		stream, err := c.agent("peer-1", "n1").Desired(ctx, &agentv1.DesiredRequest{})
		if err != nil {
			t.Fatal(err)
		}
		want := func(revision int64) {
			t.Helper()
			msg, err := stream.Receive()
			if err != nil || msg.GetPolicyRevision() != revision {
				t.Fatalf("policies are at %d, error %v; want %d", msg.GetPolicyRevision(), err, revision)
			}
		}
		want(first)
		second := c.put(allowFrom("b", "db", "web"))
		c.put(boundPod("p", "n1"))
		want(second)
	})
}

// TestPolicyIndexRandom compares what nodes are told, after any changes, with what the
// objects say.
func TestPolicyIndexRandom(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 3))
		x := newPolicyIndex()
		x.loaded = true
		policies := map[string]*networkingv1.NetworkPolicy{}
		namespaces := map[string]map[string]string{}
		pods := map[string]*corev1.Pod{}
		apps, nodes, spaces := []string{"a", "b", "c"}, []string{"n1", "n2", "n3"}, []string{"x", "y"}
		one := func(of []string) string { return of[r.IntN(len(of))] }
		selector := func() *metav1.LabelSelector {
			if r.IntN(4) == 0 {
				return &metav1.LabelSelector{}
			}
			return &metav1.LabelSelector{MatchLabels: map[string]string{"app": one(apps)}}
		}
		streams := map[string]*podStream{}
		told := map[string]map[string]string{}
		for revision := int64(1); revision < 120; revision++ {
			switch r.IntN(6) {
			case 0:
				np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: one(spaces), Name: one(apps)}}
				key := policyPrefix + np.Namespace + "/" + np.Name
				if r.IntN(3) == 0 {
					delete(policies, key)
					x.setPolicy(key, nil)
					break
				}
				np.Spec.PodSelector = *selector()
				for range r.IntN(3) {
					peer := networkingv1.NetworkPolicyPeer{PodSelector: selector()}
					if r.IntN(2) == 0 {
						peer.NamespaceSelector = selector()
					}
					np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: []networkingv1.NetworkPolicyPeer{peer}})
				}
				if r.IntN(5) == 0 {
					np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("http"))}}}}
				}
				object.Default(np)
				policies[key] = np
				x.setPolicy(key, np)
			case 1:
				name := one(spaces)
				namespaces[name] = map[string]string{"app": one(apps)}
				if r.IntN(4) == 0 {
					delete(namespaces, name)
				}
				x.setNamespace(name, namespaces[name])
			default:
				pod := labelledPod(fmt.Sprint("p", r.IntN(8)), one(nodes), one(apps), fmt.Sprintf("10.8.0.%d", r.IntN(250)))
				pod.Namespace = one(spaces)
				name := pod.Namespace + "/" + pod.Name
				if r.IntN(4) == 0 {
					delete(pods, name)
					x.removePod(name, revision)
					break
				}
				if r.IntN(5) == 0 {
					pod.Status = corev1.PodStatus{}
				}
				if r.IntN(8) == 0 {
					pod.Status.Phase = corev1.PodFailed
				}
				data, err := object.Encode(pod)
				if err != nil {
					t.Fatal(err)
				}
				pods[name] = pod
				x.setPod(podPrefix+name, data, revision)
			}
			for _, node := range nodes {
				if r.IntN(3) > 0 {
					continue
				}
				if streams[node] == nil || r.IntN(20) == 0 {
					streams[node], told[node] = &podStream{}, map[string]string{}
				}
				news := x.news(node, streams[node])
				for _, p := range news.pods {
					told[node][p.GetNamespace()+"/"+p.GetName()] = p.GetIps()[0]
				}
				for _, name := range news.removed {
					if _, ok := told[node][name]; !ok {
						t.Fatalf("seed %d: %s is removed and was not told", seed, name)
					}
					delete(told[node], name)
				}
				if want := askedAbout(node, policies, namespaces, pods); !maps.Equal(told[node], want) {
					t.Fatalf("seed %d, revision %d: %s was told %v, want %v", seed, revision, node, told[node], want)
				}
			}
		}
	}
}

// askedAbout is by hand which pods a node has to know.
func askedAbout(node string, policies map[string]*networkingv1.NetworkPolicy, namespaces map[string]map[string]string, pods map[string]*corev1.Pod) map[string]string {
	alive := func(p *corev1.Pod) bool { return p.Status.Phase != corev1.PodFailed }
	asked := map[string]string{}
	for _, np := range policies {
		subject := object.PolicySubject(np)
		if !slices.ContainsFunc(slices.Collect(maps.Values(pods)), func(p *corev1.Pod) bool {
			return alive(p) && p.Spec.NodeName == node && p.Namespace == np.Namespace && subject.SelectsLabels(p.Labels)
		}) {
			continue
		}
		for _, peer := range object.PolicyPeers(np) {
			for name, p := range pods {
				if alive(p) && p.Status.PodIP != "" && peer.SelectsNamespace(p.Namespace, namespaces[p.Namespace]) && peer.SelectsLabels(p.Labels) {
					asked[name] = p.Status.PodIP
				}
			}
		}
	}
	return asked
}
