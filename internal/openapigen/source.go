package main

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// source is what the comments of a package say.
type source struct {
	types     map[string]comment
	fields    map[string]map[string]comment // by struct and field
	enums     map[string]enum               // by the type of the constants
	constants map[string]string
}

// source reads a package's comments where go.mod has it.
func (g *generator) source(pkg string) (*source, error) {
	if src := g.sources[pkg]; src != nil {
		return src, nil
	}
	path := pkg
	if path == "main" {
		path = "github.com/holdfast-io/holdfast/internal/openapigen" // metrics.go
	}
	list := exec.Command("go", "list", "-find", "-f", `{{.Dir}}{{range .GoFiles}} {{.}}{{end}}`, path)
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w", path, err)
	}
	src := &source{types: map[string]comment{}, fields: map[string]map[string]comment{}, enums: map[string]enum{}, constants: map[string]string{}}
	names := strings.Fields(string(bytes.TrimSpace(out)))
	for _, name := range names[1:] {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(names[0], name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, d := range file.Decls {
			if d, ok := d.(*ast.GenDecl); ok {
				src.add(d)
			}
		}
	}
	for _, values := range src.enums {
		slices.SortFunc(values, func(a, b enumValue) int { return cmp.Compare(a.value, b.value) })
	}
	g.sources[pkg] = src
	return src, nil
}

func (src *source) add(d *ast.GenDecl) {
	for _, spec := range d.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			doc := spec.Doc
			if doc == nil {
				doc = d.Doc
			}
			src.types[spec.Name.Name] = commentOf(doc)
			if s, ok := spec.Type.(*ast.StructType); ok {
				src.fields[spec.Name.Name] = fieldComments(s)
			}
		case *ast.ValueSpec:
			if d.Tok == token.CONST {
				src.constant(spec)
			}
		}
	}
}

func fieldComments(s *ast.StructType) map[string]comment {
	all := map[string]comment{}
	for _, f := range s.Fields.List {
		for _, name := range f.Names {
			all[name.Name] = commentOf(f.Doc)
		}
		if len(f.Names) > 0 {
			continue
		}
		switch t := f.Type.(type) { // embedded, named after its type
		case *ast.Ident:
			all[t.Name] = commentOf(f.Doc)
		case *ast.SelectorExpr:
			all[t.Sel.Name] = commentOf(f.Doc)
		}
	}
	return all
}

// constant notes a constant that is a string literal.
func (src *source) constant(spec *ast.ValueSpec) {
	for i, name := range spec.Names {
		if i >= len(spec.Values) {
			return
		}
		literal, ok := spec.Values[i].(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			continue
		}
		value, err := strconv.Unquote(literal.Value)
		if err != nil {
			continue
		}
		src.constants[name.Name] = value
		t, ok := spec.Type.(*ast.Ident)
		if !ok {
			continue
		}
		if slices.ContainsFunc(src.enums[t.Name], func(v enumValue) bool { return v.value == value }) {
			continue // a second name of the same value
		}
		text := strings.Join(strings.Fields(commentOf(spec.Doc).description()), " ")
		src.enums[t.Name] = append(src.enums[t.Name], enumValue{value, strings.TrimSpace(strings.TrimPrefix(text, name.Name))})
	}
}

// enum is the values of a string type that has no others.
type enum []enumValue

type enumValue struct{ value, doc string }

func (e enum) values() []string {
	var all []string
	for _, v := range e {
		all = append(all, v.value)
	}
	return all
}

// description lists the values below a field's own words.
func (e enum) description() string {
	if len(e) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n\nPossible enum values:")
	for _, v := range e {
		b.WriteString(strings.TrimRight(fmt.Sprintf("\n - `%q` %s", v.value, v.doc), " "))
	}
	return b.String()
}

// comment is the lines of a doc comment.
type comment []string

func commentOf(group *ast.CommentGroup) comment {
	if group == nil {
		return nil
	}
	return strings.Split(strings.TrimRight(group.Text(), "\n"), "\n")
}

// marks returns the values of the lines "+name=value".
func (c comment) marks(name string) []string {
	var all []string
	for _, line := range c {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "+"+name+"="); ok {
			all = append(all, value)
		}
	}
	return all
}

// mark returns the first value of the first of the names that has one.
func (c comment) mark(names ...string) string {
	for _, name := range names {
		if values := c.marks(name); len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

// has reports whether there is a line "+name".
func (c comment) has(name string) bool {
	return slices.ContainsFunc(c, func(line string) bool { return strings.TrimSpace(line) == "+"+name })
}

// description is the comment as text for users: without marks and what follows
// "---", a paragraph in one line, indented lines and items of lists on their own.
func (c comment) description() string {
	var b strings.Builder
	glue := "" // between what is written and what comes
	for _, line := range c {
		line = strings.TrimRight(line, " ")
		trimmed := strings.TrimLeft(line, " \t")
		switch {
		case line == "---":
			return b.String()
		case line == "":
			glue = "\n\n"
			continue
		case strings.HasPrefix(trimmed, "TODO"), strings.HasPrefix(trimmed, "+"):
			continue
		case glue == " " && (trimmed != line || strings.HasPrefix(line, "- ")):
			glue = "\n"
		}
		if b.Len() > 0 {
			b.WriteString(glue)
		}
		b.WriteString(line)
		if glue = " "; trimmed != line {
			glue = "\n"
		}
	}
	return b.String()
}
