package systemtest

import (
	"strings"
	"testing"
	"time"
)

// TestEdge: pods find a service and one another by name, and an Ingress is served by
// the node that is chosen for it, and no more when it is not. What is answered and
// where requests go is for packages agent/dns and agent/ingress: this shows that the
// parts meet.
func TestEdge(t *testing.T) {
	m := newMachine(t)
	c := m.up("--peers", "1", "--nodes", "1")
	m.must("create", "--detach", "-f", "testdata/edge.yaml")
	// wait asks until what comes out is as it should be.
	wait := func(what string, right func(out string, code int) bool, args ...string) string {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			out, code := m.holdfast(args...)
			if right(out, code) {
				return strings.TrimSpace(out)
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: exit code %d, %s", what, code, out)
			}
		}
	}
	says := func(text string) func(string, int) bool {
		return func(out string, code int) bool { return code == 0 && strings.Contains(out, text) }
	}
	for _, test := range []struct{ url, want string }{
		{"http://web/", "hello from web-"},
		{"http://web.default.svc.cluster.local./", "hello from web-"},
		{"http://web-1.db:8080/", "hello from web-1"},
		{"http://web-0.db.default:8080/", "hello from web-0"},
	} {
		wait(test.url, says(test.want), "exec", "web-0", "--", "/web", "get", test.url)
	}
	if out, code := m.holdfast("exec", "web-0", "--", "/web", "get", "http://nobody.default.svc.cluster.local./"); code == 0 || !strings.Contains(out, "no such host") {
		t.Errorf("a name that nobody has: exit code %d, %s", code, out)
	}

	node := strings.TrimSpace(m.must("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	m.must("label", "node", node, "holdfast.dev/ingress=true")
	address := wait("the Ingress's address", func(out string, code int) bool { return code == 0 && strings.Count(out, ".") == 3 },
		"get", "ingress", "web", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
	wait("the Ingress", says("hello from web-"), "exec", "web-0", "--", "/web", "get", "http://"+address+"/")
	m.must("label", "node", node, "holdfast.dev/ingress-")
	wait("no Ingress", func(out string, code int) bool { return code != 0 && strings.Contains(out, "refused") },
		"exec", "web-0", "--", "/web", "get", "http://"+address+"/")

	m.must("delete", "-f", "testdata/edge.yaml")
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}
