//go:build linux

package main

import (
	"fmt"
	"path/filepath"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/internal/devcluster"
)

// tableName is the nftables table, in a machine's namespace, with its cuts.
const tableName = "chaos"

// block is what a machine no longer hears.
type block struct {
	from *machine
	udp  bool   // gossip's datagrams only
	port uint16 // not 0: gossip's stream port, TCP, as well
}

func (m *machine) namespace() string {
	return filepath.Join("/run/holdfast-dev", devcluster.ID(m.c.dir), "netns", m.name())
}

// in calls f with the machine's network namespace.
func (m *machine) in(f func(netns.NsHandle) error) error {
	ns, err := netns.GetFromPath(m.namespace())
	if err != nil {
		return fmt.Errorf("open network namespace of %s: %w", m.name(), err)
	}
	defer ns.Close()
	return f(ns)
}

// deafen makes the machine drop what the blocks say, and nothing else. What is
// dropped was sent: each direction is cut by itself.
func (m *machine) deafen(blocks ...block) error {
	return m.in(func(ns netns.NsHandle) error {
		conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
		if err != nil {
			return err
		}
		table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
		conn.AddTable(table) // so that it can be deleted
		conn.DelTable(table)
		if len(blocks) > 0 {
			conn.AddTable(table)
			chain := conn.AddChain(&nftables.Chain{
				Name: "input", Table: table, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
			})
			for _, b := range blocks {
				address := b.from.spec.Address.As4()
				source := []expr.Any{
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address[:]},
				}
				drop := []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
				protocol := func(p byte) []expr.Any {
					return []expr.Any{
						&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
						&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
					}
				}
				add := func(parts ...[]expr.Any) {
					var all []expr.Any
					for _, p := range parts {
						all = append(all, p...)
					}
					conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: all})
				}
				if !b.udp {
					add(source, drop)
					continue
				}
				add(source, protocol(unix.IPPROTO_UDP), drop)
				for _, offset := range []uint32{0, 2} { // source and destination port
					add(source, protocol(unix.IPPROTO_TCP), []expr.Any{
						&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2},
						&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(b.port)},
					}, drop)
				}
			}
		}
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("cut %s off: %w", m.name(), err)
		}
		return nil
	})
}

// dropped returns how many packets the cuts in force have dropped.
func (m *machine) dropped() (n int) {
	_ = m.in(func(ns netns.NsHandle) error {
		conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
		if err != nil {
			return err
		}
		table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
		rules, err := conn.GetRules(table, &nftables.Chain{Name: "input", Table: table})
		if err != nil {
			return err
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				if c, ok := e.(*expr.Counter); ok {
					n += int(c.Packets)
				}
			}
		}
		return nil
	})
	return n
}

// isolate cuts each of some off from each of others, both ways.
func isolate(some, others []*machine) error {
	for _, side := range [][2][]*machine{{some, others}, {others, some}} {
		for _, m := range side[0] {
			var blocks []block
			for _, o := range side[1] {
				blocks = append(blocks, block{from: o})
			}
			if err := m.deafen(blocks...); err != nil {
				return err
			}
		}
	}
	return nil
}

// heal ends all cuts and returns how many packets they had dropped.
func (c *cluster) heal() (packets int, err error) {
	for _, m := range c.all() {
		packets += m.dropped()
		if err := m.deafen(); err != nil {
			return packets, err
		}
	}
	return packets, nil
}

// slow limits what the machine can send to so many bytes a second; 0 ends that.
func (m *machine) slow(rate uint64) error {
	return m.in(func(ns netns.NsHandle) error {
		h, err := netlink.NewHandleAt(ns)
		if err != nil {
			return err
		}
		defer h.Close()
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
		if rate == 0 {
			return h.QdiscDel(&netlink.Tbf{QdiscAttrs: attrs})
		}
		const burst = 16 << 10
		tbf := &netlink.Tbf{QdiscAttrs: attrs, Rate: rate, Limit: 256 << 10, Buffer: uint32(netlink.Xmittime(rate, burst))}
		if err := h.QdiscReplace(tbf); err != nil {
			return fmt.Errorf("slow %s down to %d B/s: %w", m.name(), rate, err)
		}
		return nil
	})
}
