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
	// Nodes are all nodes, the best first, then those that cannot take it by name.
	Nodes []NodeVerdict
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
	if pod.Spec.NodeName != "" {
		return Explanation{Pod: key, Node: pod.Spec.NodeName, Bound: true}, nil
	}
	return clusterOf(r).explain(pendingOf(key, pod)), nil
}

func (c *cluster) explain(p *pendingPod) Explanation {
	e := Explanation{Pod: p.key}
	for _, n := range c.order {
		v := NodeVerdict{Node: n.name, Reasons: reasons(p, n)}
		if len(v.Reasons) == 0 {
			v.Score = score(p, n)
		}
		e.Nodes = append(e.Nodes, v)
	}
	slices.SortStableFunc(e.Nodes, func(a, b NodeVerdict) int {
		return cmp.Or(cmp.Compare(min(len(a.Reasons), 1), min(len(b.Reasons), 1)), cmp.Compare(b.Score, a.Score))
	})
	if len(e.Nodes) > 0 && len(e.Nodes[0].Reasons) == 0 {
		e.Node = e.Nodes[0].Node
	}
	return e
}

// String returns the answer in one line: "0/2 nodes fit: 1 cpu short by 500m, 1
// tainted node.kubernetes.io/unreachable". Each node is counted once, by its first
// reason; of several short of a resource, the least is told.
func (e Explanation) String() string {
	switch {
	case e.Bound:
		return "bound to " + e.Node
	case e.Node != "":
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
