package controllers

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
)

const (
	nodesName = "node"

	// reasonAgentReady is the reason of a node's condition Ready when it is; the others
	// are object.NodeIsolated and so on.
	reasonAgentReady = "AgentReady"
)

var nodeResource = object.ResourceOf(&corev1.Node{})

// nodePlan is the outcome of one pass over a node.
type nodePlan struct {
	node    *corev1.Node // changed to what it should become
	changed bool
	evict   []eviction
	erase   []*corev1.Pod // fenced pods that have been stopped for certain
	unready []*corev1.Pod // fenced pods that nobody can reach; changed
	again   time.Duration // a toleration or a lease ends; 0: none does
	more    bool          // there was no room for all
	event   event         // about the node; empty reason: none
}

// eviction is a pod to take away from a node, and why.
type eviction struct {
	pod    *corev1.Pod
	reason string
}

// planNode brings a node's condition Ready and its taints in line with the
// verdict, and evicts the pods that do not tolerate its taints. pods are those
// bound to it. It is pure: testdata/node states its whole behavior. node and pods are
// changed.
//
//	verdict    Ready    taint                                     pods
//	ready      True     none                                      stay
//	isolated   False    node.kubernetes.io/not-ready:NoSchedule   stay
//	suspect    Unknown  node.kubernetes.io/unreachable:NoSchedule stay
//	lost       Unknown  node.kubernetes.io/unreachable:NoExecute  are evicted
//	undecided  as before, and the taint unreachable evicts nobody
//
// Evicting a pod marks it deleted. Its object stays until the node returns and
// reports that the containers are gone, or the node is removed; whoever owns it
// makes another at once. A fenced pod is not marked: once the node's lease has ended
// for certain it has been stopped, and its object is erased, also if it was marked
// before. That takes a node whose taint is written: no leader renews the lease of such
// a node, and the writes are conditional on the taint.
func planNode(node *corev1.Node, v verdict, pods []*corev1.Pod, now time.Time) nodePlan {
	plan := nodePlan{node: node}
	convicted := object.NodeConvicted(node)
	ready := corev1.NodeCondition{Type: corev1.NodeReady, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)), LastHeartbeatTime: metav1.NewTime(now.Truncate(time.Second))}
	var taint *corev1.Taint
	about := event{about: node}
	switch v.state {
	case nodeReady:
		ready.Status, ready.Reason, ready.Message = corev1.ConditionTrue, reasonAgentReady, "the agent sends heartbeats"
		about.reason, about.message = "NodeReady", "node is ready: its agent sends heartbeats"
	case nodeIsolated:
		ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, object.NodeIsolated,
			"no heartbeat from the agent for a lease, but gossip sees the machine alive: nothing new is placed here, what runs here stays"
		taint = &corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
		about.warning, about.reason, about.message = true, "NodeIsolated", "node is isolated: "+ready.Message
	case nodeSuspect:
		ready.Status, ready.Reason, ready.Message = corev1.ConditionUnknown, object.NodeSuspect, v.detail+": nothing new is placed here, what runs here stays"
		about.warning, about.reason, about.message = true, "NodeSuspect", "node is suspect: "+ready.Message
		if v.held {
			ready.Reason, ready.Message = object.NodeHeld,
				"no heartbeat for a lease, and gossip does not see the machine; but "+v.detail+", so nothing is evicted: delete the Node object if the machine is gone for good"
			about.reason, about.message = object.NodeHeld, "node is suspect: "+ready.Message
		}
		taint = &corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule}
	case nodeLost:
		ready.Status, ready.Reason, ready.Message = corev1.ConditionUnknown, object.NodeLost,
			"no heartbeat for a lease, and gossip does not see the machine: its pods are replaced"
		taint = &corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}
		about.warning, about.reason, about.message = true, "NodeLost", "node is lost: "+ready.Message
	}
	if v.state != nodeUndecided {
		// Messages may tell numbers that move; only a new reason is a transition.
		if old := object.NodeCondition(node, corev1.NodeReady); old == nil || old.Status != ready.Status || old.Reason != ready.Reason {
			plan.changed = object.SetNodeCondition(node, ready)
			plan.event = about
		}
		plan.changed = setHealthTaint(node, taint, now) || plan.changed
	}
	plan.changed = setPressureTaints(node, now) || plan.changed
	room := newBudget()
	for _, pod := range pods {
		fenced := v.state == nodeLost && object.Fenced(pod)
		if object.PodPhaseFinal(pod) && !(fenced && object.Deleting(pod)) || object.Deleting(pod) && !fenced || stopped(pod) {
			continue
		}
		reason, in := whyEvict(node, pod, v, now)
		if fenced {
			if object.Deleting(pod) {
				reason, in = "deleted", 0
			}
			in = max(in, object.FencingBound-v.quiet)
			if !convicted {
				in = max(in, time.Second) // once that is written
			}
		}
		switch {
		case reason == "":
		case in > 0:
			plan.again = sooner(plan.again, in)
			if fenced && object.PodReady(pod) && room.spend(pod) {
				object.SetPodCondition(pod, corev1.PodCondition{
					Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "NodeLost", LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
					Message: "node " + node.Name + " is lost; the pod is replaced once it has been stopped for certain",
				})
				plan.unready = append(plan.unready, pod)
			}
		case !room.spend(pod):
			plan.more = true
		case fenced:
			plan.erase = append(plan.erase, pod)
		default:
			plan.evict = append(plan.evict, eviction{pod, reason})
		}
	}
	return plan
}

// stopped reports whether pod waits only for others to take note that nothing of it
// is left.
func stopped(pod *corev1.Pod) bool {
	return pod.Annotations[object.RemovedAnnotation] != "" && object.Deleting(pod)
}

// setHealthTaint makes want the only taint of the two that this controller sets;
// nil removes both. Taints that people have set stay as they are.
func setHealthTaint(node *corev1.Node, want *corev1.Taint, now time.Time) (changed bool) {
	kept := slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(t corev1.Taint) bool {
		if t.Key != corev1.TaintNodeNotReady && t.Key != corev1.TaintNodeUnreachable {
			return false
		}
		return want == nil || !t.MatchTaint(want)
	})
	changed = len(kept) != len(node.Spec.Taints)
	if want != nil && !slices.ContainsFunc(kept, func(t corev1.Taint) bool { return t.MatchTaint(want) }) {
		added := *want
		added.TimeAdded = new(metav1.NewTime(now.Truncate(time.Second)))
		kept, changed = append(kept, added), true
	}
	if len(kept) == 0 {
		kept = nil
	}
	node.Spec.Taints = kept
	return changed
}

// whyEvict returns the taint that pod cannot stand, empty if there is none, and
// how long it still tolerates it.
func whyEvict(node *corev1.Node, pod *corev1.Pod, v verdict, now time.Time) (reason string, in time.Duration) {
	for i := range node.Spec.Taints {
		taint := &node.Spec.Taints[i]
		if taint.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		if taint.Key == corev1.TaintNodeUnreachable && v.state != nodeLost {
			continue // an earlier leader's word; ours is not out yet
		}
		why := fmt.Sprintf("node %s is tainted %s", node.Name, taint.ToString())
		if taint.Key == corev1.TaintNodeUnreachable {
			why = fmt.Sprintf("node %s is unreachable", node.Name)
		}
		bearable, forever := tolerance(pod, taint)
		if forever {
			continue
		}
		left := time.Duration(0)
		if taint.TimeAdded != nil {
			left = taint.TimeAdded.Add(bearable).Sub(now)
		}
		if left <= 0 {
			return why, 0
		}
		if reason == "" || left < in {
			reason, in = why, left
		}
	}
	return reason, in
}

// tolerance returns for how long pod stands taint. The shortest of several
// matching tolerations counts.
func tolerance(pod *corev1.Pod, taint *corev1.Taint) (limit time.Duration, forever bool) {
	tolerated := false
	forever = true
	for i := range pod.Spec.Tolerations {
		t := &pod.Spec.Tolerations[i]
		if !tolerates(t, taint) {
			continue
		}
		tolerated = true
		if t.TolerationSeconds == nil {
			continue
		}
		d := time.Duration(max(*t.TolerationSeconds, 0)) * time.Second
		if forever || d < limit {
			limit, forever = d, false
		}
	}
	if !tolerated {
		return 0, false
	}
	return limit, forever
}

// tolerates is Kubernetes' rule without comparisons of numbers.
func tolerates(t *corev1.Toleration, taint *corev1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	switch t.Operator {
	case corev1.TolerationOpExists:
		return true
	case corev1.TolerationOpEqual, "":
		return t.Value == taint.Value
	default:
		return false
	}
}

// outcome turns the plan into writes.
func (p nodePlan) outcome(now time.Time) outcome {
	o := outcome{again: p.again, more: p.more}
	if p.changed {
		o.update(p.node)
	} else if len(p.evict)+len(p.erase)+len(p.unready) > 0 {
		o.unchanged(p.node)
	}
	if p.event.reason != "" {
		o.events = append(o.events, p.event)
		o.txn.Reason = p.event.message
	}
	for _, e := range p.evict {
		o.warn(e.pod, "TaintManagerEviction", "marked for deletion: %s", e.reason)
		if !object.Deleting(e.pod) {
			object.SetPodCondition(e.pod, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByTaintManager", Message: e.reason,
				LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
			})
		}
		o.remove(e.pod, now)
		o.txn.Reason = e.reason
	}
	for _, pod := range p.unready {
		o.update(pod)
	}
	for _, pod := range p.erase {
		why := fmt.Sprintf("node %s is lost, and its lease has ended for certain: the pod does not run there any more", p.node.Name)
		o.warn(pod, "Fenced", "removed: %s", why)
		o.txn.Reason = why
		if len(pod.Finalizers) == 0 {
			o.delete(pod)
			continue
		}
		// Whoever holds it takes note first, as after the end on a node that is there.
		object.MarkDeleted(pod, now, new(time.Duration(0)))
		pod.Annotations = with(pod.Annotations, object.RemovedAnnotation, "true")
		if !object.PodPhaseFinal(pod) {
			pod.Status.Phase, pod.Status.Reason, pod.Status.Message = corev1.PodFailed, "NodeLost", why
		}
		o.update(pod)
	}
	return o
}

// nodes judges the health of nodes and keeps the last verdicts for the plans.
type nodes struct {
	health   Health
	court    court
	listener *listener
	log      *slog.Logger
	metrics  *metrics
	verdicts map[string]verdict
	braking  bool
}

func newNodes(cfg Config, m *metrics) *nodes {
	return &nodes{
		health:   cfg.Health,
		court:    court{lease: cfg.NodeLease, window: cfg.BrakeWindow},
		listener: newListener(cfg.NodeLease, cfg.HealthPeriod),
		log:      cfg.Logger,
		metrics:  m,
		verdicts: map[string]verdict{},
	}
}

// tick looks at the evidence and returns the nodes on which the verdict is new.
func (n *nodes) tick(s state, now time.Time) []object.Key {
	facts := s.sortedNodes()
	all, paused := n.listener.listen(facts, n.health, now)
	if paused > 0 {
		n.metrics.pauses.Inc()
		n.log.Warn("the health loop was paused; that time counts against no node", "pause", paused)
	}
	var dirty []object.Key
	var held []string
	verdicts, counts := make(map[string]verdict, len(all)), map[nodeState]int{}
	detail := ""
	for i, v := range n.court.judge(all) {
		name := all[i].node
		verdicts[name] = v
		counts[v.state]++
		if v.held {
			held, detail = append(held, name), v.detail
		}
		if old, ok := n.verdicts[name]; !ok || old.state != v.state || old.held != v.held {
			dirty = append(dirty, nodeResource.Key("", name))
		}
	}
	n.verdicts = verdicts
	if braking := len(held) > 0; braking != n.braking {
		n.braking = braking
		if braking {
			n.log.Error("mass loss: nothing is evicted", "nodes", summarize(held), "because", detail)
		} else {
			n.log.Info("mass loss is over: evictions go on")
		}
	}
	for state := nodeUndecided; state <= nodeLost; state++ {
		n.metrics.nodes.WithLabelValues(state.String()).Set(float64(counts[state]))
	}
	return dirty
}

func (n *nodes) controller() *controller {
	return &controller{
		name: nodesName,
		all:  func(s state) []object.Key { return keysOf(s.index, nodeResource) },
		affected: func(x *index, c change) []object.Key {
			keys := affectsItself(nodeResource, c)
			// A pod that is bound to a node just as that is tainted must not be
			// overlooked.
			if c.now.node != "" && c.now.node != c.before.node && x.nodes[c.now.node].noExec {
				keys = append(keys, nodeResource.Key("", c.now.node))
			}
			return keys
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			node, ok := object.Get[*corev1.Node](s, key)
			if !ok {
				return outcome{} // removed: the collector takes its pods
			}
			v := n.verdicts[node.Name]
			var pods []*corev1.Pod
			if v.state == nodeLost || s.nodes[node.Name].noExec { // else no pod can be in danger
				pods = podsOn(s, node.Name)
			}
			return planNode(node, v, pods, now).outcome(now)
		},
	}
}

func factsOf(node *corev1.Node) nodeFacts {
	f := nodeFacts{name: node.Name, labels: node.Labels, taints: node.Spec.Taints}
	for _, taint := range node.Spec.Taints {
		if taint.Effect == corev1.TaintEffectNoExecute {
			f.noExec = true
			f.evicting = f.evicting || taint.Key == corev1.TaintNodeUnreachable
		}
	}
	if prefix, err := netip.ParsePrefix(node.Spec.PodCIDR); err == nil {
		f.podCIDR = prefix.Masked()
	}
	return f
}
