package apiserver

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

// Confirm says which of some pods the node is to run, by a linearizable read.
//
// Fails with Unavailable when no quorum answers in time.
func (s agentService) Confirm(ctx context.Context, req *agentv1.ConfirmRequest) (*agentv1.ConfirmResponse, error) {
	node, err := nodeName(ctx)
	if err != nil {
		return nil, err
	}
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.desired.wait(ctx, view.Revision()); err != nil {
		return nil, err
	}
	now := s.desired.snapshot(node)
	resp := &agentv1.ConfirmResponse{Revision: now.revision}
	for _, p := range now.pods {
		if !slices.Contains(req.GetUids(), p.uid) {
			continue
		}
		obj, err := object.Decode(p.data, p.revision)
		if err != nil {
			panic(fmt.Sprintf("apiserver: decode pod %s: %v", p.uid, err)) // it was encoded here
		}
		if !object.Deleting(obj.(*corev1.Pod)) {
			resp.WantedUids = append(resp.WantedUids, p.uid)
		}
	}
	slices.Sort(resp.WantedUids)
	return resp, nil
}
