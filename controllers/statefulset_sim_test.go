package controllers

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

// simStatefulSet returns a StatefulSet as the API would store it.
func simStatefulSet(t testing.TB, text string) *appsv1.StatefulSet {
	t.Helper()
	set := one(t, []byte(text)).statefulSet()
	set.ResourceVersion = ""
	object.Default(set)
	return set
}

func (s *sim) statefulSet(name string) *appsv1.StatefulSet {
	s.t.Helper()
	set, ok := object.Get[*appsv1.StatefulSet](s.view(), statefulSetResource.Key("default", name))
	if !ok {
		s.t.Fatalf("statefulset %s is gone", name)
	}
	return set
}

// change changes a StatefulSet's spec as the API would.
func (s *sim) change(name string, change func(*appsv1.StatefulSet)) {
	s.t.Helper()
	set := s.statefulSet(name)
	change(set)
	object.Default(set)
	set.Generation++
	s.put(set)
}

// step lets somebody, drawn by lot, do something.
func (s *sim) step() {
	switch n := s.rand.IntN(19); {
	case n == 0 && s.rand.IntN(15) == 0:
		s.newLeader()
	case n < 9:
		s.controllers(true)
	case n < 11:
		s.commitLate()
	case n < 18:
		s.agent()
	default:
		s.now = s.now.Add(time.Duration(s.rand.IntN(5000)) * time.Millisecond)
	}
}

// TestStatefulSetsKeepTheirBounds plays random updates: at every revision, from the
// first time that all pods are available, at most maxUnavailable of them are not;
// and a pod of a number is created only when the one before is gone, which the
// store would refuse otherwise. A broken template may come in between: the next one
// repairs it.
func TestStatefulSetsKeepTheirBounds(t *testing.T) {
	for seed := range historiesOr(12) {
		s := newSim(t, uint64(2000+seed))
		replicas, unavailable := 1+s.rand.IntN(5), 1+s.rand.IntN(2)
		parallel := []string{"", "Parallel"}[s.rand.IntN(2)]
		minReady := s.rand.IntN(2) * 10
		set := simStatefulSet(t, fmt.Sprintf("db replicas=%d image=v0 unavailable=%d minReady=%d history=2 claims=data %s", replicas, unavailable, minReady, parallel))
		complete := false
		s.check = func() {
			available := 0
			for _, pod := range s.pods() {
				if ok, _ := object.PodAvailable(pod, int32(minReady), s.now); ok && !object.Deleting(pod) {
					available++
				}
			}
			if complete = complete || available == replicas; complete && available < replicas-unavailable {
				t.Fatalf("seed %d, revision %d: %d of %d pods available, want at most %d that are not", seed, s.state.Root().Revision(), available, replicas, unavailable)
			}
		}
		s.put(set)
		for step := range 600 {
			if s.step(); step%40 == 39 {
				image := fmt.Sprintf("v%d", s.rand.IntN(4))
				if s.rand.IntN(4) == 0 {
					image = brokenImage
				}
				s.change("db", func(set *appsv1.StatefulSet) { set.Spec.Template = templateOf(image, "web") })
			}
		}
		s.change("db", func(set *appsv1.StatefulSet) { set.Spec.Template = templateOf("final", "web") })
		s.settle()
		s.mustBeStateful(uint64(2000 + seed))
	}
}

// TestStatefulSetsSurviveAnything plays the same with scaling, and with pods that
// fail, become unready or are deleted. In the end all is as declared.
func TestStatefulSetsSurviveAnything(t *testing.T) {
	for seed := range historiesOr(12) {
		s := newSim(t, uint64(3000+seed))
		parallel := []string{"", "Parallel"}[s.rand.IntN(2)]
		s.put(simStatefulSet(t, fmt.Sprintf("db replicas=3 image=v0 history=1 claims=data %s", parallel)))
		for step := range 600 {
			s.step()
			if step%5 == 0 {
				s.disturb()
			}
			if step%40 == 39 {
				s.change("db", func(set *appsv1.StatefulSet) {
					switch s.rand.IntN(4) {
					case 0:
						set.Spec.Replicas = new(int32(s.rand.IntN(6)))
					case 1:
						set.Spec.UpdateStrategy.RollingUpdate.Partition = new(int32(s.rand.IntN(4)))
					case 2:
						set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: int32(s.rand.IntN(3))}
					default:
						set.Spec.Template = templateOf([]string{"v1", "v2", brokenImage}[s.rand.IntN(3)], "web")
					}
				})
			}
		}
		s.change("db", func(set *appsv1.StatefulSet) {
			set.Spec.Template = templateOf("final", "web")
			set.Spec.UpdateStrategy.RollingUpdate.Partition = new(int32(0))
		})
		s.settle()
		s.mustBeStateful(uint64(3000 + seed))
	}
}

// mustBeStateful fails unless the set has exactly its pods, all of its template and
// ready, and says so.
func (s *sim) mustBeStateful(seed uint64) {
	s.t.Helper()
	set := s.statefulSet("db")
	start := 0
	if o := set.Spec.Ordinals; o != nil {
		start = int(o.Start)
	}
	want := int(*set.Spec.Replicas)
	pods := s.pods()
	for _, pod := range pods {
		n, ok := ordinalOf(set, pod.Name)
		if !ok || n < start || n >= start+want || !running(pod) || pod.Spec.Containers[0].Image != "final" {
			s.t.Fatalf("seed %d: at rest pod %s runs %s, ready %v; want %d pods from %d on", seed, pod.Name, pod.Spec.Containers[0].Image, running(pod), want, start)
		}
		if _, ok := object.Get[*corev1.PersistentVolumeClaim](s.view(), claimResource.Key("default", "data-"+pod.Name)); !ok {
			s.t.Fatalf("seed %d: pod %s has no claim", seed, pod.Name)
		}
	}
	st := set.Status
	if len(pods) != want || int(st.AvailableReplicas) != want || int(st.UpdatedReplicas) != want || st.CurrentRevision != st.UpdateRevision || st.ObservedGeneration != set.Generation {
		s.t.Fatalf("seed %d: at rest %d pods, want %d; status %+v", seed, len(pods), want, st)
	}
	if n := len(object.List[*appsv1.ControllerRevision](s.view(), "default")); n > int(*set.Spec.RevisionHistoryLimit)+1 {
		s.t.Fatalf("seed %d: at rest %d revisions, want at most %d", seed, n, *set.Spec.RevisionHistoryLimit+1)
	}
}
