package network

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestNextFree(t *testing.T) {
	ip := netip.MustParseAddr
	cidr := func(s ...string) (all []netip.Prefix) {
		for _, c := range s {
			all = append(all, netip.MustParsePrefix(c))
		}
		return all
	}
	taken := func(s ...string) map[netip.Addr]bool {
		m := map[netip.Addr]bool{}
		for _, a := range s {
			m[ip(a)] = true
		}
		return m
	}
	for _, c := range []struct {
		name  string
		cidrs []netip.Prefix
		taken map[netip.Addr]bool
		last  netip.Addr
		want  string
	}{
		{"the first two are left out", cidr("10.8.1.0/24"), nil, netip.Addr{}, "10.8.1.2"},
		{"taken ones are left out", cidr("10.8.1.0/24"), taken("10.8.1.2", "10.8.1.3"), netip.Addr{}, "10.8.1.4"},
		{"it goes on behind the last", cidr("10.8.1.0/24"), taken("10.8.1.9"), ip("10.8.1.8"), "10.8.1.10"},
		{"and begins anew at the end", cidr("10.8.1.0/24"), taken("10.8.1.2"), ip("10.8.1.254"), "10.8.1.3"},
		{"the last is left out", cidr("10.8.1.0/30"), taken("10.8.1.2"), netip.Addr{}, "none"},
		{"a second range", cidr("10.8.1.0/30", "10.8.2.0/30"), taken("10.8.1.2"), netip.Addr{}, "10.8.2.2"},
		{"a range of one", cidr("10.8.1.7/32"), nil, netip.Addr{}, "10.8.1.7"},
		{"a range at the end of all addresses", cidr("255.255.255.252/30"), nil, netip.Addr{}, "255.255.255.254"},
		{"a range not given by its first address", cidr("10.8.1.77/24"), nil, netip.Addr{}, "10.8.1.2"},
		{"no range", nil, nil, netip.Addr{}, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok := nextFree(c.cidrs, c.taken, c.last)
			text := got.String()
			if !ok {
				text = "none"
			}
			if text != c.want {
				t.Errorf("got %s, want %s", text, c.want)
			}
		})
	}
}

// TestRangesOf compares with asking each prefix about each address.
func TestRangesOf(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		var prefixes []netip.Prefix
		for range rng.IntN(6) {
			// All within one /24 at the end of the addresses, so that they meet.
			prefixes = append(prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, byte(rng.IntN(256))}), 24+rng.IntN(9)))
		}
		ranges := rangesOf(prefixes)
		for i := 1; i < len(ranges); i++ {
			if !ranges[i-1].end.IsValid() || !ranges[i-1].end.Less(ranges[i].first) {
				t.Fatalf("%v: ranges %v touch or do not rise", prefixes, ranges)
			}
		}
		for last := range 256 {
			ip := netip.AddrFrom4([4]byte{255, 255, 255, byte(last)})
			var want, got bool
			for _, p := range prefixes {
				want = want || p.Contains(ip)
			}
			for _, r := range ranges {
				got = got || (!ip.Less(r.first) && (!r.end.IsValid() || ip.Less(r.end)))
			}
			if got != want {
				t.Fatalf("%v: %s in ranges %v: %t, want %t", prefixes, ip, ranges, got, want)
			}
		}
	}
}

func TestAlias(t *testing.T) {
	ip := netip.MustParseAddr("10.8.1.2")
	uid, got, ok := parseAlias(alias("0b1c-uid", ip))
	if uid != "0b1c-uid" || got != ip || !ok {
		t.Errorf("got %q, %s, %t", uid, got, ok)
	}
	for _, foreign := range []string{"", "docker", aliasPrefix, aliasPrefix + "uid", aliasPrefix + "uid 10.8", aliasPrefix + " 10.8.1.2"} {
		if _, _, ok := parseAlias(foreign); ok {
			t.Errorf("%q is taken for ours", foreign)
		}
	}
}

func TestLinkName(t *testing.T) {
	seen := map[string]bool{}
	for i := range 1000 {
		name := linkName(fmt.Sprintf("uid-%d", i))
		if len(name) > 15 || seen[name] {
			t.Fatalf("name %q is too long or not unique", name)
		}
		seen[name] = true
	}
}
