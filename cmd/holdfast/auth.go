package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) authCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "auth",
		Short: "Who one is to the cluster, and what one may do",
		Example: `  holdfast auth whoami
  holdfast auth can-i delete pods`,
		Args: groupArgs,
		RunE: showHelp,
	}
	cmd.AddCommand(a.whoAmICommand(), a.canICommand())
	return cmd
}

func (a *app) whoAmICommand() *cobra.Command {
	return &cobra.Command{
		Use:     "whoami",
		Short:   "Show as whom the cluster sees one",
		Example: "  holdfast auth whoami",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.request(cmd.Context())
			defer cancel()
			me, err := r.access.WhoAmI(ctx, &holdfastv1.WhoAmIRequest{})
			if err != nil {
				return a.explain(ctx, r, "ask who I am", err)
			}
			fmt.Fprintf(a.stdout, "%s (%s)\n", me.GetName(), strings.Join(me.GetGroups(), ", "))
			return nil
		},
	}
}

func (a *app) canICommand() *cobra.Command {
	var quiet, everywhere bool
	var subresource string
	cmd := &cobra.Command{
		Use:   "can-i VERB KIND [NAME] | VERB KIND/NAME | VERB /PATH",
		Short: "Ask whether one may do something; exit code 0 is yes, 4 is no",
		Example: `  holdfast auth can-i create deployments
  holdfast auth can-i get pod/web-7f2ab --subresource log
  holdfast auth can-i get /metrics`,
		Args: between(2, 3, "a VERB and a KIND, perhaps with a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &holdfastv1.CanIRequest{Verb: strings.ToLower(args[0]), Subresource: subresource}
			r, err := a.dial()
			if err != nil {
				return err
			}
			if strings.HasPrefix(args[1], "/") {
				if len(args) > 2 {
					return failf(exitUsage, "a path has no name: leave %q out", args[2])
				}
				req.Path = args[1]
			} else if err := a.askAbout(cmd.Context(), req, args[1:], everywhere); err != nil {
				return err
			}
			ctx, cancel := a.request(cmd.Context())
			defer cancel()
			answer, err := r.access.CanI(ctx, req)
			if err != nil {
				return a.explain(ctx, r, "ask what I may do", err)
			}
			if answer.GetAllowed() {
				if !quiet {
					fmt.Fprintln(a.stdout, "yes")
				}
				return nil
			}
			if !quiet {
				fmt.Fprintf(a.stdout, "no: %s\n", answer.GetReason())
			}
			return exit(exitRefused)
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&quiet, "quiet", "q", false, "print nothing: the exit code says it")
	flags.BoolVarP(&everywhere, "all-namespaces", "A", false, "in all namespaces")
	flags.StringVar(&subresource, "subresource", "", "a part of the object, such as log, exec, status or scale")
	return cmd
}

// askAbout puts the objects that args name into req.
func (a *app) askAbout(ctx context.Context, req *holdfastv1.CanIRequest, args []string, everywhere bool) error {
	selections, err := a.parseSelections(ctx, args)
	if err != nil {
		return err
	}
	if len(selections) != 1 || len(selections[0].names) > 1 {
		return failf(exitUsage, "ask about one thing at a time")
	}
	s := selections[0]
	req.Group, req.Resource = s.resource.Group, s.resource.Plural
	if len(s.names) == 1 {
		req.Name = s.names[0]
	}
	if !everywhere {
		req.Namespace = a.scope(s.resource)
	}
	return nil
}
