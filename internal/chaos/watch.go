//go:build linux

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/client"
	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest/history"
)

// follower is a watcher that goes on, with another peer, wherever it stopped.
type follower struct {
	peer   string // for people
	client *client.Client
	record *history.Watch // nil: nobody records it
	prefix string         // of the caller's keys; empty with all
	all    bool           // all keys of the store
	seen   func(events []raftstore.Event)

	mu    sync.Mutex
	after int64
	lost  bool // the history after it was discarded
}

// gone reports whether the watch has ended, because history was discarded.
func (f *follower) gone() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

func (f *follower) position() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.after
}

// run watches until ctx ends or the history that it needs is gone.
func (f *follower) run(ctx context.Context) {
	for ctx.Err() == nil {
		if done := f.stream(ctx); done {
			return
		}
		f.client.Switch("its watch ended")
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// stream watches with one peer. It reports whether there is nothing more to see.
func (f *follower) stream(ctx context.Context) (done bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := storev1connect.NewStoreServiceClient(f.client.Connect()).Watch(ctx)
	if err != nil {
		return false
	}
	defer stream.Close()
	// A stream over a connection that is cut says nothing: bookmarks are due.
	silence := time.AfterFunc(opPatience, cancel)
	defer silence.Stop()
	end := context.AfterFunc(ctx, func() { _ = stream.Close() })
	defer end()
	start := &storev1.WatchStart{Id: 1, Key: []byte(f.prefix), After: f.position(), Bookmark: durationpb.New(200 * time.Millisecond)}
	prefix := userPrefix
	if f.all {
		start.AllKeys, start.RangeEnd, prefix = true, []byte(allRangeEnd), ""
	} else {
		start.RangeEnd = endOf(f.prefix)
	}
	if err := stream.Send(&storev1.WatchRequest{Start: []*storev1.WatchStart{start}}); err != nil {
		return false
	}
	var part []raftstore.Event // of a revision that is not whole yet
	for {
		msg, err := stream.Receive()
		if err != nil {
			return false
		}
		silence.Reset(opPatience)
		peer := msg.GetHeader().GetServedBy()
		for _, u := range msg.GetUpdates() {
			events := append(part, eventsOf(u.GetEvents(), prefix)...)
			if part = nil; u.GetMore() {
				part = events
				continue
			}
			after := f.position()
			if u.GetHorizon() != 0 {
				f.turn(peer, after, nil, after, &raftstore.CompactedError{Horizon: u.GetHorizon()})
				f.mu.Lock()
				f.lost = true
				f.mu.Unlock()
				return true
			}
			if u.GetEnded() != nil {
				return false
			}
			// The first one only says that the watch is there.
			if len(events) > 0 || u.GetUpTo() > after {
				f.turn(peer, after, events, u.GetUpTo(), nil)
				f.mu.Lock()
				f.after = u.GetUpTo()
				f.mu.Unlock()
			}
		}
	}
}

func (f *follower) turn(peer string, after int64, events []raftstore.Event, upTo int64, err error) {
	if f.record != nil {
		f.record.Turn(peer, after, events, upTo, err)
	}
	if f.seen != nil {
		f.seen(events)
	}
}

func eventsOf(events []*storev1.Event, prefix string) (out []raftstore.Event) {
	for _, e := range events {
		kv := keyOf(e.GetKv(), prefix)
		ev := raftstore.Event{Key: kv.Key, Type: raftstore.EventPut, KV: kv, Revision: kv.Mod}
		if e.GetType() == storev1.Event_TYPE_DELETE {
			ev.Type = raftstore.EventDelete
		}
		out = append(out, ev)
	}
	return out
}

// until returns once f has come to rev.
func (f *follower) until(ctx context.Context, rev int64, within time.Duration) error {
	return eventually(ctx, within, fmt.Sprintf("watch on %s at revision %d", f.peer, rev), func(context.Context) error {
		if at := f.position(); at < rev {
			return fmt.Errorf("it is at %d", at)
		}
		return nil
	})
}
