package object

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Addresses and ports of Services. The API server calls this in the transaction
// that writes a Service, so that no two ever get the same.

// DefaultServiceCIDR is the network that Services have their addresses from,
// where a cluster does not say otherwise. It is kubeadm's.
var DefaultServiceCIDR = netip.MustParsePrefix("10.96.0.0/12")

// Node ports, the first and the last, as in Kubernetes.
const (
	FirstNodePort = 30000
	LastNodePort  = 32767
)

// ErrExhausted is returned when no address or port is left to give.
var ErrExhausted = errors.New("none is left")

// ServiceClaims knows which Service has which address and node port. The zero
// value is empty. It is not safe for concurrent use.
type ServiceClaims struct {
	addresses map[netip.Addr]string
	ports     map[int32]string
}

// Add takes up what svc has.
func (c *ServiceClaims) Add(svc *corev1.Service) {
	if c.addresses == nil {
		c.addresses, c.ports = map[netip.Addr]string{}, map[int32]string{}
	}
	name := svc.Namespace + "/" + svc.Name
	for _, ip := range serviceAddresses(svc) {
		c.addresses[ip] = name
	}
	for _, port := range serviceNodePorts(svc) {
		c.ports[port] = name
	}
}

// Remove gives back what svc has.
func (c *ServiceClaims) Remove(svc *corev1.Service) {
	name := svc.Namespace + "/" + svc.Name
	for _, ip := range serviceAddresses(svc) {
		if c.addresses[ip] == name {
			delete(c.addresses, ip)
		}
	}
	for _, port := range serviceNodePorts(svc) {
		if c.ports[port] == name {
			delete(c.ports, port)
		}
	}
}

// AddressOwner returns the Service that has an address, as "namespace/name", ""
// if it is free.
func (c *ServiceClaims) AddressOwner(ip netip.Addr) string { return c.addresses[ip] }

// PortOwner returns the Service that has a node port, as "namespace/name", "" if
// it is free.
func (c *ServiceClaims) PortOwner(port int32) string { return c.ports[port] }

func serviceAddresses(svc *corev1.Service) []netip.Addr {
	var all []netip.Addr
	for _, text := range append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...) {
		if ip, err := netip.ParseAddr(text); err == nil && !slices.Contains(all, ip) {
			all = append(all, ip)
		}
	}
	return all
}

func serviceNodePorts(svc *corev1.Service) []int32 {
	var all []int32
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			all = append(all, p.NodePort)
		}
	}
	if p := svc.Spec.HealthCheckNodePort; p != 0 {
		all = append(all, p)
	}
	return all
}

// KeepServiceClaims gives svc, which is to replace old, the addresses and node
// ports that old has and svc leaves open, and drops what its type has no use
// for if it came back unchanged: as Kubernetes does it, so that a manifest which
// names none can be written again, and a type can be changed alone. Call it
// before [Default].
func KeepServiceClaims(svc, old *corev1.Service) {
	spec, was := &svc.Spec, &old.Spec
	wasAlias := was.Type == corev1.ServiceTypeExternalName
	switch {
	case wasAlias:
	case spec.Type == corev1.ServiceTypeExternalName:
		if spec.ClusterIP == was.ClusterIP && slices.Equal(spec.ClusterIPs, was.ClusterIPs) {
			spec.ClusterIP, spec.ClusterIPs = "", nil
		}
		dropIfSame(&spec.IPFamilies, was.IPFamilies)
		dropIfSame(&spec.IPFamilyPolicy, was.IPFamilyPolicy)
	default:
		setIfZero(&spec.ClusterIP, was.ClusterIP)
		if len(spec.ClusterIPs) == 0 && spec.ClusterIP == was.ClusterIP {
			spec.ClusterIPs = slices.Clone(was.ClusterIPs)
			if len(spec.IPFamilies) == 0 {
				spec.IPFamilies = slices.Clone(was.IPFamilies)
			}
		}
		if spec.IPFamilyPolicy == nil && was.IPFamilyPolicy != nil {
			setIfNil(&spec.IPFamilyPolicy, *was.IPFamilyPolicy)
		}
		if deref(spec.IPFamilyPolicy) == corev1.IPFamilyPolicySingleStack {
			// The wish is clear: what came back unchanged gives up the second.
			if len(spec.ClusterIPs) == 2 && slices.Equal(spec.ClusterIPs, was.ClusterIPs) {
				spec.ClusterIPs = spec.ClusterIPs[:1]
			}
			if len(spec.IPFamilies) == 2 && slices.Equal(spec.IPFamilies, was.IPFamilies) {
				spec.IPFamilies = spec.IPFamilies[:1]
			}
		}
	}
	keepNodePorts(svc, old)
	if needsHealthCheckPort(svc) && needsHealthCheckPort(old) {
		setIfZero(&spec.HealthCheckNodePort, was.HealthCheckNodePort)
	} else if needsHealthCheckPort(old) {
		dropIfSame(&spec.HealthCheckNodePort, was.HealthCheckNodePort)
	}
	if fromOutside(old) && !fromOutside(svc) {
		dropIfSame(&spec.ExternalTrafficPolicy, was.ExternalTrafficPolicy)
	}
	if was.Type == corev1.ServiceTypeLoadBalancer && spec.Type != corev1.ServiceTypeLoadBalancer {
		dropIfSame(&spec.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts)
		dropIfSame(&spec.LoadBalancerClass, was.LoadBalancerClass)
		dropIfSame(&spec.LoadBalancerSourceRanges, was.LoadBalancerSourceRanges)
	}
}

// dropIfSame empties a field that has the value that it had.
func dropIfSame[T any](field *T, was T) {
	if sameValue(*field, was) {
		var none T
		*field = none
	}
}

// keepNodePorts knows a port by its name, or else by number and protocol.
func keepNodePorts(svc, old *corev1.Service) {
	if !fromOutside(svc) {
		for i := range svc.Spec.Ports {
			if p := &svc.Spec.Ports[i]; slices.ContainsFunc(old.Spec.Ports, func(w corev1.ServicePort) bool { return w.NodePort == p.NodePort }) {
				p.NodePort = 0
			}
		}
		return
	}
	if !needsNodePort(svc) {
		return
	}
	protocol := func(p *corev1.ServicePort) corev1.Protocol { return cmp.Or(p.Protocol, corev1.ProtocolTCP) }
	same := []func(p, w *corev1.ServicePort) bool{
		func(p, w *corev1.ServicePort) bool { return p.Name == w.Name },
		func(p, w *corev1.ServicePort) bool { return p.Port == w.Port },
	}
	for _, same := range same {
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			for j := range old.Spec.Ports {
				w := &old.Spec.Ports[j]
				taken := slices.ContainsFunc(svc.Spec.Ports, func(o corev1.ServicePort) bool { return o.NodePort == w.NodePort && protocol(&o) == protocol(p) })
				if p.NodePort == 0 && w.NodePort != 0 && same(p, w) && protocol(p) == protocol(w) && !taken {
					p.NodePort = w.NodePort
				}
			}
		}
	}
}

// AllocateServiceIPs gives svc, whose defaults are filled in, an address of each
// family that it asks for and cidrs have: the one that it names, or one that
// follows from its name, so that a plan that is made twice comes out the same.
// owner says which Service has an address, "" if it is free; it is not asked
// about those that svc itself keeps, whose owner is its own name.
//
// The error is Faults if svc asks for an address that it cannot have, or wraps
// [ErrExhausted]. svc is then unchanged. Aliases and headless Services get none.
func AllocateServiceIPs(svc *corev1.Service, owner func(netip.Addr) string, cidrs []netip.Prefix) error {
	spec := &svc.Spec
	if spec.Type == corev1.ServiceTypeExternalName || isHeadless(svc) {
		return nil
	}
	path := field.NewPath("spec")
	self := svc.Namespace + "/" + svc.Name
	var errs field.ErrorList
	var given []string
	network := func(f corev1.IPFamily) int {
		return slices.IndexFunc(cidrs, func(c netip.Prefix) bool { return familyOf(c.Addr()) == f })
	}
	families, policy := slices.Clone(spec.IPFamilies), deref(spec.IPFamilyPolicy)
	if policy != corev1.IPFamilyPolicySingleStack && len(families) == 1 && network(otherFamily(families[0])) >= 0 {
		families = append(families, otherFamily(families[0]))
	}
	if policy == corev1.IPFamilyPolicyRequireDualStack && (network(corev1.IPv4Protocol) < 0 || network(corev1.IPv6Protocol) < 0) {
		errs = append(errs, field.Invalid(path.Child("ipFamilyPolicy"), policy, "this cluster is not configured for dual-stack services: its Services have addresses of "+prefixes(cidrs)))
	}
	for i, family := range families {
		n := network(family)
		if n < 0 {
			errs = append(errs, field.Invalid(path.Child("ipFamilies").Index(i), family, fmt.Sprintf("this cluster has no %s network for Services, only %s", family, prefixes(cidrs))))
			continue
		}
		if i >= len(spec.ClusterIPs) {
			ip, ok := freeAddress(cidrs[n], self, owner)
			if !ok {
				return fmt.Errorf("address for Service %s in %s: %w", self, cidrs[n], ErrExhausted)
			}
			given = append(given, ip.String())
			continue
		}
		at := path.Child("clusterIPs").Index(i)
		ip, wrong := validateIP(spec.ClusterIPs[i], at)
		errs = append(errs, wrong...)
		if len(wrong) > 0 {
			continue
		}
		if !cidrs[n].Contains(ip) || !usable(cidrs[n], ip) {
			errs = append(errs, field.Invalid(at, ip.String(), fmt.Sprintf("the provided IP is not in the network of Services, %s: leave it out to get one", cidrs[n])))
		} else if name := owner(ip); name != "" && name != self {
			errs = append(errs, field.Invalid(at, ip.String(), fmt.Sprintf("provided IP is already allocated, to Service %s: leave it out to get another", name)))
		}
		given = append(given, ip.String())
	}
	if len(errs) > 0 {
		return faultsOf(svc, errs)
	}
	spec.IPFamilies, spec.ClusterIPs, spec.ClusterIP = families, given, given[0]
	return nil
}

// AllocateNodePorts gives svc, whose defaults are filled in, the node ports that
// its type needs: those that it names, or some that follow from its name. owner
// says which Service has a port, "" if it is free. Errors are as in
// [AllocateServiceIPs].
func AllocateNodePorts(svc *corev1.Service, owner func(port int32) string) error {
	if !fromOutside(svc) {
		return nil
	}
	spec, path := &svc.Spec, field.NewPath("spec")
	self := svc.Namespace + "/" + svc.Name
	var errs field.ErrorList
	own := map[int32][]corev1.Protocol{} // one number may serve several protocols
	ask := func(port int32, at *field.Path) {
		if port < FirstNodePort || port > LastNodePort {
			errs = append(errs, field.Invalid(at, port, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", FirstNodePort, LastNodePort)))
		} else if name := owner(port); name != "" && name != self {
			errs = append(errs, field.Invalid(at, port, fmt.Sprintf("provided port is already allocated, to Service %s: leave it out to get another", name)))
		}
	}
	for i, p := range spec.Ports {
		if p.NodePort != 0 {
			ask(p.NodePort, path.Child("ports").Index(i).Child("nodePort"))
			own[p.NodePort] = append(own[p.NodePort], p.Protocol)
		}
	}
	if spec.HealthCheckNodePort != 0 {
		ask(spec.HealthCheckNodePort, path.Child("healthCheckNodePort"))
		own[spec.HealthCheckNodePort] = protocols
	}
	if len(errs) > 0 {
		return faultsOf(svc, errs)
	}
	free := func(what string) (int32, error) {
		n, ok := probe(hashOf(self+what), LastNodePort-FirstNodePort+1, portsToAskFor, func(n uint64) bool {
			port := FirstNodePort + int32(n)
			name := owner(port)
			return len(own[port]) == 0 && (name == "" || name == self)
		})
		if !ok {
			return 0, fmt.Errorf("node port for Service %s in %d-%d: %w", self, FirstNodePort, LastNodePort, ErrExhausted)
		}
		return FirstNodePort + int32(n), nil
	}
	ports, health := slices.Clone(spec.Ports), spec.HealthCheckNodePort
	for i := range ports {
		p := &ports[i]
		if p.NodePort != 0 || !needsNodePort(svc) {
			continue
		}
		// A port that is offered by TCP and UDP has one number for both.
		for j := range ports {
			if o := &ports[j]; j != i && o.Port == p.Port && o.NodePort != 0 && !slices.Contains(own[o.NodePort], p.Protocol) {
				p.NodePort = o.NodePort
			}
		}
		if p.NodePort == 0 {
			port, err := free(fmt.Sprintf("/%d", p.Port))
			if err != nil {
				return err
			}
			p.NodePort = port
		}
		own[p.NodePort] = append(own[p.NodePort], p.Protocol)
	}
	if needsHealthCheckPort(svc) && health == 0 {
		port, err := free("/health")
		if err != nil {
			return err
		}
		health = port
	}
	spec.Ports, spec.HealthCheckNodePort = ports, health
	return nil
}

// The first numbers of a range are given last: people who ask for one ask for
// these, and should not find them taken.
const portsToAskFor = 86

func addressesToAskFor(size uint64) uint64 {
	if size < 16 {
		return 0
	}
	return min(max(16, size/16), 256)
}

// freeAddress returns an address of cidr that nobody has.
func freeAddress(cidr netip.Prefix, self string, owner func(netip.Addr) string) (netip.Addr, bool) {
	cidr = cidr.Masked()
	size := uint64(1) << min(cidr.Addr().BitLen()-cidr.Bits(), 32)
	n, ok := probe(hashOf(self), size, addressesToAskFor(size), func(n uint64) bool {
		ip := nthAddress(cidr, n)
		// The first address is the API server's own, "kubernetes" in default.
		return usable(cidr, ip) && (n != 1 || size < 4) && owner(ip) == ""
	})
	return nthAddress(cidr, n), ok
}

// probe looks for a free number below size: from a point that hash gives, first
// among those from low on, then below.
func probe(hash, size, low uint64, free func(uint64) bool) (uint64, bool) {
	for n := range size - low {
		if at := low + (hash%size+n)%(size-low); free(at) {
			return at, true
		}
	}
	for n := range low {
		if at := (hash%size + n) % low; free(at) {
			return at, true
		}
	}
	return 0, false
}

func hashOf(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s)) // a hash takes everything
	return h.Sum64()
}

// nthAddress returns the n-th address of cidr, from 0; n is below 2^32.
func nthAddress(cidr netip.Prefix, n uint64) netip.Addr {
	b := cidr.Masked().Addr().AsSlice()
	low := b[len(b)-4:]
	if len(b) > 4 {
		low = b[len(b)-8:]
		binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)+n)
	} else {
		binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)+uint32(n))
	}
	ip, _ := netip.AddrFromSlice(b)
	return ip
}

// usable reports whether an address of cidr can be given: not that of the network
// itself, nor the broadcast address of IPv4.
func usable(cidr netip.Prefix, ip netip.Addr) bool {
	cidr = cidr.Masked()
	bits := cidr.Addr().BitLen() - cidr.Bits()
	if bits < 2 {
		return true
	}
	if ip == cidr.Addr() {
		return false
	}
	return !ip.Is4() || ip != nthAddress(cidr, 1<<bits-1)
}

func familyOf(ip netip.Addr) corev1.IPFamily {
	if ip.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func prefixes(cidrs []netip.Prefix) string {
	var all []string
	for _, c := range cidrs {
		all = append(all, c.String())
	}
	return strings.Join(all, ", ")
}
