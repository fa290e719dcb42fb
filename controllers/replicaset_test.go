package controllers

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestPlanReplicaSet runs testdata/replicaset/*.txtar. Each file states one rule in
// its comment, the objects before, and the plan under "want". To accept new
// behavior run with -update, then review the diff as part of the change.
func TestPlanReplicaSet(t *testing.T) {
	golden.Run(t, "testdata/replicaset/*.txtar", func(t *testing.T, in golden.Input) string {
		rs := one(t, in.File("replicaset")).replicaSet()
		pods := parsePods(t, in.File("pods"))
		var orphans []*corev1.Pod
		if data, ok := in.Lookup("orphans"); ok {
			orphans = parsePods(t, data)
		}
		name := sequential("new")
		plan := planReplicaSet(rs, pods, orphans, func() (string, types.UID) { n := name(); return n, types.UID("uid-" + n) }, admitAll, testNow)
		return describeReplicaSetPlan(plan)
	})
}

func describeReplicaSetPlan(p replicaSetPlan) string {
	var b strings.Builder
	for _, pod := range p.adopt {
		fmt.Fprintf(&b, "adopt %s\n", pod.Name)
	}
	for _, pod := range p.release {
		fmt.Fprintf(&b, "release %s\n", pod.Name)
	}
	if n := len(p.create); n > 3 {
		fmt.Fprintf(&b, "create %s … %s (%d)\n", p.create[0].Name, p.create[n-1].Name, n)
	} else {
		for _, pod := range p.create {
			fmt.Fprintf(&b, "create %s\n", pod.Name)
		}
	}
	for _, r := range p.remove {
		fmt.Fprintf(&b, "remove %s (%s)\n", r.pod.Name, r.reason)
	}
	if s := p.status; s == nil {
		b.WriteString("nothing\n")
	} else if !p.changed {
		b.WriteString("status unchanged\n")
	} else {
		fmt.Fprintf(&b, "status replicas=%d ready=%d available=%d terminating=%d\n", s.Replicas, s.ReadyReplicas, s.AvailableReplicas, *s.TerminatingReplicas)
		for _, c := range s.Conditions {
			fmt.Fprintf(&b, "condition %s=%s %s: %s\n", c.Type, c.Status, c.Reason, c.Message)
		}
	}
	if p.again > 0 {
		fmt.Fprintf(&b, "again in %v\n", p.again)
	}
	if p.more {
		b.WriteString("more\n")
	}
	return b.String()
}

// TestPodFromTemplate covers what the plans' text does not show: what a new pod is.
func TestPodFromTemplate(t *testing.T) {
	rs := one(t, []byte("web replicas=1")).replicaSet()
	rs.Name = strings.Repeat("long-", 20)
	rs.Spec.Template.Annotations = map[string]string{"note": "x"}
	pod := podFromTemplate(rs, "abcde", "uid-1", testNow)
	if len(pod.Name) != 63 || !strings.HasSuffix(pod.Name, "abcde") {
		t.Errorf("name %q has %d bytes, want 63 ending in the suffix: it becomes a host name", pod.Name, len(pod.Name))
	}
	owner := pod.OwnerReferences[0]
	if owner.UID != rs.UID || owner.Controller == nil || !*owner.Controller || owner.Kind != "ReplicaSet" || owner.APIVersion != "apps/v1" {
		t.Errorf("owner reference %+v does not name the set as controller", owner)
	}
	if pod.Labels["app"] != "web" || pod.Annotations["note"] != "x" || pod.Namespace != "default" || pod.UID != "uid-1" || !pod.CreationTimestamp.Time.Equal(testNow) {
		t.Errorf("metadata %+v does not follow the template", pod.ObjectMeta)
	}
	if pod.Spec.RestartPolicy != corev1.RestartPolicyAlways || pod.Status.Phase != corev1.PodPending {
		t.Errorf("restartPolicy %q, phase %q: the defaults are missing", pod.Spec.RestartPolicy, pod.Status.Phase)
	}
	pod.Labels["app"] = "changed"
	if rs.Spec.Template.Labels["app"] != "web" {
		t.Error("changing the pod's labels changed the template")
	}
}
