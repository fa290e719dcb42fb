package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// passSize bounds the pods of one pass: those that come later wait no longer
	// than for one pass.
	passSize = 480
	// batchOps bounds the compares and operations of one transaction, which a binding
	// takes four of, and batchBytes its size.
	batchOps   = 480
	batchBytes = 1 << 20
	// maxFlights bounds the transactions under way. While one is, the next pods are
	// decided about, as if it had been committed.
	maxFlights = 8
	// messagePeriod is how often the reason why a pod waits may be rewritten. In a
	// busy cluster it changes with every pod that comes or goes.
	messagePeriod = 5 * time.Second

	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 30 * time.Second
)

// Events takes the story of what was done and why. Record must not block; it is
// called after what it tells of has been committed.
type Events interface {
	// Record notes an event of eventType "Normal" or "Warning" about an object.
	Record(about object.Object, eventType, reason, message string)
}

// Config is what the scheduler needs.
type Config struct {
	Leader     *raftstore.Leader     // required: the leadership under which it runs
	Events     Events                // optional; discarded
	Logger     *slog.Logger          // optional; discarded
	Registerer prometheus.Registerer // optional; metrics are not exposed
}

type discardEvents struct{}

func (discardEvents) Record(object.Object, string, string, string) {}

// Scheduler binds pods for one leadership. Make a new one for the next.
type Scheduler struct {
	leader  *raftstore.Leader
	events  Events
	log     *slog.Logger
	metrics *metrics

	cluster *cluster
	watcher *raftstore.Watcher
	read    raftstore.Revision // up to here the watcher has been read
	ahead   []raftstore.Event  // read, of revisions later than the cluster

	flights int           // transactions under way
	landed  chan []result // what became of them
	// Pods of decisions under way: what has come of them meanwhile is taken in when it
	// is known what became of the decision.
	flying map[object.Key]*raftstore.Event
	// own has the revisions of the scheduler's own writes, whose events tell nothing
	// new.
	own map[object.Key]raftstore.Revision
}

// New returns a scheduler for one leadership. It starts nothing.
func New(cfg Config) *Scheduler {
	if cfg.Events == nil {
		cfg.Events = discardEvents{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Scheduler{
		leader: cfg.Leader, events: cfg.Events, log: cfg.Logger, metrics: newMetrics(cfg.Registerer),
		landed: make(chan []result, maxFlights), flying: map[object.Key]*raftstore.Event{}, own: map[object.Key]raftstore.Revision{},
	}
}

// Run schedules until ctx, which ends with the leadership, does; that is not an
// error. All of its goroutines have ended when it returns. Call it once.
func (s *Scheduler) Run(ctx context.Context) error {
	if s.leader == nil {
		return errors.New("scheduler: Config.Leader is required")
	}
	defer s.land(0) // goroutines end before Run does
	view := s.leader.View()
	s.restart(view)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		again := s.pass(ctx, view)
		switch {
		case s.flights == maxFlights:
			s.land(maxFlights - 1)
		case !again:
			wait := time.Hour // changes wake us
			if due := s.cluster.due(); !due.IsZero() {
				wait = max(time.Until(due), 0)
			}
			timer.Reset(wait)
			select {
			case <-ctx.Done():
			case <-view.Changed():
			case <-timer.C:
			case results := <-s.landed:
				s.settleAll(results)
			}
		}
		s.landReady()
		if ctx.Err() != nil {
			return nil
		}
		view = s.leader.View()
		if err := s.advance(view); err != nil {
			return err
		}
	}
}

// land waits until so many transactions are under way at most.
func (s *Scheduler) land(most int) {
	for s.flights > most {
		s.settleAll(<-s.landed)
	}
}

// landReady settles what has landed.
func (s *Scheduler) landReady() {
	for {
		select {
		case results := <-s.landed:
			s.settleAll(results)
		default:
			return
		}
	}
}

func (s *Scheduler) settleAll(results []result) {
	s.flights--
	now := time.Now()
	for i := range results {
		s.settle(&results[i], now)
	}
}

// restart reads the whole cluster anew.
func (s *Scheduler) restart(view raftstore.View) {
	s.watcher = s.leader.Watch("", view.Revision())
	s.read, s.ahead = view.Revision(), nil
	s.cluster = newCluster()
	clear(s.own)
	clear(s.flying)
	for _, prefix := range prefixes {
		for kv := range view.Prefix(prefix) {
			s.put(kv)
		}
	}
}

// prefixes are what the scheduler looks at, pods last: they refer to the others.
var prefixes = []string{
	object.ResourceOf(&corev1.Namespace{}).Prefix(""), object.ResourceOf(&storagev1.StorageClass{}).Prefix(""),
	object.ResourceOf(&corev1.PersistentVolume{}).Prefix(""), object.ResourceOf(&corev1.PersistentVolumeClaim{}).Prefix(""),
	object.ResourceOf(&policyv1.PodDisruptionBudget{}).Prefix(""), object.ResourceOf(&schedulingv1.PriorityClass{}).Prefix(""),
	nodePrefix, podPrefix,
}

const (
	nodePrefix = "nodes/"
	podPrefix  = "pods/"
)

// advance brings the cluster to the view's revision.
func (s *Scheduler) advance(view raftstore.View) error {
	for s.read < view.Revision() {
		events, upTo, ok, err := s.watcher.Poll()
		switch {
		case errors.Is(err, raftstore.ErrCompacted):
			s.log.Warn("history is gone, reading all nodes and pods anew", "revision", s.read)
			s.land(0)
			s.restart(s.leader.View())
			return nil
		case err != nil:
			return fmt.Errorf("watch the store: %w", err)
		case !ok:
			return fmt.Errorf("watch the store: no events up to revision %d, which is readable", view.Revision())
		}
		s.ahead = append(s.ahead, events...)
		s.read = upTo
	}
	n := 0
	for i := range s.ahead {
		if s.ahead[i].Revision > view.Revision() {
			break
		}
		n++
		s.take(s.ahead[i])
	}
	s.ahead = s.ahead[n:]
	return nil
}

// take takes a change into the cluster.
func (s *Scheduler) take(ev raftstore.Event) {
	key := object.Key(ev.Key)
	if strings.HasPrefix(ev.Key, podPrefix) {
		if _, flying := s.flying[key]; flying {
			s.flying[key] = &ev
			return
		}
		if own, ok := s.own[key]; ok {
			if ev.Revision >= own {
				delete(s.own, key)
			}
			if ev.Revision <= own {
				return
			}
		}
	}
	if ev.Type == raftstore.EventPut {
		s.put(ev.KV)
		return
	}
	kind, name, _ := strings.Cut(ev.Key, "/")
	switch kind + "/" {
	case podPrefix:
		s.cluster.removePod(key)
	case nodePrefix:
		s.cluster.removeNode(name)
	case prefixes[0]:
		s.cluster.removeNamespace(name)
	case prefixes[1]:
		s.cluster.removeStorageClass(name)
	case prefixes[2]:
		s.cluster.removeVolume(name)
	case prefixes[3]:
		s.cluster.removeClaim(key)
	case prefixes[4]:
		s.cluster.removeBudget(key)
	case prefixes[5]:
		delete(s.cluster.priorities, name)
	}
}

// put takes an object into the cluster, if it is of a kind that counts. An object
// that cannot be read is left out: it must not stop the others.
func (s *Scheduler) put(kv raftstore.KeyValue) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("stored object cannot be taken in", "key", kv.Key, "revision", kv.Mod, "panic", p)
		}
	}()
	if !slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(kv.Key, prefix) }) {
		return
	}
	obj, err := object.Decode(kv.Value, kv.Mod)
	if err != nil {
		s.log.Error("stored object cannot be read", "key", kv.Key, "revision", kv.Mod, "error", err)
		return
	}
	switch obj := obj.(type) {
	case *corev1.Node:
		s.cluster.setNode(obj)
	case *corev1.Pod:
		s.cluster.setPod(obj)
	case *corev1.Namespace:
		s.cluster.setNamespace(obj)
	case *storagev1.StorageClass:
		s.cluster.setStorageClass(obj)
	case *corev1.PersistentVolume:
		s.cluster.setVolume(obj)
	case *corev1.PersistentVolumeClaim:
		s.cluster.setClaim(obj)
	case *policyv1.PodDisruptionBudget:
		s.cluster.setBudget(obj)
	case *schedulingv1.PriorityClass:
		s.cluster.priorities[obj.Name] = obj
		for key, p := range maps.Clone(s.cluster.pending) {
			if p.needs.unknown == obj.Name {
				if kv, ok := s.leader.View().Get(string(key)); ok {
					s.put(kv)
				}
			}
		}
	}
}

// result is what became of a decision.
type result struct {
	decision
	about    *corev1.Pod // as written
	budgets  bool        // it writes budgets
	wrote    bool
	revision raftstore.Revision
	err      error
}

// pass decides about the pods that have not been tried, sends the decisions off to be
// committed, and reports whether there is more to do at once.
func (s *Scheduler) pass(ctx context.Context, view raftstore.View) (again bool) {
	start := time.Now()
	s.cluster.wake(start)
	pods := s.cluster.untried(passSize)
	again = len(pods) == passSize
	pods = slices.DeleteFunc(pods, s.underWay)
	s.metrics.pending.Set(float64(len(s.cluster.pending)))
	if len(pods) == 0 {
		return again
	}
	decisions := s.cluster.place(pods)
	s.metrics.passSeconds.Observe(time.Since(start).Seconds())

	b := batch{s: s, view: view}
	for _, d := range decisions {
		switch {
		case d.err != nil:
			s.settle(&result{decision: d, err: d.err}, start)
		case d.node == "" && len(d.claims) == 0 && len(d.victims) == 0 && !d.moved && !s.toTell(d, start):
			d.pod.failures = 0
		default:
			b.add(ctx, d)
		}
	}
	b.send(ctx)
	return again
}

// underWay reports whether a decision about p is under way. Then p is tried when it is
// known what became of that: of two at once, the second would be made of what the first
// is about to change, and what happened to the pod meanwhile would be lost.
func (s *Scheduler) underWay(p *pendingPod) bool {
	_, flying := s.flying[p.key]
	p.again = p.again || flying
	return flying
}

// toTell reports whether d's message is to be written. One that comes too soon
// after the last is looked at again when its time has come.
func (s *Scheduler) toTell(d decision, now time.Time) bool {
	if d.message == d.pod.message {
		return false
	}
	if next := d.pod.told.Add(messagePeriod); !d.pod.told.IsZero() && now.Before(next) {
		s.cluster.delay(d.pod, next)
		return false
	}
	return true
}

// batch gathers decisions that are committed together. Each fails or succeeds by
// itself: it is a transaction within the batch's, with conditions of its own.
type batch struct {
	s       *Scheduler
	view    raftstore.View
	results []result
	txns    []raftstore.Txn
	bytes   int
	ops     int
}

// add encodes a decision and puts it into the batch, or sends it off alone if it
// writes what others may write, too.
func (b *batch) add(ctx context.Context, d decision) {
	r := result{decision: d}
	txn, size := raftstore.Txn{}, 0
	txn, size, r.err = b.s.write(b.view, &r)
	if r.err != nil {
		b.s.settle(&r, time.Now())
		return
	}
	b.s.flying[d.pod.key] = nil
	if len(d.claims) > 0 || r.budgets {
		(&batch{s: b.s, view: b.view, results: []result{r}, txns: []raftstore.Txn{txn}}).send(ctx)
		return
	}
	ops := len(txn.If) + len(txn.Then) + 1
	if b.ops+ops > batchOps || b.bytes+size > batchBytes {
		b.send(ctx)
	}
	b.results, b.txns, b.bytes, b.ops = append(b.results, r), append(b.txns, txn), b.bytes+size, b.ops+ops
}

// send commits the batch on a goroutine of its own, once there is room for one.
func (b *batch) send(ctx context.Context) {
	if len(b.txns) == 0 {
		return
	}
	s, results, txns := b.s, b.results, b.txns
	b.results, b.txns, b.bytes, b.ops = nil, nil, 0, 0
	s.land(maxFlights - 1)
	s.flights++
	go func() {
		s.commit(ctx, results, txns)
		s.landed <- results
	}()
}

// commit commits transactions together and notes in results what became of each.
func (s *Scheduler) commit(ctx context.Context, results []result, txns []raftstore.Txn) {
	txn := txns[0]
	if len(txns) > 1 {
		bound := 0
		txn = raftstore.Txn{}
		for i := range txns {
			txn.Then = append(txn.Then, raftstore.Nested(txns[i]))
			if results[i].node != "" {
				bound++
			}
		}
		txn.Reason = fmt.Sprintf("%d pods bound, %d that wait", bound, len(txns)-bound)
	} else {
		txn.Reason = results[0].message
		if results[0].node != "" {
			txn.Reason = fmt.Sprintf("bound to %s: %s", results[0].node, results[0].message)
		}
	}
	txn.Actor = "scheduler"
	res, err := s.leader.Txn(ctx, txn)
	for i := range results {
		r := &results[i]
		r.err, r.revision = err, res.Revision
		if err == nil && len(txns) > 1 && !res.Ops[i].GetSucceeded() {
			r.err = raftstore.ErrConflict
		}
		r.wrote = r.err == nil
	}
}

// write returns the transaction of a decision: the node and the condition, or the
// condition alone, provided that the pod is as it was when it was decided about; and
// what makes room or volumes for it. size is about how large it is.
func (s *Scheduler) write(view raftstore.View, r *result) (txn raftstore.Txn, size int, err error) {
	now := time.Now()
	var pod *corev1.Pod
	change := func(key object.Key, edit func(obj object.Object)) {
		kv, ok := view.Get(string(key))
		if err != nil {
			return
		}
		if !ok {
			err = raftstore.ErrConflict // it has gone
			return
		}
		var obj object.Object
		if read := r.pod.read; key == r.pod.key && read != nil && read.ResourceVersion == strconv.FormatInt(kv.Mod, 10) {
			own := *read
			own.Status.Conditions = slices.Clone(own.Status.Conditions)
			obj = &own
		} else if obj, err = object.Decode(kv.Value, kv.Mod); err != nil {
			return
		}
		edit(obj)
		data, encodeErr := object.Encode(obj)
		if err = encodeErr; err != nil {
			return
		}
		size += len(data)
		txn.If = append(txn.If, raftstore.ModIs(string(key), kv.Mod))
		txn.Then = append(txn.Then, raftstore.Put(string(key), data))
	}
	change(r.pod.key, func(obj object.Object) {
		pod = obj.(*corev1.Pod)
		c := corev1.PodCondition{Type: corev1.PodScheduled, LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)), Message: r.message}
		if r.node != "" {
			s.cluster.prioritize(pod) // from now on it has that, whatever becomes of the class
			pod.Spec.NodeName, pod.Status.NominatedNodeName = r.node, ""
			c.Status = corev1.ConditionTrue
			txn.If = append(txn.If, raftstore.Present(nodePrefix+r.node))
		} else {
			pod.Status.NominatedNodeName = r.expect
			c.Status, c.Reason = corev1.ConditionFalse, corev1.PodReasonUnschedulable
		}
		object.SetPodCondition(pod, c)
	})
	for _, claim := range r.claims {
		change(claim, func(obj object.Object) {
			annotations := maps.Clone(obj.GetAnnotations())
			if annotations == nil {
				annotations = map[string]string{}
			}
			annotations[annSelectedNode] = r.expect
			obj.SetAnnotations(annotations)
		})
	}
	budgets := map[object.Key][]string{}
	for _, victim := range r.victims {
		change(victim.key, func(obj object.Object) {
			pod := obj.(*corev1.Pod)
			object.SetPodCondition(pod, corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
				Message: "makes room for " + string(r.pod.key), LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
			})
			object.MarkDeleted(pod, now, nil)
		})
		for key, b := range s.cluster.budgets {
			if b.selects(victim) {
				budgets[key] = append(budgets[key], string(victim.key[strings.LastIndexByte(string(victim.key), '/')+1:]))
			}
		}
	}
	r.budgets = len(budgets) > 0
	for _, key := range slices.Sorted(maps.Keys(budgets)) {
		change(key, func(obj object.Object) {
			for _, name := range budgets[key] {
				disrupted(obj.(*policyv1.PodDisruptionBudget), name, now)
			}
		})
	}
	r.about = pod
	return txn, size, err
}

// settle notes what became of a decision.
func (s *Scheduler) settle(r *result, now time.Time) {
	p := r.pod
	meanwhile := s.flying[p.key]
	delete(s.flying, p.key)
	if r.err == nil {
		s.own[p.key] = r.revision
	}
	defer func() {
		if meanwhile != nil {
			s.take(*meanwhile)
		}
		if p.again && p.failures == 0 && s.cluster.pending[p.key] == p {
			s.cluster.try(p)
		}
		p.again = false
	}()
	switch {
	case r.err == nil && r.node != "":
		s.metrics.bound.Inc()
		s.log.Info("pod bound", "pod", p.key, "node", r.node, "why", r.message)
		s.events.Record(r.about, corev1.EventTypeNormal, "Scheduled", fmt.Sprintf("bound to %s: %s", r.node, r.message))
		return
	case r.err == nil:
		if r.message != p.message {
			p.message, p.told = r.message, now
			if r.volumes { // nothing has failed: it is on its way
				s.events.Record(r.about, corev1.EventTypeNormal, "WaitingForVolumes", r.message)
			} else {
				s.metrics.unschedulable.Inc()
				s.log.Debug("pod fits no node", "pod", p.key, "why", r.message)
				s.events.Record(r.about, corev1.EventTypeWarning, "FailedScheduling", r.message)
			}
		}
		for _, victim := range r.victims {
			if pod, ok := object.Get[*corev1.Pod](s.leader.View(), victim.key); ok {
				s.events.Record(pod, corev1.EventTypeNormal, "Preempted", fmt.Sprintf("ends to make room for %s on %s", p.key, r.expect))
			}
		}
		p.failures = 0
		return
	}

	// Nothing was written, as far as we know. If something was, its event follows
	// and puts this right.
	c := s.cluster
	if r.node != "" {
		c.takeBack(p)
	}
	c.expect(p, "")
	for _, victim := range r.victims {
		victim.doomed = false
		c.touch(victim.node)
	}
	if len(r.victims) > 0 {
		for _, pdb := range object.List[*policyv1.PodDisruptionBudget](s.leader.View(), "") {
			c.setBudget(pdb)
		}
	}
	if errors.Is(r.err, raftstore.ErrConflict) {
		s.metrics.conflicts.Inc()
		c.try(p) // the change that won is in the next view
		return
	}
	wait := min(firstBackoff<<min(p.failures, 16), maxBackoff)
	wait = time.Duration(float64(wait) * (0.8 + 0.4*rand.Float64()))
	p.failures++
	c.wait(p)
	c.delay(p, now.Add(wait))
	if errors.Is(r.err, raftstore.ErrDeposed) || errors.Is(r.err, raftstore.ErrClosed) {
		return // the context is about to end, or else it is tried again
	}
	s.metrics.errors.Inc()
	s.log.Error("schedule pod", "pod", p.key, "error", r.err, "retry_in", wait)
	if pod, ok := object.Get[*corev1.Pod](s.leader.View(), p.key); ok {
		s.events.Record(pod, corev1.EventTypeWarning, "SchedulingError", fmt.Sprintf("%v; next try in %v", firstLine(r.err), wait.Round(time.Millisecond)))
	}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
