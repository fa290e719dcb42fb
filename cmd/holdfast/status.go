package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

func (a *app) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cluster",
		Short:   "Look at the cluster itself",
		Example: "  holdfast cluster status",
		Args:    groupArgs,
		RunE:    showHelp,
	}
	cmd.AddCommand(a.statusCommand("cluster status"))
	return cmd
}

// statusCommand is `cluster status`, which is also `status`, since it is what one
// wants to know in a hurry.
func (a *app) statusCommand(path string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show peers, leader and members, and whether the cluster can change",
		Long: `Show peers, leader and members as one peer sees them. Any peer answers, also
without a quorum. Exit code 7 means that nothing can be changed at the moment.`,
		Example: "  holdfast " + path + "\n  holdfast " + path + " -o json",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runStatus(cmd.Context(), output) },
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, json or yaml")
	return cmd
}

func (a *app) runStatus(ctx context.Context, output string) error {
	if err := checkOutput(output, "table", "json", "yaml"); err != nil {
		return err
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	ctx, cancel := a.request(ctx)
	defer cancel()
	status, err := r.cluster.Status(ctx, &holdfastv1.StatusRequest{})
	if err != nil {
		return a.explain(ctx, r, "cluster status", err)
	}
	if output != "table" {
		data, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(status)
		if err != nil {
			return err
		}
		if err := writeJSON(a.stdout, output, data); err != nil {
			return err
		}
		if !status.GetQuorum() || noRoom(ctx, r, status) != "" {
			return exit(exitUnavailable)
		}
		return nil
	}
	a.printStatus(status)
	trouble := quorumTrouble(status)
	if trouble == "" {
		trouble = noRoom(ctx, r, status)
	}
	if trouble != "" {
		fmt.Fprintf(a.stdout, "\n%s\n", a.paint(a.stdout, 31, trouble))
		return exit(exitUnavailable)
	}
	return nil
}

// noRoom says that the leader takes no writes for want of room on its disk, "" if it
// does or nobody knows.
func noRoom(ctx context.Context, r *remote, s *holdfastv1.StatusResponse) string {
	if !s.GetQuorum() || s.GetLeader() == "" {
		return ""
	}
	alarms := s.GetAlarms()
	if s.GetServedBy() != s.GetLeader() { // it knows of its own alarms only
		list, err := r.cluster.ListPeers(ctx, &holdfastv1.ListPeersRequest{})
		if err != nil {
			return ""
		}
		for _, p := range list.GetPeers() {
			if p.GetPeer().GetId() == s.GetLeader() {
				alarms = p.GetAlarms()
			}
		}
	}
	for _, alarm := range alarms {
		if text, ok := strings.CutPrefix(alarm, "low-space: "); ok {
			return fmt.Sprintf("NO ROOM on the leader, %s: only deletes are taken. %s", s.GetLeader(), text)
		}
	}
	return ""
}

func (a *app) printStatus(s *holdfastv1.StatusResponse) {
	leader := s.GetLeader()
	if leader == "" {
		leader = "none known"
	}
	fmt.Fprintf(a.stdout, "Cluster   %s\nAnswer of %s (version %s)\nLeader    %s, term %d\nRevision  %d (log index %d, applied %d)\n\n",
		s.GetClusterId(), s.GetServedBy(), s.GetVersion(), leader, s.GetTerm(), s.GetRevision(), s.GetLastIndex(), s.GetAppliedIndex())

	peers := object.Table{Columns: []object.Column{{Name: "PEER"}, {Name: "ADDRESS"}, {Name: "ROLE"}, {Name: "GOSSIP"}}}
	byID := slices.Clone(s.GetPeers())
	slices.SortFunc(byID, func(x, y *holdfastv1.Peer) int { return strings.Compare(x.GetId(), y.GetId()) })
	for _, p := range byID {
		peers.Rows = append(peers.Rows, []string{p.GetId(), p.GetAddress(), peerRole(p), p.GetGossip()})
	}
	(&grid{w: a.stdout, header: true}).write(peers)

	nodes := object.Table{Columns: []object.Column{{Name: "NODE"}, {Name: "ADDRESS"}, {Name: "GOSSIP"}}}
	for _, m := range s.GetMembers() {
		if m.GetRole() == holdfastv1.Role_ROLE_NODE {
			nodes.Rows = append(nodes.Rows, []string{m.GetName(), m.GetAddress(), m.GetState()})
		}
	}
	if len(nodes.Rows) > 0 {
		fmt.Fprintln(a.stdout)
		slices.SortFunc(nodes.Rows, func(x, y []string) int { return strings.Compare(x[0], y[0]) })
		(&grid{w: a.stdout, header: true}).write(nodes)
	}
	for _, alarm := range s.GetAlarms() {
		fmt.Fprintf(a.stdout, "\n%s\n", a.paint(a.stdout, 31, "ALARM on "+s.GetServedBy()+": "+alarm))
	}
}
