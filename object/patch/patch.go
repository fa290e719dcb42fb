package patch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/object"
)

// What a patch may cost, as in kube-apiserver.
const (
	// MaxBytes is the size of a patch, and of all that the "copy" operations of a
	// JSON patch copy.
	MaxBytes = 3 << 20
	// MaxOperations is the number of operations of a JSON patch.
	MaxOperations = 10_000
)

func init() {
	jsonpatch.AccumulatedCopySizeLimit = MaxBytes // there is no other way to set it
}

// Kinds reads objects: an *object.Catalog.
type Kinds interface {
	Decode(data []byte, revision int64) (object.Object, error)
}

// JSON applies a JSON patch (RFC 6902) to old. The error is of type
// [object.Faults] if what comes out is not an object of old's kind and name;
// else it is one of this package's.
//
// What patches do not change stays: the uid, and the resourceVersion. A patch
// that gives another is refused with [ErrPrecondition].
func JSON(kinds Kinds, old object.Object, patch []byte) (object.Object, error) {
	return patched(kinds, old, func(doc []byte) ([]byte, error) { return JSONText(doc, patch) })
}

// Merge applies a JSON merge patch (RFC 7386) to old. See [JSON].
func Merge(kinds Kinds, old object.Object, patch []byte) (object.Object, error) {
	return patched(kinds, old, func(doc []byte) ([]byte, error) { return MergeText(doc, patch) })
}

// Strategic applies Kubernetes' strategic merge patch to old: lists of structs
// merge by their keys. See [JSON].
func Strategic(kinds Kinds, old object.Object, patch []byte) (object.Object, error) {
	return patched(kinds, old, func(doc []byte) ([]byte, error) {
		if object.ResourceOf(old).Custom {
			return nil, ErrUnsupported
		}
		return StrategicText(doc, patch, old)
	})
}

// JSONText applies a JSON patch to a document. The patch may be YAML.
func JSONText(doc, patch []byte) ([]byte, error) {
	patch, err := toJSON(patch)
	if err != nil {
		return nil, err
	}
	operations, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, because(ErrMalformed, `a JSON patch is a list of operations, such as [{"op": "replace", "path": "/spec/replicas", "value": 3}]: %v`, err)
	}
	if n := len(operations); n > MaxOperations {
		return nil, because(ErrMalformed, "the JSON patch has %d operations, and may have %d", n, MaxOperations)
	}
	for i, op := range operations {
		if _, err := op.Path(); err != nil {
			return nil, because(ErrMalformed, `operation %d has no "path"`, i)
		}
	}
	out, err := operations.Apply(doc)
	if err != nil {
		return nil, because(ErrInapplicable, "%v", err)
	}
	return out, nil
}

// MergeText applies a JSON merge patch to a document. The patch may be YAML.
func MergeText(doc, patch []byte) ([]byte, error) {
	patch, err := toJSON(patch)
	if err != nil {
		return nil, err
	}
	if !isMap(patch) {
		return nil, because(ErrMalformed, `a merge patch is a map of what changes, such as {"spec": {"replicas": 3}}`)
	}
	out, err := jsonpatch.MergePatch(doc, patch)
	if err != nil {
		return nil, because(ErrInapplicable, "%v", err)
	}
	return out, nil
}

// StrategicText applies a strategic merge patch to a document. of is of its Go
// type, whose tags say how lists merge. The patch may be YAML.
func StrategicText(doc, patch []byte, of any) ([]byte, error) {
	patch, err := toJSON(patch)
	if err != nil {
		return nil, err
	}
	if !isMap(patch) {
		return nil, because(ErrMalformed, `a strategic merge patch is a map of what changes, such as {"spec": {"replicas": 3}}`)
	}
	out, err := strategicpatch.StrategicMergePatch(doc, patch, of)
	switch {
	case err == nil:
		return out, nil
	case errors.Is(err, mergepatch.ErrBadJSONDoc), errors.Is(err, mergepatch.ErrBadPatchFormatForPrimitiveList),
		errors.Is(err, mergepatch.ErrBadPatchFormatForRetainKeys), errors.Is(err, mergepatch.ErrBadPatchFormatForSetElementOrderList):
		return nil, because(ErrMalformed, "%v", err)
	default:
		return nil, because(ErrInapplicable, "%v", err)
	}
}

// toJSON returns a patch, JSON or YAML, as JSON.
func toJSON(patch []byte) ([]byte, error) {
	if len(patch) > MaxBytes {
		return nil, because(ErrMalformed, "the patch has %d bytes, and may have %d", len(patch), MaxBytes)
	}
	if json.Valid(patch) {
		return patch, nil
	}
	out, err := yaml.YAMLToJSON(patch)
	if err != nil {
		return nil, because(ErrMalformed, "the patch is neither JSON nor YAML: %v", err)
	}
	if len(out) > MaxBytes { // aliases
		return nil, because(ErrMalformed, "the patch has %d bytes as JSON, and may have %d", len(out), MaxBytes)
	}
	return out, nil
}

func isMap(data []byte) bool { return bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{")) }

// patched applies a patch to the text of old and reads what comes out.
func patched(kinds Kinds, old object.Object, apply func([]byte) ([]byte, error)) (object.Object, error) {
	doc, err := object.EncodeJSON(old)
	if err != nil {
		return nil, err
	}
	if doc, err = apply(doc); err != nil {
		return nil, err
	}
	if err := sameKind(old, doc); err != nil {
		return nil, err
	}
	next, err := decode(kinds, doc)
	if err != nil {
		return nil, err
	}
	if err := sameIdentity(old, next); err != nil {
		return nil, err
	}
	return next, nil
}

// decode reads what a patch made. Lines in it mean nothing to anybody.
func decode(kinds Kinds, doc []byte) (object.Object, error) {
	obj, err := kinds.Decode(doc, 0)
	if faults, ok := errors.AsType[object.Faults](err); ok {
		for i := range faults {
			faults[i].Line = 0
		}
		return nil, faults
	}
	return obj, err
}

// sameKind refuses another apiVersion or kind before the rest is read as that.
func sameKind(old object.Object, doc []byte) error {
	r := object.ResourceOf(old)
	is := metav1.TypeMeta{APIVersion: r.APIVersion(), Kind: r.Kind}
	if err := json.Unmarshal(doc, &is); err != nil {
		return nil // decoding says what is wrong
	}
	return changed(old, []change{{"apiVersion", r.APIVersion(), is.APIVersion}, {"kind", r.Kind, is.Kind}})
}

// change is a field that says which object it is, before and after a patch.
type change struct{ field, was, is string }

func changed(old object.Object, changes []change) error {
	var faults object.Faults
	for _, c := range changes {
		if c.was != c.is {
			faults = append(faults, object.Fault{Object: object.Title(old), Field: c.field, Message: fmt.Sprintf("a patch cannot change it from %q to %q: make another object", c.was, c.is)})
		}
	}
	return faults.Err()
}

// sameIdentity refuses changes of what says which object it is. The uid and the
// resourceVersion are preconditions; where they are not given, next gets old's.
func sameIdentity(old, next object.Object) error {
	was, is := object.ResourceOf(old), object.ResourceOf(next)
	if err := changed(old, []change{
		{"apiVersion", was.APIVersion(), is.APIVersion()},
		{"kind", was.Kind, is.Kind},
		{"metadata.name", old.GetName(), next.GetName()},
		{"metadata.namespace", old.GetNamespace(), next.GetNamespace()},
	}); err != nil {
		return err
	}
	return preconditions(old, next)
}

func preconditions(old, next object.Object) error {
	if want, have := next.GetUID(), old.GetUID(); want != "" && want != have {
		return because(ErrPrecondition, "%s has the uid %q, the patch is for %q: it was deleted and made anew; read it again", object.Title(old), have, want)
	}
	if want, have := next.GetResourceVersion(), old.GetResourceVersion(); want != "" && want != have {
		return because(ErrPrecondition, "%s has been changed: it is at resourceVersion %s, the patch is for %s; read it again", object.Title(old), have, want)
	}
	next.SetUID(old.GetUID())
	next.SetResourceVersion(old.GetResourceVersion())
	return nil
}
