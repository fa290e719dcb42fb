package kube_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-io/holdfast/object"
)

const protobuf = "application/vnd.kubernetes.protobuf"

func TestTables(t *testing.T) {
	s := start(t)
	const all, table = "/api/v1/namespaces/default/configmaps", "Accept: application/json;as=Table;v=v1;g=meta.k8s.io"
	if a := s.want(200, "GET", all, "", table); a.at("kind") != "Table" || a.at("columnDefinitions.0.format") != "name" || len(a.at("rows").([]any)) != 0 {
		t.Errorf("empty: %v", a)
	}
	s.want(201, "POST", all, webConfig)
	a := s.want(200, "GET", all+"/web", "", table)
	if a.at("rows.0.cells.0") != "web" || a.at("rows.0.cells.2") != "60s" || a.at("rows.0.object.kind") != "PartialObjectMetadata" || a.at("rows.0.object.metadata.name") != "web" {
		t.Errorf("one: %v", a)
	}
	if a := s.want(200, "GET", all+"?includeObject=Object", "", table); a.at("rows.0.object.data.a") != "1" {
		t.Errorf("objects: %v", a)
	}
	if a := s.want(200, "GET", all+"?includeObject=None", "", table); a.at("rows.0.object") != nil {
		t.Errorf("no objects: %v", a)
	}
	a = s.want(200, "GET", all, "", "Accept: application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")
	if a.at("kind") != "PartialObjectMetadataList" || a.at("items.0.metadata.name") != "web" || a.at("items.0.data") != nil {
		t.Errorf("metadata: %v", a)
	}
}

// inEnvelope encodes a struct of Kubernetes' API as typed clients do.
func inEnvelope(t *testing.T, apiVersion, kind string, v interface{ Marshal() ([]byte, error) }) string {
	t.Helper()
	raw, err := v.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	unknown := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}, Raw: raw}
	data, err := unknown.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return "k8s\x00" + string(data)
}

// TestProtobufBothWays speaks protobuf as typed clients do: names from the URL are
// filled in, and a resourceVersion in the body is a condition.
func TestProtobufBothWays(t *testing.T) {
	s := start(t)
	const all = "/api/v1/namespaces/default/configmaps"
	encode := func(c *corev1.ConfigMap) string { return inEnvelope(t, "v1", "ConfigMap", c) }
	headers := []string{"Content-Type: " + protobuf, "Accept: " + protobuf + ",application/json"}
	body := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Data: map[string]string{"a": "1"}}
	a := s.want(201, "POST", all, encode(body), headers...)
	decode := func(a answer) *corev1.ConfigMap {
		t.Helper()
		obj, err := object.Decode(a.body, 0)
		if err != nil || a.header.Get("Content-Type") != protobuf {
			t.Fatalf("%v: %v %v", err, a.header, a)
		}
		return obj.(*corev1.ConfigMap)
	}
	made := decode(a)
	if made.Namespace != "default" || made.UID == "" || made.ResourceVersion == "" || made.Data["a"] != "1" {
		t.Errorf("made %+v", made)
	}
	made.Data["a"] = "2"
	made.Name = "" // the URL has it
	changed := decode(s.want(200, "PUT", all+"/web", encode(made), headers...))
	if changed.Data["a"] != "2" || changed.ResourceVersion == made.ResourceVersion {
		t.Errorf("changed %+v", changed)
	}
	s.wantStatus(409, "Conflict", "Operation cannot be fulfilled", "PUT", all+"/web", encode(made), headers...)
	s.wantStatus(400, "BadRequest", "protobuf", "POST", all, "rubbish", headers...)
}

func TestCompressedAndPretty(t *testing.T) {
	s := start(t)
	const all = "/api/v1/namespaces/default/configmaps"
	for i := range 3 {
		s.want(201, "POST", all, fmt.Sprintf(`{"metadata":{"name":"c%d"},"data":{"a":"%s"}}`, i, strings.Repeat("x", 60<<10)))
	}
	a := s.want(200, "GET", all, "", "Accept-Encoding: gzip")
	if a.header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("%v", a.header)
	}
	zip, err := gzip.NewReader(bytes.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(zip)
	if err != nil {
		t.Fatal(err)
	}
	if b := s.want(200, "GET", all, ""); !bytes.Equal(plain, b.body) || len(a.body) > len(b.body)/10 {
		t.Errorf("%d bytes compressed, %d unpacked, %d plain", len(a.body), len(plain), len(b.body))
	}
	if a := s.want(200, "GET", all+"/c1?pretty=1", ""); !strings.HasPrefix(string(a.body), "{\n  ") {
		t.Errorf("%.80s", a.body)
	}
	// Pages are one snapshot, and say how to go on.
	a = s.want(200, "GET", all+"?limit=2", "")
	more, _ := a.at("metadata.continue").(string)
	if more == "" || len(a.at("items").([]any)) != 2 {
		t.Fatalf("%.200s", a.body)
	}
	s.want(201, "POST", all, `{"metadata":{"name":"c3"}}`)
	if a := s.want(200, "GET", all+"?limit=2&continue="+more, ""); len(a.at("items").([]any)) != 1 || a.at("items.0.metadata.name") != "c2" {
		t.Errorf("%.200s", a.body)
	}
}

const deployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"spec":{"replicas":2,"selector":{"matchLabels":{"app":"web"}},
	"template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"web","image":"web:1"}]}}}}`

func TestSubresources(t *testing.T) {
	s := start(t)
	const deployments, pods = "/apis/apps/v1/namespaces/default/deployments", "/api/v1/namespaces/default/pods"
	s.want(201, "POST", deployments, deployment)
	a := s.want(200, "GET", deployments+"/web/scale", "")
	if a.at("kind") != "Scale" || a.at("apiVersion") != "autoscaling/v1" || a.at("spec.replicas") != 2.0 {
		t.Errorf("%v", a)
	}
	if a := s.want(200, "PATCH", deployments+"/web/scale", `{"spec":{"replicas":5}}`, "Content-Type: application/merge-patch+json"); a.at("spec.replicas") != 5.0 {
		t.Errorf("%v", a)
	}
	if a := s.want(200, "PUT", deployments+"/web/scale", `{"kind":"Scale","spec":{"replicas":1}}`); a.at("spec.replicas") != 1.0 {
		t.Errorf("%v", a)
	}
	if a := s.want(200, "PATCH", deployments+"/web/status", `{"status":{"replicas":1}}`, "Content-Type: application/merge-patch+json"); a.at("status.replicas") != 1.0 {
		t.Errorf("%v", a)
	}

	pod := `{"metadata":{"name":"web","labels":{"app":"web"}},"spec":{"containers":[{"name":"web","image":"web:1"}]}}`
	s.want(201, "POST", pods, pod)

	ready := `{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`
	s.want(200, "PATCH", pods+"/web/status", ready, "Content-Type: application/strategic-merge-patch+json")
	budget := `{"metadata":{"name":"all"},"spec":{"minAvailable":1,"selector":{"matchLabels":{"app":"web"}}}}`
	s.want(201, "POST", "/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget)
	a = s.wantStatus(429, "TooManyRequests", "disruption budget", "POST", pods+"/web/eviction", `{"kind":"Eviction","apiVersion":"policy/v1","metadata":{"name":"web"}}`)
	if a.header.Get("Retry-After") != "" || a.at("details.causes.0.reason") != "DisruptionBudget" {
		t.Errorf("%v %v", a.header, a)
	}
	s.want(200, "DELETE", "/apis/policy/v1/namespaces/default/poddisruptionbudgets/all", "")
	s.want(201, "POST", pods+"/web/eviction?dryRun=All", `{}`)
	if a := s.want(201, "POST", pods+"/web/eviction", `{}`); a.at("status") != "Success" {
		t.Errorf("%v", a)
	}

	s.wantStatus(404, "NotFound", "not found", "GET", pods+"/nope/log", "")
	s.wantStatus(400, "BadRequest", "sinceSeconds", "GET", pods+"/web/log?sinceSeconds=0&tailLines=-1", "")
	s.want(201, "POST", pods, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"parts"},"spec":{"containers":[{"name":"web","image":"nginx","resources":{"requests":{"cpu":"100m"}}}]}}`)
	const strategic = "Content-Type: application/strategic-merge-patch+json"
	debug := `{"spec":{"ephemeralContainers":[{"name":"look","image":"busybox","targetContainerName":"web"}],"nodeName":"elsewhere"}}`
	if a := s.want(200, "PATCH", pods+"/parts/ephemeralcontainers", debug, strategic); a.at("spec.ephemeralContainers.0.name") != "look" || a.at("spec.nodeName") == "elsewhere" || a.at("metadata.generation") != float64(2) {
		t.Errorf("%v", a)
	}
	s.wantStatus(422, "Invalid", "may not be changed", "PATCH", pods+"/parts/ephemeralcontainers", `{"spec":{"ephemeralContainers":[{"name":"look","image":"busybox:2"}]}}`, strategic)
	if a := s.want(200, "GET", pods+"/parts/ephemeralcontainers", ""); a.at("spec.ephemeralContainers.0.targetContainerName") != "web" {
		t.Errorf("%v", a)
	}
	if a := s.want(200, "PATCH", pods+"/parts/resize", `{"spec":{"containers":[{"name":"web","resources":{"requests":{"cpu":"200m"}}}]}}`, strategic); a.at("spec.containers.0.resources.requests.cpu") != "200m" || a.at("metadata.generation") != float64(3) {
		t.Errorf("%v", a)
	}
	s.wantStatus(422, "Invalid", "QOS", "PATCH", pods+"/parts/resize", `{"spec":{"containers":[{"name":"web","resources":{"limits":{"cpu":"200m","memory":"1Gi"},"requests":{"memory":"1Gi"}}}]}}`, strategic)
	s.wantStatus(422, "Invalid", "cannot be set on create", "POST", pods, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"no"},"spec":{"containers":[{"name":"web","image":"nginx"}],"ephemeralContainers":[{"name":"look","image":"busybox"}]}}`)
	s.wantStatus(404, "NotFound", "could not find", "GET", pods+"/web/proxy", "")
	s.wantStatus(404, "NotFound", `namespaces "nowhere" not found`, "POST", "/api/v1/namespaces/nowhere/configmaps", webConfig)
}
