package apiserver

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"iter"
	"strings"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// objectService implements holdfastv1connect.ObjectServiceHandler. Writes are in
// write.go and apply.go, Watch in watch.go, the kind Event in events.go.
type objectService struct{ *Server }

// Get returns one object. NotFound is as fresh as the read options ask for.
func (s objectService) Get(ctx context.Context, req *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error) {
	r, err := resourceOf(req.GetKind())
	if err != nil {
		return nil, err
	}
	namespace, err := namespaceFor(r, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	if req.GetName() == "" {
		return nil, badRequest("name", "is empty: say which %s", r.Kind)
	}
	if r.Kind == eventKind {
		return s.getEvent(r, namespace, req)
	}
	read, err := s.read(ctx, req.GetRead())
	if err != nil {
		return nil, err
	}
	key := r.Key(namespace, req.GetName())
	kv, ok := read.view.Get(string(key))
	if !ok {
		return nil, notFound(r, namespace, req.GetName())
	}
	obj, err := encodeStored(r, kv.Key, kv.Value, kv.Mod, req.GetEncoding())
	if err != nil {
		return nil, err
	}
	return &holdfastv1.GetResponse{Object: obj, Answer: s.answer(read)}, nil
}

// List returns the objects of one kind from one revision. A continue token
// pins that revision: OutOfRange once it has been compacted.
func (s objectService) List(ctx context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
	r, err := resourceOf(req.GetKind())
	if err != nil {
		return nil, err
	}
	if !r.Namespaced && req.GetNamespace() != "" {
		return nil, badRequest("namespace", "is %q, but %s live outside namespaces", req.GetNamespace(), r.Plural)
	}
	match, err := newMatcher(r, req.GetLabelSelector(), req.GetFieldSelector())
	if err != nil {
		return nil, err
	}
	if req.GetLimit() < 0 {
		return nil, badRequest("limit", "is %d: use 0 for all, or a positive number", req.GetLimit())
	}
	prefix := r.Prefix(req.GetNamespace())
	var page pageToken
	if req.GetContinue() != "" {
		if page, err = parsePageToken(req.GetContinue(), prefix); err != nil {
			return nil, err
		}
	}
	if r.Kind == eventKind {
		return s.listEvents(r, req, match, page)
	}
	var read reading
	if page.Key != "" {
		if _, err := s.waitRevision(ctx, page.Revision); err != nil {
			return nil, err
		}
		// Its age is unknown: the revision is as old as the first page.
		if read.view, err = s.store.ViewAt(page.Revision); err != nil {
			return nil, storeError("list "+r.Plural, err)
		}
	} else if read, err = s.read(ctx, req.GetRead()); err != nil {
		return nil, err
	}
	resp := &holdfastv1.ListResponse{Answer: s.answer(read)}
	last := ""
	for kv := range keysAfter(read.view, prefix, page.Key) {
		obj, err := match.encode(r, kv.Key, kv.Value, kv.Mod, req.GetEncoding())
		if err != nil {
			return nil, err
		}
		if obj == nil {
			continue
		}
		if req.GetLimit() > 0 && len(resp.Objects) == int(req.GetLimit()) {
			resp.Continue = pageToken{Revision: read.view.Revision(), Key: last}.String()
			break
		}
		resp.Objects = append(resp.Objects, obj)
		last = kv.Key
	}
	return resp, nil
}

// keysAfter yields what lies under prefix, behind the key after if it is set.
func keysAfter(view raftstore.View, prefix, after string) iter.Seq[raftstore.KeyValue] {
	if after == "" {
		return view.Prefix(prefix)
	}
	return view.Range(after+"\x00", prefixEnd(prefix))
}

// prefixEnd returns the first key behind all that begin with prefix, which ends
// in '/'.
func prefixEnd(prefix string) string {
	return prefix[:len(prefix)-1] + string(prefix[len(prefix)-1]+1)
}

// pageToken is where a list goes on. Its text form is opaque to clients.
type pageToken struct {
	Revision int64  `json:"r"`
	Key      string `json:"k"` // the last one returned
}

func (t pageToken) String() string {
	data, _ := json.Marshal(t) // of an int and a string: cannot fail
	return base64.RawURLEncoding.EncodeToString(data)
}

func parsePageToken(s, prefix string) (pageToken, error) {
	var t pageToken
	data, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	if err != nil || t.Revision <= 0 || !strings.HasPrefix(t.Key, prefix) {
		return pageToken{}, badRequest("continue", "is not from the last page of the same list: list again without it")
	}
	return t, nil
}

// resourceOf returns the resource of a request's kind.
func resourceOf(kind *holdfastv1.Kind) (object.Resource, error) {
	r, err := object.ResourceForKind(kind.GetGroup(), kind.GetVersion(), kind.GetKind())
	if err != nil {
		return object.Resource{}, badRequest("kind", "%v", err)
	}
	return r, nil
}

// namespaceFor returns the namespace of a single object: the default one if none
// is given, none for kinds that live outside.
func namespaceFor(r object.Resource, namespace string) (string, error) {
	switch {
	case r.Namespaced && namespace == "":
		return corev1.NamespaceDefault, nil
	case !r.Namespaced && namespace != "":
		return "", badRequest("namespace", "is %q, but a %s lives outside namespaces", namespace, r.Kind)
	}
	return namespace, nil
}

// encodeStored returns a stored object as it goes out. In protobuf, which is how
// it is stored, the bytes are passed on without a look at them.
func encodeStored(r object.Resource, key string, value []byte, revision int64, encoding holdfastv1.Encoding) (*holdfastv1.Object, error) {
	_, namespace, name, ok := object.SplitKey(object.Key(key))
	if !ok {
		return nil, fmt.Errorf("key %q does not name an object", key)
	}
	out := &holdfastv1.Object{
		Kind: kindOf(r), Namespace: namespace, Name: name, Revision: revision,
		Encoding: holdfastv1.Encoding_ENCODING_PROTOBUF, Data: value,
	}
	switch encoding {
	case holdfastv1.Encoding_ENCODING_UNSPECIFIED, holdfastv1.Encoding_ENCODING_PROTOBUF:
		return out, nil
	}
	obj, err := object.Decode(value, revision)
	if err != nil {
		return nil, fmt.Errorf("stored object %s: %w", key, err)
	}
	return encodeObject(obj, encoding)
}

// encodeObject returns obj as it goes out; its resourceVersion becomes the
// revision.
func encodeObject(obj object.Object, encoding holdfastv1.Encoding) (*holdfastv1.Object, error) {
	out := &holdfastv1.Object{
		Kind: kindOf(object.ResourceOf(obj)), Namespace: obj.GetNamespace(), Name: obj.GetName(),
		Encoding: holdfastv1.Encoding_ENCODING_PROTOBUF,
	}
	out.Revision = revisionOf(obj) // 0 in a dry run
	var err error
	switch encoding {
	case holdfastv1.Encoding_ENCODING_UNSPECIFIED, holdfastv1.Encoding_ENCODING_PROTOBUF:
		out.Data, err = object.Encode(obj)
	case holdfastv1.Encoding_ENCODING_JSON:
		out.Encoding = encoding
		out.Data, err = object.EncodeJSON(obj)
	default:
		return nil, badRequest("encoding", "%d is not an encoding that this peer knows; use protobuf or JSON", encoding)
	}
	return out, err
}

func kindOf(r object.Resource) *holdfastv1.Kind {
	return &holdfastv1.Kind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}

// matcher is a request's selectors.
type matcher struct {
	labels labels.Selector // nil: everything
	fields fields.Selector // nil: everything
}

func newMatcher(r object.Resource, labelSelector, fieldSelector string) (matcher, error) {
	var m matcher
	if labelSelector != "" {
		selector, err := labels.Parse(labelSelector)
		if err != nil {
			return matcher{}, badRequest("label_selector", "%q: %v", labelSelector, err)
		}
		if !selector.Empty() {
			m.labels = selector
		}
	}
	if fieldSelector != "" {
		selector, err := object.FieldSelector(r, fieldSelector)
		if err != nil {
			return matcher{}, badRequest("field_selector", "%v", err)
		}
		if !selector.Empty() {
			m.fields = selector
		}
	}
	return m, nil
}

func (m matcher) all() bool { return m.labels == nil && m.fields == nil }

func (m matcher) matches(obj object.Object) bool {
	return (m.labels == nil || m.labels.Matches(labels.Set(obj.GetLabels()))) &&
		(m.fields == nil || object.MatchesFields(obj, m.fields))
}

// selects is matches for stored bytes.
func (m matcher) selects(key string, value []byte) (bool, error) {
	if m.all() {
		return true, nil
	}
	obj, err := object.Decode(value, 0)
	if err != nil {
		return false, fmt.Errorf("stored object %s: %w", key, err)
	}
	return m.matches(obj), nil
}

// encode returns a stored object as it goes out, nil if it is not selected.
func (m matcher) encode(r object.Resource, key string, value []byte, revision int64, encoding holdfastv1.Encoding) (*holdfastv1.Object, error) {
	ok, err := m.selects(key, value)
	if err != nil || !ok {
		return nil, err
	}
	return encodeStored(r, key, value, revision, encoding)
}

// eventsAreRecorded is the answer to whoever wants to write an Event.
func eventsAreRecorded() error {
	return connect.NewError(connect.CodeUnimplemented,
		"Events are recorded by the cluster itself, kept for 7 days and cannot be created, changed or deleted through the API")
}
