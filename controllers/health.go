package controllers

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// nodeState is what the leader makes of the evidence about one node.
type nodeState int8

const (
	// nodeUndecided: not heard by this leader, nor silent for long enough. What
	// is written about the node stays as it is.
	nodeUndecided nodeState = iota
	// nodeAlive: its agent is heard.
	nodeAlive
	// nodeSilent: its agent is not heard, but gossip sees the machine. Nothing
	// new is placed there; what runs there stays.
	nodeSilent
	// nodeHeld: lost together with too many others to believe it.
	nodeHeld
	// nodeLost: both witnesses agree. Its pods are replaced.
	nodeLost
)

// String returns the state's name.
func (s nodeState) String() string {
	return [...]string{"undecided", "alive", "silent", "held", "lost"}[s]
}

// evidence is what both witnesses say about one node at one moment.
type evidence struct {
	node string
	// silence is the time since the agent was last heard, as far as this leader
	// was listening: not before it began to lead or first saw the node, and not
	// while it was paused.
	silence time.Duration
	// heard is false if this leader never heard the agent; silence is then the
	// time it has listened in vain.
	heard bool
	// alive is gossip's veto.
	alive bool
	// evicting: the node has been convicted before, and has not come back.
	evicting bool
}

// verdict is the judgement on one node.
type verdict struct {
	state  nodeState
	detail string // a held node's: how many fell silent together
}

// court is how strict the judgement is.
type court struct {
	lease  time.Duration // silence up to this convicts nobody
	window time.Duration // nodes that fell silent within it did so together
}

// Rules of the brake: fewer nodes than brakeMinimum have none, for one lost node
// is always a large share of them.
const (
	brakeMinimum = 3
	brakeShare   = 3 // more than one in brakeShare
)

// judge decides about all nodes at once. It is pure: testdata/health states its
// whole behavior.
//
// A node is lost when its agent has been silent for longer than the lease and
// gossip does not see the machine alive. It is held instead when more than a
// third of all nodes fell silent together with it: then the cause is rather this
// side of the network than all of theirs. A node counts among the fallen from
// half a lease of silence on, because those that fell together are not noticed in
// the same instant, and whatever gossip says, because gossip notices later. A
// node that was convicted stays so until it is heard.
func (c court) judge(all []evidence) []verdict {
	fallen := make([]time.Duration, 0, len(all)) // how long ago
	for _, e := range all {
		longAgo := e.evicting && !e.heard // convicted by an earlier leader
		if e.silence > c.lease/2 && !longAgo {
			fallen = append(fallen, e.silence)
		}
	}
	slices.Sort(fallen)
	verdicts := make([]verdict, len(all))
	for i, e := range all {
		switch {
		case e.heard && e.silence <= c.lease:
			verdicts[i].state = nodeAlive
		case e.silence <= c.lease:
			verdicts[i].state = nodeUndecided
		case e.alive:
			verdicts[i].state = nodeSilent
		case e.evicting:
			verdicts[i].state = nodeLost
		default:
			from, _ := slices.BinarySearch(fallen, e.silence-c.window)
			to, _ := slices.BinarySearch(fallen, e.silence+c.window+1)
			if together := to - from; len(all) >= brakeMinimum && together*brakeShare > len(all) {
				verdicts[i] = verdict{nodeHeld, fmt.Sprintf("%d of %d nodes vanished together", together, len(all))}
			} else {
				verdicts[i].state = nodeLost
			}
		}
	}
	return verdicts
}

// listener is the leader's memory of how long it has listened: when it first saw
// each node, and when it was itself unable to listen. It is not safe for
// concurrent use.
type listener struct {
	lease time.Duration
	gap   time.Duration // between two looks; a longer one is a pause of our own

	last   time.Time
	since  map[string]time.Time // first look at each node
	pauses []pause
}

// pauseMemory bounds the memory of pauses. It is far longer than any lease.
const pauseMemory = time.Hour

// pause is a time in which this process did not run.
type pause struct {
	from, to time.Time
}

func newListener(lease, period time.Duration) *listener {
	return &listener{lease: lease, gap: 2 * period, since: map[string]time.Time{}}
}

// listen takes the evidence about nodes at now. Calls are to come every period;
// one that comes later than two of them means that this process was paused, and
// that time counts against nobody.
func (l *listener) listen(nodes []nodeFacts, health Health, now time.Time) (all []evidence, paused time.Duration) {
	if !l.last.IsZero() && now.Sub(l.last) > l.gap {
		paused = now.Sub(l.last)
		l.pauses = append(l.pauses, pause{l.last, now})
	}
	l.last = now
	l.pauses = slices.DeleteFunc(l.pauses, func(p pause) bool { return now.Sub(p.to) > pauseMemory })
	since := make(map[string]time.Time, len(nodes))
	for _, n := range nodes {
		first, ok := l.since[n.name]
		if !ok {
			first = now
		}
		since[n.name] = first
		e := evidence{node: n.name, silence: l.listened(first, now), alive: health.Gossip(n.name) == "alive", evicting: n.evicting}
		if age, ok := health.Heartbeat(n.name); ok {
			at := now.Add(-max(age, 0))
			// What other peers heard before this one listened proves life, if it
			// is recent enough, but never silence.
			if silence := l.listened(at, now); silence <= l.lease || at.After(first) {
				e.silence, e.heard = silence, true
			}
		}
		all = append(all, e)
	}
	l.since = since
	return all, paused
}

// listened returns the time between from and to without our own pauses.
func (l *listener) listened(from, to time.Time) time.Duration {
	sum := to.Sub(from)
	for _, p := range l.pauses {
		start, end := p.from, p.to
		if start.Before(from) {
			start = from
		}
		if end.After(to) {
			end = to
		}
		sum -= max(end.Sub(start), 0)
	}
	return sum
}

// summarize names the held nodes for a log line.
func summarize(names []string) string {
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(a, b) })
	const most = 10
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}
