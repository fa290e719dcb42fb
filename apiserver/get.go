package apiserver

import (
	"context"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Get returns one object. NotFound is as fresh as the read options ask for.
func (s objectService) Get(ctx context.Context, req *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error) {
	r, namespace, err := s.target(ctx, req.GetKind(), req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	sub := req.GetSubresource()
	switch {
	case sub == statusSubresource && !r.Status, sub == scaleSubresource && !r.Scale:
		return nil, badRequest("subresource", "a %s has no %s", r.Kind, sub)
	case sub != "" && sub != statusSubresource && sub != scaleSubresource && !podPart(r, sub):
		return nil, badRequest("subresource", "%q cannot be read", sub)
	}
	if err := presentOnly(ctx, req.GetRead()); err != nil {
		return nil, err
	}
	if r.Kind == eventKind {
		return s.getEvent(r, namespace, req)
	}
	read, err := s.read(ctx, req.GetRead())
	if err != nil {
		return nil, err
	}
	if err := s.confine(ctx, attributes("get", r, sub, namespace, req.GetName())).check(read.view); err != nil {
		return nil, err
	}
	kv, ok := read.view.Get(string(r.Key(namespace, req.GetName())))
	if !ok {
		return nil, notFound(r, namespace, req.GetName())
	}
	resp := &holdfastv1.GetResponse{Answer: s.answer(read)}
	if sub == scaleSubresource {
		obj, err := s.catalog(read.view).Decode(kv.Value, kv.Mod)
		if err != nil {
			return nil, err
		}
		resp.Object, err = encodeScale(obj, req.GetEncoding())
		return resp, err
	}
	resp.Object, err = s.encodeStored(r, kv, read.view, req.GetEncoding())
	return resp, err
}
