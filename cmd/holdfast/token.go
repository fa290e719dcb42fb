package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) tokenCommand() *cobra.Command {
	group := &cobra.Command{
		Use:     "token",
		Short:   "Make, list and revoke tokens with which machines join",
		Example: "  holdfast token create --role node\n  holdfast token list",
		Args:    groupArgs,
		RunE:    showHelp,
	}
	var role, output string
	var ttl time.Duration
	var uses uint32
	create := &cobra.Command{
		Use:   "create --role peer|node",
		Short: "Make a token and show it, this once",
		Long: `Make a token and show it, this once: the cluster keeps only a hash. It pins the
cluster's CA, so that a machine which joins with it cannot be led to another
cluster, and it works for one role until it expires, or until as many machines have
joined with it as --uses says.`,
		Example: `  holdfast token create --role node
  holdfast token create --role node --uses 1
  holdfast token create --role peer --ttl 10m`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runTokenCreate(cmd.Context(), role, ttl, uses, output)
		},
	}
	flags := create.Flags()
	flags.StringVar(&role, "role", "", "what joins with it: peer or node")
	flags.DurationVar(&ttl, "ttl", time.Hour, "how long it works")
	flags.Uint32Var(&uses, "uses", 0, "how many machines may join with it; 0: any number")
	flags.StringVarP(&output, "output", "o", "token", "token, json or yaml")
	group.AddCommand(create, a.tokenListCommand(), a.tokenRevokeCommand())
	return group
}

func (a *app) runTokenCreate(ctx context.Context, role string, ttl time.Duration, uses uint32, output string) error {
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
	token, err := a.createToken(ctx, r, role, ttl, uses)
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
func (a *app) createToken(ctx context.Context, r *remote, role string, ttl time.Duration, uses uint32) (*holdfastv1.CreateTokenResponse, error) {
	wanted, err := tokenRole(role)
	if err != nil {
		return nil, err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	token, err := r.cluster.CreateToken(ctx, &holdfastv1.CreateTokenRequest{Role: wanted, Ttl: durationpb.New(ttl), Uses: uses})
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

func (a *app) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List tokens, without their secrets",
		Example: "  holdfast token list",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.access(cmd.Context(), "list tokens", func(ctx context.Context, r *remote) error {
				got, err := r.cluster.ListTokens(ctx, &holdfastv1.ListTokensRequest{})
				if err != nil {
					return err
				}
				var rows [][]string
				for _, t := range got.GetTokens() {
					used := fmt.Sprint(t.GetUsed())
					if t.GetUses() > 0 {
						used = fmt.Sprintf("%d of %d", t.GetUsed(), t.GetUses())
					}
					role := "node"
					if t.GetRole() == holdfastv1.Role_ROLE_PEER {
						role = "peer"
					}
					rows = append(rows, []string{t.GetId(), role, used, t.GetExpiresAt().AsTime().Format(time.RFC3339), t.GetCreator(), cmp.Or(t.GetState(), "good")})
				}
				out := grid{w: a.stdout, header: true}
				out.write(object.Table{Columns: []object.Column{{Name: "ID"}, {Name: "ROLE"}, {Name: "USED"}, {Name: "EXPIRES"}, {Name: "BY"}, {Name: "STATE"}}, Rows: rows})
				return nil
			})
		},
	}
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Make a token good for nothing; what joined with it stays",
		Long: `Make a token good for nothing; what joined with it stays. ID is what holdfast token list
shows, or its first characters, 6 at least; a token's id is its part between the first
two dots.`,
		Example: "  holdfast token revoke k3v7qa",
		Args:    exactArgs(1, "the ID of a token"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.access(cmd.Context(), "revoke a token", func(ctx context.Context, r *remote) error {
				got, err := r.cluster.RevokeToken(ctx, &holdfastv1.RevokeTokenRequest{Id: args[0]})
				if err == nil {
					fmt.Fprintf(a.stdout, "token %s revoked\n", got.GetId())
				}
				return err
			})
		},
	}
}
