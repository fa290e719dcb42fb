package apiserver

import (
	"context"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// whyService implements holdfastv1connect.WhyServiceHandler.
type whyService struct{ *Server }

// Pod says why a pod is where it is, or nowhere. It reads all nodes and pods.
func (s whyService) Pod(ctx context.Context, req *holdfastv1.PodRequest) (*holdfastv1.PodResponse, error) {
	if s.cfg.WhyPod == nil {
		return nil, connect.NewError(connect.CodeUnimplemented, "this peer has no scheduler to ask")
	}
	_, namespace, err := s.target(ctx, kindOf(podResource), req.GetNamespace(), req.GetName())
	if err != nil {
		return nil, err
	}
	if err := s.Authorize(ctx, attributes("get", podResource, "", namespace, req.GetName())); err != nil {
		return nil, err
	}
	read, err := s.read(ctx, req.GetRead())
	if err != nil {
		return nil, err
	}
	key := podResource.Key(namespace, req.GetName())
	if _, ok := read.view.Get(string(key)); !ok {
		return nil, notFound(podResource, namespace, req.GetName())
	}
	resp, err := s.cfg.WhyPod(object.Reader(read.view), key)
	if err != nil {
		return nil, err
	}
	resp.Answer = s.answer(read)
	return resp, nil
}
