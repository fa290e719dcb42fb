//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest/history"
)

const (
	leasePrefix = "lease/"
	leaseTTL    = 2 * time.Second // up to twice that
	// endsWithin is how long leases that nobody keeps alive may last on a healthy
	// cluster: their time, and a new leader's promise of all of it again.
	endsWithin = 2*2*leaseTTL + 10*time.Second
)

// hold makes one lease after the other, each with a key, keeps it alive for a while,
// and lets it end, or ends it. Each call goes to the next peer.
func (l *load) hold(ctx context.Context, name string, r *rand.Rand) {
	machines := l.c.all()
	w := &worker{load: l, name: name, rand: r, client: l.c.dial(machines...), peer: "any"}
	defer w.client.Close()
	l.mu.Lock()
	l.roaming = append(l.roaming, w.client)
	l.mu.Unlock()
	w.store = storev1connect.NewStoreServiceClient(w.client.Connect())
	for ctx.Err() == nil {
		lease, id := w.grant(ctx, leaseTTL+time.Duration(r.Int64N(int64(leaseTTL))).Truncate(time.Millisecond))
		if lease == nil {
			sleep(ctx, 200*time.Millisecond)
			continue
		}
		for range 1 + r.IntN(4) {
			if sleep(ctx, time.Duration(r.Int64N(int64(leaseTTL)))); ctx.Err() != nil {
				return
			}
			if errors.Is(w.keepAlive(ctx, lease, id), raftstore.ErrLeaseNotFound) {
				break
			}
		}
		if r.IntN(4) == 0 {
			lease.Revoking()
			_ = w.call(ctx, func(ctx context.Context) error {
				_, err := w.store.LeaseRevoke(ctx, &storev1.LeaseRevokeRequest{Id: id})
				return err
			})
		}
	}
}

// call makes a call of the next peer.
func (w *worker) call(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opPatience)
	defer cancel()
	if w.peer == "any" {
		w.client.Switch("it is the next one's turn")
	}
	w.load.ops.Add(1)
	return do(ctx)
}

func leaseKey(id int64) string { return fmt.Sprintf("%s%d", leasePrefix, id) }

// grant makes a lease with a key. It returns nil unless it knows that both are there.
func (w *worker) grant(ctx context.Context, ttl time.Duration) (*history.Lease, int64) {
	called := time.Now()
	var granted *storev1.LeaseGrantResponse
	err := w.call(ctx, func(ctx context.Context) (err error) {
		granted, err = w.store.LeaseGrant(ctx, &storev1.LeaseGrantRequest{Ttl: durationpb.New(ttl)})
		return err
	})
	if err != nil {
		return nil, 0
	}
	key := leaseKey(granted.GetId())
	var value []byte
	err = w.call(ctx, func(ctx context.Context) error {
		return w.write(ctx, func(id string) *raftv1.Txn {
			value = w.value(id)
			// Leases are in no event, so the history's model does not know them.
			return &raftv1.Txn{Then: []*raftv1.Op{putOp(key, value)}}
		}, func(ctx context.Context, _ string) (raftstore.Result, error) {
			res, err := w.store.Put(ctx, &storev1.PutRequest{Key: []byte(key), Value: value, Lease: granted.GetId(), PrevKv: true})
			if connect.CodeOf(err) == connect.CodeNotFound { // it has ended: nothing was written
				err = connect.NewError(connect.CodeUnavailable, err.Error())
			}
			return raftstore.Result{Revision: res.GetHeader().GetRevision(), Succeeded: true, Ops: []*raftv1.OpResult{putResult(res)}}, err
		})
	})
	if err != nil {
		return nil, 0
	}
	return w.load.rec.LeaseOf(userPrefix+key, granted.GetId(), granted.GetTtl().AsDuration(), called), granted.GetId()
}

// keepAlive keeps a lease alive. Who is told that it has ended must not find its key.
func (w *worker) keepAlive(ctx context.Context, lease *history.Lease, id int64) error {
	err := lease.KeepAlive(func() error {
		return w.call(ctx, func(ctx context.Context) error {
			_, err := w.store.LeaseKeepAlive(ctx, &storev1.LeaseKeepAliveRequest{Id: id})
			if connect.CodeOf(err) == connect.CodeNotFound {
				err = raftstore.ErrLeaseNotFound
			}
			return err
		})
	})
	if errors.Is(err, raftstore.ErrLeaseNotFound) {
		var res *storev1.RangeResponse
		if w.call(ctx, func(ctx context.Context) (err error) {
			res, err = w.store.Range(ctx, &storev1.RangeRequest{Key: []byte(leaseKey(id))})
			return err
		}) == nil && len(res.GetKvs()) > 0 {
			w.load.rec.Violate("P5: lease %d was said to be over, and %s reads its key at revision %d", id, res.GetHeader().GetServedBy(), res.GetHeader().GetRevision())
		}
	}
	return err
}

// leases returns how many keys there are that live by one.
func leases(ctx context.Context, store storev1connect.StoreServiceClient) (int64, error) {
	res, err := store.Range(ctx, &storev1.RangeRequest{Key: []byte(leasePrefix), RangeEnd: endOf(leasePrefix), CountOnly: true})
	return res.GetCount(), err
}

// leaseEnds demands of a healed cluster that a lease ends, and measures how long
// after its time.
func (e *experiment) leaseEnds(ctx context.Context, m *machine) error {
	w := &worker{load: e.load, name: "live", peer: m.name(), rand: rand.New(rand.NewPCG(2, e.opts.seed)), client: m.client, store: storev1connect.NewStoreServiceClient(m.client.Connect())}
	lease, id := w.grant(ctx, leaseTTL)
	if lease == nil {
		return fmt.Errorf("%s grants no lease", m.name())
	}
	sleep(ctx, leaseTTL/2)
	called := time.Now()
	if err := w.keepAlive(ctx, lease, id); err != nil {
		return fmt.Errorf("%s does not keep a lease alive: %w", m.name(), err)
	}
	err := eventually(ctx, endsWithin, "end of a lease", func(ctx context.Context) error {
		res, err := w.store.Range(ctx, &storev1.RangeRequest{Key: []byte(leaseKey(id)), CountOnly: true})
		if err == nil && res.GetCount() > 0 {
			err = errors.New("its key is there")
		}
		return err
	})
	late := time.Since(called) - leaseTTL
	if late < 0 && err == nil {
		e.fail("P5: a lease of %v on %s has ended %v too early", leaseTTL, m.name(), -late)
	}
	e.measure("lease_ended_late", late)
	return err
}
