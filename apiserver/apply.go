package apiserver

import (
	"context"
	"fmt"
	"strconv"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// Apply makes the objects what the manifests say, all or none, in one
// transaction. What the manifest says replaces what is there; what the system
// owns stays (see [applied]). Objects that do not differ are not written, so a
// repeated Apply leaves no trace in the log.
//
// All faults of all objects come at once, before anything is written.
func (s objectService) Apply(ctx context.Context, req *holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error) {
	wanted := make([]decoded, 0, len(req.GetObjects()))
	var faults object.Faults
	seen := make(map[object.Key]int)
	for i, in := range req.GetObjects() {
		d, wrong := decodeObject(in, i)
		if len(wrong) > 0 {
			faults = append(faults, wrong...)
			continue
		}
		if wrong := checkManifest(d, seen, i); len(wrong) > 0 {
			faults = append(faults, wrong...)
			continue
		}
		wanted = append(wanted, d)
	}
	if len(faults) > 0 {
		return nil, invalid(faults)
	}
	if len(wanted) == 0 {
		return nil, badRequest("objects", "there are none to apply")
	}

	reason := "apply"
	if req.GetFieldManager() != "" {
		reason += " by " + req.GetFieldManager()
	}
	var plan applyPlan
	revision, err := s.commit(ctx, "apply", reason, func(view raftstore.View) (c change, err error) {
		if plan, err = s.planApply(view, wanted); err != nil {
			return change{}, err
		}
		if req.GetDryRun() {
			return change{}, nil
		}
		return plan.change, nil
	})
	if err != nil {
		return nil, err
	}

	resp := &holdfastv1.ApplyResponse{Answer: s.answerAt(revision)}
	for i, step := range plan.steps {
		if step.action != holdfastv1.ApplyAction_APPLY_ACTION_UNCHANGED && !req.GetDryRun() {
			step.obj.SetResourceVersion(strconv.FormatInt(revision, 10))
		}
		out, err := encodeObject(step.obj, req.GetObjects()[i].GetEncoding())
		if err != nil {
			return nil, err
		}
		resp.Results = append(resp.Results, &holdfastv1.ApplyResult{Action: step.action, Object: out})
	}
	return resp, nil
}

// checkManifest defaults and validates one object of an Apply. seen holds the
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
	if len(faults) > 0 {
		return faults
	}
	object.Default(d.obj)
	faults = object.Validate(d.obj)
	for i := range faults {
		faults[i].Index = index
	}
	return faults
}

// applyPlan is what an Apply comes to on one view.
type applyPlan struct {
	change change
	steps  []applyStep // one for each object, in order
}

type applyStep struct {
	action holdfastv1.ApplyAction
	obj    object.Object // as it will be, or as it is when unchanged
}

// planApply compares the manifests with what view holds. Its error has all faults
// that only the comparison shows: missing namespaces, fields that cannot change.
func (s *Server) planApply(view raftstore.View, wanted []decoded) (applyPlan, error) {
	var plan applyPlan
	var faults object.Faults
	objs := make([]object.Object, len(wanted))
	for i, d := range wanted {
		objs[i] = d.obj
	}
	faults = append(faults, s.needNamespaces(view, &plan.change, objs)...)
	for i, d := range wanted {
		key := string(object.KeyOf(d.obj))
		obj := d.obj.DeepCopyObject().(object.Object)
		kv, ok := view.Get(key)
		if !ok {
			if d.revision > 0 {
				return applyPlan{}, notFound(d.resource, d.obj.GetNamespace(), d.obj.GetName())
			}
			s.stampNew(obj)
			if err := plan.change.put(obj, 0); err != nil {
				return applyPlan{}, err
			}
			plan.steps = append(plan.steps, applyStep{holdfastv1.ApplyAction_APPLY_ACTION_CREATED, obj})
			continue
		}
		old, err := object.Decode(kv.Value, kv.Mod)
		if err != nil {
			return applyPlan{}, fmt.Errorf("stored object %s: %w", key, err)
		}
		if err := d.precondition(old, kv.Mod); err != nil {
			return applyPlan{}, err
		}
		applied(obj, old)
		wrong := object.ValidateUpdate(obj, old)
		for j := range wrong {
			wrong[j].Index = i
		}
		faults = append(faults, wrong...)
		if sameObject(obj, old) {
			plan.steps = append(plan.steps, applyStep{holdfastv1.ApplyAction_APPLY_ACTION_UNCHANGED, old})
			continue
		}
		if err := plan.change.put(obj, kv.Mod); err != nil {
			return applyPlan{}, err
		}
		plan.steps = append(plan.steps, applyStep{holdfastv1.ApplyAction_APPLY_ACTION_CONFIGURED, obj})
	}
	if len(faults) > 0 {
		return applyPlan{}, invalid(faults)
	}
	return plan, nil
}
