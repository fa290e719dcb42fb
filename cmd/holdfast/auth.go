package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
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
	cmd.AddCommand(a.whoAmICommand(), a.canICommand(), a.whoCanCommand(), a.issueCommand(), a.revokeCommand(), a.revocationsCommand(), a.readmitCommand())
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

func (a *app) whoCanCommand() *cobra.Command {
	var everywhere bool
	var subresource string
	cmd := &cobra.Command{
		Use:   "who-can VERB KIND [NAME] | VERB KIND/NAME | VERB /PATH",
		Short: "List who may do something, and by which role",
		Example: `  holdfast auth who-can delete pods
  holdfast auth who-can get secret/tls -n shop`,
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
			answer, err := r.access.WhoCan(ctx, &holdfastv1.WhoCanRequest{What: req})
			if err != nil {
				return a.explain(ctx, r, "ask who may do that", err)
			}
			rows := [][]string{{"Group", "system:masters", "administrators' certificates", "everything"}}
			for _, g := range answer.GetGrants() {
				rows = append(rows, []string{g.GetKind(), strings.TrimPrefix(g.GetNamespace()+"/"+g.GetName(), "/"), g.GetBinding(), g.GetRole()})
			}
			out := grid{w: a.stdout, header: true}
			out.write(object.Table{Columns: []object.Column{{Name: "KIND"}, {Name: "NAME"}, {Name: "BY"}, {Name: "ROLE"}}, Rows: rows})
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&everywhere, "all-namespaces", "A", false, "in all namespaces")
	flags.StringVar(&subresource, "subresource", "", "a part of the object, such as log, exec, status or scale")
	return cmd
}

func (a *app) issueCommand() *cobra.Command {
	var groups []string
	var life time.Duration
	var file string
	cmd := &cobra.Command{
		Use:   "issue NAME --out FILE",
		Short: "Make a certificate of a user, with a context to use it",
		Long: `Make a certificate of a user, and write it with its key as a context into a file
of its own: give that to the user, who names it in HOLDFAST_CONFIG, or copies it to
~/.config/holdfast/config.yaml. The key is made here and goes nowhere else.

A user may do what roles say of the name and the groups, and nothing without any:
holdfast create rolebinding … --user NAME, or --group GROUP.`,
		Example: `  holdfast auth issue jane --group dev --out jane.yaml
  holdfast create rolebinding dev-edit -n shop --clusterrole edit --group dev`,
		Args: exactArgs(1, "a USER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runIssue(cmd.Context(), args[0], groups, life, file)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&groups, "group", nil, "a group that the user is in; may be repeated")
	flags.DurationVar(&life, "duration", 30*24*time.Hour, "how long it is good, from 10m to 2160h (90 days)")
	flags.StringVar(&file, "out", "", "file to write the context to; it must not exist")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}

func (a *app) runIssue(ctx context.Context, name string, groups []string, life time.Duration, file string) error {
	if _, err := os.Lstat(file); err == nil {
		return failf(exitUsage, "%s exists: choose another file", file)
	}
	mine, err := a.currentContext()
	if err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	key, request, err := pki.NewRequest()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := r.access.IssueCertificate(ctx, &holdfastv1.IssueCertificateRequest{Request: request, Name: name, Groups: groups, Lifetime: durationpb.New(life)})
	if err != nil {
		return a.explain(ctx, r, "issue a certificate of "+name, err)
	}
	creds, err := pki.NewCredentials(key, resp.GetChain(), []byte(mine.CA))
	if err != nil {
		return err
	}
	theirs, err := client.NewContext(mine.Name, mine.Peers, creds)
	if err != nil {
		return err
	}
	var out client.ConfigFile
	out.Set(theirs)
	if err := out.Save(file); err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "%s is good until %s: HOLDFAST_CONFIG=%s holdfast auth whoami\n", file, resp.GetExpires().AsTime().Format(time.RFC3339), file)
	return nil
}
