package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/holdfast-io/holdfast/bench/rig"
)

// sample is what one contender did in one repetition of a case.
type sample struct {
	Case       string             `json:"case"`
	Contender  string             `json:"contender"`
	Repetition int                `json:"repetition"`
	Date       string             `json:"date,omitempty"`
	Values     map[string]float64 `json:"values,omitempty"`
	// Foreign is the CPU that others used meanwhile, of one core.
	Foreign float64 `json:"foreign_cpu"`
	// Noisy: more than maxForeign.
	Noisy bool   `json:"noisy,omitempty"`
	Error string `json:"error,omitempty"`
}

// maxForeign is the foreign load up to which a repetition counts as quiet.
const maxForeign = 0.15

// spread is a value over the repetitions.
type spread struct {
	Median, Min, Max float64
	Of               int  // repetitions
	Noisy            bool // too few quiet ones, so noisy ones count as well
}

// summarize takes the quiet repetitions if there are at least minQuiet, else all.
func summarize(samples []sample, value string) (spread, bool) {
	const minQuiet = 3
	pick := func(noisyToo bool) (out []float64) {
		for _, s := range samples {
			if v, ok := s.Values[value]; ok && (noisyToo || !s.Noisy) {
				out = append(out, v)
			}
		}
		return out
	}
	all, values := pick(true), pick(false)
	noisy := len(values) < len(all) && len(values) < minQuiet
	if noisy {
		values = all
	}
	if len(values) == 0 {
		return spread{}, false
	}
	slices.Sort(values)
	return spread{median(values), values[0], values[len(values)-1], len(values), noisy}, true
}

func median(sorted []float64) float64 {
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// group is the samples of one contender in one case.
type group struct {
	name, contender string
	samples         []sample
}

// groups keeps the order of samples, and within a case that of contenders.
func groups(samples []sample) []group {
	var out []group
	for _, s := range samples {
		i := slices.IndexFunc(out, func(g group) bool { return g.name == s.Case && g.contender == s.Contender })
		if i < 0 {
			i = len(out)
			out = append(out, group{name: s.Case, contender: s.Contender})
		}
		out[i].samples = append(out[i].samples, s)
	}
	return out
}

func (g group) values() []string {
	var names []string
	for _, s := range g.samples {
		for name := range s.Values {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(order(a), order(b)), strings.Compare(a, b))
	})
	return names
}

// order puts the values that every load has first.
func order(name string) int {
	i := slices.Index([]string{rig.Rate, rig.P50, rig.P99, rig.ServerCPU, rig.LeaderCPU, rig.ClientCPU}, name)
	if i < 0 {
		return 99
	}
	return i
}

// against returns the contender that others of its case are compared with: the
// first, which is etcd wherever it takes part.
func against(all []group, g group) (group, bool) {
	for _, other := range all {
		if other.name == g.name {
			return other, other.contender != g.contender
		}
	}
	return group{}, false
}

// printTable writes what people read.
func printTable(w io.Writer, samples []sample) {
	all := groups(samples)
	last := ""
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, g := range all {
		if g.name != last {
			table.Flush()
			fmt.Fprintf(w, "\n%s\n", g.name)
			last = g.name
			if date := g.samples[0].Date; date != "" {
				fmt.Fprintln(w, "measured "+date)
			}
		}
		base, compared := against(all, g)
		for _, name := range g.values() {
			s, ok := summarize(g.samples, name)
			if !ok {
				continue
			}
			ratio := ""
			if b, ok := summarize(base.samples, name); compared && ok && b.Median > 0 {
				ratio = fmt.Sprintf("%.2fx", s.Median/b.Median)
			}
			note := ""
			if s.Noisy {
				note = "noisy"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t[%s .. %s]\t%s\t%s\t\n", g.contender, name, number(s.Median), number(s.Min), number(s.Max), ratio, note)
		}
		for _, s := range g.samples {
			if s.Error != "" {
				fmt.Fprintf(table, "%s\tfailed\t\t%s\t\t\t\n", g.contender, firstLine(s.Error))
			}
		}
	}
	table.Flush()
}

// printLines writes one "name value unit" for each median, and ratios.
func printLines(w io.Writer, samples []sample) {
	all := groups(samples)
	for _, g := range all {
		base, compared := against(all, g)
		for _, name := range g.values() {
			s, ok := summarize(g.samples, name)
			if !ok {
				continue
			}
			what, unit := split(name)
			key := identifier(g.name + " " + g.contender + " " + what)
			fmt.Fprintf(w, "%s %s %s\n", key, number(s.Median), unit)
			if b, ok := summarize(base.samples, name); compared && ok && b.Median > 0 {
				fmt.Fprintf(w, "%s_ratio %.3f x\n", key, s.Median/b.Median)
			}
		}
	}
}

// split takes the unit, the last word, off a value's name.
func split(name string) (what, unit string) {
	i := strings.LastIndexByte(name, ' ')
	return name[:i], name[i+1:]
}

func identifier(s string) string {
	return "store_" + strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		default:
			return '_'
		}
	}, strings.ReplaceAll(strings.ReplaceAll(s, ",", ""), " ", "_")), "_")
}

func number(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// writeJSON keeps the raw numbers.
func writeJSON(path string, report report) error {
	data, err := json.MarshalIndent(report, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// readJSON is the reverse of writeJSON.
func readJSON(path string) (rep report, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return report{}, err
	}
	if err := json.Unmarshal(data, &rep); err != nil {
		return report{}, fmt.Errorf("%s: %w", path, err)
	}
	return rep, nil
}

// report is what is kept of a run.
type report struct {
	About   map[string]string `json:"about"`
	Samples []sample          `json:"samples"`
}
