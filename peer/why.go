package peer

import (
	"strings"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/scheduler"
)

// whyPod is the scheduler's answer about a pod, as the API gives it.
func whyPod(r object.Reader, key object.Key) (*holdfastv1.PodResponse, error) {
	e, err := scheduler.Explain(r, key)
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.PodResponse{
		Summary: e.String(), Node: e.Node, Bound: e.Bound, Nodes: int32(len(e.Nodes)), Remedies: e.Remedies(),
	}
	for _, v := range e.Nodes {
		if len(v.Reasons) == 0 {
			resp.Fitting = append(resp.Fitting, v.Node)
		}
	}
	for _, f := range e.Filters() {
		resp.Obstacles = append(resp.Obstacles, &holdfastv1.Obstacle{Filter: f.Reason.Filter, Reason: f.Reason.String(), Nodes: f.Nodes})
	}
	for _, victim := range e.Victims {
		resp.Victims = append(resp.Victims, strings.TrimPrefix(string(victim), "pods/"))
	}
	return resp, nil
}
