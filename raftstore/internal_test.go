package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
)

func testDisk(fail func(error)) *disk {
	m, _ := newMetrics(nil, nil)
	return newDisk(m, fail)
}

// TestLogCache compares the log with its cache to the one below, which has none,
// over random appends, overwrites by a new leader, and cuts at both ends.
func TestLogCache(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 3))
		under := raft.NewInmemStore()
		l := newLogStore(under, testDisk(func(err error) { t.Error(err) }), 4000)
		first, last, term := uint64(1), uint64(0), uint64(1)
		hits := 0
		for range 400 {
			switch n := r.IntN(12); {
			case n == 0 && last >= first:
				cut := first + r.Uint64N(last-first+1)
				if err := l.DeleteRange(first, cut); err != nil {
					t.Fatal(err)
				}
				if first = cut + 1; first > last {
					// As after an installed snapshot: the log goes on elsewhere.
					first += r.Uint64N(3)
					last = first - 1
				}
			case n == 1 && last >= first:
				from := first + r.Uint64N(last-first+1)
				if err := l.DeleteRange(from, last); err != nil {
					t.Fatal(err)
				}
				last, term = from-1, term+1
			case n == 2:
				last += r.Uint64N(3) // as after an installed snapshot that left old entries
			default:
				var entries []*raft.Log
				for range 1 + r.IntN(5) {
					last++
					entries = append(entries, &raft.Log{Index: last, Term: term, Data: bytes.Repeat([]byte{byte(last)}, r.IntN(300))})
				}
				if err := l.StoreLogs(entries); err != nil {
					t.Fatal(err)
				}
			}
			for index := uint64(0); index <= last+2; index++ {
				var got, want raft.Log
				gotErr, wantErr := l.GetLog(index, &got), under.GetLog(index, &want)
				if gotErr != wantErr || got.Index != want.Index || got.Term != want.Term || !bytes.Equal(got.Data, want.Data) {
					t.Fatalf("seed %d: entry %d is %+v, %v; below %+v, %v", seed, index, got, gotErr, want, wantErr)
				}
			}
			var bytes int64
			for _, e := range l.tail {
				bytes += cost(e)
			}
			if bytes != l.bytes || len(l.tail) > 1 && bytes > l.limit {
				t.Fatalf("seed %d: the cache accounts for %d bytes, holds %d, limit %d", seed, l.bytes, bytes, l.limit)
			}
			hits += len(l.tail)
		}
		if hits == 0 {
			t.Fatal("nothing was ever cached")
		}
	}
}

// countingStore counts what reaches the disk.
type countingStore struct {
	*raft.InmemStore
	writes int
	err    error
	hang   time.Duration
}

func (s *countingStore) StoreLogs(entries []*raft.Log) error {
	s.writes++
	time.Sleep(s.hang)
	if s.err != nil {
		return s.err
	}
	return s.InmemStore.StoreLogs(entries)
}

func (s *countingStore) Set(key, value []byte) error {
	s.writes++
	return s.InmemStore.Set(key, value)
}

// TestPoisonedDisk covers the latch: after one failed, or hanging, write nothing
// reaches the disk any more, whatever it would say.
func TestNoRoomInTheMomentOfAnAppend(t *testing.T) {
	full := &fs.PathError{Op: "write", Path: "raft.db", Err: syscall.ENOSPC}
	for _, test := range []struct {
		name    string
		err     error
		ballast bool
		ok      bool
	}{
		{"with a ballast", full, true, true},
		{"without one", full, false, false},
		{"a sync", syscall.ENOSPC, true, false}, // of which nobody knows what it has left behind
		{"another error", &fs.PathError{Op: "write", Path: "raft.db", Err: syscall.EIO}, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			under := &countingStore{InmemStore: raft.NewInmemStore(), err: test.err}
			l := newLogStore(under, testDisk(func(error) {}), 1000)
			l.makeRoom = func() bool {
				if test.ballast {
					under.err = nil
				}
				return test.ballast
			}
			if err := l.StoreLog(&raft.Log{Index: 1}); (err == nil) != test.ok {
				t.Errorf("append: %v, want success: %v", err, test.ok)
			}
			if last, _ := under.LastIndex(); (last == 1) != test.ok {
				t.Errorf("the last entry is %d", last)
			}
		})
	}
}

func TestPoisonedDisk(t *testing.T) {
	broken := errors.New("input/output error")
	for name, spoil := range map[string]func(*countingStore){
		"failed": func(s *countingStore) { s.err = broken },
		"hung":   func(s *countingStore) { s.hang = hangLimit + time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				failures := make(chan error, 10)
				d := testDisk(func(err error) { failures <- err })
				under := &countingStore{InmemStore: raft.NewInmemStore()}
				l, s := newLogStore(under, d, 1000), &stableStore{StableStore: under, disk: d}
				if err := l.StoreLog(&raft.Log{Index: 1}); err != nil || d.stalled(time.Second) {
					t.Fatalf("write to a healthy disk: %v", err)
				}
				spoil(under)
				if err := l.StoreLog(&raft.Log{Index: 2}); err == nil {
					t.Error("a write that " + name + " was called good")
				}
				under.err, under.hang = nil, 0
				writes := under.writes
				for what, err := range map[string]error{
					"append": l.StoreLog(&raft.Log{Index: 3}), "delete": l.DeleteRange(1, 1),
					"vote": s.Set([]byte("k"), []byte("v")), "term": s.SetUint64([]byte("k"), 1),
				} {
					if err == nil {
						t.Errorf("%s after the failure was called good", what)
					}
				}
				if under.writes != writes {
					t.Error("writes reach the disk after the failure")
				}
				if len(failures) != 1 || !d.stalled(time.Second) {
					t.Errorf("%d failures told, want one", len(failures))
				}
			})
		})
	}
}

// TestStalledDiskIsSilent covers the moment between a slow write and a dead disk: no
// heartbeats, no candidacy, until it returns.
func TestStalledDiskIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := testDisk(func(err error) { t.Error(err) })
		_, inmem := raft.NewInmemTransport("a")
		sent := &countingTransport{InmemTransport: inmem}
		tr := &transport{carrier: sent, store: &Store{}, disk: d, limit: time.Second}
		go func() {
			_ = d.write("test", func() error { time.Sleep(3 * time.Second); return nil })
		}()
		for _, c := range []struct {
			at   time.Duration
			want int
		}{{500 * time.Millisecond, 3}, {2 * time.Second, 0}, {4 * time.Second, 3}} {
			time.Sleep(c.at - time.Since(d.base))
			sent.calls = 0
			_ = tr.AppendEntries("b", "b", new(raft.AppendEntriesRequest), new(raft.AppendEntriesResponse))
			_ = tr.RequestVote("b", "b", new(raft.RequestVoteRequest), nil)
			_ = tr.RequestPreVote("b", "b", new(raft.RequestPreVoteRequest), nil)
			if sent.calls != c.want {
				t.Errorf("%v after a write began that takes 3 s: %d calls went out, want %d", c.at, sent.calls, c.want)
			}
		}
	})
}

type countingTransport struct {
	*raft.InmemTransport
	calls    int
	errs     int // of the next votes
	handlers int
}

func (c *countingTransport) AppendEntries(raft.ServerID, raft.ServerAddress, *raft.AppendEntriesRequest, *raft.AppendEntriesResponse) error {
	c.calls++
	return nil
}

func (c *countingTransport) RequestVote(raft.ServerID, raft.ServerAddress, *raft.RequestVoteRequest, *raft.RequestVoteResponse) error {
	c.calls++
	if c.errs > 0 {
		c.errs--
		return errors.New("broken pipe")
	}
	return nil
}

func (c *countingTransport) RequestPreVote(raft.ServerID, raft.ServerAddress, *raft.RequestPreVoteRequest, *raft.RequestPreVoteResponse) error {
	c.calls++
	return nil
}

func (c *countingTransport) SetHeartbeatHandler(func(raft.RPC)) { c.handlers++ }

// TestTransport covers what raft must and must not find in its transport: pre-vote,
// closing, and no way around its main loop (hashicorp/raft#695).
func TestTransport(t *testing.T) {
	_, inmem := raft.NewInmemTransport("a")
	under := &countingTransport{InmemTransport: inmem, errs: 2}
	var tr raft.Transport = &transport{carrier: under, store: &Store{}, disk: testDisk(nil), limit: time.Second}
	if _, ok := tr.(raft.WithPreVote); !ok {
		t.Error("raft would not find pre-vote")
	}
	if _, ok := tr.(raft.WithClose); !ok {
		t.Error("raft would not close the transport")
	}
	tr.SetHeartbeatHandler(func(raft.RPC) {})
	if under.handlers != 0 {
		t.Error("heartbeats have a fast path")
	}
	if err := tr.RequestVote("b", "b", new(raft.RequestVoteRequest), nil); err != nil || under.calls != 3 {
		t.Errorf("vote over a pool with two dead connections: %v after %d calls", err, under.calls)
	}
	network := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: deafStream{}, Logger: newRaftLogger(slog.New(slog.DiscardHandler))})
	defer network.Close()
	if _, ok := any(networkCarrier{network}).(carrier); !ok {
		t.Error("raft's own transport is no carrier")
	}
}

type deafStream struct{ StreamLayer }

func (deafStream) Accept() (net.Conn, error) { return nil, errors.New("deaf") }
func (deafStream) Close() error              { return nil }
func (deafStream) Addr() net.Addr            { return address("a:1") }

// TestEncodeBatch compares the encoding by hand with the library's.
func TestEncodeBatch(t *testing.T) {
	now := time.Unix(1700000000, 5).UTC()
	for _, sizes := range [][]int{{0}, {1}, {3, 200, 70000}, {5, 5, 5, 5}} {
		var batch []*proposal
		want := &raftv1.Command{ProposedAt: timestamppb.New(now)}
		list := new(raftv1.Batch)
		want.Op = &raftv1.Command_Batch{Batch: list}
		for i, size := range sizes {
			txn := &raftv1.Txn{Actor: fmt.Sprint(i), Then: []*raftv1.Op{Put("k", bytes.Repeat([]byte("v"), size))}}
			if size == 0 {
				txn = new(raftv1.Txn)
			}
			data, err := proto.Marshal(txn)
			if err != nil {
				t.Fatal(err)
			}
			batch = append(batch, newProposal(data))
			list.Txns = append(list.Txns, txn)
		}
		got := new(raftv1.Command)
		if err := proto.Unmarshal(encodeBatch(batch, now), got); err != nil || !proto.Equal(got, want) {
			t.Errorf("batch of %v bytes: %v, %v", sizes, got, err)
		}
	}
}

// TestCheckWrites covers which branches write a key twice.
func TestCheckWrites(t *testing.T) {
	del := func(key, end string) Op {
		return &raftv1.Op{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: key, RangeEnd: end}}}
	}
	within := func(then, otherwise []Op) Op { return Nested(Txn{Then: then, Else: otherwise}) }
	deep := func(n int) Op {
		op := Get("a")
		for range n {
			op = Nested(Txn{Then: []Op{op}})
		}
		return op
	}
	for _, c := range []struct {
		name string
		ops  []Op
		ok   bool
	}{
		{"different keys", []Op{Put("a", nil), Delete("b"), Put("c", nil)}, true},
		{"put and delete of one key", []Op{Put("a", nil), Delete("a")}, false},
		{"a key just before a deleted range", []Op{Put("a", nil), del("b", "c")}, true},
		{"the first key of a deleted range", []Op{Put("b", nil), del("b", "c")}, false},
		{"the end of a deleted range", []Op{Put("c", nil), del("b", "c")}, true},
		{"a key in a range without end", []Op{del("b", "\x00"), Put("z", nil)}, false},
		{"ranges side by side", []Op{del("a", "b"), del("b", "c")}, true},
		{"ranges that overlap", []Op{del("a", "c"), del("b", "d")}, true},
		{"a range without end above another", []Op{del("b", "\x00"), del("a", "b")}, true},
		{"a range without end over another", []Op{del("a", "b"), DeletePrefix("")}, true},
		{"one key in both branches within", []Op{within([]Op{Put("a", nil)}, []Op{Put("a", nil)})}, true},
		{"put in one branch within, deleted in the other", []Op{within([]Op{Put("a", nil)}, []Op{Delete("a")})}, true},
		{"put beside a branch within that puts", []Op{Put("a", nil), within(nil, []Op{Put("a", nil)})}, false},
		{"put after a branch within that deletes", []Op{within([]Op{del("a", "b")}, nil), Put("a", nil)}, false},
		{"put before a branch within that deletes", []Op{Put("a", nil), within([]Op{del("a", "b")}, nil)}, false},
		{"two within that put the same", []Op{within([]Op{Put("a", nil)}, nil), within(nil, []Op{Put("a", nil)})}, false},
		{"a key written twice deep within", []Op{within(nil, []Op{within([]Op{Put("a", nil), Put("a", nil)}, nil)})}, false},
		{"put and the end of a lease", []Op{Put("a", nil), RevokeLease(1)}, false},
		{"the ends of leases, and deletes", []Op{RevokeLease(1), RevokeLease(2), Delete("a")}, true},
		{"a value that is to be ignored", []Op{PutWith("a", []byte("v"), PutOptions{IgnoreValue: true})}, false},
		{"a lease that is to be ignored", []Op{PutWith("a", nil, PutOptions{Lease: 1, IgnoreLease: true})}, false},
		{"a lease without time", []Op{GrantLease(1, 0)}, false},
		{"a transaction within that has an id", []Op{Nested(Txn{ID: []byte("x")})}, false},
		{"a compare of a key too long within", []Op{Nested(Txn{If: []Compare{Absent(strings.Repeat("k", MaxKeyBytes+1))}})}, false},
		{"any bytes in a key", []Op{Put("\xff\x00", nil), DeletePrefix("\xff\xff")}, true},
		{"eight within each other", []Op{deep(8)}, true},
		{"nine within each other", []Op{deep(9)}, false},
		{"reading what is written", []Op{Put("a", nil), Get("a"), GetPrefix("a", 0)}, true},
		{"reading nothing", []Op{Get("")}, false},
		{"a key too long", []Op{Put(strings.Repeat("k", MaxKeyBytes+1), nil)}, false},
		{"no operation at all", []Op{{}}, false},
	} {
		if err := check(&raftv1.Txn{Then: c.ops}); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ok %v", c.name, err, c.ok)
		}
		if err := check(&raftv1.Txn{Otherwise: c.ops}); (err == nil) != c.ok {
			t.Errorf("%s, in the else branch: %v, want ok %v", c.name, err, c.ok)
		}
	}
}

// TestRaftLogger covers levels, formats and repetitions.
func TestRaftLogger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		l := newRaftLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
			Level: slog.LevelInfo,
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		})))
		l.Info("entering follower state")
		l.With("a", 1).Warn("servers", "list", hclog.Fmt("%+v", []int{1, 2}))
		for range 3 {
			l.Error("failed to heartbeat to", "peer", "p2")
		}
		l.Error("failed to heartbeat to", "peer", "p3")
		time.Sleep(repeatPeriod)
		l.Error("failed to heartbeat to", "peer", "p2")
		want := `level=INFO msg=servers part=raft a=1 list="[1 2]"
level=WARN msg="failed to heartbeat to" part=raft peer=p2
level=WARN msg="failed to heartbeat to" part=raft peer=p3
level=WARN msg="failed to heartbeat to" part=raft peer=p2
`
		if out.String() != want {
			t.Errorf("logged:\n%swant:\n%s", out.String(), want)
		}
		if l.IsInfo() || !l.IsWarn() || l.GetLevel() != hclog.Warn {
			t.Errorf("level is %v", l.GetLevel())
		}
	})
}

// TestAdmit covers whose calls reach raft: those for this peer and this disk.
func TestAdmit(t *testing.T) {
	call := func(to raft.ServerID, instance string) any {
		return &raft.RequestVoteRequest{RPCHeader: addressed(raft.RPCHeader{ID: []byte("p2"), Addr: []byte("b:1")}, to, instance)}
	}
	for _, tt := range []struct {
		name  string
		blank bool
		call  any
		want  string // in the refusal; "": admitted
		fatal bool
	}{
		{"for this disk", false, call("p1", "mine"), "", false},
		{"for this disk, which is new", true, call("p1", "mine"), "", false},
		{"the caller knows no disk", false, call("p1", ""), "", false},
		{"the caller knows no disk, and this one is empty", true, call("p1", ""), "empty disk", false},
		{"for another disk, this one is empty", true, call("p1", "lost"), "must not return", true},
		{"for another disk", false, call("p1", "lost"), "must not return", false},
		{"for another peer", false, call("p3", "mine"), "this is peer p1, not p3", false},
		{"an older version's", false, &raft.RequestVoteRequest{}, "", false},
		{"an older version's, to an empty disk", true, &raft.RequestVoteRequest{}, "empty disk", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &Store{cfg: Config{ID: "p1"}, instance: "mine", log: slog.New(slog.DiscardHandler), failed: make(chan error, 1), ready: make(chan struct{})}
			s.blank.Store(tt.blank)
			err := (&transport{store: s}).admit(tt.call)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if fatal := len(s.failed) == 1; fatal != tt.fatal {
				t.Errorf("the store ends: %t, want %t", fatal, tt.fatal)
			}
		})
	}
	_, inmem := raft.NewInmemTransport("a")
	header := addressed(raft.RPCHeader{Addr: []byte("b:1")}, "p1", "mine")
	if got := (&transport{carrier: inmem}).DecodePeer(header.Addr); got != "b:1" {
		t.Errorf("raft reads the sender's address as %q", got)
	}
}

// TestInstalls covers the watchdog over snapshots that do not help.
func TestInstalls(t *testing.T) {
	type step struct {
		index uint64
		at    time.Duration
		stop  bool
	}
	for name, steps := range map[string][]step{
		"the same again and again": {{7, 0, false}, {7, time.Second, false}, {7, 2 * time.Second, true}},
		"slowly":                   {{7, 0, false}, {7, time.Minute, false}, {7, 2 * time.Minute, false}},
		"going on":                 {{7, 0, false}, {9, 1, false}, {11, 2, false}, {13, 3, false}},
		"after others":             {{5, 0, false}, {7, 1, false}, {7, 2, false}, {7, 3, true}},
	} {
		var i installs
		begin := time.Now()
		for n, s := range steps {
			if err := i.note(s.index, begin.Add(s.at)); (err != nil) != s.stop {
				t.Errorf("%s, installation %d: %v, want an end: %t", name, n+1, err, s.stop)
			}
		}
	}
}

// TestPlanMembers states the autopilot's rules. A member is written as a voter "p1",
// a learner "l1", and what is the matter with it.
func TestPlanMembers(t *testing.T) {
	for _, tt := range []struct{ members, want string }{
		{"p1 p2 p3", ""},
		{"p1 l1:lags", ""},
		{"p1 l1:new", "promote l1"}, // a young cluster is in a hurry
		{"p1 p2 l1:new", "promote l1"},
		{"p1 p2 p3 p4 l1:new", ""},
		{"p1 l1", "promote l1"},
		{"p1 p2 l1", "promote l1"},
		{"p1 p2 p3 l1", ""},
		{"p1 p2 p3 l1 l2", "promote l1"},
		{"p1 p2 p3 l1:pinned l2", ""},
		{"p1 p2 p3 p4 l2", "promote l2"},
		{"p1 p2 p3 p4 p5 l1 l2", ""}, // five are enough
		// A silent peer is dead only if nobody has seen it alive, and only after a while.
		{"p1 p2 p3:silent l1", ""},
		{"p1 p2 p3:dead:alive l1", ""},
		// The replacement first, then the dead one; never without.
		{"p1 p2 p3:dead", ""},
		{"p1 p2 p3:dead l1:new", ""},
		{"p1 p2 p3:dead l1:pinned", ""},
		{"p1 p2 p3:dead l1", "promote l1"},
		{"p1 p2 p3:dead p4", "remove p3"},
		{"p1 p2 p3 p4:dead p5:dead l1", "promote l1"},
		{"p1 p2 p3 p4:dead p5:dead p6", "remove p4"},
		{"p1 p2 p3 p4 p5:dead", ""},
		// Two voters remain two: one of them is the leader.
		{"p1 p2:dead l1", ""},
		{"p1 p2:dead", ""},
		// A removal that was begun comes before all else.
		{"p1 p2 p3:removed l1", "remove p3"},
		{"p1 l1:removed l2", "remove l1"},
	} {
		var members []memberView
		for _, word := range strings.Fields(tt.members) {
			id, flags, _ := strings.Cut(word, ":")
			m := memberView{id: id, voter: id[0] == 'p', alive: true, stable: stableFor}
			for _, flag := range strings.Split(flags, ":") {
				switch flag {
				case "lags":
					m.stable = -1
				case "new":
					m.stable = stableFor - 1
				case "pinned":
					m.pinned = true
				case "removed":
					m.removed = true
				case "silent":
					m.silent, m.alive = time.Minute-1, false
				case "dead":
					m.silent, m.alive = time.Minute, false
				case "alive":
					m.alive = true
				}
			}
			members = append(members, m)
		}
		step := planMembers(members, time.Minute)
		if got := strings.TrimSpace(string(step.action) + " " + step.id); got != tt.want {
			t.Errorf("%s: %q (%s), want %q", tt.members, got, step.reason, tt.want)
		}
		if (step.reason == "") != (step.action == stepNone) {
			t.Errorf("%s: %s for the reason %q", tt.members, step.action, step.reason)
		}
		if alarm := len(step.dead) > 0; alarm != (step.action == stepNone && strings.Contains(strings.ReplaceAll(tt.members, ":dead:alive", ""), ":dead")) {
			t.Errorf("%s: alarm %t", tt.members, alarm)
		}
		if step := planMembers(members, -1); step.action != stepNone && strings.Contains(tt.members, ":dead") && step.action == stepRemove {
			t.Errorf("%s: %s %s although nobody counts as dead", tt.members, step.action, step.id)
		}
	}
}

// TestAllOps covers what authorization looks at: nothing may hide in a branch or in
// a transaction within.
func TestAllOps(t *testing.T) {
	txn := Txn{
		If:   []Compare{Absent("c1")},
		Then: []Op{Put("a", nil), Nested(Txn{If: []Compare{Present("c2")}, Then: []Op{Get("b")}, Else: []Op{Nested(Txn{If: []Compare{Absent("c3")}, Else: []Op{Delete("c")}})}})},
		Else: []Op{Delete("d")},
	}
	var ops, compares []string
	for op := range txn.AllOps() {
		ops = append(ops, op.GetPut().GetKey()+op.GetRange().GetKey()+op.GetDelete().GetKey())
	}
	for c := range txn.AllCompares() {
		compares = append(compares, c.GetKey())
	}
	if got := strings.Join(ops, ","); got != "a,,b,,c,d" {
		t.Errorf("operations %q", got)
	}
	if got := strings.Join(compares, ","); got != "c1,c2,c3" {
		t.Errorf("compares %q", got)
	}
	// A caller that has seen enough ends the walk wherever it is.
	for n := range ops {
		left := n
		for range txn.AllOps() {
			if left--; left < 0 {
				break
			}
		}
	}
}

// BenchmarkCheckWrites: what a transaction's check costs grows with its size, not with
// the square of it.
func BenchmarkCheckWrites(b *testing.B) {
	for _, n := range []int{1, 64, 512} {
		b.Run(fmt.Sprint("puts=", n), func(b *testing.B) {
			var ops []*raftv1.Op
			for i := range n {
				ops = append(ops, &raftv1.Op{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: fmt.Sprintf("raw/key-%012d", i)}}})
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := checkWrites(ops); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestReserve: a leader that hands over for lack of room takes what there is room
// for, and deletes.
func TestReserve(t *testing.T) {
	s := &Store{cfg: Config{ID: "p1"}}
	s.leader.Store(&leaderInfo{id: "p1"})
	r := &room{store: s}
	grow := mustEncode(Txn{Then: []Op{Put("k", make([]byte, 1000))}})
	shrink := mustEncode(Txn{Then: []Op{Delete("k")}})
	r.refusing.Store(true)
	r.reserve.Store(1 << 20)
	taken := 0
	for r.admit(grow) == nil {
		if taken++; taken > 1<<20/1000 {
			t.Fatalf("%d transactions of 1000 bytes fit into 1 MiB", taken)
		}
	}
	if taken < 100 {
		t.Errorf("%d transactions of 1000 bytes were taken, there is room for 100", taken)
	}
	if err := r.admit(grow); !errors.Is(err, ErrNoSpace) {
		t.Errorf("a put once the reserve is used up: %v, want ErrNoSpace", err)
	}
	if err := r.admit(shrink); err != nil {
		t.Errorf("a delete once the reserve is used up: %v", err)
	}
	s.leader.Store(&leaderInfo{id: "p2"})
	if err := r.admit(grow); err != nil {
		t.Errorf("a put on a peer that does not lead: %v", err)
	}
}
