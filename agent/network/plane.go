package network

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

const (
	// elementsPerMessage and elementsPerTransaction keep within what netlink takes at
	// once.
	elementsPerMessage     = 250
	elementsPerTransaction = 1000
)

// nftMu: the library counts sets in a variable of its package.
var nftMu sync.Mutex

// plane keeps the table of services level with a state. It remembers what the kernel
// has, so that a change costs as much as it changes; what it is not sure of it reads
// again. Its methods may be called at any time; one at a time does something.
type plane struct {
	log *slog.Logger

	mu     sync.Mutex
	state  *netstate.State // the last that was programmed, nil before
	ranges ranges          // as the kernel has them, once known
	wanted ranges
	// configured: what the network is beside services is known. Before that, what the
	// kernel has of it stays.
	configured bool
	known      bool // the rest is as the kernel has it
	chains     map[string]bool
	have       map[place]owned
	of         map[netstate.Name]elements
	hash       uint64
}

// owned is an element's value and the service that it is of; none for what was found
// in the kernel and not claimed yet.
type owned struct {
	value string
	by    netstate.Name
}

// Program makes the tables of services what s says. It returns once the kernel has
// them.
func (n *Network) Program(ctx context.Context, s *netstate.State) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := n.plane.program(s); err != nil {
		return fmt.Errorf("program services at revision %d: %w", s.Revision, err)
	}
	if err := n.policy.program(ctx, s); err != nil {
		return fmt.Errorf("program network policies at revision %d: %w", s.Revision, err)
	}
	if err := n.setServiceRoutes(ctx, serviceRanges(s)); err != nil {
		return fmt.Errorf("program services at revision %d: %w", s.Revision, err)
	}
	return nil
}

func serviceRanges(s *netstate.State) []netip.Prefix {
	var of []netip.Prefix
	for _, cidr := range s.Config.ServiceCIDRs {
		if cidr.Addr().Is4() {
			of = append(of, cidr)
		}
	}
	return of
}

// setRanges says what the network is beside services.
func (p *plane) setRanges(want []wantedRoute) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var r ranges
	for _, w := range want {
		r.cluster = append(r.cluster, w.to)
		if w.via.IsValid() {
			r.cluster = append(r.cluster, netip.PrefixFrom(w.via, 32))
		} else {
			r.own = append(r.own, w.to)
		}
	}
	r.services = p.wanted.services
	p.wanted, p.configured = r, true
	if p.state == nil {
		return nil
	}
	return p.writeRanges()
}

func (p *plane) program(s *netstate.State) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() {
		if err != nil {
			p.known = false // whatever the kernel took of it
		}
	}()
	if p.state == s {
		p.known = false // nothing is new: look whether somebody else changed something
	}
	if !p.known {
		if err := p.read(); err != nil {
			return err
		}
	}
	p.wanted.services = serviceRanges(s)
	if err := p.writeRanges(); err != nil {
		return err
	}
	gone, err := p.write(s)
	if err != nil {
		return err
	}
	if err := p.about(s.Revision); err != nil {
		return err
	}
	p.state, p.known = s, true
	p.forget(gone)
	return nil
}

// read finds out what the kernel has, and makes the table where it is missing or of
// another version.
func (p *plane) read() error {
	p.have, p.of, p.chains, p.hash, p.ranges = map[place]owned{}, map[netstate.Name]elements{}, map[string]bool{}, 0, ranges{}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	about, err := conn.GetSetElements(&nftables.Set{Table: table, Name: aboutSet})
	if err == nil && len(about) == 1 && strings.HasPrefix(about[0].Comment, fmt.Sprintf("layout=%d ", tablesLayout)) {
		intact, err := p.intact()
		if err != nil {
			return err
		}
		if intact {
			return p.readTable(conn)
		}
		p.log.Warn("somebody else changed the rules of services; they are made anew")
	}
	nftMu.Lock()
	defer nftMu.Unlock()
	conn.AddTable(table) // so that it can be deleted
	conn.DelTable(table)
	if err := addSkeleton(conn); err != nil {
		return err
	}
	if err := addAbout(conn, 0, 0); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make table %s: %w", servicesTable, err)
	}
	p.chains[dropChain] = true
	return nil
}

func (p *plane) readTable(conn *nftables.Conn) error {
	chains, err := conn.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, chain := range chains {
		if chain.Table.Name == servicesTable {
			p.chains[chain.Name] = true
		}
	}
	for _, name := range []string{servicesMap, endpointsMap, nodePortsMap, nodePortEndpointsMap} {
		found, err := conn.GetSetElements(&nftables.Set{Table: table, Name: name})
		if err != nil {
			return fmt.Errorf("read map %s: %w", name, err)
		}
		for _, e := range found {
			value := string(e.Val)
			if name == servicesMap || name == nodePortsMap {
				value = chainOf(e.Val)
			}
			at := place{name, string(e.Key)}
			p.have[at] = owned{value: value}
			p.hash += at.sum(value)
		}
	}
	return nil
}

// chainOf returns the chain of a verdict as the kernel has encoded it.
func chainOf(verdict []byte) string {
	ad, err := mdnetlink.NewAttributeDecoder(verdict)
	if err != nil {
		return ""
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_VERDICT_CHAIN {
			return ad.String()
		}
	}
	return ""
}

// step is what one service changes: one transaction has all of it or nothing.
type step struct {
	remove, put map[place]string
}

// write brings the elements from those of the last state to those of s, services at a
// time. It returns the endpoints that UDP no longer leads to.
func (p *plane) write(s *netstate.State) (gone []netip.AddrPort, err error) {
	var steps []step
	wanted := map[place]bool{}
	first := len(p.of) == 0
	names := changedServices(p.state, s)
	if first {
		names = slices.SortedFunc(maps.Keys(s.Services), compareNames)
	}
	after := map[place]owned{}
	next := map[netstate.Name]elements{}
	for _, name := range names {
		next[name] = serviceElements(s, name)
		for at, value := range next[name] {
			after[at] = owned{value, name}
			wanted[at] = true
		}
	}
	for _, name := range names {
		st := step{remove: map[place]string{}, put: map[place]string{}}
		for at := range p.of[name] {
			if have := p.have[at]; !wanted[at] && have.by == name {
				st.remove[at] = have.value
			}
		}
		for at, value := range next[name] {
			if after[at].by != name { // two services have one address: the later name has it
				continue
			}
			if have, ok := p.have[at]; !ok || have.value != value {
				st.put[at] = value
			} else {
				p.have[at] = owned{value, name}
			}
		}
		if len(st.remove)+len(st.put) > 0 {
			steps = append(steps, st)
		}
	}
	if first { // what was found and belongs to nobody
		st := step{remove: map[place]string{}}
		for at, have := range p.have {
			if !wanted[at] {
				st.remove[at] = have.value
			}
		}
		steps = append(steps, st)
	}
	for at := range p.ends(steps) {
		gone = append(gone, at)
	}
	all := steps
	for len(steps) > 0 {
		n, size := 0, 0
		for n < len(steps) && (n == 0 || size+len(steps[n].remove)+len(steps[n].put) <= elementsPerTransaction) {
			size += len(steps[n].remove) + len(steps[n].put)
			n++
		}
		if err := p.commit(steps[:n], after); err != nil {
			return nil, err
		}
		steps = steps[n:]
	}
	for name, e := range next {
		if p.of[name] = e; len(e) == 0 {
			delete(p.of, name)
		}
	}
	if len(all) > 0 && p.remembersClients() {
		return gone, p.forgetClients(all)
	}
	return gone, nil
}

func compareNames(a, b netstate.Name) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// changedServices are the services whose elements may differ between two states.
func changedServices(before, now *netstate.State) []netstate.Name {
	if before == nil {
		before = netstate.Empty(now.Node)
	}
	all := before.Node != now.Node || before.Zone != now.Zone
	names := map[netstate.Name]bool{}
	for name, svc := range now.Services {
		if all || before.Services[name] != svc {
			names[name] = true
		}
	}
	for name := range before.Services {
		if all || now.Services[name] == nil {
			names[name] = true
		}
	}
	if reflect.ValueOf(before.Slices).Pointer() != reflect.ValueOf(now.Slices).Pointer() {
		same := func(a, b *discoveryv1.EndpointSlice) bool { return a == b }
		for name, list := range now.Slices {
			if !slices.EqualFunc(before.Slices[name], list, same) {
				names[name] = true
			}
		}
		for name := range before.Slices {
			if now.Slices[name] == nil {
				names[name] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(names), compareNames)
}

// commit writes steps in one transaction.
func (p *plane) commit(steps []step, after map[place]owned) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	nftMu.Lock()
	defer nftMu.Unlock()
	sets := map[string]*nftables.Set{}
	for _, set := range theSets() {
		sets[set.Name] = set
	}
	remove, put := map[string][]nftables.SetElement{}, map[string][]nftables.SetElement{}
	made := map[string]bool{}
	for _, st := range steps {
		for at := range st.remove {
			remove[at.table] = append(remove[at.table], nftables.SetElement{Key: []byte(at.key)})
		}
		for at, value := range st.put {
			if _, ok := p.have[at]; ok {
				remove[at.table] = append(remove[at.table], nftables.SetElement{Key: []byte(at.key)})
			}
			e := nftables.SetElement{Key: []byte(at.key)}
			if at.table == servicesMap || at.table == nodePortsMap {
				e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: value}
				if !p.chains[value] && !made[value] {
					made[value] = true
					if err := addChain(conn, value); err != nil {
						return err
					}
				}
			} else {
				e.Val = []byte(value)
			}
			put[at.table] = append(put[at.table], e)
		}
	}
	for name, all := range remove {
		for part := range slices.Chunk(all, elementsPerMessage) {
			if err := conn.SetDeleteElements(sets[name], part); err != nil {
				return fmt.Errorf("remove from map %s: %w", name, err)
			}
		}
	}
	for name, all := range put {
		for part := range slices.Chunk(all, elementsPerMessage) {
			if err := conn.SetAddElements(sets[name], part); err != nil {
				return fmt.Errorf("add to map %s: %w", name, err)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", servicesTable, err)
	}
	maps.Copy(p.chains, made)
	for _, st := range steps {
		for at := range st.remove {
			p.hash -= at.sum(p.have[at].value)
			delete(p.have, at)
		}
		for at, value := range st.put {
			if have, ok := p.have[at]; ok {
				p.hash -= at.sum(have.value)
			}
			p.hash += at.sum(value)
			p.have[at] = after[at]
		}
	}
	return nil
}

// writeRanges brings the sets of ranges up to date.
func (p *plane) writeRanges() error {
	if !p.configured || reflect.DeepEqual(p.ranges, p.wanted) {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	nftMu.Lock()
	defer nftMu.Unlock()
	elements := p.wanted.elements()
	for _, set := range theSets() {
		if set.IsMap || set.Name == aboutSet {
			continue
		}
		conn.FlushSet(set)
		for part := range slices.Chunk(elements[set.Name], elementsPerMessage) {
			if err := conn.SetAddElements(set, part); err != nil {
				return fmt.Errorf("write set %s: %w", set.Name, err)
			}
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write ranges of table %s: %w", servicesTable, err)
	}
	p.ranges = p.wanted
	return nil
}

// addAbout notes on the table what it is, in the comment of an element that nothing
// else uses.
func addAbout(conn *nftables.Conn, revision int64, hash uint64) error {
	return conn.SetAddElements(&nftables.Set{Table: table, Name: aboutSet}, []nftables.SetElement{
		{Key: make([]byte, 4), Comment: fmt.Sprintf("layout=%d revision=%d hash=%016x", tablesLayout, revision, hash)},
	})
}

func (p *plane) about(revision int64) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.FlushSet(&nftables.Set{Table: table, Name: aboutSet})
	if err := addAbout(conn, revision, p.hash); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("note the revision on table %s: %w", servicesTable, err)
	}
	return nil
}

const udp = 17

// ends returns the endpoints of UDP services that steps take away from some front.
func (p *plane) ends(steps []step) map[netip.AddrPort]bool {
	gone := map[netip.AddrPort]bool{}
	note := func(at place, value string) {
		protocol, backs := 0, false
		switch at.table {
		case endpointsMap:
			protocol, backs = int(at.key[4]), true
		case nodePortEndpointsMap:
			protocol, backs = int(at.key[0]), true
		}
		if backs && protocol == udp {
			ip, _ := netip.AddrFromSlice([]byte(value)[:4])
			gone[netip.AddrPortFrom(ip, binary.BigEndian.Uint16([]byte(value)[4:]))] = true
		}
	}
	for _, st := range steps {
		for at, value := range st.remove {
			note(at, value)
		}
		for at := range st.put {
			if have, ok := p.have[at]; ok {
				note(at, have.value)
			}
		}
	}
	return gone
}

// forget ends what the kernel remembers of UDP "connections" to endpoints that are
// no more: a client that goes on sending from one port would be led there for ever.
// Failing is not an error of the tables, which are right.
func (p *plane) forget(gone []netip.AddrPort) {
	still := map[string]bool{}
	if len(gone) > 0 {
		for at, have := range p.have {
			if at.table == endpointsMap && at.key[4] == udp || at.table == nodePortEndpointsMap && at.key[0] == udp {
				still[have.value] = true
			}
		}
	}
	for _, at := range gone {
		if still[string(addrPort(at))] {
			continue
		}
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, repliesFrom(at))
		if err != nil {
			p.log.Warn("clients that send by UDP may go on to an endpoint that is gone", "endpoint", at, "error", err)
		}
	}
}

// repliesFrom matches what UDP endpoint answers.
type repliesFrom netip.AddrPort

func (e repliesFrom) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	ip, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return flow.Forward.Protocol == udp && netip.AddrPortFrom(ip.Unmap(), flow.Reverse.SrcPort) == netip.AddrPort(e)
}

// forgetClients removes clients from the maps of affinity whose endpoint is no more
// behind the front that steps changed: they get another one.
func (p *plane) forgetClients(steps []step) error {
	changed := map[string]bool{} // fronts of services that remember their clients
	behind := map[string]map[string]bool{}
	for _, st := range steps {
		for _, part := range []map[place]string{st.remove, st.put} {
			for at := range part {
				if at.table == endpointsMap || at.table == nodePortEndpointsMap {
					changed[at.key[:len(at.key)-4]] = true
				}
			}
		}
	}
	for at, have := range p.have {
		if at.table != endpointsMap && at.table != nodePortEndpointsMap {
			continue
		}
		if front := at.key[:len(at.key)-4]; changed[front] {
			if behind[front] == nil {
				behind[front] = map[string]bool{}
			}
			behind[front][have.value] = true
		}
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	for _, set := range theSets() {
		if !set.Dynamic {
			continue
		}
		clients, err := conn.GetSetElements(set)
		if err != nil {
			return fmt.Errorf("read map %s: %w", set.Name, err)
		}
		for _, client := range clients {
			if front := client.Key[4:]; changed[string(front)] && !behind[string(front)][string(client.Val)] {
				// Alone: it may time out before we remove it.
				if err := conn.SetDeleteElements(set, []nftables.SetElement{{Key: client.Key}}); err != nil {
					return err
				}
				if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("remove a client from map %s: %w", set.Name, err)
				}
			}
		}
	}
	return nil
}

// remembersClients reports whether there ever was a service with affinity.
func (p *plane) remembersClients() bool {
	for chain := range p.chains {
		if strings.Contains(chain, "same-of-") {
			return true
		}
	}
	return false
}

// remove removes the table. None is not an error.
func (p *plane) remove() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known, p.configured, p.state, p.ranges = false, false, nil, ranges{}
	return removeTable(servicesTable)
}

func nativeUint32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
