package object

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// node is a value of a YAML or JSON text with its position. Both languages have
// the same six kinds of values once aliases and merges are resolved.
type node struct {
	kind  nodeKind
	line  int      // from 1
	text  string   // of a scalar; for numbers and booleans as JSON writes them
	raw   string   // of a scalar, as it was written
	items []*node  // of a list
	keys  []member // of a map, in order; names may be repeated
}

type member struct {
	name  string
	line  int
	value *node
}

type nodeKind int

const (
	nullNode nodeKind = iota
	boolNode
	numberNode
	stringNode
	listNode
	mapNode
)

// String says what n is, to be put after "is".
func (n *node) String() string {
	switch n.kind {
	case nullNode:
		return "empty"
	case boolNode:
		if n.raw != n.text {
			return fmt.Sprintf("the boolean %s (%s)", n.text, n.raw)
		}
		return "the boolean " + n.text
	case numberNode:
		return "the number " + n.raw
	case stringNode:
		const longest = 40
		if len(n.text) > longest {
			return fmt.Sprintf("the string %q", n.text[:longest]+"…")
		}
		return fmt.Sprintf("the string %q", n.text)
	case listNode:
		return "a list"
	default:
		return "a map"
	}
}

// get returns the value of the last member of that name, nil if there is none.
func (n *node) get(name string) *node {
	for _, m := range slices.Backward(n.keys) {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

// lineOf returns the line on which the member of that name stands, n's own if
// there is none.
func (n *node) lineOf(name string) int {
	for _, m := range slices.Backward(n.keys) {
		if m.name == name {
			return m.line
		}
	}
	return n.line
}

// json writes n as JSON.
func (n *node) json() []byte {
	var b bytes.Buffer
	n.writeJSON(&b)
	return b.Bytes()
}

func (n *node) writeJSON(b *bytes.Buffer) {
	quote := func(s string) {
		data, _ := json.Marshal(s) // cannot fail for a string
		b.Write(data)
	}
	switch n.kind {
	case nullNode:
		b.WriteString("null")
	case boolNode, numberNode:
		b.WriteString(n.text)
	case stringNode:
		quote(n.text)
	case listNode:
		b.WriteByte('[')
		for i, item := range n.items {
			if i > 0 {
				b.WriteByte(',')
			}
			item.writeJSON(b)
		}
		b.WriteByte(']')
	case mapNode:
		b.WriteByte('{')
		for i, m := range n.keys {
			if i > 0 {
				b.WriteByte(',')
			}
			quote(m.name)
			b.WriteByte(':')
			m.value.writeJSON(b)
		}
		b.WriteByte('}')
	}
}

// plain returns n as Go's own types.
func (n *node) plain() any {
	switch n.kind {
	case boolNode:
		return n.text == "true"
	case numberNode:
		if i, err := strconv.ParseInt(n.text, 10, 64); err == nil {
			return i
		}
		f, _ := strconv.ParseFloat(n.text, 64) // a number in JSON
		return f
	case stringNode:
		return n.text
	case listNode:
		items := make([]any, len(n.items))
		for i, item := range n.items {
			items[i] = item.plain()
		}
		return items
	case mapNode:
		members := make(map[string]any, len(n.keys))
		for _, m := range n.keys {
			members[m.name] = m.value.plain()
		}
		return members
	default:
		return nil
	}
}

// sourceError is a text that is not YAML or JSON, or that cannot be read as a
// value.
type sourceError struct {
	line    int
	message string
}

func (e *sourceError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.message) }

func errorAt(line int, format string, args ...any) error {
	return &sourceError{line: line, message: fmt.Sprintf(format, args...)}
}

// readSource reads the documents of a text: YAML, or JSON values one after
// another. Empty documents are left out. A document that cannot be read gives an
// error, and those after it are read all the same.
func readSource(data []byte) (docs []*node, errs []error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if first := bytes.TrimLeft(data, " \t\r\n"); len(first) > 0 && first[0] == '{' && isJSON(data) {
		return readJSON(data)
	}
	for _, part := range splitYAML(data) {
		parsed, err := readYAML(part.text, part.line)
		docs = append(docs, parsed...)
		if err != nil {
			errs = append(errs, err)
		}
	}
	return docs, errs
}

// YAML

type yamlPart struct {
	text []byte
	line int // of its first line, from 1
}

// splitYAML cuts a text before each "---" line. YAML allows no such line within
// a document, not even in a block of text, so a fault in one document does not
// reach into the next.
func splitYAML(data []byte) []yamlPart {
	var parts []yamlPart
	start, startLine, line := 0, 1, 1
	blank := true // nothing but comments and directives since start
	for at := 0; at < len(data); {
		end := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		text := data[at:end]
		if marker := bytes.TrimRight(text, "\r\n"); bytes.Equal(marker, []byte("---")) || bytes.HasPrefix(text, []byte("--- ")) || bytes.HasPrefix(text, []byte("---\t")) {
			if !blank {
				parts = append(parts, yamlPart{data[start:at], startLine})
			}
			start, startLine, blank = at, line, false
		} else if trimmed := bytes.TrimLeft(text, " \t\r\n"); len(trimmed) > 0 && trimmed[0] != '#' && text[0] != '%' {
			blank = false
		}
		at, line = end, line+1
	}
	if !blank {
		parts = append(parts, yamlPart{data[start:], startLine})
	}
	return parts
}

var yamlErrorLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// readYAML reads the documents of text, of which there is one, unless "..." ends
// them.
func readYAML(text []byte, line int) (docs []*node, err error) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			at, message := line, err.Error()
			if m := yamlErrorLine.FindStringSubmatch(message); m != nil {
				message = m[2]
				if n, err := strconv.Atoi(m[1]); err == nil {
					at = line + n - 1
				}
			}
			return docs, errorAt(at, "not valid YAML: %s", message)
		}
		r := yamlReader{offset: line - 1, left: maxValues}
		n, err := r.read(&doc, 0)
		if err != nil {
			return docs, err
		}
		if n.kind != nullNode {
			docs = append(docs, n)
		}
	}
}

// maxValues and maxDepth bound a document. Aliases can make a small text into a
// huge or endless value; no manifest comes near either.
const (
	maxValues = 200_000
	maxDepth  = 200
)

// yamlReader turns yaml.v3's nodes into ours: aliases and merges resolved, and
// scalars understood as Kubernetes' YAML 1.1 parser understands them, in which
// yes, on and 0644 are not strings.
type yamlReader struct {
	offset int // lines before the document
	left   int // values still allowed
}

func (r *yamlReader) read(y *yaml.Node, depth int) (*node, error) {
	n := &node{line: max(y.Line+r.offset, 1)}
	if r.left--; r.left < 0 {
		return nil, errorAt(n.line, "the document has more than %d values: do aliases (*name) repeat each other?", maxValues)
	}
	if depth > maxDepth {
		return nil, errorAt(n.line, "values are nested more than %d deep: does an alias (*name) contain itself?", maxDepth)
	}
	switch y.Kind {
	case 0:
		return n, nil
	case yaml.DocumentNode:
		if len(y.Content) == 0 {
			return n, nil
		}
		return r.read(y.Content[0], depth)
	case yaml.AliasNode:
		target, err := r.read(y.Alias, depth+1)
		if err != nil {
			return nil, err
		}
		at := *target
		at.line = n.line // a fault is shown where the value is used
		return &at, nil
	case yaml.SequenceNode:
		n.kind = listNode
		for _, c := range y.Content {
			item, err := r.read(c, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, item)
		}
		return n, nil
	case yaml.MappingNode:
		return n, r.readMap(n, y, depth)
	case yaml.ScalarNode:
		return n, r.readScalar(n, y)
	default:
		return nil, errorAt(n.line, "not valid YAML: value of unknown kind %d", y.Kind)
	}
}

func (r *yamlReader) readMap(n *node, y *yaml.Node, depth int) error {
	n.kind = mapNode
	var merged []member
	for i := 0; i+1 < len(y.Content); i += 2 {
		key, err := r.read(y.Content[i], depth+1)
		if err != nil {
			return err
		}
		value, err := r.read(y.Content[i+1], depth+1)
		if err != nil {
			return err
		}
		if isMerge(y.Content[i]) {
			sources := []*node{value}
			if value.kind == listNode {
				sources = value.items
			}
			for _, s := range sources {
				if s.kind != mapNode {
					return errorAt(key.line, "<< must merge a map or a list of maps, is %s", s)
				}
				merged = append(merged, s.keys...)
			}
			continue
		}
		name, err := keyName(key)
		if err != nil {
			return err
		}
		n.keys = append(n.keys, member{name: name, line: key.line, value: value})
	}
	// A merged key gives way to one that stands here, and to earlier merges.
	have := make(map[string]bool, len(n.keys))
	for _, m := range n.keys {
		have[m.name] = true
	}
	for _, m := range merged {
		if !have[m.name] {
			have[m.name] = true
			n.keys = append(n.keys, m)
		}
	}
	return nil
}

func isMerge(key *yaml.Node) bool {
	return key.Kind == yaml.ScalarNode && key.Value == "<<" && (key.Tag == "" || key.Tag == "!" || key.ShortTag() == "!!merge")
}

// keyName returns the string that a map key becomes in JSON.
func keyName(key *node) (string, error) {
	switch key.kind {
	case stringNode, boolNode:
		return key.text, nil
	case numberNode:
		if _, err := strconv.ParseInt(key.text, 10, 64); err == nil {
			return key.text, nil
		}
		if _, err := strconv.ParseUint(key.text, 10, 64); err == nil {
			return key.text, nil
		}
		f, err := strconv.ParseFloat(key.text, 64)
		if err != nil {
			return "", errorAt(key.line, "a key must be a string, is %s", key)
		}
		return strconv.FormatFloat(f, 'g', -1, 32), nil // 32 bits, as sigs.k8s.io/yaml does it
	default:
		return "", errorAt(key.line, "a key must be a string, is %s", key)
	}
}

// readScalar understands a scalar. Only plain ones, without quotes, can be
// anything but strings.
func (r *yamlReader) readScalar(n *node, y *yaml.Node) error {
	n.raw = y.Value
	tag := ""
	if y.Style&yaml.TaggedStyle != 0 {
		tag = y.ShortTag()
	}
	plain := y.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	switch tag {
	case "":
		if !plain {
			n.kind, n.text = stringNode, y.Value
			return nil
		}
		n.kind, n.text = resolvePlain(y.Value)
	case "!", "!!str", "!!timestamp":
		n.kind, n.text = stringNode, y.Value
	case "!!binary":
		decoded, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(y.Value), ""))
		if err != nil {
			return errorAt(n.line, "!!binary value is not base64: %v", err)
		}
		if !utf8.Valid(decoded) {
			return errorAt(n.line, "!!binary value is not text in UTF-8: bytes belong in binaryData of a ConfigMap, in base64")
		}
		n.kind, n.text = stringNode, string(decoded)
	case "!!int", "!!float", "!!bool", "!!null":
		n.kind, n.text = resolvePlain(y.Value)
		want := map[string]nodeKind{"!!int": numberNode, "!!float": numberNode, "!!bool": boolNode, "!!null": nullNode}[tag]
		if n.kind != want {
			return errorAt(n.line, "%q is not a value of type %s", y.Value, tag)
		}
	default:
		return errorAt(n.line, "the tag %s is not supported: remove it", tag)
	}
	if n.kind == numberNode && n.text == "" {
		return errorAt(n.line, "%s is not a number that JSON has: write it in quotes if it is meant as text", y.Value)
	}
	return nil
}

var yamlFloat = regexp.MustCompile(`^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)

// resolvePlain finds out what an unquoted scalar is, by the rules of the parser
// that kubectl uses (go-yaml v2). Numbers come back as JSON writes them, or empty
// if it cannot.
func resolvePlain(s string) (nodeKind, string) {
	switch s {
	case "", "~", "null", "Null", "NULL":
		return nullNode, ""
	case "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON":
		return boolNode, "true"
	case "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF":
		return boolNode, "false"
	case ".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF":
		return numberNode, ""
	}
	switch c := s[0]; {
	case c == '.':
		if f, err := strconv.ParseFloat(s, 64); err == nil {
			return numberNode, jsonFloat(f)
		}
	case c == '+' || c == '-' || '0' <= c && c <= '9':
		digits := strings.ReplaceAll(s, "_", "")
		if i, err := strconv.ParseInt(digits, 0, 64); err == nil {
			return numberNode, strconv.FormatInt(i, 10)
		}
		if u, err := strconv.ParseUint(digits, 0, 64); err == nil {
			return numberNode, strconv.FormatUint(u, 10)
		}
		if yamlFloat.MatchString(digits) {
			if f, err := strconv.ParseFloat(digits, 64); err == nil {
				return numberNode, jsonFloat(f)
			}
		}
	}
	return stringNode, s
}

func jsonFloat(f float64) string {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return ""
	}
	data, _ := json.Marshal(f) // cannot fail for a finite number
	return string(data)
}

// JSON

func isJSON(data []byte) bool {
	decoder := json.NewDecoder(bytes.NewReader(data))
	for n := 0; ; n++ {
		var skip json.RawMessage
		if err := decoder.Decode(&skip); err != nil {
			return n > 0 && errors.Is(err, io.EOF)
		}
	}
}

// readJSON reads JSON values one after another. It is apart from YAML, of which
// JSON is nearly a part, for "\ud83d\ude00", which YAML does not have.
func readJSON(data []byte) (docs []*node, errs []error) {
	r := jsonReader{decoder: json.NewDecoder(bytes.NewReader(data)), data: data, line: 1}
	r.decoder.UseNumber()
	for {
		token, err := r.next()
		if errors.Is(err, io.EOF) {
			return docs, errs
		}
		if err == nil {
			var n *node
			if n, err = r.read(token, 0); err == nil {
				docs = append(docs, n)
				continue
			}
		}
		if _, ok := errors.AsType[*sourceError](err); !ok {
			err = errorAt(r.line, "not valid JSON: %v", err)
		}
		return docs, append(errs, err)
	}
}

type jsonReader struct {
	decoder *json.Decoder
	data    []byte
	at      int // bytes of data that line counts
	line    int // of the last token
}

func (r *jsonReader) next() (json.Token, error) {
	token, err := r.decoder.Token()
	end := int(r.decoder.InputOffset())
	r.line += bytes.Count(r.data[r.at:end], []byte("\n"))
	r.at = end
	return token, err
}

func (r *jsonReader) read(token json.Token, depth int) (*node, error) {
	n := &node{line: r.line}
	if depth > maxDepth {
		return nil, errorAt(n.line, "values are nested more than %d deep", maxDepth)
	}
	switch t := token.(type) {
	case nil:
	case bool:
		n.kind, n.text = boolNode, strconv.FormatBool(t)
	case json.Number:
		n.kind, n.text = numberNode, t.String()
	case string:
		n.kind, n.text = stringNode, t
	case json.Delim:
		n.kind = listNode
		if t == '{' {
			n.kind = mapNode
		}
		for r.decoder.More() {
			if n.kind == mapNode {
				key, err := r.next()
				if err != nil {
					return nil, err
				}
				m := member{name: key.(string), line: r.line}
				first, err := r.next()
				if err != nil {
					return nil, err
				}
				if m.value, err = r.read(first, depth+1); err != nil {
					return nil, err
				}
				n.keys = append(n.keys, m)
				continue
			}
			first, err := r.next()
			if err != nil {
				return nil, err
			}
			item, err := r.read(first, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, item)
		}
		if _, err := r.next(); err != nil { // the closing bracket
			return nil, err
		}
	}
	n.raw = n.text
	return n, nil
}
