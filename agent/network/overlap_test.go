package network

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestCheckRanges: what others have on the machine, and whether it is in the way of the
// cluster's 10.244.0.0/16 and 10.96.0.0/12.
func TestCheckRanges(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.96.0.0/12")}
	// bridge makes a bridge with an address, as container engines do.
	bridge := func(name, address string) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		br := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(br); err != nil {
			return err
		}
		return netlink.AddrAdd(br, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(address))})
	}
	route := func(to, via string) error {
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(to)), Gw: netip.MustParseAddr(via).AsSlice()})
	}
	for _, c := range []struct {
		name string
		do   func() error
		want []string // of what is said; none: nothing is in the way
	}{
		{"a machine with its own network and what we made ourselves", func() error { return nil }, nil},
		{"the default route", func() error { return netlink.RouteAdd(&netlink.Route{Gw: netip.MustParseAddr("10.9.0.254").AsSlice()}) }, nil},
		{"docker0 where Docker has it", func() error { return bridge("docker0", "172.17.0.1/16") }, nil},
		{"a wider route by a router", func() error { return route("10.0.0.0/8", "10.9.0.254") }, nil},
		{"halves of all there is, as tunnels for everything have them", func() error { return route("0.0.0.0/1", "10.9.0.254") }, nil},
		{"a network of containers in the pods' range", func() error { return bridge("cni0", "10.244.3.1/24") }, []string{"10.244.0.0/16", "cni0 has this machine's address 10.244.3.1", "route to 10.244.3.0/24 by cni0", "--pod-cidr"}},
		{"a link that all pods would be on", func() error { return bridge("wide", "10.200.0.1/10") }, []string{"10.244.0.0/16", "route to 10.192.0.0/10 by wide"}},
		{"a narrower route into the services' range", func() error { return route("10.100.1.0/24", "10.9.0.254") }, []string{"10.96.0.0/12", "route to 10.100.1.0/24 by eth0", "--service-cidr"}},
		{"the same range", func() error { return route("10.244.0.0/16", "10.9.0.254") }, []string{"route to 10.244.0.0/16 by eth0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHosts(t, 1, 1500)[0]
			h.cidr = netip.MustParsePrefix("10.244.1.0/24")
			h.in(func() error { return h.net.Configure(context.Background(), []netip.Prefix{h.cidr}, nil) })
			h.attach("pod")
			h.in(c.do)
			h.in(func() error {
				err := h.newNetwork().CheckRanges(context.Background(), ranges)
				if len(c.want) == 0 {
					return err
				}
				if err == nil {
					t.Error("nothing is said")
					return nil
				}
				for _, want := range c.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("it says %q, and nothing of %q", err, want)
					}
				}
				return nil
			})
		})
	}
}
