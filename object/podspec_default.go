package object

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// What Kubernetes writes into the files of a volume that says no mode, and for
// how long a token is asked for.
const (
	defaultFileMode     int32 = 0o644
	defaultTokenSeconds int64 = 3600
)

// defaultPod fills in a pod: what a template gets, and what Kubernetes leaves
// to the pods that are made of one.
func defaultPod(pod *corev1.Pod) {
	defaultPodSpec(&pod.Spec)
	setIfNil(&pod.Spec.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	eachContainer(&pod.Spec, func(c *corev1.Container, kind containerKind, _ int) {
		if kind != ephemeralContainer {
			defaultRequests(&c.Resources)
		}
	})
	if pod.Spec.Resources != nil {
		defaultPodRequests(&pod.Spec)
	}
	defaultAccount(&pod.Spec)
	if pod.Spec.HostNetwork {
		eachContainer(&pod.Spec, func(c *corev1.Container, _ containerKind, _ int) {
			for i := range c.Ports {
				setIfZero(&c.Ports[i].HostPort, c.Ports[i].ContainerPort)
			}
		})
	}
	setIfZero(&pod.Status.Phase, corev1.PodPending)
}

// defaultRequests lets requests follow from limits.
func defaultRequests(res *corev1.ResourceRequirements) {
	for name, limit := range res.Limits {
		if _, ok := res.Requests[name]; ok {
			continue
		}
		if res.Requests == nil {
			res.Requests = corev1.ResourceList{}
		}
		res.Requests[name] = limit.DeepCopy()
	}
}

// defaultAccount names the account of a pod that shows a token of it.
func defaultAccount(spec *corev1.PodSpec) {
	for i := range spec.Volumes {
		if p := spec.Volumes[i].Projected; p != nil && slices.ContainsFunc(p.Sources, func(s corev1.VolumeProjection) bool { return s.ServiceAccountToken != nil }) {
			setIfZero(&spec.ServiceAccountName, DefaultServiceAccount)
			spec.DeprecatedServiceAccount = spec.ServiceAccountName
		}
	}
}

// defaultPodRequests fills in the requests of the pod as a whole, for what it
// limits: what its containers request together, or else the limit.
func defaultPodRequests(spec *corev1.PodSpec) {
	sum := podSum(&corev1.Pod{Spec: *spec}, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Requests })
	for name, limit := range spec.Resources.Limits {
		if _, ok := spec.Resources.Requests[name]; ok {
			continue
		}
		if spec.Resources.Requests == nil {
			spec.Resources.Requests = corev1.ResourceList{}
		}
		request, ok := sum[name]
		if !ok {
			request = limit
		}
		spec.Resources.Requests[name] = request.DeepCopy()
	}
}

// defaultPodSpec fills in the spec of a pod or of a template. Kubernetes makes
// the same difference between the two: requests follow from limits, host ports
// from the host's network, and service links are on, in pods only.
func defaultPodSpec(spec *corev1.PodSpec) {
	setIfZero(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	setIfZero(&spec.DNSPolicy, corev1.DNSClusterFirst)
	setIfZero(&spec.SchedulerName, DefaultScheduler)
	setIfNil(&spec.TerminationGracePeriodSeconds, defaultGraceSeconds)
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	// Two names for one field; the old one is only read.
	setIfZero(&spec.ServiceAccountName, spec.DeprecatedServiceAccount)
	spec.DeprecatedServiceAccount = spec.ServiceAccountName
	eachContainer(spec, func(c *corev1.Container, _ containerKind, _ int) { defaultContainer(c) })
	for i := range spec.Volumes {
		defaultVolume(&spec.Volumes[i])
	}
}

func defaultContainer(c *corev1.Container) {
	setIfZero(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	setIfZero(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	setIfZero(&c.ImagePullPolicy, pullPolicyOf(c.Image))
	for i := range c.Ports {
		setIfZero(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil {
			defaultFieldRef(from.FieldRef)
			if from.FileKeyRef != nil {
				setIfNil(&from.FileKeyRef.Optional, false)
			}
		}
	}
	for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if probe != nil {
			defaultProbe(probe)
		}
	}
	if c.Lifecycle != nil {
		for _, hook := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if hook != nil && hook.HTTPGet != nil {
				defaultHTTPGet(hook.HTTPGet)
			}
		}
	}
}

func defaultProbe(p *corev1.Probe) {
	setIfZero(&p.TimeoutSeconds, 1)
	setIfZero(&p.PeriodSeconds, 10)
	setIfZero(&p.SuccessThreshold, 1)
	setIfZero(&p.FailureThreshold, 3)
	if p.HTTPGet != nil {
		defaultHTTPGet(p.HTTPGet)
	}
	if p.GRPC != nil {
		setIfNil(&p.GRPC.Service, "")
	}
}

func defaultHTTPGet(get *corev1.HTTPGetAction) {
	setIfZero(&get.Path, "/")
	setIfZero(&get.Scheme, corev1.URISchemeHTTP)
}

func defaultFieldRef(ref *corev1.ObjectFieldSelector) {
	if ref != nil {
		setIfZero(&ref.APIVersion, "v1")
	}
}

// defaultVolume fills in a volume: without a source it is an emptyDir. Sources
// that will never be served are left as they are.
func defaultVolume(v *corev1.Volume) {
	if v.VolumeSource == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	switch {
	case v.Secret != nil:
		setIfNil(&v.Secret.DefaultMode, defaultFileMode)
	case v.ConfigMap != nil:
		setIfNil(&v.ConfigMap.DefaultMode, defaultFileMode)
	case v.DownwardAPI != nil:
		setIfNil(&v.DownwardAPI.DefaultMode, defaultFileMode)
		defaultDownwardFiles(v.DownwardAPI.Items)
	case v.Projected != nil:
		setIfNil(&v.Projected.DefaultMode, defaultFileMode)
		for i := range v.Projected.Sources {
			from := &v.Projected.Sources[i]
			if from.DownwardAPI != nil {
				defaultDownwardFiles(from.DownwardAPI.Items)
			}
			if from.ServiceAccountToken != nil {
				setIfNil(&from.ServiceAccountToken.ExpirationSeconds, defaultTokenSeconds)
			}
		}
	case v.HostPath != nil:
		setIfNil(&v.HostPath.Type, corev1.HostPathUnset)
	case v.ISCSI != nil:
		setIfZero(&v.ISCSI.ISCSIInterface, "default")
	case v.Ephemeral != nil:
		if v.Ephemeral.VolumeClaimTemplate != nil {
			setIfNil(&v.Ephemeral.VolumeClaimTemplate.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
		}
	case v.Image != nil:
		setIfZero(&v.Image.PullPolicy, pullPolicyOf(v.Image.Reference))
	}
}

func defaultDownwardFiles(files []corev1.DownwardAPIVolumeFile) {
	for i := range files {
		defaultFieldRef(files[i].FieldRef)
	}
}

// pullPolicyOf returns when an image is pulled whose user does not say.
func pullPolicyOf(ref string) corev1.PullPolicy {
	if imageTag(ref) == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
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

// containerKind is which of a pod's lists a container stands in.
type containerKind string

const (
	mainContainer      containerKind = "containers"
	initContainer      containerKind = "initContainers"
	ephemeralContainer containerKind = "ephemeralContainers"
)

// eachContainer calls f for every container of a pod, with its list and its
// place in it: in the order in which they start.
func eachContainer(spec *corev1.PodSpec, f func(c *corev1.Container, kind containerKind, i int)) {
	for i := range spec.InitContainers {
		f(&spec.InitContainers[i], initContainer, i)
	}
	for i := range spec.Containers {
		f(&spec.Containers[i], mainContainer, i)
	}
	for i := range spec.EphemeralContainers {
		// Kubernetes keeps the two types alike for this.
		f((*corev1.Container)(&spec.EphemeralContainers[i].EphemeralContainerCommon), ephemeralContainer, i)
	}
}

// isSidecar reports whether an init container goes on while the others run.
func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}
