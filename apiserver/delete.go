package apiserver

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// deletion is how an object is to be deleted.
type deletion struct {
	grace       *time.Duration // nil: as the object says
	propagation holdfastv1.Propagation
	uid         string // the object's; empty: any
	revision    int64  // the object's; 0: any
}

// means returns why was is not the object that is to be deleted, nil if it is.
func (d deletion) means(was stored) error {
	switch {
	case d.uid != "" && d.uid != string(was.obj.GetUID()):
		return replacedSince(was.obj, d.uid)
	case d.revision > 0 && d.revision != was.mod:
		return changedSince(was.obj, was.mod, d.revision)
	}
	return nil
}

func newDeletion(grace *durationpb.Duration, propagation holdfastv1.Propagation) (deletion, error) {
	d := deletion{propagation: propagation}
	if grace != nil {
		given := grace.AsDuration()
		if given < 0 {
			return d, badRequest("grace_period", "is %s: it cannot be negative", given)
		}
		d.grace = &given
	}
	if _, known := holdfastv1.Propagation_name[int32(propagation)]; !known {
		return d, badRequest("propagation", "%d is not one that this peer knows; use background, foreground or orphan", propagation)
	}
	return d, nil
}

// Delete begins or ends an object's life, as object.MarkDeleted says. A repeated
// call for a terminating object can bring its end nearer, and writes nothing if
// it does not.
func (s objectService) Delete(ctx context.Context, req *holdfastv1.DeleteRequest) (*holdfastv1.DeleteResponse, error) {
	r, namespace, err := s.target(ctx, req.GetKind(), req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	if r.Kind == eventKind {
		return nil, eventsAreRecorded()
	}
	if err := deletable(r, req.GetName()); err != nil {
		return nil, err
	}
	how, err := newDeletion(req.GetGracePeriod(), req.GetPropagation())
	if err != nil {
		return nil, err
	}
	how.uid, how.revision = req.GetUid(), req.GetRevision()
	w := writing{what: "delete " + r.Kind + " " + joinName(namespace, req.GetName()), reason: "delete", deletes: true, dryRun: req.GetDryRun()}
	var end deleted
	revision, p, err := s.commit(ctx, w, func(p *plan) error {
		was, err := p.load(r, namespace, req.GetName())
		if err != nil {
			return err
		}
		end, err = p.remove(was, how)
		return err
	})
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.DeleteResponse{Gone: end.gone, Answer: p.answerTo(revision)}
	if at := end.obj.GetDeletionTimestamp(); at != nil && !end.gone {
		resp.Deadline = timestamppb.New(at.Time)
	}
	if resp.Object, err = p.outDeleted(end, revision, req.GetEncoding()); err != nil {
		return nil, err
	}
	return resp, nil
}

// deleted is what a plan makes of an object that is to be deleted.
type deleted struct {
	written
	gone bool // the object goes at once; obj is as it was
}

// outDeleted returns what became of an object, as it was if it is gone.
func (p *plan) outDeleted(d deleted, revision int64, encoding holdfastv1.Encoding) (*holdfastv1.Object, error) {
	if d.changed && p.dryRun { // what it would be has no revision, what it is has
		d.changed = false
	}
	return p.out(d.written, revision, encoding)
}

// remove begins or ends an object's life.
func (p *plan) remove(was stored, how deletion) (deleted, error) {
	if err := deletable(object.ResourceOf(was.obj), was.obj.GetName()); err != nil {
		return deleted{}, err
	}
	if err := how.means(was); err != nil {
		return deleted{}, err
	}
	if err := p.judge(nil, was.obj, ""); err != nil {
		return deleted{}, err
	}
	next := was.obj.DeepCopyObject().(object.Object)
	setPropagation(next, how.propagation)
	if object.MarkDeleted(next, p.now, how.grace) {
		if err := p.emptyNamespace(p.view, was.obj); err != nil {
			return deleted{}, err
		}
		p.change.remove(was.key, was.mod)
		return deleted{written{obj: was.obj}, true}, nil
	}
	if sameObject(next, was.obj) {
		return deleted{written: written{obj: was.obj}}, nil
	}
	data, err := p.put(next, was.mod)
	return deleted{written: written{obj: next, data: data, changed: true}}, err
}

// deletable returns FailedPrecondition for what must always be there.
func deletable(r object.Resource, name string) error {
	if r.Group != "" || r.Kind != namespaceResource.Kind || name != corev1.NamespaceDefault {
		return nil
	}
	return withInfo(connect.NewError(connect.CodeFailedPrecondition, "namespace default cannot be deleted: it is where objects without a namespace go"),
		&holdfastv1.ErrorInfo{Reason: "Forbidden"})
}

// setPropagation gives an object the finalizer with which the collector deletes,
// or lets go of, what the object owns, before the object goes; or takes it from it.
// What is gone at once leaves its dependents to the collector, which deletes them.
func setPropagation(obj object.Object, propagation holdfastv1.Propagation) {
	var want string
	switch propagation {
	case holdfastv1.Propagation_PROPAGATION_UNSPECIFIED:
		return // an earlier call's stands
	case holdfastv1.Propagation_PROPAGATION_FOREGROUND:
		want = metav1.FinalizerDeleteDependents
	case holdfastv1.Propagation_PROPAGATION_ORPHAN:
		want = metav1.FinalizerOrphanDependents
	}
	finalizers := slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool {
		return f == metav1.FinalizerDeleteDependents || f == metav1.FinalizerOrphanDependents
	})
	if want != "" {
		finalizers = append(finalizers, want)
	}
	obj.SetFinalizers(finalizers)
}

const (
	// A transaction of DeleteCollection deletes so many objects.
	collectionBatch = 200
)

// DeleteCollection deletes the objects that were there when it began, in
// transactions of some hundred each. Whatever it fails with, some may be deleted;
// a repeated call goes on. An object that goes meanwhile counts for deleted, one
// that changes is deleted as it is now if it is still selected.
func (s objectService) DeleteCollection(ctx context.Context, req *holdfastv1.DeleteCollectionRequest) (*holdfastv1.DeleteCollectionResponse, error) {
	r, err := s.resource(ctx, req.GetKind())
	if err != nil {
		return nil, err
	}
	if err := outsideNamespaces(r, req.GetNamespace()); err != nil {
		return nil, err
	}
	if r.Kind == eventKind {
		return nil, eventsAreRecorded()
	}
	match, err := newMatcher(r, req.GetLabelSelector(), req.GetFieldSelector())
	if err != nil {
		return nil, err
	}
	how, err := newDeletion(req.GetGracePeriod(), req.GetPropagation())
	if err != nil {
		return nil, err
	}
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	var keys []string
	for kv := range view.Prefix(r.Prefix(req.GetNamespace())) {
		keys = append(keys, kv.Key)
	}
	resp := &holdfastv1.DeleteCollectionResponse{Answer: s.answerAt(view.Revision())}
	w := writing{what: "delete " + r.Plural, reason: "deletecollection", deletes: true, dryRun: req.GetDryRun()}
	if req.GetNamespace() != "" {
		w.what += " in namespace " + req.GetNamespace()
	}
	for batch := range slices.Chunk(keys, collectionBatch) {
		var ends []deleted
		revision, p, err := s.commit(ctx, w, func(p *plan) error {
			ends = ends[:0]
			for _, key := range batch {
				kv, ok := p.view.Get(key)
				if !ok {
					continue
				}
				was, err := p.decode(kv, r)
				if err != nil {
					return err
				}
				if !match.matches(was.obj) {
					continue
				}
				if err := deletable(r, was.obj.GetName()); err != nil {
					p.warn("namespace default stays: it cannot be deleted")
					continue
				}
				end, err := p.remove(was, how)
				if err != nil {
					return err
				}
				ends = append(ends, end)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		warnings := append(resp.Answer.GetWarnings(), p.warnings...)
		resp.Answer = p.answerAt(revision)
		resp.Answer.Warnings = warnings
		for _, end := range ends {
			out, err := p.outDeleted(end, revision, req.GetEncoding())
			if err != nil {
				return nil, err
			}
			resp.Objects = append(resp.Objects, out)
		}
	}
	return resp, nil
}
