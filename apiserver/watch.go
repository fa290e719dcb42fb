package apiserver

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// A message ends at so many bytes, if it can, and so many initial objects.
	watchBytes     = 512 << 10
	initialObjects = 500
	// keepWatchBytes is how much room an idle watch keeps.
	keepWatchBytes = 4 << 10

	defaultBookmarkInterval = time.Minute
	minBookmarkInterval     = 100 * time.Millisecond

	// After a message a watch waits so long for each watch that is open on the peer,
	// though not longer than maxWatchPause: what happens meanwhile goes into the next
	// message. So all of them together are sent at most 10,000 a second, and few
	// watches wait for nothing.
	watchPause    = 100 * time.Microsecond
	minWatchPause = time.Millisecond
	maxWatchPause = 100 * time.Millisecond
)

// Watch streams changes out of the store's history: a cursor, not a buffer, so a
// slow client delays nobody. One that falls behind the history is ended with
// OutOfRange.
//
// The first message comes at once. Without from_revision it begins the current
// objects; the last message of these has synced and the revision they show. With
// from_revision it is a bookmark of that revision.
//
// With selectors, an object that begins to match comes as added, and one that
// ceases to as deleted, as it last was when it matched, at the revision of that
// change.
//
// A bookmark tells how far the watch has come when nothing else did for the
// bookmark interval; it comes also when nothing has happened at all, so that a
// client can tell an idle cluster from a dead connection.
func (s objectService) Watch(ctx context.Context, req *holdfastv1.WatchRequest, stream holdfastv1connect.ObjectServiceWatchServerStream) error {
	r, err := s.resource(ctx, req.GetKind())
	if err != nil {
		return err
	}
	if err := outsideNamespaces(r, req.GetNamespace()); err != nil {
		return err
	}
	match, err := newMatcher(r, req.GetLabelSelector(), req.GetFieldSelector())
	if err != nil {
		return err
	}
	interval := defaultBookmarkInterval
	if req.GetBookmarkInterval() != nil {
		if interval = req.GetBookmarkInterval().AsDuration(); interval < minBookmarkInterval {
			return badRequest("bookmark_interval", "is %s, the least is %s", interval, minBookmarkInterval)
		}
	}
	if req.GetFromRevision() < 0 {
		return badRequest("from_revision", "is %d: use 0 for the current objects first, or a revision to go on from", req.GetFromRevision())
	}
	if r.Kind == eventKind {
		return s.watchEvents(ctx, r, req, match, stream)
	}
	if err := presentOnly(ctx, req.GetRead()); err != nil {
		return err
	}
	s.watching.Add(1)
	defer s.watching.Add(-1)
	w := watch{
		Server: s.Server, binary: sendsBinary(ctx), match: match, prefix: r.Prefix(req.GetNamespace()), interval: interval, stream: stream,
		enc: encoder{resource: r, secrets: s.secrets, lenient: true, prefix: r.Prefix(req.GetNamespace()), namespace: req.GetNamespace(), encoding: req.GetEncoding()},
	}
	if a := attributes("watch", r, "", req.GetNamespace(), "").selecting(req.GetFieldSelector()); a.boundTo == "" { // else the selector does it
		w.within = s.confine(ctx, a)
	}
	after := req.GetFromRevision()
	if after == 0 {
		read, err := s.read(ctx, req.GetRead())
		if err != nil {
			return err
		}
		if err := w.within.check(read.view); err != nil {
			return err
		}
		if err := w.initial(read.view); err != nil {
			return err
		}
		after = read.view.Revision()
	} else {
		if err := stream.Send(&holdfastv1.WatchResponse{Revision: after, Synced: true}); err != nil {
			return err
		}
		// A peer that lags must not answer with what the client has seen.
		if _, err := s.waitRevision(ctx, max(after, req.GetRead().GetMinRevision())); err != nil {
			return err
		}
	}
	return w.follow(ctx, after)
}

// watch is one open Watch of stored objects.
type watch struct {
	*Server
	enc      encoder
	match    matcher
	prefix   string
	interval time.Duration // of bookmarks
	binary   bool          // messages go out in protobuf, so changes may be put in encoded
	raw      []byte        // room for these, of the last message
	within   confinement   // a node may see a change if it was its own by then
	stream   holdfastv1connect.ObjectServiceWatchServerStream
}

// initial sends the objects of view, in messages of a limited size.
func (w *watch) initial(view raftstore.View) error {
	w.enc.kinds, w.enc.slab = w.catalog(view), objectSlab
	msg := &holdfastv1.WatchResponse{}
	size := 0
	for kv := range view.Prefix(w.prefix) {
		obj, err := w.match.encode(&w.enc, kv)
		if err != nil {
			return err
		}
		if obj == nil {
			continue
		}
		if size += len(obj.GetData()); size > watchBytes && len(msg.GetChanges()) > 0 || len(msg.GetChanges()) >= initialObjects {
			if err := w.stream.Send(msg); err != nil {
				return err
			}
			msg, size = &holdfastv1.WatchResponse{}, len(obj.GetData())
		}
		msg.Changes = append(msg.Changes, &holdfastv1.Change{Type: holdfastv1.ChangeType_CHANGE_TYPE_ADDED, Object: obj})
	}
	w.enc.slab, w.enc.room = 0, nil
	msg.Revision, msg.Synced = view.Revision(), true
	return w.stream.Send(msg)
}

// follow sends what changes after a revision until ctx ends.
func (w *watch) follow(ctx context.Context, after int64) error {
	set, cursor := w.store.NewWatchSet(), w.store.Watch(w.prefix, after)
	set.Add(cursor)
	defer set.Remove(cursor)
	bookmark := time.NewTimer(w.interval)
	defer bookmark.Stop()
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		polled, events, upTo, err := set.Poll()
		if err != nil {
			return storeError("watch "+w.enc.resource.Plural, err)
		}
		if polled != nil {
			sent, err := w.tell(events, upTo)
			if err != nil {
				return err
			}
			if !sent {
				continue
			}
			bookmark.Reset(w.interval)
			pause := min(time.Duration(w.watching.Load())*watchPause, maxWatchPause)
			if pause < minWatchPause {
				continue
			}
			rest.Reset(pause)
			select {
			case <-rest.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		}
		select {
		case <-set.Ready():
		case <-bookmark.C:
			bookmark.Reset(w.interval)
			// Behind the newest there are events: they say it themselves.
			if upTo, current := set.Position(cursor); current {
				if err := w.stream.Send(&holdfastv1.WatchResponse{Revision: upTo, Synced: true}); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tell sends what events mean to this watch, whole revisions at a time, and reports
// whether that was anything.
func (w *watch) tell(events []raftstore.Event, upTo int64) (sent bool, err error) {
	if len(events) == 0 {
		return false, nil
	}
	w.enc.kinds = w.catalog(w.store.View())
	var changes []*sideChange
	size := 0
	for i, event := range events {
		change, err := w.change(event)
		if err != nil {
			return sent, err
		}
		if change != nil && w.within != nil {
			view, err := w.store.ViewAt(event.Revision)
			if err != nil {
				return sent, storeError("watch "+w.enc.resource.Plural, err)
			}
			if err := w.within.check(view); err != nil {
				return sent, err
			}
		}
		if change != nil {
			changes = append(changes, change)
			size += len(change.wire)
		}
		last := i+1 == len(events)
		if !last && (size < watchBytes || events[i+1].Revision == event.Revision) || len(changes) == 0 {
			continue
		}
		msg := w.message(changes, size)
		if msg.Revision = event.Revision; last {
			msg.Revision = upTo
		}
		if err := w.stream.Send(msg); err != nil {
			return sent, err
		}
		changes, size, sent = changes[:0], 0, true
	}
	return sent, nil
}

// message makes the message of changes, whose encoded size is given. Where it will be
// encoded, their bytes are put in as they are, as fields that protobuf does not look at;
// then it is good until the next one.
func (w *watch) message(changes []*sideChange, size int) *holdfastv1.WatchResponse {
	msg := &holdfastv1.WatchResponse{Synced: true}
	if w.binary {
		w.raw = slices.Grow(w.raw[:0], size)
		for _, c := range changes {
			w.raw = append(w.raw, c.wire...)
		}
		msg.ProtoReflect().SetUnknown(w.raw)
		if cap(w.raw) > keepWatchBytes {
			w.raw = nil
		}
		return msg
	}
	for _, c := range changes {
		msg.Changes = append(msg.Changes, c.message)
	}
	return msg
}

// sendsBinary reports whether the messages of ctx's call are encoded in protobuf: they
// are not when the caller is in this process, or speaks JSON.
func sendsBinary(ctx context.Context) bool {
	info, ok := connect.CallInfoForServerContext(ctx)
	return ok && info.Protocol != "" && info.Codec == connect.CodecNameProto
}

// change is what event means to this watch, nil if nothing.
func (w *watch) change(event raftstore.Event) (*sideChange, error) {
	shared := w.changes.of(event)
	var before, now bool
	var err error
	if event.Prev != nil {
		if before, err = shared.before.matches(w.enc.kinds, w.match); err != nil {
			return nil, err
		}
	}
	if event.Type == raftstore.EventPut {
		if now, err = shared.now.matches(w.enc.kinds, w.match); err != nil {
			return nil, err
		}
	}
	switch {
	case now && before:
		return shared.now.change(&w.enc, holdfastv1.ChangeType_CHANGE_TYPE_MODIFIED)
	case now:
		return shared.now.change(&w.enc, holdfastv1.ChangeType_CHANGE_TYPE_ADDED)
	case before:
		return shared.before.change(&w.enc, holdfastv1.ChangeType_CHANGE_TYPE_DELETED)
	}
	return nil, nil
}
