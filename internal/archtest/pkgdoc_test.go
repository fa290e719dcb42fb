package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackageComments: each package says once what it is. Two comments would be
// joined by go doc in file order, and none leaves the reader guessing.
func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		if within(strings.TrimPrefix(p.ImportPath, module), "proto") {
			continue // generated; the .proto files are the manual
		}
		files, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		var with []string
		sources := 0
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			sources++
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			if hasText(parsed.Doc) {
				with = append(with, filepath.Base(file))
			}
		}
		if sources > 0 && len(with) != 1 {
			t.Errorf("%s has %d package comments %v, want 1", p.ImportPath, len(with), with)
		}
	}
}

func hasText(doc *ast.CommentGroup) bool {
	return doc != nil && strings.TrimSpace(doc.Text()) != ""
}
