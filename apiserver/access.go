package apiserver

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-io/holdfast/pki"
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
	wish, err := wishOf(req)
	if err != nil {
		return nil, err
	}
	if err = s.Authorize(ctx, wish); err == nil {
		return &holdfastv1.CanIResponse{Allowed: true}, nil
	}
	if denied, ok := errors.AsType[*connect.Error](err); ok && denied.Code() == connect.CodePermissionDenied {
		return &holdfastv1.CanIResponse{Reason: denied.Message()}, nil
	}
	return nil, err
}

// wishOf is what a question is about.
func wishOf(req *holdfastv1.CanIRequest) (Attributes, error) {
	switch {
	case req.GetVerb() == "":
		return Attributes{}, badRequest("verb", "is empty: say what to do, such as get or create")
	case (req.GetResource() == "") == (req.GetPath() == ""):
		return Attributes{}, badRequest("resource", "give either a resource or a path")
	}
	return Attributes{
		Verb: req.GetVerb(), Group: req.GetGroup(), Resource: req.GetResource(), Subresource: req.GetSubresource(),
		Namespace: req.GetNamespace(), Name: req.GetName(), Path: req.GetPath(),
	}, nil
}

// WhoCan returns who may do something.
func (s accessService) WhoCan(_ context.Context, req *holdfastv1.WhoCanRequest) (*holdfastv1.WhoCanResponse, error) {
	wish, err := wishOf(req.GetWhat())
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.WhoCanResponse{}
	for _, g := range s.Can(wish) {
		resp.Grants = append(resp.Grants, &holdfastv1.WhoCanResponse_Grant{
			Kind: g.Subject.Kind, Name: g.Subject.Name, Namespace: g.Subject.Namespace, Binding: g.Binding, Role: g.Role,
		})
	}
	return resp, nil
}

const (
	// How long a user's certificate is good.
	userLifeDefault = 30 * 24 * time.Hour
	userLifeMin     = 10 * time.Minute
	userLifeMax     = 90 * 24 * time.Hour
)

// IssueCertificate signs a certificate of a user.
func (s accessService) IssueCertificate(_ context.Context, req *holdfastv1.IssueCertificateRequest) (*holdfastv1.IssueCertificateResponse, error) {
	if s.cfg.CA == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, "this peer has no key of the cluster's CA, with which certificates are signed: ask another one")
	}
	life := userLifeDefault
	if req.GetLifetime() != nil {
		life = req.GetLifetime().AsDuration()
	}
	if life < userLifeMin || life > userLifeMax {
		return nil, badRequest("lifetime", "is %v: a certificate is good for %v at least and %v at most", life, userLifeMin, userLifeMax)
	}
	user := pki.User(s.cfg.ClusterID, req.GetName(), req.GetGroups()...)
	if err := user.Check(); err != nil {
		return nil, badRequest("name", "%v", err)
	}
	chain, err := s.cfg.CA.SignUser(req.GetRequest(), user, life)
	if err != nil {
		return nil, badRequest("request", "%v", err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	return &holdfastv1.IssueCertificateResponse{Chain: chain, Expires: timestamppb.New(leaf.NotAfter)}, nil
}
