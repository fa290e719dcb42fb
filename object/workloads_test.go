package object

import (
	"fmt"
	"math/bits"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// TestEverythingSet: an object in which everything is set at once, most of it
// wrong, is defaulted, validated and described without a panic, and a second
// Default changes nothing.
func TestEverythingSet(t *testing.T) {
	for _, r := range Resources() {
		obj := filled(r)
		Default(obj)
		once := obj.DeepCopyObject()
		Default(obj)
		if diff := cmp.Diff(once, obj); diff != "" {
			t.Errorf("%s: a second Default changes (-once +twice):\n%s", r.Kind, diff)
		}
		kindOfObject(obj).validate(obj)
		ValidateUpdate(obj, New(r))
		ValidateUpdate(New(r), obj)
		Describe(obj, []Object{obj}, nil, now)
		Print([]Object{obj, New(r)}, now)
		Stamp(obj)
		Describe(New(r), nil, nil, now)
		Validate(New(r))
	}
}

// TestNewJobs: a job knows its pods by its uid; what the user wrote stays, for
// validation to say what is wrong with it.
func TestNewJobs(t *testing.T) {
	const own = `batch.kubernetes.io/controller-uid: u1, batch.kubernetes.io/job-name: pi, controller-uid: u1, job-name: pi`
	for _, c := range []struct{ name, spec, selector, labels, faults string }{
		{"nothing said", `{}`, `{matchLabels: {batch.kubernetes.io/controller-uid: u1}}`, `{` + own + `}`, ""},
		{"own labels stay", `{template: {metadata: {labels: {app: pi}}}}`, `{matchLabels: {batch.kubernetes.io/controller-uid: u1}}`, `{app: pi, ` + own + `}`, ""},
		{"a selector of one's own", `{manualSelector: true, selector: {matchLabels: {app: pi}}, template: {metadata: {labels: {app: pi}}}}`, `{matchLabels: {app: pi}}`, `{app: pi}`, ""},
		{
			"a copy of another job", `{selector: {matchLabels: {batch.kubernetes.io/controller-uid: u0}}}`, `{matchLabels: {batch.kubernetes.io/controller-uid: u0}}`, `{` + own + `}`,
			"spec.selector: Invalid value: \"batch.kubernetes.io/controller-uid=u0\": `selector` not auto-generated: leave it out, as it is made of the job's uid, or set manualSelector",
		},
		{
			"another selector beside", `{selector: {matchLabels: {app: pi}}}`, `{matchLabels: {app: pi, batch.kubernetes.io/controller-uid: u1}}`, `{` + own + `}`,
			"spec.selector: Invalid value: \"app=pi,batch.kubernetes.io/controller-uid=u1\": `selector` not auto-generated: leave it out, as it is made of the job's uid, or set manualSelector",
		},
	} {
		job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "pi", UID: "u1"}}
		if err := yaml.UnmarshalStrict([]byte(c.spec), &job.Spec); err != nil {
			t.Fatal(err)
		}
		job.Spec.Template.Spec = corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "a", Image: "a:1"}}}
		Default(job)
		Stamp(job)
		want := metav1.LabelSelector{}
		labels := map[string]string{}
		for text, into := range map[string]any{c.selector: &want, c.labels: &labels} {
			if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(&want, job.Spec.Selector); diff != "" {
			t.Errorf("%s: selector (-want +got):\n%s", c.name, diff)
		}
		if diff := cmp.Diff(labels, job.Spec.Template.Labels); diff != "" {
			t.Errorf("%s: labels of the pods (-want +got):\n%s", c.name, diff)
		}
		var texts []string
		for _, f := range Validate(job) {
			texts = append(texts, f.Field+": "+f.Message)
		}
		if got := strings.Join(texts, "\n"); got != c.faults {
			t.Errorf("%s: faults are\n%s\nwant\n%s", c.name, got, c.faults)
		}
		once := job.DeepCopy()
		Stamp(job)
		if diff := cmp.Diff(once, job); diff != "" {
			t.Errorf("%s: a second Stamp changes:\n%s", c.name, diff)
		}
	}
}

func TestNewPods(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{SchedulingGates: []corev1.PodSchedulingGate{{Name: "example.com/wait"}}}}
	Stamp(pod)
	if pod.Status.QOSClass != corev1.PodQOSBestEffort {
		t.Errorf("quality of service is %q", pod.Status.QOSClass)
	}
	if got := PodStatus(pod); got != "SchedulingGated" {
		t.Errorf("a new pod with gates is %q, want SchedulingGated", got)
	}
	free := &corev1.Pod{}
	Stamp(free)
	if len(free.Status.Conditions) != 0 {
		t.Errorf("a new pod without gates has conditions %v", free.Status.Conditions)
	}
}

func TestParseSchedule(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"0 3 * * *", "0 | 3 | 1-31 any | 1-12 | 0-6 any"},
		{"*/20 8-17/3 1,15 jan-mar MON,fri", "0 20 40 | 8 11 14 17 | 1 15 | 1 2 3 | 1 5"},
		{"5/20 * ? * 0", "5 25 45 | 0-23 | 1-31 any | 1-12 | 0"},
		{"* * */2 * *", "0-59 | 0-23 | 1 3 5 7 9 11 13 15 17 19 21 23 25 27 29 31 | 1-12 | 0-6 any"},
		{"* * */1 * 5,*", "0-59 | 0-23 | 1-31 any | 1-12 | 0-6 any"},
		{"0 0 29 2 *", "0 | 0 | 29 | 2 | 0-6 any"},
		{"0 0 31 2 1", "0 | 0 | 31 | 2 | 1"},
		{"@daily", "0 | 0 | 1-31 any | 1-12 | 0-6 any"},
		{"@Weekly", "0 | 0 | 1-31 any | 1-12 | 0"},
		{"@every 1h30m", "every 1h30m0s"},
		{"@every 1500ms", "every 1s"},
		{"", "has 0 fields and must have 5: minute, hour, day of month, month, day of week"},
		{"* * * *", "has 4 fields and must have 5: minute, hour, day of month, month, day of week"},
		{"0 0 3 * * *", "has 6 fields and must have 5: minute, hour, day of month, month, day of week"},
		{"60 * * * *", `minute "60": 60 is not from 0 to 59`},
		{"* 24 * * *", `hour "24": 24 is not from 0 to 23`},
		{"* * 0 * *", `day of month "0": 0 is not from 1 to 31`},
		{"* * * 13 *", `month "13": 13 is not from 1 to 12`},
		{"* * * * 7", `day of week "7": 7 is not from 0 to 6`},
		{"* * * * mo", `day of week "mo": "mo" is not a number`},
		{"+1 * * * *", `minute "+1": "+1" is not a number`},
		{"5-1 * * * *", `minute "5-1": the range 5-1 ends before it begins`},
		{"*/0 * * * *", `minute "*/0": a step must be a number from 1, is "0"`},
		{"*/x * * * *", `minute "*/x": a step must be a number from 1, is "x"`},
		{"*/9223372036854775807 * * * *", "0 | 0-23 | 1-31 any | 1-12 | 0-6 any"},
		{"1, * * * *", `minute "1,": "" is not a number`},
		{"0 0 31 2,4 *", "never comes: none of these months has such a day"},
		{"@reboot", "@reboot is unknown: use @yearly, @monthly, @weekly, @daily, @hourly or @every"},
		{"@every x", `"x" is not a duration such as "1h30m"`},
		{"@every 1ms", "must be at least a second apart"},
	} {
		s, err := ParseSchedule(c.text)
		got := s.text()
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
}

// text is a schedule as tests show it.
func (s Schedule) text() string {
	if s.Every != 0 {
		return "every " + s.Every.String()
	}
	set := func(bitset uint64, f scheduleField, free bool) string {
		var words []string
		for v := f.min; v <= f.max; v++ {
			if bitset&(1<<v) != 0 {
				words = append(words, fmt.Sprint(v))
			}
		}
		text := strings.Join(words, " ")
		if len(words) == f.max-f.min+1 {
			text = fmt.Sprintf("%d-%d", f.min, f.max)
		}
		if free {
			text += " any"
		}
		return text
	}
	f := scheduleFields
	return strings.Join([]string{
		set(s.Minute, f[0], false), set(s.Hour, f[1], false), set(s.DayOfMonth, f[2], s.AnyDay), set(s.Month, f[3], false), set(s.DayOfWeek, f[4], s.AnyWeekday),
	}, " | ")
}

// FuzzParseSchedule: whatever is read has times, within bounds.
func FuzzParseSchedule(f *testing.F) {
	for _, text := range []string{"0 3 * * *", "*/20 8-17/3 1,15 jan-mar MON,fri", "@every 1h", "@daily", "0 0 31 2 *", "*/99999999999999999999 * * * *"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSchedule(text)
		if err != nil || s.Every > 0 {
			return
		}
		for i, set := range []uint64{s.Minute, s.Hour, s.DayOfMonth, s.Month, s.DayOfWeek} {
			field := scheduleFields[i]
			if set == 0 || bits.TrailingZeros64(set) < field.min || bits.Len64(set)-1 > field.max {
				t.Errorf("%q: %s is %b", text, field.name, set)
			}
		}
	})
}

// TestZoneNames: each name in the list is one that the controller will find in
// the database that Go brings along.
func TestZoneNames(t *testing.T) {
	names := strings.Fields(zoneNames)
	if len(names) < 500 {
		t.Errorf("only %d time zones", len(names))
	}
	for i, name := range names {
		if i > 0 && names[i-1] >= name {
			t.Errorf("%s is out of order", name)
		}
		if _, err := time.LoadLocation(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDisruptionsAllowed(t *testing.T) {
	pods := func(ready, unready, deleting int) []*corev1.Pod {
		var all []*corev1.Pod
		add := func(n int, status corev1.ConditionStatus, gone bool) {
			for range n {
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", len(all))}}
				SetPodCondition(pod, corev1.PodCondition{Type: corev1.PodReady, Status: status})
				if gone {
					pod.DeletionTimestamp = &metav1.Time{Time: now}
				}
				all = append(all, pod)
			}
		}
		add(ready, corev1.ConditionTrue, false)
		add(unready, corev1.ConditionFalse, false)
		add(deleting, corev1.ConditionTrue, true)
		return all
	}
	number, share := func(n int32) *intstr.IntOrString { v := intstr.FromInt32(n); return &v }, func(s string) *intstr.IntOrString { v := intstr.FromString(s); return &v }
	for _, c := range []struct {
		name     string
		spec     policyv1.PodDisruptionBudgetSpec
		evicted  string
		pods     []*corev1.Pod
		expected int
		want     string
	}{
		{"at least two of three", policyv1.PodDisruptionBudgetSpec{MinAvailable: number(2)}, "", pods(3, 0, 0), 3, "1 allowed, 3 healthy, 2 desired"},
		{"a pod that is not ready does not count", policyv1.PodDisruptionBudgetSpec{MinAvailable: number(2)}, "", pods(2, 1, 0), 3, "0 allowed, 2 healthy, 2 desired"},
		{"nor one on its way out", policyv1.PodDisruptionBudgetSpec{MinAvailable: number(2)}, "", pods(2, 0, 1), 3, "0 allowed, 2 healthy, 2 desired"},
		{"nor one that was just evicted", policyv1.PodDisruptionBudgetSpec{MinAvailable: number(2)}, "p0", pods(3, 0, 0), 3, "0 allowed, 2 healthy, 2 desired"},
		{"never below nothing", policyv1.PodDisruptionBudgetSpec{MinAvailable: number(5)}, "", pods(3, 0, 0), 3, "0 allowed, 3 healthy, 5 desired"},
		{"a number needs no scale", policyv1.PodDisruptionBudgetSpec{MinAvailable: number(1)}, "", pods(2, 0, 0), 0, "1 allowed, 2 healthy, 1 desired"},
		{"half of five is three", policyv1.PodDisruptionBudgetSpec{MinAvailable: share("50%")}, "", pods(5, 0, 0), 5, "2 allowed, 5 healthy, 3 desired"},
		{"half of what should be, not of what is", policyv1.PodDisruptionBudgetSpec{MinAvailable: share("50%")}, "", pods(5, 0, 0), 10, "0 allowed, 5 healthy, 5 desired"},
		{"at most one missing", policyv1.PodDisruptionBudgetSpec{MaxUnavailable: number(1)}, "", pods(3, 0, 0), 3, "1 allowed, 3 healthy, 2 desired"},
		{"one missing already", policyv1.PodDisruptionBudgetSpec{MaxUnavailable: number(1)}, "", pods(2, 1, 0), 3, "0 allowed, 2 healthy, 2 desired"},
		{"a share rounds up", policyv1.PodDisruptionBudgetSpec{MaxUnavailable: share("10%")}, "", pods(3, 0, 0), 3, "1 allowed, 3 healthy, 2 desired"},
		{"more than there are", policyv1.PodDisruptionBudgetSpec{MaxUnavailable: number(9)}, "", pods(3, 0, 0), 3, "3 allowed, 3 healthy, 0 desired"},
		{"no pods, no disruptions", policyv1.PodDisruptionBudgetSpec{MaxUnavailable: number(1)}, "", nil, 0, "0 allowed, 0 healthy, 0 desired"},
		{"no budget, no disruptions", policyv1.PodDisruptionBudgetSpec{}, "", pods(3, 0, 0), 3, "0 allowed, 3 healthy, 0 desired"},
	} {
		pdb := &policyv1.PodDisruptionBudget{Spec: c.spec}
		if c.evicted != "" {
			pdb.Status.DisruptedPods = map[string]metav1.Time{c.evicted: metav1.NewTime(now)}
		}
		allowed, healthy, desired := DisruptionsAllowed(pdb, c.pods, c.expected)
		if got := fmt.Sprintf("%d allowed, %d healthy, %d desired", allowed, healthy, desired); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestBudgetSelects(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Labels: map[string]string{"app": "web"}}}
	for _, c := range []struct {
		name, namespace string
		selector        *metav1.LabelSelector
		want            bool
	}{
		{"its labels", "shop", &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, true},
		{"other labels", "shop", &metav1.LabelSelector{MatchLabels: map[string]string{"app": "api"}}, false},
		{"another namespace", "other", &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, false},
		{"an empty selector takes all", "shop", &metav1.LabelSelector{}, true},
		{"none takes nothing", "shop", nil, false},
	} {
		pdb := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: c.selector}}
		if got := BudgetSelects(pdb, pod); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestWorkloadFieldSelectors(t *testing.T) {
	for _, text := range []string{
		`{apiVersion: batch/v1, kind: Job, metadata: {name: a, namespace: default}, status: {succeeded: 3}} # status.successful=3`,
		`{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: a, namespace: default}, status: {replicas: 3}} # status.replicas=3`,
		`{apiVersion: v1, kind: ReplicationController, metadata: {name: a, namespace: default}, status: {replicas: 3}} # status.replicas=3`,
	} {
		manifest, selects, _ := strings.Cut(text, " # ")
		obj := parseObjects(t, []byte(manifest))[0]
		for selector, want := range map[string]bool{selects: true, strings.Replace(selects, "3", "4", 1): false} {
			parsed, err := FieldSelector(ResourceOf(obj), selector)
			if err != nil {
				t.Errorf("%s: %v", Title(obj), err)
			} else if got := MatchesFields(obj, parsed); got != want {
				t.Errorf("%s by %s: %v, want %v", Title(obj), selector, got, want)
			}
		}
	}
}
