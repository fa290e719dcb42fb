package scheduler

import (
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-io/holdfast/object"
)

// decision is what a pass made of one pod: a node for it, or why there is none.
type decision struct {
	pod     *pendingPod
	node    string
	message string // why this node, or why none
	err     error  // the decision itself failed

	// Without node: the node that it will have once its volumes are there, or once
	// the victims have made room.
	expect  string
	moved   bool         // it was not expected there before
	volumes bool         // it waits for its volumes alone
	claims  []object.Key // whose volumes are to be made there
	victims []*boundPod
}

// place decides about pods, in their order, and counts each on its node before it
// looks at the next. It is pure but for c, which it changes: a pod that finds a
// node is bound there, one that does not has been tried.
func (c *cluster) place(pods []*pendingPod) []decision {
	decisions := make([]decision, 0, len(pods))
	for _, p := range pods {
		d := c.decide(p)
		switch {
		case d.node != "":
			c.bind(&boundPod{key: p.key, needs: p.needs, owner: p.owner, labels: p.labels, started: p.created}, d.node)
			c.forget(p.key)
		case d.err == nil:
			if d.moved = d.expect != p.nodeName; d.moved {
				c.expect(p, d.expect)
			}
			for _, victim := range d.victims {
				victim.doomed = true
				c.spend(victim)
				c.touch(victim.node)
			}
			c.wait(p)
		default:
			c.wait(p)
		}
		decisions = append(decisions, d)
	}
	return decisions
}

// decide finds the node with the highest score among those that can take p, the
// first by name of equals. A panic is this one pod's error.
func (c *cluster) decide(p *pendingPod) (d decision) {
	defer func() {
		if r := recover(); r != nil {
			if p.class != nil {
				c.dropClass(p.class) // it may be half made
				p.class = nil
			}
			d = decision{pod: p, err: fmt.Errorf("panic: %v\n%s", r, debug.Stack())}
		}
	}()
	d.pod = p
	cl := c.classOf(p)
	if p.nodeName != "" {
		if c.decideExpected(cl, p, &d) {
			return d
		}
	}
	n, score, able := c.best(cl)
	if n != nil {
		d.message = "score " + strconv.Itoa(score) + ", best of " + strconv.Itoa(able) + " that fit, of " + strconv.Itoa(len(c.order)) + " nodes"
		c.choose(cl, n, &d)
		return d
	}
	if n, victims := c.makeWay(cl); n != nil {
		d.expect, d.victims = n.name, victims
		d.message = preemptMessage(n, victims)
		return d
	}
	d.message = c.why(cl)
	return d
}

// choose takes n for the pod of d: at once, or once its volumes are there.
func (c *cluster) choose(cl *class, n *node, d *decision) {
	switch {
	case len(cl.claims.choose) > 0:
		d.expect, d.claims, d.volumes = n.name, cl.claims.choose, true
		d.message = fmt.Sprintf("chosen is %s; volumes are to be made there for %s", n.name, claimNames(cl.claims.choose))
	case len(cl.claims.waiting) > 0:
		d.expect, d.volumes = n.name, true
		d.message = fmt.Sprintf("waits for volumes on %s for claim %s", n.name, strings.Join(cl.claims.waiting, ", "))
	default:
		d.node = n.name
	}
}

func claimNames(keys []object.Key) string {
	var names []string
	for _, key := range keys {
		names = append(names, "claim "+string(key[strings.LastIndexByte(string(key), '/')+1:]))
	}
	return strings.Join(names, ", ")
}

// decideExpected decides about a pod that is expected on a node: whether it can come
// now, or waits on. If it reports false, the pod has no better claim to it than to
// any other.
func (c *cluster) decideExpected(cl *class, p *pendingPod, d *decision) bool {
	n := c.nodes[p.nodeName]
	if n == nil || !n.exists {
		return false
	}
	delete(n.expected, p.key)
	defer func() { n.expected[p.key] = p }()
	if cl.fits(n) && cl.termsAllow(n, nil) {
		d.message = "expected there, of " + strconv.Itoa(len(c.order)) + " nodes"
		c.choose(cl, n, d)
		return true
	}
	for _, pod := range n.pods {
		if pod.leaving() && pod.needs.priority < p.needs.priority {
			d.expect = n.name
			d.message = fmt.Sprintf("waits for pods on %s that make room for it to end", n.name)
			return true
		}
	}
	return false
}

// termsAllow reports whether the pods of n's domains allow another of cl there, when
// the ones of n that are gone have gone.
func (cl *class) termsAllow(n *node, gone []*boundPod) bool {
	for i := range cl.terms {
		t := &cl.terms[i]
		pods := int32(t.top.domainOf(n))
		if pods >= 0 {
			pods = t.sum[pods]
		}
		less := int32(0)
		for _, pod := range gone {
			if t.countsPod(pod) {
				less++
			}
		}
		if t.kind == spreadHard && less > 0 && pods >= 0 {
			self := int32(0)
			if t.self {
				self = 1
			}
			if pods-less+self-min(t.fewest(), pods-less) > int32(t.rule.maxSkew) {
				return false
			}
			continue
		}
		if !cl.allows(t, pods-min(less, max(pods, 0))) {
			return false
		}
	}
	return true
}

// countsPod reports whether pod is one of those that t counts.
func (t *classTerm) countsPod(pod *boundPod) bool {
	if t.census.id != "" {
		return slices.Contains(pod.counted, t.census)
	}
	return slices.ContainsFunc(pod.needs.holders, func(h *holder) bool { return &h.on == t.census })
}

// why summarizes what keeps pods of cl, which is up to date, from every node. It keeps
// one reason of each node, so that thousands of nodes cost no more than their count;
// and as long as nothing happens that could help, the answer.
func (c *cluster) why(cl *class) string {
	if cl.message != "" && cl.asOf == c.helped {
		return cl.message
	}
	cl.message, cl.asOf = c.whyNow(cl), c.helped
	return cl.message
}

func (c *cluster) whyNow(cl *class) string {
	if len(c.order) == 0 {
		return Explanation{}.String()
	}
	var t tally
	for _, n := range c.order {
		if r, found := cl.firstReason(n); found {
			t.add(r)
		}
	}
	return t.summary(len(c.order))
}

// social reports whether pods that are bound can make room for pods of cl: as
// neighbors, or as those that were missing for an even spread.
func (cl *class) social() bool {
	return slices.ContainsFunc(cl.terms, func(t classTerm) bool { return t.kind == near || t.kind == spreadHard })
}

// wake makes the pods be tried again that were tried in vain and have a node now, or
// whose time has come; and once in a while those of whose reason something may have
// changed.
func (c *cluster) wake(now time.Time) {
	for p := range c.delayed {
		if !p.due.After(now) {
			c.try(p)
		}
	}
	reclass := c.woken != c.mentions // the classes were made without what is asked about now
	c.woken = c.mentions
	for cl := range c.waiting {
		switch {
		case reclass || c.hopeful(cl):
			c.tryAll(cl)
		case cl.asOf != c.helped && !cl.newsDue().After(now):
			cl.asOf, cl.message, cl.toldAt = c.helped, "", now
			c.tryAll(cl)
		}
	}
}

// newsDue returns when the reason why pods of cl wait may be looked at again.
func (cl *class) newsDue() time.Time { return cl.toldAt.Add(messagePeriod) }

// due returns when wake has something to do even if nothing changes; zero if never.
func (c *cluster) due() (due time.Time) {
	soonest := func(t time.Time) {
		if due.IsZero() || t.Before(due) {
			due = t
		}
	}
	for p := range c.delayed {
		soonest(p.due)
	}
	for cl := range c.waiting {
		if cl.asOf != c.helped {
			soonest(cl.newsDue())
		}
	}
	return due
}

// hopeful reports whether something has changed since it was asked last, so that a node
// may take a pod of cl. If finding that out panics, the pods are tried again: it is
// theirs to tell.
func (c *cluster) hopeful(cl *class) (yes bool) {
	if cl.checkedFor == c.helped && (cl.checkedAt == c.now() || !cl.social()) {
		return false
	}
	defer func() {
		if recover() != nil {
			c.dropClass(cl)
		}
	}()
	c.sync(cl)
	n, _, _ := c.best(cl)
	if n == nil {
		n, _ = c.makeWay(cl)
	}
	cl.checkedFor, cl.checkedAt = c.helped, c.now()
	return n != nil
}

// tryAll makes all pods of cl that wait be tried again.
func (c *cluster) tryAll(cl *class) {
	for p := range cl.waiters {
		if p.failures == 0 {
			c.try(p)
		}
	}
}

// untried returns the pods to decide about, at most limit of them, the most urgent
// first.
func (c *cluster) untried(limit int) []*pendingPod { return c.queue.take(limit) }

// retryAll makes every pod that waits be tried again: something has changed that
// could help. Those that wait for a failed commit keep their time.
func (c *cluster) retryAll() {
	for _, p := range c.pending {
		if p.failures == 0 {
			c.try(p)
		}
	}
}

func preemptMessage(n *node, victims []*boundPod) string {
	if len(victims) == 0 {
		return fmt.Sprintf("waits for pods on %s that end already", n.name)
	}
	var names []string
	for _, v := range victims {
		names = append(names, strings.TrimPrefix(string(v.key), podPrefix))
	}
	return fmt.Sprintf("no node fits; on %s %d of less priority make room: %s", n.name, len(victims), strings.Join(names, ", "))
}
