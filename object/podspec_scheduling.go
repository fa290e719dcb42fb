package object

import (
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// validateScheduling checks what says where a pod may run, and when.
func (s *podScope) validateScheduling(path *field.Path) field.ErrorList {
	spec := s.spec
	errs := validateLabels(spec.NodeSelector, path.Child("nodeSelector"))
	for i := range spec.Tolerations {
		errs = append(errs, validateToleration(&spec.Tolerations[i], path.Child("tolerations").Index(i))...)
	}
	if a := spec.Affinity; a != nil {
		errs = append(errs, validateAffinity(a, path.Child("affinity"))...)
	}
	errs = append(errs, validateSpread(spec.TopologySpreadConstraints, path.Child("topologySpreadConstraints"))...)
	taken := map[string]bool{}
	for i, gate := range spec.SchedulingGates {
		at := path.Child("schedulingGates").Index(i).Child("name")
		errs = append(errs, validateQualifiedName(gate.Name, at)...)
		if taken[gate.Name] && gate.Name != "" {
			errs = append(errs, field.Duplicate(at, gate.Name))
		}
		taken[gate.Name] = true
	}
	if s.pod != nil && spec.NodeName != "" && len(spec.SchedulingGates) > 0 {
		errs = append(errs, field.Forbidden(path.Child("nodeName"), "cannot be set until all schedulingGates have been cleared"))
	}
	return errs
}

func validateToleration(t *corev1.Toleration, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if t.Key != "" {
		errs = append(errs, invalid(path.Child("key"), t.Key, validation.IsQualifiedName(t.Key))...)
	}
	switch t.Operator {
	case corev1.TolerationOpExists:
		if t.Value != "" {
			errs = append(errs, field.Invalid(path.Child("value"), t.Value, "must be empty when `operator` is 'Exists'"))
		}
	case corev1.TolerationOpEqual, "":
		if t.Key == "" {
			errs = append(errs, field.Invalid(path.Child("operator"), t.Operator, "must be Exists when `key` is empty, which means \"match all values and all keys\""))
		}
		errs = append(errs, invalid(path.Child("value"), t.Value, validation.IsValidLabelValue(t.Value))...)
	default:
		errs = append(errs, field.NotSupported(path.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
	}
	if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
		errs = append(errs, field.Invalid(path.Child("effect"), t.Effect, "must be 'NoExecute' when `tolerationSeconds` is set"))
	}
	if t.Effect != "" { // empty: all effects
		errs = append(errs, oneOf(t.Effect, taintEffects, path.Child("effect"))...)
	}
	return errs
}

func validateAffinity(a *corev1.Affinity, path *field.Path) field.ErrorList {
	const required, preferred = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
	var errs field.ErrorList
	weight := func(w int32, path *field.Path) {
		if w < 1 || w > 100 {
			errs = append(errs, field.Invalid(path.Child("weight"), w, "must be in the range 1-100"))
		}
	}
	if na := a.NodeAffinity; na != nil {
		path := path.Child("nodeAffinity")
		if na.RequiredDuringSchedulingIgnoredDuringExecution != nil {
			errs = append(errs, validateNodeSelector(na.RequiredDuringSchedulingIgnoredDuringExecution, path.Child(required))...)
		}
		for i := range na.PreferredDuringSchedulingIgnoredDuringExecution {
			term, at := &na.PreferredDuringSchedulingIgnoredDuringExecution[i], path.Child(preferred).Index(i)
			weight(term.Weight, at)
			errs = append(errs, validateNodeTerm(&term.Preference, at.Child("preference"))...)
		}
	}
	pods := func(need []corev1.PodAffinityTerm, wish []corev1.WeightedPodAffinityTerm, path *field.Path) {
		for i := range need {
			errs = append(errs, validatePodTerm(&need[i], path.Child(required).Index(i))...)
		}
		for i := range wish {
			at := path.Child(preferred).Index(i)
			weight(wish[i].Weight, at)
			errs = append(errs, validatePodTerm(&wish[i].PodAffinityTerm, at.Child("podAffinityTerm"))...)
		}
	}
	if pa := a.PodAffinity; pa != nil {
		pods(pa.RequiredDuringSchedulingIgnoredDuringExecution, pa.PreferredDuringSchedulingIgnoredDuringExecution, path.Child("podAffinity"))
	}
	if pa := a.PodAntiAffinity; pa != nil {
		pods(pa.RequiredDuringSchedulingIgnoredDuringExecution, pa.PreferredDuringSchedulingIgnoredDuringExecution, path.Child("podAntiAffinity"))
	}
	return errs
}

// validateNodeSelector checks a choice of nodes: a node must fit one of its
// terms.
func validateNodeSelector(s *corev1.NodeSelector, path *field.Path) field.ErrorList {
	path = path.Child("nodeSelectorTerms")
	if len(s.NodeSelectorTerms) == 0 {
		return field.ErrorList{field.Required(path, "must have at least one node selector term")}
	}
	var errs field.ErrorList
	for i := range s.NodeSelectorTerms {
		errs = append(errs, validateNodeTerm(&s.NodeSelectorTerms[i], path.Index(i))...)
	}
	return errs
}

func validateNodeTerm(t *corev1.NodeSelectorTerm, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, req := range t.MatchExpressions {
		at := path.Child("matchExpressions").Index(i)
		errs = append(errs, validateQualifiedName(req.Key, at.Child("key"))...)
		values := at.Child("values")
		switch req.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(req.Values) == 0 {
				errs = append(errs, field.Required(values, "must be specified when `operator` is 'In' or 'NotIn'"))
			}
		case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
			if len(req.Values) > 0 {
				errs = append(errs, field.Forbidden(values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"))
			}
		case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
			if len(req.Values) != 1 {
				errs = append(errs, field.Required(values, "must be specified single value when `operator` is 'Lt' or 'Gt'"))
			} else if _, err := strconv.ParseInt(req.Values[0], 10, 64); err != nil {
				errs = append(errs, field.Invalid(values.Index(0), req.Values[0], "must be an integer when `operator` is 'Lt' or 'Gt'"))
			}
		default:
			errs = append(errs, oneOf(req.Operator, nodeOperators, at.Child("operator"))...)
		}
		for j, value := range req.Values {
			errs = append(errs, invalid(values.Index(j), value, validation.IsValidLabelValue(value))...)
		}
	}
	for i, req := range t.MatchFields {
		at := path.Child("matchFields").Index(i)
		if req.Key != metav1.ObjectNameField {
			errs = append(errs, field.NotSupported(at.Child("key"), req.Key, []string{metav1.ObjectNameField}))
		}
		errs = append(errs, oneOf(req.Operator, []corev1.NodeSelectorOperator{corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn}, at.Child("operator"))...)
		if len(req.Values) != 1 {
			errs = append(errs, field.Required(at.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"))
		}
		for j, value := range req.Values {
			errs = append(errs, invalid(at.Child("values").Index(j), value, apivalidation.NameIsDNSSubdomain(value, false))...)
		}
	}
	return errs
}

var nodeOperators = []corev1.NodeSelectorOperator{corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn, corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist, corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt}

func validatePodTerm(t *corev1.PodAffinityTerm, path *field.Path) field.ErrorList {
	errs := validateSelector(t.LabelSelector, path.Child("labelSelector"))
	errs = append(errs, validateSelector(t.NamespaceSelector, path.Child("namespaceSelector"))...)
	for i, ns := range t.Namespaces {
		errs = append(errs, invalid(path.Child("namespaces").Index(i), ns, apivalidation.ValidateNamespaceName(ns, false))...)
	}
	errs = append(errs, validateLabelKeys(t.MatchLabelKeys, t.LabelSelector, path, "matchLabelKeys")...)
	errs = append(errs, validateLabelKeys(t.MismatchLabelKeys, t.LabelSelector, path, "mismatchLabelKeys")...)
	for i, key := range t.MismatchLabelKeys {
		if slices.Contains(t.MatchLabelKeys, key) {
			errs = append(errs, field.Invalid(path.Child("mismatchLabelKeys").Index(i), key, "exists in both matchLabelKeys and mismatchLabelKeys"))
		}
	}
	return append(errs, validateTopologyKey(t.TopologyKey, path.Child("topologyKey"))...)
}

func validateTopologyKey(key string, path *field.Path) field.ErrorList {
	if key == "" {
		return field.ErrorList{field.Required(path, `can not be empty: name a label of nodes, for example "kubernetes.io/hostname"`)}
	}
	return invalid(path, key, validation.IsQualifiedName(key))
}

// validateLabelKeys checks labels whose values are taken from the pod itself.
func validateLabelKeys(keys []string, selector *metav1.LabelSelector, path *field.Path, name string) field.ErrorList {
	path = path.Child(name)
	if len(keys) > 0 && selector == nil {
		return field.ErrorList{field.Forbidden(path, "must not be specified when labelSelector is not set")}
	}
	var errs field.ErrorList
	for i, key := range keys {
		errs = append(errs, invalid(path.Index(i), key, validation.IsQualifiedName(key))...)
		_, chosen := selector.MatchLabels[key]
		for _, expr := range selector.MatchExpressions {
			chosen = chosen || expr.Key == key
		}
		if chosen {
			errs = append(errs, field.Invalid(path.Index(i), key, "exists in both "+name+" and labelSelector"))
		}
	}
	return errs
}

func validateSpread(constraints []corev1.TopologySpreadConstraint, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	taken := map[string]bool{}
	policies := []corev1.NodeInclusionPolicy{corev1.NodeInclusionPolicyIgnore, corev1.NodeInclusionPolicyHonor}
	for i := range constraints {
		c, at := &constraints[i], path.Index(i)
		if c.MaxSkew <= 0 {
			errs = append(errs, field.Invalid(at.Child("maxSkew"), c.MaxSkew, "must be greater than zero"))
		}
		errs = append(errs, validateTopologyKey(c.TopologyKey, at.Child("topologyKey"))...)
		errs = append(errs, oneOf(c.WhenUnsatisfiable, []corev1.UnsatisfiableConstraintAction{corev1.DoNotSchedule, corev1.ScheduleAnyway}, at.Child("whenUnsatisfiable"))...)
		pair := fmt.Sprintf("{%s, %s}", c.TopologyKey, c.WhenUnsatisfiable)
		if taken[pair] {
			errs = append(errs, field.Duplicate(at, pair))
		}
		taken[pair] = true
		if min := c.MinDomains; min != nil {
			if *min <= 0 {
				errs = append(errs, field.Invalid(at.Child("minDomains"), *min, "must be greater than zero"))
			}
			if c.WhenUnsatisfiable == corev1.ScheduleAnyway {
				errs = append(errs, field.Invalid(at.Child("minDomains"), *min, "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway"))
			}
		}
		if p := c.NodeAffinityPolicy; p != nil {
			errs = append(errs, oneOf(*p, policies, at.Child("nodeAffinityPolicy"))...)
		}
		if p := c.NodeTaintsPolicy; p != nil {
			errs = append(errs, oneOf(*p, policies, at.Child("nodeTaintsPolicy"))...)
		}
		errs = append(errs, validateSelector(c.LabelSelector, at.Child("labelSelector"))...)
		errs = append(errs, validateLabelKeys(c.MatchLabelKeys, c.LabelSelector, at, "matchLabelKeys")...)
	}
	return errs
}
