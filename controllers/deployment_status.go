package controllers

import (
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// setStatus sums up the ReplicaSets' statuses and derives the conditions. It
// returns when the progress deadline will have passed, 0 if it does not run.
func (r *rollout) setStatus() (again time.Duration) {
	d := r.d
	before, s := d.Status.DeepCopy(), &d.Status
	s.ObservedGeneration = d.Generation
	s.Replicas, s.UpdatedReplicas, s.ReadyReplicas, s.AvailableReplicas = 0, 0, 0, 0
	size, terminating := int32(0), int32(0)
	for _, rs := range r.all() {
		size += replicasOf(rs.Spec.Replicas)
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		s.AvailableReplicas += rs.Status.AvailableReplicas
		if n := rs.Status.TerminatingReplicas; n != nil {
			terminating += *n
		}
	}
	if r.current != nil {
		s.UpdatedReplicas = r.current.Status.Replicas
	}
	s.UnavailableReplicas = max(size-s.AvailableReplicas, 0)
	s.TerminatingReplicas = &terminating

	r.setAvailable()
	r.setReplicaFailure()
	return r.setProgressing(before)
}

func (r *rollout) setAvailable() {
	c := appsv1.DeploymentCondition{
		Type:    appsv1.DeploymentAvailable,
		Status:  corev1.ConditionTrue,
		Reason:  "MinimumReplicasAvailable",
		Message: "Deployment has minimum availability.",
	}
	if r.d.Status.AvailableReplicas < replicasOf(r.d.Spec.Replicas)-maxUnavailable(r.d) {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability."
	}
	r.setCondition(c)
}

// setReplicaFailure passes on what the ReplicaSets say of pods that fail, the
// current one's word first.
func (r *rollout) setReplicaFailure() {
	sets := r.all()
	slices.Reverse(sets)
	for _, rs := range sets {
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
				r.setCondition(appsv1.DeploymentCondition{Type: appsv1.DeploymentReplicaFailure, Status: c.Status, Reason: c.Reason, Message: c.Message})
				return
			}
		}
	}
	r.d.Status.Conditions = slices.DeleteFunc(r.d.Status.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == appsv1.DeploymentReplicaFailure })
}

// setProgressing says how the rollout goes: progress is any count that moved the
// right way since before; without any for progressDeadlineSeconds it is stuck.
// The condition is what tools wait for; nothing is undone then, unless the
// Deployment asks for it (rollBack).
func (r *rollout) setProgressing(before *appsv1.DeploymentStatus) (again time.Duration) {
	d, s := r.d, &r.d.Status
	deadline := d.Spec.ProgressDeadlineSeconds
	if deadline == nil || *deadline == math.MaxInt32 {
		s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == appsv1.DeploymentProgressing })
		return 0
	}
	c := progressing(s)
	if c != nil && c.Reason != reasonDeadlineExceeded {
		switch {
		case d.Spec.Paused && c.Reason != reasonPaused:
			r.setCondition(r.progressCondition(corev1.ConditionUnknown, reasonPaused, "Deployment is paused"))
		case !d.Spec.Paused && c.Reason == reasonPaused:
			r.setCondition(r.progressCondition(corev1.ConditionUnknown, reasonResumed, "Deployment is resumed"))
		}
	}
	if d.Spec.Paused || r.current == nil {
		return 0
	}

	name := r.current.Name
	c = progressing(s)
	switch {
	case complete(d, s):
		if r.current.Annotations[rolledBackAnnotation] != "" { // it came back, and works now
			delete(r.current.Annotations, rolledBackAnnotation)
			r.touched[r.current] = true
		}
		if c == nil || c.Reason != reasonComplete {
			r.progress(reasonComplete, fmt.Sprintf("ReplicaSet %s has successfully progressed.", name))
		}
		return 0
	case c != nil && c.Reason == reasonComplete && s.Replicas == s.UpdatedReplicas:
		return 0 // pods come and go, or the size changed: that is no rollout
	case r.created:
		// said when it was created
	case c == nil, c.Reason == reasonComplete, progressed(before, s):
		r.progress(reasonUpdated, fmt.Sprintf("ReplicaSet %s is progressing.", name))
	}

	c = progressing(s)
	if c.Reason == reasonDeadlineExceeded {
		return 0
	}
	left := c.LastUpdateTime.Add(time.Duration(*deadline) * time.Second).Sub(r.now)
	if left <= 0 {
		r.setCondition(r.progressCondition(corev1.ConditionFalse, reasonDeadlineExceeded, timedOut(r.current)))
		if d.Annotations[rollbackAnnotation] == "true" {
			return 1 // the way back is the next step
		}
		return 0
	}
	return left
}

func timedOut(rs *appsv1.ReplicaSet) string {
	return fmt.Sprintf("ReplicaSet %s has timed out progressing.", rs.Name)
}

// complete reports whether all of d's pods are of the current template and
// available, and no others are left.
func complete(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	want := replicasOf(d.Spec.Replicas)
	return s.UpdatedReplicas == want && s.Replicas == want && s.AvailableReplicas == want && s.ObservedGeneration >= d.Generation
}

// progressed reports whether the rollout has come nearer to its end.
func progressed(before, now *appsv1.DeploymentStatus) bool {
	return now.UpdatedReplicas > before.UpdatedReplicas ||
		now.Replicas-now.UpdatedReplicas < before.Replicas-before.UpdatedReplicas ||
		now.ReadyReplicas > before.ReadyReplicas ||
		now.AvailableReplicas > before.AvailableReplicas
}

func progressing(s *appsv1.DeploymentStatus) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == appsv1.DeploymentProgressing {
			return &s.Conditions[i]
		}
	}
	return nil
}

// progress notes that the rollout moved, now.
func (r *rollout) progress(reason, message string) {
	if d := r.d.Spec.ProgressDeadlineSeconds; d == nil || *d == math.MaxInt32 {
		return
	}
	r.setCondition(r.progressCondition(corev1.ConditionTrue, reason, message))
}

func (r *rollout) progressCondition(status corev1.ConditionStatus, reason, message string) appsv1.DeploymentCondition {
	return appsv1.DeploymentCondition{
		Type: appsv1.DeploymentProgressing, Status: status, Reason: reason, Message: message,
		LastUpdateTime: metav1.NewTime(r.now.Truncate(time.Second)),
	}
}

// setCondition puts c among d's conditions. Without a lastUpdateTime of its own,
// c is an update only if it says something new.
func (r *rollout) setCondition(c appsv1.DeploymentCondition) {
	now := metav1.NewTime(r.now.Truncate(time.Second))
	conditions := r.d.Status.Conditions
	at := slices.IndexFunc(conditions, func(have appsv1.DeploymentCondition) bool { return have.Type == c.Type })
	c.LastTransitionTime = now
	if at < 0 {
		if c.LastUpdateTime.IsZero() {
			c.LastUpdateTime = now
		}
		r.d.Status.Conditions = append(conditions, c)
		return
	}
	old := conditions[at]
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	if c.LastUpdateTime.IsZero() {
		c.LastUpdateTime = now
		if old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			c.LastUpdateTime = old.LastUpdateTime
		}
	}
	conditions[at] = c
}
