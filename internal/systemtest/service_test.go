package systemtest

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestService: two nodes with a pod of a service on each, and one that is not ready.
// From both, the service's address leads to the ready ones and to no other, and
// follows them; without any, it refuses. What it decides when is for package
// controllers, and the rules for package agent/network: this shows that the parts
// meet.
func TestService(t *testing.T) {
	m := newMachine(t)
	c := m.up("--peers", "1", "--nodes", "2")
	m.must("create", "--detach", "-f", "testdata/service.yaml")
	m.waitReady(2)
	address := strings.TrimSpace(m.must("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	pods := func() (names []string) { // those that stay
		var list struct {
			Items []struct {
				Metadata struct{ Name, DeletionTimestamp string }
			}
		}
		if err := json.Unmarshal([]byte(m.must("get", "pods", "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		for _, pod := range list.Items {
			if pod.Metadata.Name != "sick" && pod.Metadata.DeletionTimestamp == "" {
				names = append(names, pod.Metadata.Name)
			}
		}
		return names
	}
	web := pods()
	if len(web) != 2 {
		t.Fatalf("pods are %q", web)
	}
	// answers asks through the service until each of want has answered, and fails when
	// anybody else does once want is all there is.
	answers := func(from string, want ...string) {
		t.Helper()
		seen := map[string]bool{}
		for deadline := time.Now().Add(patience); len(seen) < len(want); {
			out, code := m.holdfast("exec", from, "--", "/web", "get", "http://"+address+"/")
			name := strings.TrimSpace(strings.TrimPrefix(out, "hello from "))
			if code == 0 {
				seen[name] = true
			}
			if name == "sick" {
				t.Fatal("a pod that is not ready was asked")
			}
			if time.Now().After(deadline) {
				t.Fatalf("from %s, %v have answered, want %q; last: %s", from, seen, want, out)
			}
		}
	}
	answers(web[0], web...)
	answers(web[1], web...)
	if out, code := m.holdfast("exec", web[0], "--", "/web", "get", "http://"+address+":81/"); code == 0 || !strings.Contains(out, "refused") {
		t.Errorf("a port that the service does not have: exit code %d, %q; want a refusal", code, out)
	}

	m.must("scale", "deployment", "web", "--replicas", "1")
	m.waitReady(1)
	left := pods()
	for range 10 {
		answers("sick", left...)
	}
	m.must("scale", "deployment", "web", "--replicas", "0")
	m.waitReady(0)
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		out, code := m.holdfast("exec", "sick", "--", "/web", "get", "http://"+address+"/")
		if code != 0 && strings.Contains(out, "refused") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("without endpoints: exit code %d, %q; want a refusal", code, out)
		}
	}
	m.must("delete", "-f", "testdata/service.yaml")
	c.stop()
	if left := m.leavings(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}
