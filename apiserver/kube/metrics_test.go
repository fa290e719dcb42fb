package kube_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/holdfast-io/holdfast/apiserver/kube"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// used is what agents have reported; it keeps what it was asked.
type used struct {
	holdfastv1connect.UnimplementedUsageServiceHandler
	pods []*holdfastv1.PodUsage
	ask  *holdfastv1.ListPodUsageRequest
}

func (u *used) ListPodUsage(_ context.Context, req *holdfastv1.ListPodUsageRequest) (*holdfastv1.ListPodUsageResponse, error) {
	u.ask = req
	resp := &holdfastv1.ListPodUsageResponse{}
	for _, pod := range u.pods {
		if req.GetName() == "" || req.GetName() == pod.GetName() {
			resp.Pods = append(resp.Pods, pod)
		}
	}
	return resp, nil
}

func (u *used) ListNodeUsage(_ context.Context, req *holdfastv1.ListNodeUsageRequest) (*holdfastv1.ListNodeUsageResponse, error) {
	return &holdfastv1.ListNodeUsageResponse{Nodes: []*holdfastv1.NodeUsage{{
		Name: "n1", CpuNanocores: 1_500_000_000, MemoryBytes: 2 << 30, Age: durationpb.New(5 * time.Second), Window: durationpb.New(15 * time.Second),
	}}}, nil
}

// TestMetrics: what agents report is served as metrics.k8s.io has it, to those who may
// read it; without reports there is no such group.
func TestMetrics(t *testing.T) {
	u := &used{pods: []*holdfastv1.PodUsage{{
		Namespace: "default", Name: "web", Labels: map[string]string{"app": "web"}, Age: durationpb.New(10 * time.Second), Window: durationpb.New(15 * time.Second),
		Containers: []*holdfastv1.ContainerUsage{{Name: "main", CpuNanocores: 250_000_000, MemoryBytes: 64 << 20}},
	}}}
	s := start(t, func(cfg *kube.Config) { cfg.Usage = u })
	const base = "/apis/metrics.k8s.io/v1beta1"

	list := s.want(200, "GET", base+"/namespaces/default/pods?labelSelector=app%3Dweb", "")
	for path, want := range map[string]any{
		"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "items.0.metadata.name": "web", "items.0.metadata.labels.app": "web",
		// The clock says 03:05:05, and the report is 10 s old.
		"items.0.timestamp": "2026-01-02T03:04:55Z", "items.0.window": "15s",
		"items.0.containers.0.name": "main", "items.0.containers.0.usage.cpu": "250m", "items.0.containers.0.usage.memory": "64Mi",
	} {
		if got := list.at(path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	if u.ask.GetNamespace() != "default" || u.ask.GetLabelSelector() != "app=web" {
		t.Errorf("asked for %v", u.ask)
	}
	if one := s.want(200, "GET", base+"/namespaces/default/pods/web", ""); one.at("kind") != "PodMetrics" || one.at("containers.0.usage.cpu") != "250m" {
		t.Errorf("one: %v", one)
	}
	s.wantStatus(404, "NotFound", `pods.metrics.k8s.io "none" not found`, "GET", base+"/namespaces/default/pods/none", "")
	if node := s.want(200, "GET", base+"/nodes/n1", ""); node.at("kind") != "NodeMetrics" || node.at("usage.cpu") != "1500m" || node.at("usage.memory") != "2Gi" {
		t.Errorf("node: %v", node)
	}
	s.want(405, "POST", base+"/nodes", "{}")
	s.want(405, "GET", base+"/nodes?watch=1", "")
	if a := s.request(s.nobody, "GET", base+"/nodes", ""); a.code != 401 && a.code != 403 {
		t.Errorf("nobody gets %v", a)
	}
	if a := s.want(200, "GET", "/apis", ""); !strings.Contains(string(a.body), "metrics.k8s.io") {
		t.Error("the group is not discovered")
	}
	without := start(t)
	without.want(404, "GET", base+"/nodes", "")
	if a := without.want(200, "GET", "/apis", ""); strings.Contains(string(a.body), "metrics.k8s.io") {
		t.Error("the group is discovered where nothing is reported")
	}
}

// TestOpenAPIIsKept: a client loads a document once: its address holds its hash, and by
// its ETag nothing is sent again. An old address leads to the new one.
func TestOpenAPIIsKept(t *testing.T) {
	s := start(t)
	index := s.want(200, "GET", "/openapi/v3", "")
	url := index.at("paths").(map[string]any)["apis/apps/v1"].(map[string]any)["serverRelativeURL"].(string)
	doc := s.want(200, "GET", url, "")
	etag := doc.header.Get("ETag")
	if etag == "" || !strings.Contains(doc.header.Get("Cache-Control"), "immutable") || doc.at("components") == nil {
		t.Fatalf("%v", doc.header)
	}
	path, _, _ := strings.Cut(url, "?")
	for _, from := range []string{url, path} {
		if a := s.want(304, "GET", from, "", "If-None-Match: "+etag); len(a.body) != 0 || a.header.Get("ETag") != etag {
			t.Errorf("%s: %v %v", from, a.header, a)
		}
		s.want(304, "GET", from, "", `If-None-Match: "other", `+etag)
		s.want(200, "GET", from, "", `If-None-Match: "other"`)
	}
	if plain := s.want(200, "GET", path, ""); strings.Contains(plain.header.Get("Cache-Control"), "immutable") {
		t.Errorf("without its hash it may be kept for ever: %v", plain.header)
	}
	// The client follows where it is led.
	if moved := s.want(200, "GET", path+"?hash=old", ""); string(moved.body) != string(doc.body) {
		t.Error("an old address leads elsewhere")
	}
	zipped := s.want(200, "GET", url, "", "Accept-Encoding: gzip")
	if zipped.header.Get("Content-Encoding") != "gzip" || len(zipped.body) > len(doc.body)/4 {
		t.Errorf("%d bytes zipped, of %d: %v", len(zipped.body), len(doc.body), zipped.header)
	}
}
