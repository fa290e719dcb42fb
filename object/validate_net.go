package object

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Rules about names, addresses and ports that many kinds share.

var protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}

func dnsSubdomain(name string, path *field.Path) field.ErrorList {
	return invalid(path, name, apivalidation.NameIsDNSSubdomain(name, false))
}

// requiredSubdomain checks the name of another object, which must be given.
func requiredSubdomain(name, hint string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, hint)}
	}
	return dnsSubdomain(name, path)
}

// hostName checks a DNS name whose first label may be "*".
func hostName(host string, path *field.Path) field.ErrorList {
	if _, err := netip.ParseAddr(host); err == nil {
		return field.ErrorList{field.Invalid(path, host, "must be a DNS name, not an IP address")}
	}
	if len(host) > 0 && host[0] == '*' {
		return invalid(path, host, validation.IsWildcardDNS1123Subdomain(host))
	}
	return invalid(path, host, validation.IsDNS1123Subdomain(host))
}

func portNumber(port int32, path *field.Path) field.ErrorList {
	return invalid(path, port, validation.IsValidPortNum(int(port)))
}

// appProtocol checks the name of the protocol above TCP or UDP.
func appProtocol(name *string, path *field.Path) field.ErrorList {
	if name == nil {
		return nil
	}
	return invalid(path, *name, validation.IsQualifiedName(*name))
}

// validateIP reads an address. It is stricter than older versions of Kubernetes:
// no leading zeros, which some programs take for octal, and no IPv4 in IPv6.
func validateIP(text string, path *field.Path) (netip.Addr, field.ErrorList) {
	ip, err := netip.ParseAddr(text)
	switch {
	case err != nil || ip.Zone() != "":
		return ip, field.ErrorList{field.Invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")}
	case ip.Is4In6():
		return ip, field.ErrorList{field.Invalid(path, text, "must not be an IPv4-mapped IPv6 address: write "+ip.Unmap().String())}
	}
	return ip, nil
}

// validateCIDR reads a network.
func validateCIDR(text string, path *field.Path) (netip.Prefix, field.ErrorList) {
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil || prefix.Addr().Is4In6():
		return prefix, field.ErrorList{field.Invalid(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")}
	case prefix != prefix.Masked():
		return prefix, field.ErrorList{field.Invalid(path, text, "must not have bits set beyond the prefix length: did you mean "+prefix.Masked().String()+"?")}
	}
	return prefix, nil
}

// endpointIP checks that an address can be that of something that answers
// requests of others.
func endpointIP(ip netip.Addr, path *field.Path) field.ErrorList {
	refuse := ""
	switch {
	case ip.IsUnspecified():
		refuse = "may not be unspecified (0.0.0.0 or ::)"
	case ip.IsLoopback():
		refuse = "may not be in the loopback range (127.0.0.0/8, ::1/128)"
	case ip.IsLinkLocalUnicast():
		refuse = "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
	case ip.IsLinkLocalMulticast():
		refuse = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
	default:
		return nil
	}
	return field.ErrorList{field.Invalid(path, ip.String(), refuse)}
}
