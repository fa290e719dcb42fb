package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/internal/golden"
)

// testKey is the public key of a tunnel of a node in goldens.
func testKey(node string, tunnel int) tunnelKey {
	return sha256.Sum256(fmt.Appendf(nil, "%s%d", node, tunnel))
}

func testTunnels(node string) []announcedTunnel {
	return []announcedTunnel{{testKey(node, 0), 51871}, {testKey(node, 1), 51872}}
}

// parseNodes reads "self" and "node NAME" lines with key=value words.
func parseNodes(t *testing.T, text string) (own thisNode, routes []agent.Route) {
	t.Helper()
	own.uplinkMTU = 1500
	alive := map[tunnelKey]bool{}
	own.alive = func(k tunnelKey) bool { return alive[k] }
	prefixes := func(text string) (all []netip.Prefix) {
		for _, p := range strings.Split(text, ",") {
			all = append(all, netip.MustParsePrefix(p))
		}
		return all
	}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		values := map[string]string{}
		for _, word := range words[1:] {
			key, value, _ := strings.Cut(word, "=")
			values[key] = value
		}
		has := func(key string) bool { _, ok := values[key]; return ok }
		if words[0] == "self" {
			own.address, own.onLink, own.podCIDRs = netip.MustParseAddr(values["address"]), prefixes(values["on-link"]), prefixes(values["pods"])
			own.overlay, own.encrypt = has("overlay"), has("encrypt")
			if has("tunnels") {
				own.tunnels = testTunnels("self")
			}
			if has("mtu") {
				own.uplinkMTU, _ = strconv.Atoi(values["mtu"])
			}
			own.carrying, _ = strconv.Atoi(values["carrying"])
			continue
		}
		name := words[1]
		r := agent.Route{Node: name, PodCIDRs: prefixes(values["pods"])}
		if has("address") {
			r.Via = netip.MustParseAddr(values["address"])
		}
		a := announcement{Overlay: has("overlay"), Encrypt: has("encrypt")}
		if has("subnet") {
			a.Subnet = netip.MustParsePrefix(values["subnet"])
		}
		if has("tunnels") {
			a.Tunnels = testTunnels(name)
		}
		for tunnel := range strings.SplitSeq(values["alive"], ",") {
			if i, err := strconv.Atoi(tunnel); err == nil {
				alive[testKey(name, i)] = true
			}
		}
		switch {
		case has("damaged"):
			r.Announced = "{"
		case !has("silent"):
			r.Announced = a.text()
		}
		routes = append(routes, r)
	}
	return own, routes
}

// TestPlanPaths runs testdata/paths/*.txtar: this node and the others, and how their
// pods are reached.
func TestPlanPaths(t *testing.T) {
	golden.Run(t, "testdata/paths/*.txtar", func(t *testing.T, in golden.Input) string {
		own, routes := parseNodes(t, string(in.File("nodes")))
		others, unread := otherNodes(routes)
		plan, failed := planPaths(own, others)
		out := plan.String()
		if err := errors.Join(unread, failed); err != nil {
			for line := range strings.Lines(err.Error()) {
				out += "error: " + strings.TrimSpace(line) + "\n"
			}
		}
		names := map[string]string{}
		for _, r := range append(routes, agent.Route{Node: "self"}) {
			for i := range tunnelLinks {
				names[testKey(r.Node, i).String()] = fmt.Sprintf("%s%d", r.Node, i)
			}
		}
		for key, name := range names {
			out = strings.ReplaceAll(out, key, name)
		}
		return out
	})
}

// TestModeIsMutual: whatever two nodes are like, both choose the same way, or one that
// the other takes in as well: a node with an overlay takes in what comes directly.
func TestModeIsMutual(t *testing.T) {
	addresses := []string{"10.9.0.1/24", "10.9.0.2/24", "10.9.0.2/30", "10.9.0.200/24", "10.9.1.1/24", "10.9.0.3/32"}
	for _, a := range addresses {
		for _, b := range addresses {
			for flags := range 16 {
				node := func(text string, overlay, encrypt bool) (thisNode, otherNode) {
					p := netip.MustParsePrefix(text)
					own := thisNode{address: p.Addr(), onLink: []netip.Prefix{p}, overlay: overlay, encrypt: encrypt}
					return own, otherNode{name: text, address: p.Addr(), told: true, announcement: own.announcement()}
				}
				ownA, otherA := node(a, flags&1 != 0, flags&2 != 0)
				ownB, otherB := node(b, flags&4 != 0, flags&8 != 0)
				if there, back := modeBetween(ownA, otherB), modeBetween(ownB, otherA); there != back {
					t.Errorf("%s and %s, flags %d: %s there, %s back", a, b, flags, there, back)
				}
			}
		}
	}
}

func TestCarryingTunnel(t *testing.T) {
	const period = time.Hour
	at := func(d time.Duration) time.Time { return time.Unix(0, 0).Add(100*period + d) }
	for _, c := range []struct {
		name     string
		now      time.Time
		made     time.Time
		carrying int
		change   bool
	}{
		{"a period begins", at(0), at(-3 * period), 0, false},
		{"nothing is changed in its first half", at(29 * time.Minute), at(-3 * period), 0, false},
		{"in the second the other gets a key", at(30 * time.Minute), at(-time.Minute), 0, true},
		{"once", at(59 * time.Minute), at(31 * time.Minute), 0, false},
		{"then the other carries", at(period), at(31 * time.Minute), 1, false},
		{"and the first is changed", at(period + 40*time.Minute), at(-10 * time.Minute), 1, true},
	} {
		if carrying, change := carryingTunnel(c.now, period, c.made); carrying != c.carrying || change != c.change {
			t.Errorf("%s: tunnel %d carries, change %t; want %d, %t", c.name, carrying, change, c.carrying, c.change)
		}
	}
}

func hexOf(node string) string {
	key := testKey(node, 0)
	return hex.EncodeToString(key[:])
}

// TestChangeTunnel: peers that are right are not touched, others are.
func TestChangeTunnel(t *testing.T) {
	at := netip.MustParseAddrPort
	pods := func(s ...string) (all []netip.Prefix) {
		for _, p := range s {
			all = append(all, netip.MustParsePrefix(p))
		}
		return all
	}
	peer := func(name, endpoint string, allowed ...string) tunnelPeer {
		return tunnelPeer{name, testKey(name, 0), at(endpoint), pods(allowed...)}
	}
	lines := strings.Split(fmt.Sprintf(`private_key=%s
listen_port=51871
public_key=%s
endpoint=10.9.0.2:51871
last_handshake_time_sec=7
allowed_ip=10.8.2.0/24
allowed_ip=10.8.3.0/24
public_key=%s
endpoint=[fd09::3]:51871
allowed_ip=10.8.4.0/24`, hexOf("self"), hexOf("b"), hexOf("c")), "\n")
	have, err := parseTunnelState(lines)
	if err != nil || have.private != testKey("self", 0) || have.port != 51871 || !have.peers[testKey("b", 0)].handshake.Equal(time.Unix(7, 0)) {
		t.Fatalf("state is %+v, error %v", have, err)
	}
	for _, c := range []struct {
		name        string
		want        []tunnelPeer
		set, remove []string
	}{
		{"all as it is", []tunnelPeer{peer("b", "10.9.0.2:51871", "10.8.3.0/24", "10.8.2.0/24"), peer("c", "[fd09::3]:51871", "10.8.4.0/24")}, nil, nil},
		{"another address", []tunnelPeer{peer("b", "10.9.0.22:51871", "10.8.2.0/24", "10.8.3.0/24"), peer("c", "[fd09::3]:51871", "10.8.4.0/24")}, []string{"b"}, nil},
		{"other pods", []tunnelPeer{peer("b", "10.9.0.2:51871", "10.8.2.0/24"), peer("c", "[fd09::3]:51871", "10.8.4.0/24")}, []string{"b"}, nil},
		{"another key", []tunnelPeer{peer("b", "10.9.0.2:51871", "10.8.2.0/24", "10.8.3.0/24"), peer("c2", "[fd09::3]:51871", "10.8.4.0/24")}, []string{"c2"}, []string{"c"}},
	} {
		var set, remove []string
		change := changeTunnel(have, c.want)
		for _, p := range change.set {
			set = append(set, p.node)
		}
		for _, key := range change.remove {
			for _, name := range []string{"b", "c"} {
				if key == testKey(name, 0) {
					remove = append(remove, name)
				}
			}
		}
		if !slices.Equal(set, c.set) || !slices.Equal(remove, c.remove) {
			t.Errorf("%s: sets %q and removes %q, want %q and %q", c.name, set, remove, c.set, c.remove)
		}
	}
}
