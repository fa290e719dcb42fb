package object

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// envelope begins every stored object: Kubernetes' mark for protobuf data. A
// runtime.Unknown with apiVersion, kind and the object's bytes follows.
var envelope = []byte("k8s\x00")

// protoMessage is what the API structs have: hand-rolled protobuf codecs. They
// are not proto.Message.
type protoMessage interface {
	Marshal() ([]byte, error)
	Unmarshal(data []byte) error
}

// Encode returns the form in which obj is stored and sent: Kubernetes' protobuf
// envelope, in the version in which its kind is stored, with
// metadata.resourceVersion left out, because the store's revision says it. Inside
// the envelope a custom object is JSON, all others are protobuf. Equal objects
// have equal bytes. obj is not changed.
func Encode(obj Object) ([]byte, error) {
	stored, err := kindOfObject(obj).stored(obj)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", Title(obj), err)
	}
	r := ResourceOf(stored)
	bare := shallow(stored)
	bare.SetResourceVersion("")
	unknown := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: r.APIVersion(), Kind: r.Kind}}
	switch bare := bare.(type) {
	case *Custom:
		unknown.ContentType = runtime.ContentTypeJSON
		unknown.Raw, err = bare.encode()
	case protoMessage:
		unknown.Raw, err = bare.Marshal()
	}
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", Title(obj), err)
	}
	data := make([]byte, len(envelope)+unknown.Size())
	copy(data, envelope)
	n, err := unknown.MarshalTo(data[len(envelope):])
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", Title(obj), err)
	}
	return data[:len(envelope)+n], nil
}

// Decode reads an object of a built-in kind: [Catalog.Decode].
func Decode(data []byte, revision int64) (Object, error) { return builtin.Decode(data, revision) }

// Decode reads an object in the stored form or in JSON, whichever data is. If
// revision is more than 0, it becomes the object's resourceVersion. apiVersion
// and kind are set: those of the version in which the kind is stored, or as JSON
// says.
//
// A stored custom object gets the defaults of its schema, which may be newer than
// the object. JSON is read as strictly as [ParseManifests] reads it; the error is
// then of type [Faults].
func (c *Catalog) Decode(data []byte, revision int64) (Object, error) {
	var obj Object
	var err error
	if bytes.HasPrefix(data, envelope) {
		obj, err = c.decodeStored(data[len(envelope):])
	} else {
		obj, err = c.decodeJSON(data)
	}
	if err != nil {
		return nil, err
	}
	if revision > 0 {
		obj.SetResourceVersion(strconv.FormatInt(revision, 10))
	}
	return obj, nil
}

func (c *Catalog) decodeStored(data []byte) (Object, error) {
	var unknown runtime.Unknown
	if err := unknown.Unmarshal(data); err != nil {
		return nil, fmt.Errorf("decode object: %w", err)
	}
	gv, err := schema.ParseGroupVersion(unknown.APIVersion)
	if err != nil {
		return nil, fmt.Errorf("decode object: %w", err)
	}
	k := c.byKind[gv.WithKind(unknown.Kind)]
	if k == nil {
		_, err := c.ForKind(gv.Group, gv.Version, unknown.Kind)
		return nil, fmt.Errorf("decode object: %w", err)
	}
	obj := k.new()
	switch obj := obj.(type) {
	case *Custom:
		if unknown.ContentType != runtime.ContentTypeJSON {
			return nil, fmt.Errorf("decode %s: content is %q, must be JSON", unknown.Kind, unknown.ContentType)
		}
		if err := obj.decode(unknown.Raw); err != nil {
			return nil, fmt.Errorf("decode %s: %w", unknown.Kind, err)
		}
		if k.storage != nil && k.storage != k { // the definition was changed since
			obj = obj.as(k.storage)
		}
		Default(obj)
		return obj, nil
	case protoMessage:
		if err := obj.Unmarshal(unknown.Raw); err != nil {
			return nil, fmt.Errorf("decode %s: %w", unknown.Kind, err)
		}
	}
	k.read(obj)
	return obj, nil
}

func (c *Catalog) decodeJSON(data []byte) (Object, error) {
	docs, faults := c.parse("", data)
	if len(faults) > 0 {
		return nil, faults
	}
	if len(docs) != 1 {
		return nil, Faults{{Message: fmt.Sprintf("must be one object, there are %d", len(docs))}}
	}
	return docs[0].Object, nil
}

// EncodeJSON returns obj as JSON in one line, with apiVersion and kind.
func EncodeJSON(obj Object) ([]byte, error) {
	data, err := json.Marshal(typed(obj))
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", Title(obj), err)
	}
	return data, nil
}

// EncodeYAML returns obj as YAML, with apiVersion and kind.
func EncodeYAML(obj Object) ([]byte, error) {
	text, err := EncodeJSON(obj)
	if err != nil {
		return nil, err
	}
	docs, errs := readJSON(text)
	if len(errs) > 0 {
		return nil, fmt.Errorf("encode %s: %w", Title(obj), errs[0])
	}
	// Not sigs.k8s.io/yaml: it hands the JSON to a YAML parser, which refuses
	// characters that JSON allows.
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	encoder.CompactSeqIndent()
	if err := encoder.Encode(docs[0].plain()); err != nil {
		return nil, fmt.Errorf("encode %s: %w", Title(obj), err)
	}
	if err := encoder.Close(); err != nil {
		return nil, fmt.Errorf("encode %s: %w", Title(obj), err)
	}
	return out.Bytes(), nil
}

// typed returns obj with its apiVersion and kind, without changing obj.
func typed(obj Object) Object {
	out := shallow(obj)
	out.GetObjectKind().SetGroupVersionKind(ResourceOf(obj).groupVersionKind())
	return out
}

// shallow copies the struct that obj points to, not what that points to. It is
// enough to change a metadata field in the copy.
func shallow(obj Object) Object {
	if c, ok := obj.(*Custom); ok {
		return c.shallow()
	}
	value := reflect.New(reflect.TypeOf(obj).Elem())
	value.Elem().Set(reflect.ValueOf(obj).Elem())
	return value.Interface().(Object)
}
