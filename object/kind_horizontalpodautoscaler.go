package object

import (
	"fmt"
	"slices"
	"strings"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindHorizontalPodAutoscaler = define(Resource{Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers", Singular: "horizontalpodautoscaler", ShortNames: []string{"hpa"}, Namespaced: true, Categories: inAll, Status: true},
	func() *autoscalingv2.HorizontalPodAutoscaler { return new(autoscalingv2.HorizontalPodAutoscaler) },
	rules[*autoscalingv2.HorizontalPodAutoscaler]{
		// What neither cpu nor memory is, nobody measures.
		supported: `
			spec.scaleTargetRef
			spec.minReplicas
			spec.maxReplicas
			spec.behavior
			spec.metrics[].type
			spec.metrics[].resource
			spec.metrics[].containerResource
			status
		`,
		defaults: defaultAutoscaler,
		validate: func(hpa *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
			return validateAutoscaler(&hpa.Spec, field.NewPath("spec"))
		},
		columns: columns("NAME", "REFERENCE", "TARGETS", "MINPODS", "MAXPODS", "REPLICAS", "AGE"),
		row: func(hpa *autoscalingv2.HorizontalPodAutoscaler, now time.Time) []string {
			spec := &hpa.Spec
			return []string{
				hpa.Name, spec.ScaleTargetRef.Kind + "/" + spec.ScaleTargetRef.Name, shortTargets(hpa), valueOr(spec.MinReplicas, "<unset>"),
				itoa(spec.MaxReplicas), itoa(hpa.Status.CurrentReplicas), ageOf(hpa, now),
			}
		},
		describe: func(d *describer, hpa *autoscalingv2.HorizontalPodAutoscaler, _ []Object) { d.autoscaler(hpa) },
	})

func defaultAutoscaler(hpa *autoscalingv2.HorizontalPodAutoscaler) {
	spec := &hpa.Spec
	setIfNil(&spec.MinReplicas, 1)
	if len(spec.Metrics) == 0 {
		use := int32(80)
		spec.Metrics = []autoscalingv2.MetricSpec{{
			Type: autoscalingv2.ResourceMetricSourceType,
			Resource: &autoscalingv2.ResourceMetricSource{
				Name:   corev1.ResourceCPU,
				Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &use},
			},
		}}
	}
	// Without a behavior at all, the controller's own applies.
	if b := spec.Behavior; b != nil {
		setIfNil(&b.ScaleUp, autoscalingv2.HPAScalingRules{})
		setIfNil(&b.ScaleUp.StabilizationWindowSeconds, 0)
		setIfNil(&b.ScaleUp.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
		if len(b.ScaleUp.Policies) == 0 {
			b.ScaleUp.Policies = []autoscalingv2.HPAScalingPolicy{
				{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15},
				{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15},
			}
		}
		setIfNil(&b.ScaleDown, autoscalingv2.HPAScalingRules{})
		setIfNil(&b.ScaleDown.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
		if len(b.ScaleDown.Policies) == 0 {
			b.ScaleDown.Policies = []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15}}
		}
	}
}

func validateAutoscaler(spec *autoscalingv2.HorizontalPodAutoscalerSpec, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if n := spec.MinReplicas; n != nil && *n < 1 {
		errs = append(errs, field.Invalid(at.Child("minReplicas"), *n, "must be greater than or equal to 1"))
	}
	if spec.MaxReplicas < 1 {
		errs = append(errs, field.Invalid(at.Child("maxReplicas"), spec.MaxReplicas, "must be greater than 0: say how many pods there may be at most"))
	} else if n := spec.MinReplicas; n != nil && spec.MaxReplicas < *n {
		errs = append(errs, field.Invalid(at.Child("maxReplicas"), spec.MaxReplicas, fmt.Sprintf("must be greater than or equal to `minReplicas` (%d)", *n)))
	}
	errs = append(errs, validateObjectRef(&spec.ScaleTargetRef, "say what to scale", at.Child("scaleTargetRef"))...)
	for i := range spec.Metrics {
		errs = append(errs, validateMetric(&spec.Metrics[i], at.Child("metrics").Index(i))...)
	}
	if b := spec.Behavior; b != nil {
		errs = append(errs, validateScaling(b.ScaleUp, at.Child("behavior", "scaleUp"))...)
		errs = append(errs, validateScaling(b.ScaleDown, at.Child("behavior", "scaleDown"))...)
	}
	return errs
}

func validateObjectRef(ref *autoscalingv2.CrossVersionObjectReference, hint string, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, part := range []struct{ name, value string }{{"kind", ref.Kind}, {"name", ref.Name}} {
		if part.value == "" {
			errs = append(errs, field.Required(at.Child(part.name), hint))
		} else {
			errs = append(errs, invalid(at.Child(part.name), part.value, content.IsPathSegmentName(part.value))...)
		}
	}
	return errs
}

func validateMetric(m *autoscalingv2.MetricSpec, at *field.Path) field.ErrorList {
	kinds := []autoscalingv2.MetricSourceType{autoscalingv2.ResourceMetricSourceType, autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ObjectMetricSourceType, autoscalingv2.ExternalMetricSourceType}
	errs := oneOf(m.Type, kinds, at.Child("type"))
	wanted := ""
	if slices.Contains(kinds, m.Type) {
		wanted = strings.ToLower(string(m.Type[:1])) + string(m.Type[1:])
	}
	for _, source := range []struct {
		name  string
		given bool
	}{
		{"resource", m.Resource != nil}, {"containerResource", m.ContainerResource != nil}, {"pods", m.Pods != nil}, {"object", m.Object != nil}, {"external", m.External != nil},
	} {
		switch {
		case source.given && wanted != "" && source.name != wanted:
			errs = append(errs, field.Forbidden(at.Child(source.name), fmt.Sprintf("must populate the given metric source only: the type is %s", m.Type)))
		case !source.given && source.name == wanted:
			errs = append(errs, field.Required(at.Child(source.name), "must populate information for the given metric source"))
		}
	}
	if src := m.Resource; src != nil && wanted == "resource" {
		errs = append(errs, validateUsage(src.Name, &src.Target, at.Child("resource"))...)
	}
	if src := m.ContainerResource; src != nil && wanted == "containerResource" {
		at := at.Child("containerResource")
		if src.Container == "" {
			errs = append(errs, field.Required(at.Child("container"), "must specify a container"))
		}
		errs = append(errs, validateUsage(src.Name, &src.Target, at)...)
	}
	if src := m.Pods; src != nil && wanted == "pods" {
		at := at.Child("pods")
		errs = append(errs, validateMetricName(&src.Metric, at.Child("metric"))...)
		errs = append(errs, validateTarget(&src.Target, at.Child("target"))...)
		if src.Target.AverageValue == nil {
			errs = append(errs, field.Required(at.Child("target", "averageValue"), "must specify a positive target averageValue"))
		}
	}
	if src := m.Object; src != nil && wanted == "object" {
		at := at.Child("object")
		errs = append(errs, validateObjectRef(&src.DescribedObject, "say what is measured", at.Child("describedObject"))...)
		errs = append(errs, validateMetricName(&src.Metric, at.Child("metric"))...)
		errs = append(errs, validateTarget(&src.Target, at.Child("target"))...)
		if src.Target.Value == nil && src.Target.AverageValue == nil {
			errs = append(errs, field.Required(at.Child("target", "averageValue"), "must set either a target value or averageValue"))
		}
	}
	if src := m.External; src != nil && wanted == "external" {
		at := at.Child("external")
		errs = append(errs, validateMetricName(&src.Metric, at.Child("metric"))...)
		errs = append(errs, validateTarget(&src.Target, at.Child("target"))...)
		switch value, average := src.Target.Value != nil, src.Target.AverageValue != nil; {
		case !value && !average:
			errs = append(errs, field.Required(at.Child("target", "averageValue"), "must set either a target value for metric or a per-pod target"))
		case value && average:
			errs = append(errs, field.Forbidden(at.Child("target", "value"), "may not set both a target value for metric and a per-pod target"))
		}
	}
	return errs
}

// validateUsage checks a metric of what pods use of a resource.
func validateUsage(name corev1.ResourceName, target *autoscalingv2.MetricTarget, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if name == "" {
		errs = append(errs, field.Required(at.Child("name"), "must specify a resource name: cpu or memory"))
	}
	at = at.Child("target")
	errs = append(errs, validateTarget(target, at)...)
	switch share, value := target.AverageUtilization != nil, target.AverageValue != nil; {
	case !share && !value:
		errs = append(errs, field.Required(at.Child("averageUtilization"), "must set either a target raw value or a target utilization"))
	case share && value:
		errs = append(errs, field.Forbidden(at.Child("averageValue"), "may not set both a target raw value and a target utilization"))
	}
	return errs
}

func validateMetricName(id *autoscalingv2.MetricIdentifier, at *field.Path) field.ErrorList {
	errs := validateSelector(id.Selector, at.Child("selector"))
	if id.Name == "" {
		return append(errs, field.Required(at.Child("name"), "must specify a metric name"))
	}
	return append(errs, invalid(at.Child("name"), id.Name, content.IsPathSegmentName(id.Name))...)
}

func validateTarget(t *autoscalingv2.MetricTarget, at *field.Path) field.ErrorList {
	errs := oneOf(t.Type, []autoscalingv2.MetricTargetType{autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType}, at.Child("type"))
	for _, q := range []struct {
		name  string
		value *resource.Quantity
	}{{"value", t.Value}, {"averageValue", t.AverageValue}} {
		if q.value != nil && q.value.Sign() <= 0 {
			errs = append(errs, field.Invalid(at.Child(q.name), q.value.String(), "must be positive"))
		}
	}
	if u := t.AverageUtilization; u != nil && *u < 1 {
		errs = append(errs, field.Invalid(at.Child("averageUtilization"), *u, "must be greater than 0"))
	}
	return errs
}

// Bounds of Kubernetes on how far back an autoscaler looks, in seconds.
const (
	longestWindow = 3600
	longestPeriod = 1800
)

func validateScaling(rules *autoscalingv2.HPAScalingRules, at *field.Path) field.ErrorList {
	if rules == nil {
		return nil
	}
	var errs field.ErrorList
	window := at.Child("stabilizationWindowSeconds")
	switch s := rules.StabilizationWindowSeconds; {
	case s == nil:
	case *s < 0:
		errs = append(errs, field.Invalid(window, *s, "must be greater than or equal to zero"))
	case *s > longestWindow:
		errs = append(errs, field.Invalid(window, *s, fmt.Sprintf("must be less than or equal to %d", longestWindow)))
	}
	if p := rules.SelectPolicy; p != nil {
		errs = append(errs, oneOf(*p, []autoscalingv2.ScalingPolicySelect{autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect, autoscalingv2.DisabledPolicySelect}, at.Child("selectPolicy"))...)
	}
	if q := rules.Tolerance; q != nil && q.Sign() < 0 {
		errs = append(errs, field.Invalid(at.Child("tolerance"), q.String(), "must be greater than or equal to zero"))
	}
	if len(rules.Policies) == 0 {
		errs = append(errs, field.Required(at.Child("policies"), "must specify at least one Policy"))
	}
	for i, p := range rules.Policies {
		at := at.Child("policies").Index(i)
		errs = append(errs, oneOf(p.Type, []autoscalingv2.HPAScalingPolicyType{autoscalingv2.PodsScalingPolicy, autoscalingv2.PercentScalingPolicy}, at.Child("type"))...)
		if p.Value <= 0 {
			errs = append(errs, field.Invalid(at.Child("value"), p.Value, "must be greater than zero"))
		}
		switch s := p.PeriodSeconds; {
		case s <= 0:
			errs = append(errs, field.Invalid(at.Child("periodSeconds"), s, "must be greater than zero"))
		case s > longestPeriod:
			errs = append(errs, field.Invalid(at.Child("periodSeconds"), s, fmt.Sprintf("must be less than or equal to %d", longestPeriod)))
		}
	}
	return errs
}

// metricTarget is what is measured, how much there is of it, and how much there
// is to be.
type metricTarget struct {
	what, short     string // for people: the whole, and in a table
	current, target string
}

func metricTargets(hpa *autoscalingv2.HorizontalPodAutoscaler) []metricTarget {
	const unknown = "<unknown>"
	var all []metricTarget
	for i := range hpa.Spec.Metrics {
		m := &hpa.Spec.Metrics[i]
		var now autoscalingv2.MetricStatus
		if i < len(hpa.Status.CurrentMetrics) {
			now = hpa.Status.CurrentMetrics[i]
		}
		usage := func(what string, name corev1.ResourceName, t *autoscalingv2.MetricTarget, current *autoscalingv2.MetricValueStatus) {
			row := metricTarget{short: string(name) + ": ", current: unknown, target: "<auto>"}
			if t.AverageValue != nil {
				row.what = fmt.Sprintf("resource %s %s", name, what)
				row.target = t.AverageValue.String()
				if current != nil && current.AverageValue != nil {
					row.current = current.AverageValue.String()
				}
			} else {
				row.what = fmt.Sprintf("resource %s %s (as a percentage of request)", name, what)
				if t.AverageUtilization != nil {
					row.target = fmt.Sprintf("%d%%", *t.AverageUtilization)
				}
				if current != nil && current.AverageUtilization != nil {
					row.current = fmt.Sprintf("%d%%", *current.AverageUtilization)
				}
			}
			all = append(all, row)
		}
		// metric is one that somebody else measures; average: for each pod.
		metric := func(what string, t *autoscalingv2.MetricTarget, current *autoscalingv2.MetricValueStatus) {
			row := metricTarget{what: what, current: unknown}
			wanted, got := t.Value, (*resource.Quantity)(nil)
			if current != nil {
				got = current.Value
			}
			if t.AverageValue != nil {
				wanted = t.AverageValue
				if current != nil {
					got = current.AverageValue
				}
			}
			if wanted != nil {
				row.target = wanted.String()
			}
			if got != nil {
				row.current = got.String()
			}
			all = append(all, row)
		}
		switch {
		case m.Resource != nil:
			var current *autoscalingv2.MetricValueStatus
			if now.Resource != nil {
				current = &now.Resource.Current
			}
			usage("on pods", m.Resource.Name, &m.Resource.Target, current)
		case m.ContainerResource != nil:
			var current *autoscalingv2.MetricValueStatus
			if now.ContainerResource != nil {
				current = &now.ContainerResource.Current
			}
			usage(fmt.Sprintf("of container %q on pods", m.ContainerResource.Container), m.ContainerResource.Name, &m.ContainerResource.Target, current)
		case m.Pods != nil:
			var current *autoscalingv2.MetricValueStatus
			if now.Pods != nil {
				current = &now.Pods.Current
			}
			metric(fmt.Sprintf("%q on pods", m.Pods.Metric.Name), &m.Pods.Target, current)
		case m.Object != nil:
			var current *autoscalingv2.MetricValueStatus
			if now.Object != nil {
				current = &now.Object.Current
			}
			how := "target value"
			if m.Object.Target.AverageValue != nil {
				how = "target average value"
			}
			metric(fmt.Sprintf("%q on %s/%s (%s)", m.Object.Metric.Name, m.Object.DescribedObject.Kind, m.Object.DescribedObject.Name, how), &m.Object.Target, current)
		case m.External != nil:
			var current *autoscalingv2.MetricValueStatus
			if now.External != nil {
				current = &now.External.Current
			}
			how := "target value"
			if m.External.Target.AverageValue != nil {
				how = "target average value"
			}
			metric(fmt.Sprintf("%q (%s)", m.External.Metric.Name, how), &m.External.Target, current)
		}
		if n := len(all); n > 0 && (m.Object != nil && m.Object.Target.AverageValue != nil || m.External != nil && m.External.Target.AverageValue != nil) {
			all[n-1].target += " (avg)"
		}
	}
	return all
}

// shortTargets is kubectl's cell: the first two metrics.
func shortTargets(hpa *autoscalingv2.HorizontalPodAutoscaler) string {
	const most = 2
	var texts []string
	for _, t := range metricTargets(hpa) {
		texts = append(texts, t.short+t.current+"/"+t.target)
	}
	if n := len(texts); n > most {
		return fmt.Sprintf("%s + %d more...", strings.Join(texts[:most], ", "), n-most)
	}
	return orNone(strings.Join(texts, ", "))
}

func (d *describer) autoscaler(hpa *autoscalingv2.HorizontalPodAutoscaler) {
	spec, status := &hpa.Spec, &hpa.Status
	d.meta(hpa)
	d.line(0, "CreationTimestamp:", d.time(hpa.CreationTimestamp))
	d.line(0, "Reference:", spec.ScaleTargetRef.Kind+"/"+spec.ScaleTargetRef.Name)
	d.line(0, "Metrics:", "( current / target )")
	for _, t := range metricTargets(hpa) {
		d.line(1, t.what+":", t.current+" / "+strings.TrimSuffix(t.target, " (avg)"))
	}
	d.line(0, "Min replicas:", valueOr(spec.MinReplicas, "<unset>"))
	d.line(0, "Max replicas:", itoa(spec.MaxReplicas))
	if b := spec.Behavior; b != nil {
		d.line(0, "Behavior:")
		d.scaling("Scale Up:", b.ScaleUp)
		d.scaling("Scale Down:", b.ScaleDown)
	}
	d.line(0, spec.ScaleTargetRef.Kind+" pods:", fmt.Sprintf("%d current / %d desired", status.CurrentReplicas, status.DesiredReplicas))
	d.conditions(each(status.Conditions, func(c autoscalingv2.HorizontalPodAutoscalerCondition) condition {
		return condition{string(c.Type), string(c.Status), c.Reason, c.Message}
	}))
}

func (d *describer) scaling(name string, rules *autoscalingv2.HPAScalingRules) {
	if rules == nil {
		return
	}
	d.line(1, name)
	if s := rules.StabilizationWindowSeconds; s != nil {
		d.line(2, "Stabilization Window:", itoa(*s)+" seconds")
	}
	if q := rules.Tolerance; q != nil {
		d.line(2, "Tolerance:", q.String())
	}
	d.line(2, "Select Policy:", valueOr(rules.SelectPolicy, "Max"))
	d.line(2, "Policies:")
	for _, p := range rules.Policies {
		d.line(3, fmt.Sprintf("- Type: %s  Value: %d  Period: %d seconds", p.Type, p.Value, p.PeriodSeconds))
	}
}
