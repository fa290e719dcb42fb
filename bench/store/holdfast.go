package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-io/holdfast/bench/rig"
	"github.com/holdfast-io/holdfast/client"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
)

// holdfast is three `holdfast server`.
type holdfast struct{ rig.Peers }

func (h *holdfast) start(ctx context.Context) error          { return h.Start(ctx) }
func (h *holdfast) stop()                                    { h.Stop() }
func (h *holdfast) restart(ctx context.Context, i int) error { return h.Restart(ctx, i) }
func (h *holdfast) member(i int) *rig.Process                { return h.Member(i) }
func (h *holdfast) pids() []int                              { return h.PIDs() }

func (h *holdfast) leader(ctx context.Context) (int, error) { return h.Leader(ctx) }

func (h *holdfast) dial(ctx context.Context, way string, to ...int) (conn, error) {
	c := h.Client(to...)
	u := holdfastConn{c: c, store: storev1connect.NewStoreServiceClient(c.Connect()), watches: new(watchStream)}
	switch way {
	case unary:
		return u, nil
	case session:
		return newPipeline(u), nil
	}
	c.Close()
	return nil, fmt.Errorf("holdfast has no way %q", way)
}

// holdfastConn is the unary API.
type holdfastConn struct {
	c       *client.Client
	store   storev1connect.StoreServiceClient
	watches *watchStream
}

func (u holdfastConn) close() { u.c.Close() }

func (u holdfastConn) put(ctx context.Context, p pair) error {
	_, err := u.store.Put(ctx, &storev1.PutRequest{Key: p.key, Value: p.value})
	return err
}

func txnOf(pairs []pair) *storev1.TxnRequest {
	req := &storev1.TxnRequest{Success: make([]*storev1.Op, len(pairs))}
	for i, p := range pairs {
		req.Success[i] = &storev1.Op{Op: &storev1.Op_Put{Put: &storev1.PutRequest{Key: p.key, Value: p.value}}}
	}
	return req
}

func (u holdfastConn) putAll(ctx context.Context, pairs []pair) error {
	_, err := u.store.Txn(ctx, txnOf(pairs))
	return err
}

func rangeOf(key []byte, linearizable bool) *storev1.RangeRequest {
	req := &storev1.RangeRequest{Key: key}
	if !linearizable {
		req.Read = &storev1.ReadOptions{Consistency: storev1.Consistency_CONSISTENCY_LOCAL}
	}
	return req
}

func found(key []byte, resp *storev1.RangeResponse, err error) error {
	if err == nil && len(resp.GetKvs()) == 0 {
		return fmt.Errorf("%s is not there", key)
	}
	return err
}

func (u holdfastConn) get(ctx context.Context, key []byte, linearizable bool) error {
	resp, err := u.store.Range(ctx, rangeOf(key, linearizable))
	return found(key, resp, err)
}

func (u holdfastConn) watch(ctx context.Context, key []byte, event func([]byte)) error {
	return u.watches.start(ctx, u.store, key, event)
}

// watchStream carries all watches of a connection, as etcd's client does. It ends
// with the connection.
type watchStream struct {
	mu      sync.Mutex // held while sending, too
	stream  storev1connect.StoreServiceWatchClientStream
	open    bool
	last    uint64
	watches map[uint64]*watch
}

type watch struct {
	began chan error // capacity 1
	event func([]byte)
}

func (w *watchStream) start(ctx context.Context, store storev1connect.StoreServiceClient, key []byte, event func([]byte)) error {
	begin := func() (*watch, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.open {
			stream, err := store.Watch(ctx)
			if err != nil {
				return nil, err
			}
			w.stream, w.open, w.watches = stream, true, make(map[uint64]*watch)
			go w.receive()
		}
		w.last++
		one := &watch{began: make(chan error, 1), event: event}
		w.watches[w.last] = one
		return one, w.stream.Send(&storev1.WatchRequest{Start: []*storev1.WatchStart{{Id: w.last, Key: key}}})
	}
	one, err := begin()
	if err != nil {
		return err
	}
	select {
	case err := <-one.began:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *watchStream) receive() {
	began := make(map[uint64]bool)
	for {
		resp, err := w.stream.Receive()
		if err != nil {
			w.mu.Lock()
			for id, one := range w.watches {
				if !began[id] {
					one.began <- err
				}
			}
			w.mu.Unlock()
			return
		}
		for _, update := range resp.GetUpdates() {
			w.mu.Lock()
			one := w.watches[update.GetId()]
			w.mu.Unlock()
			if one == nil {
				continue
			}
			if !began[update.GetId()] {
				began[update.GetId()] = true
				one.began <- nil // the first update says that it has begun
			}
			for _, ev := range update.GetEvents() {
				one.event(ev.GetKv().GetValue())
			}
		}
	}
}

func (u holdfastConn) list(ctx context.Context, prefix []byte) (int, error) {
	end := append([]byte(nil), prefix...)
	end[len(end)-1]++
	total, req := 0, &storev1.RangeRequest{Key: prefix, RangeEnd: end, Limit: pageSize}
	for {
		resp, err := u.store.Range(ctx, req)
		if err != nil {
			return total, err
		}
		total += len(resp.GetKvs())
		if !resp.GetMore() {
			return total, nil
		}
		if req.Revision == 0 {
			req.Revision = resp.GetHeader().GetRevision()
		}
		req.Key = append(resp.GetKvs()[len(resp.GetKvs())-1].GetKey(), 0)
	}
}

func (u holdfastConn) backup(context.Context) (int64, error) {
	return 0, errors.ErrUnsupported
}

// pipeline is the product's own session: calls of many callers, many in a message.
type pipeline struct {
	holdfastConn
	session *client.Session
}

func newPipeline(u holdfastConn) *pipeline {
	return &pipeline{holdfastConn: u, session: u.c.Session(client.SessionOptions{})}
}

func (p *pipeline) close() {
	p.session.Close()
	p.holdfastConn.close()
}

func (p *pipeline) call(ctx context.Context, call *storev1.Call) (*storev1.Reply, error) {
	return p.session.Do(ctx, call)
}

func (p *pipeline) put(ctx context.Context, kv pair) error {
	_, err := p.call(ctx, &storev1.Call{Call: &storev1.Call_Put{Put: &storev1.PutRequest{Key: kv.key, Value: kv.value}}})
	return err
}

func (p *pipeline) putAll(ctx context.Context, pairs []pair) error {
	_, err := p.call(ctx, &storev1.Call{Call: &storev1.Call_Txn{Txn: txnOf(pairs)}})
	return err
}

func (p *pipeline) get(ctx context.Context, key []byte, linearizable bool) error {
	reply, err := p.call(ctx, &storev1.Call{Call: &storev1.Call_Range{Range: rangeOf(key, linearizable)}})
	return found(key, reply.GetRange(), err)
}
