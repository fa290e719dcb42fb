package object

import (
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// PodMayRunOn reports whether the node called name, with these labels, is one that
// pod's nodeSelector and required node affinity ask for. Taints and resources are
// not looked at.
func PodMayRunOn(spec *corev1.PodSpec, name string, nodeLabels map[string]string) bool {
	if len(spec.NodeSelector) > 0 && !labels.SelectorFromSet(spec.NodeSelector).Matches(labels.Set(nodeLabels)) {
		return false
	}
	if spec.Affinity == nil || spec.Affinity.NodeAffinity == nil || spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return true
	}
	terms := spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	return anyTermMatches(terms, name, nodeLabels)
}

// anyTermMatches reports whether one of terms selects the node called name, with
// these labels.
func anyTermMatches(terms []corev1.NodeSelectorTerm, name string, nodeLabels map[string]string) bool {
	return slices.ContainsFunc(terms, func(term corev1.NodeSelectorTerm) bool {
		if len(term.MatchExpressions)+len(term.MatchFields) == 0 {
			return false // as in Kubernetes: an empty term matches nothing
		}
		for i := range term.MatchExpressions {
			value, ok := nodeLabels[term.MatchExpressions[i].Key]
			if !meets(&term.MatchExpressions[i], value, ok) {
				return false
			}
		}
		for i := range term.MatchFields {
			if term.MatchFields[i].Key != "metadata.name" || !meets(&term.MatchFields[i], name, true) {
				return false
			}
		}
		return true
	})
}

// meets reports whether a value, if there is one, meets a requirement.
func meets(req *corev1.NodeSelectorRequirement, value string, ok bool) bool {
	switch req.Operator {
	case corev1.NodeSelectorOpIn:
		return ok && slices.Contains(req.Values, value)
	case corev1.NodeSelectorOpNotIn:
		return !ok || !slices.Contains(req.Values, value)
	case corev1.NodeSelectorOpExists:
		return ok
	case corev1.NodeSelectorOpDoesNotExist:
		return !ok
	case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
		if !ok || len(req.Values) != 1 {
			return false
		}
		have, err := strconv.ParseInt(value, 10, 64)
		than, wrong := strconv.ParseInt(req.Values[0], 10, 64)
		if err != nil || wrong != nil {
			return false
		}
		return req.Operator == corev1.NodeSelectorOpGt && have > than || req.Operator == corev1.NodeSelectorOpLt && have < than
	}
	return false
}
