package kube

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-io/holdfast/object"
)

func TestParsePath(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want path // the zero path: refused
	}{
		{"/api", path{kind: pathCore}},
		{"/api/", path{kind: pathCore}},
		{"/apis", path{kind: pathGroups}},
		{"/apis/apps", path{kind: pathGroup, group: "apps"}},
		{"/apis/apps/v1", path{kind: pathVersion, group: "apps", version: "v1"}},
		{"/api/v1", path{kind: pathVersion, version: "v1"}},
		{"/openapi/v3/apis/apps/v1", path{kind: pathOpenAPI, rest: "v3/apis/apps/v1"}},
		{"/api/v1/pods", path{kind: pathObjects, version: "v1", plural: "pods"}},
		{"/api/v1/nodes/n1", path{kind: pathObjects, version: "v1", plural: "nodes", name: "n1"}},
		{"/api/v1/nodes/n1/status", path{kind: pathObjects, version: "v1", plural: "nodes", name: "n1", subresource: "status"}},
		{"/api/v1/namespaces", path{kind: pathObjects, version: "v1", plural: "namespaces"}},
		{"/api/v1/namespaces/a", path{kind: pathObjects, version: "v1", plural: "namespaces", name: "a"}},
		{"/api/v1/namespaces/a/status", path{kind: pathObjects, version: "v1", plural: "namespaces", name: "a", subresource: "status"}},
		{"/api/v1/namespaces/a/finalize", path{kind: pathObjects, version: "v1", plural: "namespaces", name: "a", subresource: "finalize"}},
		{"/api/v1/namespaces/a/pods", path{kind: pathObjects, version: "v1", namespace: "a", plural: "pods"}},
		{"/api/v1/namespaces/status/pods/web", path{kind: pathObjects, version: "v1", namespace: "status", plural: "pods", name: "web"}},
		{"/api/v1/namespaces/a/pods/web/log", path{kind: pathObjects, version: "v1", namespace: "a", plural: "pods", name: "web", subresource: "log"}},
		{"/apis/apps/v1/namespaces/a/deployments/web/scale", path{kind: pathObjects, group: "apps", version: "v1", namespace: "a", plural: "deployments", name: "web", subresource: "scale"}},
		{"/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node", path{kind: pathObjects, group: "rbac.authorization.k8s.io", version: "v1", plural: "clusterroles", name: "system:node"}},
		{"/", path{}},
		{"", path{}},
		{"api", path{}},
		{"/metrics", path{}},
		{"/api//pods", path{}},
		{"/api/v1/namespaces/../pods", path{}},
		{"/api/v1/namespaces/a/pods/web/log/more", path{}},
	} {
		got, ok := parsePath(tt.in)
		if ok != (tt.want != path{} || tt.in == "/api" || tt.in == "/api/") || got != tt.want {
			t.Errorf("%q: got %+v, %v; want %+v", tt.in, got, ok, tt.want)
		}
	}
}

// FuzzParsePath holds that whatever is accepted has a version and a plural, and no
// part that could mean another path.
func FuzzParsePath(f *testing.F) {
	f.Add("/api/v1/namespaces/a/pods/web/log")
	f.Add("/apis/apps/v1//deployments")
	f.Fuzz(func(t *testing.T, in string) {
		at, ok := parsePath(in)
		if !ok {
			return
		}
		if at.kind == pathObjects && (at.version == "" || at.plural == "" || (at.subresource != "" && at.name == "")) {
			t.Errorf("%q: %+v", in, at)
		}
		for _, part := range []string{at.group, at.version, at.namespace, at.plural, at.name, at.subresource} {
			if strings.Contains(part, "/") || part == ".." {
				t.Errorf("%q: %+v", in, at)
			}
		}
	})
}

func TestQuery(t *testing.T) {
	for _, tt := range []struct{ in, wrong string }{
		{"", ""},
		{"limit=500&labelSelector=app%3Dweb&watch=true&allowWatchBookmarks=1", ""},
		{"resourceVersion=12&resourceVersionMatch=Exact", ""},
		{"watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=", ""},
		{"limit=x", `invalid value "x" of limit`},
		{"limit=-1", "not negative"},
		{"resourceVersion=abc", `invalid value "abc" of resourceVersion`},
		{"resourceVersionMatch=Exact", "forbidden without resourceVersion"},
		{"resourceVersionMatch=Exact&resourceVersion=0", `forbidden for resourceVersion "0"`},
		{"continue=x&resourceVersion=5", "forbidden with continue"},
		{"watch=1&resourceVersionMatch=Exact&resourceVersion=1", "forbidden for watch"},
		{"watch=1&sendInitialEvents=true", "needs resourceVersionMatch=NotOlderThan"},
		{"sendInitialEvents=true", "forbidden for list"},
		{"dryRun=Some", "dryRun"},
		{"fieldValidation=Maybe", "fieldValidation"},
		{"propagationPolicy=x&limit=y", "; "}, // all faults at once
	} {
		values, err := url.ParseQuery(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		_, err = parseQuery(values)
		switch {
		case tt.wrong == "" && err != nil:
			t.Errorf("%s: %v", tt.in, err)
		case tt.wrong != "" && (!apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), tt.wrong)):
			t.Errorf("%s: got %v, want BadRequest with %q", tt.in, err, tt.wrong)
		}
	}
}

func TestNegotiate(t *testing.T) {
	const table = "application/json;as=Table;v=v1;g=meta.k8s.io"
	for _, tt := range []struct {
		accept string
		custom bool
		want   media // the zero media: none can be had
	}{
		{"", false, media{typ: typeJSON}},
		{"*/*", false, media{typ: typeJSON}},
		{"application/json", false, media{typ: typeJSON}},
		{"application/yaml", false, media{typ: typeYAML}},
		{table + ",application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", false, media{typ: typeJSON, form: formTable}},
		{"application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", false, media{typ: typeJSON}},
		{"application/vnd.kubernetes.protobuf,application/json", false, media{typ: typeProtobuf}},
		{"application/vnd.kubernetes.protobuf,application/json", true, media{typ: typeJSON}},
		{"application/vnd.kubernetes.protobuf", true, media{}},
		{"application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", true, media{typ: typeProtobuf, form: formMetadata}},
		{"application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json", false, media{typ: typeJSON, form: formMetadata}},
		{"application/cbor,application/json;q=0.9,application/yaml;q=0.5", false, media{typ: typeJSON}},
		{"application/json;q=0.1,application/yaml;q=0.5", false, media{typ: typeYAML}},
		{"application/json;q=0", false, media{}},
		{"text/html", false, media{}},
	} {
		got, err := negotiate([]string{tt.accept}, tt.custom)
		if (err == nil) != (tt.want != media{}) || got != tt.want {
			t.Errorf("%q: got %+v, %v; want %+v", tt.accept, got, err, tt.want)
		}
		if status, ok := err.(*apierrors.StatusError); err != nil && (!ok || status.ErrStatus.Code != http.StatusNotAcceptable) {
			t.Errorf("%q: %v is not 406", tt.accept, err)
		}
	}
}

// TestProtobuf holds that the frames which are put around stored bytes are what
// Kubernetes' own structs read.
func TestProtobuf(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", Labels: map[string]string{"app": "web"}, UID: "u"}, Spec: corev1.PodSpec{NodeName: "n1"}}
	stored, err := object.Encode(pod)
	if err != nil {
		t.Fatal(err)
	}
	read := func(data []byte, into interface{ Unmarshal([]byte) error }) runtime.TypeMeta {
		t.Helper()
		data, ok := bytes.CutPrefix(data, []byte(magic))
		if !ok {
			t.Fatal("no magic")
		}
		var unknown runtime.Unknown
		if err := unknown.Unmarshal(data); err != nil {
			t.Fatal(err)
		}
		if err := into.Unmarshal(unknown.Raw); err != nil {
			t.Fatal(err)
		}
		return unknown.TypeMeta
	}
	one, err := withRevision(stored, 4711)
	if err != nil {
		t.Fatal(err)
	}
	want := pod.DeepCopy()
	want.ResourceVersion = "4711"
	var got corev1.Pod
	if meta := read(one, &got); meta != (runtime.TypeMeta{APIVersion: "v1", Kind: "Pod"}) {
		t.Errorf("it is a %v", meta)
	}
	if diff := cmp.Diff(want, &got); diff != "" {
		t.Error(diff)
	}
	remaining := int64(3)
	data, err := protobufList("v1", "PodList", metav1.ListMeta{ResourceVersion: "9", Continue: "more", RemainingItemCount: &remaining}, [][]byte{stored, stored}, []int64{4711, 4712})
	if err != nil {
		t.Fatal(err)
	}
	var list corev1.PodList
	if meta := read(data, &list); meta.Kind != "PodList" {
		t.Errorf("it is a %v", meta)
	}
	if len(list.Items) != 2 || list.Items[1].ResourceVersion != "4712" || list.Items[1].Spec.NodeName != "n1" || list.ResourceVersion != "9" || list.Continue != "more" || *list.RemainingItemCount != 3 {
		t.Errorf("the list is %+v", list)
	}
}

func FuzzEnvelope(f *testing.F) {
	data, _ := object.Encode(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}})
	f.Add(data)
	f.Add([]byte(magic + "\x12\x80"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := parseEnvelope(data)
		if err != nil {
			return
		}
		var unknown runtime.Unknown
		if unknown.Unmarshal(data[len(magic):]) == nil && (unknown.Kind != e.kind || !bytes.Equal(unknown.Raw, e.raw)) {
			t.Errorf("Kubernetes reads %q %q, we read %q %q", unknown.Kind, unknown.Raw, e.kind, e.raw)
		}
	})
}
