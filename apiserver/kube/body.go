package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// bodyMaxBytes bounds what a request may bring.
const bodyMaxBytes = 4 << 20

// readBody returns the body and its media type without parameters. A body
// without a type is JSON.
func (c *call) readBody() (data []byte, typ string, err error) {
	if header := c.r.Header.Get("Content-Type"); header != "" {
		if typ, _, err = mime.ParseMediaType(header); err != nil {
			return nil, "", unsupportedMediaType(header, typeJSON, typeYAML, typeProtobuf)
		}
	}
	data, err = io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, bodyMaxBytes))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return nil, "", apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the body may have %d bytes", bodyMaxBytes))
	}
	if err != nil {
		return nil, "", apierrors.NewBadRequest("the body of the request broke off: " + err.Error())
	}
	switch typ {
	case "", "*/*":
		typ = typeJSON
	case "application/x-yaml", "text/yaml":
		typ = typeYAML
	}
	return data, typ, nil
}

// decodeInto reads a body into one of the API's structs, which is no object of a
// kind that is served. An empty body leaves it as it is.
func (c *call) decodeInto(v runtime.Object, kinds ...string) error {
	data, typ, err := c.readBody()
	if err != nil || len(bytes.TrimSpace(data)) == 0 {
		return err
	}
	kind := ""
	switch typ {
	case typeProtobuf:
		e, err := parseEnvelope(data)
		if err == nil {
			kind = e.kind
			err = v.(interface{ Unmarshal([]byte) error }).Unmarshal(e.raw)
		}
		if err != nil {
			return apierrors.NewBadRequest("the body cannot be read: " + err.Error())
		}
	case typeJSON, typeYAML:
		if typ == typeYAML {
			if data, err = yaml.YAMLToJSON(data); err != nil {
				return apierrors.NewBadRequest("the body cannot be read: " + err.Error())
			}
		}
		if err := json.Unmarshal(data, v); err != nil {
			return apierrors.NewBadRequest("the body cannot be read: " + err.Error())
		}
		kind = v.GetObjectKind().GroupVersionKind().Kind
	default:
		return unsupportedMediaType(typ, typeJSON, typeYAML, typeProtobuf)
	}
	if len(kinds) == 0 || kind == "" {
		return nil
	}
	for _, want := range kinds {
		if kind == want {
			return nil
		}
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the body is a %s, want a %s", kind, kinds[0]))
}

// head is what a body says of its object before anybody looks into it.
type head struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name         string `json:"name"`
		Namespace    string `json:"namespace"`
		GenerateName string `json:"generateName"`
	} `json:"metadata"`
}

// readObject reads the object that comes with a write, and makes it fit the
// URL: what it does not say of kind, namespace and name is taken from there, and
// what it says otherwise is refused. JSON and YAML are passed on as JSON, to be
// read strictly, unless the client wants unknown fields to be dropped.
func (c *call) readObject() (*holdfastv1.Object, error) {
	data, typ, err := c.readBody()
	if err != nil {
		return nil, err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, apierrors.NewBadRequest("the body is empty: an object is wanted")
	}
	out := &holdfastv1.Object{Kind: c.kind()}
	switch typ {
	case typeProtobuf:
		out.Data, err = c.fitProtobuf(data)
		out.Encoding = holdfastv1.Encoding_ENCODING_PROTOBUF
	case typeYAML, typeJSON:
		if typ == typeYAML {
			if data, err = yaml.YAMLToJSON(data); err != nil {
				return nil, apierrors.NewBadRequest("the body cannot be read: " + err.Error())
			}
		}
		out.Data, err = c.fitJSON(data)
		out.Encoding = holdfastv1.Encoding_ENCODING_JSON
	default:
		return nil, unsupportedMediaType(typ, typeJSON, typeYAML, typeProtobuf)
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// fitProtobuf is readObject for protobuf. The object is decoded only if something
// is missing in it.
func (c *call) fitProtobuf(data []byte) ([]byte, error) {
	e, err := parseEnvelope(data)
	if err != nil {
		return nil, apierrors.NewBadRequest("the body " + err.Error())
	}
	if e.apiVersion == "" || e.kind == "" {
		data = wrap(c.resource.APIVersion(), c.resource.Kind, len(e.raw), e.raw)
	}
	obj, err := c.catalog.Decode(data, 0)
	if err != nil {
		return nil, apierrors.NewBadRequest("the body cannot be read: " + err.Error())
	}
	apiVersion, kind := obj.GetObjectKind().GroupVersionKind().ToAPIVersionAndKind()
	h := head{APIVersion: apiVersion, Kind: kind}
	h.Metadata.Name, h.Metadata.Namespace, h.Metadata.GenerateName = obj.GetName(), obj.GetNamespace(), obj.GetGenerateName()
	fitted, err := c.fit(h)
	if err != nil || fitted == h {
		return data, err
	}
	obj.SetName(fitted.Metadata.Name)
	obj.SetNamespace(fitted.Metadata.Namespace)
	version := obj.GetResourceVersion()
	if data, err = object.Encode(obj); err != nil || version == "" {
		return data, err
	}
	// Encode leaves the resourceVersion out, which is the precondition of a write.
	e, err = parseEnvelope(data)
	if err != nil {
		return nil, err
	}
	field := appendBytes(nil, objectMetadata, appendBytes(nil, metaResourceVersion, []byte(version)))
	return wrap(e.apiVersion, e.kind, len(e.raw)+len(field), e.raw, field), nil
}

// fitJSON is readObject for JSON.
func (c *call) fitJSON(data []byte) ([]byte, error) {
	var h head
	if err := json.Unmarshal(data, &h); err != nil {
		return nil, apierrors.NewBadRequest("the body cannot be read: " + err.Error())
	}
	fitted, err := c.fit(h)
	if err != nil {
		return nil, err
	}
	if data, err = c.validateFields(data); err != nil || fitted == h {
		return data, err
	}
	var tree map[string]json.RawMessage
	if err := json.Unmarshal(data, &tree); err != nil {
		return nil, apierrors.NewBadRequest("the body cannot be read: " + err.Error())
	}
	meta := make(map[string]json.RawMessage)
	if raw, ok := tree["metadata"]; ok && string(raw) != "null" {
		if err := json.Unmarshal(raw, &meta); err != nil {
			return nil, apierrors.NewBadRequest("metadata cannot be read: " + err.Error())
		}
	}
	set(tree, "apiVersion", fitted.APIVersion)
	set(tree, "kind", fitted.Kind)
	set(meta, "name", fitted.Metadata.Name)
	set(meta, "namespace", fitted.Metadata.Namespace)
	if tree["metadata"], err = json.Marshal(meta); err != nil {
		return nil, err
	}
	return json.Marshal(tree)
}

func set(tree map[string]json.RawMessage, name, value string) {
	if value == "" {
		return
	}
	tree[name], _ = json.Marshal(value) // of a string: cannot fail
}

// fit holds what a body says of itself against the URL, and fills in the rest.
func (c *call) fit(h head) (head, error) {
	if h.APIVersion == "" {
		h.APIVersion = c.resource.APIVersion()
	}
	if h.Kind == "" {
		h.Kind = c.resource.Kind
	}
	if h.Kind != c.resource.Kind || h.APIVersion != c.resource.APIVersion() {
		return h, apierrors.NewBadRequest(fmt.Sprintf("the body is a %s (%s), and the URL is for a %s (%s)",
			h.Kind, h.APIVersion, c.resource.Kind, c.resource.APIVersion()))
	}
	switch {
	case !c.resource.Namespaced && h.Metadata.Namespace != "":
		return h, apierrors.NewBadRequest(fmt.Sprintf("metadata.namespace is %q, but a %s lives outside namespaces", h.Metadata.Namespace, h.Kind))
	case c.resource.Namespaced && h.Metadata.Namespace == "":
		h.Metadata.Namespace = c.at.namespace
	case c.resource.Namespaced && c.at.namespace != "" && h.Metadata.Namespace != c.at.namespace:
		return h, apierrors.NewBadRequest(fmt.Sprintf("the namespace of the provided object does not match the namespace sent on the request: %s and %s", h.Metadata.Namespace, c.at.namespace))
	}
	switch {
	case c.at.name == "":
	case h.Metadata.Name == "":
		h.Metadata.Name = c.at.name
	case h.Metadata.Name != c.at.name:
		return h, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", h.Metadata.Name, c.at.name))
	}
	return h, nil
}

// deleteOptions reads what a deletion may bring, from the body or else the query.
func (c *call) deleteOptions() (metav1.DeleteOptions, error) {
	options := metav1.DeleteOptions{GracePeriodSeconds: c.query.grace, PropagationPolicy: c.query.propagation}
	options.OrphanDependents = c.query.orphan //lint:ignore SA1019 older clients send it
	if err := c.decodeInto(&options, "DeleteOptions"); err != nil {
		return options, err
	}
	if c.query.dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	return options, checkDryRun(options.DryRun)
}

func checkDryRun(dryRun []string) error {
	for _, value := range dryRun {
		if value != metav1.DryRunAll {
			return apierrors.NewBadRequest(fmt.Sprintf("invalid value %q of dryRun: want %q", value, metav1.DryRunAll))
		}
	}
	return nil
}
