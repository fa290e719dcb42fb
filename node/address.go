package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/holdfast-io/holdfast/internal/datadir"
)

// ErrAddressChanged is what Run returns when the machine has another address than the
// node was started with. Whoever ran it starts the node again: pods and their traffic
// go on meanwhile.
var ErrAddressChanged = errors.New("this machine's address has changed")

// addressPeriod is how often the machine's addresses are looked at. A change counts
// when it is seen twice: a link that is set up anew has none for a moment.
const addressPeriod = 2 * time.Second

// watchAddress returns ErrAddressChanged once the node's address is not the machine's
// any more and another is, and nil when ctx ends. An address that was asked for is kept.
func (n *Node) watchAddress(ctx context.Context) error {
	ticker := time.NewTicker(addressPeriod)
	defer ticker.Stop()
	var before netip.Addr
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if n.cfg.Advertise != "" {
			continue
		}
		now := movedTo(n.address, machineAddresses(), datadir.HostAddress())
		if now.IsValid() && now == before {
			n.log.Warn("this machine's address has changed; starting anew with it", "before", n.address, "now", now)
			return ErrAddressChanged
		}
		before = now
	}
}

// movedTo returns the address that a node with address own is to have, of a machine
// that has those; none when it is to keep its own: that is still there, or nothing else
// is. It is pure.
func movedTo(own netip.Addr, have []netip.Addr, best string) netip.Addr {
	now, err := netip.ParseAddr(best)
	if err != nil || now == own || now.IsLoopback() || slices.Contains(have, own) {
		return netip.Addr{}
	}
	return now
}

func machineAddresses() (all []netip.Addr) {
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if p, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(p.IP); ok {
				all = append(all, ip.Unmap())
			}
		}
	}
	return all
}
