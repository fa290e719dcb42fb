package object

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestYAMLAsKubernetes compares the reader of YAML with the one that kubectl
// uses: what both take must mean the same. It is the brute-force twin of
// resolvePlain, whose rules are easy to get wrong.
func TestYAMLAsKubernetes(t *testing.T) {
	scalars := []string{
		"", "~", "null", "Null", "nUll", "yes", "Yes", "YES", "yEs", "no", "on", "Off", "y", "n", "Y", "true", "TRUE", "tRUE", "False",
		"0", "7", "-7", "+7", "007", "010", "08", "0o17", "0x1F", "0X1f", "-0x1F", "0b101", "-0b11", "1_000", "_1", "1__0", "12e3", "1e3", "1E3", "1e400",
		"1.5", "-1.5", "+1.5", ".5", "5.", "1.", "-.5", "1.5.2", "1,5", "0.1", "100.0", "1.0e-7", "3.0", "9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616",
		".inf", "-.inf", ".nan", "inf", "nan", "12:30:45", "1:20", "2001-01-01", "2001-12-14t21:59:43.10-05:00", "2001-12-14 21:59:43.10", "<<", "=", "100m", "128Mi", "25%", "a b", "'5'", `"5"`, `"yes"`, "!!str 5", "!!int 5", "!!float 5", "!!bool yes", "!!null ''",
		"!!binary aGFsbG8=", "[1, a, yes]", "{a: 1, b: [x, {c: null}]}", "|\n  5\n  yes\n", ">\n  folded\n  text\n", "'it''s'", `"tab\tand \u00e9"`, "-", "- a", "0.", "1e", "e1", "--1", "0b", "0b2", "-0b", "0x", "+0x1",
	}
	var texts []string
	for _, s := range scalars {
		texts = append(texts, "v: "+s+"\n", "? "+s+"\n: value\n", "- "+s+"\n")
	}
	texts = append(texts,
		"a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: *x\n",
		"a: &x {p: 1}\nb: &y {p: 2, r: 4}\nc: {<<: [*x, *y], s: 5}\n",
		"a: {<<: {p: 1}, p: 2}\n",
		"# comment\na: 1 # more\n\nb:\n  - x\n  -\n    y: z\n",
		"a: 1\nb: *nowhere\n",
		"a: [1,\n",
	)
	compared := 0
	for _, text := range texts {
		docs, errs := readSource([]byte(text))
		theirs, err := yaml.YAMLToJSON([]byte(text))
		if err != nil || string(theirs) == "null" {
			continue // they refuse it; whether we do is for other tests
		}
		if strings.HasPrefix(text, "? ") && (strings.Contains(text, ".inf") || strings.Contains(text, ".nan")) {
			continue // infinity as a key: refused here
		}
		if len(errs) > 0 {
			t.Errorf("%q: %v, kubectl reads %s", text, errs, theirs)
			continue
		}
		if len(docs) != 1 {
			t.Errorf("%q: %d documents, want 1", text, len(docs))
			continue
		}
		compared++
		var a, b any
		if err := json.Unmarshal(docs[0].json(), &a); err != nil {
			t.Errorf("%q: we make invalid JSON of it, %s: %v", text, docs[0].json(), err)
			continue
		}
		if err := json.Unmarshal(theirs, &b); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(a, b) {
			t.Errorf("%q: we read %s, kubectl %s", text, docs[0].json(), theirs)
		}
	}
	if compared < 200 {
		t.Errorf("only %d texts were compared", compared)
	}
}

// TestLimits: a small text cannot become a huge value.
func TestLimits(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("a: &a [x, x, x, x, x, x, x, x, x, x]\n")
	for c := 'b'; c <= 'h'; c++ {
		ref := "*" + string(c-1)
		bomb.WriteString(string(c) + ": &" + string(c) + " [" + strings.Repeat(ref+", ", 9) + ref + "]\n")
	}
	for name, text := range map[string]string{
		"aliases of aliases": bomb.String(),
		"deep lists":         "a: " + strings.Repeat("[", 500) + strings.Repeat("]", 500),
		"deep JSON":          `{"a": ` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + "}",
	} {
		_, err := ParseManifests("x", []byte(text))
		var faults Faults
		if !errors.As(err, &faults) || len(faults) != 1 || !strings.Contains(faults[0].Message, "more than") {
			t.Errorf("%s: error is %v, want one fault about the limit", name, err)
		}
	}
}

// FuzzParseManifests: whatever the input, there is a result or there are faults
// with lines in the file; and what is read can be stored, and written out and
// read again without a change.
func FuzzParseManifests(f *testing.F) {
	for _, seed := range []string{
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\nspec:\n  containers:\n  - {name: c, image: d, args: [e], resources: {limits: {cpu: 100m}}}\n",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  replicas: 2\n  strategy: {rollingUpdate: {maxSurge: 25%}}\n  selector: {matchLabels: {a: b}}\n",
		"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Node, metadata: {name: n1}}\n---\nkind: Nothing\n",
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"},"data":{"a":"\ud83d\ude00 \u007f\u0085\ufeff","y":"no"},"binaryData":{"b":"AAEC"}}`,
		"apiVersion: v1\nkind: Event\nmetadata: &m {name: e, creationTimestamp: 2026-01-01T00:00:00Z}\ninvolvedObject: *m\n",
		"a: &a [*a]\n---\n...\n--- |\n text\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := ParseManifests("f", data)
		if err != nil {
			var faults Faults
			if !errors.As(err, &faults) || len(faults) == 0 {
				t.Fatalf("error is not Faults: %v", err)
			}
			lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + strings.Count(string(data), "\u0085") + strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029") + 1
			for _, fault := range faults {
				if fault.File != "f" || fault.Line < 1 || fault.Line > lines+1 || fault.Message == "" {
					t.Fatalf("fault without a place or a message: %+v in %d lines", fault, lines)
				}
			}
			return
		}
		for i, d := range docs {
			if d.Index != i || d.LineOf("metadata.name") < d.Line {
				t.Fatalf("document %d has index %d, line %d, name on line %d", i, d.Index, d.Line, d.LineOf("metadata.name"))
			}
			d.Check()
			stored, err := Encode(d.Object)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Decode(stored, 1); err != nil {
				t.Fatal(err)
			}
			text, err := EncodeYAML(d.Object)
			if err != nil {
				t.Fatal(err)
			}
			again, err := ParseManifests("again", text)
			if err != nil || len(again) != 1 {
				t.Fatalf("what was written cannot be read: %v\n%s", err, text)
			}
			if !sameValue(d.Object, again[0].Object) {
				t.Fatalf("changed by writing and reading:\n%#v\n%#v\n%s", d.Object, again[0].Object, text)
			}
			Default(d.Object)
			Describe(d.Object, nil, nil, now)
			Print([]Object{d.Object}, now)
		}
	})
}
