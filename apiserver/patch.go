package apiserver

import (
	"context"
	"strconv"

	"connectrpc.com/connect/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Patch changes an object by a patch against its newest state. A resourceVersion
// or uid in the patch must be the object's.
func (s objectService) Patch(ctx context.Context, req *holdfastv1.PatchRequest) (*holdfastv1.PatchResponse, error) {
	r, namespace, err := s.target(ctx, req.GetKind(), req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	sub := req.GetSubresource()
	switch {
	case r.Kind == eventKind:
		return nil, eventsAreRecorded()
	case sub == statusSubresource && !r.Status, sub == scaleSubresource && !r.Scale:
		return nil, badRequest("subresource", "a %s has no %s", r.Kind, sub)
	case sub != "" && sub != statusSubresource && sub != scaleSubresource && !podPart(r, sub):
		return nil, badRequest("subresource", "%q cannot be patched", sub)
	case len(req.GetPatch()) == 0:
		return nil, badRequest("patch", "is empty")
	}
	if req.GetType() == holdfastv1.PatchType_PATCH_TYPE_APPLY {
		return s.patchApply(ctx, req, r, namespace)
	}
	title := r.Kind + " " + joinName(namespace, req.GetName())
	w := writing{what: "patch " + title, reason: "patch", manager: managerOf(ctx, req.GetFieldManager()), dryRun: req.GetDryRun()}
	var made written
	revision, p, err := s.commit(ctx, w, func(p *plan) error {
		was, err := p.load(r, namespace, req.GetName())
		if err != nil {
			return err
		}
		if sub == scaleSubresource {
			made, err = p.patchScale(was, req)
			return err
		}
		next, err := p.patched(was.obj, req.GetType(), req.GetPatch())
		if err != nil {
			return err
		}
		made, err = p.replace(next, was, 0, sub, true)
		return err
	})
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.PatchResponse{Answer: p.answerTo(revision)}
	if resp.Object, err = p.outAs(made, revision, req.GetEncoding(), sub); err != nil {
		return nil, err
	}
	return resp, nil
}

// sameVersion returns an error if next, a caller's wish for was, names another
// resourceVersion or uid.
func sameVersion(next metav1.Object, was stored) error {
	if rv := next.GetResourceVersion(); rv != "" && rv != was.obj.GetResourceVersion() {
		named, err := strconv.ParseInt(rv, 10, 64)
		if err != nil {
			return badRequest("metadata.resourceVersion", "is %q: want the resourceVersion that was read, or none", rv)
		}
		return changedSince(was.obj, was.mod, named)
	}
	if uid := next.GetUID(); uid != "" && uid != was.obj.GetUID() {
		return replacedSince(was.obj, string(uid))
	}
	return nil
}

// changedSince is the error of a caller who has read obj at an older revision.
func changedSince(obj object.Object, revision, read int64) error {
	return connect.Errorf(connect.CodeAborted, "%s has changed: its resourceVersion is %d, not %d; read it again, then retry",
		object.Title(obj), revision, read)
}

// replacedSince is the error of a caller who means another object of obj's name.
func replacedSince(obj object.Object, uid string) error {
	return connect.Errorf(connect.CodeAborted, "%s has uid %s, not %s: it was replaced by another of the same name",
		object.Title(obj), obj.GetUID(), uid)
}
