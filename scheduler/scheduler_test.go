package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/storetest"
)

// bench is a real store whose leader runs the scheduler, in virtual time.
type bench struct {
	t      testing.TB
	store  *raftstore.Store
	leader *raftstore.Leader

	mu     sync.Mutex
	events []string
}

func newBench(t testing.TB, options ...func(*raftstore.Config)) *bench {
	t.Helper()
	store := storetest.New(t, options...)
	return &bench{t: t, store: store, leader: storetest.Leader(t, store)}
}

func (b *bench) Record(about object.Object, eventType, reason, message string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = append(b.events, fmt.Sprintf("%s %s %s: %s", eventType, object.KeyOf(about), reason, message))
}

func (b *bench) recorded() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.events...)
}

func (b *bench) config() Config {
	return Config{Leader: b.leader, Events: b, Logger: slog.New(slog.NewTextHandler(b.t.Output(), nil)), Registerer: prometheus.NewRegistry()}
}

// run starts the scheduler, which ends before the test does.
func (b *bench) run() {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.t.Context()))
	done := make(chan error, 1)
	s := New(b.config())
	go func() { done <- s.Run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("run scheduler: %v", err)
		}
	})
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
	b.txn(txn)
}

func (b *bench) txn(txn raftstore.Txn) {
	b.t.Helper()
	if _, err := b.store.Txn(b.t.Context(), txn); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) putNodes(text string) {
	b.t.Helper()
	for _, node := range parseNodes(b.t, []byte(text)) {
		b.put(node)
	}
}

func (b *bench) putPods(text string) {
	b.t.Helper()
	for _, pod := range parsePods(b.t, []byte(text)) {
		b.put(pod)
	}
}

func (b *bench) pod(name string) *corev1.Pod {
	b.t.Helper()
	pod, ok := object.Get[*corev1.Pod](b.store.View(), object.Key("pods/default/"+name))
	if !ok {
		b.t.Fatalf("pod %s is gone", name)
	}
	return pod
}

func (b *bench) message(name string) string {
	b.t.Helper()
	if c := object.PodCondition(b.pod(name), corev1.PodScheduled); c != nil {
		return c.Message
	}
	return ""
}

// TestSchedulerBinds: many pods at once, each bound once, with its condition and its
// event, and no node overfilled.
func TestSchedulerBinds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		for i := range 10 {
			b.putNodes(fmt.Sprintf("n%d pods=120", i))
		}
		const pods = 2*passSize + 17
		var batch []object.Object
		for i := range pods {
			if batch = append(batch, parsePods(t, fmt.Appendf(nil, "p%d owner=web", i))[0]); len(batch) == 100 || i == pods-1 {
				b.put(batch...)
				batch = nil
			}
		}
		before := b.store.View().Revision()
		b.run()
		synctest.Wait()
		on := map[string]int{}
		for i := range pods {
			pod := b.pod(fmt.Sprint("p", i))
			on[pod.Spec.NodeName]++
			if c := object.PodCondition(pod, corev1.PodScheduled); c == nil || c.Status != corev1.ConditionTrue {
				t.Fatalf("%s: condition PodScheduled is %+v", pod.Name, c)
			}
		}
		for node, n := range on {
			if n < pods/10 || n > pods/10+1 {
				t.Errorf("%s has %d pods, want a tenth of %d", node, n, pods)
			}
		}
		if wrote := b.store.View().Revision() - before; wrote > 4*pods/batchOps+3 {
			t.Errorf("%d transactions for %d pods, want them together", wrote, pods)
		}
		if events := b.recorded(); len(events) != pods || !strings.Contains(events[0], "Normal") || !strings.Contains(events[0], "Scheduled: bound to n") {
			t.Errorf("%d events, the first %q", len(events), events[0])
		}
	})
}

// TestUnschedulablePods: the reason is written once, nothing happens while nothing
// changes, and what helps is noticed at once.
func TestUnschedulablePods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.putNodes("n1 cpu=1")
		b.putPods("web cpu=1500m")
		b.run()
		synctest.Wait()
		const want = "0/1 nodes fit: 1 cpu short by 500m"
		c := object.PodCondition(b.pod("web"), corev1.PodScheduled)
		if c == nil || c.Status != corev1.ConditionFalse || c.Reason != corev1.PodReasonUnschedulable || c.Message != want {
			t.Fatalf("condition %+v, want False with %q", c, want)
		}
		if events := b.recorded(); len(events) != 1 || events[0] != "Warning pods/default/web FailedScheduling: "+want {
			t.Fatalf("events %q", events)
		}
		// The store itself compares its replicas once after the last change, and once
		// discards the history that has come of age.
		time.Sleep(15 * time.Minute)
		before := b.store.Status()
		time.Sleep(time.Hour)
		if after := b.store.Status(); after.LastIndex != before.LastIndex {
			t.Fatalf("%d log entries appended while nothing changed", after.LastIndex-before.LastIndex)
		}
		revision := b.store.View().Revision()
		b.putNodes("n1 cpu=1 label=disk:ssd") // could have helped, but says the same
		synctest.Wait()
		if wrote := b.store.View().Revision() - revision - 1; wrote != 0 {
			t.Fatalf("%d revisions to write the reason that is there already", wrote)
		}
		b.putNodes("n2 cpu=2")
		synctest.Wait()
		if node := b.pod("web").Spec.NodeName; node != "n2" {
			t.Errorf("after n2 has joined the pod is on %q", node)
		}
	})
}

// TestFreedRoomIsUsed: the end of a pod lets another in.
func TestFreedRoomIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.putNodes("n1 cpu=1")
		b.putPods("a cpu=1")
		b.run()
		synctest.Wait()
		b.putPods("b cpu=1")
		synctest.Wait()
		if got := b.message("b"); !strings.Contains(got, "cpu short by 1") {
			t.Fatalf("b waits because %q", got)
		}
		b.txn(raftstore.Txn{Then: []raftstore.Op{raftstore.Delete("pods/default/a")}})
		synctest.Wait()
		if node := b.pod("b").Spec.NodeName; node != "n1" {
			t.Errorf("after a has gone, b is on %q", node)
		}
	})
}

// TestMessagesAreNotRewrittenTooOften: in a cluster where reasons change all the
// time, a pod's is written at most every messagePeriod, and the last one is.
func TestMessagesAreNotRewrittenTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.putNodes("n1 cpu=1")
		b.putPods("web cpu=10")
		b.run()
		synctest.Wait()
		first := b.message("web")
		before := b.store.View().Revision()
		for i := range 5 {
			b.putNodes(fmt.Sprintf("n1 cpu=%d", 2+i))
			synctest.Wait()
		}
		if got := b.message("web"); got != first || b.store.View().Revision() != before+5 {
			t.Fatalf("message %q, %d revisions; want it unchanged so soon", got, b.store.View().Revision()-before)
		}
		time.Sleep(messagePeriod)
		synctest.Wait()
		if got := b.message("web"); !strings.Contains(got, "cpu short by 4") {
			t.Errorf("message %q, want the newest: short by 4", got)
		}
	})
}

// interfere makes f run once, in the middle of the next decision: after the view was
// taken, before anything is committed.
func interfere(t *testing.T, f func()) {
	t.Helper()
	done := false
	filters = append(filters, func(*class, *node, func(Reason) bool) {
		if !done {
			done = true
			f()
		}
	})
	t.Cleanup(func() { filters = filters[:len(filters)-1] })
}

// TestPreemptionsAreCommittedTogether: decisions whose victims no budget counts share
// transactions, so that making room for many costs no more round trips than binding them.
func TestPreemptionsAreCommittedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		const nodes = 60
		for i := range nodes {
			b.putNodes(fmt.Sprintf("n%d cpu=1", i))
			b.putPods(fmt.Sprintf("low-%d cpu=1 node=n%d priority=0", i, i))
		}
		var high []object.Object
		for i := range nodes {
			high = append(high, parsePods(t, fmt.Appendf(nil, "high-%d cpu=1 priority=9", i))[0])
		}
		b.put(high...)
		before := b.store.View().Revision()
		b.run()
		synctest.Wait()
		expected := map[string]bool{}
		for i := range nodes {
			pod := b.pod(fmt.Sprint("high-", i))
			expected[pod.Status.NominatedNodeName] = true
			if low := b.pod(fmt.Sprint("low-", i)); !object.Deleting(low) {
				t.Errorf("%s was to make room", low.Name)
			}
		}
		if len(expected) != nodes || expected[""] {
			t.Errorf("they are expected on %d nodes, want one on each of %d", len(expected), nodes)
		}
		if took := b.store.View().Revision() - before; took > 4 {
			t.Errorf("%d transactions, want one for about a hundred", took)
		}
	})
}

// TestConflictsAreDecidedAnew: a pod that changes between the decision and its
// commit keeps the change and is decided about again.
func TestConflictsAreDecidedAnew(t *testing.T) {
	var b *bench
	interfere(t, func() { b.putPods("web cpu=3") })
	synctest.Test(t, func(t *testing.T) {
		b = newBench(t)
		b.putNodes("n1 cpu=2\nn2 cpu=4")
		b.putNodes("n2 cpu=4 taint=soft:PreferNoSchedule") // n1 would be the first choice
		b.putPods("web cpu=1")
		b.run()
		synctest.Wait()
		pod := b.pod("web")
		if pod.Spec.NodeName != "n2" {
			t.Errorf("the pod that asks for 3 CPUs now is on %q, want n2", pod.Spec.NodeName)
		}
		if events := b.recorded(); len(events) != 1 {
			t.Errorf("events %q, want one: a conflict is no event", events)
		}
	})
}

// TestNodeGoesWhileDeciding: a pod is not bound to a node that has been removed
// meanwhile.
func TestNodeGoesWhileDeciding(t *testing.T) {
	var b *bench
	interfere(t, func() { b.txn(raftstore.Txn{Then: []raftstore.Op{raftstore.Delete("nodes/n1")}}) })
	synctest.Test(t, func(t *testing.T) {
		b = newBench(t)
		b.putNodes("n1")
		b.putPods("web")
		b.run()
		synctest.Wait()
		if node := b.pod("web").Spec.NodeName; node != "" {
			t.Errorf("bound to %s, which is gone", node)
		}
		if got := b.message("web"); !strings.Contains(got, "no nodes") {
			t.Errorf("message %q", got)
		}
		b.putNodes("n1 pods=1") // the binding that failed must not take its only place
		synctest.Wait()
		if node := b.pod("web").Spec.NodeName; node != "n1" {
			t.Errorf("after n1 is back the pod is on %q: %s", node, b.message("web"))
		}
	})
}

// TestPanicsAreRetried: a pod whose decision panics is reported, delays no other,
// and is tried again.
func TestPanicsAreRetried(t *testing.T) {
	panics := 0
	filters = append(filters, func(cl *class, _ *node, _ func(Reason) bool) {
		if cl.owner == "bad" && panics < 3 {
			panics++
			panic("no such thing")
		}
	})
	defer func() { filters = filters[:len(filters)-1] }()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.putNodes("n1")
		b.putPods("bad owner=bad\ngood")
		b.run()
		synctest.Wait()
		if b.pod("good").Spec.NodeName != "n1" || b.pod("bad").Spec.NodeName != "" {
			t.Fatal("want good bound and bad not")
		}
		found := false
		for _, e := range b.recorded() {
			found = found || strings.Contains(e, "pods/default/bad SchedulingError: panic: no such thing; next try in")
		}
		if !found {
			t.Errorf("events %q do not tell of the panic", b.recorded())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if node := b.pod("bad").Spec.NodeName; node != "n1" {
			t.Errorf("after %d panics bad is on %q, want n1", panics, node)
		}
	})
}

// TestSchedulerSurvivesCompaction: when history is discarded faster than it is read,
// everything is read anew.
func TestSchedulerSurvivesCompaction(t *testing.T) {
	b := newBench(t, func(cfg *raftstore.Config) { cfg.HistoryEvents = 10 })
	s := New(b.config())
	s.restart(b.leader.View())
	start := b.leader.View().Revision()
	for i := 0; ; i++ {
		b.putPods(fmt.Sprintf("p%d", i%50))
		if _, _, _, err := b.leader.Watch("", start).Poll(); err != nil {
			break // the scheduler's own watcher is no better off
		}
		if i == 100_000 {
			t.Fatal("the store does not compact")
		}
	}
	view := b.leader.View()
	if err := s.advance(view); err != nil {
		t.Fatal(err)
	}
	want := 0
	for range view.Prefix("pods/") {
		want++
	}
	if len(s.cluster.pending) != want || s.read != view.Revision() {
		t.Errorf("%d pods wait, up to revision %d; want %d at revision %d", len(s.cluster.pending), s.read, want, view.Revision())
	}
}

// TestExplain: the scheduler's answer from a view alone, for a pod that fits, one
// that does not, one that is bound, and none.
func TestExplain(t *testing.T) {
	b := newBench(t)
	b.putNodes("n1 cpu=1\nn2 cpu=4\nn3 taint=team NotReady cpu=1")
	b.putPods("fits cpu=500m\nlarge cpu=6\nbound node=n1 cpu=800m")
	for _, tt := range []struct{ pod, want string }{
		{"fits", "fits n2"},
		{"large", "0/3 nodes fit: 2 cpu short by 2 or more, 1 tainted team"},
		{"bound", "bound to n1"},
	} {
		e, err := Explain(b.store.View(), object.Key("pods/default/"+tt.pod))
		if err != nil || e.String() != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.pod, e, err, tt.want)
		}
	}
	e, _ := Explain(b.store.View(), "pods/default/large")
	if last := e.Nodes[2]; last.Node != "n3" || fmt.Sprint(last.Reasons) != "[tainted team not ready cpu short by 5]" {
		t.Errorf("n3: %v, want all that speaks against it", last)
	}
	if _, err := Explain(b.store.View(), "pods/default/none"); err == nil || !strings.Contains(err.Error(), "pods/default/none does not exist") {
		t.Errorf("error %v for a pod that does not exist", err)
	}
}

// TestRunChecksItsConfig: what cannot work is said at once.
func TestRunChecksItsConfig(t *testing.T) {
	if err := New(Config{}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "required") {
		t.Errorf("error %v, want one that names what is required", err)
	}
}

// TestFailedBindingsAreTakenBack: what was counted for a binding that could not be
// committed is free again, whatever the error, and the pod waits again.
func TestFailedBindingsAreTakenBack(t *testing.T) {
	b := newBench(t)
	b.putNodes("n1 cpu=1")
	b.putPods("web cpu=1 owner=web")
	for _, err := range []error{raftstore.ErrConflict, raftstore.ErrOutcomeUnknown, raftstore.ErrDeposed} {
		s := New(b.config())
		s.restart(b.leader.View())
		before := sums(s.cluster)
		decisions := s.cluster.place(s.cluster.untried(10))
		if len(decisions) != 1 || decisions[0].node != "n1" {
			t.Fatalf("decisions %+v, want web on n1", decisions)
		}
		s.settle(&result{decision: decisions[0], err: err}, testNow)
		if after := sums(s.cluster); after != before {
			t.Errorf("%v: before:\n%s\nafter:\n%s", err, before, after)
		}
	}
}
