package object

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// TestUseServiceAccount: what a pod has of its account, and who has the last word.
func TestUseServiceAccount(t *testing.T) {
	account := func(name string, automount *bool) *corev1.ServiceAccount {
		return &corev1.ServiceAccount{
			ObjectMeta:       metav1.ObjectMeta{Namespace: "default", Name: name, UID: "12345678"},
			ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}}, AutomountServiceAccountToken: automount,
		}
	}
	for _, c := range []struct {
		name    string
		spec    string
		mirror  bool
		account *corev1.ServiceAccount
		as      string
		mounts  int // of all containers, of the token
		secrets int
		refused bool
	}{
		{name: "no account, none named", spec: "{containers: [{name: a}]}"},
		{name: "no account, the default one named", spec: "{serviceAccountName: default, containers: [{name: a}]}", as: "default"},
		{name: "no account, another named", spec: "{serviceAccountName: robot, containers: [{name: a}]}", refused: true},
		{name: "the default account", spec: "{containers: [{name: a}], initContainers: [{name: b}]}", account: account("default", nil), as: "default", mounts: 2, secrets: 1},
		{name: "the pod does not want it", spec: "{automountServiceAccountToken: false, containers: [{name: a}]}", account: account("default", nil), as: "default", secrets: 1},
		{name: "the account does not want it", spec: "{serviceAccountName: robot, containers: [{name: a}]}", account: account("robot", new(bool)), as: "robot", secrets: 1},
		{name: "the pod goes before the account", spec: "{automountServiceAccountToken: true, containers: [{name: a}]}", account: account("default", new(bool)), as: "default", mounts: 1, secrets: 1},
		{name: "its own pull secrets, and something else there", spec: `{imagePullSecrets: [{name: x}, {name: y}], volumes: [{name: v, emptyDir: {}}],
			containers: [{name: a, volumeMounts: [{name: v, mountPath: /var/run/secrets/kubernetes.io/serviceaccount}]}]}`, account: account("default", nil), as: "default", secrets: 2},
		{name: "a mirror", spec: "{containers: [{name: a}]}", mirror: true, account: account("default", nil)},
	} {
		t.Run(c.name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}}
			if c.mirror {
				pod.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
			}
			if err := yaml.UnmarshalStrict([]byte(c.spec), &pod.Spec); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time nothing changes
				if faults := UseServiceAccount(pod, c.account); (len(faults) > 0) != c.refused {
					t.Fatalf("faults are %v, want some: %v", faults, c.refused)
				}
			}
			mounts, volumes := 0, 0
			eachContainer(&pod.Spec, func(ct *corev1.Container, _ containerKind, _ int) {
				for _, m := range ct.VolumeMounts {
					if m.Name == "kube-api-access-12345" && m.ReadOnly {
						mounts++
					}
				}
			})
			for _, v := range pod.Spec.Volumes {
				if v.Projected != nil && len(v.Projected.Sources) == 3 {
					volumes++
				}
			}
			if !c.refused && (pod.Spec.ServiceAccountName != c.as || mounts != c.mounts || volumes != min(c.mounts, 1) || len(pod.Spec.ImagePullSecrets) != c.secrets) {
				t.Errorf("account %q, %d mounts of %d volumes, pull secrets %v; want %q, %d, %d", pod.Spec.ServiceAccountName, mounts, volumes, pod.Spec.ImagePullSecrets, c.as, c.mounts, c.secrets)
			}
		})
	}
}
