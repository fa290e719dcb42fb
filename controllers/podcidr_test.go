package controllers

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestPlanPodCIDRs runs testdata/podcidr/*.txtar: the cluster's range, those of
// nodes, and what nodes without one get.
func TestPlanPodCIDRs(t *testing.T) {
	golden.Run(t, "testdata/podcidr/*.txtar", func(t *testing.T, in golden.Input) string {
		cluster := netip.MustParsePrefix(strings.TrimSpace(string(in.File("cluster"))))
		if err := checkClusterCIDR(cluster); err != nil {
			return err.Error()
		}
		var taken []netip.Prefix
		var want []string
		for _, l := range parseLines(t, in.File("nodes")) {
			if v, ok := l.get("cidr"); ok {
				taken = append(taken, netip.MustParsePrefix(v))
			} else {
				want = append(want, l.name)
			}
			l.done()
		}
		given, without := planPodCIDRs(cluster, taken, want)
		var b strings.Builder
		for _, name := range want {
			if p, ok := given[name]; ok {
				fmt.Fprintf(&b, "%s %s\n", name, p)
			}
		}
		for _, name := range without {
			fmt.Fprintf(&b, "%s nothing left\n", name)
		}
		return b.String()
	})
}

// TestPodCIDRsAreDistinct fills a whole range and checks that no two overlap and
// all lie within it.
func TestPodCIDRsAreDistinct(t *testing.T) {
	for _, text := range []string{"10.244.0.0/16", "10.0.0.0/13", "fd00:10:244::/56"} {
		cluster := netip.MustParsePrefix(text)
		room := 1 << (nodeBits(cluster) - cluster.Bits())
		var want []string
		for i := range room + 1 {
			want = append(want, fmt.Sprint("n", i))
		}
		given, without := planPodCIDRs(cluster, nil, want)
		if len(given) != room || len(without) != 1 {
			t.Fatalf("%s: %d given, %d without, want %d and 1", text, len(given), len(without), room)
		}
		seen := map[netip.Prefix]bool{}
		for name, p := range given {
			if seen[p] || p != p.Masked() || p.Bits() != nodeBits(cluster) || !cluster.Contains(p.Addr()) {
				t.Fatalf("%s: %s has %s", text, name, p)
			}
			seen[p] = true
		}
	}
}
