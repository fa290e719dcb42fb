package apiserver

import (
	"context"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// A message of initial objects ends at so many bytes or objects.
	initialBytes   = 512 << 10
	initialObjects = 500
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
	if req.GetFromRevision() < 0 {
		return badRequest("from_revision", "is %d: use 0 for the current objects first, or a revision to go on from", req.GetFromRevision())
	}
	if r.Kind == eventKind {
		return s.watchEvents(ctx, r, req, match, stream)
	}
	w := watch{Server: s.Server, resource: r, match: match, encoding: req.GetEncoding(), prefix: r.Prefix(req.GetNamespace()), stream: stream}
	after := req.GetFromRevision()
	if after == 0 {
		read, err := s.read(ctx, req.GetRead())
		if err != nil {
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
	resource object.Resource
	match    matcher
	encoding holdfastv1.Encoding
	prefix   string
	stream   holdfastv1connect.ObjectServiceWatchServerStream
}

// initial sends the objects of view, in messages of a limited size.
func (w watch) initial(view raftstore.View) error {
	msg := &holdfastv1.WatchResponse{}
	size := 0
	for kv := range view.Prefix(w.prefix) {
		obj, err := w.match.encode(w.resource, kv.Key, kv.Value, kv.Mod, w.encoding)
		if err != nil {
			return err
		}
		if obj == nil {
			continue
		}
		if size += len(obj.GetData()); size > initialBytes || len(msg.GetChanges()) >= initialObjects {
			if err := w.stream.Send(msg); err != nil {
				return err
			}
			msg, size = &holdfastv1.WatchResponse{}, len(obj.GetData())
		}
		msg.Changes = append(msg.Changes, &holdfastv1.Change{Type: holdfastv1.ChangeType_CHANGE_TYPE_ADDED, Object: obj})
	}
	msg.Revision, msg.Synced = view.Revision(), true
	return w.stream.Send(msg)
}

// follow sends what changes after a revision until ctx ends.
func (w watch) follow(ctx context.Context, after int64) error {
	cursor := w.store.Watch(w.prefix, after)
	for {
		events, upTo, err := cursor.Next(ctx)
		if err != nil {
			return storeError("watch "+w.resource.Plural, err)
		}
		msg := &holdfastv1.WatchResponse{Revision: upTo, Synced: true}
		for _, event := range events {
			change, err := w.change(event)
			if err != nil {
				return err
			}
			if change != nil {
				msg.Changes = append(msg.Changes, change)
			}
		}
		if err := w.stream.Send(msg); err != nil {
			return err
		}
	}
}

// change is what event means to this watch, nil if nothing.
func (w watch) change(event raftstore.Event) (*holdfastv1.Change, error) {
	var before, now bool
	var err error
	if event.Prev != nil {
		if before, err = w.match.selects(event.Key, event.Prev.Value); err != nil {
			return nil, err
		}
	}
	if event.Type == raftstore.EventPut {
		if now, err = w.match.selects(event.Key, event.KV.Value); err != nil {
			return nil, err
		}
	}
	change := &holdfastv1.Change{}
	value := event.KV.Value
	switch {
	case now && before:
		change.Type = holdfastv1.ChangeType_CHANGE_TYPE_MODIFIED
	case now:
		change.Type = holdfastv1.ChangeType_CHANGE_TYPE_ADDED
	case before:
		change.Type = holdfastv1.ChangeType_CHANGE_TYPE_DELETED
		value = event.Prev.Value
	default:
		return nil, nil
	}
	change.Object, err = encodeStored(w.resource, event.Key, value, event.Revision, w.encoding)
	return change, err
}
