package scheduler

import (
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
)

// decision is what a pass made of one pod: a node for it, or why there is none.
type decision struct {
	pod     *pendingPod
	node    string
	message string // why this node, or why none
	err     error  // the decision itself failed
}

// place decides about pods, in their order, and counts each on its node before it
// looks at the next. It is pure but for c, which it changes: a pod that finds a
// node is bound there, one that does not has been tried.
func (c *cluster) place(pods []*pendingPod) []decision {
	slices.SortFunc(pods, func(a, b *pendingPod) int { return a.compare(b) })
	decisions := make([]decision, 0, len(pods))
	hopeless := map[string]string{} // message by needs; nothing is freed within a pass
	for _, p := range pods {
		needs := p.needs()
		message, known := hopeless[needs]
		d := decision{pod: p, message: message}
		if !known {
			if d = c.decide(p); d.node == "" && d.err == nil {
				hopeless[needs] = d.message
			}
		}
		if d.node != "" {
			delete(c.pending, p.key)
			c.bind(p.key, boundPod{node: d.node, request: p.request, owner: p.owner})
		} else {
			p.tried = true
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
			d = decision{pod: p, err: fmt.Errorf("panic: %v\n%s", r, debug.Stack())}
		}
	}()
	d.pod = p
	most, able := 0, 0
	fits := fitting(p)
	for _, n := range c.order {
		if !fits(n) {
			continue
		}
		able++
		if s := score(p, n); d.node == "" || s > most {
			d.node, most = n.name, s
		}
	}
	if d.node == "" {
		d.message = c.why(p)
	} else {
		d.message = fmt.Sprintf("score %d, best of %d that fit, of %d nodes", most, able, len(c.order))
	}
	return d
}

// why summarizes what keeps p from every node. It keeps one reason of each node,
// so that thousands of nodes cost no more than their count.
func (c *cluster) why(p *pendingPod) string {
	if len(c.order) == 0 {
		return Explanation{}.String()
	}
	var t tally
	for _, n := range c.order {
		for _, filter := range filters {
			found := false
			filter(p, n, func(r Reason) bool { t.add(r); found = true; return false })
			if found {
				break
			}
		}
	}
	return t.summary(len(c.order))
}

// needs is equal for pods that fit the same nodes: the pods of a Deployment, for
// instance. What one of them cannot have, no other can.
func (p *pendingPod) needs() string {
	var b strings.Builder
	fmt.Fprint(&b, p.request.common, p.request.other) // maps print in order
	for _, key := range p.selectorKeys {
		fmt.Fprintf(&b, "%q:%q,", key, p.selector[key])
	}
	for i := range p.tolerations {
		t := &p.tolerations[i]
		fmt.Fprintf(&b, "%q %s %q %s,", t.Key, t.Operator, t.Value, t.Effect)
	}
	return b.String()
}

// untried returns the pods to decide about, at most limit of them, the most urgent
// first.
func (c *cluster) untried(limit int) []*pendingPod {
	var pods []*pendingPod
	for p := range maps.Values(c.pending) {
		if !p.tried {
			pods = append(pods, p)
		}
	}
	slices.SortFunc(pods, func(a, b *pendingPod) int { return a.compare(b) })
	return pods[:min(len(pods), limit)]
}

// retryAll makes every pod that waits be tried again: something has changed that
// could help. Those that wait for a failed commit keep their time.
func (c *cluster) retryAll() {
	for p := range maps.Values(c.pending) {
		if p.failures == 0 {
			p.tried = false
		}
	}
}
