package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent"
)

// Ports of the node that lead to a pod. One nftables table of family ip; the kernel is
// the record, as with links: which elements are a pod's says its address.
//
//	ports    protocol . port             -> pod's address . port
//	at       address . protocol . port   -> pod's address . port, for those with a hostIP
//	hairpin  pod's address . the same    of pods that have any

const (
	hostPortsTable = "holdfast-hostports"
	hostPortsMap   = "ports"
	hostPortsAtMap = "at"
)

var (
	portsTable = &nftables.Table{Family: nftables.TableFamilyIPv4, Name: hostPortsTable}
	// Before services: a node port of a service is the scheduler's business as little as
	// a port that the node's own programs have.
	hostPortsPriority = nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest - 1)
)

func hostPortSets() []*nftables.Set {
	pair := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	return []*nftables.Set{
		{Table: portsTable, Name: hostPortsMap, IsMap: true, Concatenation: true, KeyType: portFrontType, DataType: endpointType},
		{Table: portsTable, Name: hostPortsAtMap, IsMap: true, Concatenation: true, KeyType: frontType, DataType: endpointType},
		{Table: portsTable, Name: hairpinSet, Concatenation: true, KeyType: pair},
	}
}

// addHostPortRules adds the table, which is always the same.
func addHostPortRules(conn *nftables.Conn) error {
	conn.AddTable(portsTable)
	for _, set := range hostPortSets() {
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("make set %s: %w", set.Name, err)
		}
	}
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		chain := conn.AddChain(&nftables.Chain{Name: name, Table: portsTable, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: hostPortsPriority})
		local := []expr.Any{
			&expr.Fib{Register: reg0, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: nativeUint32(unix.RTN_LOCAL)},
			load(expr.PayloadBaseNetworkHeader, destinationOffset, 1, reg0),
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: []byte{127}},
		}
		conn.AddRule(&nftables.Rule{Table: portsTable, Chain: chain, Exprs: append(local[:len(local):len(local)],
			loadDestination(reg0), loadProtocol(reg1), loadPort(reg2), find(hostPortsAtMap, reg0, reg3), translate(reg3))})
		conn.AddRule(&nftables.Rule{Table: portsTable, Chain: chain, Exprs: append(local[:len(local):len(local)],
			loadProtocol(reg0), loadPort(reg1), find(hostPortsMap, reg0, reg2), translate(reg2))})
	}
	// A pod that reaches itself by its node.
	chain := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: portsTable, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	conn.AddRule(&nftables.Rule{Table: portsTable, Chain: chain, Exprs: append(wasTranslated(), loadSource(reg0), loadDestination(reg1), inSet(hairpinSet, reg0), &expr.Masq{})})
	return nil
}

// hostPortElements are the elements of a pod, by place. It is pure.
func hostPortElements(ip netip.Addr, ports []agent.HostPort) map[place]string {
	all := map[place]string{}
	for _, p := range ports {
		protocol := protocolNumbers[p.Protocol]
		to := string(addrPort(netip.AddrPortFrom(ip, p.Port)))
		front := string(protoPort(protocol, int32(p.HostPort)))
		if p.HostIP.Is4() && !p.HostIP.IsUnspecified() {
			all[place{hostPortsAtMap, string(p.HostIP.AsSlice()) + front}] = to
		} else {
			all[place{hostPortsMap, front}] = to
		}
		all[place{hairpinSet, string(ip.AsSlice()) + string(ip.AsSlice())}] = ""
	}
	return all
}

// readHostPorts returns what the kernel has; nil: there is no table.
func readHostPorts(conn *nftables.Conn) (map[place]string, error) {
	there, err := hasTable(conn, hostPortsTable)
	if err != nil || !there {
		return nil, err
	}
	all := map[place]string{}
	for _, set := range hostPortSets() {
		elements, err := conn.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("read %s of table %s: %w", set.Name, hostPortsTable, err)
		}
		for _, e := range elements {
			all[place{set.Name, string(e.Key)}] = string(e.Val)
		}
	}
	return all, nil
}

// SetHostPorts implements [agent.HostPorts].
func (n *Network) SetHostPorts(ctx context.Context, podUID string, ports []agent.HostPort) error {
	if err := checkUID(podUID); err != nil {
		return err
	}
	err := n.do(ctx, func(h *netlink.Handle) error {
		pods, err := listPods(h)
		if err != nil {
			return err
		}
		pod, ok := pods[podUID]
		if !ok {
			return errors.New("it is not attached")
		}
		return n.writeHostPorts(pod.ip, ports)
	})
	if err != nil {
		return fmt.Errorf("host ports of pod %s: %w", podUID, err)
	}
	return nil
}

// closeHostPorts takes all of a pod's away, while its link still says which address it
// has.
func (n *Network) closeHostPorts(ctx context.Context, podUID string) error {
	return n.do(ctx, func(h *netlink.Handle) error {
		link, err := h.LinkByName(linkName(podUID))
		if isNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look for the pod's veth: %w", err)
		}
		if uid, ip, ok := parseAlias(link.Attrs().Alias); ok && uid == podUID {
			return n.writeHostPorts(ip, nil)
		}
		return nil
	})
}

// writeHostPorts makes ports those of the pod with that address, and all of them.
func (n *Network) writeHostPorts(ip netip.Addr, ports []agent.HostPort) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	nftMu.Lock()
	defer nftMu.Unlock()
	have, err := readHostPorts(conn)
	if err != nil {
		return err
	}
	if have == nil {
		if len(ports) == 0 {
			return nil
		}
		if err := addHostPortRules(conn); err != nil {
			return err
		}
	}
	want := hostPortElements(ip, ports)
	sets := map[string]*nftables.Set{}
	for _, set := range hostPortSets() {
		sets[set.Name] = set
	}
	var opened, closed []place
	pair := string(ip.AsSlice()) + string(ip.AsSlice())
	for at, value := range have {
		old := at.table == hairpinSet && at.key == pair || at.table != hairpinSet && value[:4] == string(ip.AsSlice())
		if now, still := want[at]; old && (!still || now != value) || still && now != value {
			if err := conn.SetDeleteElements(sets[at.table], []nftables.SetElement{{Key: []byte(at.key)}}); err != nil {
				return err
			}
			closed = append(closed, at)
		}
	}
	for at, value := range want {
		if was, ok := have[at]; ok && was == value {
			continue
		}
		e := nftables.SetElement{Key: []byte(at.key)}
		if at.table != hairpinSet {
			e.Val = []byte(value)
		}
		if err := conn.SetAddElements(sets[at.table], []nftables.SetElement{e}); err != nil {
			return err
		}
		opened = append(opened, at)
	}
	if len(opened)+len(closed) == 0 && have != nil {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", hostPortsTable, err)
	}
	// UDP has no beginning and no end: who sends from one port would be led where the
	// first packet was.
	for _, at := range slices.Concat(opened, closed) {
		if protocol, port := hostPortOf(at); protocol == udp {
			if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, sentTo(port)); err != nil {
				n.log.Warn("clients that send to a host port by UDP may go where they did before", "port", port, "error", err)
			}
		}
	}
	return nil
}

// hostPortOf returns protocol and port of an element; no protocol for those of hairpin.
func hostPortOf(at place) (protocol byte, port uint16) {
	key := []byte(at.key)
	switch at.table {
	case hostPortsAtMap:
		key = key[4:]
	case hairpinSet:
		return 0, 0
	}
	return key[0], binary.BigEndian.Uint16(key[4:])
}

// sentTo matches what was sent to a port by UDP.
type sentTo uint16

func (p sentTo) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	return flow.Forward.Protocol == udp && flow.Forward.DstPort == uint16(p)
}
