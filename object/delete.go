package object

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RemovedAnnotation is on a pod that is being deleted and of which its node has
// reported that nothing is left, while finalizers still hold the object.
const RemovedAnnotation = "holdfast.io/removed-from-node"

// Finished reports whether a terminating object, as it would be written, has nothing
// left that holds it: then it is to be removed from the store instead.
func Finished(obj Object) bool {
	if !Deleting(obj) || held(obj) {
		return false
	}
	pod, ok := obj.(*corev1.Pod)
	return !ok || pod.Spec.NodeName == "" || pod.Annotations[RemovedAnnotation] != ""
}

// MarkDeleted begins the deletion of obj at now, and reports whether obj is gone
// at once: then it is to be removed from the store, else written back as it is
// after the call.
//
// What stays is: an object with finalizers, until the last is removed; a
// namespace, until what is in it is gone (its finalizer, "kubernetes", comes from
// [Default]); a CustomResourceDefinition, until its objects are gone (its finalizer
// comes from [EstablishCRD]); and a pod that is bound to a node, until its agent reports that
// nothing of it is left, or its node is removed from the cluster. It gets, as in
// Kubernetes, a deletionTimestamp: the time when the pod will be killed, now +
// grace.
//
// grace is a pod's time to stop in, in whole seconds, rounded up; nil means what
// the pod asks for, 30 s if it does not say. Unlike in Kubernetes, a grace of 0
// does not make a bound pod vanish before its containers have: they are killed
// at once, and the object goes when that is known.
//
// A repeated call can only bring the end nearer. MarkDeleted changes nothing else
// and never fails.
func MarkDeleted(obj Object, now time.Time, grace *time.Duration) (gone bool) {
	seconds, bound := int64(0), false
	if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
		bound = true
		seconds = defaultGraceSeconds
		if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
			seconds = *s
		}
		if grace != nil {
			seconds = int64((*grace + time.Second - 1) / time.Second)
		}
		seconds = max(seconds, 0)
	}
	if !bound && !held(obj) {
		return true
	}

	at := metav1.NewTime(now.Add(time.Duration(seconds) * time.Second).Truncate(time.Second))
	if before := obj.GetDeletionTimestamp(); before != nil && !at.Before(before) {
		return false // as soon already
	}
	if obj.GetDeletionTimestamp() == nil && obj.GetGeneration() > 0 {
		obj.SetGeneration(obj.GetGeneration() + 1)
	}
	obj.SetDeletionTimestamp(&at)
	obj.SetDeletionGracePeriodSeconds(&seconds)
	if ns, ok := obj.(*corev1.Namespace); ok {
		ns.Status.Phase = corev1.NamespaceTerminating
	}
	if crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition); ok {
		setCRDCondition(crd, apiextensionsv1.CustomResourceDefinitionCondition{
			Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue, Reason: "InstanceDeletionPending",
			Message: "the objects of this kind are deleted first",
		}, now)
	}
	return false
}

// held reports whether finalizers keep obj.
func held(obj Object) bool {
	if ns, ok := obj.(*corev1.Namespace); ok && len(ns.Spec.Finalizers) > 0 {
		return true
	}
	return len(obj.GetFinalizers()) > 0
}

// Deleting reports whether obj's deletion has begun.
func Deleting(obj Object) bool {
	return obj.GetDeletionTimestamp() != nil
}
