package apiserver

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// encoder makes messages of the stored objects of one kind. Those of a list share
// what they can; it is for one goroutine.
type encoder struct {
	resource object.Resource
	kinds    catalog
	secrets  *secretKeys
	// lenient shows a Secret that cannot be opened without its values, and says so in an
	// annotation: of many, one must not hide the others. Nobody can write it back so.
	lenient   bool
	prefix    string // of the keys
	namespace string // of all objects; empty: the key says it
	encoding  holdfastv1.Encoding

	slab int // how many messages are made at once; 0: each by itself

	kind       *holdfastv1.Kind
	apiVersion string
	room       []holdfastv1.Object // made and not handed out yet
}

// objectSlab is for lists.
const objectSlab = 128

// object returns a stored object as it goes out. In protobuf, which is how it is
// stored, the bytes are passed on without a look at them; but for Secrets, whose values
// are opened.
func (e *encoder) object(key string, value []byte, revision int64) (*holdfastv1.Object, error) {
	return e.encode(key, value, revision, func() (object.Object, error) {
		obj, err := e.kinds.Decode(value, revision)
		if err != nil {
			return nil, fmt.Errorf("stored object %s: %w", key, err)
		}
		return obj, nil
	})
}

// encode is object for one whose value may have been decoded already.
func (e *encoder) encode(key string, value []byte, revision int64, decoded func() (object.Object, error)) (*holdfastv1.Object, error) {
	if e.kind == nil {
		e.kind, e.apiVersion = kindOf(e.resource), e.resource.APIVersion()
	}
	namespace, name := e.namespace, strings.TrimPrefix(key, e.prefix)
	if e.resource.Namespaced && namespace == "" {
		var ok bool
		if namespace, name, ok = strings.Cut(name, "/"); !ok {
			return nil, fmt.Errorf("key %q does not name an object", key)
		}
	}
	out := e.message()
	out.Kind, out.Namespace, out.Name, out.Revision = e.kind, namespace, name, revision
	if strings.HasPrefix(e.prefix, secretPrefix) {
		obj, err := decoded()
		if err == nil {
			var opened object.Object
			if opened, err = e.secrets.open(obj); err != nil && e.lenient {
				opened, err = withoutSecrets(obj, err), nil
			}
			obj = opened
		}
		if err != nil {
			return nil, err
		}
		decoded = func() (object.Object, error) { return obj, nil }
		if value, err = object.Encode(obj); err != nil {
			return nil, err
		}
	}
	switch e.encoding {
	case holdfastv1.Encoding_ENCODING_UNSPECIFIED, holdfastv1.Encoding_ENCODING_PROTOBUF:
		if !e.resource.Custom && storedAs(value, e.apiVersion) {
			out.Encoding, out.Data = holdfastv1.Encoding_ENCODING_PROTOBUF, value
			return out, nil
		}
	case holdfastv1.Encoding_ENCODING_JSON:
	default:
		return nil, badEncoding(e.encoding)
	}
	obj, err := decoded()
	if err == nil {
		obj, err = object.Convert(obj, e.resource)
	}
	if err != nil {
		return nil, err
	}
	out.Encoding = holdfastv1.Encoding_ENCODING_JSON
	out.Data, err = object.EncodeJSON(obj)
	return out, err
}

// protobufMark begins Kubernetes' protobuf. A runtime.Unknown follows, whose first
// field is a TypeMeta, whose first field is the apiVersion.
var protobufMark = []byte("k8s\x00")

// storedAs reports whether a stored object is in that version, without decoding it.
func storedAs(value []byte, apiVersion string) bool {
	const firstField = 1<<3 | 2 // of bytes
	rest, ok := bytes.CutPrefix(value, protobufMark)
	return ok && len(rest) > 4+len(apiVersion) && rest[0] == firstField && rest[2] == firstField &&
		int(rest[3]) == len(apiVersion) && string(rest[4:4+len(apiVersion)]) == apiVersion
}

// message returns a new message. Those of an answer live and die together, so they
// are made together.
func (e *encoder) message() *holdfastv1.Object {
	if e.slab == 0 {
		return &holdfastv1.Object{}
	}
	if len(e.room) == 0 {
		e.room = make([]holdfastv1.Object, e.slab)
	}
	out := &e.room[0]
	e.room = e.room[1:]
	return out
}

// encodeStored returns one stored object as it goes out.
func (s *Server) encodeStored(r object.Resource, kv raftstore.KeyValue, view raftstore.View, encoding holdfastv1.Encoding) (*holdfastv1.Object, error) {
	enc := encoder{resource: r, kinds: s.catalog(view), secrets: s.secrets, prefix: r.Prefix(""), encoding: encoding}
	return enc.object(kv.Key, kv.Value, kv.Mod)
}

// encodeObject returns obj as it goes out; its resourceVersion becomes the
// revision. data is obj as it is stored, if that is known. What is stored in another
// version, or in no protobuf of its own, comes as JSON.
func encodeObject(obj object.Object, data []byte, encoding holdfastv1.Encoding) (*holdfastv1.Object, error) {
	out := &holdfastv1.Object{
		Kind: kindOf(object.ResourceOf(obj)), Namespace: obj.GetNamespace(), Name: obj.GetName(),
		Encoding: holdfastv1.Encoding_ENCODING_PROTOBUF, Data: data,
	}
	out.Revision = revisionOf(obj) // 0 in a dry run
	var err error
	switch encoding {
	case holdfastv1.Encoding_ENCODING_UNSPECIFIED, holdfastv1.Encoding_ENCODING_PROTOBUF:
		if data == nil {
			if out.Data, err = object.Encode(obj); err != nil {
				return nil, err
			}
		}
		if r := object.ResourceOf(obj); !r.Custom && storedAs(out.Data, r.APIVersion()) {
			return out, nil
		}
	case holdfastv1.Encoding_ENCODING_JSON:
	default:
		return nil, badEncoding(encoding)
	}
	out.Encoding = holdfastv1.Encoding_ENCODING_JSON
	out.Data, err = object.EncodeJSON(obj)
	return out, err
}

func badEncoding(encoding holdfastv1.Encoding) error {
	return badRequest("encoding", "%d is not an encoding that this peer knows; use protobuf or JSON", encoding)
}

func kindOf(r object.Resource) *holdfastv1.Kind {
	return &holdfastv1.Kind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}
