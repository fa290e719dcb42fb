package controllers

import (
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	"github.com/holdfast-io/holdfast/raftstore"
	"github.com/holdfast-io/holdfast/raftstore/mvcc"
)

// sim runs the real plans over the real state machine without raft, goroutines or
// time: whoever moves next is drawn by lot, and plans may be committed long after
// they were made. It is the runner with chance in the place of the loop.
type sim struct {
	t     testing.TB
	rand  *rand.Rand
	state *mvcc.State
	index uint64
	seen  int64 // the runner has noted events up to this revision
	r     *runner
	now   time.Time
	late  []lateCommit
	// check is called after every transaction that changed something.
	check func()
	// jobs: pods that are ready succeed in the end.
	jobs bool
}

type lateCommit struct {
	c       *controller
	key     object.Key
	outcome outcome
}

// histories is how many random histories each simulation plays: make sim-controllers
// plays many, the suite a few.
var histories = flag.Int("controllers.histories", 0, "random histories that each simulation plays; 0: a few")

func historiesOr(few int) int {
	if *histories > 0 {
		return *histories
	}
	if testing.Short() {
		return (few + 2) / 3
	}
	return few
}

// firstSeeds returns 0 … n-1.
func firstSeeds(n int) []int {
	seeds := make([]int, n)
	for i := range seeds {
		seeds[i] = i
	}
	return seeds
}

// simView is the state machine's newest root as the plans read it.
type simView struct{ root *mvcc.Root }

func (v simView) Prefix(prefix string) iter.Seq[raftstore.KeyValue] {
	return v.root.Range(prefix, mvcc.PrefixEnd(prefix), v.root.Revision())
}

func (v simView) Value(key string) ([]byte, int64, bool) {
	kv, ok := v.root.Get(key, v.root.Revision())
	return kv.Value, kv.Mod, ok
}

func (v simView) Values(prefix string) iter.Seq2[[]byte, int64] {
	return func(yield func([]byte, int64) bool) {
		for kv := range v.Prefix(prefix) {
			if !yield(kv.Value, kv.Mod) {
				return
			}
		}
	}
}

func newSim(t testing.TB, seed uint64) *sim {
	s := &sim{t: t, rand: rand.New(rand.NewPCG(seed, 1)), state: mvcc.New(), now: testNow, check: func() {}}
	uid, suffix := sequential("uid-"), sequential("p")
	s.r = &runner{
		log:         slog.New(slog.DiscardHandler),
		metrics:     newMetrics(nil),
		controllers: []*controller{newDeployments(uid), newReplicaSets(uid, suffix), newCollector(), newNamespaces(), newDefinitions(), newStatefulSets(uid), newDaemonSets(uid, suffix), newJobs(uid, suffix), newCronJobs(uid), newBudgets(), newQuotas(), newIngresses()},
	}
	s.r.load(s.view(), s.now)
	s.put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "n1"}}) // where all pods run
	return s
}

func (s *sim) view() simView { return simView{s.state.Root()} }

// txn applies a transaction and reports whether its conditions held.
func (s *sim) txn(txn raftstore.Txn) bool {
	s.t.Helper()
	s.index++
	data, err := proto.Marshal(&raftv1.Command{Op: &raftv1.Command_Batch{Batch: &raftv1.Batch{Txns: []*raftv1.Txn{{Compares: txn.If, Then: txn.Then}}}}})
	if err != nil {
		s.t.Fatal(err)
	}
	applied, err := s.state.Apply(mvcc.Entry{Index: s.index, Term: 1, Data: data})
	if err != nil {
		s.t.Fatal(err)
	}
	if applied.Changed {
		root := s.state.Root()
		for ev := range root.Events(s.seen) {
			s.r.note(ev, s.now)
		}
		s.seen = root.Revision()
		s.check()
	}
	return applied.Results[0].GetSucceeded()
}

// put stores an object as a person or an agent would.
func (s *sim) put(obj object.Object) {
	s.t.Helper()
	data, err := object.Encode(obj)
	if err != nil {
		s.t.Fatal(err)
	}
	s.txn(raftstore.Txn{Then: []raftstore.Op{raftstore.Put(string(object.KeyOf(obj)), data)}})
}

func (s *sim) delete(obj object.Object) {
	s.t.Helper()
	if object.MarkDeleted(obj, s.now, nil) {
		s.erase(obj)
	} else {
		s.put(obj)
	}
}

func (s *sim) erase(obj object.Object) {
	s.t.Helper()
	s.txn(raftstore.Txn{Then: []raftstore.Op{raftstore.Delete(string(object.KeyOf(obj)))}})
}

func (s *sim) pods() []*corev1.Pod { return object.List[*corev1.Pod](s.view(), "") }

// controllers lets one controller make one plan, and commits it at once or later.
// It reports whether any had something to do.
func (s *sim) controllers(mayBeLate bool) bool {
	s.t.Helper()
	for _, i := range s.rand.Perm(len(s.r.controllers)) {
		c := s.r.controllers[i]
		key, ok := c.queue.pop(s.now)
		if !ok {
			continue
		}
		o := s.r.planOne(c, s.view(), key, s.now)
		if o.err != nil {
			s.t.Fatalf("%s %s: %v", c.name, key, o.err)
		}
		commit := lateCommit{c, key, o}
		if len(o.txn.Then) > 0 {
			c.queue.begin(key)
			if mayBeLate && s.rand.IntN(3) == 0 {
				s.late = append(s.late, commit)
				return true
			}
		}
		s.commit(commit)
		return true
	}
	return false
}

func (s *sim) commit(l lateCommit) {
	s.t.Helper()
	o := l.outcome
	if len(o.txn.Then) > 0 && !s.txn(o.txn) {
		l.c.queue.conflicted(l.key, s.now)
		return
	}
	l.c.queue.done(l.key)
	if o.more {
		l.c.queue.add(l.key, s.now)
	} else if o.again > 0 {
		l.c.queue.add(l.key, s.now.Add(o.again))
	}
}

// commitLate commits one of the plans that were put off.
func (s *sim) commitLate() bool {
	if len(s.late) == 0 {
		return false
	}
	i := s.rand.IntN(len(s.late))
	l := s.late[i]
	s.late = slices.Delete(s.late, i, i+1)
	s.commit(l)
	return true
}

// brokenImage is what never becomes ready.
const brokenImage = "broken"

// newLeader ends the leadership and begins the next one. Of what was on its way, each
// transaction has been committed or never will be; the new leader knows nothing but
// the state.
func (s *sim) newLeader() {
	s.t.Helper()
	for _, l := range s.late {
		if s.rand.IntN(2) == 0 {
			s.txn(l.outcome.txn)
		}
	}
	s.late = nil
	for _, c := range s.r.controllers {
		c.queue = nil
	}
	s.r.load(s.view(), s.now)
}

// agent moves one pod a step on: bound, running, ready; or ended and gone.
func (s *sim) agent() bool {
	s.t.Helper()
	pods := s.pods()
	for _, i := range s.rand.Perm(len(pods)) {
		pod := pods[i]
		switch {
		case object.Deleting(pod) && len(pod.Finalizers) > 0:
			if nothingRuns(pod) && pod.Annotations[object.RemovedAnnotation] != "" || pod.Spec.NodeName == "" {
				continue
			}
			if !object.PodPhaseFinal(pod) {
				pod.Status.Phase = corev1.PodFailed
			}
			pod.Annotations = with(pod.Annotations, object.RemovedAnnotation, "true")
			s.put(pod)
		case object.Deleting(pod):
			s.erase(pod)
		case object.PodPhaseFinal(pod):
			continue
		case pod.Spec.NodeName == "":
			if pod.Spec.NodeName = daemonNode(pod); pod.Spec.NodeName == "" {
				pod.Spec.NodeName = "n1"
			}
			s.put(pod)
		case pod.Status.Phase != corev1.PodRunning:
			pod.Status.Phase = corev1.PodRunning
			s.put(pod)
		case !object.PodReady(pod) && (len(pod.Spec.Containers) == 0 || pod.Spec.Containers[0].Image != brokenImage):
			setReady(pod, corev1.ConditionTrue, s.now)
			s.put(pod)
		case s.jobs:
			pod.Status.Phase = corev1.PodSucceeded
			s.put(pod)
		default:
			continue
		}
		return true
	}
	return false
}

func setReady(pod *corev1.Pod, status corev1.ConditionStatus, now time.Time) {
	object.SetPodCondition(pod, corev1.PodCondition{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.NewTime(now)})
}

// settle lets everybody do what is left to do, and the clock run on to the next
// thing that waits for it. It fails if that does not come to an end.
func (s *sim) settle() {
	s.t.Helper()
	for range 20_000 {
		if s.commitLate() || s.controllers(false) || s.agent() {
			continue
		}
		var next time.Time
		for _, c := range s.r.controllers {
			if due := c.queue.next(); !due.IsZero() && (next.IsZero() || due.Before(next)) {
				next = due
			}
		}
		if next.IsZero() {
			return
		}
		s.now = next
	}
	s.t.Fatal("it does not come to rest")
}

// simDeployment returns a Deployment as the API would store it.
func simDeployment(t testing.TB, text string) *appsv1.Deployment {
	t.Helper()
	d := one(t, []byte(text)).deployment()
	d.ResourceVersion = ""
	object.Default(d)
	return d
}

// serving returns the pods that are available.
func (s *sim) serving(minReady int32) []*corev1.Pod {
	return slices.DeleteFunc(s.pods(), func(pod *corev1.Pod) bool {
		ok, _ := object.PodAvailable(pod, minReady, s.now)
		return !ok || object.Deleting(pod) || object.PodPhaseFinal(pod)
	})
}

// enough returns how many pods are available, without those that their sets, scaled
// down, are about to remove.
func (s *sim) enough(minReady int32) int {
	serving := s.serving(minReady)
	n := len(serving)
	for _, rs := range object.List[*appsv1.ReplicaSet](s.view(), "") {
		n -= object.Surplus(rs, serving, s.now)
	}
	return n
}

// evict does what the API does with a random pod's eviction, for a budget of least
// pods: it goes if the others are enough, and else it is to be replaced first.
func (s *sim) evict(least int32, minReady int32) {
	s.t.Helper()
	serving := s.serving(minReady)
	if len(serving) == 0 {
		return
	}
	pod := serving[s.rand.IntN(len(serving))]
	for _, other := range serving {
		if object.ReplaceFirst(other, s.now) > 0 {
			pod = other // who drains tries again
		}
	}
	if int32(s.enough(minReady)) <= least {
		pod.Annotations = with(pod.Annotations, object.ReplaceFirstAnnotation, s.now.Add(object.ReplaceFirstFor).Format(time.RFC3339))
	} else {
		object.MarkDeleted(pod, s.now, nil)
	}
	owner, ok := object.Get[*appsv1.ReplicaSet](s.view(), replicaSetResource.Key(pod.Namespace, object.ControllerOf(pod).Name))
	if !ok {
		return
	}
	txn := raftstore.Txn{}
	for _, obj := range []object.Object{pod, owner} {
		data, err := object.Encode(obj)
		if err != nil {
			s.t.Fatal(err)
		}
		txn.Then = append(txn.Then, raftstore.Put(string(object.KeyOf(obj)), data))
	}
	s.txn(txn)
}

// TestRolloutsKeepTheirBounds plays random rollouts: new templates at any moment,
// scale-ups, drains, plans that are committed late, agents of any speed, new leaders. At
// every revision, the pods that are not being deleted are at most replicas + maxSurge,
// and one more while one is to be replaced before it is evicted; and from the first
// time that all are available, at least replicas − maxUnavailable of them stay so.
func TestRolloutsKeepTheirBounds(t *testing.T) {
	// 155: the template changes when pods have just become available by time alone,
	// and no status says so yet.
	for _, seed := range append([]int{155}, firstSeeds(historiesOr(30))...) {
		s := newSim(t, uint64(seed))
		replicas := 1 + s.rand.IntN(6)
		surge, unavailable := s.rand.IntN(4), s.rand.IntN(3)
		minReady := s.rand.IntN(2) * 10
		d := simDeployment(t, fmt.Sprintf("web replicas=%d image=v0 surge=%d unavailable=%d minReady=%d deadline=30 history=2", replicas, surge, unavailable, minReady))
		most, least := rollingBounds(d)
		most, least = int32(replicas)+most, int32(replicas)-least
		complete, asked := false, time.Time{}
		s.check = func() {
			live, available, most := int32(0), int32(0), most
			for _, pod := range s.pods() {
				if object.Deleting(pod) || object.PodPhaseFinal(pod) {
					continue
				}
				live++
				if ok, _ := object.PodAvailable(pod, int32(minReady), s.now); ok {
					available++
				}
				if object.ReplaceFirst(pod, s.now) > 0 {
					asked = s.now
				}
			}
			if !asked.IsZero() {
				most++ // the one in its place may be there for a while
			}
			complete = complete || available >= int32(replicas) && s.enough(int32(minReady)) >= replicas
			if live > most || complete && available < least {
				t.Fatalf("seed %d, revision %d: %d pods, %d available; want at most %d, at least %d (replicas %d, surge %d, unavailable %d)",
					seed, s.state.Root().Revision(), live, available, most, least, replicas, surge, unavailable)
			}
		}
		s.put(d)
		for step := range 600 {
			if step%150 == 149 {
				s.newLeader()
			}
			switch n := s.rand.IntN(20); {
			case n < 9:
				s.controllers(true)
			case n < 11:
				s.commitLate()
			case n < 18:
				s.agent()
			case n < 19:
				s.now = s.now.Add(time.Duration(s.rand.IntN(5000)) * time.Millisecond)
			case step%7 == 0:
				s.update(d.Name, func(d *appsv1.Deployment) { d.Spec.Template = templateOf(fmt.Sprintf("v%d", s.rand.IntN(4)), "web") })
			case step%7 == 1 && replicas < 9:
				replicas, complete = replicas+1, false // the new one counts from when it has been there
				s.update(d.Name, func(d *appsv1.Deployment) { d.Spec.Replicas = new(int32(replicas)) })
				d.Spec.Replicas = new(int32(replicas))
				most, least = rollingBounds(d)
				most, least = int32(replicas)+most, int32(replicas)-least
			case step%7 > 3:
				s.evict(least, int32(minReady))
			}
		}
		s.settle()
		s.mustBeRolledOut(uint64(seed), d.Name)
	}
}

// TestRolloutsSurviveAnything plays the same with pods that fail, become unready or
// are deleted, with scaling and pausing. The bound above follows the largest
// replicas so far; the one below cannot hold. In the end all is as declared.
func TestRolloutsSurviveAnything(t *testing.T) {
	for seed := range historiesOr(30) {
		s := newSim(t, uint64(1000+seed))
		d := simDeployment(t, fmt.Sprintf("web replicas=3 image=v0 surge=%d unavailable=%d deadline=30 history=1", s.rand.IntN(3), s.rand.IntN(3)))
		strategies := []appsv1.DeploymentStrategyType{appsv1.RollingUpdateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType, appsv1.RecreateDeploymentStrategyType}
		if d.Spec.Strategy.Type = strategies[s.rand.IntN(3)]; d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
			d.Spec.Strategy.RollingUpdate = nil
		}
		most := int32(0)
		s.check = func() {
			d, ok := object.Get[*appsv1.Deployment](s.view(), deploymentResource.Key("default", "web"))
			if !ok {
				return
			}
			most = max(most, *d.Spec.Replicas+maxSurge(d))
			live := int32(0)
			for _, pod := range s.pods() {
				if !object.Deleting(pod) && !object.PodPhaseFinal(pod) {
					live++
				}
			}
			if live > most {
				t.Fatalf("seed %d, revision %d: %d pods, want at most %d", seed, s.state.Root().Revision(), live, most)
			}
		}
		s.put(d)
		for step := range 600 {
			if step%150 == 149 {
				s.newLeader()
			}
			switch n := s.rand.IntN(24); {
			case n < 9:
				s.controllers(true)
			case n < 11:
				s.commitLate()
			case n < 18:
				s.agent()
			case n < 19:
				s.now = s.now.Add(time.Duration(s.rand.IntN(5000)) * time.Millisecond)
			case n < 22:
				s.disturb()
			case step%3 == 0:
				s.update(d.Name, func(d *appsv1.Deployment) {
					switch s.rand.IntN(4) {
					case 0:
						d.Spec.Replicas = new(int32(s.rand.IntN(7)))
					case 1:
						d.Spec.Paused = !d.Spec.Paused
					default:
						d.Spec.Template = templateOf(fmt.Sprintf("v%d", s.rand.IntN(4)), "web")
					}
				})
			}
		}
		s.update(d.Name, func(d *appsv1.Deployment) { d.Spec.Paused = false })
		s.settle()
		s.mustBeRolledOut(uint64(1000+seed), d.Name)
	}
}

// disturb does something bad to a random pod.
func (s *sim) disturb() {
	pods := s.pods()
	if len(pods) == 0 {
		return
	}
	pod := pods[s.rand.IntN(len(pods))]
	if object.Deleting(pod) || object.PodPhaseFinal(pod) || pod.Spec.NodeName == "" {
		return
	}
	switch s.rand.IntN(3) {
	case 0:
		setReady(pod, corev1.ConditionFalse, s.now)
		s.put(pod)
	case 1:
		pod.Status.Phase = corev1.PodFailed
		setReady(pod, corev1.ConditionFalse, s.now)
		s.put(pod)
	case 2:
		s.delete(pod)
	}
}

// update changes a Deployment's spec as the API would.
func (s *sim) update(name string, change func(*appsv1.Deployment)) {
	s.t.Helper()
	d, ok := object.Get[*appsv1.Deployment](s.view(), deploymentResource.Key("default", name))
	if !ok {
		s.t.Fatalf("deployment %s is gone", name)
	}
	change(d)
	object.Default(d)
	d.Generation++
	s.put(d)
}

// mustBeRolledOut fails unless the Deployment is complete, by its pods and by its
// own word, and at rest.
func (s *sim) mustBeRolledOut(seed uint64, name string) {
	s.t.Helper()
	d, _ := object.Get[*appsv1.Deployment](s.view(), deploymentResource.Key("default", name))
	want := *d.Spec.Replicas
	live := int32(0)
	for _, pod := range s.pods() {
		if object.PodPhaseFinal(pod) {
			continue
		}
		live++
		if image := pod.Spec.Containers[0].Image; image != d.Spec.Template.Spec.Containers[0].Image || !object.PodReady(pod) || object.Deleting(pod) {
			s.t.Fatalf("seed %d: at rest pod %s has image %s, ready %v, deleting %v; want %s, ready", seed, pod.Name, image, object.PodReady(pod), object.Deleting(pod), d.Spec.Template.Spec.Containers[0].Image)
		}
	}
	if live != want || !complete(d, &d.Status) || progressing(&d.Status).Reason != reasonComplete {
		s.t.Fatalf("seed %d: at rest %d pods, want %d; status %+v", seed, live, want, d.Status)
	}
	sets := object.List[*appsv1.ReplicaSet](s.view(), "default")
	if limit := int(*d.Spec.RevisionHistoryLimit); len(sets) > limit+1 {
		s.t.Fatalf("seed %d: at rest %d ReplicaSets, want at most %d", seed, len(sets), limit+1)
	}
	newest := int64(0)
	for _, rs := range sets {
		newest = max(newest, revisionOf(rs))
	}
	if d.Annotations[RevisionAnnotation] != fmt.Sprint(newest) {
		s.t.Fatalf("seed %d: revision %s, but the newest ReplicaSet has %d", seed, d.Annotations[RevisionAnnotation], newest)
	}
}

// TestDeletingADeploymentLeavesNothing: the collector follows the owners down.
func TestDeletingADeploymentLeavesNothing(t *testing.T) {
	s := newSim(t, 1)
	d := simDeployment(t, "web replicas=3 image=v1")
	s.put(d)
	s.settle()
	if n := len(s.pods()); n != 3 {
		t.Fatalf("%d pods, want 3", n)
	}
	d, _ = object.Get[*appsv1.Deployment](s.view(), deploymentResource.Key("default", "web"))
	s.delete(d)
	s.settle()
	for _, prefix := range []string{"pods/", "replicasets.apps/", "deployments.apps/"} {
		for kv := range s.view().Prefix(prefix) {
			t.Errorf("%s is left", kv.Key)
		}
	}
}

// TestDeletingANamespaceLeavesNothing: contents of every kind, pods that take their
// time, and the namespace itself.
func TestDeletingANamespaceLeavesNothing(t *testing.T) {
	s := newSim(t, 2)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", UID: "ns"}, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}}
	s.put(ns)
	s.put(simDeployment(t, "web replicas=3 image=v1"))
	for i := range 2*maxWrites + 5 {
		s.put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("settings-%d", i), Namespace: "default", UID: types.UID(fmt.Sprint("cm", i))}})
	}
	other := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings", Namespace: "other", UID: "other"}}
	s.put(other)
	s.settle()
	s.delete(ns)
	s.settle()
	for kv := range s.view().Prefix("") {
		if kv.Key != string(object.KeyOf(other)) && kv.Key != "nodes/n1" {
			t.Errorf("%s is left", kv.Key)
		}
	}
	if _, _, ok := s.view().Value(string(object.KeyOf(other))); !ok {
		t.Error("another namespace was emptied as well")
	}
}

// TestIndexFollowsChanges: after any changes, the index that followed them is the
// one that reading everything anew gives.
func TestIndexFollowsChanges(t *testing.T) {
	s := newSim(t, 3)
	s.put(simDeployment(t, "web replicas=4 image=v0 surge=1 unavailable=1"))
	for i := range 800 {
		switch s.rand.IntN(12) {
		case 8:
			s.put(one(t, fmt.Appendf(nil, "stray-%d labels=app=%s node=n%d", i%5, []string{"web", "other"}[i%2], i%3)).pod())
		case 9:
			if pods := s.pods(); len(pods) > 0 {
				pod := pods[s.rand.IntN(len(pods))]
				pod.Labels["app"] = []string{"web", "other"}[i%2]
				s.put(pod)
			}
		case 10:
			if pods := s.pods(); len(pods) > 0 {
				s.erase(pods[s.rand.IntN(len(pods))])
			}
		case 11:
			node := one(t, []byte("n2 taint=node.kubernetes.io/unreachable:NoExecute")).node()
			if s.put(node); i%2 == 0 {
				s.erase(node)
			}
		case 0:
			s.disturb()
		case 1:
			s.update("web", func(d *appsv1.Deployment) { d.Spec.Template = templateOf(fmt.Sprintf("v%d", s.rand.IntN(3)), "web") })
		case 2, 3:
			s.agent()
		default:
			s.controllers(false)
		}
	}
	followed := fmt.Sprintf("%+v", *s.r.index)
	s.r.load(s.view(), s.now)
	if anew := fmt.Sprintf("%+v", *s.r.index); anew != followed {
		t.Errorf("index followed:\n%s\nread anew:\n%s", followed, anew)
	}
}

// TestUnknownOutcomeCreatesOnce: a transaction whose outcome stayed unknown may be
// committed after the one that was planned in its place. Only one of them counts,
// even where the set's status is the same before and after.
func TestUnknownOutcomeCreatesOnce(t *testing.T) {
	s := newSim(t, 4)
	s.put(one(t, []byte("web replicas=1 status=1/0/0")).replicaSet())
	rs, _ := object.Get[*appsv1.ReplicaSet](s.view(), "replicasets.apps/default/web")
	ended := one(t, []byte("web-a Succeeded")).pod()
	ended.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(rs, replicaSetKind)}
	s.put(ended)
	plan := func() outcome {
		return s.r.planOne(s.r.controllers[1], s.view(), object.KeyOf(rs), s.now)
	}
	first, second := plan(), plan()
	if first.again = 0; len(first.txn.Then) != 2 || !s.txn(second.txn) {
		t.Fatalf("planned %v, want a pod and the set, committed", first.txn.Then)
	}
	if s.txn(first.txn) {
		t.Error("the first transaction was committed beside the second")
	}
	if n := len(s.pods()); n != 2 {
		t.Errorf("%d pods, want the one that ended and one in its place", n)
	}
}
