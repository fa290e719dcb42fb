package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) secretsCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "secrets",
		Short: "Look after the keys that the values of Secrets are sealed with",
		Long: `Values of Secrets are sealed in the store, its log, history, snapshots and backups,
with keys that only peers have. A new key is made every 30 days, and old values are sealed
with it in the background.`,
		Example: "  holdfast secrets status",
		Args:    groupArgs,
		RunE:    showHelp,
	}
	var output string
	status := &cobra.Command{
		Use:     "status",
		Short:   "Show which keys there are, and how many Secrets each seals",
		Example: "  holdfast secrets status -o json",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runSecretsStatus(cmd.Context(), output) },
	}
	status.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	rotate := &cobra.Command{
		Use:   "rotate-key",
		Short: "Make another key, and have all Secrets sealed with it",
		Long: `Make another key, which seals from now on. What is sealed with older ones is sealed anew
in the background; ` + "`holdfast secrets status`" + ` shows how far that has come. Old keys are
forgotten when neither an object nor the history that is kept needs them.`,
		Example: "  holdfast secrets rotate-key",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runSecretsRotate(cmd.Context()) },
	}
	group.AddCommand(status, rotate)
	return group
}

func (a *app) runSecretsStatus(ctx context.Context, output string) error {
	if err := checkOutput(output, "text", "json", "yaml"); err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	status, err := r.secrets.Status(ctx, &holdfastv1.SecretsServiceStatusRequest{})
	if err != nil {
		return a.explain(ctx, r, "the keys of secrets", err)
	}
	if output != "text" {
		data, err := protojson.Marshal(status)
		if err != nil {
			return err
		}
		return writeJSON(a.stdout, output, data)
	}
	if len(status.GetKeys()) > 0 {
		table := tabwriter.NewWriter(a.stdout, 0, 0, 3, ' ', 0)
		fmt.Fprintln(table, "KEY\tMADE\tSECRETS\tSTATE")
		for i, k := range status.GetKeys() {
			state := "opens; what it seals is being sealed anew"
			switch {
			case i == len(status.GetKeys())-1:
				state = "seals"
			case k.GetUnused() > 0:
				state = fmt.Sprintf("opens what was before revision %d", k.GetUnused())
			}
			fmt.Fprintf(table, "%d\t%s\t%d\t%s\n", k.GetId(), k.GetMade().AsTime().Format("2006-01-02 15:04:05 MST"), k.GetSecrets(), state)
		}
		table.Flush()
	}
	if n := status.GetReadable(); n > 0 {
		fmt.Fprintf(a.stdout, "%d Secrets are not sealed yet.\n", n)
	}
	if why := status.GetObstacle(); why != "" {
		return failf(exitError, "%s", why)
	}
	return nil
}

func (a *app) runSecretsRotate(ctx context.Context) error {
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	made, err := r.secrets.RotateKey(ctx, &holdfastv1.SecretsServiceRotateKeyRequest{})
	if err != nil {
		return a.explain(ctx, r, "make another key", err)
	}
	fmt.Fprintf(a.stdout, "key %d seals from revision %d on\n", made.GetId(), made.GetRevision())
	return nil
}
