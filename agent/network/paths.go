package network

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-io/holdfast/agent"
)

// How packets get from this node to the pods of each other: a decision for each pair
// of nodes, which both take alike from what they know of each other. [planPaths]
// takes it; paths_kernel.go brings the kernel there.

// mode is how the pods of two nodes reach each other.
type mode string

const (
	// modeDirect: a route by the other node's address, which is on a link of ours.
	modeDirect mode = "direct"
	// modeVXLAN: packets wrapped in UDP, for nodes with routers between them, which know
	// nothing of pods.
	modeVXLAN mode = "vxlan"
	// modeWireGuard: packets sealed, because one of the two nodes wants that.
	modeWireGuard mode = "wireguard"
)

const (
	vxlanLink = "hf-vxlan"
	vxlanID   = 72
	vxlanPort = 4789
	// vxlanOverhead is what VXLAN, UDP and the outer IP header take of a packet.
	vxlanOverhead4, vxlanOverhead6 = 50, 70
	// tunnelOverhead is WireGuard's, over either family: 1500 becomes the customary 1420.
	tunnelOverhead = 80
	// minMTU is what IPv6 needs of a link.
	minMTU = 1280
	// handshakeAge is how long a tunnel counts as one that works: those that carry
	// anything, be it what keeps them alive, shake hands every two minutes.
	handshakeAge = 3 * time.Minute
)

// tunnelLinks are the two tunnels that a node with encryption has. One carries, by
// the clock; the key of the other is changed meanwhile. So no packet is lost by it.
var tunnelLinks = [2]string{"hf-wg0", "hf-wg1"}

// announcement is what a node says to the others, as JSON. What is unknown in it is
// of a later version and passed over.
type announcement struct {
	// Subnet is the network of the node's own address.
	Subnet netip.Prefix `json:"subnet"`
	// Overlay: the node wants VXLAN whatever the subnets are.
	Overlay bool `json:"overlay,omitempty"`
	// Encrypt: the node wants WireGuard.
	Encrypt bool `json:"encrypt,omitempty"`
	// Tunnels are the public keys and ports of its tunnels; none where nobody asks for it.
	Tunnels []announcedTunnel `json:"tunnels,omitempty"`
}

type announcedTunnel struct {
	Key  tunnelKey `json:"key"`
	Port uint16    `json:"port"`
}

func (a announcement) text() string {
	data, err := json.Marshal(a)
	if err != nil {
		panic(fmt.Sprintf("network: encode what this node announces: %v", err)) // a struct of ours
	}
	return string(data)
}

// thisNode is what the plan has to know of this machine.
type thisNode struct {
	address netip.Addr // not valid: not told; then onLink decides alone
	// onLink are the networks of all addresses of the node's own links.
	onLink           []netip.Prefix
	podCIDRs         []netip.Prefix
	uplinkMTU        int
	overlay, encrypt bool
	tunnels          []announcedTunnel // nil before they are made
	carrying         int               // which tunnel is to carry, by the clock
	// alive says of each other node's tunnels whether they shook hands of late.
	alive func(tunnelKey) bool
}

// subnet is the network of the node's own address.
func (n thisNode) subnet() netip.Prefix {
	for _, p := range n.onLink {
		if p.Addr() == n.address {
			return p
		}
	}
	return netip.Prefix{}
}

func (n thisNode) announcement() announcement {
	return announcement{Subnet: n.subnet().Masked(), Overlay: n.overlay, Encrypt: n.encrypt, Tunnels: n.tunnels}
}

// otherNode is a node that packets go to.
type otherNode struct {
	name     string
	address  netip.Addr
	podCIDRs []netip.Prefix
	told     bool // it has announced something
	announcement
}

// otherNodes reads routes. What cannot be read is in the error, and counts as nothing
// said: the node may be of a later version.
func otherNodes(routes []agent.Route) (others []otherNode, failed error) {
	for _, r := range routes {
		o := otherNode{name: r.Node, address: r.Via.Unmap(), podCIDRs: r.PodCIDRs}
		if r.Announced != "" {
			if err := json.Unmarshal([]byte(r.Announced), &o.announcement); err != nil {
				failed = errors.Join(failed, fmt.Errorf("what node %s announces of its network cannot be read: %w", r.Node, err))
				o.announcement = announcement{}
			} else {
				o.told = true
			}
		}
		others = append(others, o)
	}
	return others, failed
}

// wantsEncryption reports whether this node needs tunnels: it or any other asks.
func wantsEncryption(own bool, others []otherNode) bool {
	return own || slices.ContainsFunc(others, func(o otherNode) bool { return o.Encrypt })
}

// modeBetween chooses how two nodes' pods reach each other. Both come to the same
// answer, once each has heard of the other.
func modeBetween(own thisNode, other otherNode) mode {
	onLink := slices.ContainsFunc(own.onLink, func(p netip.Prefix) bool { return p.Contains(other.address) })
	switch {
	case own.encrypt || other.Encrypt:
		return modeWireGuard
	case own.overlay || other.Overlay:
		return modeVXLAN
	case !other.told: // it has no end of an overlay either
		return modeDirect
	case !onLink:
		return modeVXLAN
	case own.address.IsValid() && other.Subnet.IsValid() && !other.Subnet.Contains(own.address):
		return modeVXLAN // it does not see us on its link
	default:
		return modeDirect
	}
}

// paths is all that the kernel is to have so that this node's pods and those of the
// others reach one another.
type paths struct {
	// podMTU is for pods' own links: what fits through the narrowest way there is.
	podMTU  int
	routes  []wantedRoute
	vxlan   *vxlanPlan   // nil: none
	tunnels []tunnelPlan // none, or as many as tunnelLinks
}

// vxlanPlan is the one link that leads to all nodes behind routers. Nothing on it is
// learned: what it needs stands in it for each node.
type vxlanPlan struct {
	mtu   int
	ipv6  bool // the packets around are IPv6
	mac   net.HardwareAddr
	peers []vxlanPeer
}

type vxlanPeer struct {
	node    string
	mac     net.HardwareAddr
	address netip.Addr   // of the node
	gates   []netip.Addr // next hops of its pods' routes
}

type tunnelPlan struct {
	name  string
	mtu   int
	peers []tunnelPeer
}

type tunnelPeer struct {
	node     string
	key      tunnelKey
	endpoint netip.AddrPort
	allowed  []netip.Prefix
}

// overlayMAC is the link-layer address of a node's end of the VXLAN: everybody knows
// it who knows the node's pods.
func overlayMAC(podCIDRs []netip.Prefix) net.HardwareAddr {
	if len(podCIDRs) == 0 {
		return nil
	}
	sum := sha256.Sum256([]byte(podCIDRs[0].Masked().String()))
	return append(net.HardwareAddr{0x0a}, sum[:5]...)
}

// gateOf is the next hop of a route over the VXLAN: no machine has it, a permanent
// neighbour says what it stands for. For IPv6 it is of the link, since the kernel asks
// of others where they are.
func gateOf(to netip.Prefix, mac net.HardwareAddr) netip.Addr {
	if to.Addr().Is4() {
		return to.Masked().Addr()
	}
	a := netip.MustParseAddr("fe80::4846").As16()
	copy(a[8:14], mac)
	return netip.AddrFrom16(a)
}

// ownAddress is the address that this node has among its pods, for what it sends to
// pods of others by a link that is none of the machine's own: the first of the range,
// which no pod gets.
func ownAddress(podCIDRs []netip.Prefix, family netip.Prefix) netip.Addr {
	for _, p := range podCIDRs {
		if p.Addr().Is4() == family.Addr().Is4() && p.Bits() < p.Addr().BitLen()-1 {
			return p.Masked().Addr().Next()
		}
	}
	return netip.Addr{}
}

// planPaths decides all of it. It is pure: testdata/paths states its whole behavior.
// What cannot be is left out and is in the error: one node without an address must not
// cut off the others.
func planPaths(own thisNode, others []otherNode) (paths, error) {
	p := paths{podMTU: own.uplinkMTU}
	var failed error
	add := func(w wantedRoute) bool {
		w.to = w.to.Masked()
		for _, other := range p.routes {
			if other.to.Overlaps(w.to) {
				failed = errors.Join(failed, fmt.Errorf("pods of %s at %s overlap with those of %s at %s", w.node, w.to, other.node, other.to))
				return false
			}
		}
		p.routes = append(p.routes, w)
		return true
	}
	usable := func(node string, cidrs []netip.Prefix) (usable []netip.Prefix) {
		for _, cidr := range cidrs {
			if !cidr.IsValid() || !cidr.Addr().Is4() {
				failed = errors.Join(failed, fmt.Errorf("pods of %s at %s: only IPv4 is supported yet", node, cidr))
				continue
			}
			usable = append(usable, cidr)
		}
		return usable
	}
	ownCIDRs := usable("this node", own.podCIDRs)
	for _, cidr := range ownCIDRs {
		add(wantedRoute{to: cidr, node: "this node"})
	}
	if wantsEncryption(own.encrypt, others) {
		p.podMTU = max(own.uplinkMTU-tunnelOverhead, minMTU)
		if own.tunnels != nil {
			for _, name := range tunnelLinks {
				p.tunnels = append(p.tunnels, tunnelPlan{name: name, mtu: max(own.uplinkMTU-tunnelOverhead, minMTU)})
			}
		}
	}
	for _, o := range others {
		if !o.address.IsValid() {
			failed = errors.Join(failed, fmt.Errorf("pods of %s: the node has no address to reach them by", o.name))
			continue
		}
		cidrs := usable(o.name, o.podCIDRs)
		route := wantedRoute{via: o.address, node: o.name, mode: modeBetween(own, o)}
		switch route.mode {
		case modeDirect:
			for _, cidr := range cidrs {
				route.to = cidr
				if !o.address.Is4() {
					failed = errors.Join(failed, fmt.Errorf("pods of %s at %s: a route of IPv4 by the node's address %s is not supported yet", o.name, cidr, o.address))
					continue
				}
				add(route)
			}
		case modeVXLAN:
			p.addVXLAN(own, ownCIDRs, o, cidrs, route, add)
		case modeWireGuard:
			if err := p.addTunnels(own, ownCIDRs, o, cidrs, route, add); err != nil {
				failed = errors.Join(failed, err)
			}
		}
	}
	return p, failed
}

func (p *paths) addVXLAN(own thisNode, ownCIDRs []netip.Prefix, o otherNode, cidrs []netip.Prefix, route wantedRoute, add func(wantedRoute) bool) {
	overhead := vxlanOverhead4
	if !o.address.Is4() {
		overhead = vxlanOverhead6
	}
	if p.vxlan == nil {
		p.vxlan = &vxlanPlan{ipv6: !o.address.Is4(), mac: overlayMAC(ownCIDRs), mtu: max(own.uplinkMTU-overhead, minMTU)}
		p.podMTU = min(p.podMTU, p.vxlan.mtu)
	}
	peer := vxlanPeer{node: o.name, mac: overlayMAC(cidrs), address: o.address}
	for _, cidr := range cidrs {
		route.to, route.link, route.gate, route.source = cidr, vxlanLink, gateOf(cidr, peer.mac), ownAddress(ownCIDRs, cidr)
		if add(route) {
			peer.gates = append(peer.gates, route.gate)
		}
	}
	if len(peer.gates) > 0 {
		p.vxlan.peers = append(p.vxlan.peers, peer)
	}
}

// addTunnels adds a node that is reached sealed. As long as its keys or ours are not
// known nothing goes there: better late than in the clear.
func (p *paths) addTunnels(own thisNode, ownCIDRs []netip.Prefix, o otherNode, cidrs []netip.Prefix, route wantedRoute, add func(wantedRoute) bool) error {
	if len(o.Tunnels) != len(tunnelLinks) || own.tunnels == nil {
		whose := "that node has not announced its keys yet"
		if own.tunnels == nil {
			whose = "this node has no tunnels"
		}
		for _, cidr := range cidrs {
			route.to, route.blocked = cidr, true
			add(route)
		}
		return fmt.Errorf("pods of %s: they are reached encrypted only, and %s", o.name, whose)
	}
	chosen := own.carrying
	if other := 1 - chosen; !own.alive(o.Tunnels[chosen].Key) && own.alive(o.Tunnels[other].Key) {
		chosen = other // a key that has not come through, or clocks that differ
	}
	var allowed []netip.Prefix
	for _, cidr := range cidrs {
		route.to, route.link, route.source = cidr, tunnelLinks[chosen], ownAddress(ownCIDRs, cidr)
		if add(route) {
			allowed = append(allowed, cidr.Masked())
		}
	}
	if len(allowed) == 0 {
		return nil
	}
	for i := range p.tunnels {
		t := o.Tunnels[i]
		p.tunnels[i].peers = append(p.tunnels[i].peers, tunnelPeer{node: o.name, key: t.Key, endpoint: netip.AddrPortFrom(o.address, t.Port), allowed: allowed})
	}
	return nil
}

// carryingTunnel is which tunnel is to carry at a time, and whether it is time for the
// key of the other to be changed, which was made at that time. Clocks may be wrong by
// half a period: what carries next has had its key for as long, and what carried last
// keeps it for as long.
func carryingTunnel(now time.Time, period time.Duration, made time.Time) (carrying int, change bool) {
	n := now.UnixNano() / int64(period)
	began := time.Unix(0, n*int64(period))
	return int(n % 2), now.Sub(began) >= period/2 && made.Before(began)
}

// String states the plan for people and tests, one thing a line.
func (p paths) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pods mtu %d\n", p.podMTU)
	for _, r := range p.routes {
		fmt.Fprintf(&b, "route %s\n", r)
	}
	if v := p.vxlan; v != nil {
		fmt.Fprintf(&b, "vxlan mtu %d mac %s\n", v.mtu, v.mac)
		for _, peer := range v.peers {
			fmt.Fprintf(&b, "  %s: mac %s at %s", peer.node, peer.mac, peer.address)
			for _, gate := range peer.gates {
				fmt.Fprintf(&b, ", neighbour %s", gate)
			}
			b.WriteString("\n")
		}
	}
	for _, t := range p.tunnels {
		fmt.Fprintf(&b, "tunnel %s mtu %d\n", t.name, t.mtu)
		for _, peer := range t.peers {
			fmt.Fprintf(&b, "  %s: key %s at %s, for %v\n", peer.node, peer.key, peer.endpoint, peer.allowed)
		}
	}
	return b.String()
}
