package agent

import (
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
)

var (
	// errInfeasible is returned for more than the node will ever have.
	errInfeasible = errors.New("infeasible")
	// errDeferred is returned for more than the node has at the moment.
	errDeferred = errors.New("deferred")
)

// allocations is what of the node is given to which pod, so that two that grow at the
// same time are not both given what is left. New pods are not asked: it is the scheduler
// that knows for them. Safe for concurrent use.
type allocations struct {
	of corev1.ResourceList // the node's allocatable; what is not in it is not bounded

	mu   sync.Mutex
	held map[string]corev1.ResourceList // by uid
	room uint64                         // changes when there is more
	wait map[string]func()              // by uid: who is told then
}

// hold notes what a pod has been given, whether there is room or not.
func (a *allocations) hold(uid string, given corev1.ResourceList) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.put(uid, given)
}

// put notes what a pod has. a.mu is held.
func (a *allocations) put(uid string, given corev1.ResourceList) {
	if a.held == nil {
		a.held, a.wait = map[string]corev1.ResourceList{}, map[string]func(){}
	}
	freed := false
	for name, had := range a.held[uid] {
		has := given[name]
		freed = freed || has.Cmp(had) < 0
	}
	if given == nil {
		delete(a.held, uid)
	} else {
		a.held[uid] = given
	}
	if !freed {
		return
	}
	a.room++
	for _, tell := range a.wait {
		tell()
	}
	clear(a.wait)
}

// release gives back what a pod had. A repeated call is harmless.
func (a *allocations) release(uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.wait, uid)
	a.put(uid, nil)
}

// roomNow returns a number that changes when a pod has given something back.
func (a *allocations) roomNow() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.room
}

// allocate gives a pod what it wants instead of what it has, or says in an error that
// matches errInfeasible or errDeferred why not. Then tell is called, once, when there is
// more room. Less than it has is always given.
func (a *allocations) allocate(uid string, want corev1.ResourceList, tell func()) (room uint64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, name := range resizable {
		wants, has, capacity := quantity(want, name), quantity(a.held[uid], name), quantity(a.of, name)
		if _, bounded := a.of[name]; !bounded || wants.Cmp(has) <= 0 {
			continue
		}
		number := func(of corev1.ResourceList) int64 {
			q := of[name]
			if name == corev1.ResourceCPU {
				return q.MilliValue()
			}
			return q.Value()
		}
		if wants.Cmp(capacity) > 0 {
			return a.room, &refusal{errInfeasible, fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d", name, number(want), number(a.of))}
		}
		var used int64
		for other, given := range a.held {
			if other != uid {
				used += number(given)
			}
		}
		if used+number(want) > number(a.of) {
			if a.wait == nil {
				a.wait = map[string]func(){}
			}
			a.wait[uid] = tell
			return a.room, &refusal{errDeferred, fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, number(want), used, number(a.of))}
		}
	}
	a.put(uid, want)
	return a.room, nil
}

// refusal says text and is kind.
type refusal struct {
	kind error
	text string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }
