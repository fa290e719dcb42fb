package scheduler

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// testNow is the time at which every case of testdata happens.
var testNow = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// TestPlace runs testdata/*.txtar. Each file states one rule in its comment, the
// nodes with what is bound to them, the pods that wait, and the decisions under
// "want", in the order in which they are made. To accept new behavior run with
// -update, then review the diff as part of the change.
func TestPlace(t *testing.T) {
	golden.Run(t, "testdata/*.txtar", func(t *testing.T, in golden.Input) string {
		c := newCluster()
		if data, ok := in.Lookup("objects"); ok { // of other kinds, as manifests
			docs, err := object.ParseManifests("objects", data)
			if err != nil {
				t.Fatal(err)
			}
			for _, doc := range docs {
				object.Default(doc.Object)
				switch obj := doc.Object.(type) {
				case *corev1.Namespace:
					c.setNamespace(obj)
				case *corev1.PersistentVolume:
					c.setVolume(obj)
				case *corev1.PersistentVolumeClaim:
					c.setClaim(obj)
				case *storagev1.StorageClass:
					c.setStorageClass(obj)
				case *policyv1.PodDisruptionBudget:
					c.setBudget(obj)
				}
			}
		}
		for _, node := range parseNodes(t, in.File("nodes")) {
			c.setNode(node)
		}
		if data, ok := in.Lookup("bound"); ok {
			for _, pod := range parsePods(t, data) {
				c.setPod(pod)
			}
		}
		for _, pod := range parsePods(t, in.File("pods")) {
			c.setPod(pod)
		}
		var b strings.Builder
		tell := func() {
			for _, d := range c.place(c.untried(1000)) {
				if d.err != nil {
					t.Fatal(d.err)
				}
				name := strings.TrimPrefix(string(d.pod.key), "pods/default/")
				if d.node == "" {
					fmt.Fprintf(&b, "%s: %s\n", name, d.message)
				} else {
					fmt.Fprintf(&b, "%s -> %s (%s)\n", name, d.node, d.message)
				}
				if d.expect != "" {
					fmt.Fprintf(&b, "    is expected on %s\n", d.expect)
				}
			}
		}
		tell()
		if data, ok := in.Lookup("gone"); ok { // afterwards, bound pods that end
			b.WriteString("-- and then\n")
			for _, f := range parseLines(t, data) {
				c.removePod(object.Key("pods/default/" + f.name))
			}
			c.wake(testNow)
			tell()
		}
		if _, ok := in.Lookup("why"); ok {
			for key, p := range c.pending {
				e := c.explain(p)
				fmt.Fprintf(&b, "why %s: %s\n", key, e)
				for _, f := range e.Filters() {
					fmt.Fprintf(&b, "    %s: %s\n", f.Reason, strings.Join(f.Nodes, " "))
				}
				if remedies := e.Remedies(); len(remedies) > 0 {
					fmt.Fprintf(&b, "    fits if %s\n", strings.Join(remedies, ", or "))
				}
			}
		}
		return b.String()
	})
}

// fields splits a line into its name, words and key=value pairs; each call of use
// takes one away, and done fails for what is left.
type fields struct {
	t     testing.TB
	line  string
	name  string
	words map[string]string // word or key to value
}

func parseLines(t testing.TB, data []byte) []fields {
	t.Helper()
	var lines []fields
	for line := range strings.Lines(string(data)) {
		parts := strings.Fields(line)
		if len(parts) == 0 {
			continue
		}
		f := fields{t: t, line: strings.TrimSpace(line), name: parts[0], words: map[string]string{}}
		for _, part := range parts[1:] {
			k, v, _ := strings.Cut(part, "=")
			f.words[k] = v
		}
		lines = append(lines, f)
	}
	return lines
}

func (f fields) use(word string) (value string, ok bool) {
	value, ok = f.words[word]
	delete(f.words, word)
	return value, ok
}

func (f fields) done() {
	f.t.Helper()
	for word := range f.words {
		f.t.Fatalf("%s: unknown word %q", f.line, word)
	}
}

func (f fields) resources(names ...corev1.ResourceName) corev1.ResourceList {
	f.t.Helper()
	list := corev1.ResourceList{}
	for _, name := range names {
		if v, ok := f.use(string(name)); ok {
			q, err := resource.ParseQuantity(v)
			if err != nil {
				f.t.Fatalf("%s: %s: %v", f.line, name, err)
			}
			list[name] = q
		}
	}
	return list
}

// parseNodes reads nodes: cpu=4 memory=8Gi pods=110 (by default), example.com/gpu=1
// (capacity), NotReady,
// cordoned, taint=key[:effect] (NoSchedule by default), label=key:value.
func parseNodes(t testing.TB, data []byte) []*corev1.Node {
	t.Helper()
	var nodes []*corev1.Node
	for _, f := range parseLines(t, data) {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: f.name}}
		node.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110")}
		maps.Copy(node.Status.Allocatable, f.resources(corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourcePods))
		node.Status.Capacity = f.resources("example.com/gpu")
		status := corev1.ConditionTrue
		if _, ok := f.use("NotReady"); ok {
			status = corev1.ConditionUnknown
		}
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status}}
		_, node.Spec.Unschedulable = f.use("cordoned")
		if v, ok := f.use("taint"); ok {
			key, effect, found := strings.Cut(v, ":")
			if !found {
				effect = string(corev1.TaintEffectNoSchedule)
			}
			node.Spec.Taints = []corev1.Taint{{Key: key, Effect: corev1.TaintEffect(effect)}}
		}
		if v, ok := f.use("label"); ok {
			node.Labels = labelsOf(v)
		}
		if v, ok := f.use("images"); ok {
			node.Status.Images = []corev1.ContainerImage{{Names: strings.Split(v, ","), SizeBytes: 1 << 30}}
		}
		f.done()
		nodes = append(nodes, node)
	}
	return nodes
}

// labelsOf reads key:value,key:value.
func labelsOf(text string) map[string]string {
	set := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(pair, ":")
		set[key] = value
	}
	return set
}

// termOf reads a term of pods and where they are: key:value@topologyKey.
func termOf(text string) corev1.PodAffinityTerm {
	chosen, key, _ := strings.Cut(text, "@")
	return corev1.PodAffinityTerm{LabelSelector: &metav1.LabelSelector{MatchLabels: labelsOf(chosen)}, TopologyKey: key}
}

// placement reads what a pod says of its neighbors: near=app:db@zone apart=app:web@host
// rather-near= rather-apart= (weight 10), spread=1:app:web@zone (maxSkew first)
// rather-spread=, of its nodes: on=zone:a|b, rather-on=zone:a, port=80, claim=data.
func (f fields) placement(pod *corev1.Pod) {
	a := &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{}, PodAffinity: &corev1.PodAffinity{}, PodAntiAffinity: &corev1.PodAntiAffinity{}}
	used := false
	with := func(word string, fn func(string)) {
		if v, ok := f.use(word); ok {
			used = true
			fn(v)
		}
	}
	nodes := func(v string) corev1.NodeSelectorTerm {
		key, values, _ := strings.Cut(v, ":")
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpIn, Values: strings.Split(values, "|")}}}
	}
	with("near", func(v string) {
		a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution = []corev1.PodAffinityTerm{termOf(v)}
	})
	with("apart", func(v string) {
		a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution = []corev1.PodAffinityTerm{termOf(v)}
	})
	with("rather-near", func(v string) {
		a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.WeightedPodAffinityTerm{{Weight: 10, PodAffinityTerm: termOf(v)}}
	})
	with("rather-apart", func(v string) {
		a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.WeightedPodAffinityTerm{{Weight: 10, PodAffinityTerm: termOf(v)}}
	})
	with("on", func(v string) {
		a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{nodes(v)}}
	})
	with("rather-on", func(v string) {
		a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.PreferredSchedulingTerm{{Weight: 1, Preference: nodes(v)}}
	})
	if used {
		pod.Spec.Affinity = a
	}
	for word, action := range map[string]corev1.UnsatisfiableConstraintAction{"spread": corev1.DoNotSchedule, "rather-spread": corev1.ScheduleAnyway} {
		with(word, func(v string) {
			skew, rest, _ := strings.Cut(v, ":")
			term := termOf(rest)
			c := corev1.TopologySpreadConstraint{TopologyKey: term.TopologyKey, LabelSelector: term.LabelSelector, WhenUnsatisfiable: action}
			if _, err := fmt.Sscan(skew, &c.MaxSkew); err != nil {
				f.t.Fatalf("%s: %v", f.line, err)
			}
			pod.Spec.TopologySpreadConstraints = append(pod.Spec.TopologySpreadConstraints, c)
		})
	}
	with("port", func(v string) {
		port := corev1.ContainerPort{Protocol: corev1.ProtocolTCP}
		if _, err := fmt.Sscan(v, &port.HostPort); err != nil {
			f.t.Fatalf("%s: %v", f.line, err)
		}
		pod.Spec.Containers[0].Ports = []corev1.ContainerPort{port}
	})
	with("claim", func(v string) {
		pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: v}}}}
	})
	with("image", func(v string) { pod.Spec.Containers[0].Image = v })
	with("label", func(v string) { pod.Labels = labelsOf(v) })
	with("class", func(v string) { pod.Spec.PriorityClassName = v })
	with("never-preempts", func(string) { pod.Spec.PreemptionPolicy = new(corev1.PreemptNever) })
}

// parsePods reads pods: cpu=100m memory=64Mi owner=web node=n1 age=1m priority=5
// selector=key:value tolerates=key, deleting, Succeeded, scheduler=other, and what
// placement reads.
func parsePods(t testing.TB, data []byte) []*corev1.Pod {
	t.Helper()
	var pods []*corev1.Pod
	for _, f := range parseLines(t, data) {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: f.name, Namespace: "default", UID: types.UID(f.name), CreationTimestamp: metav1.NewTime(testNow)}}
		pod.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: f.resources(corev1.ResourceCPU, corev1.ResourceMemory, "example.com/gpu")}}}
		pod.Spec.NodeName, _ = f.use("node")
		pod.Spec.SchedulerName, _ = f.use("scheduler")
		if v, ok := f.use("owner"); ok {
			pod.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: v, UID: types.UID(v), Controller: new(true)}}
		}
		if v, ok := f.use("age"); ok {
			age, err := time.ParseDuration(v)
			if err != nil {
				t.Fatalf("%s: %v", f.line, err)
			}
			pod.CreationTimestamp = metav1.NewTime(testNow.Add(-age))
		}
		if v, ok := f.use("priority"); ok {
			var n int32
			if _, err := fmt.Sscan(v, &n); err != nil {
				t.Fatalf("%s: %v", f.line, err)
			}
			pod.Spec.Priority = &n
		}
		if v, ok := f.use("selector"); ok {
			key, value, _ := strings.Cut(v, ":")
			pod.Spec.NodeSelector = map[string]string{key: value}
		}
		if v, ok := f.use("tolerates"); ok {
			pod.Spec.Tolerations = []corev1.Toleration{{Key: v, Operator: corev1.TolerationOpExists}}
		}
		if _, ok := f.use("deleting"); ok {
			pod.DeletionTimestamp = new(metav1.NewTime(testNow))
		}
		f.placement(pod)
		pod.Status.Phase = corev1.PodPending
		if _, ok := f.use("Succeeded"); ok {
			pod.Status.Phase = corev1.PodSucceeded
		}
		f.done()
		pods = append(pods, pod)
	}
	return pods
}

// TestNodesAreNeverOverfilled: whatever comes and goes, no node is given more than it
// has, and the sums that were kept change by change are those of a cluster that is
// read anew.
func TestNodesAreNeverOverfilled(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 2))
		c := newCluster()
		pods := map[object.Key]*corev1.Pod{}
		nodes := map[string]*corev1.Node{}
		for step := range 300 {
			switch n := r.IntN(10); {
			case n == 0:
				node := parseNodes(t, fmt.Appendf(nil, "n%d cpu=%d memory=%dGi pods=%d", r.IntN(6), 1+r.IntN(4), 1+r.IntN(4), 1+r.IntN(8)))[0]
				if old := nodes[node.Name]; old != nil {
					node.Status.Allocatable = old.Status.Allocatable // shrinking overfills, which is nobody's fault
					node.Spec.Unschedulable = r.IntN(2) == 0
				}
				nodes[node.Name] = node
				c.setNode(node)
			case n == 1 && len(nodes) > 0:
				name := slices.Sorted(maps.Keys(nodes))[r.IntN(len(nodes))]
				if slices.ContainsFunc(slices.Collect(maps.Values(pods)), func(p *corev1.Pod) bool { return p.Spec.NodeName == name }) {
					continue
				}
				delete(nodes, name)
				c.removeNode(name)
			case n < 6:
				pod := parsePods(t, fmt.Appendf(nil, "p%d cpu=%dm memory=%dMi owner=o%d", step, r.IntN(1500), r.IntN(1500), r.IntN(3)))[0]
				pods[object.KeyOf(pod)] = pod
				c.setPod(pod)
			case n < 8 && len(pods) > 0:
				key := slices.Sorted(maps.Keys(pods))[r.IntN(len(pods))]
				if pod := pods[key]; r.IntN(2) == 0 {
					pod.Status.Phase = corev1.PodSucceeded
					c.setPod(pod)
				} else {
					delete(pods, key)
					c.removePod(key)
				}
			default:
				c.retryAll()
				for _, d := range c.place(c.untried(10)) {
					if d.err != nil {
						t.Fatal(d.err)
					}
					if d.node != "" {
						pods[d.pod.key].Spec.NodeName = d.node
						c.setPod(pods[d.pod.key])
					}
				}
			}
			for name, n := range c.nodes {
				for i, used := range n.used.common {
					if all := n.allocatable.common[i]; n.exists && used > all {
						t.Fatalf("seed %d, step %d: %s uses %d of %d %s", seed, step, name, used, all, commonResources[i])
					}
				}
			}
		}
		anew := newCluster()
		for _, node := range nodes {
			anew.setNode(node)
		}
		for _, pod := range pods {
			anew.setPod(pod)
		}
		if got, want := sums(c), sums(anew); got != want {
			t.Fatalf("seed %d: kept:\n%s\nread anew:\n%s", seed, got, want)
		}
	}
}

func sums(c *cluster) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		n := c.nodes[name]
		fmt.Fprintf(&b, "%s exists=%v used=%v owners=%v\n", name, n.exists, n.used, n.owners)
	}
	for _, n := range c.order {
		fmt.Fprintf(&b, "%s ", n.name)
	}
	fmt.Fprintf(&b, "\nbound %v\npending %v\n", slices.Sorted(maps.Keys(c.bound)), slices.Sorted(maps.Keys(c.pending)))
	return b.String()
}

// TestWhatHelps: which changes make pods that fit nowhere be tried again, and which
// do not.
func TestWhatHelps(t *testing.T) {
	node := func(text string) *corev1.Node { return parseNodes(t, []byte(text))[0] }
	pod := func(text string) *corev1.Pod { return parsePods(t, []byte(text))[0] }
	for _, tt := range []struct {
		name   string
		change func(c *cluster) bool
		helps  bool
	}{
		{"a new node", func(c *cluster) bool { return c.setNode(node("n2")) }, true},
		{"the same node", func(c *cluster) bool { return c.setNode(node("n1 cpu=1")) }, false},
		{"more CPU", func(c *cluster) bool { return c.setNode(node("n1 cpu=2")) }, true},
		{"another label", func(c *cluster) bool { return c.setNode(node("n1 cpu=1 label=disk:ssd")) }, true},
		{"another taint", func(c *cluster) bool { return c.setNode(node("n1 cpu=1 taint=x")) }, true},
		{"uncordoned", func(c *cluster) bool { return c.setNode(node("n1 cpu=1 cordoned")) }, true},
		{"not ready any more", func(c *cluster) bool { return c.setNode(node("n1 cpu=1 NotReady")) }, true},
		{"a bound pod goes", func(c *cluster) bool { return c.removePod("pods/default/a") }, true},
		{"a bound pod ends", func(c *cluster) bool { return c.setPod(pod("a cpu=1 node=n1 Succeeded")) }, true},
		{"a bound pod is being deleted", func(c *cluster) bool { return c.setPod(pod("a cpu=1 node=n1 deleting")) }, false},
		{"a bound pod is as before", func(c *cluster) bool { return c.setPod(pod("a cpu=1 node=n1")) }, false},
		{"another pod waits", func(c *cluster) bool { return c.setPod(pod("c cpu=1")) }, false},
		{"a waiting pod goes", func(c *cluster) bool { return c.removePod("pods/default/b") }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster()
			c.setNode(node("n1 cpu=1"))
			c.setPod(pod("a cpu=1 node=n1"))
			c.setPod(pod("b cpu=1"))
			if got := tt.change(c); got != tt.helps {
				t.Errorf("helps: %v, want %v", got, tt.helps)
			}
		})
	}
}

// TestTriedPodsStayTried: a pod that fits nowhere is not tried again for its own
// condition's sake, but is when it asks for something else.
func TestTriedPodsStayTried(t *testing.T) {
	c := newCluster()
	pod := parsePods(t, []byte("a cpu=1"))[0]
	c.setPod(pod)
	c.place(c.untried(10))
	object.SetPodCondition(pod, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Message: "0/0 nodes fit"})
	c.setPod(pod)
	if pods := c.untried(10); len(pods) != 0 {
		t.Error("the pod is tried again because its condition was written")
	}
	pod.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	c.setPod(pod)
	if pods := c.untried(10); len(pods) != 1 {
		t.Error("the pod is not tried again though it tolerates more")
	}
}

// TestPanicIsOnePodsError: a pod that makes the decision panic fails alone.
func TestPanicIsOnePodsError(t *testing.T) {
	c := newCluster()
	c.setNode(parseNodes(t, []byte("n1"))[0])
	for _, pod := range parsePods(t, []byte("a\nb owner=b\nc")) {
		c.setPod(pod)
	}
	filters = append(filters, func(cl *class, _ *node, _ func(Reason) bool) {
		if cl.owner == "b" {
			panic("no such thing")
		}
	})
	defer func() { filters = filters[:len(filters)-1] }()
	for _, d := range c.place(c.untried(10)) {
		if bad := d.pod.key == "pods/default/b"; bad != (d.err != nil) || bad == (d.node == "n1") {
			t.Errorf("%s: node %q, error %v", d.pod.key, d.node, d.err)
		}
	}
}

// BenchmarkPlace measures decisions alone, without commits.
func BenchmarkPlace(b *testing.B) {
	for _, size := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("nodes=%d", size), func(b *testing.B) {
			c := newCluster()
			for i := range size {
				c.setNode(parseNodes(b, fmt.Appendf(nil, "n%05d cpu=64 memory=256Gi", i))[0])
			}
			pod := parsePods(b, []byte("p cpu=10m memory=16Mi owner=web"))[0]
			p := c.pendingOf("pods/default/p", pod)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				q := *p
				q.key = object.Key(fmt.Sprint("pods/default/p", i))
				if d := c.place([]*pendingPod{&q})[0]; d.node == "" {
					b.Fatal(d.message)
				}
				c.unbind(q.key)
			}
		})
	}
}
