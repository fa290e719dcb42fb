package controllers

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
	_ "time/tzdata" // a machine need not have the time zones

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
)

var (
	cronJobResource = object.ResourceOf(&batchv1.CronJob{})
	cronJobKind     = batchv1.SchemeGroupVersion.WithKind("CronJob")
)

// manyMissed is the number of missed runs from which on a person is told.
const manyMissed = 100

// cronJobPlan is the outcome of one pass over a CronJob.
type cronJobPlan struct {
	cron    *batchv1.CronJob
	changed bool
	create  *batchv1.Job
	remove  []*batchv1.Job
	notes   []event
	again   time.Duration
}

func (p *cronJobPlan) tell(warning bool, reason, format string, args ...any) {
	p.notes = append(p.notes, event{about: p.cron, warning: warning, reason: reason, message: fmt.Sprintf(format, args...)})
}

// planCronJob starts cron's next job when its time has come, and removes what is
// beyond its history. owned are its jobs; taken reports whether any job has a name.
// It is pure: testdata/cronjob states its whole behavior.
//
// Of runs that were missed, while no leader was there or the one before went on,
// the last is made up for, unless it is longer ago than startingDeadlineSeconds. A
// job is named after its time, so no run happens twice.
func planCronJob(cron *batchv1.CronJob, owned []*batchv1.Job, taken func(string) bool, admit func(object.Object) error, newUID func() types.UID, now time.Time) cronJobPlan {
	plan := cronJobPlan{cron: cron}
	if object.Deleting(cron) {
		return plan // the collector takes its jobs
	}
	before := cron.DeepCopy()
	plan.follow(owned)
	plan.prune(owned)
	plan.run(owned, taken, admit, newUID, now)
	plan.changed = !equality.Semantic.DeepEqual(before, cron)
	return plan
}

// follow brings the list of active jobs up to date.
func (p *cronJobPlan) follow(owned []*batchv1.Job) {
	s := &p.cron.Status
	s.Active = slices.DeleteFunc(s.Active, func(ref corev1.ObjectReference) bool {
		at := slices.IndexFunc(owned, func(job *batchv1.Job) bool { return job.UID == ref.UID })
		if at < 0 {
			p.tell(false, "MissingJob", "active job %s went missing", ref.Name)
			return true
		}
		finished, _ := jobFinished(owned[at])
		if finished {
			p.tell(false, "SawCompletedJob", "saw completed job %s", ref.Name)
		}
		return finished
	})
	for _, job := range owned {
		if t := job.Status.CompletionTime; t != nil && jobCondition(job, batchv1.JobComplete) != nil && (s.LastSuccessfulTime == nil || s.LastSuccessfulTime.Before(t)) {
			s.LastSuccessfulTime = t.DeepCopy()
		}
	}
}

// prune removes finished jobs beyond the limits of the history, the oldest first.
func (p *cronJobPlan) prune(owned []*batchv1.Job) {
	for t, limit := range map[batchv1.JobConditionType]*int32{batchv1.JobComplete: p.cron.Spec.SuccessfulJobsHistoryLimit, batchv1.JobFailed: p.cron.Spec.FailedJobsHistoryLimit} {
		if limit == nil {
			continue
		}
		var ended []*batchv1.Job
		for _, job := range owned {
			if jobCondition(job, t) != nil && !object.Deleting(job) {
				ended = append(ended, job)
			}
		}
		slices.SortFunc(ended, func(a, b *batchv1.Job) int {
			return cmp.Or(startOf(a).Compare(startOf(b)), cmp.Compare(a.Name, b.Name))
		})
		p.remove = append(p.remove, ended[:max(len(ended)-int(*limit), 0)]...)
	}
	slices.SortFunc(p.remove, func(a, b *batchv1.Job) int { return cmp.Compare(a.Name, b.Name) })
	p.remove = p.remove[:min(len(p.remove), maxWrites/2)]
}

func startOf(job *batchv1.Job) time.Time {
	if t := job.Status.StartTime; t != nil {
		return t.Time
	}
	return job.CreationTimestamp.Time
}

// run starts the job whose time has come last, if it has not been.
func (p *cronJobPlan) run(owned []*batchv1.Job, taken func(string) bool, admit func(object.Object) error, newUID func() types.UID, now time.Time) {
	spec := &p.cron.Spec
	if deref(spec.Suspend) {
		return
	}
	schedule, err := object.ParseSchedule(spec.Schedule)
	zone := time.UTC
	if err == nil && spec.TimeZone != nil {
		zone, err = time.LoadLocation(*spec.TimeZone)
	}
	if err != nil {
		p.tell(true, "InvalidSchedule", "schedule %q, time zone %q: %v", spec.Schedule, deref(spec.TimeZone), err)
		return
	}
	due, missed := lastDue(p.cron, schedule, now.In(zone))
	if next := schedule.Next(now.In(zone)); spec.Schedule != "" && !next.IsZero() {
		if schedule.Every > 0 {
			next = nextEvery(p.cron, due, schedule.Every, now)
		}
		p.again = max(next.Sub(now), 1)
	}
	if due.IsZero() {
		return
	}
	if missed > manyMissed {
		p.tell(true, "TooManyMissedTimes", "more than %d runs were missed; only the last is made up for. Set or decrease startingDeadlineSeconds, or look at the clock", manyMissed)
	}
	name := fmt.Sprintf("%s-%d", p.cron.Name, due.Unix()/60)
	if schedule.Every > 0 && schedule.Every < time.Minute {
		name = fmt.Sprintf("%s-%d", p.cron.Name, due.Unix()) // several in a minute
	}
	if d := spec.StartingDeadlineSeconds; d != nil && due.Add(time.Duration(*d)*time.Second).Before(now) {
		p.tell(true, "MissSchedule", "missed the time %s by more than startingDeadlineSeconds", due.Format(time.RFC3339))
		return
	}
	switch {
	case len(p.cron.Status.Active) > 0 && spec.ConcurrencyPolicy == batchv1.ForbidConcurrent:
		p.tell(false, "JobAlreadyActive", "not started: the job before still runs, and concurrencyPolicy is Forbid")
		return
	case spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent:
		for _, ref := range p.cron.Status.Active {
			for _, job := range owned {
				if job.UID == ref.UID && !object.Deleting(job) && !slices.Contains(p.remove, job) {
					p.remove = append(p.remove, job)
				}
			}
		}
		p.cron.Status.Active = nil
	}
	if taken(name) {
		if !slices.ContainsFunc(owned, func(job *batchv1.Job) bool { return job.Name == name }) {
			p.tell(true, "FailedCreate", "create Job %s: there is a job of that name which is not the CronJob's", name)
		}
		p.cron.Status.LastScheduleTime = new(metav1.NewTime(due.UTC()))
		return
	}
	job := p.jobFor(name, due, newUID(), now)
	if err := admit(job); err != nil {
		if p.again = sooner(p.again, refusedAgain); !errors.Is(err, errNamespaceEnds) {
			p.tell(true, "FailedCreate", "%s", refusal(job, err))
		}
		return
	}
	p.create = job
	p.cron.Status.Active = append(p.cron.Status.Active, corev1.ObjectReference{
		APIVersion: job.APIVersion, Kind: job.Kind, Namespace: job.Namespace, Name: job.Name, UID: job.UID,
	})
	p.cron.Status.LastScheduleTime = new(metav1.NewTime(due.UTC()))
}

// lastDue returns the last time up to now at which cron was due and did not run;
// zero if there is none. missed counts such times, up to one more than manyMissed.
func lastDue(cron *batchv1.CronJob, schedule object.Schedule, now time.Time) (due time.Time, missed int) {
	since := cron.CreationTimestamp.Time
	if t := cron.Status.LastScheduleTime; t != nil {
		since = t.Time
	}
	if schedule.Every > 0 {
		n := now.Sub(since) / schedule.Every
		if n <= 0 {
			return time.Time{}, 0
		}
		return since.Add(n * schedule.Every).In(now.Location()), int(min(n, manyMissed+1))
	}
	if d := cron.Spec.StartingDeadlineSeconds; d != nil {
		if limit := now.Add(-time.Duration(*d) * time.Second); limit.After(since) {
			since = limit.Add(-time.Nanosecond)
		}
	}
	since = since.In(now.Location())
	for t := schedule.Next(since); !t.IsZero() && !t.After(now) && missed <= manyMissed; t = schedule.Next(t) {
		due = t
		missed++
	}
	// The last one of very many is looked for from the end.
	for back := time.Hour; missed > manyMissed; back *= 24 {
		from := now.Add(-back)
		last := time.Time{}
		for t := schedule.Next(from); !t.IsZero() && !t.After(now); t = schedule.Next(t) {
			last = t
		}
		if !last.IsZero() {
			return last, missed
		}
	}
	return due, missed
}

// nextEvery returns when a schedule of a fixed period comes again.
func nextEvery(cron *batchv1.CronJob, due time.Time, every time.Duration, now time.Time) time.Time {
	last := cron.CreationTimestamp.Time
	if t := cron.Status.LastScheduleTime; t != nil {
		last = t.Time
	}
	if !due.IsZero() {
		last = due
	}
	if next := last.Add(every); next.After(now) {
		return next
	}
	return now.Add(every)
}

// jobFor returns the job for the time due.
func (p *cronJobPlan) jobFor(name string, due time.Time, uid types.UID, now time.Time) *batchv1.Job {
	template := p.cron.Spec.JobTemplate.DeepCopy()
	job := &batchv1.Job{
		TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: metav1.ObjectMeta{
			Name:              name,
			Namespace:         p.cron.Namespace,
			UID:               uid,
			Generation:        1,
			CreationTimestamp: metav1.NewTime(now.Truncate(time.Second)),
			Labels:            template.Labels,
			Annotations:       with(template.Annotations, batchv1.CronJobScheduledTimestampAnnotation, due.Format(time.RFC3339)),
			OwnerReferences:   []metav1.OwnerReference{*metav1.NewControllerRef(p.cron, cronJobKind)},
		},
		Spec: template.Spec,
	}
	object.Default(job)
	object.Stamp(job)
	return job
}

// outcome turns the plan into writes.
func (p cronJobPlan) outcome(now time.Time) outcome {
	o := outcome{again: p.again, events: p.notes}
	for _, job := range p.remove {
		o.tell(p.cron, "SuccessfulDelete", "deleted job %s", job.Name)
		o.remove(job, now)
	}
	if p.create != nil {
		o.create(p.create)
		o.tell(p.cron, "SuccessfulCreate", "created job %s", p.create.Name)
		o.txn.Reason = "the time of job " + p.create.Name
	}
	if p.changed {
		o.update(p.cron)
	} else if len(o.txn.Then) > 0 {
		o.unchanged(p.cron)
	}
	return o
}

// newCronJobs returns the controller that starts the jobs of CronJobs.
func newCronJobs(newUID func() string) *controller {
	return &controller{
		name: "cronjob",
		all:  func(s state) []object.Key { return keysOf(s.index, cronJobResource) },
		affected: func(x *index, c change) []object.Key {
			return append(affectsItself(cronJobResource, c), affectsOwners(x, cronJobResource, jobResource, c)...)
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			cron, ok := object.Get[*batchv1.CronJob](s, key)
			if !ok {
				return outcome{}
			}
			admission := s.admission(cron.Namespace)
			uid := func() types.UID { return types.UID(newUID()) }
			o := planCronJob(cron, ownedBy[*batchv1.Job](s, cron), s.taken(jobResource, cron.Namespace), admission.admit, uid, now).outcome(now)
			admission.write(&o)
			return o
		},
	}
}
