package dns

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestPodResolvConf runs testdata/resolvconf/*.txtar: pods' DNS settings and the file
// that they come to.
func TestPodResolvConf(t *testing.T) {
	golden.Run(t, "testdata/resolvconf/*.txtar", func(t *testing.T, in golden.Input) string {
		node := ParseResolvConf(string(in.File("node")))
		cluster := Cluster{Servers: []netip.Addr{netip.MustParseAddr("169.254.20.10")}, Domain: "cluster.local"}
		if _, none := in.Lookup("no cluster dns"); none {
			cluster = Cluster{}
		}
		var out strings.Builder
		for _, name := range in.Names() {
			if !strings.HasPrefix(name, "pod") {
				continue
			}
			pod := &corev1.Pod{}
			if err := yaml.UnmarshalStrict(in.File(name), &pod.Spec); err != nil {
				t.Fatal(err)
			}
			pod.Namespace = "shop"
			out.WriteString(name + ":\n" + PodResolvConf(pod, node, cluster).String())
		}
		return out.String()
	})
}
