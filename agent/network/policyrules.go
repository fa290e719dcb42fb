package network

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// policyTable is the nftables table of each family that is ours as a whole.
const policyTable = "holdfast-policy"

// policyLayout is the version of the skeleton. A table of another is made anew, in one
// transaction with all that it holds.
const policyLayout = 1

// The chains where packets come by. Two, since each may let a packet through for its
// own part only: a connection needs the word of both ends.
const (
	spoofChain   = "spoof"
	egressChain  = "forward-egress"
	ingressChain = "forward-ingress"
)

// policyFamily is what differs between the tables of the two families.
type policyFamily struct {
	v6                        bool
	table                     *nftables.Table
	address                   nftables.SetDatatype
	size, source, destination uint32 // of an address, and where in the header
}

var policyFamilies = [2]policyFamily{
	{
		table:   &nftables.Table{Family: nftables.TableFamilyIPv4, Name: policyTable},
		address: nftables.TypeIPAddr, size: 4, source: 12, destination: 16,
	},
	{
		v6:      true,
		table:   &nftables.Table{Family: nftables.TableFamilyIPv6, Name: policyTable},
		address: nftables.TypeIP6Addr, size: 16, source: 8, destination: 24,
	},
}

// set returns a set of the table. Those of the skeleton have fixed names.
func (f policyFamily) set(name string, kind setKind) *nftables.Set {
	s := &nftables.Set{Table: f.table, Name: name, KeyType: f.address}
	switch {
	case name == ingressMap || name == egressMap:
		s.IsMap, s.DataType = true, nftables.TypeVerdict
	case name == selfSet:
		s.Concatenation, s.KeyType = true, nftables.MustConcatSetType(f.address, f.address)
	case name == linksSet:
		s.KeyType = nftables.TypeIFName
	case name == aboutSet:
		s.KeyType = nftables.TypeMark
	case kind == kindBlocks:
		s.Interval = true
	case kind == kindPorts:
		s.Concatenation, s.KeyType = true, nftables.MustConcatSetType(f.address, nftables.TypeInetProto, nftables.TypeInetService)
	}
	return s
}

func (f policyFamily) loadSource(register uint32) expr.Any {
	return load(expr.PayloadBaseNetworkHeader, f.source, f.size, register)
}

func (f policyFamily) loadDestination(register uint32) expr.Any {
	return load(expr.PayloadBaseNetworkHeader, f.destination, f.size, register)
}

// behind is the register behind an address in register reg0.
func (f policyFamily) behind() uint32 { return reg0 + f.size/4 }

// skeletonSets are the sets that are always there.
var skeletonSets = []string{ingressMap, egressMap, isolatedSet, selfSet, linksSet, aboutSet}

// policyChains are the base chains and their rules, whatever the policies are.
func (f policyFamily) skeleton() []kernelChain {
	eq := func(register uint32, data ...byte) expr.Any {
		return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
	}
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	mask := func(bits uint32) []expr.Any {
		return []expr.Any{
			&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: nativeUint32(bits), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)},
		}
	}
	rule := func(parts ...[]expr.Any) (all []expr.Any) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	one := func(e ...expr.Any) []expr.Any { return e }
	tcp := one(loadProtocol(reg0), eq(reg0, unix.IPPROTO_TCP))
	const fin, syn, rst, ack = 1, 2, 4, 16
	flags := func(bits byte, op expr.CmpOp, want byte) []expr.Any {
		return one(load(expr.PayloadBaseTransportHeader, 13, 1, reg0),
			&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 1, Mask: []byte{bits}, Xor: []byte{0}},
			&expr.Cmp{Op: op, Register: reg0, Data: []byte{want}})
	}
	reset := &expr.Reject{Type: unix.NFT_REJECT_TCP_RST}
	ctState := one(&expr.Ct{Key: expr.CtKeySTATE, Register: reg0})

	// What comes by a pod's link from an address that is not behind that link.
	spoof := kernelChain{name: spoofChain, base: &nftables.Chain{Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw}}
	spoof.rules = append(spoof.rules, one(
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0}, inSet(linksSet, reg0),
		&expr.Fib{Register: reg0, FlagSADDR: true, FlagIIF: true, ResultOIF: true}, eq(reg0, 0, 0, 0, 0), &expr.Verdict{Kind: expr.VerdictDrop}))

	// What ends a connection: its beginning goes nowhere, and what goes on with one that
	// was allowed before hears at once that it is over.
	refuse := kernelChain{name: refuseChain}
	refuse.rules = append(
		refuse.rules,
		rule(tcp, flags(rst, expr.CmpOpNeq, 0), one(accept)), // so that the other end hears of it, too
		rule(tcp, flags(fin|syn|rst|ack, expr.CmpOpNeq, syn), one(reset)),
		one(&expr.Verdict{Kind: expr.VerdictDrop}),
	)
	goRefuse := &expr.Verdict{Kind: expr.VerdictGoto, Chain: refuseChain}

	side := func(name string, priority nftables.ChainPriority, of expr.Any, by string) kernelChain {
		c := kernelChain{name: name, base: &nftables.Chain{Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: &priority}}
		c.rules = append(
			c.rules,
			// Each packet of the one who began is judged, not the first alone, so that a
			// connection ends with the rule that allowed it. The answers follow.
			rule(one(&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg0}, eq(reg0, 1), accept)),
			rule(ctState, mask(expr.CtStateBitRELATED), one(accept)),
			one(f.loadSource(reg0), f.loadDestination(f.behind()), inSet(selfSet, reg0), accept),
			// A connection that the kernel does not know goes on: whoever sends first now
			// would seem to have begun it.
			rule(tcp, flags(fin|syn|rst|ack, expr.CmpOpNeq, syn), ctState, mask(expr.CtStateBitNEW), one(f.loadSource(reg0), inSet(isolatedSet, reg0), goRefuse)),
			rule(tcp, flags(fin|syn|rst|ack, expr.CmpOpNeq, syn), ctState, mask(expr.CtStateBitNEW), one(f.loadDestination(reg0), inSet(isolatedSet, reg0), goRefuse)),
			one(of, jumpBy(by, reg0)),
		)
		return c
	}
	const first = 10 // behind those of services, which refuse what leads nowhere
	return []kernelChain{
		spoof, refuse,
		side(egressChain, first, f.loadSource(reg0), egressMap),
		side(ingressChain, first+1, f.loadDestination(reg0), ingressMap),
	}
}

// compile returns the kernel's form of a rule. direction is that of the chain it is
// for, by which the other end is known.
func (f policyFamily) compile(r policyRule, egress bool) []expr.Any {
	var e []expr.Any
	if r.protocol != 0 {
		e = append(e, loadProtocol(reg0), &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{r.protocol}})
	}
	switch {
	case r.from != 0 && r.from == r.to:
		e = append(e, loadPort(reg0), &expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.BigEndian.PutUint16(r.from)})
	case r.from != 0:
		e = append(e, loadPort(reg0), &expr.Range{Op: expr.CmpOpEq, Register: reg0, FromData: binaryutil.BigEndian.PutUint16(r.from), ToData: binaryutil.BigEndian.PutUint16(r.to)})
	}
	if r.named != "" {
		e = append(e, f.loadDestination(reg0), loadProtocol(f.behind()), loadPort(f.behind()+1), inSet(r.named, reg0))
	}
	if r.peer != "" {
		far := f.loadSource(reg0)
		if egress {
			far = f.loadDestination(reg0)
		}
		e = append(e, far, inSet(r.peer, reg0))
	}
	verb, to, _ := strings.Cut(r.verdict, " ")
	kind := map[string]expr.VerdictKind{"accept": expr.VerdictAccept, "jump": expr.VerdictJump, "goto": expr.VerdictGoto}[verb]
	return append(e, &expr.Verdict{Kind: kind, Chain: to})
}

// egressRules reports whether a chain judges what a pod sends, by its name. Those of
// ports alone are for both directions.
func egressRules(chain string) bool {
	return strings.HasPrefix(chain, "out-") || strings.HasPrefix(chain, egressMap+"-")
}

// kernelChain is a chain as the kernel has it, or is to.
type kernelChain struct {
	name  string
	base  *nftables.Chain // where it hangs; nil if it does not
	rules [][]expr.Any
}

// texts returns a line for where the chain hangs, and one for each rule: the same of
// what we write and of what the kernel says it has.
func (c kernelChain) texts() []string {
	head := "chain"
	if c.base != nil && c.base.Hooknum != nil && c.base.Priority != nil {
		head = fmt.Sprintf("base chain of type %s at hook %d, priority %d", c.base.Type, *c.base.Hooknum, *c.base.Priority)
	}
	lines := []string{head}
	for _, rule := range c.rules {
		var words []string
		for _, e := range rule {
			words = append(words, exprText(e))
		}
		lines = append(lines, strings.Join(words, "; "))
	}
	return lines
}

// exprText is an expression by all that counts. The kernel gives registers that have
// two names the other one, sets' numbers change, and the rest is as it was written.
func exprText(e expr.Any) string {
	r := func(register uint32) uint32 {
		if register >= unix.NFT_REG_1 && register <= unix.NFT_REG_4 {
			return reg0 + (register-unix.NFT_REG_1)*4
		}
		return register
	}
	switch e := e.(type) {
	case *expr.Payload:
		return fmt.Sprintf("load %d+%d of header %d into %d", e.Offset, e.Len, e.Base, r(e.DestRegister))
	case *expr.Meta:
		return fmt.Sprintf("meta %d into %d", e.Key, r(e.Register))
	case *expr.Ct:
		return fmt.Sprintf("ct %d into %d", e.Key, r(e.Register))
	case *expr.Fib:
		return fmt.Sprintf("fib %t %t %t %t %t %t into %d", e.FlagSADDR, e.FlagDADDR, e.FlagIIF, e.FlagOIF, e.ResultOIF, e.ResultADDRTYPE, r(e.Register))
	case *expr.Cmp:
		return fmt.Sprintf("compare %d with %x by %d", r(e.Register), e.Data, e.Op)
	case *expr.Range:
		return fmt.Sprintf("compare %d with %x-%x by %d", r(e.Register), e.FromData, e.ToData, e.Op)
	case *expr.Bitwise:
		return fmt.Sprintf("bits %x ^ %x of %d into %d", e.Mask, e.Xor, r(e.SourceRegister), r(e.DestRegister))
	case *expr.Lookup:
		into := r(e.DestRegister)
		return fmt.Sprintf("look up %d in %s (not: %t) into %d", r(e.SourceRegister), e.SetName, e.Invert, into)
	case *expr.Verdict:
		return strings.TrimSpace(fmt.Sprintf("verdict %d %s", e.Kind, e.Chain))
	case *expr.Reject:
		return fmt.Sprintf("reject %d %d", e.Type, e.Code)
	case *expr.Numgen:
		return fmt.Sprintf("number %d below %d from %d into %d", e.Type, e.Modulus, e.Offset, r(e.Register))
	case *expr.NAT:
		return fmt.Sprintf("translate %d family %d to %d %d", e.Type, e.Family, r(e.RegAddrMin), r(e.RegProtoMin))
	case *expr.Masq:
		return "masquerade"
	case *expr.Dynset:
		return fmt.Sprintf("remember %d %d in %s by %d for %s", r(e.SrcRegKey), r(e.SrcRegData), e.SetName, e.Operation, e.Timeout)
	}
	return fmt.Sprintf("%T %+v", e, e)
}
