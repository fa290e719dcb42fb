package agent

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
)

const (
	// reportGap is how long to wait for more to report, reportCap the longest
	// that a steady trickle may put a report off.
	reportGap = 20 * time.Millisecond
	reportCap = 150 * time.Millisecond
	// reportTimeout is longer than a peer waits for a leader (10 s).
	reportTimeout = 15 * time.Second
	// reportBatch and reportBytes bound one call.
	reportBatch = 100
	reportBytes = 1 << 20
	// reportBackoffMax is the longest between two tries of what failed.
	reportBackoffFirst = 100 * time.Millisecond
	reportBackoffMax   = 5 * time.Second
	// maxEvents is how many events of a pod are kept for its next report.
	maxEvents = 50
)

// reporter holds the status of each pod until a peer has acknowledged its
// commit. Each change of a pod's status is a generation; a pod is dirty while
// its generation is not the acknowledged one.
type reporter struct {
	client  Client
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{} // of capacity 1

	mu      sync.Mutex
	open    bool // a session has begun at some time: the node is known
	entries map[types.UID]*reportEntry
}

type reportEntry struct {
	id         podName
	status     []byte
	phase      corev1.PodPhase
	removed    bool
	events     []*agentv1.PodEvent
	generation uint64
	acked      uint64
}

func newReporter(client Client, log *slog.Logger, m *metrics) *reporter {
	return &reporter{
		client: client, log: log, metrics: m,
		wake: make(chan struct{}, 1), entries: map[types.UID]*reportEntry{},
	}
}

func (r *reporter) notify() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// set records a pod's status; the same status again is not news.
func (r *reporter) set(id podName, status corev1.PodStatus, removed bool) {
	data, err := status.Marshal()
	if err != nil {
		panic("agent: marshal status of pod " + id.Namespace + "/" + id.Name + ": " + err.Error()) // our own struct
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entry(id.UID)
	if e.generation > 0 && e.id == id && e.removed == removed && bytes.Equal(e.status, data) {
		return
	}
	e.id, e.status, e.removed, e.phase = id, data, removed, status.Phase
	e.generation++
	r.notify()
}

func (r *reporter) entry(uid types.UID) *reportEntry {
	e := r.entries[uid]
	if e == nil {
		e = &reportEntry{}
		r.entries[uid] = e
	}
	return e
}

// event adds an event to the pod's next report. The newest are kept when there
// are too many.
func (r *reporter) event(uid string, ev *agentv1.PodEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entry(types.UID(uid))
	e.events = append(e.events, ev)
	if n := len(e.events) - maxEvents; n > 0 {
		e.events = slices.Delete(e.events, 0, n)
	}
	if e.generation > 0 {
		e.generation++
		r.notify()
	}
}

// forget drops a pod that is gone.
func (r *reporter) forget(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.entries, types.UID(uid))
}

// renew makes every pod dirty: a new session reports all.
func (r *reporter) renew() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = true
	for _, e := range r.entries {
		e.acked = 0
	}
	r.notify()
}

// status returns a pod's status as last computed; the zero value if it has none.
func (r *reporter) status(uid types.UID) corev1.PodStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	var s corev1.PodStatus
	if e := r.entries[uid]; e != nil {
		if err := s.Unmarshal(e.status); err != nil {
			panic("agent: unmarshal status: " + err.Error()) // it was marshaled here
		}
	}
	return s
}

// counts returns how many pods there are by phase, and how many are dirty.
func (r *reporter) counts() (phases map[corev1.PodPhase]int, dirty int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	phases = map[corev1.PodPhase]int{}
	for _, e := range r.entries {
		if e.generation == 0 {
			continue
		}
		phases[e.phase]++
		if e.acked != e.generation {
			dirty++
		}
	}
	return phases, dirty
}

// batch is what one call reports.
type batch struct {
	request     *agentv1.ReportStatusRequest
	generations map[types.UID]uint64
	events      map[types.UID]int
}

// take returns the dirty pods that fit into one call, or nil.
func (r *reporter) take() *batch {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.open {
		return nil
	}
	var dirty []*reportEntry
	for _, e := range r.entries {
		if e.generation > 0 && e.acked != e.generation {
			dirty = append(dirty, e)
		}
	}
	if len(dirty) == 0 {
		return nil
	}
	slices.SortFunc(dirty, func(a, b *reportEntry) int { return cmp.Compare(a.id.UID, b.id.UID) })
	b := &batch{
		request:     &agentv1.ReportStatusRequest{},
		generations: map[types.UID]uint64{}, events: map[types.UID]int{},
	}
	size := 0
	for _, e := range dirty {
		size += len(e.status)
		if len(b.request.Pods) > 0 && (len(b.request.Pods) == reportBatch || size > reportBytes) {
			break
		}
		b.request.Pods = append(b.request.Pods, &agentv1.PodStatusReport{
			Namespace: e.id.Namespace, Name: e.id.Name, Uid: string(e.id.UID),
			Status: e.status, Removed: e.removed, Events: slices.Clone(e.events),
		})
		b.generations[e.id.UID] = e.generation
		b.events[e.id.UID] = len(e.events)
	}
	return b
}

// ack records that the batch was committed: those pods are clean, unless they
// have changed since.
func (r *reporter) ack(b *batch, unknown []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for uid, generation := range b.generations {
		e := r.entries[uid]
		if e == nil {
			continue
		}
		e.acked = generation
		// Events that were added meanwhile are at the end, unless so many came
		// that reported ones were pushed out.
		e.events = slices.Delete(e.events, 0, min(b.events[uid], len(e.events)))
	}
	for _, uid := range unknown {
		r.log.Info("a reported pod is not known to the cluster", "uid", uid)
	}
}

// run reports until ctx ends. What is not acknowledged is reported again, with
// growing pauses.
func (r *reporter) run(ctx context.Context) error {
	failures := 0
	for {
		b := r.take()
		if b == nil {
			select {
			case <-ctx.Done():
				return nil
			case <-r.wake:
			}
			r.gather(ctx)
			continue
		}
		cctx, cancel := context.WithTimeout(ctx, reportTimeout)
		res, err := r.client.Agent().ReportStatus(cctx, b.request)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			r.metrics.reports.WithLabelValues("ok").Inc()
			if failures > 0 {
				r.log.Info("status reports are accepted again", "failures", failures)
			}
			failures = 0
			r.ack(b, res.GetUnknown())
			continue
		}
		r.metrics.reports.WithLabelValues("error").Inc()
		failures++
		pause := backoff(failures, reportBackoffFirst, reportBackoffMax)
		if failures == 1 {
			r.log.Warn("status report failed; it is repeated until it is acknowledged", "pods", len(b.request.Pods), "peer", r.client.Peer(), "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// gather waits until nothing new has come for reportGap, or for reportCap.
func (r *reporter) gather(ctx context.Context) {
	limit := time.After(reportCap)
	for {
		select {
		case <-ctx.Done():
			return
		case <-limit:
			return
		case <-time.After(reportGap):
			return
		case <-r.wake:
		}
	}
}
