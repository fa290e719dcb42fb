package apiserver

import (
	"context"
	"errors"

	"connectrpc.com/connect/v2"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// accessService implements holdfastv1connect.AccessServiceHandler. Anybody with a
// certificate of the cluster may ask about itself.
type accessService struct{ *Server }

// WhoAmI returns the caller's identity.
func (s accessService) WhoAmI(ctx context.Context, _ *holdfastv1.WhoAmIRequest) (*holdfastv1.WhoAmIResponse, error) {
	caller, _ := CallerFrom(ctx) // the table admits nobody without one
	return &holdfastv1.WhoAmIResponse{Name: caller.Name, Groups: caller.Groups}, nil
}

// CanI answers as the call itself would.
func (s accessService) CanI(ctx context.Context, req *holdfastv1.CanIRequest) (*holdfastv1.CanIResponse, error) {
	switch {
	case req.GetVerb() == "":
		return nil, badRequest("verb", "is empty: say what to do, such as get or create")
	case (req.GetResource() == "") == (req.GetPath() == ""):
		return nil, badRequest("resource", "give either a resource or a path")
	}
	err := s.Authorize(ctx, Attributes{
		Verb: req.GetVerb(), Group: req.GetGroup(), Resource: req.GetResource(), Subresource: req.GetSubresource(),
		Namespace: req.GetNamespace(), Name: req.GetName(), Path: req.GetPath(),
	})
	if err == nil {
		return &holdfastv1.CanIResponse{Allowed: true}, nil
	}
	if denied, ok := errors.AsType[*connect.Error](err); ok && denied.Code() == connect.CodePermissionDenied {
		return &holdfastv1.CanIResponse{Reason: denied.Message()}, nil
	}
	return nil, err
}
