package controllers

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

const (
	// A pod that takes the place of one that failed is created 10 s after that
	// ended, after the next failure in a row 20 s, and so on up to 10 minutes.
	firstJobDelay = 10 * time.Second
	maxJobDelay   = 10 * time.Minute
	// countedAnnotation is on a failed pod of an index that has been counted, while
	// it still has its finalizer: the pod that replaces it goes on from its count.
	countedAnnotation = "holdfast.dev/counted"

	reasonJobSuspended = "JobSuspended"
	reasonJobResumed   = "JobResumed"
)

var (
	jobResource = object.ResourceOf(&batchv1.Job{})
	jobKind     = batchv1.SchemeGroupVersion.WithKind("Job")
)

// jobView is what planJob knows beside the job itself.
type jobView struct {
	owned, orphans []*corev1.Pod
	newPod         func() (suffix string, uid types.UID)
	admit          func(object.Object) error
}

// jobPlan is the outcome of one pass over a job.
type jobPlan struct {
	job     *batchv1.Job
	changed bool
	pods    claims
	create  []*corev1.Pod
	update  []*corev1.Pod // counted, or let go; without their finalizer
	remove  []removal     // the same, and deleted
	expired bool          // its time to live is over: the job itself goes
	refused string
	notes   []event
	again   time.Duration
	more    bool
}

// jobWork is the work of planJob.
type jobWork struct {
	jobView
	plan   *jobPlan
	job    *batchv1.Job
	now    time.Time
	room   *budget
	active []*corev1.Pod // neither ended nor going
	going  []*corev1.Pod // being deleted, something of them may still run
	ended  []*corev1.Pod // succeeded or failed for good
	done   indexSet      // of an indexed job: succeeded
	failed indexSet      // of an indexed job with backoffLimitPerIndex: given up
	// policy is why the policy for pod failures fails the job.
	policy string
}

// planJob moves job one step toward its completions. It is pure: testdata/job states
// its whole behavior.
//
// Every pod is counted exactly once: it has a finalizer from its creation on, and
// the transaction that counts it in the job's status takes the finalizer away. So
// no pod can vanish before it is counted, nor be counted twice, and no list of what
// is half counted is needed.
func planJob(job *batchv1.Job, view jobView, now time.Time) jobPlan {
	plan := jobPlan{job: job}
	if object.Deleting(job) {
		return plan // the collector takes its pods, with their finalizers
	}
	before := job.DeepCopy()
	r := &jobWork{jobView: view, plan: &plan, job: job, now: now, room: newBudget()}
	plan.pods = claim(view.owned, view.orphans, usable(job.Spec.Selector), func(*corev1.Pod) bool { return true }, r.room)
	for _, pod := range plan.pods.release {
		untrack(pod)
	}
	if finished, at := jobFinished(job); finished {
		for _, pod := range plan.pods.mine {
			if tracked(pod) {
				r.letGo(pod)
			}
		}
		r.expire(at)
		return plan
	}
	if n := job.Spec.Completions; r.indexed() && n != nil {
		r.done, r.failed = parseIndexes(job.Status.CompletedIndexes, int(*n)), parseIndexes(deref(job.Status.FailedIndexes), int(*n))
	}
	r.start()
	r.count()
	switch reason, message, success := r.verdict(); {
	case reason != "":
		r.end(reason, message, success)
	case deref(job.Spec.Suspend):
		r.removeAll("the job is suspended")
	default:
		r.manage()
	}
	r.setStatus()
	plan.changed = !equality.Semantic.DeepEqual(before, job)
	return plan
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func (r *jobWork) indexed() bool {
	m := r.job.Spec.CompletionMode
	return m != nil && *m == batchv1.IndexedCompletion
}

// onlyFailed: a pod that is going is replaced only once it has ended.
func (r *jobWork) onlyFailed() bool {
	p := r.job.Spec.PodReplacementPolicy
	return p != nil && *p == batchv1.Failed
}

func tracked(pod *corev1.Pod) bool {
	return slices.Contains(pod.Finalizers, batchv1.JobTrackingFinalizer)
}

func untrack(pod *corev1.Pod) {
	pod.Finalizers = slices.DeleteFunc(slices.Clone(pod.Finalizers), func(f string) bool { return f == batchv1.JobTrackingFinalizer })
}

// nothingRuns reports whether pod has ended, or is going and has nothing that could
// still run.
func nothingRuns(pod *corev1.Pod) bool {
	return object.PodPhaseFinal(pod) || object.Deleting(pod) && (pod.Spec.NodeName == "" || pod.Annotations[object.RemovedAnnotation] != "")
}

func jobCondition(job *batchv1.Job, t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range job.Status.Conditions {
		if c := &job.Status.Conditions[i]; c.Type == t && c.Status == corev1.ConditionTrue {
			return c
		}
	}
	return nil
}

// jobFinished reports whether job is complete or has failed, and since when.
func jobFinished(job *batchv1.Job) (ok bool, at time.Time) {
	for _, t := range []batchv1.JobConditionType{batchv1.JobComplete, batchv1.JobFailed} {
		if c := jobCondition(job, t); c != nil {
			return true, c.LastTransitionTime.Time
		}
	}
	return false, time.Time{}
}

// expire removes a finished job when its time to live is over.
func (r *jobWork) expire(finished time.Time) {
	ttl := r.job.Spec.TTLSecondsAfterFinished
	if ttl == nil {
		return
	}
	if left := finished.Add(time.Duration(*ttl) * time.Second).Sub(r.now); left > 0 {
		r.plan.again = sooner(r.plan.again, left)
		return
	}
	r.plan.expired = len(r.plan.update) == 0
}

// start notes when the job started, anew each time that it is resumed, and whether
// it is suspended.
func (r *jobWork) start() {
	s, now := &r.job.Status, metav1.NewTime(r.now.Truncate(time.Second))
	suspended := jobCondition(r.job, batchv1.JobSuspended) != nil
	switch {
	case deref(r.job.Spec.Suspend) && !suspended:
		s.StartTime = nil
		r.setCondition(batchv1.JobSuspended, corev1.ConditionTrue, reasonJobSuspended, "Job suspended")
		r.tell("Suspended", "Job suspended")
	case !deref(r.job.Spec.Suspend) && suspended:
		s.StartTime = &now
		r.setCondition(batchv1.JobSuspended, corev1.ConditionFalse, reasonJobResumed, "Job resumed")
		r.tell("Resumed", "Job resumed")
	case !deref(r.job.Spec.Suspend) && s.StartTime == nil:
		s.StartTime = &now
	}
}

func (r *jobWork) tell(reason, message string) {
	r.plan.notes = append(r.plan.notes, event{about: r.job, reason: reason, message: message})
}

func (r *jobWork) setCondition(t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string) {
	now := metav1.NewTime(r.now.Truncate(time.Second))
	c := batchv1.JobCondition{Type: t, Status: status, Reason: reason, Message: message, LastProbeTime: now, LastTransitionTime: now}
	for i := range r.job.Status.Conditions {
		if r.job.Status.Conditions[i].Type == t {
			r.job.Status.Conditions[i] = c
			return
		}
	}
	r.job.Status.Conditions = append(r.job.Status.Conditions, c)
}

// letGo takes the finalizer from pod. It reports whether there was room for that.
func (r *jobWork) letGo(pod *corev1.Pod) bool {
	if r.plan.more = r.plan.more || !r.room.spend(pod); r.plan.more {
		return false
	}
	untrack(pod)
	if !slices.Contains(r.plan.pods.adopt, pod) { // else it is written with that
		r.plan.update = append(r.plan.update, pod)
	}
	return true
}

// removePod deletes an active pod without counting it.
func (r *jobWork) removePod(pod *corev1.Pod, reason string) bool {
	if r.plan.more = r.plan.more || !r.room.spend(pod); r.plan.more {
		return false
	}
	untrack(pod)
	r.plan.remove = append(r.plan.remove, removal{pod, reason})
	r.active = slices.DeleteFunc(r.active, func(p *corev1.Pod) bool { return p == pod })
	if pod.Spec.NodeName != "" {
		r.going = append(r.going, pod)
	}
	return true
}

func (r *jobWork) removeAll(reason string) {
	for _, pod := range slices.Clone(r.active) {
		r.removePod(pod, reason)
	}
}

// count sorts the pods and counts those that ended since the last pass.
func (r *jobWork) count() {
	s := &r.job.Status
	for _, pod := range r.plan.pods.mine {
		isFailed := pod.Status.Phase == corev1.PodFailed || object.Deleting(pod) && pod.Status.Phase != corev1.PodSucceeded && (!r.onlyFailed() || nothingRuns(pod))
		counts := tracked(pod) && pod.Annotations[countedAnnotation] == "" && !slices.Contains(r.plan.pods.adopt, pod)
		switch {
		case pod.Status.Phase == corev1.PodSucceeded:
			r.ended = append(r.ended, pod)
			if counts && r.letGo(pod) {
				if i, ok := podIndex(pod); !r.indexed() {
					s.Succeeded++
				} else if ok && i < int(deref(r.job.Spec.Completions)) {
					r.done.add(i)
				}
			}
			continue
		case isFailed:
			if counts {
				r.countFailure(pod)
			}
			r.ended = append(r.ended, pod)
		}
		switch {
		case nothingRuns(pod):
		case object.Deleting(pod):
			r.going = append(r.going, pod)
		default:
			r.active = append(r.active, pod)
			if !tracked(pod) { // somebody took it away, or the pod is adopted
				pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
				if !slices.Contains(r.plan.pods.adopt, pod) && r.room.spend(pod) {
					r.plan.update = append(r.plan.update, pod)
				}
			}
		}
	}
	if r.indexed() {
		s.Succeeded = int32(len(r.done))
	}
}

// countFailure counts a pod that failed, by the job's policy for that.
func (r *jobWork) countFailure(pod *corev1.Pod) {
	action, message := r.failureRule(pod)
	perIndex := r.job.Spec.BackoffLimitPerIndex
	if perIndex == nil || action == batchv1.PodFailurePolicyActionFailJob {
		if !r.letGo(pod) {
			return
		}
	} else {
		if r.plan.more = r.plan.more || !r.room.spend(pod); r.plan.more {
			return
		}
		i, _ := podIndex(pod)
		failures := annotatedCount(pod, batchv1.JobIndexFailureCountAnnotation)
		if action != batchv1.PodFailurePolicyActionIgnore {
			failures++
		}
		if action == batchv1.PodFailurePolicyActionFailIndex || failures > int(*perIndex) {
			r.failed.add(i)
			untrack(pod)
		} else {
			pod.Annotations = with(pod.Annotations, countedAnnotation, "true")
		}
		r.plan.update = append(r.plan.update, pod)
	}
	if action == batchv1.PodFailurePolicyActionFailJob && r.policy == "" {
		r.policy = message
	}
	if action != batchv1.PodFailurePolicyActionIgnore {
		r.job.Status.Failed++
	}
}

// failureRule returns what the policy for pod failures says of pod: the action of
// the first rule that matches, else Count.
func (r *jobWork) failureRule(pod *corev1.Pod) (action batchv1.PodFailurePolicyAction, message string) {
	policy := r.job.Spec.PodFailurePolicy
	if policy == nil || pod.Status.Phase != corev1.PodFailed {
		return batchv1.PodFailurePolicyActionCount, ""
	}
	for i := range policy.Rules {
		rule := &policy.Rules[i]
		if codes := rule.OnExitCodes; codes != nil {
			for _, st := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
				t := st.State.Terminated
				if t == nil || t.ExitCode == 0 || codes.ContainerName != nil && *codes.ContainerName != st.Name ||
					slices.Contains(codes.Values, t.ExitCode) != (codes.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
					continue
				}
				return rule.Action, fmt.Sprintf("Container %s for pod %s/%s failed with exit code %d matching %s rule at index %d", st.Name, pod.Namespace, pod.Name, t.ExitCode, rule.Action, i)
			}
			continue
		}
		for _, pattern := range rule.OnPodConditions {
			if c := object.PodCondition(pod, pattern.Type); c != nil && c.Status == pattern.Status {
				return rule.Action, fmt.Sprintf("Pod %s/%s has condition %s matching %s rule at index %d", pod.Namespace, pod.Name, pattern.Type, rule.Action, i)
			}
		}
	}
	return batchv1.PodFailurePolicyActionCount, ""
}

func annotatedCount(pod *corev1.Pod, annotation string) int {
	n, err := strconv.Atoi(pod.Annotations[annotation])
	if err != nil {
		return 0
	}
	return max(n, 0)
}

// podIndex returns the completion index of a pod.
func podIndex(pod *corev1.Pod) (i int, ok bool) {
	i, err := strconv.Atoi(pod.Annotations[batchv1.JobCompletionIndexAnnotation])
	return i, err == nil && i >= 0
}

// verdict says whether the job is over, and why. Once said, it stays.
func (r *jobWork) verdict() (reason, message string, success bool) {
	spec, s := &r.job.Spec, &r.job.Status
	if c := jobCondition(r.job, batchv1.JobSuccessCriteriaMet); c != nil {
		return c.Reason, c.Message, true
	}
	if c := jobCondition(r.job, batchv1.JobFailureTarget); c != nil {
		return c.Reason, c.Message, false
	}
	if r.plan.more {
		return "", "", false // not all is counted
	}
	if r.policy != "" {
		return batchv1.JobReasonPodFailurePolicy, r.policy, false
	}
	if limit := spec.BackoffLimit; limit != nil && (s.Failed > *limit || r.restartsExceed(*limit)) {
		return batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit", false
	}
	if d := spec.ActiveDeadlineSeconds; d != nil && s.StartTime != nil && !deref(spec.Suspend) {
		left := s.StartTime.Add(time.Duration(*d) * time.Second).Sub(r.now)
		if left <= 0 {
			return batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline", false
		}
		r.plan.again = sooner(r.plan.again, left)
	}
	if spec.BackoffLimitPerIndex != nil {
		if most := spec.MaxFailedIndexes; most != nil && len(r.failed) > int(*most) {
			return batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes", false
		}
		if len(r.failed) > 0 && len(r.failed)+len(r.done) >= int(deref(spec.Completions)) {
			return batchv1.JobReasonFailedIndexes, "Job has failed indexes", false
		}
	}
	if spec.SuccessPolicy != nil {
		for i, rule := range spec.SuccessPolicy.Rules {
			if r.meets(rule) {
				return batchv1.JobReasonSuccessPolicy, fmt.Sprintf("Matched rules at index %d", i), true
			}
		}
	}
	complete := false
	if spec.Completions == nil {
		complete = s.Succeeded > 0 && len(r.active) == 0
	} else {
		complete = s.Succeeded >= *spec.Completions && len(r.active) == 0
	}
	if complete && !deref(spec.Suspend) {
		return batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods", true
	}
	return "", "", false
}

// restartsExceed holds the restarts of containers against the limit, in a job whose
// pods restart them.
func (r *jobWork) restartsExceed(limit int32) bool {
	if r.job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	sum := int32(0)
	for _, pod := range r.active {
		for _, st := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
			sum += st.RestartCount
		}
	}
	if limit == 0 {
		return sum > 0
	}
	return sum >= limit
}

// meets reports whether the succeeded indexes meet a rule for success.
func (r *jobWork) meets(rule batchv1.SuccessPolicyRule) bool {
	among := r.done
	if rule.SucceededIndexes != nil {
		want := parseIndexes(*rule.SucceededIndexes, int(deref(r.job.Spec.Completions)))
		among = indexSet{}
		for i := range want {
			if r.done.has(i) {
				among.add(i)
			}
		}
		if rule.SucceededCount == nil {
			return len(want) > 0 && len(among) == len(want)
		}
	}
	return rule.SucceededCount != nil && len(among) >= int(*rule.SucceededCount)
}

// end stops what still runs, and once nothing does, says that the job is over. Of a
// job that fails, pods that it stops have failed.
func (r *jobWork) end(reason, message string, success bool) {
	target, final := batchv1.JobFailureTarget, batchv1.JobFailed
	if success {
		target, final = batchv1.JobSuccessCriteriaMet, batchv1.JobComplete
	}
	if jobCondition(r.job, target) == nil {
		r.setCondition(target, corev1.ConditionTrue, reason, message)
	}
	for _, pod := range slices.Clone(r.active) {
		if r.removePod(pod, "the job is over") && !success {
			r.job.Status.Failed++
		}
	}
	for _, pod := range r.plan.pods.mine { // counted, and kept for a replacement that will not come
		switch {
		case !tracked(pod) || pod.Annotations[countedAnnotation] == "":
		case slices.Contains(r.plan.update, pod):
			untrack(pod)
		default:
			r.letGo(pod)
		}
	}
	if len(r.active)+len(r.going) > 0 || r.plan.more {
		return
	}
	r.setCondition(final, corev1.ConditionTrue, reason, message)
	if success {
		r.job.Status.CompletionTime = new(metav1.NewTime(r.now.Truncate(time.Second)))
		r.tell("Completed", "Job completed")
	} else {
		r.plan.notes = append(r.plan.notes, event{about: r.job, warning: true, reason: reason, message: message})
	}
	if ttl := r.job.Spec.TTLSecondsAfterFinished; ttl != nil {
		r.plan.again = sooner(r.plan.again, max(time.Duration(*ttl)*time.Second, 1))
	}
}

// manage keeps as many pods active as parallelism and the completions that are left
// allow.
func (r *jobWork) manage() {
	want := int(deref(r.job.Spec.Parallelism))
	if n := r.job.Spec.Completions; n != nil {
		want = min(want, int(*n)-int(r.job.Status.Succeeded)-len(r.failed))
	} else if r.job.Status.Succeeded > 0 {
		want = min(want, len(r.active)) // one has found that there is no more to do
	}
	want = max(want, 0)
	if r.indexed() {
		r.removeMisplaced()
	}
	if surplus := len(r.active) - want; surplus > 0 {
		sortByCostToLose(r.active, 0, r.now)
		for _, pod := range slices.Clone(r.active[:surplus]) {
			r.removePod(pod, "surplus, "+describeState(pod))
		}
		return
	}
	missing := want - len(r.active)
	if r.onlyFailed() {
		missing -= len(r.going)
	}
	if missing <= 0 || r.plan.more {
		return
	}
	if !r.indexed() {
		if wait := r.delay(r.ended); wait > 0 {
			r.plan.again = sooner(r.plan.again, wait)
			return
		}
		for range missing {
			if !r.create(-1, nil) {
				return
			}
		}
		return
	}
	r.createIndexes(missing)
}

// removeMisplaced removes pods of indexes that the job does not have, has done, or
// that another pod has.
func (r *jobWork) removeMisplaced() {
	seen := indexSet{}
	for _, pod := range slices.SortedFunc(slices.Values(r.active), oldestFirst) {
		i, ok := podIndex(pod)
		if !ok || i >= int(deref(r.job.Spec.Completions)) || r.done.has(i) || r.failed.has(i) || seen.has(i) {
			r.removePod(pod, "surplus: its index is not open")
			continue
		}
		seen.add(i)
	}
}

// createIndexes creates pods for the lowest open indexes.
func (r *jobWork) createIndexes(missing int) {
	taken := indexSet{}
	for _, pod := range r.active {
		if i, ok := podIndex(pod); ok {
			taken.add(i)
		}
	}
	if r.onlyFailed() {
		for _, pod := range r.going {
			if i, ok := podIndex(pod); ok {
				taken.add(i)
			}
		}
	}
	perIndex := r.job.Spec.BackoffLimitPerIndex != nil
	ended := map[int][]*corev1.Pod{}
	for _, pod := range r.ended {
		if i, ok := podIndex(pod); ok {
			ended[i] = append(ended[i], pod)
		}
	}
	if !perIndex {
		if wait := r.delay(r.ended); wait > 0 {
			r.plan.again = sooner(r.plan.again, wait)
			return
		}
	}
	for i := 0; i < int(deref(r.job.Spec.Completions)) && missing > 0; i++ {
		if taken.has(i) || r.done.has(i) || r.failed.has(i) {
			continue
		}
		var last *corev1.Pod
		if perIndex {
			if wait := r.delay(ended[i]); wait > 0 {
				r.plan.again = sooner(r.plan.again, wait)
				continue
			}
			for _, pod := range ended[i] {
				if pod.Annotations[countedAnnotation] != "" && (last == nil || oldestFirst(last, pod) < 0) {
					last = pod
				}
			}
		}
		if !r.create(i, last) {
			return
		}
		missing--
	}
}

// delay returns how long the next pod has to wait for those before it, which ended:
// longer with each failure since the last success.
func (r *jobWork) delay(ended []*corev1.Pod) time.Duration {
	sorted := slices.SortedFunc(slices.Values(ended), func(a, b *corev1.Pod) int { return r.endOf(a).Compare(r.endOf(b)) })
	failures, last := 0, time.Time{}
	for _, pod := range slices.Backward(sorted) {
		if pod.Status.Phase == corev1.PodSucceeded {
			break
		}
		if object.Deleting(pod) {
			continue // somebody's wish, and no fault of its own
		}
		if failures == 0 {
			last = r.endOf(pod)
		}
		failures++
	}
	if failures == 0 {
		return 0
	}
	return max(last.Add(min(firstJobDelay<<min(failures-1, 20), maxJobDelay)).Sub(r.now), 0)
}

// endOf returns when pod ended, as far as it says so.
func (r *jobWork) endOf(pod *corev1.Pod) time.Time {
	end := time.Time{}
	for _, st := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if t := st.State.Terminated; t != nil && t.FinishedAt.After(end) {
			end = t.FinishedAt.Time
		}
	}
	if end.IsZero() {
		if c := object.PodCondition(pod, corev1.PodReady); c != nil && !c.LastTransitionTime.IsZero() {
			return c.LastTransitionTime.Time
		}
		if pod.DeletionTimestamp != nil && pod.DeletionTimestamp.Time.Before(r.now) {
			return pod.DeletionTimestamp.Time
		}
		return pod.CreationTimestamp.Time
	}
	return end
}

// create makes a pod: of index i if that is not negative, in the place of last,
// which may be nil.
func (r *jobWork) create(i int, last *corev1.Pod) bool {
	suffix, uid := r.newPod()
	name := r.job.Name
	if i >= 0 {
		name = childName(name, strconv.Itoa(i))
	}
	pod := podOf(r.job, jobKind, &r.job.Spec.Template, childName(name, suffix), uid, r.now)
	pod.GenerateName = name + "-"
	pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	if i >= 0 {
		r.number(pod, i)
	}
	if i >= 0 && r.job.Spec.BackoffLimitPerIndex != nil {
		failures, ignored := 0, 0
		if last != nil {
			failures, ignored = annotatedCount(last, batchv1.JobIndexFailureCountAnnotation), annotatedCount(last, batchv1.JobIndexIgnoredFailureCountAnnotation)
			if action, _ := r.failureRule(last); action == batchv1.PodFailurePolicyActionIgnore {
				ignored++
			} else {
				failures++
			}
		}
		pod.Annotations = with(pod.Annotations, batchv1.JobIndexFailureCountAnnotation, strconv.Itoa(failures))
		if ignored > 0 {
			pod.Annotations = with(pod.Annotations, batchv1.JobIndexIgnoredFailureCountAnnotation, strconv.Itoa(ignored))
		}
	}
	finishPod(pod)
	if err := r.admit(pod); err != nil {
		r.plan.again = sooner(r.plan.again, refusedAgain)
		if !errors.Is(err, errNamespaceEnds) {
			r.plan.refused = refusal(pod, err)
		}
		return false
	}
	if r.plan.more = !r.room.spend(pod) || last != nil && !r.room.spend(last); r.plan.more {
		return false
	}
	if last != nil && tracked(last) {
		untrack(last)
		if !slices.Contains(r.plan.update, last) {
			r.plan.update = append(r.plan.update, last)
		}
	}
	r.plan.create = append(r.plan.create, pod)
	r.active = append(r.active, pod)
	return true
}

// number makes pod the one of index i.
func (r *jobWork) number(pod *corev1.Pod, i int) {
	index := strconv.Itoa(i)
	pod.Labels[batchv1.JobCompletionIndexAnnotation] = index
	pod.Annotations = with(pod.Annotations, batchv1.JobCompletionIndexAnnotation, index)
	if pod.Spec.Hostname == "" {
		pod.Spec.Hostname = childName(r.job.Name, index)
	}
	const variable = "JOB_COMPLETION_INDEX"
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for c := range containers {
			env := &containers[c].Env
			if slices.ContainsFunc(*env, func(v corev1.EnvVar) bool { return v.Name == variable }) {
				continue
			}
			*env = append(*env, corev1.EnvVar{Name: variable, ValueFrom: &corev1.EnvVarSource{
				FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.labels['" + batchv1.JobCompletionIndexAnnotation + "']"},
			}})
		}
	}
}

// setStatus counts the pods as they are after the plan.
func (r *jobWork) setStatus() {
	s := &r.job.Status
	ready := int32(0)
	for _, pod := range r.active {
		if object.PodReady(pod) {
			ready++
		}
	}
	s.Active, s.Ready, s.Terminating = int32(len(r.active)), &ready, new(int32(len(r.going)))
	if r.indexed() {
		s.CompletedIndexes = r.done.String()
		if r.job.Spec.BackoffLimitPerIndex != nil {
			s.FailedIndexes = new(r.failed.String())
		}
	}
}

// indexSet is a set of completion indexes.
type indexSet map[int]struct{}

func (s *indexSet) add(i int) {
	if *s == nil {
		*s = indexSet{}
	}
	(*s)[i] = struct{}{}
}

func (s indexSet) has(i int) bool { _, ok := s[i]; return ok }

// String writes the set as Kubernetes does: "0,2-5,7".
func (s indexSet) String() string {
	var b strings.Builder
	sorted := slices.Sorted(maps.Keys(s))
	for at := 0; at < len(sorted); {
		first, last := sorted[at], sorted[at]
		for at++; at < len(sorted) && sorted[at] == last+1; at++ {
			last = sorted[at]
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		switch {
		case last == first:
			fmt.Fprintf(&b, "%d", first)
		case last == first+1:
			fmt.Fprintf(&b, "%d,%d", first, last)
		default:
			fmt.Fprintf(&b, "%d-%d", first, last)
		}
	}
	return b.String()
}

// parseIndexes reads what String writes, but for indexes from limit on.
func parseIndexes(text string, limit int) indexSet {
	set := indexSet{}
	for part := range strings.SplitSeq(text, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(to); err != nil {
				continue
			}
		}
		for i := max(first, 0); i <= last && i < min(limit, math.MaxInt32); i++ {
			set.add(i)
		}
	}
	return set
}

// outcome turns the plan into writes.
func (p jobPlan) outcome(now time.Time) outcome {
	o := outcome{again: p.again, more: p.more, events: p.notes}
	p.pods.write(&o, p.job, jobKind, p.remove)
	for _, pod := range p.update {
		switch {
		case slices.ContainsFunc(p.remove, func(r removal) bool { return r.pod == pod }):
		case object.Finished(pod):
			o.delete(pod)
		default:
			o.update(pod)
		}
	}
	for _, pod := range p.create {
		o.create(pod)
		o.tell(p.job, "SuccessfulCreate", "created pod %s", pod.Name)
	}
	for _, r := range p.remove {
		o.tell(p.job, "SuccessfulDelete", "deleted pod %s: %s", r.pod.Name, r.reason)
		o.remove(r.pod, now)
	}
	if p.refused != "" {
		o.warn(p.job, "FailedCreate", "%s", p.refused)
	}
	o.txn.Reason = fmt.Sprintf("active %d, create %d, delete %d", p.job.Status.Active, len(p.create), len(p.remove))
	switch {
	case p.expired:
		o.tell(p.job, "TTLExpired", "deleted: finished longer ago than ttlSecondsAfterFinished")
		o.txn.Reason = "ttlSecondsAfterFinished"
		o.remove(p.job, now)
	case p.changed || len(p.create) > 0:
		o.update(p.job)
	case len(o.txn.Then) > 0:
		o.unchanged(p.job)
	}
	return o
}

// newJobs returns the controller that runs Jobs.
func newJobs(newUID, newSuffix func() string) *controller {
	return &controller{
		name: "job",
		all:  func(s state) []object.Key { return keysOf(s.index, jobResource) },
		affected: func(x *index, c change) []object.Key {
			return append(affectsItself(jobResource, c), affectsOwners(x, jobResource, podResource, c)...)
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			job, ok := object.Get[*batchv1.Job](s, key)
			if !ok {
				return outcome{} // deleted: the collector takes its pods
			}
			admission := s.admission(job.Namespace)
			view := jobView{
				owned:  ownedBy[*corev1.Pod](s, job),
				newPod: func() (string, types.UID) { return newSuffix(), types.UID(newUID()) },
				admit:  admission.admit,
			}
			if selector := usable(job.Spec.Selector); selector != nil {
				view.orphans = orphansFor[*corev1.Pod](s, podResource.Prefix(job.Namespace), selector)
			}
			o := planJob(job, view, now).outcome(now)
			admission.write(&o)
			return o
		},
	}
}
