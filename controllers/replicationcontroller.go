package controllers

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

var (
	replicationControllerResource = object.ResourceOf(&corev1.ReplicationController{})
	replicationControllerKind     = corev1.SchemeGroupVersion.WithKind("ReplicationController")
)

// replicaSetOf returns the ReplicaSet that rc would be: the older kind differs in
// nothing but its name and the form of its selector.
func replicaSetOf(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{
		ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        rc.Spec.Replicas,
			MinReadySeconds: rc.Spec.MinReadySeconds,
			Selector:        &metav1.LabelSelector{MatchLabels: rc.Spec.Selector},
		},
		Status: appsv1.ReplicaSetStatus{
			Replicas:             rc.Status.Replicas,
			FullyLabeledReplicas: rc.Status.FullyLabeledReplicas,
			ReadyReplicas:        rc.Status.ReadyReplicas,
			AvailableReplicas:    rc.Status.AvailableReplicas,
			ObservedGeneration:   rc.Status.ObservedGeneration,
		},
	}
	if rc.Spec.Template != nil {
		rs.Spec.Template = *rc.Spec.Template
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return rs
}

// setReplicationStatus is the way back, for the status.
func setReplicationStatus(rc *corev1.ReplicationController, s *appsv1.ReplicaSetStatus) {
	rc.Status = corev1.ReplicationControllerStatus{
		Replicas:             s.Replicas,
		FullyLabeledReplicas: s.FullyLabeledReplicas,
		ReadyReplicas:        s.ReadyReplicas,
		AvailableReplicas:    s.AvailableReplicas,
		ObservedGeneration:   s.ObservedGeneration,
	}
	for _, c := range s.Conditions {
		rc.Status.Conditions = append(rc.Status.Conditions, corev1.ReplicationControllerCondition{
			Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
}

// newReplicationControllers returns the controller that keeps
// ReplicationControllers, by the plan for ReplicaSets.
func newReplicationControllers(newUID, newSuffix func() string) *controller {
	return &controller{
		name: "replicationcontroller",
		all:  func(s state) []object.Key { return keysOf(s.index, replicationControllerResource) },
		affected: func(x *index, c change) []object.Key {
			return append(affectsItself(replicationControllerResource, c), affectsOwners(x, replicationControllerResource, podResource, c)...)
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			rc, ok := object.Get[*corev1.ReplicationController](s, key)
			if !ok {
				return outcome{}
			}
			rs := replicaSetOf(rc)
			// What a ReplicationController cannot hold is no change.
			before := rs.Status.DeepCopy()
			var orphans []*corev1.Pod
			if selector := usable(rs.Spec.Selector); selector != nil {
				orphans = orphansFor[*corev1.Pod](s, podResource.Prefix(rc.Namespace), selector)
			}
			newPod := func() (string, types.UID) { return newSuffix(), types.UID(newUID()) }
			admission := s.admission(rc.Namespace)
			plan := planReplicaSet(rs, ownedBy[*corev1.Pod](s, rc), orphans, newPod, admission.admit, now)
			if plan.status != nil {
				plan.status.TerminatingReplicas = before.TerminatingReplicas
				plan.changed = !sameStatus(plan.status, before)
			}
			o := plan.outcome(rc, replicationControllerKind, replicasOf(rc.Spec.Replicas), func(status *appsv1.ReplicaSetStatus) { setReplicationStatus(rc, status) }, now)
			if len(plan.create) > 0 {
				admission.write(&o)
			}
			return o
		},
	}
}
