package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestCompletion: kinds, live names, namespaces, containers and the values of flags
// are completed, and what was said already is not offered again. Everything live
// comes from whichever peer answers, without a quorum.
func TestCompletion(t *testing.T) {
	f := &fakeCluster{}
	web := pod("web-1", 1, func(p *corev1.Pod) {
		p.Spec.Containers = []corev1.Container{{Name: "main"}, {Name: "proxy"}}
		p.Spec.InitContainers = []corev1.Container{{Name: "prepare"}}
	})
	f.get = func(_ context.Context, req *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error) {
		if req.GetName() != "web-1" || req.GetNamespace() != "default" {
			return nil, connect.NewError(connect.CodeNotFound, "not found")
		}
		return &holdfastv1.GetResponse{Object: wire(t, web)}, nil
	}
	f.list = func(_ context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
		if req.GetRead().GetConsistency() != holdfastv1.Consistency_CONSISTENCY_LOCAL {
			t.Errorf("%s are read linearizably", req.GetKind().GetKind())
		}
		res := &holdfastv1.ListResponse{}
		switch kind := req.GetKind().GetKind(); {
		case kind == "Pod" && req.GetNamespace() == "default":
			res.Objects = []*holdfastv1.Object{{Name: "web-1"}, {Name: "web-2"}}
		case kind == "Pod" && req.GetNamespace() == "shop":
			res.Objects = []*holdfastv1.Object{{Name: "till"}}
		case kind == "Deployment":
			res.Objects = []*holdfastv1.Object{{Name: "web"}}
		case kind == "Node":
			res.Objects = []*holdfastv1.Object{{Name: "n1"}, {Name: "n2"}}
		case kind == "Namespace":
			res.Objects = []*holdfastv1.Object{wire(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})}
		case kind == "CustomResourceDefinition":
			res.Objects = []*holdfastv1.Object{wire(t, widgets())}
		case kind == "Widget":
			res.Objects = []*holdfastv1.Object{{Name: "big"}}
		}
		return res, nil
	}
	for _, tc := range []struct{ typed, want string }{
		{"get pods |", "web-1 web-2"},
		{"get po web-1 |", "web-2"},
		{"get pods -n shop |", "till"},
		{"get pod/|", "pod/web-1 pod/web-2"},
		{"get pod/web-1 pod/|", "pod/web-2"},
		{"get widget |", "big"},
		{"delete widgets.example.com/|", "widgets.example.com/big"},
		{"logs |", "web-1 web-2"},
		{"logs deploy/|", "deploy/web"},
		{"logs web-1 -c |", "main proxy prepare"},
		{"exec web-1 --container |", "main proxy prepare"},
		{"cp default/web-1:/a . -c |", "main proxy prepare"},
		{"exec web-9 -c |", ""},
		{"drain |", "n1 n2"},
		{"cordon n1 |", "n2"},
		{"top nodes |", "n1 n2"},
		{"rollout undo deploy |", "web"},
		{"get pods -n |", "shop"},
		{"get pods --consistency |", "linearizable session bounded local"},
		{"apply --dry-run=|", "none client server"},
		{"get nothing |", ""},
		{"completion |", "bash zsh fish powershell"},
	} {
		line, begun := strings.TrimSuffix(tc.typed, "|"), ""
		words := strings.Fields(line)
		if !strings.HasSuffix(line, " ") {
			begun, words = words[len(words)-1], words[:len(words)-1]
		}
		got := f.run(t.Context(), nil, append(append([]string{"__complete"}, words...), begun)...)
		offered := strings.Fields(got.stdout)
		offered = offered[:max(len(offered)-1, 0)] // the directive
		if strings.Join(offered, " ") != tc.want || got.code != exitOK {
			t.Errorf("%s: offers %q, exit %d; want %q", tc.typed, offered, got.code, tc.want)
		}
	}

	got := f.run(t.Context(), nil, "__complete", "get", "pods,wi")
	if !slices.Contains(strings.Fields(got.stdout), "pods,widgets") {
		t.Errorf("a second kind, a custom one, is not offered: %s", got.stdout)
	}
	got = f.run(t.Context(), nil, "__complete", "get", "pods", "-o", "")
	if !strings.Contains(got.stdout, "yaml") {
		t.Errorf("forms of output are not offered: %s", got.stdout)
	}
}

// TestCompletionIsQuiet: a cluster that does not answer offers nothing, and nothing
// is said about it.
func TestCompletionIsQuiet(t *testing.T) {
	f := &fakeCluster{}
	f.list = func(context.Context, *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
		return nil, connect.NewError(connect.CodeUnavailable, "no leader")
	}
	for _, line := range []string{"get pods", "get widgets", "logs", "drain"} {
		got := f.run(t.Context(), nil, append(append([]string{"__complete"}, strings.Fields(line)...), "")...)
		if got.code != exitOK || strings.Contains(got.stderr, "error") || strings.Contains(got.stderr, "quorum") || strings.Contains(got.stdout, "error") {
			t.Errorf("%s: exit %d, says %q %q", line, got.code, got.stdout, got.stderr)
		}
	}
}

// widgets is the definition of a custom kind.
func widgets() *apiextensionsv1.CustomResourceDefinition {
	crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "widgets.example.com"}}
	crd.Spec = apiextensionsv1.CustomResourceDefinitionSpec{
		Group: "example.com", Scope: apiextensionsv1.NamespaceScoped,
		Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "widgets", Singular: "widget", Kind: "Widget"},
		Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{
			OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"},
		}}},
	}
	object.EstablishCRD(crd, nil, time.Unix(1, 0))
	return crd
}
