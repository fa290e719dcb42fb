package kube_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestBinding is what a scheduler of somebody else's does, by both of its paths.
func TestBinding(t *testing.T) {
	s := start(t)
	const pods = "/api/v1/namespaces/default/pods"
	pod := func(name, more string) string {
		return `{"metadata":{"name":"` + name + `"},"spec":{"schedulerName":"mine",` + more + `"containers":[{"name":"main","image":"web:1"}]}}`
	}
	to := func(node string) string {
		return `{"apiVersion":"v1","kind":"Binding","metadata":{"name":"a","annotations":{"why":"room"}},"target":{"kind":"Node","name":"` + node + `"}}`
	}
	s.want(201, "POST", "/api/v1/nodes", `{"metadata":{"name":"n1"}}`)
	uid := s.want(201, "POST", pods, pod("a", "")).at("metadata.uid").(string)
	s.want(201, "POST", pods, pod("b", ""))
	s.want(201, "POST", pods, pod("gated", `"schedulingGates":[{"name":"example.com/wait"}],`))

	s.wantStatus(404, "NotFound", "Node n2 not found", "POST", pods+"/a/binding", to("n2"))
	s.wantStatus(404, "NotFound", `pods "none" not found`, "POST", pods+"/none/binding", `{"target":{"name":"n1"}}`)
	s.wantStatus(400, "BadRequest", "does not match", "POST", pods+"/b/binding", to("n1"))
	s.wantStatus(400, "BadRequest", "target.name", "POST", pods+"/b/binding", `{"target":{}}`)
	s.wantStatus(400, "BadRequest", "bound to a Node", "POST", pods+"/b/binding", `{"target":{"kind":"Zone","name":"n1"}}`)
	s.wantStatus(409, "Conflict", "uid", "POST", pods+"/a/binding", `{"metadata":{"uid":"other"},"target":{"name":"n1"}}`)
	s.wantStatus(409, "Conflict", "scheduling gates", "POST", pods+"/gated/binding", `{"target":{"name":"n1"}}`)

	s.want(201, "POST", pods+"/a/binding?dryRun=All", to("n1"))
	if a := s.want(200, "GET", pods+"/a", ""); a.at("spec.nodeName") != nil {
		t.Errorf("bound in a dry run: %v", a)
	}
	s.want(201, "POST", pods+"/a/binding", to("n1"))
	a := s.want(200, "GET", pods+"/a", "")
	if a.at("spec.nodeName") != "n1" || a.at("metadata.annotations.why") != "room" || a.at("metadata.uid") != uid ||
		a.at("status.conditions.0.type") != "PodScheduled" || a.at("status.conditions.0.status") != "True" {
		t.Errorf("bound: %v", a)
	}
	s.wantStatus(409, "Conflict", `already assigned to node "n1"`, "POST", pods+"/a/binding", to("n1"))

	// As client-go's Bind sends it, and by the older path.
	binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}
	s.want(201, "POST", "/api/v1/namespaces/default/bindings", inEnvelope(t, "v1", "Binding", binding), "Content-Type: "+protobuf)
	if a := s.want(200, "GET", pods+"/b", ""); a.at("spec.nodeName") != "n1" {
		t.Errorf("bound: %v", a)
	}
	s.wantStatus(400, "BadRequest", "name the pod", "POST", "/api/v1/namespaces/default/bindings", `{"target":{"name":"n1"}}`)
}
