package object

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"
)

// Numbers of fields in Kubernetes' protobuf.
const (
	rawField      = 2  // of runtime.Unknown
	specField     = 2  // of Pod
	nodeNameField = 10 // of PodSpec
)

// Unbound reports whether a stored pod, as [Encode] returns it, surely has no node. It
// looks at the bytes and decodes nothing, for those who see every pod and want but the
// bound ones. Of what it does not understand it says false.
func Unbound(stored []byte) bool {
	data, ok := bytes.CutPrefix(stored, envelope)
	if !ok {
		return false
	}
	pod, ok := bytesField(data, rawField)
	if !ok || pod == nil {
		return false
	}
	spec, ok := bytesField(pod, specField)
	if !ok {
		return false
	}
	node, ok := bytesField(spec, nodeNameField)
	return ok && len(node) == 0
}

// bytesField returns the bytes of a message's field, nil if it is not set; false if the
// message cannot be read, or has the field twice, which would have to be merged.
func bytesField(message []byte, number protowire.Number) (value []byte, ok bool) {
	for len(message) > 0 {
		n, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return nil, false
		}
		message = message[size:]
		if size = protowire.ConsumeFieldValue(n, kind, message); size < 0 {
			return nil, false
		}
		if n == number {
			if kind != protowire.BytesType || value != nil {
				return nil, false
			}
			value, _ = protowire.ConsumeBytes(message)
			if value == nil {
				value = []byte{}
			}
		}
		message = message[size:]
	}
	return value, true
}
