package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// passSize bounds the pods of one pass: those that come later wait no longer
	// than for one pass and its commits.
	passSize = 500
	// maxCommits bounds the transactions under way. The store puts those that wait
	// for one flush into one log entry, so more of them cost little.
	maxCommits = 64
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
}

// New returns a scheduler for one leadership. It starts nothing.
func New(cfg Config) *Scheduler {
	if cfg.Events == nil {
		cfg.Events = discardEvents{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Scheduler{leader: cfg.Leader, events: cfg.Events, log: cfg.Logger, metrics: newMetrics(cfg.Registerer)}
}

// Run schedules until ctx, which ends with the leadership, does; that is not an
// error. All of its goroutines have ended when it returns. Call it once.
func (s *Scheduler) Run(ctx context.Context) error {
	if s.leader == nil {
		return errors.New("scheduler: Config.Leader is required")
	}
	view := s.leader.View()
	s.restart(view)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if again := s.pass(ctx, view); !again {
			timer.Reset(s.untilDue(time.Now()))
			select {
			case <-ctx.Done():
			case <-view.Changed():
			case <-timer.C:
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		view = s.leader.View()
		if err := s.advance(view); err != nil {
			return err
		}
	}
}

// restart reads the whole cluster anew.
func (s *Scheduler) restart(view raftstore.View) {
	s.watcher = s.leader.Watch("", view.Revision())
	s.read, s.ahead = view.Revision(), nil
	s.cluster = newCluster()
	for _, prefix := range [...]string{nodePrefix, podPrefix} {
		for kv := range view.Prefix(prefix) {
			s.put(kv)
		}
	}
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
			s.restart(view)
			return nil
		case err != nil:
			return fmt.Errorf("watch the store: %w", err)
		case !ok:
			return fmt.Errorf("watch the store: no events up to revision %d, which is readable", view.Revision())
		}
		s.ahead = append(s.ahead, events...)
		s.read = upTo
	}
	n, helps := 0, false
	for _, ev := range s.ahead {
		if ev.Revision > view.Revision() {
			break
		}
		n++
		switch {
		case ev.Type == raftstore.EventPut:
			helps = s.put(ev.KV) || helps
		case strings.HasPrefix(ev.Key, podPrefix):
			helps = s.cluster.removePod(object.Key(ev.Key)) || helps
		case strings.HasPrefix(ev.Key, nodePrefix):
			s.cluster.removeNode(strings.TrimPrefix(ev.Key, nodePrefix))
		}
	}
	s.ahead = s.ahead[n:]
	if helps {
		s.cluster.retryAll()
	}
	return nil
}

// put takes a node or pod into the cluster, and reports whether that could help a
// pod that waits. An object that cannot be read is left out: it must not stop the
// others.
func (s *Scheduler) put(kv raftstore.KeyValue) (helps bool) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("stored object cannot be taken in", "key", kv.Key, "revision", kv.Mod, "panic", p)
		}
	}()
	if !strings.HasPrefix(kv.Key, podPrefix) && !strings.HasPrefix(kv.Key, nodePrefix) {
		return false
	}
	obj, err := object.Decode(kv.Value, kv.Mod)
	if err != nil {
		s.log.Error("stored object cannot be read", "key", kv.Key, "revision", kv.Mod, "error", err)
		return false
	}
	switch obj := obj.(type) {
	case *corev1.Node:
		return s.cluster.setNode(obj)
	case *corev1.Pod:
		return s.cluster.setPod(obj)
	default:
		return false
	}
}

// result is what became of a decision.
type result struct {
	decision
	about *corev1.Pod // as written
	wrote bool
	err   error
}

// pass decides about the pods that have not been tried, commits, and reports
// whether there is more to do at once.
func (s *Scheduler) pass(ctx context.Context, view raftstore.View) (again bool) {
	start := time.Now()
	for p := range maps.Values(s.cluster.pending) {
		if !p.due.IsZero() && !p.due.After(start) {
			p.tried, p.due = false, time.Time{}
		}
	}
	pods := s.cluster.untried(passSize)
	s.metrics.pending.Set(float64(len(s.cluster.pending)))
	if len(pods) == 0 {
		return false
	}
	decisions := s.cluster.place(pods)
	s.metrics.passSeconds.Observe(time.Since(start).Seconds())

	results := make([]result, len(decisions))
	var wg sync.WaitGroup
	room := make(chan struct{}, maxCommits)
	for i, d := range decisions {
		results[i].decision = d
		if d.err != nil || d.node == "" && !s.toTell(d, start) {
			results[i].err = d.err
			continue
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			s.carryOut(ctx, view, &results[i])
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return false
	}
	now := time.Now()
	for i := range results {
		s.settle(&results[i], now)
	}
	return len(pods) == passSize
}

// toTell reports whether d's message is to be written. One that comes too soon
// after the last is looked at again when its time has come.
func (s *Scheduler) toTell(d decision, now time.Time) bool {
	if d.message == d.pod.message {
		return false
	}
	if next := d.pod.told.Add(messagePeriod); !d.pod.told.IsZero() && now.Before(next) {
		d.pod.due = next
		return false
	}
	return true
}

// carryOut writes a decision: the node and the condition, or the condition alone,
// provided that the pod is as it was when it was decided about.
func (s *Scheduler) carryOut(ctx context.Context, view raftstore.View, r *result) {
	key := r.pod.key
	pod, ok := object.Get[*corev1.Pod](view, key)
	if !ok {
		r.err = raftstore.ErrConflict // cannot be: the cluster is that of the view
		return
	}
	_, revision, _ := view.Value(string(key))
	txn := raftstore.Txn{Actor: "scheduler", If: []raftstore.Compare{raftstore.ModIs(string(key), revision)}}
	c := corev1.PodCondition{Type: corev1.PodScheduled, LastTransitionTime: metav1.NewTime(time.Now().Truncate(time.Second))}
	if r.node != "" {
		pod.Spec.NodeName = r.node
		c.Status = corev1.ConditionTrue
		txn.If = append(txn.If, raftstore.Present(nodePrefix+r.node))
		txn.Reason = fmt.Sprintf("bound to %s: %s", r.node, r.message)
	} else {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, corev1.PodReasonUnschedulable, r.message
		txn.Reason = r.message
	}
	object.SetPodCondition(pod, c)
	data, err := object.Encode(pod)
	if err != nil {
		r.err = err
		return
	}
	txn.Then = []raftstore.Op{raftstore.Put(string(key), data)}
	_, err = s.leader.Txn(ctx, txn)
	r.about, r.wrote, r.err = pod, err == nil, err
}

// settle notes what became of a decision.
func (s *Scheduler) settle(r *result, now time.Time) {
	p := r.pod
	switch {
	case r.err == nil && r.node != "":
		s.metrics.binds.WithLabelValues("bound").Inc()
		s.log.Info("pod bound", "pod", p.key, "node", r.node, "why", r.message)
		s.events.Record(r.about, corev1.EventTypeNormal, "Scheduled", fmt.Sprintf("bound to %s: %s", r.node, r.message))
		return
	case r.err == nil:
		if r.wrote {
			p.message, p.told = r.message, now
			s.metrics.binds.WithLabelValues("unschedulable").Inc()
			s.log.Info("pod fits no node", "pod", p.key, "why", r.message)
			s.events.Record(r.about, corev1.EventTypeWarning, "FailedScheduling", r.message)
		}
		p.failures = 0
		return
	}

	// Nothing was written, as far as we know. If something was, its event follows
	// and puts this right.
	s.cluster.unbind(p.key)
	s.cluster.pending[p.key] = p
	if errors.Is(r.err, raftstore.ErrConflict) {
		s.metrics.binds.WithLabelValues("conflict").Inc()
		p.tried = false // the change that won is in the next view
		return
	}
	wait := min(firstBackoff<<min(p.failures, 16), maxBackoff)
	wait = time.Duration(float64(wait) * (0.8 + 0.4*rand.Float64()))
	p.failures++
	p.tried, p.due = true, now.Add(wait)
	if errors.Is(r.err, raftstore.ErrDeposed) || errors.Is(r.err, raftstore.ErrClosed) {
		return // the context is about to end, or else it is tried again
	}
	s.metrics.binds.WithLabelValues("error").Inc()
	s.log.Error("schedule pod", "pod", p.key, "error", r.err, "retry_in", wait)
	if pod, ok := object.Get[*corev1.Pod](s.leader.View(), p.key); ok {
		s.events.Record(pod, corev1.EventTypeWarning, "SchedulingError", fmt.Sprintf("%v; next try in %v", firstLine(r.err), wait.Round(time.Millisecond)))
	}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// untilDue returns how long until a pod is to be tried again by the clock.
func (s *Scheduler) untilDue(now time.Time) time.Duration {
	wait := time.Hour // none: changes wake us
	for p := range maps.Values(s.cluster.pending) {
		switch {
		case !p.tried:
			return 0
		case !p.due.IsZero():
			wait = min(wait, max(p.due.Sub(now), 0))
		}
	}
	return wait
}
