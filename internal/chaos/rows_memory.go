//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect/v2"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

// playMemory changes the memory of a follower, then of the leader: a bit of a value,
// then the state as a whole, by what no log has. Each time the peer quarantines
// itself, says so, and serves nothing; the others go on; a restart heals it.
func playMemory(ctx context.Context, e *experiment) error {
	for n, end := 0, time.Now().Add(e.opts.seconds); n < 4 || time.Now().Before(end); n++ {
		leader, err := e.leader(ctx)
		if err != nil {
			return err
		}
		victim, what := leader, "the leader "+leader.name()
		if n%2 == 0 {
			victim = e.others(leader)[n/2%2]
			what = "the follower " + victim.name()
		}
		key := fmt.Sprintf("precious/%d", n)
		value, err := e.precious(ctx, key)
		if err != nil {
			return err
		}
		command := "flip " + userPrefix + key
		if n/2%2 == 1 {
			command = "diverge"
		}
		begin := time.Now()
		if _, err := victim.fault(ctx, command); err != nil {
			return err
		}
		err = eventually(ctx, progressWithin, "alarm of "+victim.name(), func(ctx context.Context) error {
			st, err := victim.status(ctx)
			if err == nil && !strings.Contains(strings.Join(st.GetAlarms(), "\n"), "quarantined: ") {
				err = fmt.Errorf("its alarms are %q", st.GetAlarms())
			}
			return err
		})
		if err != nil {
			return err
		}
		e.measure("until_quarantined", time.Since(begin))
		verb, _, _ := strings.Cut(command, " ")
		e.strike(1, fmt.Sprintf("%s: %s, and it is quarantined", what, verb))
		if err := e.servesNothing(ctx, victim, key); err != nil {
			return err
		}
		mark := e.load.mark()
		if err := e.writes(ctx, mark, progressWithin, "gap_quarantined"); err != nil {
			return err
		}
		now, err := e.leader(ctx)
		if err != nil {
			return err
		}
		if now == victim {
			e.fail("P7: %s leads, though it is quarantined", victim.name())
		}
		// Whoever asks anybody learns of it.
		out, err := e.cli(ctx, "peer", "list", "--peer", now.spec.APIAddress())
		if err != nil {
			return err
		}
		if !strings.Contains(out, "ALARM on "+victim.name()+": quarantined: ") {
			e.fail("P7: peer list does not say that %s is quarantined:\n%s", victim.name(), out)
		}
		if err := victim.kill(); err != nil {
			return err
		}
		if err := victim.restart(ctx); err != nil {
			return err
		}
		err = eventually(ctx, liveWithin, "healed "+victim.name(), func(ctx context.Context) error {
			res, err := storev1connect.NewStoreServiceClient(victim.client.Connect()).Range(ctx, &storev1.RangeRequest{Key: []byte(key)})
			if err == nil && (len(res.GetKvs()) != 1 || !bytes.Equal(res.GetKvs()[0].GetValue(), value)) {
				err = fmt.Errorf("it reads %q, which was written as %q", res.GetKvs(), value)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// precious writes a key that no other client reads, and returns once every peer and
// watcher has it: those that look at it later are to see what becomes of it.
func (e *experiment) precious(ctx context.Context, key string) (value []byte, err error) {
	w := &worker{load: e.load, name: "precious", peer: "any", rand: e.rand, client: e.dial(e.all()...)}
	defer w.client.Close()
	w.store = storev1connect.NewStoreServiceClient(w.client.Connect())
	var rev int64
	err = eventually(ctx, progressWithin, "write of "+key, func(ctx context.Context) error {
		return w.write(ctx, func(id string) *raftv1.Txn {
			value = w.value(id)
			return &raftv1.Txn{Then: []*raftv1.Op{putOp(key, value)}}
		}, func(ctx context.Context, _ string) (raftstore.Result, error) {
			res, err := w.store.Put(ctx, &storev1.PutRequest{Key: []byte(key), Value: value, PrevKv: true})
			rev = res.GetHeader().GetRevision()
			return raftstore.Result{Revision: rev, Succeeded: true, Ops: []*raftv1.OpResult{putResult(res)}}, err
		})
	})
	if err != nil {
		return nil, err
	}
	for _, f := range append([]*follower{e.witness}, e.watches...) {
		if err := f.until(ctx, rev, liveWithin); err != nil {
			return nil, err
		}
	}
	return value, nil
}

// servesNothing demands that a quarantined peer refuses reads, however old they may
// be, writes and watches, with the word to go elsewhere.
func (e *experiment) servesNothing(ctx context.Context, m *machine, key string) error {
	store := storev1connect.NewStoreServiceClient(m.client.Connect())
	calls := map[string]func(context.Context) error{
		"a write": func(ctx context.Context) error {
			_, err := store.Delete(ctx, &storev1.DeleteRequest{Key: []byte("nobody's")})
			return err
		},
		"a watch": func(ctx context.Context) error {
			f := &follower{peer: m.name(), client: m.client, prefix: key}
			f.stream(ctx)
			if f.position() == 0 {
				return connect.NewError(connect.CodeUnavailable, "no answer")
			}
			return nil
		},
	}
	for name, c := range map[string]storev1.Consistency{
		"a linearizable read": storev1.Consistency_CONSISTENCY_LINEARIZABLE,
		"a local read":        storev1.Consistency_CONSISTENCY_LOCAL,
	} {
		calls[name] = func(ctx context.Context) error {
			_, err := store.Range(ctx, &storev1.RangeRequest{Key: []byte(key), Read: &storev1.ReadOptions{Consistency: c}})
			return err
		}
	}
	for name, call := range calls {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, opPatience)
			defer cancel()
			return call(ctx)
		}()
		switch code := connect.CodeOf(err); {
		case err == nil:
			e.fail("P7: %s serves %s, though it is quarantined", m.name(), name)
		case code != connect.CodeUnavailable && !errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("%s on %s, which is quarantined: %w", name, m.name(), err)
		}
	}
	return nil
}
