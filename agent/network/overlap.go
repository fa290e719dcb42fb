package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// CheckRanges implements [agent.RangeChecker]: it returns an error when addresses that
// the cluster has for its pods or services are somebody else's on this machine, which
// would lose them. A wider route by a router is no obstacle: ours are narrower, and
// whoever made it knows of no machine of those addresses here.
func (n *Network) CheckRanges(ctx context.Context, ranges []netip.Prefix) error {
	return n.do(ctx, func(h *netlink.Handle) error {
		foreign, err := foreignRanges(h)
		if err != nil {
			return err
		}
		return checkRanges(ranges, foreign)
	})
}

// foreignRange is what others have on this machine.
type foreignRange struct {
	to     netip.Prefix
	link   string
	routed bool // by a router: nobody of it is on a link here
	own    bool // an address of the machine
}

func (f foreignRange) String() string {
	if f.own {
		return fmt.Sprintf("%s has this machine's address %s", f.link, f.to.Addr())
	}
	return fmt.Sprintf("there is a route to %s by %s", f.to, f.link)
}

// checkRanges is pure: it returns what is in the way of ranges, and what to do.
func checkRanges(ranges []netip.Prefix, foreign []foreignRange) error {
	var failed []string
	for _, r := range ranges {
		for _, f := range foreign {
			if !r.Overlaps(f.to) || f.to.Bits() <= 1 || f.routed && f.to.Bits() < r.Bits() {
				continue
			}
			if text := fmt.Sprintf("the cluster has %s for its own, and %s", r.Masked(), f); !slices.Contains(failed, text) {
				failed = append(failed, text)
			}
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return errors.New(strings.Join(failed, "; ") +
		". Nothing is set up as long as that is so: take the other away if it is not needed (docker0 and its like are moved by the configuration of who made them), " +
		"or make the cluster with other ranges: holdfast server --init --pod-cidr RANGE --service-cidr RANGE")
}

// foreignRanges lists addresses and routes that are not ours, but for the default route.
func foreignRanges(h *netlink.Handle) ([]foreignRange, error) {
	links, err := complete(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names, ours := map[int]string{}, map[int]bool{loopback: true}
	for _, link := range links {
		a := link.Attrs()
		names[a.Index] = a.Name
		ours[a.Index] = ours[a.Index] || strings.HasPrefix(a.Alias, ourAlias)
	}
	var all []foreignRange
	addresses, err := complete(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && !ours[a.LinkIndex] {
			all = append(all, foreignRange{to: netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()), link: names[a.LinkIndex], own: true})
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := complete(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			to, ok := destination(r)
			if !ok || r.Protocol == Protocol || ours[r.LinkIndex] && r.Type == unix.RTN_UNICAST {
				continue
			}
			all = append(all, foreignRange{to: to, link: names[r.LinkIndex], routed: r.Gw != nil || len(r.MultiPath) > 0 || r.Type != unix.RTN_UNICAST})
		}
	}
	return all, nil
}
