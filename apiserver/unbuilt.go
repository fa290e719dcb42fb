package apiserver

import (
	"context"

	"connectrpc.com/connect/v2"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Patch is not there yet.
func (s objectService) Patch(context.Context, *holdfastv1.PatchRequest) (*holdfastv1.PatchResponse, error) {
	return nil, connect.NewError(connect.CodeUnimplemented, "not supported yet")
}

// DeleteCollection is not there yet.
func (s objectService) DeleteCollection(context.Context, *holdfastv1.DeleteCollectionRequest) (*holdfastv1.DeleteCollectionResponse, error) {
	return nil, connect.NewError(connect.CodeUnimplemented, "not supported yet")
}

// Evict is not there yet.
func (s objectService) Evict(context.Context, *holdfastv1.EvictRequest) (*holdfastv1.EvictResponse, error) {
	return nil, connect.NewError(connect.CodeUnimplemented, "not supported yet")
}

// Kinds is not there yet.
func (s objectService) Kinds(context.Context, *holdfastv1.KindsRequest) (*holdfastv1.KindsResponse, error) {
	return nil, connect.NewError(connect.CodeUnimplemented, "not supported yet")
}

// Schema is not there yet.
func (s objectService) Schema(context.Context, *holdfastv1.SchemaRequest) (*holdfastv1.SchemaResponse, error) {
	return nil, connect.NewError(connect.CodeUnimplemented, "not supported yet")
}
