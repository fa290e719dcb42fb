package apiserver

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/apiserver/eventlog"
	"github.com/holdfast-io/holdfast/object"
	peerv1 "github.com/holdfast-io/holdfast/proto/holdfast/peer/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/peer/v1/peerv1connect"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// eventKind is the one kind whose objects are not in the store but in the event
// log. An Event's revision is a position in this peer's log: good for resuming a
// watch on this peer, and OutOfRange on another. The Answer's revision is the
// store's all the same, so that a client which keeps the highest one it has seen
// is not led astray.
const eventKind = "Event"

const (
	tailBatch = 256
	// exchangeScan is how often the peers to exchange events with are looked up.
	exchangeScan = 500 * time.Millisecond
	// exchangeBackoff is how long a lost exchange rests, doubling up to the maximum.
	exchangeBackoff, maxExchangeBackoff = 100 * time.Millisecond, 5 * time.Second
)

func (s objectService) getEvent(r object.Resource, namespace string, req *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error) {
	event, ok := s.cfg.Events.Get(namespace, req.GetName())
	if !ok {
		return nil, notFound(r, namespace, req.GetName())
	}
	obj, err := encodeObject(event, nil, req.GetEncoding())
	if err != nil {
		return nil, err
	}
	return &holdfastv1.GetResponse{Object: obj, Answer: s.answerAt(s.store.View().Revision())}, nil
}

// listEvents lists what this peer knows. Pages are not pinned: an event that
// comes meanwhile may or may not be in a later one.
func (s objectService) listEvents(r object.Resource, req *holdfastv1.ListRequest, match matcher, page pageToken) (*holdfastv1.ListResponse, error) {
	resp := &holdfastv1.ListResponse{Answer: s.answerAt(s.store.View().Revision())}
	events, position := s.cfg.Events.List(req.GetNamespace())
	last := ""
	for _, event := range events {
		key := string(r.Key(event.Namespace, event.Name))
		if key <= page.Key || !match.matches(event) {
			continue
		}
		if req.GetLimit() > 0 && len(resp.Objects) == int(req.GetLimit()) {
			resp.Continue = pageToken{Revision: position, Key: last}.String()
			break
		}
		obj, err := encodeObject(event, nil, req.GetEncoding())
		if err != nil {
			return nil, err
		}
		resp.Objects = append(resp.Objects, obj)
		last = key
	}
	return resp, nil
}

func (s objectService) watchEvents(ctx context.Context, r object.Resource, req *holdfastv1.WatchRequest, match matcher, stream holdfastv1connect.ObjectServiceWatchServerStream) error {
	position := req.GetFromRevision()
	msg := &holdfastv1.WatchResponse{Synced: true}
	if position == 0 {
		events, at := s.cfg.Events.List(req.GetNamespace())
		position = at
		for _, event := range events {
			if !match.matches(event) {
				continue
			}
			obj, err := encodeObject(event, nil, req.GetEncoding())
			if err != nil {
				return err
			}
			msg.Changes = append(msg.Changes, &holdfastv1.Change{Type: holdfastv1.ChangeType_CHANGE_TYPE_ADDED, Object: obj})
			if len(msg.GetChanges()) == initialObjects {
				msg.Synced = false
				if err := stream.Send(msg); err != nil {
					return err
				}
				msg = &holdfastv1.WatchResponse{Synced: true}
			}
		}
	}
	msg.Revision = position
	if err := stream.Send(msg); err != nil {
		return err
	}
	for {
		changed := s.cfg.Events.Changed()
		changes, upTo, err := s.cfg.Events.Since(req.GetNamespace(), position)
		if errors.Is(err, eventlog.ErrCompacted) {
			return connect.Errorf(connect.CodeOutOfRange, "watch %s: that revision has been compacted, or is another peer's; list again", r.Plural).WithCause(err)
		}
		if err != nil {
			return err
		}
		msg := &holdfastv1.WatchResponse{Revision: upTo, Synced: true}
		for _, change := range changes {
			if !match.matches(change.Event) {
				continue
			}
			obj, err := encodeObject(change.Event, nil, req.GetEncoding())
			if err != nil {
				return err
			}
			kind := holdfastv1.ChangeType_CHANGE_TYPE_MODIFIED
			switch {
			case change.Deleted:
				kind = holdfastv1.ChangeType_CHANGE_TYPE_DELETED
			case change.Added:
				kind = holdfastv1.ChangeType_CHANGE_TYPE_ADDED
			}
			msg.Changes = append(msg.Changes, &holdfastv1.Change{Type: kind, Object: obj})
		}
		position = upTo
		if len(msg.GetChanges()) > 0 {
			if err := stream.Send(msg); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// eventService implements peerv1connect.EventServiceHandler.
type eventService struct{ *Server }

// Tail streams this peer's own log.
func (s eventService) Tail(ctx context.Context, req *peerv1.TailRequest, stream peerv1connect.EventServiceTailServerStream) error {
	events := s.cfg.Events
	after := int64(0)
	if req.GetLog() == events.ID() {
		after = req.GetAfter()
	}
	for first := true; ; first = false {
		records, changed := events.Own(after, tailBatch)
		if first || len(records) > 0 {
			if err := stream.Send(&peerv1.TailResponse{Log: events.ID(), Events: records}); err != nil {
				return err
			}
		}
		if len(records) > 0 {
			after = records[len(records)-1].GetSequence()
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// exchangeEvents keeps reading the event logs of all other peers until ctx ends.
func (s *Server) exchangeEvents(ctx context.Context) error {
	readers := make(map[string]context.CancelFunc)
	ended := make(chan struct{}, 1)
	running := 0
	defer func() {
		for _, stop := range readers {
			stop()
		}
		for ; running > 0; running-- {
			<-ended
		}
	}()
	scan := time.NewTicker(exchangeScan)
	defer scan.Stop()
	for {
		peers := s.cfg.Peers()
		for id := range peers {
			if _, ok := readers[id]; ok || id == s.cfg.PeerID {
				continue
			}
			readerCtx, stop := context.WithCancel(ctx)
			readers[id] = stop
			running++
			go func() {
				s.readEvents(readerCtx, id)
				ended <- struct{}{}
			}()
		}
		for id, stop := range readers {
			if _, ok := peers[id]; !ok {
				stop()
				delete(readers, id)
			}
		}
	wait:
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ended:
				running--
			case <-scan.C:
				break wait
			}
		}
	}
}

// readEvents merges the log of one peer until ctx ends, over and over.
func (s *Server) readEvents(ctx context.Context, peer string) {
	backoff := exchangeBackoff
	for ctx.Err() == nil {
		start := time.Now()
		err := s.tail(ctx, peer)
		if ctx.Err() != nil {
			return
		}
		s.log.Debug("event exchange ended", "peer", peer, "err", err)
		if time.Since(start) > maxExchangeBackoff {
			backoff = exchangeBackoff
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxExchangeBackoff)
	}
}

func (s *Server) tail(ctx context.Context, peer string) error {
	client, err := s.cfg.Dial(peer)
	if err != nil {
		return err
	}
	log, after := s.cfg.Events.Known(peer)
	stream, err := peerv1connect.NewEventServiceClient(client).Tail(ctx, &peerv1.TailRequest{Log: log, After: after})
	if err != nil {
		return err
	}
	defer stream.Close()
	for {
		msg, err := stream.Receive()
		if err != nil {
			return err
		}
		if err := s.cfg.Events.Merge(peer, msg.GetLog(), msg.GetEvents()); err != nil {
			return err
		}
	}
}
