package scheduler

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/holdfast-io/holdfast/object"
)

// budget is a PodDisruptionBudget.
type budget struct {
	namespace string
	selector  labels.Selector
	allowed   int    // disruptions
	mod       string // resourceVersion
}

func (c *cluster) setBudget(pdb *policyv1.PodDisruptionBudget) {
	b := &budget{namespace: pdb.Namespace, selector: labels.Nothing(), allowed: int(pdb.Status.DisruptionsAllowed), mod: pdb.ResourceVersion}
	if pdb.Spec.Selector != nil {
		b.selector = selectorOf(pdb.Spec.Selector)
	}
	if pdb.Generation > 0 && pdb.Status.ObservedGeneration < pdb.Generation {
		b.allowed = 0 // nobody has counted yet
	}
	c.budgets[object.KeyOf(pdb)] = b
	c.budgetsChanged()
}

func (c *cluster) removeBudget(key object.Key) {
	delete(c.budgets, key)
	c.budgetsChanged()
}

func (c *cluster) budgetsChanged() {
	for _, cl := range c.classes {
		cl.victims.stale = true
	}
	c.help()
}

func (b *budget) selects(pod *boundPod) bool {
	return b.namespace == pod.needs.namespace && b.selector.Matches(pod.labels)
}

// spend notes that pod's budgets allow one disruption less.
func (c *cluster) spend(pod *boundPod) {
	for _, b := range c.budgets {
		if b.selects(pod) {
			b.allowed--
			for _, cl := range c.classes {
				cl.victims.stale = true
			}
		}
	}
}

// leaving reports whether pod's room is free soon.
func (pod *boundPod) leaving() bool { return pod.deleting || pod.doomed }

// ranking is the nodes on which pods of a class could have room if others of less
// priority made way, the least loss first.
type ranking struct {
	stale bool
	seen  int
	nodes slotHeap
	place []int32 // by slot
	loss  []*loss // by slot; nil: not even so
}

// loss is what it costs to make room on a node. Of two, in this order: the victims'
// highest priority, their sum, their number, and how long the most important ones
// have run.
type loss struct {
	highest int32
	sum     int64
	count   int
	latest  time.Time // when the first of the most important victims began
}

func (l *loss) compare(other *loss) int {
	return cmp.Or(
		cmp.Compare(l.highest, other.highest), cmp.Compare(l.sum, other.sum), cmp.Compare(l.count, other.count),
		other.latest.Compare(l.latest),
	)
}

// makeWay returns the node on which the least is lost if pods of less priority make
// room for one of cl, which is up to date and fits nowhere, and those pods. It returns
// nil if there is none.
func (c *cluster) makeWay(cl *class) (*node, []*boundPod) {
	if !cl.needs.preempts || len(cl.claims.missing) > 0 {
		return nil, nil
	}
	lower := false
	for priority := range c.least {
		lower = lower || priority < cl.needs.priority
	}
	if !lower {
		return nil, nil
	}
	c.rank(cl)
	r := &cl.victims
	for len(r.nodes.slots) > 0 {
		slot := r.nodes.slots[0]
		n := c.slots[slot]
		victims, l := c.victims(cl, n)
		if l != nil && l.compare(r.loss[slot]) == 0 {
			return n, victims
		}
		c.rerank(cl, int(slot)) // budgets, or pods elsewhere, have changed since
	}
	return nil, nil
}

// rank brings cl's ranking up to date.
func (c *cluster) rank(cl *class) {
	r := &cl.victims
	if r.stale || r.place == nil || r.seen < c.first || len(cl.terms) > 0 || len(r.place) < len(c.slots) || c.now()-r.seen > len(c.slots) {
		*r = ranking{place: make([]int32, len(c.slots)), loss: make([]*loss, len(c.slots))}
		for slot := range c.slots {
			c.rerank(cl, slot)
		}
	} else {
		for _, slot := range c.changed[r.seen-c.first:] {
			c.rerank(cl, slot)
		}
	}
	r.seen = c.now()
}

func (c *cluster) rerank(cl *class, slot int) {
	r := &cl.victims
	less := func(a, b int32) bool {
		if d := r.loss[a].compare(r.loss[b]); d != 0 {
			return d < 0
		}
		return c.names[a] < c.names[b]
	}
	var next *loss
	if n := c.slots[slot]; n != nil {
		_, next = c.victims(cl, n)
	}
	if r.loss[slot] != nil {
		r.nodes.remove(int32(slot), r.place, less)
	}
	if r.loss[slot] = next; next != nil {
		r.nodes.add(int32(slot), r.place, less)
	}
}

// victims returns the pods that have to make way on n for one of cl, and the loss; nil
// if that would not do, or is not allowed. Pods that are leaving anyway are no loss.
func (c *cluster) victims(cl *class, n *node) ([]*boundPod, *loss) {
	var gone []*boundPod
	spent := map[*budget]int{}
	pods := slices.SortedFunc(maps.Values(n.pods), func(a, b *boundPod) int { // the least important first
		return cmp.Or(cmp.Compare(a.needs.priority, b.needs.priority), b.started.Compare(a.started), strings.Compare(string(a.key), string(b.key)))
	})
	var candidates []*boundPod
	for _, pod := range pods {
		switch {
		case pod.leaving():
			gone = append(gone, pod)
		case pod.needs.priority < cl.needs.priority && c.mayGo(pod, spent):
			candidates = append(candidates, pod)
		}
	}
	if len(gone)+len(candidates) == 0 {
		return nil, nil
	}
	for _, key := range cl.claims.held { // who uses what is for one pod has to be among them
		users := 0
		for _, pod := range slices.Concat(gone, candidates) {
			if pod.uses(key) {
				users++
			}
		}
		if users < c.claimUsers[key] {
			return nil, nil
		}
	}
	without := *n // as if they had gone
	without.released = true
	without.used = amounts{}
	without.used.add(n.used, 1)
	without.ports = maps.Clone(n.ports)
	take := func(pod *boundPod, sign int) {
		without.used.add(pod.needs.request, int64(-sign))
		for _, port := range pod.needs.ports {
			if without.ports[port] -= sign; without.ports[port] == 0 {
				delete(without.ports, port)
			}
		}
	}
	for _, pod := range gone {
		take(pod, 1)
	}
	for _, pod := range candidates {
		take(pod, 1)
	}
	if !cl.fits(&without) || !cl.termsAllow(n, slices.Concat(gone, candidates)) {
		return nil, nil
	}
	victims := slices.Clone(candidates)
	for _, pod := range slices.Backward(candidates) { // let stay who can, the most important first
		if pod.uses(cl.claims.held...) {
			continue
		}
		take(pod, -1)
		rest := slices.DeleteFunc(slices.Clone(victims), func(v *boundPod) bool { return v == pod })
		if cl.fits(&without) && cl.termsAllow(n, slices.Concat(gone, rest)) {
			victims = rest
			continue
		}
		take(pod, 1)
	}
	l := &loss{count: len(victims)}
	for _, v := range victims {
		priority := v.needs.priority
		if l.sum += int64(priority) + 1<<31; l.count > 0 && (v == victims[0] || priority > l.highest) {
			l.highest, l.latest = priority, v.started
		} else if priority == l.highest && v.started.Before(l.latest) {
			l.latest = v.started
		}
	}
	if len(victims) == 0 {
		l.highest = -1 << 31
	}
	return victims, l
}

// mayGo reports whether all budgets that select pod allow it to go, beside those
// that have been spent, and spends them.
func (c *cluster) mayGo(pod *boundPod, spent map[*budget]int) bool {
	var its []*budget
	for _, b := range c.budgets {
		if !b.selects(pod) {
			continue
		}
		if b.allowed-spent[b] < 1 {
			return false
		}
		its = append(its, b)
	}
	for _, b := range its {
		spent[b]++
	}
	return true
}

// disrupted is a budget as it is once a pod has been made to go, as an eviction
// leaves it, so that whoever counts on it counts anew.
func disrupted(pdb *policyv1.PodDisruptionBudget, pod string, now time.Time) *policyv1.PodDisruptionBudget {
	if pdb.Status.DisruptedPods == nil {
		pdb.Status.DisruptedPods = map[string]metav1.Time{}
	}
	pdb.Status.DisruptedPods[pod] = metav1.NewTime(now.Truncate(time.Second))
	pdb.Status.DisruptionsAllowed--
	return pdb
}
