package controllers

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/object"
)

// TestOwnClaims: a pod gets a claim for each of its ephemeral volumes, which it owns, once; never
// one that was there before it.
func TestOwnClaims(t *testing.T) {
	var pod corev1.Pod
	err := yaml.UnmarshalStrict([]byte(`
metadata: {name: web, namespace: default, uid: u1}
spec:
  volumes:
  - name: scratch
    ephemeral:
      volumeClaimTemplate:
        metadata: {labels: {app: web}}
        spec: {accessModes: [ReadWriteOnce], storageClassName: local, resources: {requests: {storage: 1Gi}}}
  - {name: cache, emptyDir: {}}
`), &pod)
	if err != nil {
		t.Fatal(err)
	}
	none := func(string) *corev1.PersistentVolumeClaim { return nil }
	missing, faults := planOwnClaims(&pod, none)
	if len(missing) != 1 || len(faults) > 0 {
		t.Fatalf("missing are %v, faults %v; want one claim", missing, faults)
	}
	claim := missing[0]
	owner := object.ControllerOf(claim)
	if claim.Namespace != "default" || claim.Name != "web-scratch" || claim.Labels["app"] != "web" || owner == nil || owner.UID != "u1" || owner.Kind != "Pod" ||
		owner.BlockOwnerDeletion == nil || !*owner.BlockOwnerDeletion {
		t.Errorf("the claim is %+v", claim)
	}
	if faults := object.Validate(claim); len(faults) > 0 {
		t.Errorf("the claim is not valid: %v", faults)
	}
	there := func(c *corev1.PersistentVolumeClaim) func(string) *corev1.PersistentVolumeClaim {
		return func(name string) *corev1.PersistentVolumeClaim {
			if name != c.Name {
				return nil
			}
			return c
		}
	}
	if missing, faults := planOwnClaims(&pod, there(claim)); len(missing) > 0 || len(faults) > 0 {
		t.Errorf("with its claim there: missing %v, faults %v", missing, faults)
	}
	older := claim.DeepCopy()
	older.OwnerReferences[0].UID = "another"
	if missing, faults := planOwnClaims(&pod, there(older)); len(missing) > 0 || len(faults) != 1 || !strings.Contains(faults[0], "was not created for pod default/web (pod is not owner)") {
		t.Errorf("with another's claim there: missing %v, faults %v", missing, faults)
	}
	pod.Status.Phase = corev1.PodSucceeded
	if missing, _ := planOwnClaims(&pod, none); len(missing) > 0 {
		t.Errorf("a pod that has finished gets %v", missing)
	}
}
