package apiserver

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestCorpus applies the real manifests of package object's testdata to a store,
// each file to an empty one. A file without faults is applied as it is: all that
// it says is in what is stored then, and a second apply changes nothing. Of one
// with faults nothing is stored, and the API names every fault that the reader of
// the file finds. How many of each kind pass is in object/testdata/corpus/report.txt.
func TestCorpus(t *testing.T) {
	applied, refused := 0, 0
	err := filepath.WalkDir("../object/testdata/corpus", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".yaml") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			docs, err := object.ParseManifests(path, data)
			if err != nil {
				t.Skip("is not read: ", err)
			}
			if applyFile(t, docs) {
				applied++
			} else {
				refused++
			}
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if applied == 0 || refused == 0 {
		t.Errorf("%d files were applied and %d refused: the corpus has both", applied, refused)
	}
}

func applyFile(t *testing.T, docs []object.Document) (ok bool) {
	t.Helper()
	client := newCluster(t, 1).objects("peer-1")
	var req holdfastv1.ApplyRequest
	var faults object.Faults
	for _, d := range docs {
		faults = append(faults, d.Check()...)
		if ns := d.Object.GetNamespace(); ns != "" && ns != "default" {
			text := fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`, ns)
			_, err := client.Apply(t.Context(), &holdfastv1.ApplyRequest{Objects: []*holdfastv1.Object{{Encoding: holdfastv1.Encoding_ENCODING_JSON, Data: text}}})
			if err != nil {
				t.Fatal(err)
			}
		}
		text, err := object.EncodeJSON(d.Object)
		if err != nil {
			t.Fatal(err)
		}
		req.Objects = append(req.Objects, &holdfastv1.Object{Encoding: holdfastv1.Encoding_ENCODING_JSON, Data: text})
	}
	resp, err := client.Apply(t.Context(), &req)
	if len(faults) > 0 {
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Fatalf("error is %v, want InvalidArgument for\n%v", err, faults)
		}
		for _, f := range faults {
			if !strings.Contains(err.Error(), f.Message) {
				t.Errorf("the API does not say %q:\n%v", f.Message, err)
			}
		}
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, result := range resp.GetResults() {
		r := object.ResourceOf(docs[i].Object)
		name := result.GetObject().GetName()
		if result.GetAction() != holdfastv1.ApplyAction_APPLY_ACTION_CREATED {
			t.Errorf("%s: %v, want created", name, result.GetAction())
		}
		got, err := client.Get(t.Context(), &holdfastv1.GetRequest{Kind: kindOf(r), Namespace: result.GetObject().GetNamespace(), Name: name, Encoding: holdfastv1.Encoding_ENCODING_JSON})
		if err != nil {
			t.Fatal(err)
		}
		var want, have any
		if err := json.Unmarshal(req.Objects[i].GetData(), &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got.GetObject().GetData(), &have); err != nil {
			t.Fatal(err)
		}
		for _, missing := range missingFrom(have, want, "") {
			t.Errorf("%s %s: %s", r.Kind, name, missing)
		}
	}
	again, err := client.Apply(t.Context(), &req)
	if err != nil {
		t.Fatal(err)
	}
	for _, result := range again.GetResults() {
		if result.GetAction() != holdfastv1.ApplyAction_APPLY_ACTION_UNCHANGED {
			t.Errorf("%s: a second apply: %v, want unchanged", result.GetObject().GetName(), result.GetAction())
		}
	}
	return true
}

// missingFrom returns what want says and have does not. Empty values count as
// unsaid.
func missingFrom(have, want any, path string) (missing []string) {
	switch want := want.(type) {
	case nil:
	case map[string]any:
		in, _ := have.(map[string]any)
		for name, value := range want {
			missing = append(missing, missingFrom(in[name], value, path+"."+name)...)
		}
	case []any:
		in, _ := have.([]any)
		for i, value := range want {
			if i >= len(in) {
				return append(missing, fmt.Sprintf("%s has %d items, want %d", path, len(in), len(want)))
			}
			missing = append(missing, missingFrom(in[i], value, fmt.Sprintf("%s[%d]", path, i))...)
		}
	default:
		if have != want && !slices.Contains([]any{"", false, 0.0}, want) {
			missing = append(missing, fmt.Sprintf("%s is %v, want %v", path, have, want))
		}
	}
	return missing
}
