package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent"
)

// TestMain lets this program be the process of the tunnels as well.
func TestMain(m *testing.M) {
	if IsTunnel(os.Args) {
		os.Exit(TunnelMain(os.Args))
	}
	os.Exit(m.Run())
}

// site is machines in several networks, and the router between these, which knows
// nothing of pods.
type site struct {
	t      *testing.T
	router *os.File
	hosts  []*siteHost
}

type siteHost struct {
	host
	cfg  Config
	said string // what the others have been told
}

// newSite makes a machine for each address, such as 10.9.1.2/24, with pods at
// 10.8.<number from 1>.0/24. change is called with each machine's configuration.
func newSite(t *testing.T, change func(i int, cfg *Config), addresses ...string) *site {
	t.Helper()
	s := &site{t: t, router: newNamespace(t)}
	in(t, s.router, func() error { return setSysctl("net/ipv4/ip_forward", "1") })
	for i, text := range addresses {
		h := &siteHost{host: host{t: t, ns: newNamespace(t), dir: filepath.Join(t.TempDir(), "netns")}}
		h.cidr = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 8, byte(i + 1), 0}), 24)
		s.connect(h, i)
		s.move(h, text)
		h.cfg = Config{
			NetNSDir: h.dir, Address: h.ip, TunnelProgram: os.Executable,
			Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		}
		if change != nil {
			change(i, &h.cfg)
		}
		h.start()
		s.hosts = append(s.hosts, h)
		t.Cleanup(func() { h.in(func() error { return h.net.Remove(context.Background()) }) })
	}
	return s
}

// start is an agent that starts anew.
func (h *siteHost) start() {
	h.t.Helper()
	var err error
	if h.net, err = New(h.cfg); err != nil {
		h.t.Fatal(err)
	}
}

// connect makes the cable between a machine and the router's.
func (s *site) connect(h *siteHost, i int) {
	in(s.t, s.router, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Flags = fmt.Sprintf("port%d", i), net.FlagUp
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(h.ns.Fd()))})
	})
	h.dir = filepath.Clean(h.dir)
	h.in(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(eth0)
	})
}

// move gives a machine an address, instead of the one it had, in that network.
func (s *site) move(h *siteHost, text string) {
	s.t.Helper()
	p := netip.MustParsePrefix(text)
	network := p.Masked().Addr().As4()
	bridge := fmt.Sprintf("br%d", network[2])
	gate := netip.AddrFrom4([4]byte{network[0], network[1], network[2], 254})
	var port string
	h.in(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if h.ip.IsValid() {
			have, err := netlink.AddrList(eth0, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, a := range have {
				if err := netlink.AddrDel(eth0, &a); err != nil {
					return err
				}
			}
		}
		port = fmt.Sprint(eth0.Attrs().ParentIndex)
		return netlink.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(p)})
	})
	h.ip = p.Addr()
	in(s.t, s.router, func() error {
		br, err := netlink.LinkByName(bridge)
		if isNotFound(err) {
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge, MTU: 1500, Flags: net.FlagUp}}); err != nil {
				return err
			}
			if br, err = netlink.LinkByName(bridge); err != nil {
				return err
			}
			err = errors.Join(netlink.AddrAdd(br, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gate, p.Bits()))}), netlink.LinkSetUp(br))
		}
		if err != nil {
			return err
		}
		var index int
		_, _ = fmt.Sscan(port, &index)
		cable, err := netlink.LinkByIndex(index)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(cable, br)
	})
	h.in(func() error { return netlink.RouteReplace(&netlink.Route{Gw: gate.AsSlice()}) })
}

// configure configures all machines, as their agents do when they are told what the
// others said last.
func (s *site) configure() error {
	var failed error
	for i, h := range s.hosts {
		var routes []agent.Route
		for j, other := range s.hosts {
			if j != i {
				routes = append(routes, agent.Route{Node: fmt.Sprintf("n%d", j+1), Via: other.ip, PodCIDRs: []netip.Prefix{other.cidr}, Announced: other.said})
			}
		}
		h.in(func() error {
			failed = errors.Join(failed, h.net.Configure(context.Background(), []netip.Prefix{h.cidr}, routes))
			return nil
		})
	}
	return failed
}

// settle lets all machines tell one another what they have to say, until nothing is
// new.
func (s *site) settle() {
	s.t.Helper()
	for range 10 {
		err := s.configure()
		news := false
		for _, h := range s.hosts {
			if now := h.net.Announcement(); now != h.said {
				h.said, news = now, true
			}
		}
		if !news {
			if err != nil {
				s.t.Fatal(err)
			}
			return
		}
	}
	s.t.Fatal("the machines always have something new to say")
}

// waitReached asks from a pod until another answers.
func waitReached(t *testing.T, from *os.File, to, want netip.Addr) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		seen, err := ask(t, from, to)
		if err == nil && seen == want.String() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not reached: seen as %q, error %v; want %s", to, seen, err, want)
		}
	}
}

// podMTU is the largest packet that a pod sends.
func podMTU(t *testing.T, pod *os.File) int {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(pod.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().MTU
}

// stream is a connection that says something all the time, and is answered. It counts
// what came back.
type stream struct {
	t    *testing.T
	conn net.Conn

	mu      sync.Mutex
	echoed  int
	ended   error
	written chan struct{}
}

// words is what streams say, so that it is found in what passes by.
var words = bytes.Repeat([]byte("what pods tell one another "), 300)

// newStream connects from a pod to port 7 of another and keeps talking until the test ends.
func newStream(t *testing.T, from, to *os.File, ip netip.Addr) *stream {
	t.Helper()
	var l net.Listener
	in(t, to, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "0.0.0.0:7")
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	s := &stream{t: t, written: make(chan struct{})}
	in(t, from, func() (err error) {
		s.conn, err = (&net.Dialer{Timeout: 10 * time.Second, FallbackDelay: -1}).Dial("tcp4", netip.AddrPortFrom(ip, 7).String())
		return err
	})
	go func() {
		defer close(s.written)
		back := make([]byte, len(words))
		for {
			_, err := s.conn.Write(words)
			if err == nil {
				_, err = io.ReadFull(s.conn, back)
			}
			if err == nil && !bytes.Equal(back, words) {
				err = errors.New("something else came back")
			}
			s.mu.Lock()
			if err != nil {
				s.ended = err
				s.mu.Unlock()
				return
			}
			s.echoed++
			s.mu.Unlock()
			time.Sleep(time.Millisecond)
		}
	}()
	t.Cleanup(func() {
		s.conn.Close()
		<-s.written
	})
	return s
}

// goesOn fails unless the stream goes on: what is said from now on comes back, within
// a time that a few packets sent again may take.
func (s *stream) goesOn(when string) {
	s.t.Helper()
	s.mu.Lock()
	before := s.echoed
	s.mu.Unlock()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		now, ended := s.echoed, s.ended
		s.mu.Unlock()
		switch {
		case ended != nil:
			s.t.Fatalf("%s: the connection ended: %v", when, ended)
		case now >= before+20:
			return
		case time.Now().After(deadline):
			s.t.Fatalf("%s: the connection stands still", when)
		}
	}
}

// capture reads all that passes a machine until stopped, and says what of it contains
// the words of streams.
type capture struct {
	t    *testing.T
	fd   int
	done chan struct{}

	mu             sync.Mutex
	packets, plain int
	udp            map[uint16]int // packets by their UDP destination port
}

func newCapture(t *testing.T, ns *os.File) *capture {
	t.Helper()
	c := &capture{t: t, done: make(chan struct{}), udp: map[uint16]int{}}
	in(t, ns, func() (err error) {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})
	})
	stop := make(chan struct{})
	go func() {
		defer close(c.done)
		buf := make([]byte, 1<<16)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, _, err := unix.Recvfrom(c.fd, buf, 0)
			if err != nil {
				continue
			}
			c.mu.Lock()
			c.packets++
			if bytes.Contains(buf[:n], []byte("pods tell one another")) {
				c.plain++
			}
			if n > 38 && buf[12] == 8 && buf[13] == 0 && buf[14] == 0x45 && buf[23] == unix.IPPROTO_UDP {
				c.udp[uint16(buf[36])<<8|uint16(buf[37])]++
			}
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-c.done
		unix.Close(c.fd)
	})
	return c
}

func (c *capture) seen() (packets, plain int, udp map[uint16]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	udp = map[uint16]int{}
	for port, n := range c.udp {
		udp[port] = n
	}
	return c.packets, c.plain, udp
}

// TestAcrossRouter: pods of machines in two networks reach each other through the
// router, which knows nothing of pods, and those on one network directly; a machine
// that moves is followed, and a connection lives through it.
func TestAcrossRouter(t *testing.T) {
	s := newSite(t, nil, "10.9.0.1/24", "10.9.0.2/24", "10.9.1.3/24")
	s.settle()
	var ats []agent.Attachment
	var pods []*os.File
	for i, h := range s.hosts {
		at := h.attach(fmt.Sprintf("pod-%d", i))
		ats, pods = append(ats, at), append(pods, openPod(t, at))
		serve(t, pods[i])
	}
	for i, from := range pods {
		for j, to := range ats {
			if i != j {
				waitReached(t, from, to.IPs[0], ats[i].IPs[0])
			}
		}
	}
	for i, want := range []int{1450, 1450, 1450} {
		if got := podMTU(t, pods[i]); got != want {
			t.Errorf("packets of the pod on machine %d are up to %d, want %d", i+1, got, want)
		}
	}
	// The node itself is seen with the address that it has among its pods: the router
	// would lead an answer to any other past the link that the packet came by.
	if seen, err := ask(t, s.hosts[2].ns, ats[0].IPs[0]); err != nil || seen != "10.8.3.1" {
		t.Errorf("the third machine is seen as %q, error %v; want 10.8.3.1", seen, err)
	}
	wrapped := newCapture(t, s.router)
	far, near := newStream(t, pods[0], pods[2], ats[2].IPs[0]), newStream(t, pods[1], pods[0], ats[0].IPs[0])
	far.goesOn("across the router")
	near.goesOn("within a network")
	if _, _, udp := wrapped.seen(); udp[vxlanPort] == 0 {
		t.Errorf("nothing was wrapped: UDP packets by port %v", udp)
	}

	// The agents start anew: nothing of it is touched.
	for _, h := range s.hosts {
		h.start()
	}
	far.goesOn("after the agents are gone")
	s.settle()
	far.goesOn("after the agents have started anew")

	// The third machine moves to the others' network: all go directly now.
	third := s.hosts[2]
	s.move(third, "10.9.0.3/24")
	third.net.SetAddress(third.ip)
	s.settle()
	far.goesOn("after the machine moved onto the network")
	_, _, before := wrapped.seen()
	far.goesOn("directly")
	if _, _, udp := wrapped.seen(); udp[vxlanPort] != before[vxlanPort] {
		t.Error("machines on one network still wrap")
	}
	if got := podMTU(t, pods[0]); got != 1500 {
		t.Errorf("without a router between them pods send up to %d, want 1500", got)
	}
	// And to a third network, from which nobody is a neighbour.
	s.move(third, "10.9.2.3/24")
	third.net.SetAddress(third.ip)
	s.settle()
	far.goesOn("after the machine moved away")
	near.goesOn("at all times")
	if got := podMTU(t, pods[0]); got != 1450 {
		t.Errorf("with a router between them again pods send up to %d, want 1450", got)
	}
}

// TestEncryption: two machines of three ask for it. Nothing that pods say passes in
// the clear between any of the three, whichever asked; keys change while connections
// go on, and so does the way when encryption is asked for.
func TestEncryption(t *testing.T) {
	const period = 2 * time.Second
	s := newSite(t, func(i int, cfg *Config) {
		cfg.KeyPeriod = period
	}, "10.9.0.1/24", "10.9.0.2/24", "10.9.1.3/24")
	s.settle()
	var ats []agent.Attachment
	var pods []*os.File
	for i, h := range s.hosts {
		at := h.attach(fmt.Sprintf("pod-%d", i))
		ats, pods = append(ats, at), append(pods, openPod(t, at))
		serve(t, pods[i])
	}
	near, far := newStream(t, pods[0], pods[1], ats[1].IPs[0]), newStream(t, pods[2], pods[0], ats[0].IPs[0])
	near.goesOn("in the clear")
	far.goesOn("in the clear")
	clear := newCapture(t, s.router)
	near.goesOn("in the clear")
	if _, plain, _ := clear.seen(); plain == 0 {
		t.Fatal("the capture sees nothing of what pods say, so it would prove nothing")
	}

	// One machine's agent is started with encryption.
	first := s.hosts[0]
	first.cfg.Encrypt = true
	first.start()
	s.settle()
	near.goesOn("encrypted")
	far.goesOn("encrypted")
	sealed := newCapture(t, s.router)
	near.goesOn("encrypted")
	far.goesOn("encrypted")
	if packets, plain, udp := sealed.seen(); plain != 0 || packets == 0 || udp[51871]+udp[51872] == 0 {
		t.Errorf("of %d packets %d have what pods say; UDP packets by port: %v", packets, plain, udp)
	}
	if got := podMTU(t, pods[0]); got != 1420 {
		t.Errorf("pods send up to %d, want 1420", got)
	}

	// Keys change, all of them, several times, while connections go on.
	keys := map[string]bool{}
	ports := map[uint16]bool{}
	_, _, last := sealed.seen()
	for deadline := time.Now().Add(60 * time.Second); len(keys) < 3*len(tunnelLinks)*3 || len(ports) < len(tunnelLinks); {
		s.settle()
		for _, h := range s.hosts {
			a := announcement{}
			others, _ := otherNodes([]agent.Route{{Announced: h.said}})
			if a = others[0].announcement; len(a.Tunnels) != len(tunnelLinks) {
				t.Fatalf("a machine announces %s", h.said)
			}
			for _, tunnel := range a.Tunnels {
				keys[tunnel.Key.String()] = true
			}
		}
		near.goesOn("while keys change")
		far.goesOn("while keys change")
		_, _, now := sealed.seen()
		for _, port := range []uint16{51871, 51872} {
			if now[port]-last[port] > 20 { // more than what keeps it alive
				ports[port] = true
			}
		}
		last = now
		if time.Now().After(deadline) {
			t.Fatalf("%d keys were seen, tunnels that carried: %v", len(keys), ports)
		}
	}
	if _, plain, _ := sealed.seen(); plain != 0 {
		t.Errorf("%d packets had what pods say", plain)
	}

	// The agents are gone and come back: the tunnels have not noticed.
	said := first.said
	for _, h := range s.hosts {
		h.cfg.KeyPeriod = 24 * time.Hour
		h.start()
	}
	near.goesOn("while the agents are gone")
	s.settle()
	if first.said != said && !strings.Contains(said, `"encrypt":true`) {
		t.Errorf("an agent that starts anew says %s, not %s", first.said, said)
	}
	near.goesOn("after the agents have started anew")

	// Encryption is given up again.
	first.cfg.Encrypt = false
	first.start()
	s.settle()
	near.goesOn("in the clear again")
	far.goesOn("in the clear again")
	if got := podMTU(t, pods[1]); got != 1450 {
		t.Errorf("in the clear pods send up to %d, want 1450", got)
	}
}
