package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-io/holdfast/bench/rig"
)

// chart is groups of bars: one group for each category, one bar in it for each
// series.
type chart struct {
	title, unit string
	categories  []string
	series      []string
	values      map[[2]string]float64 // by category and series; those missing have no bar
	line        float64               // a line across, at this value; 0: none
}

// plotAll writes the charts for which there are samples.
func plotAll(dir string, samples []sample) error {
	all := groups(samples)
	value := func(name, contender, what string) (float64, bool) {
		for _, g := range all {
			if g.name == name && g.contender == contender {
				s, ok := summarize(g.samples, what)
				return s.Median, ok
			}
		}
		return 0, false
	}
	ways := []string{"etcd", "unary", "session"}
	loads := []string{"put 256 B, %s", "put 2048 B, %s", "read linearizable, all members, %s", "read local, all members, %s"}
	names := []string{"put 256 B", "put 2 KiB", "read", "read, local"}
	clients := []string{"1 clients", "10 clients", "100 clients", "1000 clients"}

	ratio := chart{title: "Throughput, as a multiple of etcd's", unit: "x", series: ways[1:], line: 1}
	tail := chart{title: "p99", unit: "ms", series: ways}
	cpu := chart{title: "CPU for each operation, three members and the client", unit: "µs", series: ways}
	for i, load := range loads {
		for _, c := range clients {
			name, category := fmt.Sprintf(load, c), names[i]+"\n"+strings.TrimSuffix(c, " clients")
			for _, way := range ways {
				if v, ok := value(name, way, rig.Rate); ok {
					if base, ok := value(name, "etcd", rig.Rate); ok && way != "etcd" && base > 0 {
						ratio.add(category, way, v/base)
					}
				}
				if v, ok := value(name, way, rig.P99); ok {
					tail.add(category, way, v)
				}
				servers, ok := value(name, way, rig.ServerCPU)
				if client, also := value(name, way, rig.ClientCPU); ok && also && c != "1 clients" {
					cpu.add(category, way, servers+client)
				}
			}
		}
	}
	memory := chart{title: "Memory of a member", unit: "MiB", series: []string{"etcd", "holdfast"}}
	for _, g := range all {
		if !strings.HasSuffix(g.name, "keys of 1 KiB") {
			continue
		}
		who := "etcd"
		if g.contender != who {
			who = "holdfast"
		}
		for _, what := range []string{"memory of a member MiB", "anonymous memory MiB"} {
			if s, ok := summarize(g.samples, what); ok {
				memory.add(g.name+"\n"+strings.TrimSuffix(what, " MiB"), who, s.Median)
			}
		}
	}
	for name, c := range map[string]chart{"ratio": ratio, "p99": tail, "cpu": cpu, "memory": memory} {
		if len(c.categories) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "store-"+name+".svg"), []byte(c.svg()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (c *chart) add(category, series string, v float64) {
	if c.values == nil {
		c.values = make(map[[2]string]float64)
	}
	if !slices.Contains(c.categories, category) {
		c.categories = append(c.categories, category)
	}
	c.values[[2]string{category, series}] = v
}

// Colours that people with any colour vision tell apart, and that read on white and
// on black (Okabe and Ito).
var colours = []string{"#999999", "#0072b2", "#d55e00"}

// svg draws the chart.
func (c chart) svg() string {
	const (
		barWidth, gap        = 22, 20
		left, top, right     = 64, 64, 16
		plotHeight, captions = 260, 48
	)
	groupWidth := len(c.series)*barWidth + gap
	width := left + len(c.categories)*groupWidth + right
	width = max(width, 420)
	height := top + plotHeight + captions
	most := c.line
	for _, v := range c.values {
		most = max(most, v)
	}
	step := niceStep(most / 5)
	most = max(step, step*math.Ceil(most*1.05/step))
	y := func(v float64) float64 { return float64(top+plotHeight) - v/most*plotHeight }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="sans-serif" font-size="11">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	fmt.Fprintf(&b, `<text x="%d" y="20" font-size="14" font-weight="bold">%s (%s)</text>`+"\n", 12, html.EscapeString(c.title), html.EscapeString(c.unit))
	x := 12
	for i, s := range c.series {
		fmt.Fprintf(&b, `<rect x="%d" y="32" width="11" height="11" fill="%s"/><text x="%d" y="42">%s</text>`+"\n", x, c.colour(i), x+16, html.EscapeString(s))
		x += 90
	}
	for v := 0.0; v <= most*1.0001; v += step {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left-4, width-right, y(v), y(v), left-8, y(v)+4, label(v))
	}
	if c.line > 0 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#333333" stroke-dasharray="4 3"/>`+"\n", left-4, width-right, y(c.line), y(c.line))
	}
	for i, category := range c.categories {
		from := left + i*groupWidth + gap/2
		for j, s := range c.series {
			v, ok := c.values[[2]string{category, s}]
			if !ok {
				continue
			}
			at := from + j*barWidth
			fmt.Fprintf(&b, `<rect x="%d" y="%.1f" width="%d" height="%.1f" fill="%s"/>`+"\n", at, y(v), barWidth-2, float64(top+plotHeight)-y(v), c.colour(j))
			fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="middle" font-size="8">%s</text>`+"\n", float64(at)+float64(barWidth-2)/2, y(v)-3, label(v))
		}
		for k, line := range strings.Split(category, "\n") {
			fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" font-size="10">%s</text>`+"\n",
				float64(from)+float64(len(c.series)*barWidth)/2, top+plotHeight+16+14*k, html.EscapeString(line))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// colour gives Holdfast's series the same colour in each chart.
func (c chart) colour(i int) string {
	if c.series[0] != "etcd" {
		i++
	}
	return colours[i%len(colours)]
}

// niceStep returns the least of 1, 2, 5, 10, 20, … that is not below v.
func niceStep(v float64) float64 {
	if v <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*unit >= v {
			return m * unit
		}
	}
	return 10 * unit
}

func label(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
	default:
		return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
	}
}
