// Command netrules prints the nftables rules, and the elements of the sets, of the
// network namespace that it runs in, one a line, in an order that does not change.
// The tour compares what it prints before pods come and after they are gone.
package main

import (
	"fmt"
	"os"

	"github.com/google/nftables"
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
	chains, err := conn.ListChains()
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, chain := range chains {
		rules, err := conn.GetRules(chain.Table, chain)
		if err != nil {
			return fmt.Errorf("list rules of %s: %w", chain.Name, err)
		}
		for _, rule := range rules {
			fmt.Printf("rule %s %s:", chain.Table.Name, chain.Name)
			for _, expression := range rule.Exprs {
				fmt.Printf(" %T%+v", expression, expression)
			}
			fmt.Println()
		}
	}
	return nil
}
