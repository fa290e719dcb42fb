package apiserver

import (
	"context"
	"errors"
	"hash/maphash"
	"io"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// maxWatches bounds the watches of one stream.
	maxWatches = 10_000
	// watchMessageBytes ends a message of updates, at the end of a revision.
	watchMessageBytes = 256 << 10
	// watchFragmentBytes is where even the changes of one revision are split up.
	watchFragmentBytes = 4 << 20
	// eventOverhead is what an event takes besides keys and values, about.
	eventOverhead = 64

	defaultBookmark = 5 * time.Second
	minBookmark     = 100 * time.Millisecond
)

// Watch serves the watches of a stream, all by one goroutine that takes turns among
// those that have something to tell: see raftstore.WatchSet.
func (s storeService) Watch(ctx context.Context, stream storev1connect.StoreServiceWatchServerStream) error {
	ws := &storeWatches{
		storeService: s, stream: stream, set: s.store.NewWatchSet(), byID: make(map[uint64]*storeWatch),
		byWatcher: make(map[*raftstore.Watcher]*storeWatch), period: defaultBookmark,
	}
	defer ws.close()
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	// Receive cannot be interrupted but by the end of the call, so this goroutine
	// ends a moment after the handler when that is done first.
	requests, received := make(chan *storev1.WatchRequest), make(chan error, 1)
	go func() {
		for {
			req, err := stream.Receive()
			if err != nil {
				received <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	}()

	tick := time.NewTimer(ws.period)
	defer tick.Stop()
	for received != nil || len(ws.byID) > 0 {
		if more, err := ws.turn(); err != nil {
			return err
		} else if more { // look at requests between turns
			select {
			case req := <-requests:
				err = ws.handle(req)
			case <-ctx.Done():
				err = context.Cause(ctx)
			default:
			}
			if err != nil {
				return err
			}
			continue
		}
		select {
		case <-ws.set.Ready():
		case req := <-requests:
			period := ws.period
			if err := ws.handle(req); err != nil {
				return err
			}
			if ws.period != period {
				tick.Reset(ws.period)
			}
		case <-tick.C:
			if err := ws.bookmarks(); err != nil {
				return err
			}
			tick.Reset(ws.period)
		case err := <-received:
			if !errors.Is(err, io.EOF) {
				return err
			}
			received = nil // no more requests: the end, once no watch is left
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// storeWatches are the watches of one stream.
type storeWatches struct {
	storeService
	stream    storev1connect.StoreServiceWatchServerStream
	set       *raftstore.WatchSet
	byID      map[uint64]*storeWatch
	byWatcher map[*raftstore.Watcher]*storeWatch
	period    time.Duration // of the watch that wants bookmarks most often
	looked    int64         // the revision at the last look for bookmarks

	msg  *storev1.WatchResponse // being filled
	size int
}

type storeWatch struct {
	start    *storev1.WatchStart
	watcher  *raftstore.Watcher
	bookmark time.Duration
	told     int64 // the up_to sent last
	since    time.Time
	asked    bool  // for its progress
	upTo     int64 // what asked must be answered with at least
}

func (ws *storeWatches) close() {
	for _, w := range ws.byID {
		ws.set.Remove(w.watcher)
	}
}

func (ws *storeWatches) handle(req *storev1.WatchRequest) error {
	for _, start := range req.GetStart() {
		if _, taken := ws.byID[start.GetId()]; taken {
			return badRequest("start.id", "%d is that of a watch of this stream already", start.GetId())
		}
		w, err := ws.begin(start)
		if err != nil {
			err = ws.emit(&storev1.WatchUpdate{Id: start.GetId(), Ended: ws.failure(err)}, eventOverhead)
		} else {
			err = ws.emit(&storev1.WatchUpdate{Id: start.GetId(), UpTo: w.told}, eventOverhead)
		}
		if err != nil {
			return err
		}
	}
	for _, id := range req.GetStop() {
		if w := ws.byID[id]; w != nil {
			ws.end(w)
			ended := ws.failure(connect.NewError(connect.CodeCanceled, "the watch was stopped as requested"))
			if err := ws.emit(&storev1.WatchUpdate{Id: id, Ended: ended}, eventOverhead); err != nil {
				return err
			}
		}
	}
	for _, id := range req.GetProgress() {
		if w := ws.byID[id]; w != nil {
			w.asked, w.upTo = true, ws.store.View().Revision()
			ws.set.Refresh(w.watcher)
		}
	}
	return ws.flush()
}

// begin adds a watch.
func (ws *storeWatches) begin(start *storev1.WatchStart) (*storeWatch, error) {
	if len(ws.byID) >= maxWatches {
		return nil, connect.Errorf(connect.CodeResourceExhausted, "this stream has %d watches, the limit: open another stream", maxWatches)
	}
	keys, err := keysOf(start.GetKey(), start.GetRangeEnd(), start.GetAllKeys())
	if err != nil {
		return nil, err
	}
	if start.GetAfter() < 0 {
		return nil, badRequest("after", "is %d: use 0 for what comes from now on, or a revision", start.GetAfter())
	}
	w := &storeWatch{start: start, bookmark: defaultBookmark, told: start.GetAfter(), since: time.Now()}
	if start.GetBookmark() != nil {
		if w.bookmark = start.GetBookmark().AsDuration(); w.bookmark < minBookmark {
			return nil, badRequest("bookmark", "is %s, the least is %s", w.bookmark, minBookmark)
		}
	}
	if w.told == 0 {
		w.told = ws.store.View().Revision()
	}
	w.watcher = ws.store.WatchRange(keys.start, keys.end, w.told)
	ws.set.Add(w.watcher)
	ws.byID[start.GetId()], ws.byWatcher[w.watcher] = w, w
	ws.period = min(ws.period, w.bookmark)
	return w, nil
}

func (ws *storeWatches) end(w *storeWatch) {
	ws.set.Remove(w.watcher)
	delete(ws.byID, w.start.GetId())
	delete(ws.byWatcher, w.watcher)
}

// turn sends what some watches have to tell, about a message full. more is true
// when others wait for their turn.
func (ws *storeWatches) turn() (more bool, err error) {
	for ws.size < watchMessageBytes {
		watcher, events, upTo, err := ws.set.Poll()
		if watcher == nil {
			return false, ws.flush()
		}
		w := ws.byWatcher[watcher]
		if err != nil {
			ws.end(w)
			update := &storev1.WatchUpdate{Id: w.start.GetId(), UpTo: w.told, Ended: ws.failure(storeError("watch", err))}
			if compacted, ok := errors.AsType[*raftstore.CompactedError](err); ok {
				update.Horizon = compacted.Horizon
			}
			if err := ws.emit(update, eventOverhead); err != nil {
				return false, err
			}
			continue
		}
		if err := ws.tell(w, events, upTo); err != nil {
			return false, err
		}
	}
	return true, ws.flush()
}

// tell sends the events of a watch, whole revisions at a time, and its progress if
// that was asked for.
func (ws *storeWatches) tell(w *storeWatch, events []raftstore.Event, upTo int64) error {
	update, size := &storev1.WatchUpdate{Id: w.start.GetId()}, 0
	send := func(upTo int64, more bool) error {
		update.UpTo, update.More = upTo, more
		if !more {
			w.told, w.since = upTo, time.Now()
		}
		err := ws.emit(update, size+eventOverhead)
		update, size = &storev1.WatchUpdate{Id: w.start.GetId()}, 0
		return err
	}
	before := w.told // the last revision that is in update, or was sent, as a whole
	for i := 0; i < len(events); {
		revision := events[i].Revision
		group, bytes := i, 0
		for ; group < len(events) && events[group].Revision == revision; group++ {
			if ws.wants(w, events[group]) {
				bytes += sizeOf(events[group], w.start.GetPrevKv())
			}
		}
		if size > 0 && size+bytes > watchMessageBytes {
			if err := send(before, false); err != nil {
				return err
			}
		}
		for ; i < group; i++ {
			if !ws.wants(w, events[i]) {
				continue
			}
			one := sizeOf(events[i], w.start.GetPrevKv())
			if size > 0 && size+one > watchFragmentBytes {
				if err := send(before, true); err != nil {
					return err
				}
			}
			update.Events = append(update.Events, ws.events.event(events[i], w.start.GetPrevKv(), w.start.GetAllKeys()))
			size += one
		}
		before = revision
	}
	answer := w.asked && upTo >= w.upTo && ws.store.View().Revision() >= upTo
	if len(update.Events) == 0 && !answer {
		return nil
	}
	w.asked = w.asked && !answer
	return send(upTo, false)
}

func (ws *storeWatches) wants(w *storeWatch, e raftstore.Event) bool {
	if e.Type == raftstore.EventDelete {
		return !w.start.GetNoDeletes()
	}
	return !w.start.GetNoPuts()
}

func sizeOf(e raftstore.Event, prev bool) int {
	size := len(e.Key) + len(e.KV.Value) + eventOverhead
	if prev && e.Prev != nil {
		size += len(e.Key) + len(e.Prev.Value) + eventOverhead
	}
	return size
}

// bookmarks tells those watches how far they have come that have not told anything
// for their time, or have been asked and could not answer yet.
func (ws *storeWatches) bookmarks() error {
	revision := ws.store.View().Revision()
	if revision == ws.looked {
		return nil // all is told, or will be when it is due
	}
	due := true
	for _, w := range ws.byID {
		late := time.Since(w.since) >= w.bookmark
		if !late && !w.asked {
			due = false
			continue
		}
		upTo, current := ws.set.Position(w.watcher)
		if !current || upTo <= w.told && !w.asked || w.asked && upTo < w.upTo {
			due = due && current
			continue
		}
		w.told, w.since, w.asked = upTo, time.Now(), false
		if err := ws.emit(&storev1.WatchUpdate{Id: w.start.GetId(), UpTo: upTo}, eventOverhead); err != nil {
			return err
		}
		due = due && upTo >= revision
	}
	if due {
		ws.looked = revision
	}
	return ws.flush()
}

// emit adds an update to the message, and sends that when it is full.
func (ws *storeWatches) emit(update *storev1.WatchUpdate, size int) error {
	if ws.msg == nil {
		ws.msg = &storev1.WatchResponse{}
	} else if ws.size+size > watchMessageBytes {
		if err := ws.flush(); err != nil {
			return err
		}
		ws.msg = &storev1.WatchResponse{}
	}
	ws.msg.Updates = append(ws.msg.Updates, update)
	ws.size += size
	return nil
}

func (ws *storeWatches) flush() error {
	msg := ws.msg
	ws.msg, ws.size = nil, 0
	if msg == nil {
		return nil
	}
	msg.Header = &storev1.Header{Revision: ws.store.View().Revision()}
	ws.sign(msg.Header)
	return ws.stream.Send(msg)
}

// eventCache has the newest events as messages, so that those who watch the same
// keys share them. A slot holds the last event that fell on it.
type eventCache struct {
	seed  maphash.Seed
	slots [eventSlots]atomic.Pointer[cachedEvent]
}

const (
	eventSlots = 1024
	// eventShareBytes: of larger events the conversion is not what costs, and the
	// cache would hold much memory.
	eventShareBytes = 16 << 10
)

type cachedEvent struct {
	revision  int64
	key       string
	prev, all bool
	event     *storev1.Event
}

func newEventCache() *eventCache { return &eventCache{seed: maphash.MakeSeed()} }

// event returns e as a message, which is shared and must not be changed.
func (c *eventCache) event(e raftstore.Event, prev, all bool) *storev1.Event {
	if sizeOf(e, prev) > eventShareBytes {
		return eventOf(e, prev, all)
	}
	slot := &c.slots[(maphash.String(c.seed, e.Key)+uint64(e.Revision))%eventSlots]
	if hit := slot.Load(); hit != nil && hit.revision == e.Revision && hit.key == e.Key && hit.prev == prev && hit.all == all {
		return hit.event
	}
	made := &cachedEvent{e.Revision, e.Key, prev, all, eventOf(e, prev, all)}
	slot.Store(made)
	return made.event
}

func eventOf(e raftstore.Event, prev, all bool) *storev1.Event {
	key := []byte(e.Key)
	if !all {
		key = rawKey(e.Key)
	}
	out := &storev1.Event{Type: storev1.Event_TYPE_PUT}
	if e.Type == raftstore.EventDelete {
		out.Type = storev1.Event_TYPE_DELETE
		out.Kv = &storev1.KeyValue{Key: key, ModRevision: e.Revision}
	} else {
		out.Kv = keyValue(key, e.KV)
	}
	if prev && e.Prev != nil {
		out.PrevKv = keyValue(key, *e.Prev)
	}
	return out
}
