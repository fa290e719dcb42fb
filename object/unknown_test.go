package object

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestDropUnknown(t *testing.T) {
	var tree map[string]any
	if err := json.Unmarshal([]byte(`{
		"kind": "Pod", "colour": "red", "metadata": {"name": "web", "labels": {"any": "thing"}},
		"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [
			{"name": "a", "imagee": "x", "$patch": "delete", "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": 80, "porrt": 1}}}
		]}}`), &tree); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(DropUnknown(ResourceOf(&corev1.Pod{}), tree), " ")
	if want := "colour spec.containers[0].imagee spec.containers[0].livenessProbe.httpGet.porrt"; got != want {
		t.Errorf("dropped %s, want %s", got, want)
	}
	data, _ := json.Marshal(tree)
	for _, kept := range []string{`"$setElementOrder/containers"`, `"$patch"`, `"any":"thing"`, `"cpu":"1"`} {
		if !strings.Contains(string(data), kept) {
			t.Errorf("%s is gone: %s", kept, data)
		}
	}
}
