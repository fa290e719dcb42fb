package controllers

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/holdfast-io/holdfast/object"
)

// testNow is the time at which every case of testdata happens. Ages in it are
// before it.
var testNow = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// line is one object of a case: its name, and then words and key=value pairs in
// any order. What is not said has a harmless default.
type line struct {
	t     testing.TB
	text  string
	name  string
	words map[string]bool
	value map[string]string
	used  map[string]bool
}

func parseLines(t testing.TB, data []byte) []*line {
	t.Helper()
	var lines []*line
	for text := range strings.Lines(string(data)) {
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		l := &line{t: t, text: strings.TrimSpace(text), name: fields[0], words: map[string]bool{}, value: map[string]string{}, used: map[string]bool{}}
		for _, field := range fields[1:] {
			if k, v, ok := strings.Cut(field, "="); ok {
				l.value[k] = v
			} else {
				l.words[field] = true
			}
		}
		lines = append(lines, l)
	}
	return lines
}

func one(t testing.TB, data []byte) *line {
	t.Helper()
	lines := parseLines(t, data)
	if len(lines) != 1 {
		t.Fatalf("%d lines, want 1:\n%s", len(lines), data)
	}
	return lines[0]
}

func (l *line) has(word string) bool { l.used[word] = true; return l.words[word] }

func (l *line) get(key string) (string, bool) {
	l.used[key] = true
	v, ok := l.value[key]
	return v, ok
}

func (l *line) str(key, otherwise string) string {
	if v, ok := l.get(key); ok {
		return v
	}
	return otherwise
}

func (l *line) num(key string, otherwise int) int {
	l.t.Helper()
	v, ok := l.get(key)
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		l.t.Fatalf("%s: %v", l.text, err)
	}
	return n
}

func (l *line) dur(key string, otherwise time.Duration) time.Duration {
	l.t.Helper()
	v, ok := l.get(key)
	if !ok {
		return otherwise
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		l.t.Fatalf("%s: %v", l.text, err)
	}
	return d
}

// done fails the test for words that nobody asked about: a typing error in a case
// would otherwise test nothing.
func (l *line) done() {
	l.t.Helper()
	for word := range l.words {
		if !l.used[word] {
			l.t.Fatalf("%s: unknown word %q", l.text, word)
		}
	}
	for key := range l.value {
		if !l.used[key] {
			l.t.Fatalf("%s: unknown key %q", l.text, key)
		}
	}
}

// meta reads what all objects have: age=1h deleting labels=app=web,tier=front
// finalizer=x generation=2.
func (l *line) meta() metav1.ObjectMeta {
	l.t.Helper()
	m := metav1.ObjectMeta{
		Name:              l.name,
		Namespace:         "default",
		UID:               types.UID("uid-" + l.name),
		ResourceVersion:   "7",
		Generation:        int64(l.num("generation", 1)),
		CreationTimestamp: metav1.NewTime(testNow.Add(-l.dur("age", time.Hour))),
	}
	if l.has("deleting") {
		m.DeletionTimestamp = new(metav1.NewTime(testNow))
	}
	if f, ok := l.get("finalizer"); ok {
		m.Finalizers = []string{f}
	}
	set, err := labels.ConvertSelectorToLabelsMap(l.str("labels", "app=web"))
	if err != nil {
		l.t.Fatalf("%s: %v", l.text, err)
	}
	m.Labels = set
	return m
}

// pod reads a pod: phase (Running by default), ready or ready=30s (for that long),
// node=n1 (by default; unbound), restarts=1, cost=5, revision=db-1 (its label),
// for=n2 (not bound yet), tracked (by a job), index=0, exit=3, ended=20s (ago),
// failures=1 (of its index), counted=true, condition=DisruptionTarget,
// replaceFirst=90s (until then).
func (l *line) pod() *corev1.Pod {
	l.t.Helper()
	pod := &corev1.Pod{ObjectMeta: l.meta()}
	pod.Spec.NodeName = l.str("node", "n1")
	if l.has("unbound") {
		pod.Spec.NodeName = ""
	}
	pod.Status.Phase = corev1.PodRunning
	for _, phase := range []corev1.PodPhase{corev1.PodPending, corev1.PodFailed, corev1.PodSucceeded, corev1.PodUnknown, corev1.PodRunning} {
		if l.has(string(phase)) {
			pod.Status.Phase = phase
		}
	}
	_, since := l.get("ready")
	if l.has("ready") || since {
		pod.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodReady, Status: corev1.ConditionTrue,
			LastTransitionTime: metav1.NewTime(testNow.Add(-l.dur("ready", 10*time.Minute))),
		}}
	}
	if n := l.num("restarts", 0); n > 0 {
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: int32(n)}}
	}
	if l.has("fenced") {
		pod.Annotations = with(pod.Annotations, object.FencingAnnotation, object.FencingStrict)
	}
	if l.has("tracked") {
		pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	}
	for key, annotation := range map[string]string{"index": batchv1.JobCompletionIndexAnnotation, "failures": batchv1.JobIndexFailureCountAnnotation, "counted": countedAnnotation} {
		if v, ok := l.get(key); ok {
			pod.Annotations = with(pod.Annotations, annotation, v)
		}
	}
	_, exited := l.get("exit")
	if _, ended := l.get("ended"); ended || exited {
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: int32(l.num("exit", 0)), FinishedAt: metav1.NewTime(testNow.Add(-l.dur("ended", time.Hour))),
		}}})
	}
	if c, ok := l.get("condition"); ok {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodConditionType(c), Status: corev1.ConditionTrue})
	}
	if node, ok := l.get("for"); ok {
		meantFor(pod, node)
		pod.Spec.NodeName = ""
	}
	if rev, ok := l.get("revision"); ok {
		pod.Labels[appsv1.ControllerRevisionHashLabelKey] = rev
	}
	if cost, ok := l.get("cost"); ok {
		pod.Annotations = map[string]string{deletionCostAnnotation: cost}
	}
	if _, ok := l.get("replaceFirst"); ok {
		pod.Annotations = with(pod.Annotations, object.ReplaceFirstAnnotation, testNow.Add(l.dur("replaceFirst", 0)).Format(time.RFC3339))
	}
	if key, ok := l.get("tolerates"); ok { // key or key:seconds
		key, seconds, timed := strings.Cut(key, ":")
		t := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}
		if timed {
			n, err := strconv.ParseInt(seconds, 10, 64)
			if err != nil {
				l.t.Fatalf("%s: %v", l.text, err)
			}
			t.TolerationSeconds = &n
		}
		pod.Spec.Tolerations = []corev1.Toleration{t}
	}
	l.done()
	return pod
}

func parsePods(t testing.TB, data []byte) []*corev1.Pod {
	t.Helper()
	var pods []*corev1.Pod
	for _, l := range parseLines(t, data) {
		pods = append(pods, l.pod())
	}
	return pods
}

// counts reads "replicas/ready/available".
func (l *line) counts(key string) (replicas, ready, available int32) {
	l.t.Helper()
	v, ok := l.get(key)
	if !ok {
		return 0, 0, 0
	}
	if _, err := fmt.Sscanf(v, "%d/%d/%d", &replicas, &ready, &available); err != nil {
		l.t.Fatalf("%s: %s: %v", l.text, key, err)
	}
	return replicas, ready, available
}

func templateOf(image, app string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
	}
}

// replicaSet reads a ReplicaSet: replicas=3 minReady=10 image=v1 revision=1
// status=replicas/ready/available terminating=0 desired=3 max=4 (annotations)
// observed=1.
func (l *line) replicaSet() *appsv1.ReplicaSet {
	l.t.Helper()
	rs := &appsv1.ReplicaSet{ObjectMeta: l.meta()}
	rs.Spec.Replicas = new(int32(l.num("replicas", 1)))
	rs.Spec.MinReadySeconds = int32(l.num("minReady", 0))
	rs.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	rs.Spec.Template = templateOf(l.str("image", "v1"), "web")
	rs.Status.Replicas, rs.Status.ReadyReplicas, rs.Status.AvailableReplicas = l.counts("status")
	rs.Status.FullyLabeledReplicas = rs.Status.Replicas
	rs.Status.ObservedGeneration = int64(l.num("observed", int(rs.Generation)))
	rs.Status.TerminatingReplicas = new(int32(l.num("terminating", 0)))
	for key, annotation := range map[string]string{"revision": RevisionAnnotation, "desired": desiredAnnotation, "max": maxAnnotation} {
		if v, ok := l.get(key); ok {
			rs.Annotations = with(rs.Annotations, annotation, v)
		}
	}
	if l.has("rolled-back") {
		rs.Annotations = with(rs.Annotations, rolledBackAnnotation, "before")
	}
	if l.has("failing") {
		rs.Status.Conditions = []appsv1.ReplicaSetCondition{{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "PodsFailed", Message: "2 pods failed"}}
	}
	l.done()
	return rs
}

// statefulSet reads a StatefulSet: replicas=3 image=v2 Parallel OnDelete partition=1
// unavailable=2 minReady=10 start=5 claims=data whenScaled=Delete
// whenDeleted=Delete history=10 current=db-1 (the revision).
func (l *line) statefulSet() *appsv1.StatefulSet {
	l.t.Helper()
	set := &appsv1.StatefulSet{ObjectMeta: l.meta()}
	spec := &set.Spec
	spec.Replicas = new(int32(l.num("replicas", 1)))
	spec.ServiceName = "peers"
	spec.MinReadySeconds = int32(l.num("minReady", 0))
	spec.RevisionHistoryLimit = new(int32(l.num("history", 10)))
	spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	spec.Template = templateOf(l.str("image", "v1"), "web")
	spec.PodManagementPolicy = appsv1.OrderedReadyPodManagement
	if l.has("Parallel") {
		spec.PodManagementPolicy = appsv1.ParallelPodManagement
	}
	spec.UpdateStrategy.Type = appsv1.RollingUpdateStatefulSetStrategyType
	if l.has("OnDelete") {
		spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType
	} else {
		unavailable := intstr.Parse(l.str("unavailable", "1"))
		spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: new(int32(l.num("partition", 0))), MaxUnavailable: &unavailable}
	}
	if n := l.num("start", 0); n > 0 {
		spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: int32(n)}
	}
	spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
		WhenScaled:  appsv1.PersistentVolumeClaimRetentionPolicyType(l.str("whenScaled", "Retain")),
		WhenDeleted: appsv1.PersistentVolumeClaimRetentionPolicyType(l.str("whenDeleted", "Retain")),
	}
	if name, ok := l.get("claims"); ok {
		spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: name}}}
	}
	set.Status.CurrentRevision = l.str("current", "")
	l.done()
	return set
}

// daemonSet reads a DaemonSet: image=v2 surge=1 unavailable=0 OnDelete minReady=10
// history=10 selector=disk=ssd tolerates=key.
func (l *line) daemonSet() *appsv1.DaemonSet {
	l.t.Helper()
	set := &appsv1.DaemonSet{ObjectMeta: l.meta()}
	spec := &set.Spec
	spec.MinReadySeconds = int32(l.num("minReady", 0))
	spec.RevisionHistoryLimit = new(int32(l.num("history", 10)))
	spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	spec.Template = templateOf(l.str("image", "v1"), "web")
	if v, ok := l.get("selector"); ok {
		key, value, _ := strings.Cut(v, "=")
		spec.Template.Spec.NodeSelector = map[string]string{key: value}
	}
	if key, ok := l.get("tolerates"); ok {
		spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: key, Operator: corev1.TolerationOpExists}}
	}
	spec.UpdateStrategy.Type = appsv1.RollingUpdateDaemonSetStrategyType
	if l.has("OnDelete") {
		spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType
	} else {
		surge, unavailable := intstr.Parse(l.str("surge", "0")), intstr.Parse(l.str("unavailable", "1"))
		spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxSurge: &surge, MaxUnavailable: &unavailable}
	}
	l.done()
	return set
}

// job reads a Job: parallelism=2 completions=5 (none: a queue) Indexed backoff=6
// perIndex=1 maxFailed=3 deadline=60 ttl=100 suspend OnFailure replace=Failed
// policy=FailJob:3,Ignore:DisruptionTarget success=0-2:1 (of these indexes, one)
// started=10s (ago) succeeded=1 failed=2 completed=0,2 failedIndexes=1 condition=Type@ago.
func (l *line) job() *batchv1.Job {
	l.t.Helper()
	job := &batchv1.Job{ObjectMeta: l.meta()}
	spec, s := &job.Spec, &job.Status
	optional := func(key string) *int32 {
		if _, ok := l.get(key); !ok {
			return nil
		}
		return new(int32(l.num(key, 0)))
	}
	spec.Parallelism = new(int32(l.num("parallelism", 1)))
	spec.Completions, spec.BackoffLimitPerIndex, spec.MaxFailedIndexes = optional("completions"), optional("perIndex"), optional("maxFailed")
	spec.BackoffLimit = new(int32(l.num("backoff", 6)))
	spec.TTLSecondsAfterFinished = optional("ttl")
	if _, ok := l.get("deadline"); ok {
		spec.ActiveDeadlineSeconds = new(int64(l.num("deadline", 0)))
	}
	spec.Suspend = new(l.has("suspend"))
	mode := batchv1.NonIndexedCompletion
	if l.has("Indexed") {
		mode = batchv1.IndexedCompletion
	}
	spec.CompletionMode = &mode
	spec.PodReplacementPolicy = new(batchv1.PodReplacementPolicy(l.str("replace", string(batchv1.TerminatingOrFailed))))
	spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	spec.Template = templateOf(l.str("image", "v1"), "web")
	spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	if l.has("OnFailure") {
		spec.Template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	}
	if v, ok := l.get("policy"); ok {
		spec.PodFailurePolicy = &batchv1.PodFailurePolicy{}
		for text := range strings.SplitSeq(v, ",") {
			action, on, _ := strings.Cut(text, ":")
			rule := batchv1.PodFailurePolicyRule{Action: batchv1.PodFailurePolicyAction(action)}
			if code, err := strconv.Atoi(on); err == nil {
				rule.OnExitCodes = &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{int32(code)}}
			} else {
				rule.OnPodConditions = []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.PodConditionType(on), Status: corev1.ConditionTrue}}
			}
			spec.PodFailurePolicy.Rules = append(spec.PodFailurePolicy.Rules, rule)
		}
	}
	if v, ok := l.get("success"); ok {
		indexes, count, counted := strings.Cut(v, ":")
		rule := batchv1.SuccessPolicyRule{SucceededIndexes: &indexes}
		if n, err := strconv.Atoi(count); counted && err == nil {
			rule.SucceededCount = new(int32(n))
		}
		spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{rule}}
	}
	if _, ok := l.get("started"); ok {
		s.StartTime = new(metav1.NewTime(testNow.Add(-l.dur("started", 0))))
	}
	s.Succeeded, s.Failed, s.CompletedIndexes = int32(l.num("succeeded", 0)), int32(l.num("failed", 0)), l.str("completed", "")
	if v, ok := l.get("failedIndexes"); ok {
		s.FailedIndexes = &v
	}
	if v, ok := l.get("condition"); ok {
		kind, age, _ := strings.Cut(v, "@")
		ago, err := time.ParseDuration(age)
		if err != nil {
			l.t.Fatalf("%s: %v", l.text, err)
		}
		at := metav1.NewTime(testNow.Add(-ago))
		s.Conditions = []batchv1.JobCondition{{Type: batchv1.JobConditionType(kind), Status: corev1.ConditionTrue, Reason: "Before", LastTransitionTime: at}}
		if kind == string(batchv1.JobComplete) {
			s.CompletionTime = &at
		}
	}
	l.done()
	return job
}

// cronJob reads a CronJob: schedule=*/5_*_*_*_* zone=Europe/Berlin
// concurrency=Forbid suspend deadline=60 succeeded=3 failed=1 (the limits) last=10m
// (ago) active=web-1,web-2.
func (l *line) cronJob() *batchv1.CronJob {
	l.t.Helper()
	cron := &batchv1.CronJob{ObjectMeta: l.meta()}
	spec := &cron.Spec
	spec.Schedule = strings.ReplaceAll(l.str("schedule", "*/5_*_*_*_*"), "_", " ")
	if zone, ok := l.get("zone"); ok {
		spec.TimeZone = &zone
	}
	spec.ConcurrencyPolicy = batchv1.ConcurrencyPolicy(l.str("concurrency", "Allow"))
	spec.Suspend = new(l.has("suspend"))
	if _, ok := l.get("deadline"); ok {
		spec.StartingDeadlineSeconds = new(int64(l.num("deadline", 0)))
	}
	spec.SuccessfulJobsHistoryLimit, spec.FailedJobsHistoryLimit = new(int32(l.num("succeeded", 3))), new(int32(l.num("failed", 1)))
	spec.JobTemplate.Spec.Template = templateOf("v1", "web")
	spec.JobTemplate.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	if _, ok := l.get("last"); ok {
		cron.Status.LastScheduleTime = new(metav1.NewTime(testNow.Add(-l.dur("last", 0))))
	}
	if v, ok := l.get("active"); ok {
		for name := range strings.SplitSeq(v, ",") {
			cron.Status.Active = append(cron.Status.Active, corev1.ObjectReference{Name: name, UID: types.UID("uid-" + name)})
		}
	}
	l.done()
	return cron
}

// autoscaler reads a HorizontalPodAutoscaler: min=1 max=10 cpu=50 (percent of the
// request) memory=100Mi (on average) container=c downWindow=0 up=Pods:2:60 (and
// down=: pods or percent in a period).
func (l *line) autoscaler() *autoscalingv2.HorizontalPodAutoscaler {
	l.t.Helper()
	hpa := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: l.meta()}
	spec := &hpa.Spec
	spec.MinReplicas, spec.MaxReplicas = new(int32(l.num("min", 1))), int32(l.num("max", 10))
	if _, ok := l.get("cpu"); ok {
		target := autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: new(int32(l.num("cpu", 0)))}
		m := autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceCPU, Target: target}}
		if container, ok := l.get("container"); ok {
			m = autoscalingv2.MetricSpec{Type: autoscalingv2.ContainerResourceMetricSourceType, ContainerResource: &autoscalingv2.ContainerResourceMetricSource{Name: corev1.ResourceCPU, Container: container, Target: target}}
		}
		spec.Metrics = append(spec.Metrics, m)
	}
	if v, ok := l.get("memory"); ok {
		spec.Metrics = append(spec.Metrics, autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: corev1.ResourceMemory, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: new(resource.MustParse(v))},
		}})
	}
	rules := func(key string) *autoscalingv2.HPAScalingRules {
		v, ok := l.get(key)
		if !ok {
			return nil
		}
		of := &autoscalingv2.HPAScalingRules{}
		for text := range strings.SplitSeq(v, ",") {
			parts := strings.Split(text, ":")
			n, _ := strconv.Atoi(parts[1])
			period, _ := strconv.Atoi(parts[2])
			of.Policies = append(of.Policies, autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.HPAScalingPolicyType(parts[0]), Value: int32(n), PeriodSeconds: int32(period)})
		}
		return of
	}
	up, down := rules("up"), rules("down")
	if _, ok := l.get("downWindow"); ok || up != nil || down != nil {
		spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: up, ScaleDown: down}
		if ok && down == nil {
			spec.Behavior.ScaleDown = &autoscalingv2.HPAScalingRules{Policies: []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}}}
		}
		if ok {
			spec.Behavior.ScaleDown.StabilizationWindowSeconds = new(int32(l.num("downWindow", 0)))
		}
	}
	l.done()
	return hpa
}

// revision reads a ControllerRevision: image=v1 revision=1.
func (l *line) revision() *appsv1.ControllerRevision {
	l.t.Helper()
	rev := &appsv1.ControllerRevision{ObjectMeta: l.meta(), Revision: int64(l.num("revision", 1))}
	template := templateOf(l.str("image", "v1"), "web")
	rev.Data.Raw = templatePatch(&template)
	_, hash, _ := strings.Cut(l.name, "-")
	rev.Labels["controller.kubernetes.io/hash"] = hash
	l.done()
	return rev
}

// deployment reads a Deployment: replicas=3 image=v2 surge=1 unavailable=0
// Recreate paused deadline=600 history=10 minReady=0 revision=1
// status=replicas/ready/available updated=3 collisions=1
// progressing=Reason@age of=web-2 (that has timed out) rollback.
func (l *line) deployment() *appsv1.Deployment {
	l.t.Helper()
	d := &appsv1.Deployment{ObjectMeta: l.meta()}
	d.Spec.Replicas = new(int32(l.num("replicas", 1)))
	d.Spec.MinReadySeconds = int32(l.num("minReady", 0))
	d.Spec.Paused = l.has("paused")
	d.Spec.RevisionHistoryLimit = new(int32(l.num("history", 10)))
	d.Spec.ProgressDeadlineSeconds = new(int32(l.num("deadline", 600)))
	d.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	d.Spec.Template = templateOf(l.str("image", "v1"), "web")
	if l.has("Recreate") {
		d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType
	} else {
		surge, unavailable := intstr.Parse(l.str("surge", "1")), intstr.Parse(l.str("unavailable", "0"))
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}}
	}
	if v, ok := l.get("revision"); ok {
		d.Annotations = map[string]string{RevisionAnnotation: v}
	}
	if l.has("rollback") {
		d.Annotations = with(d.Annotations, rollbackAnnotation, "true")
	}
	s := &d.Status
	s.Replicas, s.ReadyReplicas, s.AvailableReplicas = l.counts("status")
	s.UpdatedReplicas = int32(l.num("updated", 0))
	if n := l.num("collisions", 0); n > 0 {
		s.CollisionCount = new(int32(n))
	}
	if v, ok := l.get("progressing"); ok {
		reason, age, _ := strings.Cut(v, "@")
		ago, err := time.ParseDuration(age)
		if err != nil {
			l.t.Fatalf("%s: %v", l.text, err)
		}
		at := metav1.NewTime(testNow.Add(-ago))
		s.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue, Reason: reason, LastUpdateTime: at, LastTransitionTime: at}}
		if rs, ok := l.get("of"); ok {
			s.Conditions[0].Message = "ReplicaSet " + rs + " has timed out progressing."
		}
	}
	l.done()
	return d
}

// node reads a node: Ready (or NotReady, Unknown; reason=…), taint=key:effect@age.
func (l *line) node() *corev1.Node {
	l.t.Helper()
	node := &corev1.Node{ObjectMeta: l.meta()}
	if node.Namespace = ""; l.value["labels"] == "" {
		node.Labels = nil
	}
	for word, status := range map[string]corev1.ConditionStatus{"Ready": corev1.ConditionTrue, "NotReady": corev1.ConditionFalse, "Unknown": corev1.ConditionUnknown} {
		if l.has(word) {
			node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, Reason: l.str("reason", reasonAgentReady), LastTransitionTime: metav1.NewTime(testNow.Add(-time.Hour))}}
		}
	}
	l.get("reason")
	if v, ok := l.get("taint"); ok {
		for text := range strings.SplitSeq(v, ",") {
			text, age, timed := strings.Cut(text, "@")
			key, effect, _ := strings.Cut(text, ":")
			taint := corev1.Taint{Key: key, Effect: corev1.TaintEffect(effect)}
			if timed {
				ago, err := time.ParseDuration(age)
				if err != nil {
					l.t.Fatalf("%s: %v", l.text, err)
				}
				taint.TimeAdded = new(metav1.NewTime(testNow.Add(-ago)))
			}
			node.Spec.Taints = append(node.Spec.Taints, taint)
		}
	}
	l.done()
	return node
}

// sequential returns names new-1, new-2, …
func sequential(prefix string) func() string {
	n := 0
	return func() string { n++; return fmt.Sprintf("%s%d", prefix, n) }
}

// admitAll is a namespace without limits.
func admitAll(object.Object) error { return nil }
