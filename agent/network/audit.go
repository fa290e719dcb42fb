package network

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent"
)

// Audit implements [agent.Audits]: it reads back what the kernel has of the tables of
// services and policies, and compares that with what the last state makes of them.
// What is different is made good, and read again.
func (n *Network) Audit(ctx context.Context) ([]agent.TableAudit, error) {
	services, err := n.plane.audit()
	if err != nil {
		return nil, err
	}
	policies, err := n.policy.audit(ctx)
	if err != nil {
		return nil, err
	}
	return append(services, policies...), nil
}

// Judge implements [agent.Audits].
func (n *Network) Judge(from, to netip.Addr, protocol byte, port uint16) (allowed bool, by string) {
	n.policy.mu.Lock()
	defer n.policy.mu.Unlock()
	t := n.policy.tables[0]
	if to.Is6() {
		t = n.policy.tables[1]
	}
	if t == nil {
		return true, ""
	}
	return t.allows(packet{from, to, protocol, port})
}

// maxFaults bounds what is said of a table.
const maxFaults = 20

// compare says what is different between what the kernel has and what it is to have.
func (k *kernelTable) compare(want *kernelTable) (faults []string) {
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if k == nil {
		return []string{"the table is gone"}
	}
	for _, name := range slices.Sorted(maps.Keys(want.chains)) {
		lines, ok := k.chains[name]
		switch wanted := want.chains[name]; {
		case !ok:
			add("chain %s is gone", name)
		case slices.Equal(lines, wanted):
		case len(lines) < len(wanted):
			add("chain %s has %d rules, not %d", name, len(lines)-1, len(wanted)-1)
		default:
			for i := range lines {
				if i >= len(wanted) {
					add("chain %s: rule %d is somebody else's", name, i)
				} else if lines[i] != wanted[i] {
					add("chain %s: rule %d is another", name, i)
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.chains)) {
		if _, ok := want.chains[name]; !ok {
			add("chain %s is somebody else's", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want.sets)) {
		if !k.sets[name] {
			add("set %s is gone", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.sets)) {
		if !want.sets[name] {
			add("set %s is somebody else's", name)
		}
	}
	missing, changed, foreign := map[string]int{}, map[string]int{}, map[string]int{}
	for at, value := range want.elements {
		if have, ok := k.elements[at]; !ok {
			missing[at.table]++
		} else if have != value {
			changed[at.table]++
		}
	}
	for at := range k.elements {
		if _, ok := want.elements[at]; !ok {
			foreign[at.table]++
		}
	}
	for what, of := range map[string]map[string]int{"are missing": missing, "are others": changed, "are somebody else's": foreign} {
		for set, count := range of {
			add("set %s: %d elements %s", set, count, what)
		}
	}
	slices.Sort(faults)
	if len(faults) > maxFaults {
		faults = append(faults[:maxFaults-1], fmt.Sprintf("and %d more", len(faults)-maxFaults+1))
	}
	return faults
}

// hash is of all that a table holds, and does not depend on an order.
func (k *kernelTable) hash() string {
	if k == nil {
		return "-"
	}
	var h uint64
	for at, value := range k.elements {
		h += at.sum(value)
	}
	for name, lines := range k.chains {
		for i, line := range lines {
			h += place{name, fmt.Sprint(i)}.sum(line)
		}
	}
	for name := range k.sets {
		h += place{name, ""}.sum("set")
	}
	return fmt.Sprintf("%016x", h)
}

// audited makes an audit of a table: found before and after the repair, if there was
// one.
func audited(name string, want, found, after *kernelTable, faults []string) agent.TableAudit {
	return agent.TableAudit{
		Name: name, Wanted: want.hash(), Hash: found.hash(), Faults: faults,
		Repaired: len(faults) > 0 && len(after.compare(want)) == 0,
	}
}

func familyName(f policyFamily) string {
	if f.v6 {
		return "ip6 " + policyTable
	}
	return "ip " + policyTable
}

// audit compares the tables of policies, and repairs them.
func (p *policyPlane) audit(ctx context.Context) ([]agent.TableAudit, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == nil || !p.known {
		return nil, nil // being written, or about to be
	}
	var all []agent.TableAudit
	for i, f := range policyFamilies {
		if p.have[i] == nil {
			continue
		}
		want, found, err := p.lookAt(i, f)
		if err != nil {
			return nil, err
		}
		faults := found.compare(want)
		after := found
		if len(faults) > 0 {
			p.log.Warn("somebody else changed the packet rules; repairing them", "table", familyName(f), "faults", faults)
			p.known = false
			if err := p.write(ctx); err != nil {
				p.log.Error("packet rules that somebody else changed are not repaired", "table", familyName(f), "error", err)
			}
			if want, after, err = p.lookAt(i, f); err != nil {
				return nil, err
			}
		}
		all = append(all, audited(familyName(f), want, found, after, faults))
	}
	return all, nil
}

func (p *policyPlane) lookAt(i int, f policyFamily) (want, found *kernelTable, err error) {
	want, _ = f.wanted(p.tables[i])
	found, err = readTable(f.table)
	if err != nil {
		return nil, nil, fmt.Errorf("read table %s: %w", familyName(f), err)
	}
	return want, found, nil
}

// audit compares the table of services, and repairs it.
func (p *plane) audit() ([]agent.TableAudit, error) {
	p.mu.Lock()
	state, known := p.state, p.known && p.configured
	p.mu.Unlock()
	if state == nil || !known {
		return nil, nil // being written, or about to be
	}
	look := func() (want, found *kernelTable, err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if found, err = readTable(table); err != nil {
			return nil, nil, fmt.Errorf("read table %s: %w", servicesTable, err)
		}
		want, err = p.wantedTable()
		return want, found, err
	}
	want, found, err := look()
	if err != nil {
		return nil, err
	}
	faults := found.compare(want)
	after := found
	if len(faults) > 0 {
		p.log.Warn("somebody else changed the packet rules; repairing them", "table", servicesTable, "faults", faults)
		p.mu.Lock()
		p.ranges = ranges{} // written again
		p.mu.Unlock()
		if err := p.program(state); err != nil { // the same again: it looks
			p.log.Error("packet rules that somebody else changed are not repaired", "table", servicesTable, "error", err)
		}
		if want, after, err = look(); err != nil {
			return nil, err
		}
	}
	return []agent.TableAudit{audited("ip "+servicesTable, want, found, after, faults)}, nil
}

// wantedTable is what the kernel is to have of services by the last state.
func (p *plane) wantedTable() (*kernelTable, error) {
	k := &kernelTable{sets: map[string]bool{}, elements: map[place]string{}}
	var err error
	if k.chains, err = expectedChains(table, addSkeleton, slices.Sorted(maps.Keys(p.chains)), addChain); err != nil {
		return nil, err
	}
	for _, set := range theSets() {
		if !set.Dynamic {
			k.sets[set.Name] = true
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(p.state.Services), compareNames) {
		maps.Copy(k.elements, serviceElements(p.state, name))
	}
	for set, elements := range p.wanted.elements() {
		for _, e := range elements {
			value := ""
			if e.IntervalEnd {
				value = "end"
			}
			k.elements[place{set, string(e.Key)}] = value
		}
	}
	return k, nil
}

// intact reports whether the rules of the table of services are those that we write.
// Whoever changed one of them would otherwise change what every look-up means.
func (p *plane) intact() (bool, error) {
	found, err := readChains(table)
	if err != nil {
		return false, err
	}
	want, err := expectedChains(table, addSkeleton, slices.Sorted(maps.Keys(found)), addChain)
	if err != nil {
		return false, nil // a chain that is none of ours
	}
	return maps.EqualFunc(found, want, slices.Equal[[]string]), nil
}

// expectedChains are the chains that skeleton and more make of a table, in the words in
// which the kernel's are read. more is called for those of names that skeleton does not
// make.
func expectedChains(table *nftables.Table, skeleton func(*nftables.Conn) error, names []string, more func(*nftables.Conn, string) error) (map[string][]string, error) {
	var k recorder
	conn, err := k.conn()
	if err != nil {
		return nil, err
	}
	nftMu.Lock()
	defer nftMu.Unlock()
	if err := skeleton(conn); err != nil {
		return nil, err
	}
	if err := conn.Flush(); err != nil {
		return nil, err
	}
	made, err := k.chains(table)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if _, ok := made[name]; !ok {
			if err := more(conn, name); err != nil {
				return nil, err
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return nil, err
	}
	return k.chains(table)
}

// recorder takes the place of the kernel: it keeps the chains and rules that are
// written, and gives them back as they were.
type recorder struct {
	made  []mdnetlink.Message            // chains
	rules map[string][]mdnetlink.Message // by chain
}

func nftType(kind int) mdnetlink.HeaderType {
	return mdnetlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)
}

func (k *recorder) take(m mdnetlink.Message) {
	m.Header.Flags = 0
	switch m.Header.Type {
	case nftType(unix.NFT_MSG_NEWCHAIN):
		k.made = append(k.made, m)
	case nftType(unix.NFT_MSG_NEWRULE):
		if k.rules == nil {
			k.rules = map[string][]mdnetlink.Message{}
		}
		chain := ruleChain(m)
		k.rules[chain] = append(k.rules[chain], m)
	}
}

func (k *recorder) conn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithTestDial(func(req []mdnetlink.Message) ([]mdnetlink.Message, error) {
		for _, m := range req {
			switch m.Header.Type {
			case nftType(unix.NFT_MSG_GETCHAIN):
				return answers(m, k.made), nil
			case nftType(unix.NFT_MSG_GETRULE):
				return answers(m, k.rules[ruleChain(m)]), nil
			}
			k.take(m)
		}
		return req, nil
	}))
}

// answers makes messages the answer to one.
func answers(to mdnetlink.Message, with []mdnetlink.Message) []mdnetlink.Message {
	with = slices.Clone(with)
	for i := range with {
		with[i].Header.Sequence, with[i].Header.PID = to.Header.Sequence, to.Header.PID
	}
	return with
}

// chains returns what was taken, in our words.
func (k *recorder) chains(table *nftables.Table) (map[string][]string, error) {
	conn, err := k.conn()
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return nil, err
	}
	texts := map[string][]string{}
	for _, chain := range chains {
		if chain.Table.Name != table.Name {
			continue
		}
		c := kernelChain{name: chain.Name, base: chain}
		if len(k.rules[chain.Name]) > 0 {
			rules, err := conn.GetRules(table, chain)
			if err != nil {
				return nil, fmt.Errorf("chain %s: %w", chain.Name, err)
			}
			for _, r := range rules {
				c.rules = append(c.rules, r.Exprs)
			}
		}
		texts[chain.Name] = c.texts()
	}
	return texts, nil
}

// ruleChain is the chain that a message about rules names.
func ruleChain(m mdnetlink.Message) string {
	attrs, err := mdnetlink.UnmarshalAttributes(m.Data[4:])
	if err != nil {
		return ""
	}
	for _, a := range attrs {
		if a.Type == unix.NFTA_RULE_CHAIN {
			return strings.TrimRight(string(a.Data), "\x00")
		}
	}
	return ""
}

// readChains returns the chains that the kernel has of a table. The rules are asked for
// here, and not by the library, which cannot read one expression of ours: see
// withoutDirection.
func readChains(table *nftables.Table) (map[string][]string, error) {
	conn, err := mdnetlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	name, err := mdnetlink.MarshalAttributes([]mdnetlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(table.Name + "\x00")}})
	if err != nil {
		return nil, err
	}
	var k recorder
	for _, of := range []struct {
		kind int
		data []byte
	}{{unix.NFT_MSG_GETCHAIN, nil}, {unix.NFT_MSG_GETRULE, name}} {
		found, err := conn.Execute(mdnetlink.Message{
			Header: mdnetlink.Header{Type: nftType(of.kind), Flags: mdnetlink.Request | mdnetlink.Dump},
			Data:   append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, of.data...),
		})
		if err != nil {
			return nil, err
		}
		for _, m := range found {
			if m.Header.Type == nftType(unix.NFT_MSG_NEWRULE) {
				if m.Data, err = withoutDirection(m.Data); err != nil {
					return nil, err
				}
			}
			k.take(m)
		}
	}
	return k.chains(table)
}

// withoutDirection leaves the direction out of a rule's expressions about connections:
// the kernel gives it in one byte, and the library (v0.3.0) wants four.
func withoutDirection(rule []byte) ([]byte, error) {
	const ctDirection = 3 // NFTA_CT_DIRECTION
	var edit func(data []byte, path ...uint16) ([]byte, error)
	edit = func(data []byte, path ...uint16) ([]byte, error) {
		attrs, err := mdnetlink.UnmarshalAttributes(data)
		if err != nil {
			return nil, err
		}
		if len(path) == 0 {
			attrs = slices.DeleteFunc(attrs, func(a mdnetlink.Attribute) bool { return a.Type == ctDirection })
			return mdnetlink.MarshalAttributes(attrs)
		}
		about := !slices.ContainsFunc(attrs, func(a mdnetlink.Attribute) bool {
			return len(path) == 1 && a.Type == unix.NFTA_EXPR_NAME && string(a.Data) != "ct\x00"
		})
		for i, a := range attrs {
			if about && a.Type&^mdnetlink.Nested == path[0] {
				if attrs[i].Data, err = edit(a.Data, path[1:]...); err != nil {
					return nil, err
				}
				attrs[i].Length = uint16(4 + len(attrs[i].Data))
			}
		}
		return mdnetlink.MarshalAttributes(attrs)
	}
	attrs, err := edit(rule[4:], unix.NFTA_RULE_EXPRESSIONS, unix.NFTA_LIST_ELEM, unix.NFTA_EXPR_DATA)
	return append(slices.Clone(rule[:4]), attrs...), err
}

// verdictMap reports whether a map of ours leads to chains, by its name.
func verdictMap(name string) bool { return !strings.HasSuffix(name, endpointsMap) }
