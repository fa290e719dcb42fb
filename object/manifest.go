package object

import (
	"errors"
	"fmt"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Document is one object of a manifest, and where it stands there.
type Document struct {
	File   string
	Line   int // of its first line, from 1
	Index  int // which object of the file, from 0
	Object Object

	lines map[string]int // field path -> line
	bad   []string       // paths that could not be read; empty in what ParseManifests returns without error
}

// LineOf returns the line on which a field is given, for example
// "spec.template.spec.containers[0].image"; for a field that is not given, the
// line of the nearest enclosing one that is.
func (d Document) LineOf(field string) int {
	field = d.secretField(field)
	for {
		if line, ok := d.lines[field]; ok {
			return line
		}
		parent := parentPath(field)
		if parent == "" {
			return d.Line
		}
		field = parent
	}
}

// parentPath removes the last segment of a field path: ".name", "[0]" or
// "[app.kubernetes.io/name]".
func parentPath(path string) string {
	cut, inside := 0, false
	for i, c := range path {
		switch c {
		case '.':
			if !inside {
				cut = i
			}
		case '[':
			if !inside {
				cut, inside = i, true
			}
		case ']':
			inside = false
		}
	}
	return path[:cut]
}

// Check returns everything wrong with the document's object after defaults are
// filled in, with file and line. The object itself is not changed. A missing
// namespace counts as "default": which one is meant is the reader's to say.
func (d Document) Check() Faults {
	obj := d.Object.DeepCopyObject().(Object)
	if ResourceOf(obj).Namespaced && obj.GetNamespace() == "" {
		obj.SetNamespace("default")
	}
	if obj.GetName() == "" && obj.GetGenerateName() != "" {
		obj.SetName(obj.GetGenerateName() + "xxxxx") // as the API server will, with other letters
	}
	Default(obj)
	name := Title(d.Object)
	var faults Faults
	for _, f := range Validate(obj) {
		if d.spoiled(f.Field) {
			continue
		}
		f.File, f.Line, f.Index, f.Object = d.File, d.LineOf(f.Field), d.Index, name
		faults = append(faults, f)
	}
	sortFaults(faults)
	return faults
}

// spoiled reports whether what stands at path could not be read as it was meant,
// so that a further fault there would only be an echo.
func (d Document) spoiled(path string) bool {
	for _, bad := range d.bad {
		if within(path, bad) || within(bad, path) {
			return true
		}
		// Labels are compared with the selector.
		if within(bad, "spec.selector") && within(path, "spec.template.metadata.labels") {
			return true
		}
	}
	return false
}

// within reports whether path is parent or lies below it.
func within(path, parent string) bool {
	rest, ok := strings.CutPrefix(path, parent)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// ParseManifests reads a manifest of built-in kinds: [Catalog.ParseManifests].
func ParseManifests(file string, data []byte) ([]Document, error) {
	return builtin.ParseManifests(file, data)
}

// ParseManifests reads the objects of a manifest: YAML documents or JSON values,
// lists (kind List and its like) taken apart. file is the name used in faults.
//
// Reading is strict: unknown fields, keys given twice, values of the wrong type,
// kinds that are not served and objects given twice are faults. The error is of
// type [Faults] and has all faults of all documents in the order of the text,
// each with its line: then also those that [Document.Check] finds, so that a
// person sees everything at once.
//
// Without faults, the objects are as written: neither defaulted nor validated.
// A manifest without objects is not an error.
//
// A CustomResourceDefinition makes its kind known to the documents after it.
func (c *Catalog) ParseManifests(file string, data []byte) ([]Document, error) {
	docs, faults := c.parse(file, data)
	if len(faults) == 0 {
		return docs, nil
	}
	for _, d := range docs {
		faults = append(faults, d.Check()...)
	}
	sortFaults(faults)
	return nil, faults
}

// parse reads the objects of a manifest, and of those with faults as much as can
// be read.
func (c *Catalog) parse(file string, data []byte) ([]Document, Faults) {
	p := parser{catalog: c, file: file, seen: map[string]int{}}
	roots, errs := readSource(data)
	for _, err := range errs {
		fault := Fault{File: file, Message: err.Error()}
		if at, ok := errors.AsType[*sourceError](err); ok {
			fault.Line, fault.Message = at.line, at.message
		}
		p.faults = append(p.faults, fault)
	}
	for _, root := range roots {
		p.document(root)
	}
	sortFaults(p.faults)
	return p.docs, p.faults
}

type parser struct {
	catalog *Catalog // grows by the definitions that are read
	file    string
	docs    []Document
	faults  Faults
	next    int            // index of the next object
	seen    map[string]int // object -> line, to find it given twice
}

// document reads one object, or a list of them.
func (p *parser) document(root *node) {
	if root.kind != mapNode {
		p.fault(root.line, "", "", fmt.Sprintf("an object must be a map with apiVersion, kind and metadata, is %s", root))
		p.next++
		return
	}
	apiVersion, versionOK := p.word(root, "apiVersion", `"v1" or "apps/v1"`)
	kindName, kindOK := p.word(root, "kind", `"Pod" or "Deployment"`)
	if !kindOK {
		p.next++
		return
	}
	if p.isList(root, apiVersion, kindName) {
		p.list(root)
		return
	}
	r, ok := p.resource(root, apiVersion, kindName, versionOK)
	if ok {
		p.object(root, r)
	}
	p.next++
}

// word reads apiVersion or kind.
func (p *parser) word(root *node, field, example string) (string, bool) {
	n := root.get(field)
	switch {
	case n == nil || n.kind == nullNode || n.kind == stringNode && n.text == "":
		p.fault(root.line, guessTitle(root), field, "is missing: say which, for example "+example)
	case n.kind != stringNode:
		p.fault(n.line, guessTitle(root), field, fmt.Sprintf("must be a string, is %s", n))
	default:
		return n.text, true
	}
	return "", false
}

// isList reports whether a document is a list of objects, as "kubectl get -o
// yaml" prints them: a List, or a PodList and its like.
func (p *parser) isList(root *node, apiVersion, kindName string) bool {
	if apiVersion == "v1" && kindName == "List" {
		return true
	}
	of, ok := strings.CutSuffix(kindName, "List")
	if !ok || root.get("items") == nil {
		return false
	}
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return false
	}
	_, err = p.catalog.ForKind(gv.Group, gv.Version, of)
	return err == nil
}

func (p *parser) list(root *node) {
	for _, m := range root.keys {
		switch m.name {
		case "apiVersion", "kind", "metadata":
		case "items":
			if m.value.kind != listNode && m.value.kind != nullNode {
				p.fault(m.line, "List", "items", fmt.Sprintf("must be a list, is %s", m.value))
			}
			for _, item := range m.value.items {
				p.document(item)
			}
		default:
			p.fault(m.line, "List", m.name, "unknown field: a List has apiVersion, kind, metadata and items")
		}
	}
}

// resource finds the kind of a document. If only its apiVersion is wrong, the
// fault is recorded and the document read as what it must mean, for the sake of
// its other faults.
func (p *parser) resource(root *node, apiVersion, kindName string, versionOK bool) (Resource, bool) {
	if versionOK {
		gv, err := schema.ParseGroupVersion(apiVersion)
		if err != nil {
			p.fault(root.lineOf("apiVersion"), guessTitle(root), "apiVersion", fmt.Sprintf(`%q must be <version> or <group>/<version>, for example "v1" or "apps/v1"`, apiVersion))
		} else {
			r, err := p.catalog.ForKind(gv.Group, gv.Version, kindName)
			if err == nil {
				return r, true
			}
			field, message := "kind", err.Error()
			if strings.HasPrefix(message, "apiVersion ") || p.catalog.named(gv.Group, kindName) != nil {
				field = "apiVersion"
			}
			p.fault(root.lineOf(field), guessTitle(root), field, strings.TrimPrefix(message, field+" "))
		}
	}
	if k := p.catalog.named("", kindName); k != nil {
		return k.resource, true
	}
	return Resource{}, false
}

func (p *parser) object(root *node, r Resource) {
	obj := New(r)
	d := decoder{lines: map[string]int{}}
	d.decode(root, obj)
	obj.GetObjectKind().SetGroupVersionKind(r.groupVersionKind())
	kindOfObject(obj).read(obj)

	doc := Document{File: p.file, Line: root.line, Index: p.next, Object: obj, lines: d.lines, bad: d.bad}
	name := Title(obj)
	for _, f := range d.faults {
		p.fault(f.Line, name, f.Field, f.Message)
	}
	if obj.GetName() != "" {
		key := string(r.Key(obj.GetNamespace(), obj.GetName()))
		if first, twice := p.seen[key]; twice {
			p.fault(doc.LineOf("metadata.name"), name, "metadata.name", fmt.Sprintf("the same object is given already on line %d: remove one of them", first))
		} else {
			p.seen[key] = doc.LineOf("metadata.name")
		}
	}
	p.docs = append(p.docs, doc)
	if crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition); ok && crd.Spec.Names.Kind != "" && crd.Spec.Names.Plural != "" {
		// Though it may be wrong: that is its fault, not that of its objects.
		crd = crd.DeepCopy()
		Default(crd)
		p.catalog = p.catalog.With(crd)
	}
}

func (p *parser) fault(line int, object, field, message string) {
	p.faults = append(p.faults, Fault{File: p.file, Line: line, Object: object, Field: field, Message: message, Index: p.next})
}

// guessTitle names a document whose kind is not known to be served.
func guessTitle(root *node) string {
	kindName, namespace, name := "", "", ""
	text := func(n *node) string {
		if n == nil || n.kind != stringNode {
			return ""
		}
		return n.text
	}
	kindName = text(root.get("kind"))
	if meta := root.get("metadata"); meta != nil {
		namespace, name = text(meta.get("namespace")), text(meta.get("name"))
	}
	return strings.TrimSpace(title(kindName, namespace, name))
}
