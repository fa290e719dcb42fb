package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type recoverFlags struct {
	yes, dryRun bool
}

func (a *app) recoverCommand() *cobra.Command {
	var f recoverFlags
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Go on with one peer when the majority of peers is lost for good",
		Long: `Go on with one peer when the majority of the voting peers is lost for good: their
disks are destroyed, or nobody can bring them back. If they can be brought back,
do that instead: then nothing is lost.

All peers that answer are asked what they have. The one that is furthest along
becomes the only voter of a new incarnation of the cluster. What the lost peers
had acknowledged without it is gone. The others that are left, and lost ones that
come back after all, are fenced off; they set their old store aside and join
again by themselves, when they reach the new cluster.

Refused while a majority can be reached, from here or from any peer that answers.`,
		Example: `  holdfast recover --dry-run
  holdfast recover`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runRecover(cmd.Context(), f) },
	}
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do it without asking")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only show what there is, and what would be done")
	return cmd
}

func (a *app) runRecover(ctx context.Context, f recoverFlags) error {
	s, err := a.survey(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	a.printSurvey(s)
	if len(s.answers) == 0 {
		return failf(exitUnavailable, "no peer answers; start those that are left: a peer answers without the others")
	}
	best := s.best()
	voters, there := s.majority(best)
	if len(there) > len(voters)/2 {
		return failf(exitRefused, "refused: %s can be reached, which is a majority of the voters %s: they elect a leader by themselves within seconds, and nothing is lost. `holdfast cluster status` shows why they do not",
			strings.Join(there, ", "), strings.Join(voters, ", "))
	}
	lost := slices.DeleteFunc(slices.Clone(voters), func(id string) bool { return slices.Contains(there, id) })
	v := best.answer.GetVitals()
	fmt.Fprintf(a.stdout, `
Peer %s is furthest along. It would go on alone, with revision %d and all %d entries
of its log. What %s acknowledged after that is lost, if there was anything.
They must never serve again as they are: destroyed, or switched off until they
can reach peer %[1]s.
`, v.GetPeer(), v.GetRevision(), v.GetLastIndex(), strings.Join(lost, " and "))
	if f.dryRun {
		return nil
	}
	if err := a.confirm(f.yes, fmt.Sprintf("Give up %s for good, and go on with peer %s alone?", strings.Join(lost, " and "), v.GetPeer())); err != nil {
		return err
	}
	request := &holdfastv1.RecoverRequest{LastTerm: v.GetLastTerm(), LastIndex: v.GetLastIndex(), Incarnation: v.GetIncarnation()}
	for _, other := range s.answers {
		request.SeenIncarnation = max(request.GetSeenIncarnation(), other.answer.GetVitals().GetIncarnation())
		request.SeenTerm = max(request.GetSeenTerm(), other.answer.GetVitals().GetTerm())
	}
	limited, cancel := context.WithTimeout(ctx, cmp.Or(a.requestTimeout, time.Minute))
	defer cancel()
	began, err := best.remote.ops.Recover(limited, request)
	if err != nil {
		return a.explain(limited, best.remote, "recover on peer "+v.GetPeer(), err)
	}
	fmt.Fprintf(a.stdout, "peer %s begins incarnation %d\n", v.GetPeer(), began.GetIncarnation())
	return a.waitRecovered(ctx, best, began.GetIncarnation())
}

// waitRecovered waits until the recovered peer leads.
func (a *app) waitRecovered(ctx context.Context, on *surveyed, incarnation uint64) error {
	ctx, cancel := context.WithTimeout(ctx, recoverPatience)
	defer cancel()
	for {
		call, stop := context.WithTimeout(ctx, 2*time.Second)
		answer, err := on.remote.ops.Survey(call, &holdfastv1.SurveyRequest{})
		var status *holdfastv1.StatusResponse
		if err == nil && answer.GetVitals().GetIncarnation() == incarnation {
			status, err = on.remote.cluster.Status(call, &holdfastv1.StatusRequest{})
		}
		stop()
		if err == nil && status.GetQuorum() {
			fmt.Fprintf(a.stdout, "peer %s leads, at revision %d. The cluster can be changed again.\nIt has one voter: let others join soon, `holdfast token create --role peer`.\n", status.GetLeader(), status.GetRevision())
			return nil
		}
		select {
		case <-ctx.Done():
			return failf(exitTimeout, "it does not lead after %v: its log says why; `holdfast cluster status` shows when it does", recoverPatience)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// recoverPatience is how long a peer may take to restart: it reads all it has.
const recoverPatience = 2 * time.Minute

// surveyed is a peer that was asked.
type surveyed struct {
	address string
	remote  *remote
	answer  *holdfastv1.SurveyResponse
}

// survey is what all peers told that could be asked.
type survey struct {
	answers []*surveyed // by id
	silent  []string    // addresses that did not answer
}

func (s *survey) close() {
	for _, p := range s.answers {
		p.remote.close()
	}
}

// survey asks every peer that the context, or a peer that answers, knows.
func (a *app) survey(ctx context.Context) (*survey, error) {
	addresses, err := a.addresses()
	if err != nil {
		return nil, err
	}
	s, asked, byID := new(survey), make(map[string]bool), make(map[string]*surveyed)
	ctx, cancel := context.WithTimeout(ctx, 3*surveyPatience)
	defer cancel()
	for len(addresses) > 0 {
		var round []*surveyed
		var asking sync.WaitGroup
		for _, address := range addresses {
			if asked[address] {
				continue
			}
			asked[address] = true
			r, err := a.connectPeer(address)
			if err != nil {
				asking.Wait()
				return nil, err
			}
			p := &surveyed{address: address, remote: r}
			round = append(round, p)
			asking.Go(func() {
				call, cancel := context.WithTimeout(ctx, surveyPatience)
				defer cancel()
				p.answer, _ = r.ops.Survey(call, &holdfastv1.SurveyRequest{}) // why it is silent is of no use here
			})
		}
		asking.Wait()
		addresses = nil
		for _, p := range round {
			id := p.answer.GetVitals().GetPeer()
			switch {
			case p.answer == nil:
				p.remote.close()
				s.silent = append(s.silent, p.address)
			case byID[id] != nil:
				p.remote.close() // the same peer under another address
			default:
				byID[id] = p
			}
			for _, known := range p.answer.GetPeers() {
				addresses = append(addresses, known.GetAddress())
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		s.answers = append(s.answers, byID[id])
	}
	slices.Sort(s.silent)
	return s, nil
}

// surveyPatience bounds the wait for one peer.
const surveyPatience = 5 * time.Second

// best returns the peer to go on with: of the newest incarnation the one whose log
// would win an election.
func (s *survey) best() *surveyed {
	return slices.MaxFunc(s.answers, func(x, y *surveyed) int {
		v, w := x.answer.GetVitals(), y.answer.GetVitals()
		return cmp.Or(
			cmp.Compare(v.GetIncarnation(), w.GetIncarnation()),
			cmp.Compare(v.GetLastTerm(), w.GetLastTerm()),
			cmp.Compare(v.GetLastIndex(), w.GetLastIndex()),
			strings.Compare(w.GetPeer(), v.GetPeer()), // of equal ones the first by name
		)
	})
}

// majority returns the voters of the configuration that on has, and those of them
// that can be reached: from here, or from any peer that answers.
func (s *survey) majority(on *surveyed) (voters, there []string) {
	alive := make(map[string]bool)
	current := on.answer.GetVitals().GetIncarnation()
	note := func(v *holdfastv1.Vitals) {
		if v.GetIncarnation() == current { // those of an earlier one are no help
			alive[v.GetPeer()] = true
		}
	}
	for _, p := range s.answers {
		note(p.answer.GetVitals())
		for _, v := range p.answer.GetReached() {
			note(v)
		}
	}
	for _, p := range on.answer.GetPeers() {
		if !p.GetVoter() {
			continue
		}
		voters = append(voters, p.GetId())
		if alive[p.GetId()] {
			there = append(there, p.GetId())
		}
	}
	slices.Sort(voters)
	slices.Sort(there)
	return voters, there
}

func (a *app) printSurvey(s *survey) {
	table := object.Table{Columns: []object.Column{
		{Name: "PEER"},
		{Name: "ADDRESS"},
		{Name: "INCARNATION"},
		{Name: "LAST TERM"},
		{Name: "LAST INDEX"},
		{Name: "APPLIED"},
		{Name: "REVISION"},
		{Name: "STATE HASH"},
		{Name: "REACHES"},
	}}
	for _, p := range s.answers {
		v := p.answer.GetVitals()
		var reaches []string
		for _, other := range p.answer.GetReached() {
			reaches = append(reaches, other.GetPeer())
		}
		slices.Sort(reaches)
		table.Rows = append(table.Rows, []string{
			v.GetPeer(), p.address, fmt.Sprint(v.GetIncarnation()), fmt.Sprint(v.GetLastTerm()), fmt.Sprint(v.GetLastIndex()),
			fmt.Sprint(v.GetAppliedIndex()), fmt.Sprint(v.GetRevision()), fmt.Sprintf("%x", v.GetHash()), cmp.Or(strings.Join(reaches, ","), "nobody"),
		})
	}
	(&grid{w: a.stdout, header: true}).write(table)
	for _, address := range s.silent {
		fmt.Fprintf(a.stdout, "no answer from %s\n", address)
	}
	for _, p := range s.answers {
		for _, alarm := range p.answer.GetVitals().GetAlarms() {
			fmt.Fprintf(a.stdout, "alarm of peer %s: %s\n", p.answer.GetVitals().GetPeer(), alarm)
		}
	}
}
