package object

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindPodDisruptionBudget = define(Resource{Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", Plural: "poddisruptionbudgets", Singular: "poddisruptionbudget", ShortNames: []string{"pdb"}, Namespaced: true, Status: true},
	func() *policyv1.PodDisruptionBudget { return new(policyv1.PodDisruptionBudget) },
	rules[*policyv1.PodDisruptionBudget]{
		supported: `
			spec
			status
		`,
		validate: func(pdb *policyv1.PodDisruptionBudget) field.ErrorList {
			return validateBudget(&pdb.Spec, field.NewPath("spec"))
		},
		columns: columns("NAME", "MIN AVAILABLE", "MAX UNAVAILABLE", "ALLOWED DISRUPTIONS:integer", "AGE"),
		row: func(pdb *policyv1.PodDisruptionBudget, now time.Time) []string {
			return []string{pdb.Name, budgetText(pdb.Spec.MinAvailable), budgetText(pdb.Spec.MaxUnavailable), itoa(pdb.Status.DisruptionsAllowed), ageOf(pdb, now)}
		},
		describe: func(d *describer, pdb *policyv1.PodDisruptionBudget, _ []Object) { d.budget(pdb) },
	})

func validateBudget(spec *policyv1.PodDisruptionBudgetSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch least, most := spec.MinAvailable != nil, spec.MaxUnavailable != nil; {
	case least && most:
		errs = append(errs, field.Invalid(path, field.OmitValueType{}, "minAvailable and maxUnavailable cannot be both set"))
	case !least && !most:
		// Kubernetes takes it, and then no pod can be evicted, which nobody wants.
		errs = append(errs, field.Required(path, "say how many pods must stay: minAvailable, or maxUnavailable"))
	}
	for _, n := range []struct {
		name  string
		value *intstr.IntOrString
	}{{"minAvailable", spec.MinAvailable}, {"maxUnavailable", spec.MaxUnavailable}} {
		wrong := intOrPercent(n.value, path.Child(n.name))
		if n.value != nil && len(wrong) == 0 && percent(n.value) > 100 {
			wrong = append(wrong, field.Invalid(path.Child(n.name), n.value, "must not be greater than 100%"))
		}
		errs = append(errs, wrong...)
	}
	errs = append(errs, validateSelector(spec.Selector, path.Child("selector"))...)
	if p := spec.UnhealthyPodEvictionPolicy; p != nil {
		errs = append(errs, oneOf(*p, []policyv1.UnhealthyPodEvictionPolicyType{policyv1.IfHealthyBudget, policyv1.AlwaysAllow}, path.Child("unhealthyPodEvictionPolicy"))...)
	}
	return errs
}

// BudgetSelects reports whether pdb is about pod. An empty selector selects
// every pod of the namespace, none selects nothing.
func BudgetSelects(pdb *policyv1.PodDisruptionBudget, pod *corev1.Pod) bool {
	if pdb.Namespace != pod.Namespace || pdb.Spec.Selector == nil {
		return false
	}
	s, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
	return err == nil && s.Matches(labels.Set(pod.Labels))
}

// DisruptionsAllowed returns how many of pods may be evicted now without fewer
// than desired being healthy. pods are those that pdb selects; expected is how
// many of them there should be by the scales of their controllers, each counted
// once. healthy is how many are ready and not on their way out; pods that
// status.disruptedPods lists count as on their way out.
func DisruptionsAllowed(pdb *policyv1.PodDisruptionBudget, pods []*corev1.Pod, expected int) (allowed, healthy, desired int) {
	scaled := func(v *intstr.IntOrString) int {
		n, err := intstr.GetScaledValueFromIntOrPercent(v, expected, true)
		if err != nil {
			return 0 // invalid: was refused when it was written
		}
		return n
	}
	switch least, most := pdb.Spec.MinAvailable, pdb.Spec.MaxUnavailable; {
	case most != nil:
		desired = max(expected-scaled(most), 0)
	case least != nil && least.Type == intstr.Int:
		expected, desired = len(pods), least.IntValue()
	case least != nil:
		desired = scaled(least)
	default:
		expected = 0 // nothing may be disrupted
	}
	for _, pod := range pods {
		if _, evicted := pdb.Status.DisruptedPods[pod.Name]; !evicted && !Deleting(pod) && PodReady(pod) {
			healthy++
		}
	}
	if expected > 0 {
		allowed = max(healthy-desired, 0)
	}
	return allowed, healthy, desired
}

func budgetText(v *intstr.IntOrString) string {
	if v == nil {
		return "N/A"
	}
	return v.String()
}

func (d *describer) budget(pdb *policyv1.PodDisruptionBudget) {
	d.line(0, "Name:", pdb.Name)
	d.line(0, "Namespace:", pdb.Namespace)
	if v := pdb.Spec.MinAvailable; v != nil {
		d.line(0, "Min available:", v.String())
	} else if v := pdb.Spec.MaxUnavailable; v != nil {
		d.line(0, "Max unavailable:", v.String())
	}
	selector := "<unset>"
	if pdb.Spec.Selector != nil {
		selector = metav1.FormatLabelSelector(pdb.Spec.Selector)
	}
	d.line(0, "Selector:", selector)
	if p := pdb.Spec.UnhealthyPodEvictionPolicy; p != nil {
		d.line(0, "Unhealthy Pod Eviction Policy:", string(*p))
	}
	s := pdb.Status
	d.line(0, "Status:")
	d.line(2, "Allowed disruptions:", itoa(s.DisruptionsAllowed))
	d.line(2, "Current:", itoa(s.CurrentHealthy))
	d.line(2, "Desired:", itoa(s.DesiredHealthy))
	d.line(2, "Total:", itoa(s.ExpectedPods))
	d.conditions(each(s.Conditions, func(c metav1.Condition) condition {
		return condition{c.Type, string(c.Status), c.Reason, c.Message}
	}))
}
