package controllers

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
)

// TestPlanCronJob runs testdata/cronjob/*.txtar: it is noon of 2026-01-01, UTC. Each
// file states one rule in its comment, the objects before, and the plan under "want".
func TestPlanCronJob(t *testing.T) {
	golden.Run(t, "testdata/cronjob/*.txtar", func(t *testing.T, in golden.Input) string {
		cron := one(t, in.File("cronjob")).cronJob()
		var jobs []*batchv1.Job
		data, _ := in.Lookup("jobs")
		for _, l := range parseLines(t, data) {
			jobs = append(jobs, l.job())
		}
		taken := func(name string) bool {
			return slices.ContainsFunc(jobs, func(job *batchv1.Job) bool { return job.Name == name })
		}
		return describeCronJobPlan(planCronJob(cron, jobs, taken, admitAll, func() types.UID { return "uid-new" }, testNow))
	})
}

func describeCronJobPlan(p cronJobPlan) string {
	var b strings.Builder
	for _, job := range p.remove {
		fmt.Fprintf(&b, "remove %s\n", job.Name)
	}
	if job := p.create; job != nil {
		fmt.Fprintf(&b, "create %s for %s selector=%v\n", job.Name, job.Annotations[batchv1.CronJobScheduledTimestampAnnotation], job.Spec.Selector.MatchLabels)
	}
	for _, e := range p.notes {
		fmt.Fprintf(&b, "event %s %s: %s\n", e.kind(), e.reason, e.message)
	}
	if s := p.cron.Status; !p.changed {
		b.WriteString("status unchanged\n")
	} else {
		b.WriteString("status active=[")
		for i, ref := range s.Active {
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(ref.Name)
		}
		b.WriteByte(']')
		if t := s.LastScheduleTime; t != nil {
			fmt.Fprintf(&b, " last=%v ago", testNow.Sub(t.Time))
		}
		if t := s.LastSuccessfulTime; t != nil {
			fmt.Fprintf(&b, " successful=%v ago", testNow.Sub(t.Time))
		}
		b.WriteByte('\n')
	}
	if p.again > 0 {
		fmt.Fprintf(&b, "again in %v\n", p.again)
	}
	return b.String()
}
