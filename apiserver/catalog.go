package apiserver

import (
	"context"
	"strings"

	"connectrpc.com/connect/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/object/openapi"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// catalog is the kinds that are served at a revision.
type catalog = *object.Catalog

// catalog returns the kinds that are served at view's revision.
func (s *Server) catalog(view raftstore.View) catalog { return s.catalogs.Of(view) }

// Catalog returns the kinds that are served now, as far as this peer knows.
func (s *Server) Catalog() *object.Catalog { return s.catalog(s.store.View()) }

// resource returns the resource of a request's kind.
func (s *Server) resource(ctx context.Context, kind *holdfastv1.Kind) (object.Resource, error) {
	known, err := s.knowing(ctx, schema.GroupVersionKind{Group: kind.GetGroup(), Version: kind.GetVersion(), Kind: kind.GetKind()})
	if err != nil {
		return object.Resource{}, err
	}
	r, err := known.ForKind(kind.GetGroup(), kind.GetVersion(), kind.GetKind())
	if err != nil {
		return object.Resource{}, badRequest("kind", "%v", err)
	}
	return r, nil
}

// knowing returns a catalog that has a kind if there is such a kind. A definition
// may have come through another peer just now, so who does not know a kind asks;
// one that cannot ask says what it knows.
//
// What is built in is in all catalogs, and no definition can take its place: for that
// there is no need to look for definitions.
func (s *Server) knowing(ctx context.Context, kind schema.GroupVersionKind) (catalog, error) {
	if _, err := object.Builtin().ForKind(kind.Group, kind.Version, kind.Kind); err == nil {
		return object.Builtin(), nil
	}
	known := s.Catalog()
	if _, err := known.ForKind(kind.Group, kind.Version, kind.Kind); err == nil || !strings.Contains(kind.Group, ".") || s.store.CutOff() > 0 {
		return known, nil
	}
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	return s.catalog(view), nil
}

// Kinds lists the kinds that the cluster serves.
func (s objectService) Kinds(ctx context.Context, _ *holdfastv1.KindsRequest) (*holdfastv1.KindsResponse, error) {
	read, err := s.read(ctx, nil)
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.KindsResponse{Answer: s.answer(read)}
	for _, r := range s.catalog(read.view).Versions() {
		out := &holdfastv1.Resource{
			Kind: kindOf(r), Plural: r.Plural, Singular: r.Singular, ShortNames: r.ShortNames,
			Categories: r.Categories, Namespaced: r.Namespaced, Custom: r.Custom,
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
	doc, etag, ok := openapi.DocumentOf(s.Catalog(), req.GetGroup(), req.GetVersion())
	if !ok {
		gv := schema.GroupVersion{Group: req.GetGroup(), Version: req.GetVersion()}
		return nil, connect.Errorf(connect.CodeNotFound, "nothing is served as apiVersion %s", gv)
	}
	return &holdfastv1.SchemaResponse{Document: doc, Etag: etag}, nil
}
