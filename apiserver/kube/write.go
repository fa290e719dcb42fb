package kube

import (
	"mime"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// manager is who writes, for the object's managed fields: as the client says, or
// the program that it is, as Kubernetes has it.
func (c *call) manager() string {
	if c.query.fieldManager != "" {
		return c.query.fieldManager
	}
	program, _, _ := strings.Cut(c.r.UserAgent(), "/")
	program = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, program)
	return program[:min(len(program), maxFieldManager)]
}

func (c *call) create() error {
	obj, err := c.readObject()
	if err != nil {
		return err
	}
	resp, err := c.cfg.Objects.Create(c.r.Context(), &holdfastv1.CreateRequest{Object: obj, DryRun: c.query.dryRun, FieldManager: c.manager()})
	if err != nil {
		return c.failedAs(err, obj)
	}
	c.answered(resp.GetAnswer())
	return c.object(http.StatusCreated, resp.GetObject())
}

// failedAs is failed for a write whose URL does not name the object.
func (c *call) failedAs(err error, obj *holdfastv1.Object) error {
	if c.at.name == "" {
		if typed, decodeErr := c.catalog.Decode(obj.GetData(), 0); decodeErr == nil {
			c.at.name = typed.GetName()
		}
	}
	return c.failed(err)
}

// update replaces an object, or its subresource.
func (c *call) update(subresource string) error {
	obj, err := c.readObject()
	if err != nil {
		return err
	}
	resp, err := c.cfg.Objects.Update(c.r.Context(), &holdfastv1.UpdateRequest{
		Object: obj, DryRun: c.query.dryRun, Subresource: subresource, FieldManager: c.manager(), Kind: c.kind(),
	})
	if err != nil {
		return c.failed(err)
	}
	c.answered(resp.GetAnswer())
	return c.object(http.StatusOK, resp.GetObject())
}

// patchTypes are the forms of a patch by their media types.
var patchTypes = map[string]holdfastv1.PatchType{
	string(types.JSONPatchType):           holdfastv1.PatchType_PATCH_TYPE_JSON,
	string(types.MergePatchType):          holdfastv1.PatchType_PATCH_TYPE_MERGE,
	string(types.StrategicMergePatchType): holdfastv1.PatchType_PATCH_TYPE_STRATEGIC,
	string(types.ApplyYAMLPatchType):      holdfastv1.PatchType_PATCH_TYPE_APPLY,
}

// patch changes an object, or its subresource, by a patch.
func (c *call) patch(subresource string) error {
	typ, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	form, known := patchTypes[typ]
	if err != nil || !known || (form == holdfastv1.PatchType_PATCH_TYPE_STRATEGIC && c.resource.Custom) {
		want := []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.ApplyYAMLPatchType)}
		if !c.resource.Custom {
			want = append(want, string(types.StrategicMergePatchType))
		}
		return unsupportedMediaType(c.r.Header.Get("Content-Type"), want...)
	}
	data, _, err := c.readBody()
	if err != nil {
		return err
	}
	apply := form == holdfastv1.PatchType_PATCH_TYPE_APPLY
	switch {
	case apply && c.query.fieldManager == "":
		return apierrors.NewBadRequest("fieldManager is required for apply patch")
	case !apply && c.r.URL.Query().Has("force"):
		return apierrors.NewBadRequest("force is forbidden for patches other than apply")
	}
	if apply {
		if data, err = yaml.YAMLToJSON(data); err != nil {
			return apierrors.NewBadRequest("the body cannot be read: " + err.Error())
		}
	}
	if subresource != "scale" {
		validate := c.validateFields
		if form == holdfastv1.PatchType_PATCH_TYPE_JSON {
			validate = c.validateOperations
		}
		if data, err = validate(data); err != nil {
			return err
		}
	}
	manager := c.query.fieldManager
	if !apply {
		manager = c.manager()
	}
	resp, err := c.cfg.Objects.Patch(c.r.Context(), &holdfastv1.PatchRequest{
		Kind: c.kind(), Namespace: c.at.namespace, Name: c.at.name, Subresource: subresource,
		Type: form, Patch: data, FieldManager: manager, Force: c.query.force, DryRun: c.query.dryRun, Encoding: c.wants(),
	})
	if err != nil {
		return c.failed(err)
	}
	c.answered(resp.GetAnswer())
	code := http.StatusOK
	if resp.GetCreated() {
		code = http.StatusCreated
	}
	return c.object(code, resp.GetObject())
}
