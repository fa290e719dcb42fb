package object

import (
	"cmp"
	_ "embed"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindCronJob = define(Resource{Group: "batch", Version: "v1", Kind: "CronJob", Plural: "cronjobs", Singular: "cronjob", ShortNames: []string{"cj"}, Namespaced: true, Categories: inAll, Status: true},
	func() *batchv1.CronJob { return new(batchv1.CronJob) },
	rules[*batchv1.CronJob]{
		supported: below("spec.jobTemplate.spec", supportedJobSpec) + podTemplateBelow("spec.jobTemplate.spec.template") + `
			spec.schedule
			spec.timeZone
			spec.startingDeadlineSeconds
			spec.concurrencyPolicy
			spec.suspend
			spec.successfulJobsHistoryLimit
			spec.failedJobsHistoryLimit
			spec.jobTemplate.metadata.name
			spec.jobTemplate.metadata.labels
			spec.jobTemplate.metadata.annotations
			status
		`,
		defaults: func(cj *batchv1.CronJob) {
			setIfZero(&cj.Spec.ConcurrencyPolicy, batchv1.AllowConcurrent)
			setIfNil(&cj.Spec.Suspend, false)
			setIfNil(&cj.Spec.SuccessfulJobsHistoryLimit, 3)
			setIfNil(&cj.Spec.FailedJobsHistoryLimit, 1)
			defaultJobTemplate(&cj.Spec.JobTemplate.Spec)
		},
		validate: validateCronJob,
		columns:  columns("NAME", "SCHEDULE", "TIMEZONE", "SUSPEND", "ACTIVE:integer", "LAST SCHEDULE", "AGE", "|", "CONTAINERS", "IMAGES", "SELECTOR"),
		row: func(cj *batchv1.CronJob, now time.Time) []string {
			last := "<none>"
			if t := cj.Status.LastScheduleTime; t != nil {
				last = since(t.Time, now)
			}
			job := &cj.Spec.JobTemplate.Spec
			return append([]string{
				cj.Name, cj.Spec.Schedule, valueOr(cj.Spec.TimeZone, "<none>"), yesNo(deref(cj.Spec.Suspend)), itoa(int32(len(cj.Status.Active))), last, ageOf(cj, now),
			}, templateCells(&job.Template, job.Selector)...)
		},
		describe: func(d *describer, cj *batchv1.CronJob, related []Object) {
			d.cronJob(cj, only[*batchv1.Job](related))
		},
	})

// longestCronJobName leaves room for the eleven characters that the name of each
// of its jobs adds.
const longestCronJobName = 52

func validateCronJob(cj *batchv1.CronJob) field.ErrorList {
	var errs field.ErrorList
	if len(cj.Name) > longestCronJobName {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), cj.Name, "must be no more than 52 characters: its jobs are called after it and their time"))
	}
	spec, path := &cj.Spec, field.NewPath("spec")
	at := path.Child("schedule")
	switch _, err := ParseSchedule(spec.Schedule); {
	case spec.Schedule == "":
		errs = append(errs, field.Required(at, `say when, for example "0 3 * * *" for three o'clock every night`))
	case strings.Contains(spec.Schedule, "TZ"):
		errs = append(errs, field.Invalid(at, spec.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"))
	case err != nil:
		errs = append(errs, field.Invalid(at, spec.Schedule, err.Error()))
	}
	errs = append(errs, validateTimeZone(spec.TimeZone, path.Child("timeZone"))...)
	if s := spec.StartingDeadlineSeconds; s != nil && *s < 0 {
		errs = append(errs, field.Invalid(path.Child("startingDeadlineSeconds"), *s, apivalidation.IsNegativeErrorMsg))
	}
	errs = append(errs, oneOf(spec.ConcurrencyPolicy, []batchv1.ConcurrencyPolicy{batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent}, path.Child("concurrencyPolicy"))...)
	errs = append(errs, notNegative(spec.SuccessfulJobsHistoryLimit, path.Child("successfulJobsHistoryLimit"))...)
	errs = append(errs, notNegative(spec.FailedJobsHistoryLimit, path.Child("failedJobsHistoryLimit"))...)

	job, path := &spec.JobTemplate, path.Child("jobTemplate")
	errs = append(errs, validateLabels(job.Labels, path.Child("metadata", "labels"))...)
	errs = append(errs, validateAnnotations(job.Annotations, path.Child("metadata", "annotations"))...)
	errs = append(errs, validateJobSpec(&job.Spec, path.Child("spec"))...)
	if job.Spec.Selector != nil {
		errs = append(errs, field.Invalid(path.Child("spec", "selector"), metav1.FormatLabelSelector(job.Spec.Selector), "`selector` will be auto-generated: leave it out"))
	}
	if deref(job.Spec.ManualSelector) {
		errs = append(errs, field.NotSupported(path.Child("spec", "manualSelector"), true, []string{"nil", "false"}))
	}
	return errs
}

// zoneNames are the names of the time zone database, one a line. They are kept
// here so that every peer knows the same, whatever its machine has.
//
//go:embed zones.txt
var zoneNames string

func validateTimeZone(zone *string, path *field.Path) field.ErrorList {
	if zone == nil {
		return nil
	}
	names := strings.Fields(zoneNames)
	if _, known := slices.BinarySearch(names, *zone); known {
		return nil
	}
	hint := `name a time zone as in "Europe/Berlin" or "Etc/UTC"`
	if guess, ok := nearest(*zone, names); ok {
		hint = "did you mean " + guess + "?"
	}
	return field.ErrorList{field.Invalid(path, *zone, "unknown time zone: "+hint)}
}

func (d *describer) cronJob(cj *batchv1.CronJob, jobs []*batchv1.Job) {
	spec, job := &cj.Spec, &cj.Spec.JobTemplate.Spec
	d.line(0, "Name:", cj.Name)
	d.line(0, "Namespace:", cj.Namespace)
	d.labels(cj)
	d.line(0, "Schedule:", spec.Schedule)
	if spec.TimeZone != nil {
		d.line(0, "Time Zone:", *spec.TimeZone)
	}
	d.line(0, "Concurrency Policy:", string(spec.ConcurrencyPolicy))
	d.line(0, "Suspend:", yesNo(deref(spec.Suspend)))
	d.line(0, "Successful Job History Limit:", valueOr(spec.SuccessfulJobsHistoryLimit, "<unset>"))
	d.line(0, "Failed Job History Limit:", valueOr(spec.FailedJobsHistoryLimit, "<unset>"))
	deadline := "<unset>"
	if s := spec.StartingDeadlineSeconds; s != nil {
		deadline = valueOr(s, "") + "s"
	}
	d.line(0, "Starting Deadline Seconds:", deadline)
	d.line(0, "Selector:", "<unset>")
	d.line(0, "Parallelism:", valueOr(job.Parallelism, "<unset>"))
	d.line(0, "Completions:", valueOr(job.Completions, "<unset>"))
	if s := job.ActiveDeadlineSeconds; s != nil {
		d.line(0, "Active Deadline Seconds:", valueOr(s, "")+"s")
	}
	d.template(&job.Template)
	last := "<unset>"
	if t := cj.Status.LastScheduleTime; t != nil {
		last = d.time(*t)
	}
	d.line(0, "Last Schedule Time:", last)
	if t := cj.Status.LastSuccessfulTime; t != nil {
		d.line(0, "Last Successful Time:", d.time(*t))
	}
	d.line(0, "Active Jobs:", orNone(strings.Join(refNames(cj.Status.Active), ", ")))
	var own []*batchv1.Job
	for _, j := range jobs {
		if controls(cj, j) {
			own = append(own, j)
		}
	}
	if len(own) == 0 {
		return
	}
	slices.SortFunc(own, func(a, b *batchv1.Job) int { return cmp.Compare(a.Name, b.Name) })
	d.line(0, "Jobs:")
	d.line(1, "Name", "Status", "Completions", "Duration", "Age")
	for _, j := range own {
		d.line(1, j.Name, jobStatus(j), jobCompletions(j), jobDuration(j, d.now), ageOf(j, d.now))
	}
}

func refNames(refs []corev1.ObjectReference) []string {
	var names []string
	for _, ref := range refs {
		names = append(names, ref.Name)
	}
	return names
}
