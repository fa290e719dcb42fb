package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nameServer is where the node's DNS server is for its pods and itself: an address of
// the link, the same on every node, and never routed beyond.
var nameServer = netip.MustParseAddr("169.254.20.10")

// NameServer implements [agent.NameServers].
func (n *Network) NameServer() netip.Addr { return nameServer }

func nameServerAddr() *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: nameServer.AsSlice(), Mask: net.CIDRMask(32, 32)}, Scope: unix.RT_SCOPE_LINK}
}

// addNameServer gives the node the address, on its loopback.
func addNameServer(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err == nil {
		err = h.AddrAdd(lo, nameServerAddr())
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add the address of the name server, %s: %w", nameServer, err)
	}
	return nil
}

// removeNameServer takes it away again.
func removeNameServer(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.AddrDel(lo, nameServerAddr())
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove the address of the name server, %s: %w", nameServer, err)
	}
	return nil
}
