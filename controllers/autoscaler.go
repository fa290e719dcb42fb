package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync/atomic"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

// Bounds of autoscaling, as Kubernetes has them by default.
const (
	autoscalePeriod       = 15 * time.Second
	measureTime           = 500 * time.Millisecond // what measuring may take; the look is after that
	autoscaleTolerance    = 0.1
	downscaleWindow       = 5 * time.Minute
	cpuInitialization     = 5 * time.Minute  // a pod's start, in which its CPU use says little
	initialReadinessDelay = 30 * time.Second // a pod that became unready within it has not been ready
	usageTooOld           = 2 * time.Minute
)

// Metrics tells what pods use. It is asked from one goroutine, every 15 s while there
// are autoscalers, and may take its time.
type Metrics interface {
	// PodUsage returns the last measure of each pod that has one, by uid.
	PodUsage(ctx context.Context) (map[types.UID]PodUsage, error)
}

// PodUsage is one measure of a pod.
type PodUsage struct {
	At         time.Time                      // when it was taken
	Window     time.Duration                  // over which CPU use is averaged before that
	Containers map[string]corev1.ResourceList // cpu and memory, by container
}

var autoscalerResource = object.ResourceOf(&autoscalingv2.HorizontalPodAutoscaler{})

// scaleHistory is what an autoscaler remembers, in memory: its recommendations, and
// by how much it has scaled lately.
type scaleHistory struct {
	recommended []recommendation
	ups, downs  []scaleEvent
	pending     *scaleEvent // scaled in the last pass, if that was committed
}

type recommendation struct {
	at       time.Time
	replicas int32
}

type scaleEvent struct {
	at     time.Time
	change int32 // negative: down
	to     int32
}

// autoscalerPlan is the outcome of one pass over an autoscaler.
type autoscalerPlan struct {
	hpa     *autoscalingv2.HorizontalPodAutoscaler
	changed bool
	scale   *int32 // the target's new size; nil: it stays
	reason  string
	history scaleHistory
}

// planAutoscaler decides the size of hpa's target, which has current replicas and
// these pods. targetErr is why the target cannot be scaled, if it cannot. It is pure:
// testdata/autoscaler states its whole behavior; the arithmetic is Kubernetes'.
func planAutoscaler(hpa *autoscalingv2.HorizontalPodAutoscaler, current int32, targetErr error, pods []*corev1.Pod, usage map[types.UID]PodUsage, history scaleHistory, now time.Time) autoscalerPlan {
	before := hpa.DeepCopy()
	plan := autoscalerPlan{hpa: hpa, history: history}
	r := &autoscaling{plan: &plan, hpa: hpa, current: current, pods: pods, usage: usage, now: now}
	desired := current
	switch least := max(deref(hpa.Spec.MinReplicas), 0); {
	case targetErr != nil:
		r.set(autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedGetScale", targetErr.Error())
	case current == 0:
		r.able()
		r.set(autoscalingv2.ScalingActive, corev1.ConditionFalse, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero")
	case current > hpa.Spec.MaxReplicas:
		r.able()
		desired, plan.reason = hpa.Spec.MaxReplicas, "Current number of replicas above Spec.MaxReplicas"
	case current < least:
		r.able()
		desired, plan.reason = least, "Current number of replicas below Spec.MinReplicas"
	default:
		r.able()
		desired = r.follow()
	}
	s := &hpa.Status
	s.ObservedGeneration = new(hpa.Generation)
	s.CurrentReplicas, s.DesiredReplicas = current, desired
	if desired != current {
		plan.scale = &desired
		s.LastScaleTime = new(metav1.NewTime(now.Truncate(time.Second)))
		plan.history.pending = &scaleEvent{at: now, change: desired - current, to: desired}
	}
	if !movedMuch(hpa.Spec.Metrics, before.Status.CurrentMetrics, s.CurrentMetrics) && plan.scale == nil {
		s.CurrentMetrics = before.Status.CurrentMetrics
	}
	plan.changed = !equality.Semantic.DeepEqual(before.Status, *s)
	return plan
}

// autoscaling is the work of planAutoscaler.
type autoscaling struct {
	plan    *autoscalerPlan
	hpa     *autoscalingv2.HorizontalPodAutoscaler
	current int32
	pods    []*corev1.Pod
	usage   map[types.UID]PodUsage
	now     time.Time
}

func (r *autoscaling) set(t autoscalingv2.HorizontalPodAutoscalerConditionType, status corev1.ConditionStatus, reason, message string) {
	c := autoscalingv2.HorizontalPodAutoscalerCondition{Type: t, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(r.now.Truncate(time.Second))}
	for i := range r.hpa.Status.Conditions {
		if old := &r.hpa.Status.Conditions[i]; old.Type == t {
			if old.Status == status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	r.hpa.Status.Conditions = append(r.hpa.Status.Conditions, c)
}

func (r *autoscaling) able() {
	r.set(autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededGetScale", "the target's scale was read")
}

// follow returns what the metrics ask for, within what the behavior allows.
func (r *autoscaling) follow() int32 {
	wanted, ok := int32(0), false
	var failure error
	statuses := make([]autoscalingv2.MetricStatus, 0, len(r.hpa.Spec.Metrics))
	for i := range r.hpa.Spec.Metrics {
		n, status, err := r.metric(&r.hpa.Spec.Metrics[i])
		statuses = append(statuses, status)
		if err != nil {
			failure = err
			continue
		}
		if !ok || n > wanted {
			wanted, ok = n, true
		}
	}
	r.hpa.Status.CurrentMetrics = statuses
	if failure != nil && (!ok || wanted < r.current) { // what cannot be seen is no reason to shrink
		r.set(autoscalingv2.ScalingActive, corev1.ConditionFalse, "FailedGetResourceMetric", "the HPA was unable to compute the replica count: "+failure.Error())
		return r.current
	}
	r.set(autoscalingv2.ScalingActive, corev1.ConditionTrue, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from what its pods use")
	desired := r.limit(r.stabilize(wanted))
	switch {
	case desired > r.current:
		r.plan.reason = "use is above target"
	case desired < r.current:
		r.plan.reason = "all use is below target"
	}
	return desired
}

// metric returns how many replicas one metric asks for.
func (r *autoscaling) metric(m *autoscalingv2.MetricSpec) (int32, autoscalingv2.MetricStatus, error) {
	var name corev1.ResourceName
	var target *autoscalingv2.MetricTarget
	container := ""
	status := autoscalingv2.MetricStatus{Type: m.Type}
	var current *autoscalingv2.MetricValueStatus
	switch {
	case m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil:
		name, target = m.Resource.Name, &m.Resource.Target
		status.Resource = &autoscalingv2.ResourceMetricStatus{Name: name}
		current = &status.Resource.Current
	case m.Type == autoscalingv2.ContainerResourceMetricSourceType && m.ContainerResource != nil:
		name, target, container = m.ContainerResource.Name, &m.ContainerResource.Target, m.ContainerResource.Container
		status.ContainerResource = &autoscalingv2.ContainerResourceMetricStatus{Name: name, Container: container}
		current = &status.ContainerResource.Current
	default:
		return 0, status, fmt.Errorf("metrics of type %s are not supported", m.Type)
	}
	used, err := r.measure(name, container)
	if err != nil {
		return 0, status, err
	}
	var n int32
	if target.AverageUtilization != nil {
		n, err = used.byUtilization(r, *target.AverageUtilization, current)
	} else if target.AverageValue != nil {
		n = used.byValue(r, target.AverageValue.MilliValue(), current)
	} else {
		err = fmt.Errorf("the target of %s is neither a utilization nor an average value", name)
	}
	return n, status, err
}

// measured is what the pods use of one resource, in thousandths.
type measured struct {
	name             corev1.ResourceName
	use, request     map[types.UID]int64 // of pods that count
	missing, unready []types.UID         // that count, but say nothing, or nothing of worth
	ready            int32
	requestErr       error
}

func (r *autoscaling) measure(name corev1.ResourceName, container string) (*measured, error) {
	m := &measured{name: name, use: map[types.UID]int64{}, request: map[types.UID]int64{}}
	for _, pod := range r.pods {
		if object.Deleting(pod) || object.PodPhaseFinal(pod) {
			continue
		}
		usage, ok := r.usage[pod.UID]
		switch {
		case pod.Status.Phase == corev1.PodPending:
			m.unready = append(m.unready, pod.UID)
		case !ok || r.now.Sub(usage.At) > usageTooOld:
			m.missing = append(m.missing, pod.UID)
			ok = false
		case name == corev1.ResourceCPU && r.starts(pod, usage):
			m.unready = append(m.unready, pod.UID)
		default:
			m.ready++
		}
		found := false
		for i := range pod.Spec.Containers {
			c := &pod.Spec.Containers[i]
			if container != "" && c.Name != container {
				continue
			}
			found = true
			request, has := c.Resources.Requests[name]
			if !has && m.requestErr == nil {
				m.requestErr = fmt.Errorf("missing request for %s in container %s of Pod %s", name, c.Name, pod.Name)
			}
			m.request[pod.UID] += request.MilliValue()
			if ok {
				amount := usage.Containers[c.Name][name]
				m.use[pod.UID] += amount.MilliValue()
			}
		}
		if !found {
			return nil, fmt.Errorf("container %s not present in Pod %s", container, pod.Name)
		}
	}
	for _, uid := range slices.Concat(m.missing, m.unready) {
		delete(m.use, uid)
	}
	if len(m.use) == 0 {
		return nil, fmt.Errorf("no measures of %s of any ready pod", name)
	}
	return m, nil
}

// starts reports whether what pod uses of CPU is that of its start.
func (r *autoscaling) starts(pod *corev1.Pod, usage PodUsage) bool {
	c := object.PodCondition(pod, corev1.PodReady)
	if c == nil || pod.Status.StartTime == nil {
		return true
	}
	start := pod.Status.StartTime.Time
	if start.Add(cpuInitialization).After(r.now) {
		return c.Status == corev1.ConditionFalse || usage.At.Before(c.LastTransitionTime.Add(usage.Window))
	}
	return c.Status == corev1.ConditionFalse && start.Add(initialReadinessDelay).After(c.LastTransitionTime.Time)
}

// byUtilization sizes by use as a share of what was requested.
func (m *measured) byUtilization(r *autoscaling, target int32, current *autoscalingv2.MetricValueStatus) (int32, error) {
	if m.requestErr != nil {
		return 0, m.requestErr
	}
	ratio := func() (share float64, percent int32) {
		use, request := int64(0), int64(0)
		for uid, n := range m.use {
			use += n
			request += m.request[uid]
		}
		if request == 0 {
			return 0, 0
		}
		percent = int32(use * 100 / request)
		return float64(percent) / float64(target), percent
	}
	share, percent := ratio()
	sum := int64(0)
	for _, n := range m.use {
		sum += n
	}
	current.AverageUtilization = &percent
	current.AverageValue = resource.NewMilliQuantity(sum/int64(len(m.use)), resource.DecimalSI)
	full := int64(max(100, target))
	return m.size(r, share, func(uid types.UID) int64 { return m.request[uid] * full / 100 }, func() float64 { share, _ := ratio(); return share }), nil
}

// byValue sizes by the average use.
func (m *measured) byValue(r *autoscaling, target int64, current *autoscalingv2.MetricValueStatus) int32 {
	average := func() float64 {
		sum := int64(0)
		for _, n := range m.use {
			sum += n
		}
		return float64(sum) / float64(len(m.use))
	}
	current.AverageValue = resource.NewMilliQuantity(int64(average()), resource.DecimalSI)
	share := func() float64 { return average() / float64(target) }
	return m.size(r, share(), func(types.UID) int64 { return target }, share)
}

// size turns the share of use in its target into replicas. Pods that say nothing
// count so that the change is smaller: as using full when it would shrink, as using
// nothing when it would grow.
func (m *measured) size(r *autoscaling, share float64, full func(types.UID) int64, again func() float64) int32 {
	grows := share > 1
	if len(m.missing) == 0 && (len(m.unready) == 0 || !grows) {
		if r.within(share) {
			return r.current
		}
		return int32(math.Ceil(share * float64(m.ready)))
	}
	for _, uid := range m.missing {
		if grows {
			m.use[uid] = 0
		} else {
			m.use[uid] = full(uid)
		}
	}
	if grows {
		for _, uid := range m.unready {
			m.use[uid] = 0
		}
	}
	adjusted := again()
	if r.within(adjusted) || grows != (adjusted > 1) {
		return r.current
	}
	n := int32(math.Ceil(adjusted * float64(len(m.use))))
	if adjusted < 1 && n > r.current || adjusted > 1 && n < r.current {
		return r.current
	}
	return n
}

// within reports whether a share is near enough to 1 to leave things alone.
func (r *autoscaling) within(share float64) bool {
	up, down := autoscaleTolerance, autoscaleTolerance
	if b := r.hpa.Spec.Behavior; b != nil {
		if b.ScaleUp != nil && b.ScaleUp.Tolerance != nil {
			up = b.ScaleUp.Tolerance.AsApproximateFloat64()
		}
		if b.ScaleDown != nil && b.ScaleDown.Tolerance != nil {
			down = b.ScaleDown.Tolerance.AsApproximateFloat64()
		}
	}
	return share >= 1-down && share <= 1+up
}

// stabilize takes the recommendations of the windows into account: it shrinks no
// further than the highest of them, and grows no further than the lowest.
func (r *autoscaling) stabilize(wanted int32) int32 {
	h := &r.plan.history
	if len(h.recommended) == 0 {
		h.recommended = []recommendation{{r.now, r.current}} // nothing is known of before
	}
	upWindow, down := time.Duration(0), downscaleWindow
	if b := r.hpa.Spec.Behavior; b != nil {
		if b.ScaleUp != nil {
			upWindow = time.Duration(deref(b.ScaleUp.StabilizationWindowSeconds)) * time.Second
		}
		if b.ScaleDown != nil && b.ScaleDown.StabilizationWindowSeconds != nil {
			down = time.Duration(*b.ScaleDown.StabilizationWindowSeconds) * time.Second
		}
	}
	lowest, highest := wanted, wanted
	kept := []recommendation{}
	for _, rec := range h.recommended {
		age := r.now.Sub(rec.at)
		if age < upWindow {
			lowest = min(lowest, rec.replicas)
		}
		if age < down {
			highest = max(highest, rec.replicas)
		}
		if age < max(upWindow, down) {
			kept = append(kept, rec)
		}
	}
	h.recommended = append(kept, recommendation{r.now, wanted})
	n := r.current
	n = max(n, lowest)
	n = min(n, highest)
	if n != wanted {
		r.set(autoscalingv2.AbleToScale, corev1.ConditionTrue, "ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation")
		if wanted > n {
			r.set(autoscalingv2.AbleToScale, corev1.ConditionTrue, "ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation")
		}
	} else {
		r.set(autoscalingv2.AbleToScale, corev1.ConditionTrue, "ReadyForNewScale", "recommended size matches current size")
	}
	return n
}

// limit keeps n within what may be changed at a time, and within minReplicas and
// maxReplicas.
func (r *autoscaling) limit(n int32) int32 {
	h := &r.plan.history
	if p := h.pending; p != nil {
		if p.to == r.current && p.change > 0 {
			h.ups = append(h.ups, *p)
		} else if p.to == r.current {
			h.downs = append(h.downs, *p)
		}
		h.pending = nil
	}
	recent := func(e scaleEvent) bool { return r.now.Sub(e.at) > 2*time.Hour }
	h.ups, h.downs = slices.DeleteFunc(slices.Clone(h.ups), recent), slices.DeleteFunc(slices.Clone(h.downs), recent)

	least, most := deref(r.hpa.Spec.MinReplicas), r.hpa.Spec.MaxReplicas
	low, high := least, most
	lowReason, highReason := "TooFewReplicas", "TooManyReplicas"
	b := r.hpa.Spec.Behavior
	if b == nil || b.ScaleUp == nil {
		if limit := max(2*r.current, 4); limit < high {
			high, highReason = limit, "ScaleUpLimit"
		}
	} else if limit := rate(b.ScaleUp, r.current, h.ups, r.now, true); limit < high {
		high, highReason = max(limit, r.current), "ScaleUpLimit"
	}
	if b != nil && b.ScaleDown != nil {
		if limit := rate(b.ScaleDown, r.current, h.downs, r.now, false); limit > low {
			low, lowReason = min(limit, r.current), "ScaleDownLimit"
		}
	}
	switch {
	case n > high:
		r.set(autoscalingv2.ScalingLimited, corev1.ConditionTrue, highReason, fmt.Sprintf("the desired replica count %d is more than the %d allowed now", n, high))
		return high
	case n < low:
		r.set(autoscalingv2.ScalingLimited, corev1.ConditionTrue, lowReason, fmt.Sprintf("the desired replica count %d is less than the %d allowed now", n, low))
		return low
	}
	r.set(autoscalingv2.ScalingLimited, corev1.ConditionFalse, "DesiredWithinRange", "the desired count is within the acceptable range")
	return n
}

// rate returns how far rules let the size go now, given what has been changed within
// the periods of its policies.
func rate(rules *autoscalingv2.HPAScalingRules, current int32, events []scaleEvent, now time.Time, up bool) int32 {
	policy := autoscalingv2.MaxChangePolicySelect
	if rules.SelectPolicy != nil {
		policy = *rules.SelectPolicy
	}
	if policy == autoscalingv2.DisabledPolicySelect || len(rules.Policies) == 0 {
		return current
	}
	var limits []int32
	for _, p := range rules.Policies {
		changed := int32(0)
		for _, e := range events {
			if now.Sub(e.at) < time.Duration(p.PeriodSeconds)*time.Second {
				changed += e.change
			}
		}
		from := current - changed // at the beginning of the period
		switch {
		case p.Type == autoscalingv2.PodsScalingPolicy && up:
			limits = append(limits, from+p.Value)
		case p.Type == autoscalingv2.PodsScalingPolicy:
			limits = append(limits, from-p.Value)
		case up:
			limits = append(limits, int32(math.Ceil(float64(from)*(1+float64(p.Value)/100))))
		default:
			limits = append(limits, int32(float64(from)*(1-float64(p.Value)/100)))
		}
	}
	if up == (policy == autoscalingv2.MaxChangePolicySelect) {
		return slices.Max(limits)
	}
	return slices.Min(limits)
}

// movedMuch reports whether a metric has moved by a tenth of its target since it was
// written: less is no reason to write to the log.
func movedMuch(specs []autoscalingv2.MetricSpec, was, is []autoscalingv2.MetricStatus) bool {
	if len(was) != len(is) || len(is) != len(specs) {
		return true
	}
	value := func(m autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus {
		switch {
		case m.Resource != nil:
			return &m.Resource.Current
		case m.ContainerResource != nil:
			return &m.ContainerResource.Current
		default:
			return &autoscalingv2.MetricValueStatus{}
		}
	}
	for i := range specs {
		a, b := value(was[i]), value(is[i])
		if a.AverageUtilization != nil && b.AverageUtilization != nil {
			if d := *a.AverageUtilization - *b.AverageUtilization; max(d, -d) >= 5 {
				return true
			}
			continue
		}
		if a.AverageValue == nil || b.AverageValue == nil || a.AverageUtilization != nil || b.AverageUtilization != nil {
			if (a.AverageValue == nil) != (b.AverageValue == nil) || (a.AverageUtilization == nil) != (b.AverageUtilization == nil) {
				return true
			}
			continue
		}
		x, y := a.AverageValue.AsApproximateFloat64(), b.AverageValue.AsApproximateFloat64()
		if math.Abs(x-y) > 0.1*max(x, y) {
			return true
		}
	}
	return false
}

// autoscalers keeps what autoscalers know of their pods and of what they did.
type autoscalers struct {
	metrics Metrics
	log     *slog.Logger
	usage   atomic.Pointer[podUsages]
	wanted  atomic.Bool   // there is an autoscaler
	wake    chan struct{} // holds one token when there is one, and was none before
	history map[types.UID]scaleHistory
}

// podUsages is what was measured at a time.
type podUsages struct {
	at   time.Time
	pods map[types.UID]PodUsage
}

func newAutoscalers(metrics Metrics, log *slog.Logger) *autoscalers {
	return &autoscalers{metrics: metrics, log: log, wake: make(chan struct{}, 1), history: map[types.UID]scaleHistory{}}
}

// want notes whether there is an autoscaler. The first one is not to wait for its measures.
func (a *autoscalers) want(yes bool) {
	if was := a.wanted.Swap(yes); yes && !was {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

// nextLook returns how long until there are new measures to look at.
func (a *autoscalers) nextLook(now time.Time) time.Duration {
	known := a.usage.Load()
	switch {
	case a.metrics == nil:
		return autoscalePeriod
	case known == nil:
		return measureTime
	}
	return max(known.at.Add(autoscalePeriod+measureTime).Sub(now), measureTime)
}

// run asks for measures until ctx ends.
func (a *autoscalers) run(ctx context.Context) {
	tick := time.NewTicker(autoscalePeriod)
	defer tick.Stop()
	for a.metrics != nil {
		if a.wanted.Load() {
			usage, err := a.metrics.PodUsage(ctx)
			if err == nil {
				a.usage.Store(&podUsages{time.Now(), usage})
			} else if ctx.Err() == nil {
				a.log.Warn("what pods use is not known; autoscalers wait", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.wake:
			tick.Reset(autoscalePeriod)
		}
	}
}

// controller returns the controller that scales what HorizontalPodAutoscalers are
// about.
func (a *autoscalers) controller() *controller {
	return &controller{
		name: "autoscaler",
		all: func(s state) []object.Key {
			keys := keysOf(s.index, autoscalerResource)
			a.want(len(keys) > 0)
			return keys
		},
		affected: func(_ *index, c change) []object.Key {
			keys := affectsItself(autoscalerResource, c)
			if len(keys) > 0 {
				a.want(true)
			} else if c.after == nil && isKind(c.before.resource, autoscalerResource) {
				delete(a.history, c.before.uid)
			}
			return keys
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			hpa, ok := object.Get[*autoscalingv2.HorizontalPodAutoscaler](s, key)
			if !ok || object.Deleting(hpa) {
				return outcome{}
			}
			o := outcome{again: a.nextLook(now)}
			usage := map[types.UID]PodUsage{}
			if known := a.usage.Load(); known != nil {
				usage = known.pods
			}
			target, selector, current, err := scaleTarget(s, hpa)
			var pods []*corev1.Pod
			if err == nil {
				for _, pod := range object.List[*corev1.Pod](s, hpa.Namespace) {
					if selector.Matches(labels.Set(pod.Labels)) {
						pods = append(pods, pod)
					}
				}
			}
			plan := planAutoscaler(hpa, current, err, pods, usage, a.history[hpa.UID], now)
			a.history[hpa.UID] = plan.history
			if plan.scale != nil {
				scale, _ := object.ScaleOf(target)
				scale.Spec.Replicas = *plan.scale
				if err := object.SetScale(target, scale); err != nil {
					return outcome{err: err}
				}
				target.SetGeneration(target.GetGeneration() + 1)
				o.update(target)
				o.txn.Reason = fmt.Sprintf("size %d: %s", *plan.scale, plan.reason)
				o.tell(hpa, "SuccessfulRescale", "New size: %d; reason: %s", *plan.scale, plan.reason)
			}
			if plan.changed {
				o.update(hpa)
			} else if plan.scale != nil {
				o.unchanged(hpa)
			}
			return o
		},
	}
}

// scaleTarget returns what hpa is about, the selector of its pods and its size.
func scaleTarget(s state, hpa *autoscalingv2.HorizontalPodAutoscaler) (object.Object, labels.Selector, int32, error) {
	ref := hpa.Spec.ScaleTargetRef
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("scaleTargetRef: %w", err)
	}
	key, ok := s.ownerKey(hpa.Namespace, metav1.OwnerReference{APIVersion: gv.String(), Kind: ref.Kind, Name: ref.Name})
	if !ok {
		return nil, nil, 0, fmt.Errorf("scaleTargetRef: there is no kind %s in %s", ref.Kind, ref.APIVersion)
	}
	target, ok := get(s, key)
	if !ok {
		return nil, nil, 0, fmt.Errorf("%s %s does not exist", ref.Kind, ref.Name)
	}
	scale, err := object.ScaleOf(target)
	if err != nil {
		return nil, nil, 0, err
	}
	selector, err := labels.Parse(scale.Status.Selector)
	if err != nil || selector.Empty() {
		return nil, nil, 0, errors.Join(fmt.Errorf("%s %s does not say which pods are its own", ref.Kind, ref.Name), err)
	}
	return target, selector, scale.Spec.Replicas, nil
}
