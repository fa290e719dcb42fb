package apiserver

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect/v2"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const widgetDefinition = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"widgets.example.com"},
"spec":{"group":"example.com","scope":"Namespaced","names":{"plural":"widgets","singular":"widget","kind":"Widget","listKind":"WidgetList","shortNames":["wd"]},
"versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{},"scale":{"specReplicasPath":".spec.size","statusReplicasPath":".status.size"}},
"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","properties":{"size":{"type":"integer","minimum":1},"colour":{"type":"string","default":"red"}}},"status":{"type":"object","properties":{"size":{"type":"integer"}}}}}}}]}}`

// TestCustomKinds: a kind that a definition makes is as good as a built-in one, for
// every verb, on every peer, from the moment of the definition on.
func TestCustomKinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, raft := newRaftCluster(t, 3)
		leader := raft.WaitLeader(raft.Peers...)
		ctx := withIdentity(t.Context(), alice)
		peers := raft.Peers
		at := func(i int) ObjectAPI { return c.servers[peers[i].ID].Objects() }
		kind := &holdfastv1.Kind{Group: "example.com", Version: "v1", Kind: "Widget"}
		fields := func(obj *holdfastv1.Object) (out struct {
			Metadata struct {
				Generation int
				UID        string
			}
			Spec struct {
				Size   int
				Colour string
			}
			Status struct{ Size int }
		},
		) {
			t.Helper()
			if obj.GetEncoding() != holdfastv1.Encoding_ENCODING_JSON || json.Unmarshal(obj.GetData(), &out) != nil {
				t.Fatalf("%v", obj)
			}
			return out
		}

		_, err := at(0).Get(ctx, &holdfastv1.GetRequest{Kind: kind, Name: "w"})
		wantCode(t, err, connect.CodeInvalidArgument, `kind "Widget" (example.com/v1) is unknown`)
		defined, err := c.servers[leader.ID].Objects().Apply(ctx, &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{text(widgetDefinition)}})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(defined.GetResults()[0].GetObject().GetData()), `"type":"Established"`) {
			t.Errorf("not established: %s", defined.GetResults()[0].GetObject().GetData())
		}
		// Whichever peer is asked next.
		for i := range peers {
			name := "w" + peers[i].ID
			made, err := at(i).Create(ctx, &holdfastv1.CreateRequest{Object: text(`{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"` + name + `"},"spec":{"size":2},"status":{"size":9}}`)})
			if err != nil {
				t.Fatal(err)
			}
			if w := fields(made.GetObject()); w.Spec.Colour != "red" || w.Status.Size != 0 || w.Metadata.Generation != 1 || w.Metadata.UID == "" {
				t.Errorf("made %s", made.GetObject().GetData())
			}
		}
		_, err = at(0).Create(ctx, &holdfastv1.CreateRequest{Object: text(`{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"x"},"spec":{"size":0}}`)})
		wantCode(t, err, connect.CodeInvalidArgument, "spec.size")

		patched, err := at(1).Patch(ctx, &holdfastv1.PatchRequest{Kind: kind, Name: "wp1", Type: holdfastv1.PatchType_PATCH_TYPE_MERGE, Patch: []byte(`{"spec":{"size":3},"status":{"size":9}}`)})
		if err != nil {
			t.Fatal(err)
		}
		if w := fields(patched.GetObject()); w.Spec.Size != 3 || w.Status.Size != 0 || w.Metadata.Generation != 2 {
			t.Errorf("patched %s", patched.GetObject().GetData())
		}
		patched, err = at(2).Patch(ctx, &holdfastv1.PatchRequest{Kind: kind, Name: "wp1", Subresource: "status", Type: holdfastv1.PatchType_PATCH_TYPE_MERGE, Patch: []byte(`{"spec":{"size":4},"status":{"size":3}}`)})
		if err != nil {
			t.Fatal(err)
		}
		if w := fields(patched.GetObject()); w.Spec.Size != 3 || w.Status.Size != 3 || w.Metadata.Generation != 2 {
			t.Errorf("status patched %s", patched.GetObject().GetData())
		}
		_, err = at(2).Patch(ctx, &holdfastv1.PatchRequest{Kind: kind, Name: "wp1", Type: holdfastv1.PatchType_PATCH_TYPE_STRATEGIC, Patch: []byte(`{}`)})
		if wantCode(t, err, connect.CodeInvalidArgument, "strategic merge patches are for built-in kinds"); infoOf(err).GetReason() != "UnsupportedMediaType" {
			t.Errorf("reason of %v", err)
		}
		scaled, err := at(0).Patch(ctx, &holdfastv1.PatchRequest{Kind: kind, Name: "wp1", Subresource: "scale", Type: holdfastv1.PatchType_PATCH_TYPE_MERGE, Patch: []byte(`{"spec":{"replicas":7}}`), Encoding: holdfastv1.Encoding_ENCODING_JSON})
		if err != nil || !strings.Contains(string(scaled.GetObject().GetData()), `"replicas":7`) {
			t.Errorf("scaled: %v, %v", scaled, err)
		}
		list, err := at(1).List(ctx, &holdfastv1.ListRequest{Kind: kind, FieldSelector: "metadata.name=wp1"})
		if err != nil || len(list.GetObjects()) != 1 || fields(list.GetObjects()[0]).Spec.Size != 7 {
			t.Errorf("list: %v, %v", list, err)
		}
		kinds, err := at(0).Kinds(ctx, &holdfastv1.KindsRequest{})
		if err != nil || !slices.ContainsFunc(kinds.GetResources(), func(r *holdfastv1.Resource) bool {
			return r.GetPlural() == "widgets" && r.GetCustom() && r.GetNamespaced() && slices.Equal(r.GetSubresources(), []string{"status", "scale"})
		}) {
			t.Errorf("kinds: %v, %v", kinds, err)
		}
		schema, err := at(0).Schema(ctx, &holdfastv1.SchemaRequest{Group: "example.com", Version: "v1"})
		if err != nil || !strings.Contains(string(schema.GetDocument()), "colour") || schema.GetEtag() == "" {
			t.Errorf("schema: %v", err)
		}
		gone, err := at(2).Delete(ctx, &holdfastv1.DeleteRequest{Kind: kind, Name: "wp1"})
		if err != nil || !gone.GetGone() {
			t.Errorf("delete: %v, %v", gone, err)
		}
	})
}

// TestVersions: an object of a kind with two versions is the same by both names.
func TestVersions(t *testing.T) {
	c := newCluster(t, 1)
	ctx, objects := t.Context(), c.objects("peer-1")
	made, err := objects.Create(ctx, &holdfastv1.CreateRequest{Object: text(`{"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler","metadata":{"name":"web"},
		"spec":{"maxReplicas":5,"targetCPUUtilizationPercentage":80,"scaleTargetRef":{"apiVersion":"apps/v1","kind":"Deployment","name":"web"}}}`)})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(made.GetObject().GetData()), `"targetCPUUtilizationPercentage":80`) {
		t.Errorf("made %s", made.GetObject().GetData())
	}
	get := func(version string, encoding holdfastv1.Encoding) string {
		resp, err := objects.Get(ctx, &holdfastv1.GetRequest{Kind: &holdfastv1.Kind{Group: "autoscaling", Version: version, Kind: "HorizontalPodAutoscaler"}, Name: "web", Encoding: encoding})
		if err != nil || resp.GetObject().GetKind().GetVersion() != version {
			t.Fatalf("%v, %v", resp, err)
		}
		return string(resp.GetObject().GetData())
	}
	for _, encoding := range []holdfastv1.Encoding{holdfastv1.Encoding_ENCODING_PROTOBUF, holdfastv1.Encoding_ENCODING_JSON} {
		if got := get("v1", encoding); !strings.Contains(got, `"apiVersion":"autoscaling/v1"`) || !strings.Contains(got, `"targetCPUUtilizationPercentage":80`) {
			t.Errorf("v1 in %v: %s", encoding, got)
		}
	}
	if got := get("v2", holdfastv1.Encoding_ENCODING_JSON); !strings.Contains(got, `"averageUtilization":80`) {
		t.Errorf("v2: %s", got)
	}
	patched, err := objects.Patch(ctx, &holdfastv1.PatchRequest{
		Kind: &holdfastv1.Kind{Group: "autoscaling", Version: "v1", Kind: "HorizontalPodAutoscaler"}, Name: "web",
		Type: holdfastv1.PatchType_PATCH_TYPE_MERGE, Patch: []byte(`{"spec":{"targetCPUUtilizationPercentage":50}}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(get("v2", holdfastv1.Encoding_ENCODING_JSON), `"averageUtilization":50`) {
		t.Errorf("patched in v1: %s", patched.GetObject().GetData())
	}
}
