package netstate

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Endpoint is one address and port behind a port of a service.
type Endpoint struct {
	IP   netip.Addr
	Port uint16
	// Hostname is the name by which a headless service's names lead to it alone; ""
	// without. Node and Zone are "" if not known. Pod is zero if it is none.
	Hostname, Node, Zone string
	Pod                  Name
	// Ready: new connections may go to it. Serving: it answers, ending or not.
	// Terminating: it is ending, and gets new connections only when none is ready.
	Ready, Serving, Terminating bool

	hints *discoveryv1.EndpointHints
}

// AddrPort is where connections to it go.
func (e Endpoint) AddrPort() netip.AddrPort { return netip.AddrPortFrom(e.IP, e.Port) }

// Endpoints are all endpoints of a service's port, by the port's name ("" if it has
// none) and protocol, ordered by address; ready or not. An endpoint that is in two
// slices counts once.
func (s *State) Endpoints(service Name, port string, protocol corev1.Protocol) []Endpoint {
	var all []Endpoint
	for _, slice := range s.Slices[service] {
		for _, p := range slice.Ports {
			if deref(p.Name, "") == port && deref(p.Protocol, corev1.ProtocolTCP) == protocol && deref(p.Port, 0) > 0 {
				all = append(all, endpointsOf(slice, uint16(*p.Port))...)
			}
		}
	}
	return ordered(all)
}

// Addresses are all endpoints of a service whatever their ports, with port 0, each
// address once.
func (s *State) Addresses(service Name) []Endpoint {
	var all []Endpoint
	for _, slice := range s.Slices[service] {
		all = append(all, endpointsOf(slice, 0)...)
	}
	return ordered(all)
}

func endpointsOf(slice *discoveryv1.EndpointSlice, port uint16) []Endpoint {
	if slice.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	var found []Endpoint
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		if len(e.Addresses) == 0 {
			continue
		}
		ip, err := netip.ParseAddr(e.Addresses[0]) // further ones have no meaning: discovery.k8s.io/v1
		if err != nil {
			continue
		}
		ready := deref(e.Conditions.Ready, true)
		out := Endpoint{
			IP: ip.Unmap(), Port: port, Hostname: deref(e.Hostname, ""), Node: deref(e.NodeName, ""), Zone: deref(e.Zone, ""),
			Ready: ready, Serving: deref(e.Conditions.Serving, ready), Terminating: deref(e.Conditions.Terminating, false), hints: e.Hints,
		}
		if ref := e.TargetRef; ref != nil && ref.Kind == "Pod" {
			out.Pod = Name{Namespace: cmp.Or(ref.Namespace, slice.Namespace), Name: ref.Name}
		}
		found = append(found, out)
	}
	return found
}

// ordered sorts endpoints and keeps one of each address and port: the most ready.
func ordered(all []Endpoint) []Endpoint {
	rank := func(e Endpoint) int {
		switch {
		case e.Ready:
			return 0
		case e.Serving:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(all, func(a, b Endpoint) int {
		return cmp.Or(a.IP.Compare(b.IP), cmp.Compare(a.Port, b.Port), cmp.Compare(rank(a), rank(b)))
	})
	return slices.CompactFunc(all, func(a, b Endpoint) bool { return a.IP == b.IP && a.Port == b.Port })
}

// Routing says where the connections of one port of a service go.
type Routing struct {
	// To are the endpoints for new connections, of both families, ordered by
	// address. Empty: connections are refused, or with Drop go nowhere.
	To []Endpoint
	// Drop: there are endpoints, but none on this node, and the policy wants only
	// such. A client may find another node, so it is not told that nobody is there.
	Drop bool
}

// Route says where connections to a service's port go from this node. local: only
// to endpoints on this node, as internalTrafficPolicy or externalTrafficPolicy
// Local wants for the kind of traffic at hand.
func (s *State) Route(service Name, port *corev1.ServicePort, local bool) Routing {
	all := s.Endpoints(service, port.Name, cmp.Or(port.Protocol, corev1.ProtocolTCP))
	ready := filter(all, func(e Endpoint) bool { return e.Ready })
	ending := filter(all, func(e Endpoint) bool { return e.Serving && e.Terminating })
	if local {
		here := func(e Endpoint) bool { return e.Node == s.Node }
		to := filter(ready, here)
		if len(to) == 0 {
			to = filter(ending, here)
		}
		return Routing{To: to, Drop: len(to) == 0 && len(ready)+len(ending) > 0}
	}
	if len(ready) == 0 {
		return Routing{To: ending}
	}
	return Routing{To: s.near(ready)}
}

// near keeps the ready endpoints that are meant for this node or else its zone, by
// family, if all carry hints and at least one is meant for it; else all.
func (s *State) near(ready []Endpoint) []Endpoint {
	var out []Endpoint
	for _, is4 := range []bool{true, false} {
		family := filter(ready, func(e Endpoint) bool { return e.IP.Is4() == is4 })
		out = append(out, s.nearOf(family)...)
	}
	return out
}

func (s *State) nearOf(ready []Endpoint) []Endpoint {
	forNode := func(e Endpoint) bool {
		return e.hints != nil && slices.ContainsFunc(e.hints.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == s.Node })
	}
	forZone := func(e Endpoint) bool {
		return e.hints != nil && slices.ContainsFunc(e.hints.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == s.Zone })
	}
	all := func(has func(*discoveryv1.EndpointHints) bool) bool {
		return !slices.ContainsFunc(ready, func(e Endpoint) bool { return e.hints == nil || !has(e.hints) })
	}
	if all(func(h *discoveryv1.EndpointHints) bool { return len(h.ForNodes) > 0 }) {
		if near := filter(ready, forNode); len(near) > 0 {
			return near
		}
	}
	if s.Zone != "" && all(func(h *discoveryv1.EndpointHints) bool { return len(h.ForZones) > 0 }) {
		if near := filter(ready, forZone); len(near) > 0 {
			return near
		}
	}
	return ready
}

func filter(all []Endpoint, keep func(Endpoint) bool) []Endpoint {
	var kept []Endpoint
	for _, e := range all {
		if keep(e) {
			kept = append(kept, e)
		}
	}
	return kept
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
