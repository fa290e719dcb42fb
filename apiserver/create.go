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
	if faults := in.validate(); len(faults) > 0 {
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
		made, err = p.create(in, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	out, err := p.out(made, revision, req.GetObject().GetEncoding())
	if err != nil {
		return nil, err
	}
	return &holdfastv1.CreateResponse{Object: out, Answer: p.answerTo(revision)}, nil
}

// create adds in, whose name is free, and which is stamped and valid. It is not
// changed.
func (p *plan) create(in decoded, index int) (written, error) {
	obj := in.obj.DeepCopyObject().(object.Object)
	p.admit(obj, nil, index)
	object.Stamp(obj)
	if err := p.track(obj, nil, "create", ""); err != nil {
		return written{}, err
	}
	return p.add(obj)
}
