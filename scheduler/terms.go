package scheduler

import (
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// census counts the bound pods of each node that all its terms choose, or those
// that hold one.
type census struct {
	id    string
	terms []podTerm // of a holder's: none
	live  bool      // pods that are being deleted do not count
	on    map[*node]int
	total int
	users int
}

func (s *census) add(n *node, by int) {
	s.total += by
	if s.on[n] += by; s.on[n] == 0 {
		delete(s.on, n)
	}
}

func (s *census) counts(c *cluster, pod *boundPod) bool {
	if s.live && pod.deleting {
		return false
	}
	for i := range s.terms {
		if !s.terms[i].chooses(pod.needs.namespace, pod.labels, c.namespaceLabels) {
			return false
		}
	}
	return true
}

// holder is a term that pods hold against others, or for them, wherever they run:
// what a pod wants to have near or not near is true for both.
type holder struct {
	id    string
	term  podTerm
	kind  termKind
	on    census
	users int
}

// topology is the nodes in domains, by a label.
type topology struct {
	key    string
	ids    map[string]int // domain by the label's value
	names  []string
	sizes  []int // nodes in a domain
	shared int   // domains of more than one node
	domain map[*node]int
}

// domainOf returns n's domain, -1 if it is in none.
func (t *topology) domainOf(n *node) int {
	if d, ok := t.domain[n]; ok {
		return d
	}
	return -1
}

func (t *topology) set(n *node) {
	next := -1
	if value, ok := n.labels[t.key]; ok && n.exists {
		next, ok = t.ids[value]
		if !ok {
			next = len(t.names)
			t.ids[value] = next
			t.names = append(t.names, value)
			t.sizes = append(t.sizes, 0)
		}
	}
	before := t.domainOf(n)
	if before == next {
		return
	}
	if before >= 0 {
		if t.sizes[before]--; t.sizes[before] == 1 {
			t.shared--
		}
		delete(t.domain, n)
	}
	if next >= 0 {
		if t.sizes[next]++; t.sizes[next] == 2 {
			t.shared++
		}
		t.domain[n] = next
	}
}

// topology returns the domains of a label, which are kept from now on.
func (c *cluster) topology(key string) *topology {
	t := c.topologies[key]
	if t == nil {
		t = &topology{key: key, ids: map[string]int{}, domain: map[*node]int{}}
		c.topologies[key] = t
		for _, n := range c.order {
			t.set(n)
		}
	}
	return t
}

// census returns the count of the pods that all of terms choose, which is kept as
// long as it has users.
func (c *cluster) census(terms []podTerm, live bool) *census {
	id := "all "
	if live {
		id = "live "
	}
	for i := range terms {
		id += terms[i].id + "\n"
	}
	s := c.censuses[id]
	if s == nil {
		s = &census{id: id, terms: terms, live: live, on: map[*node]int{}}
		c.censuses[id] = s
		pair := s.pair()
		c.byLabel[pair] = append(c.byLabel[pair], s)
		for _, pod := range c.bound {
			c.count(pod, s)
		}
	}
	s.users++
	return s
}

func (c *cluster) dropCensus(s *census) {
	if s.users--; s.users > 0 {
		return
	}
	delete(c.censuses, s.id)
	pair := s.pair()
	list := c.byLabel[pair]
	for i := range list {
		if list[i] == s {
			c.byLabel[pair] = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(c.byLabel[pair]) == 0 {
		delete(c.byLabel, pair)
	}
}

// labelPair is a label that every pod of a census has; empty if there is no such.
type labelPair struct{ key, value string }

func (s *census) pair() labelPair {
	for i := range s.terms {
		reqs, _ := s.terms[i].selector.Requirements()
		for _, r := range reqs {
			if values := r.ValuesUnsorted(); len(values) == 1 && (r.Operator() == selection.In || r.Operator() == selection.Equals || r.Operator() == selection.DoubleEquals) {
				return labelPair{r.Key(), values[0]}
			}
		}
	}
	return labelPair{}
}

// count adds pod to s if it belongs there.
func (c *cluster) count(pod *boundPod, s *census) {
	if s.counts(c, pod) {
		s.add(pod.node, 1)
		pod.counted = append(pod.counted, s)
	}
}

// countAll adds pod to every census that it belongs to.
func (c *cluster) countAll(pod *boundPod) {
	if len(c.censuses) > 0 {
		for key, value := range pod.labels {
			for _, s := range c.byLabel[labelPair{key, value}] {
				c.count(pod, s)
			}
		}
		for _, s := range c.byLabel[labelPair{}] {
			c.count(pod, s)
		}
	}
	for _, h := range pod.needs.holders {
		h.on.add(pod.node, 1)
	}
}

func (c *cluster) uncountAll(pod *boundPod) {
	for _, s := range pod.counted {
		s.add(pod.node, -1)
	}
	pod.counted = nil
	for _, h := range pod.needs.holders {
		h.on.add(pod.node, -1)
	}
}

// recount counts everything anew: a namespace's labels have changed.
func (c *cluster) recount() {
	for _, pod := range c.bound {
		c.uncountAll(pod)
	}
	for _, pod := range c.bound {
		c.countAll(pod)
	}
	c.dropClasses()
}

func (c *cluster) namespaceLabels(name string) labels.Set { return c.namespaces[name] }

// adopt makes n one of the cluster's needs.
func (c *cluster) adopt(n *needs) {
	for t := range n.podTerms {
		reqs, _ := t.selector.Requirements()
		for _, r := range reqs {
			if c.mentioned[r.Key()]++; c.mentioned[r.Key()] == 1 {
				c.mentions++ // pods that were of one class may be so no more
			}
		}
	}
	hold := func(kind termKind, terms []podTerm) {
		for i := range terms {
			t := terms[i]
			id := string(kind) + t.id + "\x00" + t.key + "\x00" + itoa(t.weight)
			h := c.holders[id]
			if h == nil {
				h = &holder{id: id, term: t, kind: kind, on: census{on: map[*node]int{}}}
				c.holders[id] = h
				for _, cl := range c.classes {
					if t.chooses(cl.needs.namespace, cl.labels, c.namespaceLabels) {
						cl.stale = true
					}
				}
			}
			h.users++
			n.holders = append(n.holders, h)
		}
	}
	hold(apart, n.apart)
	hold(near, n.near)
	hold(prefer, n.prefer)
}

// disown forgets n, which no pod has any more.
func (c *cluster) disown(n *needs) {
	delete(c.needs, n.id)
	for t := range n.podTerms {
		reqs, _ := t.selector.Requirements()
		for _, r := range reqs {
			if c.mentioned[r.Key()]--; c.mentioned[r.Key()] == 0 {
				delete(c.mentioned, r.Key())
			}
		}
	}
	for _, h := range n.holders {
		if h.users--; h.users == 0 {
			delete(c.holders, h.id)
		}
	}
}
