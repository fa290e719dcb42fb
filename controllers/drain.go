package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

const (
	// evictAgain is how long an eviction that was refused waits for its next try,
	// replaceAgain the same for a pod that goes once another serves in its place.
	evictAgain   = 5 * time.Second
	replaceAgain = time.Second
	// drainLook is how often a plan looks what has become of evictions under way.
	drainLook = 200 * time.Millisecond
	// drainSettle is the least time that a drain takes: a binding may be under way that
	// was decided before the node was cordoned.
	drainSettle = time.Second
	// drainWorkers bounds the evictions under way.
	drainWorkers = 4
	// evictTimeout bounds one of them.
	evictTimeout = 15 * time.Second
	// drainTold bounds the pods that a condition names.
	drainTold = 10
)

// Evictor evicts pods as the API does: it keeps disruption budgets and starts the
// replacement first where there can be one.
type Evictor interface {
	// Evict begins to end a pod, if that may be now; else refused says why not. It
	// blocks until the answer is known. A pod that is gone, or ends already, is no
	// error. Calls for one pod never overlap.
	Evict(ctx context.Context, pod *corev1.Pod, replaceFirst bool, grace *time.Duration) (refused string, err error)
}

// drainAttempt is what is known of the eviction of one pod. It is in memory: a new
// leader tries each anew, at once.
type drainAttempt struct {
	underWay bool
	evicted  bool
	why      string    // what refused it
	next     time.Time // not to be tried before
}

// drainPlan is the outcome of one look at a node that is to be emptied.
type drainPlan struct {
	node  *corev1.Node // as it is to be; nil: as it is
	evict []*corev1.Pod
	again time.Duration
	event event // no reason: none
}

// planDrain decides what comes next for a node that is to be emptied, or was. pods are
// those on the node, attempts what became of evictions, by pod. It is pure:
// testdata/drain states its whole behavior.
func planDrain(node *corev1.Node, pods []*corev1.Pod, attempts map[types.UID]drainAttempt, now time.Time) (p drainPlan) {
	next := node.DeepCopy()
	end := func(status corev1.ConditionStatus, reason, message string) drainPlan {
		delete(next.Annotations, object.DrainAnnotation)
		setDrained(next, status, reason, message, now)
		kind := event{about: next, warning: status != corev1.ConditionTrue, reason: reason, message: message}
		if reason == object.DrainTimedOut || reason == object.DrainRefused {
			kind.reason = "Drain" + reason
		}
		return drainPlan{node: next, event: kind}
	}
	request, asked, err := object.DrainOf(node)
	switch {
	case !asked && (node.Spec.Unschedulable || object.NodeCondition(node, object.NodeDrained) == nil):
		return p
	case !node.Spec.Unschedulable: // somebody wants it back
		delete(next.Annotations, object.DrainAnnotation)
		next.Status.Conditions = slices.DeleteFunc(next.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == object.NodeDrained })
		p.node = next
		if asked {
			p.event = event{about: next, reason: "DrainEnded", message: "the node takes pods again: it is no longer drained"}
		}
		return p
	case err != nil:
		return end(corev1.ConditionFalse, object.DrainRefused, "the annotation "+object.DrainAnnotation+" says nothing that can be done: "+err.Error())
	}

	leave, _, forbid := request.Sort(pods)
	if len(forbid) > 0 {
		return end(corev1.ConditionFalse, object.DrainRefused, strings.Join(forbid, "\n"))
	}
	began := request.Began == nil
	if began {
		request = request.Begun(now)
		next.Annotations[object.DrainAnnotation] = request.String()
		p.event = event{about: next, reason: "Draining", message: fmt.Sprintf("%d pods are to leave the node", len(leave))}
	}
	settled := request.Began.Add(drainSettle)
	if len(leave) == 0 && !now.Before(settled) {
		return end(corev1.ConditionTrue, object.DrainDone, fmt.Sprintf("nothing is left on the node that was to go, %v after the drain began", now.Sub(*request.Began).Round(time.Second)))
	}
	look := func(in time.Duration) {
		if in = max(in, time.Millisecond); p.again == 0 || in < p.again {
			p.again = in
		}
	}
	if len(leave) == 0 {
		look(settled.Sub(now))
	}
	var told []string
	for _, pod := range leave {
		a := attempts[pod.UID]
		switch {
		case object.Deleting(pod) || a.evicted:
			told = append(told, object.DrainName(pod)+" is stopping")
		case a.why != "":
			told = append(told, object.DrainName(pod)+" waits: "+a.why)
		default:
			told = append(told, object.DrainName(pod)+" is to go")
		}
		switch {
		case object.Deleting(pod):
		case a.underWay:
			look(drainLook)
		case a.next.After(now):
			look(a.next.Sub(now))
		default:
			p.evict = append(p.evict, pod)
			look(drainLook)
		}
	}
	message := strings.Join(told[:min(len(told), drainTold)], "\n")
	if more := len(told) - drainTold; more > 0 {
		message += fmt.Sprintf("\nand %d more", more)
	}
	if request.Deadline != nil {
		if !now.Before(*request.Deadline) {
			return end(corev1.ConditionFalse, object.DrainTimedOut, message)
		}
		look(request.Deadline.Sub(now))
	}
	if setDrained(next, corev1.ConditionFalse, object.DrainGoesOn, message, now) || began {
		p.node = next
	}
	return p
}

func setDrained(node *corev1.Node, status corev1.ConditionStatus, reason, message string, now time.Time) (changed bool) {
	return object.SetNodeCondition(node, corev1.NodeCondition{
		Type: object.NodeDrained, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
	})
}

// drains empties nodes. What a drain has to know stands in the node; so it survives
// whoever asked for it, and every change of leader.
type drains struct {
	evictor Evictor
	log     *slog.Logger
	// active are the nodes that a change of a pod may concern. It is the runner's.
	active map[string]bool

	mu       sync.Mutex
	attempts map[string]map[types.UID]drainAttempt // by node
	todo     []drainEviction
	wake     chan struct{} // holds one token when there is something to do
}

// drainEviction is one call to be made.
type drainEviction struct {
	node         string
	pod          *corev1.Pod
	replaceFirst bool
	grace        *time.Duration
}

func newDrains(evictor Evictor, log *slog.Logger) *drains {
	return &drains{evictor: evictor, log: log, active: map[string]bool{}, attempts: map[string]map[types.UID]drainAttempt{}, wake: make(chan struct{}, 1)}
}

// run makes the calls until ctx ends.
func (d *drains) run(ctx context.Context) {
	var workers sync.WaitGroup
	defer workers.Wait()
	for range drainWorkers {
		workers.Go(func() {
			for {
				e, more := d.take()
				if e == nil {
					select {
					case <-ctx.Done():
						return
					case <-d.wake:
					}
					continue
				}
				if more {
					d.nudge() // another worker may take the next one
				}
				d.perform(ctx, *e)
			}
		})
	}
}

func (d *drains) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

func (d *drains) take() (e *drainEviction, more bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.todo) == 0 {
		return nil, false
	}
	e = &d.todo[0]
	d.todo = d.todo[1:]
	return e, len(d.todo) > 0
}

// perform makes one call and notes what came of it. A panic is this pod's alone.
func (d *drains) perform(ctx context.Context, e drainEviction) {
	ctx, cancel := context.WithTimeout(ctx, evictTimeout)
	defer cancel()
	why, err := func() (why string, err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		return d.evictor.Evict(ctx, e.pod, e.replaceFirst, e.grace)
	}()
	if err != nil && ctx.Err() == nil {
		d.log.Error("evict", "pod", object.KeyOf(e.pod), "node", e.node, "error", err)
	}
	a := drainAttempt{why: why, evicted: why == "" && err == nil, next: time.Now().Add(evictAgain)}
	if err != nil {
		a.why = err.Error()
	}
	if why != "" && object.CanReplaceFirst(e.pod) {
		a.next = time.Now().Add(replaceAgain)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if of := d.attempts[e.node]; of != nil {
		of[e.pod.UID] = a
	}
}

// attemptsOf returns what became of the evictions on a node.
func (d *drains) attemptsOf(node string) map[types.UID]drainAttempt {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.attempts[node])
}

// order has evictions done, and forgets what is not about one of pods.
func (d *drains) order(node string, pods []*corev1.Pod, evictions []drainEviction) {
	d.mu.Lock()
	defer d.mu.Unlock()
	of := d.attempts[node]
	if of == nil {
		of = map[types.UID]drainAttempt{}
		d.attempts[node] = of
	}
	maps.DeleteFunc(of, func(uid types.UID, a drainAttempt) bool {
		return !a.underWay && !slices.ContainsFunc(pods, func(pod *corev1.Pod) bool { return pod.UID == uid })
	})
	for _, e := range evictions {
		of[e.pod.UID] = drainAttempt{underWay: true, why: of[e.pod.UID].why}
		d.todo = append(d.todo, e)
	}
	if len(evictions) > 0 {
		d.nudge()
	}
}

// forget forgets a node that is no longer drained.
func (d *drains) forget(node string) {
	delete(d.active, node)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.attempts, node)
	d.todo = slices.DeleteFunc(d.todo, func(e drainEviction) bool { return e.node == node })
}

// drainConcerns reports whether there is anything to decide about a node.
func drainConcerns(node *corev1.Node) bool {
	_, asked := node.Annotations[object.DrainAnnotation]
	return asked || !node.Spec.Unschedulable && object.NodeCondition(node, object.NodeDrained) != nil
}

// controller returns the controller that empties nodes. It writes the condition Drained
// of a node and takes the annotation away that asks for it.
func (d *drains) controller() *controller {
	return &controller{
		name:  "drain",
		delay: 50 * time.Millisecond, // many pods end together
		all:   func(s state) []object.Key { return keysOf(s.index, nodeResource) },
		affected: func(_ *index, c change) []object.Key {
			if node, ok := c.after.(*corev1.Node); ok && drainConcerns(node) {
				return []object.Key{c.key}
			}
			var keys []object.Key
			for _, e := range []entry{c.before, c.now} {
				if e.node != "" && d.active[e.node] && isKind(e.resource, podResource) {
					keys = append(keys, nodeResource.Key("", e.node))
				}
			}
			return keys
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			node, ok := object.Get[*corev1.Node](s, key)
			if !ok || !drainConcerns(node) {
				_, _, name, _ := object.SplitKey(key)
				d.forget(name)
				return outcome{}
			}
			d.active[node.Name] = true
			var pods []*corev1.Pod
			for _, key := range s.onNode[node.Name].sorted() {
				if pod, ok := object.Get[*corev1.Pod](s, key); ok {
					pods = append(pods, pod)
				}
			}
			p := planDrain(node, pods, d.attemptsOf(node.Name), now)
			var o outcome
			request, _, _ := object.DrainOf(node)
			var evictions []drainEviction
			for _, pod := range p.evict {
				e := drainEviction{node: node.Name, pod: pod, replaceFirst: request.ReplaceFirst}
				if seconds := request.GracePeriodSeconds; seconds != nil {
					grace := time.Duration(*seconds) * time.Second
					e.grace = &grace
				}
				evictions = append(evictions, e)
			}
			if d.evictor != nil {
				d.order(node.Name, pods, evictions)
			}
			if p.node != nil {
				o.update(p.node)
				o.txn.Reason = "drain"
				if c := object.NodeCondition(p.node, object.NodeDrained); c != nil {
					o.txn.Reason = fmt.Sprintf("drain: %s: %s", c.Reason, c.Message)
				}
			}
			if p.event.reason != "" {
				o.events = append(o.events, p.event)
			}
			o.lookIn(p.again)
			return o
		},
	}
}
