package controllers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestJudge runs testdata/health/*.txtar: the evidence about all nodes, and the
// verdicts. The lease is 6 s, the brake's window 30 s.
func TestJudge(t *testing.T) {
	golden.Run(t, "testdata/health/*.txtar", func(t *testing.T, in golden.Input) string {
		var all []evidence
		for _, l := range parseLines(t, in.File("nodes")) {
			e := evidence{
				node:     l.name,
				silence:  l.dur("silent", 0),
				heard:    !l.has("unheard"),
				alive:    l.str("gossip", "alive") == "alive",
				dead:     l.str("gossip", "alive") == "dead",
				evicting: l.has("evicting"),
			}
			l.done()
			all = append(all, e)
		}
		var b strings.Builder
		for i, v := range (court{lease: 6 * time.Second, window: 30 * time.Second}).judge(all) {
			fmt.Fprintf(&b, "%s %s", all[i].node, v.state)
			if v.detail != "" {
				fmt.Fprintf(&b, " (%s)", v.detail)
			}
			b.WriteByte('\n')
		}
		return b.String()
	})
}

// fakeHealth is what the peers and gossip report, by the clock of the test.
type fakeHealth struct {
	now    *time.Time
	heard  map[string]time.Time
	gossip map[string]string
}

func (h *fakeHealth) Heartbeat(node string) (time.Duration, bool) {
	at, ok := h.heard[node]
	return h.now.Sub(at), ok
}

func (h *fakeHealth) Gossip(node string) string { return h.gossip[node] }

// TestListener covers how long a leader has listened: its own beginning and its own
// pauses count against nobody.
func TestListener(t *testing.T) {
	const lease, period = 6 * time.Second, 500 * time.Millisecond
	start := testNow
	now := start
	health := &fakeHealth{now: &now, heard: map[string]time.Time{}, gossip: map[string]string{}}
	l := newListener(lease, period)
	node := []nodeFacts{{name: "n1"}}
	listen := func() evidence {
		t.Helper()
		all, _ := l.listen(node, health, now)
		return all[0]
	}
	// listenUntil looks every period, as the loop does, until at.
	listenUntil := func(at time.Duration) (e evidence) {
		t.Helper()
		for now.Sub(start) < at {
			now = now.Add(period)
			e = listen()
		}
		return e
	}

	// The leader before was told of the node a minute ago. That proves nothing now.
	health.heard["n1"] = start.Add(-time.Minute)
	if e := listen(); e.silence != 0 || e.heard {
		t.Fatalf("at the beginning: %+v; want no silence, for nobody has listened yet", e)
	}
	if e := listenUntil(5 * time.Second); e.silence != 5*time.Second || e.heard {
		t.Fatalf("after 5 s: %+v; want 5 s of silence, unheard", e)
	}

	// A pause of ten seconds, with one period of listening before it.
	now = now.Add(10 * time.Second)
	all, paused := l.listen(node, health, now)
	if paused != 10*time.Second || all[0].silence != 5*time.Second {
		t.Fatalf("after a pause: noticed %v, silence %v; want 10s and 5s", paused, all[0].silence)
	}
	if e := listenUntil(17 * time.Second); e.silence != 7*time.Second {
		t.Fatalf("2 s later: silence %v, want 7s", e.silence)
	}

	// A heartbeat ends it, and a later pause is left out of what follows.
	health.heard["n1"] = now
	if e := listenUntil(18 * time.Second); e.silence != time.Second || !e.heard {
		t.Fatalf("1 s after a heartbeat: %+v", e)
	}
	now = now.Add(3 * time.Second)
	if e := listen(); e.silence != time.Second {
		t.Fatalf("after a pause of 3 s: silence %v, want 1s as before it", e.silence)
	}
	// One that was relayed during the pause is not made younger than it is.
	health.heard["n1"] = now.Add(-time.Second)
	if e := listen(); e.silence != 0 {
		t.Fatalf("heard in the middle of the pause: silence %v, want 0: the rest of it is excused", e.silence)
	}

	// Looks that come late by less than a period more are no pause.
	now = now.Add(2 * period)
	if _, paused := l.listen(node, health, now); paused != 0 {
		t.Fatalf("two periods without a look count as a pause of %v", paused)
	}
}

// TestListenerForgetsNodes: a node that was removed and came back is new: its
// first lease counts from then.
func TestListenerForgetsNodes(t *testing.T) {
	now := testNow
	health := &fakeHealth{now: &now}
	l := newListener(6*time.Second, time.Minute)
	l.listen([]nodeFacts{{name: "n1"}}, health, now)
	now = now.Add(5 * time.Second)
	l.listen(nil, health, now)
	all, _ := l.listen([]nodeFacts{{name: "n1"}}, health, now)
	if all[0].silence != 0 {
		t.Errorf("silence %v for a node that is new, want 0", all[0].silence)
	}
}
