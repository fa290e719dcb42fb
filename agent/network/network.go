package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent"
)

// Protocol marks our routes, as "proto 72" in ip-route's words. It is none of
// those that /etc/iproute2/rt_protos knows.
const Protocol netlink.RouteProtocol = 72

// ErrNoPodCIDR is returned by Attach while the node has no pod CIDR.
var ErrNoPodCIDR = errors.New("the node has no pod CIDR yet")

// Config is what a [Network] needs.
type Config struct {
	// NetNSDir is where pods' network namespaces are bound, one file each, such
	// as /run/holdfast/n1/netns. Required, absolute; made when missing. Two nodes
	// of one machine must not share it. It should not outlive a reboot: what it
	// holds does not.
	NetNSDir string
	// NoMasquerade leaves out the nftables table that gives traffic from pods to
	// destinations outside the cluster the node's own address.
	NoMasquerade bool
	// Address is the node's own, at which other nodes reach it. Optional: without it,
	// what is on a link of the node is reached directly.
	Address netip.Addr
	// Overlay asks for VXLAN between this node and all others, also on one link: for
	// networks that drop packets with addresses they did not give out.
	Overlay bool
	// Encrypt asks for WireGuard between this node's pods and those of all others.
	Encrypt bool
	// TunnelPort and the one after it are the UDP ports of WireGuard. Optional: 51871.
	TunnelPort uint16
	// TunnelDir is where the process of the tunnels has its sockets, where the kernel has
	// no WireGuard. Optional: "tunnels" beside NetNSDir.
	TunnelDir string
	// TunnelProgram returns the file of a program that calls [TunnelMain] under the name
	// [TunnelName]. Optional: without it, encryption needs the kernel's.
	TunnelProgram func() (string, error)
	// KeyPeriod is how long a tunnel carries before the other does, whose key was
	// changed meanwhile. Optional: 24 h.
	KeyPeriod time.Duration
	Logger    *slog.Logger // optional; nil discards
}

// Network implements [agent.Network]. Safe for concurrent use. Apart from Detach,
// one call at a time does something, and takes milliseconds.
type Network struct {
	cfg Config
	log *slog.Logger

	mu         sync.Mutex     // held by every call but Detach
	podCIDRs   []netip.Prefix // from the last Configure
	lastIP     netip.Addr     // the address given out last, so that reuse comes late
	masquerade string         // what the nftables table was last set to

	want     []wantedRoute        // from the last Configure
	address  netip.Addr           // the node's own
	podMTU   int                  // from the last Configure; 0 before
	said     string               // the announcement
	idle     map[string]time.Time // links of ours that nothing needs, and since when
	services []netip.Prefix       // ranges of services' addresses, from the last Program

	plane  plane
	policy policyPlane
}

var (
	_ agent.Network      = (*Network)(nil)
	_ agent.Services     = (*Network)(nil)
	_ agent.Announcer    = (*Network)(nil)
	_ agent.HostPorts    = (*Network)(nil)
	_ agent.RangeChecker = (*Network)(nil)
	_ agent.NameServers  = (*Network)(nil)
)

// New makes a network. It touches nothing.
func New(cfg Config) (*Network, error) {
	if !filepath.IsAbs(cfg.NetNSDir) {
		return nil, fmt.Errorf("directory of network namespaces %q is not an absolute path", cfg.NetNSDir)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cfg.TunnelPort = cmp.Or(cfg.TunnelPort, 51871)
	cfg.TunnelDir = cmp.Or(cfg.TunnelDir, filepath.Join(filepath.Dir(cfg.NetNSDir), "tunnels"))
	cfg.KeyPeriod = cmp.Or(cfg.KeyPeriod, 24*time.Hour)
	return &Network{cfg: cfg, log: log, plane: plane{log: log}, policy: policyPlane{log: log}, address: cfg.Address.Unmap(), idle: map[string]time.Time{}}, nil
}

// SetAddress says that the node has another address. The next Configure acts on it.
func (n *Network) SetAddress(address netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.address = address.Unmap()
}

// Announcement implements [agent.Announcer].
func (n *Network) Announcement() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.said
}

// Configure sets the node's pod CIDRs, the routes to other nodes' pods, and the
// rules for what leaves the cluster. A route that cannot be set does not keep
// the others from being set; all errors come back together.
func (n *Network) Configure(ctx context.Context, podCIDRs []netip.Prefix, routes []agent.Route) error {
	others, refused := otherNodes(routes)
	err := n.do(ctx, func(h *netlink.Handle) error {
		if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil {
			return err
		}
		// For pods' links, below, to count: one of the two is enough to send them.
		if err := setSysctl("net/ipv4/conf/all/send_redirects", "0"); err != nil {
			return err
		}
		plan, failed := n.preparePaths(h, podCIDRs, others)
		want := plan.routes
		n.podCIDRs = nil
		for _, w := range want {
			if !w.via.IsValid() {
				n.podCIDRs = append(n.podCIDRs, w.to)
			}
		}
		n.want = want
		// Ways there first, then what leads to them, then what is in nobody's way any more.
		failed = errors.Join(failed, n.setLinks(h, podCIDRs, plan), setRoutes(h, withServices(want, n.services)), n.dropLinks(h, plan),
			n.setPodMTU(h, plan.podMTU), n.plane.setRanges(want), addNameServer(h))
		if n.cfg.NoMasquerade {
			return failed
		}
		if err := n.setMasquerade(want); err != nil {
			// Traffic within the cluster does not need it.
			n.log.Warn("pods cannot reach destinations outside the cluster: nftables refuses the masquerade rule", "error", err)
		}
		return failed
	})
	if err = errors.Join(refused, err); err != nil {
		return fmt.Errorf("configure the pods' network: %w", err)
	}
	return nil
}

// setServiceRoutes lets the node's own programs send to addresses of services:
// without a route, the kernel refuses before any rule is asked.
func (n *Network) setServiceRoutes(ctx context.Context, services []netip.Prefix) error {
	return n.do(ctx, func(h *netlink.Handle) error {
		if slices.Equal(n.services, services) {
			return nil
		}
		n.services = services
		if len(n.want) == 0 {
			return nil // Configure sets them with all others
		}
		return setRoutes(h, withServices(n.want, services))
	})
}

// Attach makes a pod's network namespace, with an address and a way out, or
// makes whole what is there. It returns [ErrNoPodCIDR] before Configure has been
// given one, and an error when all addresses are taken.
func (n *Network) Attach(ctx context.Context, podUID string) (agent.Attachment, error) {
	if err := checkUID(podUID); err != nil {
		return agent.Attachment{}, err
	}
	var at agent.Attachment
	err := n.do(ctx, func(h *netlink.Handle) (err error) {
		at, err = n.attach(h, podUID)
		return err
	})
	if err != nil {
		return agent.Attachment{}, fmt.Errorf("attach pod %s to the network: %w", podUID, err)
	}
	return at, nil
}

func (n *Network) attach(h *netlink.Handle, uid string) (agent.Attachment, error) {
	pods, err := listPods(h)
	if err != nil {
		return agent.Attachment{}, err
	}
	pod, known := pods[uid]
	if !known {
		if len(n.podCIDRs) == 0 {
			return agent.Attachment{}, ErrNoPodCIDR
		}
		taken := map[netip.Addr]bool{}
		for _, p := range pods {
			taken[p.ip] = true
		}
		ip, ok := nextFree(n.podCIDRs, taken, n.lastIP)
		if !ok {
			return agent.Attachment{}, fmt.Errorf("no address is free in %v: %d pods have one", n.podCIDRs, len(taken))
		}
		n.lastIP = ip
		pod = podLink{uid: uid, ip: ip}
	}
	path := filepath.Join(n.cfg.NetNSDir, uid)
	ns, err := openNetNS(path)
	if err != nil {
		return agent.Attachment{}, err
	}
	defer ns.Close()
	mtu := n.podMTU
	if mtu == 0 { // before Configure: a pod that is known
		if mtu, err = uplinkMTU(h); err != nil {
			return agent.Attachment{}, err
		}
	}
	// Before its first packet.
	if err := n.policy.admit(context.Background(), uid, []netip.Addr{pod.ip}); err != nil {
		return agent.Attachment{}, fmt.Errorf("make the rules of its policies: %w", err)
	}
	if err := connect(h, ns, pod, mtu); err != nil {
		return agent.Attachment{}, err
	}
	return agent.Attachment{NetNS: path, IPs: []netip.Addr{pod.ip}}, nil
}

// Detach takes a pod's address, its link and the name of its namespace away. The
// namespace itself ends with the last process in it.
func (n *Network) Detach(ctx context.Context, podUID string) error {
	if err := checkUID(podUID); err != nil {
		return err
	}
	if err := n.closeHostPorts(ctx, podUID); err != nil {
		return fmt.Errorf("detach pod %s from the network: %w", podUID, err)
	}
	// Without the mutex: the kernel takes tens of milliseconds to remove a link.
	// The pod's address stays taken until it has.
	err := withHandle(ctx, func(h *netlink.Handle) error {
		if err := disconnect(h, podUID); err != nil {
			return err
		}
		if err := n.policy.forget(ctx, podUID); err != nil {
			return fmt.Errorf("take away the rules of its policies: %w", err)
		}
		return closeNetNS(filepath.Join(n.cfg.NetNSDir, podUID))
	})
	if err != nil {
		return fmt.Errorf("detach pod %s from the network: %w", podUID, err)
	}
	return nil
}

// List returns all pods that have something here, so that what was left half
// made is found too: such a one may have no address.
func (n *Network) List(ctx context.Context) (map[string]agent.Attachment, error) {
	list := map[string]agent.Attachment{}
	err := n.do(ctx, func(h *netlink.Handle) error {
		names, err := netNSNames(n.cfg.NetNSDir)
		if err != nil {
			return err
		}
		for _, uid := range names {
			list[uid] = agent.Attachment{NetNS: filepath.Join(n.cfg.NetNSDir, uid)}
		}
		pods, err := listPods(h)
		if err != nil {
			return err
		}
		for uid, p := range pods {
			list[uid] = agent.Attachment{NetNS: filepath.Join(n.cfg.NetNSDir, uid), IPs: []netip.Addr{p.ip}}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list pods in the network: %w", err)
	}
	return list, nil
}

// Remove takes all away: pods' links and namespaces, routes, rules. Forwarding
// stays switched on, since others may have come to rely on it.
func (n *Network) Remove(ctx context.Context) error {
	err := n.do(ctx, func(h *netlink.Handle) error {
		failed := errors.Join(removeLinks(h), removeNameServer(h), setRoutes(h, nil), removeTable(tableName), removeTable(hostPortsTable), n.plane.remove(), n.policy.remove(), n.removePaths(h))
		n.masquerade, n.want, n.services, n.podMTU, n.said = "", nil, nil, 0, ""
		names, err := netNSNames(n.cfg.NetNSDir)
		failed = errors.Join(failed, err)
		for _, name := range names {
			failed = errors.Join(failed, closeNetNS(filepath.Join(n.cfg.NetNSDir, name)))
		}
		if failed != nil {
			return failed
		}
		if err := os.Remove(n.cfg.NetNSDir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove the pods' network: %w", err)
	}
	return nil
}

// do calls f with a connection to the current network namespace's kernel tables.
// f runs on the calling thread.
func (n *Network) do(ctx context.Context, f func(*netlink.Handle) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return withHandle(ctx, f)
}

func withHandle(ctx context.Context, f func(*netlink.Handle) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// Only this family: others are refused by kernels that lack the module.
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	return f(h)
}

// complete calls list until its answer is consistent: the kernel says so when a
// table changes while it is being read.
func complete[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 10
	for try := 1; ; try++ {
		all, err := list()
		if err == nil || try == tries || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
}

// podUID is what the uid of a pod may look like: it becomes a file's name.
var podUID = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,126}[A-Za-z0-9])?$`)

func checkUID(uid string) error {
	if !podUID.MatchString(uid) {
		return fmt.Errorf("pod uid %q is not made of letters, digits, '-', '_' and '.'", uid)
	}
	return nil
}

// setSysctl sets a kernel parameter of the current network namespace.
func setSysctl(name, value string) error {
	path := filepath.Join("/proc/sys", name)
	if have, err := os.ReadFile(path); err == nil && string(have) == value+"\n" {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set kernel parameter %s: %w", name, err)
	}
	return nil
}
