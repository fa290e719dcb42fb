package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// Times to live, in seconds. What asks is on this node, so that asking again costs
// little, and an endpoint that is gone should be forgotten soon.
const (
	ttlService  = 30 // addresses of services, which stay
	ttlEndpoint = 5  // of pods, which do not
	ttlNegative = 5
	ttlSchema   = 28800
)

// schemaVersion of the names, as dns-version.<domain> tells.
const schemaVersion = "1.1.0"

// DefaultDomain is the cluster's domain when the state names none.
const DefaultDomain = "cluster.local"

// maxAliases bounds a chain of external names.
const maxAliases = 8

// Zone answers from one state. It is immutable and safe for concurrent use.
type Zone struct {
	state   *netstate.State
	domain  string // "cluster.local."
	servers []netip.Addr

	// Made when they are first asked for: most states are replaced before.
	namespaces func() map[string]bool
	reverse    func() map[netip.Addr][]string
}

// Reply is an answer to one question.
type Reply struct {
	Rcode  int
	Answer []dns.RR
	Extra  []dns.RR
	// Authority is the SOA record that says for how long there is no such name or
	// record. Empty when there is an answer.
	Authority []dns.RR
	// Chase is the name outside of the cluster at which the Answer, a chain of
	// aliases, ends; "" if it does not. Its records complete the answer.
	Chase string
}

// NewZone returns the zone of a state. servers are the addresses at which it is
// served.
func NewZone(state *netstate.State, servers []netip.Addr) *Zone {
	z := &Zone{state: state, servers: servers}
	z.domain = dns.Fqdn(strings.ToLower(cmp.Or(state.Config.Domain, DefaultDomain)))
	z.namespaces = sync.OnceValue(z.indexNamespaces)
	z.reverse = sync.OnceValue(z.indexAddresses)
	return z
}

// Answer answers q, or returns false: the name is not the cluster's. It is pure,
// but for what Zone remembers. Records come in an order that does not change
// while the state does not.
func (z *Zone) Answer(q dns.Question) (Reply, bool) {
	name := strings.ToLower(q.Name)
	if name == z.domain {
		return z.apex(q), true
	}
	if rest, ok := strings.CutSuffix(name, "."+z.domain); ok {
		return z.inside(q, rest, 0), true
	}
	if ip, zone, ok := reverseName(name); ok {
		return z.pointer(q, ip, zone)
	}
	return Reply{}, false
}

// apex answers for the cluster's domain itself.
func (z *Zone) apex(q dns.Question) Reply {
	switch q.Qtype {
	case dns.TypeSOA:
		return Reply{Answer: []dns.RR{z.soa(z.domain)}}
	case dns.TypeNS:
		r := Reply{Answer: []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS, ttlService), Ns: z.server()}}}
		r.Extra = addresses(z.server(), dns.TypeANY, ttlService, z.servers)
		return r
	}
	return z.none(q)
}

func (z *Zone) server() string { return "ns.dns." + z.domain }

// inside answers for a name below the domain, without which it is rest. aliases
// led to it.
func (z *Zone) inside(q dns.Question, rest string, aliases int) Reply {
	if strings.Contains(rest, `\`) {
		return z.unknown(q) // no name of ours has such characters
	}
	labels := strings.Split(rest, ".")
	slices.Reverse(labels)
	switch top, below := labels[0], labels[1:]; {
	case top == "svc" && len(below) == 0, top == "pod" && len(below) == 0, top == "dns" && len(below) == 0:
		return z.none(q)
	case top == "dns" && len(below) == 1 && below[0] == "ns":
		return z.records(q, addresses(q.Name, q.Qtype, ttlService, z.servers))
	case top == "dns-version" && len(below) == 0:
		if q.Qtype != dns.TypeTXT && q.Qtype != dns.TypeANY {
			return z.none(q)
		}
		return Reply{Answer: []dns.RR{&dns.TXT{Hdr: header(q.Name, dns.TypeTXT, ttlSchema), Txt: []string{schemaVersion}}}}
	case (top == "svc" || top == "pod") && len(below) == 1:
		if z.hasNamespace(below[0]) {
			return z.none(q)
		}
	case top == "pod" && len(below) == 2:
		return z.pod(q, below[0], below[1])
	case top == "svc":
		return z.service(q, netstate.Name{Namespace: below[0], Name: below[1]}, below[2:], aliases)
	}
	return z.unknown(q)
}

// pod answers 10-1-2-3.<namespace>.pod with 10.1.2.3, whoever has that address.
func (z *Zone) pod(q dns.Question, namespace, dashed string) Reply {
	ip, err := netip.ParseAddr(strings.ReplaceAll(dashed, "-", "."))
	if err != nil {
		ip, err = netip.ParseAddr(strings.ReplaceAll(dashed, "-", ":"))
	}
	if err != nil || ip.Zone() != "" || !z.hasNamespace(namespace) {
		return z.unknown(q)
	}
	return z.records(q, addresses(q.Name, q.Qtype, ttlEndpoint, []netip.Addr{ip.Unmap()}))
}

// service answers for a service's name, or what is below it: from the right, as in
// "tcp", "http" for _http._tcp, or "db-0" for an endpoint.
func (z *Zone) service(q dns.Question, name netstate.Name, below []string, aliases int) Reply {
	svc, ok := z.state.Services[name]
	if !ok {
		return z.unknown(q)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		if len(below) > 0 {
			return z.unknown(q)
		}
		return z.alias(q, dns.Fqdn(svc.Spec.ExternalName), aliases)
	}
	headless := netstate.Headless(svc)
	switch {
	case len(below) > 0 && strings.HasPrefix(below[0], "_") && len(below) <= 2:
		return z.ports(q, svc, below)
	case len(below) > 1, len(below) == 1 && !headless:
		return z.unknown(q)
	case q.Qtype == dns.TypeSRV && len(below) == 0:
		// Beyond the specification, as all clusters have it: all ports at once.
		return z.srv(q, svc, func(corev1.ServicePort) bool { return true })
	case !headless:
		return z.records(q, addresses(q.Name, q.Qtype, ttlService, netstate.ClusterIPs(svc)))
	}
	var ips []netip.Addr
	for _, e := range z.state.Addresses(name) {
		if published(svc, e) && (len(below) == 0 || endpointName(e) == below[0]) {
			ips = append(ips, e.IP)
		}
	}
	if len(ips) == 0 {
		return z.unknown(q) // so says the specification: a headless service is its endpoints
	}
	return z.records(q, addresses(q.Name, q.Qtype, ttlEndpoint, ips))
}

// ports answers for _tcp or _http._tcp below a service.
func (z *Zone) ports(q dns.Question, svc *corev1.Service, below []string) Reply {
	named := func(p corev1.ServicePort) bool {
		return p.Name != "" && below[0] == "_"+strings.ToLower(string(cmp.Or(p.Protocol, corev1.ProtocolTCP))) &&
			(len(below) == 1 || below[1] == "_"+p.Name)
	}
	if !slices.ContainsFunc(svc.Spec.Ports, named) {
		return z.unknown(q)
	}
	if len(below) == 1 {
		return z.none(q)
	}
	return z.srv(q, svc, named)
}

// srv answers with the chosen ports of a service, and the addresses they are at.
func (z *Zone) srv(q dns.Question, svc *corev1.Service, chosen func(corev1.ServicePort) bool) Reply {
	name := netstate.Name{Namespace: svc.Namespace, Name: svc.Name}
	host := svc.Name + "." + svc.Namespace + ".svc." + z.domain
	var r Reply
	add := func(target string, port uint16, ttl uint32) {
		r.Answer = append(r.Answer, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV, ttl), Port: port, Target: target})
	}
	headless := netstate.Headless(svc)
	type place struct {
		target string
		port   uint16
	}
	listed, seen := map[place]bool{}, map[netip.Addr]bool{}
	for _, p := range svc.Spec.Ports {
		switch {
		case !chosen(p):
		case !headless:
			if ips := netstate.ClusterIPs(svc); len(ips) > 0 {
				add(host, uint16(p.Port), ttlService)
				r.Extra = addresses(host, dns.TypeANY, ttlService, ips)
			}
		default:
			for _, e := range z.state.Endpoints(name, p.Name, cmp.Or(p.Protocol, corev1.ProtocolTCP)) {
				if !published(svc, e) {
					continue
				}
				target := endpointName(e) + "." + host
				if at := (place{target, e.Port}); !listed[at] { // one name may have addresses of both families
					listed[at] = true
					add(target, e.Port, ttlEndpoint)
				}
				if !seen[e.IP] {
					seen[e.IP] = true
					r.Extra = append(r.Extra, addresses(target, dns.TypeANY, ttlEndpoint, []netip.Addr{e.IP})...)
				}
			}
		}
	}
	if len(r.Answer) == 0 && headless {
		return z.unknown(q)
	}
	for _, rr := range r.Answer {
		rr.(*dns.SRV).Weight = uint16(max(100/len(r.Answer), 1))
	}
	r = z.records(q, r.Answer, r.Extra...)
	return r
}

// alias answers with a CNAME, and what is known about the name it leads to.
func (z *Zone) alias(q dns.Question, target string, aliases int) Reply {
	r := Reply{Answer: []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME, ttlService), Target: target}}}
	if q.Qtype == dns.TypeCNAME || q.Qtype == dns.TypeANY {
		return r
	}
	rest, inside := strings.CutSuffix(strings.ToLower(target), "."+z.domain)
	switch {
	case !inside:
		r.Chase = target
	case aliases == maxAliases:
		return Reply{Rcode: dns.RcodeServerFailure}
	default:
		next := z.inside(dns.Question{Name: target, Qtype: q.Qtype, Qclass: q.Qclass}, rest, aliases+1)
		if next.Rcode == dns.RcodeServerFailure {
			return next
		}
		next.Answer = append(r.Answer, next.Answer...)
		return next
	}
	return r
}

// pointer answers for an address. Those of the cluster's ranges that nobody has are
// unknown; others are not the cluster's.
func (z *Zone) pointer(q dns.Question, ip netip.Addr, zone string) (Reply, bool) {
	names := z.reverse()[ip]
	if len(names) == 0 {
		ours := func(p netip.Prefix) bool { return p.Contains(ip) }
		if slices.ContainsFunc(z.state.Config.ServiceCIDRs, ours) || slices.ContainsFunc(z.state.Config.PodCIDRs, ours) {
			return Reply{Rcode: dns.RcodeNameError, Authority: []dns.RR{z.soa(zone)}}, true
		}
		return Reply{}, false
	}
	if q.Qtype != dns.TypePTR && q.Qtype != dns.TypeANY {
		return Reply{Authority: []dns.RR{z.soa(zone)}}, true
	}
	var r Reply
	for _, name := range names {
		r.Answer = append(r.Answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR, ttlEndpoint), Ptr: name})
	}
	return r, true
}

// records answers with those of the records that were asked for, or says that there
// are none of the type.
func (z *Zone) records(q dns.Question, answer []dns.RR, extra ...dns.RR) Reply {
	answer = slices.DeleteFunc(answer, func(rr dns.RR) bool { return q.Qtype != dns.TypeANY && rr.Header().Rrtype != q.Qtype })
	if len(answer) == 0 {
		return z.none(q)
	}
	return Reply{Answer: answer, Extra: extra}
}

// none says that the name has no records of the type.
func (z *Zone) none(dns.Question) Reply { return Reply{Authority: []dns.RR{z.soa(z.domain)}} }

// unknown says that there is no such name.
func (z *Zone) unknown(dns.Question) Reply {
	return Reply{Rcode: dns.RcodeNameError, Authority: []dns.RR{z.soa(z.domain)}}
}

func (z *Zone) soa(zone string) dns.RR {
	return &dns.SOA{
		Hdr: header(zone, dns.TypeSOA, ttlNegative), Ns: z.server(), Mbox: "hostmaster." + z.domain,
		Serial: uint32(z.state.Revision), Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttlNegative,
	}
}

func (z *Zone) hasNamespace(name string) bool {
	_, ok := z.state.Namespaces[name]
	return ok || z.namespaces()[name]
}

// indexNamespaces are those with a service; the state may name more.
func (z *Zone) indexNamespaces() map[string]bool {
	all := map[string]bool{}
	for name := range z.state.Services {
		all[name.Namespace] = true
	}
	return all
}

// indexAddresses are the names of services' addresses and of headless services'
// endpoints.
func (z *Zone) indexAddresses() map[netip.Addr][]string {
	index := map[netip.Addr][]string{}
	for name, svc := range z.state.Services {
		host := name.Name + "." + name.Namespace + ".svc." + z.domain
		for _, ip := range netstate.ClusterIPs(svc) {
			index[ip] = append(index[ip], host)
		}
		if !netstate.Headless(svc) {
			continue
		}
		for _, e := range z.state.Addresses(name) {
			if published(svc, e) {
				index[e.IP] = append(index[e.IP], endpointName(e)+"."+host)
			}
		}
	}
	for _, names := range index {
		slices.Sort(names)
	}
	return index
}

// published says that names lead to an endpoint.
func published(svc *corev1.Service, e netstate.Endpoint) bool {
	return e.Ready || svc.Spec.PublishNotReadyAddresses
}

// endpointName is the label of an endpoint below its service: its hostname, or else
// its address with dashes.
func endpointName(e netstate.Endpoint) string {
	if e.Hostname != "" {
		return strings.ToLower(e.Hostname)
	}
	if e.IP.Is4() {
		return strings.ReplaceAll(e.IP.String(), ".", "-")
	}
	label := strings.ReplaceAll(e.IP.String(), ":", "-")
	if strings.HasPrefix(label, "-") { // no label begins or ends with a dash
		label = "0" + label
	}
	if strings.HasSuffix(label, "-") {
		label += "0"
	}
	return label
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// addresses are the A and AAAA records of ips that qtype asks for.
func addresses(name string, qtype uint16, ttl uint32, ips []netip.Addr) []dns.RR {
	var all []dns.RR
	for _, ip := range ips {
		switch {
		case ip.Is4() && (qtype == dns.TypeA || qtype == dns.TypeANY):
			all = append(all, &dns.A{Hdr: header(name, dns.TypeA, ttl), A: ip.AsSlice()})
		case ip.Is6() && (qtype == dns.TypeAAAA || qtype == dns.TypeANY):
			all = append(all, &dns.AAAA{Hdr: header(name, dns.TypeAAAA, ttl), AAAA: ip.AsSlice()})
		}
	}
	return all
}

// reverseName reads the address that a name below in-addr.arpa or ip6.arpa is about,
// and the name that encloses it.
func reverseName(name string) (ip netip.Addr, zone string, ok bool) {
	_, zone, _ = strings.Cut(name, ".")
	if rest, is4 := strings.CutSuffix(name, ".in-addr.arpa."); is4 {
		labels := strings.Split(rest, ".")
		slices.Reverse(labels)
		ip, err := netip.ParseAddr(strings.Join(labels, "."))
		return ip, zone, err == nil && ip.Is4()
	}
	rest, is6 := strings.CutSuffix(name, ".ip6.arpa.")
	if !is6 {
		return ip, "", false
	}
	nibbles := strings.Split(rest, ".")
	if len(nibbles) != 32 {
		return ip, "", false
	}
	slices.Reverse(nibbles)
	var text strings.Builder
	for i, n := range nibbles {
		if len(n) != 1 {
			return ip, "", false
		}
		if i > 0 && i%4 == 0 {
			text.WriteByte(':')
		}
		text.WriteString(n)
	}
	ip, err := netip.ParseAddr(text.String())
	return ip.Unmap(), zone, err == nil
}
