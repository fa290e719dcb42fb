package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	vxlanAlias  = ourAlias + "vxlan"
	tunnelAlias = ourAlias + "tunnel " // the rest is when its key was made, in nanoseconds since 1970
	// linkLinger is how long a link stays that nothing needs any more: the other side may
	// hear of it a little later.
	linkLinger = time.Minute
)

// preparePaths reads what the machine is, makes the tunnels if they are needed, and
// plans. The plan is to be carried out whatever the error says.
func (n *Network) preparePaths(h *netlink.Handle, podCIDRs []netip.Prefix, others []otherNode) (paths, error) {
	own := thisNode{address: n.address, podCIDRs: podCIDRs, overlay: n.cfg.Overlay, encrypt: n.cfg.Encrypt}
	var failed error
	var err error
	if own.uplinkMTU, err = uplinkMTU(h); err != nil {
		return paths{}, err
	}
	if own.onLink, err = onLinkPrefixes(h); err != nil {
		return paths{}, err
	}
	if len(podCIDRs) > 0 && wantsEncryption(own.encrypt, others) {
		if err := n.prepareTunnels(h, &own, others); err != nil {
			failed = fmt.Errorf("WireGuard, which pods' traffic is to be encrypted with: %w", err)
		}
	}
	n.said = own.announcement().text()
	plan, err := planPaths(own, others)
	return plan, errors.Join(failed, err)
}

// onLinkPrefixes are the networks that the machine's own links are in.
func onLinkPrefixes(h *netlink.Handle) ([]netip.Prefix, error) {
	links, err := complete(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	machine := map[int]bool{}
	for _, link := range links {
		a := link.Attrs()
		machine[a.Index] = a.Flags&net.FlagLoopback == 0 && !strings.HasPrefix(a.Alias, ourAlias)
	}
	addresses, err := complete(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var all []netip.Prefix
	for _, a := range addresses {
		ip, ok := netip.AddrFromSlice(a.IP)
		bits, _ := a.Mask.Size()
		if ok && machine[a.LinkIndex] && ip.Unmap().IsGlobalUnicast() {
			all = append(all, netip.PrefixFrom(ip.Unmap(), bits))
		}
	}
	return all, nil
}

// prepareTunnels makes both tunnels, changes the key of the one that does not carry
// when it is time, and fills in what the plan has to know of them.
func (n *Network) prepareTunnels(h *netlink.Handle, own *thisNode, others []otherNode) error {
	devices, err := n.ensureTunnels(h)
	if err != nil {
		return err
	}
	now := time.Now()
	var states [len(tunnelLinks)]tunnelState
	handshakes := map[tunnelKey]time.Time{}
	for i, name := range tunnelLinks {
		if states[i], err = devices.read(name); err != nil {
			return fmt.Errorf("read tunnel %s: %w", name, err)
		}
		for key, peer := range states[i].peers {
			handshakes[key] = peer.handshake
		}
	}
	own.alive = func(key tunnelKey) bool { return now.Sub(handshakes[key]) < handshakeAge }
	// The one that is not carrying is next: is it time for another key?
	own.carrying, _ = carryingTunnel(now, n.cfg.KeyPeriod, now)
	resting := 1 - own.carrying
	_, change := carryingTunnel(now, n.cfg.KeyPeriod, keyMade(h, tunnelLinks[resting]))
	for _, o := range others {
		if len(o.Tunnels) == len(tunnelLinks) && own.alive(o.Tunnels[resting].Key) && !own.alive(o.Tunnels[own.carrying].Key) {
			change = false // that is all there is between us
		}
	}
	own.tunnels = make([]announcedTunnel, len(tunnelLinks))
	for i, name := range tunnelLinks {
		c := tunnelChange{port: n.cfg.TunnelPort + uint16(i)}
		if states[i].port == c.port {
			c.port = 0
		}
		key := states[i].private
		if key == (tunnelKey{}) || change && i == resting {
			key = newTunnelKey()
			c.private = key
			link, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			if err := h.LinkSetAlias(link, fmt.Sprint(tunnelAlias, now.UnixNano())); err != nil {
				return fmt.Errorf("name tunnel %s: %w", name, err)
			}
		}
		if !c.empty() {
			if err := devices.write(name, c); err != nil {
				return fmt.Errorf("set tunnel %s: %w", name, err)
			}
		}
		own.tunnels[i] = announcedTunnel{Key: key.public(), Port: n.cfg.TunnelPort + uint16(i)}
	}
	return nil
}

// keyMade is when a tunnel's key was made, by its link's alias.
func keyMade(h *netlink.Handle, name string) time.Time {
	link, err := h.LinkByName(name)
	if err != nil {
		return time.Time{}
	}
	var nanoseconds int64
	if text, ok := strings.CutPrefix(link.Attrs().Alias, tunnelAlias); ok {
		_, _ = fmt.Sscan(text, &nanoseconds)
	}
	return time.Unix(0, nanoseconds)
}

// ensureTunnels makes both links be there, and returns what speaks to them.
func (n *Network) ensureTunnels(h *netlink.Handle) (tunnelDevices, error) {
	process := processTunnels{n.cfg.TunnelDir}
	for _, name := range tunnelLinks {
		link, err := h.LinkByName(name)
		switch {
		case err == nil && link.Type() == "wireguard":
			continue
		case err == nil && link.Type() == "tuntap":
			return process, n.startTunnels(process)
		case err == nil:
			return nil, fmt.Errorf("link %s is in the way: it is a %s and none of ours", name, link.Type())
		case !isNotFound(err):
			return nil, fmt.Errorf("look for link %s: %w", name, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		err = h.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs})
		if errors.Is(err, unix.EOPNOTSUPP) {
			return process, n.startTunnels(process)
		}
		if err != nil {
			return nil, fmt.Errorf("make link %s: %w", name, err)
		}
	}
	return kernelTunnels{}, nil
}

func (n *Network) startTunnels(process processTunnels) error {
	if n.cfg.TunnelProgram == nil {
		return errors.New("the kernel has none")
	}
	program, err := n.cfg.TunnelProgram()
	if err != nil {
		return err
	}
	return process.startTunnels(program)
}

// setLinks makes the links, and what stands in them, as the plan has it, and takes
// nothing away.
func (n *Network) setLinks(h *netlink.Handle, podCIDRs []netip.Prefix, plan paths) error {
	var failed error
	if plan.vxlan != nil {
		if err := setVXLAN(h, plan.vxlan, podCIDRs); err != nil {
			failed = errors.Join(failed, fmt.Errorf("VXLAN: %w", err))
		}
	}
	if len(plan.tunnels) == 0 {
		return failed
	}
	devices, err := n.ensureTunnels(h)
	if err != nil {
		return errors.Join(failed, err)
	}
	for _, t := range plan.tunnels {
		if err := setTunnel(h, devices, t, podCIDRs); err != nil {
			failed = errors.Join(failed, fmt.Errorf("tunnel %s: %w", t.name, err))
		}
	}
	return failed
}

// setOwnLink brings a link of ours up, with what this node has on it.
func setOwnLink(h *netlink.Handle, link netlink.Link, mtu int, podCIDRs []netip.Prefix) error {
	if link.Attrs().MTU != mtu {
		if err := h.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set its MTU to %d: %w", mtu, err)
		}
	}
	// Answers may come by another link than what they answer went by, while one is
	// changed for another.
	if err := setSysctl("net/ipv4/conf/"+link.Attrs().Name+"/rp_filter", "2"); err != nil {
		return err
	}
	for _, cidr := range podCIDRs {
		if ip := ownAddress(podCIDRs, cidr); ip.IsValid() {
			if err := h.AddrReplace(link, &netlink.Addr{IPNet: hostNet(ip), Flags: unix.IFA_F_NODAD}); err != nil {
				return fmt.Errorf("give it address %s: %w", ip, err)
			}
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	return nil
}

func setVXLAN(h *netlink.Handle, v *vxlanPlan, podCIDRs []netip.Prefix) error {
	link, err := ensureVXLAN(h, v)
	if err != nil {
		return err
	}
	if err := setOwnLink(h, link, v.mtu, podCIDRs); err != nil {
		return err
	}
	for _, want := range v.neighbours(link.Attrs().Index) {
		if err := h.NeighSet(want); err != nil {
			return fmt.Errorf("set neighbour %s: %w", want, err)
		}
	}
	return nil
}

func ensureVXLAN(h *netlink.Handle, v *vxlanPlan) (netlink.Link, error) {
	link, err := h.LinkByName(vxlanLink)
	if err == nil {
		have, ok := link.(*netlink.Vxlan)
		if !ok || link.Attrs().Alias != vxlanAlias && link.Attrs().Alias != "" {
			return nil, fmt.Errorf("link %s is in the way: it is a %s and none of ours", vxlanLink, link.Type())
		}
		if ipv6 := have.SrcAddr != nil && have.SrcAddr.To4() == nil; have.VxlanId == vxlanID && have.Port == vxlanPort && ipv6 == v.ipv6 && link.Attrs().HardwareAddr.String() == v.mac.String() {
			return link, nil
		}
		if err := h.LinkDel(link); err != nil {
			return nil, fmt.Errorf("remove the old link: %w", err)
		}
	} else if !isNotFound(err) {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = vxlanLink, v.mtu, v.mac
	add := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vxlanID, Port: vxlanPort, Learning: false}
	if v.ipv6 {
		add.SrcAddr = net.IPv6zero
	}
	if err := h.LinkAdd(add); err != nil {
		return nil, fmt.Errorf("make link %s: %w", vxlanLink, err)
	}
	if link, err = h.LinkByName(vxlanLink); err != nil {
		return nil, err
	}
	return link, h.LinkSetAlias(link, vxlanAlias)
}

// neighbours are what stands in the link for each node: where frames to its link-layer
// address go, and that its next hops have that.
func (v *vxlanPlan) neighbours(index int) (all []*netlink.Neigh) {
	for _, peer := range v.peers {
		all = append(all, &netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: peer.address.AsSlice(), HardwareAddr: peer.mac})
		for _, gate := range peer.gates {
			family := unix.AF_INET
			if !gate.Is4() {
				family = unix.AF_INET6
			}
			all = append(all, &netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: gate.AsSlice(), HardwareAddr: peer.mac})
		}
	}
	return all
}

func setTunnel(h *netlink.Handle, devices tunnelDevices, t tunnelPlan, podCIDRs []netip.Prefix) error {
	link, err := h.LinkByName(t.name)
	if err != nil {
		return err
	}
	have, err := devices.read(t.name)
	if err != nil {
		return err
	}
	if err := setOwnLink(h, link, t.mtu, podCIDRs); err != nil {
		return err
	}
	if c := changeTunnel(have, t.peers); !c.empty() {
		if err := devices.write(t.name, c); err != nil {
			return fmt.Errorf("set its peers: %w", err)
		}
	}
	return nil
}

// dropLinks takes away what the plan has no more: nodes from the VXLAN at once, links
// when nothing needed them for a while.
func (n *Network) dropLinks(h *netlink.Handle, plan paths) error {
	needed := map[string]bool{}
	var failed error
	if plan.vxlan != nil {
		needed[vxlanLink] = true
		failed = dropNeighbours(h, plan.vxlan)
	}
	for _, t := range plan.tunnels {
		needed[t.name] = true
	}
	for _, name := range append([]string{vxlanLink}, tunnelLinks[:]...) {
		link, err := h.LinkByName(name)
		switch {
		case err != nil || needed[name] || !strings.HasPrefix(link.Attrs().Alias, ourAlias):
			delete(n.idle, name)
		case n.idle[name].IsZero():
			n.idle[name] = time.Now()
		case time.Since(n.idle[name]) >= linkLinger:
			if err := h.LinkDel(link); err != nil {
				failed = errors.Join(failed, fmt.Errorf("remove link %s, which nothing needs: %w", name, err))
			}
		}
	}
	return failed
}

func dropNeighbours(h *netlink.Handle, v *vxlanPlan) error {
	link, err := h.LinkByName(vxlanLink)
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	keep := map[string]bool{}
	for _, want := range v.neighbours(index) {
		keep[neighbourKey(*want)] = true
	}
	var failed error
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
		have, err := complete(func() ([]netlink.Neigh, error) { return h.NeighList(index, family) })
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("list neighbours of %s: %w", vxlanLink, err))
			continue
		}
		for _, one := range have {
			one.Family = family
			if one.State&netlink.NUD_PERMANENT == 0 || keep[neighbourKey(one)] {
				continue
			}
			if err := h.NeighDel(&one); err != nil && !errors.Is(err, unix.ENOENT) {
				failed = errors.Join(failed, fmt.Errorf("remove neighbour %s of %s: %w", one.IP, vxlanLink, err))
			}
		}
	}
	return failed
}

func neighbourKey(n netlink.Neigh) string {
	ip, _ := netip.AddrFromSlice(n.IP)
	return fmt.Sprint(n.Family, ip.Unmap(), n.HardwareAddr)
}

// setPodMTU brings the links of pods that are there to what new ones get. Connections
// follow the pod's own end.
func (n *Network) setPodMTU(h *netlink.Handle, mtu int) error {
	if mtu == 0 {
		return nil // the plan could not be made
	}
	n.podMTU = mtu
	pods, err := listPods(h)
	if err != nil {
		return err
	}
	var failed error
	for uid, pod := range pods {
		if pod.link.Attrs().MTU == mtu {
			continue
		}
		err := n.podSide(uid, func(inside *netlink.Handle) error {
			eth0, err := inside.LinkByName(podLinkName)
			if err != nil {
				return err
			}
			return inside.LinkSetMTU(eth0, mtu)
		})
		if err == nil { // this end says that it is done
			err = h.LinkSetMTU(pod.link, mtu)
		}
		// A pod that is just going is nobody's concern.
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) && !isNotFound(err) {
			failed = errors.Join(failed, fmt.Errorf("set the MTU of pod %s to %d: %w", uid, mtu, err))
		}
	}
	return failed
}

func (n *Network) podSide(uid string, f func(*netlink.Handle) error) error {
	ns, err := os.Open(filepath.Join(n.cfg.NetNSDir, uid))
	if err != nil {
		return err
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	return f(inside)
}

// removePaths takes away all links between nodes, and with them what leads there.
func (n *Network) removePaths(h *netlink.Handle) error {
	links, err := complete(h.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var failed error
	for _, link := range links {
		a := link.Attrs()
		if strings.HasPrefix(a.Alias, ourAlias) && (a.Name == vxlanLink || slices.Contains(tunnelLinks[:], a.Name)) {
			if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
				failed = errors.Join(failed, fmt.Errorf("remove link %s: %w", a.Name, err))
			}
		}
	}
	clear(n.idle)
	return errors.Join(failed, n.removeTunnelDir())
}

// removeTunnelDir removes what the tunnels' process has left, once it has ended: that
// is soon after its links are gone.
func (n *Network) removeTunnelDir() error {
	if _, err := os.Stat(n.cfg.TunnelDir); err != nil {
		return nil
	}
	for deadline := time.Now().Add(tunnelsStart); ; time.Sleep(5 * time.Millisecond) {
		lock, err := lockTunnels(n.cfg.TunnelDir)
		if err != nil {
			return fmt.Errorf("remove what the tunnels have left: %w", err)
		}
		if lock != nil {
			lock.Close()
			return os.RemoveAll(n.cfg.TunnelDir)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the tunnels' process has not ended within %v", tunnelsStart)
		}
	}
}
