package agent

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// TestAllocations: of pods that all grow at once no more are given it than there is room
// for, and those that wait are told, once, when one gives something back.
func TestAllocations(t *testing.T) {
	list := func(cpu int64) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: *resource.NewQuantity(cpu, resource.DecimalSI)}
	}
	a := allocations{of: list(30)}
	var told, given atomic.Int64
	var wg sync.WaitGroup
	for i := range 10 {
		a.hold(fmt.Sprint(i), list(1))
	}
	for i := range 10 {
		wg.Go(func() {
			switch _, err := a.allocate(fmt.Sprint(i), list(5), func() { told.Add(1) }); {
			case err == nil:
				given.Add(1)
			case !errors.Is(err, errDeferred):
				t.Errorf("pod %d: %v, want it deferred", i, err)
			}
		})
	}
	wg.Wait()
	if given.Load() != 5 || told.Load() != 0 { // 5 of 5 and 5 of 1 are 30
		t.Errorf("%d pods were given 5 of 30, %d were told; want 5 and 0", given.Load(), told.Load())
	}
	if _, err := a.allocate("0", list(31), nil); !errors.Is(err, errInfeasible) {
		t.Errorf("31 of 30: %v, want it infeasible", err)
	}
	room := a.roomNow()
	a.release("nobody")
	if a.roomNow() != room {
		t.Error("the room changed with a pod that had nothing")
	}
	for i := range 10 {
		if q := a.held[fmt.Sprint(i)][corev1.ResourceCPU]; q.Value() == 5 {
			a.release(fmt.Sprint(i))
			break
		}
	}
	if told.Load() != 5 || a.roomNow() == room {
		t.Errorf("%d were told that there is room, want the 5 that wait", told.Load())
	}
	if _, err := a.allocate("1", list(1), nil); err != nil {
		t.Errorf("no more than it has: %v", err)
	}
}
