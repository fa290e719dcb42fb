package object

import (
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Defaults that others need too.
const (
	// DefaultScheduler is the only scheduler there is.
	DefaultScheduler = corev1.DefaultSchedulerName

	defaultGraceSeconds = corev1.DefaultTerminationGracePeriodSeconds // 30
)

// Default fills in what obj leaves open, with the values that Kubernetes
// documents for its kind. What is set stays. A second call changes nothing.
func Default(obj Object) {
	switch obj := obj.(type) {
	case *corev1.Namespace:
		defaultNamespace(obj)
	case *corev1.Node:
		defaultNode(obj)
	case *corev1.Pod:
		defaultPod(obj)
	case *appsv1.ReplicaSet:
		setIfNil(&obj.Spec.Replicas, 1)
		defaultPodSpec(&obj.Spec.Template.Spec)
	case *appsv1.Deployment:
		defaultDeployment(&obj.Spec)
	}
}

func defaultNamespace(ns *corev1.Namespace) {
	if ns.Name != "" {
		if ns.Labels == nil {
			ns.Labels = map[string]string{}
		}
		ns.Labels[corev1.LabelMetadataName] = ns.Name // selectors rely on it: always so
	}
	setIfZero(&ns.Status.Phase, corev1.NamespaceActive)
	// It holds the namespace until what is in it is gone: see MarkDeleted.
	if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		ns.Spec.Finalizers = append(ns.Spec.Finalizers, corev1.FinalizerKubernetes)
	}
}

func defaultNode(node *corev1.Node) {
	if node.Spec.PodCIDR == "" && len(node.Spec.PodCIDRs) > 0 {
		node.Spec.PodCIDR = node.Spec.PodCIDRs[0]
	}
	if node.Spec.PodCIDR != "" && len(node.Spec.PodCIDRs) == 0 {
		node.Spec.PodCIDRs = []string{node.Spec.PodCIDR}
	}
	if node.Status.Allocatable == nil && node.Status.Capacity != nil {
		node.Status.Allocatable = node.Status.Capacity.DeepCopy()
	}
}

func defaultPod(pod *corev1.Pod) {
	defaultPodSpec(&pod.Spec)
	setIfNil(&pod.Spec.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	for i := range pod.Spec.Containers {
		res := &pod.Spec.Containers[i].Resources
		for name, limit := range res.Limits {
			if _, ok := res.Requests[name]; ok || name != corev1.ResourceCPU && name != corev1.ResourceMemory {
				continue // other resources are not supported yet: the limit is refused, once
			}
			if res.Requests == nil {
				res.Requests = corev1.ResourceList{}
			}
			res.Requests[name] = limit.DeepCopy()
		}
	}
	setIfZero(&pod.Status.Phase, corev1.PodPending)
}

// defaultPodSpec fills in the spec of a pod or of a template. Kubernetes makes
// the same difference between the two: requests follow from limits, and service
// links are on, in pods only.
func defaultPodSpec(spec *corev1.PodSpec) {
	setIfZero(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	setIfZero(&spec.DNSPolicy, corev1.DNSClusterFirst)
	setIfZero(&spec.SchedulerName, DefaultScheduler)
	setIfNil(&spec.TerminationGracePeriodSeconds, defaultGraceSeconds)
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	for i := range spec.Containers {
		defaultContainer(&spec.Containers[i])
	}
}

func defaultContainer(c *corev1.Container) {
	setIfZero(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	setIfZero(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	if c.ImagePullPolicy == "" {
		c.ImagePullPolicy = corev1.PullIfNotPresent
		if imageTag(c.Image) == "latest" {
			c.ImagePullPolicy = corev1.PullAlways
		}
	}
	for i := range c.Ports {
		setIfZero(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil && from.FieldRef != nil {
			setIfZero(&from.FieldRef.APIVersion, "v1")
		}
	}
}

// imageTag returns the tag that an image reference asks for: "latest" if it has
// neither tag nor digest, "" if it has a digest alone.
func imageTag(ref string) string {
	name, digest, pinned := strings.Cut(ref, "@")
	path := name[strings.LastIndex(name, "/")+1:] // a colon before it belongs to a port
	if _, tag, ok := strings.Cut(path, ":"); ok {
		return tag
	}
	if pinned && digest != "" {
		return ""
	}
	return "latest"
}

func defaultDeployment(spec *appsv1.DeploymentSpec) {
	setIfNil(&spec.Replicas, 1)
	setIfNil(&spec.RevisionHistoryLimit, 10)
	setIfNil(&spec.ProgressDeadlineSeconds, 600)
	setIfZero(&spec.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		if spec.Strategy.RollingUpdate == nil {
			spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{}
		}
		setIfNil(&spec.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		setIfNil(&spec.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	defaultPodSpec(&spec.Template.Spec)
}

func setIfZero[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func setIfNil[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}
