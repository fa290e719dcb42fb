package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the nftables table, of family ip, that is ours as a whole.
const tableName = "holdfast-masquerade"

// Offsets in an IPv4 header.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

// setMasquerade lets pods reach what is outside the cluster: there nobody has a
// route back to them, so they appear as their node. Towards pods, and nodes on our
// links, they keep their own address.
func (n *Network) setMasquerade(want []wantedRoute) error {
	var own, cluster []netip.Prefix
	for _, w := range want {
		cluster = append(cluster, w.to)
		switch {
		case w.via.IsValid() && w.mode == modeDirect:
			cluster = append(cluster, netip.PrefixFrom(w.via, 32))
		case w.via.IsValid(): // what lies between knows nothing of pods
		default:
			own = append(own, w.to)
		}
	}
	pods, inside := rangesOf(own), rangesOf(cluster)
	key := fmt.Sprint(pods, inside)
	if key == n.masquerade {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	nftMu.Lock()
	defer nftMu.Unlock()
	// In one transaction: added so that it can be deleted, then made anew.
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
	conn.AddTable(table)
	conn.DelTable(table)
	if len(pods) > 0 {
		conn.AddTable(table)
		if err := addMasqueradeRule(conn, table, pods, inside); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", tableName, err)
	}
	n.masquerade = key
	return nil
}

func addMasqueradeRule(conn *nftables.Conn, table *nftables.Table, pods, inside []addrRange) error {
	podSet, err := addSet(conn, table, "pods", pods)
	if err != nil {
		return err
	}
	insideSet, err := addSet(conn, table, "cluster", inside)
	if err != nil {
		return err
	}
	chain := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	address := func(offset uint32) expr.Any {
		return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
	}
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		address(sourceOffset),
		&expr.Lookup{SourceRegister: 1, SetName: podSet.Name, SetID: podSet.ID},
		address(destinationOffset),
		&expr.Lookup{SourceRegister: 1, SetName: insideSet.Name, SetID: insideSet.ID, Invert: true},
		&expr.Masq{},
	}})
	return nil
}

func addSet(conn *nftables.Conn, table *nftables.Table, name string, ranges []addrRange) (*nftables.Set, error) {
	set := &nftables.Set{Table: table, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
	var elements []nftables.SetElement
	for _, r := range ranges {
		elements = append(elements, nftables.SetElement{Key: r.first.AsSlice()})
		if r.end.IsValid() { // else it goes to the end of all addresses
			elements = append(elements, nftables.SetElement{Key: r.end.AsSlice(), IntervalEnd: true})
		}
	}
	return set, conn.AddSet(set, elements)
}

// removeTable removes a table of family ip. None is not an error.
func removeTable(name string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	there, err := hasTable(conn, name)
	if err != nil || !there {
		return err
	}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: name})
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove table %s: %w", name, err)
	}
	return nil
}

// hasTable reports whether there is a table of family ip of that name.
func hasTable(conn *nftables.Conn, name string) (bool, error) {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return false, nil // a kernel without nftables has no table either
	}
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }), nil
}

// addrRange is a range of addresses from first up to, not including, end.
type addrRange struct{ first, end netip.Addr }

// rangesOf returns what prefixes cover as ranges that neither overlap nor touch,
// rising, as the kernel wants them.
func rangesOf(prefixes []netip.Prefix) []addrRange {
	sorted := slices.Clone(prefixes)
	slices.SortFunc(sorted, func(a, b netip.Prefix) int { return a.Masked().Addr().Compare(b.Masked().Addr()) })
	var ranges []addrRange
	for _, p := range sorted {
		// Next of the last address of all is not valid: an open end.
		r := addrRange{p.Masked().Addr(), lastOf(p).Next()}
		if len(ranges) > 0 {
			before := &ranges[len(ranges)-1]
			if !before.end.IsValid() {
				break
			}
			if !before.end.Less(r.first) {
				if !r.end.IsValid() || before.end.Less(r.end) {
					before.end = r.end
				}
				continue
			}
		}
		ranges = append(ranges, r)
	}
	return ranges
}
