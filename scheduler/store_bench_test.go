package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// BenchmarkOverStore has pods come to a store of one peer and waits until all are bound:
// what the loop costs around its decisions. One operation is one pod. The store's part
// and the making of the pods are in it.
func BenchmarkOverStore(b *testing.B) {
	store := storetest.New(b)
	leader := storetest.Leader(b, store)
	put := func(objs ...object.Object) {
		txn := raftstore.Txn{}
		for _, obj := range objs {
			data, err := object.Encode(obj)
			if err != nil {
				b.Fatal(err)
			}
			txn.Then = append(txn.Then, raftstore.Put(string(object.KeyOf(obj)), data))
		}
		if _, err := store.Txn(b.Context(), txn); err != nil {
			b.Fatal(err)
		}
	}
	const nodes = 1000
	for i := range nodes {
		node := shapeNode(i)
		node.Status.Allocatable[corev1.ResourcePods] = *resource.NewQuantity(int64(b.N/nodes+10), resource.DecimalSI)
		node.Status.Allocatable[corev1.ResourceCPU] = *resource.NewQuantity(int64(b.N), resource.DecimalSI)
		node.Status.Allocatable[corev1.ResourceMemory] = *resource.NewQuantity(int64(b.N+1)<<30, resource.DecimalSI)
		put(node)
	}
	ctx, cancel := context.WithCancel(b.Context())
	s := New(Config{Leader: leader, Logger: slog.New(slog.DiscardHandler)})
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	b.ReportAllocs()
	b.ResetTimer()
	begin := cpuTime()
	const batch = 100
	for i := 0; i < b.N; i += batch {
		var objs []object.Object
		for j := i; j < min(i+batch, b.N); j++ {
			pod := shapePod("p", j, nil)
			object.Default(pod)
			objs = append(objs, pod)
		}
		put(objs...)
	}
	for view := store.View(); ; view = store.View() {
		changed := view.Changed()
		if pod, ok := object.Get[*corev1.Pod](view, object.Key(fmt.Sprintf("pods/default/p-%05d", b.N-1))); ok && pod.Spec.NodeName != "" {
			break
		}
		select {
		case <-changed:
		case <-time.After(time.Minute):
			b.Fatal("the last pod has no node")
		}
	}
	b.StopTimer()
	b.ReportMetric(float64((cpuTime()-begin).Microseconds())/float64(b.N), "cpu-us/pod")
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
