package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
)

func (a *app) storeLeaseCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "lease",
		Short: "Let keys live only as long as somebody keeps them alive",
		Long: `Let keys live only as long as somebody keeps them alive. A lease has a time to live;
keys that are put under it (store put --lease) are deleted when that has passed since it
was kept alive last. Leases are numbers, also in hexadecimal with 0x before it.`,
		Example: "  holdfast store lease grant 30s\n  holdfast store put session/alice here --lease 7587881\n  holdfast store lease keep-alive 7587881",
		Args:    groupArgs,
		RunE:    showHelp,
	}
	group.AddCommand(a.storeLeaseGrantCommand(), a.storeLeaseKeepAliveCommand(), a.storeLeaseTTLCommand(),
		a.storeLeaseListCommand(), a.storeLeaseRevokeCommand())
	return group
}

func parseLease(text string) (int64, error) {
	id, err := strconv.ParseInt(text, 0, 64)
	if err != nil || id <= 0 {
		return 0, failf(exitUsage, "lease %q: want a number above 0, as `holdfast store lease grant` shows it", text)
	}
	return id, nil
}

// leaseCall makes a call of this run and shows its answer: as a message, or by text.
func leaseCall[Req any, Resp proto.Message](ctx context.Context, a *app, output, doing string, call func(*remote) func(context.Context, Req) (Resp, error), req Req, text func(Resp)) error {
	if err := checkOutput(output, "text", "json", "yaml"); err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	resp, err := call(r)(ctx, req)
	if err != nil {
		return a.explain(ctx, r, doing, err)
	}
	if output != "text" {
		return a.writeMessage(output, resp)
	}
	text(resp)
	return nil
}

func (a *app) storeLeaseGrantCommand() *cobra.Command {
	var output, id string
	cmd := &cobra.Command{
		Use:     "grant TTL",
		Short:   "Make a lease",
		Long:    "Make a lease that lives for TTL unless it is kept alive, and show its number. Less than\na second counts as one.",
		Example: "  holdfast store lease grant 30s\n  holdfast store lease grant 1h --id 77",
		Args:    exactArgs(1, "one TTL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ttl, err := time.ParseDuration(args[0])
			if err != nil || ttl <= 0 {
				return failf(exitUsage, "time to live %q: want a time above 0, 30s or 2h", args[0])
			}
			req := &storev1.LeaseGrantRequest{Ttl: durationpb.New(ttl)}
			if id != "" {
				if req.Id, err = parseLease(id); err != nil {
					return err
				}
			}
			return leaseCall(cmd.Context(), a, output, "grant a lease",
				func(r *remote) func(context.Context, *storev1.LeaseGrantRequest) (*storev1.LeaseGrantResponse, error) {
					return r.store.LeaseGrant
				},
				req, func(resp *storev1.LeaseGrantResponse) {
					fmt.Fprintf(a.stdout, "lease %d, %v\n", resp.GetId(), resp.GetTtl().AsDuration())
				})
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "its number; without, one is chosen")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	return cmd
}

func (a *app) storeLeaseRevokeCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "revoke LEASE",
		Short:   "End a lease and delete its keys",
		Long:    "End a lease at once and delete its keys, at one revision. Exit code 3 means that there\nis no such lease.",
		Example: "  holdfast store lease revoke 7587881",
		Args:    exactArgs(1, "one LEASE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseLease(args[0])
			if err != nil {
				return err
			}
			return leaseCall(cmd.Context(), a, output, fmt.Sprint("revoke lease ", id),
				func(r *remote) func(context.Context, *storev1.LeaseRevokeRequest) (*storev1.LeaseRevokeResponse, error) {
					return r.store.LeaseRevoke
				},
				&storev1.LeaseRevokeRequest{Id: id}, func(resp *storev1.LeaseRevokeResponse) {
					fmt.Fprintf(a.stdout, "lease %d revoked, revision %d\n", id, resp.GetHeader().GetRevision())
				})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	return cmd
}

func (a *app) storeLeaseTTLCommand() *cobra.Command {
	var output string
	var keys bool
	cmd := &cobra.Command{
		Use:     "ttl LEASE",
		Short:   "Show how long a lease lives",
		Long:    "Show how long a lease lives if nobody keeps it alive. Exit code 3 means that there is no\nsuch lease.",
		Example: "  holdfast store lease ttl 7587881 --keys",
		Args:    exactArgs(1, "one LEASE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseLease(args[0])
			if err != nil {
				return err
			}
			return leaseCall(cmd.Context(), a, output, fmt.Sprint("look at lease ", id),
				func(r *remote) func(context.Context, *storev1.LeaseTimeToLiveRequest) (*storev1.LeaseTimeToLiveResponse, error) {
					return r.store.LeaseTimeToLive
				},
				&storev1.LeaseTimeToLiveRequest{Id: id, Keys: keys}, func(resp *storev1.LeaseTimeToLiveResponse) {
					fmt.Fprintf(a.stdout, "lease %d, %v of %v left\n", id, resp.GetRemaining().AsDuration(), resp.GetGranted().AsDuration())
					for _, key := range resp.GetKeys() {
						fmt.Fprintln(a.stdout, shown(key))
					}
					if resp.GetMoreKeys() {
						a.note("There are more keys than an answer has room for.")
					}
				})
		},
	}
	cmd.Flags().BoolVar(&keys, "keys", false, "show its keys, too")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	return cmd
}

func (a *app) storeLeaseListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List all leases",
		Long:    "List all leases, one number a line.",
		Example: "  holdfast store lease list",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return leaseCall(cmd.Context(), a, output, "list leases",
				func(r *remote) func(context.Context, *storev1.LeasesRequest) (*storev1.LeasesResponse, error) {
					return r.store.Leases
				},
				&storev1.LeasesRequest{}, func(resp *storev1.LeasesResponse) {
					for _, id := range resp.GetIds() {
						fmt.Fprintln(a.stdout, id)
					}
				})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	return cmd
}

func (a *app) storeLeaseKeepAliveCommand() *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "keep-alive LEASE",
		Short: "Keep a lease alive until interrupted",
		Long: `Keep a lease alive until interrupted, by giving it its whole time again each third of
that. When its peer dies it goes on with another one. Exit code 3 means that there is
no such lease any more.`,
		Example: "  holdfast store lease keep-alive 7587881\n  holdfast store lease keep-alive 7587881 --once",
		Args:    exactArgs(1, "one LEASE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseLease(args[0])
			if err != nil {
				return err
			}
			return a.runStoreKeepAlive(cmd.Context(), id, once)
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "end after the first time")
	return cmd
}

const (
	// keepAliveParts is how often a lease is kept alive in its time: twice it may fail.
	keepAliveParts = 3
	keepAliveRetry = time.Second
	// keepAlivePatience bounds one attempt; the connection moves to another peer
	// within it.
	keepAlivePatience = 10 * time.Second
)

// runStoreKeepAlive keeps a lease alive until ctx ends. Without a leader nobody can
// end a lease, so it tries on for as long as that takes.
func (a *app) runStoreKeepAlive(ctx context.Context, id int64, once bool) error {
	r, err := a.dial()
	if err != nil {
		return err
	}
	peer, lost := "", false
	for {
		attempt, cancel := context.WithTimeout(ctx, keepAlivePatience)
		resp, err := r.store.LeaseKeepAlive(attempt, &storev1.LeaseKeepAliveRequest{Id: id})
		cancel()
		pause := keepAliveRetry
		code := connect.CodeOf(err)
		served := resp.GetHeader().GetServedBy()
		switch {
		case ctx.Err() != nil:
			return exit(exitInterrupted)
		case err == nil && peer == "":
			fmt.Fprintf(a.stdout, "lease %d has %v again, from peer %s\n", id, resp.GetTtl().AsDuration(), served)
		case err == nil && (lost || served != peer):
			a.note("Lease %d is kept alive through peer %s.", id, served)
		case err != nil && (peer == "" || code != connect.CodeUnavailable && code != connect.CodeDeadlineExceeded):
			return a.explain(ctx, r, fmt.Sprint("keep lease ", id, " alive"), err)
		case err != nil && !lost:
			a.note("Lease %d could not be kept alive, trying on: %v", id, err)
		}
		if lost = err != nil; !lost {
			if peer = served; once {
				return nil
			}
			pause = resp.GetTtl().AsDuration() / keepAliveParts
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
