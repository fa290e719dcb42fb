package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// exactArgs wants n arguments and says which.
func exactArgs(n int, which string) cobra.PositionalArgs { return between(n, n, which) }

// between wants so many arguments and says which.
func between(least, most int, which string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return failf(exitUsage, "%d arguments given, want %s", len(args), which)
		}
		return nil
	}
}

// atMost wants n arguments or fewer.
func atMost(n int) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > n {
			return failf(exitUsage, "%d arguments given, want %d at most", len(args), n)
		}
		return nil
	}
}

// noArgs wants none. Who forgot the -f before a file is reminded of it.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	message := fmt.Sprintf("%s: %s takes no arguments", args[0], cmd.CommandPath())
	if f := cmd.Flags().ShorthandLookup("f"); f != nil && f.Name == "filename" {
		if _, err := os.Stat(args[0]); err == nil {
			message += fmt.Sprintf(": did you mean -f %s?", args[0])
		}
	}
	return failf(exitUsage, "%s", message)
}
