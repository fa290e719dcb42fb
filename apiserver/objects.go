package apiserver

import (
	"context"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// objectService implements holdfastv1connect.ObjectServiceHandler. Each verb has
// its file; what writes have in common is in plan.go; the kind Event, which is not
// in the store, in events.go.
type objectService struct{ *Server }

// target returns the kind and namespace of a single object that a request names.
func (s *Server) target(ctx context.Context, kind *holdfastv1.Kind, namespace, name string) (object.Resource, string, error) {
	r, err := s.resource(ctx, kind)
	if err != nil {
		return r, "", err
	}
	if namespace, err = namespaceFor(r, namespace); err != nil {
		return r, "", err
	}
	if name == "" {
		return r, "", badRequest("name", "is empty: say which %s", r.Kind)
	}
	return r, namespace, nil
}

// outsideNamespaces returns an error if a request for all objects of r names a
// namespace that they cannot be in.
func outsideNamespaces(r object.Resource, namespace string) error {
	if !r.Namespaced && namespace != "" {
		return badRequest("namespace", "is %q, but %s live outside namespaces", namespace, r.Plural)
	}
	return nil
}

// namespaceFor returns the namespace of a single object: the default one if none
// is given, none for kinds that live outside.
func namespaceFor(r object.Resource, namespace string) (string, error) {
	switch {
	case r.Namespaced && namespace == "":
		return corev1.NamespaceDefault, nil
	case !r.Namespaced && namespace != "":
		return "", badRequest("namespace", "is %q, but a %s lives outside namespaces", namespace, r.Kind)
	}
	return namespace, nil
}

// eventsAreRecorded is the answer to whoever wants to write an Event.
func eventsAreRecorded() error {
	return connect.NewError(connect.CodeUnimplemented,
		"Events are recorded by the cluster itself, kept for 7 days and cannot be created, changed or deleted through the API")
}
