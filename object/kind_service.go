package object

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The table leaves out what will not come. externalIPs lets whoever may write a
// Service take over any address, and Kubernetes is doing away with it.
// loadBalancerIP is for clouds, deprecated, and means something else in each.
// ExternalName is an alias that the cluster's DNS answers, and a LoadBalancer
// without an implementation waits for one, as it does in Kubernetes.
var kindService = define(Resource{Version: "v1", Kind: "Service", Plural: "services", Singular: "service", ShortNames: []string{"svc"}, Namespaced: true, Categories: inAll, Status: true},
	func() *corev1.Service { return new(corev1.Service) },
	rules[*corev1.Service]{
		validName: serviceName,
		supported: `
			spec.type
			spec.selector
			spec.ports
			spec.clusterIP
			spec.clusterIPs
			spec.ipFamilies
			spec.ipFamilyPolicy
			spec.externalName
			spec.sessionAffinity
			spec.sessionAffinityConfig
			spec.publishNotReadyAddresses
			spec.internalTrafficPolicy
			spec.externalTrafficPolicy
			spec.healthCheckNodePort
			spec.allocateLoadBalancerNodePorts
			spec.loadBalancerClass
			spec.loadBalancerSourceRanges
			spec.trafficDistribution
			status
		`,
		defaults:       defaultService,
		validate:       validateService,
		validateUpdate: validateServiceUpdate,
		selectable: func(svc *corev1.Service, set fields.Set) {
			set["spec.clusterIP"] = svc.Spec.ClusterIP
			set["spec.type"] = string(svc.Spec.Type)
		},
		columns: columns("NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE", "|", "SELECTOR"),
		row:     serviceRow,
		describe: func(d *describer, svc *corev1.Service, related []Object) {
			d.service(svc, only[*discoveryv1.EndpointSlice](related))
		},
	})

// serviceName returns what is wrong with a Service's name, which is a label in
// DNS.
func serviceName(name string, prefix bool) []string {
	return apivalidation.NameIsDNS1035Label(name, prefix)
}

func isHeadless(svc *corev1.Service) bool {
	return svc.Spec.ClusterIP == corev1.ClusterIPNone || len(svc.Spec.ClusterIPs) > 0 && svc.Spec.ClusterIPs[0] == corev1.ClusterIPNone
}

// needsNodePort reports whether traffic from outside reaches svc by ports of the
// nodes.
func needsNodePort(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort ||
		svc.Spec.Type == corev1.ServiceTypeLoadBalancer && (svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts)
}

// needsHealthCheckPort reports whether a load balancer asks nodes which of them
// have pods of svc.
func needsHealthCheckPort(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func fromOutside(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer || svc.Spec.Type == corev1.ServiceTypeNodePort
}

// defaultService fills in what can be known without the other Services: see
// AllocateServiceIPs for the rest.
func defaultService(svc *corev1.Service) {
	spec := &svc.Spec
	setIfZero(&spec.Type, corev1.ServiceTypeClusterIP)
	setIfZero(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		spec.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if c := spec.SessionAffinityConfig; c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			seconds := corev1.DefaultClientIPServiceAffinitySeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		}
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		setIfZero(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if fromOutside(svc) {
		setIfZero(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		setIfNil(&spec.AllocateLoadBalancerNodePorts, true)
		for i := range svc.Status.LoadBalancer.Ingress {
			if at := &svc.Status.LoadBalancer.Ingress[i]; at.IP != "" {
				setIfNil(&at.IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	setIfNil(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	if spec.ClusterIP == "" && len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	defaultIPFamilies(spec)
}

// defaultIPFamilies is what a cluster with one network for Services, of IPv4,
// does. Addresses that are asked for say their families themselves.
func defaultIPFamilies(spec *corev1.ServiceSpec) {
	if spec.ClusterIP == corev1.ClusterIPNone && len(spec.Selector) == 0 {
		// Somebody else writes its endpoints, and they may be of any family.
		setIfNil(&spec.IPFamilyPolicy, corev1.IPFamilyPolicyRequireDualStack)
		if len(spec.IPFamilies) == 0 {
			spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
		}
		if *spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack && len(spec.IPFamilies) == 1 {
			spec.IPFamilies = append(spec.IPFamilies, otherFamily(spec.IPFamilies[0]))
		}
		return
	}
	if len(spec.IPFamilies) == 0 {
		for _, text := range spec.ClusterIPs {
			if ip, wrong := validateIP(text, nil); len(wrong) == 0 {
				spec.IPFamilies = append(spec.IPFamilies, familyOf(ip))
			}
		}
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
	setIfNil(&spec.IPFamilyPolicy, corev1.IPFamilyPolicySingleStack)
}

func otherFamily(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

var (
	serviceTypes   = []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort}
	affinities     = []corev1.ServiceAffinity{corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone}
	familyPolicies = []corev1.IPFamilyPolicy{corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack}
	ipFamilies     = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
)

func validateService(svc *corev1.Service) field.ErrorList {
	spec, path := &svc.Spec, field.NewPath("spec")
	errs := oneOf(spec.Type, serviceTypes, path.Child("type"))
	add := func(more ...*field.Error) { errs = append(errs, more...) }
	headless := isHeadless(svc)

	if len(spec.Ports) == 0 && !headless && spec.Type != corev1.ServiceTypeExternalName {
		add(field.Required(path.Child("ports"), "say at which port the Service answers"))
	}
	add(validateServicePorts(svc, path.Child("ports"))...)
	add(validateLabels(spec.Selector, path.Child("selector"))...)
	add(validateSessionAffinity(spec, path)...)
	add(validateClusterIPs(svc, path)...)

	outside := fromOutside(svc)
	balanced := spec.Type == corev1.ServiceTypeLoadBalancer
	const forBalancers = "may only be used when `type` is 'LoadBalancer'"
	if !balanced && spec.AllocateLoadBalancerNodePorts != nil {
		add(field.Forbidden(path.Child("allocateLoadBalancerNodePorts"), forBalancers))
	}
	if at := path.Child("loadBalancerClass"); spec.LoadBalancerClass != nil {
		if !balanced {
			add(field.Forbidden(at, forBalancers))
		}
		add(validateQualifiedName(*spec.LoadBalancerClass, at)...)
	}
	if at := path.Child("loadBalancerSourceRanges"); len(spec.LoadBalancerSourceRanges) > 0 {
		if !balanced {
			add(field.Forbidden(at, forBalancers))
		}
		for i, text := range spec.LoadBalancerSourceRanges {
			_, wrong := validateCIDR(strings.TrimSpace(text), at.Index(i))
			add(wrong...)
		}
	}
	if at := path.Child("externalTrafficPolicy"); outside || spec.ExternalTrafficPolicy != "" {
		if !outside {
			add(field.Invalid(at, spec.ExternalTrafficPolicy, "may only be set for externally-accessible services: those of type NodePort and LoadBalancer"))
		}
		add(oneOf(spec.ExternalTrafficPolicy, []corev1.ServiceExternalTrafficPolicy{corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal}, at)...)
	}
	if at := path.Child("healthCheckNodePort"); spec.HealthCheckNodePort != 0 {
		if !needsHealthCheckPort(svc) {
			add(field.Invalid(at, spec.HealthCheckNodePort, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
		}
		add(portNumber(spec.HealthCheckNodePort, at)...)
	}
	if spec.Type != corev1.ServiceTypeExternalName || spec.InternalTrafficPolicy != nil {
		add(oneOf(deref(spec.InternalTrafficPolicy), []corev1.ServiceInternalTrafficPolicy{corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal}, path.Child("internalTrafficPolicy"))...)
	}
	if spec.TrafficDistribution != nil {
		add(oneOf(*spec.TrafficDistribution, []string{corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameNode, corev1.ServiceTrafficDistributionPreferSameZone}, path.Child("trafficDistribution"))...)
	}
	if at := path.Child("externalName"); spec.Type == corev1.ServiceTypeExternalName {
		if name := strings.TrimSuffix(spec.ExternalName, "."); name == "" {
			add(field.Required(at, "say which DNS name the Service stands for"))
		} else {
			add(invalid(at, spec.ExternalName, validation.IsDNS1123Subdomain(name))...)
		}
	}
	return errs
}

func validateServicePorts(svc *corev1.Service, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	type numbered struct {
		number   int32
		protocol corev1.Protocol
	}
	names, ports, nodePorts := map[string]bool{}, map[numbered]bool{}, map[numbered]bool{}
	for i := range svc.Spec.Ports {
		p, at := &svc.Spec.Ports[i], path.Index(i)
		switch {
		case p.Name == "" && len(svc.Spec.Ports) > 1:
			errs = append(errs, field.Required(at.Child("name"), "a Service with several ports names each of them"))
		case p.Name != "":
			errs = append(errs, invalid(at.Child("name"), p.Name, validation.IsDNS1123Label(p.Name))...)
			if names[p.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
			}
			names[p.Name] = true
		}
		errs = append(errs, portNumber(p.Port, at.Child("port"))...)
		errs = append(errs, oneOf(p.Protocol, protocols, at.Child("protocol"))...)
		if p.TargetPort.Type == intstr.String {
			errs = append(errs, invalid(at.Child("targetPort"), p.TargetPort.StrVal, validation.IsValidPortName(p.TargetPort.StrVal))...)
		} else if p.TargetPort.IntVal != p.Port { // the fault of port is said
			errs = append(errs, portNumber(p.TargetPort.IntVal, at.Child("targetPort"))...)
		}
		errs = append(errs, appProtocol(p.AppProtocol, at.Child("appProtocol"))...)
		if id := (numbered{p.Port, p.Protocol}); p.Port != 0 {
			if ports[id] {
				errs = append(errs, field.Duplicate(at, fmt.Sprintf("%d/%s", p.Port, p.Protocol)))
			}
			ports[id] = true
		}
		if p.NodePort == 0 {
			continue
		}
		if !fromOutside(svc) {
			errs = append(errs, field.Forbidden(at.Child("nodePort"), fmt.Sprintf("may not be used when `type` is '%s'", svc.Spec.Type)))
			continue
		}
		if id := (numbered{p.NodePort, p.Protocol}); nodePorts[id] {
			errs = append(errs, field.Duplicate(at.Child("nodePort"), p.NodePort))
		} else {
			nodePorts[id] = true
		}
	}
	return errs
}

func validateSessionAffinity(spec *corev1.ServiceSpec, path *field.Path) field.ErrorList {
	const longest = 86400 // a day
	errs := oneOf(spec.SessionAffinity, affinities, path.Child("sessionAffinity"))
	at := path.Child("sessionAffinityConfig")
	switch c := spec.SessionAffinityConfig; {
	case c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil:
	case spec.SessionAffinity == corev1.ServiceAffinityClientIP:
		if s := *c.ClientIP.TimeoutSeconds; s <= 0 || s > longest {
			errs = append(errs, field.Invalid(at.Child("clientIP", "timeoutSeconds"), s, fmt.Sprintf("must be greater than 0 and less than %d", longest)))
		}
	}
	return errs
}

func validateClusterIPs(svc *corev1.Service, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	add := func(more ...*field.Error) { errs = append(errs, more...) }
	spec := &svc.Spec
	at, families := path.Child("clusterIPs"), path.Child("ipFamilies")
	if spec.Type == corev1.ServiceTypeExternalName {
		const why = "may not be set for ExternalName services"
		if spec.ClusterIP != "" {
			add(field.Forbidden(path.Child("clusterIP"), why))
		} else if len(spec.ClusterIPs) > 0 {
			add(field.Forbidden(at, why))
		}
		if len(spec.IPFamilies) > 0 {
			add(field.Forbidden(families, why))
		}
		if spec.IPFamilyPolicy != nil {
			add(field.Forbidden(path.Child("ipFamilyPolicy"), why))
		}
		return errs
	}

	if len(spec.IPFamilies) > 2 {
		add(field.Invalid(families, field.OmitValueType{}, "may only hold up to 2 values"))
	}
	for i, f := range spec.IPFamilies {
		add(oneOf(f, ipFamilies, families.Index(i))...)
		if slices.Contains(spec.IPFamilies[:i], f) {
			add(field.Duplicate(families.Index(i), f))
		}
	}
	if spec.IPFamilyPolicy != nil {
		add(oneOf(*spec.IPFamilyPolicy, familyPolicies, path.Child("ipFamilyPolicy"))...)
		if *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack && (len(spec.IPFamilies) > 1 || len(spec.ClusterIPs) > 1) {
			add(field.Invalid(path.Child("ipFamilyPolicy"), *spec.IPFamilyPolicy, "must be RequireDualStack or PreferDualStack when there are two ipFamilies or clusterIPs"))
		}
	}
	if len(spec.ClusterIPs) == 0 {
		return errs
	}
	if spec.ClusterIPs[0] != spec.ClusterIP {
		add(field.Invalid(at, field.OmitValueType{}, "element [0] must match clusterIP"))
	}
	if isHeadless(svc) && fromOutside(svc) {
		add(field.Invalid(at.Index(0), spec.ClusterIPs[0], fmt.Sprintf("may not be set to 'None' for %s services", spec.Type)))
	}
	if len(spec.ClusterIPs) > 2 {
		add(field.Invalid(at, field.OmitValueType{}, "may only hold up to 2 values"))
	}
	for i, text := range spec.ClusterIPs {
		if text == corev1.ClusterIPNone {
			if len(spec.ClusterIPs) > 1 {
				add(field.Invalid(at.Index(i), text, "'None' must be the first and only value"))
			}
			continue
		}
		ip, wrong := validateIP(text, at.Index(i))
		add(wrong...)
		if len(wrong) > 0 {
			continue
		}
		if !isHeadless(svc) && i < len(spec.IPFamilies) && familyOf(ip) != spec.IPFamilies[i] {
			add(field.Invalid(at.Index(i), text, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", spec.IPFamilies[i], i)))
		}
		if i == 1 {
			if first, wrong := validateIP(spec.ClusterIPs[0], nil); len(wrong) == 0 && familyOf(first) == familyOf(ip) {
				add(field.Invalid(at, field.OmitValueType{}, "may specify no more than one IP for each IP family"))
			}
		}
	}
	return errs
}

// validateServiceUpdate keeps what others know a Service by: its address. It may
// become an alias and back.
func validateServiceUpdate(svc, old *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec")
	alias := svc.Spec.Type == corev1.ServiceTypeExternalName || old.Spec.Type == corev1.ServiceTypeExternalName
	if !alias && old.Spec.ClusterIP != "" {
		switch {
		case svc.Spec.ClusterIP == "":
			errs = append(errs, field.Invalid(path.Child("clusterIPs").Index(0), svc.Spec.ClusterIP, "primary clusterIP can not be unset"))
		case svc.Spec.ClusterIP != old.Spec.ClusterIP:
			errs = append(errs, field.Invalid(path.Child("clusterIPs").Index(0), svc.Spec.ClusterIP, fmt.Sprintf("may not change once set, to %s: delete the Service and create it again", old.Spec.ClusterIP)))
		case len(old.Spec.ClusterIPs) == 2 && len(svc.Spec.ClusterIPs) == 2 && svc.Spec.ClusterIPs[1] != old.Spec.ClusterIPs[1]:
			errs = append(errs, field.Invalid(path.Child("clusterIPs").Index(1), svc.Spec.ClusterIPs[1], fmt.Sprintf("may not change once set, to %s", old.Spec.ClusterIPs[1])))
		}
		if len(svc.Spec.ClusterIPs) == 1 && len(old.Spec.ClusterIPs) == 2 && deref(svc.Spec.IPFamilyPolicy) != corev1.IPFamilyPolicySingleStack {
			errs = append(errs, field.Invalid(path.Child("ipFamilyPolicy"), deref(svc.Spec.IPFamilyPolicy), "must be 'SingleStack' to release the secondary cluster IP"))
		}
		if len(old.Spec.IPFamilies) > 0 && len(svc.Spec.IPFamilies) > 0 && svc.Spec.IPFamilies[0] != old.Spec.IPFamilies[0] {
			errs = append(errs, field.Invalid(path.Child("ipFamilies").Index(0), svc.Spec.IPFamilies[0], "may not change once set"))
		}
	}
	balanced := svc.Spec.Type == corev1.ServiceTypeLoadBalancer && old.Spec.Type == corev1.ServiceTypeLoadBalancer
	if balanced && !sameValue(svc.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass) {
		errs = append(errs, field.Invalid(path.Child("loadBalancerClass"), deref(svc.Spec.LoadBalancerClass), "may not change once set"))
	}
	if needsHealthCheckPort(svc) && needsHealthCheckPort(old) && old.Spec.HealthCheckNodePort != 0 && svc.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
		errs = append(errs, immutable(path.Child("healthCheckNodePort"), svc.Spec.HealthCheckNodePort))
	}
	return errs
}

func serviceRow(svc *corev1.Service, now time.Time) []string {
	address := "<none>"
	if len(svc.Spec.ClusterIPs) > 0 {
		address = svc.Spec.ClusterIPs[0]
	} else if svc.Spec.ClusterIP != "" {
		address = svc.Spec.ClusterIP
	}
	outside := "<none>"
	switch svc.Spec.Type {
	case corev1.ServiceTypeLoadBalancer:
		outside = cmp.Or(strings.Join(balancerAddresses(svc), ","), "<pending>")
	case corev1.ServiceTypeExternalName:
		outside = svc.Spec.ExternalName
	}
	var ports []string
	for _, p := range svc.Spec.Ports {
		text := itoa(p.Port)
		if p.NodePort > 0 {
			text += ":" + itoa(p.NodePort)
		}
		ports = append(ports, text+"/"+string(p.Protocol))
	}
	return []string{svc.Name, string(svc.Spec.Type), address, outside, orNone(strings.Join(ports, ",")), ageOf(svc, now), selectorText(svc.Spec.Selector)}
}

func balancerAddresses(svc *corev1.Service) []string {
	var all []string
	for _, at := range svc.Status.LoadBalancer.Ingress {
		all = append(all, cmp.Or(at.IP, at.Hostname))
	}
	return all
}

func (d *describer) service(svc *corev1.Service, slices []*discoveryv1.EndpointSlice) {
	d.meta(svc)
	spec := &svc.Spec
	d.line(0, "Selector:", selectorText(spec.Selector))
	d.line(0, "Type:", string(spec.Type))
	if spec.IPFamilyPolicy != nil {
		d.line(0, "IP Family Policy:", string(*spec.IPFamilyPolicy))
	}
	var families []string
	for _, f := range spec.IPFamilies {
		families = append(families, string(f))
	}
	d.line(0, "IP Families:", orNone(strings.Join(families, ",")))
	d.line(0, "IP:", spec.ClusterIP)
	d.line(0, "IPs:", orNone(strings.Join(spec.ClusterIPs, ",")))
	if spec.ExternalName != "" {
		d.line(0, "External Name:", spec.ExternalName)
	}
	if addresses := balancerAddresses(svc); len(addresses) > 0 {
		d.line(0, "LoadBalancer Ingress:", strings.Join(addresses, ", "))
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		name := cmp.Or(p.Name, "<unset>")
		d.line(0, "Port:", name, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		d.line(0, "TargetPort:", fmt.Sprintf("%s/%s", p.TargetPort.String(), p.Protocol))
		if p.AppProtocol != nil {
			d.line(0, "AppProtocol:", *p.AppProtocol)
		}
		if p.NodePort != 0 {
			d.line(0, "NodePort:", name, fmt.Sprintf("%d/%s", p.NodePort, p.Protocol))
		}
		d.line(0, "Endpoints:", firstThree(endpointsOf(svc, p.Name, slices)))
	}
	d.line(0, "Session Affinity:", string(spec.SessionAffinity))
	if spec.ExternalTrafficPolicy != "" {
		d.line(0, "External Traffic Policy:", string(spec.ExternalTrafficPolicy))
	}
	if spec.InternalTrafficPolicy != nil {
		d.line(0, "Internal Traffic Policy:", string(*spec.InternalTrafficPolicy))
	}
	if spec.TrafficDistribution != nil {
		d.line(0, "Traffic Distribution:", *spec.TrafficDistribution)
	}
	if spec.HealthCheckNodePort != 0 {
		d.line(0, "HealthCheck NodePort:", strconv.Itoa(int(spec.HealthCheckNodePort)))
	}
	if len(spec.LoadBalancerSourceRanges) > 0 {
		d.line(0, "LoadBalancer Source Ranges:", strings.Join(spec.LoadBalancerSourceRanges, ","))
	}
}
