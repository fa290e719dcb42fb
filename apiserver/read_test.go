package apiserver

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// TestCutOff: a peer without a quorum refuses what it cannot prove, answers what it
// may, and says for how long it has been alone: a leader that lost its followers as
// well as a follower that lost its leader. On the other side nothing is missing.
func TestCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		old := raft.WaitLeader(raft.Peers...)
		rest := slices.DeleteFunc(slices.Clone(raft.Peers), func(p *storetest.Peer) bool { return p == old })
		ctx := t.Context()
		if _, err := c.objects(old.ID).Create(ctx, &holdfastv1.CreateRequest{Object: message(t, boundPod("a", ""))}); err != nil {
			t.Fatal(err)
		}
		get := func(peer *storetest.Peer, read *holdfastv1.ReadOptions) (*holdfastv1.Answer, error) {
			resp, err := c.objects(peer.ID).Get(ctx, &holdfastv1.GetRequest{Kind: podKind, Name: "a", Read: read})
			return resp.GetAnswer(), err
		}
		local := &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_LOCAL}
		bounded := func(age time.Duration) *holdfastv1.ReadOptions {
			return &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_BOUNDED, MaxAge: durationpb.New(age)}
		}
		first, err := get(old, nil)
		if err != nil || first.GetCutOff() != nil {
			t.Fatalf("before the cut: %v, %v", first, err)
		}

		raft.Cut([]*storetest.Peer{old}, rest)
		lost := time.Now()
		time.Sleep(43 * time.Second)

		answer, err := get(old, local)
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(lost)
		if cut := answer.GetCutOff().AsDuration(); cut < took-3*time.Second || cut > took {
			t.Errorf("a leader without followers says it has been cut off for %s after %s", cut, took)
		}
		if age := answer.GetAge().AsDuration(); age < took || age > took+2*time.Second || answer.GetServedBy() != old.ID {
			t.Errorf("its answer is %v, want an age of %s", answer, took)
		}
		if answer, err = get(old, bounded(time.Hour)); err != nil || answer.GetCutOff() == nil || answer.GetAge().AsDuration() < took {
			t.Errorf("within the bound: %v, %v", answer, err)
		}
		_, err = get(old, bounded(10*time.Second))
		wantCode(t, err, connect.CodeUnavailable, "it has been cut off from the quorum for ")
		_, err = get(old, nil)
		wantCode(t, err, connect.CodeUnavailable, "ask another peer")
		session := &holdfastv1.ReadOptions{Consistency: holdfastv1.Consistency_CONSISTENCY_SESSION, MinRevision: first.GetRevision()}
		if answer, err = get(old, session); err != nil || answer.GetCutOff() == nil {
			t.Errorf("in a session that has seen no more: %v, %v", answer, err)
		}
		_, err = c.objects(old.ID).Create(ctx, &holdfastv1.CreateRequest{Object: message(t, boundPod("b", ""))})
		wantCode(t, err, connect.CodeUnavailable, "nothing was written")

		for _, peer := range rest {
			if answer, err = get(peer, nil); err != nil || answer.GetCutOff() != nil {
				t.Errorf("%s, on the other side: %v, %v", peer.ID, answer, err)
			}
		}
		raft.Heal()
		if answer, err = get(old, nil); err != nil || answer.GetCutOff() != nil {
			t.Errorf("healed: %v, %v", answer, err)
		}

		follower := rest[0]
		if leader := raft.WaitLeader(raft.Peers...); leader == follower {
			follower = rest[1]
		}
		others := slices.DeleteFunc(slices.Clone(raft.Peers), func(p *storetest.Peer) bool { return p == follower })
		raft.Cut([]*storetest.Peer{follower}, others)
		lost = time.Now()
		time.Sleep(20 * time.Second)
		if answer, err = get(follower, local); err != nil {
			t.Fatal(err)
		}
		if cut, took := answer.GetCutOff().AsDuration(), time.Since(lost); cut < took-time.Second || cut > took+time.Second {
			t.Errorf("a follower without leader says it has been cut off for %s after %s", cut, took)
		}
		raft.Heal()
	})
}

// TestReadAt: the state at an older revision is the same for ever, until it is
// compacted.
func TestReadAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClusterOn(t, 1, storetest.New(t, func(cfg *raftstore.Config) { cfg.Logger, cfg.HistoryEvents = nil, 10 }))
		objects := c.objects("peer-1")
		r1 := c.put(labelled("a", "web"), labelled("b", "web"))
		r2 := c.put(labelled("a", "cache"))
		c.remove(labelled("b", ""))
		list := func(at int64) (string, error) {
			resp, err := objects.List(t.Context(), &holdfastv1.ListRequest{Kind: podKind, LabelSelector: "app=web", Read: &holdfastv1.ReadOptions{AtRevision: at}})
			var names []string
			for _, obj := range resp.GetObjects() {
				names = append(names, obj.GetName())
			}
			if answer := resp.GetAnswer(); err == nil && (answer.GetRevision() != at || answer.GetAge() != nil) {
				t.Errorf("answer at %d: %v", at, answer)
			}
			return strings.Join(names, " "), err
		}
		for at, want := range map[int64]string{r1: "a b", r2: "b", r2 + 1: ""} {
			if got, err := list(at); got != want || err != nil {
				t.Errorf("at %d: %q, %v, want %q", at, got, err, want)
			}
		}
		_, err := list(r2 + 100)
		wantCode(t, err, connect.CodeOutOfRange, fmt.Sprintf("revision %d has not been reached", r2+100))
		for i := range 100 {
			c.put(labelled("a", fmt.Sprint(i)))
		}
		time.Sleep(time.Minute) // compaction is the store's business
		_, err = list(r1)
		wantCode(t, err, connect.CodeOutOfRange, "compacted")
	})
}
