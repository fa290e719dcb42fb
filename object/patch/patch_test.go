package patch

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestPatch applies each patch of a case to its object: the name of a patch's
// file ends in .json (RFC 6902), .merge or .strategic.
func TestPatch(t *testing.T) {
	golden.Run(t, "testdata/patch/*.txtar", func(t *testing.T, in golden.Input) string {
		kinds := testKinds(t, in)
		old, err := kinds.Decode(in.File("object"), 7)
		if err != nil {
			t.Fatal(err)
		}
		old.SetUID("11111111-1111-1111-1111-111111111111")
		before := encoded(t, old)
		var out strings.Builder
		for _, name := range in.Names() {
			form := map[string]func(Kinds, object.Object, []byte) (object.Object, error){".json": JSON, ".merge": Merge, ".strategic": Strategic}[path.Ext(name)]
			if form == nil {
				continue
			}
			next, err := form(kinds, old, in.File(name))
			fmt.Fprintf(&out, "# %s\n", name)
			switch {
			case err != nil:
				fmt.Fprintf(&out, "%s: %v\n\n", kindOfError(err), err)
			case bytes.Equal(encoded(t, next), before):
				out.WriteString("unchanged\n\n")
			default:
				text, err := object.EncodeYAML(next)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&out, "%s\n", text)
			}
			if !bytes.Equal(encoded(t, old), before) {
				t.Fatalf("%s changed the object that it is applied to", name)
			}
		}
		return out.String()
	})
}

// kindOfError says which error a caller can tell it by.
func kindOfError(err error) string {
	for name, kind := range map[string]error{
		"malformed": ErrMalformed, "inapplicable": ErrInapplicable, "unsupported": ErrUnsupported, "precondition": ErrPrecondition,
	} {
		if errors.Is(err, kind) {
			return name
		}
	}
	if _, ok := errors.AsType[object.Faults](err); ok {
		return "faults"
	}
	return "error"
}

// TestLimits: what would cost too much is refused before it does.
func TestLimits(t *testing.T) {
	pod := &corev1.Pod{}
	pod.SetName("a")
	pod.SetAnnotations(map[string]string{"big": strings.Repeat("x", 100_000)})
	operations := func(n int, one string) []byte {
		return []byte("[" + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + "]")
	}
	for _, c := range []struct {
		name  string
		apply func(Kinds, object.Object, []byte) (object.Object, error)
		patch []byte
		want  error
	}{
		{"bytes of a JSON patch", JSON, bytes.Repeat([]byte(" "), MaxBytes+1), ErrMalformed},
		{"bytes of a merge patch", Merge, bytes.Repeat([]byte(" "), MaxBytes+1), ErrMalformed},
		{"bytes of a strategic patch", Strategic, bytes.Repeat([]byte(" "), MaxBytes+1), ErrMalformed},
		{"operations", JSON, operations(MaxOperations+1, `{"op":"test","path":"/kind","value":"Pod"}`), ErrMalformed},
		{"operations, the most", JSON, operations(MaxOperations, `{"op":"test","path":"/kind","value":"Pod"}`), nil},
		{"bytes copied", JSON, operations(40, `{"op":"copy","from":"/metadata/annotations/big","path":"/metadata/annotations/other"}`), ErrInapplicable},
		{"bytes copied, less", JSON, operations(20, `{"op":"copy","from":"/metadata/annotations/big","path":"/metadata/annotations/other"}`), nil},
		{"aliases", Merge, []byte("a: &a [" + strings.Repeat("x,", 1000) + "]\nb: &b [" + strings.Repeat("*a,", 1000) + "]\nc: [" + strings.Repeat("*b,", 1000) + "]"), ErrMalformed},
		{"depth", Merge, []byte(strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000)), ErrMalformed},
	} {
		if _, err := c.apply(object.Builtin(), pod, c.patch); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// FuzzPatch: no patch breaks anything, whatever it is; what comes out is an
// object of the same kind and name.
func FuzzPatch(f *testing.F) {
	for _, seed := range []string{
		`[{"op":"add","path":"/metadata/labels/a","value":"b"}]`,
		`[{"op":"move","from":"/spec/containers/0","path":"/spec/containers/1"},{"op":"test","path":"","value":null}]`,
		`[{"op":"copy","from":"/spec","path":"/spec/containers/-"}]`, `[{}]`, `[null]`, `[{"op":"remove","path":null}]`,
		`{"spec":{"containers":[{"name":"a","$patch":"delete"}],"$setElementOrder/containers":[{"name":"b"}]}}`,
		`{"spec":{"$retainKeys":["containers"],"$patch":"replace"}}`, `{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"]}}`,
		`{"spec":{"containers":[null]}}`, `{"spec":null}`, `null`, ``, "a: &a [*a]", `{"spec":{"containers":{"name":1}}}`,
		`apiVersion: v1` + "\n" + `kind: Pod` + "\n" + `metadata: {name: a, namespace: default}`,
		`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"a","ports":[{"containerPort":1},{"containerPort":1}]}]}}`,
	} {
		f.Add([]byte(seed))
	}
	old, err := object.Decode([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"default","finalizers":["a/b"],"labels":{"x":"y"}},
		"spec":{"containers":[{"name":"a","image":"i","ports":[{"containerPort":80}]},{"name":"b","env":[{"name":"E","value":"1"}]}]}}`), 3)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, patch []byte) {
		before := encoded(t, old)
		for _, apply := range []func(Kinds, object.Object, []byte) (object.Object, error){JSON, Merge, Strategic, func(kinds Kinds, old object.Object, config []byte) (object.Object, error) {
			return Apply(kinds, old, config, true, By{Manager: "fuzz"})
		}} {
			next, err := apply(object.Builtin(), old, patch)
			if (next == nil) == (err == nil) {
				t.Fatalf("object %v, error %v", next, err)
			}
			if err != nil {
				continue
			}
			if object.KeyOf(next) != object.KeyOf(old) {
				t.Errorf("the patch made %s", object.KeyOf(next))
			}
			if err := Track(old, next, By{Manager: "fuzz"}); err != nil {
				t.Error(err)
			}
		}
		if !bytes.Equal(encoded(t, old), before) {
			t.Error("the old object was changed")
		}
	})
}
