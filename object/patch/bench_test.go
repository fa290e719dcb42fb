package patch

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/object/openapi"
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
	obj, err := Apply(builtin{}, nil, configs[0], false, by)
	if err != nil {
		b.Fatal(err)
	}
	obj.SetUID("1")
	b.Run("changed", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if obj, err = Apply(builtin{}, obj, configs[i%2], false, by); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("unchanged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err = Apply(builtin{}, obj, configs[0], false, by); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("track", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			next := obj.DeepCopyObject().(object.Object)
			next.SetLabels(map[string]string{"app": "web", "tier": "back"})
			if err := Track(builtin{}, obj, next, By{Manager: "kubectl-label", Now: by.Now}); err != nil {
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
				c, err := typesOf(openapi.Versions()[0])
				if group != "" {
					c, err = typesOf(openapi.Versions()[1])
				}
				if err != nil || c == nil {
					b.Fatal(err)
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc)), "heap-B")
		})
	}
}

// TestBytes reports what managed fields weigh.
func TestBytes(t *testing.T) {
	obj, err := Apply(builtin{}, nil, benchConfig(t, 2), false, By{Manager: "kubectl", Now: time.Unix(1e9, 0)})
	if err != nil {
		t.Fatal(err)
	}
	with, err := object.Encode(obj)
	if err != nil {
		t.Fatal(err)
	}
	obj.SetManagedFields(nil)
	without, err := object.Encode(obj)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a Deployment is %d bytes, with managed fields %d", len(without), len(with))
	if len(with) > 4*len(without) {
		t.Errorf("managed fields make a Deployment of %d bytes one of %d", len(without), len(with))
	}
}
