package apiserver

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// defaultManager owns what is applied by callers who name no manager.
const defaultManager = "holdfast"

// Apply makes the objects what the manifests say, all or none, in one
// transaction. What the system owns stays (see [applied]). Objects that do not
// differ are not written, so a repeated Apply leaves no trace in the log.
//
// All faults of all objects come at once, before anything is written.
func (s objectService) Apply(ctx context.Context, req *holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
	wanted := make([]decoded, 0, len(req.GetObjects()))
	var faults object.Faults
	seen := make(map[object.Key]int)
	for i, in := range req.GetObjects() {
		d, wrong, err := s.decodeObject(ctx, "patch", "", in, i)
		if err != nil {
			return nil, err
		}
		if len(wrong) == 0 {
			wrong = checkManifest(d, seen, i)
		}
		if len(wrong) > 0 {
			faults = append(faults, wrong...)
			continue
		}
		wanted = append(wanted, d)
	}
	if len(faults) > 0 {
		// With what is wrong with the others, as far as this peer sees.
		p := s.newPlan(s.store.View(), writing{manager: defaultManager})
		if _, err := p.apply(wanted, true); err == nil {
			faults = append(faults, p.faults...)
		}
		slices.SortStableFunc(faults, func(a, b object.Fault) int { return cmp.Compare(a.Index, b.Index) })
		return nil, invalid(faults)
	}
	set, err := newSet(req)
	if err != nil {
		return nil, err
	}
	if len(wanted) == 0 && !(set.named() && req.GetPrune()) {
		return nil, badRequest("objects", "there are none to apply")
	}

	w := writing{what: "apply", manager: req.GetFieldManager(), dryRun: req.GetDryRun()}
	if w.manager == "" {
		w.manager = defaultManager
	}
	w.reason = "apply by " + w.manager
	var steps []applyStep
	revision, p, err := s.commit(ctx, w, func(p *plan) (err error) {
		if steps, err = p.apply(wanted, req.GetForce()); err != nil {
			return err
		}
		if !set.named() {
			return nil
		}
		pruned, err := p.updateSet(ctx, set, steps)
		steps = append(steps, pruned...)
		return err
	})
	if err != nil {
		return nil, err
	}

	resp := &holdfastv1.ApplyResponse{Answer: p.answerTo(revision)}
	for i, step := range steps {
		encoding := holdfastv1.Encoding_ENCODING_PROTOBUF
		if i < len(wanted) {
			encoding = req.GetObjects()[i].GetEncoding()
		}
		result := &holdfastv1.ApplyResult{Action: step.action}
		if result.Object, err = p.out(step.written, revision, encoding); err != nil {
			return nil, err
		}
		if step.before != nil && w.dryRun {
			if result.Before, err = encodeObject(step.before, nil, encoding); err != nil {
				return nil, err
			}
		}
		resp.Results = append(resp.Results, result)
	}
	return resp, nil
}

// checkManifest returns what is wrong with one object of an Apply for what it is.
// Whether it is valid shows when it is merged with what there is. seen holds the
// keys of those before it.
func checkManifest(d decoded, seen map[object.Key]int, index int) object.Faults {
	var faults object.Faults
	add := func(field, format string, args ...any) {
		faults = append(faults, object.Fault{Object: object.Title(d.obj), Field: field, Message: fmt.Sprintf(format, args...), Index: index})
	}
	switch {
	case d.resource.Kind == eventKind:
		add("kind", "Events are recorded by the cluster itself and cannot be applied")
	case d.obj.GetName() == "" && d.obj.GetGenerateName() != "":
		add("metadata.generateName", "cannot be applied, since a repetition would make another object; give it a name, or use create")
	case d.obj.GetName() != "":
		if first, ok := seen[object.KeyOf(d.obj)]; ok {
			add("metadata.name", "the same object is there twice: it is number %d of the request as well", first+1)
		}
		seen[object.KeyOf(d.obj)] = index
	}
	return faults
}

// applyStep is what an apply does to one object.
type applyStep struct {
	written
	action holdfastv1.ApplyAction
	before object.Object // nil: there was none
}

// apply compares the manifests with what the view holds. What only the comparison
// shows (missing namespaces, fields that cannot change, or that another manager
// owns) becomes the plan's faults and conflicts.
func (p *plan) apply(wanted []decoded, force bool) ([]applyStep, error) {
	for _, d := range wanted {
		if name, ok := namespaceOf(d.obj); ok {
			p.willCome(name)
		}
	}
	steps := make([]applyStep, 0, len(wanted))
	for _, d := range wanted {
		step, err := p.applyOne(d, "", d.index, force)
		if err != nil {
			return nil, err
		}
		steps = append(steps, step)
	}
	return steps, nil
}

// willCome says that the transaction itself makes a namespace, or keeps it.
func (p *plan) willCome(namespace string) {
	if p.coming == nil {
		p.coming = make(map[string]bool)
	}
	p.coming[namespace] = true
}

// applyOne applies one manifest, or its part that is the subresource sub.
func (p *plan) applyOne(d decoded, sub string, index int, force bool) (applyStep, error) {
	kv, ok := p.view.Get(string(object.KeyOf(d.obj)))
	if !ok {
		if d.revision > 0 || sub != "" {
			return applyStep{}, notFound(d.resource, d.obj.GetNamespace(), d.obj.GetName())
		}
		if uid := d.obj.GetUID(); uid != "" {
			return applyStep{}, connect.Errorf(connect.CodeAborted, "there is no %s with uid %s: it was deleted; leave the uid out to make a new one", object.Title(d.obj), uid)
		}
		step := applyStep{action: holdfastv1.ApplyAction_APPLY_ACTION_CREATED}
		next, err := p.mergedRead(nil, d, sub, force, index)
		if err != nil || next == nil {
			return step, err
		}
		next.SetUID("")
		p.blame(object.Validate(next), index)
		p.stampNew(next)
		if err := p.prepare(next, index); err != nil {
			return step, err
		}
		if err := p.judge(next, nil, ""); err != nil {
			return applyStep{}, err
		}
		step.written, err = p.add(next)
		return step, err
	}
	was, err := p.decode(kv, d.resource)
	if err != nil {
		return applyStep{}, err
	}
	if err := d.precondition(was.obj, was.mod); err != nil {
		return applyStep{}, err
	}
	step := applyStep{action: holdfastv1.ApplyAction_APPLY_ACTION_CONFIGURED, before: was.obj}
	next, err := p.mergedRead(was.obj, d, sub, force, index)
	if err != nil || next == nil {
		return step, err
	}
	if object.PodSubresource(sub) {
		pod := object.WithPodPart(was.obj.(*corev1.Pod), next.(*corev1.Pod), sub)
		pod.SetManagedFields(next.GetManagedFields())
		object.Default(pod)
		pod.Status = *was.obj.(*corev1.Pod).Status.DeepCopy()
		setGeneration(pod, was.obj)
		p.blame(object.Validate(pod), index)
		next = pod
	}
	if sub == "" {
		if svc, ok := next.(*corev1.Service); ok { // or what it does not choose would look like a change of it
			object.KeepServiceClaims(svc, was.obj.(*corev1.Service))
		}
		keepSystemFields(next, was.obj)
		setGeneration(next, was.obj)
		p.blame(object.Validate(next), index)
	}
	if step.written, err = p.succeed(next, was, index, sub); !step.changed {
		step.action = holdfastv1.ApplyAction_APPLY_ACTION_UNCHANGED
	}
	return step, err
}

// patchApply is Patch for a patch that is a manifest: an Apply of one object, whose
// status alone it may be.
func (s objectService) patchApply(ctx context.Context, req *holdfastv1.PatchRequest, r object.Resource, namespace string) (*holdfastv1.PatchResponse, error) {
	if req.GetFieldManager() == "" {
		return nil, badRequest("field_manager", "is empty: an apply needs the name of who owns the fields")
	}
	if req.GetSubresource() == scaleSubresource {
		return s.applyScale(ctx, req, r, namespace)
	}
	in := &holdfastv1.Object{Kind: req.GetKind(), Namespace: namespace, Name: req.GetName(), Encoding: req.GetEncoding(), Data: req.GetPatch()}
	d, faults, err := s.decodeObject(ctx, "patch", req.GetSubresource(), in, 0)
	if err != nil {
		return nil, err
	}
	if len(faults) == 0 {
		faults = checkManifest(d, map[object.Key]int{}, 0)
	}
	if len(faults) > 0 {
		return nil, invalid(faults)
	}
	w := writing{what: "apply " + object.Title(d.obj), reason: "apply by " + req.GetFieldManager(), manager: req.GetFieldManager(), dryRun: req.GetDryRun()}
	var step applyStep
	revision, p, err := s.commit(ctx, w, func(p *plan) (err error) {
		step, err = p.applyOne(d, req.GetSubresource(), 0, req.GetForce())
		return err
	})
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.PatchResponse{Answer: p.answerTo(revision), Created: step.action == holdfastv1.ApplyAction_APPLY_ACTION_CREATED}
	if resp.Object, err = p.out(step.written, revision, req.GetEncoding()); err != nil {
		return nil, err
	}
	return resp, nil
}
