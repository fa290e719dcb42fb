package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) tokenCommand() *cobra.Command {
	group := &cobra.Command{
		Use:     "token",
		Short:   "Make tokens with which machines join",
		Example: "  holdfast token create --role node",
		Args:    groupArgs,
		RunE:    showHelp,
	}
	var role, output string
	var ttl time.Duration
	create := &cobra.Command{
		Use:   "create --role peer|node",
		Short: "Make a token and show it, this once",
		Long: `Make a token and show it, this once: the cluster keeps only a hash. It pins the
cluster's CA, so that a machine which joins with it cannot be led to another
cluster, and it works for one role until it expires.`,
		Example: `  holdfast token create --role node
  holdfast token create --role peer --ttl 10m`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runTokenCreate(cmd.Context(), role, ttl, output)
		},
	}
	flags := create.Flags()
	flags.StringVar(&role, "role", "", "what joins with it: peer or node")
	flags.DurationVar(&ttl, "ttl", time.Hour, "how long it works")
	flags.StringVarP(&output, "output", "o", "token", "token, json or yaml")
	group.AddCommand(create)
	return group
}

func (a *app) runTokenCreate(ctx context.Context, role string, ttl time.Duration, output string) error {
	if err := checkOutput(output, "token", "json", "yaml"); err != nil {
		return err
	}
	if ttl <= 0 {
		return failf(exitUsage, "--ttl %s: want more than 0", ttl)
	}
	if _, err := tokenRole(role); err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	token, err := a.createToken(ctx, r, role, ttl)
	if err != nil {
		return err
	}
	if output == "token" {
		fmt.Fprintln(a.stdout, token.GetToken())
		return nil
	}
	data, err := protojson.Marshal(token)
	if err != nil {
		return err
	}
	return writeJSON(a.stdout, output, data)
}

// createToken has the cluster make a token for a role, "peer" or "node".
func (a *app) createToken(ctx context.Context, r *remote, role string, ttl time.Duration) (*holdfastv1.CreateTokenResponse, error) {
	wanted, err := tokenRole(role)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	token, err := r.cluster.CreateToken(ctx, &holdfastv1.CreateTokenRequest{Role: wanted, Ttl: durationpb.New(ttl)})
	if err != nil {
		return nil, a.explain(ctx, r, "create a token", err)
	}
	return token, nil
}

// tokenRole returns the role that a user names.
func tokenRole(name string) (holdfastv1.Role, error) {
	switch name {
	case "peer":
		return holdfastv1.Role_ROLE_PEER, nil
	case "node":
		return holdfastv1.Role_ROLE_NODE, nil
	}
	return 0, failf(exitUsage, "--role %q: want peer or node", name)
}
