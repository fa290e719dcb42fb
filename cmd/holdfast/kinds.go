package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// selection is objects of one kind that a user has named. No names: all of them.
type selection struct {
	resource  object.Resource
	namespace string // "": that of the flags
	names     []string
}

// selected returns the selections of arguments or, instead of those, of manifests.
func (a *app) selected(ctx context.Context, f manifestFlags, args []string) ([]selection, error) {
	if !f.given() {
		return a.parseSelections(ctx, args)
	}
	if len(args) > 0 {
		return nil, failf(exitUsage, "-f and -k name the objects: leave KIND and NAME out")
	}
	docs, err := a.readManifests(f)
	if err != nil {
		return nil, err
	}
	if err := a.inPlace(docs); err != nil {
		return nil, err
	}
	var out []selection
	for _, doc := range docs {
		r, ns := object.ResourceOf(doc.Object), doc.Object.GetNamespace()
		if i := slices.IndexFunc(out, func(s selection) bool { return s.resource.String() == r.String() && s.namespace == ns }); i >= 0 {
			out[i].names = append(out[i].names, doc.Object.GetName())
			continue
		}
		out = append(out, selection{r, ns, []string{doc.Object.GetName()}})
	}
	return out, nil
}

// scopeOf returns the namespace of what s selects; "" for kinds outside of
// namespaces.
func (a *app) scopeOf(s selection) string {
	if s.namespace != "" {
		return s.namespace
	}
	return a.scope(s.resource)
}

// parseSelections reads what users say: "pods", "pods,deploy", "pod web-1 web-2",
// "pod/web-1 deploy/web", "all".
func (a *app) parseSelections(ctx context.Context, args []string) ([]selection, error) {
	if len(args) == 0 {
		return nil, failf(exitUsage, `say which kind, such as pods, or all; "holdfast api-resources" lists them`)
	}
	if strings.Contains(args[0], "/") {
		return a.parseSlashed(ctx, args)
	}
	var out []selection
	for word := range strings.SplitSeq(args[0], ",") {
		if word == "all" {
			for _, r := range object.Resources() {
				if slices.Contains(r.Categories, "all") {
					out = append(out, selection{resource: r})
				}
			}
			continue
		}
		r, err := a.resourceFor(ctx, word)
		if err != nil {
			return nil, failf(exitUsage, "%w", err)
		}
		out = append(out, selection{resource: r})
	}
	if names := args[1:]; len(names) > 0 {
		if len(out) != 1 {
			return nil, failf(exitUsage, "names go with one kind: to name objects of several, write KIND/NAME KIND/NAME")
		}
		for _, name := range names {
			if strings.Contains(name, "/") {
				return nil, failf(exitUsage, "%s: write either KIND NAME... or KIND/NAME..., not both", name)
			}
		}
		out[0].names = names
	}
	return out, nil
}

func (a *app) parseSlashed(ctx context.Context, args []string) ([]selection, error) {
	var out []selection
	for _, arg := range args {
		kind, name, ok := strings.Cut(arg, "/")
		if !ok || kind == "" || name == "" || strings.Contains(name, "/") {
			return nil, failf(exitUsage, "%q: want KIND/NAME, such as pod/web-1, for each", arg)
		}
		r, err := a.resourceFor(ctx, kind)
		if err != nil {
			return nil, failf(exitUsage, "%w", err)
		}
		if i := slices.IndexFunc(out, func(s selection) bool { return s.resource.Kind == r.Kind && s.resource.Group == r.Group }); i >= 0 {
			out[i].names = append(out[i].names, name)
			continue
		}
		out = append(out, selection{resource: r, names: []string{name}})
	}
	return out, nil
}

// holdsWorkload tells the kinds that have pods, and so logs.
func holdsWorkload(r object.Resource) bool { return r.Kind == "Pod" || r.Group == "apps" }

// makesPods tells the kinds that are pods or have some of their own.
func makesPods(r object.Resource) bool {
	switch r.Kind {
	case "Pod", "ReplicationController", "Job":
		return true
	case "ControllerRevision":
		return false
	}
	return r.Group == "apps"
}

// parseWorkload reads POD or KIND/NAME of something that has pods.
func parseWorkload(arg string) (object.Resource, string, error) {
	kind, name, ok := strings.Cut(arg, "/")
	if !ok {
		kind, name = "pod", arg
	}
	res, err := object.ResourceFor(kind)
	if err != nil {
		return res, "", failf(exitUsage, "%w", err)
	}
	if !makesPods(res) || name == "" {
		return res, "", failf(exitUsage, "%s have no logs, and nothing to run a command in: name a pod, or what makes pods, such as web-7f2ab or deploy/web", res.Plural)
	}
	return res, name, nil
}

// kindName is what output calls a kind: "pod", "deployment.apps".
func kindName(r object.Resource) string {
	if r.Group == "" {
		return r.Singular
	}
	return r.Singular + "." + r.Group
}

// title is what output calls an object: "pod/web-1", "deployment.apps/web".
func title(obj object.Object) string {
	return kindName(object.ResourceOf(obj)) + "/" + obj.GetName()
}

// wireKind is a resource as requests name it.
func wireKind(r object.Resource) *holdfastv1.Kind {
	return &holdfastv1.Kind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}

// encode puts an object into an envelope. The revision that it was read at, if
// any, goes along.
func encode(obj object.Object) (*holdfastv1.Object, error) {
	data, err := object.Encode(obj)
	if err != nil {
		return nil, err
	}
	r := object.ResourceOf(obj)
	return &holdfastv1.Object{
		Kind: wireKind(r), Namespace: obj.GetNamespace(), Name: obj.GetName(),
		Encoding: holdfastv1.Encoding_ENCODING_PROTOBUF, Data: data,
	}, nil
}

// scope returns the namespace of a request about a kind; "" for kinds outside of
// namespaces.
func (a *app) scope(r object.Resource) string {
	if !r.Namespaced {
		return ""
	}
	return a.inNamespace()
}

// get reads one object.
func (a *app) get(ctx context.Context, r *remote, res object.Resource, namespace, name string, read *holdfastv1.ReadOptions) (object.Object, *holdfastv1.Answer, error) {
	ctx, cancel := a.request(ctx)
	defer cancel()
	if !res.Namespaced {
		namespace = ""
	}
	answer, err := r.objects.Get(ctx, &holdfastv1.GetRequest{Kind: wireKind(res), Namespace: namespace, Name: name, Read: read})
	if err != nil {
		return nil, nil, a.explain(ctx, r, fmt.Sprintf("get %s/%s", kindName(res), name), err)
	}
	obj, err := a.decode(answer.GetObject())
	return obj, answer.GetAnswer(), err
}

// list reads objects of one kind, all of one revision, however many.
func (a *app) list(ctx context.Context, r *remote, req *holdfastv1.ListRequest, plural string) ([]object.Object, *holdfastv1.Answer, error) {
	answer, err := client.ListAll(ctx, req, func(ctx context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
		ctx, cancel := a.request(ctx) // each page has its time
		defer cancel()
		answer, err := r.objects.List(ctx, req)
		if connect.CodeOf(err) == connect.CodeOutOfRange && req.GetContinue() != "" {
			return nil, err // begins anew
		}
		if err != nil {
			return nil, a.explain(ctx, r, "list "+plural, err)
		}
		return answer, nil
	})
	if err != nil {
		return nil, nil, a.explain(ctx, r, "list "+plural, err)
	}
	out := make([]object.Object, 0, len(answer.GetObjects()))
	for _, o := range answer.GetObjects() {
		obj, err := a.decode(o)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, obj)
	}
	return out, answer.GetAnswer(), nil
}

// isNotFound tells an error of get that says the object does not exist.
func isNotFound(err error) bool {
	var f *failure
	if errors.As(err, &f) {
		return f.code == exitNotFound
	}
	return connect.CodeOf(err) == connect.CodeNotFound
}

// mustResource returns a kind that is always served.
func mustResource(name string) object.Resource {
	r, err := object.ResourceFor(name)
	if err != nil {
		panic(err)
	}
	return r
}
