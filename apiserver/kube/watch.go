package kube

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// bookmarkEvery is how often bookmarks are passed on at most.
const bookmarkEvery = 10 * time.Second

// The types of a watch's events.
const (
	eventAdded    = "ADDED"
	eventModified = "MODIFIED"
	eventDeleted  = "DELETED"
	eventBookmark = "BOOKMARK"
	eventError    = "ERROR"
)

var eventTypes = map[holdfastv1.ChangeType]string{
	holdfastv1.ChangeType_CHANGE_TYPE_ADDED:    eventAdded,
	holdfastv1.ChangeType_CHANGE_TYPE_MODIFIED: eventModified,
	holdfastv1.ChangeType_CHANGE_TYPE_DELETED:  eventDeleted,
}

// watch streams changes until the client goes, its timeoutSeconds are over, or
// the peer shuts down. What ends it otherwise comes as its last event.
func (c *call) watch() error {
	req, err := c.watchRequest()
	if err != nil {
		return err
	}
	ctx := c.r.Context()
	if c.query.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.query.timeout)
		defer cancel()
	}
	w := &watchStream{call: c, resumed: req.GetFromRevision() > 0}
	w.skip = !w.resumed && c.query.initialEvents != nil && !*c.query.initialEvents
	w.mark = c.query.initialEvents != nil && *c.query.initialEvents && c.query.bookmarks
	err = c.cfg.Objects.WatchObjects(ctx, req, w.send)
	switch {
	case ctx.Err() != nil, err == nil:
		if c.r.Context().Err() == nil {
			w.begin() // nothing came before the time was over
		}
	case w.gone:
	case !w.begun:
		return c.failed(err)
	case connect.CodeOf(err) == connect.CodeUnavailable:
		// The peer is going, or cut off: clients go on elsewhere from where they are.
	default:
		status := c.statusOf(c.failed(err), subject{})
		w.event(eventError, &status)
		w.flush()
	}
	return nil
}

func (c *call) watchRequest() (*holdfastv1.WatchRequest, error) {
	req := &holdfastv1.WatchRequest{
		Kind: c.kind(), Namespace: c.at.namespace,
		LabelSelector: c.query.labelSelector, FieldSelector: c.query.fieldSelector, Encoding: c.wants(),
	}
	if c.at.name != "" {
		if req.FieldSelector != "" {
			return nil, apierrors.NewBadRequest("a watch of one object takes no fieldSelector")
		}
		req.FieldSelector = metav1.ObjectNameField + "=" + c.at.name
	}
	q := c.query
	q.limit = 0
	if revision := q.revision(); revision > 0 && (q.initialEvents == nil || !*q.initialEvents) {
		req.FromRevision = revision
		return req, nil
	}
	req.Read = q.readOptions()
	return req, nil
}

// watchStream writes a watch's events.
type watchStream struct {
	*call
	begun   bool // the header is out
	resumed bool // the client has the state, and wants changes only
	skip    bool // it does not have it, but does not want it either
	mark    bool // the end of the initial events is marked by a bookmark
	synced  bool
	headers bool // a Table's columns were sent
	gone    bool // the client is
	last    time.Time
	out     bytes.Buffer
}

// send passes on one message of the handler.
func (w *watchStream) send(msg *holdfastv1.WatchResponse) error {
	w.begin()
	for _, change := range msg.GetChanges() {
		if w.skip && !w.synced {
			continue
		}
		if err := w.change(change); err != nil {
			return err
		}
	}
	switch {
	case msg.GetSynced() && !w.synced:
		w.synced = true
		w.last = time.Now()
		if w.mark {
			if err := w.bookmark(msg.GetRevision(), map[string]string{metav1.InitialEventsAnnotationKey: "true"}); err != nil {
				return err
			}
		}
	case len(msg.GetChanges()) == 0 && w.query.bookmarks && w.synced && time.Since(w.last) >= bookmarkEvery:
		w.last = time.Now()
		if err := w.bookmark(msg.GetRevision(), nil); err != nil {
			return err
		}
	}
	return w.flush()
}

// begin sends the header, so that the client knows that the watch is open.
func (w *watchStream) begin() {
	if w.begun {
		return
	}
	w.begun = true
	typ := w.accept.typ
	if w.accept.protobuf() {
		typ += ";stream=watch"
	} else {
		w.accept.typ, typ = typeJSON, typeJSON // YAML has no frames
	}
	w.w.Header().Set("Content-Type", typ)
	w.w.Header().Set("Cache-Control", "no-cache, private")
	w.w.WriteHeader(http.StatusOK)
	w.gone = http.NewResponseController(w.w).Flush() != nil
}

// flush sends what has been written.
func (w *watchStream) flush() error {
	if w.out.Len() == 0 {
		return nil
	}
	_, err := w.w.Write(w.out.Bytes())
	if err == nil {
		err = http.NewResponseController(w.w).Flush()
	}
	w.gone = w.gone || err != nil
	if w.out.Reset(); w.out.Cap() > 1<<20 {
		w.out = bytes.Buffer{} // of the initial objects; changes are small
	}
	return err
}

// change writes an event about an object.
func (w *watchStream) change(change *holdfastv1.Change) error {
	typ, obj := eventTypes[change.GetType()], change.GetObject()
	var data []byte
	var err error
	switch {
	case w.accept.form != formWhole:
		typed, err := w.decode(obj)
		if err != nil {
			return err
		}
		if w.accept.form == formTable {
			return w.row(typ, typed)
		}
		return w.event(typ, partial(typed))
	case w.accept.protobuf():
		data, err = w.protobufOf(obj)
	default:
		data, err = w.jsonOf(obj)
	}
	if err != nil {
		return err
	}
	w.frame(typ, data)
	return nil
}

// row writes an event whose object is a Table. The first one has the columns.
func (w *watchStream) row(typ string, obj object.Object) error {
	table, err := w.tableOf([]object.Object{obj}, metav1.ListMeta{ResourceVersion: obj.GetResourceVersion()})
	if err != nil {
		return err
	}
	if w.headers {
		table.ColumnDefinitions = nil
	}
	w.headers = true
	data, err := json.Marshal(table)
	if err != nil {
		return err
	}
	w.frame(typ, data)
	return nil
}

// bookmark writes an event that says up to where all has been sent.
func (w *watchStream) bookmark(revision int64, annotations map[string]string) error {
	meta := metav1.ObjectMeta{ResourceVersion: strconv.FormatInt(revision, 10), Annotations: annotations}
	switch w.accept.form {
	case formTable:
		return w.event(eventBookmark, &metav1.Table{
			TypeMeta: metav1.TypeMeta{Kind: "Table", APIVersion: metav1.SchemeGroupVersion.String()},
			ListMeta: metav1.ListMeta{ResourceVersion: meta.ResourceVersion}, Rows: []metav1.TableRow{},
		})
	case formMetadata:
		return w.event(eventBookmark, &metav1.PartialObjectMetadata{
			TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: metav1.SchemeGroupVersion.String()}, ObjectMeta: meta,
		})
	}
	if w.accept.protobuf() {
		raw, err := meta.Marshal()
		if err != nil {
			return err
		}
		raw = appendBytes(nil, objectMetadata, raw)
		w.frame(eventBookmark, wrap(w.resource.APIVersion(), w.resource.Kind, len(raw), raw))
		return nil
	}
	data, err := json.Marshal(metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{Kind: w.resource.Kind, APIVersion: w.resource.APIVersion()}, ObjectMeta: meta,
	})
	if err != nil {
		return err
	}
	w.frame(eventBookmark, data)
	return nil
}

// event writes an event with one of the API's structs.
func (w *watchStream) event(typ string, v runtime.Object) error {
	data, err := w.encode(v)
	if err != nil {
		return err
	}
	w.frame(typ, data)
	return nil
}

// frame writes an event: a line of JSON, or a WatchEvent behind its length.
func (w *watchStream) frame(typ string, object []byte) {
	if w.accept.protobuf() {
		event := appendBytes(nil, 1, []byte(typ))
		event = appendBytes(event, 2, appendBytes(nil, 1, object)) // a RawExtension
		w.out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(event))))
		w.out.Write(event)
		return
	}
	w.out.WriteString(`{"type":"`)
	w.out.WriteString(typ)
	w.out.WriteString(`","object":`)
	w.out.Write(object)
	w.out.WriteString("}\n")
}
