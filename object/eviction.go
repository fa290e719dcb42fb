package object

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// ReplaceFirstAnnotation on a pod says until when whoever keeps a number of such pods
// is to keep one more: the pod is to be evicted once another serves in its place. Set
// by the API when it refuses an eviction, in RFC 3339.
const ReplaceFirstAnnotation = "holdfast.dev/replace-first"

// ReplaceFirstFor is how long a refused eviction counts. Who wants the pod gone tries
// again before that; when nobody does any more, the additional pod goes.
const ReplaceFirstFor = 2 * time.Minute

// ReplaceFirst returns for how long, from now, the pod is to be replaced before it is
// evicted; 0 if it is not.
func ReplaceFirst(pod *corev1.Pod, now time.Time) time.Duration {
	until, err := time.Parse(time.RFC3339, pod.Annotations[ReplaceFirstAnnotation])
	if err != nil {
		return 0
	}
	return min(max(until.Sub(now), 0), ReplaceFirstFor)
}

// CanReplaceFirst reports whether what controls the pod can start another before the
// pod goes. Pods of a StatefulSet or a DaemonSet cannot be twice.
func CanReplaceFirst(pod *corev1.Pod) bool {
	ref := ControllerOf(pod)
	return ref != nil && (ref.Kind == "ReplicaSet" && ref.APIVersion == "apps/v1" || ref.Kind == "ReplicationController" && ref.APIVersion == "v1")
}

// Surplus returns how many of pods, which serve, rs is about to remove: it keeps its
// number of them, and one more while one is to be replaced first.
func Surplus(rs *appsv1.ReplicaSet, pods []*corev1.Pod, now time.Time) int {
	keep, have := 1, 0
	if rs.Spec.Replicas != nil {
		keep = int(*rs.Spec.Replicas)
	}
	replacing := false
	for _, pod := range pods {
		if ref := ControllerOf(pod); ref != nil && ref.UID == rs.UID {
			have++
			replacing = replacing || ReplaceFirst(pod, now) > 0
		}
	}
	if replacing && keep > 0 {
		keep++
	}
	return max(have-keep, 0)
}
