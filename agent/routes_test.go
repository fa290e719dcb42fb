package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

// announcing is a network that says something else each time it is configured anew.
type announcing struct {
	Network
	mu         sync.Mutex
	says       string
	configured int
	programmed int
}

func (n *announcing) Configure(context.Context, []netip.Prefix, []Route) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.configured++
	return nil
}

func (n *announcing) Program(context.Context, *netstate.State) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.programmed++
	return nil
}

func (n *announcing) Announcement() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.says
}

func (n *announcing) say(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.says = text
}

func (n *announcing) counts() (configured, programmed int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.configured, n.programmed
}

var someCIDRs = []netip.Prefix{netip.MustParsePrefix("10.8.1.0/24")}

// TestAnnouncements: the node is made known anew when its network says something new,
// until that has worked, and not otherwise.
func TestAnnouncements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &announcing{says: "one"}
		r := newRoutes(network, slog.New(slog.DiscardHandler))
		var mu sync.Mutex
		var told []string
		down := false
		r.register = func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			if down {
				return errors.New("no peer")
			}
			told = append(told, r.announcement())
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		registered := make(chan struct{})
		go func() { _ = r.run(ctx) }()
		go func() { _ = r.runAnnouncements(ctx, registered) }()
		check := func(when, want string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(told, " "); got != want {
				t.Errorf("%s the peers were told %q, want %q", when, got, want)
			}
		}
		r.set(someCIDRs, nil)
		check("before the node is known", "")
		close(registered)
		check("once it is", "one")
		time.Sleep(10 * configurePeriod)
		check("without news", "one")
		network.say("two")
		time.Sleep(configurePeriod)
		check("after the network said something new", "one two")
		mu.Lock()
		down = true
		mu.Unlock()
		network.say("three")
		time.Sleep(10 * configurePeriod)
		check("while no peer is there", "one two")
		mu.Lock()
		down = false
		mu.Unlock()
		time.Sleep(sessionBackoffMax)
		check("when one is there again", "one two three")
	})
}

// TestRefusedNetwork: as long as somebody else has the cluster's addresses nothing is
// configured or programmed, and the node says why. Once it began it goes on.
func TestRefusedNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &announcing{}
		r := newRoutes(network, slog.New(slog.DiscardHandler))
		var mu sync.Mutex
		refusal := errors.New("docker0 has them")
		told := 0
		r.check = func(_ context.Context, own []netip.Prefix) error {
			mu.Lock()
			defer mu.Unlock()
			return refusal
		}
		r.register = func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			told++
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		registered := make(chan struct{})
		close(registered)
		go func() { _ = r.run(ctx) }()
		go func() { _ = r.runAnnouncements(ctx, registered) }()
		plane := afterCheck{network, r.checked}
		r.set(someCIDRs, nil)
		time.Sleep(10 * configurePeriod)
		pctx, done := context.WithTimeout(ctx, programTimeout)
		err := plane.Program(pctx, netstate.Empty("n1"))
		done()
		if configured, programmed := network.counts(); configured != 0 || programmed != 0 || err == nil {
			t.Errorf("though refused, it was configured %d times and programmed %d times, error %v", configured, programmed, err)
		}
		if c := r.conditions(); len(c) != 1 || c[0].Status != corev1.ConditionTrue || c[0].Reason != "AddressesInUse" || !strings.Contains(c[0].Message, "docker0 has them") {
			t.Errorf("the node says %v", c)
		}
		mu.Lock()
		if told != 1 {
			t.Errorf("the peers were told %d times of one refusal", told)
		}
		refusal = nil
		mu.Unlock()
		wctx, done := context.WithTimeout(ctx, 2*configurePeriod)
		defer done()
		if err := r.wait(wctx); err != nil {
			t.Fatal(err)
		}
		if err := plane.Program(ctx, netstate.Empty("n1")); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if c := r.conditions(); len(c) != 1 || c[0].Status != corev1.ConditionFalse {
			t.Errorf("with nothing in the way the node says %v", c)
		}
		mu.Lock()
		refusal = errors.New("somebody took them later")
		mu.Unlock()
		before, _ := network.counts()
		time.Sleep(5 * configurePeriod)
		if now, _ := network.counts(); now <= before {
			t.Error("a network that works is given up")
		}
	})
}
