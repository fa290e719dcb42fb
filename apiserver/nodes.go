package apiserver

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/holdfast-io/holdfast/apiserver/nodeauth"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// Nodes may use the API of objects for what is theirs: package nodeauth says what that
// is. It is asked three times. When a request comes, of what this peer has, so that it
// is refused early. Of the very state that is answered from or written on, since a pod
// may have left the node in between. And of the state at each change that a watch
// tells of.

// graph is what a node is concerned with in view.
func (s *Server) graph(ctx context.Context, view raftstore.View, node string) (nodeauth.Graph, error) {
	// The index knows the pods of a node without a look at all of them. It must not be
	// behind view, or a pod that has just come would be missing; whether those that it
	// names are the node's in view is seen there.
	if err := s.desired.wait(ctx, view.Revision()); err != nil {
		return nodeauth.Graph{}, err
	}
	return nodeauth.Graph{View: view, Node: node, Pods: slices.Values(s.desired.podsOf(node))}, nil
}

// podsOf returns the keys of the node's pods.
func (d *desiredIndex) podsOf(node string) []object.Key {
	d.mu.Lock()
	defer d.mu.Unlock()
	keys := make([]object.Key, 0, len(d.byNode[node]))
	for key := range maps.Keys(d.byNode[node]) {
		keys = append(keys, object.Key(key))
	}
	return keys
}

// woken returns a channel that is closed when something of the node's own changes.
func (d *desiredIndex) woken(node string) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	ch, ok := d.wakes[node]
	if !ok {
		ch = make(chan struct{})
		d.wakes[node] = ch
	}
	return ch
}

// nodeMay returns PermissionDenied if a node may not do what a says, by view.
func (s *Server) nodeMay(ctx context.Context, view raftstore.View, node string, a Attributes) error {
	if a.Path != "" {
		return connect.Errorf(connect.CodePermissionDenied, "node %s may not %s: it is for administrators and for whom a role allows it", node, a)
	}
	g, err := s.graph(ctx, view, node)
	if err != nil {
		return err
	}
	why := g.Refusal(nodeauth.Ask{
		Verb: a.Verb, Group: a.Group, Resource: a.Resource, Subresource: a.Subresource, Namespace: a.Namespace, Name: a.Name, BoundTo: a.boundTo,
	})
	if why == "" {
		return nil
	}
	return connect.Errorf(connect.CodePermissionDenied, "node %s may not %s: %s", node, a, why)
}

// authorizeNode is Authorize for a node. A no is only believed of the newest state: the
// pod that it is about may have come just now.
func (s *Server) authorizeNode(ctx context.Context, node string, a Attributes) error {
	if cut := s.store.CutOff(); cut > rightsCutOff {
		return connect.Errorf(connect.CodeUnavailable,
			"this peer has been cut off from the quorum for %v: whether node %s may still %s cannot be told; ask another peer", cut.Round(time.Second), node, a)
	}
	err := s.nodeMay(ctx, s.store.View(), node, a)
	if connect.CodeOf(err) != connect.CodePermissionDenied || err == nil {
		return err
	}
	view, syncErr := s.sync(ctx)
	if syncErr != nil {
		return err
	}
	return s.nodeMay(ctx, view, node, a)
}

// confinement judges a caller by the state that a request is answered from. Nil: the
// caller is no node.
type confinement func(view raftstore.View) error

func (c confinement) check(view raftstore.View) error {
	if c == nil {
		return nil
	}
	return c(view)
}

// confine returns what the caller of ctx is held against, if it is a node that reads
// what a says.
func (s *Server) confine(ctx context.Context, a Attributes) confinement {
	id, ok := identityFrom(ctx)
	if !ok || id.Role != pki.RoleNode {
		return nil
	}
	return func(view raftstore.View) error { return s.nodeMay(ctx, view, id.Name, a) }
}

// selecting returns a with the one object, or the one node, that a field selector
// demands: a node may list and watch no more. What it cannot read demands nothing here,
// and is refused where it is read.
func (a Attributes) selecting(selector string) Attributes {
	parsed, err := fields.ParseSelector(selector)
	if err != nil {
		return a
	}
	if name, ok := parsed.RequiresExactMatch("metadata.name"); ok && a.Name == "" {
		a.Name = name
	}
	if node, ok := parsed.RequiresExactMatch("spec.nodeName"); ok {
		a.boundTo = node
	}
	return a
}

// presentOnly refuses a node that asks for a state of the past, in which something may
// have been its own that is no more.
func presentOnly(ctx context.Context, read *holdfastv1.ReadOptions) error {
	if id, ok := identityFrom(ctx); ok && id.Role == pki.RoleNode && read.GetAtRevision() > 0 {
		return connect.Errorf(connect.CodePermissionDenied, "node %s may not read at revision %d: a node reads the present", id.Name, read.GetAtRevision())
	}
	return nil
}

// judge holds what the plan makes of an object against what its caller may write, if
// that is a node.
func (p *plan) judge(next, was object.Object, sub string) error {
	if p.node == "" {
		return nil
	}
	p.judged = true
	g := nodeauth.Graph{View: p.view, Node: p.node}
	why := g.MayWrite(next, was, sub)
	if why == "" {
		return nil
	}
	obj := next
	if obj == nil {
		obj = was
	}
	return connect.Errorf(connect.CodePermissionDenied, "node %s may not write %s: %s", p.node, object.Title(obj), why)
}

// ownLabels returns PermissionDenied if an agent says labels of its Node that are not
// its to say. Which nodes serve Ingresses is left out, not refused: agents of the past
// said it.
func ownLabels(node string, labels map[string]string) error {
	var not []string
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		if label != object.IngressNodeLabel && nodeauth.Protected(label) {
			not = append(not, label)
		}
	}
	if len(not) == 0 {
		return nil
	}
	return connect.Errorf(connect.CodePermissionDenied,
		"node %s may not give itself the label %s: labels of that domain are the cluster's, by which pods are kept from nodes or drawn to them; leave it out of --label, and set it as an administrator: holdfast label node %s %s=%s",
		node, strings.Join(not, ", "), node, not[0], labels[not[0]])
}
