package network

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// TestManyServices: 10,000 services with 30,000 endpoints are programmed, found again
// by an agent that starts anew, and changed one at a time. It says how long that takes.
func TestManyServices(t *testing.T) {
	if testing.Short() {
		t.Skip("programs 10,000 services")
	}
	h := newHosts(t, 1, 1500)[0]
	var b strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&b, "service s%d ip=10.97.%d.%d ports=:80\n", i, i/250, i%250)
		for e := range 3 {
			fmt.Fprintf(&b, "endpoint s%d 10.%d.%d.%d :8080 node=n%d\n", i, 100+e, i/250, i%250, e)
		}
	}
	s := parseState(t, "n0", "", b.String())
	began := time.Now()
	h.program(s)
	t.Logf("all: %v", time.Since(began))

	one := netstate.Name{Namespace: "default", Name: "s77"}
	gone := netstate.Change{Object: s.Slices[one][0], Removed: true}
	began = time.Now()
	next := s.With(2, gone)
	h.program(next)
	t.Logf("one endpoint less: %v", time.Since(began))
	if n := len(h.net.plane.have); n != 10_000+30_000-1 {
		t.Errorf("%d elements, want 39,999", n)
	}

	h.net = h.newNetwork()
	began = time.Now()
	h.in(func() error { return h.net.Program(context.Background(), next) })
	t.Logf("found again: %v", time.Since(began))
	if n := len(h.net.plane.have); n != 10_000+30_000-1 {
		t.Errorf("%d elements are found, want 39,999", n)
	}
}
