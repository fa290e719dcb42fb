package object

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindJob = define(Resource{Group: "batch", Version: "v1", Kind: "Job", Plural: "jobs", Singular: "job", Namespaced: true, Categories: inAll, Status: true},
	func() *batchv1.Job { return new(batchv1.Job) },
	rules[*batchv1.Job]{
		supported:      below("spec", supportedJobSpec) + supportedPodTemplate + "status",
		defaults:       defaultJob,
		stamp:          stampJob,
		validate:       validateJob,
		validateUpdate: validateJobUpdate,
		selectable: func(job *batchv1.Job, set fields.Set) {
			set["status.successful"] = itoa(job.Status.Succeeded)
		},
		columns: columns("NAME", "STATUS", "COMPLETIONS", "DURATION", "AGE", "|", "CONTAINERS", "IMAGES", "SELECTOR"),
		row: func(job *batchv1.Job, now time.Time) []string {
			return append([]string{job.Name, jobStatus(job), jobCompletions(job), jobDuration(job, now), ageOf(job, now)},
				templateCells(&job.Spec.Template, job.Spec.Selector)...)
		},
		describe: func(d *describer, job *batchv1.Job, related []Object) { d.job(job, only[*corev1.Pod](related)) },
	})

// Below the spec of a job, but for its template. Who else manages a job is not
// among it: there is one controller.
const supportedJobSpec = `
	parallelism
	completions
	activeDeadlineSeconds
	podFailurePolicy
	successPolicy
	backoffLimit
	backoffLimitPerIndex
	maxFailedIndexes
	selector
	manualSelector
	ttlSecondsAfterFinished
	completionMode
	suspend
	podReplacementPolicy
`

// The labels by which a job knows its pods, and their older names.
const (
	legacyControllerUIDLabel = "controller-uid"
	legacyJobNameLabel       = "job-name"
)

func defaultJob(job *batchv1.Job) {
	spec := &job.Spec
	if spec.Completions == nil && spec.Parallelism == nil {
		setIfNil(&spec.Completions, 1)
	}
	setIfNil(&spec.Parallelism, 1)
	if spec.BackoffLimitPerIndex != nil {
		setIfNil(&spec.BackoffLimit, math.MaxInt32)
	}
	setIfNil(&spec.BackoffLimit, 6)
	setIfNil(&spec.CompletionMode, batchv1.NonIndexedCompletion)
	setIfNil(&spec.Suspend, false)
	setIfNil(&spec.ManualSelector, false)
	replace := batchv1.TerminatingOrFailed
	if spec.PodFailurePolicy != nil {
		replace = batchv1.Failed
	}
	setIfNil(&spec.PodReplacementPolicy, replace)
	defaultJobTemplate(spec)
	if len(job.Labels) == 0 && len(spec.Template.Labels) > 0 {
		job.Labels = map[string]string{}
		for key, value := range spec.Template.Labels {
			job.Labels[key] = value
		}
	}
}

// defaultJobTemplate fills in what a job that is a template gets too.
func defaultJobTemplate(spec *batchv1.JobSpec) {
	if spec.PodFailurePolicy != nil {
		for i := range spec.PodFailurePolicy.Rules {
			patterns := spec.PodFailurePolicy.Rules[i].OnPodConditions
			for j := range patterns {
				setIfZero(&patterns[j].Status, corev1.ConditionTrue)
			}
		}
	}
	defaultPodSpec(&spec.Template.Spec)
}

// jobLabels returns what a job's pods are labelled with, and known by.
func jobLabels(job *batchv1.Job) map[string]string {
	uid := string(job.UID)
	return map[string]string{
		batchv1.ControllerUidLabel: uid, legacyControllerUIDLabel: uid,
		batchv1.JobNameLabel: job.Name, legacyJobNameLabel: job.Name,
	}
}

// stampJob gives a new job the selector that is its own: by its uid, which no
// other job will ever have. What is there already stays, for validation to see.
func stampJob(job *batchv1.Job) {
	spec := &job.Spec
	if deref(spec.ManualSelector) {
		return
	}
	if spec.Template.Labels == nil {
		spec.Template.Labels = map[string]string{}
	}
	for key, value := range jobLabels(job) {
		if _, given := spec.Template.Labels[key]; !given {
			spec.Template.Labels[key] = value
		}
	}
	if spec.Selector == nil {
		spec.Selector = &metav1.LabelSelector{}
	}
	if _, given := spec.Selector.MatchLabels[batchv1.ControllerUidLabel]; !given {
		if spec.Selector.MatchLabels == nil {
			spec.Selector.MatchLabels = map[string]string{}
		}
		spec.Selector.MatchLabels[batchv1.ControllerUidLabel] = string(job.UID)
	}
}

func isIndexed(spec *batchv1.JobSpec) bool {
	return spec.CompletionMode != nil && *spec.CompletionMode == batchv1.IndexedCompletion
}

func validateJob(job *batchv1.Job) field.ErrorList {
	path := field.NewPath("spec")
	errs := validateJobSelector(job, path)
	errs = append(errs, validateJobSpec(&job.Spec, path)...)
	if n := job.Spec.Completions; isIndexed(&job.Spec) && n != nil && *n > 0 && job.Name != "" {
		last := fmt.Sprintf("%s-%d", job.Name, *n-1) // the longest host name of a pod
		for _, msg := range validation.IsDNS1123Label(last) {
			errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), job.Name, fmt.Sprintf("its last pod would be called %s, which no host can be: %s", last, msg)))
		}
	}
	return errs
}

// validateJobSelector checks that a job's pods are its own. Before the job has
// its uid there is no selector yet, unless the user makes one.
func validateJobSelector(job *batchv1.Job, path *field.Path) field.ErrorList {
	spec, at, meta := &job.Spec, path.Child("selector"), path.Child("template", "metadata", "labels")
	switch {
	case deref(spec.ManualSelector):
		return validateOwnSelector(spec.Selector, spec.Template.Labels, path)
	case job.UID == "":
		return validateUnstamped(job, at, meta)
	case spec.Selector == nil:
		return field.ErrorList{field.Required(at, "the selector that was made for the job is gone: put it back")}
	}
	errs := validateSelector(spec.Selector, at)
	if len(errs) > 0 {
		return errs
	}
	want := jobLabels(job)
	for _, key := range []string{batchv1.ControllerUidLabel, legacyControllerUIDLabel, batchv1.JobNameLabel, legacyJobNameLabel} {
		if got, ok := spec.Template.Labels[key]; !ok {
			errs = append(errs, field.Required(meta.Key(key), fmt.Sprintf("must be '%s'", want[key])))
		} else if got != want[key] {
			errs = append(errs, field.Invalid(meta.Key(key), got, fmt.Sprintf("must be '%s': leave it out", want[key])))
		}
	}
	if s, err := metav1.LabelSelectorAsSelector(spec.Selector); err == nil && !s.Matches(labels.Set(want)) {
		errs = append(errs, notGenerated(spec.Selector, at))
	}
	return errs
}

// validateUnstamped checks a job that has no uid yet: nothing may be there of what
// follows from that.
func validateUnstamped(job *batchv1.Job, selector, labels *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s := job.Spec.Selector; s != nil {
		if errs = validateSelector(s, selector); len(errs) == 0 && len(s.MatchLabels)+len(s.MatchExpressions) > 0 {
			errs = append(errs, notGenerated(s, selector))
		}
	}
	for _, key := range []string{batchv1.ControllerUidLabel, legacyControllerUIDLabel} {
		if got, ok := job.Spec.Template.Labels[key]; ok {
			errs = append(errs, field.Invalid(labels.Key(key), got, "will be the job's uid: leave it out"))
		}
	}
	for _, key := range []string{batchv1.JobNameLabel, legacyJobNameLabel} {
		if got, ok := job.Spec.Template.Labels[key]; ok && got != job.Name {
			errs = append(errs, field.Invalid(labels.Key(key), got, fmt.Sprintf("must be '%s': leave it out", job.Name)))
		}
	}
	return errs
}

func notGenerated(selector *metav1.LabelSelector, path *field.Path) *field.Error {
	return field.Invalid(path, metav1.FormatLabelSelector(selector), "`selector` not auto-generated: leave it out, as it is made of the job's uid, or set manualSelector")
}

// Bounds of Kubernetes on jobs with very many pods, and on their policies.
const (
	maxIndexedParallelism = 100_000
	maxFailedIndexes      = 100_000
	manyCompletions       = 100_000
	maxOfMany             = 10_000 // pods at a time, and failed indexes, beyond that
	maxPolicyRules        = 20
	maxPolicyPatterns     = 20
	maxPolicyExitCodes    = 255
	maxSucceededIndexes   = 64 << 10 // characters
)

func validateJobSpec(spec *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, n := range []struct {
		name  string
		value *int32
	}{
		{"parallelism", spec.Parallelism},
		{"completions", spec.Completions},
		{"backoffLimit", spec.BackoffLimit},
		{"backoffLimitPerIndex", spec.BackoffLimitPerIndex},
		{"maxFailedIndexes", spec.MaxFailedIndexes},
		{"ttlSecondsAfterFinished", spec.TTLSecondsAfterFinished},
	} {
		errs = append(errs, notNegative(n.value, path.Child(n.name))...)
	}
	if s := spec.ActiveDeadlineSeconds; s != nil && *s < 0 {
		errs = append(errs, field.Invalid(path.Child("activeDeadlineSeconds"), *s, "must be greater than or equal to 0"))
	}
	if mode := spec.CompletionMode; mode != nil {
		errs = append(errs, oneOf(*mode, []batchv1.CompletionMode{batchv1.NonIndexedCompletion, batchv1.IndexedCompletion}, path.Child("completionMode"))...)
	}
	errs = append(errs, validateIndexes(spec, path)...)
	if spec.PodFailurePolicy != nil {
		errs = append(errs, validateFailurePolicy(spec, path.Child("podFailurePolicy", "rules"))...)
	}
	if spec.SuccessPolicy != nil {
		errs = append(errs, validateSuccessPolicy(spec, path.Child("successPolicy"))...)
	}
	if p := spec.PodReplacementPolicy; p != nil {
		allowed := []batchv1.PodReplacementPolicy{batchv1.Failed, batchv1.TerminatingOrFailed}
		if spec.PodFailurePolicy != nil {
			allowed = allowed[:1] // how a pod ended is not known before it has
		}
		errs = append(errs, oneOf(*p, allowed, path.Child("podReplacementPolicy"))...)
	}
	errs = append(errs, validatePodTemplate(&spec.Template, path.Child("template"))...)
	at := path.Child("template", "spec", "restartPolicy")
	switch p := spec.Template.Spec.RestartPolicy; {
	case p == corev1.RestartPolicyAlways: // which is also what it is when nobody says
		errs = append(errs, field.Required(at, `a job's pods are to end: valid values: "OnFailure", "Never"`))
	case p == corev1.RestartPolicyOnFailure && spec.PodFailurePolicy != nil:
		errs = append(errs, field.Invalid(at, p, `only "Never" is supported when podFailurePolicy is specified`))
	}
	return errs
}

// validateIndexes checks what only a job can have whose pods are numbered.
func validateIndexes(spec *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if spec.MaxFailedIndexes != nil && spec.BackoffLimitPerIndex == nil {
		errs = append(errs, field.Required(path.Child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"))
	}
	if !isIndexed(spec) {
		for _, n := range []struct {
			name  string
			value *int32
		}{{"backoffLimitPerIndex", spec.BackoffLimitPerIndex}, {"maxFailedIndexes", spec.MaxFailedIndexes}} {
			if n.value != nil {
				errs = append(errs, field.Invalid(path.Child(n.name), *n.value, "requires indexed completion mode"))
			}
		}
		if spec.SuccessPolicy != nil {
			errs = append(errs, field.Invalid(path.Child("successPolicy"), field.OmitValueType{}, "requires indexed completion mode"))
		}
		return errs
	}
	atMost := func(name string, value *int32, most int, when string) {
		if value != nil && int(*value) > most {
			errs = append(errs, field.Invalid(path.Child(name), *value, fmt.Sprintf("must be less than or equal to %d%s", most, when)))
		}
	}
	if spec.Completions == nil {
		errs = append(errs, field.Required(path.Child("completions"), "when completion mode is Indexed"))
	} else {
		atMost("maxFailedIndexes", spec.MaxFailedIndexes, int(*spec.Completions), " (the number of completions)")
	}
	atMost("parallelism", spec.Parallelism, maxIndexedParallelism, " when completion mode is Indexed")
	atMost("maxFailedIndexes", spec.MaxFailedIndexes, maxFailedIndexes, "")
	if spec.Completions != nil && *spec.Completions > manyCompletions && spec.BackoffLimitPerIndex != nil {
		when := fmt.Sprintf(" when completions are above %d and used with backoff limit per index", manyCompletions)
		if spec.MaxFailedIndexes == nil {
			errs = append(errs, field.Required(path.Child("maxFailedIndexes"), fmt.Sprintf("must be specified when completions is above %d", manyCompletions)))
		}
		atMost("parallelism", spec.Parallelism, maxOfMany, when)
		atMost("maxFailedIndexes", spec.MaxFailedIndexes, maxOfMany, when)
	}
	return errs
}

func validateFailurePolicy(spec *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	rules := spec.PodFailurePolicy.Rules
	if n := len(rules); n > maxPolicyRules {
		errs = append(errs, field.TooMany(path, n, maxPolicyRules))
	}
	containers := map[string]bool{}
	eachContainer(&spec.Template.Spec, func(c *corev1.Container, _ containerKind, _ int) { containers[c.Name] = true })
	for i := range rules {
		rule, at := &rules[i], path.Index(i)
		errs = append(errs, oneOf(rule.Action, []batchv1.PodFailurePolicyAction{batchv1.PodFailurePolicyActionCount, batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyActionIgnore}, at.Child("action"))...)
		if rule.Action == batchv1.PodFailurePolicyActionFailIndex && spec.BackoffLimitPerIndex == nil {
			errs = append(errs, field.Invalid(at.Child("action"), rule.Action, "requires the backoffLimitPerIndex to be set"))
		}
		switch codes := rule.OnExitCodes != nil; {
		case codes && len(rule.OnPodConditions) > 0:
			errs = append(errs, field.Invalid(at, field.OmitValueType{}, "specifying both OnExitCodes and OnPodConditions is not supported"))
		case !codes && len(rule.OnPodConditions) == 0:
			errs = append(errs, field.Invalid(at, field.OmitValueType{}, "specifying one of OnExitCodes and OnPodConditions is required"))
		}
		if rule.OnExitCodes != nil {
			errs = append(errs, validateExitCodes(rule.OnExitCodes, containers, at.Child("onExitCodes"))...)
		}
		if n := len(rule.OnPodConditions); n > maxPolicyPatterns {
			errs = append(errs, field.TooMany(at.Child("onPodConditions"), n, maxPolicyPatterns))
		}
		for j, pattern := range rule.OnPodConditions {
			at := at.Child("onPodConditions").Index(j)
			errs = append(errs, validateQualifiedName(string(pattern.Type), at.Child("type"))...)
			errs = append(errs, oneOf(pattern.Status, []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionUnknown}, at.Child("status"))...)
		}
	}
	return errs
}

func validateExitCodes(req *batchv1.PodFailurePolicyOnExitCodesRequirement, containers map[string]bool, path *field.Path) field.ErrorList {
	errs := oneOf(req.Operator, []batchv1.PodFailurePolicyOnExitCodesOperator{batchv1.PodFailurePolicyOnExitCodesOpIn, batchv1.PodFailurePolicyOnExitCodesOpNotIn}, path.Child("operator"))
	if name := req.ContainerName; name != nil && !containers[*name] {
		errs = append(errs, field.Invalid(path.Child("containerName"), *name, "must be one of the container or initContainer names in the pod template"))
	}
	at := path.Child("values")
	switch n := len(req.Values); {
	case n == 0:
		errs = append(errs, field.Required(at, "at least one value is required"))
	case n > maxPolicyExitCodes:
		errs = append(errs, field.TooMany(at, n, maxPolicyExitCodes))
	}
	seen := map[int32]bool{}
	for i, code := range req.Values {
		if code == 0 && req.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn {
			errs = append(errs, field.Invalid(at.Index(i), code, "must not be 0 for the In operator: 0 is no failure"))
		}
		if seen[code] {
			errs = append(errs, field.Duplicate(at.Index(i), code))
		}
		seen[code] = true
	}
	if !slices.IsSorted(req.Values) {
		errs = append(errs, field.Invalid(at, req.Values, "must be ordered"))
	}
	return errs
}

func validateSuccessPolicy(spec *batchv1.JobSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	rules := spec.SuccessPolicy.Rules
	path = path.Child("rules")
	switch n := len(rules); {
	case n == 0:
		errs = append(errs, field.Required(path, "at least one rules must be specified when the successPolicy is specified"))
	case n > maxPolicyRules:
		errs = append(errs, field.TooMany(path, n, maxPolicyRules))
	}
	if !isIndexed(spec) || spec.Completions == nil {
		return errs // said already
	}
	completions := *spec.Completions
	for i := range rules {
		rule, at := &rules[i], path.Index(i)
		if rule.SucceededCount == nil && rule.SucceededIndexes == nil {
			errs = append(errs, field.Required(at, "at least one of succeededCount or succeededIndexes must be specified"))
		}
		of, what := completions, "the number of specified completions"
		if list := rule.SucceededIndexes; list != nil {
			at := at.Child("succeededIndexes")
			n, err := countIndexes(*list, completions)
			switch {
			case len(*list) > maxSucceededIndexes:
				errs = append(errs, field.TooLong(at, "", maxSucceededIndexes))
			case err != nil:
				errs = append(errs, field.Invalid(at, *list, err.Error()))
			default:
				of, what = min(of, n), "the number of indexes in the specified succeededIndexes field"
			}
		}
		if count := rule.SucceededCount; count != nil {
			at := at.Child("succeededCount")
			switch {
			case *count <= 0:
				errs = append(errs, field.Invalid(at, *count, "must be greater than 0"))
			case *count > of:
				errs = append(errs, field.Invalid(at, *count, fmt.Sprintf("must be less than or equal to %d (%s)", of, what)))
			}
		}
	}
	return errs
}

// countIndexes counts the indexes of a list such as "1,3-5,7": in ascending
// order, none twice, all below completions.
func countIndexes(list string, completions int32) (int32, error) {
	count, last := int32(0), int32(-1)
	if list == "" {
		return 0, fmt.Errorf(`must list indexes, for example "1,3-5"`)
	}
	for interval := range strings.SplitSeq(list, ",") {
		first, rest, isRange := strings.Cut(interval, "-")
		from, err := parseIndex(first, completions)
		to := from
		if err == nil && isRange {
			if to, err = parseIndex(rest, completions); err == nil && to <= from {
				err = fmt.Errorf("the interval %q does not ascend", interval)
			}
		}
		if err == nil && from <= last {
			err = fmt.Errorf("the interval %q does not come after what stands before it", interval)
		}
		if err != nil {
			return 0, err
		}
		count += to - from + 1
		last = to
	}
	return count, nil
}

func parseIndex(s string, completions int32) (int32, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	switch {
	case err != nil || n < 0:
		return 0, fmt.Errorf("%q is not an index", s)
	case n >= int64(completions):
		return 0, fmt.Errorf("the index %d is too large: the last is %d (completions - 1)", n, completions-1)
	}
	return int32(n), nil
}

// validateJobUpdate allows what a running job can change: how many pods at a
// time, its limits, its suspension. A job that has not begun can be sent to other
// nodes.
func validateJobUpdate(job, old *batchv1.Job) field.ErrorList {
	var errs field.ErrorList
	now, was, path := &job.Spec, &old.Spec, field.NewPath("spec")
	if !sameValue(now.Completions, was.Completions) && now.Completions != nil {
		switch {
		case !isIndexed(now):
			errs = append(errs, immutable(path.Child("completions"), *now.Completions))
		case now.Parallelism == nil || *now.Completions != *now.Parallelism:
			errs = append(errs, field.Invalid(path.Child("completions"), *now.Completions, "can only be modified in tandem with spec.parallelism: give both the same value"))
		}
	} else if now.Completions == nil && was.Completions != nil && !isIndexed(now) {
		errs = append(errs, immutable(path.Child("completions"), field.OmitValueType{}))
	}
	errs = append(errs, sameSelector(now.Selector, was.Selector)...)

	template := was.Template.DeepCopy()
	if deref(was.Suspend) && old.Status.StartTime == nil {
		allowScheduling(template, &now.Template)
	}
	errs = append(errs, fixedFields(now.Template, *template, "spec.template",
		"field is immutable: a job's pods are all made alike. Delete the job and create it again; only while it is suspended and has not begun, its scheduling can change (labels, annotations, node selector, node affinity, tolerations, scheduling gates)")...)

	type fixed struct {
		CompletionMode       *batchv1.CompletionMode   `json:"completionMode"`
		PodFailurePolicy     *batchv1.PodFailurePolicy `json:"podFailurePolicy"`
		BackoffLimitPerIndex *int32                    `json:"backoffLimitPerIndex"`
		ManagedBy            *string                   `json:"managedBy"`
		SuccessPolicy        *batchv1.SuccessPolicy    `json:"successPolicy"`
	}
	of := func(s *batchv1.JobSpec) fixed {
		return fixed{s.CompletionMode, s.PodFailurePolicy, s.BackoffLimitPerIndex, s.ManagedBy, s.SuccessPolicy}
	}
	return append(errs, fixedFields(of(now), of(was), "spec", "field is immutable: to change it, delete the object and create it again")...)
}

// allowScheduling copies to template what may change of it before a job begins.
func allowScheduling(template, now *corev1.PodTemplateSpec) {
	template.Labels, template.Annotations = now.Labels, now.Annotations
	template.Spec.NodeSelector, template.Spec.Tolerations, template.Spec.SchedulingGates = now.Spec.NodeSelector, now.Spec.Tolerations, now.Spec.SchedulingGates
	var nodes *corev1.NodeAffinity
	if now.Spec.Affinity != nil {
		nodes = now.Spec.Affinity.NodeAffinity
	}
	if template.Spec.Affinity == nil && now.Spec.Affinity != nil {
		template.Spec.Affinity = &corev1.Affinity{}
	}
	if template.Spec.Affinity != nil {
		template.Spec.Affinity.NodeAffinity = nodes
		if now.Spec.Affinity == nil && *template.Spec.Affinity == (corev1.Affinity{}) {
			template.Spec.Affinity = nil
		}
	}
}

// Columns

func jobCondition(job *batchv1.Job, t batchv1.JobConditionType) bool {
	return slices.ContainsFunc(job.Status.Conditions, func(c batchv1.JobCondition) bool { return c.Type == t && c.Status == corev1.ConditionTrue })
}

func jobStatus(job *batchv1.Job) string {
	switch {
	case jobCondition(job, batchv1.JobComplete):
		return "Complete"
	case jobCondition(job, batchv1.JobFailed):
		return "Failed"
	case Deleting(job):
		return "Terminating"
	case jobCondition(job, batchv1.JobSuspended):
		return "Suspended"
	case jobCondition(job, batchv1.JobFailureTarget):
		return "FailureTarget"
	case jobCondition(job, batchv1.JobSuccessCriteriaMet):
		return "SuccessCriteriaMet"
	default:
		return "Running"
	}
}

func jobCompletions(job *batchv1.Job) string {
	done, parallel := itoa(job.Status.Succeeded), job.Spec.Parallelism
	switch {
	case job.Spec.Completions != nil:
		return done + "/" + itoa(*job.Spec.Completions)
	case parallel != nil && *parallel > 1:
		return done + "/1 of " + itoa(*parallel)
	default:
		return done + "/1"
	}
}

func jobDuration(job *batchv1.Job, now time.Time) string {
	switch start, end := job.Status.StartTime, job.Status.CompletionTime; {
	case start == nil:
		return ""
	case end == nil:
		return duration.HumanDuration(now.Sub(start.Time))
	default:
		return duration.HumanDuration(end.Sub(start.Time))
	}
}

func (d *describer) job(job *batchv1.Job, pods []*corev1.Pod) {
	spec, status := &job.Spec, &job.Status
	d.line(0, "Name:", job.Name)
	d.line(0, "Namespace:", job.Namespace)
	d.line(0, "Selector:", metav1.FormatLabelSelector(spec.Selector))
	d.labels(job)
	d.controlledBy(job)
	d.line(0, "Parallelism:", valueOr(spec.Parallelism, "<unset>"))
	d.line(0, "Completions:", valueOr(spec.Completions, "<unset>"))
	if spec.CompletionMode != nil {
		d.line(0, "Completion Mode:", string(*spec.CompletionMode))
	}
	d.line(0, "Suspend:", strconv.FormatBool(deref(spec.Suspend)))
	d.line(0, "Backoff Limit:", valueOr(spec.BackoffLimit, "<unset>"))
	if spec.TTLSecondsAfterFinished != nil {
		d.line(0, "TTL Seconds After Finished:", itoa(*spec.TTLSecondsAfterFinished))
	}
	if status.StartTime != nil {
		d.line(0, "Start Time:", d.time(*status.StartTime))
	}
	if status.CompletionTime != nil {
		d.line(0, "Completed At:", d.time(*status.CompletionTime))
		d.line(0, "Duration:", jobDuration(job, d.now))
	}
	if spec.ActiveDeadlineSeconds != nil {
		d.line(0, "Active Deadline Seconds:", fmt.Sprintf("%ds", *spec.ActiveDeadlineSeconds))
	}
	active := itoa(status.Active) + " Active"
	if status.Ready != nil {
		active += fmt.Sprintf(" (%d Ready)", *status.Ready)
	}
	d.line(0, "Pods Statuses:", fmt.Sprintf("%s / %d Succeeded / %d Failed", active, status.Succeeded, status.Failed))
	if isIndexed(spec) {
		d.line(0, "Completed Indexes:", shortIndexes(status.CompletedIndexes))
		if status.FailedIndexes != nil {
			d.line(0, "Failed Indexes:", shortIndexes(*status.FailedIndexes))
		}
	}
	d.template(&spec.Template)
	d.conditions(each(status.Conditions, func(c batchv1.JobCondition) condition {
		return condition{string(c.Type), string(c.Status), c.Reason, c.Message}
	}))
	d.pods(ownPods(job, pods))
}

// shortIndexes cuts a list of indexes after some 50 characters, at a comma.
func shortIndexes(list string) string {
	const enough = 50
	if len(list) > enough {
		if i := strings.IndexByte(list[enough:], ','); i >= 0 {
			return list[:enough+i+1] + "..."
		}
	}
	return orNone(list)
}
