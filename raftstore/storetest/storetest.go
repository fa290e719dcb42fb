package storetest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-io/holdfast/raftstore"
)

// startTimeout bounds how long a store may take to lead. It takes milliseconds.
const startTimeout = 30 * time.Second

// New returns a running store that leads a cluster of its own. It is stopped with
// the test. Options may change its configuration.
func New(t testing.TB, options ...func(*raftstore.Config)) *raftstore.Store {
	t.Helper()
	addr, transport := raft.NewInmemTransport("")
	cfg := raftstore.Config{
		ID:        "peer-1",
		ClusterID: "test",
		Address:   string(addr),
		Transport: transport,
		Storage:   NewDisk().Storage(),
		Logger:    slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, option := range options {
		option(&cfg)
	}
	store, err := raftstore.New(cfg)
	if err != nil {
		t.Fatalf("new store: %v", err)
	}
	if err := store.Bootstrap(); err != nil {
		t.Fatalf("bootstrap store: %v", err)
	}
	run(t, store)
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if _, err := store.Sync(ctx); err != nil {
		t.Fatalf("store does not lead: %v", err)
	}
	return store
}

// run runs store until the test ends, or until the returned function is called.
func run(t testing.TB, store *raftstore.Store) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run store: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// Leader returns store's leadership, which lasts until the test ends, for code that
// runs on the leader. It waits for it.
func Leader(t testing.TB, store *raftstore.Store) *raftstore.Leader {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	leads := make(chan *raftstore.Leader, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Only the first term is of interest.
		_ = store.Lead(ctx, func(ctx context.Context, l *raftstore.Leader) error {
			select {
			case leads <- l:
			default:
			}
			<-ctx.Done()
			return nil
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case l := <-leads:
		return l
	case <-timeout.C:
		t.Fatalf("store does not lead after %v", startTimeout)
		return nil
	}
}
