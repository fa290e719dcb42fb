package network

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	linkPrefix  = "hf"              // of the names of our veths; the rest is 13 hexadecimal digits
	ourAlias    = "holdfast "       // begins the aliases of all links of ours
	aliasPrefix = ourAlias + "pod " // of veths; the rest is uid and address
	podLinkName = "eth0"            // in the pod
	defaultMTU  = 1500
)

var (
	// gateway is where pods send everything. No one has this address: a permanent
	// neighbour entry says which link-layer address it stands for.
	gateway = netip.MustParseAddr("169.254.1.1")
	// hostMAC is the link-layer address of the node's end of every veth. Each is
	// a link of its own, so they may all have the same.
	hostMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
)

// podLink is the node's end of a pod's veth.
type podLink struct {
	uid  string
	ip   netip.Addr
	link netlink.Link // nil before it is made
}

// linkName is the name of a pod's veth: at most 15 bytes, and always the same.
func linkName(uid string) string {
	return fmt.Sprintf("%s%x", linkPrefix, sha256.Sum256([]byte(uid)))[:15]
}

func alias(uid string, ip netip.Addr) string { return aliasPrefix + uid + " " + ip.String() }

// parseAlias returns what alias was made from; not ok for one of others.
func parseAlias(s string) (uid string, ip netip.Addr, ok bool) {
	rest, ok := strings.CutPrefix(s, aliasPrefix)
	if !ok {
		return "", netip.Addr{}, false
	}
	uid, text, _ := strings.Cut(rest, " ")
	ip, err := netip.ParseAddr(text)
	return uid, ip, err == nil && uid != ""
}

// podMAC is a pod's link-layer address: local, unicast, and as unique as its
// address is.
func podMAC(ip netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x0a, 0x58}, ip.AsSlice()...)
}

// listPods returns all pods that have a veth here, by uid.
func listPods(h *netlink.Handle) (map[string]podLink, error) {
	links, err := complete(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	pods := map[string]podLink{}
	for _, link := range links {
		if uid, ip, ok := parseAlias(link.Attrs().Alias); ok && link.Attrs().Name == linkName(uid) {
			pods[uid] = podLink{uid: uid, ip: ip, link: link}
		}
	}
	return pods, nil
}

// nextFree returns the first address of cidrs behind last, around the end, that
// is not taken. The first two and the last of a CIDR are never given out: many
// programs take them for something else.
func nextFree(cidrs []netip.Prefix, taken map[netip.Addr]bool, last netip.Addr) (netip.Addr, bool) {
	var first netip.Addr // the first free one of all
	for _, cidr := range cidrs {
		cidr = cidr.Masked()
		reserved := map[netip.Addr]bool{}
		if cidr.Bits() < 31 {
			reserved[cidr.Addr()], reserved[cidr.Addr().Next()], reserved[lastOf(cidr)] = true, true, true
		}
		for ip := cidr.Addr(); cidr.Contains(ip); ip = ip.Next() {
			if taken[ip] || reserved[ip] {
				continue
			}
			if !last.IsValid() || last.Less(ip) {
				return ip, true
			}
			if !first.IsValid() {
				first = ip
			}
		}
	}
	return first, first.IsValid()
}

// lastOf returns the last address of an IPv4 prefix.
func lastOf(cidr netip.Prefix) netip.Addr {
	b := cidr.Masked().Addr().As4()
	for i := cidr.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// connect makes the veth between the node and a pod's namespace, and all that
// belongs to it on both sides. Each step may have been done before.
func connect(h *netlink.Handle, ns *os.File, pod podLink, mtu int) error {
	inside, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod's namespace: %w", err)
	}
	defer inside.Close()

	link, podSide, err := ensureVeth(h, inside, ns, pod, mtu)
	if err != nil {
		return err
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"bring up the pod's loopback", func() error {
			lo, err := inside.LinkByName("lo")
			if err != nil {
				return err
			}
			return inside.LinkSetUp(lo)
		}},
		{"bring up the pod's link", func() error { return inside.LinkSetUp(podSide) }},
		{"bring up the node's link", func() error { return h.LinkSetUp(link) }},
		// A pod that reaches itself through a service leaves and enters by one link. It
		// is not to be told of a shorter way: there is none.
		{"keep the veth from redirecting", func() error {
			return setSysctl("net/ipv4/conf/"+link.Attrs().Name+"/send_redirects", "0")
		}},
		{"set the pod's address", func() error {
			return inside.AddrReplace(podSide, &netlink.Addr{IPNet: hostNet(pod.ip)})
		}},
		{"set the pod's route to its gateway", func() error {
			return inside.RouteReplace(&netlink.Route{LinkIndex: podSide.Attrs().Index, Dst: hostNet(gateway), Scope: netlink.SCOPE_LINK})
		}},
		{"set the pod's gateway", func() error {
			return inside.RouteReplace(&netlink.Route{LinkIndex: podSide.Attrs().Index, Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), Gw: gateway.AsSlice()})
		}},
		{"set the pod's neighbour", func() error {
			return inside.NeighSet(neighbour(podSide, gateway, hostMAC))
		}},
		{"set the node's neighbour", func() error {
			return h.NeighSet(neighbour(link, pod.ip, podMAC(pod.ip)))
		}},
		{"set the node's route to the pod", func() error {
			return h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: hostNet(pod.ip), Scope: netlink.SCOPE_LINK, Protocol: Protocol})
		}},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// ensureVeth returns both ends of a pod's veth. One that leads elsewhere (the
// namespace was made anew) or was left without an alias is replaced.
func ensureVeth(h, inside *netlink.Handle, ns *os.File, pod podLink, mtu int) (link, podSide netlink.Link, err error) {
	name := linkName(pod.uid)
	link, err = h.LinkByName(name)
	if err == nil {
		if podSide, err = inside.LinkByName(podLinkName); err == nil && pod.link != nil {
			return link, podSide, nil
		}
		if link.Type() != "veth" {
			return nil, nil, fmt.Errorf("link %s is in the way: it is a %s and none of ours", name, link.Type())
		}
		if err := h.LinkDel(link); err != nil {
			return nil, nil, fmt.Errorf("remove the old veth %s: %w", name, err)
		}
	} else if !isNotFound(err) {
		return nil, nil, fmt.Errorf("look for the veth %s: %w", name, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtu, hostMAC
	if err := h.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: podLinkName, PeerHardwareAddr: podMAC(pod.ip), PeerMTU: uint32(mtu),
		PeerNamespace: netlink.NsFd(int(ns.Fd())), PeerTxQLen: -1,
	}); err != nil {
		return nil, nil, fmt.Errorf("make the veth %s: %w", name, err)
	}
	if link, err = h.LinkByName(name); err != nil {
		return nil, nil, fmt.Errorf("find the veth just made: %w", err)
	}
	// From here on the address is taken: the alias is our record of it.
	if err := h.LinkSetAlias(link, alias(pod.uid, pod.ip)); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("name the veth's pod: %w", err), h.LinkDel(link))
	}
	if podSide, err = inside.LinkByName(podLinkName); err != nil {
		return nil, nil, fmt.Errorf("find the pod's end of the veth: %w", err)
	}
	return link, podSide, nil
}

// disconnect removes a pod's veth, and with it the node's route to the pod.
func disconnect(h *netlink.Handle, uid string) error {
	link, err := h.LinkByName(linkName(uid))
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for the pod's veth: %w", err)
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the pod's veth: %w", err)
	}
	return nil
}

// removeLinks removes the veths of all pods, those without an alias too, which
// a crash between two steps leaves.
func removeLinks(h *netlink.Handle) error {
	links, err := complete(h.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var failed error
	for _, link := range links {
		a := link.Attrs()
		_, _, ours := parseAlias(a.Alias)
		halfMade := a.Alias == "" && len(a.Name) == 15 && strings.HasPrefix(a.Name, linkPrefix) && a.HardwareAddr.String() == hostMAC.String()
		if link.Type() != "veth" || (!ours && !halfMade) {
			continue
		}
		if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			failed = errors.Join(failed, fmt.Errorf("remove veth %s: %w", a.Name, err))
		}
	}
	return failed
}

// uplinkMTU is the largest packet that a pod may send: that of the link with
// the default route or, without one, the smallest of all links with addresses.
func uplinkMTU(h *netlink.Handle) (int, error) {
	routes, err := complete(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	links, err := complete(h.LinkList)
	if err != nil {
		return 0, fmt.Errorf("list links: %w", err)
	}
	mtus := map[int]int{} // of links that pods' traffic may leave by
	for _, link := range links {
		a := link.Attrs()
		if !strings.HasPrefix(a.Alias, ourAlias) && a.Flags&net.FlagLoopback == 0 && a.MTU > 0 {
			mtus[a.Index] = a.MTU
		}
	}
	smallest := 0
	for _, r := range routes {
		mtu, ok := mtus[r.LinkIndex]
		if !ok {
			continue
		}
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			return mtu, nil
		}
		if smallest == 0 || mtu < smallest {
			smallest = mtu
		}
	}
	if smallest == 0 {
		return defaultMTU, nil
	}
	return smallest, nil
}

func neighbour(link netlink.Link, ip netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}
}

func hostNet(ip netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(ip, ip.BitLen())) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func isNotFound(err error) bool {
	_, notFound := errors.AsType[netlink.LinkNotFoundError](err)
	return notFound
}
