package network

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// The tables of services, as a function of the state. The rules are few and always
// the same; what a service is stands in elements of maps, which the rules look up:
//
//	services   address . protocol . port           -> goto a chain
//	endpoints  address . protocol . port . index   -> endpoint's address . port
//	nodeports  protocol . port                     -> goto a chain
//	nodeports-endpoints  protocol . port . index   -> endpoint's address . port
//
// The chain is named after how many endpoints there are: it draws an index below
// that number, or finds the endpoint that the client had last, and looks up where to
// go. So nothing grows with the number of services but the maps.

// Names of the maps and sets.
const (
	servicesMap          = "services"
	endpointsMap         = "endpoints"
	nodePortsMap         = "nodeports"
	nodePortEndpointsMap = "nodeports-endpoints"
	affinityMap          = "affinity"
	nodePortAffinityMap  = "nodeports-affinity"
	ownPodsSet           = "own-pods"
	clusterSet           = "cluster"
	serviceRangesSet     = "service-ranges"
	hairpinSet           = "hairpin"
	aboutSet             = "about"
)

// place is where an element stands: a map, and the key in it as the kernel has it.
type place struct{ table, key string }

// elements are what maps hold, by place: the name of a chain, or the endpoint's
// address and port as the kernel has it.
type elements map[place]string

var protocolNumbers = map[corev1.Protocol]byte{corev1.ProtocolTCP: 6, corev1.ProtocolUDP: 17, corev1.ProtocolSCTP: 132}

// serviceElements returns what one service is in the tables of the state's node. It
// is pure: testdata/services states its whole behavior.
func serviceElements(s *netstate.State, name netstate.Name) elements {
	e := elements{}
	svc := s.Services[name]
	if svc == nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return e
	}
	internal := svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	external := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		protocol := protocolNumbers[cmp.Or(p.Protocol, corev1.ProtocolTCP)]
		if protocol == 0 {
			continue
		}
		for _, ip := range netstate.ClusterIPs(svc) {
			if ip.Is4() {
				front := string(ip.AsSlice()) + string(protoPort(protocol, p.Port))
				e.add(servicesMap, endpointsMap, "", front, s.Route(name, p, internal), svc)
			}
		}
		if p.NodePort != 0 {
			e.add(nodePortsMap, nodePortEndpointsMap, "node-", string(protoPort(protocol, p.NodePort)), s.Route(name, p, external), svc)
		}
	}
	return e
}

// add adds what leads from one front (an address and port, or a port of all nodes)
// to its endpoints. Without any, there is nothing: what stands behind the tables
// refuses the connection.
func (e elements) add(fronts, backs, prefix, front string, r netstate.Routing, svc *corev1.Service) {
	var to []netip.AddrPort
	for _, endpoint := range r.To {
		if endpoint.IP.Is4() {
			to = append(to, endpoint.AddrPort())
		}
	}
	switch {
	case len(to) > 0:
		e[place{fronts, front}] = prefix + chainFor(svc, len(to))
	case r.Drop:
		e[place{fronts, front}] = dropChain
		return
	}
	for i, at := range to {
		e[place{backs, front + string(binary.NativeEndian.AppendUint32(nil, uint32(i)))}] = string(addrPort(at))
	}
}

const dropChain = "drop"

// chainFor names the chain that spreads connections over count endpoints.
func chainFor(svc *corev1.Service, count int) string {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return fmt.Sprintf("any-of-%d", count)
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return fmt.Sprintf("same-of-%d-for-%d", count, seconds)
}

// In a concatenation each part takes whole registers of four bytes.

func protoPort(protocol byte, port int32) []byte {
	return append([]byte{protocol, 0, 0, 0}, portBytes(uint16(port))...)
}

func portBytes(port uint16) []byte { return []byte{byte(port >> 8), byte(port), 0, 0} }

func addrPort(at netip.AddrPort) []byte {
	return append(at.Addr().AsSlice(), portBytes(at.Port())...)
}

// sum is a hash of elements that does not depend on their order, so that it can be
// kept up to date by adding and taking away.
func (p place) sum(value string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(p.table + "\x00" + p.key + "\x00" + value))
	return h.Sum64()
}

// text is an element for people and tests.
func (p place) text(value string) string {
	key := []byte(p.key)
	var front string
	if p.table == servicesMap || p.table == endpointsMap {
		ip, _ := netip.AddrFromSlice(key[:4])
		front, key = ip.String()+" ", key[4:]
	}
	for protocol, number := range protocolNumbers {
		if number == key[0] {
			front += string(protocol)
		}
	}
	front += fmt.Sprintf(" %d", binary.BigEndian.Uint16(key[4:]))
	if p.table == servicesMap || p.table == nodePortsMap {
		return fmt.Sprintf("%s: %s -> %s", p.table, front, value)
	}
	ip, _ := netip.AddrFromSlice([]byte(value)[:4])
	return fmt.Sprintf("%s: %s #%d -> %s:%d", p.table, front, binary.NativeEndian.Uint32(key[8:]), ip, binary.BigEndian.Uint16([]byte(value)[4:]))
}
