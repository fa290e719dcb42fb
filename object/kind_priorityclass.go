package object

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindPriorityClass = define(Resource{Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Plural: "priorityclasses", Singular: "priorityclass", ShortNames: []string{"pc"}},
	func() *schedulingv1.PriorityClass { return new(schedulingv1.PriorityClass) },
	rules[*schedulingv1.PriorityClass]{
		supported: `
			value
			globalDefault
			description
			preemptionPolicy
		`,
		defaults: func(pc *schedulingv1.PriorityClass) {
			setIfNil(&pc.PreemptionPolicy, corev1.PreemptLowerPriority)
		},
		validate: validatePriorityClass,
		validateUpdate: func(pc, old *schedulingv1.PriorityClass) field.ErrorList {
			var errs field.ErrorList
			if pc.Value != old.Value {
				errs = append(errs, immutable(field.NewPath("value"), pc.Value))
			}
			if !sameValue(pc.PreemptionPolicy, old.PreemptionPolicy) {
				errs = append(errs, immutable(field.NewPath("preemptionPolicy"), valueOr(pc.PreemptionPolicy, "")))
			}
			return errs
		},
		columns: columns("NAME", "VALUE:integer", "GLOBAL-DEFAULT:boolean", "AGE", "PREEMPTIONPOLICY"),
		row: func(pc *schedulingv1.PriorityClass, now time.Time) []string {
			return []string{pc.Name, itoa(pc.Value), strconv.FormatBool(pc.GlobalDefault), ageOf(pc, now), valueOr(pc.PreemptionPolicy, "")}
		},
		describe: func(d *describer, pc *schedulingv1.PriorityClass, _ []Object) {
			d.line(0, "Name:", pc.Name)
			d.line(0, "Value:", itoa(pc.Value))
			d.line(0, "GlobalDefault:", strconv.FormatBool(pc.GlobalDefault))
			d.line(0, "PreemptionPolicy:", valueOr(pc.PreemptionPolicy, ""))
			d.line(0, "Description:", pc.Description)
			d.pairs(0, "Annotations:", "=", pc.Annotations)
		},
	})

// Priorities above the highest that users can give are the system's own.
const (
	highestUserPriority = 1_000_000_000
	systemClassPrefix   = "system-"
)

var systemPriorities = map[string]int32{
	"system-cluster-critical": 2_000_000_000,
	"system-node-critical":    2_000_001_000,
}

func validatePriorityClass(pc *schedulingv1.PriorityClass) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("value")
	value, system := systemPriorities[pc.Name]
	switch {
	case system && (pc.Value != value || pc.GlobalDefault):
		errs = append(errs, field.Forbidden(path, fmt.Sprintf("%s has the value %d, and is nobody's default", pc.Name, value)))
	case system:
	case strings.HasPrefix(pc.Name, systemClassPrefix):
		errs = append(errs, field.Forbidden(field.NewPath("metadata", "name"), "priority class names with 'system-' prefix are reserved for system use only"))
	case pc.Value > highestUserPriority:
		errs = append(errs, field.Forbidden(path, fmt.Sprintf("maximum allowed value of a user defined priority is %d", highestUserPriority)))
	}
	if p := pc.PreemptionPolicy; p != nil {
		errs = append(errs, oneOf(*p, []corev1.PreemptionPolicy{corev1.PreemptLowerPriority, corev1.PreemptNever}, field.NewPath("preemptionPolicy"))...)
	}
	return errs
}
