package controllers

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestPressureTaints: the taints follow the conditions, each change once, and those that people
// have set stay.
func TestPressureTaints(t *testing.T) {
	own := corev1.Taint{Key: "team", Value: "a", Effect: corev1.TaintEffectNoSchedule}
	node := &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{own}}}
	set := func(memory, disk corev1.ConditionStatus) {
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeMemoryPressure, Status: memory}, {Type: corev1.NodeDiskPressure, Status: disk}}
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, step := range []struct {
		memory, disk corev1.ConditionStatus
		want         []string
	}{
		{corev1.ConditionFalse, corev1.ConditionFalse, []string{"team"}},
		{corev1.ConditionTrue, corev1.ConditionFalse, []string{"team", corev1.TaintNodeMemoryPressure}},
		{corev1.ConditionTrue, corev1.ConditionTrue, []string{"team", corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure}},
		{corev1.ConditionUnknown, corev1.ConditionTrue, []string{"team", corev1.TaintNodeDiskPressure}},
		{corev1.ConditionFalse, corev1.ConditionFalse, []string{"team"}},
	} {
		set(step.memory, step.disk)
		before := len(node.Spec.Taints)
		if changed := setPressureTaints(node, now); changed != (before != len(step.want)) {
			t.Errorf("memory %s, disk %s: changed is %v", step.memory, step.disk, changed)
		}
		if setPressureTaints(node, now.Add(time.Hour)) {
			t.Errorf("memory %s, disk %s: a second time it changes something", step.memory, step.disk)
		}
		var got []string
		for _, taint := range node.Spec.Taints {
			got = append(got, taint.Key)
			if taint.Effect != corev1.TaintEffectNoSchedule {
				t.Errorf("taint %s has effect %s", taint.Key, taint.Effect)
			}
		}
		if len(got) != len(step.want) {
			t.Errorf("memory %s, disk %s: taints %v, want %v", step.memory, step.disk, got, step.want)
			continue
		}
		for i := range got {
			if got[i] != step.want[i] {
				t.Errorf("memory %s, disk %s: taints %v, want %v", step.memory, step.disk, got, step.want)
			}
		}
	}
	empty := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodePIDPressure, Status: corev1.ConditionTrue}}}}
	setPressureTaints(empty, now)
	empty.Status.Conditions = nil
	if setPressureTaints(empty, now); empty.Spec.Taints != nil {
		t.Errorf("taints are %v, want none", empty.Spec.Taints)
	}
}
