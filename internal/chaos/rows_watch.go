//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

type raftEvent = raftstore.Event

// playWatchers opens 10,000 watches on 40 streams; one stream in ten never reads, and
// one breaks off and comes back each second, while history is compacted under them.
// Meanwhile a healthy watcher measures how late events are.
func playWatchers(ctx context.Context, e *experiment) error {
	const streams, each = 40, 250
	machines := e.all()
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	storm := make([]chan struct{}, streams)
	for i := range streams {
		storm[i] = make(chan struct{}, 1)
		all.Go(func() {
			c := e.dial(machines[i%len(machines)])
			defer c.Close()
			for ctx.Err() == nil {
				watchMany(ctx, storev1connect.NewStoreServiceClient(c.Connect()), i, each, i%10 == 9, storm[i])
				sleep(ctx, 50*time.Millisecond)
			}
		})
	}
	sleep(ctx, 2*time.Second)
	e.strike(streams*each, "watches, one in ten of a client that never reads")

	// The probe: a key of its own, written through one peer and watched at another.
	var mu sync.Mutex
	written := make(map[int64]time.Time)
	seen := make(map[int64]time.Time)
	probe := &follower{peer: machines[1].name(), client: e.dial(machines[1]), prefix: "live/probe", seen: func(events []raftEvent) {
		mu.Lock()
		defer mu.Unlock()
		for _, ev := range events {
			seen[ev.Revision] = time.Now()
		}
	}}
	defer probe.client.Close()
	all.Go(func() { probe.run(ctx) })
	writer := e.dial(machines[0])
	defer writer.Close()
	store := storev1connect.NewStoreServiceClient(writer.Connect())
	last := time.Now()
	err := e.turns(ctx, func(n int) error {
		sleep(ctx, 50*time.Millisecond)
		res, err := store.Put(ctx, &storev1.PutRequest{Key: []byte("live/probe"), Value: fmt.Appendf(nil, "probe-%d", n)})
		if err != nil {
			return fmt.Errorf("probe: %w", err)
		}
		mu.Lock()
		written[res.GetHeader().GetRevision()] = time.Now()
		mu.Unlock()
		if time.Since(last) > time.Second {
			last = time.Now()
			storm[n%streams] <- struct{}{}
			if to := res.GetHeader().GetRevision() - 500; to > 0 {
				if _, err := store.Compact(ctx, &storev1.CompactRequest{Revision: to}); err != nil {
					return fmt.Errorf("compact: %w", err)
				}
				e.rec.CompactedTo(to)
			}
		}
		return nil
	})
	sleep(ctx, time.Second)
	mu.Lock()
	defer mu.Unlock()
	var late []time.Duration
	missing := 0
	for rev, at := range written {
		if when, ok := seen[rev]; ok {
			late = append(late, max(0, when.Sub(at)))
		} else {
			missing++
		}
	}
	slices.Sort(late)
	if len(late) == 0 || missing > 2 { // the watch began beside the first
		e.fail("P4: %d events of %d did not come to a healthy watcher", missing, len(written))
		return err
	}
	e.measure("event_after_answer_p50", late[len(late)/2])
	e.measure("event_after_answer_p99", late[len(late)*99/100])
	return err
}

// watchMany holds watches on one stream until ctx ends, the stream breaks or it is
// told to break it.
func watchMany(ctx context.Context, store storev1connect.StoreServiceClient, number, each int, deaf bool, stop <-chan struct{}) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := store.Watch(ctx)
	if err != nil {
		return
	}
	end := sync.OnceFunc(func() { cancel(); _ = stream.Close() })
	defer end()
	req := new(storev1.WatchRequest)
	for i := range each {
		key := fmt.Sprintf("quiet/%d/%d", number, i)
		if i%10 == 0 {
			key = fmt.Sprintf("%s%02d", hotPrefix, i/10%hotKeys)
		}
		req.Start = append(req.Start, &storev1.WatchStart{Id: uint64(i + 1), Key: []byte(key)})
	}
	if err := stream.Send(req); err != nil {
		return
	}
	broken := make(chan struct{})
	go func() { // ends with the stream
		defer close(broken)
		for {
			if deaf {
				<-ctx.Done()
				return
			}
			if _, err := stream.Receive(); err != nil {
				return
			}
		}
	}()
	select {
	case <-ctx.Done():
	case <-stop:
	case <-broken:
	}
	end()
	<-broken
}
