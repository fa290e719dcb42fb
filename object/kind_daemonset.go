package object

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindDaemonSet = define(Resource{Group: "apps", Version: "v1", Kind: "DaemonSet", Plural: "daemonsets", Singular: "daemonset", ShortNames: []string{"ds"}, Namespaced: true, Categories: inAll, Status: true},
	func() *appsv1.DaemonSet { return new(appsv1.DaemonSet) },
	rules[*appsv1.DaemonSet]{
		supported: supportedPodTemplate + `
			spec.selector
			spec.updateStrategy
			spec.minReadySeconds
			spec.revisionHistoryLimit
			status
		`,
		defaults: func(ds *appsv1.DaemonSet) { defaultDaemonSet(&ds.Spec) },
		validate: func(ds *appsv1.DaemonSet) field.ErrorList {
			return validateDaemonSet(&ds.Spec, field.NewPath("spec"))
		},
		validateUpdate: func(ds, old *appsv1.DaemonSet) field.ErrorList {
			return sameSelector(ds.Spec.Selector, old.Spec.Selector)
		},
		columns: columns("NAME", "DESIRED:integer", "CURRENT:integer", "READY:integer", "UP-TO-DATE:integer", "AVAILABLE:integer", "NODE SELECTOR", "AGE", "|", "CONTAINERS", "IMAGES", "SELECTOR"),
		row: func(ds *appsv1.DaemonSet, now time.Time) []string {
			s := ds.Status
			return append([]string{
				ds.Name, itoa(s.DesiredNumberScheduled), itoa(s.CurrentNumberScheduled), itoa(s.NumberReady), itoa(s.UpdatedNumberScheduled),
				itoa(s.NumberAvailable), labels.FormatLabels(ds.Spec.Template.Spec.NodeSelector), ageOf(ds, now),
			}, templateCells(&ds.Spec.Template, ds.Spec.Selector)...)
		},
		describe: func(d *describer, ds *appsv1.DaemonSet, related []Object) {
			d.daemonSet(ds, only[*corev1.Pod](related))
		},
	})

func defaultDaemonSet(spec *appsv1.DaemonSetSpec) {
	setIfNil(&spec.RevisionHistoryLimit, 10)
	setIfZero(&spec.UpdateStrategy.Type, appsv1.RollingUpdateDaemonSetStrategyType)
	if spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		if spec.UpdateStrategy.RollingUpdate == nil {
			spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{}
		}
		setIfNil(&spec.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		setIfNil(&spec.UpdateStrategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
	defaultPodSpec(&spec.Template.Spec)
}

func validateDaemonSet(spec *appsv1.DaemonSetSpec, path *field.Path) field.ErrorList {
	errs := validateTemplate(spec.Selector, &spec.Template, path)
	errs = append(errs, notNegative(&spec.MinReadySeconds, path.Child("minReadySeconds"))...)
	errs = append(errs, notNegative(spec.RevisionHistoryLimit, path.Child("revisionHistoryLimit"))...)
	strategy, at := &spec.UpdateStrategy, path.Child("updateStrategy")
	errs = append(errs, oneOf(strategy.Type, []appsv1.DaemonSetUpdateStrategyType{appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType}, at.Child("type"))...)
	if rolling := strategy.RollingUpdate; rolling != nil && strategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		at := at.Child("rollingUpdate")
		wrong := rollout(rolling.MaxUnavailable, rolling.MaxSurge, at)
		if rolling.MaxSurge != nil && len(wrong) == 0 {
			if percent(rolling.MaxSurge) > 100 {
				wrong = append(wrong, field.Invalid(at.Child("maxSurge"), rolling.MaxSurge, "must not be greater than 100%"))
			}
			if !isZero(rolling.MaxUnavailable) && !isZero(rolling.MaxSurge) {
				wrong = append(wrong, field.Invalid(at.Child("maxSurge"), rolling.MaxSurge, "may not be set when maxUnavailable is non-zero: a node has one pod too few, or one too many"))
			}
		}
		errs = append(errs, wrong...)
	}
	return errs
}

func (d *describer) daemonSet(ds *appsv1.DaemonSet, pods []*corev1.Pod) {
	d.line(0, "Name:", ds.Name)
	d.line(0, "Namespace:", ds.Namespace)
	d.line(0, "Selector:", metav1.FormatLabelSelector(ds.Spec.Selector))
	d.line(0, "Node-Selector:", labels.FormatLabels(ds.Spec.Template.Spec.NodeSelector))
	d.labels(ds)
	s := ds.Status
	d.line(0, "Desired Number of Nodes Scheduled: "+itoa(s.DesiredNumberScheduled))
	d.line(0, "Current Number of Nodes Scheduled: "+itoa(s.CurrentNumberScheduled))
	d.line(0, "Number of Nodes Scheduled with Up-to-date Pods: "+itoa(s.UpdatedNumberScheduled))
	d.line(0, "Number of Nodes Scheduled with Available Pods: "+itoa(s.NumberAvailable))
	d.line(0, "Number of Nodes Misscheduled: "+itoa(s.NumberMisscheduled))
	own := ownPods(ds, pods)
	d.podsStatus(own)
	d.template(&ds.Spec.Template)
	d.conditions(each(s.Conditions, func(c appsv1.DaemonSetCondition) condition {
		return condition{string(c.Type), string(c.Status), c.Reason, c.Message}
	}))
	d.pods(own)
}
