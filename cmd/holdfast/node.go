package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) nodeCommand() *cobra.Command {
	group := &cobra.Command{
		Use:     "node",
		Short:   "Take nodes out of the cluster",
		Example: "  holdfast node remove n3",
		Args:    groupArgs,
		RunE:    showHelp,
	}
	var reason string
	remove := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a node out of the cluster and refuse its machine",
		Long: `Take a node out of the cluster and refuse its machine: the Node is deleted, its pods
run elsewhere, and its certificates count no more, at any peer. The machine is told so.
Drain it first (holdfast drain) if it is still of use. To come back it joins anew, with
a token and an empty data directory.

This is what to do about a machine that was stolen or lost, too. Its agent stops the
pods that ask for it once its lease has ended; others it may run for as long as it has
power, without being able to read or write anything of the cluster.`,
		Example: `  holdfast node remove n3
  holdfast node remove n3 --reason "stolen from the rack"`,
		Args:              exactArgs(1, "the NAME of a node"),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runNodeRemove(cmd.Context(), bareNodes(args)[0], reason)
		},
	}
	remove.Flags().StringVar(&reason, "reason", "", "why, for people: the machine is told, and it is kept")
	group.AddCommand(remove)
	return group
}

func (a *app) runNodeRemove(ctx context.Context, name, reason string) error {
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	if _, err := r.cluster.RemoveNode(ctx, &holdfastv1.RemoveNodeRequest{Name: name, Reason: reason}); err != nil {
		return a.explain(ctx, r, "remove node "+name, err)
	}
	fmt.Fprintf(a.stdout, "node %s removed: its machine is refused from now on\n", name)
	return nil
}
