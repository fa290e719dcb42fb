//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/client"
	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest/history"
)

const (
	hotKeys     = 40
	opPatience  = 3 * time.Second
	hotPrefix   = "k/"
	userPrefix  = raftstore.UserKeyspace
	allRangeEnd = "\x00"
)

// load is the clients: what they do is recorded, and what they meant to do is kept
// to be compared with what the store says was done.
type load struct {
	rec     *history.Recorder
	c       *cluster
	clients int
	rate    int // operations a second, of all
	pad     int // bytes of a value, about

	mu       sync.Mutex
	intended map[string]*raftv1.Txn // by the write's id
	deletes  map[string]string      // ids of deletions, by key
	lastAck  time.Time
	gap      time.Duration // the longest between two acknowledged writes
	marks    []*mark
	floors   []floor
	roaming  []*client.Client // those that may go to any peer
	now      int64            // the highest revision acknowledged

	ops, writes atomic.Int64
	tally       sync.Map // outcomes by text, for people
}

// floor is a revision that was acknowledged at a time.
type floor struct {
	at  time.Time
	rev int64
}

// mark is a moment from which on somebody counts the time until writes go on.
type mark struct {
	at, first time.Time // first write that began after at and was acknowledged
}

func newLoad(c *cluster, rec *history.Recorder, rate int) *load {
	return &load{rec: rec, c: c, clients: 12, rate: rate, pad: 128, intended: make(map[string]*raftv1.Txn), deletes: make(map[string]string)}
}

// mark begins to wait for a write.
func (l *load) mark() *mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := &mark{at: time.Now()}
	l.marks = append(l.marks, m)
	return m
}

// since returns how long it took from the mark to the end of the first write that
// began after it; an hour when there was none.
func (l *load) since(m *mark) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.first.IsZero() {
		return time.Hour
	}
	return m.first.Sub(m.at)
}

// acked takes note of a write that was acknowledged.
func (l *load) acked(began time.Time, rev int64) {
	now := time.Now()
	l.writes.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.lastAck.IsZero() {
		l.gap = max(l.gap, now.Sub(l.lastAck))
	}
	l.lastAck = now
	for _, m := range l.marks {
		if m.first.IsZero() && began.After(m.at) {
			m.first = now
		}
	}
	if rev > l.now {
		l.now = rev
		l.floors = append(l.floors, floor{now, rev})
	}
}

// floorAt returns the highest revision that had been acknowledged at a time.
func (l *load) floorAt(t time.Time) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, _ := slices.BinarySearchFunc(l.floors, t, func(f floor, t time.Time) int { return f.at.Compare(t) })
	if i == 0 {
		return 0
	}
	return l.floors[i-1].rev
}

// run plays all clients until ctx ends, and ends with the last call's answer.
func (l *load) run(ctx context.Context, seed uint64) {
	var all sync.WaitGroup
	defer all.Wait()
	for i := range 2 {
		all.Go(func() { l.hold(ctx, fmt.Sprintf("h%d", i), rand.New(rand.NewPCG(seed, uint64(100+i)))) })
	}
	machines := l.c.all()
	for i := range l.clients {
		all.Go(func() {
			// One in four may go to any peer, over a session; the others stay with one.
			m := machines[i%len(machines)]
			w := &worker{load: l, name: fmt.Sprintf("c%d", i), rand: rand.New(rand.NewPCG(seed, uint64(i))), peer: m.name()}
			w.client = l.c.dial(m)
			if i%4 == 3 {
				w.client, w.peer = l.c.dial(machines...), "any"
				l.mu.Lock()
				l.roaming = append(l.roaming, w.client)
				l.mu.Unlock()
			}
			defer w.client.Close()
			w.store = storev1connect.NewStoreServiceClient(w.client.Connect())
			w.session = w.client.Session(client.SessionOptions{})
			defer w.session.Close()
			pace := time.NewTicker(time.Second * time.Duration(l.clients) / time.Duration(l.rate))
			defer pace.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-pace.C:
				}
				l.ops.Add(1)
				w.step(ctx)
			}
		})
	}
}

// worker is one client, which makes one call at a time.
type worker struct {
	load    *load
	name    string
	peer    string
	rand    *rand.Rand
	client  *client.Client
	store   storev1connect.StoreServiceClient
	session *client.Session
	last    map[string]int64 // revisions of keys, as last read
	once    string           // a key that is written once, to be deleted
}

func (w *worker) step(ctx context.Context) {
	key := fmt.Sprintf("%s%02d", hotPrefix, w.rand.IntN(hotKeys))
	switch n := w.rand.IntN(100); {
	case n < 20:
		w.put(ctx, key, w.store.Put)
	case n < 30:
		w.put(ctx, key, w.session.Put)
	case n < 40:
		w.swap(ctx, key, nil, w.store.Txn)
	case n < 55:
		id := fmt.Appendf(nil, "%s-%d", w.name, w.rand.Uint64())
		w.swap(ctx, key, id, w.session.Txn)
	case n < 62:
		w.drop(ctx, key)
	case n < 68:
		w.passing(ctx)
	case n < 80:
		w.read(ctx, w.store.Range)
	case n < 92:
		w.read(ctx, w.session.Range)
	default:
		w.readBounded(ctx)
	}
}

func (w *worker) value(id string) []byte {
	return append([]byte(id+" "), bytes.Repeat([]byte{'.'}, w.load.pad/2+w.rand.IntN(w.load.pad))...)
}

// write records a write that t says.
func (w *worker) write(ctx context.Context, make func(id string) *raftv1.Txn, call func(ctx context.Context, id string) (raftstore.Result, error)) error {
	// A call has its time, also when the run ends meanwhile.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opPatience)
	defer cancel()
	began := time.Now()
	var rev int64
	err := w.load.rec.Write(w.peer, func(id string) (raftstore.Result, error) {
		t := make(id)
		t.Reason = id
		w.load.mu.Lock()
		w.load.intended[id] = t
		w.load.mu.Unlock()
		res, err := call(ctx, id)
		rev = res.Revision
		return res, outcome(err)
	})
	w.load.count(err)
	if err == nil {
		w.load.acked(began, rev)
	}
	return err
}

// outcome tells a call's error in the store's words: whether anything can have
// happened. Nothing can only where the service promises it.
func outcome(err error) error {
	if err == nil {
		return nil
	}
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeResourceExhausted:
		if !errors.Is(err, client.ErrOutcomeUnknown) {
			return fmt.Errorf("%w: %w", raftstore.ErrOverloaded, err)
		}
	case connect.CodeUnknown, connect.CodeDeadlineExceeded, connect.CodeCanceled:
	default:
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			return err // which nobody could expect
		}
	}
	return fmt.Errorf("%w: %w", raftstore.ErrOutcomeUnknown, err)
}

func (l *load) count(err error) {
	what := "acked"
	switch {
	case errors.Is(err, raftstore.ErrOutcomeUnknown):
		what = "unknown"
	case err != nil:
		what = "refused"
	}
	n, _ := l.tally.LoadOrStore(what, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

func (w *worker) put(ctx context.Context, key string, put func(context.Context, *storev1.PutRequest) (*storev1.PutResponse, error)) {
	var value []byte
	_ = w.write(ctx, func(id string) *raftv1.Txn {
		value = w.value(id)
		return &raftv1.Txn{Then: []*raftv1.Op{putOp(key, value)}}
	}, func(ctx context.Context, _ string) (raftstore.Result, error) {
		res, err := put(ctx, &storev1.PutRequest{Key: []byte(key), Value: value, PrevKv: true})
		return raftstore.Result{Revision: res.GetHeader().GetRevision(), Succeeded: true, Ops: []*raftv1.OpResult{putResult(res)}}, err
	})
}

// swap writes key if nobody else has since this client last looked, and otherwise
// says so in a key of its own. With an id it may be sent again.
func (w *worker) swap(ctx context.Context, key string, token []byte, txn func(context.Context, *storev1.TxnRequest) (*storev1.TxnResponse, error)) {
	rev := w.last[key]
	var req *storev1.TxnRequest
	_ = w.write(ctx, func(id string) *raftv1.Txn {
		value, lost := w.value(id), "lost/"+w.name
		req = &storev1.TxnRequest{
			Id: token,
			Compares: []*storev1.Compare{{
				Key: []byte(key), Result: storev1.Compare_RESULT_EQUAL, Target: &storev1.Compare_ModRevision{ModRevision: rev},
			}},
			Success: []*storev1.Op{
				{Op: &storev1.Op_Range{Range: &storev1.RangeRequest{Key: []byte(key)}}},
				{Op: &storev1.Op_Put{Put: &storev1.PutRequest{Key: []byte(key), Value: value}}},
			},
			Failure: []*storev1.Op{{Op: &storev1.Op_Put{Put: &storev1.PutRequest{Key: []byte(lost), Value: value}}}},
		}
		return &raftv1.Txn{
			Compares: []*raftv1.Compare{{
				Key: userPrefix + key, Target: raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION,
				Result: raftv1.CompareResult_COMPARE_RESULT_EQUAL, Number: rev,
			}},
			Then: []*raftv1.Op{
				{Op: &raftv1.Op_Range{Range: &raftv1.Range{Key: userPrefix + key}}},
				putOp(key, value),
			},
			Otherwise: []*raftv1.Op{putOp(lost, value)},
		}
	}, func(ctx context.Context, _ string) (raftstore.Result, error) {
		res, err := txn(ctx, req)
		return txnResult(res), err
	})
	delete(w.last, key)
}

// drop deletes key and says so in a key of its own, in one transaction.
func (w *worker) drop(ctx context.Context, key string) {
	var req *storev1.TxnRequest
	_ = w.write(ctx, func(id string) *raftv1.Txn {
		value, by := w.value(id), "by/"+w.name
		req = &storev1.TxnRequest{Success: []*storev1.Op{
			{Op: &storev1.Op_Delete{Delete: &storev1.DeleteRequest{Key: []byte(key), PrevKv: true}}},
			{Op: &storev1.Op_Put{Put: &storev1.PutRequest{Key: []byte(by), Value: value}}},
		}}
		return &raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: userPrefix + key}}}, putOp(by, value)}}
	}, func(ctx context.Context, _ string) (raftstore.Result, error) {
		res, err := w.store.Txn(ctx, req)
		return txnResult(res), err
	})
}

// passing makes a key that nobody else knows, or deletes the one it made, by a plain
// deletion.
func (w *worker) passing(ctx context.Context) {
	if key := w.once; key != "" {
		w.once = ""
		_ = w.write(ctx, func(id string) *raftv1.Txn {
			w.load.mu.Lock()
			w.load.deletes[userPrefix+key] = id
			w.load.mu.Unlock()
			return &raftv1.Txn{Then: []*raftv1.Op{{Op: &raftv1.Op_Delete{Delete: &raftv1.Delete{Key: userPrefix + key}}}}}
		}, func(ctx context.Context, _ string) (raftstore.Result, error) {
			res, err := w.store.Delete(ctx, &storev1.DeleteRequest{Key: []byte(key), PrevKv: true})
			return raftstore.Result{Revision: res.GetHeader().GetRevision(), Succeeded: true, Ops: []*raftv1.OpResult{deleteResult(res)}}, err
		})
		return
	}
	var key string
	var value []byte
	err := w.write(ctx, func(id string) *raftv1.Txn {
		key, value = "once/"+id, w.value(id)
		return &raftv1.Txn{Then: []*raftv1.Op{putOp(key, value)}}
	}, func(ctx context.Context, _ string) (raftstore.Result, error) {
		res, err := w.store.Put(ctx, &storev1.PutRequest{Key: []byte(key), Value: value})
		return raftstore.Result{Revision: res.GetHeader().GetRevision(), Succeeded: true, Ops: []*raftv1.OpResult{putResult(res)}}, err
	})
	if err == nil { // else it might appear after its deletion
		w.once = key
	}
}

type rangeCall func(context.Context, *storev1.RangeRequest) (*storev1.RangeResponse, error)

// read reads all the hot keys, linearizably.
func (w *worker) read(ctx context.Context, call rangeCall) {
	ctx, cancel := context.WithTimeout(ctx, opPatience)
	defer cancel()
	_ = w.load.rec.ReadKeys(w.peer, userPrefix+hotPrefix, func() (int64, []raftstore.KeyValue, error) {
		res, err := call(ctx, &storev1.RangeRequest{Key: []byte(hotPrefix), RangeEnd: endOf(hotPrefix)})
		if err != nil {
			return 0, nil, err
		}
		w.last = make(map[string]int64)
		for _, kv := range res.GetKvs() {
			w.last[string(kv.GetKey())] = kv.GetModRevision()
		}
		return res.GetHeader().GetRevision(), keysOf(res.GetKvs(), userPrefix), nil
	})
}

// readBounded reads what may be half a second old, and not older.
func (w *worker) readBounded(ctx context.Context) {
	const age = 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, opPatience)
	defer cancel()
	floor := w.load.floorAt(time.Now().Add(-age))
	res, err := w.store.Range(ctx, &storev1.RangeRequest{
		Key: []byte(hotPrefix), RangeEnd: endOf(hotPrefix), CountOnly: true,
		Read: &storev1.ReadOptions{Consistency: storev1.Consistency_CONSISTENCY_BOUNDED, MaxAge: durationpb.New(age)},
	})
	if err == nil && res.GetHeader().GetRevision() < floor {
		w.load.rec.Violate("P8: a read on %s that may be %v old is at revision %d; %d was acknowledged before that",
			res.GetHeader().GetServedBy(), age, res.GetHeader().GetRevision(), floor)
	}
}

func putOp(key string, value []byte) *raftv1.Op {
	return &raftv1.Op{Op: &raftv1.Op_Put{Put: &raftv1.Put{Key: userPrefix + key, Value: value}}}
}

// endOf is the end of the range of keys that begin with prefix.
func endOf(prefix string) []byte {
	end := []byte(prefix)
	end[len(end)-1]++
	return end
}

// The service's answers in the store's terms.

func kvOf(kv *storev1.KeyValue, prefix string) *raftv1.KeyValue {
	return &raftv1.KeyValue{
		Key: prefix + string(kv.GetKey()), Value: kv.GetValue(), CreateRevision: kv.GetCreateRevision(),
		ModRevision: kv.GetModRevision(), Version: kv.GetVersion(), Lease: kv.GetLease(),
	}
}

func kvsOf(kvs []*storev1.KeyValue) (out []*raftv1.KeyValue) {
	for _, kv := range kvs {
		out = append(out, kvOf(kv, userPrefix))
	}
	return out
}

func keysOf(kvs []*storev1.KeyValue, prefix string) (out []raftstore.KeyValue) {
	for _, kv := range kvs {
		out = append(out, keyOf(kv, prefix))
	}
	return out
}

func keyOf(kv *storev1.KeyValue, prefix string) raftstore.KeyValue {
	return raftstore.KeyValue{
		Key: prefix + string(kv.GetKey()), Value: kv.GetValue(), Create: kv.GetCreateRevision(),
		Mod: kv.GetModRevision(), Version: kv.GetVersion(), Lease: kv.GetLease(),
	}
}

func putResult(res *storev1.PutResponse) *raftv1.OpResult {
	if res.GetPrevKv() == nil {
		return &raftv1.OpResult{}
	}
	return &raftv1.OpResult{Kvs: kvsOf([]*storev1.KeyValue{res.GetPrevKv()}), Count: 1}
}

func deleteResult(res *storev1.DeleteResponse) *raftv1.OpResult {
	return &raftv1.OpResult{Kvs: kvsOf(res.GetPrevKvs()), Count: res.GetDeleted()}
}

func txnResult(res *storev1.TxnResponse) raftstore.Result {
	out := raftstore.Result{Revision: res.GetHeader().GetRevision(), Succeeded: res.GetSucceeded(), Replayed: res.GetReplayed()}
	for _, r := range res.GetResults() {
		switch r := r.GetResult().(type) {
		case *storev1.OpResult_Put:
			out.Ops = append(out.Ops, putResult(r.Put))
		case *storev1.OpResult_Delete:
			out.Ops = append(out.Ops, deleteResult(r.Delete))
		case *storev1.OpResult_Range:
			out.Ops = append(out.Ops, &raftv1.OpResult{Kvs: kvsOf(r.Range.GetKvs()), Count: r.Range.GetCount()})
		}
	}
	return out
}

// idOf returns the id of the write that made the events of one revision; empty if it
// was nobody's here.
func (l *load) idOf(events []raftstore.Event) string {
	for _, e := range events {
		if e.Type == raftstore.EventPut && strings.HasPrefix(e.Key, userPrefix) {
			id, _, _ := strings.Cut(string(e.KV.Value), " ")
			return id
		}
		if id, ok := l.deletes[e.Key]; ok && e.Type == raftstore.EventDelete {
			return id
		}
	}
	return ""
}
