package apiserver

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// maxAttempts bounds how often a write is planned anew after a conflict.
	maxAttempts = 10
	// maxNameAttempts bounds how often a generated name that is taken is replaced.
	maxNameAttempts = 8
)

// change is what a write wants: operations under conditions. Without operations
// there is nothing to do, and nothing is written.
type change struct {
	conditions []raftstore.Compare
	ops        []raftstore.Op
}

// put writes obj under its key, as a change of what stands there at revision, 0
// if nothing may.
func (c *change) put(obj object.Object, revision int64) error {
	key := string(object.KeyOf(obj))
	data, err := object.Encode(obj)
	if err != nil {
		return err
	}
	c.unchanged(key, revision)
	c.ops = append(c.ops, raftstore.Put(key, data))
	return nil
}

// remove deletes what stands under key at revision.
func (c *change) remove(key string, revision int64) {
	c.unchanged(key, revision)
	c.ops = append(c.ops, raftstore.Delete(key))
}

func (c *change) unchanged(key string, revision int64) {
	if revision == 0 {
		c.conditions = append(c.conditions, raftstore.Absent(key))
		return
	}
	c.conditions = append(c.conditions, raftstore.ModIs(key, revision))
}

// commit calls plan with a linearizable view and commits what it wants, from
// the start again after each conflict. A plan that must not be repeated on newer
// state, because the caller named the state, fails by itself. The revision
// returned is the change's own, or the view's when there was nothing to do.
func (s *Server) commit(ctx context.Context, what, reason string, plan func(view raftstore.View) (change, error)) (revision int64, err error) {
	for range maxAttempts {
		view, err := s.sync(ctx)
		if err != nil {
			return 0, err
		}
		c, err := plan(view)
		if err != nil {
			return 0, err
		}
		if len(c.ops) == 0 {
			return view.Revision(), nil
		}
		result, err := s.store.Txn(ctx, raftstore.Txn{If: c.conditions, Then: c.ops, Actor: actor(ctx), Reason: reason})
		if err == nil {
			return result.Revision, nil
		}
		if !errors.Is(err, raftstore.ErrConflict) {
			return 0, storeError(what, err)
		}
	}
	return 0, connect.Errorf(connect.CodeAborted, "%s: it changed %d times while this was tried; retry", what, maxAttempts)
}

// Create stores a new object and returns it as stored. With generateName the
// server completes the name.
func (s objectService) Create(ctx context.Context, req *holdfastv1.CreateRequest) (*holdfastv1.CreateResponse, error) {
	in, faults := decodeObject(req.GetObject(), 0)
	if len(faults) > 0 {
		return nil, invalid(faults)
	}
	if in.resource.Kind == eventKind {
		return nil, eventsAreRecorded()
	}
	obj := in.obj
	generate := obj.GetName() == "" && obj.GetGenerateName() != ""
	if generate {
		nameFrom(obj)
	}
	object.Default(obj)
	if faults := object.Validate(obj); len(faults) > 0 {
		return nil, invalid(faults)
	}
	s.stampNew(obj)
	what := "create " + object.Title(obj)
	revision, err := s.commit(ctx, what, "create", func(view raftstore.View) (change, error) {
		var c change
		for range maxNameAttempts {
			_, taken := view.Get(string(object.KeyOf(obj)))
			if !taken {
				break
			}
			if !generate {
				return change{}, connect.Errorf(connect.CodeAlreadyExists, "%s exists already", object.Title(obj))
			}
			nameFrom(obj)
		}
		if faults := s.needNamespaces(view, &c, []object.Object{obj}); len(faults) > 0 {
			return change{}, invalid(faults)
		}
		if err := c.put(obj, 0); err != nil {
			return change{}, err
		}
		if req.GetDryRun() {
			return change{}, nil
		}
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	out, err := stored(obj, revision, req.GetDryRun(), req.GetObject())
	if err != nil {
		return nil, err
	}
	return &holdfastv1.CreateResponse{Object: out, Answer: s.answerAt(revision)}, nil
}

// Update replaces an object but for its status and what the system owns. It
// changes nothing, and succeeds, when there is no difference.
func (s objectService) Update(ctx context.Context, req *holdfastv1.UpdateRequest) (*holdfastv1.UpdateResponse, error) {
	in, faults := decodeObject(req.GetObject(), 0)
	if len(faults) > 0 {
		return nil, invalid(faults)
	}
	switch req.GetSubresource() {
	case "":
	case "status":
		return s.updateStatus(ctx, in, req)
	default:
		return nil, badRequest("subresource", "%q cannot be updated", req.GetSubresource())
	}
	object.Default(in.obj)
	if faults := object.Validate(in.obj); len(faults) > 0 {
		return nil, invalid(faults)
	}
	obj, revision, err := s.replace(ctx, "update", in, req.GetDryRun(), func(old object.Object) (object.Object, error) {
		obj := in.obj.DeepCopyObject().(object.Object)
		updated(obj, old, in.revision > 0)
		if faults := object.ValidateUpdate(obj, old); len(faults) > 0 {
			return nil, invalid(faults)
		}
		return obj, nil
	})
	if err != nil {
		return nil, err
	}
	out, err := stored(obj, revision, req.GetDryRun(), req.GetObject())
	if err != nil {
		return nil, err
	}
	return &holdfastv1.UpdateResponse{Object: out, Answer: s.answerAt(revision)}, nil
}

// updateStatus is Update for the subresource status.
func (s objectService) updateStatus(ctx context.Context, in decoded, req *holdfastv1.UpdateRequest) (*holdfastv1.UpdateResponse, error) {
	if !hasField(in.obj, "Status") {
		return nil, badRequest("object", "a %s has no status", in.resource.Kind)
	}
	obj, revision, err := s.replace(ctx, "update the status of", in, req.GetDryRun(), func(old object.Object) (object.Object, error) {
		obj := old.DeepCopyObject().(object.Object)
		copyField(obj, in.obj, "Status")
		if faults := object.ValidateUpdate(obj, old); len(faults) > 0 {
			return nil, invalid(faults)
		}
		return obj, nil
	})
	if err != nil {
		return nil, err
	}
	out, err := stored(obj, revision, req.GetDryRun(), req.GetObject())
	if err != nil {
		return nil, err
	}
	return &holdfastv1.UpdateResponse{Object: out, Answer: s.answerAt(revision)}, nil
}

// replace stores what makeNew returns in place of the object that in names, and
// returns it with the revision at which it last changed as its resourceVersion.
func (s objectService) replace(ctx context.Context, verb string, in decoded, dryRun bool, makeNew func(old object.Object) (object.Object, error)) (obj object.Object, revision int64, err error) {
	if in.resource.Kind == eventKind {
		return nil, 0, eventsAreRecorded()
	}
	if in.obj.GetName() == "" {
		return nil, 0, badRequest("metadata.name", "is empty: say which %s", in.resource.Kind)
	}
	key := string(object.KeyOf(in.obj))
	what := verb + " " + object.Title(in.obj)
	var unchanged bool
	revision, err = s.commit(ctx, what, verb, func(view raftstore.View) (change, error) {
		var c change
		kv, ok := view.Get(key)
		if !ok {
			return change{}, notFound(in.resource, in.obj.GetNamespace(), in.obj.GetName())
		}
		old, err := object.Decode(kv.Value, kv.Mod)
		if err != nil {
			return change{}, fmt.Errorf("stored object %s: %w", key, err)
		}
		if err := in.precondition(old, kv.Mod); err != nil {
			return change{}, err
		}
		if obj, err = makeNew(old); err != nil {
			return change{}, err
		}
		if unchanged = sameObject(obj, old); unchanged {
			obj = old
			return change{}, nil
		}
		if finished(obj) {
			c.remove(key, kv.Mod)
		} else if err := c.put(obj, kv.Mod); err != nil {
			return change{}, err
		}
		if dryRun {
			return change{}, nil
		}
		return c, nil
	})
	if err != nil {
		return nil, 0, err
	}
	if !unchanged && !dryRun {
		obj.SetResourceVersion(strconv.FormatInt(revision, 10))
	}
	return obj, revision, nil
}

// Delete begins or ends an object's life, as object.MarkDeleted says. A repeated
// call for a terminating object can bring its end nearer, and writes nothing if
// it does not.
func (s objectService) Delete(ctx context.Context, req *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error) {
	r, err := resourceOf(req.GetKind())
	if err != nil {
		return nil, err
	}
	namespace, err := namespaceFor(r, req.GetNamespace())
	if err != nil {
		return nil, err
	}
	switch {
	case req.GetName() == "":
		return nil, badRequest("name", "is empty: say which %s", r.Kind)
	case r.Kind == eventKind:
		return nil, eventsAreRecorded()
	case r.Kind == "Namespace" && req.GetName() == corev1.NamespaceDefault:
		return nil, connect.NewError(connect.CodeFailedPrecondition, "namespace default cannot be deleted: it is where objects without a namespace go")
	}
	var grace *time.Duration
	if p := req.GetGracePeriod(); p != nil {
		d := p.AsDuration()
		if d < 0 {
			return nil, badRequest("grace_period", "is %s: it cannot be negative", d)
		}
		grace = &d
	}
	key := string(r.Key(namespace, req.GetName()))
	resp := &holdfastv1.DeleteResponse{}
	var obj object.Object
	written := false
	revision, err := s.commit(ctx, "delete "+r.Kind+" "+joinName(namespace, req.GetName()), "delete", func(view raftstore.View) (change, error) {
		var c change
		kv, ok := view.Get(key)
		if !ok {
			return change{}, notFound(r, namespace, req.GetName())
		}
		old, err := object.Decode(kv.Value, kv.Mod)
		if err != nil {
			return change{}, fmt.Errorf("stored object %s: %w", key, err)
		}
		if req.GetUid() != "" && req.GetUid() != string(old.GetUID()) {
			return change{}, connect.Errorf(connect.CodeAborted, "%s has uid %s, not %s: it was replaced by another of the same name",
				object.Title(old), old.GetUID(), req.GetUid())
		}
		obj = old.DeepCopyObject().(object.Object)
		resp.Gone = object.MarkDeleted(obj, s.cfg.Now(), grace)
		if resp.GetGone() {
			if err := s.emptyNamespace(view, old); err != nil {
				return change{}, err
			}
			obj = old
			c.remove(key, kv.Mod)
		} else if written = !sameObject(obj, old); written {
			if err := c.put(obj, kv.Mod); err != nil {
				return change{}, err
			}
		}
		if req.GetDryRun() {
			return change{}, nil
		}
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	if written && !req.GetDryRun() {
		obj.SetResourceVersion(strconv.FormatInt(revision, 10))
	}
	if at := obj.GetDeletionTimestamp(); at != nil && !resp.GetGone() {
		resp.Deadline = timestamppb.New(at.Time)
	}
	if resp.Object, err = encodeObject(obj, holdfastv1.Encoding_ENCODING_PROTOBUF); err != nil {
		return nil, err
	}
	resp.Answer = s.answerAt(revision)
	return resp, nil
}

// stored returns obj, written at revision, in the encoding in which it came.
func stored(obj object.Object, revision int64, dryRun bool, in *holdfastv1.Object) (*holdfastv1.Object, error) {
	if !dryRun && obj.GetResourceVersion() == "" {
		obj.SetResourceVersion(strconv.FormatInt(revision, 10))
	}
	return encodeObject(obj, in.GetEncoding())
}
