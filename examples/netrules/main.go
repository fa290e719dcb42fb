// Command netrules prints the nftables rules, and the elements of the sets, of the
// network namespace that it runs in, one a line, in an order that does not change.
// The tour compares what it prints before pods come and after they are gone.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "netrules:", err)
		os.Exit(1)
	}
}

func run() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	for _, table := range tables {
		fmt.Printf("table %d %s\n", table.Family, table.Name)
		sets, err := conn.GetSets(table)
		if err != nil {
			return fmt.Errorf("list sets of %s: %w", table.Name, err)
		}
		for _, set := range sets {
			elements, err := conn.GetSetElements(set)
			if err != nil {
				return fmt.Errorf("list elements of %s: %w", set.Name, err)
			}
			fmt.Printf("set %s %s: %d elements\n", table.Name, set.Name, len(elements))
		}
	}
	return rules()
}

// rules prints each rule's place and the hash of its expressions: the library above does not read all
// that it writes.
func rules() error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	replies, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, 4), // struct nfgenmsg: all families
	})
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	for _, reply := range replies {
		attributes, err := netlink.NewAttributeDecoder(reply.Data[4:])
		if err != nil {
			return fmt.Errorf("read a rule: %w", err)
		}
		var table, chain string
		var sum [sha256.Size]byte
		for attributes.Next() {
			switch attributes.Type() {
			case unix.NFTA_RULE_TABLE:
				table = attributes.String()
			case unix.NFTA_RULE_CHAIN:
				chain = attributes.String()
			case unix.NFTA_RULE_EXPRESSIONS:
				sum = sha256.Sum256(attributes.Bytes())
			}
		}
		if err := attributes.Err(); err != nil {
			return fmt.Errorf("read a rule: %w", err)
		}
		fmt.Printf("rule %s %s: %x\n", table, chain, sum[:8])
	}
	return nil
}
