package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	// watchRetry is the first pause before a broken watch is opened again; it
	// doubles up to watchRetryMax.
	watchRetry    = 100 * time.Millisecond
	watchRetryMax = 2 * time.Second
	// watchPatience is how long a watch may be without any peer before it gives
	// up: several elections.
	watchPatience = 60 * time.Second
)

// errStopWatching is returned by a callback of watch that has seen enough.
var errStopWatching = errors.New("stop watching")

// update is what a watch has seen. Objects come once at first, then with each
// change; a broken stream that had to begin anew shows only as the differences.
type update struct {
	resource object.Resource
	changes  []change
	synced   bool // the objects that were there at first are complete
}

type change struct {
	kind holdfastv1.ChangeType
	obj  object.Object
}

// watch follows several kinds at once and calls each with every update, one at a
// time. It returns once each returns an error (nil for errStopWatching), a watch
// cannot be had, or ctx ends. tick, unless zero, is how often each is called with
// a zero update though nothing happened.
func (a *app) watch(ctx context.Context, r *remote, requests []*holdfastv1.WatchRequest, tick time.Duration, each func(update) error) error {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	// Until the first word; once it goes, a watch outlasts any election.
	silence, heard := context.WithCancel(ctx)
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		r.watchQuorum(silence, a.patience, a.note, giveUp)
	}()
	defer func() {
		heard()
		<-asked
	}()
	updates := make(chan update)
	group, groupCtx := errgroup.WithContext(ctx)
	for _, req := range requests {
		group.Go(func() error {
			f := follower{app: a, remote: r, req: req, seen: map[object.Key]object.Object{}}
			return f.run(groupCtx, updates)
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }()
	var ticks <-chan time.Time
	if tick > 0 {
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		ticks = ticker.C
	}
	for {
		var u update
		select {
		case u = <-updates:
			heard()
		case <-ticks:
		case err := <-ended:
			var lost noQuorum
			if errors.As(context.Cause(ctx), &lost) {
				return failf(exitUnavailable, "watch: %w", lost)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
		if err := each(u); err != nil {
			giveUp(nil)
			<-ended
			if errors.Is(err, errStopWatching) {
				return nil
			}
			return err
		}
	}
}

// follower keeps one kind's watch going, from peer to peer.
type follower struct {
	app    *app
	remote *remote
	req    *holdfastv1.WatchRequest
	seen   map[object.Key]object.Object
	fresh  map[object.Key]bool // while a stream begins anew: what it has shown
	synced bool
}

func (f *follower) run(ctx context.Context, out chan<- update) error {
	pause, lost := watchRetry, time.Time{}
	for {
		progress, err := f.once(ctx, out)
		if ctx.Err() != nil {
			return nil
		}
		if progress {
			pause, lost = watchRetry, time.Time{}
		}
		code := connect.CodeOf(err)
		switch {
		case err == nil, code == connect.CodeUnavailable, code == connect.CodeDeadlineExceeded,
			code == connect.CodeCanceled, code == connect.CodeUnknown, code == connect.CodeInternal, code == connect.CodeResourceExhausted:
			// The peer is gone or is stopping, or sheds load: another one goes on.
		case code == connect.CodeOutOfRange:
			f.req.FromRevision = 0 // too long away: what happened meanwhile shows as differences
		default:
			return f.app.explain(ctx, f.remote, "watch "+f.req.GetKind().GetKind(), err)
		}
		if lost.IsZero() {
			lost = f.app.now()
		}
		if f.app.now().Sub(lost) > watchPatience {
			return f.app.explain(ctx, f.remote, "watch "+f.req.GetKind().GetKind(), err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, watchRetryMax)
	}
}

// once opens a stream and passes on what it says until it breaks. progress tells
// whether it said anything.
func (f *follower) once(ctx context.Context, out chan<- update) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := f.remote.objects.Watch(ctx, f.req)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	if f.req.GetFromRevision() == 0 {
		f.fresh = map[object.Key]bool{}
	}
	for {
		res, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return progress, nil
		}
		if err != nil {
			return progress, err
		}
		progress = true
		u, err := f.take(res)
		if err != nil {
			return progress, err
		}
		if len(u.changes) == 0 && !u.synced {
			continue
		}
		select {
		case out <- u:
		case <-ctx.Done():
			return progress, nil
		}
	}
}

// take turns a message into an update.
func (f *follower) take(res *holdfastv1.WatchResponse) (update, error) {
	u := update{resource: f.app.resourceOf(f.req.GetKind())}
	for _, c := range res.GetChanges() {
		obj, err := f.app.decode(c.GetObject())
		if err != nil {
			return update{}, failf(exitError, "%w", err)
		}
		key := object.KeyOf(obj)
		old, known := f.seen[key]
		if c.GetType() == holdfastv1.ChangeType_CHANGE_TYPE_DELETED {
			delete(f.seen, key)
			delete(f.fresh, key)
			u.changes = append(u.changes, change{c.GetType(), obj})
			continue
		}
		f.seen[key] = obj
		if f.fresh != nil {
			f.fresh[key] = true
		}
		if known && old.GetResourceVersion() == obj.GetResourceVersion() && old.GetUID() == obj.GetUID() {
			continue
		}
		u.changes = append(u.changes, change{c.GetType(), obj})
	}
	if res.GetSynced() && f.fresh != nil {
		for key, obj := range f.seen {
			if !f.fresh[key] {
				delete(f.seen, key)
				u.changes = append(u.changes, change{holdfastv1.ChangeType_CHANGE_TYPE_DELETED, obj})
			}
		}
		f.fresh = nil
	}
	if res.GetSynced() && !f.synced {
		f.synced, u.synced = true, true
	}
	if f.fresh == nil && res.GetRevision() > 0 {
		f.req.FromRevision = res.GetRevision()
	}
	return u, nil
}

func (a *app) resourceOf(kind *holdfastv1.Kind) object.Resource {
	r, err := a.kinds().ForKind(kind.GetGroup(), kind.GetVersion(), kind.GetKind())
	if err != nil {
		panic(fmt.Sprintf("watch of a kind that is not served: %v", err))
	}
	return r
}
