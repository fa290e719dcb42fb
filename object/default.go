package object

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
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
	kindOfObject(obj).defaults(obj)
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
