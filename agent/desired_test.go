package agent

import (
	"fmt"
	"strings"
	"testing"

	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

// TestTakeRoutes: changes of routes, on top of all of them.
func TestTakeRoutes(t *testing.T) {
	route := func(node, address string) *agentv1.NodeRoute {
		return &agentv1.NodeRoute{Node: node, Address: address, PodCidrs: []string{"10.1.0.0/24"}}
	}
	var d desired
	for i, step := range []struct {
		msg  *agentv1.DesiredResponse
		want string
	}{
		{&agentv1.DesiredResponse{Complete: true, HasRoutes: true, Routes: []*agentv1.NodeRoute{route("a", "1"), route("c", "3")}}, "a=1 c=3"},
		{&agentv1.DesiredResponse{}, "a=1 c=3"},
		{&agentv1.DesiredResponse{ChangedRoutes: []*agentv1.NodeRoute{route("b", "2"), route("c", "4")}}, "a=1 b=2 c=4"},
		{&agentv1.DesiredResponse{RemovedRoutes: []string{"a", "unknown"}, ChangedRoutes: []*agentv1.NodeRoute{route("d", "5")}}, "b=2 c=4 d=5"},
		{&agentv1.DesiredResponse{HasRoutes: true, Routes: []*agentv1.NodeRoute{route("e", "6")}}, "e=6"},
		{&agentv1.DesiredResponse{RemovedRoutes: []string{"e"}}, ""},
	} {
		before := d
		kept := routesText(before)
		step.msg.Revision = int64(i) + 1
		var err error
		if d, err = d.take(step.msg, i == 0, int64(i)); err != nil {
			t.Fatal(err)
		}
		if got := routesText(d); got != step.want {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
		if got := routesText(before); got != kept {
			t.Errorf("step %d changed the state before it: %q, was %q", i, got, kept)
		}
	}
}

func routesText(d desired) string {
	var words []string
	for _, r := range d.routes {
		words = append(words, fmt.Sprintf("%s=%s", r.GetNode(), r.GetAddress()))
	}
	return strings.Join(words, " ")
}
