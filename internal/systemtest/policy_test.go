package systemtest

import (
	"strings"
	"testing"
	"time"
)

// TestPolicy: a policy closes the pods of a service to those that it does not name, on
// both nodes, while their readiness probes go on; who gets the label is let in, and
// everybody is when the policy is gone. All nodes' rules are what the state makes of
// them. What a policy allows is for package agent/network: this shows that the parts
// meet.
func TestPolicy(t *testing.T) {
	m := newMachine(t)
	c := m.up("--peers", "1", "--nodes", "2")
	m.must("create", "--detach", "-f", "testdata/service.yaml")
	m.waitReady(2)
	address := strings.TrimSpace(m.must("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	reached := func() (bool, string) {
		out, code := m.holdfast("exec", "sick", "--", "/web", "get", "http://"+address+"/")
		return code == 0, out
	}
	// until asks until it was reached, or not, several times one after the other: the
	// service's pods are on two nodes.
	until := func(what string, want bool) {
		t.Helper()
		for same, deadline := 0, time.Now().Add(patience); same < 4; {
			is, out := reached()
			if same++; is != want {
				same = 0
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: reached %t, want %t: %s", what, is, want, out)
			}
		}
	}
	verify := func() {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			out, code := m.holdfast("net", "verify")
			if code == 0 && strings.Contains(out, "all 2 nodes have the cluster's network") {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("net verify: exit code %d\n%s", code, out)
			}
		}
	}
	until("without a policy", true)
	verify()
	m.must("create", "-f", "testdata/policy.yaml")
	until("with a policy", false)
	m.waitReady(2)
	m.must("label", "pod", "sick", "access=web")
	until("with the label", true)
	verify()
	m.must("label", "pod", "sick", "access-")
	until("without the label", false)
	m.must("delete", "-f", "testdata/policy.yaml")
	until("without the policy", true)
	m.must("delete", "-f", "testdata/service.yaml")
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}
