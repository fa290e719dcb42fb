package apiserver

import (
	"context"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Create stores a new object and returns it as stored. With generateName the
// server completes the name.
func (s objectService) Create(ctx context.Context, req *holdfastv1.CreateRequest) (*holdfastv1.CreateResponse, error) {
	in, faults, err := s.decodeObject(ctx, "create", "", req.GetObject(), 0)
	if err != nil {
		return nil, err
	}
	if len(faults) > 0 {
		return nil, invalid(faults)
	}
	if in.resource.Kind == eventKind {
		return nil, eventsAreRecorded()
	}
	if in.revision > 0 {
		return nil, badRequest("metadata.resourceVersion", "is set, but the object is to be created: leave it out")
	}
	generate := in.obj.GetName() == "" && in.obj.GetGenerateName() != ""
	if generate {
		nameFrom(in.obj)
	}
	object.Default(in.obj)
	in.obj.SetUID("") // what follows from it is not the caller's to say
	if faults := object.Validate(in.obj); len(faults) > 0 {
		return nil, invalid(faults)
	}
	s.stampNew(in.obj)
	w := writing{what: "create " + object.Title(in.obj), reason: "create", manager: managerOf(ctx, req.GetFieldManager()), dryRun: req.GetDryRun()}
	var made written
	revision, p, err := s.commit(ctx, w, func(p *plan) (err error) {
		for range maxNameAttempts {
			_, taken := p.view.Get(string(object.KeyOf(in.obj)))
			if !taken {
				break
			}
			if !generate {
				return connect.Errorf(connect.CodeAlreadyExists, "%s exists already", object.Title(in.obj))
			}
			nameFrom(in.obj)
		}
		made, err = p.create(in.obj, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	if generate {
		auditingOf(ctx).named(in.obj.GetName())
	}
	out, err := p.out(made, revision, req.GetObject().GetEncoding())
	if err != nil {
		return nil, err
	}
	return &holdfastv1.CreateResponse{Object: out, Answer: p.answerTo(revision)}, nil
}

// create adds wish, whose name is free, and which is stamped and valid. It is not
// changed.
func (p *plan) create(wish object.Object, index int) (written, error) {
	if err := p.judge(wish, nil, ""); err != nil {
		return written{}, err
	}
	obj := wish.DeepCopyObject().(object.Object)
	if err := p.prepare(obj, index); err != nil {
		return written{}, err
	}
	if err := p.track(obj, nil, ""); err != nil {
		return written{}, err
	}
	return p.add(obj)
}

// prepare gives a new object what follows from the cluster, from its name and from
// its uid.
func (p *plan) prepare(obj object.Object, index int) error {
	err := p.admit(obj, nil, index)
	object.Stamp(obj)
	object.Default(obj) // of what has been stamped
	return err
}
