package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/holdfast-io/holdfast/agent/containerd"
	"github.com/holdfast-io/holdfast/agent/deadman"
	"github.com/holdfast-io/holdfast/agent/network"
)

// dispatch runs what this binary is under other names: a shim, a container's
// log process, a pod's holder. They are started with arguments of their own, so nothing
// else must look at them.
func dispatch(args []string) {
	switch {
	case containerd.IsShim(args):
		containerd.RunShim()
		os.Exit(exitOK)
	case containerd.IsLogger(args):
		containerd.RunLogger()
		os.Exit(exitOK)
	case containerd.IsHolder(args):
		containerd.RunHolder()
	case deadman.Is(args):
		os.Exit(deadman.Main(args))
	case network.IsTunnel(args):
		os.Exit(network.TunnelMain(args))
	case len(args) > 1 && args[1] == "containerd":
		if err := containerd.ServeCommand(context.Background(), args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(exitError)
		}
		os.Exit(exitOK)
	}
}

// machineCommands are those that run on a machine of a cluster.
func (a *app) machineCommands() []*cobra.Command {
	return []*cobra.Command{a.devCommand(), a.serverCommand(), a.agentCommand(), a.restoreCommand()}
}
