package agent

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/holdfast-io/holdfast/object"
)

// Signal is something that a node may run short of, by Kubernetes' name.
type Signal string

// The signals. Available is what programs that are not root's may still have.
const (
	SignalMemory      Signal = "memory.available"   // the kernel's own estimate, without swapping
	SignalNodeFS      Signal = "nodefs.available"   // where volumes are, and the agent's data
	SignalNodeInodes  Signal = "nodefs.inodesFree"  //
	SignalImageFS     Signal = "imagefs.available"  // where images are, and what containers write
	SignalImageInodes Signal = "imagefs.inodesFree" //
	SignalPIDs        Signal = "pid.available"      // processes and threads
)

// signalInfo is what a signal is about: the node's condition, and what a message
// names.
var signalInfo = map[Signal]struct {
	condition corev1.NodeConditionType
	resource  corev1.ResourceName
}{
	SignalMemory:      {corev1.NodeMemoryPressure, corev1.ResourceMemory},
	SignalNodeFS:      {corev1.NodeDiskPressure, corev1.ResourceEphemeralStorage},
	SignalNodeInodes:  {corev1.NodeDiskPressure, "inodes"},
	SignalImageFS:     {corev1.NodeDiskPressure, corev1.ResourceEphemeralStorage},
	SignalImageInodes: {corev1.NodeDiskPressure, "inodes"},
	SignalPIDs:        {corev1.NodePIDPressure, "pids"},
}

// DefaultEvictionHard is Kubernetes' default, as ParseThresholds reads it.
const DefaultEvictionHard = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%"

// defaultEvictionTransition is how long a condition stays once it is no longer so,
// lest pods come and go with it. Kubernetes' default.
const defaultEvictionTransition = 5 * time.Minute

// criticalPriority is that of pods without which the node or the cluster does not
// work: they are not evicted. Kubernetes' system-cluster-critical and above.
const criticalPriority = 2_000_000_000

// Threshold is met while less of a signal is available.
type Threshold struct {
	Signal  Signal
	Amount  int64   // bytes, inodes or processes
	Percent float64 // of what there is; counts instead of Amount if it is not 0
}

// of returns the threshold's amount where there is so much in all.
func (t Threshold) of(capacity int64) int64 {
	if t.Percent != 0 {
		return int64(math.Round(t.Percent / 100 * float64(capacity)))
	}
	return t.Amount
}

// ParseThresholds reads thresholds as Kubernetes writes them: "memory.available<100Mi",
// "nodefs.available<10%". The error names what is wrong with each.
func ParseThresholds(given []string) ([]Threshold, error) {
	all := []Threshold{}
	for _, text := range given {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		name, value, ok := strings.Cut(text, "<")
		t := Threshold{Signal: Signal(strings.TrimSpace(name))}
		value = strings.TrimSpace(value)
		switch _, known := signalInfo[t.Signal]; {
		case !ok:
			return nil, fmt.Errorf("eviction threshold %q: want SIGNAL<AMOUNT, such as memory.available<100Mi", text)
		case !known:
			return nil, fmt.Errorf("eviction threshold %q: there is no signal %q, want one of %v", text, t.Signal, slices.Sorted(maps.Keys(signalInfo)))
		case slices.ContainsFunc(all, func(other Threshold) bool { return other.Signal == t.Signal }):
			return nil, fmt.Errorf("eviction threshold %q: there are two for %s", text, t.Signal)
		}
		if percent, is := strings.CutSuffix(value, "%"); is {
			p, err := strconv.ParseFloat(percent, 64)
			if err != nil || p < 0 || p > 100 || math.IsNaN(p) {
				return nil, fmt.Errorf("eviction threshold %q: want 0%% to 100%%", text)
			}
			t.Percent = p
		} else {
			q, err := resource.ParseQuantity(value)
			if err != nil || q.Sign() < 0 {
				return nil, fmt.Errorf("eviction threshold %q: want an amount such as 100Mi, or a percentage", text)
			}
			t.Amount = q.Value()
		}
		all = append(all, t)
	}
	return all, nil
}

// amount is how much there is of something, and how much of it is left. A capacity
// of 0: it is not known, or not counted.
type amount struct{ Available, Capacity int64 }

// podUse is a pod that runs, and what it uses. What was not measured is 0.
type podUse struct {
	Pod    *corev1.Pod
	Static bool
	PIDs   int64
	// Containers is by name; what is left of ended runs counts.
	Containers map[string]containerUse
	Volumes    []volumeUse
}

type containerUse struct {
	Memory     int64 // without what the kernel can take back at once
	Root, Logs int64 // bytes on the disk
	Inodes     int64
}

func (c containerUse) disk() int64 { return c.Root + c.Logs }

// volumeUse is a volume that the pod fills itself. One of a claim is not the pod's:
// it counts for its own limit only.
type volumeUse struct {
	Name, Claim   string
	Bytes, Inodes int64
	Limit         int64 // 0: none
}

// evictionInput is all that the decision depends on.
type evictionInput struct {
	Thresholds []Threshold
	Node       map[Signal]amount
	Pods       []podUse
	// LastMet is when a threshold of each condition was last met; Transition is how
	// long the condition outlasts that.
	LastMet    map[corev1.NodeConditionType]time.Time
	Transition time.Duration
	// Reclaimed: what nobody needs was taken away already.
	Reclaimed bool
}

// evictionPlan is what follows: at most one pod, since what its end frees is not
// known before.
type evictionPlan struct {
	LastMet map[corev1.NodeConditionType]time.Time
	// Pressure is the conditions that are true, sorted.
	Pressure []corev1.NodeConditionType
	// Reclaim: what nobody needs is to go first; then the node is to be looked at again.
	Reclaim bool
	// Evict is the pod to end; nil: none. Message says why, in Kubernetes' words.
	Evict   *corev1.Pod
	Message string
	// Stuck: something is short, and no pod is left that may be evicted for it.
	Stuck Signal
}

// planEviction decides what a node does that is short of something. It is pure:
// testdata/evict states its whole behaviour.
func planEviction(in evictionInput, now time.Time) evictionPlan {
	plan := evictionPlan{LastMet: maps.Clone(in.LastMet)}
	if plan.LastMet == nil {
		plan.LastMet = map[corev1.NodeConditionType]time.Time{}
	}
	met := metThresholds(in.Thresholds, in.Node)
	for _, t := range met {
		plan.LastMet[signalInfo[t.Signal].condition] = now
	}
	for condition, at := range plan.LastMet {
		if now.Sub(at) < max(in.Transition, 1) {
			plan.Pressure = append(plan.Pressure, condition)
		} else {
			delete(plan.LastMet, condition)
		}
	}
	slices.Sort(plan.Pressure)

	pods := slices.Clone(in.Pods)
	slices.SortStableFunc(pods, func(a, b podUse) int { return cmp.Compare(podKey(a.Pod), podKey(b.Pod)) })
	for _, p := range pods {
		if why := overLimits(p); why != "" && !critical(p) {
			plan.Evict, plan.Message = p.Pod, why
			return plan
		}
	}
	if len(met) == 0 {
		return plan
	}
	t := met[0]
	if signalInfo[t.Signal].condition == corev1.NodeDiskPressure && !in.Reclaimed {
		plan.Reclaim = true
		return plan
	}
	rank(pods, t.Signal)
	for _, p := range pods {
		if !critical(p) {
			plan.Evict, plan.Message = p.Pod, shortage(p, t, in.Node[t.Signal])
			return plan
		}
	}
	plan.Stuck = t.Signal
	return plan
}

// metThresholds returns those that are met, memory's before the others: what is short
// of it is about to be killed.
func metThresholds(all []Threshold, node map[Signal]amount) []Threshold {
	var met []Threshold
	for _, t := range all {
		if a, ok := node[t.Signal]; ok && a.Capacity > 0 && a.Available < t.of(a.Capacity) {
			met = append(met, t)
		}
	}
	slices.SortStableFunc(met, func(a, b Threshold) int {
		return cmp.Compare(btoi(a.Signal != SignalMemory), btoi(b.Signal != SignalMemory))
	})
	return met
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func podKey(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }

// critical says whether a pod is not evicted: it is the node's own, or the cluster
// does not work without it.
func critical(p podUse) bool { return p.Static || priorityOf(p.Pod) >= criticalPriority }

func priorityOf(pod *corev1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// overLimits says how a pod takes more of the disk than it may; "": it does not.
func overLimits(p podUse) string {
	var sum int64
	for _, v := range p.Volumes {
		if v.Claim == "" {
			sum += v.Bytes
		}
		switch {
		case v.Limit == 0 || v.Bytes <= v.Limit:
		case v.Claim != "":
			return fmt.Sprintf("Usage of the volume of claim %q exceeds its size %q. ", v.Claim, bytesText(v.Limit))
		default:
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, bytesText(v.Limit))
		}
	}
	for _, c := range p.Containers {
		sum += c.disk()
	}
	if limit := storageLimit(p.Pod); limit > 0 && sum > limit {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", bytesText(limit))
	}
	for _, part := range parts(p.Pod) {
		limit, ok := part.spec.Resources.Limits[corev1.ResourceEphemeralStorage]
		if ok && p.Containers[part.spec.Name].disk() > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", part.spec.Name, limit.String())
		}
	}
	return ""
}

// storageLimit is what a pod may take of the disk: the sum of its containers' limits,
// as far as they have one, or that of an init container that may take more. 0: no limit.
func storageLimit(pod *corev1.Pod) int64 {
	var sum, most int64
	for _, p := range parts(pod) {
		q := p.spec.Resources.Limits[corev1.ResourceEphemeralStorage]
		if p.role == initRole {
			most = max(most, q.Value())
		} else {
			sum += q.Value()
		}
	}
	return max(sum, most)
}

// measuresDisk says whether how much of the disk a pod takes is of interest while
// there is enough of it.
func measuresDisk(pod *corev1.Pod, claims []volumeUse) bool {
	if storageLimit(pod) > 0 || len(claims) > 0 {
		return true
	}
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.EmptyDir != nil && v.EmptyDir.Medium != corev1.StorageMediumMemory && v.EmptyDir.SizeLimit != nil && !v.EmptyDir.SizeLimit.IsZero()
	})
}

// rank orders pods, the first to be evicted first: those that use more than they asked for,
// then by priority, then by how much more than that.
func rank(pods []podUse, s Signal) {
	slices.SortStableFunc(pods, func(a, b podUse) int {
		usedA, askedA := use(a, s)
		usedB, askedB := use(b, s)
		return cmp.Or(
			cmp.Compare(btoi(usedA <= askedA), btoi(usedB <= askedB)),
			cmp.Compare(priorityOf(a.Pod), priorityOf(b.Pod)),
			cmp.Compare(usedB-askedB, usedA-askedA),
		)
	})
}

// use returns how much a pod uses of what a signal is about, and how much it has asked
// for. Nobody asks for inodes or processes: there only the use counts.
func use(p podUse, s Signal) (used, asked int64) {
	requests := object.PodResources(p.Pod)
	switch signalInfo[s].resource {
	case corev1.ResourceMemory:
		for _, c := range p.Containers {
			used += c.Memory
		}
		q := requests[corev1.ResourceMemory]
		return used, q.Value()
	case corev1.ResourceEphemeralStorage:
		used, q := diskOf(p), requests[corev1.ResourceEphemeralStorage]
		return used, q.Value()
	case "inodes":
		for _, c := range p.Containers {
			used += c.Inodes
		}
		for _, v := range p.Volumes {
			used += btoi64(v.Claim == "") * v.Inodes
		}
		return used, 0
	default:
		return p.PIDs, math.MaxInt64 / 2 // in whose excess nobody is
	}
}

func btoi64(b bool) int64 { return int64(btoi(b)) }

// diskOf is what goes from the disk with the pod.
func diskOf(p podUse) (sum int64) {
	for _, c := range p.Containers {
		sum += c.disk()
	}
	for _, v := range p.Volumes {
		if v.Claim == "" {
			sum += v.Bytes
		}
	}
	return sum
}

// shortage is what Kubernetes tells a pod that is evicted because the node is short
// of something.
func shortage(p podUse, t Threshold, node amount) string {
	name := signalInfo[t.Signal].resource
	text := func(n int64) string { return resource.NewQuantity(n, resource.DecimalSI).String() }
	if name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage {
		text = bytesText
	}
	var b strings.Builder
	fmt.Fprintf(&b, "The node was low on resource: %s. Threshold quantity: %s, available: %s. ", name, text(t.of(node.Capacity)), text(node.Available))
	for _, part := range parts(p.Pod) {
		c := p.Containers[part.spec.Name]
		var used int64
		switch name {
		case corev1.ResourceMemory:
			used = c.Memory
		case corev1.ResourceEphemeralStorage:
			used = c.disk()
		default:
			continue
		}
		if asked := part.spec.Resources.Requests[name]; used > asked.Value() {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ", part.spec.Name, text(used), asked.String(), name)
		}
	}
	return b.String()
}

func bytesText(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }

// refused says why a pod that is new to the node is not begun there, by the conditions that are
// true; "": it is. Pods that asked for memory may come to a node that is short of nothing else:
// they are not the first to go.
func refused(p podUse, pressure []corev1.NodeConditionType) string {
	if len(pressure) == 0 || critical(p) {
		return ""
	}
	onlyMemory := len(pressure) == 1 && pressure[0] == corev1.NodeMemoryPressure
	taint := &corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}
	if onlyMemory && (object.QOSClass(p.Pod) != corev1.PodQOSBestEffort || tolerates(p.Pod, taint)) {
		return ""
	}
	return fmt.Sprintf("Pod was rejected: The node had condition: %v. ", pressure)
}

func tolerates(pod *corev1.Pod, taint *corev1.Taint) bool {
	return slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool {
		if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
			return false
		}
		return t.Operator == corev1.TolerationOpExists || (t.Operator == corev1.TolerationOpEqual || t.Operator == "") && t.Value == taint.Value
	})
}

// pressureWords are the words in which a node says whether it is short of something.
var pressureWords = map[corev1.NodeConditionType][2][2]string{
	corev1.NodeMemoryPressure: {{"KubeletHasSufficientMemory", "kubelet has sufficient memory available"}, {"KubeletHasInsufficientMemory", "kubelet has insufficient memory available"}},
	corev1.NodeDiskPressure:   {{"KubeletHasNoDiskPressure", "kubelet has no disk pressure"}, {"KubeletHasDiskPressure", "kubelet has disk pressure"}},
	corev1.NodePIDPressure:    {{"KubeletHasSufficientPID", "kubelet has sufficient PID available"}, {"KubeletHasInsufficientPID", "kubelet has insufficient PID available"}},
}

// pressureConditions are the node's conditions when those of pressure are true.
func pressureConditions(pressure []corev1.NodeConditionType) []corev1.NodeCondition {
	var all []corev1.NodeCondition
	for _, kind := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		is := slices.Contains(pressure, kind)
		words := pressureWords[kind][btoi(is)]
		c := corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: words[0], Message: words[1]}
		if is {
			c.Status = corev1.ConditionTrue
		}
		all = append(all, c)
	}
	return all
}
