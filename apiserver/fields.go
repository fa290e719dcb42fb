package apiserver

import (
	"context"
	"errors"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// managerOf names the manager of the fields that a call sets: the one it names,
// or its caller.
func managerOf(ctx context.Context, named string) string {
	if named != "" {
		return named
	}
	return actor(ctx)
}

// track notes in next who owns the fields that it has not from was, which is nil
// for a new object.
func (p *plan) track(next, was object.Object, operation, sub string) error {
	next.SetManagedFields(nil)
	return nil
}

// patched returns old with a patch applied, decoded as strictly as a manifest. old
// is not changed.
func (p *plan) patched(old object.Object, form holdfastv1.PatchType, patch []byte) (object.Object, error) {
	before, err := object.EncodeJSON(old)
	if err != nil {
		return nil, err
	}
	after, err := patchJSON(before, form, patch, old)
	if err != nil {
		return nil, err
	}
	next, err := p.kinds.Decode(after, 0)
	if faults, ok := errors.AsType[object.Faults](err); ok {
		return nil, invalid(faults)
	}
	return next, err
}

// patchJSON returns an object with a patch applied. of is of the object's type.
func patchJSON(before []byte, form holdfastv1.PatchType, patch []byte, of any) (after []byte, err error) {
	if patch, err = manifestJSON(patch); err != nil {
		return nil, err
	}
	switch form {
	case holdfastv1.PatchType_PATCH_TYPE_JSON:
		var decoded jsonpatch.Patch
		if decoded, err = jsonpatch.DecodePatch(patch); err == nil {
			after, err = decoded.Apply(before)
		}
	case holdfastv1.PatchType_PATCH_TYPE_MERGE:
		after, err = jsonpatch.MergePatch(before, patch)
	case holdfastv1.PatchType_PATCH_TYPE_STRATEGIC:
		after, err = strategicpatch.StrategicMergePatch(before, patch, of)
	default:
		return nil, badRequest("type", "%d is not a form of patch that this peer knows; use JSON, merge, strategic or apply", form)
	}
	if err != nil {
		return nil, badRequest("patch", "cannot be applied: %v", err)
	}
	return after, nil
}

// manifestJSON returns a patch, JSON or YAML, as JSON.
func manifestJSON(patch []byte) ([]byte, error) {
	data, err := yaml.YAMLToJSON(patch)
	if err != nil {
		return nil, badRequest("patch", "is neither JSON nor YAML: %v", err)
	}
	return data, nil
}
