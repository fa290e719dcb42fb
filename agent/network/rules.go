package network

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// servicesTable is the nftables table, of family ip, that is ours as a whole.
const servicesTable = "holdfast-services"

// tablesLayout is the version of the rules. A table of another is made anew, in one
// transaction with all that it holds.
const tablesLayout = 1

// Registers of four bytes each. A concatenation lies in several.
const (
	reg0 = unix.NFT_REG32_00 + iota
	reg1
	reg2
	reg3
	reg4
)

var (
	table = &nftables.Table{Family: nftables.TableFamilyIPv4, Name: servicesTable}

	frontType     = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	portFrontType = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	endpointType  = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
)

// theSets returns the maps and sets of the table.
func theSets() []*nftables.Set {
	index := func(front ...nftables.SetDatatype) nftables.SetDatatype {
		return nftables.MustConcatSetType(append(front, nftables.TypeMark)...)
	}
	concat := func(name string, key, data nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: table, Name: name, IsMap: true, Concatenation: true, KeyType: key, DataType: data}
	}
	remembering := func(name string, key nftables.SetDatatype) *nftables.Set {
		s := concat(name, key, endpointType)
		s.Dynamic, s.HasTimeout, s.Size = true, true, 1<<20
		return s
	}
	ranges := func(name string) *nftables.Set {
		return &nftables.Set{Table: table, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
	}
	pair := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	return []*nftables.Set{
		concat(servicesMap, frontType, nftables.TypeVerdict),
		concat(endpointsMap, index(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService), endpointType),
		concat(nodePortsMap, portFrontType, nftables.TypeVerdict),
		concat(nodePortEndpointsMap, index(nftables.TypeInetProto, nftables.TypeInetService), endpointType),
		remembering(affinityMap, nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)),
		remembering(nodePortAffinityMap, nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)),
		ranges(ownPodsSet), ranges(clusterSet), ranges(serviceRangesSet),
		{Table: table, Name: hairpinSet, Concatenation: true, KeyType: pair},
		{Table: table, Name: aboutSet, KeyType: nftables.TypeMark},
	}
}

// Expressions that load what a packet has into a register.

func load(base expr.PayloadBase, offset, size, register uint32) expr.Any {
	return &expr.Payload{OperationType: expr.PayloadLoad, Base: base, Offset: offset, Len: size, DestRegister: register}
}

func loadSource(register uint32) expr.Any {
	return load(expr.PayloadBaseNetworkHeader, sourceOffset, 4, register)
}

func loadDestination(register uint32) expr.Any {
	return load(expr.PayloadBaseNetworkHeader, destinationOffset, 4, register)
}

func loadProtocol(register uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}
}

func loadPort(register uint32) expr.Any {
	return load(expr.PayloadBaseTransportHeader, 2, 2, register)
}

func inSet(name string, register uint32) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: name}
}

func notInSet(name string, register uint32) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: name, Invert: true}
}

// jumpBy ends the rule with the verdict that a map has for the key in register.
func jumpBy(name string, register uint32) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: name, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true}
}

func find(name string, register, into uint32) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: name, DestRegister: into, IsDestRegSet: true}
}

// translate sends the connection to the address and port in two registers.
func translate(register uint32) expr.Any {
	return &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: register, RegProtoMin: register + 1, Specified: true}
}

// wasTranslated matches connections whose destination was changed.
func wasTranslated() []expr.Any {
	const destinationChanged = 1 << 5 // IPS_DST_NAT
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: nativeUint32(destinationChanged), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)},
	}
}

// addSkeleton adds the table, its sets and its rules, without any service.
func addSkeleton(conn *nftables.Conn) error {
	conn.AddTable(table)
	for _, set := range theSets() {
		if err := conn.AddSet(set, nil); err != nil {
			return fmt.Errorf("make set %s: %w", set.Name, err)
		}
	}
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: priority})
	}
	rule := func(chain *nftables.Chain, exprs ...expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	}
	rule(conn.AddChain(&nftables.Chain{Name: dropChain, Table: table}), &expr.Verdict{Kind: expr.VerdictDrop})

	// Where connections begin: those from pods and other machines, and the node's own.
	for name, hook := range map[string]*nftables.ChainHook{"prerouting": nftables.ChainHookPrerouting, "output": nftables.ChainHookOutput} {
		chain := base(name, nftables.ChainTypeNAT, hook, nftables.ChainPriorityNATDest)
		rule(chain, loadDestination(reg0), loadProtocol(reg1), loadPort(reg2), jumpBy(servicesMap, reg0))
		// Node ports are on all of the node's addresses but those of its loopback.
		rule(chain,
			&expr.Fib{Register: reg0, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: nativeUint32(unix.RTN_LOCAL)},
			load(expr.PayloadBaseNetworkHeader, destinationOffset, 1, reg0),
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: []byte{127}},
			loadProtocol(reg0), loadPort(reg1), jumpBy(nodePortsMap, reg0))
	}

	// What was sent to an endpoint must come back this way: its source is changed to
	// the node's where the endpoint would answer past us.
	chain := base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	// A pod that reaches itself.
	rule(chain, append(wasTranslated(), loadSource(reg0), loadDestination(reg1), inSet(hairpinSet, reg0), &expr.Masq{})...)
	elsewhere := append(wasTranslated(), loadDestination(reg0), inSet(clusterSet, reg0), notInSet(ownPodsSet, reg0))
	// A source that other nodes do not know.
	rule(chain, append(elsewhere[:len(elsewhere):len(elsewhere)], loadSource(reg0), notInSet(clusterSet, reg0), &expr.Masq{})...)
	// One that called this node, and not the service's own address.
	rule(chain, append(elsewhere[:len(elsewhere):len(elsewhere)], &expr.Ct{Key: expr.CtKeyDST, Register: reg0}, notInSet(serviceRangesSet, reg0), &expr.Masq{})...)

	// What still goes to an address of services was sent nowhere: nobody is there.
	for name, hook := range map[string]*nftables.ChainHook{"refuse-forward": nftables.ChainHookForward, "refuse-output": nftables.ChainHookOutput} {
		chain := base(name, nftables.ChainTypeFilter, hook, nftables.ChainPriorityFilter)
		rule(chain, loadDestination(reg0), inSet(serviceRangesSet, reg0), loadProtocol(reg0),
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{unix.IPPROTO_TCP}}, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
		rule(chain, loadDestination(reg0), inSet(serviceRangesSet, reg0), &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3})
	}
	return nil
}

// addChain adds a chain that elements lead to, by its name. See chainFor.
func addChain(conn *nftables.Conn, name string) error {
	var count, seconds uint32
	chain := &nftables.Chain{Name: name, Table: table}
	front := []expr.Any{loadDestination(reg0), loadProtocol(reg1), loadPort(reg2)}
	backs, affinity, size := endpointsMap, affinityMap, uint32(3)
	rest := name
	if len(name) > 5 && name[:5] == "node-" {
		rest = name[5:]
		front = []expr.Any{loadProtocol(reg0), loadPort(reg1)}
		backs, affinity, size = nodePortEndpointsMap, nodePortAffinityMap, 2
	}
	draw := func() []expr.Any { // the endpoint into the two registers behind the key
		key := append(front[:len(front):len(front)], &expr.Numgen{Register: reg0 + size, Modulus: count, Type: unix.NFT_NG_RANDOM})
		return append(key, find(backs, reg0, reg0+size+1))
	}
	if n, _ := fmt.Sscanf(rest, "any-of-%d", &count); n == 1 {
		conn.AddChain(chain)
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(draw(), translate(reg0+size+1))})
		return nil
	}
	if n, _ := fmt.Sscanf(rest, "same-of-%d-for-%d", &count, &seconds); n != 2 {
		return fmt.Errorf("no chain is called %q", name)
	}
	// The client, and then the front, into the registers behind the endpoint's.
	const endpoint, client = reg0 + 6, reg0 + 8
	who := []expr.Any{loadSource(client)}
	if size == 3 {
		who = append(who, loadDestination(client+1), loadProtocol(client+2), loadPort(client+3))
	} else {
		who = append(who, loadProtocol(client+1), loadPort(client+2))
	}
	remember := &expr.Dynset{
		SrcRegKey: client, SrcRegData: endpoint, SetName: affinity, Operation: unix.NFT_DYNSET_OP_UPDATE,
		Timeout: time.Duration(seconds) * time.Second,
	}
	conn.AddChain(chain)
	known := append(who[:len(who):len(who)], find(affinity, client, endpoint), remember, translate(endpoint))
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: known})
	key := append(front[:len(front):len(front)], &expr.Numgen{Register: reg0 + size, Modulus: count, Type: unix.NFT_NG_RANDOM}, find(backs, reg0, endpoint))
	drawn := append(append(key, who...), remember, translate(endpoint))
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: drawn})
	return nil
}

// ranges are what the rules know of the network beside services.
type ranges struct {
	own, cluster, services []netip.Prefix
}

// elements returns the elements of the sets of ranges.
func (r ranges) elements() map[string][]nftables.SetElement {
	all := map[string][]nftables.SetElement{}
	for name, prefixes := range map[string][]netip.Prefix{ownPodsSet: r.own, clusterSet: r.cluster, serviceRangesSet: r.services} {
		for _, of := range rangesOf(prefixes) {
			all[name] = append(all[name], nftables.SetElement{Key: of.first.AsSlice()})
			if of.end.IsValid() {
				all[name] = append(all[name], nftables.SetElement{Key: of.end.AsSlice(), IntervalEnd: true})
			}
		}
	}
	// Rules cannot compare a packet's source with its destination, so each address
	// that a pod here can have stands in a set with itself.
	for _, p := range r.own {
		for ip, n := p.Masked().Addr(), 0; p.Contains(ip) && n < 1<<12; ip, n = ip.Next(), n+1 {
			all[hairpinSet] = append(all[hairpinSet], nftables.SetElement{Key: append(ip.AsSlice(), ip.AsSlice()...)})
		}
	}
	return all
}
