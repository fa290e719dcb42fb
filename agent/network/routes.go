package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wantedRoute is a route to a range of pods.
type wantedRoute struct {
	to   netip.Prefix
	via  netip.Addr // not valid: our own range, of which what is not taken is unreachable
	node string
	mode mode
	// link, gate and source: a link of ours that it goes by, where it is no route by the
	// node's address; the next hop on it, if it has any; and what this node itself sends
	// from.
	link         string
	gate, source netip.Addr
	// blocked: nothing may go there yet.
	blocked bool
	// services: the addresses of services, which rules turn into others on the way. The
	// route leads to the loopback, which none of them gets to.
	services bool
}

func (w wantedRoute) String() string {
	switch {
	case w.services:
		return fmt.Sprintf("%s to services", w.to)
	case !w.via.IsValid():
		return fmt.Sprintf("%s of this node: unreachable but for its pods", w.to)
	case w.blocked:
		return fmt.Sprintf("%s of %s: unreachable until it can be sealed", w.to, w.node)
	case w.link == "":
		return fmt.Sprintf("%s of %s: via %s", w.to, w.node, w.via)
	case w.gate.IsValid():
		return fmt.Sprintf("%s of %s: via %s on %s from %s", w.to, w.node, w.gate, w.link, w.source)
	default:
		return fmt.Sprintf("%s of %s: on %s from %s", w.to, w.node, w.link, w.source)
	}
}

// withServices returns want with the routes to services.
func withServices(want []wantedRoute, services []netip.Prefix) []wantedRoute {
	all := slices.Clone(want)
	for _, to := range services {
		all = append(all, wantedRoute{to: to.Masked(), node: "the cluster's services", services: true})
	}
	return all
}

// setRoutes makes want all of our routes to ranges of pods: those that are
// missing are added, those that lead elsewhere changed, all others of ours
// removed. Routes of others, and those to single pods, are left alone.
func setRoutes(h *netlink.Handle, want []wantedRoute) error {
	have, err := complete(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	pods, err := listPods(h)
	if err != nil {
		return err
	}
	podLinks := map[int]bool{}
	for _, p := range pods {
		podLinks[p.link.Attrs().Index] = true
	}
	ours := map[netip.Prefix]netlink.Route{}
	foreign := map[netip.Prefix]netlink.Route{}
	for _, r := range have {
		to, ok := destination(r)
		switch {
		case !ok || podLinks[r.LinkIndex]:
		case r.Protocol == Protocol:
			ours[to] = r
		default:
			foreign[to] = r
		}
	}
	var failed error
	// Removals first: a range may have moved into another.
	for to, r := range ours {
		if r.LinkIndex == loopback && len(want) > 0 && !slices.ContainsFunc(want, func(w wantedRoute) bool { return w.services }) {
			continue // after a start, what services there are is not known at once
		}
		if !slices.ContainsFunc(want, func(w wantedRoute) bool { return w.to == to }) {
			// Already gone is one of a pod that is being detached.
			if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
				failed = errors.Join(failed, fmt.Errorf("remove route to %s: %w", to, err))
			}
		}
	}
	for _, w := range want {
		index := 0
		if w.link != "" && !w.blocked {
			link, err := h.LinkByName(w.link)
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("set route to %s, the pods of %s: %w", w.to, w.node, err))
				continue
			}
			index = link.Attrs().Index
		}
		if r, ok := ours[w.to]; ok && leadsTo(r, w, index) {
			continue
		}
		if r, ok := foreign[w.to]; ok {
			failed = errors.Join(failed, fmt.Errorf("route to %s, the pods of %s: one of another owner (%s) is in the way: %s", w.to, w.node, r.Protocol, r))
			continue
		}
		route := &netlink.Route{Dst: ipNet(w.to), Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
		switch {
		case w.blocked:
			route.Type = unix.RTN_UNREACHABLE
		case w.link != "":
			route.LinkIndex, route.Src = index, w.source.AsSlice()
			if w.gate.IsValid() {
				route.Gw, route.Flags = w.gate.AsSlice(), int(netlink.FLAG_ONLINK)
			} else {
				route.Scope = netlink.SCOPE_LINK
			}
		case w.via.IsValid():
			route.Gw = w.via.AsSlice()
		case w.services:
			route.LinkIndex, route.Scope = loopback, netlink.SCOPE_LINK
		default:
			route.Type = unix.RTN_UNREACHABLE
		}
		if err := h.RouteReplace(route); err != nil {
			if errors.Is(err, unix.ENETUNREACH) {
				err = fmt.Errorf("no link of this node leads there directly; nodes must share a network: %w", err)
			}
			failed = errors.Join(failed, fmt.Errorf("set route to %s, the pods of %s, via %s: %w", w.to, w.node, w.via, err))
		}
	}
	return failed
}

// destination is a route's range; not ok for the default route.
func destination(r netlink.Route) (netip.Prefix, bool) {
	if r.Dst == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits), ok
}

// loopback is the index of lo in every network namespace.
const loopback = 1

// leadsTo reports whether r is the route that w wants, by the link of that index if w
// names one.
func leadsTo(r netlink.Route, w wantedRoute, index int) bool {
	gate, _ := netip.AddrFromSlice(r.Gw)
	source, _ := netip.AddrFromSlice(r.Src)
	switch {
	case w.services:
		return r.Type == unix.RTN_UNICAST && r.LinkIndex == loopback
	case !w.via.IsValid() || w.blocked:
		return r.Type == unix.RTN_UNREACHABLE
	case w.link != "":
		return r.Type == unix.RTN_UNICAST && r.LinkIndex == index && gate.Unmap() == w.gate && source.Unmap() == w.source
	default:
		return r.Type == unix.RTN_UNICAST && gate.Unmap() == w.via
	}
}
