package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// gzipMinBytes is the size from which compression is worth its time.
const gzipMinBytes = 128 << 10

var gzips = sync.Pool{New: func() any {
	w, _ := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed) // the level is one that exists
	return w
}}

// wants is the encoding in which the handlers should give objects, so that as
// little as possible is left to do with them.
func (c *call) wants() holdfastv1.Encoding {
	if c.accept.form == formWhole && !c.accept.protobuf() {
		return holdfastv1.Encoding_ENCODING_JSON
	}
	return holdfastv1.Encoding_ENCODING_PROTOBUF
}

// answered puts what an answer says of itself into headers: who gave it, from
// which revision, how old it may be, and what the caller should know.
func (c *call) answered(a *holdfastv1.Answer) {
	header := c.w.Header()
	header.Set("Holdfast-Served-By", a.GetServedBy())
	header.Set("Holdfast-Revision", strconv.FormatInt(a.GetRevision(), 10))
	if a.GetAge() != nil {
		header.Set("Holdfast-Age", a.GetAge().AsDuration().String())
	}
	if a.GetCutOff() != nil {
		header.Set("Holdfast-Cut-Off", a.GetCutOff().AsDuration().String())
	}
	c.warn(a.GetWarnings()...)
}

// warn adds warnings to the answer's header. kubectl prints them.
func (c *call) warn(warnings ...string) {
	for _, warning := range warnings {
		line := strings.Join(strings.Fields(warning), " ")
		if value, err := utilnet.NewWarningHeader(299, "-", line); err == nil {
			c.w.Header().Add("Warning", value)
		}
	}
}

// object answers with one object.
func (c *call) object(code int, obj *holdfastv1.Object) error {
	switch c.accept.form {
	case formTable:
		typed, err := c.decode(obj)
		if err != nil {
			return err
		}
		table, err := c.table([]object.Object{typed}, metav1.ListMeta{ResourceVersion: typed.GetResourceVersion()})
		if err != nil {
			return err
		}
		return c.write(code, table)
	case formMetadata:
		typed, err := c.decode(obj)
		if err != nil {
			return err
		}
		data, err := c.encode(partial(typed))
		if err != nil {
			return err
		}
		return c.write(code, data)
	}
	var data []byte
	var err error
	if c.accept.protobuf() {
		data, err = c.protobufOf(obj)
	} else {
		data, err = c.jsonOf(obj)
	}
	if err != nil {
		return err
	}
	return c.write(code, data)
}

// decode returns an object of the handlers, with its resourceVersion.
func (c *call) decode(obj *holdfastv1.Object) (object.Object, error) {
	typed, err := c.catalog.Decode(obj.GetData(), obj.GetRevision())
	if err != nil {
		return nil, fmt.Errorf("object %s/%s of the handlers: %w", obj.GetNamespace(), obj.GetName(), err)
	}
	return typed, nil
}

// jsonOf returns an object as JSON.
func (c *call) jsonOf(obj *holdfastv1.Object) ([]byte, error) {
	if obj.GetEncoding() == holdfastv1.Encoding_ENCODING_JSON {
		return obj.GetData(), nil
	}
	typed, err := c.decode(obj)
	if err != nil {
		return nil, err
	}
	return object.EncodeJSON(typed)
}

// protobufOf returns an object in Kubernetes' protobuf, with its resourceVersion.
func (c *call) protobufOf(obj *holdfastv1.Object) ([]byte, error) {
	data := obj.GetData()
	if obj.GetEncoding() == holdfastv1.Encoding_ENCODING_JSON {
		typed, err := c.decode(obj)
		if err != nil {
			return nil, err
		}
		if data, err = object.Encode(typed); err != nil {
			return nil, err
		}
	}
	return withRevision(data, obj.GetRevision())
}

// protoMarshaler is what Kubernetes' structs have.
type protoMarshaler interface{ Marshal() ([]byte, error) }

// encode writes something that is no object of a kind that is served, but one of
// the API's structs with its apiVersion and kind set, in the form that the answer
// has.
func (c *call) encode(v runtime.Object) ([]byte, error) {
	if !c.accept.protobuf() {
		return json.Marshal(v)
	}
	raw, err := v.(protoMarshaler).Marshal()
	if err != nil {
		return nil, err
	}
	apiVersion, kind := v.GetObjectKind().GroupVersionKind().ToAPIVersionAndKind()
	return wrap(apiVersion, kind, len(raw), raw), nil
}

// structure answers with one of the API's structs.
func (c *call) structure(code int, v runtime.Object) error {
	data, err := c.encode(v)
	if err != nil {
		return err
	}
	return c.write(code, data)
}

// write answers with a body, given in pieces, of the media type that was agreed on.
func (c *call) write(code int, pieces ...[]byte) error {
	header := c.w.Header()
	header.Set("Cache-Control", "no-cache, private")
	header.Set("Content-Type", c.accept.typ)
	switch {
	case c.accept.typ == typeYAML:
		text, err := yaml.JSONToYAML(bytes.Join(pieces, nil))
		if err != nil {
			return err
		}
		pieces = [][]byte{text}
	case c.accept.typ == typeJSON && c.pretty():
		var out bytes.Buffer
		if err := json.Indent(&out, bytes.Join(pieces, nil), "", "  "); err != nil {
			return err
		}
		out.WriteByte('\n')
		pieces = [][]byte{out.Bytes()}
	}
	size := 0
	for _, piece := range pieces {
		size += len(piece)
	}
	if size < gzipMinBytes || !acceptsGzip(c.r.Header) {
		header.Set("Content-Length", strconv.Itoa(size))
		c.w.WriteHeader(code)
		for _, piece := range pieces {
			if _, err := c.w.Write(piece); err != nil {
				return nil // the client has gone
			}
		}
		return nil
	}
	header.Set("Content-Encoding", "gzip")
	header.Add("Vary", "Accept-Encoding")
	c.w.WriteHeader(code)
	zip := gzips.Get().(*gzip.Writer)
	defer gzips.Put(zip)
	zip.Reset(c.w)
	for _, piece := range pieces {
		if _, err := zip.Write(piece); err != nil {
			return nil
		}
	}
	_ = zip.Close()
	return nil
}

// pretty reports whether JSON should be indented: when that is asked for, or a
// person is likely to read it.
func (c *call) pretty() bool {
	if c.query.pretty != "" {
		return c.query.pretty != "0" && c.query.pretty != "false"
	}
	agent := c.r.UserAgent()
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

// writeJSON answers with a document that is always JSON.
func writeJSON(w http.ResponseWriter, r *http.Request, typ string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", typ)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
	return nil
}
