package object

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PodReady reports whether pod's condition Ready is True.
func PodReady(pod *corev1.Pod) bool {
	c := PodCondition(pod, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// PodAvailable reports whether pod has been ready for minReadySeconds at now,
// and, if it is ready but not long enough, in how long it will have been.
func PodAvailable(pod *corev1.Pod, minReadySeconds int32, now time.Time) (ok bool, in time.Duration) {
	c := PodCondition(pod, corev1.PodReady)
	if c == nil || c.Status != corev1.ConditionTrue {
		return false, 0
	}
	if minReadySeconds == 0 {
		return true, 0
	}
	since := c.LastTransitionTime.Time
	if since.IsZero() {
		return false, 0
	}
	if in = since.Add(time.Duration(minReadySeconds) * time.Second).Sub(now); in <= 0 {
		return true, 0
	}
	return false, in
}

// PodPhaseFinal reports whether pod has ended for good: its phase is Succeeded
// or Failed, and its containers never run again.
func PodPhaseFinal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// PodCondition returns pod's condition of that type, nil if it has none. It
// points into pod.
func PodCondition(pod *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == t {
			return c
		}
	}
	return nil
}

// SetPodCondition puts c among pod's conditions and reports whether that changed
// anything. While the status stays the same, so does lastTransitionTime: c's
// own is used only when the status changes or the condition is new, and
// lastProbeTime never counts as a change.
func SetPodCondition(pod *corev1.Pod, c corev1.PodCondition) bool {
	old := PodCondition(pod, c.Type)
	if old == nil {
		pod.Status.Conditions = append(pod.Status.Conditions, c)
		return true
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	c.LastProbeTime = old.LastProbeTime
	if *old == c {
		return false
	}
	*old = c
	return true
}

// NodeReady reports whether node's condition Ready is True.
func NodeReady(node *corev1.Node) bool {
	c := NodeCondition(node, corev1.NodeReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// NodeCondition returns node's condition of that type, nil if it has none. It
// points into node.
func NodeCondition(node *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == t {
			return c
		}
	}
	return nil
}

// SetNodeCondition puts c among node's conditions, as [SetPodCondition] does.
// lastHeartbeatTime alone is no change: heartbeats are not written.
func SetNodeCondition(node *corev1.Node, c corev1.NodeCondition) bool {
	old := NodeCondition(node, c.Type)
	if old == nil {
		node.Status.Conditions = append(node.Status.Conditions, c)
		return true
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
		heartbeat := c.LastHeartbeatTime
		c.LastHeartbeatTime = old.LastHeartbeatTime
		if *old == c {
			return false
		}
		c.LastHeartbeatTime = heartbeat
	}
	*old = c
	return true
}

// ControllerOf returns the owner reference of obj's controller, nil if nobody
// controls it. It points into a copy.
func ControllerOf(obj Object) *metav1.OwnerReference {
	return metav1.GetControllerOfNoCopy(obj)
}

// PodResources returns what pod asks of its node: the sum of its containers'
// requests, or what its init containers ask for if that is more (each of those
// runs alone, beside the restartable ones before it), plus the pod's overhead.
// A limit without a request counts as the request. The computation is
// Kubernetes'.
func PodResources(pod *corev1.Pod) corev1.ResourceList {
	return podSum(pod, containerRequests)
}

// PodLimits returns the limits of pod, added up like [PodResources]. Only
// resources that every container limits are limits of the pod.
func PodLimits(pod *corev1.Pod) corev1.ResourceList {
	sum := podSum(pod, func(c *corev1.Container) corev1.ResourceList { return c.Resources.Limits })
	for name := range sum {
		for i := range pod.Spec.Containers {
			if _, ok := pod.Spec.Containers[i].Resources.Limits[name]; !ok {
				delete(sum, name)
			}
		}
	}
	return sum
}

func podSum(pod *corev1.Pod, of func(*corev1.Container) corev1.ResourceList) corev1.ResourceList {
	sum := corev1.ResourceList{}
	for i := range pod.Spec.Containers {
		addResources(sum, of(&pod.Spec.Containers[i]))
	}
	beside := corev1.ResourceList{} // restartable init containers run on
	peak := corev1.ResourceList{}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if p := c.RestartPolicy; p != nil && *p == corev1.ContainerRestartPolicyAlways {
			addResources(sum, of(c))
			addResources(beside, of(c))
			maxResources(peak, beside)
			continue
		}
		alone := beside.DeepCopy()
		addResources(alone, of(c))
		maxResources(peak, alone)
	}
	maxResources(sum, peak)
	addResources(sum, pod.Spec.Overhead)
	return sum
}

func containerRequests(c *corev1.Container) corev1.ResourceList {
	requests := corev1.ResourceList{}
	addResources(requests, c.Resources.Limits)
	for name, q := range c.Resources.Requests {
		requests[name] = q
	}
	return requests
}

func addResources(to, list corev1.ResourceList) {
	for name, q := range list {
		sum := to[name].DeepCopy()
		sum.Add(q)
		to[name] = sum
	}
}

func maxResources(to, list corev1.ResourceList) {
	for name, q := range list {
		if have, ok := to[name]; !ok || have.Cmp(q) < 0 {
			to[name] = q.DeepCopy()
		}
	}
}

// QOSClass returns the quality of service that pod's requests and limits make, by
// Kubernetes' rules: Guaranteed if every container has equal requests and limits
// for cpu and memory, BestEffort if none has any, else Burstable.
func QOSClass(pod *corev1.Pod) corev1.PodQOSClass {
	guaranteed, any := true, false
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		limits, requests := c.Resources.Limits, containerRequests(&c)
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, request := limits[name], requests[name]
			any = any || !limit.IsZero() || !request.IsZero()
			guaranteed = guaranteed && !limit.IsZero() && limit.Cmp(request) == 0
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	default:
		return corev1.PodQOSBurstable
	}
}

// FieldValue returns the value of a field that an environment variable can take
// from its pod (env.valueFrom.fieldRef): "metadata.name", "status.podIP",
// "metadata.labels['app']", … ok is false for a field that cannot be had that way;
// a field that is not known yet, such as the address of a pod that has none, is
// empty.
func FieldValue(pod *corev1.Pod, fieldPath string) (value string, ok bool) {
	if name, key, keyed := splitKeyed(fieldPath); keyed {
		switch name {
		case "metadata.labels":
			return pod.Labels[key], true
		case "metadata.annotations":
			return pod.Annotations[key], true
		}
		return "", false
	}
	switch fieldPath {
	case "metadata.name":
		return pod.Name, true
	case "metadata.namespace":
		return pod.Namespace, true
	case "metadata.uid":
		return string(pod.UID), true
	case "spec.nodeName":
		return pod.Spec.NodeName, true
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, true
	case "status.podIP":
		return pod.Status.PodIP, true
	case "status.podIPs":
		var ips []string
		for _, ip := range pod.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), true
	case "status.hostIP":
		return pod.Status.HostIP, true
	case "status.hostIPs":
		var ips []string
		for _, ip := range pod.Status.HostIPs {
			ips = append(ips, ip.IP)
		}
		return strings.Join(ips, ","), true
	}
	return "", false
}
