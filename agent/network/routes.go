package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent"
)

// wantedRoute is a route to a range of pods.
type wantedRoute struct {
	to   netip.Prefix
	via  netip.Addr // not valid: our own range, of which what is not taken is unreachable
	node string
	// services: the addresses of services, which rules turn into others on the way. The
	// route leads to the loopback, which none of them gets to.
	services bool
}

// withServices returns want with the routes to services.
func withServices(want []wantedRoute, services []netip.Prefix) []wantedRoute {
	all := slices.Clone(want)
	for _, to := range services {
		all = append(all, wantedRoute{to: to.Masked(), node: "the cluster's services", services: true})
	}
	return all
}

// wantedRoutes turns the desired state into routes. It is pure. What the network
// cannot do, and ranges that contradict earlier ones, are left out and are in the
// error: one node without an address must not cut off the others.
func wantedRoutes(podCIDRs []netip.Prefix, routes []agent.Route) ([]wantedRoute, error) {
	var (
		want   []wantedRoute
		failed error
	)
	add := func(w wantedRoute) {
		if !w.to.IsValid() || !w.to.Addr().Is4() || (w.via.IsValid() && !w.via.Is4()) {
			failed = errors.Join(failed, fmt.Errorf("pods of %s at %s: only IPv4 is supported yet", w.node, w.to))
			return
		}
		w.to = w.to.Masked()
		for _, other := range want {
			if other.to.Overlaps(w.to) {
				failed = errors.Join(failed, fmt.Errorf("pods of %s at %s overlap with those of %s at %s", w.node, w.to, other.node, other.to))
				return
			}
		}
		want = append(want, w)
	}
	for _, cidr := range podCIDRs {
		add(wantedRoute{to: cidr, node: "this node"})
	}
	for _, r := range routes {
		if !r.Via.IsValid() {
			failed = errors.Join(failed, fmt.Errorf("pods of %s: the node has no address to reach them by", r.Node))
			continue
		}
		for _, cidr := range r.PodCIDRs {
			add(wantedRoute{to: cidr, via: r.Via.Unmap(), node: r.Node})
		}
	}
	return want, failed
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
		if r, ok := ours[w.to]; ok && leadsTo(r, w) {
			continue
		}
		if r, ok := foreign[w.to]; ok {
			failed = errors.Join(failed, fmt.Errorf("route to %s, the pods of %s: one of another owner (%s) is in the way: %s", w.to, w.node, r.Protocol, r))
			continue
		}
		route := &netlink.Route{Dst: ipNet(w.to), Protocol: Protocol, Table: unix.RT_TABLE_MAIN}
		switch {
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

func leadsTo(r netlink.Route, w wantedRoute) bool {
	if w.services {
		return r.Type == unix.RTN_UNICAST && r.LinkIndex == loopback
	}
	if !w.via.IsValid() {
		return r.Type == unix.RTN_UNREACHABLE
	}
	gw, ok := netip.AddrFromSlice(r.Gw)
	return ok && gw.Unmap() == w.via && r.Type == unix.RTN_UNICAST
}
