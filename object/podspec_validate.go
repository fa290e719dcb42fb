package object

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// sameValue compares API values as Kubernetes does: 1 and 1000m of something
// are the same, and so are an empty list and none.
func sameValue(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }

// podScope is what validating a part of a pod's spec needs to know of the rest.
type podScope struct {
	spec    *corev1.PodSpec
	pod     *corev1.Pod // nil: the spec is a template's
	volumes map[string]*corev1.Volume
}

func (s *podScope) hostUsers() bool { return s.spec.HostUsers == nil || *s.spec.HostUsers }

// validatePod is everything about a pod but its metadata: what holds for
// templates too, and what only a pod must have.
func validatePod(pod *corev1.Pod) field.ErrorList {
	errs := validatePodAnnotations(pod.Annotations, &pod.Spec, field.NewPath("metadata", "annotations"))
	return append(errs, validatePodSpecOf(&podScope{spec: &pod.Spec, pod: pod}, field.NewPath("spec"))...)
}

// validatePodSpec is for the spec of a template.
func validatePodSpec(spec *corev1.PodSpec, path *field.Path) field.ErrorList {
	return validatePodSpecOf(&podScope{spec: spec}, path)
}

func validatePodSpecOf(s *podScope, path *field.Path) field.ErrorList {
	spec := s.spec
	errs := s.validateVolumes(path.Child("volumes"))
	errs = append(errs, s.validateContainers(path)...)
	errs = append(errs, oneOf(spec.RestartPolicy,
		[]corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever}, path.Child("restartPolicy"))...)
	if g := spec.TerminationGracePeriodSeconds; g != nil && *g < 0 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), *g, apivalidation.IsNegativeErrorMsg))
	}
	if d := spec.ActiveDeadlineSeconds; d != nil && (*d < 1 || *d > math.MaxInt32) {
		errs = append(errs, field.Invalid(path.Child("activeDeadlineSeconds"), *d, validation.InclusiveRangeError(1, math.MaxInt32)))
	}
	errs = append(errs, s.validateNames(path)...)
	errs = append(errs, s.validatePodResources(path)...)
	errs = append(errs, s.validatePodSecurity(path)...)
	errs = append(errs, s.validateHostNamespaces(path)...)
	errs = append(errs, validateDNS(spec, path)...)
	errs = append(errs, s.validateScheduling(path)...)
	errs = append(errs, validateQuantities(spec.Overhead, path.Child("overhead"))...)
	for i, gate := range spec.ReadinessGates {
		errs = append(errs, validateQualifiedName(string(gate.ConditionType), path.Child("readinessGates").Index(i).Child("conditionType"))...)
	}
	for i, secret := range spec.ImagePullSecrets {
		if secret.Name == "" {
			errs = append(errs, field.Required(path.Child("imagePullSecrets").Index(i).Child("name"), "name the secret with the registry's credentials"))
		} else {
			errs = append(errs, invalid(path.Child("imagePullSecrets").Index(i).Child("name"), secret.Name, apivalidation.NameIsDNSSubdomain(secret.Name, false))...)
		}
	}
	if os := spec.OS; os != nil {
		errs = append(errs, oneOf(os.Name, []corev1.OSName{corev1.Linux, corev1.Windows}, path.Child("os", "name"))...)
	}
	return errs
}

// validateNames checks the names that a pod bears or refers to.
func (s *podScope) validateNames(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	spec := s.spec
	name := func(child, value string, check func(string, bool) []string) {
		if value != "" {
			errs = append(errs, invalid(path.Child(child), value, check(value, false))...)
		}
	}
	name("nodeName", spec.NodeName, apivalidation.NameIsDNSSubdomain)
	name("serviceAccountName", spec.ServiceAccountName, apivalidation.ValidateServiceAccountName)
	name("priorityClassName", spec.PriorityClassName, apivalidation.NameIsDNSSubdomain)
	name("hostname", spec.Hostname, apivalidation.NameIsDNSLabel)
	name("subdomain", spec.Subdomain, apivalidation.NameIsDNSLabel)
	if class := spec.RuntimeClassName; class != nil {
		errs = append(errs, invalid(path.Child("runtimeClassName"), *class, apivalidation.NameIsDNSSubdomain(*class, false))...)
	}
	if p := spec.Priority; s.pod == nil && p != nil && *p != 0 && spec.PriorityClassName == "" {
		errs = append(errs, field.Forbidden(path.Child("priority"), "pods have the priority of their class: name one in priorityClassName instead"))
	}
	if p := spec.PreemptionPolicy; p != nil {
		errs = append(errs, oneOf(*p, []corev1.PreemptionPolicy{corev1.PreemptLowerPriority, corev1.PreemptNever}, path.Child("preemptionPolicy"))...)
	}
	if h := spec.HostnameOverride; h != nil {
		at := path.Child("hostnameOverride")
		errs = append(errs, invalid(at, *h, validation.IsDNS1123Subdomain(*h))...)
		if len(*h) > 64 {
			errs = append(errs, field.TooLong(at, "", 64))
		}
		if spec.HostNetwork {
			errs = append(errs, field.Forbidden(at, "may not be set when `hostNetwork` is true: the pod has its node's name then"))
		}
		if fqdn := spec.SetHostnameAsFQDN; fqdn != nil && *fqdn {
			errs = append(errs, field.Forbidden(at, "may not be set when `setHostnameAsFQDN` is true: choose one of the two"))
		}
	}
	return errs
}

// validateHostNamespaces checks what of the node a pod shares.
func (s *podScope) validateHostNamespaces(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	spec := s.spec
	if share := spec.ShareProcessNamespace; spec.HostPID && share != nil && *share {
		errs = append(errs, field.Invalid(path.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled: the node's processes are shared already"))
	}
	if !s.hostUsers() {
		for _, ns := range []struct {
			name string
			on   bool
		}{{"hostNetwork", spec.HostNetwork}, {"hostPID", spec.HostPID}, {"hostIPC", spec.HostIPC}} {
			if ns.on {
				errs = append(errs, field.Forbidden(path.Child(ns.name), "may not be true when `hostUsers` is false"))
			}
		}
	}
	eachContainer(spec, func(c *corev1.Container, kind containerKind, i int) {
		for j, port := range c.Ports {
			at := path.Child(string(kind)).Index(i).Child("ports").Index(j).Child("hostPort")
			switch {
			case !spec.HostNetwork && port.HostPort != 0:
				errs = append(errs, hostIPNotSupported(port.HostIP, path.Child(string(kind)).Index(i).Child("ports").Index(j).Child("hostIP"))...)
			// A template's ports get their host ports when its pods are made.
			case spec.HostNetwork && port.HostPort != port.ContainerPort && (s.pod != nil || port.HostPort != 0):
				errs = append(errs, field.Invalid(at, port.HostPort, "must match `containerPort` when `hostNetwork` is true"))
			}
		}
	})
	return errs
}

// Limits of the C library's resolver.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
)

func validateDNS(spec *corev1.PodSpec, path *field.Path) field.ErrorList {
	errs := oneOf(spec.DNSPolicy, []corev1.DNSPolicy{corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone}, path.Child("dnsPolicy"))
	config, at := spec.DNSConfig, path.Child("dnsConfig")
	if spec.DNSPolicy == corev1.DNSNone && (config == nil || len(config.Nameservers) == 0) {
		errs = append(errs, field.Required(at.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None"))
	}
	if config != nil {
		servers, searches := at.Child("nameservers"), at.Child("searches")
		if n := len(config.Nameservers); n > maxNameservers {
			errs = append(errs, field.TooMany(servers, n, maxNameservers))
		}
		for i, server := range config.Nameservers {
			errs = append(errs, validation.IsValidIP(servers.Index(i), server)...)
		}
		if n := len(config.Searches); n > maxSearches {
			errs = append(errs, field.TooMany(searches, n, maxSearches))
		}
		if len(strings.Join(config.Searches, " ")) > maxSearchChars {
			errs = append(errs, field.TooLong(searches, "", maxSearchChars))
		}
		for i, search := range config.Searches {
			if search != "." {
				errs = append(errs, invalid(searches.Index(i), search, validation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(search, ".")))...)
			}
		}
		for i, option := range config.Options {
			if option.Name == "" {
				errs = append(errs, field.Required(at.Child("options").Index(i).Child("name"), `name the option, for example "ndots"`))
			}
		}
	}
	for i, alias := range spec.HostAliases {
		at := path.Child("hostAliases").Index(i)
		errs = append(errs, validation.IsValidIP(at.Child("ip"), alias.IP)...)
		for j, host := range alias.Hostnames {
			errs = append(errs, invalid(at.Child("hostnames").Index(j), host, validation.IsDNS1123Subdomain(host))...)
		}
	}
	return errs
}

// Annotations that mean something on a pod.
const deletionCostAnnotation = corev1.PodDeletionCost

func validatePodAnnotations(annotations map[string]string, spec *corev1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if cost, ok := annotations[deletionCostAnnotation]; ok {
		if _, err := strconv.ParseInt(cost, 10, 32); err != nil || strings.HasPrefix(cost, "+") {
			errs = append(errs, field.Invalid(path.Key(deletionCostAnnotation), cost, "must be a 32bit integer"))
		}
	}
	errs = append(errs, validateFencing(annotations, path)...)
	if value, ok := annotations[corev1.MirrorPodAnnotationKey]; ok && spec.NodeName == "" {
		errs = append(errs, field.Invalid(path.Key(corev1.MirrorPodAnnotationKey), value, "must set spec.nodeName if mirror pod annotation is set"))
	}
	return errs
}

// Templates

// validateTemplate checks the selector and the template of a workload whose
// pods run for ever. path is that of its spec.
func validateTemplate(selector *metav1.LabelSelector, template *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	errs := validateOwnSelector(selector, template.Labels, path)
	errs = append(errs, validatePodTemplate(template, path.Child("template"))...)
	spec := path.Child("template", "spec")
	if p := template.Spec.RestartPolicy; p == corev1.RestartPolicyOnFailure || p == corev1.RestartPolicyNever {
		errs = append(errs, field.NotSupported(spec.Child("restartPolicy"), p, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if template.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(spec.Child("activeDeadlineSeconds"), "these pods are started again whenever they end: use a Job for work that has a deadline"))
	}
	return errs
}

// validateOwnSelector checks a selector, and that it selects pods with these
// labels.
func validateOwnSelector(selector *metav1.LabelSelector, set map[string]string, path *field.Path) field.ErrorList {
	at, meta := path.Child("selector"), path.Child("template", "metadata")
	switch {
	case selector == nil:
		return field.ErrorList{field.Required(at, "say which pods belong to it, by labels that the template sets")}
	case len(selector.MatchLabels)+len(selector.MatchExpressions) == 0:
		return field.ErrorList{field.Invalid(at, field.OmitValueType{}, "an empty selector would take every pod of the namespace: name labels that the template sets")}
	}
	if wrong := validateSelector(selector, at); len(wrong) > 0 {
		return wrong
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	switch {
	case err != nil:
		return field.ErrorList{field.Invalid(at, selector, err.Error())}
	case !s.Matches(labels.Set(set)):
		return field.ErrorList{field.Invalid(meta.Child("labels"), labels.Set(set).String(),
			fmt.Sprintf("the selector (%s) does not match these labels: the pods would not be its own", s))}
	}
	return nil
}

// validatePodTemplate checks a template without its selector.
func validatePodTemplate(template *corev1.PodTemplateSpec, path *field.Path) field.ErrorList {
	meta := path.Child("metadata")
	errs := validateLabels(template.Labels, meta.Child("labels"))
	errs = append(errs, validateAnnotations(template.Annotations, meta.Child("annotations"))...)
	errs = append(errs, validatePodAnnotations(template.Annotations, &template.Spec, meta.Child("annotations"))...)
	errs = append(errs, apivalidation.ValidateFinalizers(template.Finalizers, meta.Child("finalizers"))...)
	errs = append(errs, validatePodSpec(&template.Spec, path.Child("spec"))...)
	if len(template.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(path.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template: they are added to a pod that runs"))
	}
	return errs
}

// hostIPNotSupported refuses addresses of the node that lead to no pod yet.
func hostIPNotSupported(text string, at *field.Path) field.ErrorList {
	ip, err := netip.ParseAddr(text)
	switch {
	case err != nil || ip.IsUnspecified(): // none, or a fault that was told
		return nil
	case ip.IsLoopback():
		return field.ErrorList{{Type: notSupportedYet, Field: at.String(), Detail: "not supported yet: addresses of the loopback lead to the node's own programs"}}
	case !ip.Unmap().Is4():
		return field.ErrorList{{Type: notSupportedYet, Field: at.String(), Detail: "not supported yet: host ports are of IPv4"}}
	}
	return nil
}
