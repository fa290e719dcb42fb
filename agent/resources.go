package agent

import (
	"os"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/object"
)

// resources converts a container's requests to weights and its limits to limits, on
// a node with so much memory.
func resources(pod *corev1.Pod, spec *corev1.Container, nodeMemory int64) runtime.Resources {
	r := limits(spec.Resources.Requests, spec.Resources.Limits)
	r.OOMScoreAdj = max(oomScore(object.QOSClass(pod), spec, nodeMemory), leastScore())
	return r
}

// podResources bounds a pod's containers together: by the sums of what they ask
// for, and of their limits where each has one. maxPIDs 0 is no limit.
func podResources(pod *corev1.Pod, maxPIDs int64) runtime.Resources {
	r := limits(object.PodResources(pod), object.PodLimits(pod))
	r.PIDs = maxPIDs
	return r
}

func limits(requests, limits corev1.ResourceList) runtime.Resources {
	limitCPU, limitMemory := quantity(limits, corev1.ResourceCPU), quantity(limits, corev1.ResourceMemory)
	request, ok := requests[corev1.ResourceCPU]
	if !ok {
		request = limitCPU
	}
	return runtime.Resources{
		CPUMillis:   limitCPU.MilliValue(),
		CPUShares:   cpuShares(request.MilliValue()),
		MemoryBytes: limitMemory.Value(),
	}
}

// cpuShares is a request as the kernel weighs it.
func cpuShares(millis int64) int64 { return max(2, min(millis*1024/1000, 262144)) }

// leastScore is the lowest score that this process can give. Without the capability
// CAP_SYS_RESOURCE, which an agent that itself runs in a container may lack, it is its
// own: a container that is to have less could not be started.
var leastScore = sync.OnceValue(func() int {
	const any, sysResource = -1000, 24
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return any
	}
	for line := range strings.Lines(string(status)) {
		if mask, ok := strings.CutPrefix(line, "CapEff:"); ok {
			if caps, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64); err != nil || caps>>sysResource&1 == 1 {
				return any
			}
		}
	}
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return any
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(own)))
	if err != nil {
		return any
	}
	return score
})

// oomScore is how likely a container is killed when the node has no memory left,
// as Kubernetes has it: those that asked for nothing first, those that have what they
// asked for last, and between them by the part of the node's memory asked for.
func oomScore(class corev1.PodQOSClass, spec *corev1.Container, nodeMemory int64) int {
	const guaranteed, bestEffort = -997, 1000
	switch class {
	case corev1.PodQOSGuaranteed:
		return guaranteed
	case corev1.PodQOSBestEffort:
		return bestEffort
	case corev1.PodQOSBurstable:
	}
	request, ok := spec.Resources.Requests[corev1.ResourceMemory]
	if !ok {
		request = quantity(spec.Resources.Limits, corev1.ResourceMemory)
	}
	score := int64(bestEffort)
	if nodeMemory > 0 {
		score -= bestEffort * request.Value() / nodeMemory
	}
	return int(max(bestEffort+guaranteed, min(score, bestEffort-1)))
}
