//go:build linux

package devcluster

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// DefaultSubnet is where machines get their addresses unless the host uses
// that range already.
var DefaultSubnet = netip.MustParsePrefix("10.123.0.0/24")

// podRange is the cluster's default pod CIDR, which machines must stay out of.
var podRange = netip.MustParsePrefix("10.244.0.0/16")

const (
	runRoot    = "/run/holdfast-dev"
	switchName = "switch"
	bridgeName = "br0"
	hostPort   = "host" // the port of the host's leg in the switch
)

// network is the switch and the machines' namespaces. Namespaces are held by
// bind mounts, so they outlive the process that made them. Its methods must not
// overlap.
type network struct {
	dir    string // run directory of the cluster, "/run/holdfast-dev/3fa1…"
	subnet netip.Prefix
	leg    string // the host's interface, "hf-3fa1c2d4"
}

// ID is a short name of the cluster in a data directory, unique on this host.
func ID(dataDir string) string { return hashOf(dataDir) }

// runDir is where namespaces and other things live that do not outlive the
// boot of the host.
func runDir(dataDir string) string {
	return filepath.Join(runRoot, hashOf(dataDir))
}

func hashOf(dataDir string) string {
	sum := sha256.Sum256([]byte(dataDir))
	return hex.EncodeToString(sum[:4])
}

func newNetwork(dataDir string, subnet netip.Prefix) *network {
	return &network{dir: runDir(dataDir), subnet: subnet, leg: "hf-" + hashOf(dataDir)}
}

// nsPath is the file that holds the namespace of a machine or of the switch.
func (n *network) nsPath(machine string) string {
	return filepath.Join(n.dir, "netns", machine)
}

// host is the address of the host's leg: the first one of the subnet.
func (n *network) host() netip.Addr { return n.subnet.Masked().Addr().Next() }

// ensureSwitch makes the switch and the host's leg, or takes over what is there.
func (n *network) ensureSwitch() error {
	if err := ensureNamespace(n.nsPath(switchName)); err != nil {
		return err
	}
	return n.at(switchName, func(sw *netlink.Handle) error {
		if _, err := sw.LinkByName(bridgeName); err != nil {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = bridgeName
			if err := sw.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
				return fmt.Errorf("add bridge: %w", err)
			}
		}
		if err := up(sw, bridgeName); err != nil {
			return err
		}
		host, err := netlink.NewHandle()
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer host.Close()
		_, inHost := host.LinkByName(n.leg)
		_, inSwitch := sw.LinkByName(hostPort)
		if inHost != nil || inSwitch != nil {
			if link, err := host.LinkByName(n.leg); err == nil {
				_ = host.LinkDel(link) // a leg that leads nowhere
			}
			hostNS, err := netns.Get()
			if err != nil {
				return fmt.Errorf("open the host's network namespace: %w", err)
			}
			defer hostNS.Close()
			attrs := netlink.NewLinkAttrs()
			attrs.Name = hostPort
			if err := sw.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: n.leg, PeerNamespace: netlink.NsFd(hostNS)}); err != nil {
				return fmt.Errorf("add link %s to the host: %w", n.leg, err)
			}
		}
		if err := plug(sw, hostPort); err != nil {
			return err
		}
		if err := setHardwareAddress(host, n.leg, n.host()); err != nil {
			return err
		}
		if err := setAddress(host, n.leg, netip.PrefixFrom(n.host(), n.subnet.Bits())); err != nil {
			return err
		}
		return up(host, n.leg)
	})
}

// ensureMachine makes a machine's namespace with its one interface eth0, or
// takes over what is there, and connects it.
func (n *network) ensureMachine(machine string, address netip.Addr) error {
	if err := ensureNamespace(n.nsPath(machine)); err != nil {
		return err
	}
	ns, err := netns.GetFromPath(n.nsPath(machine))
	if err != nil {
		return fmt.Errorf("open network namespace of %s: %w", machine, err)
	}
	defer ns.Close()
	in, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", machine, err)
	}
	defer in.Close()
	err = n.at(switchName, func(sw *netlink.Handle) error {
		_, inMachine := in.LinkByName("eth0")
		_, inSwitch := sw.LinkByName(machine)
		if inMachine != nil || inSwitch != nil {
			if link, err := sw.LinkByName(machine); err == nil {
				_ = sw.LinkDel(link) // its other end is in a namespace that is gone
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = machine
			if err := sw.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}); err != nil {
				return fmt.Errorf("add link to %s: %w", machine, err)
			}
		}
		return plug(sw, machine)
	})
	if err != nil {
		return err
	}
	if err := up(in, "lo"); err != nil {
		return err
	}
	if err := setHardwareAddress(in, "eth0", address); err != nil {
		return err
	}
	if err := setAddress(in, "eth0", netip.PrefixFrom(address, n.subnet.Bits())); err != nil {
		return err
	}
	if err := up(in, "eth0"); err != nil {
		return err
	}
	link, err := in.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0 of %s: %w", machine, err)
	}
	// A default route as every VM has one, for programs that look for "the"
	// interface. The host forwards nothing.
	if err := in.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: n.host().AsSlice()}); err != nil {
		return fmt.Errorf("add default route in %s: %w", machine, err)
	}
	return nil
}

// unplug takes a machine off the switch in the way a power cut does: nobody is
// told anything any more.
func (n *network) unplug(machine string) error {
	return n.at(switchName, func(sw *netlink.Handle) error {
		link, err := sw.LinkByName(machine)
		if err != nil {
			return nil //nolint:nilerr // not plugged in
		}
		if err := sw.LinkSetDown(link); err != nil {
			return fmt.Errorf("unplug %s: %w", machine, err)
		}
		return nil
	})
}

// removeMachine forgets a machine's namespace. Its interfaces go with it once
// no process is left inside.
func (n *network) removeMachine(machine string) error {
	if exists(n.nsPath(switchName)) {
		err := n.at(switchName, func(sw *netlink.Handle) error {
			if link, err := sw.LinkByName(machine); err == nil {
				return sw.LinkDel(link)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("remove link to %s: %w", machine, err)
		}
	}
	return removeNamespace(n.nsPath(machine))
}

// remove takes away the switch, the host's leg and every namespace that is
// left.
func (n *network) remove() error {
	var errs []error
	if link, err := netlink.LinkByName(n.leg); err == nil {
		if err := netlink.LinkDel(link); err != nil {
			errs = append(errs, fmt.Errorf("remove link %s: %w", n.leg, err))
		}
	}
	entries, err := os.ReadDir(filepath.Join(n.dir, "netns"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, entry := range entries {
		errs = append(errs, removeNamespace(n.nsPath(entry.Name())))
	}
	return errors.Join(errs...)
}

// at calls f with a netlink handle inside a namespace.
func (n *network) at(machine string, f func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPath(n.nsPath(machine))
	if err != nil {
		return fmt.Errorf("open network namespace of %s: %w", machine, err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", machine, err)
	}
	defer h.Close()
	return f(h)
}

// plug makes a link of the switch a port of its bridge.
func plug(sw *netlink.Handle, port string) error {
	bridge, err := sw.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	link, err := sw.LinkByName(port)
	if err != nil {
		return fmt.Errorf("find port %s of the switch: %w", port, err)
	}
	if err := sw.LinkSetMasterByIndex(link, bridge.Attrs().Index); err != nil {
		return fmt.Errorf("plug %s into the switch: %w", port, err)
	}
	return up(sw, port)
}

func up(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring link %s up: %w", name, err)
	}
	return nil
}

// setHardwareAddress gives a link the MAC address that belongs to an IPv4
// address, as a VM keeps its own: others remember it, and a machine that came
// back with another one would be out of their reach for up to a minute.
func setHardwareAddress(h *netlink.Handle, name string, address netip.Addr) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	ip := address.As4()
	mac := net.HardwareAddr{0x02, 0x48, ip[0], ip[1], ip[2], ip[3]} // 02: locally administered
	if err := h.LinkSetHardwareAddr(link, mac); err != nil {
		return fmt.Errorf("give %s the hardware address %s: %w", name, mac, err)
	}
	return nil
}

// setAddress makes prefix the address of the link.
func setAddress(h *netlink.Handle, name string, prefix netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}}
	if err := h.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, prefix, err)
	}
	return nil
}

// ensureNamespace makes a network namespace and binds it to path, unless path
// holds one.
func ensureNamespace(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err == nil && st.Type == unix.NSFS_MAGIC {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(path, nil, 0o400); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	done := make(chan error)
	go func() {
		// Not unlocked: the thread belongs to the new namespace and ends with
		// this goroutine.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace: %w", err)
			}
			self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
			if err := unix.Mount(self, path, "none", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("bind network namespace to %s: %w", path, err)
			}
			return nil
		}()
	}()
	return <-done
}

// removeNamespace unbinds a namespace and removes its file. One that is gone is
// not an error.
func removeNamespace(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue // several namespaces may be bound one over the other
		}
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		break
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// EnterNamespace moves the calling thread, which the caller has locked, into
// the network namespace bound to path.
func EnterNamespace(path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// freeSubnet returns want, or, when the caller left it zero, the first of
// sixteen /24 from [DefaultSubnet] on that touches none of the host's routes.
func freeSubnet(want netip.Prefix, routes []netip.Prefix) (netip.Prefix, error) {
	if want.IsValid() {
		want = want.Masked()
		if !want.Addr().Is4() || want.Bits() > 26 {
			return netip.Prefix{}, fmt.Errorf("subnet %s: give an IPv4 range with room for all machines, such as %s", want, DefaultSubnet)
		}
		if r, clash := overlapping(want, append(routes, podRange)); clash {
			return netip.Prefix{}, fmt.Errorf("subnet %s overlaps %s, which is in use: choose another one with --subnet", want, r)
		}
		return want, nil
	}
	for i := range 16 {
		a := DefaultSubnet.Addr().As4()
		a[1] += byte(i)
		candidate := netip.PrefixFrom(netip.AddrFrom4(a), DefaultSubnet.Bits())
		if _, clash := overlapping(candidate, routes); !clash {
			return candidate, nil
		}
	}
	return netip.Prefix{}, errors.New("the host routes every range that was tried for the machines' addresses: choose one with --subnet")
}

func overlapping(p netip.Prefix, with []netip.Prefix) (netip.Prefix, bool) {
	for _, r := range with {
		if r.Bits() > 0 && r.Overlaps(p) {
			return r, true
		}
	}
	return netip.Prefix{}, false
}

// hostRoutes returns what the host routes, without its default routes and
// without those over the link named except.
func hostRoutes(except string) ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list the host's routes: %w", err)
	}
	skip := -1
	if link, err := netlink.LinkByName(except); err == nil {
		skip = link.Attrs().Index
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil || r.LinkIndex == skip {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		ones, _ := r.Dst.Mask.Size()
		if ok {
			out = append(out, netip.PrefixFrom(addr, ones))
		}
	}
	return out, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// within says whether path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}
