package peer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/internal/testcluster"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// patch merges text, JSON, into an object.
func patch(t *testing.T, c *testcluster.Cluster, kind *holdfastv1.Kind, namespace, name, subresource, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Patience)
	defer cancel()
	_, err := c.Client().Objects().Patch(ctx, &holdfastv1.PatchRequest{
		Kind: kind, Namespace: namespace, Name: name, Subresource: subresource, Type: holdfastv1.PatchType_PATCH_TYPE_MERGE, Patch: []byte(text),
	})
	if err != nil {
		t.Fatalf("patch %s %s: %v", kind.GetKind(), name, err)
	}
}

var (
	nodeKind   = &holdfastv1.Kind{Version: "v1", Kind: "Node"}
	budgetKind = &holdfastv1.Kind{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget"}
)

// find returns the object of a name, nil if there is none.
func find[T object.Object](c *testcluster.Cluster, kind, namespace, name string) (found T) {
	for _, obj := range c.List(kind, namespace) {
		if obj.GetName() == name {
			found = obj.(T)
		}
	}
	return found
}

// waitFor waits for done, which is asked with what the cluster has then.
func waitFor(t *testing.T, c *testcluster.Cluster, what string, done func() (bool, string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*testcluster.Patience)
	defer cancel()
	c.WaitFor(ctx, what, done)
}

// TestDrainOutlivesClientAndLeader: a drain is the cluster's. Nobody follows it here;
// the leader that began it is gone before a budget lets the pods go; the next one brings
// it to its end, and never takes more than the budget allows.
func TestDrainOutlivesClientAndLeader(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3, Nodes: 2})
	patch(t, c, nodeKind, "", "n2", "", `{"spec":{"unschedulable":true}}`)
	c.Apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: web, image: "fake/web:1"}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: default}
spec: {minAvailable: 9, selector: {matchLabels: {app: web}}}
`)
	ready := func() (on map[string]int, total int) {
		on = map[string]int{}
		for _, obj := range c.List("Pod", "default") {
			if pod := obj.(*corev1.Pod); object.PodReady(pod) && !object.Deleting(pod) {
				on[pod.Spec.NodeName]++
				total++
			}
		}
		return on, total
	}
	waitFor(t, c, "two pods on n1", func() (bool, string) { on, _ := ready(); return on["n1"] == 2, fmt.Sprint(on) })
	patch(t, c, nodeKind, "", "n2", "", `{"spec":{"unschedulable":null}}`)

	request, err := json.Marshal(object.Drain{ID: "test", ReplaceFirst: true}.String())
	if err != nil {
		t.Fatal(err)
	}
	patch(t, c, nodeKind, "", "n1", "", fmt.Sprintf(`{"spec":{"unschedulable":true},"metadata":{"annotations":{%q:%s}}}`, object.DrainAnnotation, request))
	condition := func() (asked bool, drained corev1.NodeCondition) {
		node := find[*corev1.Node](c, "Node", "", "n1")
		_, asked = node.Annotations[object.DrainAnnotation]
		if at := object.NodeCondition(node, object.NodeDrained); at != nil {
			drained = *at
		}
		return asked, drained
	}
	waitFor(t, c, "the budget to hold the pods", func() (bool, string) {
		asked, drained := condition()
		return asked && drained.Reason == object.DrainGoesOn && strings.Count(drained.Message, "waits: the disruption budget web") == 2, drained.Reason + " " + drained.Message
	})

	leader := c.Leader()
	leader.Stop()
	if next := c.Leader(); next == leader {
		t.Fatalf("%s leads although it has stopped", leader.Name)
	}
	patch(t, c, budgetKind, "default", "web", "", `{"spec":{"minAvailable":2}}`)
	fewest := 2
	waitFor(t, c, "the node to be drained", func() (bool, string) {
		if _, total := ready(); total < fewest {
			fewest = total
		}
		asked, drained := condition()
		return !asked && drained.Status == corev1.ConditionTrue, fmt.Sprintf("asked %v, %s %s", asked, drained.Reason, drained.Message)
	})
	if fewest < 2 {
		t.Errorf("%d pods served while the node was drained, and the budget needs 2", fewest)
	}
	if on, _ := ready(); on["n1"] != 0 || on["n2"] < 2 {
		t.Errorf("the pods that serve are on %v, want none on n1 and 2 on n2", on)
	}
	patch(t, c, nodeKind, "", "n1", "", `{"spec":{"unschedulable":null}}`)
	waitFor(t, c, "the condition to go", func() (bool, string) { _, drained := condition(); return drained.Type == "", drained.Reason })
}

// TestClaimsAndPreemptionOverElections: a claim's volume is made on the node of its
// first pod; a claim for one pod is waited for; what is more important has its place and
// its claim, once those who have them are gone; and leaders change in the middle.
func TestClaimsAndPreemptionOverElections(t *testing.T) {
	c := testcluster.Start(t, testcluster.Config{Peers: 3, Nodes: 2})
	patch(t, c, nodeKind, "", "n1", "status", `{"status":{"capacity":{"example.com/slot":"1"}}}`)
	c.Apply(`
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: high}
value: 100
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: late}
provisioner: local.holdfast.dev
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: default}
spec: {storageClassName: late, accessModes: [ReadWriteOncePod], resources: {requests: {storage: 1Mi}}}
`)
	pod := func(name, class, volumes, resources string) {
		t.Helper()
		mounts := "[]"
		if volumes != "[]" {
			mounts = "[{name: data, mountPath: /data}]"
		}
		c.Apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  priorityClassName: %q
  terminationGracePeriodSeconds: 1
  volumes: %s
  containers: [{name: c, image: "fake/web:1", volumeMounts: %s, resources: {limits: %s}}]
`, name, class, volumes, mounts, resources))
	}
	const data, slot = "[{name: data, persistentVolumeClaim: {claimName: data}}]", `{"example.com/slot": 1}`
	say := func(name string) (*corev1.Pod, string) {
		pod := find[*corev1.Pod](c, "Pod", "default", name)
		if pod == nil {
			return nil, name + " is gone"
		}
		text := fmt.Sprintf("%s is %s on %q, expected on %q", name, pod.Status.Phase, pod.Spec.NodeName, pod.Status.NominatedNodeName)
		if at := object.PodCondition(pod, corev1.PodScheduled); at != nil {
			text += ": " + at.Message
		}
		return pod, text
	}
	running := func(name string) func() (bool, string) {
		return func() (bool, string) {
			pod, text := say(name)
			return pod != nil && object.PodReady(pod) && pod.Spec.NodeName == "n1", text
		}
	}
	gone := func(name string) func() (bool, string) {
		return func() (bool, string) { pod, text := say(name); return pod == nil, text }
	}
	change := func() {
		t.Helper()
		leader := c.Leader()
		leader.Stop()
		c.Leader()
		leader.Start()
	}

	pod("low", "", data, slot)
	change() // between the choice of the node, the volume and the binding, or after
	waitFor(t, c, "low to run where its volume was made", running("low"))
	claim := find[*corev1.PersistentVolumeClaim](c, "PersistentVolumeClaim", "default", "data")
	if node := claim.Annotations["volume.kubernetes.io/selected-node"]; claim.Status.Phase != corev1.ClaimBound || node != "n1" {
		t.Fatalf("claim data is %s, selected is %q: want it bound on n1", claim.Status.Phase, node)
	}
	pod("waiter", "", data, "{}")
	waitFor(t, c, "waiter to wait for the claim", func() (bool, string) {
		pod, text := say("waiter")
		return pod.Spec.NodeName == "" && strings.Contains(text, "claim data is for one pod and another uses it"), text
	})

	pod("high", "high", "[]", slot)
	change()
	waitFor(t, c, "high to have the place of low", running("high"))
	if low, text := say("low"); low != nil && !object.Deleting(low) {
		t.Errorf("two pods have the one slot: %s", text)
	}
	waitFor(t, c, "low to be gone", gone("low"))
	waitFor(t, c, "waiter to have the claim", running("waiter"))

	pod("top", "high", data, "{}")
	change()
	waitFor(t, c, "top to have the claim", running("top"))
	waitFor(t, c, "waiter to be gone", gone("waiter"))
	if high, text := say("high"); high == nil || object.Deleting(high) {
		t.Errorf("what had no part in it has gone, too: %s", text)
	}
}
