package object

import (
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Below the spec of a pod or of a pod template, but for its init containers, of
// which the same is supported as of the others.
const supportedButInit = `
	containers[].name
	containers[].image
	containers[].command
	containers[].args
	containers[].workingDir
	containers[].env[].name
	containers[].env[].value
	containers[].env[].valueFrom.fieldRef
	containers[].env[].valueFrom.resourceFieldRef
	containers[].env[].valueFrom.configMapKeyRef
	containers[].env[].valueFrom.secretKeyRef
	containers[].envFrom
	containers[].ports[].name
	containers[].ports[].containerPort
	containers[].ports[].protocol
	containers[].ports[].hostPort
	containers[].ports[].hostIP
	containers[].resources.requests[cpu]
	containers[].resources.requests[memory]
	containers[].resources.requests[*/*]
	containers[].resources.requests[ephemeral-storage]
	containers[].resources.limits[cpu]
	containers[].resources.limits[memory]
	containers[].resources.limits[*/*]
	containers[].resources.limits[ephemeral-storage]
	containers[].resizePolicy
	containers[].imagePullPolicy
	containers[].stdin
	containers[].stdinOnce
	containers[].tty
	containers[].terminationMessagePath
	containers[].terminationMessagePolicy
	containers[].livenessProbe
	containers[].readinessProbe
	containers[].startupProbe
	containers[].lifecycle.postStart.exec
	containers[].lifecycle.postStart.httpGet
	containers[].lifecycle.postStart.sleep
	containers[].lifecycle.preStop.exec
	containers[].lifecycle.preStop.httpGet
	containers[].lifecycle.preStop.sleep
	containers[].lifecycle.stopSignal
	containers[].restartPolicy
	containers[].restartPolicyRules[].action = Restart
	containers[].restartPolicyRules[].exitCodes
	containers[].securityContext.runAsUser
	containers[].securityContext.runAsGroup
	containers[].securityContext.runAsNonRoot
	containers[].securityContext.capabilities
	containers[].securityContext.privileged
	containers[].securityContext.allowPrivilegeEscalation
	containers[].securityContext.readOnlyRootFilesystem
	containers[].securityContext.procMount = Default
	containers[].volumeMounts[].name
	containers[].volumeMounts[].mountPath
	containers[].volumeMounts[].readOnly
	containers[].volumeMounts[].recursiveReadOnly = Disabled IfPossible
	containers[].volumeMounts[].mountPropagation
	containers[].volumeMounts[].subPath
	containers[].volumeMounts[].subPathExpr
	containers[].securityContext.seccompProfile
	volumes[].name
	volumes[].emptyDir.medium = Memory
	volumes[].emptyDir.sizeLimit
	volumes[].emptyDir.mode
	volumes[].hostPath
	volumes[].persistentVolumeClaim
	volumes[].configMap
	volumes[].secret
	volumes[].downwardAPI
	volumes[].projected.defaultMode
	volumes[].projected.sources[].configMap
	volumes[].projected.sources[].secret
	volumes[].projected.sources[].downwardAPI
	volumes[].projected.sources[].serviceAccountToken
	volumes[].ephemeral
	restartPolicy
	imagePullSecrets
	terminationGracePeriodSeconds
	activeDeadlineSeconds
	readinessGates
	nodeName
	nodeSelector
	hostname
	hostAliases
	tolerations[].key
	tolerations[].operator
	tolerations[].value
	tolerations[].effect
	tolerations[].tolerationSeconds
	affinity
	topologySpreadConstraints
	schedulingGates
	dnsPolicy
	dnsConfig
	schedulerName
	enableServiceLinks
	securityContext.runAsUser
	securityContext.runAsGroup
	securityContext.runAsNonRoot
	securityContext.supplementalGroups
	securityContext.supplementalGroupsPolicy
	securityContext.fsGroup
	securityContext.fsGroupChangePolicy
	securityContext.seccompProfile
	securityContext.sysctls[].value
	securityContext.sysctls[].name = ` + safeSysctls + `
	hostNetwork
	hostPID
	hostIPC
	serviceAccountName
	serviceAccount
	automountServiceAccountToken
	shareProcessNamespace
	setHostnameAsFQDN = false
	hostUsers = true
	os.name = linux
	priority
	priorityClassName
	preemptionPolicy
`

// Of a pod: containers that are added while it runs.
const supportedEphemeral = `
	spec.ephemeralContainers[].name
	spec.ephemeralContainers[].image
	spec.ephemeralContainers[].command
	spec.ephemeralContainers[].args
	spec.ephemeralContainers[].workingDir
	spec.ephemeralContainers[].env[].name
	spec.ephemeralContainers[].env[].value
	spec.ephemeralContainers[].env[].valueFrom.fieldRef
	spec.ephemeralContainers[].env[].valueFrom.resourceFieldRef
	spec.ephemeralContainers[].env[].valueFrom.configMapKeyRef
	spec.ephemeralContainers[].env[].valueFrom.secretKeyRef
	spec.ephemeralContainers[].envFrom
	spec.ephemeralContainers[].imagePullPolicy
	spec.ephemeralContainers[].stdin
	spec.ephemeralContainers[].stdinOnce
	spec.ephemeralContainers[].tty
	spec.ephemeralContainers[].targetContainerName
	spec.ephemeralContainers[].terminationMessagePath
	spec.ephemeralContainers[].terminationMessagePolicy
	spec.ephemeralContainers[].securityContext.runAsUser
	spec.ephemeralContainers[].securityContext.runAsGroup
	spec.ephemeralContainers[].securityContext.runAsNonRoot
	spec.ephemeralContainers[].securityContext.capabilities
	spec.ephemeralContainers[].securityContext.privileged
	spec.ephemeralContainers[].securityContext.allowPrivilegeEscalation
	spec.ephemeralContainers[].securityContext.readOnlyRootFilesystem
	spec.ephemeralContainers[].securityContext.procMount = Default
	spec.ephemeralContainers[].securityContext.seccompProfile
	spec.ephemeralContainers[].volumeMounts[].name
	spec.ephemeralContainers[].volumeMounts[].mountPath
	spec.ephemeralContainers[].volumeMounts[].readOnly
	spec.ephemeralContainers[].volumeMounts[].recursiveReadOnly = Disabled IfPossible
	spec.ephemeralContainers[].volumeMounts[].mountPropagation
`

// Below the spec of a pod or of a pod template.
var supportedPodSpec = supportedButInit + initContainerLines()

func initContainerLines() string {
	var b strings.Builder
	for line := range strings.Lines(supportedButInit) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "containers[]."); ok {
			b.WriteString("initContainers[]." + rest + "\n")
		}
	}
	return b.String()
}

// safeSysctls are the kernel parameters that Kubernetes calls safe: of the pod's
// own namespaces, and harmless to other pods. It lets nodes allow others, which
// they do not here.
const safeSysctls = "kernel.shm_rmid_forced net.ipv4.ip_local_port_range net.ipv4.ip_local_reserved_ports " +
	"net.ipv4.ip_unprivileged_port_start net.ipv4.ping_group_range net.ipv4.tcp_fin_timeout net.ipv4.tcp_keepalive_intvl " +
	"net.ipv4.tcp_keepalive_probes net.ipv4.tcp_keepalive_time net.ipv4.tcp_rmem net.ipv4.tcp_syncookies net.ipv4.tcp_wmem"

// Below a template. A template's name has no effect in Kubernetes either: its
// pods are named after their owner.
const supportedTemplate = `
	metadata.name
	metadata.labels
	metadata.annotations
	metadata.finalizers
`

// supportedPodTemplate is the table of a kind's spec.template.
var supportedPodTemplate = podTemplateBelow("spec.template")

func podTemplateBelow(path string) string {
	return below(path, supportedTemplate+below("spec", supportedPodSpec))
}

// refineRefusals makes what the table says of pods fit for people: each refused
// field once, not again where a default follows from it, and what will never be
// supported with what to use instead.
func refineRefusals(errs field.ErrorList) field.ErrorList {
	refused := map[string]bool{}
	for _, err := range errs {
		refused[err.Field] = true
	}
	kept := errs[:0]
	for _, err := range errs {
		if refused[derivedFrom(err.Field)] || neverEphemeral(err.Field) {
			continue
		}
		parent, name := err.Field[:strings.LastIndex(err.Field, ".")+1], err.Field[strings.LastIndex(err.Field, ".")+1:]
		if use, never := neverVolumes[name]; never && strings.HasSuffix(parent, "].") && strings.Contains(parent, ".volumes[") {
			err.Detail = "Holdfast has no volumes of this type: " + use
		}
		kept = append(kept, err)
	}
	return kept
}

// neverEphemeral reports whether path is that of a field which ephemeral containers cannot
// have in Kubernetes either: validation says that better.
func neverEphemeral(path string) bool {
	rest, is := strings.CutPrefix(path, "spec.ephemeralContainers[")
	if !is {
		return false
	}
	_, name, _ := strings.Cut(rest, "].")
	for _, forbidden := range []string{"ports", "resources", "resizePolicy", "restartPolicy", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"} {
		if strings.HasPrefix(name, forbidden) {
			return true
		}
	}
	return strings.HasPrefix(name, "volumeMounts[") && strings.Contains(name, "].subPath")
}

// derivedFrom returns the path of the field whose value Default gives to the
// one at path when that is not given: "" for most.
func derivedFrom(path string) string {
	if i := strings.LastIndex(path, ".requests["); i >= 0 {
		return path[:i] + ".limits[" + path[i+len(".requests["):]
	}
	if spec, ok := strings.CutSuffix(path, ".serviceAccount"); ok {
		return spec + ".serviceAccountName"
	}
	return ""
}
