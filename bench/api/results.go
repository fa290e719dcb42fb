package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/holdfast-io/holdfast/bench/rig"
)

// result is what one case measured.
type result struct {
	Case   string  `json:"case"`
	Date   string  `json:"date"`
	Values []value `json:"values"`
	// Foreign is the CPU that others used meanwhile, of one core.
	Foreign float64 `json:"foreign_cpu"`
	Error   string  `json:"error,omitempty"`
}

type value struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// maxForeign is the foreign load up to which a case counts as quiet.
const maxForeign = 0.15

func (r *result) add(name string, v float64, unit string) {
	r.Values = append(r.Values, value{name, v, unit})
}

// load adds what every load has to say.
func (r *result) load(name string, t rig.Timing, unit string) {
	v := t.Values()
	r.add(name+"_rate", v[rig.Rate], unit+"/s")
	r.add(name+"_p50", v[rig.P50], "ms")
	r.add(name+"_p99", v[rig.P99], "ms")
	r.add(name+"_servers", v[rig.ServerCPU], "µs/op")
	r.add(name+"_leader", v[rig.LeaderCPU], "µs/op")
	r.add(name+"_client", v[rig.ClientCPU], "µs/op")
}

// print writes a line for each figure, and one for its ratio to kube-apiserver's, which
// is above 1 where Holdfast is better.
func print(w io.Writer, results []result) {
	for _, r := range results {
		noise := ""
		if r.Foreign > maxForeign {
			noise = fmt.Sprintf(" (others used %.0f %% of a core: times and rates mean little)", 100*r.Foreign)
		}
		fmt.Fprintf(w, "# %s, %s%s\n", r.Case, r.Date, noise)
		if r.Error != "" {
			fmt.Fprintf(w, "# failed: %s\n", r.Error)
		}
		for _, v := range r.Values {
			fmt.Fprintf(w, "%s %.4g %s\n", v.Name, v.Value, v.Unit)
			known, ok := kube[v.Name]
			if !ok || v.Value == 0 {
				continue
			}
			ratio := v.Value / known
			if !strings.HasSuffix(v.Unit, "/s") { // a time or a size
				ratio = known / v.Value
			}
			fmt.Fprintf(w, "%s_against_known %.3g x\n", v.Name, ratio)
		}
	}
}

// keep writes the results in place of what the directory has of the same cases, beside
// what it has of others. An empty dir keeps nothing.
func keep(dir string, results []result, cases []testCase) error {
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, "api.json")
	var older []result
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &older)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var all []result
	for _, c := range cases {
		of := func(r result) bool { return r.Case == c.name }
		if i := slices.IndexFunc(results, of); i >= 0 {
			all = append(all, results[i])
		} else if i := slices.IndexFunc(older, of); i >= 0 {
			all = append(all, older[i])
		}
	}
	if data, err = json.MarshalIndent(all, "", "  "); err != nil {
		return err
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "# make bench-api: %s, %d cores, three peers and the clients on them.\n", runtime.Version(), runtime.NumCPU())
	fmt.Fprintln(&text, "# \"against_known\" is the ratio to kube-apiserver's figures of another day, see bench/api/kube.go: it was not run beside.")
	print(&text, all)
	return os.WriteFile(filepath.Join(dir, "api.txt"), []byte(text.String()), 0o644)
}
