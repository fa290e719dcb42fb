package etcd

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// maxWatches bounds the watches of one stream; clients have one for all.
	maxWatches = 100_000
	// watchMessageBytes ends a response, at the end of a revision.
	watchMessageBytes = 1 << 20
	// progressPeriod is how often a quiet watch is told how far it has come, if it
	// wants to be.
	progressPeriod = 5 * time.Second
	// noWatch is the id of a response that is about no watch, or about all.
	noWatch = -1
)

// watch serves the watches of a stream, all by one goroutine that takes turns among
// those that have something to tell: see raftstore.WatchSet.
func (s *Server) watch(ctx context.Context, _ connect.Spec, stream connect.ServerStream) error {
	ws := &watches{
		Server: s, stream: stream, set: s.store.NewWatchSet(),
		byID: make(map[int64]*watch), byWatcher: make(map[*raftstore.Watcher]*watch),
	}
	defer ws.close()
	if err := stream.SendHeaders(); err != nil {
		return err
	}
	// Receive cannot be interrupted but by the end of the call, so this goroutine
	// ends a moment after the handler when that is done first.
	requests, received := make(chan *pb.WatchRequest), make(chan error, 1)
	go func() {
		for {
			req := new(pb.WatchRequest)
			if err := stream.Receive(req); err != nil {
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

	tick := time.NewTicker(progressPeriod)
	defer tick.Stop()
	for {
		more, err := ws.turn()
		if err != nil {
			return err
		}
		if err := ws.answerProgress(); err != nil {
			return err
		}
		if more { // look at requests between turns
			select {
			case req := <-requests:
				err = ws.handle(req)
			case <-ctx.Done():
				err = ended(ctx)
			default:
			}
		} else {
			select {
			case <-ws.set.Ready():
			case req := <-requests:
				err = ws.handle(req)
			case <-tick.C:
				err = ws.notify()
			case err = <-received:
				if errors.Is(err, io.EOF) {
					return nil // as etcd: whoever closes its side wants no more events
				}
			case <-ctx.Done():
				err = ended(ctx)
			}
		}
		if err != nil {
			return err
		}
	}
}

// ended says why a stream's context is over.
func ended(ctx context.Context) error {
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return etcdError(rpctypes.ErrGRPCWatchCanceled)
}

// watches are the watches of one stream.
type watches struct {
	*Server
	stream    connect.ServerStream
	set       *raftstore.WatchSet
	byID      map[int64]*watch
	byWatcher map[*raftstore.Watcher]*watch
	nextID    int64
	// asked is not 0 while the stream waits for a response that says that all of its
	// watches have told everything up to it.
	asked int64
}

type watch struct {
	id      int64
	req     *pb.WatchCreateRequest
	watcher *raftstore.Watcher
	told    int64     // everything up to it is sent, or of no interest
	since   time.Time // when something was sent last
}

func (ws *watches) close() {
	for _, w := range ws.byID {
		ws.set.Remove(w.watcher)
	}
}

func (ws *watches) send(revision int64, resp *pb.WatchResponse) error {
	resp.Header = ws.header(revision)
	return ws.stream.Send(resp)
}

func (ws *watches) handle(req *pb.WatchRequest) error {
	switch req := req.GetRequestUnion().(type) {
	case *pb.WatchRequest_CreateRequest:
		return ws.create(req.CreateRequest)
	case *pb.WatchRequest_CancelRequest:
		if w := ws.byID[req.CancelRequest.GetWatchId()]; w != nil {
			ws.end(w)
			return ws.send(ws.store.View().Revision(), &pb.WatchResponse{WatchId: w.id, Canceled: true})
		}
	case *pb.WatchRequest_ProgressRequest:
		ws.ask()
	}
	return nil // etcd passes over what it does not know
}

// create adds a watch, which is told before any of its events.
func (ws *watches) create(req *pb.WatchCreateRequest) error {
	revision := ws.store.View().Revision()
	refuse := func(why string) error {
		return ws.send(revision, &pb.WatchResponse{WatchId: noWatch, Created: true, Canceled: true, CancelReason: why})
	}
	id := req.GetWatchId()
	switch {
	case req.GetStartRevision() < 0:
		return refuse(rpctypes.ErrCompacted.Error())
	case len(ws.byID) >= maxWatches:
		return refuse("holdfast: this stream has too many watches")
	case id == 0:
		for ws.byID[ws.nextID] != nil {
			ws.nextID++
		}
		id = ws.nextID
		ws.nextID++
	case ws.byID[id] != nil:
		return refuse("mvcc: duplicate watch ID provided on the WatchStream")
	}
	if len(req.GetKey()) == 0 {
		req.Key = []byte{0}
	}
	w := &watch{id: id, req: req, told: revision, since: time.Now()}
	if req.GetStartRevision() > 0 {
		w.told = req.GetStartRevision() - 1
	}
	start, end := keysOf(req.GetKey(), req.GetRangeEnd())
	w.watcher = ws.store.WatchRange(start, end, w.told)
	ws.set.Add(w.watcher)
	ws.byID[id], ws.byWatcher[w.watcher] = w, w
	return ws.send(revision, &pb.WatchResponse{WatchId: id, Created: true})
}

func (ws *watches) end(w *watch) {
	ws.set.Remove(w.watcher)
	delete(ws.byID, w.id)
	delete(ws.byWatcher, w.watcher)
}

// turn sends what some watches have to tell, about a message full. more is true when
// others wait for their turn.
func (ws *watches) turn() (more bool, err error) {
	for size := 0; size < watchMessageBytes; {
		watcher, events, upTo, err := ws.set.Poll()
		if watcher == nil {
			return false, nil
		}
		w := ws.byWatcher[watcher]
		if compacted, ok := errors.AsType[*raftstore.CompactedError](err); ok {
			ws.end(w)
			err = ws.send(ws.store.View().Revision(), &pb.WatchResponse{
				WatchId: w.id, Canceled: true, CompactRevision: compacted.Horizon,
			})
			if err != nil {
				return false, err
			}
			continue
		}
		if err != nil {
			return false, err
		}
		sent, err := ws.tell(w, events)
		if err != nil {
			return false, err
		}
		w.told = max(w.told, upTo)
		size += sent + 1
	}
	return true, nil
}

// tell sends the events that w wants, whole revisions at a time. It returns about
// how many bytes they took.
func (ws *watches) tell(w *watch, events []raftstore.Event) (sent int, err error) {
	resp, size := &pb.WatchResponse{WatchId: w.id}, 0
	for i, event := range events {
		if wants(w.req, event) {
			out := eventOf(event, w.req.GetPrevKv())
			resp.Events = append(resp.Events, out)
			size += proto.Size(out)
		}
		last := i == len(events)-1
		if !last && (size < watchMessageBytes || events[i+1].Revision == event.Revision) || len(resp.Events) == 0 {
			continue
		}
		if err := ws.sendEvents(event.Revision, resp, w.req.GetFragment() && size >= maxRequestBytes); err != nil {
			return sent, err
		}
		w.since = time.Now()
		sent += size
		resp, size = &pb.WatchResponse{WatchId: w.id}, 0
	}
	return sent, nil
}

// sendEvents sends a response, in pieces if it has to be cut up: all but the last are
// marked as fragments. Clients put them together again.
func (ws *watches) sendEvents(revision int64, resp *pb.WatchResponse, cut bool) error {
	for cut && len(resp.Events) > 1 {
		n, size := 0, 0
		for n < len(resp.Events) {
			size += proto.Size(resp.Events[n])
			if n > 0 && size >= maxRequestBytes {
				break
			}
			n++
		}
		if n == len(resp.Events) {
			break
		}
		piece := &pb.WatchResponse{WatchId: resp.WatchId, Fragment: true, Events: resp.Events[:n]}
		if err := ws.send(revision, piece); err != nil {
			return err
		}
		resp.Events = resp.Events[n:]
	}
	return ws.send(revision, resp)
}

func wants(req *pb.WatchCreateRequest, e raftstore.Event) bool {
	unwanted := pb.WatchCreateRequest_NOPUT
	if e.Type == raftstore.EventDelete {
		unwanted = pb.WatchCreateRequest_NODELETE
	}
	return !slices.Contains(req.GetFilters(), unwanted)
}

func eventOf(e raftstore.Event, prev bool) *mvccpb.Event {
	out := &mvccpb.Event{Type: mvccpb.Event_PUT}
	if e.Type == raftstore.EventDelete {
		out.Type, out.Kv = mvccpb.Event_DELETE, &mvccpb.KeyValue{Key: wireKey(e.Key), ModRevision: e.Revision}
	} else {
		out.Kv = keyValue(e.KV)
	}
	if prev && e.Prev != nil {
		out.PrevKv = keyValue(*e.Prev)
	}
	return out
}

// notify tells quiet watches that want it how far they have come.
func (ws *watches) notify() error {
	revision := ws.store.View().Revision()
	for _, w := range ws.byID {
		if !w.req.GetProgressNotify() || time.Since(w.since) < progressPeriod/2 {
			continue
		}
		upTo, current := ws.set.Position(w.watcher)
		upTo = max(upTo, w.told)
		// A watch that starts in the future has nothing to tell, not even that: its
		// client would take it for where to go on.
		if !current || upTo > revision {
			continue
		}
		w.told, w.since = upTo, time.Now()
		if err := ws.send(upTo, &pb.WatchResponse{WatchId: w.id}); err != nil {
			return err
		}
	}
	return nil
}

// ask notes that the client wants to know how far all watches have come. Like etcd
// it gets no answer when there is none, or when one starts in the future.
func (ws *watches) ask() {
	revision := ws.store.View().Revision()
	for _, w := range ws.byID {
		if w.told > revision {
			return
		}
	}
	if len(ws.byID) == 0 {
		return
	}
	ws.asked = revision
	for _, w := range ws.byID {
		ws.set.Refresh(w.watcher)
	}
}

// answerProgress answers once all watches have come as far as asked for.
func (ws *watches) answerProgress() error {
	if ws.asked == 0 {
		return nil
	}
	for _, w := range ws.byID {
		if w.told < ws.asked {
			return nil
		}
	}
	asked := ws.asked
	ws.asked = 0
	if len(ws.byID) == 0 {
		return nil
	}
	return ws.send(asked, &pb.WatchResponse{WatchId: noWatch})
}
