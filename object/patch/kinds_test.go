package patch

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/holdfast-io/holdfast/object"
)

// TestEveryKind applies an object of each kind in which every field is set: what
// comes out is what went in, a second time changes nothing, and an apply of
// nothing takes all of it away again.
func TestEveryKind(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, r := range object.Builtin().Versions() {
		t.Run(r.Kind+"."+r.Version, func(t *testing.T) {
			t.Parallel() // managers and schemas are shared
			wanted := object.New(r)
			fill(reflect.ValueOf(wanted).Elem(), 0)
			wanted.GetObjectKind().SetGroupVersionKind(object.New(r).GetObjectKind().GroupVersionKind())
			wanted.SetManagedFields(nil)
			wanted.SetResourceVersion("")
			wanted.SetUID("")
			if !r.Namespaced {
				wanted.SetNamespace("")
			}
			if r.Status {
				setStatus(wanted, reflect.Zero(reflect.TypeOf(statusOf(wanted))).Interface())
			}
			config, err := object.EncodeJSON(wanted)
			if err != nil {
				t.Fatal(err)
			}
			by := By{Manager: "alice", Now: now}
			got, err := Apply(object.Builtin(), nil, config, false, by)
			if err != nil {
				t.Fatal(err)
			}
			// There was nothing to merge with, which is faster; merging says the same.
			m, err := managerFor(wanted, "")
			if err != nil {
				t.Fatal(err)
			}
			var fields map[string]any
			if err := utiljson.Unmarshal(config, &fields); err != nil {
				t.Fatal(err)
			}
			live := object.New(r)
			live.SetName(wanted.GetName())
			live.SetNamespace(wanted.GetNamespace())
			merged, err := m.merge(nil, live, fields, false, by)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, "merged", encoded(t, got), encoded(t, merged))

			entries := got.GetManagedFields()
			if len(entries) != 1 {
				t.Fatalf("managed fields are %v", entries)
			}
			var set fieldpath.Set
			if err := set.FromJSON(entries[0].FieldsV1.GetRawReader()); err != nil || set.Empty() {
				t.Fatalf("fields %s: %v", entries[0].FieldsV1.GetRawString(), err)
			}
			got.SetManagedFields(nil)
			object.Default(wanted)
			compare(t, "applied", encoded(t, got), encoded(t, wanted))

			got.SetManagedFields(entries)
			got.SetUID("1")
			by.Now = now.Add(time.Hour)
			again, err := Apply(object.Builtin(), got, config, false, by)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, "applied again", encoded(t, again), encoded(t, got))

			nothing, err := json.Marshal(map[string]any{
				"apiVersion": r.APIVersion(), "kind": r.Kind, "metadata": map[string]any{"name": wanted.GetName(), "namespace": wanted.GetNamespace()},
			})
			if err != nil {
				t.Fatal(err)
			}
			bare, err := Apply(object.Builtin(), got, nothing, false, by)
			if err != nil {
				t.Fatal(err)
			}
			if bare.GetManagedFields() != nil {
				t.Errorf("owns %v after an apply of nothing", bare.GetManagedFields())
			}
			empty := object.New(r)
			empty.SetName(wanted.GetName())
			empty.SetNamespace(wanted.GetNamespace())
			empty.SetUID("1")
			empty.SetCreationTimestamp(bare.GetCreationTimestamp())
			empty.SetGeneration(bare.GetGeneration())
			empty.SetSelfLink(bare.GetSelfLink())
			object.Default(empty)
			if r.Status {
				setStatus(empty, statusOf(bare))
			}
			compare(t, "applied nothing", encoded(t, bare), encoded(t, empty))
		})
	}
}

// compare fails where two texts first differ.
func compare(t *testing.T, what string, got, want []byte) {
	t.Helper()
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	if at < max(len(got), len(want)) {
		part := func(text []byte) []byte { return text[min(max(0, at-100), len(text)):min(at+100, len(text))] }
		t.Errorf("%s:\n…%s…\nwant\n…%s…", what, part(got), part(want))
	}
}

// fill sets every field below v.
func fill(v reflect.Value, depth int) {
	switch at := v.Addr().Interface().(type) {
	case *metav1.Time:
		*at = metav1.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		return
	case *metav1.MicroTime:
		*at = metav1.NewMicroTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
		return
	case *intstr.IntOrString:
		*at = intstr.FromString("50%")
		return
	case *runtime.RawExtension:
		at.Raw = []byte(`{"a":{"b":[1]},"apiVersion":"v1","kind":"ConfigMap"}`)
		return
	case *metav1.FieldsV1:
		at.SetRawString(`{"f:a":{}}`)
		return
	case *types.UID:
		*at = "1"
		return
	case *apiextensionsv1.JSONSchemaPropsOrArray:
		at.Schema = &apiextensionsv1.JSONSchemaProps{Type: "x"}
		return
	case *apiextensionsv1.JSONSchemaPropsOrStringArray:
		at.Property = []string{"x"}
		return
	case json.Unmarshaler:
		// A quantity, or a part of a schema: what can be read and is not left out.
		for _, text := range []string{`"1"`, `["1"]`, `[{"type":"string"}]`, `true`} {
			if json.Unmarshal([]byte(text), at) != nil {
				continue
			}
			if back, err := json.Marshal(at); err == nil && string(back) == text {
				return
			}
		}
	}
	const deepest = 12 // types within themselves
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(3)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Pointer:
		if depth < deepest {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), depth+1)
		}
	case reflect.Slice:
		if depth < deepest {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			if v.Type().Elem().Kind() == reflect.Uint8 {
				v.SetBytes([]byte("x"))
				return
			}
			fill(v.Index(0), depth+1)
		}
	case reflect.Map:
		if depth < deepest {
			value := reflect.New(v.Type().Elem()).Elem()
			fill(value, depth+1)
			v.Set(reflect.MakeMap(v.Type()))
			v.SetMapIndex(reflect.ValueOf("x").Convert(v.Type().Key()), value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && v.Type().Field(i).Tag.Get("json") != "-" {
				fill(v.Field(i), depth+1)
			}
		}
	}
}

// TestFirst: what is applied where there is nothing is what merging it into nothing
// makes, also of values that say little, and of a status, which nobody owns that way.
func TestFirst(t *testing.T) {
	by := By{Manager: "alice", Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	for _, config := range []string{
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}`,
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"b","labels":null,"annotations":{},"uid":"","generation":3},"data":{"k":""},"binaryData":null}`,
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","creationTimestamp":null,"finalizers":["a/b"],"ownerReferences":[]}}`,
		`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i","env":[],"resources":{},"ports":null}],"nodeSelector":{},"hostNetwork":false,"volumes":null}}`,
		`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":null},"status":{"phase":"Running"}}`,
		`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":1,"memory":"1Gi"}}},{"name":"d","resources":{"requests":{"cpu":"1500m"}}}]}}`,
		`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"a"},"spec":{"replicas":null,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"creationTimestamp":null},"spec":{"containers":[]}}}}`,
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":80,"targetPort":"web"},{"port":80,"protocol":"UDP","targetPort":81}]}}`,
		`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a"},"data":{"k":"aGVsbG8="},"stringData":{"l":"m"}}`,
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"name":"b","port":80},{"name":"c","port":443}]}}`,
		`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","env":[{"name":"a<b&c"},{"name":"Z"}],"ports":[{"containerPort":9},{"containerPort":10}]}]}}`,
		// Much like others, and yet of other fields.
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":80,"targetPort":"web"},{"port":81,"protocol":"UDP","targetPort":81}]}}`,
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":80,"targetPort":"web"},{"port":80,"protocol":"SCTP","targetPort":81}]}}`,
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","creationTimestamp":null,"finalizers":["a/c"],"ownerReferences":[]}}`,
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","creationTimestamp":null,"finalizers":["a/c","a/b"],"ownerReferences":[]}}`,
		`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"e","resources":{"requests":{"cpu":1,"memory":"1Gi"}}},{"name":"d","resources":{"requests":{"cpu":"1500m"}}}]}}`,
		`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"e","resources":{"requests":{"cpu":1}}},{"name":"d","resources":{"requests":{"cpu":"1500m","memory":"1Gi"}}}]}}`,
	} {
		obj, err := object.Decode([]byte(config), 0)
		if err != nil {
			t.Fatal(err)
		}
		m, err := managerFor(obj, "")
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]any
		if err := utiljson.Unmarshal([]byte(config), &fields); err != nil {
			t.Fatal(err)
		}
		live := object.New(object.ResourceOf(obj))
		live.SetName(obj.GetName())
		live.SetNamespace(obj.GetNamespace())
		want, err := m.merge(nil, live, fields, false, by)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time its shape is known
			got, err := Apply(object.Builtin(), nil, []byte(config), false, by)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, config, encoded(t, got), encoded(t, want))
		}
	}
}
