package patch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestApply plays writes on one object. A file is a write: its name says how,
// "1 apply alice force", its text is what is written. How is apply, update,
// merge, strategic or json, with "/status" or "/scale" behind it, by a manager.
// After each write come its outcome and who owns what; "show" prints fields of the object.
func TestApply(t *testing.T) {
	golden.Run(t, "testdata/apply/*.txtar", func(t *testing.T, in golden.Input) string {
		p := player{kinds: testKinds(t, in), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
		for _, name := range in.Names() {
			if name == "crd" {
				continue
			}
			p.now = p.now.Add(time.Minute)
			fmt.Fprintf(&p.out, "# %s\n", name)
			p.step(t, strings.Fields(name)[1:], in.File(name))
			p.out.WriteString("\n")
		}
		return p.out.String()
	})
}

type player struct {
	kinds *object.Catalog
	obj   object.Object // nil: there is none
	rev   int
	now   time.Time
	out   strings.Builder
}

func (p *player) step(t *testing.T, words []string, text []byte) {
	if words[0] == "show" {
		p.show(t, strings.Fields(string(text)))
		return
	}
	how, subresource, _ := strings.Cut(words[0], "/")
	by := By{Manager: words[1], Subresource: subresource, Now: p.now}
	force := len(words) > 2 && words[2] == "force"
	p.convert(t, text)
	before := encoded(t, p.obj)

	next, err := p.write(how, text, force, by)
	if !bytes.Equal(encoded(t, p.obj), before) {
		t.Error("the old object was changed")
	}
	if err != nil {
		p.failed(err)
		return
	}
	switch {
	case p.obj == nil:
		next.SetUID(types.UID("11111111-1111-1111-1111-111111111111"))
		next.SetCreationTimestamp(metav1.NewTime(p.now))
		p.out.WriteString("created\n")
	case bytes.Equal(encoded(t, next), before):
		p.out.WriteString("unchanged\n")
		return
	default:
		p.out.WriteString("changed\n")
	}
	p.rev++
	next.SetResourceVersion(fmt.Sprint(p.rev))
	p.obj = next
	p.owners(t)
}

func (p *player) write(how string, text []byte, force bool, by By) (object.Object, error) {
	var next object.Object
	var err error
	switch how {
	case "apply":
		return Apply(p.kinds, p.obj, text, force, by)
	case "update":
		if next, err = p.kinds.Decode(text, 0); err == nil && p.obj != nil {
			next.SetUID(p.obj.GetUID())
			next.SetResourceVersion(p.obj.GetResourceVersion())
			next.SetCreationTimestamp(p.obj.GetCreationTimestamp())
		}
	case "merge":
		next, err = Merge(p.kinds, p.obj, text)
	case "strategic":
		next, err = Strategic(p.kinds, p.obj, text)
	case "json":
		next, err = JSON(p.kinds, p.obj, text)
	}
	if err != nil {
		return nil, err
	}
	object.Default(next)
	if p.obj != nil {
		keep(p.obj, next, by.Subresource) // as the API server does
	}
	return next, Track(p.obj, next, by)
}

// convert gives the object the version of what is written, as the API server does.
func (p *player) convert(t *testing.T, text []byte) {
	var is metav1.TypeMeta
	if p.obj == nil || yaml.Unmarshal(text, &is) != nil {
		return
	}
	gv, err := schema.ParseGroupVersion(is.APIVersion)
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.kinds.ForKind(gv.Group, gv.Version, is.Kind)
	if err != nil || r.String() != object.ResourceOf(p.obj).String() {
		return
	}
	if p.obj, err = object.Convert(p.obj, r); err != nil {
		t.Fatal(err)
	}
}

func (p *player) failed(err error) {
	conflict, ok := errors.AsType[*ConflictError](err)
	if !ok {
		fmt.Fprintf(&p.out, "error: %v\n", err)
		return
	}
	fmt.Fprintf(&p.out, "conflict: %v\n", conflict)
	for _, c := range conflict.Conflicts {
		fmt.Fprintf(&p.out, "  %s is %s's\n", c.Field, c.Manager)
	}
}

// owners writes who owns what.
func (p *player) owners(t *testing.T) {
	for _, entry := range p.obj.GetManagedFields() {
		var set fieldpath.Set
		if err := set.FromJSON(entry.FieldsV1.GetRawReader()); err != nil {
			t.Fatal(err)
		}
		at := ""
		if entry.Time != nil {
			at = " " + entry.Time.UTC().Format("15:04")
		}
		fmt.Fprintf(&p.out, "  %s, %s %s%s%s:\n", entry.Manager, entry.Operation, entry.APIVersion, at, strings.TrimRight(" "+entry.Subresource, " "))
		set.Leaves().Iterate(func(path fieldpath.Path) { fmt.Fprintf(&p.out, "    %s\n", path) })
	}
}

// show prints fields of the object: not all of them, since defaults are not this
// package's.
func (p *player) show(t *testing.T, fields []string) {
	var all map[string]any
	if err := json.Unmarshal(encoded(t, p.obj), &all); err != nil {
		t.Fatal(err)
	}
	for _, name := range fields {
		value, _, err := unstructured.NestedFieldNoCopy(all, strings.Split(name, ".")...)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&p.out, "%s: %s\n", name, text)
	}
}

func encoded(t *testing.T, obj object.Object) []byte {
	t.Helper()
	if obj == nil {
		return nil
	}
	data, err := object.EncodeJSON(obj)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// testKinds returns the catalog with the custom kinds that a case defines.
func testKinds(t *testing.T, in golden.Input) *object.Catalog {
	t.Helper()
	text, ok := in.Lookup("crd")
	if !ok {
		return object.Builtin()
	}
	crd := new(apiextensionsv1.CustomResourceDefinition)
	if err := yaml.UnmarshalStrict(text, crd); err != nil {
		t.Fatal(err)
	}
	return object.Builtin().With(crd)
}
