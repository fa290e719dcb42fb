// Package netstatetest makes states for tests out of manifests.
package netstatetest

import (
	"bytes"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// Parse returns the state of node n1, in zone a, that holds the objects of a file of
// manifests, at revision 100. What has no namespace is in "default". It fails the
// test for a kind that no state holds.
func Parse(t testing.TB, manifests []byte) *netstate.State {
	t.Helper()
	var changes []netstate.Change
	for _, doc := range bytes.Split(manifests, []byte("\n---\n")) {
		if len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &kind); err != nil {
			t.Fatalf("manifest: %v\n%s", err, doc)
		}
		var obj metav1.Object
		switch kind.Kind {
		case "Service":
			obj = &corev1.Service{}
		case "EndpointSlice":
			obj = &discoveryv1.EndpointSlice{}
		case "Ingress":
			obj = &networkingv1.Ingress{}
		case "IngressClass":
			obj = &networkingv1.IngressClass{}
		case "Secret":
			obj = &corev1.Secret{}
		case "Namespace":
			obj = &corev1.Namespace{}
		default:
			t.Fatalf("manifest of kind %q", kind.Kind)
		}
		if err := yaml.UnmarshalStrict(doc, obj); err != nil {
			t.Fatalf("manifest: %v\n%s", err, doc)
		}
		if obj.GetNamespace() == "" && kind.Kind != "IngressClass" && kind.Kind != "Namespace" {
			obj.SetNamespace("default")
		}
		changes = append(changes, netstate.Change{Object: obj})
	}
	state := netstate.Empty("n1")
	state.Zone, state.Ingress = "a", true
	state.Config = netstate.Config{
		Domain:       "cluster.local",
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:42::/48")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd00:43::/108")},
	}
	return state.With(100, changes...)
}
