package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) revokeCommand() *cobra.Command {
	var serial, reason string
	cmd := &cobra.Command{
		Use:   "revoke ROLE/NAME | revoke --serial SERIAL",
		Short: "Refuse who has a certificate, from now on",
		Long: `Refuse who has a certificate, from now on: all certificates of a user, an administrator
or a node that were issued so far, or the one with a serial number. Every peer refuses
them as soon as it has heard of it; streams that are open end, with the reason.

A certificate that is issued later is good: whoever lost one gets another one. To take
a node out of the cluster for good use: holdfast node remove. A peer: holdfast peer remove.`,
		Example: `  holdfast auth revoke user/jane --reason "laptop lost"
  holdfast auth revoke --serial 5f3a9c`,
		Args: atMost(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			role, name, err := revocableArgs(args, serial)
			if err != nil {
				return err
			}
			return a.access(cmd.Context(), "revoke a certificate", func(ctx context.Context, r *remote) error {
				_, err := r.access.Revoke(ctx, &holdfastv1.RevokeRequest{Role: role, Name: name, Serial: serial, Reason: reason})
				if err == nil {
					fmt.Fprintf(a.stdout, "%s revoked\n", whose(role, name, serial))
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&serial, "serial", "", "the serial number of one certificate, hexadecimal")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for people: who is refused is told")
	return cmd
}

func (a *app) readmitCommand() *cobra.Command {
	var serial string
	cmd := &cobra.Command{
		Use:   "readmit ROLE/NAME | readmit --serial SERIAL",
		Short: "Take a revocation or a quarantine back",
		Long: `Take a revocation or a quarantine back. A node is in quarantine when two machines used
its certificate at the same time: a copy of its data directory is somewhere. Stop the
copy and empty its directory first; it joins under another name.`,
		Example: "  holdfast auth readmit node/n1",
		Args:    atMost(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			role, name, err := revocableArgs(args, serial)
			if err != nil {
				return err
			}
			return a.access(cmd.Context(), "readmit", func(ctx context.Context, r *remote) error {
				_, err := r.access.Readmit(ctx, &holdfastv1.ReadmitRequest{Role: role, Name: name, Serial: serial})
				if err == nil {
					fmt.Fprintf(a.stdout, "%s readmitted\n", whose(role, name, serial))
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&serial, "serial", "", "the serial number of one certificate, hexadecimal")
	return cmd
}

func (a *app) revocationsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "revocations",
		Short:   "List who is refused, since when and why",
		Example: "  holdfast auth revocations",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.access(cmd.Context(), "list revocations", func(ctx context.Context, r *remote) error {
				got, err := r.access.ListRevocations(ctx, &holdfastv1.ListRevocationsRequest{})
				if err != nil {
					return err
				}
				var rows [][]string
				for _, v := range got.GetRevocations() {
					since := ""
					if v.GetAt() != nil {
						since = v.GetAt().AsTime().Format(time.RFC3339)
					}
					rows = append(rows, []string{whose(v.GetRole(), v.GetName(), v.GetSerial()), v.GetKind(), since, v.GetBy(), v.GetReason()})
				}
				out := grid{w: a.stdout, header: true}
				out.write(object.Table{Columns: []object.Column{{Name: "WHO"}, {Name: "IS"}, {Name: "SINCE"}, {Name: "BY"}, {Name: "REASON"}}, Rows: rows})
				return nil
			})
		},
	}
}

// access makes one call and explains its error.
func (a *app) access(ctx context.Context, doing string, call func(context.Context, *remote) error) error {
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	if err := call(ctx, r); err != nil {
		return a.explain(ctx, r, doing, err)
	}
	return nil
}

func revocableArgs(args []string, serial string) (role, name string, err error) {
	if (len(args) == 1) == (serial != "") {
		return "", "", failf(exitUsage, "say who, such as user/jane, or --serial with the number of one certificate")
	}
	if serial != "" {
		return "", "", nil
	}
	role, name, ok := strings.Cut(args[0], "/")
	if !ok || name == "" {
		return "", "", failf(exitUsage, "%q: want ROLE/NAME, such as user/jane, admin/bob or node/n1", args[0])
	}
	return role, name, nil
}

func whose(role, name, serial string) string {
	if serial != "" {
		return "serial/" + serial
	}
	return role + "/" + name
}
