package raftstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// hubStore is a store without raft: what is applied is published at once.
type hubStore struct {
	*Store
	t     *testing.T
	state *mvcc.State
	index uint64
}

func newHubStore(t *testing.T) *hubStore {
	s := &hubStore{Store: &Store{stopped: make(chan struct{})}, t: t, state: mvcc.New()}
	s.hub = newWatchHub(s.Store)
	s.publish(s.state.Root())
	return s
}

func (s *hubStore) apply(cmd *raftv1.Command) {
	s.t.Helper()
	data, err := proto.Marshal(cmd)
	if err != nil {
		s.t.Fatal(err)
	}
	s.index++
	if _, err := s.state.Apply(mvcc.Entry{Index: s.index, Term: 1, Data: data}); err != nil {
		s.t.Fatal(err)
	}
	s.publish(s.state.Root())
}

func (s *hubStore) put(key string) {
	s.t.Helper()
	s.apply(&raftv1.Command{Op: &raftv1.Command_Batch{Batch: &raftv1.Batch{Txns: []*raftv1.Txn{{Then: []Op{Put(key, nil)}}}}}})
}

// TestWatchSetRace has a writer and the hub race with a set that is polled, and
// asked for its positions, which must never pass what is delivered: each watcher
// gets each of its events once.
func TestWatchSetRace(t *testing.T) {
	s := newHubStore(t)
	const writes, keys = 30_000, 4
	random := rand.New(rand.NewPCG(1, 1))
	written := make([][]Revision, keys)
	plan := make([]int, writes)
	for i := range plan {
		plan[i] = random.IntN(keys)
		written[plan[i]] = append(written[plan[i]], Revision(i+1))
	}
	set := s.NewWatchSet()
	number := make(map[*Watcher]int)
	got := make([][]Revision, keys)
	for k := range keys {
		w := s.WatchRange(fmt.Sprint("k", k), "", 0)
		number[w] = k
		set.Add(w)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, k := range plan {
			s.put(fmt.Sprint("k", k))
			s.hub.dispatch(s.current.Load().root)
		}
	}()
	poll := func() {
		for {
			w, events, upTo, err := set.Poll()
			if err != nil {
				t.Error(err)
			}
			if w == nil {
				return
			}
			for _, e := range events {
				got[number[w]] = append(got[number[w]], e.Revision)
			}
			for other := range number { // a bookmark may be due at any time
				if at, current := set.Position(other); current && at > s.hub.pos.Load() {
					t.Errorf("position %d after all events up to %d", at, s.hub.pos.Load())
				}
			}
			if upTo > writes {
				t.Errorf("up to %d", upTo)
			}
		}
	}
	for running := true; running; {
		select {
		case <-set.Ready():
		case <-done:
			running = false
		}
		poll()
	}
	for k := range keys {
		if len(got[k]) != len(written[k]) {
			t.Errorf("key %d: %d events of %d", k, len(got[k]), len(written[k]))
			continue
		}
		for i, rev := range got[k] {
			if rev != written[k][i] {
				t.Errorf("key %d: event %d is of revision %d, want %d", k, i, rev, written[k][i])
				break
			}
		}
	}
}

// TestWatchBuckets: an event makes those watchers ready whose keys it changes, and
// no others.
func TestWatchBuckets(t *testing.T) {
	s := newHubStore(t)
	set := s.NewWatchSet()
	names := make(map[*Watcher]string)
	watch := func(name, start, end string) *Watcher {
		w := s.WatchRange(start, end, 0)
		names[w] = name
		set.Add(w)
		return w
	}
	watch("key", "a/1", "")
	watch("prefix", "a/", "a0")
	watch("range", "a/0", "a/2")
	watch("from", "b", mvcc.NoEnd)
	watch("all", "", mvcc.NoEnd)
	gone := watch("gone", "a/", "a0")
	set.Remove(gone) // while it is ready
	ready := func() string {
		found := make(map[string]bool)
		for {
			w, _, _, err := set.Poll()
			if err != nil {
				t.Fatal(err)
			}
			if w == nil {
				break
			}
			found[names[w]] = true
		}
		out := ""
		for _, name := range []string{"key", "prefix", "range", "from", "all", "gone"} {
			if found[name] {
				out += name + " "
			}
		}
		return out
	}
	if got := ready(); got != "key prefix range from all " {
		t.Errorf("at first ready: %s", got)
	}
	for _, test := range []struct{ key, want string }{
		{"a/1", "key prefix range all "},
		{"a/11", "prefix range all "},
		{"a/2", "prefix all "},
		{"a", "all "},
		{"b", "from all "},
		{"zz", "from all "},
	} {
		s.put(test.key)
		s.hub.dispatch(s.current.Load().root)
		if got := ready(); got != test.want {
			t.Errorf("%s makes ready: %s, want %s", test.key, got, test.want)
		}
	}
	for w, name := range names {
		if name != "gone" {
			set.Remove(w)
		}
	}
	if len(s.hub.all()) != 0 || len(s.hub.lengths) != 0 || s.hub.count.Load() != 0 {
		t.Errorf("after all have gone: %d buckets, lengths %v, count %d", len(s.hub.all()), s.hub.lengths, s.hub.count.Load())
	}
}

// TestWatchGap: watchers that slept while history was discarded past them learn it
// at once, not with the next event of theirs.
func TestWatchGap(t *testing.T) {
	s := newHubStore(t)
	set := s.NewWatchSet()
	w := s.WatchRange("quiet", "", 0)
	set.Add(w)
	if _, _, _, err := set.Poll(); err != nil {
		t.Fatal(err)
	}
	<-set.Ready() // what Add made so
	for range 10 {
		s.put("other")
	}
	s.apply(&raftv1.Command{Op: &raftv1.Command_Compact{Compact: &raftv1.Compact{Revision: 5}}})
	s.hub.dispatch(s.current.Load().root) // as after a snapshot of the leader's
	select {
	case <-set.Ready():
	default:
		t.Fatal("nobody is woken")
	}
	got, _, _, err := set.Poll()
	if compacted, ok := errors.AsType[*CompactedError](err); got != w || !ok || compacted.Horizon != 5 {
		t.Errorf("got %v, %v", got, err)
	}
	if s.hub.count.Load() != 0 {
		t.Error("a watcher that failed is still counted")
	}
}
