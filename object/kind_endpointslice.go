package object

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// deprecatedTopology is not in the table: Kubernetes drops it in silence.
var kindEndpointSlice = define(Resource{Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Plural: "endpointslices", Singular: "endpointslice", Namespaced: true},
	func() *discoveryv1.EndpointSlice { return new(discoveryv1.EndpointSlice) },
	rules[*discoveryv1.EndpointSlice]{
		supported: `
			addressType
			endpoints[].addresses
			endpoints[].conditions
			endpoints[].hostname
			endpoints[].targetRef
			endpoints[].nodeName
			endpoints[].zone
			endpoints[].hints
			ports
		`,
		defaults: func(slice *discoveryv1.EndpointSlice) {
			for i := range slice.Ports {
				setIfNil(&slice.Ports[i].Name, "")
				setIfNil(&slice.Ports[i].Protocol, corev1.ProtocolTCP)
			}
		},
		validate: validateEndpointSlice,
		validateUpdate: func(slice, old *discoveryv1.EndpointSlice) field.ErrorList {
			if slice.AddressType == old.AddressType {
				return nil
			}
			return field.ErrorList{immutable(field.NewPath("addressType"), slice.AddressType)}
		},
		columns:  columns("NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"),
		row:      endpointSliceRow,
		describe: func(d *describer, slice *discoveryv1.EndpointSlice, _ []Object) { d.endpointSlice(slice) },
	})

const (
	maxSliceEndpoints    = 1000
	maxSlicePorts        = 20000
	maxEndpointAddresses = 100
	maxEndpointHints     = 8
)

func validateEndpointSlice(slice *discoveryv1.EndpointSlice) field.ErrorList {
	errs := oneOf(slice.AddressType, []discoveryv1.AddressType{discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}, field.NewPath("addressType"))
	at := field.NewPath("endpoints")
	if len(slice.Endpoints) > maxSliceEndpoints {
		errs = append(errs, field.TooMany(at, len(slice.Endpoints), maxSliceEndpoints))
	} else {
		for i := range slice.Endpoints {
			errs = append(errs, validateEndpoint(&slice.Endpoints[i], slice.AddressType, at.Index(i))...)
		}
	}
	at = field.NewPath("ports")
	if len(slice.Ports) > maxSlicePorts {
		return append(errs, field.TooMany(at, len(slice.Ports), maxSlicePorts))
	}
	names := map[string]bool{}
	for i := range slice.Ports {
		p, at := &slice.Ports[i], at.Index(i)
		name := deref(p.Name)
		if name != "" {
			errs = append(errs, invalid(at.Child("name"), name, validation.IsDNS1123Label(name))...)
		}
		if names[name] {
			errs = append(errs, field.Duplicate(at.Child("name"), name))
		}
		names[name] = true
		errs = append(errs, oneOf(deref(p.Protocol), protocols, at.Child("protocol"))...)
		if p.Port != nil {
			errs = append(errs, portNumber(*p.Port, at.Child("port"))...)
		}
		errs = append(errs, appProtocol(p.AppProtocol, at.Child("appProtocol"))...)
	}
	return errs
}

func validateEndpoint(e *discoveryv1.Endpoint, t discoveryv1.AddressType, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	at := path.Child("addresses")
	if len(e.Addresses) == 0 {
		errs = append(errs, field.Required(at, "must contain at least 1 address"))
	}
	if len(e.Addresses) > maxEndpointAddresses {
		errs = append(errs, field.TooMany(at, len(e.Addresses), maxEndpointAddresses))
	}
	for i, address := range e.Addresses {
		at := at.Index(i)
		if t == discoveryv1.AddressTypeFQDN {
			errs = append(errs, validation.IsFullyQualifiedDomainName(at, address)...)
			continue
		}
		ip, wrong := validateIP(address, at)
		switch {
		case len(wrong) > 0:
		case t == discoveryv1.AddressTypeIPv4 && !ip.Is4():
			wrong = field.ErrorList{field.Invalid(at, address, "must be an IPv4 address")}
		case t == discoveryv1.AddressTypeIPv6 && !ip.Is6():
			wrong = field.ErrorList{field.Invalid(at, address, "must be an IPv6 address")}
		default:
			wrong = endpointIP(ip, at)
		}
		errs = append(errs, wrong...)
	}
	if e.NodeName != nil {
		errs = append(errs, dnsSubdomain(*e.NodeName, path.Child("nodeName"))...)
	}
	if e.Hostname != nil {
		errs = append(errs, invalid(path.Child("hostname"), *e.Hostname, validation.IsDNS1123Label(*e.Hostname))...)
	}
	if e.Hints != nil {
		at := path.Child("hints", "forZones")
		if len(e.Hints.ForZones) > maxEndpointHints {
			errs = append(errs, field.TooMany(at, len(e.Hints.ForZones), maxEndpointHints))
		}
		zones := map[string]bool{}
		for i, zone := range e.Hints.ForZones {
			if zones[zone.Name] {
				errs = append(errs, field.Duplicate(at.Index(i), zone.Name))
			}
			zones[zone.Name] = true
			errs = append(errs, validateQualifiedName(zone.Name, at.Index(i).Child("name"))...)
		}
		at = path.Child("hints", "forNodes")
		if len(e.Hints.ForNodes) > maxEndpointHints {
			errs = append(errs, field.TooMany(at, len(e.Hints.ForNodes), maxEndpointHints))
		}
		nodes := map[string]bool{}
		for i, node := range e.Hints.ForNodes {
			if nodes[node.Name] {
				errs = append(errs, field.Duplicate(at.Index(i), node.Name))
			}
			nodes[node.Name] = true
			errs = append(errs, invalid(at.Index(i).Child("name"), node.Name, apivalidation.NameIsDNSSubdomain(node.Name, false))...)
		}
	}
	return errs
}

func endpointSliceRow(slice *discoveryv1.EndpointSlice, now time.Time) []string {
	var ports, addresses []string
	for i := range slice.Ports {
		ports = append(ports, slicePort(&slice.Ports[i], "*"))
	}
	for i := range slice.Endpoints {
		addresses = append(addresses, slice.Endpoints[i].Addresses...)
	}
	unset := func(words []string) string { return cmp.Or(firstThree(words), "<unset>") }
	return []string{slice.Name, string(slice.AddressType), unset(ports), unset(addresses), ageOf(slice, now)}
}

// slicePort returns a port's number, open if the slice leaves it open.
func slicePort(p *discoveryv1.EndpointPort, open string) string {
	if p.Port == nil {
		return open
	}
	return itoa(*p.Port)
}

// endpointsOf returns the addresses with ports that serve a Service's port of that
// name.
func endpointsOf(svc *corev1.Service, port string, slices []*discoveryv1.EndpointSlice) []string {
	var all []string
	for _, slice := range slices {
		if slice.Namespace != svc.Namespace || slice.Labels[discoveryv1.LabelServiceName] != svc.Name {
			continue
		}
		for i := range slice.Ports {
			p := &slice.Ports[i]
			if deref(p.Name) != port || p.Port == nil {
				continue
			}
			for _, e := range slice.Endpoints {
				if ready := e.Conditions.Ready; ready != nil && !*ready {
					continue
				}
				for _, address := range e.Addresses {
					all = append(all, hostPort(address, *p.Port))
				}
			}
		}
	}
	return all
}

// hostPort is net.JoinHostPort, of a package that is not for this one.
func hostPort(host string, port int32) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + itoa(port)
}

func (d *describer) endpointSlice(slice *discoveryv1.EndpointSlice) {
	d.meta(slice)
	d.line(0, "AddressType:", string(slice.AddressType))
	if len(slice.Ports) == 0 {
		d.line(0, "Ports:", "<unset>")
	} else {
		d.line(0, "Ports:")
		d.line(1, "Name", "Port", "Protocol")
		d.line(1, "----", "----", "--------")
		for i := range slice.Ports {
			p := &slice.Ports[i]
			d.line(1, cmp.Or(deref(p.Name), "<unset>"), slicePort(p, "<unset>"), string(deref(p.Protocol)))
		}
	}
	if len(slice.Endpoints) == 0 {
		d.line(0, "Endpoints:", "<none>")
		return
	}
	d.line(0, "Endpoints:")
	for _, e := range slice.Endpoints {
		d.line(1, "- Addresses:", orNone(strings.Join(e.Addresses, ", ")))
		d.line(2, "Conditions:", "")
		for _, c := range []struct {
			name string
			set  *bool
		}{{"Ready:", e.Conditions.Ready}, {"Serving:", e.Conditions.Serving}, {"Terminating:", e.Conditions.Terminating}} {
			text := "<unset>"
			if c.set != nil {
				text = strconv.FormatBool(*c.set)
			} else if c.name != "Ready:" {
				continue
			}
			d.line(3, c.name, text)
		}
		d.line(2, "Hostname:", cmp.Or(deref(e.Hostname), "<unset>"))
		if ref := e.TargetRef; ref != nil {
			d.line(2, "TargetRef:", ref.Kind+"/"+ref.Name)
		}
		d.line(2, "NodeName:", cmp.Or(deref(e.NodeName), "<unset>"))
		d.line(2, "Zone:", cmp.Or(deref(e.Zone), "<unset>"))
	}
}
