package history

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// played records a short true history: two puts, a read and a watch.
func played(t *testing.T) *Recorder {
	r := New()
	state := mvcc.New()
	for i, value := range []string{"one", "two"} {
		err := r.Write("p1", func(reason string) (raftstore.Result, error) {
			data, err := proto.Marshal(&raftv1.Command{Op: &raftv1.Command_Batch{Batch: &raftv1.Batch{Txns: []*raftv1.Txn{{
				Then: []*raftv1.Op{raftstore.Put("k", []byte(value))}, Reason: reason,
			}}}}})
			if err != nil {
				t.Fatal(err)
			}
			entry := &raft.Log{Index: uint64(i + 1), Term: 1, Type: raft.LogCommand, Data: data}
			applied, err := state.Apply(mvcc.Entry{Index: entry.Index, Term: 1, Data: data})
			if err != nil {
				t.Fatal(err)
			}
			r.Applied("p1", []*raft.Log{entry}, state.Root())
			res := applied.Results[0]
			return raftstore.Result{Revision: res.GetRevision(), Succeeded: true, Ops: res.GetResults()}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	kv, _ := state.Root().Get("k", 2)
	r.reads = append(r.reads, &read{Peer: "p1", Prefix: "k", Call: r.step(), Return: r.step(), Revision: 2, Keys: []raftstore.KeyValue{kv}})
	events, upTo := state.Root().EventsOf("", 0, 10)
	r.Watch("").Turn("p1", 0, events, upTo, nil)
	return r
}

// TestCheck spoils a true history in each way that a property forbids: a checker
// that finds nothing may be one that looks at nothing.
func TestCheck(t *testing.T) {
	if _, v := played(t).Check(); len(v) != 0 {
		t.Fatalf("the true history: %v", v)
	}
	for name, c := range map[string]struct {
		spoil func(*Recorder)
		want  string
	}{
		"an answer with another revision": {func(r *Recorder) { r.writes[1].Result.Revision = 3 }, "P1"},
		"an acknowledged write is lost":   {func(r *Recorder) { r.writes[0].ID = "other" }, "P2"},
		"a refused write is done":         {func(r *Recorder) { r.writes[0].Outcome = Refused }, "P2"},
		"a stale read": {func(r *Recorder) {
			r.reads[0].Revision, r.reads[0].Keys[0] = 1, raftstore.KeyValue{Key: "k", Value: []byte("one"), Create: 1, Mod: 1, Version: 1}
		}, "P1"},
		"a read of another value":      {func(r *Recorder) { r.reads[0].Keys[0].Value = []byte("2") }, "P1"},
		"a read that leaves out a key": {func(r *Recorder) { r.reads[0].Keys = nil }, "P1"},
		"writes in the wrong order": {func(r *Recorder) {
			r.writes[0].Call, r.writes[0].Return = r.writes[1].Return+1, r.writes[1].Return+2
		}, "P1"},
		"a watch without an event":  {func(r *Recorder) { t := &r.watches[0].turns[0]; t.Events = t.Events[1:] }, "P4"},
		"a watch out of order":      {func(r *Recorder) { e := r.watches[0].turns[0].Events; e[0], e[1] = e[1], e[0] }, "P4"},
		"a watch with a wrong key":  {func(r *Recorder) { r.watches[0].prefix = "x" }, "P4"},
		"a bookmark too far":        {func(r *Recorder) { r.watches[0].turns[0].UpTo = 9 }, "P4"},
		"a compaction never made":   {func(r *Recorder) { r.watches[0].turns[0].CompactedFor = 2 }, "P4"},
		"another entry at an index": {func(r *Recorder) { r.Applied("p2", []*raft.Log{{Index: 1, Term: 2}}, mvcc.New().Root()) }, "P6"},
		"another state at an index": {func(r *Recorder) { p := r.points[2]; p.rev = 7; r.points[2] = p }, "P3"},
	} {
		t.Run(name, func(t *testing.T) {
			r := played(t)
			c.spoil(r)
			_, v := r.Check()
			if len(v) == 0 || !strings.HasPrefix(v[0], c.want+":") {
				t.Errorf("found %v, want %s", v, c.want)
			}
		})
	}
	// A lease of 2 s, kept alive after 1 s, whose end is in the log 3 s after the grant.
	leased := func(change func(*tenure, *Lease)) []string {
		r := New()
		is, l := &tenure{granted: time.Second, ended: 4 * time.Second, over: true, expired: true}, r.Lease(1, 2*time.Second)
		l.kept = []time.Duration{2 * time.Second}
		change(is, l)
		r.checkLeases(&oracle{leases: map[int64]*tenure{1: is}}, new(Stats))
		return r.violations
	}
	if v := leased(func(*tenure, *Lease) {}); len(v) != 0 {
		t.Errorf("a true lease: %v", v)
	}
	for name, change := range map[string]func(*tenure, *Lease){
		"ended before its keepalive's time":    func(is *tenure, _ *Lease) { is.ended-- },
		"never ended":                          func(is *tenure, _ *Lease) { is.over, is.expired = false, false },
		"kept alive after its end":             func(_ *tenure, l *Lease) { l.kept = append(l.kept, 5*time.Second) },
		"said to be over before it was":        func(_ *tenure, l *Lease) { l.ended = 3 * time.Second },
		"ended before its time, never renewed": func(is *tenure, l *Lease) { is.ended, l.kept = 2*time.Second, nil },
	} {
		if v := leased(change); len(v) == 0 || !strings.HasPrefix(v[0], "P5:") {
			t.Errorf("a lease %s: %v", name, v)
		}
	}
	// A write acknowledged after 2 s, and a read a second later that does not show it.
	for age, want := range map[time.Duration]int{time.Second: 0, 999 * time.Millisecond: 1, 2 * time.Second: 0, 3 * time.Second: 1} {
		r := New()
		r.writes = []*write{{ID: "w", Outcome: Acked, Until: 2 * time.Second}}
		r.reads = []*read{{
			Options: raftstore.ReadOptions{Consistency: raftstore.Bounded, MaxAge: 2 * time.Second}, Until: 3 * time.Second, Age: age,
		}}
		r.checkAges(&oracle{txns: map[string][]committed{"w": {{want: result{rev: 1}}}}}, new(Stats))
		if len(r.violations) != want || want > 0 && !strings.HasPrefix(r.violations[0], "P8:") {
			t.Errorf("a read of age %v: %v", age, r.violations)
		}
	}
	// Porcupine must see on its own what the oracle sees.
	r := played(t)
	o := r.replay(new(Stats))
	r.reads[0].Revision, r.reads[0].Keys[0] = 1, raftstore.KeyValue{Key: "k", Value: []byte("one"), Create: 1, Mod: 1, Version: 1}
	r.porcupine(o, new(Stats))
	if len(r.violations) != 1 || !strings.Contains(r.violations[0], "porcupine") {
		t.Errorf("a stale read, to porcupine: %v", r.violations)
	}
}
