package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) versionCommand() *cobra.Command {
	var clientOnly bool
	var output string
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Show the version of this program and of the peer that answers",
		Example: "  holdfast version\n  holdfast version --client",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runVersion(cmd.Context(), clientOnly, output) },
	}
	cmd.Flags().BoolVar(&clientOnly, "client", false, "ask no cluster")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return cmd
}

func (a *app) runVersion(ctx context.Context, clientOnly bool, output string) error {
	if err := checkOutput(output, "table", "json", "yaml"); err != nil {
		return err
	}
	versions := struct {
		Client   string `json:"client"`
		Platform string `json:"platform"`
		Go       string `json:"go"`
		Server   string `json:"server,omitempty"`
		Peer     string `json:"peer,omitempty"`
	}{version, runtime.GOOS + "/" + runtime.GOARCH, runtime.Version(), "", ""}
	// That no cluster answers is no error of this command.
	if r, err := a.dial(); err == nil && !clientOnly {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if status, err := r.cluster.Status(ctx, &holdfastv1.StatusRequest{}); err == nil {
			versions.Server, versions.Peer = status.GetVersion(), status.GetServedBy()
		}
	}
	if output != "table" {
		data, err := json.Marshal(versions)
		if err != nil {
			return err
		}
		return writeJSON(a.stdout, output, data)
	}
	fmt.Fprintf(a.stdout, "holdfast %s (%s, %s)\n", versions.Client, versions.Platform, versions.Go)
	if versions.Server != "" {
		fmt.Fprintf(a.stdout, "peer %s: holdfast %s\n", versions.Peer, versions.Server)
	}
	return nil
}
