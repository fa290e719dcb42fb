package main

import (
	"encoding/xml"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/holdfast-io/holdfast/bench/rig"
)

func TestSummarize(t *testing.T) {
	of := func(values ...float64) (out []sample) {
		for _, v := range values {
			// Above 100 stands for a noisy repetition.
			out = append(out, sample{Values: map[string]float64{rig.Rate: v}, Noisy: v > 100})
		}
		return out
	}
	for _, tt := range []struct {
		name    string
		samples []sample
		want    spread
		missing bool
	}{
		{"odd", of(3, 1, 2), spread{2, 1, 3, 3, false}, false},
		{"even", of(4, 1, 2, 3), spread{2.5, 1, 4, 4, false}, false},
		{"noisy ones are left out", of(1, 2, 3, 900, 901), spread{2, 1, 3, 3, false}, false},
		{"unless too few are quiet", of(1, 2, 900), spread{2, 1, 900, 3, true}, false},
		{"one alone", of(7), spread{7, 7, 7, 1, false}, false},
		{"a failed one has no values", []sample{{Error: "x"}}, spread{}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := summarize(tt.samples, rig.Rate)
			if ok == tt.missing || got != tt.want {
				t.Errorf("got %+v, %v; want %+v", got, ok, tt.want)
			}
		})
	}
}

// TestLines: what machines read has a name, a number and a unit, and the ratio to
// the first contender.
func TestLines(t *testing.T) {
	var b strings.Builder
	printLines(&b, []sample{
		{Case: "put 256 B, 10 clients", Contender: "etcd", Values: map[string]float64{rig.Rate: 2000, rig.ClientCPU: 5}},
		{Case: "put 256 B, 10 clients", Contender: "session", Values: map[string]float64{rig.Rate: 5000}},
	})
	want := `store_put_256_b_10_clients_etcd_rate 2000 1/s
store_put_256_b_10_clients_etcd_client 5.000 µs/op
store_put_256_b_10_clients_session_rate 5000 1/s
store_put_256_b_10_clients_session_rate_ratio 2.500 x
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// TestCharts: a chart is well-formed whatever names are in it.
func TestCharts(t *testing.T) {
	c := chart{title: "a < b & c", unit: "ms", series: []string{"etcd", "unary"}, line: 1}
	c.add("one\n<two>", "etcd", 3)
	c.add("none", "unary", 0)
	decoder := xml.NewDecoder(strings.NewReader(c.svg()))
	for {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for v, want := range map[float64]float64{0: 1, 0.3: 0.5, 1: 1, 7: 10, 1200: 2000} {
		if got := niceStep(v); got != want {
			t.Errorf("niceStep(%v) = %v, want %v", v, got, want)
		}
	}
}

func TestMergeReplacesCases(t *testing.T) {
	cases := []testCase{{name: "a"}, {name: "b"}, {name: "c"}}
	older := []sample{{Case: "a", Repetition: 0}, {Case: "a", Repetition: 1}, {Case: "c"}, {Case: "gone"}}
	newer := []sample{{Case: "b", Date: "new"}, {Case: "a", Date: "new"}}
	want := []sample{{Case: "a", Date: "new"}, {Case: "b", Date: "new"}, {Case: "c"}}
	if got := merge(older, newer, cases); !reflect.DeepEqual(got, want) {
		t.Errorf("merge = %v, want %v", got, want)
	}
}
