package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// decoded is an object of a request.
type decoded struct {
	obj      object.Object
	resource object.Resource
	data     []byte // as it came
	index    int    // its place in the request
	placed   bool   // its name or namespace are not from data
	revision int64  // the resourceVersion that the caller named; 0: none
}

// decodeObject reads an object of a request and asks whether the caller may do
// what the verb says to it, or to its subresource sub: no handler comes by an
// object without. index is its place in the request, for the faults.
func (s *Server) decodeObject(ctx context.Context, verb, sub string, in *holdfastv1.Object, index int) (decoded, object.Faults, error) {
	var known catalog
	if kind, ok := kindOfData(in.GetData()); ok {
		var err error
		if known, err = s.knowing(ctx, kind); err != nil {
			return decoded{}, nil, err
		}
	} else {
		known = s.Catalog()
	}
	d, faults := readObject(known, in, index)
	if len(faults) > 0 {
		return decoded{}, faults, nil
	}
	name := d.obj.GetName()
	if verb == "create" { // as in Kubernetes: who may create may choose the name
		name = ""
	}
	err := s.Authorize(ctx, attributes(verb, d.resource, sub, d.obj.GetNamespace(), name))
	if name == "" {
		auditingOf(ctx).named(d.obj.GetName())
	}
	return d, nil, err
}

// readObject reads an object, in protobuf or JSON, and brings the message's own
// fields and the object's metadata together.
func readObject(known catalog, in *holdfastv1.Object, index int) (decoded, object.Faults) {
	fault := func(field, format string, args ...any) (decoded, object.Faults) {
		title := ""
		if in.GetName() != "" {
			title = strings.TrimSpace(in.GetKind().GetKind() + " " + joinName(in.GetNamespace(), in.GetName()))
		}
		return decoded{}, object.Faults{{Object: title, Field: field, Message: fmt.Sprintf(format, args...), Index: index}}
	}
	if len(in.GetData()) == 0 {
		return fault("", "the object is empty")
	}
	obj, err := known.Decode(in.GetData(), 0)
	if faults, ok := errors.AsType[object.Faults](err); ok {
		for i := range faults {
			faults[i].Index = index
		}
		return decoded{}, faults
	}
	if err != nil {
		return fault("", "%v", err)
	}
	d := decoded{obj: obj, resource: object.ResourceOf(obj), data: in.GetData(), index: index}
	if k := in.GetKind(); k != nil && (k.GetKind() != d.resource.Kind || k.GetGroup() != d.resource.Group || k.GetVersion() != d.resource.Version) {
		return fault("kind", "the object is a %s (%s), but the request says %s", d.resource.Kind, d.resource.APIVersion(), k.GetKind())
	}
	if in.GetName() != "" {
		if obj.GetName() != "" && obj.GetName() != in.GetName() {
			return fault("metadata.name", "is %q, but the request says %q", obj.GetName(), in.GetName())
		}
		d.placed = d.placed || obj.GetName() == ""
		obj.SetName(in.GetName())
	}
	if in.GetNamespace() != "" {
		if obj.GetNamespace() != "" && obj.GetNamespace() != in.GetNamespace() {
			return fault("metadata.namespace", "is %q, but the request says %q", obj.GetNamespace(), in.GetNamespace())
		}
		d.placed = d.placed || obj.GetNamespace() == ""
		obj.SetNamespace(in.GetNamespace())
	}
	switch {
	case d.resource.Namespaced && obj.GetNamespace() == "":
		d.placed = true
		obj.SetNamespace(metav1.NamespaceDefault)
	case !d.resource.Namespaced && obj.GetNamespace() != "":
		return fault("metadata.namespace", "is %q, but a %s lives outside namespaces", obj.GetNamespace(), d.resource.Kind)
	}
	if rv := obj.GetResourceVersion(); rv != "" {
		if d.revision, err = strconv.ParseInt(rv, 10, 64); err != nil || d.revision < 0 {
			return fault("metadata.resourceVersion", "is %q: want the resourceVersion that was read, or none", rv)
		}
	}
	if in.GetRevision() > 0 {
		d.revision = in.GetRevision()
	}
	obj.SetResourceVersion("")
	obj.SetSelfLink("")
	return d, nil
}

// precondition returns Aborted when old is not what the caller has read.
func (d decoded) precondition(old object.Object, revision int64) error {
	if d.revision > 0 && d.revision != revision {
		return changedSince(old, revision, d.revision)
	}
	if uid := d.obj.GetUID(); uid != "" && uid != old.GetUID() {
		return replacedSince(old, string(uid))
	}
	return nil
}

// kindOfData returns the kind that an object's bytes name, false if they do not say
// it where it is looked for.
func kindOfData(data []byte) (schema.GroupVersionKind, bool) {
	var meta runtime.TypeMeta
	if protobuf, ok := bytes.CutPrefix(data, protobufMark); ok {
		var unknown runtime.Unknown
		if unknown.Unmarshal(protobuf) != nil {
			return schema.GroupVersionKind{}, false
		}
		meta = unknown.TypeMeta
	} else if json.Unmarshal(data, &meta) != nil {
		return schema.GroupVersionKind{}, false
	}
	return schema.FromAPIVersionAndKind(meta.APIVersion, meta.Kind), true
}
