package history

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// Stats is how much there was to check.
type Stats struct {
	Acked, Unknown, UnknownCommitted, Refused int // writes
	Conflicts, Impossible, Repeats            int // of those: compares that failed; refused by the state machine; in the log more than once
	Reads, Aged, Events, Compacted            int // Aged: reads that may be old
	Leases, KeptAlive, Expired                int
	Entries, Terms                            int
	Undecided                                 int // histories that porcupine gave up on
}

// Add adds b to s.
func (s *Stats) Add(b Stats) {
	s.Acked += b.Acked
	s.Unknown += b.Unknown
	s.UnknownCommitted += b.UnknownCommitted
	s.Refused += b.Refused
	s.Conflicts += b.Conflicts
	s.Impossible += b.Impossible
	s.Repeats += b.Repeats
	s.Reads += b.Reads
	s.Aged += b.Aged
	s.Leases += b.Leases
	s.KeptAlive += b.KeptAlive
	s.Expired += b.Expired
	s.Events += b.Events
	s.Compacted += b.Compacted
	s.Entries += b.Entries
	s.Terms += b.Terms
	s.Undecided += b.Undecided
}

// committed is a recorded transaction at its place in the log.
type committed struct {
	index uint64
	txn   *raftv1.Txn
	term  uint64
	want  result
}

// tenure is a lease's life by the log, in the times when entries were first applied.
type tenure struct {
	granted, ended time.Duration
	over, expired  bool // ended; by its time
}

// oracle is what the log says.
type oracle struct {
	// txns has, by the write's ID, the places where it took effect: one that is in
	// the log again, with its transaction's id, does nothing there.
	txns     map[string][]committed
	repeats  map[string]int
	leases   map[int64]*tenure
	changes  []change            // in order of revisions
	versions map[string][]change // of each key, in order of revisions
	horizon  int64
	last     int64 // revision
}

// Check compares all that was recorded. It returns the promises that were broken,
// each with the property's name; nothing may be recorded any more.
func (r *Recorder) Check() (Stats, []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var st Stats
	o := r.replay(&st)
	r.checkWrites(o, &st)
	r.checkReads(o, &st)
	r.checkRealTime(o)
	r.checkWatches(o, &st)
	r.checkLeases(o, &st)
	r.checkAges(o, &st)
	if len(r.violations) == 0 { // it would say the same, after a long search
		r.porcupine(o, &st)
	}
	return st, r.violations
}

// keeper is the actor of what ends leases whose time is up.
const keeper = "lease-keeper"

// replay runs the committed log on the model, and compares the revisions that the
// peers had.
func (r *Recorder) replay(st *Stats) *oracle {
	o := &oracle{
		txns: make(map[string][]committed), repeats: make(map[string]int),
		leases: make(map[int64]*tenure), versions: make(map[string][]change),
	}
	m := r.first()
	o.horizon = r.compacted
	for _, key := range slices.Sorted(maps.Keys(m.keys)) {
		o.versions[key] = []change{{key: key, rev: m.keys[key].mod, kv: m.keys[key]}}
	}
	known := make(map[string]bool) // ids of transactions
	terms := make(map[uint64]bool)
	for _, index := range slices.Sorted(maps.Keys(r.entries)) {
		e := r.entries[index]
		st.Entries++
		terms[e.Term] = true
		if e.Type != raft.LogCommand {
			continue
		}
		var cmd raftv1.Command
		if err := proto.Unmarshal(e.Data, &cmd); err != nil {
			r.violate("P6: entry %d: %v", index, err)
			return o
		}
		if to := cmd.GetCompact().GetRevision(); to > o.horizon {
			o.horizon = min(to, m.rev)
		}
		for _, t := range cmd.GetBatch().GetTxns() {
			if known[string(t.GetId())] {
				o.repeats[t.GetReason()]++
				continue
			}
			want, err := m.apply(t, e.Term)
			if err != nil {
				r.violate("P1: entry %d: %v", index, err)
				return o
			}
			if id := string(t.GetId()); id != "" && !want.deposed {
				known[id] = true
			}
			for _, id := range want.granted {
				o.leases[id] = &tenure{granted: r.applied[index]}
			}
			for _, id := range want.revoked {
				l := o.leases[id]
				l.ended, l.over, l.expired = r.applied[index], true, t.GetActor() == keeper
			}
			o.txns[t.GetReason()] = append(o.txns[t.GetReason()], committed{index, t, e.Term, want})
			o.changes = append(o.changes, want.changes...)
			for _, c := range want.changes {
				o.versions[c.key] = append(o.versions[c.key], c)
			}
		}
		if p, ok := r.points[index]; ok && p.rev != m.rev {
			r.violate("P3: at index %d %s has revision %d, the log %d", index, p.peer, p.rev, m.rev)
		}
	}
	o.last, st.Terms = m.rev, len(terms)
	return o
}

func (r *Recorder) checkWrites(o *oracle, st *Stats) {
	for _, w := range r.writes {
		in := o.txns[w.ID]
		switch w.Outcome {
		case Refused:
			st.Refused++
			for _, c := range in {
				if !c.want.deposed {
					r.violate("P2: %s was refused (%s), and is entry %d", w.ID, w.Error, c.index)
				}
			}
			continue
		case Unknown:
			st.Unknown++
			st.UnknownCommitted += min(1, len(in))
			if len(in) > 1 {
				r.violate("P2: %s is in the log %d times", w.ID, len(in))
			}
			continue
		}
		st.Acked++
		if len(in) != 1 {
			r.violate("P2: %s was acknowledged at revision %d by %s, and has taken effect in the log %d times", w.ID, w.Result.Revision, w.Peer, len(in))
			continue
		}
		want, repeated := in[0].want, o.repeats[w.ID] > 0
		if repeated {
			st.Repeats++
		}
		if w.Impossible || want.refused {
			st.Impossible++
			if !w.Impossible || !want.refused {
				r.violate("P1: %s: answered as impossible: %v (%s); by the log: %v", w.ID, w.Impossible, w.Error, want.refused)
			}
			continue
		}
		if w.Error != "" { // a conflict
			st.Conflicts++
			if want.succeeded || !slices.Equal(w.Conflict, want.failed) && !(repeated && len(w.Conflict) == 0) {
				r.violate("P1: %s was answered with a conflict of %v; by the log %v failed", w.ID, w.Conflict, want.failed)
			}
			continue
		}
		if w.Result.Revision != want.rev || w.Result.Succeeded != want.succeeded {
			r.violate("P1: %s was answered with revision %d, succeeded %v; by the log %d, %v", w.ID, w.Result.Revision, w.Result.Succeeded, want.rev, want.succeeded)
			continue
		}
		if w.Result.Replayed {
			// Of a process only its answers are known, not its log.
			if r.known == nil && (!repeated || len(w.Result.Ops) > 0) {
				r.violate("P2: %s was answered as done before, with %d results; it is repeated in the log: %v", w.ID, len(w.Result.Ops), repeated)
			}
			continue
		}
		if why := differ(w.Result.Ops, want.ops); why != "" {
			r.violate("P1: %s at revision %d: %s", w.ID, want.rev, why)
		}
	}
}

// first is the model as it was when recording began.
func (r *Recorder) first() *model {
	if r.base == nil {
		return newModel()
	}
	return r.base.clone()
}

// differ says how an answer differs from what it should be.
func differ(have []*raftv1.OpResult, want []opResult) string {
	if len(have) != len(want) {
		return fmt.Sprintf("%d results, want %d", len(have), len(want))
	}
	for i, w := range want {
		h := have[i]
		if w.put && len(h.GetKvs()) == 0 {
			continue
		}
		if h.GetCount() != w.count || len(h.GetKvs()) != len(w.kvs) && len(h.GetKvs()) > 0 || h.GetSucceeded() != w.succeeded {
			return fmt.Sprintf("operation %d: %d keys, want %d", i, h.GetCount(), w.count)
		}
		for j, kv := range h.GetKvs() {
			if f := w.kvs[j]; kv.GetKey() != f.key || !sameAs(f.pair, kv.GetValue(), kv.GetCreateRevision(), kv.GetModRevision(), kv.GetVersion()) {
				return fmt.Sprintf("operation %d: %s is %+v, want %s as %+v", i, kv.GetKey(), kv, f.key, *f.pair)
			}
		}
		if why := differ(h.GetResults(), w.ops); why != "" {
			return fmt.Sprintf("operation %d: %s", i, why)
		}
	}
	return ""
}

func sameAs(p *pair, value []byte, create, mod, version int64) bool {
	return p != nil && bytes.Equal(p.value, value) && p.create == create && p.mod == mod && p.version == version
}

// at returns the version of key at revision rev, nil if it did not exist.
func (o *oracle) at(key string, rev int64) *pair {
	list := o.versions[key]
	i, _ := slices.BinarySearchFunc(list, rev+1, func(c change, rev int64) int {
		if c.rev < rev {
			return -1
		}
		return 1
	})
	if i == 0 {
		return nil
	}
	return list[i-1].kv
}

func (r *Recorder) checkReads(o *oracle, st *Stats) {
	keys := slices.Sorted(maps.Keys(o.versions))
	for _, rd := range r.reads {
		st.Reads++
		if rd.Revision > o.last {
			r.violate("P1: a read on %s is at revision %d; the log ends with %d", rd.Peer, rd.Revision, o.last)
			continue
		}
		if rd.Revision < rd.Options.MinRevision {
			r.violate("P3: a read on %s is at revision %d, and was to be at %d at least", rd.Peer, rd.Revision, rd.Options.MinRevision)
		}
		i := 0
		for _, key := range keys {
			want := o.at(key, rd.Revision)
			if want == nil || !strings.HasPrefix(key, rd.Prefix) {
				continue
			}
			if i >= len(rd.Keys) || rd.Keys[i].Key != key || !sameAs(want, rd.Keys[i].Value, rd.Keys[i].Create, rd.Keys[i].Mod, rd.Keys[i].Version) {
				r.violate("P1: a read of %q on %s at revision %d does not show %s as %+v", rd.Prefix, rd.Peer, rd.Revision, key, *want)
				break
			}
			i++
		}
		if i < len(rd.Keys) {
			r.violate("P1: a read of %q on %s at revision %d shows %s, which is not there", rd.Prefix, rd.Peer, rd.Revision, rd.Keys[i].Key)
		}
	}
}

// checkRealTime compares the order of the log with that of the calls, in linear time.
// All calls of one revision but the first, which made it, only read: they may stand
// in any order.
func (r *Recorder) checkRealTime(o *oracle) {
	type call struct {
		what         string
		rev          int64
		makes        bool
		begin, until int64
	}
	var calls []call
	for _, w := range r.writes {
		in := o.txns[w.ID]
		if len(in) != 1 || in[0].want.deposed || w.Outcome == Refused {
			continue
		}
		c := call{w.ID + " on " + w.Peer, in[0].want.rev, len(in[0].want.changes) > 0, w.Call, w.Return}
		if w.Outcome == Unknown {
			c.until = math.MaxInt64
		}
		calls = append(calls, c)
	}
	for _, rd := range r.reads {
		if !rd.linearizable() {
			continue
		}
		calls = append(calls, call{"a read on " + rd.Peer, rd.Revision, false, rd.Call, rd.Return})
	}
	slices.SortStableFunc(calls, func(a, b call) int {
		if a.rev != b.rev {
			return int(a.rev - b.rev)
		}
		if a.makes != b.makes {
			return map[bool]int{true: -1, false: 1}[a.makes]
		}
		return 0
	})
	var latest, group call // with the latest beginning: of all revisions before, of this one
	for i, c := range calls {
		if i > 0 && (c.rev != calls[i-1].rev || calls[i-1].makes) && group.begin > latest.begin {
			latest = group
		}
		if c.until < latest.begin {
			r.violate("P1: %s (revision %d) had returned before %s (revision %d) began", c.what, c.rev, latest.what, latest.rev)
		}
		if c.begin > group.begin {
			group = c
		}
	}
}

// checkLeases holds the log's ends of leases against what their keepers were told: none
// is before its time, and what was said to be over was.
func (r *Recorder) checkLeases(o *oracle, st *Stats) {
	var gone map[string]time.Duration
	for _, l := range r.leases {
		if l.key != "" {
			if gone == nil {
				gone = r.gone()
			}
			o.leases[l.id] = l.tenure(gone)
		}
	}
	for id, l := range o.leases {
		st.Leases++
		if l.expired {
			st.Expired++
		}
		if !l.over {
			r.violate("P5: lease %d, which nobody keeps alive, has not ended", id)
		}
	}
	for _, l := range r.leases {
		is := o.leases[l.id]
		if is == nil {
			r.violate("P5: lease %d was granted, and the log does not know it", l.id)
			continue
		}
		st.KeptAlive += len(l.kept)
		// Of a key's end only is known when it was seen.
		if l.ended != 0 && (!is.over || l.key == "" && is.ended > l.ended) {
			r.violate("P5: lease %d was said to be over after %v; by the log it is: %v, after %v", l.id, l.ended, is.over, is.ended)
		}
		if !is.expired {
			continue
		}
		for _, from := range append([]time.Duration{is.granted}, l.kept...) {
			if is.ended < from+l.ttl {
				r.violate("P5: lease %d of %v ended %v after the history's beginning; it was granted, or kept alive, after %v", l.id, l.ttl, is.ended, from)
			}
		}
	}
}

// checkAges holds reads that may be old against the age they claim: they show all that
// was acknowledged, on any peer, before then.
func (r *Recorder) checkAges(o *oracle, st *Stats) {
	type ack struct {
		until time.Duration
		rev   int64 // the highest until then
	}
	var acks []ack
	for _, w := range r.writes {
		if in := o.txns[w.ID]; w.Outcome == Acked && len(in) == 1 && !in[0].want.deposed {
			acks = append(acks, ack{w.Until, in[0].want.rev})
		}
	}
	slices.SortFunc(acks, func(a, b ack) int { return cmp.Compare(a.until, b.until) })
	for i := range acks[min(1, len(acks)):] {
		acks[i+1].rev = max(acks[i+1].rev, acks[i].rev)
	}
	for _, rd := range r.reads {
		if rd.linearizable() {
			continue
		}
		st.Aged++
		if limit := rd.Options.MaxAge; rd.Options.Consistency == raftstore.Bounded && (rd.Age < 0 || rd.Age > limit) {
			r.violate("P8: a read on %s that may be %v old is %v old", rd.Peer, limit, rd.Age)
		}
		if rd.Age < 0 {
			continue
		}
		n, _ := slices.BinarySearchFunc(acks, rd.Until-rd.Age, func(a ack, t time.Duration) int { return cmp.Compare(a.until, t) })
		if n > 0 && rd.Revision < acks[n-1].rev {
			r.violate("P8: a read of age %v on %s after %v is at revision %d, and %d was acknowledged after %v", rd.Age, rd.Peer, rd.Until, rd.Revision, acks[n-1].rev, acks[n-1].until)
		}
	}
}

func (r *Recorder) checkWatches(o *oracle, st *Stats) {
	for i, w := range r.watches {
		pos, began := int64(0), false
		for _, t := range w.turns {
			name := fmt.Sprintf("P4: watch %d of %q on %s after revision %d", i, w.prefix, t.Peer, t.After)
			if began && t.After != pos {
				r.violate("%s: it had come to %d before", name, pos) // the caller's mistake, but then this checks nothing
			}
			began = t.CompactedFor == 0
			if t.CompactedFor != 0 {
				st.Compacted++
				if t.After >= t.CompactedFor || t.CompactedFor > o.horizon {
					r.violate("%s: it ended as compacted to %d, the log is to %d", name, t.CompactedFor, o.horizon)
				}
				continue
			}
			if t.UpTo < t.After {
				r.violate("%s: bookmark %d goes back", name, t.UpTo)
			}
			if t.UpTo > o.last && t.UpTo > t.After {
				r.violate("%s: bookmark %d lies beyond the log's revision %d", name, t.UpTo, o.last)
			}
			var want []change
			from, _ := slices.BinarySearchFunc(o.changes, t.After+1, func(c change, rev int64) int { return int(c.rev - rev) })
			for _, c := range o.changes[from:] {
				if c.rev > t.UpTo {
					break
				}
				if strings.HasPrefix(c.key, w.prefix) {
					want = append(want, c)
				}
			}
			st.Events += len(t.Events)
			if why := differEvents(t.Events, want); why != "" {
				r.violate("%s: up to %d %s", name, t.UpTo, why)
			}
			pos = t.UpTo
		}
	}
}

// differEvents says which of a watch's properties does not hold. That it is the whole
// list, in order, with every field, covers them all.
func differEvents(have []raftstore.Event, want []change) string {
	for i, e := range have {
		if i > 0 && e.Revision < have[i-1].Revision {
			return fmt.Sprintf("ordered: revision %d comes after %d", e.Revision, have[i-1].Revision)
		}
		if slices.ContainsFunc(have[:i], func(f raftstore.Event) bool { return f.Revision == e.Revision && f.Key == e.Key }) {
			return fmt.Sprintf("unique: %s of revision %d comes twice", e.Key, e.Revision)
		}
	}
	for i := range max(len(have), len(want)) {
		switch {
		case i >= len(have):
			return fmt.Sprintf("reliable, atomic, bookmark: %s of revision %d is missing", want[i].key, want[i].rev)
		case i >= len(want):
			return fmt.Sprintf("filter, resumable: %s of revision %d is too much", have[i].Key, have[i].Revision)
		}
		h, w := have[i], want[i]
		if h.Key != w.key || h.Revision != w.rev {
			return fmt.Sprintf("reliable: %s of revision %d is there, %s of %d should be", h.Key, h.Revision, w.key, w.rev)
		}
		if (h.Type == raftstore.EventDelete) != (w.kv == nil) {
			return fmt.Sprintf("%s of revision %d has the wrong type", h.Key, h.Revision)
		}
		if w.kv != nil && !sameAs(w.kv, h.KV.Value, h.KV.Create, h.KV.Mod, h.KV.Version) {
			return fmt.Sprintf("%s of revision %d is %+v, want %+v", h.Key, h.Revision, h.KV, *w.kv)
		}
		if h.IsCreate() != (w.kv != nil && w.prev == nil) {
			return fmt.Sprintf("is-create: %s of revision %d", h.Key, h.Revision)
		}
	}
	return ""
}
