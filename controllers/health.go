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
	// nodeReady: its agent is heard.
	nodeReady
	// nodeIsolated: its agent is not heard, but gossip sees the machine. Nothing
	// new is placed there; what runs there stays.
	nodeIsolated
	// nodeSuspect: nobody sees it, but not for long enough, or together with too many
	// others to believe it. Nothing new is placed there; what runs there stays.
	nodeSuspect
	// nodeLost: both witnesses agree. Its pods are replaced.
	nodeLost
)

// String returns the state's name.
func (s nodeState) String() string {
	return [...]string{"undecided", "ready", "isolated", "suspect", "lost"}[s]
}

// evidence is what both witnesses say about one node at one moment.
type evidence struct {
	node string
	// silence is the time since the agent was last heard, as far as this leader
	// was listening: not before it began to lead or first saw the node, and not
	// while it was paused. That is the leader's grace.
	silence time.Duration
	// heard is false if this leader never heard the agent; silence is then the
	// time it has listened in vain.
	heard bool
	// alive is gossip's veto; dead its doubt, which is no conviction.
	alive, dead bool
	// evicting: the node has been convicted before, and has not come back.
	evicting bool
	// quiet is for how long nobody can have renewed the node's lease, at least: since
	// it was last heard, by whomever, but not since before this leader listened.
	quiet time.Duration
}

// verdict is the judgement on one node.
type verdict struct {
	state  nodeState
	held   bool          // by the brake, which makes it suspect
	detail string        // a suspect's: why
	quiet  time.Duration // as in evidence
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
// gossip does not see the machine alive. It is suspect instead when more than a
// third of all nodes fell silent together with it: then the cause is rather this
// side of the network than all of theirs. A node counts among the fallen from
// half a lease of silence on, because those that fell together are not noticed in
// the same instant, and whatever gossip says, because gossip notices later; from then
// on it is suspect if gossip takes it for dead. A node that was convicted stays so
// until it is heard.
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
		v := &verdicts[i]
		v.quiet = e.quiet
		switch {
		case e.silence <= c.lease && e.silence > c.lease/2 && e.dead && !e.evicting:
			v.state, v.detail = nodeSuspect, "no heartbeat for half a lease, and gossip takes the machine for dead"
		case e.heard && e.silence <= c.lease:
			v.state = nodeReady
		case e.silence <= c.lease:
			v.state = nodeUndecided
		case e.alive:
			v.state = nodeIsolated
		case e.evicting:
			v.state = nodeLost
		default:
			from, _ := slices.BinarySearch(fallen, e.silence-c.window)
			to, _ := slices.BinarySearch(fallen, e.silence+c.window+1)
			if together := to - from; len(all) >= brakeMinimum && together*brakeShare > len(all) {
				v.state, v.held = nodeSuspect, true
				v.detail = fmt.Sprintf("%d of %d nodes vanished together", together, len(all))
			} else {
				v.state = nodeLost
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
		gossip := health.Gossip(n.name)
		e := evidence{node: n.name, silence: l.listened(first, now), alive: gossip == "alive", dead: gossip == "dead", evicting: n.evicting}
		e.quiet = e.silence
		if age, ok := health.Heartbeat(n.name); ok {
			at := now.Add(-max(age, 0))
			if at.After(first) {
				e.quiet = l.listened(at, now)
			}
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
