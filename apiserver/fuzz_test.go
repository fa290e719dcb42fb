package apiserver

import (
	"testing"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// FuzzReadObject: no object of a request makes a peer panic, and one that is taken can be
// stored.
func FuzzReadObject(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"a"},"data":{"a":"YQ=="}}`))
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"a"}]}}`))
	for _, obj := range []object.Object{boundPod("web", "n1"), newSecret("a", "x")} {
		data, err := object.Encode(obj)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d, faults := readObject(object.Builtin(), &holdfastv1.Object{Data: data}, 0)
		if len(faults) > 0 {
			return
		}
		object.Default(d.obj)
		if len(object.Validate(d.obj)) > 0 {
			return
		}
		stored, err := object.Encode(d.obj)
		if err == nil {
			_, err = object.Decode(stored, 1)
		}
		if err != nil {
			t.Errorf("%q was taken: %v", data, err)
		}
	})
}

// FuzzSelectors: no selector or page token makes a peer panic.
func FuzzSelectors(f *testing.F) {
	f.Add("app in (a,b),!c", "metadata.name=a,spec.nodeName!=b", pageToken{Revision: 7, Key: "pods/a/b"}.String())
	f.Fuzz(func(t *testing.T, labels, fields, page string) {
		if m, err := newMatcher(podResource, labels, fields); err == nil {
			m.matches(boundPod("web", "n1"))
		}
		if token, err := parsePageToken(page, "pods/"); err == nil && token.Key < "pods/" {
			t.Errorf("%q leads out of the list: %+v", page, token)
		}
	})
}
