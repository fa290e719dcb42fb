package openapi

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"k8s.io/kube-openapi/pkg/validation/spec"
)

// packed has a line for each type: its name, a space, its schema as JSON.
//
//go:embed schemas.gz
var packed []byte

// schemas returns the named schemas and all that they refer to. The caller may
// change them. It unpacks all of them each time: what is made of them is kept,
// and two megabytes of text need not be.
func schemas(names []string) map[string]*spec.Schema {
	lines := unpack()
	all := map[string]*spec.Schema{}
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		if all[name] != nil {
			continue
		}
		line, ok := lines[name]
		if !ok {
			panic("openapi: no schema of " + name + ": its group is missing in internal/openapigen")
		}
		s := new(spec.Schema)
		if err := json.Unmarshal(line, s); err != nil {
			panic(fmt.Sprintf("openapi: schema of %s: %v", name, err))
		}
		all[name] = s
		names = append(names, references(line)...)
	}
	return all
}

func unpack() map[string][]byte {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		panic(fmt.Sprintf("openapi: unpack the schemas: %v", err))
	}
	text, err := io.ReadAll(z)
	if err != nil {
		panic(fmt.Sprintf("openapi: unpack the schemas: %v", err))
	}
	lines := map[string][]byte{}
	for line := range bytes.Lines(text) {
		name, body, _ := bytes.Cut(line, []byte(" "))
		lines[string(name)] = body
	}
	return lines
}

const refPrefix = "#/components/schemas/"

// references returns the names in the $refs of a schema.
func references(line []byte) []string {
	var names []string
	for _, part := range bytes.Split(line, []byte(`"$ref":"`+refPrefix))[1:] {
		names = append(names, string(part[:bytes.IndexByte(part, '"')]))
	}
	return names
}

// refOf returns the name that s refers to: by its $ref, or by the only member of
// its allOf, where words stand beside the reference.
func refOf(s *spec.Schema) string {
	if s.Ref.String() == "" && len(s.AllOf) == 1 {
		s = &s.AllOf[0]
	}
	return strings.TrimPrefix(s.Ref.String(), refPrefix)
}
