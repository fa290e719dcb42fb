package agent

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/agent/dns"
	"github.com/holdfast-io/holdfast/agent/probe"
	"github.com/holdfast-io/holdfast/agent/runtime"
	"github.com/holdfast-io/holdfast/agent/volume"
)

const (
	// relistPeriod is how often the runtime is asked without a reason: its
	// wake-ups may be late or lost.
	relistPeriod = 10 * time.Second
	// relistPause keeps a burst of wake-ups from becoming a burst of lists.
	relistPause = 5 * time.Millisecond
	listTimeout = 30 * time.Second
	// parallelRequests bounds the probes over the network that are under way.
	parallelRequests = 64
)

type podsConfig struct {
	runtime runtime.Runtime
	network Network
	volumes *volume.Manager
	// networkReady waits until pods can be attached.
	networkReady func(context.Context) error
	// admitted waits until the network's rules know a pod; identified tells the network
	// of all pods by uid.
	admitted   func(ctx context.Context, uid string) error
	identified func(map[string]*corev1.Pod)
	// drain waits until a pod that is ending gets no new connections, or ctx ends.
	drain func(context.Context, types.UID)
	// confirm returns nil if a quorum says that the pod is not to run here.
	confirm func(ctx context.Context, uid string) error
	// issue makes a token of a pod's service account.
	issue       func(ctx context.Context, pod *corev1.Pod, kind tokenKind) (podToken, error)
	clusterCA   string
	fencing     *fencing
	reports     *reporter
	log         *slog.Logger
	metrics     *metrics
	dataDir     string
	nodeName    string
	hostIP      netip.Addr
	allocatable corev1.ResourceList
	resolvConf  string
	clusterDNS  func() dns.Cluster
	parallel    int
	startHold   time.Duration
	maxPIDs     int64 // of each pod; 0: not bounded
	memoryBytes int64 // that the node has
}

// pods holds a worker for each pod that is desired or that is there, and tells
// all of them what the runtime lists. It starts no worker before the first list,
// and stops no pod that it does not know before a complete message.
type pods struct {
	podsConfig
	starts      chan struct{} // holds one element for each start under way
	allocations allocations
	// probeLimits bounds the probes of all pods.
	probeLimits probe.Limits
	want        chan struct{} // of capacity 1: list now

	mu      sync.Mutex
	desired map[string]*corev1.Pod // by uid: the peers' and the static ones
	// fromPeers are those of the peers, static those of a folder, mirror those by
	// which the cluster sees the static ones, by namespace and name.
	fromPeers, static, mirror map[string]*corev1.Pod
	mirrorsChanged            chan struct{}        // of capacity 1: static or mirror changed
	inputs                    map[string]podInputs // of each
	workers                   map[string]*worker
	// listed is what the runtime said, attached what the network did; seq counts
	// the lists that have begun, done is the one that listed came from.
	listed   map[string]runtime.PodState
	listedAt time.Time
	listErr  error
	attached map[string]Attachment
	held     []string // uids of pods that have volumes on the disk
	// pressure is what the node is short of; reclaiming: ended containers are to go.
	pressure   []corev1.NodeConditionType
	reclaiming atomic.Bool
	seq, done  uint64
	// complete: the desired pods are known from a peer, so others may go.
	complete bool
	// holdUntil is when saved state alone suffices to start containers.
	holdUntil time.Time
	// ctx is that of run, for workers that desire starts; nil before and after.
	ctx context.Context
	wg  sync.WaitGroup
}

func newPods(cfg podsConfig) *pods {
	return &pods{
		podsConfig:  cfg,
		starts:      make(chan struct{}, cfg.parallel),
		allocations: allocations{of: cfg.allocatable},
		probeLimits: probe.NewLimits(cfg.parallel, parallelRequests),
		want:        make(chan struct{}, 1),
		desired:     map[string]*corev1.Pod{},

		mirrorsChanged: make(chan struct{}, 1),
		workers:        map[string]*worker{},
		attached:       map[string]Attachment{},
	}
}

// set replaces the desired pods and what they name. complete says that they come from a peer and
// not from the last life of this agent. It may be called at any time; extra
// calls are harmless.
func (p *pods) set(d desired, complete bool) {
	inputs := make(map[string]podInputs, len(d.pods))
	for uid, pod := range d.pods {
		inputs[uid] = inputsOf(pod, d.inputs)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inputs = inputs
	p.fromPeers = make(map[string]*corev1.Pod, len(d.pods))
	before := p.mirror
	p.mirror = map[string]*corev1.Pod{}
	for uid, pod := range d.pods {
		if _, is := pod.Annotations[annotationMirror]; is {
			p.mirror[pod.Namespace+"/"+pod.Name] = pod
		} else {
			p.fromPeers[uid] = pod
		}
	}
	for name, old := range before {
		if now := p.mirror[name]; now == nil || now.UID != old.UID {
			p.reports.forget(string(old.UID))
		}
	}
	p.unite(!maps.Equal(before, p.mirror))
	p.complete = p.complete || complete
	p.reconcile()
	if complete {
		for _, w := range p.workers {
			w.notify() // the hold is over
		}
	}
}

// setStatic replaces the static pods.
func (p *pods) setStatic(static map[string]*corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := len(static) != len(p.static)
	for uid := range static {
		if old := p.static[uid]; old != nil {
			static[uid] = old // the same value: no news for its worker
		} else {
			changed = true
		}
	}
	if !changed {
		return
	}
	p.static = static
	p.unite(true)
	p.reconcile()
}

// unite makes desired what the peers and the folder want together. changed: the
// static pods or their mirrors have. p.mu is held.
func (p *pods) unite(changed bool) {
	p.desired = maps.Clone(p.fromPeers)
	if p.desired == nil {
		p.desired = map[string]*corev1.Pod{}
	}
	maps.Copy(p.desired, p.static)
	p.identify()
	if !changed {
		return
	}
	for uid := range p.static {
		if w := p.workers[uid]; w != nil {
			w.notify() // there is another to report to
		}
	}
	select {
	case p.mirrorsChanged <- struct{}{}:
	default:
	}
}

// mirrors returns the static pods and their mirrors, and whether the latter are
// known.
func (p *pods) mirrors() (static, mirrors map[string]*corev1.Pod, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.static, p.mirror, p.complete
}

// reported returns by which name the cluster knows a pod; ok is false if it does
// not yet.
func (p *pods) reported(uid string) (id podName, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pod := p.static[uid]
	if pod == nil {
		return podName{UID: types.UID(uid)}, true
	}
	mirror := p.mirror[pod.Namespace+"/"+pod.Name]
	if mirror == nil || mirror.DeletionTimestamp != nil || mirror.Annotations[annotationMirror] != uid {
		return podName{}, false
	}
	return podID(mirror), true
}

// replaced says whether another pod of the name still ends, so that the static pod
// uid waits. p.mu is held.
func (p *pods) replaced(uid string) bool {
	pod := p.static[uid]
	if pod == nil {
		return false
	}
	for other, w := range p.workers {
		if was, _ := w.desired(); other != uid && was != nil && was.Namespace == pod.Namespace && was.Name == pod.Name {
			return true
		}
	}
	return false
}

// reconcile makes the workers what they should be. p.mu is held.
func (p *pods) reconcile() {
	if p.ctx == nil || p.done == 0 {
		return
	}
	for uid, pod := range p.desired {
		w := p.workers[uid]
		if w == nil {
			if p.replaced(uid) {
				continue
			}
			w = p.start(uid, pod)
		}
		if old, gone := w.desired(); old != pod || gone || !w.inputs().same(p.inputs[uid]) {
			w.desire(pod, p.inputs[uid], false)
			w.notify()
		}
	}
	for uid, w := range p.workers {
		if _, ok := p.desired[uid]; ok {
			continue
		}
		if _, gone := w.desired(); !gone {
			w.desire(nil, nil, true)
			w.notify()
		}
	}
	if !p.complete {
		return
	}
	for uid := range p.listed {
		p.startUnknown(uid)
	}
	for uid := range p.attached {
		p.startUnknown(uid)
	}
	for _, uid := range p.held {
		p.startUnknown(uid)
	}
}

// startUnknown starts the worker that takes away a pod nobody wants.
func (p *pods) startUnknown(uid string) {
	if p.workers[uid] != nil || p.desired[uid] != nil {
		return
	}
	p.log.Info("unknown pod found, removing it", "uid", uid)
	w := p.start(uid, nil)
	w.desire(nil, nil, true)
}

func (p *pods) start(uid string, pod *corev1.Pod) *worker {
	w := &worker{p: p, uid: uid, wake: make(chan struct{}, 1), pod: pod, named: p.inputs[uid]}
	w.static = p.static[uid] != nil
	w.log = p.log.With("uid", uid)
	if pod != nil {
		w.log = p.log.With("pod", pod.Namespace+"/"+pod.Name, "uid", uid)
	}
	p.workers[uid] = w
	ctx := p.ctx
	p.wg.Go(func() {
		w.run(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.workers, uid)
		// What was listed before is out of date, and would start another worker.
		delete(p.listed, uid)
		delete(p.attached, uid)
		p.held = slices.DeleteFunc(p.held, func(held string) bool { return held == uid })
		p.reports.forget(uid)
		if ctx.Err() == nil {
			p.identify()
			p.reconcile() // it may be desired again
		}
	})
	return w
}

// run lists what is there, over and over, and runs the workers. It returns once
// all of them have ended; their containers go on.
func (p *pods) run(ctx context.Context) error {
	p.mu.Lock()
	p.ctx = ctx
	p.holdUntil = time.Now().Add(p.startHold)
	p.mu.Unlock()
	defer p.wg.Wait()
	defer func() {
		p.mu.Lock()
		p.ctx = nil
		p.mu.Unlock()
	}()
	hold := time.AfterFunc(p.startHold, p.notifyAll)
	defer hold.Stop()
	ticker := time.NewTicker(relistPeriod)
	defer ticker.Stop()
	withNetwork := true
	for {
		changed := p.runtime.Changed() // before the list, so that none is missed
		ok := p.list(ctx, withNetwork)
		withNetwork = !ok && withNetwork
		retry := relistPeriod
		if !ok {
			retry = time.Second
		}
		again := time.NewTimer(retry)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-changed:
		case <-p.want:
		case <-ticker.C:
			withNetwork = true
		case <-again.C:
		}
		again.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(relistPause):
		}
	}
}

func (p *pods) notifyAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		w.notify()
	}
}

// list asks the runtime, and the network if told to, and wakes the workers for
// which something is new. It returns false when it could not.
func (p *pods) list(ctx context.Context, withNetwork bool) bool {
	p.mu.Lock()
	p.seq++
	seq := p.seq
	p.mu.Unlock()
	select { // the list that begins now answers all that asked so far
	case <-p.want:
	default:
	}
	lctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	start := time.Now()
	var attached map[string]Attachment
	var held []string
	states, err := p.runtime.List(lctx)
	if err == nil && withNetwork {
		attached, err = p.network.List(lctx)
	}
	if err == nil && withNetwork {
		held, err = p.volumes.List()
	}
	p.metrics.listSeconds.Observe(time.Since(start).Seconds())

	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil && p.listErr == nil {
			p.log.Error("what runs cannot be listed; trying again each second", "error", err)
		}
		p.listErr = err
		return false
	}
	if p.listErr != nil {
		p.log.Info("what runs can be listed again")
	}
	before := p.listed
	p.listed = make(map[string]runtime.PodState, len(states))
	for _, s := range states {
		p.listed[s.UID] = s
	}
	if attached != nil {
		p.attached, p.held = attached, held
	}
	p.listErr, p.listedAt, p.done = nil, time.Now(), seq
	p.reconcile()
	for uid, w := range p.workers {
		if w.waitsFor(seq) || !reflect.DeepEqual(before[uid], p.listed[uid]) {
			w.notify()
		}
	}
	return true
}

// wantList asks for a list, and returns its number: what a worker sees of an
// earlier one is out of date.
func (p *pods) wantList() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.want <- struct{}{}:
	default:
	}
	return p.seq + 1
}

// observed returns a pod as listed, the number of that list (0: none yet), and
// whether nothing is to be started yet.
func (p *pods) observed(uid string) (runtime.PodState, uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listed[uid], p.done, !p.complete && time.Now().Before(p.holdUntil)
}

func (p *pods) attachment(uid string) (Attachment, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.attached[uid]
	return a, ok
}

// find returns a desired pod by name.
func (p *pods) find(namespace, name string) (*corev1.Pod, runtime.PodState, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for uid, pod := range p.desired {
		if pod.Namespace == namespace && pod.Name == name {
			return pod, p.listed[uid], true
		}
	}
	return nil, runtime.PodState{}, false
}

// all returns what the runtime last listed.
func (p *pods) all() []runtime.PodState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.listed))
}

// known returns what all returns, and whether that is up to date.
func (p *pods) known() ([]runtime.PodState, bool) {
	at, err := p.health()
	return p.all(), err == nil && !at.IsZero()
}

// health returns when the runtime was last listed, and the error since.
func (p *pods) health() (time.Time, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listedAt, p.listErr
}

// acquire waits for a place among those that may set up a pod.
func (p *pods) acquire(ctx context.Context) error {
	select {
	case p.starts <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *pods) release() { <-p.starts }
