package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// bench is a real store whose leader runs the controllers, in virtual time. The
// test plays the agents and the scheduler.
type bench struct {
	t      testing.TB
	store  *raftstore.Store
	leader *raftstore.Leader

	mu     sync.Mutex
	beats  map[string]time.Time
	dead   map[string]bool // says gossip
	events []string
}

func newBench(t testing.TB, options ...func(*raftstore.Config)) *bench {
	t.Helper()
	store := storetest.New(t, options...)
	return &bench{t: t, store: store, leader: storetest.Leader(t, store), beats: map[string]time.Time{}, dead: map[string]bool{}}
}

func (b *bench) Heartbeat(node string) (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, ok := b.beats[node]
	return time.Since(at), ok
}

func (b *bench) Gossip(node string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dead[node] {
		return "dead"
	}
	return "alive"
}

func (b *bench) Record(about object.Object, eventType, reason, message string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, fmt.Sprintf("%s %s %s: %s", eventType, object.KeyOf(about), reason, message))
}

// eventsWith returns the events recorded so far that contain text.
func (b *bench) eventsWith(text string) (found []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.events {
		if strings.Contains(e, text) {
			found = append(found, e)
		}
	}
	return found
}

// run starts the controllers, which end before the test does.
func (b *bench) run() (stop func()) {
	b.t.Helper()
	c := New(Config{Leader: b.leader, Health: b, Events: b, Logger: slog.New(slog.NewTextHandler(b.t.Output(), nil)), Registerer: prometheus.NewRegistry()})
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("run controllers: %v", err)
		}
	}
	b.t.Cleanup(stop)
	return stop
}

func (b *bench) put(objs ...object.Object) {
	b.t.Helper()
	txn := raftstore.Txn{}
	for _, obj := range objs {
		data, err := object.Encode(obj)
		if err != nil {
			b.t.Fatal(err)
		}
		txn.Then = append(txn.Then, raftstore.Put(string(object.KeyOf(obj)), data))
	}
	if _, err := b.store.Txn(b.t.Context(), txn); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) node(name string) *corev1.Node {
	b.t.Helper()
	node, ok := object.Get[*corev1.Node](b.store.View(), nodeResource.Key("", name))
	if !ok {
		b.t.Fatalf("node %s does not exist", name)
	}
	return node
}

// beat makes the named nodes send a heartbeat each second until the test ends or
// they are stopped.
func (b *bench) beat(names ...string) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			b.mu.Lock()
			for _, name := range names {
				b.beats[name] = time.Now()
			}
			b.mu.Unlock()
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}()
	stop = func() { cancel(); <-done }
	b.t.Cleanup(stop)
	return stop
}

// play does what scheduler and agents do for all pods, until nothing is left to do:
// it binds to node, runs, and finishes deletions on living nodes.
func (b *bench) play(node string) {
	b.t.Helper()
	for {
		synctest.Wait()
		moved := false
		for _, pod := range object.List[*corev1.Pod](b.store.View(), "") {
			switch {
			case object.Deleting(pod):
				if b.Gossip(pod.Spec.NodeName) != "alive" {
					continue
				}
				if _, err := b.store.Txn(b.t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Delete(string(object.KeyOf(pod)))}}); err != nil {
					b.t.Fatal(err)
				}
			case pod.Spec.NodeName == "":
				pod.Spec.NodeName = node
				b.put(pod)
			case !object.PodReady(pod):
				pod.Status.Phase = corev1.PodRunning
				setReady(pod, corev1.ConditionTrue, time.Now())
				b.put(pod)
			default:
				continue
			}
			moved = true
		}
		if !moved {
			return
		}
	}
}

func newNode(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
}

// livePods returns the names of pods that are not being deleted, by node.
func (b *bench) livePods() map[string]int {
	n := map[string]int{}
	for _, pod := range object.List[*corev1.Pod](b.store.View(), "") {
		if !object.Deleting(pod) {
			n[pod.Spec.NodeName]++
		}
	}
	return n
}

// TestIdleClusterWritesNothing: a cluster at rest, with agents that send heartbeats
// and a rollout that is complete, appends nothing to the log, for an hour.
func TestIdleClusterWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put(newNode("n1"), newNode("n2"), newNode("n3"), simDeployment(t, "web replicas=3 image=v1 minReady=5 deadline=60"))
		b.beat("n1", "n2", "n3")
		b.run()
		b.play("n1")
		time.Sleep(time.Minute)
		b.play("n1")
		d, _ := object.Get[*appsv1.Deployment](b.store.View(), deploymentResource.Key("default", "web"))
		if !complete(d, &d.Status) {
			t.Fatalf("the rollout is not complete, so this would prove nothing: %+v", d.Status)
		}
		// The store itself compares its replicas once after the last change, and once
		// discards the history that has come of age.
		time.Sleep(15 * time.Minute)
		before := b.store.Status()
		time.Sleep(time.Hour)
		if after := b.store.Status(); after.LastIndex != before.LastIndex {
			t.Errorf("%d log entries appended in an idle hour", after.LastIndex-before.LastIndex)
		}
	})
}

// TestLostNodeIsReplaced covers what no single plan shows: how long a quiet node
// keeps its pods, what becomes of them, and its return.
func TestLostNodeIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put(newNode("n1"), newNode("n2"), simDeployment(t, "web replicas=2 image=v1"))
		stop := b.beat("n1")
		b.beat("n2")
		b.run()
		b.play("n1")
		time.Sleep(10 * time.Second)
		if got := b.livePods(); got["n1"] != 2 || !object.NodeReady(b.node("n1")) {
			t.Fatalf("before: %v, n1 ready %v; want 2 pods on a ready n1", got, object.NodeReady(b.node("n1")))
		}
		if cidr := b.node("n1").Spec.PodCIDR; cidr == "" || cidr == b.node("n2").Spec.PodCIDR {
			t.Fatalf("pod CIDRs %q and %q, want two of them", cidr, b.node("n2").Spec.PodCIDR)
		}

		stop()
		b.mu.Lock()
		b.dead["n1"] = true
		last := b.beats["n1"]
		b.mu.Unlock()
		time.Sleep(time.Until(last.Add(DefaultNodeLease)))
		synctest.Wait()
		if got := b.livePods(); got["n1"] != 2 {
			t.Fatalf("after %v of silence: %v; n1's lease has not run out", time.Since(last), got)
		}
		time.Sleep(DefaultHealthPeriod + time.Millisecond)
		b.play("n2")
		if got := b.livePods(); got["n1"] != 0 || got["n2"] != 2 {
			t.Fatalf("after %v of silence: %v; want both pods replaced on n2", time.Since(last), got)
		}
		terminating := 0
		for _, pod := range object.List[*corev1.Pod](b.store.View(), "") {
			if object.Deleting(pod) && pod.Spec.NodeName == "n1" {
				terminating++
				if at := object.PodCondition(pod, corev1.DisruptionTarget); at == nil || at.Reason != "DeletionByTaintManager" {
					t.Errorf("the condition DisruptionTarget of %s is %v, want one for the taint", pod.Name, at)
				}
			}
		}
		if terminating != 2 {
			t.Errorf("%d objects of n1's pods are left, want 2: their end is not known", terminating)
		}
		if n := len(b.eventsWith("TaintManagerEviction")); n != 2 {
			t.Errorf("%d evictions recorded, want 2: %v", n, b.events)
		}

		b.mu.Lock()
		b.dead["n1"] = false
		b.mu.Unlock()
		b.beat("n1")
		time.Sleep(time.Second)
		b.play("n2")
		node := b.node("n1")
		if !object.NodeReady(node) || len(node.Spec.Taints) != 0 {
			t.Errorf("after its return: ready %v, taints %v", object.NodeReady(node), node.Spec.Taints)
		}
		if pods := object.List[*corev1.Pod](b.store.View(), ""); len(pods) != 2 {
			t.Errorf("%d pods after the return, want the 2 replacements", len(pods))
		}
	})
}

// TestNewLeaderConvictsNobody for a lease, whatever it finds.
func TestNewLeaderConvictsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		node := newNode("n1")
		object.SetNodeCondition(node, corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: reasonAgentReady})
		b.put(node)
		b.dead["n1"] = true
		b.run()
		synctest.Wait()
		time.Sleep(DefaultNodeLease)
		synctest.Wait()
		if c := object.NodeCondition(b.node("n1"), corev1.NodeReady); c.Reason != object.NodeSuspect {
			t.Fatalf("%s before a lease has passed, want %s: gossip's word alone convicts nobody", c.Reason, object.NodeSuspect)
		}
		time.Sleep(2 * DefaultHealthPeriod)
		synctest.Wait()
		if c := object.NodeCondition(b.node("n1"), corev1.NodeReady); c.Status != corev1.ConditionUnknown || c.Reason != object.NodeLost {
			t.Fatalf("Ready is %s, %s, after more than a lease of silence, want Unknown, %s", c.Status, c.Reason, object.NodeLost)
		}
	})
}

// TestMassLossEvictsNothing: two of three nodes vanish; their pods stay until one of
// them is back, which shows that the other is really gone.
func TestMassLossEvictsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put(newNode("n1"), newNode("n2"), newNode("n3"), simDeployment(t, "web replicas=3 image=v1"))
		stop1, stop2 := b.beat("n1"), b.beat("n2")
		b.beat("n3")
		b.run()
		b.play("n1")
		time.Sleep(time.Second)
		stop1()
		stop2()
		b.mu.Lock()
		b.dead["n1"], b.dead["n2"] = true, true
		b.mu.Unlock()
		time.Sleep(10 * time.Minute)
		if got := b.livePods(); got["n1"] != 3 {
			t.Fatalf("%v; want nothing evicted from n1", got)
		}
		if n := len(b.eventsWith("EvictionHeld")); n != 2 {
			t.Errorf("%d events tell of it, want one for each node: %v", n, b.eventsWith("nodes/"))
		}
		b.mu.Lock()
		b.dead["n2"] = false
		b.mu.Unlock()
		b.beat("n2")
		time.Sleep(2 * time.Second)
		b.play("n3")
		if got := b.livePods(); got["n1"] != 0 || got["n3"] != 3 {
			t.Fatalf("%v; want n1's pods replaced once n2 is back", got)
		}
	})
}

// TestRemovedNodeReleasesItsPods: deleting the Node object says that the machine is
// gone, so its pods are erased, also those that nobody owns.
func TestRemovedNodeReleasesItsPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		bare := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "bare", Namespace: "default", UID: "bare"}}
		b.put(newNode("n1"), newNode("n2"), simDeployment(t, "web replicas=1 image=v1"), bare)
		b.beat("n1", "n2")
		b.run()
		b.play("n1")
		if _, err := b.store.Txn(t.Context(), raftstore.Txn{Then: []raftstore.Op{raftstore.Delete("nodes/n1")}}); err != nil {
			t.Fatal(err)
		}
		b.play("n2")
		pods := object.List[*corev1.Pod](b.store.View(), "")
		if len(pods) != 1 || pods[0].Spec.NodeName != "n2" {
			t.Errorf("%d pods, want only the replacement on n2", len(pods))
		}
	})
}

// counter is a controller for tests that counts in config maps.
func counter(plan func(s state, cm *corev1.ConfigMap) outcome) *controller {
	resource := object.ResourceOf(&corev1.ConfigMap{})
	return &controller{
		name: "counter",
		all:  func(s state) []object.Key { return keysOf(s.index, resource) },
		affected: func(_ *index, c change) []object.Key {
			return affectsItself(resource, c)
		},
		plan: func(s state, key object.Key, _ time.Time) outcome {
			cm, ok := object.Get[*corev1.ConfigMap](s, key)
			if !ok {
				return outcome{}
			}
			return plan(s, cm)
		},
	}
}

// runOnly runs a runner with these controllers alone.
func (b *bench) runOnly(controllers ...*controller) *metrics {
	b.t.Helper()
	r := &runner{leader: b.leader, events: b, log: slog.New(slog.NewTextHandler(b.t.Output(), nil)), metrics: newMetrics(nil), controllers: controllers, tickPeriod: time.Second}
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("run: %v", err)
		}
	})
	return r.metrics
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)}, Data: map[string]string{"n": "0"}}
}

func (b *bench) count(name string) int {
	b.t.Helper()
	cm, ok := object.Get[*corev1.ConfigMap](b.store.View(), object.Key("configmaps/default/"+name))
	if !ok {
		b.t.Fatalf("configmap %s is gone", name)
	}
	n, err := strconv.Atoi(cm.Data["n"])
	if err != nil {
		b.t.Fatal(err)
	}
	return n
}

func increment(cm *corev1.ConfigMap, o *outcome) int {
	n, _ := strconv.Atoi(cm.Data["n"])
	cm.Data["n"] = strconv.Itoa(n + 1)
	o.update(cm)
	return n
}

// TestRunnerReadsItsOwnWrites: each plan sees what the one before it wrote, so that
// counting to a hundred takes a hundred transactions and no conflict.
func TestRunnerReadsItsOwnWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put(configMap("a"), configMap("b"))
		b.runOnly(counter(func(_ state, cm *corev1.ConfigMap) (o outcome) {
			if cm.Data["n"] != "100" {
				increment(cm, &o)
			}
			return o
		}))
		synctest.Wait()
		if a, c := b.count("a"), b.count("b"); a != 100 || c != 100 {
			t.Errorf("counted to %d and %d, want 100", a, c)
		}
		if rev := b.store.View().Revision(); rev != 201 {
			t.Errorf("revision %d, want 201: one for the objects, one for each step", rev)
		}
	})
}

// TestRunnerRetriesConflicts: somebody else's write between plan and commit makes
// the plan be made again, even if the change itself concerns this controller in no
// way.
func TestRunnerRetriesConflicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put(configMap("a"), newNode("n1"))
		passes := 0
		b.runOnly(counter(func(s state, cm *corev1.ConfigMap) (o outcome) {
			if passes++; passes > 2 {
				return o
			}
			node, _ := object.Get[*corev1.Node](s, "nodes/n1")
			o.unchanged(node)
			increment(cm, &o)
			if passes == 1 { // the other writer is faster
				b.put(newNode("n1"))
			}
			return o
		}))
		synctest.Wait()
		if n := b.count("a"); n != 1 {
			t.Errorf("counted to %d, want 1", n)
		}
		if events := b.eventsWith("ReconcileError"); len(events) != 0 {
			t.Errorf("a conflict was reported as an error: %v", events)
		}
	})
}

// TestRunnerIsolatesPanics: one object whose plan panics delays no other; it is
// reported, and tried again ever more rarely until it works.
func TestRunnerIsolatesPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put(configMap("bad"), configMap("good"))
		var panics atomic.Int32
		b.runOnly(counter(func(_ state, cm *corev1.ConfigMap) (o outcome) {
			if cm.Name == "bad" && panics.Load() < 5 {
				panics.Add(1)
				panic("no such thing")
			}
			if cm.Data["n"] == "0" {
				increment(cm, &o)
			}
			return o
		}))
		synctest.Wait()
		if b.count("good") != 1 || panics.Load() != 1 {
			t.Fatalf("good counted to %d after %d panics of bad, want 1 and 1", b.count("good"), panics.Load())
		}
		events := b.eventsWith("ReconcileError")
		if len(events) != 1 || !strings.Contains(events[0], "configmaps/default/bad") || !strings.Contains(events[0], "no such thing") {
			t.Fatalf("events %v, want one about bad and its panic", events)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if b.count("bad") != 1 || panics.Load() != 5 {
			t.Errorf("bad counted to %d after %d panics, want 1 after 5", b.count("bad"), panics.Load())
		}
	})
}

// TestRunnerLooksAgain: a pass that asked for another by the clock gets it.
func TestRunnerLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.put(configMap("a"))
		var at []time.Duration
		start := time.Now()
		b.runOnly(counter(func(state, *corev1.ConfigMap) (o outcome) {
			at = append(at, time.Since(start))
			if len(at) < 3 {
				o.lookIn(time.Minute)
			}
			return o
		}))
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(at) != 3 || at[1] != time.Minute || at[2] != 2*time.Minute {
			t.Errorf("looked at %v, want 0s, 1m, 2m", at)
		}
	})
}

// TestRunnerSurvivesCompaction: when history is discarded faster than it is read,
// everything is read anew and nothing is overlooked.
func TestRunnerSurvivesCompaction(t *testing.T) {
	b := newBench(t, func(cfg *raftstore.Config) { cfg.HistoryEvents = 10 })
	r := &runner{leader: b.leader, events: b, log: slog.New(slog.DiscardHandler), metrics: newMetrics(nil), controllers: []*controller{counter(nil)}}
	r.restart(b.leader.View(), time.Now())
	behind := b.leader.Watch("", r.upTo)
	for i := 0; ; i++ {
		b.put(configMap(fmt.Sprint("a", i%50)))
		if _, _, _, err := behind.Poll(); err != nil {
			break // r's own watcher is no better off
		}
		if behind = b.leader.Watch("", r.upTo); i == 100_000 {
			t.Fatal("the store does not compact")
		}
	}
	view := b.leader.View()
	if err := r.advance(view); err != nil {
		t.Fatal(err)
	}
	want := 0
	for range view.Prefix("configmaps/") {
		want++
	}
	if got := r.controllers[0].queue.waiting(); got != want || len(r.index.entries) != want || r.upTo != view.Revision() {
		t.Errorf("%d keys to look at, %d indexed, up to revision %d; want %d at revision %d", got, len(r.index.entries), r.upTo, want, view.Revision())
	}
}

// TestMetricsOutliveALeadership: the next leadership of a process registers the same
// metrics, and goes on counting.
func TestMetricsOutliveALeadership(t *testing.T) {
	reg := prometheus.NewRegistry()
	newMetrics(reg).pauses.Inc()
	newMetrics(reg).pauses.Inc()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "holdfast_health_loop_pauses_total" {
			if n := family.GetMetric()[0].GetCounter().GetValue(); n != 2 {
				t.Errorf("counted %v, want 2", n)
			}
			return
		}
	}
	t.Error("the metric is not there")
}

// TestRunChecksItsConfig: what cannot work is said at once.
func TestRunChecksItsConfig(t *testing.T) {
	if err := New(Config{}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "required") {
		t.Errorf("error %v, want one that names what is required", err)
	}
}
