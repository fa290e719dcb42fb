package apiserver

import (
	"fmt"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

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
