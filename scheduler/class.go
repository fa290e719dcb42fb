package scheduler

import (
	"encoding/binary"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// class is what pods that fit the same nodes equally well share: each node's
// standing, so that a decision looks at the best ones alone. It reads the nodes
// that have changed since it was last used, and nothing else.
//
// Standing has two parts. What depends on the node alone, and on what runs there,
// is computed when the node changes. What depends on pods of other nodes, through
// affinity and spread, is the same for all nodes of a cell, and is computed for
// each cell at each decision.
type class struct {
	key    string
	needs  *needs
	owner  types.UID
	labels labels.Set // those that a term asks about
	claims claimNeeds

	seen    int // changes of the cluster up to here are in
	stale   bool
	used    int // when it was last, in uses of classes
	terms   []classTerm
	unique  []bool // terms' topologies: each domain is one node
	cells   []*cell
	byKey   map[string]*cell
	cellOf  []*cell // by slot; nil: the node cannot take such pods
	place   []int32 // by slot: in its cell's heap
	score   []int32 // by slot
	keyBuf  []byte
	waiters map[*pendingPod]struct{} // were tried in vain
	message string                   // why, as of
	asOf    int                      // cluster.helped
	// No node was found as of these numbers of changes that could help, and of changes.
	checkedFor, checkedAt int
	toldAt                time.Time // when the message was looked at last
	victims               ranking
}

// cell is nodes to which other nodes' pods are the same.
type cell struct {
	key    string
	at     int // in class.cells
	values []int32
	nodes  slotHeap
	ok     bool
	wish   int64 // how much pods nearby draw here
	crowd  int64 // how many pods there are already of those to spread
	none   int   // of how many soft spreads it has no domain
}

type termKind string

const (
	near       termKind = "near"       // required pod affinity
	apart      termKind = "apart"      // required pod anti-affinity
	repelled   termKind = "repelled"   // required pod anti-affinity of pods that run
	prefer     termKind = "prefer"     // preferred, either way, of either side
	spreadHard termKind = "spreadHard" // DoNotSchedule
	spreadSoft termKind = "spreadSoft" // ScheduleAnyway
)

// classTerm is a term as a class sees it: how many pods of it each domain has.
type classTerm struct {
	kind   termKind
	weight int64
	term   *podTerm
	census *census
	top    *topology
	rule   *spreadRule
	self   bool // pods of the class are chosen by it themselves

	at       []int32 // by slot: the domain under which it was counted, -1 for none
	own      []int32 // by slot: the pods counted
	sum      []int32 // by domain
	nodes    []int32 // by domain: nodes that count
	total    int64
	levels   map[int32]int // spread: domains by sum
	eligible int           // domains that count
}

// classOf returns p's class, up to date.
func (c *cluster) classOf(p *pendingPod) *class {
	cl := p.class
	if cl == nil || p.mentions != c.mentions || c.classes[cl.key] != cl {
		if p.tried { // its class counts it
			c.settleDown(p)
		}
		relevant := labels.Set{}
		for key, value := range p.labels {
			if c.mentioned[key] > 0 {
				relevant[key] = value
			}
		}
		var b strings.Builder
		b.WriteString(p.needs.id)
		b.WriteString("\x00owner")
		b.WriteString(string(p.owner))
		if len(relevant) > 0 {
			for _, key := range slices.Sorted(maps.Keys(relevant)) {
				b.WriteString("\x00")
				b.WriteString(key)
				b.WriteString("=")
				b.WriteString(relevant[key])
			}
		}
		var claims claimNeeds
		if len(p.needs.claims) > 0 {
			claims = c.claimNeeds(p.needs)
			b.WriteString("\x00claims")
			b.WriteString(claims.id)
		}
		cl = c.classes[b.String()]
		if cl == nil {
			c.makeRoom()
			cl = &class{key: b.String(), needs: p.needs, owner: p.owner, labels: relevant, claims: claims, stale: true, waiters: map[*pendingPod]struct{}{}}
			p.needs.users++
			c.classes[cl.key] = cl
		}
		p.class, p.mentions = cl, c.mentions
	}
	c.sync(cl)
	return cl
}

// maxClasses bounds the classes that are kept: each has a few dozen bytes for each
// node.
const maxClasses = 512

// makeRoom drops the quarter of the classes that were not used for the longest
// time, if there are too many. Those that pods wait for are kept while they are few.
func (c *cluster) makeRoom() {
	if len(c.classes) < maxClasses {
		return
	}
	all := slices.SortedFunc(maps.Values(c.classes), func(a, b *class) int {
		if x, y := len(a.waiters) > 0, len(b.waiters) > 0; x != y && len(c.waiting) < maxClasses/2 {
			if x {
				return 1
			}
			return -1
		}
		return a.used - b.used
	})
	for _, cl := range all[:len(all)/4] {
		c.dropClass(cl)
	}
}

func (c *cluster) dropClass(cl *class) {
	if c.classes[cl.key] != cl {
		return
	}
	delete(c.classes, cl.key)
	for p := range cl.waiters { // they make a new one
		c.try(p)
	}
	c.dropTerms(cl.terms)
	if cl.needs.users--; cl.needs.users == 0 {
		c.disown(cl.needs)
	}
}

func (c *cluster) dropClasses() {
	for _, cl := range c.classes {
		cl.stale = true
	}
}

func (c *cluster) dropTerms(terms []classTerm) {
	for i := range terms {
		if s := terms[i].census; s.id != "" {
			c.dropCensus(s)
		}
	}
}

// sync brings cl up to date.
func (c *cluster) sync(cl *class) {
	c.used++
	cl.used = c.used
	for i := range cl.unique {
		cl.stale = cl.stale || cl.unique[i] != (cl.terms[i].top.shared == 0)
	}
	if cl.stale || cl.seen < c.first || c.now()-cl.seen > 2*len(c.slots) {
		c.rebuild(cl)
		return
	}
	c.grow(cl)
	last := -1
	for _, slot := range c.changed[cl.seen-c.first:] {
		if slot != last {
			c.refresh(cl, slot)
		}
		last = slot
	}
	cl.seen = c.now()
}

func (c *cluster) rebuild(cl *class) {
	before := cl.terms
	cl.terms, cl.unique = nil, nil
	c.readTerms(cl)
	c.dropTerms(before)
	cl.cells, cl.byKey = nil, map[string]*cell{}
	cl.cellOf, cl.place, cl.score = nil, nil, nil
	cl.victims.stale = true
	c.grow(cl)
	for slot := range c.slots {
		c.refresh(cl, slot)
	}
	cl.seen, cl.stale = c.now(), false
}

// readTerms finds the terms that concern cl: its own, and those that pods of the
// cluster hold.
func (c *cluster) readTerms(cl *class) {
	n := cl.needs
	add := func(t classTerm) {
		t.top = c.topology(t.term.key)
		if t.rule != nil {
			t.levels = map[int32]int{}
		}
		cl.terms = append(cl.terms, t)
		cl.unique = append(cl.unique, t.top.shared == 0)
	}
	chosen := func(t *podTerm) bool { return t.chooses(n.namespace, cl.labels, c.namespaceLabels) }
	all := true
	for i := range n.near {
		all = all && chosen(&n.near[i])
	}
	for i := range n.near { // near pods that all of the terms choose, as in Kubernetes
		add(classTerm{kind: near, term: &n.near[i], census: c.census(n.near, false), self: all})
	}
	for i := range n.apart {
		add(classTerm{kind: apart, term: &n.apart[i], census: c.census(n.apart[i:i+1:i+1], false)})
	}
	for i := range n.prefer {
		add(classTerm{kind: prefer, term: &n.prefer[i], census: c.census(n.prefer[i:i+1:i+1], false), weight: int64(n.prefer[i].weight)})
	}
	for i := range n.spread {
		rule := &n.spread[i]
		kind := spreadHard
		if rule.soft {
			kind = spreadSoft
		}
		add(classTerm{kind: kind, term: &rule.term, rule: rule, census: c.census([]podTerm{rule.term}, true), self: chosen(&rule.term)})
	}
	for _, id := range slices.Sorted(maps.Keys(c.holders)) {
		h := c.holders[id]
		if !chosen(&h.term) {
			continue
		}
		switch h.kind {
		case apart:
			add(classTerm{kind: repelled, term: &h.term, census: &h.on})
		case near:
			add(classTerm{kind: prefer, term: &h.term, census: &h.on, weight: 1})
		case prefer:
			add(classTerm{kind: prefer, term: &h.term, census: &h.on, weight: int64(h.term.weight)})
		}
	}
}

// grow makes room in cl's tables for all nodes.
func (c *cluster) grow(cl *class) {
	more := len(c.slots) - len(cl.cellOf)
	if more <= 0 {
		return
	}
	cl.cellOf = append(cl.cellOf, make([]*cell, more)...)
	cl.place = append(cl.place, make([]int32, more)...)
	cl.score = append(cl.score, make([]int32, more)...)
	for i := range cl.terms {
		t := &cl.terms[i]
		t.own = append(t.own, make([]int32, more)...)
		for range more {
			t.at = append(t.at, -1)
		}
	}
}

// refresh takes in how the node at slot is now.
func (c *cluster) refresh(cl *class, slot int) {
	n := c.slots[slot]
	fits := n != nil && cl.fits(n)
	cl.keyBuf = cl.keyBuf[:0]
	for i := range cl.terms {
		t := &cl.terms[i]
		value := t.count(cl, n, slot)
		if cl.unique[i] && value >= 0 {
			value = t.sum[value]
		}
		cl.keyBuf = binary.LittleEndian.AppendUint32(cl.keyBuf, uint32(value))
	}
	before := cl.cellOf[slot]
	if !fits {
		if before != nil {
			cl.leave(before, int32(slot), c)
		}
		return
	}
	score := int32(localScore(cl, n))
	less := cl.less(c)
	if before != nil && before.key == string(cl.keyBuf) {
		cl.score[slot] = score
		before.nodes.fix(int(cl.place[slot]), cl.place, less)
		return
	}
	if before != nil {
		cl.leave(before, int32(slot), c)
	}
	next := cl.byKey[string(cl.keyBuf)]
	if next == nil {
		next = &cell{key: string(cl.keyBuf), at: len(cl.cells)}
		for i := range cl.terms {
			next.values = append(next.values, int32(binary.LittleEndian.Uint32(cl.keyBuf[4*i:])))
		}
		cl.cells = append(cl.cells, next)
		cl.byKey[next.key] = next
	}
	cl.score[slot], cl.cellOf[slot] = score, next
	next.nodes.add(int32(slot), cl.place, less)
}

func (cl *class) leave(from *cell, slot int32, c *cluster) {
	from.nodes.remove(slot, cl.place, cl.less(c))
	cl.cellOf[slot] = nil
	if len(from.nodes.slots) > 0 {
		return
	}
	delete(cl.byKey, from.key)
	last := cl.cells[len(cl.cells)-1]
	cl.cells[from.at], last.at = last, from.at
	cl.cells = cl.cells[:len(cl.cells)-1]
}

// less orders nodes of a cell: the best first, equals by name.
func (cl *class) less(c *cluster) func(a, b int32) bool {
	return func(a, b int32) bool {
		if cl.score[a] != cl.score[b] {
			return cl.score[a] > cl.score[b]
		}
		return c.names[a] < c.names[b]
	}
}

// count takes in how many pods of t are on the node at slot, and returns its domain.
func (t *classTerm) count(cl *class, n *node, slot int) (domain int32) {
	domain, counts := int32(-1), false
	if n != nil {
		domain = int32(t.top.domainOf(n))
		counts = domain >= 0 && (t.rule == nil || cl.countsFor(t.rule, n))
	}
	at, own := int32(-1), int32(0)
	if counts {
		at, own = domain, int32(t.census.on[n])
	}
	for int(max(domain, at)) >= len(t.sum) {
		t.sum, t.nodes = append(t.sum, 0), append(t.nodes, 0)
	}
	if t.at[slot] == at && t.own[slot] == own {
		return domain
	}
	if was := t.at[slot]; was >= 0 {
		t.change(was, -t.own[slot], -1)
	}
	if at >= 0 {
		t.change(at, own, 1)
	}
	t.at[slot], t.own[slot] = at, own
	return domain
}

func (t *classTerm) change(domain, pods, nodes int32) {
	if t.levels != nil && t.nodes[domain] > 0 {
		if t.levels[t.sum[domain]]--; t.levels[t.sum[domain]] == 0 {
			delete(t.levels, t.sum[domain])
		}
		t.eligible--
	}
	t.sum[domain] += pods
	t.nodes[domain] += nodes
	t.total += int64(pods)
	if t.levels != nil && t.nodes[domain] > 0 {
		t.levels[t.sum[domain]]++
		t.eligible++
	}
}

// countsFor reports whether a spread rule counts the node.
func (cl *class) countsFor(rule *spreadRule, n *node) bool {
	if !rule.anyAffinity && !cl.chosen(n) {
		return false
	}
	if rule.honorsTaints && !cl.toleratesAll(n) {
		return false
	}
	for i := range cl.needs.spread { // of the nodes that have all of the keys
		other := &cl.needs.spread[i]
		if _, ok := n.labels[other.term.key]; !ok && other.soft == rule.soft {
			return false
		}
	}
	return true
}

// fewest returns the least number of pods in any domain that counts.
func (t *classTerm) fewest() int32 {
	if t.eligible < t.rule.minDomains || t.eligible == 0 {
		return 0
	}
	fewest := int32(-1)
	for level := range t.levels {
		if fewest < 0 || level < fewest {
			fewest = level
		}
	}
	return fewest
}

// lonely reports whether there is nobody yet whom pods of cl want to be near, and they
// would be it themselves.
func (cl *class) lonely() bool {
	for i := range cl.terms {
		if t := &cl.terms[i]; t.kind == near && (t.total > 0 || !t.self) {
			return false
		}
	}
	return true
}

// pods returns how many pods of term i there are in the domain that stands for a
// cell as value; -1 if it is none.
func (cl *class) pods(i int, value int32) int32 {
	if value < 0 || cl.unique[i] {
		return value
	}
	return cl.terms[i].sum[value]
}

// judge works out what pods of other nodes mean for a cell.
func (cl *class) judge(ce *cell) {
	ce.ok, ce.wish, ce.crowd, ce.none = true, 0, 0, 0
	for i := range cl.terms {
		t, pods := &cl.terms[i], cl.pods(i, ce.values[i])
		if !cl.allows(t, pods) {
			ce.ok = false
			return
		}
		switch {
		case pods < 0 && t.kind == spreadSoft:
			ce.none++
		case pods > 0 && t.kind == prefer:
			ce.wish += t.weight * int64(pods)
		case t.kind == spreadSoft:
			ce.crowd += int64(pods) * int64(bits.Len(uint(t.eligible+2)))
		}
	}
}

// allows reports whether a domain with so many pods of t can take another pod of
// cl.
func (cl *class) allows(t *classTerm, pods int32) bool {
	switch t.kind {
	case near:
		return pods > 0 || pods == 0 && cl.lonely()
	case apart, repelled:
		return pods <= 0
	case spreadHard:
		self := int32(0)
		if t.self {
			self = 1
		}
		return pods >= 0 && pods+self-t.fewest() <= int32(t.rule.maxSkew)
	}
	return true
}

// bounds is what the scores of cells are measured against.
type bounds struct{ low, high, crowd int64 }

// judgeAll works out what pods of other nodes mean for every cell, and how many nodes
// can take a pod of cl.
func (cl *class) judgeAll() (b bounds, able int) {
	for _, ce := range cl.cells {
		if cl.judge(ce); !ce.ok {
			continue
		}
		if able == 0 {
			b.low, b.high = ce.wish, ce.wish
		}
		able += len(ce.nodes.slots)
		b.low, b.high, b.crowd = min(b.low, ce.wish), max(b.high, ce.wish), max(b.crowd, ce.crowd)
	}
	return b, able
}

// best returns the node with the highest score for pods of cl, which is up to date, and
// how many nodes can take one. It returns nil if there is none.
func (c *cluster) best(cl *class) (best *node, score, able int) {
	b, able := cl.judgeAll()
	for _, ce := range cl.cells {
		if !ce.ok {
			continue
		}
		slot := ce.nodes.slots[0]
		s := int(cl.score[slot]) + cellScore(ce, b)
		if n := c.slots[slot]; best == nil || s > score || s == score && n.name < best.name {
			best, score = n, s
		}
	}
	return best, score, able
}
