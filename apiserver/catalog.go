package apiserver

import (
	"context"

	"connectrpc.com/connect/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/object/openapi"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// catalog is the kinds that are served at a revision.
type catalog struct{}

func (catalog) Resources() []object.Resource { return object.Resources() }

func (catalog) ForKind(group, version, kind string) (object.Resource, error) {
	return object.ResourceForKind(group, version, kind)
}

func (catalog) Decode(data []byte, revision int64) (object.Object, error) {
	return object.Decode(data, revision)
}

// catalog returns the kinds that are served at view's revision.
func (s *Server) catalog(raftstore.View) catalog { return catalog{} }

// resource returns the resource of a request's kind.
func (s *Server) resource(ctx context.Context, kind *holdfastv1.Kind) (object.Resource, error) {
	r, err := s.catalog(s.store.View()).ForKind(kind.GetGroup(), kind.GetVersion(), kind.GetKind())
	if err != nil {
		return object.Resource{}, badRequest("kind", "%v", err)
	}
	return r, nil
}

// Kinds lists the kinds that the cluster serves.
func (s objectService) Kinds(ctx context.Context, _ *holdfastv1.KindsRequest) (*holdfastv1.KindsResponse, error) {
	read, err := s.read(ctx, nil)
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.KindsResponse{Answer: s.answer(read)}
	for _, r := range s.catalog(read.view).Resources() {
		out := &holdfastv1.Resource{
			Kind: kindOf(r), Plural: r.Plural, Singular: r.Singular, ShortNames: r.ShortNames,
			Categories: r.Categories, Namespaced: r.Namespaced,
		}
		if r.Status {
			out.Subresources = append(out.Subresources, statusSubresource)
		}
		if r.Scale {
			out.Subresources = append(out.Subresources, scaleSubresource)
		}
		if r.Group == "" && r.Kind == "Pod" {
			out.Subresources = append(out.Subresources, "eviction")
		}
		resp.Resources = append(resp.Resources, out)
	}
	return resp, nil
}

// Schema returns the OpenAPI v3 document of a group and version.
func (s objectService) Schema(_ context.Context, req *holdfastv1.SchemaRequest) (*holdfastv1.SchemaResponse, error) {
	doc, etag, ok := openapi.Document(req.GetGroup(), req.GetVersion())
	if !ok {
		gv := schema.GroupVersion{Group: req.GetGroup(), Version: req.GetVersion()}
		return nil, connect.Errorf(connect.CodeNotFound, "nothing is served as apiVersion %s", gv)
	}
	return &holdfastv1.SchemaResponse{Document: doc, Etag: etag}, nil
}
