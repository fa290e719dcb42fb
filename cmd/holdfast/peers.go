package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) peerCommand() *cobra.Command {
	group := &cobra.Command{
		Use:     "peer",
		Short:   "Change who takes part in the cluster",
		Example: "  holdfast peer remove p3",
		Args:    groupArgs,
		RunE:    showHelp,
	}
	group.AddCommand(&cobra.Command{
		Use:   "remove ID",
		Short: "Take a peer out of the cluster for good",
		Long: `Take a peer out of the cluster for good. It no longer counts for the quorum and its
certificate no longer opens anything. Refused when what remains could not form a
quorum. A machine that is to come back joins anew, with an empty data directory.`,
		Example: "  holdfast peer remove p3",
		Args:    exactArgs(1, "the ID of one peer, as `holdfast cluster status` shows it"),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.runPeerRemove(cmd.Context(), args[0]) },
	})
	return group
}

func (a *app) runPeerRemove(ctx context.Context, id string) error {
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	if _, err := r.cluster.RemovePeer(ctx, &holdfastv1.RemovePeerRequest{Id: id}); err != nil {
		return a.explain(ctx, r, "remove peer "+id, err)
	}
	fmt.Fprintf(a.stdout, "peer %s removed\n", id)
	return nil
}
