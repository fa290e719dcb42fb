package client

import (
	"context"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	// listPage is how many objects ListAll asks for at a time: peers refuse a list
	// without a limit that is larger than 64 MiB.
	listPage = 5000
	// listAttempts bounds how often a list begins anew because the revision that it
	// was read at has been compacted meanwhile.
	listAttempts = 3
)

// List returns all objects that req asks for, however many, all as they were at one
// revision: see [ListAll].
func (c *Client) List(ctx context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
	objects := c.Objects()
	return ListAll(ctx, req, func(ctx context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
		return objects.List(ctx, req)
	})
}

// ListAll reads all pages of a list, each by one call of page, and returns them as
// one answer: the objects of all, and the Answer of the first, which says how true
// they are. The limit of req is the size of a page; 0 means one that peers take. A
// list whose revision has been compacted meanwhile begins anew, some times. req is
// not changed.
func ListAll(ctx context.Context, req *holdfastv1.ListRequest, page func(context.Context, *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error)) (*holdfastv1.ListResponse, error) {
	req = proto.CloneOf(req)
	if req.GetLimit() == 0 {
		req.Limit = listPage
	}
	first := req.GetContinue()
	for attempt := 1; ; attempt++ {
		req.Continue = first
		all, err := pages(ctx, req, page)
		compacted := connect.CodeOf(err) == connect.CodeOutOfRange && req.GetContinue() != first
		if err == nil || !compacted || attempt == listAttempts {
			return all, err
		}
	}
}

// pages reads pages from req on, whose continue token it moves along.
func pages(ctx context.Context, req *holdfastv1.ListRequest, page func(context.Context, *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error)) (*holdfastv1.ListResponse, error) {
	var all *holdfastv1.ListResponse
	for {
		got, err := page(ctx, req)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = got
		} else {
			all.Objects = append(all.Objects, got.GetObjects()...)
		}
		if req.Continue = got.GetContinue(); req.Continue == "" {
			all.Continue, all.Remaining = "", 0
			return all, nil
		}
	}
}
