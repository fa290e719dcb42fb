package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) netCommand() *cobra.Command {
	group := &cobra.Command{
		Use:     "net",
		Short:   "Look at the cluster's network as the nodes have it",
		Example: "  holdfast net verify\n  holdfast net trace pod/web service/db:5432",
		Args:    groupArgs,
		RunE:    showHelp,
	}
	group.AddCommand(a.netVerifyCommand(), a.netTraceCommand())
	return group
}

func (a *app) netVerifyCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "verify [NODE...]",
		Short: "Check that all nodes' packet rules are what the cluster's state makes of them",
		Long: `Check that all nodes, or those named, have the cluster's state of the network, and that
the packet rules in their kernels are what that makes of them: each node reads its
tables back and compares them, rule by rule.

A node that lags has older state or older rules; it was asked several times. A node that
differs has another state than the cluster had at that revision. Rules that somebody
else has changed are named, and the agent repairs them. The command fails unless all
nodes are as they should be; rules that had to be repaired fail it once.`,
		Example: `  holdfast net verify
  holdfast net verify n1 -o json`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.runNetVerify(cmd.Context(), args, output) },
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// netVerifyPatience bounds the wait for all nodes.
const netVerifyPatience = time.Minute

var verdictWords = map[holdfastv1.Verdict]string{
	holdfastv1.Verdict_VERDICT_SAME: "the same", holdfastv1.Verdict_VERDICT_LAGS: "LAGS", holdfastv1.Verdict_VERDICT_DIFFERS: "DIFFERS",
	holdfastv1.Verdict_VERDICT_REPAIRED: "REPAIRED", holdfastv1.Verdict_VERDICT_TAMPERED: "TAMPERED", holdfastv1.Verdict_VERDICT_NO_ANSWER: "no answer",
}

func (a *app) runNetVerify(ctx context.Context, nodes []string, output string) error {
	if err := checkOutput(output, "text", "json"); err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, netVerifyPatience)
	defer cancel()
	resp, err := r.network.Verify(ctx, &holdfastv1.VerifyRequest{Nodes: nodes})
	if err != nil {
		return a.explain(ctx, r, "verify the network", err)
	}
	if output == "json" {
		data, err := protojson.MarshalOptions{Multiline: true}.Marshal(resp)
		if err != nil {
			return err
		}
		fmt.Fprintln(a.stdout, string(data))
	}
	wrong := 0
	table := object.Table{Columns: []object.Column{{Name: "NODE"}, {Name: "VERDICT"}, {Name: "REVISION"}, {Name: "MESSAGE"}}}
	for _, n := range resp.GetNodes() {
		if n.GetVerdict() != holdfastv1.Verdict_VERDICT_SAME {
			wrong++
		}
		revision := "-"
		if n.GetFound() != nil {
			revision = fmt.Sprint(n.GetFound().GetProgrammed())
		}
		table.Rows = append(table.Rows, []string{n.GetNode(), verdictWords[n.GetVerdict()], revision, n.GetMessage()})
	}
	if output == "text" {
		(&grid{w: a.stdout, header: true}).write(table)
	}
	if wrong > 0 {
		return failf(exitError, "%d of %d nodes are not as they should be, at revision %d", wrong, len(resp.GetNodes()), resp.GetRevision())
	}
	if output == "text" {
		fmt.Fprintf(a.stdout, "all %d nodes have the cluster's network at revision %d, hash %s\n", len(resp.GetNodes()), resp.GetRevision(), resp.GetHash())
	}
	return nil
}
