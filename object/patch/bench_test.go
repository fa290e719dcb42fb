package patch

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/object"
)

const benchDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default, labels: {app: web, tier: front}}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, tier: front}}
    spec:
      containers:
      - name: web
        image: registry.example.com/team/web:1.27.3
        ports: [{name: http, containerPort: 8080}, {name: metrics, containerPort: 9090}]
        env: [{name: LOG, value: info}, {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        resources: {requests: {cpu: 100m, memory: 128Mi}, limits: {memory: 256Mi}}
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 5}
        volumeMounts: [{name: config, mountPath: /etc/web}]
      volumes: [{name: config, configMap: {name: web}}]
`

// benchConfig is JSON, as kubectl sends it.
func benchConfig(tb testing.TB, replicas int) []byte {
	text, err := yaml.YAMLToJSON(fmt.Appendf(nil, benchDeployment, replicas))
	if err != nil {
		tb.Fatal(err)
	}
	return text
}

// BenchmarkApply: an apply of a Deployment that changes one field, and one that
// changes nothing.
func BenchmarkApply(b *testing.B) {
	by := By{Manager: "kubectl", Now: time.Unix(1e9, 0)}
	configs := [][]byte{benchConfig(b, 2), benchConfig(b, 3)}
	obj, err := Apply(object.Builtin(), nil, configs[0], false, by)
	if err != nil {
		b.Fatal(err)
	}
	obj.SetUID("1")
	b.Run("changed", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if obj, err = Apply(object.Builtin(), obj, configs[i%2], false, by); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("unchanged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err = Apply(object.Builtin(), obj, configs[0], false, by); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("track", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			next := obj.DeepCopyObject().(object.Object)
			next.SetLabels(map[string]string{"app": "web", "tier": "back"})
			if err := Track(obj, next, By{Manager: "kubectl-label", Now: by.Now}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkFirst is the first apply of a group: its schemas are read.
func BenchmarkFirst(b *testing.B) {
	for _, group := range []string{"", "apps"} {
		b.Run("group="+group, func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			for b.Loop() {
				converters = sync.Map{}
				if _, err := typesOf(group); err != nil {
					b.Fatal(err)
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc)), "heap-B")
		})
	}
}

// TestBytes reports what managed fields weigh in the stored form: of an object
// that was applied, of a new one, and of that after a second writer.
func TestBytes(t *testing.T) {
	const benchPod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web-7d9c","namespace":"default","labels":{"app":"web"}},
		"spec":{"containers":[{"name":"web","image":"registry.example.com/team/web:1.27.3","ports":[{"containerPort":8080}],
		"resources":{"requests":{"cpu":"100m","memory":"128Mi"}}}]}}`
	by := By{Manager: "kubectl", Now: time.Unix(1e9, 0)}
	size := func(obj object.Object) int {
		data, err := object.Encode(obj)
		if err != nil {
			t.Fatal(err)
		}
		return len(data)
	}
	for _, c := range []struct {
		name   string
		config []byte
	}{{"Deployment", benchConfig(t, 2)}, {"Pod", []byte(benchPod)}} {
		obj, err := object.Builtin().Decode(c.config, 0)
		if err != nil {
			t.Fatal(err)
		}
		object.Default(obj)
		bare := size(obj)
		if err := Track(nil, obj, by); err != nil {
			t.Fatal(err)
		}
		created := size(obj)
		labeled := obj.DeepCopyObject().(object.Object)
		labeled.SetLabels(map[string]string{"app": "web", "a": "b"})
		if err := Track(obj, labeled, By{Manager: "kubectl-label", Now: by.Now}); err != nil {
			t.Fatal(err)
		}
		applied, err := Apply(object.Builtin(), nil, c.config, false, by)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes; created %d, then labeled by another %d; applied %d", c.name, bare, created, size(labeled), size(applied))
		if created > bare+100 || size(applied) > 4*bare {
			t.Errorf("%s: %d bytes are %d when created, %d when applied", c.name, bare, created, size(applied))
		}
	}
}

// BenchmarkNew: an apply of a Deployment that does not exist yet.
func BenchmarkNew(b *testing.B) {
	by := By{Manager: "kubectl", Now: time.Unix(1e9, 0)}
	config := benchConfig(b, 2)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Apply(object.Builtin(), nil, config, false, by); err != nil {
			b.Fatal(err)
		}
	}
}
