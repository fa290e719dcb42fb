package nodeauth

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// state is objects in memory.
type state map[string][]byte

func (s state) Value(key string) ([]byte, int64, bool) { v, ok := s[key]; return v, 1, ok }

func (s state) Values(prefix string) iter.Seq2[[]byte, int64] {
	return func(yield func([]byte, int64) bool) {
		for _, key := range slices.Sorted(maps.Keys(s)) {
			if strings.HasPrefix(key, prefix) && !yield(s[key], 1) {
				return
			}
		}
	}
}

// parseObjects reads YAML documents as they would be stored.
func parseObjects(t *testing.T, text []byte) (objs []object.Object) {
	t.Helper()
	for doc := range strings.SplitSeq(string(text), "---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		data, err := yaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		obj, err := object.Decode(data, 0)
		if err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if object.ResourceOf(obj).Namespaced && obj.GetNamespace() == "" {
			obj.SetNamespace("default")
		}
		obj.SetUID(types.UID("u-" + obj.GetName()))
		objs = append(objs, obj)
	}
	return objs
}

func parseState(t *testing.T, text []byte) state {
	t.Helper()
	s := state{}
	for _, obj := range parseObjects(t, text) {
		data, err := object.Encode(obj)
		if err != nil {
			t.Fatal(err)
		}
		s[string(object.KeyOf(obj))] = data
	}
	return s
}

// TestMay runs testdata/may/*.txtar: a state, and for each line of "ask", as node n1,
// whether it may. A line is VERB RESOURCE[.GROUP][/SUB] [NAMESPACE/]NAME|*, and
// on=NODE for a field selector.
func TestMay(t *testing.T) {
	golden.Run(t, "testdata/may/*.txtar", func(t *testing.T, in golden.Input) string {
		s := parseState(t, in.File("state"))
		var out strings.Builder
		for line := range strings.Lines(string(in.File("ask"))) {
			a := ask(t, line)
			g := Graph{View: s, Node: "n1"}
			why := g.Refusal(a)
			// With hints that are wrong for a part it must be the same.
			g.Pods = func(yield func(object.Key) bool) {
				for key := range s {
					if strings.HasPrefix(key, podResource.Prefix("")) && !yield(object.Key(key)) {
						return
					}
				}
				yield(podResource.Key("default", "gone"))
			}
			if again := g.Refusal(a); again != why {
				t.Errorf("%s: with hints %q, without %q", line, again, why)
			}
			if why == "" {
				why = "yes"
			} else {
				why = "no: " + why
			}
			fmt.Fprintf(&out, "%s: %s\n", strings.TrimSpace(line), why)
		}
		return out.String()
	})
}

func ask(t *testing.T, line string) Ask {
	t.Helper()
	words := strings.Fields(line)
	a := Ask{Verb: words[0]}
	a.Resource, a.Subresource, _ = strings.Cut(words[1], "/")
	a.Resource, a.Group, _ = strings.Cut(a.Resource, ".")
	for _, word := range words[2:] {
		if node, ok := strings.CutPrefix(word, "on="); ok {
			a.BoundTo = node
			continue
		}
		if namespace, name, ok := strings.Cut(word, "/"); ok {
			a.Namespace, word = namespace, name
		}
		if word != "*" {
			a.Name = word
		}
	}
	return a
}

// TestWrite runs testdata/write/*.txtar: what node n1 wants to make of an object.
func TestWrite(t *testing.T) {
	golden.Run(t, "testdata/write/*.txtar", func(t *testing.T, in golden.Input) string {
		read := func(name string) object.Object {
			if text, ok := in.Lookup(name); ok {
				return parseObjects(t, text)[0]
			}
			return nil
		}
		var out strings.Builder
		was := read("was")
		for _, name := range in.Names() {
			what, sub, _ := strings.Cut(name, "/")
			if !strings.HasPrefix(what, "next") && what != "delete" {
				continue
			}
			var next object.Object
			if what != "delete" {
				next = read(name)
			}
			why := Graph{View: state{}, Node: "n1"}.MayWrite(next, was, sub)
			if why == "" {
				why = "yes"
			} else {
				why = "no: " + why
			}
			fmt.Fprintf(&out, "%s: %s\n", name, why)
		}
		return out.String()
	})
}

// TestProtected: the labels that NodeRestriction lists, and those of other domains.
func TestProtected(t *testing.T) {
	for label, want := range map[string]bool{
		"disk": false, "example.com/disk": false, corev1.LabelHostname: false, corev1.LabelTopologyZone: false,
		"kubelet.kubernetes.io/x": false, "a.node.kubernetes.io/x": false, "node.kubernetes.io/instance-type": false,
		"node-restriction.kubernetes.io/pci": true, "a.node-restriction.kubernetes.io/pci": true, "node-role.kubernetes.io/control-plane": true,
		"kubernetes.io/other": true, "x.k8s.io/y": true, "k8s.io/y": true, "holdfast.dev/ingress": true, "fake-kubernetes.io/y": false,
	} {
		if Protected(label) != want {
			t.Errorf("%s: got %v, want %v", label, !want, want)
		}
	}
}
