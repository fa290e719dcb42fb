package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// sendBuffer is what one transaction may take: what changes of the tables comes at
// once or not at all.
const sendBuffer = 32 << 20

// policyPlane keeps the tables of policies level with a state and with the pods that
// are attached here. Its methods may be called at any time; one at a time does
// something.
type policyPlane struct {
	log *slog.Logger

	mu    sync.Mutex
	state *netstate.State // the last that was programmed, nil before
	// ips are the addresses of the pods that are attached, by uid, once known.
	ips   map[string][]netip.Addr
	known bool // so are have
	have  [2]*kernelTable
	// tables are what have was made of.
	tables [2]*policyTables
}

// kernelTable is what the kernel has of a table, in our words.
type kernelTable struct {
	chains   map[string][]string // see kernelChain.texts
	sets     map[string]bool
	elements map[place]string
	about    string // the comment of the element of the set about
}

// program makes the tables what s says. It returns once the kernel has them.
func (p *policyPlane) program(ctx context.Context, s *netstate.State) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == s {
		p.known = false // nothing is new: look whether somebody else changed something
	}
	before := p.state
	p.state = s
	if err := p.write(ctx); err != nil {
		return err
	}
	if before == nil || mayForbid(before, s) {
		p.endForbidden()
	}
	return nil
}

// mayForbid reports whether what one state allows another may not.
func mayForbid(before, now *netstate.State) bool {
	return !maps.Equal(before.Policies, now.Policies) || !maps.Equal(before.Namespaces, now.Namespaces) ||
		!maps.Equal(before.Pods, now.Pods) || !maps.Equal(before.Local, now.Local)
}

// admit makes the rules of a pod that is about to be attached, by which its first
// packet is judged. Before anything was programmed nobody has said anything of
// policies, and nothing is done.
func (p *policyPlane) admit(ctx context.Context, uid string, ips []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ips == nil {
		p.ips = map[string][]netip.Addr{}
	}
	if slices.Equal(p.ips[uid], ips) {
		return nil
	}
	p.ips[uid] = ips
	if p.state == nil {
		return nil
	}
	if err := p.write(ctx); err != nil {
		delete(p.ips, uid)
		return err
	}
	return nil
}

// forget takes the rules of a pod that was detached away.
func (p *policyPlane) forget(ctx context.Context, uid string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.ips[uid]; !ok {
		return nil
	}
	delete(p.ips, uid)
	if p.state == nil {
		return nil
	}
	return p.write(ctx)
}

// write brings the kernel's tables to what the state and the pods make.
func (p *policyPlane) write(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			p.known = false // whatever the kernel took of it
		}
	}()
	if !p.known {
		if err := p.read(ctx); err != nil {
			return err
		}
	}
	pods := judgedPods(p.state, p.ips)
	for i, f := range policyFamilies {
		t := policyTablesOf(p.state, pods, f.v6)
		if f.v6 && p.have[i] == nil && !anyV6(pods) {
			p.tables[i] = t // a cluster without the family needs no table of it
			continue
		}
		if err := f.bring(&p.have[i], p.closed(t, i), p.state.Revision); err != nil {
			return fmt.Errorf("write table %s: %w", policyTable, err)
		}
		p.tables[i] = t
	}
	p.known = true
	return nil
}

func anyV6(pods []judged) bool {
	return slices.ContainsFunc(pods, func(pod judged) bool { return slices.ContainsFunc(pod.ips, netip.Addr.Is6) })
}

// closed adds to t the pods that are here, that the agent knows nothing of, and that
// were isolated: they are to end, and until then nothing reaches them.
func (p *policyPlane) closed(t *policyTables, family int) *policyTables {
	if p.have[family] == nil {
		return t
	}
	for uid, ips := range p.ips {
		if p.state.Local[uid] != nil {
			continue
		}
		for _, ip := range ips {
			key := string(ip.AsSlice())
			if _, was := p.have[family].elements[place{isolatedSet, key}]; was {
				t.elements[place{isolatedSet, key}] = ""
				t.elements[place{ingressMap, key}], t.elements[place{egressMap, key}] = refuseChain, refuseChain
			}
		}
	}
	return t
}

// read finds out what the kernel has.
func (p *policyPlane) read(ctx context.Context) error {
	err := withHandle(ctx, func(h *netlink.Handle) error {
		pods, err := listPods(h)
		if err != nil {
			return err
		}
		// One that is being attached has no link yet.
		ips := maps.Clone(p.ips)
		if ips == nil {
			ips = map[string][]netip.Addr{}
		}
		for uid, pod := range pods {
			ips[uid] = addressesOf(pod)
		}
		p.ips = ips
		return nil
	})
	if err != nil {
		return err
	}
	for i, f := range policyFamilies {
		if p.have[i], err = readTable(f.table); err != nil {
			return fmt.Errorf("read table %s: %w", policyTable, err)
		}
	}
	return nil
}

func addressesOf(pod podLink) []netip.Addr { return []netip.Addr{pod.ip} }

// readTable returns what the kernel has of a table, nil if there is none. What packets
// put into sets is left out.
func readTable(table *nftables.Table) (*kernelTable, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTablesOfFamily(table.Family)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == table.Name }) {
		return nil, nil
	}
	k := &kernelTable{sets: map[string]bool{}, elements: map[place]string{}}
	if k.chains, err = readChains(table); err != nil {
		return nil, err
	}
	sets, err := conn.GetSets(table)
	if err != nil {
		return nil, err
	}
	for _, set := range sets {
		if set.Anonymous || set.Dynamic {
			continue
		}
		k.sets[set.Name] = true
		elements, err := conn.GetSetElements(&nftables.Set{Table: table, Name: set.Name})
		if err != nil {
			return nil, fmt.Errorf("set %s: %w", set.Name, err)
		}
		for _, e := range elements {
			if set.Name == aboutSet {
				k.about = e.Comment
				continue
			}
			value := string(e.Val)
			if chain := chainOf(e.Val); verdictMap(set.Name) && chain != "" {
				value = chain
			}
			if e.IntervalEnd {
				value = "end"
			}
			k.elements[place{set.Name, string(e.Key)}] = value
		}
	}
	return k, nil
}

// wanted is what the kernel is to have.
func (f policyFamily) wanted(t *policyTables) (k *kernelTable, chains map[string]kernelChain) {
	k = &kernelTable{chains: map[string][]string{}, sets: map[string]bool{}, elements: t.elements}
	chains = map[string]kernelChain{}
	for _, c := range f.skeleton() {
		chains[c.name] = c
	}
	for name, rules := range t.chains {
		c := kernelChain{name: name}
		for _, r := range rules {
			c.rules = append(c.rules, f.compile(r, egressRules(name)))
		}
		chains[name] = c
	}
	for name, c := range chains {
		k.chains[name] = c.texts()
	}
	for _, name := range skeletonSets {
		k.sets[name] = true
	}
	for name := range t.sets {
		k.sets[name] = true
	}
	return k, chains
}

func aboutText(revision int64, hash uint64) string {
	return fmt.Sprintf("layout=%d revision=%d hash=%016x", policyLayout, revision, hash)
}

// bring takes the kernel from what have says to t, in one transaction; what nothing
// refers to yet is prepared before. have is what the kernel has afterwards.
func (f policyFamily) bring(have **kernelTable, t *policyTables, revision int64) error {
	nftMu.Lock()
	defer nftMu.Unlock()
	want, chains := f.wanted(t)
	want.about = aboutText(revision, t.hash())
	h := *have
	fresh := h == nil || !strings.HasPrefix(h.about, fmt.Sprintf("layout=%d ", policyLayout))
	if fresh {
		h = &kernelTable{}
	} else if err := f.prepare(h, want, t); err != nil {
		return err
	}
	tx, err := newTransaction()
	if err != nil {
		return err
	}
	if fresh {
		tx.AddTable(f.table) // so that it can be deleted
		tx.DelTable(f.table)
		tx.AddTable(f.table)
	}
	for _, name := range slices.Sorted(maps.Keys(want.sets)) {
		if !h.sets[name] {
			if err := tx.AddSet(f.set(name, t.sets[name]), nil); err != nil {
				return fmt.Errorf("make set %s: %w", name, err)
			}
		}
	}
	changed := f.writeChains(tx, h, want, chains)
	if err := f.writeElements(tx, h.elements, want.elements, t); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(h.chains)) {
		if _, still := want.chains[name]; !still {
			tx.FlushChain(&nftables.Chain{Table: f.table, Name: name})
			changed = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h.chains)) {
		if _, still := want.chains[name]; !still {
			tx.DelChain(&nftables.Chain{Table: f.table, Name: name})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h.sets)) {
		if !want.sets[name] {
			tx.DelSet(f.set(name, ""))
			changed = true
		}
	}
	if !changed && h.about == want.about && maps.Equal(h.elements, want.elements) {
		*have = want
		return nil
	}
	about := f.set(aboutSet, "")
	tx.FlushSet(about)
	if err := tx.SetAddElements(about, []nftables.SetElement{{Key: make([]byte, 4), Comment: want.about}}); err != nil {
		return err
	}
	if err := tx.commit(); err != nil {
		return err
	}
	*have = want
	return nil
}

// prepare fills the sets that are new: nothing asks them yet.
func (f policyFamily) prepare(h, want *kernelTable, t *policyTables) error {
	of := map[string][]nftables.SetElement{}
	for at, value := range want.elements {
		if !h.sets[at.table] && want.sets[at.table] {
			of[at.table] = append(of[at.table], element(at, value))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		set := f.set(name, t.sets[name])
		first := true
		for part := range slices.Chunk(of[name], elementsPerTransaction) {
			if set.Interval {
				part = of[name] // a border alone means something else
			}
			tx, err := newTransaction()
			if err != nil {
				return err
			}
			if first {
				if err := tx.AddSet(set, nil); err != nil {
					return fmt.Errorf("make set %s: %w", name, err)
				}
			}
			first = false
			if err := tx.add(set, part); err != nil {
				return err
			}
			if err := tx.commit(); err != nil {
				return fmt.Errorf("fill set %s: %w", name, err)
			}
			if set.Interval {
				break
			}
		}
		h.sets[name] = true
		for at, value := range want.elements {
			if at.table == name {
				h.elements[at] = value
			}
		}
	}
	return nil
}

// writeChains adds the chains that are missing, and makes those anew whose rules are
// not what they were. It reports whether there were any.
func (f policyFamily) writeChains(tx *transaction, h, want *kernelTable, chains map[string]kernelChain) (changed bool) {
	var write []string
	for _, name := range slices.Sorted(maps.Keys(want.chains)) {
		lines, there := h.chains[name]
		if there && slices.Equal(lines, want.chains[name]) {
			continue
		}
		write = append(write, name)
		chain := &nftables.Chain{Table: f.table, Name: name}
		if there {
			tx.FlushChain(chain)
			continue
		}
		if base := chains[name].base; base != nil {
			chain.Type, chain.Hooknum, chain.Priority = base.Type, base.Hooknum, base.Priority
		}
		tx.AddChain(chain)
	}
	for _, name := range write { // once all are there: they lead to one another
		for _, exprs := range chains[name].rules {
			tx.AddRule(&nftables.Rule{Table: f.table, Chain: &nftables.Chain{Table: f.table, Name: name}, Exprs: exprs})
		}
	}
	return len(write) > 0
}

func (f policyFamily) writeElements(tx *transaction, have, want map[place]string, t *policyTables) error {
	remove, put := map[string][]nftables.SetElement{}, map[string][]nftables.SetElement{}
	blocks := map[string]bool{}
	for at, value := range have {
		now, still := want[at]
		switch {
		case still && now == value:
		case !still && !wantsSet(at.table, t):
			// The set goes as a whole.
		case t.sets[at.table] == kindBlocks:
			blocks[at.table] = true
		default:
			remove[at.table] = append(remove[at.table], nftables.SetElement{Key: []byte(at.key)})
		}
	}
	for at, value := range want {
		if was, there := have[at]; there && was == value {
			continue
		}
		if t.sets[at.table] == kindBlocks {
			blocks[at.table] = true
			continue
		}
		put[at.table] = append(put[at.table], element(at, value))
	}
	for name := range blocks { // borders belong together
		tx.FlushSet(f.set(name, kindBlocks))
		for at, value := range want {
			if at.table == name {
				put[name] = append(put[name], element(at, value))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(remove)) {
		for part := range slices.Chunk(remove[name], elementsPerMessage) {
			if err := tx.SetDeleteElements(f.set(name, t.sets[name]), part); err != nil {
				return fmt.Errorf("remove from set %s: %w", name, err)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(put)) {
		if err := tx.add(f.set(name, t.sets[name]), put[name]); err != nil {
			return err
		}
	}
	return nil
}

func wantsSet(name string, t *policyTables) bool {
	_, ok := t.sets[name]
	return ok || slices.Contains(skeletonSets, name)
}

// element is the kernel's form of an element.
func element(at place, value string) nftables.SetElement {
	e := nftables.SetElement{Key: []byte(at.key)}
	switch {
	case value == "end":
		e.IntervalEnd = true
	case value != "":
		e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: value}
	}
	return e
}

// transaction is a connection that holds what is to happen at once.
type transaction struct{ *nftables.Conn }

func newTransaction() (*transaction, error) {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(sendBuffer))
	}))
	if err != nil {
		return nil, err
	}
	return &transaction{conn}, nil
}

// add adds elements to a set.
func (tx *transaction) add(set *nftables.Set, elements []nftables.SetElement) error {
	// The kernel wants the borders of ranges rising, and those of a set at once.
	slices.SortFunc(elements, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	parts := slices.Chunk(elements, elementsPerMessage)
	if set.Interval {
		parts = func(yield func([]nftables.SetElement) bool) { yield(elements) }
	}
	for part := range parts {
		if err := tx.SetAddElements(set, part); err != nil {
			return fmt.Errorf("add to set %s: %w", set.Name, err)
		}
	}
	return nil
}

func (tx *transaction) commit() error { return tx.Flush() }

// endForbidden ends what goes on between pods though the tables no longer allow it:
// the kernel forgets such connections, and whoever goes on with one is told that it is
// over, or not heard. Failing is not an error of the tables, which are right.
func (p *policyPlane) endForbidden() {
	for i, f := range policyFamilies {
		t := p.tables[i]
		if t == nil || !isolates(t) {
			continue
		}
		family := netlink.InetFamily(unix.AF_INET)
		if f.v6 {
			family = unix.AF_INET6
		}
		ended, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, forbidden{t, localAddresses()})
		if err != nil {
			p.log.Warn("connections that policies forbid may go on in one direction", "error", err)
		} else if ended > 0 {
			p.log.Info("connections that policies forbid were ended", "count", ended)
		}
	}
}

func isolates(t *policyTables) bool {
	for at := range t.elements {
		if at.table == isolatedSet {
			return true
		}
	}
	return false
}

// localAddresses are those of the node itself, which policies do not concern.
func localAddresses() map[netip.Addr]bool {
	own := map[netip.Addr]bool{}
	addrs, _ := netlink.AddrList(nil, netlink.FAMILY_ALL)
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			own[ip.Unmap()] = true
		}
	}
	return own
}

// forbidden matches connections that tables do not let through.
type forbidden struct {
	tables *policyTables
	own    map[netip.Addr]bool
}

func (f forbidden) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	addr := func(b []byte) netip.Addr {
		ip, _ := netip.AddrFromSlice(b)
		return ip.Unmap()
	}
	// Who answers is where it went, behind the translation.
	p := packet{from: addr(flow.Forward.SrcIP), to: addr(flow.Reverse.SrcIP), protocol: flow.Forward.Protocol, port: flow.Reverse.SrcPort}
	if f.own[p.from] || f.own[p.to] {
		return false
	}
	allowed, _ := f.tables.allows(p)
	return !allowed
}

// remove removes the tables. None is not an error.
func (p *policyPlane) remove() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state, p.ips, p.known, p.have, p.tables = nil, nil, false, [2]*kernelTable{}, [2]*policyTables{}
	var failed error
	for _, f := range policyFamilies {
		k, err := readTable(f.table)
		if err != nil || k == nil {
			continue // a kernel without the family has no table either
		}
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.DelTable(f.table)
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			failed = errors.Join(failed, fmt.Errorf("remove table %s: %w", policyTable, err))
		}
	}
	return failed
}
