package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type auditFlags struct {
	user, verb, resource, name, outcome, since, until, output string
	local                                                     bool
	limit                                                     int32
}

func (a *app) auditCommand() *cobra.Command {
	var f auditFlags
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who did what, at which revision, with which outcome",
		Long: `Show who did what, at which revision, with which outcome: every write, every call that
was refused, every read of Secrets, and who went into a container. Each peer keeps the
records of what it was asked; any peer asks the others. No record has a value in it.

Filters match whole words, or beginnings that end in "*".`,
		Example: `  holdfast audit --since 1h
  holdfast audit --user bob --outcome refused
  holdfast audit --resource secrets --name db -n shop
  holdfast audit verify`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runAudit(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.user, "user", "", "who: alice, system:serviceaccount:shop:*")
	flags.StringVar(&f.verb, "verb", "", "what: create, patch, get, ...")
	flags.StringVar(&f.resource, "resource", "", "on what: secrets, deployments.apps, pods/exec")
	flags.StringVar(&f.name, "name", "", "the object's name")
	flags.StringVar(&f.outcome, "outcome", "", "ok, refused (any but ok), or a code such as permission_denied")
	flags.StringVar(&f.since, "since", "", "from when on: 1h (ago), or 2026-01-02T15:04:05Z")
	flags.StringVar(&f.until, "until", "", "until when, likewise")
	flags.BoolVar(&f.local, "local", false, "of the peer that is asked alone")
	flags.Int32Var(&f.limit, "limit", 0, "the newest so many (default 1000)")
	flags.StringVarP(&f.output, "output", "o", "text", "text, or json: a record in each line")

	var output string
	verify := &cobra.Command{
		Use:   "verify",
		Short: "Find records that were changed, removed or put elsewhere",
		Long: `Have every peer read all records that it keeps, and compare them with what the others
have written down of it. What was changed, removed from between others, put elsewhere or
added is found by the hashes that chain the records. What was cut off at the end, or made
anew, is found as far as another peer has seen it: each minute each peer writes down the
newest hash of the others.`,
		Example: "  holdfast audit verify",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runAuditVerify(cmd.Context(), output) },
	}
	verify.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	cmd.AddCommand(verify)
	return cmd
}

// moment reads a time, or how long ago it was.
func (a *app) moment(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return timestamppb.New(a.now().Add(-ago.Abs())), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, failf(exitUsage, "--%s %s: want how long ago, such as 1h, or a time such as 2026-01-02T15:04:05Z", flag, text)
	}
	return timestamppb.New(t), nil
}

func (a *app) runAudit(ctx context.Context, f auditFlags) error {
	if err := checkOutput(f.output, "text", "json"); err != nil {
		return err
	}
	from, err := a.moment("since", f.since)
	if err != nil {
		return err
	}
	until, err := a.moment("until", f.until)
	if err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	stream, err := r.audit.Query(ctx, &holdfastv1.AuditServiceQueryRequest{
		User: f.user, Verb: f.verb, Resource: f.resource, Namespace: a.namespace, Name: f.name, Outcome: f.outcome,
		From: from, Until: until, Limit: f.limit, Local: f.local,
	})
	if err != nil {
		return a.explain(ctx, r, "read the audit", err)
	}
	defer stream.Close()
	table := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	found := 0
	var silent []*holdfastv1.AuditSilence
	for {
		msg, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return a.explain(ctx, r, "read the audit", err)
		}
		silent = msg.GetSilent()
		for _, record := range msg.GetRecords() {
			if f.output == "json" {
				data, err := protojson.Marshal(record)
				if err != nil {
					return err
				}
				fmt.Fprintln(a.stdout, string(data))
				continue
			}
			if found++; found == 1 {
				fmt.Fprintln(table, "TIME\tUSER\tVERB\tOBJECT\tOUTCOME\tREVISION\tFROM\tPEER")
			}
			fmt.Fprintln(table, auditRow(record))
		}
	}
	table.Flush()
	if f.output == "text" && found == 0 {
		fmt.Fprintln(a.stderr, "nothing is recorded that matches")
	}
	for _, s := range silent {
		fmt.Fprintf(a.stderr, "peer %s did not answer, its records are missing: %s\n", s.GetPeer(), s.GetReason())
	}
	if len(silent) > 0 {
		return failf(exitError, "not all peers answered")
	}
	return nil
}

func auditRow(r *holdfastv1.AuditRecord) string {
	object := r.GetResource()
	if r.GetName() != "" || r.GetNamespace() != "" {
		object += " " + strings.Trim(r.GetNamespace()+"/"+r.GetName(), "/")
	}
	if more := len(r.GetOthers()) + int(r.GetMore()); more > 0 {
		object += fmt.Sprintf(" and %d more", more)
	}
	revision := "-"
	if r.GetRevision() > 0 {
		revision = fmt.Sprint(r.GetRevision())
	}
	outcome := r.GetOutcome()
	if r.GetDryRun() {
		outcome += " (dry run)"
	}
	cells := []string{r.GetTime().AsTime().UTC().Format("2006-01-02T15:04:05.000Z"), r.GetUser(), r.GetVerb(), object, outcome, revision, r.GetSource(), r.GetPeer()}
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		// What callers chose is not to move the terminal's cursor.
		cells[i] = strings.Map(func(c rune) rune {
			if c < ' ' || c == 0x7f {
				return '?'
			}
			return c
		}, cell)
	}
	return strings.Join(cells, "\t")
}

func (a *app) runAuditVerify(ctx context.Context, output string) error {
	if err := checkOutput(output, "text", "json", "yaml"); err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := r.audit.Verify(ctx, &holdfastv1.AuditServiceVerifyRequest{})
	if err != nil {
		return a.explain(ctx, r, "verify the audit", err)
	}
	wrong := 0
	for _, v := range resp.GetVerdicts() {
		wrong += len(v.GetFaults())
		if v.GetUnreachable() != "" {
			wrong++
		}
		v.Heads = nil // the peers' own business
	}
	if output != "text" {
		data, err := protojson.Marshal(resp)
		if err != nil {
			return err
		}
		if err := writeJSON(a.stdout, output, data); err != nil {
			return err
		}
	} else {
		for _, v := range resp.GetVerdicts() {
			switch {
			case v.GetUnreachable() != "":
				fmt.Fprintf(a.stdout, "%s: could not be asked: %s\n", v.GetPeer(), v.GetUnreachable())
				continue
			case len(v.GetFaults()) == 0:
				fmt.Fprintf(a.stdout, "%s: records %d to %d are as they were written", v.GetPeer(), v.GetFirst(), v.GetLast())
			default:
				fmt.Fprintf(a.stdout, "%s: records %d to %d are NOT as they were written", v.GetPeer(), v.GetFirst(), v.GetLast())
			}
			if v.GetWitnesses() > 0 {
				fmt.Fprintf(a.stdout, "; other peers have seen them up to %d\n", v.GetWitnessed())
			} else {
				fmt.Fprintln(a.stdout, "; no other peer has seen any of them")
			}
			for _, fault := range v.GetFaults() {
				fmt.Fprintln(a.stdout, "  "+fault)
			}
		}
	}
	if wrong > 0 {
		return failf(exitError, "the audit is not whole")
	}
	return nil
}
