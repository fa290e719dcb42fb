package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/volume"
)

// errVolumes marks a pod whose volumes cannot be made.
var errVolumes = errors.New("volumes")

// podSources are what a pod's volumes show.
type podSources struct {
	pod       *corev1.Pod
	at        podEnv
	tokens    heldTokens
	clusterCA string
}

var _ volume.Sources = podSources{}

// rootCA is the ConfigMap in which Kubernetes has the cluster's CA for the pods of a namespace.
const rootCA = "kube-root-ca.crt"

func (s podSources) ConfigMap(name string) *corev1.ConfigMap {
	cm := lookInput[corev1.ConfigMap](s.at.inputs, s.pod.Namespace, name)
	if cm == nil && name == rootCA && s.clusterCA != "" {
		return &corev1.ConfigMap{Data: map[string]string{"ca.crt": s.clusterCA}}
	}
	return cm
}

func (s podSources) Token(p *corev1.ServiceAccountTokenProjection) (text, version string) {
	return s.tokens[kindOfToken(p)].text, s.tokens.version(p, time.Now())
}

func (s podSources) Secret(name string) *corev1.Secret {
	return lookInput[corev1.Secret](s.at.inputs, s.pod.Namespace, name)
}

func (s podSources) Claim(name string) *corev1.PersistentVolumeClaim {
	return lookInput[corev1.PersistentVolumeClaim](s.at.inputs, s.pod.Namespace, name)
}

func (s podSources) Volume(name string) *corev1.PersistentVolume {
	return lookInput[corev1.PersistentVolume](s.at.inputs, "", name)
}

func (s podSources) Field(path string) (string, error) { return fieldValue(s.pod, path, s.at) }

func (s podSources) Resource(ref *corev1.ResourceFieldSelector) (string, error) {
	return resourceValue(s.pod, nil, ref, s.at.allocatable)
}

// setUpVolumes makes the pod's volumes what they should be, and returns the key
// of what they show then.
func (w *worker) setUpVolumes(ctx context.Context, pod *corev1.Pod) (shown string, err error) {
	failed := w.renewTokens(ctx, pod)
	src := w.sources(pod)
	shown = volume.Key(pod, src)
	if err := w.p.volumes.SetUp(ctx, pod, src); err != nil {
		return "", fmt.Errorf("%w: %w", errVolumes, errors.Join(err, failed))
	}
	if failed != nil {
		return "", fmt.Errorf("%w: %w", errVolumes, failed)
	}
	return shown, nil
}

func (w *worker) sources(pod *corev1.Pod) podSources {
	return podSources{pod: pod, at: w.env(pod), tokens: w.heldTokens(), clusterCA: w.p.clusterCA}
}

// volumesKey identifies what the pod's volumes should show; "": nothing that
// changes.
func (w *worker) volumesKey(pod *corev1.Pod) string {
	if pod == nil || len(pod.Spec.Volumes) == 0 {
		return ""
	}
	return volume.Key(pod, w.sources(pod))
}

// volumeMounts says how the pod's volumes are mounted in a container. Its errors
// match errConfig.
func (w *worker) volumeMounts(pod *corev1.Pod, spec *corev1.Container) ([]runtime.Mount, error) {
	at := w.env(pod)
	mounts, err := w.p.volumes.ContainerMounts(pod, spec, w.sources(pod), func(text string) (string, error) {
		env, err := environment(pod, spec, at)
		if err != nil {
			return "", err
		}
		unknown := ""
		text = expandRefs(text, func(name string) (string, bool) {
			value, ok := env.lookup(name)
			if !ok {
				unknown = name
			}
			return value, ok
		})
		if unknown != "" {
			return "", fmt.Errorf("the container has no variable %q", unknown)
		}
		return text, nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConfig, err)
	}
	return mounts, nil
}

// nextVolumes brings volumes that show something else by now up to date. What is
// missing for that does not disturb what runs.
func nextVolumes(in podInput, now time.Time) (action, bool) {
	m := in.Memory
	if in.VolumesKey == m.Shown || !m.Created && len(in.Observed.Containers) == 0 {
		return action{}, false // or they are made with the pod
	}
	if _, wait := m.Volumes.wait(now); wait {
		return action{}, false
	}
	return action{Kind: doVolumes}, true
}
