package apiserver

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// values is a Reader over a map.
type values map[string][]byte

func (s values) Value(key string) ([]byte, int64, bool) {
	v, ok := s[key]
	return v, 9, ok
}

func (s values) Values(prefix string) iter.Seq2[[]byte, int64] {
	return func(yield func([]byte, int64) bool) {
		for _, key := range slices.Sorted(maps.Keys(s)) {
			if strings.HasPrefix(key, prefix) && !yield(s[key], 9) {
				return
			}
		}
	}
}

// TestTrace runs testdata/trace/*.txtar: what there is, and what is said of
// connections, a line for each: "POD KIND NAME PORT [PROTOCOL]", with a namespace and
// "/" before a name where it is not "default".
func TestTrace(t *testing.T) {
	golden.Run(t, "testdata/trace/*.txtar", func(t *testing.T, in golden.Input) string {
		docs, err := object.ParseManifests("objects", in.File("objects"))
		if err != nil {
			t.Fatal(err)
		}
		store := values{}
		for _, d := range docs {
			obj := d.Object
			if object.ResourceOf(obj).Namespaced && obj.GetNamespace() == "" {
				obj.SetNamespace("default")
			}
			object.Default(obj)
			data, err := object.Encode(obj)
			if err != nil {
				t.Fatal(err)
			}
			store[string(object.KeyOf(obj))] = data
		}
		var out strings.Builder
		for line := range strings.Lines(string(in.File("connections"))) {
			words := strings.Fields(line)
			req := &holdfastv1.TraceRequest{Port: words[3]}
			if len(words) > 4 {
				req.Protocol = words[4]
			}
			req.Pod = words[0]
			if ns, name, ok := strings.Cut(words[0], "/"); ok {
				req.Namespace, req.Pod = ns, name
			}
			name := words[2]
			if ns, rest, ok := strings.Cut(words[2], "/"); ok {
				req.ToNamespace, name = ns, rest
			}
			switch words[1] {
			case "service":
				req.To = &holdfastv1.TraceRequest_Service{Service: name}
			case "pod":
				req.To = &holdfastv1.TraceRequest_ToPod{ToPod: name}
			case "address":
				req.To = &holdfastv1.TraceRequest_Address{Address: name}
			}
			fmt.Fprintf(&out, "# %s\n", strings.TrimSpace(line))
			plan, err := planTrace(store, req)
			if err != nil {
				fmt.Fprintf(&out, "error: %v\n", err)
				continue
			}
			for _, p := range plan.paths {
				plan.steps = append(plan.steps, p.steps...)
				plan.steps = append(plan.steps, &holdfastv1.TraceStep{Level: 1, Text: fmt.Sprintf("asked: %v", p.nodes())})
			}
			for _, step := range plan.steps {
				mark := "-"
				if step.GetStops() {
					mark = "X"
				}
				fmt.Fprintf(&out, "%s%s %s", strings.Repeat("  ", int(step.GetLevel())), mark, step.GetText())
				if step.GetRemedy() != "" {
					fmt.Fprintf(&out, " [%s]", step.GetRemedy())
				}
				out.WriteString("\n")
			}
			fmt.Fprintf(&out, "reached: %t\n", plan.reached())
		}
		return out.String()
	})
}
