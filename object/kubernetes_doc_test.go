package object

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const kubernetesDoc = "../docs/kubernetes.md"

// TestKubernetesDoc holds docs/kubernetes.md: what of each kind works is written from
// the tables by which objects are taken or refused, so it cannot say anything else.
func TestKubernetesDoc(t *testing.T) {
	want := kubernetesText()
	if lines := bytes.Count(want, []byte("\n| `")); lines < 400 {
		t.Fatalf("only %d fields, want those of all kinds", lines)
	}
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(kubernetesDoc, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(kubernetesDoc)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Errorf("%s is not what the tables say: go test ./object -run TestKubernetesDoc -update writes it; review the difference", kubernetesDoc)
	}
}

// What is described once.
var described = map[reflect.Type]string{
	reflect.TypeFor[corev1.PodSpec]():   "as of a [Pod](#pod-v1)",
	reflect.TypeFor[corev1.Container](): "as of `containers`",
}

func kubernetesText() []byte {
	var b bytes.Buffer
	b.WriteString(`# Kubernetes' fields

Holdfast takes Kubernetes' manifests. This is what of each kind has behavior, field by field; it is written from the tables by which
objects are taken or refused (` + "`go test ./object -run TestKubernetesDoc -update`" + `), so it says what this version does.

- **works**: as Kubernetes documents it, and everything below the field too.
- **only** …: these values work, the others are refused.
- **refused**: an object in which the field is set is refused, with the field's path and its line. Nothing is ignored in silence.
- *alpha*: no stable field. Kubernetes itself ignores it unless a feature is turned on; here it is refused.

`)
	var all []*kind
	for i := range kinds {
		all = append(all, &kinds[i])
	}
	slices.SortStableFunc(all, func(a, b *kind) int {
		return cmp.Or(cmp.Compare(a.resource.Group, b.resource.Group), cmp.Compare(a.resource.Kind, b.resource.Kind), cmp.Compare(b.resource.Version, a.resource.Version))
	})
	group := "-"
	for _, k := range all {
		if !k.served {
			continue
		}
		if g := cmp.Or(k.resource.Group, "core"); g != group {
			if group != "-" {
				b.WriteByte('\n')
			}
			group = g
			fmt.Fprintf(&b, "- %s: ", group)
		} else {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "[%s](#%s)", k.resource.Kind, strings.NewReplacer(" ", "-", "/", "", ".", "").Replace(strings.ToLower(docTitle(k))))
	}
	b.WriteString("\n\n## metadata\n\nOf every kind.\n")
	d := fieldDoc{b: &b}
	d.table(func() {
		d.walk(reflect.TypeFor[metav1.ObjectMeta](), Supported(ResourceOf(&corev1.Pod{})).Field("metadata"), "metadata", "")
	})
	for _, k := range all {
		if !k.served {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n", docTitle(k))
		if k.inert != "" {
			fmt.Fprintf(&b, "\nStored and served; %s.\n", k.inert)
		}
		d.pod = k.goType == reflect.TypeFor[*corev1.Pod]()
		d.table(func() {
			place := Supported(k.resource)
			for _, f := range docFields(k.goType.Elem()) {
				if f.name != "metadata" && f.name != "apiVersion" && f.name != "kind" {
					d.field(f, place.Field(f.name), "", k.goType.Elem())
				}
			}
		})
	}
	return b.Bytes()
}

func docTitle(k *kind) string {
	return k.resource.Kind + " " + strings.TrimPrefix(k.resource.Group+"/"+k.resource.Version, "/")
}

// fieldDoc writes tables of fields.
type fieldDoc struct {
	b     *bytes.Buffer
	pod   bool // pods' own: their spec is written out
	lines int
}

func (d *fieldDoc) table(fill func()) {
	d.b.WriteString("\n| field | |\n|---|---|\n")
	d.lines = 0
	if fill(); d.lines == 0 {
		d.line("no other", "works", "")
	}
}

func (d *fieldDoc) line(path, what, note string) {
	d.lines++
	if note != "" {
		what += ", " + note
	}
	fmt.Fprintf(d.b, "| `%s` | %s |\n", path, what)
}

type docField struct {
	name string
	of   reflect.Type
}

// docFields returns the fields of a struct as JSON has them, in Kubernetes' order.
func docFields(t reflect.Type) (out []docField) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case !f.IsExported() || name == "-":
		case name == "" || strings.Contains(options, "inline"):
			out = append(out, docFields(elementOf(f.Type))...)
		default:
			out = append(out, docField{name, f.Type})
		}
	}
	return out
}

// field writes what is to be said of a field of a struct of type in.
func (d *fieldDoc) field(f docField, place Support, parent string, in reflect.Type) {
	path := strings.TrimPrefix(parent+"."+f.name, ".")
	note := ""
	if docs, ok := reflect.New(in).Interface().(interface{ SwaggerDoc() map[string]string }); ok {
		if text := strings.ToLower(docs.SwaggerDoc()[f.name]); strings.Contains(text, "alpha field") || strings.Contains(text, "alpha-level") || strings.Contains(text, "alpha level") || strings.Contains(text, "is alpha") {
			note = "*alpha*"
		}
	}
	d.walk(f.of, place, path, note)
}

// walk writes what is to be said of a place, and of those below it if it is not all
// the same.
func (d *fieldDoc) walk(t reflect.Type, place Support, path, note string) {
	suffix := ""
	for {
		switch {
		case place.None():
			d.line(path+suffix, "refused", note)
			return
		case place.All():
			d.line(path+suffix, "**works**", "")
			return
		}
		switch {
		case t.Kind() == reflect.Pointer:
			t = t.Elem()
			continue
		case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
			t, place, suffix = t.Elem(), place.Item(), suffix+"[]"
			continue
		}
		break
	}
	path += suffix
	only := place.Only()
	switch {
	case t == reflect.TypeFor[corev1.PodSpec]() && !d.pod:
		d.line(path, described[t], "")
	case t == reflect.TypeFor[corev1.Container]() && strings.HasPrefix(path, "spec.init"):
		d.line(path, described[t], "")
	case t == reflect.TypeFor[metav1.ObjectMeta]() && path != "metadata":
		d.line(path, "labels, annotations and finalizers **work**", "")
	case t.Kind() == reflect.Map:
		for _, key := range only {
			d.line(path+"["+strings.Replace(key, "*/*", "DOMAIN/NAME", 1)+"]", "**works**", "")
		}
		d.line(path+"[…]", "refused", "any other")
	case len(only) > 0 && only[0] == "{}":
		d.line(path, "**works**", "empty")
	case len(only) > 0:
		var values []string
		for _, v := range only {
			values = append(values, "`"+v+"`")
		}
		d.line(path, "only "+strings.Join(values, ", "), "")
	case t.Kind() == reflect.Struct:
		for _, f := range docFields(t) {
			d.field(f, place.Field(f.name), path, t)
		}
	default:
		d.line(path, "**works**", "")
	}
}
