package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
)

// Explanation is the scheduler's answer about one pod, node by node.
type Explanation struct {
	Pod object.Key
	// Node is where the pod is bound, or would be; empty if nowhere.
	Node string
	// Bound says that Node is a fact. Nodes is then empty.
	Bound bool
	// Held says why the scheduler does not look for a node, if it does not. Nodes is
	// then empty.
	Held string
	// Nodes are all nodes, the best first, then those that cannot take it by name.
	Nodes []NodeVerdict
	// Victims are pods of less priority that would make room, if no node can take it.
	// Node is then theirs.
	Victims []object.Key
}

// NodeVerdict is what the scheduler thinks of one node for one pod.
type NodeVerdict struct {
	Node    string
	Reasons []Reason // against it; empty: it can take the pod
	Score   int      // more is better; 0 if there are reasons
}

// Explain says where the pod under key would go and why not elsewhere, as the
// scheduler would decide from r alone. It fails if there is no such pod. It reads
// all nodes and pods, and changes nothing: any peer can answer from any view.
func Explain(r object.Reader, key object.Key) (Explanation, error) {
	pod, ok := object.Get[*corev1.Pod](r, key)
	if !ok {
		return Explanation{}, fmt.Errorf("%s does not exist", key)
	}
	e := Explanation{Pod: key, Node: pod.Spec.NodeName, Bound: pod.Spec.NodeName != ""}
	switch {
	case e.Bound:
		return e, nil
	case object.Deleting(pod):
		e.Held = "being deleted"
	case len(pod.Spec.SchedulingGates) > 0:
		var names []string
		for _, gate := range pod.Spec.SchedulingGates {
			names = append(names, gate.Name)
		}
		e.Held = "held by its scheduling gates: " + strings.Join(names, ", ")
	case !ours(pod):
		e.Held = "left to the scheduler " + pod.Spec.SchedulerName
	}
	if e.Held != "" {
		return e, nil
	}
	c := clusterOf(r)
	return c.explain(c.pending[key]), nil
}

func (c *cluster) explain(p *pendingPod) Explanation {
	e := Explanation{Pod: p.key}
	if n := c.nodes[p.nodeName]; n != nil { // the place that is kept for it is its own
		delete(n.expected, p.key)
		c.touch(n)
	}
	cl := c.classOf(p)
	b, _ := cl.judgeAll()
	for _, n := range c.order {
		v := NodeVerdict{Node: n.name, Reasons: cl.reasons(n)}
		if ce := cl.cellOf[n.slot]; ce != nil && len(v.Reasons) == 0 {
			v.Score = int(cl.score[n.slot]) + cellScore(ce, b)
		}
		e.Nodes = append(e.Nodes, v)
	}
	slices.SortStableFunc(e.Nodes, func(a, b NodeVerdict) int {
		return cmp.Or(cmp.Compare(min(len(a.Reasons), 1), min(len(b.Reasons), 1)), cmp.Compare(b.Score, a.Score))
	})
	if len(e.Nodes) > 0 && len(e.Nodes[0].Reasons) == 0 {
		e.Node = e.Nodes[0].Node
	} else if n, victims := c.makeWay(cl); n != nil {
		e.Node = n.name
		for _, v := range victims {
			e.Victims = append(e.Victims, v.key)
		}
	}
	return e
}

// Fits reports whether a node can take the pod as things are.
func (e Explanation) Fits() bool { return len(e.Nodes) > 0 && len(e.Nodes[0].Reasons) == 0 }

// Filters returns what keeps the pod from nodes, filter by filter: in each line one
// reason, with the nodes that have it. The one that concerns the most nodes is first.
func (e Explanation) Filters() []FilterVerdict {
	var out []FilterVerdict
	for _, v := range e.Nodes {
		for _, r := range v.Reasons {
			at := slices.IndexFunc(out, func(f FilterVerdict) bool { return f.Reason.Filter == r.Filter && f.Reason.Detail == r.Detail })
			if at < 0 {
				out = append(out, FilterVerdict{Reason: r})
				at = len(out) - 1
			}
			f := &out[at]
			f.Nodes = append(f.Nodes, v.Node)
			if r.Missing < f.Reason.Missing {
				f.Reason = r
			}
		}
	}
	slices.SortStableFunc(out, func(a, b FilterVerdict) int {
		return cmp.Or(cmp.Compare(len(b.Nodes), len(a.Nodes)), cmp.Compare(a.Reason.String(), b.Reason.String()))
	})
	return out
}

// FilterVerdict is a reason and the nodes that have it. Of several that are short of a
// resource it is the least shortage.
type FilterVerdict struct {
	Reason Reason
	Nodes  []string
}

// Remedies returns what would let the pod run, each by itself: "cpu <= 350m", "n3 is
// uncordoned". It looks at the nodes against which the least speaks.
func (e Explanation) Remedies() []string {
	if e.Fits() {
		return nil
	}
	fewest := 0
	for _, v := range e.Nodes {
		if n := len(v.Reasons); fewest == 0 || n < fewest {
			fewest = n
		}
	}
	var out []string
	most := map[string]int64{} // of a resource that alone is short
	at := map[string]int{}     // its remedy
	for _, v := range e.Nodes {
		if len(v.Reasons) != fewest {
			continue
		}
		var parts []string
		for _, r := range v.Reasons {
			parts = append(parts, r.remedy(v.Node))
		}
		if slices.Contains(parts, "") {
			continue
		}
		remedy := strings.Join(parts, " and ")
		if r := v.Reasons[0]; fewest == 1 && r.Filter == "Resources" && r.Detail != string(corev1.ResourcePods) {
			i, known := at[r.Detail]
			switch {
			case r.Fits <= 0 && !known:
				continue // none of it is left there
			case !known:
				at[r.Detail], most[r.Detail] = len(out), r.Fits
			case r.Fits > most[r.Detail]:
				most[r.Detail], out[i] = r.Fits, remedy
				continue
			default:
				continue
			}
		}
		if !slices.Contains(out, remedy) {
			out = append(out, remedy)
		}
	}
	const enough = 4
	return out[:min(len(out), enough)]
}

// remedy says what would have to be so that r does not speak against node; "" if
// nothing that one would do.
func (r Reason) remedy(node string) string {
	switch r.Filter {
	case "Unschedulable":
		return node + " is uncordoned"
	case "Taint":
		return fmt.Sprintf("the pod tolerates %s, or %s loses that taint", r.Detail, node)
	case "NotReady":
		return node + " becomes ready"
	case "NodeSelector":
		return fmt.Sprintf("%s gets the label %s", node, r.Detail)
	case "NodeAffinity":
		if strings.Contains(r.Detail, "name=") || strings.Contains(r.Detail, "name!=") {
			return "" // it is what it is
		}
		return fmt.Sprintf("%s gets labels for %s", node, r.Detail)
	case "HostPort":
		return fmt.Sprintf("port %s on %s becomes free", r.Detail, node)
	case "Resources":
		if r.Detail == string(corev1.ResourcePods) {
			return "a pod on " + node + " ends"
		}
		return fmt.Sprintf("%s <= %s", r.Detail, quantity(corev1.ResourceName(r.Detail), r.Fits))
	case "Priority":
		return "its PriorityClass is created"
	case "Volume":
		if r.cure != "" {
			return r.cure
		}
		return "its volumes can be used on " + node
	default:
		return r.cure
	}
}

// String returns the answer in one line: "0/2 nodes fit: 1 cpu short by 500m, 1
// tainted node.kubernetes.io/unreachable". Each node is counted once, by its first
// reason; of several short of a resource, the least is told.
func (e Explanation) String() string {
	switch {
	case e.Bound:
		return "bound to " + e.Node
	case e.Held != "":
		return e.Held
	case e.Fits():
		return "fits " + e.Node
	case len(e.Nodes) == 0:
		return "0/0 nodes fit: the cluster has no nodes"
	}
	var t tally
	for _, v := range e.Nodes {
		t.add(v.Reasons[0])
	}
	return t.summary(len(e.Nodes))
}

// tally counts nodes by the reason that speaks against them.
type tally struct {
	groups []group
}

type group struct {
	reason Reason // the least shortage of the group
	count  int
}

func (t *tally) add(r Reason) {
	at := slices.IndexFunc(t.groups, func(g group) bool { return g.reason.Filter == r.Filter && g.reason.Detail == r.Detail })
	if at < 0 {
		t.groups = append(t.groups, group{r, 1})
		return
	}
	g := &t.groups[at]
	g.count++
	g.reason.Missing = min(g.reason.Missing, r.Missing)
}

func (t *tally) summary(nodes int) string {
	slices.SortFunc(t.groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.reason.String(), b.reason.String()))
	})
	const most = 8 // kinds of reasons in one message; each can be asked for
	var parts []string
	for i, g := range t.groups {
		if i == most {
			parts = append(parts, fmt.Sprintf("and %d other reasons", len(t.groups)-most))
			break
		}
		part := fmt.Sprintf("%d %s", g.count, g.reason)
		if g.count > 1 && g.reason.Missing > 0 && g.reason.Detail != string(corev1.ResourcePods) {
			part += " or more"
		}
		parts = append(parts, part)
	}
	return fmt.Sprintf("0/%d nodes fit: %s", nodes, strings.Join(parts, ", "))
}
