package object

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// VolumeServes reports whether pv is free for claim, or for nobody else, and is
// what claim asks for.
func VolumeServes(pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	if Deleting(pv) || pv.Spec.StorageClassName != deref(claim.Spec.StorageClassName) {
		return false
	}
	if ref := pv.Spec.ClaimRef; ref != nil && (ref.Namespace != claim.Namespace || ref.Name != claim.Name || ref.UID != "" && ref.UID != claim.UID) {
		return false
	}
	have := pv.Spec.Capacity[corev1.ResourceStorage]
	if have.Cmp(claim.Spec.Resources.Requests[corev1.ResourceStorage]) < 0 {
		return false
	}
	for _, mode := range claim.Spec.AccessModes {
		if !slices.Contains(pv.Spec.AccessModes, mode) {
			return false
		}
	}
	if a, b := pv.Spec.VolumeMode, claim.Spec.VolumeMode; a != nil && b != nil && *a != *b {
		return false
	}
	if claim.Spec.Selector == nil {
		return true
	}
	selector, err := metav1.LabelSelectorAsSelector(claim.Spec.Selector)
	return err == nil && selector.Matches(labels.Set(pv.Labels))
}

// VolumeOnNode reports whether a pod on node can use pv.
func VolumeOnNode(pv *corev1.PersistentVolume, node *corev1.Node) bool {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return true
	}
	return anyTermMatches(pv.Spec.NodeAffinity.Required.NodeSelectorTerms, node.Name, node.Labels)
}
