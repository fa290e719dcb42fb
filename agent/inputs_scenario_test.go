package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/volume"
	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

func configMap(name string, data ...string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string]string{}}
	for i := 0; i < len(data); i += 2 {
		cm.Data[data[i]] = data[i+1]
	}
	return cm
}

func secret(name, key, value string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string][]byte{key: []byte(value)}}
}

// with adds inputs to a message, as of its revision.
func with(t *testing.T, m *agentv1.DesiredResponse, objs ...object.Object) *agentv1.DesiredResponse {
	t.Helper()
	for _, obj := range objs {
		data, err := object.Encode(obj)
		if err != nil {
			t.Fatal(err)
		}
		m.Inputs = append(m.Inputs, &agentv1.Input{Key: string(object.KeyOf(obj)), Revision: m.GetRevision(), Object: data})
	}
	return m
}

// events returns the reasons of the events that were reported, each with its
// message.
func (p *testPeer) events() string {
	var b strings.Builder
	for _, r := range p.reports {
		for _, e := range r.GetEvents() {
			b.WriteString(e.GetReason() + ": " + e.GetMessage() + "\n")
		}
	}
	return b.String()
}

// TestMissingInput: a container whose environment needs what is not there waits,
// says for what, and goes on at once when it is there.
func TestMissingInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{
			Name: "main", Image: "busybox:1",
			EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
		})
		a.says(complete(t, 10, pod))
		n.start()
		settle(10 * time.Minute) // far into the back-off
		n.wantRunning("without the config map")
		s, _ := a.status(t, pod.UID)
		if w := s.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "CreateContainerConfigError" || !strings.Contains(w.Message, `configmap "settings" not found`) {
			t.Errorf("status is %+v, want CreateContainerConfigError and what is missing", s.ContainerStatuses)
		}
		if got := a.events(); !strings.Contains(got, `Failed: container configuration: envFrom: configmap "settings" not found`) {
			t.Errorf("events are %s", got)
		}
		a.send(t, with(t, &agentv1.DesiredResponse{Revision: 12}, configMap("settings", "A", "1")))
		settle(time.Second)
		n.wantRunning("a second after it was made", "uid-web/main/0")
	})
}

// TestInputsAreKept: what pods name survives a restart of the agent without any
// peer, in a file that nobody else may read.
func TestInputsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{
			Name: "main", Image: "busybox:1", Command: []string{"sh", "-c", "echo K is $K; sleep 3600"},
			EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}},
		})
		a.says(with(t, complete(t, 10, pod), secret("s", "K", "before"), secret("other", "K", "z")))
		n.start()
		settle(time.Second)
		n.wantRunning("at first", "uid-web/main/0")
		m := with(t, &agentv1.DesiredResponse{Revision: 12}, secret("s", "K", "after"))
		m.RemovedInputs = []string{"secrets/default/other"}
		a.send(t, m)
		settle(time.Second)
		n.stop()
		info, err := os.Stat(filepath.Join(n.dir, "desired"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the saved state is %v (%v), want it for its owner alone", info.Mode(), err)
		}
		a.setDown(true)
		n.stopOne(t, pod)
		n.start()
		settle(time.Minute)
		n.wantRunning("without a peer", "uid-web/main/1")
		var log bytes.Buffer
		if err := n.rt.Logs(context.Background(), runtime.ContainerID{PodUID: "uid-web", Name: "main", Attempt: 1}, runtime.LogOptions{TailLines: -1}, &log); err != nil || log.String() != "K is after\n" {
			t.Errorf("the container saw %q (%v), want the secret as it was last known", log.String(), err)
		}
	})
}

// stopOne ends the pod's first run while no agent runs.
func (n *testNode) stopOne(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- n.rt.Run(ctx) }()
	<-n.rt.Ready()
	if err := n.rt.StopContainer(ctx, runtime.ContainerID{PodUID: string(pod.UID), Name: pod.Spec.Containers[0].Name}, time.Second); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ended
}

// volumeOn returns the path of a pod's volume on the node.
func (n *testNode) volumeOn(uid, name string) string {
	return filepath.Join(n.dir, "volumes", uid, "volumes", name)
}

func (n *testNode) read(t *testing.T, path ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return "unreadable"
	}
	return string(data)
}

// TestVolumes: a pod waits for what its volumes show, sees each change of it
// while it runs, and leaves nothing.
func TestVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{
			Name: "main", Image: "busybox:1", Command: []string{"sh", "-c", "cat /etc/app/color; echo; cat /etc/one; echo; sleep 36000"},
			Env: []corev1.EnvVar{{Name: "WHICH", Value: "color"}},
			VolumeMounts: []corev1.VolumeMount{
				{Name: "settings", MountPath: "/etc/app"},
				{Name: "settings", MountPath: "/etc/one", SubPathExpr: "$(WHICH)"},
				{Name: "work", MountPath: "/work"},
			},
		})
		pod.Labels = map[string]string{"tier": "one"}
		pod.Spec.Volumes = []corev1.Volume{
			{Name: "settings", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
			{Name: "self", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}}}},
			{Name: "work", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		}
		a.says(complete(t, 10, pod))
		n.start()
		settle(5 * time.Minute)
		n.wantRunning("without the config map")
		s, _ := a.status(t, pod.UID)
		if w := s.ContainerStatuses[0].State.Waiting; w == nil || w.Reason != "ContainerCreating" || !strings.Contains(w.Message, `volume "settings": configmap "settings" not found`) {
			t.Errorf("status is %+v, want ContainerCreating and what is missing", s.ContainerStatuses)
		}
		if got := a.events(); !strings.Contains(got, `FailedMount: volumes: volume "settings": configmap "settings" not found`) {
			t.Errorf("events are %s", got)
		}

		a.send(t, with(t, &agentv1.DesiredResponse{Revision: 11}, configMap("settings", "color", "red")))
		settle(time.Second)
		n.wantRunning("with the config map", "uid-web/main/0")
		var log bytes.Buffer
		if err := n.rt.Logs(context.Background(), runtime.ContainerID{PodUID: "uid-web", Name: "main"}, runtime.LogOptions{TailLines: -1}, &log); err != nil || log.String() != "red\nred\n" {
			t.Errorf("the container saw %q (%v)", log.String(), err)
		}

		color := func() string { return n.read(t, n.volumeOn("uid-web", "settings"), "color") }
		a.send(t, with(t, &agentv1.DesiredResponse{Revision: 12}, configMap("settings", "color", "green")))
		settle(100 * time.Millisecond)
		if got := color(); got != "green" {
			t.Errorf("after a change the volume shows %q", got)
		}
		labeled := pod.DeepCopy()
		labeled.Labels["tier"] = "two"
		a.send(t, increment(t, 13, labeled))
		settle(100 * time.Millisecond)
		if got := n.read(t, n.volumeOn("uid-web", "self"), "labels"); got != `tier="two"` {
			t.Errorf("after another label the volume shows %q", got)
		}

		// A source that goes is told of, and disturbs nothing.
		a.send(t, &agentv1.DesiredResponse{Revision: 14, RemovedInputs: []string{"configmaps/default/settings"}})
		settle(time.Hour)
		n.wantRunning("without the config map again", "uid-web/main/0")
		if got := color(); got != "green" {
			t.Errorf("without its config map the volume shows %q", got)
		}

		// What changes while no agent runs is seen by the next.
		n.stop()
		a.says(with(t, complete(t, 20, labeled), configMap("settings", "color", "blue")))
		n.start()
		settle(time.Second)
		n.wantRunning("with another agent", "uid-web/main/0")
		if got := color(); got != "blue" {
			t.Errorf("after a restart of the agent the volume shows %q", got)
		}

		a.send(t, increment(t, 21, deleted(labeled, 1)))
		settle(time.Minute)
		if left, _ := os.ReadDir(filepath.Join(n.dir, "volumes")); len(left) > 0 {
			t.Errorf("the pod has left %v", left)
		}
	})
}

// TestLeftVolumes: volumes of pods that nobody knows go away once a peer has said
// which pods there are.
func TestLeftVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		left := filepath.Join(n.dir, "volumes", "uid-left", "volumes", "work")
		if err := os.MkdirAll(left, 0o700); err != nil {
			t.Fatal(err)
		}
		a.setDown(true)
		n.start()
		settle(time.Minute)
		if _, err := os.Stat(left); err != nil {
			t.Errorf("before any peer was heard: %v", err)
		}
		a.says(complete(t, 10))
		a.setDown(false)
		settle(time.Minute)
		if _, err := os.Stat(filepath.Join(n.dir, "volumes", "uid-left")); !os.IsNotExist(err) {
			t.Errorf("volumes of a pod that nobody knows are left (%v)", err)
		}
	})
}

// TestClaimLife: a pod waits for its claim to be bound, its data outlives it, and
// goes when a peer says so, and not because saved state does.
func TestClaimLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("db", corev1.Container{
			Name: "main", Image: "busybox:1", Command: []string{"sh", "-c", "echo precious > /data/file; sleep 36000"},
			VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}},
		})
		pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", UID: "c1"}}
		a.says(with(t, complete(t, 10, pod), claim))
		n.start()
		settle(time.Minute)
		n.wantRunning("before the claim is bound")

		claim.Spec.VolumeName, claim.Status.Phase = "pvc-c1", corev1.ClaimBound
		pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-c1", UID: "v1", Finalizers: []string{object.LocalVolumeFinalizer}}}
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "data", UID: "c1"}
		pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: object.LocalProvisioner, VolumeHandle: "pvc-c1", VolumeAttributes: map[string]string{"node": "n1"}}
		pv.Status.Phase = corev1.VolumeBound
		a.send(t, with(t, &agentv1.DesiredResponse{Revision: 11}, claim, pv))
		settle(time.Second)
		n.wantRunning("once it is bound", "uid-db/main/0")
		file := filepath.Join(n.dir, "volumes", "claims", "pvc-c1", "data", "file")
		if got := n.read(t, file); got != "precious\n" {
			t.Errorf("the volume holds %q", got)
		}

		released := pv.DeepCopy()
		released.Status.Phase = corev1.VolumeReleased
		released.DeletionTimestamp = &metav1.Time{Time: time.Now()}
		a.send(t, with(t, increment(t, 12, deleted(pod, 1)), released))
		settle(100 * time.Millisecond)
		if got := n.read(t, file); got != "precious\n" {
			t.Errorf("while a pod has it the volume holds %q", got)
		}
		n.stop()
		a.setDown(true)
		n.start()
		settle(time.Minute) // the pod ends meanwhile
		n.wantRunning("with a new agent and no peer")
		if got := n.read(t, file); got != "precious\n" {
			t.Errorf("by saved state alone the volume was removed: %q", got)
		}
		a.says(with(t, complete(t, 13), released))
		a.setDown(false)
		settle(time.Minute)
		if got := n.read(t, file); got != "unreadable" {
			t.Errorf("after the word of a peer the volume holds %q", got)
		}
		if got := fmt.Sprint(a.removed); got != "[pvc-c1/v1]" {
			t.Errorf("reported removals are %s, want one", got)
		}
		if left, _ := os.ReadDir(filepath.Join(n.dir, "volumes", "claims")); len(left) > 0 {
			t.Errorf("left are %v", left)
		}
	})
}

// TestPullSecret: an image whose registry asks for a credential comes once the pod's
// secret holds it.
func TestPullSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{Name: "main", Image: "fake/private:1"})
		pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "registry"}}
		a.says(complete(t, 10, pod))
		n.start()
		settle(time.Minute)
		n.wantRunning("without the secret")
		if got := a.events(); !strings.Contains(got, `FailedToRetrieveImagePullSecret: The image may not be pulled without: secret "registry" not found`) {
			t.Errorf("events are %s", got)
		}
		a.send(t, with(t, &agentv1.DesiredResponse{Revision: 12},
			secret("registry", corev1.DockerConfigJsonKey, `{"auths": {"docker.io": {"username": "fake", "password": "fake"}}}`)))
		settle(5 * time.Minute)
		n.wantRunning("with the secret", "uid-web/main/0")
	})
}

// slowMemory takes a second to make a volume in memory.
type slowMemory struct{ volume.Folders }

func (s slowMemory) Memory(path string, options volume.MemoryOptions) error {
	time.Sleep(time.Second)
	return s.Folders.Memory(path, options)
}

// TestInputsDuringSetUp: what a pod names and comes while its volumes are brought up to
// date without it, by an agent that has just started, is not missed when that has failed.
func TestInputsDuringSetUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer("a")
		n := newNode(t, a)
		pod := newPod("web", corev1.Container{Name: "main", Image: "busybox:1", Command: []string{"sleep", "36000"}})
		pod.Spec.Volumes = []corev1.Volume{
			{Name: "slow", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
			{Name: "settings", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
		}
		a.says(with(t, complete(t, 10, pod), configMap("settings", "color", "red")))
		n.start()
		settle(time.Minute)
		n.wantRunning("with the config map", "uid-web/main/0")

		n.mounts = slowMemory{}
		a.send(t, &agentv1.DesiredResponse{Revision: 11, RemovedInputs: []string{"configmaps/default/settings"}})
		settle(time.Second)
		n.stop()
		a.says(complete(t, 12, pod))
		n.start()
		settle(500 * time.Millisecond) // in the middle of it
		a.send(t, with(t, &agentv1.DesiredResponse{Revision: 13}, configMap("settings", "color", "blue")))
		settle(3 * time.Second)
		if got := n.read(t, n.volumeOn("uid-web", "settings"), "color"); got != "blue" {
			t.Errorf("soon after the config map came back the volume shows %q", got)
		}
	})
}
