package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) peerCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "peer",
		Short: "Show and change who takes part in the cluster",
		Long: `Show and change who takes part in the cluster. A peer joins as a learner, which
receives everything and has no vote. The leader gives it one by itself once it has
kept up for a while, if the cluster then survives one loss more, or if a voter is
dead: the learner takes its place, and the dead one is removed. So there is an odd
number of voters, up to five.

A peer is its name and its disk. One that was removed, or that lost its disk, never
returns under its name: it joins anew under another, with an empty directory.`,
		Example: "  holdfast peer list\n  holdfast peer add",
		Args:    groupArgs,
		RunE:    showHelp,
	}
	group.AddCommand(a.peerListCommand(), a.peerAddCommand(), a.peerReplaceCommand())
	group.AddCommand(&cobra.Command{
		Use:   "remove ID",
		Short: "Take a peer out of the cluster for good",
		Long: `Take a peer out of the cluster for good. It no longer counts for the quorum, and its
name is never used again. Refused when what remains could not form a quorum. A
machine that is to come back joins anew, under another name and with an empty data
directory.`,
		Example: "  holdfast peer remove p3",
		Args:    onePeer,
		RunE: a.peerChange("remove", func(ctx context.Context, r *remote, id string) (string, error) {
			_, err := r.cluster.RemovePeer(ctx, &holdfastv1.RemovePeerRequest{Id: id})
			return fmt.Sprintf("peer %s removed", id), err
		}),
	})
	force := false
	promote := &cobra.Command{
		Use:   "promote ID",
		Short: "Give a learner a vote, now",
		Long: `Give a learner a vote, now, once it has caught up. The leader does so by itself when it
makes the cluster stronger. Refused when it would not: four voters survive no more
losses than three, and three of them instead of two must agree to each write.`,
		Example: "  holdfast peer promote p4",
		Args:    onePeer,
		RunE: a.peerChange("promote", func(ctx context.Context, r *remote, id string) (string, error) {
			_, err := r.cluster.PromotePeer(ctx, &holdfastv1.PromotePeerRequest{Id: id, Force: force})
			return fmt.Sprintf("peer %s votes", id), err
		}),
	}
	promote.Flags().BoolVar(&force, "force", false, "also if the cluster survives no more losses than before")
	group.AddCommand(promote, &cobra.Command{
		Use:   "demote ID",
		Short: "Take a peer's vote and keep it as a learner",
		Long: `Take a peer's vote and keep it as a learner: before a long maintenance, say. It stays
one until ` + "`holdfast peer promote`" + `. Refused when what remains could not form a quorum.`,
		Example: "  holdfast peer demote p3",
		Args:    onePeer,
		RunE: a.peerChange("demote", func(ctx context.Context, r *remote, id string) (string, error) {
			_, err := r.cluster.DemotePeer(ctx, &holdfastv1.DemotePeerRequest{Id: id})
			return fmt.Sprintf("peer %s is a learner, and stays one", id), err
		}),
	}, &cobra.Command{
		Use:   "transfer [ID]",
		Short: "Make another peer lead",
		Long: `Make another peer lead: the one named, or the one that has the most of the log.
Writes wait meanwhile, some milliseconds. Refused when the peer has no vote, does not
answer or lags.`,
		Example: "  holdfast peer transfer\n  holdfast peer transfer p2",
		Args:    atMost(1),
		RunE: a.peerChange("transfer the leadership to", func(ctx context.Context, r *remote, id string) (string, error) {
			resp, err := r.cluster.TransferLeadership(ctx, &holdfastv1.TransferLeadershipRequest{Id: id})
			return fmt.Sprintf("peer %s leads", resp.GetLeader()), err
		}),
	})
	return group
}

var onePeer = exactArgs(1, "the ID of one peer, as `holdfast peer list` shows it")

// peerChange returns what runs a command that changes one peer. do returns what to
// print when it is done.
func (a *app) peerChange(verb string, do func(context.Context, *remote, string) (string, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		id := strings.Join(args, "")
		r, err := a.dial()
		if err != nil {
			return err
		}
		ctx, cancel := a.request(cmd.Context())
		defer cancel()
		done, err := do(ctx, r, id)
		if err != nil {
			return a.explain(ctx, r, strings.TrimSpace(verb+" peer "+id), err)
		}
		fmt.Fprintln(a.stdout, done)
		return nil
	}
}

func (a *app) peerReplaceCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "replace OLD [NEW]",
		Short: "Let a learner take a peer's place",
		Long: `Let a learner take a peer's place: NEW, or the learner that has the most of the log,
gets a vote once it has caught up, and then OLD is removed for good. At no moment
does the cluster survive fewer losses than before. It can be repeated if it was
interrupted. Begin with ` + "`holdfast peer add --learner`" + `.`,
		Example: "  holdfast peer replace p3\n  holdfast peer replace p3 p4",
		Args:    between(1, 2, "the OLD peer, and perhaps the NEW one"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &holdfastv1.ReplacePeerRequest{Id: args[0]}
			if len(args) == 2 {
				req.Successor = args[1]
			}
			run := a.peerChange("replace", func(ctx context.Context, r *remote, id string) (string, error) {
				resp, err := r.cluster.ReplacePeer(ctx, req)
				return fmt.Sprintf("peer %s votes in the place of %s, which is removed", resp.GetSuccessor(), id), err
			})
			return run(cmd, args[:1])
		},
	}
}

func (a *app) peerAddCommand() *cobra.Command {
	learner, ttl := false, time.Duration(0)
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Make a token and print the command with which a peer joins",
		Long: `Make a token and print the command with which a peer joins: run it on the new
machine. The peer comes as a learner and gets a vote by itself, as 'holdfast peer'
says. With --learner it keeps waiting until it is promoted, or replaces another.`,
		Example: "  holdfast peer add\n  holdfast peer add --learner --ttl 10m",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runPeerAdd(cmd.Context(), learner, ttl) },
	}
	cmd.Flags().BoolVar(&learner, "learner", false, "the peer gets no vote by itself")
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token works")
	return cmd
}

func (a *app) runPeerAdd(ctx context.Context, learner bool, ttl time.Duration) error {
	if ttl <= 0 {
		return failf(exitUsage, "--ttl %s: want more than 0", ttl)
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	bounded, cancel := a.request(ctx)
	defer cancel()
	list, err := r.cluster.ListPeers(bounded, &holdfastv1.ListPeersRequest{})
	if err != nil {
		return a.explain(bounded, r, "list peers", err)
	}
	var addresses []string
	for _, p := range list.GetPeers() {
		if p.GetError() == "" {
			addresses = append(addresses, p.GetPeer().GetAddress())
		}
	}
	token, err := a.createToken(ctx, r, "peer", ttl, 1)
	if err != nil {
		return err
	}
	flag := ""
	if learner {
		flag = " --learner"
	}
	fmt.Fprintf(a.stdout, "Run on the new machine, within %s:\n  holdfast server --join %s --token %s%s\nThen see it come: holdfast peer list\n", ttl, strings.Join(addresses, ","), token.GetToken(), flag)
	return nil
}

func (a *app) peerListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Show the peers and how their stores stand",
		Long: `Show the peers and how their stores stand, as each says itself. Any peer answers,
also without a quorum. LAG counts committed entries that a peer has yet to apply,
CONTACT is how long ago it heard from the leader. Peers that have applied the same
must have the same HASH.`,
		Example: "  holdfast peer list\n  holdfast peer list -o json",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runPeerList(cmd.Context(), output) },
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return cmd
}

func (a *app) runPeerList(ctx context.Context, output string) error {
	if err := checkOutput(output, "table", "json", "yaml"); err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	list, err := r.cluster.ListPeers(ctx, &holdfastv1.ListPeersRequest{})
	if err != nil {
		return a.explain(ctx, r, "list peers", err)
	}
	if output != "table" {
		data, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(list)
		if err != nil {
			return err
		}
		return writeJSON(a.stdout, output, data)
	}
	(&grid{w: a.stdout, header: true}).write(peerTable(list))
	var remarks []string
	for _, p := range list.GetPeers() {
		if p.GetError() != "" {
			remarks = append(remarks, fmt.Sprintf("%s does not answer: %s", p.GetPeer().GetId(), p.GetError()))
		}
		for _, alarm := range p.GetAlarms() {
			remarks = append(remarks, a.paint(a.stdout, 31, fmt.Sprintf("ALARM on %s: %s", p.GetPeer().GetId(), alarm)))
		}
	}
	if remarks = append(remarks, list.GetNotes()...); len(remarks) > 0 {
		fmt.Fprintf(a.stdout, "\n%s\n", strings.Join(remarks, "\n"))
	}
	return nil
}

func peerTable(list *holdfastv1.ListPeersResponse) object.Table {
	t := object.Table{}
	for _, name := range []string{"ID", "ADDRESS", "ROLE", "TERM", "LAST", "APPLIED", "LAG", "CONTACT", "GOSSIP", "HASH"} {
		t.Columns = append(t.Columns, object.Column{Name: name})
	}
	for _, p := range list.GetPeers() {
		peer := p.GetPeer()
		row := []string{peer.GetId(), peer.GetAddress(), peerRole(peer)}
		if p.GetError() != "" {
			row = append(row, "-", "-", "-", "-", "-", peer.GetGossip(), "-")
		} else {
			contact := "-"
			if p.GetContactAge() != nil {
				contact = p.GetContactAge().AsDuration().Round(time.Millisecond).String()
			}
			hash := hex.EncodeToString(p.GetHash())
			row = append(row, fmt.Sprint(p.GetTerm()), fmt.Sprint(p.GetLastIndex()), fmt.Sprint(p.GetAppliedIndex()), fmt.Sprint(p.GetLag()), contact, peer.GetGossip(), hash[:min(8, len(hash))])
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// peerRole is "leader", "voter" or "learner".
func peerRole(p *holdfastv1.Peer) string {
	switch {
	case p.GetLeader():
		return "leader"
	case p.GetVoter():
		return "voter"
	}
	return "learner"
}
