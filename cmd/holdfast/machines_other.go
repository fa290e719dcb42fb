//go:build !linux

package main

import (
	"runtime"

	"github.com/spf13/cobra"
)

// dispatch has nothing to do: containers need Linux.
func dispatch([]string) {}

// machineCommands are there, so that their absence explains itself.
func (a *app) machineCommands() []*cobra.Command {
	var out []*cobra.Command
	for name, short := range map[string]string{
		"server":  "Run a peer of a cluster (Linux only)",
		"agent":   "Run the agent of a node (Linux only)",
		"restore": "Make a new cluster's first peer out of a backup (Linux only)",
		"dev":     "Run a whole cluster on this machine (Linux only)",
	} {
		out = append(out, &cobra.Command{
			Use: name, Short: short, Example: "  holdfast " + name,
			DisableFlagParsing: true,
			RunE: func(*cobra.Command, []string) error {
				return failf(exitError, "`holdfast %s` runs on Linux, and this is %s: here the command line talks to a cluster elsewhere", name, runtime.GOOS)
			},
		})
	}
	return out
}
