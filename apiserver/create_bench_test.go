package apiserver

import (
	"fmt"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// benchPod is a pod as people write them.
func benchPod(name string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": "web", "tier": "front"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: "registry.example.com/web:1.2.3",
			Env:   []corev1.EnvVar{{Name: "MODE", Value: "production"}, {Name: "LEVEL", Value: "info"}},
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")},
				Limits:   corev1.ResourceList{"memory": resource.MustParse("256Mi")},
			},
		}}},
	}
}

// BenchmarkCreate creates pods by calls within the process, with a store of one peer
// in memory: what the API itself costs.
func BenchmarkCreate(b *testing.B) {
	for _, bench := range []struct {
		name   string
		encode func(object.Object) ([]byte, error)
	}{{"protobuf", object.Encode}, {"json", object.EncodeJSON}} {
		b.Run(bench.name, func(b *testing.B) {
			c := newCluster(b, 1)
			api := c.servers["peer-1"].Objects()
			ctx := withIdentity(b.Context(), alice)
			var n atomic.Int64
			b.SetParallelism(50)
			b.ReportAllocs()
			b.ResetTimer()
			begin := cpuTime()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					data, err := bench.encode(benchPod(fmt.Sprintf("pod-%07d", n.Add(1))))
					if err != nil {
						b.Fatal(err)
					}
					if _, err := api.Create(ctx, &holdfastv1.CreateRequest{Object: &holdfastv1.Object{Data: data}}); err != nil {
						b.Fatal(err)
					}
				}
			})
			reportCPU(b, begin)
		})
	}
}
