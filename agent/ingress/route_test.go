package ingress

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-io/holdfast/agent/netstate"
	"github.com/holdfast-io/holdfast/agent/netstate/netstatetest"
	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestRoute runs testdata/route/*.txtar: objects, and where requests for hosts and
// paths go.
func TestRoute(t *testing.T) {
	golden.Run(t, "testdata/route/*.txtar", func(t *testing.T, in golden.Input) string {
		table := NewTable(netstatetest.Parse(t, in.File("objects")), Defaults{}, nil)
		var out strings.Builder
		for line := range strings.Lines(string(in.File("requests"))) {
			line = strings.TrimSpace(line)
			host, path, _ := strings.Cut(line, "/")
			to := table.Route(host, "/"+path)
			if to == nil {
				fmt.Fprintf(&out, "%s -> nowhere\n", line)
				continue
			}
			var endpoints []string
			for _, e := range to.endpoints {
				endpoints = append(endpoints, e.address)
			}
			fmt.Fprintf(&out, "%s -> %s:%s %v", line, to.Service, to.Port, endpoints)
			if to.Protocol != HTTP {
				fmt.Fprintf(&out, " %s", [...]string{"", "h2c", "https"}[to.Protocol])
			}
			if to.Redirect || to.MaxBody != 0 || to.Timeout != 0 {
				fmt.Fprintf(&out, " redirect=%v body=%d timeout=%v", to.Redirect, to.MaxBody, to.Timeout)
			}
			if to.Fault != "" {
				out.WriteString(" BUT " + to.Fault)
			}
			out.WriteString("\n")
		}
		for _, name := range slices.SortedFunc(maps.Keys(table.Faults), func(a, b netstate.Name) int { return strings.Compare(a.String(), b.String()) }) {
			for _, fault := range table.Faults[name] {
				fmt.Fprintf(&out, "fault of %s: %s\n", name, fault)
			}
		}
		return out.String()
	})
}
