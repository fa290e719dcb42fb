package agent_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
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
