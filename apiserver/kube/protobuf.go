package kube

import (
	"errors"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Kubernetes' protobuf is a mark and a runtime.Unknown around the object's own
// message. What follows reads and writes that frame without decoding what is in
// it.

// magic begins everything in Kubernetes' protobuf.
const magic = "k8s\x00"

// The fields of the messages that are read and written here.
const (
	unknownTypeMeta    = 1 // of runtime.Unknown
	unknownRaw         = 2
	unknownContentType = 4
	typeMetaAPIVersion = 1 // of runtime.TypeMeta
	typeMetaKind       = 2

	objectMetadata      = 1 // of every object, and of every list
	listItems           = 2
	metaResourceVersion = 6 // of ObjectMeta
)

var errEnvelope = errors.New("is not Kubernetes' protobuf")

// envelope is a runtime.Unknown. raw points into what was read.
type envelope struct {
	apiVersion, kind string
	raw              []byte
	json             bool // raw is JSON
}

func parseEnvelope(data []byte) (envelope, error) {
	if len(data) < len(magic) || string(data[:len(magic)]) != magic {
		return envelope{}, errEnvelope
	}
	var e envelope
	err := eachField(data[len(magic):], func(number protowire.Number, value []byte) error {
		switch number {
		case unknownTypeMeta:
			return eachField(value, func(number protowire.Number, value []byte) error {
				switch number {
				case typeMetaAPIVersion:
					e.apiVersion = string(value)
				case typeMetaKind:
					e.kind = string(value)
				}
				return nil
			})
		case unknownRaw:
			e.raw = value
		case unknownContentType:
			e.json = string(value) == runtime.ContentTypeJSON
		}
		return nil
	})
	return e, err
}

// eachField calls f with the fields of a message that have a length. Others are
// passed over.
func eachField(data []byte, f func(protowire.Number, []byte) error) error {
	for len(data) > 0 {
		number, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return errEnvelope
		}
		data = data[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, typ, data); n < 0 {
				return errEnvelope
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return errEnvelope
		}
		if err := f(number, value); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// wrap puts pieces of a message, size bytes in all, into an envelope.
func wrap(apiVersion, kind string, size int, pieces ...[]byte) []byte {
	meta := appendBytes(nil, typeMetaAPIVersion, []byte(apiVersion))
	meta = appendBytes(meta, typeMetaKind, []byte(kind))
	out := make([]byte, 0, len(magic)+len(meta)+size+24)
	out = append(out, magic...)
	out = appendBytes(out, unknownTypeMeta, meta)
	out = protowire.AppendTag(out, unknownRaw, protowire.BytesType)
	out = protowire.AppendVarint(out, uint64(size))
	for _, piece := range pieces {
		out = append(out, piece...)
	}
	return out
}

func appendBytes(out []byte, number protowire.Number, value []byte) []byte {
	out = protowire.AppendTag(out, number, protowire.BytesType)
	return protowire.AppendBytes(out, value)
}

// revisionField is a metadata that holds nothing but a resourceVersion. Behind
// an object's message it sets that in it: messages that come twice are merged.
func revisionField(revision int64) []byte {
	if revision <= 0 {
		return nil // of a dry run
	}
	meta := appendBytes(nil, metaResourceVersion, strconv.AppendInt(nil, revision, 10))
	return appendBytes(nil, objectMetadata, meta)
}

// withRevision returns a stored object with its resourceVersion.
func withRevision(data []byte, revision int64) ([]byte, error) {
	e, err := parseEnvelope(data)
	if err != nil {
		return nil, err
	}
	field := revisionField(revision)
	return wrap(e.apiVersion, e.kind, len(e.raw)+len(field), e.raw, field), nil
}

// protobufList makes a list of stored objects.
func protobufList(apiVersion, kind string, meta metav1.ListMeta, items [][]byte, revisions []int64) ([]byte, error) {
	head, err := meta.Marshal()
	if err != nil {
		return nil, err
	}
	head = appendBytes(nil, objectMetadata, head)
	pieces := [][]byte{head}
	size := len(head)
	for i, item := range items {
		e, err := parseEnvelope(item)
		if err != nil {
			return nil, err
		}
		field := revisionField(revisions[i])
		tag := protowire.AppendTag(nil, listItems, protowire.BytesType)
		tag = protowire.AppendVarint(tag, uint64(len(e.raw)+len(field)))
		pieces = append(pieces, tag, e.raw, field)
		size += len(tag) + len(e.raw) + len(field)
	}
	return wrap(apiVersion, kind, size, pieces...), nil
}
