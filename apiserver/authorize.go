package apiserver

import (
	"cmp"
	"context"
	"strings"

	"connectrpc.com/connect/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Caller is who makes a call, as Kubernetes names him.
type Caller struct {
	Name   string // "alice", "system:node:n1", "system:serviceaccount:default:web"
	UID    string // service accounts only
	Groups []string
	Extra  map[string][]string
}

// CallerFrom returns who makes the call of ctx, false for a caller without a
// certificate or token of this cluster.
func CallerFrom(ctx context.Context) (Caller, bool) {
	if c, ok := ctx.Value(callerKey{}).(Caller); ok {
		return c, true
	}
	id, ok := identityFrom(ctx)
	if !ok {
		return Caller{}, false
	}
	c := Caller{Name: id.Name}
	switch id.Role {
	case pki.RoleAdmin:
		c.Groups = []string{"system:masters"}
	case pki.RoleUser:
		c.Groups = id.GroupList()
	case pki.RoleNode:
		c.Name, c.Groups = "system:node:"+id.Name, []string{"system:nodes"}
	case pki.RolePeer:
		c.Name, c.Groups = "holdfast:peer:"+id.Name, []string{"holdfast:peers"}
	}
	c.Groups = append(c.Groups, "system:authenticated")
	return c, true
}

// Attributes are what is asked for, in the words of Kubernetes' authorization:
// a verb on objects, or a verb on a path.
type Attributes struct {
	Verb string // "get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"
	// Group and Resource are those of the kind: "apps", "deployments".
	Group, Resource string
	Subresource     string // "status", "scale", "eviction"
	Namespace       string // empty: all of them, or outside
	Name            string // empty: not one object
	// Path is set instead of all above but Verb: "/version".
	Path string

	boundTo string // the node that a field selector demands of pods
}

// String writes the attributes as an error shows them.
func (a Attributes) String() string {
	if a.Path != "" {
		return a.Verb + " " + a.Path
	}
	what := a.Resource
	if a.Group != "" {
		what += "." + a.Group
	}
	if a.Subresource != "" {
		what += "/" + a.Subresource
	}
	if a.Name != "" {
		what += " " + a.Name
	}
	if a.Namespace != "" {
		what += " in namespace " + a.Namespace
	}
	return a.Verb + " " + what
}

// discovers reports whether a is to learn what is served: for everybody whom the
// cluster knows, as Kubernetes has it.
func (a Attributes) discovers() bool {
	root, _, _ := strings.Cut(strings.TrimPrefix(a.Path, "/"), "/")
	return a.Verb == "get" && (root == "api" || root == "apis" || root == "openapi" || root == "version")
}

// byRoles reports whether Kubernetes' roles and bindings say what callers of a role of
// our own may do.
func byRoles(role pki.Role) bool { return role == roleServiceAccount || role == pki.RoleUser }

// Authorize returns nil if the caller of ctx may do what a says, PermissionDenied
// or Unauthenticated otherwise, Unavailable if it must be recorded and cannot be. Every
// way to objects asks it: the Connect services and the REST dialect.
func (s *Server) Authorize(ctx context.Context, a Attributes) error {
	return s.saw(ctx, a, s.authorized(ctx, a))
}

func (s *Server) authorized(ctx context.Context, a Attributes) error {
	id, ok := identityFrom(ctx)
	switch {
	case !ok:
		return Stranger(ctx)
	case id.Role == pki.RoleAdmin, a.discovers():
		return nil
	case id.Role == roleServiceAccount && a.issues():
		return nil
	case id.Role == pki.RoleNode:
		return s.authorizeNode(ctx, id.Name, a)
	case !byRoles(id.Role): // they have services of their own
		return connect.Errorf(connect.CodePermissionDenied, "%s %s may not %s: it is for %s", id.Role, id.Name, a, roleNames([]pki.Role{pki.RoleAdmin}))
	}
	caller, _ := CallerFrom(ctx)
	_, remedy, ok, err := s.Allowed(caller, a)
	if err != nil || ok {
		return err
	}
	return connect.Errorf(connect.CodePermissionDenied, "%s may not %s: no role allows it; to allow it: %s", caller.Name, a, remedy)
}

// authorizedStream authorizes each message of a call once it is read.
type authorizedStream struct {
	connect.ServerStream
	check func(msg any) error
}

func (a authorizedStream) Receive(msg any) error {
	if err := a.ServerStream.Receive(msg); err != nil {
		return err
	}
	return a.check(msg)
}

// metricsGroup is the API group of usage.
const metricsGroup = "metrics.k8s.io"

func namespaceOr(namespace string) string { return cmp.Or(namespace, metav1.NamespaceDefault) }

func getOrList(name string) string {
	if name != "" {
		return "get"
	}
	return "list"
}

// authorizeMessage holds a request of those that perMessage names against the caller's rights.
// Requests that carry objects say what they are about inside of these: for them
// decodeObject asks. Other services are for roles as a whole, see table.
func (s *Server) authorizeMessage(ctx context.Context, msg any) error {
	selected := func(verb string, kind *holdfastv1.Kind, sub, namespace, name, selector string) error {
		r, err := s.resource(ctx, kind)
		if err != nil {
			return err
		}
		a := attributes(verb, r, sub, namespace, name)
		if selector != "" {
			a = a.selecting(selector)
		}
		return s.Authorize(ctx, a)
	}
	one := func(verb string, kind *holdfastv1.Kind, sub, namespace, name string) error {
		return selected(verb, kind, sub, namespace, name, "")
	}
	// Only the first message of a stream says which pod it is about, and only the first
	// may: handlers refuse another.
	stream := func(sub string, first bool, namespace, pod string) error {
		if !first {
			return nil
		}
		return s.Authorize(ctx, Attributes{Verb: "create", Resource: "pods", Subresource: sub, Namespace: namespaceOr(namespace), Name: pod})
	}
	switch req := msg.(type) {
	case *holdfastv1.GetRequest:
		return one("get", req.GetKind(), req.GetSubresource(), req.GetNamespace(), req.GetName())
	case *holdfastv1.ListRequest:
		return selected("list", req.GetKind(), "", req.GetNamespace(), "", req.GetFieldSelector())
	case *holdfastv1.WatchRequest:
		return selected("watch", req.GetKind(), "", req.GetNamespace(), "", req.GetFieldSelector())
	case *holdfastv1.PatchRequest:
		return one("patch", req.GetKind(), req.GetSubresource(), req.GetNamespace(), req.GetName())
	case *holdfastv1.DeleteRequest:
		return one("delete", req.GetKind(), "", req.GetNamespace(), req.GetName())
	case *holdfastv1.DeleteCollectionRequest:
		return one("deletecollection", req.GetKind(), "", req.GetNamespace(), "")
	case *holdfastv1.EvictRequest:
		return one("create", &holdfastv1.Kind{Version: "v1", Kind: "Pod"}, "eviction", req.GetNamespace(), req.GetName())
	case *holdfastv1.BindRequest:
		return one("create", &holdfastv1.Kind{Version: "v1", Kind: "Pod"}, "binding", req.GetNamespace(), req.GetName())
	case *holdfastv1.UpdateRequest:
		if req.GetSubresource() == scaleSubresource { // its object is no kind of its own
			return one("update", req.GetKind(), scaleSubresource, req.GetObject().GetNamespace(), req.GetObject().GetName())
		}
	case *holdfastv1.LogsRequest:
		return s.Authorize(ctx, Attributes{Verb: "get", Resource: "pods", Subresource: "log", Namespace: namespaceOr(req.GetNamespace()), Name: req.GetPod()})
	case *holdfastv1.ExecRequest:
		return stream("exec", req.GetStart() != nil, req.GetStart().GetNamespace(), req.GetStart().GetPod())
	case *holdfastv1.AttachRequest:
		return stream("attach", req.GetStart() != nil, req.GetStart().GetNamespace(), req.GetStart().GetPod())
	case *holdfastv1.PortForwardRequest:
		return stream("portforward", req.GetStart() != nil, req.GetStart().GetNamespace(), req.GetStart().GetPod())
	case *holdfastv1.ListPodUsageRequest:
		return s.Authorize(ctx, Attributes{Verb: getOrList(req.GetName()), Group: metricsGroup, Resource: "pods", Namespace: req.GetNamespace(), Name: req.GetName()})
	case *holdfastv1.ListNodeUsageRequest:
		return s.Authorize(ctx, Attributes{Verb: getOrList(req.GetName()), Group: metricsGroup, Resource: "nodes", Name: req.GetName()})
	case *holdfastv1.KindsRequest:
		return s.Authorize(ctx, Attributes{Verb: "get", Path: "/apis"})
	case *holdfastv1.SchemaRequest:
		return s.Authorize(ctx, Attributes{Verb: "get", Path: "/openapi/v3"})
	}
	return nil
}

// attributes are those of a call about objects of r. A single object of a kind
// that lives in namespaces is in the default one if none is named.
func attributes(verb string, r object.Resource, sub, namespace, name string) Attributes {
	if name != "" && r.Namespaced && namespace == "" {
		namespace = "default"
	}
	return Attributes{Verb: verb, Group: r.Group, Resource: r.Plural, Subresource: sub, Namespace: namespace, Name: name}
}
