package object

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindIngress = define(Resource{Group: "networking.k8s.io", Version: "v1", Kind: "Ingress", Plural: "ingresses", Singular: "ingress", ShortNames: []string{"ing"}, Namespaced: true, Status: true},
	func() *networkingv1.Ingress { return new(networkingv1.Ingress) },
	rules[*networkingv1.Ingress]{
		supported: `
			spec.ingressClassName
			spec.defaultBackend.service
			spec.tls
			spec.rules[].host
			spec.rules[].http.paths[].path
			spec.rules[].http.paths[].pathType
			spec.rules[].http.paths[].backend.service
			status
		`,
		validate: validateIngress,
		columns:  columns("NAME", "CLASS", "HOSTS", "ADDRESS", "PORTS", "AGE"),
		row:      ingressRow,
		describe: func(d *describer, ing *networkingv1.Ingress, related []Object) { d.ingress(ing, related) },
	})

// ingressClassAnnotation is how the class was named before ingressClassName.
const ingressClassAnnotation = "kubernetes.io/ingress.class"

func validateIngress(ing *networkingv1.Ingress) field.ErrorList {
	var errs field.ErrorList
	spec, path := &ing.Spec, field.NewPath("spec")
	if len(spec.Rules) == 0 && spec.DefaultBackend == nil {
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, "either `defaultBackend` or `rules` must be specified"))
	}
	if spec.DefaultBackend != nil {
		errs = append(errs, validateBackend(spec.DefaultBackend, path.Child("defaultBackend"))...)
	}
	for i, rule := range spec.Rules {
		at := path.Child("rules").Index(i)
		if rule.Host != "" {
			errs = append(errs, hostName(rule.Host, at.Child("host"))...)
		}
		if rule.HTTP == nil {
			continue
		}
		at = at.Child("http", "paths")
		if len(rule.HTTP.Paths) == 0 {
			errs = append(errs, field.Required(at, "give the rule at least one path"))
		}
		for j := range rule.HTTP.Paths {
			errs = append(errs, validateIngressPath(&rule.HTTP.Paths[j], at.Index(j))...)
		}
	}
	for i, tls := range spec.TLS {
		at := path.Child("tls").Index(i)
		for j, host := range tls.Hosts {
			errs = append(errs, hostName(host, at.Child("hosts").Index(j))...)
		}
		if tls.SecretName != "" {
			errs = append(errs, dnsSubdomain(tls.SecretName, at.Child("secretName"))...)
		}
	}
	if class := spec.IngressClassName; class != nil {
		errs = append(errs, dnsSubdomain(*class, path.Child("ingressClassName"))...)
		if old, ok := ing.Annotations[ingressClassAnnotation]; ok && old != *class {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "annotations").Key(ingressClassAnnotation), old, "must match `ingressClassName` when both are specified"))
		}
	}
	return errs
}

func validateIngressPath(p *networkingv1.HTTPIngressPath, at *field.Path) field.ErrorList {
	types := []networkingv1.PathType{networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix}
	if p.PathType == nil {
		// Without a default: which paths match is too important to guess.
		return append(field.ErrorList{field.Required(at.Child("pathType"), "pathType must be specified: Exact, Prefix or ImplementationSpecific")},
			validateBackend(&p.Backend, at.Child("backend"))...)
	}
	errs := oneOf(*p.PathType, types, at.Child("pathType"))
	bad := func(msg string) { errs = append(errs, field.Invalid(at.Child("path"), p.Path, msg)) }
	specific := *p.PathType == networkingv1.PathTypeImplementationSpecific
	if !strings.HasPrefix(p.Path, "/") && !(specific && p.Path == "") {
		bad("must be an absolute path")
	}
	if !specific {
		for _, sequence := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(p.Path, sequence) {
				bad(fmt.Sprintf("must not contain '%s'", sequence))
			}
		}
		for _, end := range []string{"/..", "/."} {
			if strings.HasSuffix(p.Path, end) {
				bad(fmt.Sprintf("cannot end with '%s'", end))
			}
		}
	}
	return append(errs, validateBackend(&p.Backend, at.Child("backend"))...)
}

func validateBackend(b *networkingv1.IngressBackend, at *field.Path) field.ErrorList {
	switch {
	case b.Resource != nil && b.Service != nil:
		return field.ErrorList{field.Invalid(at, field.OmitValueType{}, "cannot set both resource and service backends")}
	case b.Resource != nil:
		return validateReference(b.Resource.APIGroup, b.Resource.Kind, b.Resource.Name, at.Child("resource"))
	case b.Service == nil:
		return field.ErrorList{field.Required(at, "resource or service backend is required")}
	}
	at = at.Child("service")
	var errs field.ErrorList
	if b.Service.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), "name the Service"))
	} else {
		errs = append(errs, invalid(at.Child("name"), b.Service.Name, serviceName(b.Service.Name, false))...)
	}
	port := b.Service.Port
	switch at := at.Child("port"); {
	case port.Name != "" && port.Number != 0:
		errs = append(errs, field.Invalid(at, field.OmitValueType{}, "cannot set both port name & port number"))
	case port.Name != "":
		errs = append(errs, invalid(at.Child("name"), port.Name, validation.IsValidPortName(port.Name))...)
	case port.Number != 0:
		errs = append(errs, portNumber(port.Number, at.Child("number"))...)
	default:
		errs = append(errs, field.Required(at, "port name or number is required"))
	}
	return errs
}

func ingressRow(ing *networkingv1.Ingress, now time.Time) []string {
	var hosts []string
	for _, rule := range ing.Spec.Rules {
		if rule.Host != "" {
			hosts = append(hosts, rule.Host)
		}
	}
	ports := "80"
	if len(ing.Spec.TLS) > 0 {
		ports = "80, 443"
	}
	host := "*"
	if len(hosts) > 0 {
		host = firstThree(hosts)
	}
	return []string{ing.Name, orNone(deref(ing.Spec.IngressClassName)), host, ingressAddress(ing), ports, ageOf(ing, now)}
}

func ingressAddress(ing *networkingv1.Ingress) string {
	var addresses []string
	for _, at := range ing.Status.LoadBalancer.Ingress {
		if at.IP != "" {
			addresses = append(addresses, at.IP)
		} else if at.Hostname != "" {
			addresses = append(addresses, at.Hostname)
		}
	}
	return strings.Join(addresses, ",")
}

// firstThree joins words with commas, and counts those after the third.
func firstThree(words []string) string {
	if len(words) > 3 {
		return fmt.Sprintf("%s + %d more...", strings.Join(words[:3], ","), len(words)-3)
	}
	return strings.Join(words, ",")
}

func (d *describer) ingress(ing *networkingv1.Ingress, related []Object) {
	d.line(0, "Name:", ing.Name)
	d.pairs(0, "Labels:", "=", ing.Labels)
	d.line(0, "Namespace:", ing.Namespace)
	d.line(0, "Address:", ingressAddress(ing))
	d.line(0, "Ingress Class:", orNone(deref(ing.Spec.IngressClassName)))
	backend := "<default>"
	if b := ing.Spec.DefaultBackend; b != nil {
		backend = backendText(b, ing.Namespace, related)
	}
	d.line(0, "Default backend:", backend)
	if len(ing.Spec.TLS) > 0 {
		d.line(0, "TLS:")
		for _, tls := range ing.Spec.TLS {
			if tls.SecretName == "" {
				d.line(1, "SNI routes "+strings.Join(tls.Hosts, ","))
			} else {
				d.line(1, tls.SecretName+" terminates "+strings.Join(tls.Hosts, ","))
			}
		}
	}
	d.line(0, "Rules:")
	d.line(1, "Host", "Path", "Backends")
	d.line(1, "----", "----", "--------")
	rules := 0
	for _, rule := range ing.Spec.Rules {
		if rule.HTTP == nil {
			continue
		}
		rules++
		d.line(1, orAny(rule.Host), "", "")
		for i := range rule.HTTP.Paths {
			p := &rule.HTTP.Paths[i]
			d.line(1, "", p.Path, backendText(&p.Backend, ing.Namespace, related))
		}
	}
	if rules == 0 {
		d.line(1, "*", "*", backend)
	}
	d.pairs(0, "Annotations:", ": ", annotationsToShow(ing))
	if f := ing.Finalizers; len(f) > 0 {
		d.list(0, "Finalizers:", f)
	}
}

func orAny(host string) string {
	if host == "" {
		return "*"
	}
	return host
}

// backendText writes a backend with the addresses behind it, as far as related
// has its Service and that one's slices: "web:80 (10.244.1.2:8080)".
func backendText(b *networkingv1.IngressBackend, namespace string, related []Object) string {
	if r := b.Resource; r != nil {
		group := "<none>"
		if deref(r.APIGroup) != "" {
			group = *r.APIGroup
		}
		return fmt.Sprintf("APIGroup: %s, Kind: %s, Name: %s", group, r.Kind, r.Name)
	}
	if b.Service == nil {
		return "<none>"
	}
	port := b.Service.Port.Name
	if port == "" {
		port = strconv.Itoa(int(b.Service.Port.Number))
	}
	text := b.Service.Name + ":" + port
	services := only[*corev1.Service](related)
	if len(services) == 0 {
		return text
	}
	for _, svc := range services {
		if svc.Namespace != namespace || svc.Name != b.Service.Name {
			continue
		}
		for i := range svc.Spec.Ports {
			if p := &svc.Spec.Ports[i]; p.Name == b.Service.Port.Name && p.Name != "" || p.Port == b.Service.Port.Number {
				return fmt.Sprintf("%s (%s)", text, firstThree(endpointsOf(svc, p.Name, only[*discoveryv1.EndpointSlice](related))))
			}
		}
		return text + " (<error: the service has no such port>)"
	}
	return fmt.Sprintf("%s (<error: services %q not found>)", text, b.Service.Name)
}
