package kubecompat

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// helm returns Helm in a namespace of its own, through the proxy.
func helm(t *testing.T, namespace string) program {
	t.Helper()
	path := os.Getenv("HELM")
	if path == "" {
		t.Skip("no Helm: HELM names none. `make test-kube` builds it where Go modules can be fetched; QUICK=1 only uses one that is built")
	}
	p := program{path: path, kubeconfig: shared.kubeconfig(t, namespace, true), dir: t.TempDir()}
	return p
}

// TestHelm takes a chart through its life, as its user sees it, while the leader dies in
// the middle: install, upgrade, rollback and uninstall, each waited for.
func TestHelm(t *testing.T) {
	h := helm(t, "helm")
	chart, err := filepath.Abs("testdata/chart")
	if err != nil {
		t.Fatal(err)
	}
	must := func(args ...string) string {
		t.Helper()
		out, code := h.run(t.Context(), args...)
		if code != 0 {
			t.Fatalf("helm %s: exit %d\n%s", strings.Join(args, " "), code, out)
		}
		return out
	}
	get := func(what, path string) string {
		t.Helper()
		return shared.holdfast(t, "get", what, "-n", "helm", "-o", "jsonpath="+path)
	}
	wait := []string{"--wait=watcher", "--timeout", patience.String()}

	must("install", "shop", chart, "--create-namespace", "--dry-run=server")
	out := must(append([]string{"install", "shop", chart, "--create-namespace"}, wait...)...)
	if !strings.Contains(out, "STATUS: deployed") || !strings.Contains(out, "shop says hello.") {
		t.Errorf("install: %s", out)
	}
	if got := get("deployment/shop", "{.status.availableReplicas}"); got != "2" {
		t.Errorf("%s replicas are available after the wait, want 2", got)
	}
	var list []struct{ Name, Revision, Status, Chart string }
	if out := must("list", "-o", "json"); json.Unmarshal([]byte(out), &list) != nil || len(list) != 1 || list[0].Name != "shop" || list[0].Status != "deployed" || list[0].Chart != "web-0.1.0" {
		t.Errorf("list: %s", out)
	}

	revive := kill(t, leader(t))
	must(append([]string{"upgrade", "shop", chart, "--set", "greeting=bye,replicas=3"}, wait...)...)
	revive()
	if got := get("configmap/shop", "{.data.greeting}") + get("deployment/shop", "{.status.availableReplicas}"); got != "bye3" {
		t.Errorf("after the upgrade: %s, want bye and 3 replicas", got)
	}
	if out := must("status", "shop"); !strings.Contains(out, "REVISION: 2") {
		t.Errorf("status: %s", out)
	}
	if out := must("get", "values", "shop"); !strings.Contains(out, "greeting: bye") {
		t.Errorf("values: %s", out)
	}
	must(append([]string{"rollback", "shop", "1"}, wait...)...)
	if got := get("configmap/shop", "{.data.greeting}") + get("deployment/shop", "{.spec.replicas}"); got != "hello2" {
		t.Errorf("after the rollback: %s, want hello and 2 replicas", got)
	}
	if out := must("history", "shop"); !strings.Contains(out, "Rollback to 1") || strings.Count(out, "superseded") != 2 {
		t.Errorf("history: %s", out)
	}
	must("uninstall", "shop", "--wait", "--timeout", patience.String())
	for _, kind := range []string{"deployments", "services", "configmaps", "secrets", "poddisruptionbudgets", "serviceaccounts"} {
		if got := get(kind, "{.items[*].metadata.name}"); got != "" {
			t.Errorf("%s are left after the uninstall: %s", kind, got)
		}
	}
	if out := must("list", "-q"); strings.TrimSpace(out) != "" {
		t.Errorf("releases are left: %s", out)
	}
	shared.holdfast(t, "delete", "namespace", "helm", "--yes", "--wait=false")
}
