package apiserver

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect/v2"
	"k8s.io/apimachinery/pkg/runtime"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/object/patch"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// What writes mean to the fields of an object and their owners is package patch's:
// this is where it is asked, and its errors become the API's.

// managerOf names the manager of the fields that a call sets: the one it names,
// or its caller.
func managerOf(ctx context.Context, named string) string {
	if named != "" {
		return named
	}
	return actor(ctx)
}

func (p *plan) by(sub string) patch.By {
	return patch.By{Manager: p.manager, Subresource: sub, Now: p.now}
}

// track notes in next who owns the fields that it has not from was, which is nil
// for a new object.
func (p *plan) track(next, was object.Object, sub string) error {
	return fieldError(next, patch.Track(was, next, p.by(sub)))
}

// patched returns old with a patch applied, decoded as strictly as a manifest. old
// is not changed.
func (p *plan) patched(old object.Object, form holdfastv1.PatchType, data []byte) (next object.Object, err error) {
	switch form {
	case holdfastv1.PatchType_PATCH_TYPE_JSON:
		next, err = patch.JSON(p.kinds, old, data)
	case holdfastv1.PatchType_PATCH_TYPE_MERGE:
		next, err = patch.Merge(p.kinds, old, data)
	case holdfastv1.PatchType_PATCH_TYPE_STRATEGIC:
		next, err = patch.Strategic(p.kinds, old, data)
	default:
		return nil, unknownPatch(form)
	}
	return next, fieldError(old, err)
}

// patchedText is patched for the text of what is no kind of its own: a Scale. of is
// of its type.
func patchedText(owner object.Object, text []byte, form holdfastv1.PatchType, data []byte, of any) (out []byte, err error) {
	switch form {
	case holdfastv1.PatchType_PATCH_TYPE_JSON:
		out, err = patch.JSONText(text, data)
	case holdfastv1.PatchType_PATCH_TYPE_MERGE:
		out, err = patch.MergeText(text, data)
	case holdfastv1.PatchType_PATCH_TYPE_STRATEGIC:
		out, err = patch.StrategicText(text, data, of)
	default:
		return nil, unknownPatch(form)
	}
	return out, fieldError(owner, err)
}

func unknownPatch(form holdfastv1.PatchType) error {
	return badRequest("type", "%d is not a form of patch that this peer knows; use JSON, merge, strategic or apply", form)
}

// merged returns old, nil if there is none, with a manifest applied to it, or to its
// subresource sub. What its manager may not have is a conflict of the plan's; then,
// and with faults, next is nil.
func (p *plan) merged(old object.Object, manifest []byte, sub string, force bool, index int) (next object.Object, err error) {
	next, err = patch.Apply(p.kinds, old, manifest, force, p.by(sub))
	return p.conflicting(old, next, err, index)
}

// mergedRead is merged for a manifest that has been read.
func (p *plan) mergedRead(old object.Object, d decoded, sub string, force bool, index int) (object.Object, error) {
	fields, err := d.fields()
	if err != nil {
		return nil, err
	}
	wanted := d.obj.DeepCopyObject().(object.Object) // the plan may be made again
	next, err := patch.ApplyRead(old, wanted, fields, force, p.by(sub))
	return p.conflicting(old, next, err, index)
}

// conflicting notes what keeps an apply from being made; then next is nil.
func (p *plan) conflicting(old, next object.Object, err error, index int) (object.Object, error) {
	if faults, ok := errors.AsType[object.Faults](err); ok {
		p.blame(faults, index)
		return nil, nil
	}
	if conflict, ok := errors.AsType[*patch.ConflictError](err); ok {
		for _, c := range conflict.Conflicts {
			p.conflicts = append(p.conflicts, object.Fault{Object: object.Title(old), Field: c.Field, Message: c.Message, Index: index})
		}
		return nil, nil
	}
	return next, fieldError(old, err)
}

// conflicted is the error about fields that others own.
func conflicted(conflicts object.Faults) error {
	message := "other managers own what this would change"
	for _, c := range conflicts {
		message += fmt.Sprintf("\n%s: %s: %s", c.Object, c.Field, c.Message)
	}
	err := connect.NewError(connect.CodeAborted, message+"\nleave these fields out, agree with their managers, or use force to take them over")
	return withInfo(withFaults(err, conflicts, "FieldManagerConflict"), &holdfastv1.ErrorInfo{Reason: "Conflict"})
}

// fieldError makes an error of package patch one of the API.
func fieldError(obj object.Object, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, patch.ErrPrecondition):
		return connect.Errorf(connect.CodeAborted, "%v", err)
	case errors.Is(err, patch.ErrUnsupported):
		return withInfo(connect.Errorf(connect.CodeInvalidArgument, "%v", err), &holdfastv1.ErrorInfo{Reason: "UnsupportedMediaType"})
	case errors.Is(err, patch.ErrMalformed), errors.Is(err, patch.ErrInapplicable):
		return badRequest("patch", "%v", err)
	}
	if faults, ok := errors.AsType[object.Faults](err); ok {
		return invalid(faults)
	}
	if obj == nil {
		return err
	}
	return fmt.Errorf("fields of %s: %w", object.Title(obj), err)
}

// fields returns what an object of a request says, with the name and the namespace that
// it is meant to have, and nothing that it does not say itself.
func (d decoded) fields() (fields map[string]any, err error) {
	text := utiljson.Unmarshal(d.data, &fields) == nil
	if !text { // protobuf, or YAML
		if fields, err = runtime.DefaultUnstructuredConverter.ToUnstructured(d.obj); err != nil {
			return nil, err
		}
		fields["apiVersion"], fields["kind"] = d.resource.APIVersion(), d.resource.Kind
		if meta, ok := fields["metadata"].(map[string]any); ok && meta["creationTimestamp"] == nil {
			delete(meta, "creationTimestamp")
		}
		if status, ok := fields["status"].(map[string]any); ok && len(status) == 0 {
			delete(fields, "status")
		}
	}
	if text && !d.placed {
		return fields, nil
	}
	meta, ok := fields["metadata"].(map[string]any)
	if !ok {
		meta = make(map[string]any)
		fields["metadata"] = meta
	}
	meta["name"] = d.obj.GetName()
	if d.obj.GetNamespace() != "" {
		meta["namespace"] = d.obj.GetNamespace()
	}
	return fields, nil
}
