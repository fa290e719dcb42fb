package object

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// What a namespace's labels pod-security.kubernetes.io/... demand of the pods in it:
// Kubernetes' Pod Security Standards, by Kubernetes' own checks.

// PodSecurityViolations and PodSecurityPolicy are the annotations of the audit, as
// Kubernetes names them.
const (
	PodSecurityViolations = api.AuditAnnotationPrefix + api.AuditViolationsAnnotationKey
	PodSecurityPolicy     = api.AuditAnnotationPrefix + api.EnforcedPolicyAnnotationKey
)

// podSecurityDefault is the policy of a namespace without labels: everything goes.
var podSecurityDefault = func() api.Policy {
	all := api.LevelVersion{Level: api.LevelPrivileged, Version: api.LatestVersion()}
	return api.Policy{Enforce: all, Audit: all, Warn: all}
}()

var podSecurityChecks = sync.OnceValue(func() policy.Evaluator {
	checks, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		panic(fmt.Sprintf("object: the checks of pod security: %v", err)) // the library's own
	}
	return checks
})

// PodSecurity is what a namespace demands of its pods. It is immutable; its zero value
// is not valid.
type PodSecurity struct {
	policy api.Policy
	wrong  field.ErrorList
}

// PodSecurityOf returns what ns demands. A label that cannot be read counts as the
// strictest one where it enforces, as in Kubernetes.
func PodSecurityOf(ns *corev1.Namespace) PodSecurity {
	p, wrong := api.PolicyToEvaluate(ns.Labels, podSecurityDefault)
	return PodSecurity{p, wrong}
}

// All reports whether everything goes, without a warning or an annotation.
func (p PodSecurity) All() bool { return p.policy.FullyPrivileged() && len(p.wrong) == 0 }

// Enforced names the level and version that pods must keep: "baseline:latest".
func (p PodSecurity) Enforced() string { return p.policy.Enforce.String() }

// PodSecurityVerdict is what a namespace says to one pod or template.
type PodSecurityVerdict struct {
	// Refusal is why it may not be; empty: it may.
	Refusal string
	// Warning is what its author should know, Audit what the audit should. Empty: nothing.
	Warning, Audit string
}

// Pod says what p has to say to a pod that is created, or whose spec is changed.
func (p PodSecurity) Pod(pod *corev1.Pod) PodSecurityVerdict {
	v := p.look(&pod.ObjectMeta, &pod.Spec)
	if why := violations(p.policy.Enforce, &pod.ObjectMeta, &pod.Spec); why != "" {
		v.Refusal, v.Warning = "violates PodSecurity "+why, "" // he is told by the refusal
	}
	return v
}

// Template says what p has to say to an object that makes pods. It is never refused:
// its pods will be, which is what the warning is about.
func (p PodSecurity) Template(obj Object) PodSecurityVerdict {
	t := PodTemplateOf(obj)
	if t == nil {
		return PodSecurityVerdict{}
	}
	return p.look(&t.ObjectMeta, &t.Spec)
}

func (p PodSecurity) look(meta *metav1.ObjectMeta, spec *corev1.PodSpec) (v PodSecurityVerdict) {
	if why := violations(p.policy.Warn, meta, spec); why != "" {
		v.Warning = "would violate PodSecurity " + why
	}
	if why := violations(p.policy.Audit, meta, spec); why != "" {
		v.Audit = "would violate PodSecurity " + why
	}
	return v
}

// violations returns in what a pod violates a level, empty if in nothing.
func violations(lv api.LevelVersion, meta *metav1.ObjectMeta, spec *corev1.PodSpec) string {
	if lv.Level == api.LevelPrivileged {
		return ""
	}
	result := policy.AggregateCheckResults(podSecurityChecks().EvaluatePod(lv, meta, spec))
	if result.Allowed {
		return ""
	}
	return fmt.Sprintf("%q: %s", lv.String(), result.ForbiddenDetail())
}

// PodSecurityMatters reports whether an update of a pod changes what a policy looks
// at: the few fields of a pod that can change, and annotations of profiles.
func PodSecurityMatters(pod, old *corev1.Pod) bool {
	if !equality.Semantic.DeepEqual(pod.Spec, old.Spec) {
		return true
	}
	profiles := func(annotations map[string]string) map[string]string {
		annotations = maps.Clone(annotations)
		maps.DeleteFunc(annotations, func(key, _ string) bool {
			return !strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix) &&
				key != corev1.SeccompPodAnnotationKey && !strings.HasPrefix(key, corev1.SeccompContainerAnnotationKeyPrefix)
		})
		return annotations
	}
	return !maps.Equal(profiles(pod.Annotations), profiles(old.Annotations))
}

// PodSecurityFaults returns which of ns's labels are no level or version. Those that
// old had already are not held against it; old is nil for a new namespace.
func PodSecurityFaults(ns, old *corev1.Namespace) Faults {
	wrong := PodSecurityOf(ns).wrong
	if old != nil && slices.EqualFunc(wrong, PodSecurityOf(old).wrong, func(a, b *field.Error) bool { return a.Error() == b.Error() }) {
		return nil
	}
	return faultsOf(ns, wrong)
}

// PodSecurityWarnings names those of pods, the namespace's, that violate what ns, but
// not old, enforces: they run on, but will not be made again. Pods of one owner with the
// same violations are told by one line.
func PodSecurityWarnings(ns, old *corev1.Namespace, pods []*corev1.Pod) []string {
	now, was := PodSecurityOf(ns).policy.Enforce, PodSecurityOf(old).policy.Enforce
	if now == was || now.Level == api.LevelPrivileged || now.Version == was.Version && api.CompareLevels(now.Level, was.Level) < 1 {
		return nil
	}
	names := map[string][]string{} // by what is wrong
	for _, pod := range pods {
		if PodPhaseFinal(pod) {
			continue
		}
		result := policy.AggregateCheckResults(podSecurityChecks().EvaluatePod(now, &pod.ObjectMeta, &pod.Spec))
		if !result.Allowed {
			why := result.ForbiddenReason()
			names[why] = append(names[why], pod.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	var lines []string
	for why, pods := range names {
		more := ""
		switch slices.Sort(pods); len(pods) {
		case 1:
		case 2:
			more = " (and 1 other pod)"
		default:
			more = fmt.Sprintf(" (and %d other pods)", len(pods)-1)
		}
		lines = append(lines, pods[0]+more+": "+why)
	}
	slices.Sort(lines)
	return append([]string{fmt.Sprintf("existing pods in namespace %q violate the new PodSecurity enforce level %q", ns.Name, now.String())}, lines...)
}

// PodTemplateOf returns the template of the pods that obj has made, nil if it makes
// none. It is part of obj.
func PodTemplateOf(obj Object) *corev1.PodTemplateSpec {
	switch obj := obj.(type) {
	case *appsv1.Deployment:
		return &obj.Spec.Template
	case *appsv1.ReplicaSet:
		return &obj.Spec.Template
	case *appsv1.StatefulSet:
		return &obj.Spec.Template
	case *appsv1.DaemonSet:
		return &obj.Spec.Template
	case *batchv1.Job:
		return &obj.Spec.Template
	case *batchv1.CronJob:
		return &obj.Spec.JobTemplate.Spec.Template
	case *corev1.ReplicationController:
		return obj.Spec.Template
	}
	return nil
}
