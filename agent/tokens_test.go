package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

// TestTokens: a pod's volume shows a token that is bound to the pod, replaced after four fifths of its
// life. A restart of the agent needs no new one, and a peer that is away keeps no container
// from its restart.
func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{Name: "main", Image: "web:1", VolumeMounts: []corev1.VolumeMount{{Name: "token", MountPath: "/token"}}})
		pod.Spec.ServiceAccountName = "robot"
		pod.Spec.Volumes = []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault", ExpirationSeconds: new(int64(600)), Path: "vault/token"}},
		}}}}}
		path := filepath.Join(n.dir, "volumes", "uid-web", "volumes", "token", "vault", "token")
		shown := func() string {
			t.Helper()
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
		asked := func() int { return a.count(func(p *testPeer) int { return len(p.tokens) }) }
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Second)
		n.wantRunning("with its token", "uid-web/main/0")
		first := shown()
		req := a.tokens[0]
		if req.GetNamespace() != "default" || req.GetServiceAccount() != "robot" || strings.Join(req.GetAudiences(), " ") != "vault" || req.GetLifetime().AsDuration() != 10*time.Minute ||
			req.GetBinding().GetName() != "web" || req.GetBinding().GetUid() != "uid-web" {
			t.Errorf("the token asked for is %v", req)
		}
		settle(7*time.Minute + 50*time.Second)
		if shown() != first || asked() != 1 {
			t.Errorf("before four fifths of its life the token was replaced (%d asked for)", asked())
		}
		settle(15 * time.Second)
		second := shown()
		if second == first || asked() != 2 {
			t.Errorf("after four fifths of its life the token is the same: %v (%d asked for)", second == first, asked())
		}

		n.stop()
		n.start()
		settle(time.Minute)
		if shown() != second || asked() != 2 {
			t.Errorf("a restart of the agent has replaced the token (%d asked for)", asked())
		}

		a.setDown(true)
		settle(8 * time.Minute) // it is due, and nobody there to ask
		if shown() != second {
			t.Error("without a peer the token was taken away")
		}
		n.rt.Crash("uid-web", "main", 1)
		settle(20 * time.Second)
		n.wantRunning("after a crash without a peer", "uid-web/main/1")
		a.setDown(false)
		settle(6 * time.Minute)
		if shown() == second {
			t.Error("with the peer back the token is still the old one")
		}
		n.wantRunning("in the end", "uid-web/main/1")
	})
}

// TestRootCA: the cluster's CA is there under the name that Kubernetes has for it.
func TestRootCA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		n.clusterCA = "-----BEGIN CERTIFICATE-----\n"
		pod := newPod("web", corev1.Container{Name: "main", Image: "web:1", VolumeMounts: []corev1.VolumeMount{{Name: "ca", MountPath: "/ca"}}})
		pod.Spec.Volumes = []corev1.Volume{{Name: "ca", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}}}}}
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Second)
		path := filepath.Join(n.dir, "volumes", "uid-web", "volumes", "ca", "ca.crt")
		if data, err := os.ReadFile(path); err != nil || string(data) != n.clusterCA {
			t.Errorf("ca.crt is %q (%v)", data, err)
		}
		// One that the cluster has goes before it.
		a.send(t, with(t, &agentv1.DesiredResponse{Revision: 11}, configMap("kube-root-ca.crt", "ca.crt", "another")))
		settle(time.Second)
		if data, err := os.ReadFile(path); err != nil || string(data) != "another" {
			t.Errorf("ca.crt is %q (%v), want that of the ConfigMap", data, err)
		}
	})
}

// TestLatePullSecret: an image that could not be pulled for want of a secret is pulled when the
// secret comes, not when the back-off ends.
func TestLatePullSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{Name: "main", Image: "fake/private:1"})
		pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "pull"}}
		a.says(complete(t, 10, pod))
		n.start()
		settle(5 * time.Minute)
		n.wantRunning("without its secret")
		s := secret("pull", ".dockerconfigjson", `{"auths":{"docker.io":{"username":"fake","password":"fake"}}}`)
		s.Type = corev1.SecretTypeDockerConfigJson
		a.send(t, with(t, &agentv1.DesiredResponse{Revision: 11}, s))
		settle(2 * time.Second)
		n.wantRunning("with its secret", "uid-web/main/0")
	})
}
