package node

import (
	"net/netip"
	"testing"
)

func TestMovedTo(t *testing.T) {
	addresses := func(texts ...string) (all []netip.Addr) {
		for _, text := range texts {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	own := netip.MustParseAddr("10.9.0.1")
	for _, c := range []struct {
		name string
		have []netip.Addr
		best string
		want string
	}{
		{"nothing has changed", addresses("127.0.0.1", "10.9.0.1"), "10.9.0.1", "invalid IP"},
		{"one more, which is found first", addresses("10.1.0.1", "10.9.0.1"), "10.1.0.1", "invalid IP"},
		{"another", addresses("127.0.0.1", "10.9.0.7"), "10.9.0.7", "10.9.0.7"},
		{"none for now", addresses("127.0.0.1"), "127.0.0.1", "invalid IP"},
		{"of the other family", addresses("127.0.0.1", "fd00::1"), "fd00::1", "fd00::1"},
	} {
		if got := movedTo(own, c.have, c.best); got.String() != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
