package object

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// validatePodSecurity checks the security context of the pod as a whole. path is
// that of its spec.
func (s *podScope) validatePodSecurity(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	sc := s.spec.SecurityContext
	if sc == nil {
		return nil
	}
	path = path.Child("securityContext")
	errs = append(errs, userAndGroup(sc.RunAsUser, sc.RunAsGroup, path)...)
	if sc.FSGroup != nil {
		errs = append(errs, invalid(path.Child("fsGroup"), *sc.FSGroup, validation.IsValidGroupID(*sc.FSGroup))...)
	}
	for i, gid := range sc.SupplementalGroups {
		errs = append(errs, invalid(path.Child("supplementalGroups").Index(i), gid, validation.IsValidGroupID(gid))...)
	}
	if p := sc.SupplementalGroupsPolicy; p != nil {
		errs = append(errs, oneOf(*p, []corev1.SupplementalGroupsPolicy{corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict}, path.Child("supplementalGroupsPolicy"))...)
	}
	if p := sc.FSGroupChangePolicy; p != nil {
		errs = append(errs, oneOf(*p, []corev1.PodFSGroupChangePolicy{corev1.FSGroupChangeOnRootMismatch, corev1.FSGroupChangeAlways}, path.Child("fsGroupChangePolicy"))...)
	}
	if p := sc.SELinuxChangePolicy; p != nil {
		errs = append(errs, oneOf(*p, []corev1.PodSELinuxChangePolicy{corev1.SELinuxChangePolicyRecursive, corev1.SELinuxChangePolicyMountOption}, path.Child("seLinuxChangePolicy"))...)
	}
	errs = append(errs, s.validateSysctls(sc.Sysctls, path.Child("sysctls"))...)
	errs = append(errs, validateSeccomp(sc.SeccompProfile, path.Child("seccompProfile"))...)
	errs = append(errs, validateAppArmor(sc.AppArmorProfile, path.Child("appArmorProfile"))...)
	return append(errs, s.validateWindows(sc.WindowsOptions, path)...)
}

// validateSecurityContext checks that of a container.
func (s *podScope) validateSecurityContext(sc *corev1.SecurityContext, path *field.Path) field.ErrorList {
	if sc == nil {
		return nil
	}
	errs := userAndGroup(sc.RunAsUser, sc.RunAsGroup, path)
	if p := sc.ProcMount; p != nil {
		errs = append(errs, oneOf(*p, []corev1.ProcMountType{corev1.DefaultProcMount, corev1.UnmaskedProcMount}, path.Child("procMount"))...)
		if *p == corev1.UnmaskedProcMount && s.hostUsers() {
			errs = append(errs, field.Invalid(path.Child("procMount"), *p, "`hostUsers` must be false to use `Unmasked`"))
		}
	}
	errs = append(errs, validateSeccomp(sc.SeccompProfile, path.Child("seccompProfile"))...)
	errs = append(errs, validateAppArmor(sc.AppArmorProfile, path.Child("appArmorProfile"))...)
	errs = append(errs, s.validateWindows(sc.WindowsOptions, path)...)
	caps := sc.Capabilities
	if caps != nil {
		errs = append(errs, validateCapabilities(caps.Add, path.Child("capabilities", "add"))...)
		errs = append(errs, validateCapabilities(caps.Drop, path.Child("capabilities", "drop"))...)
	}
	if escalate := sc.AllowPrivilegeEscalation; escalate != nil && !*escalate {
		at := path.Child("allowPrivilegeEscalation")
		if sc.Privileged != nil && *sc.Privileged {
			errs = append(errs, field.Invalid(at, false, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if caps != nil {
			for _, c := range caps.Add {
				if strings.TrimPrefix(string(c), "CAP_") == "SYS_ADMIN" {
					errs = append(errs, field.Invalid(at, false, "cannot set `allowPrivilegeEscalation` to false and add the capability SYS_ADMIN"))
				}
			}
		}
	}
	return errs
}

func userAndGroup(user, group *int64, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if user != nil {
		errs = append(errs, invalid(path.Child("runAsUser"), *user, validation.IsValidUserID(*user))...)
	}
	if group != nil {
		errs = append(errs, invalid(path.Child("runAsGroup"), *group, validation.IsValidGroupID(*group))...)
	}
	return errs
}

var capabilityNames = strings.Fields("ALL AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID " +
	"IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID " +
	"SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM")

// validateCapabilities refuses what Linux does not have. Kubernetes leaves that
// to the node, where the container then fails to start.
func validateCapabilities(caps []corev1.Capability, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, c := range caps {
		name := strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_")
		known := false
		for _, n := range capabilityNames {
			known = known || n == name
		}
		if known {
			continue
		}
		hint := "is not a capability of Linux, such as NET_ADMIN, or ALL"
		if guess, ok := nearest(name, capabilityNames); ok {
			hint = "is not a capability of Linux: did you mean " + guess + "?"
		}
		errs = append(errs, field.Invalid(path.Index(i), c, hint))
	}
	return errs
}

func validateSeccomp(p *corev1.SeccompProfile, path *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := oneOf(p.Type, []corev1.SeccompProfileType{corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined}, path.Child("type"))
	at := path.Child("localhostProfile")
	switch {
	case p.Type == corev1.SeccompProfileTypeLocalhost && p.LocalhostProfile == nil:
		errs = append(errs, field.Required(at, "must be set when seccomp type is Localhost"))
	case p.Type == corev1.SeccompProfileTypeLocalhost:
		errs = append(errs, descendingPath(*p.LocalhostProfile, at)...)
	case p.LocalhostProfile != nil:
		errs = append(errs, field.Invalid(at, *p.LocalhostProfile, "can only be set when seccomp type is Localhost"))
	}
	return errs
}

func validateAppArmor(p *corev1.AppArmorProfile, path *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := oneOf(p.Type, []corev1.AppArmorProfileType{corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeUnconfined}, path.Child("type"))
	const longest = 4095 // a path of Linux
	at, name := path.Child("localhostProfile"), p.LocalhostProfile
	switch {
	case p.Type != corev1.AppArmorProfileTypeLocalhost && name != nil:
		errs = append(errs, field.Invalid(at, *name, "can only be set when AppArmor type is Localhost"))
	case p.Type != corev1.AppArmorProfileTypeLocalhost:
	case name == nil || strings.TrimSpace(*name) == "":
		errs = append(errs, field.Required(at, "must be set when AppArmor type is Localhost"))
	case strings.TrimSpace(*name) != *name:
		errs = append(errs, field.Invalid(at, *name, "must not be padded with whitespace"))
	case len(*name) > longest:
		errs = append(errs, field.TooLong(at, "", longest))
	}
	return errs
}

// sysctlName is the kernel's name of a parameter, with dots or slashes.
var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

// Parameters that belong to a namespace, which a pod may share with its node.
var (
	ipcSysctls = []string{"kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."}
	netSysctls = []string{"net."}
)

func (s *podScope) validateSysctls(sysctls []corev1.Sysctl, path *field.Path) field.ErrorList {
	const longest = 253
	var errs field.ErrorList
	taken := map[string]bool{}
	for i, p := range sysctls {
		at := path.Index(i).Child("name")
		name := strings.ReplaceAll(p.Name, "/", ".")
		switch {
		case p.Name == "":
			errs = append(errs, field.Required(at, `name the kernel's parameter, for example "net.core.somaxconn"`))
		case len(p.Name) > longest || !sysctlName.MatchString(p.Name):
			errs = append(errs, field.Invalid(at, p.Name, fmt.Sprintf("must be the name of a kernel parameter such as \"net.core.somaxconn\", of at most %d characters", longest)))
		case taken[name]:
			errs = append(errs, field.Duplicate(at, p.Name))
		case s.spec.HostNetwork && hasPrefix(name, netSysctls):
			errs = append(errs, field.Invalid(at, p.Name, "may not be specified when 'hostNetwork' is true"))
		case s.spec.HostIPC && hasPrefix(name, ipcSysctls):
			errs = append(errs, field.Invalid(at, p.Name, "may not be specified when 'hostIPC' is true"))
		}
		taken[name] = true
	}
	return errs
}

func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// validateWindows refuses Windows' options for a pod that says it is Linux's.
func (s *podScope) validateWindows(options *corev1.WindowsSecurityContextOptions, path *field.Path) field.ErrorList {
	if options != nil && s.spec.OS != nil && s.spec.OS.Name == corev1.Linux {
		return field.ErrorList{field.Forbidden(path.Child("windowsOptions"), "windows options cannot be set for a linux pod")}
	}
	return nil
}
