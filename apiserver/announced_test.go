package apiserver

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
)

// TestAnnouncedNetworks: what a node's agent says of its network stands on the Node and
// goes to the other nodes with its route, and only a change of it is news.
func TestAnnouncedNetworks(t *testing.T) {
	reported := func(said string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.9.0.2"}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue}}
		if said != "" {
			n.Annotations = map[string]string{object.NodeNetworkAnnotation: said, "other": "is not the agent's to write"}
		}
		return n
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.8.2.0/24"}}}
	d := newDesiredIndex()
	last := -1
	for _, step := range []struct {
		said, want string
		news       bool
	}{
		{"", "", true}, // its route
		{"one", "one", true},
		{"one", "one", false},
		{"", "one", false}, // an agent that has just started
		{"two", "two", true},
	} {
		takeFromAgent(node, reported(step.said))
		if node.Annotations["other"] != "" {
			t.Error("the agent writes other annotations")
		}
		if c := object.NodeCondition(node, corev1.NodeNetworkUnavailable); c == nil || c.Status != corev1.ConditionTrue {
			t.Errorf("the condition NetworkUnavailable is %v", c)
		}
		d.setNode("n2", node.DeepCopy())
		if news := d.routes != last; news != step.news {
			t.Errorf("after it said %q, news: %t, want %t", step.said, news, step.news)
		}
		last = d.routes
		_, routes := d.network("n1")
		if len(routes) != 1 || routes[0].GetNetwork() != step.want {
			t.Errorf("after it said %q the others get %v, want %q", step.said, routes, step.want)
		}
	}
}
