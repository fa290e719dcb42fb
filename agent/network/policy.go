package network

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/object"
)

// The tables of network policies, as a function of the state. Two maps say by a pod's
// address which chain judges what comes to it and what it sends; a pod that no policy
// isolates is not in them. Such a chain asks the chain of each policy that selects the
// pod, and then refuses. A policy's chain has a rule for each peer and its ports; the
// pods that a selector means are a set, shared by all rules that have the selector.
//
// A chain's name ends with a hash of what is in it, and is never changed: a policy that
// changes has another chain, and the pods' elements lead to that from one transaction
// to the next.

// Names of the maps and sets, beside those named after what they hold.
const (
	ingressMap  = "ingress"  // address of a pod here -> chain
	egressMap   = "egress"   // likewise
	isolatedSet = "isolated" // addresses in either
	selfSet     = "self"     // the same, each with itself
	linksSet    = "links"    // of pods here

	refuseChain = "refuse"
)

// setKind says what a set holds.
type setKind string

const (
	kindAddresses setKind = "addresses" // of pods
	kindBlocks    setKind = "blocks"    // ranges of addresses
	kindPorts     setKind = "ports"     // address . protocol . port
)

// policyTables are what the table of policies of one family holds beside its skeleton.
type policyTables struct {
	sets map[string]setKind
	// elements by place; the value is the name of a chain in the maps. The end of a
	// range is an element of its own, with the value "end".
	elements map[place]string
	chains   map[string][]policyRule
	blocks   map[string][]addrRange // what sets of kindBlocks hold
}

// policyRule matches if all that it names does.
type policyRule struct {
	protocol byte   // 0: any
	from, to uint16 // ports of the destination; 0: any
	named    string // the set that must hold destination, protocol and port; ""
	peer     string // the set that must hold the other end's address; ""
	verdict  string // "accept", or "jump" or "goto" and a chain
}

func (r policyRule) String() string {
	var words []string
	for name, number := range protocolNumbers {
		if number == r.protocol {
			words = append(words, string(name))
		}
	}
	switch {
	case r.from != 0 && r.from == r.to:
		words = append(words, fmt.Sprint(r.from))
	case r.from != 0:
		words = append(words, fmt.Sprintf("%d-%d", r.from, r.to))
	}
	if r.named != "" {
		words = append(words, "@"+r.named)
	}
	if r.peer != "" {
		words = append(words, "peer in @"+r.peer)
	}
	return strings.TrimSpace(strings.Join(words, " ") + " " + r.verdict)
}

const (
	policyIngress = networkingv1.PolicyTypeIngress
	policyEgress  = networkingv1.PolicyTypeEgress
)

// judged is a pod of this node, with the addresses that it has here.
type judged struct {
	uid string
	*netstate.Pod
	ips []netip.Addr
}

// judgedPods joins what the agent knows of its pods with the addresses that the kernel
// knows, by uid.
func judgedPods(s *netstate.State, ips map[string][]netip.Addr) []judged {
	var all []judged
	for _, uid := range slices.Sorted(maps.Keys(ips)) {
		if pod := s.Local[uid]; pod != nil {
			all = append(all, judged{uid, pod, ips[uid]})
		}
	}
	return all
}

// policyTablesOf returns the tables of one family. It is pure: testdata/policies
// states its whole behavior.
func policyTablesOf(s *netstate.State, pods []judged, v6 bool) *policyTables {
	b := policyBuilder{
		s: s, pods: pods, v6: v6, policyChains: map[string]string{},
		policyTables: policyTables{sets: map[string]setKind{}, elements: map[place]string{}, chains: map[string][]policyRule{}, blocks: map[string][]addrRange{}},
	}
	if len(s.Policies) == 0 {
		return &b.policyTables
	}
	of := map[string][]*networkingv1.NetworkPolicy{}
	for _, name := range slices.SortedFunc(maps.Keys(s.Policies), compareNames) {
		of[name.Namespace] = append(of[name.Namespace], s.Policies[name])
	}
	for _, pod := range pods {
		b.elements[place{linksSet, linkKey(pod.uid)}] = ""
		var selecting []*networkingv1.NetworkPolicy
		for _, np := range of[pod.Name.Namespace] {
			if object.PolicySubject(np).SelectsLabels(pod.Labels) {
				selecting = append(selecting, np)
			}
		}
		b.isolate(pod, selecting)
	}
	return &b.policyTables
}

type policyBuilder struct {
	policyTables
	s    *netstate.State
	pods []judged
	v6   bool
	// policyChains are the chains made already, by policy and direction.
	policyChains map[string]string
}

// family reports whether an address is of the tables' family.
func (b *policyBuilder) family(ip netip.Addr) bool { return ip.Is6() == b.v6 }

// isolate leads a pod's traffic to the policies that select the pod.
func (b *policyBuilder) isolate(pod judged, selecting []*networkingv1.NetworkPolicy) {
	for _, direction := range []networkingv1.PolicyType{policyIngress, policyEgress} {
		var rules []policyRule
		isolated := false
		for _, np := range selecting {
			if object.PolicyIsolates(np, direction) {
				isolated = true
				if chain := b.policy(np, direction); chain != "" {
					rules = append(rules, policyRule{verdict: "jump " + chain})
				}
			}
		}
		if !isolated {
			continue
		}
		rules = append(rules, policyRule{verdict: "goto " + refuseChain})
		of := ingressMap
		if direction == policyEgress {
			of = egressMap
		}
		chain := b.chain(of, rules)
		for _, ip := range pod.ips {
			if b.family(ip) {
				key := string(ip.AsSlice())
				b.elements[place{of, key}] = chain
				b.elements[place{isolatedSet, key}] = ""
				b.elements[place{selfSet, key + key}] = ""
			}
		}
	}
}

// policy returns the chain of what a policy allows in a direction, "" if that is
// nothing.
func (b *policyBuilder) policy(np *networkingv1.NetworkPolicy, direction networkingv1.PolicyType) string {
	id := string(direction) + " " + np.Namespace + "/" + np.Name
	if chain, ok := b.policyChains[id]; ok {
		return chain
	}
	var rules []policyRule
	if direction == policyIngress {
		for _, r := range np.Spec.Ingress {
			rules = append(rules, b.rule(np, r.From, r.Ports)...)
		}
	} else {
		for _, r := range np.Spec.Egress {
			rules = append(rules, b.rule(np, r.To, r.Ports)...)
		}
	}
	chain := ""
	if len(rules) > 0 {
		short := map[networkingv1.PolicyType]string{policyIngress: "in-", policyEgress: "out-"}[direction] + np.Namespace + "/" + np.Name
		chain = b.chain(short[:min(len(short), 100)], rules)
	}
	b.policyChains[id] = chain
	return chain
}

// rule returns what one rule of a policy becomes.
func (b *policyBuilder) rule(np *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) []policyRule {
	to := []policyRule{{verdict: "accept"}}
	if len(ports) > 0 {
		to = nil
		for _, port := range ports {
			to = append(to, b.port(port))
		}
	}
	if len(peers) == 0 {
		return to
	}
	if len(to) > 1 {
		to = []policyRule{{verdict: "jump " + b.chain("ports", to)}}
	}
	var rules []policyRule
	for _, peer := range peers {
		set, ok := "", true
		if selection, selects := object.PolicyPeer(np, peer); selects {
			set = b.selection(selection)
		} else {
			set, ok = b.block(peer.IPBlock)
		}
		if ok {
			one := to[0]
			one.peer = set
			rules = append(rules, one)
		}
	}
	return rules
}

func (b *policyBuilder) port(port networkingv1.NetworkPolicyPort) policyRule {
	protocol := corev1.ProtocolTCP
	if port.Protocol != nil {
		protocol = *port.Protocol
	}
	r := policyRule{protocol: protocolNumbers[protocol], verdict: "accept"}
	switch {
	case port.Port == nil:
	case port.Port.Type == intstr.String:
		r.named = b.named(port.Port.StrVal)
	default:
		r.from = uint16(port.Port.IntVal)
		r.to = r.from
		if port.EndPort != nil {
			r.to = uint16(*port.EndPort)
		}
	}
	return r
}

// chain makes a chain of rules and returns its name, which begins with prefix.
func (b *policyBuilder) chain(prefix string, rules []policyRule) string {
	text := prefix
	for _, r := range rules {
		text += "\n" + r.String()
	}
	name := prefix + "-" + shortHash(text)
	b.chains[name] = rules
	return name
}

func shortHash(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:12] }

// known yields every pod that the node knows of, with its addresses.
func (b *policyBuilder) known(yield func(*netstate.Pod, []netip.Addr)) {
	for _, pod := range b.pods {
		yield(pod.Pod, pod.ips)
	}
	for _, pod := range b.s.Pods {
		if pod.Node != b.s.Node {
			yield(pod, pod.IPs)
		}
	}
}

// selection makes the set of the pods that a selection means, and returns its name.
func (b *policyBuilder) selection(selection object.PodSelection) string {
	set := "pods-" + shortHash(selection.Key())
	if _, made := b.sets[set]; made {
		return set
	}
	b.sets[set] = kindAddresses
	namespaces := map[string]bool{}
	b.known(func(pod *netstate.Pod, ips []netip.Addr) {
		in, asked := namespaces[pod.Name.Namespace]
		if !asked {
			var labels map[string]string
			if ns := b.s.Namespaces[pod.Name.Namespace]; ns != nil {
				labels = ns.Labels
			}
			in = selection.SelectsNamespace(pod.Name.Namespace, labels)
			namespaces[pod.Name.Namespace] = in
		}
		if !in || !selection.SelectsLabels(pod.Labels) {
			return
		}
		for _, ip := range ips {
			if b.family(ip) {
				b.elements[place{set, string(ip.AsSlice())}] = ""
			}
		}
	})
	return set
}

// named makes the set of what pods mean by a port's name, and returns its name.
func (b *policyBuilder) named(port string) string {
	set := "port-" + port
	if _, made := b.sets[set]; made {
		return set
	}
	b.sets[set] = kindPorts
	b.known(func(pod *netstate.Pod, ips []netip.Addr) {
		for _, p := range pod.Ports {
			if p.Name != port {
				continue
			}
			for _, ip := range ips {
				if b.family(ip) {
					protocol := protocolNumbers[cmp.Or(p.Protocol, corev1.ProtocolTCP)]
					b.elements[place{set, string(ip.AsSlice()) + string(protoPort(protocol, p.ContainerPort))}] = ""
				}
			}
		}
	})
	return set
}

// block makes the set of the addresses of an ipBlock, and returns its name; not ok if
// there are none in the family.
func (b *policyBuilder) block(block *networkingv1.IPBlock) (set string, ok bool) {
	cidr, err := netip.ParsePrefix(block.CIDR)
	if err != nil || !b.family(cidr.Addr()) {
		return "", false
	}
	var except []netip.Prefix
	for _, text := range block.Except {
		if p, err := netip.ParsePrefix(text); err == nil {
			except = append(except, p)
		}
	}
	ranges := rangesWithout(cidr, except)
	if len(ranges) == 0 {
		return "", false
	}
	text := ""
	for _, r := range ranges {
		text += r.first.String() + "-" + r.end.String() + "\n"
	}
	set = "block-" + shortHash(text)
	b.sets[set], b.blocks[set] = kindBlocks, ranges
	for _, r := range ranges {
		b.elements[place{set, string(r.first.AsSlice())}] = ""
		if r.end.IsValid() {
			b.elements[place{set, string(r.end.AsSlice())}] = "end"
		}
	}
	return set, true
}

// rangesWithout returns what cidr covers and except does not, as ranges that neither
// overlap nor touch, rising.
func rangesWithout(cidr netip.Prefix, except []netip.Prefix) []addrRange {
	except = slices.Clone(except)
	slices.SortFunc(except, func(a, b netip.Prefix) int { return a.Masked().Addr().Compare(b.Masked().Addr()) })
	var ranges []addrRange
	next, end := cidr.Masked().Addr(), addressAfter(cidr)
	for _, p := range except {
		if !cidr.Overlaps(p) {
			continue
		}
		if first := p.Masked().Addr(); next.Less(first) {
			ranges = append(ranges, addrRange{next, first})
		}
		after := addressAfter(p)
		if !after.IsValid() || p.Bits() <= cidr.Bits() {
			return ranges
		}
		if next.Less(after) {
			next = after
		}
	}
	if !end.IsValid() || next.Less(end) {
		ranges = append(ranges, addrRange{next, end})
	}
	return ranges
}

// addressAfter is the first address behind a prefix; not valid at the end of all.
func addressAfter(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last.Next()
}

// linkKey is a pod's link as sets of links have it.
func linkKey(uid string) string {
	name := linkName(uid)
	return name + strings.Repeat("\x00", 16-len(name))
}

// packet is the first of a connection, behind the translation of services' addresses.
type packet struct {
	from, to netip.Addr
	protocol byte
	port     uint16 // of the destination
}

// allows says whether the tables let a packet through, and what decides: the chain
// whose rule it is, "" if no policy isolates either end.
func (t *policyTables) allows(p packet) (allowed bool, by string) {
	if _, self := t.elements[place{selfSet, string(p.from.AsSlice()) + string(p.to.AsSlice())}]; self {
		return true, selfSet
	}
	by = ""
	for _, side := range []struct {
		table    string
		pod, far netip.Addr
	}{{egressMap, p.from, p.to}, {ingressMap, p.to, p.from}} {
		chain, isolated := t.elements[place{side.table, string(side.pod.AsSlice())}]
		if !isolated {
			continue
		}
		if allowed, by = t.run(chain, p, side.far); !allowed {
			return false, chain
		}
	}
	return true, by
}

// run reports whether a chain, or those that it leads to, accepts a packet, and which
// of them does.
func (t *policyTables) run(chain string, p packet, far netip.Addr) (accepted bool, by string) {
	for _, r := range t.chains[chain] {
		if !t.matches(r, p, far) {
			continue
		}
		switch verb, to, _ := strings.Cut(r.verdict, " "); {
		case verb == "accept":
			return true, chain
		case to == refuseChain:
			return false, chain
		default:
			if ok, by := t.run(to, p, far); ok {
				if strings.HasPrefix(by, "ports-") {
					by = chain // the policy's own
				}
				return true, by
			}
		}
	}
	return false, chain
}

func (t *policyTables) matches(r policyRule, p packet, far netip.Addr) bool {
	if r.protocol != 0 && r.protocol != p.protocol || r.from != 0 && (p.port < r.from || p.port > r.to) {
		return false
	}
	if r.named != "" {
		if _, ok := t.elements[place{r.named, string(p.to.AsSlice()) + string(protoPort(p.protocol, int32(p.port)))}]; !ok {
			return false
		}
	}
	switch {
	case r.peer == "":
		return true
	case t.sets[r.peer] == kindBlocks:
		return slices.ContainsFunc(t.blocks[r.peer], func(r addrRange) bool {
			return !far.Less(r.first) && (!r.end.IsValid() || far.Less(r.end))
		})
	}
	_, ok := t.elements[place{r.peer, string(far.AsSlice())}]
	return ok
}

// hash is of all that the tables hold, and does not depend on an order.
func (t *policyTables) hash() uint64 {
	var h uint64
	for at, value := range t.elements {
		h += at.sum(value)
	}
	for name, rules := range t.chains {
		for i, r := range rules {
			h += place{name, fmt.Sprint(i)}.sum(r.String())
		}
	}
	return h
}

// text is the tables for people and tests, a line for each thing.
func (t *policyTables) text() string {
	var lines []string
	for name, kind := range t.sets {
		lines = append(lines, fmt.Sprintf("set %s of %s\n", name, kind))
	}
	for at, value := range t.elements {
		lines = append(lines, t.elementText(at, value)+"\n")
	}
	for _, name := range slices.Sorted(maps.Keys(t.chains)) {
		for i, r := range t.chains[name] {
			lines = append(lines, fmt.Sprintf("chain %s %d: %s\n", name, i+1, r))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

func (t *policyTables) elementText(at place, value string) string {
	key := []byte(at.key)
	switch {
	case at.table == linksSet:
		return "element links: " + strings.TrimRight(at.key, "\x00")
	case at.table == selfSet:
		ip, _ := netip.AddrFromSlice(key[:len(key)/2])
		return "element self: " + ip.String()
	case t.sets[at.table] == kindPorts:
		size := len(key) - 8
		ip, _ := netip.AddrFromSlice(key[:size])
		for name, number := range protocolNumbers {
			if number == key[size] {
				return fmt.Sprintf("element %s: %s %s %d", at.table, ip, name, binary.BigEndian.Uint16(key[size+4:]))
			}
		}
	}
	ip, _ := netip.AddrFromSlice(key)
	text := fmt.Sprintf("element %s: %s", at.table, ip)
	switch {
	case value == "end":
		text += " ends"
	case value != "":
		text += " -> " + value
	}
	return text
}
