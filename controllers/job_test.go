package controllers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/internal/golden"
	"github.com/holdfast-io/holdfast/object"
)

// TestPlanJob runs testdata/job/*.txtar. Each file states one rule in its comment,
// the objects before, and the plan under "want". "count" is a pod that loses its
// finalizer, "mark" one that keeps it until its index has a new pod.
func TestPlanJob(t *testing.T) {
	golden.Run(t, "testdata/job/*.txtar", func(t *testing.T, in golden.Input) string {
		job := one(t, in.File("job")).job()
		name := sequential("new")
		view := jobView{admit: admitAll, newPod: func() (string, types.UID) { n := name(); return n, types.UID("uid-" + n) }}
		if data, ok := in.Lookup("pods"); ok {
			view.owned = parsePods(t, data)
		}
		return describeJobPlan(planJob(job, view, testNow))
	})
}

func describeJobPlan(p jobPlan) string {
	var b strings.Builder
	for _, pod := range p.update {
		what := "count"
		if tracked(pod) {
			what = "mark"
		}
		fmt.Fprintf(&b, "%s %s\n", what, pod.Name)
	}
	for _, pod := range p.create {
		fmt.Fprintf(&b, "create %s", pod.Name)
		if i, ok := podIndex(pod); ok {
			fmt.Fprintf(&b, " index=%d host=%s", i, pod.Spec.Hostname)
		}
		if n, ok := pod.Annotations[batchv1.JobIndexFailureCountAnnotation]; ok {
			fmt.Fprintf(&b, " failures=%s", n)
		}
		b.WriteByte('\n')
	}
	for _, r := range p.remove {
		fmt.Fprintf(&b, "remove %s (%s)\n", r.pod.Name, r.reason)
	}
	if p.expired {
		b.WriteString("expired\n")
	}
	for _, e := range p.notes {
		fmt.Fprintf(&b, "event %s %s: %s\n", e.kind(), e.reason, e.message)
	}
	if s := p.job.Status; !p.changed {
		b.WriteString("status unchanged\n")
	} else {
		fmt.Fprintf(&b, "status active=%d ready=%d succeeded=%d failed=%d terminating=%d", s.Active, *s.Ready, s.Succeeded, s.Failed, *s.Terminating)
		if s.CompletedIndexes != "" {
			fmt.Fprintf(&b, " completed=%s", s.CompletedIndexes)
		}
		if s.FailedIndexes != nil {
			fmt.Fprintf(&b, " failedIndexes=%s", *s.FailedIndexes)
		}
		if s.StartTime != nil {
			fmt.Fprintf(&b, " started=%v ago", testNow.Sub(s.StartTime.Time))
		}
		b.WriteByte('\n')
		for _, c := range s.Conditions {
			fmt.Fprintf(&b, "condition %s=%s %s: %s\n", c.Type, c.Status, c.Reason, c.Message)
		}
	}
	if p.again > 0 {
		fmt.Fprintf(&b, "again in %v\n", p.again)
	}
	if p.more {
		b.WriteString("more\n")
	}
	return b.String()
}

// TestIndexSets: what is written is read again, and written as Kubernetes does.
func TestIndexSets(t *testing.T) {
	for text, want := range map[string]string{"": "", "3": "3", "0,1": "0,1", "0-1": "0,1", "0-2,4,6-7": "0-2,4,6,7", "5-20": "5-9", "x,2": "2"} {
		if got := parseIndexes(text, 10).String(); got != want {
			t.Errorf("%q below 10 is %q, want %q", text, got, want)
		}
	}
}

// TestJobsCountEachPodOnce plays jobs whose pods fail, are deleted, and lose their
// node, with plans that are committed late. In the end the job is complete, and its
// status has counted every pod that there ever was exactly once.
func TestJobsCountEachPodOnce(t *testing.T) {
	for seed := range historiesOr(20) {
		s := newSim(t, uint64(5000+seed))
		completions := 1 + s.rand.IntN(6)
		mode := []string{"", "Indexed"}[s.rand.IntN(2)]
		replace := []string{"Failed", "TerminatingOrFailed"}[s.rand.IntN(2)]
		job := one(t, fmt.Appendf(nil, "web completions=%d parallelism=%d backoff=100000 replace=%s %s", completions, 1+s.rand.IntN(3), replace, mode)).job()
		job.ResourceVersion = ""
		object.Default(job)
		s.put(job)
		s.jobs = true
		succeeded, failed := map[types.UID]bool{}, map[types.UID]bool{} // pods that ended so, as the agents know it
		s.check = func() {
			for _, pod := range s.pods() {
				switch {
				case pod.Status.Phase == corev1.PodSucceeded:
					succeeded[pod.UID] = true
				case pod.Status.Phase == corev1.PodFailed || object.Deleting(pod) && tracked(pod):
					failed[pod.UID] = true
				}
			}
			job, _ := object.Get[*batchv1.Job](s.view(), jobResource.Key("default", "web"))
			if job == nil {
				return
			}
			if n := int(job.Status.Succeeded); n > len(succeeded) || n > completions {
				t.Fatalf("seed %d: %d counted as succeeded, %d have, %d wanted", seed, n, len(succeeded), completions)
			}
			if n := int(job.Status.Failed); n > len(failed) {
				t.Fatalf("seed %d: %d counted as failed, %d have", seed, n, len(failed))
			}
			live := 0
			for _, pod := range s.pods() {
				if !object.Deleting(pod) && !object.PodPhaseFinal(pod) {
					live++
				}
			}
			if live > int(*job.Spec.Parallelism) {
				t.Fatalf("seed %d: %d pods run, want at most %d", seed, live, *job.Spec.Parallelism)
			}
		}
		for step := range 400 {
			if s.step(); step%4 == 0 {
				s.disturb()
			}
			if step%50 == 25 {
				node := &corev1.Node{}
				node.Name, node.UID = "n1", "n1"
				s.erase(node)
				s.now = s.now.Add(time.Second)
				s.put(node)
			}
		}
		s.settle()
		job, _ = object.Get[*batchv1.Job](s.view(), jobResource.Key("default", "web"))
		if ok, _ := jobFinished(job); !ok || jobCondition(job, batchv1.JobComplete) == nil {
			t.Fatalf("seed %d: at rest and not complete: %+v", seed, job.Status)
		}
		if int(job.Status.Succeeded) != completions || int(job.Status.Failed) != len(failed) {
			t.Fatalf("seed %d: counted %d succeeded and %d failed pods, there were %d and %d", seed, job.Status.Succeeded, job.Status.Failed, completions, len(failed))
		}
		for _, pod := range s.pods() {
			if tracked(pod) || object.Deleting(pod) {
				t.Fatalf("seed %d: at rest pod %s has finalizers %v, deleting %v", seed, pod.Name, pod.Finalizers, object.Deleting(pod))
			}
		}
	}
}

// TestDeletedJobLeavesNothing: its pods go with it, although nobody is left to take
// their finalizers; one that is left alone keeps them, without.
func TestDeletedJobLeavesNothing(t *testing.T) {
	s := newSim(t, 6)
	job := one(t, []byte("web completions=5 parallelism=3")).job()
	job.ResourceVersion = ""
	object.Default(job)
	s.put(job)
	for steps := 0; len(s.pods()) < 3; steps++ {
		if s.step(); steps > 1000 {
			t.Fatal("no pods to delete")
		}
	}
	s.commitLate()
	job, _ = object.Get[*batchv1.Job](s.view(), jobResource.Key("default", "web"))
	s.delete(job)
	s.settle()
	for _, pod := range s.pods() {
		t.Errorf("pod %s is left, finalizers %v", pod.Name, pod.Finalizers)
	}
}
