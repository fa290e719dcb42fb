package apiserver

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// The subresources that are served here.
const (
	statusSubresource = "status"
	scaleSubresource  = "scale"
)

// podPart reports whether sub is a part of pods that is changed by itself.
func podPart(r object.Resource, sub string) bool {
	return r.Group == "" && r.Kind == "Pod" && object.PodSubresource(sub)
}

// Update replaces an object but for its status and what the system owns. It
// changes nothing, and succeeds, when there is no difference.
func (s objectService) Update(ctx context.Context, req *holdfastv1.UpdateRequest) (*holdfastv1.UpdateResponse, error) {
	if req.GetSubresource() == scaleSubresource {
		return s.updateScale(ctx, req)
	}
	in, faults, err := s.decodeObject(ctx, "update", req.GetSubresource(), req.GetObject(), 0)
	if err != nil {
		return nil, err
	}
	if len(faults) > 0 {
		return nil, invalid(faults)
	}
	verb := "update"
	switch sub := req.GetSubresource(); {
	case in.resource.Kind == eventKind:
		return nil, eventsAreRecorded()
	case sub == statusSubresource && !in.resource.Status:
		return nil, badRequest("object", "a %s has no status", in.resource.Kind)
	case sub == statusSubresource:
		verb = "update the status of"
	case podPart(in.resource, sub):
		verb = "update the " + sub + " of"
	case sub != "":
		return nil, badRequest("subresource", "%q cannot be updated", sub)
	}
	if in.obj.GetName() == "" {
		return nil, badRequest("metadata.name", "is empty: say which %s", in.resource.Kind)
	}
	w := writing{what: verb + " " + object.Title(in.obj), reason: verb, manager: managerOf(ctx, req.GetFieldManager()), dryRun: req.GetDryRun()}
	var made written
	revision, p, err := s.commit(ctx, w, func(p *plan) error {
		was, err := p.load(in.resource, in.obj.GetNamespace(), in.obj.GetName())
		if err != nil {
			return err
		}
		if err := in.precondition(was.obj, was.mod); err != nil {
			return err
		}
		made, err = p.replace(in.obj, was, 0, req.GetSubresource(), in.revision > 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	out, err := p.out(made, revision, req.GetObject().GetEncoding())
	if err != nil {
		return nil, err
	}
	return &holdfastv1.UpdateResponse{Object: out, Answer: p.answerTo(revision)}, nil
}

// replace puts wish in the place of was: but for its status and what the system
// owns, or, for the subresource status, the status alone. exact says that the
// caller has seen was, so it means what it says about finalizers and owners. wish
// is not changed.
func (p *plan) replace(wish object.Object, was stored, index int, sub string, exact bool) (written, error) {
	next := wish.DeepCopyObject().(object.Object)
	switch sub {
	case statusSubresource:
		next = was.obj.DeepCopyObject().(object.Object)
		copyStatus(next, wish)
		next.SetManagedFields(wish.GetManagedFields())
	case object.ResizeSubresource, object.EphemeralSubresource:
		pod := object.WithPodPart(was.obj.(*corev1.Pod), wish.(*corev1.Pod), sub)
		object.Default(pod)
		pod.Status = *was.obj.(*corev1.Pod).Status.DeepCopy()
		setGeneration(pod, was.obj)
		p.blame(object.Validate(pod), index)
		pod.SetManagedFields(wish.GetManagedFields())
		next = pod
	default:
		if svc, ok := next.(*corev1.Service); ok {
			object.KeepServiceClaims(svc, was.obj.(*corev1.Service))
		}
		object.Default(next)
		updated(next, was.obj, exact)
		p.blame(object.Validate(next), index)
	}
	if next.GetManagedFields() == nil {
		next.SetManagedFields(was.obj.GetManagedFields())
	}
	if sameObject(next, was.obj) { // that somebody wants what there is does not make it his
		return written{obj: was.obj}, nil
	}
	if err := p.track(next, was.obj, sub); err != nil {
		return written{}, err
	}
	return p.succeed(next, was, index, sub)
}

// succeed puts next, which has all that the system owns, and whose fields have their
// owners, in the place of was.
func (p *plan) succeed(next object.Object, was stored, index int, sub string) (written, error) {
	if err := p.judge(next, was.obj, sub); err != nil {
		return written{}, err
	}
	if sub != statusSubresource && !object.Deleting(was.obj) {
		if err := p.admit(next, was.obj, index); err != nil {
			return written{}, err
		}
	}
	if object.PodSubresource(sub) {
		if sub == object.ResizeSubresource {
			p.limit(next, index)
		}
		p.blame(object.ValidatePodPart(next.(*corev1.Pod), was.obj.(*corev1.Pod), sub), index)
	} else {
		p.blame(object.ValidateUpdate(next, was.obj), index)
	}
	if sameObject(next, was.obj) {
		return written{obj: was.obj}, nil
	}
	if object.Finished(next) {
		p.change.remove(was.key, was.mod)
		return written{obj: next, changed: true}, nil
	}
	data, err := p.put(next, was.mod)
	return written{obj: next, data: data, changed: true}, err
}
