package agent

import (
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/object"
)

// runtimePod is what the runtime is told of a pod, but for what the node gives it:
// network, names and addresses.
func runtimePod(pod *corev1.Pod) runtime.Pod {
	p := runtime.Pod{
		UID: string(pod.UID), Namespace: pod.Namespace, Name: pod.Name, Hostname: hostname(pod),
		SharePID: isTrue(pod.Spec.ShareProcessNamespace), HostPID: pod.Spec.HostPID, HostIPC: pod.Spec.HostIPC,
		QOS: object.QOSClass(pod),
	}
	if sc := pod.Spec.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		p.Sysctls = map[string]string{}
		for _, s := range sc.Sysctls {
			p.Sysctls[strings.ReplaceAll(s.Name, "/", ".")] = s.Value
		}
	}
	return p
}

// securityOf is what a container may do: what its own security context says, or
// else that of its pod. Filters of system calls that are files are in seccompDir.
func securityOf(pod *corev1.Pod, spec *corev1.Container, seccompDir string) runtime.Security {
	var of corev1.PodSecurityContext
	if pod.Spec.SecurityContext != nil {
		of = *pod.Spec.SecurityContext
	}
	var own corev1.SecurityContext
	if spec.SecurityContext != nil {
		own = *spec.SecurityContext
	}
	s := runtime.Security{
		User: first(own.RunAsUser, of.RunAsUser), Group: first(own.RunAsGroup, of.RunAsGroup),
		NonRoot: isTrue(first(own.RunAsNonRoot, of.RunAsNonRoot)),
		Groups:  slices.Clone(of.SupplementalGroups),

		Privileged:      isTrue(own.Privileged),
		ReadOnlyRoot:    isTrue(own.ReadOnlyRootFilesystem),
		NoNewPrivileges: own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation,
		StrictGroups:    of.SupplementalGroupsPolicy != nil && *of.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict,
	}
	if of.FSGroup != nil {
		s.Groups = append(s.Groups, *of.FSGroup)
	}
	if own.Capabilities != nil {
		s.AddCapabilities, s.DropCapabilities = capabilities(own.Capabilities.Add), capabilities(own.Capabilities.Drop)
	}
	if p := first(own.SeccompProfile, of.SeccompProfile); p != nil {
		switch p.Type {
		case corev1.SeccompProfileTypeUnconfined:
			s.Seccomp = runtime.SeccompUnconfined
		case corev1.SeccompProfileTypeLocalhost:
			s.Seccomp = filepath.Join(seccompDir, *p.LocalhostProfile)
		case corev1.SeccompProfileTypeRuntimeDefault:
		}
	}
	return s
}

func capabilities(names []corev1.Capability) []string {
	var out []string
	for _, name := range names {
		out = append(out, strings.TrimPrefix(strings.ToUpper(string(name)), "CAP_"))
	}
	return out
}

// first returns the first that is not nil, or nil.
func first[T any](of ...*T) *T {
	for _, p := range of {
		if p != nil {
			return p
		}
	}
	return nil
}

func isTrue(b *bool) bool { return b != nil && *b }
