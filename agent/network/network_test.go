package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent"
	"github.com/holdfast-io/holdfast/agent/netstate"
)

// host is a machine of a test: a network namespace with its own Network.
type host struct {
	t    *testing.T
	ns   *os.File
	net  *Network
	dir  string
	cidr netip.Prefix
	ip   netip.Addr
}

// in calls f on a thread whose network namespace is ns. f must not start
// goroutines that use the network.
func in(t *testing.T, ns *os.File, f func() error) {
	t.Helper()
	if err := onThrowAwayThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	}); err != nil {
		t.Fatal(err)
	}
}

func (h *host) in(f func() error) { h.t.Helper(); in(h.t, h.ns, f) }

func (h *host) attach(uid string) agent.Attachment {
	h.t.Helper()
	var at agent.Attachment
	h.in(func() (err error) {
		at, err = h.net.Attach(context.Background(), uid)
		return err
	})
	if len(at.IPs) != 1 || !h.cidr.Contains(at.IPs[0]) {
		h.t.Fatalf("pod %s has addresses %v, want one in %s", uid, at.IPs, h.cidr)
	}
	return at
}

func newNamespace(t *testing.T) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	ch := make(chan *os.File, 1)
	if err := onThrowAwayThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		ch <- f
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ns := <-ch
	t.Cleanup(func() { ns.Close() })
	in(t, ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	})
	return ns
}

// newHosts makes count machines 10.9.0.1, 10.9.0.2, … joined by a switch, with
// pods at 10.8.1.0/24, 10.8.2.0/24, …, each with routes to all others.
func newHosts(t *testing.T, count, mtu int) []*host {
	t.Helper()
	sw := newNamespace(t)
	in(t, sw, func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", MTU: mtu, Flags: net.FlagUp}})
	})
	var hosts []*host
	for i := range count {
		h := &host{
			t: t, ns: newNamespace(t), dir: filepath.Join(t.TempDir(), "netns"),
			ip:   netip.AddrFrom4([4]byte{10, 9, 0, byte(i + 1)}),
			cidr: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 8, byte(i + 1), 0}), 24),
		}
		in(t, sw, func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.MTU, attrs.Flags = fmt.Sprintf("port%d", i), mtu, net.FlagUp
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(int(h.ns.Fd()))}); err != nil {
				return err
			}
			br, err := netlink.LinkByName("br0")
			if err != nil {
				return err
			}
			port, err := netlink.LinkByName(attrs.Name)
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetMaster(port, br), netlink.LinkSetUp(br))
		})
		h.in(func() error {
			eth0, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(h.ip, 24))}), netlink.LinkSetUp(eth0))
		})
		h.net = h.newNetwork()
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		var routes []agent.Route
		for _, other := range hosts {
			if other != h {
				routes = append(routes, agent.Route{Node: other.ip.String(), Via: other.ip, PodCIDRs: []netip.Prefix{other.cidr}})
			}
		}
		h.in(func() error { return h.net.Configure(context.Background(), []netip.Prefix{h.cidr}, routes) })
		t.Cleanup(func() { h.in(func() error { return h.net.Remove(context.Background()) }) })
	}
	return hosts
}

// newNetwork is what an agent that starts anew has.
func (h *host) newNetwork() *Network {
	h.t.Helper()
	n, err := New(Config{NetNSDir: h.dir, Logger: slog.New(slog.NewTextHandler(h.t.Output(), nil))})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

func openPod(t *testing.T, at agent.Attachment) *os.File {
	t.Helper()
	ns, err := os.Open(at.NetNS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// serve answers each connection in namespace ns with the client's address.
func serve(t *testing.T, ns *os.File) {
	t.Helper()
	var l net.Listener
	in(t, ns, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "0.0.0.0:80")
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, host)
			c.Close()
		}
	}()
}

// ask connects from namespace ns to ip and returns the address under which ns
// is seen there.
func ask(t *testing.T, ns *os.File, ip netip.Addr) (string, error) {
	t.Helper()
	var (
		seen string
		err  error
	)
	in(t, ns, func() error {
		var c net.Conn
		// One address and no name: the dial stays on this thread.
		c, err = (&net.Dialer{Timeout: 2 * time.Second, FallbackDelay: -1}).Dial("tcp4", netip.AddrPortFrom(ip, 80).String())
		if err != nil {
			return nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		var data []byte
		data, err = io.ReadAll(c)
		seen = string(data)
		return nil
	})
	return seen, err
}

// TestTraffic sends traffic over every kind of path, and sees by what source
// address the other side sees it.
func TestTraffic(t *testing.T) {
	hosts := newHosts(t, 3, 1450)
	a, b, outside := hosts[0], hosts[1], hosts[2]
	// outside is no node: the two do not know its pods, it does not know theirs.
	outside.in(func() error { return outside.net.Remove(context.Background()) })
	for i, h := range hosts[:2] {
		other := hosts[1-i]
		h.in(func() error {
			return h.net.Configure(context.Background(), []netip.Prefix{h.cidr}, []agent.Route{{Node: "other", Via: other.ip, PodCIDRs: []netip.Prefix{other.cidr}}})
		})
	}
	atA1, atA2, atB := a.attach("a1"), a.attach("a2"), b.attach("b")
	a1, a2, b1 := openPod(t, atA1), openPod(t, atA2), openPod(t, atB)
	for _, ns := range []*os.File{a1, a2, b1, a.ns, b.ns, outside.ns} {
		serve(t, ns)
	}
	podA1, podA2, podB := atA1.IPs[0], atA2.IPs[0], atB.IPs[0]
	for _, c := range []struct {
		name string
		from *os.File
		to   netip.Addr
		want netip.Addr
	}{
		{"a pod reaches itself", a1, podA1, podA1},
		{"a pod reaches another of its node", a1, podA2, podA1},
		{"a pod reaches one of another node", a1, podB, podA1},
		{"and the other way round", b1, podA2, podB},
		{"a node reaches its pod", a.ns, podA1, a.ip},
		{"a node reaches another node's pod", b.ns, podA1, b.ip},
		{"a pod reaches its node", a1, a.ip, podA1},
		{"a pod reaches another node", a1, b.ip, podA1},
		{"a pod appears outside as its node", a1, outside.ip, a.ip},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen, err := ask(t, c.from, c.to)
			if err != nil || seen != c.want.String() {
				t.Errorf("seen as %q, error %v; want %s", seen, err, c.want)
			}
		})
	}
	t.Run("an address of nobody is refused at once", func(t *testing.T) {
		nobody := netip.AddrFrom4([4]byte{10, 8, 1, 200})
		began := time.Now()
		_, err := ask(t, a1, nobody)
		if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("after %s: %v, want that it is unreachable", time.Since(began), err)
		}
	})
	t.Run("a pod's packets are as large as the uplink's", func(t *testing.T) {
		h, err := netlink.NewHandleAt(netns.NsHandle(a1.Fd()), unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		link, err := h.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if link.Attrs().MTU != 1450 {
			t.Errorf("MTU is %d, want the uplink's 1450", link.Attrs().MTU)
		}
	})
	t.Run("a detached pod is not reachable", func(t *testing.T) {
		a.in(func() error { return a.net.Detach(context.Background(), "a2") })
		if seen, err := ask(t, b1, podA2); err == nil {
			t.Errorf("it answered: seen as %q", seen)
		}
	})
}

// TestRestart does what an agent does after a crash: everything again, with no
// memory of what was.
func TestRestart(t *testing.T) {
	h := newHosts(t, 1, 1500)[0]
	ctx := context.Background()
	first, second := h.attach("one"), h.attach("two")
	if first.IPs[0] == second.IPs[0] {
		t.Fatalf("both pods have %v", first.IPs)
	}
	h.net = h.newNetwork()
	h.in(func() error {
		if _, err := h.net.Attach(ctx, "three"); !errors.Is(err, ErrNoPodCIDR) {
			return fmt.Errorf("a new pod before Configure: error %v, want ErrNoPodCIDR", err)
		}
		at, err := h.net.Attach(ctx, "one")
		if err == nil && !slices.Equal(at.IPs, first.IPs) {
			err = fmt.Errorf("a known pod before Configure: has %v now, had %v", at.IPs, first.IPs)
		}
		return err
	})
	h.in(func() error { return h.net.Configure(ctx, []netip.Prefix{h.cidr}, nil) })
	if third := h.attach("three"); third.IPs[0] == first.IPs[0] || third.IPs[0] == second.IPs[0] {
		t.Errorf("the new pod has %v, which is taken", third.IPs)
	}
	var list map[string]agent.Attachment
	h.in(func() (err error) {
		list, err = h.net.List(ctx)
		return err
	})
	if len(list) != 3 || !slices.Equal(list["two"].IPs, second.IPs) || list["two"].NetNS != second.NetNS {
		t.Errorf("list is %v, want one, two with %v, and three", list, second)
	}
	for range 2 { // the second time there is nothing
		h.in(func() error { return h.net.Detach(ctx, "two") })
	}
	h.in(func() (err error) {
		list, err = h.net.List(ctx)
		return err
	})
	if _, there := list["two"]; there || len(list) != 2 {
		t.Errorf("after Detach the list is %v", list)
	}
	if fourth := h.attach("four"); fourth.IPs[0] == second.IPs[0] {
		t.Errorf("the address %v was given out again at once", second.IPs)
	}
}

// TestRepair breaks an attached pod in ways that crashes and people do.
func TestRepair(t *testing.T) {
	h := newHosts(t, 1, 1500)[0]
	other := h.attach("other")
	otherNS := openPod(t, other)
	for _, c := range []struct {
		name string
		hurt func(t *testing.T, at agent.Attachment, ns *os.File) error
		same bool // the address stays
	}{
		{"address removed", func(t *testing.T, at agent.Attachment, ns *os.File) error {
			in(t, ns, func() error {
				link, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.AddrDel(link, &netlink.Addr{IPNet: hostNet(at.IPs[0])})
			})
			return nil
		}, true},
		{"route removed", func(t *testing.T, at agent.Attachment, ns *os.File) error {
			return netlink.RouteDel(&netlink.Route{Dst: hostNet(at.IPs[0]), Scope: netlink.SCOPE_LINK, Table: unix.RT_TABLE_MAIN})
		}, true},
		{"link down", func(t *testing.T, at agent.Attachment, ns *os.File) error {
			link, err := netlink.LinkByName(linkName("pod"))
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(link)
		}, true},
		{"namespace unmounted", func(t *testing.T, at agent.Attachment, ns *os.File) error {
			return unix.Unmount(at.NetNS, unix.MNT_DETACH)
		}, true},
		{"veth removed", func(t *testing.T, at agent.Attachment, ns *os.File) error {
			link, err := netlink.LinkByName(linkName("pod"))
			if err != nil {
				return err
			}
			return netlink.LinkDel(link)
		}, false},
		{"alias not yet set", func(t *testing.T, at agent.Attachment, ns *os.File) error {
			link, err := netlink.LinkByName(linkName("pod"))
			if err != nil {
				return err
			}
			return netlink.LinkSetAlias(link, "")
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := h.attach("pod")
			ns := openPod(t, at)
			h.in(func() error { return c.hurt(t, at, ns) })
			again := h.attach("pod")
			if c.same && again.IPs[0] != at.IPs[0] {
				t.Errorf("the pod had %v and has %v now", at.IPs, again.IPs)
			}
			pod := openPod(t, again)
			serve(t, pod)
			if seen, err := ask(t, otherNS, again.IPs[0]); err != nil || seen != other.IPs[0].String() {
				t.Errorf("the repaired pod is not reached: seen as %q, error %v", seen, err)
			}
		})
	}
}

func routeTexts(t *testing.T, h *host) []string {
	t.Helper()
	var texts []string
	h.in(func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			to, ok := destination(r)
			if !ok || r.Protocol == unix.RTPROT_KERNEL {
				continue
			}
			what := "via " + r.Gw.String()
			if r.Type == unix.RTN_UNREACHABLE {
				what = "unreachable"
			}
			texts = append(texts, fmt.Sprintf("%s %s proto %d", to, what, r.Protocol))
		}
		return err
	})
	slices.Sort(texts)
	return texts
}

// TestRoutes gives one node a series of configurations, and reads the kernel's
// table after each.
func TestRoutes(t *testing.T) {
	h := newHosts(t, 1, 1500)[0]
	own := []netip.Prefix{netip.MustParsePrefix("10.8.1.0/24")}
	to := func(node, via string, cidrs ...string) agent.Route {
		r := agent.Route{Node: node}
		if via != "" {
			r.Via = netip.MustParseAddr(via)
		}
		for _, c := range cidrs {
			r.PodCIDRs = append(r.PodCIDRs, netip.MustParsePrefix(c))
		}
		return r
	}
	foreign := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.8.77.0/24")), Gw: net.IPv4(10, 9, 0, 77), Protocol: unix.RTPROT_STATIC}
	h.in(func() error { return netlink.RouteAdd(foreign) })
	const foreignText = "10.8.77.0/24 via 10.9.0.77 proto 4"

	for _, c := range []struct {
		name   string
		own    []netip.Prefix
		routes []agent.Route
		want   []string
		err    string
	}{
		{
			"two nodes", own,
			[]agent.Route{to("n2", "10.9.0.2", "10.8.2.0/24"), to("n3", "10.9.0.3", "10.8.3.0/24", "10.8.4.0/24")},
			[]string{"10.8.1.0/24 unreachable proto 72", "10.8.2.0/24 via 10.9.0.2 proto 72", "10.8.3.0/24 via 10.9.0.3 proto 72", "10.8.4.0/24 via 10.9.0.3 proto 72"},
			"",
		},
		{
			"the same again", own,
			[]agent.Route{to("n2", "10.9.0.2", "10.8.2.0/24"), to("n3", "10.9.0.3", "10.8.3.0/24", "10.8.4.0/24")},
			[]string{"10.8.1.0/24 unreachable proto 72", "10.8.2.0/24 via 10.9.0.2 proto 72", "10.8.3.0/24 via 10.9.0.3 proto 72", "10.8.4.0/24 via 10.9.0.3 proto 72"},
			"",
		},
		{
			"a node gone, another with a new address", own,
			[]agent.Route{to("n3", "10.9.0.33", "10.8.3.0/24")},
			[]string{"10.8.1.0/24 unreachable proto 72", "10.8.3.0/24 via 10.9.0.33 proto 72"},
			"",
		},
		{
			"a range wider than before", own,
			[]agent.Route{to("n3", "10.9.0.33", "10.8.2.0/23")},
			[]string{"10.8.1.0/24 unreachable proto 72", "10.8.2.0/23 via 10.9.0.33 proto 72"},
			"",
		},
		{
			"a node beyond a router does not harm the others", own,
			[]agent.Route{to("far", "172.16.0.1", "10.8.9.0/24"), to("n2", "10.9.0.2", "10.8.2.0/24")},
			[]string{"10.8.1.0/24 unreachable proto 72", "10.8.2.0/24 via 10.9.0.2 proto 72"},
			"pods of far, via 172.16.0.1: no link of this node leads there",
		},
		{
			"nor does one without an address", own,
			[]agent.Route{to("new", "", "10.8.9.0/24"), to("n2", "10.9.0.2", "10.8.2.0/24")},
			[]string{"10.8.1.0/24 unreachable proto 72", "10.8.2.0/24 via 10.9.0.2 proto 72"},
			"pods of new: the node has no address",
		},
		{
			"nor one with another's range", own,
			[]agent.Route{to("n2", "10.9.0.2", "10.8.2.0/24"), to("thief", "10.9.0.4", "10.8.2.128/25")},
			[]string{"10.8.1.0/24 unreachable proto 72", "10.8.2.0/24 via 10.9.0.2 proto 72"},
			"pods of thief at 10.8.2.128/25 overlap with those of n2",
		},
		{
			"a foreign route is not replaced", own,
			[]agent.Route{to("n77", "10.9.0.2", "10.8.77.0/24")},
			[]string{"10.8.1.0/24 unreachable proto 72"},
			"another owner (static) is in the way",
		},
		{
			"IPv6 is refused by name", append([]netip.Prefix{netip.MustParsePrefix("fd00::/64")}, own...), nil,
			[]string{"10.8.1.0/24 unreachable proto 72"},
			"only IPv4 is supported yet",
		},
		{"no pod CIDR", nil, nil, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.in(func() error {
				err := h.net.Configure(context.Background(), c.own, c.routes)
				if c.err == "" && err != nil {
					return err
				}
				if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
					t.Errorf("error is %v, want one with %q", err, c.err)
				}
				return nil
			})
			want := append([]string{foreignText}, c.want...)
			slices.Sort(want)
			if have := routeTexts(t, h); !slices.Equal(have, want) {
				t.Errorf("routes are\n%s\nwant\n%s", strings.Join(have, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// TestConfigureKeepsPods guards the routes to pods, which are ours as well,
// against Configure's removal of what is not named.
func TestConfigureKeepsPods(t *testing.T) {
	h := newHosts(t, 1, 1500)[0]
	at := h.attach("pod")
	serve(t, openPod(t, at))
	h.in(func() error { return h.newNetwork().Configure(context.Background(), nil, nil) })
	if _, err := ask(t, h.ns, at.IPs[0]); err != nil {
		t.Errorf("the pod is not reached after Configure without its CIDR: %v", err)
	}
}

// kernelState is all that a Network may leave behind.
func kernelState(t *testing.T, h *host) string {
	t.Helper()
	var b strings.Builder
	h.in(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			fmt.Fprintf(&b, "link %s %s\n", l.Attrs().Name, l.Attrs().Alias)
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			fmt.Fprintf(&b, "route %s\n", r)
		}
		neighbours, err := netlink.NeighList(0, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, n := range neighbours {
			fmt.Fprintf(&b, "neighbour %s %s\n", n.IP, n.HardwareAddr)
		}
		tables, err := (&nftables.Conn{}).ListTables()
		if err != nil {
			return err
		}
		for _, table := range tables {
			fmt.Fprintf(&b, "table %s\n", table.Name)
		}
		return nil
	})
	mounts, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, h.dir) {
			b.WriteString(line)
		}
	}
	if _, err := os.Stat(h.dir); err == nil {
		fmt.Fprintf(&b, "directory %s\n", h.dir)
	}
	return b.String()
}

func TestRemoveLeavesNothing(t *testing.T) {
	h := newHosts(t, 1, 1500)[0]
	ctx := context.Background()
	h.in(func() error { return h.net.Remove(ctx) })
	before := kernelState(t, h)

	// A link of somebody else whose name only looks like ours.
	h.in(func() error {
		return h.net.Configure(ctx, []netip.Prefix{h.cidr}, []agent.Route{{Node: "b", Via: netip.MustParseAddr("10.9.0.9"), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.8.9.0/24")}}})
	})
	for i := range 5 {
		h.attach(fmt.Sprintf("pod-%d", i))
	}
	during := kernelState(t, h)
	for _, want := range []string{"table " + tableName, "10.8.9.0/24", "holdfast pod pod-4 ", filepath.Join(h.dir, "pod-4")} {
		if !strings.Contains(during, want) {
			t.Errorf("%q is not in the kernel's state before Remove:\n%s", want, during)
		}
	}
	for range 2 { // the second time there is nothing to remove
		h.in(func() error { return h.newNetwork().Remove(ctx) })
	}
	if after := kernelState(t, h); after != before {
		t.Errorf("Remove leaves something. Before:\n%s\nafter:\n%s", before, after)
	}
}

// TestForeignRules: tables of others, on the same hooks and with names like ours, are
// as they were after all that a network does.
func TestForeignRules(t *testing.T) {
	h := newHosts(t, 1, 1500)[0]
	ctx := context.Background()
	h.in(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		for _, name := range []string{"firewall", "holdfast-not"} {
			for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
				table := conn.AddTable(&nftables.Table{Name: name, Family: family})
				chain := conn.AddChain(&nftables.Chain{Name: "input", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
				conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}})
			}
		}
		return conn.Flush()
	})
	foreign := func() (texts []string) {
		h.in(func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			chains, err := conn.ListChains()
			if err != nil {
				return err
			}
			for _, chain := range chains {
				if name := chain.Table.Name; name != "firewall" && name != "holdfast-not" {
					continue
				}
				rules, err := conn.GetRules(chain.Table, chain)
				if err != nil {
					return err
				}
				for _, rule := range rules {
					texts = append(texts, fmt.Sprint(chain.Table.Family, chain.Table.Name, chain.Name, rule.Handle, len(rule.Exprs)))
				}
			}
			return nil
		})
		slices.Sort(texts)
		return texts
	}
	before := foreign()
	if len(before) != 4 {
		t.Fatalf("rules of others are %q", before)
	}
	for range 2 {
		h.net = h.newNetwork()
		h.in(func() error { return h.net.Configure(ctx, []netip.Prefix{h.cidr}, nil) })
		h.attach("pod")
		h.in(func() error {
			return h.net.SetHostPorts(ctx, "pod", []agent.HostPort{{Protocol: "TCP", HostPort: 80, Port: 80}})
		})
		h.in(func() error { return h.net.Program(ctx, netstate.Empty("n1")) })
	}
	if now := foreign(); !slices.Equal(now, before) {
		t.Errorf("rules of others were %q and are %q", before, now)
	}
	h.in(func() error { return h.net.Remove(ctx) })
	if now := foreign(); !slices.Equal(now, before) {
		t.Errorf("after Remove, rules of others were %q and are %q", before, now)
	}
}

// TestAttachLatency prints what a pod's network costs.
func TestAttachLatency(t *testing.T) {
	h := newHosts(t, 1, 1500)[0]
	const pods = 20
	var attach, detach time.Duration
	h.in(func() error {
		for i := range pods {
			began := time.Now()
			if _, err := h.net.Attach(context.Background(), fmt.Sprintf("pod-%d", i)); err != nil {
				return err
			}
			attach += time.Since(began)
		}
		for i := range pods {
			began := time.Now()
			if err := h.net.Detach(context.Background(), fmt.Sprintf("pod-%d", i)); err != nil {
				return err
			}
			detach += time.Since(began)
		}
		return nil
	})
	t.Logf("mean of %d pods: attach %s, detach %s", pods, attach/pods, detach/pods)
}

// TestThreads makes sure that making namespaces leaves no thread of this process
// in one of them: whatever the process opened next would then be there.
func TestThreads(t *testing.T) {
	h := newHosts(t, 1, 1500)[0]
	for i := range 10 {
		h.attach(fmt.Sprintf("pod-%d", i))
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		ns, err := os.Readlink(filepath.Join("/proc/self/task", task.Name(), "ns/net"))
		if err == nil && ns != home {
			// A thread that has just been thrown away may still be on its way out.
			deadline := time.Now().Add(5 * time.Second)
			for time.Now().Before(deadline) && err == nil {
				time.Sleep(time.Millisecond)
				_, err = os.Readlink(filepath.Join("/proc/self/task", task.Name(), "ns/net"))
			}
			if err == nil {
				t.Errorf("thread %s stays in namespace %s, not the process's %s", task.Name(), ns, home)
			}
		}
	}
}
