package apiserver

import (
	"fmt"
	"testing"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestApplyAgain: what was applied and is applied again is unchanged, whatever the
// cluster has decided about it meanwhile, or left out of it.
func TestApplyAgain(t *testing.T) {
	for name, manifest := range map[string]string{
		"ClusterIP":             `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"selector":{"app":"a"},"ports":[{"port":80}]}}`,
		"NodePort":              `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"type":"NodePort","selector":{"app":"a"},"ports":[{"port":80}]}}`,
		"NodePort, chosen":      `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"type":"NodePort","ports":[{"port":80,"nodePort":30080,"targetPort":8080}]}}`,
		"NodePort, zero":        `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"type":"NodePort","ports":[{"port":80,"nodePort":0}]}}`,
		"NodePort, with status": `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s","creationTimestamp":null},"spec":{"type":"NodePort","ports":[{"port":80}]},"status":{"loadBalancer":{}}}`,
		"two ports":             `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"type":"NodePort","ports":[{"name":"a","port":80,"protocol":"UDP"},{"name":"b","port":80}]}}`,
		"two NodePorts":         `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s","labels":{"app":"nginx"}},"spec":{"type":"NodePort","ports":[{"name":"http","port":80,"protocol":"TCP"},{"name":"https","port":443,"protocol":"TCP"}],"selector":{"app":"nginx"}}}`,
		"LoadBalancer":          `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"type":"LoadBalancer","ports":[{"port":80}]}}`,
		"headless":              `{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"clusterIP":"None","ports":[{"port":80}]}}`,
		"ConfigMap":             `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"s"},"data":{"a":"b"}}`,
		"Pod":                   `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"s"},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":80}]}]}}`,
	} {
		for _, encoding := range []holdfastv1.Encoding{holdfastv1.Encoding_ENCODING_JSON, holdfastv1.Encoding_ENCODING_PROTOBUF} {
			t.Run(fmt.Sprint(name, " ", encoding), func(t *testing.T) {
				objects := newCluster(t, 1).objects("peer-1")
				obj, err := object.Decode([]byte(manifest), 0)
				if err != nil {
					t.Fatal(err)
				}
				req := &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{{Encoding: encoding, Data: []byte(manifest)}}}
				if encoding == holdfastv1.Encoding_ENCODING_PROTOBUF {
					req.Objects = []*holdfastv1.Object{message(t, obj)}
				}
				var last *holdfastv1.Object
				for i, want := range []holdfastv1.ApplyAction{holdfastv1.ApplyAction_APPLY_ACTION_CREATED, holdfastv1.ApplyAction_APPLY_ACTION_UNCHANGED, holdfastv1.ApplyAction_APPLY_ACTION_UNCHANGED} {
					resp, err := objects.Apply(t.Context(), req)
					if err != nil {
						t.Fatal(err)
					}
					if got := resp.GetResults()[0].GetAction(); got != want {
						t.Errorf("apply %d: %s, want %s\nwas %s\nis  %s", i, got, want, jsonText(t, last), jsonText(t, resp.GetResults()[0].GetObject()))
					}
					last = resp.GetResults()[0].GetObject()
				}
			})
		}
	}
}

func jsonText(t *testing.T, o *holdfastv1.Object) string {
	t.Helper()
	if o == nil {
		return ""
	}
	obj, err := object.Decode(o.GetData(), o.GetRevision())
	if err != nil {
		t.Fatal(err)
	}
	text, err := object.EncodeJSON(obj)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
