package controllers

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
)

// pressureTaints are the taints of nodes that are short of something, or have no network
// for pods, by the condition with which their agents say so.
var pressureTaints = []struct {
	condition corev1.NodeConditionType
	key       string
}{
	{corev1.NodeMemoryPressure, corev1.TaintNodeMemoryPressure},
	{corev1.NodeDiskPressure, corev1.TaintNodeDiskPressure},
	{corev1.NodePIDPressure, corev1.TaintNodePIDPressure},
	{corev1.NodeNetworkUnavailable, corev1.TaintNodeNetworkUnavailable},
}

// setPressureTaints keeps new pods from a node that is short of something, for as long
// as its conditions say so, and returns whether that is news. It evicts nobody: the node does.
func setPressureTaints(node *corev1.Node, now time.Time) (changed bool) {
	for _, p := range pressureTaints {
		c := object.NodeCondition(node, p.condition)
		want := c != nil && c.Status == corev1.ConditionTrue
		at := slices.IndexFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == p.key && t.Effect == corev1.TaintEffectNoSchedule })
		switch {
		case want && at < 0:
			node.Spec.Taints = append(slices.Clone(node.Spec.Taints), corev1.Taint{
				Key: p.key, Effect: corev1.TaintEffectNoSchedule, TimeAdded: new(metav1.NewTime(now.Truncate(time.Second))),
			})
			changed = true
		case !want && at >= 0:
			node.Spec.Taints = slices.Delete(slices.Clone(node.Spec.Taints), at, at+1)
			if len(node.Spec.Taints) == 0 {
				node.Spec.Taints = nil
			}
			changed = true
		}
	}
	return changed
}
