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

// createTokenCommand makes tokens of service accounts, with kubectl's flags. Those with
// which machines join are tokenCommand's.
func (a *app) createTokenCommand() *cobra.Command {
	var audiences []string
	var life time.Duration
	var binding holdfastv1.TokenBinding
	var output string
	cmd := &cobra.Command{
		Use:   "token SERVICEACCOUNT",
		Short: "Make a token of a service account",
		Long: `Make a token of a service account, a JWT that every peer accepts: as a bearer
token in the REST API, in a TokenReview, or at whoever it is for. It is good until
it expires, or until the service account, or the object that it is bound to, is
deleted. Nothing of it is kept.

Tokens with which machines join are made with: holdfast token create`,
		Example: `  holdfast create token web
  holdfast create token web --audience https://vault.example.com --duration 24h
  holdfast create token web --bound-object-kind Pod --bound-object-name web-7f2ab`,
		Args: exactArgs(1, "a SERVICEACCOUNT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &holdfastv1.IssueTokenRequest{Namespace: a.inNamespace(), ServiceAccount: args[0], Audiences: audiences}
			if cmd.Flags().Changed("duration") {
				req.Lifetime = durationpb.New(life)
			}
			switch {
			case binding.GetKind() != "":
				req.Binding = &binding
			case binding.GetName() != "" || binding.GetUid() != "":
				return failf(exitUsage, "--bound-object-kind is missing: say of which kind it is, Pod, Secret or Node")
			}
			return a.runCreateToken(cmd.Context(), req, output)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&audiences, "audience", nil, "whom the token is for; the cluster's own API without it")
	flags.DurationVar(&life, "duration", time.Hour, "how long it is good, from 10m to 2160h (90 days)")
	flags.StringVar(&binding.Kind, "bound-object-kind", "", "kind of the object that the token is bound to: Pod, Secret or Node")
	flags.StringVar(&binding.Name, "bound-object-name", "", "its name")
	flags.StringVar(&binding.Uid, "bound-object-uid", "", "its uid, if it must be that one")
	flags.StringVarP(&output, "output", "o", "token", "token, json or yaml")
	return cmd
}

func (a *app) runCreateToken(ctx context.Context, req *holdfastv1.IssueTokenRequest, output string) error {
	if err := checkOutput(output, "token", "json", "yaml"); err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := r.access.IssueToken(ctx, req)
	if err != nil {
		return a.explain(ctx, r, "create a token of service account "+req.GetServiceAccount(), err)
	}
	a.warn(resp.GetAnswer())
	if output == "token" {
		fmt.Fprintln(a.stdout, resp.GetToken())
		return nil
	}
	resp.Answer = nil
	data, err := protojson.Marshal(resp)
	if err != nil {
		return err
	}
	return writeJSON(a.stdout, output, data)
}
