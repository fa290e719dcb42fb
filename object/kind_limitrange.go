package object

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindLimitRange = define(Resource{Version: "v1", Kind: "LimitRange", Plural: "limitranges", Singular: "limitrange", ShortNames: []string{"limits"}, Namespaced: true},
	func() *corev1.LimitRange { return new(corev1.LimitRange) },
	rules[*corev1.LimitRange]{
		supported: `
			spec
		`,
		defaults: defaultLimitRange,
		validate: validateLimitRange,
		columns:  columns("NAME", "CREATED AT:date"),
		row:      func(r *corev1.LimitRange, _ time.Time) []string { return []string{r.Name, createdAt(r)} },
		describe: func(d *describer, r *corev1.LimitRange, _ []Object) {
			d.meta(r)
			d.limits(0, r)
		},
	})

// defaultLimitRange derives the defaults for containers that are left open: the
// limit from the maximum, the request from the limit or else the minimum.
func defaultLimitRange(r *corev1.LimitRange) {
	for i := range r.Spec.Limits {
		if item := &r.Spec.Limits[i]; item.Type == corev1.LimitTypeContainer {
			addMissing(&item.Default, item.Max)
			addMissing(&item.DefaultRequest, item.Default)
			addMissing(&item.DefaultRequest, item.Min)
		}
	}
}

func validateLimitRange(r *corev1.LimitRange) field.ErrorList {
	var errs field.ErrorList
	types := map[corev1.LimitType]bool{}
	for i := range r.Spec.Limits {
		item, at := &r.Spec.Limits[i], field.NewPath("spec", "limits").Index(i)
		switch item.Type {
		case corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim:
		default:
			errs = append(errs, validateQualifiedName(string(item.Type), at.Child("type"))...)
			if item.Type != "" && !strings.Contains(string(item.Type), "/") {
				errs = append(errs, field.Invalid(at.Child("type"), item.Type, "must be a standard limit type or fully qualified: Pod, Container or PersistentVolumeClaim"))
			}
		}
		if types[item.Type] {
			errs = append(errs, field.Duplicate(at.Child("type"), item.Type))
		}
		types[item.Type] = true
		errs = append(errs, validateLimitRangeItem(item, at)...)
	}
	return errs
}

func validateLimitRangeItem(item *corev1.LimitRangeItem, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names, wrong := map[corev1.ResourceName]bool{}, map[corev1.ResourceName]bool{}
	for _, part := range []struct {
		name string
		list corev1.ResourceList
	}{{"max", item.Max}, {"min", item.Min}, {"default", item.Default}, {"defaultRequest", item.DefaultRequest}, {"maxLimitRequestRatio", item.MaxLimitRequestRatio}} {
		at := path.Child(part.name)
		if len(part.list) > 0 && item.Type == corev1.LimitTypePod && strings.HasPrefix(part.name, "default") {
			errs = append(errs, field.Forbidden(at, "may not be specified when `type` is 'Pod'"))
			continue
		}
		for _, name := range sortedNames(part.list) {
			if wrong[name] {
				continue // said already: defaults follow from the others
			}
			q := part.list[name]
			names[name] = true
			more := limitResourceName(name, item.Type, at.Key(string(name)))
			if q.Sign() < 0 {
				more = append(more, field.Invalid(at.Key(string(name)), q.String(), apivalidation.IsNegativeErrorMsg))
			}
			wrong[name] = len(more) > 0
			errs = append(errs, more...)
		}
	}
	if item.Type == corev1.LimitTypePersistentVolumeClaim {
		_, least := item.Min[corev1.ResourceStorage]
		_, most := item.Max[corev1.ResourceStorage]
		if !least && !most {
			errs = append(errs, field.Required(path, "either minimum or maximum storage value is required, but neither was provided"))
		}
	}
	for _, name := range sortedNames(names) {
		if wrong[name] {
			continue
		}
		errs = append(errs, orderedLimits(item, name, path)...)
	}
	return errs
}

// orderedLimits checks that min ≤ defaultRequest ≤ default ≤ max, as far as they
// are there, and that the ratio can be kept.
func orderedLimits(item *corev1.LimitRangeItem, name corev1.ResourceName, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	type named struct {
		field, word string
		list        corev1.ResourceList
	}
	if least, ok := item.Min[name]; ok {
		if most, ok := item.Max[name]; ok && least.Cmp(most) > 0 { // the defaults can only be wrong too
			return field.ErrorList{field.Invalid(path.Child("min").Key(string(name)), least.String(), fmt.Sprintf("min value %s is greater than max value %s", least.String(), most.String()))}
		}
	}
	order := []named{{"min", "min", item.Min}, {"defaultRequest", "default request", item.DefaultRequest}, {"default", "default", item.Default}, {"max", "max", item.Max}}
	if item.Type == corev1.LimitTypePod {
		order = []named{order[0], order[3]}
	}
	for i, low := range order {
		for _, high := range order[i+1:] {
			small, ok := low.list[name]
			big, okToo := high.list[name]
			if ok && okToo && small.Cmp(big) > 0 {
				errs = append(errs, field.Invalid(path.Child(low.field).Key(string(name)), small.String(),
					fmt.Sprintf("%s value %s is greater than %s value %s", low.word, small.String(), high.word, big.String())))
			}
		}
	}
	ratio, ok := item.MaxLimitRequestRatio[name]
	if !ok {
		return errs
	}
	at := path.Child("maxLimitRequestRatio").Key(string(name))
	if ratio.CmpInt64(1) < 0 {
		errs = append(errs, field.Invalid(at, ratio.String(), fmt.Sprintf("ratio %s is less than 1", ratio.String())))
	}
	least, most := item.Min[name], item.Max[name]
	if !least.IsZero() && !most.IsZero() && ratio.AsApproximateFloat64() > quotient(most, least) {
		errs = append(errs, field.Invalid(at, ratio.String(), fmt.Sprintf("ratio %s is greater than max/min = %f", ratio.String(), quotient(most, least))))
	}
	return errs
}

func limitResourceName(name corev1.ResourceName, t corev1.LimitType, at *field.Path) field.ErrorList {
	errs := invalid(at, name, validation.IsQualifiedName(string(name)))
	if len(errs) > 0 || strings.Contains(string(name), "/") {
		return errs
	}
	fine := false
	switch t {
	case corev1.LimitTypePod, corev1.LimitTypeContainer:
		fine = name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
	case corev1.LimitTypePersistentVolumeClaim:
		fine = name == corev1.ResourceStorage
	default:
		fine = true
	}
	if !fine {
		errs = append(errs, field.Invalid(at, name, fmt.Sprintf("must be a standard resource for %s", t)))
	}
	return errs
}

// limits writes the table of all limits of ranges.
func (d *describer) limits(level int, ranges ...*corev1.LimitRange) {
	d.line(level, "Type", "Resource", "Min", "Max", "Default Request", "Default Limit", "Max Limit/Request Ratio")
	d.line(level, "----", "--------", "---", "---", "---------------", "-------------", "-----------------------")
	for _, r := range ranges {
		for _, item := range r.Spec.Limits {
			lists := []corev1.ResourceList{item.Min, item.Max, item.DefaultRequest, item.Default, item.MaxLimitRequestRatio}
			names := map[corev1.ResourceName]bool{}
			for _, list := range lists {
				for name := range list {
					names[name] = true
				}
			}
			for _, name := range sortedNames(names) {
				cells := []string{string(item.Type), string(name)}
				for _, list := range lists {
					text := "-"
					if q, ok := list[name]; ok {
						text = q.String()
					}
					cells = append(cells, text)
				}
				d.line(level, cells...)
			}
		}
	}
}
